use std::io;
use std::sync::atomic::{AtomicI64, Ordering};

use weir_host::disk::{DiskFile, SystemDisk};

use super::*;

fn entry(index: u64, term: u64, data: &str) -> Entry {
    let mut entry = Entry::default();
    entry.set_index(index);
    entry.set_term(term);
    entry.set_data(data.as_bytes().to_vec().into());
    entry
}

fn first() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = 1;
    snapshot.mut_metadata().term = 1;
    snapshot.mut_metadata().mut_conf_state().voters = vec![1];
    snapshot.set_data(b"state".to_vec().into());
    snapshot
}

fn hard_state(term: u64, commit: u64) -> HardState {
    let mut state = HardState::default();
    state.set_term(term);
    state.set_commit(commit);
    state
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(SystemDisk)
}

/// Opens the log in `folder`; begins it where there is none.
fn open(folder: &Path) -> Result<Store, LogError> {
    if std::fs::read_dir(folder).unwrap().next().is_none() {
        Store::create(&disk(), folder, Some(first()))?;
    }
    Store::open(disk(), folder)
}

fn datas(store: &Store) -> Vec<String> {
    let view = store.view();
    let (low, high) = (view.first_index().unwrap(), view.last_index().unwrap() + 1);
    if low == high {
        return Vec::new();
    }
    let entries = view.entries(low, high, None, GetEntriesContext::empty(false)).unwrap();
    entries.iter().map(|entry| String::from_utf8(entry.data.to_vec()).unwrap()).collect()
}

fn segment(folder: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "wal"));
    files.sort();
    files.remove(0)
}

#[test]
fn what_was_appended_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    store.append(&[entry(2, 1, "a"), entry(3, 1, "b")], Some(&hard_state(1, 2))).unwrap();
    store.append(&[entry(4, 1, "c")], None).unwrap();
    drop(store);
    let store = open(folder.path()).unwrap();
    assert_eq!(datas(&store), ["a", "b", "c"]);
    assert_eq!(store.view().initial_state().unwrap().hard_state, hard_state(1, 2));
    assert_eq!(store.view().initial_state().unwrap().conf_state.voters, [1]);
}

#[test]
fn a_newer_leader_s_entries_replace_older_ones() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    store.append(&[entry(2, 1, "a"), entry(3, 1, "b"), entry(4, 1, "c")], None).unwrap();
    store.append(&[entry(3, 2, "B")], Some(&hard_state(2, 3))).unwrap();
    assert_eq!(datas(&store), ["a", "B"]);
    drop(store);
    assert_eq!(datas(&open(folder.path()).unwrap()), ["a", "B"]);
}

#[test]
fn a_snapshot_drops_what_is_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    store.append(&(2..30).map(|i| entry(i, 1, &i.to_string())).collect::<Vec<_>>(), Some(&hard_state(1, 29))).unwrap();
    let mut snapshot = first();
    snapshot.mut_metadata().index = 27;
    store.compact(snapshot.clone(), 5).unwrap();
    assert_eq!(datas(&store).len(), 8, "some stay for members that are a little behind");
    drop(store);
    let store = open(folder.path()).unwrap();
    assert_eq!(datas(&store), ["28", "29"]);
    assert_eq!(store.snapshot(), snapshot);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "one segment and the snapshot");
}

#[test]
fn a_log_cut_at_any_byte_holds_a_prefix_of_what_was_appended() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    for i in 2..6 {
        store.append(&[entry(i, 1, &i.to_string())], None).unwrap();
    }
    let end = store.wal.end as usize;
    drop(store);
    let file = segment(folder.path());
    let whole = std::fs::read(&file).unwrap();
    let mut lengths = std::collections::BTreeSet::new();
    for cut in 0..=end {
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        std::fs::write(&file, &torn[..end + 64]).unwrap();
        let store = open(folder.path()).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        let found = datas(&store);
        assert!(
            ["2", "3", "4", "5"].starts_with(&found.iter().map(String::as_str).collect::<Vec<_>>()),
            "cut at {cut}: {found:?}"
        );
        lengths.insert(found.len());
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[test]
fn a_flipped_bit_before_the_last_append_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    store.append(&[entry(2, 1, "a")], None).unwrap();
    let first_end = store.wal.end as usize;
    store.append(&[entry(3, 1, "b")], None).unwrap();
    let end = store.wal.end as usize;
    drop(store);
    let file = segment(folder.path());
    let whole = std::fs::read(&file).unwrap();
    for byte in 0..end {
        for bit in [0, 3, 7] {
            let mut flipped = whole.clone();
            flipped[byte] ^= 1 << bit;
            std::fs::write(&file, &flipped[..end + 64]).unwrap();
            match open(folder.path()) {
                Err(LogError::Damaged { offset, .. }) => assert!(byte < first_end && offset == 0, "byte {byte}"),
                Ok(store) => assert!(
                    byte >= first_end && datas(&store) == ["a"],
                    "byte {byte}: only the last append may be cut off"
                ),
                Err(other) => panic!("byte {byte}: {other}"),
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_a_snapshot_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let file = folder.path().join("snapshot");
    let whole = std::fs::read(&file).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, &flipped).unwrap();
        assert!(matches!(open(folder.path()), Err(LogError::Damaged { .. })), "bit {bit}");
    }
}

fn ends_at(index: u64, term: u64) -> Snapshot {
    let mut snapshot = first();
    snapshot.mut_metadata().index = index;
    snapshot.mut_metadata().term = term;
    snapshot
}

fn entries(indices: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    indices.map(|index| entry(index, term, &format!("{index}@{term}"))).collect()
}

#[test]
fn what_a_newer_leader_overwrote_stays_gone_where_a_crash_stops_the_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    store.append(&entries(2..=50, 2), Some(&hard_state(2, 43))).unwrap();
    store.append(&entries(44..=45, 5), Some(&hard_state(5, 45))).unwrap();
    drop(store);
    // All that compaction has done when the power goes.
    write_snapshot(&SystemDisk, folder.path(), &ends_at(45, 5)).unwrap();
    let store = open(folder.path()).unwrap();
    assert_eq!(datas(&store), [""; 0]);
    assert_eq!(store.view().last_index().unwrap(), 45);
}

#[test]
fn what_contradicts_an_installed_snapshot_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    store.append(&entries(2..=50, 2), Some(&hard_state(2, 20))).unwrap();
    let old = segment(folder.path());
    let old_bytes = std::fs::read(&old).unwrap();
    drop(store);
    // A crash between the snapshot's file and the new segment.
    write_snapshot(&SystemDisk, folder.path(), &ends_at(45, 5)).unwrap();
    assert_eq!(datas(&open(folder.path()).unwrap()), [""; 0]);

    let mut store = open(folder.path()).unwrap();
    store.install(ends_at(45, 5)).unwrap();
    drop(store);
    assert!(!old.exists());
    // A crash that brings back the name of the old segment: its removal was not synced.
    std::fs::write(&old, &old_bytes).unwrap();
    let mut store = open(folder.path()).unwrap();
    assert_eq!(datas(&store), [""; 0]);
    store.append(&entries(46..=47, 5), None).unwrap();
    drop(store);
    assert_eq!(datas(&open(folder.path()).unwrap()), ["46@5", "47@5"]);
}

#[test]
fn a_log_without_its_segments_is_not_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    store.append(&entries(2..=3, 1), Some(&hard_state(1, 3))).unwrap();
    store.compact(ends_at(3, 1), 0).unwrap();
    drop(store);
    std::fs::remove_file(segment(folder.path())).unwrap();
    assert!(matches!(open(folder.path()), Err(LogError::Missing(_))), "the snapshot knows nothing of votes");
}

#[test]
fn a_snapshot_is_for_a_member_on_its_way_out_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut leaving = first();
    leaving.mut_metadata().mut_conf_state().voters_outgoing = vec![1, 2];
    Store::create(&disk(), folder.path(), Some(leaving)).unwrap();
    let store = open(folder.path()).unwrap();
    assert!(store.view().snapshot(1, 2).is_ok(), "the others need its vote to leave without it");
    assert!(!store.snapshot_wanted());
}

/// A disk with room for so many more bytes of new segments.
struct Small {
    room: AtomicI64,
}

impl Disk for Small {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_dir_all(path)
    }
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        if create
            && !path.exists()
            && path.extension().is_some_and(|e| e == "wal")
            && self.room.fetch_sub(8 << 20, Ordering::Relaxed) < 8 << 20
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        SystemDisk.open(path, create)
    }
    fn open_secret(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        SystemDisk.open_secret(path)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        SystemDisk.read(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<std::path::PathBuf>> {
        SystemDisk.list(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        SystemDisk.sync_dir(path)
    }
    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }
    fn stamp(&self, path: &Path) -> io::Result<weir_host::disk::Stamp> {
        SystemDisk.stamp(path)
    }
}

#[test]
fn a_full_disk_is_known_before_an_entry_is_lost_and_ends_when_space_returns() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let disk = Arc::new(Small { room: AtomicI64::new(0) });
    let mut store = Store::open(Arc::clone(&disk) as Arc<dyn Disk>, folder.path()).unwrap();
    let big = "x".repeat(1 << 20);
    let mut index = 2;
    while store.has_room() {
        store.append(&[entry(index, 1, &big)], None).unwrap();
        index += 1;
        assert!(index < 20, "the segment never fills");
    }
    assert!(!store.has_room());
    store.append(&[entry(index, 1, &big)], None).expect("there is headroom for what was under way");
    disk.room.store(64 << 20, Ordering::Relaxed);
    assert!(store.has_room());
    store.append(&[entry(index + 1, 1, "small")], None).unwrap();
    drop(store);
    let store = open(folder.path()).unwrap();
    assert_eq!(store.view().last_index().unwrap(), index + 1);
}

#[test]
fn a_log_that_is_gone_is_not_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let gone = Store::open(disk(), &folder.path().join("log")).map(drop).unwrap_err();
    assert!(matches!(gone, LogError::Missing(_)));
    std::fs::create_dir(folder.path().join("log")).unwrap();
    assert!(matches!(Store::open(disk(), &folder.path().join("log")), Err(LogError::Missing(_))));
}

#[test]
fn a_log_is_begun_again_only_where_nothing_was_written_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = first();
    other.set_data(b"other".to_vec().into());
    drop(open(folder.path()).unwrap());
    Store::create(&disk(), folder.path(), Some(other)).unwrap();
    let mut store = open(folder.path()).unwrap();
    assert_eq!(store.snapshot().data.to_vec(), b"other");
    store.append(&[entry(2, 1, "a")], None).unwrap();
    drop(store);
    assert!(matches!(Store::create(&disk(), folder.path(), Some(first())), Err(LogError::Stray(_))));
    assert_eq!(datas(&open(folder.path()).unwrap()), ["a"]);
}

#[test]
fn a_member_gets_no_snapshot_that_it_is_no_part_of() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    assert!(store.view().snapshot(1, 1).is_ok());
    assert!(!store.snapshot_wanted());
    assert!(store.view().snapshot(1, 2).is_err());
    assert!(store.snapshot_wanted(), "a newer one is made for it");
}
