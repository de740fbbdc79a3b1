//! Versions: queries split over them, and an endpoint that moves to another one while it is asked.

use std::collections::BTreeMap;
use std::process::Stdio;

use serde_json::Value;
use weir_tests::processes::{Cluster, npy};

/// Two versions of a model, and a third that does not load; the endpoint `e` as `versions` says.
fn file(cluster: &Cluster, versions: &str) -> String {
    let mut text = String::new();
    for (version, formula) in [("1", "width = 2\nalpha_us = 300\n"), ("2", "width = 2\nalpha_us = 400\n")] {
        let path = cluster.write(&format!("v{version}.synthetic"), formula);
        text += &format!("[[model]]\nname = \"m\"\nversion = \"{version}\"\npath = \"{path}\"\n");
    }
    text += &format!("[[endpoint]]\nname = \"e\"\ndeadline = \"5s\"\n{versions}\n");
    cluster.write("versions.toml", text)
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
