//! Graphs, and cascades with fixed gates.

use weir_core::endpoint::graph::Needs;

use super::*;

/// `first` and then `second`, which answers; a row is so many items for the first.
fn pipeline(first: Model, second: Model, items: Option<u32>, deadline: u64) -> Cluster {
    let cluster = cascade(1, first, second);
    let stages = ["shallow", "deep"].map(|name| Stage::new(StageName::parse(name).unwrap(), reference(name), None));
    let endpoint = Endpoint::new(EndpointName::parse("e").unwrap(), us(deadline), stages.to_vec());
    let flow = Flow::new(vec![Needs::default(), Needs { all: 0b1, ..Needs::default() }], 0b10);
    let says = vec![vec![Says { items, ..Says::default() }], vec![Says::default()]];
    let ladders = Ladders::new(&Arc::new(endpoint), &[]);
    Cluster { endpoints: vec![Served { ladders, flow: Arc::new(flow), says }], ..cluster }
}

/// So many queries at a rate a second, each with 50 ms.
fn poisson(count: usize, rate: f64, seed: u64, rows: &[u32]) -> Vec<Due> {
    let (mut prng, mut at) = (Prng::new(seed), 0.0);
    let next = || {
        at += prng.exponential() / rate;
        due((at * 1e6) as u64, rows, 50_000)
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Who comes alone, and has time enough, is answered: what a stage may take is told by what it takes, not by a row's part of its cheapest batch.
#[test]
fn each_stage_of_a_graph_has_the_time_that_it_takes() {
    let alone = |cluster: Cluster, deadline| {
        let ended = ends(&cluster, (0..200).map(|i| due(i * 1_000_000, &[0], deadline)).collect(), 3);
        ended.iter().filter(|end| end.outcome == Outcome::Answered && end.latency <= us(deadline)).count()
    };
    let one_by_one = Model { max_batch: 1, ..model(0, 1000, &[1]) };
    assert_eq!(
        alone(pipeline(one_by_one, model(10_000, 0, &[1]), Some(100), 130_000), 130_000),
        200,
        "a hundred items"
    );
    assert_eq!(
        alone(pipeline(model(50_000, 100, &[1]), model(1000, 0, &[1]), None, 60_000), 60_000),
        200,
        "a dear batch"
    );
    // A short stage before a long one finds a batch running: there is time for that, if not by its part of the work.
    let busy = pipeline(model(1000, 0, &[1]), model(40_000, 0, &[1]), None, 160_000);
    let both = (0..200).flat_map(|i| [due(i * 1_000_000, &[0], 160_000), due(i * 1_000_000 + 5_000, &[0], 160_000)]);
    let ended = ends(&busy, both.collect(), 3);
    let in_time = ended.iter().filter(|end| end.outcome == Outcome::Answered && end.latency <= us(160_000)).count();
    assert!(in_time >= 390, "{in_time} of 400");
}

/// What no first stage is to be begun for: the second one's time is kept.
#[test]
fn a_stage_leaves_what_has_to_follow_its_time() {
    let cluster = pipeline(model(1000, 1000, &[1]), model(1000, 5000, &[1]), None, 50_000);
    let dues = poisson(6_000, 300.0, 5, &[0]);
    // A row takes 6 ms of one slot at best: half of what comes.
    let ended = ends(&cluster, dues, 5);
    let share = |what: fn(&Ended) -> bool| ended.iter().filter(|end| what(end)).count() as f64 / ended.len() as f64;
    let in_time = share(|end| end.outcome == Outcome::Answered && end.latency <= us(50_000));
    println!("a pipeline at twice of what fits: {in_time:.3} in time");
    assert!(in_time > 0.4, "{in_time}");
}

/// As in the cluster's homes: it asks for nothing, and what it gives is nothing.
#[test]
fn a_row_without_items_is_asked_of_nobody() {
    let cluster = pipeline(model(10_000, 0, &[1]), model(1000, 0, &[1]), Some(0), 50_000);
    let ended = ends(&cluster, (0..50).map(|i| due(i * 20_000, &[0], 50_000)).collect(), 3);
    assert!(ended.iter().all(|end| end.outcome == Outcome::Answered && end.latency < us(5_000)), "{ended:?}");
}

#[test]
fn one_stage_for_all_of_a_graph_is_one_that_can_answer() {
    for triage in [Method::Whole, Method::RejectOnly] {
        let cluster = Cluster { triage, ..pipeline(model(100, 10, &[1]), model(1000, 10, &[1]), None, 50_000) };
        let ended = ends(&cluster, (0..50).map(|i| due(i * 20_000, &[0], 50_000)).collect(), 3);
        assert!(ended.iter().all(|end| end.stages == [Some(1)]), "{triage}");
    }
}

/// What a fixed gate lets pass has an answer in hand: it is in no first answer's way, its own or a neighbour's.
#[test]
fn a_fixed_gate_takes_no_time_from_first_answers() {
    let in_time = |gate: Gate, seed: u64| {
        let mut cluster = cascade(1, model(0, 1000, &[1]), model(0, 10_000, &[1]));
        let mut endpoint = cluster.endpoints[0].ladders.endpoint().clone();
        endpoint.stages[1].gate = Some(gate);
        cluster.endpoints[0].ladders = Ladders::new(&Arc::new(endpoint), &[1e-3, 1e-2]);
        // Each is unsure.
        let ended = ends(&cluster, poisson(18_000, 900.0, seed, &[1]), seed);
        ended.iter().filter(|end| end.outcome == Outcome::Answered && end.latency <= us(50_000)).count() as f64
            / ended.len() as f64
    };
    // One run says .970 or .981, as chance has it.
    let fixed = (11..15).map(|seed| in_time(Gate::ConfidenceBelow(0.5), seed)).sum::<f64>() / 4.0;
    let weighed = in_time(weighing(), 11);
    println!(
        "first answers are nine tenths of what fits: {fixed:.4} in time with a fixed gate, {weighed:.4} with one that weighs"
    );
    assert!(fixed > 0.97 && weighed > 0.98, "{fixed} {weighed}");
}

/// An answer that a price has made shallower says so, as one that a device had no room to make deeper.
#[test]
fn answers_that_are_shallower_for_their_price_are_degraded() {
    let cluster = gated(weighing());
    let dues = (0..4000u64).map(|i| due(i * 1000, &[(i % 2) as u32], 50_000)).collect();
    let ended = ends(&cluster, dues, 7);
    let shallow: Vec<&Ended> = ended.iter().filter(|end| end.stages == [Some(0)]).collect();
    assert!(shallow.len() > 1500 && shallow.iter().all(|end| end.degraded), "every gate wants more");
    assert!(ended.iter().all(|end| end.degraded == (end.stages == [Some(0)])));
}

/// Who has less time goes first at a device, and knows it at its home.
#[test]
fn who_has_little_time_is_not_refused_for_what_has_much() {
    for model_of_both in [true, false] {
        let endpoint = |name: &str, of: &str, deadline: u64| {
            let stage = Stage::new(StageName::parse("only").unwrap(), reference(of), None);
            let endpoint = Endpoint::new(EndpointName::parse(name).unwrap(), us(deadline), vec![stage]);
            Served::cascade(Ladders::new(&Arc::new(endpoint), &[0.001]), &[vec![None]])
        };
        let quick = if model_of_both { "shallow" } else { "deep" };
        let single = || Model { max_batch: 1, ..model(0, 1000, &[1]) };
        let cluster = Cluster {
            endpoints: vec![endpoint("slow", "shallow", 900_000), endpoint("quick", quick, 50_000)],
            ..cascade(1, single(), single())
        };
        let of = |endpoint, at: u64, deadline| Due { endpoint, ..due(at, &[0], deadline) };
        let bursts = (0..20).flat_map(|second| (0..400).map(move |i| of(0, second * 1_000_000 + i, 900_000)));
        let mut dues: Vec<Due> = bursts.chain((0..1000).map(|i| of(1, i * 20_000 + 7_000, 50_000))).collect();
        dues.sort_by_key(|due| due.at);
        let ended = ends(&cluster, dues, 9);
        let in_time = |endpoint, deadline| {
            let of = ended.iter().filter(|end| end.due.endpoint == endpoint);
            of.filter(|end| end.outcome == Outcome::Answered && end.latency <= us(deadline)).count()
        };
        let (slow, quick) = (in_time(0, 900_000), in_time(1, 50_000));
        println!(
            "beside bursts that have 900 ms: {quick} of 1000 that have 50 are in time, and {slow} of 8000 of those"
        );
        assert!(quick >= 980 && slow >= 7_900, "{quick} {slow}, one model: {model_of_both}");
    }
}
