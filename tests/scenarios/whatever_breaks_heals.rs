//! Coordinators and nodes crash, links fall silent, are cut or deaf, disks fill up; then all of it heals.
//!
//! `WEIR_SEED=n` runs one seed, `WEIR_SEEDS=n` the first n.

use crate::faults::holds;

/// Seeds of each change; releases take more.
const SEEDS: u64 = 24;

fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse().expect("a number"));
    match number("WEIR_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("WEIR_SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

/// Half of the seeds, so that two cores share them.
fn run(half: u64) {
    for seed in seeds().into_iter().filter(|seed| seed % 2 == half) {
        let seen = holds(seed);
        let calls: usize = seen.calls.values().map(Vec::len).sum();
        println!("seed {seed}: {calls} calls, {} sights, predictions {:?}", seen.sights.len(), seen.outcomes());
    }
}

#[test]
fn whatever_breaks_heals_at_even_seeds() {
    run(0);
}

#[test]
fn whatever_breaks_heals_at_odd_seeds() {
    run(1);
}
