//! What the leader believes of the nodes: soft state, from their reports alone, rebuilt in one report interval.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::endpoint::{Endpoint, Stage};
use crate::history::ByStage;
use crate::ids::{DeviceName, EndpointName, Epoch, ModelRef, NodeName, ReplicaId};
use crate::paging::{MemoryNow, Paged};
use crate::replicated::{Node, State};
use crate::rollout::Score;
use crate::scheduler::Batches;
use crate::triage::ByModel;
use crate::units::{Bytes, Instant, ServiceTime};

/// How often a node reports.
pub const REPORT_EVERY: Duration = Duration::from_millis(250);
/// A node that was silent so long is taken to be down: six reports lost in a row.
pub const DOWN_AFTER: Duration = Duration::from_millis(1500);
/// Deaths of one version's actors within [`DEATHS_WITHIN`] that take it out of service.
const DEATHS_TO_QUARANTINE: usize = 3;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);
/// How long a node is avoided for a model that it could not load: long beside a load, short beside a day.
const FAILED_FOR: Duration = Duration::from_secs(600);

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct NodeReport {
    pub node: NodeName,
    /// Drawn when its process started.
    pub incarnation: u128,
    /// Of the plan that it works by.
    pub epoch: Epoch,
    pub replicas: BTreeMap<ReplicaId, ReplicaReport>,
    pub devices: Vec<DeviceLoad>,
    pub endpoints: Vec<EndpointLoad>,
    /// Since its process started.
    pub up: Duration,
    /// It was told to stop and finishes what it has.
    pub draining: bool,
    /// What its homes ask of models, wherever these stand, apart from what must run.
    pub asked: ByModel,
    /// Rows that its homes have wanted run since its process started, by model, wherever that stands and whether it could or not: of
    /// models of which that has changed since the leader was told last.
    pub wanted: BTreeMap<ModelRef, u64>,
    pub memory: MemoryNow,
}

/// What a node says of one replica.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct ReplicaReport {
    pub state: ReplicaState,
    /// Of its actor, since the node started.
    pub deaths: u32,
    pub last_death: String,
    /// Since it is ready.
    pub batches: Batches,
    /// Where not everything fits into the memory of the node. What was in memory once is ready, whether it is now or not.
    pub paged: Option<Paged>,
}

/// How far a replica is.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplicaState {
    /// Being fetched, loaded or profiled.
    Loading,
    /// It serves, or will as soon as it is asked.
    Ready(ReplicaProfile),
    /// It could not be loaded, and why.
    Failed(String),
}

/// Measured properties of a replica.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct ReplicaProfile {
    /// Latency by batch size, ascending.
    pub points: Vec<(u32, ServiceTime)>,
    pub max_batch: u32,
    /// Why rows are not batched; empty where they are.
    pub unbatched: String,
    pub memory: Bytes,
    /// It began with what another node had measured on the same hardware.
    pub informed: bool,
}

/// Work of one device.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct DeviceLoad {
    pub device: DeviceName,
    /// Slot time spent computing since the node started.
    pub busy: ServiceTime,
    pub queued: u32,
    pub backlog: ServiceTime,
}

/// What became of the rows of one endpoint at this home since the node started.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct EndpointLoad {
    pub endpoint: EndpointName,
    pub arrived: u64,
    pub answered: u64,
    pub rejected: u64,
    pub expired: u64,
    pub failed: u64,
    pub degraded: u64,
    pub last_error: String,
    /// Answered, by stage.
    pub by_stage: ByStage,
    /// What became of the rows that each version was given, where the endpoint has an objective for them.
    pub versions: Vec<(ModelRef, Score)>,
}

/// Whether a node can be counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It reports.
    Up,
    /// It reports, and is to be emptied.
    Draining,
    /// It has been silent for [`DOWN_AFTER`].
    Down,
}

/// Whether an endpoint serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Every stage has a replica that is ready.
    Serving,
    /// Some stage has none, but the first does.
    Degraded,
    /// The first stage has none.
    Unavailable,
}

impl EndpointState {
    /// The word in `weir status`.
    pub const fn word(self) -> &'static str {
        match self {
            EndpointState::Serving => "serving",
            EndpointState::Degraded => "degraded",
            EndpointState::Unavailable => "unavailable",
        }
    }
}

/// What was heard of a node.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub at: Instant,
    pub report: NodeReport,
    /// Fraction of slot time spent computing between the last two reports.
    busy: f64,
    /// Since when each replica has been reported ready.
    pub ready_since: BTreeMap<ReplicaId, Instant>,
    /// From 1; goes up with each report that says something else than the one before of what is ready, what was measured of that, or
    /// whether the node was told to stop.
    pub version: u64,
}

impl Seen {
    /// What was measured of a replica that serves.
    pub fn profile(&self, id: ReplicaId) -> Option<&ReplicaProfile> {
        match &self.report.replicas.get(&id)?.state {
            ReplicaState::Ready(profile) => Some(profile),
            _ => None,
        }
    }

    /// When a replica will have been ready for two report intervals, so that every node has heard of it and it can take the place of
    /// others; `None` where it does not serve.
    pub fn settles_at(&self, id: ReplicaId) -> Option<Instant> {
        let since = self.ready_since.get(&id).filter(|_| !self.report.draining)?;
        Some(*since + 2 * REPORT_EVERY)
    }
}

/// The leader's view of the nodes.
#[derive(Clone, Debug)]
pub struct Liveness {
    /// Nodes that have not reported to this leader yet are given until here.
    grace_until: Instant,
    pub(super) seen: BTreeMap<NodeName, Seen>,
    deaths: BTreeMap<ModelRef, VecDeque<(Instant, String)>>,
    /// Where a model could not be loaded, and when that was said last.
    failed: BTreeMap<(ModelRef, NodeName), Instant>,
    /// A report has changed what is ready.
    changed: bool,
}

impl Liveness {
    /// The view of a leader that was elected at `now`.
    pub fn new(now: Instant) -> Liveness {
        Liveness {
            grace_until: now + DOWN_AFTER,
            seen: BTreeMap::new(),
            deaths: BTreeMap::new(),
            failed: BTreeMap::new(),
            changed: true,
        }
    }

    /// Whether reports may have changed what [`Liveness::ready`] says since this was asked last; silence and plans change it too.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// A node reported. Returns a version that died too often, with the reason.
    pub fn on_report(&mut self, now: Instant, state: &State, report: NodeReport) -> Option<(ModelRef, String)> {
        let before = self.seen.get(&report.node);
        let same_process = before.filter(|seen| seen.report.incarnation == report.incarnation);
        // A node that was started again may have been given what it lacked.
        let anew = same_process.is_none();
        self.failed.retain(|(_, node), at| now.since(*at) < FAILED_FOR && !(anew && *node == report.node));
        let mut quarantine = None;
        for (id, replica) in &report.replicas {
            let known = match (same_process, before) {
                (Some(seen), _) => seen.report.replicas.get(id).map_or(0, |old| old.deaths),
                (None, Some(_)) => 0,
                // A new leader hears of deaths of any age: it counts from here.
                (None, None) => replica.deaths,
            };
            let Some(assignment) = state.plan.assignments.get(id) else {
                continue;
            };
            let deaths = self.deaths.entry(assignment.model.clone()).or_default();
            if state.models.get(&assignment.model).is_some_and(|model| model.quarantined.is_some()) {
                deaths.clear();
                continue;
            }
            for _ in known..replica.deaths {
                deaths.push_back((now, replica.last_death.clone()));
            }
            while deaths.front().is_some_and(|(at, _)| now.since(*at) > DEATHS_WITHIN) {
                deaths.pop_front();
            }
            // Said with each report until it is written: a leader that could not write it may be followed by one that can.
            if let Some((_, last)) = deaths.back()
                && deaths.len() >= DEATHS_TO_QUARANTINE
            {
                let because = format!("its actor died {} times within a minute, last: {last}", deaths.len());
                quarantine = Some((assignment.model.clone(), because));
            } else if let ReplicaState::Failed(why) = &replica.state
                && replica.deaths as usize >= DEATHS_TO_QUARANTINE
            {
                quarantine = Some((assignment.model.clone(), why.clone()));
            }
        }
        let busy = same_process.map_or(0.0, |seen| busy_between(seen, now, &report, state));
        let since = |id: &ReplicaId| same_process.and_then(|seen| seen.ready_since.get(id)).copied().unwrap_or(now);
        let ready = report.replicas.iter().filter(|(_, replica)| matches!(replica.state, ReplicaState::Ready(_)));
        let ready_since: BTreeMap<ReplicaId, Instant> = ready.map(|(id, _)| (*id, since(id))).collect();
        let differs = same_process.is_none_or(|seen| {
            seen.report.draining != report.draining || !seen.ready_since.keys().eq(ready_since.keys())
        });
        self.changed |= differs || same_process.is_none_or(|seen| now.since(seen.at) >= DOWN_AFTER);
        let is_news = |seen: &Seen| {
            ready_since.keys().any(|id| match (seen.report.replicas.get(id), report.replicas.get(id)) {
                (Some(before), Some(now)) => before.state != now.state,
                _ => true,
            })
        };
        let news = differs || same_process.is_none_or(is_news);
        let version = before.map_or(0, |seen| seen.version) + u64::from(news);
        self.note_failed(now, state, &report);
        self.seen.insert(report.node.clone(), Seen { at: now, report, busy, ready_since, version });
        quarantine
    }

    fn note_failed(&mut self, now: Instant, state: &State, report: &NodeReport) {
        let place = |id: &ReplicaId| Some((state.plan.assignments.get(id)?.model.clone(), report.node.clone()));
        for (id, replica) in &report.replicas {
            if let (ReplicaState::Failed(_), Some(place)) = (&replica.state, place(id)) {
                self.failed.insert(place, now);
            }
        }
        // One that serves there shows that it can be loaded.
        for (id, replica) in &report.replicas {
            if let (ReplicaState::Ready(_), Some(place)) = (&replica.state, place(id)) {
                self.failed.remove(&place);
            }
        }
    }

    /// Whether `node` can be counted on at `now`.
    pub fn state(&self, now: Instant, state: &State, node: &NodeName) -> NodeState {
        self.judge(now, self.seen.get(node), state.nodes.get(node).is_some_and(|node| node.draining))
    }

    /// Likewise, of a node that may have joined, with what was heard of it.
    pub(super) fn heard(&self, now: Instant, name: &NodeName, node: Option<&Node>) -> (NodeState, Option<&Seen>) {
        let seen = self.seen.get(name);
        (node.map_or(NodeState::Down, |node| self.judge(now, seen, node.draining)), seen)
    }

    fn judge(&self, now: Instant, seen: Option<&Seen>, draining: bool) -> NodeState {
        let reports = match seen {
            Some(seen) => now.since(seen.at) < DOWN_AFTER,
            None => now < self.grace_until,
        };
        match reports {
            false => NodeState::Down,
            true if draining || seen.is_some_and(|seen| seen.report.draining) => NodeState::Draining,
            true => NodeState::Up,
        }
    }

    /// Where a model could not be loaded, as far as it matters yet.
    pub fn failed(&self, now: Instant) -> BTreeSet<(ModelRef, NodeName)> {
        let lately = self.failed.iter().filter(|(_, at)| now.since(**at) < FAILED_FOR);
        lately.map(|(place, _)| place.clone()).collect()
    }

    /// The last report of a node, and how busy it was before it (0 to 1, of all slots).
    pub fn report(&self, node: &NodeName) -> Option<(&NodeReport, f64)> {
        self.seen.get(node).map(|seen| (&seen.report, seen.busy))
    }

    /// Replicas of the current plan that may be sent work.
    pub fn ready(&self, now: Instant, state: &State) -> BTreeSet<ReplicaId> {
        let mut ready = BTreeSet::new();
        for (id, assignment) in &state.plan.assignments {
            let Some(seen) = self.seen.get(&assignment.node) else {
                continue;
            };
            if seen.ready_since.contains_key(id) && !seen.report.draining && now.since(seen.at) < DOWN_AFTER {
                ready.insert(*id);
            }
        }
        ready
    }

    /// Whether a replica of a node may be sent work, and every node has heard of it: it has been ready for two report intervals.
    pub fn is_settled(&self, now: Instant, id: ReplicaId, node: &NodeName) -> bool {
        let seen = self.seen.get(node).filter(|seen| now.since(seen.at) < DOWN_AFTER);
        seen.and_then(|seen| seen.settles_at(id)).is_some_and(|settles| now >= settles)
    }

    /// State of an endpoint with its replicas ready and wanted (the minimum of each of its models).
    pub fn endpoint(&self, now: Instant, state: &State, endpoint: &Endpoint) -> (EndpointState, u32, u32) {
        let ready = self.ready(now, state);
        let count = |model: &ModelRef| {
            state
                .plan
                .assignments
                .iter()
                .filter(|(id, assignment)| assignment.model == *model && ready.contains(id))
                .count() as u32
        };
        let models: BTreeSet<&ModelRef> = endpoint.models().collect();
        let wanted = models.iter().map(|model| state.models.get(model).map_or(1, |model| model.replicas.min)).sum();
        let signatures = state.signatures();
        let word = |variant: &Endpoint| {
            let gone = |(_, stage): &(usize, &Stage)| stage.model().is_some_and(|model| count(model) == 0);
            let missing = variant.stages.iter().enumerate().filter(gone).fold(0, |mask, (stage, _)| mask | 1 << stage);
            match variant.wire(&signatures) {
                Ok(_) if missing == 0 => EndpointState::Serving,
                Ok(wiring) if wiring.flow.answers_without(missing) => EndpointState::Degraded,
                _ => EndpointState::Unavailable,
            }
        };
        // Whatever version has queries counts, and what is being loaded for a rollout too.
        let words: Vec<(u32, EndpointState)> =
            endpoint.variants().iter().map(|(share, variant)| (*share, word(variant))).collect();
        let word = if words.iter().all(|(_, word)| *word == EndpointState::Serving) {
            EndpointState::Serving
        } else if words.iter().any(|(share, word)| *share > 0 && *word != EndpointState::Unavailable) {
            EndpointState::Degraded
        } else {
            EndpointState::Unavailable
        };
        (word, models.iter().map(|model| count(model)).sum(), wanted)
    }
}

fn busy_between(seen: &Seen, now: Instant, report: &NodeReport, state: &State) -> f64 {
    let total = |report: &NodeReport| report.devices.iter().fold(ServiceTime::ZERO, |sum, device| sum + device.busy);
    let slots: u32 =
        state.nodes.get(&report.node).map_or(1, |node| node.devices.iter().map(|device| device.slots).sum());
    let span = now.since(seen.at).as_secs_f64() * f64::from(slots.max(1));
    if span == 0.0 {
        seen.busy
    } else {
        (total(report).saturating_sub(total(&seen.report)).as_duration().as_secs_f64() / span).min(1.0)
    }
}
