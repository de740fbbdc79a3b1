//! Latency by batch size of one model on one kind of device, measured at load and corrected by what batches take.
//!
//! An estimate is a high quantile of the recent runs of a size, made monotone over sizes (Symphony), linear between
//! measured sizes and along the last slope beyond them. Clockwork (OSDI'20) takes the largest of ten runs; on a processor
//! that other work may preempt, one such accident would refuse queries for ten batches, so here it is the second largest.

use std::collections::{BTreeMap, VecDeque};

use crate::units::ServiceTime;

/// Runs kept per batch size: enough to see a change within ten batches, few enough to forget one slow run soon.
const RUNS_KEPT: usize = 10;
/// Batches of any size after which a run says nothing any more. A size that one slow run makes look dear is not chosen, so
/// nothing else would ever correct it; then what was measured at load counts again.
const STALE_AFTER: u64 = 256;

/// Forgiving goes no lower than this share of what was measured at load: who asks for the impossible again and again must not
/// talk the profile out of what it knows.
const LEAST_SHARE: f64 = 0.1;

/// Latency by batch size.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    measured: BTreeMap<u32, ServiceTime>,
    /// By size, each with the number of the batch that it was.
    runs: BTreeMap<u32, Runs>,
    batches: u64,
    /// Monotone estimates by measured size, kept in step with `runs`.
    points: Vec<(u32, ServiceTime)>,
}

/// The last runs of one size.
#[derive(Clone, Debug, PartialEq)]
struct Runs {
    kept: VecDeque<(u64, ServiceTime)>,
    /// Kept in step: a profile has many sizes, and a batch is of one of them.
    high: ServiceTime,
}

impl Runs {
    fn of(kept: VecDeque<(u64, ServiceTime)>) -> Runs {
        Runs { high: high(&kept), kept }
    }
}

impl Profile {
    /// A profile from measured points (batch size, time). Panics where there is none, or one of size 0.
    pub fn new(measured: &[(u32, ServiceTime)]) -> Profile {
        assert!(!measured.is_empty(), "a profile needs a measurement");
        assert!(measured.iter().all(|(batch, _)| *batch > 0), "a batch has rows");
        let runs = measured.iter().map(|(batch, time)| (*batch, Runs::of(VecDeque::from([(0, *time)])))).collect();
        let measured = measured.iter().copied().collect();
        let mut profile = Profile { measured, runs, batches: 0, points: Vec::new() };
        profile.rebuild();
        profile
    }

    /// Estimated time of a batch of `batch` rows; never less than that of a smaller one.
    pub fn estimate(&self, batch: u32) -> ServiceTime {
        estimate(&self.points, batch)
    }

    /// The largest batch of at most `most` rows that is estimated to take no longer than `span`; 0 where not even one row does.
    pub fn largest_within(&self, span: ServiceTime, most: u32) -> u32 {
        // Batches up to `low` fit, those from `high` on do not.
        let (mut low, mut high) = (0, most.saturating_add(1));
        if self.estimate(most) <= span {
            return most;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.estimate(middle) <= span {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The line α + β·b through the estimates of one row and of `most` rows: (time a batch costs however small it is, time a
    /// row adds).
    pub fn line(&self, most: u32) -> (ServiceTime, ServiceTime) {
        let one = self.estimate(1);
        if most <= 1 {
            return (one, ServiceTime::ZERO);
        }
        let row = self.estimate(most).saturating_sub(one).scaled(1.0 / f64::from(most - 1));
        (one.saturating_sub(row), row)
    }

    /// Takes in that a batch of `batch` rows took `took`. Whether any estimate is another now.
    pub fn observe(&mut self, batch: u32, took: ServiceTime) -> bool {
        self.batches += 1;
        let runs = self.runs.entry(batch).or_insert_with(|| Runs { kept: VecDeque::new(), high: ServiceTime::ZERO });
        if runs.kept.len() == RUNS_KEPT {
            runs.kept.pop_front();
        }
        runs.kept.push_back((self.batches, took));
        runs.high = high(&runs.kept);
        self.forget_stale();
        self.rebuild()
    }

    /// Monotone estimates at the measured sizes, ascending.
    pub fn points(&self) -> &[(u32, ServiceTime)] {
        &self.points
    }

    /// The profile of the same model on a device that runs at `pace` (at most 1) of this one's speed.
    pub fn slowed(&self, pace: f64) -> Profile {
        assert!(pace > 0.0 && pace <= 1.0, "a pace is above 0 and at most 1");
        let measured: Vec<_> = self.points.iter().map(|(batch, time)| (*batch, time.scaled(1.0 / pace))).collect();
        Profile::new(&measured)
    }

    /// Makes every estimate a little more hopeful: called when a query was refused although nothing else was in its way.
    /// Without it a few slow runs could refuse every query, and no batch would ever run to show that they are over. Only the
    /// smallest size, which such a query would run in, may be hoped to take less than was measured at load: or who asks for the
    /// impossible would have the batches of others planned too large.
    pub fn forgive(&mut self) {
        let smallest = self.runs.keys().next().copied();
        for (batch, runs) in &mut self.runs {
            let kept = &mut runs.kept;
            if kept.len() > 1 {
                let slowest = (0..kept.len()).max_by_key(|i| kept[*i].1).expect("there are runs");
                kept.remove(slowest);
            } else {
                let measured = self.measured.get(batch).copied().unwrap_or_default();
                let least = if smallest == Some(*batch) { measured.scaled(LEAST_SHARE) } else { measured };
                // What has run faster than was measured stays as it is.
                kept[0].1 = kept[0].1.min(kept[0].1.scaled(0.9).max(least));
            }
            runs.high = high(kept);
        }
        self.rebuild();
    }

    fn forget_stale(&mut self) {
        let Some(oldest) = self.batches.checked_sub(STALE_AFTER) else { return };
        let (measured, batches) = (&self.measured, self.batches);
        self.runs.retain(|batch, runs| {
            if runs.kept.front().is_none_or(|(number, _)| *number >= oldest) {
                return true;
            }
            while runs.kept.front().is_some_and(|(number, _)| *number < oldest) {
                runs.kept.pop_front();
            }
            if runs.kept.is_empty() {
                runs.kept.extend(measured.get(batch).map(|time| (batches, *time)));
            }
            runs.high = if runs.kept.is_empty() { ServiceTime::ZERO } else { high(&runs.kept) };
            !runs.kept.is_empty()
        });
    }

    /// Brings the estimates in step with the runs; whether any is another now.
    fn rebuild(&mut self) -> bool {
        let mut changed = self.points.len() != self.runs.len();
        self.points.resize(self.runs.len(), (0, ServiceTime::ZERO));
        let mut floor = ServiceTime::ZERO;
        for (point, (batch, runs)) in self.points.iter_mut().zip(&self.runs) {
            floor = floor.max(runs.high);
            changed |= *point != (*batch, floor);
            *point = (*batch, floor);
        }
        changed
    }
}

/// The largest of up to three runs, the second largest of more.
fn high(runs: &VecDeque<(u64, ServiceTime)>) -> ServiceTime {
    let (mut first, mut second) = (ServiceTime::ZERO, ServiceTime::ZERO);
    for (_, took) in runs {
        second = second.max((*took).min(first));
        first = first.max(*took);
    }
    if runs.len() > 3 { second } else { first }
}

/// The time of a batch of `batch` rows by `points` at ascending sizes, at least one: linear between them, and along the last
/// slope beyond them.
pub fn estimate(points: &[(u32, ServiceTime)], batch: u32) -> ServiceTime {
    let after = points.partition_point(|(size, _)| *size < batch);
    match (after.checked_sub(1).map(|i| points[i]), points.get(after)) {
        (_, Some(&(size, time))) if size == batch => time,
        (Some(low), Some(&high)) => along(low, high, batch),
        // Below the smallest measured size its time is an upper bound.
        (None, Some(&(_, time))) => time,
        (Some(last), None) => match after.checked_sub(2).map(|i| points[i]) {
            Some(before) => along(before, last, batch),
            // One point tells no slope: as if every row cost the same.
            None => last.1.scaled(f64::from(batch) / f64::from(last.0)),
        },
        (None, None) => panic!("a profile has a point"),
    }
}

/// The line through `a` and `b` at `batch`.
fn along(a: (u32, ServiceTime), b: (u32, ServiceTime), batch: u32) -> ServiceTime {
    let slope = b.1.saturating_sub(a.1).as_nanos() as f64 / f64::from(b.0 - a.0);
    a.1 + ServiceTime::from_nanos((slope * f64::from(batch - a.0)).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(n: u64) -> ServiceTime {
        ServiceTime::from_micros(n)
    }

    #[test]
    fn estimates_are_monotone_and_linear_between_points() {
        let profile = Profile::new(&[(1, us(10)), (2, us(8)), (4, us(30)), (8, us(50))]);
        assert_eq!(profile.estimate(1), us(10));
        assert_eq!(profile.estimate(2), us(10), "a larger batch is never estimated cheaper");
        assert_eq!(profile.estimate(3), us(20));
        assert_eq!(profile.estimate(6), us(40));
        assert_eq!(profile.estimate(12), us(70), "beyond the last point along its slope");
        assert_eq!(Profile::new(&[(4, us(40))]).estimate(1), us(40));
        assert_eq!(Profile::new(&[(4, us(40))]).estimate(8), us(80));
    }

    #[test]
    fn the_largest_batch_within_a_time_is_found() {
        let profile = Profile::new(&[(1, us(10)), (2, us(10)), (4, us(30)), (8, us(50))]);
        for span in 0..60 {
            let expected = (1..=8).filter(|b| profile.estimate(*b) <= us(span)).max().unwrap_or(0);
            assert_eq!(profile.largest_within(us(span), 8), expected, "{span}");
        }
        assert_eq!(profile.largest_within(us(1000), 3), 3);
        let (alpha, beta) = Profile::new(&[(1, us(60)), (8, us(130))]).line(8);
        assert_eq!((alpha, beta), (us(50), us(10)));
    }

    #[test]
    fn one_accident_is_forgotten_and_two_are_not() {
        let mut profile = Profile::new(&[(1, us(10))]);
        for _ in 0..4 {
            profile.observe(1, us(10));
        }
        profile.observe(1, us(90));
        assert_eq!(profile.estimate(1), us(10));
        profile.observe(1, us(90));
        assert_eq!(profile.estimate(1), us(90));
        for _ in 0..9 {
            profile.observe(1, us(12));
        }
        assert_eq!(profile.estimate(1), us(12), "nine later runs push them out");
    }

    #[test]
    fn refusals_on_an_idle_device_end_by_themselves() {
        let mut profile = Profile::new(&[(1, us(100))]);
        for _ in 0..20 {
            profile.forgive();
        }
        assert!(profile.estimate(1) < us(20));
        for _ in 0..100 {
            profile.forgive();
        }
        assert_eq!(profile.estimate(1), us(10), "but not for the impossible");
    }

    #[test]
    fn who_asks_for_the_impossible_has_no_batch_of_others_planned_too_large() {
        let mut profile = Profile::new(&[(1, us(100)), (8, us(500)), (16, us(900))]);
        profile.observe(16, us(2000));
        profile.observe(8, us(400));
        for _ in 0..200 {
            profile.forgive();
        }
        assert_eq!((profile.estimate(8), profile.estimate(16)), (us(400), us(900)));
    }

    #[test]
    fn a_size_that_nobody_runs_any_more_is_estimated_as_it_was_measured() {
        let mut profile = Profile::new(&[(1, us(10)), (2, us(12)), (8, us(20))]);
        profile.observe(2, us(80_000));
        profile.observe(3, us(90_000));
        assert_eq!((profile.estimate(2), profile.estimate(8)), (us(80_000), us(90_000)));
        for _ in 0..=STALE_AFTER + 1 {
            profile.observe(1, us(10));
        }
        assert_eq!((profile.estimate(2), profile.estimate(8)), (us(12), us(20)));
        assert_eq!(profile.points().len(), 3);
    }

    #[test]
    fn a_slower_device_scales_every_point() {
        let profile = Profile::new(&[(1, us(10)), (8, us(50))]).slowed(0.1);
        assert_eq!(profile.points(), [(1, us(100)), (8, us(500))]);
    }
}
