//! The load generator: sends queries when an arrival process says so, whatever has come back, and measures honestly.
//!
//! Latency counts from the instant at which a query was meant to be sent. The generator's own lateness is measured too:
//! a run in which it fell behind is marked invalid, since it measured itself.
pub mod capacity;
pub mod compare;
pub mod data;
pub mod goal;
pub mod hdr;
pub mod machine;
pub mod npy;
pub mod report;
pub mod result;
pub mod run;
pub mod scenario;
pub mod schedule;
pub mod tally;
pub mod target;
pub mod trace;
