//! Which policy serves most on one device, or on several under one scheduler? The question of `scheduling.md` section 15.

use std::time::Duration;

use weir_core::ids::{ModelRef, ReplicaId, TicketId};
use weir_core::outcome::Class;
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::scheduler::{Policy, Query, ShapeKey};
use weir_core::units::{Deadline, Instant};
use weir_core::workload::{Arrivals, Rate};

use crate::device::{Device, Effect, Service};
use crate::engine::Agenda;

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
    /// Share of slot time spent on batches.
    pub busy: f64,
    /// Mean rows of a batch.
    pub batch: f64,
    /// Latencies of answered queries in nanoseconds, sorted.
    pub latencies: Vec<u64>,
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

    /// The latency that a share `q` of answered queries does not exceed, in milliseconds.
    pub fn quantile_ms(&self, q: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * q).round() as usize).map_or(f64::NAN, |nanos| *nanos as f64 / 1e6)
    }
}

enum Event {
    Arrival(usize),
    Finish(ReplicaId),
    Wake,
}

/// Queries at `rate` a second over all models for `length`; the same seed gives every policy the same queries.
pub fn run(case: &Case, policy: Policy, rate: f64, length: Duration, seed: u64) -> Outcome {
    let names: Vec<ModelRef> =
        (0..case.models.len()).map(|i| ModelRef::parse(&format!("m{i}@1")).expect("a name")).collect();
    let mut device = Device::new(case.slots, policy, Prng::part(seed, u64::MAX));
    let mut agenda = Agenda::new();
    let mut effects = Vec::new();
    let mut arrivals = Vec::new();
    for (i, model) in case.models.iter().enumerate() {
        for slot in 0..case.slots {
            let id = ReplicaId(i as u64 * u64::from(case.slots) + u64::from(slot));
            let (believed, service) = (model.believed.clone(), model.service.clone());
            device.add_replica(Instant::ZERO, id, names[i].clone(), believed, model.max_batch, service, &mut effects);
        }
        let rate = Rate::per_second(rate * model.share).expect("a rate above 0");
        let process = case.arrivals.process(Some(rate), None).expect("processes that need no trace");
        let mut instants = process.instants(Prng::part(seed, i as u64));
        let first = instants.next();
        agenda_first(&mut agenda, first, i, length);
        arrivals.push(instants);
    }
    let mut served = vec![Served::default(); case.models.len()];
    let mut latencies = Vec::new();
    // By ticket: (model, arrival).
    let mut queries: Vec<(usize, Instant)> = Vec::new();
    while let Some(event) = agenda.next() {
        let now = agenda.now();
        match event {
            Event::Arrival(i) => {
                let next = arrivals[i].next();
                agenda_first(&mut agenda, next, i, length);
                served[i].offered += 1;
                let ticket = TicketId(queries.len() as u64);
                queries.push((i, now));
                let query = Query {
                    ticket,
                    deadline: Deadline(now + case.models[i].slo),
                    class: Class::Default,
                    shape: ShapeKey(0),
                    mergeable: true,
                    rows: 1,
                };
                device.arrive(now, &names[i], &[query], &mut effects);
            }
            Event::Finish(replica) => {
                for ran in device.finish(now, replica, &mut effects) {
                    let (i, since) = queries[ran.ticket.0 as usize];
                    let latency = now.since(since);
                    latencies.push(latency.as_nanos() as u64);
                    if latency <= case.models[i].slo {
                        served[i].in_time += 1;
                    } else {
                        served[i].late += 1;
                    }
                }
            }
            Event::Wake => device.wake(now, &mut effects),
        }
        for effect in effects.drain(..) {
            match effect {
                Effect::FinishAt { at, replica } => agenda.at(at, Event::Finish(replica)),
                Effect::WakeAt(at) => agenda.at(at, Event::Wake),
                Effect::Rejected { ticket, .. } => served[queries[ticket.0 as usize].0].refused += 1,
                Effect::Expired { ticket } => served[queries[ticket.0 as usize].0].expired += 1,
            }
        }
    }
    latencies.sort_unstable();
    let batches = device.batches();
    Outcome {
        served,
        busy: device.busy().as_duration().as_secs_f64()
            / (agenda.now().since(Instant::ZERO).as_secs_f64() * f64::from(case.slots)),
        batch: batches.rows() as f64 / batches.count().max(1) as f64,
        latencies,
    }
}

fn agenda_first(agenda: &mut Agenda<Event>, instant: Option<Instant>, model: usize, length: Duration) {
    if let Some(at) = instant.filter(|at| at.since(Instant::ZERO) < length) {
        agenda.at(at, Event::Arrival(model));
    }
}

/// The lowest rate that a search tries.
pub const FLOOR: f64 = 10.0;

/// The highest rate at which a share `goal` of queries is in time, by bisection to within half a percent.
pub fn peak(case: &Case, policy: Policy, goal: f64, length: Duration, seed: u64) -> f64 {
    let meets = |rate: f64| run(case, policy, rate, length, seed).attainment() >= goal;
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
