# What clients and nodes say to each other about predictions, and the login that every connection begins with.
#
# Evolution rules (all schema files): numbers are never reused and never change type; a field is retired by renaming it to
# obsoleteX. New fields, union members, enumerants and methods go at the end, and their default (zero, empty) must mean what
# an older peer means by leaving them out. Readers refuse an enumerant that they do not know where it decides something,
# and ignore fields that they do not know. schema/testdata holds messages recorded from earlier versions; a test reads them.
@0xd1a6f0c2a9b35e01;

using Control = import "control.capnp";
using Raft = import "raft.capnp";

interface Login {
  # The bootstrap object of every listener. It offers this and nothing else.
  login @0 (request :LoginRequest) -> (granted :Granted);
  # Fails, and the connection is closed, where the token opens nothing.
}

struct LoginRequest {
  token @0 :Data;         # 32 bytes; empty for nobody in particular
  software @1 :Text;      # as "weir 0.1.0", for logs
  protocol @2 :UInt16;    # highest version that the caller speaks; now 1
  purpose @3 :Purpose;    # which of the token's objects is wanted
}

enum Purpose {
  predict @0;             # at a node: predictor; at a coordinator: directory
  operate @1;             # at a coordinator: operator, or admin for an admin's token; at a node: nodeOperator
  member @2;              # at a node: stages; at a coordinator: nodeHome (for nodes)
  coordinator @3;         # at a coordinator: peer
}

struct Granted {
  protocol @0 :UInt16;    # the version that both speak
  server @1 :Text;        # the name of the node or coordinator that answers
  grant @2 :Text;         # id of the grant under which this was given
  callsInFlight @3 :UInt32;   # more than this many unanswered calls on the connection are not read; stay below
  bytesInFlight @4 :UInt64;   # likewise, their bytes
  messageBytes @5 :UInt64;    # a larger message ends the connection

  role :union {
    none @6 :Void;
    predictor @7 :Predictor;
    directory @8 :Control.Directory;
    stages @9 :Stages;
    operator @10 :Control.Operator;
    admin @11 :Control.Admin;
    nodeHome @12 :Control.NodeHome;
    peer @13 :Raft.Peer;
    nodeOperator @14 :Control.NodeOperator;
  }
}

enum DType {
  bool @0; u8 @1; u16 @2; u32 @3; u64 @4; i8 @5; i16 @6; i32 @7; i64 @8;
  f16 @9; bf16 @10; f32 @11; f64 @12; string @13;
}

struct Tensor {
  name @0 :Text;          # as the model spells it; empty where the order says which
  dtype @1 :DType;
  shape @2 :List(UInt64); # empty for a scalar
  data @3 :Data;          # row-major, little-endian; a string is its length (u32, little-endian) and its bytes
}

struct TensorSpec {
  name @0 :Text;
  dtype @1 :DType;
  shape @2 :List(Int64);  # -1 for a dimension left open
}

enum Class { default @0; critical @1; sheddable @2; }

interface Predictor {
  # What a predict capability can do at a node. Dropping a call cancels what of it still waits.
  predict @0 (request :PredictRequest) -> (response :PredictResponse);
  describe @1 (endpoint :Text) -> (signature :EndpointSignature);
  statistics @2 (endpoint :Text) -> (statistics :EndpointStatistics);
  # Of the queries whose home this node was.
}

struct EndpointStatistics {
  # Since the node started.
  incarnation @0 :Control.U128;   # drawn when it did
  success @1 :Calls;      # all of whose rows were answered
  fail @2 :Calls;
  queue @3 :Calls;        # of those answered: what their rows waited, on average
  compute @4 :Calls;      # and were computed on
  rows @5 :UInt64;        # answered
  batches @6 :Float64;    # that those ran in
  lastAgoUs @7 :UInt64;   # since an answer was given; where none was, the largest number
}

struct Calls {
  count @0 :UInt64;
  us @1 :UInt64;          # together
}

struct EndpointSignature {
  inputs @0 :List(TensorSpec);
  outputs @1 :List(TensorSpec);
  labelOutput @2 :Text;   # empty where none
  deadlineUs @3 :UInt64;  # for a query that brings none
  unready @4 :Text;       # why no query could be answered now, as far as this node knows; empty where it can
}

struct PredictRequest {
  idHigh @0 :UInt64;      # query id, made by the client; row i has the id plus i
  idLow @1 :UInt64;
  endpoint @2 :Text;
  inputs @3 :List(Tensor);    # by name, in any order; a name may be empty where the endpoint takes one input
  whole @4 :Bool;         # false: the first dimension of every input is rows, each a query of its own; true: the arrays as they are are one query
  deadlineLeftUs @5 :UInt64;  # time left, never clock time; 0: the endpoint's own deadline
  class @6 :Class;
  classGiven @7 :Bool;    # false: the endpoint's own class
  outputs @8 :List(Text); # which outputs to send back; all where empty
  minStage @9 :Text;      # no shallower stage may answer: then rather none does; empty: any may
  maxStage @10 :Text;     # no deeper stage is asked; empty: all may be
  trace @11 :Bool;        # answers tell how they came about
}

struct PredictResponse {
  answers @0 :List(Answer);   # one a row, in order; empty where the call as a whole was refused
  refused @1 :Answer;         # null unless it was: then the outcome of every row of it
}

enum OutcomeCode {
  answered @0;
  rejected @1;            # it did not run: safe to retry
  expired @2;
  failed @3;              # it ran and failed
  unknown @4;             # a connection broke: it may have run
}

enum Rejection {
  tooLate @0; queueFull @1; noReplica @2; draining @3; unknownEndpoint @4; badInput @5; forbidden @6;
  outbid @7;              # what others ask is worth more for the time it takes
}

struct Answer {
  outcome @0 :OutcomeCode;
  rejection @1 :Rejection;    # where rejected
  message @2 :Text;           # what went wrong and what to do; empty where a stage answered
  outputs @3 :List(Tensor);   # without the first dimension where rows were asked
  model @4 :Text;             # name@version that gave the answer
  stage @5 :Text;
  degraded @6 :Bool;          # a deeper stage was wanted, and could not be had or was too dear
  node @7 :Text;              # where that model ran
  queueUs @8 :UInt64;         # all stages together
  executeUs @9 :UInt64;
  totalUs @10 :UInt64;        # at the home node, from reading the request
  price @11 :Float64;         # of a second of slot time, in value, the highest that a gate met; 0 where nothing was dear
  expectedLoss @12 :Float64;  # what the next stage would have gained, in value, where it was worth running and did not
  trace @13 :Control.QueryRecord; # null unless it was asked for
  expectedRight @14 :Float64; # how likely the answer is to be right, by calibration; 0 where that is not known
}

interface Stages {
  # What nodes offer each other: run rows through one model that stands here.
  run @0 (request :StageRequest) -> (response :StageResponse);
}

struct StageRequest {
  model @0 :Text;         # name@version
  epoch @1 :UInt64;       # of the plan that the caller routes by
  inputs @2 :List(Tensor);    # in the order of the model's signature
  whole @3 :Bool;
  deadlineLeftUs @4 :List(UInt64);    # one a row
  class @5 :Class;
  values @6 :List(Float64);   # one a row: what running it adds to an answer in hand; where it has none, what an answer is worth, negated
  endpoint @7 :Text;          # that asks
  first @8 :Bool;             # first answers that more may follow
  byUs @9 :UInt64;            # not wanted where they would not be done by then, from now; 0: whenever that is
  missed @10 :UInt32;         # rows that were not sent of late, as they would have been done too late here
  missedLeftUs @11 :UInt64;   # the most time that one of them had
}

struct StageResponse {
  rows @0 :List(StageAnswer);
  outputs @1 :List(OutputBlock);  # rows that came out together, kept together
  queueAheadUs @2 :UInt64;    # estimated wait of a query of this model that came now: routing knowledge
  yieldsUs @3 :UInt64;        # of it, what would give way to a query that nobody has answered yet
  price @4 :Float64;          # what a second of slot time is worth there, in units of value
  full @5 :Bool;              # none was taken: they would not have been done by the time that was asked for
  floor @6 :Float64;          # what a second of a further row had to be worth for the row to be let in at that moment
}

struct OutputBlock {
  tensors @0 :List(Tensor);   # in the order of the model's signature
}

struct StageAnswer {
  outcome @0 :OutcomeCode;
  rejection @1 :Rejection;
  message @2 :Text;
  block @3 :UInt32;       # where answered: which block
  row @4 :Int64;          # which row of it; -1: all of it
  queueUs @5 :UInt64;
  executeUs @6 :UInt64;
  batchRows @7 :UInt32;   # queries in the batch that it ran in; 0: not told
  closed @8 :Closed;      # why that batch was not larger
}

enum Closed { untold @0; full @1; target @2; deadline @3; idle @4; timer @5; }
