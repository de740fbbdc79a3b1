//! A disk that forgets in a crash what was not synced, as real ones may.
//!
//! What a crash leaves: of each file its content at the last sync, and of the writes since then some, in order, the last
//! of them perhaps torn at a block; of each folder its names at the last sync, and of the changes since then a beginning,
//! as a journal keeps them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use weir_core::prng::Prng;
use weir_host::disk::{Disk, DiskFile, Stamp};

/// Writes are torn at multiples of this.
const BLOCK: usize = 512;

/// How a disk lies, for tests of the tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lies {
    /// A file's sync does nothing.
    pub about_files: bool,
    /// A folder's sync does nothing.
    pub about_folders: bool,
}

/// The disk of one machine. Survives its crashes.
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<Inner>>);

struct Inner {
    prng: Prng,
    lies: Lies,
    files: BTreeMap<u64, Content>,
    next_file: u64,
    names: BTreeMap<PathBuf, Named>,
    /// As they are after a crash that loses all that was not synced.
    kept_names: BTreeMap<PathBuf, Named>,
    renamings: Vec<Renaming>,
    /// Bytes that fit.
    capacity: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Folder,
    File(u64),
}

/// A change of names that may be lost.
struct Renaming {
    folder: PathBuf,
    gone: Option<PathBuf>,
    new: Option<(PathBuf, Named)>,
}

#[derive(Default)]
struct Content {
    now: Vec<u8>,
    kept: Vec<u8>,
    writes: Vec<Write>,
    /// Times that it was another than before.
    changes: i64,
}

enum Write {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

impl Write {
    fn to(&self, bytes: &mut Vec<u8>) {
        match self {
            Write::Bytes(at, new) => {
                bytes.resize(bytes.len().max(at + new.len()), 0);
                bytes[*at..at + new.len()].copy_from_slice(new);
            }
            Write::Length(length) => bytes.resize(*length, 0),
        }
    }
}

fn no_such_file(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))
}

impl SimulatedDisk {
    /// An empty disk; `seed` decides what crashes leave.
    pub fn new(seed: u64) -> SimulatedDisk {
        SimulatedDisk(Arc::new(Mutex::new(Inner {
            prng: Prng::new(seed),
            lies: Lies::default(),
            files: BTreeMap::new(),
            next_file: 0,
            names: BTreeMap::from([(PathBuf::from("/"), Named::Folder)]),
            kept_names: BTreeMap::from([(PathBuf::from("/"), Named::Folder)]),
            renamings: Vec::new(),
            capacity: usize::MAX,
        })))
    }

    /// Lies from now on.
    pub fn lie(&self, lies: Lies) {
        self.lock().lies = lies;
    }

    /// Leaves room for so many bytes beyond what is there; `None` for as many as anybody wants.
    pub fn leave_room(&self, bytes: Option<usize>) {
        let mut inner = self.lock();
        inner.capacity = bytes.map_or(usize::MAX, |bytes| inner.used() + bytes);
    }

    /// Loses what a crash loses.
    pub fn crash(&self) {
        self.lock().crash();
    }

    /// Another one takes its place, empty.
    pub fn wipe(&self) {
        let mut inner = self.lock();
        inner.capacity = usize::MAX;
        inner.files.clear();
        inner.renamings.clear();
        inner.names = BTreeMap::from([(PathBuf::from("/"), Named::Folder)]);
        inner.kept_names = inner.names.clone();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panics while the disk is locked")
    }
}

impl Inner {
    fn used(&self) -> usize {
        self.files.values().map(|content| content.now.len()).sum()
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Named::File(id)) => Ok(*id),
            Some(Named::Folder) => Err(io::Error::other(format!("{} is a folder", path.display()))),
            None => Err(no_such_file(path)),
        }
    }

    fn rename(&mut self, gone: Option<&Path>, new: Option<(&Path, Named)>) {
        let folder = gone.or(new.map(|(path, _)| path)).and_then(Path::parent).unwrap_or(Path::new("/")).to_owned();
        let renaming =
            Renaming { folder, gone: gone.map(Path::to_owned), new: new.map(|(path, named)| (path.to_owned(), named)) };
        renaming.to(&mut self.names);
        self.renamings.push(renaming);
    }

    fn crash(&mut self) {
        for content in self.files.values_mut() {
            let writes = std::mem::take(&mut content.writes);
            let kept = self.prng.below(writes.len() as u64 + 1) as usize;
            for write in &writes[..kept] {
                write.to(&mut content.kept);
            }
            if let Some(Write::Bytes(at, bytes)) = writes.get(kept) {
                let torn = (self.prng.below(bytes.len() as u64 + 1) as usize / BLOCK * BLOCK).min(bytes.len());
                Write::Bytes(*at, bytes[..torn].to_vec()).to(&mut content.kept);
            }
            content.now = content.kept.clone();
            content.changes += 1;
        }
        let renamings = std::mem::take(&mut self.renamings);
        let kept = self.prng.below(renamings.len() as u64 + 1) as usize;
        for renaming in &renamings[..kept] {
            renaming.to(&mut self.kept_names);
        }
        self.names = self.kept_names.clone();
        let named: Vec<u64> =
            self.names.values().filter_map(|n| if let Named::File(id) = n { Some(*id) } else { None }).collect();
        self.files.retain(|id, _| named.contains(id));
    }
}

impl Renaming {
    fn to(&self, names: &mut BTreeMap<PathBuf, Named>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((path, named)) = &self.new {
            names.insert(path.clone(), *named);
        }
    }
}

impl Disk for SimulatedDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        let mut folders: Vec<&Path> = path.ancestors().collect();
        folders.reverse();
        for folder in folders {
            if !inner.names.contains_key(folder) {
                inner.names.insert(folder.to_owned(), Named::Folder);
                inner.kept_names.insert(folder.to_owned(), Named::Folder);
            }
        }
        Ok(())
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.lock();
        let id = match inner.file(path) {
            Ok(id) => id,
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                if !path.parent().is_some_and(|folder| inner.names.contains_key(folder)) {
                    return Err(error);
                }
                let id = inner.next_file;
                inner.next_file += 1;
                inner.files.insert(id, Content::default());
                inner.rename(None, Some((path, Named::File(id))));
                id
            }
            Err(error) => return Err(error),
        };
        Ok(Box::new(OpenFile { disk: self.clone(), id }))
    }

    fn open_secret(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path, true)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let inner = self.lock();
        let id = inner.file(path)?;
        Ok(inner.files[&id].now.clone())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        let id = inner.file(from)?;
        inner.rename(Some(from), Some((to, Named::File(id))));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.file(path)?;
        inner.rename(Some(path), None);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let inner = self.lock();
        if inner.names.get(path) != Some(&Named::Folder) {
            return Err(no_such_file(path));
        }
        Ok(inner.names.keys().filter(|name| name.parent() == Some(path)).cloned().collect())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.lies.about_folders {
            return Ok(());
        }
        let (synced, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut inner.renamings).into_iter().partition(|renaming| renaming.folder == path);
        for renaming in synced {
            renaming.to(&mut inner.kept_names);
        }
        inner.renamings = rest;
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.lock().names.contains_key(path)
    }

    fn stamp(&self, path: &Path) -> io::Result<Stamp> {
        let inner = self.lock();
        let file = inner.file(path)?;
        let content = &inner.files[&file];
        Ok(Stamp { file, length: content.now.len() as u64, changed: (content.changes, 0) })
    }
}

struct OpenFile {
    disk: SimulatedDisk,
    id: u64,
}

impl OpenFile {
    fn write(&self, write: Write) -> io::Result<()> {
        let mut inner = self.disk.lock();
        let (used, capacity) = (inner.used(), inner.capacity);
        let Some(content) = inner.files.get_mut(&self.id) else {
            return Err(io::Error::other("a crash took this file"));
        };
        let before = content.now.len();
        let after = match &write {
            Write::Bytes(at, bytes) => before.max(at + bytes.len()),
            Write::Length(length) => *length,
        };
        if after > before && used + (after - before) > capacity {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on the device"));
        }
        write.to(&mut content.now);
        content.changes += 1;
        content.writes.push(write);
        Ok(())
    }
}

impl DiskFile for OpenFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(Write::Bytes(offset as usize, bytes.to_vec()))
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let inner = self.disk.lock();
        let content = inner.files.get(&self.id).ok_or_else(|| io::Error::other("a crash took this file"))?;
        let range = offset as usize..offset as usize + bytes.len();
        bytes.copy_from_slice(content.now.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write(Write::Length(len as usize))
    }

    fn len(&self) -> io::Result<u64> {
        let inner = self.disk.lock();
        inner.files.get(&self.id).map(|content| content.now.len() as u64).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.lock();
        if inner.lies.about_files {
            return Ok(());
        }
        if let Some(content) = inner.files.get_mut(&self.id) {
            for write in std::mem::take(&mut content.writes) {
                write.to(&mut content.kept);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &SimulatedDisk, path: &str, bytes: &[u8]) -> Box<dyn DiskFile> {
        let file = disk.open(Path::new(path), true).unwrap();
        file.write_at(0, bytes).unwrap();
        file
    }

    /// What was read of a file after a crash, over many seeds.
    fn after_crashes(prepare: impl Fn(&SimulatedDisk)) -> std::collections::BTreeSet<Option<Vec<u8>>> {
        (0..64)
            .map(|seed| {
                let disk = SimulatedDisk::new(seed);
                prepare(&disk);
                disk.crash();
                disk.read(Path::new("/file")).ok()
            })
            .collect()
    }

    #[test]
    fn what_was_synced_stays_and_what_was_not_may_go() {
        let synced = after_crashes(|disk| {
            put(disk, "/file", b"old").sync().unwrap();
            disk.sync_dir(Path::new("/")).unwrap();
            put(disk, "/file", b"new");
        });
        assert_eq!(synced, [Some(b"new".to_vec()), Some(b"old".to_vec())].into());
        let without_name = after_crashes(|disk| put(disk, "/file", b"new").sync().unwrap());
        assert_eq!(without_name, [None, Some(b"new".to_vec())].into());
        let whole = after_crashes(|disk| disk.write_atomically(Path::new("/file"), b"whole").unwrap());
        assert_eq!(whole, [Some(b"whole".to_vec())].into());
    }

    #[test]
    fn a_long_write_may_be_torn_between_blocks_only() {
        let torn = after_crashes(|disk| {
            put(disk, "/file", b"").sync().unwrap();
            disk.sync_dir(Path::new("/")).unwrap();
            put(disk, "/file", &[7; 4 * BLOCK]);
        });
        let lengths: Vec<usize> = torn.iter().map(|bytes| bytes.as_ref().unwrap().len()).collect();
        assert!(lengths.len() > 3 && lengths.iter().all(|length| length % BLOCK == 0), "{lengths:?}");
    }

    #[test]
    fn a_disk_that_lies_loses_what_it_said_to_have() {
        let lies = Lies { about_files: true, about_folders: true };
        let lost = after_crashes(|disk| {
            disk.lie(lies);
            disk.write_atomically(Path::new("/file"), b"whole").unwrap();
        });
        assert!(lost.contains(&None) && lost.len() > 1, "{lost:?}");
    }

    #[test]
    fn a_full_disk_takes_nothing_more_until_there_is_room() {
        let disk = SimulatedDisk::new(1);
        let file = put(&disk, "/file", b"1234");
        disk.leave_room(Some(2));
        assert_eq!(file.write_at(4, b"567").unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_at(0, b"abcdef").unwrap();
        disk.leave_room(None);
        file.write_at(6, b"gh").unwrap();
        assert_eq!(disk.read(Path::new("/file")).unwrap(), b"abcdefgh");
    }
}
