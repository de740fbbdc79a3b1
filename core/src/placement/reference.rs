//! The placement said as plainly as it can be: every look walks over all models and replicas, and keeps nothing. What is kept between
//! looks ([`super::Placement`]) has to lead to the same.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::solve::SPREAD;
use super::{Liveness, NodeState, Problem, Proposal, Wish};
use crate::ids::{ModelRef, NodeName, ReplicaId};
use crate::labels::twins;
use crate::replicated::{Assignment, Device, Node, State};
use crate::tuner::{Row, Tuner};
use crate::units::{Bytes, Instant, ServiceTime};

/// What should stand where by now.
pub(super) fn propose(now: Instant, state: &State, liveness: &Liveness, tuner: &mut Tuner) -> Proposal {
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
    let twins: Vec<(ModelRef, ModelRef)> = twins(&state.labels).collect();
    let wish = |reference: &'s ModelRef| {
        let model = &state.models[reference];
        let memory = measured.get(reference).map_or(model.size, |measured| measured.memory);
        let want = tuner.want(reference);
        let needed = |reference: &ModelRef| {
            let wanted = tuner.want(reference).map_or(0, |want| want.replicas);
            wanted.max(standing.get(reference).copied().unwrap_or(0))
        };
        let of_twins = twins.iter().filter_map(|(one, other)| match reference {
            reference if reference == one => Some(needed(other)),
            reference if reference == other => Some(needed(one)),
            _ => None,
        });
        let needed = of_twins.fold(needed(reference), u32::max);
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

/// What nodes measured of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured<'a> {
    /// Of one replica, the most of all.
    pub memory: Bytes,
    /// Latency by batch size where a single row takes longest.
    pub points: &'a [(u32, ServiceTime)],
}

impl Liveness {
    /// The nodes that can be counted on, those as draining that were told to stop.
    pub(super) fn nodes(&self, now: Instant, state: &State) -> Vec<Node> {
        let believed = |node: &Node| match self.state(now, state, &node.name) {
            NodeState::Down => None,
            state => Some(Node { draining: state == NodeState::Draining, ..node.clone() }),
        };
        state.nodes.values().filter_map(believed).collect()
    }

    /// Those of [`Liveness::ready`] that every node has heard of: ready for two report intervals. Only these can take the
    /// place of others.
    pub(super) fn settled(&self, now: Instant, state: &State) -> BTreeSet<ReplicaId> {
        let mut ready = self.ready(now, state);
        ready.retain(|id| {
            let node = state.plan.assignments.get(id).map(|assignment| &assignment.node);
            let since = node.and_then(|node| self.seen.get(node)).and_then(|seen| seen.ready_since.get(id));
            since.is_some_and(|since| now.since(*since) >= 2 * super::REPORT_EVERY)
        });
        ready
    }

    /// What nodes measured of the models that stand.
    pub(super) fn measured<'s>(&'s self, state: &'s State) -> BTreeMap<&'s ModelRef, Measured<'s>> {
        let mut measured: BTreeMap<&ModelRef, Measured<'_>> = BTreeMap::new();
        for (id, assignment) in &state.plan.assignments {
            let report = self.seen.get(&assignment.node).and_then(|seen| seen.report.replicas.get(id));
            let Some(super::ReplicaState::Ready(profile)) = report.map(|report| &report.state) else { continue };
            let points = &profile.points[..];
            let known = measured.entry(&assignment.model).or_insert(Measured { memory: profile.memory, points });
            known.memory = known.memory.max(profile.memory);
            if points.first().map(|(_, time)| time) > known.points.first().map(|(_, time)| time) {
                known.points = points;
            }
        }
        measured
    }
}

/// Finds a placement. The same problem has the same solution everywhere, and the solution of its own outcome changes nothing.
pub(super) fn solve(problem: &Problem<'_>) -> Proposal {
    let mut solver = Solver::new(problem);
    solver.keep();
    solver.relieve();
    // The minimum first, over all models; then what is asked for; then what memory is left is given out.
    let mut order: Vec<usize> = (0..solver.models.len()).collect();
    order.sort_by(|a, b| solver.models[*b].wish.asked.total_cmp(&solver.models[*a].wish.asked).then(a.cmp(b)));
    for tier in [Tier::Minimum, Tier::Wanted, Tier::Spare] {
        solver.give(tier, &order);
    }
    solver.try_again(&order);
    let mut assignments = BTreeMap::new();
    for model in &solver.models {
        assignments.extend(model.placed.iter().map(|placed| (placed.id, solver.assignment(model, placed))));
    }
    Proposal { assignments, unplaceable: solver.unplaceable }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tier {
    Minimum,
    Wanted,
    Spare,
}

/// A placement while it is built: names are indices, since a plan may have many thousands of places.
struct Solver<'a> {
    nodes: Vec<Room<'a>>,
    models: Vec<OfModel<'a>>,
    unplaceable: Vec<(ModelRef, String)>,
    next: u64,
    /// Replicas of the model at hand by node.
    here: Vec<u32>,
    /// What can give way, once somebody has looked: by node, who is asked least first.
    surplus: Option<Surplus>,
}

/// What is asked of a replica, its model's index, and its id; by node.
type Surplus = BTreeMap<usize, Vec<(f64, usize, ReplicaId)>>;

/// A node, and what is left of it.
struct Room<'a> {
    node: &'a Node,
    /// Below 0 where more is placed than fits.
    free: i128,
    replicas: u32,
    slots: u32,
    /// Replicas a slot, in thousandths: compared without dividing floating-point numbers.
    load: u32,
    /// Replicas by device.
    devices: Vec<u32>,
}

struct OfModel<'a> {
    name: &'a ModelRef,
    wish: Wish,
    /// Nodes that could not load it.
    failed: BTreeSet<usize>,
    /// What stands where a node and its device are.
    standing: Vec<Placed>,
    placed: Vec<Placed>,
}

/// One replica: by the indices of its node and device.
#[derive(Clone, Copy)]
struct Placed {
    id: ReplicaId,
    node: usize,
    device: usize,
    ready: bool,
}

impl<'a> Solver<'a> {
    fn new(problem: &'a Problem<'a>) -> Solver<'a> {
        let mut nodes: Vec<Room<'a>> = problem.nodes.iter().map(|node| Room::new(node)).collect();
        nodes.sort_by(|a, b| a.node.name.cmp(&b.node.name));
        let node_at: BTreeMap<&NodeName, usize> = nodes.iter().map(|room| &room.node.name).zip(0..).collect();
        let mut models: Vec<OfModel<'a>> =
            problem.models.iter().map(|(name, wish)| OfModel::new(name, *wish)).collect();
        let model_at: BTreeMap<&ModelRef, usize> = models.iter().map(|model| model.name).zip(0..).collect();
        for (model, node) in &problem.failed {
            if let (Some(model), Some(node)) = (model_at.get(model), node_at.get(node)) {
                models[*model].failed.insert(*node);
            }
        }
        for (id, at) in &problem.plan.assignments {
            let (Some(model), Some(node)) = (model_at.get(&at.model), node_at.get(&at.node)) else { continue };
            let mut devices = nodes[*node].node.devices.iter();
            let Some(device) = devices.position(|device| device.name == at.device) else { continue };
            let ready = problem.ready.contains(id);
            models[*model].standing.push(Placed { id: *id, node: *node, device, ready });
        }
        let here = vec![0; nodes.len()];
        Solver { nodes, models, unplaceable: Vec::new(), next: problem.next_replica.0, here, surplus: None }
    }

    fn assignment(&self, model: &OfModel<'_>, placed: &Placed) -> Assignment {
        let node = self.nodes[placed.node].node;
        Assignment {
            model: model.name.clone(),
            node: node.name.clone(),
            device: node.devices[placed.device].name.clone(),
        }
    }

    /// What stands stays for now, apart from what is to go.
    fn keep(&mut self) {
        for model in &mut self.models {
            let fails = |placed: &&Placed| !model.failed.contains(&placed.node);
            let (leaving, mut kept): (Vec<Placed>, Vec<Placed>) =
                model.standing.iter().filter(fails).partition(|placed| self.nodes[placed.node].node.draining);
            let ready = kept.iter().filter(|placed| placed.ready).count() as u32;
            // Beyond the maximum the youngest go, those that do not serve yet before those that do.
            kept.sort_by_key(|placed| (!placed.ready, placed.id));
            kept.truncate(model.wish.range.max as usize);
            if ready < model.wish.range.min {
                kept.extend(leaving);
            }
            kept.iter().for_each(|placed| self.nodes[placed.node].take(placed.device, model.wish.memory));
            model.placed = kept;
        }
    }

    fn give(&mut self, tier: Tier, order: &[usize]) {
        for model in order {
            self.here.fill(0);
            self.models[*model].placed.iter().for_each(|placed| self.here[placed.node] += 1);
            while self.lacks(tier, *model) && self.give_one(tier, *model) {}
        }
    }

    fn lacks(&self, tier: Tier, model: usize) -> bool {
        let model = &self.models[model];
        let target = match tier {
            Tier::Minimum => model.wish.range.min,
            Tier::Wanted => model.wish.wanted(),
            Tier::Spare => model.wish.range.max.min(model.wish.wanted().max(SPREAD)),
        };
        self.staying(model) < target
    }

    /// A replica on a draining node does not count: it goes as soon as others are ready. Nor does one that could not be loaded.
    fn staying(&self, model: &OfModel<'_>) -> u32 {
        let stays = |placed: &&Placed| !self.nodes[placed.node].node.draining && !model.failed.contains(&placed.node);
        model.placed.iter().filter(stays).count() as u32
    }

    /// Places one more replica; false where there is no more to be done for this model.
    fn give_one(&mut self, tier: Tier, at: usize) -> bool {
        let failing = self.failing(at);
        let memory = self.models[at].wish.memory;
        // A second one beside the first gains less than to try again where one stands that could not be loaded, and nothing where
        // there is no slot for it.
        let most_here = |room: &Room<'_>| match tier {
            Tier::Minimum if failing.is_empty() => u32::MAX,
            Tier::Wanted if failing.is_empty() => room.slots,
            _ => 1,
        };
        let model = &self.models[at];
        let allowed = |i: usize, room: &Room<'_>| !model.failed.contains(&i) && self.here[i] < most_here(room);
        let mut best = self.best(memory, allowed);
        // Who is wanted takes the place of who is not.
        if best.is_none()
            && tier != Tier::Spare
            && let Some(node) = self.make_room(at, memory, &failing)
        {
            best = Some(node);
        }
        if let Some(node) = best {
            self.place(at, node);
            return true;
        }
        if tier != Tier::Minimum {
            return false;
        }
        let model = &self.models[at];
        let lacking = model.wish.range.min.saturating_sub(self.staying(model));
        if !failing.is_empty() {
            let nodes: Vec<&str> = failing.iter().map(|placed| self.nodes[placed.node].node.name.as_str()).collect();
            let why = format!("it could not be loaded on {} and is tried again there", nodes.join(", "));
            self.unplaceable.push((model.name.clone(), why));
            for placed in failing.into_iter().take(lacking as usize) {
                self.nodes[placed.node].take(placed.device, memory);
                self.models[at].placed.push(placed);
            }
            return false;
        }
        if self.staying(model) == 0
            && let Some(node) = self.least_crowded(at, memory)
        {
            self.place(at, node);
            return true;
        }
        let nothing = model.placed.is_empty();
        self.unplaceable.push((model.name.clone(), self.why_none(memory)));
        // Where it could not be loaded before is better than nowhere.
        if nothing && let Some(node) = self.best(memory, |_, _| true) {
            self.place(at, node);
        }
        false
    }

    fn place(&mut self, at: usize, node: usize) {
        let device = self.nodes[node].least_loaded();
        self.nodes[node].take(device, self.models[at].wish.memory);
        self.here[node] += 1;
        self.models[at].placed.push(Placed { id: ReplicaId(self.next), node, device, ready: false });
        self.next += 1;
    }

    /// The node with room where replicas of the model at hand are fewest, then all replicas for its slots, then by name.
    fn best(&self, memory: Bytes, allowed: impl Fn(usize, &Room<'_>) -> bool) -> Option<usize> {
        let with_room =
            self.nodes.iter().enumerate().filter(|(_, room)| !room.node.draining && room.free >= i128::from(memory.0));
        let open = with_room.filter(|(i, room)| allowed(*i, room));
        open.min_by_key(|(i, room)| (self.here[*i], room.load, *i)).map(|(i, _)| i)
    }

    /// The node that can hold the model, and where most fits of what would be placed with it.
    fn least_crowded(&self, at: usize, memory: Bytes) -> Option<usize> {
        let crowding = |room: &Room<'_>| {
            let placed = i128::from(room.node.memory.0) - room.free + i128::from(memory.0);
            placed * 1_000 / i128::from(room.node.memory.0.max(1))
        };
        let holds = |room: &Room<'_>| !room.node.draining && memory.0 <= room.node.memory.0;
        let failed = &self.models[at].failed;
        let open = self.nodes.iter().enumerate().filter(|(i, room)| holds(room) && !failed.contains(i));
        open.min_by_key(|(i, room)| (crowding(room), *i)).map(|(i, _)| i)
    }

    /// Where more is placed than fits, what serves on a node with memory for it too goes, what is asked least first.
    fn relieve(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].node.draining || self.nodes[node].free >= 0 {
                continue;
            }
            let mut leaving: Vec<(f64, usize, ReplicaId)> = Vec::new();
            for (i, model) in self.models.iter().enumerate() {
                let wanted = model.wish.wanted() as usize;
                let Some(here) = model.placed.iter().rev().find(|placed| placed.node == node) else { continue };
                let serving = model.placed.iter().filter(|placed| placed.ready && placed.id != here.id).count();
                let fits = |other: &Placed| {
                    let room = &self.nodes[other.node];
                    other.ready && other.node != node && !room.node.draining && room.free >= 0
                };
                if self.staying(model) as usize > wanted && serving >= wanted && model.placed.iter().any(fits) {
                    leaving.push((model.wish.asked / model.placed.len() as f64, i, here.id));
                }
            }
            leaving.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            for (_, model, id) in leaving {
                if self.nodes[node].free >= 0 {
                    break;
                }
                let model = &mut self.models[model];
                let index = model.placed.iter().position(|placed| placed.id == id).expect("it is placed");
                let placed = model.placed.swap_remove(index);
                self.nodes[node].give_back(placed.device, model.wish.memory);
            }
        }
    }

    /// Takes away what nobody asks for on the node where that costs least, for a replica of this model.
    fn make_room(&mut self, at: usize, memory: Bytes, failing: &[Placed]) -> Option<usize> {
        let surplus = self.surplus.take().unwrap_or_else(|| self.surplus());
        let least_of = |node: usize| -> Option<(f64, Vec<(usize, ReplicaId)>)> {
            let mut free = self.nodes[node].free;
            let (mut cost, mut victims) = (0.0, Vec::new());
            for (asked, model, id) in surplus.get(&node)? {
                if free >= i128::from(memory.0) {
                    break;
                }
                free += i128::from(self.models[*model].wish.memory.0);
                cost += asked;
                victims.push((*model, *id));
            }
            (free >= i128::from(memory.0)).then_some((cost, victims))
        };
        let open = |i: &usize| {
            let most = if failing.is_empty() { self.nodes[*i].slots } else { 1 };
            !self.nodes[*i].node.draining && !self.models[at].failed.contains(i) && self.here[*i] < most
        };
        let found = surplus.keys().filter(|i| open(i)).filter_map(|i| Some((*i, least_of(*i)?)));
        let cheapest = found.min_by(|(a, (cost_a, _)), (b, (cost_b, _))| {
            self.here[*a].cmp(&self.here[*b]).then(cost_a.total_cmp(cost_b)).then(a.cmp(b))
        });
        let Some((node, (_, victims))) = cheapest else {
            self.surplus = Some(surplus);
            return None;
        };
        for (model, id) in victims {
            let victim = &mut self.models[model];
            let index = victim.placed.iter().position(|placed| placed.id == id).expect("a surplus replica is placed");
            let placed = victim.placed.swap_remove(index);
            self.nodes[node].give_back(placed.device, victim.wish.memory);
        }
        Some(node)
    }

    /// Replicas that stand beyond what is wanted of their models, by node; each with what is asked of it, least first. As many of a
    /// model as are beyond, and of those that serve only as many as leave the wanted number serving.
    fn surplus(&self) -> Surplus {
        let mut surplus = Surplus::new();
        for (i, model) in self.models.iter().enumerate() {
            let wanted = model.wish.wanted() as usize;
            let beyond = (self.staying(model) as usize).saturating_sub(wanted);
            if beyond == 0 {
                continue;
            }
            let serving = model.placed.iter().filter(|placed| placed.ready).count();
            let mut candidates: Vec<&Placed> = model.placed.iter().collect();
            // The youngest, and first what does not serve.
            candidates.sort_by_key(|placed| (placed.ready, Reverse(placed.id)));
            let mut ready_to_go = serving.saturating_sub(wanted);
            for placed in candidates.into_iter().take(beyond) {
                if placed.ready {
                    let Some(left) = ready_to_go.checked_sub(1) else { break };
                    ready_to_go = left;
                }
                let asked = model.wish.asked / model.placed.len() as f64;
                surplus.entry(placed.node).or_default().push((asked, i, placed.id));
            }
        }
        let least_first = |a: &(f64, usize, ReplicaId), b: &(f64, usize, ReplicaId)| {
            a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)))
        };
        surplus.values_mut().for_each(|of_node| of_node.sort_by(least_first));
        surplus
    }

    /// The standing replicas of a model that could not be loaded, apart from those that are to go anyway.
    fn failing(&self, at: usize) -> Vec<Placed> {
        let model = &self.models[at];
        let stays = |placed: &&Placed| !self.nodes[placed.node].node.draining && model.failed.contains(&placed.node);
        model.standing.iter().filter(stays).copied().collect()
    }

    /// What could not be loaded is tried again where nothing better takes its place.
    fn try_again(&mut self, order: &[usize]) {
        for at in order {
            for placed in self.failing(*at) {
                let model = &self.models[*at];
                let open = |placed: &&Placed| !self.nodes[placed.node].node.draining;
                let count = model.placed.iter().filter(open).count() as u32;
                let again = model.placed.iter().any(|other| other.id == placed.id);
                if !again
                    && count < model.wish.range.max
                    && self.nodes[placed.node].free >= i128::from(model.wish.memory.0)
                {
                    self.nodes[placed.node].take(placed.device, model.wish.memory);
                    self.models[*at].placed.push(placed);
                }
            }
        }
    }

    fn why_none(&self, memory: Bytes) -> String {
        let open = self.nodes.iter().filter(|room| !room.node.draining);
        match open.map(|room| room.free).max() {
            None => "no node is up; start one with `weir node`".into(),
            Some(free) => {
                let free = free.max(0);
                format!("needs {} bytes, and the emptiest node has {free} free; add a node or memory", memory.0)
            }
        }
    }
}

impl<'a> OfModel<'a> {
    fn new(name: &'a ModelRef, wish: Wish) -> OfModel<'a> {
        OfModel { name, wish, failed: BTreeSet::new(), standing: Vec::new(), placed: Vec::new() }
    }
}

impl<'a> Room<'a> {
    fn new(node: &'a Node) -> Room<'a> {
        let slots = node.devices.iter().map(|device| device.slots).sum::<u32>().max(1);
        Room {
            node,
            free: i128::from(node.memory.0),
            replicas: 0,
            slots,
            load: 0,
            devices: vec![0; node.devices.len()],
        }
    }

    fn take(&mut self, device: usize, memory: Bytes) {
        self.free -= i128::from(memory.0);
        self.devices[device] += 1;
        self.count(self.replicas + 1);
    }

    fn give_back(&mut self, device: usize, memory: Bytes) {
        self.free += i128::from(memory.0);
        self.devices[device] -= 1;
        self.count(self.replicas - 1);
    }

    fn count(&mut self, replicas: u32) {
        self.replicas = replicas;
        self.load = (u64::from(replicas) * 1_000 / u64::from(self.slots)) as u32;
    }

    fn least_loaded(&self) -> usize {
        let load = |(i, device): &(usize, &Device)| {
            (u64::from(self.devices[*i]) * 1_000 / u64::from(device.slots), device.name.clone())
        };
        self.node.devices.iter().enumerate().min_by_key(load).expect("a node that joined has a device").0
    }
}
