//! What does it cost to ask a device for its price, and a gate for its verdict? In real time, on one core, with a demand curve that is full and 64
//! models on the device.
//!
//! `cargo run --release -p weir-sim --example what_does_a_gate_cost`

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use weir_core::endpoint::{Endpoint, GainTable, Gate, Ladders, Stage};
use weir_core::ids::{EndpointName, ModelRef, ReplicaId, StageName, TicketId};
use weir_core::outcome::Class;
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::scheduler::{Device, Policy, Query, ShapeKey};
use weir_core::triage::{Bid, Claim, Tenant};
use weir_core::units::{Deadline, Instant, ServiceTime};

const TIMES: u32 = 200_000;

fn each(what: &str, mut once: impl FnMut(u32)) {
    let started = Clock::now();
    (0..TIMES).for_each(&mut once);
    println!("{what}: {:.0} ns", started.elapsed().as_nanos() as f64 / f64::from(TIMES));
}

fn main() {
    let table = format!("{}/../demo/tiny-mid.csv", env!("CARGO_MANIFEST_DIR"));
    let table = GainTable::from_csv(&std::fs::read_to_string(table).expect("it belongs to the demo")).expect("a table");
    let model = |i: usize| ModelRef::parse(&format!("m{i}@1")).expect("a name");
    let stage = |i: usize, gate| Stage::new(StageName::parse(&format!("s{i}")).expect("a name"), model(i), gate);
    let gate = Gate::Gain { table: Arc::new(table), min_gain: Gate::MIN_GAIN };
    let endpoint = Endpoint {
        label_output: Some("probs".into()),
        ..Endpoint::new(
            EndpointName::parse("e").expect("a name"),
            Duration::from_millis(50),
            vec![stage(0, None), stage(1, Some(gate))],
        )
    };
    let ladders = Ladders::new(&Arc::new(endpoint), &[1e-5, 1e-3]);
    let mut device = Device::new(2, Policy::Weir);
    let profile = Profile::new(&[(1, ServiceTime::from_micros(1000)), (64, ServiceTime::from_micros(30_000))]);
    for i in 0..64u64 {
        device.add_replica(Instant::ZERO, ReplicaId(i), model(i as usize), profile.clone(), 64, &mut Vec::new());
    }
    let mut prng = Prng::new(1);
    for i in 0..10_000u64 {
        let (now, value) = (Instant::from_micros(i * 50), prng.uniform().powi(8));
        device.on_weighed(now, &model(prng.below(64) as usize), value, Tenant::NOBODY);
    }
    let now = Instant::from_millis(500);
    let deadline = Deadline::after(now, Duration::from_millis(50));
    let third = model(3);
    let claim = Claim { deadline, class: Class::Default, tenant: Tenant::NOBODY };
    each("the price of a device that is idle", |_| {
        black_box(device.price(black_box(now), &third, claim));
    });
    // It computes all the time: the price is read off the curve.
    let query = |ticket| Query {
        ticket: TicketId(ticket),
        deadline,
        class: Class::Default,
        shape: ShapeKey(0),
        mergeable: true,
        rows: 1,
        bid: Bid::PLAIN,
    };
    for i in 0..64 {
        device.on_arrival(now, &model(i), &[query(i as u64)], &mut Vec::new());
    }
    let later = Instant::from_millis(520);
    each("the price of a device that is busy", |_| {
        black_box(device.price(black_box(later), &third, claim));
    });
    // As in a cluster: homes of other nodes ask as well, and an endpoint has a share.
    let sharing = Tenant { id: 7, share: 0.5 };
    let shared = Claim { tenant: sharing, ..claim };
    let others = |device: &mut Device| {
        for i in 0..2_000u64 {
            let value = (i % 100) as f64 / 100.0;
            device.on_weighed(later, &model(i as usize % 64), value, if i % 2 == 0 { sharing } else { Tenant::NOBODY });
        }
        let asked = device.asked(later);
        device.on_others(later, &asked, |_| 0.5);
    };
    others(&mut device);
    each("the same, where other nodes ask for it too, for an endpoint with a share", |_| {
        black_box(device.price(black_box(later), &third, shared));
    });
    // Thousands wait, most of them first answers, and there is room for no more: what would have to go is looked for.
    let mut full = Device::new(2, Policy::Weir);
    let profile = Profile::new(&[(1, ServiceTime::from_micros(40)), (64, ServiceTime::from_micros(1000))]);
    for i in 0..64u64 {
        full.add_replica(later, ReplicaId(i), model(i as usize), profile.clone(), 64, &mut Vec::new());
    }
    let firm: Vec<_> = (0..5_000).map(|i| query(1_000 + i)).collect();
    let soft = |i: u64| Query { bid: Bid { gain: Some(prng.uniform()), ..Bid::PLAIN }, ..query(10_000 + i) };
    let soft: Vec<_> = (0..1_000).map(soft).collect();
    for (i, rows) in firm.chunks(78).chain(soft.chunks(16)).enumerate() {
        full.on_arrival(later, &model(i % 64), rows, &mut Vec::new());
    }
    let waiting: usize = full.waiting().map(|(_, rows)| rows).sum();
    each(&format!("the price of a device that is full, with {waiting} rows that wait"), |_| {
        black_box(full.price(black_box(later), &third, claim));
    });
    println!("which is {:?}", full.price(later, &third, claim));
    others(&mut full);
    each("the same, where other nodes ask for it too, for an endpoint with a share", |_| {
        black_box(full.price(black_box(later), &third, shared));
    });
    println!("which is {:?}", full.price(later, &third, shared));
    // Of every model some have less time than who asks, and some have more.
    for i in 0..64 {
        let with = |ticket, more: i64| {
            let due = Instant::from_nanos(deadline.0.as_nanos().saturating_add_signed(more * 1_000_000));
            Query { deadline: Deadline(due), ..query(ticket) }
        };
        let first = 20_000 + 100 * i as u64;
        let rows: Vec<_> = (0..20).map(|row| with(first + row, row as i64 - 10)).collect();
        device.on_arrival(later, &model(i), &rows, &mut Vec::new());
    }
    each("the same of the busy one, where every model has rows that are due sooner and later", |_| {
        black_box(device.price(black_box(later), &third, shared));
    });
    each("what a row was found to be worth, told to the device", |i| {
        device.on_weighed(later, &model(3), f64::from(i % 100) / 100.0, Tenant::NOBODY);
    });
    each("the ladder at a price and a gate's verdict", |i| {
        let ladder = ladders.at(black_box(f64::from(i % 1000)), 0.5);
        black_box(ladder.verdict(1, Some(f32::from((i % 100) as u8) / 100.0)));
    });
    let bytes: usize = device.asked(later).values().map(|asked| 32 + 2 * asked.soft.len()).sum();
    println!("what is reported of a model's demand: {} bytes, four times a second", bytes / 64);
}
