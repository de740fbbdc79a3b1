//! The log on disk and the snapshot beside it, and raft's view of both.
//!
//! Contract: what [`Store::append`] and [`Store::install`] return from is on disk, name and all. Where the disk is full they
//! have written nothing that counts and may be called again with the same; any other file system error is fatal (the
//! kernel may have dropped the pages): the caller stops the member. Entries since the last snapshot are also kept in
//! memory: the control plane's log is small.

mod files;
mod wal;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::storage::MemStorage;
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use weir_host::disk::Disk;

pub use files::LogError;
use files::{Record, read_snapshot, write_snapshot};
use wal::Wal;

/// The durable log of one member.
pub struct Store {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    wal: Wal,
    view: View,
}

/// What raft reads: the part of the log in memory, and the last snapshot.
#[derive(Clone)]
pub struct View {
    memory: MemStorage,
    snapshot: Arc<Mutex<Latest>>,
}

struct Latest {
    snapshot: Snapshot,
    /// A member asked for one that is newer.
    wanted: bool,
}

impl Store {
    /// Begins the log of a new member, of one that founds a cluster with its `first` snapshot. What a member left that ended
    /// before it knew who it is goes; a log that was written to stays, and is an error.
    pub fn create(disk: &Arc<dyn Disk>, folder: &Path, first: Option<Snapshot>) -> Result<(), LogError> {
        Store::clear(disk, folder)?;
        if let Some(first) = first {
            write_snapshot(&**disk, folder, &first)?;
        }
        Wal::begin(Arc::clone(disk), folder, 1).map(drop)
    }

    /// Makes `folder` ready for [`Store::create`], which does this too.
    pub fn clear(disk: &Arc<dyn Disk>, folder: &Path) -> Result<(), LogError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |cause| LogError::io(what, &path, cause)
        };
        disk.create_dir_all(folder).map_err(io("create", folder))?;
        if Wal::is_written(&**disk, folder)? {
            return Err(LogError::Stray(folder.to_owned()));
        }
        for file in disk.list(folder).map_err(io("list", folder))? {
            disk.remove(&file).map_err(io("remove", &file))?;
        }
        Ok(())
    }

    /// Opens the log that [`Store::create`] began in `folder`.
    pub fn open(disk: Arc<dyn Disk>, folder: &Path) -> Result<Store, LogError> {
        let (wal, records) = Wal::open(Arc::clone(&disk), folder)?;
        let snapshot = read_snapshot(&*disk, folder)?.unwrap_or_default();
        let memory = MemStorage::new();
        if snapshot.get_metadata().index > 0 {
            let mut core = memory.wl();
            core.apply_snapshot(snapshot.clone()).expect("a fresh store takes any snapshot");
        }
        let mut entries: Vec<Entry> = Vec::new();
        let mut hard_state: Option<HardState> = None;
        // Whether what is written at the snapshot's index is what the snapshot ends with. Where it is not, what comes
        // after it is of a leader that was overruled.
        let mut follows = true;
        for record in records {
            match record {
                Record::HardState(state) => hard_state = Some(state),
                Record::Entry(entry) if entry.index <= snapshot.get_metadata().index => {
                    // It took the place of what was written there, and voided what came after that.
                    entries.clear();
                    let metadata = snapshot.get_metadata();
                    follows = entry.index < metadata.index || entry.term == metadata.term;
                }
                Record::Entry(_) if !follows => {}
                Record::Entry(entry) => {
                    entries.retain(|kept| kept.index < entry.index);
                    let last = entries.last().map_or(snapshot.get_metadata().index, |entry| entry.index);
                    if entry.index != last + 1 {
                        return Err(LogError::Gap { after: last, next: entry.index });
                    }
                    entries.push(entry);
                }
            }
        }
        {
            let mut core = memory.wl();
            let last = entries.last().map_or(snapshot.get_metadata().index, |entry| entry.index);
            core.append(&entries).expect("entries follow the snapshot");
            let mut state = hard_state.unwrap_or_else(|| core.hard_state().clone());
            // What a snapshot holds was committed; a commit index may have been kept before its entries were voided.
            state.commit = state.commit.max(snapshot.get_metadata().index).min(last);
            state.term = state.term.max(snapshot.get_metadata().term);
            core.set_hardstate(state);
        }
        let view = View { memory, snapshot: Arc::new(Mutex::new(Latest { snapshot, wanted: false })) };
        Ok(Store { disk, folder: folder.to_owned(), wal, view })
    }

    /// Raft's view.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Makes entries and hard state last, with one sync.
    pub fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), LogError> {
        let mut records: Vec<Record> = entries.iter().cloned().map(Record::Entry).collect();
        records.extend(hard_state.cloned().map(Record::HardState));
        if records.is_empty() {
            return Ok(());
        }
        self.wal.append(&records)?;
        let mut core = self.view.memory.wl();
        core.append(entries).expect("raft appends what follows");
        if let Some(hard_state) = hard_state {
            core.set_hardstate(hard_state.clone());
        }
        Ok(())
    }

    /// The commit index, which is written with the next append: it can be learned again.
    pub fn commit_to(&mut self, commit: u64) {
        self.view.memory.wl().mut_hard_state().commit = commit;
    }

    /// Whether an entry of a megabyte still has room; tries to make room where it has not.
    pub fn has_room(&mut self) -> bool {
        self.wal.has_room()
    }

    /// A snapshot that the leader sent takes the place of everything before it.
    pub fn install(&mut self, snapshot: Snapshot) -> Result<(), LogError> {
        write_snapshot(&*self.disk, &self.folder, &snapshot)?;
        if self.view.latest().snapshot.get_metadata().index < snapshot.get_metadata().index {
            self.view.memory.wl().apply_snapshot(snapshot.clone()).expect("raft installs what is newer");
            self.view.latest().snapshot = snapshot;
        }
        self.rewrite(u64::MAX)
    }

    /// A snapshot of what this member has applied: the log before it is dropped, apart from the last `trailing` entries.
    pub fn compact(&mut self, snapshot: Snapshot, trailing: u64) -> Result<(), LogError> {
        write_snapshot(&*self.disk, &self.folder, &snapshot)?;
        let index = snapshot.get_metadata().index;
        let mut latest = self.view.latest();
        latest.snapshot = snapshot;
        latest.wanted = false;
        drop(latest);
        let keep_from = index.saturating_sub(trailing).max(self.view.memory.first_index().expect("in memory"));
        self.view.memory.wl().compact(keep_from).expect("within the log");
        self.rewrite(index)
    }

    /// Begins a new segment with the entries after `index`, and drops the old ones. It begins with the place where the
    /// snapshot ends, which voids everything before: the old ones may be back after a crash.
    fn rewrite(&mut self, index: u64) -> Result<(), LogError> {
        let last = self.view.memory.last_index().expect("in memory");
        let first = self.view.memory.first_index().expect("in memory").max(index.saturating_add(1));
        let entries = if first <= last {
            self.view.memory.entries(first, last + 1, None, GetEntriesContext::empty(false)).expect("in memory")
        } else {
            Vec::new()
        };
        let mut end = Entry::default();
        {
            let latest = self.view.latest();
            end.set_index(latest.snapshot.get_metadata().index);
            end.set_term(latest.snapshot.get_metadata().term);
        }
        let mut records = vec![Record::Entry(end)];
        records.extend(entries.into_iter().map(Record::Entry));
        records.push(Record::HardState(self.view.memory.initial_state().expect("in memory").hard_state));
        self.wal.restart(&records)
    }

    /// Whether somebody needs a newer snapshot than there is.
    pub fn snapshot_wanted(&self) -> bool {
        self.view.latest().wanted
    }

    /// Raft's configuration as of the last change applied.
    pub fn set_conf_state(&self, conf: ConfState) {
        self.view.memory.wl().set_conf_state(conf);
    }

    /// Index and bytes of the last snapshot.
    pub fn snapshot(&self) -> Snapshot {
        self.view.latest().snapshot.clone()
    }
}

impl View {
    fn latest(&self) -> std::sync::MutexGuard<'_, Latest> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for View {
    fn initial_state(&self) -> raft::Result<RaftState> {
        self.memory.initial_state()
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        self.memory.entries(low, high, max_size, context)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.memory.term(index)
    }

    fn first_index(&self) -> raft::Result<u64> {
        self.memory.first_index()
    }

    fn last_index(&self) -> raft::Result<u64> {
        self.memory.last_index()
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let mut latest = self.latest();
        let metadata = latest.snapshot.get_metadata();
        let conf = metadata.get_conf_state();
        // A member refuses a snapshot that it is no part of, and cannot go on from one that ends before the entries begin.
        let for_it = [&conf.voters, &conf.voters_outgoing, &conf.learners].iter().any(|ids| ids.contains(&to));
        if !for_it || metadata.index < request_index || metadata.index + 1 < self.memory.first_index()? {
            latest.wanted = true;
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(latest.snapshot.clone())
    }
}
