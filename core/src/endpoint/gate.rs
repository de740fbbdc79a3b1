//! The decision after a stage whether to go deeper.

use std::sync::Arc;

use super::gain::GainTable;

/// When a stage is worth running after the one before it.
#[derive(Clone, Debug, PartialEq)]
pub enum Gate {
    /// Run it if the confidence so far is below this fixed threshold in (0, 1]. Never repriced, like the next two.
    ConfidenceBelow(f32),
    /// Run it if the entropy of the class probabilities so far, in nats, is above this.
    EntropyAbove(f32),
    /// Run it if the two largest class probabilities so far differ by less than this, in (0, 1].
    MarginBelow(f32),
    /// Run it if it is expected to gain more than it costs.
    Gain {
        /// By confidence.
        table: Arc<GainTable>,
        /// Less expected gain is not worth the caller's time, however idle the devices are.
        min_gain: f64,
    },
}

impl Gate {
    /// The least gain that is worth a caller's time where nobody says otherwise: one answer more that is right in 500.
    pub const MIN_GAIN: f64 = 0.002;

    /// The number that the gate looks at, from the class probabilities of one row. `None` for no classes; NaN where one of
    /// them is.
    pub fn signal(&self, probabilities: &[f32]) -> Option<f32> {
        match self {
            Gate::ConfidenceBelow(_) | Gate::Gain { .. } => label(probabilities).map(|(_, confidence)| confidence),
            Gate::EntropyAbove(_) => entropy(probabilities),
            Gate::MarginBelow(_) => margin(probabilities),
        }
    }

    /// Whether it needs class probabilities: one number a row does not do.
    pub fn needs_probabilities(&self) -> bool {
        matches!(self, Gate::EntropyAbove(_) | Gate::MarginBelow(_))
    }
}

/// Entropy in nats, −Σ p·ln p.
pub(super) fn entropy(probabilities: &[f32]) -> Option<f32> {
    let nats = |p: &f32| if *p <= 0.0 { 0.0 } else { -p * p.ln() };
    // Which of its terms is not a number does not matter: then the sum is none either.
    let any_nan = probabilities.iter().any(|p| p.is_nan());
    (!probabilities.is_empty()).then(|| if any_nan { f32::NAN } else { probabilities.iter().map(nats).sum() })
}

/// The largest probability less the second largest; the largest where it is the only one.
pub(super) fn margin(probabilities: &[f32]) -> Option<f32> {
    let (label, first) = label(probabilities)?;
    let others = probabilities.iter().enumerate().filter(|(class, _)| *class != label).map(|(_, p)| *p);
    Some(if first.is_nan() { f32::NAN } else { first - others.reduce(f32::max).unwrap_or(0.0) })
}

/// The label (arg-max, the first of equals) and the confidence (maximum) of one row of class probabilities.
/// `None` for no classes; the confidence is NaN where any probability is.
pub fn label(probabilities: &[f32]) -> Option<(usize, f32)> {
    let mut best = (0, *probabilities.first()?);
    for (class, probability) in probabilities.iter().copied().enumerate() {
        if probability.is_nan() {
            return Some((best.0, f32::NAN));
        }
        if probability > best.1 {
            best = (class, probability);
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_is_the_first_of_the_largest() {
        assert_eq!(label(&[0.1, 0.45, 0.45]), Some((1, 0.45)));
        assert_eq!(label(&[]), None);
        assert!(label(&[0.1, f32::NAN]).unwrap().1.is_nan());
    }

    #[test]
    fn each_gate_looks_at_its_number() {
        let row = [0.5, 0.25, 0.25, 0.0];
        assert_eq!(Gate::ConfidenceBelow(0.9).signal(&row), Some(0.5));
        assert_eq!(Gate::MarginBelow(0.9).signal(&row), Some(0.25));
        let entropy = Gate::EntropyAbove(0.1).signal(&row).unwrap();
        assert!((entropy - 1.5 * std::f32::consts::LN_2).abs() < 1e-6, "{entropy}");
        assert_eq!(Gate::MarginBelow(0.9).signal(&[1.0]), Some(1.0));
        for gate in [Gate::ConfidenceBelow(0.9), Gate::MarginBelow(0.9), Gate::EntropyAbove(0.1)] {
            assert_eq!(gate.signal(&[]), None);
            assert!(gate.signal(&[0.5, f32::NAN]).unwrap().is_nan());
            assert!(gate.signal(&[f32::NAN, 0.5]).unwrap().is_nan());
        }
    }
}
