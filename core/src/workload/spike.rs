//! A steady Poisson process with one step up and down: does a server recover from a rush?

use std::fmt;
use std::time::Duration;

use crate::prng::Prng;

use super::arrivals::BadArrivals;
use super::modulated::{Step, Steps, per_nano};
use super::parameter::{Allowed, Parameter, TIME_MAX, Values, time_text};
use super::rate::{BadRate, Rate};

/// A Poisson process of rate `base`, but `peak` from `at` on for `length` (which is written `for`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spike {
    /// Queries a second before and after: the mean rate, as a spike is a vanishing part of an endless run.
    pub base: f64,
    /// Queries a second meanwhile; at least `base`.
    pub peak: f64,
    /// When it begins.
    pub at: Duration,
    /// How long it lasts.
    pub length: Duration,
}

const fn parameter(name: &'static str, allowed: Allowed) -> Parameter {
    Parameter { process: "spike", name, allowed }
}
const BASE: Parameter = parameter("base", Allowed::Above(0.0, Rate::PER_SECOND_MAX));
const PEAK: Parameter = parameter("peak", Allowed::Above(0.0, Rate::PER_SECOND_MAX));
const AT: Parameter = parameter("at", Allowed::Time(Duration::ZERO, TIME_MAX));
const FOR: Parameter = parameter("for", Allowed::Time(Duration::from_nanos(1), TIME_MAX));

impl Spike {
    pub(super) fn read(text: &str) -> Result<Spike, BadArrivals> {
        let values = Values::read("spike", text, &[BASE, PEAK, AT, FOR])?;
        Ok(Spike {
            base: values.needed_number(&BASE)?,
            peak: values.needed_number(&PEAK)?,
            at: values.needed_time(&AT)?,
            length: values.needed_time(&FOR)?,
        })
    }

    pub(super) fn check(&self) -> Result<(), BadArrivals> {
        BASE.check(self.base)?;
        PEAK.check(self.peak)?;
        AT.check_time(self.at)?;
        FOR.check_time(self.length)?;
        if self.peak < self.base {
            return Err(BadArrivals::Order { process: "spike", parameter: "peak", floor: "base" });
        }
        Ok(())
    }

    /// `base` becomes `rate` and `peak` as many times more; as it is without one.
    pub(super) fn scaled_to(&self, rate: Option<Rate>) -> Result<Spike, (&'static str, BadRate)> {
        let base = rate.map_or(self.base, Rate::as_per_second);
        let peak = Rate::per_second(self.peak * (base / self.base)).map_err(|bad| ("peak", bad))?;
        Ok(Spike { base, peak: peak.as_per_second(), ..*self })
    }

    /// Mean rate of an endless run, in queries a second.
    pub fn rate(&self) -> f64 {
        self.base
    }
}

impl fmt::Display for Spike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, length) = (time_text(self.at), time_text(self.length));
        write!(f, "base={},peak={},at={at},for={length}", self.base, self.peak)
    }
}

/// Before, meanwhile, after.
#[derive(Clone, Debug)]
pub(super) struct SpikeSteps(std::array::IntoIter<Step, 3>);

impl SpikeSteps {
    pub(super) fn new(spike: &Spike) -> Self {
        let at = spike.at.as_nanos() as f64;
        let end = (spike.at + spike.length).as_nanos() as f64;
        let (base, peak) = (per_nano(spike.base), per_nano(spike.peak));
        let steps = [(base, at), (peak, end), (base, f64::INFINITY)];
        SpikeSteps(steps.map(|(intensity, until)| Step { intensity, until }).into_iter())
    }
}

impl Steps for SpikeSteps {
    fn next(&mut self, _: &mut Prng) -> Step {
        self.0.next().expect("the last step never ends")
    }
}
