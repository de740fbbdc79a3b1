use std::path::Path;

use weir_core::ids::MemberName;
use weir_core::replicated::{Command, Member};
use weir_host::disk::{Disk, SystemDisk};

use super::*;

/// The driver of member 1 among others that answer only as a test lets them.
struct Alone {
    driver: Driver,
    published: watch::Receiver<Published>,
    _folder: tempfile::TempDir,
    requests: u128,
}

fn member(id: u64, learner: bool) -> Member {
    let name = MemberName::parse(&format!("c{id}")).unwrap();
    Member { id: MemberId(id), name, address: format!("c{id}:7000"), learner }
}

impl Alone {
    /// It leads `voters`, of which the `up` have answered.
    async fn leading(voters: &[u64], learners: &[u64], up: &[u64]) -> Alone {
        let folder = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(SystemDisk);
        let mut state = State { applied: LogIndex(1), ..State::default() };
        voters.iter().for_each(|id| state.absorb(&Change::Member(member(*id, false))));
        learners.iter().for_each(|id| state.absorb(&Change::Member(member(*id, true))));
        let mut snapshot = founding_snapshot(&state, MemberId(1));
        snapshot.mut_metadata().mut_conf_state().voters = voters.to_vec();
        snapshot.mut_metadata().mut_conf_state().learners = learners.to_vec();
        let log = folder.path().join(Path::new("log"));
        Store::create(&disk, &log, Some(snapshot)).unwrap();
        let (peers, _) = mpsc::unbounded_channel();
        let (changes, _) = mpsc::unbounded_channel();
        let settings = Settings { id: MemberId(1), tick: Duration::from_millis(50), snapshot_every: 64, start: 1 };
        let (driver, published) = Driver::new(Store::open(disk, &log).unwrap(), settings, peers, changes).unwrap();
        let mut alone = Alone { driver, published, _folder: folder, requests: 0 };
        alone.driver.node.campaign().unwrap();
        alone.turn().await;
        for kind in [MessageType::MsgRequestPreVoteResponse, MessageType::MsgRequestVoteResponse] {
            // A majority is for it, whoever answers later.
            let term = alone.driver.node.raft.term + u64::from(kind == MessageType::MsgRequestPreVoteResponse);
            for id in voters.iter().filter(|id| **id != 1) {
                alone.hear(*id, kind, term, 0).await;
            }
        }
        assert_eq!(alone.driver.node.raft.state, StateRole::Leader);
        for id in up {
            let last = alone.last();
            alone.hear(*id, MessageType::MsgAppendResponse, alone.driver.node.raft.term, last).await;
        }
        alone
    }

    fn last(&self) -> u64 {
        self.driver.node.raft.raft_log.last_index()
    }

    async fn hear(&mut self, from: u64, kind: MessageType, term: u64, index: u64) {
        let mut message = Message { from, to: 1, term, index, ..Message::default() };
        message.set_msg_type(kind);
        self.driver.on_ask(Ask::Step(vec![message]));
        self.turn().await;
    }

    async fn turn(&mut self) {
        while self.driver.node.has_ready() {
            self.driver.on_ready().await.unwrap();
        }
        self.driver.publish();
    }

    /// Asks for a change; says why it is not proposed, or nothing where it is.
    fn change(&mut self, id: u64, step: MemberStep) -> Option<String> {
        self.requests += 1;
        let known = self.driver.state.members[&MemberId(id)].clone();
        let member = (step == MemberStep::Promote).then_some(Member { learner: false, ..known });
        let command = Command::MemberSet { id: MemberId(id), member };
        let entry = Entry { request: RequestId(self.requests), by: "test".into(), command };
        let (reply, mut answer) = oneshot::channel();
        let before = self.last();
        self.driver.on_ask(Ask::ChangeMember { id: MemberId(id), step, entry, reply });
        match answer.try_recv() {
            Ok(Err(NotDone::TryAgain(why))) => {
                assert_eq!(self.last(), before, "nothing is proposed");
                Some(why)
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }
}

#[tokio::test]
async fn a_leader_stays_while_nobody_is_there_to_take_over() {
    let mut alone = Alone::leading(&[1, 2], &[], &[]).await;
    let why = alone.change(1, MemberStep::Remove).expect("2 has not answered");
    assert!(why.contains("0 of the 1 coordinators that would vote then are up"), "{why}");
    let mut heard = Alone::leading(&[1, 2], &[], &[2]).await;
    assert!(heard.change(1, MemberStep::Remove).unwrap().contains("hands over"));
    assert_eq!(heard.driver.node.raft.lead_transferee, Some(2));
}

#[tokio::test]
async fn the_last_coordinator_s_removal_is_the_state_s_to_refuse() {
    assert_eq!(Alone::leading(&[1], &[], &[]).await.change(1, MemberStep::Remove), None);
}

#[tokio::test]
async fn a_change_that_leaves_no_majority_up_is_not_begun() {
    let mut alone = Alone::leading(&[1, 2, 3], &[], &[2]).await;
    assert!(alone.change(2, MemberStep::Remove).expect("1 and 3 remain").contains("1 of the 2"));
    assert_eq!(alone.change(3, MemberStep::Remove), None, "the one that is down may go");
    let mut alone = Alone::leading(&[1], &[2], &[]).await;
    assert!(alone.change(2, MemberStep::Promote).expect("2 has not answered").contains("1 of the 2"));
    let mut alone = Alone::leading(&[1], &[2], &[2]).await;
    assert_eq!(alone.change(2, MemberStep::Promote), None);
}

#[tokio::test]
async fn who_leaves_has_a_part_and_an_address_until_the_change_is_complete() {
    let mut alone = Alone::leading(&[1, 2], &[], &[2]).await;
    assert_eq!(alone.change(2, MemberStep::Remove), None);
    alone.turn().await;
    let (entered, term) = (alone.last(), alone.driver.node.raft.term);
    alone.hear(2, MessageType::MsgAppendResponse, term, entered).await;
    let published = alone.published.borrow().clone();
    assert!(!published.state.members.contains_key(&MemberId(2)));
    assert_eq!(published.configuration[&MemberId(2)].as_deref(), Some("c2:7000"));
    let left = alone.last();
    assert!(left > entered, "the joint configuration is left by an entry of its own");
    alone.hear(2, MessageType::MsgAppendResponse, term, left).await;
    assert_eq!(alone.published.borrow().configuration.keys().copied().collect::<Vec<_>>(), [MemberId(1)]);
}

#[tokio::test]
async fn a_leader_that_waits_for_room_names_nobody_to_ask() {
    let mut alone = Alone::leading(&[1], &[], &[]).await;
    assert_eq!(alone.published.borrow().leader, Some(MemberId(1)));
    alone.driver.full = true;
    alone.driver.publish();
    let published = alone.published.borrow().clone();
    assert_eq!((published.leader, published.leads), (None, false));
}
