//! How near does triage come to an oracle on this machine? The scenarios of `weir_sim`'s test of the same name as real processes: two
//! nodes with one slot each, of which one has the deep stage, which sleeps 5 ms for every row; the oracle knows all arrivals and gains
//! beforehand, and no row ever waits for anything but the slot.
//!
//! `cargo build --release -p weir-cli && cargo run --release -p weir-tests --example how_near_is_an_oracle_here [SEED…]`; `DEADLINES_MS=100` in its environment
//! leaves out the other deadlines.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;
use weir_core::prng::Prng;
use weir_core::units::Instant;
use weir_loadgen::schedule::row_draws;
use weir_sim::oracle::best;
use weir_tests::processes::{Cluster, alone, metric, npy};

/// What the deep stage takes for a row.
const TAKES: Duration = Duration::from_millis(5);
/// Bins of the gain table: gains from 0.5 down, by a seventh each; half of the first stage's answers are right in each.
const BINS: usize = 20;
const RIGHT: f64 = 0.5;
const SECONDS: f64 = 28.0;

/// How load comes: by time in seconds the queries a second, 160 in calm, four fifths of what the deep stage can do; and whether rows are
/// harder: of the better half of bins alone.
type Scenario = (&'static str, fn(f64) -> (f64, bool));

const SCENARIOS: [Scenario; 4] = [
    ("4x spike of 2 s", |at| (if (4.0..6.0).contains(&at) { 640.0 } else { 160.0 }, false)),
    ("4x step of 20 s", |at| (if (4.0..24.0).contains(&at) { 640.0 } else { 160.0 }, false)),
    ("12x bursts of 50 ms", |at| (if at % 1.0 < 0.05 { 1920.0 } else { 160.0 }, false)),
    ("17x step, harder", |at| if (4.0..24.0).contains(&at) { (2720.0, true) } else { (160.0, false) }),
];

/// What is asked for: rows of all bins, and those of the better half.
const PARTS: [(&str, usize); 2] = [("even", BINS), ("better", BINS / 2)];

fn gain(bin: usize) -> f64 {
    0.5 * (-(bin as f64) / 7.0).exp()
}

/// Instants in seconds, and which of [`PARTS`] is asked for.
fn arrivals(scenario: fn(f64) -> (f64, bool), seed: u64) -> Vec<(f64, usize)> {
    let mut prng = Prng::new(seed);
    let (mut at, mut all) = (0.0, Vec::new());
    loop {
        let (rate, harder) = scenario(at);
        at += prng.exponential() / rate;
        if at >= SECONDS {
            return all;
        }
        // As a trace can say it.
        all.push(((at * 1e6).round() / 1e6, usize::from(harder)));
    }
}

/// What is served, written into the cluster's folder.
fn file(cluster: &Cluster) -> String {
    cluster.write("shallow.synthetic", "width = 2\n");
    cluster.write("deep.synthetic", format!("width = 2\nbeta_us = {}\n", TAKES.as_micros()));
    let mut table = String::from("confidence,rows,right,gain,error\n");
    for bin in 0..BINS {
        writeln!(table, "{},100,{RIGHT},{},0.01", bin as f64 / BINS as f64, gain(bin)).expect("text");
    }
    cluster.write("gain.csv", table);
    for (name, bins) in PARTS {
        let rows: Vec<f32> = (0..bins).flat_map(|bin| [bin as f32 / BINS as f32, 0.0]).collect();
        cluster.write(&format!("{name}.npy"), npy(&[bins as u64, 2], &rows));
    }
    let model = |name: &str, replicas: u32| {
        format!(
            "[[model]]\nname = \"{name}\"\nversion = \"1\"\npath = \"{name}.synthetic\"\nmax_batch = 1\nreplicas = {{ min = {replicas}, max = {replicas} }}\n"
        )
    };
    let stage = |name: &str, gate: &str| format!("[[endpoint.stage]]\nname = \"{name}\"\nmodel = \"{name}@1\"\n{gate}");
    let endpoint = "[[endpoint]]\nname = \"e\"\ndeadline = \"50ms\"\nlabel_output = \"y\"\n".to_owned();
    let gate = "gate = { gain = \"gain.csv\" }\n";
    cluster.write(
        "e.toml",
        [model("shallow", 2), model("deep", 1), endpoint, stage("shallow", ""), stage("deep", gate)].concat(),
    )
}

/// What is asked, likewise: the scenario file.
fn load(cluster: &Cluster, arrivals: &[(f64, usize)], deadline: Duration, seed: u64) -> String {
    let mut trace = String::from("t_seconds,model\n");
    arrivals.iter().for_each(|(at, part)| writeln!(trace, "{at:.6},{}", PARTS[*part].0).expect("text"));
    cluster.write("trace.csv", trace);
    let mut file = format!("question = 'how near is an oracle?'\nseed = {seed}\nconnections = 4\n");
    for (_, (name, _)) in PARTS.iter().enumerate().filter(|(part, _)| arrivals.iter().any(|(_, of)| of == part)) {
        write!(
            file,
            "[[endpoint]]\nname = 'e'\nas = '{name}'\ndata = '{name}.npy'\narrivals = 'trace:trace.csv,model={name}'\ndeadline = '{}ms'\n",
            deadline.as_millis()
        )
        .expect("text");
    }
    cluster.write("load.toml", file)
}

/// What answers gained over the first stage's, by the tables that gates know.
fn gained(result: &Value) -> f64 {
    let number = |key: &str| result[key].as_f64().unwrap_or_else(|| panic!("{key} in {result}"));
    (number("expected_accuracy") - RIGHT) * number("answered")
}

fn main() {
    let seeds: Vec<u64> = std::env::args().skip(1).map(|seed| seed.parse().expect("a seed")).collect();
    let seeds = if seeds.is_empty() { vec![1] } else { seeds };
    let deadlines = std::env::var("DEADLINES_MS").unwrap_or("30,100,300".into());
    let deadlines: Vec<u64> = deadlines.split(',').map(|ms| ms.parse().expect("milliseconds")).collect();
    for (name, scenario) in SCENARIOS {
        for deadline in deadlines.iter().copied().map(Duration::from_millis) {
            let (mut most, mut here, mut simulated, mut in_time, mut valid) = (0.0, 0.0, 0.0, 0.0, true);
            let (mut sent, mut vain) = (0.0, 0.0);
            for seed in &seeds {
                let cluster = Cluster::start_with(1, 2, &["--cpu-slots", "1", "--metrics", "127.0.0.1:0"]);
                let file = file(&cluster);
                cluster.ok(&["apply", "-f", &file]);
                let arrivals = arrivals(scenario, *seed);
                let mut rows = row_draws(&PARTS.map(|(_, bins)| bins), *seed);
                let known: Vec<(Instant, f64)> = arrivals
                    .iter()
                    .map(|(at, part)| {
                        let row = rows[*part].take(1)[0];
                        (Instant::ZERO + Duration::from_secs_f64(*at), gain(row as usize))
                    })
                    .collect();
                most += best(&known, TAKES, deadline);
                let load = load(&cluster, &arrivals, deadline, *seed);
                let load = ["--scenario", &load, "-o", "json"];
                let parsed = |output: std::process::Output| -> Value {
                    let told = || String::from_utf8_lossy(&output.stderr).into_owned();
                    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", told()))
                };
                let result = parsed(cluster.run(&[&["load", "run"], &load[..]].concat()));
                let nodes = ["simulate", "-f", &file, "--nodes", "2", "--cpu-slots", "1"];
                let virtually = alone(&[&nodes, &load[..]].concat()).output().expect("weir runs");
                (here, simulated) = (here + gained(&result), simulated + gained(&parsed(virtually)));
                for node in &cluster.nodes {
                    sent += metric(node, "weir_stage_calls_total{endpoint=\"e\",stage=\"deep\"}").unwrap_or(0.0);
                    vain +=
                        metric(node, "weir_stage_calls_in_vain_total{endpoint=\"e\",stage=\"deep\"}").unwrap_or(0.0);
                }
                in_time += result["attainment"].as_f64().expect("a share") / seeds.len() as f64;
                valid &= result["valid"] == true;
            }
            println!(
                "{name:20} {:3} ms: {:.3} of the oracle's gain here, {:.3} simulated; {:.2} % in time, {:.1} % of escalations in vain{}",
                deadline.as_millis(),
                here / most,
                simulated / most,
                100.0 * in_time,
                100.0 * vain / sent,
                if valid { "" } else { "  (the generator was late)" }
            );
        }
    }
}
