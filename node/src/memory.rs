//! The shell of [`core::paging`](weir_core::paging): the node's memory behind a lock, and the rows that wait for models to be loaded.
//!
//! Homes and other nodes hand rows in here. While everything fits they go straight to the device; otherwise the core is told, and rows
//! whose model is not in memory are kept until it is. What is to be loaded is ordered from the control thread, which also ends the threads
//! of what was put out. Who holds this lock may take a device's, never the other way round.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use weir_core::ids::{ModelRef, ReplicaId, TicketId};
use weir_core::outcome::Class;
use weir_core::paging::{Action, Keep, MemoryNow, Paged, Paging, Query};
use weir_core::profile::Profile;
use weir_core::router::Estimate;
use weir_core::scheduler::Inquiry;
use weir_core::units::{Bytes, Deadline, Instant, ServiceTime};
use weir_host::clock::Clock;

use crate::actors::device::{Device, LoadedReplica, Replies, StageReply, Submission};
use crate::alarm::{self, WakeAt};

/// What the control thread has to do.
#[derive(Debug)]
pub enum Order {
    /// See that the file of this model is here.
    Fetch(ModelRef),
    /// Load this replica.
    Load(ReplicaId),
    /// End its thread; it is not on its device any more. With its profile, as it was corrected there.
    End(ReplicaId, Option<Profile>),
}

/// A node's memory.
pub struct Memory {
    clock: Arc<dyn Clock>,
    /// Not everything fits. Rows that are handed in while that changes may be refused; it is safe to ask again.
    short: AtomicBool,
    inner: Mutex<Inner>,
    /// Tells the timer that the next wake-up moved.
    rescheduled: Notify,
    /// Three at most for each replica of the plan.
    orders: mpsc::UnboundedSender<Order>,
}

struct Inner {
    core: Paging,
    hosted: BTreeMap<ReplicaId, Hosted>,
    /// What a row of a model takes on an idle slot, once it was loaded.
    services: BTreeMap<ModelRef, ServiceTime>,
    /// Rows that wait for a load.
    held: BTreeMap<TicketId, Held>,
    /// By call whose rows waited: what its device knows of them now.
    handed: BTreeMap<u64, Vec<TicketId>>,
    next_ticket: u64,
    wake_at: WakeAt,
}

struct Hosted {
    model: ModelRef,
    device: Arc<Device>,
}

/// A row that waits for its model.
struct Held {
    row: Submission,
    call: u64,
    to: Arc<To>,
}

/// Where rows of a call go.
struct To {
    model: ModelRef,
    device: Arc<Device>,
    replies: Replies,
}

/// Rows of a call whose model is in memory now.
struct Run {
    call: u64,
    rows: Vec<Submission>,
    to: Arc<To>,
}

/// Rows that were handed in; what still waits of them is withdrawn when this is dropped.
pub struct Handed {
    memory: Arc<Memory>,
    device: Arc<Device>,
    tickets: Vec<TicketId>,
    /// Of those that had to wait for their model.
    call: Option<(u64, ModelRef)>,
}

impl Handed {
    /// Each of its rows has its reply: its device knows nothing of them any more.
    pub fn all_replied(&mut self) {
        self.tickets.clear();
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if let Some((call, model)) = self.call.take() {
            self.tickets.extend(self.memory.withdraw(call, &model));
        }
        if !self.tickets.is_empty() {
            self.device.cancel(&self.tickets);
        }
    }
}

impl Memory {
    /// Empty, and so large; orders go to whoever has the other end.
    pub fn new(clock: Arc<dyn Clock>, size: Bytes) -> (Arc<Memory>, mpsc::UnboundedReceiver<Order>) {
        let (orders, ordered) = mpsc::unbounded_channel();
        let inner = Inner {
            core: Paging::new(size, Keep::default()),
            hosted: BTreeMap::new(),
            services: BTreeMap::new(),
            held: BTreeMap::new(),
            handed: BTreeMap::new(),
            next_ticket: 0,
            wake_at: WakeAt::default(),
        };
        let (short, rescheduled) = (AtomicBool::new(false), Notify::new());
        (Arc::new(Memory { clock, short, inner: Mutex::new(inner), rescheduled, orders }), ordered)
    }

    /// Runs the timers for ever.
    pub async fn keep_time(self: Arc<Self>) {
        let fire = || {
            self.lock().wake_at.clear();
            self.settle();
        };
        alarm::keep_time(&*self.clock, &self.rescheduled, || self.lock().wake_at.get(), fire).await;
    }

    /// A replica is to be served here, whose file is `here` or has to be fetched; [`Memory::settle`] orders what can be done.
    pub fn place(&self, id: ReplicaId, model: &ModelRef, device: &Arc<Device>, size: Bytes, here: bool) {
        let mut inner = self.lock();
        let hosted = Hosted { model: model.clone(), device: Arc::clone(device) };
        inner.hosted.insert(id, hosted);
        inner.core.place(self.clock.now(), id, model, size, here);
    }

    /// Orders what can be loaded by now, and ends what is late.
    pub fn settle(&self) {
        self.step(|core, now, in_use, out| core.on_wake(now, in_use, out));
    }

    /// A replica is not to be served here any more.
    pub fn remove(&self, id: ReplicaId) {
        self.step(|core, now, in_use, out| core.remove(now, id, in_use, out));
        let mut inner = self.lock();
        if let Some(gone) = inner.hosted.remove(&id)
            && inner.hosted.values().all(|hosted| hosted.model != gone.model)
        {
            inner.services.remove(&gone.model);
        }
    }

    /// The file of a model is here.
    pub fn on_fetched(&self, model: &ModelRef) {
        self.step(|core, now, in_use, out| core.on_fetched(now, model, in_use, out));
    }

    /// The file of a model cannot be had now: it is to be tried again after `pause`.
    pub fn on_not_fetched(&self, model: &ModelRef, pause: Duration) {
        self.step(|core, now, in_use, out| core.on_not_fetched(now, model, pause, in_use, out));
    }

    /// A replica cannot be loaded before the file of its model is fetched.
    pub fn on_missing(&self, id: ReplicaId) {
        self.step(|core, now, in_use, out| core.on_missing(now, id, in_use, out));
    }

    /// A replica was loaded. For the first time: the memory that it takes, and how much of the time the next load will take again.
    pub fn on_loaded(&self, id: ReplicaId, loaded: LoadedReplica, first: Option<(Bytes, Duration)>) {
        {
            let mut inner = self.lock();
            let Some(device) = inner.hosted.get(&id).map(|hosted| Arc::clone(&hosted.device)) else { return };
            device.add_replica(id, loaded);
            inner.keep_service(id, &device);
        }
        self.step(|core, now, in_use, out| core.on_loaded(now, id, first, in_use, out));
    }

    /// A load has failed, or what was loaded has died: it is to be tried again after `pause`.
    pub fn on_failed(&self, id: ReplicaId, pause: Duration) {
        self.step(|core, now, in_use, out| core.on_failed(now, id, pause, in_use, out));
    }

    /// The memory of what was put out is free.
    pub fn on_gone(&self, id: ReplicaId) {
        self.step(|core, now, in_use, out| core.on_gone(now, id, in_use, out));
    }

    /// The memory is free of what was removed or has died.
    pub fn on_ended(&self, id: ReplicaId) {
        self.step(|core, now, in_use, out| core.on_ended(now, id, in_use, out));
    }

    /// Hands in the rows of one call: they run, or wait until their model is in memory, or are refused at once. Each gets exactly one
    /// reply unless it is withdrawn.
    pub fn submit(
        self: &Arc<Self>,
        device: &Arc<Device>,
        model: &ModelRef,
        rows: Vec<Submission>,
        replies: &Replies,
    ) -> Handed {
        let (memory, at) = (Arc::clone(self), Arc::clone(device));
        if !self.short.load(Ordering::Acquire) {
            return Handed { memory, device: at, tickets: device.submit(model, rows, replies), call: None };
        }
        let mut inner = self.lock();
        let service = inner.service(model);
        let first = inner.next_ticket;
        inner.next_ticket += rows.len() as u64 + 1;
        let now = self.clock.now();
        // Rows of one call are alike as a rule.
        let mut known: Option<(Deadline, Class, Instant)> = None;
        let query = |(row, ticket): (&Submission, u64)| {
            let (deadline, class) = (row.deadline, row.class);
            let free = match known {
                Some((at, of, free)) if (at, of) == (deadline, class) => free,
                _ => device.estimate_start(now, class, deadline, row.bid.firm()).soonest(),
            };
            known = Some((deadline, class, free));
            Query { ticket: TicketId(ticket), deadline, free, service }
        };
        let queries: Vec<Query> = rows.iter().zip(first..).map(query).collect();
        let mut resident = false;
        let told = |core: &mut Paging, now, in_use: &dyn Fn(ReplicaId) -> bool, out: &mut Vec<Action>| {
            resident = core.ask(now, model, &queries, in_use, out);
        };
        let actions = inner.tell(now, told);
        if resident {
            self.perform(&mut inner, actions);
            return Handed { memory, device: at, tickets: device.submit(model, rows, replies), call: None };
        }
        // Its number is none of its rows'.
        let call = first + rows.len() as u64;
        let to = Arc::new(To { model: model.clone(), device: Arc::clone(device), replies: Arc::clone(replies) });
        for (row, ticket) in rows.into_iter().zip(first..) {
            inner.held.insert(TicketId(ticket), Held { row, call, to: Arc::clone(&to) });
        }
        inner.handed.insert(call, Vec::new());
        self.perform(&mut inner, actions);
        Handed { memory, device: at, tickets: Vec::new(), call: Some((call, model.clone())) }
    }

    /// So many rows were not handed in, as they could not have waited for their model as long as its load takes.
    pub fn on_missed(&self, model: &ModelRef, rows: usize, time: Duration) {
        if self.short.load(Ordering::Acquire) {
            self.step(|core, now, in_use, out| core.on_missed(now, model, (rows, time), in_use, out));
        }
    }

    /// When a row of a model would be done on a device that is not in memory, if it were handed in now; `None` where it is, or nobody can say.
    pub fn estimate(&self, now: Instant, model: &ModelRef, device: &Device, asked: Inquiry) -> Option<Estimate> {
        if !self.short.load(Ordering::Acquire) {
            return None;
        }
        let inner = self.lock();
        let start = device.estimate_start(now, asked.class, asked.deadline, asked.firm);
        inner.core.estimate(now, model, start, inner.service(model))
    }

    /// How long it would wait until then, if it took no time itself.
    pub fn wait(&self, now: Instant, model: &ModelRef, device: &Device, asked: Inquiry) -> Option<Duration> {
        let finish = self.estimate(now, model, device, asked)?.finish;
        Some(finish.since(now).saturating_sub(self.lock().service(model).as_duration()))
    }

    /// Memory as a whole.
    pub fn now(&self) -> MemoryNow {
        self.lock().core.now(self.clock.now())
    }

    /// Every replica, where not everything fits.
    pub fn paged(&self) -> BTreeMap<ReplicaId, (ModelRef, Paged)> {
        let (now, inner) = (self.clock.now(), self.lock());
        let pages = inner.core.pages(now).filter(|_| inner.core.is_short());
        pages.map(|(id, paged)| (id, (inner.hosted[&id].model.clone(), paged))).collect()
    }

    fn step(&self, tell: impl FnOnce(&mut Paging, Instant, &dyn Fn(ReplicaId) -> bool, &mut Vec<Action>)) {
        let mut inner = self.lock();
        let actions = inner.tell(self.clock.now(), tell);
        self.perform(&mut inner, actions);
    }

    fn perform(&self, inner: &mut Inner, actions: Vec<Action>) {
        self.short.store(inner.core.is_short(), Ordering::Release);
        // Rows of one call go to their device together.
        let mut runs: Vec<Run> = Vec::new();
        for action in actions {
            match action {
                // Nobody obeys orders any more where the node ends.
                Action::Fetch(model) => drop(self.orders.send(Order::Fetch(model))),
                Action::Load(id) => drop(self.orders.send(Order::Load(id))),
                Action::Evict(id) => {
                    let device = Arc::clone(&inner.hosted[&id].device);
                    inner.keep_service(id, &device);
                    let profile = device.profile(id);
                    device.remove_replica(id);
                    let _ = self.orders.send(Order::End(id, profile));
                }
                Action::Run(ticket) => {
                    let Some(held) = inner.held.remove(&ticket) else { continue };
                    let Held { row, call, to } = held;
                    match runs.last_mut().filter(|last| last.call == call) {
                        Some(last) => last.rows.push(row),
                        None => runs.push(Run { call, rows: vec![row], to }),
                    }
                }
                Action::Reject { ticket, why } => inner.reply(ticket, StageReply::Rejected(why)),
                Action::Expire(ticket) => inner.reply(ticket, StageReply::Expired),
                Action::WakeAt(at) => {
                    if inner.wake_at.ask(at) {
                        self.rescheduled.notify_one();
                    }
                }
            }
        }
        for Run { call, rows, to } in runs {
            let tickets = to.device.submit(&to.model, rows, &to.replies);
            inner.handed.entry(call).or_default().extend(tickets);
        }
    }

    /// The caller is gone: what its device knows of its rows.
    fn withdraw(&self, call: u64, model: &ModelRef) -> Vec<TicketId> {
        let mut inner = self.lock();
        let held = inner.held.range(..TicketId(call)).rev().take_while(|(_, held)| held.call == call);
        let mut gone: Vec<TicketId> = held.map(|(ticket, _)| *ticket).collect();
        gone.reverse();
        gone.iter().for_each(|ticket| drop(inner.held.remove(ticket)));
        inner.core.on_cancel(model, &gone);
        inner.handed.remove(&call).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock is a broken invariant of the core: nobody can vouch for the state it left.
        self.inner.lock().expect("the memory of this node broke an invariant")
    }
}

impl Inner {
    fn tell(
        &mut self,
        now: Instant,
        tell: impl FnOnce(&mut Paging, Instant, &dyn Fn(ReplicaId) -> bool, &mut Vec<Action>),
    ) -> Vec<Action> {
        let Inner { core, hosted, .. } = self;
        let mut actions = Vec::new();
        tell(core, now, &|id| hosted.get(&id).is_some_and(|at| at.device.is_in_use(id)), &mut actions);
        actions
    }

    fn service(&self, model: &ModelRef) -> ServiceTime {
        self.services.get(model).copied().unwrap_or_default()
    }

    fn keep_service(&mut self, id: ReplicaId, device: &Device) {
        if let Some(profile) = device.profile(id) {
            self.services.insert(self.hosted[&id].model.clone(), profile.estimate(1));
        }
    }

    /// A row ends without having run.
    fn reply(&mut self, ticket: TicketId, reply: StageReply) {
        if let Some(Held { row, to, .. }) = self.held.remove(&ticket) {
            (to.replies)(row.slot, reply);
        }
    }
}

#[cfg(test)]
mod tests;
