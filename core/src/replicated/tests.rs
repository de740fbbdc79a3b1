use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::endpoint::{Run, Split, Stage};
use crate::ids::{ModelName, StageName, Version};
use crate::labels::{LINGERS, Moving};
use crate::tensor::{DType, Signature, TensorSpec};
use crate::units::{Instant, ServiceTime};

fn spec(name: &str) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![None, Some(4)] }
}

fn model(name: &str, digest: u8) -> Model {
    Model {
        reference: ModelRef { name: ModelName::parse(name).unwrap(), version: Version::parse("1").unwrap() },
        digest: Digest([digest; 32]),
        size: Bytes(100),
        engine: EngineKind::Onnx,
        signature: Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] },
        max_batch: None,
        shapes: Default::default(),
        replicas: ReplicaRange { min: 1, max: 4 },
        quarantined: None,
    }
}

fn endpoint(name: &str, models: &[&str]) -> Endpoint {
    Endpoint::new(
        EndpointName::parse(name).unwrap(),
        Duration::from_millis(50),
        models
            .iter()
            .map(|model| {
                let reference = ModelRef::parse(&format!("{model}@1")).unwrap();
                Stage::new(StageName::parse(model).unwrap(), reference, None)
            })
            .collect(),
    )
}

fn node(name: &str) -> Node {
    Node {
        name: NodeName::parse(name).unwrap(),
        address: "127.0.0.1:7400".into(),
        devices: vec![Device {
            name: DeviceName::parse("cpu0").unwrap(),
            kind: "cpu".into(),
            slots: 1,
            hardware: "x".into(),
        }],
        memory: Bytes(1 << 30),
        draining: false,
    }
}

fn apply(models: &[Model], endpoints: &[Endpoint]) -> Command {
    Command::Apply { models: models.to_vec(), endpoints: endpoints.to_vec(), if_index: None }
}

fn assignment(model: &str, node: &str) -> Assignment {
    Assignment {
        model: ModelRef::parse(model).unwrap(),
        node: NodeName::parse(node).unwrap(),
        device: DeviceName::parse("cpu0").unwrap(),
    }
}

/// Gives commands to a state and keeps a copy by the changes.
#[derive(Default)]
struct Log {
    state: State,
    copy: State,
    requests: u128,
}

impl Log {
    fn run(&mut self, command: Command) -> Applied {
        self.requests += 1;
        self.request(RequestId(self.requests), command)
    }

    fn request(&mut self, request: RequestId, command: Command) -> Applied {
        let index = LogIndex(self.state.applied.0 + 1);
        let (result, changes) = self.state.apply(index, &Entry { request, by: "test".into(), command });
        changes.iter().for_each(|change| self.copy.absorb(change));
        self.copy.applied = self.state.applied;
        self.copy.requests = self.state.requests.clone();
        assert_eq!(self.copy, self.state, "changes are complete");
        result
    }

    fn lines(&mut self, command: Command) -> Vec<String> {
        self.run(command).unwrap().lines
    }
}

#[test]
fn clients_hear_where_queries_begin() {
    let mut log = Log::default();
    let mut split = endpoint("split", &["a"]);
    let version = |name: &str, share| Split { model: ModelRef::parse(name).unwrap(), share };
    split.versions = vec![version("a@1", 3), version("c@1", 1), version("b@1", 0)];
    let models = ["a", "b", "c", "d"].map(|name| model(name, 1));
    let endpoints = [endpoint("cascade", &["b", "a"]), endpoint("nowhere", &["d"]), split];
    log.run(apply(&models, &endpoints)).unwrap();
    for name in ["n3", "n1", "n2"] {
        log.run(Command::NodeJoin(node(name))).unwrap();
    }
    let at = [("a@1", "n3"), ("a@1", "n1"), ("b@1", "n2"), ("b@1", "n2"), ("c@1", "n3")];
    let placed = at.iter().zip(1..).map(|((model, node), id)| (ReplicaId(id), assignment(model, node))).collect();
    log.run(Command::MovePlan { replaces: Epoch(0), moves: Moves::anew(placed) }).unwrap();
    assert_eq!(log.state.hosts(), [vec![1], vec![], vec![0, 2]], "cascade, nowhere, split");
}

#[test]
fn declaring_twice_changes_nothing() {
    let mut log = Log::default();
    let file = apply(&[model("a", 1)], &[endpoint("e", &["a"])]);
    assert_eq!(log.lines(file.clone()), ["model a@1 created", "endpoint e created"]);
    assert_eq!(log.lines(file), ["model a@1 unchanged", "endpoint e unchanged"]);
    let mut more = model("a", 1);
    more.replicas.min = 2;
    assert_eq!(log.lines(apply(&[more], &[])), ["model a@1 configured"]);
}

#[test]
fn a_version_never_changes_its_artifact() {
    let mut log = Log::default();
    log.run(apply(&[model("a", 1)], &[])).unwrap();
    let before = log.state.models.clone();
    let refusal = log.run(apply(&[model("b", 1), model("a", 2)], &[])).unwrap_err();
    assert!(matches!(refusal, Refusal::Conflict { .. }) && refusal.to_string().contains("give this one a new version"));
    assert_eq!(log.state.models, before, "all or nothing");
}

#[test]
fn nobody_can_be_promised_what_others_have_been() {
    let mut log = Log::default();
    let with = |name: &str, share: f64| Endpoint { share, ..endpoint(name, &["a"]) };
    log.run(apply(&[model("a", 1)], &[with("e", 0.6)])).unwrap();
    let refused = log.run(apply(&[], &[with("f", 0.5)])).unwrap_err().to_string();
    assert!(refused.contains("come to 1.10; together they can have 1 at most"), "{refused}");
    log.run(apply(&[], &[with("e", 0.5), with("f", 0.5)])).unwrap();
}

#[test]
fn a_request_is_applied_once_and_answered_alike() {
    let mut log = Log::default();
    let first = log.request(RequestId(77), apply(&[model("a", 1)], &[endpoint("e", &["a"])]));
    log.run(Command::DeleteEndpoint(EndpointName::parse("e").unwrap())).unwrap();
    let again = log.request(RequestId(77), apply(&[model("a", 1)], &[endpoint("e", &["a"])]));
    assert_eq!(again, first);
    assert!(log.state.endpoints.is_empty(), "the repetition did not bring it back");
}

#[test]
fn requests_are_forgotten_by_log_position_alone() {
    let mut log = Log::default();
    log.run(Command::NodeJoin(node("n1"))).unwrap();
    log.state.skip(LogIndex(REMEMBERED_ENTRIES + 1));
    assert!(log.state.remembered(RequestId(1)).is_some());
    log.state.skip(LogIndex(REMEMBERED_ENTRIES + 2));
    assert!(log.state.remembered(RequestId(1)).is_none());
}

#[test]
fn models_that_nobody_names_go_with_the_endpoint() {
    let mut log = Log::default();
    log.run(apply(&[model("a", 1), model("b", 2)], &[endpoint("e", &["a", "b"]), endpoint("f", &["b"])])).unwrap();
    let lines = log.lines(Command::DeleteEndpoint(EndpointName::parse("e").unwrap()));
    assert_eq!(lines, ["endpoint e deleted", "model a@1 deleted"]);
    let refusal = log.run(Command::DeleteEndpoint(EndpointName::parse("e").unwrap())).unwrap_err();
    assert!(matches!(refusal, Refusal::NotFound { .. }));
}

#[test]
fn a_write_that_expects_another_index_is_a_conflict() {
    let mut log = Log::default();
    log.run(Command::NodeJoin(node("n1"))).unwrap();
    let guarded = |at| Command::Apply { models: vec![model("a", 1)], endpoints: vec![], if_index: Some(LogIndex(at)) };
    assert!(matches!(log.run(guarded(7)).unwrap_err(), Refusal::Conflict { .. }));
    assert!(log.run(guarded(2)).is_ok());
}

#[test]
fn a_plan_replaces_the_one_it_was_made_from() {
    let mut log = Log::default();
    log.run(apply(&[model("a", 1)], &[endpoint("e", &["a"])])).unwrap();
    log.run(Command::NodeJoin(node("n1"))).unwrap();
    let plan = |replaces, id, model, node| Command::MovePlan {
        replaces: Epoch(replaces),
        moves: Moves::anew(BTreeMap::from([(ReplicaId(id), assignment(model, node))])),
    };
    assert!(log.run(plan(0, 0, "a@1", "n2")).unwrap_err().to_string().contains("not there"));
    assert!(log.run(plan(0, 0, "b@1", "n1")).unwrap_err().to_string().contains("cannot be loaded"));
    let index = log.run(plan(0, 5, "a@1", "n1")).unwrap().index;
    assert_eq!(log.state.plan.epoch.0, index.0);
    assert!(matches!(log.run(plan(0, 6, "a@1", "n1")).unwrap_err(), Refusal::Conflict { .. }), "another came between");
    assert!(log.run(plan(index.0, 3, "a@1", "n1")).unwrap_err().to_string().contains("was used before"));
}

#[test]
fn what_a_plan_does_not_name_stays_and_nothing_goes_twice() {
    let mut log = Log::default();
    log.run(apply(&[model("a", 1), model("b", 2)], &[endpoint("e", &["a"])])).unwrap();
    log.run(Command::NodeJoin(node("n1"))).unwrap();
    let moves = |gone: &[u64], placed: &[(u64, &str)]| Moves {
        anew: false,
        gone: gone.iter().copied().map(ReplicaId).collect(),
        placed: placed.iter().map(|(id, model)| (ReplicaId(*id), assignment(model, "n1"))).collect(),
    };
    let mut make =
        |moves| log.run(Command::MovePlan { replaces: log.state.plan.epoch, moves }).map(|_| log.state.clone());
    make(moves(&[], &[(0, "a@1"), (1, "b@1")])).unwrap();
    let state = make(moves(&[0], &[(2, "a@1")])).unwrap();
    assert_eq!(state.plan.assignments.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 2]);
    assert!(make(moves(&[0], &[])).unwrap_err().to_string().contains("not there to go"));
    // Nobody names b any more, and its last replica goes.
    let state = make(moves(&[1], &[])).unwrap();
    assert_eq!(state.models.keys().map(ToString::to_string).collect::<Vec<_>>(), ["a@1"]);
    let after = BTreeMap::from([(ReplicaId(3), assignment("a@1", "n1"))]);
    let found = Moves::between(&state.plan.assignments, &after);
    assert_eq!(found, moves(&[2], &[(3, "a@1")]));
    let mut made = state.plan.assignments.clone();
    found.make(&mut made);
    assert_eq!(made, after);
    assert!(Moves::between(&after, &after).is_nothing());
}

#[test]
fn quarantine_outlives_a_new_declaration() {
    let mut log = Log::default();
    log.run(apply(&[model("a", 1)], &[endpoint("e", &["a"])])).unwrap();
    let reference = ModelRef::parse("a@1").unwrap();
    log.run(Command::Quarantine { model: reference.clone(), because: Some("died".into()) }).unwrap();
    log.run(apply(&[model("a", 1)], &[])).unwrap();
    assert!(log.state.wanted_models().is_empty());
    log.run(Command::Quarantine { model: reference.clone(), because: None }).unwrap();
    assert_eq!(log.state.wanted_models(), [&reference].into());
}

#[test]
fn a_drained_node_stays_drained_over_a_restart() {
    let mut log = Log::default();
    log.run(Command::NodeJoin(node("n1"))).unwrap();
    let name = NodeName::parse("n1").unwrap();
    log.run(Command::NodeDrain { node: name.clone(), draining: true }).unwrap();
    log.run(Command::NodeJoin(node("n1"))).unwrap();
    assert!(log.state.nodes[&name].draining);
}

#[test]
fn a_cluster_is_founded_once() {
    let mut log = Log::default();
    log.run(Command::Found { cluster: "c".into(), grants: vec![] }).unwrap();
    assert!(matches!(
        log.run(Command::Found { cluster: "d".into(), grants: vec![] }).unwrap_err(),
        Refusal::Conflict { .. }
    ));
}

fn member(id: u64, name: &str, learner: bool) -> Member {
    Member { id: MemberId(id), name: MemberName::parse(name).unwrap(), address: format!("{name}:7400"), learner }
}

#[test]
fn a_member_number_is_given_once() {
    let mut cluster = Log::default();
    let founder = Change::Member(member(1, "c1", false));
    cluster.state.absorb(&founder);
    cluster.copy.absorb(&founder);
    let set = |member: Member| Command::MemberSet { id: member.id, member: Some(member) };
    let gone = |id| Command::MemberSet { id: MemberId(id), member: None };
    assert_eq!(cluster.lines(set(member(2, "c2", true))), ["member c2 is a learner"]);
    // Two joined at once, and both were told that 2 is free.
    assert!(cluster.run(set(member(2, "c3", true))).unwrap_err().to_string().contains("is c2"));
    assert_eq!(cluster.state.members[&MemberId(2)], member(2, "c2", true));
    assert!(cluster.run(set(member(3, "c2", true))).unwrap_err().to_string().contains("choose another name"));
    assert!(cluster.run(set(member(3, "c3", false))).unwrap_err().to_string().contains("learn the log"));
    assert_eq!(cluster.lines(set(member(2, "c2", false))), ["member c2 is a voter"]);
    assert!(cluster.run(set(member(2, "c2", true))).is_err(), "a voter does not become a learner");
    assert_eq!(cluster.lines(gone(2)), ["member c2 removed"]);
    // A promotion that was decided before the removal.
    assert!(cluster.run(set(member(2, "c2", false))).unwrap_err().to_string().contains("is gone"));
    assert!(cluster.run(gone(1)).unwrap_err().to_string().contains("last coordinator"));
    assert!(cluster.run(gone(2)).is_err());
    assert_eq!(cluster.state.members.keys().copied().collect::<Vec<_>>(), [MemberId(1)]);
    assert_eq!(cluster.state.next_member, MemberId(3));
}

#[test]
fn a_deleted_model_leaves_no_replica_to_its_successor() {
    let mut cluster = Log::default();
    cluster.lines(apply(&[model("a", 1), model("b", 1)], &[endpoint("e", &["a"]), endpoint("f", &["b"])]));
    cluster.lines(Command::NodeJoin(node("n1")));
    let assignments =
        BTreeMap::from([(ReplicaId(1), assignment("a@1", "n1")), (ReplicaId(2), assignment("b@1", "n1"))]);
    cluster.lines(Command::MovePlan { replaces: Epoch(0), moves: Moves::anew(assignments) });
    let before = cluster.state.plan.epoch;
    cluster.lines(Command::DeleteEndpoint(EndpointName::parse("e").unwrap()));
    assert_eq!(cluster.state.plan.assignments.keys().copied().collect::<Vec<_>>(), [ReplicaId(2)]);
    assert!(cluster.state.plan.epoch > before);
    assert_eq!(cluster.state.next_replica, ReplicaId(3));
    cluster.lines(apply(&[model("a", 2)], &[endpoint("e", &["a"])]));
    assert_eq!(cluster.state.models[&model("a", 2).reference].digest, Digest([2; 32]));
}

#[test]
fn a_version_that_was_replaced_goes_with_its_last_replica() {
    let version = |version: &str, digest| {
        let reference = ModelRef::parse(&format!("a@{version}")).unwrap();
        Model { reference, ..model("a", digest) }
    };
    let naming = |version: &str| {
        let mut endpoint = endpoint("e", &["a"]);
        endpoint.stages[0].run = Run::Model(ModelRef::parse(&format!("a@{version}")).unwrap());
        endpoint
    };
    let models = |cluster: &Log| cluster.state.models.keys().map(ToString::to_string).collect::<Vec<_>>();
    let mut cluster = Log::default();
    cluster.lines(Command::NodeJoin(node("n1")));
    cluster.lines(apply(&[version("1", 1), model("later", 9)], &[naming("1")]));
    let plan = |cluster: &mut Log, assignments: &[(u64, &str)]| {
        let replaces = cluster.state.plan.epoch;
        let assignments = assignments.iter().map(|(id, model)| (ReplicaId(*id), assignment(model, "n1"))).collect();
        cluster.lines(Command::MovePlan { replaces, moves: Moves::anew(assignments) });
    };
    plan(&mut cluster, &[(0, "a@1")]);
    assert_eq!(
        cluster.lines(apply(&[version("2", 2)], &[naming("2")])),
        ["model a@2 created", "endpoint e configured"]
    );
    plan(&mut cluster, &[(0, "a@1"), (1, "a@2")]);
    assert_eq!(models(&cluster), ["a@1", "a@2", "later@1"], "it serves until the other does");
    plan(&mut cluster, &[(1, "a@2")]);
    assert_eq!(models(&cluster), ["a@2", "later@1"], "what was never placed waits for its endpoint");
    // Back again, and to the next before anything was placed.
    cluster.lines(apply(&[version("1", 1)], &[naming("1")]));
    plan(&mut cluster, &[]);
    assert_eq!(models(&cluster), ["a@1", "later@1"]);
    let lines = cluster.lines(apply(&[version("3", 3)], &[naming("3")]));
    assert_eq!(lines, ["model a@3 created", "endpoint e configured", "model a@1 deleted"]);
    assert_eq!(models(&cluster), ["a@3", "later@1"]);
}

#[test]
fn an_artifact_may_go_a_day_after_the_last_model_that_named_it() {
    let day = KEPT_FOR.as_millis() as u64;
    let at = Instant::from_millis;
    let mut cluster = Log::default();
    cluster.lines(apply(&[model("a", 1)], &[endpoint("e", &["a"])]));
    let stored = BTreeSet::from([1, 2, 3].map(|n| Digest([n; 32])));
    let mut kept = Unreferenced::default();
    assert!(kept.look(at(0), &cluster.state, &stored).is_empty(), "uploaded and not named yet");
    kept.touch(at(1000), Digest([3; 32]));
    assert!(kept.look(at(day - 1), &cluster.state, &stored).is_empty());
    assert_eq!(kept.look(at(day), &cluster.state, &stored), [Digest([2; 32])]);
    cluster.lines(Command::DeleteEndpoint(EndpointName::parse("e").unwrap()));
    let stored = BTreeSet::from([1, 3].map(|n| Digest([n; 32])));
    assert_eq!(kept.look(at(day + 1000), &cluster.state, &stored), [Digest([3; 32])], "somebody counted on it");
    let stored = BTreeSet::from([Digest([1; 32])]);
    // Named again within its day, it has a whole one afterwards.
    let named = {
        let mut named = Log::default();
        named.lines(apply(&[model("a", 1)], &[]));
        named.state
    };
    assert!(kept.look(at(2 * day), &named, &stored).is_empty());
    assert!(kept.look(at(2 * day + 1000), &cluster.state, &stored).is_empty());
    assert_eq!(kept.look(at(3 * day + 1000), &cluster.state, &stored), stored.iter().copied().collect::<Vec<_>>());
}

fn kept_profile(digest: u8, hardware: &str) -> KeptProfile {
    KeptProfile {
        digest: Digest([digest; 32]),
        hardware: hardware.into(),
        points: vec![(1, ServiceTime::from_micros(10)), (8, ServiceTime::from_micros(20))],
        by: NodeName::parse("n1").unwrap(),
    }
}

#[test]
fn a_profile_is_kept_until_the_last_model_with_its_artifact_goes() {
    let mut cluster = Log::default();
    let refused = cluster.run(Command::KeepProfile(kept_profile(1, "x"))).unwrap_err();
    assert!(matches!(refused, Refusal::NotFound { .. }), "nobody would ever take it away: {refused}");
    cluster.lines(apply(&[model("a", 1), model("b", 1)], &[endpoint("e", &["a"]), endpoint("f", &["b"])]));
    cluster.lines(Command::KeepProfile(kept_profile(1, "x")));
    cluster.lines(Command::KeepProfile(kept_profile(1, "y")));
    let corrected = KeptProfile { by: NodeName::parse("n2").unwrap(), ..kept_profile(1, "x") };
    cluster.lines(Command::KeepProfile(corrected.clone()));
    assert_eq!(cluster.state.profile(Digest([1; 32]), "x"), Some(&corrected), "the later one counts");
    cluster.lines(Command::DeleteEndpoint(EndpointName::parse("e").unwrap()));
    assert_eq!(cluster.state.profiles_of(Digest([1; 32])).count(), 2, "b has the artifact too");
    cluster.lines(Command::DeleteEndpoint(EndpointName::parse("f").unwrap()));
    assert_eq!(cluster.state.profiles.len(), 0);
}

#[test]
fn profiles_are_bounded_and_make_sense() {
    let mut cluster = Log::default();
    cluster.lines(apply(&[model("a", 1)], &[endpoint("e", &["a"])]));
    let profile = || kept_profile(1, "x");
    let us = ServiceTime::from_micros;
    for bad in [
        KeptProfile { hardware: String::new(), ..profile() },
        KeptProfile { hardware: "x".repeat(HARDWARE_LONGEST + 1), ..profile() },
        KeptProfile { points: vec![], ..profile() },
        KeptProfile { points: vec![(0, us(1))], ..profile() },
        KeptProfile { points: vec![(2, us(1)), (1, us(2))], ..profile() },
        KeptProfile { points: (1..=POINTS_MOST as u32 + 1).map(|batch| (batch, us(1))).collect(), ..profile() },
    ] {
        let refused = cluster.run(Command::KeepProfile(bad)).unwrap_err();
        assert!(matches!(refused, Refusal::Invalid { .. }), "{refused}");
    }
    for i in 0..HARDWARE_PER_ARTIFACT {
        cluster.lines(Command::KeepProfile(kept_profile(1, &format!("h{i}"))));
    }
    let refused = cluster.run(Command::KeepProfile(profile())).unwrap_err();
    assert!(matches!(refused, Refusal::Conflict { .. }), "{refused}");
    cluster.lines(Command::KeepProfile(kept_profile(1, "h3")));
}

fn version_of(name: &str, version: &str) -> Model {
    let reference = ModelRef::parse(&format!("{name}@{version}")).unwrap();
    Model { reference, ..model(name, version.bytes().next().unwrap()) }
}

fn label(name: &str, version: Option<&str>) -> Command {
    let version = version.map(|version| Version::parse(version).unwrap());
    Command::Label { name: ModelRef::parse(name).unwrap(), version }
}

/// The endpoint `e` of one model, by any name.
fn naming(name: &str) -> Endpoint {
    let mut endpoint = endpoint("e", &["m"]);
    endpoint.stages[0].run = Run::Model(ModelRef::parse(name).unwrap());
    endpoint
}

/// Three versions of `m`; `stable` stands for the first, and `e` names it.
fn labelled() -> Log {
    let mut log = Log::default();
    let versions = ["1", "2", "3"].map(|version| version_of("m", version));
    log.run(apply(&versions, &[])).unwrap();
    log.run(Command::NodeJoin(node("n1"))).unwrap();
    assert_eq!(log.lines(label("m@stable", Some("1"))), ["label m@stable created for version 1"]);
    assert_eq!(log.lines(apply(&[], &[naming("m@stable")])), ["endpoint e created"]);
    log
}

impl Log {
    fn served(&self) -> &Endpoint {
        &self.state.endpoints[&EndpointName::parse("e").unwrap()]
    }

    fn loaded(&self) -> Vec<String> {
        self.served().models().map(ToString::to_string).collect()
    }

    fn models(&self) -> Vec<String> {
        self.state.models.keys().map(ToString::to_string).collect()
    }

    fn place(&mut self, assignments: &[(u64, &str)]) {
        let placed = assignments.iter().map(|(id, model)| (ReplicaId(*id), assignment(model, "n1"))).collect();
        self.run(Command::MovePlan { replaces: self.state.plan.epoch, moves: Moves::anew(placed) }).unwrap();
    }

    fn step(&mut self, command: fn(ModelRef, Version) -> Command, version: &str) -> Applied {
        self.run(command(ModelRef::parse("m@stable").unwrap(), Version::parse(version).unwrap()))
    }
}

fn moves(name: ModelRef, version: Version) -> Command {
    Command::LabelMoves { name, version }
}

fn leaves(name: ModelRef, version: Version) -> Command {
    Command::LabelLeaves { name, version }
}

#[test]
fn a_label_moves_when_the_next_version_is_ready_and_the_last_one_goes_after() {
    let mut log = labelled();
    assert_eq!(log.loaded(), ["m@1"]);
    let lines = log.lines(label("m@stable", Some("2")));
    assert_eq!(lines, ["label m@stable goes from version 1 to 2 as soon as that is ready"]);
    assert_eq!(log.loaded(), ["m@1", "m@2"], "it is loaded beside the one that answers");
    assert_eq!(log.served().stages[0].model().unwrap().to_string(), "m@1");
    assert!(log.step(moves, "3").unwrap_err().to_string().contains("does not go to version 3"));
    log.place(&[(0, "m@1"), (1, "m@2")]);
    assert_eq!(log.step(moves, "2").unwrap().lines, ["label m@stable moved from version 1 to 2"]);
    assert_eq!(log.served().stages[0].model().unwrap().to_string(), "m@2");
    assert_eq!(log.loaded(), ["m@2", "m@1"], "what queries began with stays");
    assert!(log.step(leaves, "2").is_err());
    log.step(leaves, "1").unwrap();
    assert_eq!(log.loaded(), ["m@2"]);
    log.place(&[(1, "m@2")]);
    assert_eq!(log.models(), ["m@1", "m@2", "m@3"], "one can go back");
    // Two moves later nothing keeps it.
    log.run(label("m@stable", Some("3"))).unwrap();
    assert_eq!(log.step(moves, "3").unwrap().lines[1..], ["model m@1 deleted"]);
    assert_eq!(log.models(), ["m@2", "m@3"]);
}

#[test]
fn a_label_that_is_taken_back_says_why_until_somebody_moves_it() {
    let back = |version: &str| Command::LabelBack {
        name: ModelRef::parse("m@stable").unwrap(),
        version: Version::parse(version).unwrap(),
        because: "it is late".into(),
    };
    let mut log = labelled();
    let said = |log: &Log| log.state.labels[&ModelRef::parse("m@stable").unwrap()].undone.clone();
    assert!(log.run(back("1")).unwrap_err().to_string().contains("no version to go back to"));
    log.run(label("m@stable", Some("2"))).unwrap();
    assert!(log.run(back("1")).unwrap_err().to_string().contains("has gone on from version 1"));
    log.step(moves, "2").unwrap();
    assert_eq!(log.lines(back("2")), ["label m@stable goes back from version 2 to 1: it is late"]);
    assert_eq!((log.loaded(), said(&log).as_str()), (vec!["m@2".to_owned(), "m@1".to_owned()], "it is late"));
    log.step(moves, "1").unwrap();
    log.step(leaves, "2").unwrap();
    assert_eq!((log.loaded(), said(&log).as_str()), (vec!["m@1".to_owned()], "it is late"));
    log.run(label("m@stable", Some("2"))).unwrap();
    assert_eq!(said(&log), "", "whoever moves it by hand knows");
    log.step(moves, "2").unwrap();
    log.run(back("2")).unwrap();
    assert_eq!(log.lines(label("m@stable", Some("2"))), ["label m@stable stays at version 2, and does not go to 1"]);
    assert_eq!(said(&log), "it is late", "a return that was called off is not tried again");
    log.run(label("m@stable", Some("2"))).unwrap();
    assert_eq!(said(&log), "", "from then on it is watched as before");
    let quarantine = Command::Quarantine { model: ModelRef::parse("m@1").unwrap(), because: Some("it died".into()) };
    log.run(quarantine).unwrap();
    assert!(log.run(back("2")).unwrap_err().to_string().contains("cannot be loaded any more"));
}

#[test]
fn a_label_can_be_called_off_and_go_elsewhere() {
    let mut log = labelled();
    log.run(label("m@stable", Some("2"))).unwrap();
    let lines = log.lines(label("m@stable", Some("1")));
    assert_eq!(lines, ["label m@stable stays at version 1, and does not go to 2", "model m@2 deleted"]);
    assert_eq!(log.loaded(), ["m@1"]);
    assert_eq!(log.lines(label("m@stable", Some("1"))), ["label m@stable unchanged"]);
    // To where another label stands, by its name; without an endpoint at once.
    log.run(label("m@canary", Some("1"))).unwrap();
    assert_eq!(log.lines(label("m@canary", Some("3"))), ["label m@canary moved from version 1 to 3"]);
    let lines = log.lines(label("m@stable", Some("canary")));
    assert_eq!(lines, ["label m@stable goes from version 1 to 3 as soon as that is ready"]);
}

#[test]
fn what_a_label_points_at_cannot_be_deleted() {
    let mut log = labelled();
    log.run(label("m@canary", Some("2"))).unwrap();
    let model = |text: &str| ModelRef::parse(text).unwrap();
    let mut refused = |command: Command| log.run(command).unwrap_err().to_string();
    assert!(refused(Command::DeleteModel(model("m@1"))).contains("endpoint e has model m@1 loaded"));
    let said = refused(Command::DeleteModel(model("m@2")));
    assert!(said.contains("label m@canary points at model m@2; move it with `weir label m canary VERSION`"), "{said}");
    assert!(refused(Command::DeleteModel(model("m@canary"))).contains("is a label, of version 2"));
    assert!(refused(Command::DeleteModel(model("m@9"))).contains("not found"));
    assert!(refused(label("m@stable", None)).contains("endpoint e names m@stable"));
    assert!(refused(label("m@gone", None)).contains("label gone of model m not found"));
    log.run(Command::DeleteEndpoint(EndpointName::parse("e").unwrap())).unwrap();
    assert_eq!(log.models(), ["m@1", "m@2", "m@3"], "a label keeps its version");
    log.run(label("m@canary", Some("3"))).unwrap();
    log.run(Command::DeleteModel(model("m@2"))).unwrap();
    assert_eq!(log.state.labels[&model("m@canary")].before, None, "there is nothing to go back to");
    assert_eq!(log.lines(label("m@canary", None)), ["label m@canary deleted; m@3 stays"]);
    log.run(Command::DeleteModel(model("m@3"))).unwrap();
    assert_eq!(log.models(), ["m@1"]);
}

#[test]
fn who_names_what_there_is_not_is_told_what_there_is() {
    let mut log = labelled();
    let mut refused = |command: Command| log.run(command).unwrap_err().to_string();
    let said = refused(apply(&[], &[naming("m@canary")]));
    let there = "versions of m: 1, 2, 3; labels: stable (version 1)";
    assert!(said.contains(there) && said.contains("weir label m canary VERSION"), "{said}");
    let said = refused(label("m@stable", Some("9")));
    assert!(said.contains("model m@9 not found") && said.contains(there), "{said}");
    assert!(refused(label("m@2", Some("1"))).contains("m@2 is a version"));
    assert!(refused(apply(&[version_of("m", "stable")], &[])).contains("m@stable is a label"));
    // What takes or gives something else cannot take its place.
    let mut other = version_of("m", "4");
    other.signature.outputs.push(spec("more"));
    log.run(apply(&[other], &[])).unwrap();
    let said = log.run(label("m@stable", Some("4"))).unwrap_err().to_string();
    assert!(said.contains("label m@stable cannot go to version 4: endpoint e would take or give something"), "{said}");
    // A cascade gives what all of its stages give; who comes while the label is on its way is looked at too.
    let mut cascade = naming("m@stable");
    let first = Stage::new(StageName::parse("first").unwrap(), ModelRef::parse("m@2").unwrap(), None);
    cascade.stages.insert(0, first);
    log.run(apply(&[], &[cascade])).unwrap();
    log.run(label("m@stable", Some("4"))).unwrap();
    let said = log.run(apply(&[], &[naming("m@stable")])).unwrap_err().to_string();
    assert!(said.contains("label m@stable cannot go to version 4"), "{said}");
    log.run(Command::Quarantine { model: ModelRef::parse("m@3").unwrap(), because: Some("died".into()) }).unwrap();
    assert!(log.run(label("m@stable", Some("3"))).unwrap_err().to_string().contains("quarantined (died)"));
}

#[test]
fn applying_a_file_again_keeps_to_the_label_wherever_it_stands() {
    let mut log = labelled();
    let file = apply(&[], &[naming("m@stable")]);
    assert_eq!(log.lines(file.clone()), ["endpoint e unchanged"]);
    log.run(label("m@stable", Some("2"))).unwrap();
    assert_eq!(log.lines(file.clone()), ["endpoint e unchanged"], "it is on its way");
    log.step(moves, "2").unwrap();
    assert_eq!(log.lines(file), ["endpoint e unchanged"]);
    // Whoever writes back what is served has taken it off the label.
    let fixed = log.served().clone();
    assert_eq!(log.lines(apply(&[], &[fixed])), ["endpoint e configured"]);
    assert!(log.served().named.is_none());
}

#[test]
fn the_leader_moves_a_label_by_what_is_ready_and_by_the_clock() {
    let mut log = labelled();
    let mut moving = Moving::default();
    let at = |ms: u64| Instant::from_millis(ms);
    let ready = |ids: &'static [u64]| move |id: ReplicaId, _: &NodeName| ids.contains(&id.0);
    let mut two = version_of("m", "2");
    two.replicas.min = 2;
    log.run(apply(&[two], &[])).unwrap();
    log.place(&[(0, "m@1")]);
    assert_eq!(moving.next(at(0), &log.state, ready(&[0])), None);
    log.run(label("m@stable", Some("2"))).unwrap();
    assert_eq!(moving.next(at(1), &log.state, ready(&[0])), None, "nothing is planned yet");
    log.place(&[(0, "m@1"), (1, "m@2")]);
    assert_eq!(moving.next(at(2), &log.state, ready(&[0, 1])), None, "it wants two");
    log.place(&[(0, "m@1"), (1, "m@2"), (2, "m@2"), (3, "m@2")]);
    assert_eq!(moving.next(at(3), &log.state, ready(&[0, 1, 2])), None, "the third is planned");
    let command = moving.next(at(4), &log.state, ready(&[0, 1, 2, 3])).unwrap();
    log.run(command).unwrap();
    assert_eq!(log.loaded(), ["m@2", "m@1"]);
    let all = ready(&[0, 1, 2, 3]);
    assert_eq!(moving.next(at(10), &log.state, all), None);
    // Not to the third while the first is leaving; back to the first at once.
    log.run(label("m@stable", Some("3"))).unwrap();
    assert_eq!(moving.next(at(11), &log.state, all), None);
    log.run(label("m@stable", Some("1"))).unwrap();
    log.run(moving.next(at(12), &log.state, all).unwrap()).unwrap();
    assert_eq!(log.loaded(), ["m@1", "m@2"]);
    assert_eq!(moving.next(at(20), &log.state, all), None);
    let over = LINGERS.as_millis() as u64 + 50;
    assert_eq!(moving.next(at(20 + over - 1), &log.state, all), None, "a deadline of 50 ms, and what is kept beyond");
    log.run(moving.next(at(20 + over), &log.state, all).unwrap()).unwrap();
    assert_eq!(log.loaded(), ["m@1"]);
    assert_eq!(moving.next(at(100_000), &log.state, all), None);
    // With nobody who follows it there is nothing to wait for.
    log.run(label("m@stable", Some("2"))).unwrap();
    log.run(Command::DeleteEndpoint(EndpointName::parse("e").unwrap())).unwrap();
    log.run(moving.next(at(100_001), &log.state, ready(&[])).unwrap()).unwrap();
    assert!(log.state.labels.values().all(|label| label.version.as_str() == "2" && !label.leaving));
}

fn commands() -> impl Strategy<Value = Vec<(u8, Command)>> {
    let names = prop_oneof![Just("a"), Just("b"), Just("c")];
    let command = prop_oneof![
        (names.clone(), 1..3u8, 1..3u32).prop_map(|(name, digest, min)| {
            let mut model = model(name, digest);
            model.replicas.min = min;
            apply(&[model], &[])
        }),
        (names.clone(), names.clone()).prop_map(|(a, b)| apply(&[], &[endpoint("e", &[a, b]), endpoint("f", &[a])])),
        Just(Command::DeleteEndpoint(EndpointName::parse("e").unwrap())),
        names.clone().prop_map(|name| Command::NodeJoin(node(name))),
        names.clone().prop_map(|name| Command::NodeRemove(NodeName::parse(name).unwrap())),
        (0..12u64, any::<bool>(), prop::collection::btree_set(0..9u64, 0..2), 0..9u64, names.clone(), names.clone())
            .prop_map(|(replaces, anew, gone, id, model, node)| Command::MovePlan {
                replaces: Epoch(replaces),
                moves: Moves {
                    anew,
                    gone: gone.into_iter().map(ReplicaId).collect(),
                    placed: BTreeMap::from([(ReplicaId(id), assignment(&format!("{model}@1"), node))]),
                },
            }),
        (names.clone(), any::<bool>()).prop_map(|(name, on)| Command::Quarantine {
            model: ModelRef::parse(&format!("{name}@1")).unwrap(),
            because: on.then(|| "died".to_owned()),
        }),
        (names.clone(), names.clone(), any::<bool>()).prop_map(|(of, stage, by_label)| {
            let name = ModelRef::parse(&format!("{of}@{}", if by_label { "stable" } else { "1" })).unwrap();
            let mut endpoint = endpoint("e", &[stage, "z"]);
            endpoint.stages[1].run = Run::Model(name);
            apply(&[version_of(of, "2")], &[endpoint])
        }),
        (names.clone(), 0..4u8).prop_map(|(name, version)| {
            let version = (version > 0).then(|| version.to_string());
            label(&format!("{name}@stable"), version.as_deref())
        }),
        (names.clone(), 1..3u8, any::<bool>()).prop_map(|(name, version, goes)| {
            let name = ModelRef::parse(&format!("{name}@stable")).unwrap();
            let version = Version::parse(&version.to_string()).unwrap();
            if goes { Command::LabelMoves { name, version } } else { Command::LabelLeaves { name, version } }
        }),
        (names.clone(), 1..3u8).prop_map(|(name, version)| {
            Command::DeleteModel(ModelRef::parse(&format!("{name}@{version}")).unwrap())
        }),
        (1..3u8, names.clone()).prop_map(|(digest, on)| Command::KeepProfile(kept_profile(digest, on))),
        (0..6u64, 0..6u64, any::<bool>(), any::<bool>()).prop_map(|(id, name, learner, gone)| Command::MemberSet {
            id: MemberId(id),
            member: (!gone).then(|| member(id, &format!("c{name}"), learner)),
        }),
    ];
    prop::collection::vec((0..40u8, command), 0..60)
}

proptest! {
    /// A copy kept by changes equals the state, refused and repeated entries change nothing, and stages always resolve.
    #[test]
    fn any_history_keeps_copies_equal(history in commands()) {
        let mut log = Log::default();
        for (request, command) in history {
            let before = log.state.clone();
            let known = before.remembered(RequestId(u128::from(request))).is_some();
            let result = log.request(RequestId(u128::from(request)), command);
            if known || result.is_err() {
                let mut after = log.state.clone();
                after.applied = before.applied;
                after.requests = before.requests.clone();
                prop_assert_eq!(after, before);
            }
            for endpoint in log.state.endpoints.values() {
                prop_assert!(endpoint.wire(&log.state.signatures()).is_ok());
                prop_assert!(endpoint.models().all(|model| log.state.models.contains_key(model)));
                prop_assert_eq!(&endpoint.resolved(&log.state.labels), endpoint);
            }
            for label in log.state.labels.values() {
                prop_assert!(label.holds().all(|model| log.state.models.contains_key(&model)));
            }
            for assignment in log.state.plan.assignments.values() {
                prop_assert!(log.state.models.contains_key(&assignment.model));
            }
            for (digest, _) in log.state.profiles.keys() {
                prop_assert!(log.state.models.values().any(|model| model.digest == *digest), "an orphaned profile");
            }
            let names: BTreeSet<_> = log.state.members.values().map(|member| &member.name).collect();
            prop_assert_eq!(names.len(), log.state.members.len());
        }
    }
}
