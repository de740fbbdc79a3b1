//! The law of one device: a row that does not fit before its deadline, or makes another one late, pushes out what is worth
//! least for its time, or stays out itself.
//!
//! Work is kept by deadline. A set of rows can be served in time when, for every deadline, what is due by then fits between now
//! and then on the slots (earliest deadline first is optimal). A row that comes is added; where the set no longer fits up to
//! some deadline, the rows of least density that are due by then go, until it fits: greed over the sets that can be served is
//! optimal for rows of equal cost (they are a matroid), and online loses a few percent (`scheduling.md` section 16).
//!
//! A row with no answer in hand is firm: it is never pushed out, and pushes out whatever is not. Deadlines are kept in some
//! sixty to a hundred steps, so a row counts as due up to a step late; a batch ends later than its first row could anyway.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::TicketId;
use crate::units::{Instant, ServiceTime};

/// The finest step of deadlines, as a power of two of nanoseconds: a millisecond.
const FINEST: u32 = 20;
/// Steps that lie ahead at most; with more, steps get twice as long.
const STEPS_MAX: u64 = 64;

/// What a waiting row is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stake {
    /// Slot time that it takes, in batches of the size that a backlog leads to.
    pub cost: ServiceTime,
    /// What running it adds, for a row that has an answer in hand: finite, at least 0. `None`: it has none, and is firm.
    pub value: Option<f64>,
    /// Whether only what is critical itself may push it out.
    pub critical: bool,
}

impl Stake {
    /// Value a second of slot time; infinite for what is firm.
    pub fn density(self) -> f64 {
        self.value.map_or(f64::INFINITY, |value| value / (self.cost.as_nanos().max(1) as f64 / 1e9))
    }

    /// Orders by density within what is critical and what is not: of numbers that are not negative, the bits do.
    fn rank(self) -> (bool, u64) {
        (self.critical, self.density().max(0.0).to_bits())
    }
}

/// What becomes of a row that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It fits, once those named are gone.
    In,
    /// It does not: what would have to go for it is worth more, or firm.
    Out,
}

/// Rows that wait on a device, by deadline and density.
#[derive(Debug)]
pub struct Buffer {
    slots: u32,
    /// Steps are 2^`step` nanoseconds long.
    step: u32,
    steps: BTreeMap<u64, Due>,
    len: usize,
    /// Slot time of what can be pushed out.
    soft_work: ServiceTime,
}

/// Rows that are due within one step.
#[derive(Debug, Default)]
struct Due {
    work: ServiceTime,
    rows: u32,
    /// Those that can be pushed out, the least dense first.
    soft: BTreeSet<((bool, u64), TicketId, ServiceTime)>,
}

impl Buffer {
    /// An empty one, of a device with `slots` slots.
    pub fn new(slots: u32) -> Buffer {
        Buffer { slots, step: FINEST, steps: BTreeMap::new(), len: 0, soft_work: ServiceTime::ZERO }
    }

    /// Rows that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Slot time of what can be pushed out.
    pub fn soft_work(&self) -> ServiceTime {
        self.soft_work
    }

    /// Asks whether a row may wait that is due at `deadline`, where the batches in progress need `running` more of slot time in
    /// all. What has to go for it is added to `out`, and still counts until it is removed. `short`: slot time that is wanting
    /// before `deadline` whatever is kept here says, as whoever knows of batches estimates it.
    pub fn offer(
        &self,
        now: Instant,
        running: ServiceTime,
        deadline: Instant,
        stake: Stake,
        short: ServiceTime,
        out: &mut Vec<TicketId>,
    ) -> Offer {
        let own = deadline.as_nanos() >> self.step;
        let mut cut = Cut { stake, from: out.len(), freed: 0, out };
        let mut work = running.as_nanos() + stake.cost.as_nanos();
        work += self.steps.range(..=own).map(|(_, due)| due.work.as_nanos()).sum::<u64>();
        let mut fits = cut.meet(&self.steps, own, self.wants(now, own, work).max(short.as_nanos()));
        for (step, due) in self.steps.range(own + 1..) {
            if !fits {
                break;
            }
            work += due.work.as_nanos();
            fits = cut.meet(&self.steps, *step, self.wants(now, *step, work));
        }
        if fits { Offer::In } else { cut.give_up() }
    }

    /// How full it is for a row that is due at `deadline`, and would take its time from everything that is due later: the largest
    /// share of the slots' time that is asked for until then, or until any later deadline.
    pub fn fill(&self, now: Instant, running: ServiceTime, deadline: Instant) -> f64 {
        let own = deadline.as_nanos() >> self.step;
        let share = |work: u64, until: u64| {
            let time = until.saturating_sub(now.as_nanos()).saturating_mul(u64::from(self.slots));
            work as f64 / time.max(1) as f64
        };
        let mut work = running.as_nanos() + self.steps.range(..=own).map(|(_, due)| due.work.as_nanos()).sum::<u64>();
        let mut fill = share(work, deadline.as_nanos());
        for (step, due) in self.steps.range(own + 1..) {
            work += due.work.as_nanos();
            fill = fill.max(share(work, (step + 1) << self.step));
        }
        fill
    }

    /// Slot time that is wanting for `work` to be done within a step.
    fn wants(&self, now: Instant, step: u64, work: u64) -> u64 {
        let end = (step + 1) << self.step;
        work.saturating_sub(end.saturating_sub(now.as_nanos()).saturating_mul(u64::from(self.slots)))
    }

    /// A row waits from now on.
    pub fn insert(&mut self, now: Instant, ticket: TicketId, deadline: Instant, stake: Stake) {
        self.widen(now, deadline);
        let due = self.steps.entry(deadline.as_nanos() >> self.step).or_default();
        due.work += stake.cost;
        due.rows += 1;
        if stake.value.is_some() {
            due.soft.insert((stake.rank(), ticket, stake.cost));
            self.soft_work += stake.cost;
        }
        self.len += 1;
    }

    /// A row that was inserted with this deadline and stake waits no longer.
    pub fn remove(&mut self, ticket: TicketId, deadline: Instant, stake: Stake) {
        let step = deadline.as_nanos() >> self.step;
        let due = self.steps.get_mut(&step).expect("it waits");
        due.work = due.work.saturating_sub(stake.cost);
        due.rows -= 1;
        if stake.value.is_some() {
            assert!(due.soft.remove(&(stake.rank(), ticket, stake.cost)), "it waits with this stake");
            self.soft_work = self.soft_work.saturating_sub(stake.cost);
        }
        if due.rows == 0 {
            self.steps.remove(&step);
        }
        self.len -= 1;
        if self.len == 0 {
            self.step = FINEST;
        }
    }

    /// Keeps the steps few: whoever comes walks over all of them.
    fn widen(&mut self, now: Instant, deadline: Instant) {
        while deadline.as_nanos().saturating_sub(now.as_nanos()) >> self.step >= STEPS_MAX {
            self.step += 1;
            for (step, due) in std::mem::take(&mut self.steps) {
                let wide = self.steps.entry(step >> 1).or_default();
                wide.work += due.work;
                wide.rows += due.rows;
                wide.soft.extend(due.soft);
            }
        }
    }
}

/// What has been chosen to go so far.
struct Cut<'a> {
    /// Of the row that comes: what goes is worth less for its time.
    stake: Stake,
    /// Where what was chosen begins in `out`.
    from: usize,
    freed: u64,
    out: &'a mut Vec<TicketId>,
}

impl Cut<'_> {
    /// Chooses what is due up to `last` and least dense, until `wanted` is free; whether that is possible. Steps are met in
    /// order, so what was chosen before is due before `last` too.
    fn meet(&mut self, steps: &BTreeMap<u64, Due>, last: u64, wanted: u64) -> bool {
        while self.freed < wanted {
            let chosen = &self.out[self.from..];
            let least = steps
                .range(..=last)
                .filter_map(|(_, due)| due.soft.iter().find(|(_, ticket, _)| !chosen.contains(ticket)))
                .min()
                .filter(|(rank, _, _)| *rank < self.stake.rank());
            let Some((_, ticket, cost)) = least else { return false };
            self.out.push(*ticket);
            self.freed += cost.as_nanos();
        }
        true
    }

    /// It does not fit. For a soft row nothing has to go, then. Where firm rows alone are too many, whatever is soft and due
    /// before them would only make them fewer.
    fn give_up(self) -> Offer {
        if self.stake.value.is_some() {
            self.out.truncate(self.from);
        }
        Offer::Out
    }
}
