//! A Poisson process whose intensity changes in steps: the engine under MMPP, Pareto sources and spikes.
//!
//! The intuition: in its own clock, which runs as fast as the intensity is high, every Poisson process is the same one of
//! rate 1. So a unit exponential is drawn and spent along the steps; where it is used up, a query arrives. That is
//! inversion of the integrated intensity, exact whatever the steps are (Çinlar, Introduction to Stochastic Processes,
//! 1975, section 4.7).

use crate::prng::Prng;
use crate::units::Instant;

/// A stretch of constant intensity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Queries a nanosecond.
    pub intensity: f64,
    /// Where it ends, in nanoseconds; infinite if it never does.
    pub until: f64,
}

/// Where the next step comes from; the first begins at zero and each where the one before it ended.
pub(super) trait Steps {
    fn next(&mut self, prng: &mut Prng) -> Step;
}

/// Instants of the process with these steps, up to the end of the time axis.
#[derive(Clone, Debug)]
pub(super) struct Modulated<S> {
    steps: S,
    step: Step,
    now: f64,
    prng: Prng,
}

impl<S: Steps> Modulated<S> {
    pub(super) fn new(mut steps: S, mut prng: Prng) -> Self {
        let step = steps.next(&mut prng);
        Modulated { steps, step, now: 0.0, prng }
    }
}

impl<S: Steps> Iterator for Modulated<S> {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        let mut left = self.prng.exponential();
        while self.now < END {
            let room = (self.step.until - self.now) * self.step.intensity;
            // An endless step without intensity has no room (0 times infinity is not a number): on to the end.
            if left < room {
                self.now += left / self.step.intensity;
                return instant(self.now);
            }
            left -= room.max(0.0);
            self.now = self.step.until;
            if self.now < END {
                self.step = self.steps.next(&mut self.prng);
            }
        }
        None
    }
}

/// The end of the time axis, in nanoseconds: 584 years, which only absurd parameters reach.
pub(super) const END: f64 = 18_446_744_073_709_551_616.0;

/// The instant so many nanoseconds from zero; none beyond the end of the axis.
pub(super) fn instant(nanos: f64) -> Option<Instant> {
    (nanos < END).then(|| Instant::from_nanos(nanos as u64))
}

/// So many a second as so many a nanosecond.
pub(super) fn per_nano(per_second: f64) -> f64 {
    per_second / 1e9
}
