//! What a user sees when processes are killed.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_tests::processes::{Cluster, count, npy};

/// A load on `echo` that runs beside the test.
fn load(cluster: &Cluster, seconds: u32) -> Child {
    let file = cluster.write("load.npy", npy(&[16, 2], &[0.25; 32]));
    cluster
        .command(&[
            "load",
            "run",
            "--endpoint",
            "echo",
            "--data",
            &file,
            "--rate",
            "50",
            "--duration",
            &format!("{seconds}s"),
            "--deadline",
            "900ms",
            "-o",
            "json",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn result(load: Child) -> Value {
    let output = load.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout).expect("a result")
}

/// Long enough for a load to have connected and begun.
fn begun(cluster: &Cluster) {
    let arrived = || {
        let told: Value = serde_json::from_str(&cluster.ok(&["describe", "endpoint", "echo", "-o", "json"])).unwrap();
        told["queries"]["arrived"].as_u64().unwrap()
    };
    let before = arrived();
    let started = Instant::now();
    while arrived() == before {
        assert!(started.elapsed() < Duration::from_secs(20), "no query arrives");
    }
}

#[test]
fn killing_the_leader_fails_no_prediction_and_the_next_write_is_taken() {
    let mut cluster = Cluster::start(3, 2);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\n", "");
    let load = load(&cluster, 8);
    begun(&cluster);
    let leader = cluster.leader();
    cluster.coordinators[leader].kill();
    let killed = Instant::now();
    cluster.write("echo2.toml", "[[endpoint]]\nname = \"echo2\"\nmodel = \"echo@1\"\n");
    let applied = cluster.ok(&["apply", "-f", &cluster.path("echo2.toml"), "--no-wait"]);
    assert!(applied.contains("endpoint echo2 created"), "{applied}");
    println!("next write accepted after {} ms", killed.elapsed().as_millis());
    let dead = format!("c{}", leader + 1);
    cluster.wait("the status tells who is down", Duration::from_secs(20), |status| {
        count(status, "members", |m| m["name"] == dead.as_str() && m["state"] == "down") == 1
            && status["leader"] != dead.as_str()
    });
    let result = result(load);
    assert_eq!(result["answered"], result["offered"], "{result}");
    cluster.coordinators[leader].restart();
    cluster.wait("it is back", Duration::from_secs(20), |status| count(status, "members", |m| m["state"] == "up") == 3);
}

#[test]
fn killing_a_node_leaves_each_query_one_outcome() {
    let mut cluster = Cluster::start(1, 2);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\n", "replicas = { min = 2 }");
    cluster.wait("both serve", Duration::from_secs(20), |status| {
        count(status, "nodes", |n| n["models"] == serde_json::json!(["echo@1"])) == 2
    });
    let load = load(&cluster, 6);
    begun(&cluster);
    cluster.nodes[0].kill();
    let result = result(load);
    let counted: u64 = ["answered", "rejected", "expired", "failed", "unknown"]
        .iter()
        .map(|word| result[*word].as_u64().unwrap())
        .sum();
    assert_eq!(counted, result["offered"].as_u64().unwrap());
    // Those in flight on it may be lost: one every 20 ms, each of them less than a millisecond there.
    let lost = result["offered"].as_u64().unwrap() - result["answered"].as_u64().unwrap();
    assert!(lost <= 3, "{result}");
    println!("node killed: {lost} of {} queries not answered", result["offered"]);
    cluster.wait("the status tells who is down", Duration::from_secs(20), |status| {
        count(status, "nodes", |n| n["state"] == "down") == 1
    });
    cluster.nodes[0].restart();
    cluster.wait("it is back", Duration::from_secs(20), |status| count(status, "nodes", |n| n["state"] == "up") == 2);
}

#[test]
fn with_every_coordinator_gone_predictions_go_on_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start(3, 1);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\n", "");
    let before = cluster.ok(&["get", "endpoints"]);
    let load = load(&cluster, 8);
    begun(&cluster);
    cluster.coordinators.iter_mut().for_each(weir_tests::processes::Process::kill);
    assert!(cluster.status().is_none(), "nobody answers");
    cluster.coordinators.iter_mut().for_each(weir_tests::processes::Process::restart);
    let result = result(load);
    assert_eq!(result["answered"], result["offered"], "{result}");
    cluster.wait("all are back", Duration::from_secs(30), |status| {
        count(status, "members", |m| m["state"] == "up") == 3
            && count(status, "nodes", |n| n["state"] == "up") == 1
            && count(status, "endpoints", |e| e["state"] == "serving") == 1
    });
    assert_eq!(cluster.ok(&["get", "endpoints"]), before);
}

#[test]
fn members_are_removed_and_others_join() {
    let mut cluster = Cluster::start(3, 1);
    cluster.serve_synthetic("width = 2\n", "");
    let removed = (cluster.leader() + 1) % 3;
    let name = format!("c{}", removed + 1);
    cluster.ok(&["member", "remove", &name]);
    cluster.coordinators[removed].kill();
    cluster.wait("it is gone", Duration::from_secs(20), |status| {
        status["members"].as_array().is_some_and(|m| m.len() == 2)
    });
    let (data, token) = (cluster.path("c9"), cluster.path("c1/member.token"));
    let others: Vec<String> =
        (0..3).filter(|i| *i != removed).map(|i| cluster.coordinators[i].address.clone()).collect();
    let joined = weir_tests::processes::Process::start(&[
        "coordinator",
        "--name",
        "c9",
        "--data-dir",
        &data,
        "--listen",
        "127.0.0.1:0",
        "--join",
        &others.join(","),
        "--token-file",
        &token,
    ]);
    cluster.wait("the new one votes and has the log", Duration::from_secs(30), |status| {
        count(status, "members", |m| m["name"] == "c9" && m["role"] == "follower" && m["applied"].as_u64() > Some(3))
            == 1
    });
    let stale = cluster.command(&["get", "endpoints", "--coordinators", &joined.address]).output().unwrap();
    assert!(String::from_utf8_lossy(&stale.stdout).contains("echo"));
}

#[test]
fn a_coordinator_keeps_to_its_own_data() {
    let cluster = Cluster::start(1, 1);
    let data = cluster.path("c1");
    let other = cluster.run(&["coordinator", "--name", "c7", "--data-dir", &data, "--listen", "127.0.0.1:0"]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("belongs to coordinator c1"));
    let nowhere = cluster.path("fresh");
    let unfounded = cluster.run(&["coordinator", "--name", "c7", "--data-dir", &nowhere, "--listen", "127.0.0.1:0"]);
    assert!(String::from_utf8_lossy(&unfounded.stderr).contains("--bootstrap"));
    let exposed =
        cluster.run(&["coordinator", "--name", "c7", "--data-dir", &nowhere, "--listen", "0.0.0.0:0", "--bootstrap"]);
    assert!(String::from_utf8_lossy(&exposed.stderr).contains("--insecure-network"));
}
