//! What users query: a graph of stages, mostly a chain with the cheapest stage first, and a gate before each deeper one.

pub mod audit;
pub mod budget;
pub mod combine;
pub mod frontier;
pub mod gain;
pub mod gate;
pub mod graph;
pub mod ladder;
mod named;
pub mod passage;
#[cfg(test)]
pub(crate) mod tests;
pub mod thresholds;
mod wiring;

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::ids::{EndpointName, ModelRef, StageName};
use crate::outcome::Class;
use crate::tensor::{Signature, Tensor};
use crate::triage::Tenant;

pub use budget::Budget;
pub use gain::GainTable;
pub use gate::Gate;
pub use graph::{Combine, Condition, Feed, Flow, Run};
pub use ladder::{Judged, Ladder, Ladders, Rungs, Verdict};
pub use named::{Label, Labels, Named};
pub use passage::{Asks, Passage};
pub use wiring::{BadEndpoint, Source, Wiring};

/// An endpoint as declared and checked: at least one stage, unique stage names, no gate before the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// What users name in a query.
    pub name: EndpointName,
    /// For a query that brings none.
    pub deadline: Duration,
    /// What one correct answer is worth against other endpoints. Finite and positive.
    pub weight: f64,
    /// Part of each device's time that other endpoints cannot take from it, as far as it asks for it: 0 to 1.
    pub share: f64,
    /// Part of the rows that every stage is asked about in the gaps, whatever gates say: 0 to [`AUDIT_MAX`].
    pub audit: f64,
    /// For a query that brings none.
    pub class: Class,
    /// The output `[N, C]` of class probabilities: its arg-max is the answer, and its maximum the confidence where there is no
    /// `confidence_output`.
    pub label_output: Option<String>,
    /// The output with one number a row that is the confidence: what gates look at that do not ask for probabilities. A stage
    /// without a gate behind it need not have it where there is a `label_output`.
    pub confidence_output: Option<String>,
    /// What is answered, marked, where nothing else can be: each output that stages give, as one row `[1, …]`. Empty: nothing is.
    pub default_outputs: Vec<(String, Tensor)>,
    /// Cheapest first; in a graph, each after those that it names.
    pub stages: Vec<Stage>,
    /// Of an endpoint with one model: the versions that its queries are split over, in place of the stage's model. Empty: that alone.
    pub versions: Vec<Split>,
    /// What a rollout replaced, to go back to.
    pub before: Vec<Split>,
    /// The attainment that a version which a rollout gives queries has to keep, or it is taken back ([`crate::rollout`]); 0 where nobody
    /// watches.
    pub objective: f64,
    /// Why the last rollout was undone; empty where it was not.
    pub undone: String,
    /// Of an endpoint with one model: another one that sees a copy of each query in the gaps, and answers nobody.
    pub shadow: Option<ModelRef>,
    /// What its file names, where labels are among that: the models above are what these stand for.
    pub named: Option<Named>,
    /// Versions that stay loaded beside those that answer: a label is about to come to them, or has just left them.
    pub beside: Vec<ModelRef>,
}

/// A version of a model that gets a part of the queries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Split {
    pub model: ModelRef,
    /// Against the other versions'; 0: it stays loaded and gets nothing.
    pub share: u32,
}

/// More than this would not be an audit.
pub const AUDIT_MAX: f64 = 0.2;
/// What a correct answer can be worth: what prices of computing time are told in ends somewhere.
pub const WEIGHTS: RangeInclusive<f64> = 0.01..=1e6;

/// Who gave an answer that no stage gave.
pub const DEFAULT: &str = "default";

/// One step of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Unique in the endpoint.
    pub name: StageName,
    /// What runs.
    pub run: Run,
    /// Decides after the stage before whether to run this one; always runs it where absent. `None` for the first.
    pub gate: Option<Gate>,
    /// Where inputs come from that are not found by their names; of a combination, all of them.
    pub inputs: Vec<Feed>,
    /// Runs only where this holds.
    pub when: Option<Condition>,
}

impl Stage {
    /// A stage of a chain.
    pub fn new(name: StageName, model: ModelRef, gate: Option<Gate>) -> Stage {
        Stage { name, run: Run::Model(model), gate, inputs: Vec::new(), when: None }
    }

    /// Whether its gate weighs what it gains against the price.
    pub fn weighs(&self) -> bool {
        matches!(self.gate, Some(Gate::Gain { .. }))
    }

    /// The model that it runs, where it runs one.
    pub fn model(&self) -> Option<&ModelRef> {
        match &self.run {
            Run::Model(model) => Some(model),
            Run::Combine(_) => None,
        }
    }
}

impl Endpoint {
    /// These stages, and everything else as it is where nobody says otherwise.
    pub fn new(name: EndpointName, deadline: Duration, stages: Vec<Stage>) -> Endpoint {
        Endpoint {
            name,
            deadline,
            weight: 1.0,
            share: 0.0,
            audit: 0.0,
            class: Class::Default,
            label_output: None,
            confidence_output: None,
            default_outputs: Vec::new(),
            stages,
            versions: Vec::new(),
            before: Vec::new(),
            objective: 0.0,
            undone: String::new(),
            shadow: None,
            named: None,
            beside: Vec::new(),
        }
    }

    /// A price at which no gate goes on whose stages cost `seconds` of slot time a row.
    pub(crate) fn too_dear(&self, seconds: &[f64]) -> f64 {
        let (least, _) = deeper_costs(seconds);
        self.weight * self.stages.len() as f64 / least
    }

    /// What triage knows it by.
    pub fn tenant(&self) -> Tenant {
        Tenant::of(&self.name, self.share)
    }

    /// Its default outputs as the types that its models give; what these cannot hold stays as it was written, and is told by
    /// [`Endpoint::wire`]. `signature`: of a model, where that is known.
    pub fn type_defaults<'a>(&mut self, signature: impl Fn(&ModelRef) -> Option<&'a Signature>) {
        let known: Vec<&Signature> = self.answering().filter_map(signature).collect();
        for (name, given) in &mut self.default_outputs {
            // What the last stage gives is what the endpoint gives.
            let mut specs = known.iter().rev().flat_map(|signature| &signature.outputs);
            if let Some(typed) = specs.find(|spec| spec.name == *name).and_then(|spec| given.written_as(spec.dtype)) {
                *given = typed;
            }
        }
    }

    /// What callers are told who gave an answer: the default output stands behind the last stage.
    pub fn stage_name(&self, stage: usize) -> &str {
        self.stages.get(stage).map_or(DEFAULT, |stage| stage.name.as_str())
    }

    /// The condition of a stage as weir files have it; nothing where it has none.
    pub fn condition(&self, stage: usize) -> Option<String> {
        let when = self.stages[stage].when.as_ref()?;
        let of = &self.stages[when.stage as usize].name;
        Some(format!("{of}.{} {} {}", when.signal.word(), when.is.word(), when.than))
    }

    /// How likely an answer of a stage is to be right, by the gain tables: by that of the gate behind it, or else by what the gate before
    /// it expected. `signal` is what the gate behind a stage looked at, where it was asked.
    pub fn expected_right(&self, stage: usize, signal: impl Fn(usize) -> Option<f32>) -> Option<f64> {
        let table = |stage: usize| match &self.stages.get(stage)?.gate {
            Some(Gate::Gain { table, .. }) => Some(table),
            _ => None,
        };
        let own = || {
            let (table, signal) = (table(stage + 1)?, signal(stage)?);
            Some(table.read(signal, |bin| table.bins()[bin].right))
        };
        let before = || {
            let (table, signal) = (table(stage)?, signal(stage.checked_sub(1)?)?);
            Some(table.read(signal, |bin| table.bins()[bin].right + table.bins()[bin].gain))
        };
        own().or_else(before)
    }

    /// What an answer of a stage is expected to have lost to load, in units of value: what the next stage is worth by the gate behind this
    /// one, where nothing is dear ([`Judged::free`]), if that was worth running and did not run; of a default output, which no stage gave, all that
    /// an answer is worth.
    pub fn expected_loss(&self, stage: usize, next_is_worth: Option<f64>) -> f64 {
        if stage >= self.stages.len() {
            return self.weight;
        }
        let Some(Gate::Gain { min_gain, .. }) = self.stages.get(stage + 1).and_then(|next| next.gate.as_ref()) else {
            return 0.0;
        };
        next_is_worth.filter(|value| *value >= min_gain * self.weight).unwrap_or(0.0)
    }

    /// The models that it keeps loaded: those that answer, then its shadow and what stands beside.
    pub fn models(&self) -> impl Iterator<Item = &ModelRef> {
        self.answering().chain(&self.shadow).chain(&self.beside)
    }

    /// The models that answer: those that its stages run, in order, or its versions.
    pub fn answering(&self) -> impl Iterator<Item = &ModelRef> {
        let versions = self.versions.iter().map(|split| &split.model);
        let stages = self.stages.iter().filter_map(Stage::model).filter(|_| self.versions.is_empty());
        stages.chain(versions)
    }

    /// The models that its queries begin with: that of its first stage, or the versions that get queries.
    pub fn begins(&self) -> impl Iterator<Item = &ModelRef> {
        let versions = self.versions.iter().filter(|split| split.share > 0).map(|split| &split.model);
        let first = self.stages.first().and_then(Stage::model).filter(|_| self.versions.is_empty());
        first.into_iter().chain(versions)
    }

    /// What its shadow is asked as.
    pub fn as_shadow(&self) -> Option<Endpoint> {
        let run = Run::Model(self.shadow.clone()?);
        let mut shadow = self.alone();
        shadow.stages[0].run = run;
        Some(shadow)
    }

    /// What its queries are split over, each as an endpoint of one version, with its share; itself alone where it has no versions.
    pub fn variants(&self) -> Vec<(u32, Endpoint)> {
        let of = |split: &Split| {
            let mut variant = self.alone();
            variant.stages[0].run = Run::Model(split.model.clone());
            (split.share, variant)
        };
        if self.versions.is_empty() { vec![(1, self.clone())] } else { self.versions.iter().map(of).collect() }
    }

    /// Its stages without other versions of their model.
    fn alone(&self) -> Endpoint {
        let mut alone = self.clone();
        alone.versions.clear();
        alone.before.clear();
        alone.beside.clear();
        (alone.shadow, alone.named) = (None, None);
        alone
    }

    /// Whether each stage just follows the one before.
    pub fn is_chain(&self) -> bool {
        let plain = |stage: &Stage| stage.inputs.is_empty() && stage.when.is_none() && stage.model().is_some();
        self.stages.iter().all(plain)
    }
}

/// The least and the most slot time, in seconds, that a row of a stage behind another takes; where none is known, a microsecond.
pub(crate) fn deeper_costs(seconds: &[f64]) -> (f64, f64) {
    let known = seconds.iter().skip(1).copied().filter(|cost| *cost > 0.0);
    let least_and_most = known.fold(None, |found: Option<(f64, f64)>, cost| {
        let (least, most) = found.unwrap_or((cost, cost));
        Some((least.min(cost), most.max(cost)))
    });
    least_and_most.unwrap_or((1e-6, 1e-6))
}
