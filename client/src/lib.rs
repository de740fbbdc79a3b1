//! The Rust client: predictions, and the control plane's calls, with the retries and redirects that both need.
//!
//! [`Client`] is for any program: it is `Send`, cheap to clone and may be used from every thread of a multi-threaded
//! runtime. Behind it a thread of its own drives a [`LocalClient`], since capnp-rpc's objects stay on one thread; a
//! program that has such a thread already (the load generator) uses that directly. [`Admin`] makes the operator's calls.
pub mod admin;
mod error;
mod nodes;
mod predict;
mod threaded;
pub mod weirfile;

pub use admin::Admin;
pub use error::ClientError;
pub use predict::{Answer, EndpointInfo, HELD_BACK, LocalClient, Options, Request, Timings};
pub use threaded::Client;
pub use weir_host::login::Token;
