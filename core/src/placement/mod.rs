//! Which replica stands where, and which nodes and replicas can be counted on. See README.md for the problem.

mod liveness;
mod profiles;
mod solve;
#[cfg(test)]
mod tests;
mod wishes;

pub use liveness::{
    DOWN_AFTER, DeviceLoad, EndpointLoad, EndpointState, Liveness, Measured, NodeReport, NodeState, REPORT_EVERY,
    ReplicaProfile, ReplicaReport, ReplicaState,
};
pub use profiles::Informing;
pub use solve::{Problem, Proposal, Wish, solve};
pub use wishes::propose;
