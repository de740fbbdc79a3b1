//! The best fixed thresholds of a cascade, over rows of which every stage's answer is known: what they get right at best for what they
//! cost (`seed-systems.md` section 11), and which stages are better left out.
//!
//! Of up to [`SUBSETS_MAX`] stages each choice of some of them is a cascade of its own, and all are searched. Of more, only what stands
//! behind a gate is left out.
//!
//! Thresholds between two neighbouring confidences do the same with these rows, so a gate has as many choices as rows. Of these few
//! are worth a try: where no row just below a threshold gains by going on, the next lower threshold gets as much right for less. All
//! that remain are tried, each with each, the last gate's in one pass. For two stages that is exact always; for three and more as long
//! as it takes fewer than some two hundred million steps, which is part of a second: up to some ten thousand rows of three stages, and
//! some thousands of four, where one row in ten gains. Where it would take more, each gate has fewer choices, and
//! [`FixedFrontier::off_by`] tells how much may be missed.

use super::frontier::Known;

/// Additions that all searches together may take: some tenths of a second.
const STEPS_MAX: f64 = 2e8;
/// Stages of which each choice is searched: of six there are 63.
pub const SUBSETS_MAX: usize = 6;

/// What the gate before a stage does where no price is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FixedGate {
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
    /// The stages that are kept, in order; the others are to be left out.
    pub stages: Vec<usize>,
    /// Of each of those but the first.
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
    /// Of a cascade whose stages cost `seconds` of slot time a row; `alone`: which of them need nothing of the stage before, so that it may
    /// be left out. There is at least one row, and each has a confidence and an answer of every stage.
    pub fn of(rows: &[Known], seconds: &[f64], alone: &[bool]) -> FixedFrontier {
        Self::within(rows, seconds, alone, STEPS_MAX)
    }

    fn within(rows: &[Known], seconds: &[f64], alone: &[bool], steps_max: f64) -> FixedFrontier {
        let cuts = |stages: Vec<usize>| {
            let rows = of_stages(rows, &stages);
            let cuts: Vec<Vec<f32>> = (1..stages.len()).map(|gate| worthwhile(&rows, gate - 1)).collect();
            (stages, cuts)
        };
        let subsets: Vec<_> = subsets(alone).into_iter().map(cuts).collect();
        // As many choices for the gates of all: the longest cascade takes nearly all of the steps, and loses next to nothing by the others.
        let all = |most: usize| subsets.iter().map(|(_, cuts)| steps(cuts, most, rows.len())).sum::<f64>();
        let longest = subsets.iter().flat_map(|(_, cuts)| cuts).map(Vec::len).max();
        let (mut least, mut most) = (1, longest.unwrap_or(0).max(1));
        while least < most {
            let middle = (least + most).div_ceil(2);
            if all(middle) <= steps_max { least = middle } else { most = middle - 1 }
        }
        let (mut points, mut off_by) = (Vec::new(), 0.0_f64);
        for (stages, cuts) in &subsets {
            let costs: Vec<f64> = stages.iter().map(|stage| seconds[*stage]).collect();
            let (found, missed) = Self::whole(&of_stages(rows, stages), &costs, cuts, least);
            let kept = |point: FixedPoint| FixedPoint { stages: stages[..=point.gates.len()].to_vec(), ..point };
            points.extend(found.into_iter().map(kept));
            off_by = off_by.max(missed);
        }
        FixedFrontier { points: best_of(points), off_by }
    }

    /// Of a cascade none of whose stages is left out, but those that nothing goes on to: the best thresholds with at most so many choices at each
    /// gate, and what they may miss.
    fn whole(rows: &[Known], seconds: &[f64], all: &[Vec<f32>], most: usize) -> (Vec<FixedPoint>, f64) {
        let (mut cuts, mut off_by) = (Vec::new(), 0.0);
        for (gate, cut) in all.iter().enumerate() {
            let (kept, missed) = thinned(rows, gate, cut, most);
            cuts.push(kept);
            off_by += missed as f64 / rows.len() as f64;
        }
        let mut search = Search::new(rows, seconds, &cuts);
        let everything: Vec<u32> = (0..rows.len() as u32).collect();
        if cuts.is_empty() {
            let right = rows.iter().filter(|row| row.right[0]).count();
            search.note(right, rows.len() as f64 * seconds[0]);
        } else {
            search.descend(0, &everything, 0, rows.len() as f64 * seconds[0]);
        }
        (search.points(&cuts), off_by)
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

/// What these stages say of each row.
pub fn of_stages(rows: &[Known], stages: &[usize]) -> Vec<Known> {
    let row = |row: &Known| Known {
        confidences: stages.iter().map(|stage| row.confidences[*stage]).collect(),
        right: stages.iter().map(|stage| row.right[*stage]).collect(),
    };
    rows.iter().map(row).collect()
}

/// The choices of stages that make a cascade: with one that needs the stage before, that too.
fn subsets(alone: &[bool]) -> Vec<Vec<usize>> {
    let count = alone.len();
    if count > SUBSETS_MAX {
        return vec![(0..count).collect()];
    }
    let of = |mask: u32| (0..count).filter(|stage| mask & (1 << stage) != 0).collect::<Vec<usize>>();
    let stands = |stages: &Vec<usize>| {
        stages.iter().enumerate().all(|(i, stage)| alone[*stage] || i > 0 && stages[i - 1] + 1 == *stage)
    };
    (1..1 << count).map(of).filter(stands).collect()
}

/// Those than which none get more right for no more time, cheapest first.
fn best_of(mut points: Vec<FixedPoint>) -> Vec<FixedPoint> {
    let order =
        |a: &FixedPoint, b: &FixedPoint| b.accuracy.total_cmp(&a.accuracy).then(a.seconds.total_cmp(&b.seconds));
    points.sort_by(order);
    let mut least = f64::INFINITY;
    // The same times may differ in their last digit by the order in which they were added.
    points.retain(|point| {
        let better = point.seconds < least * (1.0 - 1e-12);
        least = if better { point.seconds } else { least };
        better
    });
    points.reverse();
    points
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
        let told = |(right, time): (usize, &f64)| {
            let chosen = &self.chosen[right * gates..(right + 1) * gates];
            // Behind a gate that goes on with nothing no other counts.
            let used = chosen.iter().zip(&ways).take_while(|(cut, _)| **cut > 0);
            let gates: Vec<FixedGate> = used.map(|(cut, ways)| ways[*cut as usize - 1]).collect();
            FixedPoint {
                stages: (0..=gates.len()).collect(),
                gates,
                accuracy: right as f64 / count,
                seconds: time / count,
            }
        };
        best_of(self.least.iter().enumerate().filter(|(_, time)| time.is_finite()).map(told).collect())
    }
}

/// By cut, from 1 on: what the gate does with it.
fn ways(rows: &[Known], gate: usize, cuts: &[f32]) -> Vec<FixedGate> {
    let mut sorted: Vec<f32> = rows.iter().map(|row| seen(row.confidences[gate])).collect();
    sorted.sort_by(f32::total_cmp);
    let way = |cut: &f32| match sorted.get(sorted.partition_point(|confidence| confidence <= cut)) {
        Some(next) => FixedGate::Below(between(*cut, *next)),
        None => FixedGate::Always,
    };
    cuts.iter().map(way).collect()
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

    const ALONE: [bool; 5] = [true; 5];
    const SECONDS: [f64; 5] = [1e-6, 3e-6, 10e-6, 31e-6, 97e-6];

    /// What thresholds between some stages do, as their documentation has it: share of right answers and time.
    fn told(rows: &[Known], stages: &[usize], gates: &[FixedGate], seconds: &[f64]) -> (f64, f64) {
        let (mut right, mut time) = (0, 0.0);
        for row in rows {
            let goes_on = |gate: usize| match gates[gate] {
                FixedGate::Below(threshold) => row.confidences[stages[gate]] < threshold,
                FixedGate::Always => true,
            };
            let last = (0..gates.len()).find(|gate| !goes_on(*gate)).unwrap_or(gates.len());
            right += usize::from(row.right[stages[last]]);
            time += stages[..=last].iter().map(|stage| seconds[*stage]).sum::<f64>();
        }
        (right as f64 / rows.len() as f64, time / rows.len() as f64)
    }

    fn done(rows: &[Known], point: &FixedPoint, seconds: &[f64]) -> (f64, f64) {
        told(rows, &point.stages, &point.gates, seconds)
    }

    /// All that thresholds can do, whatever stages are left out.
    fn brute_force(rows: &[Known], seconds: &[f64], alone: &[bool]) -> Vec<(f64, f64)> {
        let choices = |stage: usize| {
            let observed = rows.iter().map(|row| row.confidences[stage]).filter(|c| *c > 0.0 && *c <= 1.0);
            let below = observed.chain([f32::MIN_POSITIVE, 1.0]).map(FixedGate::Below);
            below.chain([FixedGate::Always]).collect::<Vec<_>>()
        };
        let mut told_all = Vec::new();
        for mask in 1..1u32 << seconds.len() {
            let has = |stage: usize| mask & (1 << stage) != 0;
            let stages: Vec<usize> = (0..seconds.len()).filter(|stage| has(*stage)).collect();
            if stages.iter().any(|stage| !alone[*stage] && !has(stage - 1)) {
                continue;
            }
            let mut all = vec![Vec::new()];
            for stage in &stages[..stages.len() - 1] {
                let longer = |gates: &Vec<FixedGate>| {
                    let gates = gates.clone();
                    choices(*stage).into_iter().map(move |choice| [gates.clone(), vec![choice]].concat())
                };
                all = all.iter().flat_map(longer).collect();
            }
            told_all.extend(all.iter().map(|gates| told(rows, &stages, gates, seconds)));
        }
        told_all
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
        fn no_thresholds_do_better(rows in cascade(), leaning in prop::collection::vec(any::<bool>(), 4)) {
            let seconds = &SECONDS[..rows[0].right.len()];
            // Some stages may take what the one before gives; the first has none.
            let alone: Vec<bool> = (0..seconds.len()).map(|stage| stage == 0 || !leaning[stage]).collect();
            let found = FixedFrontier::of(&rows, seconds, &alone);
            prop_assert_eq!(found.off_by(), 0.0);
            let all = brute_force(&rows, seconds, &alone);
            for right in 0..=rows.len() {
                let goal = right as f64 / rows.len() as f64;
                let best = all.iter().filter(|(accuracy, _)| *accuracy >= goal).map(|(_, cost)| *cost).fold(f64::INFINITY, f64::min);
                let point = found.best(Goal::Accuracy(goal));
                prop_assert!((point.map_or(f64::INFINITY, |point| point.seconds) - best).abs() < 1e-12 || point.is_none() && best.is_infinite());
            }
            for point in found.points() {
                // They do what they are told to, and no more accurate ones cost as little.
                let (accuracy, cost) = done(&rows, point, seconds);
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
        let exact = FixedFrontier::of(&rows, seconds, &ALONE[..3]);
        let coarse = FixedFrontier::within(&rows, seconds, &ALONE[..3], 4500.0);
        let off_by = coarse.off_by();
        assert!(exact.off_by() == 0.0 && off_by > 0.0 && off_by < 0.3, "{off_by}");
        for point in exact.points() {
            let Some(found) = coarse.best(Goal::Accuracy(point.accuracy - off_by - 1e-12)) else { panic!("{point:?}") };
            assert!(found.seconds <= point.seconds + 1e-15, "{point:?}");
            let found = coarse.best(Goal::Seconds(point.seconds + 1e-15)).unwrap();
            assert!(found.accuracy >= point.accuracy - off_by - 1e-12, "{point:?}");
        }
        assert!(coarse.points().iter().all(|point| done(&rows, point, seconds).0 == point.accuracy));
    }

    #[test]
    fn five_stages_of_many_rows_are_searched_in_bounded_time() {
        let rows = rows(5000, 5, 3);
        let all: Vec<Vec<f32>> = (0..4).map(|gate| worthwhile(&rows, gate)).collect();
        assert!(steps(&all, usize::MAX, rows.len()) > STEPS_MAX, "all of them are too many");
        // A tenth of the steps here, which is not optimised.
        let found = FixedFrontier::within(&rows, &SECONDS, &ALONE, STEPS_MAX / 10.0);
        assert!(found.off_by() < 0.02, "{}", found.off_by());
        let point = found.best(Goal::Accuracy(0.9)).unwrap();
        assert!((done(&rows, point, &SECONDS).0 - point.accuracy).abs() < 1e-12);
    }

    #[test]
    fn where_the_first_stage_is_enough_no_gate_goes_on() {
        let rows = rows(500, 3, 1);
        let found = FixedFrontier::of(&rows, &SECONDS[..3], &ALONE[..3]);
        let first = found.best(Goal::Accuracy(0.1)).unwrap();
        assert_eq!((first.stages.as_slice(), first.gates.as_slice()), ([0].as_slice(), [].as_slice()));
        assert_eq!(found.best(Goal::Accuracy(1.1)), None);
    }

    /// A stage in the middle that says what the first one said costs its time, and gains nothing wherever it stands.
    #[test]
    fn a_stage_in_the_middle_that_gains_nothing_is_left_out() {
        let mut rows = rows(2000, 3, 5);
        for row in &mut rows {
            (row.confidences[1], row.right[1]) = (row.confidences[0], row.right[0]);
        }
        let seconds = &SECONDS[..3];
        let found = FixedFrontier::of(&rows, seconds, &ALONE[..3]);
        let goal = Goal::Accuracy(0.85);
        let best = found.best(goal).unwrap();
        assert_eq!(best.stages, [0, 2], "{best:?}");
        assert!(found.points().iter().all(|point| !point.stages.contains(&1)));
        // Where the last one takes what it gives it has to stay, and costs that much more for each row that goes on.
        let segments = FixedFrontier::of(&rows, seconds, &[true, true, false]);
        let with = segments.best(goal).unwrap();
        assert!(with.stages.contains(&1) && with.seconds > best.seconds, "{with:?}");
        // Likewise a first one that is never right, and never knows it.
        for row in &mut rows {
            (row.confidences[0], row.right[0]) = (0.5, false);
        }
        let found = FixedFrontier::of(&rows, seconds, &ALONE[..3]);
        let answers = found.points().iter().filter(|point| point.accuracy > 0.0);
        assert!(answers.clone().count() > 10 && answers.clone().all(|point| point.stages[0] == 1));
    }

    #[test]
    fn of_many_stages_none_is_left_out_but_at_the_end() {
        assert_eq!(subsets(&[true; SUBSETS_MAX]).len(), 63);
        assert_eq!(subsets(&[true; SUBSETS_MAX + 1]), [(0..=SUBSETS_MAX).collect::<Vec<_>>()]);
        assert_eq!(subsets(&[true, false, false]), [vec![0], vec![0, 1], vec![0, 1, 2]], "segments of one network");
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
