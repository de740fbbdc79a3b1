//! The open inference protocol: its words, and the messages of its gRPC service.
//!
//! `inference` is made from `schema/oip/inference.proto` and checked in, so that a build needs no protoc; `tests/oip.rs` compares it with
//! a fresh generation.

use weir_core::tensor::{DType, texts};

use self::inference::InferTensorContents;

pub mod json;

#[allow(clippy::all, missing_docs, unused)]
#[rustfmt::skip]
pub mod inference;

/// The service described by itself, as reflection tells it: an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!("inference.fds");

/// The header that tells how long the JSON of a body is which tensors follow.
pub const HEADER_LENGTH: &str = "inference-header-content-length";

const NAMES: [(&str, DType); 14] = [
    ("BOOL", DType::Bool),
    ("UINT8", DType::U8),
    ("UINT16", DType::U16),
    ("UINT32", DType::U32),
    ("UINT64", DType::U64),
    ("INT8", DType::I8),
    ("INT16", DType::I16),
    ("INT32", DType::I32),
    ("INT64", DType::I64),
    ("FP16", DType::F16),
    ("BF16", DType::Bf16),
    ("FP32", DType::F32),
    ("FP64", DType::F64),
    ("BYTES", DType::String),
];

/// The protocol's word for an element type.
pub fn word(dtype: DType) -> &'static str {
    NAMES.iter().find(|(_, known)| *known == dtype).expect("all are listed").0
}

/// The element type of a word.
pub fn dtype(word: &str) -> Option<DType> {
    NAMES.iter().find(|(known, _)| *known == word).map(|(_, dtype)| *dtype)
}

/// Typed contents as bytes; or what is wrong with them: numbers that their type cannot hold, or contents in the place of another type. Of
/// half floats there are none.
pub fn bytes_of(typed: &InferTensorContents, dtype: DType) -> Result<Vec<u8>, String> {
    fn narrow<T: Copy + std::fmt::Display, N: TryFrom<T>>(values: &[T], dtype: DType) -> Result<Vec<N>, String> {
        let one = |value: &T| N::try_from(*value).map_err(|_| format!("{value} is no {}", word(dtype)));
        values.iter().map(one).collect()
    }
    let place = contents_of(dtype);
    if let Some((other, _)) = lengths(typed).into_iter().find(|(name, length)| *length > 0 && Some(*name) != place) {
        let place = place.unwrap_or("raw_input_contents");
        return Err(format!("{} goes into {place}, and there is something in {other}", word(dtype)));
    }
    Ok(match dtype {
        DType::Bool => typed.bool_contents.iter().map(|b| u8::from(*b)).collect(),
        DType::U8 => narrow::<u32, u8>(&typed.uint_contents, dtype)?,
        DType::U16 => narrow::<u32, u16>(&typed.uint_contents, dtype)?.into_iter().flat_map(u16::to_le_bytes).collect(),
        DType::U32 => typed.uint_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::U64 => typed.uint64_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::I8 => narrow::<i32, i8>(&typed.int_contents, dtype)?.into_iter().map(|n| n as u8).collect(),
        DType::I16 => narrow::<i32, i16>(&typed.int_contents, dtype)?.into_iter().flat_map(i16::to_le_bytes).collect(),
        DType::I32 => typed.int_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::I64 => typed.int64_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::F32 => typed.fp32_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::F64 => typed.fp64_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::String => {
            let with_length = |text: &Vec<u8>| [&(text.len() as u32).to_le_bytes(), text.as_slice()].concat();
            typed.bytes_contents.iter().flat_map(with_length).collect()
        }
        DType::F16 | DType::Bf16 => Vec::new(),
    })
}

/// The typed contents of an element type; half floats have none.
fn contents_of(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::Bool => "bool_contents",
        DType::U8 | DType::U16 | DType::U32 => "uint_contents",
        DType::U64 => "uint64_contents",
        DType::I8 | DType::I16 | DType::I32 => "int_contents",
        DType::I64 => "int64_contents",
        DType::F32 => "fp32_contents",
        DType::F64 => "fp64_contents",
        DType::String => "bytes_contents",
        DType::F16 | DType::Bf16 => return None,
    })
}

fn lengths(typed: &InferTensorContents) -> [(&'static str, usize); 8] {
    [
        ("bool_contents", typed.bool_contents.len()),
        ("int_contents", typed.int_contents.len()),
        ("int64_contents", typed.int64_contents.len()),
        ("uint_contents", typed.uint_contents.len()),
        ("uint64_contents", typed.uint64_contents.len()),
        ("fp32_contents", typed.fp32_contents.len()),
        ("fp64_contents", typed.fp64_contents.len()),
        ("bytes_contents", typed.bytes_contents.len()),
    ]
}

/// What typed contents take in memory, in bytes: more than on the wire, where small numbers are short.
pub fn held_by(typed: &InferTensorContents) -> usize {
    let texts: usize = typed.bytes_contents.iter().map(|text| text.len() + size_of::<Vec<u8>>()).sum();
    let of = |(name, length): (&str, usize)| match name {
        "bool_contents" => length,
        "int_contents" | "uint_contents" | "fp32_contents" => 4 * length,
        "bytes_contents" => 0,
        _ => 8 * length,
    };
    texts + lengths(typed).into_iter().map(of).sum::<usize>()
}

/// A tensor's data as typed contents; `None` of half floats, which have no place there.
pub fn typed(dtype: DType, data: &[u8]) -> Option<InferTensorContents> {
    fn of<const N: usize, T>(data: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
        data.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)).collect()
    }
    let mut typed = InferTensorContents::default();
    match dtype {
        DType::Bool => typed.bool_contents = of::<1, _>(data, |b| b[0] != 0),
        DType::U8 => typed.uint_contents = of::<1, _>(data, |b| u32::from(b[0])),
        DType::U16 => typed.uint_contents = of::<2, _>(data, |b| u32::from(u16::from_le_bytes(b))),
        DType::U32 => typed.uint_contents = of::<4, _>(data, u32::from_le_bytes),
        DType::U64 => typed.uint64_contents = of::<8, _>(data, u64::from_le_bytes),
        DType::I8 => typed.int_contents = of::<1, _>(data, |b| i32::from(b[0] as i8)),
        DType::I16 => typed.int_contents = of::<2, _>(data, |b| i32::from(i16::from_le_bytes(b))),
        DType::I32 => typed.int_contents = of::<4, _>(data, i32::from_le_bytes),
        DType::I64 => typed.int64_contents = of::<8, _>(data, i64::from_le_bytes),
        DType::F32 => typed.fp32_contents = of::<4, _>(data, f32::from_le_bytes),
        DType::F64 => typed.fp64_contents = of::<8, _>(data, f64::from_le_bytes),
        DType::String => typed.bytes_contents = texts(data).map(<[u8]>::to_vec).collect(),
        DType::F16 | DType::Bf16 => return None,
    }
    Some(typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_their_type_cannot_hold_are_refused_and_so_are_strays() {
        let uints = |uint_contents| InferTensorContents { uint_contents, ..InferTensorContents::default() };
        assert_eq!(bytes_of(&uints(vec![0, 255]), DType::U8), Ok(vec![0, 255]));
        assert_eq!(bytes_of(&uints(vec![256]), DType::U8), Err("256 is no UINT8".into()));
        assert_eq!(bytes_of(&uints(vec![65_536]), DType::U16), Err("65536 is no UINT16".into()));
        let ints = InferTensorContents { int_contents: vec![-129], ..InferTensorContents::default() };
        assert_eq!(bytes_of(&ints, DType::I8), Err("-129 is no INT8".into()));
        assert_eq!(bytes_of(&ints, DType::I16), Ok(vec![0x7f, 0xff]));
        assert!(bytes_of(&ints, DType::F32).unwrap_err().contains("fp32_contents"));
    }

    #[test]
    fn contents_are_counted_by_what_they_hold() {
        let typed = InferTensorContents {
            int64_contents: vec![0; 10],
            fp32_contents: vec![0.0; 3],
            bytes_contents: vec![vec![1; 7], Vec::new()],
            ..InferTensorContents::default()
        };
        assert_eq!(held_by(&typed), 80 + 12 + 7 + 2 * size_of::<Vec<u8>>());
    }
}
