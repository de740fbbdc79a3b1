//! Rows of several lengths run together and answer as they do alone; a model that does not heed its mask is found out. The models:
//! tests/models/make_masked_models.py.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use actix::Actor;
use weir_core::prng::Prng;
use weir_core::replicated::EngineKind;
use weir_core::shapes::{Padding, Shapes};
use weir_core::tensor::{Row, Tensor};
use weir_ml_workers::engine::{RunError, Session, engine};
use weir_ml_workers::model_actor::{BatchDone, ModelActor, Pauses, RunBatch};
use weir_ml_workers::probe::{BUDGET, Batching, probe};

fn load(name: &str) -> Box<dyn Session> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/models/{name}.onnx"));
    let artifact = std::fs::read(path).expect("the models are checked in");
    engine(EngineKind::Onnx).unwrap().load(&artifact).unwrap()
}

fn shapes(outputs: &[&str]) -> Shapes {
    let pad = Padding {
        mask: "mask".into(),
        inputs: BTreeMap::from([("tokens".into(), 9.0)]),
        dimension: 1,
        buckets: vec![4, 8, 16],
        outputs: outputs.iter().map(|name| (*name).to_owned()).collect(),
    };
    Shapes { batch_sizes: vec![1, 4, 8], pad: Some(pad) }
}

#[test]
fn a_model_that_does_not_heed_its_mask_is_found_out() {
    let probed = |name: &str, outputs: &[&str]| probe(&mut *load(name), None, &shapes(outputs), BUDGET, &[]);
    let masked = probed("masked", &["hidden"]);
    assert_eq!((masked.unpaddable, masked.batching, masked.max_batch), (None, Batching::Rows, 8));
    assert_eq!(masked.points.iter().map(|(size, _)| *size).collect::<Vec<_>>(), [1, 4, 8]);
    let why = probed("unmasked", &["hidden"]).unpaddable.expect("it has other answers");
    assert!(why.contains("does not heed its mask"), "{why}");
    let why = probed("masked", &[]).unpaddable.expect("its hidden values are longer than the row");
    assert!(why.contains("has another answer"), "{why}");
}

fn row(prng: &mut Prng, length: u64) -> Row {
    let tokens: Vec<f32> = (0..length).map(|_| prng.uniform() as f32).collect();
    // A caller may hide some of its own.
    let mask: Vec<f32> = (0..length).map(|i| if i > 0 && prng.uniform() < 0.2 { 0.0 } else { 1.0 }).collect();
    let tensors = Arc::new(vec![Tensor::f32(&[1, length], &tokens), Tensor::f32(&[1, length], &mask)]);
    Row { tensors, row: Some(0) }
}

/// What an actor makes of a batch.
fn run(rows: Vec<Row>, shapes: &Shapes) -> Vec<Result<Row, RunError>> {
    let (send, receive) = mpsc::channel();
    actix::System::new().block_on(async {
        let (actor, _) = ModelActor::new(load("masked"), Batching::Rows, Pauses::OnThread).shaped(shapes);
        let told = move |done: BatchDone| send.send(done.results).unwrap();
        actor.start().send(RunBatch::new(rows, Duration::ZERO, told)).await.unwrap();
    });
    receive.recv().unwrap()
}

#[test]
fn rows_of_several_lengths_answer_together_as_they_do_alone() {
    let mut prng = Prng::new(11);
    for (shortest, longest) in [(1, 4), (5, 8), (9, 16)] {
        let lengths = (0..6).map(|_| shortest + prng.below(longest - shortest + 1)).collect::<Vec<_>>();
        let rows: Vec<Row> = lengths.iter().map(|length| row(&mut prng, *length)).collect();
        let together = run(rows.clone(), &shapes(&["hidden"]));
        for (own, (row, length)) in together.iter().zip(rows.iter().zip(&lengths)) {
            let own = own.as_ref().unwrap();
            let alone = load("masked").run(&row.tensors).unwrap();
            assert_eq!(own.shape(0), [*length]);
            assert_eq!(own.data(0), alone[0].data);
            let mean = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
            assert!((mean(own.data(1)) - mean(&alone[1].data)).abs() < 1e-6);
        }
    }
    // Longer than any bucket: as it is.
    let long = row(&mut prng, 33);
    let own = run(vec![long.clone()], &shapes(&["hidden"])).remove(0).unwrap();
    assert_eq!((own.shape(0), own.data(0)), (&[33][..], &load("masked").run(&long.tensors).unwrap()[0].data[..]));
}

#[test]
fn a_row_of_no_length_does_no_harm() {
    let none = row(&mut Prng::new(13), 0);
    let alone = load("masked").run(&none.tensors).map_err(|error| error.to_string());
    let own = run(vec![none], &shapes(&["hidden"])).remove(0).map_err(|error| error.to_string());
    // Whatever the model makes of it, filling up makes nothing else of it.
    match (own, alone) {
        (Ok(own), Ok(alone)) => assert_eq!((own.shape(0), own.data(0)), (&[0][..], &alone[0].data[..])),
        (own, alone) => assert_eq!(own.map(|_| ()), alone.map(|_| ())),
    }
}

#[test]
fn an_output_that_is_not_as_long_is_told() {
    let mut prng = Prng::new(12);
    let mut wrong = shapes(&["hidden"]);
    // The mean has one number a row; nobody checked this declaration.
    wrong.pad.as_mut().unwrap().outputs = vec!["mean".into()];
    let said = run(vec![row(&mut prng, 3), row(&mut prng, 4)], &wrong).remove(0).unwrap_err().to_string();
    assert!(said.contains("its output mean is not as long as its inputs"), "{said}");
}
