//! A node whose models do not fit into its memory: what is in time, and how often a model had to be loaded for it.

use std::time::Duration;

use weir_core::ids::{ModelRef, ReplicaId, TicketId};
use weir_core::paging::{self, Action, Keep, Paging};
use weir_core::prng::Prng;
use weir_core::scheduler::Policy;
use weir_core::units::{Bytes, Instant};

use crate::device::{Device, Effect};
use crate::engine::Agenda;
use crate::pool::{Asked, Load, Served};

#[cfg(test)]
mod tests;

/// From when a replica is put out until its memory is free.
const LEAVES: Duration = Duration::from_millis(1);

/// A model that may be in memory or not.
#[derive(Clone, Debug)]
pub struct Model {
    /// What it takes to run, and how much of what comes is for it.
    pub load: Load,
    /// In memory.
    pub size: Bytes,
    /// What fetching its file takes, once; nothing where it is there.
    pub fetch: Duration,
    /// What a load takes, apart from noise.
    pub reload: Duration,
    /// What is measured beside the first load takes.
    pub measuring: Duration,
}

/// A node with one device.
#[derive(Clone, Debug)]
pub struct Node {
    /// Batches that run at once.
    pub slots: u32,
    /// For models.
    pub memory: Bytes,
    /// What stays in it.
    pub keep: Keep,
    /// Each load takes a factor from 1 − noise to 1 + noise of what its model says.
    pub noise: f64,
    /// One replica of each stands here.
    pub models: Vec<Model>,
}

/// What became of the queries of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// By model.
    pub served: Vec<Served>,
    /// Queries that found their model out of memory.
    pub cold: u64,
    /// Loads after the first one of each model.
    pub reloads: u64,
    /// Times that the node began to do little else than load.
    pub thrashings: u64,
    /// The most memory that was taken at once.
    pub most: Bytes,
}

impl Totals {
    /// Share of all queries answered in time.
    pub fn attainment(&self) -> f64 {
        let sum = |of: fn(&Served) -> u64| self.served.iter().map(of).sum::<u64>();
        sum(|served| served.in_time) as f64 / sum(|served| served.offered).max(1) as f64
    }
}

enum Event {
    Arrival,
    Finish(ReplicaId),
    WakeDevice,
    Fetched(usize),
    Loaded(ReplicaId),
    Gone(ReplicaId),
    WakePaging,
}

/// What becomes of `queries`, sorted by arrival; those before `since` only warm it up. Noise is drawn from `seed`.
pub fn run(node: &Node, queries: &[Asked], since: Instant, seed: u64) -> Totals {
    let mut run = Run::new(node, queries, since, seed);
    run.act(|paging, in_use, out| paging.on_wake(Instant::ZERO, in_use, out));
    run.arrive_next();
    while let Some(event) = run.agenda.next() {
        run.on(event);
    }
    run.totals.thrashings = run.paging.now(run.agenda.now()).thrashings;
    run.totals
}

struct Run<'a> {
    node: &'a Node,
    names: Vec<ModelRef>,
    queries: &'a [Asked],
    since: Instant,
    agenda: Agenda<Event>,
    device: Device,
    paging: Paging,
    prng: Prng,
    arrived: usize,
    loaded_before: Vec<bool>,
    taken: u64,
    totals: Totals,
}

impl<'a> Run<'a> {
    fn new(node: &'a Node, queries: &'a [Asked], since: Instant, seed: u64) -> Run<'a> {
        let count = node.models.len();
        let names: Vec<ModelRef> = (0..count).map(|i| ModelRef::parse(&format!("m{i}@1")).expect("a name")).collect();
        let mut paging = Paging::new(node.memory, node.keep);
        for (i, (name, model)) in names.iter().zip(&node.models).enumerate() {
            paging.place(Instant::ZERO, ReplicaId(i as u64), name, model.size, model.fetch.is_zero());
        }
        Run {
            node,
            names,
            queries,
            since,
            agenda: Agenda::new(),
            device: Device::new(node.slots, Policy::default(), Prng::part(seed, 0)),
            paging,
            prng: Prng::part(seed, 1),
            arrived: 0,
            loaded_before: vec![false; count],
            taken: 0,
            totals: Totals { served: vec![Served::default(); count], ..Totals::default() },
        }
    }

    fn arrive_next(&mut self) {
        if let Some(asked) = self.queries.get(self.arrived) {
            self.agenda.at(asked.at, Event::Arrival);
        }
    }

    fn on(&mut self, event: Event) {
        let now = self.agenda.now();
        match event {
            Event::Arrival => {
                let (ticket, asked) = (TicketId(self.arrived as u64), self.queries[self.arrived]);
                self.arrived += 1;
                self.arrive_next();
                self.count(ticket, |served| served.offered += 1);
                let model = self.names[asked.model].clone();
                let service = self.node.models[asked.model].load.believed.estimate(1);
                let free = self.device.estimate_start(now, &asked.query(ticket)).soonest();
                let query = paging::Query { ticket, deadline: asked.deadline, free, service };
                let mut resident = false;
                self.act(|paging, in_use, out| resident = paging.ask(now, &model, &[query], in_use, out));
                if resident {
                    self.submit(ticket);
                } else if now >= self.since {
                    self.totals.cold += 1;
                }
            }
            Event::Finish(replica) => {
                let mut effects = Vec::new();
                for ticket in self.device.finish(now, replica, &mut effects) {
                    let late = self.queries[ticket.0 as usize].deadline.missed_by(now);
                    self.count(ticket, |served| if late { served.late += 1 } else { served.in_time += 1 });
                }
                self.follow(effects);
            }
            Event::WakeDevice => {
                let mut effects = Vec::new();
                self.device.wake(now, &mut effects);
                self.follow(effects);
            }
            Event::Fetched(number) => {
                let name = self.names[number].clone();
                self.act(|paging, in_use, out| paging.on_fetched(now, &name, in_use, out));
            }
            Event::Loaded(id) => {
                let model = &self.node.models[id.0 as usize];
                let (load, first) = (&model.load, (model.size, model.reload));
                let mut effects = Vec::new();
                let (believed, service) = (load.believed.clone(), load.service.clone());
                let name = self.names[id.0 as usize].clone();
                self.device.add_replica(now, id, name, believed, load.max_batch, service, &mut effects);
                self.follow(effects);
                let first = (!std::mem::replace(&mut self.loaded_before[id.0 as usize], true)).then_some(first);
                let counts = now >= self.since && self.arrived < self.queries.len();
                self.totals.reloads += u64::from(first.is_none() && counts);
                self.act(|paging, in_use, out| paging.on_loaded(now, id, first, in_use, out));
            }
            Event::Gone(id) => {
                self.taken -= self.node.models[id.0 as usize].size.0;
                self.act(|paging, in_use, out| paging.on_gone(now, id, in_use, out));
            }
            Event::WakePaging => self.act(|paging, in_use, out| paging.on_wake(now, in_use, out)),
        }
    }

    fn submit(&mut self, ticket: TicketId) {
        let asked = self.queries[ticket.0 as usize];
        let mut effects = Vec::new();
        self.device.arrive(self.agenda.now(), &self.names[asked.model], &[asked.query(ticket)], &mut effects);
        self.follow(effects);
    }

    fn act(&mut self, tell: impl FnOnce(&mut Paging, &dyn Fn(ReplicaId) -> bool, &mut Vec<Action>)) {
        let (mut actions, device, names) = (Vec::new(), &self.device, &self.names);
        tell(&mut self.paging, &|id| device.is_in_use(id, &names[id.0 as usize]), &mut actions);
        let now = self.agenda.now();
        for action in actions {
            match action {
                Action::Fetch(name) => {
                    let number = self.names.iter().position(|known| *known == name).expect("one of the node's");
                    self.agenda.at(now + self.node.models[number].fetch, Event::Fetched(number));
                }
                Action::Load(id) => {
                    let model = &self.node.models[id.0 as usize];
                    let factor = 1.0 + self.node.noise * (2.0 * self.prng.uniform() - 1.0);
                    let measuring = if self.loaded_before[id.0 as usize] { Duration::ZERO } else { model.measuring };
                    self.agenda.at(now + model.reload.mul_f64(factor) + measuring, Event::Loaded(id));
                    self.taken += model.size.0;
                    self.totals.most = self.totals.most.max(Bytes(self.taken));
                }
                Action::Evict(id) => {
                    let mut effects = Vec::new();
                    self.device.remove_replica(now, id, &mut effects);
                    self.follow(effects);
                    self.agenda.at(now + LEAVES, Event::Gone(id));
                }
                Action::Run(ticket) => self.submit(ticket),
                Action::Reject { ticket, .. } => self.count(ticket, |served| served.refused += 1),
                Action::Expire(ticket) => self.count(ticket, |served| served.expired += 1),
                Action::WakeAt(at) => self.agenda.at(at, Event::WakePaging),
            }
        }
    }

    fn follow(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::FinishAt { at, replica } => self.agenda.at(at, Event::Finish(replica)),
                Effect::WakeAt(at) => self.agenda.at(at, Event::WakeDevice),
                Effect::Rejected { ticket, .. } => self.count(ticket, |served| served.refused += 1),
                Effect::Expired { ticket } => self.count(ticket, |served| served.expired += 1),
            }
        }
    }

    fn count(&mut self, ticket: TicketId, count: impl FnOnce(&mut Served)) {
        let asked = &self.queries[ticket.0 as usize];
        if asked.at >= self.since {
            count(&mut self.totals.served[asked.model]);
        }
    }
}
