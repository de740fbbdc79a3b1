//! Monotonic time. Sleeping is tokio's affair everywhere.

use weir_core::units::Instant;

/// Tells the time on the axis of [`Instant`]. Wall clocks decide nothing in weir.
pub trait Clock: Send + Sync {
    /// Now; never less than what it said before.
    fn now(&self) -> Instant;
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
}
