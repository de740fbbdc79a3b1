//! One query at its home: which replica runs the next stage, and what goes out when it cannot.
//!
//! [`Journey`] is one row on its way through the stages of an endpoint: it is told what happened and says which stages are called
//! next, or how it ends ([`Ending`]); every journey ends once. The best answer so far is never lost: once a stage has
//! answered, whatever goes wrong deeper ends in that answer, marked degraded. [`Trip`] is a call, all its rows together; homes
//! drive it, those of the cluster and those of the simulator.

mod choose;
mod journey;
mod meeting;
#[cfg(test)]
mod tests;
mod trip;

pub use choose::{
    Candidate, Choice, Draw, Estimate, Target, Told, cheapest, choose, choose_part, doubted, missed, remote_finish,
    sent, soonest,
};
pub use journey::{Call, Journey};
pub use meeting::{Coming, has_room, meeting_order, spare_here};
pub use trip::{End, Group, Trip};

use crate::endpoint::Flow;
use crate::outcome::Rejection;

/// How deep a caller wants to go, by numbers of stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Where it begins: shallower stages are not asked.
    pub from: usize,
    /// No shallower stage may answer: then rather none does.
    pub least: usize,
    /// No deeper stage is asked.
    pub most: usize,
}

impl Depth {
    /// As the gates say.
    pub const ANY: Depth = Depth { from: 0, least: 0, most: usize::MAX };

    /// One stage, asked alone.
    pub const fn only(stage: usize) -> Depth {
        Depth { from: stage, least: stage, most: stage }
    }

    /// The ways of being answered by one stage, shallow ones first: how deep each goes, and how long a row takes in all where each stage takes
    /// as long as `spans` says. What a stage takes from others is asked for as well.
    pub fn ways(flow: &Flow, spans: &[f64]) -> Vec<(Depth, f64)> {
        let way = |stage: usize| {
            if flow.is_alone(stage) {
                return Some((Depth::only(stage), spans[stage]));
            }
            let depth = Depth { from: 0, ..Depth::only(stage) };
            let up_to = flow.up_to(stage);
            let takes = spans.iter().enumerate().filter(|(at, _)| up_to & (1 << at) != 0).map(|(_, span)| span).sum();
            depth.can_answer(flow).then_some((depth, takes))
        };
        (0..flow.needs().len()).filter_map(way).collect()
    }

    /// Whether some stage can answer that goes so deep, and no deeper.
    pub fn can_answer(&self, flow: &Flow) -> bool {
        flow.answering(self.from, self.least, self.most) != 0
    }
}

/// What running a stage adds to the answer that its caller has in hand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Adds {
    /// There is none, or the stage has to run.
    All,
    /// A gate or a condition wants it, and nothing says how much it adds.
    Something,
    /// So much, in units of value.
    Value(f64),
}

/// How a row ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Ending {
    /// Send what this stage gave. `degraded`: more was wanted, and could not be had or was too dear.
    Answer { stage: usize, degraded: bool },
    /// It did not run.
    Refuse(Rejection),
    /// Its deadline passed.
    Expire,
    /// It ran and failed.
    Fail,
}

/// What became of a stage call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StageEnd {
    /// The stage answered; what its gate looks at, where the endpoint has that.
    Answered(Option<f32>),
    /// It did not run there.
    Rejected(Rejection),
    /// There was no room to do it there by the time that it was sent with: others are to come before (see [`Choice::Asking`]).
    Full,
    /// What it would be asked may not lie at the row's home beside what other calls have there: elsewhere that is no better.
    NoRoom,
    /// The deadline passed.
    Expired,
    /// It ran and failed.
    Failed,
    /// The connection to its node broke; it may have run. Models are pure: it may run again elsewhere.
    Lost,
}
