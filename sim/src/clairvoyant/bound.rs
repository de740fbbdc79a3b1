//! A number of queries in time that no schedule exceeds, however it was found.
//!
//! Two relaxations, of which the lower counts.
//!
//! **Prices.** Rent for slot time, by when it is (see `prices`): any prices give a bound. Those that make it lowest are searched,
//! first one for all the time, then one for each few milliseconds: dearer where the models take more than there is, cheaper
//! where they take less. What is forgotten is only that a schedule cannot run parts of several plans of a model.
//!
//! **Shares.** A row costs at least min l(b)/b over those b for which b rows can be together with it; the cheapest rows that
//! fill all the time are as many as can be.

use weir_core::units::ServiceTime;

use super::prices::{OfModel, Prices, seconds};
use super::{check, of_model, times};
use crate::pool::{Asked, Case};

/// Steps of the search for the best price of all the time. Each price gives a bound, so this is only how tight it is.
const EVEN_STEPS: usize = 16;
/// Steps of the search for the best prices, and how long each of them lasts: a part of most batches.
const STEPS: usize = 120;
const CELL: ServiceTime = ServiceTime::from_micros(5000);
/// By which part the search hopes to lower the bound. Half as much where it did not in so many steps; nothing is expected
/// below the last.
const HOPE: f64 = 0.015;
const PATIENCE: usize = 5;
const LEAST_HOPE: f64 = 1e-5;
/// What the latest prices say of where to go counts so much, and what those before said the rest: alone it zigzags.
const LATEST: f64 = 0.8;

/// What no schedule of `queries` on the slots of `case` exceeds.
pub fn bound(case: &Case, queries: &[Asked]) -> f64 {
    lowest(case, queries).map_or(0.0, |(bound, _, _)| bound)
}

/// The lowest bound that was found, the prices that tell it, and the queries of each model. `None` where there are no queries.
pub fn lowest(case: &Case, queries: &[Asked]) -> Option<(f64, Prices, Vec<OfModel>)> {
    check(case);
    let first = queries.iter().map(|query| query.at).min()?;
    let last = queries.iter().map(|query| query.deadline.0).max()?;
    let models: Vec<_> = (0..case.models.len())
        .map(|i| OfModel { queries: of_model(queries, i), times: times(&case.models[i]) })
        .collect();
    let span = ServiceTime::from(last.since(first));
    let price = even_price(&models, case.slots, |price| Prices::even(first, last, span, price));
    let (bound, prices) = lowered(&models, case.slots, Prices::even(first, last, CELL, price));
    let shared = shared(&models, seconds(span) * f64::from(case.slots));
    Some((bound.min(shared).min(queries.len() as f64), prices, models))
}

/// The price with the lowest bound, if it is the same all the time. The bound is convex in it, and it is below what the cheapest
/// batch of one row is worth.
fn even_price(models: &[OfModel], slots: u32, prices: impl Fn(f64) -> Prices) -> f64 {
    let bound = |price: f64| {
        let prices = prices(price);
        prices.worth(models, slots == 1).value + f64::from(slots) * prices.total()
    };
    let cheapest = models.iter().map(|model| seconds(model.times[1])).fold(f64::INFINITY, f64::min);
    let (mut low, mut high) = (0.0, 64.0 / cheapest);
    for _ in 0..EVEN_STEPS {
        let (left, right) = (low + (high - low) * 0.45, low + (high - low) * 0.55);
        if bound(left) < bound(right) {
            high = right;
        } else {
            low = left;
        }
    }
    low
}

/// Moves prices to where the bound is lower (Polyak's subgradient steps); returns the lowest, and its prices.
fn lowered(models: &[OfModel], slots: u32, mut prices: Prices) -> (f64, Prices) {
    let slots_in_cell = f64::from(slots) * prices.cell();
    let (mut least, mut at_least) = (f64::INFINITY, prices.clone());
    let (mut hope, mut in_vain) = (HOPE, 0);
    let mut way: Vec<f64> = Vec::new();
    for _ in 0..STEPS {
        let worth = prices.worth(models, slots == 1);
        let bound = worth.value + f64::from(slots) * prices.total();
        in_vain = if bound < least * (1.0 - LEAST_HOPE) { 0 } else { in_vain + 1 };
        if bound < least {
            (least, at_least) = (bound, prices.clone());
        }
        if in_vain == PATIENCE {
            (hope, in_vain) = (hope / 2.0, 0);
            prices = at_least.clone();
            way.clear();
            if hope < LEAST_HOPE {
                break;
            }
            continue;
        }
        let latest = worth.used.iter().map(|used| used - slots_in_cell);
        way = if way.is_empty() {
            latest.collect()
        } else {
            way.iter().zip(latest).map(|(before, latest)| (1.0 - LATEST) * before + LATEST * latest).collect()
        };
        let square: f64 = way.iter().map(|part| part * part).sum();
        if square == 0.0 {
            break;
        }
        let step = (bound - least * (1.0 - hope)) / square;
        prices = prices.moved(way.iter().map(|part| part * step));
    }
    (least, at_least)
}

fn shared(models: &[OfModel], time: f64) -> f64 {
    let mut shares = Vec::new();
    for OfModel { queries: of, times } in models {
        let mut share = vec![f64::INFINITY; of.len()];
        for (rows, time) in times.iter().enumerate().skip(1) {
            let each = seconds(*time) / rows as f64;
            // A window that starts with each query; all in a window with enough of them can be in a batch of that size.
            let (mut end, mut marked) = (0, 0);
            for start in 0..of.len() {
                end = end.max(start);
                while end < of.len() && !of[start].1.missed_by(of[end].0 + *time) {
                    end += 1;
                }
                if end - start >= rows {
                    marked = marked.max(start);
                    for row in &mut share[marked..end] {
                        *row = row.min(each);
                    }
                    marked = end;
                }
            }
        }
        shares.extend(share.into_iter().filter(|share| share.is_finite()));
    }
    shares.sort_by(f64::total_cmp);
    let (mut left, mut served) = (time, 0.0);
    for share in shares {
        if share > left {
            return served + left / share;
        }
        left -= share;
        served += 1.0;
    }
    served
}
