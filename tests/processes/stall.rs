//! What a load sees of a node that stands still: the same as a user.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_tests::processes::{Cluster, npy};

/// Queries a second, and seconds.
const RATE: u64 = 50;
const SECONDS: u64 = 8;

/// Every query that falls due while a node is stopped is answered when it goes on, and its latency counts from its intended instant,
/// however long after its deadline that is: no answer is given up, and none is measured from when it could be sent. Of a stall of S seconds
/// in T the share that waits longer than x is (S − x) / T.
#[cfg(unix)]
#[test]
fn latencies_of_a_stalled_weir_count_from_the_intended_instant_and_none_is_unknown() {
    let cluster = Cluster::start(1, 1);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\n", "");
    let data = cluster.write("load.npy", npy(&[16, 2], &[0.25; 32]));
    let (rate, duration) = (RATE.to_string(), format!("{SECONDS}s"));
    let load = ["load", "run", "--endpoint", "echo", "--data", &data, "--rate", &rate, "--arrivals", "constant"];
    let more = ["--duration", &duration, "--deadline", "200ms", "--connections", "2", "-o", "json"];
    let running =
        cluster.command(&[&load[..], &more].concat()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    arrives(&cluster);
    let stop = |signal: &str| {
        let pid = cluster.nodes[0].pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    };
    let began = Instant::now();
    stop("-STOP");
    std::thread::sleep(Duration::from_millis(1200));
    // At least so long it stood still.
    let stall = began.elapsed();
    stop("-CONT");
    let output = running.wait_with_output().unwrap();
    let result: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let of = |field: &str| result[field].as_u64().unwrap();
    let latency = |percentile: &str| result["latency_us"][percentile].as_u64().unwrap() as f64 / 1e6;
    assert_eq!(of("offered"), RATE * SECONDS - 1);
    assert_eq!((of("unknown"), of("answered")), (0, of("offered")), "{result}");
    // Evenly spread over the stall: the longest began with it, give or take what a query and a signal take on a busy machine.
    assert!(latency("max") > 0.8 * stall.as_secs_f64(), "{} of {stall:?}: {result}", latency("max"));
    let waited = stall.as_secs_f64() - 0.1 * SECONDS as f64;
    assert!(latency("p90") > 0.5 * waited, "{} of {waited}: {result}", latency("p90"));
    assert!(latency("p50") < latency("p90") / 2.0, "most of the time it did not stand still: {result}");
    // All that waited longer than the deadline were missed.
    let late = (stall.as_secs_f64() - 0.3) * RATE as f64;
    assert!((of("offered") - of("within_deadline")) as f64 > late, "{late}: {result}");
}

/// Waits until the first queries of a load are there.
fn arrives(cluster: &Cluster) {
    let arrived = || {
        let told: Value = serde_json::from_str(&cluster.ok(&["describe", "endpoint", "echo", "-o", "json"])).unwrap();
        told["queries"]["arrived"].as_u64().unwrap()
    };
    let started = Instant::now();
    while arrived() == 0 {
        assert!(started.elapsed() < Duration::from_secs(20), "no query arrives");
    }
}
