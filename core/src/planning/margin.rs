//! What a run promises of another one like it.
//!
//! One run under one draw of the arrivals says what happened then. Whoever deploys a plan gets another draw: so a goal has to be
//! reached with a margin that is as wide as runs differ from each other. The bound is that of a prediction interval: of runs like
//! these, one more is at least as good in 19 of 20 cases, where what runs reach is about normal. A confidence interval of the mean is
//! narrower, and would promise only that half of all runs meet the goal.

/// What some runs reached, and how far the next one may fall behind their mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Margin {
    /// Of what the runs reached.
    pub mean: f64,
    /// In 19 of 20 cases the next run is no further behind than this. 0 where there was only one run: nothing is known then.
    pub reach: f64,
}

/// Most runs that are worth it: with two of them what is unknown about how they differ makes the margin 4.7 times as wide as
/// with very many, with five 1.4 times, with ten 1.2 times.
pub const RUNS_MAX: usize = 10;

/// Student's t, one-sided 95 %, by degrees of freedom from 1 on.
const T: [f64; RUNS_MAX - 1] = [6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833];

impl Margin {
    /// Of one to [`RUNS_MAX`] runs.
    pub fn of(reached: &[f64]) -> Margin {
        let n = reached.len() as f64;
        let mean = reached.iter().sum::<f64>() / n;
        let Some(t) = reached.len().checked_sub(2).map(|i| T[i]) else { return Margin { mean, reach: 0.0 } };
        let variance = reached.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Margin { mean, reach: t * (variance * (1.0 + 1.0 / n)).sqrt() }
    }

    /// The next run reaches at least this, where more is better.
    pub fn least(self) -> f64 {
        self.mean - self.reach
    }

    /// And at most this, where less is.
    pub fn most(self) -> f64 {
        self.mean + self.reach
    }

    /// Whether the next run reaches at least `goal`; as rounded as what is compared is computed.
    pub fn is_at_least(self, goal: f64) -> bool {
        self.least() >= goal - ROUNDED * goal.abs()
    }

    /// Whether it reaches at most that.
    pub fn is_at_most(self, goal: f64) -> bool {
        self.most() <= goal + ROUNDED * goal.abs()
    }
}

/// By so much of it a mean of equal numbers may be another number.
const ROUNDED: f64 = 1e-12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    #[test]
    fn nineteen_of_twenty_further_runs_are_within_it() {
        let mut prng = Prng::new(5);
        for runs in 2..=RUNS_MAX {
            let cases = 20_000;
            let within = (0..cases).filter(|_| {
                let reached: Vec<f64> = (0..runs).map(|_| 0.99 + 0.002 * prng.normal()).collect();
                let margin = Margin::of(&reached);
                0.99 + 0.002 * prng.normal() >= margin.mean - margin.reach
            });
            let share = within.count() as f64 / f64::from(cases);
            assert!((share - 0.95).abs() < 0.006, "{share} with {runs} runs");
        }
    }

    #[test]
    fn what_always_comes_out_alike_needs_no_margin() {
        assert_eq!(Margin::of(&[1.0; 5]), Margin { mean: 1.0, reach: 0.0 });
        assert_eq!(Margin::of(&[0.97]), Margin { mean: 0.97, reach: 0.0 });
    }

    /// However well the others did: so whoever looks at run after run may give up at the first that misses the goal.
    #[test]
    fn of_up_to_six_runs_none_that_misses_a_goal_leaves_a_margin_that_reaches_it() {
        for runs in 2..=6 {
            let mut reached = vec![1.0; runs];
            reached[0] = 0.98;
            let margin = Margin::of(&reached);
            assert!(margin.mean - margin.reach < 0.98, "{runs}: {margin:?}");
        }
    }
}
