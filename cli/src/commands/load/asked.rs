//! What `load run` and `load capacity` share: of whom what is asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use weir_client::weirfile::parse_duration;
use weir_client::{Admin, Options};
use weir_core::tensor::TensorSpec;
use weir_core::workload;
use weir_host::Host;
use weir_loadgen::data::{Data, read_labels};
use weir_loadgen::goal::Goal;
use weir_loadgen::run::{LoadError, Loop, Progress, RunConfig, Stop, Stopper, stopper};
use weir_loadgen::scenario::{Part, Scenario};
use weir_loadgen::schedule::Flow;
use weir_loadgen::target::oip_grpc::OipGrpc;
use weir_loadgen::target::oip_http::{Metadata, OipHttp};
use weir_loadgen::target::weir::Weir;
use weir_loadgen::target::{Address, Connect, Stream, TargetError};

use crate::connect::Common;
use crate::failure::Failure;

/// Flags of both.
#[derive(Args)]
pub struct Asked {
    /// What to ask: NAME, or several as NAME=WEIGHT,NAME=WEIGHT [default: the model that --target names]
    #[arg(long, env = "WEIR_ENDPOINT", value_delimiter = ',')]
    endpoint: Vec<String>,
    /// Rows to ask for: .npy, .npz (inputs by name), .jsonl, or a folder of PNG and JPEG images
    #[arg(long, env = "WEIR_DATA", required_unless_present = "scenario")]
    data: Option<PathBuf>,
    /// The right answer for each row: .npy or .npz of whole numbers, or text with one a line
    #[arg(long, env = "WEIR_LABELS")]
    labels: Option<PathBuf>,
    /// The output that is compared with the labels [default: the endpoint's label_output, or its only output]
    #[arg(long, env = "WEIR_LABEL_OUTPUT")]
    label_output: Option<String>,
    /// A load from a file; other flags beat what it says
    #[arg(long, env = "WEIR_SCENARIO", value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// weir://host:7300, oip-http://host:8000/model or oip-grpc://host:8001/model [default: the cluster]
    #[arg(long, env = "WEIR_TARGET", value_name = "URL")]
    target: Option<String>,
    /// What an oip-http target takes that can only infer: its "extensions", and "models" with name, inputs and outputs
    #[arg(long, env = "WEIR_METADATA", value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// Send also what would be late behind the client's own calls, which it refuses by itself otherwise (over weir's own protocol; a
    /// simulated client never does)
    #[arg(long, env = "WEIR_NO_CLIENT_THROTTLE")]
    no_client_throttle: bool,
    /// Of each query [default: the endpoint's]
    #[arg(long, env = "WEIR_DEADLINE")]
    deadline: Option<String>,
    /// Decides instants and rows [default: drawn, and printed]
    #[arg(long, env = "WEIR_SEED")]
    seed: Option<u64>,
    /// Rows of the data in each query [default: 1]
    #[arg(long, env = "WEIR_LOAD_ROWS")]
    rows: Option<usize>,
    /// Connections, to each node where there are several (over HTTP, more are made as they are needed) [default: 2]
    #[arg(long, env = "WEIR_CONNECTIONS")]
    connections: Option<usize>,
    /// Threads that send [default: 1]
    #[arg(long, env = "WEIR_THREADS")]
    threads: Option<usize>,
}

/// Everything read and checked, the target asked what it takes; nothing sent yet.
pub struct Prepared {
    pub scenario: Scenario,
    pub connect: Arc<dyn Connect>,
    pub config: RunConfig,
    /// The coordinators of a weir cluster.
    pub admin: Option<Admin>,
}

/// What is offered in one run, on machines or simulated.
#[derive(Args)]
pub struct Offered {
    /// Queries per second; what has a rate of its own is scaled to it
    #[arg(long, env = "WEIR_RATE", allow_negative_numbers = true)]
    rate: Option<f64>,
    /// constant, poisson, gamma:cv=4, mmpp:…, pareto:…, spike:…, diurnal:… or trace:FILE [default: poisson]
    #[arg(long, env = "WEIR_ARRIVALS")]
    arrivals: Option<String>,
    /// How long [default: the trace's length, or 10s]
    #[arg(long, env = "WEIR_DURATION")]
    duration: Option<String>,
    /// Exit code 1 where the result misses it, as attainment>=0.99 or p99<=50ms
    #[arg(long, env = "WEIR_GOAL")]
    goal: Option<String>,
}

impl Offered {
    /// What it adds to a scenario.
    pub fn added(&self, closed: Option<usize>) -> Added {
        Added {
            arrivals: self.arrivals.clone(),
            rate: self.rate,
            closed,
            duration: self.duration.clone(),
            goal: self.goal.clone(),
            default_duration: Duration::from_secs(10),
        }
    }
}

/// What a command adds to a scenario.
pub struct Added {
    pub arrivals: Option<String>,
    pub rate: Option<f64>,
    pub closed: Option<usize>,
    pub duration: Option<String>,
    pub goal: Option<String>,
    /// For a run that nobody gave a length, and whose arrivals do not end.
    pub default_duration: Duration,
}

pub fn usage(text: impl ToString) -> Failure {
    Failure::Usage(text.to_string())
}

pub fn span(flag: &str, text: &str) -> Result<Duration, Failure> {
    let span = parse_duration(text).filter(|span| !span.is_zero());
    span.ok_or_else(|| usage(format!("--{flag} {text}: write it as 50ms or 10s")))
}

impl Asked {
    pub async fn prepare(&self, common: &Common, added: Added) -> Result<Prepared, Failure> {
        let address = self.target.as_deref().map(Address::parse).transpose().map_err(usage)?;
        let metadata = self.metadata.as_deref().map(Metadata::read).transpose().map_err(usage)?;
        if metadata.is_some() && !matches!(address, Some(Address::OipHttp(_))) {
            return Err(usage("--metadata: only an oip-http:// target is told of by a file; others are asked"));
        }
        let model = match &address {
            Some(Address::OipHttp(server) | Address::OipGrpc(server)) => server.model.clone(),
            _ => None,
        };
        let scenario = self.scenario(model, &added)?;
        // Files first: what is wrong with them is told although no server is there.
        let files = scenario.parts.iter().map(Files::read).collect::<Result<Vec<_>, _>>()?;
        let (sending, length) = match scenario.closed {
            Some(callers) => (Loop::Closed(callers), None),
            None => {
                let (flows, length) = open(&scenario)?;
                (Loop::Open(flows), length)
            }
        };
        let weir = |options: Options| {
            let admin = Admin::new(Host::system(), options.clone());
            let holds_back = !self.no_client_throttle;
            (Arc::new(Weir { options, holds_back }) as Arc<dyn Connect>, Some(admin))
        };
        let (connect, admin): (Arc<dyn Connect>, _) = match address {
            None => weir(common.options()?),
            Some(Address::Weir(coordinators)) => weir(Options { coordinators, ..common.options()? }),
            Some(Address::OipHttp(server)) => (Arc::new(OipHttp { authority: server.authority, metadata }), None),
            Some(Address::OipGrpc(server)) => (Arc::new(OipGrpc(server.authority)), None),
        };
        let mut streams = Vec::new();
        for (part, files) in scenario.parts.iter().zip(files) {
            let described = connect.describe(&part.endpoint).await.map_err(target_failure)?;
            let deadline = part.deadline.or(described.deadline).ok_or_else(|| {
                usage(format!("{} has no deadline of its own; give one with --deadline 100ms", part.endpoint))
            })?;
            streams.push(files.stream(part, &described.inputs, described.label_output, deadline)?);
        }
        let config = config(&scenario, connect.name(), sending, streams, length.unwrap_or(added.default_duration));
        Ok(Prepared { scenario, connect, config, admin })
    }

    /// Whether a server to ask was named.
    pub fn has_target(&self) -> bool {
        self.target.is_some()
    }

    /// The scenario of the file, or of the flags, which beat it.
    pub fn scenario(&self, model: Option<String>, added: &Added) -> Result<Scenario, Failure> {
        let mut scenario = match &self.scenario {
            Some(path) => Scenario::read(path).map_err(usage)?,
            None => Scenario::default(),
        };
        if scenario.parts.is_empty() {
            let given: Vec<String> =
                if self.endpoint.is_empty() { model.into_iter().collect() } else { self.endpoint.clone() };
            let data = self
                .data
                .as_ref()
                .filter(|_| !given.is_empty())
                .ok_or_else(|| usage("say what is asked: --endpoint NAME and --data FILE, or --scenario FILE"))?;
            for name in given {
                let (name, weight) = match name.split_once('=') {
                    None => (name.as_str(), 1.0),
                    Some((name, weight)) => {
                        let weight = weight.parse().ok().filter(|weight: &f64| weight.is_finite() && *weight > 0.0);
                        (name, weight.ok_or_else(|| usage(format!("--endpoint {name}: a weight is a number above 0")))?)
                    }
                };
                scenario.parts.push(Part {
                    endpoint: name.to_owned(),
                    name: name.to_owned(),
                    data: data.clone(),
                    labels: None,
                    label_output: None,
                    deadline: None,
                    arrivals: None,
                    rate: None,
                    weight,
                });
            }
        } else if !self.endpoint.is_empty() {
            return Err(usage("--endpoint: the scenario says what is asked; leave one of them out"));
        }
        let deadline = self.deadline.as_deref().map(|text| span("deadline", text)).transpose()?;
        for part in &mut scenario.parts {
            part.data = self.data.clone().unwrap_or_else(|| part.data.clone());
            part.labels = self.labels.clone().or(part.labels.take());
            part.label_output = self.label_output.clone().or(part.label_output.take());
            part.deadline = deadline.or(part.deadline);
        }
        for (flag, count) in [("rows", self.rows), ("connections", self.connections), ("threads", self.threads)] {
            if count == Some(0) {
                return Err(usage(format!("--{flag}: give at least 1")));
            }
        }
        scenario.seed = self.seed.or(scenario.seed);
        scenario.rows = self.rows.or(scenario.rows);
        scenario.connections = self.connections.or(scenario.connections);
        scenario.threads = self.threads.or(scenario.threads);
        let own = |part: &weir_loadgen::scenario::Part| part.arrivals.is_some() || part.rate.is_some();
        if (added.rate.is_some() || added.arrivals.is_some()) && scenario.parts.iter().all(own) {
            return Err(usage(
                "every endpoint of the scenario has arrivals of its own, which no other rate changes: change them there, or give endpoints weights instead",
            ));
        }
        if let Some(text) = &added.arrivals {
            scenario.arrivals = Some(workload::Arrivals::parse(text).map_err(usage)?);
        }
        if let Some(rate) = added.rate {
            scenario.rate = Some(workload::Rate::per_second(rate).map_err(usage)?.as_per_second());
        }
        if added.arrivals.is_some() || added.rate.is_some() {
            scenario.closed = None;
        }
        if added.closed == Some(0) {
            return Err(usage("--closed: at least one caller"));
        }
        scenario.closed = added.closed.or(scenario.closed);
        if let Some(text) = &added.duration {
            scenario.duration = Some(span("duration", text)?);
        }
        if let Some(text) = &added.goal {
            scenario.goals = Goal::parse_all(text).map_err(usage)?;
        }
        Ok(scenario)
    }
}

/// Rows of data, and the right answers to them where a file has them, or the data itself.
pub fn read_rows(data: &Path, labels: Option<&Path>) -> Result<(Data, Option<Vec<i64>>), Failure> {
    let data = Data::read(data).map_err(usage)?;
    let labels = match labels {
        None => data.labels().map(<[i64]>::to_vec),
        Some(path) => Some(read_labels(path).map_err(usage)?),
    };
    match labels {
        Some(labels) if labels.len() != data.rows() => {
            Err(usage(LoadError::Labels { labels: labels.len(), rows: data.rows() }))
        }
        labels => Ok((data, labels)),
    }
}

/// The data of one part of a load, and the right answers to it.
pub struct Files {
    data: Data,
    labels: Option<Vec<i64>>,
}

impl Files {
    /// Reads and compares them.
    pub fn read(part: &Part) -> Result<Files, Failure> {
        let (data, labels) = read_rows(&part.data, part.labels.as_deref())?;
        Ok(Files { data, labels })
    }

    /// A stream of queries for what takes these inputs.
    pub fn stream(
        self,
        part: &Part,
        inputs: &[TensorSpec],
        label_output: Option<String>,
        deadline: Duration,
    ) -> Result<Stream, Failure> {
        Ok(Stream {
            name: part.name.clone(),
            endpoint: part.endpoint.clone(),
            data: Arc::new(self.data.fit(inputs).map_err(usage)?),
            labels: self.labels.map(Into::into),
            label_output: part.label_output.clone().or(label_output),
            deadline,
        })
    }
}

/// The flows of an open loop, and how long a run of them is that nobody gave a length: where the traces end, if they do.
pub fn open(scenario: &Scenario) -> Result<(Vec<Flow>, Option<Duration>), Failure> {
    let (flows, length) = scenario.flows().map_err(usage)?;
    // A trace's last query is due at its length: it is not cut off.
    Ok((flows, length.map(|length| length + Duration::from_millis(1))))
}

/// A run of a scenario; `length` is for one that nobody gave a length.
pub fn config(scenario: &Scenario, target: String, sending: Loop, streams: Vec<Stream>, length: Duration) -> RunConfig {
    RunConfig {
        target,
        arrivals: scenario.arrivals_text(),
        rate: scenario.rate.filter(|_| scenario.closed.is_none()),
        question: scenario.question.clone(),
        goal: scenario.goal_text(),
        parts: scenario.parts.iter().zip(&streams).map(|(part, stream)| scenario.record(part, stream)).collect(),
        sending,
        streams: streams.into(),
        duration: scenario.duration.unwrap_or(length),
        seed: scenario.seed.unwrap_or_else(|| weir_host::random::Random::u64(&weir_host::random::OsRandom) >> 32),
        rows_per_query: scenario.rows.unwrap_or(1),
        connections: scenario.connections.unwrap_or(2),
        threads: scenario.threads.unwrap_or(1),
    }
}

pub fn target_failure(error: TargetError) -> Failure {
    match error {
        TargetError::Unreachable(text) => Failure::Unreachable(text),
        TargetError::NotFound(text) => Failure::NotFound(text),
        TargetError::Forbidden(text) => Failure::Forbidden(text),
        TargetError::Usage(text) => Failure::Usage(text),
    }
}

pub fn load_failure(error: LoadError) -> Failure {
    match error {
        LoadError::Target(error) => target_failure(error),
        LoadError::Thread(_) => Failure::No(error.to_string()),
        _ => usage(error),
    }
}

/// Ctrl-C stops a run, a second one does not wait for what is open.
pub fn on_interrupt() -> Stop {
    let (stopper, stop): (Stopper, Stop) = stopper();
    tokio::task::spawn_local(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            stopper.stop();
        }
    });
    stop
}

/// A line that overwrites itself, where somebody looks at it.
pub struct Line {
    shown: bool,
    prefix: String,
}

impl Line {
    pub fn new(prefix: String) -> Line {
        Line { shown: std::io::IsTerminal::is_terminal(&std::io::stderr()), prefix }
    }

    pub fn show(&self, progress: &Progress) {
        if self.shown {
            let p99 = progress.p99_us.map_or("-".into(), |us| format!("{:.1} ms", us as f64 / 1e3));
            eprint!(
                "\r{}{:6.1} s  {:8.1} a second  p99 {p99:>11}  {:6.2} % in time\x1b[K",
                self.prefix,
                progress.elapsed.as_secs_f64(),
                progress.rate,
                100.0 * progress.attainment
            );
        }
    }

    pub fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
