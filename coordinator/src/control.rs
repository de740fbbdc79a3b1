//! What each role's object does. Rights are which object one holds: nothing here asks for a name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use capnp::Error;
use weir_core::ids::{Digest, LogIndex, MemberId, MemberName, RequestId};
use weir_core::placement::NodeState;
use weir_core::replicated::{Applied, Command, Entry, Grant, Member, Refusal, Role, State, Unreferenced};
use weir_core::units::Instant;
use weir_host::Host;
use weir_host::login::{Authority, Caller, NO_SUCH_TOKEN, purpose_word, same_hash};
use weir_schema::control_capnp::{
    self as wire, admin, directory, leader, node_home, operator, report_result, status, upload, watch_result,
    write_result,
};
use weir_schema::convert::asked::write_asked;
use weir_schema::convert::control::{
    read_command, read_digest, read_grant, read_node, read_u128, write_applied, write_change, write_member, write_state,
};
use weir_schema::convert::predict::{span_from_us, span_to_us};
use weir_schema::convert::report::{read_report, write_profile, write_report};
use weir_schema::predict_capnp::{Purpose, granted};
use weir_schema::raft_capnp::{join_result, peer};

use crate::actors::planner::{Planner, Routing};
use crate::actors::raft::{Ask, Handle, NotDone, Published};
use crate::artifacts::{Artifacts, Receiving};
use crate::messages::{MemberStep, read_message};
use crate::peers::Peers;
use crate::watch::{Changes, Seen};

/// Longest that a watch waits before it answers with nothing.
const WATCH_MAX: Duration = Duration::from_secs(30);
/// Artifacts that may be arriving at once, of members and of operators each: each holds a file, and callers upload one
/// after the other.
const UPLOADS_MAX: usize = 64;
/// A member that sends nothing more of an artifact for so long has given up.
const PUSH_IDLE: Duration = Duration::from_secs(30);

/// Tells a member that it was removed, where it did not hear of it from the log.
pub const REMOVED: &str = "this coordinator was removed from its cluster";

/// What every object of this member works with.
pub struct Shared {
    pub host: Host,
    pub name: MemberName,
    pub handle: Handle,
    pub artifacts: Artifacts,
    pub changes: Changes,
    pub planner: Rc<Planner>,
    pub peers: Rc<Peers>,
    /// Of the token that this member was started with: until it has the cluster's grants, it lets other members in by it.
    pub member_hash: [u8; 32],
    /// Artifacts that other members push, by digest, and when the last chunk came.
    pub arriving: RefCell<BTreeMap<Digest, (Instant, Receiving)>>,
    /// Artifacts here that no model names.
    pub unreferenced: Rc<RefCell<Unreferenced>>,
    /// Held once by each upload of an operator.
    pub uploads: Rc<()>,
    /// Where queries begin, as of an entry of the log: worked out once for all clients.
    pub hosts: RefCell<(LogIndex, Rc<Vec<Vec<u16>>>)>,
}

impl Shared {
    fn published(&self) -> Published {
        self.handle.published.borrow().clone()
    }

    fn hosts_of(&self, state: &State) -> Rc<Vec<Vec<u16>>> {
        let mut hosts = self.hosts.borrow_mut();
        if hosts.0 != state.applied {
            *hosts = (state.applied, Rc::new(state.hosts()));
        }
        Rc::clone(&hosts.1)
    }

    /// Whether an artifact is here, and stays for whoever is told so.
    fn has_artifact(&self, digest: Digest) -> bool {
        let here = self.artifacts.has(&digest);
        if here {
            self.unreferenced.borrow_mut().touch(self.host.clock.now(), digest);
        }
        here
    }

    fn write_leader(&self, mut b: leader::Builder<'_>) {
        let published = self.published();
        if let Some(leader) = published.leader.and_then(|id| published.state.members.get(&id)) {
            b.set_name(leader.name.as_str());
            b.set_address(&leader.address);
        }
    }

    /// Writes a command and its result. `by` is the grant that it is asked under.
    async fn write(
        &self,
        request: RequestId,
        by: &str,
        command: Command,
        b: write_result::Builder<'_>,
    ) -> Result<(), Error> {
        if let Command::Apply { models, .. } = &command {
            if !self.published().leads {
                // Also where it is about to: what it has applied does not say yet which artifacts are named.
                self.result(Err(NotDone::NotLeader), b);
                return Ok(());
            }
            for model in models {
                // Each time: a leader does not know what its predecessor spread.
                let missing = match self.has_artifact(model.digest) {
                    true => self.peers.spread(&self.artifacts, model.digest).await.err(),
                    false => Some(format!("the artifact of {} was not uploaded", model.reference)),
                };
                if let Some(why) = missing {
                    let mut b = b;
                    b.set_try_again(why);
                    return Ok(());
                }
            }
        }
        let entry = Entry { request, by: by.to_owned(), command };
        self.result(self.handle.propose(entry).await, b);
        Ok(())
    }

    fn result(&self, result: Result<Applied, NotDone>, mut b: write_result::Builder<'_>) {
        match result {
            Ok(applied) => write_applied(b.init_applied(), &applied),
            Err(NotDone::NotLeader) => self.write_leader(b.init_not_leader()),
            Err(NotDone::TryAgain(why)) => b.set_try_again(why),
        }
    }

    async fn watch(
        &self,
        since: LogIndex,
        wait_us: u64,
        secrets: bool,
        mut b: watch_result::Builder<'_>,
    ) -> Result<(), Error> {
        let wait = span_from_us(wait_us).map_err(failed)?.min(WATCH_MAX);
        match self.changes.after(since, wait).await {
            Seen::TooOld(from) => b.set_too_old(from.0),
            Seen::Changes(entries, index) => {
                b.set_index(index.0);
                let count: usize = entries.iter().map(|(_, changes)| changes.len()).sum();
                let mut list = b.init_changes(count as u32);
                let flat =
                    entries.iter().flat_map(|(index, changes)| changes.iter().map(move |change| (*index, change)));
                for (i, (index, change)) in flat.enumerate() {
                    write_change(list.reborrow().get(i as u32), index, change, secrets);
                }
            }
        }
        Ok(())
    }

    fn write_status(&self, published: &Published, mut b: status::Builder<'_>) {
        let now = self.host.clock.now();
        let state = &published.state;
        write_state(b.reborrow().init_state(), state, false);
        self.write_leader(b.reborrow().init_leader());
        b.set_term(published.term);
        let mut members = b.reborrow().init_members(state.members.len() as u32);
        for (i, member) in state.members.values().enumerate() {
            let mut b = members.reborrow().get(i as u32);
            write_member(b.reborrow().init_member(), member);
            let me = member.id == published.id;
            let leads = published.leader == Some(member.id);
            b.set_role(match (leads, member.learner) {
                (true, _) => wire::member_status::Role::Leader,
                (false, true) => wire::member_status::Role::Learner,
                (false, false) => wire::member_status::Role::Follower,
            });
            let known = published.progress.get(&member.id).map_or(LogIndex(0), |(index, _)| *index);
            b.set_applied(if me { state.applied.0 } else { known.0 });
            b.set_up(me || self.peers.is_up(now, member.id));
        }
        if !published.leads {
            return;
        }
        let wants = self.planner.wants(state);
        let mut list = b.reborrow().init_wants(wants.len() as u32);
        for (i, (model, want, earns)) in wants.iter().enumerate() {
            let mut b = list.reborrow().get(i as u32);
            b.set_model(model.to_string());
            b.set_replicas(want.replicas);
            b.set_window_us(span_to_us(want.window));
            b.set_asked(want.asked);
            b.set_now(want.now);
            b.set_earns(*earns);
        }
        self.planner.with_beliefs(|liveness, unplaceable| {
            let mut nodes = b.reborrow().init_nodes(state.nodes.len() as u32);
            for (i, name) in state.nodes.keys().enumerate() {
                let mut b = nodes.reborrow().get(i as u32);
                b.set_node(name.as_str());
                b.set_state(match liveness.state(now, state, name) {
                    NodeState::Up => wire::node_status::State::Up,
                    NodeState::Draining => wire::node_status::State::Draining,
                    NodeState::Down => wire::node_status::State::Down,
                });
                if let Some((report, busy)) = liveness.report(name) {
                    b.set_busy(busy);
                    write_report(b.init_report(), report);
                }
            }
            let mut list = b.init_unplaceable(unplaceable.len() as u32);
            for (i, (model, because)) in unplaceable.iter().enumerate() {
                let mut b = list.reborrow().get(i as u32);
                b.set_model(model.to_string());
                b.set_because(because);
            }
        });
    }

    /// Changes the membership: `choose` says whose part in it, and what it is then (`None` of a member removes), from what a
    /// leader knows. A request that was done before has its first result.
    async fn change_member(
        &self,
        request: RequestId,
        by: &str,
        step: MemberStep,
        choose: impl FnOnce(&State) -> Result<(MemberId, Option<Member>), Refusal>,
    ) -> Result<Applied, NotDone> {
        let published = self.published();
        if let Some(first) = published.state.remembered(request) {
            return Ok(first.clone());
        }
        if !published.leads {
            return Err(NotDone::NotLeader);
        }
        let (id, member) = match choose(&published.state) {
            Ok(chosen) => chosen,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let command = Command::MemberSet { id, member };
        self.handle.change_member(id, step, Entry { request, by: by.to_owned(), command }).await
    }

    /// Adds a learner under a number that nobody has had.
    async fn add_learner(&self, request: RequestId, by: &str, name: &str, address: &str) -> Result<Applied, NotDone> {
        let new = |state: &State| {
            let name = MemberName::parse(name).map_err(|bad| Refusal::Invalid { what: bad.to_string() })?;
            let id = state.next_member;
            Ok((id, Some(Member { id, name, address: address.to_owned(), learner: true })))
        };
        self.change_member(request, by, MemberStep::AddLearner, new).await
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::failed(error.to_string())
}

/// Lets callers in by the grants of the state.
pub struct Grants(pub Rc<Shared>);

impl Authority for Grants {
    fn admit(&self, caller: &Caller, mut granted: granted::Builder<'_>) -> Result<(), String> {
        let shared = Rc::clone(&self.0);
        let state = shared.published().state;
        let joining = state.grants.is_empty();
        let own = Grant { id: "member".into(), token_hash: shared.member_hash, role: Role::Member, expires: None };
        let mut known = state.grants.values().chain(joining.then_some(&own));
        let Some(grant) = known.find(|grant| same_hash(&grant.token_hash, &caller.token_hash)).cloned() else {
            let early = "this coordinator has not joined its cluster yet; ask again";
            return Err(if joining { early.into() } else { NO_SUCH_TOKEN.into() });
        };
        granted.set_server(shared.name.as_str());
        granted.set_grant(&grant.id);
        let mut role = granted.init_role();
        let right = Right { shared, grant: grant.clone() };
        match (caller.purpose, &grant.role) {
            (Purpose::Predict, _) => role.set_directory(capnp_rpc::new_client(Directory(right))),
            (Purpose::Operate, Role::Admin) => {
                role.set_admin(capnp_rpc::new_client(AdminObject(OperatorObject(right))))
            }
            (Purpose::Operate, Role::Operator) => role.set_operator(capnp_rpc::new_client(OperatorObject(right))),
            (Purpose::Member, Role::Member) => role.set_node_home(capnp_rpc::new_client(NodeHome(right))),
            (Purpose::Coordinator, Role::Member) => role.set_peer(capnp_rpc::new_client(PeerObject(right))),
            (purpose, _) => {
                return Err(format!(
                    "this token does not let its bearer {}; use one whose grant does",
                    purpose_word(purpose)
                ));
            }
        }
        Ok(())
    }
}

/// What an object was handed out by: each call asks whether it still holds.
struct Right {
    shared: Rc<Shared>,
    grant: Grant,
}

impl Right {
    fn shared(&self) -> Result<&Rc<Shared>, Error> {
        let published = self.shared.handle.published.borrow();
        let grants = &published.state.grants;
        // Members are let in by the member token alone while there are no grants yet.
        let holds = grants.get(&self.grant.id).map_or(grants.is_empty(), |grant| *grant == self.grant);
        match holds {
            true => Ok(&self.shared),
            false => Err(failed(format!("grant {} was revoked; ask an admin for another token", self.grant.id))),
        }
    }
}

struct Directory(Right);

impl directory::Server for Directory {
    async fn nodes(
        self: Rc<Self>,
        params: directory::NodesParams,
        mut results: directory::NodesResults,
    ) -> Result<(), Error> {
        let shared = self.0.shared()?;
        let (known, wait) = {
            let params = params.get()?;
            (LogIndex(params.get_known()), span_from_us(params.get_wait_us()).map_err(failed)?)
        };
        if known >= shared.published().state.applied {
            // Only the time matters: what changed is read below.
            shared.changes.after(known, wait.min(WATCH_MAX)).await;
        }
        let shared = self.0.shared()?;
        let state = shared.published().state;
        let mut b = results.get().init_directory();
        b.set_index(state.applied.0);
        let mut nodes = b.reborrow().init_nodes(state.nodes.len() as u32);
        for (i, node) in state.nodes.values().enumerate() {
            let mut b = nodes.reborrow().get(i as u32);
            b.set_name(node.name.as_str());
            b.set_address(&node.address);
            b.set_draining(node.draining);
        }
        let mut coordinators = b.reborrow().init_coordinators(state.members.len() as u32);
        for (i, member) in state.members.values().enumerate() {
            let mut b = coordinators.reborrow().get(i as u32);
            b.set_name(member.name.as_str());
            b.set_address(&member.address);
        }
        let mut endpoints = b.reborrow().init_endpoints(state.endpoints.len() as u32);
        for (i, name) in state.endpoints.keys().enumerate() {
            endpoints.set(i as u32, name.as_str());
        }
        let hosts = shared.hosts_of(&state);
        let mut lists = b.init_hosts(hosts.len() as u32);
        for (i, hosts) in hosts.iter().enumerate() {
            let mut list = lists.reborrow().init(i as u32, hosts.len() as u32);
            (0..).zip(hosts).for_each(|(i, host)| list.set(i, *host));
        }
        Ok(())
    }
}

struct OperatorObject(Right);

impl OperatorObject {
    fn shared(&self) -> Result<&Rc<Shared>, Error> {
        self.0.shared()
    }

    fn by(&self) -> &str {
        &self.0.grant.id
    }

    async fn do_write(&self, params: operator::WriteParams, mut results: operator::WriteResults) -> Result<(), Error> {
        let (request, command) = {
            let params = params.get()?;
            (RequestId(read_u128(params.get_request()?)), read_command(params.get_command()?).map_err(failed)?)
        };
        let operators = matches!(
            command,
            Command::Apply { .. }
                | Command::DeleteEndpoint(_)
                | Command::DeleteModel(_)
                | Command::Label { .. }
                | Command::NodeDrain { .. }
                | Command::NodeRemove(_)
                | Command::Quarantine { because: None, .. }
                | Command::Dial { .. }
        );
        if !operators {
            return Err(Error::failed("operators cannot ask for this".into()));
        }
        self.shared()?.write(request, self.by(), command, results.get().init_result()).await
    }

    async fn do_status(
        &self,
        params: operator::StatusParams,
        mut results: operator::StatusResults,
    ) -> Result<(), Error> {
        let published = if params.get()?.get_stale() {
            self.shared()?.published()
        } else {
            self.shared()?.handle.read().await.map_err(|not| match not {
                NotDone::NotLeader => {
                    Error::overloaded("there is no leader now; ask again, or ask for a stale status".into())
                }
                NotDone::TryAgain(why) => Error::overloaded(why),
            })?
        };
        self.shared()?.write_status(&published, results.get().init_status());
        Ok(())
    }

    async fn do_watch(&self, params: operator::WatchParams, mut results: operator::WatchResults) -> Result<(), Error> {
        let (since, wait) = {
            let params = params.get()?;
            (LogIndex(params.get_since()), params.get_wait_us())
        };
        self.shared()?.watch(since, wait, false, results.get().init_changes()).await
    }

    fn do_upload(&self, params: operator::UploadParams, mut results: operator::UploadResults) -> Result<(), Error> {
        let params = params.get()?;
        let digest = read_digest(params.get_digest()?).map_err(failed)?;
        let mut b = results.get().init_result();
        if !self.shared()?.published().leads {
            self.shared()?.write_leader(b.init_not_leader());
        } else if self.shared()?.has_artifact(digest) {
            b.set_present(());
        } else if Rc::strong_count(&self.shared()?.uploads) > UPLOADS_MAX {
            return Err(Error::overloaded("too many artifacts are uploaded at once; ask again".into()));
        } else {
            let counted = Rc::clone(&self.shared()?.uploads);
            let name = self.shared()?.host.random.u64();
            let receiving = self.shared()?.artifacts.receive(digest, params.get_size(), name).map_err(failed)?;
            b.set_upload(capnp_rpc::new_client(Uploading { receiving: RefCell::new(Some((receiving, counted))) }));
        }
        Ok(())
    }

    async fn do_snapshot(&self, mut results: operator::SnapshotResults) -> Result<(), Error> {
        // What is kept must have everything that was acknowledged.
        let published = self.shared()?.handle.read().await.map_err(|not| match not {
            NotDone::NotLeader => Error::overloaded("there is no leader now; ask again".into()),
            NotDone::TryAgain(why) => Error::overloaded(why),
        })?;
        let mut state = (*published.state).clone();
        state.requests.clear();
        write_state(results.get().init_state(), &state, true);
        Ok(())
    }
}

impl operator::Server for OperatorObject {
    async fn write(
        self: Rc<Self>,
        params: operator::WriteParams,
        results: operator::WriteResults,
    ) -> Result<(), Error> {
        self.do_write(params, results).await
    }
    async fn status(
        self: Rc<Self>,
        params: operator::StatusParams,
        results: operator::StatusResults,
    ) -> Result<(), Error> {
        self.do_status(params, results).await
    }
    async fn watch(
        self: Rc<Self>,
        params: operator::WatchParams,
        results: operator::WatchResults,
    ) -> Result<(), Error> {
        self.do_watch(params, results).await
    }
    async fn upload(
        self: Rc<Self>,
        params: operator::UploadParams,
        results: operator::UploadResults,
    ) -> Result<(), Error> {
        self.do_upload(params, results)
    }
    async fn snapshot(
        self: Rc<Self>,
        _: operator::SnapshotParams,
        results: operator::SnapshotResults,
    ) -> Result<(), Error> {
        self.do_snapshot(results).await
    }
}

struct Uploading {
    /// Together with what counts it.
    receiving: RefCell<Option<(Receiving, Rc<()>)>>,
}

impl upload::Server for Uploading {
    async fn write(self: Rc<Self>, params: upload::WriteParams, _: upload::WriteResults) -> Result<(), Error> {
        let params = params.get()?;
        let mut receiving = self.receiving.borrow_mut();
        let (receiving, _) = receiving.as_mut().ok_or_else(|| failed("this upload has ended"))?;
        receiving.write(params.get_offset(), params.get_chunk()?).map_err(failed)
    }

    async fn finish(self: Rc<Self>, _: upload::FinishParams, _: upload::FinishResults) -> Result<(), Error> {
        let (receiving, _) = self.receiving.borrow_mut().take().ok_or_else(|| failed("this upload has ended"))?;
        // A majority gets it when a model names it: `apply` does not return before that.
        receiving.finish().map_err(failed)
    }
}

/// What admins can do beyond operators.
struct AdminObject(OperatorObject);

impl operator::Server for AdminObject {
    async fn write(
        self: Rc<Self>,
        params: operator::WriteParams,
        results: operator::WriteResults,
    ) -> Result<(), Error> {
        self.0.do_write(params, results).await
    }
    async fn status(
        self: Rc<Self>,
        params: operator::StatusParams,
        results: operator::StatusResults,
    ) -> Result<(), Error> {
        self.0.do_status(params, results).await
    }
    async fn watch(
        self: Rc<Self>,
        params: operator::WatchParams,
        results: operator::WatchResults,
    ) -> Result<(), Error> {
        self.0.do_watch(params, results).await
    }
    async fn upload(
        self: Rc<Self>,
        params: operator::UploadParams,
        results: operator::UploadResults,
    ) -> Result<(), Error> {
        self.0.do_upload(params, results)
    }
    async fn snapshot(
        self: Rc<Self>,
        _: operator::SnapshotParams,
        results: operator::SnapshotResults,
    ) -> Result<(), Error> {
        self.0.do_snapshot(results).await
    }
}

/// The member of this name.
fn member(state: &State, name: &str) -> Result<Member, Refusal> {
    let known = state.members.values().find(|member| member.name.as_str() == name).cloned();
    let what = || format!("coordinator {name} not found; `weir get members` lists what there is");
    known.ok_or_else(|| Refusal::NotFound { what: what() })
}

impl admin::Server for AdminObject {
    async fn grant_add(
        self: Rc<Self>,
        params: admin::GrantAddParams,
        mut results: admin::GrantAddResults,
    ) -> Result<(), Error> {
        let (request, grant) = {
            let params = params.get()?;
            (RequestId(read_u128(params.get_request()?)), read_grant(params.get_grant()?).map_err(failed)?)
        };
        self.0.shared()?.write(request, self.0.by(), Command::GrantAdd(grant), results.get().init_result()).await
    }

    async fn grant_revoke(
        self: Rc<Self>,
        params: admin::GrantRevokeParams,
        mut results: admin::GrantRevokeResults,
    ) -> Result<(), Error> {
        let (request, id) = {
            let params = params.get()?;
            (RequestId(read_u128(params.get_request()?)), params.get_id()?.to_str()?.to_owned())
        };
        self.0.shared()?.write(request, self.0.by(), Command::GrantRevoke(id), results.get().init_result()).await
    }

    async fn member_add(
        self: Rc<Self>,
        params: admin::MemberAddParams,
        mut results: admin::MemberAddResults,
    ) -> Result<(), Error> {
        let (request, name, address) = {
            let params = params.get()?;
            let text = |t: capnp::text::Reader<'_>| t.to_str().map(str::to_owned);
            (RequestId(read_u128(params.get_request()?)), text(params.get_name()?)?, text(params.get_address()?)?)
        };
        let result = self.0.shared()?.add_learner(request, self.0.by(), &name, &address).await;
        self.0.shared()?.result(result, results.get().init_result());
        Ok(())
    }

    async fn member_remove(
        self: Rc<Self>,
        params: admin::MemberRemoveParams,
        mut results: admin::MemberRemoveResults,
    ) -> Result<(), Error> {
        let (request, name) = {
            let params = params.get()?;
            (RequestId(read_u128(params.get_request()?)), params.get_name()?.to_str()?.to_owned())
        };
        let gone = |state: &State| Ok((member(state, &name)?.id, None));
        let result = self.0.shared()?.change_member(request, self.0.by(), MemberStep::Remove, gone).await;
        self.0.shared()?.result(result, results.get().init_result());
        Ok(())
    }

    async fn member_promote(
        self: Rc<Self>,
        params: admin::MemberPromoteParams,
        mut results: admin::MemberPromoteResults,
    ) -> Result<(), Error> {
        let (request, name) = {
            let params = params.get()?;
            (RequestId(read_u128(params.get_request()?)), params.get_name()?.to_str()?.to_owned())
        };
        let voter = |state: &State| {
            let known = member(state, &name)?;
            Ok((known.id, Some(Member { learner: false, ..known })))
        };
        let result = self.0.shared()?.change_member(request, self.0.by(), MemberStep::Promote, voter).await;
        self.0.shared()?.result(result, results.get().init_result());
        Ok(())
    }
}

struct NodeHome(Right);

impl node_home::Server for NodeHome {
    async fn join(
        self: Rc<Self>,
        params: node_home::JoinParams,
        mut results: node_home::JoinResults,
    ) -> Result<(), Error> {
        let (request, node) = {
            let params = params.get()?;
            (RequestId(read_u128(params.get_request()?)), read_node(params.get_node()?).map_err(failed)?)
        };
        self.0.shared()?.write(request, &self.0.grant.id, Command::NodeJoin(node), results.get().init_result()).await
    }

    async fn report(
        self: Rc<Self>,
        params: node_home::ReportParams,
        mut results: node_home::ReportResults,
    ) -> Result<(), Error> {
        let (report, known) = {
            let r = params.get()?.get_report()?;
            (read_report(r).map_err(failed)?, (r.get_known_term(), r.get_known_routing()))
        };
        let published = self.0.shared()?.published();
        let mut b: report_result::Builder<'_> = results.get().init_result();
        if !published.leads {
            self.0.shared()?.write_leader(b.init_not_leader());
        } else if !published.state.nodes.contains_key(&report.node) {
            b.set_unknown_node(());
        } else {
            let (routing, others) = self.0.shared()?.planner.on_report(&published, report, known);
            b.set_curves(&write_asked(&others));
            match routing {
                Some(routing) => write_routing(b.init_routing(), &routing),
                None => b.set_unchanged(()),
            }
        }
        Ok(())
    }

    async fn state(
        self: Rc<Self>,
        _: node_home::StateParams,
        mut results: node_home::StateResults,
    ) -> Result<(), Error> {
        let mut state = (*self.0.shared()?.published().state).clone();
        state.requests.clear();
        write_state(results.get().init_state(), &state, true);
        Ok(())
    }

    async fn watch(
        self: Rc<Self>,
        params: node_home::WatchParams,
        mut results: node_home::WatchResults,
    ) -> Result<(), Error> {
        let (since, wait) = {
            let params = params.get()?;
            (LogIndex(params.get_since()), params.get_wait_us())
        };
        self.0.shared()?.watch(since, wait, true, results.get().init_changes()).await
    }

    async fn fetch(
        self: Rc<Self>,
        params: node_home::FetchParams,
        mut results: node_home::FetchResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let digest = read_digest(params.get_digest()?).map_err(failed)?;
        let (chunk, size) = self
            .0
            .shared()?
            .artifacts
            .read(&digest, params.get_offset(), params.get_length() as usize)
            .map_err(failed)?;
        results.get().set_chunk(&chunk);
        results.get().set_size(size);
        Ok(())
    }
}

fn write_routing(mut b: wire::routing::Builder<'_>, routing: &Routing) {
    b.set_term(routing.term);
    b.set_counter(routing.counter);
    let mut ready = b.reborrow().init_ready(routing.ready.len() as u32);
    for (i, id) in routing.ready.iter().enumerate() {
        ready.set(i as u32, id.0);
    }
    let mut profiles = b.init_profiles(routing.profiles.len() as u32);
    for (i, (id, profile)) in routing.profiles.iter().enumerate() {
        let mut b = profiles.reborrow().get(i as u32);
        b.set_replica(id.0);
        write_profile(b.init_profile(), profile);
    }
}

struct PeerObject(Right);

impl peer::Server for PeerObject {
    async fn step(self: Rc<Self>, params: peer::StepParams, _: peer::StepResults) -> Result<(), Error> {
        let messages =
            params.get()?.get_messages()?.iter().map(read_message).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        {
            let published = self.0.shared()?.handle.published.borrow();
            if let Some(other) = messages.iter().find(|message| message.to != published.id.0) {
                // An address may have a new owner.
                return Err(failed(format!("this is coordinator {}, not {}", published.id, other.to)));
            }
            // Who is on the way out still has a say in it, and is needed.
            let gone = |id| id < published.state.next_member && !published.configuration.contains_key(&id);
            if messages.iter().any(|message| gone(MemberId(message.from))) {
                return Err(failed(REMOVED));
            }
        }
        // A driver that is too busy misses them; the protocol sends again.
        let _ = self.0.shared()?.handle.asks.try_send(Ask::Step(messages));
        Ok(())
    }

    async fn join(self: Rc<Self>, params: peer::JoinParams, mut results: peer::JoinResults) -> Result<(), Error> {
        let (request, name, address) = {
            let params = params.get()?;
            let text = |t: capnp::text::Reader<'_>| t.to_str().map(str::to_owned);
            (RequestId(read_u128(params.get_request()?)), text(params.get_name()?)?, text(params.get_address()?)?)
        };
        let result = self.0.shared()?.add_learner(request, &self.0.grant.id, &name, &address).await;
        let mut b: join_result::Builder<'_> = results.get().init_result();
        match result {
            Ok(Ok(_)) => {
                let state = self.0.shared()?.published().state;
                let Some(joined) = state.members.values().find(|member| member.name.as_str() == name) else {
                    b.set_refused("the coordinator was removed again");
                    return Ok(());
                };
                let mut b = b.init_joined();
                b.set_id(joined.id.0);
                b.set_cluster(&state.cluster);
                let mut members = b.init_members(state.members.len() as u32);
                for (i, member) in state.members.values().enumerate() {
                    write_member(members.reborrow().get(i as u32), member);
                }
            }
            Ok(Err(refusal)) => b.set_refused(refusal.to_string()),
            Err(NotDone::NotLeader) => self.0.shared()?.write_leader(b.init_not_leader()),
            Err(NotDone::TryAgain(why)) => return Err(Error::overloaded(why)),
        }
        Ok(())
    }

    async fn put_artifact(
        self: Rc<Self>,
        params: peer::PutArtifactParams,
        mut results: peer::PutArtifactResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let digest = read_digest(params.get_digest()?).map_err(failed)?;
        let chunk = params.get_chunk()?;
        if self.0.shared()?.has_artifact(digest) {
            results.get().set_stored(true);
            return Ok(());
        }
        if chunk.is_empty() {
            return Ok(());
        }
        let now = self.0.shared()?.host.clock.now();
        let mut arriving = self.0.shared()?.arriving.borrow_mut();
        if params.get_offset() == 0 {
            arriving.retain(|known, (at, _)| *known != digest && now.since(*at) < PUSH_IDLE);
            if arriving.len() >= UPLOADS_MAX {
                return Err(Error::overloaded("too many artifacts arrive at once".into()));
            }
            let receiving = self
                .0
                .shared()?
                .artifacts
                .receive(digest, params.get_size(), self.0.shared()?.host.random.u64())
                .map_err(failed)?;
            arriving.insert(digest, (now, receiving));
        }
        let Some((at, receiving)) = arriving.get_mut(&digest) else {
            return Err(failed("its beginning has not arrived"));
        };
        *at = now;
        receiving.write(params.get_offset(), chunk).map_err(failed)?;
        if receiving.received() == params.get_size() {
            let (_, receiving) = arriving.remove(&digest).expect("it was just there");
            receiving.finish().map_err(failed)?;
            results.get().set_stored(true);
        }
        Ok(())
    }

    async fn get_artifact(
        self: Rc<Self>,
        params: peer::GetArtifactParams,
        mut results: peer::GetArtifactResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let digest = read_digest(params.get_digest()?).map_err(failed)?;
        let (chunk, size) = self
            .0
            .shared()?
            .artifacts
            .read(&digest, params.get_offset(), params.get_length() as usize)
            .map_err(failed)?;
        results.get().set_chunk(&chunk);
        results.get().set_size(size);
        Ok(())
    }
}
