//! Every process against what theory says of its mean, of the CV of its gaps and of its index of dispersion, in windows from
//! far narrower than its bursts to far wider.
//!
//! The method: independent runs, each of which estimates without bias, since the variance is taken about the mean that theory
//! knows and not about the run's own, which would hide what long bursts do. How far the runs lie apart is the standard error, so
//! no tolerance is guessed: an estimate may be four of them off. And four of them may not be more than `SHARP` of the
//! figure, or the test would let mistakes pass.

use std::f64::consts::TAU;
use std::time::Duration;

use crate::prng::Prng;
use crate::units::Instant;
use crate::workload::*;

/// What four standard errors are at most, as a share of what is estimated: what a mistake must change to be seen for sure.
const SHARP: f64 = 0.08;

fn process(text: &str, rate: Option<f64>) -> Process {
    let rate = rate.map(|rate| Rate::per_second(rate).unwrap());
    Arrivals::parse(text).unwrap().process(rate, None).unwrap()
}

/// Seconds of the instants of a run, in order.
fn run(process: &Process, seconds: f64, seed: u64) -> Vec<f64> {
    until(process.instants(Prng::new(seed)), seconds)
}

fn until(instants: impl Iterator<Item = Instant>, seconds: f64) -> Vec<f64> {
    instants.map(|at| at.as_nanos() as f64 / 1e9).take_while(|at| *at < seconds).collect()
}

/// Counts in windows side by side from zero.
fn counts(run: &[f64], width: f64, seconds: f64) -> Vec<f64> {
    let mut counts = vec![0.0; (seconds / width + 1e-9) as usize];
    for at in run {
        if let Some(count) = counts.get_mut((at / width) as usize) {
            *count += 1.0;
        }
    }
    counts
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// The estimates of independent runs against theory.
#[track_caller]
fn agree(estimates: &[f64], theory: f64, what: &str) {
    let mean = mean(estimates);
    let variance = estimates.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (estimates.len() - 1) as f64;
    let error = (variance / estimates.len() as f64).sqrt();
    assert!(4.0 * error <= SHARP * theory, "{what}: {mean} ± {error} is too blunt to be compared with {theory}");
    assert!((mean - theory).abs() <= 4.0 * error, "{what}: {mean} ± {error} should be {theory}");
}

/// A stationary process and what theory says of it.
struct Theory<'a> {
    name: &'a str,
    rate: f64,
    /// None where the variance of a gap is infinite, or no closed form is known.
    cv: Option<f64>,
    /// Variance over mean of the counts in windows of so many seconds.
    dispersion: &'a dyn Fn(f64) -> f64,
    widths: &'a [f64],
}

impl Theory<'_> {
    #[track_caller]
    fn check(&self, runs: u64, seconds: f64, draw: impl Fn(u64) -> Vec<f64>) {
        let drawn: Vec<Vec<f64>> = (1..=runs).map(draw).collect();
        let of = |estimate: &dyn Fn(&[f64]) -> f64| drawn.iter().map(|run| estimate(run)).collect::<Vec<f64>>();
        agree(&of(&|run| run.len() as f64 / seconds), self.rate, &format!("rate of {}", self.name));
        if let Some(cv) = self.cv {
            // E gap² = (1 + CV²) / rate²: an average, so runs may be averaged.
            let square =
                |run: &[f64]| mean(&run.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).collect::<Vec<_>>());
            let what = format!("squared gaps of {}, CV {cv}", self.name);
            agree(&of(&|run| square(run) * self.rate.powi(2)), 1.0 + cv * cv, &what);
        }
        for width in self.widths {
            let expected = self.rate * width;
            let about = |count: &f64| (count - expected).powi(2) / expected;
            let dispersion = |run: &[f64]| mean(&counts(run, *width, seconds).iter().map(about).collect::<Vec<_>>());
            let what = format!("dispersion of {} in {width} s", self.name);
            agree(&of(&dispersion), (self.dispersion)(*width), &what);
        }
    }
}

/// ln Γ(x): Stirling's series where it is exact to the last digits, from x + 20 down.
fn ln_gamma(x: f64) -> f64 {
    let shifted = x + 20.0;
    let series = 1.0 / (12.0 * shifted) - 1.0 / (360.0 * shifted.powi(3)) + 1.0 / (1260.0 * shifted.powi(5))
        - 1.0 / (1680.0 * shifted.powi(7));
    let stirling = (shifted - 0.5) * shifted.ln() - shifted + TAU.ln() / 2.0 + series;
    stirling - (0..20).map(|i| (x + f64::from(i)).ln()).sum::<f64>()
}

/// P(a gamma variable of shape a is at most x) = Σ x^(a+i) e^(−x) / Γ(a + i + 1). Terms by their logarithms: the first ones may be
/// too small for a number where those at x are not.
fn gamma_below(a: f64, x: f64) -> f64 {
    let mut power = a * x.ln() - x - ln_gamma(a + 1.0);
    let (mut sum, mut at) = (0.0, a);
    loop {
        let term = power.exp();
        sum += term;
        if at > x && term <= 1e-17 * sum {
            return sum;
        }
        at += 1.0;
        power += (x / at).ln();
    }
}

/// Var N(t) = λt + 2λ ∫ m(u) du − (λt)² for a stationary renewal process, with m(u) = Σ F_n(u) the renewal function (Cox,
/// Renewal Theory, 1962, 4.5). Sums of n gamma gaps are gamma of n times the shape k, and with θ = 1/(λk)
/// ∫ F_n = t P(nk, t/θ) − nkθ P(nk + 1, t/θ).
fn gamma_dispersion(cv: f64, rate: f64, width: f64) -> f64 {
    let shape = 1.0 / (cv * cv);
    let scale = 1.0 / (rate * shape);
    let x = width / scale;
    let mut sum = 0.0;
    for n in 1.. {
        let a = f64::from(n) * shape;
        let term = width * gamma_below(a, x) - a * scale * gamma_below(a + 1.0, x);
        sum += term;
        if a > x && term < 1e-15 {
            break;
        }
    }
    (rate * width + 2.0 * rate * sum - (rate * width).powi(2)) / (rate * width)
}

#[test]
fn the_theory_of_gamma_gaps_agrees_with_what_is_known_of_it() {
    assert!((ln_gamma(0.5) - (TAU / 2.0).ln() / 2.0).abs() < 1e-12 && ln_gamma(2.0).abs() < 1e-12);
    assert!((gamma_below(1.0, 2.0) - (1.0 - (-2.0f64).exp())).abs() < 1e-12);
    // Exponential gaps: 1 at every width. Two exponential halves to a gap (Cox, 4.5): 1/2 + (1 − e^(−4λt)) / 8λt.
    for width in [0.001, 0.03, 0.4] {
        assert!((gamma_dispersion(1.0, 1000.0, width) - 1.0).abs() < 1e-8);
        let halves = 0.5 + (1.0 - (-4000.0 * width).exp()) / (8000.0 * width);
        assert!((gamma_dispersion(0.5f64.sqrt(), 1000.0, width) - halves).abs() < 1e-8);
    }
    // Far out: CV² + (1 − CV⁴) / 6λt.
    assert!((gamma_dispersion(4.0, 1000.0, 2.0) - (16.0 - 255.0 / 12_000.0)).abs() < 1e-6);
}

/// Seen from between two queries of a constant process: none lies on the edge of a window, where rounding decides.
fn between(run: Vec<f64>, rate: f64) -> Vec<f64> {
    run.into_iter().map(|at| at - 0.4 / rate).filter(|at| *at >= 0.0).collect()
}

/// f of a query more than a whole number fits into the window: counts differ by one, and the larger comes with probability f.
#[test]
fn constant() {
    // 3 ms and a third are no whole number of nanoseconds: nothing may drift.
    for (rate, widths) in [(300.0, [0.01, 0.0305, 0.1, 1.001]), (7.0, [0.01, 0.1, 0.3, 10.0])] {
        let run = between(run(&process("constant", Some(rate)), 1000.0, 1), rate);
        assert!((run.len() as f64 - 1000.0 * rate).abs() <= 1.0);
        let gaps: Vec<f64> = run.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| (gap * rate - 1.0).abs() < 1e-6), "CV 0");
        for width in widths {
            let f = (rate * width).fract();
            let counts = counts(&run, width, 1000.0);
            let theory = f * (1.0 - f);
            let variance = mean(&counts.iter().map(|count| (count - rate * width).powi(2)).collect::<Vec<_>>());
            // Nothing is random. A square is at most 1, and the last round of counts may be broken off.
            let room = 20.0 / counts.len() as f64 + 1e-9;
            assert!((variance - theory).abs() < room, "{rate} in {width} s: {variance} should be {theory} ± {room}");
        }
    }
}

#[test]
fn poisson_and_gamma() {
    const RATE: f64 = 1000.0;
    for (text, cv) in [("poisson", 1.0), ("gamma:cv=4", 4.0), ("gamma:cv=2", 2.0), ("gamma:cv=0.5", 0.5)] {
        let process = process(text, Some(RATE));
        let theory = Theory {
            name: text,
            rate: RATE,
            cv: Some(cv),
            dispersion: &|width| gamma_dispersion(cv, RATE, width),
            // From one query to a window to three hundred.
            widths: &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3],
        };
        theory.check(80, 30.0, |seed| run(&process, 30.0, seed));
    }
}

/// The gaps of an MMPP are those of a Markovian arrival process with D0 = Q − Λ: from the state φ of an arrival, which is high with
/// probability p·high / rate, E gap² = 2 φ D0⁻² e (Fischer and Meier-Hellstern, The MMPP cookbook, 1993, section 1.4).
fn mmpp_cv(mmpp: &Mmpp) -> f64 {
    let (up, down) = (1.0 / mmpp.mean_low.as_secs_f64(), 1.0 / mmpp.mean_high.as_secs_f64());
    let share = up / (up + down);
    let high = share * mmpp.high / mmpp.rate();
    let (a, b, c, d) = (up + mmpp.low, -up, -down, down + mmpp.high);
    // −D0 = [a b; c d]; its inverse on a vector.
    let inverse = |(x, y): (f64, f64)| ((d * x - b * y) / (a * d - b * c), (a * y - c * x) / (a * d - b * c));
    let (low_square, high_square) = inverse(inverse((1.0, 1.0)));
    let square = 2.0 * ((1.0 - high) * low_square + high * high_square);
    (square * mmpp.rate().powi(2) - 1.0).sqrt()
}

#[test]
fn mmpp() {
    for text in [
        "mmpp:low=20,high=180,mean_low=200ms,mean_high=50ms",
        "mmpp:low=0,high=400,mean_low=90ms,mean_high=30ms",
        // Rare long lulls in a busy stream.
        "mmpp:low=5,high=300,mean_low=40ms,mean_high=160ms",
    ] {
        let Arrivals::Mmpp(mmpp) = Arrivals::parse(text).unwrap() else { unreachable!() };
        let theory = Theory {
            name: text,
            rate: mmpp.rate(),
            cv: Some(mmpp_cv(&mmpp)),
            dispersion: &|width| mmpp.dispersion(Duration::from_secs_f64(width)),
            widths: &[0.001, 0.01, 0.03, 0.1, 0.3, 1.0],
        };
        theory.check(100, 60.0, |seed| run(&process(text, None), 60.0, seed));
    }
}

/// No silence is shorter than m_off = mean_off (α − 1) / α. So within less than that a source is on at both ends of an interval u
/// just where it stayed on: Cov(u) = p P(more than u left) − p², and a window w ≤ m_off has
/// Var N(w) = λw + 2 n r² ∫ (w − u) Cov(u) du for n sources of rate r. Wider windows have the law of their growth, which
/// `pareto_counts_grow_as_self_similarity_says` looks at. A gap has infinite variance, hence no CV.
#[test]
fn pareto() {
    const RATE: f64 = 400.0;
    for (text, alpha, sources, on, off) in [
        ("pareto:alpha=1.5", 1.5, 16.0, 0.5, 1.5),
        ("pareto:alpha=1.4,sources=6,mean_on=150ms,mean_off=600ms", 1.4f64, 6.0, 0.15, 0.6),
        ("pareto:alpha=1.9,sources=1,mean_on=60ms,mean_off=300ms", 1.9, 1.0, 0.06, 0.3),
    ] {
        let share = on / (on + off);
        let each = RATE / sources / share;
        let (shortest_on, shortest_off) = (on * (alpha - 1.0) / alpha, off * (alpha - 1.0) / alpha);
        let left = |u: f64| match u < shortest_on {
            true => 1.0 - u / on,
            false => (u / shortest_on).powf(1.0 - alpha) / alpha,
        };
        let dispersion = |width: f64| {
            assert!(width <= shortest_off);
            let step = width / 20_000.0;
            let term = |i: u32| (width - f64::from(i) * step) * (share * left(f64::from(i) * step) - share * share);
            let integral = step * ((1..20_000).map(term).sum::<f64>() + term(0) / 2.0);
            1.0 + 2.0 * sources * each * each * integral / (RATE * width)
        };
        let widths: Vec<f64> =
            [0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5].into_iter().filter(|width| *width <= shortest_off).collect();
        assert!(widths.len() >= 4);
        let process = process(text, Some(RATE));
        let theory = Theory { name: text, rate: RATE, cv: None, dispersion: &dispersion, widths: &widths };
        theory.check(1500, 6.0, |seed| run(&process, 6.0, seed));
    }
}

/// What is known of a Poisson process whose rate changes by the clock: each window brings a Poisson number with the integral of
/// the rate as its mean and its variance, and in the clock of that integral gaps are exponential with mean and CV 1.
fn follows_the_clock(text: &str, integral: impl Fn(f64) -> f64, windows: &[(f64, f64)], end: f64) {
    let process = process(text, None);
    let runs: Vec<Vec<f64>> = (1..=8000).map(|seed| run(&process, end, seed)).collect();
    for (from, to) in windows {
        let expected = integral(*to) - integral(*from);
        let within = |run: &[f64]| (run.partition_point(|at| at < to) - run.partition_point(|at| at < from)) as f64;
        let of = |figure: &dyn Fn(f64) -> f64| runs.iter().map(|run| figure(within(run))).collect::<Vec<f64>>();
        agree(&of(&|count| count), expected, &format!("mean of {text} from {from} to {to} s"));
        let what = format!("dispersion of {text} from {from} to {to} s");
        agree(&of(&|count| (count - expected).powi(2) / expected), 1.0, &what);
    }
    // One run after the other, in that clock: Poisson of rate 1 from the first to the last.
    let clock = |(i, run): (usize, &Vec<f64>)| {
        run.iter().map(|at| i as f64 * integral(end) + integral(*at)).collect::<Vec<f64>>()
    };
    let joined: Vec<f64> = runs.iter().enumerate().flat_map(clock).collect();
    let gaps: Vec<f64> = joined.windows(2).map(|pair| pair[1] - pair[0]).collect();
    agree(&gaps, 1.0, &format!("gaps of {text} in its own clock"));
    agree(
        &gaps.iter().map(|gap| gap * gap / 2.0).collect::<Vec<_>>(),
        1.0,
        &format!("squared gaps of {text} in its own clock"),
    );
}

#[test]
fn spike() {
    let integral = |t: f64| 60.0 * t + 540.0 * (t.clamp(0.5, 0.7) - 0.5);
    let windows = [(0.0, 0.4), (0.3, 0.6), (0.5, 0.7), (0.52, 0.55), (0.65, 1.0), (0.7, 1.0), (0.0, 1.0)];
    follows_the_clock("spike:base=60,peak=600,at=500ms,for=200ms", integral, &windows, 1.0);
}

#[test]
fn diurnal() {
    for (text, min, max) in
        [("diurnal:min=20,max=380,period=1s", 20.0, 380.0), ("diurnal:min=0,max=200,period=1s", 0.0, 200.0)]
    {
        let (mid, half) = ((min + max) / 2.0, (max - min) / 2.0);
        let integral = |t: f64| mid * t - half * (TAU * t).sin() / TAU;
        let windows = [(0.0, 0.3), (0.2, 0.3), (0.45, 0.55), (0.5, 1.0), (0.7, 1.3), (0.0, 1.0)];
        follows_the_clock(text, integral, &windows, 1.5);
        // All windows of a width together: what the swing of the rate adds to Poisson. Over windows that divide the period
        // cos² is a half in the mean.
        let process = process(text, None);
        let swing = |width: f64| half * (TAU * width / 2.0).sin() / (TAU / 2.0);
        let theory = Theory {
            name: text,
            rate: mid,
            cv: None,
            dispersion: &|width| 1.0 + swing(width).powi(2) / 2.0 / (mid * width),
            widths: &[0.01, 0.05, 0.1, 0.2, 0.25, 1.0],
        };
        theory.check(400, 20.0, |seed| run(&process, 20.0, seed));
    }
}

/// Sources that do not know each other add their variances, at every width; and the time V from any moment to the next query is the
/// shorter of theirs, whence E gap² = 2 E V / rate. For a constant source of rate c beside a Poisson one of rate l,
/// P(V > t) = (1 − ct) e^(−lt).
#[test]
fn superposition() {
    let joined = |texts: &[(&str, Option<f64>)], seconds: f64, seed: u64| {
        let source =
            |(i, (text, rate)): (usize, &(&str, Option<f64>))| (process(text, *rate), Prng::part(seed, i as u64));
        until(Superposition::new(texts.iter().enumerate().map(source).collect()).map(|(at, _)| at), seconds)
    };
    let bursty = "mmpp:low=20,high=180,mean_low=200ms,mean_high=50ms";
    let Arrivals::Mmpp(mmpp) = Arrivals::parse(bursty).unwrap() else { unreachable!() };
    let rates = [400.0, 150.0, mmpp.rate()];
    let rate = rates.iter().sum::<f64>();
    let dispersion = |width: f64| {
        let of_mmpp = mmpp.dispersion(Duration::from_secs_f64(width));
        (rates[0] * gamma_dispersion(3.0, rates[0], width) + rates[1] + rates[2] * of_mmpp) / rate
    };
    let theory = Theory {
        name: "gamma, Poisson and MMPP",
        rate,
        cv: None,
        dispersion: &dispersion,
        widths: &[0.001, 0.01, 0.03, 0.1, 0.3, 1.0],
    };
    let three = [("gamma:cv=3", Some(rates[0])), ("poisson", Some(rates[1])), (bursty, None)];
    theory.check(100, 60.0, |seed| joined(&three, 60.0, seed));

    let (c, l) = (200.0f64, 100.0f64);
    let next = 1.0 / l - c / (l * l) * (1.0 - (-l / c).exp());
    let cv = (2.0 * next * (c + l) - 1.0).sqrt();
    // In windows that a whole number of constant queries fits into, only the Poisson ones vary.
    let theory = Theory {
        name: "constant and Poisson",
        rate: c + l,
        cv: Some(cv),
        dispersion: &|width| {
            let f = (c * width).fract();
            (l * width + f * (1.0 - f)) / ((c + l) * width)
        },
        widths: &[0.0021, 0.01, 0.1],
    };
    theory.check(100, 60.0, |seed| between(joined(&[("constant", Some(c)), ("poisson", Some(l))], 60.0, seed), c));
}
