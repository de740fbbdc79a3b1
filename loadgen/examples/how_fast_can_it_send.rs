//! How many queries a second can be sent in time? To a bare echo on loopback, over connections that carry many calls each:
//! what is left is the generator's own lag.
//!
//! `cargo run --release -p weir-loadgen --example how_fast_can_it_send -- RATE SECONDS [THREADS]`. On Linux, `taskset` gives
//! the echo and the generator a core each: the echo is the process that `--echo` starts.
//!
//! Instead of a rate it takes arrivals that have one. A trace (`trace:FILE,speed=100`) is sent to its end, by one thread, and what was
//! sent is held against it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use weir_core::outcome::Outcome;
use weir_core::prng::Prng;
use weir_core::tensor::Tensor;
use weir_core::units::Instant;
use weir_core::workload::{Arrivals, Rate, Statistics};
use weir_loadgen::data::Data;
use weir_loadgen::run::{Loop, RunConfig, run, stopper};
use weir_loadgen::schedule::Flow;
use weir_loadgen::target::{Ask, Connect, Described, Reply, RowReply, Stream, Target, TargetError};
use weir_loadgen::trace;

/// A number, and as many bytes as a small query has.
const FRAME: usize = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if arguments.first().is_some_and(|first| first == "--echo") {
        return runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("{}", listener.local_addr()?);
            echo(listener).await
        });
    }
    let number = |i: usize, default: f64| arguments.get(i).map_or(Ok(default), |text| text.parse::<f64>());
    let arrivals = arguments.first().filter(|text| text.parse::<f64>().is_err());
    let rate = if arrivals.is_some() { None } else { Some(Rate::per_second(number(0, 20_000.0)?)?) };
    let arrivals = arrivals.map_or(Ok(Arrivals::Poisson), |text| Arrivals::parse(text))?;
    let trace = arrivals.trace_file().map(|file| trace::read(Path::new(file))).transpose()?;
    let process = arrivals.process(rate, trace.as_ref())?;
    let (seconds, threads) = (number(1, 10.0)?, number(2, 1.0)? as usize);
    // A trace's last query is due at its length.
    let ends = process.length().map(|length| length + Duration::from_millis(1));
    let duration = ends.unwrap_or(Duration::from_secs_f64(seconds));
    // With ECHO an echo of its own, elsewhere; without, a thread of this process.
    let address = match std::env::var("ECHO") {
        Ok(address) => address,
        Err(_) => {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?.to_string();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
                runtime.block_on(async {
                    echo(TcpListener::from_std(listener).expect("a listener")).await.expect("an echo")
                });
            });
            address
        }
    };
    // Without a scale a trace draws nothing: these are the instants of the run.
    let meant: Vec<Instant> = process.instants(Prng::new(7)).take_while(|_| ends.is_some()).collect();
    let config = RunConfig {
        target: format!("echo at {address}"),
        arrivals: arrivals.to_text(),
        rate: rate.map(Rate::as_per_second),
        question: None,
        goal: None,
        parts: Vec::new(),
        sending: Loop::Open(vec![Flow { process, choices: vec![(0, 1.0)] }]),
        streams: Arc::new([Stream {
            name: "echo".into(),
            endpoint: "echo".into(),
            data: Arc::new(Data::of(Tensor::f32(&[64, 1], &[0.0; 64])).fit(&[])?),
            labels: None,
            label_output: None,
            deadline: Duration::from_millis(50),
        }]),
        duration,
        seed: 7,
        rows_per_query: 1,
        connections: 4 * threads,
        threads,
    };
    let (_stopper, stop) = stopper();
    let sent = Arc::new(Mutex::new(Vec::with_capacity(meant.len())));
    let result = runtime.block_on(run(&config, Arc::new(Echo { address, sent: Arc::clone(&sent) }), stop, |_| ()))?;
    print!("{}", result.table());
    let lag = result.send_lag_us;
    println!("send lag        p50 {} us, p99 {} us, max {} us", lag.p50, lag.p99, lag.max);
    if ends.is_some() {
        hold_against(&meant, &sent.lock().expect("nobody panicked"));
    }
    Ok(())
}

/// What was sent against what was meant: in number, in each tenth of a second, and in dispersion.
fn hold_against(meant: &[Instant], sent: &[std::time::Instant]) {
    assert_eq!(meant.len(), sent.len(), "as many were sent as the trace has");
    let Some(origin) = sent.first() else { return };
    // Where the run's clock began is not told: the query that was sent with the least lag says when at the latest. So no query
    // counts before its instant, and lags are told from that one's.
    let nanos = |at: &std::time::Instant| at.duration_since(*origin).as_nanos() as i64;
    let late = |(meant, sent): (&Instant, &std::time::Instant)| nanos(sent) - meant.as_nanos() as i64;
    let begin = meant.iter().zip(sent).map(late).min().unwrap_or_default();
    let sent: Vec<Instant> = sent.iter().map(|at| Instant::from_nanos((nanos(at) - begin) as u64)).collect();
    let counts = |instants: &[Instant]| {
        let mut counts: BTreeMap<u64, i64> = BTreeMap::new();
        instants.iter().for_each(|at| *counts.entry(at.as_nanos() / 100_000_000).or_default() += 1);
        counts
    };
    let (wanted, got) = (counts(meant), counts(&sent));
    let windows = meant.last().map_or(0, |last| last.as_nanos() / 100_000_000 + 1);
    let other = (0..windows).filter(|window| wanted.get(window) != got.get(window)).count();
    println!(
        "windows         {windows} of 100 ms, {} with just the trace's count as sent, lag included",
        windows - other as u64
    );
    // Windows begin with the first instant: with one at zero they are the same for both.
    let figures = |instants: &[Instant]| Statistics::of(&[&[Instant::ZERO], instants].concat()).windows;
    for (of_trace, as_sent) in figures(meant).iter().zip(figures(&sent)) {
        if let (Some(of_trace), Some(got)) = (of_trace.dispersion, as_sent.dispersion) {
            let change = 100.0 * (got / of_trace - 1.0);
            println!("dispersion      {of_trace:8.3} in {:?}: {got:8.3} as sent ({change:+.3} %)", as_sent.width);
        }
    }
}

async fn echo(listener: TcpListener) -> Result<(), Box<dyn Error>> {
    loop {
        let (mut socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n @ 1..) = socket.read(&mut buffer).await {
                if socket.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        });
    }
}

struct Echo {
    address: String,
    /// When each query was handed to a connection.
    sent: Arc<Mutex<Vec<std::time::Instant>>>,
}

impl Connect for Echo {
    fn name(&self) -> String {
        self.address.clone()
    }

    fn describe<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, Result<Described, TargetError>> {
        Box::pin(async { Err(TargetError::NotFound("an echo has no models".into())) })
    }

    fn connect(&self, _: Arc<[Stream]>, connections: usize) -> LocalBoxFuture<'_, Result<Rc<dyn Target>, TargetError>> {
        Box::pin(async move {
            let mut lines = Vec::new();
            for _ in 0..connections.max(1) {
                let socket =
                    TcpStream::connect(&self.address).await.map_err(|e| TargetError::Unreachable(e.to_string()))?;
                lines.push(Line::new(socket).map_err(|e| TargetError::Unreachable(e.to_string()))?);
            }
            Ok(Rc::new(Lines { lines, next: Cell::new(0), sent: Arc::clone(&self.sent) }) as Rc<dyn Target>)
        })
    }
}

struct Lines {
    lines: Vec<Rc<Line>>,
    next: Cell<u64>,
    sent: Arc<Mutex<Vec<std::time::Instant>>>,
}

#[derive(Default)]
struct Line {
    unsent: RefCell<Vec<u8>>,
    more: Notify,
    open: RefCell<HashMap<u64, oneshot::Sender<()>>>,
}

impl Line {
    fn new(socket: TcpStream) -> std::io::Result<Rc<Line>> {
        socket.set_nodelay(true)?;
        let (mut read, mut write) = socket.into_split();
        let line = Rc::new(Line::default());
        let writing = Rc::clone(&line);
        tokio::task::spawn_local(async move {
            loop {
                let bytes = std::mem::take(&mut *writing.unsent.borrow_mut());
                if bytes.is_empty() {
                    writing.more.notified().await;
                } else if write.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        let reading = Rc::clone(&line);
        tokio::task::spawn_local(async move {
            let (mut buffer, mut bytes) = (vec![0; 1 << 16], Vec::new());
            while let Ok(n @ 1..) = read.read(&mut buffer).await {
                bytes.extend_from_slice(&buffer[..n]);
                let whole = bytes.len() / FRAME * FRAME;
                for frame in bytes.drain(..whole).as_slice().chunks_exact(FRAME) {
                    let id = u64::from_le_bytes(frame[..8].try_into().expect("eight bytes"));
                    if let Some(reply) = reading.open.borrow_mut().remove(&id) {
                        let _ = reply.send(());
                    }
                }
            }
        });
        Ok(line)
    }
}

impl Target for Lines {
    fn ask(&self, ask: Ask) -> LocalBoxFuture<'static, Reply> {
        let id = self.next.get();
        self.next.set(id + 1);
        let line = &self.lines[id as usize % self.lines.len()];
        let (reply, replied) = oneshot::channel();
        line.open.borrow_mut().insert(id, reply);
        let mut frame = [0; FRAME];
        frame[..8].copy_from_slice(&id.to_le_bytes());
        line.unsent.borrow_mut().extend_from_slice(&frame);
        line.more.notify_one();
        self.sent.lock().expect("nobody panicked").push(std::time::Instant::now());
        Box::pin(async move {
            match replied.await {
                Ok(()) => {
                    Reply { rows: vec![RowReply::default(); ask.rows.len()], ..Reply::none(Outcome::Answered, "") }
                }
                Err(_) => Reply::none(Outcome::Unknown, "the connection broke"),
            }
        })
    }
}
