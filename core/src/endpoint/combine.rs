//! What combining stages compute: see [`How`].

use std::sync::Arc;

use super::graph::How;
use crate::tensor::{DType, Row, Tensor};

/// Share of the means in a vote: enough to tell classes with as many votes apart, and no more.
const TIE: f64 = 1e-3;

/// One output of what came, each with its number among the inputs that were wired. Lists, as flattened stages give them, count as
/// their items. The output is one row; or why there is none.
pub fn combine(how: &How, came: &[Part]) -> Result<Row, String> {
    let first = came.iter().flat_map(|part| &part.items).next().ok_or("there is nothing to combine")?;
    let shape = first.shape.clone();
    if let How::Concat = how {
        return concat(first.dtype, &shape, came);
    }
    let mut items = Vec::new();
    for part in came {
        let weight = if let How::Weighted(weights) = how { weights[part.input] } else { 1.0 };
        for item in &part.items {
            if item.shape != shape {
                return Err(format!("inputs of shapes {shape:?} and {:?} cannot be combined by element", item.shape));
            }
            items.push((weight, item.as_f32().ok_or_else(|| format!("an input is {}, not f32", item.dtype))?));
        }
    }
    let total: f64 = items.iter().map(|(weight, _)| weight).sum();
    let mean = |i: usize| items.iter().map(|(weight, item)| weight * f64::from(item[i])).sum::<f64>() / total;
    let length = items[0].1.len();
    let numbers: Vec<f32> = match how {
        How::Vote => {
            let mut votes = vec![0.0; length];
            for (_, item) in &items {
                match super::gate::label(item) {
                    Some((class, confidence)) if !confidence.is_nan() => votes[class] += 1.0,
                    _ => {}
                }
            }
            let tie = TIE.min(0.5 / (items.len() as f64 + 1.0));
            (0..length).map(|i| ((1.0 - tie) * votes[i] / total + tie * mean(i)) as f32).collect()
        }
        _ => (0..length).map(|i| mean(i) as f32).collect(),
    };
    let mut rows = vec![1];
    rows.extend(&shape);
    Ok(Row { tensors: Arc::new(vec![Tensor::f32(&rows, &numbers)]), row: Some(0) })
}

/// What one input brings.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its number among the inputs.
    pub input: usize,
    /// One item, or those of a list; shapes are those of rows.
    pub items: Vec<Tensor>,
}

impl Part {
    /// Of output `i` of a stage for one row; `list`: it is a list of items.
    pub fn of(input: usize, row: &Row, i: usize, list: bool) -> Part {
        let (dtype, shape, data) = (row.tensors[i].dtype, row.shape(i), row.data(i));
        let whole = Tensor { dtype, shape: shape.to_vec(), data: data.to_vec() };
        if !list {
            return Part { input, items: vec![whole] };
        }
        let ranges = whole.rows().unwrap_or_default();
        let item =
            |range: std::ops::Range<usize>| Tensor { dtype, shape: shape[1..].to_vec(), data: data[range].to_vec() };
        Part { input, items: ranges.into_iter().map(item).collect() }
    }
}

fn concat(dtype: DType, shape: &[u64], came: &[Part]) -> Result<Row, String> {
    let rest = shape.get(1..).ok_or("numbers without a dimension cannot stand one after the other")?;
    let (mut length, mut data) = (0, Vec::new());
    for item in came.iter().flat_map(|part| &part.items) {
        if item.dtype != dtype || item.shape.get(1..) != Some(rest) {
            return Err(format!(
                "{dtype} {shape:?} and {} {:?} cannot stand one after the other",
                item.dtype, item.shape
            ));
        }
        length += item.shape[0];
        data.extend_from_slice(&item.data);
    }
    let mut shape = vec![1, length];
    shape.extend(rest);
    Ok(Row { tensors: Arc::new(vec![Tensor { dtype, shape, data }]), row: Some(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(input: usize, numbers: &[f32]) -> Part {
        let row = Row { tensors: Arc::new(vec![Tensor::f32(&[1, numbers.len() as u64], numbers)]), row: Some(0) };
        Part::of(input, &row, 0, false)
    }

    fn numbers(how: &How, came: &[Part]) -> Vec<f32> {
        combine(how, came).expect("it can be combined").tensors[0].as_f32().unwrap()
    }

    #[test]
    fn means_count_what_came() {
        let came = [part(0, &[0.2, 0.8]), part(2, &[0.6, 0.4])];
        assert_eq!(numbers(&How::Mean, &came), [0.4, 0.6]);
        let weighted = numbers(&How::Weighted(vec![3.0, 9.0, 1.0]), &came);
        assert!((weighted[0] - 0.3).abs() < 1e-6 && (weighted[1] - 0.7).abs() < 1e-6, "{weighted:?}");
    }

    #[test]
    fn a_vote_goes_by_heads_and_a_tie_by_means() {
        let came = [part(0, &[0.6, 0.4, 0.0]), part(1, &[0.6, 0.4, 0.0]), part(2, &[0.0, 0.9, 0.1])];
        let votes = numbers(&How::Vote, &came);
        assert!((votes[0] - 2.0 / 3.0).abs() < 2e-3 && (votes[1] - 1.0 / 3.0).abs() < 2e-3, "{votes:?}");
        let tied = numbers(&How::Vote, &came[1..]);
        assert!(tied[1] > tied[0] && (tied[0] - 0.5).abs() < 2e-3, "{tied:?}");
        let nan = numbers(&How::Vote, &[part(0, &[f32::NAN, 0.1]), part(1, &[0.9, 0.1])]);
        assert!(nan[0].is_nan() && nan[1] < 0.1, "what is not a number has no vote, and is not hidden: {nan:?}");
    }

    #[test]
    fn concatenation_takes_what_stacks() {
        let joined = combine(&How::Concat, &[part(0, &[1.0]), part(1, &[2.0, 3.0])]).unwrap();
        assert_eq!((joined.shape(0), joined.tensors[0].as_f32().unwrap()), ([3].as_slice(), vec![1.0, 2.0, 3.0]));
        assert!(combine(&How::Mean, &[part(0, &[1.0]), part(1, &[2.0, 3.0])]).unwrap_err().contains("shapes"));
        assert!(combine(&How::Mean, &[]).unwrap_err().contains("nothing"));
    }

    #[test]
    fn a_list_counts_as_its_items() {
        let list = Row { tensors: Arc::new(vec![Tensor::f32(&[1, 2, 2], &[0.0, 1.0, 1.0, 0.0])]), row: Some(0) };
        let part = Part::of(0, &list, 0, true);
        assert_eq!(part.items.len(), 2);
        assert_eq!(numbers(&How::Mean, std::slice::from_ref(&part)), [0.5, 0.5]);
        assert_eq!(numbers(&How::Concat, &[part]), [0.0, 1.0, 1.0, 0.0]);
    }
}
