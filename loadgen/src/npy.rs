//! `.npy` files (NumPy's format, versions 1 to 3): C order, little-endian.

use std::path::{Path, PathBuf};

use weir_core::tensor::{DType, Tensor};

/// Why a file is not an array that weir takes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NpyError {
    #[error("cannot read {path}: {cause}")]
    Read {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("{path} is not an array that weir takes: {why}")]
    Format { path: PathBuf, why: String },
}

/// Reads an array.
pub fn read(path: &Path) -> Result<Tensor, NpyError> {
    let bytes = std::fs::read(path).map_err(|cause| NpyError::Read { path: path.to_owned(), cause })?;
    parse(&bytes).map_err(|why| NpyError::Format { path: path.to_owned(), why })
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Tensor, String> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("it is no .npy file")?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or("it is cut short")?;
    let (length, rest) = match version[0] {
        1 => rest.split_first_chunk::<2>().map(|(n, rest)| (u32::from(u16::from_le_bytes(*n)), rest)),
        2 | 3 => rest.split_first_chunk::<4>().map(|(n, rest)| (u32::from_le_bytes(*n), rest)),
        other => return Err(format!("its format version {other} is not known")),
    }
    .ok_or("it is cut short")?;
    let header = rest.get(..length as usize).ok_or("it is cut short")?;
    let data = &rest[length as usize..];
    let header = std::str::from_utf8(header).map_err(|_| "its header is not text")?;
    let field = |name: &str| header.split_once(&format!("'{name}':")).map(|(_, value)| value.trim_start());
    let descr = field("descr").and_then(|value| value.strip_prefix('\'')?.split_once('\'')).map(|(descr, _)| descr);
    let descr = descr.ok_or("its header names no plain element type")?;
    if field("fortran_order").is_some_and(|value| value.starts_with("True")) {
        return Err("it is in Fortran order; save it with numpy.ascontiguousarray".into());
    }
    let shape = field("shape").and_then(|value| value.strip_prefix('(')?.split_once(')')).map(|(shape, _)| shape);
    let shape = shape.ok_or("its header names no shape")?;
    let dims = shape.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    let shape =
        dims.map(|dim| dim.parse::<u64>().map_err(|_| "its shape is not numbers")).collect::<Result<Vec<_>, _>>()?;
    let dtype = dtype(descr)
        .ok_or_else(|| format!("its element type {descr} is not known; convert it, as with x.astype('float32')"))?;
    Tensor::new(dtype, shape, data.to_vec()).map_err(|bad| bad.to_string())
}

fn dtype(descr: &str) -> Option<DType> {
    Some(match descr {
        "|b1" => DType::Bool,
        "|u1" => DType::U8,
        "<u2" => DType::U16,
        "<u4" => DType::U32,
        "<u8" => DType::U64,
        "|i1" => DType::I8,
        "<i2" => DType::I16,
        "<i4" => DType::I32,
        "<i8" => DType::I64,
        "<f2" => DType::F16,
        "<f4" => DType::F32,
        "<f8" => DType::F64,
        _ => return None,
    })
}

/// The file of an array; `None` for an element type that the format lacks (bf16, strings).
pub fn to_bytes(tensor: &Tensor) -> Option<Vec<u8>> {
    let descr = match tensor.dtype {
        DType::Bool => "|b1",
        DType::U8 => "|u1",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::I8 => "|i1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::Bf16 | DType::String => return None,
    };
    let dims: String = tensor.shape.iter().map(|dim| format!("{dim},")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Data begins at a multiple of 64.
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(&tensor.data);
    Some(bytes)
}

/// Whole numbers of an integer array, as labels are; `None` for another type, or a number that i64 has not.
pub fn labels(tensor: &Tensor) -> Option<Vec<i64>> {
    fn of<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        data.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect()
    }
    let data = &tensor.data;
    Some(match tensor.dtype {
        DType::U8 => of::<1>(data, |b| i64::from(b[0])),
        DType::I8 => of::<1>(data, |b| i64::from(b[0] as i8)),
        DType::U16 => of::<2>(data, |b| i64::from(u16::from_le_bytes(b))),
        DType::I16 => of::<2>(data, |b| i64::from(i16::from_le_bytes(b))),
        DType::U32 => of::<4>(data, |b| i64::from(u32::from_le_bytes(b))),
        DType::I32 => of::<4>(data, |b| i64::from(i32::from_le_bytes(b))),
        DType::I64 => of::<8>(data, i64::from_le_bytes),
        DType::U64 => {
            let numbers = data.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
            return numbers.map(|number| i64::try_from(number).ok()).collect();
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_back_as_they_were_written() {
        for tensor in [Tensor::f32(&[2, 3], &[0.5; 6]), Tensor::f32(&[], &[1.0]), Tensor::f32(&[0, 4], &[])] {
            assert_eq!(parse(&to_bytes(&tensor).unwrap()).unwrap(), tensor);
        }
    }

    #[test]
    fn files_that_are_no_such_arrays_are_refused_with_the_reason() {
        let good = to_bytes(&Tensor::f32(&[2], &[1.0, 2.0])).unwrap();
        assert!((0..good.len()).all(|cut| parse(&good[..cut]).is_err()));
        assert!(parse(&good[1..]).unwrap_err().contains("no .npy file"));
        // Only these bytes differ: nothing else may be why it is refused.
        let at = good.windows(5).position(|word| word == b"False").unwrap();
        let fortran = [&good[..at], b"True ", &good[at + 5..]].concat();
        assert!(parse(&fortran).unwrap_err().contains("numpy.ascontiguousarray"));
    }

    #[test]
    fn labels_are_whole_numbers() {
        let bytes = Tensor::new(DType::U8, vec![2], vec![7, 255]).unwrap();
        assert_eq!(labels(&bytes), Some(vec![7, 255]));
        let long = |n: u64| labels(&Tensor::new(DType::U64, vec![1], n.to_le_bytes().to_vec()).unwrap());
        assert_eq!((long(9), long(u64::MAX)), (Some(vec![9]), None));
        assert_eq!(labels(&Tensor::f32(&[1], &[1.0])), None);
    }
}
