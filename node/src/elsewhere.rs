//! What this node's homes ask of models that stand on other nodes alone: nobody else sees it where they send nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use weir_core::ids::ModelRef;
use weir_core::triage::{ByModel, Curve};
use weir_core::units::{Instant, ServiceTime};

/// Demand by model without a replica here.
#[derive(Default)]
pub struct Elsewhere(Mutex<BTreeMap<ModelRef, Curve>>);

impl Elsewhere {
    /// Gates have weighed rows of which each takes `seconds` of a slot.
    pub fn weighed(&self, now: Instant, model: &ModelRef, seconds: f64, values: &[f64]) {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let curve = models.entry(model.clone()).or_default();
        let cost = ServiceTime::from_nanos((seconds * 1e9) as u64);
        values.iter().for_each(|value| curve.add(now, cost, *value));
    }

    /// What is asked of each; forgets those of which nothing is asked any more.
    pub fn asked(&self, now: Instant) -> ByModel {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked: ByModel = models.iter().map(|(model, curve)| (model.clone(), curve.asked(now))).collect();
        models.retain(|model, _| !asked[model].soft.is_empty());
        asked
    }
}
