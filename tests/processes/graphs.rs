//! Endpoints that are more than chains, as a user declares and asks them.

use std::time::{Duration, Instant};

use serde_json::Value;
use weir_tests::processes::{Cluster, npy, root};

use crate::gateway::{eventually, metric};

/// The answers to a prediction, one object a row.
fn answers(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    let out = cluster.ok(&[&["predict"], arguments, &["-o", "json"]].concat());
    out.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

fn numbers(answer: &Value, output: &str) -> Vec<f64> {
    let data = answer["outputs"][output]["data"].as_array().unwrap_or_else(|| panic!("{output} in {answer}"));
    data.iter().map(|number| number.as_f64().expect("a number")).collect()
}

/// Tiny and mid of the demo as endpoints of their own, and `stages` as the endpoint `graph`.
fn file(graph: &str) -> String {
    let mut text = String::new();
    for model in ["tiny", "mid"] {
        let path = root().join(format!("demo/{model}.onnx"));
        text += &format!(
            "[[model]]\nname = \"{model}\"\nversion = \"1\"\npath = \"{}\"\n[[endpoint]]\nname = \"{model}\"\nmodel = \"{model}@1\"\ndeadline = \"5s\"\n",
            path.display()
        );
    }
    text + &format!("[[endpoint]]\nname = \"graph\"\ndeadline = \"5s\"\nlabel_output = \"probs\"\n{graph}")
}

const BOTH: &str =
    "[[endpoint.stage]]\nname = \"t\"\nmodel = \"tiny@1\"\n[[endpoint.stage]]\nname = \"m\"\nmodel = \"mid@1\"\n";

#[test]
fn an_ensemble_answers_with_the_mean_of_its_branches() {
    let cluster = Cluster::start(1, 1);
    let mean =
        "[[endpoint.stage]]\nname = \"mean\"\ncombine = \"mean\"\ninputs = { t = \"t.probs\", m = \"m.probs\" }\n";
    let weirfile = cluster.write("graph.toml", file(&format!("{BOTH}{mean}")));
    cluster.ok(&["apply", "-f", &weirfile]);
    assert!(cluster.ok(&["apply", "-f", &weirfile]).lines().all(|line| line.ends_with("unchanged")));
    let images = root().join("demo/images.npy").display().to_string();
    let input = ["--input", &images, "--rows", "0:20"];
    let of = |endpoint: &str| answers(&cluster, &[&[endpoint], &input[..]].concat());
    for ((tiny, mid), both) in of("tiny").iter().zip(of("mid")).zip(of("graph")) {
        assert_eq!((both["stage"].as_str(), both["degraded"].as_bool()), (Some("mean"), Some(false)), "{both}");
        let (tiny, mid) = (numbers(tiny, "probs"), numbers(&mid, "probs"));
        for ((tiny, mid), both) in tiny.iter().zip(mid).zip(numbers(&both, "probs")) {
            assert!(((tiny + mid) / 2.0 - both).abs() < 1e-6, "{tiny} {mid} {both}");
        }
    }
    let told = cluster.ok(&["describe", "endpoint", "graph"]);
    assert!(told.contains("mean") && told.contains("m.probs"), "{told}");
    // The simulator knows graphs as well.
    let simulated = cluster.ok(&[
        "simulate",
        "-f",
        &weirfile,
        "--endpoint",
        "graph",
        "--data",
        &images,
        "--rate",
        "100",
        "--duration",
        "2s",
        "--arrivals",
        "poisson",
        "--deadline",
        "1s",
        "-o",
        "json",
    ]);
    let simulated: Value = serde_json::from_str(&simulated).expect("a result");
    assert_eq!(simulated["stages"]["mean"], simulated["answered"], "{}", simulated["stages"]);
    assert!(simulated["answered"].as_u64() > Some(100), "{}", simulated["answered"]);
}

#[test]
fn a_condition_chooses_the_branch() {
    let cluster = Cluster::start(1, 1);
    let when = BOTH.replace("model = \"mid@1\"\n", "model = \"mid@1\"\nwhen = \"t.confidence < 0.9\"\n");
    cluster.ok(&["apply", "-f", &cluster.write("graph.toml", file(&when))]);
    let images = root().join("demo/images.npy").display().to_string();
    let answered = answers(&cluster, &["graph", "--input", &images, "--rows", "0:60"]);
    let tiny = answers(&cluster, &["tiny", "--input", &images, "--rows", "0:60"]);
    for (answer, tiny) in answered.iter().zip(&tiny) {
        let sure = numbers(tiny, "probs").into_iter().fold(0.0, f64::max) >= 0.9;
        assert_eq!(answer["stage"], if sure { "t" } else { "m" }, "{answer}");
        assert_eq!(answer["degraded"], false, "what was not wanted is not missed");
    }
    let by = |stage: &str| answered.iter().filter(|answer| answer["stage"] == stage).count();
    assert!(by("t") > 5 && by("m") > 5, "{} and {}", by("t"), by("m"));
    for (stage, holds) in [("t", "does not hold"), ("m", "holds")] {
        let answer = answered.iter().find(|answer| answer["stage"] == stage).expect("one at least");
        let why = cluster.ok(&["why", answer["id"].as_str().expect("an id")]);
        let line = why.lines().find(|line| line.contains("condition of stage m: t.confidence < 0.9 saw 0."));
        assert!(line.is_some_and(|line| line.ends_with(&format!(": {holds}"))), "{why}");
    }
}

#[test]
fn items_of_a_row_run_by_themselves_and_are_joined() {
    let cluster = Cluster::start(1, 1);
    let album = "[[endpoint.stage]]\nname = \"each\"\nmodel = \"tiny@1\"\ninputs = { x = \"request.images[]\" }\n";
    let mean = "[[endpoint.stage]]\nname = \"all\"\ncombine = \"mean\"\ninputs = { x = \"each.probs\" }\n";
    cluster.ok(&["apply", "-f", &cluster.write("graph.toml", file(&format!("{album}{mean}")))]);
    // Two albums of three pictures: pixels that differ from picture to picture.
    let pixels: Vec<f32> = (0..6 * 784).map(|i| ((i * 37 + i / 784) % 255) as f32 / 255.0).collect();
    let albums = cluster.write("albums.npy", npy(&[2, 3, 1, 28, 28], &pixels));
    let pictures = cluster.write("pictures.npy", npy(&[6, 1, 28, 28], &pixels));
    let alone: Vec<Vec<f64>> =
        answers(&cluster, &["tiny", "--input", &pictures]).iter().map(|answer| numbers(answer, "probs")).collect();
    for (album, answer) in answers(&cluster, &["graph", "--input", &format!("images={albums}")]).iter().enumerate() {
        for (class, mean) in numbers(answer, "probs").into_iter().enumerate() {
            let expected = alone[3 * album..][..3].iter().map(|probs| probs[class]).sum::<f64>() / 3.0;
            assert!((mean - expected).abs() < 1e-6, "{mean} {expected}");
        }
    }
    let none = cluster.write("none.npy", npy(&[1, 0, 1, 28, 28], &[]));
    let said = cluster.run(&["predict", "graph", "--input", &format!("images={none}"), "-o", "json"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("there is nothing to combine"), "{said}");
}

#[test]
fn a_branch_that_fails_is_left_out_visibly_where_that_is_allowed() {
    let cluster = Cluster::start(1, 1);
    let mut text = String::new();
    for (model, formula) in [("good", "width = 2\n"), ("bad", "width = 2\nfail_above = 5.0\n")] {
        let path = cluster.write(&format!("{model}.synthetic"), formula);
        text += &format!("[[model]]\nname = \"{model}\"\nversion = \"1\"\npath = \"{path}\"\n");
    }
    // What the strict one gives has another shape than what its branches give: none of them can answer for it.
    for (endpoint, combine) in [("strict", "combine = \"concat\""), ("lenient", "combine = \"mean\"\nat_least = 1")] {
        let stages =
            ["good", "bad"].map(|m| format!("[[endpoint.stage]]\nname = \"{m}\"\nmodel = \"{m}@1\"\n")).concat();
        text += &format!(
            "[[endpoint]]\nname = \"{endpoint}\"\ndeadline = \"5s\"\n{stages}[[endpoint.stage]]\nname = \"both\"\n{combine}\ninputs = {{ a = \"good.y\", b = \"bad.y\" }}\n"
        );
    }
    cluster.ok(&["apply", "-f", &cluster.write("graph.toml", text)]);
    let ask = |endpoint: &str, first: f32| {
        let input = cluster.write("x.npy", npy(&[1, 2], &[first, 1.0]));
        let out = cluster.run(&["predict", endpoint, "--input", &input, "-o", "json"]);
        let out = String::from_utf8_lossy(&out.stdout).into_owned();
        serde_json::from_str::<Value>(out.lines().next().expect("a line")).expect("one object")
    };
    let good = ask("strict", 3.0);
    assert_eq!((numbers(&good, "y"), good["degraded"].as_bool()), (vec![3.0, 1.0, 3.0, 1.0], Some(false)));
    assert_eq!(ask("strict", 9.0)["outcome"], "failed");
    let left = ask("lenient", 9.0);
    assert_eq!((left["stage"].as_str(), left["degraded"].as_bool()), (Some("both"), Some(true)), "{left}");
    assert_eq!(numbers(&left, "y"), [9.0, 1.0]);
}

#[test]
fn the_demos_graphs_serve_what_they_say() {
    let cluster = Cluster::start(1, 1);
    let demo = |name: &str| root().join("demo").join(name).display().to_string();
    cluster.ok(&["apply", "-f", &demo("spam.toml")]);
    let input = format!("x={}", demo("texts.npy"));
    let verdicts = answers(&cluster, &["spam", "--input", &input, "--deadline", "10s"]);
    let labels = std::fs::read(demo("spam.npy")).expect("it belongs to the demo");
    let labels = &labels[labels.len() - verdicts.len()..];
    let is_spam = |answer: &Value| numbers(answer, "probs")[1] > numbers(answer, "probs")[0];
    let right = verdicts.iter().zip(labels).filter(|(answer, label)| is_spam(answer) == (**label == 1)).count();
    assert!(right * 100 >= verdicts.len() * 98, "{right} of {}", verdicts.len());
    // What makes features answers nobody, however deep the caller wants to go; the rest of the graph is not asked for them.
    let capped = cluster.fails(2, &["predict", "spam", "--input", &input, "--max-stage", "features"]);
    assert!(
        capped.contains("no stage can answer that goes so deep and no deeper; those that can answer are"),
        "{capped}"
    );
    let deepest = answers(&cluster, &["spam", "--input", &input, "--deadline", "10s", "--min-stage", "vote"]);
    assert!(deepest.iter().all(|answer| answer["stage"] == "vote"), "{}", deepest[0]);
}

/// Other ways of triage ask for one stage of a graph, too, with all that it takes from others.
#[test]
fn one_stage_for_all_of_a_graph_has_what_it_takes_from_others() {
    for triage in ["whole", "reject-only"] {
        let cluster = Cluster::start_with(1, 1, &["--triage", triage]);
        let demo = |name: &str| root().join("demo").join(name).display().to_string();
        cluster.ok(&["apply", "-f", &demo("spam.toml")]);
        let input = format!("x={}", demo("texts.npy"));
        let verdicts = answers(&cluster, &["spam", "--input", &input, "--rows", "0:20", "--deadline", "10s"]);
        assert!(verdicts.len() == 20 && verdicts.iter().all(|answer| answer["outcome"] == "answered"), "{triage}");
    }
}

/// What each stage may take is told by what it takes, and how many items rows have.
#[test]
fn each_stage_has_the_time_that_it_takes() {
    let cluster = Cluster::start_with(1, 1, &["--cpu-slots", "1"]);
    let mut text =
        synthetic(&cluster, "each", "width = 2\nbeta_us = 5000\n").replace("version", "max_batch = 1\nversion");
    text += &synthetic(&cluster, "all", "width = 2\nalpha_us = 40000\n");
    text +=
        "[[endpoint]]\nname = \"album\"\ndeadline = \"60s\"\n[[endpoint.stage]]\nname = \"each\"\nmodel = \"each@1\"\n";
    text += "inputs = { x = \"request.xs[]\" }\n[[endpoint.stage]]\nname = \"mean\"\ncombine = \"mean\"\ninputs = { y = \"each.y\" }\n";
    text += "[[endpoint.stage]]\nname = \"all\"\nmodel = \"all@1\"\ninputs = { x = \"mean.y\" }\n";
    cluster.ok(&["apply", "-f", &cluster.write("album.toml", text)]);
    // A hundred items take 500 ms of this second, and what follows 40: by rows, the items would have an eighth of it.
    let input = format!("xs={}", cluster.write("xs.npy", npy(&[1, 100, 2], &[1.0; 200])));
    for _ in 0..3 {
        let answer = answers(&cluster, &["album", "--input", &input, "--deadline", "1500ms"]).remove(0);
        assert_eq!((answer["outcome"].as_str(), answer["stage"].as_str()), (Some("answered"), Some("all")), "{answer}");
    }
}

/// At each exit and in any batch: those that go on are put together anew, with rows of other calls.
#[test]
fn segments_give_what_the_whole_network_gives_bit_by_bit() {
    const STAGES: [&str; 3] = ["first", "second", "third"];
    let cluster = Cluster::start_with(1, 1, &["--metrics", "127.0.0.1:0"]);
    cluster.ok(&["apply", "-f", "demo/segments.toml"]);
    let ask = |endpoint: &str, rows: &str, more: &[&str]| {
        let ask =
            ["predict", endpoint, "--input", "demo/images.npy", "--rows", rows, "--deadline", "60s", "-o", "json"];
        let mut command = cluster.command(&[&ask[..], more].concat());
        command.stdout(std::process::Stdio::piped()).spawn().expect("weir runs")
    };
    let told = |asked: std::process::Child| -> Vec<Value> {
        let output = asked.wait_with_output().expect("it ends");
        let lines = String::from_utf8(output.stdout).expect("text");
        lines.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
    };
    // One row at a time.
    let singly: Vec<Value> =
        (0..500).step_by(125).flat_map(|row| told(ask("whole", &format!("{row}:{}", row + 1), &[]))).collect();
    let whole = told(ask("whole", "0:500", &[]));
    assert_eq!(whole.len(), 500);
    let exit = |row: usize, exit: usize| &whole[row]["outputs"][format!("probs_{exit}")]["data"];
    for (i, alone) in singly.iter().enumerate() {
        (0..3).for_each(|e| assert_eq!(&alone["outputs"][format!("probs_{e}")]["data"], exit(125 * i, e), "alone"));
    }

    // Calls of very different lengths at once.
    const CALLS: [(usize, usize); 9] =
        [(0, 1), (1, 3), (3, 6), (6, 13), (13, 40), (40, 41), (41, 150), (150, 163), (163, 500)];
    let mut by_gate = [0; 3];
    let depths = STAGES.map(|stage| vec!["--min-stage", stage, "--max-stage", stage]);
    for depth in depths.iter().chain(std::iter::once(&Vec::new())) {
        let asked = CALLS.map(|(from, to)| ask("segments", &format!("{from}:{to}"), depth));
        for ((from, to), asked) in CALLS.into_iter().zip(asked) {
            let answers = told(asked);
            assert_eq!(answers.len(), to - from);
            for (row, answer) in (from..to).zip(&answers) {
                let stage = STAGES.iter().position(|stage| answer["stage"] == *stage);
                let stage = stage.unwrap_or_else(|| panic!("row {row}: {answer}"));
                assert_eq!(&answer["outputs"]["probs"]["data"], exit(row, stage), "row {row} at {}", STAGES[stage]);
                by_gate[stage] += usize::from(depth.is_empty());
            }
        }
    }
    assert!(by_gate.iter().all(|rows| *rows > 5), "gates send some on, and others not: {by_gate:?}");
    let rows = |segment: usize| {
        metric(&cluster.nodes[0], &format!("weir_batch_size_sum{{device=\"cpu0\",model=\"segment-{segment}@1\"}}"))
    };
    for segment in 0..3 {
        let batches = batches(&cluster, &format!("segment-{segment}@1"));
        assert!(batches > 1.0 && rows(segment) > 2.0 * batches, "{} rows in {batches} batches", rows(segment));
    }
}

#[test]
fn where_nothing_can_be_had_the_default_goes_out_marked() {
    let cluster = Cluster::start(1, 1);
    cluster.write("slow.synthetic", "width = 4\nalpha_us = 2000000\n");
    let text = "[[model]]\nname = \"slow\"\nversion = \"1\"\npath = \"slow.synthetic\"\n[[endpoint]]\nname = \"e\"\nmodel = \"slow@1\"\ndefault_output = { y = [1, 2, 3, 4] }\n";
    cluster.ok(&["apply", "-f", &cluster.write("e.toml", text)]);
    let input = cluster.write("x.npy", npy(&[1, 4], &[5.0, 6.0, 7.0, 8.0]));
    let input = ["e", "--input", &input, "--deadline"];
    let good = &answers(&cluster, &[&input[..], &["10s"]].concat())[0];
    assert_eq!((good["stage"].as_str(), good["degraded"].as_bool()), (Some("slow"), Some(false)), "{good}");
    assert_eq!(numbers(good, "y"), [5.0, 6.0, 7.0, 8.0]);
    let none = &answers(&cluster, &[&input[..], &["1s"]].concat())[0];
    assert_eq!((none["stage"].as_str(), none["degraded"].as_bool()), (Some("default"), Some(true)), "{none}");
    assert_eq!(numbers(none, "y"), [1.0, 2.0, 3.0, 4.0]);
    let described = cluster.ok(&["describe", "endpoint", "e", "-o", "json"]);
    let described: serde_json::Value = serde_json::from_str(&described).expect("one object");
    assert_eq!(described["default_output"]["y"]["data"], serde_json::json!([1.0, 2.0, 3.0, 4.0]));
    let id = none["id"].as_str().expect("an id");
    assert!(cluster.ok(&["why", id]).contains("default"));
    let demanded = cluster.fails(8, &[&["predict"], &input[..], &["1s", "--min-stage", "slow"]].concat());
    assert!(demanded.contains("deadline"), "who demands a stage wants no default: {demanded}");
}

/// Whether its model stands in the same file or in the cluster.
#[test]
fn a_default_has_the_type_that_its_model_gives() {
    let cluster = Cluster::start(1, 1);
    let path = root().join("tests/models/identity_i64.onnx");
    let model = format!("[[model]]\nname = \"whole\"\nversion = \"1\"\npath = \"{}\"\n", path.display());
    let endpoint = |name: &str, default: &str| {
        format!("[[endpoint]]\nname = \"{name}\"\nmodel = \"whole@1\"\ndefault_output = {{ y = {default} }}\n")
    };
    let row = "[1, -2, 9007199254740993]";
    cluster.ok(&["apply", "-f", &cluster.write("a.toml", model + &endpoint("a", row))]);
    cluster.ok(&["apply", "-f", &cluster.write("b.toml", endpoint("b", row))]);
    for name in ["a", "b"] {
        let described = cluster.ok(&["describe", "endpoint", name, "-o", "json"]);
        let described: Value = serde_json::from_str(&described).expect("one object");
        let given = serde_json::json!({"dtype": "i64", "shape": [1, 3], "data": [1, -2, 9007199254740993i64]});
        assert_eq!(described["default_output"]["y"], given);
    }
    let refused = cluster.fails(2, &["apply", "-f", &cluster.write("c.toml", endpoint("c", "[0.5, 1, 2]"))]);
    assert!(refused.contains("default_output y is f64[3], its stages give y i64"), "{refused}");
}

/// A synthetic model, as a weir file has it.
fn synthetic(cluster: &Cluster, model: &str, formula: &str) -> String {
    let path = cluster.write(&format!("{model}.synthetic"), formula);
    format!("[[model]]\nname = \"{model}\"\nversion = \"1\"\npath = \"{path}\"\n")
}

/// An endpoint of these stages, each with what is said of its inputs.
fn endpoint(name: &str, stages: &[(&str, &str)]) -> String {
    let stage = |(i, (model, inputs)): (usize, &(&str, &str))| {
        format!("[[endpoint.stage]]\nname = \"s{i}\"\nmodel = \"{model}@1\"\n{inputs}\n")
    };
    let stages: String = stages.iter().enumerate().map(stage).collect();
    format!("[[endpoint]]\nname = \"{name}\"\ndeadline = \"60s\"\n{stages}")
}

/// Somebody else's queries while the others come, all of which have to be answered.
struct Neighbour(std::process::Child);

impl Neighbour {
    /// Asks `echo`, which takes rows of two numbers, until it is stopped.
    fn start(cluster: &Cluster) -> Neighbour {
        let data = cluster.write("neighbour.npy", npy(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
        let ask = ["load", "run", "--endpoint", "echo", "--data", &data, "--rate", "50", "--duration", "300s"];
        let mut command = cluster.command(&[&ask[..], &["--deadline", "10s", "-o", "json"]].concat());
        let null = std::process::Stdio::null();
        let child = command.stdout(std::process::Stdio::piped()).stderr(null).spawn().expect("weir runs");
        eventually("the neighbour is answered", || {
            metric(&cluster.nodes[0], "weir_answered_total{endpoint=\"echo\"}") > 0.0
        });
        Neighbour(child)
    }

    fn ends_undisturbed(self) {
        let told = std::process::Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        assert!(told.is_ok_and(|told| told.success()), "it is ours to stop");
        let result = self.0.wait_with_output().expect("it ends");
        let result: Value = serde_json::from_slice(&result.stdout).expect("a result");
        assert!(result["offered"].as_u64() > Some(5), "it asked all the time: {result}");
        assert_eq!(result["within_deadline"], result["offered"], "{result}");
    }
}

/// What calls of the only node hold between their stages.
fn held(cluster: &Cluster) -> f64 {
    metric(&cluster.nodes[0], "weir_between_stages_bytes")
}

/// The outcomes of a prediction's rows, and what was said to them.
fn outcomes(cluster: &Cluster, arguments: &[&str]) -> Vec<(String, String)> {
    let out = cluster.run(&[&["predict"], arguments, &["-o", "json"]].concat());
    let lines = String::from_utf8_lossy(&out.stdout).into_owned();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("one object a line");
        let of = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        (of("outcome"), of("message"))
    };
    lines.lines().map(row).collect()
}

#[test]
fn a_flat_map_that_multiplies_ends_at_its_bounds_and_disturbs_nobody() {
    let cluster = Cluster::start_with(1, 1, &["--metrics", "127.0.0.1:0"]);
    let segment = root().join("demo/segment-0.onnx").display().to_string();
    let models = synthetic(&cluster, "two", "width = 2\n")
        + &format!("[[model]]\nname = \"segment\"\nversion = \"1\"\npath = \"{segment}\"\n");
    let endpoints = endpoint("echo", &[("two", "")])
        + &endpoint("each", &[("two", "inputs = { x = \"request.xs[]\" }")])
        + &endpoint("hidden", &[("segment", "inputs = { x = \"request.images[]\" }")]);
    cluster.ok(&["apply", "-f", &cluster.write("bounds.toml", models + &endpoints)]);
    let neighbour = Neighbour::start(&cluster);
    let ask = |endpoint: &str, input: &str, shape: &[u64]| {
        let numbers = vec![0.5; shape.iter().product::<u64>() as usize];
        let array = cluster.write("array.npy", npy(shape, &numbers));
        outcomes(&cluster, &[endpoint, "--input", &format!("{input}={array}"), "--deadline", "60s"])
    };
    let answered = |(outcome, _): &&(String, String)| outcome == "answered";
    let failed = |rows: &[(String, String)], why: &str| {
        assert!(rows.iter().any(|(outcome, said)| outcome == "failed" && said.contains(why)), "{why}: {rows:?}");
    };

    assert_eq!(ask("each", "xs", &[2, 4096, 2]).iter().filter(answered).count(), 2, "as many items as there may be");
    failed(&ask("each", "xs", &[1, 4097, 2]), "a row has 4097 items; 4096 are the most");
    // All rows of a call together.
    let rows = ask("each", "xs", &[17, 4096, 2]);
    failed(&rows, "the rows of a call have more than 65536 items; send fewer rows in a call");
    // Of those that may be asked at once, as many are as may wait on a device; asked again, they do not count again.
    let of = |wanted: &str| rows.iter().filter(|(outcome, _)| outcome == wanted).count();
    assert!(of("answered") >= 4 && of("failed") == 1 && of("rejected") == 16 - of("answered"), "{rows:?}");
    // Of each image eight times as much comes out as went in: what is asked is small, and what it gives is not.
    assert_eq!(ask("hidden", "images", &[1, 40, 1, 28, 28]).iter().filter(answered).count(), 1);
    failed(&ask("hidden", "images", &[1, 2800, 1, 28, 28]), "take 65 MiB; 64 MiB are the most");

    eventually("nothing of it is kept", || held(&cluster) == 0.0);
    neighbour.ends_undisturbed();
}

#[test]
fn what_all_calls_hold_between_their_stages_is_bounded_and_given_back() {
    let cluster = Cluster::start_with(1, 1, &["--metrics", "127.0.0.1:0", "--between-stages", "24MiB"]);
    let models = synthetic(&cluster, "two", "width = 2\n")
        + &synthetic(&cluster, "wide", "width = 65536\n")
        + &synthetic(&cluster, "slow", "width = 65536\nalpha_us = 600000\n");
    let from = |stage: usize| format!("inputs = {{ x = \"s{stage}.y\" }}");
    let (first, more) = ("inputs = { x = \"request.x\" }".to_owned(), [0, 1, 2, 3, 4, 5, 6].map(from));
    let long: Vec<_> = std::iter::once(&first).chain(&more).map(|inputs| ("wide", inputs.as_str())).collect();
    let endpoints =
        endpoint("echo", &[("two", "")]) + &endpoint("long", &long) + &endpoint("slow", &[long[0], ("slow", &more[0])]);
    cluster.ok(&["apply", "-f", &cluster.write("bounds.toml", models + &endpoints)]);
    let neighbour = Neighbour::start(&cluster);
    // Rows of a quarter of a MiB, which every stage gives and the next one is asked.
    let rows =
        |count: u64| cluster.write(&format!("{count}.npy"), npy(&[count, 65_536], &vec![0.5; count as usize * 65_536]));
    let answered = |rows: &[(String, String)]| rows.iter().filter(|(outcome, _)| outcome == "answered").count();
    let deepest = |rows: &str| outcomes(&cluster, &["long", "--input", rows, "--min-stage", "s7", "--deadline", "60s"]);
    let few = rows(2);
    assert_eq!(answered(&deepest(&few)), 2);
    let refused = deepest(&rows(14));
    assert!(answered(&refused) < 14, "{refused:?}");
    // They may be asked again, here or elsewhere: nothing was wrong with them.
    let of = |wanted: &str, why: &str| {
        refused
            .iter()
            .filter(|(outcome, said)| outcome == wanted && said.contains(why) && said.contains("ask again"))
            .count()
    };
    let (asked, gave) = (of("rejected", "too much waits already"), of("failed", "what it gives has no room"));
    assert_eq!(asked + gave + answered(&refused), 14, "{refused:?}");
    eventually("nothing of it is kept", || held(&cluster) == 0.0);
    assert_eq!(answered(&deepest(&few)), 2, "there is room again");

    // What waits between two stages is counted while it does, and not after its caller has gone.
    let mut waits =
        cluster.command(&["predict", "slow", "--input", &rows(4), "--deadline", "60s"]).spawn().expect("weir runs");
    eventually("it lies between its stages", || held(&cluster) >= f64::from(4 << 18));
    waits.kill().expect("it is ours to kill");
    waits.wait().expect("it ended");
    eventually("it has gone with its caller", || held(&cluster) == 0.0);
    neighbour.ends_undisturbed();
}

/// Branches that take 1 ms and `slow` of formula, and what combines them, as `graph`.
fn branches(cluster: &Cluster, slow: &str, combine: &str) {
    let mut text = String::new();
    for (model, formula) in [("fast", "alpha_us = 1000\n"), ("slow", slow)] {
        let path = cluster.write(&format!("{model}.synthetic"), format!("width = 2\n{formula}"));
        text += &format!("[[model]]\nname = \"{model}\"\nversion = \"1\"\npath = \"{path}\"\n");
    }
    text += "[[endpoint]]\nname = \"graph\"\ndeadline = \"10s\"\n";
    for model in ["fast", "slow"] {
        text += &format!("[[endpoint.stage]]\nname = \"{model}\"\nmodel = \"{model}@1\"\n");
    }
    text += "[[endpoint.stage]]\nname = \"both\"\ninputs = { a = \"fast.y\", b = \"slow.y\" }\n";
    cluster.ok(&["apply", "-f", &cluster.write("graph.toml", text + combine)]);
}

/// What a row with this first number gets within `deadline`, and after how long.
fn within(cluster: &Cluster, first: f32, deadline: &str) -> (Value, Duration) {
    let input = cluster.write("x.npy", npy(&[1, 2], &[first, 1.0]));
    let began = Instant::now();
    let out = cluster.run(&["predict", "graph", "--input", &input, "--deadline", deadline, "-o", "json"]);
    let out = String::from_utf8_lossy(&out.stdout).into_owned();
    (serde_json::from_str(out.lines().next().expect("a line")).expect("one object"), began.elapsed())
}

#[test]
fn a_branch_that_is_late_is_left_out_where_that_is_allowed() {
    let cluster = Cluster::start(1, 2);
    branches(&cluster, "alpha_us = 1000\nhang_above = 5.0\n", "combine = \"mean\"\nat_least = 1\n");
    let (both, _) = within(&cluster, 3.0, "10s");
    assert_eq!((both["stage"].as_str(), both["degraded"].as_bool()), (Some("both"), Some(false)), "{both}");
    // Nobody could know that it would hang: what has arrived goes out when time is up, not when it is found out.
    let (left, took) = within(&cluster, 9.0, "1s");
    assert_eq!((left["stage"].as_str(), left["degraded"].as_bool()), (Some("both"), Some(true)), "{left}");
    assert_eq!(numbers(&left, "y"), [9.0, 1.0]);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn what_cannot_be_in_time_on_any_way_is_refused_at_the_entry() {
    let cluster = Cluster::start_with(1, 1, &["--metrics", "127.0.0.1:0"]);
    branches(&cluster, "alpha_us = 3000000\n", "combine = \"concat\"\n");
    let ran = || ["fast@1", "slow@1"].map(|model| batches(&cluster, model));
    let begun = ran();
    let (both, _) = within(&cluster, 3.0, "10s");
    assert_eq!((numbers(&both, "y"), both["degraded"].as_bool()), (vec![3.0, 1.0, 3.0, 1.0], Some(false)), "{both}");
    let ran_once = begun.map(|count| count + 1.0);
    assert_eq!(ran(), ran_once);
    // One branch would be in time, and the other one not: none is begun. (Now and then an estimate is doubted, and tried.)
    for _ in 0..5 {
        let (refused, took) = within(&cluster, 3.0, "1s");
        let at_once = took < Duration::from_secs(3);
        assert_eq!((refused["outcome"].as_str(), at_once), (Some("rejected"), true), "{took:?} {refused}");
    }
    let in_vain = batches(&cluster, "fast@1") - ran_once[0];
    assert!(in_vain <= 3.0, "{in_vain} of 5");
}

/// Batches of a model that its node has run.
fn batches(cluster: &Cluster, model: &str) -> f64 {
    metric(&cluster.nodes[0], &format!("weir_batch_size_count{{device=\"cpu0\",model=\"{model}\"}}"))
}
