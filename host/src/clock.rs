//! Monotonic time. Sleeping is tokio's affair everywhere.

use std::time::Duration;

use weir_core::units::Instant;

/// Tells the time on the axis of [`Instant`]. Wall clocks decide nothing in weir but when a grant ends that somebody gave an end.
pub trait Clock: Send + Sync {
    /// Now; never less than what it said before.
    fn now(&self) -> Instant;

    /// By the calendar: since 1970. A clock without one began then.
    fn since_1970(&self) -> Duration {
        self.now().since(Instant::ZERO)
    }
}

/// The machine's monotonic clock, zero when it was started.
pub struct SystemClock {
    start: std::time::Instant,
}

impl SystemClock {
    /// A clock that starts at zero.
    pub fn start() -> SystemClock {
        SystemClock { start: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.start.elapsed().as_nanos() as u64)
    }

    fn since_1970(&self) -> Duration {
        std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}
