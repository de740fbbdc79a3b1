mod looks;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ids::{DeviceName, Digest, Epoch, ModelRef, NodeName, ReplicaId};
use crate::replicated::{Assignment, Device, EngineKind, KeptProfile, Model, Node, Plan, ReplicaRange, State};
use crate::scheduler::Batches;
use crate::tensor::Signature;
use crate::units::{Bytes, Instant, ServiceTime};

fn model(name: &str) -> ModelRef {
    ModelRef::parse(&format!("{name}@1")).unwrap()
}

fn node(name: &str, memory: u64) -> Node {
    Node {
        name: NodeName::parse(name).unwrap(),
        address: "127.0.0.1:1".into(),
        devices: vec![Device {
            name: DeviceName::parse("cpu0").unwrap(),
            kind: "cpu".into(),
            slots: 2,
            hardware: "x".into(),
        }],
        memory: Bytes(memory),
        draining: false,
    }
}

/// Solves a problem, as the reference does.
fn solved(problem: &Problem<'_>) -> Proposal {
    let proposal = solve(problem);
    assert_eq!(proposal, reference::solve(problem));
    proposal
}

/// Solves from `plan` with everything in `ready` serving.
fn run(models: &[(&str, u32, u32)], nodes: &[Node], plan: &Plan, ready: &BTreeSet<ReplicaId>) -> Proposal {
    run_after_failures(models, nodes, plan, ready, &[])
}

/// Likewise, where these models could not be loaded on these nodes.
fn run_after_failures(
    models: &[(&str, u32, u32)],
    nodes: &[Node],
    plan: &Plan,
    ready: &BTreeSet<ReplicaId>,
    failed: &[(&str, &str)],
) -> Proposal {
    let references: Vec<ModelRef> = models.iter().map(|(name, ..)| model(name)).collect();
    let next = plan.assignments.last_key_value().map_or(0, |(id, _)| id.0 + 1);
    solved(&Problem {
        models: references
            .iter()
            .zip(models)
            .map(|(r, (_, min, max))| (r, Wish::declared(ReplicaRange { min: *min, max: *max }, Bytes(100))))
            .collect(),
        nodes: nodes.iter().collect(),
        plan,
        ready: ready.clone(),
        failed: failed.iter().map(|(name, node)| (model(name), NodeName::parse(node).unwrap())).collect(),
        next_replica: ReplicaId(next),
    })
}

fn placed(proposal: &Proposal) -> Vec<String> {
    proposal.assignments.values().map(|a| format!("{} {}", a.model.name, a.node)).collect()
}

fn plan(proposal: &Proposal) -> Plan {
    Plan { epoch: Epoch(1), assignments: proposal.assignments.clone() }
}

fn everything(plan: &Plan) -> BTreeSet<ReplicaId> {
    plan.assignments.keys().copied().collect()
}

#[test]
fn every_node_gets_every_model_as_far_as_memory_and_maximum_go() {
    let nodes = [node("n1", 1000), node("n2", 1000)];
    let proposal = run(&[("a", 1, 9), ("b", 1, 1)], &nodes, &Plan::default(), &BTreeSet::new());
    assert_eq!(placed(&proposal), ["a n1", "b n2", "a n2"]);
    let narrow =
        run(&[("a", 1, 9), ("b", 1, 9)], &[node("n1", 150), node("n2", 100)], &Plan::default(), &BTreeSet::new());
    assert_eq!(placed(&narrow), ["a n1", "b n2"], "minimum first, nothing more fits");
}

#[test]
fn what_cannot_be_placed_comes_back_with_the_reason() {
    let proposal = run(&[("a", 1, 1)], &[node("n1", 50)], &Plan::default(), &BTreeSet::new());
    assert!(proposal.assignments.is_empty());
    assert!(proposal.unplaceable[0].1.contains("needs 100 bytes"));
    let nowhere = run(&[("a", 1, 1)], &[], &Plan::default(), &BTreeSet::new());
    assert!(nowhere.unplaceable[0].1.contains("no node is up"));
}

#[test]
fn what_does_not_fit_beside_others_is_placed_on_demand_where_least_is_placed_for_the_memory() {
    let nodes = [node("n1", 100), node("n2", 200)];
    let models = ["a", "b", "c", "d", "e", "f"].map(|name| (name, 1, 1));
    let proposal = run(&models, &nodes, &Plan::default(), &BTreeSet::new());
    assert_eq!(placed(&proposal), ["a n1", "b n2", "c n2", "d n2", "e n1", "f n2"]);
    assert!(proposal.unplaceable.is_empty());
    let again = run(&models, &nodes, &plan(&proposal), &everything(&plan(&proposal)));
    assert_eq!(again, proposal, "and stays");
    let large = run(&[("a", 2, 2)], &[node("n1", 150)], &Plan::default(), &BTreeSet::new());
    assert_eq!(placed(&large), ["a n1"], "a second one is not worth it");
    assert!(large.unplaceable[0].1.contains("needs 100 bytes"));
}

#[test]
fn a_new_node_takes_over_what_does_not_fit() {
    let mut nodes = vec![node("n1", 200)];
    let models = ["a", "b", "c", "d"].map(|name| (name, 1, 9));
    let before = plan(&run(&models, &nodes, &Plan::default(), &BTreeSet::new()));
    assert_eq!(before.assignments.len(), 4);
    nodes.push(node("n2", 200));
    let during = run(&models, &nodes, &before, &everything(&before));
    assert_eq!(during.assignments.len(), 6, "nothing goes before what replaces it serves");
    let after = run(&models, &nodes, &plan(&during), &everything(&plan(&during)));
    assert_eq!(placed(&after), ["c n1", "d n1", "a n2", "b n2"]);
    assert_eq!(run(&models, &nodes, &plan(&after), &everything(&plan(&after))), after);
}

#[test]
fn replicas_of_a_lost_node_are_placed_elsewhere_under_new_ids() {
    let nodes = [node("n1", 1000), node("n2", 1000), node("n3", 1000)];
    let before = plan(&run(&[("a", 2, 2)], &nodes, &Plan::default(), &BTreeSet::new()));
    let after = run(&[("a", 2, 2)], &nodes[1..], &before, &everything(&before));
    assert_eq!(placed(&after), ["a n2", "a n3"]);
    assert!(after.assignments.keys().any(|id| !before.assignments.contains_key(id)));
}

#[test]
fn a_draining_node_keeps_its_replica_until_another_is_ready() {
    let mut nodes = [node("n1", 1000), node("n2", 1000)];
    let before = plan(&run(&[("a", 1, 1)], &nodes, &Plan::default(), &BTreeSet::new()));
    assert_eq!(before.assignments[&ReplicaId(0)].node.as_str(), "n1");
    nodes[0].draining = true;
    let during = run(&[("a", 1, 1)], &nodes, &before, &everything(&before));
    assert_eq!(placed(&during), ["a n1", "a n2"]);
    let after = run(&[("a", 1, 1)], &nodes, &plan(&during), &everything(&plan(&during)));
    assert_eq!(placed(&after), ["a n2"]);
}

#[test]
fn a_model_that_a_node_cannot_load_goes_to_another() {
    let nodes = [node("n1", 1000), node("n2", 1000), node("n3", 1000)];
    let nothing = BTreeSet::new();
    let after = |models: &[(&str, u32, u32)], nodes: &[Node], before: &Plan, failed: &[(&str, &str)]| {
        let ready: BTreeSet<_> = before.assignments.iter().filter(|(_, a)| a.node.as_str() != "n1").collect();
        let ready = ready.into_iter().map(|(id, _)| *id).collect();
        let proposal = run_after_failures(models, nodes, before, &ready, failed);
        let again = run_after_failures(models, nodes, &plan(&proposal), &nothing, failed);
        assert_eq!(again.assignments, proposal.assignments, "solving again moves nothing");
        proposal
    };
    let one = plan(&run(&[("a", 1, 1)], &nodes, &Plan::default(), &nothing));
    assert_eq!(placed(&after(&[("a", 1, 1)], &nodes, &one, &[("a", "n1")])), ["a n2"]);
    let two = plan(&run(&[("a", 2, 2)], &nodes, &Plan::default(), &nothing));
    assert_eq!(placed(&after(&[("a", 2, 2)], &nodes, &two, &[("a", "n1")])), ["a n2", "a n3"]);
    let here = after(&[("a", 2, 2)], &nodes[..2], &two, &[("a", "n1")]);
    assert_eq!(placed(&here), ["a n1", "a n2"], "tried again rather than twice on one node");
    assert!(here.unplaceable[0].1.contains("could not be loaded on n1"));
    let everywhere = after(&[("a", 1, 1)], &nodes[..2], &one, &[("a", "n1"), ("a", "n2")]);
    assert_eq!(placed(&everywhere), ["a n1"], "it goes from node to node no more");
    let gone = after(&[("a", 1, 1)], &nodes[1..2], &one, &[("a", "n1"), ("a", "n2")]);
    assert_eq!(placed(&gone), ["a n2"], "better than nowhere");
    let wide = plan(&run(&[("a", 1, 3)], &nodes, &Plan::default(), &nothing));
    assert_eq!(placed(&after(&[("a", 1, 3)], &nodes, &wide, &[("a", "n1")])), ["a n1", "a n2", "a n3"]);
}

/// Solves where models of 100 bytes are asked so much and need so many: (name, minimum, maximum, needed, asked).
fn run_by_demand(
    models: &[(&str, u32, u32, u32, f64)],
    nodes: &[Node],
    plan: &Plan,
    ready: &BTreeSet<ReplicaId>,
) -> Proposal {
    let references: Vec<ModelRef> = models.iter().map(|(name, ..)| model(name)).collect();
    let wish = |(_, min, max, needed, asked): &(&str, u32, u32, u32, f64)| Wish {
        needed: *needed,
        asked: *asked,
        ..Wish::declared(ReplicaRange { min: *min, max: *max }, Bytes(100))
    };
    solved(&Problem {
        models: references.iter().zip(models.iter().map(wish)).collect(),
        nodes: nodes.iter().collect(),
        plan,
        ready: ready.clone(),
        failed: BTreeSet::new(),
        next_replica: ReplicaId(plan.assignments.last_key_value().map_or(0, |(id, _)| id.0 + 1)),
    })
}

#[test]
fn what_is_asked_for_gets_every_slot_and_no_more() {
    let nodes = [node("n1", 1000), node("n2", 1000)];
    let nothing = BTreeSet::new();
    let first = run_by_demand(&[("a", 1, 9, 3, 2.4)], &nodes, &Plan::default(), &nothing);
    assert_eq!(placed(&first), ["a n1", "a n2", "a n1"], "a node has two slots");
    let most = run_by_demand(&[("a", 1, 9, 7, 6.0)], &nodes, &Plan::default(), &nothing);
    assert_eq!(most.assignments.len(), 4, "a replica without a slot runs nothing");
    let bounded = run_by_demand(&[("a", 1, 2, 7, 6.0)], &nodes, &Plan::default(), &nothing);
    assert_eq!(bounded.assignments.len(), 2);
}

#[test]
fn who_is_asked_most_comes_first_where_not_all_fit() {
    let nodes = [node("n1", 200)];
    let proposal = run_by_demand(
        &[("a", 1, 1, 1, 0.1), ("b", 1, 1, 1, 0.9), ("c", 1, 1, 1, 0.5)],
        &nodes,
        &Plan::default(),
        &BTreeSet::new(),
    );
    assert_eq!(placed(&proposal), ["b n1", "c n1", "a n1"]);
    let twice = run_by_demand(
        &[("a", 2, 2, 2, 0.1), ("b", 2, 2, 2, 0.9), ("c", 2, 2, 2, 0.5)],
        &[node("n1", 300)],
        &Plan::default(),
        &BTreeSet::new(),
    );
    assert_eq!(placed(&twice), ["b n1", "b n1", "c n1", "a n1"], "who is asked most has both");
    assert_eq!(twice.unplaceable.iter().map(|(name, _)| name).collect::<Vec<_>>(), [&model("c"), &model("a")]);
}

#[test]
fn what_nobody_asks_for_gives_way_and_what_serves_is_left_enough() {
    let nodes = [node("n1", 200), node("n2", 200)];
    let calm = [("a", 1, 9, 1, 0.1), ("b", 1, 9, 1, 0.2)];
    let before = plan(&run_by_demand(&calm, &nodes, &Plan::default(), &BTreeSet::new()));
    assert_eq!(before.assignments.len(), 4, "both on both nodes");
    let burst = [("a", 1, 9, 1, 0.1), ("b", 1, 9, 3, 2.5)];
    let during = run_by_demand(&burst, &nodes, &before, &everything(&before));
    let count = |proposal: &Proposal, name: &str| placed(proposal).iter().filter(|at| at.starts_with(name)).count();
    assert_eq!((count(&during, "a"), count(&during, "b")), (1, 3), "{:?}", placed(&during));
    let again = run_by_demand(&burst, &nodes, &plan(&during), &everything(&plan(&during)));
    assert_eq!(again, during);
    // Two of them serve nowhere yet: what serves stays.
    let one_ready: BTreeSet<_> =
        before.assignments.iter().filter(|(_, at)| at.model == model("a")).map(|(id, _)| *id).take(1).collect();
    let kept = run_by_demand(&burst, &nodes, &before, &one_ready);
    assert!(one_ready.iter().all(|id| kept.assignments.contains_key(id)), "the only one that serves");
    // A newcomer takes the place of what is spare, and of nothing else.
    let crowd = [("a", 1, 9, 2, 1.5), ("b", 1, 9, 1, 0.2), ("c", 1, 9, 1, 0.0)];
    let with_newcomer = run_by_demand(&crowd, &nodes, &before, &everything(&before));
    assert_eq!(["a", "b", "c"].map(|name| count(&with_newcomer, name)), [2, 1, 1]);
    let full = [("a", 1, 9, 2, 1.5), ("b", 1, 9, 2, 1.2), ("c", 1, 9, 1, 9.0)];
    let refused = run_by_demand(&full, &nodes, &before, &everything(&before));
    assert_eq!(["a", "b", "c"].map(|name| count(&refused, name)), [2, 2, 1], "what is wanted gives way to nobody");
    assert!(refused.unplaceable.is_empty(), "it is in memory on demand");
}

#[test]
fn spare_replicas_are_not_spread_over_hundreds_of_nodes() {
    let nodes: Vec<Node> = (0..40).map(|i| node(&format!("n{i:02}"), 1000)).collect();
    let proposal = run(&[("a", 1, u32::MAX), ("b", 20, u32::MAX)], &nodes, &Plan::default(), &BTreeSet::new());
    let count = |name: &str| placed(&proposal).iter().filter(|at| at.starts_with(name)).count();
    assert_eq!((count("a"), count("b")), (16, 20));
}

/// By how much more stands on a node than fits.
fn beyond(proposal: &Proposal, node: &Node) -> u64 {
    let here = proposal.assignments.values().filter(|at| at.node == node.name).count() as u64;
    (100 * here).saturating_sub(node.memory.0)
}

/// Models of which all that stands stands on a node.
fn only_here(proposal: &Proposal, node: &Node) -> u64 {
    let mut nodes: BTreeMap<&ModelRef, BTreeSet<&NodeName>> = BTreeMap::new();
    for at in proposal.assignments.values() {
        nodes.entry(&at.model).or_default().insert(&at.node);
    }
    nodes.values().filter(|nodes| nodes.iter().all(|at| **at == node.name)).count() as u64
}

proptest! {
    #[test]
    fn demand_leaves_solutions_stable_and_takes_nothing_that_is_wanted(
        models in prop::collection::vec((1..3u32, 0..6u32, 0..6u32, 0.0..4.0f64), 1..6),
        after in prop::collection::vec((0..6u32, 0.0..4.0f64), 6),
        memory in prop::collection::vec(0..600u64, 1..5),
        unready in prop::collection::btree_set(0..20u64, 0..6),
    ) {
        let names = ["a", "b", "c", "d", "e", "f"];
        let wishes: Vec<_> = models.iter().zip(names)
            .map(|((min, more, needed, asked), name)| (name, *min, min + more, *needed, *asked)).collect();
        let nodes: Vec<_> = memory.iter().enumerate().map(|(i, m)| node(&format!("n{i}"), *m)).collect();
        let before = plan(&run_by_demand(&wishes, &nodes, &Plan::default(), &BTreeSet::new()));
        let changed: Vec<_> = wishes.iter().zip(after)
            .map(|((name, min, max, ..), (needed, asked))| (*name, *min, *max, needed, asked)).collect();
        let mut ready = everything(&before);
        ready.retain(|id| !unready.contains(&id.0));
        let first = run_by_demand(&changed, &nodes, &before, &ready);
        let again = run_by_demand(&changed, &nodes, &plan(&first), &ready);
        prop_assert_eq!(&again.assignments, &first.assignments, "solving again moves nothing");
        for ((name, min, max, needed, _), at) in changed.iter().zip(0..) {
            let of = |plan: &BTreeMap<ReplicaId, Assignment>, which: &dyn Fn(&ReplicaId) -> bool| {
                plan.iter().filter(|(id, at)| at.model == model(name) && which(id)).count() as u32
            };
            let wanted = needed.clamp(min, max);
            let (was, is) = (of(&before.assignments, &|_| true), of(&first.assignments, &|_| true));
            prop_assert!(is >= was.min(*wanted), "{} of {} wanted were left of {}", is, wanted, was);
            let (served, serve) =
                (of(&before.assignments, &|id| ready.contains(id)), of(&first.assignments, &|id| ready.contains(id)));
            prop_assert!(serve >= served.min(*wanted), "{} of {} wanted serve of {} ({})", serve, wanted, served, at);
        }
        for node in &nodes {
            prop_assert!(beyond(&first, node) <= 100 * only_here(&first, node));
        }
    }

    #[test]
    fn failures_leave_solutions_stable(
        models in prop::collection::vec((1..4u32, 0..4u32), 1..4),
        memory in prop::collection::vec(0..500u64, 1..5),
        failed in prop::collection::vec((0..4usize, 0..5usize), 0..8),
    ) {
        let (names, places) = (["a", "b", "c", "d"], ["n0", "n1", "n2", "n3", "n4"]);
        let models: Vec<_> = models.iter().zip(names).map(|((min, more), name)| (name, *min, min + more)).collect();
        let nodes: Vec<_> = memory.iter().enumerate().map(|(i, m)| node(&format!("n{i}"), *m)).collect();
        let failed: Vec<_> = failed.into_iter().map(|(model, node)| (names[model], places[node])).collect();
        let before = plan(&run(&models, &nodes, &Plan::default(), &BTreeSet::new()));
        let first = run_after_failures(&models, &nodes, &before, &BTreeSet::new(), &failed);
        let after = plan(&first);
        let again = run_after_failures(&models, &nodes, &after, &BTreeSet::new(), &failed);
        prop_assert_eq!(&again.assignments, &first.assignments, "solving again moves nothing");
        for (name, _, max) in &models {
            prop_assert!(first.assignments.values().filter(|a| a.model == model(name)).count() as u32 <= *max);
        }
    }

    #[test]
    fn solutions_are_stable_and_within_bounds(
        models in prop::collection::vec((1..4u32, 0..4u32), 1..6),
        memory in prop::collection::vec(0..900u64, 1..5),
    ) {
        let names = ["a", "b", "c", "d", "e"];
        let models: Vec<_> = models.iter().zip(names).map(|((min, more), name)| (name, *min, min + more)).collect();
        let nodes: Vec<_> = memory.iter().enumerate().map(|(i, m)| node(&format!("n{i}"), *m)).collect();
        let first = run(&models, &nodes, &Plan::default(), &BTreeSet::new());
        for node in &nodes {
            prop_assert!(beyond(&first, node) <= 100 * only_here(&first, node));
        }
        for (name, min, max) in &models {
            let count = first.assignments.values().filter(|a| a.model == model(name)).count() as u32;
            prop_assert!(count <= *max);
            let short = first.unplaceable.iter().any(|(m, _)| *m == model(name));
            prop_assert_eq!(count < *min, short);
        }
        let before = plan(&first);
        let again = run(&models, &nodes, &before, &everything(&before));
        prop_assert_eq!(again.assignments, first.assignments, "solving again moves nothing");
    }
}

fn report(name: &str, replicas: &[(u64, ReplicaState, u32)]) -> NodeReport {
    NodeReport {
        node: NodeName::parse(name).unwrap(),
        incarnation: 1,
        epoch: Epoch(1),
        replicas: replicas
            .iter()
            .map(|(id, state, deaths)| {
                (
                    ReplicaId(*id),
                    ReplicaReport {
                        state: state.clone(),
                        deaths: *deaths,
                        last_death: "panicked".into(),
                        batches: Default::default(),
                        paged: None,
                    },
                )
            })
            .collect(),
        devices: vec![],
        endpoints: vec![],
        up: Duration::from_secs(1),
        draining: false,
        asked: BTreeMap::new(),
        wanted: BTreeMap::new(),
        memory: Default::default(),
    }
}

fn ready() -> ReplicaState {
    ReplicaState::Ready(ReplicaProfile {
        points: vec![(1, ServiceTime::from_micros(9))],
        max_batch: 1,
        unbatched: String::new(),
        memory: Bytes(7),
        informed: false,
    })
}

fn state() -> State {
    let mut state = State::default();
    let n1 = node("n1", 1000);
    state.nodes.insert(n1.name.clone(), n1.clone());
    state.plan.assignments = BTreeMap::from([(
        ReplicaId(4),
        Assignment { model: model("a"), node: n1.name.clone(), device: n1.devices[0].name.clone() },
    )]);
    state
}

#[test]
fn a_silent_node_is_down_after_a_while_and_its_replicas_with_it() {
    let (state, name) = (state(), NodeName::parse("n1").unwrap());
    let mut liveness = Liveness::new(Instant::ZERO);
    assert_eq!(
        liveness.state(Instant::from_millis(1499), &state, &name),
        NodeState::Up,
        "a new leader waits for a report"
    );
    assert_eq!(liveness.state(Instant::from_millis(1500), &state, &name), NodeState::Down);
    liveness.on_report(Instant::from_millis(2000), &state, report("n1", &[(4, ready(), 0), (9, ready(), 0)]));
    assert_eq!(
        liveness.ready(Instant::from_millis(3499), &state),
        BTreeSet::from([ReplicaId(4)]),
        "only what the plan names"
    );
    assert!(liveness.ready(Instant::from_millis(3500), &state).is_empty());
    assert_eq!(liveness.measured(&state)[&model("a")].memory, Bytes(7));
}

#[test]
fn a_node_is_avoided_for_what_it_could_not_load_until_it_is_started_anew_or_a_while_has_passed() {
    let state = state();
    let here = BTreeSet::from([(model("a"), NodeName::parse("n1").unwrap())]);
    let failed = || ReplicaState::Failed("no such device".into());
    let told = |at, replica| {
        let mut liveness = Liveness::new(Instant::ZERO);
        liveness.on_report(Instant::ZERO, &state, report("n1", &[(4, failed(), 0)]));
        liveness.on_report(Instant::from_millis(at), &state, replica);
        liveness.failed(Instant::from_millis(at))
    };
    assert_eq!(told(250, report("n1", &[(4, failed(), 0)])), here);
    assert_eq!(told(250, report("n1", &[(4, ReplicaState::Loading, 0)])), here, "it tries again");
    assert_eq!(told(250, report("n1", &[])), here, "the replica went elsewhere");
    assert_eq!(told(600_000, report("n1", &[])), BTreeSet::new());
    assert_eq!(told(250, report("n1", &[(4, ready(), 0)])), BTreeSet::new());
    assert_eq!(told(250, NodeReport { incarnation: 2, ..report("n1", &[]) }), BTreeSet::new());
}

#[test]
fn a_node_that_was_told_to_stop_gets_nothing_new() {
    let state = state();
    let mut liveness = Liveness::new(Instant::ZERO);
    let draining = |liveness: &Liveness| {
        liveness.nodes(Instant::ZERO, &state).iter().map(|node| node.draining).collect::<Vec<_>>()
    };
    assert_eq!(draining(&liveness), [false]);
    liveness.on_report(Instant::ZERO, &state, NodeReport { draining: true, ..report("n1", &[]) });
    assert_eq!(draining(&liveness), [true]);
    assert!(liveness.nodes(Instant::from_millis(1500), &state).is_empty());
}

#[test]
fn three_deaths_in_a_minute_quarantine_a_version() {
    let mut state = state();
    let mut liveness = Liveness::new(Instant::ZERO);
    let mut deaths = |state: &State, ms, count| {
        liveness.on_report(Instant::from_millis(ms), state, report("n1", &[(4, ready(), count)]))
    };
    assert_eq!(deaths(&state, 0, 0), None);
    assert_eq!(deaths(&state, 100, 1), None);
    assert_eq!(deaths(&state, 250, 1), None, "the same death reported again");
    assert_eq!(deaths(&state, 61_000, 2), None, "the first is long ago");
    assert_eq!(deaths(&state, 61_250, 3), None);
    let (quarantined, because) = deaths(&state, 61_500, 4).unwrap();
    assert_eq!(quarantined, model("a"));
    assert!(because.contains("3 times within a minute, last: panicked"));
    assert!(deaths(&state, 61_750, 4).is_some(), "said until it is written");
    let known = Model {
        reference: model("a"),
        digest: Digest([0; 32]),
        size: Bytes(1),
        engine: EngineKind::Synthetic,
        signature: Signature { inputs: vec![], outputs: vec![] },
        max_batch: None,
        shapes: Default::default(),
        replicas: ReplicaRange { min: 1, max: 1 },
        quarantined: Some(because),
    };
    state.models.insert(model("a"), known.clone());
    assert_eq!(deaths(&state, 62_000, 4), None);
    state.models.insert(model("a"), Model { quarantined: None, ..known });
    assert_eq!(deaths(&state, 62_250, 4), None, "allowed again is a new beginning");
}

#[test]
fn a_new_leader_does_not_count_what_died_long_ago() {
    let state = state();
    let mut liveness = Liveness::new(Instant::ZERO);
    let mut deaths =
        |ms, replica, count| liveness.on_report(Instant::from_millis(ms), &state, report("n1", &[(4, replica, count)]));
    assert_eq!(deaths(0, ready(), 3), None, "they may have been last week");
    assert_eq!(deaths(250, ready(), 5), None);
    assert!(deaths(500, ready(), 6).is_some());
    let mut liveness = Liveness::new(Instant::ZERO);
    let given_up = ReplicaState::Failed("its actor died 3 times within a minute".into());
    let quarantine = liveness.on_report(Instant::ZERO, &state, report("n1", &[(4, given_up, 3)]));
    assert_eq!(quarantine.unwrap().0, model("a"), "the leader before could not write it");
}

#[test]
fn a_replica_replaces_others_once_everybody_has_heard_of_it() {
    let state = state();
    let mut liveness = Liveness::new(Instant::ZERO);
    for ms in [0, 250, 499] {
        liveness.on_report(Instant::from_millis(ms), &state, report("n1", &[(4, ready(), 0)]));
        assert!(liveness.settled(Instant::from_millis(ms), &state).is_empty());
    }
    assert_eq!(liveness.settled(Instant::from_millis(500), &state), BTreeSet::from([ReplicaId(4)]));
}

/// A state in which replicas 4 on n1 and 5 on n2 are of model a.
fn two_nodes() -> State {
    let mut state = state();
    let n2 = node("n2", 1000);
    let there = Assignment { model: model("a"), node: n2.name.clone(), device: n2.devices[0].name.clone() };
    state.plan.assignments.insert(ReplicaId(5), there);
    state.nodes.insert(n2.name.clone(), n2);
    state.models.insert(model("a"), known_model(Digest([1; 32])));
    state
}

pub(crate) fn known_model(digest: Digest) -> Model {
    Model {
        reference: model("a"),
        digest,
        size: Bytes(1),
        engine: EngineKind::Onnx,
        signature: Signature { inputs: vec![], outputs: vec![] },
        max_batch: None,
        shapes: Default::default(),
        replicas: ReplicaRange { min: 1, max: 1 },
        quarantined: None,
    }
}

/// A node's report of one replica with this profile after so many batches.
fn measured(node: &str, id: u64, points: &[(u32, u64)], batches: u64) -> NodeReport {
    let profile = ReplicaProfile {
        points: points.iter().map(|(batch, us)| (*batch, ServiceTime::from_micros(*us))).collect(),
        max_batch: 8,
        unbatched: String::new(),
        memory: Bytes(7),
        informed: false,
    };
    let mut report = report(node, &[(id, ReplicaState::Ready(profile), 0)]);
    report.replicas.get_mut(&ReplicaId(id)).unwrap().batches = Batches::of([batches], batches);
    report
}

/// What the leader keeps next at `ms` where the nodes have reported this.
fn next_kept(informing: &mut Informing, ms: u64, state: &State, reports: &[NodeReport]) -> Option<KeptProfile> {
    let mut liveness = Liveness::new(Instant::ZERO);
    for report in reports {
        liveness.on_report(Instant::from_millis(ms), state, report.clone());
    }
    informing.next(Instant::from_millis(ms), state, &liveness)
}

fn keep(state: &mut State, profile: KeptProfile) {
    state.profiles.insert((profile.digest, profile.hardware.clone()), profile);
}

#[test]
fn the_first_profile_of_an_artifact_on_some_hardware_is_kept_at_once_and_by_powers_of_two() {
    let mut state = two_nodes();
    let mut informing = Informing::new(Instant::ZERO);
    assert_eq!(next_kept(&mut informing, 0, &state, &[report("n1", &[(4, ReplicaState::Loading, 0)])]), None);
    let points = [(1, 10), (2, 11), (3, 12), (4, 13), (6, 15)];
    let reports = [measured("n1", 4, &points, 0), measured("n2", 5, &points, 0)];
    assert_eq!(next_kept(&mut informing, 900, &state, &reports), None, "the leader looks once a second");
    let kept = next_kept(&mut informing, 1000, &state, &reports).unwrap();
    let sizes: Vec<u32> = kept.points.iter().map(|(batch, _)| *batch).collect();
    assert_eq!((kept.digest, kept.hardware.as_str(), sizes), (Digest([1; 32]), "x", vec![1, 2, 4, 6]));
    keep(&mut state, kept);
    assert_eq!(next_kept(&mut informing, 2000, &state, &reports), None, "what is kept is no news");
    state.nodes.values_mut().for_each(|node| node.devices[0].hardware = "y".into());
    assert_eq!(next_kept(&mut informing, 3000, &state, &reports).unwrap().hardware, "y", "other hardware is");
    state.nodes.values_mut().for_each(|node| node.devices[0].hardware.clear());
    assert_eq!(next_kept(&mut informing, 4000, &state, &reports), None, "a device may keep its times to itself");
}

#[test]
fn a_kept_profile_is_corrected_where_all_who_know_better_say_otherwise_and_seldom() {
    let mut state = two_nodes();
    let mut informing = Informing::new(Instant::ZERO);
    let at_first = measured("n1", 4, &[(1, 100), (8, 200)], 0);
    let kept = next_kept(&mut informing, 0, &state, std::slice::from_ref(&at_first)).unwrap();
    keep(&mut state, kept.clone());
    let later = 3_600_000;
    let near = measured("n1", 4, &[(1, 109), (8, 181)], 500);
    let far = measured("n2", 5, &[(1, 100), (8, 221)], 400);
    let young = measured("n2", 5, &[(1, 100), (8, 221)], 99);
    assert_eq!(next_kept(&mut informing, later, &state, std::slice::from_ref(&near)), None);
    assert_eq!(next_kept(&mut informing, later + 1000, &state, &[near, far.clone()]), None, "one of them agrees");
    assert_eq!(next_kept(&mut informing, later + 2000, &state, std::slice::from_ref(&young)), None);
    let corrected = next_kept(&mut informing, later + 3000, &state, std::slice::from_ref(&far)).unwrap();
    assert_eq!(corrected.by.as_str(), "n2");
    keep(&mut state, corrected);
    let again = measured("n2", 5, &[(1, 300), (8, 900)], 9000);
    let soon = later + 3000 + 599_000;
    assert_eq!(next_kept(&mut informing, soon, &state, std::slice::from_ref(&again)), None, "too soon");
    assert!(next_kept(&mut informing, soon + 1000, &state, std::slice::from_ref(&again)).is_some());
    let mut successor = Informing::new(Instant::from_millis(soon));
    assert_eq!(next_kept(&mut successor, soon + 1000, &state, &[again]), None, "a new leader waits as long");
}
