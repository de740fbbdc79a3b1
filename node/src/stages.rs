//! Stage calls between nodes: both sides.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use weir_core::ids::{EndpointName, Epoch, ModelRef, NodeName};
use weir_core::outcome::{Class, Outcome, Rejection};
use weir_core::router::{Estimate, Told, has_room};
use weir_core::scheduler::Inquiry;
use weir_core::tensor::{Row, Tensor};
use weir_core::triage::{Bid, Claim, Price, Tenant};
use weir_core::units::{Deadline, Instant};
use weir_host::Host;
use weir_host::dial::{DialError, Entered, Role, enter};
use weir_host::limits::Limits;
use weir_host::lines::{Line, Lines};
use weir_host::login::Token;
use weir_schema::convert::predict::{
    batch_from_wire, batch_to_wire, class_from_wire, class_to_wire, outcome_from_wire, outcome_to_wire, span_from_us,
    span_to_us,
};
use weir_schema::convert::tensor::{read_tensor, write_rows};
use weir_schema::predict_capnp::{Purpose, stage_request, stage_response, stages};

use crate::Shared;
use crate::actors::device::{Device, Replies, StageReply, Submission};
use crate::memory::Memory;

/// This thread's connections to other nodes.
#[derive(Clone)]
pub struct Peers(Rc<Inner>);

struct Inner {
    host: Host,
    token: Token,
    lines: Lines<ToNode>,
}

/// The way to one node.
#[derive(Clone)]
struct ToNode {
    entered: Entered,
    stages: stages::Client,
}

/// What rows are sent for.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    pub model: &'a ModelRef,
    pub endpoint: &'a EndpointName,
    /// Of the plan that the home routes by.
    pub epoch: Epoch,
    /// Not wanted where they would not be done by then.
    pub by: Option<Instant>,
}

impl Line for ToNode {
    fn is_spent(&self) -> bool {
        self.entered.is_spent()
    }
}

impl Peers {
    /// No connections yet.
    pub fn new(host: Host, token: Token) -> Peers {
        Peers(Rc::new(Inner { host, token, lines: Lines::default() }))
    }

    /// Runs rows on another node: one reply for each, or an error where the connection broke.
    pub async fn run(
        &self,
        shared: &Shared,
        node: &NodeName,
        address: &str,
        Asking { model, endpoint, epoch, by }: Asking<'_>,
        rows: Vec<Submission>,
    ) -> Result<Vec<StageReply>, ()> {
        let line =
            self.connect(node, address).await.map_err(|error| tracing::debug!(%node, %error, "cannot reach a node"))?;
        let mut replies = Vec::with_capacity(rows.len());
        // Rows that do not stack go by themselves.
        for group in groups(rows, |row| &row.inputs) {
            let mut call = line.stages.run_request();
            let now = shared.host.clock.now();
            let mut b = call.get().init_request();
            b.set_model(model.to_string());
            b.set_epoch(epoch.0);
            b.set_class(class_to_wire(group[0].class));
            b.set_whole(group[0].inputs.row.is_none());
            let mut left = b.reborrow().init_deadline_left_us(group.len() as u32);
            for (i, row) in group.iter().enumerate() {
                left.set(i as u32, span_to_us(row.deadline.left(now)));
            }
            b.set_endpoint(endpoint.as_str());
            b.set_first(group[0].bid.first);
            b.set_by_us(by.map_or(0, |by| span_to_us(by.since(now)).max(1)));
            let missed = shared.remote_waits.take_missed(node, model);
            b.set_missed(missed.rows.min(u32::MAX as usize) as u32);
            b.set_missed_left_us(span_to_us(missed.left));
            let mut values = b.reborrow().init_values(group.len() as u32);
            for (i, row) in group.iter().enumerate() {
                values.set(i as u32, row.bid.gain.unwrap_or(-row.bid.worth));
            }
            let rows: Vec<Row> = group.iter().map(|row| row.inputs.clone()).collect();
            write_rows(b.init_inputs(rows[0].tensors.len() as u32), &[], &rows);
            let answer =
                call.send().promise.await.map_err(|error| tracing::debug!(%node, %error, "a stage call broke"))?;
            let response = answer.get().and_then(|r| r.get_response());
            let read = response.map_err(|e| e.to_string()).and_then(|r| read_response(r).map_err(|e| e.to_string()));
            let (told, mut group_replies) =
                read.map_err(|error| tracing::warn!(%node, error, "a node answers nonsense"))?;
            shared.remote_waits.tell(node, model, Told { at: shared.host.clock.now(), ..told });
            if group_replies.len() != group.len() {
                return Err(());
            }
            replies.append(&mut group_replies);
        }
        Ok(replies)
    }

    async fn connect(&self, node: &NodeName, address: &str) -> Result<ToNode, DialError> {
        let dial = || {
            let (peers, address) = (self.clone(), address.to_owned());
            async move {
                let Inner { host, token, .. } = &*peers.0;
                let entered = enter(host, &address, token, Purpose::Member, &Limits::members()).await?;
                match entered.role() {
                    Role::Stages(stages) => Ok(ToNode { stages: stages.clone(), entered }),
                    _ => Err(DialError::Refused { address, message: "the token does not make a member".into() }),
                }
            }
        };
        self.0.lines.get(node, address, dial).await
    }
}

/// Rows that stack, together; others alone.
fn groups<T>(rows: Vec<T>, of: impl Fn(&T) -> &Row) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    for row in rows {
        match groups.last_mut() {
            Some(group) if of(&group[0]).merges_with(of(&row)) => group.push(row),
            _ => groups.push(vec![row]),
        }
    }
    groups
}

fn read_response(
    response: stage_response::Reader<'_>,
) -> Result<(Told, Vec<StageReply>), weir_schema::convert::BadMessage> {
    let bad = |what: &str| weir_schema::convert::BadMessage::new(what);
    let mut blocks = Vec::new();
    for block in response.get_outputs()? {
        let tensors = block.get_tensors()?.iter().map(|r| read_tensor(r).map(|view| view.to_tensor()));
        blocks.push(Arc::new(tensors.collect::<Result<Vec<Tensor>, _>>()?));
    }
    let mut replies = Vec::new();
    let full = response.get_full();
    for answer in response.get_rows()? {
        if full {
            replies.push(StageReply::Full);
            continue;
        }
        let outcome = outcome_from_wire(answer.get_outcome(), answer.get_rejection());
        replies.push(match outcome {
            Outcome::Answered => {
                let tensors =
                    blocks.get(answer.get_block() as usize).ok_or_else(|| bad("an answer without its outputs"))?;
                let row = usize::try_from(answer.get_row()).ok();
                let exists = |row: usize| {
                    tensors.iter().all(|tensor| tensor.shape.first().is_some_and(|rows| (row as u64) < *rows))
                };
                if row.is_some_and(|row| !exists(row)) {
                    return Err(bad("an answer without its row"));
                }
                StageReply::Answered {
                    outputs: Row { tensors: Arc::clone(tensors), row },
                    queue: span_from_us(answer.get_queue_us())?,
                    execute: span_from_us(answer.get_execute_us())?,
                    batch: batch_from_wire(answer.get_batch_rows(), answer.get_closed()),
                }
            }
            Outcome::Rejected(why) => StageReply::Rejected(why),
            Outcome::Expired => StageReply::Expired,
            Outcome::Failed => StageReply::Failed(answer.get_message()?.to_str()?.to_owned()),
            Outcome::Unknown => StageReply::Lost,
        });
    }
    let (wait, yields) = (span_from_us(response.get_queue_ahead_us())?, span_from_us(response.get_yields_us())?);
    let number = |told: f64| if told.is_finite() { told } else { 0.0 };
    let price = Price { clears: number(response.get_price()), floor: number(response.get_floor()) };
    // Who is full tells how long a guest would wait.
    let full = if full { wait } else { Duration::ZERO };
    Ok((Told { wait, yields, price, full, at: Instant::ZERO, silent: None }, replies))
}

/// What this node offers other nodes.
pub struct StagesObject {
    pub shared: Arc<Shared>,
}

impl stages::Server for StagesObject {
    async fn run(
        self: Rc<Self>,
        params: stages::RunParams,
        mut results: stages::RunResults,
    ) -> Result<(), capnp::Error> {
        let failed = |bad: weir_schema::convert::BadMessage| capnp::Error::failed(bad.to_string());
        let request = params.get()?.get_request()?;
        let (endpoint, first) = (request.get_endpoint()?.to_str()?, request.get_first());
        let by = span_from_us(request.get_by_us()).map_err(failed)?;
        let missed = (request.get_missed() as usize, span_from_us(request.get_missed_left_us()).map_err(failed)?);
        let (model, rows, deadlines, values, class) = read_request(request).map_err(failed)?;
        let _in_flight = self.shared.in_flight();
        let now = self.shared.host.clock.now();
        let table = self.shared.table.load_full();
        let devices = &self.shared.devices;
        let memory = &devices.memory;
        if missed.0 > 0 {
            memory.on_missed(&model, missed.0, missed.1);
        }
        // Who asks is looked up here: no caller says what it may take.
        let served = table.endpoints.iter().find(|(name, _)| name.as_str() == endpoint);
        let tenant = served.map_or(Tenant::NOBODY, |(_, served)| served.ladders.endpoint().tenant());
        let targets = table.targets.get(&model);
        // What is told holds for rows that come as these came, with as much time.
        let longest = deadlines.iter().max().copied().unwrap_or_default();
        let local = targets.into_iter().flat_map(|targets| &targets.local);
        let best = local
            .filter_map(|name| {
                let device = devices.get(name)?;
                let asked = Inquiry { rows: rows.len(), ..Inquiry::of(class, Deadline::after(now, longest)) };
                Some((devices.estimate_finish(device, now, &model, asked, rows.first())?, device))
            })
            .min_by_key(|(estimate, _)| estimate.finish);
        let mut replies: Vec<StageReply> =
            (0..rows.len()).map(|_| StageReply::Rejected(Rejection::NoReplica)).collect();
        let mut ahead = Told::nothing(now, Price::NOTHING);
        // What gives way to the next row of this home is what gives way to these.
        let firm = values.first().copied().filter(|value| *value < 0.0).map(|value| -value);
        let claim = |now: Instant| Claim { deadline: Deadline::after(now, longest), class, tenant };
        let order = targets.map_or(0, |targets| targets.here);
        let is_full = |estimate: &Estimate| !by.is_zero() && !has_room(now, now + by, longest, order, estimate);
        if let Some((estimate, device)) = best.as_ref().filter(|(estimate, _)| is_full(estimate)) {
            // The home goes on to the next at once, and knows how long the wait is here.
            ahead = told(device, memory, &model, claim(now), firm, now).full(now, estimate);
            memory.on_missed(&model, rows.len(), by);
            replies.fill_with(|| StageReply::Full);
        } else if let Some((_, device)) = best {
            let (sender, mut receiver) = mpsc::unbounded_channel();
            let sink: Replies = Arc::new(move |slot, reply| drop(sender.send((slot, reply))));
            let submissions = rows.into_iter().zip(deadlines).zip(values).enumerate();
            let submissions: Vec<_> = submissions
                .map(|(slot, ((inputs, left), value))| {
                    let deadline = Deadline::after(now, left);
                    let (gain, worth) = if value < 0.0 { (None, -value) } else { (Some(value), 1.0) };
                    Submission { slot, inputs, deadline, class, bid: Bid { gain, worth, tenant, first } }
                })
                .collect();
            let count = submissions.len();
            let _waiting = memory.submit(device, &model, submissions, &sink);
            drop(sink);
            for _ in 0..count {
                // The device replies to each row, in time or not: its timer sees to that.
                let Some((slot, reply)) = receiver.recv().await else { break };
                replies[slot] = reply;
            }
            let now = self.shared.host.clock.now();
            ahead = told(device, memory, &model, claim(now), firm, now);
        }
        write_response(results.get().init_response(), &ahead, &replies);
        Ok(())
    }
}

/// What is told of a device, with the load of a model that is not in memory.
fn told(device: &Device, memory: &Memory, model: &ModelRef, claim: Claim, firm: Option<f64>, now: Instant) -> Told {
    let told = device.told(now, model, claim, firm);
    let asked = Inquiry { firm, ..Inquiry::of(claim.class, claim.deadline) };
    let load = memory.wait(now, model, device, asked).unwrap_or_default();
    Told { wait: told.wait.max(load), ..told }
}

/// With a number for each row: what it gains, or, negated, what an answer to it is worth.
type StageCall = (ModelRef, Vec<Row>, Vec<Duration>, Vec<f64>, Class);

fn read_request(request: stage_request::Reader<'_>) -> Result<StageCall, weir_schema::convert::BadMessage> {
    let bad = |what: &str| weir_schema::convert::BadMessage::new(what);
    let model = ModelRef::parse(request.get_model()?.to_str()?)?;
    let tensors = request.get_inputs()?.iter().map(|r| read_tensor(r).map(|view| view.to_tensor()));
    let tensors = Arc::new(tensors.collect::<Result<Vec<_>, _>>()?);
    let deadlines = request.get_deadline_left_us()?.iter().map(span_from_us).collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<Row> = if request.get_whole() {
        vec![Row { tensors, row: None }]
    } else {
        let first =
            tensors.first().and_then(|tensor| tensor.shape.first().copied()).ok_or_else(|| bad("rows without rows"))?;
        if tensors.iter().any(|tensor| tensor.shape.first() != Some(&first)) {
            return Err(bad("inputs with different numbers of rows"));
        }
        if first != deadlines.len() as u64 {
            return Err(bad("not one deadline for each row"));
        }
        (0..deadlines.len()).map(|row| Row { tensors: Arc::clone(&tensors), row: Some(row) }).collect()
    };
    if rows.len() != deadlines.len() {
        return Err(bad("not one deadline for the query"));
    }
    // Whoever knows nothing of values sends none.
    let known = |value: f64| if value.is_finite() { value } else { -Bid::PLAIN.worth };
    let mut values: Vec<f64> = request.get_values()?.iter().map(known).collect();
    values.resize(rows.len(), -Bid::PLAIN.worth);
    Ok((model, rows, deadlines, values, class_from_wire(request.get_class()?)))
}

fn write_response(mut b: stage_response::Builder<'_>, ahead: &Told, replies: &[StageReply]) {
    b.set_queue_ahead_us(span_to_us(ahead.wait));
    b.set_yields_us(span_to_us(ahead.yields));
    b.set_price(ahead.price.clears);
    b.set_floor(ahead.price.floor);
    b.set_full(replies.iter().all(|reply| matches!(reply, StageReply::Full)));
    let answered = replies.iter().enumerate().filter_map(|(slot, reply)| match reply {
        StageReply::Answered { outputs, .. } => Some((slot, outputs.clone())),
        _ => None,
    });
    let (slots, outputs): (Vec<usize>, Vec<Row>) = answered.unzip();
    let blocks = groups(outputs, |row| row);
    let mut place = BTreeMap::new();
    let mut slots = slots.into_iter();
    let mut list = b.reborrow().init_outputs(blocks.len() as u32);
    for (number, block) in blocks.iter().enumerate() {
        write_rows(list.reborrow().get(number as u32).init_tensors(block[0].tensors.len() as u32), &[], block);
        for (row, output) in block.iter().enumerate() {
            let slot = slots.next().expect("a slot for each output");
            place.insert(slot, (number as u32, if output.row.is_some() { row as i64 } else { -1 }));
        }
    }
    let mut rows = b.init_rows(replies.len() as u32);
    for (slot, reply) in replies.iter().enumerate() {
        let mut b = rows.reborrow().get(slot as u32);
        let (outcome, message) = match reply {
            StageReply::Answered { queue, execute, batch, .. } => {
                let (block, row) = place[&slot];
                b.set_block(block);
                b.set_row(row);
                b.set_queue_us(span_to_us(*queue));
                b.set_execute_us(span_to_us(*execute));
                let (rows, closed) = batch_to_wire(*batch);
                b.set_batch_rows(rows);
                b.set_closed(closed);
                (Outcome::Answered, "")
            }
            StageReply::Rejected(why) => (Outcome::Rejected(*why), ""),
            // Whoever does not know of it asks elsewhere.
            StageReply::Full => (Outcome::Rejected(Rejection::QueueFull), ""),
            StageReply::Expired => (Outcome::Expired, ""),
            StageReply::Failed(message) => (Outcome::Failed, message.as_str()),
            StageReply::Lost => (Outcome::Unknown, ""),
        };
        let (code, why) = outcome_to_wire(outcome);
        b.set_outcome(code);
        b.set_rejection(why);
        b.set_message(message);
    }
}
