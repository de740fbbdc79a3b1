//! Which policy serves most on one device? The table of `scheduling.md` section 15 and more rows, in virtual time.
//!
//! Then what no schedule exceeds that knows all arrivals: the rate up to which the bound is 99 % on time, and the first
//! policy's goodput as a share of the bound at 1, 1¼, 1½ and 2 times its own rate, over ten seconds and 10,000 queries at most. On
//! one slot also, of the first 5,000 queries, as a share of what the best schedule serves that is known: for one model an
//! optimum. Only where no policies are named, or `bounds` after them.
//!
//! `cargo run --release -p weir-sim --example which_policy_serves_most [-- SECONDS [SEED [ROW|all [POLICY… [bounds]]]]]`

use std::time::Duration;

use weir_core::profile::Profile;
use weir_core::scheduler::Policy;
use weir_core::units::ServiceTime;
use weir_core::workload::Arrivals;
use weir_sim::clairvoyant::{bound, found, one_model};
use weir_sim::device::Service;
use weir_sim::pool::{Case, FLOOR, Load, highest, peak, queries, replay, run};

/// Queries for which a bound is computed: it takes seconds.
const MOST: usize = 10_000;

fn line(alpha: f64, beta: f64) -> Profile {
    let at = |b: f64| ServiceTime::from_nanos(((alpha + beta * b) * 1e6) as u64);
    Profile::new(&[(1, at(1.0)), (64, at(64.0))])
}

fn load(profile: Profile, slo_ms: u64, share: f64) -> Load {
    Load {
        believed: profile.clone(),
        service: Service::exact(profile),
        max_batch: 64,
        slo: Duration::from_millis(slo_ms),
        share,
    }
}

fn even(slots: u32, models: usize, profile: Profile, slos: &[u64], arrivals: &str) -> Case {
    let models = (0..models).map(|i| load(profile.clone(), slos[i % slos.len()], 1.0 / models as f64)).collect();
    Case { slots, models, arrivals: Arrivals::parse(arrivals).expect("arrivals") }
}

/// Latency by batch size of the demo's models in microseconds at 1, 2, 4, 8, 16, 32, 64 rows (`models.json` of their makers).
const DEMO: [[u64; 7]; 3] =
    [[10, 11, 12, 18, 25, 43, 76], [30, 48, 84, 161, 320, 663, 1420], [308, 511, 918, 1784, 3424, 6834, 13720]];

fn demo(i: usize) -> Profile {
    let sizes = [1, 2, 4, 8, 16, 32, 64];
    let points: Vec<_> = sizes.into_iter().zip(DEMO[i].map(ServiceTime::from_micros)).collect();
    Profile::new(&points)
}

fn cases() -> Vec<(&'static str, Case)> {
    let mut noisy = even(1, 8, line(4.0, 0.5), &[100], "poisson");
    noisy.models.iter_mut().for_each(|model| model.service.noise = 0.1);
    let mut wrong = even(1, 8, line(4.0, 0.5), &[100], "poisson");
    wrong.models[0].service.profile = line(8.0, 1.0);
    let mut hasty = even(1, 9, line(4.0, 0.5), &[100], "poisson");
    for (i, model) in hasty.models.iter_mut().enumerate() {
        (model.slo, model.share) = if i == 8 { (Duration::from_millis(6), 0.004) } else { (model.slo, 0.1245) };
    }
    let mixed_demo = Case {
        slots: 1,
        models: (0..3).map(|i| load(demo(i), [10, 20, 50][i], [0.6, 0.3, 0.1][i])).collect(),
        arrivals: Arrivals::Poisson,
    };
    vec![
        ("1 dev, 1 model l=5+b, SLO 50 ms", even(1, 1, line(5.0, 1.0), &[50], "poisson")),
        ("1 dev, 8 models l=4+.5b, SLO 100", even(1, 8, line(4.0, 0.5), &[100], "poisson")),
        ("same, gamma CV²=4", even(1, 8, line(4.0, 0.5), &[100], "gamma:cv=2")),
        ("same, gamma CV²=16", even(1, 8, line(4.0, 0.5), &[100], "gamma:cv=4")),
        ("1 dev, SLOs 30/50/100/200 mixed", even(1, 4, line(4.0, 0.5), &[30, 50, 100, 200], "poisson")),
        ("1 dev, 8 models, SLOs 30/50/100/200", even(1, 8, line(4.0, 0.5), &[30, 50, 100, 200], "poisson")),
        ("same, l=2+.5b, gamma CV²=4", even(1, 8, line(2.0, 0.5), &[30, 50, 100, 200], "gamma:cv=2")),
        ("2 dev, 6 models, SLOs 20/200", even(2, 6, line(4.0, 0.5), &[20, 200], "poisson")),
        ("4 dev, 8 models, SLO 50", even(4, 8, line(5.0, 1.0), &[50], "poisson")),
        ("16 dev, 16 models", even(16, 16, line(5.0, 1.0), &[50], "poisson")),
        ("4 dev, 64 models l=2+.5b, SLO 100", even(4, 64, line(2.0, 0.5), &[100], "poisson")),
        ("the demo's models, SLO 10/20/50", mixed_demo),
        ("8 models, ±10 % noise", noisy),
        ("8 models, one takes twice its profile", wrong),
        ("8 models, SLO 100, 0.4 % have 6 ms", hasty),
        ("1 dev, 1 model l=5+b, gamma CV²=4", even(1, 1, line(5.0, 1.0), &[50], "gamma:cv=2")),
        ("1 dev, 1 model l=5+b, gamma CV²=16", even(1, 1, line(5.0, 1.0), &[50], "gamma:cv=4")),
    ]
}

fn main() {
    let mut args = std::env::args().skip(1);
    let seconds = args.next().map_or(30, |text| text.parse().expect("seconds"));
    let seed = args.next().map_or(1, |text| text.parse().expect("a seed"));
    let only: Option<usize> = args.next().and_then(|text| text.parse().ok());
    let mut named: Vec<String> = args.collect();
    let bounds = named.is_empty() || named.pop_if(|last| last == "bounds").is_some();
    let policies: Vec<Policy> = if named.is_empty() {
        Policy::ALL.to_vec()
    } else {
        named.iter().map(|name| Policy::parse(name).expect("a policy")).collect()
    };
    let length = Duration::from_secs(seconds);
    print!("{:40}", "case (queries/s, goodput at twice that)");
    for policy in &policies {
        print!(" {:>13}", policy.to_string().split(':').next().unwrap_or_default());
    }
    println!("{}", if bounds { "  bound; share of it at 1, 1¼, 1½, 2 times (of a schedule)" } else { "" });
    for (i, (name, case)) in cases().into_iter().enumerate() {
        if only.is_some_and(|only| only != i) {
            continue;
        }
        print!("{name:40}");
        let mut first = None;
        for policy in policies.iter().copied() {
            let rate = peak(&case, policy, 0.99, length, seed);
            first.get_or_insert(rate);
            let twice =
                run(&case, policy, 2.0 * rate, length, seed).total().in_time as f64 / length.as_secs_f64() / rate;
            print!(" {rate:>8.0} {twice:.2}");
        }
        let rate = first.unwrap_or(FLOOR);
        let short = length.min(Duration::from_secs(10));
        println!("{}", if bounds { beside(&case, policies[0], rate, short, seed) } else { String::new() });
    }
}

/// What clairvoyance says of `policy`, which is on time up to `rate`.
fn beside(case: &Case, policy: Policy, rate: f64, length: Duration, seed: u64) -> String {
    if case.models.iter().any(|model| model.service.noise > 0.0) {
        return "  none: service times are random".into();
    }
    let some = |rate: f64| {
        let mut queries = queries(case, rate, length, seed);
        queries.truncate(MOST);
        queries
    };
    let possible = highest(|rate| {
        let queries = some(rate);
        bound(case, &queries) >= 0.99 * queries.len() as f64
    });
    let mut text = format!(" {possible:>6.0}");
    for factor in [1.0, 1.25, 1.5, 2.0] {
        let queries = some(rate * factor);
        let in_time = replay(case, policy, &queries, seed).total().in_time as f64;
        text += &format!(" {:5.1} %", 100.0 * in_time / bound(case, &queries));
        if case.slots == 1 {
            let few = &queries[..queries.len().min(5000)];
            let in_time = replay(case, policy, few, seed).total().in_time as usize;
            let one = case.models.len() == 1;
            // The search is for overload: where all are in time, it may find less than the policy does.
            let known = if one { one_model(case, few, in_time) } else { found(case, few).max(in_time) };
            text += &format!(" ({:.1} %)", 100.0 * in_time as f64 / known as f64);
        }
    }
    text
}
