use std::sync::mpsc;

use weir_core::replicated::EngineKind;
use weir_core::units::ServiceTime;

use super::*;
use crate::engine::engine;
use crate::probe::{BUDGET, probe};

const MODEL: &str = "width = 2\nfail_above = 1e6\npanic_above = 1e9\nhang_above = 1e12\n";

fn actor(batching: Batching) -> ModelActor {
    ModelActor::new(engine(EngineKind::Synthetic).unwrap().load(MODEL.as_bytes()).unwrap(), batching, Pauses::OnThread)
}

fn rows(values: &[f32]) -> Vec<Row> {
    let data: Vec<f32> = values.iter().flat_map(|v| [*v, -*v]).collect();
    let tensors = Arc::new(vec![Tensor::f32(&[values.len() as u64, 2], &data)]);
    (0..values.len()).map(|row| Row { tensors: Arc::clone(&tensors), row: Some(row) }).collect()
}

fn first(row: &Row) -> f32 {
    f32::from_le_bytes(row.data(0)[..4].try_into().unwrap())
}

#[test]
fn every_row_gets_its_own_answer() {
    let values: Vec<f32> = (0..40).map(|i| i as f32).collect();
    for batching in [Batching::Rows, Batching::Fixed { size: 64 }, Batching::Unbatched { because: "test".into() }] {
        let results = actor(batching).run(&rows(&values));
        let answers: Vec<f32> = results.iter().map(|row| first(row.as_ref().unwrap())).collect();
        assert_eq!(answers, values);
        assert_eq!(results[3].as_ref().unwrap().shape(0), [2]);
    }
}

#[test]
fn one_bad_row_fails_alone() {
    let results = actor(Batching::Rows).run(&rows(&[1.0, 2e6, 3.0]));
    assert_eq!(first(results[0].as_ref().unwrap()), 1.0);
    assert_eq!(results[1].as_ref().unwrap_err(), &RunError::Model("a row is above the bound".into()));
    assert_eq!(first(results[2].as_ref().unwrap()), 3.0);
}

#[test]
fn a_whole_query_keeps_its_shape() {
    let tensors = Arc::new(vec![Tensor::f32(&[3, 2], &[1.0; 6])]);
    let results = actor(Batching::Rows).run(&[Row { tensors, row: None }]);
    assert_eq!(results[0].as_ref().unwrap().shape(0), [3, 2]);
}

#[test]
fn a_panic_fails_its_batch_and_ends_its_actor() {
    let (send, receive) = mpsc::channel();
    let told = move |done: BatchDone| {
        let died = done.died.is_some();
        send.send((done.results.len(), died)).unwrap();
    };
    actix::System::new().block_on(async move {
        let address = actor(Batching::Rows).start();
        address.send(RunBatch::new(rows(&[1.0]), Duration::ZERO, told.clone())).await.unwrap();
        address.send(RunBatch::new(rows(&[2e9, 1.0]), Duration::ZERO, told.clone())).await.unwrap();
        // Sent to an actor that is gone: the callback is called all the same.
        let gone = address.send(RunBatch::new(rows(&[1.0, 2.0, 3.0]), Duration::ZERO, told)).await;
        assert!(gone.is_err());
    });
    assert_eq!(receive.try_iter().collect::<Vec<_>>(), [(1, false), (2, true), (3, true)]);
}

#[test]
fn probing_finds_that_rows_batch_and_what_they_cost() {
    let model = "width = 2\nalpha_us = 300\nbeta_us = 50\n";
    let mut session = engine(EngineKind::Synthetic).unwrap().load(model.as_bytes()).unwrap();
    let probed = probe(&mut *session, Some(6), &Shapes::default(), BUDGET, &[]);
    assert_eq!(probed.batching, Batching::Rows);
    assert_eq!(probed.points.iter().map(|(size, _)| *size).collect::<Vec<_>>(), [1, 2, 4, 6]);
    assert_eq!(probed.max_batch, 6);
    assert!(probed.points.iter().all(|(size, time)| time.as_micros() >= 300 + 50 * u64::from(*size)));
}

#[test]
fn what_is_known_of_a_model_is_believed_where_a_few_runs_agree() {
    let us = ServiceTime::from_micros;
    let probed = |declared, known: &[(u32, ServiceTime)]| {
        let model = "width = 2\nalpha_us = 8000\nbeta_us = 1000\n";
        let mut session = engine(EngineKind::Synthetic).unwrap().load(model.as_bytes()).unwrap();
        let probed = probe(&mut *session, declared, &Shapes::default(), Duration::from_secs(60), known);
        assert_eq!(probed.batching, Batching::Rows, "proved again, whatever is known");
        probed
    };
    let sizes = |points: &[(u32, ServiceTime)]| points.iter().map(|(size, _)| *size).collect::<Vec<_>>();
    let known = [(1, us(12_000)), (3, us(15_000)), (8, us(20_000))];
    let believed = probed(None, &known);
    assert_eq!((believed.informed, believed.points.as_slice(), believed.max_batch), (true, &known[..], 8));
    let bound = probed(Some(3), &known);
    assert_eq!((bound.informed, bound.points.as_slice(), bound.max_batch), (true, &known[..2], 3));
    let others = [(1, us(12_000)), (8, us(60_000))];
    for (declared, unbelievable) in [(Some(8), &others[..]), (Some(4), &known[..]), (Some(4), &known[1..])] {
        let measured = probed(declared, unbelievable);
        assert!(!measured.informed, "{declared:?} {unbelievable:?}");
        assert_eq!(sizes(&measured.points), if declared == Some(8) { vec![1, 2, 4, 8] } else { vec![1, 2, 4] });
    }
}

#[test]
fn a_slow_model_is_probed_by_few_runs() {
    let mut session = engine(EngineKind::Synthetic).unwrap().load(b"width = 2\nalpha_us = 40000").unwrap();
    let probed = probe(&mut *session, None, &Shapes::default(), Duration::from_millis(60), &[]);
    assert!(matches!(probed.batching, Batching::Unbatched { ref because } if because.contains("too slow")));
    assert_eq!(probed.points.len(), 1, "one run to know what it costs");
}

#[test]
fn a_pause_passes_before_the_answer_on_a_thread_and_on_a_timer() {
    // The model takes 5 ms by itself; a batch that has to take longer does.
    for (pauses, at_least, expected) in [(Pauses::OnThread, 0, 5), (Pauses::OnThread, 9, 9), (Pauses::OnTimer, 9, 9)] {
        let (send, receive) = mpsc::channel();
        actix::System::new().block_on(async move {
            let model = b"width = 2\nalpha_us = 3000\nbeta_us = 1000\n";
            let session = engine(EngineKind::Synthetic).unwrap().load(model).unwrap();
            let address = ModelActor::new(session, Batching::Rows, pauses).start();
            let batch = RunBatch::new(rows(&[1.0, 2.0]), Duration::from_millis(at_least), move |done| {
                send.send(done.execute).unwrap();
            });
            address.send(batch).await.unwrap();
            // An actor that pauses takes no other message: this one ends after the batch did.
            address.send(RunBatch::new(rows(&[1.0]), Duration::ZERO, |_| {})).await.unwrap();
        });
        assert!(receive.try_recv().unwrap() >= Duration::from_millis(expected), "{pauses:?} {at_least}");
    }
}

#[test]
fn a_batch_that_was_told_to_stop_is_not_run_again_row_by_row() {
    let mut actor = actor(Batching::Rows);
    let terminator = actor.session.terminator();
    let (over, is_over) = mpsc::channel::<()>();
    let stopper = std::thread::spawn(move || {
        while is_over.recv_timeout(Duration::from_millis(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
            terminator.terminate();
        }
    });
    let results = actor.run(&rows(&[1.0, 2e12]));
    drop(over);
    stopper.join().unwrap();
    assert!(results.iter().all(|result| matches!(result, Err(RunError::Terminated))));
}

#[test]
fn a_session_that_is_broken_ends_its_actor() {
    struct Broken(weir_core::tensor::Signature);
    impl Session for Broken {
        fn signature(&self) -> &weir_core::tensor::Signature {
            &self.0
        }
        fn run(&mut self, _: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            Err(RunError::Broken("an illegal address".into()))
        }
        fn terminator(&self) -> crate::engine::Terminator {
            crate::engine::Terminator::new(|| {})
        }
        fn memory(&self) -> weir_core::units::Bytes {
            weir_core::units::Bytes(0)
        }
    }
    let (send, receive) = mpsc::channel();
    actix::System::new().block_on(async move {
        let actor = ModelActor::new(Box::new(Broken(Default::default())), Batching::Rows, Pauses::OnThread).start();
        let told = move |done: BatchDone| send.send((done.results.len(), done.died)).unwrap();
        actor.send(RunBatch::new(rows(&[1.0, 2.0]), Duration::ZERO, told)).await.unwrap();
    });
    assert_eq!(receive.try_recv().unwrap(), (2, Some("an illegal address".into())));
}

#[test]
fn rows_that_lie_as_a_run_needs_them_are_not_copied() {
    let in_place = |rows: &[Row], padded: usize| {
        let inputs = stacked(rows, padded, None);
        assert_eq!(*inputs, stack(rows, padded, None), "the same either way");
        matches!(inputs, Cow::Borrowed(_))
    };
    let five = rows(&[1.0, 2.0, 3.0, 4.0, 5.0]);
    assert!(in_place(&five, 5) && in_place(&rows(&[6.0]), 1));
    assert!(!in_place(&five[..1], 1) && !in_place(&five[1..], 4) && !in_place(&five, 8));
    assert!(!in_place(&[rows(&[1.0]), rows(&[2.0])].concat(), 2), "of two queries");
}
