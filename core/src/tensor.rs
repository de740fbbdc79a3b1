//! Tensors and signatures: element type, shape, and the bytes, whatever engine computes with them.

use std::fmt;
use std::sync::Arc;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum DType {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    Bf16,
    F32,
    F64,
    /// Byte strings of any length (ONNX: UTF-8 text).
    String,
}

impl DType {
    /// All of them, in the order of the wire's enumeration.
    pub const ALL: [DType; 14] = [
        DType::Bool,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::F16,
        DType::Bf16,
        DType::F32,
        DType::F64,
        DType::String,
    ];

    /// Bytes of one element; `None` for strings.
    pub const fn size(self) -> Option<usize> {
        Some(match self {
            DType::Bool | DType::U8 | DType::I8 => 1,
            DType::U16 | DType::I16 | DType::F16 | DType::Bf16 => 2,
            DType::U32 | DType::I32 | DType::F32 => 4,
            DType::U64 | DType::I64 | DType::F64 => 8,
            DType::String => return None,
        })
    }

    /// The word in JSON and messages: `f32`, `string`, …
    pub const fn word(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::String => "string",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What is wrong with a tensor as it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadTensor {
    #[error("shape {shape:?} has more elements than can be counted")]
    TooLarge { shape: Vec<u64> },
    #[error("{dtype} tensor of shape {shape:?} needs {expected} bytes, got {got}")]
    Length { dtype: DType, shape: Vec<u64>, expected: u64, got: u64 },
    #[error(
        "string tensor of shape {shape:?} does not hold {expected} strings, each a little-endian u32 length and its bytes"
    )]
    Strings { shape: Vec<u64>, expected: u64 },
}

/// An owned tensor: row-major, little-endian. A string is its length as a little-endian u32, then its bytes
/// (as in the open inference protocol); a bool is one byte, 0 or 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Dimensions; empty for a scalar.
    pub shape: Vec<u64>,
    /// The elements, see above for the layout.
    pub data: Vec<u8>,
}

impl Tensor {
    /// A tensor whose bytes fit its type and shape.
    pub fn new(dtype: DType, shape: Vec<u64>, data: Vec<u8>) -> Result<Self, BadTensor> {
        check(dtype, &shape, &data)?;
        Ok(Tensor { dtype, shape, data })
    }

    /// An f32 tensor from numbers. Panics if their count is not the shape's product.
    pub fn f32(shape: &[u64], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(DType::F32, shape.to_vec(), data).expect("as many values as the shape says")
    }

    /// A string tensor from byte strings. Panics if their count is not the shape's product.
    pub fn strings<S: AsRef<[u8]>>(shape: &[u64], values: &[S]) -> Self {
        let mut data = Vec::new();
        for value in values {
            data.extend((value.as_ref().len() as u32).to_le_bytes());
            data.extend(value.as_ref());
        }
        Tensor::new(DType::String, shape.to_vec(), data).expect("as many strings as the shape says")
    }

    /// The numbers of an f32 tensor; `None` for another type.
    pub fn as_f32(&self) -> Option<Vec<f32>> {
        (self.dtype == DType::F32)
            .then(|| self.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect())
    }

    /// Numbers as they are written, i64 or f64, as another type: whole numbers stay what they are, fractions are rounded to the width that a
    /// float has. `None` where that is not to be had: 300 is no u8, 16777217 and 1e300 are no f32, 0.5 no integer, text no number, and of half floats
    /// nothing is known here.
    pub fn written_as(&self, dtype: DType) -> Option<Tensor> {
        if self.dtype == dtype {
            return Some(self.clone());
        }
        let words = self.data.as_chunks::<8>().0;
        let whole = || words.iter().map(|bytes| i64::from_le_bytes(*bytes));
        let data: Option<Vec<u8>> = match (self.dtype, dtype) {
            (DType::I64, DType::F64) => {
                joined(whole().map(|n| (n as f64 as i128 == i128::from(n)).then_some((n as f64).to_le_bytes())))
            }
            (DType::I64, DType::F32) => {
                joined(whole().map(|n| (n as f32 as i128 == i128::from(n)).then_some((n as f32).to_le_bytes())))
            }
            (DType::F64, DType::F32) => {
                let numbers = words.iter().map(|bytes| f64::from_le_bytes(*bytes));
                // What is finite stays so.
                joined(numbers.map(|n| ((n as f32).is_finite() || !n.is_finite()).then_some((n as f32).to_le_bytes())))
            }
            (DType::I64, DType::U8) => joined(whole().map(|n| Some(u8::try_from(n).ok()?.to_le_bytes()))),
            (DType::I64, DType::U16) => joined(whole().map(|n| Some(u16::try_from(n).ok()?.to_le_bytes()))),
            (DType::I64, DType::U32) => joined(whole().map(|n| Some(u32::try_from(n).ok()?.to_le_bytes()))),
            (DType::I64, DType::U64) => joined(whole().map(|n| Some(u64::try_from(n).ok()?.to_le_bytes()))),
            (DType::I64, DType::I8) => joined(whole().map(|n| Some(i8::try_from(n).ok()?.to_le_bytes()))),
            (DType::I64, DType::I16) => joined(whole().map(|n| Some(i16::try_from(n).ok()?.to_le_bytes()))),
            (DType::I64, DType::I32) => joined(whole().map(|n| Some(i32::try_from(n).ok()?.to_le_bytes()))),
            _ => None,
        };
        Some(Tensor { dtype, shape: self.shape.clone(), data: data? })
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        elements(&self.shape).expect("checked when it was made")
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Byte ranges of the slices along the first dimension, one per row. `None` for a scalar.
    pub fn rows(&self) -> Option<Ranges> {
        let count = *self.shape.first()? as usize;
        if self.dtype != DType::String {
            let row = self.data.len().checked_div(count).unwrap_or(0);
            return Some((0..count).map(|i| i * row..(i + 1) * row).collect());
        }
        let per_row = elements(&self.shape[1..]).expect("checked when it was made");
        let mut start = 0;
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            let mut end = start;
            for _ in 0..per_row {
                end += 4 + u32::from_le_bytes(self.data[end..end + 4].try_into().expect("four bytes")) as usize;
            }
            rows.push(start..end);
            start = end;
        }
        Some(rows)
    }
}

/// All of them in a row; nothing where one is not to be had.
fn joined<const N: usize>(mut elements: impl Iterator<Item = Option<[u8; N]>>) -> Option<Vec<u8>> {
    elements.try_fold(Vec::new(), |mut all, bytes| {
        all.extend(bytes?);
        Some(all)
    })
}

/// Byte ranges, one a row.
pub type Ranges = Vec<std::ops::Range<usize>>;

/// One query's share of some tensors: a row of each along the first dimension, or all of them as they are.
///
/// Calls and batches keep their tensors whole behind an [`Arc`]; a row only points into them, so that it is copied
/// once into the batch that runs it and once into the message that answers it.
#[derive(Clone, Debug)]
pub struct Row {
    /// In the order of the signature that they belong to (inputs or outputs).
    pub tensors: Arc<Vec<Tensor>>,
    /// Which row of each; `None` when the tensors as they are belong to this one query.
    pub row: Option<usize>,
}

impl Row {
    /// Shape of tensor `i` as this query sees it: without the first dimension where it is a row.
    pub fn shape(&self, i: usize) -> &[u64] {
        let shape = &self.tensors[i].shape;
        if self.row.is_some() { &shape[1..] } else { shape }
    }

    /// Bytes of tensor `i` that belong to this query. Panics where the row does not exist: rows are counted when a call enters.
    pub fn data(&self, i: usize) -> &[u8] {
        let tensor = &self.tensors[i];
        match self.row {
            None => &tensor.data,
            Some(row) if tensor.dtype == DType::String => {
                &tensor.data[tensor.rows().expect("rows have a first dimension")[row].clone()]
            }
            Some(row) => {
                let size = tensor.data.len() / tensor.shape[0].max(1) as usize;
                &tensor.data[row * size..(row + 1) * size]
            }
        }
    }

    /// How many bytes belong to this query; of text, as many as to each of the rows that lie beside it.
    pub fn bytes(&self) -> usize {
        let rows = |tensor: &Tensor| if self.row.is_some() { tensor.shape[0].max(1) as usize } else { 1 };
        self.tensors.iter().map(|tensor| tensor.data.len() / rows(tensor)).sum()
    }

    /// Bytes of tensor `i` of each of these rows. Strings are walked once a tensor, not once a row.
    pub fn data_of(rows: &[Row], i: usize) -> Vec<&[u8]> {
        let mut walked: Option<(&Arc<Vec<Tensor>>, Ranges)> = None;
        let mut bytes = Vec::with_capacity(rows.len());
        for row in rows {
            let tensor = &row.tensors[i];
            let Some(number) = row.row.filter(|_| tensor.dtype == DType::String) else {
                bytes.push(row.data(i));
                continue;
            };
            if !walked.as_ref().is_some_and(|(tensors, _)| Arc::ptr_eq(tensors, &row.tensors)) {
                walked = Some((&row.tensors, tensor.rows().expect("rows have a first dimension")));
            }
            let (_, ranges) = walked.as_ref().expect("just walked");
            bytes.push(&tensor.data[ranges[number].clone()]);
        }
        bytes
    }

    /// The tensors that rows were cut from, where these are all the rows of them in their order: as stacking would make them again.
    pub fn uncut(rows: &[Row]) -> Option<&[Tensor]> {
        let tensors = &rows.first()?.tensors;
        let in_order = |(number, row): (usize, &Row)| row.row == Some(number) && Arc::ptr_eq(&row.tensors, tensors);
        let all = |tensor: &Tensor| tensor.shape.first() == Some(&(rows.len() as u64));
        (rows.iter().enumerate().all(in_order) && tensors.iter().all(all)).then_some(tensors)
    }

    /// Whether two rows may be parts of one batch: same types and shapes apart from the first dimension.
    pub fn merges_with(&self, other: &Row) -> bool {
        self.row.is_some()
            && other.row.is_some()
            && self.tensors.len() == other.tensors.len()
            && (0..self.tensors.len())
                .all(|i| self.tensors[i].dtype == other.tensors[i].dtype && self.shape(i) == other.shape(i))
    }
}

/// Product of the dimensions; `None` when it does not fit.
pub fn elements(shape: &[u64]) -> Option<u64> {
    // A zero anywhere makes the product zero, but the others must not overflow on the way.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
}

/// Whether `data` is exactly what a tensor of this type and shape holds. Allocates nothing.
pub fn check(dtype: DType, shape: &[u64], data: &[u8]) -> Result<(), BadTensor> {
    let count = elements(shape).ok_or_else(|| BadTensor::TooLarge { shape: shape.to_vec() })?;
    match dtype.size() {
        Some(size) => {
            let expected =
                count.checked_mul(size as u64).ok_or_else(|| BadTensor::TooLarge { shape: shape.to_vec() })?;
            let got = data.len() as u64;
            if got != expected {
                return Err(BadTensor::Length { dtype, shape: shape.to_vec(), expected, got });
            }
        }
        None => {
            let bad = || BadTensor::Strings { shape: shape.to_vec(), expected: count };
            let mut rest = data;
            for _ in 0..count {
                let (length, after) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
                rest = after.get(u32::from_le_bytes(*length) as usize..).ok_or_else(bad)?;
            }
            if !rest.is_empty() {
                return Err(bad());
            }
        }
    }
    Ok(())
}

/// The byte strings of a string tensor's data, which has been checked; none beyond the first that is not whole.
pub fn texts(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (text, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        Some(text)
    })
}

/// A tensor's name, element type and shape as a model declares it; `None` is a dimension left open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorSpec {
    /// As the model spells it: any text.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, the first one included; `None` where any size goes. Empty for a scalar.
    pub shape: Vec<Option<u64>>,
}

impl TensorSpec {
    /// Whether a tensor of this type and shape is one of these.
    pub fn accepts(&self, dtype: DType, shape: &[u64]) -> bool {
        self.dtype == dtype
            && self.shape.len() == shape.len()
            && self.shape.iter().zip(shape).all(|(want, got)| want.is_none_or(|want| want == *got))
    }

    /// Likewise, whatever its first dimension is: how many rows there are is the caller's affair.
    pub fn accepts_rows(&self, dtype: DType, shape: &[u64]) -> bool {
        let rest = |(want, got): (&Option<u64>, &u64)| want.is_none_or(|want| want == *got);
        self.dtype == dtype && self.shape.len() == shape.len() && self.shape.iter().zip(shape).skip(1).all(rest)
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}[", self.name, self.dtype)?;
        for (i, dim) in self.shape.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match dim {
                Some(n) => write!(f, "{comma}{n}")?,
                None => write!(f, "{comma}-")?,
            }
        }
        f.write_str("]")
    }
}

/// What a model takes and gives, in the model's own order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// Inputs, all required.
    pub inputs: Vec<TensorSpec>,
    /// Outputs as declared; what comes out may differ in shape where the file is wrong.
    pub outputs: Vec<TensorSpec>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_fit_type_and_shape() {
        assert!(check(DType::F32, &[2, 3], &[0; 24]).is_ok());
        assert!(check(DType::F32, &[2, 3], &[0; 23]).is_err());
        assert!(check(DType::F64, &[], &[0; 8]).is_ok());
        assert!(check(DType::U8, &[u64::MAX, 2], &[]).is_err());
        assert!(check(DType::F64, &[u64::MAX / 4], &[]).is_err());
        assert!(check(DType::U8, &[u64::MAX, 0, 7], &[]).is_ok());
    }

    #[test]
    fn written_numbers_are_what_a_type_can_hold() {
        let whole = |numbers: &[i64]| {
            let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            Tensor::new(DType::I64, vec![1, numbers.len() as u64], data).unwrap()
        };
        assert_eq!(
            whole(&[1, 255]).written_as(DType::U8).map(|tensor| (tensor.data, tensor.shape)),
            Some((vec![1, 255], vec![1, 2]))
        );
        assert_eq!(whole(&[-2]).written_as(DType::I16).unwrap().data, (-2i16).to_le_bytes());
        assert_eq!(whole(&[3, -1]).written_as(DType::F32), Some(Tensor::f32(&[1, 2], &[3.0, -1.0])));
        let fraction = Tensor::new(DType::F64, vec![1], 0.1f64.to_le_bytes().to_vec()).unwrap();
        assert_eq!(fraction.written_as(DType::F32), Some(Tensor::f32(&[1], &[0.1])));
        assert_eq!(fraction.written_as(DType::F64), Some(fraction.clone()));
        for (tensor, dtype) in [
            (whole(&[1, 256]), DType::U8),
            (whole(&[-1]), DType::U64),
            (whole(&[1]), DType::Bool),
            (whole(&[1]), DType::F16),
            (whole(&[16_777_217]), DType::F32),
            (whole(&[(1 << 53) + 1]), DType::F64),
            (Tensor::new(DType::F64, vec![1], 1e300f64.to_le_bytes().to_vec()).unwrap(), DType::F32),
            (fraction, DType::I64),
            (Tensor::strings(&[1], &["1"]), DType::I64),
        ] {
            assert_eq!(tensor.written_as(dtype), None, "{} as {dtype}", tensor.dtype);
        }
    }

    #[test]
    fn strings_are_walked_not_trusted() {
        let tensor = Tensor::strings(&[2, 2], &["a", "", "xyz", "é"]);
        assert_eq!(tensor.rows().unwrap(), [0..9, 9..22]);
        assert!(check(DType::String, &[1], &[5, 0, 0, 0, 1]).is_err());
        assert!(check(DType::String, &[1], &[1, 0, 0, 0, 1, 9]).is_err());
        assert!(check(DType::String, &[1 << 60], &[]).is_err());
    }

    #[test]
    fn rows_of_strings_have_the_same_bytes_together_as_alone() {
        let call = |values: &[&str]| Arc::new(vec![Tensor::f32(&[3], &[0.0; 3]), Tensor::strings(&[3], values)]);
        let (a, b) = (call(&["a", "", "xyz"]), call(&["1", "22", "333"]));
        let rows: Vec<Row> = [(&a, 2), (&a, 0), (&b, 1), (&a, 1)]
            .map(|(tensors, row)| Row { tensors: Arc::clone(tensors), row: Some(row) })
            .into();
        for i in [0, 1] {
            assert_eq!(Row::data_of(&rows, i), rows.iter().map(|row| row.data(i)).collect::<Vec<_>>());
        }
        assert_eq!(Row::data_of(&rows, 1)[0], b"\x03\0\0\0xyz");
        let whole = [Row { tensors: b, row: None }];
        assert_eq!(Row::data_of(&whole, 1), [&whole[0].tensors[1].data[..]]);
    }

    #[test]
    fn only_all_the_rows_of_one_call_in_their_order_are_uncut() {
        let call = |rows: u64| Arc::new(vec![Tensor::f32(&[rows, 2], &vec![0.5; 2 * rows as usize])]);
        let of = |tensors: &Arc<Vec<Tensor>>, rows: &[usize]| -> Vec<Row> {
            rows.iter().map(|row| Row { tensors: Arc::clone(tensors), row: Some(*row) }).collect()
        };
        let (three, other) = (call(3), call(3));
        let uncut = of(&three, &[0, 1, 2]);
        assert!(Row::uncut(&uncut).is_some_and(|tensors| std::ptr::eq(tensors, &three[..])));
        assert!(Row::uncut(&of(&call(1), &[0])).is_some());
        for cut in [&[][..], &[0, 1], &[0, 2, 1], &[1, 2, 0], &[0, 1, 2, 2]] {
            assert_eq!(Row::uncut(&of(&three, cut)), None, "{cut:?}");
        }
        assert_eq!(Row::uncut(&[of(&three, &[0, 1]), of(&other, &[2])].concat()), None, "of two calls");
        assert_eq!(Row::uncut(&[Row { tensors: call(1), row: None }]), None, "no row");
    }

    #[test]
    fn of_rows_any_number_is_accepted_and_nothing_else() {
        let spec = TensorSpec { name: "x".into(), dtype: DType::F32, shape: vec![Some(4), None, Some(2)] };
        assert!(spec.accepts_rows(DType::F32, &[9, 1, 2]) && !spec.accepts(DType::F32, &[9, 1, 2]));
        for (dtype, shape) in [(DType::F64, &[9, 1, 2][..]), (DType::F32, &[9, 1, 3]), (DType::F32, &[9, 1])] {
            assert!(!spec.accepts_rows(dtype, shape), "{dtype}{shape:?}");
        }
    }

    #[test]
    fn rows_cover_the_data() {
        let tensor = Tensor::f32(&[3, 2], &[0.0; 6]);
        assert_eq!(tensor.rows().unwrap(), [0..8, 8..16, 16..24]);
        assert_eq!(Tensor::f32(&[0, 2], &[]).rows().unwrap(), []);
        assert_eq!(Tensor::f32(&[], &[1.0]).rows(), None);
    }
}
