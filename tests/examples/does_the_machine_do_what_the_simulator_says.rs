//! Does the machine do what the simulator says? Each scenario of `benches/simulated` on one node of real processes, and in virtual
//! time with the profiles that the node measured; then the demo's largest model at multiples of what it can do, under each policy
//! named, and its smallest one on a device at its full speed, where the generator soon measures itself.
//!
//! `cargo run --release -p weir-tests --example does_the_machine_do_what_the_simulator_says [-- POLICY…]` (after
//! `cargo build --release -p weir-cli`). The node's device runs at a tenth of its speed, so that node and generator have room on
//! two cores.

use std::time::Duration;

use serde_json::Value;
use weir_tests::processes::{Cluster, alone, root};

const PACE: &str = "0.1";
const SCENARIOS: [&str; 8] =
    ["part-load", "steady", "gamma", "spike", "two-models", "mixed-deadlines", "cascade", "overload"];
const SERVING: &str = "benches/simulated/serving.toml";

/// One node under a policy, with the models of the scenarios, and what the simulator has to know of it.
struct Machine {
    cluster: Cluster,
    _node: weir_tests::processes::Process,
    /// Flags that give the simulator what was measured.
    measured: Vec<String>,
}

/// Microseconds of a call apart from queues and batches, and of a batch beyond its profile.
#[derive(Clone, Copy)]
struct Path {
    call: u64,
    batch: u64,
}

impl Machine {
    /// The path is measured unless it is known: a policy that waits until the last instant lets lone queries expire.
    fn start(policy: &str, pace: &str, known: Option<Path>) -> (Machine, Path) {
        let cluster = Cluster::start(1, 0);
        let node = cluster.node("n1", &["--pace", pace, "--cpu-slots", "1", "--policy", policy]);
        cluster.ok(&["apply", "-f", SERVING]);
        let profile = |model: &str| cluster.ok(&["profile", &format!("fashion-{model}@1"), "-o", "json"]);
        let profiles: Vec<String> = ["tiny", "mid", "big"]
            .iter()
            .map(|model| cluster.write(&format!("{model}.json"), profile(model)))
            .collect();
        let path = known.unwrap_or_else(|| {
            let alone = || {
                let printed: Value = serde_json::from_str(&profile("mid")).expect("JSON");
                printed["points"][0]["us"].as_f64().expect("a time")
            };
            let before = alone();
            let path = cluster.ok(&["profile", "--path", "mid", "--data", "demo/images.npy", "-o", "json"]);
            // What batches really took has corrected the profile of one row since, once the node has reported it.
            std::thread::sleep(Duration::from_secs(2));
            let longer = (alone() - before).max(0.0).round() as u64;
            let path: Value = serde_json::from_str(&path).expect("JSON");
            let path = path["path_us"]["p50"].as_f64().expect("a time").round() as u64;
            println!("a call takes {path} us apart from queues and batches, a batch {longer} us more than its profile");
            Path { call: path, batch: longer }
        });
        let measured = [
            "--path-us",
            &path.call.to_string(),
            "--batch-us",
            &path.batch.to_string(),
            "--pace",
            pace,
            "--cpu-slots",
            "1",
            "--policy",
            policy,
        ];
        let measured = measured.iter().map(|word| (*word).to_owned());
        let measured = measured.chain(["--profile".to_owned(), profiles.join(",")]).collect();
        (Machine { cluster, _node: node, measured }, path)
    }

    fn run(&self, flags: &[&str]) -> Value {
        let output = self.cluster.run(&[&["load", "run", "-o", "json"], flags].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
    }

    fn simulate(&self, flags: &[&str]) -> Value {
        let measured: Vec<&str> = self.measured.iter().map(String::as_str).collect();
        // What was measured there, and what stands in the models' files: a paced model is one of which the profile is given.
        let all = [&["simulate", "-f", SERVING, "-o", "json"], measured.as_slice(), flags].concat();
        let output = alone(&all).current_dir(root()).output().expect("weir runs");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
    }
}

fn line(name: &str, result: &Value) {
    let of = |key: &str| result[key].as_f64().unwrap_or(f64::NAN);
    let ms = |key: &str| result["latency_us"][key].as_f64().unwrap_or(f64::NAN) / 1e3;
    let count = |key: &str| result[key].as_u64().unwrap_or_default();
    println!(
        "{name:32} {:7} offered {:6.2} % in time  goodput {:7.1}/s  p50 {:6.2}  p99 {:6.2} ms  rejected {:5} (after p99 {:.1} ms)  expired {:4}  degraded {:4}{}",
        count("offered"),
        100.0 * of("attainment"),
        of("goodput_per_s"),
        ms("p50"),
        ms("p99"),
        count("rejected"),
        result["rejected_after_us"]["p99"].as_f64().unwrap_or_default() / 1e3,
        count("expired"),
        count("degraded"),
        if result["valid"] == true { "" } else { "  (invalid: the generator was late)" }
    );
}

/// The highest rate at which 99 % are in time.
fn capacity(machine: &Machine, asked: &[&str], most: &str) -> f64 {
    let goal = ["load", "capacity", "--goal", "attainment>=0.99", "--rate", "100", "--rate-max", most];
    let found = machine.cluster.ok(&[&goal[..], &["--duration", "5s", "-o", "json"], asked].concat());
    let found: Value = serde_json::from_str(&found).expect("JSON");
    found["met_at"].as_f64().expect("a rate that meets the goal")
}

/// At multiples of a rate.
fn beyond(name: &str, machine: &Machine, asked: &[&str], capacity: f64, simulated: bool) {
    for times in [1.0, 1.5, 2.0, 3.0] {
        let rate = format!("{:.1}", capacity * times);
        let flags = [asked, &["--rate", &rate, "--duration", "10s"]].concat();
        line(&format!("{name} at {times} x {capacity:.0}/s"), &machine.run(&flags));
        if simulated {
            line("  simulated", &machine.simulate(&flags));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn asked(endpoint: &'static str) -> [&'static str; 8] {
    ["--endpoint", endpoint, "--data", "demo/images.npy", "--deadline", "50ms", "--seed", "7"]
}

fn main() {
    let policies: Vec<String> = std::env::args().skip(1).collect();
    let (machine, path) = Machine::start("weir", PACE, None);
    for scenario in SCENARIOS {
        let file = format!("benches/simulated/{scenario}.toml");
        line(scenario, &machine.run(&["--scenario", &file]));
        line("  simulated", &machine.simulate(&["--scenario", &file]));
    }
    drop(machine);
    let mut known: Option<f64> = None;
    for policy in &policies {
        let (machine, _) = Machine::start(policy, PACE, Some(path));
        let capacity = *known.get_or_insert_with(|| capacity(&machine, &asked("big"), "2000"));
        beyond(policy, &machine, &asked("big"), capacity, true);
    }
    if known.is_some() {
        let (machine, _) = Machine::start("weir", "1", Some(path));
        let capacity = capacity(&machine, &asked("tiny"), "40000");
        beyond("weir, unpaced", &machine, &asked("tiny"), capacity, false);
    }
}
