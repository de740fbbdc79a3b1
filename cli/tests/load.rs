//! `weir load` as a process, against a planted server of the open inference protocol: exit codes, and what stands on stdout.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

/// How a server goes wrong.
#[derive(Clone, Copy)]
struct Ill {
    /// After so many queries it is gone.
    dies_after: u64,
    /// After so many queries it refuses all, and still tells what it takes.
    refuses_after: u64,
    /// Of so many queries it answers one, and refuses the others.
    answers_one_in: u64,
}

const WELL: Ill = Ill { dies_after: u64::MAX, refuses_after: u64::MAX, answers_one_in: 1 };

/// Answers every query with class 2.
struct Server {
    address: String,
    connections: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
}

impl Server {
    fn start(ill: Ill) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (connections, asked, dead) =
            (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let server = Server { address, connections: Arc::clone(&connections), asked: Arc::clone(&asked) };
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if dead.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let (asked, dead) = (Arc::clone(&asked), Arc::clone(&dead));
                std::thread::spawn(move || serve(socket, ill, &asked, &dead));
            }
        });
        server
    }

    fn target(&self) -> String {
        format!("oip-http://{}/m", self.address)
    }
}

fn serve(mut socket: TcpStream, ill: Ill, asked: &AtomicU64, dead: &AtomicBool) {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    let address = socket.local_addr().unwrap();
    loop {
        while let Some(head) = read.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) {
            let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
            let length = text.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            let length: usize = length.unwrap_or(0);
            if read.len() < head + length {
                break;
            }
            read.drain(..head + length);
            let body = match text.split_whitespace().nth(1).unwrap() {
                "/v2" => "{}",
                "/v2/models/m" => {
                    r#"{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"probs"}]}"#
                }
                "/v2/models/m/infer" => {
                    let before = asked.fetch_add(1, Ordering::SeqCst);
                    if before >= ill.refuses_after || !before.is_multiple_of(ill.answers_one_in) {
                        write!(socket, "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").unwrap();
                        continue;
                    }
                    if before >= ill.dies_after || dead.load(Ordering::SeqCst) {
                        dead.store(true, Ordering::SeqCst);
                        // The listener ends with the next connection.
                        let _ = TcpStream::connect(address);
                        return;
                    }
                    r#"{"outputs":[{"name":"probs","datatype":"FP32","shape":[1,3],"data":[0.1,0.2,0.7]}]}"#
                }
                other => panic!("{other}"),
            };
            write!(socket, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) => read.extend(&buffer[..n]),
        }
    }
}

/// A folder with rows to ask for, and labels.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        files.write("x.jsonl", &"[1,2]\n".repeat(10));
        files.write("y.txt", &"2\n".repeat(10));
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.path().join(name), text).unwrap();
        self.path(name)
    }
}

fn weir(arguments: &[&str]) -> Command {
    let mut command = Command::new(PathBuf::from(env!("CARGO_BIN_EXE_weir")));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEIR_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    weir(arguments).output().unwrap()
}

fn result(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)))
}

fn outcomes(result: &Value) -> u64 {
    ["answered", "rejected", "expired", "failed", "unknown"].iter().map(|word| result[word].as_u64().unwrap()).sum()
}

#[test]
fn a_run_prints_the_contract_and_writes_its_files() {
    let (server, files) = (Server::start(WELL), Files::new());
    let (a, b) = (files.path("a.json"), files.path("b.json"));
    for save in [&a, &b] {
        let output = run(&[
            "load",
            "run",
            "--target",
            &server.target(),
            "--data",
            &files.path("x.jsonl"),
            "--labels",
            &files.path("y.txt"),
            "--rate",
            "50",
            "--duration",
            "1s",
            "--deadline",
            "5s",
            "--seed",
            "7",
            "-o",
            "json",
            "--save",
            save,
            "--report",
            &files.path("r.html"),
            "--hdr",
            &files.path("a.hlog"),
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let result = result(&output);
        assert_eq!((result["seed"].as_u64(), result["deadline_us"].as_u64()), (Some(7), Some(5_000_000)));
        assert_eq!(result["offered"], result["answered"]);
        assert_eq!(result["offered"].as_u64(), Some(outcomes(&result)));
        assert_eq!(
            (&result["accuracy"], &result["attainment"], &result["valid"]),
            (&1.0.into(), &1.0.into(), &true.into())
        );
        for field in ["goodput_per_s", "correct_within_deadline", "latency_us", "stages", "send_lag_us", "per_second"] {
            assert!(!result[field].is_null(), "{field}");
        }
        assert_eq!(result["offered"].as_u64(), Some(server.asked.swap(0, Ordering::SeqCst)), "each was sent once");
    }
    let read = |name: &str| std::fs::read_to_string(files.path(name)).unwrap();
    assert!(read("r.html").contains("<svg") && read("a.hlog").contains("HISTF"));
    let compared = run(&["load", "compare", &a, &b]);
    assert_eq!(compared.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&compared.stdout).contains("too short to tell"));
    let bad = run(&["load", "compare", &a, &files.path("x.jsonl")]);
    assert_eq!(bad.status.code(), Some(2));
}

#[test]
fn bad_input_is_told_and_nothing_is_sent() {
    let (server, files) = (Server::start(WELL), Files::new());
    let empty = files.write("empty.csv", "");
    let other = files.write("three.txt", "1\n2\n3\n");
    let scenario = files.write("s.toml", "question = 'q'\nrate = -1\n[[endpoint]]\nname = 'm'\ndata = 'x.jsonl'\n");
    let nothing = files.write("nothing.jsonl", "");
    let (data, trace) = (files.path("x.jsonl"), format!("trace:{empty}"));
    let (nowhere, folder) = (files.path("nowhere/r.html"), files.path(""));
    for (arguments, says) in [
        (vec!["--data", &data, "--rate", "-5"], "-5 is no rate"),
        (vec!["--data", &data, "--rate", "nan"], "is no rate"),
        (vec!["--data", &data], "need a rate"),
        (vec!["--data", &data, "--rate", "5", "--labels", &other], "3 labels for 10 rows"),
        (vec!["--data", &data, "--rate", "5", "--labels", "nowhere.npy"], "cannot read nowhere.npy"),
        (vec!["--data", &data, "--arrivals", &trace], "empty.csv"),
        (vec!["--data", &data, "--arrivals", "trace:nowhere.csv"], "cannot read the trace nowhere.csv"),
        (vec!["--data", &nothing, "--rate", "5"], "it has no rows"),
        (vec!["--data", "nowhere.npz", "--rate", "5"], "cannot read nowhere.npz"),
        (vec!["--data", &data, "--rate", "5", "--duration", "0s"], "--duration 0s"),
        (vec!["--data", &data, "--rate", "5", "--rows", "0"], "--rows"),
        (vec!["--data", &data, "--rate", "5", "--goal", "speed>1"], "is no goal"),
        (vec!["--data", &data, "--rate", "5", "--metadata", &nothing], "nothing.jsonl is no metadata"),
        (vec!["--scenario", &scenario], "s.toml:2:8"),
        (vec!["--scenario", "nowhere.toml"], "cannot read the scenario nowhere.toml"),
        (vec!["--data", &data, "--rate", "5", "--report", &nowhere], "--report"),
        (vec!["--data", &data, "--rate", "5", "--save", &folder], "in a folder that is there"),
    ] {
        let target = server.target();
        let output = run(&[&["load", "run", "--target", &target, "--deadline", "1s"], &arguments[..]].concat());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains(says), "{arguments:?}: {told}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0, "nobody even connected");
}

#[test]
fn a_target_that_is_not_there_is_exit_code_3() {
    let files = Files::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for scheme in ["oip-http", "oip-grpc"] {
        let target = format!("{scheme}://{free}/m");
        let output = run(&["load", "run", "--target", &target, "--data", &files.path("x.jsonl"), "--rate", "5"]);
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A second of sixty queries, in even steps.
fn a_second_of(server: &Server, files: &Files, more: &[&str]) -> Output {
    let (target, data) = (server.target(), files.path("x.jsonl"));
    let load = ["load", "run", "--target", &target, "--data", &data, "--rate", "60", "--arrivals", "constant"];
    run(&[&load[..], &["--duration", "1s", "--deadline", "5s"], more].concat())
}

#[test]
fn a_target_that_dies_midway_leaves_a_complete_report_and_a_word() {
    let (server, files) = (Server::start(Ill { dies_after: 30, ..WELL }), Files::new());
    let output = a_second_of(&server, &files, &["-o", "json", "--report", &files.path("r.html")]);
    let (result, told) = (result(&output), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!((result["offered"].as_u64(), result["answered"].as_u64()), (Some(59), Some(30)));
    assert_eq!(outcomes(&result), 59);
    assert!(result["errors"][0][0].as_str().unwrap().contains("no connection to"), "{}", result["errors"]);
    // The thirtieth falls due after half a second.
    assert!((0.45..0.55).contains(&result["silent_from_s"].as_f64().unwrap()), "{result}");
    let one = told.lines().collect::<Vec<_>>();
    assert!(one.len() == 1 && one[0].starts_with("error: the target stopped answering at t=0.5 s"), "{told}");
    assert!(std::fs::read_to_string(files.path("r.html")).unwrap().contains("stopped answering at t=0.5 s"));
}

/// Overload is what is measured, not an error, however much is refused.
#[test]
fn a_target_that_refuses_most_of_a_load_is_a_measurement() {
    let (server, files) = (Server::start(Ill { answers_one_in: 4, ..WELL }), Files::new());
    let output = a_second_of(&server, &files, &["-o", "json"]);
    let (result, told) = (result(&output), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), told.as_ref()), (Some(0), ""));
    assert_eq!((result["answered"].as_u64(), result["rejected"].as_u64()), (Some(15), Some(44)), "{result}");
    assert!(result["silent_from_s"].is_null(), "{result}");
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_with_the_results_so_far() {
    let (server, files) = (Server::start(WELL), Files::new());
    let child = weir(&[
        "load",
        "run",
        "--target",
        &server.target(),
        "--data",
        &files.path("x.jsonl"),
        "--rate",
        "100",
        "--duration",
        "600s",
        "--deadline",
        "5s",
        "-o",
        "json",
    ]);
    let child = { child }.spawn().unwrap();
    while server.asked.load(Ordering::SeqCst) < 20 {
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let result = result(&output);
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((&result["interrupted"], result["offered"].as_u64()), (&true.into(), Some(outcomes(&result))));
    assert!(result["answered"].as_u64().unwrap() >= 20 && result["duration_s"].as_f64().unwrap() < 600.0);
}

#[test]
fn a_goal_that_is_missed_is_exit_code_1_and_a_capacity_is_searched() {
    let (server, files) = (Server::start(WELL), Files::new());
    let (target, data) = (server.target(), files.path("x.jsonl"));
    let asked = ["--target", &target, "--data", &data, "--deadline", "5s", "--goal", "p50<=1us"];
    let output = run(&[&["load", "run", "--rate", "50", "--duration", "1s"], &asked[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the goal p50<=1us was missed"));
    let capacity = [
        &["load", "capacity", "--duration", "1s", "--rate", "50", "--rate-max", "100", "-o", "json"],
        &asked[..6],
        &["--goal", "attainment>=0.5"],
    ]
    .concat();
    let output = run(&capacity);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let result = result(&output);
    assert_eq!((&result["met_at"], &result["complete"]), (&100.0.into(), &true.into()), "{result}");
}

#[test]
fn a_scenario_keeps_what_each_part_was_asked_and_a_comparison_tells_other_loads() {
    let (server, files) = (Server::start(WELL), Files::new());
    let ran = |name: &str, rate: u32| {
        let text = format!(
            "question = 'q'\nduration = '1s'\nseed = 3\ngoal = 'attainment>=0.5'\n[[endpoint]]\nname = 'm'\nas = 'steady'\n\
            data = 'x.jsonl'\ndeadline = '5s'\narrivals = 'constant'\nrate = 20\n[[endpoint]]\nname = 'm'\nas = 'other'\n\
            data = 'x.jsonl'\nlabels = 'y.txt'\ndeadline = '4s'\nrate = {rate}\n"
        );
        let (scenario, saved) = (files.write(&format!("{name}.toml"), &text), files.path(name));
        let arguments =
            ["load", "run", "--target", &server.target(), "--scenario", &scenario, "--save", &saved, "-o", "json"];
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        (saved, result(&output))
    };
    let ((a, told), (b, _)) = (ran("a", 30), ran("b", 40));
    assert_eq!((&told["goal"], &told["duration_asked_s"]), (&"attainment>=0.5".into(), &1.0.into()));
    let [steady, other] = &told["parts"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!(
        (&steady["name"], &steady["arrivals"], &steady["rate"]),
        (&"steady".into(), &"constant".into(), &20.0.into())
    );
    assert_eq!(
        (&steady["deadline_us"], &steady["labels"], &steady["weight"]),
        (&5_000_000.into(), &Value::Null, &Value::Null)
    );
    assert_eq!((&other["arrivals"], &other["rate"], &other["rows"]), (&"poisson".into(), &30.0.into(), &10.into()));
    assert_eq!((&other["data"], &other["labels"]), (&files.path("x.jsonl").into(), &files.path("y.txt").into()));
    let shown = |a: &str, b: &str| String::from_utf8(run(&["load", "compare", a, b]).stdout).unwrap();
    let different = shown(&a, &b);
    assert!(different.contains("load of other: poisson at 30 a second and poisson at 40 a second"), "{different}");
    assert!(different.contains("not offered the same load"), "{different}");
    assert!(!shown(&a, &a).contains("not offered the same load"));
}

#[test]
fn a_target_that_dies_in_a_search_leaves_the_rates_until_then() {
    // With a long deadline no run is invalid on a busy machine, and made again.
    let files = Files::new();
    for json in [true, false] {
        // Two runs of 50 queries at the first rate; it dies in one of the next.
        let server = Server::start(Ill { dies_after: 180, ..WELL });
        let (target, data) = (server.target(), files.path("x.jsonl"));
        let mut arguments = vec!["load", "capacity", "--target", &target, "--data", &data, "--deadline", "60s"];
        arguments.extend(["--goal", "attainment>=0.99", "--duration", "1s", "--arrivals", "constant"]);
        arguments.extend(if json { ["-o", "json"] } else { ["-o", "table"] });
        let output = run(&arguments);
        let (told, shown) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert_eq!(output.status.code(), Some(3), "{told}");
        assert!(told.contains("nothing answers at") && told.contains("found until then"), "{told}");
        if !json {
            assert!(shown.contains("2 of 2") && shown.contains("at least 50.0"), "{shown}");
            continue;
        }
        let found = result(&output);
        assert_eq!((&found["complete"], &found["interrupted"]), (&false.into(), &false.into()), "{found}");
        assert_eq!((&found["met_at"], &found["missed_at"]), (&50.0.into(), &Value::Null), "{found}");
        assert_eq!(found["trials"][0]["met"], 2, "{found}");
        assert_eq!(found["error"]["code"], "unreachable", "{found}");
    }
}

/// Its front still stands: what it takes is told, and every query is refused.
#[test]
fn a_target_that_answers_nothing_any_more_has_no_capacity_near_zero() {
    let (server, files) = (Server::start(Ill { refuses_after: 110, ..WELL }), Files::new());
    let (target, data) = (server.target(), files.path("x.jsonl"));
    let arguments = ["load", "capacity", "--target", &target, "--data", &data, "--deadline", "60s", "-o", "json"];
    let output =
        run(&[&arguments[..], &["--goal", "attainment>=0.99", "--duration", "1s", "--arrivals", "constant"]].concat());
    let found = result(&output);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((&found["complete"], &found["met_at"]), (&false.into(), &50.0.into()), "{found}");
    assert!(found["error"]["message"].as_str().unwrap().contains("503"), "{found}");
}

#[cfg(unix)]
#[test]
fn an_interrupted_search_ends_with_the_rates_until_then() {
    let (server, files) = (Server::start(WELL), Files::new());
    let mut command = weir(&["load", "capacity", "--target", &server.target(), "--data", &files.path("x.jsonl")]);
    command.args(["--goal", "attainment>=0.99", "--deadline", "60s", "--duration", "1s", "-o", "json"]);
    let child = command.spawn().unwrap();
    // Both runs at 50 a second, and some of the next.
    while server.asked.load(Ordering::SeqCst) < 150 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let found = result(&output);
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((&found["interrupted"], &found["complete"]), (&true.into(), &false.into()), "{found}");
    assert_eq!((&found["trials"][0]["rate"], &found["trials"][0]["met"]), (&50.0.into(), &2.into()), "{found}");
}

#[test]
fn a_search_takes_the_length_of_its_runs_from_the_scenario() {
    let (server, files) = (Server::start(WELL), Files::new());
    let text = "question = 'q'\nduration = '1s'\ngoal = 'attainment>=0.5'\narrivals = 'constant'\n\
        [[endpoint]]\nname = 'm'\ndata = 'x.jsonl'\ndeadline = '60s'\n";
    let (scenario, target) = (files.write("s.toml", text), server.target());
    let arguments = ["load", "capacity", "--scenario", &scenario, "--target", &target, "--repeats", "1"];
    let own = files.write("own.toml", &text.replace("deadline", "rate = 5\ndeadline"));
    let refused = run(&["load", "capacity", "--scenario", &own, "--target", &target]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("give endpoints weights instead"));
    let output = run(&[&arguments[..], &["--rate", "20", "--rate-max", "20", "-o", "json"]].concat());
    assert_eq!(result(&output)["met_at"], 20.0, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(server.asked.load(Ordering::SeqCst), 19, "one second, not five");
}

#[test]
fn a_trace_is_described() {
    let files = Files::new();
    let rows: String = (0..500).map(|i| format!("{}.{:03},m\n", i / 50, (i % 50) * 3)).collect();
    let trace = files.write("t.csv", &format!("t_seconds,model\n{rows}"));
    let output = run(&["load", "arrivals", &trace, "-o", "json"]);
    let result = result(&output);
    assert_eq!((result["requests"].as_u64(), output.status.code()), (Some(500), Some(0)));
    assert!(
        result["gap_cv"].as_f64().unwrap() > 1.0 && result["fits"]["gamma"].as_str().unwrap().starts_with("gamma:cv=")
    );
    let bad = run(&["load", "arrivals", &files.path("x.jsonl")]);
    assert_eq!(bad.status.code(), Some(2));
}

/// What came to a real service: independent in a second, twice as dispersed as independent callers in half a minute.
#[test]
fn slow_swings_of_a_real_trace_are_fitted_and_a_poor_fit_is_told() {
    let traces = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/traces");
    let described = |name: &str| {
        let file = format!("{traces}/{name}");
        let shown = String::from_utf8(run(&["load", "arrivals", &file]).stdout).unwrap();
        (result(&run(&["load", "arrivals", &file, "-o", "json"])), shown)
    };
    let (azure, _) = described("azure_conversation_15min.csv.gz");
    assert!(azure["fits"]["mmpp"].as_str().unwrap().starts_with("mmpp:low="), "{azure}");
    assert!(azure["windows"][7]["dispersion"].as_f64().unwrap() > 2.0, "{azure}");
    assert!(azure["fits"]["mmpp_poor"].is_null(), "within a factor of 1.5 of what is sure: {azure}");
    // Clients that send several at once, and swing for minutes too: one relaxation time cannot be both.
    let (many, shown) = described("servegen_clients_5min.csv.gz");
    let poor = &many["fits"]["mmpp_poor"];
    let width = many["windows"].as_array().unwrap().iter().find(|window| window["width_s"] == poor["width_s"]).unwrap();
    let ratio = width["dispersion"].as_f64().unwrap() / width["mmpp_dispersion"].as_f64().unwrap();
    assert!(ratio > 1.5 && (poor["factor"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-9, "{many}");
    assert!(shown.contains(&format!("a poor fit: {ratio:.1} times smoother than the trace")), "{shown}");
}
