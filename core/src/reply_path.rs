//! How long an answer takes from the end of its batch until its caller's thread has taken it up: an answer that is ready at the
//! deadline is late by that.

use std::time::Duration;

use crate::recent::Recent;
use crate::units::{Deadline, Instant, ServiceTime};

/// Most of the time of a query that is kept back: after a stall the path looks long for a while, and a short deadline must not
/// be refused for that alone.
const SHARE_MAX: u32 = 8;
/// What counts as this long in the mean took at least so long.
const STALL: Duration = Duration::from_millis(5);
/// Share of a new answer in the mean.
const NEW: f64 = 1.0 / 8.0;

/// A high percentile of what the path took lately.
#[derive(Clone, Debug, Default)]
pub struct ReplyPath {
    recent: Recent,
    /// In seconds.
    mean: f64,
}

impl ReplyPath {
    /// An answer took so long from the end of its batch, and so long of it since its thread was told.
    pub fn observe(&mut self, took: Duration, waited: Duration) {
        self.recent.push(0, ServiceTime::from(took));
        self.mean += (waited.min(STALL).as_secs_f64() - self.mean) * NEW;
    }

    /// How long answers wait for their threads by now, on average.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.mean)
    }

    /// The deadline that a device works to for a query that comes `now` and has to be answered by `deadline`.
    pub fn at_device(&self, now: Instant, deadline: Deadline) -> Deadline {
        let left = deadline.left(now);
        let path = self.recent.high().as_duration();
        if path.is_zero() { deadline } else { Deadline::after(now, left - path.min(left / SHARE_MAX)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_path_takes_is_kept_back_and_no_more_than_a_share() {
        let at = |us: u64| Instant::from_millis(1000) + Duration::from_micros(us);
        let mut path = ReplyPath::default();
        let told = |path: &ReplyPath, us: u64| path.at_device(at(0), Deadline(at(us)));
        assert_eq!(told(&path, 500), Deadline(at(500)), "nothing is known yet");
        for took in [100, 130, 120, 4000, 110] {
            path.observe(Duration::from_micros(took), Duration::from_micros(took));
        }
        assert_eq!(told(&path, 50_000), Deadline(at(49_870)), "a stall is passed over");
        assert_eq!(told(&path, 800), Deadline(at(700)));
        assert_eq!(path.at_device(at(900), Deadline(at(800))), Deadline(at(900)), "it has passed already");
        (0..60).for_each(|_| path.observe(Duration::from_micros(300), Duration::from_micros(200)));
        assert!((199..210).contains(&path.mean().as_micros()), "{:?}", path.mean());
    }
}
