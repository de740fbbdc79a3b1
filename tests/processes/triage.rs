//! Cascades whose gates weigh: calibrated, served, asked for a depth, and with more asked of them than they can do.

use serde_json::Value;
use weir_tests::processes::Cluster;

/// A cluster that serves the demo, its gates by gain tables that `weir calibrate` has just written.
fn weighing(pace: &str) -> (Cluster, Value) {
    let cluster = Cluster::start_with(1, 1, &["--pace", pace]);
    cluster.ok(&["apply", "-f", "demo/fashion.toml"]);
    let calibrated = cluster.ok(&[
        "calibrate",
        "fashion",
        "--data",
        "demo/images.npy",
        "--labels",
        "demo/labels.npy",
        "--accuracy",
        "0.9",
        "--out",
        &cluster.path(""),
        "-o",
        "json",
    ]);
    let file = cluster.demo_with(["gain = \"tiny-mid.csv\"", "gain = \"mid-big.csv\""]);
    assert!(cluster.ok(&["apply", "-f", &file]).contains("endpoint fashion configured"));
    (cluster, serde_json::from_str(&calibrated).expect("one object"))
}

fn asked(cluster: &Cluster, depth: &[&str]) -> Vec<Value> {
    let ask = ["predict", "fashion", "--input", "demo/images.npy", "--deadline", "20s", "-o", "json"];
    let answers = cluster.ok(&[&ask, depth].concat());
    answers.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

#[test]
fn what_deeper_stages_gain_is_measured_and_weighed() {
    let (cluster, calibrated) = weighing("1");
    let number = |value: &Value| value.as_f64().expect("a number");
    let accuracy: Vec<f64> = calibrated["stages"].as_array().unwrap().iter().map(|s| number(&s["accuracy"])).collect();
    // As onnxruntime has it offline, on these images.
    assert!(accuracy.windows(2).all(|pair| pair[0] < pair[1]), "{accuracy:?}");
    assert!(number(&calibrated["target"]["accuracy"]) >= 0.9);
    let frontier = calibrated["frontier"].as_array().unwrap();
    assert!(number(&frontier[0]["accuracy"]) > number(&frontier.last().unwrap()["accuracy"]));

    let at = |answers: &[Value], stage: &str| answers.iter().filter(|answer| answer["stage"] == stage).count();
    let free = asked(&cluster, &[]);
    let shares = &frontier[0]["shares"];
    // Nothing else is asked, so that time costs nothing; less than the least gain does not pay even then.
    let bound = number(&shares[0]) * 500.0;
    assert!(at(&free, "tiny") as f64 >= bound - 0.5, "{} of {bound}", at(&free, "tiny"));
    assert!(at(&free, "big") > 0 && at(&free, "tiny") < 500);
    assert!(free.iter().all(|answer| answer["degraded"] == false));

    assert_eq!(at(&asked(&cluster, &["--min-stage", "big"]), "big"), 500);
    assert_eq!(at(&asked(&cluster, &["--max-stage", "tiny"]), "tiny"), 500);
    let described = cluster.ok(&["describe", "endpoint", "fashion", "-o", "json"]);
    let described: Value = serde_json::from_str(&described).expect("one object");
    assert!(described["stages"][1]["gate"]["gain"].as_array().is_some_and(|bins| bins.len() > 5), "{described}");
}

#[test]
fn with_too_much_to_do_answers_are_shallower_and_none_is_lost() {
    // The deepest stage takes some ten milliseconds a row then.
    let (cluster, _) = weighing("0.02");
    let run = cluster.run(&[
        "load",
        "run",
        "--endpoint",
        "fashion",
        "--data",
        "demo/images.npy",
        "--labels",
        "demo/labels.npy",
        "--rate",
        "300",
        "--duration",
        "4s",
        "--deadline",
        "200ms",
        "--seed",
        "5",
        "-o",
        "json",
    ]);
    let run: Value = serde_json::from_str(&String::from_utf8_lossy(&run.stdout)).expect("one object");
    let count = |key: &str| run[key].as_u64().expect("a count");
    assert_eq!((count("failed"), count("unknown")), (0, 0), "{run}");
    assert!(count("degraded") > 0, "{run}");
    let seconds = run["per_second"].as_array().expect("seconds");
    assert!(seconds.iter().any(|second| second["price"].as_f64() > Some(0.0)), "computing time was dear");
    assert!(count("answered") * 2 > count("offered"), "{run}");
}

/// The share of rows that are answered by each stage under a way of triage, with hardly anything to do.
#[test]
fn other_ways_of_triage_can_be_compared() {
    let by_stage = |method: &str| {
        let cluster = Cluster::start_with(1, 1, &["--triage", method]);
        cluster.ok(&["apply", "-f", "demo/fashion.toml"]);
        let answers = asked(&cluster, &[]);
        ["tiny", "mid", "big"].map(|stage| answers.iter().filter(|answer| answer["stage"] == stage).count())
    };
    assert_eq!(by_stage("reject-only"), [0, 0, 500]);
    let [tiny, mid, big] = by_stage("fixed");
    assert!(tiny > 100 && mid > 50 && big > 10, "{tiny} {mid} {big}");
    let cluster = Cluster::start(1, 0);
    let data = cluster.path("n1");
    let token = cluster.path("c1/member.token");
    let node = ["node", "--name", "n1", "--data-dir", &data, "--token-file", &token, "--triage", "luck"];
    assert!(cluster.fails(2, &node).contains("write one of weir, push-out"));
}
