//! Wire to core and back. What is read is checked; what cannot be read is a [`BadMessage`].

pub mod asked;
pub mod control;
pub mod endpoint;
pub mod history;
pub mod predict;
pub mod report;
pub mod tensor;

#[cfg(test)]
mod tests;

use capnp::message::{ReaderOptions, TypedReader};
use capnp::serialize::OwnedSegments;

/// A message that does not say what it must.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {what}")]
pub struct BadMessage {
    what: String,
}

impl BadMessage {
    /// A message that is wrong as `what` says.
    pub fn new(what: impl Into<String>) -> BadMessage {
        BadMessage { what: what.into() }
    }
}

impl From<capnp::Error> for BadMessage {
    fn from(error: capnp::Error) -> Self {
        BadMessage::new(error.to_string())
    }
}

impl From<capnp::NotInSchema> for BadMessage {
    fn from(error: capnp::NotInSchema) -> Self {
        BadMessage::new(format!("a choice that this version does not know ({})", error.0))
    }
}

impl From<std::str::Utf8Error> for BadMessage {
    fn from(_: std::str::Utf8Error) -> Self {
        BadMessage::new("a text that is not UTF-8")
    }
}

impl From<weir_core::ids::BadName> for BadMessage {
    fn from(error: weir_core::ids::BadName) -> Self {
        BadMessage::new(error.to_string())
    }
}

impl From<weir_core::tensor::BadTensor> for BadMessage {
    fn from(error: weir_core::tensor::BadTensor) -> Self {
        BadMessage::new(error.to_string())
    }
}

/// The framed message in `bytes`, which must be exactly one.
pub fn framed<T: capnp::traits::Owned>(bytes: &[u8]) -> Result<TypedReader<OwnedSegments, T>, BadMessage> {
    let options = ReaderOptions {
        // Walking a message once visits each word once; lists of empty structs are counted too.
        traversal_limit_in_words: Some(bytes.len() + 1024),
        nesting_limit: 32,
    };
    let mut rest = bytes;
    let reader = capnp::serialize::read_message(&mut rest, options)?;
    if !rest.is_empty() {
        return Err(BadMessage::new("bytes after the end of the message"));
    }
    Ok(reader.into_typed())
}

/// `n` items as a list's length on the wire.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).expect("no list in weir has four thousand million items")
}
