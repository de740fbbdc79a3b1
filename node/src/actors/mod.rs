//! The shells of the node: devices, and what stands on them.
pub mod assignment;
pub mod device;
