//! Exact, by search over all sequences of batches.

use std::collections::BTreeMap;

use weir_core::units::{Instant, ServiceTime};

use super::{check, times};
use crate::pool::{Asked, Case};

/// Most queries: a set of them is a mask, and the search is exponential.
const MOST: usize = 16;

/// How many of `queries` can be in time on slots that are free from `free` on.
///
/// At each decision: a model and a number of rows, or to wait for the next arrival. Which rows follows: a row that the batch
/// makes late would only take room, and of the others those that are due first, because what is due later can take the place
/// of what is due earlier, not the reverse.
pub fn optimum(case: &Case, queries: &[Asked], free: Instant) -> usize {
    check(case);
    assert!(queries.len() <= MOST, "few queries");
    let mut queries = queries.to_vec();
    queries.sort_by_key(|query| query.deadline);
    let times = case.models.iter().map(times).collect();
    let all = (1 << queries.len()) - 1;
    Search { queries, times, known: BTreeMap::new() }.best(vec![free; case.slots as usize], all)
}

struct Search {
    /// By deadline.
    queries: Vec<Asked>,
    /// By model and rows.
    times: Vec<Vec<ServiceTime>>,
    known: BTreeMap<(Vec<Instant>, u32), usize>,
}

impl Search {
    /// Most that can still be in time of the set `waiting`, on slots that are free at `slots`, ascending.
    fn best(&mut self, slots: Vec<Instant>, waiting: u32) -> usize {
        let now = slots[0];
        let mut open = waiting;
        let mut next: Option<Instant> = None;
        for (i, query) in self.queries.iter().enumerate().filter(|(i, _)| waiting & (1 << i) != 0) {
            if query.at > now {
                next = Some(next.map_or(query.at, |at| at.min(query.at)));
            } else if query.deadline.missed_by(now + self.times[query.model][1]) {
                open &= !(1 << i);
            }
        }
        if open == 0 {
            return 0;
        }
        let state = (slots, open);
        if let Some(known) = self.known.get(&state) {
            return *known;
        }
        // The first slot is busy until then: with a batch, or waiting.
        let busy = |until: Instant| {
            let mut slots = state.0.clone();
            slots[0] = until;
            slots.sort_unstable();
            slots
        };
        let mut best = next.map_or(0, |at| self.best(busy(at), open));
        for model in 0..self.times.len() {
            for rows in 1..self.times[model].len() {
                let finish = now + self.times[model][rows];
                let members = self.queries.iter().enumerate().filter(|(i, query)| {
                    let waits = open & (1 << i) != 0 && query.at <= now;
                    waits && query.model == model && !query.deadline.missed_by(finish)
                });
                let batch = members.take(rows).fold(0u32, |batch, (i, _)| batch | 1 << i);
                if (batch.count_ones() as usize) < rows {
                    break;
                }
                best = best.max(rows + self.best(busy(finish), open & !batch));
            }
        }
        self.known.insert(state, best);
        best
    }
}
