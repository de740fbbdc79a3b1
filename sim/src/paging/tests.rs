use weir_core::profile::Profile;
use weir_core::units::ServiceTime;
use weir_core::workload::Arrivals;

use super::*;
use crate::device::Service;
use crate::pool::{self, Case};

/// Models of 1 MB each that take 2 ms a row, asked by Zipf's law; `reload` to load.
fn zipf(count: usize, reload: Duration, slo: Duration) -> Vec<Model> {
    let whole: f64 = (1..=count).map(|rank| 1.0 / rank as f64).sum();
    let profile = Profile::new(&[(1, ServiceTime::from_micros(2_000)), (16, ServiceTime::from_micros(9_500))]);
    let model = |rank: usize| {
        let (believed, service) = (profile.clone(), Service::exact(profile.clone()));
        let load = Load { believed, service, max_batch: 16, slo, share: 1.0 / rank as f64 / whole };
        Model { load, size: Bytes(1_000_000), fetch: Duration::ZERO, reload, measuring: Duration::from_millis(20) }
    };
    (1..=count).map(model).collect()
}

fn at(keep: Keep, models: &[Model], fit: u64, rate: f64, seed: u64) -> Totals {
    let node = Node { slots: 2, memory: Bytes(fit * 1_000_000), keep, noise: 0.2, models: models.to_vec() };
    let loads = models.iter().map(|model| model.load.clone()).collect();
    let case = Case { slots: 2, models: loads, arrivals: Arrivals::parse("poisson").unwrap() };
    let queries = pool::queries(&case, rate, Duration::from_secs(90), seed);
    run(&node, &queries, Instant::from_millis(30_000), seed)
}

#[test]
fn every_query_ends_once_and_memory_is_never_exceeded() {
    for keep in [Keep::Worth, Keep::Recent] {
        let models = zipf(40, Duration::from_millis(30), Duration::from_millis(100));
        let totals = at(keep, &models, 10, 100.0, 1);
        for served in &totals.served {
            assert_eq!(served.offered, served.in_time + served.late + served.refused + served.expired);
        }
        assert!(totals.most <= Bytes(10_000_000), "{:?}", totals.most);
        assert!(totals.cold > 0 && totals.reloads > 0);
    }
}

#[test]
fn what_is_popular_stays_where_a_reload_takes_longer_than_there_is_time() {
    let models = zipf(40, Duration::from_millis(300), Duration::from_millis(100));
    let [worth, recent] = [Keep::Worth, Keep::Recent].map(|keep| at(keep, &models, 10, 100.0, 2));
    assert!(worth.attainment() > recent.attainment() + 0.02, "{} {}", worth.attainment(), recent.attainment());
    assert!(worth.reloads < recent.reloads / 4, "{} {}", worth.reloads, recent.reloads);
    // What the ten most popular ones are asked is 68 % of everything.
    assert!(worth.attainment() > 0.64, "{}", worth.attainment());
}

#[test]
fn a_cold_query_with_time_enough_waits_for_its_model() {
    let models = zipf(40, Duration::from_millis(10), Duration::from_millis(100));
    let totals = at(Keep::Worth, &models, 10, 50.0, 3);
    assert!(totals.attainment() > 0.995, "{}", totals.attainment());
}

#[test]
fn files_that_take_long_to_come_cost_no_query_of_other_models() {
    let mut models = zipf(40, Duration::from_millis(10), Duration::from_millis(100));
    let all_there = at(Keep::Worth, &models, 10, 50.0, 3);
    // Nobody asks for these, and each takes longer than half of the run.
    let mut slow = Model { fetch: Duration::from_secs(60), ..models[0].clone() };
    slow.load.share = 1e-9;
    models.extend(vec![slow; 3]);
    let fetched = at(Keep::Worth, &models, 10, 50.0, 3);
    assert!(
        fetched.attainment() > all_there.attainment() - 0.005,
        "{} {}",
        fetched.attainment(),
        all_there.attainment()
    );
}

#[test]
fn a_model_that_becomes_popular_is_loaded_though_no_query_can_wait_for_it() {
    let mut models = zipf(20, Duration::from_millis(300), Duration::from_millis(100));
    let loads: Vec<Load> = models.iter().map(|model| model.load.clone()).collect();
    // Whoever was asked most is asked least from half a minute on, and the other way round.
    let case = |loads| Case { slots: 2, models: loads, arrivals: Arrivals::parse("poisson").unwrap() };
    let mut queries = pool::queries(&case(loads.clone()), 100.0, Duration::from_secs(30), 4);
    let turned: Vec<Load> = loads.into_iter().rev().collect();
    let later = pool::queries(&case(turned.clone()), 100.0, Duration::from_secs(240), 5);
    let shift = Duration::from_secs(30);
    queries.extend(later.into_iter().map(|query| Asked {
        at: query.at + shift,
        deadline: weir_core::units::Deadline(query.deadline.0 + shift),
        ..query
    }));
    models.iter_mut().zip(turned).for_each(|(model, load)| model.load = load);
    let node = Node { slots: 2, memory: Bytes(5_000_000), keep: Keep::Worth, noise: 0.2, models };
    let totals = run(&node, &queries, Instant::from_millis(150_000), 4);
    // The five most popular are asked 63 % of everything.
    assert!(totals.attainment() > 0.58, "{}", totals.attainment());
}
