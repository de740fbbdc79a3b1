//! Self-similar arrivals: bursts within bursts, at every time scale.
//!
//! The intuition: a few sources, each of them silent or sending, whose periods have no typical length. Averaging such
//! traffic over longer windows does not smooth it as it smooths Poisson traffic, because some period is always as long as
//! the window. That is how web traffic was found to behave (Crovella and Bestavros, 1997).
//!
//! The contract: `sources` independent sources (Willinger, Taqqu, Sherman and Wilson, Self-similarity through
//! high-variability, 1997). Each is on and off in turn, for Pareto times: P(longer than x) = (m/x)^alpha for x ≥ m, with
//! m = mean (alpha − 1) / alpha. While on, a source sends a Poisson process of rate
//!
//! rate / sources × (mean_on + mean_off) / mean_on,
//!
//! so that the whole has the mean `rate`, and at most (mean_on + mean_off) / mean_on times that when all are on. Sources
//! start stationary: on with the share of time they are, for what is left of a period chosen by its length. The variance
//! of counts in windows of width t grows as t^(2H) with H = (3 − alpha) / 2.
//!
//! Expect any one run to miss its rate: with H = 0.75 the mean of a run a hundred times longer is only three times surer.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::time::Duration;

use crate::prng::Prng;
use crate::prng::elementary::pow;
use crate::units::Instant;

use super::arrivals::BadArrivals;
use super::modulated::{END, Step, Steps, per_nano};
use super::parameter::{Allowed, Parameter, TIME_MAX, Values, time_text};
use super::rate::Rate;

/// A sum of on/off sources with Pareto periods.
#[derive(Clone, Debug, PartialEq)]
pub struct Pareto {
    /// Exponent of the tail of periods, from 1.05 to below 2: the lower, the longer the memory.
    pub alpha: f64,
    /// How many sources; the more, the smaller a burst is against the mean.
    pub sources: u32,
    /// Mean time that a source sends.
    pub mean_on: Duration,
    /// Mean time that a source is silent.
    pub mean_off: Duration,
}

/// Below 1.05 nearly all periods are far shorter than their mean, which only the rarest make up; from 2 on the sum is not
/// self-similar.
const ALPHA: Parameter = parameter("alpha", Allowed::Below(1.05, 2.0));
const SOURCES: Parameter = parameter("sources", Allowed::Whole(1, 256));
const MEAN_ON: Parameter = parameter("mean_on", Allowed::Time(PERIOD_MEAN_MIN, TIME_MAX));
const MEAN_OFF: Parameter = parameter("mean_off", Allowed::Time(PERIOD_MEAN_MIN, TIME_MAX));

/// At alpha 1.05 most periods are a twentieth of their mean; more or shorter ones than these cost more than the queries.
const PERIOD_MEAN_MIN: Duration = Duration::from_millis(10);

/// What is not said: 4 of 16 sources are on in the mean, so that a second's rate varies by some 40 % and is at most four
/// times the mean.
const SOURCES_UNSAID: u32 = 16;
const MEAN_ON_UNSAID: Duration = Duration::from_millis(500);
const MEAN_OFF_UNSAID: Duration = Duration::from_millis(1500);

const fn parameter(name: &'static str, allowed: Allowed) -> Parameter {
    Parameter { process: "pareto", name, allowed }
}

impl Pareto {
    /// Sixteen sources, on for half a second and off for one and a half in the mean.
    pub fn new(alpha: f64) -> Self {
        Pareto { alpha, sources: SOURCES_UNSAID, mean_on: MEAN_ON_UNSAID, mean_off: MEAN_OFF_UNSAID }
    }

    pub(super) fn read(text: &str) -> Result<Pareto, BadArrivals> {
        let values = Values::read("pareto", text, &[ALPHA, SOURCES, MEAN_ON, MEAN_OFF])?;
        let mut pareto = Pareto::new(values.needed_number(&ALPHA)?);
        if let Some(sources) = values.number(&SOURCES)? {
            SOURCES.check(sources)?;
            pareto.sources = sources as u32;
        }
        pareto.mean_on = values.time(&MEAN_ON)?.unwrap_or(pareto.mean_on);
        pareto.mean_off = values.time(&MEAN_OFF)?.unwrap_or(pareto.mean_off);
        Ok(pareto)
    }

    pub(super) fn check(&self) -> Result<(), BadArrivals> {
        ALPHA.check(self.alpha)?;
        SOURCES.check(f64::from(self.sources))?;
        MEAN_ON.check_time(self.mean_on)?;
        MEAN_OFF.check_time(self.mean_off)
    }

    /// Share of time that a source sends.
    fn share_on(&self) -> f64 {
        let (on, off) = (self.mean_on.as_secs_f64(), self.mean_off.as_secs_f64());
        on / (on + off)
    }
}

impl fmt::Display for Pareto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "alpha={}", self.alpha)?;
        if self.sources != SOURCES_UNSAID {
            write!(f, ",sources={}", self.sources)?;
        }
        if self.mean_on != MEAN_ON_UNSAID {
            write!(f, ",mean_on={}", time_text(self.mean_on))?;
        }
        if self.mean_off != MEAN_OFF_UNSAID {
            write!(f, ",mean_off={}", time_text(self.mean_off))?;
        }
        Ok(())
    }
}

/// A period of this mean, in nanoseconds: the inverse of its distribution function.
pub(super) fn period(alpha: f64, mean: f64, prng: &mut Prng) -> f64 {
    mean * (alpha - 1.0) / alpha * pow(prng.uniform(), -1.0 / alpha)
}

/// What is left of a period that was met at a random moment. Its density is P(longer than x) / mean, which integrates to
/// P(more than x left) = 1 − x/mean below the shortest period m, and (x/m)^(1−alpha) / alpha above.
pub(super) fn rest_of_period(alpha: f64, mean: f64, prng: &mut Prng) -> f64 {
    let more_left = prng.uniform();
    if more_left * alpha > 1.0 {
        return mean * (1.0 - more_left);
    }
    mean * (alpha - 1.0) / alpha * pow(more_left * alpha, -1.0 / (alpha - 1.0))
}

/// The number of sources that are on, from change to change.
#[derive(Clone, Debug)]
pub(super) struct ParetoSteps {
    alpha: f64,
    /// Mean nanoseconds: off, on.
    means: [f64; 2],
    /// Queries a nanosecond of a source that is on.
    intensity: f64,
    /// Of each source, when its period ends, and whether it is on until then. Whole nanoseconds, to be ordered.
    ends: BinaryHeap<Reverse<(Instant, bool)>>,
    on: u32,
}

impl ParetoSteps {
    pub(super) fn new(pareto: &Pareto, rate: Rate, prng: &mut Prng) -> Self {
        let (alpha, share_on) = (pareto.alpha, pareto.share_on());
        let means = [pareto.mean_off, pareto.mean_on].map(|mean| mean.as_nanos() as f64);
        let mut ends = BinaryHeap::new();
        let mut on = 0;
        for _ in 0..pareto.sources {
            let is_on = prng.uniform() < share_on;
            on += u32::from(is_on);
            let rest = rest_of_period(alpha, means[usize::from(is_on)], prng);
            ends.push(Reverse((Instant::from_nanos(rest.round() as u64), is_on)));
        }
        let intensity = per_nano(rate.as_per_second()) / f64::from(pareto.sources) / share_on;
        ParetoSteps { alpha, means, intensity, ends, on }
    }
}

impl Steps for ParetoSteps {
    fn next(&mut self, prng: &mut Prng) -> Step {
        let Some(Reverse((until, was_on))) = self.ends.pop() else {
            unreachable!("a source was lost");
        };
        let step = Step { intensity: self.intensity * f64::from(self.on), until: nanos(until) };
        let is_on = !was_on;
        self.on = if is_on { self.on + 1 } else { self.on - 1 };
        let length = period(self.alpha, self.means[usize::from(is_on)], prng);
        let end = until.as_nanos().saturating_add(length.round() as u64);
        self.ends.push(Reverse((Instant::from_nanos(end), is_on)));
        step
    }
}

/// Nanoseconds from zero; a period that outlasts the axis ends with it.
fn nanos(until: Instant) -> f64 {
    if until == Instant::FAR { END } else { until.as_nanos() as f64 }
}
