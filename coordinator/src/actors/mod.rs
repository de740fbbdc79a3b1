//! The shells of the coordinator's decisions.
pub mod planner;
pub mod raft;
