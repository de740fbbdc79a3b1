//! One device: which batch runs when.
//!
//! Queries of a model wait in one queue on the device and are bound to a replica only when they run. Events and the time
//! go in, [`Action`]s come out; the shell performs them in order. What to do is a policy's choice; see [`Policy`] for those that
//! there are. This module keeps what they share: queues, replicas, slots, profiles, and that each query gets exactly one
//! action that ends it.
//!
//! One query: [`Device::on_arrival`] counts it for the rate of its model and asks the policy whether it may wait. While a slot is
//! free the policy is asked for the next batch; it drops what cannot be served in time any more, names a batch, or says
//! until when to wait. The end of a batch corrects the profile and asks again.

mod batches;
mod distance;
mod gathering;
mod lane;
mod model;
mod places;
mod policy;
mod pool;
mod rate;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::ids::{ModelRef, ReplicaId, TicketId};
use crate::outcome::{Class, Rejection};
use crate::profile::Profile;
use crate::router::{Estimate, Told};
use crate::triage::{Bid, ByModel, Claim, Demand, Offer, Others, Price, Tenant};
use crate::units::{Deadline, Instant, ServiceTime};

use gathering::Gathering;
use lane::LaneKey;
use policy::{Decide, Next};
use pool::Pool;

pub use batches::Batches;
pub use policy::{BadPolicy, Policy};

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
    /// What it is worth to triage.
    pub bid: Bid,
}

/// Rows of which a device is asked when it would be done with them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inquiry {
    /// How many.
    pub rows: usize,
    /// Their importance.
    pub class: Class,
    /// When all of them are due: what is due later waits behind them.
    pub deadline: Deadline,
    /// What an answer is worth, where nobody has one in hand.
    pub firm: Option<f64>,
}

impl Inquiry {
    /// Of one row, of which it is not said what it is worth.
    pub fn of(class: Class, deadline: Deadline) -> Inquiry {
        Inquiry { rows: 1, class, deadline, firm: None }
    }
}

/// Why a batch has the size that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closed {
    /// It has as many rows as the model takes.
    Full,
    /// It has as many rows as the load asks for.
    Target,
    /// One more row would have made its most urgent member late, or a longer wait somebody.
    Deadline,
    /// Nothing else waited, and there was no reason to wait for more.
    Idle,
    /// It had waited for more rows as long as it may.
    Timer,
}

impl Closed {
    /// All reasons.
    pub const ALL: [Closed; 5] = [Closed::Full, Closed::Target, Closed::Deadline, Closed::Idle, Closed::Timer];

    /// The word in metrics and documents.
    pub const fn word(self) -> &'static str {
        match self {
            Closed::Full => "full",
            Closed::Target => "target",
            Closed::Deadline => "deadline",
            Closed::Idle => "idle",
            Closed::Timer => "timer",
        }
    }
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

/// What triage says of a row that comes.
enum Weighed {
    /// Nothing had to go for it.
    Fits,
    /// Something has gone for it.
    Pushed,
    /// It does not wait.
    Refused(Rejection),
}

/// The scheduler of one device with its slots.
#[derive(Debug)]
pub struct Device {
    pool: Pool,
    policy: Box<dyn Decide>,
    /// For the price.
    demand: Demand,
    gathering: Gathering,
    /// Reused between events.
    dropped: Vec<TicketId>,
}

impl Device {
    /// A device that runs `slots` (at least 1) batches at once, by `policy`.
    pub fn new(slots: u32, policy: Policy) -> Device {
        assert!(slots > 0, "a device has a slot");
        let policy = policy.build();
        Device {
            pool: Pool::new(slots, policy.order(), policy.triages()),
            policy,
            demand: Demand::new(),
            gathering: Gathering::default(),
            dropped: Vec::new(),
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
        assert!(!self.pool.replicas.contains_key(&id), "replica {id} stands here already");
        self.pool.add_replica(now, id, model, profile, max_batch);
        self.dispatch(now, out);
    }

    /// A replica goes. What waits stays for its siblings and is rejected where there are none; a batch in progress keeps
    /// its slot until [`Device::on_batch_done`].
    pub fn remove_replica(&mut self, now: Instant, id: ReplicaId, out: &mut Vec<Action>) {
        self.account(now);
        let waited = self.pool.retire(id);
        out.extend(waited.into_iter().map(|ticket| Action::Reject { ticket, why: Rejection::NoReplica }));
        self.dispatch(now, out);
    }

    /// The actor of a replica is gone with its batch: frees the slot at once.
    pub fn lose_replica(&mut self, now: Instant, id: ReplicaId, out: &mut Vec<Action>) {
        self.account(now);
        self.pool.end(id);
        self.remove_replica(now, id, out);
    }

    /// Rows of one call arrive together: all are queued or refused before the device is offered any.
    pub fn on_arrival(&mut self, now: Instant, model: &ModelRef, queries: &[Query], out: &mut Vec<Action>) {
        let Some(index) = self.pool.index(model) else {
            out.extend(queries.iter().map(|query| Action::Reject { ticket: query.ticket, why: Rejection::NoReplica }));
            return;
        };
        // Rows of one call run together as a rule: what other models have ahead of them is looked up once.
        let mut known: Option<(Class, Deadline, Instant)> = None;
        let mut forgiven = false;
        self.account(now);
        for query in queries {
            let span = query.deadline.0.as_nanos().saturating_sub(now.as_nanos());
            self.pool.model_mut(index).asked(now, span as f64);
            let admitted = if self.policy.admits_by_estimate() {
                let turn = self.policy.turn(now, self.pool.model(index), query);
                let start = match known {
                    Some((class, deadline, start)) if (class, deadline) == (query.class, turn) => start,
                    _ => self.pool.start_estimate(now, index, query.class, turn),
                };
                known = Some((query.class, turn, start));
                match self.weigh(now, start, index, query, out) {
                    // What has gone for it was ahead of it, or in its way.
                    Weighed::Pushed => {
                        known = None;
                        let start = self.pool.start_estimate(now, index, query.class, turn);
                        self.admit(now, start, index, query, &mut forgiven)
                    }
                    Weighed::Fits => self.admit(now, start, index, query, &mut forgiven),
                    Weighed::Refused(why) => Err(why),
                }
            } else {
                Ok(())
            };
            match admitted.and_then(|()| self.make_room(query, out)) {
                Ok(()) => self.pool.insert(now, index, query),
                Err(why) => out.push(Action::Reject { ticket: query.ticket, why }),
            }
        }
        self.dispatch(now, out);
    }

    /// A batch ended after `took` of slot time.
    pub fn on_batch_done(&mut self, now: Instant, id: ReplicaId, took: ServiceTime, out: &mut Vec<Action>) {
        self.account(now);
        let (index, rows, left) = self.pool.end(id).expect("a batch ends once, on a replica that stands here");
        if !left {
            let model = self.pool.model_mut(index);
            if rows <= model.max_batch {
                // What came as one query with more rows than any batch says nothing about batches.
                model.observe(rows, took);
            }
            model.distance.on_kept(rows, model.takes(1));
            self.policy.on_done(self.pool.model(index), index, rows, took);
        }
        self.dispatch(now, out);
    }

    /// Answers wait so long for the threads that they go to: see [`gathering`].
    pub fn on_answers_wait(&mut self, span: Duration) {
        self.gathering.set(span);
    }

    /// The caller of a waiting row is gone.
    pub fn on_cancel(&mut self, _now: Instant, ticket: TicketId, _out: &mut Vec<Action>) {
        self.pool.remove(ticket);
        self.pool.check();
    }

    /// A timer that was asked for fires: what waited on purpose may run, and what can no longer be in time is dropped, so
    /// that its caller hears it now.
    pub fn on_wake(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.account(now);
        self.dispatch(now, out);
    }

    /// When rows of `model` would be done if they came now: behind what goes before them here, and before what has more time than they have.
    /// `None` where no replica of it stands here. They share batches with rows of this `shape`, if with any.
    pub fn estimate_finish(
        &self,
        now: Instant,
        model: &ModelRef,
        asked: Inquiry,
        shape: impl FnOnce() -> Option<ShapeKey>,
    ) -> Option<Estimate> {
        let Inquiry { rows, class, deadline, firm } = asked;
        let index = self.pool.index(model)?;
        let start = self.pool.start_estimate(now, index, class, deadline);
        let finish = self.pool.finish_estimate(start, index, class, deadline, rows.max(1), false);
        let finish = self.pool.model(index).promise(now, finish, class, rows.max(1));
        let busy = f64::from(self.pool.busy) / f64::from(self.pool.slots);
        let calm = self.demand.is_calm(now, busy);
        let model = self.pool.model(index);
        let alone = model.takes(rows.max(1)).as_duration();
        let waits = !model.lanes.is_empty();
        let joins = waits && shape().is_some_and(|shape| !model.rows_alike(shape).is_multiple_of(model.steady));
        let begins = if joins { now } else { now + finish.since(now).saturating_sub(alone) };
        let yields = self.yields(firm).as_duration();
        let spare = self.demand.spare(now, busy);
        Some(Estimate { yields, calm, begins, spare, ..Estimate::of(now, finish, alone) })
    }

    /// When a slot would be free, if it came now, for a row that is due at `deadline` and whose model does not stand here yet; where nobody
    /// has an answer in hand for it, one is worth `firm`.
    pub fn estimate_start(&self, now: Instant, class: Class, deadline: Deadline, firm: Option<f64>) -> Estimate {
        let start = self.pool.slot_estimate(now, None, class, deadline);
        let yields = self.yields(firm).as_duration().min(start.since(now));
        Estimate { yields, ..Estimate::of(now, start, Duration::ZERO) }
    }

    /// What a home of another node is told after rows of `model`: how long one that came now with that claim would wait, were it to share a batch
    /// with those that do, and what slot time is worth to it. No wait where no replica of it stands here.
    pub fn told(&mut self, now: Instant, model: &ModelRef, claim: Claim, firm: Option<f64>) -> Told {
        let nothing = Told::nothing(now, self.price(now, model, claim));
        let asked = Inquiry { firm, ..Inquiry::of(claim.class, claim.deadline) };
        self.estimate_finish(now, model, asked, || None).map_or(
            nothing,
            |Estimate { finish, alone, yields, .. }| Told {
                wait: finish.since(now).saturating_sub(alone),
                yields,
                ..nothing
            },
        )
    }

    /// What a second of slot time is worth now to a row of `model`: nothing where there is room, and where nothing is weighed.
    pub fn price(&mut self, now: Instant, model: &ModelRef, claim: Claim) -> Price {
        self.account(now);
        let Some(fill) = self.pool.fill(now, claim.deadline.0) else { return Price::NOTHING };
        let clears = self.demand.price(now, self.pool.slots, fill, claim.tenant);
        let index = self.pool.index(model).filter(|_| fill > 0.0);
        // Rows are let in by what they take here, and gates compare with what they count.
        let floor = |index| self.pool.longer(index, self.pool.row_cost(index)) * self.pool.floor(now, index, claim);
        Price { clears, floor: index.map_or(0.0, floor).min(Price::dearest()) }
    }

    /// A gate has weighed a row and found that running `model` for it is worth `value`, whether it sends it here or not.
    pub fn on_weighed(&mut self, now: Instant, model: &ModelRef, value: f64, tenant: Tenant) {
        if let Some(index) = self.pool.index(model) {
            let cost = self.pool.mean_cost(index);
            // It takes what it takes, and stands where its gate will compare: at its value a second as that counts them.
            let value = self.pool.longer(index, cost) * value;
            self.demand.weighed(now, cost, value, tenant);
            self.pool.model_mut(index).weighed.add(now, cost, value);
        }
    }

    /// What homes of this node ask of the models that stand here, for whoever adds it up.
    pub fn asked(&self, now: Instant) -> ByModel {
        self.pool.models().map(|(_, model)| (model.name.clone(), model.weighed.asked(now))).collect()
    }

    /// What homes of other nodes ask of models; `share` says which part of what is asked of a model falls to this device.
    pub fn on_others(&mut self, now: Instant, asked: &ByModel, share: impl Fn(&ModelRef) -> f64) {
        let here = self
            .pool
            .models()
            .filter_map(|(_, model)| Some((model.weighed.asked(now), asked.get(&model.name)?, share(&model.name))));
        let others = Others::of(here);
        self.demand.on_others(now, others);
    }

    /// How much sooner a slot would be free if all that can be pushed out were: see [`crate::triage::Buffer::yields`].
    pub fn yields(&self, firm: Option<f64>) -> ServiceTime {
        self.pool.yields(firm).scaled(1.0 / f64::from(self.pool.slots))
    }

    /// Rows that wait, by model, in no order that matters.
    pub fn waiting(&self) -> impl Iterator<Item = (&ModelRef, usize)> {
        self.pool.models().map(|(_, model)| (&model.name, model.rows()))
    }

    /// Rows of a model that wait.
    pub fn queued(&self, model: &ModelRef) -> usize {
        self.pool.index(model).map_or(0, |index| self.pool.model(index).rows())
    }

    /// Batches that run.
    pub fn running(&self) -> usize {
        self.pool.running().count()
    }

    /// Estimated work that waits, over all models.
    pub fn backlog(&self) -> ServiceTime {
        self.pool.models().fold(ServiceTime::ZERO, |sum, (_, model)| sum + model.backlog.work)
    }

    /// The profile of a replica's model, as corrected by what its batches took.
    pub fn profile(&self, id: ReplicaId) -> Option<&Profile> {
        let replica = self.pool.replicas.get(&id).filter(|replica| !replica.leaving)?;
        Some(&self.pool.model(replica.model).profile)
    }

    /// Slots have been used as they are since the last event.
    fn account(&mut self, now: Instant) {
        self.demand.was_busy(now, f64::from(self.pool.busy) / f64::from(self.pool.slots));
    }

    /// Makes room for a row by pushing out what is worth less for its time, where triage is asked for; or refuses it, where it is
    /// worth less itself than what it would push out or make late.
    fn weigh(&mut self, now: Instant, start: Instant, index: usize, query: &Query, out: &mut Vec<Action>) -> Weighed {
        let Some(stake) = self.pool.stake(now, index, query) else { return Weighed::Fits };
        let soft = !stake.is_firm();
        if !soft {
            self.demand.firm(now, stake.cost.scaled(self.pool.model(index).on_average));
            if self.pool.is_firm_for(query.bid) {
                return Weighed::Fits;
            }
        }
        let finish = self.pool.promise(now, start, index, query);
        let short = ServiceTime::from(finish.since(query.deadline.0)).scaled(f64::from(self.pool.slots));
        self.dropped.clear();
        let offer = self.pool.offer(now, query, stake, short, &mut self.dropped);
        let pushed = !self.dropped.is_empty();
        for ticket in self.dropped.drain(..) {
            self.pool.remove(ticket);
            out.push(Action::Reject { ticket, why: Rejection::Outbid });
        }
        match offer {
            // Nothing is in the way but its own profile, which may be wrong: whoever admits finds that out.
            Offer::Out if soft && self.pool.is_late_alone(now, index, query) => Weighed::Fits,
            Offer::Out if soft => Weighed::Refused(Rejection::Outbid),
            _ if pushed => Weighed::Pushed,
            _ => Weighed::Fits,
        }
    }

    /// Whether a row may wait: it is refused where the estimate says that it will be late.
    fn admit(
        &mut self,
        now: Instant,
        start: Instant,
        index: usize,
        query: &Query,
        forgiven: &mut bool,
    ) -> Result<(), Rejection> {
        if !query.deadline.missed_by(self.pool.promise(now, start, index, query)) {
            return Ok(());
        }
        // It may be wrong, and without a batch nothing would ever show it.
        let alone = self.pool.is_late_alone(now, index, query);
        let model = self.pool.model_mut(index);
        if alone && !query.deadline.missed_by(now) && !std::mem::replace(forgiven, true) {
            model.forgive();
        }
        Err(Rejection::TooLate)
    }

    /// Full: something less important, or as important and due later, makes room, or this one goes.
    fn make_room(&mut self, query: &Query, out: &mut Vec<Action>) -> Result<(), Rejection> {
        if self.pool.is_full() {
            let victim = self.pool.victim(query).ok_or(Rejection::QueueFull)?;
            self.pool.remove(victim);
            out.push(Action::Reject { ticket: victim, why: Rejection::QueueFull });
        }
        Ok(())
    }

    /// Asks the policy for batches as long as a slot is free.
    fn dispatch(&mut self, now: Instant, out: &mut Vec<Action>) {
        let mut wake: Option<Instant> = None;
        loop {
            if self.policy.drops_late() {
                self.drop_late(now, out);
            }
            if self.pool.busy == self.pool.slots {
                break;
            }
            if self.policy.gathers()
                && let Some(until) = self.gathering.until(now, self.pool.models().map(|(_, model)| model))
            {
                self.gathering.keep(now);
                wake = Some(until);
                break;
            }
            let next = self.policy.next(now, &mut self.pool, &mut self.dropped);
            out.extend(self.dropped.drain(..).map(|ticket| Action::Expire { ticket }));
            match next {
                Next::Run { model, lane, rows, closed } => {
                    let head = self.pool.model(model).lanes[&lane].front();
                    let kept = head.is_some_and(|head| self.gathering.kept(head.since));
                    let closed = if kept && closed == Closed::Idle { Closed::Timer } else { closed };
                    self.run(now, model, lane, rows, closed, out);
                }
                Next::Wait(until) => {
                    wake = Some(until);
                    break;
                }
                Next::Nothing => break,
            }
        }
        // What waits behind running batches is told when it is too late for it, not when a batch happens to end.
        if self.policy.drops_late()
            && let Some(hopeless) = self.first_hopeless()
        {
            wake = Some(wake.map_or(hopeless, |at| at.min(hopeless)));
        }
        out.extend(wake.map(Action::WakeAt));
        self.pool.check();
    }

    /// When the first of what waits can no longer be in time, even if it ran at once and alone.
    fn first_hopeless(&self) -> Option<Instant> {
        self.pool.models().map(|(_, model)| model.hopeless).min().filter(|at| *at != Instant::FAR)
    }

    /// Drops what cannot be in time even if it ran now and alone.
    fn drop_late(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.dropped.clear();
        for (_, model) in self.pool.models().filter(|(_, model)| model.hopeless <= now) {
            // By deadline, so that those that are late stand first, but for the few that bring many rows.
            model.late_heads(now, 1, &mut self.dropped);
        }
        for ticket in self.dropped.drain(..) {
            self.pool.expire(ticket);
            out.push(Action::Expire { ticket });
        }
    }

    fn run(&mut self, now: Instant, index: usize, lane: LaneKey, rows: usize, closed: Closed, out: &mut Vec<Action>) {
        let id = self.pool.free_replica(index).expect("a policy runs what has a free replica");
        let mut tickets = Vec::with_capacity(rows);
        let mut cost = self.pool.take(index, lane, rows, |_| true, &mut tickets);
        assert!(!tickets.is_empty() && (!lane.alone || tickets.len() == 1), "a batch has rows that may share it");
        // Rows of other classes that run with these cost little and free room for their own kind.
        if !lane.alone {
            let latest = now + self.pool.model(index).takes(rows);
            for class in Class::ALL.into_iter().filter(|class| *class != lane.class) {
                let in_time = |head: &lane::Entry| !head.deadline.missed_by(latest);
                let room = rows - tickets.len();
                cost += self.pool.take(index, LaneKey { class, ..lane }, room, in_time, &mut tickets);
            }
        }
        self.gathering.begins(now);
        let ends = now + self.pool.model(index).takes(cost as usize);
        self.pool.start(now, id, cost, ends);
        out.push(Action::Run { replica: id, tickets, closed });
    }
}
