//! `weir simulate`: a load on a cluster in virtual time, by the code that decides in the real one.
//!
//! The models of the file are loaded once on this machine: measured as a node would, and asked about every row of the data,
//! so that gates let through in the simulation what they would let through, and answers are as right.

mod labels;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use weir_core::endpoint::frontier::{Known, calibrate};
use weir_core::endpoint::gate::label;
use weir_core::endpoint::passage::{class, empty, holding, looked, signal, stacked};
use weir_core::endpoint::{Asks, Endpoint, Ladders, Passage, Stage, Wiring};
use weir_core::ids::ModelRef;
use weir_core::outcome::Outcome;
use weir_core::profile::Profile;
use weir_core::tensor::{Row, Signature};
use weir_core::triage::ByModel;
use weir_core::units::{Instant, ServiceTime};
use weir_core::workload::Statistics;
use weir_loadgen::result::{RunResult, demanded};
use weir_loadgen::run::{Loop, RunConfig, counted};
use weir_loadgen::scenario::Scenario;
use weir_loadgen::schedule::Schedule;
use weir_loadgen::tally::Ended;
use weir_loadgen::target::{Reply, RowReply, Stream};
use weir_ml_workers::engine::{Session, engine};
use weir_ml_workers::probe::probe;
use weir_sim::cluster::{self, Cluster, Due, Model, Says, Served};
use weir_sim::device::Service;
use weir_sim::fleet::{Machine, Wanted, busiest, placed};
use weir_sim::knapsack::{Options, bound};

use super::apply::{self, Declared};
use super::load::asked::{Added, Asked, Files, Offered, config, open, usage};
use super::load::run::Written;
use super::node::Devices;
use crate::connect::Common;
use crate::failure::Failure;

pub use labels::Labelled;

/// A load on a simulated cluster.
#[derive(Args)]
pub struct Simulate {
    /// What is served, as for `weir apply`
    #[arg(short, long, env = "WEIR_FILE")]
    file: PathBuf,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    offered: Offered,
    /// Nodes of the cluster, each with one device
    #[arg(long, env = "WEIR_NODES", default_value_t = 1)]
    nodes: u16,
    #[command(flatten)]
    labelled: Labelled,
    #[command(flatten)]
    measured: Measured,
    #[command(flatten)]
    written: Written,
}

/// What is known of machines and the way to them.
#[derive(Args)]
pub struct Measured {
    #[command(flatten)]
    pub devices: Devices,
    /// Microseconds that a call takes apart from queues and batches, as `weir profile --path` measures it
    #[arg(long, env = "WEIR_PATH_US", default_value_t = PATH_US)]
    pub path_us: u64,
    /// Microseconds that a batch takes longer than its profile says: waking up, and sleeping too long where devices are slowed
    #[arg(long, env = "WEIR_BATCH_US", default_value_t = 0)]
    batch_us: u64,
    /// Latency by batch size of a model as `weir profile NAME@VERSION -o json` printed it, instead of measuring it here; --pace
    /// leaves it as it is
    #[arg(long, env = "WEIR_PROFILE", value_name = "FILE", value_delimiter = ',')]
    profile: Vec<PathBuf>,
}

/// Of the size that calls over loopback were seen to take; `weir profile --path` measures it.
const PATH_US: u64 = 250;
/// Longest that one model is measured.
const BUDGET: Duration = Duration::from_secs(2);

impl Simulate {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let added = self.offered.added(None);
        if self.asked.has_target() {
            return Err(usage("--target: a simulation asks no server; leave it out"));
        }
        self.written.check()?;
        let scenario = self.asked.scenario(None, &added)?;
        if self.nodes == 0 {
            return Err(usage("--nodes: at least one"));
        }
        let declared = apply::read(&self.file)?;
        let declared = self.labelled.resolve(&self.file, declared, &scenario, &common).await?;
        let target = format!("simulated {} of {} nodes", self.file.display(), self.nodes);
        let load = Load::read(&self.file, &declared, &scenario, &added, target)?;
        let modelled = self.measured.model(&self.file, &declared, &load)?;
        let (slots, memory) = self.measured.devices.resolve()?;
        let nodes = vec![Machine::of(slots, memory); usize::from(self.nodes)];
        let cluster = modelled
            .cluster(&nodes)
            .map_err(|(model, why)| Failure::No(format!("model {model} cannot be placed: {why}")))?;
        let mut result = simulate(&cluster, &modelled.learnt, &load.config, dues(&load.config), |_| {});
        result.correct_at_best = at_best(&cluster, &modelled.learnt, &load);
        self.written.write(&result, &common)?;
        super::load::run::verdict(&result, scenario.goals.iter().find(|goal| !goal.is_met(&result)))
    }
}

/// Who is asked what.
pub struct Load<'a> {
    /// By stream.
    pub asked: Vec<(&'a Endpoint, Wiring)>,
    pub config: RunConfig,
}

impl<'a> Load<'a> {
    /// The load of a scenario on what a file declares.
    pub fn read(
        file: &Path,
        declared: &'a Declared,
        scenario: &Scenario,
        added: &Added,
        target: String,
    ) -> Result<Load<'a>, Failure> {
        if scenario.closed.is_some() {
            return Err(usage("the scenario is a closed loop, which is not simulated; give --rate and --arrivals"));
        }
        let (flows, length) = open(scenario)?;
        let mut streams = Vec::new();
        let mut asked = Vec::new();
        for part in &scenario.parts {
            let endpoint = declared.endpoints.iter().find(|known| known.name.as_str() == part.endpoint);
            let endpoint = endpoint.ok_or_else(|| {
                let known: Vec<&str> = declared.endpoints.iter().map(|known| known.name.as_str()).collect();
                Failure::NotFound(format!(
                    "{} describes no endpoint {}; it has {}",
                    file.display(),
                    part.endpoint,
                    known.join(", ")
                ))
            })?;
            let wiring = endpoint.wire(&signatures(declared)).map_err(usage)?;
            let (inputs, label_output) = (&wiring.signature.inputs, endpoint.label_output.clone());
            let deadline = part.deadline.unwrap_or(endpoint.deadline);
            streams.push(Files::read(part)?.stream(part, inputs, label_output, deadline)?);
            asked.push((endpoint, wiring));
        }
        let length = length.unwrap_or(added.default_duration);
        let config = config(scenario, target, Loop::Open(flows), streams, length);
        Ok(Load { asked, config: RunConfig { connections: 0, threads: 1, ..config } })
    }

    /// By endpoint that is asked: its queries.
    pub fn arrivals(&self) -> Vec<Statistics> {
        let mut instants = vec![Vec::new(); self.asked.len()];
        dues(&self.config).for_each(|due| instants[due.endpoint].push(due.at));
        instants.iter().map(|instants| Statistics::of(instants)).collect()
    }
}

/// Models that were loaded, measured and asked; what is left is where they stand.
pub struct Modelled {
    /// Without nodes and replicas.
    cluster: Cluster,
    /// By endpoint that is asked.
    pub learnt: Vec<Learnt>,
    /// What is wished of each model.
    pub wanted: BTreeMap<ModelRef, Wanted>,
}

impl Measured {
    /// Loads, measures and asks the models of a load.
    pub fn model(&self, file: &Path, declared: &Declared, load: &Load<'_>) -> Result<Modelled, Failure> {
        let pace = self.devices.pace;
        if !(pace > 0.0 && pace <= 1.0) {
            return Err(usage("--pace is above 0 and at most 1"));
        }
        if let Some((split, _)) = load.asked.iter().find(|(endpoint, _)| !endpoint.versions.is_empty()) {
            return Err(usage(format!(
                "endpoint {} has versions, which are not simulated together; give it the one to look at, as `model = …`",
                split.name
            )));
        }
        let wanted: BTreeSet<&ModelRef> = load.asked.iter().flat_map(|(endpoint, _)| endpoint.models()).collect();
        let mut sessions: BTreeMap<&ModelRef, Box<dyn Session>> = BTreeMap::new();
        let mut models = BTreeMap::new();
        let mut given = self.profile.iter().map(|file| read_profile(file)).collect::<Result<BTreeMap<_, _>, _>>()?;
        for reference in wanted {
            let model = declared.models.iter().find(|model| model.reference == *reference);
            let model = model
                .ok_or_else(|| usage(format!("{} names model {reference} and does not declare it", file.display())))?;
            let loaded = engine(model.engine).and_then(|engine| engine.load(&declared.artifacts[&model.digest]));
            let mut session = loaded.map_err(usage)?;
            let (profile, max_batch) = match given.remove(&reference.to_string()) {
                Some(given) => given,
                None => {
                    let probed = probe(&mut *session, model.max_batch, &model.shapes, BUDGET, &[]);
                    if let Some(why) = probed.unpaddable {
                        return Err(usage(format!(
                            "model {reference}: its rows cannot be filled up as `pad` says: {why}"
                        )));
                    }
                    let steps: Vec<u32> =
                        model.shapes.batch_sizes.iter().copied().filter(|size| *size <= probed.max_batch).collect();
                    (Profile::stepped(&probed.points, &steps).paced(pace), probed.max_batch)
                }
            };
            let overhead = ServiceTime::from_micros(self.batch_us);
            let service = Service { overhead, ..Service::exact(profile.clone()) };
            models.insert(reference.clone(), Model { believed: profile, service, max_batch, replicas: Vec::new() });
            sessions.insert(reference, session);
        }
        // One of a model that nobody asks in this load is of no harm.
        let declares = |name: &&String| declared.models.iter().any(|model| model.reference.to_string() == **name);
        if let Some(unknown) = given.keys().find(|name| !declares(name)) {
            return Err(usage(format!("--profile: {} declares no model {unknown}", file.display())));
        }
        let mut learnt = Vec::new();
        let mut endpoints = Vec::new();
        for ((endpoint, wiring), stream) in load.asked.iter().zip(load.config.streams.iter()) {
            let of_rows = Learnt::ask(endpoint, wiring, stream, &mut sessions)?;
            let of = |stage: &Stage| stage.model().map_or(0.0, |model| models[model].believed.row_seconds());
            let seconds: Vec<f64> = endpoint.stages.iter().map(of).collect();
            let ladders = Ladders::new(&Arc::new((*endpoint).clone()), &seconds);
            endpoints.push(Served { ladders, flow: Arc::clone(&wiring.flow), says: of_rows.says.clone() });
            for (stage, noise) in endpoint.stages.iter().zip(&of_rows.noise) {
                let Some(model) = stage.model() else { continue };
                let service = &mut models.get_mut(model).expect("it was loaded").service;
                // Sleeping hides it.
                service.noise = if pace < 1.0 { 0.0 } else { *noise };
            }
            learnt.push(of_rows);
        }
        let cluster = Cluster {
            nodes: Vec::new(),
            policy: self.devices.policy()?,
            triage: self.devices.triage()?,
            models,
            endpoints,
            path: cluster::Path::of(Duration::from_micros(self.path_us)),
            reports: Some(cluster::Reports::default()),
        };
        let arrivals = load.arrivals();
        let mut busiest = busiest(&cluster.endpoints, &arrivals, load.config.rows_per_query as f64);
        let mut wanted = BTreeMap::new();
        for model in &declared.models {
            let Some(session) = sessions.get(&model.reference) else { continue };
            let rows = busiest.remove(&model.reference).unwrap_or_default();
            let asking = load.asked.iter().zip(&*load.config.streams);
            let asking = asking.filter(|((endpoint, _), _)| endpoint.models().any(|asked| *asked == model.reference));
            let deadline = asking.map(|(_, stream)| stream.deadline).min().expect("somebody asks it");
            let (range, memory) = (model.replicas, session.memory());
            wanted.insert(model.reference.clone(), Wanted { range, memory, rows, deadline });
        }
        Ok(Modelled { cluster, learnt, wanted })
    }
}

impl Modelled {
    /// By stage of an endpoint that is asked: how often it runs for a row where nothing is dear.
    pub fn runs(&self, endpoint: usize) -> Vec<f64> {
        self.cluster.endpoints[endpoint].runs()
    }

    /// What a model takes on the machine that it was measured on.
    pub fn profile(&self, model: &ModelRef) -> &Profile {
        &self.cluster.models[model].believed
    }

    /// The models that are asked.
    pub fn asked(&self) -> impl Iterator<Item = (&ModelRef, &Model)> {
        self.cluster.models.iter()
    }

    /// A cluster of these machines, with replicas as the leader would place them; or which model has no place, and why.
    pub fn cluster(&self, machines: &[Machine]) -> Result<Cluster, (ModelRef, String)> {
        placed(&self.cluster, &self.wanted, machines)
    }
}

/// A model's name with its profile and largest batch, as `weir profile -o json` printed them.
pub fn read_profile(file: &Path) -> Result<(String, (Profile, u32)), Failure> {
    let bad = |why: String| usage(format!("--profile {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|cause| bad(cause.to_string()))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|cause| bad(cause.to_string()))?;
    let point = |point: &serde_json::Value| {
        let batch = u32::try_from(point["batch"].as_u64()?).ok().filter(|batch| *batch > 0)?;
        let us = point["us"].as_f64().filter(|us| us.is_finite() && *us > 0.0)?;
        Some((batch, ServiceTime::from_nanos((us * 1e3) as u64)))
    };
    let points: Option<Vec<_>> = json["points"].as_array().and_then(|points| points.iter().map(point).collect());
    match (json["model"].as_str(), points) {
        (Some(model), Some(points)) if !points.is_empty() => {
            let most = points.iter().map(|(batch, _)| *batch).max().expect("there are points");
            Ok((model.to_owned(), (Profile::new(&points), most)))
        }
        _ => Err(bad("write into it what `weir profile NAME@VERSION -o json` prints".into())),
    }
}

fn signatures(declared: &Declared) -> BTreeMap<ModelRef, &Signature> {
    declared.models.iter().map(|model| (model.reference.clone(), &model.signature)).collect()
}

/// What the stages of an endpoint say about each row of the data.
pub struct Learnt {
    /// By stage and row: what it says.
    says: Vec<Vec<Says>>,
    /// By stage and row: the class.
    classes: Vec<Vec<Option<i64>>>,
    /// The class of the default output.
    default: Option<i64>,
    /// By stage: how far runs of one row scatter.
    noise: Vec<f64>,
}

impl Learnt {
    /// What all stages say of each row, and which of them are right.
    fn known(&self, labels: &[i64]) -> Option<Vec<Known>> {
        let stages = || 0..self.says.len();
        let of = |(row, label): (usize, &i64)| {
            let confidences = stages().map(|stage| self.says[stage][row].signal).collect::<Option<Vec<f32>>>()?;
            let right = stages().map(|stage| self.classes[stage][row] == Some(*label)).collect();
            Some(Known { confidences, right })
        };
        labels.iter().enumerate().map(of).collect()
    }

    /// Asks every stage about every row, whatever gates and conditions say: in virtual time any of them may run.
    fn ask(
        endpoint: &Endpoint,
        wiring: &Wiring,
        stream: &Stream,
        sessions: &mut BTreeMap<&ModelRef, Box<dyn Session>>,
    ) -> Result<Learnt, Failure> {
        let stages = endpoint.stages.len();
        let default = endpoint.default_outputs.iter().find(|(name, _)| Some(name) == endpoint.label_output.as_ref());
        let default = default.and_then(|(_, tensor)| label(&tensor.as_f32()?));
        let mut learnt = Learnt {
            says: vec![Vec::new(); stages],
            classes: vec![Vec::new(); stages],
            default: default.map(|(class, _)| class as i64),
            noise: Vec::new(),
        };
        let mut times = vec![Vec::new(); stages];
        for number in 0..stream.data.rows() as u32 {
            let tensors = stream.data.take(&[number]).into_iter().map(|(_, tensor)| tensor).collect();
            let request = Row { tensors: Arc::new(tensors), row: (!stream.data.whole()).then_some(0) };
            let mut answers: Vec<Row> = Vec::new();
            for (i, stage) in endpoint.stages.iter().enumerate() {
                let fails =
                    |why: String| Failure::No(format!("stage {} fails on row {number} of the data: {why}", stage.name));
                let answer = |stage: usize| answers.get(stage);
                let passage = Passage { endpoint, wiring, request: &request, answer: &answer };
                let mut run = |row: &Row| {
                    let model = stage.model().expect("only models are asked");
                    let session = sessions.get_mut(model).expect("it was loaded");
                    let started = std::time::Instant::now();
                    let outputs = session.run(&row.tensors);
                    // What sleeps takes as long each time. What it computes beside that is next to nothing, and scatters by more than itself.
                    if session.pause(1).is_zero() {
                        times[i].push(started.elapsed().as_secs_f64());
                    }
                    let outputs = outputs.map_err(|error| error.to_string())?;
                    Ok(Row { tensors: Arc::new(outputs), row: row.row })
                };
                let mut items = None;
                let outputs = if stage.model().is_none() {
                    passage.combined(i).map_err(fails)?
                } else {
                    match passage.asks(i).map_err(fails)? {
                        Asks::One(row) => run(&row).map_err(fails)?,
                        Asks::Each(rows) => {
                            items = Some(rows.len() as u32);
                            let outputs =
                                rows.iter().map(&mut run).collect::<Result<Vec<_>, String>>().map_err(fails)?;
                            stacked(&outputs).unwrap_or_else(|| empty(&wiring.gives[i]))
                        }
                    }
                };
                let signal = signal(endpoint, wiring, i, &outputs);
                let holds = holding(&looked(endpoint, wiring, i, &outputs));
                learnt.says[i].push(Says { signal, holds, items });
                learnt.classes[i].push(class(wiring, i, &outputs).map(i64::from));
                answers.push(outputs);
            }
        }
        learnt.noise = times.into_iter().map(scatter).collect();
        Ok(learnt)
    }
}

/// Half the width of an even spread that scatters as these times do, relative to their mean; the longest and shortest
/// hundredth are accidents of this machine.
fn scatter(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let cut = times.len() / 100 + usize::from(times.len() > 10);
    let kept = &times[cut.min(times.len())..times.len().saturating_sub(cut)];
    if kept.len() < 2 {
        return 0.0;
    }
    let mean = kept.iter().sum::<f64>() / kept.len() as f64;
    let variance = kept.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / kept.len() as f64;
    (3.0 * variance).sqrt().min(mean) / mean
}

/// Rows that could be right in time at most, where one cascade is asked whose gates weigh, and labels say what is right. What stages
/// gain is read from tables made of these very rows.
fn at_best(cluster: &Cluster, learnt: &[Learnt], load: &Load<'_>) -> Option<f64> {
    let ([served], [learnt], [stream]) = (cluster.endpoints.as_slice(), learnt, &load.config.streams[..]) else {
        return None;
    };
    let (endpoint, labels) = (served.ladders.endpoint(), stream.labels.as_ref()?);
    if !endpoint.is_chain() {
        return None;
    }
    let tables = calibrate(&learnt.known(labels)?)?;
    // No batch counts that takes longer than the deadline leaves, with each stage before it run alone.
    let mut left = ServiceTime::from(stream.deadline);
    let cost = |model: &ModelRef| {
        let profile = &cluster.models[model].service.profile;
        let cost = profile.row_seconds_within(left)?;
        left = left.saturating_sub(profile.estimate(1));
        Some(cost)
    };
    let costs: Vec<f64> = endpoint.models().map_while(cost).collect();
    let first = tables.first()?;
    let options = |row: usize| {
        let confidence = |stage: usize| learnt.says[stage][row].signal.unwrap_or(f32::NAN);
        let Some((alone, deeper)) = costs.split_first() else { return Options::new() };
        let mut sum = (*alone, first.read(confidence(0), |bin| first.bins()[bin].right));
        let mut options = vec![sum];
        for ((stage, table), cost) in tables.iter().enumerate().zip(deeper) {
            sum = (sum.0 + cost, sum.1 + table.read(confidence(stage), |bin| table.bins()[bin].gain));
            options.push(sum);
        }
        options
    };
    let options: Vec<Options> = (0..labels.len()).map(options).collect();
    let arrivals: Vec<(Instant, usize)> = dues(&load.config)
        .flat_map(|due| due.rows.iter().map(|row| (due.at, *row as usize)).collect::<Vec<_>>())
        .collect();
    let slots = cluster.nodes.iter().map(|node| f64::from(node.slots)).sum();
    Some(bound(&arrivals, &options, slots, stream.deadline))
}

/// The queries of a load, in order.
pub fn dues(config: &RunConfig) -> impl Iterator<Item = Due> {
    let Loop::Open(flows) = &config.sending else { unreachable!("closed loops are refused") };
    let rows: Vec<usize> = config.streams.iter().map(|stream| stream.data.rows()).collect();
    let schedule = Schedule::new(flows, &rows, config.rows_per_query, config.seed, config.duration);
    schedule.map(|due| Due {
        at: Instant::ZERO + due.at,
        endpoint: due.stream,
        rows: due.rows,
        deadline: config.streams[due.stream].deadline,
    })
}

/// Runs queries of a load in virtual time; `on_end` is told of each as it ends.
pub fn simulate(
    cluster: &Cluster,
    learnt: &[Learnt],
    config: &RunConfig,
    dues: impl IntoIterator<Item = Due>,
    mut on_end: impl FnMut(&cluster::Ended),
) -> RunResult {
    let mut asked = ByModel::default();
    let mut result = counted(config, |count| {
        asked = cluster::run(cluster, dues, config.seed, |ended| {
            on_end(&ended);
            let (due, of) = (&ended.due, &learnt[ended.due.endpoint]);
            let endpoint = cluster.endpoints[due.endpoint].ladders.endpoint();
            let mut reply = Reply::none(ended.outcome, ended.outcome.explanation());
            if ended.outcome == Outcome::Answered {
                reply.rows = due
                    .rows
                    .iter()
                    .zip(&ended.stages)
                    .map(|(row, stage)| {
                        let (row, stage) = (*row as usize, stage.expect("an answered row has a stage"));
                        RowReply {
                            label: of.classes.get(stage).map_or(of.default, |classes| classes[row]),
                            stage: endpoint.stage_name(stage).to_owned(),
                            expected_right: endpoint.expected_right(stage, |stage| of.says.get(stage)?[row].signal),
                        }
                    })
                    .collect();
                reply.degraded = ended.degraded;
                reply.price = ended.price;
                reply.expected_loss = ended.expected_loss;
            }
            count(Ended {
                intended: due.at.since(Instant::ZERO),
                lag: Some(Duration::ZERO),
                latency: ended.latency,
                stream: due.endpoint,
                rows: due.rows.clone(),
                reply,
            });
        });
    });
    result.demand = demanded(&asked);
    result
}
