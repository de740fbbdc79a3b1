//! Makes reality match this node's part of the plan: loads what is assigned, lets go what is not, restarts what died.
//!
//! Each replica is loaded and probed on the thread that will run it, so that a slow load disturbs nobody.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::Actor;
use tokio::sync::{mpsc, oneshot};
use weir_core::ids::{Digest, Epoch, ModelRef, ReplicaId};
use weir_core::placement::{ReplicaReport, ReplicaState};
use weir_core::profile::Profile;
use weir_core::replicated::{Assignment, KeptProfile, Model, Plan, State};
use weir_core::units::{Bytes, Instant, ServiceTime};
use weir_host::spawn::{Place, Spawn};
use weir_ml_workers::engine::engine;
use weir_ml_workers::model_actor::{ModelActor, Pauses};
use weir_ml_workers::probe::{BUDGET, Batching, Probed, probe};
use weir_schema::control_capnp::node_home;

use crate::Shared;
use crate::actors::device::{Death, LoadedReplica};
use crate::artifacts::{Artifacts, Read};
use crate::memory::{Memory, Order};

/// Deaths of one replica within a minute after which it is not restarted here: the leader takes its version out.
const DEATHS_MAX: usize = 3;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);
/// Before the file of a model is tried again that could not be had.
const RETRY: Duration = Duration::from_millis(500);
/// Before a replica is tried again that could not be loaded; doubles each time. Memory may come back, and the leader may give
/// the replica to another node meanwhile.
const RELOAD: Duration = Duration::from_secs(1);
const RELOAD_AT_MOST: Duration = Duration::from_secs(60);
/// Before a replica is started again that died; doubles with each death.
const RESTART: Duration = Duration::from_millis(50);

/// The replicas of this node.
pub struct Replicas {
    shared: Arc<Shared>,
    artifacts: Artifacts,
    inner: RefCell<Inner>,
}

struct Inner {
    epoch: Epoch,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// Files that are being fetched.
    fetches: BTreeMap<ModelRef, tokio::task::AbortHandle>,
    /// What the disk did not take, until it is loaded.
    unkept: BTreeMap<ModelRef, Vec<u8>>,
    /// What other devices like those here have measured.
    profiles: BTreeMap<(Digest, String), KeptProfile>,
    coordinator: Option<Rc<node_home::Client>>,
}

struct Replica {
    assignment: Assignment,
    state: ReplicaState,
    /// What the first load has shown: later ones need not look again.
    probed: Option<Probed>,
    /// What it took then. Later loads find memory that others have left.
    memory: Bytes,
    /// Before it is tried again where it cannot be loaded.
    reload: Duration,
    deaths: u32,
    last_death: String,
    recent: VecDeque<Instant>,
    place: Option<Place>,
    /// Ends once the memory of its session is free.
    gone: Option<oneshot::Receiver<()>>,
    /// Not let go. Its load looks here, which nobody can break off.
    wanted: Arc<AtomicBool>,
}

impl Replicas {
    /// None yet.
    pub fn new(shared: Arc<Shared>, artifacts: Artifacts) -> Rc<Replicas> {
        let inner = Inner {
            epoch: Epoch(0),
            replicas: BTreeMap::new(),
            fetches: BTreeMap::new(),
            unkept: BTreeMap::new(),
            profiles: BTreeMap::new(),
            coordinator: None,
        };
        Rc::new(Replicas { shared, artifacts, inner: RefCell::new(inner) })
    }

    /// The coordinator to fetch artifacts from.
    pub fn set_coordinator(&self, coordinator: Option<Rc<node_home::Client>>) {
        self.inner.borrow_mut().coordinator = coordinator;
    }

    /// Of the plan that is worked by.
    pub fn epoch(&self) -> Epoch {
        self.inner.borrow().epoch
    }

    /// Works by a newer plan; an older one is refused.
    pub fn follow(self: &Rc<Self>, state: &State) {
        let plan: &Plan = &state.plan;
        let mut inner = self.inner.borrow_mut();
        if plan.epoch < inner.epoch {
            tracing::warn!(refused = plan.epoch.0, known = inner.epoch.0, "an older plan is not followed");
            return;
        }
        inner.epoch = plan.epoch;
        let here = |hardware: &str| self.shared.hardware.values().any(|here| here == hardware);
        let known = state.profiles.iter().filter(|((_, hardware), _)| here(hardware));
        inner.profiles = known.map(|(key, profile)| (key.clone(), profile.clone())).collect();
        let mine = |assignment: &Assignment| assignment.node == self.shared.name;
        let gone: Vec<ReplicaId> =
            inner.replicas.keys().filter(|id| !plan.assignments.get(id).is_some_and(mine)).copied().collect();
        for id in gone {
            let replica = inner.replicas.remove(&id).expect("just seen");
            let model = replica.assignment.model.clone();
            self.let_go(id, replica);
            if inner.replicas.values().all(|other| other.assignment.model != model) {
                inner.unkept.remove(&model);
                if let Some(fetch) = inner.fetches.remove(&model) {
                    fetch.abort();
                }
            }
        }
        for (id, assignment) in plan.assignments.iter().filter(|(_, assignment)| mine(assignment)) {
            if inner.replicas.contains_key(id) || !self.shared.devices.contains_key(&assignment.device) {
                continue;
            }
            let Some(model) = state.models.get(&assignment.model) else { continue };
            let replica = Replica {
                assignment: assignment.clone(),
                state: ReplicaState::Loading,
                probed: None,
                memory: Bytes(0),
                reload: RELOAD,
                deaths: 0,
                last_death: String::new(),
                recent: VecDeque::new(),
                place: None,
                gone: None,
                wanted: Arc::new(AtomicBool::new(true)),
            };
            inner.replicas.insert(*id, replica);
            self.shared.devices.memory.place(
                *id,
                &model.reference,
                &self.shared.devices[&assignment.device],
                model.size,
                self.artifacts.has(model.digest),
            );
        }
        drop(inner);
        self.shared.devices.memory.settle();
    }

    /// Does what the node's memory orders, for ever.
    pub async fn obey(self: Rc<Self>, mut orders: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Fetch(model) => self.fetch(model),
                Order::Load(id) => self.start(id),
                Order::End(id, profile) => self.end(id, profile),
            }
        }
    }

    fn let_go(self: &Rc<Self>, id: ReplicaId, replica: Replica) {
        tracing::info!(replica = id.0, model = %replica.assignment.model, "let go");
        replica.wanted.store(false, Ordering::Release);
        self.shared.devices[&replica.assignment.device].remove_replica(id);
        self.shared.devices.memory.remove(id);
        if let Some(place) = replica.place {
            // A batch in progress ends first: the thread stops when it yields.
            place.stop();
        }
        if let Some(gone) = replica.gone {
            self.after(gone, move |memory| memory.on_ended(id));
        }
    }

    /// Tells the node's memory of a session that it has ended.
    fn after(self: &Rc<Self>, gone: oneshot::Receiver<()>, tell: impl FnOnce(&Memory) + 'static) {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_local(async move {
            // It ends either way: with its sender.
            let _ = gone.await;
            tell(&shared.devices.memory);
        });
    }

    /// Ends the thread of what was put out of memory.
    fn end(self: &Rc<Self>, id: ReplicaId, profile: Option<Profile>) {
        let mut inner = self.inner.borrow_mut();
        let Some(replica) = inner.replicas.get_mut(&id) else { return };
        tracing::debug!(replica = id.0, model = %replica.assignment.model, "put out of memory");
        if let (Some(probed), Some(profile)) = (&mut replica.probed, profile)
            && let ReplicaState::Ready(known) = &mut replica.state
        {
            // The device slows it down once more when it comes back.
            let pace = self.shared.devices[&replica.assignment.device].pace();
            probed.points = profile.paced(1.0 / pace).points().to_vec();
            known.points = profile.points().to_vec();
        }
        if let Some(place) = replica.place.take() {
            place.stop();
        }
        // Of one that has died whoever heard of that awaits the end.
        if let Some(gone) = replica.gone.take() {
            self.after(gone, move |memory| memory.on_gone(id));
        }
    }

    /// Begins to fetch the file of a model.
    fn fetch(self: &Rc<Self>, reference: ModelRef) {
        let (replicas, model) = (Rc::clone(self), reference.clone());
        let task = tokio::task::spawn_local(async move {
            let fetched = replicas.fetch_once(&model).await;
            replicas.inner.borrow_mut().fetches.remove(&model);
            match fetched {
                Ok(()) => replicas.shared.devices.memory.on_fetched(&model),
                Err(why) => {
                    tracing::debug!(%model, why, "not fetched yet");
                    replicas.shared.devices.memory.on_not_fetched(&model, RETRY);
                }
            }
        });
        self.inner.borrow_mut().fetches.insert(reference, task.abort_handle());
    }

    async fn fetch_once(&self, reference: &ModelRef) -> Result<(), String> {
        let model = self.shared.table.load().models.get(reference).cloned();
        let model = model.ok_or("the table of this node does not have it yet")?;
        let coordinator = self.inner.borrow().coordinator.clone();
        let unkept = self.artifacts.fetch(model.digest, coordinator).await?;
        self.inner.borrow_mut().unkept.extend(unkept.map(|bytes| (reference.clone(), bytes)));
        Ok(())
    }

    /// Begins to load a replica.
    fn start(self: &Rc<Self>, id: ReplicaId) {
        let inner = self.inner.borrow();
        let Some(replica) = inner.replicas.get(&id) else { return self.shared.devices.memory.on_ended(id) };
        tokio::task::spawn_local(Rc::clone(self).load(id, replica.assignment.model.clone()));
    }

    async fn load(self: Rc<Self>, id: ReplicaId, reference: ModelRef) {
        let model = self.shared.table.load().models.get(&reference).cloned();
        let loaded = match model {
            Some(model) => self.load_once(id, &model).await,
            None => Err(NotLoaded::Missing),
        };
        let Err(why) = loaded else { return };
        let pause = {
            let mut inner = self.inner.borrow_mut();
            let Some(replica) = inner.replicas.get_mut(&id) else {
                drop(inner);
                return self.shared.devices.memory.on_ended(id);
            };
            match why {
                NotLoaded::Missing | NotLoaded::Unwanted => None,
                NotLoaded::Failed(why) => {
                    tracing::warn!(model = %reference, why, "cannot be loaded");
                    replica.state = ReplicaState::Failed(why);
                    let pause = replica.reload;
                    replica.reload = (2 * pause).min(RELOAD_AT_MOST);
                    Some(pause)
                }
            }
        };
        let Some(pause) = pause else { return self.shared.devices.memory.on_missing(id) };
        self.shared.devices.memory.on_failed(id, pause);
        self.shared.rebuild_needed.notify_one();
    }

    /// Loads a replica. One that was let go meanwhile is not loaded, and nothing is left of it in memory.
    async fn load_once(&self, id: ReplicaId, model: &Arc<Model>) -> Result<(), NotLoaded> {
        let begun = self.shared.host.clock.now();
        let unkept = self.inner.borrow_mut().unkept.remove(&model.reference);
        let Read { bytes: artifact, checking } = match unkept {
            Some(bytes) => Read { bytes, checking: Duration::ZERO },
            None => self.artifacts.read(model.digest).await.ok_or(NotLoaded::Missing)?,
        };
        let place = Stopping(Some(self.shared.host.spawn.place_without_sockets()));
        let (send, loaded) = oneshot::channel();
        let wanted = Arc::clone(model);
        let (known, is_wanted) = (self.known(id, model), self.is_wanted(id).ok_or(NotLoaded::Unwanted)?);
        let pauses = match self.shared.host.spawn {
            Spawn::Threads => Pauses::OnThread,
            Spawn::Inline => Pauses::OnTimer,
        };
        place.place().run(move || async move {
            // Nobody waits where the node ends.
            let _ = send.send(load_here(&wanted, &artifact, pauses, &known, &is_wanted));
        });
        let loaded = loaded.await.unwrap_or_else(|_| {
            Err("its thread ended while it was loaded (the model may need more memory than there is)".into())
        });
        let loaded = loaded.map_err(NotLoaded::Failed)?;
        let Loaded { replica: loaded, gone, probed, memory, probing } = loaded;
        if self.is_wanted(id).is_none() {
            drop((loaded, place));
            // It ends either way: with its sender.
            let _ = gone.await;
            return Err(NotLoaded::Unwanted);
        }
        let mut inner = self.inner.borrow_mut();
        let replica = inner.replicas.get_mut(&id).expect("it is wanted");
        let first = replica.probed.is_none();
        if first {
            replica.memory = memory;
        }
        let news = !matches!(replica.state, ReplicaState::Ready(_));
        if news {
            let profile = probed.profile(replica.memory);
            tracing::info!(replica = id.0, model = %model.reference, max_batch = profile.max_batch, "ready");
            replica.state = ReplicaState::Ready(profile);
        }
        let took = self.shared.host.clock.now().since(begun).saturating_sub(checking + probing);
        let first = first.then_some((replica.memory, took));
        (replica.reload, replica.probed) = (RELOAD, Some(probed));
        (replica.place, replica.gone) = (Some(place.keep()), Some(gone));
        drop(inner);
        self.shared.devices.memory.on_loaded(id, loaded, first);
        if news {
            self.shared.rebuild_needed.notify_one();
        }
        Ok(())
    }

    /// Whether a replica is still wanted, of one that is.
    fn is_wanted(&self, id: ReplicaId) -> Option<Arc<AtomicBool>> {
        self.inner.borrow().replicas.get(&id).map(|replica| Arc::clone(&replica.wanted))
    }

    /// What is known of a model before a replica of it is loaded: what the last load here has shown, or what it took on devices like the
    /// one that the replica is to stand on; empty where nobody knows.
    fn known(&self, id: ReplicaId, model: &Model) -> Known {
        let inner = self.inner.borrow();
        let Some(replica) = inner.replicas.get(&id) else { return Known::Elsewhere(Vec::new()) };
        if let Some(probed) = &replica.probed {
            return Known::Here(probed.clone());
        }
        let hardware = self.shared.hardware.get(&replica.assignment.device);
        let known = hardware.and_then(|hardware| inner.profiles.get(&(model.digest, hardware.clone())));
        Known::Elsewhere(known.map(|profile| profile.points.clone()).unwrap_or_default())
    }

    /// Restarts replicas that die, for ever.
    pub async fn supervise(self: Rc<Self>, mut deaths: mpsc::UnboundedReceiver<Death>) {
        while let Some(death) = deaths.recv().await {
            let now = self.shared.host.clock.now();
            let mut inner = self.inner.borrow_mut();
            let Some(replica) = inner.replicas.get_mut(&death.replica) else { continue };
            tracing::warn!(replica = death.replica.0, model = %death.model, because = death.because, "died");
            if let Some(place) = replica.place.take() {
                place.stop();
            }
            let gone = replica.gone.take();
            replica.deaths += 1;
            replica.last_death = death.because.clone();
            replica.recent.push_back(now);
            while replica.recent.front().is_some_and(|at| now.since(*at) > DEATHS_WITHIN) {
                replica.recent.pop_front();
            }
            if replica.recent.len() < DEATHS_MAX {
                let pause = RESTART * (1 << replica.recent.len().min(6));
                replica.state = ReplicaState::Loading;
                drop(inner);
                self.shared.devices.memory.on_failed(death.replica, pause);
            } else {
                let why =
                    format!("its actor died {} times within a minute, last: {}", replica.recent.len(), death.because);
                replica.state = ReplicaState::Failed(why);
                drop(inner);
                self.shared.devices.memory.remove(death.replica);
            }
            if let Some(gone) = gone {
                self.after(gone, move |memory| memory.on_ended(death.replica));
            }
        }
    }

    /// What the node reports of its replicas.
    pub fn report(&self) -> BTreeMap<ReplicaId, ReplicaReport> {
        let inner = self.inner.borrow();
        let mut paged = self.shared.devices.memory.paged();
        let report = |(id, replica): (&ReplicaId, &Replica)| {
            let mut state = replica.state.clone();
            let device = &self.shared.devices[&replica.assignment.device];
            if let ReplicaState::Ready(profile) = &mut state
                && let Some(corrected) = device.profile(*id)
            {
                profile.points = corrected.points().to_vec();
            }
            let (deaths, last_death) = (replica.deaths, replica.last_death.clone());
            let (batches, paged) = (device.batches(*id), paged.remove(id).map(|(_, paged)| paged));
            (*id, ReplicaReport { state, deaths, last_death, batches, paged })
        };
        inner.replicas.iter().map(report).collect()
    }
}

/// A place that stops unless it is kept: whoever made it may be dropped on the way.
struct Stopping(Option<Place>);

impl Stopping {
    fn place(&self) -> &Place {
        self.0.as_ref().expect("kept only at the end")
    }

    fn keep(mut self) -> Place {
        self.0.take().expect("kept only at the end")
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        if let Some(place) = &self.0 {
            place.stop();
        }
    }
}

/// Sizes that batches have, up to the largest that works.
fn steps(model: &Model, max_batch: u32) -> Vec<u32> {
    model.shapes.batch_sizes.iter().copied().filter(|size| *size <= max_batch).collect()
}

/// Why a replica is not loaded.
enum NotLoaded {
    /// The file of its model is not here, or the model is not in the table yet.
    Missing,
    /// It was let go meanwhile.
    Unwanted,
    /// It cannot be, and why.
    Failed(String),
}

/// What is known before a load.
enum Known {
    /// Latency by batch size, on other devices like this one.
    Elsewhere(Vec<(u32, ServiceTime)>),
    /// What an earlier load has shown.
    Here(Probed),
}

/// A replica that was loaded.
struct Loaded {
    replica: LoadedReplica,
    gone: oneshot::Receiver<()>,
    probed: Probed,
    memory: Bytes,
    /// Time that the next load will not take.
    probing: Duration,
}

/// Loads on the thread that will run the model, probes it if nobody has, and starts its actor there.
fn load_here(
    model: &Model,
    artifact: &[u8],
    pauses: Pauses,
    known: &Known,
    is_wanted: &AtomicBool,
) -> Result<Loaded, String> {
    let mut session =
        engine(model.engine).and_then(|engine| engine.load(artifact)).map_err(|error| error.to_string())?;
    if *session.signature() != model.signature {
        return Err("its artifact takes or gives other tensors than it was registered with; apply it again".into());
    }
    if !is_wanted.load(Ordering::Acquire) {
        return Err("nobody wants it any more".into());
    }
    let memory = Bytes(session.memory().0);
    let begun = tokio::time::Instant::now();
    let probed = match known {
        Known::Here(probed) => probed.clone(),
        Known::Elsewhere(points) => probe(&mut *session, model.max_batch, &model.shapes, BUDGET, points),
    };
    let probing = begun.elapsed();
    if let Some(why) = &probed.unpaddable {
        return Err(format!("its rows cannot be filled up as `pad` says: {why}"));
    }
    let (batching, max_batch) = (probed.batching.clone(), probed.max_batch);
    let terminator = session.terminator();
    let batches_rows = !matches!(batching, Batching::Unbatched { .. });
    let (mut actor, padding) = ModelActor::new(session, batching, pauses).shaped(&model.shapes);
    let gone = actor.gone();
    let replica = LoadedReplica {
        model: model.reference.clone(),
        actor: actor.start(),
        terminator,
        profile: Profile::stepped(&probed.points, &steps(model, max_batch)),
        max_batch,
        batches_rows,
        padding,
    };
    Ok(Loaded { replica, gone, probed, memory, probing })
}
