//! Independent gaps of one distribution: constant, exponential or gamma.
//!
//! The intuition: a run begins when it begins, not when a query has just come. Long gaps are likelier to be cut by that
//! moment than short ones, so the first gap is what is left of a gap chosen by its length. Without this a process of CV 4
//! would bring 7.5 queries too many at the start of every run, in the mean (Cox, Renewal Theory, 1962, chapters 2 and 5).

use crate::prng::Prng;
use crate::units::Instant;

use super::modulated::instant;
use super::rate::Rate;

/// The distribution of a gap, apart from its mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Gaps {
    /// All equal, the first from zero.
    Equal,
    /// Without memory, so that the first is like the others.
    Exponential,
    /// Shape k has CV 1/√k and mean k; chosen by its length it has shape k + 1.
    Gamma { shape: f64 },
}

/// Instants that are such gaps apart.
#[derive(Clone, Debug)]
pub(super) struct Renewal {
    gaps: Gaps,
    /// Nanoseconds.
    mean: f64,
    /// Nanoseconds.
    now: f64,
    count: u64,
    prng: Prng,
}

impl Renewal {
    pub(super) fn new(gaps: Gaps, rate: Rate, prng: Prng) -> Self {
        Renewal { gaps, mean: 1e9 / rate.as_per_second(), now: 0.0, count: 0, prng }
    }
}

impl Iterator for Renewal {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        self.count += 1;
        match self.gaps {
            // Multiplied, not added up: the millionth is as exact as the first.
            Gaps::Equal => self.now = self.mean * self.count as f64,
            Gaps::Exponential => self.now += self.mean * self.prng.exponential(),
            Gaps::Gamma { shape } if self.count == 1 => {
                self.now = self.mean * self.prng.uniform() * self.prng.gamma(shape + 1.0) / shape;
            }
            Gaps::Gamma { shape } => self.now += self.mean * self.prng.gamma(shape) / shape,
        }
        instant(self.now)
    }
}
