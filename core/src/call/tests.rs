use super::*;

fn node(i: usize) -> NodeName {
    NodeName::parse(&format!("n{i}")).unwrap()
}

fn balancer(nodes: usize) -> (Balancer, Prng) {
    let mut balancer = Balancer::new();
    balancer.set_nodes((0..nodes).map(node));
    (balancer, Prng::new(7))
}

fn fail(balancer: &mut Balancer, now: Instant, name: &NodeName) {
    balancer.on_sent(name, 1);
    balancer.on_outcome(now, name, Outcome::Unknown, Duration::from_millis(1));
}

#[test]
fn calls_follow_the_lighter_of_two_nodes() {
    let (mut balancer, mut prng) = balancer(2);
    for i in 0..2 {
        balancer.on_sent(&node(i), 1);
        balancer.on_outcome(Instant::ZERO, &node(i), Outcome::Answered, Duration::from_millis(1));
    }
    for _ in 0..9 {
        balancer.on_sent(&node(0), 1);
    }
    assert!((0..1000).all(|_| balancer.pick(Instant::ZERO, &mut prng, &[], &[]) == Some(node(1))));
}

#[test]
fn of_three_nodes_the_heaviest_is_never_chosen_and_the_lightest_most() {
    let (mut balancer, mut prng) = balancer(3);
    for i in 0..3 {
        for _ in 0..i {
            balancer.on_sent(&node(i), 1);
        }
    }
    let picks: Vec<_> = (0..900).filter_map(|_| balancer.pick(Instant::ZERO, &mut prng, &[], &[])).collect();
    let count = |i| picks.iter().filter(|name| **name == node(i)).count();
    assert!((540..660).contains(&count(0)) && (240..360).contains(&count(1)), "{} {}", count(0), count(1));
    assert_eq!(count(2), 0);
}

#[test]
fn a_node_that_is_preferred_is_asked_first_unless_it_was_tried_or_does_badly() {
    let (mut balancer, mut prng) = balancer(3);
    balancer.prefer(node(2));
    for _ in 0..99 {
        balancer.on_sent(&node(2), 1);
        assert_eq!(balancer.pick(Instant::ZERO, &mut prng, &[], &[]), Some(node(2)));
    }
    assert_ne!(balancer.pick(Instant::ZERO, &mut prng, &[], &[node(2)]), Some(node(2)));
    (0..5).for_each(|_| fail(&mut balancer, Instant::ZERO, &node(2)));
    assert!((0..200).all(|_| balancer.pick(Instant::ZERO, &mut prng, &[], &[]) != Some(node(2))));
    // It has left the cluster, and comes back.
    balancer.set_nodes([node(0), node(1)]);
    assert!(balancer.pick(Instant::ZERO, &mut prng, &[], &[]).is_some_and(|picked| picked != node(2)));
    balancer.set_nodes((0..3).map(node));
    assert_eq!(balancer.pick(Instant::ZERO, &mut prng, &[], &[]), Some(node(2)));
}

#[test]
fn a_call_goes_to_a_host_as_long_as_one_is_there() {
    let (mut balancer, mut prng) = balancer(6);
    let hosts = [node(4), node(1), node(9)];
    let mut picks = |balancer: &mut Balancer, tried: &[NodeName]| {
        let picks = (0..200).filter_map(|_| balancer.pick(Instant::ZERO, &mut prng, &hosts, tried));
        picks.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(picks(&mut balancer, &[]), [node(1), node(4)].into(), "the ninth has left");
    assert_eq!(picks(&mut balancer, &[node(4)]), [node(1)].into());
    assert_eq!(picks(&mut balancer, &[node(4), node(1)]), [node(0), node(2), node(3), node(5)].into());
    // The lighter of two, however light the others are.
    (0..9).for_each(|_| balancer.on_sent(&node(4), 1));
    assert_eq!(picks(&mut balancer, &[]), [node(1)].into());
    (0..5).for_each(|_| fail(&mut balancer, Instant::ZERO, &node(1)));
    assert_eq!(picks(&mut balancer, &[]), [node(4)].into());
    (0..5).for_each(|_| fail(&mut balancer, Instant::ZERO, &node(4)));
    assert_eq!(picks(&mut balancer, &[]), [node(0), node(2), node(3), node(5)].into(), "both are left out");
    balancer.prefer(node(0));
    assert_eq!(picks(&mut balancer, &[]), [node(0)].into());
}

#[test]
fn refusals_make_no_node_look_fast() {
    let refuse = |balancer: &mut Balancer, why| {
        balancer.on_sent(&node(0), 1);
        balancer.on_outcome(Instant::ZERO, &node(0), Outcome::Rejected(why), Duration::from_micros(1));
    };
    for answered_before in [true, false] {
        let (mut balancer, mut prng) = balancer(2);
        for i in usize::from(!answered_before)..2 {
            balancer.on_sent(&node(i), 1);
            balancer.on_outcome(Instant::ZERO, &node(i), Outcome::Answered, Duration::from_millis(1));
        }
        (0..100).for_each(|_| refuse(&mut balancer, Rejection::QueueFull));
        (0..100).for_each(|_| refuse(&mut balancer, Rejection::Forbidden));
        let picks = (0..1000).filter(|_| balancer.pick(Instant::ZERO, &mut prng, &[], &[]) == Some(node(0))).count();
        assert!((400..600).contains(&picks), "{picks}");
    }
}

#[test]
fn calls_that_break_together_are_one_ejection() {
    let (mut balancer, mut prng) = balancer(3);
    (0..10).for_each(|_| balancer.on_sent(&node(0), 1));
    let ejected = (0..10)
        .map(|_| balancer.on_outcome(Instant::ZERO, &node(0), Outcome::Unknown, Duration::from_millis(1)))
        .collect::<Vec<_>>();
    assert_eq!(ejected.iter().filter(|ejected| **ejected).count(), 1);
    let probed = |balancer: &mut Balancer, prng: &mut Prng, ms| {
        balancer.pick(Instant::from_millis(ms), prng, &[], &[]) == Some(node(0))
    };
    assert!(!probed(&mut balancer, &mut prng, 999));
    assert!(probed(&mut balancer, &mut prng, 1000));
    // Each probe that fails doubles.
    fail(&mut balancer, Instant::from_millis(1000), &node(0));
    assert!(!probed(&mut balancer, &mut prng, 2999));
    assert!(probed(&mut balancer, &mut prng, 3000));
}

#[test]
fn a_call_that_was_given_up_leaves_no_trace() {
    let (mut balancer, mut prng) = balancer(3);
    (0..4).for_each(|_| fail(&mut balancer, Instant::ZERO, &node(0)));
    balancer.on_sent(&node(0), 1);
    balancer.on_dropped(&node(0));
    fail(&mut balancer, Instant::ZERO, &node(0));
    assert!(
        (0..200).all(|_| balancer.pick(Instant::ZERO, &mut prng, &[], &[]) != Some(node(0))),
        "five failures in a row"
    );
    let later = Instant::from_millis(1000);
    for _ in 0..2 {
        // The probe is given up: another one may be made.
        assert_eq!(balancer.pick(later, &mut prng, &[], &[]), Some(node(0)));
        balancer.on_sent(&node(0), 1);
        balancer.on_dropped(&node(0));
    }
    assert_eq!(balancer.nodes[&node(0)].in_flight, 0);
}

#[test]
fn a_node_that_was_tried_is_avoided_while_there_are_others() {
    let (mut balancer, mut prng) = balancer(2);
    for _ in 0..100 {
        assert_eq!(balancer.pick(Instant::ZERO, &mut prng, &[], &[node(0)]), Some(node(1)));
    }
    assert!(balancer.pick(Instant::ZERO, &mut prng, &[], &[node(0), node(1)]).is_some());
}

#[test]
fn a_failing_node_is_left_out_probed_and_taken_back() {
    let (mut balancer, mut prng) = balancer(3);
    let now = Instant::from_millis(0);
    (0..5).for_each(|_| fail(&mut balancer, now, &node(0)));
    assert!((0..200).all(|_| balancer.pick(now, &mut prng, &[], &[]) != Some(node(0))));
    let later = Instant::from_millis(1000);
    assert_eq!(balancer.pick(later, &mut prng, &[], &[]), Some(node(0)), "one call probes it");
    assert!((0..200).all(|_| balancer.pick(later, &mut prng, &[], &[]) != Some(node(0))), "and only one");
    balancer.on_sent(&node(0), 1);
    balancer.on_outcome(later, &node(0), Outcome::Answered, Duration::from_millis(1));
    assert!((0..200).any(|_| balancer.pick(later, &mut prng, &[], &[]) == Some(node(0))));
}

#[test]
fn at_most_a_third_of_the_nodes_is_left_out() {
    let (mut balancer, mut prng) = balancer(3);
    for i in 0..3 {
        (0..9).for_each(|_| fail(&mut balancer, Instant::ZERO, &node(i)));
    }
    let picked: std::collections::BTreeSet<_> =
        (0..200).filter_map(|_| balancer.pick(Instant::ZERO, &mut prng, &[], &[])).collect();
    assert_eq!(picked.len(), 2);
}

#[test]
fn retries_are_paid_from_a_tenth_of_what_is_sent() {
    let (mut balancer, mut prng) = balancer(1);
    let mut retried = 0;
    for _ in 0..1000 {
        balancer.on_sent(&node(0), 1);
        balancer.on_outcome(Instant::ZERO, &node(0), Outcome::Unknown, Duration::from_millis(1));
        retried += usize::from(balancer.may_retry(1, Outcome::Unknown, Duration::from_secs(1), &mut prng).is_some());
    }
    assert!((100..=120).contains(&retried), "{retried}");
}

#[test]
fn only_what_did_not_run_or_may_not_have_is_retried() {
    let left = Duration::from_secs(1);
    let retried = |attempt, outcome, left| {
        let (mut balancer, mut prng) = balancer(1);
        balancer.may_retry(attempt, outcome, left, &mut prng).is_some()
    };
    assert!(retried(1, Outcome::Unknown, left));
    assert!(retried(2, Outcome::Rejected(Rejection::NoReplica), left));
    assert!(!retried(3, Outcome::Unknown, left), "three attempts in all");
    assert!(!retried(1, Outcome::Failed, left));
    assert!(!retried(1, Outcome::Expired, left));
    assert!(!retried(1, Outcome::Rejected(Rejection::BadInput), left));
    assert!(!retried(1, Outcome::Unknown, Duration::ZERO));
}

#[test]
fn of_two_nodes_a_dead_one_is_left_out_and_a_last_one_never() {
    let (mut two, mut prng) = balancer(2);
    (0..5).for_each(|_| fail(&mut two, Instant::ZERO, &node(0)));
    assert!((0..200).all(|_| two.pick(Instant::ZERO, &mut prng, &[], &[]) == Some(node(1))));
    let (mut one, mut prng) = balancer(1);
    (0..9).for_each(|_| fail(&mut one, Instant::ZERO, &node(0)));
    assert_eq!(one.pick(Instant::ZERO, &mut prng, &[], &[]), Some(node(0)));
}
