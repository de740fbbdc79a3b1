//! Consensus messages as fields of our own schema, and back. No bytes of the consensus library's encoding are parsed.

use capnp::struct_list;
use protobuf::ProtobufEnum;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message,
    MessageType, Snapshot,
};
use weir_schema::convert::{BadMessage, framed};
use weir_schema::raft_capnp as wire;

pub fn write_entry(mut b: wire::log_entry::Builder<'_>, entry: &Entry) {
    b.set_kind(match entry.get_entry_type() {
        EntryType::EntryNormal => wire::log_entry::Kind::Normal,
        EntryType::EntryConfChange => wire::log_entry::Kind::ConfChange,
        EntryType::EntryConfChangeV2 => wire::log_entry::Kind::ConfChangeV2,
    });
    b.set_term(entry.term);
    b.set_index(entry.index);
    b.set_data(&entry.data);
    b.set_context(&entry.context);
}

pub fn read_entry(r: wire::log_entry::Reader<'_>) -> Result<Entry, BadMessage> {
    let mut entry = Entry::default();
    entry.set_entry_type(match r.get_kind()? {
        wire::log_entry::Kind::Normal => EntryType::EntryNormal,
        wire::log_entry::Kind::ConfChange => EntryType::EntryConfChange,
        wire::log_entry::Kind::ConfChangeV2 => EntryType::EntryConfChangeV2,
    });
    entry.set_term(r.get_term());
    entry.set_index(r.get_index());
    entry.set_data(r.get_data()?.to_vec().into());
    entry.set_context(r.get_context()?.to_vec().into());
    Ok(entry)
}

fn write_ids(mut list: capnp::primitive_list::Builder<'_, u64>, ids: &[u64]) {
    for (i, id) in ids.iter().enumerate() {
        list.set(i as u32, *id);
    }
}

fn write_conf_state(mut b: wire::conf_state::Builder<'_>, conf: &ConfState) {
    write_ids(b.reborrow().init_voters(conf.voters.len() as u32), &conf.voters);
    write_ids(b.reborrow().init_learners(conf.learners.len() as u32), &conf.learners);
    write_ids(b.reborrow().init_voters_outgoing(conf.voters_outgoing.len() as u32), &conf.voters_outgoing);
    write_ids(b.reborrow().init_learners_next(conf.learners_next.len() as u32), &conf.learners_next);
    b.set_auto_leave(conf.auto_leave);
}

fn read_conf_state(r: wire::conf_state::Reader<'_>) -> Result<ConfState, BadMessage> {
    let mut conf = ConfState::default();
    conf.set_voters(r.get_voters()?.iter().collect());
    conf.set_learners(r.get_learners()?.iter().collect());
    conf.set_voters_outgoing(r.get_voters_outgoing()?.iter().collect());
    conf.set_learners_next(r.get_learners_next()?.iter().collect());
    conf.set_auto_leave(r.get_auto_leave());
    Ok(conf)
}

pub fn write_snapshot_message(mut b: wire::snapshot::Builder<'_>, snapshot: &Snapshot) {
    b.set_index(snapshot.get_metadata().index);
    b.set_term(snapshot.get_metadata().term);
    write_conf_state(b.reborrow().init_conf(), snapshot.get_metadata().get_conf_state());
    b.set_state(&snapshot.data);
}

pub fn read_snapshot_message(r: wire::snapshot::Reader<'_>) -> Result<Snapshot, BadMessage> {
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = r.get_index();
    snapshot.mut_metadata().term = r.get_term();
    *snapshot.mut_metadata().mut_conf_state() = read_conf_state(r.get_conf()?)?;
    snapshot.set_data(r.get_state()?.to_vec().into());
    Ok(snapshot)
}

/// Writes the messages for one member.
pub fn write_messages(mut list: struct_list::Builder<'_, wire::message::Owned>, messages: &[Message]) {
    for (i, message) in messages.iter().enumerate() {
        let mut b = list.reborrow().get(i as u32);
        b.set_type(
            wire::MessageType::try_from(message.get_msg_type().value() as u16).expect("the schema lists every type"),
        );
        b.set_to(message.to);
        b.set_from(message.from);
        b.set_term(message.term);
        b.set_log_term(message.log_term);
        b.set_index(message.index);
        b.set_commit(message.commit);
        b.set_commit_term(message.commit_term);
        b.set_request_snapshot(message.request_snapshot);
        b.set_reject(message.reject);
        b.set_reject_hint(message.reject_hint);
        b.set_context(&message.context);
        b.set_priority(message.priority);
        let mut entries = b.reborrow().init_entries(message.entries.len() as u32);
        for (i, entry) in message.entries.iter().enumerate() {
            write_entry(entries.reborrow().get(i as u32), entry);
        }
        if message.has_snapshot() {
            write_snapshot_message(b.init_snapshot(), message.get_snapshot());
        }
    }
}

/// Reads a message from another member. Proposals of other members are not taken: requests are, at the leader.
pub fn read_message(r: wire::message::Reader<'_>) -> Result<Message, BadMessage> {
    let kind = r.get_type()?;
    if kind == wire::MessageType::Propose {
        return Err(BadMessage::new("a member proposes for another"));
    }
    let mut message = Message::default();
    message.set_msg_type(
        MessageType::from_i32(i32::from(kind as u16)).ok_or_else(|| BadMessage::new("an unknown type of message"))?,
    );
    message.set_to(r.get_to());
    message.set_from(r.get_from());
    message.set_term(r.get_term());
    message.set_log_term(r.get_log_term());
    message.set_index(r.get_index());
    message.set_commit(r.get_commit());
    message.set_commit_term(r.get_commit_term());
    message.set_request_snapshot(r.get_request_snapshot());
    message.set_reject(r.get_reject());
    message.set_reject_hint(r.get_reject_hint());
    message.set_context(r.get_context()?.to_vec().into());
    message.set_priority(r.get_priority());
    for entry in r.get_entries()? {
        message.mut_entries().push(read_entry(entry)?);
    }
    if r.has_snapshot() {
        message.set_snapshot(read_snapshot_message(r.get_snapshot()?)?);
    }
    Ok(message)
}

/// What happens to one member in a membership change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberStep {
    AddLearner,
    Promote,
    Remove,
}

/// A membership change for the consensus library: joint, and left by itself.
pub fn conf_change(id: u64, step: MemberStep) -> ConfChangeV2 {
    let mut single = ConfChangeSingle::default();
    single.set_node_id(id);
    single.set_change_type(match step {
        MemberStep::AddLearner => ConfChangeType::AddLearnerNode,
        MemberStep::Promote => ConfChangeType::AddNode,
        MemberStep::Remove => ConfChangeType::RemoveNode,
    });
    let mut change = ConfChangeV2::default();
    change.set_transition(ConfChangeTransition::Implicit);
    change.set_changes(vec![single].into());
    change
}

/// The context of a membership change's entry: the change in our own words, and the entry that is applied with it.
pub fn change_to_bytes(id: u64, step: MemberStep, entry: &[u8]) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    let mut b = message.init_root::<wire::conf_change::Builder<'_>>();
    b.set_entry(entry);
    let mut b = b.init_steps(1).get(0);
    b.set_id(id);
    b.set_kind(match step {
        MemberStep::AddLearner => wire::conf_change::Kind::AddLearner,
        MemberStep::Promote => wire::conf_change::Kind::AddVoter,
        MemberStep::Remove => wire::conf_change::Kind::RemoveNode,
    });
    capnp::serialize::write_message_to_words(&message)
}

/// The change and the entry of [`change_to_bytes`].
pub fn change_from_bytes(bytes: &[u8]) -> Result<(ConfChangeV2, Vec<u8>), BadMessage> {
    let message = framed::<wire::conf_change::Owned>(bytes)?;
    let r = message.get()?;
    let steps = r.get_steps()?;
    if steps.len() != 1 {
        return Err(BadMessage::new("a membership change has one step"));
    }
    let step = match steps.get(0).get_kind()? {
        wire::conf_change::Kind::AddLearner => MemberStep::AddLearner,
        wire::conf_change::Kind::AddVoter => MemberStep::Promote,
        wire::conf_change::Kind::RemoveNode => MemberStep::Remove,
    };
    Ok((conf_change(steps.get(0).get_id(), step), r.get_entry()?.to_vec()))
}
