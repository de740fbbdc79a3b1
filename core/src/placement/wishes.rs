//! The placement that follows from everything that the leader knows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Liveness, Problem, Proposal, Wish, solve};
use crate::ids::ModelRef;
use crate::replicated::State;
use crate::tuner::{Row, Tuner};
use crate::units::Instant;

/// What should stand where by now.
pub fn propose(now: Instant, state: &State, liveness: &Liveness, tuner: &mut Tuner) -> Proposal {
    let nodes = liveness.nodes(now, state);
    if nodes.is_empty() {
        // With nobody to take over there is nothing to gain from taking away.
        let nowhere = |model: &ModelRef| (model.clone(), "no node is up; start one with `weir node`".into());
        let unplaceable = state.wanted_models().into_iter().map(nowhere).collect();
        return Proposal { assignments: state.plan.assignments.clone(), unplaceable };
    }
    solve(&Problem {
        models: wishes(now, state, liveness, tuner),
        nodes: nodes.iter().collect(),
        plan: &state.plan,
        ready: liveness.settled(now, state),
        failed: liveness.failed(now),
        next_replica: state.next_replica,
    })
}

/// By model that an endpoint names: what was declared, what nodes measured, and what is asked by now.
fn wishes<'s>(now: Instant, state: &'s State, liveness: &Liveness, tuner: &mut Tuner) -> BTreeMap<&'s ModelRef, Wish> {
    let measured = liveness.measured(state);
    let deadlines = deadlines(state);
    tuner.tick(now, |model| Some(Row::of(measured.get(model)?.points, *deadlines.get(model)?)));
    // At first nobody has looked long enough to say that something is not needed.
    let standing = if tuner.is_settled(now) { BTreeMap::new() } else { state.plan.replicas() };
    let wish = |reference: &'s ModelRef| {
        let model = &state.models[reference];
        let memory = measured.get(reference).map_or(model.size, |measured| measured.memory);
        let want = tuner.want(reference);
        let needed = want.map_or(0, |want| want.replicas).max(standing.get(reference).copied().unwrap_or(0));
        let asked = want.map_or(0.0, |want| want.now);
        (reference, Wish { needed, asked, ..Wish::declared(model.replicas, memory) })
    };
    state.wanted_models().into_iter().map(wish).collect()
}

/// By model, the shortest deadline of the endpoints that name it.
fn deadlines(state: &State) -> BTreeMap<&ModelRef, Duration> {
    let mut deadlines = BTreeMap::new();
    for endpoint in state.endpoints.values() {
        for model in endpoint.models() {
            let known = deadlines.entry(model).or_insert(endpoint.deadline);
            *known = endpoint.deadline.min(*known);
        }
    }
    deadlines
}
