//! Does a node give memory back? Loads a model, asks it, and unloads it, over and over, in a cluster of real processes, and
//! compares what is resident after the last cycles with what was after the first hundred.
//!
//! `cargo build -p weir-cli && cargo run -p weir-tests --example does_memory_come_back [CYCLES MODEL]`
//! (1,000 cycles of demo/mid.onnx, eleven minutes). Exit code 1 where more than 5 % stayed.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use weir_client::{Admin, Client, Options, Request, Token};
use weir_core::ids::EndpointName;
use weir_core::outcome::Outcome;
use weir_core::placement::ReplicaState;
use weir_core::replicated::Command;
use weir_core::tensor::Tensor;
use weir_host::Host;
use weir_host::disk::SystemDisk;
use weir_tests::processes::{Cluster, resident, root, told};

/// Cycles before which threads, caches and the allocator may still grow.
const WARM_UP: usize = 100;
/// What is compared is the median over so many cycles: a single one may meet a log that is being written.
const LOOKED_AT: usize = 25;
/// What may stay.
const GOAL: f64 = 1.05;

/// Waits until a process has no more threads than it had: a model is freed by the thread that ran it, after the node has
/// said that it is gone.
async fn threads(pid: u32, most: u64) {
    let started = Instant::now();
    while told(pid, "Threads") > most && started.elapsed() < Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn median(of: &[u64]) -> u64 {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Waits until the node says that so many replicas are ready, and that it has no other.
async fn replicas(admin: &Admin, wanted: usize) {
    let started = Instant::now();
    loop {
        let status = admin.status().await.expect("a leader answers");
        let report = status.nodes[0].report.as_ref().expect("the node reports");
        let ready = |state: &ReplicaState| matches!(state, ReplicaState::Ready(_));
        if report.replicas.len() == wanted && report.replicas.values().all(|replica| ready(&replica.state)) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "the node says {:?}", report.replicas);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let cycles: usize = arguments.next().map_or(1000, |cycles| cycles.parse().expect("a number of cycles"));
    let model = arguments.next().unwrap_or_else(|| root().join("demo/mid.onnx").display().to_string());
    assert!(cycles >= WARM_UP + LOOKED_AT, "{} cycles at least", WARM_UP + LOOKED_AT);
    let cluster = Cluster::start(1, 1);
    let file = format!(
        "[[model]]\nname = \"m\"\nversion = \"1\"\npath = \"{model}\"\n[[endpoint]]\nname = \"e\"\nmodel = \"m@1\"\n"
    );
    cluster.ok(&["apply", "-f", &cluster.write("memory.toml", file)]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let after = runtime.block_on(tokio::task::LocalSet::new().run_until(cycle(&cluster, cycles)));
    let (first, last) = (&after[WARM_UP..WARM_UP + LOOKED_AT], &after[cycles - LOOKED_AT..]);
    let grown = median(last) as f64 / median(first) as f64;
    println!("after {WARM_UP} cycles {} KiB, after {cycles} {} KiB: {grown:.3} times", median(first), median(last));
    ExitCode::from(u8::from(grown > GOAL))
}

/// What was resident in the node after each cycle.
async fn cycle(cluster: &Cluster, cycles: usize) -> Vec<u64> {
    let token = Token::read_file(&SystemDisk, Path::new(&cluster.path("c1/admin.token"))).expect("it was written");
    let options = Options { coordinators: vec![cluster.addresses()], token };
    let client = Client::connect(options.clone()).await.expect("a coordinator answers");
    let admin = Admin::new(Host::system(), options);
    let state = admin.status().await.expect("a leader answers").state;
    let (models, endpoints): (Vec<_>, Vec<_>) =
        (state.models.into_values().collect(), state.endpoints.into_values().collect());
    let name = EndpointName::parse("e").expect("a name");
    let input = &models[0].signature.inputs[0];
    // One row, and one element for each dimension that is free.
    let shape: Vec<u64> = input.shape.iter().map(|dim| dim.unwrap_or(1)).collect();
    let zeros = vec![0.0; shape.iter().product::<u64>() as usize];
    let request = Request {
        endpoint: name.clone(),
        inputs: vec![(input.name.clone(), Tensor::f32(&shape, &zeros))],
        whole: false,
        deadline: Some(Duration::from_secs(20)),
        class: None,
        outputs: Vec::new(),
        min_stage: None,
        max_stage: None,
        trace: false,
    };
    let (node, coordinator) = (cluster.nodes[0].pid(), cluster.coordinators[0].pid());
    // What was applied to have the model uploaded goes first.
    admin.write(Command::DeleteEndpoint(name.clone())).await.expect("it is deleted");
    replicas(&admin, 0).await;
    let mut after = Vec::with_capacity(cycles);
    let started = Instant::now();
    for number in 1..=cycles {
        let before = told(node, "Threads");
        let command = Command::Apply { models: models.clone(), endpoints: endpoints.clone(), if_index: None };
        admin.write(command).await.expect("it is applied");
        replicas(&admin, 1).await;
        let loaded = resident(node);
        // A node routes by what the leader tells it with the answer to its next report.
        let asked = Instant::now();
        while client.predict(request.clone()).await.expect("a node answers")[0].outcome != Outcome::Answered {
            assert!(asked.elapsed() < Duration::from_secs(20), "nobody answers");
        }
        admin.write(Command::DeleteEndpoint(name.clone())).await.expect("it is deleted");
        replicas(&admin, 0).await;
        threads(node, before).await;
        after.push(resident(node));
        if number == 1 || number % 100 == 0 {
            let (spent, unloaded, other) = (started.elapsed().as_secs(), after[number - 1], resident(coordinator));
            println!("cycle {number}, {spent} s: loaded {loaded} KiB, unloaded {unloaded}; the coordinator {other}");
        }
    }
    after
}
