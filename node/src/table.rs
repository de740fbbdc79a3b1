//! What this node knows of the cluster: an immutable snapshot that RPC threads read and the control thread replaces.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use weir_core::endpoint::{Budget, Endpoint, Ladders, Wiring};
use weir_core::ids::{DeviceName, EndpointName, Epoch, ModelRef, NodeName, QueryId, ReplicaId};
use weir_core::outcome::Class;
use weir_core::profile::Profile;
use weir_core::replicated::{Assignment, Grant, Model, State};
use weir_core::router::{Candidate, Target, Told, cheapest, meeting_order, remote_finish, sent};
use weir_core::scheduler::Inquiry;
use weir_core::tensor::Row;
use weir_core::triage::{self, Claim};
use weir_core::units::{Deadline, Instant};

use crate::Devices;

#[cfg(test)]
mod tests;

/// Everything that routing a query needs.
#[derive(Default)]
pub struct Table {
    /// Of the plan that this was made from.
    pub epoch: Epoch,
    /// By name, with their stages wired.
    pub endpoints: BTreeMap<EndpointName, Served>,
    /// By reference.
    pub models: BTreeMap<ModelRef, Arc<Model>>,
    /// Where each model can be sent work: devices of this node, and other nodes.
    pub targets: BTreeMap<ModelRef, Targets>,
    /// Address of each node.
    pub addresses: BTreeMap<NodeName, String>,
    /// By id.
    pub grants: BTreeMap<String, Grant>,
}

/// An endpoint that can be queried.
pub struct Served {
    /// What it is, and what going deeper is worth.
    pub ladders: Arc<Ladders>,
    /// Its stages, wired to each other.
    pub wiring: Arc<Wiring>,
    /// How a query's time is split over its stages.
    pub budget: Arc<Budget>,
    /// The versions that its queries are split over, with their shares; none where there is one.
    pub versions: Vec<(u32, Served)>,
    /// What sees copies of its queries.
    pub shadow: Option<Arc<Served>>,
}

impl Served {
    fn new<'a>(endpoint: &Endpoint, wiring: Wiring, profile: impl Fn(&ModelRef) -> Option<&'a Profile>) -> Served {
        let profiles: Vec<Option<&Profile>> =
            endpoint.stages.iter().map(|stage| stage.model().and_then(&profile)).collect();
        let seconds: Vec<f64> = profiles.iter().map(|profile| profile.map_or(0.0, Profile::row_seconds)).collect();
        let ladders = Arc::new(Ladders::new(&Arc::new(endpoint.clone()), &seconds));
        // In a chain each stage can answer, so that nothing has to follow any.
        let known = profiles.into_iter().map(|profile| profile.filter(|_| !wiring.flow.is_chain()).cloned());
        let budget = Arc::new(Budget::new(&wiring.flow, known));
        Served { ladders, wiring: Arc::new(wiring), budget, versions: Vec::new(), shadow: None }
    }

    /// The version that a query goes to, by its id: all rows of a call to the same, whichever node is its home.
    pub fn version(&self, id: QueryId) -> &Served {
        let all: u64 = self.versions.iter().map(|(share, _)| u64::from(*share)).sum();
        if all == 0 {
            return self;
        }
        // Ids are drawn, but those that came from elsewhere may be counted up.
        let mut left = (id.0 as u64 ^ (id.0 >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % all;
        let within = |(share, _): &&(u32, Served)| {
            let share = u64::from(*share);
            let here = left < share;
            left = left.wrapping_sub(share);
            here
        };
        self.versions.iter().find(within).map_or(self, |(_, version)| version)
    }
}

/// Where a model stands.
#[derive(Clone, Default)]
pub struct Targets {
    /// Devices of this node where a replica is assigned; whether it is ready, the device knows.
    pub local: BTreeSet<DeviceName>,
    /// Other nodes where a replica is ready.
    pub remote: BTreeMap<NodeName, Remote>,
    /// Where this node stands in the order in which rows of the model fill nodes.
    pub here: usize,
    /// The price of its devices, where somebody holds it by hand.
    pub held: Option<f64>,
}

/// A model on another node.
#[derive(Clone)]
pub struct Remote {
    /// Where it stands in the order in which rows of the model fill nodes.
    pub order: usize,
    /// Latency there, of the fastest of its devices.
    pub profile: Option<Profile>,
}

impl Targets {
    /// Latency on the other node that rows of the model fill first.
    pub fn elsewhere(&self) -> Option<&Profile> {
        let known = self.remote.values().filter_map(|remote| Some((remote.order, remote.profile.as_ref()?)));
        known.min_by_key(|(order, _)| *order).map(|(_, profile)| profile)
    }

    /// Latency on a node.
    pub fn at(&self, node: &NodeName) -> Option<&Profile> {
        self.remote.get(node)?.profile.as_ref()
    }
}

/// What the leader says of who serves: ordered by (term, counter).
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// Of the leader that said so.
    pub term: u64,
    /// Within the term.
    pub counter: u64,
    /// Replicas on nodes that are up.
    pub ready: BTreeSet<ReplicaId>,
    /// Profiles of ready replicas.
    pub profiles: BTreeMap<ReplicaId, Profile>,
}

impl Table {
    /// What homes have learned of endpoints holds on where those are as they were.
    pub fn learn(&self, before: &Table) {
        for (name, served) in &self.endpoints {
            let Some(known) = before.endpoints.get(name) else { continue };
            served.budget.learn(&known.budget);
            for ((_, version), (_, known)) in served.versions.iter().zip(&known.versions) {
                version.budget.learn(&known.budget);
            }
        }
    }

    /// The table of node `me` from the replicated state and the leader's word.
    pub fn new(me: &NodeName, state: &State, routing: &Routing) -> Table {
        let signatures = state.signatures();
        let mut endpoints = BTreeMap::new();
        for (name, endpoint) in &state.endpoints {
            // The state machine has checked it; a version with other rules may not have.
            match endpoint.wire(&signatures) {
                Ok(wiring) => {
                    let profile = |model: &ModelRef| fastest(state, routing, model);
                    let mut served = Served::new(endpoint, wiring, profile);
                    if !endpoint.versions.is_empty() {
                        let wired = |(share, variant): (u32, Endpoint)| {
                            let wiring = variant.wire(&signatures).ok()?;
                            Some((share, Served::new(&variant, wiring, profile)))
                        };
                        served.versions = endpoint.variants().into_iter().filter_map(wired).collect();
                    }
                    served.shadow = endpoint.as_shadow().and_then(|shadow| {
                        let wiring = shadow.wire(&signatures).ok()?;
                        Some(Arc::new(Served::new(&shadow, wiring, profile)))
                    });
                    endpoints.insert(name.clone(), served);
                }
                Err(bad) => tracing::warn!(%bad, "an endpoint cannot be served"),
            }
        }
        let order = order(state, routing);
        let mut targets: BTreeMap<ModelRef, Targets> = BTreeMap::new();
        for (id, assignment) in &state.plan.assignments {
            let of_model = targets.entry(assignment.model.clone()).or_default();
            let stands = order[&assignment.model].iter().position(|node| *node == assignment.node);
            let stands = stands.unwrap_or(usize::MAX);
            of_model.held = of_model.held.or(held(state, assignment));
            if assignment.node == *me {
                of_model.local.insert(assignment.device.clone());
                of_model.here = stands;
            } else if routing.ready.contains(id) {
                let none = Remote { order: stands, profile: None };
                let remote = of_model.remote.entry(assignment.node.clone()).or_insert(none);
                let known = remote.profile.iter().chain(routing.profiles.get(id));
                remote.profile = known.min_by_key(|profile| profile.estimate(1)).cloned();
            }
        }
        Table {
            epoch: state.plan.epoch,
            endpoints,
            models: state
                .models
                .iter()
                .map(|(reference, model)| (reference.clone(), Arc::new(model.clone())))
                .collect(),
            targets,
            addresses: state.nodes.iter().map(|(name, node)| (name.clone(), node.address.clone())).collect(),
            grants: state.grants.clone(),
        }
    }
}

/// Nodes that serve a model, in the order in which its rows fill them. Who does not serve yet, or no longer, keeps its place until it does.
fn order(state: &State, routing: &Routing) -> BTreeMap<ModelRef, Vec<NodeName>> {
    let mut with: BTreeMap<ModelRef, BTreeSet<NodeName>> = BTreeMap::new();
    for assignment in state.plan.assignments.values() {
        with.entry(assignment.model.clone()).or_default().insert(assignment.node.clone());
    }
    let slots = |node: &NodeName| state.nodes.get(node).map_or(1, |node| node.devices.iter().map(|at| at.slots).sum());
    let mut order = meeting_order(with, slots);
    let serving = state.plan.assignments.iter().filter(|(id, _)| routing.ready.contains(id));
    let serving: BTreeSet<_> = serving.map(|(_, assignment)| (&assignment.model, &assignment.node)).collect();
    order.iter_mut().for_each(|(model, nodes)| nodes.retain(|node| serving.contains(&(model, node))));
    order
}

/// The price that the pool of a replica is held at.
fn held(state: &State, assignment: &Assignment) -> Option<f64> {
    let devices = &state.nodes.get(&assignment.node)?.devices;
    let device = devices.iter().find(|device| device.name == assignment.device)?;
    state.dials.get(&device.kind).copied()
}

/// What the ready replica of a model takes that needs least slot time a row; nothing where none is.
fn fastest<'a>(state: &State, routing: &'a Routing, model: &ModelRef) -> Option<&'a Profile> {
    let replicas = state.plan.assignments.iter().filter(|(_, assignment)| assignment.model == *model);
    let profiles = replicas.filter_map(|(id, _)| routing.profiles.get(id));
    profiles.min_by(|a, b| a.row_seconds().total_cmp(&b.row_seconds()))
}

/// What answers of other nodes told about their queues, by node and model: the wait of a query that came then. And what was not sent there for
/// it, so that they hear how much is asked of what they have.
#[derive(Default)]
pub struct RemoteWaits {
    told: DashMap<(NodeName, ModelRef), Told>,
    missed: DashMap<(NodeName, ModelRef), Missed>,
}

/// Rows that were not sent, and the most time that one of them had.
#[derive(Clone, Copy, Default)]
pub struct Missed {
    pub rows: usize,
    pub left: Duration,
}

impl RemoteWaits {
    /// A node told how long a query of this model would have waited.
    pub fn tell(&self, node: &NodeName, model: &ModelRef, told: Told) {
        self.told.insert((node.clone(), model.clone()), told);
    }

    /// Rows have been sent to a node that take so much of its slot time.
    pub fn sent(&self, now: Instant, node: &NodeName, model: &ModelRef, work: Duration) {
        let told = self.told.entry((node.clone(), model.clone()));
        told.and_modify(|told| *told = sent(now, Some(*told), work)).or_insert_with(|| sent(now, None, work));
    }

    /// Rows that had so much time left would have been done too late at a node.
    pub fn missed(&self, node: &NodeName, model: &ModelRef, rows: usize, left: Duration) {
        let mut missed = self.missed.entry((node.clone(), model.clone())).or_default();
        *missed = Missed { rows: missed.rows + rows, left: missed.left.max(left) };
    }

    /// What it has not been told of that.
    pub fn take_missed(&self, node: &NodeName, model: &ModelRef) -> Missed {
        self.missed.remove(&(node.clone(), model.clone())).map_or_else(Missed::default, |(_, missed)| missed)
    }

    fn told(&self, node: &NodeName, model: &ModelRef) -> Option<Told> {
        self.told.get(&(node.clone(), model.clone())).map(|told| *told)
    }
}

/// What a second of slot time costs for a model where it is cheapest, to a row that may come.
pub fn price(
    table: &Table,
    devices: &Devices,
    waits: &RemoteWaits,
    now: Instant,
    model: &ModelRef,
    claim: Claim,
) -> f64 {
    let Some(targets) = table.targets.get(model) else { return 0.0 };
    if let Some(held) = targets.held {
        return held;
    }
    let local = targets.local.iter().filter_map(|name| Some(devices.get(name)?.price(now, model, claim).now()));
    cheapest(now, local, targets.remote.keys().map(|node| waits.told(node, model)))
}

/// How much of the time until `deadline` the wait for a model takes, where it is shortest.
pub fn load(
    table: &Table,
    devices: &Devices,
    waits: &RemoteWaits,
    now: Instant,
    model: &ModelRef,
    deadline: Deadline,
) -> f64 {
    let known = candidates(table, devices, waits, now, model, (Inquiry::of(Class::Default, deadline), None), &[]);
    let finish = known.iter().map(|candidate| candidate.estimate.finish).min();
    finish.map_or(0.0, |finish| triage::load(now, finish, deadline))
}

/// Everything that could run rows of `model` now, `like` one of them where there are any yet, and when they would be done; none of `tried`.
pub fn candidates(
    table: &Table,
    devices: &Devices,
    waits: &RemoteWaits,
    now: Instant,
    model: &ModelRef,
    (asked, like): (Inquiry, Option<&Row>),
    tried: &[Target],
) -> Vec<Candidate> {
    let Some(targets) = table.targets.get(model) else { return Vec::new() };
    let local = targets.local.iter().filter_map(|name| {
        let estimate = devices.estimate_finish(devices.get(name)?, now, model, asked, like)?;
        Some(Candidate { target: Target::Local(name.clone()), estimate, order: targets.here })
    });
    let remote = targets.remote.iter().map(|(node, Remote { order, profile })| {
        let takes = |profile: &Profile| profile.estimate(asked.rows as u32).as_duration();
        let service = profile.as_ref().map_or(Duration::ZERO, takes);
        let estimate = remote_finish(now, waits.told(node, model), service);
        Candidate { target: Target::Remote(node.clone()), estimate, order: *order }
    });
    local.chain(remote).filter(|candidate| !tried.contains(&candidate.target)).collect()
}
