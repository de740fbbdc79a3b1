//! What became of queries, for those who ask afterwards: single queries ([`History`], for `weir why`), counts and latencies of
//! the last seconds ([`Recent`], for `weir top`), and counts since the node started ([`Totals`], for metrics).
//!
//! All are bounded whatever comes: a ring of records, a ring of seconds, and counters. Whoever writes tells the time and the facts; nothing
//! here decides anything.

mod by_stage;
mod recent;
mod record;
mod ring;
mod told;
mod totals;

pub use by_stage::ByStage;
pub use recent::{LATENCY_BUCKETS, Latencies, Recent, Seconds, Tally, WINDOW};
pub use record::{Batch, Record, Visit, VisitEnd, Visits, Worth};
pub use ring::Ring;
pub use told::{
    DeviceNow, EndpointRecent, Ever, Explained, MemberFacts, ModelNow, NodeFacts, NodeRecent, Rule, Told,
    ToldCondition, ToldVisit,
};
pub use totals::{BOUNDS_US, Calls, Histogram, Statistics, Totals};

use std::time::Duration;

use crate::ids::QueryId;
use crate::units::Instant;

/// Answered queries that one connection thread of a node remembers, and as many again that were refused, late or degraded.
///
/// A record of a cascade of three stages takes less than a kilobyte, so 16 MiB a thread at most. At a thousand queries a second a
/// thread, these are eight seconds of answers: time to copy an id.
pub const KEPT: usize = 8_192;

/// The queries that a home remembers.
#[derive(Debug)]
pub struct History {
    answered: Ring<Record>,
    /// Refused, late, degraded, failed: by themselves, since they are asked for most, and are few as a rule.
    troubled: Ring<Record>,
}

impl Default for History {
    fn default() -> History {
        History::keeping(KEPT)
    }
}

impl History {
    /// Of the last `kept` queries of each kind.
    pub fn keeping(kept: usize) -> History {
        History { answered: Ring::new(kept), troubled: Ring::new(kept) }
    }

    /// A query has ended.
    pub fn add(&mut self, record: Record) {
        let ring = if record.is_troubled() { &mut self.troubled } else { &mut self.answered };
        ring.push(record);
    }

    /// Every record of a query, oldest first: a client that is refused here may have asked here again.
    pub fn find(&self, id: QueryId) -> Vec<&Record> {
        let mut found: Vec<&Record> =
            self.answered.iter().chain(self.troubled.iter()).filter(|record| record.is_of(id)).collect();
        found.sort_by_key(|record| record.arrived);
        found
    }

    /// How far back records of well answered queries and of others go, where some have been dropped already.
    pub fn reach(&self, now: Instant) -> [Option<Duration>; 2] {
        [&self.answered, &self.troubled].map(|ring| {
            let oldest = ring.iter().next().filter(|_| ring.is_full())?;
            Some(now.since(oldest.ended))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
