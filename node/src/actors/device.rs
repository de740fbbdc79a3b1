//! The shell of [`core::scheduler`](weir_core::scheduler): one device's queues behind a lock, its model actors, its timer.
//!
//! RPC threads call [`Device::submit`] and [`Device::cancel`]; a model actor's thread calls back when its batch is done,
//! feeds the scheduler and hands its own actor the next batch before it answers anybody. So a query crosses threads
//! twice, once to the model and once back, and the device never waits for an RPC thread. How long the way back takes it
//! learns from echoes: what it sends an RPC thread after a batch's replies comes through when those have been dealt with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use actix::Addr;
use tokio::sync::{Notify, mpsc};
use weir_core::history::{Batch, DeviceNow, ModelNow, VisitEnd};
use weir_core::ids::{DeviceName, ModelRef, ReplicaId, TicketId};
use weir_core::outcome::{Class, Rejection};
use weir_core::profile::Profile;
use weir_core::reply_path::ReplyPath;
use weir_core::router::{Estimate, Told};
use weir_core::scheduler::{self, Action, Batches, Closed, Inquiry, Policy, Query, ShapeKey};
use weir_core::shapes::PadPlan;
use weir_core::tensor::Row;
use weir_core::triage::{Bid, ByModel, Claim, Price, Tenant};
use weir_core::units::{Deadline, Instant, ServiceTime};
use weir_host::clock::Clock;
use weir_ml_workers::engine::{RunError, Terminator};
use weir_ml_workers::model_actor::{BatchDone, ModelActor, RunBatch};

use crate::alarm::{self, WakeAt};

/// What became of one row at this device.
#[derive(Debug)]
pub enum StageReply {
    /// It ran.
    Answered {
        /// The row's outputs, in the order of the model's signature.
        outputs: Row,
        /// From entering the queue to the start of its batch.
        queue: Duration,
        /// How long its batch ran.
        execute: Duration,
        /// The batch; `None` where the node that ran it does not tell.
        batch: Option<Batch>,
    },
    /// It did not run.
    Rejected(Rejection),
    /// There was no room to do it by the time that it was sent with, and it was not taken.
    Full,
    /// Its deadline passed while it waited.
    Expired,
    /// It ran and failed; the text is for the caller.
    Failed(String),
    /// The connection to where it ran broke.
    Lost,
}

impl StageReply {
    /// For rows whose actor went before it took them up: another may run them.
    fn not_run() -> StageReply {
        StageReply::Rejected(Rejection::NoReplica)
    }

    /// What is remembered of it.
    pub fn told(&self) -> VisitEnd {
        match self {
            StageReply::Answered { queue, execute, batch, .. } => {
                VisitEnd::Answered { queue: *queue, execute: *execute, batch: *batch }
            }
            StageReply::Rejected(why) => VisitEnd::Rejected(*why),
            StageReply::Full => VisitEnd::Rejected(Rejection::QueueFull),
            StageReply::Expired => VisitEnd::Expired,
            StageReply::Failed(_) => VisitEnd::Failed,
            StageReply::Lost => VisitEnd::Lost,
        }
    }
}

/// Where replies of one call go: (the caller's number of the row, reply), once for each row that is not cancelled.
pub type Replies = Arc<dyn Fn(usize, StageReply) + Send + Sync>;

/// One row to run.
pub struct Submission {
    /// The caller's number of it; comes back with the reply.
    pub slot: usize,
    /// Inputs in the order of the model's signature.
    pub inputs: Row,
    /// When its answer is worth nothing any more.
    pub deadline: Deadline,
    /// Its importance.
    pub class: Class,
    /// What it is worth to triage.
    pub bid: Bid,
}

/// A loaded replica, ready to be given batches.
pub struct LoadedReplica {
    /// Its model.
    pub model: ModelRef,
    /// The actor that owns its session.
    pub actor: Addr<ModelActor>,
    /// Asks a run that hangs to stop.
    pub terminator: Terminator,
    /// Latency by batch size.
    pub profile: Profile,
    /// Most rows a batch.
    pub max_batch: u32,
    /// Whether rows of different queries may share a batch.
    pub batches_rows: bool,
    /// How rows are filled up to share one, where they are.
    pub padding: Option<Arc<PadPlan>>,
}

/// A replica whose actor died or hangs.
#[derive(Debug)]
pub struct Death {
    /// Which one.
    pub replica: ReplicaId,
    /// Of which model.
    pub model: ModelRef,
    /// What it did, for the operator.
    pub because: String,
}

/// The slots of a device.
#[derive(Clone, Debug)]
pub struct Slots {
    /// Batches that run at once.
    pub count: u32,
    /// Speed against the real device, at most 1: below it, slots sleep after each batch.
    pub pace: f64,
    /// The core that each slot computes on; empty: wherever the system puts it.
    pub cores: Vec<u32>,
}

/// One device of this node.
pub struct Device {
    name: DeviceName,
    slots: u32,
    clock: Arc<dyn Clock>,
    /// Speed against the real device: see [`Slots`].
    pace: f64,
    inner: Mutex<Inner>,
    /// Tells the timer that the next wake-up moved.
    rescheduled: Notify,
    echoes: Mutex<Echoes>,
    /// One death per replica at a time; there are at most as many replicas as the plan names.
    deaths: mpsc::UnboundedSender<Death>,
}

struct Inner {
    scheduler: scheduler::Device,
    replicas: BTreeMap<ReplicaId, Hosted>,
    /// Rows in the scheduler's queues.
    waiting: BTreeMap<TicketId, Waiting>,
    next_ticket: u64,
    /// Numbers batches for good, so that one that was given up on is never taken for another, not even of a replica that
    /// was restarted under the same id.
    next_batch: u64,
    wake_at: WakeAt,
    /// Cores of slots that are free, where slots have cores.
    free_cores: Vec<u32>,
    /// Slot time spent computing, ended batches only.
    busy: ServiceTime,
    /// Of what comes from here.
    reply_path: ReplyPath,
    /// Reused between events.
    actions: Vec<Action>,
}

/// RPC threads, and which of them is sent the next echo.
#[derive(Default)]
struct Echoes {
    /// A thread that is busy for seconds has hundreds before it.
    threads: Vec<mpsc::UnboundedSender<(Instant, Instant)>>,
    turn: usize,
    next: Instant,
}

impl Inner {
    /// A replica of a model that runs rows of different queries together.
    fn batching(&self, model: &ModelRef) -> Option<&Hosted> {
        self.replicas.values().find(|hosted| hosted.model == *model && hosted.batches_rows)
    }
}

struct Hosted {
    model: ModelRef,
    actor: Addr<ModelActor>,
    terminator: Terminator,
    batches_rows: bool,
    padding: Option<Arc<PadPlan>>,
    /// On a device that is slowed: how long its batches take. As measured at load, not as corrected since, or every delay
    /// would come back many times over.
    paced: Option<Profile>,
    running: Option<Running>,
    batches: Batches,
    /// Gone as soon as its batch ends.
    leaving: bool,
}

struct Running {
    batch: u64,
    since: Instant,
    expected: ServiceTime,
    closed: Closed,
    rows: Vec<Waiting>,
    terminated: bool,
    core: Option<u32>,
}

struct Waiting {
    slot: usize,
    inputs: Option<Row>,
    /// What it costs, in rows of the profile.
    cost: u32,
    since: Instant,
    replies: Replies,
}

impl Waiting {
    fn reply(&self, reply: StageReply) {
        (self.replies)(self.slot, reply);
    }
}

/// What is done once the lock is free.
enum Effect {
    Run(Addr<ModelActor>, RunBatch),
    Reply(Waiting, StageReply),
    WakeTimer,
}

/// What the device's load looks like now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Slot time spent computing since the node started.
    pub busy: ServiceTime,
    /// Rows that wait.
    pub queued: usize,
    /// Estimated work that waits.
    pub backlog: ServiceTime,
}

/// A batch runs this many times longer than its profile says, and at least [`HANG_AT_LEAST`], before it is taken to hang.
const HANG_FACTOR: f64 = 20.0;
/// Nothing shorter is a hang: a preempted machine stalls for a second now and then.
const HANG_AT_LEAST: Duration = Duration::from_secs(2);
/// How often an echo is sent at most: often enough to know of a change within a second, too seldom to cost anything.
const ECHO_EVERY: Duration = Duration::from_millis(10);
/// How long a run that was asked to stop has for it.
const TERMINATION_GRACE: Duration = Duration::from_millis(500);

impl Device {
    /// A device without replicas that runs batches by `policy`. Deaths of its replicas are told to `deaths`.
    pub fn new(
        name: DeviceName,
        slots: Slots,
        policy: Policy,
        clock: Arc<dyn Clock>,
        deaths: mpsc::UnboundedSender<Death>,
    ) -> Arc<Device> {
        let Slots { count, pace, cores } = slots;
        Arc::new(Device {
            name,
            slots: count,
            clock,
            pace,
            inner: Mutex::new(Inner {
                scheduler: scheduler::Device::new(count, policy),
                free_cores: cores,
                replicas: BTreeMap::new(),
                waiting: BTreeMap::new(),
                next_ticket: 0,
                next_batch: 0,
                wake_at: WakeAt::default(),
                busy: ServiceTime::ZERO,
                reply_path: ReplyPath::default(),
                actions: Vec::new(),
            }),
            rescheduled: Notify::new(),
            echoes: Mutex::default(),
            deaths,
        })
    }

    /// Run on each thread that replies go to: measures how long they take.
    pub fn echo(self: &Arc<Self>) -> impl Future<Output = ()> + use<> {
        let device = Arc::clone(self);
        let (sender, mut ended) = mpsc::unbounded_channel();
        self.lock_echoes().threads.push(sender);
        async move {
            while let Some((ended, sent)) = ended.recv().await {
                let now = device.clock.now();
                let mut inner = device.lock();
                inner.reply_path.observe(now.since(ended), now.since(sent));
                let waits = inner.reply_path.mean();
                inner.scheduler.on_answers_wait(waits);
            }
        }
    }

    /// The replies of a batch that ended at `ended` are on their way.
    fn send_echo(&self, ended: Instant) {
        let mut echoes = self.lock_echoes();
        if ended < echoes.next || echoes.threads.is_empty() {
            return;
        }
        echoes.next = ended + ECHO_EVERY;
        echoes.turn = (echoes.turn + 1) % echoes.threads.len();
        // A thread that has ended hears nothing.
        let _ = echoes.threads[echoes.turn].send((ended, self.clock.now()));
    }

    /// Its name.
    pub fn name(&self) -> &DeviceName {
        &self.name
    }

    /// Batches that run at once.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Its speed against the real device.
    pub fn pace(&self) -> f64 {
        self.pace
    }

    /// Runs the scheduler's timers; ends when nobody else holds the device.
    pub async fn keep_time(self: Arc<Self>) {
        let fire = || {
            self.step(|inner, now, actions, _| {
                inner.wake_at.clear();
                inner.scheduler.on_wake(now, actions);
            });
        };
        alarm::keep_time(&*self.clock, &self.rescheduled, || self.lock().wake_at.get(), fire).await;
    }

    /// Offers a replica to the scheduler.
    pub fn add_replica(self: &Arc<Self>, id: ReplicaId, loaded: LoadedReplica) {
        // What is slower by its pace has a slower profile.
        let profile = loaded.profile.paced(self.pace);
        self.step(|inner, now, actions, _| {
            inner.scheduler.add_replica(now, id, loaded.model.clone(), profile.clone(), loaded.max_batch, actions);
            inner.replicas.insert(
                id,
                Hosted {
                    model: loaded.model,
                    actor: loaded.actor,
                    terminator: loaded.terminator,
                    batches_rows: loaded.batches_rows,
                    padding: loaded.padding,
                    paced: (self.pace < 1.0).then_some(profile),
                    running: None,
                    batches: Batches::default(),
                    leaving: false,
                },
            );
        });
    }

    /// Takes a replica away. Rows that wait stay for its siblings, or are rejected where there are none; a batch in
    /// progress ends as it will, and its rows are answered.
    pub fn remove_replica(self: &Arc<Self>, id: ReplicaId) {
        self.step(|inner, now, actions, _| {
            inner.scheduler.remove_replica(now, id, actions);
            if let Some(hosted) = inner.replicas.get_mut(&id) {
                hosted.leaving = true;
                if hosted.running.is_none() {
                    inner.replicas.remove(&id);
                }
            }
        });
    }

    /// Whether a replica runs a batch, or rows of its model wait.
    pub fn is_in_use(&self, id: ReplicaId) -> bool {
        let inner = self.lock();
        let hosted = inner.replicas.get(&id);
        hosted.is_some_and(|hosted| hosted.running.is_some() || inner.scheduler.queued(&hosted.model) > 0)
    }

    /// Puts the rows of one call into the queue of `model`, all before the device is offered any. Returns the tickets
    /// to cancel them by; each row gets exactly one reply unless it is cancelled.
    pub fn submit(self: &Arc<Self>, model: &ModelRef, rows: Vec<Submission>, replies: &Replies) -> Vec<TicketId> {
        let mut tickets = Vec::with_capacity(rows.len());
        self.step(|inner, now, actions, _| {
            let batching = inner.batching(model).map(|hosted| hosted.padding.clone());
            let (batches_rows, padding) = (batching.is_some(), batching.flatten());
            let queries: Vec<Query> = rows
                .into_iter()
                .map(|row| {
                    let ticket = TicketId(inner.next_ticket);
                    inner.next_ticket += 1;
                    tickets.push(ticket);
                    let cost = cost(&row.inputs, batches_rows);
                    let query = Query {
                        ticket,
                        deadline: inner.reply_path.at_device(now, row.deadline),
                        class: row.class,
                        shape: shape_key(&row.inputs, padding.as_deref()),
                        mergeable: batches_rows && row.inputs.row.is_some(),
                        rows: cost,
                        bid: row.bid,
                    };
                    let (slot, inputs, replies) = (row.slot, Some(row.inputs), Arc::clone(replies));
                    let waiting = Waiting { slot, inputs, cost, since: now, replies };
                    inner.waiting.insert(ticket, waiting);
                    query
                })
                .collect();
            inner.scheduler.on_arrival(now, model, &queries, actions);
        });
        tickets
    }

    /// Forgets rows that still wait; what runs or has ended is not touched.
    pub fn cancel(self: &Arc<Self>, tickets: &[TicketId]) {
        self.step(|inner, now, actions, _| {
            for ticket in tickets {
                if inner.waiting.remove(ticket).is_some() {
                    inner.scheduler.on_cancel(now, *ticket, actions);
                }
            }
        });
    }

    /// A gate of this node has weighed rows: what running `model` for each is worth.
    pub fn on_weighed(&self, now: Instant, model: &ModelRef, values: &[f64], tenant: Tenant) {
        let mut inner = self.lock();
        values.iter().for_each(|value| inner.scheduler.on_weighed(now, model, *value, tenant));
    }

    /// What homes of this node ask of the models that stand here.
    pub fn asked(&self, now: Instant) -> ByModel {
        self.lock().scheduler.asked(now)
    }

    /// What homes of other nodes ask of them; `share` says which part of what is asked of a model falls to this device.
    pub fn on_others(&self, now: Instant, asked: &ByModel, share: impl Fn(&ModelRef) -> f64) {
        self.lock().scheduler.on_others(now, asked, share);
    }

    /// What a second of slot time is worth now to a row of `model` that may come, in units of value.
    pub fn price(&self, now: Instant, model: &ModelRef, claim: Claim) -> Price {
        self.lock().scheduler.price(now, model, claim)
    }

    /// When rows of `model` that came now would be done; `None` without a replica of it. Where there are any yet, they are `like` this one: only
    /// such as it share a batch with them.
    pub fn estimate_finish(
        &self,
        now: Instant,
        model: &ModelRef,
        asked: Inquiry,
        like: Option<&Row>,
    ) -> Option<Estimate> {
        let inner = self.lock();
        let shape = || {
            let row = like.filter(|row| row.row.is_some())?;
            inner.batching(model).map(|hosted| shape_key(row, hosted.padding.as_deref()))
        };
        inner.scheduler.estimate_finish(now, model, asked, shape)
    }

    /// When a slot would be free for a row whose model does not stand here yet: see [`scheduler::Device::estimate_start`].
    pub fn estimate_start(&self, now: Instant, class: Class, deadline: Deadline, firm: Option<f64>) -> Estimate {
        self.lock().scheduler.estimate_start(now, class, deadline, firm)
    }

    /// What it has done and has before it.
    pub fn load(&self) -> Load {
        let inner = self.lock();
        Load { busy: inner.busy, queued: inner.waiting.len(), backlog: inner.scheduler.backlog() }
    }

    /// What it tells a home of another node, of rows that come as the ones that it replies to: see [`scheduler::Device::told`].
    pub fn told(&self, now: Instant, model: &ModelRef, claim: Claim, firm: Option<f64>) -> Told {
        self.lock().scheduler.told(now, model, claim, firm)
    }

    /// What it does now, for operators.
    pub fn now(&self) -> DeviceNow {
        let inner = self.lock();
        let models = inner.scheduler.waiting().filter_map(|(model, queued)| {
            let mut standing = inner.replicas.values().filter(|hosted| hosted.model == *model).peekable();
            standing.peek()?;
            let mut batches = Batches::default();
            standing.for_each(|hosted| batches.merge(&hosted.batches));
            Some(ModelNow { model: model.clone(), queued: queued as u32, batches })
        });
        DeviceNow {
            device: self.name.clone(),
            slots: self.slots,
            running: inner.scheduler.running() as u32,
            busy: inner.busy,
            backlog: inner.scheduler.backlog(),
            models: models.collect(),
        }
    }

    /// The profile of a replica as corrected by what its batches took; `None` once it is gone.
    pub fn profile(&self, id: ReplicaId) -> Option<Profile> {
        self.lock().scheduler.profile(id).cloned()
    }

    /// Batches of a replica since it stands here.
    pub fn batches(&self, id: ReplicaId) -> Batches {
        self.lock().replicas.get(&id).map(|hosted| hosted.batches).unwrap_or_default()
    }

    /// Looks for batches that hang: asks them to stop, and gives up on those that were asked and did not.
    pub fn check_hangs(self: &Arc<Self>) {
        self.step(|inner, now, actions, effects| {
            let mut hung = Vec::new();
            for (id, hosted) in &mut inner.replicas {
                let Some(running) = &mut hosted.running else { continue };
                let patience = running.expected.scaled(HANG_FACTOR).as_duration().max(HANG_AT_LEAST);
                let ran = now.since(running.since);
                if ran > patience && !running.terminated {
                    running.terminated = true;
                    hosted.terminator.terminate();
                } else if ran > patience + TERMINATION_GRACE {
                    hung.push(*id);
                }
            }
            for id in hung {
                self.give_up(inner, now, id, actions, effects);
            }
        });
    }

    /// One event: under the lock the scheduler is told and its actions are taken in; what wakes other threads comes after,
    /// or they would wake up only to wait for the lock.
    fn step(self: &Arc<Self>, event: impl FnOnce(&mut Inner, Instant, &mut Vec<Action>, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        {
            let mut inner = self.lock();
            let now = self.clock.now();
            let mut actions = std::mem::take(&mut inner.actions);
            event(&mut inner, now, &mut actions, &mut effects);
            for action in actions.drain(..) {
                self.take_in(&mut inner, now, action, &mut effects);
            }
            inner.actions = actions;
        }
        for effect in effects {
            match effect {
                // Where the actor takes no messages, the message is dropped, which calls back too.
                Effect::Run(actor, batch) => drop(actor.try_send(batch)),
                Effect::Reply(row, reply) => row.reply(reply),
                Effect::WakeTimer => self.rescheduled.notify_one(),
            }
        }
    }

    fn take_in(self: &Arc<Self>, inner: &mut Inner, now: Instant, action: Action, effects: &mut Vec<Effect>) {
        match action {
            Action::Run { replica, tickets, closed } => {
                effects.push(self.run(inner, now, replica, &tickets, closed));
            }
            Action::Reject { ticket, why } => {
                effects.extend(inner.waiting.remove(&ticket).map(|row| Effect::Reply(row, StageReply::Rejected(why))));
            }
            Action::Expire { ticket } => {
                effects.extend(inner.waiting.remove(&ticket).map(|row| Effect::Reply(row, StageReply::Expired)));
            }
            Action::WakeAt(at) => {
                if inner.wake_at.ask(at) {
                    effects.push(Effect::WakeTimer);
                }
            }
        }
    }

    fn run(
        self: &Arc<Self>,
        inner: &mut Inner,
        now: Instant,
        replica: ReplicaId,
        tickets: &[TicketId],
        closed: Closed,
    ) -> Effect {
        let mut rows: Vec<Waiting> =
            tickets.iter().map(|ticket| inner.waiting.remove(ticket).expect("the scheduler runs what waits")).collect();
        let hosted = inner.replicas.get_mut(&replica).expect("the scheduler runs replicas that stand here");
        inner.next_batch += 1;
        let batch = inner.next_batch;
        let cost = rows.iter().map(|row| row.cost).fold(0, u32::saturating_add);
        let expected = inner.scheduler.profile(replica).map_or(ServiceTime::ZERO, |profile| profile.estimate(cost));
        let inputs = rows.iter_mut().map(|row| row.inputs.take().expect("a row runs once")).collect();
        hosted.batches.add(closed, rows.len());
        let core = inner.free_cores.pop();
        hosted.running = Some(Running { batch, since: now, expected, closed, rows, terminated: false, core });
        let device = Arc::clone(self);
        let at_least = hosted.paced.as_ref().map_or(Duration::ZERO, |profile| profile.estimate(cost).as_duration());
        let run = RunBatch::new(inputs, at_least, move |done: BatchDone| device.finished(replica, batch, done));
        Effect::Run(hosted.actor.clone(), run.on_core(core))
    }

    /// A replica whose batch will not end: its rows fail, its slot is free, its supervisor hears of it.
    fn give_up(
        &self,
        inner: &mut Inner,
        now: Instant,
        id: ReplicaId,
        actions: &mut Vec<Action>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(hosted) = inner.replicas.remove(&id) else { return };
        // Once more: what it hangs in now need not be what it was asked to stop.
        hosted.terminator.terminate();
        inner.scheduler.lose_replica(now, id, actions);
        let failed = || StageReply::Failed("the model did not finish; its batch was given up".into());
        inner.free_cores.extend(hosted.running.as_ref().and_then(|running| running.core));
        let rows = hosted.running.into_iter().flat_map(|running| running.rows);
        effects.extend(rows.map(|row| Effect::Reply(row, failed())));
        let _ = self.deaths.send(Death { replica: id, model: hosted.model, because: "a batch hung".into() });
    }

    /// Called on the model's thread, exactly once a batch.
    fn finished(self: &Arc<Self>, replica: ReplicaId, batch: u64, done: BatchDone) {
        let (mut ended, mut at) = (None, Instant::ZERO);
        self.step(|inner, now, actions, _| {
            let Some(hosted) = inner.replicas.get_mut(&replica) else { return };
            let Some(running) = hosted.running.take_if(|running| running.batch == batch) else { return };
            let took = ServiceTime::from(now.since(running.since));
            inner.busy += took;
            inner.free_cores.extend(running.core);
            let (model, leaving) = (hosted.model.clone(), hosted.leaving);
            if let Some(because) = &done.died {
                inner.replicas.remove(&replica);
                inner.scheduler.lose_replica(now, replica, actions);
                let _ = self.deaths.send(Death { replica, model, because: because.clone() });
            } else {
                if leaving {
                    inner.replicas.remove(&replica);
                }
                inner.scheduler.on_batch_done(now, replica, took, actions);
            }
            (ended, at) = (Some(running), now);
        });
        let Some(running) = ended else { return };
        let batch = Some(Batch { rows: running.rows.len() as u32, closed: running.closed });
        for (row, result) in running.rows.iter().zip(done.results) {
            row.reply(match result {
                Ok(outputs) => StageReply::Answered {
                    outputs,
                    queue: running.since.since(row.since),
                    execute: done.execute,
                    batch,
                },
                Err(RunError::ActorGone) => StageReply::not_run(),
                Err(error) => StageReply::Failed(error.to_string()),
            });
        }
        self.send_echo(at);
    }

    fn lock_echoes(&self) -> MutexGuard<'_, Echoes> {
        self.echoes.lock().expect("nothing panics under it")
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock is a broken invariant of the scheduler: nobody can vouch for the state it left.
        self.inner.lock().expect("the scheduler of this device broke an invariant")
    }
}

/// What a query costs, in rows of the profile: one that is no row of a model that takes rows brings all of its own.
fn cost(inputs: &Row, batches_rows: bool) -> u32 {
    if !batches_rows || inputs.row.is_some() {
        return 1;
    }
    let first = inputs.tensors.first().and_then(|tensor| tensor.shape.first()).copied().unwrap_or(1);
    u32::try_from(first).unwrap_or(u32::MAX).max(1)
}

/// Rows with equal keys may share a batch: types and shapes of all inputs, without the first dimension, as they are once they are
/// filled up.
fn shape_key(row: &Row, padding: Option<&PadPlan>) -> ShapeKey {
    let length = padding.and_then(|plan| plan.length(row));
    // FNV-1a over the numbers; a collision would only make a batch that is assembled row by row fail and be retried singly.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |n: u64| hash = (hash ^ n).wrapping_mul(0x0000_0100_0000_01b3);
    for (i, tensor) in row.tensors.iter().enumerate() {
        eat(tensor.dtype as u64);
        eat(u64::MAX);
        match padding {
            Some(plan) => plan.padded_shape(row, i, length).into_iter().for_each(&mut eat),
            None => row.shape(i).iter().copied().for_each(&mut eat),
        }
    }
    ShapeKey(hash)
}

#[cfg(test)]
mod tests;
