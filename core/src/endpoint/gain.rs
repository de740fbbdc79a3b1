//! What the next stage is expected to gain, by what is known after this one: the table behind a gate by gain.
//!
//! The gain of a deeper stage is P(deeper right, this one wrong) − P(this one right, deeper wrong), given the confidence of this
//! one (`scheduling.md` section 16; doubt alone would send on what the deeper stage gets wrong too). It is estimated from rows
//! of which both answers are known: bins of equally many rows by confidence, their means made regular by isotonic
//! regression. The regular shape has one top: deep stages help most where the shallow one is unsure, and less and less where it
//! is sure, but also less where a row is hopeless for both. Between bins it is read along straight lines.

mod text;

/// Bins of a table at most, and rows of one at least: fewer say nothing.
const BINS_MAX: usize = 32;
const ROWS_MIN: usize = 20;

/// A row of which the answers of a stage and of the next one are known.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Of this stage.
    pub confidence: f32,
    /// Whether this stage's answer is right.
    pub right: bool,
    /// Whether the next stage's answer is.
    pub deeper_right: bool,
    /// Of the next stage; NaN where it has none.
    pub deeper_confidence: f32,
}

/// Rows of neighbouring confidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Bin {
    /// Their mean confidence.
    pub confidence: f32,
    /// How many there were.
    pub rows: u32,
    /// Share of them that this stage gets right; never falls from one bin to the next.
    pub right: f64,
    /// Expected gain of the next stage.
    pub gain: f64,
    /// Standard error of the gain before it was made regular.
    pub error: f64,
    /// Share of them by the bin of the table behind the next stage in which they come out; empty where there is none.
    pub next: Vec<f32>,
}

/// Expected gain by confidence.
#[derive(Clone, Debug, PartialEq)]
pub struct GainTable {
    /// Ascending by confidence, at least one.
    bins: Vec<Bin>,
}

/// A table that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadTable(String);

impl GainTable {
    /// A table of these bins; they ascend by confidence.
    pub fn new(bins: Vec<Bin>) -> Result<GainTable, BadTable> {
        let bad = |what: String| Err(BadTable(what));
        if bins.is_empty() {
            return bad("it has no bins".into());
        }
        for (i, bin) in bins.iter().enumerate() {
            if !bin.confidence.is_finite() || i > 0 && bin.confidence <= bins[i - 1].confidence {
                return bad(format!("confidences must ascend; that of bin {} does not", i + 1));
            }
            let shares = (-1.0..=1.0).contains(&bin.gain) && (0.0..=1.0).contains(&bin.right);
            if !(shares && bin.error >= 0.0 && bin.error.is_finite()) {
                return bad(format!(
                    "bin {}: a gain lies within -1 and 1, a share within 0 and 1, an error is not negative",
                    i + 1
                ));
            }
            let shares: f64 = bin.next.iter().map(|share| f64::from(*share)).sum();
            let shared = bin.next.iter().all(|share| *share >= 0.0) && (shares - 1.0).abs() < 1e-3;
            if bin.next.len() != bins[0].next.len() || !bin.next.is_empty() && !shared {
                return bad(format!(
                    "bin {}: its shares of the next table must be as many as elsewhere, and add up to 1",
                    i + 1
                ));
            }
        }
        Ok(GainTable { bins })
    }

    /// Fits a table to rows of which both answers are known. `next`: the table behind the next stage. Rows whose confidence
    /// is not a finite number say nothing. `None` where fewer than some twenty are left.
    pub fn fit(samples: &[Sample], next: Option<&GainTable>) -> Option<GainTable> {
        let mut samples: Vec<&Sample> = samples.iter().filter(|sample| sample.confidence.is_finite()).collect();
        samples.sort_by(|a, b| a.confidence.total_cmp(&b.confidence));
        let groups = groups(&samples);
        if groups.is_empty() {
            return None;
        }
        let means = |value: &dyn Fn(&Sample) -> f64| -> Vec<f64> {
            groups.iter().map(|rows| rows.iter().map(|row| value(row)).sum::<f64>() / rows.len() as f64).collect()
        };
        let weights: Vec<f64> = groups.iter().map(|rows| rows.len() as f64).collect();
        let gain_of = |row: &Sample| f64::from(u8::from(row.deeper_right)) - f64::from(u8::from(row.right));
        let raw = means(&gain_of);
        let squares = means(&|row| gain_of(row).powi(2));
        let gains = with_one_top(&raw, &weights);
        let right = rising(&means(&|row| f64::from(u8::from(row.right))), &weights);
        let confidences = means(&|row| f64::from(row.confidence));
        let bins = groups.iter().enumerate().map(|(i, rows)| Bin {
            confidence: confidences[i] as f32,
            rows: rows.len() as u32,
            right: right[i],
            gain: gains[i],
            // With the one row more of a prior that is right as often as wrong, so that no bin is sure of nothing.
            error: (((squares[i] - raw[i].powi(2)).max(0.0) * weights[i] + 0.5) / (weights[i] + 1.0) / weights[i])
                .sqrt(),
            next: next.map_or_else(Vec::new, |next| shares(rows, next)),
        });
        Some(GainTable::new(bins.collect()).expect("bins of ascending confidence, their means, and shares of all rows"))
    }

    /// The bins, ascending by confidence.
    pub fn bins(&self) -> &[Bin] {
        &self.bins
    }

    /// The gain by confidence; for what is not a number, the mean over all rows.
    pub fn gain(&self, confidence: f32) -> f64 {
        self.read(confidence, |i| self.bins[i].gain)
    }

    /// The share that the shallow stage gets right by confidence; for what is not a number, over all rows.
    pub fn right(&self, confidence: f32) -> f64 {
        self.read(confidence, |i| self.bins[i].right)
    }

    /// What has a value in each bin, read at `confidence`: along straight lines between bins, level beyond them, and the mean
    /// over all rows for what is not a number.
    pub fn read(&self, confidence: f32, value: impl Fn(usize) -> f64) -> f64 {
        if confidence.is_nan() {
            let rows = self.bins.iter().map(|bin| f64::from(bin.rows)).sum::<f64>().max(1.0);
            return self.bins.iter().enumerate().map(|(i, bin)| value(i) * f64::from(bin.rows)).sum::<f64>() / rows;
        }
        let after = self.bins.partition_point(|bin| bin.confidence < confidence);
        if after == 0 {
            return value(0);
        }
        let Some(high) = self.bins.get(after) else { return value(after - 1) };
        let low = &self.bins[after - 1];
        let way = f64::from(confidence - low.confidence) / f64::from(high.confidence - low.confidence);
        value(after - 1) + way * (value(after) - value(after - 1))
    }

    /// The bin whose confidence is nearest.
    fn nearest(&self, confidence: f32) -> usize {
        let after = self.bins.partition_point(|bin| bin.confidence < confidence);
        match (after.checked_sub(1), self.bins.get(after)) {
            (Some(low), Some(high)) => {
                if confidence - self.bins[low].confidence <= high.confidence - confidence {
                    low
                } else {
                    after
                }
            }
            (Some(low), None) => low,
            (None, _) => 0,
        }
    }
}

/// Rows in groups of about equal size, equal confidences in one group. None where there are too few rows.
fn groups<'a, 'b>(sorted: &'a [&'b Sample]) -> Vec<&'a [&'b Sample]> {
    let mut groups: Vec<&[&Sample]> = Vec::new();
    if sorted.len() < ROWS_MIN {
        return groups;
    }
    let size = sorted.len().div_ceil(BINS_MAX).max(ROWS_MIN);
    let mut rest = sorted;
    while !rest.is_empty() {
        let mut end = size.min(rest.len());
        let last = rest[end - 1].confidence;
        end += rest[end..].iter().take_while(|sample| sample.confidence == last).count();
        // What would be left is too little for a group of its own.
        if rest.len() - end < ROWS_MIN {
            end = rest.len();
        }
        let (group, others) = rest.split_at(end);
        groups.push(group);
        rest = others;
    }
    groups
}

/// Share of the rows by the bin of the next table in which they come out.
fn shares(rows: &[&Sample], next: &GainTable) -> Vec<f32> {
    let mut counts = vec![0u32; next.bins.len()];
    for row in rows {
        // What is no number is read as the mean there; the middle bin stands for it.
        let bin =
            if row.deeper_confidence.is_nan() { next.bins.len() / 2 } else { next.nearest(row.deeper_confidence) };
        counts[bin] += 1;
    }
    counts.into_iter().map(|count| (f64::from(count) / rows.len() as f64) as f32).collect()
}

/// Isotonic regression: the values nearest to `values` (weighted squares) that never fall. Pool adjacent violators (Ayer et
/// al. 1955).
fn rising(values: &[f64], weights: &[f64]) -> Vec<f64> {
    // (mean, weight, how many)
    let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
    for (value, weight) in values.iter().zip(weights) {
        let mut block = (*value, *weight, 1);
        while let Some(last) = blocks.last().filter(|last| last.0 > block.0) {
            let weight = last.1 + block.1;
            block = ((last.0 * last.1 + block.0 * block.1) / weight, weight, last.2 + block.2);
            blocks.pop();
        }
        blocks.push(block);
    }
    blocks.into_iter().flat_map(|(mean, _, count)| std::iter::repeat_n(mean, count)).collect()
}

/// Likewise, for values that rise to one top and fall from there on; the top is where that fits best.
fn with_one_top(values: &[f64], weights: &[f64]) -> Vec<f64> {
    let falling = |values: &[f64], weights: &[f64]| -> Vec<f64> {
        let (mut values, mut weights) = (values.to_vec(), weights.to_vec());
        values.reverse();
        weights.reverse();
        let mut fitted = rising(&values, &weights);
        fitted.reverse();
        fitted
    };
    let fits = (0..values.len()).map(|top| {
        let mut fitted = rising(&values[..top], &weights[..top]);
        fitted.extend(falling(&values[top..], &weights[top..]));
        let off: f64 = fitted.iter().zip(values).zip(weights).map(|((f, v), w)| w * (f - v).powi(2)).sum();
        (off, fitted)
    });
    // Of equal fits the one with the top furthest left: falling throughout unless the data say otherwise.
    fits.reduce(|best, other| if other.0 < best.0 - 1e-12 { other } else { best }).map_or_else(Vec::new, |(_, fit)| fit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prng::Prng;

    /// Rows whose gain is 0.6 at confidence 0 and falls to −0.02 at 1.
    fn samples(count: usize, seed: u64) -> Vec<Sample> {
        let mut prng = Prng::new(seed);
        let row = |prng: &mut Prng| {
            let confidence = prng.uniform() as f32;
            let right = prng.uniform() < 0.3 + 0.68 * f64::from(confidence);
            // Right in 90 % of what this stage has wrong, wrong in 3 % of what it has right.
            let deeper_right = prng.uniform() < if right { 0.97 } else { 0.9 };
            Sample { confidence, right, deeper_right, deeper_confidence: prng.uniform() as f32 }
        };
        (0..count).map(|_| row(&mut prng)).collect()
    }

    fn truth(confidence: f64) -> f64 {
        let right = 0.3 + 0.68 * confidence;
        0.9 * (1.0 - right) - 0.03 * right
    }

    #[test]
    fn a_table_finds_the_gain_that_rows_were_made_with() {
        let table = GainTable::fit(&samples(20_000, 1), None).unwrap();
        assert_eq!(table.bins().len(), BINS_MAX);
        for confidence in [0.05, 0.3, 0.5, 0.7, 0.95] {
            let (read, true_gain) = (table.gain(confidence), truth(f64::from(confidence)));
            assert!((read - true_gain).abs() < 0.04, "{confidence}: {read} for {true_gain}");
            let right = table.right(confidence);
            assert!((right - 0.3 - 0.68 * f64::from(confidence)).abs() < 0.05, "{right}");
        }
        let gains: Vec<f64> = table.bins().iter().map(|bin| bin.gain).collect();
        assert!(gains.windows(2).all(|pair| pair[0] >= pair[1]), "{gains:?}");
        assert!(table.bins().iter().all(|bin| bin.error > 0.0 && bin.error < 0.04));
    }

    #[test]
    fn errors_cover_the_truth_as_often_as_they_say() {
        let (mut within, mut all) = (0, 0);
        for seed in 0..20 {
            for bin in GainTable::fit(&samples(2_000, seed), None).unwrap().bins() {
                within += u32::from((bin.gain - truth(f64::from(bin.confidence))).abs() < 2.0 * bin.error);
                all += 1;
            }
        }
        // Two standard errors cover 95 %, and regular values lie nearer than raw ones.
        assert!(f64::from(within) > 0.95 * f64::from(all), "{within} of {all}");
    }

    #[test]
    fn what_is_hopeless_for_both_gains_less_than_what_is_unsure() {
        let (values, weights) = ([0.0, 0.1, 0.3, 0.28, 0.32, 0.1, 0.0], [1.0; 7]);
        let fitted = with_one_top(&values, &weights);
        let top = (0..7).max_by(|a, b| fitted[*a].total_cmp(&fitted[*b])).unwrap();
        assert!(fitted[..=top].windows(2).all(|pair| pair[0] <= pair[1]), "{fitted:?}");
        assert!(fitted[top..].windows(2).all(|pair| pair[0] >= pair[1]), "{fitted:?}");
        assert!(fitted[0] < 0.05, "the low end is not lifted to the top");
    }

    #[test]
    fn what_is_not_a_number_gains_the_mean() {
        let table = GainTable::fit(&samples(5_000, 3), None).unwrap();
        let mean = 0.9 - 0.93 * (0.3 + 0.34);
        assert!((table.gain(f32::NAN) - mean).abs() < 0.02, "{}", table.gain(f32::NAN));
        assert_eq!(table.gain(-5.0), table.bins()[0].gain);
        assert_eq!(table.gain(5.0), table.bins().last().unwrap().gain);
    }

    #[test]
    fn shares_of_the_next_table_add_up() {
        let next = GainTable::fit(&samples(3_000, 4), None).unwrap();
        let mut rows = samples(3_000, 5);
        rows[7].deeper_confidence = f32::NAN;
        let table = GainTable::fit(&rows, Some(&next)).unwrap();
        for bin in table.bins() {
            assert_eq!(bin.next.len(), next.bins().len());
            assert!((bin.next.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }
        assert!(GainTable::new(table.bins().to_vec()).is_ok());
    }

    /// As f32, a 200,000th that is added 200,000 times is 0.998 or 1.002.
    #[test]
    fn many_rows_of_one_confidence_make_a_table_that_is_read_again() {
        let next = GainTable::fit(&samples(3_000, 6), None).unwrap();
        let row = Sample { confidence: 1.0, right: true, deeper_right: true, deeper_confidence: 0.9 };
        let table = GainTable::fit(&vec![row; 200_000], Some(&next)).unwrap();
        assert_eq!(table.bins()[0].next.iter().sum::<f32>(), 1.0);
        assert_eq!(GainTable::from_csv(&table.to_csv()), Ok(table));
    }

    #[test]
    fn bins_ascend_however_near_confidences_are() {
        let mut rows = samples(2_000, 7);
        let near = [1.0f32, 1.0f32.next_down(), 1.0f32.next_down().next_down()];
        rows.iter_mut().enumerate().for_each(|(i, row)| row.confidence = near[i % 3]);
        assert_eq!(GainTable::fit(&rows, None).unwrap().bins().len(), 3);
    }

    #[test]
    fn few_rows_make_no_table_and_equal_ones_a_bin() {
        assert!(GainTable::fit(&samples(ROWS_MIN - 1, 1), None).is_none());
        let mut rows = samples(500, 1);
        rows.iter_mut().for_each(|row| row.confidence = 0.5);
        assert_eq!(GainTable::fit(&rows, None).unwrap().bins().len(), 1);
        rows.iter_mut().for_each(|row| row.confidence = f32::NAN);
        assert!(GainTable::fit(&rows, None).is_none());
        let mut some = samples(500, 2);
        some[3].confidence = f32::INFINITY;
        some[4].confidence = f32::NEG_INFINITY;
        assert!(GainTable::fit(&some, None).unwrap().bins().iter().all(|bin| bin.confidence.is_finite()));
    }

    #[test]
    fn what_is_no_table_is_told() {
        let bin = |confidence, gain| Bin { confidence, rows: 9, right: 0.5, gain, error: 0.1, next: Vec::new() };
        assert!(GainTable::new(vec![bin(0.1, 0.2), bin(0.5, -0.1)]).is_ok());
        let mistakes = [
            (vec![], "no bins"),
            (vec![bin(0.5, 0.1), bin(0.5, 0.1)], "ascend"),
            (vec![bin(f32::NAN, 0.1)], "ascend"),
            (vec![bin(0.5, f64::NAN)], "gain"),
            (vec![Bin { next: vec![0.5, 0.4], ..bin(0.5, 0.1) }], "add up"),
        ];
        for (bins, word) in mistakes {
            let said = GainTable::new(bins).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }

    proptest! {
        #[test]
        fn regular_values_are_the_nearest_that_never_fall(
            values in prop::collection::vec(0.0..1.0f64, 1..6),
            grid in prop::collection::vec(prop::collection::vec(0.0..1.0f64, 6), 20),
        ) {
            let weights: Vec<f64> = (1..=values.len()).map(|w| w as f64).collect();
            let off = |fit: &[f64]| -> f64 { fit.iter().zip(&values).zip(&weights).map(|((f, v), w)| w * (f - v).powi(2)).sum() };
            let fitted = rising(&values, &weights);
            prop_assert!(fitted.windows(2).all(|pair| pair[0] <= pair[1]));
            for mut other in grid {
                other.truncate(values.len());
                other.sort_by(f64::total_cmp);
                prop_assert!(off(&fitted) <= off(&other) + 1e-12);
            }
        }
    }
}
