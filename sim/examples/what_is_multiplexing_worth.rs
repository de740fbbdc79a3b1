//! What is multiplexing worth? Eight models on eight devices, 99 % within 50 ms (`scheduling.md` section 14): each model on a device of
//! its own, on two, on all, and all slots under one scheduler, as if every query knew beforehand where it fares best. And what is served of
//! more than all of them bear?
//!
//! `cargo run --release -p weir-sim --example what_is_multiplexing_worth [SECONDS [SEEDS]]`: 60 and 3, half an hour, where nobody says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir_core::endpoint::{Endpoint, Ladders, Stage};
use weir_core::ids::{EndpointName, ModelRef, StageName};
use weir_core::profile::Profile;
use weir_core::scheduler::Policy;
use weir_core::triage::Method;
use weir_core::units::ServiceTime;
use weir_core::workload::Arrivals;
use weir_sim::cluster::{self, Cluster, Due, Model, Node, Path, Reports, Served};
use weir_sim::device::Service;
use weir_sim::pool::{self, Case, Load};

const MODELS: usize = 8;
const SLO: Duration = Duration::from_millis(50);
const GOAL: f64 = 0.99;

/// How long each run is, and how many there are.
#[derive(Clone, Copy)]
struct Runs {
    length: Duration,
    seeds: u64,
}

impl Runs {
    fn mean(self, of: impl Fn(u64) -> f64) -> f64 {
        (1..=self.seeds).map(of).sum::<f64>() / self.seeds as f64
    }
}

fn name(i: usize) -> String {
    format!("m{i}")
}

fn reference(i: usize) -> ModelRef {
    ModelRef::parse(&format!("{}@1", name(i))).expect("a name")
}

/// 5 ms and 1 ms a row.
fn profile() -> Profile {
    let at = |rows: u64| ServiceTime::from_micros(5000 + 1000 * rows);
    Profile::new(&[(1, at(1)), (40, at(40))])
}

/// As many devices as models; model `i` stands on `copies` of them from number `i` on.
fn cluster(copies: usize) -> Cluster {
    let on = |model: usize| (0..MODELS).map(|node| u32::from((node + MODELS - model) % MODELS < copies)).collect();
    let model = |i: usize| {
        let service = Service::exact(profile());
        (reference(i), Model { believed: profile(), service, max_batch: 40, replicas: on(i) })
    };
    let endpoint = |i: usize| {
        let stage = Stage::new(StageName::parse(&name(i)).expect("a name"), reference(i), None);
        let endpoint = Endpoint::new(EndpointName::parse(&name(i)).expect("a name"), SLO, vec![stage]);
        Served::cascade(Ladders::new(&Arc::new(endpoint), &[0.001]), &[vec![None]])
    };
    Cluster {
        nodes: vec![Node::of(1); MODELS],
        policy: Policy::default(),
        triage: Method::default(),
        models: (0..MODELS).map(model).collect::<BTreeMap<_, _>>(),
        endpoints: (0..MODELS).map(endpoint).collect(),
        path: Path::of(Duration::from_micros(100)),
        reports: Some(Reports::default()),
    }
}

/// The models on all slots under one scheduler, their queries as [`pool::queries`] draws them.
fn case(arrivals: &str) -> Case {
    let load = Load {
        believed: profile(),
        service: Service::exact(profile()),
        max_batch: 40,
        slo: SLO,
        share: 1.0 / MODELS as f64,
    };
    Case { slots: MODELS as u32, models: vec![load; MODELS], arrivals: Arrivals::parse(arrivals).expect("arrivals") }
}

fn attainment(cluster: &Cluster, case: &Case, rate: f64, length: Duration, seed: u64) -> f64 {
    let queries = pool::queries(case, rate, length, seed);
    let (mut in_time, all) = (0, queries.len());
    let due = |query: pool::Asked| Due { at: query.at, endpoint: query.model, rows: vec![0], deadline: SLO };
    cluster::run(cluster, queries.into_iter().map(due), seed, |ended| {
        let answered = ended.stages.iter().all(Option::is_some);
        in_time += usize::from(answered && ended.latency <= SLO);
    });
    in_time as f64 / all.max(1) as f64
}

/// The highest rate at which 99 % are in time, of all seeds together.
fn peak(runs: Runs, at: impl Fn(f64, u64) -> f64) -> f64 {
    pool::highest(|rate| runs.mean(|seed| at(rate, seed)) >= GOAL)
}

fn main() {
    let asked = |i: usize, otherwise: u64| match std::env::args().nth(i).map(|text| text.parse()) {
        None => otherwise,
        Some(Ok(number @ 1..)) => number,
        Some(_) => panic!("SECONDS and SEEDS are whole numbers from 1 on"),
    };
    let runs = Runs { length: Duration::from_secs(asked(1, 60)), seeds: asked(2, 3) };
    println!("queries a second over {MODELS} models on {MODELS} devices with {:.0} % within {SLO:?}", 100.0 * GOAL);
    println!(
        "{:>16} {:>9} {:>9} {:>9} {:>9} {:>13} {:>7}",
        "arrivals", "own", "on two", "on four", "on all", "one scheduler", "gain"
    );
    let copies = [1, 2, 4, MODELS].map(cluster);
    let one_scheduler =
        |case: &Case, rate, seed| pool::run(case, Policy::default(), rate, runs.length, seed).attainment();
    let mut beyond = Vec::new();
    // Squared coefficients of variation of 1, 4, 8 and 30.
    for arrivals in ["poisson", "gamma:cv=2", "gamma:cv=2.828", "gamma:cv=5.477"] {
        let case = case(arrivals);
        let by_copies = copies
            .each_ref()
            .map(|cluster| peak(runs, |rate, seed| attainment(cluster, &case, rate, runs.length, seed)));
        let together = peak(runs, |rate, seed| one_scheduler(&case, rate, seed));
        let shares = |rate| {
            let apart =
                copies.each_ref().map(|cluster| runs.mean(|seed| attainment(cluster, &case, rate, runs.length, seed)));
            (apart, runs.mean(|seed| one_scheduler(&case, rate, seed)))
        };
        beyond.push((arrivals, [1.0, 1.2].map(|times| shares(times * together))));
        let [own, two, four, all] = by_copies;
        println!(
            "{arrivals:>16} {own:9.0} {two:9.0} {four:9.0} {all:9.0} {together:13.0} {:6.2}x",
            all.max(two).max(four) / own
        );
    }
    println!("in time, in percent, of the rate that one scheduler bears and of 1.2 times it");
    for (arrivals, shares) in beyond {
        for ([own, two, four, all], together) in shares {
            let [own, two, four, all, together] = [own, two, four, all, together].map(|share| 100.0 * share);
            println!("{arrivals:>16} {own:9.2} {two:9.2} {four:9.2} {all:9.2} {together:13.2}");
        }
    }
}
