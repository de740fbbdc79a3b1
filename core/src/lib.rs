//! Every decision weir takes, as pure state machines: events and a time go in, actions come out.
//!
//! What is absent: clocks, I/O, threads, logs, unordered maps and randomness of its own (see `clippy.toml` and
//! `tests/boundaries.rs`). The cluster, the simulator and the tests drive the same functions.
pub mod call;
pub mod endpoint;
pub mod history;
pub mod ids;
pub mod labels;
pub mod outcome;
pub mod paging;
pub mod placement;
pub mod planning;
pub mod prng;
pub mod profile;
pub mod recent;
pub mod replicated;
pub mod reply_path;
pub mod rollout;
pub mod router;
pub mod scheduler;
pub mod shapes;
pub mod tensor;
pub mod triage;
pub mod tuner;
pub mod units;
pub mod workload;
