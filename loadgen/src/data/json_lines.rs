//! JSON lines: one row a line.

use serde_json::Value;
use weir_core::tensor::{DType, Tensor, TensorSpec};
use weir_schema::oip::json::read_element;

/// Inputs by name, as they were read.
#[derive(Clone, Debug)]
pub struct Lines {
    columns: Vec<Column>,
    /// How many lines.
    pub rows: usize,
}

#[derive(Clone, Debug)]
struct Column {
    name: String,
    /// Of a row.
    shape: Vec<u64>,
    values: Vec<Value>,
}

/// The inputs and, where every line has one, the labels.
pub fn parse(text: &str) -> Result<(Lines, Option<Vec<i64>>), String> {
    let mut columns: Vec<Column> = Vec::new();
    let mut labels: Vec<i64> = Vec::new();
    let mut rows = 0;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |why: String| format!("line {}: {why}", number + 1);
        let value: Value = serde_json::from_str(line).map_err(|e| at(format!("it is no JSON ({e})")))?;
        let mut inputs: Vec<(String, Value)> = match value {
            Value::Object(fields) => fields.into_iter().collect(),
            other => vec![(String::new(), other)],
        };
        if let Some(i) = inputs.iter().position(|(name, _)| name == "label") {
            let label = inputs.remove(i).1;
            labels.push(label.as_i64().ok_or_else(|| at("its label is no whole number".into()))?);
        }
        if rows == 0 {
            for (name, value) in &inputs {
                let mut shape = Vec::new();
                let mut inner = value;
                while let Value::Array(items) = inner {
                    shape.push(items.len() as u64);
                    inner = items.first().unwrap_or(&Value::Null);
                }
                columns.push(Column { name: name.clone(), shape, values: Vec::new() });
            }
        }
        if inputs.len() != columns.len() {
            return Err(at(format!("it has {} inputs, and the first line has {}", inputs.len(), columns.len())));
        }
        for (name, value) in inputs {
            let column = columns.iter_mut().find(|column| column.name == name);
            let column = column.ok_or_else(|| at(format!("the first line has no input {name:?}")))?;
            flatten(value, &column.shape, &mut column.values).map_err(at)?;
        }
        rows += 1;
    }
    if !labels.is_empty() && labels.len() != rows {
        return Err(format!("{} of {rows} lines have a label; give all one or none", labels.len()));
    }
    Ok((Lines { columns, rows }, Some(labels).filter(|labels| !labels.is_empty())))
}

fn flatten(value: Value, shape: &[u64], values: &mut Vec<Value>) -> Result<(), String> {
    match (value, shape) {
        (Value::Array(items), [length, inner @ ..]) if items.len() as u64 == *length => {
            items.into_iter().try_for_each(|item| flatten(item, inner, values))
        }
        (value @ (Value::Number(_) | Value::String(_) | Value::Bool(_)), []) => {
            values.push(value);
            Ok(())
        }
        _ => Err(format!("it has not the shape of the first line ({shape:?} from some point on)")),
    }
}

impl Lines {
    /// In the element types that `inputs` want; f32 where it is not told, strings as they are.
    pub fn tensors(&self, inputs: &[TensorSpec]) -> Result<Vec<(String, Tensor)>, String> {
        self.columns
            .iter()
            .map(|column| {
                let only = matches!((inputs, column.name.is_empty()), ([_], true));
                let spec = inputs.iter().find(|spec| only || spec.name == column.name);
                let text = column.values.first().is_some_and(Value::is_string);
                let dtype = spec.map_or(if text { DType::String } else { DType::F32 }, |spec| spec.dtype);
                let name = spec.map_or(&column.name, |spec| &spec.name);
                // A flat row goes where the same number of elements is wanted in another shape.
                let row = spec.map_or_else(|| column.shape.clone(), |spec| reshaped(&column.shape, spec));
                let shape = [&[self.rows as u64], &row[..]].concat();
                let mut data = Vec::new();
                for value in &column.values {
                    if !read_element(value, dtype, &mut data) {
                        return Err(format!("{value} in {name:?} is no {dtype}, which is wanted"));
                    }
                }
                Ok((name.clone(), Tensor::new(dtype, shape, data).map_err(|bad| bad.to_string())?))
            })
            .collect()
    }
}

fn reshaped(row: &[u64], spec: &TensorSpec) -> Vec<u64> {
    let wanted: Option<Vec<u64>> = spec.shape.get(1..).and_then(|dims| dims.iter().copied().collect());
    match wanted {
        Some(wanted) if row.len() == 1 && wanted.iter().product::<u64>() == row[0] => wanted,
        _ => row.to_vec(),
    }
}
