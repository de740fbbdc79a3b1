//! Artifacts by SHA-256 in a folder of their own. A file has its final name only once it is whole, checked and synced.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use weir_core::ids::Digest;
use weir_core::replicated::Unreferenced;
use weir_host::clock::Clock;
use weir_host::disk::{Disk, DiskFile};

use crate::actors::raft::Published;

/// Most bytes in one call.
pub const CHUNK_MAX: usize = 1 << 20;
/// Bytes after which what has arrived is synced: a disk of 100 MB/s then stands still for some 80 ms at a time, and no
/// heartbeat is late.
const SYNC_EVERY: u64 = 8 << 20;
/// Largest artifact.
pub const ARTIFACT_MAX: u64 = 4 << 30;

/// How often it is looked which artifacts may go: often beside the day that they are kept for.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Why an artifact is not stored or read. The text is for the caller: it names no path.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ArtifactError {
    #[error("artifact {0} is not here")]
    Missing(Digest),
    #[error("an artifact has from 1 byte to {ARTIFACT_MAX}; this one has {0}")]
    Size(u64),
    #[error("the chunk is not the next one, or goes beyond the artifact; upload it anew")]
    OutOfPlace,
    #[error("the bytes that arrived are not those of the digest; upload it anew")]
    Differs,
    #[error("the coordinator's disk is full; free space there and apply again")]
    Full,
    #[error("the coordinator's disk does not take the artifact: {0}")]
    Disk(#[source] io::Error),
}

impl From<io::Error> for ArtifactError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ArtifactError::Full,
            _ => ArtifactError::Disk(error),
        }
    }
}

/// The artifacts of one member.
#[derive(Clone)]
pub struct Artifacts {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
}

impl Artifacts {
    /// Opens the folder; what was not finished before is removed.
    pub fn open(disk: Arc<dyn Disk>, folder: &Path) -> io::Result<Artifacts> {
        disk.create_dir_all(folder)?;
        for file in disk.list(folder)? {
            if file.extension().is_some_and(|e| e == "part") {
                disk.remove(&file)?;
            }
        }
        Ok(Artifacts { disk, folder: folder.to_owned() })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    /// Whether the whole artifact is here.
    pub fn has(&self, digest: &Digest) -> bool {
        self.disk.exists(&self.path(digest))
    }

    /// Those that are here, whole.
    fn stored(&self) -> io::Result<BTreeSet<Digest>> {
        let name = |file: &PathBuf| Digest::parse(file.file_name()?.to_str()?);
        Ok(self.disk.list(&self.folder)?.iter().filter_map(name).collect())
    }

    /// Removes for ever those that `unreferenced` lets go.
    pub async fn collect(
        self,
        clock: Arc<dyn Clock>,
        published: watch::Receiver<Published>,
        unreferenced: Rc<RefCell<Unreferenced>>,
    ) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let state = {
                let published = published.borrow();
                // One that is cut off does not know what is named by now.
                if published.leader.is_none() {
                    continue;
                }
                Arc::clone(&published.state)
            };
            let over = |stored| unreferenced.borrow_mut().look(clock.now(), &state, &stored);
            let removed = self.stored().map(over).and_then(|gone| {
                gone.iter().try_for_each(|digest| {
                    tracing::info!(%digest, "no model has named this artifact for a day: it goes");
                    self.disk.remove(&self.path(digest))
                })
            });
            if let Err(error) = removed {
                tracing::warn!(%error, "cannot remove artifacts that nobody needs");
            }
        }
    }

    /// Part of an artifact from `offset`, at most [`CHUNK_MAX`], and its size.
    pub fn read(&self, digest: &Digest, offset: u64, length: usize) -> Result<(Vec<u8>, u64), ArtifactError> {
        if !self.has(digest) {
            return Err(ArtifactError::Missing(*digest));
        }
        let file = self.disk.open(&self.path(digest), false)?;
        let size = file.len()?;
        let length = length.min(CHUNK_MAX).min(size.saturating_sub(offset) as usize);
        let mut chunk = vec![0; length];
        file.read_at(offset, &mut chunk)?;
        Ok((chunk, size))
    }

    /// Begins to receive an artifact; `name` keeps several that arrive at once apart.
    pub fn receive(&self, digest: Digest, size: u64, name: u64) -> Result<Receiving, ArtifactError> {
        if size == 0 || size > ARTIFACT_MAX {
            return Err(ArtifactError::Size(size));
        }
        let part = self.folder.join(format!("{digest}.{name:016x}.part"));
        let file = self.disk.open(&part, true)?;
        Ok(Receiving {
            artifacts: self.clone(),
            part,
            file: Some(file),
            digest,
            size,
            received: 0,
            hash: Sha256::new(),
        })
    }
}

/// An artifact that arrives. Dropped before it is finished, it leaves nothing.
pub struct Receiving {
    artifacts: Artifacts,
    part: PathBuf,
    file: Option<Box<dyn DiskFile>>,
    digest: Digest,
    size: u64,
    received: u64,
    hash: Sha256,
}

impl Receiving {
    /// Bytes received.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Takes the next chunk.
    pub fn write(&mut self, offset: u64, chunk: &[u8]) -> Result<(), ArtifactError> {
        let fits =
            offset == self.received && chunk.len() <= CHUNK_MAX && chunk.len() as u64 <= self.size - self.received;
        let Some(file) = self.file.as_ref().filter(|_| fits) else { return Err(ArtifactError::OutOfPlace) };
        file.write_at(offset, chunk)?;
        self.hash.update(chunk);
        let synced = self.received / SYNC_EVERY;
        self.received += chunk.len() as u64;
        if self.received / SYNC_EVERY > synced {
            file.sync()?;
        }
        Ok(())
    }

    /// Checks it and gives it its name.
    pub fn finish(mut self) -> Result<(), ArtifactError> {
        let hash: [u8; 32] = std::mem::take(&mut self.hash).finalize().into();
        if self.received != self.size || hash != self.digest.0 {
            return Err(ArtifactError::Differs);
        }
        let file = self.file.take().expect("it is finished once");
        file.sync()?;
        self.artifacts.disk.rename(&self.part, &self.artifacts.path(&self.digest))?;
        self.artifacts.disk.sync_dir(&self.artifacts.folder)?;
        Ok(())
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // Gone already where it was finished.
        let _ = self.artifacts.disk.remove(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use weir_core::ids::{MemberId, ModelRef};
    use weir_core::replicated::{Change, EngineKind, Model, ReplicaRange, State};
    use weir_core::tensor::Signature;
    use weir_core::units::Bytes;
    use weir_host::disk::SystemDisk;

    use super::*;

    fn digest(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    fn open(folder: &Path) -> Artifacts {
        Artifacts::open(Arc::new(SystemDisk), folder).unwrap()
    }

    #[test]
    fn an_artifact_is_there_once_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = open(folder.path());
        let digest = digest(b"abcdef");
        let mut receiving = artifacts.receive(digest, 6, 1).unwrap();
        receiving.write(0, b"abc").unwrap();
        assert!(!artifacts.has(&digest));
        receiving.write(3, b"def").unwrap();
        receiving.finish().unwrap();
        assert_eq!(artifacts.read(&digest, 2, 100).unwrap(), (b"cdef".to_vec(), 6));
    }

    /// The time of the test's runtime.
    struct Virtual(tokio::time::Instant);

    impl Clock for Virtual {
        fn now(&self) -> weir_core::units::Instant {
            weir_core::units::Instant::from_nanos(self.0.elapsed().as_nanos() as u64)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nothing_names_goes_after_a_day() {
        const HOUR: Duration = Duration::from_secs(3600);
        let folder = tempfile::tempdir().unwrap();
        let artifacts = open(folder.path());
        let digests = [b"a", b"b", b"c"].map(|bytes| {
            let digest = digest(bytes);
            let mut receiving = artifacts.receive(digest, 1, 1).unwrap();
            receiving.write(0, bytes).unwrap();
            receiving.finish().unwrap();
            digest
        });
        let arriving = artifacts.receive(digest(b"d"), 1, 2).unwrap();
        let here = |digests: &[Digest]| digests.iter().map(|digest| artifacts.has(digest)).collect::<Vec<_>>();
        let mut state = State::default();
        state.absorb(&Change::Model(named(digests[0])));
        let cut_off = Published::of(MemberId(1), Arc::new(state.clone()));
        let led = Published { leader: Some(MemberId(1)), ..cut_off.clone() };
        let (publish, published) = watch::channel(led.clone());
        let unreferenced = Rc::new(RefCell::new(Unreferenced::default()));
        let clock = Arc::new(Virtual(tokio::time::Instant::now()));
        let collecting = artifacts.clone().collect(clock.clone(), published, Rc::clone(&unreferenced));
        let looking = async {
            tokio::time::sleep(12 * HOUR).await;
            unreferenced.borrow_mut().touch(clock.now(), digests[2]);
            tokio::time::sleep(11 * HOUR).await;
            publish.send_replace(cut_off);
            tokio::time::sleep(3 * HOUR).await;
            assert_eq!(here(&digests), [true, true, true], "it may have been named by others meanwhile");
            publish.send_replace(led);
            tokio::time::sleep(HOUR).await;
            assert_eq!(here(&digests), [true, false, true]);
            tokio::time::sleep(12 * HOUR).await;
            assert_eq!(here(&digests), [true, false, false]);
            assert_eq!(arriving.received(), 0);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "what is named, and what arrives");
        };
        tokio::select! {
            biased;
            () = collecting => {}
            () = looking => {}
        }
    }

    fn named(digest: Digest) -> Model {
        Model {
            reference: ModelRef::parse("a@1").unwrap(),
            digest,
            size: Bytes(1),
            engine: EngineKind::Synthetic,
            signature: Signature { inputs: vec![], outputs: vec![] },
            max_batch: None,
            shapes: Default::default(),
            replicas: ReplicaRange { min: 1, max: 1 },
            quarantined: None,
        }
    }

    #[test]
    fn what_is_wrong_or_unfinished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = open(folder.path());
        let mut receiving = artifacts.receive(digest(b"abc"), 3, 1).unwrap();
        assert!(matches!(receiving.write(1, b"bc"), Err(ArtifactError::OutOfPlace)));
        assert!(matches!(receiving.write(0, b"abcd"), Err(ArtifactError::OutOfPlace)));
        receiving.write(0, b"xyz").unwrap();
        assert!(matches!(receiving.finish(), Err(ArtifactError::Differs)));
        let mut half = artifacts.receive(digest(b"abc"), 3, 2).unwrap();
        half.write(0, b"a").unwrap();
        drop(half);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(matches!(artifacts.receive(digest(b""), 0, 3), Err(ArtifactError::Size(0))));
    }
}
