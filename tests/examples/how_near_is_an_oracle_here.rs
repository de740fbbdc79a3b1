//! How near does triage come to an oracle on this machine? The scenarios of `weir_sim`'s test of the same name as real processes: two
//! nodes with one slot each, of which one has the deep stage, which sleeps 5 ms for every row; the oracle knows all arrivals and gains
//! beforehand, and no row ever waits for anything but the slot.
//!
//! `cargo build --release -p weir-cli && cargo run --release -p weir-tests --example how_near_is_an_oracle_here [SEED…]`

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;
use weir_core::prng::Prng;
use weir_core::units::Instant;
use weir_loadgen::schedule::row_draws;
use weir_sim::oracle::best;
use weir_tests::processes::{Cluster, alone, npy};

/// What the deep stage takes for a row.
const TAKES: Duration = Duration::from_millis(5);
/// Bins of the gain table: gains from 0.5 down, by a seventh each; half of the first stage's answers are right in each.
const BINS: usize = 20;
const RIGHT: f64 = 0.5;
const SECONDS: f64 = 12.0;

/// Queries a second, by time in seconds: 160 in calm, four fifths of what the deep stage can do.
type Scenario = (&'static str, fn(f64) -> f64);

const SCENARIOS: [Scenario; 4] = [
    ("4x spike of 2 s", |at| if (4.0..6.0).contains(&at) { 640.0 } else { 160.0 }),
    ("4x step of 8 s", |at| if at >= 4.0 { 640.0 } else { 160.0 }),
    ("12x bursts of 50 ms", |at| if at % 1.0 < 0.05 { 1920.0 } else { 160.0 }),
    ("17x step of 8 s", |at| if at >= 4.0 { 2720.0 } else { 160.0 }),
];

fn gain(bin: usize) -> f64 {
    0.5 * (-(bin as f64) / 7.0).exp()
}

/// Instants in seconds.
fn arrivals(rate: fn(f64) -> f64, seed: u64) -> Vec<f64> {
    let mut prng = Prng::new(seed);
    let (mut at, mut all) = (0.0, Vec::new());
    loop {
        at += prng.exponential() / rate(at);
        if at >= SECONDS {
            return all;
        }
        // As a trace can say it.
        all.push((at * 1e6).round() / 1e6);
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
    let rows: Vec<f32> = (0..BINS).flat_map(|bin| [bin as f32 / BINS as f32, 0.0]).collect();
    cluster.write("rows.npy", npy(&[BINS as u64, 2], &rows));
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

/// What answers gained over the first stage's, by the tables that gates know.
fn gained(result: &Value) -> f64 {
    let number = |key: &str| result[key].as_f64().unwrap_or_else(|| panic!("{key} in {result}"));
    (number("expected_accuracy") - RIGHT) * number("answered")
}

fn main() {
    let seeds: Vec<u64> = std::env::args().skip(1).map(|seed| seed.parse().expect("a seed")).collect();
    let seeds = if seeds.is_empty() { vec![1] } else { seeds };
    for (name, rate) in SCENARIOS {
        for deadline in [30, 100, 300].map(Duration::from_millis) {
            let (mut most, mut here, mut simulated, mut in_time, mut valid) = (0.0, 0.0, 0.0, 0.0, true);
            for seed in &seeds {
                let cluster = Cluster::start_with(1, 2, &["--cpu-slots", "1"]);
                let file = file(&cluster);
                cluster.ok(&["apply", "-f", &file]);
                let instants = arrivals(rate, *seed);
                let mut trace = String::from("t_seconds,model\n");
                instants.iter().for_each(|at| writeln!(trace, "{at:.6},e").expect("text"));
                let trace = format!("trace:{}", cluster.write("trace.csv", trace));
                let rows = row_draws(&[BINS], *seed).remove(0).take(instants.len());
                let known: Vec<(Instant, f64)> = instants
                    .iter()
                    .zip(rows)
                    .map(|(at, row)| (Instant::ZERO + Duration::from_secs_f64(*at), gain(row as usize)))
                    .collect();
                let served = best(&known, TAKES, deadline);
                most += known.iter().zip(served).filter(|(_, served)| *served).map(|((_, gain), _)| gain).sum::<f64>();
                let (data, seed, deadline) =
                    (cluster.path("rows.npy"), seed.to_string(), format!("{}ms", deadline.as_millis()));
                let load = ["--endpoint", "e", "--data", &data, "--arrivals", &trace, "--seed", &seed];
                let load = [&load[..], &["--deadline", &deadline, "-o", "json"]].concat();
                let parsed = |output: std::process::Output| -> Value {
                    let told = || String::from_utf8_lossy(&output.stderr).into_owned();
                    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", told()))
                };
                let result = parsed(cluster.run(&[&["load", "run", "--connections", "4"], &load[..]].concat()));
                let nodes = ["simulate", "-f", &file, "--nodes", "2", "--cpu-slots", "1"];
                let virtually = alone(&[&nodes, &load[..]].concat()).output().expect("weir runs");
                (here, simulated) = (here + gained(&result), simulated + gained(&parsed(virtually)));
                in_time += result["attainment"].as_f64().expect("a share") / seeds.len() as f64;
                valid &= result["valid"] == true;
            }
            println!(
                "{name:20} {:3} ms: {:.3} of the oracle's gain here, {:.3} simulated; {:.2} % in time{}",
                deadline.as_millis(),
                here / most,
                simulated / most,
                100.0 * in_time,
                if valid { "" } else { "  (the generator was late)" }
            );
        }
    }
}
