use std::sync::Arc;

use weir_core::endpoint::gain::Bin;
use weir_core::endpoint::{Endpoint, GainTable, Gate, Stage};
use weir_core::ids::{EndpointName, StageName};
use weir_core::outcome::Rejection;
use weir_core::tensor::Tensor;
use weir_core::units::ServiceTime;

mod graphs;

use super::*;
use crate::demo::{ROWS, demo};
use crate::pool;

const fn us(n: u64) -> Duration {
    Duration::from_micros(n)
}

fn reference(name: &str) -> ModelRef {
    ModelRef::parse(&format!("{name}@1")).unwrap()
}

/// alpha + beta·b microseconds.
fn model(alpha: u64, beta: u64, replicas: &[u32]) -> Model {
    let at = |b: u64| ServiceTime::from_micros(alpha + beta * b);
    let profile = Profile::new(&[(1, at(1)), (64, at(64))]);
    Model { believed: profile.clone(), service: Service::exact(profile), max_batch: 64, replicas: replicas.to_vec() }
}

const PATH: Path = Path { request: us(40), reply: us(40), hand_off: us(20), hop: us(50) };

/// A shallow stage that is sure of even rows, and a deep one.
fn cascade(nodes: usize, shallow: Model, deep: Model) -> Cluster {
    let stage = |name: &str, gate| Stage::new(StageName::parse(name).unwrap(), reference(name), gate);
    let endpoint = Endpoint {
        label_output: Some("probs".into()),
        ..Endpoint::new(
            EndpointName::parse("e").unwrap(),
            us(50_000),
            vec![stage("shallow", None), stage("deep", Some(Gate::ConfidenceBelow(0.5)))],
        )
    };
    Cluster {
        nodes: vec![Node::of(1); nodes],
        policy: Policy::default(),
        triage: Method::default(),
        models: BTreeMap::from([(reference("shallow"), shallow), (reference("deep"), deep)]),
        endpoints: vec![Served::cascade(
            Ladders::new(&Arc::new(endpoint), &[]),
            &[vec![Some(0.9), Some(0.1)], vec![Some(0.9); 2]],
        )],
        path: PATH,
        reports: Some(Reports::default()),
    }
}

fn due(at_us: u64, rows: &[u32], deadline: u64) -> Due {
    Due { at: Instant::from_micros(at_us), endpoint: 0, rows: rows.to_vec(), deadline: us(deadline) }
}

fn ends(cluster: &Cluster, dues: Vec<Due>, seed: u64) -> Vec<Ended> {
    let mut ended = Vec::new();
    run(cluster, dues, seed, |end| ended.push(end));
    ended
}

#[test]
fn a_query_alone_takes_its_path_and_its_batches() {
    let cluster = cascade(1, model(100, 10, &[1]), model(1000, 100, &[1]));
    let ended =
        ends(&cluster, vec![due(0, &[0], 50_000), due(10_000, &[1], 50_000), due(20_000, &[1, 1, 0], 50_000)], 1);
    let stages: Vec<_> = ended.iter().map(|end| end.stages.clone()).collect();
    assert_eq!(stages, [vec![Some(0)], vec![Some(1)], vec![Some(1), Some(1), Some(0)]]);
    let latencies: Vec<_> = ended.iter().map(|end| end.latency).collect();
    // Rows of one query run as one batch, in each stage.
    assert_eq!(latencies, [us(100 + 110), us(100 + 110 + 20 + 1100), us(100 + 130 + 20 + 1200)]);
    assert!(ended.iter().all(|end| end.outcome == Outcome::Answered && !end.degraded));
}

#[test]
fn what_cannot_go_deeper_in_time_is_answered_as_it_is() {
    let cluster = cascade(1, model(100, 10, &[1]), model(60_000, 100, &[1]));
    let ended = ends(&cluster, vec![due(0, &[1], 50_000), due(200_000, &[0], 50_000), due(300_000, &[0], 90)], 2);
    assert_eq!((ended[0].outcome, &ended[0].stages[0], ended[0].degraded), (Outcome::Answered, &Some(0), true));
    assert_eq!((ended[1].outcome, ended[1].degraded), (Outcome::Answered, false));
    assert!(matches!(ended[2].outcome, Outcome::Rejected(Rejection::TooLate) | Outcome::Expired));
}

#[test]
fn what_nobody_can_answer_is_answered_by_the_default_where_there_is_one() {
    let mut cluster = cascade(1, model(100, 10, &[1]), model(1000, 100, &[1]));
    let mut endpoint = cluster.endpoints[0].ladders.endpoint().clone();
    endpoint.weight = 3.0;
    endpoint.default_outputs = vec![("probs".into(), Tensor::f32(&[1, 2], &[0.5, 0.5]))];
    cluster.endpoints[0].ladders = Ladders::new(&Arc::new(endpoint), &[]);
    // Not even the first stage can be in time.
    let ended = ends(&cluster, vec![due(0, &[0, 1], 90), due(100_000, &[1], 50_000)], 2);
    let told: Vec<_> =
        ended.iter().map(|end| (end.outcome, end.stages.clone(), end.degraded, end.expected_loss)).collect();
    let default = (Outcome::Answered, vec![Some(2); 2], true, 6.0);
    assert_eq!(told, [default, (Outcome::Answered, vec![Some(1)], false, 0.0)]);
}

/// Copies for audits take slot time in the gaps, and nobody waits for them.
#[test]
fn audits_run_every_stage_once_more_and_are_told_to_nobody() {
    let busy = |audit: f64| {
        let mut cluster = cascade(1, model(100, 10, &[1]), model(20_000, 100, &[1]));
        let mut endpoint = cluster.endpoints[0].ladders.endpoint().clone();
        endpoint.audit = audit;
        cluster.endpoints[0].ladders = Ladders::new(&Arc::new(endpoint), &[]);
        // All are sure: no query wants the deep stage, and whoever comes while a copy runs it waits.
        let ended = ends(&cluster, (0..500).map(|i| due(i * 10_000, &[0], 50_000)).collect(), 3);
        assert_eq!(ended.len(), 500, "a copy is no query");
        assert!(ended.iter().all(|end| end.stages == [Some(0)] && !end.degraded && end.latency < us(50_000)));
        ended.iter().filter(|end| end.latency > us(1000)).count()
    };
    assert_eq!(busy(0.0), 0);
    // A tenth has a copy, which takes the time of two queries.
    let waited = busy(0.1);
    assert!((50..150).contains(&waited), "{waited} of 500");
}

#[test]
fn every_query_ends_once_and_a_seed_repeats() {
    let cluster = cascade(3, model(100, 50, &[1, 1, 1]), model(2000, 300, &[0, 1, 1]));
    let mut prng = Prng::new(5);
    let mut at = 0.0;
    let dues: Vec<Due> = (0..4000)
        .map(|_| {
            at += prng.exponential() * 300.0;
            let rows: Vec<u32> = (0..1 + prng.below(3)).map(|_| prng.below(2) as u32).collect();
            due(at as u64, &rows, 1000 + prng.below(30_000))
        })
        .collect();
    let of = |seed| {
        let mut ended = ends(&cluster, dues.clone(), seed);
        ended.sort_by_key(|end| (end.due.at, end.latency));
        ended
    };
    let first = of(7);
    assert_eq!(first.len(), dues.len());
    assert!(first.iter().all(|end| end.stages.len() == end.due.rows.len()));
    assert!(first.iter().any(|end| end.degraded), "deep work is more than there is room for");
    let told = |ended: &[Ended]| format!("{ended:?}");
    assert_eq!(told(&first), told(&of(7)));
    assert_ne!(told(&first), told(&of(8)), "chance decides between nodes");
}

#[test]
fn a_node_without_a_model_asks_one_that_has_it() {
    let cluster = cascade(2, model(100, 10, &[1, 0]), model(1000, 100, &[0, 1]));
    let ended = ends(&cluster, (0..100).map(|i| due(i * 10_000, &[1], 50_000)).collect(), 3);
    assert!(ended.iter().all(|end| end.outcome == Outcome::Answered && end.stages == [Some(1)]));
    let alone = 100 + 110 + 20 + 1100;
    assert!(ended.iter().all(|end| end.latency == us(alone + 100)), "one stage of two is on the other node");
}

/// A gate that knows that the deep stage gains much for rows of little confidence, and little for the others.
fn weighing() -> Gate {
    let bin = |confidence, gain| Bin { confidence, rows: 100, right: 0.5, gain, error: 0.01, next: Vec::new() };
    let table = GainTable::new(vec![bin(0.1, 0.5), bin(0.9, 0.05)]).unwrap();
    Gate::Gain { table: Arc::new(table), min_gain: 0.0 }
}

/// A cascade on one slot whose deep stage takes 2 ms a row, behind that gate. Row 0 is sure, row 1 is not.
fn gated(gate: Gate) -> Cluster {
    let mut cluster = cascade(1, model(50, 10, &[1]), model(500, 2000, &[1]));
    let mut endpoint = cluster.endpoints[0].ladders.endpoint().clone();
    endpoint.stages[1].gate = Some(gate);
    cluster.endpoints[0].ladders = Ladders::new(&Arc::new(endpoint), &[1e-5, 2e-3]);
    cluster
}

/// Of rows of little and of much confidence, in turn at twice of what the deep stage can do: shares that it answered, and of what was sent to
/// it the share that it did not answer.
fn at_twice_the_load(triage: Method, gate: Gate) -> [f64; 3] {
    let cluster = Cluster { triage, ..gated(gate) };
    let dues = (0..4000u64).map(|i| due(i * 1000, &[(i % 2) as u32], 50_000)).collect();
    let ended = ends(&cluster, dues, 7);
    assert!(ended.iter().all(|end| end.outcome == Outcome::Answered && end.latency <= us(50_000)), "nobody is late");
    let share = |row: u32| {
        let of: Vec<&Ended> = ended.iter().filter(|end| end.due.rows == [row]).collect();
        of.iter().filter(|end| end.stages == [Some(1)]).count() as f64 / of.len() as f64
    };
    let count = |of: fn(&Ended) -> u32| f64::from(ended.iter().map(of).sum::<u32>());
    [share(1), share(0), 1.0 - count(|end| end.escalated.1) / count(|end| end.escalated.0)]
}

#[test]
fn when_there_is_too_much_the_deep_stage_serves_whom_it_helps_most() {
    let [unsure, sure, _] = at_twice_the_load(Method::Weir, weighing());
    assert!(unsure > 0.8 && sure < 0.1, "{unsure} and {sure}");
    // All want it, and nobody knows who needs it.
    let [unsure, sure, _] = at_twice_the_load(Method::Weir, Gate::ConfidenceBelow(0.95));
    assert!(unsure < 0.65 && sure > 0.25, "{unsure} and {sure}");
}

/// Each does what its name says: with thresholds that nothing changes it is chance who goes deeper; with those that rise with the load, with a
/// price, and where devices push out, it is those whom it helps.
#[test]
fn ways_of_triage_that_weigh_find_whom_the_deep_stage_helps() {
    let of = |triage| {
        let told @ [unsure, sure, vain] = at_twice_the_load(triage, weighing());
        println!("{triage}: {unsure:.3} {sure:.3}, in vain {vain:.3}");
        told
    };
    let [fixed, indexed, price, push_out] =
        [Method::Fixed, Method::LoadIndexed, Method::Price, Method::PushOut].map(of);
    let [unsure, sure, _] = fixed;
    assert!(unsure < 0.65 && sure > 0.25, "{unsure} and {sure}");
    for [unsure, sure, _] in [indexed, price, push_out] {
        assert!(unsure > sure + 0.4 && sure < 0.2, "{unsure} and {sure}");
    }
    // Where gates let all pass, devices sort them.
    assert!(push_out[2] > 0.3 && price[2] < 0.1 && indexed[2] < 0.1, "{push_out:?} {price:?} {indexed:?}");
}

/// Half of what is alike fits: of each call about half, and not all of one call and nothing of the next.
#[test]
fn alike_rows_of_one_call_draw_each_for_itself() {
    let cluster = Cluster { triage: Method::Price, ..gated(weighing()) };
    let ended = ends(&cluster, (0..500u64).map(|i| due(i * 16_000, &[1; 16], 50_000)).collect(), 7);
    let sent: Vec<u32> = ended.iter().map(|end| end.escalated.0).collect();
    let mixed = sent.iter().filter(|sent| (1..16).contains(*sent)).count();
    assert!(mixed > 250, "{mixed} of 500, {sent:?}");
}

/// 32 rows that would take the deep stage 64 ms: as many go deeper as can within 50.
#[test]
fn of_rows_that_would_be_late_together_those_go_deeper_whom_it_helps_most() {
    let cluster = gated(weighing());
    let rows: Vec<u32> = (0..32).map(|i| u32::from(i % 2 == 1)).collect();
    let mut doubted = 0;
    for seed in 0..20 {
        let ended = ends(&cluster, vec![due(0, &rows, 50_000)], seed);
        let [end] = &ended[..] else { panic!("one call") };
        let deep =
            |row: u32| rows.iter().zip(&end.stages).filter(|(of, stage)| **of == row && **stage == Some(1)).count();
        assert!(end.outcome == Outcome::Answered && end.latency <= us(50_000), "{end:?}");
        assert!(deep(1) == 16 && (6..=8).contains(&deep(0)), "{} and {}", deep(1), deep(0));
        doubted += u32::from(end.escalated.0 == 32);
        assert!(end.escalated.0 == 32 || end.escalated.0 == end.escalated.1, "nobody is sent in vain: {end:?}");
    }
    assert!(doubted < 6, "{doubted}: now and then all are sent, as the profile may be wrong");
}

#[test]
fn where_there_is_room_everybody_goes_deeper() {
    let cluster = gated(weighing());
    let dues = (0..200u64).map(|i| due(i * 4000, &[(i % 2) as u32], 50_000)).collect();
    assert!(ends(&cluster, dues, 7).iter().all(|end| end.stages == [Some(1)] && !end.degraded));
}

/// Ten times the rate for two seconds, ten seeds taken together, by tenths of a second: nobody notices but by the depth of the
/// answers, and that is back as soon as the spike is over.
#[test]
fn in_a_spike_deeper_stages_go_dark_and_come_back_and_answers_are_in_time() {
    let cluster = demo();
    // Offered, in time, answered by more than the first stage.
    let mut tenths = vec![[0u32; 3]; 60];
    for seed in 0..10 {
        let mut prng = Prng::new(100 + seed);
        let (mut at, mut dues) = (0.0, Vec::new());
        while at < 6.0 {
            let rate = if (2.0..4.0).contains(&at) { 4000.0 } else { 400.0 };
            at += prng.exponential() / rate;
            dues.push(due((at * 1e6) as u64, &[prng.below(ROWS as u64) as u32], 50_000));
        }
        for end in ends(&cluster, dues, seed) {
            let tenth = (end.due.at.as_nanos() / 100_000_000) as usize;
            let Some([offered, in_time, deeper]) = tenths.get_mut(tenth) else { continue };
            *offered += 1;
            *in_time += u32::from(end.outcome == Outcome::Answered && end.latency <= us(50_000));
            *deeper += u32::from(end.stages[0] > Some(0));
        }
    }
    for (tenth, [offered, in_time, _]) in tenths.iter().enumerate() {
        assert!(*in_time as f64 >= 0.97 * f64::from(*offered), "{in_time} of {offered} in the tenth {tenth}");
    }
    let depth = |tenths: &[[u32; 3]]| {
        let sum = |i: usize| f64::from(tenths.iter().map(|tenth| tenth[i]).sum::<u32>());
        sum(2) / sum(0)
    };
    let (calm, spike) = (depth(&tenths[5..20]), depth(&tenths[22..40]));
    assert!(calm > 0.5 && spike < 0.6 * calm, "{calm} before it and {spike} in it");
    let after: Vec<f64> = tenths[45..].chunks(5).map(depth).collect();
    assert!(
        after.iter().all(|depth| *depth > 0.9 * calm),
        "{after:?} from half a second after it on, {calm} before it"
    );
}

/// Three segments of one network, of which half of the rows leave after the first and three in ten of the others after the second: what goes
/// on is batched anew with what comes of other batches, so that small remainders do not each pay for a batch of their own.
/// `seed-systems.md` section 12: a row costs Σ S·(α/b + β) so, and Σ (α/b + S·β) otherwise.
#[test]
fn survivors_of_batches_are_batched_anew() {
    let (batch, beta) = (16u32, 100.0);
    let survive = [1.0, 0.5, 0.35];
    for a in [0.6, 4.0] {
        let alpha = a * beta * f64::from(batch);
        let segment = || {
            let mut model = model(alpha as u64, beta as u64, &[1]);
            model.max_batch = batch;
            model
        };
        let mut cluster = cascade(1, segment(), segment());
        cluster.models.insert(reference("last"), segment());
        let mut endpoint = cluster.endpoints[0].ladders.endpoint().clone();
        let gate = Some(Gate::ConfidenceBelow(0.5));
        endpoint.stages.push(Stage::new(StageName::parse("last").unwrap(), reference("last"), gate));
        let sure = |from: usize| (0..20).map(|row| Some(if row < from { 0.9 } else { 0.1 })).collect();
        let signals = [sure(10), sure(13), vec![None; 20]];
        cluster.endpoints[0] = Served::cascade(Ladders::new(&Arc::new(endpoint), &[]), &signals);
        let each = alpha / f64::from(batch);
        let anew: f64 = survive.iter().map(|s| s * (each + beta)).sum();
        let alone: f64 = survive.iter().map(|s| each + s * beta).sum();
        // At 95 % of what the formula says there is no backlog that grows.
        let mut prng = Prng::new(9);
        let mut at = 0.0;
        let dues: Vec<Due> = (0..20_000)
            .map(|_| {
                at += prng.exponential() * anew / 0.95;
                due(at as u64, &[prng.below(20) as u32], 400_000)
            })
            .collect();
        let ended = ends(&cluster, dues, 1);
        let whole = |end: &&Ended| {
            let depth = usize::from(end.due.rows[0] >= 10) + usize::from(end.due.rows[0] >= 13);
            end.outcome == Outcome::Answered && end.stages == [Some(depth)] && end.latency <= us(400_000)
        };
        let served = ended.iter().filter(whole).count();
        println!(
            "alpha/beta/b {a}: {:.2} times what batches that shrink could do; {served} of 20000 whole and in time",
            alone / anew
        );
        assert!(served >= 19_800 && alone / anew > 1.2, "{served}");
    }
}

const MODELS: usize = 4;

/// As many models as devices, each of them on `copies` devices.
fn with_copies(copies: usize) -> Cluster {
    let name = |i: usize| format!("m{i}");
    let on = |i: usize| (0..MODELS).map(|node| u32::from((node + MODELS - i) % MODELS < copies)).collect::<Vec<_>>();
    let endpoint = |i: usize| {
        let stage = Stage::new(StageName::parse(&name(i)).unwrap(), reference(&name(i)), None);
        let endpoint = Endpoint::new(EndpointName::parse(&name(i)).unwrap(), us(50_000), vec![stage]);
        Served::cascade(Ladders::new(&Arc::new(endpoint), &[0.001]), &[vec![None]])
    };
    Cluster {
        nodes: vec![Node::of(1); MODELS],
        policy: Policy::default(),
        triage: Method::default(),
        models: (0..MODELS).map(|i| (reference(&name(i)), model(5000, 1000, &on(i)))).collect(),
        endpoints: (0..MODELS).map(endpoint).collect(),
        path: PATH,
        reports: None,
    }
}

fn share_in_time(cluster: &Cluster, dues: Vec<Due>) -> f64 {
    let (mut in_time, all) = (0, dues.len());
    run(cluster, dues, 5, |ended| {
        in_time += usize::from(ended.stages[0].is_some() && ended.latency <= us(50_000));
    });
    in_time as f64 / all as f64
}

/// At so many rows a second of each model, the share in time; 600 are what a device of one's own can just do.
fn in_time_with_copies(copies: usize, each: f64) -> f64 {
    let mut prng = Prng::new(3);
    let mut at = 0.0;
    let dues: Vec<Due> = (0..20_000)
        .map(|_| {
            at += prng.exponential() / (each * MODELS as f64);
            let endpoint = prng.below(MODELS as u64) as usize;
            Due { at: Instant::from_nanos((at * 1e9) as u64), endpoint, rows: vec![0], deadline: us(50_000) }
        })
        .collect();
    share_in_time(&with_copies(copies), dues)
}

/// Where a node says that it is full before rows wait there, a burst finds the devices that have room, though homes know of others' queues only
/// what was told some time ago.
#[test]
fn a_burst_finds_the_devices_that_have_room() {
    let profile = Profile::new(&[(1, ServiceTime::from_micros(6000)), (40, ServiceTime::from_micros(45_000))]);
    let load = pool::Load {
        believed: profile.clone(),
        service: Service::exact(profile),
        max_batch: 40,
        slo: us(50_000),
        share: 1.0 / MODELS as f64,
    };
    let arrivals = weir_core::workload::Arrivals::parse("gamma:cv=2.828").unwrap();
    let case = pool::Case { slots: MODELS as u32, models: vec![load; MODELS], arrivals };
    let in_time = |copies: usize| {
        let queries = pool::queries(&case, 1900.0, Duration::from_secs(30), 7);
        let due = |query: pool::Asked| Due { at: query.at, endpoint: query.model, rows: vec![0], deadline: us(50_000) };
        share_in_time(&with_copies(copies), queries.into_iter().map(due).collect())
    };
    let [own, two, all] = [1, 2, MODELS].map(in_time);
    println!("bursts in time: {own:.4} on a device each, {two:.4} on two, {all:.4} on all");
    assert!(two > own + 0.01 && all > own + 0.01, "{own} {two} {all}");
}

/// Where first answers alone are too many, those that are worth less are refused, and nobody waits in vain.
#[test]
fn first_answers_that_are_worth_less_give_way() {
    let weights = [1.0, 3.0];
    let name = |i: usize| format!("w{i}");
    let endpoint = |i: usize| {
        let stage = Stage::new(StageName::parse("only").unwrap(), reference("m"), None);
        let endpoint = Endpoint::new(EndpointName::parse(&name(i)).unwrap(), us(50_000), vec![stage]);
        let endpoint = Endpoint { weight: weights[i], ..endpoint };
        Served::cascade(Ladders::new(&Arc::new(endpoint), &[0.001]), &[vec![None]])
    };
    let cluster = Cluster {
        models: BTreeMap::from([(reference("m"), model(1000, 1000, &[1]))]),
        endpoints: (0..2).map(endpoint).collect(),
        ..cascade(1, model(100, 10, &[1]), model(100, 10, &[1]))
    };
    // Each asks for three quarters of what the device can do.
    let mut prng = Prng::new(9);
    let mut at = 0.0;
    let dues = (0..20_000).map(|_| {
        at += prng.exponential() / 1400.0;
        let endpoint = prng.below(2) as usize;
        Due { at: Instant::from_nanos((at * 1e9) as u64), endpoint, rows: vec![0], deadline: us(50_000) }
    });
    let ended = ends(&cluster, dues.collect(), 4);
    let share = |of: usize, what: fn(&Ended) -> bool| {
        let all = ended.iter().filter(|end| end.due.endpoint == of);
        let (count, all) = all.fold((0, 0), |(count, all), end| (count + usize::from(what(end)), all + 1));
        count as f64 / f64::from(all)
    };
    let in_time = |end: &Ended| end.outcome == Outcome::Answered && end.latency <= us(50_000);
    let expired = |end: &Ended| end.outcome == Outcome::Expired;
    let told = [0, 1].map(|of| (share(of, in_time), share(of, expired)));
    println!("weights 1 and 3, first answers alone 1.5 times too many: in time, expired {told:?}");
    assert!(told[1].0 > 0.9 && told[0].0 < 0.6, "{told:?}");
}

#[test]
fn rows_meet_though_every_device_has_every_model() {
    let own = in_time_with_copies(1, 600.0);
    assert!(own > 0.98, "{own}");
    // Where each row went to whichever device is done first, two in three were refused.
    for copies in [2, 4] {
        let in_time = in_time_with_copies(copies, 600.0);
        assert!(in_time > own - 0.01, "{in_time} on {copies}, {own} on one's own");
    }
}

/// What overflows costs whoever meets elsewhere a batch: where it waited there as long as anybody, more of theirs overflowed, and so on, until
/// batches had fallen apart everywhere.
#[test]
fn with_too_much_of_everything_batches_do_not_fall_apart() {
    let [own, two, all] = [1, 2, MODELS].map(|copies| in_time_with_copies(copies, 800.0));
    println!("a third too much: {own:.4} in time on a device each, {two:.4} on two, {all:.4} on all");
    assert!(own < 0.98 && two > own - 0.04 && all > own - 0.04, "{own} {two} {all}");
}

#[test]
fn what_comes_at_once_is_served_in_the_batches_that_serve_most() {
    // As where a larger batch no longer fits the caches: 31 us a row in batches of 32, 45 in those of 64.
    let times = [(1, 100), (32, 1000), (64, 2900)].map(|(rows, time)| (rows, ServiceTime::from_micros(time)));
    let profile = Profile::new(&times);
    let shallow = Model { believed: profile.clone(), service: Service::exact(profile), ..model(0, 0, &[1]) };
    let cluster = cascade(1, shallow, model(1000, 100, &[1]));
    // 1300 rows take 41 ms of 50, or 59.
    let dues = (0..20 * 1300).map(|i| due(i / 1300 * 200_000 + i % 1300, &[0], 50_000)).collect();
    let share = share_in_time(&cluster, dues);
    assert!(share > 0.98, "{share} are in time");
}
