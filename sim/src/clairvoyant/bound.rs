//! A number of queries in time that no schedule exceeds, however it was found.
//!
//! Two relaxations, of which the lower counts. Both forget when slots are free and keep only that all batches together take
//! no more than all slots have from the first arrival to the last deadline.
//!
//! **Prices.** Let slot time cost π a second. A model on its own then serves the sets of neighbours in its queue that are
//! worth most, rows − π·l(rows), by dynamic programming; what all of them are worth together, plus π times the slot time
//! that there is, bounds what can be served, for each π (Lagrange); the best π is searched. A set can be a batch where its
//! last comes before its first is due less l(rows). On several slots batches of one model may run inside the time of a longer
//! one; then some schedule of neighbours still has as many batches of the same sizes, but each of them is only certain to
//! leave l(1) after its last.
//!
//! **Shares.** A row costs at least min l(b)/b over those b for which b rows can be together with it; the cheapest rows that
//! fill the time are as many as can be.

use weir_core::units::{Deadline, Instant, ServiceTime};

use super::{check, of_model, times};
use crate::pool::{Asked, Case};

/// Steps of the search for the best price. Each price gives a bound, so this is only how tight it is.
const STEPS: usize = 24;

/// What no schedule of `queries` on the slots of `case` exceeds.
pub fn bound(case: &Case, queries: &[Asked]) -> f64 {
    check(case);
    let Some(first) = queries.iter().map(|query| query.at).min() else { return 0.0 };
    let last = queries.iter().map(|query| query.deadline.0).max().expect("there are queries");
    let time = last.since(first).as_secs_f64() * f64::from(case.slots);
    let models: Vec<_> = (0..case.models.len()).map(|i| (of_model(queries, i), times(&case.models[i]))).collect();
    priced(&models, time, case.slots == 1).min(shared(&models, time)).min(queries.len() as f64)
}

type OfModel = (Vec<(Instant, Deadline)>, Vec<ServiceTime>);

fn seconds(time: ServiceTime) -> f64 {
    time.as_nanos() as f64 / 1e9
}

fn priced(models: &[OfModel], time: f64, alone: bool) -> f64 {
    let worth = |price: f64| {
        let models = models.iter().map(|(of, times)| {
            // By queries looked at: what their best sets are worth.
            let mut best = vec![0.0f64; of.len() + 1];
            for last in 0..of.len() {
                let mut most = best[last];
                for rows in 1..times.len().min(last + 2) {
                    let left = if alone { times[rows] } else { times[1] };
                    if of[last + 1 - rows].1.missed_by(of[last].0 + left) {
                        break;
                    }
                    most = most.max(best[last + 1 - rows] + rows as f64 - price * seconds(times[rows]));
                }
                best[last + 1] = most;
            }
            best[of.len()]
        });
        models.sum::<f64>() + price * time
    };
    // Convex in the price, which is below what the cheapest batch of one row is worth.
    let cheapest = models.iter().map(|(_, times)| seconds(times[1])).fold(f64::INFINITY, f64::min);
    let (mut low, mut high) = (0.0, 64.0 / cheapest);
    let mut least = worth(0.0);
    for _ in 0..STEPS {
        let (left, right) = (low + (high - low) * 0.45, low + (high - low) * 0.55);
        let (at_left, at_right) = (worth(left), worth(right));
        least = least.min(at_left).min(at_right);
        if at_left < at_right {
            high = right;
        } else {
            low = left;
        }
    }
    least
}

fn shared(models: &[OfModel], time: f64) -> f64 {
    let mut shares = Vec::new();
    for (of, times) in models {
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
