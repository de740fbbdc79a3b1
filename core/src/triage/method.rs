//! Ways to decide which deeper stages run when there is too much to do: weir's own, and others to compare it with.

use std::fmt;

use super::{Bid, Tenant};
use crate::endpoint::{Endpoint, Flow, Gate, Ladders, Rungs};
use crate::router::{Adds, Depth};
use crate::units::{Deadline, Instant};

/// How a home decides how deep queries go. All but weir's own are our reading of what others do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// A price as advice, and push-out as law.
    #[default]
    Weir,
    /// Push-out alone: gates go on wherever that gains anything, and devices decide.
    PushOut,
    /// The price alone: devices push nothing out.
    Price,
    /// Thresholds that rise with the load, from a table: the fuller the device that the next stage would run on, the more
    /// that stage has to gain.
    LoadIndexed,
    /// Thresholds that nothing changes; what does not fit is refused and answers as it is.
    Fixed,
    /// One stage for all: the deepest that the measured rate leaves time for, asked alone (INFaaS, Proteus: a variant for the whole
    /// endpoint).
    Whole,
    /// The deepest stage for all, asked alone; what does not fit is refused.
    RejectOnly,
}

/// A method that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no way of triage; write one of weir, push-out, price, load-indexed, fixed, whole, reject-only")]
pub struct BadMethod {
    text: String,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 7] = [
        Method::Weir,
        Method::PushOut,
        Method::Price,
        Method::LoadIndexed,
        Method::Fixed,
        Method::Whole,
        Method::RejectOnly,
    ];

    /// The word of the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Method::Weir => "weir",
            Method::PushOut => "push-out",
            Method::Price => "price",
            Method::LoadIndexed => "load-indexed",
            Method::Fixed => "fixed",
            Method::Whole => "whole",
            Method::RejectOnly => "reject-only",
        }
    }

    /// Reads a word of the command line.
    pub fn parse(text: &str) -> Result<Method, BadMethod> {
        let known = Method::ALL.into_iter().find(|method| method.word() == text);
        known.ok_or_else(|| BadMethod { text: text.chars().take(80).collect() })
    }

    /// Where gates stand that rows come to: `price` is what a second of slot time costs where the next stage would run, `load` how much of the time
    /// that is left the wait there takes.
    pub fn rungs(self, ladders: &Ladders, price: impl FnOnce() -> f64, load: impl FnOnce() -> f64) -> Rungs<'_> {
        match self {
            Method::Weir | Method::Price => ladders.rungs(price()),
            Method::LoadIndexed => ladders.indexed(load()),
            Method::PushOut | Method::Fixed | Method::Whole | Method::RejectOnly => ladders.rungs(0.0),
        }
    }

    /// Whether [`Method::rungs`] asks for the load.
    pub fn reads_load(self) -> bool {
        self == Method::LoadIndexed
    }

    /// What a device is told of a row that an endpoint's `stage` runs for: nothing where it is not to push it out. What nobody has weighed stands
    /// at the least that a gate would let pass, so that it is in the way of no first answer, and of nothing that is known to be worth more.
    pub fn bid(self, endpoint: &Endpoint, stage: usize, adds: Adds) -> Bid {
        let weighs = matches!(self, Method::Weir | Method::PushOut);
        let gain = match adds {
            Adds::All => None,
            Adds::Something => Some(Gate::MIN_GAIN * endpoint.weight),
            Adds::Value(value) => Some(value),
        };
        let tenant = if weighs { endpoint.tenant() } else { Tenant::NOBODY };
        let next = endpoint.stages.get(stage + 1).and_then(|next| next.gate.as_ref());
        Bid {
            gain: gain.filter(|_| weighs),
            worth: if weighs { endpoint.weight } else { 1.0 },
            tenant,
            first: weighs && gain.is_none() && matches!(next, Some(Gate::Gain { .. })),
        }
    }

    /// How deep a query goes through `flow` whose caller has not said, where a row of each stage takes `seconds`; `whole` is told how long
    /// each way takes by which one stage answers, and which of them is the one for all.
    pub fn depth(self, flow: &Flow, seconds: &[f64], whole: impl FnOnce(&[f64]) -> usize) -> Depth {
        if !matches!(self, Method::Whole | Method::RejectOnly) {
            return Depth::ANY;
        }
        let ways = Depth::ways(flow, seconds);
        let way = match self {
            Method::Whole => whole(&ways.iter().map(|(_, takes)| *takes).collect::<Vec<_>>()),
            _ => ways.len().saturating_sub(1),
        };
        // Of a graph that answers only under conditions none answers for all.
        ways.get(way).map_or(Depth::ANY, |(depth, _)| *depth)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How much of the time until `deadline` passes before what waits ahead is done, if that is at `start`: 1 and more where nothing is left.
pub fn load(now: Instant, start: Instant, deadline: Deadline) -> f64 {
    let left = deadline.left(now).as_secs_f64();
    if left <= 0.0 { 1.0 } else { start.since(now).as_secs_f64() / left }
}

/// The stage for all queries of one endpoint, by the rate at which they come.
#[derive(Clone, Debug, Default)]
pub struct WholeStage {
    /// Queries a second, decayed.
    rate: f64,
    last: Instant,
    stage: usize,
    /// Since when a deeper one would fit.
    fits_since: Option<Instant>,
}

/// How long arrivals count, in seconds.
const MEMORY: f64 = 0.5;
/// Share of the slots' time that the stage for all may take.
const UTILISATION: f64 = 0.9;
/// How long a deeper stage has to fit before it is taken, in seconds: a variant is not changed for every gap.
const SETTLES: f64 = 1.0;

impl WholeStage {
    /// A query came: the stage for it, where a row of each stage takes `seconds` of slot time, and there are `slots`.
    pub fn on_arrival(&mut self, now: Instant, seconds: &[f64], slots: f64) -> usize {
        let left = (-now.since(self.last).as_secs_f64() / MEMORY).exp();
        (self.rate, self.last) = (self.rate * left + 1.0 / MEMORY, now);
        let fits = |cost: &f64| self.rate * cost <= slots * UTILISATION;
        let deepest = seconds.iter().rposition(fits).unwrap_or(0);
        if deepest <= self.stage {
            (self.stage, self.fits_since) = (deepest, None);
        } else {
            let since = *self.fits_since.get_or_insert(now);
            if now.since(since).as_secs_f64() >= SETTLES {
                (self.stage, self.fits_since) = (deepest, None);
            }
        }
        self.stage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_parses_to_it() {
        for method in Method::ALL {
            assert_eq!(Method::parse(&method.to_string()), Ok(method));
        }
        assert!(Method::parse("knapsack").unwrap_err().to_string().contains("weir, push-out"));
    }

    #[test]
    fn the_stage_for_all_follows_the_rate_down_at_once_and_up_after_a_while() {
        let mut whole = WholeStage::default();
        let seconds = [0.001, 0.004, 0.03];
        let mut at = 0.0;
        let mut run = |rate: f64, span: f64| {
            let (mut stage, end) = (0, at + span);
            while at < end {
                at += 1.0 / rate;
                stage = whole.on_arrival(Instant::from_micros((at * 1e6) as u64), &seconds, 1.0);
            }
            stage
        };
        assert_eq!(run(20.0, 3.0), 2, "30 ms each fit 33 times into a second");
        assert_eq!(run(200.0, 0.5), 1, "at once");
        assert_eq!(run(2000.0, 1.0), 0, "though even that does not fit");
        assert_eq!(run(20.0, 0.9), 0, "not for every gap");
        assert_eq!(run(20.0, 4.0), 2);
    }

    #[test]
    fn the_load_is_what_the_wait_takes_of_the_time_left() {
        let at = Instant::from_millis;
        assert_eq!(load(at(10), at(20), Deadline(at(50))), 0.25);
        assert_eq!(load(at(10), at(5), Deadline(at(50))), 0.0);
        assert_eq!(load(at(60), at(60), Deadline(at(50))), 1.0);
    }
}
