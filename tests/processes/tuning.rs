//! Replicas follow what is asked for: a second one on a node with a slot to spare, and why it stands there.

use std::time::Duration;

use serde_json::Value;
use weir_tests::processes::{Cluster, npy};

fn needs(cluster: &Cluster) -> Value {
    let told = cluster.ok(&["describe", "endpoint", "echo", "-o", "json"]);
    serde_json::from_str::<Value>(&told).expect("one object")["stages"][0].take()
}

#[test]
fn replicas_follow_what_is_asked_and_say_why() {
    let cluster = Cluster::start_with(1, 1, &["--cpu-slots", "2"]);
    cluster.serve_synthetic("width = 1\nalpha_us = 1000\nbeta_us = 10000\n", "");
    let stage = needs(&cluster);
    assert_eq!(stage["replicas"].as_array().map(Vec::len), Some(1), "nobody has asked for anything: {stage}");
    assert!(stage["needs"].is_null(), "{stage}");
    // 1.5 slots of work: one replica does not do it, and no batch makes it less.
    let data = cluster.write("rows.npy", npy(&[4, 1], &[1.0; 4]));
    let out = cluster.run(&[
        "load",
        "run",
        "--endpoint",
        "echo",
        "--data",
        &data,
        "--rate",
        "150",
        "--duration",
        "8s",
        "--deadline",
        "1s",
        "--connections",
        "2",
        "-o",
        "json",
    ]);
    let load: Value = serde_json::from_slice(&out.stdout).expect("one object");
    let stage = needs(&cluster);
    assert_eq!(stage["replicas"].as_array().map(Vec::len), Some(2), "{stage}");
    assert_eq!(stage["needs"]["replicas"], 2, "{stage}");
    assert!(stage["needs"]["because"].as_str().is_some_and(|why| why.contains("slot seconds a second")), "{stage}");
    cluster.wait("both serve", Duration::from_secs(10), |status| status["endpoints"][0]["replicas"]["ready"] == 2);
    // With one replica it were two thirds; the second one comes within some seconds.
    assert!(load["attainment"].as_f64() > Some(0.8), "{load}");
}
