//! One node: hosts model replicas as actors, is the home of queries, and runs stages for other nodes.
//!
//! Threads: the caller's keeps the line to the coordinators, the plan and the timers; RPC threads serve connections, and other threads of the
//! process that ask a lot have a home of it as well ([`Started::in_process`]); each
//! replica has one of its own. What is absent: any wait for a coordinator on the way of a prediction.
mod actors;
mod alarm;
mod artifacts;
#[cfg(test)]
mod bench;
mod counters;
mod deadlines;
mod door;
mod elsewhere;
mod home;
mod link;
mod memory;
mod operators;
mod stages;
mod table;
mod wanted;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use weir_core::endpoint::passage::Held;
use weir_core::history::NodeFacts;
use weir_core::ids::{DeviceName, EndpointName, ModelRef, NodeName};
use weir_core::replicated::{Device as DeviceSpec, Node};
use weir_core::router::{Candidate, Estimate, Target, missed};
use weir_core::scheduler::{Inquiry, Policy};
use weir_core::tensor::Row;
use weir_core::triage::{ByModel, Method, WholeStage};
use weir_core::units::{Bytes, Instant};
use weir_host::Host;
use weir_host::limits::Limits;
use weir_host::listen::{accept, is_exposed};
use weir_host::login::{Authority, InProcess, Token};

use crate::actors::assignment::Replicas;
use crate::actors::device::{Device, Slots};
use crate::artifacts::Artifacts;
use crate::counters::Ledger;
use crate::door::Door;
use crate::elsewhere::Elsewhere;
use crate::home::Home;
use crate::link::Link;
use crate::memory::Memory;
use crate::operators::Histories;
use crate::table::{RemoteWaits, Table};
use crate::wanted::Wanted;

/// How a node is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name in the cluster.
    pub name: NodeName,
    /// Where artifacts are kept.
    pub data_dir: PathBuf,
    /// `host:port` to listen on.
    pub listen: String,
    /// `host:port` that others reach it at; where it listens, unless given.
    pub advertise: Option<String>,
    /// Coordinators to join through.
    pub coordinators: Vec<String>,
    /// The member token.
    pub token_file: PathBuf,
    /// Batches that run at once on the processor.
    pub cpu_slots: u32,
    /// Memory for models.
    pub memory: Bytes,
    /// What its calls may hold between their stages, all together.
    pub between_stages: Bytes,
    /// Which batch its device runs when.
    pub policy: Policy,
    /// Which deeper stages run when there is too much to do.
    pub triage: Method,
    /// Speed of the device against the real one, above 0 and at most 1.
    pub pace: f64,
    /// The core that each slot computes on, as many as there are slots; empty: wherever the system puts it.
    pub cores: Vec<u32>,
    /// What its processor is, in words that are the same on machines as fast: its cores included. Empty: no other node learns
    /// from what is measured here, nor this one from others.
    pub processor: String,
    /// Threads that serve connections.
    pub rpc_threads: usize,
    /// Listens beyond loopback without certificates.
    pub insecure_network: bool,
}

/// What a caller learns once the node listens, and when it has joined.
#[derive(Clone)]
pub struct Started {
    /// Where it listens.
    pub address: SocketAddr,
    /// Turns true when the node has joined its cluster.
    pub joined: watch::Receiver<bool>,
    /// What it knows of itself; may be asked from any thread.
    pub facts: Arc<dyn Fn() -> NodeFacts + Send + Sync>,
    /// For other threads of this process that ask it.
    pub in_process: InProcess,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NodeError {
    #[error(
        "cannot read the member token {path}; pass one with --token-file (it lies as member.token in the data folder of the coordinator that founded the cluster)"
    )]
    Token {
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
    #[error("cannot use the data folder {path}")]
    Disk {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("{0}")]
    Usage(String),
}

/// The devices of this node, by name, and the memory that they share.
pub(crate) struct Devices {
    by_name: BTreeMap<DeviceName, Arc<Device>>,
    pub memory: Arc<Memory>,
}

impl Devices {
    /// When so many rows of a model would be done on one of them: see [`Device::estimate_finish`]. What is not in memory has to be loaded first.
    fn estimate_finish(
        &self,
        device: &Device,
        now: Instant,
        model: &ModelRef,
        asked: Inquiry,
        like: Option<&Row>,
    ) -> Option<Estimate> {
        let loaded = || self.memory.estimate(now, model, device, asked);
        device.estimate_finish(now, model, asked, like).or_else(loaded)
    }
}

impl Deref for Devices {
    type Target = BTreeMap<DeviceName, Arc<Device>>;
    fn deref(&self) -> &Self::Target {
        &self.by_name
    }
}

/// What all threads of the node share.
pub(crate) struct Shared {
    pub host: Host,
    pub name: NodeName,
    /// Drawn when the process started.
    pub incarnation: u128,
    pub token: Token,
    pub devices: Devices,
    pub triage: Method,
    /// What makes the devices as fast as they are, by name; none of a device whose times say nothing about others.
    pub hardware: BTreeMap<DeviceName, String>,
    pub table: ArcSwap<Table>,
    pub remote_waits: RemoteWaits,
    pub ledger: Ledger,
    pub histories: Histories,
    pub elsewhere: Elsewhere,
    /// How many rows homes have wanted run.
    pub wanted: Wanted,
    /// The stage for all queries of an endpoint, where triage asks for one: by the rate at which they come to all threads.
    pub wholes: Mutex<BTreeMap<EndpointName, WholeStage>>,
    /// Something changed that the leader should hear at once.
    pub rebuild_needed: Notify,
    /// What calls hold between their stages.
    pub held: Arc<Held>,
    draining: AtomicBool,
    calls: Arc<AtomicUsize>,
}

/// Counts a call while it lives.
pub(crate) struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    fn in_flight(&self) -> InFlight {
        self.calls.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(&self.calls))
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// So many rows of a model with `left` time go nowhere, as each of `known` would be done with them too late: it counts where they would have
    /// gone, which depends on how much a row `saves` by meeting others.
    fn missed(&self, known: &[Candidate], model: &ModelRef, rows: usize, left: Duration, saves: Duration) {
        match missed(known, left, saves) {
            Some(Target::Local(_)) => self.devices.memory.on_missed(model, rows, left),
            Some(Target::Remote(node)) => self.remote_waits.missed(node, model, rows, left),
            None => {}
        }
    }

    /// What homes of this node ask of models.
    fn asked(&self) -> ByModel {
        let now = self.host.clock.now();
        let mut asked = self.elsewhere.asked(now);
        self.devices.values().for_each(|device| asked.extend(device.asked(now)));
        asked
    }
}

/// How long a node that was told to stop finishes what it has.
const DRAIN: Duration = Duration::from_secs(30);
/// How long it still answers before it looks whether it has finished: callers hear that it drains.
const DRAIN_AT_LEAST: Duration = Duration::from_millis(300);

/// Runs a node until `shutdown` says so; then it finishes what it has. Needs a `LocalSet` and an actix system around it.
pub async fn run(
    config: Config,
    host: Host,
    started: oneshot::Sender<Started>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), NodeError> {
    if config.coordinators.is_empty() {
        return Err(NodeError::Usage(
            "a node needs a coordinator to join through; name one with --coordinators".into(),
        ));
    }
    if config.cpu_slots == 0 || config.rpc_threads == 0 {
        return Err(NodeError::Usage("a node needs at least one slot and one thread for connections".into()));
    }
    if !(config.pace > 0.0 && config.pace <= 1.0) {
        return Err(NodeError::Usage("--pace is above 0 and at most 1".into()));
    }
    check_cores(&config)?;
    let token = Token::read_file(&*host.disk, &config.token_file)
        .map_err(|cause| NodeError::Token { path: config.token_file.clone(), cause })?;
    let unlistened = |cause| NodeError::Listen { address: config.listen.clone(), cause };
    let listener = host.net.bind(&config.listen).await.map_err(unlistened)?;
    let address = listener.local_addr().map_err(unlistened)?;
    if is_exposed(&address) && !config.insecure_network {
        return Err(NodeError::Exposed(address));
    }
    let folder = config.data_dir.join("artifacts");
    let artifacts =
        Artifacts::open(host.clone(), folder.clone()).map_err(|cause| NodeError::Disk { path: folder, cause })?;

    let (deaths, died) = mpsc::unbounded_channel();
    let cpu = DeviceName::parse("cpu0").expect("a valid name");
    let slots = Slots { count: config.cpu_slots, pace: config.pace, cores: config.cores.clone() };
    let device = Device::new(cpu.clone(), slots, config.policy, Arc::clone(&host.clock), deaths);
    let (memory, orders) = Memory::new(Arc::clone(&host.clock), config.memory);
    let hardware = hardware(&config);
    let me = Node {
        name: config.name.clone(),
        address: config.advertise.clone().unwrap_or_else(|| address.to_string()),
        devices: vec![DeviceSpec {
            name: cpu.clone(),
            kind: "cpu".into(),
            slots: config.cpu_slots,
            hardware: hardware.clone(),
        }],
        memory: config.memory,
        draining: false,
    };
    let shared = Arc::new(Shared {
        host: host.clone(),
        name: config.name.clone(),
        incarnation: host.random.u128(),
        token,
        hardware: BTreeMap::from([(cpu.clone(), hardware)]),
        devices: Devices { by_name: BTreeMap::from([(cpu, device)]), memory },
        triage: config.triage,
        table: ArcSwap::default(),
        remote_waits: RemoteWaits::default(),
        ledger: Ledger::default(),
        histories: Histories::default(),
        elsewhere: Elsewhere::default(),
        wanted: Wanted::default(),
        wholes: Mutex::default(),
        held: Held::new(config.between_stages.0 as usize),
        rebuild_needed: Notify::new(),
        draining: AtomicBool::new(false),
        calls: Arc::default(),
    });
    let replicas = Replicas::new(Arc::clone(&shared), artifacts);
    let link = Link::new(Arc::clone(&shared), Rc::clone(&replicas), me, config.coordinators.clone());
    let joined = link.joined();
    let mut tasks = tokio::task::JoinSet::new();
    for device in shared.devices.values() {
        tasks.spawn_local(Arc::clone(device).keep_time());
    }
    tasks.spawn_local(look_for_hangs(Arc::clone(&shared)));
    tasks.spawn_local(Arc::clone(&shared.devices.memory).keep_time());
    tasks.spawn_local(Rc::clone(&replicas).obey(orders));
    tasks.spawn_local(replicas.supervise(died));
    tasks.spawn_local(link.run());
    let places: Vec<_> = (0..config.rpc_threads).map(|_| host.spawn.place()).collect();
    for place in &places {
        for device in shared.devices.values() {
            let device = Arc::clone(device);
            place.run(move || device.echo());
        }
    }
    let at_home = Arc::clone(&shared);
    let authority = move || {
        // Connections of a place share its lines to other nodes.
        let home = Home::new(at_home);
        move |_| -> Rc<dyn Authority> { Rc::new(Door(Rc::clone(&home))) }
    };
    let serving = places.clone();
    tasks.spawn_local(async move { accept(listener, Limits::default(), &serving, authority).await });
    // Nobody waits for it only where the process ends already.
    let facts = Arc::new({
        let (shared, joined) = (Arc::clone(&shared), joined.clone());
        move || operators::facts(&shared, *joined.borrow())
    });
    let at_home = Arc::clone(&shared);
    let door = Arc::new(move || -> Rc<dyn Authority> {
        // Replies go to that thread too.
        for device in at_home.devices.values() {
            tokio::task::spawn_local(device.echo());
        }
        Rc::new(Door(Home::new(Arc::clone(&at_home))))
    });
    let in_process = InProcess { name: config.name.clone(), door };
    let _ = started.send(Started { address, joined, facts, in_process });

    // An error means that whoever could say so is gone.
    let _ = shutdown.wait_for(|stop| *stop).await;
    shared.draining.store(true, Ordering::Release);
    shared.rebuild_needed.notify_one();
    let drained = async {
        tokio::time::sleep(DRAIN_AT_LEAST).await;
        while shared.calls.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("stopped with calls in flight");
    }
    tasks.shutdown().await;
    places.iter().for_each(weir_host::spawn::Place::stop);
    Ok(())
}

/// What the processor's slots are in the registry's words. Slots share caches and memory, so their number counts. A slowed
/// device plays another one: how fast it is, it says itself.
fn hardware(config: &Config) -> String {
    if config.processor.is_empty() || config.pace < 1.0 {
        return String::new();
    }
    format!("cpu: {}, {} slots", config.processor, config.cpu_slots)
}

/// Slots compute on the cores that they were given, so those must be there, and one for each.
fn check_cores(config: &Config) -> Result<(), NodeError> {
    if config.cores.is_empty() {
        return Ok(());
    }
    let usage = |text: String| Err(NodeError::Usage(text));
    if config.cores.len() != config.cpu_slots as usize {
        let (cores, slots) = (config.cores.len(), config.cpu_slots);
        return usage(format!("{slots} slots cannot have {cores} cores: name one for each with --cores"));
    }
    let allowed = match weir_ml_workers::cores::allowed() {
        Ok(allowed) => allowed,
        Err(cause) => return usage(format!("--cores does not work here: {cause}")),
    };
    match config.cores.iter().find(|core| !allowed.contains(core)) {
        None => Ok(()),
        Some(core) => {
            let may = allowed.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            usage(format!("core {core} is not one that this process may use; --cores can name {may}"))
        }
    }
}

async fn look_for_hangs(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        shared.devices.values().for_each(Device::check_hangs);
    }
}
