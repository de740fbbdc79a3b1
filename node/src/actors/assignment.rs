//! Makes reality match this node's part of the plan: loads what is assigned, lets go what is not, restarts what died.
//!
//! Each replica is loaded and probed on the thread that will run it, so that a slow load disturbs nobody.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::Actor;
use tokio::sync::{mpsc, oneshot};
use weir_core::ids::{Digest, Epoch, ReplicaId};
use weir_core::placement::{ReplicaProfile, ReplicaReport, ReplicaState};
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
use crate::artifacts::Artifacts;

/// Deaths of one replica within a minute after which it is not restarted here: the leader takes its version out.
const DEATHS_MAX: usize = 3;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);
/// Before a replica is tried again that could not be loaded for want of its artifact.
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
    /// What other devices like those here have measured.
    profiles: BTreeMap<(Digest, String), KeptProfile>,
    coordinator: Option<Rc<node_home::Client>>,
}

struct Replica {
    assignment: Assignment,
    state: ReplicaState,
    deaths: u32,
    last_death: String,
    recent: VecDeque<Instant>,
    place: Option<Place>,
    loading: Option<tokio::task::AbortHandle>,
}

impl Replicas {
    /// None yet.
    pub fn new(shared: Arc<Shared>, artifacts: Artifacts) -> Rc<Replicas> {
        let inner = Inner { epoch: Epoch(0), replicas: BTreeMap::new(), profiles: BTreeMap::new(), coordinator: None };
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
            self.let_go(id, replica);
        }
        for (id, assignment) in plan.assignments.iter().filter(|(_, assignment)| mine(assignment)) {
            if inner.replicas.contains_key(id) || !self.shared.devices.contains_key(&assignment.device) {
                continue;
            }
            let Some(model) = state.models.get(&assignment.model) else { continue };
            let mut replica = Replica {
                assignment: assignment.clone(),
                state: ReplicaState::Loading,
                deaths: 0,
                last_death: String::new(),
                recent: VecDeque::new(),
                place: None,
                loading: None,
            };
            self.start(*id, &mut replica, Arc::new(model.clone()), Duration::ZERO);
            inner.replicas.insert(*id, replica);
        }
    }

    fn let_go(&self, id: ReplicaId, replica: Replica) {
        tracing::info!(replica = id.0, model = %replica.assignment.model, "let go");
        if let Some(loading) = replica.loading {
            loading.abort();
        }
        self.shared.devices[&replica.assignment.device].remove_replica(id);
        if let Some(place) = replica.place {
            // A batch in progress ends first: the thread stops when it yields.
            place.stop();
        }
    }

    /// Begins to load a replica, after a pause.
    fn start(self: &Rc<Self>, id: ReplicaId, replica: &mut Replica, model: Arc<Model>, pause: Duration) {
        replica.state = ReplicaState::Loading;
        let task = tokio::task::spawn_local(Rc::clone(self).load(id, model, pause));
        replica.loading = Some(task.abort_handle());
    }

    async fn load(self: Rc<Self>, id: ReplicaId, model: Arc<Model>, pause: Duration) {
        tokio::time::sleep(pause).await;
        let mut reload = RELOAD;
        loop {
            match self.load_once(id, &model).await {
                Ok(()) => return,
                Err(why) => tracing::warn!(model = %model.reference, why, "cannot be loaded"),
            }
            tokio::time::sleep(reload).await;
            reload = (reload * 2).min(RELOAD_AT_MOST);
        }
    }

    /// Loads a replica that is still wanted; an error is its state until it is tried again.
    async fn load_once(&self, id: ReplicaId, model: &Arc<Model>) -> Result<(), String> {
        let artifact = loop {
            let coordinator = self.inner.borrow().coordinator.clone();
            match self.artifacts.get(model.digest, coordinator).await {
                Ok(artifact) => break artifact,
                Err(why) => {
                    tracing::debug!(model = %model.reference, why, "not loaded yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        let place = Stopping(Some(self.shared.host.spawn.place_without_sockets()));
        let (send, loaded) = oneshot::channel();
        let wanted = Arc::clone(model);
        let known = self.known(id, model);
        let pauses = match self.shared.host.spawn {
            Spawn::Threads => Pauses::OnThread,
            Spawn::Inline => Pauses::OnTimer,
        };
        place.place().run(move || async move {
            // Nobody waits where the replica was let go meanwhile; then the thread is stopped too.
            let _ = send.send(load_here(&wanted, &artifact, pauses, &known));
        });
        let loaded = loaded.await.unwrap_or_else(|_| {
            Err("its thread ended while it was loaded (the model may need more memory than there is)".into())
        });
        let mut inner = self.inner.borrow_mut();
        let Some(replica) = inner.replicas.get_mut(&id) else { return Ok(()) };
        match loaded {
            Ok((loaded, profile)) => {
                replica.loading = None;
                tracing::info!(replica = id.0, model = %model.reference, max_batch = profile.max_batch, "ready");
                replica.state = ReplicaState::Ready(profile);
                replica.place = Some(place.keep());
                let device = Arc::clone(&self.shared.devices[&replica.assignment.device]);
                drop(inner);
                device.add_replica(id, loaded);
                self.shared.rebuild_needed.notify_one();
                Ok(())
            }
            Err(why) => {
                replica.state = ReplicaState::Failed(why.clone());
                drop(inner);
                self.shared.rebuild_needed.notify_one();
                Err(why)
            }
        }
    }

    /// What the model took on devices like the one that the replica is to stand on; empty where nobody knows.
    fn known(&self, id: ReplicaId, model: &Model) -> Vec<(u32, ServiceTime)> {
        let inner = self.inner.borrow();
        let hardware = inner.replicas.get(&id).and_then(|replica| self.shared.hardware.get(&replica.assignment.device));
        let known = hardware.and_then(|hardware| inner.profiles.get(&(model.digest, hardware.clone())));
        known.map(|profile| profile.points.clone()).unwrap_or_default()
    }

    /// Restarts replicas that die, for ever.
    pub async fn supervise(self: Rc<Self>, mut deaths: mpsc::UnboundedReceiver<Death>) {
        while let Some(death) = deaths.recv().await {
            let now = self.shared.host.clock.now();
            let model = self.shared.table.load().models.get(&death.model).cloned();
            let mut inner = self.inner.borrow_mut();
            let Some(replica) = inner.replicas.get_mut(&death.replica) else { continue };
            tracing::warn!(replica = death.replica.0, model = %death.model, because = death.because, "died");
            if let Some(place) = replica.place.take() {
                place.stop();
            }
            replica.deaths += 1;
            replica.last_death = death.because.clone();
            replica.recent.push_back(now);
            while replica.recent.front().is_some_and(|at| now.since(*at) > DEATHS_WITHIN) {
                replica.recent.pop_front();
            }
            match model {
                Some(model) if replica.recent.len() < DEATHS_MAX => {
                    let pause = RESTART * (1 << replica.recent.len().min(6));
                    self.start(death.replica, replica, model, pause);
                }
                _ => {
                    let why = format!(
                        "its actor died {} times within a minute, last: {}",
                        replica.recent.len(),
                        death.because
                    );
                    replica.state = ReplicaState::Failed(why);
                }
            }
        }
    }

    /// What the node reports of its replicas.
    pub fn report(&self) -> BTreeMap<ReplicaId, ReplicaReport> {
        let inner = self.inner.borrow();
        let report = |(id, replica): (&ReplicaId, &Replica)| {
            let mut state = replica.state.clone();
            let device = &self.shared.devices[&replica.assignment.device];
            if let ReplicaState::Ready(profile) = &mut state
                && let Some(corrected) = device.profile(*id)
            {
                profile.points = corrected.points().to_vec();
            }
            let (deaths, last_death) = (replica.deaths, replica.last_death.clone());
            (*id, ReplicaReport { state, deaths, last_death, batches: device.batches(*id) })
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

/// Loads and probes on the thread that will run the model, and starts its actor there.
fn load_here(
    model: &Model,
    artifact: &[u8],
    pauses: Pauses,
    known: &[(u32, ServiceTime)],
) -> Result<(LoadedReplica, ReplicaProfile), String> {
    let mut session =
        engine(model.engine).and_then(|engine| engine.load(artifact)).map_err(|error| error.to_string())?;
    if *session.signature() != model.signature {
        return Err("its artifact takes or gives other tensors than it was registered with; apply it again".into());
    }
    let Probed { batching, max_batch, points, informed, unpaddable } =
        probe(&mut *session, model.max_batch, &model.shapes, BUDGET, known);
    if let Some(why) = unpaddable {
        return Err(format!("its rows cannot be filled up as `pad` says: {why}"));
    }
    let profile = ReplicaProfile {
        points: points.clone(),
        max_batch,
        unbatched: match &batching {
            Batching::Unbatched { because } => because.clone(),
            Batching::Rows | Batching::Fixed { .. } => String::new(),
        },
        memory: Bytes(session.memory().0),
        informed,
    };
    let terminator = session.terminator();
    let batches_rows = !matches!(batching, Batching::Unbatched { .. });
    let (actor, padding) = ModelActor::new(session, batching, pauses).shaped(&model.shapes);
    let loaded = LoadedReplica {
        model: model.reference.clone(),
        actor: actor.start(),
        terminator,
        profile: Profile::stepped(&points, &steps(model, max_batch)),
        max_batch,
        batches_rows,
        padding,
    };
    Ok((loaded, profile))
}
