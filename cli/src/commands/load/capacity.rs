//! `weir load capacity`: the highest rate that meets a goal.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use weir_core::workload::Rate;
use weir_loadgen::capacity::{Broken, Capacity as Found, Search, search};
use weir_loadgen::run::{Loop, RunConfig, run};
use weir_loadgen::scenario::Scenario;
use weir_loadgen::target::Connect;

use super::asked::{Added, Asked, Line, load_failure, on_interrupt, target_failure, usage};
use crate::connect::Common;
use crate::failure::Failure;

/// How long a run is where nobody says.
const RUN: Duration = Duration::from_secs(5);

/// Runs in a row without any answer, late ones included, that are no overload any more: its front still stands, and what works
/// behind it is gone.
const SILENT_MAX: usize = 2;

#[derive(Args)]
pub struct Capacity {
    #[command(flatten)]
    asked: Asked,
    /// What has to be met, as attainment>=0.99 or p99<=50ms, several with commas
    #[arg(long, env = "WEIR_GOAL")]
    goal: Option<String>,
    /// constant, poisson, gamma:cv=4, … [default: poisson]
    #[arg(long, env = "WEIR_ARRIVALS")]
    arrivals: Option<String>,
    /// Of each run [default: the scenario's, or 5s]
    #[arg(long, env = "WEIR_DURATION")]
    duration: Option<String>,
    /// First rate to try, per second
    #[arg(long, env = "WEIR_RATE", default_value_t = 50.0, allow_negative_numbers = true)]
    rate: f64,
    /// Highest rate to try, per second
    #[arg(long, env = "WEIR_RATE_MAX", default_value_t = 100_000.0, allow_negative_numbers = true)]
    rate_max: f64,
    /// Ends when the limit is known this well, as a share of it
    #[arg(long, env = "WEIR_PRECISION", default_value_t = 0.05)]
    precision: f64,
    /// Runs at each rate; the majority decides, so that no bound is moved by luck
    #[arg(long, env = "WEIR_REPEATS", default_value_t = 3)]
    repeats: usize,
}

impl Capacity {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        for (flag, rate) in [("rate", self.rate), ("rate-max", self.rate_max)] {
            Rate::per_second(rate).map_err(|bad| usage(format!("--{flag}: {bad}")))?;
        }
        if !(0.001..=0.5).contains(&self.precision) {
            return Err(usage("--precision is a share from 0.001 to 0.5"));
        }
        if self.repeats.is_multiple_of(2) {
            return Err(usage("--repeats is odd, so that there is a majority"));
        }
        let added = Added {
            arrivals: self.arrivals.clone(),
            rate: Some(self.rate),
            closed: None,
            duration: self.duration.clone(),
            goal: self.goal.clone(),
            default_duration: RUN,
        };
        let mut prepared = self.asked.prepare(&common, added).await?;
        if prepared.scenario.duration.is_none() {
            // A trace has a length, but whoever searches with an hour of it at each rate has to say so.
            prepared.config.duration = prepared.config.duration.min(RUN);
        }
        let goals = prepared.scenario.goals.clone();
        if goals.is_empty() {
            return Err(usage("say what has to be met, as --goal 'attainment>=0.99'"));
        }
        if prepared.scenario.parts.iter().any(|part| part.rate.is_some() || part.arrivals.is_some()) {
            return Err(usage(
                "a capacity is one rate: give the scenario's endpoints weights instead of rates of their own",
            ));
        }
        let settings = Search {
            start: self.rate,
            precision: self.precision,
            rate_max: self.rate_max,
            repeats: self.repeats,
            seed: prepared.config.seed,
        };
        let stop = on_interrupt();
        let (config, connect) = (&prepared.config, &prepared.connect);
        let silent = Cell::new(0);
        let measure = async |rate: f64, seed: u64| {
            let scenario = Scenario { rate: Some(rate), ..prepared.scenario.clone() };
            let sending = Loop::Open(scenario.flows().map_err(usage)?.0);
            let config = RunConfig { rate: Some(rate), seed, sending, ..config.clone() };
            let line = Line::new(format!("{rate:.1} a second: "));
            let result = run(&config, Arc::clone(connect), stop.clone(), |progress| line.show(progress)).await;
            line.clear();
            let result = result.map_err(load_failure)?;
            // A target that has gone misses its goal at any rate: that is no capacity of it.
            let missed = !goals.iter().all(|goal| goal.is_met(&result));
            if missed && !result.interrupted {
                still_there(connect.as_ref(), &prepared.scenario).await?;
            }
            silent.set(if result.answered == 0 && result.offered > 0 { silent.get() + 1 } else { 0 });
            if silent.get() >= SILENT_MAX {
                let why = result.errors.first().map(|(why, _)| format!(" ({why})")).unwrap_or_default();
                return Err(Failure::No(format!(
                    "nothing was answered at {rate:.1} a second{why}; look at the server"
                )));
            }
            Ok(result)
        };
        let tell = |trial: &weir_loadgen::capacity::Trial| {
            eprintln!("{:.1} a second: the goal was met in {} of {} runs", trial.rate, trial.met, trial.runs);
        };
        let found = match search(settings, &goals, measure, tell).await {
            Ok(found) => found,
            Err(broken) => {
                let Broken { found, cause } = *broken;
                print(&found, Some(&cause), common.json());
                eprintln!("error: {cause}; the result is what was found until then");
                return Err(Failure::Told(cause.code()));
            }
        };
        print(&found, None, common.json());
        match found.met_at {
            _ if found.interrupted => {
                eprintln!("error: interrupted; the result is what was found until then");
                Err(Failure::Told(130))
            }
            None => {
                eprintln!("error: no rate met {}; look at one with `weir load run`", found.goal);
                Err(Failure::Told(1))
            }
            Some(_) => Ok(()),
        }
    }
}

/// The result. What ended the search before its time stands in it, as errors do in what other commands print.
fn print(found: &Found, cause: Option<&Failure>, json: bool) {
    if !json {
        print!("{}", found.table());
        return;
    }
    let mut result = serde_json::to_value(found).expect("plain data");
    if let Some(cause) = cause {
        result["error"] = json!({"code": cause.word(), "message": cause.to_string()});
    }
    println!("{result}");
}

/// Asks a few times what the target takes: it may be busy with what is left of the run.
async fn still_there(connect: &dyn Connect, scenario: &Scenario) -> Result<(), Failure> {
    for part in &scenario.parts {
        for last in [false, false, true] {
            match connect.describe(&part.endpoint).await {
                Ok(_) => break,
                Err(error) if last => return Err(target_failure(error)),
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }
    Ok(())
}
