//! Which replica stands where, and which nodes and replicas can be counted on. See README.md for the problem.

mod liveness;
mod profiles;
mod solve;
#[cfg(test)]
mod tests;

pub use liveness::{
    DOWN_AFTER, DeviceLoad, EndpointLoad, EndpointState, Liveness, NodeReport, NodeState, REPORT_EVERY, ReplicaProfile,
    ReplicaReport, ReplicaState,
};
pub use profiles::Informing;
pub use solve::{Problem, Proposal, solve};
