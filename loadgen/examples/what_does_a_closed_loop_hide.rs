//! What does a closed loop hide? A server that answers in 2 ms and stands still in the last second of every ten, measured by both loops in
//! real time, against theory: a tenth of all queries falls due while it stands, and waits evenly up to a second.
//!
//! `cargo run --release -p weir-loadgen --example what_does_a_closed_loop_hide`. Takes two minutes.

use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use tokio::time::Instant;
use weir_core::outcome::Outcome;
use weir_core::tensor::Tensor;
use weir_core::workload::{Arrivals, Rate};
use weir_loadgen::data::Data;
use weir_loadgen::run::{Loop, RunConfig, run, stopper};
use weir_loadgen::schedule::Flow;
use weir_loadgen::target::{Ask, Connect, Described, Reply, RowReply, Stream, Target, TargetError};

const RATE: f64 = 500.0;
const PERIOD: f64 = 10.0;
const STALL: f64 = 1.0;
const WORK: Duration = Duration::from_millis(2);

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let process = Arrivals::Constant.process(Some(Rate::per_second(RATE)?), None)?;
    let work = WORK.as_secs_f64();
    // Of all queries a share of (STALL − x) / PERIOD waits longer than x.
    let waits_longer = |share: f64| 1e3 * (work + (STALL - share * PERIOD).max(0.0));
    println!(
        "theory       p50 {:7.1} ms, p99 {:7.1} ms, max {:7.1} ms",
        1e3 * work,
        waits_longer(0.01),
        waits_longer(0.0)
    );
    let open = Loop::Open(vec![Flow { process, choices: vec![(0, 1.0)] }]);
    for (name, sending) in [("open loop", open), ("closed loop", Loop::Closed(1))] {
        let config = RunConfig {
            target: "a server that stalls".into(),
            arrivals: name.into(),
            rate: None,
            question: None,
            goal: None,
            parts: Vec::new(),
            sending,
            streams: Arc::new([Stream {
                name: "e".into(),
                endpoint: "e".into(),
                data: Arc::new(Data::of(Tensor::f32(&[1, 1], &[0.0])).fit(&[])?),
                labels: None,
                label_output: None,
                deadline: Duration::from_millis(50),
            }]),
            duration: Duration::from_secs(60),
            seed: 7,
            rows_per_query: 1,
            connections: 1,
            threads: 1,
        };
        let (_stopper, stop) = stopper();
        let result = runtime.block_on(run(&config, Arc::new(Stalling), stop, |_| ()))?;
        let ms = |us: u64| us as f64 / 1e3;
        let latency = result.latency_us;
        println!(
            "{name:<13}p50 {:7.1} ms, p99 {:7.1} ms, max {:7.1} ms; {:.2} % of {} within 50 ms; send lag p99 {} us",
            ms(latency.p50),
            ms(latency.p99),
            ms(latency.max),
            100.0 * result.attainment,
            result.offered,
            result.send_lag_us.p99
        );
    }
    Ok(())
}

struct Stalling;

impl Connect for Stalling {
    fn name(&self) -> String {
        "a server that stalls".into()
    }

    fn describe<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, Result<Described, TargetError>> {
        Box::pin(async { Err(TargetError::NotFound("it has no models".into())) })
    }

    fn connect(&self, _: Arc<[Stream]>, _: usize) -> LocalBoxFuture<'_, Result<Rc<dyn Target>, TargetError>> {
        Box::pin(async { Ok(Rc::new(Clock(Instant::now())) as Rc<dyn Target>) })
    }
}

/// Since when it runs.
struct Clock(Instant);

impl Target for Clock {
    fn ask(&self, ask: Ask) -> LocalBoxFuture<'static, Reply> {
        let phase = self.0.elapsed().as_secs_f64() % PERIOD;
        let stands = Duration::from_secs_f64(if phase >= PERIOD - STALL { PERIOD - phase } else { 0.0 });
        let done = Instant::now() + stands + WORK;
        Box::pin(async move {
            tokio::time::sleep_until(done).await;
            Reply { rows: vec![RowReply::default(); ask.rows.len()], ..Reply::none(Outcome::Answered, "") }
        })
    }
}
