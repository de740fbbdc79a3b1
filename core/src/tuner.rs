//! How many replicas each model wants by now: what homes ask for, seen at every width of window at once.
//!
//! InferLine's tuner (`seed-systems.md` section 6) compares the arrivals of every window with those that were planned for, goes up at
//! once, and down slowly. Here nothing was planned beforehand: what a window asks for says itself how many replicas do it in time.
//! What comes within a window of width w has to be done within w and a deadline D (network calculus: delay at most the deadline at
//! a server of that rate), so k replicas do it where E(w) ≤ ρ·k·(w + D), with E(w) the slot time asked for in the window and ρ = 0.85 as
//! batches are planned with (`scheduling.md` section 15). What is asked for is counted whether a price let it through or not, so that a
//! price holds nobody back for long where more replicas can be had.
//!
//! Down it goes no sooner than [`CALM`] after the last change, to the most that any window of the last [`REMEMBERED`] asked for. InferLine
//! looks at windows of 5 s there, and a load that is steady but for chance goes up and down for ever: what short windows ask for once
//! comes back. What is wanted no more stays until its memory is ([`crate::placement`]).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ids::{ModelRef, NodeName};
use crate::units::{Instant, ServiceTime};

/// The shortest window: how often nodes report.
pub const SHORTEST: Duration = crate::placement::REPORT_EVERY;
/// Windows double from the shortest on, so many of them: up to 16 s.
const WIDTHS: usize = 7;
const LONGEST: u64 = 1 << (WIDTHS - 1);
/// Share of a replica's time that is planned with.
const UTILISATION: f64 = 0.85;
/// How long nothing goes down after a change: some starts of a replica.
pub const CALM: Duration = Duration::from_secs(15);
/// How far back it is looked before something goes down.
pub const REMEMBERED: Duration = Duration::from_secs(60);
/// What a model is asked now is told over the last so much, one of the widths.
pub const LATELY: Duration = SHORTEST.saturating_mul(1 << LATE);
const LATE: usize = 4;

/// The shortest window that an instant is in, by number.
fn window_at(now: Instant) -> u64 {
    slots_in(now.since(Instant::ZERO))
}

const fn slots_in(span: Duration) -> u64 {
    (span.as_nanos() / SHORTEST.as_nanos()) as u64
}

/// What one model wants, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Want {
    /// Replicas; what bounds them is not looked at here.
    pub replicas: u32,
    /// The window that asked for so many.
    pub window: Duration,
    /// Slot seconds a second that were asked for in it.
    pub asked: f64,
    /// Slot seconds a second asked for of late, over [`LATELY`].
    pub now: f64,
}

/// What one row of a model takes, and by when it has to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Row {
    pub cost: ServiceTime,
    /// The shortest of the endpoints that ask the model.
    pub deadline: Duration,
}

impl Row {
    /// Of a model with a latency by batch size: in the largest batches of which two are done before the deadline, as one may have begun
    /// when a row comes (Nexus), where a row costs least; alone where not even that is so.
    pub fn of(points: &[(u32, ServiceTime)], deadline: Duration) -> Row {
        let in_time = points.iter().filter(|(_, time)| 2 * time.as_duration() <= deadline);
        let each = |(rows, time): &(u32, ServiceTime)| ServiceTime::from_nanos(time.as_nanos() / u64::from(*rows));
        let cost = in_time.map(each).min().or(points.first().map(each)).unwrap_or(ServiceTime::ZERO);
        Row { cost, deadline }
    }
}

/// What models want.
#[derive(Clone, Debug)]
pub struct Tuner {
    since: Instant,
    /// Rows that the homes of each node have wanted run since it started.
    told: BTreeMap<NodeName, (u128, BTreeMap<ModelRef, u64>)>,
    models: BTreeMap<ModelRef, Asked>,
}

/// Replicas, the window that needs so many, and slot seconds a second in it.
pub type Need = (u32, Duration, f64);

/// What one model was asked.
#[derive(Clone, Debug)]
struct Asked {
    lately: Lately,
    /// What was needed in the shortest windows that are remembered: each more than all that came later.
    needed: VecDeque<(u64, Need)>,
    want: Want,
    changed: Instant,
}

/// Rows in each of the last [`LONGEST`] of the shortest windows: a ring in place, since every model's is read at every look, and what is
/// elsewhere in memory takes longer to be found than to be added up.
#[derive(Clone, Debug)]
struct Lately {
    rows: [u32; LONGEST as usize],
    /// The last window in which rows came, once any have.
    last: Option<u64>,
}

impl Lately {
    /// Rows come in a window, or in a later one in which some have come already.
    fn add(&mut self, window: u64, rows: u64) {
        let last = self.last.unwrap_or(window).max(window);
        let passed = self.last.map_or(0, |before| last - before).min(LONGEST);
        (0..passed).for_each(|back| self.rows[slot(last - back)] = 0);
        self.last = Some(last);
        let sum = &mut self.rows[slot(last)];
        *sum = sum.saturating_add(u32::try_from(rows).unwrap_or(u32::MAX));
    }

    /// Whether none came in the last windows, the one that goes on among them.
    fn is_over(&self, current: u64) -> bool {
        self.last.is_none_or(|last| last + LONGEST <= current)
    }

    /// Rows within the last windows up to `current`, by width.
    fn within(&self, current: u64) -> [u64; WIDTHS] {
        let mut within = [0; WIDTHS];
        let Some(last) = self.last.filter(|_| !self.is_over(current)) else { return within };
        let (mut sum, mut back) = (0, current.saturating_sub(last));
        for (width, within) in within.iter_mut().enumerate() {
            while back < 1 << width && back <= current {
                sum += u64::from(self.rows[slot(current - back)]);
                back += 1;
            }
            *within = sum;
        }
        within
    }
}

fn slot(window: u64) -> usize {
    (window % LONGEST) as usize
}

impl Tuner {
    /// Knows nothing before `now`, and takes nothing away until it has looked for [`REMEMBERED`].
    pub fn new(now: Instant) -> Tuner {
        Tuner { since: now, told: BTreeMap::new(), models: BTreeMap::new() }
    }

    /// A node tells how many rows its homes have wanted run since its process started, of each model of which that has changed.
    pub fn on_report(&mut self, now: Instant, node: &NodeName, incarnation: u128, rows: &BTreeMap<ModelRef, u64>) {
        let heard = self.told.contains_key(node);
        let told = self.told.entry(node.clone()).or_insert((incarnation, BTreeMap::new()));
        if told.0 != incarnation {
            *told = (incarnation, BTreeMap::new());
        }
        let window = window_at(now);
        for (model, total) in rows {
            let before = told.1.insert(model.clone(), *total);
            // Who has not heard a node before does not know when those rows came.
            let more = if heard { total.saturating_sub(before.unwrap_or(0)) } else { 0 };
            if more > 0 {
                let asked = self.models.entry(model.clone()).or_insert_with(|| Asked::new(now));
                asked.lately.add(window, more);
            }
        }
    }

    /// Looks at all models that anybody asks for; `row` tells of those that are known what a row takes, and is asked in the order of
    /// names. Returns in that order what each wants; `None` for one that is forgotten.
    pub fn tick(&mut self, now: Instant, mut row: impl FnMut(&ModelRef) -> Option<Row>) -> Vec<Option<Want>> {
        let window = window_at(now);
        let settled = self.is_settled(now);
        let mut wants = Vec::with_capacity(self.models.len());
        self.models.retain(|model, asked| {
            asked.forget(window);
            let stays = match row(model) {
                // Where nothing stands yet nobody knows what a row takes.
                None => !asked.lately.is_over(window),
                Some(row) => {
                    asked.tick(now, window, row, settled);
                    // Who is asked nothing and wants nothing is nobody's concern.
                    !asked.lately.is_over(window) || asked.want.replicas > 0 || !settled
                }
            };
            wants.push(stays.then_some(asked.want));
            stays
        });
        wants
    }

    /// What a model wants; `None` where nobody has asked for it of late.
    pub fn want(&self, model: &ModelRef) -> Option<Want> {
        self.models.get(model).map(|asked| asked.want)
    }

    /// Whether enough was seen to take away what nobody seems to want.
    pub fn is_settled(&self, now: Instant) -> bool {
        now.since(self.since) >= REMEMBERED
    }
}

impl Asked {
    fn new(now: Instant) -> Asked {
        let want = Want { replicas: 0, window: SHORTEST, asked: 0.0, now: 0.0 };
        let lately = Lately { rows: [0; LONGEST as usize], last: None };
        Asked { lately, needed: VecDeque::new(), want, changed: now }
    }

    fn tick(&mut self, now: Instant, current: u64, row: Row, settled: bool) {
        // The window that goes on counts as far as it has come: it can only say too little.
        let within = self.lately.within(current);
        let need = need(&within, row);
        while self.needed.back().is_some_and(|(_, less)| less.0 <= need.0) {
            self.needed.pop_back();
        }
        if need.0 > 0 {
            self.needed.push_back((current, need));
        }
        let (most, window, asked) = self.needed.front().map_or((0, SHORTEST, 0.0), |(_, most)| *most);
        self.want.now = within[LATE] as f64 * seconds(row.cost.as_duration()) / seconds(LATELY);
        let is_calm = settled && now.since(self.changed) >= CALM;
        if most > self.want.replicas || most < self.want.replicas && is_calm {
            self.want = Want { replicas: most, window, asked, ..self.want };
            self.changed = now;
        }
    }

    /// Forgets what was needed too long ago.
    fn forget(&mut self, current: u64) {
        while self.needed.front().is_some_and(|(window, _)| window + slots_in(REMEMBERED) < current) {
            self.needed.pop_front();
        }
    }
}

/// What is needed at the end of a window, by all windows that end then.
fn need(within: &[u64; WIDTHS], row: Row) -> Need {
    needed(within.iter().zip(0..).map(|(rows, i)| (*rows as f64, SHORTEST * (1 << i))), row)
}

/// Replicas that do in time what comes within windows, each told as its rows and its width; with the window that asks for so many, and the
/// slot seconds a second that are asked for in it. Windows that are shorter than [`SHORTEST`] are not looked at.
pub fn needed(windows: impl IntoIterator<Item = (f64, Duration)>, row: Row) -> Need {
    let mut worst = (0, SHORTEST, 0.0);
    for (rows, width) in windows.into_iter().filter(|(_, width)| *width >= SHORTEST) {
        let span = seconds(width);
        let work = rows * seconds(row.cost.as_duration());
        let needs = (work / (span + seconds(row.deadline)) / UTILISATION).ceil() as u32;
        if needs > worst.0 {
            worst = (needs, width, work / span);
        }
    }
    worst
}

fn seconds(span: Duration) -> f64 {
    span.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Row = Row { cost: ServiceTime::from_micros(10_000), deadline: Duration::from_millis(50) };

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn model() -> ModelRef {
        ModelRef::parse("m@1").unwrap()
    }

    fn node() -> NodeName {
        NodeName::parse("n1").unwrap()
    }

    /// Asks for rows at a rate a second, by 100 ms, between two instants; returns every change of what is wanted.
    struct Run {
        tuner: Tuner,
        total: f64,
        last: u32,
        changes: Vec<(u64, u32)>,
    }

    impl Run {
        fn new() -> Run {
            Run { tuner: Tuner::new(at(0)), total: 0.0, last: 0, changes: Vec::new() }
        }

        fn at_rate(&mut self, from_ms: u64, until_ms: u64, rate: impl Fn(u64) -> f64) -> &mut Run {
            for ms in (from_ms..until_ms).step_by(100) {
                self.total += rate(ms) / 10.0;
                self.tuner.on_report(at(ms), &node(), 1, &BTreeMap::from([(model(), self.total as u64)]));
                self.tuner.tick(at(ms), |_| Some(ROW));
                let wants = self.tuner.want(&model()).map_or(0, |want| want.replicas);
                if wants != self.last {
                    self.last = wants;
                    self.changes.push((ms, wants));
                }
            }
            self
        }
    }

    #[test]
    fn rows_cost_what_they_cost_in_batches_that_can_be_in_time() {
        let us = ServiceTime::from_micros;
        let points = [(1, us(6000)), (4, us(12_000)), (16, us(32_000))];
        let cost = |ms| Row::of(&points, Duration::from_millis(ms)).cost;
        assert_eq!((cost(50), cost(64), cost(13), cost(5)), (us(3000), us(2000), us(6000), us(6000)));
    }

    #[test]
    fn up_at_once_and_down_slowly() {
        let mut run = Run::new();
        run.at_rate(0, 60_000, |_| 150.0);
        // 150 rows of 10 ms a second are 1.5 slots, at 85 % of a replica's time two.
        assert_eq!(run.changes.last().map(|(_, wants)| *wants), Some(2), "{:?}", run.changes);
        run.changes.clear();
        run.at_rate(60_000, 62_000, |_| 600.0);
        let (when, wants) = *run.changes.last().unwrap();
        assert!(when < 61_000 && (7..=8).contains(&wants), "{:?}", run.changes);
        assert!(run.changes[0].0 <= 60_200, "{:?}", run.changes);
        run.changes.clear();
        run.at_rate(62_000, 180_000, |_| 150.0);
        assert!(run.changes.iter().all(|(ms, _)| *ms >= 75_000), "calm first: {:?}", run.changes);
        assert_eq!(run.last, 2);
        assert!(run.changes.len() <= 3, "{:?}", run.changes);
    }

    #[test]
    fn what_is_asked_no_more_is_forgotten_and_a_new_leader_takes_nothing_away_at_first() {
        let mut run = Run::new();
        run.at_rate(0, 5_000, |_| 150.0);
        let want = run.tuner.want(&model()).unwrap();
        assert!((want.now - 1.5).abs() < 0.1, "{want:?}");
        run.at_rate(5_000, 59_900, |_| 0.0);
        assert_eq!(run.last, 2, "too early to know");
        run.at_rate(59_900, 90_000, |_| 0.0);
        assert_eq!(run.tuner.want(&model()), None);
    }

    #[test]
    fn what_stands_nowhere_is_not_remembered_for_ever() {
        let mut tuner = Tuner::new(at(0));
        for ms in (0..100_000).step_by(250) {
            tuner.on_report(at(ms), &node(), 1, &BTreeMap::from([(model(), ms)]));
            tuner.tick(at(ms), |_| None);
        }
        assert!(tuner.models.contains_key(&model()));
        tuner.tick(at(100_000) + SHORTEST * LONGEST as u32, |_| None);
        assert!(tuner.models.is_empty());
    }

    #[test]
    fn windows_hold_what_came_in_them() {
        let mut prng = crate::prng::Prng::new(9);
        for _ in 0..50 {
            let mut lately = Lately { rows: [0; LONGEST as usize], last: None };
            let (mut came, mut current): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
            for _ in 0..200 {
                // Mostly the next windows, now and then one after a long silence.
                current += if prng.below(20) == 0 { prng.below(3 * LONGEST) } else { prng.below(3) };
                if prng.below(3) > 0 {
                    let rows = 1 + prng.below(1000);
                    lately.add(current, rows);
                    came.push((current, rows));
                }
                let since = |width: u32| {
                    let from = (current + 1).saturating_sub(1 << width);
                    came.iter().filter(|(window, _)| *window >= from).map(|(_, rows)| rows).sum::<u64>()
                };
                assert_eq!(lately.within(current).to_vec(), (0..WIDTHS as u32).map(since).collect::<Vec<_>>());
                assert_eq!(lately.is_over(current), since(WIDTHS as u32 - 1) == 0);
            }
        }
    }

    #[test]
    fn a_burst_that_fits_before_the_deadline_needs_no_more_than_its_rate() {
        // 20 rows of 10 ms at once each second: with 250 ms and 50 to do them in, one replica does it.
        let mut run = Run::new();
        run.at_rate(0, 40_000, |ms| if ms % 1000 == 0 { 200.0 } else { 0.0 });
        assert_eq!(run.last, 1, "{:?}", run.changes);
        run.at_rate(40_000, 60_000, |ms| if ms % 1000 == 0 { 400.0 } else { 0.0 });
        assert_eq!(run.changes.iter().filter(|(ms, _)| *ms >= 40_000).map(|(_, wants)| *wants).max(), Some(2));
    }

    #[test]
    fn nodes_that_start_again_count_from_nothing_and_strangers_tell_no_past() {
        let mut tuner = Tuner::new(at(0));
        let rows = |total| BTreeMap::from([(model(), total)]);
        tuner.on_report(at(0), &node(), 1, &rows(1_000_000));
        assert_eq!(tuner.want(&model()), None, "who knows when those came");
        tuner.on_report(at(250), &node(), 1, &rows(1_000_010));
        tuner.tick(at(250), |_| Some(ROW));
        assert_eq!(tuner.want(&model()).unwrap().replicas, 1);
        tuner.on_report(at(500), &node(), 2, &rows(10));
        tuner.tick(at(500), |_| Some(ROW));
        assert_eq!(tuner.want(&model()).unwrap().replicas, 1);
    }

    #[test]
    fn a_steady_load_with_chance_in_it_settles() {
        // An hour of Poisson arrivals at a rate that two replicas do: how often does what is wanted change?
        let mut prng = crate::prng::Prng::new(7);
        let mut poisson = |mean: f64| {
            let (mut count, mut product, limit) = (0.0, prng.uniform(), (-mean).exp());
            while product > limit {
                product *= prng.uniform();
                count += 1.0;
            }
            count
        };
        let rates: Vec<f64> = (0..36_000).map(|_| 10.0 * poisson(12.0)).collect();
        let mut run = Run::new();
        run.at_rate(0, 3_600_000, |ms| rates[(ms / 100) as usize]);
        let settled: Vec<_> = run.changes.iter().filter(|(ms, _)| *ms > 120_000).collect();
        assert!(settled.iter().all(|(_, wants)| *wants >= 2), "never below what the mean needs");
        assert!(settled.len() <= 60, "more than once a minute: {}", settled.len());
    }
}
