//! Models as actors: an engine loads an artifact into a session, and a model actor owns the session and runs batches.
//!
//! Knows nothing of queues, prices or networks. What is absent: any decision about what runs when.
pub mod cores;
pub mod engine;
pub mod engines;
pub mod model_actor;
pub mod probe;
pub mod runtime;
