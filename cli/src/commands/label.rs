//! `weir label`: where a label of a model's versions stands; and what answers should have been, so that accuracy and
//! gain tables can be judged.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use weir_client::Admin;
use weir_client::admin::Status;
use weir_core::endpoint::Label as ModelLabel;
use weir_core::ids::{ModelName, ModelRef, QueryId, Version};
use weir_core::placement::{REPORT_EVERY, ReplicaState};
use weir_core::replicated::Command;

use super::apply::show;
use crate::connect::Common;
use crate::failure::Failure;

/// Moves a label of a model's versions; or says what the answer to a query should have been.
#[derive(Args)]
pub struct Label {
    /// A model, and then a label of it and a version; or a query's id (32 hex digits, as `weir predict -o json` tells
    /// it), and then a class
    #[arg(value_name = "MODEL|QUERY", required_unless_present = "from", requires = "label")]
    what: Option<String>,
    /// A label, as stable or canary; or the right class, from 0 on
    #[arg(value_name = "LABEL|CLASS")]
    label: Option<String>,
    /// The version that the label is to stand for, or another label of the model
    version: Option<String>,
    /// Take the label away
    #[arg(long, env = "WEIR_DELETE", conflicts_with_all = ["version", "from"])]
    delete: bool,
    /// Do not wait until the version is ready and the label has moved
    #[arg(long, env = "WEIR_NO_WAIT")]
    no_wait: bool,
    /// How long to wait for that
    #[arg(long, env = "WEIR_TIMEOUT", default_value = "60s")]
    timeout: String,
    /// A file with a query id, a comma and a class on each line, for many at once
    #[arg(long, env = "WEIR_FROM", conflicts_with = "what")]
    from: Option<PathBuf>,
}

impl Label {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        match (&self.what, &self.label) {
            (Some(model), Some(label)) if self.delete || self.version.is_some() => {
                let usage = |bad: weir_core::ids::BadName| Failure::Usage(bad.to_string());
                let version = |text: &str| Version::parse(text).map_err(usage);
                let name = ModelRef { name: ModelName::parse(model).map_err(usage)?, version: version(label)? };
                let to = self.version.as_deref().map(version).transpose()?;
                self.point(name, to, &common).await
            }
            _ if self.delete => Err(Failure::Usage("write `weir label MODEL LABEL --delete`".into())),
            _ => self.judge(&common).await,
        }
    }

    async fn point(&self, name: ModelRef, version: Option<Version>, common: &Common) -> Result<(), Failure> {
        let timeout = weir_client::weirfile::parse_duration(&self.timeout)
            .ok_or_else(|| Failure::Usage(format!("--timeout {:?}: write it as 60s", self.timeout)))?;
        let admin = common.admin()?;
        let mut lines = admin.write(Command::Label { name: name.clone(), version }).await?.lines;
        if !self.no_wait && !self.delete {
            lines.extend(arrived(&admin, &name, timeout).await?);
        }
        show(&lines, common);
        Ok(())
    }

    async fn judge(&self, common: &Common) -> Result<(), Failure> {
        let labels = self.labels()?;
        let admin = common.admin()?;
        let nodes = admin.status().await?.state.nodes;
        let mut known = 0;
        for (id, label) in &labels {
            known += usize::from(tell(&admin, nodes.values().map(|node| node.address.as_str()), *id, *label).await?);
        }
        if known == 0 {
            return Err(Failure::NotFound(
                "no node remembers a query of these; label answers soon after they were given".into(),
            ));
        }
        if common.json() {
            println!("{}", json!({"labels": labels.len(), "known": known}));
        } else {
            println!("{known} of {} queries labelled", labels.len());
        }
        Ok(())
    }

    fn labels(&self) -> Result<Vec<(QueryId, u32)>, Failure> {
        let parse = |id: &str| {
            QueryId::parse(id).ok_or_else(|| {
                Failure::Usage(format!(
                    "{id:?} is no query id: that is 32 hex digits, as `weir predict -o json` prints them"
                ))
            })
        };
        let Some(from) = &self.from else {
            let (query, label) = self.what.as_deref().zip(self.label.as_deref()).expect("clap requires them");
            let class = label.parse().map_err(|_| {
                Failure::Usage(format!(
                    "{label:?} is no class; a label of a model is moved with `weir label {query} {label} VERSION`"
                ))
            })?;
            return Ok(vec![(parse(query)?, class)]);
        };
        let text = std::fs::read_to_string(from)
            .map_err(|cause| Failure::Usage(format!("cannot read {}: {cause}", from.display())))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let label = |(number, line): (usize, &str)| {
            let wrong = || {
                let place = format!("{}:{}", from.display(), number + 1);
                Failure::Usage(format!("{place}: write a query id, a comma and a class, not {line:?}"))
            };
            let (id, label) = line.split_once(',').ok_or_else(wrong)?;
            Ok((parse(id.trim())?, label.trim().parse().map_err(|_| wrong())?))
        };
        lines.map(label).collect()
    }
}

/// Waits until a label does not go anywhere any more; says where it went, or why it does not.
async fn arrived(admin: &Admin, name: &ModelRef, timeout: Duration) -> Result<Option<String>, Failure> {
    let started = Instant::now();
    let mut waited = false;
    loop {
        let status = admin.status().await?;
        let label = status.state.labels.get(name).ok_or_else(|| {
            Failure::NotFound(format!("somebody deleted label {name} meanwhile; `weir get labels` lists what there is"))
        })?;
        let Some(next) = &label.next else {
            if waited {
                // The leader has moved it; nodes follow the log within moments.
                tokio::time::sleep(REPORT_EVERY).await;
            }
            return Ok(waited.then(|| format!("label {name} stands for version {}", label.version)));
        };
        waited = true;
        let back = format!(
            "the label stays at version {0} until then; `weir label {1} {2} {0}` calls it off",
            label.version, name.name, name.version
        );
        let next = label.of(next);
        if let Some(why) = does_not_load(&status, &next) {
            return Err(Failure::No(format!("model {next} does not load, and is tried again: {why}; {back}")));
        }
        if started.elapsed() > timeout {
            return Err(Failure::TimedOut(format!(
                "model {next} is not ready after {timeout:?}{}; {back}",
                hindered(&status, label)
            )));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a node says of a replica of a model that it could not load.
fn does_not_load(status: &Status, model: &ModelRef) -> Option<String> {
    let reports = status.nodes.iter().filter_map(|node| Some((&node.name, node.report.as_ref()?)));
    let failed =
        reports.flat_map(|(node, report)| report.replicas.iter().map(move |(id, replica)| (node, id, replica)));
    failed.into_iter().find_map(|(node, id, replica)| match &replica.state {
        ReplicaState::Failed(why) if status.state.plan.assignments.get(id)?.model == *model => {
            Some(format!("{node} says: {why}"))
        }
        _ => None,
    })
}

/// Why a version that a label goes to has no place.
fn hindered(status: &Status, label: &ModelLabel) -> String {
    let next = label.next.as_ref().map(|next| label.of(next).to_string());
    let of_next = status.unplaceable.iter().filter(|(model, _)| Some(model) == next.as_ref());
    of_next.map(|(_, why)| format!(": {why}")).collect()
}

/// Tells every node until one knows the query.
async fn tell(admin: &Admin, nodes: impl Iterator<Item = &str>, id: QueryId, label: u32) -> Result<bool, Failure> {
    let mut unreachable = None;
    for address in nodes {
        match admin.label(address, id, label).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) => unreachable = Some(error),
        }
    }
    // Whoever does not answer may have been its home.
    unreachable.map_or(Ok(false), |error| Err(error.into()))
}
