//! When queries arrive: pure, seeded processes, shared by the load generator and the simulator.

#[cfg(test)]
mod tests;

use crate::prng::Prng;
use crate::units::Instant;

/// An arrival process, apart from its rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Equal gaps.
    Constant,
    /// Exponential gaps: what many independent callers make. CV 1.
    Poisson,
    /// Gamma distributed gaps with this coefficient of variation: above 1 they come in bursts.
    Gamma {
        /// Standard deviation of a gap over its mean.
        cv: f64,
    },
}

/// A process that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no arrival process; write constant, poisson or gamma:cv=4 (with a cv above 0 and at most 100)")]
pub struct BadArrivals {
    text: String,
}

impl Arrivals {
    /// Parses `constant`, `poisson` or `gamma:cv=4`.
    pub fn parse(text: &str) -> Result<Arrivals, BadArrivals> {
        let cv = |text: &str| text.parse::<f64>().ok().filter(|cv| *cv > 0.0 && *cv <= 100.0);
        match text {
            "constant" => Some(Arrivals::Constant),
            "poisson" => Some(Arrivals::Poisson),
            _ => text.strip_prefix("gamma:cv=").and_then(cv).map(|cv| Arrivals::Gamma { cv }),
        }
        .ok_or_else(|| BadArrivals { text: text.to_owned() })
    }

    /// The text that parses to this.
    pub fn to_text(self) -> String {
        match self {
            Arrivals::Constant => "constant".into(),
            Arrivals::Poisson => "poisson".into(),
            Arrivals::Gamma { cv } => format!("gamma:cv={cv}"),
        }
    }

    /// Instants at `rate` per second (finite, above 0), without end. The first comes one gap after zero.
    pub fn instants(self, rate: f64, mut prng: Prng) -> impl Iterator<Item = Instant> {
        assert!(rate.is_finite() && rate > 0.0, "a rate is finite and above 0");
        let mean = 1e9 / rate;
        let mut now = 0.0f64;
        std::iter::from_fn(move || {
            now += mean
                * match self {
                    Arrivals::Constant => 1.0,
                    Arrivals::Poisson => prng.exponential(),
                    // Shape k has CV 1/√k and mean k.
                    Arrivals::Gamma { cv } => prng.gamma(1.0 / (cv * cv)) * cv * cv,
                };
            Some(Instant::from_nanos(now as u64))
        })
    }
}
