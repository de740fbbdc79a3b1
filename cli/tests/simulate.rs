//! `weir simulate` as a process: what it prints, what repeats, and what it refuses.

use std::process::{Command, Output};

use serde_json::Value;

fn weir(arguments: &[&str]) -> Output {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WEIR_")) {
        command.env_remove(name);
    }
    command.args(arguments).current_dir(root).output().unwrap()
}

const FASHION: [&str; 9] = [
    "simulate",
    "-f",
    "demo/fashion.toml",
    "--endpoint",
    "fashion",
    "--data",
    "demo/images.npy",
    "--labels",
    "demo/labels.npy",
];

fn simulate(more: &[&str]) -> Output {
    weir(&[&FASHION[..], more].concat())
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn the_demo_is_as_right_in_virtual_time_as_it_is_offline_and_a_seed_repeats() {
    let folder = tempfile::tempdir().unwrap();
    let profile = |name: &str, alpha: f64, beta: f64| {
        let path = folder.path().join(format!("{name}.json"));
        let points: Vec<Value> =
            [1, 8, 64].iter().map(|b| serde_json::json!({"batch": b, "us": alpha + beta * f64::from(*b)})).collect();
        std::fs::write(&path, serde_json::json!({"model": format!("fashion-{name}@1"), "points": points}).to_string())
            .unwrap();
        path.display().to_string()
    };
    let given = [profile("tiny", 100.0, 10.0), profile("mid", 300.0, 250.0), profile("big", 1000.0, 2500.0)].join(",");
    // Fixed thresholds, as offline: see demo/README.md.
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let fixed = std::fs::read_to_string(format!("{root}/demo/fashion.toml")).unwrap();
    let fixed = fixed.replace("path = \"", &format!("path = \"{root}/demo/"));
    let fixed = fixed.replace("gain = \"tiny-mid.csv\"", "confidence_below = 0.95");
    let fixed = fixed.replace("gain = \"mid-big.csv\"", "confidence_below = 0.8");
    let file = folder.path().join("fashion.toml");
    std::fs::write(&file, fixed).unwrap();
    let file = file.display().to_string();
    // 5,000 queries of the 500 rows: each is asked ten times. Slowed devices have no noise.
    let flags = ["--profile", &given, "--pace", "0.5", "--arrivals", "constant", "--rate", "250", "--seed", "3"];
    let flags = [&flags[..], &["--duration", "20001ms", "--cpu-slots", "2", "-o", "json"]].concat();
    let simulate = |flags: &[&str]| weir(&[&["simulate", "-f", &file], &FASHION[3..], flags].concat());
    let (first, second) = (simulate(&flags), simulate(&flags));
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let (first, second) = (json(&first), json(&second));
    assert_eq!(first["offered"], 5000);
    assert_eq!(first["within_deadline"], 5000, "a load far below capacity");
    // 469 of 500 is what the cascade gets right, by stages 308, 127 and 65.
    assert_eq!(first["accuracy"], 0.938);
    assert_eq!(first["stages"], serde_json::json!({"big": 650, "mid": 1270, "tiny": 3080}));
    for key in ["offered", "latency_us", "stages", "per_second", "histogram"] {
        assert_eq!(first[key], second[key], "{key}");
    }
}

#[test]
fn what_cannot_be_simulated_is_told_why() {
    let refused = |code: i32, arguments: &[&str], words: &str| {
        let output = weir(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(words), "{error}");
    };
    let with = |more: &[&'static str]| [&FASHION[..], more].concat();
    refused(2, &with(&["--rate", "10", "--target", "oip-http://127.0.0.1:1/m"]), "asks no server");
    refused(2, &with(&["--rate", "10", "--nodes", "0"]), "at least one");
    refused(2, &with(&["--rate", "-1"]), "");
    refused(2, &with(&["--rate", "10", "--profile", "nowhere.json"]), "--profile nowhere.json");
    refused(2, &with(&["--rate", "10", "--policy", "edf"]), "no scheduling policy");
    let mut other = with(&["--rate", "10"]);
    other[4] = "clothes";
    refused(5, &other, "describes no endpoint clothes; it has fashion");
    // A goal that is missed is exit code 1, and the result stands on stdout all the same.
    let missed = simulate(&["--rate", "20", "--duration", "2s", "--seed", "1", "--goal", "p99<=1us", "-o", "json"]);
    assert_eq!((missed.status.code(), json(&missed)["valid"].as_bool()), (Some(1), Some(true)));
}
