//! Models whose rows nearly all fail at a home. What a deeper stage would gain is not gained then, while its batches take slot time, push out
//! others and make computing dear for everybody: who has an answer in hand asks for it now and then only, to hear when it works again.

use std::time::Duration;

use crate::units::Instant;

/// How rows of a model ended at a home since one of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failing {
    /// A bit for each of the last 64: whether it failed.
    failed: u64,
    /// How many of those there are.
    known: u32,
    /// When rows were let through last though others fail.
    tried: Instant,
}

/// Rows of which it says nothing that all of them fail.
const FEW: u32 = 32;
/// Of so many rows at most one may run.
const ONE_IN: u32 = 16;
/// How often rows are let through.
const TRIED_EVERY: Duration = Duration::from_millis(250);

impl Failing {
    /// A row ran, or it ran and failed. One that runs where none has for long ends it: what was known is old.
    pub fn on_end(&mut self, failed: bool) {
        if !failed && self.fails() {
            *self = Failing { tried: self.tried, ..Failing::default() };
        }
        self.failed = self.failed << 1 | u64::from(failed);
        self.known = (self.known + 1).min(u64::BITS);
    }

    /// Whether nearly all of the last rows failed.
    pub fn fails(&self) -> bool {
        self.known >= FEW && (self.known - self.failed.count_ones()) * ONE_IN <= self.known
    }

    /// Whether none of the last rows failed, so that nothing is to be remembered.
    pub fn is_over(&self) -> bool {
        self.failed == 0
    }

    /// Whether rows may be sent: to a model that fails now and then.
    pub fn may_go(&mut self, now: Instant) -> bool {
        let goes = !self.fails() || self.tried == Instant::ZERO || now.since(self.tried) >= TRIED_EVERY;
        if goes && self.fails() {
            self.tried = now;
        }
        goes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(failed: impl IntoIterator<Item = bool>) -> Failing {
        let mut failing = Failing::default();
        failed.into_iter().for_each(|failed| failing.on_end(failed));
        failing
    }

    #[test]
    fn a_model_fails_where_nearly_all_of_many_rows_did() {
        assert!(!after([true; 31]).fails(), "few");
        assert!(after([true; 32]).fails());
        assert!(after((0..64).map(|i| i % 16 != 0)).fails(), "one in sixteen runs");
        assert!(!after((0..64).map(|i| i % 8 != 0)).fails());
        assert!(!after((0..1000).map(|i| i % 2 == 0)).fails(), "half of its replicas do");
        assert!(after(std::iter::repeat_n(true, 64).chain([false; 64])).is_over());
    }

    #[test]
    fn one_that_fails_is_tried_now_and_then_and_is_back_with_the_first_row_that_runs() {
        let mut failing = after([true; 64]);
        let at = |ms: u64| Instant::from_millis(10_000 + ms);
        let went: Vec<u64> = (0..1000).filter(|ms| failing.may_go(at(*ms))).collect();
        assert_eq!(went, [0, 250, 500, 750]);
        failing.on_end(true);
        assert!(!failing.may_go(at(999)));
        failing.on_end(false);
        assert!(failing.may_go(at(999)) && failing.may_go(at(999)), "it runs again");
    }
}
