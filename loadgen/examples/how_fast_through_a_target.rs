//! How many queries a second can be sent in time through a target that people measure with? The rate is doubled until the generator's
//! own lag reaches a millisecond at p99, or until queries are not answered any more; then the interval is halved.
//!
//! `cargo run --release -p weir-loadgen --example how_fast_through_a_target -- TARGET [SECONDS] [THREADS]`, where TARGET is
//! `weir://HOST:PORT/ENDPOINT` (the token is in the file that `WEIR_TOKEN_FILE` names), `oip-http://HOST:PORT/MODEL`, or `http`: a server of
//! the open inference protocol that does nothing, on a thread of this process. `--serve` starts that alone, and prints its target: on Linux
//! `taskset` then gives each a core.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weir_client::{Options, Token};
use weir_core::tensor::Tensor;
use weir_core::workload::{Arrivals, Rate};
use weir_host::disk::SystemDisk;
use weir_loadgen::data::Data;
use weir_loadgen::result::RunResult;
use weir_loadgen::run::{Loop, RunConfig, run, stopper};
use weir_loadgen::schedule::Flow;
use weir_loadgen::target::oip_http::OipHttp;
use weir_loadgen::target::weir::Weir;
use weir_loadgen::target::{Address, Connect, Stream};

/// What the lag may be at p99, in microseconds.
const LAG_MAX: u64 = 1000;
/// Of the queries so many have to be answered, or the target is what is measured.
const ANSWERED_MIN: f64 = 0.99;
const FIRST: f64 = 1000.0;
/// The interval is this narrow in the end, as a share of its upper end.
const PRECISION: f64 = 0.1;
const DEADLINE: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let target = arguments.first().map_or("http", String::as_str);
    if target == "--serve" {
        return runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("oip-http://{}/m", listener.local_addr()?);
            serve(listener).await
        });
    }
    let target = if target == "http" { served_here()? } else { target.to_owned() };
    let number = |i: usize, default: f64| arguments.get(i).map_or(Ok(default), |text| text.parse::<f64>());
    let (seconds, threads) = (number(1, 3.0)?, number(2, 1.0)? as usize);
    let (connect, endpoint) = connect(&target)?;
    let inputs =
        runtime.block_on(async { tokio::task::LocalSet::new().run_until(connect.describe(&endpoint)).await })?;
    let width = inputs.inputs.first().and_then(|input| input.shape.last().copied().flatten());
    let width = width.unwrap_or(1);
    let rows = Tensor::f32(&[64, width], &vec![0.0; 64 * width as usize]);
    let data = Arc::new(Data::of(rows).fit(&inputs.inputs)?);
    let (mut met, mut missed) = (None, None);
    let mut rate = FIRST;
    loop {
        let config = config(&target, &endpoint, Arc::clone(&data), (rate, seconds, threads))?;
        let result = runtime.block_on(run(&config, Arc::clone(&connect), stopper().1, |_| ()))?;
        let fast = tell(rate, &result);
        if fast {
            met = Some(rate)
        } else {
            missed = Some(rate)
        }
        rate = match (met, missed) {
            (Some(met), Some(missed)) if missed - met <= PRECISION * missed => break,
            (Some(met), Some(missed)) => (met + missed) / 2.0,
            (Some(met), None) => met * 2.0,
            // Something else wants the core.
            (None, _) => break,
        };
    }
    let highest = met.map_or("none".into(), |met: f64| format!("{met:.0} a second"));
    println!("highest rate with a send lag below 1 ms at p99: {highest}");
    Ok(())
}

/// Prints what came of a rate, and says whether it was sent in time and answered.
fn tell(rate: f64, result: &RunResult) -> bool {
    let lag = result.send_lag_us;
    let answered = result.answered as f64 / result.offered.max(1) as f64;
    let latency = result.latency_us;
    println!(
        "{rate:8.0} a second  send lag p50 {:6} us, p99 {:6} us, max {:7} us  answered {:6.2} %  latency p50 {:6} us, p99 {:7} us",
        lag.p50,
        lag.p99,
        lag.max,
        100.0 * answered,
        latency.p50,
        latency.p99
    );
    lag.p99 < LAG_MAX && answered >= ANSWERED_MIN
}

fn connect(target: &str) -> Result<(Arc<dyn Connect>, String), Box<dyn Error>> {
    if let Some((cluster, endpoint)) = target.strip_prefix("weir://").and_then(|rest| rest.split_once('/')) {
        let file = std::env::var("WEIR_TOKEN_FILE").map_err(|_| "name the token's file with WEIR_TOKEN_FILE")?;
        let token = Token::read_file(&SystemDisk, Path::new(&file))?;
        let coordinators = cluster.split(',').map(str::to_owned).collect();
        return Ok((
            Arc::new(Weir { options: Options { coordinators, token }, holds_back: true }),
            endpoint.to_owned(),
        ));
    }
    match Address::parse(target)? {
        Address::OipHttp(server) => {
            let model = server.model.ok_or("name a model: oip-http://HOST:PORT/MODEL")?;
            Ok((Arc::new(OipHttp { authority: server.authority, metadata: None }), model))
        }
        _ => Err("write weir://HOST:PORT/ENDPOINT, oip-http://HOST:PORT/MODEL, or http".into()),
    }
}

fn config(
    target: &str,
    endpoint: &str,
    data: Arc<Data>,
    (rate, seconds, threads): (f64, f64, usize),
) -> Result<RunConfig, Box<dyn Error>> {
    let process = Arrivals::Poisson.process(Some(Rate::per_second(rate)?), None)?;
    let (name, endpoint) = (endpoint.to_owned(), endpoint.to_owned());
    Ok(RunConfig {
        target: target.to_owned(),
        arrivals: "poisson".into(),
        rate: Some(rate),
        question: None,
        goal: None,
        parts: Vec::new(),
        sending: Loop::Open(vec![Flow { process, choices: vec![(0, 1.0)] }]),
        streams: Arc::new([Stream { name, endpoint, data, labels: None, label_output: None, deadline: DEADLINE }]),
        duration: Duration::from_secs_f64(seconds),
        seed: 7,
        rows_per_query: 1,
        connections: 4 * threads,
        threads,
    })
}

/// The server that does nothing, on a thread; its target.
fn served_here() -> Result<String, Box<dyn Error>> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let target = format!("oip-http://{}/m", listener.local_addr()?);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
        runtime
            .block_on(async { serve(TcpListener::from_std(listener).expect("a listener")).await.expect("a server") });
    });
    Ok(target)
}

async fn serve(listener: TcpListener) -> Result<(), Box<dyn Error>> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(answer(socket));
    }
}

/// Reads requests one after the other, by their length alone, and gives each the same answer.
async fn answer(mut socket: TcpStream) {
    let (mut read, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    while let Ok(n @ 1..) = socket.read(&mut buffer).await {
        read.extend_from_slice(&buffer[..n]);
        while let Some(head) = read.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) {
            let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
            let length = text.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            let whole = head + length.unwrap_or(0usize);
            if read.len() < whole {
                break;
            }
            let body = match text.split_whitespace().nth(1) {
                Some("/v2") => r#"{"extensions":["binary_tensor_data"]}"#,
                Some("/v2/models/m") => {
                    r#"{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1,8]}],"outputs":[{"name":"y"}]}"#
                }
                _ => r#"{"outputs":[{"name":"y","datatype":"FP32","shape":[1,1],"data":[0.5]}]}"#,
            };
            let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            read.drain(..whole);
            if socket.write_all(response.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}
