//! What rows of equal time can be worth together on one slot, for an oracle that knows all of them beforehand.
//!
//! With windows of one length the order of arrival serves a set if any order does (`scheduling.md` section 16), so that rows are
//! looked at in that order, and each is served next or never. Of what was done so far only two things matter: when the slot is free, and
//! what was served. Whoever is free no later and has served no less does better whatever comes, and the others are forgotten; what is
//! left is few, as the slot is free before the row comes, or within the time that the row has.

#[cfg(test)]
mod tests;

use std::time::Duration;

use weir_core::units::Instant;

/// Some way of serving rows so far.
#[derive(Clone, Copy)]
struct Way {
    free: Instant,
    worth: f64,
}

/// The most that rows, each with its arrival (ascending) and value, can be worth: each takes `takes`, and has `within` from its arrival.
pub fn best(rows: &[(Instant, f64)], takes: Duration, within: Duration) -> f64 {
    // Ascending by both.
    let mut ways = vec![Way { free: Instant::ZERO, worth: 0.0 }];
    let (mut served, mut all): (Vec<Way>, Vec<Way>) = (Vec::new(), Vec::new());
    for (at, value) in rows.iter().filter(|(_, value)| *value > 0.0) {
        // Free before it comes is free when it comes: of those the last has served most.
        let idle = ways.partition_point(|way| way.free <= *at);
        ways.drain(..idle.saturating_sub(1));
        ways[0].free = ways[0].free.max(*at);
        let serve = |way: &Way| Way { free: way.free + takes, worth: way.worth + value };
        served.clear();
        served.extend(ways.iter().map(serve).take_while(|way| way.free <= *at + within));
        all.clear();
        let (mut left, mut right) = (ways.iter().peekable(), served.iter().peekable());
        while let Some(next) = match (left.peek(), right.peek()) {
            (Some(a), Some(b)) if a.free < b.free => left.next(),
            (_, Some(_)) => right.next(),
            (Some(_), None) => left.next(),
            (None, None) => None,
        } {
            match all.last_mut() {
                Some(last) if next.worth <= last.worth => {}
                Some(last) if next.free == last.free => *last = *next,
                _ => all.push(*next),
            }
        }
        std::mem::swap(&mut ways, &mut all);
    }
    ways.last().map_or(0.0, |way| way.worth)
}
