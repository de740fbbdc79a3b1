//! What all nodes have counted, put together so that it never gets less: who measures subtracts two readings.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use weir_core::history::Statistics;
use weir_core::ids::{EndpointName, NodeName};

/// Readings of all endpoints.
#[derive(Debug, Default)]
pub struct Book(Mutex<BTreeMap<EndpointName, Readings>>);

#[derive(Debug, Default)]
struct Readings {
    /// Of runs of nodes that have ended.
    ended: Statistics,
    /// The last of each node, and which run of it that was.
    nodes: BTreeMap<NodeName, (u128, Statistics)>,
}

impl Book {
    /// Takes in what nodes told of an endpoint, and tells the sum with what was told before by those that are gone.
    pub fn read(&self, endpoint: &EndpointName, told: Vec<(NodeName, u128, Statistics)>) -> Statistics {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Names of endpoints that exist: strangers cannot grow this.
        let readings = book.entry(endpoint.clone()).or_default();
        for (node, run, statistics) in told {
            match readings.nodes.get_mut(&node) {
                Some((known, last)) if *known == run => {
                    // A reading that was overtaken by a later one.
                    if calls(last) <= calls(&statistics) {
                        *last = statistics;
                    }
                }
                Some(known) => {
                    readings.ended.merge(&known.1);
                    *known = (run, statistics);
                }
                None => {
                    readings.nodes.insert(node, (run, statistics));
                }
            }
        }
        let mut sum = readings.ended;
        readings.nodes.values().for_each(|(_, statistics)| sum.merge(statistics));
        sum
    }
}

/// When an answer was given last, in milliseconds since 1970; 0 where none was.
pub fn last_inference_ms(told: &Statistics) -> u64 {
    let at = told.last.and_then(|ago| SystemTime::now().checked_sub(ago));
    let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_millis() as u64)
}

fn calls(statistics: &Statistics) -> u64 {
    statistics.success.count + statistics.fail.count
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let read = |told| book.read(&endpoint, told).rows;
        assert_eq!(read(vec![(node("n1"), 1, told(5)), (node("n2"), 2, told(1))]), 12);
        assert_eq!(read(vec![(node("n1"), 1, told(4))]), 12, "a reading that comes late");
        assert_eq!(read(vec![(node("n1"), 9, told(1))]), 14, "another run");
        assert_eq!(read(Vec::new()), 14);
        assert_eq!(read(vec![(node("n1"), 9, told(2)), (node("n2"), 2, told(3))]), 20);
    }
}
