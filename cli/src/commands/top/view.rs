//! What all nodes say, put together by endpoint, model and node.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use weir_client::admin::Status;
use weir_core::endpoint::audit::GateAudit;
use weir_core::history::{NodeRecent, Tally};
use weir_core::ids::{EndpointName, ModelRef, StageName};
use weir_core::scheduler::Batches;

use crate::show::{object, table};

/// One look at the cluster.
#[derive(Debug)]
pub struct View {
    endpoints: BTreeMap<EndpointName, Endpoint>,
    models: BTreeMap<ModelRef, Model>,
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Endpoint {
    stages: Vec<StageName>,
    tally: Tally,
    /// Rows a second: each node's by the seconds that it has counted.
    offered: f64,
    answered: f64,
    in_time: f64,
    /// Value a second that load has cost.
    lost: f64,
    /// The highest of any node's.
    price: f64,
    /// Answers whose label is known, and how many of them are right.
    labels: (u64, u64),
    /// Rows that a shadow answered too, and how many of them alike.
    shadow: (u64, u64),
    /// By stage, what audits found about the gate before it.
    gates: Vec<GateAudit>,
}

#[derive(Debug, Default)]
struct Model {
    queued: u64,
    batches: Batches,
}

#[derive(Debug)]
struct Node {
    name: String,
    state: &'static str,
    busy: f64,
    slots: u32,
    running: u32,
    backlog: Duration,
    /// Whether it answered.
    told: bool,
}

impl View {
    /// From the leader's word and what each node said; `None` for one that did not answer.
    pub fn new(status: &Status, said: Vec<(String, Option<NodeRecent>)>) -> View {
        let mut view = View { endpoints: BTreeMap::new(), models: BTreeMap::new(), nodes: Vec::new() };
        for (name, recent) in said {
            let seen = status.nodes.iter().find(|seen| seen.name == name);
            let devices = recent.iter().flat_map(|recent| &recent.devices);
            view.nodes.push(Node {
                state: seen.map_or("unknown", |seen| seen.state),
                busy: seen.map_or(0.0, |seen| seen.busy),
                slots: devices.clone().map(|device| device.slots).sum(),
                running: devices.clone().map(|device| device.running).sum(),
                backlog: devices.map(|device| device.backlog.as_duration()).sum(),
                told: recent.is_some(),
                name,
            });
            recent.iter().for_each(|recent| view.add(recent));
        }
        view
    }

    fn add(&mut self, recent: &NodeRecent) {
        for told in &recent.endpoints {
            let endpoint = self.endpoints.entry(told.endpoint.clone()).or_default();
            let tally = &told.recent.tally;
            let rate = |count: u64| count as f64 / f64::from(told.recent.seconds.max(1));
            endpoint.offered += rate(tally.arrived);
            endpoint.answered += rate(tally.answered);
            endpoint.in_time += rate(tally.in_time);
            endpoint.lost += rate(tally.forgone) / 1e6;
            endpoint.price = endpoint.price.max(told.price);
            endpoint.tally.merge(tally);
            endpoint.stages.clone_from(&told.stages);
            endpoint.labels = (endpoint.labels.0 + told.labels.0, endpoint.labels.1 + told.labels.1);
            endpoint.shadow = (endpoint.shadow.0 + told.shadow.0, endpoint.shadow.1 + told.shadow.1);
            let gates = endpoint.gates.len().max(told.gates.len());
            endpoint.gates.resize(gates, GateAudit::default());
            endpoint.gates.iter_mut().zip(&told.gates).for_each(|(sum, gate)| sum.merge(gate));
        }
        for told in recent.devices.iter().flat_map(|device| &device.models) {
            let model = self.models.entry(told.model.clone()).or_default();
            model.queued += u64::from(told.queued);
            model.batches.merge(&told.batches);
        }
    }

    /// As `weir top -o json`.
    pub fn as_json(&self) -> Value {
        let endpoints = self.endpoints.iter().map(|(name, endpoint)| endpoint.as_json(name));
        let models = self.models.iter().map(|(name, model)| {
            let closed = model.batches.by_reason().map(|(why, count)| (why.word().to_owned(), json!(count)));
            json!({"name": name.to_string(), "queued": model.queued,
                "batches": {"count": model.batches.count(), "rows": model.batches.rows(), "closed": object(closed)}})
        });
        let nodes = self.nodes.iter().map(|node| {
            json!({"name": node.name, "state": node.state, "busy": node.busy, "slots": node.slots, "running": node.running,
                "backlog_us": node.backlog.as_micros() as u64, "told": node.told})
        });
        json!({
            "endpoints": endpoints.collect::<Vec<_>>(),
            "models": models.collect::<Vec<_>>(),
            "nodes": nodes.collect::<Vec<_>>(),
        })
    }

    /// As tables.
    pub fn as_text(&self) -> String {
        let header = [
            "endpoint",
            "offered/s",
            "answered/s",
            "in time/s",
            "attainment",
            "p50",
            "p99",
            "degraded",
            "expected right",
            "value lost/s",
            "price",
            "stages",
        ];
        let endpoints = self.endpoints.iter().map(|(name, endpoint)| endpoint.row(name)).collect();
        let models = self.models.iter().map(|(name, model)| {
            let all = model.batches.count().max(1) as f64;
            let mut row = vec![
                name.to_string(),
                model.queued.to_string(),
                model.batches.count().to_string(),
                format!("{:.1}", model.batches.rows() as f64 / all),
            ];
            row.extend(model.batches.by_reason().map(|(_, count)| percent(count as f64 / all)));
            row
        });
        let gates = self.endpoints.iter().flat_map(|(name, endpoint)| {
            let of_stage = move |(stage, gate): (&StageName, &GateAudit)| {
                let each =
                    |sum: f64, rows: u64| if rows > 0 { format!("{:.4}", sum / rows as f64) } else { "-".into() };
                vec![
                    format!("{name}/{stage}"),
                    gate.rows.to_string(),
                    each(gate.differ as f64, gate.rows),
                    each(gate.expected, gate.rows),
                    gate.labelled.to_string(),
                    each(gate.expected_of_labelled, gate.labelled),
                    each(gate.gained, gate.labelled),
                ]
            };
            endpoint.stages.iter().zip(&endpoint.gates).skip(1).filter(|(_, gate)| gate.rows > 0).map(of_stage)
        });
        let gates: Vec<Vec<String>> = gates.collect();
        let nodes = self.nodes.iter().map(|node| {
            let told = |text: String| if node.told { text } else { "no answer".to_owned() };
            vec![
                node.name.clone(),
                node.state.into(),
                percent(node.busy),
                told(format!("{} of {}", node.running, node.slots)),
                told(shown(Some(node.backlog))),
            ]
        });
        let audits = table(
            &["gate before", "audited", "differ", "gain by table", "labelled", "gain by table", "measured gain"],
            gates.clone(),
        );
        [
            table(&header, endpoints),
            table(
                &["model", "queued", "batches", "rows a batch", "full", "target", "deadline", "idle", "timer"],
                models.collect(),
            ),
            table(&["node", "state", "busy", "slots running", "backlog"], nodes.collect()),
        ]
        .into_iter()
        .chain((!gates.is_empty()).then_some(audits))
        .collect::<Vec<_>>()
        .join("\n\n")
    }
}

impl Endpoint {
    /// Answers by stage, in the endpoint's order.
    fn mix(&self) -> impl Iterator<Item = (&StageName, u64)> {
        self.stages.iter().zip(self.tally.by_stage)
    }

    fn as_json(&self, name: &EndpointName) -> Value {
        let us = |q: f64| self.tally.latencies.quantile(q).map(|latency| latency.as_micros() as u64);
        let tally = &self.tally;
        json!({
            "name": name.as_str(),
            "offered_per_s": self.offered, "answered_per_s": self.answered, "in_time_per_s": self.in_time,
            "attainment": tally.attainment(),
            "latency_us": {"p50": us(0.5), "p99": us(0.99)},
            "rejected": tally.rejected, "expired": tally.expired, "failed": tally.failed, "degraded": tally.degraded,
            "stages": object(self.mix().map(|(stage, answers)| (stage.to_string(), json!(answers)))),
            "price": self.price,
            "expected_accuracy": tally.accuracy(), "value_lost_per_s": self.lost,
            "labelled": {"answers": self.labels.0, "accuracy": self.measured()},
            "shadow": {"rows": self.shadow.0, "agreed": self.shadow.1},
            "gates": self.stages.iter().zip(&self.gates).skip(1).map(audited).collect::<Vec<_>>(),
        })
    }

    /// Share of the labelled answers that are right.
    fn measured(&self) -> Option<f64> {
        (self.labels.0 > 0).then(|| self.labels.1 as f64 / self.labels.0 as f64)
    }

    fn row(&self, name: &EndpointName) -> Vec<String> {
        let share = |count: u64| count as f64 / self.tally.answered.max(1) as f64;
        let mix = self.mix().map(|(stage, answers)| format!("{stage} {}", percent(share(answers))));
        vec![
            name.to_string(),
            format!("{:.1}", self.offered),
            format!("{:.1}", self.answered),
            format!("{:.1}", self.in_time),
            self.tally.attainment().map_or("-".into(), percent),
            shown(self.tally.latencies.quantile(0.5)),
            shown(self.tally.latencies.quantile(0.99)),
            percent(share(self.tally.degraded)),
            self.tally.accuracy().map_or("-".into(), |share| format!("{:.1} %", 100.0 * share)),
            format!("{:.2}", self.lost),
            format!("{:.3}", self.price),
            mix.collect::<Vec<_>>().join(", "),
        ]
    }
}

/// What audits found about the gate before a stage.
fn audited((stage, gate): (&StageName, &GateAudit)) -> Value {
    let each = |sum: f64, rows: u64| (rows > 0).then(|| sum / rows as f64);
    json!({
        "stage": stage.as_str(),
        "audited": gate.rows, "differ": each(gate.differ as f64, gate.rows), "expected_gain": each(gate.expected, gate.rows),
        "labelled": gate.labelled, "expected_gain_of_labelled": each(gate.expected_of_labelled, gate.labelled),
        "measured_gain": each(gate.gained, gate.labelled),
    })
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn shown(span: Option<Duration>) -> String {
    span.map_or("-".into(), |span| format!("{:.1} ms", span.as_secs_f64() * 1e3))
}
