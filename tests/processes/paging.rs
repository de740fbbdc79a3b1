//! More models than memory: each is answered, what is in memory fits, and everybody is told what is where and why.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weir_tests::processes::{Cluster, count, npy};

use crate::gateway::{eventually, get, http};

const MODELS: usize = 8;

/// Each takes 64 KiB, and so long to load.
fn serve(cluster: &Cluster, load_ms: u64) {
    let mut file = String::new();
    for i in 0..MODELS {
        cluster.write(
            &format!("m{i}.synthetic"),
            format!("width = 1\nalpha_us = {}\nbeta_us = 10\nload_ms = {load_ms}\n", 500 + i),
        );
        file += &format!(
            "[[model]]\nname = \"m{i}\"\nversion = \"1\"\npath = \"m{i}.synthetic\"\n[[endpoint]]\nname = \"e{i}\"\nmodel = \"m{i}@1\"\ndeadline = \"5s\"\n"
        );
    }
    let path = cluster.write("all.toml", file);
    cluster.ok(&["apply", "-f", &path]);
}

fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    let told = cluster.ok(&[arguments, &["-o", "json"]].concat());
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {told}"))
}

/// By model, where it is.
fn residence(cluster: &Cluster) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let models = json(cluster, &["get", "models"]);
    models.as_array().expect("a list").iter().map(|told| (text(&told["model"]), text(&told["memory"]))).collect()
}

#[test]
fn models_that_do_not_fit_are_loaded_on_demand() {
    let cluster = Cluster::start_with(1, 2, &["--memory", "192KiB"]);
    serve(&cluster, 0);
    let data = cluster.write("row.npy", npy(&[1, 1], &[7.0]));
    for round in 0..3 {
        for i in 0..MODELS {
            let answer = json(&cluster, &["predict", &format!("e{i}"), "--input", &data]);
            assert_eq!(answer["outcome"], "answered", "round {round}, model {i}: {answer}");
            assert_eq!(answer["outputs"]["y"]["data"][0], 7.0);
        }
    }
    let residence = residence(&cluster);
    let count = |word: &str| residence.values().filter(|told| *told == word).count();
    assert_eq!(residence.len(), MODELS);
    assert!(count("resident") <= 6 && count("on demand") >= 2, "{residence:?}");
    let (model, _) = residence.iter().find(|(_, told)| *told == "on demand").expect("some are");
    let told = json(&cluster, &["describe", "model", model]);
    let replica = &told["replicas"][0];
    assert_eq!(replica["state"], "on demand", "{told}");
    assert!(replica["profile"].is_array(), "its latencies are known: {told}");
    assert!(replica["paging"]["evictions"].as_u64() > Some(0), "{told}");
    assert!(replica["paging"]["evicted"].as_str().is_some_and(|why| why.contains(" s ago, ")), "{told}");
    let top = json(&cluster, &["top"]);
    let nodes = top["nodes"].as_array().expect("a list");
    for node in nodes {
        let bytes = |name: &str| node["memory"][name].as_u64().expect("a number");
        assert_eq!(bytes("size"), 192 << 10);
        assert!(bytes("taken") <= bytes("size"), "{node}");
    }
    assert!(nodes.iter().any(|node| node["memory"]["placed"].as_u64() > Some(192 << 10)), "{top}");
    assert!(cluster.ok(&["top", "--once"]).contains("models are in memory on demand"));
}

#[test]
fn who_cannot_wait_for_a_load_is_told_and_who_can_is_answered() {
    let cluster = Cluster::start_with(1, 1, &["--memory", "192KiB"]);
    serve(&cluster, 300);
    let cold = residence(&cluster).into_iter().find(|(_, told)| told == "on demand").expect("some are").0;
    let endpoint = format!("e{}", &cold[1..2]);
    let data = cluster.write("row.npy", npy(&[1, 1], &[7.0]));
    // Time for all but the load.
    let out = cluster.run(&["predict", &endpoint, "--input", &data, "--deadline", "200ms", "-o", "json"]);
    // What the error says follows.
    let answer = out.stdout.split(|byte| *byte == b'\n').next().expect("a line");
    let answer: Value = serde_json::from_slice(answer).expect("one object");
    assert_eq!(answer["outcome"], "rejected", "{answer}");
    let answer = json(&cluster, &["predict", &endpoint, "--input", &data]);
    assert_eq!(answer["outcome"], "answered", "{answer}");
}

/// What a home on another node refuses by what it was told is asked of the model all the same, where it would be loaded.
#[test]
fn what_another_node_refuses_is_asked_of_the_node_that_has_the_model() {
    const ASKED: usize = 40;
    let cluster = Cluster::start_with(1, 1, &["--memory", "192KiB"]);
    serve(&cluster, 500);
    // It has memory for none of them.
    let other = cluster.node("n2", &["--memory", "1KiB", "--http", "127.0.0.1:0"]);
    cluster.wait("both are up", std::time::Duration::from_secs(60), |status| {
        count(status, "nodes", |node| node["state"] == "up") == 2
    });
    let cold = residence(&cluster).into_iter().find(|(_, told)| told == "on demand").expect("some are").0;
    let replica = || json(&cluster, &["describe", "model", &cold])["replicas"].clone();
    assert!(replica().as_array().map(Vec::len) == Some(1) && replica()[0]["node"] == "n1", "{}", replica());
    let path = format!("/v2/models/e{}/infer", &cold[1..2]);
    // Time for all but the load.
    let row = json!({"parameters": {"timeout": 200_000}, "inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [7.0]}]});
    eventually("it knows the endpoint", || get(&other.doors["http"], &path.replace("infer", "ready")).status == 200);
    let ask = || drop(http(&other.doors["http"], "POST", &path, &[], row.to_string().as_bytes()));
    (0..ASKED).for_each(|_| ask());
    // What was told is old after each look: then the model's node is asked again, and hears of the others.
    for _ in 0..3 {
        replica();
        ask();
    }
    let started = std::time::Instant::now();
    // Over 20 s.
    let asked = || 20.0 * replica()[0]["paging"]["asked_per_s"].as_f64().unwrap_or(0.0);
    while asked() < 0.7 * ASKED as f64 {
        assert!(started.elapsed() < std::time::Duration::from_secs(10), "{} of {ASKED}", asked());
    }
}

/// Of a call that is refused before any of it is sent, as two loads together take too long, both models are asked for.
#[test]
fn models_of_a_call_that_is_hopeless_are_loaded_for_those_to_come() {
    let cluster = Cluster::start_with(1, 1, &["--memory", "192KiB"]);
    serve(&cluster, 300);
    let is_out = |i: usize| residence(&cluster)[&format!("m{i}@1")] == "on demand";
    let first = (0..MODELS - 1).find(|i| is_out(*i) && is_out(i + 1)).expect("most are");
    let stage = |i: usize| format!("[[endpoint.stage]]\nname = \"s{i}\"\nmodel = \"m{i}@1\"\n");
    let both = format!("[[endpoint]]\nname = \"both\"\n{}{}", stage(first), stage(first + 1));
    cluster.ok(&["apply", "-f", &cluster.write("both.toml", both)]);
    let (data, deepest) = (cluster.write("row.npy", npy(&[1, 1], &[7.0])), format!("s{}", first + 1));
    // Time for one load.
    cluster.run(&["predict", "both", "--input", &data, "--deadline", "450ms", "--min-stage", &deepest]);
    eventually("both are in memory", || !is_out(first) && !is_out(first + 1));
}

/// What is deleted while it is loaded takes its memory as long as that goes on: a load cannot be broken off.
#[test]
fn what_is_deleted_while_it_is_loaded_takes_memory_until_its_load_ends() {
    let cluster = Cluster::start_with(1, 1, &["--memory", "1MiB"]);
    let apply = |name: &str, load_ms: u64, more: &[&str]| {
        cluster.write(&format!("{name}.synthetic"), format!("width = 1\nload_ms = {load_ms}\n"));
        let file = format!(
            "[[model]]\nname = \"{name}\"\nversion = \"1\"\npath = \"{name}.synthetic\"\n[[endpoint]]\nname = \"{name}\"\nmodel = \"{name}@1\"\n"
        );
        let path = cluster.write(&format!("{name}.toml"), file);
        cluster.ok(&[&["apply", "-f", &path], more].concat());
    };
    let taken = || json(&cluster, &["top"])["nodes"][0]["memory"]["taken"].as_u64().unwrap_or(0);
    apply("long", 6_000, &["--no-wait"]);
    eventually("it is being loaded", || taken() > 0);
    let long = taken();
    cluster.ok(&["delete", "endpoint", "long"]);
    // Once this one serves the node has heard that the other is not to.
    apply("other", 0, &[]);
    assert_eq!(taken(), long + (64 << 10), "it is loaded still");
    eventually("it is gone", || taken() == 64 << 10);
}

/// The file of a model that is out of memory is gone, or is another: it is fetched again.
#[test]
fn a_file_that_is_gone_when_its_model_is_loaded_again_is_fetched_again() {
    let cluster = Cluster::start_with(1, 1, &["--memory", "192KiB"]);
    serve(&cluster, 0);
    let data = cluster.write("row.npy", npy(&[1, 1], &[7.0]));
    let folder = std::fs::read_dir(cluster.path("n1/artifacts")).expect("its artifacts");
    let files: Vec<_> = folder.map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(files.len(), MODELS);
    for (i, file) in files.iter().enumerate() {
        if i % 2 == 0 { std::fs::remove_file(file) } else { std::fs::write(file, "no model") }.expect("they are ours");
    }
    for i in (0..MODELS).chain(0..MODELS) {
        let answer = json(&cluster, &["predict", &format!("e{i}"), "--input", &data]);
        assert_eq!(answer["outcome"], "answered", "model {i}: {answer}");
    }
}

/// A node that is killed while it loads comes back and serves all that it is to.
#[test]
fn a_node_that_is_killed_while_it_loads_serves_everything_again() {
    let mut cluster = Cluster::start_with(1, 1, &["--memory", "192KiB"]);
    serve(&cluster, 100);
    let data = cluster.write("row.npy", npy(&[1, 1], &[7.0]));
    let mut asking: Vec<_> = (0..MODELS)
        .map(|i| {
            let mut ask = cluster.command(&["predict", &format!("e{i}"), "--input", &data, "-o", "json"]);
            ask.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("weir runs")
        })
        .collect();
    cluster.nodes[0].kill();
    for ask in &mut asking {
        ask.wait().expect("it ends, whatever it says");
    }
    cluster.nodes[0].restart();
    for i in 0..MODELS {
        let started = std::time::Instant::now();
        let answered = || {
            let out = cluster.run(&["predict", &format!("e{i}"), "--input", &data, "-o", "json"]);
            String::from_utf8_lossy(&out.stdout).contains("\"outcome\":\"answered\"")
        };
        while !answered() {
            assert!(started.elapsed() < std::time::Duration::from_secs(60), "model {i} does not come back");
        }
    }
}
