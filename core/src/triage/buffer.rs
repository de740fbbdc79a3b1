//! The law of one device: a row that does not fit before its deadline, or makes another one late, pushes out what is worth
//! least for its time, or stays out itself.
//!
//! Work is kept by deadline. A set of rows can be served in time when, for every deadline, what is due by then fits between now
//! and then on the slots (earliest deadline first is optimal). A row that comes is added; where the set no longer fits up to
//! some deadline, the rows of least density that are due by then go, until it fits: greed over the sets that can be served is
//! optimal for rows of equal cost (they are a matroid), and online loses a few percent (`scheduling.md` section 16).
//!
//! A row with no answer in hand is firm: it pushes out whatever is not, and gives way only to what is firm as well and whose answers are
//! worth more. Deadlines are kept in some sixty to a hundred steps, so a row counts as due up to a step late; a batch ends later than
//! its first row could anyway.
//!
//! Weight is currency, not protection. A tenant with a share of the device is protected by occupancy (`scheduling.md` section 16): as long as what it
//! has waiting takes less than its share of the time until the deadline in question, nobody pushes that out, and what comes pushes out the
//! least of those who have more than theirs, whatever that is worth. What it does not use is lent, not lost.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::Bid;
use crate::ids::TicketId;
use crate::units::{Instant, ServiceTime};

/// The finest step of deadlines, as a power of two of nanoseconds: a millisecond.
const FINEST: u32 = 20;
/// Steps that lie ahead at most; with more, steps get twice as long.
const STEPS_MAX: u64 = 64;
/// Rows that are looked at for what a further one has to be worth. Most often one has to go; where far too much waits, gates need not know
/// by how much.
const LOOKED_AT: usize = 8;

/// What a waiting row is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stake {
    /// Slot time that it takes, in batches of the size that a backlog leads to.
    pub cost: ServiceTime,
    /// What it is worth, and to whom. Numbers are finite, and at least 0.
    pub bid: Bid,
    /// Whether only what is critical itself may push it out.
    pub critical: bool,
}

/// Rows in the order in which they go: those that are not critical before those that are, those with an answer in hand before firm ones, and
/// then by value a second of slot time, or firm ones by what an answer is worth. Of numbers that are not negative, the bits do.
type Rank = (bool, bool, u64);

impl Stake {
    fn rank(self) -> Rank {
        let seconds = self.cost.as_nanos().max(1) as f64 / 1e9;
        let number = self.bid.gain.map_or(self.bid.worth, |gain| gain / seconds);
        (self.critical, self.is_firm(), number.max(0.0).to_bits())
    }

    /// Whether nobody has an answer in hand for it.
    pub fn is_firm(self) -> bool {
        self.bid.gain.is_none()
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

/// Rows that wait on a device, by deadline and rank.
#[derive(Debug)]
pub struct Buffer {
    slots: u32,
    /// Steps are 2^`step` nanoseconds long.
    step: u32,
    steps: BTreeMap<u64, Due>,
    len: usize,
    /// Slot time of what has an answer in hand.
    soft_work: ServiceTime,
    /// Slot time of what is firm and not critical, by what an answer is worth (its bits, of numbers that are not negative).
    firm_work: BTreeMap<u64, ServiceTime>,
    /// What each tenant with a share has waiting, and its share.
    held: BTreeMap<u64, Held>,
    /// The least that an answer of a firm row is worth, of those that came since it was empty.
    least_worth: f64,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    rows: u32,
    work: u64,
    share: f64,
}

/// A row that waits: its rank, its cost, and the account of its tenant.
type Waiting = (Rank, TicketId, ServiceTime, u64);

/// Rows that are due within one step.
#[derive(Debug, Default)]
struct Due {
    work: ServiceTime,
    /// Those that go first first.
    rows: BTreeSet<Waiting>,
}

impl Buffer {
    /// An empty one, of a device with `slots` slots.
    pub fn new(slots: u32) -> Buffer {
        Buffer {
            slots,
            step: FINEST,
            steps: BTreeMap::new(),
            len: 0,
            soft_work: ServiceTime::ZERO,
            firm_work: BTreeMap::new(),
            held: BTreeMap::new(),
            least_worth: f64::INFINITY,
        }
    }

    /// Rows that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nothing can give way to a firm row of this bid, as far as that can be told at a glance.
    pub fn is_firm_for(&self, bid: Bid) -> bool {
        self.soft_work == ServiceTime::ZERO && bid.worth <= self.least_worth && bid.tenant.share <= 0.0
    }

    /// Slot time of what has an answer in hand.
    pub fn soft_work(&self) -> ServiceTime {
        self.soft_work
    }

    /// Slot time of what can give way to a row: what has an answer in hand, and where the row has none and an answer to it is worth `firm`, what
    /// is firm as well and worth less.
    pub fn yields(&self, firm: Option<f64>) -> ServiceTime {
        let less = firm.map(|worth| self.firm_work.range(..worth.max(0.0).to_bits()));
        less.into_iter().flatten().fold(self.soft_work, |sum, (_, work)| sum + *work)
    }

    /// Asks whether a row may wait that is due at `deadline`, where the batches in progress need `running` more of slot time in
    /// all. What has to go for it is added to `out`, and still counts until it is removed. `short`: slot time that is wanting
    /// before `deadline` whatever is kept here says, as whoever knows of batches estimates it. `due`: where it counts, which is before
    /// its deadline where it runs before others that are due later.
    #[allow(clippy::too_many_arguments)]
    pub fn offer(
        &self,
        now: Instant,
        running: ServiceTime,
        deadline: Instant,
        due: Instant,
        stake: Stake,
        short: ServiceTime,
        out: &mut Vec<TicketId>,
    ) -> Offer {
        match self.cut(now, running, deadline, due, stake, short, usize::MAX, out) {
            Some(cut) if cut.end == End::Fits => Offer::In,
            Some(cut) => cut.give_up(),
            None => Offer::Out,
        }
    }

    /// What has to go for a row, `most` at most, and whether it fits then; `None` where that is nothing, because it does not fit anyway.
    #[allow(clippy::too_many_arguments)]
    fn cut<'a>(
        &'a self,
        now: Instant,
        running: ServiceTime,
        deadline: Instant,
        due: Instant,
        stake: Stake,
        short: ServiceTime,
        most: usize,
        out: &'a mut Vec<TicketId>,
    ) -> Option<Cut<'a>> {
        let left = deadline.as_nanos().saturating_sub(now.as_nanos());
        // It takes longer than there is time: nothing has to go for it, for nothing that goes would help.
        if stake.cost.as_nanos() > left {
            return None;
        }
        let own = due.as_nanos() >> self.step;
        let time = left.saturating_mul(u64::from(self.slots));
        let mut cut = Cut {
            held: &self.held,
            time,
            stake,
            mine: stake.rank(),
            from: out.len(),
            freed: 0,
            soft_until: None,
            most,
            densest: 0.0,
            end: End::Fits,
            of_tenants: Vec::new(),
            out,
        };
        let mut work = running.as_nanos() + stake.cost.as_nanos();
        work += self.steps.range(..=own).map(|(_, due)| due.work.as_nanos()).sum::<u64>();
        // Whatever is due later than it has to fit behind it; it itself may as well be done by its deadline.
        let wants = if due < deadline { 0 } else { self.wants(now, own, work) };
        cut.end = cut.meet(&self.steps, deadline.as_nanos() >> self.step, wants.max(short.as_nanos()));
        for (step, due) in self.steps.range(own + 1..) {
            if cut.end != End::Fits {
                break;
            }
            work += due.work.as_nanos();
            cut.end = cut.meet(&self.steps, *step, self.wants(now, *step, work));
        }
        Some(cut)
    }

    /// What a second of a row with an answer in hand has to be worth for the row to be let in: more than the densest of those that would have to
    /// go for it because they are worth less. 0 where there is room, infinite where what is in the way does not go; where more than a few would
    /// have to go, what it has to be worth at least. Arguments are those of [`Buffer::offer`]; of `stake` all counts but its gain.
    pub fn floor(
        &self,
        now: Instant,
        running: ServiceTime,
        deadline: Instant,
        stake: Stake,
        short: ServiceTime,
    ) -> f64 {
        let stake = Stake { bid: Bid { gain: Some(f64::INFINITY), ..stake.bid }, ..stake };
        let mut out = Vec::new();
        match self.cut(now, running, deadline, deadline, stake, short, LOOKED_AT, &mut out) {
            Some(Cut { end: End::Fits | End::More, densest, .. }) => densest,
            _ => f64::INFINITY,
        }
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
        due.rows.insert((stake.rank(), ticket, stake.cost, stake.bid.tenant.account()));
        if stake.is_firm() {
            self.least_worth = self.least_worth.min(stake.bid.worth);
            if !stake.critical {
                *self.firm_work.entry(stake.bid.worth.max(0.0).to_bits()).or_default() += stake.cost;
            }
        } else {
            self.soft_work += stake.cost;
        }
        let tenant = stake.bid.tenant;
        if tenant.share > 0.0 {
            let held = self.held.entry(tenant.account()).or_insert(Held { rows: 0, work: 0, share: tenant.share });
            held.rows += 1;
            held.work += stake.cost.as_nanos();
            held.share = tenant.share;
        }
        self.len += 1;
    }

    /// A row that was inserted with this deadline and stake waits no longer.
    pub fn remove(&mut self, ticket: TicketId, deadline: Instant, stake: Stake) {
        let step = deadline.as_nanos() >> self.step;
        let due = self.steps.get_mut(&step).expect("it waits");
        due.work = due.work.saturating_sub(stake.cost);
        // As it had a share, or none, when it was inserted.
        let tenant = stake.bid.tenant.account();
        assert!(due.rows.remove(&(stake.rank(), ticket, stake.cost, tenant)), "it waits with this stake");
        if due.rows.is_empty() {
            self.steps.remove(&step);
        }
        if !stake.is_firm() {
            self.soft_work = self.soft_work.saturating_sub(stake.cost);
        } else if !stake.critical {
            let worth = stake.bid.worth.max(0.0).to_bits();
            // No work is booked where all who wait with this worth cost nothing.
            if let Some(work) = self.firm_work.get_mut(&worth) {
                *work = work.saturating_sub(stake.cost);
                if *work == ServiceTime::ZERO {
                    self.firm_work.remove(&worth);
                }
            }
        }
        if let Some(held) = self.held.get_mut(&tenant) {
            held.rows -= 1;
            held.work -= stake.cost.as_nanos();
            if held.rows == 0 {
                self.held.remove(&tenant);
            }
        }
        self.len -= 1;
        if self.len == 0 {
            self.step = FINEST;
            self.least_worth = f64::INFINITY;
        }
    }

    /// Keeps the steps few: whoever comes walks over all of them.
    fn widen(&mut self, now: Instant, deadline: Instant) {
        while deadline.as_nanos().saturating_sub(now.as_nanos()) >> self.step >= STEPS_MAX {
            self.step += 1;
            for (step, due) in std::mem::take(&mut self.steps) {
                let wide = self.steps.entry(step >> 1).or_default();
                wide.work += due.work;
                wide.rows.extend(due.rows);
            }
        }
    }
}

/// Where choosing what has to go for a row has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The row fits once they have gone.
    Fits,
    /// Nothing more gives way to it.
    Stays,
    /// As many were chosen as were to be looked at.
    More,
}

/// What has been chosen to go so far.
struct Cut<'a> {
    /// What tenants with a share have waiting.
    held: &'a BTreeMap<u64, Held>,
    /// Slot time until the deadline of the row that comes.
    time: u64,
    /// Of the row that comes: what goes is worth less for its time.
    stake: Stake,
    /// Its rank.
    mine: Rank,
    /// Where what was chosen begins in `out`.
    from: usize,
    freed: u64,
    /// Where the first firm one stands in `out`, if any was chosen.
    soft_until: Option<usize>,
    /// So many are chosen at most.
    most: usize,
    /// The most that a second of one of them is worth, of those that go because they are worth less.
    densest: f64,
    /// Whether it fits once they have gone.
    end: End,
    /// Of tenants with a share: what was chosen of theirs.
    of_tenants: Vec<(u64, u64)>,
    out: &'a mut Vec<TicketId>,
}

impl Cut<'_> {
    /// Chooses what is due up to `last` and least dense, until `wanted` is free; whether that is possible. Steps are met in
    /// order, so what was chosen before is due before `last` too.
    fn meet(&mut self, steps: &BTreeMap<u64, Due>, last: u64, wanted: u64) -> End {
        let (mine, own) = (self.mine, self.stake.bid.tenant.account());
        // Of each step the one that goes first; empty until they are looked for.
        let mut firsts: Vec<(&Due, Option<&Waiting>)> = Vec::new();
        let mut of_others = true;
        let least_of = |firsts: &[(&Due, Option<&Waiting>)]| {
            let known = firsts.iter().enumerate().filter_map(|(step, (_, first))| Some(((*first)?, step)));
            known.min().map(|(first, step)| (*first, step))
        };
        while self.freed < wanted {
            if self.out.len() - self.from >= self.most {
                return End::More;
            }
            let guarded = self.is_guarded();
            if firsts.is_empty() {
                // Within its share a tenant takes from others first.
                of_others = guarded;
                firsts.extend(steps.range(..=last).map(|(_, due)| (due, self.first_of(due, guarded, of_others))));
            }
            let mut least = least_of(&firsts);
            if least.is_none() && of_others {
                of_others = false;
                firsts.iter_mut().for_each(|(due, first)| *first = self.first_of(due, guarded, of_others));
                least = least_of(&firsts);
            }
            let Some((((critical, firm, density), ticket, cost, tenant), step)) = least else { return End::Stays };
            // What is critical goes before what is not, and a share is taken of others, whatever those are worth.
            let by_worth = !guarded || tenant == own;
            if by_worth && (critical, firm) == (mine.0, mine.1) {
                self.densest = self.densest.max(f64::from_bits(density));
            }
            if firm {
                self.soft_until.get_or_insert(self.out.len());
            }
            self.out.push(ticket);
            self.freed += cost.as_nanos();
            if self.held.contains_key(&tenant) {
                self.of_tenants.push((tenant, cost.as_nanos()));
            }
            if self.held.is_empty() {
                // Without tenants that have a share nothing that is chosen changes who gives way, but for the one chosen.
                let (due, _) = firsts[step];
                firsts[step].1 = self.first_of(due, guarded, of_others);
            } else {
                firsts.clear();
            }
        }
        End::Fits
    }

    /// Of what is due within a step, and has not been chosen, what goes first for the row that comes; only of other tenants, or of whomever.
    fn first_of<'b>(&self, due: &'b Due, guarded: bool, of_others: bool) -> Option<&'b Waiting> {
        let (mine, own, chosen) = (self.mine, self.stake.bid.tenant.account(), &self.out[self.from..]);
        // Those that go first stand first: behind the rank of the row none goes, unless it is guarded.
        let may = |(rank, ..): &&Waiting| guarded || *rank < mine;
        let goes = |(rank, ticket, _, tenant): &&Waiting| {
            !(of_others && *tenant == own) && self.gives_way(*rank, *tenant, guarded) && !chosen.contains(ticket)
        };
        due.rows.iter().take_while(may).find(goes)
    }

    /// Whether the one that comes is within the share of its tenant.
    fn is_guarded(&self) -> bool {
        let own = self.stake.bid.tenant;
        own.share > 0.0 && self.within(own.account(), own.share, self.stake.cost.as_nanos())
    }

    /// Whether a row of this rank and tenant gives way to the one that comes.
    fn gives_way(&self, rank: Rank, tenant: u64, guarded: bool) -> bool {
        let worth_less = rank < self.mine;
        if tenant == self.stake.bid.tenant.account() {
            return worth_less;
        }
        if self.held.get(&tenant).is_some_and(|held| self.within(tenant, held.share, 0)) {
            return false;
        }
        worth_less || guarded && (self.stake.critical || !rank.0)
    }

    /// Whether what a tenant has waiting, and `more`, takes no more than its share.
    fn within(&self, tenant: u64, share: f64, more: u64) -> bool {
        let gone: u64 = self.of_tenants.iter().filter(|(of, _)| *of == tenant).map(|(_, work)| work).sum();
        let work = self.held.get(&tenant).map_or(0, |held| held.work.saturating_sub(gone)) + more;
        work as f64 <= share * self.time as f64
    }

    /// It does not fit. For a soft row nothing has to go, then. Where firm rows alone are too many, whatever is soft and due
    /// before them would only make them fewer.
    fn give_up(self) -> Offer {
        let keep = if self.stake.is_firm() { self.soft_until.unwrap_or(self.out.len()) } else { self.from };
        self.out.truncate(keep);
        Offer::Out
    }
}
