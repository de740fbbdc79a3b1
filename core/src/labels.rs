//! When a label goes on: the leader's part of moving it.
//!
//! A label that is to go to another version waits until that is loaded, as often as the plan says, and every node has
//! heard of it; then it moves, in one log entry. The version that it left stays loaded for [`LINGERS`] and the longest
//! deadline of whoever follows the label: a query that began with it ends with it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::endpoint::{Endpoint, Label, Labels};
use crate::ids::{ModelRef, NodeName, ReplicaId, Version};
use crate::replicated::{Command, State};
use crate::units::Instant;

/// How long a version stays loaded beyond the deadlines of its queries: nodes hear of the move within two reports, and
/// callers may bring longer deadlines than the endpoint has.
pub const LINGERS: Duration = Duration::from_secs(5);

/// Labels that have moved, as one leader sees them: soft state.
#[derive(Clone, Debug, Default)]
pub struct Moving {
    left: BTreeMap<ModelRef, (Version, Instant)>,
}

impl Moving {
    /// The next step of a label, where one is due. `settled` says of a replica and its node whether it is ready, as every node knows.
    pub fn next(
        &mut self,
        now: Instant,
        state: &State,
        settled: impl Fn(ReplicaId, &NodeName) -> bool,
    ) -> Option<Command> {
        self.left.retain(|name, (version, _)| {
            state.labels.get(name).is_some_and(|label| label.leaving && label.version == *version)
        });
        for label in state.labels.values().filter(|label| label.leaving) {
            let version = label.version.clone();
            self.left.entry(label.name.clone()).or_insert((version, now));
        }
        state.labels.values().find_map(|label| self.step(now, state, &settled, label))
    }

    fn step(
        &self,
        now: Instant,
        state: &State,
        settled: impl Fn(ReplicaId, &NodeName) -> bool,
        label: &Label,
    ) -> Option<Command> {
        let name = label.name.clone();
        // What it leaves is still needed where it goes back, and else has to have gone before it leaves the next.
        let goes_on = |next: &&Version| !label.leaving || label.before.as_ref() == Some(next);
        if let Some(next) = label.next.as_ref().filter(goes_on) {
            let comes = is_ready(state, settled, &label.of(next)) || followers(state, label).next().is_none();
            let moves = comes && state.check_move(label, next).is_ok();
            return moves.then(|| Command::LabelMoves { name, version: next.clone() });
        }
        let (version, (_, since)) = (label.before.as_ref().filter(|_| label.leaving)?, self.left.get(&label.name)?);
        let longest = followers(state, label).map(|endpoint| endpoint.deadline).max();
        let over = longest.is_none_or(|longest| now.since(*since) >= LINGERS + longest);
        over.then(|| Command::LabelLeaves { name, version: version.clone() })
    }
}

fn followers<'s>(state: &'s State, label: &'s Label) -> impl Iterator<Item = &'s Endpoint> {
    state.endpoints.values().filter(|endpoint| endpoint.follows(&label.name))
}

/// Whether all replicas that the plan has of a model are ready, as every node knows, and it has as many as were declared at least.
fn is_ready(state: &State, settled: impl Fn(ReplicaId, &NodeName) -> bool, model: &ModelRef) -> bool {
    let planned = state.plan.assignments.iter().filter(|(_, assignment)| assignment.model == *model);
    let settled = planned.map(|(id, assignment)| settled(*id, &assignment.node));
    let least = state.models.get(model).map_or(1, |model| model.replicas.min);
    let mut count = 0;
    settled.inspect(|_| count += 1).all(|settled| settled) && count >= least
}

/// Versions between which a label goes: what comes gets as many replicas as what goes needs, since nobody has asked it yet.
pub fn twins(labels: &Labels) -> impl Iterator<Item = (ModelRef, ModelRef)> {
    labels.values().flat_map(|label| label.beside().map(|other| (other, label.model())))
}
