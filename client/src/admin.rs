//! The operator's calls: finds the leader, repeats under the same request id, and turns refusals into errors that say
//! who must act.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use weir_core::history::{Explained, NodeRecent};
use weir_core::ids::{Digest, LogIndex, ModelRef, QueryId, RequestId};
use weir_core::placement::NodeReport;
use weir_core::replicated::{Applied, Change, Command, Done, Grant, Member, Refusal, State};
use weir_core::triage::Asked;
use weir_core::tuner::Want;
use weir_core::units::Instant;
use weir_host::Host;
use weir_host::dial::{DialError, Entered, Role as Granted, enter, remote_text};
use weir_host::limits::Limits;
use weir_schema::control_capnp::{
    self as wire, admin, leader, node_operator, operator, upload_result, watch_result, write_result,
};
use weir_schema::convert::BadMessage;
use weir_schema::convert::control::{
    read_applied, read_change, read_member, read_state, write_command, write_grant, write_u128,
};
use weir_schema::convert::history::{read_explained, read_recent};
use weir_schema::convert::predict::span_from_us;
use weir_schema::convert::report::read_report;
use weir_schema::predict_capnp::Purpose;

use crate::{ClientError, Options};

/// Bytes of an artifact in one call.
const CHUNK: usize = 1 << 20;
/// How long a call is repeated after the last sign that it gets on: a new leader is elected in about a second.
const PATIENCE: Duration = Duration::from_secs(15);
/// For one try of what a leader does in milliseconds. Its request id makes it safe to repeat elsewhere.
const TRY: Duration = Duration::from_secs(3);
/// For one chunk of an upload: a slow link brings 100 kB/s.
const CHUNK_WITHIN: Duration = Duration::from_secs(10);
/// For a try that itself looks whether the leader is still there.
const WHILE_ALIVE: Duration = Duration::MAX;

/// Operator's calls, from one thread inside a `LocalSet`.
pub struct Admin {
    host: Host,
    options: Options,
    current: RefCell<Option<(String, Entered)>>,
    /// Connections to nodes, by address.
    nodes: RefCell<BTreeMap<String, Entered>>,
    /// When the call that is being made last got on.
    progress: Cell<Instant>,
}

/// What a coordinator says of the cluster.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Status {
    pub state: State,
    /// Name and address, empty while none is known.
    pub leader: (String, String),
    pub term: u64,
    pub members: Vec<MemberStatus>,
    /// Empty from a member that does not lead.
    pub nodes: Vec<NodeStatus>,
    /// Models without their minimum of replicas, and why.
    pub unplaceable: Vec<(String, String)>,
    /// Of models that anybody has asked for of late, what they want, and what one more slot would earn in value a second.
    pub wants: BTreeMap<String, (Want, f64)>,
}

impl Status {
    /// What homes ask of models behind gates that weigh, as they reported it last, home by home.
    pub fn demand(&self) -> impl Iterator<Item = (&ModelRef, &Asked)> {
        self.nodes.iter().filter_map(|node| node.report.as_ref()).flat_map(|report| &report.asked)
    }
}

/// A coordinator as the leader sees it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct MemberStatus {
    pub member: Member,
    /// `leader`, `follower` or `learner`.
    pub role: &'static str,
    pub applied: LogIndex,
    pub up: bool,
}

/// A node as the leader sees it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct NodeStatus {
    pub name: String,
    /// `up`, `draining` or `down`.
    pub state: &'static str,
    /// The last one; `None` before the first to this leader.
    pub report: Option<NodeReport>,
    /// Share of all slots' time spent computing, 0 to 1.
    pub busy: f64,
}

/// What a watch gives.
#[derive(Debug)]
pub enum Watched {
    /// Changes after the index asked for, and the index up to which they are complete.
    Changes(Vec<(LogIndex, Change)>, LogIndex),
    /// They go back only to this index: read the state.
    TooOld(LogIndex),
}

/// One try of a call.
enum Tried<T> {
    Done(T),
    /// Ask there; empty where nobody leads.
    Leader(String),
    Again(String),
    /// The token does not let its bearer do this.
    Refused(String),
}

impl Admin {
    /// Makes no connection yet.
    pub fn new(host: Host, options: Options) -> Admin {
        Admin {
            host,
            options,
            current: RefCell::new(None),
            nodes: RefCell::default(),
            progress: Cell::new(Instant::ZERO),
        }
    }

    /// Writes a command once, however often it has to be sent.
    pub async fn write(&self, command: Command) -> Result<Done, ClientError> {
        let request = RequestId(self.host.random.u128());
        // Before it writes, the leader hands the artifacts to a majority, which takes as long as they are large.
        let spreads = matches!(&command, Command::Apply { models, .. } if !models.is_empty());
        let within = if spreads { WHILE_ALIVE } else { TRY };
        let applied = self
            .at_leader("the write to be done", within, async |role| {
                let operator = operator_of(&role)?;
                let mut call = operator.write_request();
                write_u128(call.get().init_request(), request.0);
                write_command(call.get().init_command(), &command);
                let answer = tokio::select! {
                    biased;
                    answer = call.send().promise => answer?,
                    silent = self.until_silent(&operator), if spreads => return Err(silent),
                };
                read_write(answer.get()?.get_result()?)
            })
            .await?;
        done(applied)
    }

    /// Asks a coordinator again and again for nothing, until it does not answer.
    async fn until_silent(&self, operator: &operator::Client) -> capnp::Error {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut call = operator.watch_request();
            call.get().set_since(u64::MAX);
            if let Err(error) = within(TRY, call.send().promise).await {
                return error;
            }
            self.progress.set(self.host.clock.now());
        }
    }

    /// Asks for what only admins may.
    async fn write_as_admin(
        &self,
        ask: impl AsyncFn(admin::Client, RequestId) -> Result<Tried<Applied>, capnp::Error>,
    ) -> Result<Done, ClientError> {
        let request = RequestId(self.host.random.u128());
        let applied = self
            .at_leader("the write to be done", TRY, async |role| match role {
                Role::Admin(admin) => ask(admin, request).await,
                Role::Operator(_) => Ok(Tried::Refused("only an admin's token lets its bearer do this".into())),
            })
            .await?;
        done(applied)
    }

    /// Adds a coordinator as a learner.
    pub async fn member_add(&self, name: &str, address: &str) -> Result<Done, ClientError> {
        self.write_as_admin(async |admin, request| {
            let mut call = admin.member_add_request();
            write_u128(call.get().init_request(), request.0);
            call.get().set_name(name);
            call.get().set_address(address);
            read_write(call.send().promise.await?.get()?.get_result()?)
        })
        .await
    }

    /// Takes a coordinator out of the group.
    pub async fn member_remove(&self, name: &str) -> Result<Done, ClientError> {
        self.write_as_admin(async |admin, request| {
            let mut call = admin.member_remove_request();
            write_u128(call.get().init_request(), request.0);
            call.get().set_name(name);
            read_write(call.send().promise.await?.get()?.get_result()?)
        })
        .await
    }

    /// Makes a learner a voter.
    pub async fn member_promote(&self, name: &str) -> Result<Done, ClientError> {
        self.write_as_admin(async |admin, request| {
            let mut call = admin.member_promote_request();
            write_u128(call.get().init_request(), request.0);
            call.get().set_name(name);
            read_write(call.send().promise.await?.get()?.get_result()?)
        })
        .await
    }

    /// Hands out a right.
    pub async fn grant_add(&self, grant: &Grant) -> Result<Done, ClientError> {
        self.write_as_admin(async |admin, request| {
            let mut call = admin.grant_add_request();
            write_u128(call.get().init_request(), request.0);
            write_grant(call.get().init_grant(), grant, true);
            read_write(call.send().promise.await?.get()?.get_result()?)
        })
        .await
    }

    /// Takes a right back.
    pub async fn grant_revoke(&self, id: &str) -> Result<Done, ClientError> {
        self.write_as_admin(async |admin, request| {
            let mut call = admin.grant_revoke_request();
            write_u128(call.get().init_request(), request.0);
            call.get().set_id(id);
            read_write(call.send().promise.await?.get()?.get_result()?)
        })
        .await
    }

    /// The cluster as its leader sees it, as of now.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.at_leader("a leader", TRY, async |role| {
            let answer = operator_of(&role)?.status_request().send().promise.await?;
            let status =
                read_status(answer.get()?.get_status()?).map_err(|bad| capnp::Error::failed(bad.to_string()))?;
            // Only the leader hears the nodes.
            let answered_by = self.current.borrow().as_ref().map(|(_, entered)| entered.server().to_owned());
            let leads = Some(&status.leader.0) == answered_by.as_ref();
            Ok(if leads { Tried::Done(status) } else { Tried::Leader(status.leader.1) })
        })
        .await
    }

    /// The cluster as whichever coordinator answers first knows it; it may be behind.
    pub async fn stale_status(&self) -> Result<Status, ClientError> {
        let mut last = String::new();
        for address in &self.options.coordinators {
            let asked = async {
                let entered = self.enter(address).await.map_err(|error| error.to_string())?;
                let role = role_of(&entered).map_err(|error| error.to_string())?;
                let mut call = operator_of(&role).map_err(|error| error.to_string())?.status_request();
                call.get().set_stale(true);
                let answer = call.send().promise.await.map_err(|error| remote_text(&error))?;
                let status = answer.get().and_then(|r| r.get_status()).map_err(|error| error.to_string())?;
                read_status(status).map_err(|bad| bad.to_string())
            };
            match tokio::time::timeout(Duration::from_secs(5), asked).await {
                Ok(Ok(status)) => return Ok(status),
                Ok(Err(error)) => last = error,
                Err(_) => last = "no answer".into(),
            }
        }
        Err(ClientError::Unreachable { tried: self.options.coordinators.join(", "), last })
    }

    /// Changes after an index; waits for the first at most `wait`.
    pub async fn watch(&self, since: LogIndex, wait: Duration) -> Result<Watched, ClientError> {
        self.at_leader("a change", wait.saturating_add(Duration::from_secs(2)), async |role| {
            let mut call = operator_of(&role)?.watch_request();
            call.get().set_since(since.0);
            call.get().set_wait_us(wait.as_micros() as u64);
            let answer = call.send().promise.await?;
            let r = answer.get()?.get_changes()?;
            Ok(Tried::Done(match r.which()? {
                watch_result::TooOld(from) => Watched::TooOld(LogIndex(from)),
                watch_result::Changes(list) => {
                    let mut changes = Vec::new();
                    for change in list? {
                        let (index, change) =
                            read_change(change).map_err(|bad| capnp::Error::failed(bad.to_string()))?;
                        changes.extend(change.map(|change| (index, change)));
                    }
                    Watched::Changes(changes, LogIndex(r.get_index()))
                }
            }))
        })
        .await
    }

    /// Everything replicated, as bytes that `weir snapshot` keeps.
    pub async fn snapshot(&self) -> Result<State, ClientError> {
        self.at_leader("a snapshot", PATIENCE, async |role| {
            let answer = operator_of(&role)?.snapshot_request().send().promise.await?;
            let state = read_state(answer.get()?.get_state()?).map_err(|bad| capnp::Error::failed(bad.to_string()))?;
            Ok(Tried::Done(state))
        })
        .await
    }

    /// Uploads an artifact unless the leader has it; `progress` is told the bytes sent so far.
    pub async fn upload(&self, bytes: &[u8], progress: impl Fn(u64)) -> Result<Digest, ClientError> {
        let digest = Digest(Sha256::digest(bytes).into());
        self.at_leader("the upload to be done", WHILE_ALIVE, async |role| {
            let mut call = operator_of(&role)?.upload_request();
            call.get().set_digest(&digest.0);
            call.get().set_size(bytes.len() as u64);
            let answer = within(TRY, call.send().promise).await?;
            let upload = match answer.get()?.get_result()?.which()? {
                upload_result::Present(()) => return Ok(Tried::Done(())),
                upload_result::NotLeader(leader) => return Ok(Tried::Leader(address_of(leader?)?)),
                upload_result::Upload(upload) => upload?,
            };
            for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
                let mut call = upload.write_request();
                call.get().set_offset((i * CHUNK) as u64);
                call.get().set_chunk(chunk);
                within(CHUNK_WITHIN, call.send().promise).await?;
                self.progress.set(self.host.clock.now());
                progress((i * CHUNK + chunk.len()) as u64);
            }
            // It reads back what it has, and compares.
            within(PATIENCE, upload.finish_request().send().promise).await?;
            Ok(Tried::Done(()))
        })
        .await?;
        Ok(digest)
    }

    /// The last seconds of a node: so many whole ones, at most [`weir_core::history::WINDOW`].
    pub async fn recent(&self, address: &str, seconds: usize) -> Result<NodeRecent, ClientError> {
        self.at_node(address, async |node| {
            let mut call = node.recent_request();
            call.get().set_seconds(seconds as u32);
            let answer = call.send().promise.await?;
            read_recent(answer.get()?.get_recent()?).map_err(|bad| capnp::Error::failed(bad.to_string()))
        })
        .await
    }

    /// What a node knows of a query.
    pub async fn explain(&self, address: &str, id: QueryId) -> Result<Explained, ClientError> {
        self.at_node(address, async |node| {
            let mut call = node.explain_request();
            write_u128(call.get().init_id(), id.0);
            let answer = call.send().promise.await?;
            read_explained(answer.get()?.get_explained()?).map_err(|bad| capnp::Error::failed(bad.to_string()))
        })
        .await
    }

    /// Tells a node what the answer to a query should have been; whether it remembers the query.
    pub async fn label(&self, address: &str, id: QueryId, label: u32) -> Result<bool, ClientError> {
        self.at_node(address, async |node| {
            let mut call = node.label_request();
            write_u128(call.get().init_id(), id.0);
            call.get().set_label(label);
            Ok(call.send().promise.await?.get()?.get_known())
        })
        .await
    }

    /// Asks a node once, over the connection that there is.
    async fn at_node<T>(
        &self,
        address: &str,
        ask: impl AsyncFn(node_operator::Client) -> Result<T, capnp::Error>,
    ) -> Result<T, ClientError> {
        let unreachable = |last: String| ClientError::Unreachable { tried: address.to_owned(), last };
        let known = self.nodes.borrow().get(address).filter(|entered| !entered.is_closed()).cloned();
        let entered = match known {
            Some(entered) => entered,
            None => match self.enter(address).await {
                Err(DialError::Refused { message, .. }) => return Err(ClientError::Refused(message)),
                Err(error) => return Err(unreachable(error.to_string())),
                Ok(entered) => {
                    self.nodes.borrow_mut().insert(address.to_owned(), entered.clone());
                    entered
                }
            },
        };
        let Granted::NodeOperator(node) = entered.role() else {
            return Err(ClientError::BadAnswer(format!("{address} is no node")));
        };
        match tokio::time::timeout(TRY, ask(node.clone())).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(unreachable(remote_text(&error))),
            Err(_) => Err(unreachable("no answer".into())),
        }
    }

    async fn enter(&self, address: &str) -> Result<Entered, DialError> {
        enter(&self.host, address, &self.options.token, Purpose::Operate, &Limits::members()).await
    }

    /// Makes a call at the leader, wherever that is now, until it is done or the patience is over; one try takes at most
    /// `within`.
    async fn at_leader<T>(
        &self,
        what: &str,
        within: Duration,
        call: impl AsyncFn(Role) -> Result<Tried<T>, capnp::Error>,
    ) -> Result<T, ClientError> {
        self.progress.set(self.host.clock.now());
        let mut turn = 0;
        let mut redirects = 0;
        let mut redirect: Option<String> = None;
        let mut reached = false;
        let mut last = String::new();
        let mut unreached = 0;
        while self.host.clock.now().since(self.progress.get()) < PATIENCE {
            let known = self.current.borrow().clone().filter(|(_, entered)| !entered.is_closed());
            let (address, entered) = match (redirect.take(), known) {
                (None, Some(known)) => known,
                (redirect, _) => {
                    let address = redirect.unwrap_or_else(|| {
                        turn += 1;
                        self.options.coordinators[(turn - 1) % self.options.coordinators.len()].clone()
                    });
                    match self.enter(&address).await {
                        Ok(entered) => {
                            *self.current.borrow_mut() = Some((address.clone(), entered.clone()));
                            (address, entered)
                        }
                        Err(DialError::Refused { message, .. }) if !message.contains("ask again") => {
                            return Err(ClientError::Refused(message));
                        }
                        Err(error) => {
                            last = error.to_string();
                            // Who sent us there would send us there again.
                            self.current.take();
                            unreached += 1;
                            // Nobody is there: two rounds are enough to be sure.
                            if !reached && unreached >= 2 * self.options.coordinators.len() {
                                break;
                            }
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    }
                }
            };
            reached = true;
            let role = role_of(&entered).map_err(|error| ClientError::BadAnswer(error.to_string()))?;
            let tried = tokio::time::timeout(within, call(role)).await;
            match tried {
                Ok(Ok(Tried::Done(value))) => return Ok(value),
                Ok(Ok(Tried::Leader(leader))) if !leader.is_empty() && leader != address => {
                    redirect = Some(leader);
                    redirects += 1;
                    // Once is the rule; two that name each other need time to agree.
                    if redirects == 1 {
                        continue;
                    }
                    last = "the coordinators do not agree who leads".into();
                }
                Ok(Ok(Tried::Leader(_))) => {
                    last = "there is no leader: a majority of the coordinators must be up".into();
                    // That is what this one knows; another may know better.
                    self.current.take();
                }
                Ok(Ok(Tried::Refused(why))) => return Err(ClientError::Refused(why)),
                Ok(Ok(Tried::Again(why))) => {
                    last = why;
                    redirects = 0;
                    // It may lead only in its own eyes: another one knows better.
                    self.current.take();
                }
                Ok(Err(error)) => match error.kind {
                    capnp::ErrorKind::Failed => return Err(ClientError::Invalid(remote_text(&error))),
                    _ => {
                        last = remote_text(&error);
                        self.current.take();
                    }
                },
                Err(_) => {
                    last = format!("{address} does not answer");
                    self.current.take();
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if reached {
            Err(ClientError::TimedOut(format!("{what} ({last})")))
        } else {
            Err(ClientError::Unreachable { tried: self.options.coordinators.join(", "), last })
        }
    }
}

/// An answer, or that there is none in time.
async fn within<T>(limit: Duration, answer: impl Future<Output = capnp::Result<T>>) -> capnp::Result<T> {
    let silent = |_| Err(capnp::Error::disconnected("the leader does not answer".into()));
    tokio::time::timeout(limit, answer).await.unwrap_or_else(silent)
}

/// What the token opened.
enum Role {
    Operator(operator::Client),
    Admin(admin::Client),
}

fn role_of(entered: &Entered) -> Result<Role, capnp::Error> {
    match entered.role() {
        Granted::Operator(operator) => Ok(Role::Operator(operator.clone())),
        Granted::Admin(admin) => Ok(Role::Admin(admin.clone())),
        _ => Err(capnp::Error::failed("this is no coordinator".into())),
    }
}

fn operator_of(role: &Role) -> Result<operator::Client, capnp::Error> {
    Ok(match role {
        Role::Operator(operator) => operator.clone(),
        // An admin is an operator too.
        Role::Admin(admin) => operator::Client { client: admin.client.clone() },
    })
}

fn read_write(result: write_result::Reader<'_>) -> Result<Tried<Applied>, capnp::Error> {
    Ok(match result.which()? {
        write_result::Applied(applied) => {
            Tried::Done(read_applied(applied?).map_err(|bad| capnp::Error::failed(bad.to_string()))?)
        }
        write_result::NotLeader(leader) => Tried::Leader(address_of(leader?)?),
        write_result::TryAgain(why) => Tried::Again(why?.to_str()?.to_owned()),
    })
}

fn address_of(leader: leader::Reader<'_>) -> Result<String, capnp::Error> {
    Ok(leader.get_address()?.to_str()?.to_owned())
}

fn done(applied: Applied) -> Result<Done, ClientError> {
    applied.map_err(|refusal| match refusal {
        Refusal::NotFound { what } => ClientError::NotFound(what),
        Refusal::Conflict { what } => ClientError::Conflict(what),
        Refusal::Invalid { what } => ClientError::Invalid(what),
    })
}

fn read_status(r: wire::status::Reader<'_>) -> Result<Status, BadMessage> {
    let text = |t: capnp::text::Reader<'_>| -> Result<String, BadMessage> { Ok(t.to_str()?.to_owned()) };
    let member = |r: wire::member_status::Reader<'_>| -> Result<MemberStatus, BadMessage> {
        Ok(MemberStatus {
            member: read_member(r.get_member()?)?,
            role: match r.get_role()? {
                wire::member_status::Role::Leader => "leader",
                wire::member_status::Role::Learner => "learner",
                wire::member_status::Role::Follower | wire::member_status::Role::Candidate => "follower",
            },
            applied: LogIndex(r.get_applied()),
            up: r.get_up(),
        })
    };
    let node = |r: wire::node_status::Reader<'_>| -> Result<NodeStatus, BadMessage> {
        Ok(NodeStatus {
            name: text(r.get_node()?)?,
            state: match r.get_state()? {
                wire::node_status::State::Up => "up",
                wire::node_status::State::Draining => "draining",
                wire::node_status::State::Down => "down",
            },
            report: if r.has_report() { Some(read_report(r.get_report()?)?) } else { None },
            busy: r.get_busy(),
        })
    };
    let unplaceable = |r: wire::status::unplaceable::Reader<'_>| -> Result<(String, String), BadMessage> {
        Ok((text(r.get_model()?)?, text(r.get_because()?)?))
    };
    let want = |r: wire::status::model_want::Reader<'_>| -> Result<_, BadMessage> {
        let want = Want {
            replicas: r.get_replicas(),
            window: span_from_us(r.get_window_us())?,
            asked: r.get_asked(),
            now: r.get_now(),
        };
        Ok((text(r.get_model()?)?, (want, r.get_earns())))
    };
    let leader = r.get_leader()?;
    Ok(Status {
        state: read_state(r.get_state()?)?,
        leader: (text(leader.get_name()?)?, text(leader.get_address()?)?),
        term: r.get_term(),
        members: r.get_members()?.iter().map(member).collect::<Result<_, _>>()?,
        nodes: r.get_nodes()?.iter().map(node).collect::<Result<_, _>>()?,
        unplaceable: r.get_unplaceable()?.iter().map(unplaceable).collect::<Result<_, _>>()?,
        wants: r.get_wants()?.iter().map(want).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests;
