//! `weir status`: the cluster on one screen.

use clap::Args;
use serde_json::{Value, json};
use weir_client::admin::Status as ClusterStatus;
use weir_core::endpoint::Endpoint;
use weir_core::placement::{EndpointState, Liveness};
use weir_core::replicated::State;
use weir_core::units::Instant;

use crate::connect::Common;
use crate::failure::Failure;
use crate::show::table;

/// The cluster on one screen.
#[derive(Args)]
pub struct Status {
    /// From whichever coordinator answers, even without a leader; it may be behind
    #[arg(long, env = "WEIR_STALE")]
    stale: bool,
}

/// When the beliefs of [`beliefs`] hold.
const THEN: Instant = Instant::from_millis(60_000);

/// The leader's view of the nodes, from what it said.
pub fn beliefs(status: &ClusterStatus) -> Liveness {
    let mut liveness = Liveness::new(Instant::ZERO);
    for node in status.nodes.iter().filter(|node| node.state != "down") {
        if let Some(report) = &node.report {
            liveness.on_report(THEN, &status.state, report.clone());
        }
    }
    liveness
}

/// State of an endpoint with its replicas ready and wanted.
pub fn endpoint_state(liveness: &Liveness, state: &State, endpoint: &Endpoint) -> (EndpointState, u32, u32) {
    liveness.endpoint(THEN, state, endpoint)
}

impl Status {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let admin = common.admin()?;
        let status = if self.stale { admin.stale_status().await? } else { admin.status().await? };
        let liveness = beliefs(&status);
        let endpoints: Vec<_> =
            status.state.endpoints.values().map(|e| (e, endpoint_state(&liveness, &status.state, e))).collect();
        if common.json() {
            println!("{}", as_json(&status, &endpoints));
        } else {
            println!("{}", as_text(&status, &endpoints));
        }
        // Without the leader nobody knows which replicas serve.
        let known = !self.stale || !status.nodes.is_empty();
        if known && endpoints.iter().any(|(_, (state, ..))| *state != EndpointState::Serving) {
            return Err(Failure::No(String::new()));
        }
        Ok(())
    }
}

type Endpoints<'a> = [(&'a Endpoint, (EndpointState, u32, u32))];

fn as_json(status: &ClusterStatus, endpoints: &Endpoints<'_>) -> Value {
    let members = status.members.iter().map(|m| {
        json!({"name": m.member.name.as_str(), "address": m.member.address, "role": m.role, "applied": m.applied.0, "state": if m.up { "up" } else { "down" }})
    });
    let nodes = status.state.nodes.values().map(|node| {
        let seen = status.nodes.iter().find(|seen| seen.name == node.name.as_str());
        let devices = node.devices.iter().map(|d| json!({"name": d.name.as_str(), "kind": d.kind, "slots": d.slots, "busy": seen.map_or(0.0, |s| s.busy)}));
        let models = status.state.plan.assignments.values().filter(|a| a.node == node.name).map(|a| a.model.to_string());
        let mut models: Vec<String> = models.collect();
        models.dedup();
        json!({"name": node.name.as_str(), "address": node.address, "state": seen.map_or("unknown", |s| s.state), "devices": devices.collect::<Vec<_>>(), "models": models})
    });
    let endpoints = endpoints.iter().map(|(endpoint, (state, ready, wanted))| {
        json!({"name": endpoint.name.as_str(), "state": state.word(), "replicas": {"ready": ready, "wanted": wanted}})
    });
    json!({
        "cluster": status.state.cluster,
        "leader": status.leader.0,
        "term": status.term,
        "index": status.state.applied.0,
        "members": members.collect::<Vec<_>>(),
        "nodes": nodes.collect::<Vec<_>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn as_text(status: &ClusterStatus, endpoints: &Endpoints<'_>) -> String {
    let leader = if status.leader.0.is_empty() { "no leader" } else { &status.leader.0 };
    let mut text = format!(
        "cluster {}  leader {leader}  term {}  index {}\n\n",
        status.state.cluster, status.term, status.state.applied
    );
    let members = status.members.iter().map(|m| {
        vec![
            m.member.name.to_string(),
            m.member.address.clone(),
            m.role.into(),
            m.applied.to_string(),
            if m.up { "up" } else { "down" }.into(),
        ]
    });
    text += &table(&["coordinator", "address", "role", "index", "state"], members.collect());
    let nodes = status.state.nodes.values().map(|node| {
        let seen = status.nodes.iter().find(|seen| seen.name == node.name.as_str());
        let slots: u32 = node.devices.iter().map(|device| device.slots).sum();
        let replicas = status.state.plan.assignments.values().filter(|a| a.node == node.name).count();
        vec![
            node.name.to_string(),
            node.address.clone(),
            seen.map_or("unknown", |s| s.state).into(),
            slots.to_string(),
            seen.map_or("-".into(), |s| format!("{:.0} %", 100.0 * s.busy)),
            replicas.to_string(),
        ]
    });
    text += "\n\n";
    text += &table(&["node", "address", "state", "slots", "busy", "replicas"], nodes.collect());
    let endpoints = endpoints.iter().map(|(endpoint, (state, ready, wanted))| {
        vec![endpoint.name.to_string(), state.word().into(), format!("{ready} ready, {wanted} wanted")]
    });
    text += "\n\n";
    text += &table(&["endpoint", "state", "replicas"], endpoints.collect());
    for (model, why) in &status.unplaceable {
        text += &format!("\nno place for {model}: {why}");
    }
    text
}
