//! Flag beats variable beats file, also where they exclude each other; a bad file stops everything before it starts.

use std::process::Command;

use weir_tests::processes::{Cluster, alone, root};

/// Runs a command that fails with this exit code; returns its error.
fn fails(code: i32, command: &mut Command) -> String {
    let output = command.output().expect("weir runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{error}");
    error
}

#[test]
fn a_rate_that_a_scenario_has_no_use_for_is_refused() {
    let scenario = root().join("benches/do_steady_callers_suffer_from_bursty_ones.toml").display().to_string();
    let error = fails(2, &mut alone(&["load", "run", "--scenario", &scenario, "--rate", "500"]));
    assert!(error.contains("has arrivals of its own"), "{error}");
}

#[test]
fn flag_beats_variable_beats_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weir.toml");
    let token = "ab".repeat(32);
    // Nobody listens on ports so low; the error says whom it tried.
    std::fs::write(&file, format!("coordinators = ['127.0.0.1:1', '127.0.0.1:2']\ntoken = '{token}'")).unwrap();
    let tried = |command: &mut Command, which: &str| {
        let error = fails(3, command.env("WEIR_CONFIG", &file));
        assert!(error.contains(&format!("no coordinator of {which} can be reached")), "{error}");
    };
    tried(&mut alone(&["status"]), "127.0.0.1:1, 127.0.0.1:2");
    tried(alone(&["status"]).env("WEIR_COORDINATORS", "127.0.0.1:3"), "127.0.0.1:3");
    let mut flag = alone(&["status", "--coordinators", "127.0.0.1:4"]);
    tried(flag.env("WEIR_COORDINATORS", "127.0.0.1:3"), "127.0.0.1:4");
    // The variable's file is not there: it is used instead of the configuration's token, and not instead of a flag's.
    assert!(fails(4, alone(&["status"]).env("WEIR_CONFIG", &file).env("WEIR_TOKEN_FILE", "none")).contains("none"));
    let mut flag = alone(&["status", "--token", &token]);
    tried(flag.env("WEIR_TOKEN_FILE", "none"), "127.0.0.1:1, 127.0.0.1:2");
    // A variable that is no number is told, whatever the file says.
    std::fs::write(&file, "[node]\npace = 0.5").unwrap();
    assert!(fails(2, alone(&["node"]).env("WEIR_CONFIG", &file).env("WEIR_PACE", "fast")).contains("'fast'"));
    // A flag that excludes what a variable says.
    let closed = ["load", "run", "--endpoint", "e", "--data", "none.npy", "--closed", "4"];
    assert!(fails(2, alone(&closed).env("WEIR_RATE", "400")).contains("none.npy"));
    // Not even if it is wrong; the file is read all the same.
    std::fs::write(&file, "[load.run]\nseeed = 7").unwrap();
    let mut wrong = alone(&closed);
    wrong.env("WEIR_CONFIG", &file).env("WEIR_RATE", "fast").env("WEIR_ARRIVALS", "constant");
    assert!(fails(2, &mut wrong).contains("weir.toml:2:1: unknown key `seeed`; did you mean `seed`?"));
    std::fs::write(&file, "[load.run]\nseed = 7").unwrap();
    assert!(fails(2, &mut wrong).contains("none.npy"));
}

#[test]
fn a_variable_turns_off_what_the_file_turns_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weir.toml");
    let data = folder.path().join("c1");
    let common = format!("name = 'c1'\nlisten = 'nowhere'\ndata-dir = '{}'", data.display());
    let start = |text: &str, off: bool| {
        std::fs::write(&file, format!("{common}\n{text}")).unwrap();
        let mut command = alone(&["coordinator"]);
        command.env("WEIR_CONFIG", &file);
        if off {
            command.env("WEIR_BOOTSTRAP", "false");
        }
        let output = command.output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let both = "bootstrap = true\njoin = ['127.0.0.1:1']";
    let told = start(both, false);
    assert!(told.contains("weir.toml:4:13: the argument '--bootstrap' cannot be used with '--join <JOIN>'"), "{told}");
    assert!(start(both, true).contains("cannot listen on nowhere"));
    assert!(start("join = ['127.0.0.1:1']", true).contains("cannot listen on nowhere"));
}

#[test]
fn a_file_starts_a_node_and_asks_it() {
    let cluster = Cluster::start(1, 0);
    let text = format!(
        "coordinators = '{}'\ntoken-file = '{}'\n[node]\nname = 'n1'\nlisten = '127.0.0.1:0'\ndata-dir = '{}'\ntoken-file = '{}'\ncpu-slots = 3",
        cluster.addresses(),
        cluster.path("c1/admin.token"),
        cluster.path("n1"),
        cluster.path("c1/member.token")
    );
    let file = cluster.write("weir.toml", text);
    let _node = weir_tests::processes::Process::start(&["node", "--config", &file]);
    cluster.wait("the node joins", std::time::Duration::from_secs(20), |status| {
        status["nodes"][0]["devices"][0]["slots"] == 3
    });
    let output = alone(&["get", "nodes", "--config", &file]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("n1"), "{output:?}");
    let file = cluster.write("bad.toml", "[node]\ncpu_slots = 3");
    let output = alone(&["status", "-o", "json", "--config", &file]).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &told["error"]["code"]), (Some(2), &"usage".into()));
    assert!(told["error"]["message"].as_str().unwrap().ends_with("did you mean `cpu-slots`?"), "{told}");
}
