//! What is told to those who ask: names instead of numbers, spans instead of instants.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Record, Seconds, Totals, Visit, VisitEnd};
use crate::endpoint::audit::{GateAudit, Labelled};
use crate::endpoint::passage::Looked;
use crate::endpoint::{Endpoint, Gate, Judged};
use crate::ids::{DeviceName, EndpointName, ModelRef, NodeName, StageName};
use crate::outcome::{Class, Outcome, Rejection};
use crate::paging::{MemoryNow, Paged};
use crate::scheduler::Batches;
use crate::triage::ByModel;
use crate::units::{Bytes, Instant, ServiceTime};

/// A node's last seconds.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct NodeRecent {
    pub endpoints: Vec<EndpointRecent>,
    pub devices: Vec<DeviceNow>,
}

/// What a node knows of itself, for metrics.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// Its name.
    pub node: String,
    /// Why it takes no queries; `None` where it does.
    pub unready: Option<&'static str>,
    /// Calls that it answers now.
    pub calls_in_flight: u64,
    /// What these hold between their stages.
    pub held: Bytes,
    /// Epoch of the plan that it works by.
    pub epoch: u64,
    /// The last seconds; its endpoints are the ones that exist.
    pub recent: NodeRecent,
    /// Of each endpoint of `recent`, since the node started.
    pub totals: Vec<Totals>,
    /// Calls that were refused before anybody looked at their rows, since the node started.
    pub refused: BTreeMap<Rejection, u64>,
    /// What homes of this node ask of each model, by what it is worth.
    pub demand: ByModel,
    /// For models.
    pub memory: MemoryNow,
    /// Models, where not all fit.
    pub paged: BTreeMap<ModelRef, Paged>,
}

/// What a coordinator knows of its group and of the cluster, for metrics.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct MemberFacts {
    pub member: String,
    pub term: u64,
    /// Log index up to which it has applied everything.
    pub applied: u64,
    pub leads: bool,
    /// Somebody does, as far as it knows.
    pub led: bool,
    pub voters: u64,
    /// At the leader: for each other member, how far its disk is behind, in entries, and whether it answers.
    pub others: Vec<(String, u64, bool)>,
    pub models: u64,
    pub endpoints: u64,
    pub nodes: u64,
    pub replicas: u64,
    /// Of the plan.
    pub epoch: u64,
}

/// What happened to queries of an endpoint at their home.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointRecent {
    /// Which.
    pub endpoint: EndpointName,
    /// Its stages, in order.
    pub stages: Vec<StageName>,
    /// Of a second of slot time, in units of value.
    pub price: f64,
    /// What labels say of its answers, since it has these stages and tables.
    pub labelled: Labelled,
    /// Rows that a shadow answered too, and how many of them alike, since the node started.
    pub shadow: (u64, u64),
    /// By stage, what audits found about the gate before it; nothing of the first.
    pub gates: Vec<GateAudit>,
    /// Since the node started.
    pub ever: Ever,
    /// The last whole ones.
    pub recent: Seconds,
}

/// Queries of an endpoint since a node started: the figures that metrics tell too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Ever {
    pub answered: u64,
    pub in_time: u64,
    pub degraded: u64,
    /// Rejected, or expired before they could run.
    pub refused: u64,
}

impl Ever {
    /// Those of another node too.
    pub fn merge(&mut self, other: &Ever) {
        self.answered += other.answered;
        self.in_time += other.in_time;
        self.degraded += other.degraded;
        self.refused += other.refused;
    }
}

/// What a device does now.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceNow {
    /// Its name.
    pub device: DeviceName,
    /// Batches that it can run at once.
    pub slots: u32,
    /// Batches that run.
    pub running: u32,
    /// Slot time spent computing since the node started.
    pub busy: ServiceTime,
    /// Estimated work that waits.
    pub backlog: ServiceTime,
    /// By model that stands there.
    pub models: Vec<ModelNow>,
}

/// What waits for a model on a device.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelNow {
    /// Which.
    pub model: ModelRef,
    /// Rows that wait.
    pub queued: u32,
    /// Since its replicas are ready.
    pub batches: Batches,
}

/// What a node knows of a query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explained {
    /// Oldest first; several where it was asked there several times.
    pub records: Vec<Told>,
    /// Queries that each connection thread remembers of either kind.
    pub kept: u32,
    /// How far back go those that went well; `None` where none has been forgotten.
    pub answered_reach: Option<Duration>,
    /// Likewise, those that were refused, late, degraded, or failed.
    pub troubled_reach: Option<Duration>,
}

/// A record, told.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// `None` where the call was refused before that was known.
    pub endpoint: Option<EndpointName>,
    /// Its importance.
    pub class: Class,
    /// Since it ended.
    pub ago: Duration,
    /// From its arrival; `None` where that was not known.
    pub deadline: Option<Duration>,
    /// From its arrival to its end.
    pub total: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// What went wrong, as its caller was told; empty where it was answered.
    pub message: String,
    /// That gave the answer.
    pub stage: Option<StageName>,
    /// A deeper stage was wanted, and could not be had or was too dear.
    pub degraded: bool,
    /// In the order in which they were sent.
    pub visits: Vec<ToldVisit>,
    /// In the order in which they looked.
    pub conditions: Vec<ToldCondition>,
}

/// What a condition saw, told.
#[derive(Clone, Debug, PartialEq)]
pub struct ToldCondition {
    /// The stage that has it.
    pub stage: StageName,
    /// As weir files have it: `tiny.confidence < 0.9`.
    pub when: String,
    /// When it looked, from the query's arrival.
    pub after: Duration,
    /// What it saw; NaN where there was no number.
    pub saw: f32,
    /// Whether it holds.
    pub holds: bool,
}

/// A stage call, told.
#[derive(Clone, Debug, PartialEq)]
pub struct ToldVisit {
    /// Which stage.
    pub stage: StageName,
    /// What ran.
    pub model: ModelRef,
    /// Where.
    pub node: NodeName,
    /// `None` on another node, which chooses.
    pub device: Option<DeviceName>,
    /// When it was sent, from the query's arrival.
    pub after: Duration,
    /// What came back and how long that took; `None` where the query ended first.
    pub end: Option<(Duration, VisitEnd)>,
    /// What the gate behind it said; `None` where it was not asked.
    pub gate: Option<(Rule, Judged)>,
}

/// By what a gate decides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Deeper below this confidence.
    ConfidenceBelow(f32),
    /// Deeper above this entropy, in nats.
    EntropyAbove(f32),
    /// Deeper below this margin.
    MarginBelow(f32),
    /// Deeper where that gains at least this, in units of value, and more than it costs.
    Gain {
        /// The least gain.
        least: f64,
    },
}

impl Rule {
    /// Of a gate of an endpoint whose correct answers are worth `weight`.
    pub fn of(gate: &Gate, weight: f64) -> Rule {
        match gate {
            Gate::ConfidenceBelow(threshold) => Rule::ConfidenceBelow(*threshold),
            Gate::EntropyAbove(threshold) => Rule::EntropyAbove(*threshold),
            Gate::MarginBelow(threshold) => Rule::MarginBelow(*threshold),
            Gate::Gain { min_gain, .. } => Rule::Gain { least: min_gain * weight },
        }
    }
}

impl Record {
    /// What is told of it at `now`.
    pub fn tell(&self, now: Instant) -> Told {
        let endpoint = self.endpoint.as_deref();
        let answered = endpoint.filter(|_| self.outcome == Outcome::Answered);
        Told {
            endpoint: endpoint.map(|endpoint| endpoint.name.clone()),
            class: self.class,
            ago: now.since(self.ended),
            deadline: self.deadline.map(|deadline| deadline.left(self.arrived)),
            total: self.ended.since(self.arrived),
            outcome: self.outcome,
            message: self.message.clone(),
            stage: answered
                .map(|endpoint| StageName::parse(endpoint.stage_name(self.stage)).expect("a name of a stage")),
            degraded: self.degraded,
            visits: endpoint.map_or_else(Vec::new, |endpoint| {
                self.visits.iter().map(|visit| visit.tell(endpoint, self.arrived)).collect()
            }),
            conditions: endpoint.map_or_else(Vec::new, |endpoint| {
                let told = |(at, looked): &(Instant, Looked)| ToldCondition {
                    stage: endpoint.stages[looked.stage].name.clone(),
                    when: endpoint.condition(looked.stage).unwrap_or_default(),
                    after: at.since(self.arrived),
                    saw: looked.saw,
                    holds: looked.holds,
                };
                self.looked.iter().map(told).collect()
            }),
        }
    }
}

impl Visit {
    fn tell(&self, endpoint: &Endpoint, arrived: Instant) -> ToldVisit {
        let stage = &endpoint.stages[self.stage];
        let gate = endpoint.stages.get(self.stage + 1).and_then(|next| next.gate.as_ref());
        ToldVisit {
            stage: stage.name.clone(),
            model: stage.model().expect("what is sent somewhere runs a model").clone(),
            node: self.node.clone(),
            device: self.device.clone(),
            after: self.sent.since(arrived),
            end: self.end.map(|(at, end)| (at.since(self.sent), end)),
            gate: gate.zip(self.judged).map(|(gate, judged)| (Rule::of(gate, endpoint.weight), judged)),
        }
    }
}
