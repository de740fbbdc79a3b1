//! What an operator sees of queries: each one explained, and all of them at a glance.

use serde_json::Value;
use weir_tests::processes::Cluster;

fn one(text: &str) -> Value {
    serde_json::from_str(text).expect("one object")
}

/// Asks the demo for its first rows; the answers.
fn ask(cluster: &Cluster, more: &[&str]) -> Vec<Value> {
    let ask = ["predict", "fashion", "--input", "demo/images.npy", "--rows", "0:20", "-o", "json"];
    let output = cluster.run(&[&ask, more].concat());
    String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("\"row\"")).map(one).collect()
}

#[test]
fn a_query_is_explained_whichever_node_it_came_to() {
    let cluster = Cluster::start(1, 2);
    let fixed = cluster.demo_with(["confidence_below = 0.95", "confidence_below = 0.8"]);
    cluster.ok(&["apply", "-f", &fixed]);
    let answers = ask(&cluster, &["--deadline", "20s"]);
    let deep = answers.iter().find(|answer| answer["stage"] == "big").expect("one of twenty goes to the end");
    let told = one(&cluster.ok(&["why", deep["id"].as_str().unwrap(), "-o", "json"]));
    let record = &told["records"][0];
    assert_eq!(
        (&record["outcome"], &record["stage"], &record["degraded"]),
        (&deep["outcome"], &deep["stage"], &false.into())
    );
    let stages = record["stages"].as_array().unwrap();
    let names: Vec<&Value> = stages.iter().map(|visit| &visit["stage"]).collect();
    assert_eq!(names, ["tiny", "mid", "big"]);
    for visit in stages {
        assert!(visit["batch"]["rows"].as_u64().is_some_and(|rows| rows >= 1), "{visit}");
        assert!(visit["batch"]["closed"].is_string() && visit["execute_us"].is_u64(), "{visit}");
    }
    let gate = &stages[0]["gate"];
    assert_eq!((&gate["threshold"], &gate["deeper"]), (&Value::from(0.95), &true.into()), "{gate}");
    assert!(gate["signal"].as_f64().is_some_and(|confidence| confidence < 0.95));
    // People read it too.
    let text = cluster.ok(&["why", deep["id"].as_str().unwrap()]);
    assert!(text.contains("tiny") && text.contains("deeper below 0.95"), "{text}");
}

#[test]
fn a_refusal_is_explained_and_an_unknown_query_said_to_be_unknown() {
    let cluster = Cluster::start(1, 1);
    cluster.ok(&["apply", "-f", "demo/fashion.toml"]);
    let refused = ask(&cluster, &["--min-stage", "huge"]);
    let told = one(&cluster.ok(&["why", refused[0]["id"].as_str().unwrap(), "-o", "json"]));
    assert_eq!(told["records"][0]["outcome"], "rejected");
    assert!(told["records"][0]["message"].as_str().unwrap().contains("there are tiny, mid, big"), "{told}");
    let said = cluster.fails(5, &["why", "00000000000000000000000000000001"]);
    assert!(said.contains("no node remembers"), "{said}");
    cluster.fails(2, &["why", "yesterday"]);
}

#[test]
fn what_happens_now_is_seen_at_a_glance() {
    let cluster = Cluster::start(1, 1);
    cluster.ok(&["apply", "-f", "demo/fashion.toml"]);
    cluster.run(&[
        "load",
        "run",
        "--endpoint",
        "fashion",
        "--data",
        "demo/images.npy",
        "--rate",
        "50",
        "--duration",
        "3s",
        "--deadline",
        "5s",
        "--seed",
        "1",
    ]);
    let top = one(&cluster.ok(&["top", "-o", "json"]));
    let endpoint = &top["endpoints"][0];
    assert_eq!(endpoint["name"], "fashion", "{top}");
    let rate = |key: &str| endpoint[key].as_f64().unwrap_or_else(|| panic!("{key} in {endpoint}"));
    assert!(rate("offered_per_s") > 0.0 && rate("answered_per_s") > 0.0, "{endpoint}");
    assert!(rate("attainment") > 0.0 && rate("price") >= 0.0, "{endpoint}");
}
