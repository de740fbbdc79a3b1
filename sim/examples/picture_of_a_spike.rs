//! Draws what a spike does to the demo's cascade on one slot, in virtual time, by tenths of a second of ten seeds: arrivals, the price that gates met,
//! which stage answers, and p99.
//!
//! `cargo run --release -p weir-sim --example picture_of_a_spike > docs/understand/spike.svg`

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use weir_core::endpoint::{Endpoint, GainTable, Gate, Ladders, Stage};
use weir_core::ids::{EndpointName, ModelRef, StageName};
use weir_core::outcome::{Class, Outcome};
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::scheduler::Policy;
use weir_core::triage::Method;
use weir_core::units::{Instant, ServiceTime};
use weir_sim::cluster::{self, Cluster, Due, Model, Node, Path, Reports, Served};
use weir_sim::device::Service;

/// The demo's stages at a tenth of their speed: microseconds of a batch, and of each of its rows.
const STAGES: [(&str, u64, u64); 3] = [("tiny", 75, 21), ("mid", 100, 310), ("big", 100, 3950)];
const ROWS: usize = 2000;
const TENTHS: usize = 60;

#[derive(Clone, Default)]
struct Tenth {
    offered: u32,
    in_time: u32,
    price: f64,
    by_stage: [u32; 3],
    latencies: Vec<Duration>,
}

fn demo() -> Cluster {
    let read = |name: &str| {
        let path = format!("{}/../demo/{name}.csv", env!("CARGO_MANIFEST_DIR"));
        GainTable::from_csv(&std::fs::read_to_string(path).expect("it belongs to the demo")).expect("a table")
    };
    let tables = [read("tiny-mid"), read("mid-big")];
    let reference = |name: &str| ModelRef::parse(&format!("{name}@1")).expect("a name");
    let stages = STAGES.iter().enumerate().map(|(i, (name, ..))| {
        let table = i.checked_sub(1).map(|gate| Arc::new(tables[gate].clone()));
        let gate = table.map(|table| Gate::Gain { table, min_gain: Gate::MIN_GAIN });
        Stage::new(StageName::parse(name).expect("a name"), reference(name), gate)
    });
    let endpoint = Endpoint {
        name: EndpointName::parse("fashion").expect("a name"),
        deadline: Duration::from_millis(50),
        weight: 1.0,
        share: 0.0,
        audit: 0.0,
        versions: Vec::new(),
        before: Vec::new(),
        shadow: None,
        class: Class::Default,
        label_output: Some("probs".into()),
        confidence_output: None,
        default_outputs: Vec::new(),
        stages: stages.collect(),
    };
    let models = STAGES.map(|(name, alpha, beta)| {
        let at = |batch: u64| ServiceTime::from_micros(alpha + beta * batch);
        let profile = Profile::new(&[(1, at(1)), (64, at(64))]);
        let service = Service::exact(profile.clone());
        (reference(name), Model { believed: profile, service, max_batch: 64, replicas: vec![1] })
    });
    let seconds = STAGES.map(|(_, _, beta)| beta as f64 / 1e6);
    Cluster {
        nodes: vec![Node::of(1)],
        policy: Policy::default(),
        triage: Method::default(),
        models: BTreeMap::from(models),
        endpoints: vec![Served::cascade(Ladders::new(&Arc::new(endpoint), &seconds), &signals(&tables))],
        path: Path::of(Duration::from_micros(100)),
        reports: Some(Reports::default()),
    }
}

/// Rows whose confidences are spread as the tables say.
fn signals(tables: &[GainTable; 2]) -> Vec<Vec<Option<f32>>> {
    let mut prng = Prng::new(1);
    let mut pick = |shares: Vec<f64>| {
        let mut left = prng.uniform() * shares.iter().sum::<f64>();
        let within = |share: &f64| {
            left -= share;
            left < 0.0
        };
        shares.iter().position(within).unwrap_or(0)
    };
    let mut signals = vec![Vec::new(); 3];
    for _ in 0..ROWS {
        let first = pick(tables[0].bins().iter().map(|bin| f64::from(bin.rows)).collect());
        let second = pick(tables[0].bins()[first].next.iter().map(|share| f64::from(*share)).collect());
        signals[0].push(Some(tables[0].bins()[first].confidence));
        signals[1].push(Some(tables[1].bins()[second].confidence));
        signals[2].push(None);
    }
    signals
}

/// Ten times the rate from the second to the fourth second.
fn spike(cluster: &Cluster) -> Vec<Tenth> {
    let mut tenths = vec![Tenth::default(); TENTHS];
    for seed in 0..10 {
        let mut prng = Prng::new(100 + seed);
        let (mut at, mut dues) = (0.0, Vec::new());
        while at < 6.0 {
            at += prng.exponential() / if (2.0..4.0).contains(&at) { 4000.0 } else { 400.0 };
            let rows = vec![prng.below(ROWS as u64) as u32];
            let deadline = Duration::from_millis(50);
            dues.push(Due { at: Instant::ZERO + Duration::from_secs_f64(at), endpoint: 0, rows, deadline });
        }
        cluster::run(cluster, dues, seed, |end| {
            let Some(tenth) = tenths.get_mut((end.due.at.as_nanos() / 100_000_000) as usize) else { return };
            tenth.offered += 1;
            tenth.in_time += u32::from(end.outcome == Outcome::Answered && end.latency <= end.due.deadline);
            tenth.price += end.price;
            tenth.latencies.push(end.latency);
            if let Some(stage) = end.stages[0] {
                tenth.by_stage[stage] += 1;
            }
        });
    }
    tenths
}

/// A panel of the picture: what it shows, and by tenth one height for each colour, stacked; `top` is the full height.
fn panel(svg: &mut String, number: usize, title: &str, top: f64, heights: &[Vec<f64>]) {
    let (width, height, gap) = (10.0, 90.0, 34.0);
    let base = 30.0 + number as f64 * (height + gap) + height;
    let colours = ["#7aa6c2", "#3a6ea5", "#1b2a49"];
    let text = format!("<text x=\"40\" y=\"{:.0}\">{title}</text>", base - height - 6.0);
    writeln!(svg, "{text}").expect("text");
    for (tenth, stack) in heights.iter().enumerate() {
        let mut y = base;
        for (value, colour) in stack.iter().zip(colours) {
            let h = height * (value / top).min(1.0);
            y -= h;
            let x = 40.0 + tenth as f64 * width;
            writeln!(svg, "<rect x=\"{x:.0}\" y=\"{y:.1}\" width=\"9\" height=\"{h:.1}\" fill=\"{colour}\"/>")
                .expect("text");
        }
    }
    writeln!(svg, "<line x1=\"40\" y1=\"{base}\" x2=\"640\" y2=\"{base}\" stroke=\"#888\"/>").expect("text");
}

fn main() {
    let tenths = spike(&demo());
    let share = |tenth: &Tenth, count: u32| f64::from(count) / f64::from(tenth.offered.max(1));
    let p99 = |tenth: &Tenth| {
        let mut latencies = tenth.latencies.clone();
        latencies.sort_unstable();
        latencies.get(latencies.len() * 99 / 100).map_or(0.0, |latency| 1e3 * latency.as_secs_f64())
    };
    let each = |of: &dyn Fn(&Tenth) -> Vec<f64>| tenths.iter().map(of).collect::<Vec<_>>();
    let most = |heights: &[Vec<f64>]| heights.iter().flatten().copied().fold(1e-9, f64::max);
    let offered = each(&|tenth| vec![f64::from(tenth.offered)]);
    let price = each(&|tenth| vec![tenth.price / f64::from(tenth.offered.max(1))]);
    let mix = each(&|tenth| tenth.by_stage.iter().map(|count| share(tenth, *count)).collect());
    let least = tenths.iter().map(|tenth| share(tenth, tenth.in_time)).fold(1.0, f64::min);
    let latency = each(&|tenth| vec![p99(tenth)]);
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"660\" height=\"540\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#444\">\n<rect width=\"660\" height=\"540\" fill=\"white\"/>\n",
    );
    panel(&mut svg, 0, &format!("arrivals: {:.0} a second at most", most(&offered)), most(&offered), &offered);
    panel(&mut svg, 1, &format!("price of a second of slot time: {:.0} at most", most(&price)), most(&price), &price);
    let title =
        format!("answered by tiny, mid, big (light to dark); at least {:.2} % in time in each tenth", 100.0 * least);
    panel(&mut svg, 2, &title, 1.0, &mix);
    panel(&mut svg, 3, "p99 of 50 ms", 50.0, &latency);
    for second in 0..=6 {
        let x = 40 + second * 100;
        writeln!(svg, "<text x=\"{x}\" y=\"532\" text-anchor=\"middle\">{second} s</text>").expect("text");
    }
    println!("{svg}</svg>");
}
