//! What waits and what runs on one device: the state that a policy looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ids::{ModelRef, ReplicaId, TicketId};
use crate::outcome::Class;
use crate::profile::Profile;
use crate::triage::{Bid, Buffer, Claim, Offer, Stake};
use crate::units::{Deadline, Instant, ServiceTime};

use super::lane::{Entry, Lane, LaneKey};
use super::places::{Place, Places};
use super::{Query, WAITING_MAX};

pub(super) use super::model::Model;

/// Number of a model on this device, for as long as it stands here.
pub(super) type ModelIndex = usize;

/// A row that has more time than this when it comes has time for everything else: it is in nobody's way.
const HORIZON: Duration = Duration::from_secs(1);

/// First answers that more may follow are due in this part of the time that is left.
const FIRST_WITHIN: u32 = 8;

/// What waits is served in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Deadline,
    Arrival,
}

#[derive(Debug)]
pub(super) struct Replica {
    pub model: ModelIndex,
    /// Most rows a batch.
    pub max_batch: u32,
    /// Rows of the batch in progress.
    pub running: Option<u32>,
    /// When its batch should end by the profile.
    pub ends: Instant,
    /// No new batch: it leaves when the current one ends.
    pub leaving: bool,
}

impl Replica {
    /// When it should be free. A batch that is over its time is taken to need as much again.
    pub fn free_at(&self, now: Instant) -> Instant {
        if self.running.is_some() && now > self.ends { now + now.since(self.ends) } else { self.ends.max(now) }
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    pub slots: u32,
    pub busy: u32,
    pub order: Order,
    models: Vec<Option<Model>>,
    by_name: BTreeMap<ModelRef, ModelIndex>,
    pub replicas: BTreeMap<ReplicaId, Replica>,
    /// Those that run a batch: at most as many as slots, where replicas may be hundreds.
    active: Vec<ReplicaId>,
    tickets: Places,
    /// The books of triage, where the policy asks for it.
    buffer: Option<Buffer>,
}

impl Pool {
    pub fn new(slots: u32, order: Order, triage: bool) -> Pool {
        Pool {
            slots,
            busy: 0,
            order,
            models: Vec::new(),
            by_name: BTreeMap::new(),
            replicas: BTreeMap::new(),
            active: Vec::new(),
            tickets: Places::new(),
            buffer: triage.then(|| Buffer::new(slots)),
        }
    }

    pub fn index(&self, model: &ModelRef) -> Option<ModelIndex> {
        self.by_name.get(model).copied()
    }

    pub fn model(&self, index: ModelIndex) -> &Model {
        self.models[index].as_ref().expect("a model that stands here")
    }

    pub fn model_mut(&mut self, index: ModelIndex) -> &mut Model {
        self.models[index].as_mut().expect("a model that stands here")
    }

    pub fn models(&self) -> impl Iterator<Item = (ModelIndex, &Model)> {
        self.models.iter().enumerate().filter_map(|(index, model)| Some((index, model.as_ref()?)))
    }

    /// Adds a replica; a further one of a model brings no new profile, the queue's has seen real batches.
    pub fn add_replica(&mut self, now: Instant, id: ReplicaId, name: ModelRef, profile: Profile, max_batch: u32) {
        let index = self.index(&name).unwrap_or_else(|| {
            let vacant = self.models.iter().position(Option::is_none).unwrap_or_else(|| {
                self.models.push(None);
                self.models.len() - 1
            });
            self.models[vacant] = Some(Model::new(name.clone(), profile, self.slots));
            self.by_name.insert(name, vacant);
            vacant
        });
        self.replicas.insert(id, Replica { model: index, max_batch, running: None, ends: now, leaving: false });
        self.model_mut(index).replicas.push(id);
        self.recount(index);
    }

    /// Takes a replica off its model; returns what waited where it was the last.
    pub fn retire(&mut self, id: ReplicaId) -> Vec<TicketId> {
        let Some(replica) = self.replicas.get_mut(&id) else { return Vec::new() };
        let (index, idle, left) = (replica.model, replica.running.is_none(), replica.leaving);
        replica.leaving = true;
        if idle {
            self.replicas.remove(&id);
        }
        if left {
            return Vec::new();
        }
        self.model_mut(index).replicas.retain(|other| *other != id);
        if !self.model(index).replicas.is_empty() {
            self.recount(index);
            return Vec::new();
        }
        let gone = self.models[index].take().expect("it was just seen");
        self.by_name.remove(&gone.name);
        let waited: Vec<TicketId> =
            gone.lanes.values().flat_map(|lane| lane.iter().map(|entry| entry.ticket)).collect();
        for ticket in &waited {
            self.tickets.remove(*ticket);
        }
        gone.lanes.values().flat_map(Lane::iter).for_each(|entry| strike(&mut self.buffer, entry));
        waited
    }

    /// Keeps what a model knows of its replicas in step with them.
    fn recount(&mut self, index: ModelIndex) {
        let Some(model) = self.models[index].as_mut() else { return };
        let (mut free, mut max_batch) = (0, u32::MAX);
        for id in &model.replicas {
            let replica = &self.replicas[id];
            free += u32::from(replica.running.is_none());
            max_batch = max_batch.min(replica.max_batch);
        }
        model.replicas_changed(free, max_batch);
    }

    pub fn key(&self, now: Instant, query: &Query) -> Instant {
        match self.order {
            Order::Deadline => query.deadline.0,
            Order::Arrival => now,
        }
    }

    pub fn insert(&mut self, now: Instant, index: ModelIndex, query: &Query) {
        let lane = LaneKey::of(query);
        let key = self.key(now, query);
        self.tickets.insert(query.ticket, Place { model: index, lane, key });
        let stake = self.stake(now, index, query);
        if let (Some(buffer), Some(stake)) = (&mut self.buffer, stake) {
            buffer.insert(now, query.ticket, due(now, query), stake);
        }
        let (ticket, deadline, rows) = (query.ticket, query.deadline, query.rows);
        let model = self.model_mut(index);
        let waiting = model.lanes.entry(lane).or_default();
        waiting.insert(Entry { key, ticket, deadline, due: due(now, query), since: now, rows, stake });
        let head = waiting.front().is_some_and(|head| head.ticket == query.ticket);
        model.queue_changed(head);
    }

    /// Takes a waiting ticket out that will not be done in time, though it was let in.
    pub fn expire(&mut self, ticket: TicketId) {
        if let Some(place) = self.tickets.get(ticket) {
            self.model_mut(place.model).distance.on_broken();
        }
        self.remove(ticket);
    }

    /// Takes a waiting ticket out.
    pub fn remove(&mut self, ticket: TicketId) -> bool {
        let Some(place) = self.tickets.remove(ticket) else { return false };
        let model = self.model_mut(place.model);
        let lane = model.lanes.get_mut(&place.lane).expect("a ticket says where it stands");
        let head = lane.front().is_some_and(|head| head.ticket == ticket);
        let entry = lane.remove(place.key, ticket).expect("a ticket says where it stands");
        if lane.is_empty() {
            model.lanes.remove(&place.lane);
        }
        model.queue_changed(head);
        strike(&mut self.buffer, &entry);
        true
    }

    /// Takes up to `most` rows out, from the head of a lane on, while they are `wanted`; adds them to `tickets`, and returns
    /// what they cost in rows of the profile.
    pub fn take(
        &mut self,
        index: ModelIndex,
        key: LaneKey,
        most: usize,
        wanted: impl Fn(&Entry) -> bool,
        tickets: &mut Vec<TicketId>,
    ) -> u32 {
        let model = self.models[index].as_mut().expect("a model that stands here");
        let Some(lane) = model.lanes.get_mut(&key) else { return 0 };
        let (mut cost, before) = (0, tickets.len());
        for _ in 0..most {
            let Some(entry) = lane.front().filter(|head| wanted(head)) else { break };
            cost += entry.rows;
            tickets.push(entry.ticket);
            strike(&mut self.buffer, entry);
            lane.pop_front();
        }
        for ticket in &tickets[before..] {
            self.tickets.forget(*ticket);
        }
        if lane.is_empty() {
            model.lanes.remove(&key);
        }
        model.queue_changed(true);
        cost
    }

    /// What a row is to triage. What is sheddable runs in the gaps and is in nobody's way, and what has time can wait: neither stands in
    /// the books, whose steps would have to be as long for all.
    pub fn stake(&self, now: Instant, index: ModelIndex, query: &Query) -> Option<Stake> {
        self.buffer.as_ref()?;
        if !self.is_booked(now, query.deadline, query.class) {
            return None;
        }
        let cost = self.row_cost(index).scaled(f64::from(query.rows));
        Some(Stake { cost, bid: query.bid, critical: query.class == Class::Critical })
    }

    /// Whether a row with this deadline stands in the books of triage: see [`Pool::stake`].
    fn is_booked(&self, now: Instant, deadline: Deadline, class: Class) -> bool {
        let span = deadline.0.as_nanos().saturating_sub(now.as_nanos());
        class != Class::Sheddable && span <= HORIZON.as_nanos() as u64
    }

    /// Slot time of a row of a model, in batches of the size that a backlog leads to.
    pub fn row_cost(&self, index: ModelIndex) -> ServiceTime {
        let model = self.model(index);
        model.takes(model.steady).scaled(1.0 / model.steady as f64)
    }

    /// The same on average: what all that is asked takes together.
    pub fn mean_cost(&self, index: ModelIndex) -> ServiceTime {
        self.row_cost(index).scaled(self.model(index).on_average)
    }

    /// How many times as long as gates count it a row of a model takes that takes `cost`.
    pub fn longer(&self, index: ModelIndex, cost: ServiceTime) -> f64 {
        cost.as_nanos() as f64 / self.model(index).counted.as_nanos().max(1) as f64
    }

    /// See [`Buffer::yields`].
    pub fn yields(&self, firm: Option<f64>) -> ServiceTime {
        self.buffer.as_ref().map_or(ServiceTime::ZERO, |buffer| buffer.yields(firm))
    }

    /// See [`Buffer::is_firm_for`].
    pub fn is_firm_for(&self, bid: Bid) -> bool {
        self.buffer.as_ref().is_none_or(|buffer| buffer.is_firm_for(bid))
    }

    /// Asks triage about a row: see [`Buffer::offer`].
    pub fn offer(
        &self,
        now: Instant,
        query: &Query,
        stake: Stake,
        short: ServiceTime,
        out: &mut Vec<TicketId>,
    ) -> Offer {
        let Some(buffer) = &self.buffer else { return Offer::In };
        buffer.offer(now, self.left(now), query.deadline.0, due(now, query), stake, short, out)
    }

    /// How full the device is for triage: see [`Buffer::fill`].
    pub fn fill(&self, now: Instant, deadline: Instant) -> Option<f64> {
        Some(self.buffer.as_ref()?.fill(now, self.left(now), deadline))
    }

    /// See [`Buffer::floor`]. 0 for what does not stand in its books, and where the profile of the model alone is in the way: whether that is
    /// true is for whoever admits to find out.
    pub fn floor(&self, now: Instant, index: ModelIndex, claim: Claim) -> f64 {
        let Claim { deadline, class, tenant } = claim;
        let Some(buffer) = &self.buffer else { return 0.0 };
        if !self.is_booked(now, deadline, class) || deadline.missed_by(now + self.model(index).takes(1)) {
            return 0.0;
        }
        let start = self.start_estimate(now, index, class, deadline);
        let finish = self.finish_estimate(start, index, class, deadline, 1, false);
        let finish = self.model(index).promise(now, finish, class, 1);
        let short = ServiceTime::from(finish.since(deadline.0)).scaled(f64::from(self.slots));
        let bid = Bid { tenant, ..Bid::PLAIN };
        let stake = Stake { cost: self.row_cost(index), bid, critical: class == Class::Critical };
        buffer.floor(now, self.left(now), deadline.0, stake, short)
    }

    /// Slot time that the batches in progress still need.
    fn left(&self, now: Instant) -> ServiceTime {
        let left = self.running().map(|replica| ServiceTime::from(replica.free_at(now).since(now)));
        left.fold(ServiceTime::ZERO, |sum, left| sum + left)
    }

    /// What gives way to `query` where the queue is full: the least important, and of those the one that is due last.
    pub fn victim(&self, query: &Query) -> Option<TicketId> {
        let waiting = self.models().flat_map(|(_, model)| &model.lanes).filter_map(|(key, lane)| {
            // Where service is by arrival the last to come is not the last due, but goes first all the same.
            lane.back().map(|last| (key.class, last.deadline, last.ticket))
        });
        let (class, deadline, ticket) = waiting.max()?;
        ((class, deadline) > (query.class, query.deadline)).then_some(ticket)
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.tickets.len()
    }

    pub fn is_full(&self) -> bool {
        self.tickets.len() >= WAITING_MAX
    }

    /// A free replica of a model.
    pub fn free_replica(&self, index: ModelIndex) -> Option<ReplicaId> {
        self.model(index).replicas.iter().copied().filter(|id| self.replicas[id].running.is_none()).min()
    }

    pub fn start(&mut self, now: Instant, id: ReplicaId, rows: u32, ends: Instant) {
        let replica = self.replicas.get_mut(&id).expect("a replica that stands here");
        assert!(replica.running.is_none(), "one batch at a time");
        replica.running = Some(rows);
        replica.ends = ends;
        let index = replica.model;
        let model = self.model_mut(index);
        model.free -= 1;
        model.has.add(now, ends.since(now).as_secs_f64());
        self.busy += 1;
        self.active.push(id);
    }

    /// The batch of a replica is over: its model and rows. `None` where it ran nothing.
    pub fn end(&mut self, id: ReplicaId) -> Option<(ModelIndex, u32, bool)> {
        let replica = self.replicas.get_mut(&id)?;
        let rows = replica.running.take()?;
        let (index, leaving) = (replica.model, replica.leaving);
        self.busy -= 1;
        self.active.retain(|other| *other != id);
        if leaving {
            self.replicas.remove(&id);
        } else {
            self.model_mut(index).free += 1;
        }
        Some((index, rows, leaving))
    }

    pub fn running(&self) -> impl Iterator<Item = &Replica> {
        self.active.iter().map(|id| &self.replicas[id])
    }

    /// When the first slot is free.
    pub fn slot_free_at(&self, now: Instant) -> Instant {
        if self.busy < self.slots {
            return now;
        }
        self.running().map(|replica| replica.free_at(now)).min().unwrap_or(now)
    }

    /// Rows of a model that are served before a query of `class` that is due at `deadline`: those due earlier and not less
    /// important; before what is sheddable, everything else.
    fn rows_ahead(model: &Model, class: Class, deadline: Deadline) -> usize {
        let mut rows = 0;
        for (key, lane) in &model.lanes {
            if key.class > class {
                break;
            }
            rows +=
                if class == Class::Sheddable && key.class < class { lane.rows() } else { lane.rows_before(deadline.0) };
        }
        rows
    }

    /// When a slot and a replica take up work of a model that is due at `deadline`: after the batches in progress and after
    /// what other models have waiting that goes first, shared by the slots.
    pub fn start_estimate(&self, now: Instant, index: ModelIndex, class: Class, deadline: Deadline) -> Instant {
        let own = self.model(index).replicas.iter().map(|id| self.replicas[id].free_at(now)).min();
        own.unwrap_or(Instant::FAR).max(self.slot_estimate(now, Some(index), class, deadline))
    }

    /// Likewise, a slot alone: of the model `of`, or of one that does not stand here yet.
    pub fn slot_estimate(&self, now: Instant, of: Option<ModelIndex>, class: Class, deadline: Deadline) -> Instant {
        let mut others = ServiceTime::ZERO;
        for (other, model) in self.models() {
            if Some(other) == of || model.lanes.is_empty() {
                continue;
            }
            if model.backlog.is_ahead_of(class, deadline.0) {
                others += model.backlog.work;
            } else {
                let rows = Pool::rows_ahead(model, class, deadline);
                if rows > 0 {
                    others += model.work(rows, model.steady);
                }
            }
        }
        self.slot_free_at(now) + others.scaled(1.0 / f64::from(self.slots))
    }

    /// When `rows` more rows of a model would be done, were its own work taken up at `start`; `alone`: in a batch of their own.
    pub fn finish_estimate(
        &self,
        start: Instant,
        index: ModelIndex,
        class: Class,
        deadline: Deadline,
        rows: usize,
        alone: bool,
    ) -> Instant {
        let model = self.model(index);
        let ahead = Pool::rows_ahead(model, class, deadline);
        let batch = model.steady;
        // The last batch runs as one; those before it are shared by the replicas.
        let last = if alone { rows } else { (ahead + rows - 1) % batch + 1 };
        let before = ahead + rows - last;
        start + model.work(before, batch).scaled(1.0 / model.parallel()) + model.takes(last)
    }

    /// Whether nothing but the profile of its model is in the way of a row that would be late: the model has nothing to do.
    pub fn is_late_alone(&self, now: Instant, index: ModelIndex, query: &Query) -> bool {
        let model = self.model(index);
        let idle = model.lanes.is_empty() && model.free as usize == model.replicas.len();
        idle && query.rows == 1 && query.deadline.missed_by(now + model.takes(1))
    }

    /// When a query that comes may be said to be done, were its model's work taken up at `start`.
    pub fn promise(&self, now: Instant, start: Instant, index: ModelIndex, query: &Query) -> Instant {
        let rows = query.rows as usize;
        let finish = self.finish_estimate(start, index, query.class, query.deadline, rows, !query.mergeable);
        self.model(index).promise(now, finish, query.class, rows)
    }

    /// What holds after each step. Where assertions of debug builds are on, all that is kept in step is worked out anew from the
    /// rows and replicas themselves, another way than it is kept.
    pub fn check(&self) {
        assert!(self.busy <= self.slots, "more batches than slots");
        assert!(self.tickets.len() <= WAITING_MAX, "more rows wait than may");
        if cfg!(debug_assertions) {
            let running = self.replicas.iter().filter(|(_, replica)| replica.running.is_some());
            let running: BTreeSet<ReplicaId> = running.map(|(id, _)| *id).collect();
            assert_eq!(self.active.iter().copied().collect::<BTreeSet<_>>(), running);
            assert_eq!((self.busy as usize, self.active.len()), (running.len(), running.len()));
            assert_eq!(self.tickets.len(), self.models().map(|(index, model)| self.check_rows(index, model)).sum());
            self.models().for_each(|(index, model)| self.check_model(index, model));
            self.check_books();
        }
    }

    /// Triage has in its books what waits and counts.
    fn check_books(&self) {
        let Some(buffer) = &self.buffer else { return };
        let entries = self.models().flat_map(|(_, model)| model.lanes.values()).flat_map(Lane::iter);
        let stakes: Vec<Stake> = entries.filter_map(|entry| entry.stake).collect();
        let sum = |of: &dyn Fn(&&Stake) -> bool| {
            stakes.iter().filter(of).fold(ServiceTime::ZERO, |sum, stake| sum + stake.cost)
        };
        assert_eq!((buffer.len(), buffer.soft_work()), (stakes.len(), sum(&|stake| !stake.is_firm())));
        let gives_way = |stake: &&Stake| !stake.is_firm() || !stake.critical;
        assert_eq!(buffer.yields(Some(f64::INFINITY)), sum(&gives_way));
    }

    /// Rows stand in order, and each where its ticket says; how many there are.
    fn check_rows(&self, index: ModelIndex, model: &Model) -> usize {
        let mut waiting = 0;
        for (key, lane) in &model.lanes {
            assert!(!lane.is_empty(), "a lane has rows");
            let order = |entry: &Entry| (entry.key, entry.ticket);
            assert!(lane.iter().map(order).is_sorted_by(|a, b| a < b), "rows stand in order");
            assert_eq!(lane.rows(), lane.iter().map(|entry| entry.rows as usize).sum());
            for entry in lane.iter() {
                let place = Place { model: index, lane: *key, key: entry.key };
                assert_eq!(self.tickets.get(entry.ticket), Some(place), "{entry:?}");
                waiting += 1;
            }
        }
        waiting
    }

    fn check_model(&self, index: ModelIndex, model: &Model) {
        let stands = |replica: &&Replica| replica.model == index && !replica.leaving;
        let free = self.replicas.values().filter(stands).filter(|replica| replica.running.is_none()).count();
        assert_eq!((model.replicas.len(), model.free as usize), (self.replicas.values().filter(stands).count(), free));
        let least = self.replicas.values().filter(stands).map(|replica| replica.max_batch).min();
        assert_eq!(Some(model.max_batch), least, "a model has a replica, and batches that all of them take");
        assert_eq!(model.backlog, model.all_that_waits());
        // Somebody is late from then on, and nobody a nanosecond before.
        let heads =
            || model.lanes.values().filter_map(|lane| lane.iter().min_by_key(|entry| (entry.key, entry.ticket)));
        let bounded = |head: &&Entry| head.deadline != Deadline::NEVER;
        let late = |at: Instant| {
            let alone = |head: &Entry| model.profile.estimate(head.rows.max(1));
            heads().filter(bounded).any(|head| head.deadline.missed_by(at + alone(head)))
        };
        match model.hopeless {
            Instant::FAR => assert_eq!(heads().filter(bounded).count(), 0, "who waits is late some day"),
            hopeless => {
                let before = hopeless.as_nanos().checked_sub(1).map(Instant::from_nanos);
                assert!(late(hopeless) && !before.is_some_and(late), "{hopeless:?}");
            }
        }
    }
}

/// By when a query is to be done where there is a choice.
pub(super) fn due(now: Instant, query: &Query) -> Instant {
    let sooner = now + query.deadline.left(now) / FIRST_WITHIN;
    if query.bid.first && query.deadline != Deadline::NEVER { sooner } else { query.deadline.0 }
}

/// Takes a row that waits no longer out of the books of triage.
fn strike(buffer: &mut Option<Buffer>, entry: &Entry) {
    if let (Some(buffer), Some(stake)) = (buffer, entry.stake) {
        buffer.remove(entry.ticket, entry.due, stake);
    }
}

impl LaneKey {
    pub fn of(query: &Query) -> LaneKey {
        let alone = !query.mergeable;
        LaneKey { class: query.class, alone, shape: if alone { super::ShapeKey(0) } else { query.shape } }
    }
}
