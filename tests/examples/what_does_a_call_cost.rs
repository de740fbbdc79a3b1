//! What does a call of 4 KB cost through weir, beside a bare TCP echo and a bare capnp-rpc echo, in one run?
//!
//! `cargo run --release -p weir-tests --example what_does_a_call_cost` (after `cargo build --release -p weir-cli`).
//! Each server is a process of its own; the client is this one. Processor time is that of the server's process.
//! With `steady SECONDS` one caller asks a node and the bare echo by turns in a closed loop for so long, to count their system
//! calls (`strace -c -f -p`) or to take a profile (`perf record -p`); with `calls ROUNDS` there are so many rounds, and no flood;
//! with `flood ROUNDS` there is nothing but the flood, again and again.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::twoparty::VatNetwork;
use hdrhistogram::Histogram;
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use weir_host::Host;
use weir_host::dial::{Role, enter};
use weir_host::limits::Limits;
use weir_host::login::Token;
use weir_schema::convert::tensor::write_tensor;
use weir_schema::predict_capnp::{Purpose, predictor};
use weir_tests::processes::{Cluster, resident};

const BYTES: usize = 4096;

/// A process of this program that prints an address, or that it has begun.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(words: &[&str]) -> Server {
        let program = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(program).args(words).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().expect("piped")), &mut line)
            .expect("an address");
        Server { child, address: line.trim().to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("tcp") => serve_tcp(),
        Some("capnp") => serve_capnp(),
        Some("neighbour") => run(neighbour()),
        Some("flood") if std::env::args().len() > 3 => run(flood()),
        word => run(measure(word.unwrap_or("all"), std::env::args().nth(2).and_then(|word| word.parse().ok()))),
    }
}

fn run(part: impl Future<Output = ()>) {
    actix::System::new().block_on(tokio::task::LocalSet::new().run_until(part));
}

fn serve_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("it listens"));
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        stream.set_nodelay(true).expect("an option");
        std::thread::spawn(move || {
            let mut bytes = [0; BYTES];
            while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
        });
    }
}

type Job = (Vec<u8>, oneshot::Sender<Vec<u8>>);

/// Echoes through another thread, as weir's calls go through a model's.
struct Echo(mpsc::UnboundedSender<Job>);

impl predictor::Server for Echo {
    async fn predict(
        self: Rc<Self>,
        params: predictor::PredictParams,
        mut results: predictor::PredictResults,
    ) -> Result<(), capnp::Error> {
        let input = params.get()?.get_request()?.get_inputs()?.get(0);
        let (reply, answer) = oneshot::channel();
        let data = input.get_data()?.to_vec();
        self.0.send((data, reply)).map_err(|_| capnp::Error::failed("gone".into()))?;
        let data = answer.await.map_err(|_| capnp::Error::failed("gone".into()))?;
        let outputs = results.get().init_response().init_answers(1).get(0).init_outputs(1);
        write_tensor(outputs.get(0), "y", weir_core::tensor::DType::F32, &[1024], &data);
        Ok(())
    }
}

fn serve_capnp() {
    let (jobs, mut waiting) = mpsc::unbounded_channel::<Job>();
    std::thread::spawn(move || {
        while let Some((data, reply)) = waiting.blocking_recv() {
            let _ = reply.send(data);
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        println!("{}", listener.local_addr().expect("it listens"));
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("an option");
            let (reader, writer) = stream.into_split();
            let reader = tokio::io::BufReader::with_capacity(64 << 10, reader).compat();
            let writer = tokio::io::BufWriter::with_capacity(64 << 10, writer).compat_write();
            let network = VatNetwork::new(reader, writer, Side::Server, Default::default());
            let echo: predictor::Client = capnp_rpc::new_client(Echo(jobs.clone()));
            tokio::task::spawn_local(RpcSystem::new(Box::new(network), Some(echo.client)));
        }
    });
}

/// User and system time of a process so far.
fn cpu(pid: u32) -> Duration {
    let mut total = 0;
    // Nanoseconds on a processor, by thread: the process's own file counts its first thread only.
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten() {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        total += stat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Duration::from_nanos(total)
}

fn report(name: &str, depth: usize, calls: usize, span: Duration, used: Duration, latency: &Histogram<u64>) {
    println!(
        "{name:<10} {depth:>3} in flight: p50 {:>5} us, p99 {:>6} us, {:>7.0} calls/s, server {:>5.1} us of processor a call",
        latency.value_at_quantile(0.5),
        latency.value_at_quantile(0.99),
        calls as f64 / span.as_secs_f64(),
        used.as_secs_f64() * 1e6 / calls as f64
    );
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds")
}

fn tcp(server: &Server, depth: usize, calls: usize) {
    let mut writer = TcpStream::connect(&server.address).expect("it listens");
    writer.set_nodelay(true).expect("an option");
    let mut reader = writer.try_clone().expect("a handle");
    let (permit, permits) = std::sync::mpsc::sync_channel::<Instant>(depth - 1);
    let before = cpu(server.child.id());
    let started = Instant::now();
    let sending = std::thread::spawn(move || {
        for _ in 0..calls {
            permit.send(Instant::now()).expect("somebody reads");
            writer.write_all(&[7; BYTES]).expect("it takes");
        }
    });
    let mut latency = histogram();
    let mut bytes = [0; BYTES];
    for _ in 0..calls {
        // Taking its start makes room for the next one: so many are under way.
        let sent = permits.recv().expect("it is sent");
        reader.read_exact(&mut bytes).expect("it answers");
        latency.saturating_record(sent.elapsed().as_micros() as u64);
    }
    sending.join().expect("all was sent");
    report("tcp", depth, calls, started.elapsed(), cpu(server.child.id()) - before, &latency);
}

/// Processor time of a call in microseconds, and the latencies.
async fn rpc(name: &str, client: &predictor::Client, pid: u32, depth: usize, calls: usize) -> (f64, Histogram<u64>) {
    let before = cpu(pid);
    let started = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..depth {
        let client = client.clone();
        callers.spawn_local(async move {
            let mut spans = Vec::with_capacity(calls / depth);
            for _ in 0..calls / depth {
                let sent = Instant::now();
                let answer = ask(&client).send().promise.await.expect("it answers");
                let answers =
                    answer.get().and_then(|r| r.get_response()).and_then(|r| r.get_answers()).expect("an answer");
                assert_eq!(
                    answers.get(0).get_outputs().expect("outputs").get(0).get_data().expect("data").len(),
                    BYTES
                );
                spans.push(sent.elapsed());
            }
            spans
        });
    }
    let mut latency = histogram();
    while let Some(spans) = callers.join_next().await {
        spans.expect("no caller fails").into_iter().for_each(|span| latency.saturating_record(span.as_micros() as u64));
    }
    let used = cpu(pid) - before;
    report(name, depth, calls / depth * depth, started.elapsed(), used, &latency);
    (used.as_secs_f64() * 1e6 / calls as f64, latency)
}

fn ask(
    client: &predictor::Client,
) -> capnp::capability::Request<predictor::predict_params::Owned, predictor::predict_results::Owned> {
    let mut call = client.predict_request();
    let mut request = call.get().init_request();
    request.set_endpoint("identity");
    request.set_deadline_left_us(10_000_000);
    write_tensor(request.init_inputs(1).get(0), "x", weir_core::tensor::DType::F32, &[1, 1024], &[7; BYTES]);
    call
}

async fn bare(address: &str) -> predictor::Client {
    let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    stream.set_nodelay(true).expect("an option");
    let (reader, writer) = stream.into_split();
    let reader = tokio::io::BufReader::with_capacity(64 << 10, reader).compat();
    let writer = tokio::io::BufWriter::with_capacity(64 << 10, writer).compat_write();
    let network = VatNetwork::new(reader, writer, Side::Client, Default::default());
    let mut system = RpcSystem::new(Box::new(network), None);
    let client = system.bootstrap(Side::Server);
    tokio::task::spawn_local(system);
    client
}

async fn measure(what: &str, number: Option<u64>) {
    let (tcp_server, capnp_server) = (Server::start(&["tcp"]), Server::start(&["capnp"]));
    let cluster = Cluster::start(1, 1);
    cluster.serve_identity();
    let node = Target {
        address: cluster.nodes[0].address.clone(),
        token_file: cluster.path("c1/admin.token"),
        pid: cluster.nodes[0].pid(),
    };
    let echo =
        Target { address: capnp_server.address.clone(), token_file: NO_TOKEN.into(), pid: capnp_server.child.id() };
    let (weir, bare) = (node.connect().await, echo.connect().await);
    if what == "steady" {
        println!("the node is process {}, the echo {}", node.pid, echo.pid);
        let started = Instant::now();
        while started.elapsed().as_secs() < number.unwrap_or(10) {
            rpc("capnp-rpc", &bare, echo.pid, 1, 5_000).await;
            rpc("weir", &weir, node.pid, 1, 5_000).await;
        }
        return;
    }
    if what != "flood" {
        costs(&tcp_server, (&bare, echo.pid), (&weir, node.pid), number.unwrap_or(15)).await;
    }
    if what != "calls" {
        floods(&node, &echo, number.filter(|_| what == "flood").unwrap_or(1)).await;
    }
}

/// Rounds of calls to each server, and what weir takes beside the bare echo.
async fn costs(tcp_server: &Server, bare: (&predictor::Client, u32), weir: (&predictor::Client, u32), rounds: u64) {
    let mut ratios: [Vec<f64>; 2] = Default::default();
    // Short ones, so that what else runs on the machine falls on neighbours alike.
    for round in 1..=rounds {
        println!("round {round}");
        for (ratios, (depth, calls)) in ratios.iter_mut().zip([(1, 1_000), (64, 6_400)]) {
            tcp(tcp_server, depth, calls);
            let (alone, _) = rpc("capnp-rpc", bare.0, bare.1, depth, calls).await;
            let (whole, _) = rpc("weir", weir.0, weir.1, depth, calls).await;
            ratios.push(whole / alone);
        }
    }
    for (mut ratios, depth) in ratios.into_iter().zip([1, 64]) {
        let (least, middle, most) = spread(&mut ratios);
        println!(
            "{depth:>3} in flight: weir takes {middle:.2} times the processor of capnp-rpc ({least:.2} to {most:.2})"
        );
    }
}

/// Least, median and most.
fn spread<T: PartialOrd + Copy>(numbers: &mut [T]) -> (T, T, T) {
    numbers.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
    (numbers[0], numbers[numbers.len() / 2], numbers[numbers.len() - 1])
}

/// A server, and how one gets in.
struct Target {
    address: String,
    token_file: String,
    pid: u32,
}

/// In place of a token file: nobody asks for one.
const NO_TOKEN: &str = "-";

impl Target {
    /// What this process was told after `skip` words.
    fn told(skip: usize) -> Target {
        let [address, token_file, pid] =
            std::env::args().skip(skip).take(3).collect::<Vec<_>>().try_into().expect("three words");
        Target { address, token_file, pid: pid.parse().expect("a number") }
    }

    fn words(&self) -> [String; 3] {
        [self.address.clone(), self.token_file.clone(), self.pid.to_string()]
    }

    async fn connect(&self) -> predictor::Client {
        if self.token_file == NO_TOKEN {
            return bare(&self.address).await;
        }
        let token =
            Token::read_file(&weir_host::disk::SystemDisk, std::path::Path::new(&self.token_file)).expect("the token");
        let (host, limits) = (Host::system(), Limits::default());
        let entered = enter(&host, &self.address, &token, Purpose::Predict, &limits).await.expect("let in");
        let Role::Predictor(predictor) = entered.role() else { panic!("a predictor") };
        let predictor = predictor.clone();
        // It lasts as long as this process.
        std::mem::forget(entered);
        predictor
    }
}

/// Calls that the client has sent and not been answered: more than it can be answered while it is measured.
const FLOOD: usize = 400_000;
/// Where it is measured again and again it sends another for each that is answered. These are ahead, so it never waits.
const FLOOD_OF_MANY: usize = 20_000;

async fn floods(node: &Target, echo: &Target, rounds: u64) {
    println!("one client never waits; another, a process of its own, asks as before");
    let calls = if rounds == 1 { FLOOD } else { FLOOD_OF_MANY };
    let mut p99: [Vec<u64>; 5] = Default::default();
    let mut grown = Vec::new();
    for _ in 0..rounds {
        let before = resident(node.pid);
        p99[0].push(ask_beside("weir alone", node).await.0);
        // The same work on the same processors, for another server: what is slower beside this is slower for want of processors.
        let elsewhere = Flood::start(echo, 64).await;
        p99[1].push(ask_beside("control", node).await.0);
        drop(elsewhere);
        let flooding = Flood::start(node, calls).await;
        let (beside, highest) = ask_beside("beside", node).await;
        drop(flooding);
        p99[2].push(beside);
        grown.push(highest.saturating_sub(before));
        // What a server without any gate does to a neighbour.
        p99[3].push(ask_beside("echo alone", echo).await.0);
        let flooding = Flood::start(echo, calls).await;
        p99[4].push(ask_beside("echo beside", echo).await.0);
        drop(flooding);
    }
    let names =
        ["weir alone", "weir beside calls to the echo", "weir beside the flood", "echo alone", "echo beside the flood"];
    for (name, p99) in names.into_iter().zip(&mut p99) {
        let (least, middle, most) = spread(p99);
        println!("p99 of the other, {name}: {middle} us ({least} to {most})");
    }
    let (least, middle, most) = spread(&mut grown);
    println!("the node grew by {middle} KiB ({least} to {most})");
}

/// A process that keeps so many calls in flight until this is dropped.
struct Flood(Server);

impl Flood {
    async fn start(at: &Target, calls: usize) -> Flood {
        let [address, token_file, pid] = at.words();
        let flood = Server::start(&["flood", &calls.to_string(), &address, &token_file, &pid]);
        println!("{}", flood.address);
        // Until all are made and its sends back up: to make them costs a core too, and that is not the server's doing.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Flood(flood)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // Gone before the next is measured.
        let _ = self.0.child.kill();
        let _ = self.0.child.wait();
    }
}

async fn flood() {
    let calls: usize = std::env::args().nth(2).and_then(|word| word.parse().ok()).expect("a number");
    let client = Target::told(3).connect().await;
    for i in 0..calls {
        let client = client.clone();
        tokio::task::spawn_local(async move {
            loop {
                ask(&client).send().promise.await.expect("it answers");
            }
        });
        if i % 2_000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    println!("{calls} calls in flight");
    std::future::pending().await
}

/// Has a process of its own ask 2,000 times, one after the other: its p99 in microseconds, and how much memory the server
/// had at most meanwhile, in KiB.
async fn ask_beside(name: &str, at: &Target) -> (u64, u64) {
    let program = std::env::current_exe().expect("this program has a path");
    let mut asking = Command::new(program)
        .args(["neighbour", name])
        .args(at.words())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut highest = 0;
    while asking.try_wait().expect("it is ours").is_none() {
        highest = highest.max(resident(at.pid));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let printed = std::io::read_to_string(asking.stdout.take().expect("piped")).expect("text");
    let (lines, p99) = printed.trim_end().rsplit_once('\n').expect("a report and a number");
    println!("{lines}");
    (p99.parse().expect("a number"), highest)
}

async fn neighbour() {
    let name = std::env::args().nth(2).expect("a name");
    let at = Target::told(3);
    let client = at.connect().await;
    let (_, latency) = rpc(&name, &client, at.pid, 1, 2_000).await;
    println!("{}", latency.value_at_quantile(0.99));
}
