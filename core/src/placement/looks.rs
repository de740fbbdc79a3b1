//! The placement that follows from everything that the leader knows, looked at again and again.
//!
//! With a thousand nodes and ten thousand models most of what a look would read is as it was at the last. So names become indices once,
//! and what was read stays until it is known to have changed: of the state when its log has gone on, of a node when its report says
//! something else, when it falls silent and when a replica has been ready for long enough. What is left to do for all models is to
//! read what they want, and for those that lack something to look for room.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::liveness::Seen;
use super::solve::solve_table;
use super::table::{Placed, Table};
use super::{Liveness, NodeState, Wish};
use crate::endpoint::Endpoint;
use crate::ids::{EndpointName, Epoch, LogIndex, ModelRef, NodeName, ReplicaId};
use crate::labels::twins;
use crate::replicated::{Declared, Model, Moves, Node, Plan, ReplicaRange, State};
use crate::tuner::{Row, Tuner, Want};
use crate::units::{Bytes, Instant, ServiceTime};

/// A placement as a leader keeps it between looks. It may be begun anew at any time: what is kept changes what a look takes, and
/// nothing that comes of it.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    table: Table,
    node_at: BTreeMap<NodeName, usize>,
    /// By the indices of the table's rooms.
    nodes: Vec<OfNode>,
    model_at: BTreeMap<ModelRef, usize>,
    /// By the indices of the table's models.
    models: Vec<OfModel>,
    endpoints: BTreeMap<EndpointName, Named>,
    /// What the plan has: by id the model and the node.
    replicas: BTreeMap<ReplicaId, (usize, usize)>,
    /// Of those, the ones that cannot stay: nobody wants the model, or the node cannot be counted on, or it has no such device.
    strays: BTreeSet<ReplicaId>,
    failed: BTreeSet<(ModelRef, NodeName)>,
    /// Versions between which labels go: each needs what the other one does.
    twins: Vec<(usize, usize)>,
    /// The state that was read last.
    read: Option<(LogIndex, Epoch, Declared)>,
}

/// What comes of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// From the plan as it is to the plan as it should be.
    pub moves: Moves,
    /// Models without their minimum, and why.
    pub unplaceable: Vec<(ModelRef, String)>,
}

#[derive(Clone, Debug)]
struct OfNode {
    /// `None` where the state has none of that name.
    node: Option<Node>,
    /// What the plan has there, by id.
    replicas: Vec<Replica>,
    /// The version of what was heard last; 0 where it has to be read anyway.
    heard: u64,
    /// When the next of its replicas will have been ready for long enough.
    settles: Instant,
}

#[derive(Clone, Debug)]
struct Replica {
    id: ReplicaId,
    model: usize,
    /// `None` where the node has no such device.
    device: Option<usize>,
    /// It serves, and every node knows.
    ready: bool,
    measured: Option<Measured>,
}

/// What a node measured of a replica.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    memory: Bytes,
    /// Of a single row.
    alone: Option<ServiceTime>,
    row: Option<Row>,
}

#[derive(Clone, Debug, Default)]
struct OfModel {
    /// Bounds and size; `None` where the state has none of that name, or it is quarantined.
    declared: Option<(ReplicaRange, Bytes)>,
    /// The shortest of the endpoints that name it.
    deadline: Option<Duration>,
    /// What the plan has of it, by id, and on which nodes.
    replicas: Vec<(ReplicaId, usize)>,
    /// Nodes that could not load it.
    failed: BTreeSet<usize>,
    /// The most that a replica was measured to take.
    memory: Option<Bytes>,
    /// What a row takes where a single one takes longest.
    row: Option<Row>,
    /// Where it stands, or what of it is ready, is not as the table has it.
    stands_anew: bool,
    /// What was measured of it is not as it was.
    measured_anew: bool,
}

/// What matters here of an endpoint.
#[derive(Clone, Debug)]
struct Named {
    deadline: Duration,
    /// As it names them, and by index.
    models: Vec<(ModelRef, usize)>,
}

impl Placement {
    /// What should stand where by now.
    pub fn look(&mut self, now: Instant, state: &State, liveness: &Liveness, tuner: &mut Tuner) -> Look {
        self.read(state);
        self.hear(now, liveness);
        self.avoid(liveness.failed(now));
        let look = if self.table.rooms.iter().all(|room| room.state == NodeState::Down) {
            self.nobody_is_up()
        } else {
            self.weigh(now, tuner);
            let (mut moves, unplaceable) = solve_table(&mut self.table, state.next_replica);
            moves.gone.extend(&self.strays);
            Look { moves, unplaceable }
        };
        if cfg!(debug_assertions) {
            self.assert_invariants(state);
        }
        look
    }

    /// The models of which the plan that was looked at last has a replica on a node.
    pub fn models_on(&self, node: &NodeName) -> impl Iterator<Item = &ModelRef> {
        let replicas = self.node_at.get(node).map_or(&[][..], |at| &self.nodes[*at].replicas);
        replicas.iter().map(|replica| &self.table.models[replica.model].name)
    }

    /// With nobody to take over there is nothing to gain from taking away.
    fn nobody_is_up(&self) -> Look {
        let wanted = self.model_at.iter().filter(|(_, at)| self.models[**at].is_wanted());
        let why = "no node is up; start one with `weir node`";
        Look { moves: Moves::default(), unplaceable: wanted.map(|(name, _)| (name.clone(), why.into())).collect() }
    }

    /// What the log says.
    fn read(&mut self, state: &State) {
        let (index, epoch, declared) = (state.applied, state.plan.epoch, state.declared);
        if self.read.is_some_and(|(known, of, _)| (known, of) == (index, epoch)) {
            return;
        }
        let mut known = (self.models.len(), self.nodes.len());
        // Under load each look finds another plan, and next to never another model, endpoint or node.
        if self.read.is_none_or(|(_, _, known)| !declared.is_as(known)) {
            // Indices are never given anew; where names come and go, all are at times.
            let vacant = self.models.iter().filter(|model| model.is_vacant()).count();
            if vacant > VACANT_MOST && 2 * vacant > self.models.len() {
                *self = Placement::default();
                known = (0, 0);
            }
            self.read_nodes(&state.nodes, &state.plan);
            self.read_models(&state.models);
            self.read_endpoints(&state.endpoints);
            self.twins = twins(&state.labels).map(|(one, other)| (self.model(&one), self.model(&other))).collect();
        }
        if self.read.is_none_or(|(_, known, _)| known != epoch) {
            self.read_plan(&state.plan);
        }
        if known != (self.models.len(), self.nodes.len()) {
            self.rank();
        }
        self.read = Some((index, epoch, declared));
    }

    fn read_nodes(&mut self, nodes: &BTreeMap<NodeName, Node>, plan: &Plan) {
        let known = self.node_at.iter().map(|(name, at)| (name, self.nodes[*at].node.as_ref()));
        let both = paired(known, nodes);
        let differ = both.filter(|(_, known, node)| known.flatten() != *node);
        let news: Vec<(NodeName, Option<Node>)> = differ.map(|(name, _, node)| (name.clone(), node.cloned())).collect();
        for (name, node) in news {
            let at = self.node(&name);
            if let Some(node) = &node
                && !self.table.rooms[at].is_as(node)
            {
                for model in self.table.kept_on(at) {
                    self.table.lift(model);
                    self.models[model].stands_anew = true;
                }
                self.table.rooms[at].describe(node);
                for replica in &mut self.nodes[at].replicas {
                    self.models[replica.model].stands_anew = true;
                    replica.device = device(node, plan, replica.id);
                }
            }
            self.nodes[at].node = node;
        }
    }

    fn read_models(&mut self, models: &BTreeMap<ModelRef, Model>) {
        let known = self.model_at.iter().map(|(name, at)| (name, self.models[*at].declared));
        let declared = models.iter().filter(|(_, model)| model.quarantined.is_none());
        let both = paired(known, declared.map(|(name, model)| (name, (model.replicas, model.size))));
        let differ = both.filter(|(_, known, declared)| known.flatten() != *declared);
        let news: Vec<_> = differ.map(|(name, _, declared)| (name.clone(), declared)).collect();
        for (name, declared) in news {
            let at = self.model(&name);
            self.models[at].declared = declared;
        }
    }

    fn read_endpoints(&mut self, endpoints: &BTreeMap<EndpointName, Endpoint>) {
        let is_as = |named: &Named, endpoint: &Endpoint| {
            named.deadline == endpoint.deadline && named.models.iter().map(|(name, _)| name).eq(endpoint.models())
        };
        let both = paired(&self.endpoints, endpoints);
        let differ = both.filter(|(_, known, endpoint)| match (known, endpoint) {
            (Some(known), Some(endpoint)) => !is_as(known, endpoint),
            _ => true,
        });
        let news: Vec<EndpointName> = differ.map(|(name, ..)| name.clone()).collect();
        if news.is_empty() {
            return;
        }
        for name in news {
            let Some(endpoint) = endpoints.get(&name) else {
                self.endpoints.remove(&name);
                continue;
            };
            let models = endpoint.models().map(|model| (model.clone(), self.model(model))).collect();
            self.endpoints.insert(name, Named { deadline: endpoint.deadline, models });
        }
        let mut deadlines: Vec<Option<Duration>> = vec![None; self.models.len()];
        for named in self.endpoints.values() {
            for (_, at) in &named.models {
                deadlines[*at] = Some(deadlines[*at].map_or(named.deadline, |known| known.min(named.deadline)));
            }
        }
        for (model, deadline) in self.models.iter_mut().zip(deadlines) {
            if model.deadline != deadline {
                model.deadline = deadline;
                // What a row takes depends on it.
                model.replicas.iter().for_each(|(_, node)| self.nodes[*node].heard = 0);
            }
        }
    }

    fn read_plan(&mut self, plan: &Plan) {
        let both = paired(&self.replicas, &plan.assignments);
        let differ = both.filter(|(_, known, at)| known.is_none() || at.is_none());
        let news: Vec<ReplicaId> = differ.map(|(id, ..)| *id).collect();
        for id in news {
            if let Some((model, node)) = self.replicas.remove(&id) {
                self.strays.remove(&id);
                self.nodes[node].replicas.retain(|replica| replica.id != id);
                let model = &mut self.models[model];
                model.replicas.retain(|(replica, _)| *replica != id);
                (model.stands_anew, model.measured_anew) = (true, true);
            }
            if let Some(assignment) = plan.assignments.get(&id) {
                let (model, node) = (self.model(&assignment.model), self.node(&assignment.node));
                self.replicas.insert(id, (model, node));
                let of_node = &mut self.nodes[node];
                let device = of_node.node.as_ref().and_then(|node| device(node, plan, id));
                let place = of_node.replicas.partition_point(|replica| replica.id < id);
                of_node.replicas.insert(place, Replica { id, model, device, ready: false, measured: None });
                of_node.heard = 0;
                let model = &mut self.models[model];
                let place = model.replicas.partition_point(|(replica, _)| *replica < id);
                model.replicas.insert(place, (id, node));
                model.stands_anew = true;
            }
        }
    }

    /// What nodes say, and which of them can be counted on.
    fn hear(&mut self, now: Instant, liveness: &Liveness) {
        for (of_node, room) in self.nodes.iter_mut().zip(&mut self.table.rooms) {
            let (state, seen) = liveness.heard(now, &room.name, of_node.node.as_ref());
            if state != room.state {
                room.state = state;
                of_node.replicas.iter().for_each(|replica| self.models[replica.model].stands_anew = true);
            }
            if let Some(seen) = seen
                && (seen.version != of_node.heard || now >= of_node.settles)
            {
                of_node.hear(now, seen, &mut self.models);
            }
        }
    }

    /// Where models could not be loaded.
    fn avoid(&mut self, failed: BTreeSet<(ModelRef, NodeName)>) {
        if failed == self.failed {
            return;
        }
        let before = std::mem::take(&mut self.failed);
        for place in before.symmetric_difference(&failed) {
            let (model, node) = (self.model(&place.0), self.node(&place.1));
            let model = &mut self.models[model];
            model.stands_anew = true;
            if failed.contains(place) {
                model.failed.insert(node)
            } else {
                model.failed.remove(&node)
            };
        }
        self.failed = failed;
        self.rank();
    }

    /// What is wished for each model.
    fn weigh(&mut self, now: Instant, tuner: &mut Tuner) {
        for at in 0..self.models.len() {
            if std::mem::take(&mut self.models[at].measured_anew) {
                self.measure(at);
            }
        }
        let (mut known, mut asked) = (self.model_at.iter().peekable(), Vec::new());
        let wants = tuner.tick(now, |model| {
            while known.next_if(|(name, _)| *name != model && *name < model).is_some() {}
            let at = known.next_if(|(name, _)| *name == model).map(|(_, at)| *at);
            asked.push(at);
            self.models[at?].row
        });
        let mut want_of: Vec<Option<Want>> = vec![None; self.models.len()];
        for (at, want) in asked.into_iter().zip(wants) {
            if let Some(at) = at {
                want_of[at] = want;
            }
        }
        let settled = tuner.is_settled(now);
        // At first nobody has looked long enough to say that something is not needed.
        let standing = |model: &OfModel| if settled { 0 } else { model.replicas.len() as u32 };
        let needed =
            |(model, want): (&OfModel, &Option<Want>)| want.map_or(0, |want| want.replicas).max(standing(model));
        let alone: Vec<u32> = self.models.iter().zip(&want_of).map(needed).collect();
        let mut needed = alone.clone();
        for (one, other) in &self.twins {
            needed[*one] = needed[*one].max(alone[*other]);
            needed[*other] = needed[*other].max(alone[*one]);
        }
        for (at, (want, needed)) in want_of.into_iter().zip(needed).enumerate() {
            let model = &self.models[at];
            let asked = want.map_or(0.0, |want| want.now);
            let wish = model.declared.filter(|_| model.is_wanted()).map(|(range, size)| {
                let memory = model.memory.unwrap_or(size);
                Wish { needed, asked, ..Wish::declared(range, memory) }
            });
            let bounds = |wish: Wish| (wish.range, wish.memory);
            if model.stands_anew || wish.map(bounds) != self.table.models[at].wish.map(bounds) {
                self.stand(at, wish);
            } else {
                self.table.ask(at, needed, asked);
            }
        }
    }

    /// What was measured of a model, by all its replicas.
    fn measure(&mut self, at: usize) {
        let (mut memory, mut slowest): (Option<Bytes>, Option<Measured>) = (None, None);
        for (id, node) in &self.models[at].replicas {
            if let Some(measured) = self.nodes[*node].replica(*id).measured {
                memory = memory.max(Some(measured.memory));
                if slowest.is_none_or(|slowest| measured.alone > slowest.alone) {
                    slowest = Some(measured);
                }
            }
        }
        let model = &mut self.models[at];
        (model.memory, model.row) = (memory, slowest.and_then(|measured| measured.row));
    }

    /// Tells the table where a model stands.
    fn stand(&mut self, at: usize, wish: Option<Wish>) {
        let model = &mut self.models[at];
        model.stands_anew = false;
        let mut standing = Vec::new();
        for (id, node) in &model.replicas {
            let replica = self.nodes[*node].replica(*id);
            let is_there = wish.is_some() && self.table.rooms[*node].state != NodeState::Down;
            match replica.device.filter(|_| is_there) {
                Some(device) => {
                    self.strays.remove(id);
                    standing.push(Placed { id: *id, node: *node, device, ready: replica.ready });
                }
                None => drop(self.strays.insert(*id)),
            }
        }
        self.table.set(at, wish, standing, model.failed.clone());
    }

    /// The index of a model.
    fn model(&mut self, name: &ModelRef) -> usize {
        if let Some(at) = self.model_at.get(name) {
            return *at;
        }
        let at = self.table.add_model(name.clone());
        self.models.push(OfModel::default());
        self.model_at.insert(name.clone(), at);
        at
    }

    /// The index of a node.
    fn node(&mut self, name: &NodeName) -> usize {
        if let Some(at) = self.node_at.get(name) {
            return *at;
        }
        let at = self.table.add_room(name.clone());
        self.nodes.push(OfNode { node: None, replicas: Vec::new(), heard: 0, settles: Instant::FAR });
        self.node_at.insert(name.clone(), at);
        at
    }

    fn rank(&mut self) {
        self.model_at.values().zip(0..).for_each(|(at, rank)| self.table.models[*at].rank = rank);
        self.node_at.values().zip(0..).for_each(|(at, rank)| self.table.rooms[*at].rank = rank);
    }

    fn assert_invariants(&self, state: &State) {
        // Where nobody is up the table is told later.
        if self.models.iter().all(|model| !model.stands_anew) {
            self.table.assert_invariants();
        }
        assert!(self.replicas.keys().eq(state.plan.assignments.keys()), "the plan is another");
        for (id, (model, node)) in &self.replicas {
            let at = &state.plan.assignments[id];
            assert_eq!((&self.table.models[*model].name, &self.table.rooms[*node].name), (&at.model, &at.node));
            assert_eq!(self.nodes[*node].replica(*id).model, *model);
        }
        let deadline = |named: &Named| (named.models.clone(), named.deadline);
        let named = self.endpoints.values().map(deadline);
        let mut named: Vec<(usize, Duration)> =
            named.flat_map(|(models, deadline)| models.into_iter().map(move |(_, at)| (at, deadline))).collect();
        named.sort_unstable();
        named.dedup_by_key(|(at, _)| *at);
        let known = self.models.iter().enumerate().filter_map(|(at, model)| Some((at, model.deadline?)));
        assert!(known.eq(named), "deadlines are not those of the endpoints");
        let ranks = |names: &mut dyn Iterator<Item = usize>| names.is_sorted();
        assert!(ranks(&mut self.model_at.values().map(|at| self.table.models[*at].rank)), "models are in no order");
        assert!(ranks(&mut self.node_at.values().map(|at| self.table.rooms[*at].rank)), "nodes are in no order");
    }
}

/// So many indices of models that are gone are no waste yet.
const VACANT_MOST: usize = 8;

impl OfModel {
    fn is_wanted(&self) -> bool {
        self.declared.is_some() && self.deadline.is_some()
    }

    fn is_vacant(&self) -> bool {
        self.declared.is_none() && self.deadline.is_none() && self.replicas.is_empty()
    }
}

impl OfNode {
    fn replica(&self, id: ReplicaId) -> &Replica {
        let at = self.replicas.binary_search_by_key(&id, |replica| replica.id).expect("the plan has it there");
        &self.replicas[at]
    }

    /// What its last report says of its replicas.
    fn hear(&mut self, now: Instant, seen: &Seen, models: &mut [OfModel]) {
        (self.heard, self.settles) = (seen.version, Instant::FAR);
        for replica in &mut self.replicas {
            let model = &mut models[replica.model];
            let measured = seen.profile(replica.id).map(|profile| Measured {
                memory: profile.memory,
                alone: profile.points.first().map(|(_, time)| *time),
                row: model.deadline.map(|deadline| Row::of(&profile.points, deadline)),
            });
            if measured != replica.measured {
                replica.measured = measured;
                model.measured_anew = true;
            }
            let settles = seen.settles_at(replica.id);
            let ready = settles.is_some_and(|at| now >= at);
            if let Some(at) = settles.filter(|at| now < *at) {
                self.settles = self.settles.min(at);
            }
            if ready != replica.ready {
                replica.ready = ready;
                model.stands_anew = true;
            }
        }
    }
}

/// The place in a node's list of the device that a replica is assigned to.
fn device(node: &Node, plan: &Plan, id: ReplicaId) -> Option<usize> {
    let assigned = &plan.assignments.get(&id)?.device;
    node.devices.iter().position(|device| device.name == *assigned)
}

/// What two sequences in the order of their keys have of each key.
fn paired<K: Ord, A, B>(
    left: impl IntoIterator<Item = (K, A)>,
    right: impl IntoIterator<Item = (K, B)>,
) -> impl Iterator<Item = (K, Option<A>, Option<B>)> {
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    std::iter::from_fn(move || {
        let order = match (left.peek(), right.peek()) {
            // Most often they are, and names that are shared need not be read to see it.
            (Some((left, _)), Some((right, _))) if left == right => Ordering::Equal,
            (Some((left, _)), Some((right, _))) => left.cmp(right),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let from_left = if order.is_le() { left.next() } else { None };
        let from_right = if order.is_ge() { right.next() } else { None };
        match (from_left, from_right) {
            (Some((key, a)), Some((_, b))) => Some((key, Some(a), Some(b))),
            (Some((key, a)), None) => Some((key, Some(a), None)),
            (None, right) => right.map(|(key, b)| (key, None, Some(b))),
        }
    })
}
