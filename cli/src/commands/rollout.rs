//! `weir rollout`: an endpoint of one model goes on to another version, or back, and nobody notices.
//!
//! The new version is loaded beside the old ones first and gets queries when its replicas are ready; the old ones stay loaded, so that going
//! back takes no time either.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use weir_client::admin::Status;
use weir_client::{Admin, ClientError};
use weir_core::endpoint::{Endpoint, Split};
use weir_core::ids::{ModelRef, ReplicaId};
use weir_core::placement::ReplicaState;
use weir_core::replicated::{Assignment, Command};

use crate::connect::Common;
use crate::failure::Failure;
use crate::show::{objective, table, undone};

/// Moves an endpoint of one model to another version.
#[derive(Args)]
pub struct Rollout {
    /// An endpoint; or `status` or `undo`, and then an endpoint
    what: String,
    /// The endpoint, after `status` or `undo`
    endpoint: Option<String>,
    /// The version that gets the queries, or its label
    #[arg(long, env = "WEIR_TO")]
    to: Option<String>,
    /// How many of a hundred queries it gets; the others keep theirs in proportion
    #[arg(long, env = "WEIR_SHARE", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100))]
    share: u32,
    /// How long to wait for its replicas
    #[arg(long, env = "WEIR_TIMEOUT", default_value = "60s")]
    timeout: String,
}

impl Rollout {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let admin = common.admin()?;
        let told = match (self.what.as_str(), &self.endpoint, &self.to) {
            ("status", Some(name), None) => told(&admin.status().await?, name)?,
            ("undo", Some(name), None) => self.undo(&admin, name).await?,
            (name, None, Some(to)) => self.go(&admin, name, to).await?,
            _ => {
                return Err(Failure::Usage(
                    "write `weir rollout ENDPOINT --to MODEL@VERSION`, `weir rollout status ENDPOINT` or `weir rollout undo ENDPOINT`"
                        .into(),
                ));
            }
        };
        if common.json() {
            println!("{told}");
        } else {
            let row = |version: &Value| {
                let text = |key: &str| version[key].as_str().map_or_else(|| version[key].to_string(), str::to_owned);
                vec![text("model"), text("share"), text("ready"), text("before")]
            };
            let rows = told["versions"].as_array().into_iter().flatten().map(row).collect();
            println!("{}", table(&["version", "share", "ready", "share before"], rows));
            if let Some(because) = told["undone"].as_str() {
                println!("undone: {because}");
            }
        }
        Ok(())
    }

    async fn go(&self, admin: &Admin, name: &str, to: &str) -> Result<Value, Failure> {
        let to = ModelRef::parse(to).map_err(|bad| Failure::Usage(bad.to_string()))?;
        let to = admin.status().await?.state.stands_for(&to);
        let timeout = weir_client::weirfile::parse_duration(&self.timeout)
            .ok_or_else(|| Failure::Usage(format!("--timeout {:?}: write it as 60s", self.timeout)))?;
        let share = self.share;
        // Loaded before anybody asks it.
        change(admin, name, |endpoint| {
            let mut versions = current(endpoint)?;
            if versions.iter().all(|split| split.model != to) {
                versions.push(Split { model: to.clone(), share: 0 });
            }
            Ok(Endpoint { versions, ..endpoint.clone() })
        })
        .await?;
        ready(admin, &to, timeout).await?;
        change(admin, name, |endpoint| {
            let before = current(endpoint)?;
            let versions =
                before.iter().map(|split| Split { share: moved(&before, &to, share, split), ..split.clone() });
            Ok(Endpoint {
                versions: versions.collect(),
                before: without(&before, &to, endpoint),
                undone: String::new(),
                ..endpoint.clone()
            })
        })
        .await?;
        told(&admin.status().await?, name)
    }

    async fn undo(&self, admin: &Admin, name: &str) -> Result<Value, Failure> {
        change(admin, name, |endpoint| {
            if endpoint.before.is_empty() {
                return Err(Failure::No(format!("endpoint {} has nothing to go back to", endpoint.name)));
            }
            let named = Endpoint { versions: current(endpoint)?, ..endpoint.clone() };
            Ok(weir_core::rollout::undone(&named, "by hand".into()))
        })
        .await?;
        told(&admin.status().await?, name)
    }
}

/// What the rollout replaces: the shares before the new version was loaded; where it goes on by steps, those of the first.
fn without(current: &[Split], to: &ModelRef, endpoint: &Endpoint) -> Vec<Split> {
    let is_new = current.iter().any(|split| split.model == *to && split.share == 0);
    if is_new || endpoint.before.is_empty() { current.to_vec() } else { endpoint.before.clone() }
}

/// The share of a version when `to` gets `share` of a hundred.
fn moved(all: &[Split], to: &ModelRef, share: u32, split: &Split) -> u32 {
    if split.model == *to {
        return share;
    }
    let others: u64 = all.iter().filter(|split| split.model != *to).map(|split| u64::from(split.share)).sum();
    (u64::from(split.share) * u64::from(100 - share) / others.max(1)) as u32
}

/// What an endpoint's queries are split over now.
fn current(endpoint: &Endpoint) -> Result<Vec<Split>, Failure> {
    match (&endpoint.versions[..], &endpoint.stages[..]) {
        ([], [stage]) if stage.model().is_some() => {
            Ok(vec![Split { model: stage.model().expect("just seen").clone(), share: 100 }])
        }
        ([], _) => Err(Failure::Usage(format!(
            "endpoint {} is a graph of several stages; apply a file that names the new model in a stage",
            endpoint.name
        ))),
        (versions, _) => Ok(versions.to_vec()),
    }
}

/// Writes an endpoint as it is to be, unless something else was written meanwhile: then it is looked at again.
async fn change(
    admin: &Admin,
    name: &str,
    next: impl Fn(&Endpoint) -> Result<Endpoint, Failure>,
) -> Result<(), Failure> {
    for last in [false, false, false, true] {
        let state = admin.status().await?.state;
        let endpoint = find(&state.endpoints, name)?;
        if let Some(label) = endpoint.names().all().find_map(|name| state.labels.get(name)) {
            return Err(Failure::Usage(format!(
                "endpoint {name} follows the label {0}: move that with `weir label {1} {2} VERSION`, \
                 or apply a file that names versions",
                label.name, label.name.name, label.name.version
            )));
        }
        let command =
            Command::Apply { models: Vec::new(), endpoints: vec![next(endpoint)?], if_index: Some(state.applied) };
        match admin.write(command).await {
            Err(ClientError::Conflict(_)) if !last => {}
            done => return done.map(drop).map_err(Failure::from),
        }
    }
    unreachable!("the last try returns")
}

fn find<'a, K: Ord>(endpoints: &'a BTreeMap<K, Endpoint>, name: &str) -> Result<&'a Endpoint, Failure> {
    endpoints.values().find(|endpoint| endpoint.name.as_str() == name).ok_or_else(|| {
        Failure::NotFound(format!("endpoint {name} not found; `weir get endpoints` lists what there is"))
    })
}

/// Replicas of a model with what their nodes say of them.
fn replicas<'a>(status: &'a Status, model: &'a ModelRef) -> impl Iterator<Item = Option<&'a ReplicaState>> {
    let of_model = |(_, assignment): &(&ReplicaId, &Assignment)| assignment.model == *model;
    status.state.plan.assignments.iter().filter(of_model).map(|(id, assignment)| {
        let node = status.nodes.iter().find(|node| node.name == assignment.node.as_str())?;
        Some(&node.report.as_ref()?.replicas.get(id)?.state)
    })
}

fn ready_replicas(status: &Status, model: &ModelRef) -> u32 {
    replicas(status, model).filter(|state| matches!(state, Some(ReplicaState::Ready(_)))).count() as u32
}

async fn ready(admin: &Admin, model: &ModelRef, timeout: Duration) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    loop {
        let status = admin.status().await?;
        let wanted = status.state.models.get(model).map_or(1, |model| model.replicas.min);
        if ready_replicas(&status, model) >= wanted {
            // Every node hears of it with the answer to its next report.
            tokio::time::sleep(2 * weir_core::placement::REPORT_EVERY).await;
            return Ok(());
        }
        let failed = replicas(&status, model).flatten().find_map(|state| match state {
            ReplicaState::Failed(why) => Some(why),
            _ => None,
        });
        if let Some(why) = failed {
            return Err(Failure::No(format!("model {model} does not load, and got no query: {why}")));
        }
        if started.elapsed() > timeout {
            let why = status.unplaceable.iter().map(|(model, why)| format!("; {model} {why}")).collect::<String>();
            return Err(Failure::TimedOut(format!(
                "model {model} is not ready after {timeout:?}, and got no query{why}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn told(status: &Status, name: &str) -> Result<Value, Failure> {
    let endpoint = find(&status.state.endpoints, name)?;
    let version = |split: Split| {
        let before = endpoint.before.iter().find(|known| known.model == split.model).map(|known| known.share);
        json!({"model": split.model.to_string(), "share": split.share, "ready": ready_replicas(status, &split.model),
            "before": before})
    };
    let versions = current(endpoint)?.into_iter().map(version);
    Ok(json!({"endpoint": name, "objective": objective(endpoint), "undone": undone(endpoint),
        "versions": versions.collect::<Vec<_>>()}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_new_version_gets_the_others_give_in_proportion() {
        let model = |name: &str| ModelRef::parse(name).unwrap();
        let split = |name: &str, share| Split { model: model(name), share };
        let all = [split("m@1", 60), split("m@2", 20), split("m@3", 0)];
        let at = |share| all.each_ref().map(|split| moved(&all, &model("m@3"), share, split));
        assert_eq!((at(100), at(20), at(0)), ([0, 0, 100], [60, 20, 20], [75, 25, 0]));
    }
}
