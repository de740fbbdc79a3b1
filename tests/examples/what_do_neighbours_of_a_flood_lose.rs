//! What do neighbours of a flood lose on this machine, is the last second worth the same to endpoints of any weight, and what does a spike cost from tenth to
//! tenth? What `weir_sim`'s tests of the same names show in virtual time, as real processes.
//!
//! `cargo build --release -p weir-cli && cargo run --release -p weir-tests --example what_do_neighbours_of_a_flood_lose [neighbours|bursts|weights|spike…]`
//!
//! Two endpoints share a first stage that takes no time and a deep one that sleeps 5 ms for every row, on one slot; the spike meets the
//! demo's cascade at a tenth of its speed. Every query has a record here: when it was to be sent, which stage answered, after how long.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;
use weir_client::{LocalClient, Options, Request};
use weir_core::ids::EndpointName;
use weir_core::outcome::Outcome;
use weir_core::prng::Prng;
use weir_core::tensor::Tensor;
use weir_host::Host;
use weir_host::login::Token;
use weir_tests::processes::{Cluster, metric, root};

/// What the deep stage takes for a row: 200 of them a second.
const TAKES: Duration = Duration::from_millis(5);
/// Bins of the gain table: gains from 0.5 down, by a seventh each.
const BINS: usize = 20;
/// How long load comes where nothing else is said, in seconds.
const SECONDS: f64 = 28.0;
/// Connections of the generator.
const CONNECTIONS: usize = 4;
/// Calls before those that count, on connections that are new.
const WARM: Duration = Duration::from_millis(300);

fn gain(bin: usize) -> f64 {
    0.5 * (-(bin as f64) / 7.0).exp()
}

/// A query that is to be sent: when, to which endpoint, with which row.
#[derive(Clone, Copy)]
struct Due {
    at: Duration,
    endpoint: usize,
    row: usize,
}

/// What became of it: the stage that answered, empty where none did, and from the instant at which it was to be sent until then.
struct Ended {
    due: Due,
    stage: String,
    latency: Duration,
}

impl Ended {
    fn is_in_time(&self, deadline: Duration) -> bool {
        !self.stage.is_empty() && self.latency <= deadline
    }
}

/// Poisson arrivals at a rate that changes with time, which is in seconds, of rows drawn evenly.
fn arrivals(endpoint: usize, rate: &dyn Fn(f64) -> f64, seconds: f64, rows: usize, seed: u64) -> Vec<Due> {
    let mut prng = Prng::part(seed, endpoint as u64);
    let (mut at, mut dues) = (0.0, Vec::new());
    loop {
        // Where nothing comes it is looked again a little later.
        let now = rate(at);
        at += if now > 0.0 { prng.exponential() / now } else { 0.01 };
        if at >= seconds {
            return dues;
        }
        if now > 0.0 {
            dues.push(Due { at: Duration::from_secs_f64(at), endpoint, row: prng.below(rows as u64) as usize });
        }
    }
}

/// Sends every query when it is due, whatever has come back.
fn ask(cluster: &Cluster, endpoints: &[&str], rows: &[Tensor], mut dues: Vec<Due>, deadline: Duration) -> Vec<Ended> {
    dues.sort_by_key(|due| due.at);
    let host = Host::system();
    let token = Token::read_file(&*host.disk, Path::new(&cluster.path("c1/admin.token"))).expect("its admin's token");
    let options = Options { coordinators: cluster.addresses().split(',').map(str::to_owned).collect(), token };
    let names: Vec<EndpointName> = endpoints.iter().map(|name| EndpointName::parse(name).expect("a name")).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
    let asking = async {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(LocalClient::connect(host.clone(), options.clone()).await.expect("it serves"));
        }
        let request = |due: Due, left: Duration| Request {
            endpoint: names[due.endpoint].clone(),
            inputs: vec![(String::new(), rows[due.row].clone())],
            whole: false,
            deadline: Some(left),
            class: None,
            outputs: Vec::new(),
            min_stage: None,
            max_stage: None,
            trace: false,
        };
        let first = Due { at: Duration::ZERO, endpoint: 0, row: 0 };
        for client in &clients {
            client.predict(&request(first, Duration::from_secs(5))).await;
        }
        let (start, ended) = (Instant::now() + WARM, Rc::new(RefCell::new(Vec::new())));
        let mut tasks = tokio::task::JoinSet::new();
        for (i, due) in dues.into_iter().enumerate() {
            let intended = start + due.at;
            if intended > Instant::now() {
                tokio::time::sleep_until(intended).await;
            }
            // What the generator lost is not the server's to make up for, but counts.
            let request = request(due, deadline.saturating_sub(intended.elapsed()).max(Duration::from_micros(1)));
            let (client, ended) = (clients[i % CONNECTIONS].clone(), Rc::clone(&ended));
            tasks.spawn_local(async move {
                let answer = client.predict(&request).await.pop();
                let answer = answer.filter(|answer| answer.outcome == Outcome::Answered);
                let stage = answer.map_or(String::new(), |answer| answer.stage);
                ended.borrow_mut().push(Ended { due, stage, latency: intended.elapsed() });
            });
        }
        while tasks.join_next().await.is_some() {}
        ended.take()
    };
    tokio::task::LocalSet::new().block_on(&runtime, asking)
}

/// A cluster that serves endpoints of these weights and shares.
fn serving(endpoints: &[(f64, f64)]) -> Cluster {
    let cluster = Cluster::start_with(1, 1, &["--cpu-slots", "1", "--metrics", "127.0.0.1:0"]);
    cluster.write("shallow.synthetic", "width = 2\n");
    cluster.write("deep.synthetic", format!("width = 2\nbeta_us = {}\n", TAKES.as_micros()));
    let mut file = String::from("confidence,rows,right,gain,error\n");
    (0..BINS).for_each(|bin| {
        writeln!(file, "{},100,0.5,{},0.01", bin as f64 / BINS as f64, gain(bin)).expect("text");
    });
    cluster.write("gain.csv", file);
    let mut file = String::new();
    for model in ["shallow", "deep"] {
        file += &format!(
            "[[model]]\nname = \"{model}\"\nversion = \"1\"\npath = \"{model}.synthetic\"\nmax_batch = 1\nreplicas = {{ min = 1, max = 1 }}\n"
        );
    }
    for (i, (weight, share)) in endpoints.iter().enumerate() {
        file += &format!(
            "[[endpoint]]\nname = \"e{i}\"\ndeadline = \"100ms\"\nlabel_output = \"y\"\nweight = {weight:.1}\nshare = {share:.2}\n[[endpoint.stage]]\nname = \"shallow\"\nmodel = \"shallow@1\"\n[[endpoint.stage]]\nname = \"deep\"\nmodel = \"deep@1\"\ngate = {{ gain = \"gain.csv\", min_gain = 0.0 }}\n"
        );
    }
    cluster.ok(&["apply", "-f", &cluster.write("e.toml", file)]);
    cluster
}

/// What the two endpoints of a new cluster are asked, and what becomes of it; and the share of escalations that were in vain.
fn asked(endpoints: [(f64, f64); 2], rates: [&dyn Fn(f64) -> f64; 2], seed: u64) -> (Vec<Ended>, f64) {
    let cluster = serving(&endpoints);
    let dues = rates.iter().enumerate().flat_map(|(i, rate)| arrivals(i, rate, SECONDS, BINS, seed)).collect();
    let rows: Vec<Tensor> = (0..BINS).map(|bin| Tensor::f32(&[1, 2], &[bin as f32 / BINS as f32, 0.0])).collect();
    let ended = ask(&cluster, &["e0", "e1"], &rows, dues, DEADLINE);
    let in_time = ended.iter().filter(|end| end.is_in_time(DEADLINE)).count() as f64 / ended.len() as f64;
    let of = |name: &str| {
        ["e0", "e1"]
            .map(|e| metric(&cluster.nodes[0], &format!("{name}{{endpoint=\"{e}\",stage=\"deep\"}}")).unwrap_or(0.0))
            .iter()
            .sum::<f64>()
    };
    let vain = of("weir_stage_calls_in_vain_total") / of("weir_stage_calls_total").max(1.0);
    println!(
        "  {} queries, {:.2} % in time, {:.1} % of escalations in vain",
        ended.len(),
        100.0 * in_time,
        100.0 * vain
    );
    (ended, vain)
}

const DEADLINE: Duration = Duration::from_millis(100);

fn is_deep(end: &&Ended) -> bool {
    end.stage == "deep"
}

/// What an endpoint gained over its first stage's answers, in time.
fn gained(ended: &[Ended], endpoint: usize) -> f64 {
    let deep = ended.iter().filter(|end| end.due.endpoint == endpoint && end.is_in_time(DEADLINE)).filter(is_deep);
    deep.map(|end| gain(end.due.row)).sum()
}

fn neighbours() {
    println!("beside a flood, 80 a second where 100 are its share:");
    let none: &dyn Fn(f64) -> f64 = &|_| 0.0;
    let steady: &dyn Fn(f64) -> f64 = &|_| 80.0;
    let alone = gained(&asked([(1.0, 0.5), (1.0, 0.5)], [steady, none], 3).0, 0);
    for flood in [500.0, 2000.0] {
        for share in [0.5, 0.0] {
            let (ended, _) = asked([(1.0, share), (1.0, share)], [steady, &move |_| flood], 3);
            let kept = gained(&ended, 0) / alone;
            println!("beside {flood} a second, with a share of {share}: {kept:.3} of what it gains alone");
        }
    }
}

fn bursts() {
    println!("beside bursts of 800 a second of three times the weight, 80 a second where 100 are its share:");
    let steady: &dyn Fn(f64) -> f64 = &|_| 80.0;
    let bursting: &dyn Fn(f64) -> f64 = &|at| if at % 4.0 < 2.0 { 800.0 } else { 100.0 };
    let alone = gained(&asked([(1.0, 0.5), (3.0, 0.0)], [steady, &|_| 0.0], 7).0, 0);
    for share in [0.5, 0.0] {
        let (ended, _) = asked([(1.0, share), (3.0, 0.0)], [steady, bursting], 7);
        let kept = gained(&ended, 0) / alone;
        println!(
            "beside bursts of 800 a second of three times the weight, with a share of {share}: {kept:.3} of what it gains alone"
        );
    }
}

fn weights() {
    println!("weights 1 and 3:");
    let bursting: &dyn Fn(f64) -> f64 = &|at| if at % 4.0 < 2.0 { 500.0 } else { 150.0 };
    for (what, rate) in [("steady", &(|_| 300.0) as &dyn Fn(f64) -> f64), ("one bursts", bursting)] {
        // Taken together: of one alone a share is off by a hundredth by chance, and what it is worth by three.
        let ended: Vec<Ended> =
            (5..8).flat_map(|seed| asked([(1.0, 0.0), (3.0, 0.0)], [&|_| 150.0, rate], seed).0).collect();
        for (from, until) in [(0.0, 2.0), (2.0, 4.0)] {
            let worth = [1.0, 3.0].iter().enumerate().map(|(endpoint, weight)| {
                let within = |end: &&Ended| {
                    end.due.endpoint == endpoint && (from..until).contains(&(end.due.at.as_secs_f64() % 4.0))
                };
                let deep = ended.iter().filter(within).filter(is_deep).count() as f64;
                // Where between the bins it stops.
                let at = deep / ended.iter().filter(within).count() as f64 * BINS as f64 - 0.5;
                weight * 0.5 * (-at / 7.0).exp() / TAKES.as_secs_f64()
            });
            let worth: Vec<f64> = worth.collect();
            println!(
                "{what}, second {from} to {until} of four: a second is worth {:.1} to the one and {:.1} to the other",
                worth[0], worth[1]
            );
        }
    }
}

fn spike() {
    const SPIKE: Duration = Duration::from_millis(50);
    let (calm, times, seeds) = (233.0, 10.0, 10);
    println!("a spike of {times} times {calm} a second, for two seconds, by tenths of {seeds} seeds:");
    let cluster = Cluster::start_with(1, 1, &["--cpu-slots", "1", "--pace", "0.1"]);
    cluster.ok(&["apply", "-f", "demo/fashion.toml"]);
    let images = weir_loadgen::npy::read(&root().join("demo/images.npy")).expect("it belongs to the demo");
    let bytes = images.data.len() / images.shape[0] as usize;
    let row =
        |data: &[u8]| Tensor { shape: [&[1], &images.shape[1..]].concat(), data: data.to_vec(), ..images.clone() };
    let rows: Vec<Tensor> = images.data.chunks(bytes).map(row).collect();
    // Offered, in time, answered by a deeper stage than the first.
    let mut tenths = vec![[0u32; 3]; 60];
    for seed in 0..seeds {
        let rate = |at: f64| if (2.0..4.0).contains(&at) { times * calm } else { calm };
        let dues = arrivals(0, &rate, 6.0, rows.len(), 100 + seed);
        for end in ask(&cluster, &["fashion"], &rows, dues, SPIKE) {
            let [offered, in_time, deeper] = &mut tenths[(end.due.at.as_millis() / 100) as usize];
            *offered += 1;
            *in_time += u32::from(end.is_in_time(SPIKE));
            *deeper += u32::from(end.stage == "mid" || end.stage == "big");
        }
    }
    let share = |tenth: &[u32; 3], of: usize| f64::from(tenth[of]) / f64::from(tenth[0].max(1));
    let text = |of: usize| tenths.iter().map(|tenth| format!("{:.3}", share(tenth, of))).collect::<Vec<_>>().join(" ");
    println!("in time: {}\ndeeper than the first stage: {}", text(1), text(2));
    let worst = tenths.iter().map(|tenth| share(tenth, 1)).fold(1.0, f64::min);
    let mean = |tenths: &[[u32; 3]]| tenths.iter().map(|tenth| share(tenth, 2)).sum::<f64>() / tenths.len() as f64;
    let before = mean(&tenths[5..20]);
    let back = (40..56).find(|tenth| tenths[*tenth..*tenth + 5].iter().all(|tenth| share(tenth, 2) > 0.9 * before));
    println!(
        "in time in the worst tenth {:.2} %; deeper {before:.3} before it, {:.3} in it, and again more than nine tenths of that from {} ms after it on",
        100.0 * worst,
        mean(&tenths[22..40]),
        back.map_or("later than 1,600".to_owned(), |tenth| ((tenth - 40) * 100).to_string())
    );
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for (name, measure) in
        [("neighbours", neighbours as fn()), ("bursts", bursts), ("weights", weights), ("spike", spike)]
    {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            measure();
        }
    }
}
