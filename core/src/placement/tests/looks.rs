//! Looks at random histories of a cluster: what is kept between them changes nothing that comes of them.

use super::*;
use crate::endpoint::{Endpoint, Label, Split, Stage};
use crate::ids::{EndpointName, LogIndex, ModelName, RequestId, StageName, Version};
use crate::replicated::{Change, Command, Entry, Moves};
use crate::tensor::{DType, TensorSpec};
use crate::tuner::Tuner;

const NODES: usize = 7;
const MODELS: usize = 12;
const ENDPOINTS: usize = 6;

#[derive(Clone, Debug)]
enum Event {
    Joins {
        node: usize,
        memory: u64,
        slots: Vec<u32>,
    },
    Forgotten(usize),
    Drained(usize, bool),
    Silent(usize, bool),
    Restarted(usize),
    ToldToStop(usize, bool),
    Fails {
        node: usize,
        model: usize,
        fails: bool,
    },
    Measures {
        node: usize,
        memory: u64,
        us: u64,
    },
    /// Each model with its minimum, what is allowed beyond, and its size.
    Declared {
        endpoint: usize,
        deadline_ms: u64,
        models: Vec<(usize, u32, u32, u64)>,
        shadow: bool,
    },
    Deleted(usize),
    /// A label goes from one version to another, or goes nowhere.
    Labelled {
        stands: usize,
        next: Option<usize>,
    },
    Quarantined(usize, bool),
    Asked {
        node: usize,
        model: usize,
        rows: u64,
    },
    Passes {
        ms: u64,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let node = || 0..NODES;
    let model = || 0..MODELS;
    let declared = prop::collection::vec((model(), 1..4u32, 0..6u32, 20..200u64), 1..4);
    prop_oneof![
        3 => (node(), 0..900u64, prop::collection::vec(1..4u32, 1..3))
            .prop_map(|(node, memory, slots)| Event::Joins { node, memory, slots }),
        1 => node().prop_map(Event::Forgotten),
        2 => (node(), any::<bool>()).prop_map(|(node, is)| Event::Drained(node, is)),
        2 => (node(), any::<bool>()).prop_map(|(node, is)| Event::Silent(node, is)),
        1 => node().prop_map(Event::Restarted),
        1 => (node(), any::<bool>()).prop_map(|(node, is)| Event::ToldToStop(node, is)),
        2 => (node(), model(), any::<bool>()).prop_map(|(node, model, fails)| Event::Fails { node, model, fails }),
        2 => (node(), 20..250u64, 1000..20_000u64)
            .prop_map(|(node, memory, us)| Event::Measures { node, memory, us }),
        5 => (0..ENDPOINTS, 5..200u64, declared, any::<bool>())
            .prop_map(|(endpoint, deadline_ms, models, shadow)| {
                Event::Declared { endpoint, deadline_ms, models, shadow }
            }),
        1 => (0..ENDPOINTS).prop_map(Event::Deleted),
        2 => (model(), prop::option::of(model())).prop_map(|(stands, next)| Event::Labelled { stands, next }),
        1 => (model(), any::<bool>()).prop_map(|(model, is)| Event::Quarantined(model, is)),
        8 => (node(), model(), 0..1000u64).prop_map(|(node, model, rows)| Event::Asked { node, model, rows }),
        4 => prop_oneof![6 => 100..2500u64, 2 => 10_000..70_000u64, 1 => Just(700_000)]
            .prop_map(|ms| Event::Passes { ms }),
    ]
}

/// A node's process, as far as its reports show.
#[derive(Clone, Debug)]
struct Process {
    incarnation: u128,
    silent: bool,
    told_to_stop: bool,
    fails: BTreeSet<usize>,
    memory: u64,
    us: u64,
    /// Reports with each replica.
    known: BTreeMap<ReplicaId, u64>,
    rows: BTreeMap<ModelRef, u64>,
}

struct World {
    now: Instant,
    state: State,
    liveness: Liveness,
    tuner: Tuner,
    placement: Placement,
    index: u64,
    processes: Vec<Process>,
}

fn numbered(i: usize) -> ModelRef {
    ModelRef { name: ModelName::parse("m").unwrap(), version: Version::parse(&format!("{i:02}")).unwrap() }
}

fn name(i: usize) -> NodeName {
    NodeName::parse(&format!("n{i}")).unwrap()
}

impl World {
    fn new() -> World {
        let now = Instant::from_millis(1000);
        let process = Process {
            incarnation: 1,
            silent: false,
            told_to_stop: false,
            fails: BTreeSet::new(),
            memory: 100,
            us: 5000,
            known: BTreeMap::new(),
            rows: BTreeMap::new(),
        };
        World {
            now,
            state: State::default(),
            liveness: Liveness::new(now),
            tuner: Tuner::new(now),
            placement: Placement::default(),
            index: 0,
            processes: vec![process; NODES],
        }
    }

    /// Applies what is not refused.
    fn write(&mut self, command: Command) -> bool {
        self.index += 1;
        let entry = Entry { request: RequestId(self.index.into()), by: "test".into(), command };
        self.state.apply(LogIndex(self.index), &entry).0.is_ok()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Joins { node: at, memory, slots } => {
                let device = |(i, slots): (usize, u32)| Device {
                    name: DeviceName::parse(&format!("cpu{i}")).unwrap(),
                    slots,
                    ..node("n", 0).devices[0].clone()
                };
                let devices = slots.into_iter().enumerate().map(device).collect();
                let joins = Node { name: name(at), devices, ..node("n", memory) };
                assert!(self.write(Command::NodeJoin(joins)));
            }
            Event::Forgotten(at) => drop(self.write(Command::NodeRemove(name(at)))),
            Event::Drained(at, draining) => drop(self.write(Command::NodeDrain { node: name(at), draining })),
            Event::Silent(at, silent) => self.processes[at].silent = silent,
            Event::Restarted(at) => {
                let process = &mut self.processes[at];
                process.incarnation += 1;
                (process.known, process.rows) = (BTreeMap::new(), BTreeMap::new());
            }
            Event::ToldToStop(at, stop) => self.processes[at].told_to_stop = stop,
            Event::Fails { node, model, fails } => {
                let known = &mut self.processes[node].fails;
                if fails {
                    known.insert(model)
                } else {
                    known.remove(&model)
                };
            }
            Event::Measures { node, memory, us } => {
                (self.processes[node].memory, self.processes[node].us) = (memory, us);
            }
            Event::Declared { endpoint, deadline_ms, models, shadow } => {
                self.declare(endpoint, deadline_ms, models, shadow)
            }
            Event::Labelled { stands, next } => {
                let version = |i| numbered(i).version;
                let stable = ModelRef { version: Version::parse("stable").unwrap(), ..numbered(stands) };
                let label = Label { next: next.map(version), ..Label::new(stable, version(stands)) };
                // The log goes on.
                self.write(Command::NodeRemove(name(NODES)));
                self.state.absorb(&Change::Label(label));
            }
            Event::Deleted(at) => {
                let endpoint = EndpointName::parse(&format!("e{at}")).unwrap();
                self.write(Command::DeleteEndpoint(endpoint));
            }
            Event::Quarantined(at, is) => {
                let because = is.then(|| "it died".into());
                self.write(Command::Quarantine { model: numbered(at), because });
            }
            Event::Asked { node, model, rows } => {
                *self.processes[node].rows.entry(numbered(model)).or_default() += rows;
            }
            Event::Passes { ms } => self.now = self.now + Duration::from_millis(ms),
        }
    }

    fn declare(&mut self, at: usize, deadline_ms: u64, models: Vec<(usize, u32, u32, u64)>, shadow: bool) {
        let spec = |name: &str| TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![None, Some(4)] };
        let mut declared: Vec<Model> = Vec::new();
        for (i, min, more, size) in models {
            let model = Model {
                reference: numbered(i),
                digest: Digest([i as u8; 32]),
                size: Bytes(size),
                signature: Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] },
                replicas: ReplicaRange { min, max: min + more },
                ..known_model(Digest([0; 32]))
            };
            if declared.iter().all(|other| other.reference != model.reference) {
                declared.push(model);
            }
        }
        let name = EndpointName::parse(&format!("e{at}")).unwrap();
        let stage = Stage::new(StageName::parse("only").unwrap(), declared[0].reference.clone(), None);
        let mut endpoint = Endpoint::new(name, Duration::from_millis(deadline_ms), vec![stage]);
        let mut others = declared.iter().map(|model| model.reference.clone());
        endpoint.shadow = if shadow { others.next_back().filter(|_| others.len() > 0) } else { None };
        if others.len() > 1 {
            endpoint.versions = others.map(|model| Split { model, share: 1 }).collect();
        }
        let command = Command::Apply { models: declared, endpoints: vec![endpoint], if_index: None };
        assert!(self.write(command), "{:?}", self.state.requests.back());
    }

    /// Every process that is not silent reports.
    fn report(&mut self) {
        for (i, process) in self.processes.iter_mut().enumerate().filter(|(_, process)| !process.silent) {
            let here = self.state.plan.assignments.iter().filter(|(_, at)| at.node == name(i));
            let mut replicas = Vec::new();
            for (id, at) in here {
                let known = process.known.entry(*id).or_default();
                *known += 1;
                let profile = ReplicaProfile {
                    points: vec![
                        (1, ServiceTime::from_micros(process.us)),
                        (4, ServiceTime::from_micros(2 * process.us)),
                    ],
                    max_batch: 4,
                    unbatched: String::new(),
                    memory: Bytes(process.memory),
                    informed: false,
                };
                let fails = process.fails.iter().any(|model| numbered(*model) == at.model);
                let state = match () {
                    () if *known <= id.0 % 3 => ReplicaState::Loading,
                    () if fails => ReplicaState::Failed("it does not load".into()),
                    () => ReplicaState::Ready(profile),
                };
                replicas.push((id.0, state, 0));
            }
            let report = NodeReport {
                incarnation: process.incarnation,
                draining: process.told_to_stop,
                wanted: process.rows.clone(),
                ..report(name(i).as_str(), &replicas)
            };
            self.tuner.on_report(self.now, &report.node, report.incarnation, &report.wanted);
            self.liveness.on_report(self.now, &self.state, report);
        }
    }

    /// Looks with what is kept, with nothing kept, and as the reference does.
    fn look(&mut self) -> Look {
        let (mut tuner_of_reference, mut tuner_of_newcomer) = (self.tuner.clone(), self.tuner.clone());
        let expected = reference::propose(self.now, &self.state, &self.liveness, &mut tuner_of_reference);
        let anew = Placement::default().look(self.now, &self.state, &self.liveness, &mut tuner_of_newcomer);
        let look = self.placement.look(self.now, &self.state, &self.liveness, &mut self.tuner);
        let moves = Moves::between(&self.state.plan.assignments, &expected.assignments);
        assert_eq!(anew, Look { moves, unplaceable: expected.unplaceable }, "from nothing");
        assert_eq!(look, anew, "with what was kept");
        for i in 0..MODELS {
            assert_eq!(self.tuner.want(&numbered(i)), tuner_of_reference.want(&numbered(i)));
        }
        look
    }
}

#[test]
fn a_snapshot_of_others_is_read_whole_however_many_changes_made_it() {
    let with = |model, index| {
        let mut world = World { index, ..World::new() };
        for i in 0..3 {
            world.happen(Event::Joins { node: i, memory: 500, slots: vec![2] });
        }
        world.happen(Event::Declared { endpoint: 0, deadline_ms: 50, models: vec![(model, 1, 0, 20)], shadow: false });
        world.report();
        world
    };
    let mut world = with(0, 0);
    world.look();
    // This member was left behind and is sent a state in which another model was declared instead, by as many entries.
    let other = with(1, 100);
    (world.state, world.liveness) = (other.state, other.liveness);
    world.look();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_between_looks_changes_nothing_that_comes_of_them(
        history in prop::collection::vec((prop::collection::vec(event(), 0..4), any::<bool>(), 0..4u8), 1..60)
    ) {
        let mut world = World::new();
        for i in 0..NODES - 2 {
            world.happen(Event::Joins { node: i, memory: 500, slots: vec![2] });
        }
        for (events, reports, writes) in history {
            world.now = world.now + Duration::from_millis(250);
            events.into_iter().for_each(|event| world.happen(event));
            if reports {
                world.report();
            }
            let look = world.look();
            // Now and then the plan is not written, as somebody was faster.
            if writes > 0 && !look.moves.is_nothing() {
                let replaces = world.state.plan.epoch;
                let written = world.write(Command::MovePlan { replaces, moves: look.moves });
                prop_assert!(written, "{:?}", world.state.requests.back());
            }
        }
    }
}
