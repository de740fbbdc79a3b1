//! What is worth least for its time gives way, on a device with models.

use super::*;

/// A device with a shallow model, 1 + b ms, and a deep one, 10 + 5·b ms.
fn two_depths() -> Device {
    let mut device = Device::new(1, Policy::Weir);
    device.add_replica(ms(0), ReplicaId(1), model("shallow"), profile(1, 1), 8, &mut Vec::new());
    device.add_replica(ms(0), ReplicaId(2), model("deep"), profile(10, 5), 8, &mut Vec::new());
    device
}

fn deeper(ticket: u64, deadline: u64, value: f64) -> Query {
    Query { bid: Bid { gain: Some(value), ..Bid::PLAIN }, ..query(ticket, deadline) }
}

fn arrive(device: &mut Device, at: u64, name: &str, queries: &[Query]) -> Vec<Action> {
    step(|out| device.on_arrival(ms(at), &model(name), queries, out))
}

fn outbid(ticket: u64) -> Action {
    Action::Reject { ticket: TicketId(ticket), why: Rejection::Outbid }
}

#[test]
fn a_first_answer_pushes_out_the_deeper_stage_that_gains_least() {
    let mut device = two_depths();
    // It runs until 15; the others wait, and would run until 45.
    arrive(&mut device, 0, "deep", &[deeper(0, 100, 0.5)]);
    let waiting = [deeper(1, 50, 0.3), deeper(2, 50, 0.1), deeper(3, 50, 0.4), deeper(4, 50, 0.2)];
    assert_eq!(arrive(&mut device, 1, "deep", &waiting), []);
    // They take 18 ms, so that of the time until 50 there is enough for one of the others, which takes 15, and not for two.
    let firsts: Vec<Query> = (10..26).map(|ticket| query(ticket, 50)).collect();
    assert_eq!(arrive(&mut device, 2, "shallow", &firsts), [outbid(2), outbid(4), outbid(1)]);
}

#[test]
fn what_nobody_has_weighed_is_never_pushed_out() {
    let mut device = two_depths();
    arrive(&mut device, 0, "deep", &[query(0, 100)]);
    let waiting: Vec<Query> = (1..5).map(|ticket| query(ticket, 70)).collect();
    assert_eq!(arrive(&mut device, 1, "deep", &waiting), []);
    let firsts: Vec<Query> = (10..40).map(|ticket| query(ticket, 70)).collect();
    let acts = arrive(&mut device, 2, "shallow", &firsts);
    assert!(!acts.is_empty());
    for act in acts {
        let late = matches!(act, Action::Reject { ticket, why: Rejection::TooLate } if ticket.0 >= 10);
        assert!(late, "{act:?}");
    }
}

#[test]
fn a_deeper_stage_does_not_make_a_first_answer_late() {
    let mut device = two_depths();
    arrive(&mut device, 0, "deep", &[deeper(0, 100, 0.5)]);
    // Until 15 runs what runs; these take until 35 or so.
    let firsts: Vec<Query> = (10..26).map(|ticket| query(ticket, 38)).collect();
    assert_eq!(arrive(&mut device, 1, "shallow", &firsts), []);
    // It would be in time, before them, by its earlier deadline.
    assert_eq!(arrive(&mut device, 2, "deep", &[deeper(1, 34, 0.9)]), [outbid(1)]);
    assert_eq!(arrive(&mut device, 2, "deep", &[deeper(2, 80, 0.01)]), [], "later there is time enough");
}

#[test]
fn routing_knows_what_would_give_way() {
    let mut device = two_depths();
    arrive(&mut device, 0, "deep", &[query(0, 100)]);
    assert_eq!(device.yields(None), ServiceTime::ZERO);
    arrive(&mut device, 1, "deep", &[query(1, 90), deeper(2, 90, 0.1)]);
    let one = device.yields(None);
    assert!(one > ServiceTime::ZERO);
    assert_eq!(device.estimate_finish(ms(1), &model("shallow"), ONE, || None).unwrap().yields, one.as_duration());
    device.on_cancel(ms(2), TicketId(2), &mut Vec::new());
    assert_eq!(device.yields(None), ServiceTime::ZERO);
}

#[test]
fn who_has_an_hour_does_not_blunt_what_is_decided_for_others() {
    let mut device = two_depths();
    arrive(&mut device, 0, "deep", &[deeper(0, 100, 0.5)]);
    arrive(&mut device, 0, "shallow", &[query(99, 3_600_000)]);
    let waiting = [deeper(1, 45, 0.3), deeper(2, 45, 0.1), deeper(3, 45, 0.4), deeper(4, 45, 0.2)];
    assert_eq!(arrive(&mut device, 1, "deep", &waiting), []);
    // It would make the first of the others late, and is worth less than any of them.
    assert_eq!(arrive(&mut device, 2, "deep", &[deeper(5, 44, 0.01)]), [outbid(5)]);
}

#[test]
fn a_device_that_is_full_is_as_dear_as_what_has_to_go() {
    let mut device = two_depths();
    let claim = |class| Claim { deadline: Deadline(ms(50)), class, tenant: Tenant::NOBODY };
    let price = |device: &mut Device| device.price(ms(1), &model("deep"), claim(Class::Default));
    assert_eq!(price(&mut device), Price::NOTHING);
    arrive(&mut device, 0, "deep", &[deeper(0, 100, 0.5)]);
    let waiting: Vec<Query> = (1..5).map(|ticket| deeper(ticket, 50, 0.1 * ticket as f64)).collect();
    assert_eq!(arrive(&mut device, 1, "deep", &waiting), []);
    // Nothing was told of what gates weighed: no price clears. But not everything that comes is let in.
    let (mut come, mut floor) = (5, 0.0);
    while floor == 0.0 {
        assert_eq!(arrive(&mut device, 1, "deep", &[deeper(come, 50, 0.1)]), [], "there is room");
        (come, floor) = (come + 1, price(&mut device).floor);
    }
    assert_eq!(price(&mut device).clears, 0.0);
    for class in [Class::Critical, Class::Sheddable] {
        let free = device.price(ms(1), &model("deep"), claim(class)).floor;
        assert!(free == 0.0 || free < 1.0, "{class:?} goes before them, or into the gaps: {free}");
    }
    // Slot time of a row, in a batch of as many as a backlog leads to.
    let cost = 0.1 / floor;
    assert!((0.005..0.015).contains(&cost), "{cost}");
    assert_eq!(arrive(&mut device, 1, "deep", &[deeper(come, 50, 0.099)]), [outbid(come)]);
    assert_eq!(arrive(&mut device, 1, "deep", &[deeper(come + 1, 50, 0.101)]).len(), 1, "it pushes one out");
}

/// What clears on a device that is asked for four times what it can do, rows of evenly spread values, where a row is said to take 10 ms and its
/// batches take these times by turns.
fn clears(times: [u64; 2]) -> f64 {
    let mut device = Device::new(1, Policy::Weir);
    let (deep, us) = (model("deep"), |us: u64| ServiceTime::from_micros(us));
    device.add_replica(ms(0), ReplicaId(1), deep.clone(), Profile::new(&[(1, us(10_000))]), 1, &mut Vec::new());
    let mut at = 0;
    for i in 0..200 {
        step(|out| device.on_arrival(Instant::from_micros(at), &deep, &[deeper(i, 100_000, 0.5)], out));
        for j in 0..4 {
            device.on_weighed(
                Instant::from_micros(at),
                &deep,
                ((4 * i + j) * 611 % 1000) as f64 / 1000.0,
                Tenant::NOBODY,
            );
        }
        let took = times[i as usize % 2];
        at += took;
        step(|out| device.on_batch_done(Instant::from_micros(at), ReplicaId(1), us(took), out));
    }
    let claim = Claim { deadline: Deadline(ms(50_000)), class: Class::Default, tenant: Tenant::NOBODY };
    device.price(Instant::from_micros(at), &deep, claim).clears
}

#[test]
fn the_price_is_of_what_rows_take_on_average_and_as_gates_count_it() {
    let even = clears([10_000, 10_000]);
    assert!((60.0..85.0).contains(&even), "a quarter of them is worth more than 0.75 for 10 ms: {even}");
    let uneven = clears([6_000, 14_000]);
    assert!(
        (uneven / even - 1.0).abs() < 0.1,
        "as much is done in a second, though 14 ms are planned by: {uneven}, {even}"
    );
    // Twice as long as was measured at load, and half as many ask: a quarter fits again, and gates still count 10 ms.
    let slower = clears([20_000, 20_000]);
    assert!((slower / even - 1.0).abs() < 0.1, "{slower}, {even}");
}
