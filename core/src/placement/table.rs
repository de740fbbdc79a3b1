//! Nodes, models and replicas by index: what stands, what is kept of it, and what is left of each node.
//!
//! Contract: rooms and models are only added; who is forgotten has nothing standing and no wish. [`Table::set`] is called for a model
//! whenever what it is told has changed, and after the room of one of its replicas has; a room is described anew only while
//! nothing is kept on it ([`Table::lift`]). Ranks are the order of names, and have to be right when something is solved.

use std::collections::BTreeSet;

use super::{NodeState, Wish};
use crate::ids::{ModelRef, NodeName, ReplicaId};
use crate::replicated::{Assignment, Device, Node};
use crate::units::Bytes;

/// Everything that is placed, by index: a plan may have many thousands of places, and names are slow keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub rooms: Vec<Room>,
    pub models: Vec<OfModel>,
    /// Models of which something stands that is not kept.
    pub lessened: BTreeSet<usize>,
}

/// A node, and what is left of it.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub name: NodeName,
    pub rank: usize,
    pub state: NodeState,
    pub devices: Vec<Device>,
    pub slots: u32,
    pub memory: u64,
    /// By what is kept.
    kept: Taken,
    /// While it is solved: by what is placed. Below 0 where more is than fits: there models are in memory on demand.
    pub free: i128,
    pub replicas: u32,
    /// Replicas a slot, in thousandths: compared without dividing floating-point numbers.
    pub load: u32,
    by_device: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Taken {
    memory: u128,
    by_device: Vec<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct OfModel {
    pub name: ModelRef,
    pub rank: usize,
    /// `None` where nobody wants it anywhere.
    pub wish: Option<Wish>,
    /// Nodes that could not load it.
    pub failed: BTreeSet<usize>,
    /// What stands where a node that can be counted on and its device are, by id.
    pub standing: Vec<Placed>,
    /// What is kept of it; while it is solved, what is placed.
    pub placed: Vec<Placed>,
    /// Of those, the ones that stay.
    pub staying: u32,
}

/// One replica: by the indices of its node and device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub id: ReplicaId,
    pub node: usize,
    pub device: usize,
    pub ready: bool,
}

impl Table {
    /// A node of which nothing is known yet.
    pub fn add_room(&mut self, name: NodeName) -> usize {
        let (rank, devices, by_device) = (self.rooms.len(), Vec::new(), Vec::new());
        let kept = Taken::default();
        let state = NodeState::Down;
        let room =
            Room { name, rank, state, devices, slots: 1, memory: 0, kept, free: 0, replicas: 0, load: 0, by_device };
        self.rooms.push(room);
        rank
    }

    /// A model that nobody wants yet.
    pub fn add_model(&mut self, name: ModelRef) -> usize {
        let rank = self.models.len();
        let (failed, standing, placed) = (BTreeSet::new(), Vec::new(), Vec::new());
        self.models.push(OfModel { name, rank, wish: None, failed, standing, placed, staying: 0 });
        rank
    }

    /// What stands of a model, and what is wished; what is kept follows.
    pub fn set(&mut self, at: usize, wish: Option<Wish>, standing: Vec<Placed>, failed: BTreeSet<usize>) {
        self.lift(at);
        let model = &mut self.models[at];
        (model.wish, model.standing, model.failed) = (wish, standing, failed);
        self.keep(at);
    }

    /// What is asked of a model, which decides nothing about what is kept of it.
    pub fn ask(&mut self, at: usize, needed: u32, asked: f64) {
        if let Some(wish) = &mut self.models[at].wish {
            (wish.needed, wish.asked) = (needed, asked);
        }
    }

    /// Gives back what is kept of a model, until it is set.
    pub fn lift(&mut self, at: usize) {
        let model = &mut self.models[at];
        let memory = model.wish.map_or(0, |wish| u128::from(wish.memory.0));
        for placed in std::mem::take(&mut model.placed) {
            let kept = &mut self.rooms[placed.node].kept;
            kept.memory -= memory;
            kept.by_device[placed.device] -= 1;
        }
        model.staying = 0;
        self.lessened.remove(&at);
    }

    /// The models of which something is kept on a node.
    pub fn kept_on(&self, node: usize) -> Vec<usize> {
        let is_here = |at: &usize| self.models[*at].placed.iter().any(|placed| placed.node == node);
        (0..self.models.len()).filter(is_here).collect()
    }

    /// What stands stays for now, apart from what is to go.
    fn keep(&mut self, at: usize) {
        let model = &mut self.models[at];
        let Some(wish) = model.wish else {
            model.standing.clear();
            return;
        };
        let fails = |placed: &&Placed| !model.failed.contains(&placed.node);
        let leaves = |placed: &Placed| self.rooms[placed.node].state == NodeState::Draining;
        let (leaving, mut kept): (Vec<Placed>, Vec<Placed>) =
            model.standing.iter().filter(fails).partition(|p| leaves(p));
        let ready = kept.iter().filter(|placed| placed.ready).count() as u32;
        // Beyond the maximum the youngest go, those that do not serve yet before those that do.
        kept.sort_by_key(|placed| (!placed.ready, placed.id));
        kept.truncate(wish.range.max as usize);
        model.staying = kept.len() as u32;
        if ready < wish.range.min {
            kept.extend(leaving);
        }
        for placed in &kept {
            let of_room = &mut self.rooms[placed.node].kept;
            of_room.memory += u128::from(wish.memory.0);
            of_room.by_device[placed.device] += 1;
        }
        if kept.len() < model.standing.len() {
            self.lessened.insert(at);
        }
        model.placed = kept;
    }

    /// A replica on a draining node does not count: it goes as soon as others are ready. Nor does one that could not be loaded.
    pub fn staying(&self, at: usize) -> u32 {
        let model = &self.models[at];
        let stays = |placed: &&Placed| self.is_open(placed.node) && !model.failed.contains(&placed.node);
        model.placed.iter().filter(stays).count() as u32
    }

    /// Whether a node is there and gets replicas.
    pub fn is_open(&self, node: usize) -> bool {
        self.rooms[node].state == NodeState::Up
    }

    pub fn assignment(&self, at: usize, placed: &Placed) -> Assignment {
        let room = &self.rooms[placed.node];
        Assignment {
            model: self.models[at].name.clone(),
            node: room.name.clone(),
            device: room.devices[placed.device].name.clone(),
        }
    }

    /// That the sums are those of what is kept.
    pub fn assert_invariants(&self) {
        let mut kept: Vec<Taken> =
            self.rooms.iter().map(|room| Taken { memory: 0, by_device: vec![0; room.devices.len()] }).collect();
        for (at, model) in self.models.iter().enumerate() {
            assert!(model.wish.is_some() || model.standing.is_empty(), "{} stands and nobody wants it", model.name);
            assert_eq!(model.staying, self.staying(at), "of {}", model.name);
            assert_eq!(self.lessened.contains(&at), model.placed.len() < model.standing.len(), "of {}", model.name);
            assert!(model.standing.is_sorted_by_key(|placed| placed.id), "{} stands in no order", model.name);
            for placed in &model.placed {
                assert!(
                    model.standing.contains(placed),
                    "{} is kept of {}, which does not stand",
                    placed.id,
                    model.name
                );
                assert!(self.rooms[placed.node].state != NodeState::Down, "{} is kept on no node", placed.id);
                kept[placed.node].memory += model.wish.map_or(0, |wish| u128::from(wish.memory.0));
                kept[placed.node].by_device[placed.device] += 1;
            }
        }
        assert!(self.rooms.iter().map(|room| &room.kept).eq(&kept), "sums of nodes are off");
    }
}

impl Room {
    /// What it has: nothing is kept on it when that changes.
    pub fn describe(&mut self, node: &Node) {
        assert!(self.kept.by_device.iter().all(|replicas| *replicas == 0), "replicas are kept on {}", self.name);
        self.memory = node.memory.0;
        self.slots = node.devices.iter().map(|device| device.slots).sum::<u32>().max(1);
        self.kept.by_device = vec![0; node.devices.len()];
        self.devices.clone_from(&node.devices);
    }

    /// Whether it is as a node says.
    pub fn is_as(&self, node: &Node) -> bool {
        self.memory == node.memory.0 && self.devices == node.devices
    }

    /// Back to what is kept.
    pub fn begin(&mut self) {
        self.free = i128::from(self.memory).saturating_sub_unsigned(self.kept.memory);
        self.by_device.clone_from(&self.kept.by_device);
        self.count(self.by_device.iter().sum());
    }

    pub fn take(&mut self, device: usize, memory: Bytes) {
        self.free -= i128::from(memory.0);
        self.by_device[device] += 1;
        self.count(self.replicas + 1);
    }

    pub fn give_back(&mut self, device: usize, memory: Bytes) {
        self.free += i128::from(memory.0);
        self.by_device[device] -= 1;
        self.count(self.replicas - 1);
    }

    /// What would be placed here for its memory with one more, in thousandths.
    pub fn crowding(&self, memory: Bytes) -> u128 {
        let placed = i128::from(self.memory) - self.free + i128::from(memory.0);
        placed.unsigned_abs() * 1_000 / u128::from(self.memory.max(1))
    }

    fn count(&mut self, replicas: u32) {
        self.replicas = replicas;
        self.load = (u64::from(replicas) * 1_000 / u64::from(self.slots)) as u32;
    }

    pub fn least_loaded(&self) -> usize {
        let load = |(i, device): &(usize, &Device)| {
            (u64::from(self.by_device[*i]) * 1_000 / u64::from(device.slots), device.name.clone())
        };
        self.devices.iter().enumerate().min_by_key(load).expect("a node that joined has a device").0
    }
}
