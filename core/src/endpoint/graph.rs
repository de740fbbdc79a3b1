//! Graphs of stages: what a stage waits for, and what it makes of that.
//!
//! A chain is the common case: each stage follows the one before it. An endpoint is a graph where one of its stages names its inputs,
//! has a condition or combines: then stages follow what they name, and those that name nothing start with the query. Stages only name
//! stages that stand before them in the file, so no graph has a circle.

use super::gate;
use crate::ids::ModelRef;

/// Most stages of one endpoint.
pub const STAGES_MAX: usize = 64;
/// Most items that a row may be flattened into: none may hold a node's memory by itself.
pub const ITEMS_MAX: usize = 4096;
/// Most bytes that the items of one row may take at one stage, and what that gives for them: four of the largest messages. What is the same for
/// all items is there once for each of them.
pub const ITEMS_BYTES_MAX: usize = 64 << 20;

/// Stages by number, the first one in the lowest bit.
pub type Stages = u64;

/// What a stage does.
#[derive(Clone, Debug, PartialEq)]
pub enum Run {
    /// A model computes.
    Model(ModelRef),
    /// What others gave becomes one output, at the home of the query.
    Combine(Combine),
}

/// How several tensors become one.
#[derive(Clone, Debug, PartialEq)]
pub struct Combine {
    /// What is computed.
    pub how: How,
    /// How many of the inputs are enough where the others fail or are late; all where absent.
    pub at_least: Option<u32>,
}

/// What a combination computes, element by element but for [`How::Concat`].
#[derive(Clone, Debug, PartialEq)]
pub enum How {
    /// The mean.
    Mean,
    /// The mean with one weight for each input; those of inputs that are missing count for nothing.
    Weighted(Vec<f64>),
    /// By class: the share of the inputs whose largest it is. Classes with as many votes stand in the order of their means, which count
    /// for a thousandth.
    Vote,
    /// One after the other along the first dimension of a row.
    Concat,
}

/// Where a named input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// The input's name.
    pub input: String,
    /// A stage before, by number; the request where absent.
    pub stage: Option<u32>,
    /// The name of that stage's output, or of the request's input.
    pub tensor: String,
    /// Whether each item of it, along the first dimension of a row, runs by itself (flat-map).
    pub each: bool,
}

/// A stage runs only where this holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// The stage it looks at, by number; one before.
    pub stage: u32,
    /// What of it.
    pub signal: Signal,
    /// How it is compared.
    pub is: Comparison,
    /// With what.
    pub than: f32,
}

/// A number that a stage's answer to one row has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Signal {
    Confidence,
    Margin,
    /// In nats.
    Entropy,
    /// The class.
    Label,
    /// The first number of an output.
    Output(String),
}

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

impl Comparison {
    /// In the order of the wire's enumeration.
    pub const ALL: [Comparison; 6] = [
        Comparison::Less,
        Comparison::LessOrEqual,
        Comparison::Greater,
        Comparison::GreaterOrEqual,
        Comparison::Equal,
        Comparison::NotEqual,
    ];

    /// As files have it.
    pub fn word(self) -> &'static str {
        match self {
            Comparison::Less => "<",
            Comparison::LessOrEqual => "<=",
            Comparison::Greater => ">",
            Comparison::GreaterOrEqual => ">=",
            Comparison::Equal => "==",
            Comparison::NotEqual => "!=",
        }
    }

    fn holds(self, a: f32, b: f32) -> bool {
        match self {
            Comparison::Less => a < b,
            Comparison::LessOrEqual => a <= b,
            Comparison::Greater => a > b,
            Comparison::GreaterOrEqual => a >= b,
            Comparison::Equal => a == b,
            // Of what is not a number nothing holds.
            Comparison::NotEqual => a != b && !a.is_nan(),
        }
    }
}

impl Signal {
    /// As files have it.
    pub fn word(&self) -> &str {
        match self {
            Signal::Confidence => "confidence",
            Signal::Margin => "margin",
            Signal::Entropy => "entropy",
            Signal::Label => "label",
            Signal::Output(name) => name,
        }
    }

    /// What files mean by a word.
    pub fn parse(word: &str) -> Signal {
        match word {
            "confidence" => Signal::Confidence,
            "margin" => Signal::Margin,
            "entropy" => Signal::Entropy,
            "label" => Signal::Label,
            name => Signal::Output(name.to_owned()),
        }
    }

    /// Of the numbers of one row: class probabilities, or those of the output.
    fn of(&self, numbers: &[f32]) -> Option<f32> {
        match self {
            Signal::Confidence => gate::label(numbers).map(|(_, confidence)| confidence),
            Signal::Margin => gate::margin(numbers),
            Signal::Entropy => gate::entropy(numbers),
            Signal::Label => gate::label(numbers).map(|(label, confidence)| {
                // A class of what is not a number is none.
                if confidence.is_nan() { f32::NAN } else { label as f32 }
            }),
            Signal::Output(_) => numbers.first().copied(),
        }
    }
}

impl Condition {
    /// What it sees in the numbers of one row, NaN where they are none, and whether it holds: not then.
    pub fn look(&self, numbers: &[f32]) -> (f32, bool) {
        let saw = self.signal.of(numbers).unwrap_or(f32::NAN);
        (saw, self.is.holds(saw, self.than))
    }
}

/// What stages wait for: all that a journey has to know of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    needs: Vec<Needs>,
    /// Those whose answer can be the endpoint's.
    answers: Stages,
    /// Each follows the one before.
    chain: bool,
    /// Those that can be asked without any other: they take nothing that another gives. Of a chain; in a graph the way begins at its beginning.
    alone: Stages,
}

/// What one stage waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Stages that must have answered.
    pub all: Stages,
    /// Of these, as many as are enough, once none of them is under way any more.
    pub some: Option<(Stages, u32)>,
    /// Whether a gate behind the stage before decides.
    pub gated: bool,
    /// The stage whose answer its condition looks at.
    pub when: Option<usize>,
    /// Whether it is computed at the home, at once.
    pub at_home: bool,
}

impl Needs {
    /// All that it looks at.
    pub fn mask(&self) -> Stages {
        self.all | self.some.map_or(0, |(some, _)| some) | self.when.map_or(0, |stage| 1 << stage)
    }
}

impl Flow {
    /// Of a graph.
    pub fn new(needs: Vec<Needs>, answers: Stages) -> Flow {
        Flow { needs, answers, chain: false, alone: 0 }
    }

    /// Of stages that follow each other, each of which can answer; `gated` says behind which there is a gate.
    pub fn chain(gated: impl Iterator<Item = bool>) -> Flow {
        let needs: Vec<Needs> = gated
            .enumerate()
            .map(|(stage, gated)| Needs { all: (1 << stage) >> 1, gated, ..Needs::default() })
            .collect();
        let answers = below(needs.len());
        Flow { needs, answers, chain: true, alone: answers }
    }

    /// Of a chain of which only these stages can be asked without the ones before.
    pub fn asked_alone(self, alone: Stages) -> Flow {
        Flow { alone, ..self }
    }

    /// By stage.
    pub fn needs(&self) -> &[Needs] {
        &self.needs
    }

    /// Those whose answer can be the endpoint's.
    pub fn answers(&self) -> Stages {
        self.answers
    }

    /// Whether each stage follows the one before.
    pub fn is_chain(&self) -> bool {
        self.chain
    }

    /// Whether a stage can be asked without any other.
    pub fn is_alone(&self, stage: usize) -> bool {
        self.alone & (1 << stage) != 0
    }

    /// The stages that an answer may come from where none before `from` and none after `most` is asked, and none before `least` may answer.
    pub fn answering(&self, from: usize, least: usize, most: usize) -> Stages {
        let asked = below(most.saturating_add(1)) & !below(from);
        // What the caller left out is not waited for, but for a condition that looks at it; of what was never wanted nothing is missed.
        self.reached(!asked, below(from), |some, there, _| some == 0 || some & there != 0) & !below(least)
    }

    /// The stages that can answer where those of `without` do not run, those of `given` are not waited for, and `enough` says whether what
    /// there is of what is needed in part, of so much, is enough.
    fn reached(&self, without: Stages, given: Stages, enough: impl Fn(Stages, Stages, u32) -> bool) -> Stages {
        let mut there: Stages = 0;
        for (stage, needs) in self.needs.iter().enumerate() {
            let whole = (needs.all & !given) | needs.when.map_or(0, |when| 1 << when);
            let some = needs.some.is_none_or(|(some, least)| enough(some, there, least));
            if without & (1 << stage) == 0 && whole & !there == 0 && some {
                there |= 1 << stage;
            }
        }
        there & self.answers
    }

    /// A stage and all that has to have answered before it.
    pub fn up_to(&self, stage: usize) -> Stages {
        (0..=stage)
            .rev()
            .fold(1 << stage, |up_to, at| if up_to & (1 << at) == 0 { up_to } else { up_to | self.needs[at].mask() })
    }

    /// Whether there can be an answer where these stages cannot be had.
    pub fn answers_without(&self, missing: Stages) -> bool {
        self.reached(missing, 0, |some, there, least| (some & there).count_ones() >= least) != 0
    }

    /// How long the stages take that have to follow each stage before there is any answer, where each takes as long as `spans` says; by
    /// stage. Nothing follows what can answer itself.
    pub fn rest(&self, spans: &[f64]) -> Vec<f64> {
        let mut rest = vec![0.0_f64; self.needs.len()];
        for stage in (0..self.needs.len()).rev() {
            if self.answers & (1 << stage) == 0 {
                let after = (stage + 1..self.needs.len()).filter(|next| self.needs[*next].mask() & (1 << stage) != 0);
                rest[stage] = after.map(|next| spans[next] + rest[next]).fold(0.0, f64::max);
            }
        }
        rest
    }

    /// How long it takes until a stage not shallower than `least` can have answered, where each takes as long as `spans` says.
    pub fn until_answer(&self, spans: &[f64], least: usize) -> f64 {
        let mut done = vec![0.0_f64; self.needs.len()];
        for (stage, needs) in self.needs.iter().enumerate() {
            let before = (0..stage).filter(|before| needs.mask() & (1 << before) != 0).map(|before| done[before]);
            done[stage] = before.fold(0.0, f64::max) + spans[stage];
        }
        let answering = (least..self.needs.len()).filter(|stage| self.answers & (1 << stage) != 0);
        answering.map(|stage| done[stage]).fold(f64::INFINITY, f64::min)
    }
}

/// The stages below `stage`.
pub fn below(stage: usize) -> Stages {
    if stage >= STAGES_MAX { Stages::MAX } else { (1 << stage) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_is_not_a_number_no_condition_holds() {
        for is in Comparison::ALL {
            let condition = Condition { stage: 0, signal: Signal::Confidence, is, than: 0.5 };
            assert!(!condition.look(&[0.2, f32::NAN]).1 && !condition.look(&[]).1, "{}", is.word());
        }
        let holds = |signal, is, than| Condition { stage: 0, signal, is, than }.look(&[0.25, 0.75]).1;
        assert!(holds(Signal::Confidence, Comparison::Less, 0.8) && !holds(Signal::Confidence, Comparison::Less, 0.75));
        assert!(holds(Signal::Label, Comparison::Equal, 1.0) && holds(Signal::Margin, Comparison::GreaterOrEqual, 0.5));
        assert!(holds(Signal::Output("x".into()), Comparison::LessOrEqual, 0.25));
        assert!(holds(Signal::Entropy, Comparison::Greater, 0.5));
    }

    #[test]
    fn what_has_to_follow_and_what_is_before_is_one_after_the_other() {
        // 0 and 1 side by side, 2 of both, and only 3 behind it answers.
        let needs = |all| Needs { all, ..Needs::default() };
        let flow = Flow::new(vec![needs(0), needs(0), needs(0b11), needs(0b100)], 0b1000);
        let spans = [1.0, 5.0, 2.0, 3.0];
        assert_eq!(flow.rest(&spans), [5.0, 5.0, 3.0, 0.0]);
        assert_eq!(flow.until_answer(&spans, 0), 10.0);
        assert!(!flow.answers_without(0b1) && flow.answers_without(0));
        let chain = Flow::chain([false, true, true].into_iter());
        assert!(chain.answers_without(0b110) && !chain.answers_without(0b1));
        assert_eq!(chain.rest(&spans[..3]), [0.0; 3], "each can answer");
        assert_eq!((chain.until_answer(&spans[..3], 0), chain.until_answer(&spans[..3], 2)), (1.0, 8.0));
    }
}
