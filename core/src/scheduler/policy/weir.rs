//! weir's own policy: models in turn while there is slack, the earliest deadline first when there is not, and early drop to a
//! batch size derived from the load.
//!
//! **The load says how large batches have to be.** The cycle T* = Σα / (N·ρ − Σλβ) is the shortest time in which N slots can
//! serve every model once and keep up; λT* rows of a model arrive in it: its target batch. Heads that a batch of that size
//! would make late are dropped, because small batches for late heads make everybody after them late (Nexus's early drop,
//! with a target that follows the load).
//!
//! **Whose turn it is.** The model whose head waits longest, as long as everything that waits could be served by deadline with
//! more than a guard G of slack: so each model runs once a cycle with all that came meanwhile, and one with short
//! deadlines does not run more often, in small batches, than it has to. When less than G is left, the earliest deadline
//! runs. G is one batch in the way. A free slot never waits: what waiting gains on mixed deadlines (`scheduling.md` section
//! 15), turns gain too, without losing what comes in bursts, nor time at low load (measured in `benches/RESULTS.md`).

use crate::ids::TicketId;
use crate::outcome::Class;
use crate::units::{Deadline, Instant, ServiceTime};

use super::super::lane::{Lane, LaneKey};
use super::super::pool::{Model, ModelIndex, Pool};
use super::super::rate::Decay;
use super::{Decide, Next, closed, drop_heads, most};

/// Share of a device that the plan fills: the rest is for what the rates do not tell.
const UTILISATION: f64 = 0.85;

/// How much more slot time the load may take for the sake of those with the least time. Without this limit a few queries that
/// have hardly more than their own batch takes would have everybody served one by one.
const CAP_COSTS: f64 = 1.1;

#[derive(Debug, Default)]
pub(super) struct Weir {
    /// By model number: the plan of this decision.
    plans: Vec<Plan>,
    /// By model number: queries a second, where any came of late.
    rates: Vec<Option<f64>>,
    candidates: Vec<Candidate>,
    /// Numbers of candidates, by deadline.
    order: Vec<(Deadline, TicketId, usize)>,
    /// When each slot is free, for the list schedule.
    slots: Vec<Instant>,
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
    ticket: TicketId,
    model: ModelIndex,
    lane: LaneKey,
    since: Instant,
    /// Rows that wait and may share the batch.
    available: usize,
    /// Of them, those that the batch takes.
    rows: usize,
    takes: ServiceTime,
    /// With one row more: whoever comes meanwhile joins.
    grown: ServiceTime,
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

    /// Finds what could run now.
    fn find_candidates(&mut self, now: Instant, pool: &Pool) {
        self.candidates.clear();
        for (index, model) in pool.models().filter(|(_, model)| model.free > 0) {
            for (key, lane) in &model.lanes {
                let head = lane.front().expect("lanes are not empty");
                let available = if key.alone { 1 } else { with_siblings(model, *key) };
                let limit = most(model, *key, available).min(self.plans[index].cap);
                let rows = model.fits(ServiceTime::from(head.deadline.left(now)), limit).max(1);
                let cost = if key.alone { head.rows as usize } else { rows };
                self.candidates.push(Candidate {
                    deadline: head.deadline,
                    ticket: head.ticket,
                    model: index,
                    lane: *key,
                    since: head.since,
                    available,
                    rows,
                    takes: model.takes(cost),
                    grown: model.takes(cost + 1),
                });
            }
        }
        self.order.clear();
        self.order.extend(self.candidates.iter().enumerate().map(|(i, c)| (c.deadline, c.ticket, i)));
        self.order.sort_unstable();
    }

    fn by_deadline(&self) -> impl Iterator<Item = &Candidate> {
        self.order.iter().map(|(_, _, i)| &self.candidates[*i])
    }

    /// Those that do not only run in the gaps, by deadline.
    fn firm(&self) -> impl Iterator<Item = &Candidate> {
        self.by_deadline().filter(|candidate| candidate.lane.class != Class::Sheddable)
    }

    /// The least slack in nanoseconds when all firm candidates run one after the other on the slots, by deadline, each grown
    /// by a row; infinite where there are none.
    fn slack(&mut self, now: Instant, pool: &Pool) -> f64 {
        let mut slots = std::mem::take(&mut self.slots);
        slots.clear();
        slots.extend(pool.running().map(|replica| replica.free_at(now)));
        slots.resize(pool.slots as usize, now);
        let mut least = f64::INFINITY;
        for candidate in self.firm() {
            let slot = slots.iter_mut().min().expect("a device has a slot");
            *slot = *slot + candidate.grown;
            least = least.min(candidate.deadline.0.as_nanos() as f64 - slot.as_nanos() as f64);
        }
        self.slots = slots;
        least
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

    fn next(&mut self, now: Instant, pool: &mut Pool, dropped: &mut Vec<TicketId>) -> Next {
        let blocking = self.plan(now, pool);
        let plans = &self.plans;
        drop_heads(now, pool, dropped, |index, _| plans[index].target);
        self.find_candidates(now, pool);
        let blocking = self.candidates.iter().map(|c| c.grown.as_nanos() as f64).fold(blocking, f64::max);
        // On many slots a batch in the way is on one of them only.
        let guard = blocking * (1.0 + 1.0 / f64::from(pool.slots)) / 2.0;
        let pressed = self.slack(now, pool) <= guard;
        let turn = if pressed { self.firm().next() } else { self.firm().min_by_key(|c| (c.since, c.ticket)) };
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

/// Rows of one model and shape that may share a batch with those of a lane.
fn with_siblings(model: &Model, lane: LaneKey) -> usize {
    if model.lanes.len() == 1 {
        return model.lanes.values().map(Lane::len).sum();
    }
    let lanes = Class::ALL.into_iter().filter_map(|class| model.lanes.get(&LaneKey { class, ..lane }));
    lanes.map(Lane::len).sum()
}
