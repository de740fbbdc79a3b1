//! `weir plan`: what it promises is what `weir simulate` finds, and what it says where there is no plan.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use weir_tests::processes::{Cluster, alone, npy};

/// A folder with a model of 1 ms and 0.2 ms a row, and data for it.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("it is ours");
    write("echo.synthetic", b"width = 1\nalpha_us = 1000\nbeta_us = 200\n");
    write("echo.toml", b"[[model]]\nname = \"echo\"\nversion = \"1\"\npath = \"echo.synthetic\"\n[[endpoint]]\nname = \"echo\"\nmodel = \"echo@1\"\ndeadline = \"50ms\"\n");
    // As measured: what this machine is busy with does not matter then.
    write("echo.json", br#"{"model":"echo@1","points":[{"batch":1,"us":1200},{"batch":32,"us":7400}]}"#);
    write("rows.npy", &npy(&[4, 1], &[1.0, 2.0, 3.0, 4.0]));
    folder
}

fn run(folder: &Path, command: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let load = ["--endpoint", "echo", "--data", "rows.npy"];
    let usual = [("--duration", "2s"), ("--cpu-slots", "1"), ("--seed", "3")];
    let usual: Vec<&str> =
        usual.iter().filter(|(flag, _)| !more.contains(flag)).flat_map(|(flag, value)| [*flag, *value]).collect();
    let arguments = [&[command, "-f", "echo.toml", "--profile", "echo.json"], load.as_slice(), &usual, more].concat();
    let output = alone(&arguments).current_dir(folder).output().expect("weir runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_plan_is_the_fewest_machines_that_the_simulator_finds_enough() {
    let folder = folder();
    let load = ["--rate", "12000", "--arrivals", "gamma:cv=2", "--goal", "attainment>=0.99", "-o", "json"];
    let more = ["--lose", "n1", "--burst", "2x", "--runs", "1"];
    let (code, out, error) = run(folder.path(), "plan", &[&load[..], &more].concat());
    assert_eq!(code, Some(0), "{error}");
    let plan: Value = serde_json::from_str(&out).expect("JSON");
    let machines = plan["machines"][0]["count"].as_u64().expect("a count");
    assert!((2..20).contains(&machines), "{machines}");
    assert_eq!(plan["cost_per_hour"], machines as f64);
    assert_eq!(plan["replicas"]["echo@1"].as_array().map(Vec::len), Some(machines as usize));
    for (nodes, met) in [(machines, true), (machines - 1, false)] {
        let (code, out, _) = run(folder.path(), "simulate", &[&load[..], &["--nodes", &nodes.to_string()]].concat());
        assert_eq!(code == Some(0), met, "{nodes} nodes: {out}");
        let simulated: Value = serde_json::from_str(&out).expect("JSON");
        if met {
            assert_eq!(plan["simulated"]["attainment"], simulated["attainment"]);
        }
    }
    let what_ifs = plan["what_if"].as_array().expect("a list");
    assert_eq!(what_ifs.iter().map(|what| &what["meets"]).collect::<Vec<_>>(), [false, false]);
    // One endpoint of one stage: there is nothing to share, and nothing that can stay undone.
    let coarse = &plan["coarse_grained"];
    assert!(
        coarse["peak"].as_f64() >= coarse["mean"].as_f64() && coarse["peak"].as_f64() >= Some(machines as f64),
        "{coarse}"
    );
}

/// What one draw of the load allows, others do not: with a margin a plan holds under seeds that it has not seen.
#[test]
fn a_plan_keeps_its_goal_under_other_draws_of_its_load() {
    let folder = folder();
    let load =
        ["--rate", "4200", "--arrivals", "gamma:cv=4", "--goal", "attainment>=0.99", "--duration", "1s", "-o", "json"];
    let plan = |more: &[&str]| -> Value {
        let (code, out, error) = run(folder.path(), "plan", &[&load[..], more].concat());
        assert_eq!(code, Some(0), "{error}");
        serde_json::from_str(&out).expect("JSON")
    };
    let (careful, bare) = (plan(&[]), plan(&["--runs", "1"]));
    let machines = |plan: &Value| plan["machines"][0]["count"].as_u64().expect("a count");
    let promised = &careful["promised"][0];
    assert_eq!((&careful["runs"], &promised["goal"]), (&5.into(), &"attainment>=0.99".into()));
    let of = |figure: &str| promised[figure].as_f64().expect("a number");
    assert!(of("bound") >= 0.99 && (of("mean") - of("margin") - of("bound")).abs() < 1e-9);
    assert_eq!(bare["promised"][0]["margin"], 0.0);
    let kept = |plan: &Value| {
        let simulated = |seed: usize| {
            let fleet = ["--nodes", &machines(plan).to_string(), "--seed", &seed.to_string()].map(str::to_owned);
            let more: Vec<&str> = load.iter().copied().chain(fleet.iter().map(String::as_str)).collect();
            run(folder.path(), "simulate", &more).0 == Some(0)
        };
        (100..110).filter(|seed| simulated(*seed)).count()
    };
    let (with, without) = (kept(&careful), kept(&bare));
    assert!(with >= 9 && without <= 7, "{with} and {without} of 10: {} and {}", machines(&careful), machines(&bare));
}

/// A machine has room for as many replicas as it has slots, and a model stands on as many machines as its load needs.
#[test]
fn all_slots_and_all_machines_of_a_plan_are_used() {
    let folder = folder();
    let count = |slots: &str, rate: &str| {
        let load = ["--rate", rate, "--duration", "1s", "--cpu-slots", slots, "--runs", "1", "-o", "json"];
        let (code, out, error) = run(folder.path(), "plan", &load);
        assert_eq!(code, Some(0), "{error}");
        let plan: Value = serde_json::from_str(&out).expect("JSON");
        let replicas = plan["replicas"]["echo@1"].as_array().map_or(0, Vec::len) as u64;
        (plan["machines"][0]["count"].as_u64().expect("a count"), replicas)
    };
    let (machines, replicas) = count("1", "100000");
    assert!(
        (20..30).contains(&machines) && replicas == machines,
        "{machines} with {replicas}: 4324 rows a second each"
    );
    let (machines, replicas) = count("4", "60000");
    assert!((4..=5).contains(&machines) && replicas > 2 * machines, "{machines} with {replicas}");
}

/// A model that sleeps takes as long each time. What its runs take beside that is next to nothing, and scatters by more than itself.
#[test]
fn what_sleeps_takes_as_long_each_time_in_a_simulation() {
    let folder = folder();
    let load = ["--rate", "20", "--arrivals", "constant", "-o", "json"];
    let (code, out, error) = run(folder.path(), "simulate", &load);
    assert_eq!(code, Some(0), "{error}");
    let simulated: Value = serde_json::from_str(&out).expect("JSON");
    let latency = |which: &str| simulated["latency_us"][which].as_f64().expect("a number");
    assert!(latency("max") < 1.1 * latency("p50"), "none waits for another: {}", simulated["latency_us"]);
}

/// The machines themselves, and one alone.
#[test]
fn a_plan_that_is_deployed_keeps_its_promise() {
    let folder = folder();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("it is ours");
    // It sleeps, so that the machine has time for all of them.
    let model = "width = 1\nalpha_us = 20000\nbeta_us = 10000\n";
    write("echo.synthetic", model.as_bytes());
    let load = ["--rate", "100", "--deadline", "400ms", "--duration", "4s", "-o", "json"];
    let serving = |nodes: usize| {
        let cluster = Cluster::start_with(1, nodes, &["--cpu-slots", "1"]);
        cluster.serve_synthetic(model, "max_batch = 8");
        cluster.wait("all serve", Duration::from_secs(20), |status| {
            status["endpoints"][0]["replicas"]["ready"] == nodes as u64
        });
        cluster
    };
    let measured = |cluster: &Cluster| {
        let data = cluster.write("rows.npy", npy(&[4, 1], &[1.0, 2.0, 3.0, 4.0]));
        let flags = ["load", "run", "--endpoint", "echo", "--data", &data, "--seed", "3", "--connections", "2"];
        let out = cluster.run(&[&flags[..], &load].concat());
        let result: Value = serde_json::from_slice(&out.stdout).expect("one object");
        result["attainment"].as_f64().expect("a share")
    };
    let one = serving(1);
    // As its nodes measure it: they find out by themselves how large batches are worth it.
    write("echo.json", one.ok(&["profile", "echo@1", "-o", "json"]).as_bytes());
    let (code, out, error) = run(folder.path(), "plan", &[&load[..], &["--goal", "attainment>=0.95"]].concat());
    assert_eq!(code, Some(0), "{error}");
    let plan: Value = serde_json::from_str(&out).expect("JSON");
    let planned = plan["machines"][0]["count"].as_u64().expect("a count") as usize;
    assert!((2..=3).contains(&planned), "one does some 70 rows a second: {}", plan["machines"]);
    let (all, alone) = (measured(&serving(planned)), measured(&one));
    // A machine that others want too keeps a little less than what was promised.
    assert!(
        all > 0.9 && alone < 0.8,
        "{all} with {planned} machines, {alone} with one: {}",
        plan["simulated"]["attainment"]
    );
}

/// A label in the file stands for what somebody says, or for the only version that there is.
#[test]
fn files_that_name_labels_are_planned_and_simulated() {
    let folder = folder();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("it is ours");
    let model =
        |version: &str| format!("[[model]]\nname = \"echo\"\nversion = \"{version}\"\npath = \"echo.synthetic\"\n");
    let endpoint = "[[endpoint]]\nname = \"echo\"\nmodel = \"echo@stable\"\ndeadline = \"50ms\"\n";
    write("echo.toml", &(model("1") + endpoint));
    let load = ["--rate", "100", "-o", "json"];
    for command in ["plan", "simulate"] {
        let (code, _, error) = run(folder.path(), command, &load);
        assert_eq!(code, Some(0), "{command}: {error}");
    }
    write("echo.toml", &(model("1") + &model("2") + endpoint));
    let (code, _, error) = run(folder.path(), "simulate", &load);
    assert!(code == Some(2) && error.contains("(1, 2)") && error.contains("--label echo@stable=VERSION"), "{error}");
    let (code, out, error) = run(folder.path(), "plan", &[&load[..], &["--label", "echo@stable=1"]].concat());
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("\"echo@1\":[\"n1\"]"), "{out}");
}

#[test]
fn the_cheaper_kind_is_taken_and_people_can_read_it() {
    let folder = folder();
    let machines = "[[machine]]\nkind = \"old\"\nprice = 0.5\nslots = 1\nmemory = \"1GiB\"\nspeed = 0.25\n\n[[machine]]\nkind = \"new\"\nprice = 1.0\nslots = 1\nmemory = \"1GiB\"\n";
    std::fs::write(folder.path().join("machines.toml"), machines).expect("it is ours");
    let (code, out, error) = run(folder.path(), "plan", &["--rate", "6000", "--machines", "machines.toml"]);
    assert_eq!(code, Some(0), "{error}");
    let counts: Vec<&str> = out.lines().filter(|line| line.starts_with("old") || line.starts_with("new")).collect();
    assert!(counts[0].split_whitespace().nth(1) == Some("0"), "four times as slow at half the price: {out}");
    assert!(out.contains("an hour and meets attainment>=0.99") && out.contains("sized to the peak"), "{out}");
    assert!(out.contains("over 5 runs; 19 of 20 reach at least"), "{out}");
}

#[test]
fn where_there_is_no_plan_it_says_what_is_in_the_way() {
    let folder = folder();
    let refused = |more: &[&str]| run(folder.path(), "plan", more);
    let (code, _, error) = refused(&["--rate", "100", "--deadline", "1ms"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("on the fastest machine, calls included, and the deadline of echo is 1.0 ms"), "{error}");
    let (code, _, error) = refused(&["--rate", "50000", "--most", "2"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("no plan with at most 2 machines") && error.contains("busiest"), "{error}");
    let (code, _, error) = refused(&["--rate", "100", "--lose", "n9"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("the machines of this plan are n1 to n1"), "{error}");
    let (code, _, error) = refused(&["--rate", "100", "--runs", "11"]);
    assert!(code == Some(2) && error.contains("--runs: from 1 to 10"), "{error}");
    let (code, _, error) = refused(&["--rate", "100", "--burst", "much"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("write it as 2x"), "{error}");
    std::fs::write(
        folder.path().join("machines.toml"),
        "[[machine]]\nkind = \"a\"\nprice = 0\nslots = 1\nmemory = \"1GiB\"\n",
    )
    .unwrap();
    let (code, _, error) = refused(&["--rate", "100", "--machines", "machines.toml"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("a: price is a number above 0"), "{error}");
    std::fs::write(folder.path().join("machines.toml"), "[[machine]]\nkind = \"a\"\ncost = 1\n").unwrap();
    let (code, _, error) = refused(&["--rate", "100", "--machines", "machines.toml"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("cost"), "{error}");
}

/// As in the cluster, where nobody can answer in time the default does, so that goals and plans count it.
#[test]
fn a_default_answers_in_virtual_time_too() {
    let folder = folder();
    let file = folder.path().join("echo.toml");
    let simulated = || -> Value {
        let load = ["--rate", "12000", "--arrivals", "poisson", "-o", "json"];
        let (_, out, error) = run(folder.path(), "simulate", &load);
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{error}"))
    };
    let without = simulated();
    assert!(without["rejected"].as_u64() > Some(1000), "twice of what a slot can do: {without}");
    let text = std::fs::read_to_string(&file).expect("it was just written");
    std::fs::write(&file, text + "default_output = { y = [7] }\n").expect("it is ours");
    let with = simulated();
    let count = |result: &Value, figure: &str| result[figure].as_u64().unwrap_or_default();
    assert_eq!((count(&with, "rejected"), count(&with, "answered")), (0, count(&with, "offered")), "{with}");
    assert_eq!(with["stages"]["default"], with["degraded"], "{with}");
    let missed = count(&without, "offered") - count(&without, "answered");
    assert!(with["stages"]["default"].as_u64() > Some(missed * 9 / 10), "{with}");
}
