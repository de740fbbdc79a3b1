//! Which policies there are, how users name them, and what the device asks of one.

mod clipper;
mod clockwork;
mod fixed;
mod greedy;
mod nexus;
mod shares;
mod symphony;
mod weir;

use std::fmt;
use std::time::Duration;

use crate::ids::TicketId;
use crate::units::{Deadline, Instant, ServiceTime};

use super::lane::LaneKey;
use super::pool::{Model, ModelIndex, Order, Pool};
use super::{Closed, Query};

/// How a device decides which batch runs when. The default is weir's own; the others are there to compare with, each our
/// reading of the published rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Models in turn while there is slack, by deadline when there is little, and where most is served when not everybody can
    /// be; early drop to a batch size derived from the load, admission by estimated finish.
    #[default]
    Weir,
    /// In order of arrival, as many as wait, whether late or not.
    Fifo,
    /// Triton's dynamic batcher: in order of arrival, at once where `size` rows wait, else when the oldest has waited for
    /// `timeout`.
    Fixed {
        /// Preferred rows of a batch.
        size: u32,
        /// Longest wait for them.
        timeout: Duration,
    },
    /// Clipper's additive increase, multiplicative decrease of the largest batch.
    Aimd,
    /// Clipper's largest batch by the high quantile of its latency.
    Quantile,
    /// Earliest deadline first with the largest batch that its head allows; drops only what is lost already.
    Greedy,
    /// Clockwork: what is certain to be late is refused; the batch whose start is most pressing, of a fixed list of sizes.
    Clockwork,
    /// Nexus: heads are dropped early until a batch of the planned size is in time.
    Nexus,
    /// Symphony: a batch waits until one more row would not fit.
    Symphony,
}

/// A policy that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadPolicy {
    #[error(
        "{text:?} is no scheduling policy; write one of weir, fifo, fixed:size=8,timeout_us=2000, aimd, quantile, greedy, clockwork, nexus, symphony"
    )]
    Unknown { text: String },
    #[error(
        "{text:?}: fixed takes size=ROWS (1 or more) and timeout_us=MICROSECONDS, as in fixed:size=8,timeout_us=2000"
    )]
    Fixed { text: String },
}

/// The parameters that Triton's documentation starts with, for who names none.
const FIXED_SIZE: u32 = 8;
const FIXED_TIMEOUT: Duration = Duration::from_millis(2);

impl Policy {
    /// All of them, ours first, with default parameters.
    pub const ALL: [Policy; 9] = [
        Policy::Weir,
        Policy::Fifo,
        Policy::Fixed { size: FIXED_SIZE, timeout: FIXED_TIMEOUT },
        Policy::Aimd,
        Policy::Quantile,
        Policy::Greedy,
        Policy::Clockwork,
        Policy::Nexus,
        Policy::Symphony,
    ];

    /// Parses what [`Policy`] prints.
    pub fn parse(text: &str) -> Result<Policy, BadPolicy> {
        Ok(match text {
            "weir" => Policy::Weir,
            "fifo" => Policy::Fifo,
            "aimd" => Policy::Aimd,
            "quantile" => Policy::Quantile,
            "greedy" => Policy::Greedy,
            "clockwork" => Policy::Clockwork,
            "nexus" => Policy::Nexus,
            "symphony" => Policy::Symphony,
            _ => return Policy::parse_fixed(text),
        })
    }

    fn parse_fixed(text: &str) -> Result<Policy, BadPolicy> {
        let Some(rest) = text.strip_prefix("fixed") else {
            return Err(BadPolicy::Unknown { text: text.chars().take(80).collect() });
        };
        let bad = || BadPolicy::Fixed { text: text.chars().take(80).collect() };
        let (mut size, mut timeout) = (FIXED_SIZE, FIXED_TIMEOUT);
        if !rest.is_empty() {
            for parameter in rest.strip_prefix(':').ok_or_else(bad)?.split(',') {
                match parameter.split_once('=') {
                    Some(("size", value)) => {
                        size = value.parse().ok().filter(|size| *size > 0).ok_or_else(bad)?;
                    }
                    Some(("timeout_us", value)) => {
                        timeout = Duration::from_micros(value.parse().map_err(|_| bad())?);
                    }
                    _ => return Err(bad()),
                }
            }
        }
        Ok(Policy::Fixed { size, timeout })
    }

    pub(super) fn build(self) -> Box<dyn Decide> {
        match self {
            Policy::Weir => Box::new(weir::Weir::default()),
            Policy::Fifo => Box::new(fixed::Fixed { size: 1, timeout: Duration::ZERO }),
            Policy::Fixed { size, timeout } => Box::new(fixed::Fixed { size, timeout }),
            Policy::Aimd => Box::new(clipper::Clipper::aimd()),
            Policy::Quantile => Box::new(clipper::Clipper::quantile()),
            Policy::Greedy => Box::new(greedy::Greedy),
            Policy::Clockwork => Box::new(clockwork::Clockwork),
            Policy::Nexus => Box::new(nexus::Nexus),
            Policy::Symphony => Box::new(symphony::Symphony),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Policy::Weir => "weir",
            Policy::Fifo => "fifo",
            Policy::Fixed { size, timeout } => {
                return write!(f, "fixed:size={size},timeout_us={}", timeout.as_micros());
            }
            Policy::Aimd => "aimd",
            Policy::Quantile => "quantile",
            Policy::Greedy => "greedy",
            Policy::Clockwork => "clockwork",
            Policy::Nexus => "nexus",
            Policy::Symphony => "symphony",
        })
    }
}

/// What the device does next with a free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Run up to `rows` rows, the first of this lane first, on a free replica of the model.
    Run { model: ModelIndex, lane: LaneKey, rows: usize, closed: Closed },
    /// Nothing before this instant, unless something happens.
    Wait(Instant),
    /// Nothing.
    Nothing,
}

/// A policy at work.
pub(super) trait Decide: fmt::Debug + Send {
    /// The order in which a queue stands.
    fn order(&self) -> Order {
        Order::Deadline
    }

    /// Whether a query is refused on arrival when its estimated finish is after its deadline.
    fn admits_by_estimate(&self) -> bool {
        false
    }

    /// Whether rows are weighed against each other when they come: what is worth less for its time gives way.
    fn triages(&self) -> bool {
        false
    }

    /// Whether batches of few rows wait where their answers would: see [`super::gathering`].
    fn gathers(&self) -> bool {
        false
    }

    /// By which deadline a query that comes has its turn: its own, or the earlier one of a batch that will take it along.
    fn turn(&self, _now: Instant, _model: &Model, query: &Query) -> Deadline {
        query.deadline
    }

    /// Whether what cannot be in time any more, even alone, is dropped.
    fn drops_late(&self) -> bool {
        true
    }

    /// The next batch while a slot is free. What it gives up is taken out of the pool and named in `dropped`.
    fn next(&mut self, now: Instant, pool: &mut Pool, dropped: &mut Vec<TicketId>) -> Next;

    /// A batch of `rows` rows took `took`.
    fn on_done(&mut self, _model: &Model, _index: ModelIndex, _rows: u32, _took: ServiceTime) {}
}

/// Whether a lane can run now: its model has a free replica.
pub(super) fn runnable(pool: &Pool) -> impl Iterator<Item = (ModelIndex, &Model, LaneKey, &super::lane::Lane)> {
    pool.models()
        .filter(|(_, model)| model.free > 0)
        .flat_map(|(index, model)| model.lanes.iter().map(move |(key, lane)| (index, model, *key, lane)))
}

/// The lane whose head stands first in the order of service.
pub(super) fn first(pool: &Pool) -> Option<(ModelIndex, &Model, LaneKey, &super::lane::Lane)> {
    runnable(pool).min_by_key(|(_, _, _, lane)| lane.front().map(|head| (head.key, head.ticket)))
}

/// The most pressing of the batches that may run now, and when the first of the others may.
#[derive(Default)]
pub(super) struct Ripe {
    best: Option<((Instant, TicketId), Next)>,
    later: Option<Instant>,
}

impl Ripe {
    /// This one may run now; the smallest `priority` does.
    pub fn offer(&mut self, priority: (Instant, TicketId), run: Next) {
        if self.best.is_none_or(|(best, _)| priority < best) {
            self.best = Some((priority, run));
        }
    }

    /// One may run at `at`.
    pub fn later(&mut self, at: Instant) {
        self.later = Some(self.later.map_or(at, |later| later.min(at)));
    }

    pub fn next(self) -> Next {
        match (self.best, self.later) {
            (Some((_, run)), _) => run,
            (None, Some(at)) => Next::Wait(at),
            (None, None) => Next::Nothing,
        }
    }
}

/// Most rows that a batch of this lane may have.
pub(super) fn most(model: &Model, lane: LaneKey, len: usize) -> usize {
    if lane.alone { 1 } else { model.profile.trim(len.min(model.max_batch as usize)) }
}

/// Early drop: takes out heads that a batch of the size that a model should have would make late.
pub(super) fn drop_heads(
    now: Instant,
    pool: &mut Pool,
    dropped: &mut Vec<TicketId>,
    target: impl Fn(ModelIndex, &Model) -> usize,
) {
    for (index, model) in pool.models().filter(|(_, model)| model.free > 0) {
        model.late_heads(now, target(index, model), dropped);
    }
    for ticket in dropped.iter() {
        pool.expire(*ticket);
    }
}

/// Why a batch of `rows` has that size where nothing was waited for.
pub(super) fn closed(model: &Model, lane: LaneKey, len: usize, rows: usize) -> Closed {
    if lane.alone || rows == model.max_batch as usize || (rows < len && rows == most(model, lane, len)) {
        Closed::Full
    } else if rows < len {
        Closed::Deadline
    } else {
        Closed::Idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_policy_prints_parses_to_it() {
        for policy in Policy::ALL {
            assert_eq!(Policy::parse(&policy.to_string()), Ok(policy));
        }
        assert_eq!(
            Policy::parse("fixed:size=3"),
            Ok(Policy::Fixed { size: 3, timeout: FIXED_TIMEOUT }),
            "what is not said is as usual"
        );
        assert_eq!(Policy::parse("fixed"), Ok(Policy::ALL[2]));
    }

    #[test]
    fn what_is_no_policy_is_told_what_is() {
        assert!(Policy::parse("edf").unwrap_err().to_string().contains("weir, fifo"));
        for text in ["fixed:size=0", "fixed:", "fixed:8", "fixed:timeout_us=-1", "fixedly"] {
            assert_eq!(Policy::parse(text), Err(BadPolicy::Fixed { text: text.into() }), "{text}");
        }
    }
}
