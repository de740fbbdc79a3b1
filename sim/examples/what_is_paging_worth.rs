//! What is paging by worth worth against LRU? 200 models of which memory holds 50, asked by Zipf's law (s = 1): queries in time, those that
//! found their model out of memory, and reloads.
//!
//! `cargo run --release -p weir-sim --example what_is_paging_worth [SECONDS [SEEDS]]`: 300 and 3 where nobody says.

use std::time::Duration;

use weir_core::paging::Keep;
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::units::{Bytes, Instant, ServiceTime};
use weir_core::workload::Arrivals;
use weir_sim::device::Service;
use weir_sim::paging::{Model, Node, Totals, run};
use weir_sim::pool::{self, Asked, Case, Load};

const MODELS: usize = 200;
/// Of the memory that all of them take.
const FITS: u64 = 4;
/// Before anything is counted.
const WARM: Duration = Duration::from_secs(120);
const SLO: Duration = Duration::from_millis(100);

/// What is asked: how fast, how long reloads take against how much time queries have, and whether models are alike.
struct Question {
    title: &'static str,
    rate: f64,
    reload: Duration,
    varied: bool,
    /// Popularity moves on to other models so often.
    shifts: Option<Duration>,
}

/// In a random order, so that what is popular is not what was placed first.
fn models(question: &Question) -> Vec<Model> {
    let mut prng = Prng::new(7);
    let mut ranks: Vec<usize> = (1..=MODELS).collect();
    for i in (1..MODELS).rev() {
        ranks.swap(i, prng.below(i as u64 + 1) as usize);
    }
    let whole: f64 = ranks.iter().map(|rank| 1.0 / *rank as f64).sum();
    let profile = Profile::new(&[(1, ServiceTime::from_micros(2_000)), (16, ServiceTime::from_micros(9_500))]);
    let mut model = |rank: usize| {
        // From a quarter of the mean to 4 times, size and reload together, with a factor of two between them.
        let factor = if question.varied { 4f64.powf(2.0 * prng.uniform() - 1.0) } else { 1.0 };
        let speed = if question.varied { 2f64.powf(2.0 * prng.uniform() - 1.0) } else { 1.0 };
        let (believed, service) = (profile.clone(), Service::exact(profile.clone()));
        Model {
            load: Load { believed, service, max_batch: 16, slo: SLO, share: 1.0 / rank as f64 / whole },
            size: Bytes((20e6 * factor) as u64),
            fetch: Duration::ZERO,
            reload: question.reload.mul_f64(factor * speed),
            measuring: Duration::from_millis(50),
        }
    };
    ranks.into_iter().map(&mut model).collect()
}

/// Poisson arrivals; where popularity shifts, model `i` takes the place of the one before it each time.
fn queries(question: &Question, models: &[Model], length: Duration, seed: u64) -> Vec<Asked> {
    let loads: Vec<Load> = models.iter().map(|model| model.load.clone()).collect();
    let case = Case { slots: 2, models: loads, arrivals: Arrivals::parse("poisson").expect("arrivals") };
    let mut queries = pool::queries(&case, question.rate, length, seed);
    if let Some(every) = question.shifts {
        for query in &mut queries {
            let passed = (query.at.since(Instant::ZERO).as_nanos() / every.as_nanos()) as usize;
            query.model = (query.model + passed) % models.len();
        }
    }
    queries
}

fn main() {
    let asked = |i: usize, otherwise: u64| match std::env::args().nth(i).map(|text| text.parse()) {
        None => otherwise,
        Some(Ok(number @ 1..)) => number,
        Some(_) => panic!("SECONDS and SEEDS are whole numbers from 1 on"),
    };
    let (length, seeds) = (Duration::from_secs(asked(1, 300)), asked(2, 3));
    let ms = Duration::from_millis;
    let question = |title, rate, reload, varied, shifts| Question { title, rate, reload: ms(reload), varied, shifts };
    let questions = [
        question("reload 20 ms, 50/s", 50.0, 20, false, None),
        question("reload 20 ms, 200/s", 200.0, 20, false, None),
        question("reload 60 ms, 50/s", 50.0, 60, false, None),
        question("reload 60 ms, 200/s", 200.0, 60, false, None),
        question("reload 500 ms, 50/s", 50.0, 500, false, None),
        question("reload 500 ms, 200/s", 200.0, 500, false, None),
        question("sizes differ, 60 ms, 200/s", 200.0, 60, true, None),
        question("sizes differ, 500 ms, 200/s", 200.0, 500, true, None),
        question("shifts each 60 s, 60 ms, 200/s", 200.0, 60, false, Some(Duration::from_secs(60))),
        question("shifts each 60 s, 500 ms, 200/s", 200.0, 500, false, Some(Duration::from_secs(60))),
    ];
    println!(
        "{MODELS} models, memory for a quarter of them, deadline {SLO:?}: in time, found out of memory, reloads a second"
    );
    println!("{:<33} {:^26}   {:^26}", "", "worth", "LRU");
    for question in &questions {
        let models = models(question);
        let all: u64 = models.iter().map(|model| model.size.0).sum();
        let row = [Keep::Worth, Keep::Recent].map(|keep| {
            let node = Node { slots: 2, memory: Bytes(all / FITS), keep, noise: 0.2, models: models.clone() };
            let totals: Vec<Totals> = (1..=seeds)
                .map(|seed| {
                    let queries = queries(question, &models, WARM + length, seed);
                    run(&node, &queries, Instant::ZERO + WARM, seed)
                })
                .collect();
            let count = totals.len() as f64;
            let attainment = totals.iter().map(Totals::attainment).sum::<f64>() / count;
            let offered: u64 = totals.iter().flat_map(|totals| &totals.served).map(|served| served.offered).sum();
            let cold: u64 = totals.iter().map(|totals| totals.cold).sum();
            let reloads: u64 = totals.iter().map(|totals| totals.reloads).sum();
            let a_second = reloads as f64 / count / length.as_secs_f64();
            format!("{:6.2} % {:6.2} % {:7.2}/s", 100.0 * attainment, 100.0 * cold as f64 / offered as f64, a_second)
        });
        println!("{:<33} {}   {}", question.title, row[0], row[1]);
    }
}
