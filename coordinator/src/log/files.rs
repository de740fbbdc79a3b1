//! Records and the snapshot file as bytes.

use std::io;
use std::path::{Path, PathBuf};

use capnp::message::Builder;
use raft::eraftpb::{Entry, HardState, Snapshot};
use weir_host::disk::Disk;
use weir_schema::convert::{BadMessage, framed};
use weir_schema::raft_capnp::{log_record, snapshot};

use crate::messages::{read_entry, read_snapshot_message, write_entry, write_snapshot_message};

/// What keeps the log from being read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LogError {
    #[error("cannot {what} {path}: {cause}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the disk is full: {0} cannot be written; free space there")]
    Full(PathBuf),
    #[error(
        "{path} is damaged at byte {offset}, before records that are whole; this member must not guess: remove it with `weir member remove`, empty its data folder and start it anew with --join"
    )]
    Damaged { path: PathBuf, offset: u64 },
    #[error(
        "the log jumps from entry {after} to {next}; this member must not guess: remove it with `weir member remove`, empty its data folder and start it anew with --join"
    )]
    Gap { after: u64, next: u64 },
    #[error(
        "{0} is gone, and with it what this member voted for; bring it back, or remove the member with `weir member remove`, empty its data folder and start it anew with --join (the only coordinator of a cluster: `weir snapshot restore`)"
    )]
    Missing(PathBuf),
    #[error(
        "{0} holds the log of a member, and the file `membership` beside it is gone; bring it back, or choose another data folder"
    )]
    Stray(PathBuf),
}

impl LogError {
    pub(super) fn io(what: &'static str, path: &Path, cause: io::Error) -> LogError {
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LogError::Full(path.to_owned()),
            _ => LogError::Io { what, path: path.to_owned(), cause },
        }
    }

    /// Whatever kind it says to be of, what a sync did not write is gone.
    pub(super) fn sync(path: &Path, cause: io::Error) -> LogError {
        LogError::Io { what: "sync", path: path.to_owned(), cause }
    }

    /// Whether nothing was written for want of room: the same may be tried again.
    pub fn is_full(&self) -> bool {
        matches!(self, LogError::Full(_))
    }

    pub(super) fn damaged(path: &Path, offset: u64) -> LogError {
        LogError::Damaged { path: path.to_owned(), offset }
    }
}

/// One record of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Entry(Entry),
    HardState(HardState),
}

pub fn record_to_bytes(record: &Record) -> Vec<u8> {
    let mut message = Builder::new_default();
    let root = message.init_root::<log_record::Builder<'_>>();
    match record {
        Record::Entry(entry) => write_entry(root.init_entry(), entry),
        Record::HardState(state) => {
            let mut b = root.init_hard_state();
            b.set_term(state.term);
            b.set_vote(state.vote);
            b.set_commit(state.commit);
        }
    }
    capnp::serialize::write_message_to_words(&message)
}

pub fn record_from_bytes(bytes: &[u8]) -> Result<Record, BadMessage> {
    let message = framed::<log_record::Owned>(bytes)?;
    Ok(match message.get()?.which()? {
        log_record::Entry(entry) => Record::Entry(read_entry(entry?)?),
        log_record::HardState(r) => {
            let r = r?;
            let mut state = HardState::default();
            state.set_term(r.get_term());
            state.set_vote(r.get_vote());
            state.set_commit(r.get_commit());
            Record::HardState(state)
        }
    })
}

fn snapshot_path(folder: &Path) -> PathBuf {
    folder.join("snapshot")
}

/// Length and checksum, then the message.
pub fn write_snapshot(disk: &dyn Disk, folder: &Path, snapshot: &Snapshot) -> Result<(), LogError> {
    let mut message = Builder::new_default();
    write_snapshot_message(message.init_root::<snapshot::Builder<'_>>(), snapshot);
    let body = capnp::serialize::write_message_to_words(&message);
    let mut bytes = Vec::with_capacity(body.len() + 12);
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    bytes.extend(body);
    let path = snapshot_path(folder);
    disk.write_atomically(&path, &bytes).map_err(|cause| LogError::io("write", &path, cause))
}

pub fn read_snapshot(disk: &dyn Disk, folder: &Path) -> Result<Option<Snapshot>, LogError> {
    let path = snapshot_path(folder);
    let bytes = match disk.read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|cause| LogError::io("read", &path, cause))?,
    };
    let damaged = || LogError::damaged(&path, 0);
    // It was renamed into place whole: whatever is wrong with it happened later.
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
    let (checksum, body) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    if body.len() as u64 != u64::from_le_bytes(*length) || crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(damaged());
    }
    let message = framed::<snapshot::Owned>(body).map_err(|_| damaged())?;
    let snapshot = message.get().map_err(BadMessage::from).and_then(read_snapshot_message).map_err(|_| damaged())?;
    Ok(Some(snapshot))
}
