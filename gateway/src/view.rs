//! What all nodes say, put together by endpoint, model and node: for `weir top` and the dashboard.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Map, Value, json};
use weir_client::admin::{MemberStatus, Status};
use weir_client::{Admin, ClientError};
use weir_core::endpoint::audit::{GateAudit, Labelled};
use weir_core::history::{Ever, NodeRecent, Tally};
use weir_core::ids::{EndpointName, ModelRef, NodeName, StageName};
use weir_core::paging::MemoryNow;
use weir_core::replicated::Assignment;
use weir_core::scheduler::Batches;
use weir_core::triage::{ByModel, Looks};

/// One look at the cluster.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct View {
    pub endpoints: BTreeMap<EndpointName, Endpoint>,
    pub models: BTreeMap<ModelRef, Model>,
    pub nodes: Vec<Node>,
    /// By model: its replicas in the plan, on each of `nodes`.
    pub placement: BTreeMap<ModelRef, Vec<usize>>,
    /// What homes ask of models behind gates that weigh, by what it is worth for its time.
    pub demand: ByModel,
    pub members: Vec<Member>,
}

/// A coordinator.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Member {
    pub name: String,
    pub role: &'static str,
    pub up: bool,
    pub applied: u64,
}

/// An endpoint, over all homes.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Endpoint {
    pub stages: Vec<StageName>,
    pub tally: Tally,
    /// Rows a second: each node's by the seconds that it has counted.
    pub offered: f64,
    pub answered: f64,
    pub in_time: f64,
    /// Value a second that load has cost.
    pub lost: f64,
    /// The highest of any node's.
    pub price: f64,
    /// What labels say of its answers.
    pub labelled: Labelled,
    /// Rows that a shadow answered too, and how many of them alike.
    pub shadow: (u64, u64),
    /// By stage, what audits found about the gate before it.
    pub gates: Vec<GateAudit>,
    /// Since the nodes started.
    pub ever: Ever,
}

/// A model, over all devices.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Model {
    pub queued: u64,
    pub batches: Batches,
}

/// A node.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Node {
    pub name: String,
    pub state: &'static str,
    pub busy: f64,
    pub slots: u32,
    pub running: u32,
    pub backlog: Duration,
    /// Rows that wait on its device.
    pub queued: u64,
    /// Whether it answered.
    pub told: bool,
    /// For models, as it reported it last.
    pub memory: MemoryNow,
}

/// A node that takes longer to answer is told as one that did not.
const NODE_WITHIN: Duration = Duration::from_millis(800);

/// What the leader and every node say now of the last so many whole seconds.
pub async fn look(admin: &Admin, seconds: usize) -> Result<(Status, View), ClientError> {
    let status = admin.status().await?;
    let said = told(admin, &status, seconds).await;
    let view = View::new(&status, said);
    Ok((status, view))
}

/// What every node says now of the last so many whole seconds; `None` of one that does not answer.
pub async fn told(admin: &Admin, status: &Status, seconds: usize) -> Vec<(String, Option<NodeRecent>)> {
    let asked = status.state.nodes.values().map(|node| async {
        let down = status.nodes.iter().any(|seen| seen.name == node.name.as_str() && seen.state == "down");
        let asked = async {
            match down {
                true => None,
                false => admin.recent(&node.address, seconds).await.ok(),
            }
        };
        (node.name.to_string(), tokio::time::timeout(NODE_WITHIN, asked).await.ok().flatten())
    });
    join_all(asked).await
}

impl View {
    /// From the leader's word and what each node said; `None` for one that did not answer.
    pub fn new(status: &Status, said: Vec<(String, Option<NodeRecent>)>) -> View {
        let replicas = |model: &ModelRef| {
            let on = |node: &NodeName| {
                let here = |assigned: &&Assignment| assigned.model == *model && assigned.node == *node;
                status.state.plan.assignments.values().filter(here).count()
            };
            (model.clone(), status.state.nodes.keys().map(on).collect())
        };
        let member = |seen: &MemberStatus| Member {
            name: seen.member.name.to_string(),
            role: seen.role,
            up: seen.up,
            applied: seen.applied.0,
        };
        let mut looks = Looks::default();
        looks.add(status.demand());
        let mut view = View {
            endpoints: BTreeMap::new(),
            models: BTreeMap::new(),
            nodes: Vec::new(),
            placement: status.state.models.keys().map(replicas).collect(),
            demand: looks.mean(),
            members: status.members.iter().map(member).collect(),
        };
        for (name, recent) in said {
            let seen = status.nodes.iter().find(|seen| seen.name == name);
            let devices = recent.iter().flat_map(|recent| &recent.devices);
            view.nodes.push(Node {
                state: seen.map_or("unknown", |seen| seen.state),
                busy: seen.map_or(0.0, |seen| seen.busy),
                slots: devices.clone().map(|device| device.slots).sum(),
                running: devices.clone().map(|device| device.running).sum(),
                queued: devices.clone().flat_map(|device| &device.models).map(|model| u64::from(model.queued)).sum(),
                backlog: devices.map(|device| device.backlog.as_duration()).sum(),
                told: recent.is_some(),
                memory: seen.and_then(|seen| seen.report.as_ref()).map(|report| report.memory).unwrap_or_default(),
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
            endpoint.ever.merge(&told.ever);
            endpoint.labelled.merge(told.labelled);
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
            let memory = json!({"size": node.memory.size.0, "taken": node.memory.taken.0, "placed": node.memory.placed.0,
                "reloading": node.memory.reloading, "thrashes": node.memory.thrashes, "thrashings": node.memory.thrashings});
            json!({"name": node.name, "state": node.state, "busy": node.busy, "slots": node.slots, "running": node.running,
                "queued": node.queued, "backlog_us": node.backlog.as_micros() as u64, "told": node.told, "memory": memory})
        });
        let placement = self.placement.iter().map(|(model, on)| json!({"model": model.to_string(), "replicas": on}));
        let demand = self.demand.iter().map(|(model, asked)| {
            let point = |(value, work): (f64, f64)| json!({"value_per_s": value, "slot_s_per_s": work});
            (model.to_string(), asked.points().map(point).collect::<Vec<_>>().into())
        });
        let members = self.members.iter().map(
            |member| json!({"name": member.name, "role": member.role, "up": member.up, "applied": member.applied}),
        );
        json!({
            "endpoints": endpoints.collect::<Vec<_>>(),
            "models": models.collect::<Vec<_>>(),
            "nodes": nodes.collect::<Vec<_>>(),
            "placement": placement.collect::<Vec<_>>(),
            "demand": object(demand),
            "members": members.collect::<Vec<_>>(),
        })
    }
}

impl Endpoint {
    /// Answers by stage, in the endpoint's order.
    pub fn mix(&self) -> impl Iterator<Item = (&StageName, u64)> {
        self.stages.iter().map(|stage| (stage, self.tally.by_stage.of(stage.as_str())))
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
            "ever": {"answered": self.ever.answered, "in_time": self.ever.in_time, "degraded": self.ever.degraded,
                "refused": self.ever.refused},
            "stages": object(self.mix().map(|(stage, answers)| (stage.to_string(), json!(answers)))),
            "price": self.price,
            "expected_accuracy": tally.accuracy(), "value_lost_per_s": self.lost,
            "labelled": {"answers": self.labelled.answers, "accuracy": self.labelled.accuracy(), "error": self.labelled.error()},
            "shadow": {"rows": self.shadow.0, "agreed": self.shadow.1},
            "gates": self.stages.iter().zip(&self.gates).skip(1).map(audited).collect::<Vec<_>>(),
        })
    }
}

fn object(fields: impl Iterator<Item = (String, Value)>) -> Value {
    Value::Object(fields.collect::<Map<_, _>>())
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
