//! Discrete events in virtual time that drive the decisions of `core`: "how many?", where the tests' simulated clusters ask
//! "what if it breaks?".
//!
//! [`engine`] keeps events in order; [`device`] is one device whose scheduler is the cluster's; [`pool`] asks which policy
//! serves most on one device; [`cluster`] is nodes, clients and gates.
pub mod cluster;
pub mod device;
pub mod engine;
pub mod pool;
