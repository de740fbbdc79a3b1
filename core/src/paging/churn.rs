//! Whether a node does little else than load: reloads take most of the time, or what was put out is asked for again at once.

use std::time::Duration;

use super::decayed::Decayed;
use crate::units::Instant;

/// Over how long, in seconds: many reloads, and short beside the time in which somebody looks.
const TAU: u32 = 10;
/// Share of the time that reloads take from which on it is too much, and below which it is over.
const BUSY: (f64, f64) = (0.8, 0.5);
/// Likewise, how often within that time something is asked for that was put out no longer ago than its reload takes.
const REGRETS: (f64, f64) = (5.0, 2.0);

/// What reloads took of late.
#[derive(Clone, Debug, Default)]
pub(super) struct Churn {
    busy: Decayed<TAU>,
    regrets: Decayed<TAU>,
    thrashes: bool,
    episodes: u64,
}

impl Churn {
    /// What had been in memory before is again.
    pub fn reloaded(&mut self, now: Instant, took: Duration) {
        self.busy.add(now, took.as_secs_f64());
        self.look(now);
    }

    /// What was put out just now is asked for.
    pub fn regretted(&mut self, now: Instant) {
        self.regrets.add(now, 1.0);
        self.look(now);
    }

    /// Share of the time that reloads take.
    pub fn busy(&self, now: Instant) -> f64 {
        self.busy.rate(now).min(1.0)
    }

    /// Whether there is too much of it.
    pub fn thrashes(&self, now: Instant) -> bool {
        let (busy, regrets) = (self.busy(now), self.regrets.left(now));
        let above = |limit: fn((f64, f64)) -> f64| busy > limit(BUSY) || regrets > limit(REGRETS);
        if self.thrashes { above(|(_, over)| over) } else { above(|(begins, _)| begins) }
    }

    /// How often that has begun.
    pub fn episodes(&self) -> u64 {
        self.episodes
    }

    fn look(&mut self, now: Instant) {
        let thrashes = self.thrashes(now);
        self.episodes += u64::from(thrashes && !self.thrashes);
        self.thrashes = thrashes;
    }
}
