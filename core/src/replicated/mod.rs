//! What the coordinators agree on: a pure state machine that applies log entries.
//!
//! Contract: [`State::apply`] is called once per committed entry, in log order, on every member; from equal states
//! and entries it makes equal states, results and changes. A request id that was applied before is not applied again:
//! its first result is returned. A refused entry changes nothing but that memory.

mod apply;
mod artifacts;
mod hosts;
mod labels;
mod profiles;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::endpoint::{Endpoint, Label, Labels};
use crate::ids::{
    DeviceName, Digest, EndpointName, Epoch, LogIndex, MemberId, MemberName, ModelRef, NodeName, ReplicaId, RequestId,
    Version,
};
use crate::shapes::Shapes;
use crate::tensor::Signature;
use crate::units::Bytes;

pub use artifacts::{KEPT_FOR, Unreferenced};
pub use profiles::{HARDWARE_LONGEST, HARDWARE_PER_ARTIFACT, KeptProfile, POINTS_MOST};

/// Which engine runs an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EngineKind {
    /// ONNX Runtime.
    Onnx,
    /// Latency from a formula, for tests and simulation.
    Synthetic,
    /// A CUDA kernel of one's own.
    Kernel,
}

impl EngineKind {
    /// All of them, in the order of the wire's enumeration.
    pub const ALL: [EngineKind; 3] = [EngineKind::Onnx, EngineKind::Synthetic, EngineKind::Kernel];

    /// The word in files and tables.
    pub const fn word(self) -> &'static str {
        match self {
            EngineKind::Onnx => "onnx",
            EngineKind::Synthetic => "synthetic",
            EngineKind::Kernel => "kernel",
        }
    }
}

/// One version of a model: which bytes, what they take and give, how many copies are wanted. A version never changes
/// its digest; the rest may be declared anew.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Name and version.
    pub reference: ModelRef,
    /// SHA-256 of the artifact.
    pub digest: Digest,
    /// Length of the artifact.
    pub size: Bytes,
    /// What runs it.
    pub engine: EngineKind,
    /// Read from the artifact when it was declared; nodes refuse an artifact that says otherwise.
    pub signature: Signature,
    /// Declared bound on rows a batch; measured where absent.
    pub max_batch: Option<u32>,
    /// Declared sizes of batches and lengths of rows.
    pub shapes: Shapes,
    /// Replicas wanted at least (1 or more) and allowed at most.
    pub replicas: ReplicaRange,
    /// Why this version must not be loaded any more: it killed its actor three times in a minute.
    pub quarantined: Option<String>,
}

/// Bounds on the number of replicas of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ReplicaRange {
    pub min: u32,
    pub max: u32,
}

/// A node that joined, whether it is up or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its operator's name for it.
    pub name: NodeName,
    /// `host:port` of its RPC listener.
    pub address: String,
    /// What it can run models on.
    pub devices: Vec<Device>,
    /// Memory it may use for models.
    pub memory: Bytes,
    /// Gets no new replicas and is emptied.
    pub draining: bool,
}

/// A GPU or a group of CPU slots of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Device {
    pub name: DeviceName,
    /// As `cpu` or `cuda`; devices of one kind form a pool.
    pub kind: String,
    /// Batches that run at once.
    pub slots: u32,
    /// What makes it as fast as it is. A model takes as long on every device that names the same, so profiles are kept by it;
    /// empty where a profile that was measured here says nothing about others.
    pub hardware: String,
}

/// Which replica stands where. Immutable; its epoch is the index of the entry that set it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Zero before the first plan.
    pub epoch: Epoch,
    /// Every replica's node and device, by id; no choice is left open.
    pub assignments: BTreeMap<ReplicaId, Assignment>,
}

impl Plan {
    /// How many replicas of each model stand in it.
    pub fn replicas(&self) -> BTreeMap<&ModelRef, u32> {
        let mut replicas = BTreeMap::new();
        self.assignments.values().for_each(|at| *replicas.entry(&at.model).or_default() += 1);
        replicas
    }
}

/// What changes of a plan. A plan of ten thousand models takes megabytes; what changes of it at once takes little.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Nothing stays that is not placed: how older logs have it.
    pub anew: bool,
    /// Replicas that go.
    pub gone: BTreeSet<ReplicaId>,
    /// Replicas that come; one that stands already has to be where it is.
    pub placed: BTreeMap<ReplicaId, Assignment>,
}

impl Moves {
    /// To these alone, whatever stood before.
    pub fn anew(placed: BTreeMap<ReplicaId, Assignment>) -> Moves {
        Moves { anew: true, placed, ..Moves::default() }
    }

    /// From some assignments to others.
    pub fn between(before: &BTreeMap<ReplicaId, Assignment>, after: &BTreeMap<ReplicaId, Assignment>) -> Moves {
        let gone = before.keys().filter(|id| !after.contains_key(id)).copied().collect();
        let placed = after.iter().filter(|(id, at)| before.get(id) != Some(at));
        Moves { anew: false, gone, placed: placed.map(|(id, at)| (*id, at.clone())).collect() }
    }

    /// Whether nothing changes.
    pub fn is_nothing(&self) -> bool {
        !self.anew && self.gone.is_empty() && self.placed.is_empty()
    }

    /// Makes them.
    pub fn make(&self, assignments: &mut BTreeMap<ReplicaId, Assignment>) {
        if self.anew {
            assignments.clear();
        }
        self.gone.iter().for_each(|id| drop(assignments.remove(id)));
        assignments.extend(self.placed.iter().map(|(id, at)| (*id, at.clone())));
    }
}

/// The place of one replica.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Assignment {
    pub model: ModelRef,
    pub node: NodeName,
    pub device: DeviceName,
}

/// What a token's bearer may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Query these endpoints; all where empty.
    Predict(Vec<EndpointName>),
    /// Deploy, scale, drain, read state, predict.
    Operator,
    /// All of that, and grants and membership.
    Admin,
    /// Be a node or a coordinator of this cluster.
    Member,
}

/// A right handed out: the hash of a token and what it opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Names it in `weir get grants` and in the audit trail; not secret.
    pub id: String,
    /// SHA-256 of the token.
    pub token_hash: [u8; 32],
    /// What it opens.
    pub role: Role,
    /// When it ends, in seconds since 1970 by the leader's calendar; `None`: when it is revoked.
    pub expires: Option<u64>,
}

/// A coordinator of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Member {
    pub id: MemberId,
    pub name: MemberName,
    /// `host:port` of its RPC listener.
    pub address: String,
    /// Receives the log but has no vote yet.
    pub learner: bool,
}

/// A write to the control plane.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// The first entry of a cluster's log: its name and first grants. Refused later.
    Found { cluster: String, grants: Vec<Grant> },
    /// Declares models and endpoints, all or nothing. A version that no endpoint names any more goes with its last replica.
    Apply { models: Vec<Model>, endpoints: Vec<Endpoint>, if_index: Option<LogIndex> },
    /// Takes an endpoint away; models that nobody names go with it.
    DeleteEndpoint(EndpointName),
    /// Takes a version out of the registry; refused while an endpoint names it or a label stands for it.
    DeleteModel(ModelRef),
    /// Sets a label (`model@label`), has it go to another version as soon as that is ready, or (`None`) takes it away.
    Label { name: ModelRef, version: Option<Version> },
    /// The leader: the version that a label goes to is ready.
    LabelMoves { name: ModelRef, version: Version },
    /// The leader: queries that began with the version that a label has left have ended.
    LabelLeaves { name: ModelRef, version: Version },
    /// Has a label go back from the version that it stands for, and says why: the leader does so where that misses an objective.
    LabelBack { name: ModelRef, version: Version, because: String },
    /// A node announces itself, first or again after a restart.
    NodeJoin(Node),
    /// Empties a node, or takes it back.
    NodeDrain { node: NodeName, draining: bool },
    /// Forgets a node that left for good.
    NodeRemove(NodeName),
    /// Changes the plan that has epoch `replaces`; refused where another came between.
    MovePlan { replaces: Epoch, moves: Moves },
    /// Takes a version out of service, or (with `None`) allows it again.
    Quarantine { model: ModelRef, because: Option<String> },
    /// Hands out a right.
    GrantAdd(Grant),
    /// Takes it back.
    GrantRevoke(String),
    /// What a membership change of the log itself says about its member; `None` takes the member away.
    MemberSet { id: MemberId, member: Option<Member> },
    /// What a node measured, for the next one that loads the artifact on the same hardware.
    KeepProfile(KeptProfile),
    /// Holds the price of computing time of a pool (a kind of device) by hand, in value a second of slot time; `None` lets go of it.
    Dial { pool: String, price: Option<f64> },
}

/// A log entry's payload: a command, who asked, and under which request.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Entry {
    pub request: RequestId,
    /// Id of the grant that it was asked under, or a member's name.
    pub by: String,
    pub command: Command,
}

/// One object of the state as it is after an entry. Applying all changes in order to a copy of the state keeps the copy equal.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Change {
    Cluster(String),
    Model(Model),
    ModelGone(ModelRef),
    Endpoint(Endpoint),
    EndpointGone(EndpointName),
    Node(Node),
    NodeGone(NodeName),
    /// The plan has another epoch, and these moves were made.
    Plan(Epoch, Moves),
    Grant(Grant),
    GrantGone(String),
    Member(Member),
    MemberGone(MemberId),
    Profile(KeptProfile),
    /// All of an artifact.
    ProfilesGone(Digest),
    /// The price that a pool is held at, or that it is not any more.
    Dial(String, Option<f64>),
    Label(Label),
    LabelGone(ModelRef),
}

impl Change {
    /// Whether it changes what is declared.
    pub(super) fn declares(&self) -> bool {
        use Change::*;
        matches!(
            self,
            Model(_) | ModelGone(_) | Endpoint(_) | EndpointGone(_) | Node(_) | NodeGone(_) | Label(_) | LabelGone(_)
        )
    }
}

/// Why an entry changed nothing. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("{what}")]
    NotFound { what: String },
    #[error("{what}")]
    Conflict { what: String },
    #[error("{what}")]
    Invalid { what: String },
}

/// What an applied entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Where it stands in the log; the epoch of whatever it set.
    pub index: LogIndex,
    /// One line per object, as `endpoint fashion created`; words: created, configured, unchanged, deleted.
    pub lines: Vec<String>,
}

/// Result of a request, remembered for retries.
pub type Applied = Result<Done, Refusal>;

/// The last entry that changed what is declared: models, endpoints, labels and nodes. Whoever keeps what it has read of a state need not read those again
/// while this is the same. Of a state that was read back, the entry that it stands at: what changed before is not known. So states are equal
/// whatever it says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Declared(LogIndex);

impl Declared {
    /// Of a state that was read back after this entry.
    pub fn by(applied: LogIndex) -> Declared {
        Declared(applied)
    }

    /// Whether nothing was declared between two looks.
    pub fn is_as(self, before: Declared) -> bool {
        self.0 == before.0
    }
}

impl PartialEq for Declared {
    fn eq(&self, _: &Declared) -> bool {
        true
    }
}

/// Everything that the coordinators agree on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Index of the last entry applied.
    pub applied: LogIndex,
    /// The cluster's name; empty before it is founded.
    pub cluster: String,
    /// By name and version.
    pub models: BTreeMap<ModelRef, Model>,
    /// By name, each with the index of the entry that last changed it.
    pub endpoints: BTreeMap<EndpointName, Endpoint>,
    /// By name, `model@label`. Endpoints that name some are kept as they are served while these stand where they do.
    pub labels: Labels,
    /// By name.
    pub nodes: BTreeMap<NodeName, Node>,
    /// When any of those has changed last.
    pub declared: Declared,
    /// The current plan.
    pub plan: Plan,
    /// By id.
    pub grants: BTreeMap<String, Grant>,
    /// By id.
    pub members: BTreeMap<MemberId, Member>,
    /// By artifact and hardware. They go with the last model that names the artifact.
    pub profiles: BTreeMap<(Digest, String), KeptProfile>,
    /// Prices that are held by hand, by pool.
    pub dials: BTreeMap<String, f64>,
    /// Smallest replica id that no plan has used.
    pub next_replica: ReplicaId,
    /// Smallest member id that nobody has had.
    pub next_member: MemberId,
    /// Requests of the last [`REMEMBERED_ENTRIES`] entries with their results, oldest first.
    pub requests: VecDeque<(LogIndex, RequestId, Applied)>,
}

/// How long a request id is remembered, in log entries: a client retries for seconds, and the log grows by at most
/// some hundred entries a second, so that none is forgotten that may still be retried. All members forget alike.
pub const REMEMBERED_ENTRIES: u64 = 4096;
