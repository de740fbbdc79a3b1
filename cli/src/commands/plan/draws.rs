//! Draws of a load: itself, and others that might as well have come.

use std::time::Duration;

use weir_core::prng::Prng;
use weir_core::units::Instant;
use weir_core::workload::resampled;
use weir_loadgen::run::{Loop, RunConfig};
use weir_loadgen::schedule::row_draws;
use weir_sim::cluster::Due;

use crate::commands::simulate::dues;

/// One of them: `weir simulate` with this seed draws the same from an arrival process.
pub struct Drawn {
    pub config: RunConfig,
    pub queries: Vec<Due>,
}

/// Pieces of a trace are as many deadlines long at least: what queues remember is over by then.
const DEADLINES: u32 = 10;
/// And no more than so many, so that a long trace is not cut finer than its bursts.
const PIECES: u32 = 50;

/// Some draws: first the load as it comes, then with the seeds after its own. A recorded trace is the same under any seed; it is put
/// together anew from pieces of it, with rows drawn anew, and whatever comes beside it in the same pieces.
pub fn drawn(config: &RunConfig, count: usize) -> Vec<Drawn> {
    let Loop::Open(flows) = &config.sending else { unreachable!("closed loops are refused") };
    let recorded = flows.iter().any(|flow| flow.process.length().is_some());
    let first: Vec<Due> = dues(config).collect();
    let mut draws = Vec::with_capacity(count);
    for further in 1..count as u64 {
        let config = RunConfig { seed: config.seed.wrapping_add(further), ..config.clone() };
        let queries = if recorded { anew(&config, &first) } else { dues(&config).collect() };
        draws.push(Drawn { config, queries });
    }
    draws.insert(0, Drawn { config: config.clone(), queries: first });
    draws
}

fn anew(config: &RunConfig, recorded: &[Due]) -> Vec<Due> {
    let deadline = config.streams.iter().map(|stream| stream.deadline).max().unwrap_or(Duration::ZERO);
    let piece = (DEADLINES * deadline).max(config.duration / PIECES);
    let instants: Vec<Instant> = recorded.iter().map(|due| due.at).collect();
    let rows: Vec<usize> = config.streams.iter().map(|stream| stream.data.rows()).collect();
    let mut rows = row_draws(&rows, config.seed);
    let again = resampled(&instants, config.duration, piece, Prng::new(config.seed)).into_iter().map(|(at, i)| {
        let due = &recorded[i];
        Due { at, rows: rows[due.endpoint].take(config.rows_per_query), ..due.clone() }
    });
    again.collect()
}
