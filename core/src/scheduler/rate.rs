//! What a model asks for and gets of late: how fast its queries arrive, how much time they have, how much of the slots it has.

use crate::prng::elementary::exp;
use crate::units::Instant;

/// Memory of the rate, in seconds: long against a batch, short against a spike.
const TAU: f64 = 0.25;
/// Silent for so long, a model counts for nothing: four times its memory.
const SILENT: f64 = 4.0 * TAU;
/// Share of a new query in the running mean of the time that queries bring.
const SPAN_SHARE: f64 = 1.0 / 16.0;

/// Time is cut into periods as long as what is silent counts. What decays for one rate decays for all: with each rate brought
/// to the start of its period, one exponential serves a whole device.
const PERIOD: u64 = (SILENT * 1e9) as u64;

/// How far rates have decayed at an instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decay {
    now: Instant,
    /// Since the start of this period.
    since_start: f64,
    /// Since the start of the one before.
    since_previous: f64,
}

impl Decay {
    pub fn at(now: Instant) -> Decay {
        let since_start = exp(-into_period(now) / TAU);
        Decay { now, since_start, since_previous: since_start * exp(-SILENT / TAU) }
    }
}

fn period(at: Instant) -> u64 {
    at.as_nanos() / PERIOD
}

/// Seconds from the start of its period.
fn into_period(at: Instant) -> f64 {
    (at.as_nanos() % PERIOD) as f64 / 1e9
}

/// What came of late, a second: it decays with e^(−Δt/τ), and all that comes adds its amount by τ.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    sum: f64,
    last: Option<Instant>,
    /// The sum as it would have had to be at the start of the period of `last`, to be `sum` then.
    at_start: f64,
}

impl Recent {
    pub fn new() -> Recent {
        Recent { sum: 0.0, last: None, at_start: 0.0 }
    }

    pub fn add(&mut self, now: Instant, amount: f64) {
        if let Some(last) = self.last {
            let gap = now.since(last).as_secs_f64();
            self.sum *= if gap > 0.0 { exp(-gap / TAU) } else { 1.0 };
        }
        self.sum += amount / TAU;
        self.last = Some(now);
        self.at_start = self.sum * exp(into_period(now) / TAU);
    }

    /// What it is a second; `None` where none came for long.
    pub fn per_second(&self, decay: &Decay) -> Option<f64> {
        let last = self.last?;
        // In no period but this one and the one before can anything be that is not silent.
        (decay.now.since(last).as_nanos() < u128::from(PERIOD)).then(|| {
            let same = period(last) == period(decay.now);
            self.at_start * if same { decay.since_start } else { decay.since_previous }
        })
    }
}

/// A running estimate of the rate and of the time that queries have (`scheduling.md` section 15).
#[derive(Clone, Debug)]
pub(super) struct Rate {
    queries: Recent,
    /// Deadline less arrival, in nanoseconds.
    span: f64,
}

impl Rate {
    pub fn new() -> Rate {
        Rate { queries: Recent::new(), span: f64::INFINITY }
    }

    /// A query came at `now` with `span` nanoseconds to its deadline.
    pub fn on_arrival(&mut self, now: Instant, span: f64) {
        self.queries.add(now, 1.0);
        let share = if self.span.is_finite() { SPAN_SHARE } else { 1.0 };
        self.span = if share == 1.0 { span } else { self.span + share * (span - self.span) };
    }

    /// Queries a second; `None` where none came for long.
    pub fn per_second(&self, decay: &Decay) -> Option<f64> {
        self.queries.per_second(decay)
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
        assert!((even.per_second(&Decay::at(now)).unwrap() / 1000.0 - 1.0).abs() < 0.02);
        let (slower, now) = fed((0..2000).map(|i| if i < 1800 { 0.001 } else { 0.01 }));
        assert!((slower.per_second(&Decay::at(now)).unwrap() / 100.0 - 1.0).abs() < 0.05);
        assert!((slower.span() - 5e7).abs() < 1.0);
    }

    #[test]
    fn a_rate_decays_by_its_law_over_the_end_of_a_period_too() {
        for start in [0.1, 0.95] {
            let (mut rate, at) = (Rate::new(), |seconds: f64| Instant::from_nanos((seconds * 1e9) as u64));
            rate.on_arrival(at(start), 5e7);
            for later in [0.0, 0.02, 0.3, 0.8] {
                let found = rate.per_second(&Decay::at(at(start + later))).unwrap();
                let law = (1.0 / TAU) * exp(-later / TAU);
                assert!((found / law - 1.0).abs() < 1e-6, "{start} {later}: {found} {law}");
            }
        }
    }

    #[test]
    fn what_is_silent_counts_for_nothing() {
        let (rate, now) = fed((0..100).map(|_| 0.001));
        assert!(rate.per_second(&Decay::at(now + std::time::Duration::from_millis(999))).is_some());
        assert_eq!(rate.per_second(&Decay::at(now + std::time::Duration::from_millis(1001))), None);
        assert_eq!(Rate::new().per_second(&Decay::at(now)), None);
    }
}
