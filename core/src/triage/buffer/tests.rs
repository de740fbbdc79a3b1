use proptest::prelude::*;

use super::super::Tenant;
use super::*;
use crate::prng::Prng;

const MS: u64 = 1_000_000;

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn soft(ms: u64, value: f64) -> Stake {
    Stake { cost: ServiceTime::from_nanos(ms * MS), bid: Bid { gain: Some(value), ..Bid::PLAIN }, critical: false }
}

fn firm(ms: u64) -> Stake {
    Stake { cost: ServiceTime::from_nanos(ms * MS), bid: Bid::PLAIN, critical: false }
}

/// A buffer with its rows, so that tests can remove by name.
struct Waiting {
    buffer: Buffer,
    rows: BTreeMap<TicketId, (Instant, Stake)>,
}

impl Waiting {
    fn new(slots: u32) -> Waiting {
        Waiting { buffer: Buffer::new(slots), rows: BTreeMap::new() }
    }

    /// Offers a row at time 0, removes what has to go, and inserts it where it fits.
    fn come(&mut self, now: Instant, ticket: u64, deadline: Instant, stake: Stake) -> (bool, Vec<u64>) {
        let mut out = Vec::new();
        let offer = self.buffer.offer(now, ServiceTime::ZERO, deadline, deadline, stake, ServiceTime::ZERO, &mut out);
        for ticket in &out {
            self.go(*ticket);
        }
        if offer == Offer::In {
            self.buffer.insert(now, TicketId(ticket), deadline, stake);
            self.rows.insert(TicketId(ticket), (deadline, stake));
        }
        (offer == Offer::In, out.iter().map(|ticket| ticket.0).collect())
    }

    fn go(&mut self, ticket: TicketId) {
        let (deadline, stake) = self.rows.remove(&ticket).expect("it waits");
        self.buffer.remove(ticket, deadline, stake);
    }
}

#[test]
fn rows_of_one_worth_that_cost_nothing_go_one_by_one() {
    let mut waiting = Waiting::new(1);
    for ticket in 1..=2 {
        assert_eq!(waiting.come(at(0), ticket, at(10), firm(0)), (true, vec![]));
    }
    waiting.go(TicketId(1));
    waiting.go(TicketId(2));
    assert!(waiting.buffer.is_empty());
}

#[test]
fn the_least_dense_gives_way_and_only_for_what_is_denser() {
    let mut waiting = Waiting::new(1);
    for (ticket, value) in [(1, 0.3), (2, 0.1), (3, 0.2)] {
        assert_eq!(waiting.come(at(0), ticket, at(30), soft(10, value)), (true, vec![]));
    }
    assert_eq!(waiting.come(at(0), 4, at(30), soft(10, 0.05)), (false, vec![]));
    assert_eq!(waiting.come(at(0), 5, at(30), soft(10, 0.25)), (true, vec![2]));
    assert_eq!(waiting.come(at(0), 6, at(30), soft(5, 0.25)), (true, vec![3]), "twice as dense");
    assert_eq!(waiting.come(at(0), 7, at(80), soft(10, 0.01)), (true, vec![]), "it has time");
}

#[test]
fn what_is_due_later_is_not_made_late_by_what_is_worth_less() {
    let mut waiting = Waiting::new(1);
    assert!(waiting.come(at(0), 1, at(40), soft(40, 4.0)).0);
    // It could be in time itself, and 1 would not be any more.
    assert_eq!(waiting.come(at(0), 2, at(20), soft(10, 0.1)), (false, vec![]));
    assert_eq!(waiting.come(at(0), 3, at(20), soft(10, 2.0)), (true, vec![1]));
}

#[test]
fn who_has_no_answer_goes_before_whoever_has_one() {
    let mut waiting = Waiting::new(1);
    assert!(waiting.come(at(0), 1, at(20), soft(10, 1000.0)).0);
    assert_eq!(waiting.come(at(0), 2, at(20), firm(10)), (true, vec![]));
    assert_eq!(waiting.come(at(0), 3, at(25), firm(10)), (true, vec![1]));
    // Firm rows alone are too many: no soft one may stay in their way.
    waiting.come(at(0), 4, at(5), soft(4, 1.0));
    assert!(!waiting.come(at(0), 5, at(20), firm(10)).0);
}

#[test]
fn what_is_critical_gives_way_to_what_is_critical_alone() {
    let mut waiting = Waiting::new(1);
    let critical = |stake: Stake| Stake { critical: true, ..stake };
    assert!(waiting.come(at(0), 1, at(20), critical(soft(20, 0.1))).0);
    assert_eq!(waiting.come(at(0), 2, at(20), firm(10)), (false, vec![]));
    assert_eq!(waiting.come(at(0), 3, at(20), critical(soft(10, 0.2))), (true, vec![1]));
    assert_eq!(waiting.come(at(0), 4, at(20), critical(firm(20))), (true, vec![3]));
}

#[test]
fn what_is_firm_gives_way_to_answers_that_are_worth_more() {
    let mut waiting = Waiting::new(1);
    let worth = |worth: f64| Stake { bid: Bid { worth, ..Bid::PLAIN }, ..firm(10) };
    assert!(waiting.come(at(0), 1, at(20), worth(1.0)).0 && waiting.come(at(0), 2, at(20), soft(10, 9.0)).0);
    assert_eq!(waiting.come(at(0), 3, at(20), worth(3.0)), (true, vec![2]), "first what has an answer in hand");
    assert_eq!(waiting.come(at(0), 4, at(20), worth(3.0)), (true, vec![1]));
    assert_eq!(waiting.come(at(0), 5, at(20), worth(3.0)), (false, vec![]), "as much is not more");
    assert_eq!(waiting.come(at(0), 6, at(20), worth(1.0)), (false, vec![]));
    assert!(waiting.buffer.is_firm_for(worth(1.0).bid) && !waiting.buffer.is_firm_for(worth(4.0).bid));
}

#[test]
fn a_share_is_kept_for_its_tenant_and_lent_while_it_asks_for_less() {
    let of = |id, share: f64, stake: Stake| Stake { bid: Bid { tenant: Tenant { id, share }, ..stake.bid }, ..stake };
    let (small, flood) = (|v| of(1, 0.5, soft(10, v)), |v| of(2, 0.5, soft(10, v)));
    let mut waiting = Waiting::new(1);
    (0..4).for_each(|ticket| assert!(waiting.come(at(0), ticket, at(40), flood(5.0)).0, "nobody else asks"));
    assert_eq!(waiting.come(at(0), 10, at(40), small(0.1)), (true, vec![0]), "up to its share, whatever that is worth");
    assert_eq!(waiting.come(at(0), 11, at(40), small(0.2)), (true, vec![1]));
    assert_eq!(waiting.come(at(0), 12, at(40), small(0.05)), (false, vec![]), "beyond it, only what is worth more");
    assert_eq!(waiting.come(at(0), 13, at(40), small(0.3)), (true, vec![10]), "its own best survive");
    assert_eq!(waiting.come(at(0), 20, at(40), flood(9.0)), (true, vec![2]), "a flood floods itself");
    // First answers of the flood do not take the share either.
    assert_eq!(waiting.come(at(0), 21, at(40), of(2, 0.5, firm(10))), (true, vec![3]));
    let stranger = Stake { bid: Bid::PLAIN, ..firm(10) };
    assert_eq!(waiting.come(at(0), 30, at(40), stranger), (false, vec![]), "both have no more than their shares");
}

#[test]
fn an_endpoint_gets_a_share_and_loses_it_while_rows_of_it_wait() {
    let of = |share: f64, v| Stake { bid: Bid { tenant: Tenant { id: 1, share }, ..soft(10, v).bid }, ..soft(10, v) };
    let mut waiting = Waiting::new(1);
    assert!(waiting.come(at(0), 1, at(40), of(0.0, 5.0)).0 && waiting.come(at(0), 2, at(40), of(0.5, 0.1)).0);
    waiting.go(TicketId(1));
    assert!(waiting.come(at(0), 3, at(40), of(0.5, 0.2)).0);
    // It floods, and what it has asked with its share stays within that.
    (10..14).for_each(|ticket| drop(waiting.come(at(0), ticket, at(40), of(0.0, 9.0))));
    assert!([2, 3].iter().all(|ticket| waiting.rows.contains_key(&TicketId(*ticket))), "{:?}", waiting.rows.keys());
    for ticket in waiting.rows.keys().copied().collect::<Vec<_>>() {
        waiting.go(ticket);
    }
    assert!(waiting.buffer.is_empty() && waiting.buffer.held.is_empty());
}

#[test]
fn nothing_goes_for_a_row_that_takes_longer_than_there_is_time() {
    let mut waiting = Waiting::new(1);
    // Steps are as long as for a deadline far ahead, and the end of one is later than what is due within it.
    waiting.come(at(0), 1, at(135), soft(1, 0.0));
    assert!(waiting.come(at(0), 2, at(1), soft(1, 0.0)).0);
    waiting.go(TicketId(1));
    assert_eq!(waiting.come(at(0), 3, at(13), firm(15)), (false, vec![]));
    assert_eq!(waiting.come(at(0), 4, at(13), firm(13)), (true, vec![]));
}

#[test]
fn equal_rows_do_not_push_each_other_out() {
    let mut waiting = Waiting::new(1);
    for ticket in 0..3 {
        waiting.come(at(0), ticket, at(30), soft(10, 0.5));
    }
    assert_eq!(waiting.come(at(0), 9, at(30), soft(10, 0.5)), (false, vec![]));
}

#[test]
fn it_is_as_full_as_what_is_due_before_or_would_be_delayed() {
    let mut waiting = Waiting::new(1);
    (0..3).for_each(|ticket| drop(waiting.come(at(0), ticket, at(30), firm(10))));
    let fill = |running, ms| waiting.buffer.fill(at(0), ServiceTime::from_nanos(running * MS), at(ms));
    assert_eq!((fill(0, 30), fill(0, 60), fill(30, 60)), (1.0, 0.5, 1.0));
    assert!(fill(0, 10) > 0.95, "what is due at 30 would be late");
    assert_eq!(Buffer::new(1).fill(at(0), ServiceTime::ZERO, at(30)), 0.0);
}

#[test]
fn slots_and_batches_in_progress_count() {
    let mut waiting = Waiting::new(2);
    for ticket in 0..6 {
        assert!(waiting.come(at(0), ticket, at(30), soft(10, 0.5)).0);
    }
    assert!(!waiting.come(at(0), 6, at(30), soft(10, 0.5)).0);
    let mut out = Vec::new();
    let buffer = Buffer::new(2);
    let running = ServiceTime::from_nanos(55 * MS);
    let offer = |short| buffer.offer(at(0), running, at(30), at(30), soft(4, 1.0), short, &mut Vec::new()) == Offer::In;
    assert!(offer(ServiceTime::ZERO));
    assert!(!offer(ServiceTime::from_nanos(1)), "somebody knows better");
    assert!(buffer.offer(at(0), running, at(30), at(30), soft(9, 1.0), ServiceTime::ZERO, &mut out) == Offer::Out);
}

#[test]
fn far_deadlines_widen_the_steps_and_lose_nothing() {
    let mut waiting = Waiting::new(1);
    let mut prng = Prng::new(1);
    for ticket in 0..2_000 {
        let deadline = at(10 + prng.below(100_000));
        waiting.come(at(0), ticket, deadline, soft(1, prng.uniform()));
    }
    assert!(waiting.buffer.steps.len() as u64 <= 2 * STEPS_MAX, "{}", waiting.buffer.steps.len());
    for ticket in waiting.rows.keys().copied().collect::<Vec<_>>() {
        waiting.go(ticket);
    }
    assert!(waiting.buffer.is_empty() && waiting.buffer.steps.is_empty());
    assert_eq!(waiting.buffer.step, FINEST);
}

/// Whether rows of unit cost can all be in time, by deadline.
fn feasible(now: u64, rows: &[(u64, f64)]) -> bool {
    let mut deadlines: Vec<u64> = rows.iter().map(|(deadline, _)| *deadline).collect();
    deadlines.sort_unstable();
    deadlines.iter().enumerate().all(|(i, deadline)| now + (i as u64 + 1) * 10 <= *deadline)
}

/// The best value of a set of rows of unit cost that can be in time: greed by value is exact (a transversal matroid).
fn best(now: u64, rows: &[(u64, f64)]) -> f64 {
    let mut by_value = rows.to_vec();
    by_value.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut kept: Vec<(u64, f64)> = Vec::new();
    for row in by_value {
        kept.push(row);
        if !feasible(now, &kept) {
            kept.pop();
        }
    }
    kept.iter().map(|(_, value)| value).sum()
}

#[test]
fn the_floor_is_what_has_to_go() {
    let mut waiting = Waiting::new(1);
    let floor = |waiting: &Waiting, running: u64, short: u64| {
        let ms = |n: u64| ServiceTime::from_nanos(n * MS);
        waiting.buffer.floor(at(0), ms(running), at(30), soft(10, 0.0), ms(short))
    };
    assert_eq!(floor(&waiting, 0, 0), 0.0, "there is room");
    (0..3).for_each(|ticket| drop(waiting.come(at(0), ticket, at(30), soft(10, 0.1 * (ticket + 1) as f64))));
    let least = floor(&waiting, 0, 0);
    assert!((least - 10.0).abs() < 1e-9, "a tenth in 10 ms: {least}");
    assert!((floor(&waiting, 5, 0) - 20.0).abs() < 1e-9, "two have to go");
    assert!((floor(&waiting, 0, 25) - 30.0).abs() < 1e-9, "somebody knows better");
    assert_eq!(floor(&waiting, 25, 0), f64::INFINITY, "what runs goes on");
    let mut waiting = Waiting::new(1);
    (0..3).for_each(|ticket| drop(waiting.come(at(0), ticket, at(30), firm(10))));
    assert_eq!(floor(&waiting, 0, 0), f64::INFINITY, "nothing gives way");
}

proptest! {
    /// What is worth more than the floor is let in, and what is worth less is not.
    #[test]
    fn the_floor_divides_what_is_let_in(
        rows in prop::collection::vec((1..100u64, 1..20u64, 0..100u32, (0..3u64, 0..3u8)), 0..60),
        (deadline, cost, running, (id, share), critical) in
            (1..100u64, 1..20u64, 0..40u64, (0..3u64, 0..3u8), any::<bool>()),
        slots in 1..4u32,
    ) {
        let mut waiting = Waiting::new(slots);
        let tenant = |id, share| Tenant { id: id + 1, share: f64::from(share) / 4.0 };
        for (ticket, (deadline, cost, value, (id, share))) in rows.into_iter().enumerate() {
            let mut stake = if value == 0 { firm(cost) } else { soft(cost, f64::from(value)) };
            stake.bid.tenant = tenant(id, share);
            waiting.come(at(0), ticket as u64, at(deadline), stake);
        }
        let ms = |n: u64| ServiceTime::from_nanos(n * MS);
        let offer = |density: f64| {
            let bid = Bid { gain: Some(density * cost as f64 / 1e3), tenant: tenant(id, share), ..Bid::PLAIN };
            let (running, deadline) = (ms(running), at(deadline));
            let (stake, mut out) = (Stake { bid, critical, ..soft(cost, 0.0) }, Vec::new());
            let offer = waiting.buffer.offer(at(0), running, deadline, deadline, stake, ServiceTime::ZERO, &mut out);
            (offer, out.len())
        };
        let stake = Stake { bid: Bid { tenant: tenant(id, share), ..Bid::PLAIN }, critical, ..soft(cost, 0.0) };
        let floor = waiting.buffer.floor(at(0), ms(running), at(deadline), stake, ServiceTime::ZERO);
        let (at_best, gone) = offer(1e12);
        if floor.is_infinite() {
            prop_assert_eq!(at_best, Offer::Out);
        } else {
            // Where more have to go than were looked at, it is the least that is asked.
            prop_assert!(at_best == Offer::Out || gone > LOOKED_AT || offer(floor * 1.001).0 == Offer::In, "{}", floor);
            prop_assert!(floor == 0.0 || offer(floor * 0.999).0 == Offer::Out, "{}", floor);
        }
    }

    /// With nothing running, what is kept of rows of equal cost is the best that could be kept of all that came.
    #[test]
    fn of_equal_rows_it_keeps_the_best_set(rows in prop::collection::vec((1..12u64, 0..1000u32), 1..30)) {
        // Deadlines at ends of steps, so that steps are exact.
        let rows: Vec<(u64, f64)> = rows.iter().map(|(d, v)| (d * 10, f64::from(*v))).collect();
        let mut waiting = Waiting::new(1);
        for (ticket, (deadline, value)) in rows.iter().enumerate() {
            let end = Instant::from_nanos((deadline << FINEST) - 1);
            let bid = Bid { gain: Some(*value), ..Bid::PLAIN };
            let stake = Stake { cost: ServiceTime::from_nanos((10 << FINEST) - 1), bid, critical: false };
            waiting.come(at(0), ticket as u64, end, stake);
        }
        let kept: Vec<(u64, f64)> = waiting.rows.keys().map(|ticket| rows[ticket.0 as usize]).collect();
        prop_assert!(feasible(0, &kept));
        let value: f64 = kept.iter().map(|(_, value)| value).sum();
        prop_assert!((value - best(0, &rows)).abs() < 1e-9, "{value} of {}", best(0, &rows));
    }

    /// Whatever comes and goes, and whoever gets a share meanwhile or loses it, the books are right: work by deadline and by tenant is that of
    /// what waits, and everything kept fits.
    #[test]
    fn what_waits_always_fits(
        steps in prop::collection::vec((0..4u8, 1..200u64, 1..20u64, 0..100u32, (0..3u64, 0..3u8)), 1..200),
        slots in 1..4u32,
    ) {
        let mut waiting = Waiting::new(slots);
        for (ticket, (kind, deadline, cost, value, (id, share))) in steps.into_iter().enumerate() {
            if kind == 0 && let Some(ticket) = waiting.rows.keys().next().copied() {
                waiting.go(ticket);
            } else {
                let mut stake = if kind == 1 { firm(cost) } else { soft(cost, f64::from(value)) };
                stake.bid.tenant = Tenant { id: id + 1, share: f64::from(share) / 4.0 };
                waiting.come(at(0), ticket as u64, at(deadline), stake);
            }
            prop_assert_eq!(waiting.buffer.len(), waiting.rows.len());
            let soft = waiting.rows.values().filter(|(_, stake)| !stake.is_firm());
            let soft: u64 = soft.map(|(_, stake)| stake.cost.as_nanos()).sum();
            prop_assert_eq!(waiting.buffer.soft_work().as_nanos(), soft);
            let mut held: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
            for (_, stake) in waiting.rows.values().filter(|(_, stake)| stake.bid.tenant.share > 0.0) {
                let of = held.entry(stake.bid.tenant.id).or_default();
                *of = (of.0 + 1, of.1 + stake.cost.as_nanos());
            }
            let booked = waiting.buffer.held.iter().map(|(id, held)| (*id, (held.rows, held.work)));
            prop_assert_eq!(booked.collect::<BTreeMap<_, _>>(), held);
            let mut work = 0;
            for (step, due) in &waiting.buffer.steps {
                let rows: Vec<_> = waiting.rows.values().filter(|(d, _)| d.as_nanos() >> waiting.buffer.step == *step).collect();
                prop_assert_eq!(rows.len(), due.rows.len());
                prop_assert_eq!(rows.iter().map(|(_, stake)| stake.cost.as_nanos()).sum::<u64>(), due.work.as_nanos());
                work += due.work.as_nanos();
                prop_assert_eq!(waiting.buffer.wants(at(0), *step, work), 0);
            }
        }
    }
}
