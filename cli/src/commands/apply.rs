//! `weir apply`: makes the cluster serve what a file describes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use sha2::{Digest as _, Sha256};
use weir_client::{Admin, weirfile};
use weir_core::endpoint::Endpoint;
use weir_core::ids::{Digest, LogIndex, ModelRef, Version};
use weir_core::placement::{EndpointState, REPORT_EVERY, ReplicaState};
use weir_core::replicated::{Command, Entry, Model, State};
use weir_core::units::Bytes;
use weir_ml_workers::engine::inspect;

use super::status::{beliefs, endpoint_state};
use crate::connect::Common;
use crate::failure::Failure;

/// Makes the cluster serve what a file describes.
#[derive(Args)]
pub struct Apply {
    /// The weir file
    #[arg(short, long, env = "WEIR_FILE")]
    file: PathBuf,
    /// Only show what would change
    #[arg(long, env = "WEIR_DRY_RUN")]
    dry_run: bool,
    /// Do not wait until it serves
    #[arg(long, env = "WEIR_NO_WAIT")]
    no_wait: bool,
    /// Only if nothing else changed since this index
    #[arg(long, env = "WEIR_IF_REVISION")]
    if_revision: Option<u64>,
    /// How long to wait until it serves
    #[arg(long, env = "WEIR_TIMEOUT", default_value = "60s")]
    timeout: String,
}

/// A file, with its artifacts read and looked into.
pub struct Declared {
    pub models: Vec<Model>,
    pub endpoints: Vec<Endpoint>,
    pub artifacts: BTreeMap<Digest, Vec<u8>>,
}

/// Reads a weir file and its artifacts, and loads each once to see what it takes and gives.
pub fn read(file: &Path) -> Result<Declared, Failure> {
    let parsed = weirfile::read(file).map_err(|bad| Failure::Usage(bad.to_string()))?;
    let mut models = Vec::new();
    let mut artifacts = BTreeMap::new();
    for declared in &parsed.models {
        let bytes = std::fs::read(&declared.path).map_err(|cause| {
            Failure::Usage(format!("model {}: cannot read {}: {cause}", declared.name, declared.path.display()))
        })?;
        let digest = Digest(Sha256::digest(&bytes).into());
        let signature = inspect(declared.engine, &bytes)
            .map_err(|error| Failure::Usage(format!("model {}: {error}", declared.name)))?;
        let version = match &declared.version {
            Some(version) => version.clone(),
            None => Version::parse(&digest.to_string()[..12]).expect("hex digits are a version"),
        };
        declared.shapes.check(&signature).map_err(|bad| {
            let at = declared.shapes_at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default();
            Failure::Usage(format!("{at}model {}: {bad}", declared.name))
        })?;
        models.push(Model {
            reference: ModelRef { name: declared.name.clone(), version },
            digest,
            size: Bytes(bytes.len() as u64),
            engine: declared.engine,
            signature,
            max_batch: declared.max_batch,
            shapes: declared.shapes.clone(),
            replicas: declared.replicas,
            quarantined: None,
        });
        artifacts.insert(digest, bytes);
    }
    let references: Vec<ModelRef> = models.iter().map(|model| model.reference.clone()).collect();
    let endpoints = parsed.endpoints.iter().map(|endpoint| endpoint.resolve(&references)).collect::<Result<_, _>>();
    let mut endpoints: Vec<Endpoint> = endpoints.map_err(|bad| Failure::Usage(bad.to_string()))?;
    // A label stands for one of the versions, which take and give the same.
    let signature = |wanted: &ModelRef| {
        let same = |model: &&Model| model.reference == *wanted;
        let of_name = || models.iter().find(|model| model.reference.name == wanted.name);
        models.iter().find(same).or_else(of_name).map(|model| &model.signature)
    };
    endpoints.iter_mut().for_each(|endpoint| endpoint.type_defaults(signature));
    Ok(Declared { models, endpoints, artifacts })
}

impl Apply {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let timeout = weirfile::parse_duration(&self.timeout)
            .ok_or_else(|| Failure::Usage("--timeout: write it as 60s".into()))?;
        let declared = read(&self.file)?;
        let admin = common.admin()?;
        if self.dry_run {
            let state = admin.status().await?.state;
            show(&would(state, &declared, self.if_revision)?, &common);
            return Ok(());
        }
        let lines = apply(&admin, &declared, self.if_revision).await?;
        show(&lines, &common);
        if self.no_wait {
            return Ok(());
        }
        wait_serving(&admin, &declared, timeout).await
    }
}

/// Shows what applying a file would change.
#[derive(Args)]
pub struct Diff {
    /// The weir file
    #[arg(short, long, env = "WEIR_FILE")]
    file: PathBuf,
}

impl Diff {
    /// The answer is no, exit code 1, where anything differs.
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let declared = read(&self.file)?;
        let state = common.admin()?.status().await?.state;
        let index = state.applied;
        let mut lines = would(state, &declared, None)?;
        lines.retain(|line| !line.ends_with(" unchanged"));
        let differs = !lines.is_empty();
        if !differs && !common.json() {
            lines.push(format!("the cluster is as {} says, at index {index}", self.file.display()));
        }
        show(&lines, &common);
        if differs { Err(Failure::No(String::new())) } else { Ok(()) }
    }
}

/// Prints what a write changed.
pub fn show(lines: &[String], common: &Common) {
    if common.json() {
        println!("{}", serde_json::json!({"changes": lines}));
    } else {
        lines.iter().for_each(|line| println!("{line}"));
    }
}

/// What applying would do to this state, by doing it to a copy.
fn would(mut state: State, declared: &Declared, if_revision: Option<u64>) -> Result<Vec<String>, Failure> {
    let index = LogIndex(state.applied.0 + 1);
    let command = command(declared, &state, if_revision);
    let entry = Entry { request: weir_core::ids::RequestId(0), by: String::new(), command };
    let (applied, _) = state.apply(index, &entry);
    applied.map(|done| done.lines).map_err(|refusal| Failure::Usage(refusal.to_string()))
}

/// What the file says; models that only the cluster knows say of what types default outputs are.
fn command(declared: &Declared, state: &State, if_revision: Option<u64>) -> Command {
    let mut endpoints = declared.endpoints.clone();
    let signature = |wanted: &ModelRef| Some(&state.models.get(&state.stands_for(wanted))?.signature);
    let is_declared = |wanted: &ModelRef| declared.models.iter().any(|model| model.reference.name == wanted.name);
    for endpoint in &mut endpoints {
        endpoint.type_defaults(|wanted| signature(wanted).filter(|_| !is_declared(wanted)));
    }
    Command::Apply { models: declared.models.clone(), endpoints, if_index: if_revision.map(LogIndex) }
}

/// Uploads what is new and writes the rest.
pub async fn apply(admin: &Admin, declared: &Declared, if_revision: Option<u64>) -> Result<Vec<String>, Failure> {
    for model in &declared.models {
        let bytes = &declared.artifacts[&model.digest];
        let bar = indicatif::ProgressBar::new(bytes.len() as u64);
        bar.set_style(
            indicatif::ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes}").expect("a valid template"),
        );
        bar.set_message(model.reference.to_string());
        admin.upload(bytes, |sent| bar.set_position(sent)).await?;
        bar.finish_and_clear();
    }
    let has_default = declared.endpoints.iter().any(|endpoint| !endpoint.default_outputs.is_empty());
    let state = if has_default { admin.status().await?.state } else { State::default() };
    Ok(admin.write(command(declared, &state, if_revision)).await?.lines)
}

/// Waits until every endpoint of the file serves; says what it waits for, and why it cannot.
pub async fn wait_serving(admin: &Admin, declared: &Declared, timeout: Duration) -> Result<(), Failure> {
    let started = Instant::now();
    let mut told = false;
    loop {
        let status = admin.status().await?;
        let liveness = beliefs(&status);
        // As they are served: files may name labels.
        let waiting: Vec<&Endpoint> = declared
            .endpoints
            .iter()
            .filter_map(|endpoint| status.state.endpoints.get(&endpoint.name))
            .filter(|endpoint| endpoint_state(&liveness, &status.state, endpoint).0 != EndpointState::Serving)
            .collect();
        if waiting.is_empty() {
            // The leader knows; every node hears of it with the answer to its next report.
            tokio::time::sleep(2 * REPORT_EVERY).await;
            return Ok(());
        }
        let models = || waiting.iter().flat_map(|endpoint| endpoint.models());
        for node in &status.nodes {
            for (id, replica) in node.report.iter().flat_map(|report| &report.replicas) {
                let Some(assignment) = status.state.plan.assignments.get(id) else { continue };
                if let ReplicaState::Failed(why) = &replica.state
                    && models().any(|model| *model == assignment.model)
                {
                    return Err(Failure::No(format!(
                        "model {} does not load on {}: {why}",
                        assignment.model, node.name
                    )));
                }
            }
        }
        let names = waiting.iter().map(|endpoint| endpoint.name.as_str()).collect::<Vec<_>>().join(", ");
        if started.elapsed() > timeout {
            let why = status.unplaceable.iter().map(|(model, why)| format!("; {model} {why}")).collect::<String>();
            return Err(Failure::TimedOut(format!("{names} does not serve after {timeout:?}{why}; see `weir status`")));
        }
        if !told && started.elapsed() > Duration::from_secs(2) {
            told = true;
            eprintln!("waiting for {names} to serve (loading and measuring models)");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
