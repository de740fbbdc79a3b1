//! Replaying a trace: a cut of it, faster or slower, with more or fewer requests.
//!
//! The intuition: `speed` squeezes time, so that bursts become shorter and steeper; `scale` leaves time and changes how
//! many come, so that a burst of a second stays a burst of a second. Unchanged, the replay is the trace, to the nanosecond.
//!
//! The contract, in this order:
//!
//! 1. `model` takes the requests of one model of the trace, at their times in the whole of it: several replays, one for each model,
//!    are the trace again.
//! 2. `from` and `length` cut: requests with from ≤ t < from + length stay and are counted from `from`. Both are times of
//!    the trace. Without a length the cut goes on to the last request, inclusively.
//! 3. `speed` divides times.
//! 4. `scale` below 1 keeps each request with that probability. Above 1 each comes `scale` times, where the fraction is the
//!    probability of one more: first itself, at its own instant, then its copies at random between it and the next request
//!    (or the end of the cut). So the course of the rate is kept at every width of window down to the gaps of the trace;
//!    index of dispersion in long windows grows in proportion, as it does when every caller asks `scale` times.
//!
//! A rate that is given replaces `scale` by what gives the cut that mean rate. Without `scale` nothing is drawn and the
//! seed does not matter.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::prng::Prng;
use crate::units::Instant;

use super::arrivals::BadArrivals;
use super::parameter::{Allowed, Parameter, TIME_MAX, Values, time_text};
use super::process::BadProcess;
use super::rate::Rate;
use super::trace::Trace;

/// How a trace is replayed.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// The file it is in: not empty, without a comma.
    pub file: String,
    /// How many times as many requests come.
    pub scale: f64,
    /// How many times as fast time passes.
    pub speed: f64,
    /// Where in the trace it begins.
    pub from: Duration,
    /// How much of the trace it takes; to the end without.
    pub length: Option<Duration>,
    /// The only model of the trace that is replayed; all without.
    pub model: Option<String>,
}

const SCALE_MAX: f64 = 1000.0;
/// Models that are named to somebody who asked for another.
const MODELS_TOLD: usize = 20;
const fn parameter(name: &'static str, allowed: Allowed) -> Parameter {
    Parameter { process: "trace", name, allowed }
}
const SCALE: Parameter = parameter("scale", Allowed::Above(0.0, SCALE_MAX));
const SPEED: Parameter = parameter("speed", Allowed::Between(0.001, 1e6));
const FROM: Parameter = parameter("from", Allowed::Time(Duration::ZERO, TIME_MAX));
const LENGTH: Parameter = parameter("length", Allowed::Time(Duration::from_nanos(1), TIME_MAX));
const MODEL: Parameter = parameter("model", Allowed::Name);

impl Replay {
    /// All of the trace in this file, as it is.
    pub fn new(file: impl Into<String>) -> Replay {
        Replay { file: file.into(), scale: 1.0, speed: 1.0, from: Duration::ZERO, length: None, model: None }
    }

    pub(super) fn read(text: &str) -> Result<Replay, BadArrivals> {
        let (file, rest) = text.split_once(',').unwrap_or((text, ""));
        let values = Values::read("trace", rest, &[SCALE, SPEED, FROM, LENGTH, MODEL])?;
        Ok(Replay {
            file: file.to_owned(),
            scale: values.number(&SCALE)?.unwrap_or(1.0),
            speed: values.number(&SPEED)?.unwrap_or(1.0),
            from: values.time(&FROM)?.unwrap_or_default(),
            length: values.time(&LENGTH)?,
            model: values.name(&MODEL)?,
        })
    }

    pub(super) fn check(&self) -> Result<(), BadArrivals> {
        if self.file.is_empty() || self.file.contains(',') {
            return Err(BadArrivals::File);
        }
        SCALE.check(self.scale)?;
        SPEED.check(self.speed)?;
        FROM.check_time(self.from)?;
        self.length.map_or(Ok(()), |length| LENGTH.check_time(length))?;
        self.model.as_ref().map_or(Ok(()), |model| MODEL.check_name(model))
    }
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.scale != 1.0 {
            write!(f, ",scale={}", self.scale)?;
        }
        if self.speed != 1.0 {
            write!(f, ",speed={}", self.speed)?;
        }
        if self.from != Duration::ZERO {
            write!(f, ",from={}", time_text(self.from))?;
        }
        self.length.map_or(Ok(()), |length| write!(f, ",length={}", time_text(length)))?;
        self.model.as_ref().map_or(Ok(()), |model| write!(f, ",model={model}"))
    }
}

/// The part of a trace that is replayed, at the speed at which it is.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    instants: Arc<[Instant]>,
    end: Instant,
    scale: f64,
}

impl Cut {
    pub(super) fn new(replay: &Replay, rate: Option<Rate>, trace: &Trace) -> Result<Cut, BadProcess> {
        let from = Instant::ZERO + replay.from;
        let last = Instant::ZERO + trace.length();
        let nothing = || {
            let length = replay.length.unwrap_or_else(|| last.since(from));
            BadProcess::NothingInCut { from: replay.from, length, end: trace.length() }
        };
        let known = |model: &String| trace.models().iter().position(|known| known == model);
        let wanted = match &replay.model {
            None => None,
            Some(model) => Some(known(model).ok_or_else(|| BadProcess::NoSuchModel {
                model: model.clone(),
                models: trace.models().iter().take(MODELS_TOLD).cloned().collect::<Vec<_>>().join(", "),
            })?),
        };
        let inside = |at: Instant| at >= from && replay.length.is_none_or(|length| at < from + length);
        let faster = |at: Instant| match replay.speed {
            1.0 => at,
            speed => Instant::from_nanos((at.as_nanos() as f64 / speed) as u64),
        };
        let moved = |at: Instant| faster(Instant::ZERO + at.since(from));
        let requests = trace.requests().iter().filter(|request| wanted.is_none_or(|wanted| request.model == wanted));
        let instants: Arc<[Instant]> = requests.map(|request| request.at).filter(|at| inside(*at)).map(moved).collect();
        if instants.is_empty() {
            return Err(nothing());
        }
        let end = moved(replay.length.map_or(last, |length| last.min(from + length)));
        let mut cut = Cut { instants, end, scale: replay.scale };
        if let Some(rate) = rate {
            cut.scale *= rate.as_per_second() / cut.rate().ok_or(BadProcess::NoRateOfItsOwn)?;
            SCALE.check(cut.scale).map_err(|_| BadProcess::Scale { scale: cut.scale, max: SCALE_MAX })?;
        }
        Ok(cut)
    }

    pub(super) fn length(&self) -> Duration {
        self.end.since(Instant::ZERO)
    }

    /// Requests a second; none if the cut has no length.
    pub(super) fn rate(&self) -> Option<f64> {
        let seconds = self.length().as_secs_f64();
        (seconds > 0.0).then(|| self.instants.len() as f64 * self.scale / seconds)
    }
}

/// The instants of a replay.
#[derive(Clone, Debug)]
pub(super) struct Replayed {
    cut: Cut,
    /// The request that comes next.
    index: usize,
    /// Copies of the one before it, the latest first.
    copies: Vec<Instant>,
    prng: Prng,
}

impl Replayed {
    pub(super) fn new(cut: &Cut, prng: Prng) -> Self {
        Replayed { cut: cut.clone(), index: 0, copies: Vec::new(), prng }
    }

    /// How often this request comes.
    fn times(&mut self) -> usize {
        let whole = self.cut.scale.floor();
        let fraction = self.cut.scale - whole;
        // Nothing is drawn for a whole scale.
        whole as usize + usize::from(fraction > 0.0 && self.prng.uniform() < fraction)
    }
}

impl Iterator for Replayed {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        loop {
            if let Some(copy) = self.copies.pop() {
                return Some(copy);
            }
            let at = *self.cut.instants.get(self.index)?;
            self.index += 1;
            let Some(copies) = self.times().checked_sub(1) else { continue };
            let next = self.cut.instants.get(self.index).copied().unwrap_or(self.cut.end);
            let gap = next.since(at).as_nanos() as u64;
            for _ in 0..copies {
                let into = if gap == 0 { 0 } else { self.prng.below(gap) };
                self.copies.push(Instant::from_nanos(at.as_nanos() + into));
            }
            self.copies.sort_unstable_by(|a, b| b.cmp(a));
            return Some(at);
        }
    }
}
