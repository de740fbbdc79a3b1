//! Which policy serves most on one device, or on several under one scheduler? The question of `scheduling.md` section 15.

use std::time::Duration;

use weir_core::ids::{ModelRef, ReplicaId, TicketId};
use weir_core::outcome::Class;
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::scheduler::{Policy, Query, ShapeKey};
use weir_core::triage::Bid;
use weir_core::units::{Deadline, Instant};
use weir_core::workload::{Arrivals, Rate};

use crate::device::{Device, Effect, Service};
use crate::engine::Agenda;

#[cfg(test)]
mod tests;

/// A model of a case.
#[derive(Clone, Debug)]
pub struct Load {
    /// What the scheduler believes.
    pub believed: Profile,
    /// What is.
    pub service: Service,
    /// Largest batch.
    pub max_batch: u32,
    /// Time that each query has.
    pub slo: Duration,
    /// Part of all queries; the parts of a case add up to 1.
    pub share: f64,
}

/// Models on slots under one scheduler.
#[derive(Clone, Debug)]
pub struct Case {
    /// Slots, with a replica of each model for each.
    pub slots: u32,
    /// Its models.
    pub models: Vec<Load>,
    /// How the queries of each model come.
    pub arrivals: Arrivals,
}

/// What became of the queries of one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Served {
    pub offered: u64,
    pub in_time: u64,
    pub late: u64,
    pub refused: u64,
    pub expired: u64,
}

/// What became of all queries of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// By model.
    pub served: Vec<Served>,
}

impl Outcome {
    /// Over all models.
    pub fn total(&self) -> Served {
        self.served.iter().fold(Served::default(), |sum, served| Served {
            offered: sum.offered + served.offered,
            in_time: sum.in_time + served.in_time,
            late: sum.late + served.late,
            refused: sum.refused + served.refused,
            expired: sum.expired + served.expired,
        })
    }

    /// Share of all queries answered in time.
    pub fn attainment(&self) -> f64 {
        let total = self.total();
        total.in_time as f64 / total.offered.max(1) as f64
    }
}

/// A query of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Asked {
    pub at: Instant,
    /// Number of its model in the case.
    pub model: usize,
    pub deadline: Deadline,
    pub class: Class,
    /// Whether it may share a batch.
    pub mergeable: bool,
}

impl Asked {
    /// As a device is asked it: one row.
    pub fn query(&self, ticket: TicketId) -> Query {
        Query {
            ticket,
            deadline: self.deadline,
            class: self.class,
            shape: ShapeKey(0),
            mergeable: self.mergeable,
            rows: 1,
            bid: Bid::PLAIN,
        }
    }
}

enum Event {
    Arrival,
    Finish(ReplicaId),
    Wake,
}

/// Queries at `rate` a second over all models for `length`; the same seed gives every policy the same queries.
pub fn run(case: &Case, policy: Policy, rate: f64, length: Duration, seed: u64) -> Outcome {
    replay(case, policy, &queries(case, rate, length, seed), seed)
}

/// The queries of [`run`], in order of arrival.
pub fn queries(case: &Case, rate: f64, length: Duration, seed: u64) -> Vec<Asked> {
    let mut all = Vec::new();
    for (i, model) in case.models.iter().enumerate() {
        let rate = Rate::per_second(rate * model.share).expect("a rate above 0");
        let process = case.arrivals.process(Some(rate), None).expect("processes that need no trace");
        let instants = process.instants(Prng::part(seed, i as u64));
        all.extend(instants.take_while(|at| at.since(Instant::ZERO) < length).map(|at| Asked {
            at,
            model: i,
            deadline: Deadline(at + model.slo),
            class: Class::Default,
            mergeable: true,
        }));
    }
    all.sort_by_key(|query| (query.at, query.model));
    all
}

/// What becomes of `queries`, sorted by arrival; noise is drawn from `seed`.
pub fn replay(case: &Case, policy: Policy, queries: &[Asked], seed: u64) -> Outcome {
    let names: Vec<ModelRef> =
        (0..case.models.len()).map(|i| ModelRef::parse(&format!("m{i}@1")).expect("a name")).collect();
    let mut device = Device::new(case.slots, policy, Prng::part(seed, u64::MAX));
    let mut agenda = Agenda::new();
    let mut effects = Vec::new();
    for (i, model) in case.models.iter().enumerate() {
        for slot in 0..case.slots {
            let id = ReplicaId(i as u64 * u64::from(case.slots) + u64::from(slot));
            let (believed, service) = (model.believed.clone(), model.service.clone());
            device.add_replica(Instant::ZERO, id, names[i].clone(), believed, model.max_batch, service, &mut effects);
        }
    }
    let mut served = vec![Served::default(); case.models.len()];
    let mut arrived = 0;
    agenda_next(&mut agenda, queries, arrived);
    while let Some(event) = agenda.next() {
        let now = agenda.now();
        match event {
            Event::Arrival => {
                let asked = queries[arrived];
                let ticket = TicketId(arrived as u64);
                arrived += 1;
                agenda_next(&mut agenda, queries, arrived);
                served[asked.model].offered += 1;
                device.arrive(now, &names[asked.model], &[asked.query(ticket)], &mut effects);
            }
            Event::Finish(replica) => {
                for ticket in device.finish(now, replica, &mut effects) {
                    let asked = queries[ticket.0 as usize];
                    if asked.deadline.missed_by(now) {
                        served[asked.model].late += 1;
                    } else {
                        served[asked.model].in_time += 1;
                    }
                }
            }
            Event::Wake => device.wake(now, &mut effects),
        }
        for effect in effects.drain(..) {
            match effect {
                Effect::FinishAt { at, replica } => agenda.at(at, Event::Finish(replica)),
                Effect::WakeAt(at) => agenda.at(at, Event::Wake),
                Effect::Rejected { ticket, .. } => served[queries[ticket.0 as usize].model].refused += 1,
                Effect::Expired { ticket } => served[queries[ticket.0 as usize].model].expired += 1,
            }
        }
    }
    Outcome { served }
}

fn agenda_next(agenda: &mut Agenda<Event>, queries: &[Asked], number: usize) {
    if let Some(asked) = queries.get(number) {
        agenda.at(asked.at, Event::Arrival);
    }
}

/// The lowest rate that a search tries.
pub const FLOOR: f64 = 10.0;

/// The highest rate at which a share `goal` of queries is in time, by bisection to within half a percent.
pub fn peak(case: &Case, policy: Policy, goal: f64, length: Duration, seed: u64) -> f64 {
    highest(|rate| run(case, policy, rate, length, seed).attainment() >= goal)
}

/// The highest rate that `meets` a goal, by bisection to within half a percent.
pub fn highest(meets: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (FLOOR, FLOOR * 2.0);
    while meets(high) {
        low = high;
        high *= 2.0;
    }
    while high / low > 1.005 {
        let middle = (low * high).sqrt();
        if meets(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}
