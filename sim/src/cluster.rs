//! A cluster in virtual time: clients, homes, devices, gates. Everything that decides is the cluster's own code of `core`
//! (the client's balancer, the router, the gates, the scheduler); what is modelled is how long things take.
//!
//! One query: its client picks a node; after [`Path::request`] its home starts a journey for each row; rows that want the same
//! stage go together to the device that should be done first, here or, after [`Path::hop`], on another node. When a batch ends,
//! [`Path::hand_off`] later its rows are home again and go deeper or end. When all have ended, or at the deadline, the
//! answer is on its way for [`Path::reply`].

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use weir_core::call::{Balancer, Way};
use weir_core::endpoint::audit::COPIES_MAX;
use weir_core::endpoint::graph::Stages;
use weir_core::endpoint::{Budget, Flow, Ladder, Ladders, Rungs, Stage};
use weir_core::ids::{DeviceName, ModelRef, NodeName, ReplicaId, TicketId};
use weir_core::outcome::{Class, Outcome, Rejection};
use weir_core::placement::REPORT_EVERY;
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::router::{
    self, Adds, Candidate, Choice, Coming, Depth, Draw, Ending, Group, Journey, StageEnd, Target, Told, Trip, cheapest,
    choose, choose_part, doubted, has_room, meeting_order, remote_finish, sent, soonest, spare_here,
};
use weir_core::scheduler::{Inquiry, Policy, Query};
use weir_core::triage::{self, Bid, ByModel, Claim, Curve, Looks, Market, Method, WholeStage};
use weir_core::units::{Deadline, Instant, ServiceTime};

use crate::device::{Device, Effect, SHAPE, Service};
use crate::engine::Agenda;

/// What a call costs on its way, apart from queues and batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// From the caller to the home, decoding included.
    pub request: Duration,
    /// From the home back to the caller.
    pub reply: Duration,
    /// From the end of a batch until its home has taken the row up.
    pub hand_off: Duration,
    /// From one node to another.
    pub hop: Duration,
}

/// A node, with one device.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Batches that it runs at once.
    pub slots: u32,
    /// What models take here, where that is not what [`Model`] says: what the scheduler starts from, and what batches take.
    pub own: BTreeMap<ModelRef, (Profile, Service)>,
}

/// A model of the cluster.
#[derive(Clone, Debug)]
pub struct Model {
    /// What schedulers start from, on nodes that are not different.
    pub believed: Profile,
    /// What batches take there.
    pub service: Service,
    /// Most rows a batch.
    pub max_batch: u32,
    /// Replicas on each node, by node number.
    pub replicas: Vec<u32>,
}

impl Model {
    /// The nodes that have it, ascending.
    fn nodes(&self) -> impl Iterator<Item = usize> {
        self.replicas.iter().enumerate().filter(|(_, replicas)| **replicas > 0).map(|(node, _)| node)
    }
}

/// An endpoint with what its stages say about each row of the data.
#[derive(Clone, Debug)]
pub struct Served {
    /// Stages and gates.
    pub ladders: Ladders,
    /// What stages wait for.
    pub flow: Arc<Flow>,
    /// By stage and row: what it says. A combination is taken to say the same whatever of its inputs came.
    pub says: Vec<Vec<Says>>,
}

/// What a stage says about a row of the data.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Says {
    /// What the gate after it looks at, where the endpoint has that.
    pub signal: Option<f32>,
    /// The stages whose condition looks at it, and holds.
    pub holds: Stages,
    /// How many items it runs for this row, where it runs them one by one.
    pub items: Option<u32>,
}

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The nodes, called n1, n2 and so on.
    pub nodes: Vec<Node>,
    /// Of each device.
    pub policy: Policy,
    /// Of each home.
    pub triage: Method,
    /// Every model that a stage names.
    pub models: BTreeMap<ModelRef, Model>,
    /// What queries name by number.
    pub endpoints: Vec<Served>,
    /// What is not computing.
    pub path: Path,
    /// How often nodes report, and how long that and the answer take; `None`: there is no leader.
    pub reports: Option<Reports>,
}

/// Reports to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Reports {
    pub every: Duration,
    pub delay: Duration,
    /// From then on there is no leader.
    pub until: Instant,
}

impl Default for Reports {
    /// As in a cluster on one network.
    fn default() -> Reports {
        Reports { every: REPORT_EVERY, delay: Duration::from_millis(1), until: Instant::FAR }
    }
}

/// A query to come.
#[derive(Clone, Debug)]
pub struct Due {
    /// When its caller sends it.
    pub at: Instant,
    /// Number of the endpoint.
    pub endpoint: usize,
    /// Numbers of rows of the data.
    pub rows: Vec<u32>,
    /// Time that it has.
    pub deadline: Duration,
}

/// A query that ended.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Ended {
    pub due: Due,
    pub latency: Duration,
    /// The worst of its rows'.
    pub outcome: Outcome,
    /// By row: the stage that answered; behind the last one stands the default output.
    pub stages: Vec<Option<usize>>,
    pub degraded: bool,
    /// The highest price that its gates met, of a second of slot time.
    pub price: f64,
    /// Of all rows: what load is expected to have cost, in units of value.
    pub expected_loss: f64,
    /// Calls of deeper stages that were sent somewhere, and how many of them ran.
    pub escalated: (u32, u32),
}

struct Call {
    due: Due,
    /// A copy that asks every stage, of which nobody waits for the answer.
    audit: bool,
    class: Class,
    node: usize,
    deadline: Deadline,
    /// When it is there, and how long it was.
    home: Instant,
    inside: Duration,
    trip: Trip,
    /// Where it begins.
    from: usize,
    /// No shallower stage may answer.
    least: usize,
    price: f64,
    escalated: (u32, u32),
    /// The answer is on its way.
    ended: bool,
    /// Where its rows wait or run: (node, ticket).
    tickets: Vec<(usize, TicketId)>,
    /// By row and stage that runs item by item: how many are not back yet.
    items: BTreeMap<(usize, usize), u32>,
}

/// What a ticket is: a call, a row of it and a stage.
type Place = (u64, usize, usize);

/// A reply to a row, and how it went there.
type Reply = (Place, StageEnd);

enum Event {
    Send,
    Home(u64),
    /// Rows of one call get to a device of another node.
    Remote {
        node: usize,
        call: u64,
        stage: usize,
        rows: Vec<usize>,
        /// It is not wanted where it would not be done by then.
        by: Option<Instant>,
        /// Of the stage.
        deadline: Deadline,
    },
    Finish {
        node: usize,
        replica: ReplicaId,
    },
    Wake(usize),
    /// Replies to rows of one call get home.
    Replies {
        call: u64,
        replies: Vec<(usize, usize, StageEnd)>,
    },
    /// The word of a node on the wait of a model gets to another.
    Told {
        home: usize,
        node: usize,
        model: ModelRef,
        told: Told,
    },
    Deadline(u64),
    /// Every node tells the leader what it is asked.
    Report,
    /// A node hears what the others are asked.
    Others {
        node: usize,
        asked: ByModel,
    },
    Answer {
        call: u64,
    },
}

struct Running<'a, F> {
    cluster: &'a Cluster,
    agenda: Agenda<Event>,
    devices: Vec<Device>,
    names: Vec<NodeName>,
    device_name: DeviceName,
    balancer: Balancer,
    /// By endpoint: where its queries begin without a hop, as clients are told.
    hosts: Vec<Vec<NodeName>>,
    way: Way,
    prng: Prng,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    /// By ticket.
    tickets: Vec<Place>,
    waits: BTreeMap<(usize, usize, ModelRef), Told>,
    /// Rows that homes have had of late, by model.
    coming: BTreeMap<(usize, ModelRef), Coming>,
    /// By model, the nodes that have it in the order in which its rows fill them.
    order: BTreeMap<ModelRef, Vec<usize>>,
    /// By node: copies for audits that are under way.
    copies: Vec<usize>,
    /// By node: what its home asks of models that do not stand there.
    elsewhere: Vec<BTreeMap<ModelRef, Curve>>,
    /// The leader's.
    market: Market,
    /// What it has been told, report by report.
    asked: Looks,
    /// By home and endpoint: the stage for all, where triage asks for one.
    wholes: BTreeMap<(usize, usize), WholeStage>,
    /// By endpoint.
    budgets: Vec<Budget>,
    on_end: F,
    effects: Vec<Effect>,
}

/// As nodes and the leader tell it each other.
fn as_told(asked: ByModel) -> ByModel {
    asked.into_iter().map(|(model, asked)| (model, asked.as_told())).collect()
}

fn budget(cluster: &Cluster, served: &Served) -> Budget {
    let stages = served.ladders.endpoint().stages.iter();
    Budget::new(&served.flow, stages.map(|stage| Some(cluster.models[stage.model()?].believed.clone())))
}

/// The nodes with a replica of what an endpoint begins with.
fn hosts(cluster: &Cluster, names: &[NodeName], served: &Served) -> Vec<NodeName> {
    let nodes: BTreeSet<usize> =
        served.ladders.endpoint().begins().flat_map(|model| cluster.models[model].nodes()).collect();
    nodes.into_iter().map(|node| names[node].clone()).collect()
}

fn order(cluster: &Cluster) -> BTreeMap<ModelRef, Vec<usize>> {
    let models = cluster.models.iter().map(|(name, model)| (name.clone(), model.nodes().collect()));
    meeting_order(models, |node| cluster.nodes[*node].slots)
}

/// Runs all queries of `dues`, which come in order of time; each is told to `on_end` once. The same seed gives the same run. Returns what
/// was asked of models behind gates that weigh, on average over the reports.
pub fn run(cluster: &Cluster, dues: impl IntoIterator<Item = Due>, seed: u64, on_end: impl FnMut(Ended)) -> ByModel {
    let mut prng = Prng::part(seed, 3 << 32);
    let names: Vec<NodeName> =
        (1..=cluster.nodes.len()).map(|i| NodeName::parse(&format!("n{i}")).expect("a valid name")).collect();
    let mut balancer = Balancer::new();
    balancer.set_nodes(names.iter().cloned());
    let hosts = cluster.endpoints.iter().map(|served| hosts(cluster, &names, served)).collect();
    let devices = cluster.nodes.iter().map(|node| Device::new(node.slots, cluster.policy, prng.fork())).collect();
    let mut running = Running {
        cluster,
        agenda: Agenda::new(),
        devices,
        names,
        device_name: DeviceName::parse("cpu0").expect("a valid name"),
        balancer,
        hosts,
        way: Way::default(),
        prng,
        calls: BTreeMap::new(),
        next_call: 0,
        tickets: Vec::new(),
        waits: BTreeMap::new(),
        coming: BTreeMap::new(),
        order: order(cluster),
        copies: vec![0; cluster.nodes.len()],
        elsewhere: vec![BTreeMap::new(); cluster.nodes.len()],
        market: Market::default(),
        asked: Looks::default(),
        wholes: BTreeMap::new(),
        budgets: cluster.endpoints.iter().map(|served| budget(cluster, served)).collect(),
        on_end,
        effects: Vec::new(),
    };
    running.place();
    running.go(dues.into_iter())
}

impl<'a, F: FnMut(Ended)> Running<'a, F> {
    fn place(&mut self) {
        let mut id = 0;
        for (reference, model) in &self.cluster.models {
            for (node, replicas) in model.replicas.iter().enumerate() {
                let (believed, service) = self.cluster.takes(node, reference);
                for _ in 0..*replicas {
                    id += 1;
                    self.devices[node].add_replica(
                        Instant::ZERO,
                        ReplicaId(id),
                        reference.clone(),
                        believed.clone(),
                        model.max_batch,
                        service.clone(),
                        &mut self.effects,
                    );
                }
            }
        }
        self.effects.clear();
    }

    fn go(mut self, mut dues: impl Iterator<Item = Due>) -> ByModel {
        let mut next = dues.next();
        if self.cluster.reports.is_some() {
            self.agenda.at(Instant::ZERO, Event::Report);
        }
        if let Some(due) = &next {
            self.agenda.at(due.at, Event::Send);
        }
        while let Some(event) = self.agenda.next() {
            let now = self.agenda.now();
            match event {
                Event::Send => {
                    let due = next.take().expect("it was announced");
                    next = dues.next();
                    if let Some(due) = &next {
                        self.agenda.at(due.at, Event::Send);
                    }
                    self.send(now, due);
                }
                Event::Home(call) => self.start(now, call),
                Event::Remote { node, call, stage, rows, by, deadline } => {
                    self.remote(now, node, (call, stage), rows, by, deadline)
                }
                Event::Finish { node, replica } => self.finish(now, node, replica),
                Event::Wake(node) => {
                    self.devices[node].wake(now, &mut self.effects);
                    self.perform_effects(now, node);
                }
                Event::Replies { call, replies } => self.replies(now, call, &replies),
                Event::Told { home, node, model, told } => {
                    self.waits.insert((home, node, model), told);
                }
                Event::Deadline(call) => self.deadline(now, call),
                Event::Report => self.report(now, next.is_some()),
                Event::Others { node, asked } => self.on_others(now, node, &asked),
                Event::Answer { call } => self.answer(now, call),
            }
        }
        self.asked.mean()
    }

    /// What homes ask goes to the leader, and what those of all other nodes ask comes back.
    fn report(&mut self, now: Instant, goes_on: bool) {
        let Some(Reports { every, delay, until }) = self.cluster.reports else { return };
        if now >= until {
            return;
        }
        for (node, device) in self.devices.iter().enumerate() {
            let mut asked = device.asked(now);
            asked.extend(self.elsewhere[node].iter().map(|(model, curve)| (model.clone(), curve.asked(now))));
            self.market.on_report(now, &self.names[node], as_told(asked));
        }
        if goes_on {
            self.asked.add(self.market.reported());
        }
        for node in 0..self.devices.len() {
            let asked = self.market.others(now, &self.names[node], self.cluster.models.keys());
            self.agenda.at(now + delay, Event::Others { node, asked: as_told(asked) });
        }
        if goes_on {
            self.agenda.at(now + every, Event::Report);
        }
    }

    /// A node hears what homes of the others ask.
    fn on_others(&mut self, now: Instant, node: usize, asked: &ByModel) {
        let cluster = self.cluster;
        let share = |model: &ModelRef| {
            let slots: u32 = cluster.models[model].nodes().map(|node| cluster.nodes[node].slots).sum();
            f64::from(cluster.nodes[node].slots) / f64::from(slots.max(1))
        };
        self.devices[node].on_others(now, asked, share);
    }

    fn send(&mut self, now: Instant, due: Due) {
        let name =
            self.balancer.pick(now, &mut self.prng, &self.hosts[due.endpoint], &[]).expect("a cluster has nodes");
        self.balancer.on_sent(&name, 1);
        let node = self.names.iter().position(|known| *known == name).expect("a node of this cluster");
        let home = now + self.cluster.path.request;
        let ladders = &self.cluster.endpoints[due.endpoint].ladders;
        let whole = self.wholes.entry((node, due.endpoint)).or_default();
        let slots = f64::from(self.cluster.nodes[node].slots);
        let flow = &self.cluster.endpoints[due.endpoint].flow;
        let depth = self.cluster.triage.depth(flow, ladders.seconds(), |ways| {
            due.rows.iter().map(|_| whole.on_arrival(now, ways, slots)).min().unwrap_or(0)
        });
        let call = Call {
            // What is left travels, not the instant: the way to the home is not charged.
            deadline: Deadline(home + self.way.at_node(due.deadline)),
            home,
            inside: Duration::ZERO,
            trip: Trip::new(flow, due.rows.len(), depth),
            from: depth.from,
            least: depth.least,
            items: BTreeMap::new(),
            price: 0.0,
            escalated: (0, 0),
            ended: false,
            audit: false,
            class: ladders.endpoint().class,
            due,
            node,
            tickets: Vec::new(),
        };
        self.next_call += 1;
        self.agenda.at(home, Event::Home(self.next_call));
        self.calls.insert(self.next_call, call);
    }

    fn start(&mut self, now: Instant, id: u64) {
        let call = &self.calls[&id];
        self.agenda.at(call.deadline.0, Event::Deadline(id));
        if self.is_hopeless(now, id) {
            self.count_first(now, id);
            let trip = &mut self.calls.get_mut(&id).expect("an open call").trip;
            while let Some(group) = trip.next_group() {
                trip.on_no_choice(now, &group, Rejection::TooLate);
            }
        }
        self.send_groups(now, id);
    }

    /// A call is refused whose first stage would have run.
    fn count_first(&mut self, now: Instant, id: u64) {
        let (call, budgets) = (&self.calls[&id], &self.budgets);
        let stages = &self.cluster.endpoints[call.due.endpoint].ladders.endpoint().stages;
        if let Some(first) = stages.get(call.from).and_then(Stage::model) {
            let rows = call.due.rows.len() as f64 * budgets[call.due.endpoint].items(call.from);
            self.coming.entry((call.node, first.clone())).or_default().add(now, rows.round() as usize);
        }
    }

    /// Whether stages that have to follow each other before there is any answer would be late: see the cluster's homes.
    fn is_hopeless(&mut self, now: Instant, id: u64) -> bool {
        let call = &self.calls[&id];
        let served = &self.cluster.endpoints[call.due.endpoint];
        if served.flow.is_chain() && call.least == 0 {
            return false;
        }
        let budget = &self.budgets[call.due.endpoint];
        let span = |(stage, model): (usize, Option<&ModelRef>)| {
            let asked = Inquiry { rows: budget.items(stage).round() as usize, ..self.asks(id, stage) };
            model.and_then(|model| soonest(now, &self.candidates(now, call.node, model, asked, &[]))).unwrap_or(0.0)
        };
        let models = served.ladders.endpoint().stages.iter().map(Stage::model);
        let spans: Vec<f64> = models.enumerate().map(span).collect();
        let answer = now + Duration::from_secs_f64(served.flow.until_answer(&spans, call.least).min(1e9));
        call.deadline.missed_by(answer) && !doubted(&mut self.prng)
    }

    fn replies(&mut self, now: Instant, id: u64, replies: &[(usize, usize, StageEnd)]) {
        if !self.calls.contains_key(&id) {
            return;
        }
        // As in the cluster's homes, what comes home together meets one price.
        let mut rungs: BTreeMap<usize, Rungs<'_>> = BTreeMap::new();
        for (slot, stage, end) in replies {
            let rungs = *rungs.entry(*stage).or_insert_with(|| self.rungs(now, id, stage + 1));
            let ladder = self.drawn(rungs);
            self.on_stage_end(now, id, *slot, *stage, *end, ladder);
        }
        self.send_groups(now, id);
    }

    /// A stage call of a row ended; where a gate weighs what follows, the home's device hears of it.
    fn on_stage_end(&mut self, now: Instant, id: u64, slot: usize, stage: usize, end: StageEnd, ladder: &Ladder) {
        let call = self.calls.get_mut(&id).expect("an open call");
        let served = &self.cluster.endpoints[call.due.endpoint];
        let holds = served.says[stage].get(call.due.rows[slot] as usize).map_or(0, |says| says.holds);
        call.price = call.price.max(ladder.price());
        call.escalated.1 += u32::from(stage > 0 && matches!(end, StageEnd::Answered(_)));
        let weighed = call.trip.on_stage_end(now, ladder, slot, stage, end, holds);
        let next = served.ladders.endpoint().stages.get(stage + 1).and_then(Stage::model);
        if let (Some(value), Some(next)) = (weighed, next) {
            let node = call.node;
            if value > 0.0 {
                self.coming.entry((node, next.clone())).or_default().add(now, 1);
            }
            if self.cluster.models[next].replicas[node] > 0 {
                self.devices[node].weighed(now, next, value, served.ladders.endpoint().tenant());
            } else {
                let seconds = served.ladders.seconds().get(stage + 1).copied().unwrap_or(0.0);
                let curve = self.elsewhere[node].entry(next.clone()).or_default();
                curve.add(now, ServiceTime::from_nanos((seconds * 1e9) as u64), value);
            }
        }
    }

    /// What a stage gives for rows that no device is asked for.
    fn answered_at_home(&mut self, now: Instant, id: u64, stage: usize, slots: &[usize], ladder: &Ladder) {
        let says = &self.cluster.endpoints[self.calls[&id].due.endpoint].says[stage];
        for slot in slots {
            let signal = says.get(self.calls[&id].due.rows[*slot] as usize).and_then(|says| says.signal);
            self.on_stage_end(now, id, *slot, stage, StageEnd::Answered(signal), ladder);
        }
    }

    /// What the gate sees that one row comes to.
    fn drawn(&mut self, rungs: Rungs<'a>) -> &'a Ladder {
        rungs.at(if rungs.weighs() { self.prng.uniform() } else { 0.0 })
    }

    /// Where the gate before a stage stands now.
    fn rungs(&mut self, now: Instant, id: u64, stage: usize) -> Rungs<'a> {
        let (cluster, call) = (self.cluster, &self.calls[&id]);
        let (node, deadline) = (call.node, call.deadline);
        let ladders = &cluster.endpoints[call.due.endpoint].ladders;
        let next = ladders.endpoint().stages.get(stage).and_then(Stage::model).filter(|_| ladders.weighs());
        let claim = Claim { deadline, class: call.class, tenant: ladders.endpoint().tenant() };
        let price = next.map_or(0.0, |model| self.price(now, node, model, claim));
        let loaded = next.filter(|_| cluster.triage.reads_load());
        let load = loaded.map_or(0.0, |model| self.load(now, node, model, deadline));
        cluster.triage.rungs(ladders, || price, || load)
    }

    fn deadline(&mut self, now: Instant, id: u64) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.trip.on_deadline(now);
        self.send_groups(now, id);
    }

    /// What a home does when something has happened to a call.
    fn send_groups(&mut self, now: Instant, id: u64) {
        let call = self.calls.get_mut(&id).expect("an open call");
        let (home, endpoint) = (call.node, call.due.endpoint);
        while let Some(mut group) = self.calls.get_mut(&id).and_then(|call| call.trip.next_group()) {
            let served = &self.cluster.endpoints[endpoint];
            let Some(model) = served.ladders.endpoint().stages[group.stage].model() else {
                let rungs = self.rungs(now, id, group.stage + 1);
                let ladder = self.drawn(rungs);
                self.answered_at_home(now, id, group.stage, &group.slots, ladder);
                continue;
            };
            let items = |slot: &usize| {
                let says = served.says[group.stage].get(self.calls[&id].due.rows[*slot] as usize);
                says.and_then(|says| says.items)
            };
            group.slots.iter().filter_map(items).for_each(|items| {
                self.budgets[endpoint].on_items(group.stage, items as usize);
            });
            let flattened =
                group.slots.iter().filter_map(items).map(|items| items as usize).reduce(|sum, more| sum + more);
            // What has nothing to ask has its answer.
            let empty: Vec<usize> = group.slots.extract_if(.., |slot| items(slot) == Some(0)).collect();
            self.answered_at_home(now, id, group.stage, &empty, served.ladders.at(0.0, 0.0));
            if group.slots.is_empty() {
                continue;
            }
            if group.is_new() {
                let rows = flattened.unwrap_or(group.slots.len());
                let wanted = self.calls[&id].trip.newly_wanted(&group, rows);
                self.coming.entry((home, model.clone())).or_default().add(now, wanted);
            }
            self.send_group(now, id, model, group, flattened);
        }
        if let Some(call) = self.calls.get_mut(&id)
            && call.trip.is_over()
            && !call.ended
        {
            call.ended = true;
            call.inside = now.since(call.home);
            let (audit, tickets) = (call.audit, std::mem::take(&mut call.tickets));
            for (node, ticket) in tickets {
                self.devices[node].cancel(now, ticket, &mut self.effects);
                self.perform_effects(now, node);
            }
            if audit {
                self.copies[home] -= 1;
                self.calls.remove(&id);
            } else {
                self.agenda.at(now + self.cluster.path.reply, Event::Answer { call: id });
                self.audit_some(now, id);
            }
        }
    }

    /// Sends a group, as the cluster's homes do. `flattened`: as how many items it runs, where it does.
    fn send_group(&mut self, now: Instant, id: u64, model: &ModelRef, mut group: Group, flattened: Option<usize>) {
        let draw = Draw::new(&mut self.prng);
        let call = &self.calls[&id];
        let rows = flattened.unwrap_or(group.slots.len());
        let (home, endpoint, stage) = (call.node, call.due.endpoint, group.stage);
        let firm = self.bid(id, stage, group.slots[0]).firm();
        let look = |of: usize| {
            let asked = Inquiry { rows: of, firm, ..self.asks(id, stage) };
            let known = self.candidates(now, home, model, asked, &group.tried);
            let own = soonest(now, &known).unwrap_or(0.0);
            (known, self.budgets[endpoint].deadline(now, stage, call.deadline, own))
        };
        let coming = &self.coming[&(home, model.clone())];
        let choice = |known: &[Candidate], deadline: Deadline, draw: Draw| {
            let believed = &self.cluster.models[model].believed;
            let saves = coming.saves(now, believed, deadline.left(now), spare_here(known));
            choose(known, &group.full, now, deadline, saves, draw)
        };
        let adds = |slot: usize| call.trip.adds(slot, stage);
        let parts = || flattened.is_none() && adds(group.slots[0]) != Adds::All;
        let part = choose_part(rows, parts, look, choice, draw);
        let deadline = part.deadline;
        let others = (part.rows < rows).then(|| group.keep(part.rows, |slot| adds(slot).worth()));
        let call = self.calls.get_mut(&id).expect("an open call");
        let (target, by) = match part.choice {
            Choice::None(why) => {
                for group in std::iter::once(group).chain(others) {
                    call.trip.on_no_choice(now, &group, why);
                }
                return;
            }
            Choice::To(target) => (target, None),
            Choice::Asking(target, by) => (target, Some(by)),
        };
        call.trip.on_sent(&group, &target);
        if let Some(others) = others {
            call.trip.on_no_choice(now, &others, Rejection::TooLate);
        }
        // Whoever was full was only asked.
        call.escalated.0 += if stage > 0 && group.full.is_empty() { group.slots.len() as u32 } else { 0 };
        match target {
            Target::Local(_) => self.enqueue(now, home, (id, stage), &group.slots, deadline),
            Target::Remote(name) => {
                let node = self.names.iter().position(|known| *known == name).expect("a known node");
                let at = now + self.cluster.path.hop;
                self.note_sent(now, home, node, endpoint, stage, part.rows);
                self.agenda.at(at, Event::Remote { node, call: id, stage, rows: group.slots, by, deadline });
            }
        }
    }

    /// Draws rows of a call that every stage is asked about, now that its answer is on its way.
    fn audit_some(&mut self, now: Instant, id: u64) {
        let Some(call) = self.calls.get(&id) else { return };
        let (home, due) = (call.node, call.due.clone());
        let endpoint = self.cluster.endpoints[due.endpoint].ladders.endpoint();
        let share = endpoint.audited();
        if share <= 0.0 {
            return;
        }
        for row in &due.rows {
            let drawn = self.prng.uniform() < share;
            if !drawn || self.copies[home] >= COPIES_MAX {
                continue;
            }
            self.copies[home] += 1;
            let depth = endpoint.copy_depth();
            let copy = Call {
                due: Due { rows: vec![*row], ..due.clone() },
                audit: true,
                class: Class::Sheddable,
                node: home,
                deadline: Deadline::after(now, endpoint.copy_within()),
                home: now,
                inside: Duration::ZERO,
                trip: Trip::new(&self.cluster.endpoints[due.endpoint].flow, 1, depth),
                from: depth.from,
                least: depth.least,
                price: 0.0,
                escalated: (0, 0),
                ended: false,
                tickets: Vec::new(),
                items: BTreeMap::new(),
            };
            self.next_call += 1;
            self.agenda.at(now, Event::Home(self.next_call));
            self.calls.insert(self.next_call, copy);
        }
    }

    /// A home remembers what it has sent to another node.
    fn note_sent(&mut self, now: Instant, home: usize, node: usize, endpoint: usize, stage: usize, rows: usize) {
        let stages = &self.cluster.endpoints[endpoint].ladders.endpoint().stages;
        let model = stages[stage].model().expect("a model is sent somewhere");
        let work = Duration::from_secs_f64(self.cluster.believed(node, model).row_seconds() * rows as f64);
        let told = self.waits.entry((home, node, model.clone()));
        told.and_modify(|told| *told = sent(now, Some(*told), work)).or_insert_with(|| sent(now, None, work));
    }

    /// What a stage is asked of a row.
    fn asks(&self, id: u64, stage: usize) -> Inquiry {
        let call = &self.calls[&id];
        self.budgets[call.due.endpoint].asks(stage, call.class, call.deadline)
    }

    /// What a row brings to triage in a stage.
    fn bid(&self, id: u64, stage: usize, slot: usize) -> Bid {
        let call = &self.calls[&id];
        let endpoint = self.cluster.endpoints[call.due.endpoint].ladders.endpoint();
        self.cluster.triage.bid(endpoint, stage, call.trip.adds(slot, stage))
    }

    /// What a second of slot time costs for a model, as a home knows it.
    fn price(&mut self, now: Instant, home: usize, model: &ModelRef, claim: Claim) -> f64 {
        let nodes: Vec<usize> = self.cluster.models[model].nodes().collect();
        let local = nodes.contains(&home).then(|| self.devices[home].price(now, model, claim).now());
        let others = nodes.iter().filter(|node| **node != home);
        let told = others.map(|node| self.waits.get(&(home, *node, model.clone())).copied());
        cheapest(now, local.into_iter(), told)
    }

    /// How much of the time that is left the wait for a model takes, where it is shortest.
    fn load(&self, now: Instant, home: usize, model: &ModelRef, deadline: Deadline) -> f64 {
        let known = self.candidates(now, home, model, Inquiry::of(Class::Default, deadline), &[]);
        let finish = known.iter().map(|candidate| candidate.estimate.finish).min();
        finish.map_or(0.0, |finish| triage::load(now, finish, deadline))
    }

    /// Where a node stands in the order in which rows of a model fill devices.
    fn order_of(&self, model: &ModelRef, node: usize) -> usize {
        self.order[model].iter().position(|known| *known == node).unwrap_or(usize::MAX)
    }

    fn candidates(
        &self,
        now: Instant,
        home: usize,
        reference: &ModelRef,
        asked: Inquiry,
        tried: &[Target],
    ) -> Vec<Candidate> {
        let model = &self.cluster.models[reference];
        let mut known = Vec::new();
        for node in model.nodes() {
            if node == home {
                if let Some(estimate) = self.devices[node].estimate_finish(now, reference, asked) {
                    known.push(Candidate {
                        target: Target::Local(self.device_name.clone()),
                        estimate,
                        order: self.order_of(reference, node),
                    });
                }
            } else {
                let told = self.waits.get(&(home, node, reference.clone())).copied();
                let estimate = remote_finish(
                    now,
                    told,
                    self.cluster.believed(node, reference).estimate(asked.rows as u32).as_duration(),
                );
                known.push(Candidate {
                    target: Target::Remote(self.names[node].clone()),
                    estimate,
                    order: self.order_of(reference, node),
                });
            }
        }
        known.retain(|candidate| !tried.contains(&candidate.target));
        known
    }

    /// Rows of one call get to another node, which takes them where they would be done in time.
    fn remote(
        &mut self,
        now: Instant,
        node: usize,
        (id, stage): (u64, usize),
        rows: Vec<usize>,
        by: Option<Instant>,
        deadline: Deadline,
    ) {
        let served = self.calls.get(&id).map(|call| &self.cluster.endpoints[call.due.endpoint]);
        let model = served.and_then(|served| served.ladders.endpoint().stages[stage].model());
        if let (Some(by), Some(model)) = (by, model) {
            let class = self.calls.get(&id).map_or(Class::Default, |call| call.class);
            let asked = Inquiry { rows: rows.len(), ..Inquiry::of(class, deadline) };
            let estimate = self.devices[node].estimate_finish(now, model, asked);
            let order = self.order_of(model, node);
            if estimate.is_some_and(|estimate| !has_room(now, by, deadline.left(now), order, &estimate)) {
                let full = rows.into_iter().map(|slot| ((id, slot, stage), StageEnd::Full)).collect();
                return self.bring_home(now, node, full);
            }
        }
        self.enqueue(now, node, (id, stage), &rows, deadline);
    }

    /// Rows of one call enter the queue of a device together.
    fn enqueue(&mut self, now: Instant, node: usize, (id, stage): (u64, usize), rows: &[usize], deadline: Deadline) {
        if self.calls.get(&id).is_none_or(|call| call.ended) {
            return;
        }
        let call = self.calls.get_mut(&id).expect("it was just seen");
        let served = &self.cluster.endpoints[call.due.endpoint];
        let endpoint = served.ladders.endpoint();
        let model = endpoint.stages[stage].model().expect("a model is sent somewhere");
        let mut queries = Vec::with_capacity(rows.len());
        for slot in rows {
            let items = served.says[stage].get(call.due.rows[*slot] as usize).and_then(|says| says.items);
            if let Some(items) = items {
                call.items.insert((*slot, stage), items);
            }
            for _ in 0..items.unwrap_or(1) {
                let ticket = TicketId(self.tickets.len() as u64);
                self.tickets.push((id, *slot, stage));
                call.tickets.push((node, ticket));
                queries.push(Query {
                    ticket,
                    deadline,
                    class: call.class,
                    shape: SHAPE,
                    mergeable: self.cluster.models[model].max_batch > 1,
                    rows: 1,
                    bid: self.cluster.triage.bid(endpoint, stage, call.trip.adds(*slot, stage)),
                });
            }
        }
        self.devices[node].arrive(now, model, &queries, &mut self.effects);
        self.perform_effects(now, node);
    }

    fn finish(&mut self, now: Instant, node: usize, replica: ReplicaId) {
        let ran = self.devices[node].finish(now, replica, &mut self.effects);
        let mut replies = Vec::with_capacity(ran.len());
        for ticket in ran {
            let place @ (id, slot, stage) = self.tickets[ticket.0 as usize];
            let Some(call) = self.calls.get_mut(&id) else { continue };
            call.tickets.retain(|(_, known)| *known != ticket);
            let row = call.due.rows[slot] as usize;
            let says = self.cluster.endpoints[call.due.endpoint].says[stage].get(row).copied().unwrap_or_default();
            if says.items.is_some() {
                let Some(left) = call.items.get_mut(&(slot, stage)) else { continue };
                *left -= 1;
                if *left > 0 {
                    continue;
                }
            }
            replies.push((place, StageEnd::Answered(says.signal)));
        }
        self.perform_effects(now, node);
        self.bring_home(now + self.cluster.path.hand_off, node, replies);
    }

    fn perform_effects(&mut self, now: Instant, node: usize) {
        let mut refused = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            let (ticket, end) = match effect {
                Effect::FinishAt { at, replica } => {
                    self.agenda.at(at, Event::Finish { node, replica });
                    continue;
                }
                Effect::WakeAt(at) => {
                    self.agenda.at(at, Event::Wake(node));
                    continue;
                }
                Effect::Rejected { ticket, why } => (ticket, StageEnd::Rejected(why)),
                Effect::Expired { ticket } => (ticket, StageEnd::Expired),
            };
            let place @ (id, slot, stage) = self.tickets[ticket.0 as usize];
            if let Some(call) = self.calls.get_mut(&id) {
                call.tickets.retain(|(_, known)| *known != ticket);
                // Of a row's items one is as good as all.
                call.items.remove(&(slot, stage));
            }
            refused.push((place, end));
        }
        self.bring_home(now, node, refused);
    }

    /// Replies go home from a node, those of one call together.
    fn bring_home(&mut self, at: Instant, node: usize, replies: Vec<Reply>) {
        let mut by_call: BTreeMap<u64, Vec<(usize, usize, StageEnd)>> = BTreeMap::new();
        for ((id, slot, stage), end) in replies {
            by_call.entry(id).or_default().push((slot, stage, end));
        }
        for (id, replies) in by_call {
            let Some(call) = self.calls.get(&id) else { continue };
            let mut at = at;
            if call.node != node {
                at = at + self.cluster.path.hop;
                let stages = &self.cluster.endpoints[call.due.endpoint].ladders.endpoint().stages;
                let model = stages[replies[0].1].model().expect("a model came home");
                let now = self.agenda.now();
                let firm = self.bid(id, replies[0].1, replies[0].0).firm();
                // To one that comes now, as these came.
                let deadline = Deadline::after(now, call.due.deadline);
                let tenant = self.cluster.endpoints[call.due.endpoint].ladders.endpoint().tenant();
                let device = &mut self.devices[node];
                let mut told = device.told(now, model, Claim { deadline, class: call.class, tenant }, firm);
                let asked = Inquiry { rows: replies.len(), firm, ..Inquiry::of(call.class, deadline) };
                if replies[0].2 == StageEnd::Full
                    && let Some(estimate) = device.estimate_finish(now, model, asked)
                {
                    told = told.full(now, &estimate);
                }
                let told = Told { at, ..told };
                self.agenda.at(at, Event::Told { home: call.node, node, model: model.clone(), told });
            }
            self.agenda.at(at, Event::Replies { call: id, replies });
        }
    }

    fn answer(&mut self, now: Instant, id: u64) {
        let call = self.calls.remove(&id).expect("it is answered once");
        let mut outcome = Outcome::Answered;
        let (mut stages, mut degraded, mut expected_loss) = (Vec::with_capacity(call.trip.len()), false, 0.0);
        let endpoint = self.cluster.endpoints[call.due.endpoint].ladders.endpoint();
        for slot in 0..call.trip.len() {
            let (end, stage) = match call.trip.end(slot).expect("every row has ended").how {
                Ending::Answer { stage, degraded: less } => {
                    degraded |= less;
                    let next = call.trip.judged(slot).and_then(|judged| judged.free);
                    expected_loss += endpoint.expected_loss(stage, next);
                    (Outcome::Answered, Some(stage))
                }
                Ending::Refuse(why) => (Outcome::Rejected(why), None),
                Ending::Expire => (Outcome::Expired, None),
                Ending::Fail => (Outcome::Failed, None),
            };
            let defaults = end != Outcome::Answered && !endpoint.default_outputs.is_empty();
            let (end, stage) = if defaults {
                let default = endpoint.stages.len();
                degraded = true;
                expected_loss += endpoint.expected_loss(default, None);
                (Outcome::Answered, Some(default))
            } else {
                (end, stage)
            };
            stages.push(stage);
            outcome = outcome.max(end);
        }
        let latency = now.since(call.due.at);
        self.way.observe(latency, call.inside);
        self.balancer.on_outcome(now, &self.names[call.node], outcome, latency);
        (self.on_end)(Ended {
            latency,
            outcome,
            stages,
            degraded,
            price: call.price,
            expected_loss,
            escalated: call.escalated,
            due: call.due,
        });
    }
}

impl Served {
    /// A cascade, by what its gates look at, by stage and row.
    pub fn cascade(ladders: Ladders, signals: &[Vec<Option<f32>>]) -> Served {
        let flow = Flow::chain(ladders.endpoint().stages.iter().map(|stage| stage.gate.is_some()));
        let says = |of_rows: &Vec<Option<f32>>| {
            of_rows.iter().map(|signal| Says { signal: *signal, ..Says::default() }).collect()
        };
        Served { ladders, flow: Arc::new(flow), says: signals.iter().map(says).collect() }
    }

    /// By stage: how often it runs for a row where nothing is dear.
    pub fn runs(&self) -> Vec<f64> {
        let rows = self.says.first().map_or(0, Vec::len);
        let mut runs = vec![0.0; self.says.len()];
        let mut calls = Vec::new();
        for row in 0..rows {
            let mut journey = Journey::new(Depth::ANY);
            calls.clear();
            journey.start(&self.flow, &mut calls);
            while let Some(router::Call { stage, .. }) = calls.pop() {
                let says = self.says[stage][row];
                runs[stage] += f64::from(says.items.unwrap_or(1));
                let answered = StageEnd::Answered(says.signal);
                journey.on_stage_end(&self.flow, self.ladders.at(0.0, 0.0), stage, answered, says.holds, &mut calls);
            }
        }
        runs.iter().map(|runs| runs / rows.max(1) as f64).collect()
    }
}

impl Node {
    /// One that is as the models' profiles say, with so many slots.
    pub fn of(slots: u32) -> Node {
        Node { slots, own: BTreeMap::new() }
    }
}

impl Cluster {
    /// What the scheduler of a node starts from for a model, and what its batches take there.
    fn takes(&self, node: usize, model: &ModelRef) -> (&Profile, &Service) {
        match self.nodes[node].own.get(model) {
            Some((believed, service)) => (believed, service),
            None => (&self.models[model].believed, &self.models[model].service),
        }
    }

    fn believed(&self, node: usize, model: &ModelRef) -> &Profile {
        self.takes(node, model).0
    }
}

impl Path {
    /// The path of a call that takes `total` apart from queues and batches, as `weir profile --path` measures it.
    pub fn of(total: Duration) -> Path {
        Path { request: total * 2 / 5, hand_off: total / 5, reply: total * 2 / 5, hop: total / 2 }
    }
}
