//! What is asked of late, in slot time, by what it is worth for its time.

use std::collections::BTreeMap;

use super::market::ByModel;
use crate::ids::ModelRef;
use crate::units::{Instant, ServiceTime};

/// How long what was asked counts, in seconds: a few deadlines, so that one burst does not make the next calm dear.
pub(super) const MEMORY: f64 = 0.25;
/// Densities from `LEAST` on, in steps of a factor of `STEP`, 224 of them: from a row worth 0.01 that takes a second to one worth a million that
/// takes 30 us. The number of a step goes in a byte where curves are told.
const LEAST: f64 = 1e-2;
/// From one step to the next.
pub const STEP: f64 = 1.15;
pub(crate) const STEPS: usize = 224;
/// Steps that are also kept added up: a price is looked up at each gate, and most steps need not be looked at for it.
const BLOCK: usize = 16;
const BLOCKS: usize = STEPS / BLOCK;
/// What was asked so many memories ago counts for nothing.
const FORGOTTEN: f64 = 40.0;
/// What has been asked is aged at most so often, in memories.
const AGED_EVERY: f64 = 1.0 / 64.0;

/// Slot time by step of density, and by blocks of steps.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    each: [f64; STEPS],
    blocks: [f64; BLOCKS],
}

impl Steps {
    /// Of each step.
    pub fn new(each: [f64; STEPS]) -> Steps {
        let blocks = std::array::from_fn(|block| each[BLOCK * block..][..BLOCK].iter().sum());
        Steps { each, blocks }
    }

    fn add(&mut self, step: usize, work: f64) {
        self.each[step] += work;
        self.blocks[step / BLOCK] += work;
    }

    fn scale(&mut self, by: f64) {
        self.each.iter_mut().chain(&mut self.blocks).for_each(|work| *work *= by);
    }

    /// The place above the densest that more than `least` is asked at; the lowest where that is nowhere.
    pub fn top(&self, least: f64) -> f64 {
        self.each.iter().rposition(|work| *work > least).map_or(0.0, |step| step as f64 + 1.0)
    }

    /// From the densest step downwards there is `room` for what is asked here, and for `times` as much as is asked in `more`, where there is that: the place
    /// between steps where it ends. `None` where there is room for all.
    pub fn clears(&self, mut room: f64, more: Option<(&Steps, f64)>) -> Option<f64> {
        let with = |own: f64, more: Option<f64>, times: f64| more.map_or(own, |more| own + times * more);
        let times = more.map_or(0.0, |(_, times)| times);
        for block in (0..BLOCKS).rev() {
            let all = with(self.blocks[block], more.map(|(more, _)| more.blocks[block]), times);
            if all <= room {
                room -= all;
                continue;
            }
            for step in (BLOCK * block..BLOCK * (block + 1)).rev() {
                let work = with(self.each[step], more.map(|(more, _)| more.each[step]), times);
                if work > room {
                    // As far down the step as there is room for.
                    return Some(step as f64 + 1.0 - room / work);
                }
                room -= work;
            }
        }
        None
    }
}

/// Decaying sums of slot time by step of density: a demand curve.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    aged: Instant,
    /// None until something is asked.
    steps: Option<Box<Steps>>,
}

impl Curve {
    /// A row was weighed whose running is worth `value`; 0 and less asks for nothing.
    pub fn add(&mut self, now: Instant, cost: ServiceTime, value: f64) {
        let memories = memories(self.aged, now);
        if memories >= AGED_EVERY {
            let left = (-memories).exp();
            self.steps.iter_mut().for_each(|steps| steps.scale(left));
            self.aged = now;
        }
        let density = value / seconds(cost).max(1e-9);
        if density >= LEAST {
            let (step, _) = step_of(density);
            let steps = self.steps.get_or_insert_with(|| Box::new(Steps::new([0.0; STEPS])));
            steps.add(step.clamp(0, STEPS as i32 - 1) as usize, seconds(cost));
        }
    }

    /// Whether nothing that was asked counts any more.
    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        memories(self.aged, now) > FORGOTTEN
    }

    /// What a second of the sums stands for now, in slot seconds a second.
    pub(super) fn rate(&self, now: Instant) -> f64 {
        (-memories(self.aged, now)).exp() / MEMORY
    }

    /// The sums, as old as they are; nothing where nothing was ever asked.
    pub(super) fn steps(&self) -> Option<&Steps> {
        self.steps.as_deref()
    }

    /// For whoever adds it up.
    pub fn asked(&self, now: Instant) -> Asked {
        let Some(steps) = &self.steps else { return Asked::default() };
        let rate = self.rate(now);
        Asked::of(&steps.each.map(|work| (work * rate) as f32))
    }
}

/// The step that a density above 0 belongs to, from 0 on, and the least density of that step.
pub fn step_of(density: f64) -> (i32, f64) {
    // What was computed from a step belongs to it.
    let step = ((density / LEAST).ln() / STEP.ln() + 1e-9).floor() as i32;
    (step, LEAST * STEP.powi(step))
}

/// The density at a place between steps.
pub(super) fn density_at(steps: f64) -> f64 {
    LEAST * STEP.powf(steps)
}

/// How much time has passed, in memories.
pub(super) fn memories(since: Instant, now: Instant) -> f64 {
    now.since(since).as_secs_f64() / MEMORY
}

pub(super) fn seconds(cost: ServiceTime) -> f64 {
    cost.as_nanos() as f64 / 1e9
}

/// A demand curve to be told: in slot seconds a second, by step of density from `first` on.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Asked {
    pub first: u32,
    pub soft: Vec<f32>,
}

impl Asked {
    /// Less than this, in slot seconds a second, is not worth telling.
    pub(super) const LEAST: f32 = 1e-5;

    /// Numbers that a curve is told in at most: four models of an endpoint then take less than a kilobyte a second (`schema::convert::asked`).
    pub const POINTS: usize = 40;

    /// In at most so many numbers: of how many neighbouring steps each of them is the sum, and the numbers.
    pub fn merged(&self, points: usize) -> (usize, Vec<f32>) {
        let together = self.soft.len().div_ceil(points.max(1)).max(1);
        (together, self.soft.chunks(together).map(|steps| steps.iter().sum()).collect())
    }

    /// What [`Asked::merged`] told of so many steps, spread evenly over them; `None` where it is not told in as many numbers as that takes.
    pub fn spread(first: u32, steps: usize, together: usize, sums: &[f32]) -> Option<Asked> {
        if together == 0 || steps > STEPS || steps.div_ceil(together) != sums.len() {
            return None;
        }
        let each = |step: usize| sums[step / together] / together.min(steps - step / together * together) as f32;
        Some(Asked { first, soft: (0..steps).map(each).collect() })
    }

    /// As whoever hears it knows it, but for the rounding of numbers.
    pub fn as_told(&self) -> Asked {
        let (together, sums) = self.merged(Asked::POINTS);
        Asked::spread(self.first, self.soft.len(), together, &sums).expect("it was just merged")
    }

    /// Of all steps, without those at both ends of which nothing is asked.
    pub fn of(steps: &[f32]) -> Asked {
        let is_asked = |work: &f32| *work > Asked::LEAST;
        let first = steps.iter().position(is_asked).unwrap_or(0);
        let end = steps.iter().rposition(is_asked).map_or(first, |last| last + 1);
        Asked { first: first as u32, soft: steps[first..end].to_vec() }
    }

    /// By step, all of them. What stands behind the last is not read: it came over the wire.
    pub fn steps(&self) -> [f32; STEPS] {
        let mut steps = [0.0; STEPS];
        let first = (self.first as usize).min(STEPS);
        steps[first..].iter_mut().zip(&self.soft).for_each(|(step, work)| *step = *work);
        steps
    }

    /// The curve: by step that anything is asked at, the least value a second of slot time, and the slot seconds a second.
    pub fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let asked = self.soft.iter().enumerate().filter(|(_, work)| **work > 0.0);
        asked.map(|(i, work)| (density_at(f64::from(self.first) + i as f64), f64::from(*work)))
    }

    /// In slot seconds a second, over all steps.
    pub fn total(&self) -> f64 {
        self.soft.iter().copied().map(f64::from).sum()
    }

    /// Whether every number is one that can be asked.
    pub fn is_sound(&self) -> bool {
        self.soft.iter().all(|work| work.is_finite() && *work >= 0.0) && self.first as usize + self.soft.len() <= STEPS
    }
}

/// What is asked of models, looked at many times: sums, and the mean of the looks.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    looks: u64,
    sums: BTreeMap<ModelRef, [f64; STEPS]>,
}

impl Looks {
    /// One more look; what several homes ask of a model is added.
    pub fn add<'a>(&mut self, asked: impl IntoIterator<Item = (&'a ModelRef, &'a Asked)>) {
        self.looks += 1;
        for (model, asked) in asked {
            let sum = self.sums.entry(model.clone()).or_insert([0.0; STEPS]);
            sum.iter_mut().zip(asked.steps()).for_each(|(sum, work)| *sum += f64::from(work));
        }
    }

    /// What was asked on average; models of which nothing was are left out.
    pub fn mean(&self) -> ByModel {
        let mean = |sum: &[f64; STEPS]| Asked::of(&sum.map(|work| (work / self.looks as f64) as f32));
        let all = self.sums.iter().map(|(model, sum)| (model.clone(), mean(sum)));
        all.filter(|(_, asked)| !asked.soft.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_short_and_what_is_read_is_checked() {
        let whole = Asked::of(&[1.0; STEPS]);
        assert!(whole.is_sound() && whole.soft.len() == STEPS);
        assert_eq!(Asked::of(&[0.0; STEPS]), Asked::default());
        let mut one = [0.0; STEPS];
        one[0] = 0.5;
        assert_eq!(Asked::of(&one).points().collect::<Vec<_>>(), [(LEAST, 0.5)]);
        assert!(!Asked { soft: vec![f32::NAN], first: 0 }.is_sound());
        assert!(!Asked { soft: vec![-1.0], first: 0 }.is_sound());
        one[0] = 0.25;
        one[2] = 1.0;
        let two = Asked::of(&one);
        let (a, b) = (ModelRef::parse("a@1").unwrap(), ModelRef::parse("b@1").unwrap());
        let mut looks = Looks::default();
        looks.add([(&a, &two), (&a, &two), (&b, &Asked::default())]);
        looks.add([]);
        assert_eq!(looks.mean(), BTreeMap::from([(a, two)]), "two homes in one look of two");
        let uneven = Asked { first: 3, soft: (0..101).map(|step| step as f32).collect() };
        let told = uneven.as_told();
        assert!((told.total() / uneven.total() - 1.0).abs() < 1e-6, "nothing is lost");
        assert_eq!(
            (told.first, told.soft.len(), told.soft[100]),
            (3, 101, (99.0 + 100.0) / 2.0),
            "of three at a time two are left"
        );
        assert_eq!(Asked { soft: vec![1.0; 40], first: 9 }.as_told(), Asked { soft: vec![1.0; 40], first: 9 });
        assert_eq!(Asked::default().as_told(), Asked::default());
        for (steps, together, sums) in [(9, 0, 9), (9, 2, 4), (225, 1, 225), (0, 1, 1), (4, 9, 2)] {
            assert_eq!(Asked::spread(0, steps, together, &vec![1.0; sums]), None, "{steps} {together} {sums}");
        }
        let far = Asked { first: 1000, soft: vec![1.0; 9] };
        assert!(!far.is_sound() && far.steps() == [0.0; STEPS]);
    }

    #[test]
    fn a_place_is_found_by_blocks_where_it_is_found_step_by_step() {
        let plainly = |steps: &[f64], mut room: f64| {
            for (step, work) in steps.iter().enumerate().rev() {
                if *work > room {
                    return Some(step as f64 + 1.0 - room / work);
                }
                room -= work;
            }
            None
        };
        let mut prng = crate::prng::Prng::new(11);
        let mut found = 0;
        for round in 0..2000 {
            let sparse = (round % 5) as f64 / 5.0;
            let mut steps = || {
                let each: [f64; STEPS] =
                    std::array::from_fn(|_| if prng.uniform() < sparse { 0.0 } else { prng.uniform().powi(4) });
                Steps::new(each)
            };
            let (mut own, more) = (steps(), steps());
            own.add(round % STEPS, 0.5);
            own.scale(0.25);
            let times = prng.uniform();
            let both: Vec<f64> = own.each.iter().zip(more.each).map(|(own, more)| own + times * more).collect();
            for (steps, more) in [(own.each.to_vec(), None), (both, Some((&more, times)))] {
                let room = prng.uniform() * 1.2 * steps.iter().sum::<f64>();
                match (own.clears(room, more), plainly(&steps, room)) {
                    (Some(place), Some(plain)) => assert!((place - plain).abs() < 1e-6, "{place} {plain}"),
                    (place, plain) => assert_eq!(place, plain),
                }
                found += usize::from(own.clears(room, more).is_some());
            }
        }
        assert!((2000..4000).contains(&found), "{found}");
        let one = Steps::new(std::array::from_fn(|step| if step == 0 { 1.0 } else { 0.0 }));
        assert_eq!(
            (one.clears(0.0, None), one.clears(0.25, None), one.clears(1.0, None)),
            (Some(1.0), Some(0.75), None)
        );
    }

    #[test]
    fn what_was_asked_is_forgotten() {
        let mut curve = Curve::default();
        let cost = ServiceTime::from_micros(1000);
        for i in 0..2000 {
            curve.add(Instant::from_millis(i), cost, 0.1);
            curve.add(Instant::from_millis(i), cost, 0.0);
        }
        let rate = |ms| curve.asked(Instant::from_millis(ms)).total();
        assert!((rate(1999) - 1.0).abs() < 0.02, "{}", rate(1999));
        assert!((rate(2249) - (-1.0f64).exp()).abs() < 0.02, "{}", rate(2249));
        assert_eq!(rate(20_000), 0.0);
    }
}
