//! Which process would look like this list of instants.
//!
//! The intuition: match what queues feel. The gamma fit matches mean and CV of gaps, hence what neighbours see. The MMPP
//! fit matches how dispersion grows with the width of windows, and the skew of counts: whether there are rare high bursts
//! on a low floor, or rare lulls in a busy stream.
//!
//! The contract: moments after Heffes and Lucantoni (A Markov modulated characterization of packetized voice and data
//! traffic, 1986), who match the mean rate, dispersion at chosen widths and a third moment. Here dispersion is matched at
//! all widths at once by weighted least squares, since in a trace no width is right by itself. With X the rate less its
//! mean, d = high − low, shares p of time high and q low, and 1/τ = 1/mean_low + 1/mean_high:
//!
//! - v = E X² = p q d² and dispersion 1 + A rise(t/τ) with A = 2 v τ / rate: gives τ by search, A by regression, v.
//! - c = E X³ / v = (q − p) d. As X is two-valued, X² = c X + v; hence E X(0) X(s) X(s+u) = c v e^(−(s+u)/τ), and the
//!   third central moment of counts in windows t = x τ is
//!   rate t + 3 (variance − mean) + 6 c v τ³ [x − 2 + (x + 2) e^(−x)]: gives c.
//! - X takes (c ± √(c² + 4v)) / 2, which are the rates. Where the low one would be negative it is 0, and c is what makes it so.

use std::time::Duration;

use crate::prng::elementary::exp;
use crate::units::Instant;

use super::arrivals::Arrivals;
use super::mmpp::{Mmpp, rise};
use super::parameter::{PERIOD_MIN, TIME_MAX};
use super::rate::Rate;
use super::statistics::{Counts, gap_moments};

/// Gamma distributed gaps with the mean and CV of the instants' own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GammaFit {
    /// Queries a second.
    pub rate: f64,
    /// Standard deviation of a gap over its mean.
    pub cv: f64,
}

/// Why no process was fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum NoFit {
    #[error("{found} instants are too few to fit a process; give at least {needed}")]
    TooFew { found: usize, needed: usize },
    #[error("all instants are the same; there is no rate to fit")]
    AtOnce,
    #[error("counts are no more dispersed than a Poisson process; use poisson, or gamma with its CV")]
    NotBursty,
}

/// Below this the standard error of a moment is a tenth and more.
const INSTANTS_MIN: usize = 100;
/// Windows below this number say too little of their variance.
const WINDOWS_MIN: usize = 20;
/// Excess dispersion has to be this many standard errors at some width, lest noise be taken for bursts.
const ERRORS_MIN: f64 = 4.0;
/// Without it the narrow windows, of which there are most, would be matched to the third digit and the wide ones not at all.
const MODEL_ERROR: f64 = 0.05;

impl GammaFit {
    /// Fits sorted instants.
    pub fn of(instants: &[Instant]) -> Result<GammaFit, NoFit> {
        if instants.len() < INSTANTS_MIN {
            return Err(NoFit::TooFew { found: instants.len(), needed: INSTANTS_MIN });
        }
        let (mean, variance) = gap_moments(instants);
        if mean == 0.0 {
            return Err(NoFit::AtOnce);
        }
        Ok(GammaFit { rate: 1e9 / mean, cv: variance.sqrt() / mean })
    }

    /// As a specification that is to be given [`GammaFit::rate`]; constant where gaps are all but equal.
    pub fn arrivals(&self) -> Arrivals {
        if self.cv < 0.001 { Arrivals::Constant } else { Arrivals::Gamma { cv: self.cv.min(100.0) } }
    }
}

/// Moments of the counts at one width.
struct Moments {
    /// Seconds.
    width: f64,
    windows: f64,
    mean: f64,
    variance: f64,
    third: f64,
}

impl Moments {
    fn excess(&self) -> f64 {
        self.variance / self.mean - 1.0
    }

    /// Of the excess, were counts independent and normal: √(2/n) of the dispersion.
    fn standard_error(&self) -> f64 {
        (2.0 / self.windows).sqrt() * (self.variance / self.mean).max(1.0)
    }

    /// What the excess may be off by: a process of two states is not truer than [`MODEL_ERROR`] of any trace, however
    /// many windows there are.
    fn error(&self) -> f64 {
        self.standard_error().hypot(MODEL_ERROR * (self.variance / self.mean).max(1.0))
    }
}

impl Mmpp {
    /// Fits sorted instants.
    pub fn fit(instants: &[Instant]) -> Result<Mmpp, NoFit> {
        let rate = GammaFit::of(instants)?.rate;
        let moments = moments(instants, rate);
        if !moments.iter().any(|at| at.excess() > ERRORS_MIN * at.standard_error()) {
            return Err(NoFit::NotBursty);
        }
        let (relaxation, limit) = dispersion_curve(&moments).ok_or(NoFit::NotBursty)?;
        let variance = limit * rate / (2.0 * relaxation);
        // The skew at which the low rate is 0; with less it would be negative.
        let skew = skew(&moments, relaxation, variance).max(variance / rate - rate);
        let root = (skew * skew + 4.0 * variance).sqrt();
        // Their product is the variance; the smaller of them would be lost as a difference.
        let larger = (skew.abs() + root) / 2.0;
        let (above, below) = if skew > 0.0 { (larger, variance / larger) } else { (variance / larger, larger) };
        let period = |opposite: f64| {
            let seconds = relaxation * (above + below) / opposite;
            Duration::from_secs_f64(seconds.clamp(PERIOD_MIN.as_secs_f64(), TIME_MAX.as_secs_f64()))
        };
        let high = (rate + above).min(Rate::PER_SECOND_MAX);
        Ok(Mmpp { low: (rate - below).clamp(0.0, high), high, mean_low: period(below), mean_high: period(above) })
    }
}

/// Moments at widths in steps of √2, from one in which there are two instants in the mean to one of which there are enough.
fn moments(instants: &[Instant], rate: f64) -> Vec<Moments> {
    let mut all = Vec::new();
    // Not below what instants can tell apart.
    let mut width = (2.0 / rate).max(1e-9);
    loop {
        let counts = Counts::of(instants, Duration::from_secs_f64(width));
        if counts.windows < WINDOWS_MIN {
            return all;
        }
        let [mean, variance, third] = counts.central_moments();
        all.push(Moments { width, windows: counts.windows as f64, mean, variance, third });
        width *= std::f64::consts::SQRT_2;
    }
}

/// Relaxation time (seconds) and limit of excess dispersion with the least weighted squares: the best of a hundred and
/// more relaxation times over the range of widths, in steps of 5 %, where the limit follows by regression. None where the
/// curve does not rise.
fn dispersion_curve(moments: &[Moments]) -> Option<(f64, f64)> {
    let widest = moments.iter().map(|at| at.width).fold(0.0, f64::max);
    let mut relaxation = moments.iter().map(|at| at.width).fold(f64::INFINITY, f64::min) / 10.0;
    let (mut best, mut least) = (None, f64::INFINITY);
    while relaxation < widest {
        let sum =
            |term: &dyn Fn(&Moments) -> f64| -> f64 { moments.iter().map(|at| term(at) / at.error().powi(2)).sum() };
        let model = |at: &Moments| rise(at.width / relaxation);
        let limit = sum(&|at| at.excess() * model(at)) / sum(&|at| model(at) * model(at));
        let squares = sum(&|at| (at.excess() - limit * model(at)).powi(2));
        if squares < least && limit > 0.0 {
            (best, least) = (Some((relaxation, limit)), squares);
        }
        relaxation *= 1.05;
    }
    best
}

/// The mean of c over the widths that see it best: from a quarter of the relaxation time to four times.
fn skew(moments: &[Moments], relaxation: f64, variance: f64) -> f64 {
    let near = moments.iter().filter(|at| (0.25..=4.0).contains(&(at.width / relaxation)));
    let (sum, number) = near.fold((0.0, 0.0), |(sum, number), at| {
        let x = at.width / relaxation;
        let shape = 6.0 * relaxation.powi(3) * (x - 2.0 + (x + 2.0) * exp(-x));
        let of_the_rate = at.third - at.mean - 3.0 * (at.variance - at.mean);
        (sum + of_the_rate / (variance * shape), number + 1.0)
    });
    // Without such a width nothing is known of the skew: the two states then have equal shares.
    if number > 0.0 { sum / number } else { 0.0 }
}
