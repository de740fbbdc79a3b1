//! What this node tells operators about itself, from memory.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weir_core::endpoint::{Endpoint, Stage};
use weir_core::history::{EndpointRecent, Explained, History, KEPT, NodeFacts, NodeRecent, Record, WINDOW};
use weir_core::ids::{ModelRef, QueryId};
use weir_core::outcome::{Class, Outcome};
use weir_core::paging::Paged;
use weir_core::triage::Claim;
use weir_core::units::{Bytes, Deadline, Instant};
use weir_schema::control_capnp::node_operator;
use weir_schema::convert::control::read_u128;
use weir_schema::convert::history::{write_explained, write_recent};

use crate::Shared;
use crate::table::{Table, price};

/// What each RPC thread remembers of the queries whose home it was. A thread writes its own; whoever explains reads all.
#[derive(Default)]
pub struct Histories(Mutex<Vec<Arc<Mutex<History>>>>);

/// One thread's.
pub struct Remembered(Arc<Mutex<History>>);

impl Histories {
    /// That of a new thread.
    pub fn begin(&self) -> Remembered {
        let history = Arc::<Mutex<History>>::default();
        lock(&self.0).push(Arc::clone(&history));
        Remembered(history)
    }
}

impl Remembered {
    /// Rows of a call have ended.
    pub fn add(&self, records: impl IntoIterator<Item = Record>) {
        let mut history = lock(&self.0);
        records.into_iter().for_each(|record| history.add(record));
    }
}

/// Records are whole, whoever panicked while writing one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an operator's token opens at a node.
pub struct OperatorObject {
    pub shared: Arc<Shared>,
}

/// What happened in the last seconds, and happens now.
fn recent(shared: &Shared, table: &Table, seconds: usize) -> NodeRecent {
    let now = shared.host.clock.now();
    let endpoints = table.endpoints.iter().map(|(name, served)| {
        let counters = shared.ledger.of(name);
        let (labelled, gates) = counters.honesty(served.ladders.endpoint());
        let (recent, ever) = counters.recent(now, seconds);
        EndpointRecent {
            endpoint: name.clone(),
            stages: served.ladders.endpoint().stages.iter().map(|stage| stage.name.clone()).collect(),
            price: dearest(shared, table, served.ladders.endpoint(), now),
            labelled,
            shadow: counters.shadow(),
            gates,
            ever,
            recent,
        }
    });
    let devices = shared.devices.values().map(|device| device.now());
    NodeRecent { endpoints: endpoints.collect(), devices: devices.collect() }
}

/// What a second of slot time costs a query of an endpoint that comes now, where its deeper stages are dearest.
fn dearest(shared: &Shared, table: &Table, endpoint: &Endpoint, now: Instant) -> f64 {
    let deadline = Deadline::after(now, endpoint.deadline);
    let claim = Claim { deadline, class: Class::Default, tenant: endpoint.tenant() };
    let of = |model: &ModelRef| price(table, &shared.devices, &shared.remote_waits, now, model, claim);
    endpoint.stages.iter().skip(1).filter_map(Stage::model).map(of).fold(0.0, f64::max)
}

/// Everything that metrics tell.
pub fn facts(shared: &Shared, joined: bool) -> NodeFacts {
    let now = shared.host.clock.now();
    let table = shared.table.load();
    let recent = recent(shared, &table, WINDOW);
    let mut by_model: BTreeMap<ModelRef, Paged> = BTreeMap::new();
    for (model, paged) in shared.devices.memory.paged().into_values() {
        by_model.entry(model).and_modify(|known| known.merge(&paged)).or_insert(paged);
    }
    NodeFacts {
        node: shared.name.to_string(),
        unready: match (joined, shared.is_draining()) {
            (_, true) => Some("it is draining"),
            (false, _) => Some("it has not joined its cluster yet"),
            (true, false) => None,
        },
        calls_in_flight: shared.calls.load(Ordering::Relaxed) as u64,
        held: Bytes(shared.held.bytes() as u64),
        epoch: table.epoch.0,
        totals: recent.endpoints.iter().map(|told| shared.ledger.of(&told.endpoint).totals(now)).collect(),
        recent,
        refused: shared.ledger.refusals(),
        demand: shared.asked(),
        memory: shared.devices.memory.now(),
        paged: by_model,
    }
}

impl OperatorObject {
    /// What the answer to a query should have been; whether it is remembered here.
    fn label(&self, id: QueryId, label: u32) -> bool {
        for history in lock(&self.shared.histories.0).iter() {
            let history = lock(history);
            let found = history.find(id);
            let answered = found.iter().rev().find(|record| record.outcome == Outcome::Answered);
            let Some((record, endpoint)) = answered.and_then(|record| Some((record, record.endpoint.as_ref()?))) else {
                continue;
            };
            // Where the endpoint is gone, nobody asks any more how right it is.
            if let Some(now) = self.shared.table.load().endpoints.get(&endpoint.name) {
                let counters = self.shared.ledger.of(&endpoint.name);
                counters.labelled(now.ladders.endpoint(), endpoint, (id, label), record.label);
            }
            return true;
        }
        false
    }

    fn explain(&self, id: QueryId) -> Explained {
        let now = self.shared.host.clock.now();
        let mut explained = Explained { kept: KEPT as u32, ..Explained::default() };
        for history in lock(&self.shared.histories.0).iter() {
            let history = lock(history);
            explained.records.extend(history.find(id).into_iter().map(|record| record.tell(now)));
            // Of the thread that has forgotten most.
            let [answered, troubled] = history.reach(now);
            explained.answered_reach = explained.answered_reach.into_iter().chain(answered).min();
            explained.troubled_reach = explained.troubled_reach.into_iter().chain(troubled).min();
        }
        explained.records.sort_by_key(|told| std::cmp::Reverse(told.ago));
        explained
    }
}

impl node_operator::Server for OperatorObject {
    async fn recent(
        self: Rc<Self>,
        params: node_operator::RecentParams,
        mut results: node_operator::RecentResults,
    ) -> Result<(), capnp::Error> {
        let seconds = match params.get()?.get_seconds() {
            0 => WINDOW,
            seconds => seconds as usize,
        };
        write_recent(results.get().init_recent(), &recent(&self.shared, &self.shared.table.load(), seconds));
        Ok(())
    }

    async fn explain(
        self: Rc<Self>,
        params: node_operator::ExplainParams,
        mut results: node_operator::ExplainResults,
    ) -> Result<(), capnp::Error> {
        let id = QueryId(read_u128(params.get()?.get_id()?));
        write_explained(results.get().init_explained(), &OperatorObject::explain(&self, id));
        Ok(())
    }

    async fn label(
        self: Rc<Self>,
        params: node_operator::LabelParams,
        mut results: node_operator::LabelResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let known = OperatorObject::label(&self, QueryId(read_u128(params.get_id()?)), params.get_label());
        results.get().set_known(known);
        Ok(())
    }
}
