//! The page that shows a cluster at work.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use weir_tests::processes::{Cluster, Process, npy};

use crate::gateway::{eventually, exchange, get, http, metric};

pub const METRICS: [&str; 2] = ["--metrics", "127.0.0.1:0"];

fn dashboard(cluster: &Cluster) -> Process {
    let (coordinators, token) = (cluster.addresses(), cluster.path("c1/admin.token"));
    let arguments = ["dashboard", "--listen", "127.0.0.1:0", "--coordinators", &coordinators, "--token-file", &token];
    Process::start(&arguments)
}

/// The newest look at the cluster.
fn last(page: &Process) -> Option<Value> {
    get(&page.address, "/api/frames").json()["frames"].as_array()?.last().cloned()
}

#[test]
fn what_it_shows_is_what_metrics_tell() {
    let cluster = Cluster::start_with(1, 1, &METRICS);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\nbeta_us = 20\n", "");
    let page = dashboard(&cluster);
    let input = cluster.write("x.npy", npy(&[30, 2], &[1.0; 60]));
    cluster.ok(&["predict", "echo", "--input", &input]);
    let answered = metric(&cluster.nodes[0], "weir_answered_total{endpoint=\"echo\"}");
    assert_eq!(answered, 30.0);
    let shown = |frame: &Value| frame["endpoints"][0]["ever"]["answered"].as_f64();
    eventually("it shows them", || last(&page).as_ref().and_then(shown) == Some(answered));
    let frame = last(&page).unwrap();
    assert_eq!(frame["placement"][0]["model"], "echo@1");
    assert_eq!(frame["nodes"][0]["state"], "up");
    assert_eq!(frame["endpoints"][0]["deadline_us"], 1_000_000);
    // Only what is new is told to who has the rest.
    let n = frame["n"].as_u64().unwrap();
    let later = get(&page.address, &format!("/api/frames?after={n}")).json();
    assert!(later["frames"].as_array().unwrap().iter().all(|frame| frame["n"].as_u64() > Some(n)));
    for path in ["/", "/app.js", "/style.css", "/favicon.svg"] {
        assert_eq!(get(&page.address, path).status, 200, "{path}");
    }
    in_a_browser(&page.address, answered);
}

/// Nothing on the console, and the same figures; without a browser of the Chromium family that is said, and nothing looked at.
fn in_a_browser(address: &str, answered: f64) {
    let profile = tempfile::tempdir().unwrap();
    let opened = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"])
        .args(["--no-first-run", "--virtual-time-budget=4000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{address}/"))
        .stdin(Stdio::null())
        .output();
    let Ok(opened) = opened else {
        assert!(std::env::var_os("CI_BROWSER").is_none(), "chromium was there when the tests began");
        // Past what a test that passes prints, which nobody sees.
        let _ = writeln!(std::io::stderr(), "skipped: no chromium here (package chromium), the page was not opened");
        return;
    };
    let told = String::from_utf8_lossy(&opened.stderr);
    assert!(opened.status.success(), "{told}");
    let console: Vec<&str> = told.lines().filter(|line| line.contains(":CONSOLE")).collect();
    assert!(console.is_empty(), "{console:?}");
    let page = String::from_utf8_lossy(&opened.stdout);
    let figure = format!("data-figure=\"answered\">{answered}<");
    assert!(page.contains(&figure), "{figure} is not in\n{page}");
}

/// Counts are of stages, not of places: one that comes between two others takes nothing over.
#[test]
fn a_stage_keeps_its_count_when_another_comes() {
    let cluster = Cluster::start_with(1, 1, &METRICS);
    let three = cluster.demo_with(["confidence_below = 0.9"; 2]);
    let text = std::fs::read_to_string(&three).unwrap();
    let (before, after) =
        (text.find("[[endpoint.stage]]\nname = \"mid\"").unwrap(), text.rfind("[[endpoint.stage]]").unwrap());
    let two = cluster.write("two.toml", format!("{}{}", &text[..before], &text[after..]));
    let ask = |stage: &str| {
        let ask = ["predict", "fashion", "--input", "demo/images.npy", "--deadline", "20s", "-o", "json"];
        cluster.ok(&[&ask[..], &["--min-stage", stage, "--max-stage", stage]].concat());
    };
    let counted = |stage: &str| {
        metric(&cluster.nodes[0], &format!("weir_cascade_stage_total{{endpoint=\"fashion\",stage=\"{stage}\"}}"))
    };
    cluster.ok(&["apply", "-f", &two]);
    ask("big");
    assert_eq!((counted("tiny"), counted("big")), (0.0, 500.0));
    cluster.ok(&["apply", "-f", &three]);
    ask("mid");
    assert_eq!((counted("tiny"), counted("mid"), counted("big")), (0.0, 500.0, 500.0));
    eventually("reports tell the same", || {
        let described = cluster.ok(&["describe", "endpoint", "fashion", "-o", "json"]);
        let described: Value = serde_json::from_str(&described).unwrap();
        (0..3).map(|i| described["stages"][i]["answered"].as_u64()).eq([0, 500, 500].map(Some))
    });
    cluster.ok(&["apply", "-f", &two]);
    ask("tiny");
    assert_eq!((counted("tiny"), counted("mid"), counted("big")), (500.0, 500.0, 500.0));
}

/// Of a group of three: one leads, and the others are told by it.
#[test]
fn coordinators_tell_metrics_too() {
    let mut cluster = Cluster::start(3, 0);
    let token = cluster.path("c1/member.token");
    let (data, join) = (cluster.path("c4"), cluster.addresses());
    let arguments = ["coordinator", "--name", "c4", "--data-dir", &data, "--listen", "127.0.0.1:0", "--join", &join];
    let fourth = Process::start(&[&arguments[..], &["--token-file", &token, "--metrics", "127.0.0.1:0"]].concat());
    eventually("it votes", || metric(&fourth, "weir_coordinator_voters") == 4.0);
    assert_eq!(metric(&fourth, "weir_coordinator_has_leader"), 1.0);
    assert_eq!(get(&fourth.doors["metrics"], "/health/ready").status, 200);
    assert!(metric(&fourth, "weir_coordinator_applied_index") > 0.0);
    // Alone it has no leader, and says so.
    cluster.coordinators.iter_mut().for_each(Process::kill);
    eventually("it knows", || get(&fourth.doors["metrics"], "/health/ready").status == 503);
    assert_eq!(metric(&fourth, "weir_coordinator_has_leader"), 0.0);
}

#[test]
fn a_spike_is_sent_from_the_page_alone_and_one_at_a_time() {
    let cluster = Cluster::start_with(1, 1, &METRICS);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\nbeta_us = 20\n", "");
    let page = dashboard(&cluster);
    let post =
        |headers: &[(&str, &str)], body: &str| http(&page.address, "POST", "/api/spike", headers, body.as_bytes());
    let own = ("x-weir-dashboard", "1");
    let good = "{\"endpoint\": \"echo\", \"rate\": 100, \"seconds\": 1.5}";
    assert_eq!(post(&[], good).status, 403, "a form of another page has not the header");
    let under_another_name = b"GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert_eq!(exchange(&page.address, under_another_name).status, 403);
    assert_eq!(post(&[own], "{\"endpoint\": \"echo\", \"rate\": 1e9, \"seconds\": 1}").status, 400);
    let told = || get(&page.address, "/api/frames").json()["spike"].clone();
    assert_eq!(told(), Value::Null);
    assert_eq!(post(&[own], good).status, 200);
    eventually("it is under way", || told()["sent"].as_u64() > Some(10));
    // One waits at most.
    assert_eq!(post(&[own], good).status, 200);
    assert_eq!(post(&[own], good).status, 409);
    eventually("it is over", || told()["over"] == true);
    std::thread::sleep(Duration::from_millis(300));
    eventually("so is the second", || told()["over"] == true && told()["sent"].as_u64() > Some(50));
    let spike = told();
    assert_eq!(spike["answered"], spike["sent"], "{spike}");
    assert!(metric(&cluster.nodes[0], "weir_answered_total{endpoint=\"echo\"}") > 200.0);
    assert_eq!(post(&[own], "{\"endpoint\": \"nobody\", \"rate\": 10, \"seconds\": 1}").status, 200);
    eventually("it says so", || told()["error"].as_str().is_some_and(|error| error.contains("not found")));
}
