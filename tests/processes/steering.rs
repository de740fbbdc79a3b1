//! What an operator does to a cluster that serves: compare, scale, drain, wait.

use serde_json::Value;
use weir_tests::processes::{Cluster, metric, npy};

use crate::dashboard::METRICS;

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

#[test]
fn clients_go_where_the_model_stands_and_follow_it() {
    let cluster = Cluster::start_with(1, 3, &METRICS);
    cluster.serve_synthetic("width = 1\nalpha_us = 100\n", "replicas = { min = 1, max = 1 }");
    cluster.ok(&["wait", "endpoint/echo", "--for", "serving"]);
    let host = || {
        let placements: Value = serde_json::from_str(&cluster.ok(&["get", "placements", "-o", "json"])).expect("JSON");
        placements[0]["node"].as_str().expect("a name").to_owned()
    };
    // What each node has answered for callers of its own.
    let answered = || {
        let of = |process| metric(process, "weir_answered_total{endpoint=\"echo\"}").unwrap_or(0.0);
        cluster.nodes.iter().map(of).collect::<Vec<_>>()
    };
    let input = cluster.write("x.npy", npy(&[1, 1], &[1.0]));
    let ask = || (0..20).for_each(|_| drop(cluster.ok(&["predict", "echo", "--input", &input])));
    let number = |name: &str| name[1..].parse::<usize>().expect("n1, n2 …") - 1;

    let before = host();
    ask();
    let mut expected = vec![0.0; 3];
    expected[number(&before)] = 20.0;
    assert_eq!(answered(), expected, "{before} has it");
    cluster.ok(&["node", "drain", &before]);
    cluster.ok(&["wait", &format!("node/{before}"), "--for", "empty", "--timeout", "30s"]);
    let after = host();
    assert_ne!(after, before);
    ask();
    expected[number(&after)] = 20.0;
    assert_eq!(answered(), expected, "{after} has it now");
}

/// By thread: the cores that it may use, as the kernel writes them.
#[cfg(target_os = "linux")]
fn cores_of_threads(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    let cores = status.filter_map(|text| {
        Some(text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned())
    });
    cores.collect()
}

#[cfg(target_os = "linux")]
#[test]
fn a_slot_computes_on_the_core_that_it_was_given() {
    let cluster = Cluster::start(1, 0);
    let allowed = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let allowed = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list").trim();
    let core = allowed.rsplit([',', '-']).next().expect("there is a last one").to_owned();
    let free = cluster.node("n1", &[]);
    let kept = cluster.node("n2", &["--cores", &core]);
    cluster.serve_synthetic("width = 1\n", "replicas = { min = 2, max = 2 }");
    let rows = cluster.write("rows.npy", weir_tests::processes::npy(&[40, 1], &[0.5; 40]));
    let (mut here, mut there) = (0, 0);
    for _ in 0..10 {
        let answers = cluster.ok(&["predict", "echo", "--input", &rows, "-o", "json"]);
        here += answers.matches("\"n1\"").count();
        there += answers.matches("\"n2\"").count();
    }
    assert!(here > 0 && there > 0, "both have computed: {here} and {there}");
    let on_it = |pid: u32| cores_of_threads(pid).iter().filter(|cores| **cores == core).count();
    if core != allowed {
        assert_eq!((on_it(free.pid()), on_it(kept.pid())), (0, 1));
    }
    let refused = |cores: &str, slots: &str| {
        let data = cluster.path("refused");
        cluster.fails(
            1,
            &[
                "node",
                "--name",
                "n3",
                "--data-dir",
                &data,
                "--listen",
                "127.0.0.1:0",
                "--token-file",
                &cluster.path("c1/member.token"),
                "--cpu-slots",
                slots,
                "--cores",
                cores,
            ],
        )
    };
    assert!(refused("60000", "1").contains("core 60000 is not one that this process may use"));
    assert!(refused(&core, "2").contains("2 slots cannot have 1 cores"));
}
