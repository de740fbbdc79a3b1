//! How many rows this node's homes have wanted run of each model, wherever it stands, whether it could be or not: the leader finds from it
//! how many replicas are needed.

use std::collections::BTreeMap;
use std::time::Duration;

use dashmap::DashMap;
use weir_core::ids::ModelRef;
use weir_core::profile::Profile;
use weir_core::router::Coming;
use weir_core::units::Instant;

/// Rows by model. Models are those of the table: strangers cannot grow this with names.
#[derive(Default)]
pub struct Wanted(DashMap<ModelRef, Rows>);

#[derive(Default)]
struct Rows {
    /// Since the process started.
    all: u64,
    lately: Coming,
}

impl Wanted {
    /// Rows are to be run, or would be if there were room for them.
    pub fn add(&self, now: Instant, model: &ModelRef, rows: usize) {
        let add = |known: &mut Rows| {
            known.all += rows as u64;
            known.lately.add(now, rows);
        };
        if let Some(mut known) = self.0.get_mut(model) {
            return add(&mut known);
        }
        add(&mut self.0.entry(model.clone()).or_default());
    }

    /// Slot time that a row saves by meeting those of other homes: see [`Coming::saves`].
    pub fn saves(&self, now: Instant, model: &ModelRef, profile: &Profile, left: Duration, spare: f64) -> Duration {
        let lately = self.0.get(model).map(|known| known.lately).unwrap_or_default();
        lately.saves(now, profile, left, spare)
    }

    /// Of which models that is another number than was told, and which.
    pub fn since(&self, told: &BTreeMap<ModelRef, u64>) -> BTreeMap<ModelRef, u64> {
        let all = self.0.iter().map(|entry| (entry.key().clone(), entry.value().all));
        all.filter(|(model, rows)| told.get(model) != Some(rows)).collect()
    }
}
