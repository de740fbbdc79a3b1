//! What do connections cost that hold nothing, and are few slower when there are many?
//!
//! `ulimit -n 65536; cargo run --release -p weir-tests --example what_do_many_connections_cost [CONNECTIONS] [RATE] [ROUNDS]` (after
//! `cargo build --release -p weir-cli`). The node is a process of its own, the client this one; it connects from many loopback addresses, as a
//! listener takes so many of each. Then calls of 4 KB go over 64 of the connections, and over 1,000 of them, by turns, at the same rate, each by
//! a clock and not by the answer before it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use hdrhistogram::Histogram;
use tokio::net::{TcpSocket, TcpStream};
use weir_host::Host;
use weir_host::dial::{Entered, Role, enter};
use weir_host::limits::Limits;
use weir_host::login::Token;
use weir_host::net::{Listener, Net, Stream, set_options};
use weir_schema::convert::tensor::write_tensor;
use weir_schema::predict_capnp::{Purpose, predictor};
use weir_tests::processes::{Cluster, resident};

/// Connects from 127.0.1.0, 127.0.1.1 and so on, a few times from each.
struct FromMany(AtomicU32);

/// Below what a listener takes from one address.
const FROM_EACH: u32 = 200;

impl Net for FromMany {
    fn bind<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let number = self.0.fetch_add(1, Ordering::Relaxed) / FROM_EACH;
            let from = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 0).to_bits() + number);
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from((from, 0)))?;
            let to: SocketAddr = address.parse().map_err(io::Error::other)?;
            let stream: TcpStream = socket.connect(to).await?;
            set_options(&stream)?;
            Ok(Stream::from(stream))
        })
    }
}

fn main() {
    let number = |i, otherwise| std::env::args().nth(i).and_then(|word| word.parse().ok()).unwrap_or(otherwise);
    let (connections, rate, rounds) = (number(1, 9_900), number(2, 2_000), number(3, 3));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, measure(connections, rate, rounds));
}

async fn measure(connections: usize, rate: usize, rounds: usize) {
    let cluster = Cluster::start(1, 1);
    cluster.serve_identity();
    let (address, pid) = (cluster.nodes[0].address.clone(), cluster.nodes[0].pid());
    let token = cluster.path("c1/admin.token");
    let token = Token::read_file(&weir_host::disk::SystemDisk, std::path::Path::new(&token)).expect("the token");
    let host = Host { net: Arc::new(FromMany(AtomicU32::new(0))), ..Host::system() };
    let before = resident(pid);
    let mut all: Vec<Entered> = Vec::with_capacity(connections);
    while all.len() < connections {
        let some = (0..64.min(connections - all.len())).map(|_| {
            let (host, token, address) = (host.clone(), token.clone(), address.clone());
            async move { enter(&host, &address, &token, Purpose::Predict, &Limits::default()).await }
        });
        all.extend(futures::future::join_all(some).await.into_iter().map(|entered| entered.expect("let in")));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let idle = resident(pid);
    let each = (idle.saturating_sub(before)) as f64 / connections as f64;
    println!("{connections} idle connections: {each:.1} KiB each ({before} KiB before, {idle} with them)");
    let objects = all.iter().map(|entered| match entered.role() {
        Role::Predictor(predictor) => predictor.clone(),
        _ => panic!("a predictor"),
    });
    let objects: Vec<predictor::Client> = objects.collect();
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let few = ask_over(&objects[..64.min(connections)], rate).await;
        let many = ask_over(&objects[..1_000.min(connections)], rate).await;
        let quantiles = |told: &Histogram<u64>| (told.value_at_quantile(0.5), told.value_at_quantile(0.99));
        println!(
            "round {round}, {rate}/s: over 64 connections p50, p99 {:?} us, over 1,000 {:?} us",
            quantiles(&few),
            quantiles(&many)
        );
        ratios.push(quantiles(&many).1 as f64 / quantiles(&few).1 as f64);
    }
    ratios.sort_by(f64::total_cmp);
    let active = resident(pid).saturating_sub(before) as f64 / connections as f64;
    println!(
        "p99 over 1,000 is {:.2} times that over 64 (median); {active:.1} KiB a connection afterwards",
        ratios[rounds / 2]
    );
}

/// Calls at so many a second for five seconds, over each connection in its turn.
async fn ask_over(objects: &[predictor::Client], rate: usize) -> Histogram<u64> {
    let started = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for (i, object) in objects.iter().cycle().take(5 * rate).enumerate() {
        let due = started + Duration::from_secs(1) * i as u32 / rate as u32;
        tokio::time::sleep_until(due.into()).await;
        let object = object.clone();
        calls.spawn_local(async move {
            let mut call = object.predict_request();
            let mut request = call.get().init_request();
            request.set_endpoint("identity");
            request.set_deadline_left_us(10_000_000);
            let dtype = weir_core::tensor::DType::F32;
            write_tensor(request.init_inputs(1).get(0), "x", dtype, &[1, 1024], &[7; 4096]);
            call.send().promise.await.expect("it answers");
            due.elapsed()
        });
    }
    let mut latency = Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
    while let Some(took) = calls.join_next().await {
        latency.saturating_record(took.expect("no call fails").as_micros() as u64);
    }
    latency
}
