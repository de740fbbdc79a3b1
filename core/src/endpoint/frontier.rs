//! What a cascade gets right and what it costs, by the price of computing time: from rows of which every stage's answer is
//! known. As the price rises the cascade stops earlier. Each point is what its gates do at one of thirty prices and more, as they would
//! when serving: on the lower hull of cost by accuracy (`seed-systems.md` section 11) where the gain tables tell the truth, near it where
//! they are estimates. None is left out for being worse than another. What thresholds do at best is in [`super::thresholds`].

use std::sync::Arc;

use super::gain::{GainTable, Sample};
use super::gate::Gate;
use super::ladder::Ladder;
use super::thresholds::{FixedGate, FixedPoint, of_stages};
use super::{Endpoint, Stage, deeper_costs};

/// What all stages say about one row.
#[derive(Clone, Debug)]
pub struct Known {
    /// By stage: the confidence.
    pub confidences: Vec<f32>,
    /// By stage: whether its answer is right.
    pub right: Vec<bool>,
}

/// A cascade at one price.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// In value a second of slot time.
    pub price: f64,
    /// Share of rows that it gets right.
    pub accuracy: f64,
    /// Slot time a row, in seconds.
    pub seconds: f64,
    /// By stage: share of rows that it answers.
    pub shares: Vec<f64>,
}

/// Gain tables for the gates between the stages of a cascade, the first gate first; the deepest is fitted first, because each
/// says how its rows come out before the next. `None` where there are too few rows.
pub fn calibrate(rows: &[Known]) -> Option<Vec<GainTable>> {
    let stages = rows.first()?.right.len();
    let mut tables: Vec<GainTable> = Vec::new();
    for stage in (0..stages.saturating_sub(1)).rev() {
        let sample = |row: &Known| Sample {
            confidence: row.confidences[stage],
            right: row.right[stage],
            deeper_right: row.right[stage + 1],
            deeper_confidence: row.confidences[stage + 1],
        };
        let samples: Vec<Sample> = rows.iter().map(sample).collect();
        tables.insert(0, GainTable::fit(&samples, tables.first())?);
    }
    Some(tables)
}

/// The endpoint with these tables at its gates; without a least gain, so that the price alone decides.
pub fn with_tables(endpoint: &Endpoint, tables: &[GainTable]) -> Arc<Endpoint> {
    let mut endpoint = endpoint.clone();
    for (stage, table) in endpoint.stages.iter_mut().skip(1).zip(tables) {
        stage.gate = Some(Gate::Gain { table: Arc::new(table.clone()), min_gain: 0.0 });
    }
    Arc::new(endpoint)
}

/// The endpoint with these thresholds; without the stages that are left out.
pub fn with_gates(endpoint: &Endpoint, point: &FixedPoint) -> Arc<Endpoint> {
    let gates = std::iter::once(&FixedGate::Always).chain(&point.gates);
    let kept = point.stages.iter().zip(gates).map(|(stage, gate)| {
        let gate = match gate {
            FixedGate::Below(threshold) => Some(Gate::ConfidenceBelow(*threshold)),
            FixedGate::Always => None,
        };
        Stage { gate, ..endpoint.stages[*stage].clone() }
    });
    Arc::new(Endpoint { stages: kept.collect(), ..endpoint.clone() })
}

/// What the cascade does with `rows` with these thresholds; `seconds` and the shares that it answers are of all stages, also of those that are
/// left out.
pub fn at_gates(endpoint: &Endpoint, point: &FixedPoint, seconds: &[f64], rows: &[Known]) -> Point {
    let costs: Vec<f64> = point.stages.iter().map(|stage| seconds[*stage]).collect();
    let kept = at_price(&with_gates(endpoint, point), 0.0, &costs, &of_stages(rows, &point.stages));
    let mut shares = vec![0.0; seconds.len()];
    point.stages.iter().zip(&kept.shares).for_each(|(stage, share)| shares[*stage] = *share);
    Point { shares, ..kept }
}

/// What the cascade does with `rows` at a price. `seconds`: slot time of a row, by stage; of stages that the endpoint does not have
/// nothing is asked.
pub fn at_price(endpoint: &Arc<Endpoint>, price: f64, seconds: &[f64], rows: &[Known]) -> Point {
    let ladder = Ladder::new(Arc::clone(endpoint), price, seconds);
    let stages = endpoint.stages.len();
    let (mut right, mut answered, mut time) = (0, vec![0u32; seconds.len()], 0.0);
    for row in rows {
        let mut stage = 0;
        while stage + 1 < stages && ladder.verdict(stage + 1, Some(row.confidences[stage])).0.is_deeper() {
            stage += 1;
        }
        answered[stage] += 1;
        right += u32::from(row.right[stage]);
        time += seconds[..=stage].iter().sum::<f64>();
    }
    let count = rows.len().max(1) as f64;
    Point {
        price,
        accuracy: f64::from(right) / count,
        seconds: time / count,
        shares: answered.into_iter().map(|rows| f64::from(rows) / count).collect(),
    }
}

/// Points from a price of 0 on, where whatever gains runs, until only the first stage does; those that differ.
pub fn frontier(endpoint: &Arc<Endpoint>, seconds: &[f64], rows: &[Known]) -> Vec<Point> {
    let mut points = vec![at_price(endpoint, 0.0, seconds, rows)];
    let (cheapest, dearest) = deeper_costs(seconds);
    let dear = endpoint.too_dear(seconds);
    // Three decades of prices below the one at which the dearest stage is worth its time to nobody, up to that at which none is, ten steps each.
    let steps = 30 + ((dearest / cheapest).log10() * 10.0).ceil() as i32;
    for step in (0..=steps).rev() {
        let point = at_price(endpoint, dear * 10f64.powf(f64::from(-step) / 10.0), seconds, rows);
        if points.last().is_some_and(|last| last.shares != point.shares) {
            points.push(point);
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::super::tests::endpoint;
    use super::super::thresholds::{FixedFrontier, Goal};
    use super::*;
    use crate::prng::Prng;

    const SECONDS: [f64; 3] = [1e-6, 4e-6, 30e-6];

    /// Rows of a difficulty; deeper stages get harder ones right, and confidences follow the difficulty with some noise.
    fn rows(count: usize, seed: u64) -> Vec<Known> {
        let mut prng = Prng::new(seed);
        let row = |prng: &mut Prng| {
            let difficulty = prng.uniform();
            let skills = [0.7, 0.85, 0.95];
            let confidences = skills.map(|skill| {
                let sure = 1.0 - difficulty / skill * 0.5 + 0.1 * (prng.uniform() - 0.5);
                sure.clamp(0.0, 1.0) as f32
            });
            Known { confidences: confidences.to_vec(), right: skills.map(|skill| difficulty < skill).to_vec() }
        };
        (0..count).map(|_| row(&mut prng)).collect()
    }

    fn calibrated(rows: &[Known]) -> Arc<Endpoint> {
        with_tables(&endpoint(&[("a", None), ("b", None), ("c", None)]), &calibrate(rows).unwrap())
    }

    #[test]
    fn from_the_deepest_answers_to_the_first_stage_alone() {
        let known = rows(4000, 1);
        let endpoint = calibrated(&known);
        let points = frontier(&endpoint, &SECONDS, &known);
        assert!(points.len() > 8, "{}", points.len());
        assert!(points.windows(2).all(|pair| pair[0].seconds >= pair[1].seconds - 1e-12), "{points:?}");
        let (free, dear) = (&points[0], points.last().unwrap());
        assert!((free.accuracy - 0.95).abs() < 0.02 && dear.shares == [1.0, 0.0, 0.0], "{free:?} {dear:?}");
        assert!((dear.seconds / SECONDS[0] - 1.0).abs() < 1e-9);
    }

    /// Where the deepest stage takes ten thousand times as long as the one before it, it gives way at prices that are so much lower.
    #[test]
    fn stages_far_apart_give_way_one_after_the_other() {
        let known = rows(4000, 4);
        let endpoint = calibrated(&known);
        let points = frontier(&endpoint, &[1e-6, 2e-6, 2e-2], &known);
        let partly = |stage: usize| points.iter().filter(|point| (0.02..0.98).contains(&point.shares[stage])).count();
        assert!(partly(2) > 5 && partly(1) > 5, "{points:?}");
        assert!(points.windows(2).all(|pair| pair[0].price < pair[1].price));
    }

    /// Prices know the tables alone, and thresholds these rows.
    #[test]
    fn prices_come_near_the_best_thresholds() {
        let known = rows(3000, 2);
        let endpoint = calibrated(&known);
        let fixed = FixedFrontier::of(&known, &SECONDS, &[true; 3]);
        assert_eq!(fixed.off_by(), 0.0);
        // What gains nothing runs too, as long as it costs nothing.
        for point in &frontier(&endpoint, &SECONDS, &known)[1..] {
            let best = fixed.best(Goal::Accuracy(point.accuracy)).unwrap();
            assert!(point.seconds <= 1.1 * best.seconds, "{point:?} {best:?}");
        }
    }

    /// What is told of thresholds is what gates that have them do.
    #[test]
    fn thresholds_reach_what_was_asked_as_gates() {
        let known = rows(3000, 3);
        let cascade = endpoint(&[("a", None), ("b", None), ("c", None)]);
        let fixed = FixedFrontier::of(&known, &SECONDS, &[true; 3]);
        let at = |point: &FixedPoint| at_gates(&cascade, point, &SECONDS, &known);
        for point in fixed.points() {
            let done = at(point);
            assert!(
                done.accuracy == point.accuracy && (done.seconds - point.seconds).abs() < 1e-12,
                "{done:?} {point:?}"
            );
        }
        let found = at(fixed.best(Goal::Accuracy(0.92)).unwrap());
        assert!(found.accuracy >= 0.92 && found.accuracy < 0.921, "{found:?}");
        let found = at(fixed.best(Goal::Seconds(8e-6)).unwrap());
        assert!(found.seconds <= 8e-6 && found.seconds > 7.9e-6, "{found:?}");
        let first = &fixed.points()[0];
        assert_eq!(with_gates(&cascade, first).stages.len(), 1, "what nothing goes on to is left out");
        assert_eq!(at(first).shares, [1.0, 0.0, 0.0]);
        let middle = FixedPoint { stages: vec![0, 2], gates: vec![FixedGate::Below(0.6)], accuracy: 0.0, seconds: 0.0 };
        let done = at(&middle);
        assert!(done.shares[1] == 0.0 && done.shares[2] > 0.0, "{done:?}");
        assert!((done.seconds - SECONDS[0] - done.shares[2] * SECONDS[2]).abs() < 1e-12, "{done:?}");
    }
}
