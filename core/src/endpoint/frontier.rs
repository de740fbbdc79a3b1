//! What a cascade gets right and what it costs, by the price of computing time: from rows of which every stage's answer is
//! known. As the price rises the cascade stops earlier; the points are the lower hull of cost by accuracy (`seed-systems.md`
//! section 11), as far as the gain tables tell the truth.

use std::sync::Arc;

use super::Endpoint;
use super::gain::{GainTable, Sample};
use super::gate::Gate;
use super::ladder::Ladder;

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

/// What the cascade does with `rows` at a price. `seconds`: slot time of a row, by stage.
pub fn at_price(endpoint: &Arc<Endpoint>, price: f64, seconds: &[f64], rows: &[Known]) -> Point {
    let ladder = Ladder::new(Arc::clone(endpoint), price, seconds);
    let stages = endpoint.stages.len();
    let (mut right, mut answered, mut time) = (0, vec![0u32; stages], 0.0);
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
    let dear = endpoint.too_dear(seconds);
    // Three decades of prices below the one at which nothing is worth its time, ten steps each.
    for step in 0..=30 {
        let point = at_price(endpoint, dear * 10f64.powf(f64::from(step) / 10.0 - 3.0), seconds, rows);
        if points.last().is_some_and(|last| last.shares != point.shares) {
            points.push(point);
        }
    }
    points
}

/// The highest price at which the cascade still gets `accuracy` right, to a thousandth; `None` where it never does.
pub fn cheapest_for(endpoint: &Arc<Endpoint>, seconds: &[f64], rows: &[Known], accuracy: f64) -> Option<Point> {
    let good = |price: f64| Some(at_price(endpoint, price, seconds, rows)).filter(|point| point.accuracy >= accuracy);
    let mut best = good(0.0)?;
    let (mut low, mut high) = (0.0, endpoint.too_dear(seconds));
    if let Some(point) = good(high) {
        return Some(point);
    }
    while high - low > 1e-3 * high {
        let middle = f64::midpoint(low, high);
        match good(middle) {
            Some(point) => (best, low) = (point, middle),
            None => high = middle,
        }
    }
    Some(best)
}

/// The confidence below which each gate goes on at a price, the first gate first; 0 where it never does.
pub fn thresholds(endpoint: &Arc<Endpoint>, price: f64, seconds: &[f64]) -> Vec<f32> {
    let ladder = Ladder::new(Arc::clone(endpoint), price, seconds);
    let goes_on = |stage: usize, confidence: f32| ladder.verdict(stage, Some(confidence)).0.is_deeper();
    let highest = |stage: usize| (1..=1000).rev().map(|step| step as f32 / 1000.0).find(|c| goes_on(stage, *c));
    (1..endpoint.stages.len()).map(|stage| highest(stage).unwrap_or(0.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::endpoint;
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

    /// Thresholds tuned by brute force on the same rows are no better than the price by more than a little.
    #[test]
    fn a_target_costs_what_the_best_thresholds_cost() {
        let known = rows(3000, 2);
        let endpoint = calibrated(&known);
        let found = cheapest_for(&endpoint, &SECONDS, &known, 0.93).unwrap();
        assert!(found.accuracy >= 0.93);
        let cost = |first: f32, second: f32| {
            let (mut right, mut seconds) = (0.0, 0.0);
            for row in &known {
                let stage = match (row.confidences[0] < first, row.confidences[1] < second) {
                    (false, _) => 0,
                    (true, false) => 1,
                    (true, true) => 2,
                };
                right += f64::from(u8::from(row.right[stage]));
                seconds += SECONDS[..=stage].iter().sum::<f64>();
            }
            (right / known.len() as f64, seconds / known.len() as f64)
        };
        let grid = (0..=50).flat_map(|i| (0..=50).map(move |j| (i as f32 / 50.0, j as f32 / 50.0)));
        let best = grid.map(|(a, b)| cost(a, b)).filter(|(right, _)| *right >= 0.93).map(|(_, cost)| cost);
        let best = best.fold(f64::INFINITY, f64::min);
        assert!(found.seconds <= 1.03 * best, "{} against {best}", found.seconds);
        assert!(cheapest_for(&endpoint, &SECONDS, &known, 0.999).is_none());
        assert_eq!(cheapest_for(&endpoint, &SECONDS, &known, 0.1).unwrap().shares, [1.0, 0.0, 0.0]);
    }

    #[test]
    fn thresholds_do_what_the_price_does() {
        let known = rows(3000, 3);
        let endpoint = calibrated(&known);
        let point = cheapest_for(&endpoint, &SECONDS, &known, 0.92).unwrap();
        let below = thresholds(&endpoint, point.price, &SECONDS);
        let stops = known.iter().filter(|row| row.confidences[0] >= below[0]).count() as f64 / known.len() as f64;
        assert!((stops - point.shares[0]).abs() < 0.02, "{stops} {:?}", point.shares);
    }
}
