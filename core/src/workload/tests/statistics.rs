//! The instrument: by hand where a hand can count, and fits where the answer is known.

use std::time::Duration;

use crate::prng::Prng;
use crate::units::Instant;
use crate::workload::*;

fn at_millis(millis: &[u64]) -> Vec<Instant> {
    millis.iter().map(|millis| Instant::from_millis(*millis)).collect()
}

fn drawn(text: &str, rate: Option<f64>, seconds: u64, seed: u64) -> Vec<Instant> {
    let rate = rate.map(|rate| Rate::per_second(rate).unwrap());
    let process = Arrivals::parse(text).unwrap().process(rate, None).unwrap();
    let end = Instant::ZERO + Duration::from_secs(seconds);
    process.instants(Prng::new(seed)).take_while(|at| *at < end).collect()
}

#[test]
fn figures_are_what_a_hand_counts() {
    // From 1000 on, in windows of 10 ms: 3 1 0 0 1 0 0 2 0 0, and one at the end of the last.
    let statistics = Statistics::of(&at_millis(&[1000, 1004, 1009, 1012, 1040, 1070, 1079, 1100]));
    assert_eq!((statistics.count, statistics.length), (8, Duration::from_millis(100)));
    assert_eq!(statistics.rate, Some(70.0));
    // Gaps 4 5 3 28 30 9 21: mean 100/7, squares 16 + 25 + 9 + 784 + 900 + 81 + 441 = 2256.
    let mean = 100.0 / 7.0;
    let cv = (2256.0f64 / 7.0 - mean * mean).sqrt() / mean;
    assert!((statistics.gap_cv.unwrap() - cv).abs() < 1e-12);
    let [ten, thirty, hundred] = statistics.windows[..] else { panic!("{:?}", statistics.windows) };
    // Mean 0.7, squares 9 + 1 + 1 + 4 = 15: variance 1.5 − 0.49.
    assert_eq!((ten.width, ten.counted, ten.largest), (Duration::from_millis(10), 10, 3));
    assert!((ten.dispersion.unwrap() - 1.01 / 0.7).abs() < 1e-12);
    // 1000 to 1012 in any 30 ms; 1070, 1079 and nothing before 1100, which is just outside.
    assert_eq!((thirty.counted, thirty.dispersion, thirty.largest), (3, None, 4));
    assert_eq!((hundred.counted, hundred.largest), (1, 7));
}

#[test]
fn the_envelope_slides() {
    // Side by side no window of 10 ms has more than two; 1009 to 1018 has three.
    let statistics = Statistics::of(&at_millis(&[1000, 1009, 1011, 1018, 1030]));
    assert_eq!(statistics.windows[0].largest, 3);
    // A window is open at its end: 10 ms apart is two windows.
    assert_eq!(Statistics::of(&at_millis(&[0, 10, 20])).windows[0].largest, 1);
}

#[test]
fn little_has_few_figures() {
    let none = Statistics::of(&[]);
    assert_eq!((none.count, none.rate, none.gap_cv, none.windows.len()), (0, None, None, 0));
    for same in [at_millis(&[5]), at_millis(&[5, 5, 5])] {
        let statistics = Statistics::of(&same);
        assert_eq!((statistics.count, statistics.length), (same.len(), Duration::ZERO));
        assert_eq!((statistics.rate, statistics.gap_cv, statistics.windows.len()), (None, None, 0));
    }
}

#[test]
#[should_panic(expected = "instants come in order")]
fn unsorted_instants_are_a_mistake_of_the_caller() {
    Statistics::of(&at_millis(&[2, 1]));
}

#[test]
fn a_minute_needs_ten_for_its_dispersion_and_one_for_its_envelope() {
    let statistics = Statistics::of(&drawn("poisson", Some(50.0), 601, 1));
    let widths: Vec<u128> = statistics.windows.iter().map(|window| window.width.as_millis()).collect();
    assert_eq!(widths, [10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 60_000]);
    assert!(statistics.windows.iter().all(|window| window.dispersion.is_some()));
    let shorter = Statistics::of(&drawn("poisson", Some(50.0), 599, 1)).windows;
    assert!(shorter[8].dispersion.is_none() && shorter[8].largest > 2500 && shorter[7].dispersion.is_some());
}

/// Four standard errors: of a mean of n gaps CV/√n, of a CV √((2 + 6 CV²)/n)/2 (a gamma has excess kurtosis 6 CV²).
#[test]
fn a_gamma_fit_finds_what_was_drawn() {
    for (text, cv) in [("gamma:cv=3", 3.0f64), ("gamma:cv=0.5", 0.5), ("poisson", 1.0)] {
        let instants = drawn(text, Some(500.0), 400, 2);
        let root = (instants.len() as f64).sqrt();
        let fit = GammaFit::of(&instants).unwrap();
        assert!((fit.rate / 500.0 - 1.0).abs() < 4.0 * cv / root, "{text} {fit:?}");
        assert!((fit.cv / cv - 1.0).abs() < 2.0 * (2.0 + 6.0 * cv * cv).sqrt() / root, "{text} {fit:?}");
        assert_eq!(fit.arrivals(), Arrivals::Gamma { cv: fit.cv });
    }
    assert_eq!(GammaFit::of(&drawn("constant", Some(500.0), 1, 2)).unwrap().arrivals(), Arrivals::Constant);
}

/// Rates within 2 % of the high one, which counts of some 100,000 a state determine well; times within 10 %. There are 4000
/// cycles and more: the mean of so many exponential times errs by 1.6 %, moments do about twice as badly, steps are 5 %.
#[test]
fn an_mmpp_fit_finds_what_was_drawn() {
    for (text, seconds) in [
        ("mmpp:low=50,high=400,mean_low=2s,mean_high=500ms", 10_000),
        ("mmpp:low=0,high=500,mean_low=300ms,mean_high=100ms", 2_000),
        ("mmpp:low=100,high=300,mean_low=200ms,mean_high=800ms", 4_000),
    ] {
        let Arrivals::Mmpp(truth) = Arrivals::parse(text).unwrap() else { unreachable!() };
        let instants = drawn(text, None, seconds, 1);
        let fit = Mmpp::fit(&instants).unwrap();
        assert!((fit.rate() / GammaFit::of(&instants).unwrap().rate - 1.0).abs() < 1e-6, "{text}: {fit:?}");
        let rates = [(fit.low, truth.low), (fit.high, truth.high)];
        let times = [(fit.mean_low, truth.mean_low), (fit.mean_high, truth.mean_high)];
        assert!(rates.iter().all(|(got, want)| (got - want).abs() < 0.02 * truth.high), "{text}: {fit:?}");
        let ratio = |(got, want): &(Duration, Duration)| got.as_secs_f64() / want.as_secs_f64();
        assert!(times.iter().map(ratio).all(|ratio| (ratio - 1.0).abs() < 0.1), "{text}: {fit:?}");
        assert!(Arrivals::Mmpp(fit).process(None, None).is_ok());
    }
}

/// What a fit is for: its dispersion is that of what it was fitted to, though that is no MMPP. Within a fifth, as the
/// curves have another shape: that of a gamma process rises more slowly to its limit.
#[test]
fn an_mmpp_fit_is_as_dispersed_as_what_it_was_fitted_to() {
    let instants = drawn("gamma:cv=4", Some(300.0), 2_000, 3);
    let fit = Mmpp::fit(&instants).unwrap();
    let seen = |window: &Window| window.counted >= 200 && window.width.as_millis() >= 30;
    let windows: Vec<Window> = Statistics::of(&instants).windows.into_iter().filter(seen).collect();
    assert!(windows.len() >= 5);
    for window in windows {
        let ratio = fit.dispersion(window.width) / window.dispersion.unwrap();
        assert!((ratio - 1.0).abs() < 0.2, "{:?}: {ratio}", window.width);
    }
}

/// Bursts of two lengths, a thousand narrow windows for each wide one: a fit has to heed both.
#[test]
fn an_mmpp_fit_heeds_wide_windows_too() {
    let end = Instant::ZERO + Duration::from_secs(6_000);
    let texts =
        ["mmpp:low=20,high=320,mean_low=200ms,mean_high=50ms", "mmpp:low=40,high=160,mean_low=20s,mean_high=20s"];
    let process = |text: &str| Arrivals::parse(text).unwrap().process(None, None).unwrap();
    let sources = (0..).zip(texts).map(|(i, text)| (process(text), Prng::part(3, i))).collect();
    let instants: Vec<Instant> = Superposition::new(sources).map(|(at, _)| at).take_while(|at| *at < end).collect();
    let fit = Mmpp::fit(&instants).unwrap();
    for window in Statistics::of(&instants).windows {
        let ratio = fit.dispersion(window.width) / window.dispersion.unwrap();
        // One relaxation time cannot be two; matched to the narrow windows alone it is 19 times too low at a minute.
        assert!((0.4..2.5).contains(&ratio), "{:?}: {ratio}", window.width);
    }
}

/// Batches with silence between them have less skew than any MMPP as dispersed: the low rate would be negative. It is 0, and
/// the mean is matched all the same.
#[test]
fn an_mmpp_fit_of_batches_is_silent_between_them_and_keeps_the_rate() {
    let mut instants = Vec::new();
    for at in drawn("gamma:cv=0.8", Some(2.0), 2_000, 6) {
        instants.extend([at; 10]);
    }
    let fit = Mmpp::fit(&instants).unwrap();
    assert_eq!(fit.low, 0.0, "{fit:?}");
    let ratio = fit.rate() / GammaFit::of(&instants).unwrap().rate;
    assert!((ratio - 1.0).abs() < 1e-6, "{ratio}");
}

#[test]
fn what_cannot_be_fitted_says_why() {
    let few = at_millis(&[1, 2, 3]);
    assert_eq!(GammaFit::of(&few), Err(NoFit::TooFew { found: 3, needed: 100 }));
    assert_eq!(Mmpp::fit(&[]), Err(NoFit::TooFew { found: 0, needed: 100 }));
    let same = vec![Instant::from_millis(7); 1000];
    assert_eq!((GammaFit::of(&same), Mmpp::fit(&same)), (Err(NoFit::AtOnce), Err(NoFit::AtOnce)));
    assert_eq!(Mmpp::fit(&drawn("constant", Some(200.0), 100, 1)), Err(NoFit::NotBursty));
}

/// One in a hundred may be called bursty: of 400 that is 4 in the mean, and more than 10 in one case of 350. Short and long, so
/// that there are few widths and many.
#[test]
fn a_poisson_process_is_hardly_ever_taken_for_a_bursty_one() {
    for (rate, seconds) in [(5.0, 900), (3.0, 60), (200.0, 20)] {
        let bursty = |seed: &u64| Mmpp::fit(&drawn("poisson", Some(rate), seconds, *seed)).is_ok();
        let alarms = (0..400).filter(bursty).count();
        assert!(alarms <= 10, "{alarms} of 400 at {rate} a second for {seconds} s");
    }
}

/// Slow swings between two rates that a Poisson process does not have: a quarter of an hour at five a second shows them at wide
/// windows only, of which there are a few dozen.
#[test]
fn slow_swings_are_found_though_narrow_windows_look_independent() {
    let text = "mmpp:low=4,high=7,mean_low=40s,mean_high=20s";
    let drawn = |seed| drawn(text, None, 900, seed);
    let narrow = |seed| Statistics::of(&drawn(seed)).windows[2].dispersion.unwrap();
    assert!((0..40).all(|seed| (narrow(seed) - 1.0).abs() < 0.1), "a tenth of a second sees nothing");
    let found = (0..40).filter(|seed| Mmpp::fit(&drawn(*seed)).is_ok()).count();
    assert!(found >= 36, "{found} of 40");
}

/// A fit that is told to be poor is off by as much as is said, and one of a process of its own kind is not.
#[test]
fn a_fit_that_is_far_off_is_told_where() {
    let instants = drawn("mmpp:low=50,high=400,mean_low=2s,mean_high=500ms", None, 10_000, 1);
    let (fit, windows) = (Mmpp::fit(&instants).unwrap(), Statistics::of(&instants).windows);
    assert_eq!(fit.misfit(&windows), None);
    let smoother = Mmpp { mean_low: fit.mean_low / 4, mean_high: fit.mean_high / 4, ..fit };
    let misfit = smoother.misfit(&windows).unwrap();
    let window = windows.iter().find(|window| window.width == misfit.width).unwrap();
    let ratio = window.dispersion.unwrap() / smoother.dispersion(window.width);
    assert!(misfit.too_smooth && (misfit.factor - ratio).abs() < 1e-9 && (3.0..5.0).contains(&ratio), "{misfit:?}");
    let rougher = Mmpp { mean_low: fit.mean_low * 4, mean_high: fit.mean_high * 4, ..fit };
    assert!(!rougher.misfit(&windows).unwrap().too_smooth);
    // Twelve windows say nothing of a factor of two.
    let few = |dispersion| [Window { width: Duration::from_secs(60), counted: 12, dispersion, largest: 1 }];
    assert_eq!(fit.misfit(&few(Some(1.0))), None);
    assert_eq!(fit.misfit(&few(None)), None);
}

proptest::proptest! {
    /// Whatever the instants: no panic, and a fit is a process that can be drawn from and whose text can be read.
    #[test]
    fn any_fit_is_an_allowed_process(
        gaps in proptest::collection::vec((0u64..1000, 0u32..16), 0..400), unit in 0u32..4,
    ) {
        let mut now = 0;
        let mut instants = Vec::new();
        for (gap, magnitude) in gaps {
            // Mostly short, sometimes up to days.
            now += if magnitude < 12 { gap >> (magnitude / 2) } else { gap * 1000u64.pow(unit) * 10u64.pow(magnitude - 12) };
            instants.push(Instant::from_nanos(now));
        }
        Statistics::of(&instants);
        let fits = [GammaFit::of(&instants).map(|fit| fit.arrivals()), Mmpp::fit(&instants).map(Arrivals::Mmpp)];
        for arrivals in fits.into_iter().flatten() {
            proptest::prop_assert_eq!(Arrivals::parse(&arrivals.to_text()), Ok(arrivals));
        }
    }
}

#[test]
fn a_long_silence_costs_nothing() {
    // A hundred days at 10 ms would be 864 million windows.
    let statistics = Statistics::of(&at_millis(&[0, 5, 8_640_000_000]));
    let ten = statistics.windows[0];
    assert_eq!((ten.counted, ten.largest), (864_000_000, 2));
    // One window of two: mean 2/n, mean square 4/n, hence 2 but for what vanishes.
    assert!((ten.dispersion.unwrap() - 2.0).abs() < 1e-8);
}
