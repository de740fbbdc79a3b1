//! What users query: a graph of stages, today a chain with the cheapest stage first, and a gate before each deeper one.

pub mod frontier;
pub mod gain;
pub mod gate;
pub mod ladder;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{EndpointName, ModelRef, StageName};
use crate::outcome::Class;
use crate::tensor::{DType, Signature, TensorSpec};

pub use gain::GainTable;
pub use gate::Gate;
pub use ladder::{Judged, Ladder, Ladders, Verdict};

/// An endpoint as declared and checked: at least one stage, unique stage names, no gate before the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// What users name in a query.
    pub name: EndpointName,
    /// For a query that brings none.
    pub deadline: Duration,
    /// What one correct answer is worth against other endpoints. Finite and positive.
    pub weight: f64,
    /// For a query that brings none.
    pub class: Class,
    /// The output `[N, C]` whose arg-max is the answer and whose maximum is the confidence.
    pub label_output: Option<String>,
    /// The output with one number a row that is the confidence, where there is no `label_output`.
    pub confidence_output: Option<String>,
    /// Cheapest first.
    pub stages: Vec<Stage>,
}

/// One model in the chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Unique in the endpoint.
    pub name: StageName,
    /// What runs.
    pub model: ModelRef,
    /// Decides after the stage before whether to run this one; always runs it where absent. `None` for the first.
    pub gate: Option<Gate>,
}

/// Where a stage's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The endpoint's input of this number.
    Request(usize),
    /// The output of this number of the stage before.
    Previous(usize),
}

/// An endpoint with what its models take and give: everything that a home needs to run a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Wiring {
    /// Inputs of the first stage, outputs that all stages that can answer share by name, type and shape.
    pub signature: Signature,
    /// By stage: where each of its model's inputs comes from.
    pub sources: Vec<Vec<Source>>,
    /// By stage: the number of each of `signature.outputs` among its model's outputs.
    pub outputs: Vec<Vec<usize>>,
    /// By stage: the number of the label output (or else the confidence output) among its model's outputs.
    pub confidence: Vec<Option<usize>>,
}

/// Why an endpoint cannot be served as declared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("endpoint {endpoint}: {what}")]
#[allow(missing_docs)]
pub struct BadEndpoint {
    pub endpoint: EndpointName,
    pub what: String,
}

impl Endpoint {
    /// The number that decides after `stage`, from the numbers of its label output for one row, or of its confidence output
    /// where the endpoint has no label output: what the next gate looks at, or else the confidence.
    pub fn signal(&self, stage: usize, numbers: &[f32]) -> Option<f32> {
        let gate = self.stages.get(stage + 1).and_then(|next| next.gate.as_ref());
        match (&self.label_output, gate) {
            (Some(_), Some(gate)) => gate.signal(numbers),
            (Some(_), None) => gate::label(numbers).map(|(_, confidence)| confidence),
            (None, _) => numbers.first().copied(),
        }
    }

    /// A price at which no gate goes on whose stages cost `seconds` of slot time a row.
    pub(crate) fn too_dear(&self, seconds: &[f64]) -> f64 {
        let least = seconds.iter().skip(1).copied().filter(|cost| *cost > 0.0).fold(f64::INFINITY, f64::min);
        let least = if least.is_finite() { least } else { 1e-6 };
        self.weight * self.stages.len() as f64 / least
    }

    /// Checks the declaration against the signatures of its models and wires the stages to each other.
    pub fn wire(&self, signatures: &BTreeMap<ModelRef, &Signature>) -> Result<Wiring, BadEndpoint> {
        let bad = |what: String| BadEndpoint { endpoint: self.name.clone(), what };
        if self.stages.is_empty() {
            return Err(bad("has no stage; give it a model".into()));
        }
        if !(self.weight.is_finite() && self.weight > 0.0) {
            return Err(bad("needs a finite weight above 0".into()));
        }
        if self.deadline.is_zero() {
            return Err(bad("needs a deadline above 0".into()));
        }
        let mut stages = Vec::new();
        for (i, stage) in self.stages.iter().enumerate() {
            if self.stages[..i].iter().any(|other| other.name == stage.name) {
                return Err(bad(format!("stage {} stands twice", stage.name)));
            }
            if i == 0 && stage.gate.is_some() {
                return Err(bad("its first stage has a gate, but always runs".into()));
            }
            let signature = signatures.get(&stage.model);
            stages.push(*signature.ok_or_else(|| {
                bad(format!(
                    "stage {} names model {}, which is not registered; declare it in the same file or apply it first",
                    stage.name, stage.model
                ))
            })?);
        }
        self.check_gates().map_err(bad)?;
        let sources = self.sources(&stages).map_err(bad)?;
        // A stage before a stage without a gate never answers by itself, but does when the deeper one cannot be had.
        let shared: Vec<TensorSpec> = stages[0]
            .outputs
            .iter()
            .filter(|output| stages.iter().all(|stage| stage.outputs.iter().any(|other| alike(output, other))))
            .cloned()
            .collect();
        if shared.is_empty() {
            return Err(bad("its stages share no output of the same name, type and shape; an answer would depend on the stage that gave it".into()));
        }
        let outputs = stages
            .iter()
            .map(|stage| shared.iter().map(|output| position(stage, &output.name).expect("shared by all")).collect())
            .collect();
        let confidence = self.confidences(&stages).map_err(bad)?;
        let signature = Signature { inputs: stages[0].inputs.clone(), outputs: shared };
        Ok(Wiring { signature, sources, outputs, confidence })
    }

    fn check_gates(&self) -> Result<(), String> {
        for (i, stage) in self.stages.iter().enumerate() {
            let Some(gate) = &stage.gate else { continue };
            if self.label_output.is_none() && gate.needs_probabilities() {
                return Err(format!("stage {} has a gate by class probabilities: name their label_output", stage.name));
            }
            let Gate::Gain { table, .. } = gate else { continue };
            let next = self.stages.get(i + 1).and_then(|next| match &next.gate {
                Some(Gate::Gain { table, .. }) => Some(table.bins().len()),
                _ => None,
            });
            let shares = table.bins()[0].next.len();
            if shares != 0 && next.is_some_and(|bins| bins != shares) {
                return Err(format!(
                    "the gain tables of stages {} and {} were not made together; calibrate both again",
                    stage.name,
                    self.stages[i + 1].name
                ));
            }
        }
        Ok(())
    }

    fn sources(&self, stages: &[&Signature]) -> Result<Vec<Vec<Source>>, String> {
        let request = &stages[0].inputs;
        let mut all = vec![(0..request.len()).map(Source::Request).collect()];
        for (i, pair) in stages.windows(2).enumerate() {
            let (before, stage) = (pair[0], pair[1]);
            let mut sources = Vec::new();
            for input in &stage.inputs {
                let from_request = request.iter().position(|given| given.name == input.name && feeds(given, input));
                // A hidden tensor is called h_out where it leaves and h where it enters.
                let from_previous = before.outputs.iter().position(|given| {
                    (given.name == input.name || given.name == format!("{}_out", input.name)) && feeds(given, input)
                });
                sources.push(match (from_previous, from_request) {
                    (Some(output), _) => Source::Previous(output),
                    (None, Some(given)) => Source::Request(given),
                    (None, None) => {
                        let stage = &self.stages[i + 1];
                        return Err(format!(
                            "stage {} needs the input {input}, which neither the request nor an output of the stage before gives",
                            stage.name
                        ));
                    }
                });
            }
            all.push(sources);
        }
        Ok(all)
    }

    fn confidences(&self, stages: &[&Signature]) -> Result<Vec<Option<usize>>, String> {
        let name = self.label_output.as_ref().or(self.confidence_output.as_ref());
        let mut confidences = Vec::new();
        for (i, signature) in stages.iter().enumerate() {
            let gated = self.stages.get(i + 1).is_some_and(|next| next.gate.is_some());
            let Some(name) = name else {
                if gated {
                    return Err(format!(
                        "stage {} has a gate by confidence: name a label_output or a confidence_output",
                        self.stages[i + 1].name
                    ));
                }
                confidences.push(None);
                continue;
            };
            let output = position(signature, name);
            match output.map(|o| signature.outputs[o].dtype) {
                Some(DType::F32) => confidences.push(output),
                Some(other) => {
                    return Err(format!(
                        "output {name} of stage {} is {other}; confidences must be f32",
                        self.stages[i].name
                    ));
                }
                None => {
                    let known = signature.outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>().join(", ");
                    return Err(format!("stage {} has no output {name}; it has {known}", self.stages[i].name));
                }
            }
        }
        Ok(confidences)
    }
}

fn position(signature: &Signature, output: &str) -> Option<usize> {
    signature.outputs.iter().position(|spec| spec.name == output)
}

/// Same name, type and row shape.
fn alike(a: &TensorSpec, b: &TensorSpec) -> bool {
    a.name == b.name && feeds(a, b)
}

/// Whether a tensor of `given` can be one of `wanted`: the first dimension is the batch's affair.
fn feeds(given: &TensorSpec, wanted: &TensorSpec) -> bool {
    given.dtype == wanted.dtype
        && given.shape.len() == wanted.shape.len()
        && given.shape.iter().zip(&wanted.shape).skip(1).all(|(a, b)| a.is_none() || b.is_none() || a == b)
}
