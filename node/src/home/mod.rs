//! The home of a query: decodes a call, takes each of its rows through the stages, and answers.
//!
//! Lives on an RPC thread. It decides nothing: [`Trip`] says what its rows do next, [`choose`] where. Dropping the call drops this, and with it whatever still
//! waits somewhere.

mod copies;
mod join;
mod returns;
mod told;
mod travel;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use weir_core::call::ROWS_MAX;
use weir_core::endpoint::passage::{Looked, Room, Taken};
use weir_core::endpoint::{Budget, Ladders, Rungs, Stage, Wiring};
use weir_core::history::{Record, Visits};
use weir_core::ids::{EndpointName, ModelRef, NodeName, QueryId};
use weir_core::outcome::{Class, Outcome, Rejection};
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::router::{
    Adds, Candidate, Choice, Depth, Draw, Group, Target, Trip, choose, choose_part, doubted, soonest, spare_here,
};
use weir_core::scheduler::Inquiry;
use weir_core::tensor::{Row, TensorSpec};
use weir_core::triage::Claim;
use weir_core::units::{Deadline, Instant};
use weir_schema::convert::predict::{class_from_wire, query_id, span_from_us};
use weir_schema::convert::tensor::{TensorView, read_tensor};
use weir_schema::predict_capnp::{predict_request, predict_response};

use crate::Shared;
use crate::actors::device::{Device, Replies, StageReply, Submission};
use crate::deadlines::Deadlines;
use crate::memory::Handed;
use crate::operators::Remembered;
use crate::stages::{Asking, Peers};
use crate::table::{Served, Table, Targets, candidates, load, price};

use join::Joins;
use returns::{Mailbox, Returns, Sender};
use told::{answer, record, write_outcome};

/// An RPC thread's part in serving.
pub struct Home {
    pub shared: Arc<Shared>,
    pub peers: Peers,
    deadlines: Deadlines,
    returns: Returns<(usize, HomeReply)>,
    prng: RefCell<Prng>,
    remembered: Remembered,
    /// Copies under way.
    copies: Cell<usize>,
    /// Reused between calls.
    records: RefCell<Vec<Record>>,
}

/// A call as a whole is refused.
struct Refused {
    why: Rejection,
    message: String,
}

impl Refused {
    /// What is remembered of it: how many rows there were, nobody has looked.
    fn record(self, id: QueryId, now: Instant) -> Record {
        Record {
            id,
            rows: ROWS_MAX as u32,
            endpoint: None,
            arrived: now,
            deadline: None,
            class: Class::Default,
            visits: Visits::default(),
            looked: Vec::new(),
            ended: now,
            outcome: Outcome::Rejected(self.why),
            stage: 0,
            label: None,
            degraded: false,
            dear: false,
            not_numbers: 0,
            message: self.message,
        }
    }
}

fn bad_input(message: impl Into<String>) -> Refused {
    Refused { why: Rejection::BadInput, message: message.into() }
}

/// A decoded call.
struct Call {
    ladders: Arc<Ladders>,
    wiring: Arc<Wiring>,
    budget: Arc<Budget>,
    rows: Vec<Row>,
    deadline: Deadline,
    class: Class,
    depth: Depth,
    /// The caller wants a stage to answer: no default will do.
    demanding: bool,
    outputs: Vec<String>,
    /// The caller wants to know how its answers came about.
    trace: bool,
    /// What sees a copy of it.
    shadow: Option<Arc<Served>>,
}

/// What a row has gathered on its way.
#[derive(Default)]
struct Gathered {
    /// Node and outputs of each stage that answered, last one last.
    answers: Vec<(usize, NodeName, Row)>,
    queue: Duration,
    execute: Duration,
    /// Of what failed last.
    message: String,
    /// The highest price that its gates met.
    price: f64,
    /// Its stage calls, for those who ask why.
    visits: Visits,
    /// What conditions saw, for them too.
    looked: Vec<(Instant, Looked)>,
    /// What is taken from the room of its call for what stages are asked, until they have ended.
    asked: Vec<(usize, Taken)>,
}

/// A call under way.
struct Travel<'a> {
    call: &'a Call,
    trip: Trip,
    rows: Vec<Gathered>,
    mailbox: Mailbox<(usize, HomeReply)>,
    /// Rows, or items of rows, that were asked something and have no reply to it.
    unanswered: usize,
    /// At devices of this node; withdrawn when dropped.
    waiting: Vec<Handed>,
    /// Their replies come with numbers after those of rows.
    joins: Joins,
    /// For what lies between stages.
    room: Room,
    /// Most calls go nowhere else.
    remote: Option<tokio::task::JoinSet<()>>,
}

impl Home {
    /// The part of a new RPC thread.
    pub fn new(shared: Arc<Shared>) -> Rc<Home> {
        let prng = RefCell::new(Prng::new(shared.host.random.u64()));
        let deadlines = Deadlines::new(Arc::clone(&shared.host.clock));
        let peers = Peers::new(shared.host.clone(), shared.token.clone());
        Rc::new(Home {
            peers,
            deadlines,
            returns: Returns::new(),
            remembered: shared.histories.begin(),
            records: RefCell::default(),
            copies: Cell::new(0),
            shared,
            prng,
        })
    }

    /// Why no query of an endpoint could be answered now, as far as is known here: no replica of a first stage is ready.
    pub fn unready(&self, table: &Table, served: &Served) -> Option<String> {
        let now = self.shared.host.clock.now();
        let first = |served: &Served| served.ladders.endpoint().stages.first().and_then(Stage::model).cloned();
        let models =
            std::iter::once(served).chain(served.versions.iter().map(|(_, version)| version)).filter_map(first);
        let (devices, waits) = (&self.shared.devices, &self.shared.remote_waits);
        let models: Vec<ModelRef> = models.collect();
        let asked = Inquiry::of(Class::Default, Deadline::NEVER);
        let is_ready = |model: &ModelRef| !candidates(table, devices, waits, now, model, (asked, None), &[]).is_empty();
        let first = models.first().filter(|_| !models.iter().any(is_ready))?;
        Some(format!("no replica of {first} is ready"))
    }

    /// Serves one call: `allowed` says which endpoints the caller may query.
    pub async fn predict(
        self: &Rc<Self>,
        request: predict_request::Reader<'_>,
        mut response: predict_response::Builder<'_>,
        allowed: impl Fn(&Table, &str) -> bool,
    ) -> Result<(), capnp::Error> {
        let started = self.shared.host.clock.now();
        let id = query_id(request.get_id_high(), request.get_id_low());
        let call = match self.decode(request, started, allowed)? {
            Ok(call) => call,
            Err(refused) => {
                let mut b = response.init_refused();
                write_outcome(b.reborrow(), Outcome::Rejected(refused.why), &refused.message);
                self.shared.ledger.refused(refused.why);
                self.remembered.add([refused.record(id, started)]);
                return Ok(());
            }
        };
        let _in_flight = self.shared.in_flight();
        let counters = self.shared.ledger.of(&call.ladders.endpoint().name);
        let answering = counters.arrived(call.rows.len(), &*self.shared.host.clock);
        let (trip, mut rows, room) = self.travel(&call).await;
        let mut answers = response.reborrow().init_answers(rows.len() as u32);
        let mut records = self.records.take();
        for (slot, row) in rows.iter_mut().enumerate() {
            let end = trip.end(slot).expect("every row has ended");
            let record = Record {
                not_numbers: trip.not_numbers(slot),
                dear: trip.is_dear(slot),
                ..record(&call, id.row(slot as u64), started, row, end)
            };
            answer(&call, row, &record, answers.reborrow().get(slot as u32));
            records.push(record);
        }
        answering.ended(&records);
        self.remembered.add(records.drain(..));
        self.records.replace(records);
        self.audit_some(&call, id);
        if let Some(shadow) = &call.shadow {
            self.shadow_all(&call, shadow, &mut rows);
        }
        // What they gathered lies there until here.
        drop((rows, room));
        Ok(())
    }

    fn decode(
        &self,
        request: predict_request::Reader<'_>,
        now: Instant,
        allowed: impl Fn(&Table, &str) -> bool,
    ) -> Result<Result<Call, Refused>, capnp::Error> {
        let table = self.shared.table.load_full();
        let name = request.get_endpoint()?.to_str()?;
        if self.shared.is_draining() {
            return Ok(Err(Refused { why: Rejection::Draining, message: "this node is draining; ask another".into() }));
        }
        if !allowed(&table, name) {
            let message = format!("this token does not cover endpoint {:?}", shorten(name));
            return Ok(Err(Refused { why: Rejection::Forbidden, message }));
        }
        let Some(served) = table.endpoints.iter().find(|(known, _)| known.as_str() == name).map(|(_, served)| served)
        else {
            let message = format!("endpoint {:?} not found; `weir get endpoints` lists what there is", shorten(name));
            return Ok(Err(Refused { why: Rejection::UnknownEndpoint, message }));
        };
        let shadow = served.shadow.clone();
        let served = served.version(query_id(request.get_id_high(), request.get_id_low()));
        let whole = request.get_whole();
        let views = request.get_inputs()?.iter().map(read_tensor).collect::<Result<Vec<_>, _>>();
        let rows = views
            .map_err(|bad| bad_input(bad.to_string()))
            .and_then(|views| rows(&views, &served.wiring.signature.inputs, whole));
        let rows = match rows {
            Ok(rows) => rows,
            Err(refused) => return Ok(Err(refused)),
        };
        let left = match span_from_us(request.get_deadline_left_us()) {
            Ok(left) if left.is_zero() => served.ladders.endpoint().deadline,
            Ok(left) => left,
            Err(bad) => return Ok(Err(bad_input(bad.to_string()))),
        };
        let (least, most) = (request.get_min_stage()?.to_str()?, request.get_max_stage()?.to_str()?);
        let depth = match depth(served, least, most) {
            Ok(Depth::ANY) => self.depth(now, served, rows.len()),
            Ok(depth) => depth,
            Err(refused) => return Ok(Err(refused)),
        };
        let outputs = request
            .get_outputs()?
            .iter()
            .map(|name| Ok(name?.to_str()?.to_owned()))
            .collect::<Result<Vec<_>, capnp::Error>>()?;
        // Who demands one stage can have what only that one gives.
        let own = if !least.is_empty() && least == most { &*served.wiring.gives[depth.least] } else { &[] };
        let known = || served.wiring.signature.outputs.iter().chain(own).map(|spec| spec.name.as_str());
        if let Some(unknown) = outputs.iter().find(|name| known().all(|known| known != **name)) {
            let mut known: Vec<&str> = known().collect();
            known.sort_unstable();
            known.dedup();
            let known = known.join(", ");
            return Ok(Err(bad_input(format!("there is no output {:?}; there are {known}", shorten(unknown)))));
        }
        Ok(Ok(Call {
            ladders: Arc::clone(&served.ladders),
            wiring: Arc::clone(&served.wiring),
            budget: Arc::clone(&served.budget),
            rows,
            deadline: Deadline::after(now, left),
            class: if request.get_class_given() {
                class_from_wire(request.get_class()?)
            } else {
                served.ladders.endpoint().class
            },
            depth,
            demanding: !least.is_empty(),
            outputs,
            trace: request.get_trace(),
            shadow,
        }))
    }

    /// How deep rows go whose caller has not said.
    fn depth(&self, now: Instant, served: &Served, rows: usize) -> Depth {
        let ladders = &served.ladders;
        let whole = |ways: &[f64]| {
            let mut wholes = self.shared.wholes.lock().unwrap_or_else(PoisonError::into_inner);
            let whole = wholes.entry(ladders.endpoint().name.clone()).or_default();
            let slots: u32 = self.shared.devices.values().map(|device| device.slots()).sum();
            (0..rows).map(|_| whole.on_arrival(now, ways, f64::from(slots))).min().unwrap_or(0)
        };
        self.shared.triage.depth(&served.wiring.flow, ladders.seconds(), whole)
    }

    /// Takes all rows to their ends; what they have gathered there is taken from the room.
    async fn travel(&self, call: &Call) -> (Trip, Vec<Gathered>, Room) {
        let mut passed = self.deadlines.passed(call.deadline);
        let count = call.rows.len();
        let rows = std::iter::repeat_with(Gathered::default).take(count).collect();
        let mut travel = Travel {
            call,
            trip: Trip::new(&call.wiring.flow, count, call.depth),
            rows,
            mailbox: self.returns.open(),
            unanswered: 0,
            waiting: Vec::new(),
            joins: Joins::default(),
            room: Room::among(&self.shared.held),
            remote: None,
        };
        if let Some(known) = self.hopeless(call) {
            if let Some(first) = call.ladders.endpoint().stages.get(call.depth.from).and_then(|stage| stage.model()) {
                let rows = count as f64 * call.budget.items(call.depth.from);
                self.shared.wanted.add(self.shared.host.clock.now(), first, rows.round() as usize);
            }
            self.miss(call, &known);
            travel.refuse(self.shared.host.clock.now(), Rejection::TooLate);
        }
        self.send_groups(&mut travel);
        while !travel.trip.is_over() {
            let replies = tokio::select! {
                biased;
                // All there are: what a row was asked has ended before it is asked once more.
                replies = travel.mailbox.take() => Some(replies),
                () = &mut passed => None,
            };
            let now = self.shared.host.clock.now();
            match replies {
                Some(replies) => self.on_replies(now, &mut travel, replies),
                None => travel.trip.on_deadline(now),
            }
            self.send_groups(&mut travel);
        }
        if travel.unanswered == 0 {
            travel.waiting.iter_mut().for_each(Handed::all_replied);
        }
        (travel.trip, travel.rows, travel.room)
    }

    /// Whether no answer can be had in time that the caller would take: where several stages have to follow each other for one, all of
    /// them count, so that none runs for nothing. Then, what is known of who could run them, by stage.
    fn hopeless(&self, call: &Call) -> Option<Vec<Vec<Candidate>>> {
        let flow = &call.wiring.flow;
        if flow.is_chain() && call.depth.least <= call.depth.from {
            return None;
        }
        let (now, table, shared) = (self.shared.host.clock.now(), self.shared.table.load(), &self.shared);
        let know = |(stage, model): (usize, Option<&ModelRef>)| {
            let asked = Inquiry {
                rows: call.budget.items(stage).round() as usize,
                ..call.budget.asks(stage, call.class, call.deadline)
            };
            let known = model
                .map(|model| candidates(&table, &shared.devices, &shared.remote_waits, now, model, (asked, None), &[]));
            known.unwrap_or_default()
        };
        let models = call.ladders.endpoint().stages.iter().map(|stage| stage.model());
        let known: Vec<Vec<Candidate>> = models.enumerate().map(know).collect();
        // What a combination takes is nothing beside models; who has no replica is told so.
        let spans: Vec<f64> = known.iter().map(|known| soonest(now, known).unwrap_or(0.0)).collect();
        let answer = now + Duration::from_secs_f64(flow.until_answer(&spans, call.depth.least).min(1e9));
        (call.deadline.missed_by(answer) && !doubted(&mut self.prng.borrow_mut())).then_some(known)
    }

    /// A call is refused before any of it is sent: models that would have run for it hear how much is asked of them, or one that is not in
    /// memory never would be.
    fn miss(&self, call: &Call, known: &[Vec<Candidate>]) {
        let (now, table) = (self.shared.host.clock.now(), self.shared.table.load());
        let (left, stages) = (call.deadline.left(now), &call.ladders.endpoint().stages);
        let most = if call.wiring.flow.is_chain() { call.depth.least + 1 } else { stages.len() };
        let would = stages.iter().zip(known).take(most).skip(call.depth.from);
        let models: BTreeMap<&ModelRef, &Vec<Candidate>> =
            would.filter_map(|(stage, known)| Some((stage.model()?, known))).collect();
        for (model, known) in models {
            let saves = self.saves(&table, now, model, left, known);
            self.shared.missed(known, model, call.rows.len(), left, saves);
        }
    }

    /// Slot time that a row of a model saves by meeting those of other homes.
    fn saves(&self, table: &Table, now: Instant, model: &ModelRef, left: Duration, known: &[Candidate]) -> Duration {
        let elsewhere = table.targets.get(model).and_then(Targets::elsewhere);
        let saves = |profile| self.shared.wanted.saves(now, model, profile, left, spare_here(known));
        elsewhere.map_or(Duration::ZERO, saves)
    }

    /// Where the gate before `stage` stands now.
    fn rungs<'a>(&self, table: &Table, now: Instant, call: &'a Call, stage: usize) -> Rungs<'a> {
        if !call.ladders.weighs() {
            return call.ladders.rungs(0.0);
        }
        let shared = &self.shared;
        let model = call.ladders.endpoint().stages.get(stage).and_then(|stage| stage.model());
        let (devices, waits) = (&shared.devices, &shared.remote_waits);
        let claim = Claim { deadline: call.deadline, class: call.class, tenant: call.ladders.endpoint().tenant() };
        let asked = |model| price(table, devices, waits, now, model, claim);
        let loaded = |model| load(table, devices, waits, now, model, call.deadline);
        shared.triage.rungs(&call.ladders, || model.map_or(0.0, asked), || model.map_or(0.0, loaded))
    }

    /// Takes in what became of stage calls. Where gates weigh, this node's devices hear what was found: it is what is asked of them,
    /// sent or not.
    fn on_replies(&self, now: Instant, travel: &mut Travel<'_>, replies: Vec<(usize, HomeReply)>) {
        let call = travel.call;
        travel.unanswered -= replies.len();
        let table = self.shared.table.load();
        let mut weighed: BTreeMap<usize, (Rungs<'_>, Vec<f64>)> = BTreeMap::new();
        for (slot, reply) in replies {
            let Some((slot, reply)) = travel.joined(slot, reply) else { continue };
            let next = reply.stage + 1;
            if !call.ladders.weighs() {
                travel.on_reply(now, slot, reply, call.ladders.at(0.0, 0.0));
                continue;
            }
            let of_stage = weighed.entry(next);
            let (rungs, values) = of_stage.or_insert_with(|| (self.rungs(&table, now, call, next), Vec::new()));
            // Each row draws for itself: rows of one call that are alike do not all pass or all stop.
            let ladder = rungs.at(self.prng.borrow_mut().uniform());
            values.extend(travel.on_reply(now, slot, reply, ladder));
        }
        for (next, (_, values)) in weighed.into_iter().filter(|(_, (_, values))| !values.is_empty()) {
            self.tell_weighed(&table, now, call, next, &values);
        }
    }

    /// Gates found what running a stage is worth.
    fn tell_weighed(&self, table: &Table, now: Instant, call: &Call, stage: usize, values: &[f64]) {
        let Some(model) = call.ladders.endpoint().stages.get(stage).and_then(|stage| stage.model()) else { return };
        self.shared.wanted.add(now, model, values.iter().filter(|value| **value > 0.0).count());
        let Some(targets) = table.targets.get(model) else { return };
        if let Some(device) = targets.local.iter().filter_map(|name| self.shared.devices.get(name)).next() {
            device.on_weighed(now, model, values, call.ladders.endpoint().tenant());
        } else {
            let seconds = call.ladders.seconds().get(stage).copied().unwrap_or(0.0);
            self.shared.elsewhere.weighed(now, model, seconds, values);
        }
    }

    /// Sends what wants to be sent, and combines what is there.
    fn send_groups<'a>(&'a self, travel: &mut Travel<'a>) {
        let now = self.shared.host.clock.now();
        // Replicas may have moved since the call came; what the endpoint is stays as it was then.
        let table = self.shared.table.load();
        let call = travel.call;
        while let Some(mut group) = travel.trip.next_group() {
            let Some(model) = call.ladders.endpoint().stages[group.stage].model() else {
                let ladder = self.rungs(&table, now, call, group.stage + 1).at(self.prng.borrow_mut().uniform());
                let values = travel.combine(now, &group, &self.shared.name, ladder);
                self.tell_weighed(&table, now, call, group.stage + 1, &values);
                continue;
            };
            let rows = travel.asks(now, &mut group, self.shared.triage, &self.shared.name);
            if rows.is_empty() {
                continue;
            }
            if group.is_new() {
                self.shared.wanted.add(now, model, travel.trip.newly_wanted(&group, rows.len()));
            }
            self.send_group(travel, &table, now, model, group, rows);
        }
    }

    /// Sends a group to where its rows are done first, or to nobody. Where they have answers in hand and cannot all be in time, those go that the
    /// stage adds most to: the others end with what they have.
    fn send_group<'a>(
        &'a self,
        travel: &mut Travel<'a>,
        table: &Table,
        now: Instant,
        model: &ModelRef,
        mut group: Group,
        mut rows: Vec<Submission>,
    ) {
        let (shared, call, stage) = (&self.shared, travel.call, group.stage);
        let draw = Draw::new(&mut self.prng.borrow_mut());
        let look = |of: usize| {
            let firm = rows[0].bid.firm();
            let asked = Inquiry { rows: of, firm, ..call.budget.asks(stage, call.class, call.deadline) };
            let asked = (asked, Some(&rows[0].inputs));
            let known = candidates(table, &shared.devices, &shared.remote_waits, now, model, asked, &group.tried);
            let own = soonest(now, &known).unwrap_or(0.0);
            let deadline = call.budget.deadline(now, stage, call.deadline, own);
            (known, deadline)
        };
        let saves = |known: &[Candidate], deadline: Deadline| self.saves(table, now, model, deadline.left(now), known);
        let choice = |known: &[Candidate], deadline: Deadline, draw: Draw| {
            choose(known, &group.full, now, deadline, saves(known, deadline), draw)
        };
        let adds = |slot: usize| travel.trip.adds(slot, stage);
        // What runs as items goes as a whole.
        let parts = || travel::are_rows(&group, &rows) && adds(group.slots[0]) != Adds::All;
        let part = choose_part(rows.len(), parts, look, choice, draw);
        let (known, deadline) = (part.known, part.deadline);
        let others = (part.rows < rows.len()).then(|| {
            let rest = group.keep(part.rows, |slot| adds(slot).worth());
            let is_kept = |row: &mut Submission| group.slots.binary_search(&row.slot).is_ok();
            let kept: Vec<Submission> = rows.extract_if(.., is_kept).collect();
            (rest, std::mem::replace(&mut rows, kept).len())
        });
        let miss = |travel: &mut Travel<'a>, group: Group, rows: usize, why: Rejection| {
            // Who was asked before has counted them.
            if group.is_new() {
                shared.missed(&known, model, rows, deadline.left(now), saves(&known, deadline));
            }
            travel.on_no_choice(now, &group, why);
        };
        rows.iter_mut().for_each(|row| row.deadline = deadline);
        let (target, by) = match part.choice {
            Choice::None(why) => {
                for (group, rows) in std::iter::once((group, rows.len())).chain(others) {
                    miss(travel, group, rows, why);
                }
                return;
            }
            Choice::To(target) => (target, None),
            Choice::Asking(target, by) => (target, Some(by)),
        };
        travel.trip.on_sent(&group, &target);
        travel.note_sent(now, &group, &target, &shared.name);
        travel.unanswered += rows.len();
        let sink = Sink { replies: travel.mailbox.sender(), stage };
        match target {
            Target::Local(device) => {
                let device = &shared.devices[&device];
                travel.waiting.push(self.submit(device, model, rows, sink));
            }
            Target::Remote(node) => {
                let there = table.targets.get(model).and_then(|targets| targets.at(&node));
                let row = there.map_or(0.0, Profile::row_seconds);
                shared.remote_waits.sent(now, &node, model, Duration::from_secs_f64(row * rows.len() as f64));
                let wanted = (model.clone(), call.ladders.endpoint().name.clone(), by);
                let forwarded = self.forward(table, node, wanted, rows, sink);
                drop(travel.remote.get_or_insert_default().spawn_local(forwarded));
            }
        }
        if let Some((group, rows)) = others {
            miss(travel, group, rows, Rejection::TooLate);
        }
    }

    fn submit(&self, device: &Arc<Device>, model: &ModelRef, rows: Vec<Submission>, sink: Sink) -> Handed {
        let node = self.shared.name.clone();
        let replies: Replies = Arc::new(move |slot, reply| sink.send(slot, node.clone(), reply));
        self.shared.devices.memory.submit(device, model, rows, &replies)
    }

    /// Runs rows on another node: of a model, for an endpoint, and by when, where that matters.
    fn forward(
        &self,
        table: &Table,
        node: NodeName,
        (model, endpoint, by): (ModelRef, EndpointName, Option<Instant>),
        rows: Vec<Submission>,
        sink: Sink,
    ) -> impl Future<Output = ()> + use<> {
        let (peers, shared) = (self.peers.clone(), Arc::clone(&self.shared));
        let address = table.addresses.get(&node).cloned();
        let epoch = table.epoch;
        async move {
            let slots: Vec<usize> = rows.iter().map(|row| row.slot).collect();
            let answered = match address {
                Some(address) => {
                    peers
                        .run(&shared, &node, &address, Asking { model: &model, endpoint: &endpoint, epoch, by }, rows)
                        .await
                }
                None => Err(()),
            };
            match answered {
                Ok(answers) => {
                    for (slot, reply) in slots.into_iter().zip(answers) {
                        sink.send(slot, node.clone(), reply);
                    }
                }
                Err(()) => slots.into_iter().for_each(|slot| sink.send(slot, node.clone(), StageReply::Lost)),
            }
        }
    }
}

/// A reply with where it came from.
struct HomeReply {
    stage: usize,
    node: NodeName,
    reply: StageReply,
}

/// Where the replies to one group of rows go.
#[derive(Clone)]
struct Sink {
    replies: Sender<(usize, HomeReply)>,
    stage: usize,
}

impl Sink {
    fn send(&self, slot: usize, node: NodeName, reply: StageReply) {
        self.replies.send((slot, HomeReply { stage: self.stage, node, reply }));
    }
}

/// The depth between two stages that a caller names; empty for none.
fn depth(served: &Served, least: &str, most: &str) -> Result<Depth, Refused> {
    let endpoint = served.ladders.endpoint();
    let number = |name: &str| {
        endpoint.stages.iter().position(|stage| stage.name.as_str() == name).ok_or_else(|| {
            let known = endpoint.stages.iter().map(|stage| stage.name.as_str()).collect::<Vec<_>>().join(", ");
            bad_input(format!("there is no stage {:?}; there are {known}", shorten(name)))
        })
    };
    let least = if least.is_empty() { Depth::ANY.least } else { number(least)? };
    let most = if most.is_empty() { Depth::ANY.most } else { number(most)? };
    if least > most {
        return Err(bad_input("the least stage that may answer is deeper than the last that may be asked"));
    }
    let depth = Depth { least, most, ..Depth::ANY };
    // What is wired can answer to those who say nothing.
    if depth == Depth::ANY || depth.can_answer(&served.wiring.flow) {
        return Ok(depth);
    }
    let answers = served.wiring.flow.answers();
    let known = endpoint.stages.iter().enumerate().filter(|(stage, _)| answers & (1 << stage) != 0);
    let known = known.map(|(_, stage)| stage.name.as_str()).collect::<Vec<_>>().join(", ");
    Err(bad_input(format!("no stage can answer that goes so deep and no deeper; those that can answer are {known}")))
}

/// Rows of a call, checked against the signature. The tensors are copied out of the message once, whole.
fn rows(views: &[TensorView<'_>], specs: &[TensorSpec], whole: bool) -> Result<Vec<Row>, Refused> {
    let mut tensors = Vec::with_capacity(specs.len());
    for spec in specs {
        let mut named = views
            .iter()
            .filter(|view| view.name == spec.name || (view.name.is_empty() && specs.len() == 1 && views.len() == 1));
        let Some(view) = named.next() else {
            let got = views.iter().map(|view| format!("{:?}", shorten(view.name))).collect::<Vec<_>>().join(", ");
            return Err(bad_input(format!("input {:?} is missing; got {got}", spec.name)));
        };
        if named.next().is_some() {
            return Err(bad_input(format!("input {:?} was given twice", spec.name)));
        }
        let got = || format!("{}{:?}", view.dtype, view.shape);
        if !whole && spec.shape.is_empty() {
            return Err(bad_input(format!("input {:?} is one value, not rows; ask with --whole", spec.name)));
        }
        let accepts = if whole { TensorSpec::accepts } else { TensorSpec::accepts_rows };
        if !accepts(spec, view.dtype, &view.shape) {
            let mut wanted = spec.clone();
            // Of rows, how many there are is the caller's affair.
            wanted.shape.first_mut().filter(|_| !whole).into_iter().for_each(|first| *first = None);
            return Err(bad_input(format!("expected {wanted}, got {}", got())));
        }
        tensors.push(view.to_tensor());
    }
    if let Some(unknown) =
        views.iter().find(|view| !view.name.is_empty() && !specs.iter().any(|spec| spec.name == view.name))
    {
        let known = specs.iter().map(|spec| format!("{:?}", spec.name)).collect::<Vec<_>>().join(", ");
        return Err(bad_input(format!("there is no input {:?}; there are {known}", shorten(unknown.name))));
    }
    if whole {
        return Ok(vec![Row { tensors: Arc::new(tensors), row: None }]);
    }
    let count = tensors[0].shape[0];
    if let Some(other) = tensors.iter().position(|tensor| tensor.shape[0] != count) {
        return Err(bad_input(format!(
            "input {:?} has {} rows, and input {:?} has {count}",
            specs[other].name, tensors[other].shape[0], specs[0].name
        )));
    }
    if count == 0 || count > ROWS_MAX {
        return Err(bad_input(format!("a call has from 1 to {ROWS_MAX} rows; this one has {count}")));
    }
    let tensors = Arc::new(tensors);
    Ok((0..count as usize).map(|row| Row { tensors: Arc::clone(&tensors), row: Some(row) }).collect())
}

/// What a stranger named, short enough to repeat.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
