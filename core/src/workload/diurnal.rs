//! A Poisson process whose rate swings like the hours of a day, from the quietest moment on.

use std::fmt;
use std::time::Duration;

use crate::prng::Prng;
use crate::prng::elementary::cos_turns;
use crate::units::Instant;

use super::arrivals::BadArrivals;
use super::modulated::{instant, per_nano};
use super::parameter::{Allowed, PERIOD_MIN, Parameter, TIME_MAX, Values, time_text};
use super::rate::{BadRate, Rate};

/// A Poisson process of rate (min + max)/2 − (max − min)/2 cos(2π t / period): `min` at zero, `max` half a period later.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Diurnal {
    /// Queries a second at the quietest moment; may be 0.
    pub min: f64,
    /// Queries a second at the busiest; at least `min`.
    pub max: f64,
    /// From one quietest moment to the next.
    pub period: Duration,
}

const fn parameter(name: &'static str, allowed: Allowed) -> Parameter {
    Parameter { process: "diurnal", name, allowed }
}
const MIN: Parameter = parameter("min", Allowed::Between(0.0, Rate::PER_SECOND_MAX));
const MAX: Parameter = parameter("max", Allowed::Above(0.0, Rate::PER_SECOND_MAX));
const PERIOD: Parameter = parameter("period", Allowed::Time(PERIOD_MIN, TIME_MAX));

impl Diurnal {
    pub(super) fn read(text: &str) -> Result<Diurnal, BadArrivals> {
        let values = Values::read("diurnal", text, &[MIN, MAX, PERIOD])?;
        Ok(Diurnal {
            min: values.needed_number(&MIN)?,
            max: values.needed_number(&MAX)?,
            period: values.needed_time(&PERIOD)?,
        })
    }

    pub(super) fn check(&self) -> Result<(), BadArrivals> {
        MIN.check(self.min)?;
        MAX.check(self.max)?;
        PERIOD.check_time(self.period)?;
        if self.max < self.min {
            return Err(BadArrivals::Order { process: "diurnal", parameter: "max", floor: "min" });
        }
        Ok(())
    }

    /// Both rates by the same factor, so that the mean is `rate`; as it is without one.
    pub(super) fn scaled_to(&self, rate: Option<Rate>) -> Result<Diurnal, (&'static str, BadRate)> {
        let factor = rate.map_or(1.0, |rate| rate.as_per_second() / self.rate());
        let max = Rate::per_second(self.max * factor).map_err(|bad| ("max", bad))?;
        Ok(Diurnal { min: self.min * factor, max: max.as_per_second(), ..*self })
    }

    /// Mean rate over whole periods, in queries a second.
    pub fn rate(&self) -> f64 {
        (self.min + self.max) / 2.0
    }
}

impl fmt::Display for Diurnal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "min={},max={},period={}", self.min, self.max, time_text(self.period))
    }
}

/// Its instants, by thinning, which is exact: candidates come at `max`, and each stays with the probability that its
/// moment has (Lewis and Shedler, 1979).
#[derive(Clone, Debug)]
pub(super) struct Thinned {
    /// Queries a nanosecond.
    max: f64,
    /// Half of what the rate swings by, as a share of `max`.
    swing: f64,
    /// Nanoseconds.
    period: f64,
    now: f64,
    prng: Prng,
}

impl Thinned {
    pub(super) fn new(diurnal: &Diurnal, prng: Prng) -> Self {
        let swing = (1.0 - diurnal.min / diurnal.max) / 2.0;
        Thinned { max: per_nano(diurnal.max), swing, period: diurnal.period.as_nanos() as f64, now: 0.0, prng }
    }
}

impl Iterator for Thinned {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        loop {
            self.now += self.prng.exponential() / self.max;
            let at = instant(self.now)?;
            if self.prng.uniform() < 1.0 - self.swing * (1.0 + cos_turns(self.now / self.period)) {
                return Some(at);
            }
        }
    }
}
