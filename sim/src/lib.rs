//! Discrete events in virtual time that drive the decisions of `core`: "how many?", where the tests' simulated clusters ask
//! "what if it breaks?".
//!
//! [`engine`] keeps events in order; [`device`] is one device whose scheduler is the cluster's; [`cluster`] is nodes, clients
//! and gates; [`fleet`] makes clusters of machines, and [`plans`] has random cases of which machines to have. [`pool`] asks which policy serves most
//! on one device, and [`clairvoyant`] how much anybody could who knew what comes; [`paging`] is a node whose models do not fit into memory;
//! [`knapsack`] asks it of cascades ([`demo`] is one), [`oracle`] of rows that all cost the same; [`small`] compares with the optimum of small cases.
pub mod clairvoyant;
pub mod cluster;
pub mod demo;
pub mod device;
pub mod engine;
pub mod fleet;
pub mod knapsack;
pub mod oracle;
pub mod paging;
pub mod plans;
pub mod pool;
pub mod small;
