//! `weir profile`: latency by batch size on this machine, of a file or of a model that the cluster serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use weir_core::ids::ModelRef;
use weir_core::placement::ReplicaState;
use weir_core::replicated::EngineKind;
use weir_core::units::ServiceTime;
use weir_ml_workers::engine::engine;
use weir_ml_workers::probe::{Batching, probe};

use crate::connect::Common;
use crate::failure::Failure;
use crate::show::table;

/// Latency by batch size of a model.
#[derive(Args)]
pub struct Profile {
    /// A model file, measured here; or name@version, as the cluster's nodes measured it
    model: String,
}

/// For a measurement that somebody waits for on purpose.
const BUDGET: Duration = Duration::from_secs(5);

impl Profile {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let (batching, points) =
            if Path::new(&self.model).is_file() { self.measure()? } else { self.ask(&common).await? };
        let one = points.first().map_or(0.0, |(batch, time)| time.as_nanos() as f64 / f64::from(*batch));
        if common.json() {
            let points = points.iter().map(|(batch, time)| json!({"batch": batch, "us": time.as_nanos() as f64 / 1e3}));
            println!("{}", json!({"model": self.model, "batching": batching, "points": points.collect::<Vec<_>>()}));
        } else {
            println!("{} is run {batching}", self.model);
            let rows = points.iter().map(|(batch, time)| {
                let per_row = time.as_nanos() as f64 / f64::from(*batch);
                vec![
                    batch.to_string(),
                    format!("{:.0}", time.as_nanos() as f64 / 1e3),
                    format!("{:.1}", per_row / 1e3),
                    format!("{:.2}x", one / per_row),
                ]
            });
            println!("{}", table(&["batch", "us", "us a row", "gain"], rows.collect()));
        }
        Ok(())
    }

    fn measure(&self) -> Result<(String, Vec<(u32, ServiceTime)>), Failure> {
        let path = PathBuf::from(&self.model);
        let kind = match path.extension().and_then(|e| e.to_str()) {
            Some("synthetic") => EngineKind::Synthetic,
            Some("kernel") => EngineKind::Kernel,
            _ => EngineKind::Onnx,
        };
        let bytes =
            std::fs::read(&path).map_err(|cause| Failure::Usage(format!("cannot read {}: {cause}", path.display())))?;
        let loaded = engine(kind).and_then(|engine| engine.load(&bytes));
        let mut session = loaded.map_err(|error| Failure::Usage(error.to_string()))?;
        let probed = probe(&mut *session, None, BUDGET);
        let batching = match probed.batching {
            Batching::Rows => format!("in batches of up to {} rows", probed.max_batch),
            Batching::Fixed { size } => format!("in batches of exactly {size} rows"),
            Batching::Unbatched { because } => format!("one query at a time: {because}"),
        };
        Ok((batching, probed.points))
    }

    async fn ask(&self, common: &Common) -> Result<(String, Vec<(u32, ServiceTime)>), Failure> {
        let reference = ModelRef::parse(&self.model).map_err(|_| {
            Failure::Usage(format!(
                "{}: there is no such file, and a model of the cluster is written name@version",
                self.model
            ))
        })?;
        let status = common.admin()?.status().await?;
        let ready =
            status.state.plan.assignments.iter().filter(|(_, assignment)| assignment.model == reference).find_map(
                |(id, assignment)| {
                    let report =
                        status.nodes.iter().find(|node| node.name == assignment.node.as_str())?.report.as_ref()?;
                    match &report.replicas.get(id)?.state {
                        ReplicaState::Ready(profile) => Some(profile.clone()),
                        _ => None,
                    }
                },
            );
        let profile =
            ready.ok_or_else(|| Failure::NotFound(format!("no replica of {reference} is ready; see `weir status`")))?;
        let batching = match profile.unbatched.as_str() {
            "" => format!("in batches of up to {} rows", profile.max_batch),
            because => format!("one query at a time: {because}"),
        };
        Ok((batching, profile.points))
    }
}
