//! What slot time costs, by when it is: little in a lull, much while more waits than can be served.
//!
//! Were slots rented by the second, each model could be scheduled by itself: what batches of neighbours in its queue are worth
//! most, rows less rent, is a matter of dynamic programming. What all models are worth together, plus the rent of all the time
//! that there is, is more than any schedule serves, whatever the prices (Lagrange).

use std::collections::VecDeque;

use weir_core::units::{Deadline, Instant, ServiceTime};

/// A model whose queries are due in the order in which they come.
pub struct OfModel {
    /// Arrival and deadline of each query.
    pub queries: Vec<(Instant, Deadline)>,
    /// Time of a batch, by rows.
    pub times: Vec<ServiceTime>,
}

impl OfModel {
    /// When a query is due, in nanoseconds.
    pub fn due(&self, query: usize) -> u64 {
        self.queries[query].1.0.as_nanos()
    }

    /// Between which starts the `rows` queries up to `last` can be a batch that leaves `room` after its start.
    fn window(&self, last: usize, rows: usize, room: ServiceTime) -> Option<(Instant, Instant)> {
        let (arrived, due) = (self.queries[last].0, self.queries[last + 1 - rows].1);
        let latest = Instant::from_nanos(due.0.as_nanos().checked_sub(room.as_nanos())?);
        (latest >= arrived).then_some((arrived, latest))
    }
}

/// The time from the first arrival to the last deadline, cut into cells of equal length, with a price for each.
#[derive(Clone)]
pub struct Prices {
    start: Instant,
    /// Length of a cell, in seconds.
    cell: f64,
    /// By cell: of a second of it, in queries.
    each: Vec<f64>,
    /// By cell: of all time before it.
    before: Vec<f64>,
}

/// What all models together are worth at some prices.
pub struct Worth {
    /// Rows served, less what their batches pay.
    pub value: f64,
    /// Seconds of slot time that they take, by cell: how much the rent of all would grow with its price.
    pub used: Vec<f64>,
}

impl Prices {
    /// One price for all the time from `start` to `end`, in cells of about `cell`.
    pub fn even(start: Instant, end: Instant, cell: ServiceTime, price: f64) -> Prices {
        let span = end.since(start).as_secs_f64();
        let cells = (span / seconds(cell)).ceil().max(1.0) as usize;
        Prices::of(start, span / cells as f64, vec![price; cells])
    }

    fn of(start: Instant, cell: f64, each: Vec<f64>) -> Prices {
        let mut before = vec![0.0];
        for price in &each {
            before.push(before.last().expect("it is not empty") + price * cell);
        }
        Prices { start, cell, each, before }
    }

    /// Of all the time that there is, on one slot.
    pub fn total(&self) -> f64 {
        self.before[self.each.len()]
    }

    /// Length of each cell, in seconds.
    pub fn cell(&self) -> f64 {
        self.cell
    }

    /// Each price moved by its own step, and none below 0.
    pub fn moved(&self, steps: impl Iterator<Item = f64>) -> Prices {
        let each = self.each.iter().zip(steps).map(|(price, step)| (price + step).max(0.0)).collect();
        Prices::of(self.start, self.cell, each)
    }

    /// The best that batches of neighbours in each queue are worth. A batch may run at any time from the arrival of its last
    /// query until so long before its first is due as it takes; on several slots (not `alone`) as one row takes.
    ///
    /// Why neighbours: on one slot, of two batches the earlier can swap a later member for an earlier of the other, and a
    /// member can be swapped for one that was passed over between it and its batch's last; batches keep their times. On
    /// several slots a batch may run inside the time of a longer one that began before it. Give all members to batches by order
    /// of their starts: the last arrival of those up to one is not after its start, and the first deadline of those from it on
    /// is not before the earliest end of those, which is at least the time of one row after its start.
    pub fn worth(&self, models: &[OfModel], alone: bool) -> Worth {
        let mut worth = Worth { value: 0.0, used: vec![0.0; self.each.len()] };
        let mut costs: Vec<Costs> = Vec::new();
        for (i, model) in models.iter().enumerate() {
            if i == 0 || models[i - 1].times != model.times {
                costs = model.times.iter().map(|time| self.costs(seconds(*time))).collect();
            }
            self.add(model, &costs, alone, &mut worth);
        }
        worth
    }

    /// What all time after an instant, in nanoseconds, costs.
    pub fn after(&self, at: u64) -> f64 {
        self.total() - self.until(self.at(Instant::from_nanos(at)))
    }

    /// By query: what it and those after it are worth on a slot where nothing runs beside them.
    pub fn worth_from(&self, model: &OfModel) -> Vec<f64> {
        let costs: Vec<Costs> = model.times.iter().map(|time| self.costs(seconds(*time))).collect();
        let count = model.queries.len();
        let mut worth = vec![0.0f64; count + 1];
        for first in (0..count).rev() {
            worth[first] = worth[first + 1];
            for (rows, time) in model.times.iter().enumerate().take(count - first + 1).skip(1) {
                let Some(window) = model.window(first + rows - 1, rows, *time) else { break };
                let start = self.cheapest(&costs[rows], self.within(window));
                let value = worth[first + rows] + rows as f64 - self.cost(start, costs[rows].length);
                worth[first] = worth[first].max(value);
            }
        }
        worth
    }

    /// Seconds from the start.
    fn at(&self, at: Instant) -> f64 {
        at.since(self.start).as_secs_f64()
    }

    /// What all time until `at` costs. After the end nothing costs anything: no batch of use is there.
    fn until(&self, at: f64) -> f64 {
        let cell = (at / self.cell) as usize;
        match self.each.get(cell) {
            Some(price) => self.before[cell] + price * (at - cell as f64 * self.cell),
            None => self.total(),
        }
    }

    fn costs(&self, length: f64) -> Costs {
        let within = (length / self.cell).ceil() * self.cell - length;
        let mut costs = Costs { length, within: within.clamp(0.0, self.cell), of: Vec::new() };
        costs.of = (0..2 * self.each.len()).map(|turn| self.cost(costs.turn(self.cell, turn), length)).collect();
        costs
    }

    fn cost(&self, start: f64, length: f64) -> f64 {
        self.until(start + length) - self.until(start)
    }

    fn within(&self, (from, to): (Instant, Instant)) -> (f64, f64) {
        (self.at(from), self.at(to))
    }

    /// Adds what a model is worth, by dynamic programming over its queue.
    fn add(&self, model: &OfModel, costs: &[Costs], alone: bool, worth: &mut Worth) {
        let (queries, times) = (&model.queries, &model.times);
        let window = |last: usize, rows: usize| {
            let room = if alone { times[rows] } else { times[1] };
            model.window(last, rows, room).map(|window| self.within(window))
        };
        let until: Vec<(f64, f64)> =
            queries.iter().map(|(at, due)| (self.until(self.at(*at)), self.until(self.at(due.0)))).collect();
        let mut least: Vec<Least> = costs.iter().map(|_| Least::default()).collect();
        // By queries looked at: the worth of the best batches, and the rows of the last of them, 0 where the last query is
        // in none.
        let mut best = vec![0.0f64];
        let mut rows_of: Vec<usize> = Vec::with_capacity(queries.len());
        for last in 0..queries.len() {
            let (mut most, mut taken) = (best[last], 0);
            for rows in 1..times.len().min(last + 2) {
                let Some((from, to)) = window(last, rows) else { break };
                let inside = least[rows].within(self.cell, &costs[rows], from, to);
                let length = costs[rows].length;
                let earliest = self.until(from + length) - until[last].0;
                let end = if alone { until[last + 1 - rows].1 } else { self.until(to + length) };
                let cost = inside.min(earliest).min(end - self.until(to));
                let value = best[last + 1 - rows] + rows as f64 - cost;
                if value > most {
                    (most, taken) = (value, rows);
                }
            }
            best.push(most);
            rows_of.push(taken);
        }
        worth.value += best[queries.len()];
        let mut left = queries.len();
        while left > 0 {
            let rows = rows_of[left - 1];
            if rows > 0 {
                let window = window(left - 1, rows).expect("it was taken");
                self.use_at(self.cheapest(&costs[rows], window), costs[rows].length, &mut worth.used);
            }
            left -= rows.max(1);
        }
    }

    /// When in a window a batch costs least.
    fn cheapest(&self, costs: &Costs, (from, to): (f64, f64)) -> f64 {
        let first = 2 * (from / self.cell) as usize;
        let turns = (first..costs.of.len()).map(|turn| costs.turn(self.cell, turn));
        let inside = turns.skip_while(|at| *at < from).take_while(|at| *at <= to);
        let cost = |at: &f64| self.cost(*at, costs.length);
        inside.chain([from, to]).min_by(|a, b| cost(a).total_cmp(&cost(b))).expect("a window has ends")
    }

    fn use_at(&self, start: f64, length: f64, used: &mut [f64]) {
        let (mut at, end) = (start, start + length);
        let first = (start / self.cell) as usize;
        for (cell, used) in used.iter_mut().enumerate().skip(first) {
            if at >= end {
                break;
            }
            let until = end.min((cell + 1) as f64 * self.cell);
            *used += (until - at).max(0.0);
            at = at.max(until);
        }
    }
}

/// What batches of one length cost, by when they start. Between the turns, where the start or the end passes from one cell to
/// the next, that is a straight line: the least of a window is at a turn or at one of its ends.
struct Costs {
    length: f64,
    /// From the start of a cell to the start with which the end is the end of a cell.
    within: f64,
    /// By turn, two a cell.
    of: Vec<f64>,
}

impl Costs {
    fn turn(&self, cell: f64, turn: usize) -> f64 {
        (turn / 2) as f64 * cell + (turn % 2) as f64 * self.within
    }
}

/// The least cost at the turns of a window that only moves on.
#[derive(Default)]
struct Least {
    /// The next turn to look at.
    next: usize,
    /// Turns in the window that are cheaper than all before them, dearest last.
    kept: VecDeque<usize>,
}

impl Least {
    fn within(&mut self, cell: f64, costs: &Costs, from: f64, to: f64) -> f64 {
        while self.next < costs.of.len() && costs.turn(cell, self.next) <= to {
            while self.kept.back().is_some_and(|kept| costs.of[*kept] >= costs.of[self.next]) {
                self.kept.pop_back();
            }
            self.kept.push_back(self.next);
            self.next += 1;
        }
        while self.kept.front().is_some_and(|kept| costs.turn(cell, *kept) < from) {
            self.kept.pop_front();
        }
        self.kept.front().map_or(f64::INFINITY, |kept| costs.of[*kept])
    }
}

pub fn seconds(time: ServiceTime) -> f64 {
    time.as_nanos() as f64 / 1e9
}
