//! One device in virtual time: the cluster's scheduler, and batches that take what a model of service says.

use std::collections::BTreeMap;

use weir_core::ids::{ModelRef, ReplicaId, TicketId};
use weir_core::outcome::Rejection;
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::router::{Estimate, Told};
use weir_core::scheduler::{self, Action, Inquiry, Policy, Query, ShapeKey};
use weir_core::triage::{ByModel, Claim, Price, Tenant};
use weir_core::units::{Instant, ServiceTime};

/// How long batches of a model really take, whatever the scheduler believes.
#[derive(Clone, Debug)]
pub struct Service {
    /// Time by batch size without noise.
    pub profile: Profile,
    /// Each batch takes a factor from 1 − noise to 1 + noise of that, all equally likely.
    pub noise: f64,
    /// Waking up and being heard: every batch takes so much longer than computing.
    pub overhead: ServiceTime,
}

impl Service {
    /// Exactly what `profile` says.
    pub fn exact(profile: Profile) -> Service {
        Service { profile, noise: 0.0, overhead: ServiceTime::ZERO }
    }

    fn draw(&self, rows: u32, prng: &mut Prng) -> ServiceTime {
        let time = self.profile.estimate(rows);
        let noise = if self.noise == 0.0 { 0.0 } else { self.noise * (2.0 * prng.uniform() - 1.0) };
        time.scaled(1.0 + noise) + self.overhead
    }
}

/// What the device wants of whoever simulates it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Effect {
    /// Call [`Device::finish`] at this instant.
    FinishAt { at: Instant, replica: ReplicaId },
    /// Call [`Device::wake`] at this instant.
    WakeAt(Instant),
    /// The row did not run.
    Rejected { ticket: TicketId, why: Rejection },
    /// The row's deadline could not be met any more.
    Expired { ticket: TicketId },
}

/// Of all rows of simulated queries.
pub const SHAPE: ShapeKey = ShapeKey(0);

/// A device whose batches end in virtual time.
#[derive(Debug)]
pub struct Device {
    scheduler: scheduler::Device,
    services: BTreeMap<ReplicaId, Service>,
    running: BTreeMap<ReplicaId, (Instant, Vec<TicketId>)>,
    prng: Prng,
    wake: Option<Instant>,
    actions: Vec<Action>,
}

impl Device {
    /// A device with `slots` slots; noise is drawn from `prng`.
    pub fn new(slots: u32, policy: Policy, prng: Prng) -> Device {
        Device {
            scheduler: scheduler::Device::new(slots, policy),
            services: BTreeMap::new(),
            running: BTreeMap::new(),
            prng,
            wake: None,
            actions: Vec::new(),
        }
    }

    /// A replica of `model`: the scheduler believes `profile`, batches take what `service` says.
    #[allow(clippy::too_many_arguments)] // what the scheduler asks for, and what is
    pub fn add_replica(
        &mut self,
        now: Instant,
        id: ReplicaId,
        model: ModelRef,
        profile: Profile,
        max_batch: u32,
        service: Service,
        out: &mut Vec<Effect>,
    ) {
        self.services.insert(id, service);
        self.scheduler.add_replica(now, id, model, profile, max_batch, &mut self.actions);
        self.perform(now, out);
    }

    /// Takes away a replica that is not in use.
    pub fn remove_replica(&mut self, now: Instant, id: ReplicaId, out: &mut Vec<Effect>) {
        assert!(!self.running.contains_key(&id), "replica {id} runs a batch");
        self.services.remove(&id);
        self.scheduler.remove_replica(now, id, &mut self.actions);
        self.perform(now, out);
    }

    /// Whether rows of its model wait, or it runs a batch.
    pub fn is_in_use(&self, id: ReplicaId, model: &ModelRef) -> bool {
        self.running.contains_key(&id) || self.scheduler.queued(model) > 0
    }

    /// The rows of one call.
    pub fn arrive(&mut self, now: Instant, model: &ModelRef, rows: &[Query], out: &mut Vec<Effect>) {
        self.scheduler.on_arrival(now, model, rows, &mut self.actions);
        self.perform(now, out);
    }

    /// The batch of a replica ends: its rows.
    pub fn finish(&mut self, now: Instant, id: ReplicaId, out: &mut Vec<Effect>) -> Vec<TicketId> {
        let (started, tickets) = self.running.remove(&id).expect("a batch ends once");
        let took = ServiceTime::from(now.since(started));
        self.scheduler.on_batch_done(now, id, took, &mut self.actions);
        self.perform(now, out);
        tickets
    }

    /// A timer that was asked for; does nothing where it was replaced by an earlier one.
    pub fn wake(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.wake == Some(now) {
            self.wake = None;
            self.scheduler.on_wake(now, &mut self.actions);
            self.perform(now, out);
        }
    }

    /// The caller of a row that waits is gone; what runs or has ended is not touched.
    pub fn cancel(&mut self, now: Instant, ticket: TicketId, out: &mut Vec<Effect>) {
        self.scheduler.on_cancel(now, ticket, &mut self.actions);
        self.perform(now, out);
    }

    /// A gate has weighed a row: see [`scheduler::Device::on_weighed`].
    pub fn weighed(&mut self, now: Instant, model: &ModelRef, value: f64, tenant: Tenant) {
        self.scheduler.on_weighed(now, model, value, tenant);
    }

    /// What homes of this node ask: see [`scheduler::Device::asked`].
    pub fn asked(&self, now: Instant) -> ByModel {
        self.scheduler.asked(now)
    }

    /// What homes of other nodes ask: see [`scheduler::Device::on_others`].
    pub fn on_others(&mut self, now: Instant, asked: &ByModel, share: impl Fn(&ModelRef) -> f64) {
        self.scheduler.on_others(now, asked, share);
    }

    /// What a home of another node is told of it: see [`scheduler::Device::told`].
    pub fn told(&mut self, now: Instant, model: &ModelRef, claim: Claim, firm: Option<f64>) -> Told {
        self.scheduler.told(now, model, claim, firm)
    }

    /// What a second of slot time is worth here now to a row of `model` that may come.
    pub fn price(&mut self, now: Instant, model: &ModelRef, claim: Claim) -> Price {
        self.scheduler.price(now, model, claim)
    }

    /// When a slot would be free for a query whose model does not stand here yet: see [`scheduler::Device::estimate_start`].
    pub fn estimate_start(&self, now: Instant, query: &Query) -> Estimate {
        self.scheduler.estimate_start(now, query.class, query.deadline, query.bid.firm())
    }

    /// When a query that came now would be done; `None` without a replica of its model.
    pub fn estimate_finish(&self, now: Instant, model: &ModelRef, asked: Inquiry) -> Option<Estimate> {
        self.scheduler.estimate_finish(now, model, asked, || Some(SHAPE))
    }

    fn perform(&mut self, now: Instant, out: &mut Vec<Effect>) {
        for action in self.actions.drain(..) {
            match action {
                Action::Run { replica, tickets, .. } => {
                    let took = self.services[&replica].draw(tickets.len() as u32, &mut self.prng);
                    out.push(Effect::FinishAt { at: now + took, replica });
                    self.running.insert(replica, (now, tickets));
                }
                Action::Reject { ticket, why } => out.push(Effect::Rejected { ticket, why }),
                Action::Expire { ticket } => out.push(Effect::Expired { ticket }),
                Action::WakeAt(at) => {
                    if self.wake.is_none_or(|wake| at < wake) {
                        self.wake = Some(at);
                        out.push(Effect::WakeAt(at));
                    }
                }
            }
        }
    }
}
