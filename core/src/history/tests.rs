use std::sync::Arc;

use super::*;
use crate::endpoint::gain::Bin;
use crate::endpoint::graph::{Comparison, Signal};
use crate::endpoint::passage::Looked;
use crate::endpoint::tests::endpoint;
use crate::endpoint::{Condition, GainTable, Gate, Judged};
use crate::ids::{DeviceName, NodeName};
use crate::outcome::{Class, Outcome, Rejection};
use crate::scheduler::Closed;
use crate::units::Deadline;

pub fn record(id: u128, outcome: Outcome) -> Record {
    let at = (id % 1_000_000) as u64;
    Record {
        id: QueryId(id),
        rows: 1,
        endpoint: Some(Arc::new(endpoint(&[("a", None)]))),
        arrived: Instant::from_millis(at),
        deadline: Some(Deadline(Instant::from_millis(at + 50))),
        class: Class::Default,
        visits: Visits::default(),
        looked: Vec::new(),
        ended: Instant::from_millis(at + 1),
        outcome,
        stage: 0,
        label: None,
        degraded: false,
        dear: false,
        not_numbers: 0,
        message: String::new(),
    }
}

#[test]
fn stage_calls_are_in_vain_where_a_query_in_time_has_no_answer_of_them() {
    let visit = |stage: usize, end: VisitEnd| Visit {
        stage,
        node: NodeName::parse("n1").unwrap(),
        device: None,
        sent: Instant::ZERO,
        end: Some((Instant::ZERO, end)),
        judged: None,
    };
    let answered = || VisitEnd::Answered { queue: Duration::ZERO, execute: Duration::ZERO, batch: None };
    let cascade = Arc::new(endpoint(&[("a", None), ("b", Some(Gate::ConfidenceBelow(0.9)))]));
    let with = |deeper: VisitEnd, record: Record| Record {
        endpoint: Some(Arc::clone(&cascade)),
        visits: [visit(0, answered()), visit(1, deeper)].into_iter().collect(),
        ..record
    };
    let mut totals = Totals::default();
    let late = Record { ended: Instant::from_millis(500), ..record(3, Outcome::Answered) };
    let records = [
        with(answered(), record(1, Outcome::Answered)),
        with(VisitEnd::Rejected(Rejection::Outbid), record(2, Outcome::Answered)),
        with(answered(), late),
        with(VisitEnd::Expired, record(4, Outcome::Expired)),
    ];
    totals.ended(&records, &mut Tally::default());
    assert_eq!((totals.stage_calls.of("a"), totals.in_vain.of("a")), (4, 2));
    assert_eq!((totals.stage_calls.of("b"), totals.in_vain.of("b")), (4, 3));
}

#[test]
fn what_went_wrong_outlives_what_went_well() {
    let mut history = History::keeping(4);
    history.add(record(1, Outcome::Rejected(Rejection::TooLate)));
    history.add(Record { degraded: true, ..record(2, Outcome::Answered) });
    history.add(Record { ended: Instant::from_millis(54), ..record(3, Outcome::Answered) });
    (10..20).for_each(|id| history.add(record(id, Outcome::Answered)));
    for (id, kept) in [(1, 1), (2, 1), (3, 1), (15, 0), (16, 1), (19, 1), (20, 0)] {
        assert_eq!(history.find(QueryId(id)).len(), kept, "{id}");
    }
    let reach = history.reach(Instant::from_millis(117));
    assert_eq!(reach, [Some(Duration::from_millis(100)), None], "of the others, none was dropped");
}

#[test]
fn rows_of_a_call_that_was_refused_as_a_whole_are_found() {
    let mut history = History::keeping(4);
    let refused = record(u128::MAX - 1, Outcome::Rejected(Rejection::BadInput));
    history.add(Record { rows: 4, endpoint: None, arrived: Instant::ZERO, deadline: None, ..refused });
    for (id, found) in [(u128::MAX - 2, 0), (u128::MAX - 1, 1), (u128::MAX, 1), (0, 1), (1, 1), (2, 0)] {
        assert_eq!(history.find(QueryId(id)).len(), found, "ids wrap around: {id}");
    }
}

#[test]
fn a_query_that_was_asked_twice_is_told_twice_in_order() {
    let mut history = History::keeping(4);
    let answered = Record { arrived: Instant::from_millis(5), ..record(7, Outcome::Answered) };
    history.add(answered.clone());
    let refused = Record { arrived: Instant::from_millis(3), ..record(7, Outcome::Rejected(Rejection::QueueFull)) };
    history.add(refused.clone());
    assert_eq!(history.find(QueryId(7)), [&refused, &answered]);
}

#[test]
fn quantiles_are_off_by_a_thirty_second_at_most() {
    let mut latencies = Latencies::default();
    assert_eq!(latencies.quantile(0.5), None);
    (1..=100_000u64).for_each(|us| latencies.add(Duration::from_micros(us)));
    for (q, exact) in [(0.0, 1.0), (0.0001, 10.0), (0.01, 1_000.0), (0.5, 50_000.0), (0.99, 99_000.0), (1.0, 100_000.0)]
    {
        let told = latencies.quantile(q).expect("there are some").as_micros() as f64;
        assert!((told / exact - 1.0).abs() <= 1.0 / 32.0, "{q}: {told} for {exact}");
    }
    let travelled = Latencies::of(latencies.counts().iter().copied());
    assert_eq!(travelled, latencies);
    latencies.merge(&travelled);
    assert_eq!(latencies.quantile(0.5), travelled.quantile(0.5));
    latencies.add(Duration::MAX);
    assert!(latencies.quantile(1.0).expect("the longest") > Duration::from_secs(120));
}

fn answer(recent: &mut Recent, at: Instant, latency_ms: u64) {
    let tally = recent.at(at);
    tally.arrived += 1;
    let arrived = Instant::ZERO;
    let ended = Instant::from_millis(latency_ms);
    let record =
        Record { arrived, ended, deadline: Some(Deadline(Instant::from_millis(50))), ..record(0, Outcome::Answered) };
    tally.ended(&record, record.worth());
}

#[test]
fn only_whole_seconds_of_the_window_are_told() {
    let mut recent = Recent::new(Instant::from_millis(100_500));
    answer(&mut recent, Instant::from_millis(100_600), 10);
    assert_eq!(recent.read(Instant::from_millis(100_900), WINDOW).seconds, 0, "the first is not over");
    answer(&mut recent, Instant::from_millis(101_000), 60);
    let read = recent.read(Instant::from_millis(101_999), WINDOW);
    assert_eq!((read.seconds, read.tally.answered, read.tally.attainment()), (1, 1, Some(1.0)));
    let expired = record(102_000, Outcome::Expired);
    recent.at(Instant::from_millis(102_000)).ended(&expired, expired.worth());
    let read = recent.read(Instant::from_millis(103_000), WINDOW);
    assert_eq!((read.seconds, read.tally.arrived, read.tally.ends(), read.tally.in_time), (3, 2, 3, 1));
    assert!((read.tally.attainment().unwrap() - 1.0 / 3.0).abs() < 1e-9);
    let later = recent.read(Instant::from_millis(112_000), WINDOW);
    assert_eq!((later.seconds, later.tally.arrived, later.tally.expired), (WINDOW as u32, 0, 1), "102 to 111");
    assert_eq!(recent.read(Instant::from_millis(113_000), WINDOW).tally, Tally::default());
}

#[test]
fn a_second_of_the_ring_is_used_again_as_if_new() {
    let mut recent = Recent::new(Instant::ZERO);
    for second in 0..40 {
        answer(&mut recent, Instant::from_millis(second * 1_000), second + 1);
    }
    let read = recent.read(Instant::from_millis(40_000), WINDOW);
    assert_eq!((read.seconds, read.tally.answered, read.tally.by_stage.of("a")), (10, 10, 10));
    let shortest = read.tally.latencies.quantile(0.0).unwrap();
    assert!(shortest >= Duration::from_millis(30), "{shortest:?}: older ones are gone");
}

#[test]
fn what_is_told_has_names_and_spans() {
    let stages = [("tiny", None), ("mid", Some(Gate::ConfidenceBelow(0.9))), ("big", None)];
    let at = Instant::from_millis;
    let visit = |stage, sent| Visit {
        stage,
        node: NodeName::parse("n1").unwrap(),
        device: DeviceName::parse("cpu0").ok(),
        sent: at(sent),
        end: None,
        judged: None,
    };
    let ran = VisitEnd::Answered {
        queue: Duration::from_millis(1),
        execute: Duration::from_millis(2),
        batch: Some(Batch { rows: 3, closed: Closed::Idle }),
    };
    let judged = Judged { signal: 0.5, value: None, free: None, cost: 0.0, price: 0.0, deeper: true, wanted: true };
    let first = Visit { end: Some((at(1_004), ran)), judged: Some(judged), ..visit(0, 1_000) };
    let mut graph = endpoint(&stages);
    let (signal, is) = (Signal::Confidence, Comparison::Less);
    graph.stages[2].when = Some(Condition { stage: 0, signal, is, than: 0.4 });
    let told = Record {
        endpoint: Some(Arc::new(graph)),
        looked: vec![(at(1_004), Looked { stage: 2, saw: 0.5, holds: false })],
        visits: [first, visit(1, 1_005)].into_iter().collect(),
        ended: at(1_060),
        degraded: true,
        ..record(1_000, Outcome::Answered)
    }
    .tell(at(3_060));
    assert_eq!((told.ago, told.total), (Duration::from_secs(2), Duration::from_millis(60)));
    assert_eq!((told.deadline, told.stage.unwrap().as_str()), (Some(Duration::from_millis(50)), "tiny"));
    let [tiny, mid] = &told.visits[..] else { panic!("{:?}", told.visits) };
    assert_eq!(tiny.end, Some((Duration::from_millis(4), ran)));
    assert_eq!(tiny.gate, Some((Rule::ConfidenceBelow(0.9), judged)));
    let [looked] = &told.conditions[..] else { panic!("{:?}", told.conditions) };
    assert_eq!((looked.stage.as_str(), looked.when.as_str()), ("big", "tiny.confidence < 0.4"));
    assert_eq!((looked.after, looked.saw, looked.holds), (Duration::from_millis(4), 0.5, false));
    assert_eq!((mid.stage.as_str(), mid.after, mid.end, mid.gate), ("mid", Duration::from_millis(5), None, None));
}

#[test]
fn what_an_answer_is_expected_to_be_worth_and_what_load_has_cost() {
    let bin = |confidence, right, gain| Bin { confidence, rows: 100, right, gain, error: 0.01, next: Vec::new() };
    let table = Arc::new(GainTable::new(vec![bin(0.2, 0.5, 0.3), bin(0.8, 0.9, 0.001)]).unwrap());
    let mut cascade = endpoint(&[("tiny", None), ("mid", Some(Gate::Gain { table, min_gain: 0.002 }))]);
    cascade.weight = 2.0;
    let ended = |outcome, stage, signal: f32, free: f64| {
        // At its price it is worth half as much.
        let (value, deeper) = (Some(free / 2.0), stage > 0);
        let judged = Judged { signal, value, free: Some(free), cost: 0.0, price: 1.0, deeper, wanted: true };
        let visit = Visit {
            stage: 0,
            node: NodeName::parse("n1").unwrap(),
            device: None,
            sent: Instant::ZERO,
            end: None,
            judged: Some(judged),
        };
        let endpoint = Some(Arc::new(cascade.clone()));
        Record { endpoint, stage, visits: [visit].into_iter().collect(), ..record(0, outcome) }
    };
    let shallow = ended(Outcome::Answered, 0, 0.2, 0.6);
    assert_eq!((shallow.expected_right(), shallow.forgone()), (Some(0.5), 0.6), "more was worth it, and did not run");
    let deep = ended(Outcome::Answered, 1, 0.2, 0.6);
    assert_eq!((deep.expected_right(), deep.forgone()), (Some(0.8), 0.0));
    let sure = ended(Outcome::Answered, 0, 0.8, 0.002);
    assert_eq!((sure.expected_right(), sure.forgone()), (Some(0.9), 0.0), "nothing more was wanted");
    assert_eq!(ended(Outcome::Rejected(Rejection::TooLate), 0, 0.2, 0.6).forgone(), 2.0);
    let default = ended(Outcome::Answered, 2, 0.2, 0.6);
    assert_eq!((default.expected_right(), default.forgone()), (None, 2.0));
    assert_eq!(record(0, Outcome::Answered).expected_right(), None);
    let mut tally = Tally::default();
    for record in [&shallow, &deep, &sure] {
        tally.ended(record, record.worth());
    }
    assert_eq!((tally.estimated, tally.forgone), (3, 600_000));
    assert!((tally.accuracy().unwrap() - 2.2 / 3.0).abs() < 1e-5);
}
