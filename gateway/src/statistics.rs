//! What all nodes have counted, put together so that it never gets less: who measures subtracts two readings.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use weir_core::history::Statistics;
use weir_core::ids::{EndpointName, NodeName};

/// Readings of all endpoints.
#[derive(Debug, Default)]
pub struct Book(Mutex<BTreeMap<EndpointName, Readings>>);

/// Ended runs of a node that are known as such: a reading of one may come late.
const ENDED_KNOWN: usize = 8;

/// What was counted of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted {
    /// Of all nodes and runs of them; its `last` says nothing here.
    pub sum: Statistics,
    /// When an answer was given last, in milliseconds since 1970; 0 where none was.
    pub last_inference_ms: u64,
}

#[derive(Debug, Default)]
struct Readings {
    /// Of runs of nodes that have ended.
    ended: Statistics,
    /// Which runs these are, the last of each node.
    ended_runs: BTreeMap<NodeName, VecDeque<u128>>,
    last_inference_ms: u64,
    /// The last of each node, and which run of it that was.
    nodes: BTreeMap<NodeName, (u128, Statistics)>,
}

impl Book {
    /// Takes in what nodes told of an endpoint, and tells the sum with what was told before by those that are gone.
    pub fn read(&self, now: SystemTime, endpoint: &EndpointName, told: Vec<(NodeName, u128, Statistics)>) -> Counted {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Names of endpoints that exist: strangers cannot grow this.
        let readings = book.entry(endpoint.clone()).or_default();
        for (node, run, statistics) in told {
            let last = statistics.last.map_or(0, |ago| ms_before(now, ago));
            readings.last_inference_ms = readings.last_inference_ms.max(last);
            let has_ended = |runs: &VecDeque<u128>| runs.contains(&run);
            if readings.ended_runs.get(&node).is_some_and(has_ended) {
                // It was overtaken by one of a later run, and what it tells is in the sum already, but for what came after.
                continue;
            }
            match readings.nodes.get_mut(&node) {
                Some((known, last)) if *known == run => {
                    // A reading that was overtaken by a later one.
                    if calls(last) <= calls(&statistics) {
                        *last = statistics;
                    }
                }
                Some(known) => {
                    readings.ended.merge(&known.1);
                    let runs = readings.ended_runs.entry(node).or_default();
                    runs.push_back(known.0);
                    if runs.len() > ENDED_KNOWN {
                        runs.pop_front();
                    }
                    *known = (run, statistics);
                }
                None => {
                    readings.nodes.insert(node, (run, statistics));
                }
            }
        }
        let mut sum = readings.ended;
        readings.nodes.values().for_each(|(_, statistics)| sum.merge(statistics));
        Counted { sum, last_inference_ms: readings.last_inference_ms }
    }
}

fn ms_before(now: SystemTime, ago: Duration) -> u64 {
    let since = now.checked_sub(ago).and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_millis() as u64)
}

fn calls(statistics: &Statistics) -> u64 {
    statistics.success.count + statistics.fail.count
}

#[cfg(test)]
mod tests {
    use weir_core::history::Calls;

    use super::*;

    #[test]
    fn a_node_that_starts_anew_or_is_gone_takes_nothing_away() {
        let book = Book::default();
        let (endpoint, node) = (EndpointName::parse("e").unwrap(), |n| NodeName::parse(n).unwrap());
        let told = |count: u64| Statistics {
            success: Calls { count, time: Duration::from_millis(count) },
            rows: 2 * count,
            ..Statistics::default()
        };
        let read = |told| book.read(SystemTime::now(), &endpoint, told).sum.rows;
        assert_eq!(read(vec![(node("n1"), 1, told(5)), (node("n2"), 2, told(1))]), 12);
        assert_eq!(read(vec![(node("n1"), 1, told(4))]), 12, "a reading that comes late");
        assert_eq!(read(vec![(node("n1"), 9, told(1))]), 14, "another run");
        assert_eq!(read(Vec::new()), 14);
        assert_eq!(read(vec![(node("n1"), 9, told(2)), (node("n2"), 2, told(3))]), 20);
        assert_eq!(read(vec![(node("n1"), 1, told(5))]), 20, "a reading of a run that has ended comes later still");
        assert_eq!(read(vec![(node("n1"), 9, told(2))]), 20);
    }

    #[test]
    fn the_last_answer_of_a_node_that_is_gone_does_not_move_on() {
        let book = Book::default();
        let (endpoint, node) = (EndpointName::parse("e").unwrap(), NodeName::parse("n1").unwrap());
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let told = Statistics { last: Some(Duration::from_secs(1)), ..Statistics::default() };
        let read = |s, told| book.read(at(s), &endpoint, told).last_inference_ms;
        assert_eq!(read(100, vec![(node.clone(), 1, told)]), 99_000);
        assert_eq!(read(3700, Vec::new()), 99_000);
        assert_eq!(read(3800, vec![(node, 2, Statistics::default())]), 99_000, "it has answered nothing yet");
    }
}
