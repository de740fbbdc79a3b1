//! The highest rate that meets a goal: doubling until it is missed, then halving the interval.
//!
//! Near the limit one short run says little: arrivals, and what else the machines do, differ from run to run. So each rate
//! there is tried up to three times, with seeds of their own, and the majority decides. What is left is the interval between
//! the highest rate that met the goal and the lowest that missed it, and how often each was met: that is the uncertainty.

use serde::Serialize;

use crate::goal::Goal;
use crate::result::RunResult;

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// First rate, per second.
    pub start: f64,
    /// Ends when the interval is this narrow, as a share of its upper end.
    pub precision: f64,
    /// Never above, per second.
    pub rate_max: f64,
    /// Runs at one rate at most; odd.
    pub repeats: usize,
    /// Of the first run; later ones count up from it.
    pub seed: u64,
}

/// Runs at one rate.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Trial {
    pub rate: f64,
    pub runs: usize,
    pub met: usize,
    /// Of each run.
    pub attainment: Vec<f64>,
    pub p99_us: Vec<u64>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Capacity {
    pub goal: String,
    /// Highest rate that met the goal; null where none did.
    pub met_at: Option<f64>,
    /// Lowest that missed it; null where the search ended before.
    pub missed_at: Option<f64>,
    /// Why the interval is open above, or wider than was asked for.
    pub because: Option<String>,
    pub interrupted: bool,
    pub trials: Vec<Trial>,
}

/// Runs at one rate that may measure the generator, and are made again, before the search ends there.
const INVALID_MAX: usize = 2;
/// Rates below this are no capacity.
const RATE_MIN: f64 = 0.1;

/// Searches. `measure` makes a run at a rate with a seed.
pub async fn search<E>(
    search: Search,
    goals: &[Goal],
    mut measure: impl AsyncFnMut(f64, u64) -> Result<RunResult, E>,
    mut tell: impl FnMut(&Trial),
) -> Result<Capacity, E> {
    let text: Vec<&str> = goals.iter().map(Goal::to_text).collect();
    let mut found = Capacity {
        goal: text.join(","),
        met_at: None,
        missed_at: None,
        because: None,
        interrupted: false,
        trials: Vec::new(),
    };
    let mut seed = search.seed;
    let mut rate = search.start.min(search.rate_max);
    loop {
        // Far from the limit one run that meets the goal is enough. One that misses it may have been unlucky, and everything
        // above it would never be tried again.
        let near = found.met_at.is_some() && found.missed_at.is_some();
        let repeats = |trial: &Trial| if near || trial.met < trial.runs { search.repeats.max(1) } else { 1 };
        let goes_on = |trial: &Trial| {
            let repeats = repeats(trial);
            trial.runs < repeats && trial.met <= repeats / 2 && trial.runs - trial.met <= repeats / 2
        };
        let mut trial = Trial { rate, ..Trial::default() };
        let mut invalid = 0;
        while goes_on(&trial) {
            let result = measure(rate, seed).await?;
            seed = seed.wrapping_add(1);
            if result.interrupted {
                found.because = Some("it was interrupted".into());
                found.interrupted = true;
                return Ok(found);
            }
            // Once may be chance: something else took the core.
            if result.invalid_because.is_some() && invalid < INVALID_MAX {
                invalid += 1;
                continue;
            }
            if let Some(because) = result.invalid_because {
                found.because = Some(format!("at {rate:.1} a second {because}"));
                return Ok(found);
            }
            trial.runs += 1;
            trial.met += usize::from(goals.iter().all(|goal| goal.is_met(&result)));
            trial.attainment.push(result.attainment);
            trial.p99_us.push(result.latency_us.p99);
        }
        tell(&trial);
        if 2 * trial.met > trial.runs {
            found.met_at = Some(rate);
        } else {
            found.missed_at = Some(rate);
        }
        found.trials.push(trial);
        rate = match (found.met_at, found.missed_at) {
            (Some(met), Some(missed)) if missed - met <= search.precision * missed => return Ok(found),
            (Some(met), Some(missed)) => (met + missed) / 2.0,
            (Some(met), None) if met >= search.rate_max => {
                found.because = Some("it is the highest that was to be tried; raise --rate-max".into());
                return Ok(found);
            }
            (Some(met), None) => (met * 2.0).min(search.rate_max),
            (None, Some(missed)) if missed / 2.0 < RATE_MIN => {
                found.because = Some("no rate met the goal; look at one with `weir load run`".into());
                return Ok(found);
            }
            (None, Some(missed)) => missed / 2.0,
            (None, None) => unreachable!("a trial was met or missed"),
        };
    }
}

impl Capacity {
    /// The table that `weir load capacity` prints.
    pub fn table(&self) -> String {
        let mut text = format!("{:>10}  {:>8}  {:>22}  {:>18}\n", "rate", "goal met", "attainment", "p99, ms");
        for trial in &self.trials {
            let spread = |values: Vec<f64>, digits: usize| {
                let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
                if values.len() == 1 { format!("{low:.digits$}") } else { format!("{low:.digits$} to {high:.digits$}") }
            };
            text += &format!(
                "{:>10.1}  {:>3} of {:<2}  {:>22}  {:>18}\n",
                trial.rate,
                trial.met,
                trial.runs,
                spread(trial.attainment.clone(), 4),
                spread(trial.p99_us.iter().map(|us| *us as f64 / 1e3).collect(), 1)
            );
        }
        text += &match (self.met_at, self.missed_at) {
            (Some(met), Some(missed)) => {
                format!("capacity: between {met:.1} and {missed:.1} queries a second meet {}\n", self.goal)
            }
            (Some(met), None) => format!("capacity: at least {met:.1} queries a second meet {}\n", self.goal),
            (None, Some(missed)) => format!("capacity: below {missed:.1} queries a second for {}\n", self.goal),
            (None, None) => "capacity: nothing was measured\n".into(),
        };
        if let Some(because) = &self.because {
            text += &format!("it was not searched further: {because}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::sample;

    const SEARCH: Search = Search { start: 50.0, precision: 0.05, rate_max: 1e6, repeats: 3, seed: 1 };

    fn searched(search_with: Search, attainment: impl Fn(f64, u64) -> f64, invalid_above: f64) -> Capacity {
        let goals = Goal::parse_all("attainment>=0.99").unwrap();
        let measure = async |rate, seed| {
            let invalid_because = (rate > invalid_above).then(|| "the generator fell behind".to_owned());
            Ok::<_, ()>(RunResult { attainment: attainment(rate, seed), invalid_because, ..sample() })
        };
        futures::executor::block_on(search(search_with, &goals, measure, |_| ())).unwrap()
    }

    fn searched_with(result: impl Fn(f64, u64) -> RunResult) -> Capacity {
        let goals = Goal::parse_all("attainment>=0.99").unwrap();
        let measure = async |rate, seed| Ok::<_, ()>(result(rate, seed));
        futures::executor::block_on(search(SEARCH, &goals, measure, |_| ())).unwrap()
    }

    #[test]
    fn the_interval_holds_the_limit_and_is_as_narrow_as_asked_for() {
        for limit in [3.0, 49.0, 51.0, 777.0, 31_000.0] {
            let found = searched(SEARCH, |rate, _| if rate <= limit { 1.0 } else { 0.9 }, f64::MAX);
            let (met, missed) = (found.met_at.unwrap(), found.missed_at.unwrap());
            assert!(met <= limit && limit < missed && missed - met <= 0.05 * missed, "{met} {limit} {missed}");
            assert!(found.trials.len() < 25 && found.table().contains("capacity: between"));
        }
    }

    #[test]
    fn near_the_limit_the_majority_decides() {
        // Every third run fails whatever the rate.
        let noisy = |rate: f64, seed: u64| if rate <= 400.0 && !seed.is_multiple_of(3) { 1.0 } else { 0.5 };
        let found = searched(Search { seed: 4, ..SEARCH }, noisy, f64::MAX);
        assert!(found.trials.iter().any(|trial| trial.runs == 3 && trial.met == 2), "{:?}", found.trials);
        for seed in 1..20 {
            let found = searched(Search { seed, ..SEARCH }, noisy, f64::MAX);
            let (met, missed) = (found.met_at.unwrap(), found.missed_at.unwrap());
            assert!((380.0..=400.0).contains(&met) && missed > 400.0 && missed <= 421.0, "seed {seed}: {found:?}");
        }
    }

    #[test]
    fn what_limits_the_search_is_said() {
        let found = searched(SEARCH, |_, _| 1.0, 1000.0);
        assert_eq!((found.met_at, found.missed_at), (Some(800.0), None));
        assert!(found.table().contains("at least 800.0") && found.table().contains("the generator fell behind"));
        // A generator that is late once is not the limit.
        let late_once = searched_with(|rate, seed| RunResult {
            attainment: if rate <= 777.0 { 1.0 } else { 0.9 },
            invalid_because: (seed % 5 == 0).then(|| "late".to_owned()),
            ..sample()
        });
        assert!(late_once.met_at.unwrap() <= 777.0 && late_once.missed_at.unwrap() > 777.0);
        let found = searched(Search { rate_max: 300.0, ..SEARCH }, |_, _| 1.0, f64::MAX);
        assert!(found.met_at == Some(300.0) && found.because.unwrap().contains("--rate-max"));
        let found = searched(SEARCH, |_, _| 0.0, f64::MAX);
        assert!(found.met_at.is_none() && found.because.unwrap().contains("no rate met the goal"));
    }
}
