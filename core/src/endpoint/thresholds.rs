//! The best fixed thresholds of a cascade, over rows of which every stage's answer is known: what they get right at best for what they
//! cost (`seed-systems.md` section 11).
//!
//! Thresholds between two neighbouring confidences do the same with these rows, so a gate has as many choices as rows. Of these few
//! are worth a try: where no row just below a threshold gains by going on, the next lower threshold gets as much right for less. All
//! that remain are tried, each with each, the last gate's in one pass. For two stages that is exact always; for three and more as long
//! as it takes fewer than some two hundred million steps, which is part of a second: up to some ten thousand rows of three stages, and
//! some thousands of four, where one row in ten gains. Where it would take more, each gate has fewer choices, and
//! [`FixedFrontier::off_by`] tells how much may be missed.

use super::frontier::Known;

/// Additions that a search may take: some tenths of a second.
const STEPS_MAX: f64 = 2e8;

/// What the gate before a stage does where no price is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FixedGate {
    /// It goes on with nothing: the stage behind it, and what follows, is to be left out.
    Never,
    /// It goes on below this confidence, in (0, 1].
    Below(f32),
    /// It goes on with everything: the stage behind it needs no gate.
    Always,
}

/// What is asked of thresholds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// This share of right answers, at the least cost.
    Accuracy(f64),
    /// As many right answers as can be had for this slot time a row, in seconds.
    Seconds(f64),
}

/// Thresholds than which none get more right for no more time.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedPoint {
    /// Of the second stage first. Behind one that never goes on no other counts; all of those are [`FixedGate::Never`] too.
    pub gates: Vec<FixedGate>,
    /// Share of rows that they get right.
    pub accuracy: f64,
    /// Slot time a row, in seconds.
    pub seconds: f64,
}

/// All of them.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedFrontier {
    points: Vec<FixedPoint>,
    off_by: f64,
}

impl FixedFrontier {
    /// Of a cascade whose stages cost `seconds` of slot time a row. There is at least one row, and each has a confidence and an answer
    /// of every stage.
    pub fn of(rows: &[Known], seconds: &[f64]) -> FixedFrontier {
        Self::within(rows, seconds, STEPS_MAX)
    }

    fn within(rows: &[Known], seconds: &[f64], steps_max: f64) -> FixedFrontier {
        let gates = seconds.len() - 1;
        let all: Vec<Vec<f32>> = (0..gates).map(|gate| worthwhile(rows, gate)).collect();
        let (mut least, mut most) = (1, all.iter().map(Vec::len).max().unwrap_or(0).max(1));
        while least < most {
            let middle = (least + most).div_ceil(2);
            if steps(&all, middle, rows.len()) <= steps_max { least = middle } else { most = middle - 1 }
        }
        let (mut cuts, mut off_by) = (Vec::new(), 0.0);
        for (gate, cut) in all.iter().enumerate() {
            let (kept, missed) = thinned(rows, gate, cut, least);
            cuts.push(kept);
            off_by += missed as f64 / rows.len() as f64;
        }
        let mut search = Search::new(rows, seconds, &cuts);
        let everything: Vec<u32> = (0..rows.len() as u32).collect();
        if gates == 0 {
            let right = rows.iter().filter(|row| row.right[0]).count();
            search.note(right, rows.len() as f64 * seconds[0]);
        } else {
            search.descend(0, &everything, 0, rows.len() as f64 * seconds[0]);
        }
        FixedFrontier { points: search.points(&cuts), off_by }
    }

    /// Cheapest first; accuracy and cost rise.
    pub fn points(&self) -> &[FixedPoint] {
        &self.points
    }

    /// 0 where the search was exact. Else a share of the rows: what is found for a cost gets at most so many fewer right than the best
    /// thresholds, and what is found for an accuracy costs no more than the best thresholds for so much more.
    pub fn off_by(&self) -> f64 {
        self.off_by
    }

    /// The best for a goal; `None` where it cannot be reached.
    pub fn best(&self, goal: Goal) -> Option<&FixedPoint> {
        match goal {
            Goal::Accuracy(least) => self.points.iter().find(|point| point.accuracy >= least),
            Goal::Seconds(most) => self.points.iter().rev().find(|point| point.seconds <= most),
        }
    }
}

/// What a threshold in (0, 1] sees of a confidence: all that is at most 0 goes on below any; at 1 or more, or where it is not a number,
/// nothing does.
fn seen(confidence: f32) -> f32 {
    if confidence.is_nan() { 1.0 } else { confidence.clamp(0.0, 1.0) }
}

/// The confidences up to which a gate may go on in thresholds that are best: there is a row with that confidence which this stage gets
/// wrong and a deeper one right. Ascending.
fn worthwhile(rows: &[Known], gate: usize) -> Vec<f32> {
    let gaining = rows.iter().filter(|row| gains(row, gate));
    let mut cuts: Vec<f32> = gaining.map(|row| seen(row.confidences[gate])).collect();
    cuts.sort_by(f32::total_cmp);
    cuts.dedup();
    cuts
}

fn gains(row: &Known, stage: usize) -> bool {
    !row.right[stage] && row.right[stage + 1..].contains(&true)
}

/// Additions that it takes to try these cuts, `most` of them at each gate.
fn steps(cuts: &[Vec<f32>], most: usize, rows: usize) -> f64 {
    let count = |gate: usize| cuts[gate].len().min(most) as f64;
    let (mut tries, mut steps) = (1.0, rows as f64);
    for gate in 0..cuts.len().saturating_sub(1) {
        steps += tries * rows as f64;
        tries *= count(gate);
    }
    steps + tries * cuts.len().checked_sub(1).map_or(0.0, count)
}

/// At most `most` cuts of a gate; and how many rows gain, at most, between one that is left out and the next lower one kept. With that
/// lower one no more rows go on, so none costs more, and no others get worse.
fn thinned(rows: &[Known], gate: usize, cuts: &[f32], most: usize) -> (Vec<f32>, usize) {
    let size = cuts.len().div_ceil(most).max(1);
    let mut gaining: Vec<f32> =
        rows.iter().filter(|row| gains(row, gate)).map(|row| seen(row.confidences[gate])).collect();
    gaining.sort_by(f32::total_cmp);
    let below = |cut: f32| gaining.partition_point(|confidence| *confidence < cut);
    let groups = cuts.rchunks(size).rev();
    let missed = groups.clone().map(|group| below(group[group.len() - 1]) - below(group[0])).max().unwrap_or(0);
    (groups.map(|group| group[group.len() - 1]).collect(), missed)
}

/// The threshold with the fewest digits between `low` and `high`, as far from both as those allow; `high` where there is none.
fn between(low: f32, high: f32) -> f32 {
    let middle = f64::midpoint(f64::from(low), f64::from(high));
    let rounded = (1..=9).map(|digits| {
        let scale = 10f64.powi(digits);
        ((middle * scale).round() / scale) as f32
    });
    rounded.into_iter().find(|threshold| low < *threshold && *threshold < high).unwrap_or(high)
}

/// What has been tried.
struct Search<'a> {
    rows: &'a [Known],
    seconds: &'a [f64],
    /// By gate and row: the lowest cut with which it goes on; one more than there are where none does. Cuts count from 1; with 0
    /// nothing goes on.
    opens: Vec<Vec<u32>>,
    /// By gate: how many cuts there are.
    cuts: Vec<usize>,
    /// The cuts that are being tried.
    trying: Vec<u32>,
    /// By number of right answers: the least time for all rows in seconds, and the cuts with which that is so.
    least: Vec<f64>,
    chosen: Vec<u32>,
}

/// Rows before the last gate, by the cut with which they go on.
struct Last {
    /// How many, and how many more right answers there are when they go on.
    by_cut: Vec<(u32, i32)>,
    /// Right answers where none of them goes on.
    right: usize,
}

impl<'a> Search<'a> {
    fn new(rows: &'a [Known], seconds: &'a [f64], cuts: &[Vec<f32>]) -> Search<'a> {
        let opens = |(gate, cuts): (usize, &Vec<f32>)| {
            let open = |row: &Known| {
                let confidence = seen(row.confidences[gate]);
                cuts.partition_point(|cut| *cut < confidence) as u32 + 1
            };
            rows.iter().map(open).collect()
        };
        Search {
            rows,
            seconds,
            opens: cuts.iter().enumerate().map(opens).collect(),
            cuts: cuts.iter().map(Vec::len).collect(),
            trying: vec![0; cuts.len()],
            least: vec![f64::INFINITY; rows.len() + 1],
            chosen: vec![0; (rows.len() + 1) * cuts.len()],
        }
    }

    /// What is tried gets `right` answers right and takes `time` for all rows.
    fn note(&mut self, right: usize, time: f64) {
        if time < self.least[right] {
            self.least[right] = time;
            let gates = self.trying.len();
            self.chosen[right * gates..(right + 1) * gates].copy_from_slice(&self.trying);
        }
    }

    /// Tries all cuts from `gate` on for the rows that reach it. Before, others ended with `right` right answers; `time` is what has
    /// run by now.
    fn descend(&mut self, gate: usize, reaching: &[u32], right: usize, time: f64) {
        let last = self.cuts.len() - 1;
        if gate == last {
            let mut behind = Last::new(self.cuts[last]);
            reaching.iter().for_each(|row| behind.add(self.rows, &self.opens[last], *row));
            return self.finish(&behind, right, time);
        }
        self.trying[gate..].fill(0);
        let mut stopped = right + reaching.iter().filter(|row| self.rows[**row as usize].right[gate]).count();
        self.note(stopped, time);
        let mut by_cut: Vec<Vec<u32>> = vec![Vec::new(); self.cuts[gate] + 2];
        reaching.iter().for_each(|row| by_cut[self.opens[gate][*row as usize] as usize].push(*row));
        let mut passing: Vec<u32> = Vec::with_capacity(reaching.len());
        let mut behind = Last::new(self.cuts[last]);
        for (cut, opened) in by_cut[..=self.cuts[gate]].iter().enumerate().skip(1) {
            let mut worthwhile = false;
            for row in opened.iter().copied() {
                let known = &self.rows[row as usize];
                stopped -= usize::from(known.right[gate]);
                worthwhile |= gains(known, gate);
                passing.push(row);
                if gate + 1 == last {
                    behind.add(self.rows, &self.opens[last], row);
                }
            }
            if !worthwhile {
                continue;
            }
            self.trying[gate] = cut as u32;
            let time = time + passing.len() as f64 * self.seconds[gate + 1];
            if gate + 1 == last {
                self.finish(&behind, stopped, time);
            } else {
                self.descend(gate + 1, &passing, stopped, time);
            }
        }
    }

    /// Tries all cuts of the last gate.
    fn finish(&mut self, behind: &Last, right: usize, time: f64) {
        let last = self.cuts.len() - 1;
        self.trying[last] = 0;
        let (mut right, mut gone_on) = (right + behind.right, 0);
        self.note(right, time);
        for (cut, (rows, more)) in behind.by_cut.iter().enumerate().skip(1) {
            if *rows > 0 {
                self.trying[last] = cut as u32;
                gone_on += rows;
                right = right.saturating_add_signed(*more as isize);
                self.note(right, time + f64::from(gone_on) * self.seconds[last + 1]);
            }
        }
    }

    /// Those than which none get more right for no more time, cheapest first.
    fn points(&self, cuts: &[Vec<f32>]) -> Vec<FixedPoint> {
        let (count, gates) = (self.rows.len() as f64, cuts.len());
        let ways: Vec<Vec<FixedGate>> = (0..gates).map(|gate| ways(self.rows, gate, &cuts[gate])).collect();
        let told = |chosen: &[u32]| {
            let ended = chosen.iter().position(|cut| *cut == 0).unwrap_or(gates);
            let gate =
                |(gate, cut): (usize, &u32)| if gate < ended { ways[gate][*cut as usize] } else { FixedGate::Never };
            chosen.iter().enumerate().map(gate).collect()
        };
        let mut points = Vec::new();
        let mut least = f64::INFINITY;
        for (right, time) in self.least.iter().enumerate().rev() {
            // The same times may differ in their last digit by the order in which they were added.
            if *time < least * (1.0 - 1e-12) {
                least = *time;
                let gates = told(&self.chosen[right * gates..(right + 1) * gates]);
                points.push(FixedPoint { gates, accuracy: right as f64 / count, seconds: time / count });
            }
        }
        points.reverse();
        points
    }
}

/// By cut: what the gate does with it.
fn ways(rows: &[Known], gate: usize, cuts: &[f32]) -> Vec<FixedGate> {
    let mut sorted: Vec<f32> = rows.iter().map(|row| seen(row.confidences[gate])).collect();
    sorted.sort_by(f32::total_cmp);
    let way = |cut: &f32| match sorted.get(sorted.partition_point(|confidence| confidence <= cut)) {
        Some(next) => FixedGate::Below(between(*cut, *next)),
        None => FixedGate::Always,
    };
    std::iter::once(FixedGate::Never).chain(cuts.iter().map(way)).collect()
}

impl Last {
    fn new(cuts: usize) -> Last {
        Last { by_cut: vec![(0, 0); cuts + 1], right: 0 }
    }

    fn add(&mut self, rows: &[Known], opens: &[u32], row: u32) {
        let right = &rows[row as usize].right;
        let (here, deeper) = (right[right.len() - 2], right[right.len() - 1]);
        self.right += usize::from(here);
        if let Some((rows, more)) = self.by_cut.get_mut(opens[row as usize] as usize) {
            *rows += 1;
            *more += i32::from(deeper) - i32::from(here);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prng::Prng;

    const SECONDS: [f64; 5] = [1e-6, 3e-6, 10e-6, 31e-6, 97e-6];

    /// What thresholds do, as their documentation has it: share of right answers and time.
    fn told(rows: &[Known], gates: &[FixedGate], seconds: &[f64]) -> (f64, f64) {
        let (mut right, mut time) = (0, 0.0);
        for row in rows {
            let goes_on = |gate: usize| match gates[gate] {
                FixedGate::Never => false,
                FixedGate::Below(threshold) => row.confidences[gate] < threshold,
                FixedGate::Always => true,
            };
            let stage = (0..gates.len()).find(|gate| !goes_on(*gate)).unwrap_or(gates.len());
            right += usize::from(row.right[stage]);
            time += seconds[..=stage].iter().sum::<f64>();
        }
        (right as f64 / rows.len() as f64, time / rows.len() as f64)
    }

    /// All that thresholds can do.
    fn brute_force(rows: &[Known], seconds: &[f64]) -> Vec<(f64, f64)> {
        let choices = |gate: usize| {
            let observed = rows.iter().map(|row| row.confidences[gate]).filter(|c| *c > 0.0 && *c <= 1.0);
            let below = observed.chain([f32::MIN_POSITIVE, 1.0]).map(FixedGate::Below);
            below.chain([FixedGate::Never, FixedGate::Always]).collect::<Vec<_>>()
        };
        let mut all = vec![Vec::new()];
        for gate in 0..seconds.len() - 1 {
            let longer = |gates: &Vec<FixedGate>| {
                let gates = gates.clone();
                choices(gate).into_iter().map(move |choice| [gates.clone(), vec![choice]].concat())
            };
            all = all.iter().flat_map(longer).collect();
        }
        all.iter().map(|gates| told(rows, gates, seconds)).collect()
    }

    fn row(stages: usize) -> impl Strategy<Value = Known> {
        // Few confidences, so that rows share them, and all that is odd.
        let odd = prop::sample::select(vec![f32::NAN, -0.5, 0.0, 0.2, 0.21, 0.6, 0.97, 1.0, 1.5, f32::INFINITY]);
        let confidences = prop::collection::vec(odd, stages);
        (confidences, prop::collection::vec(any::<bool>(), stages))
            .prop_map(|(confidences, right)| Known { confidences, right })
    }

    fn cascade() -> impl Strategy<Value = Vec<Known>> {
        (1..=4usize).prop_flat_map(|stages| prop::collection::vec(row(stages), 1..9))
    }

    proptest! {
        #[test]
        fn no_thresholds_do_better(rows in cascade()) {
            let seconds = &SECONDS[..rows[0].right.len()];
            let found = FixedFrontier::of(&rows, seconds);
            prop_assert_eq!(found.off_by(), 0.0);
            let all = brute_force(&rows, seconds);
            for right in 0..=rows.len() {
                let goal = right as f64 / rows.len() as f64;
                let best = all.iter().filter(|(accuracy, _)| *accuracy >= goal).map(|(_, cost)| *cost).fold(f64::INFINITY, f64::min);
                let point = found.best(Goal::Accuracy(goal));
                prop_assert!((point.map_or(f64::INFINITY, |point| point.seconds) - best).abs() < 1e-12 || point.is_none() && best.is_infinite());
            }
            for point in found.points() {
                // They do what they are told to, and no more accurate ones cost as little.
                let (accuracy, cost) = told(&rows, &point.gates, seconds);
                prop_assert!(accuracy == point.accuracy && (cost - point.seconds).abs() < 1e-12, "{:?}", point);
                let limit = point.seconds * (1.0 + 1e-9);
                let best = all.iter().filter(|(_, cost)| *cost <= limit).map(|(accuracy, _)| *accuracy).fold(0.0, f64::max);
                prop_assert_eq!(found.best(Goal::Seconds(limit)).unwrap().accuracy, best);
                prop_assert!(point.gates.iter().all(|gate| !matches!(gate, FixedGate::Below(t) if !(*t > 0.0 && *t <= 1.0))));
            }
            prop_assert!(found.best(Goal::Seconds(0.5e-6)).is_none());
        }
    }

    /// Rows of a difficulty; deeper stages get harder ones right, and confidences follow the difficulty with some noise.
    fn rows(count: usize, stages: usize, seed: u64) -> Vec<Known> {
        let mut prng = Prng::new(seed);
        let row = |prng: &mut Prng| {
            let difficulty = prng.uniform();
            let skill = |stage: usize| 0.75 + 0.05 * stage as f64;
            let sure = |stage| (1.0 - 0.6 * difficulty / skill(stage) + 0.3 * (prng.uniform() - 0.5)) as f32;
            let confidences = (0..stages).map(sure).collect();
            let right = (0..stages).map(|stage| difficulty + 0.1 * (prng.uniform() - 0.5) < skill(stage)).collect();
            Known { confidences, right }
        };
        (0..count).map(|_| row(&mut prng)).collect()
    }

    #[test]
    fn a_search_that_may_not_try_all_says_what_it_may_miss() {
        let rows = rows(600, 3, 7);
        let seconds = &SECONDS[..3];
        let exact = FixedFrontier::of(&rows, seconds);
        let coarse = FixedFrontier::within(&rows, seconds, 1500.0);
        let off_by = coarse.off_by();
        assert!(exact.off_by() == 0.0 && off_by > 0.0 && off_by < 0.3, "{off_by}");
        for point in exact.points() {
            let Some(found) = coarse.best(Goal::Accuracy(point.accuracy - off_by - 1e-12)) else { panic!("{point:?}") };
            assert!(found.seconds <= point.seconds + 1e-15, "{point:?}");
            let found = coarse.best(Goal::Seconds(point.seconds + 1e-15)).unwrap();
            assert!(found.accuracy >= point.accuracy - off_by - 1e-12, "{point:?}");
        }
        assert!(coarse.points().iter().all(|point| told(&rows, &point.gates, seconds).0 == point.accuracy));
    }

    #[test]
    fn five_stages_of_many_rows_are_searched_in_bounded_time() {
        let rows = rows(5000, 5, 3);
        let all: Vec<Vec<f32>> = (0..4).map(|gate| worthwhile(&rows, gate)).collect();
        assert!(steps(&all, usize::MAX, rows.len()) > STEPS_MAX, "all of them are too many");
        // A tenth of the steps here, which is not optimised.
        let found = FixedFrontier::within(&rows, &SECONDS, STEPS_MAX / 10.0);
        assert!(found.off_by() < 0.02, "{}", found.off_by());
        let point = found.best(Goal::Accuracy(0.9)).unwrap();
        assert!((told(&rows, &point.gates, &SECONDS).0 - point.accuracy).abs() < 1e-12);
    }

    #[test]
    fn where_the_first_stage_is_enough_no_gate_goes_on() {
        let rows = rows(500, 3, 1);
        let found = FixedFrontier::of(&rows, &SECONDS[..3]);
        assert_eq!(found.best(Goal::Accuracy(0.1)).unwrap().gates, [FixedGate::Never; 2]);
        assert_eq!(found.best(Goal::Accuracy(1.1)), None);
    }

    #[test]
    fn a_threshold_has_as_few_digits_as_it_can() {
        for (low, high, threshold) in
            [(0.2, 0.9, 0.5), (0.95, 0.97, 0.96), (0.0, 1.0, 0.5), (0.999, 1.0, 0.9995), (0.12345, 0.12346, 0.123455)]
        {
            assert_eq!(between(low, high), threshold, "{low} {high}");
        }
        let high = 0.7f32.next_up();
        assert_eq!(between(0.7, high), high);
    }
}
