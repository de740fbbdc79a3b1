use std::time::Duration;

use weir_core::outcome::Class;
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::workload::Arrivals;

use super::*;
use crate::device::Service;
use crate::pool::queries;

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
fn no_bound_is_below_an_optimum_and_most_are_equal() {
    for slots in [1, 2] {
        let mut equal = 0;
        for seed in 0..1000 {
            let (mut case, queries) = random(seed, 3);
            case.slots = slots;
            let best = optimum(&case, &queries, Instant::ZERO) as f64;
            let bound = bound(&case, &queries);
            assert!(best <= bound + 1e-6, "seed {seed}, {slots} slots: {best} of {bound}");
            equal += usize::from(bound < best + 0.5);
        }
        assert!(equal > 500, "{slots} slots: {equal}");
    }
}

#[test]
fn no_schedule_found_serves_more_than_an_optimum_and_most_as_many() {
    let mut equal = 0;
    for seed in 0..1000 {
        let (case, queries) = random(seed, 3);
        let (best, found) = (optimum(&case, &queries, Instant::ZERO), found(&case, &queries));
        assert!(found <= best, "seed {seed}: {found} of {best}");
        equal += usize::from(found == best);
    }
    assert!(equal > 950, "{equal}");
}

/// Queries that come in bursts, beyond capacity, and with them what was `found` and the `bound`.
fn overload(models: &[(u64, u64, u64)]) -> (Case, Vec<Asked>, usize, f64) {
    let mut case = case(1, models);
    case.arrivals = Arrivals::parse("gamma:cv=2").expect("arrivals");
    let queries = queries(&case, 900.0, Duration::from_secs(1), 1);
    let (found, bound) = (found(&case, &queries), bound(&case, &queries));
    (case, queries, found, bound)
}

#[test]
fn for_one_model_what_is_found_and_the_bound_are_near_the_optimum() {
    let (case, queries, found, bound) = overload(&[(5, 1, 50)]);
    let best = one_model(&case, &queries, found);
    assert!(found * 1000 >= best * 995, "{found} of {best}");
    assert!(bound <= best as f64 * 1.02, "{best} of {bound}");
}

#[test]
fn for_many_models_what_is_found_and_the_bound_are_near_each_other() {
    let (_, _, found, bound) = overload(&[(4, 1, 50), (4, 1, 100), (2, 1, 50), (2, 1, 100)]);
    assert!(found as f64 >= bound * 0.94, "{found} of {bound}");
}
