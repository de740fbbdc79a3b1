//! How bursty a list of instants is.
//!
//! The intuition: a rate says nothing about clumps. The CV of gaps sees them between neighbours, the index of dispersion
//! of counts sees them at one width of window, and the envelope is the worst that a window of that width ever held. A
//! Poisson process has dispersion 1 at every width; where it grows with the width, bursts are longer than the width.
//!
//! The contract: what is looked at lasts from the first instant to the last. Windows for the dispersion lie side by side
//! from the first instant; what is left at the end is not counted. Those of the envelope begin anywhere. Variances divide by the
//! number of windows (of gaps), as in `trace_stats.py` beside the shared traces.

use std::time::Duration;

use crate::units::Instant;

/// Figures of a list of instants.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Instants.
    pub count: usize,
    /// From the first to the last.
    pub length: Duration,
    /// Queries a second: one over the mean gap. None if all come at once.
    pub rate: Option<f64>,
    /// Standard deviation of a gap over its mean. None if all come at once.
    pub gap_cv: Option<f64>,
    /// By width, the narrowest first; as wide as the length allows.
    pub windows: Vec<Window>,
}

/// Figures of the counts in windows of one width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Of a window.
    pub width: Duration,
    /// Windows side by side.
    pub counted: usize,
    /// Variance of their counts over the mean, which is the index of dispersion. None below ten windows.
    pub dispersion: Option<f64>,
    /// The largest count in any window of this width, wherever it begins.
    pub largest: usize,
}

/// From one batch to a minute, which is what autoscaling sees.
const WIDTHS_MS: [u64; 9] = [10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 60_000];
/// Fewer say nothing about a variance: the standard error of ten is half of it.
const WINDOWS_MIN: usize = 10;

impl Statistics {
    /// Looks at instants in order. Panics where they are not sorted.
    pub fn of(instants: &[Instant]) -> Statistics {
        assert!(instants.is_sorted(), "instants come in order");
        let (Some(first), Some(last)) = (instants.first(), instants.last()) else {
            return Statistics { count: 0, length: Duration::ZERO, rate: None, gap_cv: None, windows: Vec::new() };
        };
        let length = last.since(*first);
        let (mean, variance) = gap_moments(instants);
        let has_gaps = mean > 0.0;
        let widths = WIDTHS_MS.map(Duration::from_millis).into_iter().filter(|width| *width <= length);
        Statistics {
            count: instants.len(),
            length,
            rate: has_gaps.then(|| 1e9 / mean),
            gap_cv: has_gaps.then(|| variance.sqrt() / mean),
            windows: widths.map(|width| window(instants, width)).collect(),
        }
    }
}

fn window(instants: &[Instant], width: Duration) -> Window {
    let counts = Counts::of(instants, width);
    let [mean, variance, _] = counts.central_moments();
    let dispersion = (counts.windows >= WINDOWS_MIN).then(|| variance / mean);
    Window { width, counted: counts.windows, dispersion, largest: largest(instants, width) }
}

/// Mean and variance of gaps, in nanoseconds; zeros without any.
pub(super) fn gap_moments(instants: &[Instant]) -> (f64, f64) {
    let gaps = || instants.windows(2).map(|pair| pair[1].since(pair[0]).as_nanos() as f64);
    let number = instants.len().saturating_sub(1).max(1) as f64;
    let mean = gaps().sum::<f64>() / number;
    (mean, gaps().map(|gap| (gap - mean).powi(2)).sum::<f64>() / number)
}

/// Counts in windows side by side. Empty ones are only counted, so that a quiet year costs no memory.
pub(super) struct Counts {
    /// Of the windows that have any, in order.
    occupied: Vec<u32>,
    /// All windows.
    pub windows: usize,
}

impl Counts {
    /// In the windows of this width that lie side by side from the first instant on and end by the last.
    pub(super) fn of(instants: &[Instant], width: Duration) -> Counts {
        let (Some(first), Some(last)) = (instants.first(), instants.last()) else {
            return Counts { occupied: Vec::new(), windows: 0 };
        };
        let width = width.as_nanos() as u64;
        let slot = |at: &Instant| ((at.as_nanos() - first.as_nanos()) / width) as usize;
        let windows = slot(last);
        // What lies in the broken window at the end has no slot.
        let whole = &instants[..instants.partition_point(|at| slot(at) < windows)];
        let occupied = whole.chunk_by(|a, b| slot(a) == slot(b)).map(|together| together.len() as u32).collect();
        Counts { occupied, windows }
    }

    /// Mean, variance and third central moment; zeros without any window.
    pub(super) fn central_moments(&self) -> [f64; 3] {
        let number = self.windows.max(1) as f64;
        let mean = self.occupied.iter().map(|count| f64::from(*count)).sum::<f64>() / number;
        let empty = (self.windows - self.occupied.len()) as f64;
        let moment = |power| {
            let occupied = self.occupied.iter().map(|count| (f64::from(*count) - mean).powi(power)).sum::<f64>();
            (occupied + empty * (-mean).powi(power)) / number
        };
        [mean, moment(2), moment(3)]
    }
}

/// The largest count in a window [t, t + width), wherever t is: a fullest window may as well begin with an instant.
fn largest(instants: &[Instant], width: Duration) -> usize {
    let mut begin = 0;
    let mut largest = 0;
    for (end, at) in instants.iter().enumerate() {
        while at.since(instants[begin]) >= width {
            begin += 1;
        }
        largest = largest.max(end + 1 - begin);
    }
    largest
}
