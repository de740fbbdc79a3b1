//! Clipper (NSDI'17): in order of arrival, at most so many rows as kept the latency of a batch within the objective.

use std::collections::BTreeMap;

use crate::ids::TicketId;
use crate::units::{Instant, ServiceTime};

use super::super::pool::{Model, ModelIndex, Order, Pool};
use super::{Decide, Next, closed, first, most};

/// What a batch over the objective leaves of the largest size.
const BACK_OFF: f64 = 0.9;

/// The largest batch by additive increase and multiplicative decrease, or by the profile's high quantile.
#[derive(Debug)]
pub(super) struct Clipper {
    /// Largest batch by model; `None` where the profile says it.
    sizes: Option<BTreeMap<ModelIndex, f64>>,
}

impl Clipper {
    pub fn aimd() -> Clipper {
        Clipper { sizes: Some(BTreeMap::new()) }
    }

    pub fn quantile() -> Clipper {
        Clipper { sizes: None }
    }

    fn largest(&self, index: ModelIndex, model: &Model) -> usize {
        match &self.sizes {
            Some(sizes) => sizes.get(&index).copied().unwrap_or(1.0) as usize,
            None if model.rate.span().is_infinite() => model.max_batch as usize,
            None => model.fits(ServiceTime::from_nanos(model.rate.span() as u64), model.max_batch as usize),
        }
        .max(1)
    }
}

impl Decide for Clipper {
    fn order(&self) -> Order {
        Order::Arrival
    }

    fn drops_late(&self) -> bool {
        false
    }

    fn next(&mut self, _now: Instant, pool: &mut Pool, _dropped: &mut Vec<TicketId>) -> Next {
        let Some((index, model, lane, waiting)) = first(pool) else { return Next::Nothing };
        let rows = most(model, lane, waiting.len()).min(self.largest(index, model));
        Next::Run { model: index, lane, rows, closed: closed(model, lane, waiting.len(), rows) }
    }

    fn on_done(&mut self, model: &Model, index: ModelIndex, rows: u32, took: ServiceTime) {
        let Some(sizes) = &mut self.sizes else { return };
        let size = sizes.entry(index).or_insert(1.0);
        if took.as_nanos() as f64 > model.rate.span() {
            *size = (*size * BACK_OFF).max(1.0);
        } else if rows as usize >= *size as usize {
            // A batch smaller than allowed says nothing about a larger one.
            *size = (*size + 1.0).min(f64::from(model.max_batch));
        }
    }
}
