//! The write-ahead log: segments of frames.
//!
//! One append is one frame and one sync: a header (mark, length, checksum) and the records. So a crash can only tear the
//! last frame, which nobody was told of, and that is cut off. Damage before a whole frame is in what was acknowledged:
//! then opening is refused. (Damage to the very last frame looks like a torn one. Other members have its entries.)
//! Segments are filled with zeros when they are made, so that an append changes no metadata and a full disk shows where
//! it can still be refused: one segment is always ready ahead.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_host::disk::{Disk, DiskFile};

use super::files::{LogError, Record, record_from_bytes, record_to_bytes};

const SEGMENT: u64 = 8 << 20;
/// Room below which the next segment is made: more than an entry may take.
const HEADROOM: u64 = 3 << 20;
const MARK: u32 = u32::from_le_bytes(*b"weir");
const HEADER: usize = 12;

pub struct Wal {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    number: u64,
    file: Box<dyn DiskFile>,
    /// Where the next frame goes.
    pub(super) end: u64,
    size: u64,
    /// The next segment, made ahead.
    spare: Option<Box<dyn DiskFile>>,
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016}.wal"))
}

impl Wal {
    /// Opens the log in `folder`, which [`Wal::begin`] began; returns its records in order.
    pub fn open(disk: Arc<dyn Disk>, folder: &Path) -> Result<(Wal, Vec<Record>), LogError> {
        let mut segments = segments(&*disk, folder)?;
        // A segment that was made ahead has nothing but zeros.
        while segments.len() > 1 && segments.last().is_some_and(|(_, _, bytes)| bytes.iter().all(|b| *b == 0)) {
            let (_, path, _) = segments.pop().expect("there are two");
            disk.remove(&path).map_err(|cause| LogError::io("remove", &path, cause))?;
        }
        let mut records = Vec::new();
        let mut end = 0;
        let last = segments.len().saturating_sub(1);
        for (i, (_, path, bytes)) in segments.iter().enumerate() {
            end = read_frames(bytes, &mut records);
            let clean = bytes[end as usize..].iter().all(|b| *b == 0);
            let torn = !clean && i == last && !whole_frame_after(&bytes[end as usize..]);
            // A segment whose successor exists was left in good order.
            if !clean && !torn {
                return Err(LogError::damaged(path, end));
            }
        }
        let Some((number, path, bytes)) = segments.last() else {
            return Err(LogError::Missing(folder.join("*.wal")));
        };
        let file = disk.open(path, false).map_err(|cause| LogError::io("open", path, cause))?;
        let size = bytes.len() as u64;
        // What is torn must not be taken for the end of a later, shorter frame.
        let rest = vec![0; bytes.len() - end as usize];
        if bytes[end as usize..] != rest[..] {
            file.write_at(end, &rest)
                .and_then(|()| file.sync())
                .map_err(|cause| LogError::io("repair", path, cause))?;
        }
        let wal = Wal { disk, folder: folder.to_owned(), number: *number, file, end, size, spare: None };
        Ok((wal, records))
    }

    /// Whether `folder` holds a log that something was written to.
    pub fn is_written(disk: &dyn Disk, folder: &Path) -> Result<bool, LogError> {
        Ok(segments(disk, folder)?.iter().any(|(.., bytes)| bytes.iter().any(|b| *b != 0)))
    }

    /// Begins a log in `folder`.
    pub fn begin(disk: Arc<dyn Disk>, folder: &Path, number: u64) -> Result<Wal, LogError> {
        let path = path(folder, number);
        let file = make_segment(&*disk, &path, SEGMENT).map_err(|cause| LogError::io("create", &path, cause))?;
        Ok(Wal { disk, folder: folder.to_owned(), number, file, end: 0, size: SEGMENT, spare: None })
    }

    /// Appends records as one frame and makes it last.
    pub fn append(&mut self, records: &[Record]) -> Result<(), LogError> {
        let frame = frame(records);
        if self.end + frame.len() as u64 > self.size {
            self.advance(frame.len() as u64)?;
        }
        let path = path(&self.folder, self.number);
        self.file.write_at(self.end, &frame).map_err(|cause| LogError::io("append to", &path, cause))?;
        self.file.sync().map_err(|cause| LogError::sync(&path, cause))?;
        self.end += frame.len() as u64;
        Ok(())
    }

    /// Goes on in the next segment.
    fn advance(&mut self, needed: u64) -> Result<(), LogError> {
        let next = path(&self.folder, self.number + 1);
        let size = needed.max(SEGMENT);
        self.file = match self.spare.take() {
            Some(spare) if size == SEGMENT => spare,
            _ => make_segment(&*self.disk, &next, size).map_err(|cause| LogError::io("create", &next, cause))?,
        };
        self.number += 1;
        self.end = 0;
        self.size = size;
        Ok(())
    }

    /// Whether an entry has room, now or in a segment that could be made ahead.
    pub fn has_room(&mut self) -> bool {
        if self.size - self.end >= HEADROOM || self.spare.is_some() {
            return true;
        }
        let next = path(&self.folder, self.number + 1);
        match make_segment(&*self.disk, &next, SEGMENT) {
            Ok(file) => {
                self.spare = Some(file);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "no room for the log");
                false
            }
        }
    }

    /// Begins a new segment with `records` and drops those before it.
    pub fn restart(&mut self, records: &[Record]) -> Result<(), LogError> {
        let before = self.number;
        let frame = frame(records);
        self.advance(frame.len() as u64)?;
        self.append(records)?;
        for file in self.disk.list(&self.folder).map_err(|cause| LogError::io("list", &self.folder, cause))? {
            let number = file.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
            let old = file.extension().is_some_and(|e| e == "wal") && number.is_some_and(|number| number <= before);
            if old {
                self.disk.remove(&file).map_err(|cause| LogError::io("remove", &file, cause))?;
            }
        }
        Ok(())
    }
}

/// The segments in `folder`, in order: number, path and bytes.
fn segments(disk: &dyn Disk, folder: &Path) -> Result<Vec<(u64, PathBuf, Vec<u8>)>, LogError> {
    let files = match disk.list(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LogError::Missing(folder.to_owned())),
        files => files.map_err(|cause| LogError::io("list", folder, cause))?,
    };
    let mut numbers = Vec::new();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".wal"));
        numbers.extend(name.and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    let read = |number: u64| {
        let path = path(folder, number);
        let bytes = disk.read(&path).map_err(|cause| LogError::io("read", &path, cause))?;
        Ok((number, path, bytes))
    };
    numbers.into_iter().map(read).collect()
}

fn make_segment(disk: &dyn Disk, path: &Path, size: u64) -> io::Result<Box<dyn DiskFile>> {
    let file = disk.open(path, true)?;
    let made = file.write_at(0, &vec![0; size as usize]).and_then(|()| file.set_len(size)).and_then(|()| file.sync());
    if let Err(error) = made {
        // What could be made of it would fill the disk for nothing; the first error is the one to tell.
        let _ = disk.remove(path);
        return Err(error);
    }
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    Ok(file)
}

fn frame(records: &[Record]) -> Vec<u8> {
    let mut body = Vec::new();
    for record in records {
        let bytes = record_to_bytes(record);
        body.extend((bytes.len() as u32).to_le_bytes());
        body.extend(bytes);
    }
    let mut frame = Vec::with_capacity(body.len() + HEADER);
    frame.extend(MARK.to_le_bytes());
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(crc32fast::hash(&body).to_le_bytes());
    frame.extend(body);
    frame
}

/// The body of the frame that `bytes` begin with.
fn frame_at(bytes: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if word(0)? != MARK {
        return None;
    }
    let body = bytes.get(HEADER..)?.get(..word(4)? as usize)?;
    (crc32fast::hash(body) == word(8)?).then_some(body)
}

/// Reads whole frames from the start; returns where they end.
fn read_frames(bytes: &[u8], records: &mut Vec<Record>) -> u64 {
    let mut at = 0;
    while let Some(body) = frame_at(&bytes[at..]) {
        let mut rest = body;
        let mut read = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let record =
                after.get(..u32::from_le_bytes(*length) as usize).and_then(|bytes| record_from_bytes(bytes).ok());
            let Some(record) = record else { return at as u64 };
            rest = &after[u32::from_le_bytes(*length) as usize..];
            read.push(record);
        }
        records.append(&mut read);
        at += HEADER + body.len();
    }
    at as u64
}

/// Whether a whole frame begins anywhere after the first byte.
fn whole_frame_after(bytes: &[u8]) -> bool {
    let mark = MARK.to_le_bytes();
    (1..bytes.len().saturating_sub(HEADER)).any(|at| bytes[at..].starts_with(&mark) && frame_at(&bytes[at..]).is_some())
}
