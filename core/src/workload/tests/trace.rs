//! Traces: read, refused, cut, scaled, replayed.

use std::time::Duration;

use crate::prng::Prng;
use crate::units::Instant;
use crate::workload::*;

const SMALL: &str = "t_seconds,model,tokens_in,tokens_out\r\n0.0000,conv,374,44\r\n0.3,code,396,109\r\n0.3,conv,879,55\r\n1e1,conv,1,0\r\n\r\n";

fn seconds(seconds: f64) -> Instant {
    Instant::from_nanos((seconds * 1e9).round() as u64)
}

fn replay(spec: &str, rate: Option<f64>, trace: &Trace) -> Result<Process, BadProcess> {
    let rate = rate.map(|rate| Rate::per_second(rate).unwrap());
    Arrivals::parse(&format!("trace:f{spec}")).unwrap().process(rate, Some(trace))
}

fn instants(spec: &str, trace: &Trace, seed: u64) -> Vec<Instant> {
    replay(spec, None, trace).unwrap().instants(Prng::new(seed)).collect()
}

/// A bursty trace of two models: what an MMPP draws in ten minutes, written with four digits as recordings are.
fn bursty() -> Trace {
    let mmpp =
        Arrivals::parse("mmpp:low=20,high=200,mean_low=1s,mean_high=250ms").unwrap().process(None, None).unwrap();
    let mut text = String::from("t_seconds,model\n");
    for (i, at) in mmpp.instants(Prng::new(5)).take_while(|at| *at < seconds(600.0)).enumerate() {
        text += &format!("{:.4},{}\n", at.as_nanos() as f64 / 1e9, ["a", "b"][i % 2]);
    }
    Trace::parse(&text).unwrap()
}

fn counts(instants: &[Instant], width: Duration) -> Vec<u32> {
    let mut counts = Vec::new();
    for at in instants {
        let slot = (at.as_nanos() / width.as_nanos() as u64) as usize;
        counts.resize(counts.len().max(slot + 1), 0);
        counts[slot] += 1;
    }
    counts
}

#[test]
fn a_trace_keeps_every_column() {
    let trace = Trace::parse(SMALL).unwrap();
    assert_eq!(trace.models(), ["conv", "code"]);
    assert_eq!(trace.instants(), [0.0, 0.3, 0.3, 10.0].map(seconds));
    assert_eq!(trace.length(), Duration::from_secs(10));
    let last = Request { at: seconds(10.0), model: 0, tokens: Some(Tokens { input: 1, output: 0 }) };
    assert_eq!(trace.requests()[3], last);
    let code = trace.of_model("code").unwrap();
    assert_eq!((code.instants(), code.models()), (vec![seconds(0.3)], &["code".to_owned()][..]));
    assert_eq!(trace.of_model("other"), None);
    let bare = Trace::parse("\u{feff}t_seconds,model\n0.1,web").unwrap();
    assert_eq!(bare.requests(), [Request { at: seconds(0.1), model: 0, tokens: None }]);
}

/// No double is 1.001, and a billion times the nearest one is below 1,001,000,000.
#[test]
fn times_are_exact_to_the_nanosecond() {
    let times = || (0..100_000u64).chain(39_999_900_000..40_000_000_000);
    let mut text = String::from("t_seconds,model\n");
    for tenths in times() {
        text += &format!("{}.{:04},a\n", tenths / 10_000, tenths % 10_000);
    }
    let exact = times().map(|tenths| Instant::from_nanos(tenths * 100_000));
    assert!(Trace::parse(&text).unwrap().instants().into_iter().eq(exact));
}

#[test]
fn a_text_that_is_no_trace_is_refused_with_its_line() {
    let long = "x".repeat(10_000);
    for (text, said) in [
        ("", "the trace is empty"),
        ("\n", "the trace is empty"),
        ("t_seconds,model\n", "a header and no request"),
        ("t_seconds,model\n\n\n", "a header and no request"),
        ("time,model\n1,a", "line 1: \"time,model\" is not the header"),
        (&long, "line 1: \"xxx"),
        ("t_seconds,model\n0,a\n1", "line 3: 1 columns where the header has 2"),
        ("t_seconds,model\n0,a,1,2", "line 2: 4 columns where the header has 2"),
        ("t_seconds,model\n0,a\n\n-0.5,a", "line 4: \"-0.5\" is no time"),
        ("t_seconds,model\nNaN,a", "line 2: \"NaN\" is no time"),
        ("t_seconds,model\ninf,a", "line 2: \"inf\" is no time"),
        ("t_seconds,model\n1e300,a", "line 2: \"1e300\" is no time; give seconds from the start, from 0 to 4000000"),
        ("t_seconds,model\n,a", "line 2: \"\" is no time"),
        ("t_seconds,model\n2,a\n2,a\n1.5,a", "line 4: 1.5 s comes after 2 s; sort the rows by time"),
        ("t_seconds,model\n2,", "line 2: the model has no name"),
        ("t_seconds,model,tokens_in,tokens_out\n0,a,1,2\n0,a,-1,2", "line 3: \"-1\" is no number of tokens"),
        ("t_seconds,model,tokens_in,tokens_out\n0,a,1,2.5", "line 2: \"2.5\" is no number of tokens"),
    ] {
        let bad = Trace::parse(text).unwrap_err().to_string();
        assert!(bad.contains(said), "{bad:?} should say {said:?}");
        assert!(bad.len() < 200, "{bad}");
    }
}

#[test]
fn a_replay_as_it_is_has_every_instant_and_hence_every_count() {
    let trace = bursty();
    assert!(trace.requests().len() > 30_000);
    for seed in [1, 2] {
        let replayed = instants("", &trace, seed);
        assert_eq!(replayed, trace.instants());
        let width = Duration::from_millis(100);
        assert_eq!(counts(&replayed, width), counts(&trace.instants(), width));
    }
    let process = replay("", None, &trace).unwrap();
    assert_eq!(process.length(), Some(trace.length()));
    let rate = trace.requests().len() as f64 / trace.length().as_secs_f64();
    assert!((process.rate().unwrap().as_per_second() / rate - 1.0).abs() < 1e-12);
}

#[test]
fn a_cut_begins_at_zero_and_ends_before_its_end() {
    let trace = Trace::parse("t_seconds,model\n0.5,a\n1,a\n1.25,a\n2,a\n3,a").unwrap();
    let cut = |spec: &str| instants(spec, &trace, 1);
    assert_eq!(cut(",from=1s,length=1s"), [0.0, 0.25].map(seconds));
    assert_eq!(cut(",from=1s"), [0.0, 0.25, 1.0, 2.0].map(seconds));
    assert_eq!(cut(",length=500ms,from=750ms"), [seconds(0.25)]);
    // Times of a cut are those of the trace, whatever the speed.
    assert_eq!(cut(",from=1s,length=2s,speed=2"), [0.0, 0.125, 0.5].map(seconds));
    assert_eq!(cut(",speed=0.5"), [1.0, 2.0, 2.5, 4.0, 6.0].map(seconds));
    let length = |spec: &str| replay(spec, None, &trace).unwrap().length().unwrap().as_secs_f64();
    assert_eq!([length(",from=1s,length=1s"), length(",from=1s,length=1h"), length(",speed=2")], [1.0, 2.0, 1.5]);
    assert_eq!(replay(",from=1s,length=1s,speed=4", None, &trace).unwrap().rate().unwrap().as_per_second(), 8.0);
    let nothing = replay(",from=2.5s,length=250ms", None, &trace).unwrap_err().to_string();
    assert_eq!(nothing, "the trace has no request from 2.5s on for 250ms; its last one comes at 3s");
    assert!(replay(",from=3.1s", None, &trace).is_err());
}

/// One part of a mix for each model: together they are the trace, each at its own times.
#[test]
fn a_replay_of_each_model_is_the_trace_again() {
    let trace = bursty();
    let parts = ["a", "b"].map(|model| instants(&format!(",model={model}"), &trace, 1));
    for (index, part) in parts.iter().enumerate() {
        let of_model = trace.requests().iter().filter(|request| request.model == index).map(|request| request.at);
        assert!(part.len() > 10_000 && of_model.eq(part.iter().copied()));
    }
    let mut all = parts.concat();
    all.sort_unstable();
    assert_eq!(all, trace.instants());
    // A part is as long as the whole, wherever its own last request is, and cuts are times of the whole.
    let small = Trace::parse("t_seconds,model\n0,a\n1,b\n4,a").unwrap();
    let one = replay(",model=b", None, &small).unwrap();
    assert_eq!((one.length(), one.rate().unwrap().as_per_second()), (Some(Duration::from_secs(4)), 0.25));
    assert_eq!(instants(",model=a,from=500ms", &small, 1), [seconds(3.5)]);
    let other = replay(",model=c", None, &small).unwrap_err().to_string();
    assert_eq!(other, "the trace has no model \"c\"; it has a, b");
}

/// Kept with probability s, counts have dispersion 1 + s (IDC − 1): thinning keeps a share of what is above Poisson.
#[test]
fn a_smaller_scale_thins() {
    let trace = bursty();
    let all = trace.instants();
    let thin = instants(",scale=0.3", &trace, 4);
    let expected = 0.3 * all.len() as f64;
    assert!((thin.len() as f64 - expected).abs() < 4.0 * (0.7 * expected).sqrt(), "{} of {}", thin.len(), all.len());
    assert!(thin.iter().all(|at| all.binary_search(at).is_ok()));
    assert_ne!(thin, instants(",scale=0.3", &trace, 5));
    let dispersion = |instants: &[Instant]| {
        let windows = Statistics::of(instants).windows;
        windows.iter().find(|window| window.width == Duration::from_millis(300)).unwrap().dispersion.unwrap()
    };
    let theory = 1.0 + 0.3 * (dispersion(&all) - 1.0);
    // 2000 windows, and what the thinning adds to chance.
    assert!((dispersion(&thin) / theory - 1.0).abs() < 4.0 * (2.0 / 2000f64).sqrt(), "{} {theory}", dispersion(&thin));
}

#[test]
fn a_larger_scale_adds_copies_within_the_gaps() {
    let trace = bursty();
    let all = trace.instants();
    let thrice = instants(",scale=3", &trace, 4);
    assert_eq!(thrice.len(), 3 * all.len());
    assert!(thrice.is_sorted());
    // The originals are there, and between two of them (or after equal ones) just their copies.
    let mut places = Vec::new();
    for (i, at) in all.iter().enumerate() {
        assert_eq!(thrice[3 * i], *at);
        let until = all.get(i + 1).unwrap_or(at);
        for copy in &thrice[3 * i + 1..3 * i + 3] {
            assert!(copy <= until);
            if until > at {
                places.push(copy.since(*at).as_secs_f64() / until.since(*at).as_secs_f64());
            }
        }
    }
    // Anywhere in the gap: a uniform place has mean 1/2 and variance 1/12.
    let mean = places.iter().sum::<f64>() / places.len() as f64;
    assert!((mean - 0.5).abs() < 4.0 / (12.0 * places.len() as f64).sqrt(), "{mean}");
    let half_more = instants(",scale=2.5", &trace, 4).len() as f64;
    let number = all.len() as f64;
    assert!((half_more - 2.5 * number).abs() < 4.0 * (0.25 * number).sqrt(), "{half_more} of {number}");
    assert_ne!(thrice, instants(",scale=3", &trace, 5));
}

#[test]
fn a_rate_that_is_given_scales_the_trace() {
    let trace = bursty();
    let own = replay("", None, &trace).unwrap().rate().unwrap().as_per_second();
    // Twice its rate, whatever its scale was: a fraction of twice as many is a matter of rounding only.
    for spec in ["", ",scale=7"] {
        let process = replay(spec, Some(2.0 * own), &trace).unwrap();
        let number = process.instants(Prng::new(1)).count() as f64;
        assert!((number / (2.0 * trace.requests().len() as f64) - 1.0).abs() < 0.001, "{number}");
        assert!((process.rate().unwrap().as_per_second() / (2.0 * own) - 1.0).abs() < 1e-9);
    }
    assert!(matches!(replay("", Some(1e8), &trace).unwrap_err(), BadProcess::Scale { .. }));
    let single = Trace::parse("t_seconds,model\n4,a\n4,b").unwrap();
    let cut = ",from=4s";
    assert_eq!(replay(cut, Some(1.0), &single).unwrap_err(), BadProcess::NoRateOfItsOwn);
    assert_eq!(replay(cut, None, &single).unwrap().rate(), None);
    assert_eq!(instants(",from=4s,scale=2", &single, 1), [Instant::ZERO; 4]);
}
