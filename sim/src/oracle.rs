//! What rows of equal cost and equal time can be worth together on one slot, for an oracle that knows all of them beforehand.
//!
//! It takes the most valuable first, as long as all still fit; with windows of one length the order of arrival serves a set if any order does
//! (`scheduling.md` section 16). Where arrivals stand at multiples of what a row takes, sets that fit are the independent sets of a
//! transversal matroid, and that is the optimum; between them it may miss one by a row here and there.

#[cfg(test)]
mod tests;

use std::time::Duration;

use weir_core::units::Instant;

/// Which of the rows, each with its arrival (ascending) and value, are served at best: each takes `takes`, and has `within` from its arrival.
pub fn best(rows: &[(Instant, f64)], takes: Duration, within: Duration) -> Vec<bool> {
    let mut by_value: Vec<usize> = (0..rows.len()).filter(|row| rows[*row].1 > 0.0).collect();
    by_value.sort_by(|a, b| rows[*b].1.total_cmp(&rows[*a].1).then(a.cmp(b)));
    let mut starts: Vec<Option<Instant>> = vec![None; rows.len()];
    for row in by_value {
        if let Some(shifted) = shifted(rows, &starts, row, takes, within) {
            shifted.into_iter().for_each(|(row, start)| starts[row] = Some(start));
        }
    }
    starts.iter().map(Option::is_some).collect()
}

/// When rows start once `row` is served as well, of those for which that changes; `None` where one would be late.
fn shifted(
    rows: &[(Instant, f64)],
    starts: &[Option<Instant>],
    row: usize,
    takes: Duration,
    within: Duration,
) -> Option<Vec<(usize, Instant)>> {
    let before = starts[..row].iter().rev().find_map(|start| *start);
    let mut free = before.map_or(Instant::ZERO, |start| start + takes);
    let mut shifted = Vec::new();
    for next in row..rows.len() {
        let known = starts[next];
        if next != row && known.is_none() {
            continue;
        }
        let start = rows[next].0.max(free);
        if known == Some(start) {
            break;
        }
        if start + takes > rows[next].0 + within {
            return None;
        }
        shifted.push((next, start));
        free = start + takes;
    }
    Some(shifted)
}
