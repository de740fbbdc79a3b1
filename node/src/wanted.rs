//! How many rows this node's homes have wanted run of each model, wherever it stands, whether it could be or not: the leader finds from it
//! how many replicas are needed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use weir_core::ids::ModelRef;

/// Rows by model, since the process started. Models are those of the table: strangers cannot grow this with names.
#[derive(Default)]
pub struct Wanted(DashMap<ModelRef, AtomicU64>);

impl Wanted {
    /// Rows are to be run, or would be if there were room for them.
    pub fn add(&self, model: &ModelRef, rows: usize) {
        let rows = rows as u64;
        if let Some(known) = self.0.get(model) {
            known.fetch_add(rows, Ordering::Relaxed);
            return;
        }
        self.0.entry(model.clone()).or_default().fetch_add(rows, Ordering::Relaxed);
    }

    /// Of which models that is another number than was told, and which.
    pub fn since(&self, told: &BTreeMap<ModelRef, u64>) -> BTreeMap<ModelRef, u64> {
        let all = self.0.iter().map(|entry| (entry.key().clone(), entry.value().load(Ordering::Relaxed)));
        all.filter(|(model, rows)| told.get(model) != Some(rows)).collect()
    }
}
