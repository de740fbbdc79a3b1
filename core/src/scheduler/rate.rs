//! How fast queries of one model arrive, and how much time they have.

use crate::prng::elementary::exp;
use crate::units::Instant;

/// Memory of the rate, in seconds: long against a batch, short against a spike.
const TAU: f64 = 0.25;
/// Silent for so long, a model counts for nothing: four times its memory.
const SILENT: f64 = 4.0 * TAU;
/// Share of a new query in the running mean of the time that queries bring.
const SPAN_SHARE: f64 = 1.0 / 16.0;

/// A running estimate of the rate and of the time that queries have: λ decays with e^(−Δt/τ) and every arrival adds 1/τ
/// (`scheduling.md` section 15).
#[derive(Clone, Debug)]
pub(super) struct Rate {
    lambda: f64,
    last: Option<Instant>,
    /// Deadline less arrival, in nanoseconds.
    span: f64,
}

impl Rate {
    pub fn new() -> Rate {
        Rate { lambda: 0.0, last: None, span: f64::INFINITY }
    }

    /// A query came at `now` with `span` nanoseconds to its deadline.
    pub fn on_arrival(&mut self, now: Instant, span: f64) {
        if let Some(last) = self.last {
            let gap = now.since(last).as_secs_f64();
            self.lambda *= if gap > 0.0 { exp(-gap / TAU) } else { 1.0 };
        }
        self.lambda += 1.0 / TAU;
        self.last = Some(now);
        let share = if self.span.is_finite() { SPAN_SHARE } else { 1.0 };
        self.span = if share == 1.0 { span } else { self.span + share * (span - self.span) };
    }

    /// Queries a second at `now`; `None` where none came for long.
    pub fn per_second(&self, now: Instant) -> Option<f64> {
        let silence = now.since(self.last?).as_secs_f64();
        (silence < SILENT).then(|| self.lambda * exp(-silence / TAU))
    }

    /// Nanoseconds that a query has, on average; infinite where none came yet.
    pub fn span(&self) -> f64 {
        self.span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(gaps: impl Iterator<Item = f64>) -> (Rate, Instant) {
        let (mut rate, mut at) = (Rate::new(), 0.0);
        for gap in gaps {
            at += gap;
            rate.on_arrival(Instant::from_nanos((at * 1e9) as u64), 5e7);
        }
        (rate, Instant::from_nanos((at * 1e9) as u64))
    }

    #[test]
    fn the_rate_of_a_known_process_is_found_and_followed() {
        let (even, now) = fed((0..2000).map(|_| 0.001));
        assert!((even.per_second(now).unwrap() / 1000.0 - 1.0).abs() < 0.02);
        let (slower, now) = fed((0..2000).map(|i| if i < 1800 { 0.001 } else { 0.01 }));
        assert!((slower.per_second(now).unwrap() / 100.0 - 1.0).abs() < 0.05);
        assert!((slower.span() - 5e7).abs() < 1.0);
    }

    #[test]
    fn what_is_silent_counts_for_nothing() {
        let (rate, now) = fed((0..100).map(|_| 0.001));
        assert!(rate.per_second(now + std::time::Duration::from_millis(999)).is_some());
        assert_eq!(rate.per_second(now + std::time::Duration::from_millis(1001)), None);
        assert_eq!(Rate::new().per_second(now), None);
    }
}
