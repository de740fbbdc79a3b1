//! What goes from stage to stage for one row: inputs from the request and from what others gave, items that run by themselves and are
//! joined again, combinations.

use std::sync::Arc;

use super::combine::{Part, combine};
use super::gate::label;
use super::graph::{ITEMS_MAX, Run, Stages};
use super::{Endpoint, Source, Wiring};
use crate::tensor::{DType, Row, Tensor, TensorSpec};

/// A row on its way through an endpoint.
pub struct Passage<'a> {
    /// Through what.
    pub endpoint: &'a Endpoint,
    /// Its stages, wired.
    pub wiring: &'a Wiring,
    /// What came with the query.
    pub request: &'a Row,
    /// What a stage gave, where it has answered.
    pub answer: &'a dyn Fn(usize) -> Option<&'a Row>,
}

/// What a stage asks for one row.
pub enum Asks {
    /// This.
    One(Row),
    /// Each of these by itself.
    Each(Vec<Row>),
}

impl Passage<'_> {
    /// The inputs of a model's stage; or why there are none.
    pub fn asks(&self, stage: usize) -> Result<Asks, String> {
        let request = self.request;
        let sources = &self.wiring.sources[stage];
        let as_asked =
            sources.iter().enumerate().all(|(i, source)| *source == Source::Request { input: i, each: false })
                && sources.len() == request.tensors.len();
        if as_asked {
            return Ok(Asks::One(request.clone()));
        }
        if self.wiring.is_flattened(stage) {
            return self.items(stage).map(Asks::Each);
        }
        let alone = |source: &Source| {
            let (from, i) = self.given(*source)?;
            let mut shape = from.shape(i).to_vec();
            if from.row.is_some() {
                shape.insert(0, 1);
            }
            if request.row.is_some() && shape.first() != Some(&1) {
                return Err("what a stage before it gave is not one row".to_owned());
            }
            Ok(Tensor { dtype: from.tensors[i].dtype, shape, data: from.data(i).to_vec() })
        };
        let tensors = sources.iter().map(alone).collect::<Result<_, _>>()?;
        Ok(Asks::One(Row { tensors: Arc::new(tensors), row: request.row.map(|_| 0) }))
    }

    /// The items of the row: those of what is flattened, each with all of what is not.
    fn items(&self, stage: usize) -> Result<Vec<Row>, String> {
        let mut count = None;
        let mut inputs = Vec::new();
        for source in &self.wiring.sources[stage] {
            let (from, i) = self.given(*source)?;
            let part = Part::of(0, from, i, source.is_flattened());
            if source.is_flattened() {
                let found = part.items.len();
                if count.is_some_and(|count| count != found) {
                    return Err("its inputs have different numbers of items".into());
                }
                if found > ITEMS_MAX {
                    return Err(format!("a row has {found} items; {ITEMS_MAX} are the most"));
                }
                count = Some(found);
            }
            inputs.push(part.items);
        }
        let item = |position: usize| {
            let tensor = |items: &Vec<Tensor>| {
                // What is not flattened is the same for all.
                let mut tensor = items[position.min(items.len() - 1)].clone();
                tensor.shape.insert(0, 1);
                tensor
            };
            Row { tensors: Arc::new(inputs.iter().map(tensor).collect()), row: Some(0) }
        };
        Ok((0..count.unwrap_or(0)).map(item).collect())
    }

    /// What a combining stage makes of what has come.
    pub fn combined(&self, stage: usize) -> Result<Row, String> {
        let Run::Combine(how) = &self.endpoint.stages[stage].run else { return Err("it runs a model".into()) };
        let sources = self.wiring.sources[stage].iter().enumerate();
        let parts: Vec<Part> = sources
            .filter_map(|(number, source)| {
                let (from, i) = self.given(*source).ok()?;
                let list = matches!(source, Source::Stage { stage, .. } if self.wiring.is_flattened(*stage));
                Some(Part::of(number, from, i, list))
            })
            .collect();
        combine(&how.how, &parts)
    }

    /// What the row gives a source, and which of its tensors.
    fn given(&self, source: Source) -> Result<(&Row, usize), String> {
        match source {
            Source::Request { input, .. } => Ok((self.request, input)),
            Source::Stage { stage, output, .. } => match (self.answer)(stage) {
                Some(row) if output < row.tensors.len() => Ok((row, output)),
                _ => Err("a stage before it gave less than it declares".into()),
            },
        }
    }
}

/// What the gate after a stage looks at in what it gave, where the endpoint has that; the confidence where there is no gate.
pub fn signal(endpoint: &Endpoint, wiring: &Wiring, stage: usize, outputs: &Row) -> Option<f32> {
    let output = wiring.confidence[stage]?;
    let numbers = numbers(outputs, output)?;
    if wiring.labels[stage] != Some(output) {
        return numbers.first().copied();
    }
    match endpoint.stages.get(stage + 1).and_then(|next| next.gate.as_ref()) {
        Some(gate) => gate.signal(&numbers),
        None => label(&numbers).map(|(_, confidence)| confidence),
    }
}

/// The class that a stage says, where the endpoint has class probabilities.
pub fn class(wiring: &Wiring, stage: usize, outputs: &Row) -> Option<u32> {
    label(&numbers(outputs, wiring.labels[stage]?)?).map(|(class, _)| class as u32)
}

/// The stages whose condition looks at what a stage gave, and holds.
pub fn holds(endpoint: &Endpoint, wiring: &Wiring, stage: usize, outputs: &Row) -> Stages {
    let holds = |(of, output): &(usize, usize)| {
        let when = endpoint.stages[*of].when.as_ref()?;
        when.holds(&numbers(outputs, *output)?).then_some(1 << of)
    };
    wiring.conditions[stage].iter().filter_map(holds).fold(0, |mask: Stages, bit: Stages| mask | bit)
}

fn numbers(outputs: &Row, i: usize) -> Option<Vec<f32>> {
    let floats = outputs.tensors.get(i)?.dtype == DType::F32;
    floats.then(|| outputs.data(i).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Rows as one row of lists; `None` where they do not stack.
pub fn stacked(rows: &[Row]) -> Option<Row> {
    let first = rows.first()?;
    let tensor = |i: usize| {
        let mut shape = vec![1, rows.len() as u64];
        shape.extend(first.shape(i));
        let alike =
            rows.iter().all(|row| row.shape(i) == first.shape(i) && row.tensors[i].dtype == first.tensors[i].dtype);
        alike.then(|| Tensor { dtype: first.tensors[i].dtype, shape, data: Row::data_of(rows, i).concat() })
    };
    let tensors = (0..first.tensors.len()).map(tensor).collect::<Option<_>>()?;
    Some(Row { tensors: Arc::new(tensors), row: Some(0) })
}

/// No items: lists without any, as the stage gives them.
pub fn empty(gives: &[TensorSpec]) -> Row {
    let tensor = |spec: &TensorSpec| {
        let rest = spec.shape.iter().skip(2).map(|dimension| dimension.unwrap_or(0));
        Tensor { dtype: spec.dtype, shape: [1, 0].into_iter().chain(rest).collect(), data: Vec::new() }
    };
    Row { tensors: Arc::new(gives.iter().map(tensor).collect()), row: Some(0) }
}
