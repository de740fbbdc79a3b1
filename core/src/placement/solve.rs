//! The placement heuristic; README.md states problem and wishes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::NodeState;
use super::table::{Placed, Room, Table};
use crate::ids::{ModelRef, NodeName, ReplicaId};
use crate::replicated::{Assignment, Moves, Node, Plan, ReplicaRange};
use crate::units::Bytes;

/// Everything that decides a placement.
#[derive(Clone, Debug)]
pub struct Problem<'a> {
    /// The models that should stand somewhere.
    pub models: BTreeMap<&'a ModelRef, Wish>,
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

/// What nobody asks for is spread over so many nodes at most: of more, two looks would find nothing better.
pub(super) const SPREAD: u32 = 16;

/// What is wished for one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wish {
    /// Bounds that somebody declared.
    pub range: ReplicaRange,
    /// Of one replica, as far as it is known.
    pub memory: Bytes,
    /// Replicas that what is asked needs ([`crate::tuner`]); all that stand where nobody has looked long enough to say.
    pub needed: u32,
    /// Slot seconds a second that are asked for: who is asked most comes first where not all fit.
    pub asked: f64,
}

impl Wish {
    /// Of a model of which nothing is known but what was declared.
    pub fn declared(range: ReplicaRange, memory: Bytes) -> Wish {
        Wish { range, memory, needed: range.min, asked: 0.0 }
    }

    /// Replicas that are wanted within the bounds.
    pub(super) fn wanted(&self) -> u32 {
        self.needed.clamp(self.range.min, self.range.max)
    }
}

/// A placement, and what it leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Every replica that should stand.
    pub assignments: BTreeMap<ReplicaId, Assignment>,
    /// Models without their minimum, and why.
    pub unplaceable: Vec<(ModelRef, String)>,
}

/// Finds a placement from nothing. The same problem has the same solution everywhere, and the solution of its own outcome changes
/// nothing. Who looks again and again keeps a [`super::Placement`].
pub fn solve(problem: &Problem<'_>) -> Proposal {
    let mut table = Table::default();
    let by_name: BTreeMap<&NodeName, &Node> = problem.nodes.iter().map(|node| (&node.name, *node)).collect();
    for node in by_name.values() {
        let at = table.add_room(node.name.clone());
        table.rooms[at].describe(node);
        table.rooms[at].state = if node.draining { NodeState::Draining } else { NodeState::Up };
    }
    let node_at: BTreeMap<&NodeName, usize> = by_name.into_keys().zip(0..).collect();
    let model_at: BTreeMap<&ModelRef, usize> = problem.models.keys().copied().zip(0..).collect();
    let mut failed = vec![BTreeSet::new(); model_at.len()];
    for (model, node) in &problem.failed {
        if let (Some(model), Some(node)) = (model_at.get(model), node_at.get(node)) {
            failed[*model].insert(*node);
        }
    }
    let mut standing = vec![Vec::new(); model_at.len()];
    let mut assignments = BTreeMap::new();
    for (id, at) in &problem.plan.assignments {
        let (Some(model), Some(node)) = (model_at.get(&at.model), node_at.get(&at.node)) else { continue };
        let mut devices = table.rooms[*node].devices.iter();
        let Some(device) = devices.position(|device| device.name == at.device) else { continue };
        standing[*model].push(Placed { id: *id, node: *node, device, ready: problem.ready.contains(id) });
        assignments.insert(*id, at.clone());
    }
    for (((name, wish), standing), failed) in problem.models.iter().zip(standing).zip(failed) {
        let at = table.add_model((*name).clone());
        table.set(at, Some(*wish), standing, failed);
    }
    let (moves, unplaceable) = solve_table(&mut table, problem.next_replica);
    moves.make(&mut assignments);
    Proposal { assignments, unplaceable }
}

/// What moves to where it should be, and models without their minimum, and why. The table is left as it was.
pub(super) fn solve_table(table: &mut Table, next: ReplicaId) -> (Moves, Vec<(ModelRef, String)>) {
    let mut solver = Solver::new(table, next);
    solver.relieve();
    // The minimum first, over all models; then what is asked for; then what memory is left is given out.
    for tier in [Tier::Minimum, Tier::Wanted, Tier::Spare] {
        solver.give(tier);
    }
    solver.try_again();
    solver.done()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tier {
    Minimum,
    Wanted,
    Spare,
}

/// A placement while it is built.
struct Solver<'t> {
    table: &'t mut Table,
    /// Models whose replicas are not those any more that were kept, with those.
    touched: BTreeMap<usize, Vec<Placed>>,
    unplaceable: Vec<(ModelRef, String)>,
    next: u64,
    /// Replicas of the model at hand by node.
    here: Vec<u32>,
    /// No node has more memory left.
    roomiest: i128,
    /// What can give way, once somebody has looked.
    surplus: Option<Surplus>,
}

/// By node, who is asked least first.
type Surplus = Vec<Vec<Spare>>;

/// A replica that can give way.
#[derive(Clone, Copy)]
struct Spare {
    asked: f64,
    /// Its model, by name and index.
    rank: usize,
    model: usize,
    id: ReplicaId,
}

impl<'t> Solver<'t> {
    fn new(table: &'t mut Table, next: ReplicaId) -> Solver<'t> {
        table.rooms.iter_mut().for_each(Room::begin);
        let here = vec![0; table.rooms.len()];
        let (touched, unplaceable) = (BTreeMap::new(), Vec::new());
        Solver { table, touched, unplaceable, next: next.0, here, roomiest: i128::MAX, surplus: None }
    }

    /// What differs from what stands, after which all is as it was before.
    fn done(self) -> (Moves, Vec<(ModelRef, String)>) {
        let mut moves = Moves::default();
        for at in self.table.lessened.iter().chain(self.touched.keys()) {
            let model = &self.table.models[*at];
            let placed: BTreeSet<ReplicaId> = model.placed.iter().map(|placed| placed.id).collect();
            let gone = model.standing.iter().filter(|standing| !placed.contains(&standing.id));
            moves.gone.extend(gone.map(|standing| standing.id));
            let stands = |id: ReplicaId| model.standing.binary_search_by_key(&id, |standing| standing.id).is_ok();
            let new = model.placed.iter().filter(|placed| !stands(placed.id));
            moves.placed.extend(new.map(|placed| (placed.id, self.table.assignment(*at, placed))));
        }
        for (at, kept) in self.touched {
            self.table.models[at].placed = kept;
            self.table.models[at].staying = self.table.staying(at);
        }
        (moves, self.unplaceable)
    }

    fn give(&mut self, tier: Tier) {
        self.roomiest = self.roomiest_now();
        let places = |at: &usize| tier != Tier::Spare || i128::from(self.memory(*at).0) <= self.roomiest;
        let lacking = (0..self.table.models.len()).filter(|at| self.lacks(tier, *at) && places(at)).collect();
        for at in self.most_asked_first(lacking) {
            self.table.models[at].placed.iter().for_each(|placed| self.here[placed.node] += 1);
            while self.lacks(tier, at) && self.give_one(tier, at) {}
            self.table.models[at].placed.iter().for_each(|placed| self.here[placed.node] = 0);
        }
    }

    fn most_asked_first(&self, mut models: Vec<usize>) -> Vec<usize> {
        let asked = |at: usize| self.table.models[at].wish.map_or(0.0, |wish| wish.asked);
        let rank = |at: usize| self.table.models[at].rank;
        models.sort_unstable_by(|a, b| asked(*b).total_cmp(&asked(*a)).then(rank(*a).cmp(&rank(*b))));
        models
    }

    fn lacks(&self, tier: Tier, at: usize) -> bool {
        let model = &self.table.models[at];
        model.wish.is_some_and(|wish| {
            let target = match tier {
                Tier::Minimum => wish.range.min,
                Tier::Wanted => wish.wanted(),
                Tier::Spare => wish.range.max.min(wish.wanted().max(SPREAD)),
            };
            model.staying < target
        })
    }

    /// Of a replica of a model that somebody wants.
    fn memory(&self, at: usize) -> Bytes {
        self.table.models[at].wish.map_or(Bytes(0), |wish| wish.memory)
    }

    /// Places one more replica; false where there is no more to be done for this model.
    fn give_one(&mut self, tier: Tier, at: usize) -> bool {
        let failing = self.failing(at);
        let memory = self.memory(at);
        // A second one beside the first gains less than to try again where one stands that could not be loaded, and nothing where
        // there is no slot for it.
        let most_here = |room: &Room| match tier {
            Tier::Minimum if failing.is_empty() => u32::MAX,
            Tier::Wanted if failing.is_empty() => room.slots,
            _ => 1,
        };
        let mut best = self.best(memory, |solver, node, room| {
            !solver.table.models[at].failed.contains(&node) && solver.here[node] < most_here(room)
        });
        // Who is wanted takes the place of who is not.
        if best.is_none() && tier != Tier::Spare {
            best = self.make_room(at, memory, &failing);
        }
        if let Some(node) = best {
            self.place(at, node);
            return true;
        }
        if tier != Tier::Minimum {
            return false;
        }
        let model = &self.table.models[at];
        if !failing.is_empty() {
            let lacking = model.wish.map_or(0, |wish| wish.range.min).saturating_sub(model.staying);
            let nodes: Vec<&str> = failing.iter().map(|placed| self.table.rooms[placed.node].name.as_str()).collect();
            let why = format!("it could not be loaded on {} and is tried again there", nodes.join(", "));
            self.unplaceable.push((model.name.clone(), why));
            failing.into_iter().take(lacking as usize).for_each(|placed| self.put(at, placed));
            return false;
        }
        // It is better in memory on demand than nowhere.
        if model.staying == 0
            && let Some(node) = self.least_crowded(at, memory)
        {
            self.place(at, node);
            return true;
        }
        let nothing = model.placed.is_empty();
        self.unplaceable.push((model.name.clone(), self.why_none(memory)));
        // Where it could not be loaded before is better than nowhere.
        if nothing && let Some(node) = self.best(memory, |_, _, _| true) {
            self.place(at, node);
        }
        false
    }

    /// A new one.
    fn place(&mut self, at: usize, node: usize) {
        let device = self.table.rooms[node].least_loaded();
        self.here[node] += 1;
        self.put(at, Placed { id: ReplicaId(self.next), node, device, ready: false });
        self.next += 1;
    }

    fn put(&mut self, at: usize, placed: Placed) {
        self.touch(at);
        let memory = self.memory(at);
        self.table.rooms[placed.node].take(placed.device, memory);
        self.table.models[at].placed.push(placed);
        self.table.models[at].staying = self.table.staying(at);
    }

    fn touch(&mut self, at: usize) {
        let placed = &self.table.models[at].placed;
        self.touched.entry(at).or_insert_with(|| placed.clone());
    }

    /// The node with room where replicas of the model at hand are fewest, then all replicas for its slots, then by name.
    fn best(&mut self, memory: Bytes, allowed: impl Fn(&Self, usize, &Room) -> bool) -> Option<usize> {
        if i128::from(memory.0) > self.roomiest {
            return None;
        }
        let rooms = self.table.rooms.iter().enumerate();
        let with_room = rooms.filter(|(_, room)| room.state == NodeState::Up && room.free >= i128::from(memory.0));
        let open = with_room.filter(|(i, room)| allowed(self, *i, room));
        let best = open.min_by_key(|(i, room)| (self.here[*i], room.load, room.rank)).map(|(i, _)| i);
        if best.is_none() {
            self.roomiest = self.roomiest_now();
        }
        best
    }

    /// The node that can hold the model, and where most fits of what would be placed with it.
    fn least_crowded(&self, at: usize, memory: Bytes) -> Option<usize> {
        let failed = &self.table.models[at].failed;
        let rooms = self.table.rooms.iter().enumerate();
        let open =
            rooms.filter(|(i, room)| room.state == NodeState::Up && !failed.contains(i) && memory.0 <= room.memory);
        open.min_by_key(|(_, room)| (room.crowding(memory), room.rank)).map(|(i, _)| i)
    }

    /// Where more is placed than fits, what serves on a node with memory for it too goes, what is asked least first.
    fn relieve(&mut self) {
        let crowded = |room: &&Room| room.state == NodeState::Up && room.free < 0;
        let mut nodes: Vec<(usize, usize)> = self
            .table
            .rooms
            .iter()
            .enumerate()
            .filter(|(_, room)| crowded(room))
            .map(|(i, room)| (room.rank, i))
            .collect();
        nodes.sort_unstable();
        for (_, node) in nodes {
            let models = 0..self.table.models.len();
            let mut leaving: Vec<Spare> = models.filter_map(|at| self.doubled(at, node)).collect();
            leaving.sort_unstable_by(Spare::least_asked_first);
            for spare in leaving {
                if self.table.rooms[node].free >= 0 {
                    break;
                }
                self.take_away(spare.model, spare.id);
            }
        }
    }

    /// A replica of a model on a crowded node that is not needed there.
    fn doubled(&self, at: usize, node: usize) -> Option<Spare> {
        let model = &self.table.models[at];
        let wish = model.wish?;
        let (wanted, serving) = (wish.wanted() as usize, model.placed.iter().filter(|placed| placed.ready).count());
        let placed = model.placed.iter().rev().find(|placed| placed.node == node)?;
        let fits = |other: &Placed| {
            let room = &self.table.rooms[other.node];
            other.ready && other.node != node && room.state == NodeState::Up && room.free >= 0
        };
        let enough = model.staying as usize > wanted && serving - usize::from(placed.ready) >= wanted;
        let asked = wish.asked / model.placed.len() as f64;
        (enough && model.placed.iter().any(fits)).then_some(Spare { asked, rank: model.rank, model: at, id: placed.id })
    }

    fn roomiest_now(&self) -> i128 {
        self.table.rooms.iter().filter(|room| room.state == NodeState::Up).map(|room| room.free).max().unwrap_or(0)
    }

    /// Takes away what nobody asks for on the node where that costs least, for a replica of this model.
    fn make_room(&mut self, at: usize, memory: Bytes, failing: &[Placed]) -> Option<usize> {
        let surplus = self.surplus.take().unwrap_or_else(|| self.surplus());
        let cheapest = self.cheapest(&surplus, at, memory, failing);
        self.surplus = Some(surplus);
        let (node, victims) = cheapest?;
        for victim in victims {
            self.take_away(victim.model, victim.id);
        }
        Some(node)
    }

    /// The node where what has to give way is asked least, and what that is.
    fn cheapest(&self, surplus: &Surplus, at: usize, memory: Bytes, failing: &[Placed]) -> Option<(usize, Vec<Spare>)> {
        let model = &self.table.models[at];
        let mut cheapest: Option<((u32, f64, usize), usize, usize)> = None;
        for (node, (room, spares)) in self.table.rooms.iter().zip(surplus).enumerate() {
            let most = if failing.is_empty() { room.slots } else { 1 };
            let open = room.state == NodeState::Up && !model.failed.contains(&node) && self.here[node] < most;
            if !open || spares.is_empty() {
                continue;
            }
            let (mut free, mut cost, mut victims) = (room.free, 0.0, 0);
            for spare in spares {
                if free >= i128::from(memory.0) {
                    break;
                }
                free += i128::from(self.memory(spare.model).0);
                cost += spare.asked;
                victims += 1;
            }
            if free < i128::from(memory.0) {
                continue;
            }
            let key = (self.here[node], cost, room.rank);
            let is_cheaper = |than: &(u32, f64, usize)| {
                key.0.cmp(&than.0).then(key.1.total_cmp(&than.1)).then(key.2.cmp(&than.2)).is_lt()
            };
            if cheapest.as_ref().is_none_or(|(than, ..)| is_cheaper(than)) {
                cheapest = Some((key, node, victims));
            }
        }
        cheapest.map(|(_, node, victims)| (node, surplus[node][..victims].to_vec()))
    }

    fn take_away(&mut self, at: usize, id: ReplicaId) {
        self.touch(at);
        self.unlist(at);
        let memory = self.memory(at);
        let model = &mut self.table.models[at];
        let index = model.placed.iter().position(|placed| placed.id == id).expect("a surplus replica is placed");
        let placed = model.placed.swap_remove(index);
        let room = &mut self.table.rooms[placed.node];
        room.give_back(placed.device, memory);
        self.roomiest = self.roomiest.max(room.free);
        self.table.models[at].staying = self.table.staying(at);
        self.list(at);
    }

    /// Replicas that stand beyond what is wanted of their models, by node.
    fn surplus(&self) -> Surplus {
        let mut surplus: Surplus = vec![Vec::new(); self.table.rooms.len()];
        for at in 0..self.table.models.len() {
            self.spares(at, |node, spare| surplus[node].push(spare));
        }
        surplus.iter_mut().for_each(|of_node| of_node.sort_unstable_by(Spare::least_asked_first));
        surplus
    }

    /// What can give way of a model, with what is asked of each: as many as stand beyond what is wanted, and of those that serve only
    /// as many as leave the wanted number serving.
    fn spares(&self, at: usize, mut each: impl FnMut(usize, Spare)) {
        let model = &self.table.models[at];
        let Some(wish) = model.wish else { return };
        let wanted = wish.wanted() as usize;
        let beyond = (model.staying as usize).saturating_sub(wanted);
        if beyond == 0 {
            return;
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
            let asked = wish.asked / model.placed.len() as f64;
            each(placed.node, Spare { asked, rank: model.rank, model: at, id: placed.id });
        }
    }

    /// A model's part of the surplus, after it has changed: other models' is as it was.
    fn list(&mut self, at: usize) {
        let Some(mut surplus) = self.surplus.take() else { return };
        self.spares(at, |node, spare| {
            let of_node = &mut surplus[node];
            let place = of_node.partition_point(|other| other.least_asked_first(&spare).is_lt());
            of_node.insert(place, spare);
        });
        self.surplus = Some(surplus);
    }

    fn unlist(&mut self, at: usize) {
        if let Some(surplus) = &mut self.surplus {
            let placed = &self.table.models[at].placed;
            placed.iter().for_each(|placed| surplus[placed.node].retain(|spare| spare.model != at));
        }
    }

    /// The standing replicas of a model that could not be loaded, apart from those that are to go anyway.
    fn failing(&self, at: usize) -> Vec<Placed> {
        let model = &self.table.models[at];
        let stays = |placed: &&Placed| self.table.is_open(placed.node) && model.failed.contains(&placed.node);
        model.standing.iter().filter(stays).copied().collect()
    }

    /// What could not be loaded is tried again where nothing better takes its place.
    fn try_again(&mut self) {
        let models = self.table.models.iter().enumerate();
        let failed = models.filter(|(_, model)| model.wish.is_some() && !model.failed.is_empty());
        for at in self.most_asked_first(failed.map(|(at, _)| at).collect()) {
            for placed in self.failing(at) {
                let model = &self.table.models[at];
                let count = model.placed.iter().filter(|placed| self.table.is_open(placed.node)).count() as u32;
                let again = model.placed.iter().any(|other| other.id == placed.id);
                let most = model.wish.map_or(0, |wish| wish.range.max);
                if !again && count < most && self.table.rooms[placed.node].free >= i128::from(self.memory(at).0) {
                    self.put(at, placed);
                }
            }
        }
    }

    fn why_none(&self, memory: Bytes) -> String {
        let open = self.table.rooms.iter().filter(|room| room.state == NodeState::Up);
        match open.map(|room| room.free).max() {
            None => "no node is up; start one with `weir node`".into(),
            Some(free) => {
                let free = free.max(0);
                format!("needs {} bytes, and the emptiest node has {free} free; add a node or memory", memory.0)
            }
        }
    }
}

impl Spare {
    fn least_asked_first(&self, other: &Spare) -> std::cmp::Ordering {
        self.asked.total_cmp(&other.asked).then((self.rank, self.id).cmp(&(other.rank, other.id)))
    }
}
