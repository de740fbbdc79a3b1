//! `weir predict`: asks an endpoint.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use weir_client::weirfile::parse_duration;
use weir_client::{Answer, Request};
use weir_core::endpoint::gate::label;
use weir_core::ids::{EndpointName, StageName};
use weir_core::outcome::{Class, Outcome};
use weir_core::tensor::Tensor;
use weir_loadgen::npy;

use weir_gateway::story;

use super::why;
use crate::connect::Common;
use crate::failure::Failure;
use crate::show::{object, table, tensor};

/// Asks an endpoint.
#[derive(Args)]
pub struct Predict {
    /// What to ask
    endpoint: String,
    /// An array as FILE.npy, or NAME=FILE.npy where there are several inputs
    #[arg(long, env = "WEIR_INPUT", required = true)]
    input: Vec<String>,
    /// Only these rows, as 0:4
    #[arg(long, env = "WEIR_ROWS")]
    rows: Option<String>,
    /// The arrays as they are are one query (otherwise each row of the first dimension is)
    #[arg(long, env = "WEIR_WHOLE", conflicts_with = "rows")]
    whole: bool,
    /// From now, as 20ms
    #[arg(long, env = "WEIR_DEADLINE")]
    deadline: Option<String>,
    /// critical, default or sheddable
    #[arg(long, env = "WEIR_CLASS")]
    class: Option<String>,
    /// No shallower stage of a cascade may answer: then rather none does
    #[arg(long, env = "WEIR_MIN_STAGE")]
    min_stage: Option<String>,
    /// Ask no deeper stage of a cascade
    #[arg(long, env = "WEIR_MAX_STAGE")]
    max_stage: Option<String>,
    /// Tell how each answer came about, as `weir why` does
    #[arg(long, env = "WEIR_TRACE")]
    trace: bool,
    /// Also write each output as .npy into this folder
    #[arg(long, env = "WEIR_SAVE")]
    save: Option<PathBuf>,
}

impl Predict {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let usage = |text: String| Failure::Usage(text);
        let endpoint = EndpointName::parse(&self.endpoint).map_err(|bad| usage(bad.to_string()))?;
        let deadline = match &self.deadline {
            None => None,
            Some(text) => Some(
                parse_duration(text)
                    .filter(|d| !d.is_zero())
                    .ok_or_else(|| usage(format!("--deadline {text}: write it as 20ms or 1.5s")))?,
            ),
        };
        let class = match &self.class {
            None => None,
            Some(word) => Some(
                Class::parse(word)
                    .ok_or_else(|| usage(format!("--class {word}: there are critical, default and sheddable")))?,
            ),
        };
        let mut inputs = Vec::new();
        for given in &self.input {
            let (name, path) = match given.split_once('=') {
                Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
                None => (String::new(), PathBuf::from(given)),
            };
            let array = npy::read(&path).map_err(|error| usage(error.to_string()))?;
            inputs.push((name, self.cut(array)?));
        }
        let first_row = self.range()?.map_or(0, |(from, _)| from);
        let client = common.client().await?;
        let stage = |flag: &str, name: &Option<String>| match name {
            None => Ok(None),
            Some(name) => StageName::parse(name).map(Some).map_err(|bad| usage(format!("{flag}: {bad}"))),
        };
        let request = Request {
            endpoint,
            inputs,
            whole: self.whole,
            deadline,
            class,
            outputs: Vec::new(),
            min_stage: stage("--min-stage", &self.min_stage)?,
            max_stage: stage("--max-stage", &self.max_stage)?,
            trace: self.trace,
        };
        let answers = client.predict(&request).await;
        for (i, answer) in answers.iter().enumerate() {
            if common.json() {
                println!("{}", as_json(first_row + i, answer));
            }
            if let Some(folder) = &self.save {
                save(folder, first_row + i, answer)?;
            }
        }
        if !common.json() {
            println!("{}", as_table(first_row, &answers));
            for (i, answer) in answers.iter().enumerate() {
                if let Some(trace) = &answer.trace {
                    println!("\nrow {}, query {}\n{}", first_row + i, answer.id, why::story(trace).join("\n"));
                }
            }
        }
        verdict(&answers)
    }

    fn range(&self) -> Result<Option<(usize, usize)>, Failure> {
        let Some(text) = &self.rows else { return Ok(None) };
        let parsed = text.split_once(':').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        match parsed {
            Some((from, to)) if from < to => Ok(Some((from, to))),
            _ => Err(Failure::Usage(format!("--rows {text}: write it as 0:4"))),
        }
    }

    fn cut(&self, array: Tensor) -> Result<Tensor, Failure> {
        let Some((from, to)) = self.range()? else { return Ok(array) };
        let rows = array.rows().unwrap_or_default();
        if to > rows.len() {
            return Err(Failure::Usage(format!("--rows {from}:{to}: there are {} rows", rows.len())));
        }
        let mut shape = array.shape.clone();
        shape[0] = (to - from) as u64;
        let data = array.data[rows[from].start..rows[to - 1].end].to_vec();
        Ok(Tensor { dtype: array.dtype, shape, data })
    }
}

/// The exit code of several rows: that of the worst.
fn verdict(answers: &[Answer]) -> Result<(), Failure> {
    let first =
        |wanted: fn(&Answer) -> bool| answers.iter().find(|answer| wanted(answer)).map(|answer| answer.message.clone());
    if let Some(message) = first(|a| matches!(a.outcome, Outcome::Failed | Outcome::Unknown)) {
        return Err(Failure::No(message));
    }
    use weir_core::outcome::Rejection;
    if let Some(message) = first(|a| a.outcome == Outcome::Rejected(Rejection::UnknownEndpoint)) {
        return Err(Failure::NotFound(message));
    }
    if let Some(message) = first(|a| a.outcome == Outcome::Rejected(Rejection::BadInput)) {
        return Err(Failure::Usage(message));
    }
    if let Some(message) = first(|a| a.outcome == Outcome::Rejected(Rejection::Forbidden)) {
        return Err(Failure::Forbidden(message));
    }
    match first(|a| a.outcome != Outcome::Answered) {
        Some(message) => Err(Failure::Rejected(message)),
        None => Ok(()),
    }
}

fn micros(span: Duration) -> u64 {
    span.as_micros() as u64
}

fn as_json(row: usize, answer: &Answer) -> Value {
    let outputs = object(answer.outputs.iter().map(|(name, output)| (name.clone(), tensor(output))));
    let mut told = json!({
        "row": row, "id": answer.id.to_string(), "outcome": answer.outcome.word(), "outputs": outputs,
        "model": answer.model, "stage": answer.stage, "degraded": answer.degraded, "price": answer.price, "expected_loss": answer.expected_loss,
        "expected_right": answer.expected_right,
        "node": answer.node,
        "timings_us": {"total": micros(answer.timings.total), "queue": micros(answer.timings.queue), "execute": micros(answer.timings.execute)},
    });
    if !answer.message.is_empty() {
        told["message"] = json!(answer.message);
    }
    if let Some(trace) = &answer.trace {
        told["trace"] = story::as_json(trace);
    }
    told
}

fn as_table(first_row: usize, answers: &[Answer]) -> String {
    let rows = answers.iter().enumerate().map(|(i, answer)| {
        let outputs = answer.outputs.iter().map(|(name, output)| summary(name, output)).collect::<Vec<_>>().join("  ");
        let what = if answer.outcome == Outcome::Answered { outputs } else { answer.message.clone() };
        let stage = if answer.degraded { format!("{} (degraded)", answer.stage) } else { answer.stage.clone() };
        vec![
            (first_row + i).to_string(),
            answer.outcome.word().into(),
            stage,
            answer.node.clone(),
            format!("{} us", micros(answer.timings.total)),
            what,
        ]
    });
    table(&["row", "outcome", "stage", "node", "time", "answer"], rows.collect())
}

/// Probabilities by their largest, others by their type and shape.
fn summary(name: &str, output: &Tensor) -> String {
    let numbers = output.as_f32().filter(|numbers| numbers.len() <= 10_000);
    match numbers.as_deref().and_then(label) {
        Some((label, value)) => format!("{name}: {label} ({value:.3})"),
        None => format!("{name}: {}{:?}", output.dtype, output.shape),
    }
}

fn save(folder: &std::path::Path, row: usize, answer: &Answer) -> Result<(), Failure> {
    let wrong = |path: &std::path::Path, cause: std::io::Error| {
        Failure::No(format!("cannot write {}: {cause}", path.display()))
    };
    std::fs::create_dir_all(folder).map_err(|cause| wrong(folder, cause))?;
    for (i, (name, output)) in answer.outputs.iter().enumerate() {
        // A model may give its outputs any name: only letters and digits of it become a file's.
        let plain: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).take(64).collect();
        let path = folder.join(format!("{row}.{i}.{plain}.npy"));
        let Some(bytes) = npy::to_bytes(output) else {
            eprintln!("{name}: .npy files hold no {}; not written", output.dtype);
            continue;
        };
        std::fs::write(&path, bytes).map_err(|cause| wrong(&path, cause))?;
    }
    Ok(())
}
