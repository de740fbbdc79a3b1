//! Graphs of up to four stages, and what they say about rows.

use super::*;

use weir_core::endpoint::frontier::{Known, calibrate};
use weir_core::endpoint::graph::{Comparison, How, Signal, Stages};
use weir_core::endpoint::{Combine, Condition, Endpoint, Feed, Gate, Ladders, Run, Stage};
use weir_core::ids::{EndpointName, StageName};
use weir_core::tensor::{DType, Signature, TensorSpec};

use crate::cluster::{Says, Served};

pub const ROWS: usize = 400;
/// A gate or a condition looks whether a stage is less sure than that.
const SURE: f32 = 0.6;

/// How stages follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Each behind a gate that weighs gain against price.
    Weighing,
    /// Each behind a gate with a fixed threshold, or none.
    Gated,
    /// Each takes what the one before gives, and only the last one answers.
    Line,
    /// Side by side, and combined where at least so many are there.
    Combined(Option<u32>),
    /// The first decides which of the others run.
    Routed,
}

/// A graph, and what its stages say.
pub struct Graph {
    shape: Shape,
    /// Models that it runs.
    count: usize,
    /// By stage and row.
    confidences: Vec<Vec<f32>>,
    /// By stage and row.
    pub right: Vec<Vec<bool>>,
}

fn name(i: usize) -> String {
    format!("s{i}")
}

fn model(i: usize) -> ModelRef {
    ModelRef::parse(&format!("{}@1", name(i))).expect("a name")
}

fn feed(input: &str, stage: usize, tensor: &str) -> Feed {
    Feed { input: input.to_owned(), stage: Some(stage as u32), tensor: tensor.to_owned(), each: false }
}

impl Graph {
    pub fn random(prng: &mut Prng) -> Graph {
        let stages = 1 + prng.below(4) as usize;
        let shape = match prng.below(5) {
            0 => Shape::Weighing,
            1 => Shape::Gated,
            2 => Shape::Line,
            3 if stages > 2 => Shape::Combined((prng.below(2) == 0).then(|| 1 + prng.below(stages as u64 - 1) as u32)),
            4 if stages > 2 => Shape::Routed,
            _ => Shape::Weighing,
        };
        let count = stages - usize::from(matches!(shape, Shape::Combined(_)));
        let mut confidences = vec![Vec::new(); stages];
        let mut right = vec![Vec::new(); stages];
        for _ in 0..ROWS {
            let hard = prng.uniform();
            for stage in 0..stages {
                let likely = (1.0 - hard * (0.8 - 0.18 * stage as f64)).clamp(0.0, 1.0);
                right[stage].push(prng.uniform() < likely);
                let sure = likely + 0.2 * (prng.uniform() - 0.5);
                confidences[stage].push(sure.clamp(0.01, 0.99) as f32);
            }
        }
        Graph { shape, count, confidences, right }
    }

    pub fn stages(&self) -> usize {
        self.right.len()
    }

    pub fn models(&self) -> impl Iterator<Item = ModelRef> {
        (0..self.count).map(model)
    }

    pub fn words(&self) -> String {
        format!("{} stages, {:?}", self.stages(), self.shape).to_lowercase()
    }

    /// The endpoint, where a row of a model takes so many seconds.
    pub fn served(&self, deadline: Duration, row_seconds: impl Fn(&ModelRef) -> f64) -> Served {
        let mut stages: Vec<Stage> = (0..self.count).map(|i| self.stage(i)).collect();
        if let Shape::Combined(at_least) = self.shape {
            let run = Run::Combine(Combine { how: How::Mean, at_least });
            let inputs = (0..self.count).map(|i| feed(&name(i), i, "probs")).collect();
            let name = StageName::parse("all").expect("a name");
            stages.push(Stage { name, run, gate: None, inputs, when: None });
        }
        if self.shape == Shape::Weighing {
            let row = |row: usize| Known {
                confidences: self.confidences.iter().map(|of| of[row]).collect(),
                right: self.right.iter().map(|of| of[row]).collect(),
            };
            let tables = calibrate(&(0..ROWS).map(row).collect::<Vec<_>>()).expect("there are rows enough");
            for (stage, table) in stages.iter_mut().skip(1).zip(tables) {
                stage.gate = Some(Gate::Gain { table: Arc::new(table), min_gain: Gate::MIN_GAIN });
            }
        }
        let endpoint = EndpointName::parse("e").expect("a name");
        let endpoint = Endpoint { label_output: Some("probs".into()), ..Endpoint::new(endpoint, deadline, stages) };
        let signatures: Vec<(ModelRef, Signature)> = (0..self.count).map(|i| (model(i), self.signature(i))).collect();
        let by_model = signatures.iter().map(|(model, signature)| (model.clone(), signature)).collect();
        let wiring = endpoint.wire(&by_model).expect("a graph that can be served");
        let of = |stage: &Stage| stage.model().map_or(0.0, &row_seconds);
        let seconds: Vec<f64> = endpoint.stages.iter().map(of).collect();
        let says = (0..self.stages()).map(|stage| (0..ROWS).map(|row| self.says(stage, row)).collect()).collect();
        Served { ladders: Ladders::new(&Arc::new(endpoint), &seconds), flow: Arc::clone(&wiring.flow), says }
    }

    fn stage(&self, i: usize) -> Stage {
        let mut stage = Stage::new(StageName::parse(&name(i)).expect("a name"), model(i), None);
        match self.shape {
            Shape::Gated if i % 2 == 1 => stage.gate = Some(Gate::ConfidenceBelow(SURE)),
            Shape::Line if i > 0 => stage.inputs = vec![feed("x", i - 1, "hidden")],
            Shape::Routed if i > 0 => {
                let is = if i % 2 == 1 { Comparison::Less } else { Comparison::GreaterOrEqual };
                stage.when = Some(Condition { stage: 0, signal: Signal::Confidence, is, than: SURE });
            }
            _ => {}
        }
        stage
    }

    fn signature(&self, i: usize) -> Signature {
        let spec = |name: &str| TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![None, Some(4)] };
        let gives = if self.shape == Shape::Line && i + 1 < self.count { "hidden" } else { "probs" };
        Signature { inputs: vec![spec("x")], outputs: vec![spec(gives)] }
    }

    fn says(&self, stage: usize, row: usize) -> Says {
        let confidence = self.confidences[stage][row];
        let mut holds: Stages = 0;
        if self.shape == Shape::Routed && stage == 0 {
            for next in 1..self.count {
                holds |= Stages::from((confidence < SURE) == (next % 2 == 1)) << next;
            }
        }
        Says { signal: Some(confidence), holds, items: None }
    }
}
