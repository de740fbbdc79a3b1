//! What each model may ask of slots that cannot serve everybody.

/// The most that each may have, when all that ask for less get what they ask for and the others share the rest evenly (max-min
/// fairness); infinite where there is enough for all.
pub(super) fn level(slots: f64, asked: impl Iterator<Item = f64> + Clone) -> f64 {
    let mut level = 0.0;
    loop {
        // Those below it leave more to the others than an even part, which lifts it, perhaps above more of them.
        let (mut left, mut above) = (slots, 0.0);
        for asked in asked.clone() {
            if asked <= level {
                left -= asked;
            } else {
                above += 1.0;
            }
        }
        if above == 0.0 {
            return f64::INFINITY;
        }
        if left / above <= level {
            return level;
        }
        level = left / above;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_asks_for_little_gets_it_and_the_others_share_the_rest() {
        let level = |slots, asked: &[f64]| level(slots, asked.iter().copied());
        assert_eq!(level(1.0, &[0.9, 0.25, 0.125]), 0.625);
        assert_eq!(level(1.0, &[0.9, 0.25, 0.9]), 0.375);
        assert_eq!(level(1.0, &[0.5, 0.2]), f64::INFINITY);
        assert_eq!(level(2.0, &[]), f64::INFINITY);
    }

    proptest! {
        #[test]
        fn all_that_there_is_is_shared_where_it_is_not_enough(
            slots in 1..5u32,
            asked in prop::collection::vec(0.0..3.0f64, 0..20),
        ) {
            let slots = f64::from(slots);
            let level = level(slots, asked.iter().copied());
            let sum: f64 = asked.iter().map(|asked| asked.min(level)).sum();
            let shared = if level.is_infinite() { sum <= slots + 1e-9 } else { (sum - slots).abs() < 1e-9 };
            prop_assert!(shared, "{sum} of {slots} up to {level}");
        }
    }
}
