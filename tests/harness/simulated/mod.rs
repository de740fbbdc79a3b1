//! A whole cluster in one thread and in virtual time: the real coordinators, nodes and clients over simulated disks,
//! networks and clocks. Everything follows from a seed, so a run that went wrong goes wrong again.

mod disk;
mod host;

use std::cell::Cell;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use turmoil::Sim;
use weir_client::{Admin, ClientError, LocalClient, Options, Request, Token};
use weir_coordinator::CoordinatorError;
use weir_core::endpoint::{Endpoint, Stage};
use weir_core::ids::{EndpointName, LogIndex, MemberName, ModelRef, NodeName, StageName};
use weir_core::outcome::Outcome;
use weir_core::prng::Prng;
use weir_core::replicated::{Command, EngineKind, Model, ReplicaRange};
use weir_core::tensor::Tensor;
use weir_core::units::Bytes;
use weir_host::Host;
use weir_host::disk::Disk;

pub use disk::{Lies, SimulatedDisk};
pub use host::host;

use crate::history::{Call, History, Prediction, Sight};
use crate::linearizability::Interval;

/// What a simulated machine runs, or what the cluster did, went wrong.
#[derive(Debug)]
pub struct Wrong(pub String);

impl<E: std::fmt::Display> From<E> for Wrong {
    fn from(error: E) -> Wrong {
        Wrong(error.to_string())
    }
}

/// The model that every simulated cluster serves, and the endpoint of the same name.
pub const ECHO: &str = "echo";
const PORT: u16 = 7000;
/// Of the predictions that are asked for.
const DEADLINE: Duration = Duration::from_millis(200);

/// A cluster in virtual time.
pub struct Cluster {
    sim: Sim<'static>,
    seed: u64,
    /// For whoever plans what happens.
    pub prng: Prng,
    /// What was seen.
    pub history: History,
    machines: Vec<(String, SimulatedDisk)>,
    /// Names of the coordinators.
    pub coordinators: Vec<String>,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    admin: Option<Token>,
    member: Option<Token>,
    errands: usize,
    stop: Rc<Cell<bool>>,
}

impl Cluster {
    /// Starts a cluster and waits until every coordinator votes and every node serves [`ECHO`].
    pub fn start(seed: u64, coordinators: usize, nodes: usize) -> Result<Cluster, Wrong> {
        let mut prng = Prng::new(seed);
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(prng.next_u64())
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_micros(500))
            .max_message_latency(Duration::from_millis(4))
            .tcp_capacity(4096)
            .enable_random_order();
        let mut cluster = Cluster {
            sim: builder.build(),
            seed,
            prng,
            history: History::default(),
            machines: Vec::new(),
            coordinators: (1..=coordinators).map(|i| format!("c{i}")).collect(),
            nodes: (1..=nodes).map(|i| format!("n{i}")).collect(),
            admin: None,
            member: None,
            errands: 0,
            stop: Rc::default(),
        };
        let founder = cluster.coordinators[0].clone();
        cluster.start_coordinator(&founder);
        let data = Path::new("/data");
        let tokens = cluster.disk(&founder);
        cluster.run_until(Duration::from_secs(5), "the first coordinator has its tokens", || {
            tokens.exists(&data.join("membership"))
        })?;
        cluster.admin = Some(Token::read_file(&tokens, &data.join("admin.token"))?);
        cluster.member = Some(Token::read_file(&tokens, &data.join("member.token"))?);
        for name in cluster.coordinators.clone().iter().skip(1) {
            cluster.start_coordinator(name);
        }
        for name in cluster.nodes.clone() {
            cluster.start_node(&name);
        }
        let (voters, ready) = (coordinators, nodes);
        cluster.errand(Duration::from_secs(30), "the cluster serves", move |world| async move {
            let admin = world.admin();
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let Ok(status) = admin.status().await else { continue };
                if status.state.members.values().filter(|member| !member.learner).count() < voters
                    || status.nodes.iter().filter(|node| node.state == "up").count() < ready
                {
                    continue;
                }
                let artifact = b"width = 1\nalpha_us = 3000\nbeta_us = 500\n";
                if ready > 0 {
                    let digest = admin.upload(artifact, |_| {}).await?;
                    let model = Model {
                        reference: ModelRef::parse("echo@1")?,
                        digest,
                        size: Bytes(artifact.len() as u64),
                        engine: EngineKind::Synthetic,
                        signature: weir_ml_workers::engine::inspect(EngineKind::Synthetic, artifact)?,
                        max_batch: Some(8),
                        shapes: Default::default(),
                        replicas: ReplicaRange { min: ready as u32, max: ready as u32 },
                        quarantined: None,
                    };
                    let command = Command::Apply {
                        models: vec![model],
                        endpoints: vec![endpoint(ECHO, 1_000_000)],
                        if_index: None,
                    };
                    admin.write(command).await?;
                }
                return Ok(());
            }
        })?;
        cluster.run(COMPLETED)?;
        if ready > 0 {
            cluster.errand(Duration::from_secs(30), "every node serves", move |world| async move {
                let client = world.client().await?;
                let mut answered = std::collections::BTreeSet::new();
                while answered.len() < ready {
                    let answer = ask(&client, 1.0, DEADLINE).await;
                    if answer.outcome == Outcome::Answered {
                        answered.insert(answer.node);
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            })?;
        }
        Ok(cluster)
    }

    /// Virtual time since the simulation began.
    pub fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Lets time pass.
    pub fn run(&mut self, span: Duration) -> Result<(), Wrong> {
        let until = self.now() + span;
        while self.now() < until {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Wrong> {
        self.sim.step().map(drop).map_err(|error| Wrong(format!("a process ended: {error}")))
    }

    fn run_until(&mut self, within: Duration, what: &str, done: impl Fn() -> bool) -> Result<(), Wrong> {
        let until = self.now() + within;
        while !done() {
            if self.now() >= until {
                return Err(Wrong(format!("{what}: not within {within:?}")));
            }
            self.step()?;
        }
        Ok(())
    }

    /// Has `errand` run by a client of its own and waits for its end.
    pub fn errand<F, T>(&mut self, within: Duration, what: &str, errand: impl FnOnce(World) -> F) -> Result<T, Wrong>
    where
        F: Future<Output = Result<T, Wrong>> + 'static,
        T: 'static,
    {
        let name = format!("errand{}", self.errands);
        self.errands += 1;
        let result: Rc<Cell<Option<Result<T, Wrong>>>> = Rc::default();
        let done = Rc::clone(&result);
        let running = errand(self.world(&name));
        self.sim.client(name, async move {
            done.set(Some(running.await));
            Ok(())
        });
        let until = self.now() + within;
        loop {
            if let Some(result) = result.take() {
                return result;
            }
            if self.now() >= until {
                return Err(Wrong(format!("{what}: not within {within:?}")));
            }
            self.step()?;
        }
    }

    /// Has `client` run beside everything else.
    pub fn beside<F>(&mut self, name: &str, client: impl FnOnce(World) -> F)
    where
        F: Future<Output = Result<(), Wrong>> + 'static,
    {
        let running = client(self.world(name));
        self.sim.client(name, async move { running.await.map_err(|wrong| wrong.0.into()) });
    }

    /// What a client at machine `name` works with.
    fn world(&mut self, name: &str) -> World {
        World {
            host: host(self.chance_of(name), &SimulatedDisk::new(0)),
            coordinators: self.coordinators.iter().map(|name| format!("{name}:{PORT}")).collect(),
            token: self.admin.clone().expect("the cluster has been founded"),
            history: self.history.clone(),
            stop: Rc::clone(&self.stop),
            prng: Prng::new(self.chance_of(name)),
        }
    }

    fn chance_of(&self, name: &str) -> u64 {
        name.bytes().fold(self.seed ^ 0x5eed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }

    /// The disk of a machine.
    pub fn disk(&self, name: &str) -> SimulatedDisk {
        let (_, disk) = self.machines.iter().find(|(known, _)| known == name).expect("a machine of this cluster");
        disk.clone()
    }

    fn machine(&mut self, name: &str) -> (SimulatedDisk, u64) {
        let chance = self.chance_of(name);
        let disk = SimulatedDisk::new(chance);
        self.machines.push((name.to_owned(), disk.clone()));
        self.give_token(&disk);
        (disk, chance)
    }

    /// Puts the member token where whoever joins looks for it.
    fn give_token(&self, disk: &SimulatedDisk) {
        let Some(token) = &self.member else { return };
        disk.create_dir_all(Path::new("/tokens")).expect("there is room");
        token.write_file(disk, Path::new("/tokens/member.token")).expect("there is room");
    }

    /// Starts one more coordinator, which joins.
    pub fn add_coordinator(&mut self, name: &str) {
        self.note(format!("{name} joins"));
        self.coordinators.push(name.to_owned());
        self.start_coordinator(name);
    }

    /// Starts a coordinator; the first one founds the cluster.
    fn start_coordinator(&mut self, name: &str) {
        let (disk, chance) = self.machine(name);
        let founds = self.member.is_none();
        let others = self.coordinators.iter().filter(|other| *other != name);
        let config = weir_coordinator::Config {
            name: MemberName::parse(name).expect("a name"),
            data_dir: "/data".into(),
            listen: format!("0.0.0.0:{PORT}"),
            advertise: Some(format!("{name}:{PORT}")),
            bootstrap: founds,
            join: others.map(|name| format!("{name}:{PORT}")).collect(),
            token_file: Some("/tokens/member.token".into()).filter(|_| !founds),
            insecure_network: true,
            tick: weir_coordinator::TICK,
            // Often, so that restarts and joins go through snapshots too.
            snapshot_every: 64,
        };
        let starts = Cell::new(0);
        self.sim.host(name, move || {
            starts.set(starts.get() + 1);
            let (mut config, host) = (config.clone(), host(chance.wrapping_add(starts.get()), &disk));
            // Nobody founds a second time, also with an empty disk.
            config.bootstrap &= starts.get() == 1;
            if disk.exists(Path::new("/tokens/member.token")) {
                config.token_file = Some("/tokens/member.token".into());
            }
            async move {
                loop {
                    let (started, _) = oneshot::channel();
                    let (_stop, shutdown) = watch::channel(false);
                    match weir_coordinator::run(config.clone(), host.clone(), started, shutdown).await {
                        // Its supervisor starts it again until there is room.
                        Err(error) if is_full(&error) => tokio::time::sleep(Duration::from_secs(1)).await,
                        Err(CoordinatorError::Removed) => return Ok(()),
                        // And until there is a leader to let it in, and its predecessor is out.
                        Err(CoordinatorError::Join(_) | CoordinatorError::Refused(_)) => {
                            tokio::time::sleep(Duration::from_secs(1)).await
                        }
                        ended => return Ok(ended?),
                    }
                }
            }
        });
    }

    fn start_node(&mut self, name: &str) {
        let (disk, chance) = self.machine(name);
        let config = weir_node::Config {
            name: NodeName::parse(name).expect("a name"),
            data_dir: "/data".into(),
            listen: format!("0.0.0.0:{PORT}"),
            advertise: Some(format!("{name}:{PORT}")),
            coordinators: self.coordinators.iter().map(|name| format!("{name}:{PORT}")).collect(),
            token_file: "/tokens/member.token".into(),
            cpu_slots: 1,
            memory: Bytes(1 << 30),
            between_stages: Bytes(1 << 30),
            policy: weir_core::scheduler::Policy::default(),
            triage: weir_core::triage::Method::default(),
            pace: 1.0,
            cores: Vec::new(),
            processor: "simulated".into(),
            rpc_threads: 1,
            insecure_network: true,
        };
        let starts = Cell::new(0);
        self.sim.host(name, move || {
            starts.set(starts.get() + 1);
            let (config, host) = (config.clone(), host(chance.wrapping_add(starts.get()), &disk));
            async move {
                let (started, _started) = oneshot::channel();
                let (_stop, shutdown) = watch::channel(false);
                Ok(weir_node::run(config, host, started, shutdown).await?)
            }
        });
    }

    /// Takes note of what is done.
    pub fn note(&self, what: impl Into<String>) {
        let line = format!("{:>7.3} s  {}", self.now().as_secs_f64(), what.into());
        self.history.with(|seen| seen.notes.push(line));
    }

    /// The machine loses its power: what was not synced may be lost.
    pub fn crash(&mut self, name: &str) {
        self.note(format!("{name} crashes"));
        self.sim.crash(name);
        self.disk(name).crash();
    }

    /// It comes back.
    pub fn restart(&mut self, name: &str) {
        self.note(format!("{name} restarts"));
        self.sim.bounce(name);
    }

    /// Whether it runs.
    pub fn is_up(&mut self, name: &str) -> bool {
        self.sim.is_host_running(name)
    }

    /// Its disk is empty: whatever ran on it must be removed and join anew. It must be down.
    pub fn wipe(&mut self, name: &str) {
        self.note(format!("{name} loses its disk"));
        let disk = self.disk(name);
        disk.wipe();
        self.give_token(&disk);
    }

    /// Has an admin take a coordinator out of the group.
    pub fn remove_member(&mut self, name: &str) -> Result<(), Wrong> {
        self.note(format!("{name} is removed"));
        let member = name.to_owned();
        self.errand(PATIENCE, &format!("{name} is removed"), |world| async move {
            Ok(world.admin().member_remove(&member).await.map(drop)?)
        })
    }

    /// Has an admin announce a coordinator that nobody has started yet.
    pub fn add_member(&mut self, name: &str, address: &str) -> Result<(), Wrong> {
        self.note(format!("{name} at {address} is added"));
        let (member, address) = (name.to_owned(), address.to_owned());
        self.errand(PATIENCE, &format!("{name} is added"), |world| async move {
            Ok(world.admin().member_add(&member, &address).await.map(drop)?)
        })
    }

    /// Has an admin give a learner a vote.
    pub fn promote_member(&mut self, name: &str) -> Result<(), Wrong> {
        self.note(format!("{name} is promoted"));
        let member = name.to_owned();
        self.errand(PATIENCE, &format!("{name} is promoted"), |world| async move {
            Ok(world.admin().member_promote(&member).await.map(drop)?)
        })
    }

    /// Waits until exactly these coordinators vote and none is learning, by the word of whoever leads.
    pub fn voters_become(&mut self, names: &[&str]) -> Result<(), Wrong> {
        let mut wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        wanted.sort();
        self.errand(PATIENCE, &format!("{wanted:?} vote"), move |world| async move {
            let admin = world.admin();
            loop {
                if let Ok(status) = admin.status().await {
                    let members = status.state.members.values();
                    let mut names: Vec<String> = members.clone().map(|member| member.name.to_string()).collect();
                    names.sort();
                    if names == wanted && members.clone().all(|member| !member.learner) {
                        return Ok(());
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })?;
        self.run(COMPLETED)
    }

    /// A write is done within `within`.
    pub fn writes(&mut self, within: Duration) -> Result<(), Wrong> {
        self.errand(within, "a write is done", |world| async move {
            let endpoint = EndpointName::parse("nothing")?;
            let admin = world.admin();
            // It is not there, which is an answer of whoever leads.
            while !matches!(
                admin.write(Command::DeleteEndpoint(endpoint.clone())).await,
                Err(ClientError::NotFound(_)) | Ok(_)
            ) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })
    }

    /// Nothing goes between two machines, and both learn nothing of it.
    pub fn silence(&mut self, a: &str, b: &str) {
        self.note(format!("silence between {a} and {b}"));
        self.sim.hold(a, b);
    }

    /// What was held back between two machines arrives, late.
    pub fn end_silence(&mut self, a: &str, b: &str) {
        self.note(format!("silence ends between {a} and {b}"));
        self.sim.release(a, b);
    }

    /// What goes between two machines is lost, and connections refused.
    pub fn cut(&mut self, a: &str, b: &str) {
        self.note(format!("{a} and {b} are cut off from each other"));
        self.sim.partition(a, b);
    }

    /// What goes from `a` to `b` is lost.
    pub fn cut_one_way(&mut self, a: &str, b: &str) {
        self.note(format!("{a} is not heard by {b}"));
        self.sim.partition_oneway(a, b);
    }

    /// Everything between two machines takes so long, each way.
    pub fn slow_down(&mut self, a: &str, b: &str, latency: Duration) {
        self.note(format!("{a} and {b} are {latency:?} apart"));
        self.sim.set_link_latency(a, b, latency);
    }

    /// The link works again, both ways.
    pub fn mend(&mut self, a: &str, b: &str) {
        self.note(format!("{a} and {b} reach each other"));
        self.sim.repair(a, b);
    }

    /// Clients that put, look up and predict stop.
    pub fn stop_clients(&self) {
        self.stop.set(true);
    }

    /// The coordinator that leads, by the word of whoever is asked and answers first.
    pub fn leader(&mut self) -> Result<String, Wrong> {
        self.errand(Duration::from_secs(20), "there is a leader", |world| async move {
            let admin = world.admin();
            loop {
                match admin.status().await {
                    Ok(status) if !status.leader.0.is_empty() => return Ok(status.leader.0),
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
    }
}

/// Whether a coordinator did not start for want of room.
fn is_full(error: &dyn std::error::Error) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| cause.to_string().contains("the disk is full") || cause.to_string().contains("no space"))
}

/// A member votes a moment before its promotion is complete; until then the majority of the voters before must be up too.
const COMPLETED: Duration = Duration::from_secs(1);
/// How long a call of an admin and what follows from it may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How far virtual time goes in one step.
const TICK: Duration = Duration::from_millis(1);

/// An endpoint of the one model with this deadline.
pub fn endpoint(name: &str, deadline_us: u64) -> Endpoint {
    Endpoint::new(
        EndpointName::parse(name).expect("a name"),
        Duration::from_micros(deadline_us),
        vec![Stage::new(StageName::parse(ECHO).expect("a name"), ModelRef::parse("echo@1").expect("a name"), None)],
    )
}

/// What a simulated client has.
pub struct World {
    /// Its process.
    pub host: Host,
    /// Where the coordinators listen.
    pub coordinators: Vec<String>,
    /// The admin's.
    pub token: Token,
    /// Where it writes down what it sees.
    pub history: History,
    /// Told to do nothing more.
    stop: Rc<Cell<bool>>,
    /// Decides what it does.
    pub prng: Prng,
}

impl World {
    fn options(&self) -> Options {
        Options { coordinators: self.coordinators.clone(), token: self.token.clone() }
    }

    /// Operator's calls at the cluster.
    pub fn admin(&self) -> Admin {
        Admin::new(self.host.clone(), self.options())
    }

    /// Likewise, at each coordinator alone.
    pub fn admin_of_each(&self) -> Vec<Admin> {
        let one = |address: &String| Options { coordinators: vec![address.clone()], token: self.token.clone() };
        self.coordinators.iter().map(|address| Admin::new(self.host.clone(), one(address))).collect()
    }

    /// A client that asks for predictions.
    pub async fn client(&self) -> Result<LocalClient, ClientError> {
        LocalClient::connect(self.host.clone(), self.options()).await
    }

    fn now(&self) -> Duration {
        self.host.clock.now().since(weir_core::units::Instant::ZERO)
    }

    /// Puts, deletes and looks up endpoints, and writes down what came of it.
    pub async fn operate(mut self, how: Operating) -> Result<(), Wrong> {
        let admin = self.admin();
        let mut value = self.prng.next_u64() >> 40 << 16;
        while !self.stop.get() {
            let pause = Duration::from_micros(self.prng.below(120_000));
            tokio::time::sleep(pause).await;
            let key = format!("e{}", self.prng.below(3));
            let endpoint_name = EndpointName::parse(&key)?;
            let began = self.now().as_nanos() as u64;
            let (call, known) = match self.prng.below(10) {
                0..=3 => {
                    value += 1;
                    let write =
                        || Command::Apply { models: vec![], endpoints: vec![endpoint(&key, value)], if_index: None };
                    let mut done = admin.write(write()).await;
                    if how == Operating::RetriesUnderNewIds {
                        // A second time, as a client would that does not know whether the first was done.
                        let again = Duration::from_millis(self.prng.below(40));
                        tokio::time::sleep(again).await;
                        done = admin.write(write()).await;
                    }
                    (Call::Put(value), done.is_ok())
                }
                4 => match admin.write(Command::DeleteEndpoint(endpoint_name)).await {
                    Ok(_) => (Call::Delete(Some(true)), true),
                    Err(ClientError::NotFound(_)) => (Call::Delete(Some(false)), true),
                    Err(_) => (Call::Delete(None), false),
                },
                _ => {
                    let status = match how {
                        Operating::ReadsWhatAnyMemberKnows => {
                            let first = self.prng.below(self.coordinators.len() as u64) as usize;
                            self.coordinators.rotate_left(first);
                            self.admin().stale_status().await
                        }
                        _ => admin.status().await,
                    };
                    let Ok(status) = status else { continue };
                    let found = status.state.endpoints.get(&endpoint_name);
                    (Call::Get(found.map(|endpoint| endpoint.deadline.as_micros() as u64)), true)
                }
            };
            let ended = known.then(|| self.now().as_nanos() as u64);
            self.history.with(|seen| {
                seen.calls.entry(key).or_default().push(Interval { call, began, ended });
            });
        }
        Ok(())
    }

    /// Asks for predictions.
    pub async fn predict(mut self) -> Result<(), Wrong> {
        let client = loop {
            match self.client().await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        while !self.stop.get() {
            tokio::time::sleep(Duration::from_micros(self.prng.below(60_000))).await;
            let value = self.prng.below(1 << 20) as f32;
            let at = self.now();
            let answer = ask(&client, value, DEADLINE).await;
            let right = answer.outcome != Outcome::Answered
                || (answer.model == "echo@1"
                    && answer.outputs.first().and_then(|(_, y)| y.as_f32()).is_some_and(|y| y.as_ref() == [value]));
            self.history.with(|seen| seen.predictions.push(Prediction { at, outcome: answer.outcome.word(), right }));
        }
        Ok(())
    }

    /// Takes a coordinator out of the group, however often it has to be asked for.
    pub async fn remove(self, name: String) -> Result<(), Wrong> {
        let admin = self.admin();
        while !matches!(admin.member_remove(&name).await, Ok(_) | Err(ClientError::NotFound(_))) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Adds a coordinator that nobody ever starts, and takes it away again.
    pub async fn add_and_remove_a_learner(mut self) -> Result<(), Wrong> {
        let admin = self.admin();
        while !self.stop.get() {
            tokio::time::sleep(Duration::from_micros(self.prng.below(3_000_000))).await;
            // Whether it is there or not, the others go on; nobody listens for members at a client's machine.
            let _ = admin.member_add("nobody", "changer:7000").await;
            tokio::time::sleep(Duration::from_micros(self.prng.below(1_000_000))).await;
            let _ = admin.member_remove("nobody").await;
        }
        Ok(())
    }

    /// Asks each coordinator for ever what it knows by itself.
    pub async fn probe(self) -> Result<(), Wrong> {
        loop {
            for (address, asked) in self.coordinators.iter().zip(self.admin_of_each()) {
                let Ok(Ok(status)) = tokio::time::timeout(Duration::from_millis(500), asked.stale_status()).await
                else {
                    continue;
                };
                let sight = Sight {
                    at: self.now(),
                    member: address.clone(),
                    applied: status.state.applied,
                    term: status.term,
                    leader: status.leader.0,
                    state: Arc::new(status.state),
                };
                self.history.with(|seen| seen.sights.push(sight));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Follows the changes from the first on; `skip` leaves one out, for the test of the test.
    pub async fn watch(self, skip: Option<usize>) -> Result<(), Wrong> {
        let admin = self.admin();
        let mut since = LogIndex(0);
        let mut count = 0;
        loop {
            match admin.watch(since, Duration::from_secs(1)).await {
                Ok(weir_client::admin::Watched::Changes(changes, index)) => {
                    since = index;
                    for change in changes {
                        count += 1;
                        if skip != Some(count) {
                            self.history.with(|seen| seen.changes.push(change));
                        }
                    }
                }
                Ok(weir_client::admin::Watched::TooOld(_)) => {
                    // A watcher that is told so reads the state anew.
                    let Ok(state) = admin.snapshot().await else { continue };
                    since = state.applied;
                    self.history.with(|seen| {
                        seen.changes = whole(&state);
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// The changes that make a state from nothing.
fn whole(state: &weir_core::replicated::State) -> Vec<(LogIndex, weir_core::replicated::Change)> {
    use weir_core::replicated::{Change, Moves};
    let at = state.applied;
    let moves = Moves::anew(state.plan.assignments.clone());
    let models = state.models.values().cloned().map(Change::Model);
    let endpoints = state.endpoints.values().cloned().map(Change::Endpoint);
    let nodes = state.nodes.values().cloned().map(Change::Node);
    let labels = state.labels.values().cloned().map(Change::Label);
    let changes = models.chain(endpoints).chain(labels).chain(nodes).chain([Change::Plan(state.plan.epoch, moves)]);
    changes.map(|change| (at, change)).collect()
}

/// How a client operates: as clients do, or as one that is planted to be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operating {
    Properly,
    ReadsWhatAnyMemberKnows,
    RetriesUnderNewIds,
}

/// One prediction.
pub async fn ask(client: &LocalClient, value: f32, deadline: Duration) -> weir_client::Answer {
    let request = Request {
        endpoint: EndpointName::parse(ECHO).expect("a name"),
        inputs: vec![("x".into(), Tensor::f32(&[1, 1], &[value]))],
        whole: false,
        deadline: Some(deadline),
        class: None,
        outputs: Vec::new(),
        min_stage: None,
        max_stage: None,
        trace: false,
    };
    client.predict(&request).await.remove(0)
}
