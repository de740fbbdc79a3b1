//! Latency by batch size of one model on one kind of device, measured at load and corrected by what batches take.
//!
//! An estimate is a high quantile of recent runs ([`Recent`]), made monotone over sizes (Symphony), linear between measured
//! sizes and along the last slope beyond them. Each measured size has its window. A batch of a size in between counts for both
//! neighbours, each time as much as the curve says that they differ: under load no two batches need have the same size, and what
//! one of them tells is how far the curve is off there. Clockwork (OSDI'20) takes the largest of the last ten runs of a size.

use std::collections::BTreeMap;

use crate::recent::Recent;
use crate::units::ServiceTime;

/// Batches of any size after which a run says nothing any more. A size that one slow run makes look dear is not chosen, so
/// nothing else would ever correct it; then what was measured at load counts again.
const STALE_AFTER: u64 = 256;

/// Runs of a size, that at load included, from which on it is known how long it takes: one accident among so many is passed over.
const KNOWN_AFTER: usize = 4;

/// A size is dear that takes so many times as long a row as the cheapest below it: within that, fewer and larger batches are as good, and noise in a
/// profile has no say.
const DEAR: f64 = 1.1;

/// Forgiving goes no lower than this share of what was measured at load: who asks for the impossible again and again must not
/// talk the profile out of what it knows.
const LEAST_SHARE: f64 = 0.1;

/// Latency by batch size.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// By size, ascending.
    sizes: Vec<Size>,
    batches: u64,
    /// Monotone estimates by size, kept in step with the runs.
    points: Vec<(u32, ServiceTime)>,
    /// Which of them are dear.
    dear: Vec<bool>,
    /// Whether any of them is, as every decision asks.
    any_dear: bool,
    /// The only sizes that batches have, once they are filled up; empty: any.
    steps: Vec<u32>,
}

/// A size that was measured at load.
#[derive(Clone, Debug, PartialEq)]
struct Size {
    measured: ServiceTime,
    /// Of this size, and of those up to its neighbours as if they had been of this one.
    runs: Recent,
}

impl Size {
    fn new(measured: ServiceTime) -> Size {
        let mut runs = Recent::default();
        runs.push(0, measured);
        Size { measured, runs }
    }
}

impl Profile {
    /// A profile from measured points (batch size, time). Panics where there is none, or one of size 0.
    pub fn new(measured: &[(u32, ServiceTime)]) -> Profile {
        assert!(!measured.is_empty(), "a profile needs a measurement");
        assert!(measured.iter().all(|(batch, _)| *batch > 0), "a batch has rows");
        let measured: BTreeMap<u32, ServiceTime> = measured.iter().copied().collect();
        let sizes = measured.values().map(|time| Size::new(*time)).collect();
        let points: Vec<_> = measured.into_iter().collect();
        let dear = vec![false; points.len()];
        let mut profile = Profile { sizes, batches: 0, points, dear, any_dear: false, steps: Vec::new() };
        profile.rebuild();
        profile
    }

    /// Of a model whose batches are filled up to one of these sizes, ascending: any number of rows takes what the next size takes.
    pub fn stepped(measured: &[(u32, ServiceTime)], steps: &[u32]) -> Profile {
        let mut points = Vec::new();
        let mut before = 0;
        for step in steps {
            let time = estimate(measured, *step);
            points.extend([(before + 1, time), (*step, time)]);
            before = *step;
        }
        if points.is_empty() {
            Profile::new(measured)
        } else {
            Profile { steps: steps.to_vec(), ..Profile::new(&points) }
        }
    }

    /// How many of `rows` rows are best run together now. Less than all of them where a smaller size serves more a second: than the one that all
    /// of them would have to be filled up to, or than so many rows, where that is dear.
    pub fn trim(&self, rows: usize) -> usize {
        if self.steps.is_empty() {
            return if self.any_dear { self.cheap(rows) } else { rows };
        }
        let below = self.steps.iter().map(|step| *step as usize).take_while(|step| *step < rows).last();
        let time = |rows: usize| u128::from(self.estimate(rows as u32).as_nanos());
        below.filter(|below| *below as u128 * time(rows) > rows as u128 * time(*below)).unwrap_or(rows)
    }

    /// The most of `rows` rows that are not dear together.
    fn cheap(&self, rows: usize) -> usize {
        let below = self.points.partition_point(|(size, _)| (*size as usize) < rows);
        // More rows than any that were measured are as dear as the most of those.
        let known = self.is_known(below.min(self.points.len() - 1));
        let whole = (rows as u32, self.estimate(rows as u32));
        if !known || row_nanos(whole) <= DEAR * least(&self.points[..below]) {
            return rows;
        }
        let cheap = self.points[..below].iter().zip(&self.dear).rfind(|(_, dear)| !**dear);
        cheap.map_or(rows, |((size, _), _)| *size as usize)
    }

    /// Whether the measured size of this number has been seen to run.
    fn is_known(&self, at: usize) -> bool {
        self.sizes[at].runs.len() >= KNOWN_AFTER
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

    /// How long so many rows take on one slot that has nothing else to do, in seconds: in one batch, or several of the largest measured size.
    pub fn span(&self, rows: f64) -> f64 {
        let (most, largest) = self.points.last().expect("a profile has a point");
        let batches = rows / f64::from(*most);
        let time = if batches <= 1.0 { self.estimate(rows.ceil() as u32) } else { largest.scaled(batches) };
        time.as_nanos() as f64 / 1e9
    }

    /// Slot time of a row in seconds, in the batch of a measured size where it costs least.
    pub fn row_seconds(&self) -> f64 {
        let rows = self.points.iter().map(|(rows, time)| time.as_nanos() as f64 / 1e9 / f64::from(*rows));
        rows.fold(f64::INFINITY, f64::min)
    }

    /// The same in a batch that takes no longer than `span`, if only of one row; `None` where not even that does.
    pub fn row_seconds_within(&self, span: ServiceTime) -> Option<f64> {
        let (most, _) = *self.points.last().expect("a profile has a point");
        let fits = self.largest_within(span, most);
        // Between two sizes time a row only falls or only rises.
        let sizes =
            self.points.iter().map(|(rows, _)| *rows).filter(|rows| *rows < fits).chain((fits > 0).then_some(fits));
        sizes.map(|rows| row_nanos((rows, self.estimate(rows))) / 1e9).min_by(f64::total_cmp)
    }

    /// Takes in that a batch of `batch` rows took `took`. Whether any estimate is another now.
    pub fn observe(&mut self, batch: u32, took: ServiceTime) -> bool {
        self.batches += 1;
        let expected = self.estimate(batch);
        let after = self.points.partition_point(|(size, _)| *size < batch);
        let measured = self.points.get(after).is_some_and(|(size, _)| *size == batch);
        let before = if measured { after } else { after.saturating_sub(1) };
        for i in before..=after.min(self.points.len() - 1) {
            let (_, time) = self.points[i];
            self.sizes[i].runs.push(self.batches, in_proportion(took, time, expected));
        }
        self.forget_stale();
        self.rebuild()
    }

    /// Monotone estimates at the measured sizes, ascending.
    pub fn points(&self) -> &[(u32, ServiceTime)] {
        &self.points
    }

    /// The profile of the same model on a device that runs at `pace` times this one's speed.
    pub fn paced(&self, pace: f64) -> Profile {
        assert!(pace > 0.0 && pace.is_finite(), "a pace is above 0");
        let measured: Vec<_> = self.points.iter().map(|(batch, time)| (*batch, time.scaled(1.0 / pace))).collect();
        Profile { steps: self.steps.clone(), ..Profile::new(&measured) }
    }

    /// Makes every estimate a little more hopeful: called when a query was refused although nothing else was in its way.
    /// Without it a few slow runs could refuse every query, and no batch would ever run to show that they are over. Only the
    /// smallest size, which such a query would run in, may be hoped to take less than was measured at load: or who asks for the
    /// impossible would have the batches of others planned too large.
    pub fn forgive(&mut self) {
        for (i, size) in self.sizes.iter_mut().enumerate() {
            if size.runs.len() > 1 {
                size.runs.forgive();
                continue;
            }
            let known = size.runs.high();
            let least = if i == 0 { size.measured.scaled(LEAST_SHARE) } else { size.measured };
            // What has run faster than was measured stays as it is.
            let hoped = known.min(known.scaled(0.9).max(least));
            size.runs = Recent::default();
            size.runs.push(self.batches, hoped);
        }
        self.rebuild();
    }

    fn forget_stale(&mut self) {
        let Some(oldest) = self.batches.checked_sub(STALE_AFTER) else { return };
        for size in &mut self.sizes {
            size.runs.forget_before(oldest);
            if size.runs.is_empty() {
                size.runs.push(self.batches, size.measured);
            }
        }
    }

    /// Brings the estimates in step with the runs; whether any is another now.
    fn rebuild(&mut self) -> bool {
        let mut changed = false;
        let mut floor = ServiceTime::ZERO;
        for ((_, time), size) in self.points.iter_mut().zip(&self.sizes) {
            floor = floor.max(size.runs.high());
            changed |= *time != floor;
            *time = floor;
        }
        for at in 0..self.points.len() {
            let dear = self.is_known(at) && row_nanos(self.points[at]) > DEAR * least(&self.points[..at]);
            changed |= self.dear[at] != dear;
            self.dear[at] = dear;
        }
        self.any_dear = self.dear.contains(&true);
        changed
    }
}

/// Time a row.
fn row_nanos((rows, time): (u32, ServiceTime)) -> f64 {
    time.as_nanos() as f64 / f64::from(rows.max(1))
}

/// Time a row where that is least; infinite where there are no points.
fn least(points: &[(u32, ServiceTime)]) -> f64 {
    points.iter().copied().map(row_nanos).fold(f64::INFINITY, f64::min)
}

/// What a run that `took` so long where it was `expected` to would have taken where `time` is expected.
fn in_proportion(took: ServiceTime, time: ServiceTime, expected: ServiceTime) -> ServiceTime {
    if time == expected {
        return took;
    }
    // Nothing takes no time at all, but a profile may say so.
    let share = time.as_nanos() as f64 / expected.as_nanos().max(1) as f64;
    ServiceTime::from_nanos((took.as_nanos() as f64 * share).round() as u64)
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
    use crate::prng::Prng;

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
        for _ in 0..10 {
            profile.observe(1, us(12));
        }
        assert_eq!(profile.estimate(1), us(12), "ten later runs say that it is over");
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
        assert_eq!((profile.estimate(2), profile.estimate(8)), (us(90_000), us(90_000)));
        for _ in 0..=STALE_AFTER + 1 {
            profile.observe(1, us(10));
        }
        assert_eq!((profile.estimate(2), profile.estimate(8)), (us(12), us(20)));
        assert_eq!(profile.points().len(), 3);
    }

    /// What the batches of sizes from 1 to 64 take: 50 us and 10 us a row, `slow` times as long, give or take a tenth.
    fn noisy(batch: u32, slow: f64, prng: &mut Prng) -> ServiceTime {
        takes(batch).scaled(slow * (0.9 + 0.2 * prng.uniform()))
    }

    fn takes(batch: u32) -> ServiceTime {
        us(50 + 10 * u64::from(batch))
    }

    fn share(a: ServiceTime, b: ServiceTime) -> f64 {
        a.as_nanos() as f64 / b.as_nanos() as f64
    }

    /// So many batches of these sizes.
    fn run(profile: &mut Profile, batches: u32, sizes: std::ops::Range<u64>, slow: f64, prng: &mut Prng) {
        for _ in 0..batches {
            let batch = (sizes.start + prng.below(sizes.end - sizes.start)) as u32;
            profile.observe(batch, noisy(batch, slow, prng));
        }
    }

    fn by_powers_of_two() -> Profile {
        Profile::new(&(0..7).map(|i| (1 << i, takes(1 << i))).collect::<Vec<_>>())
    }

    #[test]
    fn of_steady_batches_some_two_in_a_hundred_take_longer_than_estimated() {
        // Of sizes that are seldom run less is known: those below nine have one batch in eight.
        for (sizes, most) in [(1..2, 125), (1..9, 150), (32..65, 125), (1..65, 250)] {
            for seed in 0..20 {
                let (mut profile, mut prng) = (by_powers_of_two(), Prng::new(seed));
                run(&mut profile, 1000, sizes.clone(), 1.0, &mut prng);
                let (mut exceeded, mut above) = (0, 0.0);
                for _ in 0..5000 {
                    let batch = (sizes.start + prng.below(sizes.end - sizes.start)) as u32;
                    let (took, estimate) = (noisy(batch, 1.0, &mut prng), profile.estimate(batch));
                    exceeded += u32::from(took > estimate);
                    above += share(estimate, takes(batch)) / 5000.0;
                    profile.observe(batch, took);
                }
                assert!(exceeded <= most, "seed {seed}, sizes {sizes:?}: {exceeded} of 5000");
                assert!((1.07..1.11).contains(&above), "seed {seed}, sizes {sizes:?}: {above}");
            }
        }
    }

    #[test]
    fn one_preemption_changes_no_estimate_by_more_than_noise_does() {
        for seed in 0..20 {
            let (mut profile, mut prng) = (by_powers_of_two(), Prng::new(seed));
            run(&mut profile, 1000, 1..65, 1.0, &mut prng);
            let before = profile.points().to_vec();
            run(&mut profile, 1, 1..65, 20.0, &mut prng);
            for ((size, before), (_, after)) in before.iter().zip(profile.points()) {
                assert!(share(*after, *before) <= 1.05, "seed {seed}, {size} rows: {before:?} {after:?}");
            }
        }
    }

    #[test]
    fn a_lasting_change_of_speed_is_known_after_ten_batches() {
        for seed in 0..20 {
            for slow in [2.0, 0.5] {
                let (mut profile, mut prng) = (by_powers_of_two(), Prng::new(seed));
                run(&mut profile, 300, 40..48, 1.0, &mut prng);
                run(&mut profile, 10, 40..48, slow, &mut prng);
                for batch in [40, 44, 47] {
                    let share = share(profile.estimate(batch), takes(batch).scaled(slow));
                    assert!((0.95..1.15).contains(&share), "seed {seed}, {slow} times as slow, {batch} rows: {share}");
                }
            }
        }
    }

    #[test]
    fn a_batch_between_two_measured_sizes_tells_of_both() {
        let mut profile = Profile::new(&[(1, us(10)), (8, us(80)), (16, us(160))]);
        for _ in 0..20 {
            profile.observe(12, us(60));
        }
        assert_eq!(profile.points(), [(1, us(10)), (8, us(40)), (16, us(80))]);
        assert_eq!(profile.estimate(12), us(60));
    }

    #[test]
    fn a_slower_device_scales_every_point() {
        let profile = Profile::new(&[(1, us(10)), (8, us(50))]).paced(0.1);
        assert_eq!(profile.points(), [(1, us(100)), (8, us(500))]);
    }

    #[test]
    fn rows_between_allowed_sizes_take_what_the_next_size_takes() {
        let profile = Profile::stepped(&[(1, us(100)), (4, us(160)), (16, us(400))], &[1, 4, 16]);
        let times: Vec<u64> = [1, 2, 4, 5, 16].map(|rows| profile.estimate(rows).as_nanos() / 1000).to_vec();
        assert_eq!(times, [100, 160, 160, 400, 400]);
        // Five in 400 us are less a second than four in 160; seven would be less too, eleven not.
        assert_eq!([1, 3, 4, 5, 7, 11, 16].map(|rows| profile.trim(rows)), [1, 3, 4, 4, 4, 11, 16]);
        assert_eq!(profile.paced(0.5).trim(5), 4);
        assert_eq!(Profile::new(&[(1, us(10)), (8, us(80))]).trim(5), 5, "where any size is allowed, all go");
    }

    #[test]
    fn a_row_costs_what_it_costs_in_a_batch_for_which_there_is_time() {
        let profile = Profile::new(&[(1, us(100)), (4, us(160)), (16, us(400)), (64, us(1_500))]);
        let within = |time: u64| profile.row_seconds_within(us(time)).map(|seconds| (seconds * 1e9).round() as u64);
        assert_eq!(
            [99, 100, 160, 240, 10_000].map(within),
            [None, Some(100_000), Some(40_000), Some(30_000), Some(23_438)]
        );
        assert_eq!(profile.row_seconds_within(us(1_500)), Some(profile.row_seconds()));
    }

    #[test]
    fn a_size_that_takes_longer_a_row_than_a_smaller_one_is_not_chosen_once_it_has_been_seen_to() {
        let points = [(1, us(100)), (4, us(200)), (16, us(640)), (32, us(1360)), (64, us(4000))];
        let mut profile = Profile::new(&points);
        let trimmed = |profile: &Profile| [3, 4, 16, 20, 32, 40, 64, 100].map(|rows| profile.trim(rows));
        assert_eq!(trimmed(&profile), [3, 4, 16, 20, 32, 40, 64, 100], "it may have been an accident");
        for _ in 0..3 {
            profile.observe(64, us(4000));
        }
        // 32 rows take 6 % longer a row than 16, and 40 rows 26 %.
        assert_eq!(trimmed(&profile), [3, 4, 16, 20, 32, 32, 32, 32]);
        for batch in 0..STALE_AFTER {
            assert!(profile.trim(64) == 32 || batch > STALE_AFTER - 4, "{batch}");
            profile.observe(32, us(1360));
        }
        assert_eq!(profile.trim(64), 64, "what has not run for long may be another by now");
        for _ in 0..4 {
            profile.observe(64, us(2600));
        }
        assert_eq!(trimmed(&profile), [3, 4, 16, 20, 32, 40, 64, 100]);
    }
}
