use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use capnp::message::Builder;
use proptest::prelude::*;
use weir_core::endpoint::audit::{GateAudit, Labelled};
use weir_core::endpoint::gain::Bin;
use weir_core::endpoint::graph::{Comparison, How, Signal};
use weir_core::endpoint::{
    Combine, Condition, Endpoint, Feed, GainTable, Gate, Judged, Label, Labels, Run, Split, Stage,
};
use weir_core::history::*;
use weir_core::ids::*;
use weir_core::outcome::{Class, Outcome, Rejection};
use weir_core::paging::{Evicted, MemoryNow, Paged, Residence};
use weir_core::placement::{DeviceLoad, EndpointLoad, NodeReport, ReplicaProfile, ReplicaReport, ReplicaState};
use weir_core::replicated::*;
use weir_core::rollout::Score;
use weir_core::scheduler::{Batches, Closed};
use weir_core::shapes::{Padding, Shapes};
use weir_core::tensor::{DType, Row, Signature, Tensor, TensorSpec};
use weir_core::triage::Asked;
use weir_core::units::{Bytes, ServiceTime};

use super::control::*;
use super::endpoint::*;
use super::framed;
use super::history::*;
use super::predict::*;
use super::report::*;
use super::tensor::*;
use crate::{control_capnp, predict_capnp, raft_capnp};

fn shaped_model() -> Model {
    Model {
        shapes: Shapes {
            batch_sizes: vec![1, 4, 8],
            pad: Some(Padding {
                mask: "mask".into(),
                inputs: BTreeMap::from([("ids".into(), 7.0)]),
                dimension: 1,
                buckets: vec![16, 32],
                outputs: vec!["hidden".into()],
            }),
        },
        ..model()
    }
}

fn model() -> Model {
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: DType::Bf16, shape: vec![None, Some(4)] };
    Model {
        reference: ModelRef::parse("m@1").unwrap(),
        digest: Digest([7; 32]),
        size: Bytes(99),
        engine: EngineKind::Kernel,
        signature: Signature { inputs: vec![spec("in put"), spec("ключ")], outputs: vec![spec("y")] },
        max_batch: Some(8),
        shapes: Shapes::default(),
        replicas: ReplicaRange { min: 2, max: u32::MAX },
        quarantined: Some("died".into()),
    }
}

fn endpoint() -> Endpoint {
    let stage = |name: &str, gate| Stage::new(StageName::parse(name).unwrap(), ModelRef::parse("m@1").unwrap(), gate);
    let stages = vec![stage("a", None), stage("b", Some(Gate::ConfidenceBelow(0.9)))];
    Endpoint {
        weight: 2.5,
        class: Class::Sheddable,
        label_output: Some("probs".into()),
        ..Endpoint::new(EndpointName::parse("e").unwrap(), Duration::from_micros(1500), stages)
    }
}

/// An endpoint with every kind of gate.
fn gated() -> Endpoint {
    let stage = |name: &str, gate| Stage::new(StageName::parse(name).unwrap(), ModelRef::parse("m@1").unwrap(), gate);
    let bin = |confidence, next: &[f32]| Bin {
        confidence,
        rows: 40,
        right: 0.75,
        gain: 0.1,
        error: 0.02,
        next: next.to_vec(),
    };
    let table = GainTable::new(vec![bin(0.25, &[1.0]), bin(0.5, &[1.0])]).unwrap();
    let stages = vec![
        stage("a", None),
        stage("b", Some(Gate::ConfidenceBelow(0.9))),
        stage("c", Some(Gate::EntropyAbove(0.5))),
        stage("d", Some(Gate::MarginBelow(0.25))),
        stage("e", Some(Gate::Gain { table: Arc::new(table), min_gain: 0.003 })),
    ];
    Endpoint { stages, ..endpoint() }
}

/// A graph with everything that a graph can have.
fn graph() -> Endpoint {
    let feed = |stage, each| Feed { input: "x".into(), stage, tensor: "y".into(), each };
    let combining = |name: &str, how, at_least| Stage {
        run: Run::Combine(Combine { how, at_least }),
        inputs: vec![feed(Some(0), false), feed(None, true)],
        ..Stage::new(StageName::parse(name).unwrap(), ModelRef::parse("m@1").unwrap(), None)
    };
    let mut endpoint = endpoint();
    endpoint.share = 0.25;
    endpoint.audit = 0.125;
    let split = |model: &str, share| Split { model: ModelRef::parse(model).unwrap(), share };
    endpoint.versions = vec![split("m@1", 90), split("m@2", 10)];
    endpoint.before = vec![split("m@1", 1)];
    endpoint.shadow = ModelRef::parse("m@3").ok();
    endpoint.default_outputs = vec![("probs".into(), Tensor::f32(&[1, 2], &[0.5, 0.5]))];
    for (i, is) in Comparison::ALL.into_iter().enumerate() {
        let words = ["confidence", "margin", "entropy", "label", "score", "label"];
        let mut stage = combining(&format!("s{i}"), How::Mean, None);
        stage.when = Some(Condition { stage: 1, signal: Signal::parse(words[i]), is, than: 0.25 });
        endpoint.stages.push(stage);
    }
    endpoint.stages.push(combining("w", How::Weighted(vec![1.0, 2.5]), Some(1)));
    endpoint.stages.push(combining("v", How::Vote, None));
    endpoint.stages.push(combining("c", How::Concat, None));
    endpoint
}

#[test]
fn every_gate_and_graph_survives_the_wire() {
    assert!(following().named.is_some() && following().beside.len() == 2);
    for endpoint in [gated(), graph(), following()] {
        let mut message = Builder::new_default();
        write_endpoint(message.init_root(), &endpoint);
        assert_eq!(read_endpoint(message.get_root_as_reader().unwrap()).unwrap(), endpoint);
    }
}

fn node() -> Node {
    Node {
        name: NodeName::parse("n1").unwrap(),
        address: "127.0.0.1:7400".into(),
        devices: vec![Device {
            name: DeviceName::parse("cpu0").unwrap(),
            kind: "cpu".into(),
            slots: 3,
            hardware: String::new(),
        }],
        memory: Bytes(1 << 33),
        draining: true,
    }
}

fn moves() -> Moves {
    Moves { anew: false, gone: [ReplicaId(1), ReplicaId(2)].into(), placed: assignments() }
}

fn assignments() -> BTreeMap<ReplicaId, Assignment> {
    let node = NodeName::parse("n1").unwrap();
    let assignment =
        Assignment { model: ModelRef::parse("m@1").unwrap(), node, device: DeviceName::parse("cpu0").unwrap() };
    BTreeMap::from([(ReplicaId(3), assignment.clone()), (ReplicaId(9), assignment)])
}

fn grants() -> Vec<Grant> {
    let grant = |id: &str, role| Grant { id: id.into(), token_hash: [5; 32], role, expires: None };
    vec![
        grant("all", Role::Predict(vec![])),
        grant("one", Role::Predict(vec![EndpointName::parse("e").unwrap()])),
        grant("ops", Role::Operator),
        grant("adm", Role::Admin),
        grant("mem", Role::Member),
    ]
}

fn member() -> Member {
    Member { id: MemberId(4), name: MemberName::parse("c4").unwrap(), address: "127.0.0.1:7303".into(), learner: true }
}

fn kept_profile() -> KeptProfile {
    KeptProfile {
        digest: Digest([7; 32]),
        hardware: "cpu: a fast one, 2 slots of 4 cores".into(),
        points: vec![(1, ServiceTime::from_nanos(12_345)), (64, ServiceTime::from_nanos(999_999))],
        by: NodeName::parse("n1").unwrap(),
    }
}

/// On its way from the second version to the third.
fn label() -> Label {
    let version = |text| Version::parse(text).unwrap();
    Label {
        next: Some(version("3")),
        before: Some(version("1")),
        leaving: true,
        undone: "too late".into(),
        ..Label::new(ModelRef::parse("m@stable").unwrap(), version("2"))
    }
}

/// An endpoint that names it.
fn following() -> Endpoint {
    let name = label().name;
    let mut endpoint = endpoint();
    endpoint.stages.truncate(1);
    endpoint.versions = vec![Split { model: name.clone(), share: 1 }];
    endpoint.shadow = ModelRef::parse("m@5").ok();
    endpoint.resolved(&Labels::from([(name, label())]))
}

/// One of each.
fn commands() -> Vec<(&'static str, Command)> {
    vec![
        ("found", Command::Found { cluster: "weir-1".into(), grants: grants() }),
        ("apply_shaped", Command::Apply { models: vec![shaped_model()], endpoints: Vec::new(), if_index: None }),
        ("apply", Command::Apply { models: vec![model()], endpoints: vec![endpoint()], if_index: Some(LogIndex(12)) }),
        ("apply_graph", Command::Apply { models: Vec::new(), endpoints: vec![graph()], if_index: None }),
        ("delete_endpoint", Command::DeleteEndpoint(EndpointName::parse("e").unwrap())),
        ("node_join", Command::NodeJoin(node())),
        ("node_drain", Command::NodeDrain { node: NodeName::parse("n1").unwrap(), draining: true }),
        ("node_remove", Command::NodeRemove(NodeName::parse("n1").unwrap())),
        ("set_plan", Command::MovePlan { replaces: Epoch(5), moves: Moves::anew(assignments()) }),
        ("move_plan", Command::MovePlan { replaces: Epoch(5), moves: moves() }),
        ("quarantine", Command::Quarantine { model: ModelRef::parse("m@1").unwrap(), because: Some("died".into()) }),
        ("unquarantine", Command::Quarantine { model: ModelRef::parse("m@1").unwrap(), because: None }),
        ("grant_add", Command::GrantAdd(grants().remove(1))),
        ("grant_add_with_an_end", Command::GrantAdd(Grant { expires: Some(1_800_000_000), ..grants().remove(1) })),
        ("grant_revoke", Command::GrantRevoke("ops".into())),
        ("member_set", Command::MemberSet { id: MemberId(4), member: Some(member()) }),
        ("member_gone", Command::MemberSet { id: MemberId(4), member: None }),
        ("keep_profile", Command::KeepProfile(kept_profile())),
        ("dial", Command::Dial { pool: "cpu".into(), price: Some(12.5) }),
        ("dial_auto", Command::Dial { pool: "cpu".into(), price: None }),
        ("delete_model", Command::DeleteModel(ModelRef::parse("m@1").unwrap())),
        ("label", Command::Label { name: label().name, version: Some(label().version) }),
        ("label_gone", Command::Label { name: label().name, version: None }),
        ("label_moves", Command::LabelMoves { name: label().name, version: label().version }),
        ("label_leaves", Command::LabelLeaves { name: label().name, version: label().version }),
        ("label_back", Command::LabelBack { name: label().name, version: label().version, because: "late".into() }),
    ]
}

fn entry(command: Command) -> Entry {
    Entry { request: RequestId(0x0123_4567_89ab_cdef_0011_2233_4455_6677), by: "admin".into(), command }
}

fn state() -> State {
    let refused = Err(Refusal::Conflict { what: "no".into() });
    let done = Ok(Done { index: LogIndex(7), lines: vec!["endpoint e created".into()] });
    State {
        applied: LogIndex(41),
        cluster: "weir-1".into(),
        models: BTreeMap::from([(model().reference.clone(), model())]),
        endpoints: BTreeMap::from([(endpoint().name.clone(), endpoint())]),
        nodes: BTreeMap::from([(node().name.clone(), node())]),
        plan: Plan { epoch: Epoch(40), assignments: assignments() },
        grants: grants().into_iter().map(|grant| (grant.id.clone(), grant)).collect(),
        members: BTreeMap::from([(member().id, member())]),
        profiles: BTreeMap::new(),
        dials: BTreeMap::new(),
        labels: Labels::new(),
        declared: Default::default(),
        next_replica: ReplicaId(10),
        next_member: MemberId(5),
        requests: VecDeque::from([(LogIndex(6), RequestId(1), refused), (LogIndex(7), RequestId(2), done)]),
    }
}

#[test]
fn what_the_first_version_did_not_know_comes_back_too() {
    let mut state = state();
    state.profiles.insert((Digest([7; 32]), kept_profile().hardware), kept_profile());
    state.nodes.values_mut().for_each(|node| node.devices[0].hardware = kept_profile().hardware);
    state.labels.insert(label().name, label());
    assert_eq!(state_from_bytes(&state_to_bytes(&state)).unwrap(), state);
    for change in [
        Change::Profile(kept_profile()),
        Change::ProfilesGone(Digest([7; 32])),
        Change::Label(label()),
        Change::LabelGone(label().name),
    ] {
        let mut message = Builder::new_default();
        write_change(message.init_root(), LogIndex(3), &change, false);
        let bytes = capnp::serialize::write_message_to_words(&message);
        let read = framed::<control_capnp::change::Owned>(&bytes).unwrap();
        assert_eq!(read_change(read.get().unwrap()).unwrap(), (LogIndex(3), Some(change)));
    }
}

fn recorded(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/0.1.0").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::read(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; a new kind of message is recorded with UPDATE=1", path.display()))
}

#[test]
fn entries_and_states_recorded_from_the_first_version_are_read() {
    for (name, command) in commands() {
        let entry = entry(command);
        let bytes = entry_to_bytes(&entry);
        assert_eq!(entry_from_bytes(&bytes).unwrap(), entry);
        assert_eq!(entry_from_bytes(&recorded(&format!("entry_{name}"), &bytes)).unwrap(), entry, "{name}");
    }
    let bytes = state_to_bytes(&state());
    assert_eq!(state_from_bytes(&bytes).unwrap(), state());
    assert_eq!(state_from_bytes(&recorded("state", &bytes)).unwrap(), state());
}

#[test]
fn calls_recorded_from_the_first_version_are_read() {
    let rows = Arc::new(vec![Tensor::f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), Tensor::strings(&[2], &["a", "grün"])]);
    let rows: Vec<Row> = (0..2).map(|row| Row { tensors: Arc::clone(&rows), row: Some(row) }).collect();
    let mut message = Builder::new_default();
    let mut b = message.init_root::<predict_capnp::predict_request::Builder<'_>>();
    b.set_id_high(1);
    b.set_id_low(2);
    b.set_endpoint("e");
    b.set_deadline_left_us(50_000);
    b.set_class(class_to_wire(Class::Critical));
    b.set_class_given(true);
    write_rows(b.init_inputs(2), &["x", "s"], &rows);
    let bytes = recorded("predict_request", &capnp::serialize::write_message_to_words(&message));
    let read = framed::<predict_capnp::predict_request::Owned>(&bytes).unwrap();
    let read = read.get().unwrap();
    assert_eq!(query_id(read.get_id_high(), read.get_id_low()), QueryId(1 << 64 | 2));
    assert_eq!((read.get_deadline_left_us(), read.get_class_given(), read.get_whole()), (50_000, true, false));
    let inputs: Vec<_> = read.get_inputs().unwrap().iter().map(|t| read_tensor(t).unwrap().to_tensor()).collect();
    assert_eq!(inputs, *rows[0].tensors);

    let mut message = Builder::new_default();
    let mut b = message.init_root::<predict_capnp::predict_response::Builder<'_>>().init_answers(1).get(0);
    let (code, why) = outcome_to_wire(Outcome::Rejected(Rejection::NoReplica));
    b.set_outcome(code);
    b.set_rejection(why);
    b.set_stage("tiny");
    write_row_tensor(b.init_outputs(1).get(0), "y", &rows[1], 0);
    let bytes = recorded("predict_response", &capnp::serialize::write_message_to_words(&message));
    let read = framed::<predict_capnp::predict_response::Owned>(&bytes).unwrap();
    let answer = read.get().unwrap().get_answers().unwrap().get(0);
    assert_eq!(
        outcome_from_wire(answer.get_outcome(), answer.get_rejection()),
        Outcome::Rejected(Rejection::NoReplica)
    );
    let output = read_tensor(answer.get_outputs().unwrap().get(0)).unwrap();
    assert_eq!((output.name, output.to_tensor()), ("y", Tensor::f32(&[2], &[3.0, 4.0])));
}

#[test]
fn consensus_messages_recorded_from_the_first_version_are_read() {
    let mut message = Builder::new_default();
    let mut b = message.init_root::<raft_capnp::message::Builder<'_>>();
    b.set_type(raft_capnp::MessageType::Append);
    b.set_term(3);
    let mut entry = b.init_entries(1).get(0);
    entry.set_kind(raft_capnp::log_entry::Kind::Normal);
    entry.set_index(17);
    entry.set_data(b"payload");
    let bytes = recorded("raft_message", &capnp::serialize::write_message_to_words(&message));
    let read = framed::<raft_capnp::message::Owned>(&bytes).unwrap();
    let read = read.get().unwrap();
    assert!(matches!(read.get_type(), Ok(raft_capnp::MessageType::Append)));
    let entry = read.get_entries().unwrap().get(0);
    assert_eq!((read.get_term(), entry.get_index(), entry.get_data().unwrap()), (3, 17, &b"payload"[..]));
}

#[test]
fn reports_come_back_as_they_were_sent() {
    let replica = |state| ReplicaReport {
        state,
        deaths: 2,
        last_death: "panicked".into(),
        batches: Batches::of([1, 2, 3, 4, 5], 99),
        paged: None,
    };
    let paged = |residence, evicted: Option<Evicted>| Paged {
        residence,
        size: Bytes(1 << 30),
        reload: Duration::from_micros(1_500),
        rate: 2.5,
        cold: 7,
        loads: 5,
        evictions: u64::from(evicted.is_some()),
        evicted,
    };
    let by = |model: &str| Evicted { ago: Duration::from_secs(3), by: ModelRef::parse(model).ok() };
    let profile = ReplicaProfile {
        points: vec![(1, ServiceTime::from_micros(10)), (8, ServiceTime::from_micros(50))],
        max_batch: 8,
        unbatched: "random".into(),
        memory: Bytes(1 << 20),
        informed: true,
    };
    let report = NodeReport {
        node: NodeName::parse("n1").unwrap(),
        incarnation: 1 << 100,
        epoch: Epoch(4),
        replicas: BTreeMap::from([
            (ReplicaId(1), replica(ReplicaState::Loading)),
            (ReplicaId(2), replica(ReplicaState::Ready(profile.clone()))),
            (ReplicaId(3), replica(ReplicaState::Failed("no".into()))),
            (
                ReplicaId(4),
                ReplicaReport {
                    paged: Some(paged(Residence::OnDemand, Some(by("other@1")))),
                    ..replica(ReplicaState::Ready(profile.clone()))
                },
            ),
            (
                ReplicaId(5),
                ReplicaReport {
                    paged: Some(paged(Residence::Loading, Some(by("")))),
                    ..replica(ReplicaState::Ready(profile.clone()))
                },
            ),
            (
                ReplicaId(6),
                ReplicaReport {
                    paged: Some(paged(Residence::Resident, None)),
                    ..replica(ReplicaState::Ready(profile))
                },
            ),
        ]),
        devices: vec![DeviceLoad {
            device: DeviceName::parse("cpu0").unwrap(),
            busy: ServiceTime::from_micros(7),
            queued: 3,
            backlog: ServiceTime::from_micros(9),
        }],
        asked: BTreeMap::from([(
            ModelRef::parse("m@1").unwrap(),
            Asked { first: 3, soft: vec![0.0, 1e-5, 0.0, 1e-5] },
        )]),
        wanted: BTreeMap::from([(ModelRef::parse("m@1").unwrap(), 77)]),
        endpoints: vec![EndpointLoad {
            endpoint: EndpointName::parse("e").unwrap(),
            arrived: 10,
            answered: 4,
            rejected: 3,
            expired: 2,
            failed: 1,
            degraded: 1,
            last_error: "it failed".into(),
            by_stage: [("a", 3), ("gone", 1)].into_iter().collect(),
            versions: vec![(ModelRef::parse("m@1").unwrap(), Score { rows: 9, in_time: 8 })],
        }],
        up: Duration::from_secs(9),
        draining: true,
        memory: MemoryNow {
            size: Bytes(1 << 30),
            taken: Bytes(9),
            placed: Bytes(1 << 40),
            reloading: 0.25,
            thrashes: true,
            thrashings: 3,
        },
    };
    let mut message = Builder::new_default();
    write_report(message.init_root(), &report);
    let bytes = capnp::serialize::write_message_to_words(&message);
    let read = framed::<control_capnp::node_report::Owned>(&bytes).unwrap();
    assert_eq!(read_report(read.get().unwrap()).unwrap(), report);
}

#[test]
fn the_last_seconds_come_back_as_they_were_sent() {
    let mut tally = Tally {
        arrived: 9,
        answered: 1,
        in_time: 1,
        degraded: 1,
        rejected: 2,
        expired: 3,
        failed: 4,
        estimated: 5,
        right: 6,
        forgone: 7,
        ..Tally::default()
    };
    tally.latencies.add(Duration::from_millis(3));
    tally.by_stage = [("a", 0), ("b", 1)].into_iter().collect();
    let model =
        ModelNow { model: ModelRef::parse("m@1").unwrap(), queued: 4, batches: Batches::of([1, 2, 3, 4, 5], 99) };
    let recent = NodeRecent {
        endpoints: vec![EndpointRecent {
            endpoint: EndpointName::parse("e").unwrap(),
            stages: vec![StageName::parse("a").unwrap(), StageName::parse("b").unwrap()],
            price: 1.5,
            labelled: Labelled { answers: 4, right: 3 },
            shadow: (8, 7),
            gates: vec![
                GateAudit::default(),
                GateAudit { rows: 9, differ: 2, expected: 1.5, labelled: 3, expected_of_labelled: 0.5, gained: -1.0 },
            ],
            ever: Ever { answered: 9, in_time: 8, degraded: 7, refused: 6 },
            recent: Seconds { seconds: 7, tally },
        }],
        devices: vec![DeviceNow {
            device: DeviceName::parse("cpu0").unwrap(),
            slots: 2,
            running: 1,
            busy: ServiceTime::from_micros(7),
            backlog: ServiceTime::from_micros(9),
            models: vec![model],
        }],
    };
    let mut message = Builder::new_default();
    write_recent(message.init_root(), &recent);
    let bytes = capnp::serialize::write_message_to_words(&message);
    let read = framed::<control_capnp::node_recent::Owned>(&bytes).unwrap();
    assert_eq!(read_recent(read.get().unwrap()).unwrap(), recent);
}

#[test]
fn what_is_known_of_a_query_comes_back_as_it_was_sent() {
    let ms = Duration::from_millis;
    let visit = |end: Option<VisitEnd>, gate| ToldVisit {
        stage: StageName::parse("a").unwrap(),
        model: ModelRef::parse("m@1").unwrap(),
        node: NodeName::parse("n1").unwrap(),
        device: end.and_then(|_| DeviceName::parse("cpu0").ok()),
        after: ms(1),
        end: end.map(|end| (ms(2), end)),
        gate,
    };
    let ran = |closed| VisitEnd::Answered { queue: ms(3), execute: ms(4), batch: Some(Batch { rows: 5, closed }) };
    let untold = VisitEnd::Answered { queue: ms(3), execute: ms(4), batch: None };
    let rules = [
        (Rule::ConfidenceBelow(0.5), None),
        (Rule::EntropyAbove(0.25), None),
        (Rule::MarginBelow(0.75), None),
        (Rule::Gain { least: 0.125 }, Some(0.5)),
    ];
    let gates = rules.map(|(rule, value)| {
        (
            rule,
            Judged {
                signal: 0.5,
                value,
                free: value.map(|value| 2.0 * value),
                cost: 0.1,
                price: 2.0,
                deeper: false,
                wanted: value.is_some(),
            },
        )
    });
    let others =
        [untold, VisitEnd::Rejected(Rejection::QueueFull), VisitEnd::Expired, VisitEnd::Failed, VisitEnd::Lost];
    let mut visits: Vec<_> = Closed::ALL.into_iter().map(|closed| visit(Some(ran(closed)), None)).collect();
    visits.extend(others.map(|end| visit(Some(end), None)));
    visits.extend(gates.map(|gate| visit(None, Some(gate))));
    let looked = |saw: f32| ToldCondition {
        stage: StageName::parse("b").unwrap(),
        when: "a.confidence < 0.5".into(),
        after: ms(3),
        saw,
        holds: saw > 0.0,
    };
    let told = Told {
        endpoint: EndpointName::parse("e").ok(),
        class: Class::Sheddable,
        ago: ms(6),
        deadline: Some(ms(7)),
        total: ms(8),
        outcome: Outcome::Answered,
        message: String::new(),
        stage: StageName::parse("b").ok(),
        degraded: true,
        visits,
        conditions: [0.25, -1.0].map(looked).into(),
    };
    let refused = Told {
        endpoint: None,
        deadline: None,
        outcome: Outcome::Rejected(Rejection::BadInput),
        message: "no".into(),
        stage: None,
        visits: Vec::new(),
        conditions: Vec::new(),
        ..told.clone()
    };
    let explained =
        Explained { records: vec![told, refused], kept: 10, answered_reach: Some(ms(9)), troubled_reach: None };
    let mut message = Builder::new_default();
    write_explained(message.init_root(), &explained);
    let bytes = capnp::serialize::write_message_to_words(&message);
    let read = framed::<control_capnp::explained::Owned>(&bytes).unwrap();
    assert_eq!(read_explained(read.get().unwrap()).unwrap(), explained);
}

#[test]
fn secrets_stay_where_they_are_meant_to() {
    let mut message = Builder::new_default();
    write_state(message.init_root(), &state(), false);
    let bytes = capnp::serialize::write_message_to_words(&message);
    let shown = state_from_bytes(&bytes).unwrap();
    assert!(shown.grants.values().all(|grant| grant.token_hash == [0; 32]));
    assert!(shown.requests.is_empty());
}

#[test]
fn tensors_that_lie_are_refused() {
    let mut message = Builder::new_default();
    write_tensor(message.init_root(), "x", DType::F32, &[2, 3], &[0; 23]);
    let bytes = capnp::serialize::write_message_to_words(&message);
    let read = framed::<predict_capnp::tensor::Owned>(&bytes).unwrap();
    let error = read_tensor(read.get().unwrap()).err().expect("refused").to_string();
    assert!(error.contains("needs 24 bytes, got 23"), "{error}");
    let mut message = Builder::new_default();
    write_tensor(message.init_root(), &"x".repeat(100_000), DType::F32, &[2], &[0; 7]);
    let bytes = capnp::serialize::write_message_to_words(&message);
    let read = framed::<predict_capnp::tensor::Owned>(&bytes).unwrap();
    let error = read_tensor(read.get().unwrap()).err().expect("refused").to_string();
    assert!(error.len() < 200, "a name is not repeated at any length");
    assert!(span_from_us(u64::MAX).is_err());
}

#[test]
fn statistics_travel_and_odd_ones_are_made_sound() {
    use weir_core::history::{Calls, Statistics};

    use super::predict::{read_statistics, write_statistics};
    let calls = |count: u64| Calls { count, time: std::time::Duration::from_micros(7 * count) };
    let told = Statistics {
        success: calls(5),
        fail: calls(1),
        queue: calls(5),
        compute: calls(5),
        rows: 9,
        batches: 2.5,
        last: Some(std::time::Duration::from_micros(12)),
    };
    let back = |told: &Statistics| {
        let mut message = Builder::new_default();
        write_statistics(message.init_root(), 3, told);
        let bytes = capnp::serialize::write_message_to_words(&message);
        let read = framed::<predict_capnp::endpoint_statistics::Owned>(&bytes).unwrap();
        read_statistics(read.get().unwrap()).unwrap()
    };
    assert_eq!(back(&told), (3, told));
    assert_eq!(back(&Statistics::default()), (3, Statistics::default()));
    assert_eq!(back(&Statistics { batches: f64::NAN, ..told }).1.batches, 0.0);
}

proptest! {
    /// Whatever arrives instead of a message, reading it ends, without a panic.
    #[test]
    fn mutated_bytes_are_read_or_refused(at in 0usize..2000, with in any::<u8>(), cut in 0usize..2000) {
        for bytes in [state_to_bytes(&state()), entry_to_bytes(&entry(commands().remove(1).1))] {
            let mut flipped = bytes.clone();
            let at = at % bytes.len();
            flipped[at] ^= with;
            let _ = state_from_bytes(&flipped);
            let _ = entry_from_bytes(&flipped);
            prop_assert!(entry_from_bytes(&bytes[..cut % bytes.len()]).is_err());
        }
    }
}
