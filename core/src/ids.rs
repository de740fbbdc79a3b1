//! Names and numbers that identify things, parsed once: inside weir there is no unchecked name.

use std::fmt;
use std::sync::Arc;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} name {text:?} is not allowed: it must start with a lower-case letter or digit, go on with those, '.', '_' or '-', and have at most 64 characters"
)]
pub struct BadName {
    kind: &'static str,
    text: String,
}

fn checked(kind: &'static str, text: &str) -> Result<Arc<str>, BadName> {
    let bytes = text.as_bytes();
    let first = bytes.first().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let rest = bytes.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-'));
    if first && rest && bytes.len() <= 64 {
        Ok(text.into())
    } else {
        // What is quoted back is bounded, whatever was sent.
        let shown: String = text.chars().take(80).collect();
        Err(BadName { kind, text: shown })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);
        impl $type {
            /// Checks `text` against `[a-z0-9][a-z0-9._-]{0,63}`.
            pub fn parse(text: &str) -> Result<Self, BadName> {
                checked($kind, text).map($type)
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name!(
    /// A model's name, shared by its versions.
    ModelName, "model"
);
name!(
    /// One version of a model.
    Version, "version"
);
name!(
    /// What users query.
    EndpointName, "endpoint"
);
name!(
    /// A stage of an endpoint, unique in it.
    StageName, "stage"
);
name!(
    /// A node, by the name its operator gave it.
    NodeName, "node"
);
name!(
    /// A device of a node, as `cpu0`.
    DeviceName, "device"
);
name!(
    /// A coordinator, by the name its operator gave it.
    MemberName, "member"
);

/// One version of one model, written `name@version`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelRef {
    /// Which model.
    pub name: ModelName,
    /// Which version of it.
    pub version: Version,
}

impl ModelRef {
    /// Parses `name@version`.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let (name, version) = text
            .split_once('@')
            .ok_or_else(|| BadName { kind: "model@version", text: text.chars().take(80).collect() })?;
        Ok(ModelRef { name: ModelName::parse(name)?, version: Version::parse(version)? })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

impl fmt::Debug for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// SHA-256 of an artifact: its name in every store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Parses 64 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return None;
        }
        let mut digest = [0u8; 32];
        for (out, pair) in digest.iter_mut().zip(bytes.chunks(2)) {
            *out = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Some(Digest(digest))
    }
}

fn hex_digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $type:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $type(pub $inner);
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(
    /// Version of a table, plan or grant: the log index of its entry. A node refuses what is older than it has seen.
    Epoch(u64)
);
number!(
    /// A raft log index.
    LogIndex(u64)
);
number!(
    /// A coordinator's number in the raft group; never reused.
    MemberId(u64)
);
number!(
    /// One loaded copy of a model on one device. Given by the placement, never reused.
    ReplicaId(u64)
);
number!(
    /// One row on its way through one device; given by the node, meaningless elsewhere.
    TicketId(u64)
);

/// A query, named by the client; carries no meaning. Row `i` of a call has the call's id plus `i`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct QueryId(pub u128);

impl QueryId {
    /// The id of row `row` of the call with this id.
    pub fn row(self, row: u64) -> QueryId {
        QueryId(self.0.wrapping_add(u128::from(row)))
    }
    /// Parses 32 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok().map(QueryId)).flatten()
    }
}

impl fmt::Display for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A control-plane request: 128 random bits, remembered so that a retry is applied once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u128);

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_once_and_for_all() {
        for good in ["a", "0", "fashion-tiny", "a.b_c-9", &"a".repeat(64)] {
            assert!(ModelName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", ".a", "../x", "a/b", "a b", "ä", "a\0", &"a".repeat(65)] {
            assert!(ModelName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_round_trip() {
        let digest = Digest(std::array::from_fn(|i| (i * 37) as u8));
        assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
        assert_eq!(Digest::parse("xyz"), None);
        assert_eq!(Digest::parse(&"G".repeat(64)), None);
    }

    #[test]
    fn references_name_model_and_version() {
        let reference = ModelRef::parse("fashion-tiny@1").unwrap();
        assert_eq!(reference.to_string(), "fashion-tiny@1");
        assert!(ModelRef::parse("fashion-tiny").is_err());
        assert!(ModelRef::parse("a@b@c").is_err());
    }
}
