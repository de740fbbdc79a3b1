//! Files, as far as weir writes them: synchronous, with every sync said aloud.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file system.
pub trait Disk: Send + Sync {
    /// Makes a folder and those above it, names and all.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Opens a file for reading and writing; makes it where `create` says so.
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>>;
    /// All of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Renames over what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The paths in a folder, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Makes names in a folder last.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Whether something is there.
    fn exists(&self, path: &Path) -> bool;
    /// Which file is there and when it was changed last.
    fn stamp(&self, path: &Path) -> io::Result<Stamp>;

    /// Makes a file that only its owner may read, or opens the one that is there.
    fn open_secret(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Puts a whole file in place so that after a crash either the old or the new one is there.
    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("new");
        let file = self.open(&temporary, true)?;
        self.put(path, &temporary, file, bytes)
    }

    /// Likewise, a file that only its owner may read.
    fn write_secret(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("new");
        // One that others may read must not be taken for ours.
        if self.exists(&temporary) {
            self.remove(&temporary)?;
        }
        let file = self.open_secret(&temporary)?;
        self.put(path, &temporary, file, bytes)
    }

    /// The end of a write: fills `file`, which lies at `temporary`, and renames it.
    #[doc(hidden)]
    fn put(&self, path: &Path, temporary: &Path, file: Box<dyn DiskFile>, bytes: &[u8]) -> io::Result<()> {
        let written = file.set_len(0).and_then(|()| file.write_at(0, bytes)).and_then(|()| file.sync());
        drop(file);
        if let Err(error) = written {
            // What is half there must not fill the disk; the write's own error is the one to tell.
            let _ = self.remove(temporary);
            return Err(error);
        }
        self.rename(temporary, path)?;
        self.sync_dir(parent(path))
    }
}

/// Two of one path differ where it was written, cut or replaced in between; of what a disk forgets or turns over by itself they tell nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the file in its file system.
    pub file: u64,
    /// Bytes.
    pub length: u64,
    /// Seconds and nanoseconds, or whatever else goes up with each change. On a machine's disk it is the time at which anything of the file
    /// was changed, which nobody can set back.
    pub changed: (i64, i64),
}

/// The folder that a path is in.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An open file.
pub trait DiskFile: Send {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Fills `bytes` from `offset`.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Makes what was written last.
    fn sync(&self) -> io::Result<()>;
}

/// The machine's file system.
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
        std::fs::create_dir_all(path)?;
        missing.into_iter().try_for_each(|folder| self.sync_dir(parent(folder)))
    }
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)?;
        Ok(Box::new(file))
    }
    fn open_secret(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(Box::new(file))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
    fn stamp(&self, path: &Path) -> io::Result<Stamp> {
        let known = std::fs::metadata(path)?;
        Ok(Stamp { file: known.ino(), length: known.len(), changed: (known.ctime(), known.ctime_nsec()) })
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths =
            std::fs::read_dir(path)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }
}

impl DiskFile for File {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, bytes, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
