use weir_core::endpoint::graph::{Comparison, How, Signal};

use super::*;

const CASCADE: &str = r#"
[[model]]
name = "fashion-tiny"
version = "1"
path = "tiny.onnx"
max_batch = 64
replicas = { min = 1, max = 4 }

[[model]]
name = "fashion-mid"
path = "/models/mid.onnx"

[[endpoint]]
name = "fashion"
deadline = "50ms"
label_output = "probs"
[[endpoint.stage]]
name = "tiny"
model = "fashion-tiny@1"
[[endpoint.stage]]
name = "mid"
model = "fashion-mid"
gate = { confidence_below = 0.9 }
"#;

fn parse(text: &str) -> Result<WeirFile, BadWeirFile> {
    super::parse(text, Path::new("demo/fashion.toml"))
}

fn mistake(text: &str) -> String {
    parse(text).expect_err("a mistake").to_string()
}

#[test]
fn a_cascade_is_read_with_its_defaults() {
    let file = parse(CASCADE).unwrap();
    assert_eq!(file.models[0].path, Path::new("demo/tiny.onnx"));
    assert_eq!(file.models[1].path, Path::new("/models/mid.onnx"));
    assert_eq!(file.models[1].replicas, ReplicaRange { min: 1, max: u32::MAX });
    let digest_version = ModelRef::parse("fashion-mid@0123456789ab").unwrap();
    let endpoint =
        file.endpoints[0].resolve(&[ModelRef::parse("fashion-tiny@1").unwrap(), digest_version.clone()]).unwrap();
    assert_eq!(endpoint.deadline, Duration::from_millis(50));
    assert_eq!(endpoint.stages[1].model(), Some(&digest_version));
    assert_eq!(endpoint.stages[1].gate, Some(Gate::ConfidenceBelow(0.9)));
    assert_eq!(endpoint.stages[0].gate, None);
}

#[test]
fn a_version_that_cannot_be_told_is_asked_for() {
    let file = parse(CASCADE).unwrap();
    let error = file.endpoints[0].resolve(&[]).unwrap_err().to_string();
    assert!(error.starts_with("demo/fashion.toml:22:9: model `fashion-mid` needs its version"), "{error}");
}

#[test]
fn mistakes_are_shown_with_line_column_and_what_was_meant() {
    assert_eq!(
        mistake("[[model]]\nname = \"a\"\npath = \"a.onnx\"\nmax_bacth = 3\n"),
        "demo/fashion.toml:4:1: unknown field `max_bacth`; did you mean `max_batch`?"
    );
    assert!(
        mistake("[[model]]\nname = \"A\"\npath = \"a.onnx\"")
            .starts_with("demo/fashion.toml:2:8: model name \"A\" is not allowed")
    );
    assert!(mistake("[[model]]\nname = 3\n").starts_with("demo/fashion.toml:2:8: invalid type"));
    assert!(mistake("[[model\n").starts_with("demo/fashion.toml:1:"));
    assert!(
        mistake("[[endpoint]]\nname = \"e\"\nmodel = \"a@1\"\ndeadline = \"soon\"")
            .contains(":4:12: `soon` is no deadline")
    );
    // On the wire it would be none.
    assert!(
        mistake("[[endpoint]]\nname = \"e\"\nmodel = \"a@1\"\ndeadline = \"0.5us\"").contains("`0.5us` is no deadline")
    );
    assert!(mistake("[[endpoint]]\nname = \"e\"").contains("serves nothing"));
    assert!(mistake(&CASCADE.replace("label_output = \"probs\"", "")).contains("needs the endpoint's `label_output`"));
    assert!(mistake("[[endpoint]]\nname = \"e\"\nmodel = \"a@1\"\nshare = 1.5").contains(":4:9: share is a part"));
    assert!(mistake(&CASCADE.replace("0.9", "nan")).contains("above 0 and at most 1"));
    assert!(mistake(&CASCADE.replace("min = 1", "min = 5")).contains(":7:12: replicas needs min"));
    assert!(mistake("").contains("declares nothing"));
}

#[test]
fn audits_that_would_tell_nothing_are_refused() {
    let declared = ["fashion-tiny@1", "fashion-mid@1"].map(|model| ModelRef::parse(model).unwrap());
    let resolved = |text: &str| parse(text).unwrap().endpoints[0].resolve(&declared);
    let cascade = CASCADE.replace("label_output", "audit = 0.1\nlabel_output");
    assert_eq!(resolved(&cascade).unwrap().audit, 0.1);
    for (text, at, why) in [
        (cascade.replace("label_output = \"probs\"", "confidence_output = \"sure\""), ":16:9: ", "`label_output`"),
        (cascade.clone() + "when = \"tiny.confidence < 0.5\"\n", ":16:9: ", "of a graph"),
        ("[[endpoint]]\nname = \"e\"\naudit = 0.1\nmodel = \"fashion-mid\"\n".into(), ":3:9: ", "has one"),
        (
            "[[endpoint]]\nname = \"e\"\naudit = 0.1\nversions = [{ model = \"fashion-mid\", share = 1 }]\n".into(),
            ":3:9: ",
            "has one",
        ),
    ] {
        let said = resolved(&text).unwrap_err().to_string();
        assert!(said.contains(at) && said.contains(why), "{said}");
        assert!(resolved(&text.replace("audit = 0.1", "audit = 0")).is_ok(), "nobody audits: {text}");
    }
}

#[test]
fn gates_are_of_one_kind_and_say_so() {
    let with = |gate: &str| CASCADE.replace("{ confidence_below = 0.9 }", gate);
    let gate = |text: &str| parse(&with(text)).map(|file| file.endpoints[0].stages[1].gate.clone());
    assert_eq!(gate("{ entropy_above = 0.5 }").unwrap(), Some(Gate::EntropyAbove(0.5)));
    assert_eq!(gate("{ margin_below = 0.25 }").unwrap(), Some(Gate::MarginBelow(0.25)));
    for (text, word) in [
        ("{ }", "one of confidence_below"),
        ("{ margin_below = 0.2, confidence_below = 0.9 }", "one of confidence_below"),
        ("{ margin_below = 0.0 }", "above 0"),
        ("{ entropy_above = -1.0 }", "in nats"),
        ("{ confidence_below = 0.9, min_gain = 0.1 }", "min_gain goes with `gain`"),
        ("{ gain = \"nowhere.csv\" }", ":23:17: gain table demo/nowhere.csv: "),
    ] {
        let said = gate(text).unwrap_err().to_string();
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn a_gain_table_is_read_from_beside_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let table = "confidence,rows,right,gain,error\n0.4,60,0.5,0.3,0.06\n0.9,60,0.97,0.001,0.01\n";
    std::fs::write(folder.path().join("a-b.csv"), table).unwrap();
    std::fs::write(folder.path().join("bad.csv"), "confidence\n").unwrap();
    let path = folder.path().join("w.toml");
    let gate = |gate: &str| {
        let file = super::parse(&CASCADE.replace("{ confidence_below = 0.9 }", gate), &path)?;
        Ok::<_, BadWeirFile>(file.endpoints[0].stages[1].gate.clone().unwrap())
    };
    let Gate::Gain { table, min_gain } = gate("{ gain = \"a-b.csv\" }").unwrap() else { panic!("a gain gate") };
    assert_eq!((table.bins().len(), min_gain), (2, Gate::MIN_GAIN));
    assert!(matches!(gate("{ gain = \"a-b.csv\", min_gain = 0.05 }"), Ok(Gate::Gain { min_gain: 0.05, .. })));
    let refused = |text| gate(text).unwrap_err().to_string();
    assert!(refused("{ gain = \"bad.csv\" }").contains("should begin with the heading"));
    assert!(refused("{ gain = \"a-b.csv\", min_gain = 2.0 }").contains("at most 1"));
}

#[test]
fn units_are_read_and_nonsense_is_not() {
    assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
    assert_eq!(parse_duration("200us"), Some(Duration::from_micros(200)));
    for bad in ["", "50", "ms", "-1s", "1e400s", "NaNs", "5 days"] {
        assert_eq!(parse_duration(bad), None, "{bad}");
    }
    assert_eq!(parse_bytes("8GiB"), Some(8 << 30));
    assert_eq!(parse_bytes("12"), Some(12));
    assert_eq!(parse_bytes("8 gigs"), None);
}

const GRAPH: &str = r#"
[[endpoint]]
name = "both"
label_output = "probs"
default_output = { probs = [0.5, 0.5] }
[[endpoint.stage]]
name = "tiny"
model = "tiny@1"
[[endpoint.stage]]
name = "tiny.b"
model = "big@1"
inputs = { x = "request.x", h = "tiny.hidden", c = "tiny.crops[]" }
when = "tiny.confidence <= 0.9"
[[endpoint.stage]]
name = "all"
combine = "weighted"
inputs = { a = "tiny.probs", b = "tiny.b.probs" }
weights = { a = 1.0, b = 3.0 }
at_least = 1
"#;

#[test]
fn a_graph_is_read() {
    let endpoint = parse(GRAPH).unwrap().endpoints[0].resolve(&[]).unwrap();
    let feed =
        |input: &str, stage, tensor: &str, each| Feed { input: input.into(), stage, tensor: tensor.into(), each };
    assert_eq!(
        endpoint.stages[1].inputs,
        [feed("c", Some(0), "crops", true), feed("h", Some(0), "hidden", false), feed("x", None, "x", false)]
    );
    let when = endpoint.stages[1].when.clone().unwrap();
    assert_eq!((when.stage, when.signal, when.is, when.than), (0, Signal::Confidence, Comparison::LessOrEqual, 0.9));
    assert_eq!(endpoint.stages[2].run, Run::Combine(Combine { how: How::Weighted(vec![1.0, 3.0]), at_least: Some(1) }));
    assert_eq!(endpoint.stages[2].inputs[1], feed("b", Some(1), "probs", false), "the longer name");
    let halves = Tensor::new(DType::F64, vec![1, 2], 0.5f64.to_le_bytes().repeat(2)).unwrap();
    assert_eq!(endpoint.default_outputs, [("probs".to_owned(), halves)]);
}

#[test]
fn a_default_is_of_numbers_truths_or_texts_in_lists_of_any_depth() {
    let row = |text: &str| {
        let file = parse(&GRAPH.replace("[0.5, 0.5]", text))?;
        Ok::<_, BadWeirFile>(file.endpoints[0].resolve(&[])?.default_outputs.remove(0).1)
    };
    let told = |text: &str| row(text).map(|tensor| (tensor.dtype, tensor.shape, tensor.data));
    assert_eq!(told("7").unwrap(), (DType::I64, vec![1], 7i64.to_le_bytes().to_vec()));
    let mixed = [1.0f64, 0.5].map(f64::to_le_bytes).concat();
    assert_eq!(told("[1, 0.5]").unwrap(), (DType::F64, vec![1, 2], mixed));
    assert_eq!(told("[[true], [false]]").unwrap(), (DType::Bool, vec![1, 2, 1], vec![1, 0]));
    assert_eq!(row("[\"a\", \"\"]").unwrap(), Tensor::strings(&[1, 2], &["a", ""]));
    for (text, why) in [
        ("[1, true]", "neither of numbers"),
        ("[\"a\", 1]", "neither of numbers"),
        ("[true, 1]", "neither of numbers"),
        ("[[1, 2], [3]]", "differ in length"),
        ("[[1], 2]", "differ in length"),
    ] {
        let said = row(text).unwrap_err().to_string();
        assert!(said.contains(":5:28: default_output probs is ") && said.contains(why), "{said}");
    }
}

#[test]
fn mistakes_in_a_graph_are_shown() {
    let with = |from: &str, to: &str| {
        assert!(GRAPH.contains(from));
        mistake(&GRAPH.replace(from, to))
    };
    assert!(with("tiny.hidden", "tny.hidden").contains("did you mean `tiny`?"));
    assert!(with("tiny.hidden", "all.probs").contains("names nothing that stands before"));
    assert!(with("<= 0.9", "= 0.9").contains("is no condition"));
    assert!(with("<= 0.9", "<= nan").contains("is no condition"));
    assert!(with("tiny.confidence", "request.confidence").contains("looks at a stage"));
    assert!(with("\"weighted\"", "\"weigted\"").contains("did you mean `weighted`?"));
    assert!(with("\"weighted\"", "\"vote\"").contains("`vote` takes no weights"));
    assert!(with("b = 3.0", "c = 3.0").contains("weights need a number for each"));
    assert!(with("combine = \"weighted\"", "").contains("either a `model` or a `combine`"));
    assert!(with("when =", "at_least = 1\nwhen =").contains("go with `combine`"));
    assert!(with("name = \"all\"", "name = \"request\"").contains("call the stage otherwise"));
}

#[test]
fn versions_share_the_queries_of_one_endpoint() {
    let text = |versions: &str| format!("[[endpoint]]\nname = \"e\"\nversions = {versions}\n");
    let file = parse(&text("[{ model = \"m@1\", share = 90 }, { model = \"n@2\", share = 0 }]")).unwrap();
    let endpoint = file.endpoints[0].resolve(&[]).unwrap();
    let told: Vec<String> = endpoint.versions.iter().map(|split| format!("{} {}", split.model, split.share)).collect();
    assert_eq!(told, ["m@1 90", "n@2 0"]);
    assert_eq!((endpoint.stages.len(), endpoint.models().count()), (1, 2));
    assert!(mistake(&text("[{ model = \"m@1\", share = 0 }]")).contains(":3:12: versions need a share above 0"));
    assert!(mistake(&text("[{ model = \"m@1\", share = 1 }]\nmodel = \"m@1\"")).contains("either `versions`, `model`"));
    assert!(mistake(&text("[]")).contains("above 0"));
}
