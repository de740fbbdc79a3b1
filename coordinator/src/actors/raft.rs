//! The one driver of the consensus library: what is asked goes in, disk and peers are written in the order that it
//! demands, and committed entries reach the state machine.
//!
//! It has a thread of its own, so that a slow disk stops nobody else. The rest of the process asks through a bounded
//! channel and reads the state that is published after each turn.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::{ConfChangeV2, Entry as RaftEntry, EntryType, Message, MessageType, Snapshot};
use raft::{Config as RaftConfig, RawNode, SnapshotStatus, StateRole, Storage};
use tokio::sync::{mpsc, oneshot, watch};
use weir_core::ids::{LogIndex, MemberId, RequestId};
use weir_core::prng::Prng;
use weir_core::replicated::{Applied, Change, Entry, State};
use weir_schema::convert::control::{entry_from_bytes, entry_to_bytes, state_from_bytes, state_to_bytes};

use crate::log::{LogError, Store, View};
use crate::messages::{MemberStep, change_from_bytes, change_to_bytes, conf_change};

/// Why a request has no result here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotDone {
    /// Ask the leader.
    NotLeader,
    /// It is not known to have been written: ask again.
    TryAgain(String),
}

/// Replies with the result of a request.
pub type Reply = oneshot::Sender<Result<Applied, NotDone>>;

/// What the rest of the process asks of the driver.
pub enum Ask {
    /// Messages of another member.
    Step(Vec<Message>),
    /// A command.
    Propose { entry: Entry, reply: Reply },
    /// A membership change with the command that goes with it.
    ChangeMember { id: MemberId, step: MemberStep, entry: Entry, reply: Reply },
    /// The index that a linearizable read must wait for.
    ReadIndex(oneshot::Sender<Result<LogIndex, NotDone>>),
    /// A member cannot be reached.
    Unreachable(MemberId),
    /// A snapshot reached a member, or did not.
    SnapshotSent(MemberId, bool),
    /// A member has seen this one removed.
    Removed,
}

/// Asks that may wait: a turn of the driver takes a few, and each costs at most one sync of 0.1 to 10 ms.
pub const ASKS_MAX: usize = 1024;
/// Messages that may wait for one peer before the oldest are dropped; the protocol sends again.
pub const OUTBOX_MAX: usize = 1024;
/// Largest payload of an entry: well below what the log keeps free.
pub const ENTRY_MAX: usize = 1 << 20;
/// Entries kept after a snapshot, for members that are a little behind.
const TRAILING: u64 = 1024;

/// What this member knows after a turn.
#[derive(Clone)]
pub struct Published {
    /// This member.
    pub id: MemberId,
    /// Everything applied.
    pub state: Arc<State>,
    /// Who leads, as far as known.
    pub leader: Option<MemberId>,
    /// The term.
    pub term: u64,
    /// Whether it is this member, and has applied everything of the terms before.
    pub leads: bool,
    /// Voters of the configuration in force.
    pub voters: Vec<MemberId>,
    /// Everybody who has a part in that configuration, those on their way out too, with the address last known.
    pub configuration: BTreeMap<MemberId, Option<String>>,
    /// At the leader: for each other member the index known to be on its disk, and whether it answers.
    pub progress: BTreeMap<MemberId, (LogIndex, bool)>,
    /// The configuration no longer has this member.
    pub removed: bool,
}

impl Published {
    /// Of member `id`, which knows this state and of nobody.
    pub fn of(id: MemberId, state: Arc<State>) -> Published {
        Published {
            id,
            state,
            leader: None,
            term: 0,
            leads: false,
            voters: Vec::new(),
            configuration: BTreeMap::new(),
            progress: BTreeMap::new(),
            removed: false,
        }
    }
}

/// Changes in log order, for those who watch.
pub type ChangeSink = mpsc::UnboundedSender<(LogIndex, Vec<Change>)>;

/// Settings of the driver.
pub struct Settings {
    /// This member.
    pub id: MemberId,
    /// A tick; elections take 10 to 20 of them.
    pub tick: Duration,
    /// A snapshot is taken after so many entries.
    pub snapshot_every: u64,
    /// Drawn for this start: tells its reads from those of other starts and members, and seeds its election time-outs.
    pub start: u64,
}

/// Drives raft until `asks` closes or the disk fails.
pub struct Driver {
    node: RawNode<View>,
    store: Store,
    settings: Settings,
    state: Arc<State>,
    snapshot_index: u64,
    waiting: BTreeMap<RequestId, Vec<Reply>>,
    /// The term in which they were proposed.
    waiting_term: u64,
    reads: BTreeMap<u64, (oneshot::Sender<Result<LogIndex, NotDone>>, u32)>,
    ready_reads: VecDeque<(u64, oneshot::Sender<Result<LogIndex, NotDone>>)>,
    /// Results of entries that were applied and are not published yet.
    answers: Vec<(Reply, Applied)>,
    next_read: u64,
    elections: Elections,
    /// The last known of everybody who was a member since the snapshot.
    addresses: BTreeMap<MemberId, String>,
    was_member: bool,
    told_removed: bool,
    ticks: u64,
    /// A write waits for room on the disk.
    full: bool,
    /// The next tick at which a snapshot may be tried that found no room.
    compact_at: u64,
    peers: mpsc::UnboundedSender<Message>,
    changes: ChangeSink,
    published: watch::Sender<Published>,
}

/// What the rest of the process holds of the driver.
#[derive(Clone)]
pub struct Handle {
    /// Where to ask.
    pub asks: mpsc::Sender<Ask>,
    /// What is known.
    pub published: watch::Receiver<Published>,
}

impl Handle {
    /// Proposes a command and waits for its result, which can then be read here too.
    pub async fn propose(&self, entry: Entry) -> Result<Applied, NotDone> {
        self.ask(|reply| Ask::Propose { entry, reply }).await
    }

    /// Changes the membership and waits for it.
    pub async fn change_member(&self, id: MemberId, step: MemberStep, entry: Entry) -> Result<Applied, NotDone> {
        self.ask(|reply| Ask::ChangeMember { id, step, entry, reply }).await
    }

    /// Waits until this member has applied everything that was committed when this was called.
    pub async fn read(&self) -> Result<Published, NotDone> {
        self.ask(Ask::ReadIndex).await?;
        Ok(self.published.borrow().clone())
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T, NotDone>>) -> Ask) -> Result<T, NotDone> {
        let (reply, answer) = oneshot::channel();
        let overloaded = || NotDone::TryAgain("this coordinator has too much to do; ask again".into());
        self.asks.try_send(ask(reply)).map_err(|_| overloaded())?;
        match tokio::time::timeout(Duration::from_secs(5), answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NotDone::TryAgain("this coordinator stops; ask another".into())),
            Err(_) => Err(NotDone::TryAgain("no majority of the coordinators answered in time; ask again".into())),
        }
    }
}

/// How often a write is tried for which the disk had no room.
const ROOM_LOOK: Duration = Duration::from_millis(200);
/// Ticks until a snapshot is tried again for which it had none.
const COMPACT_PAUSE: u64 = 20;

/// Ticks of silence after which a member may stand for election; at most twice as many pass.
const ELECTION_TICKS: usize = 10;

/// Draws election time-outs from a seed of this start: the library would draw from the thread's own chance, which no
/// simulation can repeat. Drawn anew for each term and role, and after a while, or two members could tie for ever.
struct Elections {
    prng: Prng,
    drawn_for: Option<(u64, StateRole, u64)>,
    timeout: usize,
}

impl Elections {
    fn new(seed: u64) -> Elections {
        Elections { prng: Prng::new(seed), drawn_for: None, timeout: ELECTION_TICKS }
    }

    /// Before the library's own tick, the only place where it looks at the time-out.
    fn on_tick(&mut self, ticks: u64, raft: &mut raft::Raft<View>) {
        let now = Some((raft.term, raft.state, ticks / (2 * ELECTION_TICKS as u64)));
        if now != self.drawn_for {
            self.drawn_for = now;
            self.timeout = ELECTION_TICKS + self.prng.below(ELECTION_TICKS as u64) as usize;
        }
        raft.set_randomized_election_timeout(self.timeout);
    }
}

/// What keeps the driver from starting or going on.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum DriverError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the consensus library refuses: {0}")]
    Raft(#[from] raft::Error),
    #[error("the snapshot or the log holds what this version cannot read ({0}); run the version that wrote it")]
    Unreadable(String),
}

impl Driver {
    /// A driver over an opened log; messages for other members go to `peers`, changes to `changes`.
    pub fn new(
        store: Store,
        settings: Settings,
        peers: mpsc::UnboundedSender<Message>,
        changes: ChangeSink,
    ) -> Result<(Driver, watch::Receiver<Published>), DriverError> {
        let snapshot = store.snapshot();
        let snapshot_index = snapshot.get_metadata().index;
        let state = read_state(&snapshot)?;
        let config = RaftConfig {
            id: settings.id.0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: 2,
            pre_vote: true,
            check_quorum: true,
            applied: snapshot_index,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 64,
            max_uncommitted_size: 16 << 20,
            ..RaftConfig::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut node = RawNode::new(&config, store.view(), &logger)?;
        let alone = store.view().initial_state()?.conf_state.voters == [settings.id.0];
        if alone {
            // Nobody else can win: no need to wait for an election time-out.
            node.campaign()?;
        }
        let addresses = addresses(&state).collect();
        let state = Arc::new(state);
        let (published, receiver) = watch::channel(Published::of(settings.id, Arc::clone(&state)));
        let driver = Driver {
            node,
            store,
            state,
            snapshot_index,
            waiting: BTreeMap::new(),
            waiting_term: 0,
            reads: BTreeMap::new(),
            ready_reads: VecDeque::new(),
            answers: Vec::new(),
            next_read: 0,
            elections: Elections::new(settings.start),
            addresses,
            was_member: false,
            told_removed: false,
            ticks: 0,
            full: false,
            compact_at: 0,
            peers,
            changes,
            published,
            settings,
        };
        Ok((driver, receiver))
    }

    /// Runs until `asks` closes.
    pub async fn run(mut self, mut asks: mpsc::Receiver<Ask>) -> Result<(), DriverError> {
        let mut ticks = tokio::time::interval(self.settings.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.on_ready().await?;
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => self.on_tick(),
                ask = asks.recv() => {
                    let Some(ask) = ask else { return Ok(()) };
                    self.on_ask(ask);
                    // What came meanwhile shares the next sync.
                    for _ in 0..ASKS_MAX {
                        match asks.try_recv() {
                            Ok(ask) => self.on_ask(ask),
                            Err(_) => break,
                        }
                    }
                }
            }
            while self.node.has_ready() {
                self.on_ready().await?;
            }
            self.compact_if_due()?;
            self.publish();
            self.answer();
        }
    }

    fn on_tick(&mut self) {
        self.ticks += 1;
        self.elections.on_tick(self.ticks, &mut self.node.raft);
        self.node.tick();
        // A read whose request or answer was lost is asked again after a while.
        let overdue: Vec<u64> = self
            .reads
            .iter_mut()
            .filter_map(|(id, (_, age))| {
                *age += 1;
                (*age).is_multiple_of(20).then_some(*id)
            })
            .collect();
        for id in overdue {
            if self.reads.get(&id).is_some_and(|(reply, _)| reply.is_closed()) {
                self.reads.remove(&id);
            } else {
                self.node.read_index(self.read_context(id));
            }
        }
        self.waiting.retain(|_, replies| {
            replies.retain(|reply| !reply.is_closed());
            !replies.is_empty()
        });
    }

    fn on_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Step(messages) => {
                for message in messages {
                    // Refused are messages of members that were removed, and of terms long gone.
                    if let Err(error) = self.node.step(message) {
                        tracing::debug!(%error, "message refused");
                    }
                }
            }
            Ask::Propose { entry, reply } => {
                let bytes = entry_to_bytes(&entry);
                let refused = self.refusal(&entry, bytes.len());
                self.proposed(entry.request, reply, refused, |node| node.propose(Vec::new(), bytes));
            }
            Ask::ChangeMember { id, step, entry, reply } => {
                let context = change_to_bytes(id.0, step, &entry_to_bytes(&entry));
                let refused = self.refusal(&entry, context.len()).or_else(|| self.unready_for(id, step).map(Err));
                self.proposed(entry.request, reply, refused, |node| {
                    node.propose_conf_change(context, conf_change(id.0, step))
                });
            }
            Ask::ReadIndex(reply) => {
                if self.node.raft.leader_id == raft::INVALID_ID {
                    let _ = reply.send(Err(NotDone::NotLeader));
                    return;
                }
                self.next_read += 1;
                self.reads.insert(self.next_read, (reply, 0));
                self.node.read_index(self.read_context(self.next_read));
            }
            Ask::Removed => self.told_removed = true,
            Ask::Unreachable(id) => self.node.report_unreachable(id.0),
            Ask::SnapshotSent(id, arrived) => {
                let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.node.report_snapshot(id.0, status);
            }
        }
    }

    /// Why an entry is not proposed, or its result where it was applied before.
    fn refusal(&mut self, entry: &Entry, size: usize) -> Option<Result<Applied, NotDone>> {
        if self.node.raft.state != StateRole::Leader {
            return Some(Err(NotDone::NotLeader));
        }
        if let Some(first) = self.state.remembered(entry.request) {
            return Some(Ok(first.clone()));
        }
        if size > ENTRY_MAX {
            let what = format!("this is {size} bytes, and one write takes {ENTRY_MAX}; split the file");
            return Some(Ok(Err(weir_core::replicated::Refusal::Invalid { what })));
        }
        if !self.store.has_room() {
            return Some(Err(NotDone::TryAgain(
                "the leader's disk is full; nothing was written: free space there and ask again".into(),
            )));
        }
        None
    }

    /// Why the membership cannot change now: the library would drop the change without a word.
    fn unready_for(&mut self, id: MemberId, step: MemberStep) -> Option<NotDone> {
        if self.node.raft.has_pending_conf() || self.is_joint() {
            return Some(NotDone::TryAgain("another change of the membership is not complete yet; ask again".into()));
        }
        let raft = &self.node.raft;
        let mut voters: BTreeSet<u64> = raft.prs().conf().to_conf_state().voters.into_iter().collect();
        match step {
            MemberStep::AddLearner => return None,
            MemberStep::Promote => drop(voters.insert(id.0)),
            MemberStep::Remove => drop(voters.remove(&id.0)),
        }
        let me = self.settings.id.0;
        // Who has not answered this leader yet may never have been there.
        let answers = |voter: &u64| raft.prs().get(*voter).is_some_and(|p| p.recent_active && p.matched > 0);
        let up = voters.iter().filter(|voter| **voter == me || answers(voter)).count();
        if !voters.is_empty() && up <= voters.len() / 2 {
            return Some(NotDone::TryAgain(format!(
                "{up} of the {} coordinators that would vote then are up, and a majority must be; ask again",
                voters.len()
            )));
        }
        if step != MemberStep::Remove || id != self.settings.id {
            return None;
        }
        // A leader that goes could leave the others without the news that its going is complete. Where there are none,
        // the state refuses.
        let next = voters.into_iter().filter(answers).max_by_key(|voter| raft.prs().get(*voter).map(|p| p.matched))?;
        self.node.transfer_leader(next);
        Some(NotDone::TryAgain("the leader hands over before it goes; ask again".into()))
    }

    /// Whether a membership change is not complete: those who go still have a say in that.
    fn is_joint(&self) -> bool {
        !self.node.raft.prs().conf().to_conf_state().voters_outgoing.is_empty()
    }

    /// What marks an answer as that to this member's read.
    fn read_context(&self, read: u64) -> Vec<u8> {
        [self.settings.id.0, self.settings.start, read].map(u64::to_le_bytes).concat()
    }

    fn proposed(
        &mut self,
        request: RequestId,
        reply: Reply,
        refused: Option<Result<Applied, NotDone>>,
        propose: impl FnOnce(&mut RawNode<View>) -> raft::Result<()>,
    ) {
        if let Some(refused) = refused {
            let _ = reply.send(refused);
            return;
        }
        if let Some(replies) = self.waiting.get_mut(&request) {
            // A retry that overtook its first attempt: both get the one result.
            replies.push(reply);
            return;
        }
        match propose(&mut self.node) {
            Ok(()) => drop(self.waiting.insert(request, vec![reply])),
            Err(error) => {
                let _ =
                    reply.send(Err(NotDone::TryAgain(format!("the leader does not take it now ({error}); ask again"))));
            }
        }
    }

    /// One round of the library's demands, in the order that it demands: entries and hard state are on disk before
    /// messages that depend on them are sent.
    async fn on_ready(&mut self) -> Result<(), DriverError> {
        let mut ready = self.node.ready();
        self.send(ready.take_messages());
        if !ready.snapshot().is_empty() {
            self.install(ready.snapshot().clone()).await?;
        }
        for read in ready.take_read_states() {
            let (_, count) = read.request_ctx.as_chunks::<8>().0.split_at(2.min(read.request_ctx.len() / 8));
            let count = count.first().map_or(0, |count| u64::from_le_bytes(*count));
            if self.read_context(count) == read.request_ctx
                && let Some((reply, _)) = self.reads.remove(&count)
            {
                self.ready_reads.push_back((read.index, reply));
            }
        }
        let committed = ready.take_committed_entries();
        self.apply(committed)?;
        self.once_there_is_room(|store| store.append(ready.entries(), ready.hs())).await?;
        self.send(ready.take_persisted_messages());
        let mut light = self.node.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.store.commit_to(commit);
        }
        self.send(light.take_messages());
        self.apply(light.take_committed_entries())?;
        self.node.advance_apply();
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            // Closed only where the process ends.
            let _ = self.peers.send(message);
        }
    }

    /// Writes, as soon as the disk has room. Until then this member is silent, and the others go on without it.
    async fn once_there_is_room(
        &mut self,
        write: impl Fn(&mut Store) -> Result<(), LogError>,
    ) -> Result<(), DriverError> {
        loop {
            match write(&mut self.store) {
                Err(error) if error.is_full() => {
                    if !std::mem::replace(&mut self.full, true) {
                        tracing::warn!(%error, "this member waits for room");
                        self.publish();
                    }
                    tokio::time::sleep(ROOM_LOOK).await;
                }
                done => {
                    self.full = false;
                    return Ok(done?);
                }
            }
        }
    }

    async fn install(&mut self, snapshot: Snapshot) -> Result<(), DriverError> {
        let state = read_state(&snapshot)?;
        self.once_there_is_room(|store| store.install(snapshot.clone())).await?;
        self.snapshot_index = snapshot.get_metadata().index;
        self.state = Arc::new(state);
        self.addresses.extend(addresses(&self.state));
        // Whoever watches has missed what the snapshot skipped.
        let _ = self.changes.send((self.state.applied, Vec::new()));
        Ok(())
    }

    fn apply(&mut self, entries: Vec<RaftEntry>) -> Result<(), DriverError> {
        for entry in entries {
            let index = LogIndex(entry.index);
            if index <= self.state.applied {
                continue;
            }
            let is_normal = entry.get_entry_type() == EntryType::EntryNormal;
            let (membership, payload) = match is_normal {
                true => (None, entry.data.to_vec()),
                // Leaving a joint configuration comes with nothing.
                false if entry.context.is_empty() => (Some(ConfChangeV2::default()), Vec::new()),
                false => {
                    let (change, payload) = change_from_bytes(&entry.context).map_err(unreadable)?;
                    (Some(change), payload)
                }
            };
            let state = Arc::make_mut(&mut self.state);
            if payload.is_empty() {
                state.skip(index);
                if let Some(change) = membership {
                    self.reconfigure(&change)?;
                }
                continue;
            }
            let entry = entry_from_bytes(&payload).map_err(unreadable)?;
            let (applied, changes) = state.apply(index, &entry);
            if let Some(change) = membership
                && !changes.is_empty()
            {
                // What the state refuses, or knows already, does not reach the library either.
                self.reconfigure(&change)?;
            }
            if !changes.is_empty() {
                let _ = self.changes.send((index, changes));
            }
            let replies = self.waiting.remove(&entry.request).into_iter().flatten();
            self.answers.extend(replies.map(|reply| (reply, applied.clone())));
        }
        Ok(())
    }

    fn reconfigure(&mut self, change: &ConfChangeV2) -> Result<(), DriverError> {
        let conf = self.node.apply_conf_change(change)?;
        self.store.set_conf_state(conf);
        self.addresses.extend(addresses(&self.state));
        Ok(())
    }

    fn compact_if_due(&mut self) -> Result<(), DriverError> {
        let applied = self.state.applied.0;
        let due = applied >= self.snapshot_index + self.settings.snapshot_every;
        let wanted = due || (self.store.snapshot_wanted() && applied > self.snapshot_index);
        // A snapshot within a change would not know where those are reached who go.
        if !wanted || self.ticks < self.compact_at || self.is_joint() {
            return Ok(());
        }
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = applied;
        snapshot.mut_metadata().term = self.store.view().term(applied)?;
        *snapshot.mut_metadata().mut_conf_state() = self.store.view().initial_state()?.conf_state;
        snapshot.set_data(state_to_bytes(&self.state).into());
        match self.store.compact(snapshot, TRAILING) {
            // The log is as good without it, only longer.
            Err(error) if error.is_full() => self.compact_at = self.ticks + COMPACT_PAUSE,
            done => {
                done?;
                self.snapshot_index = applied;
            }
        }
        Ok(())
    }

    /// Answers whoever waited for what is published now.
    fn answer(&mut self) {
        for (reply, applied) in self.answers.drain(..) {
            // Nobody waits any more where the caller has gone.
            let _ = reply.send(Ok(applied));
        }
        let applied = self.state.applied.0;
        self.ready_reads.retain(|(_, reply)| !reply.is_closed());
        while let Some((index, _)) = self.ready_reads.front()
            && *index <= applied
        {
            let (index, reply) = self.ready_reads.pop_front().expect("there is one");
            let _ = reply.send(Ok(LogIndex(index)));
        }
    }

    fn publish(&mut self) {
        let raft = &self.node.raft;
        let leads = !self.full
            && raft.state == StateRole::Leader
            && raft.commit_to_current_term()
            && self.state.applied.0 >= raft.raft_log.committed;
        if raft.state != StateRole::Leader || raft.term != self.waiting_term {
            self.waiting_term = raft.term;
            // Their entries may still be committed by the next leader: the caller must ask, under the same request.
            for reply in std::mem::take(&mut self.waiting).into_values().flatten() {
                let _ = reply.send(Err(NotDone::TryAgain("leadership changed meanwhile; ask again".into())));
            }
        }
        for (_, (reply, _)) in self.reads.extract_if(.., |_, _| raft.leader_id == raft::INVALID_ID) {
            let _ = reply.send(Err(NotDone::NotLeader));
        }
        let conf = raft.prs().conf().to_conf_state();
        // In a joint configuration those who go still have a say in leaving it.
        let everybody = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next];
        let everybody = everybody.into_iter().flatten().copied().map(MemberId);
        let configuration: BTreeMap<MemberId, Option<String>> =
            everybody.map(|id| (id, self.addresses.get(&id).cloned())).collect();
        let is_member = configuration.contains_key(&self.settings.id);
        self.was_member |= is_member;
        // One that waits for room neither leads nor knows who does.
        let unsure = self.full && raft.leader_id == self.settings.id.0;
        let progress =
            raft.prs().iter().filter(|(id, _)| raft.state == StateRole::Leader && **id != self.settings.id.0);
        let now = Published {
            id: self.settings.id,
            state: Arc::clone(&self.state),
            leader: Some(raft.leader_id).filter(|id| *id != raft::INVALID_ID && !unsure).map(MemberId),
            term: raft.term,
            leads,
            voters: conf.voters.iter().copied().map(MemberId).collect(),
            configuration,
            progress: progress.map(|(id, p)| (MemberId(*id), (LogIndex(p.matched), p.recent_active))).collect(),
            removed: self.told_removed || (self.was_member && !is_member),
        };
        self.published.send_replace(now);
    }
}

fn addresses(state: &State) -> impl Iterator<Item = (MemberId, String)> {
    state.members.values().map(|member| (member.id, member.address.clone()))
}

fn unreadable(bad: weir_schema::convert::BadMessage) -> DriverError {
    DriverError::Unreadable(bad.to_string())
}

fn read_state(snapshot: &Snapshot) -> Result<State, DriverError> {
    if snapshot.is_empty() {
        return Ok(State::default());
    }
    state_from_bytes(&snapshot.data).map_err(unreadable)
}

/// The first snapshot of a member that founds a cluster: it alone votes, and it is in the state.
pub fn founding_snapshot(state: &State, id: MemberId) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = state.applied.0;
    // Whoever followed the cluster that this one is restored from has seen terms up to an index that it applied.
    snapshot.mut_metadata().term = state.applied.0;
    snapshot.mut_metadata().mut_conf_state().voters = vec![id.0];
    snapshot.set_data(state_to_bytes(state).into());
    snapshot
}

/// Whether a message carries a snapshot, whose arrival must be reported.
pub fn is_snapshot(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgSnapshot
}
