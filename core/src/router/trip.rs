//! A call of several rows at its home: which rows want which stage now, what each has tried, and when all have ended.
//!
//! Rows of one call that want the same stage at the same moment, and have tried the same targets for it, go together. The home
//! tells a [`Trip`] what happened, sends each [`Group`] that it then asks for, and answers when [`Trip::is_over`].

use crate::endpoint::{Judged, Ladder};
use crate::outcome::Rejection;
use crate::units::Instant;

use super::{Depth, Journey, StageEnd, Step, Target};

/// All rows of a call.
#[derive(Clone, Debug)]
pub struct Trip {
    rows: Vec<Row>,
    /// Rows that have not ended.
    open: usize,
    /// What is to be sent, in order of stages.
    groups: Vec<Group>,
}

#[derive(Clone, Debug)]
struct Row {
    journey: Journey,
    /// Where the stage call in progress was sent, and what was tried for it before.
    tried: Vec<Target>,
    end: Option<End>,
}

/// How a row ended, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct End {
    pub step: Step,
    pub at: Instant,
}

/// Rows that go to one target together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What they want to run.
    pub stage: usize,
    /// Where they need not be sent again for it.
    pub tried: Vec<Target>,
    /// Their numbers, ascending.
    pub slots: Vec<usize>,
}

impl Trip {
    /// A call of so many rows, which want the first stage.
    pub fn new(rows: usize, depth: Depth) -> Trip {
        let mut journey = Journey::new(depth);
        let Step::Call { stage, .. } = journey.start() else { unreachable!("a journey starts with a call") };
        let first = Group { stage, tried: Vec::new(), slots: (0..rows).collect() };
        Trip { rows: vec![Row { journey, tried: Vec::new(), end: None }; rows], open: rows, groups: vec![first] }
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

    /// The stage that was asked for last for a row.
    pub fn stage(&self, slot: usize) -> usize {
        self.rows[slot].journey.stage()
    }

    /// What running that stage is worth: see [`Journey::value`].
    pub fn value(&self, slot: usize) -> Option<f64> {
        self.rows[slot].journey.value()
    }

    /// What the gate behind the stage that answered last for a row said: see [`Journey::judged`].
    pub fn judged(&self, slot: usize) -> Option<Judged> {
        self.rows[slot].journey.judged()
    }

    /// The next rows to send somewhere; `None` until something else has happened.
    pub fn next_group(&mut self) -> Option<Group> {
        if self.groups.is_empty() { None } else { Some(self.groups.remove(0)) }
    }

    /// The rows of `group` are on their way to `target`.
    pub fn on_sent(&mut self, group: &Group, target: &Target) {
        for slot in &group.slots {
            self.rows[*slot].tried.push(target.clone());
        }
    }

    /// There is nowhere to send `group`.
    pub fn on_no_choice(&mut self, now: Instant, group: &Group, why: Rejection) {
        for slot in &group.slots {
            let step = self.rows[*slot].journey.on_no_choice(why);
            self.close(now, *slot, step);
        }
    }

    /// The stage call of a row ended. What comes after the row has ended is nothing to it. Returns what a gate found the next stage to
    /// be worth, whether it runs or not, where one has weighed that.
    pub fn on_stage_end(&mut self, now: Instant, ladder: &Ladder, slot: usize, end: StageEnd) -> Option<f64> {
        let row = &mut self.rows[slot];
        if row.end.is_some() {
            return None;
        }
        let step = row.journey.on_stage_end(ladder, end);
        let judged = if matches!(end, StageEnd::Answered(_)) { row.journey.judged() } else { None };
        let weighed = judged.and_then(|judged| judged.value);
        match step {
            Step::Call { stage, again } => {
                if !again {
                    row.tried.clear();
                }
                self.want(stage, slot);
            }
            step => self.close(now, slot, step),
        }
        weighed
    }

    /// The deadline has passed: each row that is under way ends with what it has.
    pub fn on_deadline(&mut self, now: Instant) {
        self.groups.clear();
        for slot in 0..self.rows.len() {
            if self.rows[slot].end.is_none() {
                let step = self.rows[slot].journey.on_deadline();
                self.close(now, slot, step);
            }
        }
    }

    fn want(&mut self, stage: usize, slot: usize) {
        let tried = &self.rows[slot].tried;
        let key = (stage, tried);
        match self.groups.binary_search_by(|group| (group.stage, &group.tried).cmp(&key)) {
            Ok(at) => {
                let slots = &mut self.groups[at].slots;
                slots.insert(slots.partition_point(|known| *known < slot), slot);
            }
            Err(at) => self.groups.insert(at, Group { stage, tried: tried.clone(), slots: vec![slot] }),
        }
    }

    fn close(&mut self, at: Instant, slot: usize, step: Step) {
        self.rows[slot].end = Some(End { step, at });
        self.open -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{cascade, local, remote};
    use super::*;

    const NOW: Instant = Instant::ZERO;

    fn sent(trip: &mut Trip, target: &Target) -> Group {
        let group = trip.next_group().expect("something is wanted");
        trip.on_sent(&group, target);
        group
    }

    #[test]
    fn rows_that_go_deeper_at_one_moment_go_together() {
        let ladder = cascade();
        let mut trip = Trip::new(4, Depth::ANY);
        assert_eq!(sent(&mut trip, &local()).slots, [0, 1, 2, 3]);
        assert!(trip.next_group().is_none());
        for (slot, confidence) in [(3, 0.1), (0, 0.95), (1, 0.1)] {
            trip.on_stage_end(NOW, &ladder, slot, StageEnd::Answered(Some(confidence)));
        }
        let deeper = sent(&mut trip, &local());
        assert_eq!((deeper.stage, deeper.slots.as_slice()), (1, [1, 3].as_slice()));
        assert_eq!(deeper.tried, [], "another stage, so no target was tried for it");
        assert_eq!(trip.end(0).unwrap().step, Step::Answer { stage: 0, degraded: false });
        assert!(!trip.is_over());
    }

    #[test]
    fn rows_with_other_failures_behind_them_go_apart() {
        let ladder = cascade();
        let mut trip = Trip::new(3, Depth::ANY);
        sent(&mut trip, &local());
        trip.on_stage_end(NOW, &ladder, 2, StageEnd::Rejected(Rejection::QueueFull));
        sent(&mut trip, &remote("n2"));
        trip.on_stage_end(NOW, &ladder, 1, StageEnd::Lost);
        trip.on_stage_end(NOW, &ladder, 2, StageEnd::Lost);
        let (first, second) = (trip.next_group().unwrap(), trip.next_group().unwrap());
        assert_eq!((first.slots, first.tried), (vec![1], vec![local()]));
        assert_eq!((second.slots, second.tried), (vec![2], vec![local(), remote("n2")]));
    }

    #[test]
    fn at_the_deadline_every_row_ends_once_with_what_it_has() {
        let ladder = cascade();
        let mut trip = Trip::new(3, Depth::ANY);
        sent(&mut trip, &local());
        trip.on_stage_end(NOW, &ladder, 0, StageEnd::Answered(Some(0.1)));
        trip.on_stage_end(NOW, &ladder, 1, StageEnd::Answered(Some(0.99)));
        let deadline = Instant::from_millis(50);
        trip.on_deadline(deadline);
        assert!(trip.is_over() && trip.next_group().is_none(), "nothing starts after it");
        let degraded = End { step: Step::Answer { stage: 0, degraded: true }, at: deadline };
        assert_eq!(trip.end(0), Some(degraded));
        assert_eq!(trip.end(1).unwrap().at, NOW, "it had ended before");
        assert_eq!(trip.end(2).unwrap().step, Step::Expire);
        trip.on_stage_end(Instant::from_millis(60), &ladder, 2, StageEnd::Answered(Some(0.99)));
        assert_eq!(trip.end(2).unwrap().at, deadline, "what comes later is nothing to it");
    }

    #[test]
    fn where_nothing_can_be_chosen_the_group_ends() {
        let mut trip = Trip::new(2, Depth::ANY);
        let group = trip.next_group().unwrap();
        trip.on_no_choice(NOW, &group, Rejection::NoReplica);
        assert!(trip.is_over());
        assert_eq!(trip.end(1).unwrap().step, Step::Refuse(Rejection::NoReplica));
    }
}
