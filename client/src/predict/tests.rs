use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::future::LocalBoxFuture;
use tokio::io::{AsyncWrite, WriteHalf, duplex, split};
use weir_core::tensor::DType;
use weir_host::clock::Clock;
use weir_host::limits::Limits;
use weir_host::login::{Authority, Caller};
use weir_host::net::{Listener, Net, Stream};
use weir_schema::control_capnp::directory;
use weir_schema::convert::predict::outcome_to_wire;
use weir_schema::predict_capnp::{granted, predictor};

use super::*;

/// What a node does with the calls that it reads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Answer,
    /// After ten milliseconds.
    AnswerLater,
    /// One row, whatever was asked.
    AnswerOne,
    Hang,
    /// Ends the connection with the call in it.
    Break,
    Reject,
    /// Ends the connection before it has let anybody in.
    BreakLogin,
    Overload,
}

/// A node of a cluster that stands in one process.
struct Node {
    does: Mutex<Does>,
    limits: Limits,
    dial_takes: Duration,
    /// The coordinator tells that it has what queries begin with.
    hosts: bool,
    dialled: AtomicUsize,
    begun: AtomicUsize,
    running: AtomicUsize,
}

/// Counts a call while it lives.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Node {
    fn new(does: Does) -> Node {
        Node {
            does: Mutex::new(does),
            limits: Limits::default(),
            dial_takes: Duration::ZERO,
            hosts: false,
            dialled: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
        }
    }

    fn does(&self) -> Does {
        *self.does.lock().unwrap()
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    fn dialled(&self) -> usize {
        self.dialled.load(Ordering::Relaxed)
    }
}

/// Nodes by address, which is their name too, and one coordinator that tells of them.
#[derive(Clone)]
struct Cluster(Arc<BTreeMap<String, Node>>);

impl Cluster {
    fn node(&self, i: usize) -> &Node {
        &self.0[&format!("n{i}")]
    }
}

impl Net for Cluster {
    fn bind<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let (here, there) = duplex(1 << 16);
            let limits = match self.0.get(address) {
                Some(node) => {
                    node.dialled.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(node.dial_takes).await;
                    node.limits.clone()
                }
                None => Limits::default(),
            };
            let (cluster, address) = (self.clone(), address.to_owned());
            tokio::task::spawn_local(async move {
                let (broken, cut) = (Rc::new(tokio::sync::Notify::new()), Rc::new(Cell::new(false)));
                let at = Rc::new(At { cluster, address, broken: Rc::clone(&broken), cut: Rc::clone(&cut) });
                let (reader, writer) = split(there);
                let there = Stream { reader: Box::new(reader), writer: Box::new(Cut { writer, cut }) };
                tokio::select! {
                    _ = weir_host::listen::serve(there, limits, at) => {}
                    () = broken.notified() => {}
                }
            });
            Ok(stream(here))
        })
    }
}

pub(crate) fn stream(end: tokio::io::DuplexStream) -> Stream {
    let (reader, writer) = split(end);
    Stream { reader: Box::new(reader), writer: Box::new(writer) }
}

/// A way to a peer that may be cut, with what waits to be written.
struct Cut {
    writer: WriteHalf<tokio::io::DuplexStream>,
    cut: Rc<Cell<bool>>,
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.cut.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.writer).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}

/// The other end of a connection.
struct At {
    cluster: Cluster,
    address: String,
    broken: Rc<tokio::sync::Notify>,
    /// Nothing more is written.
    cut: Rc<Cell<bool>>,
}

impl At {
    /// That of a node that has a part on this thread.
    fn door(cluster: &Cluster, address: &str) -> Rc<dyn Authority> {
        let (cluster, address) = (cluster.clone(), address.to_owned());
        Rc::new(At { cluster, address, broken: Rc::default(), cut: Rc::default() })
    }

    fn node(&self) -> Option<&Node> {
        self.cluster.0.get(&self.address)
    }
}

impl Authority for At {
    fn admit(&self, _: &Caller, granted: granted::Builder<'_>) -> Result<(), String> {
        let at = At {
            cluster: self.cluster.clone(),
            address: self.address.clone(),
            broken: Rc::clone(&self.broken),
            cut: Rc::clone(&self.cut),
        };
        match self.node().map(Node::does) {
            Some(Does::BreakLogin) => self.cut.set(true),
            Some(_) => granted.init_role().set_predictor(capnp_rpc::new_client(at)),
            None => granted.init_role().set_directory(capnp_rpc::new_client(at)),
        }
        Ok(())
    }
}

impl directory::Server for At {
    async fn nodes(
        self: Rc<Self>,
        params: directory::NodesParams,
        mut results: directory::NodesResults,
    ) -> Result<(), capnp::Error> {
        tokio::time::sleep(Duration::from_micros(params.get()?.get_wait_us())).await;
        let mut b = results.get().init_directory();
        let hosts: Vec<u16> =
            (0..).zip(self.cluster.0.values()).filter(|(_, node)| node.hosts).map(|(i, _)| i).collect();
        b.reborrow().init_endpoints(1).set(0, "e");
        let mut list = b.reborrow().init_hosts(1).init(0, hosts.len() as u32);
        (0..).zip(hosts).for_each(|(i, host)| list.set(i, host));
        let mut nodes = b.init_nodes(self.cluster.0.len() as u32);
        for (i, name) in self.cluster.0.keys().enumerate() {
            let mut node = nodes.reborrow().get(i as u32);
            node.set_name(name);
            node.set_address(name);
        }
        Ok(())
    }
}

impl predictor::Server for At {
    async fn predict(
        self: Rc<Self>,
        params: predictor::PredictParams,
        mut results: predictor::PredictResults,
    ) -> Result<(), capnp::Error> {
        let node = self.node().expect("a node");
        node.begun.fetch_add(1, Ordering::Relaxed);
        node.running.fetch_add(1, Ordering::Relaxed);
        let _running = Running(&node.running);
        let request = params.get()?.get_request()?;
        let rows = if request.get_whole() { 1 } else { request.get_inputs()?.get(0).get_shape()?.get(0) };
        let response = results.get().init_response();
        match node.does() {
            Does::Hang => std::future::pending().await,
            Does::Break => {
                self.broken.notify_one();
                std::future::pending().await
            }
            Does::Overload => return Err(capnp::Error::overloaded("too much".into())),
            Does::Reject => {
                let (code, why) = outcome_to_wire(Outcome::Rejected(Rejection::QueueFull));
                let mut refused = response.init_refused();
                refused.set_outcome(code);
                refused.set_rejection(why);
            }
            Does::AnswerOne => drop(response.init_answers(1)),
            Does::AnswerLater => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                response.init_answers(rows as u32);
            }
            Does::Answer | Does::BreakLogin => drop(response.init_answers(rows as u32)),
        }
        Ok(())
    }

    async fn describe(
        self: Rc<Self>,
        _: predictor::DescribeParams,
        mut results: predictor::DescribeResults,
    ) -> Result<(), capnp::Error> {
        match self.node().expect("a node").does() {
            Does::Hang => std::future::pending().await,
            Does::Reject => return Err(capnp::Error::failed("there is no such endpoint".into())),
            _ => results.get().init_signature().set_deadline_us(50_000),
        }
        Ok(())
    }

    async fn statistics(
        self: Rc<Self>,
        _: predictor::StatisticsParams,
        mut results: predictor::StatisticsResults,
    ) -> Result<(), capnp::Error> {
        match self.node().expect("a node").does() {
            Does::Hang => std::future::pending().await,
            _ => results.get().init_statistics().set_rows(7),
        }
        Ok(())
    }
}

/// The clock that tokio's pausing stops.
pub(crate) struct Paused(pub tokio::time::Instant);

impl Clock for Paused {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.elapsed().as_nanos() as u64)
    }
}

/// Draws the same each time.
struct Seeded(Mutex<Prng>);

impl weir_host::random::Random for Seeded {
    fn fill(&self, bytes: &mut [u8]) {
        let mut prng = self.0.lock().unwrap();
        bytes.iter_mut().for_each(|byte| *byte = prng.below(256) as u8);
    }
}

/// Runs a test with a client of a cluster of these nodes.
fn with(nodes: impl IntoIterator<Item = Node>, test: impl AsyncFnOnce(LocalClient, Cluster)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let nodes = nodes.into_iter().enumerate().map(|(i, node)| (format!("n{i}"), node));
        let cluster = Cluster(Arc::new(nodes.collect()));
        let host = Host {
            net: Arc::new(cluster.clone()),
            clock: Arc::new(Paused(tokio::time::Instant::now())),
            random: Arc::new(Seeded(Mutex::new(Prng::new(7)))),
            ..Host::system()
        };
        let token = Token::parse(&"0".repeat(64)).unwrap();
        let client = LocalClient::connect(host, Options { coordinators: vec!["c0".into()], token }).await.unwrap();
        test(client, cluster).await;
    });
}

/// Rows of so many bytes in all.
fn request(rows: u64, bytes: usize, deadline_ms: u64) -> Request {
    let tensor = Tensor { dtype: DType::U8, shape: vec![rows, bytes as u64 / rows], data: vec![0; bytes] };
    Request {
        endpoint: EndpointName::parse("e").unwrap(),
        inputs: vec![("x".into(), tensor)],
        whole: false,
        deadline: Some(Duration::from_millis(deadline_ms)),
        class: None,
        outputs: Vec::new(),
        min_stage: None,
        max_stage: None,
        trace: false,
    }
}

async fn outcome(client: &LocalClient, deadline_ms: u64) -> Outcome {
    client.predict(&request(1, 8, deadline_ms)).await[0].outcome
}

fn spawn(client: &LocalClient, deadline_ms: u64) -> tokio::task::JoinHandle<Outcome> {
    let client = client.clone();
    tokio::task::spawn_local(async move { outcome(&client, deadline_ms).await })
}

const NOT_RUN: Outcome = Outcome::Rejected(Rejection::NoReplica);

#[test]
fn a_dial_that_takes_longer_than_a_deadline_is_done_once_and_used_by_later_calls() {
    let slow = Node { dial_takes: Duration::from_millis(100), ..Node::new(Does::Answer) };
    with([slow], async |client, cluster| {
        assert_eq!(outcome(&client, 20).await, NOT_RUN, "nothing was sent");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(outcome(&client, 20).await, Outcome::Answered);
        assert_eq!(cluster.node(0).dialled(), 1);
    });
}

#[test]
fn a_node_that_breaks_during_login_is_passed_over() {
    with([Node::new(Does::BreakLogin), Node::new(Does::Answer)], async |client, _| {
        for _ in 0..20 {
            assert_eq!(outcome(&client, 100).await, Outcome::Answered);
        }
    });
}

#[test]
fn calls_go_to_the_nodes_that_host_what_is_asked_and_on_to_others_only_where_those_refuse() {
    let host = || Node { hosts: true, ..Node::new(Does::Answer) };
    with([Node::new(Does::Answer), host(), Node::new(Does::Answer), host()], async |client, cluster| {
        for _ in 0..40 {
            assert_eq!(outcome(&client, 100).await, Outcome::Answered);
        }
        let begun = || [0, 1, 2, 3].map(|i| cluster.node(i).begun());
        assert!(matches!(begun(), [0, 5..=35, 0, 5..=35]), "{:?}", begun());
        for i in [1, 3] {
            *cluster.node(i).does.lock().unwrap() = Does::Reject;
        }
        // Both are tried before another is; which has no replica, and sends it to where there is room.
        assert_eq!(outcome(&client, 1000).await, Outcome::Answered);
        assert_eq!(begun()[0] + begun()[2], 1);
        let other = EndpointName::parse("other").unwrap();
        for _ in 0..40 {
            client.predict(&Request { endpoint: other.clone(), ..request(1, 8, 100) }).await;
        }
        assert!(begun()[0] + begun()[2] > 20, "nobody knows where that begins: {:?}", begun());
    });
}

#[test]
fn calls_that_are_dropped_are_not_in_flight_any_more() {
    with([Node::new(Does::Hang), Node::new(Does::Hang)], async |client, cluster| {
        for _ in 0..50 {
            let call = spawn(&client, 1000);
            tokio::time::sleep(Duration::from_millis(1)).await;
            call.abort();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        // Whoever was dropped more often than the other would be avoided for ever.
        (0..2).for_each(|i| *cluster.node(i).does.lock().unwrap() = Does::Answer);
        let before = [cluster.node(0).begun(), cluster.node(1).begun()];
        for _ in 0..100 {
            outcome(&client, 100).await;
        }
        let shares = [cluster.node(0).begun() - before[0], cluster.node(1).begun() - before[1]];
        assert!(shares[0] > 20 && shares[1] > 20, "{before:?} {shares:?}");
        assert!(format!("{:?}", client.0.balancer.borrow()).matches("in_flight: 0").count() == 2);
    });
}

#[test]
fn a_node_that_hangs_is_left_out_though_calls_expire_on_their_way_to_it() {
    let hung = Node { limits: Limits { calls_in_flight: 1, ..Limits::default() }, ..Node::new(Does::Hang) };
    with([hung, Node::new(Does::Answer)], async |client, cluster| {
        for _ in 0..40 {
            let wave: Vec<_> = (0..8).map(|_| spawn(&client, 10)).collect();
            for call in wave {
                call.await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let begun = cluster.node(0).begun();
        assert!((5..15).contains(&begun), "{begun}: until it is left out, and a few probes");
        assert!(cluster.node(0).dialled() > 1, "a probe does not trust the connection that went silent");
    });
}

#[test]
fn a_request_too_large_for_a_message_is_refused_here_and_harms_no_other() {
    with([Node::new(Does::Answer)], async |client, cluster| {
        let answers = client.predict(&request(1, 17 << 20, 1000)).await;
        assert_eq!(answers[0].outcome, Outcome::Rejected(Rejection::BadInput));
        assert!(answers[0].message.ends_with("send fewer rows at once"), "{}", answers[0].message);
        assert_eq!(outcome(&client, 100).await, Outcome::Answered);
        let nearly = client.predict(&request(1, (16 << 20) - 2048, 1000)).await;
        assert_eq!(nearly[0].outcome, Outcome::Answered, "{}", nearly[0].message);
        assert_eq!((cluster.node(0).begun(), cluster.node(0).dialled()), (2, 1));
    });
}

#[test]
fn a_node_on_this_thread_is_asked_without_a_connection_and_before_others() {
    with([Node::new(Does::Answer), Node::new(Does::Answer)], async |client, cluster| {
        client.stand_beside(NodeName::parse("n1").unwrap(), At::door(&cluster, "n1"));
        // More at once than a connection carries.
        *cluster.node(1).does.lock().unwrap() = Does::AnswerLater;
        let wave: Vec<_> = (0..200).map(|_| spawn(&client, 15)).collect();
        for call in wave {
            assert_eq!(call.await.unwrap(), Outcome::Answered);
        }
        assert_eq!((cluster.node(0).begun(), cluster.node(1).begun()), (0, 200));
        let large = client.predict(&request(1, 17 << 20, 1000)).await;
        assert_eq!(large[0].outcome, Outcome::Rejected(Rejection::BadInput), "as another node would have it");
        assert!(client.describe(&EndpointName::parse("e").unwrap()).await.is_ok());
        // What it has no room for goes elsewhere, as does what is left when it fails.
        *cluster.node(1).does.lock().unwrap() = Does::Reject;
        assert_eq!(outcome(&client, 100).await, Outcome::Answered);
        *cluster.node(1).does.lock().unwrap() = Does::Hang;
        for _ in 0..9 {
            outcome(&client, 1).await;
        }
        let before = cluster.node(1).begun();
        assert_eq!(outcome(&client, 100).await, Outcome::Answered);
        assert_eq!((before, cluster.node(1).dialled()), (cluster.node(1).begun(), 0));
    });
}

#[test]
fn a_call_to_a_node_on_this_thread_ends_when_its_caller_goes() {
    with([Node::new(Does::Hang)], async |client, cluster| {
        client.stand_beside(NodeName::parse("n0").unwrap(), At::door(&cluster, "n0"));
        let calls: Vec<_> = (0..5).map(|_| spawn(&client, 1000)).collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(cluster.node(0).running(), 5);
        calls.iter().for_each(tokio::task::JoinHandle::abort);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(cluster.node(0).running(), 0);
    });
}

#[test]
fn as_many_bytes_are_counted_as_a_message_has_at_least() {
    let many = Request {
        inputs: (0..100).map(|i| (format!("input{i}"), Tensor::f32(&[1, 2, 1, 2, 1], &[0.0; 4]))).collect(),
        outputs: vec!["a name of an output".into(); 10_000],
        ..request(1, 8, 1000)
    };
    for asked in [many, request(1, 100_003, 1000)] {
        let mut message = capnp::message::Builder::new_default();
        write_request(message.init_root(), &asked, QueryId(7), Duration::from_secs(1));
        let (size, counted) = (capnp::serialize::compute_serialized_size_in_words(&message) * 8, message_bytes(&asked));
        assert!(size <= counted && counted < size + size / 4 + 1200, "{size} {counted}");
    }
}

#[test]
fn more_rows_than_a_call_may_have_are_refused_with_one_answer() {
    with([Node::new(Does::Answer)], async |client, cluster| {
        let asked = |shape: Vec<u64>, whole| Request {
            inputs: vec![("x".into(), Tensor { dtype: DType::F32, shape, data: Vec::new() })],
            whole,
            ..request(1, 8, 1000)
        };
        for rows in [ROWS_MAX + 1, 10_000_000_000, 1 << 62, u64::MAX] {
            let answers = client.predict(&asked(vec![rows, 0], false)).await;
            assert_eq!(answers.len(), 1, "{rows}");
            assert_eq!(answers[0].outcome, Outcome::Rejected(Rejection::BadInput));
            assert!(answers[0].message.contains(&format!("this one has {rows}")), "{}", answers[0].message);
        }
        assert_eq!((cluster.node(0).begun(), cluster.node(0).dialled()), (0, 0), "nothing was sent");
        let most = client.predict(&asked(vec![ROWS_MAX, 0], false)).await;
        assert_eq!((most.len() as u64, most[0].outcome), (ROWS_MAX, Outcome::Answered));
        // One query, whatever its shape: whether that fits is for the node to say.
        let whole = client.predict(&asked(vec![1 << 62, 0], true)).await;
        assert_eq!((whole.len(), whole[0].outcome), (1, Outcome::Answered));
        assert_eq!(cluster.node(0).begun(), 2);
    });
}

#[test]
fn no_more_bytes_are_sent_than_the_node_reads() {
    let limits = Limits { bytes_in_flight: 100_000, ..Limits::default() };
    with([Node { limits, ..Node::new(Does::Hang) }], async |client, cluster| {
        assert_eq!(outcome(&client, 1).await, Outcome::Unknown);
        let calls: Vec<_> = (0..5)
            .map(|_| {
                let client = client.clone();
                tokio::task::spawn_local(async move { client.predict(&request(1, 60_000, 100)).await[0].outcome })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(cluster.node(0).begun(), 1 + 1, "two would be over the limit");
        calls.iter().for_each(|call| call.abort());
    });
}

/// What becomes of calls with 100 ms each, twice as many as a node does that takes one at a time: answered in time, and refused at once. The
/// client says beforehand which it refuses.
fn twice_as_many(class: Option<Class>, holds_back: bool) -> (usize, usize) {
    let (mut in_time, mut refused, mut foretold) = (0, 0, 0);
    let one = Node { limits: Limits { calls_in_flight: 1, ..Limits::default() }, ..Node::new(Does::AnswerLater) };
    with([one], async |client, _| {
        if !holds_back {
            client.never_hold_back();
        }
        let mut calls = Vec::new();
        for _ in 0..400 {
            let client = client.clone();
            foretold += usize::from(!client.has_time_for(Duration::from_millis(100)));
            calls.push(tokio::task::spawn_local(async move {
                let began = tokio::time::Instant::now();
                let ended = client.predict(&Request { class, ..request(1, 8, 100) }).await[0].outcome;
                (ended, began.elapsed())
            }));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for call in calls {
            let (ended, took) = call.await.unwrap();
            in_time += usize::from(ended == Outcome::Answered && took <= Duration::from_millis(100));
            refused += usize::from(ended == Outcome::Rejected(Rejection::TooLate) && took < Duration::from_millis(2));
        }
    });
    assert!(class.is_some() || foretold == refused, "{foretold} foretold, {refused} refused");
    (in_time, refused)
}

#[test]
fn what_would_be_late_behind_its_own_calls_is_refused_by_the_client() {
    let (in_time, refused) = twice_as_many(None, true);
    assert!(in_time > 180 && refused > 150 && in_time + refused > 390, "{in_time} in time, {refused} refused at once");
    let (in_time, refused) = twice_as_many(None, false);
    assert!(in_time < 60 && refused == 0, "nearly all wait until it is too late: {in_time}, {refused}");
    assert_eq!(twice_as_many(Some(Class::Critical), true).1, 0, "what is critical waits");
}

#[test]
fn more_connections_are_made_as_calls_need_them_and_no_more_than_are_allowed() {
    for (allowed, begun) in [(1, 2), (3, 6)] {
        let limits = Limits { calls_in_flight: 2, ..Limits::default() };
        with([Node { limits, ..Node::new(Does::Hang) }], async |client, cluster| {
            client.allow_connections(allowed);
            let mut calls = vec![spawn(&client, 1000)];
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert_eq!(cluster.node(0).dialled.load(Ordering::SeqCst), 1);
            calls.extend((0..9).map(|_| spawn(&client, 1000)));
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(cluster.node(0).dialled.load(Ordering::SeqCst), allowed);
            assert_eq!(cluster.node(0).begun(), begun);
            calls.iter().for_each(|call| call.abort());
        });
    }
}

#[test]
fn a_call_that_waits_while_the_connection_breaks_has_not_run() {
    let one = Node { limits: Limits { calls_in_flight: 1, ..Limits::default() }, ..Node::new(Does::Break) };
    with([one], async |client, cluster| {
        let (first, second) = (spawn(&client, 200), spawn(&client, 200));
        // Once they are on their way, nobody is let in any more.
        while cluster.node(0).begun() == 0 {
            tokio::task::yield_now().await;
        }
        *cluster.node(0).does.lock().unwrap() = Does::BreakLogin;
        let both = [first.await.unwrap(), second.await.unwrap()];
        assert!(both.contains(&Outcome::Unknown) && both.contains(&NOT_RUN), "{both:?}");
        assert_eq!(cluster.node(0).begun(), 1);
    });
}

#[test]
fn a_refusal_after_an_attempt_that_may_have_run_is_unknown() {
    with([Node::new(Does::Break)], async |client, cluster| {
        let call = spawn(&client, 1000);
        while cluster.node(0).begun() == 0 {
            tokio::task::yield_now().await;
        }
        *cluster.node(0).does.lock().unwrap() = Does::Reject;
        assert_eq!(call.await.unwrap(), Outcome::Unknown);
        assert!(cluster.node(0).begun() > 1, "it was tried again");
        assert_eq!(outcome(&client, 1000).await, Outcome::Rejected(Rejection::QueueFull));
    });
}

#[test]
fn answers_that_are_not_one_a_row_are_a_failure_of_each() {
    with([Node::new(Does::AnswerOne)], async |client, _| {
        let answers = client.predict(&request(3, 24, 1000)).await;
        assert_eq!(answers.iter().map(|a| a.outcome).collect::<Vec<_>>(), vec![Outcome::Failed; 3]);
    });
}

#[test]
fn what_an_exception_ended_is_not_said_not_to_have_run() {
    with([Node::new(Does::Overload)], async |client, _| {
        assert_eq!(outcome(&client, 1000).await, Outcome::Unknown);
    });
}

/// What a cluster of these nodes tells of an endpoint, and after how many milliseconds.
fn described(nodes: &[Does]) -> (Result<EndpointInfo, ClientError>, u128) {
    let mut told = None;
    with(nodes.iter().copied().map(Node::new), async |client, _| {
        let asked = tokio::time::Instant::now();
        let info = client.describe(&EndpointName::parse("e").unwrap()).await;
        told = Some((info, asked.elapsed().as_millis()));
    });
    told.unwrap()
}

#[test]
fn nodes_that_do_not_answer_keep_nobody_from_what_another_tells() {
    for nodes in
        [vec![Does::Hang, Does::Answer], vec![Does::Hang, Does::BreakLogin, Does::Hang, Does::Reject, Does::Answer]]
    {
        let (info, ms) = described(&nodes);
        assert_eq!(info.unwrap().deadline, Duration::from_millis(50), "{nodes:?}");
        assert!(ms < 50, "{ms} ms: {nodes:?}");
    }
    assert_eq!(described(&[Does::Answer, Does::Hang]).1, 0);
}

#[test]
fn what_a_node_says_of_an_endpoint_weighs_more_than_silence() {
    for nodes in [[Does::Hang, Does::Reject], [Does::Reject, Does::Hang]] {
        let (info, ms) = described(&nodes);
        assert!(matches!(info, Err(ClientError::NotFound(_))), "{info:?}");
        assert!((1900..2100).contains(&ms), "{ms} ms: the other may know it");
    }
    let (info, _) = described(&[Does::Hang, Does::Hang]);
    assert!(matches!(&info, Err(ClientError::NoNode(why)) if why.contains("does not answer")), "{info:?}");
    assert!(matches!(described(&[]).0, Err(ClientError::NoNode(_))));
}

#[test]
fn nodes_are_asked_what_they_counted_all_at_once() {
    let nodes = [Does::Hang, Does::Answer, Does::Hang, Does::Answer];
    with(nodes.map(Node::new), async |client, _| {
        let asked = tokio::time::Instant::now();
        let told = client.statistics(&EndpointName::parse("e").unwrap()).await;
        assert_eq!(told.iter().map(|(_, _, statistics)| statistics.rows).collect::<Vec<_>>(), [7, 7]);
        assert!(asked.elapsed() < Duration::from_millis(2100), "the silent ones are waited for together");
    });
}
