use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::endpoint::{Endpoint, Gate, Stage};
use crate::ids::{DeviceName, EndpointName, ModelRef, NodeName, StageName};
use crate::outcome::Class;
use crate::prng::Prng;
use crate::units::{Deadline, Instant};

pub(super) fn cascade() -> Ladder {
    let stage = |name: &str, gate| Stage {
        name: StageName::parse(name).unwrap(),
        model: ModelRef::parse(&format!("{name}@1")).unwrap(),
        gate,
    };
    let endpoint = Endpoint {
        name: EndpointName::parse("e").unwrap(),
        deadline: Duration::from_millis(50),
        weight: 1.0,
        class: Class::Default,
        label_output: Some("probs".into()),
        confidence_output: None,
        stages: vec![
            stage("tiny", None),
            stage("mid", Some(Gate::ConfidenceBelow(0.9))),
            stage("big", Some(Gate::ConfidenceBelow(0.8))),
        ],
    };
    Ladder::free(Arc::new(endpoint))
}

fn call(stage: usize) -> Step {
    Step::Call { stage, again: false }
}

#[test]
fn a_sure_answer_goes_out_and_an_unsure_one_goes_deeper() {
    let ladder = cascade();
    let mut journey = Journey::new(Depth::ANY);
    assert_eq!(journey.start(), call(0));
    assert_eq!(journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.5))), call(1));
    assert_eq!(
        journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.85))),
        Step::Answer { stage: 1, degraded: false }
    );
    let mut journey = Journey::new(Depth::ANY);
    journey.start();
    assert_eq!(
        journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.9))),
        Step::Answer { stage: 0, degraded: false }
    );
}

#[test]
fn a_caller_says_how_deep_it_goes() {
    let ladder = cascade();
    let mut journey = Journey::new(Depth { from: 0, least: 1, most: 1 });
    assert_eq!(journey.start(), call(0));
    assert_eq!(journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.99))), call(1), "the gate is not asked");
    assert_eq!(
        journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.1))),
        Step::Answer { stage: 1, degraded: false },
        "no deeper one was wanted"
    );
    for (end, step) in [
        (StageEnd::Rejected(Rejection::TooLate), Step::Refuse(Rejection::TooLate)),
        (StageEnd::Expired, Step::Expire),
        (StageEnd::Failed, Step::Fail),
    ] {
        let mut journey = Journey::new(Depth { from: 0, least: 2, most: 2 });
        journey.start();
        journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.1)));
        assert_eq!(journey.on_stage_end(&ladder, end), step, "rather none than a shallow answer");
    }
}

#[test]
fn what_a_gate_said_is_remembered_until_the_next_answer() {
    let ladder = cascade();
    let mut journey = Journey::new(Depth { from: 0, least: 1, most: usize::MAX });
    journey.start();
    journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.99)));
    assert_eq!(journey.judged(), None, "the caller wanted more than the first stage");
    journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.75)));
    let judged = journey.judged().expect("the second gate was asked");
    assert_eq!((judged.signal, judged.deeper), (0.75, true));
    journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.3)));
    assert_eq!(journey.judged(), None, "there is no gate behind the last stage");
}

#[test]
fn whatever_goes_wrong_deeper_ends_in_the_shallow_answer() {
    let ladder = cascade();
    let degraded = Step::Answer { stage: 0, degraded: true };
    for end in [StageEnd::Expired, StageEnd::Failed, StageEnd::Rejected(Rejection::TooLate)] {
        let mut journey = Journey::new(Depth::ANY);
        journey.start();
        journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.1)));
        assert_eq!(journey.on_stage_end(&ladder, end), degraded);
    }
    let mut journey = Journey::new(Depth::ANY);
    journey.start();
    journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.1)));
    assert_eq!(journey.on_no_choice(Rejection::NoReplica), degraded);
    assert_eq!(journey.on_deadline(), degraded);
}

#[test]
fn what_may_have_run_is_not_said_to_have_been_refused() {
    let mut journey = Journey::new(Depth::ANY);
    journey.start();
    assert_eq!(journey.on_stage_end(&cascade(), StageEnd::Lost), Step::Call { stage: 0, again: true });
    assert_eq!(journey.on_no_choice(Rejection::NoReplica), Step::Fail);
    let mut journey = Journey::new(Depth::ANY);
    journey.start();
    assert_eq!(journey.on_no_choice(Rejection::NoReplica), Step::Refuse(Rejection::NoReplica));
}

#[test]
fn without_an_answer_the_outcome_says_what_happened() {
    let ladder = cascade();
    let ends = [
        (StageEnd::Expired, Step::Expire),
        (StageEnd::Failed, Step::Fail),
        (StageEnd::Rejected(Rejection::TooLate), Step::Refuse(Rejection::TooLate)),
    ];
    for (end, step) in ends {
        let mut journey = Journey::new(Depth::ANY);
        journey.start();
        assert_eq!(journey.on_stage_end(&ladder, end), step);
    }
}

#[test]
fn lost_calls_are_tried_elsewhere_three_times_in_all() {
    let ladder = cascade();
    let mut journey = Journey::new(Depth::ANY);
    journey.start();
    let again = Step::Call { stage: 0, again: true };
    assert_eq!(journey.on_stage_end(&ladder, StageEnd::Lost), again);
    assert_eq!(journey.on_stage_end(&ladder, StageEnd::Rejected(Rejection::NoReplica)), again);
    assert_eq!(journey.on_stage_end(&ladder, StageEnd::Lost), Step::Fail);
}

#[test]
fn a_confidence_that_is_not_a_number_stops_and_is_counted() {
    let ladder = cascade();
    let mut journey = Journey::new(Depth::ANY);
    journey.start();
    assert_eq!(
        journey.on_stage_end(&ladder, StageEnd::Answered(Some(f32::NAN))),
        Step::Answer { stage: 0, degraded: false }
    );
    assert_eq!(journey.not_numbers(), 1);
}

fn candidate(target: Target, us: u64) -> Candidate {
    let estimate = Estimate { finish: Instant::from_micros(us), yields: Duration::ZERO };
    Candidate { target, estimate }
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
    assert_eq!(choose(&near, Deadline::NEVER, &mut prng), Choice::To(local()));
    let far = [candidate(local(), 2000), candidate(remote("n2"), 800)];
    assert_eq!(choose(&far, Deadline::NEVER, &mut prng), Choice::To(remote("n2")));
}

#[test]
fn nothing_is_sent_where_it_would_be_late() {
    let mut prng = Prng::new(1);
    let deadline = Deadline(Instant::from_micros(900));
    let late = [candidate(local(), 1000), candidate(remote("n2"), 950)];
    let chosen: Vec<_> = (0..1600).map(|_| choose(&late, deadline, &mut prng)).collect();
    // Now and then the best is asked all the same: its profile may say more than is true.
    let asked = chosen.iter().filter(|choice| **choice == Choice::To(local())).count();
    assert!((60..150).contains(&asked), "{asked}");
    assert!(chosen.iter().all(|c| [Choice::To(local()), Choice::None(Rejection::TooLate)].contains(c)));
    assert_eq!(choose(&[], deadline, &mut prng), Choice::None(Rejection::NoReplica));
}

#[test]
fn what_can_be_pushed_out_refuses_nobody() {
    let mut prng = Prng::new(1);
    let deadline = Deadline(Instant::from_micros(900));
    let mut busy = candidate(local(), 1000);
    busy.estimate.yields = Duration::from_micros(150);
    for _ in 0..100 {
        assert_eq!(choose(&[busy.clone()], deadline, &mut prng), Choice::To(local()));
    }
    let sooner = candidate(remote("n2"), 550);
    assert_eq!(choose(&[busy.clone(), sooner], deadline, &mut prng), Choice::To(remote("n2")), "where there is room");
    let full = candidate(remote("n2"), 650);
    assert_eq!(choose(&[busy, full], deadline, &mut prng), Choice::To(local()));
}

#[test]
fn the_price_is_that_of_the_cheapest() {
    let now = Instant::from_millis(100);
    let told = |price, ago: u64| {
        let at = Instant::from_millis(100 - ago);
        Some(Told { wait: Duration::ZERO, yields: Duration::ZERO, price, at })
    };
    let price = |local: &[f64], remote: &[Option<Told>]| cheapest(now, local.iter().copied(), remote.iter().copied());
    assert_eq!(price(&[5.0, 3.0], &[told(4.0, 10)]), 3.0);
    assert_eq!(price(&[5.0], &[told(4.0, 10)]), 4.0);
    assert_eq!(price(&[5.0], &[told(4.0, 90)]), 0.0, "that was long ago: it may have room");
    assert_eq!(price(&[5.0], &[None]), 0.0);
    assert_eq!(price(&[], &[]), 0.0);
}

#[test]
fn two_remote_replicas_are_compared_and_every_one_gets_its_turn() {
    let mut prng = Prng::new(1);
    let all: Vec<_> = (0..5).map(|i| candidate(remote(&format!("n{i}")), 1000 + i)).collect();
    let mut chosen = std::collections::BTreeMap::new();
    for _ in 0..1000 {
        if let Choice::To(target) = choose(&all, Deadline::NEVER, &mut prng) {
            *chosen.entry(target).or_insert(0) += 1;
        }
    }
    // The worst of five is never the better of two; the best wins with probability 2/5.
    assert_eq!(chosen.get(&remote("n4")), None);
    assert!((350..450).contains(&chosen[&remote("n0")]), "{chosen:?}");
}

#[test]
fn one_stage_can_be_asked_alone() {
    let mut journey = Journey::new(Depth::only(1));
    assert_eq!(journey.start(), Step::Call { stage: 1, again: false });
    let ladder = cascade();
    assert_eq!(
        journey.on_stage_end(&ladder, StageEnd::Answered(Some(0.0))),
        Step::Answer { stage: 1, degraded: false }
    );
    let mut journey = Journey::new(Depth::only(1));
    journey.start();
    assert_eq!(
        journey.on_stage_end(&ladder, StageEnd::Rejected(Rejection::TooLate)),
        Step::Refuse(Rejection::TooLate),
        "there is no shallower answer"
    );
}
