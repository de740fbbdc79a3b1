//! One row on its way through the stages of an endpoint.

use super::{Adds, Depth, Ending, StageEnd, Target};
use crate::endpoint::graph::{Stages, below};
use crate::endpoint::{Flow, Judged, Ladder, Verdict};
use crate::outcome::Rejection;

/// Calls of one stage before giving up: one for each of the two candidates that were compared, and one more.
const ATTEMPTS_MAX: u32 = 3;

/// A stage to call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Call {
    pub stage: usize,
    /// Where it was sent before: another target may do better.
    pub tried: Vec<Target>,
    /// Where there was no room with time to spare: others come first.
    pub full: Vec<Target>,
}

/// One row.
#[derive(Clone, Debug)]
pub struct Journey {
    depth: Depth,
    answered: Stages,
    /// Not wanted: a gate, a condition or the caller says so.
    skipped: Stages,
    /// Wanted, and not to be had.
    missing: Stages,
    /// Their condition holds.
    held: Stages,
    under_way: Vec<UnderWay>,
    /// What the last gate that let pass found the stage behind it to be worth.
    worth: Option<(usize, f64)>,
    /// Answers whose confidence is not a number.
    hollow: Stages,
    /// A gate would have gone on where nothing is dear.
    dear: bool,
    /// Why it ends where there is no answer: the worst that happened.
    why: Option<Ending>,
    /// The deadline has passed.
    late: bool,
    /// How often a stage gave something whose confidence is not a number, or nothing that a gate could look at.
    not_numbers: u32,
    /// What the gate behind the stage that answered last said.
    judged: Option<Judged>,
}

#[derive(Clone, Debug)]
struct UnderWay {
    stage: usize,
    attempts: u32,
    /// A call of it may have run where nobody heard of it.
    lost: bool,
    /// Why a target did not run it, the last that said so: where no other is left, that is why it is not to be had.
    refused: Option<Rejection>,
    adds: Adds,
    tried: Vec<Target>,
    full: Vec<Target>,
}

/// What can be said of a stage that is not under way and has not ended.
enum Standing {
    Waits,
    Ready,
    Skipped,
    Missing,
}

impl Journey {
    /// A row before its first stage.
    pub fn new(depth: Depth) -> Journey {
        Journey {
            depth,
            answered: 0,
            skipped: 0,
            missing: 0,
            held: 0,
            under_way: Vec::new(),
            worth: None,
            hollow: 0,
            dear: false,
            why: None,
            late: false,
            not_numbers: 0,
            judged: None,
        }
    }

    /// Adds the first stages to call to `calls`. This and what follows is told how the row ends, when it does.
    pub fn start(&mut self, flow: &Flow, calls: &mut Vec<Call>) -> Option<Ending> {
        let all = below(flow.needs().len());
        self.skipped = all & (below(self.depth.from) | !below(self.depth.most.saturating_add(1)));
        self.go_on(flow, calls)
    }

    /// What running a stage under way adds to the answer in hand.
    pub fn adds(&self, stage: usize) -> Adds {
        self.under_way.iter().find(|call| call.stage == stage).map_or(Adds::All, |call| call.adds)
    }

    /// Whether its answer is less than was wanted for no other reason than that computing time was dear.
    pub fn is_dear(&self) -> bool {
        self.dear && self.missing == 0
    }

    /// How often a stage gave something whose confidence is not a number, or nothing that the gate behind it could look at.
    pub fn not_numbers(&self) -> u32 {
        self.not_numbers
    }

    /// What the gate behind the stage that answered last said; `None` where none was asked: there is none, or the caller had said how
    /// deep to go.
    pub fn judged(&self) -> Option<Judged> {
        self.judged
    }

    /// A stage was sent to a target.
    pub fn on_sent(&mut self, stage: usize, target: &Target) {
        let call = self.under_way.iter_mut().find(|call| call.stage == stage);
        call.expect("it was asked for").tried.push(target.clone());
    }

    /// The call of a stage ended; `holds`: the stages with a condition that looks at this one, and holds.
    pub fn on_stage_end(
        &mut self,
        flow: &Flow,
        ladder: &Ladder,
        stage: usize,
        end: StageEnd,
        holds: Stages,
        calls: &mut Vec<Call>,
    ) -> Option<Ending> {
        let Some(at) = self.under_way.iter().position(|call| call.stage == stage) else {
            self.judged = None;
            return None;
        };
        let call = &mut self.under_way[at];
        if end == StageEnd::Full && !self.late {
            // No attempt: it was only asked.
            call.full.extend(call.tried.pop());
            calls.push(Call { stage, tried: call.tried.clone(), full: call.full.clone() });
            return None;
        }
        let again = match end {
            StageEnd::Lost => {
                call.lost = true;
                true
            }
            // Elsewhere there may be room; it is the caller of `choose` who finds that there is none.
            StageEnd::Rejected(why) => {
                call.refused = Some(why);
                matches!(why, Rejection::NoReplica | Rejection::Draining | Rejection::QueueFull)
            }
            _ => false,
        };
        if again && call.attempts < ATTEMPTS_MAX && !self.late {
            call.attempts += 1;
            calls.push(Call { stage, tried: call.tried.clone(), full: call.full.clone() });
            return None;
        }
        match end {
            StageEnd::Answered(signal) => {
                self.under_way.remove(at);
                self.on_answer(flow, ladder, stage, signal, holds);
            }
            StageEnd::Lost | StageEnd::Failed => self.miss(at, Ending::Fail),
            StageEnd::Rejected(why) => self.miss(at, Ending::Refuse(why)),
            StageEnd::Full => self.miss(at, Ending::Refuse(Rejection::TooLate)),
            StageEnd::NoRoom => self.miss(at, Ending::Refuse(Rejection::QueueFull)),
            StageEnd::Expired => self.miss(at, Ending::Expire),
        }
        self.go_on(flow, calls)
    }

    /// No replica could be chosen for a stage asked for.
    pub fn on_no_choice(&mut self, flow: &Flow, stage: usize, why: Rejection, calls: &mut Vec<Call>) -> Option<Ending> {
        let at = self.under_way.iter().position(|call| call.stage == stage)?;
        // Nobody left to ask says less than who was asked.
        let why = self.under_way[at].refused.filter(|_| why == Rejection::NoReplica).unwrap_or(why);
        self.miss(at, Ending::Refuse(why));
        self.go_on(flow, calls)
    }

    /// The deadline passed: nothing is computed any more but what can be made of the answers at hand, at once.
    pub fn on_deadline(&mut self, flow: &Flow, calls: &mut Vec<Call>) -> Option<Ending> {
        self.late = true;
        self.blame(Ending::Expire);
        for call in self.under_way.drain(..) {
            self.missing |= 1 << call.stage;
        }
        self.go_on(flow, calls)
    }

    fn on_answer(&mut self, flow: &Flow, ladder: &Ladder, stage: usize, signal: Option<f32>, holds: Stages) {
        self.answered |= 1 << stage;
        self.held |= holds;
        self.judged = None;
        if signal.is_some_and(f32::is_nan) {
            self.hollow |= 1 << stage;
            self.not_numbers += 1;
        }
        let next = stage + 1;
        let gated = flow.needs().get(next).is_some_and(|needs| needs.gated);
        if !gated || next <= self.depth.least || self.skipped & (1 << next) != 0 {
            return;
        }
        let Some(judged) = ladder.judge(next, signal) else { return };
        self.judged = Some(judged);
        self.dear |= judged.is_dear();
        self.not_numbers += u32::from(signal.is_none());
        match judged.verdict() {
            Verdict::Deeper(value) => self.worth = value.map(|value| (next, value)),
            Verdict::Stop(_) => self.skipped |= 1 << next,
        }
    }

    /// A stage under way is not to be had.
    fn miss(&mut self, at: usize, why: Ending) {
        let call = self.under_way.remove(at);
        self.missing |= 1 << call.stage;
        // "It did not run" must be true: somebody may pay for it twice.
        let why = if call.lost && matches!(why, Ending::Refuse(_)) { Ending::Fail } else { why };
        self.blame(why);
    }

    /// Of all that happened the worst is told, and of what is equally bad the last.
    fn blame(&mut self, why: Ending) {
        let worse = |ending: Ending| match ending {
            Ending::Answer { .. } => 0,
            Ending::Refuse(_) => 1,
            Ending::Expire => 2,
            Ending::Fail => 3,
        };
        if self.why.is_none_or(|known| worse(why) >= worse(known)) {
            self.why = Some(why);
        }
    }

    /// Calls what can be called, and ends when nothing is left that could matter.
    fn go_on(&mut self, flow: &Flow, calls: &mut Vec<Call>) -> Option<Ending> {
        // Stages only look at stages before them: one walk sees everything.
        for (stage, needs) in flow.needs().iter().enumerate() {
            let bit = 1 << stage;
            if (self.ended() | self.running()) & bit != 0 {
                continue;
            }
            match self.standing(flow, stage) {
                Standing::Waits => {}
                Standing::Skipped => self.skipped |= bit,
                Standing::Missing => self.missing |= bit,
                Standing::Ready if self.late && !needs.at_home => self.missing |= bit,
                Standing::Ready if !flow.is_chain() && self.useful(flow) & bit == 0 => self.skipped |= bit,
                Standing::Ready => {
                    let optional = (needs.gated || needs.when.is_some()) && stage > self.depth.least;
                    let adds = match self.worth.filter(|(of, _)| *of == stage) {
                        Some((_, value)) => Adds::Value(value),
                        None if optional && self.best(flow).is_some() => Adds::Something,
                        None => Adds::All,
                    };
                    let (tried, full) = (Vec::new(), Vec::new());
                    self.under_way.push(UnderWay { stage, attempts: 1, lost: false, refused: None, adds, tried, full });
                    calls.push(Call { stage, tried: Vec::new(), full: Vec::new() });
                }
            }
        }
        let running = self.running();
        if running == 0 || (!flow.is_chain() && self.useful(flow) & running == 0) {
            return Some(self.ending(flow));
        }
        None
    }

    fn standing(&self, flow: &Flow, stage: usize) -> Standing {
        let needs = &flow.needs()[stage];
        let wanted = stage <= self.depth.least;
        // What the caller left out is not waited for.
        let all = needs.all & !below(self.depth.from);
        let whole = all | needs.when.map_or(0, |when| 1 << when);
        if whole & self.missing != 0 {
            return Standing::Missing;
        }
        if whole & self.skipped != 0 {
            return Standing::Skipped;
        }
        if let Some(when) = needs.when
            && self.answered & (1 << when) != 0
            && self.held & (1 << stage) == 0
            && !wanted
        {
            return Standing::Skipped;
        }
        if whole & !self.answered != 0 {
            return Standing::Waits;
        }
        let Some((some, enough)) = needs.some else { return Standing::Ready };
        let count = |stages: Stages| (some & stages).count_ones();
        // Of what was never wanted nothing is missed.
        let enough = enough.min(some.count_ones() - count(self.skipped));
        let (came, pending) = (count(self.answered), count(!self.ended()));
        if came + pending < enough {
            Standing::Missing
        } else if pending > 0 {
            Standing::Waits
        } else if came == 0 && some != 0 {
            Standing::Skipped
        } else {
            Standing::Ready
        }
    }

    fn ended(&self) -> Stages {
        self.answered | self.skipped | self.missing
    }

    fn running(&self) -> Stages {
        self.under_way.iter().fold(0, |mask, call| mask | 1 << call.stage)
    }

    /// The stages not yet ended that can still matter: a better answer, or something that one needs.
    fn useful(&self, flow: &Flow) -> Stages {
        let best = self.best(flow);
        let mut useful = 0;
        let mut needed = 0;
        for stage in (0..flow.needs().len()).rev() {
            let bit = 1 << stage;
            let better = flow.answers() & bit != 0 && best.is_none_or(|best| best < stage) && stage >= self.depth.least;
            if self.ended() & bit == 0 && (better || needed & bit != 0) {
                useful |= bit;
                needed |= flow.needs()[stage].mask();
            }
        }
        useful
    }

    /// Of answers, the deepest that may go out.
    fn deepest(&self, flow: &Flow, answers: Stages) -> Option<usize> {
        let answers = answers & flow.answers() & !below(self.depth.least);
        (answers != 0).then(|| answers.ilog2() as usize)
    }

    /// The deepest answer that may go out, of what is not a number only where there is nothing else.
    fn best(&self, flow: &Flow) -> Option<usize> {
        self.deepest(flow, self.answered & !self.hollow).or_else(|| self.deepest(flow, self.answered))
    }

    fn ending(&self, flow: &Flow) -> Ending {
        let best = self.best(flow);
        let passed_over = best != self.deepest(flow, self.answered);
        match best {
            Some(stage) => Ending::Answer { stage, degraded: self.missing != 0 || self.dear || passed_over },
            // Without a reason, no condition held of a stage that can answer.
            None => self.why.unwrap_or(Ending::Fail),
        }
    }
}
