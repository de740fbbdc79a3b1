//! A call of several rows at its home: which rows want which stage now, what each has tried, and when all have ended.
//!
//! Rows of one call that want the same stage at the same moment, and have tried the same targets for it, go together. The home
//! tells a [`Trip`] what happened, sends each [`Group`] that it then asks for, and answers when [`Trip::is_over`].

use std::sync::Arc;

use crate::endpoint::graph::Stages;
use crate::endpoint::{Flow, Judged, Ladder};
use crate::outcome::Rejection;
use crate::units::Instant;

use super::{Adds, Call, Depth, Ending, Journey, StageEnd, Target};

/// All rows of a call.
#[derive(Clone, Debug)]
pub struct Trip {
    flow: Arc<Flow>,
    rows: Vec<Row>,
    /// Rows that have not ended.
    open: usize,
    /// What is to be sent, in order of stages.
    groups: Vec<Group>,
    /// Reused.
    calls: Vec<Call>,
}

#[derive(Clone, Debug)]
struct Row {
    journey: Journey,
    end: Option<End>,
}

/// How a row ended, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct End {
    pub how: Ending,
    pub at: Instant,
}

/// Rows that go to one target together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What they want to run.
    pub stage: usize,
    /// Where they need not be sent again for it.
    pub tried: Vec<Target>,
    /// Where there was no room with time to spare.
    pub full: Vec<Target>,
    /// Their numbers, ascending.
    pub slots: Vec<usize>,
}

impl Group {
    /// Whether nobody was asked to run it before.
    pub fn is_new(&self) -> bool {
        self.tried.is_empty() && self.full.is_empty()
    }

    /// Leaves the `most` rows of it that running the stage adds most to, by `worth` of their numbers, the first of equals; the others, as a group.
    pub fn keep(&mut self, most: usize, worth: impl Fn(usize) -> f64) -> Group {
        let mut by_worth = self.slots.clone();
        by_worth.sort_by(|a, b| worth(*b).total_cmp(&worth(*a)));
        let mut others = by_worth.split_off(most.min(by_worth.len()));
        others.sort_unstable();
        self.slots.retain(|slot| others.binary_search(slot).is_err());
        Group { slots: others, tried: self.tried.clone(), full: self.full.clone(), stage: self.stage }
    }
}

impl Adds {
    /// For comparing what one stage adds to rows.
    pub fn worth(self) -> f64 {
        match self {
            Adds::All => f64::INFINITY,
            Adds::Something => 0.0,
            Adds::Value(value) => value,
        }
    }
}

impl Trip {
    /// A call of so many rows through a graph.
    ///
    /// # Panics
    /// Where no stage can answer that goes so deep: see [`Depth::can_answer`].
    pub fn new(flow: &Arc<Flow>, rows: usize, depth: Depth) -> Trip {
        let mut journey = Journey::new(depth);
        let mut calls = Vec::new();
        let ended = journey.start(flow, &mut calls);
        assert_eq!(ended, None, "whoever says how deep it goes has seen that something can answer");
        let group =
            |call: Call| Group { stage: call.stage, tried: Vec::new(), full: Vec::new(), slots: (0..rows).collect() };
        Trip {
            flow: Arc::clone(flow),
            groups: calls.drain(..).map(group).collect(),
            rows: vec![Row { journey, end: None }; rows],
            open: rows,
            calls,
        }
    }

    /// Whether every row has ended.
    pub fn is_over(&self) -> bool {
        self.open == 0
    }

    /// Rows of the call.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How a row ended; `None` while it is under way.
    pub fn end(&self, slot: usize) -> Option<End> {
        self.rows[slot].end
    }

    /// What running a stage that was asked for adds: see [`Journey::adds`].
    pub fn adds(&self, slot: usize, stage: usize) -> Adds {
        self.rows[slot].journey.adds(stage)
    }

    /// How many of the rows, or items, that a group `asks` were not counted as wanted before: none where it was asked already, and of rows that a gate
    /// has weighed it has told.
    pub fn newly_wanted(&self, group: &Group, asks: usize) -> usize {
        if !group.is_new() {
            return 0;
        }
        let is_weighed = |slot: &&usize| matches!(self.adds(**slot, group.stage), Adds::Value(_));
        asks.saturating_sub(group.slots.iter().filter(is_weighed).count())
    }

    /// Whether a row's answer is less than was wanted only because that was too dear: see [`Journey::is_dear`].
    pub fn is_dear(&self, slot: usize) -> bool {
        self.rows[slot].journey.is_dear()
    }

    /// What the gate behind the stage that answered last for a row said: see [`Journey::judged`].
    pub fn judged(&self, slot: usize) -> Option<Judged> {
        self.rows[slot].journey.judged()
    }

    /// How often what a stage gave for a row is not a number: see [`Journey::not_numbers`].
    pub fn not_numbers(&self, slot: usize) -> u32 {
        self.rows[slot].journey.not_numbers()
    }

    /// The next rows to send somewhere; `None` until something else has happened.
    pub fn next_group(&mut self) -> Option<Group> {
        if self.groups.is_empty() { None } else { Some(self.groups.remove(0)) }
    }

    /// The rows of `group` are on their way to `target`.
    pub fn on_sent(&mut self, group: &Group, target: &Target) {
        for slot in &group.slots {
            self.rows[*slot].journey.on_sent(group.stage, target);
        }
    }

    /// There is nowhere to send `group`.
    pub fn on_no_choice(&mut self, now: Instant, group: &Group, why: Rejection) {
        for slot in &group.slots {
            let end = self.rows[*slot].journey.on_no_choice(&self.flow, group.stage, why, &mut self.calls);
            self.take(now, *slot, end);
        }
    }

    /// The call of a stage ended for a row; `holds`: the stages with a condition that looks at this one, and holds. What comes after
    /// the row has ended is nothing to it. Returns what a gate found the next stage to be worth, whether it runs or not, where one has
    /// weighed that.
    pub fn on_stage_end(
        &mut self,
        now: Instant,
        ladder: &Ladder,
        slot: usize,
        stage: usize,
        end: StageEnd,
        holds: Stages,
    ) -> Option<f64> {
        let row = &mut self.rows[slot];
        if row.end.is_some() {
            return None;
        }
        let how = row.journey.on_stage_end(&self.flow, ladder, stage, end, holds, &mut self.calls);
        let judged = if matches!(end, StageEnd::Answered(_)) { row.journey.judged() } else { None };
        self.take(now, slot, how);
        judged.and_then(|judged| judged.value)
    }

    /// The deadline has passed: each row that is under way ends with what it has, once that is combined.
    pub fn on_deadline(&mut self, now: Instant) {
        self.groups.clear();
        for slot in 0..self.rows.len() {
            if self.rows[slot].end.is_none() {
                let end = self.rows[slot].journey.on_deadline(&self.flow, &mut self.calls);
                self.take(now, slot, end);
            }
        }
    }

    /// A row wants what has been written down for it, or has ended.
    fn take(&mut self, now: Instant, slot: usize, end: Option<Ending>) {
        if let Some(how) = end {
            assert_eq!(self.rows[slot].end, None, "a row ends once");
            self.calls.clear();
            // What it wanted beside what ended it is nothing to it either; a chain wants one stage at a time.
            if !self.flow.is_chain() {
                self.forget(slot);
            }
            self.rows[slot].end = Some(End { how, at: now });
            self.open -= 1;
        }
        let mut calls = std::mem::take(&mut self.calls);
        calls.drain(..).for_each(|call| self.want(call, slot));
        self.calls = calls;
    }

    /// A row that has ended wants nothing more.
    fn forget(&mut self, slot: usize) {
        for group in &mut self.groups {
            if let Ok(at) = group.slots.binary_search(&slot) {
                group.slots.remove(at);
            }
        }
        self.groups.retain(|group| !group.slots.is_empty());
    }

    fn want(&mut self, Call { stage, tried, full }: Call, slot: usize) {
        let wanted = (stage, &tried, &full);
        match self.groups.binary_search_by(|group| (group.stage, &group.tried, &group.full).cmp(&wanted)) {
            Ok(at) => {
                let slots = &mut self.groups[at].slots;
                slots.insert(slots.partition_point(|known| *known < slot), slot);
            }
            Err(at) => self.groups.insert(at, Group { stage, tried, full, slots: vec![slot] }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{cascade, flow, local, remote};
    use super::*;
    use crate::endpoint::graph::Needs;

    const NOW: Instant = Instant::ZERO;

    fn sent(trip: &mut Trip, target: &Target) -> Group {
        let group = trip.next_group().expect("something is wanted");
        trip.on_sent(&group, target);
        group
    }

    #[test]
    fn rows_that_go_deeper_at_one_moment_go_together() {
        let ladder = cascade();
        let mut trip = Trip::new(&flow(), 4, Depth::ANY);
        assert_eq!(sent(&mut trip, &local()).slots, [0, 1, 2, 3]);
        assert!(trip.next_group().is_none());
        for (slot, confidence) in [(3, 0.1), (0, 0.95), (1, 0.1)] {
            trip.on_stage_end(NOW, &ladder, slot, 0, StageEnd::Answered(Some(confidence)), 0);
        }
        let deeper = sent(&mut trip, &local());
        assert_eq!((deeper.stage, deeper.slots.as_slice()), (1, [1, 3].as_slice()));
        assert_eq!(deeper.tried, [], "another stage, so no target was tried for it");
        assert_eq!(trip.end(0).unwrap().how, Ending::Answer { stage: 0, degraded: false });
        assert!(!trip.is_over());
    }

    #[test]
    fn rows_with_other_failures_behind_them_go_apart() {
        let ladder = cascade();
        let mut trip = Trip::new(&flow(), 3, Depth::ANY);
        sent(&mut trip, &local());
        trip.on_stage_end(NOW, &ladder, 2, 0, StageEnd::Rejected(Rejection::QueueFull), 0);
        sent(&mut trip, &remote("n2"));
        trip.on_stage_end(NOW, &ladder, 1, 0, StageEnd::Lost, 0);
        trip.on_stage_end(NOW, &ladder, 2, 0, StageEnd::Lost, 0);
        let (first, second) = (trip.next_group().unwrap(), trip.next_group().unwrap());
        assert_eq!((first.slots, first.tried), (vec![1], vec![local()]));
        assert_eq!((second.slots, second.tried), (vec![2], vec![local(), remote("n2")]));
    }

    #[test]
    fn at_the_deadline_every_row_ends_once_with_what_it_has() {
        let ladder = cascade();
        let mut trip = Trip::new(&flow(), 3, Depth::ANY);
        sent(&mut trip, &local());
        trip.on_stage_end(NOW, &ladder, 0, 0, StageEnd::Answered(Some(0.1)), 0);
        trip.on_stage_end(NOW, &ladder, 1, 0, StageEnd::Answered(Some(0.99)), 0);
        let deadline = Instant::from_millis(50);
        trip.on_deadline(deadline);
        assert!(trip.is_over() && trip.next_group().is_none(), "nothing starts after it");
        let degraded = End { how: Ending::Answer { stage: 0, degraded: true }, at: deadline };
        assert_eq!(trip.end(0), Some(degraded));
        assert_eq!(trip.end(1).unwrap().at, NOW, "it had ended before");
        assert_eq!(trip.end(2).unwrap().how, Ending::Expire);
        trip.on_stage_end(Instant::from_millis(60), &ladder, 2, 0, StageEnd::Answered(Some(0.99)), 0);
        assert_eq!(trip.end(2).unwrap().at, deadline, "what comes later is nothing to it");
    }

    #[test]
    fn asking_who_is_full_is_no_attempt() {
        let ladder = cascade();
        let mut trip = Trip::new(&flow(), 2, Depth::ANY);
        let nodes = ["n2", "n3", "n4", "n5"].map(remote);
        for node in &nodes {
            assert_eq!(sent(&mut trip, node).slots, [0, 1]);
            (0..2).for_each(|slot| assert_eq!(trip.on_stage_end(NOW, &ladder, slot, 0, StageEnd::Full, 0), None));
        }
        let group = sent(&mut trip, &local());
        assert_eq!(
            (group.tried, group.full.as_slice()),
            (Vec::new(), nodes.as_slice()),
            "each may still be asked for good"
        );
        trip.on_stage_end(NOW, &ladder, 0, 0, StageEnd::Lost, 0);
        let again = trip.next_group().unwrap();
        assert_eq!((again.tried, again.full.len()), (vec![local()], 4));
        trip.on_deadline(Instant::from_millis(50));
        assert!(trip.is_over());
        assert_eq!(trip.on_stage_end(NOW, &ladder, 1, 0, StageEnd::Full, 0), None, "after its end it is nothing to it");
    }

    #[test]
    fn a_row_that_has_ended_wants_nothing_more() {
        let branch = Needs::default();
        let joined = Needs { all: 0b11, at_home: true, ..Needs::default() };
        let mut trip = Trip::new(&Arc::new(Flow::new(vec![branch, branch, joined], 0b100)), 2, Depth::ANY);
        let first = trip.next_group().unwrap();
        trip.on_no_choice(NOW, &first, Rejection::TooLate);
        assert!(trip.is_over() && trip.next_group().is_none(), "the other branch is nothing to anybody now");
        assert_eq!(trip.end(0).unwrap().how, Ending::Refuse(Rejection::TooLate));
    }

    #[test]
    fn of_a_group_those_stay_that_it_adds_most_to() {
        let all = |slots: &[usize]| Group { stage: 1, tried: vec![local()], full: Vec::new(), slots: slots.to_vec() };
        let worth = |slot: usize| [0.1, 0.4, 0.4, 0.0, 0.3, 0.2][slot];
        for (most, kept, others) in [
            (3, vec![1, 2, 4], vec![0, 3, 5]),
            (1, vec![1], vec![0, 2, 3, 4, 5]),
            (0, vec![], vec![0, 1, 2, 3, 4, 5]),
            (9, vec![0, 1, 2, 3, 4, 5], vec![]),
        ] {
            let mut group = all(&[0, 1, 2, 3, 4, 5]);
            let rest = group.keep(most, worth);
            assert_eq!((group, rest), (all(&kept), all(&others)));
        }
    }

    #[test]
    fn where_nothing_can_be_chosen_the_group_ends() {
        let mut trip = Trip::new(&flow(), 2, Depth::ANY);
        let group = trip.next_group().unwrap();
        trip.on_no_choice(NOW, &group, Rejection::NoReplica);
        assert!(trip.is_over());
        assert_eq!(trip.end(1).unwrap().how, Ending::Refuse(Rejection::NoReplica));
    }
}
