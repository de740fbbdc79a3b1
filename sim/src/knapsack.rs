//! How much of what queries are worth could be had at best, by whoever knows them all beforehand: an upper bound.
//!
//! Each row can stop after any of its stages; that costs slot time and is worth something. In any window, what arrives in it has to run between
//! its beginning and a deadline after its end, so its cost is at most what the slots can do in that time, in batches of the best size:
//! a knapsack with one choice a row. Its Lagrangian dual bounds it from above at any price, and the price that bounds it best is
//! the one that clears the window (`scheduling.md` section 16). Windows side by side bound the whole; of several widths the best
//! bound counts: wide ones waste less on their ends, narrow ones see bursts.

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
        windows.map(|rows| dual(rows, options, room)).sum::<f64>()
    };
    widths.map(by_width).fold(f64::INFINITY, f64::min).min(f64::MAX)
}

/// The dual of one window at the price that bounds it best: it is convex in the price.
fn dual(rows: &[(Instant, usize)], options: &[Options], room: f64) -> f64 {
    let at = |price: f64| {
        let best = |row: &Options| row.iter().map(|(cost, worth)| worth - price * cost).fold(0.0, f64::max);
        rows.iter().map(|(_, row)| best(&options[*row])).sum::<f64>() + price * room
    };
    let dear = options.iter().flatten().map(|(cost, worth)| worth / cost.max(1e-12)).fold(0.0, f64::max);
    let (mut low, mut high) = (0.0, dear);
    // A third of the rest each time: after sixty it is as narrow as numbers are.
    for _ in 0..60 {
        let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        if at(a) <= at(b) { high = b } else { low = a }
    }
    at(0.0).min(at((low + high) / 2.0))
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
        let best = dual(&arrivals, &options, 1.0);
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
            let best = dual(&arrivals, &options, room);
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
    fn a_burst_is_seen_that_the_mean_hides() {
        let options = vec![vec![(0.05, 1.0)]];
        let burst: Vec<_> =
            (0..40).map(|i| (Instant::from_millis(i), 0)).chain([(Instant::from_millis(9_999), 0)]).collect();
        let best = bound(&burst, &options, 1.0, Duration::from_millis(100));
        assert!(best < 7.0, "200 ms do four of forty, and then there is one: {best}");
    }
}
