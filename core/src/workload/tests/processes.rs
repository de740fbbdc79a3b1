//! Each process against its theory, with fixed seeds and tolerances that follow from the size of the sample.

use std::time::Duration;

use crate::prng::Prng;
use crate::units::Instant;
use crate::workload::pareto::{period, rest_of_period};
use crate::workload::*;

fn process(text: &str, rate: Option<f64>) -> Process {
    let rate = rate.map(|rate| Rate::per_second(rate).unwrap());
    Arrivals::parse(text).unwrap().process(rate, None).unwrap()
}

/// The instants of a run of so many seconds.
fn run(process: &Process, seconds: u64, seed: u64) -> Vec<Instant> {
    let end = Instant::ZERO + Duration::from_secs(seconds);
    process.instants(Prng::new(seed)).take_while(|at| *at < end).collect()
}

#[track_caller]
fn near(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance * want.abs(), "{what}: {got} should be {want} within {tolerance:.4} of it");
}

fn mean_and_variance(numbers: &[f64]) -> (f64, f64) {
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    (mean, numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / numbers.len() as f64)
}

/// Four standard errors of a variance from n independent samples: √((2 + excess kurtosis) / n).
fn of_variance(samples: usize, kurtosis: f64) -> f64 {
    4.0 * ((2.0 + kurtosis) / samples as f64).sqrt()
}

/// Four standard errors of a mean count: its variance is dispersion times the mean.
fn of_count(count: f64, dispersion: f64) -> f64 {
    4.0 * (dispersion / count).sqrt()
}

#[test]
fn constant_gaps_are_equal_to_the_nanosecond_and_do_not_drift() {
    let instants: Vec<u64> =
        process("constant", Some(3.0)).instants(Prng::new(1)).take(3_000_000).map(Instant::as_nanos).collect();
    assert_eq!(instants[0], 333_333_333);
    assert_eq!(instants[2_999_999], 1_000_000 * 1_000_000_000);
    assert!(instants.windows(2).all(|pair| (333_333_333..=333_333_334).contains(&(pair[1] - pair[0]))));
}

/// For a stationary renewal process, Var N(t) = CV² λt + (1 + 3 CV⁴ − 2 γ CV³) / 6 in the limit (Cox, Renewal Theory, 1962,
/// 4.5 and 5.4), with γ the skewness of a gap. Of a gamma distribution it is 2 CV, which leaves (1 − CV⁴) / 6.
#[test]
fn renewal_processes_have_their_rate_variation_and_dispersion() {
    const RATE: f64 = 1000.0;
    for (text, cv) in [("poisson", 1.0f64), ("gamma:cv=4", 4.0), ("gamma:cv=2", 2.0), ("gamma:cv=0.5", 0.5)] {
        let instants = run(&process(text, Some(RATE)), 400, 3);
        let count = RATE * 400.0;
        near(instants.len() as f64, count, of_count(count, cv * cv), text);
        let statistics = Statistics::of(&instants);
        // A gap has excess kurtosis 6 CV², also for the exponential; a CV errs by half of what its square does.
        near(statistics.gap_cv.unwrap(), cv, of_variance(instants.len(), 6.0 * cv * cv) / 2.0, text);
        // Where the terms left out are below a hundredth, and windows are many.
        for window in
            statistics.windows.iter().filter(|window| window.width.as_millis() >= 100 && window.counted >= 100)
        {
            let mean = RATE * window.width.as_secs_f64();
            let theory = cv * cv + (1.0 - cv.powi(4)) / (6.0 * mean);
            // Counts are nearly normal there: excess kurtosis of about (3 CV⁴ + …)/mean stays below 1.
            near(
                window.dispersion.unwrap(),
                theory,
                of_variance(window.counted, 1.0),
                &format!("{text} {:?}", window.width),
            );
        }
    }
}

/// A renewal process that began with a gap like the others would bring (CV² − 1) / 2 = 7.5 too many; an MMPP that began slow
/// only half of what it should in so short a run.
#[test]
fn runs_have_their_mean_count_from_the_start() {
    for (text, seen) in [("gamma:cv=4", 7.5), ("mmpp:low=100,high=900,mean_low=2s,mean_high=300ms", 20.0)] {
        let process = process(text, Some(100.0));
        let counts: Vec<f64> = (0..4000).map(|seed| run(&process, 1, seed).len() as f64).collect();
        let (mean, variance) = mean_and_variance(&counts);
        let error = (variance / counts.len() as f64).sqrt();
        assert!(8.0 * error < seen, "{text}: {error} would not see {seen}");
        assert!((mean - 100.0).abs() < 4.0 * error, "{text}: {mean} ± {error} should be 100");
    }
}

#[test]
fn mmpp_has_the_dispersion_of_its_closed_form_at_every_width() {
    for (text, seconds) in [
        ("mmpp:low=20,high=180,mean_low=2s,mean_high=500ms", 8000u64),
        ("mmpp:low=0,high=400,mean_low=90ms,mean_high=30ms", 2000),
    ] {
        let Arrivals::Mmpp(mmpp) = Arrivals::parse(text).unwrap() else { unreachable!() };
        let instants = run(&process(text, None), seconds, 11);
        let limit = mmpp.dispersion(Duration::from_secs(1_000_000));
        let count = mmpp.rate() * seconds as f64;
        near(instants.len() as f64, count, of_count(count, limit), text);
        for window in Statistics::of(&instants).windows {
            // Neighbouring windows that are narrower than the modulation are not independent: as many samples count as
            // there are relaxation times (a squared correlation e^(−2w/τ) adds up to 1 + τ/w), and counts of a
            // two-valued rate have an excess kurtosis below 3.
            let relaxation = 1.0 / (1.0 / mmpp.mean_low.as_secs_f64() + 1.0 / mmpp.mean_high.as_secs_f64());
            let samples = window.counted as f64 / (1.0 + relaxation / window.width.as_secs_f64());
            let theory = mmpp.dispersion(window.width);
            near(
                window.dispersion.unwrap(),
                theory,
                of_variance(samples as usize, 3.0),
                &format!("{text} {:?}", window.width),
            );
        }
    }
}

/// The closed form by its own definition: 1 + (2/λw) ∫ (w − u) Cov(u) du, with Cov(u) = p q d² e^(−u/τ), by trapezes.
#[test]
fn dispersion_of_an_mmpp_is_the_integral_of_its_covariance() {
    let mmpp =
        Mmpp { low: 100.0, high: 900.0, mean_low: Duration::from_secs(2), mean_high: Duration::from_millis(300) };
    let (p, q, relaxation) = (0.3 / 2.3, 2.0 / 2.3, 0.6 / 2.3);
    let rate = 100.0 * q + 900.0 * p;
    near(mmpp.rate(), rate, 1e-12, "rate");
    for width in [1e-5, 0.01, 0.3, 7.0] {
        let steps = 20_000;
        let step = width / f64::from(steps);
        let term = |i: i32| (width - f64::from(i) * step) * (-f64::from(i) * step / relaxation).exp();
        let sum = (1..steps).map(term).sum::<f64>() + term(0) / 2.0;
        let integral = sum * step * p * q * 800.0f64.powi(2);
        let theory = 1.0 + 2.0 * integral / (rate * width);
        near(mmpp.dispersion(Duration::from_secs_f64(width)), theory, 1e-5, "dispersion");
    }
}

/// Distribution functions against the fraction of draws below: four standard errors of a fraction.
#[test]
fn pareto_periods_and_their_rests_have_their_distributions() {
    const DRAWS: usize = 100_000;
    let (alpha, mean) = (1.5, 3.0);
    let shortest = 1.0;
    let longer = |x: f64| (shortest / x).powf(alpha);
    let more_left = |x: f64| if x < shortest { 1.0 - x / mean } else { (x / shortest).powf(1.0 - alpha) / alpha };
    let mut prng = Prng::new(9);
    let periods: Vec<f64> = (0..DRAWS).map(|_| period(alpha, mean, &mut prng)).collect();
    let rests: Vec<f64> = (0..DRAWS).map(|_| rest_of_period(alpha, mean, &mut prng)).collect();
    assert!(periods.iter().all(|x| *x >= shortest * (1.0 - 1e-12)));
    for x in [0.2, 0.9, 1.0, 1.5, 4.0, 30.0, 1000.0] {
        let fraction = |draws: &[f64]| draws.iter().filter(|draw| **draw > x).count() as f64 / DRAWS as f64;
        let room = |p: f64| 4.0 * (p * (1.0 - p) / DRAWS as f64).sqrt() + 1e-9;
        let p = longer(x.max(shortest));
        assert!((fraction(&periods) - p).abs() <= room(p), "longer than {x}");
        let p = more_left(x);
        assert!((fraction(&rests) - p).abs() <= room(p), "more than {x} left");
    }
}

/// In the limit of wide windows the time W that one source is on has Var W(t) = s² t^(2H) (Taqqu, Willinger and Sherman,
/// Proof of a fundamental result in self-similar traffic modeling, 1997), with equal exponents for both periods
/// s² = 2 (off² a_on + on² a_off) / ((on + off)³ Γ(4 − α)), a = m^α Γ(2 − α) / (α − 1), m the shortest period.
#[test]
fn pareto_counts_grow_as_self_similarity_says() {
    const RUNS: usize = 3000;
    // One source: the limit theorem is about one, and this is where a mistake in it would be largest.
    let text = "pareto:alpha=1.5,sources=1,mean_on=20ms,mean_off=40ms";
    let (alpha, on, off) = (1.5f64, 0.02f64, 0.04f64);
    // Γ(1/2) = √π and Γ(5/2) = 3√π/4.
    let gamma_ratio = 1.0 / 0.75;
    let a = |mean: f64| (mean * (alpha - 1.0) / alpha).powf(alpha) / (alpha - 1.0);
    let level = 2.0 * (off * off * a(on) + on * on * a(off)) * gamma_ratio / (on + off).powi(3);
    let pareto = process(text, Some(40.0));
    let widths = [4u64, 16, 64];
    let mut counts = vec![Vec::new(); widths.len()];
    for seed in 0..RUNS as u64 {
        let instants = run(&pareto, 64, seed);
        for (width, counts) in widths.iter().zip(&mut counts) {
            let end = Instant::ZERO + Duration::from_secs(*width);
            counts.push(instants.partition_point(|at| *at < end) as f64);
        }
    }
    let mut of_rate = Vec::new();
    for (width, counts) in widths.iter().zip(&counts) {
        let (mean, variance) = mean_and_variance(counts);
        let expected = 40.0 * *width as f64;
        let error = (variance / RUNS as f64).sqrt();
        assert!((mean - expected).abs() < 4.0 * error, "{mean} ± {error} should be {expected}");
        // A source that is on sends (on + off) / on times the rate.
        let theory = expected + (40.0 * (on + off) / on).powi(2) * level * (*width as f64).powf(3.0 - alpha);
        near(variance, theory, of_variance(RUNS, 1.0), &format!("variance in {width} s"));
        of_rate.push(variance - expected);
    }
    // 2H; a process with a short memory would have 1. Two variances, each with its error, over a factor of 16.
    let slope = (of_rate[2] / of_rate[0]).ln() / 16f64.ln();
    assert!((slope - (3.0 - alpha)).abs() < 2f64.sqrt() * of_variance(RUNS, 1.0) / 16f64.ln(), "2H is {slope}");
}

/// Sources that do not know each other: eight of them at eight times the rate have eight times the mean and the variance.
#[test]
fn pareto_sources_share_the_rate_and_add_their_variances() {
    const RUNS: usize = 3000;
    let moments = |sources: u32| {
        let text = format!("pareto:alpha=1.5,sources={sources},mean_on=20ms,mean_off=40ms");
        let pareto = process(&text, Some(40.0 * f64::from(sources)));
        let counts: Vec<f64> = (0..RUNS as u64).map(|seed| run(&pareto, 2, seed).len() as f64).collect();
        mean_and_variance(&counts)
    };
    let ((mean, variance), (mean_of_8, variance_of_8)) = (moments(1), moments(8));
    near(mean_of_8, 640.0, 4.0 * (variance_of_8 / RUNS as f64).sqrt() / 640.0, "mean of eight");
    near(mean, 80.0, 4.0 * (variance / RUNS as f64).sqrt() / 80.0, "mean of one");
    // Two variances with an error each.
    near(variance_of_8, 8.0 * variance, 2f64.sqrt() * of_variance(RUNS, 1.0), "variance of eight");
}

#[test]
fn a_spike_changes_the_rate_while_it_lasts() {
    let instants = run(&process("spike:base=200,peak=1200,at=5s,for=2s", None), 1005, 4);
    let count = |from: u64, to: u64| {
        let at = |second| instants.partition_point(|at| *at < Instant::ZERO + Duration::from_secs(second)) as f64;
        at(to) - at(from)
    };
    for (from, to, rate) in
        [(0, 5, 200.0), (5, 7, 1200.0), (5, 6, 1200.0), (6, 7, 1200.0), (7, 1005, 200.0), (7, 8, 200.0)]
    {
        let expected = rate * (to - from) as f64;
        near(count(from, to), expected, of_count(expected, 1.0), &format!("from {from} to {to} s"));
    }
    let many: f64 =
        (0..500).map(|seed| run(&process("spike:base=2,peak=50,at=0s,for=1s", None), 1, seed).len() as f64).sum();
    near(many, 25_000.0, of_count(25_000.0, 1.0), "from the start");
}

/// A tenth of a period from a to b brings the integral of the rate, a Poisson number.
#[test]
fn diurnal_counts_follow_the_swing() {
    const PERIODS: u64 = 50;
    for (text, low, high) in
        [("diurnal:min=100,max=900,period=10s", 100.0, 900.0), ("diurnal:min=0,max=500,period=10s", 0.0, 500.0)]
    {
        let instants = run(&process(text, None), 10 * PERIODS, 8);
        let mut phases = [0.0; 10];
        for at in &instants {
            phases[(at.as_nanos() / 1_000_000_000 % 10) as usize] += 1.0;
        }
        for (second, count) in phases.iter().enumerate() {
            let turn = std::f64::consts::TAU / 10.0;
            let swung = ((second as f64 + 1.0) * turn).sin() - (second as f64 * turn).sin();
            let expected = ((low + high) / 2.0 - (high - low) / 2.0 * swung / turn) * PERIODS as f64;
            near(*count, expected, of_count(expected, 1.0), &format!("{text} second {second}"));
        }
    }
}

/// Whatever rate a process has of its own, one that is given is its mean, and its shape stays.
#[test]
fn a_rate_that_is_given_scales_the_intensity() {
    for (text, own) in [
        ("mmpp:low=20,high=180,mean_low=300ms,mean_high=100ms", 60.0),
        ("diurnal:min=100,max=300,period=1s", 200.0),
        ("spike:base=200,peak=1200,at=0s,for=1s", 200.0),
    ] {
        assert_eq!(process(text, None).rate().unwrap().as_per_second(), own, "{text}");
        let scaled = process(text, Some(1000.0));
        near(scaled.rate().unwrap().as_per_second(), 1000.0, 1e-12, text);
        let count = run(&scaled, 401, 2).len() as f64 - if text.starts_with("spike") { 5000.0 } else { 0.0 };
        // In long windows the MMPP has excess dispersion 2 p q d² τ / rate = 12, or 200 at 1000/60 times its rate.
        let dispersion = if text.starts_with("mmpp") { 201.0 } else { 1.0 };
        near(count, 401_000.0, of_count(401_000.0, dispersion), text);
    }
    for text in [
        "mmpp:low=0,high=900,mean_low=9s,mean_high=1s",
        "spike:base=1,peak=3,at=0s,for=1s",
        "diurnal:min=0,max=3,period=1s",
    ] {
        let refused = Arrivals::parse(text).unwrap().process(Rate::per_second(1e9).ok(), None).unwrap_err();
        assert!(matches!(refused, BadProcess::TooFast { .. }), "{refused}");
    }
}

const EACH: [&str; 7] = [
    "constant",
    "poisson",
    "gamma:cv=4",
    "mmpp:low=100,high=900,mean_low=2s,mean_high=300ms",
    "pareto:alpha=1.5",
    "spike:base=200,peak=1200,at=5s,for=2s",
    "diurnal:min=50,max=500,period=60s",
];

#[test]
fn a_seed_decides_every_instant_and_they_come_in_order() {
    for text in EACH {
        let process = process(text, Some(1000.0));
        let draw = |seed| process.instants(Prng::new(seed)).take(10_000).collect::<Vec<_>>();
        assert_eq!(draw(1), draw(1), "{text}");
        assert_eq!(draw(1) == draw(2), text == "constant", "{text}");
        assert!(draw(1).is_sorted(), "{text}");
    }
}

/// Instants themselves: what a platform with another arithmetic would change.
#[test]
fn a_seed_means_the_same_instants_on_every_machine() {
    let marks: Vec<u64> = EACH
        .iter()
        .map(|text| {
            let instants = process(text, Some(1000.0)).instants(Prng::new(7));
            instants.skip(9_999).map(Instant::as_nanos).next().unwrap()
        })
        .collect();
    assert_eq!(marks, [10000000000, 9962508501, 9980108037, 12321786106, 12096182889, 5827084750, 17407968104]);
}

/// Absurd but allowed parameters end, at the end of the time axis at the latest.
#[test]
fn the_slowest_processes_end_with_the_time_axis() {
    for text in EACH.iter().filter(|text| !text.starts_with("pareto") && !text.starts_with("mmpp")) {
        let slow = process(text, Some(1e-18));
        assert!(slow.instants(Prng::new(1)).count() < 10, "{text}");
    }
}

#[test]
fn sources_of_a_superposition_do_not_disturb_each_other() {
    let of = |texts: &[(&str, u64)], n: usize| -> Vec<(Instant, usize)> {
        let sources = texts.iter().map(|(text, part)| (process(text, Some(500.0)), Prng::part(7, *part))).collect();
        Superposition::new(sources).take(n).collect()
    };
    let all = of(&[("poisson", 0), ("gamma:cv=4", 1), ("constant", 2), ("poisson", 3)], 40_000);
    assert!(all.is_sorted());
    for (source, text) in ["poisson", "gamma:cv=4", "constant", "poisson"].into_iter().enumerate() {
        let alone = process(text, Some(500.0)).instants(Prng::part(7, source as u64));
        let among: Vec<Instant> = all.iter().filter(|(_, of)| *of == source).map(|(at, _)| *at).collect();
        assert!(among.len() > 8000 && alone.take(among.len()).eq(among.iter().copied()), "{text}");
    }
    let firsts = |part| process("poisson", Some(500.0)).instants(Prng::part(7, part)).next();
    assert_ne!(firsts(0), firsts(3));
    // Equal instants: the lower index first.
    let twins = of(&[("constant", 0), ("constant", 1)], 4);
    assert_eq!(twins.iter().map(|(_, source)| *source).collect::<Vec<_>>(), [0, 1, 0, 1]);
    assert_eq!(Superposition::new(Vec::new()).next(), None);
}

/// Streams that do not know each other add their variances (Cox and Smith, On the superposition of renewal processes, 1954).
#[test]
fn a_superposition_has_the_sum_of_variances() {
    let sources = vec![
        (process("gamma:cv=3", Some(400.0)), Prng::part(1, 0)),
        (process("poisson", Some(600.0)), Prng::part(1, 1)),
    ];
    let end = Instant::ZERO + Duration::from_secs(600);
    let instants: Vec<Instant> = Superposition::new(sources).map(|(at, _)| at).take_while(|at| *at < end).collect();
    let windows = Statistics::of(&instants).windows;
    let second = windows.iter().find(|window| window.width == Duration::from_secs(1)).unwrap();
    near(second.dispersion.unwrap(), 0.4 * 9.0 + 0.6, of_variance(second.counted, 1.0), "one second");
}
