//! Tensors in JSON: elements in rows, nested or flat, into bytes, and bytes into flat elements.
//!
//! NaN and the infinities, for which JSON has no numbers, are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`. FP16 and BF16 have
//! no form in JSON. BYTES are text.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeSeq, Serializer};
use weir_core::tensor::{DType, texts};

/// The elements of a tensor of this type and shape, row-major and little-endian, from an array of any depth from flat to the shape's
/// own. Whether there are as many as the shape says is checked where they are nested; of a flat array the caller looks.
pub fn read<'de, D: Deserializer<'de>>(from: D, dtype: DType, shape: &[u64]) -> Result<Vec<u8>, D::Error> {
    if matches!(dtype, DType::F16 | DType::Bf16) {
        return Err(D::Error::custom(format!("{} has no form in JSON; send it as binary data", super::word(dtype))));
    }
    let mut out = Vec::new();
    from.deserialize_seq(Level { dtype, shape, top: true, out: &mut out })?;
    Ok(out)
}

/// One element of this type, appended; `false` where the value is none.
pub fn read_element(value: &serde_json::Value, dtype: DType, out: &mut Vec<u8>) -> bool {
    let taken = Item { dtype, shape: &[], out }.deserialize(value);
    matches!(taken, Ok(Kind::Scalar))
}

/// What an array holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar,
    Array,
}

/// An array whose dimensions from here on are `shape`.
struct Level<'a> {
    dtype: DType,
    shape: &'a [u64],
    top: bool,
    out: &'a mut Vec<u8>,
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of {} elements, flat or nested as the shape says", super::word(self.dtype))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Level { dtype, shape, top, out } = self;
        let inner = shape.get(1..).unwrap_or(&[]);
        let mut kind = None;
        let mut count: u64 = 0;
        while let Some(found) = items.next_element_seed(Item { dtype, shape: inner, out })? {
            if *kind.get_or_insert(found) != found {
                return Err(A::Error::custom("an array holds both elements and arrays"));
            }
            count += 1;
        }
        let flat = top && kind != Some(Kind::Array);
        let deep_enough = kind != Some(Kind::Scalar) || shape.len() <= 1;
        if !flat && (Some(count) != shape.first().copied() || !deep_enough) {
            return Err(A::Error::custom(format!("its nesting is not that of its shape: an array of {count} items")));
        }
        Ok(())
    }
}

/// An element, or an array of the next dimension.
struct Item<'a> {
    dtype: DType,
    shape: &'a [u64],
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = Kind;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Kind, D::Error> {
        from.deserialize_any(self)
    }
}

impl Item<'_> {
    fn none<E: Error>(&self, what: impl fmt::Display) -> E {
        E::custom(format!("{what} is no {}", super::word(self.dtype)))
    }

    fn push<const N: usize, E>(self, bytes: [u8; N]) -> Result<Kind, E> {
        self.out.extend_from_slice(&bytes);
        Ok(Kind::Scalar)
    }
}

impl<'de> Visitor<'de> for Item<'_> {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an element of {}", super::word(self.dtype))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Kind, E> {
        match self.dtype {
            DType::Bool => self.push([u8::from(value)]),
            _ => Err(self.none(value)),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Kind, E> {
        let range = |_| E::custom(format!("{value} is out of range"));
        match self.dtype {
            DType::U8 => self.push(u8::try_from(value).map_err(range)?.to_le_bytes()),
            DType::U16 => self.push(u16::try_from(value).map_err(range)?.to_le_bytes()),
            DType::U32 => self.push(u32::try_from(value).map_err(range)?.to_le_bytes()),
            DType::U64 => self.push(value.to_le_bytes()),
            DType::I8 => self.push(i8::try_from(value).map_err(range)?.to_le_bytes()),
            DType::I16 => self.push(i16::try_from(value).map_err(range)?.to_le_bytes()),
            DType::I32 => self.push(i32::try_from(value).map_err(range)?.to_le_bytes()),
            DType::I64 => self.push(i64::try_from(value).map_err(range)?.to_le_bytes()),
            DType::F32 => self.push((value as f32).to_le_bytes()),
            DType::F64 => self.push((value as f64).to_le_bytes()),
            // Some clients send them as numbers.
            DType::Bool if value <= 1 => self.push([value as u8]),
            _ => Err(self.none(value)),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Kind, E> {
        let range = |_| E::custom(format!("{value} is out of range"));
        match self.dtype {
            DType::I8 => self.push(i8::try_from(value).map_err(range)?.to_le_bytes()),
            DType::I16 => self.push(i16::try_from(value).map_err(range)?.to_le_bytes()),
            DType::I32 => self.push(i32::try_from(value).map_err(range)?.to_le_bytes()),
            DType::I64 => self.push(value.to_le_bytes()),
            DType::F32 => self.push((value as f32).to_le_bytes()),
            DType::F64 => self.push((value as f64).to_le_bytes()),
            _ => Err(self.none(value)),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Kind, E> {
        match self.dtype {
            DType::F32 => self.push((value as f32).to_le_bytes()),
            DType::F64 => self.push(value.to_le_bytes()),
            _ => Err(self.none(value)),
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Kind, E> {
        let number = match value {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            _ => 0.0,
        };
        match self.dtype {
            DType::String => {
                let length = u32::try_from(value.len()).map_err(|_| E::custom("a text is too long"))?;
                self.out.extend_from_slice(&length.to_le_bytes());
                self.out.extend_from_slice(value.as_bytes());
                Ok(Kind::Scalar)
            }
            DType::F32 if number != 0.0 => self.push((number as f32).to_le_bytes()),
            DType::F64 if number != 0.0 => self.push(number.to_le_bytes()),
            _ => Err(self.none("a text")),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<Kind, E> {
        Err(self.none("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Kind, A::Error> {
        Level { dtype: self.dtype, shape: self.shape, top: false, out: self.out }.visit_seq(items)?;
        Ok(Kind::Array)
    }
}

/// The elements of a tensor, to be written flat. What has no form in JSON is an error when it is written.
pub struct Flat<'a> {
    /// Their type.
    pub dtype: DType,
    /// Little-endian, of whole elements.
    pub data: &'a [u8],
}

impl serde::Serialize for Flat<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        fn each<const N: usize, T: serde::Serialize, S: Serializer>(
            to: S,
            data: &[u8],
            value: impl Fn([u8; N]) -> T,
        ) -> Result<S::Ok, S::Error> {
            to.collect_seq(data.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)))
        }
        match self.dtype {
            DType::Bool => each::<1, _, S>(to, self.data, |b| b[0] != 0),
            DType::U8 => each::<1, _, S>(to, self.data, |b| b[0]),
            DType::I8 => each::<1, _, S>(to, self.data, |b| b[0] as i8),
            DType::U16 => each::<2, _, S>(to, self.data, u16::from_le_bytes),
            DType::I16 => each::<2, _, S>(to, self.data, i16::from_le_bytes),
            DType::U32 => each::<4, _, S>(to, self.data, u32::from_le_bytes),
            DType::I32 => each::<4, _, S>(to, self.data, i32::from_le_bytes),
            DType::U64 => each::<8, _, S>(to, self.data, u64::from_le_bytes),
            DType::I64 => each::<8, _, S>(to, self.data, i64::from_le_bytes),
            DType::F32 => each::<4, _, S>(to, self.data, |b| Number::F32(f32::from_le_bytes(b))),
            DType::F64 => each::<8, _, S>(to, self.data, |b| Number::F64(f64::from_le_bytes(b))),
            DType::String => {
                let mut list = to.serialize_seq(None)?;
                for text in texts(self.data) {
                    let text = std::str::from_utf8(text)
                        .map_err(|_| S::Error::custom("it holds bytes that are no text; ask for binary data"))?;
                    list.serialize_element(text)?;
                }
                list.end()
            }
            DType::F16 | DType::Bf16 => {
                let word = super::word(self.dtype);
                Err(S::Error::custom(format!("{word} has no form in JSON; ask for binary data")))
            }
        }
    }
}

/// A number that may be none in JSON.
enum Number {
    F32(f32),
    F64(f64),
}

impl serde::Serialize for Number {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let value = match *self {
            Number::F32(value) if value.is_finite() => return to.serialize_f32(value),
            Number::F64(value) if value.is_finite() => return to.serialize_f64(value),
            Number::F32(value) => f64::from(value),
            Number::F64(value) => value,
        };
        to.serialize_str(match value {
            value if value.is_nan() => "NaN",
            value if value > 0.0 => "Infinity",
            _ => "-Infinity",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn take(value: serde_json::Value, dtype: DType, shape: &[u64]) -> Result<Vec<u8>, String> {
        read(&value, dtype, shape).map_err(|error| error.to_string())
    }

    #[test]
    fn flat_and_nested_arrays_are_the_same_elements() {
        let flat = take(json!([1, 2, 3, 4.5]), DType::F32, &[2, 2]).unwrap();
        assert_eq!(flat, take(json!([[1, 2], [3, 4.5]]), DType::F32, &[2, 2]).unwrap());
        assert_eq!(flat, [1f32, 2.0, 3.0, 4.5].map(f32::to_le_bytes).concat());
        assert!(take(json!([]), DType::F32, &[0]).unwrap().is_empty());
        assert_eq!(take(json!(["", "ab"]), DType::String, &[2]).unwrap(), b"\0\0\0\0\x02\0\0\0ab");
        assert_eq!(take(json!([[true], [0]]), DType::Bool, &[2, 1]).unwrap(), [1, 0]);
    }

    #[test]
    fn ragged_nesting_and_elements_of_other_types_are_refused() {
        for (value, dtype, shape, word) in [
            (json!([[1, 2], [3]]), DType::F32, &[2, 2][..], "nesting"),
            (json!([[1, 2], 3, 4]), DType::F32, &[2, 2], "both"),
            (json!([1, 2, [3, 4]]), DType::F32, &[2, 2], "both"),
            (json!([[[1], [2]], [[3], [4]]]), DType::F32, &[2, 2], "nesting"),
            (json!([[1, 2, 3, 4]]), DType::F32, &[2, 2], "nesting"),
            (json!([[1, 2]]), DType::F32, &[1, 2, 1], "nesting"),
            (json!([256]), DType::U8, &[1], "out of range"),
            (json!([-1]), DType::U8, &[1], "no UINT8"),
            (json!([1.5]), DType::I32, &[1], "no INT32"),
            (json!([null]), DType::F32, &[1], "null"),
            (json!(["x"]), DType::F32, &[1], "a text"),
            (json!([{"a": 1}]), DType::F32, &[1], "map"),
            (json!([2]), DType::Bool, &[1], "no BOOL"),
            (json!([1]), DType::F16, &[1], "binary"),
            (json!(3), DType::F32, &[1], "array"),
        ] {
            let error = take(value.clone(), dtype, shape).unwrap_err();
            assert!(error.contains(word), "{value}: {error}");
        }
    }

    #[test]
    fn what_has_no_form_is_refused_when_written() {
        let text = |dtype, data: &[u8]| serde_json::to_string(&Flat { dtype, data }).map_err(|e| e.to_string());
        assert_eq!(text(DType::F32, &f32::NAN.to_le_bytes()).unwrap(), "[\"NaN\"]");
        assert_eq!(text(DType::F64, &f64::NEG_INFINITY.to_le_bytes()).unwrap(), "[\"-Infinity\"]");
        assert!(text(DType::F16, &[0, 0]).unwrap_err().contains("binary"));
        assert!(text(DType::String, b"\x01\0\0\0\xff").unwrap_err().contains("no text"));
    }

    proptest! {
        #[test]
        fn numbers_come_back_as_they_were(bits in proptest::collection::vec(any::<u32>(), 0..20)) {
            let data: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            for dtype in [DType::F32, DType::I32, DType::U16, DType::I8] {
                let text = serde_json::to_string(&Flat { dtype, data: &data }).unwrap();
                let size = dtype.size().unwrap();
                let shape = [(data.len() / size) as u64];
                let back = read(&mut serde_json::Deserializer::from_str(&text), dtype, &shape).unwrap();
                if dtype == DType::F32 {
                    // A NaN is a NaN: which of them, JSON cannot tell.
                    let same = back.as_chunks::<4>().0.iter().zip(&bits).all(|(back, was)| {
                        let (back, was) = (f32::from_le_bytes(*back), f32::from_bits(*was));
                        back.to_bits() == was.to_bits() || back.is_nan() && was.is_nan()
                    });
                    prop_assert!(same);
                } else {
                    prop_assert_eq!(back, &data[..]);
                }
            }
        }
    }
}
