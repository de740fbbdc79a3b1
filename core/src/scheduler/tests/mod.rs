use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

mod properties;
mod triage;
mod virtual_time;

fn ms(n: u64) -> Instant {
    Instant::from_millis(n)
}

fn model(name: &str) -> ModelRef {
    ModelRef::parse(&format!("{name}@1")).unwrap()
}

/// alpha + beta·b milliseconds.
fn profile(alpha: u64, beta: u64) -> Profile {
    let at = |b: u64| ServiceTime::from_micros(1000 * (alpha + beta * b));
    Profile::new(&[(1, at(1)), (64, at(64))])
}

fn query(ticket: u64, deadline: u64) -> Query {
    Query {
        ticket: TicketId(ticket),
        deadline: Deadline(ms(deadline)),
        class: Class::Default,
        shape: ShapeKey(0),
        mergeable: true,
        rows: 1,
        bid: Bid::PLAIN,
    }
}

/// A row with all the time there is.
const ONE: Inquiry = Inquiry { rows: 1, class: Class::Default, deadline: Deadline::NEVER, firm: None };

fn tickets(ids: &[u64]) -> Vec<TicketId> {
    ids.iter().map(|id| TicketId(*id)).collect()
}

/// The actions of one event, without timers.
fn step(event: impl FnOnce(&mut Vec<Action>)) -> Vec<Action> {
    let mut out = Vec::new();
    event(&mut out);
    out.retain(|action| !matches!(action, Action::WakeAt(_)));
    out
}

fn device(slots: u32, replicas: &[(u64, &str)]) -> Device {
    let mut device = Device::new(slots, Policy::Weir);
    for (id, name) in replicas {
        device.add_replica(ms(0), ReplicaId(*id), model(name), profile(5, 1), 8, &mut Vec::new());
    }
    device
}

fn run(replica: u64, ids: &[u64], closed: Closed) -> Action {
    Action::Run { replica: ReplicaId(replica), tickets: tickets(ids), closed }
}

#[test]
fn rows_of_one_call_run_as_one_batch_on_an_idle_device() {
    let mut device = device(1, &[(1, "a")]);
    let rows: Vec<_> = (0..3).map(|i| query(i, 100)).collect();
    assert_eq!(step(|out| device.on_arrival(ms(0), &model("a"), &rows, out)), [run(1, &[0, 1, 2], Closed::Idle)]);
}

#[test]
fn a_model_that_comes_waits_for_a_slot_and_for_what_goes_before_it() {
    let mut device = device(1, &[(1, "a")]);
    let start =
        |device: &Device, deadline| device.estimate_start(ms(1), Class::Default, Deadline(ms(deadline)), None).finish;
    assert_eq!(start(&device, 100), ms(1));
    step(|out| device.on_arrival(ms(0), &model("a"), &[query(0, 200)], out));
    assert_eq!(start(&device, 100), ms(6));
    step(|out| device.on_arrival(ms(1), &model("a"), &[query(1, 50)], out));
    assert_eq!(start(&device, 100), ms(12));
    assert_eq!(start(&device, 40), ms(6), "what is due later does not");
}

#[test]
fn models_run_in_turn_while_there_is_slack_and_by_deadline_when_there_is_not() {
    // (deadline of what waits longer, deadline of what came later, what runs first)
    for (older, newer, first) in [(200, 100, 1), (200, 30, 1), (200, 20, 2), (20, 200, 1)] {
        let mut device = device(1, &[(1, "a"), (2, "b")]);
        step(|out| device.on_arrival(ms(0), &model("a"), &[query(0, 200)], out));
        step(|out| device.on_arrival(ms(1), &model("a"), &[query(1, older)], out));
        step(|out| device.on_arrival(ms(2), &model("b"), &[query(2, newer)], out));
        // Both batches are done 14 ms later if each grows by a row; one in the way takes 7 ms more.
        let done = step(|out| device.on_batch_done(ms(6), ReplicaId(1), ServiceTime::from_micros(6000), out));
        assert_eq!(done, [run(first, &[first], Closed::Idle)], "{older} {newer}");
    }
}

#[test]
fn a_batch_takes_no_row_that_would_make_its_most_urgent_member_late() {
    let mut device = device(1, &[(1, "a")]);
    step(|out| device.on_arrival(ms(0), &model("a"), &[query(0, 100)], out));
    // At 6 ms, 8 ms are left for query 1: 5 + 3 rows; the fourth would be one too many.
    let rows = [query(1, 14), query(2, 50), query(3, 50), query(4, 50)];
    step(|out| device.on_arrival(ms(1), &model("a"), &rows, out));
    let done = step(|out| device.on_batch_done(ms(6), ReplicaId(1), ServiceTime::from_micros(6000), out));
    assert_eq!(done, [run(1, &[1, 2, 3], Closed::Deadline)]);
}

#[test]
fn late_work_is_refused_on_arrival_and_dropped_when_it_became_late() {
    let mut device = device(1, &[(1, "a")]);
    step(|out| device.on_arrival(ms(0), &model("a"), &[query(0, 100)], out));
    // 6 ms of the batch in progress and 6 ms for itself end at 12 ms.
    let refused = step(|out| device.on_arrival(ms(0), &model("a"), &[query(1, 11)], out));
    assert_eq!(refused, [Action::Reject { ticket: TicketId(1), why: Rejection::TooLate }]);
    assert_eq!(step(|out| device.on_arrival(ms(0), &model("a"), &[query(2, 12)], out)), []);
    // The batch takes longer than its profile says.
    let done = step(|out| device.on_batch_done(ms(9), ReplicaId(1), ServiceTime::from_micros(9000), out));
    assert_eq!(done, [Action::Expire { ticket: TicketId(2) }]);
}

#[test]
fn a_row_that_joins_a_batch_waits_only_for_what_goes_before_its_first() {
    let mut device = device(1, &[(1, "a"), (2, "b")]);
    step(|out| device.on_arrival(ms(0), &model("a"), &[query(0, 100)], out));
    step(|out| device.on_arrival(ms(0), &model("a"), &[query(1, 16)], out));
    let others: Vec<_> = (2..6).map(|ticket| query(ticket, 21)).collect();
    assert_eq!(step(|out| device.on_arrival(ms(0), &model("b"), &others, out)), []);
    // Behind the four of b it would be done at 6 + 9 + 7 ms; it runs with query 1.
    let joins = query(6, 21);
    assert_eq!(step(|out| device.on_arrival(ms(0), &model("a"), &[joins], out)), []);
    let done = step(|out| device.on_batch_done(ms(6), ReplicaId(1), ServiceTime::from_micros(6000), out));
    assert_eq!(done, [run(1, &[1, 6], Closed::Idle)]);
}

#[test]
fn a_timer_tells_waiting_work_that_it_is_too_late() {
    let mut device = device(1, &[(1, "a")]);
    let mut out = Vec::new();
    device.on_arrival(ms(0), &model("a"), &[query(0, 100)], &mut out);
    device.on_arrival(ms(0), &model("a"), &[query(1, 20)], &mut out);
    // Alone it takes 6 ms: past 14 ms nobody can help it any more.
    let hopeless = Instant::from_nanos(14_000_001);
    assert!(out.contains(&Action::WakeAt(hopeless)));
    assert_eq!(step(|out| device.on_wake(ms(14), out)), []);
    assert_eq!(step(|out| device.on_wake(hopeless, out)), [Action::Expire { ticket: TicketId(1) }]);
}

#[test]
fn only_equal_shapes_and_mergeable_rows_share_a_batch() {
    let mut device = device(1, &[(1, "a")]);
    let other = Query { shape: ShapeKey(9), ..query(1, 101) };
    let alone = Query { mergeable: false, ..query(2, 102) };
    let rows = [query(0, 100), other, alone, query(3, 103)];
    assert_eq!(step(|out| device.on_arrival(ms(0), &model("a"), &rows, out)), [run(1, &[0, 3], Closed::Idle)]);
    let took = ServiceTime::from_micros(6000);
    assert_eq!(step(|out| device.on_batch_done(ms(7), ReplicaId(1), took, out)), [run(1, &[1], Closed::Idle)]);
    assert_eq!(step(|out| device.on_batch_done(ms(13), ReplicaId(1), took, out)), [run(1, &[2], Closed::Full)]);
}

#[test]
fn a_replica_that_dies_leaves_its_queue_to_its_siblings() {
    let mut device = device(2, &[(1, "a"), (2, "a")]);
    for i in 0..3 {
        step(|out| device.on_arrival(ms(0), &model("a"), &[query(i, 1000)], out));
    }
    assert_eq!(step(|out| device.lose_replica(ms(1), ReplicaId(1), out)), []);
    let done = step(|out| device.on_batch_done(ms(6), ReplicaId(2), ServiceTime::from_micros(6000), out));
    assert_eq!(done, [run(2, &[2], Closed::Idle)]);
    step(|out| device.on_arrival(ms(7), &model("a"), &[query(3, 1000)], out));
    let lost = step(|out| device.lose_replica(ms(8), ReplicaId(2), out));
    assert_eq!(lost, [Action::Reject { ticket: TicketId(3), why: Rejection::NoReplica }]);
}

#[test]
fn a_replica_that_leaves_finishes_its_batch() {
    let mut device = device(1, &[(1, "a")]);
    step(|out| device.on_arrival(ms(0), &model("a"), &[query(0, 1000)], out));
    step(|out| device.remove_replica(ms(1), ReplicaId(1), out));
    assert_eq!(step(|out| device.on_batch_done(ms(6), ReplicaId(1), ServiceTime::from_micros(6000), out)), []);
    assert_eq!(device.estimate_finish(ms(7), &model("a"), ONE, || None), None);
}

#[test]
fn a_full_queue_gives_way_to_what_is_more_important_only() {
    let mut device = device(1, &[(1, "a")]);
    let far = 1_000_000_000;
    let rows: Vec<_> =
        (0..WAITING_MAX as u64 + 8).map(|i| Query { class: Class::Sheddable, ..query(i, far) }).collect();
    step(|out| device.on_arrival(ms(0), &model("a"), &rows[..8], out));
    step(|out| device.on_arrival(ms(0), &model("a"), &rows[8..], out));
    let full = |ticket| Action::Reject { ticket: TicketId(ticket), why: Rejection::QueueFull };
    let more = WAITING_MAX as u64 + 8;
    let same = Query { class: Class::Sheddable, ..query(more, far) };
    assert_eq!(step(|out| device.on_arrival(ms(0), &model("a"), &[same], out)), [full(more)]);
    assert_eq!(step(|out| device.on_arrival(ms(0), &model("a"), &[query(more + 1, far)], out)), [full(more - 1)]);
}

/// Of a row that nobody has answered, and of one that a deeper stage is to look at.
const WORTH: [Bid; 2] = [Bid::PLAIN, Bid { gain: Some(0.5), ..Bid::PLAIN }];

#[test]
fn a_few_slow_runs_do_not_refuse_everything_for_ever() {
    for bid in WORTH {
        let mut device = device(1, &[(1, "a")]);
        let mut now = 0;
        for i in 0..3 {
            step(|out| device.on_arrival(ms(now), &model("a"), &[query(i, now + 1000)], out));
            now += 500;
            step(|out| device.on_batch_done(ms(now), ReplicaId(1), ServiceTime::from_micros(500_000), out));
        }
        let admitted = (0..40).find(|i| {
            now += 10;
            let asked = Query { bid, ..query(100 + i, now + 50) };
            let actions = step(|out| device.on_arrival(ms(now), &model("a"), &[asked], out));
            actions.iter().any(|a| matches!(a, Action::Run { .. }))
        });
        assert!(admitted.is_some_and(|tries| tries > 0), "{admitted:?} {bid:?}");
    }
}

/// Four batches of `rows` rows that took 500 ms each; returns when the last one ended.
fn slow_batches(device: &mut Device, name: &str, replica: u64, rows: u64) -> u64 {
    for i in 0..4 {
        let now = i * 500;
        let call: Vec<_> = (0..rows).map(|row| query(1000 + i * rows + row, now + 100_000)).collect();
        step(|out| device.on_arrival(ms(now), &model(name), &call, out));
        step(|out| device.on_batch_done(ms(now + 500), ReplicaId(replica), ServiceTime::from_micros(500_000), out));
    }
    2000
}

#[test]
fn slow_runs_are_forgiven_although_another_model_keeps_the_device_busy() {
    for bid in WORTH {
        let mut device = device(2, &[(1, "a"), (2, "b")]);
        let mut now = slow_batches(&mut device, "a", 1, 1);
        step(|out| device.on_arrival(ms(now), &model("b"), &[query(0, now + 100_000)], out));
        let runs = (0..40).any(|i| {
            now += 10;
            let asked = Query { bid, ..query(100 + i, now + 50) };
            let claim = Claim { deadline: asked.deadline, class: asked.class, tenant: Tenant::NOBODY };
            assert_eq!(device.price(ms(now), &model("a"), claim).floor, 0.0, "else no gate would send it");
            let actions = step(|out| device.on_arrival(ms(now), &model("a"), &[asked], out));
            actions.iter().any(|action| matches!(action, Action::Run { .. }))
        });
        assert!(runs, "{bid:?}");
    }
}

#[test]
fn a_call_of_many_rows_forgives_once() {
    let mut device = device(1, &[(1, "a")]);
    let now = slow_batches(&mut device, "a", 1, 1);
    let before = device.profile(ReplicaId(1)).unwrap().estimate(1);
    let call: Vec<_> = (0..50).map(|row| query(row, now + 50)).collect();
    assert_eq!(step(|out| device.on_arrival(ms(now), &model("a"), &call, out)).len(), 50);
    let after = device.profile(ReplicaId(1)).unwrap().estimate(1);
    assert!(after.as_micros() * 2 > before.as_micros(), "{before:?} {after:?}");
}

#[test]
fn a_size_that_one_slow_run_made_look_dear_is_used_again() {
    let mut device = device(1, &[(1, "a")]);
    let mut now = slow_batches(&mut device, "a", 1, 2);
    // Single rows go on meanwhile; calls of two come now and then.
    let (mut ticket, mut pairs) = (10_000, 0);
    for i in 0..600 {
        now += 10;
        let rows = if i % 10 == 0 { 2 } else { 1 };
        let call: Vec<_> = (0..rows).map(|row| query(ticket + row, now + 50)).collect();
        ticket += rows;
        let mut actions = step(|out| device.on_arrival(ms(now), &model("a"), &call, out));
        let mut at = ms(now);
        while let Some(Action::Run { tickets, .. }) = actions.iter().find(|action| matches!(action, Action::Run { .. }))
        {
            pairs += usize::from(tickets.len() == 2);
            let took = ServiceTime::from_micros(1000 * (5 + tickets.len() as u64) / 3);
            at = at + took;
            actions = step(|out| device.on_batch_done(at, ReplicaId(1), took, out));
        }
    }
    assert!(pairs > 10, "{pairs}");
}

#[test]
fn a_backlog_is_served_in_the_batches_that_serve_most() {
    let us = ServiceTime::from_micros;
    let mut device = Device::new(1, Policy::Weir);
    // 10 ms a row by twos and fours, and twice that by eights.
    let times = [(1, us(12_000)), (2, us(20_000)), (4, us(40_000)), (8, us(160_000))];
    device.add_replica(ms(0), ReplicaId(1), model("a"), Profile::new(&times), 8, &mut Vec::new());
    let call = |from: u64| -> Vec<_> { (from..from + 8).map(|i| query(i, 100_000)).collect() };
    let mut now = ms(0);
    for from in [0, 8, 16] {
        // What was measured at load may be wrong: it is tried.
        let ids: Vec<u64> = (from..from + 8).collect();
        assert_eq!(step(|out| device.on_arrival(now, &model("a"), &call(from), out)), [run(1, &ids, Closed::Full)]);
        now = now + us(160_000);
        assert_eq!(step(|out| device.on_batch_done(now, ReplicaId(1), us(160_000), out)), []);
    }
    let first = step(|out| device.on_arrival(now, &model("a"), &call(24), out));
    assert_eq!(first, [run(1, &[24, 25, 26, 27], Closed::Full)]);
    // Six would take 100 ms together.
    now = now + us(40_000);
    step(|out| device.on_arrival(now, &model("a"), &[query(32, 1_000), query(33, 1_000)], out));
    let second = step(|out| device.on_batch_done(now, ReplicaId(1), us(40_000), out));
    assert_eq!(second, [run(1, &[32, 33, 28, 29], Closed::Full)]);
}

#[test]
fn a_query_that_brings_many_rows_is_taken_to_cost_as_much() {
    let mut device = device(1, &[(1, "a")]);
    let whole = |ticket, deadline, rows| Query { rows, mergeable: false, ..query(ticket, deadline) };
    let refused = step(|out| device.on_arrival(ms(0), &model("a"), &[whole(0, 50, 100)], out));
    assert_eq!(refused, [Action::Reject { ticket: TicketId(0), why: Rejection::TooLate }]);
    assert_eq!(
        step(|out| device.on_arrival(ms(0), &model("a"), &[whole(1, 200, 100)], out)),
        [run(1, &[1], Closed::Full)]
    );
    // Behind it a short one is not promised to be done before it.
    assert!(device.estimate_finish(ms(0), &model("a"), ONE, || None).unwrap().finish >= ms(105 + 6));
    step(|out| device.on_batch_done(ms(105), ReplicaId(1), ServiceTime::from_micros(105_000), out));
    assert_eq!(
        device.profile(ReplicaId(1)).unwrap().estimate(1),
        ServiceTime::from_micros(6_000),
        "and teaches nothing"
    );
}

#[test]
fn who_is_due_sooner_is_done_before_what_has_more_time() {
    let mut device = device(1, &[(1, "a"), (2, "b")]);
    // One runs until 6; eight more of the one and eight of the other are due at 1000 and at 500.
    step(|out| device.on_arrival(ms(0), &model("a"), &[query(0, 1000)], out));
    let eight = |from, due| (from..from + 8).map(|ticket| query(ticket, due)).collect::<Vec<_>>();
    step(|out| device.on_arrival(ms(0), &model("a"), &eight(1, 1000), out));
    step(|out| device.on_arrival(ms(0), &model("b"), &eight(11, 500), out));
    let done = |name: &str, class, due| {
        let asked = Inquiry::of(class, Deadline(ms(due)));
        device
            .estimate_finish(ms(0), &model(name), asked, || None)
            .expect("it stands here")
            .finish
            .since(ms(0))
            .as_millis()
    };
    let all = done("a", Class::Default, 2000);
    let (before_one, before_both) = (done("a", Class::Default, 700), done("a", Class::Default, 400));
    assert!(before_both < before_one && before_one < all, "{before_both} {before_one} {all}");
    assert!(before_both < 20 && all > 6 + 13 + 13, "{before_both} {all}");
    assert!(done("a", Class::Critical, 2000) < 20, "what matters more goes before both");
}

#[test]
fn a_sibling_that_takes_small_batches_lowers_them_while_it_stands() {
    let mut device = device(1, &[(1, "a")]);
    device.add_replica(ms(0), ReplicaId(2), model("a"), profile(5, 1), 1, &mut Vec::new());
    let call = |from: u64| -> Vec<_> { (from..from + 3).map(|i| query(i, 1000)).collect() };
    assert_eq!(step(|out| device.on_arrival(ms(0), &model("a"), &call(0), out)), [run(1, &[0], Closed::Full)]);
    device.remove_replica(ms(0), ReplicaId(2), &mut Vec::new());
    let done = step(|out| device.on_batch_done(ms(6), ReplicaId(1), ServiceTime::from_micros(6000), out));
    assert_eq!(done, [run(1, &[1, 2], Closed::Idle)]);
}

#[test]
fn a_batch_that_is_over_its_time_is_taken_to_need_as_much_again() {
    let mut device = device(1, &[(1, "a")]);
    step(|out| device.on_arrival(ms(0), &model("a"), &[query(0, 10_000)], out));
    assert_eq!(device.estimate_finish(ms(4), &model("a"), ONE, || None).map(|estimate| estimate.finish), Some(ms(12)));
    // It should have ended at 6.
    assert_eq!(
        device.estimate_finish(ms(106), &model("a"), ONE, || None).map(|estimate| estimate.finish),
        Some(ms(206 + 6))
    );
    step(|out| device.on_batch_done(ms(110), ReplicaId(1), ServiceTime::from_micros(6000), out));
    assert_eq!(
        device.estimate_finish(ms(200), &model("a"), ONE, || None).map(|estimate| estimate.finish),
        Some(ms(206)),
        "idle replicas are not overdue"
    );
}

#[test]
fn a_row_joins_those_that_it_may_share_a_batch_with() {
    let mut device = device(1, &[(1, "a")]);
    let begins = |device: &Device, shape: Option<u64>| {
        let shape = || shape.map(ShapeKey);
        device.estimate_finish(ms(1), &model("a"), ONE, shape).unwrap().begins
    };
    step(|out| device.on_arrival(ms(0), &model("a"), &[query(0, 1000)], out));
    assert_eq!(begins(&device, Some(0)), ms(6), "nobody waits, and one runs");
    let alone = Query { mergeable: false, ..query(1, 1000) };
    step(|out| device.on_arrival(ms(1), &model("a"), &[alone], out));
    assert!(begins(&device, Some(0)) > ms(6), "that one shares with nobody");
    let sheddable = Query { class: Class::Sheddable, shape: ShapeKey(7), ..query(2, 1000) };
    step(|out| device.on_arrival(ms(1), &model("a"), &[sheddable], out));
    assert_eq!(begins(&device, Some(7)), ms(1), "it joins one of another class");
    assert!(begins(&device, Some(0)) > ms(6) && begins(&device, None) > ms(6), "and none of another shape");
}

#[test]
fn others_are_told_of_what_runs_and_of_what_slots_share() {
    let claim = Claim { deadline: Deadline(ms(1000)), class: Class::Default, tenant: Bid::PLAIN.tenant };
    let wait = |device: &mut Device, at| device.told(ms(at), &model("a"), claim, None).wait.as_millis();
    let mut one = device(1, &[(1, "a")]);
    assert_eq!(wait(&mut one, 0), 0);
    step(|out| one.on_arrival(ms(0), &model("a"), &[query(0, 1000)], out));
    assert_eq!(wait(&mut one, 1), 5, "nothing waits, and one runs for so long");
    step(|out| one.on_arrival(ms(1), &model("a"), &[query(1, 1000)], out));
    assert_eq!(wait(&mut one, 1), 6, "whoever comes shares a batch with it");
    let mut four = device(4, &[(1, "a"), (2, "b"), (3, "b"), (4, "b"), (5, "b")]);
    let rows: Vec<Query> = (0..40).map(|i| query(i, 1000)).collect();
    step(|out| four.on_arrival(ms(0), &model("b"), &rows, out));
    assert_eq!(wait(&mut four, 0), 13 + 3, "four batches of eight that run, and one more that is shared by four");
    assert_eq!(four.told(ms(0), &model("c"), claim, None).wait, Duration::ZERO, "it does not stand here");
}

#[test]
fn in_a_full_queue_an_equal_that_is_due_later_gives_way() {
    let mut device = device(1, &[(1, "a")]);
    let far = 100_000_000;
    let many: Vec<_> = (0..WAITING_MAX as u64 + 8).map(|i| query(i, far)).collect();
    step(|out| device.on_arrival(ms(0), &model("a"), &many[..8], out));
    step(|out| device.on_arrival(ms(0), &model("a"), &many[8..], out));
    let urgent = step(|out| device.on_arrival(ms(0), &model("a"), &[query(1 << 20, 1000)], out));
    assert!(matches!(urgent[..], [Action::Reject { ticket, why: Rejection::QueueFull }] if ticket.0 < 1 << 20));
    let later = step(|out| device.on_arrival(ms(0), &model("a"), &[query(1 << 21, far + 1)], out));
    assert_eq!(later, [Action::Reject { ticket: TicketId(1 << 21), why: Rejection::QueueFull }]);
}

#[test]
fn the_check_finds_what_is_kept_wrongly() {
    type Spoil = fn(&mut Pool);
    let spoil: [(&str, Spoil); 6] = [
        ("nothing", |_| {}),
        ("a row late", |pool| pool.model_mut(0).hopeless = ms(93)),
        ("a row early", |pool| pool.model_mut(0).hopeless = ms(95)),
        ("free replicas", |pool| pool.model_mut(0).free += 1),
        ("the largest batch", |pool| pool.model_mut(0).max_batch += 1),
        ("a batch", |pool| pool.busy -= 1),
    ];
    for (what, spoil) in spoil {
        let mut device = device(1, &[(1, "a")]);
        step(|out| device.on_arrival(ms(0), &model("a"), &[query(0, 100)], out));
        step(|out| device.on_arrival(ms(0), &model("a"), &[query(1, 100)], out));
        spoil(&mut device.pool);
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.pool.check()));
        assert_eq!(checked.is_ok(), what == "nothing" || !cfg!(debug_assertions), "{what}");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Arrive { model: usize, deadlines: Vec<u64>, shape: u64 },
    Done { nth: usize, stretch: u64 },
    Cancel(u64),
    Lose(usize),
    Wake,
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let event = prop_oneof![
        4 => (0..3usize, prop::collection::vec(1..120u64, 1..12), 0..2u64).prop_map(|(model, deadlines, shape)| Event::Arrive { model, deadlines, shape }),
        4 => (0..4usize, 50..200u64).prop_map(|(nth, stretch)| Event::Done { nth, stretch }),
        1 => (0..200u64).prop_map(Event::Cancel),
        1 => (0..40usize).prop_map(Event::Lose),
        1 => Just(Event::Wake),
    ];
    prop::collection::vec((0..20u64, event), 1..120)
}

proptest! {
    /// Whatever happens, each row ends once, batches keep to their bounds, and no replica runs two batches.
    #[test]
    fn every_row_ends_exactly_once(events in events()) {
        let names = ["a", "b", "c"];
        let mut device = device(2, &[(0, "a"), (1, "b"), (2, "c"), (3, "a")]);
        let (mut now, mut next) = (0u64, 0u64);
        let mut open: BTreeMap<u64, (Deadline, u64)> = BTreeMap::new();
        let mut running: BTreeMap<ReplicaId, Instant> = BTreeMap::new();
        for (pause, event) in events {
            now += pause;
            let mut out = Vec::new();
            match event {
                Event::Arrive { model: m, deadlines, shape } => {
                    let rows: Vec<_> = deadlines.iter().map(|d| {
                        next += 1;
                        open.insert(next, (Deadline(ms(now + d)), shape));
                        Query { shape: ShapeKey(shape), ..query(next, now + d) }
                    }).collect();
                    device.on_arrival(ms(now), &model(names[m]), &rows, &mut out);
                }
                Event::Done { nth, stretch } => {
                    let Some((&id, &since)) = running.iter().nth(nth) else { continue };
                    running.remove(&id);
                    let took = ServiceTime::from(ms(now).since(since)).scaled(stretch as f64 / 100.0);
                    device.on_batch_done(ms(now), id, took, &mut out);
                }
                Event::Cancel(ticket) => {
                    device.on_cancel(ms(now), TicketId(ticket), &mut out);
                    open.remove(&ticket);
                }
                Event::Lose(id) => {
                    let id = ReplicaId(id as u64);
                    running.remove(&id);
                    device.lose_replica(ms(now), id, &mut out);
                }
                Event::Wake => device.on_wake(ms(now), &mut out),
            }
            for action in out {
                match action {
                    Action::Run { replica, tickets, .. } => {
                        prop_assert!(running.insert(replica, ms(now)).is_none(), "two batches on one replica");
                        prop_assert!(running.len() <= 2 && !tickets.is_empty() && tickets.len() <= 8);
                        let rows: Vec<_> = tickets.iter().map(|t| open.remove(&t.0).expect("runs once")).collect();
                        prop_assert!(rows.iter().all(|(_, shape)| *shape == rows[0].1), "shapes mixed");
                        prop_assert!(rows.iter().all(|(deadline, _)| !deadline.missed_by(ms(now))), "ran after its deadline");
                    }
                    Action::Reject { ticket, .. } | Action::Expire { ticket } => {
                        prop_assert!(open.remove(&ticket.0).is_some(), "ended twice");
                    }
                    Action::WakeAt(_) => {}
                }
            }
        }
        prop_assert_eq!(open.len(), device.pool.waiting(), "a row was lost");
    }
}
