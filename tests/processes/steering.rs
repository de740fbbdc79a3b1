//! What an operator does to a cluster that serves: compare, scale, drain, wait.

use serde_json::Value;
use weir_tests::processes::Cluster;

/// Replicas of the model that [`Cluster::serve_synthetic`] serves.
fn replicas(cluster: &Cluster) -> usize {
    let placements: Value = serde_json::from_str(&cluster.ok(&["get", "placements", "-o", "json"])).expect("JSON");
    placements.as_array().expect("a list").len()
}

#[test]
fn a_model_is_scaled_and_its_file_says_what_differs() {
    let cluster = Cluster::start(1, 2);
    cluster.serve_synthetic("width = 1\nalpha_us = 100\n", "replicas = { min = 1, max = 1 }");
    let file = cluster.path("echo.toml");
    assert!(cluster.ok(&["diff", "-f", &file]).contains("the cluster is as"));
    assert_eq!(replicas(&cluster), 1);

    let said = cluster.ok(&["scale", "echo@1", "--replicas", "2"]);
    assert_eq!(said.trim(), "model echo@1 configured");
    cluster.wait("two replicas", std::time::Duration::from_secs(20), |_| replicas(&cluster) == 2);
    let differs = cluster.run(&["diff", "-f", &file]);
    assert_eq!(differs.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&differs.stdout).trim(), "model echo@1 configured");
    assert_eq!(replicas(&cluster), 2, "to compare changes nothing");

    let said = cluster.fails(2, &["scale", "echo@1", "--replicas", "0"]);
    assert!(said.contains("weir delete endpoint"), "{said}");
    let said = cluster.fails(5, &["scale", "nobody@1", "--replicas", "2"]);
    assert!(said.contains("weir get models"), "{said}");
}

#[test]
fn a_node_is_drained_and_waited_for() {
    let cluster = Cluster::start(1, 2);
    cluster.serve_synthetic("width = 1\nalpha_us = 100\n", "replicas = { min = 1, max = 2 }");
    cluster.ok(&["wait", "endpoint/echo", "--for", "serving"]);
    cluster.ok(&["node", "drain", "n2"]);
    cluster.ok(&["wait", "node/n2", "--for", "empty", "--timeout", "30s"]);
    cluster.ok(&["wait", "node/n2", "--for", "draining"]);
    let said = cluster.fails(7, &["wait", "node/n1", "--for", "down", "--timeout", "200ms"]);
    assert!(said.contains("node/n1 is up after 200ms"), "{said}");
    cluster.ok(&["delete", "endpoint", "echo"]);
    cluster.ok(&["wait", "endpoint/echo", "--for", "gone"]);
    cluster.fails(5, &["wait", "endpoint/echo", "--for", "serving"]);
    let said = cluster.fails(2, &["wait", "node/n1", "--for", "serving"]);
    assert!(said.contains("is never \"serving\"; --for up"), "{said}");
    cluster.fails(2, &["wait", "n1", "--for", "up"]);
}
