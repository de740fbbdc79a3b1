//! How much sooner rows have to be expected to be done than by their deadline, so that those that are let in are done in time.
//!
//! An estimate of when a row will be done is off by chance: batches close earlier than was thought, and what is due sooner comes in between. Where
//! there is too much to do, rows are let in until the queue is full to their deadline, and each that is late by little then waits for nothing. So
//! what is promised keeps a distance from the deadline that follows what becomes of promises: it grows with each that is broken and shrinks
//! with each that is kept, and settles where one in so many is broken (stochastic approximation of a quantile, Robbins and Monro 1951).

use std::time::Duration;

use crate::units::{Instant, ServiceTime};

/// Share of rows that are let in and not done in time.
const BROKEN: f64 = 0.01;
/// A step, as a share of what a row alone takes.
const STEP: f64 = 0.25;

/// The distance, and what it is counted in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Distance {
    /// In seconds.
    seconds: f64,
    /// By what a row alone takes.
    step: f64,
}

impl Distance {
    /// Rows ran, each of which alone takes so long.
    pub fn on_kept(&mut self, rows: u32, alone: ServiceTime) {
        self.step = STEP * alone.as_duration().as_secs_f64();
        self.seconds = (self.seconds - BROKEN * self.step * f64::from(rows)).max(0.0);
    }

    /// A row that was let in was not done in time.
    pub fn on_broken(&mut self) {
        self.seconds += (1.0 - BROKEN) * self.step;
    }

    /// When a row may be said to be done that is expected at `finish`, and takes so long alone: who waits for nobody needs no distance.
    pub fn promise(&self, now: Instant, finish: Instant, alone: ServiceTime) -> Instant {
        let waits = finish.since(now).saturating_sub(alone.as_duration());
        finish + Duration::from_secs_f64(self.seconds).min(waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    const ALONE: ServiceTime = ServiceTime::from_micros(2000);

    /// Where estimates are off by up to `ms` either way: the share of promises that is broken once that has settled, and the distance in ms.
    fn settled(ms: f64) -> (f64, f64) {
        let (mut distance, mut prng, mut broken) = (Distance::default(), Prng::new(5), 0);
        for row in 0..40_000 {
            // Let in at the brink: expected to be done just in time.
            let late = 2.0 * ms * (prng.uniform() - 0.5) / 1e3 - distance.seconds;
            if late > 0.0 {
                distance.on_broken();
                broken += u32::from(row >= 20_000);
            } else {
                distance.on_kept(1, ALONE);
            }
        }
        (f64::from(broken) / 20_000.0, distance.seconds * 1e3)
    }

    #[test]
    fn one_promise_in_a_hundred_is_broken_however_far_off_estimates_are() {
        for ms in [1.0, 5.0, 20.0] {
            let (broken, distance) = settled(ms);
            assert!((0.005..0.02).contains(&broken), "{broken} where estimates are off by {ms} ms");
            assert!(distance > 0.8 * ms && distance < 1.1 * ms, "{distance} ms where estimates are off by {ms} ms");
        }
    }

    #[test]
    fn who_waits_for_nobody_is_promised_what_was_estimated() {
        let mut distance = Distance::default();
        distance.on_kept(1, ALONE);
        (0..100).for_each(|_| distance.on_broken());
        let (now, ms) = (Instant::from_millis(10), Instant::from_millis);
        assert_eq!(distance.promise(now, ms(12), ALONE), ms(12));
        assert_eq!(distance.promise(now, ms(15), ALONE), ms(18), "no more than it waits");
        assert!(distance.promise(now, ms(500), ALONE) > ms(540));
        (0..20_000).for_each(|_| distance.on_kept(1, ALONE));
        assert_eq!(distance.promise(now, ms(500), ALONE), ms(500), "all of those are forgotten");
    }
}
