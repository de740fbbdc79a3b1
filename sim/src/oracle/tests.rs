use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use weir_core::endpoint::gain::Bin;
use weir_core::endpoint::{Endpoint, GainTable, Gate, Ladders, Stage};
use weir_core::ids::{EndpointName, ModelRef, StageName};
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::scheduler::Policy;
use weir_core::triage::Method;

use super::*;
use crate::cluster::{self, Cluster, Due, Ended, Model, Node, Path, Reports, Served};
use crate::device::Service;

proptest! {
    /// Against every subset, by brute force.
    #[test]
    fn nobody_does_better(rows in prop::collection::vec((0..60u64, 1..100u32), 1..11), within in 10..50u64) {
        let mut rows: Vec<(Instant, f64)> =
            rows.iter().map(|(at, value)| (Instant::from_millis(*at), f64::from(*value))).collect();
        rows.sort_by_key(|(at, _)| *at);
        let (takes, within) = (Duration::from_millis(10), Duration::from_millis(within));
        let fits = |set: u32| {
            let mut free = Instant::ZERO;
            (0..rows.len()).filter(|row| set & (1 << row) != 0).all(|row| {
                free = rows[row].0.max(free) + takes;
                free <= rows[row].0 + within
            })
        };
        let worth = |set: u32| (0..rows.len()).filter(|row| set & (1 << row) != 0).map(|row| rows[row].1).sum::<f64>();
        let most = (0..1u32 << rows.len()).filter(|set| fits(*set)).map(worth).fold(0.0, f64::max);
        let found = best(&rows, takes, within);
        prop_assert!((found - most).abs() < 1e-9, "{found} of {most}");
    }
}

/// What the deep stage takes for a row: 200 of them a second.
const TAKES: Duration = Duration::from_millis(5);
/// Bins of the gain table: gains from 0.5 down, by a seventh each.
const BINS: usize = 20;

fn gain(bin: usize) -> f64 {
    0.5 * (-(bin as f64) / 7.0).exp()
}

/// A first stage that takes no time to speak of, and a deep one that serves one row at a time.
/// Endpoints have weights and shares.
fn pool(nodes: usize, deep: &[u32], triage: Method, reports: Option<Reports>, endpoints: &[(f64, f64)]) -> Cluster {
    let bin = |bin: usize| Bin {
        confidence: bin as f32 / BINS as f32,
        rows: 100,
        right: 0.5,
        gain: gain(bin),
        error: 0.01,
        next: Vec::new(),
    };
    let table = Arc::new(GainTable::new((0..BINS).map(bin).collect()).expect("a table"));
    let reference = |name: &str| ModelRef::parse(&format!("{name}@1")).expect("a name");
    let stage = |name: &str, gate| Stage::new(StageName::parse(name).expect("a name"), reference(name), gate);
    let endpoint = |(number, (weight, share)): (usize, &(f64, f64))| Endpoint {
        weight: *weight,
        share: *share,
        label_output: Some("probs".into()),
        ..Endpoint::new(
            EndpointName::parse(&format!("e{number}")).expect("a name"),
            Duration::from_millis(50),
            vec![stage("shallow", None), stage("deep", Some(Gate::Gain { table: Arc::clone(&table), min_gain: 0.0 }))],
        )
    };
    let model = |takes: Duration, replicas: Vec<u32>| {
        let profile = Profile::new(&[(1, takes.into())]);
        Model { believed: profile.clone(), service: Service::exact(profile), max_batch: 1, replicas }
    };
    let shallow = model(Duration::from_micros(1), vec![1; nodes]);
    let models = BTreeMap::from([(reference("shallow"), shallow), (reference("deep"), model(TAKES, deep.to_vec()))]);
    let signals = [(0..BINS).map(|bin| Some(bin as f32 / BINS as f32)).collect(), vec![None; BINS]];
    let served =
        |endpoint: Endpoint| Served::cascade(Ladders::new(&Arc::new(endpoint), &[1e-6, TAKES.as_secs_f64()]), &signals);
    let none = Duration::ZERO;
    Cluster {
        nodes: vec![Node::of(1); nodes],
        policy: Policy::default(),
        triage,
        models,
        endpoints: endpoints.iter().enumerate().map(endpoint).map(served).collect(),
        path: Path { request: none, reply: none, hand_off: none, hop: none },
        reports,
    }
}

/// How load comes: by time in seconds, the rate and how much harder rows are (0: bins evenly; 1: the best half of them alone).
type Scenario = (&'static str, fn(f64) -> (f64, f64));

/// `scheduling.md` section 16, at 160 rows a second in calm: four fifths of what the deep stage can do.
const SCENARIOS: [Scenario; 4] = [
    ("4x spike of 2 s", |at| (if (4.0..6.0).contains(&at) { 640.0 } else { 160.0 }, 0.0)),
    ("4x step of 20 s", |at| (if (4.0..24.0).contains(&at) { 640.0 } else { 160.0 }, 0.0)),
    ("12x bursts of 50 ms", |at| (if at % 1.0 < 0.05 { 1920.0 } else { 160.0 }, 0.0)),
    ("17x step, harder", |at| if (4.0..24.0).contains(&at) { (2720.0, 1.0) } else { (160.0, 0.0) }),
];

fn dues(scenario: fn(f64) -> (f64, f64), scale: f64, deadline: Duration, seed: u64) -> Vec<Due> {
    let mut prng = Prng::new(seed);
    let (mut at, mut dues) = (0.0, Vec::new());
    while at < 28.0 {
        let (rate, harder) = scenario(at);
        at += prng.exponential() / (rate * scale);
        let bins = if prng.uniform() < harder { BINS / 2 } else { BINS };
        let rows = vec![prng.below(bins as u64) as u32];
        dues.push(Due { at: Instant::ZERO + Duration::from_secs_f64(at), endpoint: 0, rows, deadline });
    }
    dues
}

/// Gain of what the deep stage answered in time, the share of calls of it that ran for nothing or not at all, and the share of
/// rows that were answered in time.
fn had(ended: &[Ended]) -> (f64, f64, f64) {
    let in_time = |end: &&Ended| end.stages[0].is_some() && end.latency <= end.due.deadline;
    let deep = |end: &&Ended| in_time(end) && end.stages == [Some(1)];
    let gained = ended.iter().filter(deep).map(|end| gain(end.due.rows[0] as usize)).sum();
    let sent: u32 = ended.iter().map(|end| end.escalated.0).sum();
    let wasted = 1.0 - ended.iter().filter(deep).count() as f64 / f64::from(sent.max(1));
    (gained, wasted, ended.iter().filter(in_time).count() as f64 / ended.len() as f64)
}

fn ends(cluster: &Cluster, dues: Vec<Due>, seed: u64) -> Vec<Ended> {
    let mut ended = Vec::new();
    cluster::run(cluster, dues, seed, |end| ended.push(end));
    ended
}

/// The table stands in benches/RESULTS.md: `cargo test -p weir-sim --release oracle -- --nocapture`.
#[test]
fn the_gain_is_nearly_that_of_an_oracle_and_few_escalations_are_in_vain() {
    // Assertions of debug builds look at whole queues at every step: there, a part of the table.
    let part = cfg!(debug_assertions);
    let seeds = if part { 1 } else { 3 };
    for (name, scenario) in SCENARIOS {
        for deadline in [30, 100, 300].map(Duration::from_millis) {
            if part && (deadline != Duration::from_millis(30) || name.contains("20 s")) {
                continue;
            }
            let mut told = format!("{name:20} {:3} ms", deadline.as_millis());
            let methods = [Method::Fixed, Method::Price, Method::PushOut, Method::Weir];
            for method in methods.into_iter().skip(if part { 3 } else { 0 }) {
                let (mut gained, mut most, mut wasted, mut served) = (0.0, 0.0, 0.0, 0.0);
                for seed in 0..seeds {
                    let dues = dues(scenario, 1.0, deadline, seed);
                    let rows: Vec<(Instant, f64)> =
                        dues.iter().map(|due| (due.at, gain(due.rows[0] as usize))).collect();
                    most += best(&rows, TAKES, deadline);
                    let cluster = pool(2, &[0, 1], method, Some(Reports::default()), &[(1.0, 0.0)]);
                    let (gain, vain, in_time) = had(&ends(&cluster, dues, seed));
                    (gained, wasted, served) = (gained + gain, wasted + vain, served + in_time);
                }
                (wasted, served) = (wasted / seeds as f64, served / seeds as f64);
                told += &format!(
                    "  {method} {:.3} ({:.0} % in vain, {:.2} % in time)",
                    gained / most,
                    wasted * 100.0,
                    served * 100.0
                );
                if method == Method::Weir {
                    assert!(gained >= 0.97 * most && wasted <= 0.17 && served >= 0.99, "{told}");
                }
            }
            println!("{told}");
        }
    }
}

/// A device plans by what batches take when they take long, and its price is of what they take on average.
#[test]
fn no_more_escalations_are_in_vain_where_batches_take_a_fifth_more_or_less() {
    let (_, scenario) = SCENARIOS[3];
    let deadline = Duration::from_millis(if cfg!(debug_assertions) { 30 } else { 100 });
    let mut cluster = pool(2, &[0, 1], Method::Weir, Some(Reports::default()), &[(1.0, 0.0)]);
    let had_with = |cluster: &Cluster| had(&ends(cluster, dues(scenario, 1.0, deadline, 1), 1));
    let (exact, in_vain, _) = had_with(&cluster);
    cluster.models.values_mut().for_each(|model| model.service.noise = 0.2);
    let (gained, noisy, in_time) = had_with(&cluster);
    let told =
        format!("{noisy:.3} in vain in place of {in_vain:.3}, {:.3} of the gain, {in_time:.3} in time", gained / exact);
    println!("{told}");
    assert!(noisy <= 0.17 && gained >= 0.97 * exact && in_time >= 0.99, "{told}");
}

/// Homes, one of which has the deep stage, at four times what it can do from the 4th second to the 24th.
struct Step(Vec<Ended>);

impl Step {
    /// Four of them.
    fn with(reports: Option<Reports>) -> Step {
        Step::of(4, reports)
    }

    fn of(homes: usize, reports: Option<Reports>) -> Step {
        let deep: Vec<u32> = (1..=homes).map(|home| u32::from(home == homes)).collect();
        let cluster = pool(homes, &deep, Method::Weir, reports, &[(1.0, 0.0)]);
        Step(ends(&cluster, dues(SCENARIOS[1].1, 1.0, Duration::from_millis(100), 1), 1))
    }

    /// Of rows that come within these seconds: see [`had`].
    fn had(&self, from: f64, until: f64) -> (f64, f64, f64) {
        let within = |end: &&Ended| (from..until).contains(&end.due.at.since(Instant::ZERO).as_secs_f64());
        had(&self.0.iter().filter(within).cloned().collect::<Vec<_>>())
    }

    /// By tenths of a second from one second to another: the mean of the prices that rows met.
    fn prices(&self, from: u64, until: u64) -> Vec<f64> {
        let mut tenths: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for end in &self.0 {
            tenths.entry(end.due.at.as_nanos() / 100_000_000).or_default().push(end.price);
        }
        tenths.range(10 * from..10 * until).map(|(_, prices)| mean(prices)).collect()
    }
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// How far numbers lie from `from`, as a part of it: the root of the mean square.
fn sway(numbers: &[f64], from: f64) -> f64 {
    mean(&numbers.iter().map(|number| (number / from - 1.0).powi(2)).collect::<Vec<_>>()).sqrt()
}

#[test]
fn the_price_rises_once_and_stays_however_late_reports_are() {
    for delay in [0, 250, 1000, 2000].map(Duration::from_millis) {
        let step = Step::with(Some(Reports { every: Duration::from_millis(250), delay, ..Reports::default() }));
        // From the step on.
        let (prices, settled) = (step.prices(4, 24), mean(&step.prices(14, 24)));
        let highest = prices.iter().copied().fold(0.0, f64::max) / settled;
        let near = |price: &f64| (price / settled - 1.0).abs() < 0.3;
        let after = prices.iter().rposition(|price| !near(price)).map_or(0.0, |last| (last + 1) as f64 / 10.0);
        let [early, late] = [&prices[40..120], &prices[120..]].map(|prices| sway(prices, settled));
        let told = format!(
            "{delay:?}: at most {highest:.2} of {settled:.1}, near it after {after:.1} s, then sways by {early:.3} and {late:.3}"
        );
        println!("{told}");
        assert!(highest < 1.4, "it overshoots: {told}");
        assert!(after <= delay.as_secs_f64() + 1.0, "a report and a memory of demand later it is there: {told}");
        assert!(early < 0.15 && late < 0.15 && late < 1.5 * early, "it swings: {told}");
    }
}

#[test]
fn a_home_with_few_queries_heeds_the_price_of_others() {
    let [(_, many, _), (_, few, _)] = [4, 16].map(|homes| Step::of(homes, Some(Reports::default())).had(0.0, 28.0));
    println!("{many:.3} in vain with four homes, {few:.3} with sixteen");
    assert!(few < 0.2, "each of them escalates some ten a second, and hears the price in between: {few}, {many}");
}

#[test]
fn without_a_leader_as_much_is_gained_and_more_escalations_are_in_vain() {
    let (alone, in_vain, _) = Step::with(None).had(0.0, 28.0);
    for delay in [0, 250, 1000, 2000].map(Duration::from_millis) {
        let reports = Reports { every: Duration::from_millis(250), delay, ..Reports::default() };
        let (gained, wasted, _) = Step::with(Some(reports)).had(0.0, 28.0);
        let told =
            format!("{delay:?}: {gained:.0} gained, {wasted:.2} in vain; without a leader {alone:.0}, {in_vain:.2}");
        println!("{told}");
        assert!((gained / alone - 1.0).abs() < 0.01, "neither gains more than a point by it: {told}");
        assert!(wasted < 0.2 && wasted < in_vain / 2.0, "who has one knows what all homes ask: {told}");
    }
}

#[test]
fn a_leader_that_vanishes_in_an_overload_takes_no_gain_with_it() {
    let led = Step::with(Some(Reports::default()));
    let vanishes = Step::with(Some(Reports { until: Instant::from_millis(14_000), ..Reports::default() }));
    // While what it told last still counts, and after that.
    for (from, until) in [(14.0, 17.0), (17.5, 24.0), (4.0, 28.0)] {
        let ((gained, in_vain, in_time), (with, in_vain_with, _)) = (vanishes.had(from, until), led.had(from, until));
        let share = gained / with;
        let told = format!(
            "from {from} to {until} s: {share:.3} of the gain, {in_vain:.2} in vain and {in_vain_with:.2} with one, {in_time:.3} in time"
        );
        println!("{told}");
        assert!((share - 1.0).abs() < 0.02 && in_time > 0.99, "{told}");
        match from as u32 {
            14 => assert!(in_vain < 0.35, "what it told last counts: {told}"),
            17 => assert!(in_vain > 2.0 * in_vain_with, "it is missed: {told}"),
            _ => assert!((share - 1.0).abs() < 0.01, "{told}"),
        }
    }
}

/// Rows of two endpoints at rates that may change with time in seconds, for 20 s, in order of time.
fn mixed(rates: [&dyn Fn(f64) -> f64; 2], deadline: Duration, seed: u64) -> Vec<Due> {
    let mut all = Vec::new();
    for (endpoint, rate) in rates.into_iter().enumerate().filter(|(_, rate)| rate(0.0) > 0.0) {
        let mut prng = Prng::part(seed, endpoint as u64);
        let mut at = 0.0;
        while at < 20.0 {
            at += prng.exponential() / rate(at);
            let at = Instant::ZERO + Duration::from_secs_f64(at);
            all.push(Due { at, endpoint, rows: vec![prng.below(BINS as u64) as u32], deadline });
        }
    }
    all.sort_by_key(|due| due.at);
    all
}

fn of(ended: &[Ended], endpoint: usize) -> Vec<Ended> {
    ended.iter().filter(|end| end.due.endpoint == endpoint).cloned().collect()
}

#[test]
fn the_neighbour_of_a_flood_keeps_what_it_gains_alone() {
    let deadline = Duration::from_millis(100);
    // Half of 200 a second is its share, and it asks for four fifths of that.
    let gained = |flood: f64, share: f64| {
        let cluster = pool(1, &[1], Method::Weir, Some(Reports::default()), &[(1.0, share), (1.0, share)]);
        let ended = ends(&cluster, mixed([&|_| 80.0, &|_| flood], deadline, 3), 3);
        (had(&of(&ended, 0)).0, had(&ended).0)
    };
    let (alone, _) = gained(0.0, 0.5);
    for flood in [500.0, 2000.0] {
        let ((kept, total), (bare, most)) = (gained(flood, 0.5), gained(flood, 0.0));
        let told = format!(
            "beside {flood} a second: {:.3} of what it gains alone, {:.3} without a share; all together gain {:.3} of what they gain without shares",
            kept / alone,
            bare / alone,
            total / most
        );
        println!("{told}");
        assert!(kept >= 0.95 * alone && bare < 0.9 * alone, "{told}");
    }
}

/// What a second of the deep stage's time is worth to each of two endpoints where it stops, by what it answered from second to second of
/// those in which a clock of four seconds shows `from` to `until`.
fn margins(ended: &[Ended], weights: [f64; 2], (from, until): (f64, f64)) -> [f64; 2] {
    let within = |end: &&Ended| (from..until).contains(&(end.due.at.since(Instant::ZERO).as_secs_f64() % 4.0));
    let ended: Vec<Ended> = ended.iter().filter(within).cloned().collect();
    [0, 1].map(|endpoint| {
        let of = of(&ended, endpoint);
        // Where between the bins it stops.
        let share = of.iter().filter(|end| end.stages == [Some(1)]).count() as f64 / of.len() as f64;
        let at = share * BINS as f64 - 0.5;
        weights[endpoint] * 0.5 * (-at / 7.0).exp() / TAKES.as_secs_f64()
    })
}

#[test]
fn the_last_second_is_worth_the_same_to_endpoints_of_any_weight() {
    let weights = [1.0, 3.0];
    let cluster = pool(1, &[1], Method::Weir, Some(Reports::default()), &weights.map(|weight| (weight, 0.0)));
    // Whether both come steadily, or the heavier one in bursts of two seconds; the price is positive all the time.
    let bursting = |at: f64| if at % 4.0 < 2.0 { 500.0 } else { 150.0 };
    for (what, rate) in [("steady", &(|_| 300.0) as &dyn Fn(f64) -> f64), ("one bursts", &bursting)] {
        let ended = ends(&cluster, mixed([&|_| 150.0, rate], Duration::from_millis(100), 5), 5);
        for (from, until) in [(0.0, 2.0), (2.0, 4.0)] {
            let [light, heavy] = margins(&ended, weights, (from, until));
            println!(
                "{what}, second {from} to {until}: a second is worth {light:.1} to the one and {heavy:.1} to the other"
            );
            assert!((light / heavy - 1.0).abs() < 0.1, "{what}: {light} and {heavy}");
        }
    }
}

#[test]
fn a_share_holds_while_a_heavier_endpoint_bursts() {
    let deadline = Duration::from_millis(100);
    let bursting = |at: f64| if at % 4.0 < 2.0 { 800.0 } else { 100.0 };
    let gained = |share: f64, other: &dyn Fn(f64) -> f64| {
        let cluster = pool(1, &[1], Method::Weir, Some(Reports::default()), &[(1.0, share), (3.0, 0.0)]);
        had(&of(&ends(&cluster, mixed([&|_| 80.0, other], deadline, 7), 7), 0)).0
    };
    let (alone, kept, bare) = (gained(0.5, &|_| 0.0), gained(0.5, &bursting), gained(0.0, &bursting));
    println!("beside bursts: {:.3} of what it gains alone with a share, {:.3} without", kept / alone, bare / alone);
    assert!(kept >= 0.95 * alone && bare < 0.9 * alone, "{kept} and {bare} of {alone}");
}
