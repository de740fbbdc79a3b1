//! `weir profile`: latency by batch size on this machine, of a file or of a model that the cluster serves; or what a call
//! costs on its way.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use weir_client::Request;
use weir_core::ids::{EndpointName, ModelRef};
use weir_core::outcome::Outcome;
use weir_core::placement::ReplicaState;
use weir_core::replicated::EngineKind;
use weir_core::shapes::Shapes;
use weir_core::units::ServiceTime;
use weir_loadgen::data::Data;
use weir_ml_workers::engine::engine;
use weir_ml_workers::probe::{Batching, probe};

use crate::connect::Common;
use crate::failure::Failure;
use crate::show::table;

/// Latency by batch size of a model.
#[derive(Args)]
pub struct Profile {
    /// A model file, measured here; or name@version, as the cluster's nodes measured it
    #[arg(required_unless_present = "path")]
    model: Option<String>,
    /// Measure instead what a call of this endpoint takes apart from queues and batches: `weir simulate --path-us` takes it
    #[arg(long, env = "WEIR_PATH", value_name = "ENDPOINT", conflicts_with = "model", requires = "data")]
    path: Option<String>,
    /// What is asked then, one row at a time
    #[arg(long, env = "WEIR_DATA", value_name = "FILE")]
    data: Option<PathBuf>,
    /// Also draw it into this file, as a page that stands alone
    #[arg(long, env = "WEIR_REPORT", value_name = "FILE.html", conflicts_with = "path")]
    report: Option<PathBuf>,
}

/// What is known of a model.
struct Known {
    batching: String,
    /// What a scheduler plans by.
    points: Vec<(u32, ServiceTime)>,
    /// What that began with; empty where it is not known any more.
    measured: Vec<(u32, ServiceTime)>,
}

/// Calls that measure the path: enough for a median, over in a moment.
const PATH_CALLS: usize = 500;

/// Below this share more rows a second, batching is not worth a word: measurements differ as much.
const LEAST_GAIN: f64 = 1.05;

/// For a measurement that somebody waits for on purpose.
const BUDGET: Duration = Duration::from_secs(5);

impl Profile {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        if let (Some(endpoint), Some(data)) = (&self.path, &self.data) {
            return path(endpoint, data, &common).await;
        }
        let model = self.model.as_deref().unwrap_or_default();
        let known = if Path::new(model).is_file() { measure(model)? } else { ask(model, &common).await? };
        let says = said(model, &known);
        if let Some(path) = &self.report {
            let page = weir_loadgen::report::profile(model, &says, &known.measured, &known.points);
            std::fs::write(path, page)
                .map_err(|cause| Failure::No(format!("cannot write {}: {cause}", path.display())))?;
        }
        let Known { batching, points, .. } = known;
        if common.json() {
            let points = points.iter().map(|(batch, time)| json!({"batch": batch, "us": time.as_nanos() as f64 / 1e3}));
            println!("{}", json!({"model": model, "batching": batching, "points": points.collect::<Vec<_>>()}));
        } else {
            println!("{says}");
        }
        Ok(())
    }
}

/// The profile in words, as a table, and what batching gains.
fn said(model: &str, Known { batching, points, .. }: &Known) -> String {
    let one = points.first().map_or(0.0, |first| per_row(*first));
    let rows = points.iter().map(|(batch, time)| {
        let per_row = per_row((*batch, *time));
        vec![
            batch.to_string(),
            format!("{:.0}", time.as_nanos() as f64 / 1e3),
            format!("{:.1}", per_row / 1e3),
            format!("{:.2}x", one / per_row),
        ]
    });
    let table = table(&["batch", "us", "us a row", "gain"], rows.collect());
    format!("{model} is run {batching}\n{}\n{}", table.trim_end(), gain(points))
}

/// Nanoseconds that a row takes in a batch.
fn per_row((batch, time): (u32, ServiceTime)) -> f64 {
    time.as_nanos().max(1) as f64 / f64::from(batch)
}

/// What batching gains, in a sentence.
fn gain(points: &[(u32, ServiceTime)]) -> String {
    let best = points.iter().min_by(|a, b| per_row(**a).total_cmp(&per_row(**b)));
    match (points.first(), best) {
        (Some(one), _) if one.0 != 1 => format!("fewer rows than {} take as long as {}", one.0, one.0),
        (Some(one), Some(best)) if per_row(*one) > LEAST_GAIN * per_row(*best) => {
            let times = per_row(*one) / per_row(*best);
            format!("a batch of {} serves {times:.1} times as many rows a second as single rows", best.0)
        }
        _ => "batches serve no more rows a second than single rows".into(),
    }
}

fn measure(model: &str) -> Result<Known, Failure> {
    let path = PathBuf::from(model);
    let kind = match path.extension().and_then(|e| e.to_str()) {
        Some("synthetic") => EngineKind::Synthetic,
        Some("kernel") => EngineKind::Kernel,
        _ => EngineKind::Onnx,
    };
    let bytes =
        std::fs::read(&path).map_err(|cause| Failure::Usage(format!("cannot read {}: {cause}", path.display())))?;
    let loaded = engine(kind).and_then(|engine| engine.load(&bytes));
    let mut session = loaded.map_err(|error| Failure::Usage(error.to_string()))?;
    let probed = probe(&mut *session, None, &Shapes::default(), BUDGET, &[]);
    let batching = match probed.batching {
        Batching::Rows => format!("in batches of up to {} rows", probed.max_batch),
        Batching::Fixed { size } => format!("in batches of exactly {size} rows"),
        Batching::Unbatched { because } => format!("one query at a time: {because}"),
    };
    Ok(Known { batching, measured: probed.points.clone(), points: probed.points })
}

async fn ask(model: &str, common: &Common) -> Result<Known, Failure> {
    let reference = ModelRef::parse(model).map_err(|_| {
        Failure::Usage(format!("{}: there is no such file, and a model of the cluster is written name@version", model))
    })?;
    let status = common.admin()?.status().await?;
    let reference = status.state.stands_for(&reference);
    let ready = status.state.plan.assignments.iter().filter(|(_, assignment)| assignment.model == reference).find_map(
        |(id, assignment)| {
            let report = status.nodes.iter().find(|node| node.name == assignment.node.as_str())?.report.as_ref()?;
            match &report.replicas.get(id)?.state {
                ReplicaState::Ready(profile) => Some((assignment, profile.clone())),
                _ => None,
            }
        },
    );
    let (assignment, profile) =
        ready.ok_or_else(|| Failure::NotFound(format!("no replica of {reference} is ready; see `weir status`")))?;
    let batching = match profile.unbatched.as_str() {
        "" => format!("in batches of up to {} rows", profile.max_batch),
        because => format!("one query at a time: {because}"),
    };
    let state = &status.state;
    let device = state.nodes.get(&assignment.node).and_then(|node| {
        let mut devices = node.devices.iter();
        devices.find(|device| device.name == assignment.device)
    });
    let digest = state.models.get(&reference).map(|model| model.digest);
    let kept = digest.zip(device).and_then(|(digest, device)| state.profile(digest, &device.hardware));
    let measured = kept.map(|kept| kept.points.clone()).unwrap_or_default();
    Ok(Known { batching, points: profile.points, measured })
}

/// The time of a call of one row with nothing else under way, less its queues and batches.
async fn path(endpoint: &str, data: &Path, common: &Common) -> Result<(), Failure> {
    let usage = |text: String| Failure::Usage(text);
    let name = EndpointName::parse(endpoint).map_err(|bad| usage(bad.to_string()))?;
    let client = common.client().await?;
    let info = client.describe(&name).await.map_err(|error| Failure::NotFound(error.to_string()))?;
    let data = Data::read(data).and_then(|data| data.fit(&info.inputs)).map_err(|bad| usage(bad.to_string()))?;
    let mut spans = Vec::with_capacity(PATH_CALLS);
    for i in 0..PATH_CALLS {
        let inputs = data.take(&[(i % data.rows()) as u32]);
        let request = Request {
            endpoint: name.clone(),
            inputs,
            whole: data.whole(),
            deadline: Some(Duration::from_secs(5)),
            class: None,
            outputs: Vec::new(),
            min_stage: None,
            max_stage: None,
            trace: false,
        };
        let started = std::time::Instant::now();
        let answers = client.predict(&request).await;
        let took = started.elapsed();
        let answer = answers.first().filter(|answer| answer.outcome == Outcome::Answered);
        let answer = answer
            .ok_or_else(|| Failure::No(answers.first().map_or_else(String::new, |answer| answer.message.clone())))?;
        spans.push(took.saturating_sub(answer.timings.queue + answer.timings.execute));
    }
    spans.sort_unstable();
    let at = |q: f64| spans[((spans.len() - 1) as f64 * q).round() as usize].as_nanos() as f64 / 1e3;
    if common.json() {
        println!("{}", json!({"endpoint": endpoint, "path_us": {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99)}}));
    } else {
        println!(
            "a call of {endpoint} takes {:.0} us apart from queues and batches (p90 {:.0}, p99 {:.0})",
            at(0.5),
            at(0.9),
            at(0.99)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_batching_gains_is_said_in_a_sentence() {
        let us = ServiceTime::from_micros;
        assert_eq!(
            gain(&[(1, us(100)), (8, us(160)), (32, us(432)), (64, us(900))]),
            "a batch of 32 serves 7.4 times as many rows a second as single rows"
        );
        assert_eq!(gain(&[(1, us(100)), (2, us(195))]), "batches serve no more rows a second than single rows");
        assert_eq!(gain(&[(1, us(100))]), "batches serve no more rows a second than single rows");
        assert_eq!(gain(&[(4, us(100))]), "fewer rows than 4 take as long as 4");
        let known = Known { batching: "in batches".into(), points: vec![(1, us(100)), (4, us(200))], measured: vec![] };
        assert!(said("m@1", &known).ends_with("\na batch of 4 serves 2.0 times as many rows a second as single rows"));
    }
}
