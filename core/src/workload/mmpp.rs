//! Markov-modulated Poisson process of two states: now slow, now fast.
//!
//! The intuition: a crowd that comes and goes. While a state lasts, queries are Poisson; each state lasts an exponential
//! time. It starts in either state with the share of time it has, so it is stationary from zero on.
//!
//! The contract: mean rate and index of dispersion are closed forms (Fischer and Meier-Hellstern, The MMPP cookbook,
//! Performance Evaluation 18, 1993), in [`Mmpp::rate`] and [`Mmpp::dispersion`].

use std::fmt;
use std::time::Duration;

use crate::prng::Prng;
use crate::prng::elementary::exp;

use super::arrivals::BadArrivals;
use super::modulated::{Step, Steps, per_nano};
use super::parameter::{Allowed, PERIOD_MIN, Parameter, TIME_MAX, Values, time_text};
use super::rate::{BadRate, Rate};

/// A Poisson process whose rate is `low` and `high` in turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mmpp {
    /// Queries a second in the slow state; may be 0.
    pub low: f64,
    /// Queries a second in the fast state; at least `low`.
    pub high: f64,
    /// Mean time that the slow state lasts.
    pub mean_low: Duration,
    /// Mean time that the fast state lasts.
    pub mean_high: Duration,
}

const fn parameter(name: &'static str, allowed: Allowed) -> Parameter {
    Parameter { process: "mmpp", name, allowed }
}
const LOW: Parameter = parameter("low", Allowed::Between(0.0, Rate::PER_SECOND_MAX));
const HIGH: Parameter = parameter("high", Allowed::Above(0.0, Rate::PER_SECOND_MAX));
const MEAN_LOW: Parameter = parameter("mean_low", Allowed::Time(PERIOD_MIN, TIME_MAX));
const MEAN_HIGH: Parameter = parameter("mean_high", Allowed::Time(PERIOD_MIN, TIME_MAX));

impl Mmpp {
    pub(super) fn read(text: &str) -> Result<Mmpp, BadArrivals> {
        let values = Values::read("mmpp", text, &[LOW, HIGH, MEAN_LOW, MEAN_HIGH])?;
        Ok(Mmpp {
            low: values.needed_number(&LOW)?,
            high: values.needed_number(&HIGH)?,
            mean_low: values.needed_time(&MEAN_LOW)?,
            mean_high: values.needed_time(&MEAN_HIGH)?,
        })
    }

    pub(super) fn check(&self) -> Result<(), BadArrivals> {
        LOW.check(self.low)?;
        HIGH.check(self.high)?;
        MEAN_LOW.check_time(self.mean_low)?;
        MEAN_HIGH.check_time(self.mean_high)?;
        if self.high < self.low {
            return Err(BadArrivals::Order { process: "mmpp", parameter: "high", floor: "low" });
        }
        Ok(())
    }

    /// Both rates by the same factor, so that the mean is `rate`; as it is without one.
    pub(super) fn scaled_to(&self, rate: Option<Rate>) -> Result<Mmpp, (&'static str, BadRate)> {
        let factor = rate.map_or(1.0, |rate| rate.as_per_second() / self.rate());
        let high = Rate::per_second(self.high * factor).map_err(|bad| ("high", bad))?;
        Ok(Mmpp { low: self.low * factor, high: high.as_per_second(), ..*self })
    }

    /// Mean rate, in queries a second.
    pub fn rate(&self) -> f64 {
        self.low + (self.high - self.low) * self.share_high()
    }

    /// Share of time in the fast state.
    fn share_high(&self) -> f64 {
        let (low, high) = (self.mean_low.as_secs_f64(), self.mean_high.as_secs_f64());
        high / (low + high)
    }

    /// Index of dispersion of the counts in windows of this width: variance over mean. 1 in the shortest windows, and
    ///
    /// 1 + A [1 − (1 − e^(−t/τ)) τ/t] with A = 2 p q (high − low)² τ / rate,
    ///
    /// where p and q are the shares of time in the states and 1/τ = 1/mean_low + 1/mean_high.
    pub fn dispersion(&self, width: Duration) -> f64 {
        let (low, high) = (self.mean_low.as_secs_f64(), self.mean_high.as_secs_f64());
        let relaxation = low * high / (low + high);
        let share = self.share_high();
        let limit = 2.0 * share * (1.0 - share) * (self.high - self.low).powi(2) * relaxation / self.rate();
        1.0 + limit * rise(width.as_secs_f64() / relaxation)
    }
}

/// 1 − (1 − e^(−x)) / x: the share of its limit that excess dispersion has reached in a window of x relaxation times.
pub(super) fn rise(x: f64) -> f64 {
    // The first terms of its series, where the difference of nearly equal numbers would be noise.
    if x < 1e-4 { x / 2.0 - x * x / 6.0 } else { 1.0 - (1.0 - exp(-x)) / x }
}

impl fmt::Display for Mmpp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mean_low, mean_high) = (time_text(self.mean_low), time_text(self.mean_high));
        write!(f, "low={},high={},mean_low={mean_low},mean_high={mean_high}", self.low, self.high)
    }
}

/// The states in turn.
#[derive(Clone, Debug)]
pub(super) struct MmppSteps {
    /// Queries a nanosecond and mean nanoseconds: slow, fast.
    states: [(f64, f64); 2],
    share_high: f64,
    /// The state now, once it has started.
    state: Option<usize>,
    until: f64,
}

impl MmppSteps {
    pub(super) fn new(mmpp: &Mmpp) -> Self {
        let states = [(mmpp.low, mmpp.mean_low), (mmpp.high, mmpp.mean_high)]
            .map(|(rate, mean)| (per_nano(rate), mean.as_nanos() as f64));
        MmppSteps { states, share_high: mmpp.share_high(), state: None, until: 0.0 }
    }
}

impl Steps for MmppSteps {
    fn next(&mut self, prng: &mut Prng) -> Step {
        let state = match self.state {
            Some(state) => 1 - state,
            None => usize::from(prng.uniform() < self.share_high),
        };
        let (intensity, mean) = self.states[state];
        self.state = Some(state);
        self.until += mean * prng.exponential();
        Step { intensity, until: self.until }
    }
}
