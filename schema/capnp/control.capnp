# The control plane: what operators, nodes and clients say to coordinators. Evolution rules: see predict.capnp.
#
# A request that only the leader can serve and that reached another member is answered by notLeader with the leader's
# address (empty while there is none): ask there. Request ids make writes safe to repeat: the first result is returned.
@0xd1a6f0c2a9b35e02;

using Predict = import "predict.capnp";

struct U128 { high @0 :UInt64; low @1 :UInt64; }

struct Leader {
  name @0 :Text;          # empty while none is known
  address @1 :Text;
}

# ---- objects of the replicated state; also the payload of log entries and snapshots ----

enum Engine { onnx @0; synthetic @1; kernel @2; }

struct Signature {
  inputs @0 :List(Predict.TensorSpec);
  outputs @1 :List(Predict.TensorSpec);
}

struct Model {
  reference @0 :Text;     # name@version
  digest @1 :Data;        # 32 bytes, SHA-256 of the artifact
  size @2 :UInt64;
  engine @3 :Engine;
  signature @4 :Signature;
  maxBatch @5 :UInt32;    # 0: measured
  replicasMin @6 :UInt32;
  replicasMax @7 :UInt32;
  quarantined @8 :Text;   # why; empty where it is not
  batchSizes @9 :List(UInt32);   # ascending; empty: any
  pad @10 :Padding;              # absent: rows of one shape only share a batch
}

struct Padding {
  mask @0 :Text;           # an input
  inputs @1 :List(PaddedInput);
  dimension @2 :UInt32;    # at least 1
  buckets @3 :List(UInt64);   # lengths, ascending
  outputs @4 :List(Text);  # cut back
}

struct PaddedInput {
  name @0 :Text;
  value @1 :Float64;       # what it is filled up with
}

struct Stage {
  name @0 :Text;
  model @1 :Text;
  gate :union {
    none @2 :Void;
    confidenceBelow @3 :Float32;
    entropyAbove @4 :Float32;   # nats
    marginBelow @5 :Float32;
    gain @6 :GainGate;
  }
  # A graph's; a chain has none of them.
  inputs @7 :List(Feed);      # those that are not found by their names; of a combination, all
  when @8 :Condition;         # absent: always
  combine @9 :Combine;        # instead of a model, whose name is empty then
}

struct Feed {
  input @0 :Text;
  stage @1 :Int32;            # by number; -1: the request
  tensor @2 :Text;
  each @3 :Bool;              # item by item
}

struct Condition {
  stage @0 :UInt32;           # by number
  signal @1 :Text;            # confidence, margin, entropy, label, or an output
  is @2 :Comparison;
  than @3 :Float32;
}

enum Comparison { less @0; lessOrEqual @1; greater @2; greaterOrEqual @3; equal @4; notEqual @5; }

struct Combine {
  how @0 :How;
  weights @1 :List(Float64);  # of weighted alone: one for each input
  atLeast @2 :UInt32;         # 0: all
  enum How { mean @0; weighted @1; vote @2; concat @3; }
}

struct GainGate {
  minGain @0 :Float64;
  bins @1 :List(GainBin);   # ascending by confidence
}

struct GainBin {
  confidence @0 :Float32;   # mean of its rows
  rows @1 :UInt32;
  right @2 :Float64;        # share that the stage before gets right
  gain @3 :Float64;         # of the stage behind the gate
  error @4 :Float64;        # standard error of the gain
  next @5 :List(Float32);   # shares by the bin of the next gate's table; empty where there is none
}

struct Endpoint {
  name @0 :Text;
  deadlineUs @1 :UInt64;
  weight @2 :Float64;
  class @3 :Predict.Class;
  labelOutput @4 :Text;       # empty: none
  confidenceOutput @5 :Text;  # empty: none
  stages @6 :List(Stage);
  defaultOutputs @7 :List(Predict.Tensor);   # one row each; empty: no default answer
  share @8 :Float64;          # part of each device's time that others cannot take; 0: none
  audit @9 :Float64;          # part of the rows that every stage is asked about
  versions @10 :List(Split);  # of the one stage's model; empty: that model alone
  before @11 :List(Split);    # what a rollout replaced
  shadow @12 :Text;           # model; empty: none
  objective @13 :Float64;     # attainment that a version has to keep which a rollout gives queries; 0: nobody watches
  undone @14 :Text;           # why the last rollout was undone; empty: it was not
  named @15 :Named;           # absent: it names no label
  beside @16 :List(Text);     # versions that stay loaded beside those that answer
}

struct Named {
  # What the file of an endpoint names, where labels are among that.
  stages @0 :List(Text);      # of the stages that run a model
  versions @1 :List(Split);
  shadow @2 :Text;            # empty: none
}

struct Label {
  # A movable name of a model's versions.
  name @0 :Text;              # model@label
  version @1 :Text;
  next @2 :Text;              # where it goes as soon as that is ready; empty: nowhere
  before @3 :Text;            # what it stood for before; empty: nothing
  leaving @4 :Bool;           # that is still loaded
  undone @5 :Text;            # why it was last taken back; empty: it was not
}

struct Split {
  model @0 :Text;
  share @1 :UInt32;           # against the others'
}

struct Device {
  name @0 :Text;
  kind @1 :Text;
  slots @2 :UInt32;
  hardware @3 :Text;      # what profiles are kept by; empty where they are not
}

struct Node {
  name @0 :Text;
  address @1 :Text;
  devices @2 :List(Device);
  memory @3 :UInt64;
  draining @4 :Bool;
}

struct Assignment {
  replica @0 :UInt64;
  model @1 :Text;
  node @2 :Text;
  device @3 :Text;
}

struct Plan {
  epoch @0 :UInt64;
  assignments @1 :List(Assignment);
}

struct Grant {
  id @0 :Text;
  tokenHash @1 :Data;     # 32 bytes, SHA-256 of the token
  role :union {
    predict @2 :List(Text);   # endpoints; all where empty
    operator @3 :Void;
    admin @4 :Void;
    member @5 :Void;
  }
  expires @6 :UInt64;     # seconds since 1970, by the leader's calendar; 0: when it is revoked
}

struct Member {
  id @0 :UInt64;
  name @1 :Text;
  address @2 :Text;
  learner @3 :Bool;
}

struct KeptProfile {
  # Latency by batch size of an artifact on some hardware, for the next node that loads it there.
  digest @0 :Data;        # of the artifact
  hardware @1 :Text;
  points @2 :List(Profile.Point);
  by @3 :Text;            # the node that measured it
}

struct Command {
  union {
    found :group { cluster @0 :Text; grants @1 :List(Grant); }
    apply :group { models @2 :List(Model); endpoints @3 :List(Endpoint); ifIndex @4 :UInt64; }   # ifIndex 0: whatever the index
    deleteEndpoint @5 :Text;
    nodeJoin @6 :Node;
    nodeDrain :group { drainNode @7 :Text; draining @8 :Bool; }
    nodeRemove @9 :Text;
    setPlan :group { replaces @10 :UInt64; assignments @11 :List(Assignment); }   # all of it: in older logs
    quarantine :group { model @12 :Text; because @13 :Text; }   # because empty: allowed again
    grantAdd @14 :Grant;
    grantRevoke @15 :Text;
    memberSet :group { member @16 :Member; gone @17 :Bool; }    # gone: only the id counts
    keepProfile @18 :KeptProfile;
    dial @19 :Dial;
    movePlan @20 :Moves;
    label @21 :Labelling;     # version empty: taken away
    labelMoves @22 :Labelling;
    labelLeaves @23 :Labelling;
    deleteModel @24 :Text;
    labelBack @25 :Labelling;
  }
}

struct Labelling {
  name @0 :Text;              # model@label
  version @1 :Text;
  because @2 :Text;           # why it goes back
}

struct Moves {
  # What changes of a plan; what is not named stays.
  epoch @0 :UInt64;       # in a command, of the plan that it changes; in a change, of what comes of it
  gone @1 :List(UInt64);
  placed @2 :List(Assignment);
}

struct Dial {
  # Somebody holds the price of computing time of a pool by hand.
  pool @0 :Text;          # a kind of device
  held :union {
    auto @1 :Void;        # nobody does any more
    price @2 :Float64;    # in value a second of slot time; at least 0
  }
}

struct Entry {
  # The payload of one log entry.
  request @0 :U128;
  by @1 :Text;
  command @2 :Command;
}

struct Refusal {
  kind @0 :Kind;
  text @1 :Text;
  enum Kind { notFound @0; conflict @1; invalid @2; }
}

struct Applied {
  union {
    done :group { index @0 :UInt64; lines @1 :List(Text); }
    refused @2 :Refusal;
  }
}

struct Change {
  index @0 :UInt64;       # of the entry that made it; several changes may share one
  union {
    cluster @1 :Text;
    model @2 :Model;
    modelGone @3 :Text;
    endpoint @4 :Endpoint;
    endpointGone @5 :Text;
    node @6 :Node;
    nodeGone @7 :Text;
    plan @8 :Plan;
    grant @9 :Grant;
    grantGone @10 :Text;
    member @11 :Member;
    memberGone @12 :UInt64;
    applied @13 :Void;    # nothing that this reader may see changed
    profile @14 :KeptProfile;
    profilesGone @15 :Data;   # digest of an artifact: all of it
    dial @16 :Dial;
    moved @17 :Moves;
    label @18 :Label;
    labelGone @19 :Text;
  }
}

struct State {
  # Everything replicated: the payload of a snapshot, and (without requests and token hashes) of a read.
  applied @0 :UInt64;
  cluster @1 :Text;
  models @2 :List(Model);
  endpoints @3 :List(Endpoint);
  nodes @4 :List(Node);
  plan @5 :Plan;
  grants @6 :List(Grant);
  members @7 :List(Member);
  nextReplica @8 :UInt64;
  nextMember @9 :UInt64;
  requests @10 :List(Remembered);
  profiles @11 :List(KeptProfile);
  dials @12 :List(Dial);
  labels @13 :List(Label);

  struct Remembered {
    index @0 :UInt64;
    request @1 :U128;
    result @2 :Applied;
  }
}

# ---- soft state: what the leader knows from reports, rebuilt in one report interval ----

struct ReplicaReport {
  replica @0 :UInt64;
  state :union {
    loading @1 :Void;
    ready @2 :Profile;
    failed @3 :Text;          # why it could not be loaded
  }
  deaths @4 :UInt32;          # of its actor, since the node started
  lastDeath @5 :Text;
  batchesClosed @6 :List(UInt64);  # since it is ready: full, target, deadline, idle, timer
  batchRows @7 :UInt64;
  paged @8 :Paged;            # where not everything fits into the memory of the node
}

enum Residence {
  resident @0;
  loading @1;
  onDemand @2;
}

struct Paged {
  # A replica that is in memory or not.
  residence @0 :Residence;
  size @1 :UInt64;            # bytes
  reloadUs @2 :UInt64;        # what a load takes
  rate @3 :Float64;           # queries of its model a second
  cold @4 :UInt64;            # queries that found it out of memory, since the node started; so is what follows
  loads @5 :UInt64;
  evictions @6 :UInt64;
  evictedAgoUs @7 :UInt64;    # the last time, where there are any
  evictedBy @8 :Text;         # what was loaded in its place; empty where others took more memory than was known
}

struct MemoryNow {
  size @0 :UInt64;            # bytes, for models
  taken @1 :UInt64;           # by what is in memory, comes or goes
  placed @2 :UInt64;          # by everything that is placed on the node, if it were in memory
  reloading @3 :Float64;      # share of the time that reloads take
  thrashes @4 :Bool;          # it does little else than load
  thrashings @5 :UInt64;      # how often that has begun since the node started
}

struct Profile {
  points @0 :List(Point);     # latency by batch size, ascending
  maxBatch @1 :UInt32;
  unbatched @2 :Text;         # why rows are not batched; empty where they are
  memory @3 :UInt64;          # bytes
  informed @4 :Bool;          # it began with what the registry had, and was not measured from nothing
  struct Point { batch @0 :UInt32; us @1 :Float64; }
}

struct EndpointLoad {
  endpoint @0 :Text;
  arrived @1 :UInt64;         # rows since the node started; so are the others
  answered @2 :UInt64;
  rejected @3 :UInt64;
  expired @4 :UInt64;
  failed @5 :UInt64;
  degraded @6 :UInt64;
  lastError @7 :Text;
  stageAnswers @8 :List(UInt64);  # answered by stage, in the order of stageNames
  versions @9 :List(VersionLoad); # where the endpoint has an objective
  struct VersionLoad { model @0 :Text; rows @1 :UInt64; inTime @2 :UInt64; }
  stageNames @10 :List(Text);     # whose answers stageAnswers has; those that are gone too
}

struct DeviceLoad {
  device @0 :Text;
  busyUs @1 :UInt64;          # slot-microseconds spent computing since the node started
  queued @2 :UInt32;
  backlogUs @3 :UInt64;
}

struct NodeReport {
  node @0 :Text;
  incarnation @1 :U128;       # drawn when the process started
  epoch @2 :UInt64;           # of the plan that it works by
  replicas @3 :List(ReplicaReport);
  devices @4 :List(DeviceLoad);
  endpoints @5 :List(EndpointLoad);
  upUs @6 :UInt64;
  draining @7 :Bool;          # it was told to stop and finishes what it has
  knownRouting @8 :UInt64;    # counter of the routing it has
  knownTerm @9 :UInt64;
  asked @10 :List(ModelAsked); # by its homes, of any node; of older builds
  wanted @11 :List(ModelRows); # rows that its homes have wanted run since it started: models of which that has changed
  memory @12 :MemoryNow;
  curves @13 :Data;           # what its homes ask of models on any node, see schema::convert::asked
}

struct ModelRows {
  model @0 :Text;
  rows @1 :UInt64;
}

struct ModelAsked {
  # What a model is asked apart from what must run, in slot seconds a second. Only read: see `curves`.
  model @0 :Text;
  first @1 :UInt32;           # step of density, see core::triage::Curve
  soft @2 :List(UInt16);      # by step from `first` on, as bfloat16; where there are no levels
  steps @3 :UInt32;           # that levels tell of, from `first` on: as many for each, fewer for the last one
  levels @4 :Data;            # sums of them, see schema::convert::asked
}

struct Routing {
  # Which replicas may be sent work. Soft: ordered by (term, counter).
  term @0 :UInt64;
  counter @1 :UInt64;
  ready @2 :List(UInt64);     # replicas on nodes that are up
  profiles @3 :List(ReadyProfile);  # one a model and device kind
  struct ReadyProfile { replica @0 :UInt64; profile @1 :Profile; }
}

struct NodeStatus {
  node @0 :Text;
  state @1 :State;
  report @2 :NodeReport;      # the last one
  busy @3 :Float64;           # of all slots, over the last second
  enum State { up @0; draining @1; down @2; }
}

struct MemberStatus {
  member @0 :Member;
  role @1 :Role;
  applied @2 :UInt64;         # highest index known to be on its disk
  up @3 :Bool;
  enum Role { follower @0; leader @1; learner @2; candidate @3; }
}

struct Status {
  state @0 :State;
  leader @1 :Leader;
  term @2 :UInt64;
  members @3 :List(MemberStatus);
  nodes @4 :List(NodeStatus);       # empty from a member that does not lead
  unplaceable @5 :List(Unplaceable);
  wants @6 :List(ModelWant);        # of models that anybody has asked for of late
  struct Unplaceable { model @0 :Text; because @1 :Text; }
  struct ModelWant {
    # What the tuner says, see core::tuner.
    model @0 :Text;
    replicas @1 :UInt32;
    windowUs @2 :UInt64;            # the width of window that needs so many
    asked @3 :Float64;              # slot seconds a second that were asked for in it
    now @4 :Float64;                # and of late
    earns @5 :Float64;              # value a second that one more slot would add
  }
}

# ---- interfaces, one a role ----

interface Directory {
  # For clients: where the nodes are, and nothing else.
  nodes @0 (known :UInt64, waitUs :UInt64) -> (directory :Nodes);
  # Answers at once where something changed since index `known`, else after at most waitUs.
}

struct Nodes {
  index @0 :UInt64;
  nodes @1 :List(Address);
  coordinators @2 :List(Address);
  endpoints @3 :List(Text);
  hosts @4 :List(List(UInt16)); # by endpoint: the nodes that have what its queries begin with, by number; of older builds absent
  struct Address { name @0 :Text; address @1 :Text; draining @2 :Bool; }
}

interface Operator {
  write @0 (request :U128, command :Command) -> (result :WriteResult);
  # Commands of operators: apply, deleteEndpoint, deleteModel, label, nodeDrain, nodeRemove, dial, quarantine with an empty `because`.
  status @1 (stale :Bool) -> (status :Status);
  # Linearizable and from the leader unless stale, which any member answers from its own state.
  watch @2 (since :UInt64, waitUs :UInt64) -> (changes :WatchResult);
  # Changes after index `since`, in order and complete; waits at most waitUs for the first.
  upload @3 (digest :Data, size :UInt64) -> (result :UploadResult);
  # Content-addressed; `present` where a majority has it already.
  snapshot @4 () -> (state :State);
}

struct WriteResult {
  union {
    applied @0 :Applied;
    notLeader @1 :Leader;
    tryAgain @2 :Text;        # leadership changed or the disk is full: nothing is known to have been written
  }
}

struct WatchResult {
  union {
    changes @0 :List(Change);
    tooOld @1 :UInt64;        # changes that far back are gone; read the state (it is at least at this index) and go on from there
  }
  index @2 :UInt64;           # everything up to here is in `changes`
}

struct UploadResult {
  union {
    present @0 :Void;
    upload @1 :Upload;
    notLeader @2 :Leader;
  }
}

interface Upload {
  write @0 (offset :UInt64, chunk :Data);
  # At most 1 MiB, in order.
  finish @1 ();
  # Returns once a majority has the artifact on disk. Fails where the digest differs.
}

interface Admin extends(Operator) {
  grantAdd @0 (request :U128, grant :Grant) -> (result :WriteResult);
  grantRevoke @1 (request :U128, id :Text) -> (result :WriteResult);
  memberAdd @2 (request :U128, name :Text, address :Text) -> (result :WriteResult);
  memberRemove @3 (request :U128, name :Text) -> (result :WriteResult);
  memberPromote @4 (request :U128, name :Text) -> (result :WriteResult);
}

interface NodeHome {
  # For nodes. A node reports about itself and receives what concerns it; it cannot change placement.
  join @0 (request :U128, node :Node) -> (result :WriteResult);
  report @1 (report :NodeReport) -> (result :ReportResult);
  state @2 () -> (state :State);
  # Registry, plan, nodes, members, and grants that a node must know to admit its callers.
  watch @3 (since :UInt64, waitUs :UInt64) -> (changes :WatchResult);
  fetch @4 (digest :Data, offset :UInt64, length :UInt32) -> (chunk :Data, size :UInt64);
  # Part of an artifact, at most 1 MiB; fails where this member lacks it.
}

struct ReportResult {
  union {
    routing @0 :Routing;
    unchanged @1 :Void;
    notLeader @2 :Leader;
    unknownNode @3 :Void;     # join first
  }
  others @4 :List(ModelAsked); # by homes of other nodes, of models that stand on this one; of older builds
  curves @5 :Data;            # the same, see schema::convert::asked
}

# ---- what a node tells operators about itself, at once and from memory ----

interface NodeOperator {
  recent @0 (seconds :UInt32) -> (recent :NodeRecent);
  # Of so many whole ones, at most ten; 0: of ten.
  # The last seconds of the queries whose home it is, and what its devices have before them.
  explain @1 (id :U128) -> (explained :Explained);
  # What became of a query whose home it was.
  label @2 (id :U128, label :UInt32) -> (known :Bool);
  # What the answer to a query should have been; whether this was its home, and still remembers it.
}

struct NodeRecent {
  endpoints @0 :List(EndpointRecent);
  devices @1 :List(DeviceNow);
}

struct EndpointRecent {
  endpoint @0 :Text;
  seconds @1 :UInt32;         # whole ones that the counts are of
  arrived @2 :UInt64;
  answered @3 :UInt64;
  inTime @4 :UInt64;          # of those answered; so are degraded, stages and latencies
  degraded @5 :UInt64;
  rejected @6 :UInt64;
  expired @7 :UInt64;
  failed @8 :UInt64;
  stages @9 :List(StageRecent);
  latencies @10 :List(UInt32);    # by bucket, see core::history::Latencies; those that are missing are 0
  price @11 :Float64;         # of a second of slot time, in units of value
  estimated @12 :UInt64;      # answers of which it is known how likely they are right, by calibration
  right @13 :UInt64;          # of those expected to be right, in millionths
  forgone @14 :UInt64;        # expected to be lost to load, in millionths of a unit of value
  labelled @15 :UInt64;       # answers whose label somebody has told since the node started; so is what follows
  labelledRight @16 :UInt64;  # of those
  gates @17 :List(GateAudit); # by stage; the first has no gate
  shadowed @18 :UInt64;       # rows of which a shadow saw a copy, and that it answered
  agreed @19 :UInt64;         # as the endpoint did
  everAnswered @20 :UInt64;   # since the node started, as metrics tell it; so is what follows
  everInTime @21 :UInt64;
  everDegraded @22 :UInt64;
  everRefused @23 :UInt64;    # rejected, or expired before it could run
}

struct GateAudit {
  # Sums over rows that every stage was asked about.
  rows @0 :UInt64;
  differ @1 :UInt64;          # the stage behind the gate says something else than the one before
  expected @2 :Float64;       # gain, by the table
  labelled @3 :UInt64;
  expectedOfLabelled @4 :Float64;
  gained @5 :Float64;         # in those labelled
}

struct StageRecent {
  stage @0 :Text;
  answers @1 :UInt64;
}

struct DeviceNow {
  device @0 :Text;
  slots @1 :UInt32;
  running @2 :UInt32;         # batches
  busyUs @3 :UInt64;          # slot-microseconds spent computing since the node started
  backlogUs @4 :UInt64;
  models @5 :List(ModelNow);
}

struct ModelNow {
  model @0 :Text;
  queued @1 :UInt32;          # rows
  batchesClosed @2 :List(UInt64);  # since its replicas are ready: full, target, deadline, idle, timer
  batchRows @3 :UInt64;
}

struct Explained {
  records @0 :List(QueryRecord);  # oldest first; several where it was asked here several times
  kept @1 :UInt32;            # queries that each connection thread remembers of either kind
  answeredReachUs @2 :UInt64; # how far back those go that went well; 0: none has been forgotten
  troubledReachUs @3 :UInt64; # likewise, those that were refused, late, degraded, or failed
}

struct QueryRecord {
  endpoint @0 :Text;          # empty where the call was refused before that was known
  class @1 :Predict.Class;
  agoUs @2 :UInt64;           # since it ended
  deadlineUs @3 :UInt64;      # from its arrival; 0: not known
  totalUs @4 :UInt64;         # from its arrival to its end
  outcome @5 :Predict.OutcomeCode;
  rejection @6 :Predict.Rejection;
  message @7 :Text;
  stage @8 :Text;             # that gave the answer
  degraded @9 :Bool;
  visits @10 :List(Visit);    # in the order in which they were sent
  conditions @11 :List(Looked);  # in the order in which they looked
}

struct Looked {
  # What a condition saw of an answer.
  stage @0 :Text;             # that has it
  when @1 :Text;              # as weir files have it
  afterUs @2 :UInt64;         # from the query's arrival
  saw @3 :Float32;            # NaN where there was no number
  holds @4 :Bool;
}

struct Visit {
  # One stage call.
  stage @0 :Text;
  model @1 :Text;
  node @2 :Text;
  device @3 :Text;            # empty on another node, which chooses
  afterUs @4 :UInt64;         # from the query's arrival
  tookUs @5 :UInt64;          # until it came back, where it did
  end :union {
    none @6 :Void;            # the query ended first
    answered :group {
      queueUs @7 :UInt64;
      executeUs @8 :UInt64;
      batchRows @9 :UInt32;   # 0: not told
      closed @10 :Predict.Closed;
    }
    rejected @11 :Predict.Rejection;
    expired @12 :Void;
    failed @13 :Void;
    lost @14 :Void;
  }
  gate :union {
    unasked @15 :Void;        # there is none, or the caller had said how deep to go
    asked @16 :Judged;
  }
}

struct Judged {
  # What a gate was asked, and what it said.
  signal @0 :Float32;         # NaN where the stage gave none
  rule :union {
    confidenceBelow @1 :Float32;
    entropyAbove @2 :Float32;
    marginBelow @3 :Float32;
    gain :group { value @4 :Float64; least @5 :Float64; free @10 :Float64; }   # in units of value; free: what value is where nothing is dear
  }
  cost @6 :Float64;           # of the stage behind the gate at the price that held
  deeper @7 :Bool;
  dear @9 :Bool;          # it would go deeper where nothing is dear, and does not
  price @8 :Float64;          # that price, of a second of slot time in units of value
}
