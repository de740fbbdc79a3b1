//! Copies of queries that nobody waits for: audits, which ask every stage, and those that a shadow sees.

use std::rc::Rc;
use std::sync::Arc;

use weir_core::endpoint::Wiring;
use weir_core::endpoint::audit::{Audited, COPIES_MAX};
use weir_core::endpoint::passage::{class, signal};
use weir_core::ids::QueryId;
use weir_core::outcome::Class;
use weir_core::tensor::Row;
use weir_core::units::{Deadline, Instant};

use super::{Call, Gathered, Home};
use crate::table::Served;

impl Home {
    /// Gives a copy of each answered row to the shadow, now that the caller has its answer.
    pub(super) fn shadow_all(self: &Rc<Self>, call: &Call, shadow: &Arc<Served>, rows: &mut [Gathered]) {
        let now = self.shared.host.clock.now();
        for (asked, row) in call.rows.iter().zip(rows) {
            let Some((.., answer)) = row.answers.pop() else { continue };
            if self.copies.get() < COPIES_MAX {
                self.copies.set(self.copies.get() + 1);
                let (home, shadow) = (Rc::clone(self), Arc::clone(shadow));
                let copy = Call {
                    ladders: Arc::clone(&shadow.ladders),
                    wiring: Arc::clone(&shadow.wiring),
                    budget: Arc::clone(&shadow.budget),
                    ..call.audit(now, asked.clone())
                };
                let own = Arc::clone(&call.wiring);
                tokio::task::spawn_local(async move {
                    let (_, rows, _room) = home.travel(&copy).await;
                    home.copies.set(home.copies.get() - 1);
                    let Some((.., seen)) = rows[0].answers.last() else { return };
                    let endpoint = copy.ladders.endpoint();
                    let alike = alike((&own, &answer), (&copy.wiring, seen));
                    home.shared.ledger.of(&endpoint.name).shadowed(alike);
                });
            }
        }
    }

    /// Draws rows of a call that every stage is asked about, now that the caller has its answer.
    pub(super) fn audit_some(self: &Rc<Self>, call: &Call, id: QueryId) {
        let endpoint = call.ladders.endpoint();
        let share = endpoint.audited();
        if share <= 0.0 {
            return;
        }
        for (slot, row) in call.rows.iter().enumerate() {
            let drawn = self.prng.borrow_mut().uniform() < share;
            if drawn && self.copies.get() < COPIES_MAX {
                self.copies.set(self.copies.get() + 1);
                let home = Rc::clone(self);
                let (call, id) = (call.audit(self.shared.host.clock.now(), row.clone()), id.row(slot as u64));
                tokio::task::spawn_local(async move { home.audit(call, id).await });
            }
        }
    }

    /// Asks every stage about a row.
    async fn audit(self: Rc<Self>, call: Call, id: QueryId) {
        let (_, rows, _room) = self.travel(&call).await;
        self.copies.set(self.copies.get() - 1);
        let endpoint = call.ladders.endpoint();
        let mut said = vec![None; endpoint.stages.len()];
        for (stage, _, outputs) in &rows[0].answers {
            let signal = signal(endpoint, &call.wiring, *stage, outputs);
            said[*stage] = signal.zip(class(&call.wiring, *stage, outputs));
        }
        if let Some(now) = self.shared.table.load().endpoints.get(&endpoint.name) {
            self.shared.ledger.of(&endpoint.name).audited(now.ladders.endpoint(), endpoint, Audited { id, said });
        }
    }
}

impl Call {
    /// One of its rows, for every stage, in the gaps and with time for that.
    fn audit(&self, now: Instant, row: Row) -> Call {
        let endpoint = self.ladders.endpoint();
        Call {
            ladders: Arc::clone(&self.ladders),
            wiring: Arc::clone(&self.wiring),
            budget: Arc::clone(&self.budget),
            rows: vec![row],
            deadline: Deadline::after(now, endpoint.copy_within()),
            class: Class::Sheddable,
            depth: endpoint.copy_depth(),
            demanding: true,
            outputs: Vec::new(),
            trace: false,
            shadow: None,
        }
    }
}

/// Whether two models that are wired alike answer a row alike: with the same class where the endpoint has classes, or else to the last byte.
fn alike((own, answer): (&Wiring, &Row), (other, seen): (&Wiring, &Row)) -> bool {
    let classes = (class(own, 0, answer), class(other, 0, seen));
    if let (Some(own), Some(other)) = classes {
        return own == other;
    }
    let mut outputs = own.outputs[0].iter().zip(&other.outputs[0]);
    outputs.all(|(a, b)| answer.shape(*a) == seen.shape(*b) && answer.data(*a) == seen.data(*b))
}
