//! What a user sees while an operator restarts everything, one after the other.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_tests::processes::{Cluster, count, npy};

/// Every node and every coordinator as docs/operate.md says, under load.
#[test]
fn restarting_everything_one_by_one_fails_no_query() {
    let mut cluster = Cluster::start(3, 2);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\n", "");
    let rows = cluster.write("load.npy", npy(&[16, 2], &[0.25; 32]));
    let ask = ["load", "run", "--endpoint", "echo", "--data", &rows, "--rate", "200", "--deadline", "900ms"];
    // Interrupted when all is done: how long that takes is the machine's to say.
    let load = cluster.command(&[&ask[..], &["--duration", "180s", "-o", "json"]].concat());
    let load = { load }.stdout(Stdio::piped()).spawn().expect("weir runs");
    let started = Instant::now();
    for number in 0..cluster.nodes.len() {
        let name = format!("n{}", number + 1);
        let wait = |state: &str| drop(cluster.ok(&["wait", &format!("node/{name}"), "--for", state]));
        cluster.ok(&["node", "drain", &name]);
        wait("empty");
        cluster.nodes[number].stop();
        cluster.nodes[number].restart();
        cluster.ok(&["node", "undrain", &name]);
        cluster.ok(&["wait", &format!("node/{name}"), "--for", "up"]);
        cluster.ok(&["wait", "endpoint/echo", "--for", "serving"]);
    }
    for number in 0..cluster.coordinators.len() {
        cluster.coordinators[number].stop();
        cluster.coordinators[number].restart();
        cluster.ok(&["wait", &format!("member/c{}", number + 1), "--for", "up"]);
    }
    cluster.wait("all are up", Duration::from_secs(20), |status| {
        count(status, "members", |member| member["state"] == "up") == 3
            && count(status, "nodes", |node| node["state"] == "up") == 2
    });
    println!("all restarted within {:?}", started.elapsed());
    let interrupted = std::process::Command::new("kill").args(["-INT", &load.id().to_string()]).status();
    assert!(interrupted.is_ok_and(|told| told.success()));
    let output = load.wait_with_output().expect("it ends");
    let result: Value = serde_json::from_slice(&output.stdout).expect("a result");
    println!("offered {}, {}", result["offered"], result["latency_us"]);
    assert!(result["offered"].as_u64() > Some(100), "{result}");
    assert_eq!(result["answered"], result["offered"], "{result}");
}
