//! How many queries a schedule serves that was found by search: what is possible at least, where an optimum cannot be computed.
//!
//! A beam search over sequences of batches on one slot. What remains after some of them is judged by what prices say it is
//! worth at most, so that a batch is not taken for good because it is large.

use std::collections::{BTreeMap, BTreeSet};

use super::bound::lowest;
use super::check;
use super::prices::{OfModel, Prices};
use crate::pool::{Asked, Case};

/// Sequences kept of those whose slot is free at about the same time.
const WIDTH: usize = 30;
/// What is about the same, in nanoseconds.
const STRIDE: u64 = 1_000_000;
/// Queries that a batch waits for, at most.
const AHEAD: usize = 6;
/// Rows that a batch leaves behind at most, of those that it could take.
const LEAVES: usize = 3;

/// How many of `queries` can be in time on one slot, at least.
pub fn found(case: &Case, queries: &[Asked]) -> usize {
    check(case);
    assert!(case.slots == 1, "one slot");
    let Some((_, prices, models)) = lowest(case, queries) else { return 0 };
    let search = Search { worth: models.iter().map(|model| prices.worth_from(model)).collect(), models, prices };
    let begin = Sequence { free: 0, next: vec![0; case.models.len()], served: 0, promise: 0.0 };
    let mut open = BTreeMap::from([(0, vec![begin])]);
    let mut most = 0;
    while let Some((_, sequences)) = open.pop_first() {
        for sequence in best(sequences) {
            most = most.max(sequence.served);
            for longer in search.longer(&sequence) {
                open.entry(longer.free / STRIDE).or_default().push(longer);
            }
        }
    }
    most
}

/// Batches that ran one after the other.
struct Sequence {
    /// When the last of them ends, in nanoseconds.
    free: u64,
    /// By model: the first query that is neither served nor given up.
    next: Vec<usize>,
    served: usize,
    /// What it serves in the end, if what remains serves as much as prices say.
    promise: f64,
}

/// The most promising, but one of those that leave the same.
fn best(mut sequences: Vec<Sequence>) -> Vec<Sequence> {
    sequences.sort_by(|a, b| b.promise.total_cmp(&a.promise));
    let mut seen = BTreeSet::new();
    sequences.retain(|sequence| seen.len() < WIDTH && seen.insert(sequence.next.clone()));
    sequences
}

struct Search {
    models: Vec<OfModel>,
    prices: Prices,
    /// By model and query: what it and those after it are worth.
    worth: Vec<Vec<f64>>,
}

impl Search {
    fn longer(&self, sequence: &Sequence) -> Vec<Sequence> {
        let models = 0..self.models.len();
        models.flat_map(|model| self.batches(sequence, model)).collect()
    }

    /// With one more batch of a model.
    fn batches(&self, sequence: &Sequence, index: usize) -> Vec<Sequence> {
        let model = &self.models[index];
        let mut first = sequence.next[index];
        let arrived = model.queries[first..].partition_point(|(at, _)| at.as_nanos() <= sequence.free) + first;
        let mut batches = Vec::new();
        for (rows, time) in model.times.iter().enumerate().skip(1) {
            let end = |first: usize, time: u64| {
                let last = model.queries.get(first + rows - 1)?;
                Some(sequence.free.max(last.0.as_nanos()) + time)
            };
            // Heads that a batch of this size would make late are given up.
            while end(first, time.as_nanos()).is_some_and(|end| end > model.due(first)) {
                first += 1;
            }
            let Some(free) = end(first, time.as_nanos()).filter(|_| first + rows <= arrived + AHEAD) else { break };
            let larger = rows + LEAVES;
            let could = first + larger < arrived
                && model.times.get(larger).is_some_and(|time| sequence.free + time.as_nanos() <= model.due(first));
            if !could {
                batches.push(self.after(sequence, index, first + rows, rows, free));
            }
        }
        batches
    }

    fn after(&self, sequence: &Sequence, index: usize, next: usize, rows: usize, free: u64) -> Sequence {
        let served = sequence.served + rows;
        let mut after = Sequence { free, next: sequence.next.clone(), served, promise: served as f64 };
        after.next[index] = next;
        after.promise += self.prices.after(free);
        for ((next, model), worth) in after.next.iter_mut().zip(&self.models).zip(&self.worth) {
            while *next < model.queries.len() && free + model.times[1].as_nanos() > model.due(*next) {
                *next += 1;
            }
            after.promise += worth[*next];
        }
        after
    }
}
