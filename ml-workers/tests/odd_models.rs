//! Models that are unusual in one way each answer what Python's onnxruntime answers on the same bytes, or are refused with
//! the reason. The models and the answers: tests/models/make_odd_models.py.

use std::path::PathBuf;

use serde_json::Value;
use weir_core::replicated::EngineKind;
use weir_core::shapes::Shapes;
use weir_core::tensor::{DType, Tensor};
use weir_ml_workers::engine::{Session, engine, inspect};
use weir_ml_workers::probe::{BUDGET, Batching, probe};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/models")
}

fn cases() -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(folder().join("expected.json")).expect("the expectations are checked in");
    let Value::Object(cases) = serde_json::from_str(&text).expect("JSON") else { panic!("an object") };
    cases.into_iter().collect()
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(format!("{name}.onnx"))).expect("the models are checked in")
}

fn load(name: &str) -> Box<dyn Session> {
    let engine = engine(EngineKind::Onnx).unwrap_or_else(|error| panic!("{error}"));
    engine.load(&bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn tensor(value: &Value) -> Tensor {
    let dtype = DType::ALL.into_iter().find(|dtype| dtype.word() == value["dtype"]).expect("a known type");
    let shape = value["shape"].as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap()).collect();
    let hex = value["data"].as_str().unwrap().as_bytes();
    let data = hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
    Tensor::new(dtype, shape, data).expect("a whole tensor")
}

#[test]
fn answers_are_those_of_python_bit_for_bit() {
    let mut compared = 0;
    for (name, case) in cases().iter().filter(|(_, case)| case.get("refused").is_none()) {
        let mut session = load(name);
        let signature = session.signature().clone();
        for run in case["runs"].as_array().unwrap() {
            let inputs: Vec<Tensor> = signature.inputs.iter().map(|spec| tensor(&run["inputs"][&spec.name])).collect();
            match (session.run(&inputs), run.get("error")) {
                (Err(_), Some(_)) => {}
                (Ok(outputs), None) => {
                    for (spec, output) in signature.outputs.iter().zip(outputs) {
                        assert_eq!(output, tensor(&run["outputs"][&spec.name]), "{name}: {}", spec.name);
                    }
                }
                (Ok(_), Some(_)) => panic!("{name} ran where Python's did not"),
                (Err(error), None) => panic!("{name}: {error}"),
            }
            compared += 1;
        }
    }
    assert!(compared > 50, "{compared}");
}

#[test]
fn what_cannot_be_served_is_refused_with_the_reason() {
    let mut refused = 0;
    for (name, case) in cases() {
        let Some(reason) = case.get("refused").and_then(Value::as_str) else { continue };
        let error = inspect(EngineKind::Onnx, &bytes(&name)).expect_err(&name).to_string();
        assert!(error.contains(reason), "{name}: {error}");
        refused += 1;
    }
    assert_eq!(refused, 5);
}

#[test]
fn rows_are_batched_only_where_that_changes_no_answer() {
    for (name, case) in cases() {
        let Some(expected) = case.get("batching").and_then(Value::as_str) else { continue };
        let mut session = load(&name);
        let probed = probe(&mut *session, None, &Shapes::default(), BUDGET, &[]);
        let found = match &probed.batching {
            Batching::Rows => "rows",
            Batching::Fixed { .. } => "fixed",
            Batching::Unbatched { .. } => "unbatched",
        };
        // What is one query as it is cannot be batched either.
        let expected = if expected == "whole" { "unbatched" } else { expected };
        assert_eq!(found, expected, "{name}: {:?}", probed.batching);
    }
}

#[test]
fn the_demo_s_models_batch() {
    for name in ["tiny", "mid", "big"] {
        let artifact = std::fs::read(folder().join(format!("../../demo/{name}.onnx"))).unwrap();
        let mut session = engine(EngineKind::Onnx).unwrap().load(&artifact).unwrap();
        assert_eq!(probe(&mut *session, Some(8), &Shapes::default(), BUDGET, &[]).batching, Batching::Rows, "{name}");
    }
}
