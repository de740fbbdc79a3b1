//! The wire contract: Cap'n Proto messages, and the conversions between them and the types of `core`.
//!
//! The code of the three `*_capnp` modules is generated from `schema/capnp/*.capnp` and checked in, so that a build needs no
//! system tool; `tests/generated.rs` compares it with a fresh generation where the compiler exists.
//! Conversions check everything: what they return, the rest of weir may trust. No sockets here.
pub mod convert;
#[cfg(feature = "oip")]
pub mod oip;

#[allow(clippy::all, missing_docs, unused, clippy::disallowed_methods)]
#[rustfmt::skip]
pub mod predict_capnp;
#[allow(clippy::all, missing_docs, unused, clippy::disallowed_methods)]
#[rustfmt::skip]
pub mod control_capnp;
#[allow(clippy::all, missing_docs, unused, clippy::disallowed_methods)]
#[rustfmt::skip]
pub mod raft_capnp;
