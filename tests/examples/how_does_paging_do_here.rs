//! What becomes of queries to many more models than memory holds, in a cluster of real processes? Copies of demo/mid.onnx on one node, asked by
//! Zipf's law (s = 1) with Poisson arrivals from this process.
//!
//! `cargo build --release -p weir-cli && cargo run --release -p weir-tests --example how_does_paging_do_here [MODELS MEMORY RATE SECONDS
//! DEADLINE_MS]`: 200, 40MiB, 50, 60 and 200 where nobody says. Exit code 1 where memory was exceeded, or something was neither answered nor refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use weir_client::{Admin, Client, Options, Request, Token};
use weir_core::ids::EndpointName;
use weir_core::outcome::Outcome;
use weir_core::paging::Residence;
use weir_core::prng::Prng;
use weir_core::tensor::Tensor;
use weir_host::Host;
use weir_host::disk::SystemDisk;
use weir_tests::processes::{Cluster, root};

/// What is asked.
#[derive(Clone, Copy)]
struct Load {
    models: usize,
    rate: f64,
    length: Duration,
    deadline: Duration,
}

/// What became of it.
#[derive(Default)]
struct Totals {
    in_time: usize,
    late: usize,
    expired: usize,
    other: usize,
    /// By reason.
    refused: BTreeMap<&'static str, usize>,
    /// Of answers.
    latencies: Vec<Duration>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, otherwise: u64| -> u64 {
        arguments.get(i).map_or(otherwise, |text| text.parse().expect("a whole number"))
    };
    let memory = arguments.get(1).map_or("40MiB", String::as_str);
    let load = Load {
        models: number(0, 200) as usize,
        rate: number(2, 50) as f64,
        length: Duration::from_secs(number(3, 60)),
        deadline: Duration::from_millis(number(4, 200)),
    };
    let cluster = Cluster::start_with(1, 1, &["--memory", memory, "--cpu-slots", "1"]);
    let model = root().join("demo/mid.onnx").display().to_string();
    let both = |i: usize| {
        format!(
            "[[model]]\nname = \"m{i}\"\nversion = \"1\"\npath = \"{model}\"\n[[endpoint]]\nname = \"e{i}\"\nmodel = \"m{i}@1\"\n"
        )
    };
    let file: String = (0..load.models).map(both).collect();
    let begun = Instant::now();
    cluster.ok(&["apply", "-f", &cluster.write("all.toml", file)]);
    println!("{} models applied, loaded once and measured in {:.1} s", load.models, begun.elapsed().as_secs_f64());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let fits = runtime.block_on(tokio::task::LocalSet::new().run_until(ask(&cluster, load)));
    ExitCode::from(u8::from(!fits))
}

/// Asks, and prints what became of it; whether all is as it should be.
async fn ask(cluster: &Cluster, load: Load) -> bool {
    let token = Token::read_file(&SystemDisk, Path::new(&cluster.path("c1/admin.token"))).expect("it was written");
    let options = Options { coordinators: vec![cluster.addresses()], token };
    let client = Client::connect(options.clone()).await.expect("a coordinator answers");
    let admin = Admin::new(Host::system(), options);
    let mut prng = Prng::new(1);
    let weights: Vec<f64> = (1..=load.models).map(|rank| 1.0 / rank as f64).collect();
    let whole: f64 = weights.iter().sum();
    let (begun, mut next) = (Instant::now(), 0.0);
    let mut asked = Vec::new();
    while next < load.length.as_secs_f64() {
        tokio::time::sleep_until((begun + Duration::from_secs_f64(next)).into()).await;
        let mut left = prng.uniform() * whole;
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        let request = Request {
            endpoint: EndpointName::parse(&format!("e{}", drawn.unwrap_or(0))).expect("a name"),
            inputs: vec![("x".into(), Tensor::f32(&[1, 1, 28, 28], &[0.5; 784]))],
            whole: false,
            deadline: Some(load.deadline),
            class: None,
            outputs: Vec::new(),
            min_stage: None,
            max_stage: None,
            trace: false,
        };
        let client = client.clone();
        let sent = Instant::now();
        asked.push(tokio::task::spawn_local(async move {
            let answers = client.predict(request).await.expect("a node answers");
            (answers[0].outcome, sent.elapsed(), answers[0].message.clone())
        }));
        next -= (1.0 - prng.uniform()).ln() / load.rate;
    }
    let offered = asked.len();
    let mut totals = Totals::default();
    for query in asked {
        let (outcome, took, message) = query.await.expect("it ends");
        match outcome {
            Outcome::Answered => {
                totals.latencies.push(took);
                if took <= load.deadline { totals.in_time += 1 } else { totals.late += 1 }
            }
            Outcome::Rejected(why) => *totals.refused.entry(why.word()).or_default() += 1,
            Outcome::Expired => totals.expired += 1,
            Outcome::Failed | Outcome::Unknown => {
                totals.other += 1;
                println!("{}: {message}", outcome.word());
            }
        }
    }
    totals.latencies.sort_unstable();
    let quantile = |share: f64| totals.latencies.get((share * totals.latencies.len() as f64) as usize);
    println!(
        "{offered} queries: {:.2} % in time, {} late, refused {:?}, {} expired, {} other; p50 {:?}, p90 {:?}, p99 {:?}",
        100.0 * totals.in_time as f64 / offered as f64,
        totals.late,
        totals.refused,
        totals.expired,
        totals.other,
        quantile(0.5).copied().unwrap_or_default(),
        quantile(0.9).copied().unwrap_or_default(),
        quantile(0.99).copied().unwrap_or_default(),
    );
    let status = admin.status().await.expect("a leader answers");
    let report = status.nodes[0].report.as_ref().expect("the node reports");
    let paged: Vec<_> = report.replicas.values().filter_map(|replica| replica.paged.as_ref()).collect();
    let sum = |of: fn(&weir_core::paging::Paged) -> u64| paged.iter().map(|paged| of(paged)).sum::<u64>();
    let reload = paged.iter().map(|paged| paged.reload.as_secs_f64()).sum::<f64>() / paged.len().max(1) as f64;
    let memory = report.memory;
    println!(
        "{} of {} models are resident, {} KiB of {} taken, all would take {}; {} queries found their model out of memory, {} loads, {} evictions, {:.1} ms a reload; it thrashed {} times",
        paged.iter().filter(|paged| paged.residence == Residence::Resident).count(),
        paged.len(),
        memory.taken.0 >> 10,
        memory.size.0 >> 10,
        memory.placed.0 >> 10,
        sum(|paged| paged.cold),
        sum(|paged| paged.loads),
        sum(|paged| paged.evictions),
        1e3 * reload,
        memory.thrashings,
    );
    memory.taken <= memory.size && totals.other == 0
}
