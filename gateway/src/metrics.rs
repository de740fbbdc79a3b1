//! Metrics and health of a process, on a port of their own: `/metrics` for Prometheus, and whether it lives and is ready.
//!
//! Figures are read where they are counted, when somebody asks. `weir_*` are in seconds and bytes; `nv_*` are the same under the names
//! that Triton's dashboards ask for, in its units.

use std::fmt::Error;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use weir_core::history::{BOUNDS_US, ByStage, Histogram, MemberFacts, NodeFacts, Totals};

use crate::serve::Shared;

mod memory;

use memory::memory;

/// What a node knows of itself.
pub type Facts = Arc<dyn Fn() -> NodeFacts + Send + Sync>;
/// What a coordinator knows.
pub type Group = Arc<dyn Fn() -> MemberFacts + Send + Sync>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Asked {
    protocol: &'static str,
    code: String,
}

/// Requests of a gateway, by protocol and by the code that they ended with.
#[derive(Clone, Debug, Default)]
pub struct Counts(Family<Asked, Counter>);

impl Counts {
    /// One begins.
    pub fn begin(&self, protocol: &'static str) -> Counting<'_> {
        Counting { counts: self, protocol, ended: false }
    }

    fn ended(&self, protocol: &'static str, code: &str) {
        self.0.get_or_create(&Asked { protocol, code: code.to_owned() }).inc();
    }
}

/// A request that is under way. Dropped before it ends, it counts as cancelled: its caller went away, or its time was up.
pub struct Counting<'a> {
    counts: &'a Counts,
    protocol: &'static str,
    ended: bool,
}

impl Counting<'_> {
    /// It ended with this code.
    pub fn ended(mut self, code: &str) {
        self.ended = true;
        self.counts.ended(self.protocol, code);
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.counts.ended(self.protocol, "cancelled");
        }
    }
}

/// What a process tells: of its node and of its gateway, where it has them.
#[derive(Clone, Default)]
pub struct Sources {
    /// A node in this process.
    pub node: Option<Facts>,
    /// A coordinator in this process.
    pub coordinator: Option<Group>,
    /// A gateway in this process.
    pub gateway: Option<Arc<Shared>>,
    /// Without the names that Triton's dashboards ask for.
    pub without_aliases: bool,
}

/// The routes of the port.
pub fn routes(sources: Sources) -> Router {
    let mut registry = Registry::default();
    if let Some(gateway) = &sources.gateway {
        let help = "Requests that clients made over HTTP and gRPC, by the code that they ended with";
        registry.register("weir_gateway_requests", help, gateway.counts.0.clone());
    }
    registry.register_collector(Box::new(Told(sources.clone())));
    let port = Arc::new(Port { registry, sources });
    Router::new()
        .route("/metrics", get(metrics))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .with_state(port)
}

struct Port {
    registry: Registry,
    sources: Sources,
}

async fn metrics(State(port): State<Arc<Port>>, headers: HeaderMap) -> Response {
    let mut text = String::new();
    if encode(&mut text, &port.registry).is_err() {
        return (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written").into_response();
    }
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("");
    let (text, kind) = match accept.contains("application/openmetrics-text") {
        true => (text, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        false => (classic(&text), "text/plain; version=0.0.4; charset=utf-8"),
    };
    let mut response = text.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Prometheus' older text format, which OpenMetrics is but for this: a counter's type and help stand under its name with the ending.
fn classic(text: &str) -> String {
    let counter = |name: &str| text.contains(&format!("\n{name}_total")) && !text.contains(&format!("\n{name}{{"));
    let described = |line: &str| {
        let (mark, rest) =
            line.split_at_checked("# HELP ".len()).filter(|(mark, _)| ["# HELP ", "# TYPE "].contains(mark))?;
        let (name, told) = rest.split_once(' ')?;
        counter(name).then(|| format!("{mark}{name}_total {told}"))
    };
    let lines = text.lines().filter(|line| *line != "# EOF");
    lines.map(|line| described(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(port): State<Arc<Port>>) -> Response {
    let node = port.sources.node.as_ref().and_then(|node| node().unready).map(str::to_owned);
    let unled = |group: &Group| (!group().led).then(|| "the coordinators have no leader".to_owned());
    let gateway = |gateway: &Arc<Shared>| gateway.found_unready().borrow().clone();
    let unready = node.or(port.sources.coordinator.as_ref().and_then(unled));
    let unready = unready.or(port.sources.gateway.as_ref().and_then(gateway));
    match unready {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

/// Reads what is counted elsewhere.
struct Told(Sources);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Told {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), Error> {
        process(&mut to)?;
        if let Some(gateway) = &self.0.gateway {
            let requests = [(Labels::new(), gateway.requests() as f64)];
            gauge(&mut to, "weir_gateway_requests_in_flight", "Requests that are being answered", requests)?;
        }
        if let Some(facts) = &self.0.coordinator {
            group(&mut to, &facts())?;
        }
        let Some(facts) = &self.0.node else { return Ok(()) };
        let facts = facts();
        node(&mut to, &facts)?;
        queries(&mut to, &facts)?;
        triage(&mut to, &facts)?;
        devices(&mut to, &facts)?;
        memory(&mut to, &facts)?;
        if !self.0.without_aliases {
            aliases(&mut to, &facts)?;
        }
        Ok(())
    }
}

fn each<'a>(
    mut metric: MetricEncoder<'_>,
    values: impl IntoIterator<Item = (Labels<'a>, f64)>,
    write: impl Fn(&mut MetricEncoder<'_>, f64) -> Result<(), Error>,
) -> Result<(), Error> {
    for (labels, value) in values {
        match labels.is_empty() {
            true => write(&mut metric, value)?,
            false => write(&mut metric.encode_family(&labels)?, value)?,
        }
    }
    Ok(())
}

fn counter<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels<'a>, f64)>,
) -> Result<(), Error> {
    let metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    each(metric, values, |metric, value| metric.encode_counter::<NoLabelSet, f64, f64>(&value, None))
}

fn gauge<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels<'a>, f64)>,
) -> Result<(), Error> {
    let metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    each(metric, values, |metric, value| metric.encode_gauge(&value))
}

/// A counter without the ending that OpenMetrics wants of one: Triton's names have none.
fn alias<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels<'a>, f64)>,
) -> Result<(), Error> {
    let metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    each(metric, values, |metric, value| metric.encode_gauge(&value))
}

fn histogram<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels<'a>, &'a Histogram)>,
) -> Result<(), Error> {
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, histogram) in values {
        let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(histogram.counts().iter().copied()).collect();
        let mut metric = metric.encode_family(&labels)?;
        metric.encode_histogram::<NoLabelSet>(histogram.sum.as_secs_f64(), histogram.count(), &buckets, None)?;
    }
    Ok(())
}

fn node(to: &mut DescriptorEncoder<'_>, facts: &NodeFacts) -> Result<(), Error> {
    let info = vec![("node", facts.node.as_str()), ("version", env!("CARGO_PKG_VERSION"))];
    gauge(to, "weir_node", "The node of this process", [(info, 1.0)])?;
    let ready = f64::from(u8::from(facts.unready.is_none()));
    gauge(to, "weir_ready", "Whether the node takes queries", [(Labels::new(), ready)])?;
    let calls = facts.calls_in_flight as f64;
    gauge(to, "weir_calls_in_flight", "Calls that the node answers now", [(Labels::new(), calls)])?;
    let help = "What calls hold between their stages";
    gauge(to, "weir_between_stages_bytes", help, [(Labels::new(), facts.held.0 as f64)])?;
    let epoch = facts.epoch as f64;
    gauge(to, "weir_plan_epoch", "Epoch of the plan that the node works by", [(Labels::new(), epoch)])?;
    let refused = facts.refused.iter().map(|(why, count)| (vec![("reason", why.word())], *count as f64));
    counter(to, "weir_refused_calls", "Calls that were refused before anybody looked at their rows", refused)
}

fn group(to: &mut DescriptorEncoder<'_>, facts: &MemberFacts) -> Result<(), Error> {
    let one = |value: u64| [(Labels::new(), value as f64)];
    let info = vec![("member", facts.member.as_str()), ("version", env!("CARGO_PKG_VERSION"))];
    gauge(to, "weir_coordinator", "The coordinator of this process", [(info, 1.0)])?;
    gauge(to, "weir_coordinator_leads", "Whether it leads", one(u64::from(facts.leads)))?;
    gauge(to, "weir_coordinator_has_leader", "Whether somebody leads, as far as it knows", one(u64::from(facts.led)))?;
    gauge(to, "weir_coordinator_term", "Term of the group", one(facts.term))?;
    gauge(to, "weir_coordinator_applied_index", "Log index up to which it has applied everything", one(facts.applied))?;
    gauge(to, "weir_coordinator_voters", "Voters of the group", one(facts.voters))?;
    let behind = facts.others.iter().map(|(member, behind, _)| (vec![("member", member.as_str())], *behind as f64));
    gauge(to, "weir_coordinator_follower_behind", "At the leader: entries that another member's disk lacks", behind)?;
    let up = facts.others.iter().map(|(member, _, up)| (vec![("member", member.as_str())], f64::from(u8::from(*up))));
    gauge(to, "weir_coordinator_follower_up", "At the leader: whether another member answers", up)?;
    gauge(to, "weir_models", "Models in the registry", one(facts.models))?;
    gauge(to, "weir_endpoints", "Endpoints", one(facts.endpoints))?;
    gauge(to, "weir_nodes", "Nodes, up or not", one(facts.nodes))?;
    gauge(to, "weir_replicas_placed", "Replicas in the plan", one(facts.replicas))?;
    gauge(to, "weir_coordinator_plan_epoch", "Epoch of the plan", one(facts.epoch))
}

/// Each endpoint with its counts.
fn endpoints(facts: &NodeFacts) -> impl Iterator<Item = (&str, &Totals)> {
    facts.recent.endpoints.iter().zip(&facts.totals).map(|(told, totals)| (told.endpoint.as_str(), totals))
}

/// One figure of each endpoint.
fn of_each(facts: &NodeFacts, value: impl Fn(&Totals) -> f64) -> impl Iterator<Item = (Labels<'_>, f64)> {
    endpoints(facts).map(move |(endpoint, totals)| (vec![("endpoint", endpoint)], value(totals)))
}

fn queries(to: &mut DescriptorEncoder<'_>, facts: &NodeFacts) -> Result<(), Error> {
    let durations = |of: fn(&Totals) -> &Histogram| {
        endpoints(facts).map(move |(endpoint, totals)| (vec![("endpoint", endpoint)], of(totals)))
    };
    let help = "From the arrival of a query at its home node to its answer";
    histogram(to, "weir_request_duration_seconds", help, durations(|totals| &totals.request))?;
    let help = "What a query that was answered waited in queues, all stages together";
    histogram(to, "weir_queue_duration_seconds", help, durations(|totals| &totals.queue))?;
    let help = "What the batches of a query that was answered were computed for, all stages together";
    histogram(to, "weir_compute_duration_seconds", help, durations(|totals| &totals.compute))?;
    counter(to, "weir_answered", "Queries that were answered", of_each(facts, |totals| totals.request.count() as f64))?;
    let help = "Queries that were answered before their deadline";
    counter(to, "weir_answered_in_time", help, of_each(facts, |totals| totals.in_time as f64))?;
    let help = "Queries that were answered by a shallower stage than was wanted";
    counter(to, "weir_degraded", help, of_each(facts, |totals| totals.degraded as f64))?;
    counter(to, "weir_failed", "Queries that ran and failed", of_each(facts, |totals| totals.failed as f64))?;
    let help = "Calls whose caller went away before they were answered";
    counter(to, "weir_cancelled_calls", help, of_each(facts, |totals| totals.cancelled as f64))?;
    let shed = endpoints(facts).flat_map(|(endpoint, totals)| {
        let rejected = totals.rejected.iter().map(|((why, class), count)| (why.word(), *class, *count));
        let expired = totals.expired.iter().map(|(class, count)| ("expired", *class, *count));
        rejected.chain(expired).map(move |(reason, class, count)| {
            (vec![("endpoint", endpoint), ("reason", reason), ("class", class.word())], count as f64)
        })
    });
    counter(to, "weir_shed", "Queries that did not run, by why and by class", shed)?;
    counter(
        to,
        "weir_cascade_stage",
        "Queries that were answered, by the stage that answered",
        by_stage(facts, |totals| &totals.by_stage),
    )?;
    let help = "Calls of a stage for a query, whatever came of them";
    counter(to, "weir_stage_calls", help, by_stage(facts, |totals| &totals.stage_calls))?;
    let help = "Of those: a query that was answered in time has no answer of the stage";
    counter(to, "weir_stage_calls_in_vain", help, by_stage(facts, |totals| &totals.in_vain))
}

/// What is counted by stage: those that there are, and those that are gone, or the default output, where anything is counted of them.
fn by_stage<'a>(facts: &'a NodeFacts, of: fn(&Totals) -> &ByStage) -> impl Iterator<Item = (Labels<'a>, f64)> {
    facts.recent.endpoints.iter().zip(&facts.totals).flat_map(move |(told, totals)| {
        let counts = of(totals);
        let now = told.stages.iter().map(|stage| (stage.as_str(), counts.of(stage.as_str())));
        let others = counts.iter().filter(|(name, _)| told.stages.iter().all(|stage| stage.as_str() != *name));
        let all = now.chain(others);
        all.map(|(stage, count)| (vec![("endpoint", told.endpoint.as_str()), ("stage", stage)], count as f64))
    })
}

fn triage(to: &mut DescriptorEncoder<'_>, facts: &NodeFacts) -> Result<(), Error> {
    let told = &facts.recent.endpoints;
    let price = told.iter().map(|told| (vec![("endpoint", told.endpoint.as_str())], told.price));
    let help = "Price of a second of slot time where a deeper stage of the endpoint is dearest, in units of value";
    gauge(to, "weir_price", help, price)?;
    let help = "Value that load is expected to have cost: escalations that were worth running and did not, and queries without an answer";
    counter(to, "weir_value_forgone", help, of_each(facts, |totals| totals.forgone))?;
    let help = "Stages that gave a confidence that is not a number, or nothing that a gate could look at";
    counter(to, "weir_gate_not_a_number", help, of_each(facts, |totals| totals.not_numbers as f64))?;
    let help = "Answers of which calibration says how likely they are right";
    counter(to, "weir_estimated_answers", help, of_each(facts, |totals| totals.estimated as f64))?;
    let help = "How many of those are expected to be right";
    counter(to, "weir_expected_right", help, of_each(facts, |totals| totals.right))?;
    let of = |value: fn(&weir_core::history::EndpointRecent) -> u64| {
        told.iter().map(move |told| (vec![("endpoint", told.endpoint.as_str())], value(told) as f64))
    };
    counter(to, "weir_labelled_answers", "Answers whose label somebody has told", of(|told| told.labelled.answers))?;
    counter(to, "weir_labelled_right", "How many of those were right", of(|told| told.labelled.right))?;
    counter(to, "weir_shadowed", "Rows that a shadow answered too", of(|told| told.shadow.0))?;
    counter(to, "weir_shadow_agreed", "How many of those it answered alike", of(|told| told.shadow.1))?;
    let audits = |value: fn(&weir_core::endpoint::audit::GateAudit) -> f64| {
        told.iter().flat_map(move |told| {
            let gates = told.stages.iter().zip(&told.gates).skip(1);
            gates.map(move |(stage, gate)| {
                (vec![("endpoint", told.endpoint.as_str()), ("stage", stage.as_str())], value(gate))
            })
        })
    };
    let help = "Rows that every stage was asked about, to see whether the gate before the stage tells the truth";
    counter(to, "weir_gate_audited", help, audits(|gate| gate.rows as f64))?;
    let help = "Of those: the stage behind the gate said something else than the one before";
    counter(to, "weir_gate_differed", help, audits(|gate| gate.differ as f64))?;
    // A gain may be below zero, so that these sums are no counters.
    let help = "Sum of the gains that the gate's table expected of them";
    gauge(to, "weir_gate_expected_gain", help, audits(|gate| gate.expected))?;
    let help = "Of those: somebody has told the label";
    counter(to, "weir_gate_labelled", help, audits(|gate| gate.labelled as f64))?;
    let help = "Sum of the gains that the gate's table expected of those that are labelled";
    gauge(to, "weir_gate_expected_gain_of_labelled", help, audits(|gate| gate.expected_of_labelled))?;
    let help = "Sum of the gains that those had";
    gauge(to, "weir_gate_measured_gain", help, audits(|gate| gate.gained))?;
    let help = "What homes of this node ask of a model beside what has to run, in slots, of what is worth at least so much a second of slot time";
    let densities = [0.0, 0.01, 0.1, 1.0, 10.0, 100.0];
    let words: Vec<String> = densities.iter().map(f64::to_string).collect();
    let models: Vec<(String, Vec<(f64, f64)>)> =
        facts.demand.iter().map(|(model, asked)| (model.to_string(), asked.points().collect())).collect();
    let demand = models.iter().flat_map(|(model, points)| {
        densities.iter().zip(&words).map(move |(least, word)| {
            let worth = points.iter().filter(|(density, _)| density >= least);
            (vec![("model", model.as_str()), ("worth_at_least", word.as_str())], worth.map(|(_, work)| work).sum())
        })
    });
    gauge(to, "weir_demand_slots", help, demand)
}

fn devices(to: &mut DescriptorEncoder<'_>, facts: &NodeFacts) -> Result<(), Error> {
    let devices = &facts.recent.devices;
    let of = |value: fn(&weir_core::history::DeviceNow) -> f64| {
        devices.iter().map(move |device| (vec![("device", device.device.as_str())], value(device)))
    };
    let seconds = |work: weir_core::units::ServiceTime| work.as_duration().as_secs_f64();
    gauge(to, "weir_device_slots", "Batches that the device can run at once", of(|device| f64::from(device.slots)))?;
    gauge(to, "weir_device_running", "Batches that run now", of(|device| f64::from(device.running)))?;
    let busy = devices.iter().map(|device| (vec![("device", device.device.as_str())], seconds(device.busy)));
    counter(to, "weir_device_busy_seconds", "Slot time spent computing", busy)?;
    let backlog = devices.iter().map(|device| (vec![("device", device.device.as_str())], seconds(device.backlog)));
    gauge(to, "weir_device_backlog_seconds", "Estimated slot time of what waits", backlog)?;
    let models: Vec<_> = devices
        .iter()
        .flat_map(|device| device.models.iter().map(|now| (device.device.as_str(), now.model.to_string(), now)))
        .collect();
    let queued = models
        .iter()
        .map(|(device, model, now)| (vec![("device", *device), ("model", model.as_str())], f64::from(now.queued)));
    gauge(to, "weir_queue_rows", "Rows that wait for a model", queued)?;
    let batches = models.iter().flat_map(|(device, model, now)| {
        now.batches.by_reason().map(move |(closed, count)| {
            (vec![("device", *device), ("model", model.as_str()), ("closed", closed.word())], count as f64)
        })
    });
    counter(to, "weir_batches", "Batches that ran, by why they were not larger", batches)?;
    let mut sizes =
        to.encode_descriptor("weir_batch_size", "Rows of the batches that ran", None, MetricType::Histogram)?;
    for (device, model, now) in &models {
        let buckets: Vec<(f64, u64)> =
            now.batches.by_size().map(|(bound, count)| (bound.map_or(f64::INFINITY, |b| b as f64), count)).collect();
        let labels: Labels<'_> = vec![("device", device), ("model", model)];
        let (rows, count) = (now.batches.rows() as f64, now.batches.count());
        sizes.encode_family(&labels)?.encode_histogram::<NoLabelSet>(rows, count, &buckets, None)?;
    }
    Ok(())
}

/// The same under Triton's names, an endpoint as a model, in microseconds where it says so.
fn aliases(to: &mut DescriptorEncoder<'_>, facts: &NodeFacts) -> Result<(), Error> {
    let of = |value: fn(&Totals) -> f64| {
        endpoints(facts).map(move |(endpoint, totals)| {
            (vec![("model", endpoint), ("version", crate::infer::VERSION)], value(totals))
        })
    };
    let help = "Number of successful inference requests, all batch sizes";
    alias(to, "nv_inference_request_success", help, of(|totals| totals.calls.success.count as f64))?;
    let failures = endpoints(facts).flat_map(|(endpoint, totals)| {
        let failed = totals.calls.fail.count;
        let rejected = failed.saturating_sub(totals.broken);
        let by = [("REJECTED", rejected), ("CANCELED", totals.cancelled), ("BACKEND", totals.broken), ("OTHER", 0)];
        by.into_iter().map(move |(reason, count)| {
            let labels = vec![("model", endpoint), ("version", crate::infer::VERSION), ("reason", reason)];
            (labels, count as f64)
        })
    });
    alias(to, "nv_inference_request_failure", "Number of failed inference requests, all batch sizes", failures)?;
    let help = "Number of inferences performed (does not include cached requests)";
    alias(to, "nv_inference_count", help, of(|totals| totals.calls.rows as f64))?;
    let help = "Number of model executions performed (does not include cached requests)";
    alias(to, "nv_inference_exec_count", help, of(|totals| totals.calls.batches.round()))?;
    let mut duration = |name: &str, help: &str, value: fn(&Totals) -> std::time::Duration| {
        let values = endpoints(facts).map(|(endpoint, totals)| {
            (vec![("model", endpoint), ("version", crate::infer::VERSION)], value(totals).as_micros() as f64)
        });
        alias(to, name, help, values)
    };
    let none = |_: &Totals| std::time::Duration::ZERO;
    let help = "Cumulative inference request duration in microseconds (includes cached requests)";
    duration("nv_inference_request_duration_us", help, |totals| totals.calls.success.time)?;
    let help = "Cumulative inference queuing duration in microseconds (includes cached requests)";
    duration("nv_inference_queue_duration_us", help, |totals| totals.calls.queue.time)?;
    let help = "Cumulative compute input duration in microseconds: part of the batch here";
    duration("nv_inference_compute_input_duration_us", help, none)?;
    let help = "Cumulative compute inference duration in microseconds (does not include cached requests)";
    duration("nv_inference_compute_infer_duration_us", help, |totals| totals.calls.compute.time)?;
    let help = "Cumulative inference compute output duration in microseconds: part of the batch here";
    duration("nv_inference_compute_output_duration_us", help, none)?;
    let pending = facts.calls_in_flight as f64;
    let help = "Instantaneous number of pending requests: of all models together";
    gauge(to, "nv_inference_pending_request_count", help, [(Labels::new(), pending)])?;
    for (name, what) in [("nv_cache_num_hits_per_model", "hits"), ("nv_cache_num_misses_per_model", "misses")] {
        alias(to, name, &format!("Number of cache {what} per model: there is no cache of responses"), of(|_| 0.0))?;
    }
    let machine = Machine::now();
    let help = "CPU utilization rate [0.0 - 1.0], since it was asked for last";
    gauge(to, "nv_cpu_utilization", help, machine.utilization.map(|share| (Labels::new(), share)))?;
    gauge(
        to,
        "nv_cpu_memory_total_bytes",
        "CPU total memory (RAM), in bytes",
        machine.total.map(|v| (Labels::new(), v)),
    )?;
    gauge(to, "nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", machine.used.map(|v| (Labels::new(), v)))
}

/// What the system says of this process; nothing where it does not.
fn process(to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let resident = read("/proc/self/statm").and_then(|text| text.split_whitespace().nth(1)?.parse::<f64>().ok());
    let resident = resident.map(|pages| (Labels::new(), pages * PAGE));
    gauge(to, "process_resident_memory_bytes", "Memory of this process that is in RAM", resident)?;
    // User and system time, in ticks; the name before them may hold anything but ends with a bracket.
    let cpu = read("/proc/self/stat").and_then(|text| {
        let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
        let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((user + system) / TICKS)
    });
    counter(to, "process_cpu_seconds", "Processor time of this process", cpu.map(|s| (Labels::new(), s)))?;
    let files = std::fs::read_dir("/proc/self/fd").ok().map(|files| (Labels::new(), files.count() as f64));
    gauge(to, "process_open_fds", "Open files and sockets of this process", files)
}

/// What Linux counts memory and processor time by on the machines that weir is built for.
const PAGE: f64 = 4096.0;
const TICKS: f64 = 100.0;

#[derive(Default)]
struct Machine {
    total: Option<f64>,
    used: Option<f64>,
    /// Of all processors, since the last look.
    utilization: Option<f64>,
}

/// Ticks of all processors until the last look: in all, and of them idle.
static TICKS_BEFORE: Mutex<(f64, f64)> = Mutex::new((0.0, 0.0));

impl Machine {
    fn now() -> Machine {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib * 1024.0)
        };
        let (total, free) = (kib("MemTotal:"), kib("MemAvailable:"));
        // User, nice, system, idle, waiting for disks, and so on.
        let ticks = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let ticks = ticks.lines().next().unwrap_or_default().split_whitespace().skip(1);
        let ticks: Vec<f64> = ticks.filter_map(|n| n.parse().ok()).take(8).collect();
        let utilization = ticks.get(3..5).map(|idle| {
            let now = (ticks.iter().sum::<f64>(), idle.iter().sum::<f64>());
            let mut before = TICKS_BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
            let (all, idle) = (now.0 - before.0, now.1 - before.1);
            *before = now;
            if all > 0.0 { (1.0 - idle / all).clamp(0.0, 1.0) } else { 0.0 }
        });
        Machine { total, used: total.zip(free).map(|(total, free)| total - free), utilization }
    }
}

#[cfg(test)]
mod tests;
