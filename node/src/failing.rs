//! Models of which rows fail, as this node's homes see it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use weir_core::ids::ModelRef;
use weir_core::triage::Failing;
use weir_core::units::Instant;

/// By model of which a row has failed of late.
#[derive(Default)]
pub struct Failings {
    models: Mutex<BTreeMap<ModelRef, Failing>>,
    /// How many there are: mostly none, and then nobody has to look.
    count: AtomicUsize,
}

impl Failings {
    /// A row of a model ran, or it ran and failed.
    pub fn on_end(&self, model: &ModelRef, failed: bool) {
        if !failed && self.is_empty() {
            return;
        }
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if failed && !models.contains_key(model) {
            models.insert(model.clone(), Failing::default());
        }
        if let Some(failing) = models.get_mut(model) {
            let failed_before = failing.fails();
            failing.on_end(failed);
            match (failed_before, failing.fails()) {
                (false, true) => tracing::warn!(%model, "nearly all its rows fail: only now and then one is sent"),
                (true, false) => tracing::info!(%model, "its rows run again"),
                _ => {}
            }
            if failing.is_over() {
                models.remove(model);
            }
        }
        self.count.store(models.len(), Ordering::Relaxed);
    }

    /// Whether nearly all rows of a model fail.
    pub fn fails(&self, model: &ModelRef) -> bool {
        !self.is_empty() && self.look(model, |failing| failing.fails()).unwrap_or(false)
    }

    /// Whether rows that have an answer in hand may be sent to a model.
    pub fn may_go(&self, now: Instant, model: &ModelRef) -> bool {
        self.is_empty() || self.look(model, |failing| failing.may_go(now)).unwrap_or(true)
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    fn look<T>(&self, model: &ModelRef, what: impl FnOnce(&mut Failing) -> T) -> Option<T> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).get_mut(model).map(what)
    }
}
