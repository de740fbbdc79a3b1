use std::sync::mpsc as sync;

use weir_core::ids::DeviceName;
use weir_core::outcome::{Class, Rejection};
use weir_core::scheduler::Policy;
use weir_core::tensor::{Row, Signature, Tensor};
use weir_core::triage::Bid;
use weir_core::units::Deadline;
use weir_host::spawn::Place;
use weir_ml_workers::engine::{RunError, Session, Terminator};

use super::*;
use crate::actors::device::Slots;
use crate::bench::{self, HandClock, PATIENCE};

/// A model that answers with what it is asked, as long as nobody holds it.
#[derive(Default)]
struct Echo(Signature, Arc<Mutex<()>>);

impl Session for Echo {
    fn signature(&self) -> &Signature {
        &self.0
    }
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let _held = self.1.lock().unwrap();
        Ok(inputs.to_vec())
    }
    fn terminator(&self) -> Terminator {
        Terminator::new(|| {})
    }
    fn memory(&self) -> Bytes {
        Bytes(6)
    }
}

/// A node with memory for one of its two models, `m1` and `m2`, which has measured both: a load takes 10 ms.
struct Bench {
    memory: Arc<Memory>,
    device: Arc<Device>,
    clock: Arc<HandClock>,
    orders: mpsc::UnboundedReceiver<Order>,
    places: Vec<Place>,
    replies: Replies,
    came: sync::Receiver<(usize, StageReply)>,
    /// Who has it holds all models.
    hold: Arc<Mutex<()>>,
}

fn model(id: u64) -> ModelRef {
    ModelRef::parse(&format!("m{id}@1")).unwrap()
}

impl Bench {
    fn new() -> Bench {
        let clock = Arc::new(HandClock::default());
        let (told, _) = mpsc::unbounded_channel();
        let slots = Slots { count: 1, pace: 1.0, cores: Vec::new() };
        let hands = || Arc::clone(&clock) as Arc<dyn Clock>;
        let device = Device::new(DeviceName::parse("cpu0").unwrap(), slots, Policy::default(), hands(), told);
        let (memory, orders) = Memory::new(hands(), Bytes(10));
        let (replies, came) = bench::replies();
        let mut bench =
            Bench { memory, device, clock, orders, places: Vec::new(), replies, came, hold: Arc::default() };
        for id in [1, 2] {
            bench.memory.place(ReplicaId(id), &model(id), &bench.device, Bytes(6), false);
        }
        bench.memory.settle();
        for id in [1, 2] {
            bench.fetches(id);
        }
        for id in [1, 2] {
            bench.memory.on_fetched(&model(id));
        }
        for id in [1, 2] {
            bench.loads(id, true);
            if id == 1 {
                // What was never loaded is, as soon as nobody needs the first one, which goes for it.
                bench.pass(10);
                bench.memory.settle();
                assert_eq!(bench.ended(), 1);
                bench.memory.on_gone(ReplicaId(1));
            }
        }
        bench
    }

    fn pass(&self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// The next order is to fetch the file of this one.
    fn fetches(&mut self, id: u64) {
        match self.orders.try_recv() {
            Ok(Order::Fetch(ordered)) => assert_eq!(ordered, model(id)),
            other => panic!("{other:?} in place of a fetch of {id}"),
        }
    }

    /// The next order is to load this one, which takes 10 ms.
    fn loads(&mut self, id: u64, first: bool) {
        match self.orders.try_recv() {
            Ok(Order::Load(ordered)) => assert_eq!(ordered, ReplicaId(id)),
            other => panic!("{other:?} in place of a load of {id}"),
        }
        let (place, actor) = bench::actor(Echo(Signature::default(), Arc::clone(&self.hold)));
        let loaded = LoadedReplica {
            model: model(id),
            actor,
            terminator: Terminator::new(|| {}),
            profile: Profile::new(&[(1, ServiceTime::from_micros(1000))]),
            max_batch: 8,
            batches_rows: true,
            padding: None,
        };
        self.places.push(place);
        self.pass(10);
        self.memory.on_loaded(ReplicaId(id), loaded, first.then_some((Bytes(6), Duration::from_millis(10))));
    }

    /// The next order is to end a thread: whose.
    fn ended(&mut self) -> u64 {
        match self.orders.try_recv() {
            Ok(Order::End(id, profile)) => {
                assert!(profile.is_some(), "what its device has learnt is kept");
                id.0
            }
            other => panic!("{other:?} in place of an end"),
        }
    }

    /// A row that has so many ms.
    fn submit(&self, slot: usize, id: u64, ms: u64) -> Handed {
        let inputs = Row { tensors: Arc::new(vec![Tensor::f32(&[1, 1], &[0.0])]), row: Some(0) };
        let deadline = Deadline::after(self.clock.now(), Duration::from_millis(ms));
        let row = Submission { slot, inputs, deadline, class: Class::Default, bid: Bid::PLAIN };
        self.memory.submit(&self.device, &model(id), vec![row], &self.replies)
    }

    fn reply(&self) -> (usize, StageReply) {
        self.came.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.places.iter().for_each(Place::stop);
    }
}

fn in_a_system(test: impl FnOnce(Bench)) {
    actix::System::new().block_on(async { test(Bench::new()) });
}

#[test]
fn rows_wait_for_their_model_and_run_when_it_is_there() {
    in_a_system(|mut bench| {
        assert!(bench.memory.now().is_short());
        let estimate = bench
            .memory
            .estimate(bench.clock.now(), &model(1), &bench.device, Inquiry::of(Class::Default, Deadline::NEVER))
            .expect("it is out of memory");
        assert_eq!(estimate.finish, bench.clock.now() + Duration::from_millis(11), "a load and a row");
        let handed = [bench.submit(7, 1, 500), bench.submit(8, 1, 500)];
        assert_eq!(bench.ended(), 2);
        assert!(bench.orders.try_recv().is_err(), "its memory is not free yet");
        bench.memory.on_gone(ReplicaId(2));
        bench.loads(1, false);
        let mut slots = [bench.reply(), bench.reply()].map(|(slot, reply)| {
            assert!(matches!(reply, StageReply::Answered { .. }), "{reply:?}");
            slot
        });
        slots.sort_unstable();
        assert_eq!(slots, [7, 8]);
        drop(handed);
        assert!(bench.orders.try_recv().is_err(), "two rows, one load");
    });
}

#[test]
fn who_cannot_wait_is_refused_at_once_and_who_has_gone_gets_no_reply() {
    in_a_system(|mut bench| {
        let handed = bench.submit(1, 1, 5);
        assert!(matches!(bench.reply(), (1, StageReply::Rejected(Rejection::TooLate))));
        drop(handed);
        while bench.orders.try_recv().is_ok() {}
        let stays = bench.submit(2, 1, 5_000);
        drop(bench.submit(3, 1, 5_000));
        let inner = bench.memory.lock();
        let waiting: Vec<usize> = inner.held.values().map(|held| held.row.slot).collect();
        assert_eq!((waiting, inner.handed.len()), (vec![2], 1), "nothing is kept of the other");
        drop(inner);
        drop(stays);
        let inner = bench.memory.lock();
        assert!(inner.held.is_empty() && inner.handed.is_empty());
    });
}

#[test]
fn what_its_device_has_before_it_counts_for_who_waits_for_a_load() {
    in_a_system(|bench| {
        let hold = Arc::clone(&bench.hold);
        let held = hold.lock().unwrap();
        let handed = bench.submit(1, 2, 500);
        // It was to take 1 ms: it is taken to need as much again as it is late.
        bench.pass(101);
        let estimate = bench
            .memory
            .estimate(bench.clock.now(), &model(1), &bench.device, Inquiry::of(Class::Default, Deadline::NEVER))
            .expect("it is out");
        assert_eq!(estimate.finish, bench.clock.now() + Duration::from_millis(101));
        let late = bench.submit(2, 1, 50);
        assert!(matches!(bench.reply(), (2, StageReply::Rejected(Rejection::TooLate))));
        let timely = bench.submit(3, 1, 500);
        assert!(bench.came.try_recv().is_err());
        drop((held, late));
        assert!(matches!(bench.reply(), (1, StageReply::Answered { .. })));
        bench.memory.settle();
        drop((handed, timely));
    });
}

#[test]
fn what_is_removed_while_it_is_loaded_takes_its_memory_until_its_load_has_ended() {
    in_a_system(|mut bench| {
        let _handed = bench.submit(4, 1, 500);
        assert_eq!(bench.ended(), 2);
        bench.memory.on_gone(ReplicaId(2));
        assert!(matches!(bench.orders.try_recv(), Ok(Order::Load(ReplicaId(1)))));
        bench.memory.remove(ReplicaId(1));
        assert!(matches!(bench.reply(), (4, StageReply::Rejected(Rejection::NoReplica))));
        assert_eq!(bench.memory.now().taken, Bytes(6));
        let _handed = bench.submit(5, 2, 500);
        assert!(bench.orders.try_recv().is_err(), "there is no room for it yet");
        bench.memory.on_ended(ReplicaId(1));
        bench.loads(2, false);
        assert!(matches!(bench.reply(), (5, StageReply::Answered { .. })));
    });
}

#[test]
fn a_load_that_fails_refuses_who_waits_for_it() {
    in_a_system(|mut bench| {
        let _handed = bench.submit(4, 1, 500);
        assert_eq!(bench.ended(), 2);
        bench.memory.on_gone(ReplicaId(2));
        assert!(matches!(bench.orders.try_recv(), Ok(Order::Load(ReplicaId(1)))));
        bench.memory.on_failed(ReplicaId(1), Duration::from_secs(1));
        assert!(matches!(bench.reply(), (4, StageReply::Rejected(Rejection::NoReplica))));
        // What is not tried again yet keeps nobody from the other.
        let _handed = bench.submit(5, 2, 500);
        bench.loads(2, false);
        assert!(matches!(bench.reply(), (5, StageReply::Answered { .. })));
    });
}

#[test]
fn a_file_that_is_gone_is_fetched_while_its_rows_wait_and_others_are_loaded() {
    in_a_system(|mut bench| {
        let waits = bench.submit(4, 1, 500);
        assert_eq!(bench.ended(), 2);
        bench.memory.on_gone(ReplicaId(2));
        assert!(matches!(bench.orders.try_recv(), Ok(Order::Load(ReplicaId(1)))));
        bench.memory.on_missing(ReplicaId(1));
        bench.fetches(1);
        assert!(bench.came.try_recv().is_err(), "it waits");
        let _other = bench.submit(5, 2, 500);
        bench.loads(2, false);
        assert!(matches!(bench.reply(), (5, StageReply::Answered { .. })));
        bench.pass(10);
        bench.memory.on_not_fetched(&model(1), Duration::from_secs(1));
        assert!(matches!(bench.reply(), (4, StageReply::Rejected(Rejection::NoReplica))));
        drop(waits);
    });
}

#[test]
fn what_is_removed_takes_its_memory_until_its_session_has_ended() {
    in_a_system(|mut bench| {
        bench.memory.remove(ReplicaId(2));
        bench.memory.settle();
        assert!(bench.orders.try_recv().is_err());
        assert_eq!(bench.memory.now().taken, Bytes(6));
        let _handed = bench.submit(6, 1, 500);
        assert!(bench.orders.try_recv().is_err(), "there is no room for it yet");
        bench.memory.on_ended(ReplicaId(2));
        bench.loads(1, false);
        assert!(matches!(bench.reply(), (6, StageReply::Answered { .. })));
        assert!(!bench.memory.now().is_short());
    });
}
