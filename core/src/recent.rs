//! The last times that something took, and how long it takes when it takes long: what to plan by.
//!
//! That is a high quantile: the largest of up to three, of more the second largest, which is their 98.4th percentile once the
//! window is full. On a processor that other work may preempt, an accident takes many times as long as anything before it. One is
//! passed over however long it took, and in a window that is full enough up to two more that stand alone: to plan by them would
//! refuse what can be done. So a lasting slow-down shows after two to four runs, and a speed-up after [`LATELY`].

use crate::units::ServiceTime;

/// Runs that are kept.
pub const KEPT: usize = 128;
/// Runs that together say that those before them are of another time.
pub const LATELY: usize = 10;
/// A run that took so many times as long as the next slower one stands alone.
const ALONE: f64 = 1.5;
/// Where the last runs all stay so many times below what is planned by, it is of another time. Noise does not fall so far, ten
/// times in a row.
const FALLEN: f64 = 1.5;
/// Runs from which on a second accident is passed over, and a third one.
const ENOUGH: [usize; 2] = [32, 96];

/// The last [`KEPT`] runs, each with a number that says how old it is. Never allocates after it was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Recent {
    ring: Box<[(u64, ServiceTime)]>,
    first: usize,
    len: usize,
    /// The slowest runs, slowest first. Kept in step with the runs, and so is `high`.
    slowest: [ServiceTime; 4],
    high: ServiceTime,
}

impl Default for Recent {
    fn default() -> Recent {
        let ring = vec![(0, ServiceTime::ZERO); KEPT].into();
        Recent { ring, first: 0, len: 0, slowest: [ServiceTime::ZERO; 4], high: ServiceTime::ZERO }
    }
}

impl Recent {
    /// Takes in a run; numbers do not fall.
    pub fn push(&mut self, number: u64, took: ServiceTime) {
        let full = self.len == KEPT;
        let dropped = if full { self.drop_first() } else { ServiceTime::ZERO };
        self.ring[(self.first + self.len) % KEPT] = (number, took);
        self.len += 1;
        if full && dropped >= self.slowest[3] {
            self.find_slowest();
        } else {
            insert(&mut self.slowest, took);
        }
        self.high = self.find_high();
        if self.len > LATELY && self.slowest_lately().scaled(FALLEN) < self.high {
            self.keep_lately();
        }
    }

    /// What to plan by; zero where there are no runs.
    pub fn high(&self) -> ServiceTime {
        self.high
    }

    /// How many runs there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no run.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets runs with smaller numbers.
    pub fn forget_before(&mut self, number: u64) {
        let before = self.len;
        let mut slowest = ServiceTime::ZERO;
        while self.len > 0 && self.ring[self.first].0 < number {
            slowest = slowest.max(self.drop_first());
        }
        if self.len < before {
            if slowest >= self.slowest[3] {
                self.find_slowest();
            }
            self.high = self.find_high();
        }
    }

    /// Forgets all but the last runs, and the slowest of those: somebody is refused because of it, and nothing runs that would
    /// show whether it is so yet. Nothing where there is one run only.
    pub fn forgive(&mut self) {
        if self.len <= 1 {
            return;
        }
        self.keep_lately();
        let slowest = (0..self.len).max_by_key(|i| self.at(*i).1).expect("there are runs");
        for i in slowest..self.len - 1 {
            self.ring[(self.first + i) % KEPT] = self.at(i + 1);
        }
        self.len -= 1;
        self.find_slowest();
        self.high = self.find_high();
    }

    fn at(&self, i: usize) -> (u64, ServiceTime) {
        self.ring[(self.first + i) % KEPT]
    }

    fn drop_first(&mut self) -> ServiceTime {
        let (_, took) = self.ring[self.first];
        self.first = (self.first + 1) % KEPT;
        self.len -= 1;
        took
    }

    fn keep_lately(&mut self) {
        while self.len > LATELY {
            self.drop_first();
        }
        self.find_slowest();
        self.high = self.find_high();
    }

    fn slowest_lately(&self) -> ServiceTime {
        let lately = self.len.saturating_sub(LATELY)..self.len;
        lately.map(|i| self.at(i).1).max().unwrap_or_default()
    }

    fn find_high(&self) -> ServiceTime {
        let [first, second, third, fourth] = self.slowest;
        let alone = |slower: ServiceTime, next: ServiceTime| slower > next.scaled(ALONE);
        match self.len {
            0..=3 => first,
            len if len >= ENOUGH[1] && alone(third, fourth) => fourth,
            len if len >= ENOUGH[0] && alone(second, third) => third,
            _ => second,
        }
    }

    /// Brings `slowest` in step with the runs.
    fn find_slowest(&mut self) {
        let mut slowest = [ServiceTime::ZERO; 4];
        let end = self.first + self.len;
        // The window in two parts, where it goes round the end of the ring.
        let parts = [&self.ring[self.first..end.min(KEPT)], &self.ring[..end.saturating_sub(KEPT)]];
        for (_, took) in parts.into_iter().flatten() {
            insert(&mut slowest, *took);
        }
        self.slowest = slowest;
    }
}

/// One more run, where it is among the slowest.
fn insert(slowest: &mut [ServiceTime; 4], took: ServiceTime) {
    if took > slowest[3] {
        let place = slowest.iter().position(|known| took > *known).expect("it is above the last");
        slowest[place..].rotate_right(1);
        slowest[place] = took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    fn us(n: u64) -> ServiceTime {
        ServiceTime::from_micros(n)
    }

    fn of(runs: impl IntoIterator<Item = u64>) -> Recent {
        let mut recent = Recent::default();
        runs.into_iter().enumerate().for_each(|(i, took)| recent.push(i as u64, us(took)));
        recent
    }

    /// The definition, on a sorted copy of the runs since the last change of times.
    #[test]
    fn the_window_goes_round_and_says_what_its_runs_say() {
        let mut prng = Prng::new(3);
        let (mut recent, mut kept) = (Recent::default(), Vec::new());
        for number in 0..2000 {
            let took = us(if prng.below(20) == 0 { 1 + prng.below(3000) } else { 100 + prng.below(100) });
            recent.push(number, took);
            kept.push(took);
            if kept.len() > KEPT {
                kept.remove(0);
            }
            if recent.len() < kept.len() {
                assert_eq!(recent.len(), LATELY);
                kept.drain(..kept.len() - LATELY);
            }
            let mut sorted = kept.clone();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            let is_alone = |i: usize| sorted[i] > sorted[i + 1].scaled(ALONE);
            let rank = match kept.len() {
                0..=3 => 0,
                len if len >= 96 && is_alone(2) => 3,
                len if len >= 32 && is_alone(1) => 2,
                _ => 1,
            };
            assert_eq!(recent.high(), sorted[rank], "{number}");
        }
    }

    #[test]
    fn accidents_are_passed_over_as_long_as_they_are_few() {
        assert_eq!(of([10, 10, 90]).high(), us(90), "three runs say nothing of what is usual");
        assert_eq!(of([10, 10, 10, 90]).high(), us(10));
        assert_eq!(of([10, 10, 10, 90, 90]).high(), us(90));
        let full = || (0..100).map(|i| 90 + i % 20);
        assert_eq!(of(full().chain([2000; 3])).high(), us(109));
        assert_eq!(of(full().chain([2000; 4])).high(), us(2000), "that is what it takes now");
        assert_eq!(of(full().chain([150, 150])).high(), us(150), "what does not stand alone is no accident");
        assert_eq!(of(full().chain([2000; 4]).chain([100; 9])).high(), us(2000));
        assert_eq!(of(full().chain([2000; 4]).chain([100; 10])).high(), us(100), "it is over");
    }

    #[test]
    fn forgiving_drops_all_but_the_last_runs_and_then_the_slowest_of_them() {
        let mut recent = of((0..50).map(|_| 900).chain([100, 800, 700, 600]));
        recent.forgive();
        assert_eq!((recent.len(), recent.high()), (LATELY - 1, us(900)));
        (0..6).for_each(|_| recent.forgive());
        assert_eq!((recent.len(), recent.high()), (3, us(700)));
        recent.forgive();
        recent.forgive();
        assert_eq!((recent.len(), recent.high()), (1, us(100)));
        recent.forgive();
        assert_eq!(recent.len(), 1);
    }

    #[test]
    fn old_runs_are_forgotten() {
        let mut recent = of([50, 40, 30]);
        recent.forget_before(1);
        assert_eq!((recent.len(), recent.high()), (2, us(40)));
        recent.forget_before(9);
        assert_eq!((recent.is_empty(), recent.high()), (true, ServiceTime::ZERO));
    }

    #[test]
    fn the_slowest_are_known_whatever_came_and_went() {
        let mut prng = Prng::new(9);
        let mut recent = Recent::default();
        for number in 0..5_000u64 {
            match prng.below(40) {
                0 => recent.forgive(),
                1 => recent.forget_before(number.saturating_sub(prng.below(200))),
                // Few different ones, so that equal ones come and go.
                _ => recent.push(number, us(10 + prng.below(20) + 100 * u64::from(prng.below(50) == 0))),
            }
            let mut runs: Vec<ServiceTime> = (0..recent.len()).map(|i| recent.at(i).1).collect();
            runs.sort_unstable_by(|a, b| b.cmp(a));
            runs.resize(runs.len().max(4), ServiceTime::ZERO);
            assert_eq!(recent.slowest, runs[..4], "after {number}");
        }
    }
}
