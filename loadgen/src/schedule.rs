//! What is sent when: flows of queries, merged in the order of their instants, each query with the rows that it asks for.
//!
//! All of it follows from the seed, on any machine: neither what comes back nor how many threads send changes it.

use std::time::Duration;

use weir_core::prng::Prng;
use weir_core::units::Instant;
use weir_core::workload::{Process, Superposition};

/// An arrival process, and which streams its queries go to.
#[derive(Clone)]
pub struct Flow {
    /// When.
    pub process: Process,
    /// Index of a stream and its weight (above 0), at least one.
    pub choices: Vec<(usize, f64)>,
}

/// One query to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Since the start of the run.
    pub at: Duration,
    /// Index of the stream.
    pub stream: usize,
    /// Rows of the stream's data.
    pub rows: Vec<u32>,
}

/// Rows in an order drawn anew for each pass over the data, so that every row is asked for as often as any other.
#[derive(Clone)]
pub struct Rows {
    order: Vec<u32>,
    next: usize,
    prng: Prng,
}

impl Rows {
    /// Of data with so many rows, at least one.
    pub fn new(rows: usize, prng: Prng) -> Rows {
        assert!(rows > 0, "there are rows to ask for");
        Rows { order: (0..rows as u32).collect(), next: rows, prng }
    }

    /// The next `count` of them.
    pub fn take(&mut self, count: usize) -> Vec<u32> {
        (0..count)
            .map(|_| {
                if self.next == self.order.len() {
                    for i in (1..self.order.len()).rev() {
                        self.order.swap(i, self.prng.below(i as u64 + 1) as usize);
                    }
                    self.next = 0;
                }
                self.next += 1;
                self.order[self.next - 1]
            })
            .collect()
    }
}

/// All queries of a run, drawn one by one.
pub struct Schedule {
    arrivals: Superposition,
    choices: Vec<Vec<(usize, f64)>>,
    rows: Vec<Rows>,
    rows_per_query: usize,
    choosing: Prng,
    end: Instant,
}

impl Schedule {
    /// Until `duration`; `rows` is how many rows each stream has.
    pub fn new(flows: &[Flow], rows: &[usize], rows_per_query: usize, seed: u64, duration: Duration) -> Schedule {
        let sources = flows.iter().enumerate().map(|(i, flow)| (flow.process.clone(), Prng::part(seed, i as u64)));
        Schedule {
            arrivals: Superposition::new(sources.collect()),
            choices: flows.iter().map(|flow| flow.choices.clone()).collect(),
            rows: row_draws(rows, seed),
            rows_per_query,
            choosing: Prng::part(seed, CHOICES),
            end: Instant::ZERO + duration,
        }
    }
}

/// Parts of a seed beyond those of the flows.
const CHOICES: u64 = 1 << 32;
const ROWS: u64 = 2 << 32;

/// What draws the rows of each stream.
pub fn row_draws(rows: &[usize], seed: u64) -> Vec<Rows> {
    rows.iter().enumerate().map(|(i, rows)| Rows::new(*rows, Prng::part(seed, ROWS + i as u64))).collect()
}

impl Iterator for Schedule {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        let (at, flow) = self.arrivals.next()?;
        if at >= self.end {
            return None;
        }
        let choices = &self.choices[flow];
        let mut stream = choices[0].0;
        if choices.len() > 1 {
            let mut left = self.choosing.uniform() * choices.iter().map(|(_, weight)| weight).sum::<f64>();
            for (choice, weight) in choices {
                stream = *choice;
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        Some(Due { at: at.since(Instant::ZERO), stream, rows: self.rows[stream].take(self.rows_per_query) })
    }
}

#[cfg(test)]
mod tests {
    use weir_core::workload::{Arrivals, Rate};

    use super::*;

    fn flow(text: &str, rate: f64, choices: &[(usize, f64)]) -> Flow {
        let rate = Rate::per_second(rate).unwrap();
        Flow { process: Arrivals::parse(text).unwrap().process(Some(rate), None).unwrap(), choices: choices.to_vec() }
    }

    fn mix(seed: u64) -> Vec<Due> {
        let flows = [flow("poisson", 1000.0, &[(0, 3.0), (1, 1.0)]), flow("gamma:cv=4", 500.0, &[(2, 1.0)])];
        Schedule::new(&flows, &[30, 7, 100], 2, seed, Duration::from_secs(10)).collect()
    }

    #[test]
    fn a_seed_decides_instants_streams_and_rows() {
        assert_eq!(mix(7), mix(7));
        assert_ne!(mix(7), mix(8));
        // Written down on one machine, so that another that draws otherwise is found out.
        let first: Vec<_> = mix(7).into_iter().take(3).map(|d| (d.at.as_nanos(), d.stream, d.rows)).collect();
        assert_eq!(first, [(137_426, 0, vec![23, 26]), (375_192, 0, vec![0, 17]), (822_503, 1, vec![6, 2])]);
    }

    #[test]
    fn flows_keep_their_rates_and_streams_their_weights() {
        let all = mix(7);
        assert!(all.is_sorted_by_key(|due| due.at) && all.last().unwrap().at < Duration::from_secs(10));
        let count = |stream| all.iter().filter(|due| due.stream == stream).count() as f64;
        assert!((count(0) / (count(0) + count(1)) - 0.75).abs() < 0.02, "{} {}", count(0), count(1));
        assert!((count(0) + count(1) - 10_000.0).abs() < 400.0);
        assert!(all.iter().all(|due| due.rows.len() == 2));
    }

    #[test]
    fn every_row_is_asked_for_as_often_as_any_other() {
        let drawn = Rows::new(30, Prng::new(7)).take(100);
        let counts: Vec<usize> = (0..30).map(|row| drawn.iter().filter(|drawn| **drawn == row).count()).collect();
        assert!(counts.iter().all(|count| (3..=4).contains(count)), "{counts:?}");
        assert_ne!(drawn[..30], drawn[30..60], "each pass in its own order");
    }
}
