//! `weir get`: lists.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use weir_client::admin::Status;
use weir_core::ids::{ModelRef, Version};
use weir_core::paging::Residence;
use weir_core::placement::ReplicaState;
use weir_host::Host;

use crate::connect::Common;
use crate::failure::Failure;
use crate::show::{object, table};

/// Lists what there is.
#[derive(Args)]
pub struct Get {
    /// What to list
    #[arg(value_enum)]
    what: What,
    /// Only this one
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Models,
    Labels,
    Endpoints,
    Nodes,
    Placements,
    Members,
    Grants,
}

impl Get {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let status = common.admin()?.status().await?;
        let state = &status.state;
        let (header, mut rows): (&[&str], Vec<Vec<String>>) = match self.what {
            What::Models => (
                &["model", "engine", "bytes", "digest", "replicas", "state", "memory"],
                state
                    .models
                    .values()
                    .map(|m| {
                        let max = if m.replicas.max == u32::MAX { "any".into() } else { m.replicas.max.to_string() };
                        vec![
                            m.reference.to_string(),
                            m.engine.word().into(),
                            m.size.0.to_string(),
                            m.digest.to_string()[..12].into(),
                            format!("{} to {max}", m.replicas.min),
                            m.quarantined.as_ref().map_or("ok".into(), |why| format!("quarantined: {why}")),
                            residence(&status, &m.reference).map_or("-", Residence::word).into(),
                        ]
                    })
                    .collect(),
            ),
            What::Labels => (
                &["label", "version", "goes to", "before", "taken back"],
                state
                    .labels
                    .values()
                    .map(|l| {
                        let or_none =
                            |version: &Option<Version>| version.as_ref().map_or("-".into(), ToString::to_string);
                        let before = or_none(&l.before) + if l.leaving { " (still loaded)" } else { "" };
                        let undone = if l.undone.is_empty() { "-".to_owned() } else { l.undone.clone() };
                        vec![l.name.to_string(), l.version.to_string(), or_none(&l.next), before, undone]
                    })
                    .collect(),
            ),
            What::Endpoints => (
                &["endpoint", "deadline", "class", "stages"],
                state
                    .endpoints
                    .values()
                    .map(|e| {
                        let stages = e.stages.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(" > ");
                        vec![e.name.to_string(), format!("{:?}", e.deadline), e.class.word().into(), stages]
                    })
                    .collect(),
            ),
            What::Nodes => (
                &["node", "address", "state", "slots", "memory"],
                state
                    .nodes
                    .values()
                    .map(|n| {
                        let seen = status
                            .nodes
                            .iter()
                            .find(|seen| seen.name == n.name.as_str())
                            .map_or("unknown", |seen| seen.state);
                        let slots: u32 = n.devices.iter().map(|device| device.slots).sum();
                        vec![
                            n.name.to_string(),
                            n.address.clone(),
                            seen.into(),
                            slots.to_string(),
                            n.memory.0.to_string(),
                        ]
                    })
                    .collect(),
            ),
            What::Placements => (
                &["replica", "model", "node", "device"],
                state
                    .plan
                    .assignments
                    .iter()
                    .map(|(id, a)| vec![id.to_string(), a.model.to_string(), a.node.to_string(), a.device.to_string()])
                    .collect(),
            ),
            What::Members => (
                &["coordinator", "address", "role", "id"],
                status
                    .members
                    .iter()
                    .map(|m| {
                        vec![
                            m.member.name.to_string(),
                            m.member.address.clone(),
                            m.role.into(),
                            m.member.id.to_string(),
                        ]
                    })
                    .collect(),
            ),
            What::Grants => (
                &["grant", "role", "expires"],
                state.grants.values().map(|g| vec![g.id.clone(), role(&g.role), expires(g.expires)]).collect(),
            ),
        };
        if let Some(name) = &self.name {
            rows.retain(|row| row[0] == *name || row[0].split('@').next() == Some(name));
            if rows.is_empty() {
                return Err(Failure::NotFound(format!(
                    "{name} not found; `weir get` without a name lists what there is"
                )));
            }
        }
        if common.json() {
            let objects = rows.iter().map(|row| {
                object(header.iter().zip(row).map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str()))))
            });
            println!("{}", json!(objects.collect::<Vec<_>>()));
        } else {
            println!("{}", table(header, rows));
        }
        Ok(())
    }
}

/// Where a replica of a model is in memory, or else how near one is to it.
fn residence(status: &Status, model: &ModelRef) -> Option<Residence> {
    let standing = status.state.plan.assignments.iter().filter(|(_, assignment)| assignment.model == *model);
    let reports = standing.filter_map(|(id, assignment)| {
        let node = status.nodes.iter().find(|node| node.name == assignment.node.as_str())?;
        node.report.as_ref()?.replicas.get(id)
    });
    let each = reports.map(|replica| match (&replica.paged, &replica.state) {
        (Some(paged), _) => paged.residence,
        (None, ReplicaState::Ready(_)) => Residence::Resident,
        (None, _) => Residence::Loading,
    });
    each.min_by_key(|residence| match residence {
        Residence::Resident => 0,
        Residence::Loading => 1,
        Residence::OnDemand => 2,
    })
}

/// How long a grant lasts yet.
fn expires(at: Option<u64>) -> String {
    let Some(at) = at else { return "-".into() };
    let left = at.saturating_sub(Host::system().clock.since_1970().as_secs());
    match left {
        0 => "now".into(),
        left if left < 7_200 => format!("in {} min", left / 60),
        left => format!("in {} h", left / 3600),
    }
}

fn role(role: &weir_core::replicated::Role) -> String {
    use weir_core::replicated::Role;
    match role {
        Role::Predict(endpoints) if endpoints.is_empty() => "predict".into(),
        Role::Predict(endpoints) => {
            format!("predict {}", endpoints.iter().map(|e| e.as_str()).collect::<Vec<_>>().join(","))
        }
        Role::Operator => "operator".into(),
        Role::Admin => "admin".into(),
        Role::Member => "member".into(),
    }
}
