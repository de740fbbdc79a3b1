//! One query at its home: which replica runs the next stage, and what goes out when it cannot.
//!
//! [`Journey`] is one row on its way through the stages of an endpoint: it is told what happened and says the [`Step`] that
//! follows; every journey ends with exactly one of the closing steps. The best answer so far is never lost: once a stage has
//! answered, whatever goes wrong deeper ends in that answer, marked degraded. [`Trip`] is a call, all its rows together; homes
//! drive it, those of the cluster and those of the simulator.

mod choose;
#[cfg(test)]
mod tests;
mod trip;

pub use choose::{Candidate, Choice, Estimate, Target, Told, cheapest, choose, remote_finish};
pub use trip::{End, Group, Trip};

use crate::endpoint::{Judged, Ladder, Verdict};
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
}

/// What the home does next for one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    /// Run this stage on the best replica; try another than the last one where `again`.
    Call { stage: usize, again: bool },
    /// Send what this stage gave. `degraded`: a deeper one was wanted and could not be had.
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
    /// The deadline passed.
    Expired,
    /// It ran and failed.
    Failed,
    /// The connection to its node broke; it may have run. Models are pure: it may run again elsewhere.
    Lost,
}

/// Calls of one stage before giving up: one for each of the two candidates that were compared, and one more.
const ATTEMPTS_MAX: u32 = 3;

/// One row on its way through the stages.
#[derive(Clone, Debug)]
pub struct Journey {
    depth: Depth,
    stage: usize,
    /// What running it is worth, where a gate has weighed that.
    value: Option<f64>,
    attempts: u32,
    answered: Option<usize>,
    /// A call of this stage may have run where nobody heard of it.
    lost: bool,
    /// Confidences that were not numbers.
    not_numbers: u32,
    /// What the gate behind the stage that answered last said.
    judged: Option<Judged>,
}

impl Journey {
    /// A row before its first stage.
    pub fn new(depth: Depth) -> Journey {
        Journey { depth, stage: 0, value: None, attempts: 0, answered: None, lost: false, not_numbers: 0, judged: None }
    }

    /// The first thing to do.
    pub fn start(&mut self) -> Step {
        self.call(self.depth.from, None)
    }

    /// The stage that was asked for last.
    pub fn stage(&self) -> usize {
        self.stage
    }

    /// What running that stage adds to the answer in hand, in units of value; `None` where there is none, or its gate does not
    /// weigh.
    pub fn value(&self) -> Option<f64> {
        self.value
    }

    /// How often a gate was asked about something that is not a number.
    pub fn not_numbers(&self) -> u32 {
        self.not_numbers
    }

    /// What the gate behind the stage that answered last said; `None` where none was asked: there is none, or the caller had said how
    /// deep to go.
    pub fn judged(&self) -> Option<Judged> {
        self.judged
    }

    /// The stage call asked for last ended.
    pub fn on_stage_end(&mut self, ladder: &Ladder, end: StageEnd) -> Step {
        match end {
            StageEnd::Answered(confidence) => self.on_answer(ladder, confidence),
            StageEnd::Lost => {
                self.lost = true;
                if self.attempts < ATTEMPTS_MAX { self.again() } else { self.close(Step::Fail) }
            }
            // Elsewhere there may be room; it is the caller of `choose` who finds that there is none.
            StageEnd::Rejected(Rejection::NoReplica | Rejection::Draining | Rejection::QueueFull)
                if self.attempts < ATTEMPTS_MAX =>
            {
                self.again()
            }
            StageEnd::Rejected(why) => self.close(Step::Refuse(why)),
            StageEnd::Expired => self.close(Step::Expire),
            StageEnd::Failed => self.close(Step::Fail),
        }
    }

    /// No replica could be chosen for the stage asked for last.
    pub fn on_no_choice(&mut self, why: Rejection) -> Step {
        self.close(Step::Refuse(why))
    }

    /// The deadline passed while a stage call was under way.
    pub fn on_deadline(&mut self) -> Step {
        self.close(Step::Expire)
    }

    fn on_answer(&mut self, ladder: &Ladder, confidence: Option<f32>) -> Step {
        self.answered = Some(self.stage);
        self.judged = None;
        let answer = Step::Answer { stage: self.stage, degraded: false };
        let next = self.stage + 1;
        if next == ladder.endpoint().stages.len() || next > self.depth.most {
            return answer;
        }
        if next <= self.depth.least {
            return self.call(next, None);
        }
        let Some(judged) = ladder.judge(next, confidence) else { return self.call(next, None) };
        self.judged = Some(judged);
        self.not_numbers += u32::from(judged.signal.is_nan());
        match judged.verdict() {
            Verdict::Deeper(value) => self.call(next, value),
            Verdict::Stop(_) => answer,
        }
    }

    fn call(&mut self, stage: usize, value: Option<f64>) -> Step {
        self.stage = stage;
        self.value = value;
        self.attempts = 1;
        self.lost = false;
        Step::Call { stage, again: false }
    }

    fn again(&mut self) -> Step {
        self.attempts += 1;
        Step::Call { stage: self.stage, again: true }
    }

    fn close(&self, without_answer: Step) -> Step {
        match self.answered {
            Some(stage) if stage >= self.depth.least => Step::Answer { stage, degraded: true },
            // "It did not run" must be true: somebody may pay for it twice.
            _ if self.lost && matches!(without_answer, Step::Refuse(_)) => Step::Fail,
            _ => without_answer,
        }
    }
}
