//! How much of what queries are worth could be had at best, by whoever knows them all beforehand: an upper bound.
//!
//! Each row can stop after any of its stages; that costs slot time and is worth something. In any window, what arrives in it has to run between
//! its beginning and a deadline after its end, so its cost is at most what the slots can do in that time, in batches of the best size:
//! a knapsack with one choice a row. Its Lagrangian dual bounds it from above at any price, and the price that bounds it best is
//! the one that clears the window (`scheduling.md` section 16). Windows side by side bound the whole; of several widths the best
//! bound counts: wide ones waste less on their ends, narrow ones see bursts. Better than any width is a price for each moment, where a
//! row pays the least that there is between its arrival and its deadline, as no time is then counted for two windows: that is a bound
//! at any prices, and those that make it small are found by steps towards what clears each moment.

use std::time::Duration;

use weir_core::units::Instant;

/// What stopping after each stage costs in seconds of slot time, all stages up to it together, and is worth; both from the first
/// stage on.
pub type Options = Vec<(f64, f64)>;

/// The largest sum of worth that rows can have, which come at `arrivals` (in order; each with the number of its options), on so
/// many `slots`, each done within `deadline`.
pub fn bound(arrivals: &[(Instant, usize)], options: &[Options], slots: f64, deadline: Duration) -> f64 {
    let whole = arrivals.last().map_or(0.0, |(at, _)| at.as_nanos() as f64 / 1e9) + 1e-9;
    let widths = [0.1, 0.4, 1.6, 6.4, whole].into_iter().filter(|width| *width <= whole);
    let by_width = |width: f64| {
        let window = |(at, _): &(Instant, usize)| (at.as_nanos() as f64 / 1e9 / width) as u64;
        let windows = arrivals.chunk_by(|a, b| window(a) == window(b));
        let room = slots * (width + deadline.as_secs_f64());
        windows.map(|rows| dual(rows, options, room).0).sum::<f64>()
    };
    let by_window = widths.map(by_width).fold(f64::INFINITY, f64::min).min(f64::MAX);
    by_window.min(Moments::new(arrivals, options, slots, deadline).lowest())
}

/// What a row is worth that takes the best of its options, less what that costs, and how long it takes.
fn best(row: &Options, price: f64) -> (f64, f64) {
    let left = row.iter().map(|(cost, worth)| (worth - price * cost, *cost));
    left.fold((0.0, 0.0), |best, option| if option.0 > best.0 { option } else { best })
}

/// Cells of time in one deadline: the bound gives each row up to a cell more.
const REACH: usize = 10;
/// Steps towards better prices, and how many rows and cells are looked at in all of them at most: a load that is much longer takes fewer steps.
const STEPS: usize = 300;
const LOOKS: usize = 100_000_000;
/// The first step, as a share of what time costs where it is dearest, for a moment that is asked for twice; and within which part of that
/// another moment is as good as the cheapest. Both shrink with each step.
const STEP: f64 = 0.15;
const NEAR: f64 = 0.05;
/// How much at the end.
const SHRINKS: f64 = 30.0;

/// Time in cells with a price each.
struct Moments<'a> {
    options: &'a [Options],
    /// Rows by the cell in which they arrive; they can run in it and in the [`REACH`] that follow.
    rows: Vec<&'a [(Instant, usize)]>,
    /// Slot time of a cell, in seconds.
    room: f64,
    prices: Vec<f64>,
    /// What time costs where it is dearest, as far as windows of two deadlines tell.
    dear: f64,
}

impl<'a> Moments<'a> {
    /// At the one price that clears all.
    fn new(arrivals: &'a [(Instant, usize)], options: &'a [Options], slots: f64, deadline: Duration) -> Moments<'a> {
        let length = (deadline.as_nanos() as u64).div_ceil(REACH as u64).max(1);
        let cell = |(at, _): &(Instant, usize)| (at.as_nanos() / length) as usize;
        let cells = arrivals.last().map_or(0, |last| cell(last) + 1);
        let mut rows = vec![&arrivals[..0]; cells];
        arrivals.chunk_by(|a, b| cell(a) == cell(b)).for_each(|of_cell| rows[cell(&of_cell[0])] = of_cell);
        let room = slots * length as f64 / 1e9;
        let window = |arrival: &(Instant, usize)| cell(arrival) / (2 * REACH);
        let windows = arrivals.chunk_by(|a, b| window(a) == window(b));
        let dear = windows.map(|rows| dual(rows, options, room * (3 * REACH) as f64).1).fold(0.0, f64::max);
        let (_, price) = dual(arrivals, options, room * (cells + REACH) as f64);
        Moments { options, rows, room, prices: vec![price; cells + REACH], dear }
    }

    /// The bound at these prices, and which share of its slot time each cell is asked for. A price that is by `near` higher than the least is
    /// paid e times less often: were it never paid, all would run from one cell to the next and back.
    fn look(&self, near: f64) -> (f64, Vec<f64>) {
        let mut used = vec![0.0; self.prices.len()];
        let mut sum = self.room * self.prices.iter().sum::<f64>();
        for (cell, rows) in self.rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            let prices = &self.prices[cell..=cell + REACH];
            let least = prices.iter().copied().fold(f64::INFINITY, f64::min);
            let (left, takes) = rows.iter().fold((0.0, 0.0), |(left, takes), (_, row)| {
                let (more, long) = best(&self.options[*row], least);
                (left + more, takes + long)
            });
            sum += left;
            let often = |price: &f64| ((least - price) / near).exp();
            let all: f64 = prices.iter().map(often).sum();
            let of_window = used[cell..=cell + REACH].iter_mut().zip(prices);
            of_window.for_each(|(used, price)| *used += takes * often(price) / all);
        }
        (sum, used.into_iter().map(|used| used / self.room).collect())
    }

    /// The lowest bound found.
    fn lowest(mut self) -> f64 {
        let rows: usize = self.rows.iter().map(|rows| rows.len()).sum();
        let steps = STEPS.min(LOOKS / (rows + REACH * self.rows.len()).max(1));
        let mut lowest = f64::INFINITY;
        for step in 0..if self.dear > 0.0 { steps } else { 0 } {
            let scale = self.dear / (1.0 + SHRINKS * step as f64 / steps as f64);
            let (sum, used) = self.look(NEAR * scale);
            lowest = lowest.min(sum);
            for (price, used) in self.prices.iter_mut().zip(used) {
                *price = (*price + STEP * scale * (used - 1.0).min(3.0)).max(0.0);
            }
        }
        lowest
    }
}

/// The dual of one window at the price that bounds it best, and that price: it is convex in the price.
fn dual(rows: &[(Instant, usize)], options: &[Options], room: f64) -> (f64, f64) {
    let at = |price: f64| rows.iter().map(|(_, row)| best(&options[*row], price).0).sum::<f64>() + price * room;
    let dear = options.iter().flatten().map(|(cost, worth)| worth / cost.max(1e-12)).fold(0.0, f64::max);
    let (mut low, mut high) = (0.0, dear);
    // A third of the rest each time: after sixty it is as narrow as numbers are.
    for _ in 0..60 {
        let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        if at(a) <= at(b) { high = b } else { low = a }
    }
    let bounds = [0.0, (low + high) / 2.0].map(|price| (at(price), price));
    bounds.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("there are two")
}

#[cfg(test)]
mod tests {
    use weir_core::prng::Prng;

    use super::*;

    #[test]
    fn with_time_for_all_everybody_is_worth_the_most() {
        let options = vec![vec![(0.001, 0.6), (0.01, 0.9)], vec![(0.001, 0.95), (0.01, 0.9)]];
        let arrivals: Vec<_> = (0..10).map(|i| (Instant::from_millis(100 * i), i as usize % 2)).collect();
        assert!((bound(&arrivals, &options, 1.0, Duration::from_secs(1)) - 5.0 * (0.9 + 0.95)).abs() < 1e-9);
        assert_eq!(bound(&[], &options, 1.0, Duration::from_secs(1)), 0.0);
    }

    #[test]
    fn what_is_worth_most_for_its_time_is_taken_first() {
        // Time for all shallow ones and four of ten deep ones.
        let options: Vec<Options> = (0..10).map(|i| vec![(0.01, 0.5), (0.235, 0.5 + 0.04 * i as f64)]).collect();
        let arrivals: Vec<_> = (0..10).map(|i| (Instant::from_millis(100 * i), i as usize)).collect();
        let (best, _) = dual(&arrivals, &options, 1.0);
        let greedy = 5.0 + 0.04 * (9 + 8 + 7 + 6) as f64;
        assert!((greedy - 1e-9..greedy + 0.04 * 6.0).contains(&best), "{best}, greed has {greedy}");
    }

    #[test]
    fn it_is_never_below_what_some_choice_reaches() {
        let mut prng = Prng::new(4);
        for _ in 0..50 {
            let options: Vec<Options> = (0..8)
                .map(|_| {
                    let (cost, worth) = (0.02 + 0.1 * prng.uniform(), prng.uniform());
                    vec![(cost, worth), (cost + 0.2 * prng.uniform(), worth + 0.4 * (prng.uniform() - 0.3))]
                })
                .collect();
            let arrivals: Vec<_> = (0..8).map(|i| (Instant::from_millis(40 * i as u64), i)).collect();
            let room = 0.28;
            let (best, _) = dual(&arrivals, &options, room);
            // All 3^8 choices: none, shallow, deep.
            for mut choice in 0..3u32.pow(8) {
                let (mut cost, mut worth) = (0.0, 0.0);
                for row in &options {
                    if let Some(option) = (choice % 3).checked_sub(1) {
                        cost += row[option as usize].0;
                        worth += row[option as usize].1;
                    }
                    choice /= 3;
                }
                assert!(cost > room || worth <= best + 1e-9, "{worth} for {cost}, and the bound is {best}");
            }
        }
    }

    #[test]
    fn nor_is_what_a_price_for_each_moment_says() {
        let mut prng = Prng::new(5);
        let (deadline, slots) = (Duration::from_millis(50), 1.0);
        for _ in 0..30 {
            let draw = |prng: &mut Prng| {
                let (cost, worth) = (0.002 + 0.02 * prng.uniform(), prng.uniform());
                vec![(cost, worth), (cost + 0.03 * prng.uniform(), worth + 0.4 * prng.uniform())]
            };
            let options: Vec<Options> = (0..9).map(|_| draw(&mut prng)).collect();
            let mut arrivals: Vec<_> = (0..9).map(|row| (Instant::from_micros(prng.below(150_000)), row)).collect();
            arrivals.sort_unstable();
            let lowest = Moments::new(&arrivals, &options, slots, deadline).lowest();
            for mut choice in 0..3u32.pow(9) {
                // First come, first done, as all have the same time: whether each is done in it.
                let (mut free, mut worth, mut in_time) = (0.0f64, 0.0, true);
                for (at, row) in &arrivals {
                    if let Some(option) = (choice % 3).checked_sub(1) {
                        let (cost, is_worth) = options[*row][option as usize];
                        let at = at.as_nanos() as f64 / 1e9;
                        free = free.max(at) + cost;
                        in_time &= free <= at + deadline.as_secs_f64();
                        worth += is_worth;
                    }
                    choice /= 3;
                }
                assert!(!in_time || worth <= lowest + 1e-9, "{worth} in time, and the bound is {lowest}");
            }
        }
    }

    #[test]
    fn no_time_is_counted_twice() {
        // Every 200 ms 40 rows of 5 ms come at once, of which 50 ms do ten. A window gives each 50 ms that is not in it.
        let options = vec![vec![(0.005, 1.0)]];
        let arrivals: Vec<_> = (0..2000).map(|i| (Instant::from_millis(i / 40 * 200 + 1), 0)).collect();
        let most = 50.0 * 10.0;
        let best = bound(&arrivals, &options, 1.0, Duration::from_millis(50));
        // A cell of the ten that a deadline has is given to each for nothing.
        assert!(best >= most && best <= 1.11 * most, "{best}");
    }

    #[test]
    fn a_burst_is_seen_that_the_mean_hides() {
        let options = vec![vec![(0.05, 1.0)]];
        let burst: Vec<_> =
            (0..40).map(|i| (Instant::from_millis(i), 0)).chain([(Instant::from_millis(9_999), 0)]).collect();
        let best = bound(&burst, &options, 1.0, Duration::from_millis(100));
        assert!(best < 7.0, "200 ms do four of forty, and then there is one: {best}");
    }
}
