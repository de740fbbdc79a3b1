//! What a user sees when things work.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use weir_client::{Client, Options, Request, Token};
use weir_core::ids::EndpointName;
use weir_core::outcome::Outcome;
use weir_core::tensor::Tensor;
use weir_host::disk::SystemDisk;
use weir_tests::processes::{Cluster, count, npy, root};

/// Thresholds that demo/make_demo.py computes with.
const FIXED: [&str; 2] = ["confidence_below = 0.95", "confidence_below = 0.8"];

fn rows(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

/// The cascade of the demo with fixed thresholds, as onnxruntime computes it offline (see demo/README.md).
#[test]
fn the_demo_is_right_as_often_and_stops_where_it_does_offline() {
    let cluster = Cluster::start(1, 1);
    let fixed = cluster.demo_with(FIXED);
    let applied = cluster.ok(&["apply", "-f", &fixed]);
    assert!(applied.contains("endpoint fashion created"), "{applied}");
    assert!(cluster.ok(&["apply", "-f", &fixed]).lines().all(|line| line.ends_with("unchanged")));
    let answers =
        rows(&cluster.ok(&["predict", "fashion", "--input", "demo/images.npy", "--deadline", "20s", "-o", "json"]));
    let labels = std::fs::read(root().join("demo/labels.npy")).unwrap();
    let labels = &labels[labels.len() - 500..];
    let (mut right, mut stages) = (0, [0; 3]);
    for (answer, label) in answers.iter().zip(labels) {
        assert_eq!(answer["outcome"], "answered", "{answer}");
        let probs: Vec<f64> =
            answer["outputs"]["probs"]["data"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
        let best = (0..probs.len()).max_by(|a, b| probs[*a].total_cmp(&probs[*b])).unwrap();
        right += usize::from(best == usize::from(*label));
        stages[["tiny", "mid", "big"].iter().position(|stage| answer["stage"] == *stage).unwrap()] += 1;
    }
    assert_eq!((right, stages), (469, [308, 127, 65]));
}

/// 64 callers at once, from a program with several threads; each row of each call has a value that no other has. Rows are
/// batched across callers, on two nodes, half of them forwarded.
#[test]
fn every_row_comes_back_to_its_owner_under_64_callers() {
    const CALLS: usize = 20;
    let cluster = Cluster::start(1, 2);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\nbeta_us = 20\n", "replicas = { max = 1 }");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let token = Token::read_file(&SystemDisk, Path::new(&cluster.path("c1/admin.token"))).unwrap();
    runtime.block_on(async {
        let options = Options { coordinators: vec![cluster.addresses()], token };
        let client = Client::connect(options).await.unwrap();
        let callers = (0..64).map(|caller| tokio::spawn(call(client.clone(), caller, CALLS)));
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
    });
}

async fn call(client: Client, caller: usize, calls: usize) {
    for number in 0..calls {
        let rows = 1 + (caller + number) % 6;
        let value = |row: usize| ((caller * calls + number) * 8 + row) as f32;
        let values: Vec<f32> = (0..rows).flat_map(|row| [value(row), -value(row)]).collect();
        let request = Request {
            endpoint: EndpointName::parse("echo").unwrap(),
            inputs: vec![("x".into(), Tensor::f32(&[rows as u64, 2], &values))],
            whole: false,
            deadline: Some(Duration::from_secs(20)),
            class: None,
            outputs: Vec::new(),
            min_stage: None,
            max_stage: None,
            trace: false,
        };
        let answers = client.predict(request).await.unwrap();
        assert_eq!(answers.len(), rows);
        for (row, answer) in answers.iter().enumerate() {
            assert_eq!(answer.outcome, Outcome::Answered, "{}", answer.message);
            let (_, y) = &answer.outputs[0];
            assert_eq!((y.shape.as_slice(), y.as_f32().unwrap()), (&[2][..], vec![value(row), -value(row)]));
        }
    }
}

#[test]
fn arrays_as_they_are_are_one_query() {
    let cluster = Cluster::start(1, 1);
    cluster.serve_synthetic("width = 2\n", "");
    let file = cluster.write("x.npy", npy(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let answers = rows(&cluster.ok(&["predict", "echo", "--input", &format!("x={file}"), "--whole", "-o", "json"]));
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0]["outputs"]["y"]["shape"], serde_json::json!([3, 2]));
}

#[test]
fn a_node_without_a_replica_forwards_to_one_that_has() {
    let cluster = Cluster::start(1, 2);
    cluster.serve_synthetic("width = 2\n", "replicas = { max = 1 }");
    let file = cluster.write("x.npy", npy(&[1, 2], &[7.0, 8.0]));
    let status = cluster.status().unwrap();
    assert_eq!(
        count(&status, "nodes", |n| n["models"] == serde_json::json!(["echo@1"])),
        1,
        "one replica in all: {status}"
    );
    // A client picks nodes at random: of twenty calls some begin at the other node.
    let nodes: BTreeSet<String> = (0..20)
        .map(|_| {
            let answer = rows(&cluster.ok(&["predict", "echo", "--input", &file, "-o", "json"])).remove(0);
            assert_eq!(answer["outputs"]["y"]["data"], serde_json::json!([7.0, 8.0]));
            answer["node"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(nodes.len(), 1, "always the node with the replica: {nodes:?}");
}

#[test]
fn a_drained_node_is_emptied_and_nothing_fails() {
    let cluster = Cluster::start(1, 2);
    cluster.serve_synthetic("width = 2\nalpha_us = 500\n", "replicas = { max = 1 }");
    let file = cluster.write("x.npy", npy(&[4, 2], &[1.0; 8]));
    let home = |status: &Value| {
        let nodes = status["nodes"].as_array().unwrap();
        nodes
            .iter()
            .find(|n| n["models"] == serde_json::json!(["echo@1"]))
            .map(|n| n["name"].as_str().unwrap().to_owned())
    };
    let first = home(&cluster.status().unwrap()).expect("it stands somewhere");
    let load = cluster
        .command(&[
            "load",
            "run",
            "--endpoint",
            "echo",
            "--data",
            &file,
            "--rate",
            "100",
            "--duration",
            "4s",
            "--deadline",
            "900ms",
            "-o",
            "json",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    cluster.ok(&["node", "drain", &first]);
    cluster.wait("its replica moved", Duration::from_secs(20), |status| home(status).is_some_and(|now| now != first));
    let result: Value = serde_json::from_slice(&load.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(result["failed"], 0, "{result}");
    assert_eq!(result["answered"], result["offered"], "{result}");
    cluster.ok(&["node", "undrain", &first]);
    cluster
        .wait("it is up again", Duration::from_secs(10), |status| count(status, "nodes", |n| n["state"] == "up") == 2);
}

#[test]
fn what_there_is_can_be_listed_described_watched_and_deleted() {
    let cluster = Cluster::start(1, 1);
    let before = cluster.status().unwrap()["index"].as_u64().unwrap().to_string();
    cluster.serve_synthetic("width = 2\n", "");
    assert!(cluster.ok(&["get", "models"]).contains("echo@1"));
    assert!(cluster.ok(&["get", "placements", "-o", "json"]).contains("\"node\":\"n1\""));
    let described: Value = serde_json::from_str(&cluster.ok(&["describe", "endpoint", "echo", "-o", "json"])).unwrap();
    assert_eq!(described["stages"][0]["replicas"][0]["batching"], "up to 64 rows");
    assert!(cluster.fails(5, &["describe", "endpoint", "ecco"]).contains("not found"));
    let mut watch =
        cluster.command(&["watch", "models", "--since", &before]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(watch.stdout.take().unwrap()), &mut line).unwrap();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(line.trim_end().ends_with("model echo@1"), "{line}");
    assert_eq!(
        cluster.ok(&["delete", "endpoint", "echo"]).lines().collect::<Vec<_>>(),
        ["endpoint echo deleted", "model echo@1 deleted"]
    );
    cluster.fails(5, &["delete", "endpoint", "echo"]);
}

#[test]
fn a_snapshot_founds_the_cluster_anew() {
    let cluster = Cluster::start(1, 1);
    cluster.serve_synthetic("width = 2\n", "");
    let snapshot = cluster.path("weir.snapshot");
    cluster.ok(&["snapshot", "save", &snapshot]);
    let (data, token) = (cluster.path("new"), cluster.path("c1/member.token"));
    cluster.ok(&["snapshot", "restore", &snapshot, "--data-dir", &data, "--name", "r1", "--member-token-file", &token]);
    cluster.fails(
        1,
        &["snapshot", "restore", &snapshot, "--data-dir", &data, "--name", "r1", "--member-token-file", &token],
    );
    let restored = weir_tests::processes::Process::start(&[
        "coordinator",
        "--name",
        "r1",
        "--data-dir",
        &data,
        "--listen",
        "127.0.0.1:0",
        "--bootstrap",
    ]);
    let endpoints = cluster.command(&["get", "endpoints", "--coordinators", &restored.address]).output().unwrap();
    let shown = String::from_utf8_lossy(&endpoints.stdout).into_owned();
    assert!(shown.contains("echo"), "{shown} {}", String::from_utf8_lossy(&endpoints.stderr));
}
