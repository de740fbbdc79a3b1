//! Which replica stands where, and which nodes and replicas can be counted on. See README.md for the problem.

mod liveness;
mod looks;
mod profiles;
#[cfg(test)]
mod reference;
mod solve;
mod table;
#[cfg(test)]
pub(crate) mod tests;

pub use liveness::{
    DOWN_AFTER, DeviceLoad, EndpointLoad, EndpointState, Liveness, NodeReport, NodeState, REPORT_EVERY, ReplicaProfile,
    ReplicaReport, ReplicaState,
};
pub use looks::{Look, Placement};
pub use profiles::Informing;
pub use solve::{Problem, Proposal, Wish, solve};
