//! By when a stage has to be done, so that what has to follow it can be in time as well.
//!
//! What can answer by itself has all of the time. A stage that something has to follow has what it takes by now, where it is done soonest, and
//! its part of what neither it nor the rest needs, by how long both take: what others do to a long stage can cost more than what they do to a
//! short one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::Flow;
use crate::outcome::Class;
use crate::profile::Profile;
use crate::scheduler::Inquiry;
use crate::units::{Deadline, Instant};

/// How much one row says of how many items rows have.
const FORGETS: f32 = 1.0 / 16.0;
/// The least part of the slack that a stage has: what is known of its time may be less than is true.
const PART_MIN: f64 = 0.1;

/// What is known of the time that the stages of an endpoint take.
#[derive(Debug)]
pub struct Budget {
    flow: Arc<Flow>,
    stages: Vec<Work>,
}

#[derive(Debug)]
struct Work {
    /// Of the fastest replica; nothing for combinations, and where none is ready.
    profile: Option<Profile>,
    /// How many items a row has of late, as the bits of an `f32`: who loses a race loses one row's word.
    items: AtomicU32,
}

impl Budget {
    /// Of stages whose models take what `profiles` say.
    pub fn new(flow: &Arc<Flow>, profiles: impl Iterator<Item = Option<Profile>>) -> Budget {
        let stage = |profile| Work { profile, items: AtomicU32::new(1.0_f32.to_bits()) };
        Budget { flow: Arc::clone(flow), stages: profiles.map(stage).collect() }
    }

    /// How many items rows have is known from before, where its stages follow each other as they did then.
    pub fn learn(&self, before: &Budget) {
        if self.flow == before.flow {
            for (now, then) in self.stages.iter().zip(&before.stages) {
                now.items.store(then.items.load(Relaxed), Relaxed);
            }
        }
    }

    /// A row had so many items for a stage that runs them one by one.
    pub fn on_items(&self, stage: usize, items: usize) {
        let known = &self.stages[stage].items;
        let mean = f32::from_bits(known.load(Relaxed));
        known.store((mean + FORGETS * (items as f32 - mean)).to_bits(), Relaxed);
    }

    /// How many items a row has at a stage, of late and on average; 1 where it does not run items one by one.
    pub fn items(&self, stage: usize) -> f64 {
        f64::from(f32::from_bits(self.stages[stage].items.load(Relaxed)))
    }

    /// How long the stages take that have to follow a stage before there is any answer to one row, in seconds, where nothing waits.
    fn rest(&self, stage: usize) -> f64 {
        if self.flow.answers() & (1 << stage) != 0 {
            return 0.0;
        }
        let span =
            |(at, stage): (usize, &Work)| stage.profile.as_ref().map_or(0.0, |profile| profile.span(self.items(at)));
        self.flow.rest(&self.stages.iter().enumerate().map(span).collect::<Vec<_>>())[stage]
    }

    /// What a device is asked of a row of a query of this class and `deadline` at a stage, which has to leave the rest its time.
    pub fn asks(&self, stage: usize, class: Class, deadline: Deadline) -> Inquiry {
        Inquiry::of(class, deadline.sooner_by(Duration::from_secs_f64(self.rest(stage))))
    }

    /// By when a stage has to be done of a query with this `deadline`, where it takes `own` seconds from now.
    pub fn deadline(&self, now: Instant, stage: usize, deadline: Deadline, own: f64) -> Deadline {
        stage_deadline(now, deadline, own, self.rest(stage))
    }
}

/// By when a stage has to be done of a query with this `deadline`, where it takes `own` seconds from now, and what has to follow it `rest`.
fn stage_deadline(now: Instant, deadline: Deadline, own: f64, rest: f64) -> Deadline {
    if rest <= 0.0 {
        return deadline;
    }
    let left = deadline.left(now).as_secs_f64();
    let slack = left - own - rest;
    // Where there is none, the rest needs what it needs.
    let has = if slack <= 0.0 { (left - rest).max(0.0) } else { own + slack * (own / (own + rest)).max(PART_MIN) };
    Deadline::after(now, Duration::from_secs_f64(has))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::graph::Needs;
    use crate::units::ServiceTime;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn a_stage_has_what_it_takes_and_its_part_of_the_slack() {
        let deadline = Deadline(at(1100));
        let of = |own, rest| stage_deadline(at(1000), deadline, own, rest).0.since(at(1000)).as_secs_f64() * 1e3;
        assert_eq!(of(0.05, 0.0), 100.0, "what can answer has all of it");
        assert_eq!(of(0.02, 0.03), 40.0, "two fifths of the slack");
        assert_eq!(of(0.02, 0.08), 20.0);
        assert_eq!(of(0.05, 0.08), 20.0, "what follows would be late: it is not to begin with");
        assert_eq!(of(0.05, 0.2), 0.0);
        assert_eq!(of(0.0, 0.05), 5.0, "of what is known to take no time at all, too");
    }

    #[test]
    fn what_follows_takes_a_whole_batch_of_as_many_items_as_rows_have() {
        let profile = |us: u64, row_us: u64, most: u32| {
            Some(Profile::new(&[
                (1, ServiceTime::from_micros(us + row_us)),
                (most, ServiceTime::from_micros(us + row_us * u64::from(most))),
            ]))
        };
        // A stage, its items one by one, something made of those, and a combination that answers.
        let needs = |all, at_home| Needs { all, at_home, ..Needs::default() };
        let flow = Flow::new(vec![needs(0, false), needs(0b1, false), needs(0b10, false), needs(0b100, true)], 0b1000);
        let profiles = [profile(0, 1000, 8), profile(8000, 1000, 8), profile(50_000, 100, 64), None];
        let budget = Budget::new(&Arc::new(flow), profiles.into_iter());
        let rest = || [0, 1, 2, 3].map(|stage| budget.rest(stage));
        let close = |rest: [f64; 4], to: [f64; 4]| rest.iter().zip(to).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(rest(), [0.0591, 0.0501, 0.0, 0.0]), "{:?}", rest());
        (0..200).for_each(|_| budget.on_items(1, 16));
        assert!((budget.items(1) - 16.0).abs() < 0.01 && budget.items(0) == 1.0);
        let two_batches = 0.032 + 0.0501;
        assert!((budget.rest(0) - two_batches).abs() < 1e-3, "{:?}", rest());
        let anew = |flow: &Arc<Flow>| {
            let anew = Budget::new(flow, vec![None; flow.needs().len()].into_iter());
            anew.learn(&budget);
            anew.items(1)
        };
        assert!(anew(&budget.flow) > 15.0, "they have as many as before");
        assert_eq!(anew(&Arc::new(Flow::chain([false, true].into_iter()))), 1.0, "another endpoint by now");
        let chain = Budget::new(&Arc::new(Flow::chain([false, true].into_iter())), [None, None].into_iter());
        assert_eq!([0, 1].map(|stage| chain.rest(stage)), [0.0, 0.0], "each can answer");
    }
}
