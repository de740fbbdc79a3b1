//! What does a decision cost on a device with 64 models and 4,096 queries waiting? In real time, on one core.
//!
//! `cargo run --release -p weir-sim --example what_does_a_decision_cost [-- MODELS [WAITING [POLICY…]]]`

use std::collections::BTreeMap;
use std::time::Instant as Clock;

use weir_core::ids::{ModelRef, ReplicaId, TicketId};
use weir_core::outcome::Class;
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::scheduler::{Action, Device, Policy, Query, ShapeKey};
use weir_core::triage::Bid;
use weir_core::units::{Deadline, Instant, ServiceTime};

/// Events that are measured.
const EVENTS: usize = 200_000;

fn profile() -> Profile {
    let points = [1u64, 2, 4, 8, 16, 32, 64].map(|rows| (rows as u32, ServiceTime::from_micros(2000 + 500 * rows)));
    Profile::new(&points)
}

/// A device under load in virtual time, whose queue is kept at one length.
struct Bench {
    device: Device,
    models: Vec<ModelRef>,
    profile: Profile,
    prng: Prng,
    now: Instant,
    tickets: u64,
    /// When the batch of each replica ends, and its rows.
    running: BTreeMap<ReplicaId, (Instant, usize)>,
    waiting: usize,
    ran: usize,
    out: Vec<Action>,
}

impl Bench {
    fn new(slots: u32, models: usize, policy: Policy) -> Bench {
        let mut device = Device::new(slots, policy);
        let names: Vec<_> = (0..models).map(|i| ModelRef::parse(&format!("m{i}@1")).expect("a name")).collect();
        for (i, name) in names.iter().enumerate() {
            for slot in 0..u64::from(slots) {
                let id = ReplicaId(i as u64 * u64::from(slots) + slot);
                device.add_replica(Instant::ZERO, id, name.clone(), profile(), 64, &mut Vec::new());
            }
        }
        Bench {
            device,
            models: names,
            profile: profile(),
            prng: Prng::new(1),
            now: Instant::ZERO,
            tickets: 0,
            running: BTreeMap::new(),
            waiting: 0,
            ran: 0,
            out: Vec::new(),
        }
    }

    /// One query of any model; the nanoseconds that its arrival took.
    fn arrive(&mut self) -> u64 {
        self.now = self.now + ServiceTime::from_micros(1);
        self.tickets += 1;
        let left = ServiceTime::from_micros(10_000_000 + self.prng.below(10_000_000));
        let query = Query {
            ticket: TicketId(self.tickets),
            deadline: Deadline(self.now + left),
            class: Class::Default,
            shape: ShapeKey(0),
            mergeable: true,
            rows: 1,
            bid: Bid::PLAIN,
        };
        let model = self.models[self.prng.below(self.models.len() as u64) as usize].clone();
        self.waiting += 1;
        let before = Clock::now();
        self.device.on_arrival(self.now, &model, &[query], &mut self.out);
        let took = before.elapsed().as_nanos() as u64;
        self.perform();
        took
    }

    /// The batch that ends first ends; the nanoseconds that the next decision took.
    fn done(&mut self) -> u64 {
        let (&id, &(at, rows)) = self.running.iter().min_by_key(|(_, (at, _))| *at).expect("slots are busy");
        self.running.remove(&id);
        self.now = self.now.max(at);
        let took = self.profile.estimate(rows as u32);
        let before = Clock::now();
        self.device.on_batch_done(self.now, id, took, &mut self.out);
        let spent = before.elapsed().as_nanos() as u64;
        self.perform();
        spent
    }

    fn perform(&mut self) {
        for action in self.out.drain(..) {
            match action {
                Action::Run { replica, tickets, .. } => {
                    self.waiting -= tickets.len();
                    self.ran += tickets.len();
                    self.running
                        .insert(replica, (self.now + self.profile.estimate(tickets.len() as u32), tickets.len()));
                }
                Action::Reject { .. } | Action::Expire { .. } => self.waiting -= 1,
                Action::WakeAt(_) => {}
            }
        }
    }
}

fn print(what: &str, mut spent: Vec<u64>) {
    spent.sort_unstable();
    let mean = spent.iter().sum::<u64>() as f64 / spent.len().max(1) as f64;
    let at = |q: f64| spent.get((spent.len() as f64 * q) as usize).copied().unwrap_or_default();
    print!("  {what}: mean {mean:>6.0} ns, p50 {:>6}, p99 {:>6}", at(0.5), at(0.99));
}

fn main() {
    let mut args = std::env::args().skip(1);
    let models = args.next().map_or(64, |text| text.parse().expect("models"));
    let waiting = args.next().map_or(4096, |text| text.parse().expect("queries that wait"));
    let named: Vec<Policy> = args.map(|name| Policy::parse(&name).expect("a policy")).collect();
    let policies = if named.is_empty() { vec![Policy::Weir] } else { named };
    for policy in policies {
        for slots in [1, 4] {
            let mut bench = Bench::new(slots, models, policy);
            while bench.waiting < waiting {
                bench.arrive();
            }
            let (mut arrivals, mut ends) = (Vec::new(), Vec::new());
            while arrivals.len() + ends.len() < EVENTS {
                ends.push(bench.done());
                while bench.waiting < waiting {
                    arrivals.push(bench.arrive());
                }
            }
            print!("{policy}, {models} models, {} waiting, {slots} slots:", bench.waiting);
            print("arrival", arrivals);
            let batch = bench.ran as f64 / ends.len() as f64;
            print("end of a batch", ends);
            println!(", {batch:.1} rows");
        }
    }
}
