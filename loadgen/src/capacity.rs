//! The highest rate that meets a goal: doubling until it is missed, then halving the interval.
//!
//! One short run says little: arrivals, and what else the machines do, differ from run to run. A run that misses by bad luck
//! would close everything above its rate, one that meets the goal by good luck everything below. So each rate is tried up to
//! three times, with seeds of their own, and the majority decides. What is left is the interval between the highest rate that
//! met the goal and the lowest that missed it, and how often each was met: that is the uncertainty.

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
    /// The search came to its own end: it was not interrupted, and the target was there all the time.
    pub complete: bool,
    pub interrupted: bool,
    /// In the order in which they were made. A search that did not come to its end may have left the last one undecided: it
    /// bounds nothing.
    pub trials: Vec<Trial>,
}

/// A search that could not go on, and what it had found.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Broken<E> {
    pub found: Capacity,
    pub cause: E,
}

/// Runs at one rate that may measure the generator, and are made again, before the search ends there.
const INVALID_MAX: usize = 2;
/// Rates below this are no capacity.
const RATE_MIN: f64 = 0.1;

/// Searches. `measure` makes a run at a rate with a seed; what it fails with ends the search.
pub async fn search<E: ToString>(
    search: Search,
    goals: &[Goal],
    mut measure: impl AsyncFnMut(f64, u64) -> Result<RunResult, E>,
    mut tell: impl FnMut(&Trial),
) -> Result<Capacity, Box<Broken<E>>> {
    let text: Vec<&str> = goals.iter().map(Goal::to_text).collect();
    let mut found = Capacity {
        goal: text.join(","),
        met_at: None,
        missed_at: None,
        because: None,
        complete: false,
        interrupted: false,
        trials: Vec::new(),
    };
    let mut seed = search.seed;
    let mut rate = search.start.min(search.rate_max);
    let half = search.repeats.max(1) / 2;
    loop {
        let mut trial = Trial { rate, ..Trial::default() };
        let mut invalid = 0;
        while trial.met <= half && trial.runs - trial.met <= half {
            let result = match measure(rate, seed).await {
                Ok(result) => result,
                Err(cause) => return Err(Box::new(Broken { found: found.undecided(trial, cause.to_string()), cause })),
            };
            seed = seed.wrapping_add(1);
            if result.interrupted {
                return Ok(Capacity { interrupted: true, ..found.undecided(trial, "it was interrupted".into()) });
            }
            // Once may be chance: something else took the core.
            if result.invalid_because.is_some() && invalid < INVALID_MAX {
                invalid += 1;
                continue;
            }
            if let Some(because) = result.invalid_because {
                let because = format!("at {rate:.1} a second {because}");
                return Ok(Capacity { complete: true, ..found.undecided(trial, because) });
            }
            trial.runs += 1;
            trial.met += usize::from(goals.iter().all(|goal| goal.is_met(&result)));
            trial.attainment.push(result.attainment);
            trial.p99_us.push(result.latency_us.p99);
        }
        tell(&trial);
        if trial.met > half {
            found.met_at = Some(rate);
        } else {
            found.missed_at = Some(rate);
        }
        found.trials.push(trial);
        let ended = |found, because: Option<&str>| {
            Ok(Capacity { complete: true, because: because.map(str::to_owned), ..found })
        };
        rate = match (found.met_at, found.missed_at) {
            (Some(met), Some(missed)) if missed - met <= search.precision * missed => return ended(found, None),
            (Some(met), Some(missed)) => (met + missed) / 2.0,
            (Some(met), None) if met >= search.rate_max => {
                return ended(found, Some("it is the highest that was to be tried; raise --rate-max"));
            }
            (Some(met), None) => (met * 2.0).min(search.rate_max),
            (None, Some(missed)) if missed / 2.0 < RATE_MIN => {
                return ended(found, Some("no rate met the goal; look at one with `weir load run`"));
            }
            (None, Some(missed)) => missed / 2.0,
            (None, None) => unreachable!("a trial was met or missed"),
        };
    }
}

impl Capacity {
    /// With the runs of a rate at which the search ended before they decided anything.
    fn undecided(mut self, trial: Trial, because: String) -> Capacity {
        self.trials.extend(Some(trial).filter(|trial| trial.runs > 0));
        Capacity { because: Some(because), ..self }
    }

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
            (None, None) => "capacity: nothing was decided\n".into(),
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
            Ok::<_, String>(RunResult { attainment: attainment(rate, seed), invalid_because, ..sample() })
        };
        futures::executor::block_on(search(search_with, &goals, measure, |_| ())).unwrap()
    }

    /// Searches; the run with this number, from 1 on, ends otherwise.
    fn searched_until(
        last: u64,
        ends: impl Fn() -> Result<RunResult, String>,
    ) -> Result<Capacity, Box<Broken<String>>> {
        let goals = Goal::parse_all("attainment>=0.99").unwrap();
        let measure = async |rate, seed| {
            let attainment = if rate <= 120.0 { 1.0 } else { 0.9 };
            if seed == last { ends() } else { Ok(RunResult { attainment, ..sample() }) }
        };
        futures::executor::block_on(search(SEARCH, &goals, measure, |_| ()))
    }

    fn searched_with(result: impl Fn(f64, u64) -> RunResult) -> Capacity {
        let goals = Goal::parse_all("attainment>=0.99").unwrap();
        let measure = async |rate, seed| Ok::<_, String>(result(rate, seed));
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

    /// Far from the limit too: what one lucky run claims, no later one would ever look at again.
    #[test]
    fn a_run_of_good_or_bad_luck_moves_no_bound() {
        for odd in [800.0, 100.0] {
            let seen = std::cell::Cell::new(false);
            // The first run at that rate goes as none other there would.
            let once = |rate: f64, _: u64| {
                let lucky = rate == odd && !seen.replace(rate == odd || seen.get());
                if (rate <= 450.0) != lucky { 1.0 } else { 0.9 }
            };
            let found = searched(SEARCH, once, f64::MAX);
            let trial = found.trials.iter().find(|trial| trial.rate == odd).unwrap();
            assert_eq!((trial.runs, trial.met), (3, if odd > 450.0 { 1 } else { 2 }));
            let met = found.met_at.unwrap();
            assert!((427.0..=450.0).contains(&met) && found.missed_at.unwrap() > 450.0, "{found:?}");
        }
    }

    #[test]
    fn a_search_that_breaks_off_keeps_what_it_found() {
        // Two runs each at 50 and 100, one at 200; the next one does not come to its end.
        let broken = searched_until(6, || Err("the target is gone".into())).unwrap_err();
        assert_eq!(broken.cause, "the target is gone");
        let interrupted = searched_until(6, || Ok(RunResult { interrupted: true, ..sample() })).unwrap();
        assert!(interrupted.interrupted && !broken.found.interrupted);
        for found in [broken.found, interrupted] {
            let rates: Vec<(f64, usize, usize)> = found.trials.iter().map(|t| (t.rate, t.runs, t.met)).collect();
            assert_eq!(rates, [(50.0, 2, 2), (100.0, 2, 2), (200.0, 1, 0)]);
            assert_eq!(
                (found.met_at, found.missed_at, found.complete),
                (Some(100.0), None, false),
                "one miss decides nothing"
            );
            assert!(found.table().contains("at least 100.0") && found.table().contains("not searched further: "));
        }
        let at_once = searched_until(1, || Err("refused".into())).unwrap_err().found;
        assert!(at_once.trials.is_empty() && at_once.table().contains("nothing was decided"));
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
