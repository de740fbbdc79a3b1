//! Versions: queries split over them, and an endpoint that moves to another one while it is asked.

use std::collections::BTreeMap;
use std::process::Stdio;

use serde_json::{Value, json};
use weir_tests::processes::{Cluster, count, npy};

/// Two versions of a model; the endpoint `e` as `versions` says.
fn file(cluster: &Cluster, versions: &str) -> String {
    let text = models(cluster) + &format!("[[endpoint]]\nname = \"e\"\ndeadline = \"5s\"\n{versions}\n");
    cluster.write("versions.toml", text)
}

fn models(cluster: &Cluster) -> String {
    let mut text = String::new();
    for (version, formula) in [("1", "width = 2\nalpha_us = 300\n"), ("2", "width = 2\nalpha_us = 400\n")] {
        let path = cluster.write(&format!("v{version}.synthetic"), formula);
        text += &format!("[[model]]\nname = \"m\"\nversion = \"{version}\"\npath = \"{path}\"\n");
    }
    text
}

/// How many of so many calls were answered by which version.
fn asked(cluster: &Cluster, calls: usize) -> BTreeMap<String, usize> {
    let input = cluster.write("x.npy", npy(&[3, 2], &[1.0; 6]));
    let mut by_model = BTreeMap::new();
    for _ in 0..calls {
        let out = cluster.ok(&["predict", "e", "--input", &input, "-o", "json"]);
        let models: Vec<String> = out
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).expect("one object a line")["model"].as_str().unwrap().to_owned()
            })
            .collect();
        assert!(models.iter().all(|model| *model == models[0]), "rows of one call go to one version: {models:?}");
        *by_model.entry(models[0].clone()).or_insert(0) += 1;
    }
    by_model
}

#[test]
fn queries_are_split_over_versions_by_their_shares() {
    let cluster = Cluster::start(1, 1);
    let versions = "versions = [{ model = \"m@1\", share = 1 }, { model = \"m@2\", share = 1 }]";
    cluster.ok(&["apply", "-f", &file(&cluster, versions)]);
    let by_model = asked(&cluster, 30);
    assert!(by_model.len() == 2 && by_model.values().all(|count| *count >= 5), "{by_model:?}");
    let versions = versions.replace("\"m@2\", share = 1", "\"m@2\", share = 0");
    cluster.ok(&["apply", "-f", &file(&cluster, &versions)]);
    assert_eq!(asked(&cluster, 8), BTreeMap::from([("m@1".to_owned(), 8)]), "a share of 0 gets nothing");
    let status: Value = serde_json::from_str(&cluster.ok(&["rollout", "status", "e", "-o", "json"])).unwrap();
    assert_eq!(status["versions"][1]["ready"], 1, "and stays loaded: {status}");
    let said = cluster.fails(2, &["rollout", "e"]);
    assert!(said.contains("--to MODEL@VERSION"), "{said}");
    assert!(cluster.fails(5, &["rollout", "nothing", "--to", "m@2"]).contains("not found"));
    let unknown = cluster.fails(2, &["rollout", "e", "--to", "m@9"]);
    assert!(unknown.contains("m@9"), "{unknown}");
}

#[test]
fn a_rollout_and_its_undoing_fail_no_query() {
    let cluster = Cluster::start(1, 2);
    cluster.ok(&["apply", "-f", &file(&cluster, "model = \"m@1\"")]);
    let data = cluster.write("load.npy", npy(&[16, 2], &[0.25; 32]));
    let load = cluster
        .command(&[
            "load",
            "run",
            "--endpoint",
            "e",
            "--data",
            &data,
            "--rate",
            "100",
            "--duration",
            "8s",
            "--deadline",
            "900ms",
            "-o",
            "json",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("weir runs");
    let rollout = |arguments: &[&str]| -> Value {
        serde_json::from_str(&cluster.ok(&[&["rollout"], arguments, &["-o", "json"]].concat())).expect("one object")
    };
    let shares = |told: &Value| -> Vec<u64> {
        told["versions"].as_array().unwrap().iter().map(|version| version["share"].as_u64().unwrap()).collect()
    };
    assert_eq!(shares(&rollout(&["e", "--to", "m@2", "--share", "10"])), [90, 10], "a canary");
    assert_eq!(shares(&rollout(&["e", "--to", "m@2"])), [0, 100]);
    assert_eq!(asked(&cluster, 6), BTreeMap::from([("m@2".to_owned(), 6)]));
    assert_eq!(shares(&rollout(&["undo", "e"])), [100, 0]);
    assert_eq!(asked(&cluster, 6), BTreeMap::from([("m@1".to_owned(), 6)]));
    let output = load.wait_with_output().expect("it ends");
    let result: Value = serde_json::from_slice(&output.stdout).expect("a result");
    assert_eq!(result["answered"], result["offered"], "{result}");
}

#[test]
fn a_label_moves_under_load_and_fails_no_query() {
    let cluster = Cluster::start(1, 2);
    let follows = "[[endpoint]]\nname = \"e\"\ndeadline = \"900ms\"\nmodel = \"m@stable\"\n";
    let file = cluster.write("labels.toml", models(&cluster) + follows);
    let said = cluster.fails(2, &["apply", "-f", &file]);
    assert!(said.contains("labels: none") && said.contains("weir label m stable VERSION"), "{said}");
    cluster.ok(&["apply", "-f", &cluster.write("models.toml", models(&cluster))]);
    let said = cluster.fails(5, &["label", "m", "stable", "9"]);
    assert!(said.contains("versions of m: 1, 2"), "{said}");
    assert_eq!(cluster.ok(&["label", "m", "stable", "1"]).trim(), "label m@stable created for version 1");
    cluster.ok(&["apply", "-f", &file]);
    assert!(cluster.ok(&["diff", "-f", &file]).contains("the cluster is as"));
    assert_eq!(asked(&cluster, 2), BTreeMap::from([("m@1".to_owned(), 2)]));

    let data = cluster.write("load.npy", npy(&[16, 2], &[0.25; 32]));
    let ask = ["load", "run", "--endpoint", "e", "--data", &data, "--rate", "100", "-o", "json", "--duration"];
    let load = cluster.command(&[&ask[..], &["8s"]].concat()).stdout(Stdio::piped()).spawn().expect("weir runs");
    let told = cluster.ok(&["label", "m", "stable", "2"]);
    assert!(told.ends_with("label m@stable stands for version 2\n"), "{told}");
    assert_eq!(asked(&cluster, 6), BTreeMap::from([("m@2".to_owned(), 6)]));
    let said = cluster.fails(6, &["delete", "model", "m@2"]);
    assert!(said.contains("endpoint e has model m@2 loaded"), "{said}");
    // Back at once, while the first is still loaded.
    cluster.ok(&["label", "m", "stable", "1"]);
    assert_eq!(asked(&cluster, 6), BTreeMap::from([("m@1".to_owned(), 6)]));
    cluster.ok(&["label", "m", "stable", "2"]);
    let output = load.wait_with_output().expect("it ends");
    let result: Value = serde_json::from_slice(&output.stdout).expect("a result");
    assert_eq!(result["answered"], result["offered"], "{result}");

    cluster.wait("the version that was left is gone", std::time::Duration::from_secs(20), |status| {
        let loads = |node: &Value, model: &str| node["models"].as_array().unwrap().iter().any(|known| known == model);
        let all = |model| count(status, "nodes", |node| loads(node, model));
        all("m@2") > 0 && all("m@1") == 0
    });
    let labels: Value = serde_json::from_str(&cluster.ok(&["get", "labels", "-o", "json"])).expect("JSON");
    assert_eq!(
        labels,
        json!([{"label": "m@stable", "version": "2", "goes to": "-", "before": "1", "taken back": "-"}])
    );
    let told: Value = serde_json::from_str(&cluster.ok(&["describe", "endpoint", "e", "-o", "json"])).expect("JSON");
    assert_eq!((&told["stages"][0]["label"], &told["stages"][0]["model"]), (&json!("m@stable"), &json!("m@2")));
    let told: Value =
        serde_json::from_str(&cluster.ok(&["describe", "model", "m@stable", "-o", "json"])).expect("JSON");
    assert_eq!((&told["model"], &told["labels"]), (&json!("m@2"), &json!(["stable"])));
    // Labels are for endpoints that follow them; a rollout names versions.
    assert!(cluster.fails(2, &["rollout", "e", "--to", "m@1"]).contains("weir label m stable VERSION"));
    assert!(cluster.fails(6, &["label", "m", "stable", "--delete"]).contains("endpoint e names m@stable"));
    cluster.ok(&["label", "m", "canary", "1"]);
    let said = cluster.fails(6, &["delete", "model", "m@1"]);
    assert!(said.contains("label m@canary points at model m@1"), "{said}");
    cluster.ok(&["label", "m", "canary", "--delete"]);
    assert_eq!(cluster.ok(&["delete", "model", "m@1"]).trim(), "model m@1 deleted");
}

#[test]
fn a_label_does_not_move_to_what_does_not_load() {
    let cluster = Cluster::start(1, 1);
    let path = cluster.write("v3.synthetic", "width = 2\npanic_above = -1e9\n");
    let bad = format!("[[model]]\nname = \"m\"\nversion = \"3\"\npath = \"{path}\"\n");
    cluster.ok(&["apply", "-f", &cluster.write("models.toml", models(&cluster) + &bad)]);
    cluster.ok(&["label", "m", "stable", "1"]);
    cluster.ok(&["apply", "-f", &file(&cluster, "model = \"m@stable\"")]);
    let said = cluster.fails(1, &["label", "m", "stable", "3"]);
    assert!(
        said.contains("model m@3 does not load") && said.contains("`weir label m stable 1` calls it off"),
        "{said}"
    );
    assert_eq!(asked(&cluster, 2), BTreeMap::from([("m@1".to_owned(), 2)]));
    let told = cluster.ok(&["label", "m", "stable", "1"]);
    assert!(told.contains("stays at version 1, and does not go to 3"), "{told}");
}

#[test]
fn a_version_that_misses_the_objective_is_taken_back_by_itself() {
    let cluster = Cluster::start(1, 2);
    let mut text = String::new();
    for (version, formula) in [("1", "width = 2\nalpha_us = 300\n"), ("2", "width = 2\nalpha_us = 400000\n")] {
        let path = cluster.write(&format!("v{version}.synthetic"), formula);
        text += &format!("[[model]]\nname = \"m\"\nversion = \"{version}\"\npath = \"{path}\"\n");
    }
    text += "[[endpoint]]\nname = \"e\"\ndeadline = \"200ms\"\nmodel = \"m@1\"\n";
    let bad = cluster.write("bad.toml", format!("{text}objective = \"fast\"\n"));
    assert!(cluster.fails(2, &["apply", "-f", &bad]).contains("attainment>=0.99"));
    text += "objective = \"attainment>=0.9\"\n";
    cluster.ok(&["apply", "-f", &cluster.write("objective.toml", text)]);
    let status = || -> Value {
        serde_json::from_str(&cluster.ok(&["rollout", "status", "e", "-o", "json"])).expect("one object")
    };
    assert_eq!((&status()["objective"], &status()["undone"]), (&"attainment>=0.9".into(), &Value::Null));
    let data = cluster.write("load.npy", npy(&[16, 2], &[0.25; 32]));
    let ask = ["load", "run", "--endpoint", "e", "--data", &data, "--rate", "200", "-o", "json", "--duration"];
    let load = cluster.command(&[&ask[..], &["12s"]].concat()).stdout(Stdio::piped()).spawn().expect("weir runs");
    cluster.ok(&["rollout", "e", "--to", "m@2", "--share", "30"]);
    let started = std::time::Instant::now();
    let undone = loop {
        let now = status();
        if now["undone"].is_string() {
            break now;
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{now}");
    };
    assert!(undone["undone"].as_str().unwrap().starts_with("m@2 answered "), "{undone}");
    assert_eq!(undone["versions"].as_array().unwrap().iter().map(|v| &v["share"]).collect::<Vec<_>>(), [100, 0]);
    let output = load.wait_with_output().expect("it ends");
    let result: Value = serde_json::from_slice(&output.stdout).expect("a result");
    // Three in ten were late or refused until then, which a second or two suffice for.
    assert!(result["attainment"].as_f64() > Some(0.85), "{result}");
    // By hand it can go forth again.
    cluster.ok(&["rollout", "e", "--to", "m@2", "--share", "1"]);
    assert_eq!(status()["undone"], Value::Null);
}

/// The label goes to a version that is late for everybody, and comes back to the one that it stood for.
#[test]
fn a_label_whose_version_misses_the_objective_goes_back_by_itself() {
    let cluster = Cluster::start(1, 2);
    let mut text = String::new();
    for (version, formula) in [("1", "width = 2\nalpha_us = 300\n"), ("2", "width = 2\nalpha_us = 400000\n")] {
        let path = cluster.write(&format!("v{version}.synthetic"), formula);
        text += &format!("[[model]]\nname = \"m\"\nversion = \"{version}\"\npath = \"{path}\"\n");
    }
    cluster.ok(&["apply", "-f", &cluster.write("models.toml", text.clone())]);
    cluster.ok(&["label", "m", "stable", "1"]);
    text += "[[endpoint]]\nname = \"e\"\ndeadline = \"200ms\"\nmodel = \"m@stable\"\nobjective = \"attainment>=0.9\"\n";
    cluster.ok(&["apply", "-f", &cluster.write("follows.toml", text)]);
    let data = cluster.write("load.npy", npy(&[16, 2], &[0.25; 32]));
    let ask = ["load", "run", "--endpoint", "e", "--data", &data, "--rate", "100", "-o", "json", "--duration"];
    let mut load = cluster.command(&[&ask[..], &["60s"]].concat()).stdout(Stdio::null()).spawn().expect("weir runs");
    cluster.ok(&["label", "m", "stable", "2"]);
    let label = || -> Value {
        let labels: Value = serde_json::from_str(&cluster.ok(&["get", "labels", "-o", "json"])).expect("JSON");
        labels[0].clone()
    };
    let started = std::time::Instant::now();
    let back = loop {
        let now = label();
        if now["taken back"] != "-" && now["version"] == "1" {
            break now;
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(30), "{now}");
    };
    assert!(back["taken back"].as_str().unwrap().starts_with("endpoint e answered "), "{back}");
    let told: Value = serde_json::from_str(&cluster.ok(&["describe", "endpoint", "e", "-o", "json"])).expect("JSON");
    assert_eq!(
        (&told["stages"][0]["model"], &told["stages"][0]["label_taken_back"]),
        (&json!("m@1"), &back["taken back"])
    );
    load.kill().expect("it is ours to kill");
    load.wait().expect("it ended");
    let result: Value = serde_json::from_str(&cluster.ok(&[&ask[..], &["2s"]].concat())).expect("a result");
    assert!(result["attainment"].as_f64() > Some(0.9), "nothing is late any more: {result}");
    // Whoever moves it by hand knows.
    cluster.ok(&["label", "m", "stable", "2"]);
    assert_eq!(label()["taken back"], "-");
}

#[test]
fn a_shadow_sees_copies_and_answers_nobody() {
    let cluster = Cluster::start(1, 1);
    let demo = |name: &str| weir_tests::processes::root().join("demo").join(name).display().to_string();
    let models = ["tiny", "mid"].map(|name| {
        format!("[[model]]\nname = \"{name}\"\nversion = \"1\"\npath = \"{}\"\n", demo(&format!("{name}.onnx")))
    });
    let endpoint = "[[endpoint]]\nname = \"e\"\ndeadline = \"5s\"\nlabel_output = \"probs\"\nmodel = \"tiny@1\"\nshadow = \"mid@1\"\n";
    cluster.ok(&["apply", "-f", &cluster.write("shadow.toml", models.concat() + endpoint)]);
    let out = cluster.ok(&["predict", "e", "--input", &demo("images.npy"), "--rows", "0:60", "-o", "json"]);
    assert!(out.lines().count() == 60 && out.lines().all(|line| line.contains("\"tiny@1\"")));
    let started = std::time::Instant::now();
    let shadow = loop {
        let told: Value = serde_json::from_str(&cluster.ok(&["top", "-o", "json"])).expect("one object");
        let shadow = told["endpoints"][0]["shadow"].clone();
        if shadow["rows"].as_u64() == Some(60) {
            break shadow;
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{shadow}");
    };
    let agreed = shadow["agreed"].as_u64().expect("a count");
    assert!((40..60).contains(&agreed), "the two differ now and then: {shadow}");
}
