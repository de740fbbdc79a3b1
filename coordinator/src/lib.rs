//! One coordinator: a member of the replicated group that keeps registry, endpoints, placement and grants.
//!
//! Two threads: one drives the consensus library and the log, the caller's serves everything else. What is absent: any
//! part in a prediction.
mod actors;
mod artifacts;
mod control;
mod log;
mod messages;
mod peers;
mod watch;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch as tokio_watch};
use weir_core::history::MemberFacts;
use weir_core::ids::{LogIndex, MemberId, MemberName, RequestId};
use weir_core::replicated::{Command, Entry, Grant, Member, Role, State};
use weir_host::Host;
use weir_host::dial::enter;
use weir_host::limits::Limits;
use weir_host::listen::{accept_here, is_exposed};
use weir_host::login::Token;
use weir_schema::control_capnp::leader;
use weir_schema::convert::control::{read_member, write_u128};
use weir_schema::predict_capnp::Purpose;
use weir_schema::raft_capnp::join_result;

use crate::actors::planner::Planner;
use crate::actors::raft::{ASKS_MAX, Driver, DriverError, Handle, Published, Settings, founding_snapshot};
use crate::artifacts::Artifacts;
use crate::control::{Grants, Shared};
use crate::log::Store;
use crate::peers::{Peers, peer_of};
use crate::watch::Changes;

/// How a coordinator is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name in the group.
    pub name: MemberName,
    /// Where log, artifacts and first tokens are kept.
    pub data_dir: PathBuf,
    /// `host:port` to listen on.
    pub listen: String,
    /// `host:port` that others reach it at; where it listens, unless given.
    pub advertise: Option<String>,
    /// Founds a cluster where the data folder holds none.
    pub bootstrap: bool,
    /// Coordinators to join through, where the data folder holds no membership yet.
    pub join: Vec<String>,
    /// The member token; the founder's own lies in its data folder.
    pub token_file: Option<PathBuf>,
    /// Listens beyond loopback without certificates.
    pub insecure_network: bool,
    /// A tick of the consensus library.
    pub tick: Duration,
    /// A snapshot is taken after so many log entries.
    pub snapshot_every: u64,
}

/// Default of [`Config::tick`]: elections after 0.5 to 1 s of silence.
pub const TICK: Duration = Duration::from_millis(50);
/// Default of [`Config::snapshot_every`].
pub const SNAPSHOT_EVERY: u64 = 4096;

/// What a caller learns once the coordinator serves.
#[derive(Clone)]
pub struct Started {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it knows of its group and of the cluster; may be asked from any thread.
    pub facts: Arc<dyn Fn() -> MemberFacts + Send + Sync>,
}

/// Why a coordinator does not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CoordinatorError {
    #[error("cannot {what} {path}")]
    Disk {
        what: &'static str,
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("cannot listen on {address}; choose another with --listen")]
    Listen {
        address: String,
        #[source]
        cause: std::io::Error,
    },
    #[error(
        "{0} is reachable from other machines and there are no certificates; listen on 127.0.0.1, or say --insecure-network"
    )]
    Exposed(SocketAddr),
    #[error("the data folder {0} holds no membership; found a cluster with --bootstrap, or join one with --join")]
    NoMembership(PathBuf),
    #[error(
        "the data folder belongs to coordinator {found}, not {asked}; start it as --name {found}, or choose another folder"
    )]
    OtherName { found: String, asked: MemberName },
    #[error(
        "{path} says nothing that can be read; this member must not guess: remove it with `weir member remove`, empty its data folder and start it anew with --join"
    )]
    BadMembership { path: PathBuf },
    #[error(
        "a coordinator that joins needs the member token; pass it with --token-file (it lies as member.token in the founder's data folder)"
    )]
    NoToken,
    #[error("the data folder {0} holds a coordinator already; restore into an empty one")]
    NotEmpty(PathBuf),
    #[error("cannot join: {0}")]
    Join(String),
    #[error("cannot join: {0}")]
    Refused(String),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error("this coordinator was removed from its cluster; empty its data folder to start it anew with --join")]
    Removed,
    #[error("the driver of the log ended without a word, which is a defect; start this coordinator again")]
    DriverDied,
}

/// A restored state goes on this many entries and replicas later: more than the lost cluster can have gone on after the
/// snapshot.
const RESTORED_AHEAD: u64 = 1_000_000;

/// Ticks that a removed member stays for: more than an election takes, so that whoever leads next has its vote to complete
/// the change where the leader that removed it ends before the others hear of it.
const LINGER_TICKS: u32 = 60;

/// Names of the files in the data folder.
const ADMIN_TOKEN: &str = "admin.token";
const MEMBER_TOKEN: &str = "member.token";
const MEMBERSHIP: &str = "membership";
const LOG: &str = "log";
/// The request under which it asks to join, until it has.
const JOINING: &str = "joining";

/// Runs a coordinator until `shutdown` says so. Needs a `LocalSet` around it, and an actix system.
pub async fn run(
    config: Config,
    host: Host,
    started: oneshot::Sender<Started>,
    mut shutdown: tokio_watch::Receiver<bool>,
) -> Result<(), CoordinatorError> {
    let disk_error = |what, path: &Path| {
        let path = path.to_owned();
        move |cause| CoordinatorError::Disk { what, path, cause }
    };
    let listener = host
        .net
        .bind(&config.listen)
        .await
        .map_err(|cause| CoordinatorError::Listen { address: config.listen.clone(), cause })?;
    let address =
        listener.local_addr().map_err(|cause| CoordinatorError::Listen { address: config.listen.clone(), cause })?;
    if is_exposed(&address) && !config.insecure_network {
        return Err(CoordinatorError::Exposed(address));
    }
    let advertised = config.advertise.clone().unwrap_or_else(|| address.to_string());
    host.disk.create_dir_all(&config.data_dir).map_err(disk_error("create", &config.data_dir))?;
    let (membership, tokens) = membership(&config, &host, &advertised).await?;

    let store = Store::open(Arc::clone(&host.disk), &config.data_dir.join(LOG))?;
    let artifacts_folder = config.data_dir.join("artifacts");
    let artifacts =
        Artifacts::open(Arc::clone(&host.disk), &artifacts_folder).map_err(disk_error("open", &artifacts_folder))?;

    let settings = Settings {
        id: membership.id,
        tick: config.tick,
        snapshot_every: config.snapshot_every,
        start: host.random.u64(),
    };
    let (to_peers, from_driver) = mpsc::unbounded_channel();
    let (to_changes, mut new_changes) = mpsc::unbounded_channel();
    let (asks, for_driver) = mpsc::channel(ASKS_MAX);
    let place = host.spawn.place();
    let (ready, driving) = oneshot::channel();
    let (ended, mut driver_ended) = oneshot::channel();
    place.run(move || async move {
        match Driver::new(store, settings, to_peers, to_changes) {
            Ok((driver, published)) => {
                // Nobody waits any more only where the process ends.
                let _ = ready.send(Ok(published));
                let _ = ended.send(driver.run(for_driver).await);
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
    let published = driving.await.expect("the driver says whether it starts")?;
    let handle = Handle { asks, published };
    let applied = handle.published.borrow().state.applied;
    let peers = Peers::new(host.clone(), tokens.member.clone(), handle.clone(), membership.introduced);
    let planner = Planner::new(host.clone(), handle.clone());
    let shared = Rc::new(Shared {
        host: host.clone(),
        name: config.name.clone(),
        handle: handle.clone(),
        artifacts,
        changes: Changes::new(applied),
        planner: Rc::clone(&planner),
        peers: Rc::clone(&peers),
        member_hash: tokens.member.hash(),
        arriving: RefCell::default(),
        unreferenced: Rc::default(),
        uploads: Rc::new(()),
        hosts: RefCell::default(),
    });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn_local(Rc::clone(&peers).run(from_driver));
    tasks.spawn_local(planner.run());
    tasks.spawn_local(pull_missing(Rc::clone(&shared)));
    let unreferenced = Rc::clone(&shared.unreferenced);
    tasks.spawn_local(shared.artifacts.clone().collect(
        Arc::clone(&host.clock),
        handle.published.clone(),
        unreferenced,
    ));
    if let Some(admin) = tokens.admin {
        tasks.spawn_local(found(Rc::clone(&shared), admin, tokens.member.clone()));
    }
    let authority = Rc::clone(&shared);
    let limits = Limits {
        message_bytes: Limits::members().message_bytes,
        bytes_in_flight: Limits::members().bytes_in_flight,
        ..Limits::default()
    };
    tasks.spawn_local(accept_here(listener, limits, move |_| Rc::new(Grants(Rc::clone(&authority)))));
    let changes = Rc::clone(&shared);
    tasks.spawn_local(async move {
        while let Some((index, changed)) = new_changes.recv().await {
            changes.changes.push(index, changed);
        }
    });
    let facts = Arc::new({
        let (name, published) = (config.name.to_string(), handle.published.clone());
        move || facts(&name, &published.borrow())
    });
    let _ = started.send(Started { address, facts });
    let mut watched = handle.published.clone();
    let removed = async {
        let Ok(_) = watched.wait_for(|now| now.removed).await else { return std::future::pending().await };
        // The others may need its vote until they know that they do not.
        tokio::time::sleep(config.tick * LINGER_TICKS).await;
    };
    let result = tokio::select! {
        biased;
        // The driver's end closes what is watched, a moment before it says why.
        ended = &mut driver_ended => ended.map_or(Err(CoordinatorError::DriverDied), |ended| ended.map_err(CoordinatorError::from)),
        () = removed => Err(CoordinatorError::Removed),
        _ = shutdown.wait_for(|stop| *stop) => Ok(()),
    };
    tasks.shutdown().await;
    place.stop();
    result
}

struct Membership {
    id: MemberId,
    introduced: BTreeMap<MemberId, String>,
}

struct Tokens {
    /// Only the founder has it.
    admin: Option<Token>,
    member: Token,
}

/// Who this member is: from its data folder, else by founding a cluster or joining one.
async fn membership(config: &Config, host: &Host, advertised: &str) -> Result<(Membership, Tokens), CoordinatorError> {
    let path = config.data_dir.join(MEMBERSHIP);
    let token_path = |name: &str| config.data_dir.join(name);
    let disk = |what: &'static str, path: PathBuf| move |cause| CoordinatorError::Disk { what, path, cause };
    let read = |name: &str| Token::read_file(&*host.disk, &token_path(name)).map_err(disk("read", token_path(name)));
    let member_token = || match &config.token_file {
        Some(path) => Token::read_file(&*host.disk, path).map_err(disk("read", path.clone())),
        None if host.disk.exists(&token_path(MEMBER_TOKEN)) => read(MEMBER_TOKEN),
        None => Err(CoordinatorError::NoToken),
    };
    let write_token = |token: &Token, name: &str| {
        token.write_file(&*host.disk, &token_path(name)).map_err(disk("write", token_path(name)))
    };
    let log_folder = config.data_dir.join(LOG);
    let known = match host.disk.read(&path) {
        // Whatever else keeps it from being read does not mean that there is none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        bytes => Some(bytes.map_err(disk("read", path.clone()))?),
    };
    if let Some(bytes) = known {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let bad = || CoordinatorError::BadMembership { path: path.clone() };
        let (id, name) = text.trim().split_once(' ').ok_or_else(bad)?;
        let id = MemberId(id.parse().map_err(|_| bad())?);
        if name != config.name.as_str() {
            return Err(CoordinatorError::OtherName { found: name.to_owned(), asked: config.name.clone() });
        }
        let admin = host.disk.exists(&token_path(ADMIN_TOKEN)).then(|| read(ADMIN_TOKEN)).transpose()?;
        let introduced = BTreeMap::new();
        return Ok((Membership { id, introduced }, Tokens { admin, member: member_token()? }));
    }
    // Before anything is written or asked for: the tokens beside a log are those of its cluster.
    Store::clear(&host.disk, &log_folder)?;
    let write_membership = |id: MemberId| {
        let text = format!("{id} {}\n", config.name);
        host.disk.write_atomically(&path, text.as_bytes()).map_err(disk("write", path.clone()))
    };
    if config.bootstrap {
        let tokens = Tokens { admin: Some(Token::generate(&*host.random)), member: Token::generate(&*host.random) };
        let admin = tokens.admin.as_ref().expect("just made");
        write_token(admin, ADMIN_TOKEN)?;
        write_token(&tokens.member, MEMBER_TOKEN)?;
        let member =
            Member { id: MemberId(1), name: config.name.clone(), address: advertised.to_owned(), learner: false };
        let mut state = State { applied: LogIndex(1), ..State::default() };
        state.absorb(&weir_core::replicated::Change::Member(member));
        Store::create(&host.disk, &log_folder, Some(founding_snapshot(&state, MemberId(1))))?;
        write_membership(MemberId(1))?;
        return Ok((Membership { id: MemberId(1), introduced: BTreeMap::new() }, tokens));
    }
    if config.join.is_empty() {
        return Err(CoordinatorError::NoMembership(config.data_dir.clone()));
    }
    let token = member_token()?;
    // Who is interrupted asks again under the same request: it is a member already, and stays that one.
    let joining = config.data_dir.join(JOINING);
    let begun = match host.disk.read(&joining) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        bytes => bytes.map_err(disk("read", joining.clone()))?.try_into().ok().map(u128::from_le_bytes),
    };
    let request = begun.unwrap_or_else(|| host.random.u128());
    if begun.is_none() {
        host.disk.write_atomically(&joining, &request.to_le_bytes()).map_err(disk("write", joining.clone()))?;
    }
    let joined = join(config, host, &token, advertised, request).await;
    if let Err(CoordinatorError::Refused(_)) = joined {
        // The answer to this request stays the same: the next start asks anew.
        host.disk.remove(&joining).map_err(disk("remove", joining.clone()))?;
    }
    let (id, introduced) = joined?;
    if config.token_file.is_some() {
        write_token(&token, MEMBER_TOKEN)?;
    }
    Store::create(&host.disk, &log_folder, None)?;
    write_membership(id)?;
    // Of no use any more, and no harm.
    let _ = host.disk.remove(&joining);
    Ok((Membership { id, introduced }, Tokens { admin: None, member: token }))
}

/// Asks the leader, found through any member, to be added.
async fn join(
    config: &Config,
    host: &Host,
    token: &Token,
    advertised: &str,
    request: u128,
) -> Result<(MemberId, BTreeMap<MemberId, String>), CoordinatorError> {
    let mut last_error = String::new();
    let mut candidates = config.join.clone();
    // Twenty tries of half a second: a cluster that elects a leader is waited for, one that is not there is not.
    for attempt in 0..20 {
        let address = candidates[attempt % candidates.len()].clone();
        match ask_to_join(config, host, token, advertised, request, &address).await {
            Ok(Asked::Joined(id, members)) => return Ok((id, members)),
            Ok(Asked::Refused(why)) => return Err(CoordinatorError::Refused(why)),
            Ok(Asked::Leader(leader)) if !leader.is_empty() => {
                candidates.insert((attempt + 1) % (candidates.len() + 1), leader);
                continue;
            }
            Ok(Asked::Leader(_)) => last_error = format!("{address} knows no leader"),
            Err(error) => last_error = error,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(CoordinatorError::Join(last_error))
}

enum Asked {
    Joined(MemberId, BTreeMap<MemberId, String>),
    Leader(String),
    Refused(String),
}

async fn ask_to_join(
    config: &Config,
    host: &Host,
    token: &Token,
    advertised: &str,
    request: u128,
    address: &str,
) -> Result<Asked, String> {
    let entered =
        enter(host, address, token, Purpose::Coordinator, &Limits::members()).await.map_err(|e| e.to_string())?;
    let mut call = peer_of(&entered)?.join_request();
    write_u128(call.get().init_request(), request);
    call.get().set_name(config.name.as_str());
    call.get().set_address(advertised);
    let answer = tokio::time::timeout(Duration::from_secs(10), call.send().promise).await;
    let answer = answer.map_err(|_| "no answer")?.map_err(|error| weir_host::dial::remote_text(&error))?;
    let read = || -> Result<Asked, capnp::Error> {
        Ok(match answer.get()?.get_result()?.which()? {
            join_result::Joined(joined) => {
                let mut members = BTreeMap::new();
                for member in joined.get_members()? {
                    let member = read_member(member).map_err(|bad| capnp::Error::failed(bad.to_string()))?;
                    members.insert(member.id, member.address);
                }
                Asked::Joined(MemberId(joined.get_id()), members)
            }
            join_result::NotLeader(leader) => {
                let leader: leader::Reader<'_> = leader?;
                Asked::Leader(leader.get_address()?.to_str()?.to_owned())
            }
            join_result::Refused(why) => Asked::Refused(why?.to_str()?.to_owned()),
        })
    };
    read().map_err(|error| error.to_string())
}

/// Writes the first entry of a new cluster: its name and first grants. Done already where it is a restart.
async fn found(shared: Rc<Shared>, admin: Token, member: Token) {
    let name = format!("weir-{:08x}", shared.host.random.u64() as u32);
    let grant = |id: &str, token: &Token, role| Grant { id: id.into(), token_hash: token.hash(), role, expires: None };
    let grants = vec![grant("admin", &admin, Role::Admin), grant("member", &member, Role::Member)];
    let mut published = shared.handle.published.clone();
    loop {
        // An error means that the driver is gone, and this task with it.
        let Ok(now) = published.wait_for(|now| now.leads || !now.state.cluster.is_empty()).await.map(|now| now.clone())
        else {
            return;
        };
        if !now.state.cluster.is_empty() {
            return;
        }
        let command = Command::Found { cluster: name.clone(), grants: grants.clone() };
        let entry = Entry { request: RequestId(shared.host.random.u128()), by: shared.name.to_string(), command };
        if let Err(error) = shared.handle.propose(entry).await {
            tracing::debug!(?error, "the cluster is not founded yet");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Fetches artifacts that the registry names and this member lacks.
async fn pull_missing(shared: Rc<Shared>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let state = Arc::clone(&shared.handle.published.borrow().state);
        for model in state.models.values().filter(|model| !shared.artifacts.has(&model.digest)) {
            if let Err(error) = shared.peers.pull(&shared.artifacts, model.digest, model.size.0).await {
                tracing::debug!(model = %model.reference, error, "cannot fetch an artifact yet");
            }
        }
    }
}

/// Makes a data folder from a snapshot of another cluster's state: this coordinator alone founds it anew. Grants keep
/// their tokens; nodes, models and endpoints are as they were, artifacts have to be uploaded again.
pub fn restore(
    host: &Host,
    data_dir: &Path,
    name: MemberName,
    address: String,
    member_token_file: &Path,
    mut state: State,
) -> Result<(), CoordinatorError> {
    let disk = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |cause| CoordinatorError::Disk { what, path, cause }
    };
    let membership = data_dir.join(MEMBERSHIP);
    if host.disk.exists(&membership) {
        return Err(CoordinatorError::NotEmpty(data_dir.to_owned()));
    }
    let token = Token::read_file(&*host.disk, member_token_file).map_err(disk("read", member_token_file))?;
    host.disk.create_dir_all(data_dir).map_err(disk("create", data_dir))?;
    state.members.clear();
    state.requests.clear();
    // Nodes that are still up have seen a later past: what comes now must be newer to them.
    state.applied.0 += RESTORED_AHEAD;
    state.next_replica.0 += RESTORED_AHEAD;
    state.plan.epoch.0 = state.applied.0;
    let id = state.next_member;
    state.absorb(&weir_core::replicated::Change::Member(Member { id, name: name.clone(), address, learner: false }));
    Store::create(&host.disk, &data_dir.join(LOG), Some(founding_snapshot(&state, id)))?;
    token.write_file(&*host.disk, &data_dir.join(MEMBER_TOKEN)).map_err(disk("write", &data_dir.join(MEMBER_TOKEN)))?;
    host.disk.write_atomically(&membership, format!("{id} {name}\n").as_bytes()).map_err(disk("write", &membership))
}

/// Everything that metrics tell.
fn facts(name: &str, published: &Published) -> MemberFacts {
    let state = &published.state;
    let named =
        |id: &MemberId| state.members.get(id).map_or_else(|| format!("{id:?}"), |member| member.name.to_string());
    let behind = |at: &LogIndex| state.applied.0.saturating_sub(at.0);
    let others = published.progress.iter().map(|(id, (at, answers))| (named(id), behind(at), *answers));
    MemberFacts {
        member: name.to_owned(),
        term: published.term,
        applied: state.applied.0,
        leads: published.leads,
        led: published.leader.is_some(),
        voters: published.voters.len() as u64,
        others: others.collect(),
        models: state.models.len() as u64,
        endpoints: state.endpoints.len() as u64,
        nodes: state.nodes.len() as u64,
        replicas: state.plan.assignments.len() as u64,
        epoch: state.plan.epoch.0,
    }
}
