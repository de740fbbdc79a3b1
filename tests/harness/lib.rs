//! What tests share: clusters of real processes, clusters in virtual time, and checks of what came of them.
pub mod history;
pub mod linearizability;
pub mod processes;
pub mod simulated;
