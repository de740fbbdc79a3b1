//! weir's own policy: models in turn while there is slack, the earliest deadline first when there is little, what serves most
//! when not everybody can be in time, and early drop to a batch size derived from the load.
//!
//! **The load says how large batches have to be.** The cycle T* = Σα / (N·ρ − Σλβ) is the shortest time in which N slots can
//! serve every model once and keep up; λT* rows of a model arrive in it: its target batch. Heads that a batch of that size
//! would make late are dropped, because small batches for late heads make everybody after them late (Nexus's early drop,
//! with a target that follows the load).
//!
//! **Whose turn it is.** The model whose head waits longest, as long as everything that waits could be served by deadline with
//! more than a guard G of slack: so each model runs once a cycle with all that came meanwhile, and one with short
//! deadlines does not run more often, in small batches, than it has to. When less than G is left, the earliest deadline
//! runs. G is one batch in the way. A free slot never waits, but where answers would ([`super::super::gathering`]): what waiting gains on mixed deadlines (`scheduling.md` section
//! 15), turns gain too, without losing what comes in bursts, nor time at low load (measured in `benches/RESULTS.md`).
//!
//! **When not everybody can be in time,** the earliest deadline is no guide: it runs the small batch of one model while the
//! large one of another falls apart. A schedule that knows all arrivals runs, three times out of four, the batch that would
//! lose most rows by waiting; so the batch runs that serves most rows in its time, those that waiting would lose counted again.
//! That alone would starve whoever has few queries, and let one model's flood sweep away the others, so each model is certain
//! of a part of its fair share of the slots.

use std::ops::Range;

use crate::ids::TicketId;
use crate::outcome::Class;
use crate::units::{Deadline, Instant, ServiceTime};

use super::super::Query;
use super::super::lane::{Lane, LaneKey};
use super::super::pool::{Model, ModelIndex, Pool, due};
use super::super::rate::Decay;
use super::shares::level;
use super::{Decide, Next, closed, drop_heads, most};

/// Share of a device that the plan fills: the rest is for what the rates do not tell.
const UTILISATION: f64 = 0.85;

/// How much more slot time the load may take for the sake of those with the least time. Without this limit a few queries that
/// have hardly more than their own batch takes would have everybody served one by one.
const CAP_COSTS: f64 = 1.1;

/// Up to so much of the slots asked for, deadlines decide even where not everybody can be in time: it is a burst that will be
/// over, and the most are in time if each is served when it has to be.
const BEYOND: f64 = 1.1;

/// Part of its fair share of the slots that a model is certain of when not everybody can be in time. All of it would leave
/// nothing to choose where models ask for as much as each other: with three quarters most of what the choice gains is gone.
const CERTAIN: f64 = 0.5;

/// How long a batch that does not run now will wait, in batches of the others: one, and perhaps another one.
const WAITS: f64 = 1.5;

/// What a row counts that is lost if its batch waits, beside one that can run later.
const LOST_COUNTS: f64 = 3.0;

#[derive(Debug, Default)]
pub(super) struct Weir {
    /// By model number: the plan of this decision.
    plans: Vec<Plan>,
    /// By model number: queries a second, where any came of late.
    rates: Vec<Option<f64>>,
    candidates: Vec<Candidate>,
    /// Numbers of candidates, by when they are due.
    order: Vec<(Instant, TicketId, usize)>,
    /// Models of the candidates of the last decision, by deadline.
    turns: Vec<ModelIndex>,
    /// By model number: its candidates.
    own: Vec<Range<usize>>,
    /// When each slot is free, for the list schedule.
    slots: Vec<Instant>,
    /// Slots that each model asks for.
    asked: Vec<f64>,
}

/// What the load asks of batches of one model.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Rows that a batch should have to keep up.
    target: usize,
    /// Rows that no batch may exceed, for the sake of queries with less time, where the load allows that.
    cap: usize,
}

/// The batch that a lane could run now.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    deadline: Deadline,
    /// By when its head is to be done where there is a choice.
    due: Instant,
    ticket: TicketId,
    model: ModelIndex,
    lane: LaneKey,
    since: Instant,
    /// Rows that wait and may share the batch.
    available: usize,
    /// Of them, those that the batch takes.
    rows: usize,
    takes: ServiceTime,
    /// Whether its model has less of the slots than it is certain of; known where not everybody can be in time.
    short: bool,
    /// With one row more: whoever comes meanwhile joins.
    grown: ServiceTime,
}

impl Candidate {
    /// Rows that it serves, and those of them that are lost if it runs at `later`.
    fn serves(&self, model: &Model, later: Instant) -> (usize, usize) {
        let mut waiting = model.lanes[&self.lane].iter();
        if self.lane.alone {
            let head = waiting.next().expect("lanes are not empty");
            let rows = head.rows as usize;
            return (rows, if head.deadline.missed_by(later + self.takes) { rows } else { 0 });
        }
        let mut left = self.rows;
        while left > 0 && waiting.next().is_some_and(|head| head.deadline.missed_by(later + model.takes(left))) {
            left -= 1;
        }
        (self.rows, self.rows - left)
    }
}

impl Weir {
    /// Makes the plan of each model; returns the guard, in nanoseconds.
    fn plan(&mut self, now: Instant, pool: &Pool) -> f64 {
        let slots = f64::from(pool.slots);
        let (mut alphas, mut work) = (0.0, 0.0);
        // The least time that any active model leaves to a batch in its way.
        let mut allowance = f64::INFINITY;
        let decay = Decay::at(now);
        self.rates.clear();
        for (index, model) in pool.models() {
            self.rates.resize(index + 1, None);
            let Some(rate) = model.rate.per_second(&decay) else { continue };
            let (alpha, beta) = model.line;
            alphas += alpha;
            work += rate * beta / 1e9;
            self.rates[index] = Some(rate);
            allowance = allowance.min(model.rate.span() - model.takes(1).as_nanos() as f64);
        }
        let spare = slots * UTILISATION - work;
        let cycle = if spare > 0.0 { alphas / 1e9 / spare } else { f64::INFINITY };
        // Of N slots one is free N times as soon.
        let allowance = ServiceTime::from_nanos((allowance.max(0.0) * slots) as u64);
        self.plans.clear();
        // What the load takes in batches as it asks for them, and in batches that leave others their time.
        let (mut asked, mut kept) = (0.0, 0.0);
        for (index, model) in pool.models() {
            let cap = model.fits(allowance, model.max_batch as usize).max(1);
            let mut target = 1;
            if let Some(rate) = self.rates[index] {
                // Infinite where nothing is stable: then as many as can be.
                target = ((rate * cycle).round().min(f64::from(u32::MAX)) as usize).clamp(1, model.steady);
                let each = |rows: usize| rate * model.takes(rows).as_nanos() as f64 / 1e9 / rows as f64;
                asked += each(target);
                kept += each(target.min(cap));
            }
            self.plans.resize(index + 1, Plan { target, cap });
        }
        let affordable = kept <= (slots * UTILISATION).max(asked * CAP_COSTS);
        let mut blocking = ServiceTime::ZERO;
        for (index, model) in pool.models() {
            let Plan { target, cap } = &mut self.plans[index];
            if affordable {
                *target = (*target).min(*cap);
            } else {
                *cap = (*cap).max(*target);
            }
            if self.rates[index].is_some() {
                blocking = blocking.max(model.takes(*target));
            }
        }
        blocking.as_nanos() as f64
    }

    /// Finds what could run now; whether any head of it is too late for a batch of the size that its model should have.
    fn find_candidates(&mut self, now: Instant, pool: &Pool) -> bool {
        let mut late = false;
        self.candidates.clear();
        for (index, model) in pool.models().filter(|(_, model)| model.free > 0) {
            for (key, lane) in &model.lanes {
                let head = lane.front().expect("lanes are not empty");
                let target = model.profile.trim(self.plans[index].target.min(lane.len()));
                let alike = if key.alone { head.rows as usize } else { target };
                late |= head.deadline.missed_by(now + model.takes(alike));
                let available = if key.alone { 1 } else { with_siblings(model, *key) };
                let limit = most(model, *key, available).min(self.plans[index].cap);
                let fits = model.fits(ServiceTime::from(head.deadline.left(now)), limit).max(1);
                let rows = model.profile.trim(fits);
                let cost = if key.alone { head.rows as usize } else { rows };
                self.candidates.push(Candidate {
                    deadline: head.deadline,
                    due: head.due,
                    ticket: head.ticket,
                    model: index,
                    lane: *key,
                    since: head.since,
                    available,
                    rows,
                    takes: model.takes(cost),
                    short: false,
                    grown: model.takes(cost + 1),
                });
            }
        }
        late
    }

    /// Puts the candidates in order. Few of them have other heads than at the last decision, so each begins where it stood then, and
    /// has not far to go.
    fn order_candidates(&mut self) {
        let models = self.plans.len();
        self.own.clear();
        self.own.resize(models, 0..0);
        for (i, candidate) in self.candidates.iter().enumerate() {
            let own = &mut self.own[candidate.model];
            *own = if own.end == 0 { i..i + 1 } else { own.start..i + 1 };
        }
        self.order.clear();
        let stood = self.turns.drain(..).filter(|model| *model < models);
        for model in stood.chain(0..models) {
            for i in std::mem::take(&mut self.own[model]) {
                let candidate = &self.candidates[i];
                let entry = (candidate.due, candidate.ticket, i);
                let behind = self.order.iter().rev().take_while(|before| **before > entry).count();
                self.order.insert(self.order.len() - behind, entry);
            }
        }
        self.turns.extend(self.order.iter().map(|(.., i)| self.candidates[*i].model));
    }

    fn by_deadline(&self) -> impl Iterator<Item = &Candidate> {
        self.order.iter().map(|(_, _, i)| &self.candidates[*i])
    }

    /// Those that do not only run in the gaps, by deadline.
    fn firm(&self) -> impl Iterator<Item = &Candidate> {
        self.by_deadline().filter(|candidate| candidate.lane.class != Class::Sheddable)
    }

    /// The least slack in nanoseconds when all firm candidates that are `among` run one after the other on the slots, by
    /// deadline, each grown by a row; infinite where there are none.
    fn slack(&mut self, now: Instant, pool: &Pool, among: impl Fn(&Candidate) -> bool) -> f64 {
        let mut slots = std::mem::take(&mut self.slots);
        slots.clear();
        slots.extend(pool.running().map(|replica| replica.free_at(now)));
        slots.resize(pool.slots as usize, now);
        let mut least = f64::INFINITY;
        for candidate in self.firm().filter(|candidate| among(candidate)) {
            let slot = slots.iter_mut().min().expect("a device has a slot");
            *slot = *slot + candidate.grown;
            least = least.min(candidate.deadline.0.as_nanos() as f64 - slot.as_nanos() as f64);
        }
        self.slots = slots;
        least
    }

    /// Whose turn it is when not everybody can be in time: who is due first of those that have less than they are certain of,
    /// where they are pressed, else what serves most.
    fn in_need(&mut self, now: Instant, pool: &Pool, guard: f64) -> Option<&Candidate> {
        self.find_short(now, pool);
        if self.slack(now, pool, |candidate| candidate.short) <= guard {
            return self.firm().find(|candidate| candidate.short);
        }
        let (count, sum) =
            self.firm().fold((0.0, 0.0), |(count, sum), c| (count + 1.0, sum + c.takes.as_nanos() as f64));
        let later = now + ServiceTime::from_nanos((WAITS * sum / count) as u64);
        let mut best: Option<(f64, &Candidate)> = None;
        for candidate in self.firm() {
            let (served, lost) = candidate.serves(pool.model(candidate.model), later);
            let worth = (served - lost) as f64 + LOST_COUNTS * lost as f64;
            let rate = worth / candidate.takes.as_nanos().max(1) as f64;
            if best.is_none_or(|(most, _)| rate > most) {
                best = Some((rate, candidate));
            }
        }
        best.map(|(_, candidate)| candidate)
    }

    /// Finds the candidates whose models have less of the slots than they are certain of.
    fn find_short(&mut self, now: Instant, pool: &Pool) {
        let asked = pool.models().map(|(index, model)| self.rates[index].map_or(0.0, |rate| asked(model, rate)));
        self.asked.clear();
        self.asked.extend(asked);
        let certain = CERTAIN * level(BEYOND * f64::from(pool.slots), self.asked.iter().copied());
        let decay = Decay::at(now);
        for candidate in &mut self.candidates {
            let has = pool.model(candidate.model).has.per_second(&decay).unwrap_or(0.0);
            candidate.short = has < certain;
        }
    }

    /// Something critical that `chosen` would make late goes before it.
    fn before_less_important(&self, now: Instant, pool: &Pool, chosen: Candidate) -> Candidate {
        if chosen.lane.class == Class::Critical || pool.slots - pool.busy > 1 {
            return chosen;
        }
        let after = now + chosen.takes;
        let late = self.firm().find(|candidate| {
            candidate.lane.class == Class::Critical && candidate.deadline.missed_by(after + candidate.takes)
        });
        late.copied().unwrap_or(chosen)
    }
}

impl Decide for Weir {
    fn admits_by_estimate(&self) -> bool {
        true
    }

    fn triages(&self) -> bool {
        true
    }

    fn gathers(&self) -> bool {
        true
    }

    /// That of the first of its batch, where a backlog is served in batches of the steady size.
    fn turn(&self, now: Instant, model: &Model, query: &Query) -> Deadline {
        if query.bid.first {
            return Deadline(due(now, query));
        }
        let lane = LaneKey::of(query);
        let Some(waiting) = model.lanes.get(&lane).filter(|_| !lane.alone) else { return query.deadline };
        let before_batch = waiting.rows_before(query.deadline.0) / model.steady * model.steady;
        waiting.get(before_batch).map_or(query.deadline, |first| first.deadline.min(query.deadline))
    }

    fn next(&mut self, now: Instant, pool: &mut Pool, dropped: &mut Vec<TicketId>) -> Next {
        let blocking = self.plan(now, pool);
        if self.find_candidates(now, pool) {
            let plans = &self.plans;
            drop_heads(now, pool, dropped, |index, _| plans[index].target);
            self.find_candidates(now, pool);
        }
        self.order_candidates();
        let blocking = self.candidates.iter().map(|c| c.grown.as_nanos() as f64).fold(blocking, f64::max);
        // On many slots a batch in the way is on one of them only.
        let guard = blocking * (1.0 + 1.0 / f64::from(pool.slots)) / 2.0;
        let slack = self.slack(now, pool, |_| true);
        let turn = if slack < 0.0 {
            self.in_need(now, pool, guard)
        } else if slack <= guard {
            self.firm().next()
        } else {
            // First answers come first: what may follow needs the time.
            self.firm().min_by_key(|c| (c.due == c.deadline.0, c.since, c.ticket))
        };
        let chosen = match turn.copied() {
            Some(chosen) => self.before_less_important(now, pool, chosen),
            // What is sheddable runs when nobody else can.
            None => match self.by_deadline().next() {
                Some(sheddable) => *sheddable,
                None => return Next::Nothing,
            },
        };
        let model = pool.model(chosen.model);
        Next::Run {
            model: chosen.model,
            lane: chosen.lane,
            rows: chosen.rows,
            closed: closed(model, chosen.lane, chosen.available, chosen.rows),
        }
    }
}

/// Slots that a model keeps busy with `rate` queries a second, each batch with all that come while its first can wait for it:
/// b = λ·(span − l(b)).
fn asked(model: &Model, rate: f64) -> f64 {
    let ((alpha, beta), per_nano) = (model.line, rate / 1e9);
    let rows = per_nano * (model.rate.span() - alpha) / (1.0 + per_nano * beta);
    let rows = rows.clamp(1.0, f64::from(model.max_batch));
    per_nano * (alpha + beta * rows) / rows
}

/// Rows of one model and shape that may share a batch with those of a lane.
fn with_siblings(model: &Model, lane: LaneKey) -> usize {
    if model.lanes.len() == 1 {
        return model.lanes.values().map(Lane::len).sum();
    }
    let lanes = Class::ALL.into_iter().filter_map(|class| model.lanes.get(&LaneKey { class, ..lane }));
    lanes.map(Lane::len).sum()
}
