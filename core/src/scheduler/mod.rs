//! One device: which batch runs when.
//!
//! Queries of a model wait in one queue on the device and are bound to a replica only when they run. Events and the time
//! go in, [`Action`]s come out; the shell performs them in order. Nothing waits on purpose: as long as a slot is free, a
//! replica is free and something runnable waits for it, a batch runs.
//!
//! The rule is earliest deadline first. A query is refused on arrival when work that is due before it leaves too little
//! time (its estimate then is past its deadline) or the queue is full; it is dropped before it costs anything when its
//! deadline can no longer be met even alone; a batch is the longest run of the queue, in deadline order and of one shape,
//! with which its most urgent member is still in time. Source: `dynaba`/greedy EDF of Clockwork and Nexus with drops.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ModelRef, ReplicaId, TicketId};
use crate::outcome::{Class, Rejection};
use crate::profile::Profile;
use crate::units::{Deadline, Instant, ServiceTime};

/// Queries with equal keys may share a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShapeKey(pub u64);

/// One row that asks to run.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Query {
    pub ticket: TicketId,
    pub deadline: Deadline,
    pub class: Class,
    pub shape: ShapeKey,
    /// Whether it may share a batch at all.
    pub mergeable: bool,
    /// What it costs, in rows of the profile: 1, or more where it brings many at once and cannot be split.
    pub rows: u32,
}

/// Why a batch has the size that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It has as many rows as the model takes.
    Full,
    /// Nothing else waited.
    Drained,
    /// One more row would have made its most urgent member late.
    Deadline,
    /// The next row has another shape.
    Shape,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    /// Run these rows as one batch; tell [`Device::on_batch_done`] when it ends.
    Run { replica: ReplicaId, tickets: Vec<TicketId>, closed: Closed },
    /// This row does not run here.
    Reject { ticket: TicketId, why: Rejection },
    /// This row's deadline cannot be met any more.
    Expire { ticket: TicketId },
    /// Call [`Device::on_wake`] then; the earliest counts.
    WakeAt(Instant),
}

/// Rows that may wait on one device. At 10 µs a row, the fastest model in sight, these are 160 ms of work: longer than
/// the deadlines that weir is for. Slower models are bounded by the estimate on arrival long before.
pub const WAITING_MAX: usize = 16_384;

/// Order of service: deadline, then arrival.
type Rank = (Deadline, TicketId);

#[derive(Debug)]
struct Replica {
    model: ModelRef,
    /// Rows of the batch in progress.
    running: Option<u32>,
    /// When its batch should end by the profile.
    ends: Instant,
    /// No new batch: it leaves when the current one ends.
    leaving: bool,
}

impl Replica {
    /// When it should be free. A batch that is over its time is taken to need as much again.
    fn free_at(&self, now: Instant) -> Instant {
        if self.running.is_some() && now > self.ends { now + now.since(self.ends) } else { self.ends.max(now) }
    }
}

#[derive(Debug)]
struct Queue {
    waiting: BTreeMap<Rank, Query>,
    /// One per model on this device: its replicas do the same work on the same hardware.
    profile: Profile,
    /// The least of its replicas'.
    max_batch: u32,
    /// Each with the largest batch that it takes.
    replicas: BTreeMap<ReplicaId, u32>,
}

impl Queue {
    /// Work that `rows` more queries add, at the batch size that a backlog leads to.
    fn work(&self, rows: usize) -> ServiceTime {
        let full = rows / self.max_batch as usize;
        let rest = (rows % self.max_batch as usize) as u32;
        let mut work = self.profile.estimate(self.max_batch).scaled(full as f64);
        if rest > 0 {
            work += self.profile.estimate(rest);
        }
        work
    }

    /// Rows that wait and are due before `rank`.
    fn rows_before(&self, rank: Rank) -> usize {
        self.waiting.range(..rank).map(|(_, query)| query.rows as usize).sum()
    }

    /// Rows that wait.
    fn rows(&self) -> usize {
        self.waiting.values().map(|query| query.rows as usize).sum()
    }
}

/// The scheduler of one device with its slots.
#[derive(Debug)]
pub struct Device {
    slots: u32,
    busy: u32,
    queues: BTreeMap<ModelRef, Queue>,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// Where each waiting ticket stands.
    tickets: BTreeMap<TicketId, (ModelRef, Deadline)>,
    /// What waits, the most dispensable last.
    by_worth: BTreeSet<(Class, Deadline, TicketId)>,
}

impl Device {
    /// A device that runs `slots` (at least 1) batches at once.
    pub fn new(slots: u32) -> Device {
        assert!(slots > 0, "a device has a slot");
        Device {
            slots,
            busy: 0,
            queues: BTreeMap::new(),
            replicas: BTreeMap::new(),
            tickets: BTreeMap::new(),
            by_worth: BTreeSet::new(),
        }
    }

    /// A loaded replica is ready. A further replica of a model brings no new profile: the queue's has seen real batches.
    pub fn add_replica(
        &mut self,
        now: Instant,
        id: ReplicaId,
        model: ModelRef,
        profile: Profile,
        max_batch: u32,
        out: &mut Vec<Action>,
    ) {
        assert!(max_batch > 0, "a batch has rows");
        assert!(!self.replicas.contains_key(&id), "replica {id} stands here already");
        let queue = self.queues.entry(model.clone()).or_insert_with(|| Queue {
            waiting: BTreeMap::new(),
            profile,
            max_batch,
            replicas: BTreeMap::new(),
        });
        queue.replicas.insert(id, max_batch);
        queue.max_batch = queue.replicas.values().copied().min().expect("just put there");
        self.replicas.insert(id, Replica { model, running: None, ends: now, leaving: false });
        self.dispatch(now, out);
        self.assert_invariants();
    }

    /// A replica goes. What waits stays for its siblings and is rejected where there are none; a batch in progress keeps
    /// its slot until [`Device::on_batch_done`].
    pub fn remove_replica(&mut self, now: Instant, id: ReplicaId, out: &mut Vec<Action>) {
        let Some(replica) = self.replicas.get_mut(&id) else {
            return;
        };
        replica.leaving = true;
        let model = replica.model.clone();
        if replica.running.is_none() {
            self.replicas.remove(&id);
        }
        if let Some(queue) = self.queues.get_mut(&model) {
            queue.replicas.remove(&id);
            if let Some(max_batch) = queue.replicas.values().copied().min() {
                queue.max_batch = max_batch;
            } else {
                let queue = self.queues.remove(&model).expect("it was there");
                for query in queue.waiting.into_values() {
                    self.tickets.remove(&query.ticket);
                    self.by_worth.remove(&(query.class, query.deadline, query.ticket));
                    out.push(Action::Reject { ticket: query.ticket, why: Rejection::NoReplica });
                }
            }
        }
        self.dispatch(now, out);
        self.assert_invariants();
    }

    /// The actor of a replica is gone with its batch: frees the slot at once.
    pub fn lose_replica(&mut self, now: Instant, id: ReplicaId, out: &mut Vec<Action>) {
        if let Some(replica) = self.replicas.get_mut(&id)
            && replica.running.take().is_some()
        {
            self.busy -= 1;
        }
        self.remove_replica(now, id, out);
    }

    /// Rows of one call arrive together: all are queued or refused before the device is offered any.
    pub fn on_arrival(&mut self, now: Instant, model: &ModelRef, queries: &[Query], out: &mut Vec<Action>) {
        // Rows of one call are due together as a rule: what is ahead of them is looked up once.
        let mut known: Option<(Deadline, usize, Instant)> = None;
        let mut forgiven = false;
        for query in queries {
            let Some(queue) = self.queues.get(model) else {
                out.push(Action::Reject { ticket: query.ticket, why: Rejection::NoReplica });
                continue;
            };
            let (_, ahead, start) = known.filter(|(deadline, ..)| *deadline == query.deadline).unwrap_or_else(|| {
                let ahead = queue.rows_before((query.deadline, query.ticket));
                (query.deadline, ahead, self.start_estimate(now, model, query.deadline))
            });
            let rows = query.rows as usize;
            let admitted = if query.deadline.missed_by(start + queue.work(ahead + rows)) {
                // Its profile alone is in the way: it may be wrong, and without a batch nothing would ever show it.
                let running = queue.replicas.keys().any(|id| self.replicas[id].running.is_some());
                let alone = queue.waiting.is_empty()
                    && !running
                    && rows == 1
                    && query.deadline.missed_by(now + queue.work(rows));
                if alone && !query.deadline.missed_by(now) && !std::mem::replace(&mut forgiven, true) {
                    self.queues.get_mut(model).expect("it was just seen").profile.forgive();
                }
                Err(Rejection::TooLate)
            } else {
                self.enqueue(model, query, out)
            };
            known = Some((query.deadline, ahead + if admitted.is_ok() { rows } else { 0 }, start));
            if let Err(why) = admitted {
                out.push(Action::Reject { ticket: query.ticket, why });
            }
        }
        self.dispatch(now, out);
        self.assert_invariants();
    }

    /// A batch ended after `took` of slot time.
    pub fn on_batch_done(&mut self, now: Instant, id: ReplicaId, took: ServiceTime, out: &mut Vec<Action>) {
        let replica = self.replicas.get_mut(&id).expect("a batch ends on a replica that stands here");
        let rows = replica.running.take().expect("a batch ends once");
        self.busy -= 1;
        if let Some(queue) = self.queues.get_mut(&replica.model)
            && rows <= queue.max_batch
        {
            // What came as one query with more rows than any batch says nothing about batches.
            queue.profile.observe(rows, took);
        }
        if replica.leaving {
            self.replicas.remove(&id);
        }
        self.dispatch(now, out);
        self.assert_invariants();
    }

    /// The caller of a waiting row is gone.
    pub fn on_cancel(&mut self, _now: Instant, ticket: TicketId, _out: &mut Vec<Action>) {
        if let Some((model, deadline)) = self.tickets.remove(&ticket) {
            let queue = self.queues.get_mut(&model).expect("a ticket stands in a queue");
            let query = queue.waiting.remove(&(deadline, ticket)).expect("a ticket says where it stands");
            self.by_worth.remove(&(query.class, deadline, ticket));
        }
        self.assert_invariants();
    }

    /// A timer that was asked for fires: what can no longer be in time is dropped, so that its caller hears it now.
    pub fn on_wake(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.drop_late(now, out);
        self.dispatch(now, out);
        self.assert_invariants();
    }

    /// When a query of `model` with `rows` rows would be done if it came now with the latest deadline of all.
    /// `None` where no replica of it stands here.
    pub fn estimate_finish(&self, now: Instant, model: &ModelRef, rows: usize) -> Option<Instant> {
        let queue = self.queues.get(model)?;
        Some(self.start_estimate(now, model, Deadline::NEVER) + queue.work(queue.rows() + rows))
    }

    /// Estimated work that waits, over all models.
    pub fn backlog(&self) -> ServiceTime {
        self.queues.values().fold(ServiceTime::ZERO, |sum, queue| sum + queue.work(queue.rows()))
    }

    /// The profile of a replica's model, as corrected by what its batches took.
    pub fn profile(&self, id: ReplicaId) -> Option<&Profile> {
        let replica = self.replicas.get(&id)?;
        Some(&self.queues.get(&replica.model)?.profile)
    }

    fn enqueue(&mut self, model: &ModelRef, query: &Query, out: &mut Vec<Action>) -> Result<(), Rejection> {
        if self.tickets.len() >= WAITING_MAX {
            // Full: something less important, or as important and due later, makes room, or this one goes.
            let victim = self.by_worth.last().copied();
            let Some((class, deadline, ticket)) = victim.filter(|v| (v.0, v.1) > (query.class, query.deadline)) else {
                return Err(Rejection::QueueFull);
            };
            self.by_worth.remove(&(class, deadline, ticket));
            let (model, _) = self.tickets.remove(&ticket).expect("what waits has a ticket");
            self.queues.get_mut(&model).expect("a ticket stands in a queue").waiting.remove(&(deadline, ticket));
            out.push(Action::Reject { ticket, why: Rejection::QueueFull });
        }
        let queue = self.queues.get_mut(model).expect("the caller has seen it");
        queue.waiting.insert((query.deadline, query.ticket), *query);
        self.tickets.insert(query.ticket, (model.clone(), query.deadline));
        self.by_worth.insert((query.class, query.deadline, query.ticket));
        Ok(())
    }

    /// When a slot and a replica will take up work of `model` that is due at `deadline`: after the batches in progress
    /// and after what other models have waiting that is due earlier, shared by the slots.
    fn start_estimate(&self, now: Instant, model: &ModelRef, deadline: Deadline) -> Instant {
        let queue = &self.queues[model];
        let own = queue.replicas.keys().map(|id| self.replicas[id].free_at(now)).min().unwrap_or(Instant::FAR);
        let slot = if self.busy < self.slots {
            now
        } else {
            let running = self.replicas.values().filter(|replica| replica.running.is_some());
            running.map(|replica| replica.free_at(now)).min().unwrap_or(now)
        };
        let mut others = ServiceTime::ZERO;
        for (other, queue) in &self.queues {
            if other != model && !queue.waiting.is_empty() {
                let all = deadline == Deadline::NEVER;
                others +=
                    queue.work(if all { queue.rows() } else { queue.rows_before((deadline, TicketId(u64::MAX))) });
            }
        }
        own.max(slot + others.scaled(1.0 / f64::from(self.slots)))
    }

    /// Drops what cannot be in time even if it ran now and alone.
    fn drop_late(&mut self, now: Instant, out: &mut Vec<Action>) {
        for queue in self.queues.values_mut() {
            while let Some((&(deadline, ticket), query)) = queue.waiting.first_key_value() {
                if !deadline.missed_by(now + queue.profile.estimate(query.rows)) {
                    break;
                }
                self.by_worth.remove(&(query.class, deadline, ticket));
                queue.waiting.pop_first();
                self.tickets.remove(&ticket);
                out.push(Action::Expire { ticket });
            }
        }
    }

    fn dispatch(&mut self, now: Instant, out: &mut Vec<Action>) {
        while self.busy < self.slots {
            self.drop_late(now, out);
            let next = self
                .queues
                .iter()
                .filter_map(|(model, queue)| {
                    let (rank, _) = queue.waiting.first_key_value()?;
                    let free = queue.replicas.keys().find(|id| self.replicas[id].running.is_none())?;
                    Some((*rank, model.clone(), *free))
                })
                .min();
            let Some((_, model, replica)) = next else {
                break;
            };
            self.run(now, &model, replica, out);
        }
        // What waits behind running batches is told when it is too late for it, not when a batch happens to end.
        if let Some(head) = self
            .queues
            .values()
            .filter_map(|queue| queue.waiting.first_key_value())
            .map(|((deadline, _), _)| *deadline)
            .min()
            && head != Deadline::NEVER
        {
            out.push(Action::WakeAt(head.0));
        }
    }

    fn run(&mut self, now: Instant, model: &ModelRef, id: ReplicaId, out: &mut Vec<Action>) {
        let queue = self.queues.get_mut(model).expect("the queue of a waiting query");
        let (&(deadline, _), head) = queue.waiting.first_key_value().expect("something waits");
        let (shape, mergeable, cost) = (head.shape, head.mergeable, head.rows);
        let mut closed = Closed::Drained;
        let mut rows = 0u32;
        for query in queue.waiting.values() {
            closed = if rows == queue.max_batch || (rows == 1 && !mergeable) {
                Closed::Full
            } else if rows > 0 && (query.shape != shape || !query.mergeable) {
                Closed::Shape
            } else if rows > 0 && deadline.missed_by(now + queue.profile.estimate(rows + 1)) {
                Closed::Deadline
            } else {
                rows += 1;
                continue;
            };
            break;
        }
        if closed == Closed::Drained && rows == queue.max_batch {
            closed = Closed::Full;
        }
        let mut tickets = Vec::with_capacity(rows as usize);
        for _ in 0..rows {
            let (_, query) = queue.waiting.pop_first().expect("counted above");
            self.tickets.remove(&query.ticket);
            self.by_worth.remove(&(query.class, query.deadline, query.ticket));
            tickets.push(query.ticket);
        }
        // What does not merge runs alone, at its own cost.
        let rows = rows.max(cost);
        let replica = self.replicas.get_mut(&id).expect("a free replica");
        replica.running = Some(rows);
        replica.ends = now + queue.profile.estimate(rows);
        self.busy += 1;
        out.push(Action::Run { replica: id, tickets, closed });
    }

    fn assert_invariants(&self) {
        assert!(self.busy <= self.slots, "more batches than slots");
        assert!(self.tickets.len() <= WAITING_MAX, "more rows wait than may");
        debug_assert_eq!(
            self.busy as usize,
            self.replicas.values().filter(|replica| replica.running.is_some()).count()
        );
        debug_assert_eq!(self.tickets.len(), self.by_worth.len());
        debug_assert_eq!(self.tickets.len(), self.queues.values().map(|queue| queue.waiting.len()).sum::<usize>());
        debug_assert!(
            self.busy == self.slots
                || self.queues.values().all(|queue| {
                    queue.waiting.is_empty() || queue.replicas.keys().all(|id| self.replicas[id].running.is_some())
                }),
            "a slot and a replica idle while work waits for them"
        );
    }
}
