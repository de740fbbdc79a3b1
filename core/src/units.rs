//! Units as types: adding a rate to a time does not compile.
//!
//! Times are whole nanoseconds on a monotonic axis whose zero is the start of the process (or of the simulation).

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point on the monotonic time axis of this process, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The start of the axis.
    pub const ZERO: Instant = Instant(0);
    /// Later than anything that happens.
    pub const FAR: Instant = Instant(u64::MAX);

    /// The instant `nanos` nanoseconds after [`Instant::ZERO`].
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }
    /// The instant `micros` microseconds after [`Instant::ZERO`].
    pub const fn from_micros(micros: u64) -> Self {
        Instant(micros * 1_000)
    }
    /// The instant `millis` milliseconds after [`Instant::ZERO`].
    pub const fn from_millis(millis: u64) -> Self {
        Instant(millis * 1_000_000)
    }
    /// Nanoseconds since [`Instant::ZERO`].
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, span: Duration) -> Instant {
        Instant(self.0.saturating_add(span.as_nanos().min(u64::MAX as u128) as u64))
    }
}

impl Add<ServiceTime> for Instant {
    type Output = Instant;
    fn add(self, work: ServiceTime) -> Instant {
        Instant(self.0.saturating_add(work.0))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

/// The instant after which an answer is worth nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// No deadline at all.
    pub const NEVER: Deadline = Deadline(Instant::FAR);

    /// So much sooner, at the earliest at the beginning of time; never, where it was never.
    pub fn sooner_by(self, span: Duration) -> Self {
        if self == Deadline::NEVER { self } else { Deadline(Instant::ZERO + self.0.since(Instant::ZERO + span)) }
    }

    /// The deadline `left` after `now`, as it travels on the wire.
    pub fn after(now: Instant, left: Duration) -> Self {
        Deadline(now + left)
    }
    /// Time left at `now`; zero once it has passed.
    pub fn left(self, now: Instant) -> Duration {
        self.0.since(now)
    }
    /// Whether something that ends at `finish` is too late.
    pub fn missed_by(self, finish: Instant) -> bool {
        finish > self.0
    }
    /// Deadline minus `now` minus `remaining` work: negative when it can no longer be met.
    pub fn slack(self, now: Instant, remaining: ServiceTime) -> Slack {
        let finish = now + remaining;
        if finish <= self.0 {
            Slack((self.0.0 - finish.0).min(i64::MAX as u64) as i64)
        } else {
            Slack(-((finish.0 - self.0.0).min(i64::MAX as u64) as i64))
        }
    }
}

/// Deadline minus now minus remaining service time, in nanoseconds; negative is late.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Slack(pub i64);

/// Time a device spends computing, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ServiceTime(u64);

impl ServiceTime {
    /// No work.
    pub const ZERO: ServiceTime = ServiceTime(0);

    /// `nanos` nanoseconds of computing.
    pub const fn from_nanos(nanos: u64) -> Self {
        ServiceTime(nanos)
    }
    /// `micros` microseconds of computing.
    pub const fn from_micros(micros: u64) -> Self {
        ServiceTime(micros * 1_000)
    }
    /// In nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
    /// In whole microseconds, rounded down.
    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }
    /// As a span of time on an otherwise idle slot.
    pub fn as_duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }
    /// `factor` times as much work; saturates, and is never negative.
    pub fn scaled(self, factor: f64) -> Self {
        ServiceTime((self.0 as f64 * factor.max(0.0)) as u64)
    }
    /// The difference, or zero.
    pub fn saturating_sub(self, other: ServiceTime) -> Self {
        ServiceTime(self.0.saturating_sub(other.0))
    }
}

impl From<Duration> for ServiceTime {
    fn from(span: Duration) -> Self {
        ServiceTime(span.as_nanos().min(u64::MAX as u128) as u64)
    }
}

impl Add for ServiceTime {
    type Output = ServiceTime;
    fn add(self, other: ServiceTime) -> ServiceTime {
        ServiceTime(self.0.saturating_add(other.0))
    }
}

impl AddAssign for ServiceTime {
    fn add_assign(&mut self, other: ServiceTime) {
        *self = *self + other;
    }
}

impl Sub for ServiceTime {
    type Output = ServiceTime;
    /// Panics below zero: a backlog that goes negative is a broken invariant.
    fn sub(self, other: ServiceTime) -> ServiceTime {
        ServiceTime(self.0.checked_sub(other.0).expect("service time below zero"))
    }
}

impl fmt::Debug for ServiceTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_duration())
    }
}

/// An amount of memory or data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Bytes(pub u64);

/// Value per device-second below which computing is not worth it now.
#[derive(Clone, Copy, PartialEq, PartialOrd, Default, Debug)]
pub struct Price(pub f64);
