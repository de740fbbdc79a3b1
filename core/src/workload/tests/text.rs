//! Specifications as text: read, written, refused.

use std::time::Duration;

use crate::workload::*;

const SPELLINGS: [&str; 15] = [
    "constant",
    "poisson",
    "gamma:cv=4",
    "gamma:cv=0.5",
    "mmpp:low=100,high=900,mean_low=2s,mean_high=300ms",
    "mmpp:low=0,high=0.25,mean_low=1us,mean_high=1.000000001s",
    "pareto:alpha=1.5",
    "pareto:alpha=1.05,sources=1,mean_on=20ms,mean_off=4s",
    "spike:base=200,peak=1200,at=5s,for=2s",
    "spike:base=200,peak=200,at=0s,for=1.5ms",
    "diurnal:min=0,max=500,period=86400s",
    "trace:azure.csv",
    "trace:../a folder/x=y:z.csv.gz,scale=0.5",
    "trace:t.csv,scale=2,speed=10,from=60s,length=30.5s",
    "trace:t.csv,model=a b=c",
];

#[test]
fn what_is_read_is_written_as_it_was() {
    for text in SPELLINGS {
        let arrivals = Arrivals::parse(text).unwrap_or_else(|bad| panic!("{text}: {bad}"));
        assert_eq!(arrivals.to_text(), text);
    }
}

/// Other spellings of the same become the one above.
#[test]
fn what_is_written_is_read_as_the_same() {
    for (text, canonical) in [
        ("mmpp:mean_high=0.3s,high=9e2,mean_low=2000ms,low=1e2", SPELLINGS[4]),
        ("pareto:mean_off=1500ms,sources=16,alpha=1.50,mean_on=0.5s", "pareto:alpha=1.5"),
        ("diurnal:min=0.0,max=500,period=24h", SPELLINGS[10]),
        ("trace:azure.csv,from=0s,scale=1,speed=1.0", "trace:azure.csv"),
        ("trace:t.csv,length=0.5m", "trace:t.csv,length=30s"),
    ] {
        let arrivals = Arrivals::parse(text).unwrap();
        assert_eq!(arrivals.to_text(), canonical);
        assert_eq!(Arrivals::parse(canonical).unwrap(), arrivals);
    }
}

proptest::proptest! {
    /// Whatever numbers a fit or a program puts in, its text means the same.
    #[test]
    fn any_allowed_value_survives_its_text(
        rates in (0.0..=1e6f64, 1e6..=1e9f64), nanos in (1_000u64..=30 * 86_400_000_000_000, 1_000u64..1_000_000_000),
        cv in 0.001..=100.0f64, alpha in 1.05..2.0f64, scale in 1e-6..=1000.0f64, sources in 1u32..=256,
    ) {
        let ((low, high), (long, short)) = (rates, nanos);
        let (long, short) = (Duration::from_nanos(long), Duration::from_nanos(short));
        let on = short + Duration::from_millis(10);
        let replay = Replay { scale, speed: cv, from: long, length: Some(short), ..Replay::new("f") };
        for arrivals in [
            Arrivals::Gamma { cv },
            Arrivals::Mmpp(Mmpp { low, high, mean_low: long, mean_high: short }),
            Arrivals::Pareto(Pareto { sources, mean_on: on, ..Pareto::new(alpha) }),
            Arrivals::Spike(Spike { base: low + 1e-3, peak: high, at: long, length: short }),
            Arrivals::Diurnal(Diurnal { min: low, max: high, period: long }),
            Arrivals::Trace(replay),
        ] {
            proptest::prop_assert_eq!(Arrivals::parse(&arrivals.to_text()), Ok(arrivals));
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "(gamma|mmpp|pareto|spike|diurnal|trace|.{0,3}):?(.{0,9}=.{0,9},?){0,4}") {
        let _ = Arrivals::parse(&text);
    }
}

/// Each mistake names what is wrong and what is allowed.
#[test]
fn mistakes_name_the_parameter_and_what_is_allowed() {
    for (text, parts) in [
        ("", &["\"\"", "poisson", "mmpp:low=", "trace:FILE"][..]),
        ("uniform", &["\"uniform\" is no arrival process", "gamma:cv=4"]),
        ("Poisson", &["is no arrival process"]),
        ("poisson:cv=1", &["poisson has no parameter \"cv\"", "none"]),
        ("constant:", &[]),
        ("gamma", &["gamma needs cv", "from 0.001 to 100", "gamma:cv=4"]),
        ("gamma:cv", &["cv of gamma cannot be \"\""]),
        ("gamma:cv=0", &["cv of gamma cannot be \"0\"", "from 0.001 to 100"]),
        ("gamma:cv=-1", &["\"-1\"", "from 0.001 to 100"]),
        ("gamma:cv=nan", &["\"NaN\"", "from 0.001 to 100"]),
        ("gamma:cv=inf", &["\"inf\"", "from 0.001 to 100"]),
        ("gamma:cv=1e9", &["from 0.001 to 100"]),
        ("gamma:cv=four", &["cv of gamma cannot be \"four\"", "a number"]),
        ("gamma:cv=4,cv=5", &["gamma has cv twice"]),
        ("gamma:cv=4,rate=5", &["gamma has no parameter \"rate\"", "it has cv"]),
        ("gamma:cv=4,", &["gamma has no parameter \"\""]),
        ("gamma: cv=4", &["gamma has no parameter \" cv\""]),
        ("mmpp:low=1", &["mmpp needs high", "mmpp:low=100,high=900"]),
        ("mmpp:low=-1,high=2,mean_low=1s,mean_high=1s", &["low of mmpp cannot be \"-1\"", "from 0 to 1000000000"]),
        ("mmpp:low=0,high=0,mean_low=1s,mean_high=1s", &["high of mmpp cannot be \"0\"", "above 0"]),
        ("mmpp:low=3,high=2,mean_low=1s,mean_high=1s", &["high of mmpp is below low"]),
        ("mmpp:low=1,high=2e9,mean_low=1s,mean_high=1s", &["high of mmpp", "at most 1000000000"]),
        (
            "mmpp:low=1,high=2,mean_low=0s,mean_high=1s",
            &["mean_low of mmpp cannot be", "from 1us to 2592000s", "300ms"],
        ),
        ("mmpp:low=1,high=2,mean_low=1s,mean_high=5", &["mean_high of mmpp cannot be \"5\"", "such as 300ms"]),
        ("mmpp:low=1,high=2,mean_low=1s,mean_high=-5s", &["mean_high of mmpp cannot be \"-5s\""]),
        ("mmpp:low=1,high=2,mean_low=1s,mean_high=1e99s", &["mean_high of mmpp cannot be \"1e99s\""]),
        ("mmpp:low=1,high=2,mean_low=1s,mean_high=9999999999999h", &["mean_high of mmpp cannot be"]),
        ("pareto", &["pareto needs alpha", "at least 1.05 and below 2"]),
        ("pareto:alpha=1", &["alpha of pareto", "at least 1.05 and below 2"]),
        ("pareto:alpha=2", &["alpha of pareto", "at least 1.05 and below 2"]),
        ("pareto:alpha=NaN", &["alpha of pareto"]),
        ("pareto:alpha=1.5,sources=0", &["sources of pareto", "whole number from 1 to 256"]),
        ("pareto:alpha=1.5,sources=1.5", &["sources of pareto", "whole number"]),
        ("pareto:alpha=1.5,sources=-4", &["sources of pareto"]),
        ("pareto:alpha=1.5,mean_on=0ms", &["mean_on of pareto", "from 10ms"]),
        ("spike:base=0,peak=1,at=0s,for=1s", &["base of spike", "above 0"]),
        ("spike:base=2,peak=1,at=0s,for=1s", &["peak of spike is below base"]),
        ("spike:base=1,peak=2,at=0s,for=0s", &["for of spike", "from 1ns"]),
        ("spike:base=1,peak=2,for=1s", &["spike needs at", "from 0s"]),
        ("spike:base=1,peak=2,at=31days,for=1s", &["at of spike cannot be \"31days\""]),
        ("spike:base=1,peak=2,at=721h,for=1s", &["at of spike"]),
        ("diurnal:min=1,max=2", &["diurnal needs period", "diurnal:min=50"]),
        ("diurnal:min=3,max=2,period=1s", &["max of diurnal is below min"]),
        ("diurnal:min=0,max=0,period=1s", &["max of diurnal", "above 0"]),
        ("diurnal:min=1,max=2,period=0.1us", &["period of diurnal"]),
        ("diurnal:min=1,min=1,max=2,period=1s", &["diurnal has min twice"]),
        ("trace", &["trace needs a file"]),
        ("trace:", &["trace needs a file"]),
        ("trace:,scale=2", &["trace needs a file"]),
        ("trace:f,scale=0", &["scale of trace", "above 0 and at most 1000"]),
        ("trace:f,scale=1001", &["scale of trace"]),
        ("trace:f,speed=0", &["speed of trace", "from 0.001 to 1000000"]),
        ("trace:f,speed=-1", &["speed of trace"]),
        ("trace:f,from=-1s", &["from of trace cannot be \"-1s\""]),
        ("trace:f,model=", &["model of trace cannot be \"\"; give a name"]),
        ("trace:f,length=0s", &["length of trace", "from 1ns"]),
        ("trace:f,loop=yes", &["trace has no parameter \"loop\"", "scale, speed, from, length, model"]),
    ] {
        let said = Arrivals::parse(text).err().map(|bad| bad.to_string()).unwrap_or_default();
        assert_eq!(said.is_empty(), parts.is_empty(), "{text}: {said}");
        for part in parts {
            assert!(said.contains(part), "{text}: {said:?} should say {part:?}");
        }
        assert!(!said.ends_with('.'), "{said}");
    }
}

/// What a program builds is checked where it is used, with the same words.
#[test]
fn a_value_that_was_built_is_checked_like_one_that_was_read() {
    let bad = Arrivals::Gamma { cv: f64::NAN }.process(Rate::per_second(1.0).ok(), None).unwrap_err();
    assert_eq!(bad, BadProcess::Arrivals(Arrivals::parse("gamma:cv=NaN").unwrap_err()));
    let comma = Arrivals::Trace(Replay::new("a,b")).process(None, None).unwrap_err();
    assert_eq!(comma, BadProcess::Arrivals(BadArrivals::File));
}

#[test]
fn rates_are_above_zero_and_finite() {
    for bad in [0.0, -0.0, -400.0, f64::NAN, f64::INFINITY, 1.1e9] {
        let said = Rate::per_second(bad).unwrap_err().to_string();
        assert!(said.contains("above 0 and at most 1000000000"), "{said}");
    }
    for good in [1e-9, 400.0, 1e9] {
        assert_eq!(Rate::per_second(good).unwrap().as_per_second(), good);
    }
}

#[test]
fn each_process_says_what_it_needs() {
    for text in SPELLINGS {
        let arrivals = Arrivals::parse(text).unwrap();
        let needs = matches!(text.split(':').next(), Some("constant" | "poisson" | "gamma" | "pareto"));
        assert_eq!(arrivals.needs_rate(), needs, "{text}");
        assert_eq!(arrivals.trace_file().is_some(), text.starts_with("trace"));
        let refused = arrivals.process(None, None).err();
        match text.split(':').next().unwrap() {
            process @ ("constant" | "poisson" | "gamma" | "pareto") => {
                assert_eq!(
                    refused.unwrap().to_string(),
                    format!("{process} arrivals need a rate; give queries a second")
                );
            }
            "trace" => assert!(refused.unwrap().to_string().ends_with("has to be read first")),
            _ => assert!(refused.is_none()),
        }
    }
}
