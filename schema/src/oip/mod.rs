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

/// Typed contents as bytes. What does not fit its type is cut, as servers do; of half floats there are none.
pub fn bytes_of(typed: &InferTensorContents, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bool => typed.bool_contents.iter().map(|b| u8::from(*b)).collect(),
        DType::U8 => typed.uint_contents.iter().map(|n| *n as u8).collect(),
        DType::U16 => typed.uint_contents.iter().flat_map(|n| (*n as u16).to_le_bytes()).collect(),
        DType::U32 => typed.uint_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::U64 => typed.uint64_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::I8 => typed.int_contents.iter().map(|n| *n as u8).collect(),
        DType::I16 => typed.int_contents.iter().flat_map(|n| (*n as i16).to_le_bytes()).collect(),
        DType::I32 => typed.int_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::I64 => typed.int64_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::F32 => typed.fp32_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::F64 => typed.fp64_contents.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DType::String => {
            let with_length = |text: &Vec<u8>| [&(text.len() as u32).to_le_bytes(), text.as_slice()].concat();
            typed.bytes_contents.iter().flat_map(with_length).collect()
        }
        DType::F16 | DType::Bf16 => Vec::new(),
    }
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
