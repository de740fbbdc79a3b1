//! How long a batch of few rows waits for more, where its answers would wait anyway.
//!
//! Slots and the threads that read calls and send answers may share cores. A slot that takes up each row as it comes then computes in the
//! smallest and dearest batches there are, and what they cost beside their rows is taken from the threads by which rows come and answers
//! leave: from then on those wait there, where nothing that decides about queries sees them. So batches begin no sooner after each other than
//! answers have waited for their threads of late. Where threads have time for them that is next to nothing; where they do not, batches become
//! larger and cheaper until they have.
//!
//! Only the next rows end such a wait on time (timers are coarser), so there has to be reason to expect some. No row is kept longer than that
//! span. As many as a batch takes, or as are worth its α, wait for nobody, nor does what is urgent.

use std::time::Duration;

use crate::outcome::Class;
use crate::units::Instant;

use super::model::Model;
use super::rate::Decay;

/// Longest wait, which a stall of the machine would else decide.
const MOST: Duration = Duration::from_millis(1);
/// Part of the time of whoever is due first that it may take.
const PART: u32 = 16;
/// Rows that have to be expected meanwhile.
const EXPECTED: f64 = 4.0;
/// A batch is worth its α where its rows take so many times as long.
const WORTH: f64 = 8.0;

/// When the last batch began, and how much later the next one may at the earliest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gathering {
    last: Instant,
    span: Duration,
    /// When something was kept waiting last, since the last batch.
    kept: Option<Instant>,
}

impl Gathering {
    /// Answers wait so long for their threads by now.
    pub fn set(&mut self, span: Duration) {
        self.span = span.min(MOST);
    }

    /// A batch begins.
    pub fn begins(&mut self, now: Instant) {
        (self.last, self.kept) = (now, None);
    }

    /// What waits is kept waiting.
    pub fn keep(&mut self, now: Instant) {
        self.kept = Some(now);
    }

    /// Whether a row that has waited `since` then was kept waiting.
    pub fn kept(&self, since: Instant) -> bool {
        self.kept.is_some_and(|kept| since <= kept)
    }

    /// Until when what waits is kept waiting for more; `None` where it is not.
    pub fn until<'a>(&self, now: Instant, models: impl Iterator<Item = &'a Model>) -> Option<Instant> {
        let until = self.last + self.span;
        if now >= until {
            return None;
        }
        let decay = Decay::at(now);
        let (mut waits, mut rate) = (false, 0.0);
        for model in models {
            rate += model.rate.per_second(&decay).unwrap_or(0.0);
            let (alpha, beta) = model.line;
            for (key, lane) in &model.lanes {
                let (rows, most) = (lane.rows(), model.steady.min(model.max_batch as usize));
                // What is left beside the batch itself, with the rows that may come.
                let slack = |left: Duration| left.saturating_sub(model.takes(most).as_duration());
                let hurries = lane.front().is_some_and(|head| {
                    head.since + self.span <= now || until.since(now) > slack(head.deadline.left(now)) / PART
                });
                let enough = rows as f64 * beta >= WORTH * alpha || rows >= most;
                if hurries || enough || key.alone || key.class == Class::Critical {
                    return None;
                }
                waits = true;
            }
        }
        (waits && rate * self.span.as_secs_f64() >= EXPECTED).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Action, Closed, Device, Policy, Query, ShapeKey};
    use super::*;
    use crate::ids::{ModelRef, ReplicaId, TicketId};
    use crate::profile::Profile;
    use crate::triage::Bid;
    use crate::units::{Deadline, ServiceTime};

    fn query(ticket: u64, now: Instant, left: Duration) -> Query {
        let (ticket, deadline) = (TicketId(ticket), Deadline(now + left));
        Query { ticket, deadline, class: Class::Default, shape: ShapeKey(0), mergeable: true, rows: 1, bid: Bid::PLAIN }
    }

    /// Rows for a second, one each `every`, with `left` until their deadline, by a model of 20 us + 7 us a row whose answers wait for `span`:
    /// batches of the second half, when the rate is known, rows in time, the longest wait of a row for its batch, and the batches that had
    /// waited for more.
    fn run(every: Duration, left: Duration, span: Duration) -> (usize, usize, Duration, usize) {
        let at = |rows: u64| ServiceTime::from_micros(20 + 7 * rows);
        let profile = Profile::new(&[(1, at(1)), (64, at(64))]);
        let mut device = Device::new(1, Policy::Weir);
        let (model, mut actions) = (ModelRef::parse("m@1").unwrap(), Vec::new());
        device.add_replica(Instant::ZERO, ReplicaId(0), model.clone(), profile.clone(), 64, &mut actions);
        device.on_answers_wait(span);
        let mut came = BTreeMap::new();
        let (mut batches, mut in_time, mut longest, mut timers) = (0, 0, Duration::ZERO, 0);
        let (mut ends, mut wake): (Option<(Instant, Instant)>, Option<Instant>) = (None, None);
        let mut next = 0u64;
        loop {
            let arrives = Instant::ZERO + every * (next as u32 + 1);
            let arrives = (arrives < Instant::from_millis(1000)).then_some(arrives);
            let Some(now) = [arrives, ends.map(|(at, _)| at), wake].into_iter().flatten().min() else { break };
            if wake == Some(now) {
                wake = None;
                device.on_wake(now, &mut actions);
            } else if let Some((_, began)) = ends.take_if(|(at, _)| *at == now) {
                device.on_batch_done(now, ReplicaId(0), ServiceTime::from(now.since(began)), &mut actions);
            } else {
                let (ticket, deadline) = (TicketId(next), Deadline(now + left));
                came.insert(ticket, (now, deadline));
                next += 1;
                device.on_arrival(now, &model, &[query(next - 1, now, left)], &mut actions);
            }
            for action in actions.drain(..) {
                match action {
                    Action::Run { tickets, closed, .. } => {
                        let end = now + profile.estimate(tickets.len() as u32);
                        batches += usize::from(now >= Instant::from_millis(500));
                        timers += usize::from(closed == Closed::Timer);
                        for (came, deadline) in tickets.iter().map(|ticket| came.remove(ticket).unwrap()) {
                            longest = longest.max(now.since(came));
                            in_time += usize::from(!deadline.missed_by(end));
                        }
                        ends = Some((end, now));
                    }
                    Action::WakeAt(at) => wake = Some(wake.map_or(at, |known| known.min(at))),
                    Action::Reject { .. } | Action::Expire { .. } => panic!("there is time for all"),
                }
            }
        }
        assert!(came.is_empty(), "every row runs");
        (batches, in_time, longest, timers)
    }

    const fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn batches_begin_as_far_apart_as_answers_wait() {
        let (alone, in_time, _, timers) = run(us(50), us(50_000), Duration::ZERO);
        assert_eq!((in_time, timers), (19_999, 0));
        assert!(alone > 7500, "as they come: {alone}");
        let (gathered, in_time, longest, timers) = run(us(50), us(50_000), us(500));
        assert_eq!(in_time, 19_999);
        assert!((950..1100).contains(&gathered) && timers > 950, "ten together: {gathered}, {timers}");
        assert!(longest <= us(500), "{longest:?}");
        let (_, _, longest, _) = run(us(50), us(50_000), us(80_000));
        assert!(longest <= MOST, "after a stall too: {longest:?}");
        let (batches, ..) = run(us(20), us(50_000), us(1000));
        assert!(batches > 950, "23 rows are worth a batch, and wait for nobody: {batches}");
    }

    #[test]
    fn no_row_is_kept_longer_than_that_by_batches_of_other_models() {
        let us = |us: u64| ServiceTime::from_micros(us);
        let profile = Profile::new(&[(1, us(27)), (64, us(468))]);
        let mut device = Device::new(4, Policy::Weir);
        let (mut actions, span) = (Vec::new(), Duration::from_micros(500));
        let models: Vec<ModelRef> = (0..8).map(|i| ModelRef::parse(&format!("m{i}@1")).unwrap()).collect();
        for (i, model) in models.iter().enumerate() {
            device.add_replica(Instant::ZERO, ReplicaId(i as u64), model.clone(), profile.clone(), 64, &mut actions);
        }
        device.on_answers_wait(span);
        let (mut came, mut ends) = (BTreeMap::new(), BTreeMap::new());
        let mut longest = Duration::ZERO;
        // A row every 20 us, of each model by turns: each has one in 160 us.
        for i in 0..25_000u64 {
            let now = Instant::from_micros(20 * i);
            while let Some((&(at, replica), &began)) = ends.first_key_value().filter(|((at, _), _)| *at <= now) {
                ends.remove(&(at, replica));
                device.on_batch_done(at, replica, ServiceTime::from(at.since(began)), &mut actions);
                take(&mut actions, at, &profile, &mut came, &mut ends, &mut longest);
            }
            came.insert(TicketId(i), now);
            device.on_arrival(now, &models[i as usize % 8], &[query(i, now, Duration::from_millis(50))], &mut actions);
            take(&mut actions, now, &profile, &mut came, &mut ends, &mut longest);
        }
        assert!(longest > span / 2 && longest < span + Duration::from_micros(200), "{longest:?}");
    }

    fn take(
        actions: &mut Vec<Action>,
        now: Instant,
        profile: &Profile,
        came: &mut BTreeMap<TicketId, Instant>,
        ends: &mut BTreeMap<(Instant, ReplicaId), Instant>,
        longest: &mut Duration,
    ) {
        for action in actions.drain(..) {
            if let Action::Run { replica, tickets, .. } = action {
                ends.insert((now + profile.estimate(tickets.len() as u32), replica), now);
                for ticket in tickets {
                    *longest = (*longest).max(now.since(came.remove(&ticket).unwrap()));
                }
            }
        }
    }

    #[test]
    fn a_row_that_has_little_slack_has_its_slot_at_once() {
        let us = ServiceTime::from_micros;
        let mut device = Device::new(2, Policy::Weir);
        let (light, heavy) = (ModelRef::parse("light@1").unwrap(), ModelRef::parse("heavy@1").unwrap());
        let mut actions = Vec::new();
        let of = |id, alpha: u64| (ReplicaId(id), Profile::new(&[(1, us(alpha + 7)), (8, us(alpha + 56))]));
        let (id, profile) = of(1, 20);
        device.add_replica(Instant::ZERO, id, light.clone(), profile, 8, &mut actions);
        let (id, profile) = of(2, 20_000);
        device.add_replica(Instant::ZERO, id, heavy.clone(), profile, 8, &mut actions);
        device.on_answers_wait(Duration::from_millis(1));
        for i in 0..10_000u64 {
            let now = Instant::from_micros(100 * i);
            device.on_arrival(now, &light, &[query(i, now, Duration::from_millis(50))], &mut actions);
            for action in std::mem::take(&mut actions) {
                if let Action::Run { replica, .. } = action {
                    device.on_batch_done(now, replica, us(27), &mut actions);
                }
            }
        }
        let now = Instant::from_micros(1_000_010);
        actions.clear();
        device.on_arrival(now, &heavy, &[query(10_000, now, Duration::from_micros(20_500))], &mut actions);
        let runs =
            |action: &Action| matches!(action, Action::Run { tickets, .. } if tickets.contains(&TicketId(10_000)));
        assert!(actions.iter().any(runs), "{actions:?}");
    }

    #[test]
    fn who_is_alone_or_has_little_time_does_not_wait() {
        for (every, left) in [(us(2000), us(50_000)), (us(150), us(50_000)), (us(50), us(2000))] {
            let (.., longest, timers) = run(every, left, us(500));
            assert!(longest < us(180) && timers < 20, "{every:?} {left:?}: {longest:?} {timers}");
        }
    }
}
