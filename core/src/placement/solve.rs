//! The placement heuristic; README.md states problem and wishes.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ModelRef, NodeName, ReplicaId};
use crate::replicated::{Assignment, Node, Plan, ReplicaRange};
use crate::units::Bytes;

/// Everything that decides a placement.
#[derive(Clone, Debug)]
pub struct Problem<'a> {
    /// The models that should stand somewhere: bounds and estimated memory of one replica.
    pub models: BTreeMap<&'a ModelRef, (ReplicaRange, Bytes)>,
    /// The nodes that can be counted on, draining ones among them.
    pub nodes: Vec<&'a Node>,
    /// What stands or is being loaded.
    pub plan: &'a Plan,
    /// Replicas that serve now, and that every node knows to.
    pub ready: BTreeSet<ReplicaId>,
    /// Where a replica of a model could not be loaded, not long ago.
    pub failed: BTreeSet<(ModelRef, NodeName)>,
    /// Smallest id that no plan has used.
    pub next_replica: ReplicaId,
}

/// A placement, and what it leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Every replica that should stand.
    pub assignments: BTreeMap<ReplicaId, Assignment>,
    /// Models without their minimum, and why.
    pub unplaceable: Vec<(ModelRef, String)>,
}

/// Free memory and load of the nodes while a placement is built.
struct Room<'a> {
    nodes: Vec<&'a Node>,
    free: BTreeMap<&'a NodeName, u64>,
    replicas: BTreeMap<&'a NodeName, u32>,
}

/// Finds a placement. The same problem has the same solution everywhere, and the solution of its own outcome changes nothing.
pub fn solve(problem: &Problem<'_>) -> Proposal {
    let mut room = Room {
        nodes: problem.nodes.clone(),
        free: problem.nodes.iter().map(|node| (&node.name, node.memory.0)).collect(),
        replicas: problem.nodes.iter().map(|node| (&node.name, 0)).collect(),
    };
    let mut assignments: BTreeMap<ReplicaId, Assignment> = BTreeMap::new();
    let mut unplaceable = Vec::new();
    let mut next = problem.next_replica;

    for (model, (range, memory)) in &problem.models {
        for (id, assignment) in kept(problem, model, *range) {
            room.take(&assignment.node, *memory);
            assignments.insert(id, assignment.clone());
        }
    }
    // Minimum first, over all models; then what is left is given out.
    for fill in [false, true] {
        for (model, (range, memory)) in &problem.models {
            loop {
                let standing: Vec<&Assignment> =
                    assignments.values().filter(|assignment| assignment.model == **model).collect();
                // A replica on a draining node does not count: it goes as soon as others are ready.
                // Nor does one that could not be loaded.
                let counts =
                    |assignment: &Assignment| !room.draining(&assignment.node) && !problem.is_failed(assignment);
                let staying = standing.iter().filter(|assignment| counts(assignment)).count() as u32;
                if staying >= if fill { range.max } else { range.min } {
                    break;
                }
                let nodes_with_it =
                    |name: &NodeName| standing.iter().filter(|assignment| assignment.node == *name).count() as u32;
                let failing = failing(problem, model);
                let best = room.best(*memory, |node| {
                    let here = nodes_with_it(&node.name);
                    let fails = problem.failed.contains(&((*model).clone(), node.name.clone()));
                    // A second one beside the first gains less than to try again where one stands that could not be loaded.
                    let alone = here == 0 || (!fill && failing.is_empty());
                    (!fails && alone).then_some(here)
                });
                let nothing = standing.is_empty();
                let (node, last) = match best {
                    Some(node) => (node, false),
                    None if fill => break,
                    None if !failing.is_empty() => {
                        let nodes: Vec<&str> = failing.iter().map(|(_, at)| at.node.as_str()).collect();
                        let why = format!("it could not be loaded on {} and is tried again there", nodes.join(", "));
                        unplaceable.push(((*model).clone(), why));
                        for (id, assignment) in failing.into_iter().take((range.min - staying) as usize) {
                            room.take(&assignment.node, *memory);
                            assignments.insert(id, assignment.clone());
                        }
                        break;
                    }
                    None => {
                        unplaceable.push(((*model).clone(), room.why_none(*memory)));
                        // Where it could not be loaded before is better than nowhere.
                        let Some(node) = nothing.then(|| room.best(*memory, |_| Some(0))).flatten() else { break };
                        (node, true)
                    }
                };
                let device = least_loaded_device(node, &assignments);
                room.take(&node.name, *memory);
                assignments.insert(next, Assignment { model: (*model).clone(), node: node.name.clone(), device });
                next = ReplicaId(next.0 + 1);
                if last {
                    break;
                }
            }
        }
    }
    // What could not be loaded is tried again where nothing better takes its place.
    for (model, (range, memory)) in &problem.models {
        for (id, assignment) in failing(problem, model) {
            let standing = assignments.values().filter(|standing| standing.model == **model);
            let count = standing.filter(|standing| !room.draining(&standing.node)).count() as u32;
            if !assignments.contains_key(&id) && count < range.max && room.fits(&assignment.node, *memory) {
                room.take(&assignment.node, *memory);
                assignments.insert(id, assignment.clone());
            }
        }
    }
    Proposal { assignments, unplaceable }
}

impl Problem<'_> {
    fn node_of(&self, assignment: &Assignment) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == assignment.node).copied()
    }

    fn is_failed(&self, assignment: &Assignment) -> bool {
        self.failed.contains(&(assignment.model.clone(), assignment.node.clone()))
    }

    /// The replicas of a model whose node and device are there.
    fn standing(&self, model: &ModelRef) -> impl Iterator<Item = (ReplicaId, &Assignment)> {
        let there = |assignment: &Assignment| {
            let node = self.node_of(assignment);
            node.is_some_and(|node| node.devices.iter().any(|device| device.name == assignment.device))
        };
        let all = self.plan.assignments.iter();
        all.filter(move |(_, assignment)| assignment.model == *model && there(assignment)).map(|(id, at)| (*id, at))
    }
}

/// The standing replicas of a model that could not be loaded, apart from those that are to go anyway.
fn failing<'a>(problem: &'a Problem<'_>, model: &ModelRef) -> Vec<(ReplicaId, &'a Assignment)> {
    let stays = |assignment: &Assignment| problem.node_of(assignment).is_some_and(|node| !node.draining);
    problem.standing(model).filter(|(_, assignment)| stays(assignment) && problem.is_failed(assignment)).collect()
}

/// The standing replicas of a model that stay for now.
fn kept<'a>(problem: &'a Problem<'_>, model: &ModelRef, range: ReplicaRange) -> Vec<(ReplicaId, &'a Assignment)> {
    let (leaving, staying): (Vec<_>, Vec<_>) = problem
        .standing(model)
        .filter(|(_, assignment)| !problem.is_failed(assignment))
        .partition(|(_, assignment)| problem.node_of(assignment).is_some_and(|node| node.draining));
    let ready = staying.iter().filter(|(id, _)| problem.ready.contains(id)).count() as u32;
    let mut kept: Vec<_> = staying;
    // Beyond the maximum the youngest go, those that do not serve yet before those that do.
    kept.sort_by_key(|(id, _)| (!problem.ready.contains(id), *id));
    kept.truncate(range.max as usize);
    if ready < range.min {
        kept.extend(leaving);
    }
    kept
}

fn least_loaded_device(node: &Node, assignments: &BTreeMap<ReplicaId, Assignment>) -> crate::ids::DeviceName {
    let load = |device: &crate::replicated::Device| {
        let here = assignments
            .values()
            .filter(|assignment| assignment.node == node.name && assignment.device == device.name)
            .count();
        // Replicas per slot, compared without dividing.
        (here as u64 * 1_000 / u64::from(device.slots), device.name.clone())
    };
    node.devices.iter().min_by_key(|device| load(device)).expect("a node that joined has a device").name.clone()
}

impl<'a> Room<'a> {
    fn take(&mut self, node: &NodeName, memory: Bytes) {
        if let Some((name, free)) = self.free.iter_mut().find(|(name, _)| **name == node) {
            *free = free.saturating_sub(memory.0);
            *self.replicas.get_mut(name).expect("same nodes") += 1;
        }
    }

    fn fits(&self, node: &NodeName, memory: Bytes) -> bool {
        self.free.get(node).is_some_and(|free| *free >= memory.0)
    }

    fn draining(&self, name: &NodeName) -> bool {
        self.nodes.iter().any(|node| node.name == *name && node.draining)
    }

    /// The node with room where `here` (replicas of this model on it) is least; `None` from `here` excludes a node.
    fn best(&self, memory: Bytes, here: impl Fn(&Node) -> Option<u32>) -> Option<&'a Node> {
        let slots = |node: &Node| node.devices.iter().map(|device| u64::from(device.slots)).sum::<u64>().max(1);
        self.nodes
            .iter()
            .filter(|node| !node.draining && self.free[&node.name] >= memory.0)
            .filter_map(|node| {
                Some((here(node)?, u64::from(self.replicas[&node.name]) * 1_000 / slots(node), &node.name, *node))
            })
            .min_by(|a, b| (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)))
            .map(|(.., node)| node)
    }

    fn why_none(&self, memory: Bytes) -> String {
        let open: Vec<&&Node> = self.nodes.iter().filter(|node| !node.draining).collect();
        match open.iter().map(|node| self.free[&node.name]).max() {
            None => "no node is up; start one with `weir node`".into(),
            Some(free) => {
                format!("needs {} bytes, and the emptiest node has {free} free; add a node or memory", memory.0)
            }
        }
    }
}
