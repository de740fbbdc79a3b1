//! `weir plan`: the cheapest machines that meet a goal under a load, tried in virtual time, under several draws of it.

mod draws;
mod told;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use weir_client::weirfile::parse_bytes;
use weir_core::endpoint::Endpoint;
use weir_core::ids::ModelRef;
use weir_core::outcome::Outcome;
use weir_core::planning;
use weir_core::profile::Profile;
use weir_core::units::{Bytes, Instant};
use weir_core::workload::Statistics;
use weir_loadgen::goal::Goal;
use weir_loadgen::result::RunResult;
use weir_loadgen::run::RunConfig;
use weir_sim::cluster::{Cluster, Due};
use weir_sim::device::Service;
use weir_sim::fleet::Machine;

use super::apply;
use super::load::asked::{Asked, Offered, usage};
use super::simulate::{Labelled, Load, Measured, Modelled, read_profile, simulate};
use crate::connect::Common;
use crate::failure::Failure;

use draws::Drawn;
use told::Told;

/// The cheapest machines that meet a goal.
#[derive(Args)]
pub struct Plan {
    /// What is to be served, as for `weir apply`
    #[arg(short, long, env = "WEIR_FILE")]
    file: PathBuf,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    offered: Offered,
    /// A price list of machines: [[machine]] tables with kind, price (an hour), slots, memory, and speed (times this machine's) or
    /// profiles [default: machines like this one, at 1 an hour]
    #[arg(long, env = "WEIR_MACHINES", value_name = "FILE")]
    machines: Option<PathBuf>,
    /// Draws of the load that have to meet the goal, with a margin as wide as they differ: further seeds, or a trace put together anew
    /// from pieces of it; 1 takes the load as it comes and keeps no margin
    #[arg(long, env = "WEIR_RUNS", default_value_t = RUNS)]
    runs: usize,
    /// More than so many machines are no answer
    #[arg(long, env = "WEIR_MOST", default_value_t = 64)]
    most: u32,
    /// Also tell what happens without these machines of the plan, each by itself, as n3
    #[arg(long, env = "WEIR_LOSE", value_delimiter = ',')]
    lose: Vec<String>,
    /// Also tell what happens when the load is so many times as large, as 2x
    #[arg(long, env = "WEIR_BURST", value_delimiter = ',')]
    burst: Vec<String>,
    #[command(flatten)]
    labelled: Labelled,
    #[command(flatten)]
    measured: Measured,
}

/// A price list, as a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceList {
    machine: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    kind: String,
    price: f64,
    slots: u32,
    memory: String,
    #[serde(default = "as_fast")]
    speed: f64,
    #[serde(default)]
    profiles: Vec<PathBuf>,
}

fn as_fast() -> f64 {
    1.0
}

/// A kind of machine that can be had.
struct Kind {
    name: String,
    price: f64,
    machine: Machine,
}

/// The goal where nobody named one.
const GOAL: &str = "attainment>=0.99";
/// Where nobody says how many. More make the margin little narrower, and a search longer.
const RUNS: usize = 5;

impl Plan {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        if self.asked.has_target() {
            return Err(usage("--target: a plan asks no server; leave it out"));
        }
        if self.most == 0 {
            return Err(usage("--most: at least one machine"));
        }
        if !(1..=planning::RUNS_MAX).contains(&self.runs) {
            return Err(usage(format!("--runs: from 1 to {}", planning::RUNS_MAX)));
        }
        let bursts = self.burst.iter().map(|text| times(text)).collect::<Result<Vec<_>, _>>()?;
        let added = self.offered.added(None);
        let scenario = self.asked.scenario(None, &added)?;
        let goals = match scenario.goals.as_slice() {
            [] => Goal::parse_all(GOAL).expect("a goal"),
            goals => goals.to_vec(),
        };
        let declared = apply::read(&self.file)?;
        let declared = self.labelled.resolve(&self.file, declared, &scenario, &common).await?;
        let load = Load::read(&self.file, &declared, &scenario, &added, self.file.display().to_string())?;
        let modelled = self.measured.model(&self.file, &declared, &load)?;
        let kinds = self.kinds(&modelled)?;
        let planner = Planner::new(&load, &modelled, kinds, goals, self.runs);
        planner.possible(Duration::from_micros(self.measured.path_us))?;
        let found = planner.search(self.most)?;
        let lost = self.lose.iter().map(|name| planner.without(&found.fleet, name)).collect::<Result<Vec<_>, _>>()?;
        let bursts = bursts.into_iter().map(|times| planner.at_times(&found.fleet, times)).collect();
        let results = planner.all(&found.fleet, 1.0, None).expect("what was found was placed");
        let told = Told { planner: &planner, results, found, lost, bursts };
        println!("{}", if common.json() { told.json().to_string() } else { told.text() });
        Ok(())
    }

    fn kinds(&self, modelled: &Modelled) -> Result<Vec<Kind>, Failure> {
        let Some(file) = &self.machines else {
            let (slots, memory) = self.measured.devices.resolve()?;
            let machine = Machine::of(slots, memory);
            return Ok(vec![Kind { name: "this machine".into(), price: 1.0, machine }]);
        };
        let bad = |why: String| usage(format!("--machines {}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|cause| bad(cause.to_string()))?;
        let list: PriceList = toml::from_str(&text).map_err(|cause| bad(cause.to_string()))?;
        if list.machine.is_empty() {
            return Err(bad("it lists no machine".into()));
        }
        let folder = file.parent().unwrap_or(Path::new("."));
        list.machine.into_iter().map(|listed| kind(listed, folder, modelled).map_err(&bad)).collect()
    }
}

fn times(text: &str) -> Result<f64, Failure> {
    let number = text.strip_suffix('x').unwrap_or(text).parse::<f64>().ok();
    let number = number.filter(|times| times.is_finite() && *times > 0.0);
    number.ok_or_else(|| usage(format!("--burst {text}: write it as 2x")))
}

fn kind(listed: Listed, folder: &Path, modelled: &Modelled) -> Result<Kind, String> {
    let Listed { kind: name, price, slots, memory, speed, profiles } = listed;
    let positive = |what: &str, number: f64| {
        let fine = number.is_finite() && number > 0.0;
        if fine { Ok(()) } else { Err(format!("{name}: {what} is a number above 0")) }
    };
    positive("price", price)?;
    positive("speed", speed)?;
    positive("slots", f64::from(slots))?;
    let memory = parse_bytes(&memory).ok_or_else(|| format!("{name}: memory {memory}: write it as 8GiB"))?;
    let mut own = BTreeMap::new();
    for (reference, model) in modelled.asked() {
        let service = Service { profile: model.service.profile.paced(speed), ..model.service.clone() };
        if speed != 1.0 {
            own.insert(reference.clone(), (model.believed.paced(speed), service));
        }
    }
    for path in &profiles {
        let path = folder.join(path);
        let (model, (profile, _)) = read_profile(&path).map_err(|bad| bad.to_string())?;
        let known = ModelRef::parse(&model).ok().and_then(|model| modelled.asked().find(|(known, _)| **known == model));
        // One of a model that this load does not ask is of no harm.
        if let Some((reference, model)) = known {
            let service = Service { profile: profile.clone(), ..model.service.clone() };
            own.insert(reference.clone(), (profile, service));
        }
    }
    Ok(Kind { name, price, machine: Machine { slots, memory: Bytes(memory), own } })
}

/// A load, and what may serve it.
struct Planner<'a> {
    load: &'a Load<'a>,
    modelled: &'a Modelled,
    kinds: Vec<Kind>,
    prices: Vec<f64>,
    goals: Vec<Goal>,
    /// The first as the load comes.
    draws: Vec<Drawn>,
    /// By endpoint that is asked: its queries.
    arrivals: Vec<Statistics>,
    all: Statistics,
    /// By endpoint: the share of all queries, and by stage the share of its rows that run it where nothing is dear.
    mix: Vec<(f64, Vec<f64>)>,
}

/// What becomes of a plan when something else happens.
struct WhatIf {
    what: String,
    /// Over all draws.
    attainment: f64,
    meets: bool,
}

impl<'a> Planner<'a> {
    fn new(load: &'a Load<'a>, modelled: &'a Modelled, kinds: Vec<Kind>, goals: Vec<Goal>, runs: usize) -> Planner<'a> {
        let draws = draws::drawn(&load.config, runs);
        let arrivals = load.arrivals();
        let all = Statistics::of(&draws[0].queries.iter().map(|due| due.at).collect::<Vec<_>>());
        let share = |of: &Statistics| of.count as f64 / all.count.max(1) as f64;
        let mix = arrivals.iter().enumerate().map(|(i, of)| (share(of), modelled.runs(i))).collect();
        let prices = kinds.iter().map(|kind| kind.price).collect();
        Planner { load, modelled, kinds, prices, goals, draws, arrivals, all, mix }
    }

    fn config(&self) -> &RunConfig {
        &self.load.config
    }

    fn endpoint(&self, i: usize) -> &Endpoint {
        self.load.asked[i].0
    }

    /// What a model takes on a kind of machine.
    fn profile(&self, kind: &Kind, model: &ModelRef) -> Profile {
        kind.machine
            .own
            .get(model)
            .map_or_else(|| self.modelled.profile(model).clone(), |(believed, _)| believed.clone())
    }

    /// Says why no number of machines helps, where that is so.
    fn possible(&self, path: Duration) -> Result<(), Failure> {
        for (i, stream) in self.config().streams.iter().enumerate() {
            let flow = &self.load.asked[i].1.flow;
            let stages = &self.endpoint(i).stages;
            let soonest = |kind: &Kind| {
                let span = |model| self.profile(kind, model).estimate(1).as_duration().as_secs_f64();
                let spans: Vec<f64> = stages.iter().map(|stage| stage.model().map_or(0.0, span)).collect();
                flow.until_answer(&spans, 0)
            };
            let fastest = self.kinds.iter().map(soonest).fold(f64::INFINITY, f64::min) + path.as_secs_f64();
            if fastest > stream.deadline.as_secs_f64() {
                return Err(Failure::No(format!(
                    "no plan: the first answer to a row takes {:.1} ms on the fastest machine, calls included, and the deadline of {} is {:.1} ms; a longer deadline or a smaller first stage is needed",
                    1e3 * fastest,
                    self.endpoint(i).name,
                    1e3 * stream.deadline.as_secs_f64(),
                )));
            }
        }
        let largest = self.kinds.iter().map(|kind| kind.machine.memory).max().expect("there are kinds");
        for (model, wanted) in &self.modelled.wanted {
            if wanted.memory > largest {
                return Err(Failure::No(format!(
                    "no plan: model {model} needs {} bytes, and the largest machine has {}",
                    wanted.memory.0, largest.0
                )));
            }
        }
        Ok(())
    }

    fn search(&self, most: u32) -> Result<planning::Found, Failure> {
        // With first stages alone: a guess where to begin.
        let least = |kind: usize| {
            let mut one = vec![0; self.kinds.len()];
            one[kind] = 1;
            (self.all.rate.unwrap_or(0.0) / self.capacity(&one, false)).ceil() as u32
        };
        let met = |fleet: &[u32]| self.meets(fleet);
        planning::cheapest(&self.prices, most, least, met).ok_or_else(|| self.none_of(most))
    }

    /// Says why not even so many machines do.
    fn none_of(&self, most: u32) -> Failure {
        let tried = (0..self.kinds.len()).map(|kind| {
            let mut fleet = vec![0; self.kinds.len()];
            fleet[kind] = most;
            let name = &self.kinds[kind].name;
            let Some(results) = self.all(&fleet, 1.0, None) else {
                return format!("{name}: not all models fit into its memory");
            };
            let missed = results.iter().flat_map(|result| self.goals.iter().map(move |goal| (goal, result)));
            let missed = missed.clone().find(|(goal, result)| !goal.is_met(result));
            let missed = missed.map_or_else(|| self.close(&results), |(goal, result)| goal.missed(result));
            match self.binding(&fleet, false) {
                Some((width, load)) if load > 1.0 => format!(
                    "{name}: {missed}; its busiest {width:?} ask for {load:.2} times what first stages alone can do by then"
                ),
                _ => format!("{name}: {missed}, though there is time enough; look at the deadline"),
            }
        });
        let tried: Vec<String> = tried.collect();
        Failure::No(format!("no plan with at most {most} machines: {}; --most allows more", tried.join("; ")))
    }

    /// What is in the way of a goal that each run meets.
    fn close(&self, results: &[RunResult]) -> String {
        let close = self.goals.iter().find(|goal| !goal.is_promised(results));
        close.map_or_else(|| "the goal was met".into(), |goal| format!("too near: {}", goal.promise(results)))
    }

    /// Whether a fleet meets the goals under each draw, and with a margin. Nobody goes on once one of them cannot meet them any more.
    fn meets(&self, fleet: &[u32]) -> bool {
        let Ok(cluster) = self.modelled.cluster(&self.machines(fleet)) else { return false };
        let results: Option<Vec<RunResult>> = self.draws.iter().map(|draw| self.meeting(&cluster, draw)).collect();
        results.is_some_and(|results| self.promised(&results))
    }

    /// The result under a draw where it meets the goals. Once too many queries were late for that, nobody asks any more.
    fn meeting(&self, cluster: &Cluster, draw: &Drawn) -> Option<RunResult> {
        let offered = draw.queries.len() as u64;
        let may_be_late = self.goals.iter().map(|goal| goal.late_at_most(offered)).min().unwrap_or(offered);
        let late = Cell::new(0_u64);
        let queries = draw.queries.iter().take_while(|_| late.get() <= may_be_late).cloned();
        let result = simulate(cluster, &self.modelled.learnt, &draw.config, queries, |ended| {
            let in_time = ended.outcome == Outcome::Answered && ended.latency <= ended.due.deadline;
            late.set(late.get() + u64::from(!in_time));
        });
        let met = late.get() <= may_be_late && self.goals.iter().all(|goal| goal.is_met(&result));
        met.then_some(result)
    }

    fn promised(&self, results: &[RunResult]) -> bool {
        self.goals.iter().all(|goal| goal.is_promised(results))
    }

    fn machines(&self, fleet: &[u32]) -> Vec<Machine> {
        let kinds = self.kinds.iter().zip(fleet);
        kinds.flat_map(|(kind, count)| std::iter::repeat_n(kind.machine.clone(), *count as usize)).collect()
    }

    /// Each draw on a fleet at `times` its rate, without one of its machines; `None` where models have no place.
    fn all(&self, fleet: &[u32], times: f64, without: Option<usize>) -> Option<Vec<RunResult>> {
        let mut cluster = self.modelled.cluster(&self.machines(fleet)).ok()?;
        if let Some(lost) = without {
            lose(&mut cluster, lost);
        }
        let sooner =
            |due: &Due| Due { at: Instant::from_nanos((due.at.as_nanos() as f64 / times) as u64), ..due.clone() };
        let run = |draw: &Drawn| {
            simulate(&cluster, &self.modelled.learnt, &draw.config, draw.queries.iter().map(sooner), |_| {})
        };
        Some(self.draws.iter().map(run).collect())
    }

    fn what_if(&self, what: String, results: &[RunResult]) -> WhatIf {
        let attainment = results.iter().map(|result| result.attainment).sum::<f64>() / results.len() as f64;
        WhatIf { what, attainment, meets: self.promised(results) }
    }

    fn without(&self, fleet: &[u32], name: &str) -> Result<WhatIf, Failure> {
        let machines = fleet.iter().sum::<u32>() as usize;
        let number = name.strip_prefix('n').and_then(|number| number.parse::<usize>().ok());
        let lost = number
            .filter(|number| (1..=machines).contains(number))
            .ok_or_else(|| usage(format!("--lose {name}: the machines of this plan are n1 to n{machines}")))?;
        if machines == 1 {
            return Ok(WhatIf { what: format!("without {name}"), attainment: 0.0, meets: false });
        }
        let results = self.all(fleet, 1.0, Some(lost - 1)).expect("it was placed before");
        Ok(self.what_if(format!("without {name}"), &results))
    }

    fn at_times(&self, fleet: &[u32], times: f64) -> WhatIf {
        let results = self.all(fleet, times, None).expect("it was placed before");
        self.what_if(format!("at {times} times the load"), &results)
    }

    /// Queries a second that a fleet can do, in the mix of this load, with all stages or only the first ones.
    fn capacity(&self, fleet: &[u32], deep: bool) -> f64 {
        let rows = self.config().rows_per_query as f64;
        let of_kind = |kind: &Kind| {
            let seconds = self.mix.iter().enumerate().map(|(i, (share, runs))| {
                let stages = self.endpoint(i).stages.iter().zip(runs);
                let stages = stages.take(if deep { usize::MAX } else { 1 });
                let seconds = |model| self.profile(kind, model).row_seconds();
                share * stages.filter_map(|(stage, runs)| Some(runs * seconds(stage.model()?))).sum::<f64>()
            });
            f64::from(kind.machine.slots) / (rows * seconds.sum::<f64>()).max(1e-9)
        };
        self.kinds.iter().zip(fleet).map(|(kind, count)| f64::from(*count) * of_kind(kind)).sum()
    }

    /// Which window asks most of a fleet, and how much.
    fn binding(&self, fleet: &[u32], deep: bool) -> Option<(Duration, f64)> {
        let deadline = self.config().streams.iter().map(|stream| stream.deadline).min()?;
        planning::binding(&self.all.windows, deadline, self.capacity(fleet, deep))
    }

    /// What a plan costs that sees each endpoint as one black box with machines of its own, all stages for each query, sized to
    /// the busiest window as wide as the deadline (`peak`) or to the mean rate: InferLine's coarse-grained baseline.
    fn coarse(&self, peak: bool) -> Option<f64> {
        let mut total = 0.0;
        for (i, statistics) in self.arrivals.iter().enumerate() {
            let deadline = self.config().streams[i].deadline;
            let wide = statistics.windows.iter().find(|window| window.width >= deadline);
            let rate = match wide {
                Some(window) if peak => window.largest as f64 / window.width.as_secs_f64(),
                _ => statistics.rate.unwrap_or(0.0),
            };
            let rows = rate * self.config().rows_per_query as f64;
            let costs = self.kinds.iter().filter_map(|kind| {
                let a_machine = self.whole(kind, self.endpoint(i), deadline)?;
                Some(kind.price * (rows / a_machine).ceil().max(1.0))
            });
            total += costs.min_by(f64::total_cmp)?;
        }
        Some(total)
    }

    /// Rows a second that a machine of a kind serves with all stages, in the largest batches of which two fit before the deadline.
    fn whole(&self, kind: &Kind, endpoint: &Endpoint, deadline: Duration) -> Option<f64> {
        let profiles: Vec<Profile> = endpoint.models().map(|model| self.profile(kind, model)).collect();
        let time = |batch: u32| profiles.iter().map(|profile| profile.estimate(batch).as_duration()).sum::<Duration>();
        let most = profiles.iter().filter_map(|profile| profile.points().last()).map(|(batch, _)| *batch).min()?;
        let batch = (1..=most).rev().find(|batch| time(*batch) * 2 <= deadline)?;
        Some(f64::from(kind.machine.slots) * f64::from(batch) / time(batch).as_secs_f64())
    }
}

/// A machine is gone with what stood on it; the others are as they were.
fn lose(cluster: &mut Cluster, lost: usize) {
    cluster.nodes.remove(lost);
    for model in cluster.models.values_mut() {
        model.replicas.remove(lost);
    }
}
