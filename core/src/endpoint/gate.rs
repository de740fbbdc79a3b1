//! The decision after a stage whether to go deeper.

/// When a stage is worth running after the one before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// Run it if the confidence so far is below this fixed threshold in (0, 1]. Never repriced.
    ConfidenceBelow(f32),
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Run the next stage.
    Deeper,
    /// The answer in hand is good enough.
    Stop,
    /// The confidence is not a number: stop, and count it.
    NotANumber,
}

impl Gate {
    /// Whether an answer of this confidence should go deeper.
    pub fn verdict(self, confidence: f32) -> Verdict {
        let Gate::ConfidenceBelow(threshold) = self;
        if confidence.is_nan() {
            Verdict::NotANumber
        } else if confidence < threshold {
            Verdict::Deeper
        } else {
            Verdict::Stop
        }
    }
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
    fn a_gate_escalates_below_its_threshold_and_never_on_nan() {
        let gate = Gate::ConfidenceBelow(0.9);
        assert_eq!(gate.verdict(0.89), Verdict::Deeper);
        assert_eq!(gate.verdict(0.9), Verdict::Stop);
        assert_eq!(gate.verdict(f32::NAN), Verdict::NotANumber);
    }

    #[test]
    fn the_label_is_the_first_of_the_largest() {
        assert_eq!(label(&[0.1, 0.45, 0.45]), Some((1, 0.45)));
        assert_eq!(label(&[]), None);
        assert!(label(&[0.1, f32::NAN]).unwrap().1.is_nan());
    }
}
