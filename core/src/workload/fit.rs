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
//!
//! There is something to fit only where counts are more dispersed than those of a Poisson process are by chance. Of such a
//! process (n − 1) times the dispersion in n windows is all but chi-squared with n − 1 degrees of freedom (Fisher's index of
//! dispersion), whose cube root is all but normal (Wilson and Hilferty, The distribution of chi-square, 1931). As many widths
//! are looked at, each may raise a false alarm only so often that all of them together do so once in a hundred (Bonferroni;
//! widths share their instants, so it is less).

use std::time::Duration;

use crate::prng::elementary::{exp, pow};
use crate::units::Instant;

use super::arrivals::Arrivals;
use super::mmpp::{Mmpp, rise};
use super::parameter::{PERIOD_MIN, TIME_MAX};
use super::rate::Rate;
use super::statistics::{Counts, Window, gap_moments};

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
/// Share of Poisson processes that may be taken for bursty ones, all widths together.
const FALSE_ALARMS: f64 = 0.01;
/// A fitted dispersion that is off by more than this factor is told to be poor: a queue would feel it.
const POOR: f64 = 1.5;
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

    /// Whether a Poisson process is as dispersed as this in less than this share of cases.
    fn is_rarer_than(&self, share: f64) -> bool {
        let freedom = self.windows - 1.0;
        let dispersion = self.variance * self.windows / freedom / self.mean;
        let spread = 2.0 / (9.0 * freedom);
        let errors = (pow(dispersion.max(1.0), 1.0 / 3.0) - (1.0 - spread)) / spread.sqrt();
        // What lies above so many standard errors of a normal is less than its density there over their number.
        errors > 1.0 && exp(-errors * errors / 2.0) / (errors * std::f64::consts::TAU.sqrt()) < share
    }

    /// What the excess may be off by, for its weight in a fit: √(2/n) of the dispersion, as if counts were independent and
    /// normal. But a process of two states is not truer than [`MODEL_ERROR`] of any trace, however many windows there are.
    fn error(&self) -> f64 {
        (2.0 / self.windows).sqrt().hypot(MODEL_ERROR) * (self.variance / self.mean).max(1.0)
    }
}

/// Where the dispersion of a fit is far from the observed one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Misfit {
    /// Of the windows.
    pub width: Duration,
    /// The larger dispersion over the smaller one.
    pub factor: f64,
    /// Counts clump more than those of the fit would.
    pub too_smooth: bool,
}

impl Misfit {
    /// At this width; none without a dispersion.
    fn at(fit: &Mmpp, window: &Window) -> Option<Misfit> {
        let ratio = window.dispersion? / fit.dispersion(window.width);
        Some(Misfit { width: window.width, factor: ratio.max(1.0 / ratio), too_smooth: ratio > 1.0 })
    }
}

impl Mmpp {
    /// Fits sorted instants.
    pub fn fit(instants: &[Instant]) -> Result<Mmpp, NoFit> {
        let rate = GammaFit::of(instants)?.rate;
        let moments = moments(instants, rate);
        if !bursty(&moments) {
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

    /// The width at which this is furthest from what was observed, where that makes it a poor description: by more than half,
    /// and by more than two standard errors of the observed dispersion.
    pub fn misfit(&self, windows: &[Window]) -> Option<Misfit> {
        let telling = windows.iter().filter(|window| window.counted >= WINDOWS_MIN);
        let poor = telling.filter_map(|window| {
            let chance = 1.0 + 2.0 * (2.0 / window.counted as f64).sqrt();
            Misfit::at(self, window).filter(|misfit| misfit.factor > POOR.max(chance))
        });
        poor.max_by(|a, b| a.factor.total_cmp(&b.factor))
    }
}

/// Whether counts are more dispersed, at some width, than those of a Poisson process are by chance.
fn bursty(moments: &[Moments]) -> bool {
    moments.iter().any(|at| at.is_rarer_than(FALSE_ALARMS / moments.len() as f64))
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
