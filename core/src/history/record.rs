//! One query on its way through the stages, as its home saw it.

use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::passage::Looked;
use crate::endpoint::{Endpoint, Judged};
use crate::ids::{DeviceName, NodeName, QueryId};
use crate::outcome::{Class, Outcome, Rejection};
use crate::scheduler::Closed;
use crate::units::{Deadline, Instant};

/// What a home remembers of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Of its first row, where a call was refused as a whole.
    pub id: QueryId,
    /// Rows that this tells of: more than one where a call was refused as a whole.
    pub rows: u32,
    /// What was asked; `None` where the call was refused before that was known.
    pub endpoint: Option<Arc<Endpoint>>,
    /// When the home had read it.
    pub arrived: Instant,
    /// When its answer is worth nothing any more; `None` where the call was refused before that was known.
    pub deadline: Option<Deadline>,
    /// Its importance.
    pub class: Class,
    /// Stage calls, in the order in which they were sent.
    pub visits: Visits,
    /// What conditions saw, and when, in that order.
    pub looked: Vec<(Instant, Looked)>,
    /// When it ended.
    pub ended: Instant,
    /// How.
    pub outcome: Outcome,
    /// Number of the stage that gave the answer.
    pub stage: usize,
    /// The class that it says, where the endpoint has class probabilities.
    pub label: Option<u32>,
    /// A deeper stage was wanted, and could not be had or was too dear.
    pub degraded: bool,
    /// It was too dear, and nothing else was wrong.
    pub dear: bool,
    /// How often a stage gave something that is not a number, or that the gate behind it could not look at.
    pub not_numbers: u32,
    /// What went wrong, as its caller was told; empty where it was answered.
    pub message: String,
}

/// Stage calls of a row. The first stands in the record: most rows make one, and records stay for seconds, so that an allocation for
/// each would leave the memory that everybody else allocates from full of small holes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Visits {
    first: Option<Visit>,
    further: Vec<Visit>,
}

impl Visits {
    /// One more.
    pub fn push(&mut self, visit: Visit) {
        if self.first.is_none() {
            self.first = Some(visit);
        } else {
            self.further.reserve_exact(1);
            self.further.push(visit);
        }
    }

    /// In the order in which they were sent.
    pub fn iter(&self) -> impl Iterator<Item = &Visit> {
        self.first.iter().chain(&self.further)
    }

    /// The one of a stage that was sent last.
    pub fn last_of(&mut self, stage: usize) -> Option<&mut Visit> {
        self.further.iter_mut().rev().chain(&mut self.first).find(|visit| visit.stage == stage)
    }
}

impl FromIterator<Visit> for Visits {
    fn from_iter<T: IntoIterator<Item = Visit>>(visits: T) -> Visits {
        let mut all = Visits::default();
        visits.into_iter().for_each(|visit| all.push(visit));
        all
    }
}

/// One stage call.
#[derive(Clone, Debug, PartialEq)]
pub struct Visit {
    /// Number of the stage.
    pub stage: usize,
    /// Where it went.
    pub node: NodeName,
    /// On which device; `None` on another node, which chooses.
    pub device: Option<DeviceName>,
    /// When.
    pub sent: Instant,
    /// What came back, and when; `None` where the query ended first.
    pub end: Option<(Instant, VisitEnd)>,
    /// What the gate behind the stage said; `None` where it was not asked.
    pub judged: Option<Judged>,
}

impl Visit {
    /// Whether the stage answered.
    pub fn is_answered(&self) -> bool {
        matches!(self.end, Some((_, VisitEnd::Answered { .. })))
    }
}

/// What a query was worth, worked out once for all who count it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worth {
    /// See [`Record::expected_right`].
    pub right: Option<f64>,
    /// See [`Record::forgone`].
    pub forgone: f64,
}

/// What became of a stage call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisitEnd {
    /// It ran.
    Answered {
        /// From entering the queue to the start of its batch.
        queue: Duration,
        /// How long its batch ran.
        execute: Duration,
        /// The batch; `None` where the node that ran it does not tell.
        batch: Option<Batch>,
    },
    /// It did not run there.
    Rejected(Rejection),
    /// The deadline passed while it waited.
    Expired,
    /// It ran and failed.
    Failed,
    /// The connection to its node broke; it may have run.
    Lost,
}

/// The batch that a row ran in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Queries in it.
    pub rows: u32,
    /// Why it was not larger.
    pub closed: Closed,
}

impl Record {
    /// Whether this tells of the query with that id.
    pub fn is_of(&self, id: QueryId) -> bool {
        id.0.wrapping_sub(self.id.0) < u128::from(self.rows)
    }

    /// Whether it was answered after its deadline.
    pub fn is_late(&self) -> bool {
        self.outcome == Outcome::Answered && self.deadline.is_some_and(|deadline| deadline.missed_by(self.ended))
    }

    /// How likely its answer is to be right, by the gain tables: by that of the gate behind the stage that answered, or else by what
    /// the gate before it expected.
    pub fn expected_right(&self) -> Option<f64> {
        let endpoint = self.endpoint.as_deref().filter(|_| self.outcome == Outcome::Answered)?;
        endpoint.expected_right(self.stage, |stage| Some(self.judged(stage)?.signal))
    }

    /// What it is expected to have lost to load, in units of value: what the next stage would have gained, and what it
    /// leads to, where nothing is dear, if that was worth running and did not run, and all that an answer is worth where there is none.
    pub fn forgone(&self) -> f64 {
        let Some(endpoint) = self.endpoint.as_deref() else { return 0.0 };
        match self.outcome {
            Outcome::Answered => {
                let next = self.judged(self.stage).and_then(|judged| judged.free);
                endpoint.expected_loss(self.stage, next)
            }
            Outcome::Rejected(_) | Outcome::Expired => endpoint.weight,
            Outcome::Failed | Outcome::Unknown => 0.0,
        }
    }

    /// Both, for those who count.
    pub fn worth(&self) -> Worth {
        Worth { right: self.expected_right(), forgone: self.forgone() }
    }

    /// What the gate behind a stage said.
    fn judged(&self, stage: usize) -> Option<Judged> {
        self.visits.iter().filter(|visit| visit.stage == stage).filter_map(|visit| visit.judged).last()
    }

    /// Whether it is other than answered in time by the stage that the gates wanted, at what computing time cost then.
    pub fn is_troubled(&self) -> bool {
        self.outcome != Outcome::Answered || (self.degraded && !self.dear) || self.is_late()
    }
}
