use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::endpoint::gain::Bin;
use crate::endpoint::graph::{Needs, Stages};
use crate::endpoint::{Endpoint, Flow, GainTable, Gate, Ladder, Stage};
use crate::ids::{DeviceName, EndpointName, ModelRef, NodeName, StageName};
use crate::prng::Prng;
use crate::triage::Price;
use crate::units::{Deadline, Instant};

pub(super) fn cascade() -> Ladder {
    let stage = |name: &str, gate| {
        Stage::new(StageName::parse(name).unwrap(), ModelRef::parse(&format!("{name}@1")).unwrap(), gate)
    };
    let endpoint = Endpoint {
        label_output: Some("probs".into()),
        ..Endpoint::new(
            EndpointName::parse("e").unwrap(),
            Duration::from_millis(50),
            vec![
                stage("tiny", None),
                stage("mid", Some(Gate::ConfidenceBelow(0.9))),
                stage("big", Some(Gate::ConfidenceBelow(0.8))),
            ],
        )
    };
    Ladder::free(Arc::new(endpoint))
}

/// What stages of [`cascade`] wait for.
pub(super) fn flow() -> Arc<Flow> {
    Arc::new(Flow::chain([false, true, true].into_iter()))
}

/// What a journey said.
#[derive(Debug, PartialEq)]
enum Said {
    /// Call these; again where they have been tried.
    Call(Vec<usize>),
    Again(usize),
    End(Ending),
}

/// A journey through a graph, the stage of each call told by what it said.
struct Walk {
    flow: Arc<Flow>,
    ladder: Ladder,
    journey: Journey,
    stage: usize,
}

impl Walk {
    fn of(flow: Arc<Flow>, depth: Depth) -> Walk {
        Walk { flow, ladder: cascade(), journey: Journey::new(depth), stage: 0 }
    }

    /// A started journey through the cascade.
    fn new(depth: Depth) -> Walk {
        let mut walk = Walk::of(flow(), depth);
        walk.start();
        walk
    }

    fn start(&mut self) -> Said {
        self.said(|journey, flow, _, calls| journey.start(flow, calls))
    }

    fn end(&mut self, end: StageEnd) -> Said {
        self.end_of(self.stage, end, 0)
    }

    fn end_of(&mut self, stage: usize, end: StageEnd, holds: Stages) -> Said {
        self.said(|journey, flow, ladder, calls| journey.on_stage_end(flow, ladder, stage, end, holds, calls))
    }

    fn says(&mut self, confidence: f32) -> Said {
        self.end(StageEnd::Answered(Some(confidence)))
    }

    fn no_choice(&mut self, why: Rejection) -> Said {
        let stage = self.stage;
        self.said(|journey, flow, _, calls| journey.on_no_choice(flow, stage, why, calls))
    }

    fn deadline(&mut self) -> Said {
        self.said(|journey, flow, _, calls| journey.on_deadline(flow, calls))
    }

    fn said(&mut self, what: impl FnOnce(&mut Journey, &Flow, &Ladder, &mut Vec<Call>) -> Option<Ending>) -> Said {
        let mut calls = Vec::new();
        let ended = what(&mut self.journey, &self.flow, &self.ladder, &mut calls);
        if let Some(end) = ended {
            assert_eq!(calls, [], "whoever has ended calls nothing");
            return Said::End(end);
        }
        self.stage = calls.last().map_or(self.stage, |call| call.stage);
        let again = calls.first().is_some_and(|call| !call.tried.is_empty());
        // Each is sent at once.
        calls.iter().for_each(|call| self.journey.on_sent(call.stage, &local()));
        if again { Said::Again(calls[0].stage) } else { Said::Call(calls.iter().map(|call| call.stage).collect()) }
    }
}

fn call(stage: usize) -> Said {
    Said::Call(vec![stage])
}

fn answer(stage: usize, degraded: bool) -> Said {
    Said::End(Ending::Answer { stage, degraded })
}

#[test]
fn a_sure_answer_goes_out_and_an_unsure_one_goes_deeper() {
    let mut walk = Walk::new(Depth::ANY);
    assert_eq!(walk.end(StageEnd::Answered(Some(0.5))), call(1));
    assert_eq!(walk.end(StageEnd::Answered(Some(0.85))), answer(1, false));
    let mut walk = Walk::new(Depth::ANY);
    assert_eq!(walk.end(StageEnd::Answered(Some(0.9))), answer(0, false));
}

#[test]
fn a_caller_says_how_deep_it_goes() {
    let mut walk = Walk::new(Depth { from: 0, least: 1, most: 1 });
    assert_eq!(walk.end(StageEnd::Answered(Some(0.99))), call(1), "the gate is not asked");
    assert_eq!(walk.end(StageEnd::Answered(Some(0.1))), answer(1, false), "no deeper one was wanted");
    for (end, step) in [
        (StageEnd::Rejected(Rejection::TooLate), Said::End(Ending::Refuse(Rejection::TooLate))),
        (StageEnd::Expired, Said::End(Ending::Expire)),
        (StageEnd::Failed, Said::End(Ending::Fail)),
    ] {
        let mut walk = Walk::new(Depth { from: 0, least: 2, most: 2 });
        walk.end(StageEnd::Answered(Some(0.1)));
        assert_eq!(walk.end(end), step, "rather none than a shallow answer");
    }
}

#[test]
fn what_a_gate_said_is_remembered_until_the_next_answer() {
    let mut walk = Walk::new(Depth { from: 0, least: 1, most: usize::MAX });
    walk.end(StageEnd::Answered(Some(0.99)));
    assert_eq!(walk.journey.judged(), None, "the caller wanted more than the first stage");
    walk.end(StageEnd::Answered(Some(0.75)));
    let judged = walk.journey.judged().expect("the second gate was asked");
    assert_eq!((judged.signal, judged.deeper), (0.75, true));
    walk.end(StageEnd::Answered(Some(0.3)));
    assert_eq!(walk.journey.judged(), None, "there is no gate behind the last stage");
}

#[test]
fn whatever_goes_wrong_deeper_ends_in_the_shallow_answer() {
    let degraded = || answer(0, true);
    for end in [StageEnd::Expired, StageEnd::Failed, StageEnd::Rejected(Rejection::TooLate)] {
        let mut walk = Walk::new(Depth::ANY);
        walk.end(StageEnd::Answered(Some(0.1)));
        assert_eq!(walk.end(end), degraded());
    }
    let mut walk = Walk::new(Depth::ANY);
    walk.end(StageEnd::Answered(Some(0.1)));
    assert_eq!(walk.no_choice(Rejection::NoReplica), degraded());
    assert_eq!(walk.deadline(), degraded());
}

#[test]
fn what_may_have_run_is_not_said_to_have_been_refused() {
    let mut walk = Walk::new(Depth::ANY);
    assert_eq!(walk.end(StageEnd::Lost), Said::Again(0));
    assert_eq!(walk.no_choice(Rejection::NoReplica), Said::End(Ending::Fail));
    let mut walk = Walk::new(Depth::ANY);
    assert_eq!(walk.no_choice(Rejection::NoReplica), Said::End(Ending::Refuse(Rejection::NoReplica)));
}

#[test]
fn who_has_nobody_else_to_ask_says_why_the_last_one_did_not_run_it() {
    for why in [Rejection::QueueFull, Rejection::Draining, Rejection::NoReplica] {
        let mut walk = Walk::new(Depth::ANY);
        assert_eq!(walk.end(StageEnd::Rejected(why)), Said::Again(0));
        assert_eq!(walk.no_choice(Rejection::NoReplica), Said::End(Ending::Refuse(why)));
    }
    let mut walk = Walk::new(Depth::ANY);
    walk.end(StageEnd::Rejected(Rejection::QueueFull));
    let late = Rejection::TooLate;
    assert_eq!(walk.no_choice(late), Said::End(Ending::Refuse(late)), "others are left, and all of them too busy");
    let mut walk = Walk::new(Depth::ANY);
    walk.end(StageEnd::Rejected(Rejection::QueueFull));
    walk.end(StageEnd::Lost);
    assert_eq!(walk.no_choice(Rejection::NoReplica), Said::End(Ending::Fail), "it may have run");
}

#[test]
fn what_has_no_room_at_home_is_not_asked_elsewhere() {
    let mut walk = Walk::new(Depth::ANY);
    assert_eq!(walk.end(StageEnd::NoRoom), Said::End(Ending::Refuse(Rejection::QueueFull)));
    let mut walk = Walk::new(Depth::ANY);
    walk.says(0.1);
    assert_eq!(walk.end(StageEnd::NoRoom), answer(0, true), "the shallow answer goes out, and nothing runs twice");
}

#[test]
fn without_an_answer_the_outcome_says_what_happened() {
    let ends = [
        (StageEnd::Expired, Said::End(Ending::Expire)),
        (StageEnd::Failed, Said::End(Ending::Fail)),
        (StageEnd::Rejected(Rejection::TooLate), Said::End(Ending::Refuse(Rejection::TooLate))),
    ];
    for (end, step) in ends {
        let mut walk = Walk::new(Depth::ANY);
        assert_eq!(walk.end(end), step);
    }
}

#[test]
fn lost_calls_are_tried_elsewhere_three_times_in_all() {
    let mut walk = Walk::new(Depth::ANY);
    assert_eq!(walk.end(StageEnd::Lost), Said::Again(0));
    assert_eq!(walk.end(StageEnd::Rejected(Rejection::NoReplica)), Said::Again(0));
    assert_eq!(walk.end(StageEnd::Lost), Said::End(Ending::Fail));
}

#[test]
fn a_confidence_that_is_not_a_number_stops_and_is_counted() {
    let mut walk = Walk::new(Depth::ANY);
    assert_eq!(walk.end(StageEnd::Answered(Some(f32::NAN))), answer(0, false));
    assert_eq!(walk.journey.not_numbers(), 1);
}

#[test]
fn what_is_sent_nowhere_is_missed_where_it_would_have_been_done_first() {
    let remote = Target::Remote(NodeName::parse("n2").unwrap());
    let at = |here, there| [candidate(local(), here), candidate(remote.clone(), there)];
    let left = Duration::from_millis(50);
    assert_eq!(missed(&at(60_000, 50_000), left, Duration::ZERO), Some(&remote));
    assert_eq!(missed(&at(60_000, 59_900), left, Duration::ZERO), Some(&local()), "with the way there");
    assert_eq!(missed(&[], left, Duration::ZERO), None);
}

#[test]
fn what_meets_and_is_sent_nowhere_is_missed_where_it_meets() {
    let (left, saves) = (Duration::from_millis(50), Duration::from_millis(5));
    let at = |target, order, alone_ms| {
        let alone = Duration::from_millis(alone_ms);
        Candidate { target, estimate: Estimate::of(Instant::ZERO, Instant::from_millis(60 + alone_ms), alone), order }
    };
    // In nobody's memory, and loaded as soon anywhere: each home has one of its own.
    let known = [at(local(), 1, 80), at(remote("n2"), 0, 80), at(remote("n3"), 2, 80)];
    assert_eq!(missed(&known, left, saves), Some(&remote("n2")), "the first in their order, for all homes");
    assert_eq!(missed(&known, left, Duration::ZERO), Some(&local()), "what need not meet is done first here");
    let (deadline, mut prng) = (Deadline(Instant::ZERO + left), Prng::new(3));
    let mut tried = (0..320).map(|_| choose(&known, &[], Instant::ZERO, deadline, saves, Draw::new(&mut prng)));
    assert!(tried.any(|choice| choice == Choice::To(remote("n2"))), "whoever is sent all the same tells it");
    assert!(tried.all(|choice| [Choice::To(remote("n2")), Choice::None(Rejection::TooLate)].contains(&choice)));
    // The first of them would have to load it for longer than there is time.
    let known = [at(local(), 2, 6), at(remote("n2"), 0, 80), at(remote("n3"), 1, 6)];
    assert_eq!(missed(&known, left, saves), Some(&remote("n3")), "the first that it could have been sent to");
}

fn candidate(target: Target, us: u64) -> Candidate {
    let estimate = Estimate::of(Instant::ZERO, Instant::from_micros(us), Duration::ZERO);
    Candidate { target, estimate, order: 0 }
}

pub(super) fn local() -> Target {
    Target::Local(DeviceName::parse("cpu0").unwrap())
}

pub(super) fn remote(name: &str) -> Target {
    Target::Remote(NodeName::parse(name).unwrap())
}

#[test]
fn a_remote_replica_is_charged_the_hop() {
    let mut prng = Prng::new(1);
    let near = [candidate(local(), 1000), candidate(remote("n2"), 800)];
    assert_eq!(
        choose(&near, &[], Instant::ZERO, Deadline::NEVER, Duration::ZERO, Draw::new(&mut prng)),
        Choice::To(local())
    );
    let far = [candidate(local(), 2000), candidate(remote("n2"), 800)];
    assert_eq!(
        choose(&far, &[], Instant::ZERO, Deadline::NEVER, Duration::ZERO, Draw::new(&mut prng)),
        Choice::To(remote("n2"))
    );
}

#[test]
fn nothing_is_sent_where_it_would_be_late() {
    let mut prng = Prng::new(1);
    let deadline = Deadline(Instant::from_micros(900));
    let late = [candidate(local(), 1000), candidate(remote("n2"), 950)];
    let chosen: Vec<_> =
        (0..1600).map(|_| choose(&late, &[], Instant::ZERO, deadline, Duration::ZERO, Draw::new(&mut prng))).collect();
    // Now and then the best is asked all the same: its profile may say more than is true.
    let asked = chosen.iter().filter(|choice| **choice == Choice::To(local())).count();
    assert!((60..150).contains(&asked), "{asked}");
    assert!(chosen.iter().all(|c| [Choice::To(local()), Choice::None(Rejection::TooLate)].contains(c)));
    assert_eq!(
        choose(&[], &[], Instant::ZERO, deadline, Duration::ZERO, Draw::new(&mut prng)),
        Choice::None(Rejection::NoReplica)
    );
}

#[test]
fn of_rows_that_would_be_late_together_as_many_are_counted_as_would_not() {
    let deadline = Deadline(Instant::from_micros(1000));
    for (each, rows, in_time) in
        [(100, 32, 10), (16, 64, 62), (10, 64, 64), (999, 2, 1), (600, 8, 1), (1001, 64, 0), (1001, 1, 0)]
    {
        let (mut looked, mut doubted) = (0, 0);
        for seed in 0..64 {
            looked = 0;
            let look = |rows: usize| {
                looked += 1;
                assert!(rows > 0);
                (vec![candidate(local(), each * rows as u64), candidate(remote("n2"), 5000)], deadline)
            };
            let part = choose_part(rows, || true, look, at_no_meeting, Draw::new(&mut Prng::new(seed)));
            let there = Choice::To(local());
            match (part.rows, part.choice) {
                (part, choice) if part == in_time => assert_eq!(choice, there),
                (all, Choice::None(why)) => assert_eq!((all, in_time, why), (rows, 0, Rejection::TooLate)),
                (all, _) => {
                    assert_eq!(all, rows);
                    doubted += 1;
                }
            }
        }
        assert!(doubted < 12, "{doubted} of 64 for {each} us each");
        assert!(looked <= 8, "{looked}");
    }
    let look = |_| (Vec::new(), deadline);
    let draw = Draw::new(&mut Prng::new(1));
    assert_eq!(choose_part(9, || true, look, at_no_meeting, draw).choice, Choice::None(Rejection::NoReplica));
    let late = |rows: usize| (vec![candidate(local(), 600 * rows as u64)], deadline);
    let whole = choose_part(9, || false, late, at_no_meeting, draw);
    assert_eq!((whole.rows, whole.choice), (9, Choice::None(Rejection::TooLate)), "those that may not go apart");
}

/// Of five others one has room for a part of the rows: it is found out by what decides for the part.
#[test]
fn a_part_goes_where_it_was_found_to_be_in_time() {
    let deadline = Deadline(Instant::from_micros(1000));
    let look = |rows: usize| {
        let at = |node: u64| candidate(remote(&format!("n{node}")), if node == 2 { 50 * rows as u64 } else { 5000 });
        ((0..5).map(at).collect(), deadline)
    };
    let (mut parts, mut none) = (0, 0);
    let mut prng = Prng::new(5);
    for _ in 0..1000 {
        let part = choose_part(32, || true, look, at_no_meeting, Draw::new(&mut prng));
        match part.choice {
            Choice::To(to) if part.rows == 14 => {
                assert_eq!(to, remote("n2"));
                parts += 1;
            }
            Choice::To(_) => assert_eq!(part.rows, 32, "doubted"),
            _ => none += 1,
        }
    }
    // Two of five are compared.
    assert!((320..430).contains(&parts) && (520..620).contains(&none), "{parts} {none}");
}

fn at_no_meeting(known: &[Candidate], deadline: Deadline, draw: Draw) -> Choice {
    choose(known, &[], Instant::ZERO, deadline, Duration::ZERO, draw)
}

#[test]
fn what_can_be_pushed_out_refuses_nobody() {
    let mut prng = Prng::new(1);
    let deadline = Deadline(Instant::from_micros(900));
    let mut busy = candidate(local(), 1000);
    busy.estimate.yields = Duration::from_micros(150);
    for _ in 0..100 {
        assert_eq!(
            choose(&[busy.clone()], &[], Instant::ZERO, deadline, Duration::ZERO, Draw::new(&mut prng)),
            Choice::To(local())
        );
    }
    let sooner = candidate(remote("n2"), 550);
    assert_eq!(
        choose(&[busy.clone(), sooner], &[], Instant::ZERO, deadline, Duration::ZERO, Draw::new(&mut prng)),
        Choice::To(remote("n2")),
        "where there is room"
    );
    let full = candidate(remote("n2"), 650);
    assert_eq!(
        choose(&[busy, full], &[], Instant::ZERO, deadline, Duration::ZERO, Draw::new(&mut prng)),
        Choice::To(local())
    );
}

#[test]
fn the_price_is_that_of_the_cheapest() {
    let now = Instant::from_millis(5_000);
    let told = |clears, ago: u64| {
        let price = Price { clears, ..Price::NOTHING };
        let at = Instant::from_millis(5_000 - ago);
        Some(Told::nothing(at, price))
    };
    let price = |local: &[f64], remote: &[Option<Told>]| cheapest(now, local.iter().copied(), remote.iter().copied());
    assert_eq!(price(&[5.0, 3.0], &[told(4.0, 0)]), 3.0);
    assert_eq!(price(&[5.0], &[told(4.0, 0)]), 4.0);
    assert_eq!(price(&[], &[told(4.0, 50)]), 4.0);
    // Who asks four times a second still knows something; who asks every other second knows nothing.
    let late = price(&[], &[told(4.0, 300)]);
    assert!((late - 4.0 * (-1.0f64).exp()).abs() < 1e-9, "{late}");
    assert!(price(&[5.0], &[told(4.0, 2_000)]) < 0.01, "that was long ago: it may have room");
    // There was no room for less then; soon there is.
    let full = |ago: u64| told(1.0, ago).map(|told| Told { price: Price { floor: 8.0, ..told.price }, ..told });
    assert_eq!((price(&[], &[full(0)]), price(&[], &[full(50)])), (8.0, 1.0));
    assert_eq!(price(&[5.0], &[None]), 0.0);
    assert_eq!(price(&[], &[]), 0.0);
}

#[test]
fn two_remote_replicas_are_compared_and_every_one_gets_its_turn() {
    let mut prng = Prng::new(1);
    let all: Vec<_> = (0..5).map(|i| candidate(remote(&format!("n{i}")), 1000 + i)).collect();
    let mut chosen = std::collections::BTreeMap::new();
    for _ in 0..1000 {
        if let Choice::To(target) =
            choose(&all, &[], Instant::ZERO, Deadline::NEVER, Duration::ZERO, Draw::new(&mut prng))
        {
            *chosen.entry(target).or_insert(0) += 1;
        }
    }
    // The worst of five is never the better of two; the best wins with probability 2/5.
    assert_eq!(chosen.get(&remote("n4")), None);
    assert!((350..450).contains(&chosen[&remote("n0")]), "{chosen:?}");
}

#[test]
fn where_all_are_full_a_row_goes_where_its_model_meets_or_nowhere() {
    let (mut prng, deadline) = (Prng::new(1), Deadline(Instant::from_millis(50)));
    let saves = Duration::from_millis(5);
    let at = |first_ms: u64, other_ms: u64| {
        let mut all = [candidate(local(), other_ms * 1000), candidate(remote("n2"), first_ms * 1000)];
        all[0].order = 1;
        all[0].estimate.begins = Instant::from_millis(other_ms - 6);
        all
    };
    let mut to =
        |all: &[Candidate], full: &[Target]| choose(all, full, Instant::ZERO, deadline, saves, Draw::new(&mut prng));
    assert_eq!(to(&at(34, 19), &[]), Choice::Asking(remote("n2"), Instant::from_millis(35)));
    assert_eq!(to(&at(45, 19), &[]), Choice::To(local()), "a guest, where it is not long in the way");
    assert_eq!(to(&at(45, 25), &[]), Choice::To(remote("n2")), "a batch of its own would cost the others several rows");
    assert_eq!(to(&at(34, 25), &[remote("n2")]), Choice::To(remote("n2")), "to the end of its time, then");
    let nowhere = (0..100).filter(|_| to(&at(51, 25), &[]) == Choice::None(Rejection::TooLate)).count();
    assert!(nowhere > 80, "but for those that find out whether that is true: {nowhere}");
    // Who does not answer, or takes longer than there is time, is no first.
    let mut gone = at(51, 25);
    gone[1].estimate.alone = Duration::MAX;
    assert_eq!(to(&gone, &[]), Choice::To(local()));
    gone[1].estimate.alone = Duration::from_millis(60);
    assert_eq!(to(&gone, &[]), Choice::To(local()));
    // Two devices of one node.
    let mut both =
        vec![candidate(Target::Local(DeviceName::parse("cpu1").unwrap()), 45_000), candidate(local(), 60_000)];
    both.push(at(0, 25)[0].clone());
    assert_eq!(to(&both, &[]), Choice::To(both[0].target.clone()));
}

#[test]
fn one_stage_can_be_asked_alone() {
    let mut walk = Walk::new(Depth::only(1));
    assert_eq!(walk.stage, 1);
    assert_eq!(walk.end(StageEnd::Answered(Some(0.0))), answer(1, false));
    let mut walk = Walk::new(Depth::only(1));
    assert_eq!(
        walk.end(StageEnd::Rejected(Rejection::TooLate)),
        Said::End(Ending::Refuse(Rejection::TooLate)),
        "there is no shallower answer"
    );
}

/// Three side by side, and 3 of as many of them as are enough.
fn ensemble(enough: u32) -> Arc<Flow> {
    let combined = Needs { some: Some((0b111, enough)), at_home: true, ..Needs::default() };
    Arc::new(Flow::new(vec![Needs::default(), Needs::default(), Needs::default(), combined], 0b1111))
}

const SURE: StageEnd = StageEnd::Answered(Some(0.95));

#[test]
fn branches_run_side_by_side_and_are_combined() {
    let mut walk = Walk::of(ensemble(3), Depth::ANY);
    assert_eq!(walk.start(), Said::Call(vec![0, 1, 2]));
    assert_eq!(walk.end_of(1, SURE, 0), Said::Call(vec![]));
    assert_eq!(walk.end_of(0, SURE, 0), Said::Call(vec![]));
    assert_eq!(walk.end_of(2, SURE, 0), call(3));
    assert_eq!(walk.end_of(3, SURE, 0), answer(3, false));
}

#[test]
fn where_a_branch_fails_the_others_do_if_they_are_enough() {
    let mut walk = Walk::of(ensemble(2), Depth::ANY);
    walk.start();
    walk.end_of(0, SURE, 0);
    assert_eq!(walk.end_of(1, StageEnd::Failed, 0), Said::Call(vec![]));
    assert_eq!(walk.end_of(2, SURE, 0), call(3));
    assert_eq!(walk.end_of(3, SURE, 0), answer(3, true), "visibly");
    let mut walk = Walk::of(ensemble(3), Depth::ANY);
    walk.start();
    walk.end_of(0, SURE, 0);
    walk.end_of(1, StageEnd::Failed, 0);
    assert_eq!(walk.end_of(2, SURE, 0), answer(2, true), "too few: the best single answer");
    let mut walk = Walk::of(ensemble(3), Depth { from: 0, least: 3, most: 3 });
    walk.start();
    assert_eq!(walk.end_of(1, StageEnd::Failed, 0), Said::End(Ending::Fail), "nobody waits for what cannot help");
}

#[test]
fn at_the_deadline_what_came_is_combined() {
    let mut walk = Walk::of(ensemble(2), Depth::ANY);
    walk.start();
    walk.end_of(0, SURE, 0);
    walk.end_of(1, SURE, 0);
    assert_eq!(walk.deadline(), call(3));
    assert_eq!(walk.end_of(2, SURE, 0), Said::Call(vec![]), "it came too late");
    assert_eq!(walk.end_of(3, SURE, 0), answer(3, true));
    let mut walk = Walk::of(ensemble(2), Depth::ANY);
    walk.start();
    walk.end_of(2, SURE, 0);
    assert_eq!(walk.deadline(), answer(2, true));
    let mut walk = Walk::of(ensemble(1), Depth::ANY);
    walk.start();
    walk.end_of(0, StageEnd::Rejected(Rejection::TooLate), 0);
    assert_eq!(walk.deadline(), Said::End(Ending::Expire));
    let mut walk = Walk::of(ensemble(1), Depth::ANY);
    walk.start();
    walk.end_of(0, StageEnd::Failed, 0);
    assert_eq!(walk.deadline(), Said::End(Ending::Fail), "that is the worst that happened");
}

#[test]
fn a_stage_whose_condition_does_not_hold_is_not_missed() {
    // 0 says which of 1 and 2 runs; 3 takes what ran.
    let branch = Needs { when: Some(0), ..Needs::default() };
    let joined = Needs { some: Some((0b110, 2)), at_home: true, ..Needs::default() };
    let graph = Arc::new(Flow::new(vec![Needs::default(), branch, branch, joined], 0b1110));
    let mut walk = Walk::of(Arc::clone(&graph), Depth::ANY);
    assert_eq!(walk.start(), call(0));
    assert_eq!(walk.end_of(0, SURE, 0b010), call(1));
    assert_eq!(walk.end_of(1, SURE, 0), call(3));
    assert_eq!(walk.end_of(3, SURE, 0), answer(3, false));
    let mut walk = Walk::of(Arc::clone(&graph), Depth::ANY);
    walk.start();
    assert_eq!(walk.end_of(0, SURE, 0), Said::End(Ending::Fail), "no branch, no answer");
    let mut walk = Walk::of(graph, Depth { from: 0, least: 1, most: 1 });
    walk.start();
    assert_eq!(walk.end_of(0, SURE, 0), call(1), "the caller wants it");
    assert_eq!(walk.end_of(1, SURE, 0), answer(1, false));
}

#[test]
fn what_nobody_needs_any_more_is_not_started() {
    // 1 feeds 2 alone, and 2 runs where 0 says so.
    let second = Needs { all: 0b10, when: Some(0), ..Needs::default() };
    let late = Needs { all: 0b01, ..Needs::default() };
    let graph = Arc::new(Flow::new(vec![Needs::default(), late, second], 0b101));
    let mut walk = Walk::of(graph, Depth { from: 0, least: 0, most: 1 });
    assert_eq!(walk.start(), call(0));
    assert_eq!(walk.end_of(0, SURE, 0b100), answer(0, false), "2 is too deep for this caller, so 1 is for nothing");
}

#[test]
fn what_another_node_told_ages_and_what_was_sent_there_counts() {
    let at = Instant::from_millis;
    let ms = Duration::from_millis;
    let told = Told {
        wait: ms(20),
        yields: ms(15),
        price: Price { clears: 1.0, floor: 3.0 },
        full: ms(8),
        at: at(100),
        silent: None,
    };
    let finish = |now: u64, told| remote_finish(at(now), told, ms(5)).finish;
    assert_eq!(finish(100, Some(told)), at(125));
    assert_eq!(finish(110, Some(told)), at(125), "it has worked on");
    assert_eq!(finish(130, Some(told)), at(135), "and is done");
    assert_eq!(finish(151, Some(told)), at(156), "that was long ago");
    let begins = |now: u64| remote_finish(at(now), Some(told), ms(5)).begins;
    assert_eq!([begins(102), begins(109), begins(151)], [at(108), at(109), at(151)], "a guest was not taken");
    assert_eq!(remote_finish(at(110), Some(told), ms(5)).yields, ms(10));
    assert_eq!(finish(110, Some(sent(at(110), Some(told), ms(4)))), at(129));
    let idle = sent(at(130), Some(told), ms(4));
    assert_eq!((finish(130, Some(idle)), idle.price.clears), (at(139), 1.0), "it begins when it comes");
    let later = sent(at(200), Some(told), ms(4));
    assert_eq!((finish(200, Some(later)), later.at), (at(209), at(200)));
    assert!(
        (later.price.clears - (-0.4f64).exp()).abs() < 1e-9,
        "a price that was told is not forgotten at once: {}",
        later.price.clears
    );
    assert_eq!(finish(1, Some(sent(at(1), None, ms(4)))), at(10));
    // It has told nothing since something was sent there: it may hang.
    let asked = sent(at(110), Some(told), ms(4));
    let again = sent(at(500), Some(asked), ms(4));
    assert_eq!((finish(159, Some(asked)), finish(1110, Some(again))), (at(164), at(2115)));
}

#[test]
fn a_journey_starts_with_a_call_just_where_something_can_answer() {
    let mut prng = Prng::new(6);
    let (mut can, mut cannot) = (0, 0);
    for _ in 0..3_000 {
        let count = 1 + prng.below(6) as usize;
        let mut some_of = |stage: usize| prng.below(1 << stage);
        let needs: Vec<Needs> = (0..count)
            .map(|stage| match some_of(5) % 4 {
                0 => Needs::default(),
                1 => Needs { all: some_of(stage), ..Needs::default() },
                2 if stage > 0 => {
                    Needs { when: Some(some_of(3) as usize % stage), all: some_of(stage), ..Needs::default() }
                }
                _ => {
                    let some = some_of(stage);
                    let enough = if some == 0 { 0 } else { 1 + some_of(3) as u32 % some.count_ones() };
                    Needs { some: Some((some, enough)), at_home: true, ..Needs::default() }
                }
            })
            .collect();
        let flow = Flow::new(needs, some_of(count) | 1 << (count - 1));
        let least = some_of(3) as usize % count;
        let depth = Depth { from: 0, least, most: least + some_of(3) as usize % count };
        let mut calls = Vec::new();
        let ended = Journey::new(depth).start(&flow, &mut calls);
        assert_eq!(ended.is_none(), depth.can_answer(&flow), "{depth:?} {flow:?}");
        assert_eq!(ended.is_none(), !calls.is_empty());
        *(if ended.is_none() { &mut can } else { &mut cannot }) += 1;
    }
    assert!(can > 300 && cannot > 300, "{can} {cannot}");
}

#[test]
fn one_stage_for_all_asks_for_what_it_takes_from_others() {
    let ways = |flow: &Flow| Depth::ways(flow, &[1.0, 2.0, 4.0, 8.0]);
    let whole = |stage| Depth { from: 0, ..Depth::only(stage) };
    let chain = Flow::chain([false, true, true, true].into_iter());
    let alone = [(Depth::only(0), 1.0), (Depth::only(1), 2.0), (Depth::only(2), 4.0), (Depth::only(3), 8.0)];
    assert_eq!(ways(&chain), alone);
    let segments = chain.asked_alone(0b1);
    assert_eq!(ways(&segments), [(Depth::only(0), 1.0), (whole(1), 3.0), (whole(2), 7.0), (whole(3), 15.0)]);
    // 1 and 2 side by side behind 0, 3 of both; 0 cannot answer.
    let needs = |all| Needs { all, ..Needs::default() };
    let graph = Flow::new(vec![needs(0), needs(0b1), needs(0b1), needs(0b110)], 0b1110);
    assert_eq!(ways(&graph), [(whole(1), 3.0), (whole(2), 5.0), (whole(3), 15.0)]);
}

#[test]
fn an_answer_that_a_price_has_made_shallower_says_so() {
    let gate = |bins: &[(f32, f64)]| {
        let bin = |(confidence, gain): &(f32, f64)| Bin {
            confidence: *confidence,
            rows: 100,
            right: 0.5,
            gain: *gain,
            error: 0.01,
            next: Vec::new(),
        };
        Gate::Gain { table: Arc::new(GainTable::new(bins.iter().map(bin).collect()).unwrap()), min_gain: 0.01 }
    };
    let stage = |name: &str, gate| {
        Stage::new(StageName::parse(name).unwrap(), ModelRef::parse(&format!("{name}@1")).unwrap(), gate)
    };
    let stages = vec![stage("a", None), stage("b", Some(gate(&[(0.2, 0.4), (0.9, 0.0)])))];
    let endpoint = Endpoint::new(EndpointName::parse("e").unwrap(), Duration::from_millis(50), stages);
    let ladder = Ladder::new(Arc::new(endpoint), 100.0, &[0.001, 0.01]);
    let flow = Flow::chain([false, true].into_iter());
    for (confidence, dear) in [(0.2, true), (0.9, false)] {
        let (mut journey, mut calls) = (Journey::new(Depth::ANY), Vec::new());
        journey.start(&flow, &mut calls);
        journey.on_sent(0, &local());
        let end = journey.on_stage_end(&flow, &ladder, 0, StageEnd::Answered(Some(confidence)), 0, &mut calls);
        assert_eq!(end, Some(Ending::Answer { stage: 0, degraded: dear }));
        assert_eq!(journey.is_dear(), dear);
    }
}

#[test]
fn an_answer_that_is_not_a_number_goes_out_only_where_there_is_no_other() {
    let mut walk = Walk::new(Depth::ANY);
    walk.says(0.1);
    walk.says(f32::NAN);
    assert_eq!(walk.journey.not_numbers(), 1, "a fixed gate stops there");
    let mut walk = Walk::new(Depth::ANY);
    walk.says(0.1);
    walk.says(0.1);
    assert_eq!(walk.says(f32::NAN), Said::End(Ending::Answer { stage: 1, degraded: true }), "the deepest that is one");
    let mut walk = Walk::new(Depth { from: 0, least: 2, most: usize::MAX });
    walk.says(0.1);
    walk.says(0.1);
    assert_eq!(walk.says(f32::NAN), Said::End(Ending::Answer { stage: 2, degraded: false }), "it was demanded");
}

#[test]
fn what_a_stage_adds_is_known_or_unknown_or_all() {
    let adds = |depth, says: &[f32]| {
        let mut walk = Walk::new(depth);
        says.iter().for_each(|confidence| {
            walk.says(*confidence);
        });
        walk.journey.adds(says.len())
    };
    assert_eq!(adds(Depth::ANY, &[]), Adds::All, "a first answer");
    assert_eq!(adds(Depth::ANY, &[0.1]), Adds::Something, "a fixed gate");
    assert_eq!(adds(Depth { least: 1, ..Depth::ANY }, &[0.1]), Adds::All, "it is demanded");
    assert_eq!(adds(Depth { least: 1, ..Depth::ANY }, &[0.1, 0.1]), Adds::Something);
}
