//! Tables and JSON.

use serde_json::{Map, Value, json};
use weir_core::endpoint::Endpoint;
use weir_core::tensor::{DType, Tensor, texts};

/// A plain table: no lines, columns apart.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    let text = table.to_string();
    text.lines().map(|line| line.trim_end().trim_start_matches(' ')).collect::<Vec<_>>().join("\n")
}

/// A tensor as in `weir predict -o json`: flat, row-major; what JSON has no number for is a string.
pub fn tensor(tensor: &Tensor) -> Value {
    json!({"dtype": tensor.dtype.word(), "shape": tensor.shape, "data": elements(tensor)})
}

fn elements(tensor: &Tensor) -> Vec<Value> {
    fn of<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> Value) -> Vec<Value> {
        data.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)).collect()
    }
    let data = &tensor.data;
    match tensor.dtype {
        DType::Bool => of::<1>(data, |b| Value::from(b[0] != 0)),
        DType::U8 => of::<1>(data, |b| Value::from(b[0])),
        DType::I8 => of::<1>(data, |b| Value::from(b[0] as i8)),
        DType::U16 => of::<2>(data, |b| Value::from(u16::from_le_bytes(b))),
        DType::I16 => of::<2>(data, |b| Value::from(i16::from_le_bytes(b))),
        DType::U32 => of::<4>(data, |b| Value::from(u32::from_le_bytes(b))),
        DType::I32 => of::<4>(data, |b| Value::from(i32::from_le_bytes(b))),
        DType::U64 => of::<8>(data, |b| Value::from(u64::from_le_bytes(b))),
        DType::I64 => of::<8>(data, |b| Value::from(i64::from_le_bytes(b))),
        DType::F16 => of::<2>(data, |b| float(half_to_f64(u16::from_le_bytes(b), 10, 5))),
        DType::Bf16 => of::<2>(data, |b| float(f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)))),
        DType::F32 => of::<4>(data, |b| float32(f32::from_le_bytes(b))),
        DType::F64 => of::<8>(data, |b| float(f64::from_le_bytes(b))),
        DType::String => texts(data).map(|text| Value::from(String::from_utf8_lossy(text))).collect(),
    }
}

/// The shortest decimal that is this f32, not the f64 that it widens to.
fn float32(value: f32) -> Value {
    if value.is_finite() { float(value.to_string().parse().expect("a finite number")) } else { float(f64::from(value)) }
}

fn float(value: f64) -> Value {
    if value.is_nan() {
        Value::from("NaN")
    } else if value.is_infinite() {
        Value::from(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        Value::from(value)
    }
}

/// IEEE 754 with so many bits of fraction and exponent.
fn half_to_f64(bits: u16, fraction_bits: u32, exponent_bits: u32) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
    let fraction = f64::from(bits & ((1 << fraction_bits) - 1)) / f64::from(1u32 << fraction_bits);
    let bias = (1 << (exponent_bits - 1)) - 1;
    match exponent {
        0 => sign * fraction * 2f64.powi(1 - bias),
        e if e == (1 << exponent_bits) - 1 => {
            if fraction == 0.0 {
                sign * f64::INFINITY
            } else {
                f64::NAN
            }
        }
        e => sign * (1.0 + fraction) * 2f64.powi(e - bias),
    }
}

/// An object from pairs.
pub fn object(pairs: impl IntoIterator<Item = (String, Value)>) -> Value {
    Value::Object(pairs.into_iter().collect::<Map<_, _>>())
}

/// An endpoint's objective as weir files have it; nothing where it has none.
pub fn objective(endpoint: &Endpoint) -> Option<String> {
    (endpoint.objective > 0.0).then(|| format!("attainment>={}", endpoint.objective))
}

/// Why an endpoint's last rollout was undone; nothing where it was not.
pub fn undone(endpoint: &Endpoint) -> Option<&str> {
    Some(endpoint.undone.as_str()).filter(|because| !because.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_short_as_they_are_exact() {
        let shown = tensor(&Tensor::f32(&[4], &[0.1, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]));
        assert_eq!(shown["data"], json!([0.1, "NaN", "Infinity", "-Infinity"]));
        let half = Tensor::new(
            DType::F16,
            vec![3],
            [0x3c00u16, 0xc000, 0x0001].iter().flat_map(|b| b.to_le_bytes()).collect(),
        )
        .unwrap();
        assert_eq!(tensor(&half)["data"], json!([1.0, -2.0, 5.960464477539063e-8]));
        assert_eq!(tensor(&Tensor::strings(&[2], &["a", "é"]))["data"], json!(["a", "é"]));
    }
}
