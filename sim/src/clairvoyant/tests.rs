use std::time::Duration;

use weir_core::outcome::Class;
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::workload::Arrivals;

use super::*;
use crate::device::Service;

fn case(slots: u32, models: &[(u64, u64, u64)]) -> Case {
    let models = models
        .iter()
        .map(|(alpha, beta, slo)| {
            let at = |rows: u64| ServiceTime::from_micros(1000 * (alpha + beta * rows));
            let profile = Profile::new(&[(1, at(1)), (8, at(8))]);
            Load {
                believed: profile.clone(),
                service: Service::exact(profile),
                max_batch: 8,
                slo: Duration::from_millis(*slo),
                share: 1.0 / models.len() as f64,
            }
        })
        .collect();
    Case { slots, models, arrivals: Arrivals::Poisson }
}

fn asked(case: &Case, model: usize, at: u64) -> Asked {
    let at = Instant::from_millis(at);
    Asked { at, model, deadline: Deadline(at + case.models[model].slo), class: Class::Default, mergeable: true }
}

/// A case of up to three models and up to eight queries, from a seed.
fn random(seed: u64, models: u64) -> (Case, Vec<Asked>) {
    let mut prng = Prng::new(seed);
    let models: Vec<_> =
        (0..1 + prng.below(models)).map(|_| (1 + prng.below(8), 1 + prng.below(3), 10 + prng.below(40))).collect();
    let case = case(1, &models);
    let span = 1 + prng.below(60);
    let mut queries: Vec<_> = (0..1 + prng.below(8))
        .map(|_| asked(&case, prng.below(models.len() as u64) as usize, prng.below(span)))
        .collect();
    queries.sort_by_key(|query| query.at);
    (case, queries)
}

#[test]
fn the_search_waits_where_waiting_pays_and_gives_up_who_is_in_the_way() {
    // Two rows take 12 ms, one 11: run at once, the first makes the second late.
    let one = case(1, &[(10, 1, 15)]);
    let queries = [asked(&one, 0, 0), asked(&one, 0, 3)];
    assert_eq!(optimum(&one, &queries, Instant::ZERO), 2);
    assert_eq!(one_model(&one, &queries, 0), 2);
    assert_eq!(optimum(&one, &queries, Instant::from_millis(4)), 1, "at 4 ms the first cannot wait for anybody");
    // Three of the second model, or one of the first.
    let two = case(1, &[(10, 1, 11), (10, 1, 13)]);
    let queries = [asked(&two, 0, 0), asked(&two, 1, 0), asked(&two, 1, 0), asked(&two, 1, 0)];
    assert_eq!(optimum(&two, &queries, Instant::ZERO), 3);
}

#[test]
fn what_is_exact_for_one_model_agrees_with_the_search() {
    for seed in 0..3000 {
        let (case, queries) = random(seed, 1);
        assert_eq!(one_model(&case, &queries, 0), optimum(&case, &queries, Instant::ZERO), "seed {seed}");
    }
}

#[test]
fn no_bound_is_below_an_optimum_and_many_are_equal() {
    for slots in [1, 2] {
        let mut equal = 0;
        for seed in 0..3000 {
            let (mut case, queries) = random(seed, 3);
            case.slots = slots;
            let best = optimum(&case, &queries, Instant::ZERO) as f64;
            let bound = bound(&case, &queries);
            assert!(best <= bound + 1e-6, "seed {seed}, {slots} slots: {best} of {bound}");
            equal += usize::from(bound < best + 0.5);
        }
        assert!(equal > 1000, "{slots} slots: {equal}");
    }
}
