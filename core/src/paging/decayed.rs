//! A sum of what happened of late: each part of it decays with e^(−Δt/τ).

use crate::prng::elementary::exp;
use crate::units::Instant;

/// Nothing at first; `TAU` is τ in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Decayed<const TAU: u32> {
    sum: f64,
    /// When it was added to last.
    pub last: Instant,
}

impl<const TAU: u32> Decayed<TAU> {
    pub fn add(&mut self, now: Instant, amount: f64) {
        *self = Decayed { sum: self.left(now) + amount, last: now };
    }

    pub fn left(&self, now: Instant) -> f64 {
        self.sum * exp(-now.since(self.last).as_secs_f64() / f64::from(TAU))
    }

    /// A second.
    pub fn rate(&self, now: Instant) -> f64 {
        self.left(now) / f64::from(TAU)
    }
}
