//! How rows of one model share a batch where its owner says so: batches of few sizes, and rows of several lengths.
//!
//! Some engines are fast at sizes that they know and slow at others, so batches are filled up to the next allowed size. Rows
//! of different lengths (texts, sounds) cannot be stacked as they are; a model with a mask does not look at what is filled up, so rows
//! are filled up to the next of a few lengths (buckets) and run together. Here is which size and length that is, and how bytes are filled up
//! and cut back; that filling up changes no answer is tried when the model is loaded.

use std::collections::BTreeMap;

use crate::tensor::{DType, Row, Signature, Tensor, TensorSpec};

/// What the owner of a model says about its batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shapes {
    /// Batches have one of these sizes, ascending; empty: any.
    pub batch_sizes: Vec<u32>,
    /// Rows of several lengths run together; `None`: rows of one shape only.
    pub pad: Option<Padding>,
}

/// Which inputs are filled up, and how far.
#[derive(Clone, Debug, PartialEq)]
pub struct Padding {
    /// The input that tells what is there (not 0) from what was filled up (0).
    pub mask: String,
    /// Other inputs that are filled up, and with what number.
    pub inputs: BTreeMap<String, f64>,
    /// The dimension of those inputs that is a length, counted from 0, which is that of rows: at least 1.
    pub dimension: u32,
    /// The lengths, ascending. Longer rows run with others of exactly their length.
    pub buckets: Vec<u64>,
    /// Outputs that are as long as the inputs, along the same dimension: cut back to each row's own length.
    pub outputs: Vec<String>,
}

impl Shapes {
    /// Whether nothing is said.
    pub fn is_plain(&self) -> bool {
        self.batch_sizes.is_empty() && self.pad.is_none()
    }

    /// What does not fit to what a model takes and gives, or makes no sense.
    pub fn check(&self, signature: &Signature) -> Result<(), String> {
        let ascending = |sizes: &[u64]| sizes.first() != Some(&0) && sizes.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending(&self.batch_sizes.iter().map(|size| u64::from(*size)).collect::<Vec<_>>()) {
            return Err("allowed_batch_sizes are numbers above 0, each larger than the one before".into());
        }
        let fixed = signature.inputs.iter().any(|spec| spec.shape.first().is_some_and(Option::is_some));
        if fixed && !self.is_plain() {
            return Err("allowed_batch_sizes and pad are for models whose first dimension is open".into());
        }
        let Some(pad) = &self.pad else { return Ok(()) };
        if pad.buckets.is_empty() || !ascending(&pad.buckets) {
            return Err("pad: buckets are lengths above 0, each larger than the one before".into());
        }
        if pad.dimension == 0 {
            return Err("pad: dimension 0 is that of rows; lengths begin at 1".into());
        }
        if pad.inputs.contains_key(&pad.mask) {
            return Err(format!("pad: the mask {} is filled up with 0; it is not named among the inputs", pad.mask));
        }
        let open = |spec: &TensorSpec| spec.shape.get(pad.dimension as usize) == Some(&None);
        let of = |specs: &[TensorSpec], what: &str, name: &str| {
            let spec = specs.iter().find(|spec| spec.name == name).cloned();
            let known = specs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ");
            let spec = spec.ok_or_else(|| format!("pad: the model has no {what} {name}; it has {known}"))?;
            if open(&spec) {
                Ok(spec)
            } else {
                Err(format!("pad: dimension {} of {what} {spec} is not open", pad.dimension))
            }
        };
        for name in pad.filled() {
            let spec = of(&signature.inputs, "input", name)?;
            let value = pad.value(name);
            if number(spec.dtype, value).is_none() {
                return Err(format!("pad: {value} is no {} to fill input {name} up with", spec.dtype));
            }
        }
        // What is not filled up has to be the same for all rows of a batch anyway.
        pad.outputs.iter().try_for_each(|name| of(&signature.outputs, "output", name).map(drop))
    }

    /// How many rows a batch of `rows` has once it is filled up.
    pub fn filled_up(&self, rows: usize) -> usize {
        let size = self.batch_sizes.iter().map(|size| *size as usize).find(|size| *size >= rows);
        size.unwrap_or(rows)
    }
}

impl Padding {
    /// The inputs that are filled up, the mask among them.
    fn filled(&self) -> impl Iterator<Item = &str> {
        self.inputs.keys().map(String::as_str).chain([self.mask.as_str()])
    }

    /// What an input is filled up with.
    fn value(&self, input: &str) -> f64 {
        self.inputs.get(input).copied().unwrap_or(0.0)
    }

    /// By input and by output of a signature that was checked: which number to fill up with, and whether to cut back.
    pub fn plan(&self, signature: &Signature) -> PadPlan {
        let fill = |spec: &TensorSpec| {
            let filled = self.filled().any(|name| name == spec.name);
            filled.then(|| number(spec.dtype, self.value(&spec.name)).expect("it was checked"))
        };
        PadPlan {
            dimension: self.dimension as usize,
            buckets: self.buckets.clone(),
            fills: signature.inputs.iter().map(fill).collect(),
            cuts: signature.outputs.iter().map(|spec| self.outputs.contains(&spec.name)).collect(),
        }
    }
}

/// A [`Padding`] for one signature.
#[derive(Clone, Debug, PartialEq)]
pub struct PadPlan {
    dimension: usize,
    buckets: Vec<u64>,
    /// By input: the bytes of one element to fill up with; `None` where it stays as it is.
    fills: Vec<Option<Vec<u8>>>,
    /// By output.
    cuts: Vec<bool>,
}

impl PadPlan {
    /// Whether input `i` is filled up.
    pub fn fills(&self, i: usize) -> bool {
        self.fills.get(i).is_some_and(Option::is_some)
    }

    /// The largest bucket.
    pub fn longest(&self) -> u64 {
        *self.buckets.last().expect("there are buckets")
    }

    /// The shortest length that is filled up to the largest bucket.
    pub fn shortest_of_longest(&self) -> u64 {
        self.buckets.iter().rev().nth(1).map_or(1, |before| before + 1)
    }

    /// How long a row is: all its inputs that are filled up agree, or it has no length and runs as it is. So does one of length 0:
    /// with nothing to see but what was filled up, a model would answer something else.
    pub fn length(&self, row: &Row) -> Option<u64> {
        row.row?;
        let mut lengths =
            (0..row.tensors.len()).filter(|i| self.fills(*i)).map(|i| row.shape(i).get(self.dimension - 1));
        let first = *lengths.next()??;
        (first > 0 && lengths.all(|length| length == Some(&first))).then_some(first)
    }

    /// The shape that input `i` of a row of this length has in a batch.
    pub fn padded_shape(&self, row: &Row, i: usize, length: Option<u64>) -> Vec<u64> {
        let mut shape = row.shape(i).to_vec();
        if let (Some(length), true) = (length, self.fills(i)) {
            shape[self.dimension - 1] = self.bucket(length);
        }
        shape
    }

    fn bucket(&self, length: u64) -> u64 {
        self.buckets.iter().copied().find(|bucket| *bucket >= length).unwrap_or(length)
    }

    /// Adds the bytes of input `i` of a row to a batch, filled up to its bucket.
    pub fn append(&self, row: &Row, i: usize, data: &[u8], out: &mut Vec<u8>) {
        let (Some(length), Some(fill)) = (self.length(row), &self.fills[i]) else {
            out.extend_from_slice(data);
            return;
        };
        let missing = (self.bucket(length) - length) as usize;
        let inner = inner(row.shape(i), self.dimension - 1) * fill.len();
        if missing == 0 || inner == 0 {
            out.extend_from_slice(data);
            return;
        }
        for chunk in data.chunks(length as usize * inner) {
            out.extend_from_slice(chunk);
            (0..missing * inner / fill.len()).for_each(|_| out.extend_from_slice(fill));
        }
    }

    /// Whether what a batch gives to rows of this length is longer than they are.
    pub fn cuts(&self, length: u64) -> bool {
        self.bucket(length) > length && self.cuts.contains(&true)
    }

    /// What a batch gave to one of its rows, without what was filled up; or which output is not as long as the batch was.
    pub fn cut(&self, outputs: &[Tensor], number: usize, length: u64) -> Result<Vec<Tensor>, usize> {
        let padded = self.bucket(length);
        let one = |(i, tensor): (usize, &Tensor)| {
            let row = Row { tensors: std::sync::Arc::new(vec![tensor.clone()]), row: Some(number) };
            let mut shape = row.shape(0).to_vec();
            let at = self.dimension - 1;
            let mut data = row.data(0).to_vec();
            if self.cuts.get(i) == Some(&true) {
                if shape.get(at) != Some(&padded) {
                    return Err(i);
                }
                let size = tensor.dtype.size().ok_or(i)?;
                let inner = inner(&shape, at) * size;
                let kept = length as usize * inner;
                data = data.chunks((padded as usize * inner).max(1)).flat_map(|chunk| chunk[..kept].to_vec()).collect();
                shape[at] = length;
            }
            shape.insert(0, 1);
            Ok(Tensor { dtype: tensor.dtype, shape, data })
        };
        outputs.iter().enumerate().map(one).collect()
    }
}

/// Elements of one step along a dimension.
fn inner(shape: &[u64], at: usize) -> usize {
    shape[at + 1..].iter().product::<u64>() as usize
}

/// A number as the bytes of one element; `None` where the type has no such number.
pub fn number(dtype: DType, value: f64) -> Option<Vec<u8>> {
    macro_rules! whole {
        ($type:ty) => {{
            // The largest 64-bit numbers have no f64 of their own, one more than the largest has.
            let over = (<$type>::MAX / 2 + 1) as f64 * 2.0;
            let fits = value.fract() == 0.0 && value >= <$type>::MIN as f64 && value < over;
            fits.then(|| (value as $type).to_le_bytes().to_vec())
        }};
    }
    match dtype {
        DType::Bool => (value == 0.0 || value == 1.0).then(|| vec![value as u8]),
        DType::U8 => whole!(u8),
        DType::U16 => whole!(u16),
        DType::U32 => whole!(u32),
        DType::U64 => whole!(u64),
        DType::I8 => whole!(i8),
        DType::I16 => whole!(i16),
        DType::I32 => whole!(i32),
        DType::I64 => whole!(i64),
        DType::F16 | DType::Bf16 => (value == 0.0).then(|| vec![0, 0]),
        DType::F32 => (value as f32).is_finite().then(|| (value as f32).to_le_bytes().to_vec()),
        DType::F64 => value.is_finite().then(|| value.to_le_bytes().to_vec()),
        DType::String => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn spec(name: &str, dtype: DType, shape: &[Option<u64>]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
    }

    fn signature() -> Signature {
        Signature {
            inputs: vec![
                spec("ids", DType::I64, &[None, None]),
                spec("mask", DType::F32, &[None, None, Some(2)]),
                spec("temperature", DType::F32, &[None, Some(1)]),
            ],
            outputs: vec![
                spec("hidden", DType::F32, &[None, None, Some(2)]),
                spec("probs", DType::F32, &[None, Some(3)]),
            ],
        }
    }

    fn padding() -> Padding {
        Padding {
            mask: "mask".into(),
            inputs: BTreeMap::from([("ids".into(), 7.0)]),
            dimension: 1,
            buckets: vec![2, 4],
            outputs: vec!["hidden".into()],
        }
    }

    fn row(length: u64) -> Row {
        let ids: Vec<u8> = (0..length as i64).flat_map(i64::to_le_bytes).collect();
        let ids = Tensor::new(DType::I64, vec![1, length], ids).unwrap();
        let mask = Tensor::f32(&[1, length, 2], &vec![1.0; 2 * length as usize]);
        Row { tensors: Arc::new(vec![ids, mask, Tensor::f32(&[1, 1], &[0.5])]), row: Some(0) }
    }

    #[test]
    fn a_row_is_filled_up_to_its_bucket_and_cut_back() {
        let plan = padding().plan(&signature());
        let row = row(3);
        assert_eq!(plan.length(&row), Some(3));
        assert_eq!(
            (0..3).map(|i| plan.padded_shape(&row, i, Some(3))).collect::<Vec<_>>(),
            [vec![4], vec![4, 2], vec![1]]
        );
        let bytes = |i: usize| {
            let mut out = Vec::new();
            plan.append(&row, i, row.data(i), &mut out);
            out
        };
        let ids: Vec<i64> = bytes(0).as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        assert_eq!(ids, [0, 1, 2, 7]);
        let mask: Vec<f32> = bytes(1).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(mask, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(bytes(2), 0.5f32.to_le_bytes());

        let hidden: Vec<f32> = (0..16).map(|n| n as f32).collect();
        let outputs = [Tensor::f32(&[2, 4, 2], &hidden), Tensor::f32(&[2, 3], &[0.0, 0.1, 0.2, 1.0, 1.1, 1.2])];
        let cut = plan.cut(&outputs, 1, 3).unwrap();
        assert_eq!(cut[0], Tensor::f32(&[1, 3, 2], &[8.0, 9.0, 10.0, 11.0, 12.0, 13.0]));
        assert_eq!(cut[1], Tensor::f32(&[1, 3], &[1.0, 1.1, 1.2]));
        assert_eq!(
            plan.cut(&[Tensor::f32(&[2, 3, 2], &[0.0; 12])], 1, 3),
            Err(0),
            "it is not as long as the batch was"
        );
    }

    #[test]
    fn a_length_in_the_middle_is_filled_up_there() {
        let signature =
            Signature { inputs: vec![spec("mask", DType::U8, &[None, Some(2), None])], outputs: Vec::new() };
        let pad = Padding { inputs: BTreeMap::new(), dimension: 2, outputs: Vec::new(), ..padding() };
        let plan = pad.plan(&signature);
        let tensor = Tensor::new(DType::U8, vec![1, 2, 3], vec![1, 2, 3, 4, 5, 6]).unwrap();
        let row = Row { tensors: Arc::new(vec![tensor]), row: Some(0) };
        let mut out = Vec::new();
        plan.append(&row, 0, row.data(0), &mut out);
        assert_eq!(out, [1, 2, 3, 0, 4, 5, 6, 0]);
    }

    #[test]
    fn what_is_longer_than_any_bucket_or_disagrees_stays_as_it_is() {
        let plan = padding().plan(&signature());
        let long = row(9);
        assert_eq!(plan.padded_shape(&long, 0, plan.length(&long)), [9]);
        let whole = Row { row: None, ..row(3) };
        assert_eq!(plan.length(&whole), None, "nobody knows which of its dimensions are rows");
        let mut tensors = (*row(3).tensors).clone();
        tensors[1] = Tensor::f32(&[1, 2, 2], &[1.0; 4]);
        let odd = Row { tensors: Arc::new(tensors), row: Some(0) };
        assert_eq!(plan.length(&odd), None);
        let mut out = Vec::new();
        plan.append(&odd, 0, odd.data(0), &mut out);
        assert_eq!(out.len(), 24, "three numbers");
    }

    #[test]
    fn a_row_of_no_length_stays_as_it_is() {
        let plan = padding().plan(&signature());
        let none = row(0);
        assert_eq!(plan.length(&none), None, "a mask with nothing in it would hide the whole row");
        assert_eq!(plan.padded_shape(&none, 0, plan.length(&none)), [0]);
        let mut out = Vec::new();
        (0..2).for_each(|i| plan.append(&none, i, none.data(i), &mut out));
        assert_eq!(out, []);
    }

    #[test]
    fn batches_are_filled_up_to_the_next_allowed_size() {
        let shapes = Shapes { batch_sizes: vec![1, 4, 16], pad: None };
        assert_eq!([1, 2, 4, 5, 16, 17].map(|rows| shapes.filled_up(rows)), [1, 4, 4, 16, 16, 17]);
        assert_eq!(Shapes::default().filled_up(5), 5);
    }

    #[test]
    fn what_does_not_fit_the_model_is_told() {
        let shapes = |pad: Padding| Shapes { batch_sizes: Vec::new(), pad: Some(pad) };
        assert_eq!(shapes(padding()).check(&signature()), Ok(()));
        let ids = |value: f64| BTreeMap::from([("ids".to_owned(), value)]);
        for (pad, what) in [
            (Padding { mask: "masks".into(), ..padding() }, "has no input masks; it has ids, mask, temperature"),
            (
                Padding { mask: "temperature".into(), ..padding() },
                "dimension 1 of input temperature f32[-,1] is not open",
            ),
            (Padding { inputs: ids(0.5), ..padding() }, "0.5 is no i64"),
            (Padding { inputs: ids(2f64.powi(63)), ..padding() }, "is no i64"),
            (Padding { dimension: 0, ..padding() }, "dimension 0 is that of rows"),
            (Padding { buckets: vec![4, 2], ..padding() }, "each larger than the one before"),
            (Padding { buckets: Vec::new(), ..padding() }, "each larger"),
            (
                Padding { outputs: vec!["probs".into()], ..padding() },
                "dimension 1 of output probs f32[-,3] is not open",
            ),
            (Padding { inputs: BTreeMap::from([("mask".to_owned(), 0.0)]), ..padding() }, "is filled up with 0"),
        ] {
            let said = shapes(pad).check(&signature()).unwrap_err();
            assert!(said.contains(what), "{said}");
        }
        assert_eq!(number(DType::F32, 1e300), None, "it would be infinite");
        assert_eq!(number(DType::U64, 2f64.powi(64)), None);
        assert_eq!(number(DType::I8, -128.0), Some(vec![0x80]));
        let sizes = Shapes { batch_sizes: vec![4, 4], pad: None };
        assert!(sizes.check(&signature()).unwrap_err().contains("each larger than the one before"));
        let fixed = Signature { inputs: vec![spec("x", DType::F32, &[Some(8), None])], outputs: Vec::new() };
        let sizes = Shapes { batch_sizes: vec![8], pad: None };
        assert!(sizes.check(&fixed).unwrap_err().contains("first dimension is open"));
    }
}
