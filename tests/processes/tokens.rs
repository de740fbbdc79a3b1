//! Rights that are handed out, end, and are taken back.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_tests::processes::{Cluster, npy};

use crate::gateway::{eventually, http};

/// The exit code of a prediction with a token.
fn ask(cluster: &Cluster, token: &str, input: &str) -> Option<i32> {
    let mut command = cluster.command(&["predict", "echo", "--input", input]);
    command.env_remove("WEIR_TOKEN_FILE").env("WEIR_TOKEN", token).output().unwrap().status.code()
}

#[test]
fn a_token_opens_what_it_was_made_for_until_its_end() {
    let cluster = Cluster::start_with(1, 1, &["--http", "127.0.0.1:0"]);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\nbeta_us = 20\n", "");
    let input = cluster.write("x.npy", npy(&[1, 2], &[1.0, 2.0]));
    let create = ["token", "create", "--role", "predict", "--endpoint", "echo", "-o", "json"];
    let made: Value =
        serde_json::from_str(&cluster.ok(&[&create[..], &["--id", "short", "--expires", "6s"]].concat())).unwrap();
    let short = made["token"].as_str().unwrap().to_owned();
    let lasting: Value = serde_json::from_str(&cluster.ok(&create)).unwrap();
    let (lasting, id) = (lasting["token"].as_str().unwrap().to_owned(), lasting["id"].as_str().unwrap().to_owned());
    eventually("the node knows of both", || {
        ask(&cluster, &short, &input) == Some(0) && ask(&cluster, &lasting, &input) == Some(0)
    });
    // It opens nothing else, at the cluster or through another door.
    let status =
        cluster.command(&["status"]).env_remove("WEIR_TOKEN_FILE").env("WEIR_TOKEN", &lasting).output().unwrap();
    assert_eq!(status.status.code(), Some(4));
    let body = json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).to_string();
    let bearer = format!("Bearer {lasting}");
    let over_http = |endpoint: &str| {
        let path = format!("/v2/models/{endpoint}/infer");
        http(&cluster.nodes[0].doors["http"], "POST", &path, &[("authorization", &bearer)], body.as_bytes()).status
    };
    assert_eq!((over_http("echo"), over_http("other")), (200, 404));
    assert!(cluster.ok(&["get", "grants"]).contains("predict echo"));
    // One ends by itself, the other when it is taken back.
    eventually("its end has come", || ask(&cluster, &short, &input) == Some(4));
    assert!(!cluster.ok(&["get", "grants"]).contains("short"));
    assert_eq!(ask(&cluster, &lasting, &input), Some(0));
    cluster.ok(&["revoke", &id]);
    eventually("it opens nothing any more", || ask(&cluster, &lasting, &input) == Some(4));
    eventually("nor at the gateway", || over_http("echo") == 401 || over_http("echo") == 404);
}

/// A coordinator hangs while somebody tries a token: whoever is known is served meanwhile.
#[test]
fn who_tries_tokens_holds_nobody_up() {
    let cluster = Cluster::start_with(1, 1, &["--http", "127.0.0.1:0"]);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\nbeta_us = 20\n", "");
    let address = &cluster.nodes[0].doors["http"];
    let body = json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).to_string();
    let ask = |address: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        http(address, "POST", "/v2/models/echo/infer", &[("authorization", &bearer)], body.as_bytes()).status
    };
    let known = std::fs::read_to_string(cluster.path("c1/admin.token")).unwrap().trim().to_owned();
    assert_eq!(ask(address, &known), 200);
    let signal = |name: &str| {
        let pid = cluster.coordinators[0].pid().to_string();
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    let unknown = std::thread::scope(|scope| {
        let trying = scope.spawn(|| ask(address, &"7".repeat(64)));
        std::thread::sleep(Duration::from_millis(200));
        let began = Instant::now();
        let served = ask(address, &known);
        let took = began.elapsed();
        let waits = !trying.is_finished();
        signal("-CONT");
        assert_eq!(served, 200);
        assert!(waits, "the one that tries was to wait for longer than this took: {took:?}");
        trying.join().unwrap()
    });
    assert!([401, 503].contains(&unknown), "{unknown}");
}

#[test]
fn what_cannot_be_handed_out_is_refused_and_a_file_is_its_owners_alone() {
    let cluster = Cluster::start(1, 1);
    cluster.fails(5, &["token", "create", "--role", "predict", "--endpoint", "nobody"]);
    cluster.fails(2, &["token", "create", "--role", "operator", "--endpoint", "echo"]);
    cluster.fails(2, &["token", "create", "--role", "operator", "--expires", "soon"]);
    cluster.fails(2, &["token", "create", "--role", "operator", "--id", "a b"]);
    cluster.fails(5, &["revoke", "nobody"]);
    let out = cluster.path("ops.token");
    cluster.ok(&["token", "create", "--role", "operator", "--id", "ops", "--out", &out]);
    cluster.fails(6, &["token", "create", "--role", "operator", "--id", "ops"]);
    assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    cluster.ok(&["status", "--token-file", &out]);
    let error = cluster.fails(4, &["token", "create", "--role", "predict", "--token-file", &out]);
    assert!(error.contains("admin") || error.contains("right") || error.contains("let"), "{error}");
}
