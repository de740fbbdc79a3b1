//! A request of the open inference protocol as a call of weir, and its answers as a response: what HTTP and gRPC share.
//!
//! Endpoints are the protocol's models. Where every input and output of an endpoint has an open first dimension, that is the rows, each a
//! query of its own; else the arrays as they are are one query.

use std::collections::BTreeSet;
use std::time::Duration;

use weir_client::{Answer, EndpointInfo, Request};
use weir_core::ids::{EndpointName, StageName};
use weir_core::outcome::{Class, Outcome};
use weir_core::tensor::{DType, Tensor, TensorSpec};
use weir_schema::oip;

use crate::refusal::{Kind, Refusal};
use crate::story;

/// The one version of every model: an endpoint's versions are weir's to choose between.
pub const VERSION: &str = "1";
/// What is said to be the largest batch. More rows than that can be asked at once, as far as a message holds them.
pub const ROWS_TOLD: i32 = 1024;

/// A parameter of a request or tensor.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Parameter {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
}

/// How a request wants to be treated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    /// From now: the shortest of all that were said.
    pub deadline: Option<Duration>,
    /// The endpoint's own where absent. Of several the parameter `weir_class` counts, then `priority`, then a header.
    pub class: Said<Class>,
    /// No shallower stage may answer.
    pub min_stage: Option<StageName>,
    /// No deeper stage is asked.
    pub max_stage: Option<StageName>,
    /// The arrays as they are are one query, or their first dimension is rows, whatever the signature says.
    pub whole: Option<bool>,
    /// Outputs whose own word is missing come back as binary data.
    pub binary_output: bool,
    /// The response tells how it came about.
    pub trace: bool,
}

/// What was said in several places: what comes first counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Said<T> {
    /// As a parameter of weir's own.
    pub parameter: Option<T>,
    /// As a parameter of the protocol.
    pub protocol: Option<T>,
    /// As a header, or metadata of the call.
    pub header: Option<T>,
}

impl<T> Default for Said<T> {
    fn default() -> Said<T> {
        Said { parameter: None, protocol: None, header: None }
    }
}

impl<T> Said<T> {
    /// What counts.
    pub fn get(self) -> Option<T> {
        self.parameter.or(self.protocol).or(self.header)
    }
}

impl Wishes {
    /// Another deadline was said.
    pub fn within(&mut self, deadline: Duration) {
        self.deadline = Some(self.deadline.map_or(deadline, |known| known.min(deadline)));
    }

    /// Takes in a parameter of the request. Those that mean nothing here are ignored, as the protocol wants.
    pub fn take(&mut self, name: &str, value: &Parameter) -> Result<(), Refusal> {
        let bad = |wanted: &str| Refusal::bad(format!("parameter {name} must be {wanted}"));
        match (name, value) {
            // Microseconds; 0 means none.
            ("timeout", value) => {
                let us = value.whole().filter(|us| *us >= 0).ok_or_else(|| bad("a number of microseconds"))?;
                if us > 0 {
                    self.within(Duration::from_micros(us as u64));
                }
            }
            ("weir_deadline_ms", value) => self.deadline_ms(value.number(), name)?,
            // 1 is the most important, 0 nothing in particular.
            ("priority", value) => {
                let priority = value.whole().filter(|n| *n >= 0).ok_or_else(|| bad("a number from 0 on"))?;
                self.class.protocol = match priority {
                    0 => None,
                    1 => Some(Class::Critical),
                    2 => Some(Class::Default),
                    _ => Some(Class::Sheddable),
                };
            }
            ("weir_class", Parameter::Text(text)) => self.class.parameter = Some(class(text)?),
            ("weir_min_stage", Parameter::Text(text)) => self.min_stage = Some(stage(text)?),
            ("weir_max_stage", Parameter::Text(text)) => self.max_stage = Some(stage(text)?),
            ("weir_whole", Parameter::Bool(whole)) => self.whole = Some(*whole),
            ("weir_trace", Parameter::Bool(trace)) => self.trace = *trace,
            ("binary_data_output", Parameter::Bool(binary)) => self.binary_output = *binary,
            ("weir_class" | "weir_min_stage" | "weir_max_stage", _) => return Err(bad("a text")),
            ("weir_whole" | "weir_trace" | "binary_data_output", _) => {
                return Err(bad("true or false"));
            }
            ("sequence_id", Parameter::Int(0)) => {}
            ("sequence_id", Parameter::Text(text)) if text.is_empty() => {}
            ("sequence_id", _) => {
                return Err(Refusal::bad("weir keeps no state between requests: send no sequence_id"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Milliseconds, from a header or a parameter of this name.
    pub fn deadline_ms(&mut self, ms: Option<f64>, name: &str) -> Result<(), Refusal> {
        let ms = ms.filter(|ms| *ms > 0.0 && *ms < 1e12);
        let ms = ms.ok_or_else(|| Refusal::bad(format!("{name} must be a number of milliseconds above 0")))?;
        self.within(Duration::from_secs_f64(ms / 1e3));
        Ok(())
    }

    /// What headers over HTTP, and metadata over gRPC, say.
    pub fn take_headers(&mut self, deadline_ms: Option<&str>, class_word: Option<&str>) -> Result<(), Refusal> {
        if let Some(text) = deadline_ms {
            self.deadline_ms(text.trim().parse().ok(), "weir-deadline-ms")?;
        }
        if let Some(text) = class_word {
            self.class.header = Some(class(text.trim())?);
        }
        Ok(())
    }
}

/// A class by its word.
fn class(word: &str) -> Result<Class, Refusal> {
    let unknown = || {
        let word: String = word.chars().take(40).collect();
        Refusal::bad(format!("{word:?} is no class; there are critical, default and sheddable"))
    };
    Class::parse(word).ok_or_else(unknown)
}

impl Parameter {
    fn whole(&self) -> Option<i64> {
        match self {
            Parameter::Int(value) => Some(*value),
            Parameter::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Parameter::Float(value) => Some(*value),
            other => other.whole().map(|value| value as f64),
        }
    }
}

fn stage(text: &str) -> Result<StageName, Refusal> {
    StageName::parse(text).map_err(|bad| Refusal::bad(bad.to_string()))
}

/// Refuses what a tensor wants that weir does not have.
pub fn check_tensor_parameter(tensor: &str, name: &str) -> Result<(), Refusal> {
    match name {
        "shared_memory_region" | "shared_memory_offset" | "shared_memory_byte_size" => {
            Err(Refusal::bad(format!("tensor {tensor}: weir has no shared memory; send the data in the request")))
        }
        "classification" => {
            Err(Refusal::bad(format!("output {tensor}: weir does not classify; take the largest of the output")))
        }
        _ => Ok(()),
    }
}

/// Element type and shape of an input, as its request writes them.
pub fn kind(input: &str, datatype: &str, dims: &[i64]) -> Result<(DType, Vec<u64>), Refusal> {
    let dtype = oip::dtype(datatype).ok_or_else(|| {
        let word: String = datatype.chars().take(20).collect();
        Refusal::bad(format!("input {input}: there is no datatype {word:?}"))
    })?;
    let shape: Result<Vec<u64>, _> = dims.iter().map(|dim| u64::try_from(*dim)).collect();
    let shape = shape.map_err(|_| Refusal::bad(format!("input {input}: a dimension is below 0")))?;
    Ok((dtype, shape))
}

/// An endpoint by the protocol's name and version.
pub fn endpoint(name: &str, version: &str) -> Result<EndpointName, Refusal> {
    let missing = |text: String| Refusal::new(Kind::NotFound, text);
    let short: String = name.chars().take(80).collect();
    let endpoint = EndpointName::parse(name)
        .map_err(|_| missing(format!("model {short:?} not found; `weir get endpoints` lists what there is")))?;
    match version {
        "" | VERSION => Ok(endpoint),
        _ => Err(missing(format!(
            "model {short:?} has version {VERSION} alone: which version of its models answers is the endpoint's to say"
        ))),
    }
}

/// A dimension as the protocol writes it: -1 where it is open.
pub fn dims(spec: &TensorSpec) -> Vec<i64> {
    spec.shape.iter().map(|dim| dim.map_or(-1, |dim| i64::try_from(dim).unwrap_or(i64::MAX))).collect()
}

/// Whether the first dimension of all tensors is rows.
pub fn has_rows(info: &EndpointInfo) -> bool {
    let open = |spec: &TensorSpec| spec.shape.first().is_some_and(Option::is_none);
    info.inputs.iter().all(open) && info.outputs.iter().all(open) && !info.inputs.is_empty()
}

/// The call: inputs are known to the endpoint, each once, of its type.
pub fn request(
    endpoint: EndpointName,
    info: &EndpointInfo,
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<String>,
    wishes: Wishes,
) -> Result<Request, Refusal> {
    let list = |specs: &[TensorSpec]| specs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ");
    let mut seen = BTreeSet::new();
    for (name, tensor) in &inputs {
        let Some(spec) = info.inputs.iter().find(|spec| spec.name == *name) else {
            return Err(Refusal::bad(format!("there is no input {name:?}; there are {}", list(&info.inputs))));
        };
        if !seen.insert(name.as_str()) {
            return Err(Refusal::bad(format!("input {name:?} is there twice")));
        }
        if spec.dtype != tensor.dtype {
            let (wanted, got) = (oip::word(spec.dtype), oip::word(tensor.dtype));
            return Err(Refusal::bad(format!("input {name:?} is {wanted}, and the request has {got}")));
        }
    }
    if let Some(missing) = info.inputs.iter().find(|spec| !seen.contains(spec.name.as_str())) {
        return Err(Refusal::bad(format!("input {:?} is missing", missing.name)));
    }
    let mut asked = BTreeSet::new();
    for name in &outputs {
        if !info.outputs.iter().any(|spec| spec.name == *name) {
            return Err(Refusal::bad(format!("there is no output {name:?}; there are {}", list(&info.outputs))));
        }
        if !asked.insert(name.as_str()) {
            return Err(Refusal::bad(format!("output {name:?} is asked for twice")));
        }
    }
    let whole = wishes.whole.unwrap_or_else(|| !has_rows(info));
    if !whole {
        let rows: BTreeSet<Option<u64>> = inputs.iter().map(|(_, tensor)| tensor.shape.first().copied()).collect();
        match rows.first() {
            Some(Some(1..)) if rows.len() == 1 => {}
            Some(Some(0)) if rows.len() == 1 => {
                return Err(Refusal::bad("there are no rows: the first dimension is 0"));
            }
            _ => {
                return Err(Refusal::bad("the inputs have different numbers of rows: the first dimension is the rows"));
            }
        }
    }
    Ok(Request {
        endpoint,
        inputs,
        whole,
        deadline: wishes.deadline,
        class: wishes.class.get(),
        outputs,
        min_stage: wishes.min_stage,
        max_stage: wishes.max_stage,
        trace: wishes.trace,
    })
}

/// What came of a request all of whose rows were answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// By name, rows put together again.
    pub outputs: Vec<(String, Tensor)>,
    /// What weir says of it.
    pub parameters: Vec<(&'static str, Parameter)>,
}

/// Puts rows together; where one has no answer, the request has none.
pub fn response(answers: Vec<Answer>, whole: bool) -> Result<Response, Refusal> {
    let rows = answers.len();
    let unanswered = answers.iter().position(|answer| answer.outcome != Outcome::Answered);
    if let Some(row) = unanswered {
        return Err(Refusal::of(&answers[row], row, rows));
    }
    let Some(first) = answers.first() else { return Err(Refusal::new(Kind::Failed, "there are no answers")) };
    let stages: Vec<&str> = answers.iter().map(|answer| answer.stage.as_str()).collect();
    let us = |of: fn(&Answer) -> Duration| {
        let longest = answers.iter().map(of).max().unwrap_or_default();
        Parameter::Int(i64::try_from(longest.as_micros()).unwrap_or(i64::MAX))
    };
    let mut parameters = vec![
        // One row's, or all of them where they differ.
        (
            "weir_stage",
            Parameter::Text(match stages.iter().all(|stage| *stage == stages[0]) {
                true => stages[0].to_owned(),
                false => stages.join(","),
            }),
        ),
        ("weir_degraded", Parameter::Bool(answers.iter().any(|answer| answer.degraded))),
        ("weir_queue_us", us(|answer| answer.timings.queue)),
        ("weir_compute_us", us(|answer| answer.timings.execute)),
        ("weir_query_id", Parameter::Text(first.id.to_string())),
    ];
    if !first.model.is_empty() {
        parameters.push(("weir_model", Parameter::Text(first.model.clone())));
    }
    // One row's, or an array of all of them.
    let mut traces = answers.iter().filter_map(|answer| answer.trace.as_deref()).map(story::as_json);
    if let Some(first) = traces.next() {
        let rest: Vec<serde_json::Value> = traces.collect();
        let told = if rest.is_empty() { first } else { std::iter::once(first).chain(rest).collect() };
        parameters.push(("weir_trace", Parameter::Text(told.to_string())));
    }
    let outputs = if whole { answers.into_iter().next().expect("there is one").outputs } else { stack(answers)? };
    Ok(Response { outputs, parameters })
}

/// One array of all rows for each output.
fn stack(answers: Vec<Answer>) -> Result<Vec<(String, Tensor)>, Refusal> {
    let rows = answers.len() as u64;
    let mut answers = answers.into_iter();
    let mut stacked = answers.next().map_or_else(Vec::new, |first| first.outputs);
    for answer in answers {
        let alike = answer.outputs.len() == stacked.len()
            && stacked
                .iter()
                .zip(&answer.outputs)
                .all(|((name, all), (other, row))| name == other && all.dtype == row.dtype && all.shape == row.shape);
        if !alike {
            let why =
                "rows of this request have outputs of different shapes, which one array cannot hold; ask row by row";
            return Err(Refusal::bad(why));
        }
        stacked.iter_mut().zip(answer.outputs).for_each(|((_, all), (_, row))| all.data.extend(row.data));
    }
    stacked.iter_mut().for_each(|(_, tensor)| tensor.shape.insert(0, rows));
    Ok(stacked)
}

#[cfg(test)]
mod tests;
