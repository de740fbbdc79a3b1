# What coordinators say to each other, and what they keep on disk. Evolution rules: see predict.capnp.
#
# Consensus messages are fields here, never bytes of the consensus library's own encoding (its parser is old and must
# not see what a stranger sent); only an entry's payload (control.capnp Entry) is opaque to them.
@0xd1a6f0c2a9b35e03;

using Control = import "control.capnp";

interface Peer {
  step @0 (messages :List(Message)) -> ();
  # Consensus messages, in order; lost ones are sent again by the protocol.
  join @1 (request :Control.U128, name :Text, address :Text) -> (result :JoinResult);
  # Asks to be added as a learner; the leader promotes it when it has caught up.
  putArtifact @2 (digest :Data, size :UInt64, offset :UInt64, chunk :Data) -> (stored :Bool);
  # Chunks in order, at most 1 MiB; `stored` once complete, checked and synced.
  getArtifact @3 (digest :Data, offset :UInt64, length :UInt32) -> (chunk :Data, size :UInt64);
}

struct JoinResult {
  union {
    joined :group { id @0 :UInt64; cluster @1 :Text; members @2 :List(Control.Member); }
    notLeader @3 :Control.Leader;
    refused @4 :Text;
  }
}

enum MessageType {
  # As in the consensus library, in its order.
  hup @0; beat @1; propose @2; append @3; appendResponse @4; requestVote @5; requestVoteResponse @6; snapshot @7;
  heartbeat @8; heartbeatResponse @9; unreachable @10; snapStatus @11; checkQuorum @12; transferLeader @13; timeoutNow @14;
  readIndex @15; readIndexResp @16; requestPreVote @17; requestPreVoteResponse @18;
}

struct LogEntry {
  kind @0 :Kind;
  term @1 :UInt64;
  index @2 :UInt64;
  data @3 :Data;          # control.capnp Entry where normal; ConfChange where a membership change; empty for a leader's first
  context @4 :Data;
  enum Kind { normal @0; confChange @1; confChangeV2 @2; }
}

struct ConfState {
  voters @0 :List(UInt64);
  learners @1 :List(UInt64);
  votersOutgoing @2 :List(UInt64);
  learnersNext @3 :List(UInt64);
  autoLeave @4 :Bool;
}

struct ConfChange {
  # A membership change by joint consensus, in the context of its log entry; an entry without one leaves the joint configuration.
  steps @0 :List(Step);
  entry @1 :Data;         # control.capnp Entry (memberSet) that is applied with it
  struct Step { kind @0 :Kind; id @1 :UInt64; }
  enum Kind { addVoter @0; removeNode @1; addLearner @2; }
}

struct Snapshot {
  index @0 :UInt64;
  term @1 :UInt64;
  conf @2 :ConfState;
  state @3 :Data;         # control.capnp State, framed
}

struct Message {
  type @0 :MessageType;
  to @1 :UInt64;
  from @2 :UInt64;
  term @3 :UInt64;
  logTerm @4 :UInt64;
  index @5 :UInt64;
  entries @6 :List(LogEntry);
  commit @7 :UInt64;
  commitTerm @8 :UInt64;
  snapshot @9 :Snapshot;      # null where none
  requestSnapshot @10 :UInt64;
  reject @11 :Bool;
  rejectHint @12 :UInt64;
  context @13 :Data;
  priority @14 :Int64;
}

struct HardState {
  term @0 :UInt64;
  vote @1 :UInt64;
  commit @2 :UInt64;
}

struct LogRecord {
  # The payload of one record of the write-ahead log. An entry voids those of its index and later ones before it.
  union {
    entry @0 :LogEntry;
    hardState @1 :HardState;
  }
}
