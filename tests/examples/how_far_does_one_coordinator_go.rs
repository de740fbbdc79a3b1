//! How far does one coordinator go? The leader's own code (state machine, beliefs, tuner, market, placement) on many nodes and models in
//! virtual time, its time measured: what a plan takes from nothing and after a change, how large entries and reports are, what
//! reports cost, and how plans follow hours of a trace.
//!
//! `cargo run --release -p weir-tests --example how_far_does_one_coordinator_go [NODES MODELS MINUTES TRACE]`
//! (1,000 nodes, 10,000 models, 10 minutes of the trace in benches/traces).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use weir_core::endpoint::{Endpoint, Stage};
use weir_core::ids::{DeviceName, Digest, EndpointName, LogIndex, ModelRef, NodeName, ReplicaId, RequestId, StageName};
use weir_core::paging::MemoryNow;
use weir_core::placement::{
    DeviceLoad, Liveness, Look, NodeReport, Placement, ReplicaProfile, ReplicaReport, ReplicaState,
};
use weir_core::prng::Prng;
use weir_core::replicated::{Command, Device, EngineKind, Entry, Model, Moves, Node, ReplicaRange, State};
use weir_core::scheduler::Batches;
use weir_core::tensor::{DType, Signature, TensorSpec};
use weir_core::triage::{Asked, Market};
use weir_core::tuner::Tuner;
use weir_core::units::{Bytes, Instant, ServiceTime};
use weir_schema::convert::control::{entry_to_bytes, state_to_bytes};
use weir_schema::convert::report::write_report;

const SLOTS: u32 = 2;
/// Replicas for which a node has memory.
const ROOM: u64 = 40;
const MEMORY: u64 = 100 << 20;
/// Share of all slots that is asked for on average.
const LOAD: f64 = 0.4;

/// Milliseconds that something took, and what came of it.
fn timed<T>(what: impl FnOnce() -> T) -> (f64, T) {
    let begun = std::time::Instant::now();
    let made = what();
    (begun.elapsed().as_secs_f64() * 1e3, made)
}

fn model_ref(i: usize) -> ModelRef {
    ModelRef::parse(&format!("model-{i:05}@1")).expect("a name")
}

fn model(i: usize) -> Model {
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![None, Some(64)] };
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&(i as u64).to_be_bytes());
    Model {
        reference: model_ref(i),
        digest: Digest(digest),
        size: Bytes(MEMORY),
        engine: EngineKind::Onnx,
        signature: Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] },
        max_batch: None,
        shapes: Default::default(),
        replicas: ReplicaRange { min: 1, max: u32::MAX },
        quarantined: None,
    }
}

fn endpoint(i: usize) -> Endpoint {
    let stage = Stage::new(StageName::parse("only").expect("a name"), model_ref(i), None);
    Endpoint::new(
        EndpointName::parse(&format!("endpoint-{i:05}")).expect("a name"),
        Duration::from_millis(50),
        vec![stage],
    )
}

fn node(i: usize) -> Node {
    let device = Device { name: device(), kind: "cpu".into(), slots: SLOTS, hardware: "measured".into() };
    Node {
        name: NodeName::parse(&format!("node-{i:04}")).expect("a name"),
        address: format!("10.0.{}.{}:7400", i / 256, i % 256),
        devices: vec![device],
        memory: Bytes(ROOM * MEMORY),
        draining: false,
    }
}

fn device() -> DeviceName {
    DeviceName::parse("cpu0").expect("a name")
}

/// Everything that a leader has.
struct Leader {
    state: State,
    liveness: Liveness,
    tuner: Tuner,
    placement: Placement,
    market: Market,
    index: u64,
}

impl Leader {
    fn run(&mut self, command: Command) -> usize {
        self.index += 1;
        let entry = Entry { request: RequestId(u128::from(self.index)), by: "leader".into(), command };
        let bytes = entry_to_bytes(&entry).len();
        let (applied, _) = self.state.apply(LogIndex(self.index), &entry);
        applied.expect("it applies");
        bytes
    }

    fn look(&mut self, now: Instant) -> Look {
        self.placement.look(now, &self.state, &self.liveness, &mut self.tuner)
    }

    fn set(&mut self, moves: Moves) -> usize {
        self.run(Command::MovePlan { replaces: self.state.plan.epoch, moves })
    }

    /// What a node says: everything assigned to it serves at once.
    fn report(&self, node: &NodeName, replicas: &[ReplicaId], wanted: BTreeMap<ModelRef, u64>) -> NodeReport {
        let profile = ReplicaProfile {
            points: vec![(1, us(2000)), (4, us(5000)), (16, us(17_000))],
            max_batch: 16,
            unbatched: String::new(),
            memory: Bytes(MEMORY),
            informed: true,
        };
        let replica = ReplicaReport {
            state: ReplicaState::Ready(profile),
            deaths: 0,
            last_death: String::new(),
            batches: Batches::default(),
            paged: None,
        };
        NodeReport {
            node: node.clone(),
            incarnation: 1,
            epoch: self.state.plan.epoch,
            replicas: replicas.iter().map(|id| (*id, replica.clone())).collect(),
            devices: vec![DeviceLoad { device: device(), busy: us(0), queued: 0, backlog: us(0) }],
            endpoints: Vec::new(),
            up: Duration::from_secs(60),
            draining: false,
            asked: wanted.keys().take(4).map(|model| (model.clone(), Asked::of(&[0.1; 40]))).collect(),
            wanted,
            memory: MemoryNow::default(),
        }
    }

    fn by_node(&self) -> BTreeMap<NodeName, Vec<ReplicaId>> {
        let mut by_node: BTreeMap<NodeName, Vec<ReplicaId>> = BTreeMap::new();
        for (id, at) in &self.state.plan.assignments {
            by_node.entry(at.node.clone()).or_default().push(*id);
        }
        by_node
    }

    fn hear(&mut self, now: Instant, report: NodeReport) {
        self.market.on_report(now, &report.node, report.asked.clone());
        self.tuner.on_report(now, &report.node, report.incarnation, &report.wanted);
        self.liveness.on_report(now, &self.state, report);
    }
}

fn us(micros: u64) -> ServiceTime {
    ServiceTime::from_micros(micros)
}

/// Rows a second of each model: Zipf in size, each with the course of one client of the trace from some instant on.
struct Demand {
    mean: Vec<f64>,
    course: Vec<Vec<f64>>,
    shift: Vec<usize>,
}

impl Demand {
    fn new(models: usize, nodes: usize, trace: &Path, prng: &mut Prng) -> Demand {
        let trace = weir_loadgen::trace::read(trace).expect("a trace");
        let seconds = trace.length().as_secs() as usize + 1;
        let mut course = Vec::new();
        for name in trace.models() {
            let mut counts = vec![0.0; seconds];
            for at in trace.of_model(name).expect("it is named").instants() {
                counts[(at.as_nanos() / 1_000_000_000) as usize] += 1.0;
            }
            let mean = counts.iter().sum::<f64>() / seconds as f64;
            counts.iter_mut().for_each(|count| *count /= mean);
            course.push(counts);
        }
        let weights: Vec<f64> = (1..=models).map(|rank| (rank as f64).powf(-0.9)).collect();
        let rows = LOAD * nodes as f64 * f64::from(SLOTS) / 0.001_25;
        let all: f64 = weights.iter().sum();
        let shift = (0..models).map(|_| prng.below(seconds as u64) as usize).collect();
        Demand { mean: weights.iter().map(|weight| weight / all * rows).collect(), course, shift }
    }

    /// Rows of a model in the quarter of a second that ends at `now`.
    fn draw(&self, model: usize, now: Instant, prng: &mut Prng) -> u64 {
        let course = &self.course[model % self.course.len()];
        let second = (now.as_nanos() / 1_000_000_000) as usize + self.shift[model];
        let mean = self.mean[model] * course[second % course.len()] / 4.0;
        (mean + mean.sqrt() * prng.normal()).round().max(0.0) as u64
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| arguments.get(i).map_or(default, |text| text.parse().expect("a number"));
    let (nodes, models, minutes) = (number(0, 1000), number(1, 10_000), number(2, 10));
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/traces/servegen_clients_5min.csv.gz");
    let trace = arguments.get(3).map_or(bundled, Into::into);
    println!("{nodes} nodes with {SLOTS} slots and memory for {ROOM} replicas, {models} models");

    let mut now = Instant::from_millis(1000);
    let mut leader = Leader {
        state: State::default(),
        liveness: Liveness::new(now),
        tuner: Tuner::new(now),
        placement: Placement::default(),
        market: Market::default(),
        index: 0,
    };
    leader.run(Command::Found { cluster: "big".into(), grants: Vec::new() });
    (0..nodes).for_each(|i| {
        leader.run(Command::NodeJoin(node(i)));
    });
    let all: Vec<usize> = (0..models).collect();
    for some in all.chunks(500) {
        let (models, endpoints) =
            (some.iter().map(|i| model(*i)).collect(), some.iter().map(|i| endpoint(*i)).collect());
        leader.run(Command::Apply { models, endpoints, if_index: None });
    }

    let (took, first) = timed(|| leader.look(now));
    println!("a plan from nothing               {took:9.1} ms, {} replicas", first.moves.placed.len());
    let (took, bytes) = timed(|| leader.set(first.moves));
    println!("its entry                         {:9.1} KB, encoded and applied in {took:.1} ms", bytes as f64 / 1e3);
    println!("the state                         {:9.1} KB", state_to_bytes(&leader.state).len() as f64 / 1e3);

    // A minute in which everybody reports and nobody asks: everything is ready, and settled.
    let names: Vec<NodeName> = (0..nodes).map(|i| node(i).name).collect();
    let by_node = leader.by_node();
    for _ in 0..4 {
        now = now + Duration::from_secs(20);
        for name in &names {
            let report = leader.report(name, by_node.get(name).map_or(&[], Vec::as_slice), BTreeMap::new());
            leader.hear(now, report);
        }
    }
    let (took, again) = timed(|| leader.look(now));
    assert!(again.moves.is_nothing(), "nothing moves");
    println!("a look once all have reported     {took:9.1} ms");
    let (took, again) = timed(|| leader.look(now));
    assert!(again.moves.is_nothing(), "nothing moves");
    println!("a look at which nothing changes   {took:9.1} ms");
    leader.run(Command::Apply { models: vec![model(models)], endpoints: vec![endpoint(models)], if_index: None });
    let (took, more) = timed(|| leader.look(now));
    let moved = moved(&more.moves);
    let bytes = leader.set(more.moves);
    println!(
        "one more model                    {took:9.1} ms, {moved} replicas placed or gone, an entry of {:.1} KB",
        bytes as f64 / 1e3
    );

    follow(&mut leader, now, &names, models, minutes, &trace);
}

/// How many replicas come or go.
fn moved(moves: &Moves) -> usize {
    moves.gone.len() + moves.placed.len()
}

/// Plans as the load of a trace comes, everything that is assigned ready at the next report.
fn follow(leader: &mut Leader, mut now: Instant, names: &[NodeName], models: usize, minutes: usize, trace: &Path) {
    let mut prng = Prng::new(7);
    let demand = Demand::new(models, names.len(), trace, &mut prng);
    let mut totals: Vec<BTreeMap<ModelRef, u64>> = vec![BTreeMap::new(); names.len()];
    let references: Vec<ModelRef> = (0..models).map(model_ref).collect();
    let (mut hearing, mut looking, mut reports) = (0.0, Vec::new(), 0u64);
    let (mut entries, mut entry_bytes, mut replicas_moved, mut report_bytes) = (0u64, 0usize, 0usize, 0usize);
    let (mut ups, mut downs) = (0u64, 0u64);
    let mut wanted: BTreeMap<ModelRef, u32> = BTreeMap::new();
    let mut by_minute = Vec::new();
    for step in 0..minutes * 240 {
        now = now + Duration::from_millis(250);
        let mut said: Vec<BTreeMap<ModelRef, u64>> = vec![BTreeMap::new(); names.len()];
        for (i, reference) in references.iter().enumerate() {
            let rows = demand.draw(i, now, &mut prng);
            if rows > 0 {
                // Its callers come by one of four homes.
                let home = (i * 7 + prng.below(4) as usize * 13) % names.len();
                let total = totals[home].entry(reference.clone()).or_insert(0);
                *total += rows;
                said[home].insert(reference.clone(), *total);
            }
        }
        let by_node = leader.by_node();
        let made: Vec<NodeReport> = names
            .iter()
            .zip(said)
            .map(|(name, said)| leader.report(name, by_node.get(name).map_or(&[], Vec::as_slice), said))
            .collect();
        if step % 240 == 0 {
            report_bytes = made.iter().map(encoded).sum::<usize>() / made.len();
        }
        reports += made.len() as u64;
        hearing += timed(|| made.into_iter().for_each(|report| leader.hear(now, report))).0;
        let (took, look) = timed(|| leader.look(now));
        looking.push(took);
        if !look.moves.is_nothing() {
            replicas_moved += moved(&look.moves);
            entries += 1;
            entry_bytes += leader.set(look.moves);
        }
        for reference in &references {
            let wants = leader.tuner.want(reference).map_or(0, |want| want.replicas);
            let known = wanted.entry(reference.clone()).or_insert(0);
            (ups, downs) = (ups + u64::from(wants > *known), downs + u64::from(wants < *known));
            *known = wants;
        }
        if step % 240 == 239 {
            by_minute.push((ups, downs));
            (ups, downs) = (0, 0);
        }
    }
    println!("\n{minutes} minutes of {}", trace.file_name().unwrap_or_default().display());
    println!(
        "a report                          {report_bytes:9} bytes, {:.1} us to take in",
        hearing * 1e3 / reports as f64
    );
    println!("reports of all nodes              {:9.1} % of a core", hearing / (minutes as f64 * 60e3) * 100.0);
    looking.sort_by(f64::total_cmp);
    println!(
        "a look (ten a second)             {:9.1} ms, p99 {:.1}, at most {:.1}",
        looking.iter().sum::<f64>() / looking.len() as f64,
        looking[looking.len() * 99 / 100],
        looking[looking.len() - 1]
    );
    println!(
        "entries with a plan               {entries:9}, {:.1} KB each, {replicas_moved} replicas came or went",
        entry_bytes as f64 / 1e3 / entries.max(1) as f64
    );
    println!(
        "what models want went up, down    {}",
        by_minute.iter().map(|(up, down)| format!("{up},{down}")).collect::<Vec<_>>().join("  ")
    );
}

fn encoded(report: &NodeReport) -> usize {
    let mut message = capnp::message::Builder::new_default();
    write_report(message.init_root(), report);
    let mut bytes = Vec::new();
    capnp::serialize::write_message(&mut bytes, &message).expect("memory");
    bytes.len()
}
