//! Which machines to have: the cheapest that meet a goal, whatever says whether some do.
//!
//! InferLine's planner (`seed-systems.md` section 6) searches batch size, hardware and replicas of every stage with a simulator in
//! the loop. Here batches, order, depth and routes are decided as queries come, by the code that the simulator drives too, and
//! placement follows from the machines. So what is left to search is how many machines of each kind: first as many of one kind
//! as it takes, for each kind, and as many of all kinds alike; then exchanges that cost less, from each of those, until none meets
//! the goal; at last those that cost little less than what was found, one by one. The search takes more machines never to be worse.
//! That is mostly so: another machine can change what stands where, or where rows meet to be run together. So the last step
//! asks about fleets that the search left out.
//!
//! A goal that one run meets, the next one may miss: [`Margin`] says by how much.

mod margin;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::workload::Window;

pub use margin::{Margin, RUNS_MAX};

/// How many machines of each kind.
pub type Fleet = Vec<u32>;

/// What a fleet costs where a machine of each kind costs so much.
pub fn cost(prices: &[f64], fleet: &[u32]) -> f64 {
    prices.iter().zip(fleet).map(|(price, count)| price * f64::from(*count)).sum()
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The cheapest that meets the goal.
    pub fleet: Fleet,
    /// Fleets that were tried.
    pub tried: usize,
}

/// Fleets that are tried one by one at last, at most: of three kinds about all that cost less than a dozen machines. Most of them are far from the goal, which a
/// simulation sees soon.
const ONE_BY_ONE: usize = 512;
/// Most fleets around what was found among which those are chosen.
const AROUND: usize = 4096;
/// Of more machines one or two are not worth trying so many.
const FEW: u32 = 24;

/// Searches the cheapest fleet that meets a goal, with at most `most` machines; `least(kind)` is a number of machines of a kind below
/// which they cannot do it alone, as far as is known. `None` where neither `most` of any one kind do, nor as many of all kinds alike, nor any
/// that is tried at last. Before that a fleet that has fewer of each kind than one that did not meet the goal is not asked about.
pub fn cheapest(
    prices: &[f64],
    most: u32,
    least: impl Fn(usize) -> u32,
    meets: impl FnMut(&[u32]) -> bool,
) -> Option<Found> {
    assert!(prices.iter().all(|price| *price > 0.0), "machines cost something");
    let mut search = Search { prices, most, known: BTreeMap::new(), meets };
    let mut starts: Vec<Fleet> = (0..prices.len()).filter_map(|kind| search.alone(kind, least(kind))).collect();
    starts.extend(search.alike());
    let mut best: Option<Fleet> = None;
    for start in starts {
        let fleet = search.exchanged(start);
        if best.as_ref().is_none_or(|best| cost(prices, &fleet) < cost(prices, best)) {
            best = Some(fleet);
        }
    }
    let mut left = ONE_BY_ONE;
    while let Some(better) = search.one_by_one(best.as_ref(), &mut left) {
        best = Some(search.exchanged(better));
    }
    best.map(|fleet| Found { fleet, tried: search.known.len() })
}

struct Search<'a, F> {
    prices: &'a [f64],
    most: u32,
    known: BTreeMap<Fleet, bool>,
    meets: F,
}

impl<F: FnMut(&[u32]) -> bool> Search<'_, F> {
    fn meets(&mut self, fleet: &[u32]) -> bool {
        if let Some(known) = self.known.get(fleet) {
            return *known;
        }
        let within = |(failed, met): (&Fleet, &bool)| !met && fleet.iter().zip(failed).all(|(a, b)| a <= b);
        if self.known.iter().any(within) {
            return false;
        }
        let met = (self.meets)(fleet);
        self.known.insert(fleet.to_vec(), met);
        met
    }

    /// The fewest of one kind that do it alone; looked for in steps that double, up or down from a guess.
    fn alone(&mut self, kind: usize, guess: u32) -> Option<Fleet> {
        let mut fleet = vec![0; self.prices.len()];
        let mut of = |search: &mut Self, count: u32| {
            fleet[kind] = count;
            search.meets(&fleet)
        };
        let (mut low, mut high) = (0, guess.clamp(1, self.most));
        let mut step = 1;
        if of(self, high) {
            while high > 1 && low == 0 {
                let next = high.saturating_sub(step).max(1);
                if of(self, next) {
                    high = next
                } else {
                    low = next
                }
                step *= 2;
            }
        } else {
            loop {
                if high == self.most {
                    return None;
                }
                low = high;
                high = high.saturating_add(step).min(self.most);
                step *= 2;
                if of(self, high) {
                    break;
                }
            }
        }
        fleet[kind] = high;
        Some(self.fewest(fleet, kind, low))
    }

    /// As many of each kind as it takes, the same number of all.
    fn alike(&mut self) -> Option<Fleet> {
        let kinds = self.prices.len();
        let each = |count| vec![count; kinds];
        let most = self.most / kinds as u32;
        let mut count = 1;
        while count < most && !self.meets(&each(count)) {
            count = (2 * count).min(most);
        }
        (kinds > 1 && count <= most && self.meets(&each(count))).then(|| each(count))
    }

    /// With as few of a kind as will do; `low` of them are known or taken not to, what `fleet` has does.
    fn fewest(&mut self, mut fleet: Fleet, kind: usize, mut low: u32) -> Fleet {
        let mut high = fleet[kind];
        while high - low > 1 {
            fleet[kind] = low + (high - low) / 2;
            if self.meets(&fleet) { high = fleet[kind] } else { low = fleet[kind] }
        }
        fleet[kind] = high;
        fleet
    }

    /// The cheapest fleet that meets the goal and is made from this one by giving up one machine, two, half or all of a kind, for
    /// as few as will do of another kind, or for none.
    fn exchange(&mut self, fleet: &[u32]) -> Option<Fleet> {
        let now = cost(self.prices, fleet);
        let mut best: Option<(f64, Fleet)> = None;
        for given in 0..fleet.len() {
            let has = fleet[given];
            let mut steps = vec![1, 2, has / 2, has];
            steps.sort_unstable();
            steps.dedup();
            for gives in steps.into_iter().filter(|gives| (1..=has).contains(gives)) {
                let mut without = fleet.to_vec();
                without[given] -= gives;
                for taken in 0..fleet.len() {
                    let below = best.as_ref().map_or(now, |(cost, _)| *cost);
                    let found = if taken == given {
                        let some = without.iter().any(|count| *count > 0);
                        (some && cost(self.prices, &without) < below && self.meets(&without)).then(|| without.clone())
                    } else {
                        self.instead(&without, taken, below)
                    };
                    if let Some(found) = found {
                        best = Some((cost(self.prices, &found), found));
                    }
                }
            }
        }
        best.map(|(_, fleet)| fleet)
    }

    /// After exchanges, until none costs less.
    fn exchanged(&mut self, mut fleet: Fleet) -> Fleet {
        while let Some(better) = self.exchange(&fleet) {
            fleet = better;
        }
        fleet
    }

    /// The dearest fleet that meets the goal and costs less than `best`, of those around it that were not asked about, whatever is known
    /// of larger ones; `left` are tried at most.
    fn one_by_one(&mut self, best: Option<&Fleet>, left: &mut usize) -> Option<Fleet> {
        let kinds = self.prices.len();
        // Where all of the one kind that there is do not do, fewer would only by chance.
        if best.map_or(kinds == 1, |best| best.iter().sum::<u32>() > FEW) {
            return None;
        }
        let centre = best.cloned().unwrap_or_else(|| vec![self.most / kinds as u32; kinds]);
        let below = best.map_or(f64::INFINITY, |best| cost(self.prices, best) * (1.0 - 1e-9));
        let mut fleets = around(&centre);
        fleets.retain(|fleet| (1..=self.most).contains(&fleet.iter().sum()) && cost(self.prices, fleet) < below);
        fleets.retain(|fleet| !self.known.contains_key(fleet));
        fleets.sort_by(|a, b| cost(self.prices, b).total_cmp(&cost(self.prices, a)));
        for fleet in fleets {
            if *left == 0 {
                break;
            }
            *left -= 1;
            let met = (self.meets)(&fleet);
            self.known.insert(fleet.clone(), met);
            if met {
                return Some(fleet);
            }
        }
        None
    }

    /// `fleet` with as few more of a kind as meet the goal, where that costs less than `below`.
    fn instead(&mut self, fleet: &[u32], kind: usize, below: f64) -> Option<Fleet> {
        let left = (below - cost(self.prices, fleet)) / self.prices[kind];
        // Less, not as much: an exchange that costs the same could go on for ever.
        let can = (left * (1.0 - 1e-9)).ceil() as i64 - 1;
        let room = i64::from(self.most) - fleet.iter().map(|count| i64::from(*count)).sum::<i64>();
        let can = can.min(room);
        if can < 1 {
            return None;
        }
        let mut with = fleet.to_vec();
        with[kind] += can as u32;
        self.meets(&with).then(|| self.fewest(with, kind, fleet[kind]))
    }
}

/// Fleets whose numbers differ from those of `centre` by no more than lets there be [`AROUND`] of them.
fn around(centre: &[u32]) -> Vec<Fleet> {
    let mut reach = 0_u32;
    while f64::from(2 * reach + 3).powi(centre.len() as i32) <= AROUND as f64 {
        reach += 1;
    }
    let mut fleets: Vec<Fleet> = vec![Vec::new()];
    for count in centre {
        let near = count.saturating_sub(reach)..=count + reach;
        let longer =
            |fleet: &Fleet| near.clone().map(|count| [fleet.as_slice(), &[count]].concat()).collect::<Vec<_>>();
        fleets = fleets.iter().flat_map(longer).collect();
    }
    fleets
}

/// Which width of window asks most of machines that serve `capacity` queries a second before a deadline, and how much of what they
/// can do by then: above 1 some queries of that window cannot be in time, whoever decides.
pub fn binding(windows: &[Window], deadline: Duration, capacity: f64) -> Option<(Duration, f64)> {
    let asks = |window: &Window| {
        let by_then = capacity * (window.width + deadline).as_secs_f64();
        (window.width, window.largest as f64 / by_then.max(f64::MIN_POSITIVE))
    };
    windows.iter().map(asks).max_by(|a, b| a.1.total_cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    /// The cheapest of all fleets of up to `most` machines.
    fn all(prices: &[f64], most: u32, meets: &dyn Fn(&[u32]) -> bool) -> Option<f64> {
        let mut fleets: Vec<Fleet> = vec![Vec::new()];
        for _ in prices {
            fleets = fleets
                .iter()
                .flat_map(|fleet| (0..=most).map(|count| [fleet.as_slice(), &[count]].concat()))
                .filter(|fleet| fleet.iter().sum::<u32>() <= most)
                .collect();
        }
        fleets.retain(|fleet| meets(fleet));
        fleets.iter().map(|fleet| cost(prices, fleet)).min_by(f64::total_cmp)
    }

    /// Work of several sorts, which kinds do at different speeds, or not at all: machines that do little else are given what
    /// others cannot do.
    fn can(speeds: &[Vec<f64>], work: &[f64], fleet: &[u32]) -> bool {
        let all = work.iter().sum::<f64>();
        // By sort, and all together at the best speed that each machine has.
        let of =
            |sort: usize| speeds.iter().zip(fleet).map(|(speed, count)| speed[sort] * f64::from(*count)).sum::<f64>();
        let best = |speed: &Vec<f64>| speed.iter().copied().fold(0.0, f64::max);
        let together = speeds.iter().zip(fleet).map(|(speed, count)| best(speed) * f64::from(*count)).sum::<f64>();
        work.iter().enumerate().all(|(sort, work)| of(sort) >= *work) && together >= all
    }

    #[test]
    fn what_is_found_costs_at_most_fifteen_percent_more_than_the_best_of_all() {
        let mut prng = Prng::new(3);
        let (mut worst, mut over, mut found_any): (f64, u32, u32) = (1.0, 0, 0);
        for _ in 0..500 {
            let kinds = 1 + prng.below(3) as usize;
            let prices: Vec<f64> = (0..kinds).map(|_| 0.2 + prng.uniform()).collect();
            let speed = |prng: &mut Prng| if prng.uniform() < 0.2 { 0.0 } else { 0.5 + 2.0 * prng.uniform() };
            let speeds: Vec<Vec<f64>> = (0..kinds).map(|_| (0..4).map(|_| speed(&mut prng)).collect()).collect();
            let work: Vec<f64> = (0..4).map(|_| 3.0 * prng.uniform()).collect();
            let most = 12;
            let meets = |fleet: &[u32]| can(&speeds, &work, fleet);
            let found = cheapest(&prices, most, |_| 1, meets);
            let best = all(&prices, most, &meets);
            // Neither alone nor all alike: then it may be missed.
            assert!(
                found.is_some()
                    || (0..kinds).all(|kind| {
                        let mut fleet = vec![0; kinds];
                        fleet[kind] = most;
                        !meets(&fleet) && !meets(&vec![most / kinds as u32; kinds])
                    })
            );
            if let (Some(found), Some(best)) = (found, best) {
                assert!(meets(&found.fleet));
                found_any += 1;
                let ratio = cost(&prices, &found.fleet) / best;
                worst = worst.max(ratio);
                over += u32::from(ratio > 1.0 + 1e-9);
            }
        }
        assert!(found_any > 100, "{found_any}");
        assert!(worst <= 1.15, "{worst}, and {over} of {found_any} are not the best");
    }

    #[test]
    fn what_is_cheaper_is_found_where_more_machines_are_worse() {
        // As the simulator judged one of its random cases: with a second of the last kind other things stood on each.
        let meets = |fleet: &[u32]| match fleet {
            [8, 0, 1] => true,
            [8, 0, 0 | 2] => false,
            _ if fleet[1] > 0 => false,
            _ => 8 * fleet[0] + 3 * fleet[2] >= 73,
        };
        let prices = [7.8, 1.6, 5.1];
        let found = cheapest(&prices, 12, |_| 1, meets).unwrap();
        assert_eq!(found.fleet, [8, 0, 1]);
        assert!(found.tried < ONE_BY_ONE + 72, "{}", found.tried);
        // Only many of one kind with a few of another.
        let found = cheapest(&[2.5, 1.4], 12, |_| 1, |fleet| fleet[0] >= 8 && fleet[1] == 1).unwrap();
        assert_eq!(found.fleet, [8, 1]);
    }

    #[test]
    fn few_fleets_are_tried() {
        let need = |need: f64| move |fleet: &[u32]| f64::from(fleet[0]) + 3.0 * f64::from(fleet[1]) >= need;
        let found = cheapest(&[1.0, 2.5], 1024, |_| 1, need(700.0)).unwrap();
        assert_eq!(cost(&[1.0, 2.5], &found.fleet), 583.5, "233 of the larger and one of the smaller");
        assert!(found.tried < 150, "{}", found.tried);
        let found = cheapest(&[1.0, 2.5], 1024, |kind| [690, 230][kind], need(700.0)).unwrap();
        assert!(found.tried < 60, "{} from a good guess", found.tried);
        assert_eq!(cheapest(&[1.0, 2.5], 100, |_| 1, need(700.0)), None);
    }

    #[test]
    fn the_window_that_asks_most_binds() {
        let window = |ms: u64, largest: usize| Window {
            width: Duration::from_millis(ms),
            counted: 10,
            dispersion: None,
            largest,
        };
        let windows = [window(10, 20), window(100, 90), window(1000, 300)];
        let (width, load) = binding(&windows, Duration::from_millis(50), 500.0).unwrap();
        assert_eq!(width, Duration::from_millis(100));
        assert!((load - 1.2).abs() < 1e-9, "90 queries, and 75 can be done in 150 ms: {load}");
        assert_eq!(binding(&[], Duration::from_millis(50), 500.0), None);
    }
}
