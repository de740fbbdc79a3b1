//! What became of queries at this home, by endpoint: since the node started, and in the last seconds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use weir_core::endpoint::Endpoint;
use weir_core::endpoint::audit::{Audit, Audited, GateAudit, Labelled};
use weir_core::history::{Ever, Recent, Record, Seconds, Statistics, Totals};
use weir_core::ids::{EndpointName, ModelRef, QueryId};
use weir_core::outcome::{Outcome, Rejection};
use weir_core::placement::EndpointLoad;
use weir_core::rollout::Score;
use weir_core::units::Instant;
use weir_host::clock::Clock;

/// Counters of one endpoint.
#[derive(Default)]
pub struct Counters {
    arrived: AtomicU64,
    last_error: Mutex<String>,
    /// Taken once a call, for a moment, when it ends.
    ended: Mutex<Option<Ended>>,
    /// Whether its gain tables are true.
    audit: Mutex<Audit>,
    /// Where the endpoint has an objective for them.
    versions: Mutex<BTreeMap<ModelRef, Score>>,
    shadowed: AtomicU64,
    agreed: AtomicU64,
}

/// What has ended.
struct Ended {
    recent: Recent,
    totals: Totals,
    /// When an answer was given last.
    answered: Option<Instant>,
}

/// A call that nobody has answered yet; dropped before, its caller went away.
pub struct Answering<'a> {
    counters: &'a Counters,
    clock: &'a dyn Clock,
    done: bool,
}

impl Answering<'_> {
    /// Its rows have ended.
    pub fn ended(mut self, records: &[Record]) {
        self.done = true;
        self.counters.ended(self.clock.now(), records);
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.counters.with_ended(self.clock.now(), |ended| ended.totals.cancelled += 1);
        }
    }
}

impl Counters {
    /// Every stage was asked about a row, of the endpoint as it was when it was `asked`.
    pub fn audited(&self, endpoint: &Endpoint, asked: &Endpoint, audited: Audited) {
        self.audit(endpoint).on_audited(asked, audited);
    }

    /// Somebody told what the answer to a query should have been, which was answered by the endpoint as it was when it was `asked`.
    pub fn labelled(&self, endpoint: &Endpoint, asked: &Endpoint, (id, label): (QueryId, u32), said: Option<u32>) {
        let mut audit = self.audit(endpoint);
        audit.on_label(id, label);
        if let Some(said) = said {
            audit.on_answer_labelled(asked, said == label);
        }
    }

    /// What is known of the endpoint as it is now.
    fn audit(&self, endpoint: &Endpoint) -> MutexGuard<'_, Audit> {
        let mut audit = self.audit.lock().unwrap_or_else(PoisonError::into_inner);
        audit.on_endpoint(endpoint);
        audit
    }

    /// A shadow answered a row too.
    pub fn shadowed(&self, alike: bool) {
        self.shadowed.fetch_add(1, Ordering::Relaxed);
        self.agreed.fetch_add(u64::from(alike), Ordering::Relaxed);
    }

    /// Rows that a shadow answered too, and how many of them alike.
    pub fn shadow(&self) -> (u64, u64) {
        (self.shadowed.load(Ordering::Relaxed), self.agreed.load(Ordering::Relaxed))
    }

    /// Of the endpoint as it is now: answers whose label is known, and how many of them are right; by stage, what audits found about the gate
    /// before it.
    pub fn honesty(&self, endpoint: &Endpoint) -> (Labelled, Vec<GateAudit>) {
        let audit = self.audit(endpoint);
        (audit.labelled(), audit.gates().to_vec())
    }
}

/// Counters of all endpoints.
#[derive(Default)]
pub struct Ledger {
    endpoints: DashMap<EndpointName, Arc<Counters>>,
    /// Calls that were refused as a whole.
    refused: Mutex<BTreeMap<Rejection, u64>>,
}

impl Ledger {
    /// The counters of an endpoint that exists: strangers cannot grow this with names.
    pub fn of(&self, endpoint: &EndpointName) -> Arc<Counters> {
        if let Some(known) = self.endpoints.get(endpoint) {
            return Arc::clone(&known);
        }
        Arc::clone(&self.endpoints.entry(endpoint.clone()).or_default())
    }

    /// All of them, for the report, by name.
    pub fn loads(&self, now: Instant) -> Vec<EndpointLoad> {
        let mut loads: Vec<_> = self.endpoints.iter().map(|entry| entry.value().load(now, entry.key())).collect();
        loads.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        loads
    }

    /// A call was refused before anybody looked at its rows.
    pub fn refused(&self, why: Rejection) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
    }

    /// How many calls were refused so, by reason.
    pub fn refusals(&self) -> BTreeMap<Rejection, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Counters {
    /// Rows of a call came; it is to be told when they have ended.
    pub fn arrived<'a>(&'a self, rows: usize, clock: &'a dyn Clock) -> Answering<'a> {
        self.arrived.fetch_add(rows as u64, Ordering::Relaxed);
        Answering { counters: self, clock, done: false }
    }

    fn ended(&self, now: Instant, records: &[Record]) {
        let broken = |record: &&Record| matches!(record.outcome, Outcome::Failed | Outcome::Unknown);
        if let Some(record) = records.iter().rev().find(broken) {
            self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&record.message);
        }
        self.count_versions(records);
        self.with_ended(now, |ended| {
            ended.totals.ended(records, ended.recent.at(now));
            if records.iter().any(|record| record.outcome == Outcome::Answered) {
                ended.answered = Some(now);
            }
        });
    }

    /// The last whole seconds, and all since the node started.
    pub fn recent(&self, now: Instant, seconds: usize) -> (Seconds, Ever) {
        self.with_ended(now, |ended| (ended.recent.read(now, seconds), ended.totals.ever()))
    }

    /// Everything since the node started.
    pub fn totals(&self, now: Instant) -> Totals {
        self.with_ended(now, |ended| ended.totals.clone())
    }

    /// What is told over the open inference protocol.
    pub fn statistics(&self, now: Instant) -> Statistics {
        self.with_ended(now, |ended| Statistics { last: ended.answered.map(|at| now.since(at)), ..ended.totals.calls })
    }

    fn with_ended<T>(&self, now: Instant, with: impl FnOnce(&mut Ended) -> T) -> T {
        let begin = || Ended { recent: Recent::new(now), totals: Totals::default(), answered: None };
        with(self.ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(begin))
    }

    /// All rows of a call go to one version.
    fn count_versions(&self, records: &[Record]) {
        let endpoint = records.first().and_then(|record| record.endpoint.as_deref());
        let Some(endpoint) = endpoint.filter(|endpoint| endpoint.objective > 0.0) else { return };
        let Some(model) = endpoint.stages.first().and_then(|stage| stage.model()) else { return };
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let score = versions.entry(model.clone()).or_default();
        records.iter().for_each(|record| score.add(record.outcome == Outcome::Answered && !record.is_late()));
    }

    fn load(&self, now: Instant, endpoint: &EndpointName) -> EndpointLoad {
        let totals = self.totals(now);
        EndpointLoad {
            endpoint: endpoint.clone(),
            arrived: self.arrived.load(Ordering::Relaxed),
            answered: totals.request.count(),
            rejected: totals.rejected(),
            expired: totals.expired(),
            failed: totals.failed,
            degraded: totals.degraded,
            by_stage: totals.by_stage,
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            versions: self
                .versions
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .map(|(model, score)| (model.clone(), *score))
                .collect(),
        }
    }
}
