//! How many queries could have been in time, had one known all arrivals? The yardstick for policies, which know only the past.
//!
//! [`optimum`] is exact, by search, for a handful of queries. [`one_model`] is exact for thousands, of one
//! model on one slot. For everything else, [`bound`] is a number that no schedule exceeds, and [`found`] one that some schedule
//! reaches.

mod bound;
mod found;
mod one_model;
mod optimum;
mod prices;
#[cfg(test)]
mod tests;

pub use bound::bound;
pub use found::found;
pub use one_model::one_model;
pub use optimum::optimum;

use weir_core::units::{Deadline, Instant, ServiceTime};

use crate::pool::{Asked, Case, Load};

/// Time of batches of a model, by rows.
fn times(model: &Load) -> Vec<ServiceTime> {
    (0..=model.max_batch).map(|rows| model.service.profile.estimate(rows.max(1))).collect()
}

/// Arrival and deadline of the queries of one model, in order of both. Panics where one that comes later is due earlier: then
/// batches need not be neighbours in the queue, and what is derived from that does not hold.
fn of_model(queries: &[Asked], model: usize) -> Vec<(Instant, Deadline)> {
    let of: Vec<_> = queries.iter().filter(|q| q.model == model).map(|q| (q.at, q.deadline)).collect();
    assert!(of.is_sorted() && of.iter().map(|(_, due)| due).is_sorted(), "due in another order than they come");
    of
}

/// Panics where batches do not take what their profile says: what is random has no optimum.
fn check(case: &Case) {
    assert!(case.models.iter().all(|model| model.service.noise == 0.0), "service times are exact");
}
