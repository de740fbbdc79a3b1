use std::sync::atomic::Ordering;
use std::sync::mpsc as sync;

use actix::Actor;
use weir_core::scheduler::Policy;
use weir_core::shapes::Padding;
use weir_core::tensor::{DType, Signature, Tensor, TensorSpec};
use weir_core::triage::Bid;
use weir_core::units::Bytes;
use weir_host::spawn::Place;
use weir_ml_workers::engine::Session;
use weir_ml_workers::model_actor::Pauses;
use weir_ml_workers::probe::Batching;

use super::*;
use crate::bench::{self, HandClock, PATIENCE};

/// A model that answers each run with what it is told to, when it is told to.
struct OnDemand {
    answers: sync::Receiver<f32>,
    signature: Signature,
}

impl Session for OnDemand {
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let answer = self.answers.recv_timeout(PATIENCE).map_err(|_| RunError::Model("nobody told".into()))?;
        Ok(vec![Tensor::f32(&[inputs[0].shape[0], 1], &vec![answer; inputs[0].shape[0] as usize])])
    }
    fn terminator(&self) -> Terminator {
        Terminator::new(|| {})
    }
    fn memory(&self) -> Bytes {
        Bytes(0)
    }
}

struct Bench {
    device: Arc<Device>,
    clock: Arc<HandClock>,
    replies: Replies,
    came: sync::Receiver<(usize, StageReply)>,
    deaths: mpsc::UnboundedReceiver<Death>,
}

fn model(name: &str) -> ModelRef {
    ModelRef::parse(&format!("{name}@1")).unwrap()
}

fn loaded(name: &str, actor: Addr<ModelActor>) -> LoadedReplica {
    LoadedReplica {
        model: model(name),
        actor,
        terminator: Terminator::new(|| {}),
        profile: Profile::new(&[(1, ServiceTime::from_micros(1000))]),
        max_batch: 8,
        batches_rows: true,
        padding: None,
    }
}

impl Bench {
    fn new() -> Bench {
        Bench::at_pace(1.0)
    }

    fn at_pace(pace: f64) -> Bench {
        let clock = Arc::new(HandClock::default());
        let (told, deaths) = mpsc::unbounded_channel();
        let name = DeviceName::parse("cpu0").unwrap();
        let slots = Slots { count: 1, pace, cores: Vec::new() };
        let device = Device::new(name, slots, Policy::default(), Arc::clone(&clock) as Arc<dyn Clock>, told);
        let (replies, came) = bench::replies();
        Bench { device, clock, replies, came, deaths }
    }

    /// A replica on a thread of its own.
    fn add(&self, id: u64, name: &str) -> (Place, sync::Sender<f32>) {
        let (tell, answers) = sync::channel();
        let (place, actor) = bench::actor(OnDemand { answers, signature: Signature::default() });
        self.device.add_replica(ReplicaId(id), loaded(name, actor));
        (place, tell)
    }

    fn submit(&self, slot: usize, name: &str) {
        let inputs = Row { tensors: Arc::new(vec![Tensor::f32(&[1, 1], &[0.0])]), row: Some(0) };
        let row = Submission { slot, inputs, deadline: Deadline::NEVER, class: Class::Default, bid: Bid::PLAIN };
        self.device.submit(&model(name), vec![row], &self.replies);
    }

    fn reply(&self) -> (usize, StageReply) {
        self.came.recv_timeout(PATIENCE).unwrap()
    }
}

fn in_a_system(test: impl FnOnce()) {
    actix::System::new().block_on(async { test() });
}

#[test]
fn a_slowed_device_takes_as_long_as_was_measured_whatever_one_batch_took() {
    in_a_system(|| {
        let bench = Bench::at_pace(0.5);
        let (place, tell) = bench.add(1, "a");
        // By the clock of the device it took as long as nobody would wait here.
        bench.submit(0, "a");
        bench.clock.0.store(1_000_000, Ordering::SeqCst);
        tell.send(1.0).unwrap();
        assert!(matches!(bench.reply(), (0, StageReply::Answered { .. })));
        bench.submit(1, "a");
        tell.send(2.0).unwrap();
        assert!(
            matches!(bench.reply(), (1, StageReply::Answered { execute, .. }) if execute >= Duration::from_millis(2))
        );
        let batches = bench.device.batches(ReplicaId(1));
        assert_eq!((batches.count(), batches.rows()), (2, 2));
        place.stop();
    });
}

#[test]
fn the_time_that_replies_take_is_kept_back_from_deadlines() {
    in_a_system(|| {
        let bench = Bench::new();
        let (place, tell) = bench.add(1, "a");
        let echo = bench.device.echo();
        // A batch takes a millisecond by the profile; an eighth of the time may be kept back.
        let submit = |slot: usize| {
            let inputs = Row { tensors: Arc::new(vec![Tensor::f32(&[1, 1], &[0.0])]), row: Some(0) };
            let deadline = Deadline::after(bench.clock.now(), Duration::from_micros(1100));
            let row = Submission { slot, inputs, deadline, class: Class::Default, bid: Bid::PLAIN };
            bench.device.submit(&model("a"), vec![row], &bench.replies);
        };
        submit(0);
        tell.send(1.0).unwrap();
        assert!(matches!(bench.reply(), (0, StageReply::Answered { .. })), "nothing is known of the way back");
        // The thread that the reply went to looks at it three milliseconds later.
        bench.clock.0.store(3, Ordering::SeqCst);
        let heard = async {
            while bench.device.lock().reply_path.at_device(Instant::ZERO, Deadline(Instant::from_millis(80)))
                != Deadline(Instant::from_millis(77))
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(async {
                    let heard = tokio::time::timeout(PATIENCE, heard);
                    tokio::select! { () = echo => false, heard = heard => heard.is_ok() }
                })
            });
            assert!(thread.join().unwrap(), "no echo came through");
        });
        submit(1);
        assert!(matches!(bench.reply(), (1, StageReply::Rejected(_))), "it would be late by the way back");
        place.stop();
    });
}

#[test]
fn a_batch_that_was_given_up_on_does_not_answer_for_its_successor() {
    in_a_system(|| {
        let mut bench = Bench::new();
        let (old, tell_old) = bench.add(1, "a");
        bench.submit(0, "a");
        for ms in [10_000, 11_000] {
            bench.clock.0.store(ms, Ordering::SeqCst);
            bench.device.check_hangs();
        }
        assert!(matches!(bench.reply(), (0, StageReply::Failed(_))));
        assert_eq!(bench.deaths.try_recv().unwrap().because, "a batch hung");
        let (new, tell_new) = bench.add(1, "a");
        bench.submit(1, "a");
        // The old thread comes back to its senses while the new one computes.
        tell_old.send(-1.0).unwrap();
        old.stop();
        assert!(bench.came.recv_timeout(Duration::from_millis(200)).is_err(), "nobody has answered yet");
        tell_new.send(7.0).unwrap();
        let (slot, reply) = bench.reply();
        let StageReply::Answered { outputs, .. } = reply else { panic!("{reply:?}") };
        assert_eq!((slot, outputs.tensors[0].as_f32().unwrap()), (1, vec![7.0]));
        new.stop();
    });
}

#[test]
fn a_batch_whose_actor_goes_before_it_takes_it_up_may_run_elsewhere_and_frees_its_slot() {
    let mut bench = Bench::new();
    let system = actix::System::new();
    system.block_on(async {
        let (_tell, answers) = sync::channel();
        let session = OnDemand { answers, signature: Signature::default() };
        let actor = ModelActor::new(Box::new(session), Batching::Rows, Pauses::OnThread).start();
        bench.device.add_replica(ReplicaId(1), loaded("a", actor));
        // It lies in the mailbox: the actor has had no turn yet.
        bench.submit(0, "a");
    });
    drop(system);
    assert!(matches!(bench.reply(), (0, StageReply::Rejected(Rejection::NoReplica))));
    assert!(bench.deaths.try_recv().is_ok());
    in_a_system(|| {
        let (place, tell) = bench.add(2, "b");
        bench.submit(1, "b");
        tell.send(3.0).unwrap();
        assert!(matches!(bench.reply(), (1, StageReply::Answered { .. })));
        place.stop();
    });
}

#[test]
fn a_query_of_many_rows_costs_as_many_where_rows_are_batched() {
    let tensors = Arc::new(vec![Tensor::f32(&[5, 2], &[0.0; 10])]);
    let whole = Row { tensors: Arc::clone(&tensors), row: None };
    assert_eq!(cost(&whole, true), 5);
    assert_eq!(cost(&whole, false), 1, "its first dimension need not be rows");
    assert_eq!(cost(&Row { tensors, row: Some(3) }, true), 1);
    assert_eq!(cost(&Row { tensors: Arc::new(vec![Tensor::f32(&[], &[0.0])]), row: None }, true), 1);
}

#[test]
fn rows_that_are_filled_up_to_one_length_share_a_batch() {
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![None, None] };
    let signature = Signature { inputs: vec![spec("x"), spec("mask")], outputs: Vec::new() };
    let pad = Padding {
        mask: "mask".into(),
        inputs: BTreeMap::from([("x".into(), 0.0)]),
        dimension: 1,
        buckets: vec![4, 8],
        outputs: Vec::new(),
    };
    let plan = pad.plan(&signature);
    let key = |length: u64, plan: Option<&PadPlan>| {
        let tensor = Tensor::f32(&[1, length], &vec![0.0; length as usize]);
        shape_key(&Row { tensors: Arc::new(vec![tensor.clone(), tensor]), row: Some(0) }, plan)
    };
    assert_eq!(key(2, Some(&plan)), key(4, Some(&plan)));
    assert_ne!(key(4, Some(&plan)), key(5, Some(&plan)));
    assert_ne!(key(9, Some(&plan)), key(10, Some(&plan)), "longer than any bucket");
    assert_ne!(key(2, None), key(4, None));
}
