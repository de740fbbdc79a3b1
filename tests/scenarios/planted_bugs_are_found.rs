//! The checks are worth something: what is wrong on purpose is found within a few seeds.

use crate::faults::{Planted, run};

/// A bug that hides longer is not looked for well enough.
const SEEDS: u64 = 40;

fn is_found(planted: Planted, word: &str) {
    let mut said = Vec::new();
    for seed in 1..=SEEDS {
        if let Err(wrong) = run(seed, planted) {
            println!("seed {seed}: {wrong}");
            if wrong.contains(word) {
                return;
            }
            said.push(wrong);
        }
    }
    panic!("{planted:?} was not found in {SEEDS} seeds, only {said:?}");
}

#[test]
fn a_stale_read_is_found() {
    is_found(Planted::StaleReads, "fit into no order");
}

#[test]
fn a_retry_under_a_new_id_is_found() {
    is_found(Planted::RetriesUnderNewIds, "fit into no order");
}

#[test]
fn a_disk_that_loses_what_was_synced_is_found() {
    is_found(Planted::LostSyncs, "");
}

#[test]
fn a_disk_that_loses_names_is_found() {
    is_found(Planted::LostNames, "");
}

#[test]
fn a_skipped_change_is_found() {
    is_found(Planted::SkippedChange, "a watcher's copy");
}
