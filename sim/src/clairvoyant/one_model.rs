//! Exact for one model on one slot, whose queries are due in the order in which they come.

use weir_core::units::Instant;

use super::{check, of_model, times};
use crate::pool::{Asked, Case};

/// How many of `queries` can be in time, when it is known that `at_least` can be.
///
/// Some optimum serves in order of arrival, in batches that are neighbours in the queue: of two batches, the earlier can
/// swap a later member for an earlier of the other one, and a member can be swapped for one that was passed over between it
/// and its batch's last. So the state after the first j queries is how many of them were passed over, and of equal ones the
/// slot that is free first is best.
pub fn one_model(case: &Case, queries: &[Asked], at_least: usize) -> usize {
    check(case);
    assert!(case.slots == 1 && case.models.len() == 1, "one model on one slot");
    let (of, times) = (of_model(queries, 0), times(&case.models[0]));
    let most = of.len() - at_least;
    let depth = times.len();
    // By queries looked at, modulo what a batch can reach, and by queries passed over: when the slot is free first.
    let mut free = vec![vec![Instant::FAR; most + 1]; depth];
    free[0][0] = Instant::ZERO;
    for first in 0..of.len() {
        let now = std::mem::replace(&mut free[first % depth], vec![Instant::FAR; most + 1]);
        for (passed, at) in now.iter().enumerate().filter(|(_, at)| **at != Instant::FAR) {
            if passed < most {
                let skipped = &mut free[(first + 1) % depth][passed + 1];
                *skipped = (*skipped).min(*at);
            }
            for rows in 1..depth.min(of.len() - first + 1) {
                let finish = (*at).max(of[first + rows - 1].0) + times[rows];
                if of[first].1.missed_by(finish) {
                    break;
                }
                let ended = &mut free[(first + rows) % depth][passed];
                *ended = (*ended).min(finish);
            }
        }
    }
    let last = &free[of.len() % depth];
    let passed = last.iter().position(|at| *at != Instant::FAR).expect("as many as are known to be possible");
    of.len() - passed
}
