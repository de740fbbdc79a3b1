//! What is triage worth? The demo's cascade with gates by gain in virtual time, from a quarter to 32 times the rate at which every
//! query could run all stages, under each way of triage, against what could be had at best.
//!
//! `cargo run --release -p weir-tests --example what_is_triage_worth [DATA LABELS [WAY…]]` (after `cargo build --release -p weir-cli`). One
//! node with one slot, slowed so that it runs all stages 225 times a second: the trace can be scaled to 32 times that whatever the machine does.
//! Its models are measured once, by `weir profile` on each file. SEEDS (`3`) are taken together.

use std::path::Path;

use serde_json::Value;
use weir_tests::processes::{alone, root};

const METHODS: [&str; 7] = ["weir", "push-out", "price", "load-indexed", "fixed", "whole", "reject-only"];
const TIMES: [f64; 8] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
/// How often all stages run a second.
const FULL: f64 = 225.0;
const DEADLINE: &str = "50ms";

fn weir(arguments: &[&str]) -> Value {
    let output = alone(arguments).current_dir(root()).output().expect("weir runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{arguments:?}: {error}"))
}

/// Profiles of the stages as `--profile` takes them, slowed, and the pace that they are slowed to.
fn profiles(folder: &Path) -> (String, f64) {
    let measured = ["tiny", "mid", "big"].map(|name| {
        let measured = weir(&["profile", &format!("demo/{name}.onnx"), "-o", "json"]);
        let number = |point: &Value, key: &str| point[key].as_f64().expect("a number");
        let points = measured["points"].as_array().expect("points").clone();
        (name, points.iter().map(|point| (number(point, "batch"), number(point, "us"))).collect::<Vec<_>>())
    });
    let of_a_row =
        |points: &[(f64, f64)]| points.iter().map(|(batch, us)| us / batch / 1e6).fold(f64::INFINITY, f64::min);
    let pace = FULL * measured.iter().map(|(_, points)| of_a_row(points)).sum::<f64>();
    let files = measured.map(|(name, points)| {
        println!("{name}: {}", points.iter().map(|(batch, us)| format!("{batch}:{us:.0} ")).collect::<String>());
        let points: Vec<Value> =
            points.iter().map(|(batch, us)| serde_json::json!({"batch": *batch as u64, "us": us / pace})).collect();
        let path = folder.join(format!("{name}.json"));
        let json = serde_json::json!({"model": format!("fashion-{name}@1"), "points": points});
        std::fs::write(&path, json.to_string()).expect("the folder is ours");
        path.display().to_string()
    });
    (files.join(","), pace)
}

fn main() {
    let mut files = std::env::args().skip(1);
    let data = files.next().unwrap_or_else(|| "demo/images.npy".into());
    let labels = files.next().unwrap_or_else(|| "demo/labels.npy".into());
    let named: Vec<String> = files.collect();
    let named = if named.is_empty() { METHODS.map(str::to_owned).to_vec() } else { named };
    let seeds = std::env::var("SEEDS").unwrap_or_else(|_| "3".into());
    let seeds: Vec<&str> = seeds.split(',').collect();
    let folder = tempfile::tempdir().expect("a folder");
    let (profiles, pace) = profiles(folder.path());
    println!(
        "in us; all stages run {FULL} times a second at a pace of {pace:.3}; right in time, of all that came, and in time"
    );
    let pace = format!("{pace:.4}");
    for arrivals in ["poisson", "gamma:cv=4", "trace:benches/traces/azure_conversation_15min.csv.gz"] {
        println!("\n{arrivals}");
        println!(
            "{:>6} {:>8} {}",
            "times",
            "at best",
            named.iter().map(|way| format!("{way:>17}")).collect::<String>()
        );
        for times in TIMES {
            let rate = format!("{:.1}", FULL * times);
            let mut line = String::new();
            let mut best = f64::NAN;
            for method in &named {
                let mut sums = [0.0; 4];
                for seed in &seeds {
                    let result = weir(&[
                        "simulate",
                        "-f",
                        "demo/fashion.toml",
                        "--endpoint",
                        "fashion",
                        "--data",
                        &data,
                        "--labels",
                        &labels,
                        "--rate",
                        &rate,
                        "--arrivals",
                        arrivals,
                        "--duration",
                        "10s",
                        "--deadline",
                        DEADLINE,
                        "--seed",
                        seed,
                        "--cpu-slots",
                        "1",
                        "--pace",
                        &pace,
                        "--profile",
                        &profiles,
                        "--triage",
                        method,
                        "-o",
                        "json",
                    ]);
                    let told = ["offered", "correct_at_best", "correct_within_deadline", "within_deadline"];
                    let count = |key: &str| result[key].as_f64().unwrap_or_else(|| panic!("{key} of {result}"));
                    sums.iter_mut().zip(told).for_each(|(sum, key)| *sum += count(key));
                }
                let share = |sum: f64| 100.0 * sum / sums[0];
                best = share(sums[1]);
                line += &format!("{:>9.2} {:>6.2} ", share(sums[2]), share(sums[3]));
            }
            println!("{times:>6} {best:>8.2} {line}");
        }
    }
}
