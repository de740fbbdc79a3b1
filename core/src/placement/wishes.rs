//! What is wished for each model, of everything that the leader knows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Liveness, Wish};
use crate::ids::ModelRef;
use crate::replicated::State;
use crate::tuner::{Row, Tuner};
use crate::units::Instant;

/// By model that an endpoint names: what was declared, what nodes measured, and what is asked by now.
pub fn wishes<'s>(
    now: Instant,
    state: &'s State,
    liveness: &Liveness,
    tuner: &mut Tuner,
) -> BTreeMap<&'s ModelRef, Wish> {
    let measured = liveness.measured(state);
    let deadlines = deadlines(state);
    tuner.tick(now, |model| Some(Row::of(measured.get(model)?.points, *deadlines.get(model)?)));
    let mut standing: BTreeMap<&ModelRef, u32> = BTreeMap::new();
    if !tuner.is_settled(now) {
        // Nobody has looked long enough to say that something is not needed.
        state.plan.assignments.values().for_each(|at| *standing.entry(&at.model).or_default() += 1);
    }
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
