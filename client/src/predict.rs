//! Predictions: picks a node, carries the time left, retries what may be retried, and reports one outcome a row.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use weir_core::call::{Balancer, ROWS_MAX, Way};
use weir_core::history::{Statistics, Told};
use weir_core::ids::{EndpointName, NodeName, QueryId, StageName};
use weir_core::outcome::{Class, Outcome, Rejection};
use weir_core::prng::Prng;
use weir_core::tensor::{Tensor, TensorSpec};
use weir_core::units::{Deadline, Instant};
use weir_host::Host;
use weir_host::dial::remote_text;
use weir_host::login::{Authority, Token};
use weir_schema::convert::history::read_told;
use weir_schema::convert::predict::{
    class_to_wire, halves, outcome_from_wire, read_statistics, span_from_us, span_to_us,
};
use weir_schema::convert::tensor::{read_specs, read_tensor, write_tensor};
use weir_schema::predict_capnp::{answer, predict_request, predict_response, predictor};

use crate::ClientError;
use crate::nodes::{Directory, Links};

/// How a client reaches its cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port` of some coordinators.
    pub coordinators: Vec<String>,
    /// What lets it in.
    pub token: Token,
}

/// One call: rows, each a query of its own, or arrays that are one query as they are.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked.
    pub endpoint: EndpointName,
    /// By name; the name may be empty where the endpoint takes one input. The first dimension is the rows unless `whole`.
    pub inputs: Vec<(String, Tensor)>,
    /// The arrays as they are are one query.
    pub whole: bool,
    /// From now; the endpoint's own where absent.
    pub deadline: Option<Duration>,
    /// The endpoint's own where absent.
    pub class: Option<Class>,
    /// Which outputs to send back; all that the stages share where empty. Who demands one stage, as the shallowest and the deepest, can
    /// have what only that one gives.
    pub outputs: Vec<String>,
    /// No shallower stage may answer: then rather none does. Any may where absent.
    pub min_stage: Option<StageName>,
    /// No deeper stage is asked. All may be where absent.
    pub max_stage: Option<StageName>,
    /// Answers tell how they came about.
    pub trace: bool,
}

/// What became of one row.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Of this query.
    pub id: QueryId,
    /// How it ended.
    pub outcome: Outcome,
    /// What went wrong and what to do; empty where a stage answered.
    pub message: String,
    /// By name, without the first dimension where rows were asked.
    pub outputs: Vec<(String, Tensor)>,
    /// `name@version` that answered.
    pub model: String,
    /// Stage that answered.
    pub stage: String,
    /// A deeper stage was wanted, and could not be had or was too dear for what it gains.
    pub degraded: bool,
    /// Where that model ran.
    pub node: String,
    /// Of a second of slot time, in units of value: the highest that a gate met. 0 where nothing was dear.
    pub price: f64,
    /// What the next stage was expected to gain, in units of value, where that was worth running and did not: what load has cost.
    pub expected_loss: f64,
    /// How likely the answer is to be right, by calibration; `None` where that is not known.
    pub expected_right: Option<f64>,
    /// Where the time went.
    pub timings: Timings,
    /// How it came about, where that was asked for and the query got as far as a home node.
    pub trace: Option<Box<Told>>,
}

/// Where the time of a query went, as its home node saw it.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Timings {
    pub total: Duration,
    pub queue: Duration,
    pub execute: Duration,
}

/// What an endpoint takes and gives.
#[derive(Clone, Debug)]
pub struct EndpointInfo {
    /// Inputs, the first dimension included.
    pub inputs: Vec<TensorSpec>,
    /// Outputs, the first dimension included.
    pub outputs: Vec<TensorSpec>,
    /// The output whose arg-max is the answer.
    pub label_output: Option<String>,
    /// For a query that brings none.
    pub deadline: Duration,
    /// Why no query could be answered now, as far as the node knows that was asked.
    pub unready: Option<String>,
}

/// Longest that a call without a deadline of its own is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// For a question to a node that has no deadline.
const ASKED_WITHIN: Duration = Duration::from_secs(2);
/// Where any node can tell, how long one is waited for before the next is asked too. Nodes tell what they know within a millisecond, so this
/// is rarely reached; and a deadline of 50 ms outlives a node that hangs.
const NEXT_ASKED_AFTER: Duration = Duration::from_millis(20);
/// How long after its deadline a call is given up: the node answers at the deadline, and that answer is on its way.
const GRACE: Duration = Duration::from_millis(250);

/// Why a call was refused on this side.
pub const HELD_BACK: &str = "too many calls to its node are in flight for it to be answered before its deadline; ask for less, allow more \
                             time, or add replicas";

/// A client that lives on one thread, inside a `LocalSet`.
#[derive(Clone)]
pub struct LocalClient(Rc<Inner>);

struct Inner {
    host: Host,
    token: Token,
    directory: Rc<Directory>,
    links: Links,
    balancer: RefCell<Balancer>,
    /// To all nodes: they stand in one network.
    way: Cell<Way>,
    grace: Cell<Duration>,
    holds_back: Cell<bool>,
    prng: RefCell<Prng>,
}

/// How one attempt ended.
enum Attempt {
    Answers(Vec<Answer>),
    /// All rows ended so.
    All(Outcome, String),
    /// There is no connection to that node: nothing was asked of it.
    NotSent(String),
    /// All rows ended so on this side, which says nothing of the node.
    Here(Outcome, String),
}

/// A call that the balancer counts as in flight: until it is told an outcome, or that there is none.
struct InFlight<'a> {
    inner: &'a Inner,
    node: &'a NodeName,
    told: bool,
}

impl<'a> InFlight<'a> {
    fn sent(inner: &'a Inner, node: &'a NodeName, attempt: u32) -> InFlight<'a> {
        inner.balancer.borrow_mut().on_sent(node, attempt);
        InFlight { inner, node, told: false }
    }

    fn ended(mut self, outcome: Outcome, since: Instant) {
        self.told = true;
        let now = self.inner.host.clock.now();
        if self.inner.balancer.borrow_mut().on_outcome(now, self.node, outcome, now.since(since)) {
            // What probes it later dials anew: this connection may be dead without a word.
            self.inner.links.forget(self.node);
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.inner.balancer.borrow_mut().on_dropped(self.node);
        }
    }
}

impl LocalClient {
    /// Finds the nodes through the coordinators, and keeps up with them.
    pub async fn connect(host: Host, options: Options) -> Result<LocalClient, ClientError> {
        let directory = Directory::open(host.clone(), options.token.clone(), options.coordinators).await?;
        let prng = RefCell::new(Prng::new(host.random.u64()));
        let inner = Rc::new(Inner {
            host,
            token: options.token,
            directory: Rc::clone(&directory),
            links: Links::default(),
            balancer: RefCell::new(Balancer::new()),
            way: Cell::default(),
            grace: Cell::new(GRACE),
            holds_back: Cell::new(true),
            prng,
        });
        inner.balancer.borrow_mut().set_nodes(directory.names());
        let weak = Rc::downgrade(&inner);
        let names = Rc::clone(&directory);
        let following = directory.follow(move || {
            if let Some(inner) = weak.upgrade() {
                inner.balancer.borrow_mut().set_nodes(names.names());
            }
        });
        let alive = Rc::downgrade(&inner);
        tokio::task::spawn_local(async move {
            let gone = async {
                while alive.strong_count() > 0 {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            };
            tokio::select! {
                biased;
                () = following => {}
                () = gone => {}
            }
        });
        Ok(LocalClient(inner))
    }

    /// Asks. There is one answer a row (one in all for a whole query, and for a call of more rows than one may have), whatever happens.
    pub async fn predict(&self, request: &Request) -> Vec<Answer> {
        let inner = &self.0;
        let id = QueryId(inner.host.random.u128());
        let rows = rows_of(request);
        if rows > ROWS_MAX {
            // Rows without data are as many as a shape says: nothing may be made for each of them.
            let why = format!("a call has at most {ROWS_MAX} rows; this one has {rows}; send fewer rows at once");
            return vec![blank(id, Outcome::Rejected(Rejection::BadInput), &why)];
        }
        let started = inner.host.clock.now();
        let deadline = Deadline::after(started, request.deadline.unwrap_or(PATIENCE));
        let mut tried: Vec<NodeName> = Vec::new();
        let mut attempt = 1;
        let mut may_have_run = false;
        loop {
            let hosts = inner.directory.hosts(&request.endpoint);
            let now = inner.host.clock.now();
            let node = inner.balancer.borrow_mut().pick(now, &mut inner.prng.borrow_mut(), &hosts, &tried);
            let (outcome, ended) = match &node {
                Some(node) => self.attempt(node, request, id, deadline, attempt).await,
                None => (
                    Outcome::Rejected(Rejection::NoReplica),
                    Attempt::All(
                        Outcome::Rejected(Rejection::NoReplica),
                        "the cluster has no node; start one with `weir node`".into(),
                    ),
                ),
            };
            may_have_run |= outcome == Outcome::Unknown;
            let left = deadline.left(inner.host.clock.now());
            if let (Attempt::NotSent(_), Some(node)) = (&ended, &node)
                && tried.len() + 1 < inner.directory.names().len()
                && !left.is_zero()
            {
                // Looking for a node that is there costs the cluster nothing, and no retry.
                tried.push(node.clone());
                continue;
            }
            let again = inner.balancer.borrow_mut().may_retry(attempt, outcome, left, &mut inner.prng.borrow_mut());
            match again {
                Some(wait) => {
                    tried.extend(node);
                    attempt += 1;
                    tokio::time::sleep(wait).await;
                }
                None => {
                    let mut answers = match ended {
                        Attempt::Answers(answers) => answers,
                        Attempt::NotSent(message) | Attempt::All(_, message) | Attempt::Here(_, message) => {
                            (0..rows).map(|row| blank(id.row(row), outcome, &message)).collect()
                        }
                    };
                    if may_have_run {
                        answers.iter_mut().for_each(may_have_run_before);
                    }
                    return answers;
                }
            }
        }
    }

    /// Whether a call with this deadline that is not critical would be sent if it came now: where it would be late behind those that wait for each
    /// node, [`LocalClient::predict`] refuses it, and there is no need to make it ready.
    pub fn has_time_for(&self, deadline: Duration) -> bool {
        let inner = &self.0;
        let now = inner.host.clock.now();
        !inner.holds_back.get() || inner.directory.any(|node| inner.links.has_time_for(now, node, deadline))
    }

    /// Waits so long after their deadlines for calls that are made from now on, instead of a quarter of a second: for who wants to
    /// know how late an answer is.
    pub fn wait_after_deadline(&self, grace: Duration) {
        self.0.grace.set(grace);
    }

    /// From now on sends also what by all appearances would be late behind the calls that wait for a connection, instead of refusing it here:
    /// for who wants to know what nodes do with it.
    pub fn never_hold_back(&self) {
        self.0.holds_back.set(false);
    }

    /// Asks over several connections to each node, at most as many: one carries as many calls at once as its node reads of it, so that
    /// who asks for many others, as a gateway does, needs more.
    pub fn allow_connections(&self, each: usize) {
        self.0.links.allow(each);
    }

    /// This node has a part on this thread, whose `door` is entered instead of a connection; where it does not do badly, it is asked before others.
    pub fn stand_beside(&self, node: NodeName, door: Rc<dyn Authority>) {
        self.0.links.stand_beside(node.clone(), door);
        self.0.balancer.borrow_mut().prefer(node);
    }

    /// One attempt at one node; the outcome is that of the call as far as another attempt goes.
    async fn attempt(
        &self,
        node: &NodeName,
        request: &Request,
        id: QueryId,
        deadline: Deadline,
        attempt: u32,
    ) -> (Outcome, Attempt) {
        let inner = &self.0;
        let sent = inner.host.clock.now();
        let in_flight = InFlight::sent(inner, node, attempt);
        let waited = deadline.left(sent) + inner.grace.get();
        let ended = match tokio::time::timeout(waited, self.call(node, request, id, deadline, sent)).await {
            Ok(ended) => ended,
            Err(_) => Attempt::All(Outcome::Unknown, format!("{node} did not answer in time; it may have run")),
        };
        let outcome = match &ended {
            Attempt::All(outcome, _) | Attempt::Here(outcome, _) => *outcome,
            Attempt::NotSent(_) => Outcome::Rejected(Rejection::NoReplica),
            Attempt::Answers(answers) => {
                // Another attempt at the whole call only where nothing of it ran.
                let first = answers.first().map_or(Outcome::Failed, |answer| answer.outcome);
                let rejected = |answer: &Answer| matches!(answer.outcome, Outcome::Rejected(_));
                if answers.iter().all(rejected) {
                    first
                } else {
                    answers.iter().find(|a| !rejected(a)).map_or(first, |a| a.outcome)
                }
            }
        };
        if !matches!(ended, Attempt::Here(..)) {
            in_flight.ended(outcome, sent);
        }
        (outcome, ended)
    }

    async fn call(
        &self,
        node: &NodeName,
        request: &Request,
        id: QueryId,
        deadline: Deadline,
        started: Instant,
    ) -> Attempt {
        let inner = &self.0;
        let not_sent = Attempt::NotSent;
        let Some(address) = inner.directory.address(node) else { return not_sent(format!("{node} left the cluster")) };
        // A dial may take half of the time that is left: nothing has been sent yet, and another node may be there.
        let patience = deadline.left(started) / 2;
        let link =
            match tokio::time::timeout(patience, inner.links.get(&inner.host, &inner.token, node, &address)).await {
                Ok(Ok(link)) => link,
                Ok(Err(error)) if error.may_pass() => return not_sent(error.to_string()),
                Ok(Err(refused)) => return Attempt::Here(Outcome::Rejected(Rejection::Forbidden), refused.to_string()),
                Err(_) => return not_sent(format!("there is no connection to {node} yet")),
            };
        let (bytes, limit) = (message_bytes(request), link.message_bytes());
        if bytes > limit {
            return Attempt::Here(
                Outcome::Rejected(Rejection::BadInput),
                format!("the request has {bytes} bytes, more than the {limit} of a message; send fewer rows at once"),
            );
        }
        let left = deadline.left(inner.host.clock.now());
        // What is critical waits as long as there is time.
        let holds_back = inner.holds_back.get() && request.class != Some(Class::Critical);
        let patience = if holds_back { left } else { Duration::MAX };
        let clock = &*inner.host.clock;
        let _permit = match tokio::time::timeout(left, link.permit(clock, bytes, patience)).await {
            Ok(Some(permit)) => permit,
            Ok(None) => {
                return Attempt::Here(Outcome::Rejected(Rejection::TooLate), HELD_BACK.into());
            }
            Err(_) => {
                return Attempt::Here(
                    Outcome::Expired,
                    "its deadline passed before it could be sent: too many calls are in flight".into(),
                );
            }
        };
        if link.is_closed() {
            return not_sent(format!("the connection to {node} broke before this was sent"));
        }
        let mut call = link.predictor.predict_request();
        let asked = inner.host.clock.now();
        // Until then the node has to be done: the answer has to come back, too.
        let left = inner.way.get().at_node(deadline.left(asked)).max(Duration::from_micros(1));
        write_request(call.get().init_request(), request, id, left);
        let answered = call.send().promise.await;
        let took = inner.host.clock.now().since(asked);
        match answered {
            Ok(response) => {
                link.answered(took);
                let read = response
                    .get()
                    .and_then(|r| r.get_response())
                    .map_err(|e| e.to_string())
                    .and_then(|r| read_response(r, id));
                match read {
                    Ok(Attempt::Answers(answers)) if answers.len() as u64 != rows_of(request) => Attempt::All(
                        Outcome::Failed,
                        format!("{node} answers {} of {} rows", answers.len(), rows_of(request)),
                    ),
                    Ok(ended) => {
                        if let Attempt::Answers(answers) = &ended
                            && let Some(inside) = answers.iter().map(|answer| answer.timings.total).max()
                        {
                            let mut way = inner.way.get();
                            way.observe(took, inside);
                            inner.way.set(way);
                        }
                        ended
                    }
                    Err(why) => Attempt::All(
                        Outcome::Failed,
                        format!("{node} answers what this client does not understand ({why})"),
                    ),
                }
            }
            Err(error) => {
                let took = inner.host.clock.now().since(started);
                tracing::debug!(%node, ?took, %error, "a call broke");
                match error.kind {
                    capnp::ErrorKind::Disconnected => {
                        Attempt::All(Outcome::Unknown, format!("the connection to {node} broke; it may have run"))
                    }
                    capnp::ErrorKind::Overloaded => Attempt::All(Outcome::Unknown, remote_text(&error)),
                    // What is refused is answered so; this went wrong on the way, and its answer is lost.
                    _ => Attempt::All(Outcome::Failed, remote_text(&error)),
                }
            }
        }
    }

    /// The nodes that take queries.
    pub fn nodes(&self) -> Vec<NodeName> {
        self.0.directory.names()
    }

    /// The endpoints that there are, whether this client may query them or not.
    pub fn endpoints(&self) -> Vec<EndpointName> {
        self.0.directory.endpoints()
    }

    /// What an endpoint takes and gives, from the first node that tells: one that is silent is not waited for alone.
    pub async fn describe(&self, endpoint: &EndpointName) -> Result<EndpointInfo, ClientError> {
        let mut last = ClientError::NoNode("the cluster has none; start one with `weir node`".to_owned());
        let mut nodes = self.0.directory.names().into_iter();
        let mut asked = tokio::task::JoinSet::new();
        loop {
            let answer = match nodes.next() {
                Some(node) => {
                    let (client, endpoint) = (self.clone(), endpoint.clone());
                    asked.spawn_local(async move { client.describe_at(&node, &endpoint).await });
                    tokio::time::timeout(NEXT_ASKED_AFTER, asked.join_next()).await
                }
                None => Ok(asked.join_next().await),
            };
            match answer {
                // Neither silence nor a task that ended without a word says anything.
                Err(_) | Ok(Some(Err(_))) => {}
                Ok(None) => return Err(last),
                Ok(Some(Ok(Ok(info)))) => return Ok(info),
                // What a node says weighs more than that another cannot be reached.
                Ok(Some(Ok(Err(ClientError::NoNode(_))))) if !matches!(last, ClientError::NoNode(_)) => {}
                Ok(Some(Ok(Err(error)))) => last = error,
            }
        }
    }

    async fn describe_at(&self, node: &NodeName, endpoint: &EndpointName) -> Result<EndpointInfo, ClientError> {
        let response = self.ask(node, |predictor| {
            let mut call = predictor.describe_request();
            call.get().set_endpoint(endpoint.as_str());
            call.send().promise
        });
        read_info(response.await?.get().and_then(|r| r.get_signature()))
    }

    /// What each node has counted of an endpoint, and by which run of it; nodes that do not answer are left out.
    pub async fn statistics(&self, endpoint: &EndpointName) -> Vec<(NodeName, u128, Statistics)> {
        let mut asked = tokio::task::JoinSet::new();
        for node in self.0.directory.names() {
            let (client, endpoint) = (self.clone(), endpoint.clone());
            asked.spawn_local(async move {
                let response = client.ask(&node, |predictor| {
                    let mut call = predictor.statistics_request();
                    call.get().set_endpoint(endpoint.as_str());
                    call.send().promise
                });
                let response = response.await.ok()?;
                let told = response.get().and_then(|r| r.get_statistics()).ok()?;
                let (incarnation, statistics) = read_statistics(told).ok()?;
                Some((node, incarnation, statistics))
            });
        }
        let mut told = Vec::new();
        while let Some(one) = asked.join_next().await {
            told.extend(one.ok().flatten());
        }
        told
    }

    /// One question to a node that has nothing to do with a deadline.
    async fn ask<T>(
        &self,
        node: &NodeName,
        call: impl FnOnce(&predictor::Client) -> capnp::capability::Promise<T, capnp::Error>,
    ) -> Result<T, ClientError> {
        let inner = &self.0;
        let unreached = |why: String| ClientError::NoNode(why);
        let address = inner.directory.address(node).ok_or_else(|| unreached(format!("{node} left the cluster")))?;
        let asked = async {
            let link = inner.links.get(&inner.host, &inner.token, node, &address).await;
            let link = link.map_err(|error| unreached(error.to_string()))?;
            call(&link.predictor).await.map_err(|error| match error.kind {
                capnp::ErrorKind::Disconnected => unreached(format!("the connection to {node} broke")),
                _ => ClientError::NotFound(remote_text(&error)),
            })
        };
        let asked = tokio::time::timeout(ASKED_WITHIN, asked).await;
        asked.unwrap_or_else(|_| Err(unreached(format!("{node} does not answer"))))
    }
}

/// Answers that a call has.
fn rows_of(request: &Request) -> u64 {
    if request.whole {
        return 1;
    }
    request.inputs.first().and_then(|(_, t)| t.shape.first().copied()).unwrap_or(1).max(1)
}

/// What a call takes as a message: its arrays, and what is around them.
fn message_bytes(request: &Request) -> usize {
    let word = |bytes: usize| bytes.next_multiple_of(8);
    let input = |(name, tensor): &(String, Tensor)| {
        64 + word(name.len() + 1) + 8 * tensor.shape.len() + word(tensor.data.len())
    };
    let output = |name: &String| 16 + word(name.len() + 1);
    // The call itself and the request without its lists; what stands in another segment than what points to it takes a word more.
    1024 + word(request.endpoint.as_str().len() + 1)
        + request.inputs.iter().map(input).sum::<usize>()
        + request.outputs.iter().map(output).sum::<usize>()
}

/// An attempt before the last one may have run, so that none may be said not to have.
fn may_have_run_before(answer: &mut Answer) {
    if matches!(answer.outcome, Outcome::Rejected(_)) {
        answer.outcome = Outcome::Unknown;
        answer.message = format!("an attempt broke and may have run; the last was refused: {}", answer.message);
    }
}

fn blank(id: QueryId, outcome: Outcome, message: &str) -> Answer {
    Answer {
        id,
        outcome,
        message: message.to_owned(),
        outputs: Vec::new(),
        model: String::new(),
        stage: String::new(),
        degraded: false,
        price: 0.0,
        expected_loss: 0.0,
        expected_right: None,
        node: String::new(),
        timings: Timings::default(),
        trace: None,
    }
}

fn write_request(mut b: predict_request::Builder<'_>, request: &Request, id: QueryId, left: Duration) {
    let (high, low) = halves(id.0);
    b.set_id_high(high);
    b.set_id_low(low);
    b.set_endpoint(request.endpoint.as_str());
    b.set_whole(request.whole);
    b.set_deadline_left_us(if request.deadline.is_some() { span_to_us(left).max(1) } else { 0 });
    if let Some(class) = request.class {
        b.set_class(class_to_wire(class));
        b.set_class_given(true);
    }
    b.set_min_stage(request.min_stage.as_ref().map_or("", StageName::as_str));
    b.set_max_stage(request.max_stage.as_ref().map_or("", StageName::as_str));
    b.set_trace(request.trace);
    let mut outputs = b.reborrow().init_outputs(request.outputs.len() as u32);
    for (i, name) in request.outputs.iter().enumerate() {
        outputs.set(i as u32, name);
    }
    let mut inputs = b.init_inputs(request.inputs.len() as u32);
    for (i, (name, tensor)) in request.inputs.iter().enumerate() {
        write_tensor(inputs.reborrow().get(i as u32), name, tensor.dtype, &tensor.shape, &tensor.data);
    }
}

fn read_response(response: predict_response::Reader<'_>, id: QueryId) -> Result<Attempt, String> {
    if response.has_refused() {
        let refused = response.get_refused().map_err(|e| e.to_string())?;
        let outcome = outcome_from_wire(refused.get_outcome(), refused.get_rejection());
        let message = refused.get_message().and_then(|m| Ok(m.to_str()?.to_owned())).map_err(|e| e.to_string())?;
        return Ok(Attempt::All(outcome, message));
    }
    let answers = response.get_answers().map_err(|e| e.to_string())?;
    let answers = answers.iter().enumerate().map(|(row, r)| read_answer(r, id.row(row as u64)));
    Ok(Attempt::Answers(answers.collect::<Result<_, _>>().map_err(|bad| bad.to_string())?))
}

fn read_answer(r: answer::Reader<'_>, id: QueryId) -> Result<Answer, weir_schema::convert::BadMessage> {
    let text = |t: capnp::Result<capnp::text::Reader<'_>>| -> Result<String, weir_schema::convert::BadMessage> {
        Ok(t?.to_str()?.to_owned())
    };
    let number = |number: f64| Some(number).filter(|number| number.is_finite()).unwrap_or(0.0);
    let output = |r| read_tensor(r).map(|view| (view.name.to_owned(), view.to_tensor()));
    Ok(Answer {
        id,
        outcome: outcome_from_wire(r.get_outcome(), r.get_rejection()),
        message: text(r.get_message())?,
        outputs: r.get_outputs()?.iter().map(output).collect::<Result<_, _>>()?,
        model: text(r.get_model())?,
        stage: text(r.get_stage())?,
        degraded: r.get_degraded(),
        price: number(r.get_price()),
        expected_loss: number(r.get_expected_loss()),
        expected_right: Some(number(r.get_expected_right())).filter(|right| *right > 0.0),
        node: text(r.get_node())?,
        timings: Timings {
            total: span_from_us(r.get_total_us())?,
            queue: span_from_us(r.get_queue_us())?,
            execute: span_from_us(r.get_execute_us())?,
        },
        trace: match r.has_trace() {
            true => Some(Box::new(read_told(r.get_trace()?)?)),
            false => None,
        },
    })
}

fn read_info(
    r: capnp::Result<weir_schema::predict_capnp::endpoint_signature::Reader<'_>>,
) -> Result<EndpointInfo, ClientError> {
    let read = || -> Result<EndpointInfo, weir_schema::convert::BadMessage> {
        let r = r?;
        let label = r.get_label_output()?.to_str()?.to_owned();
        Ok(EndpointInfo {
            inputs: read_specs(r.get_inputs()?)?,
            outputs: read_specs(r.get_outputs()?)?,
            label_output: Some(label).filter(|label| !label.is_empty()),
            deadline: span_from_us(r.get_deadline_us())?,
            unready: Some(r.get_unready()?.to_str()?.to_owned()).filter(|why| !why.is_empty()),
        })
    };
    read().map_err(|bad| ClientError::BadAnswer(bad.to_string()))
}

#[cfg(test)]
pub(crate) mod tests;
