//! Artifacts on this node, by digest: fetched from a coordinator, and checked before use, once as long as nobody changes them on disk.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use weir_core::ids::Digest;
use weir_host::Host;
use weir_host::disk::Stamp;
use weir_schema::control_capnp::node_home;

/// Bytes asked for in one call.
const CHUNK: u32 = 1 << 20;

/// The folder of artifacts.
pub struct Artifacts {
    host: Host,
    folder: PathBuf,
    /// Who fetches one holds it, until it is on disk: models may share it, and they would write one file.
    fetches: RefCell<BTreeMap<Digest, Arc<Mutex<()>>>>,
    checked: Arc<Checked>,
}

/// An artifact that was read.
pub struct Read {
    pub bytes: Vec<u8>,
    /// What it took to check them, where they had to be.
    pub checking: Duration,
}

/// Files that have the bytes that their digest says, as they were when that was seen.
#[derive(Default)]
struct Checked(std::sync::Mutex<BTreeMap<Digest, Stamp>>);

impl Checked {
    fn is(&self, digest: &Digest, stamp: &Stamp) -> bool {
        self.lock().get(digest) == Some(stamp)
    }

    fn keep(&self, digest: Digest, stamp: Option<Stamp>) {
        match stamp {
            Some(stamp) => drop(self.lock().insert(digest, stamp)),
            None => drop(self.lock().remove(&digest)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Stamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Artifacts {
    /// Opens the folder.
    pub fn open(host: Host, folder: PathBuf) -> std::io::Result<Artifacts> {
        host.disk.create_dir_all(&folder)?;
        Ok(Artifacts { host, folder, fetches: RefCell::default(), checked: Arc::default() })
    }

    /// Whether the folder has an artifact, of which nobody knows whether it is whole.
    pub fn has(&self, digest: Digest) -> bool {
        self.host.disk.exists(&self.folder.join(digest.to_string()))
    }

    /// The bytes of an artifact, where the folder has it.
    pub async fn read(&self, digest: Digest) -> Option<Read> {
        let (disk, path) = (Arc::clone(&self.host.disk), self.folder.join(digest.to_string()));
        let (checked, clock) = (Arc::clone(&self.checked), Arc::clone(&self.host.clock));
        let read = move || {
            let before = disk.stamp(&path).ok()?;
            let bytes = disk.read(&path).ok()?;
            // What is changed while it is read has another stamp afterwards.
            if disk.stamp(&path).is_ok_and(|after| checked.is(&digest, &after)) {
                return Some(Read { bytes, checking: Duration::ZERO });
            }
            let begun = clock.now();
            let right = matches(&bytes, &digest);
            checked.keep(digest, Some(before).filter(|_| right));
            right.then(|| Read { bytes, checking: clock.now().since(begun) })
        };
        self.host.spawn.blocking(read).await
    }

    /// Sees that the folder has an artifact, through `coordinator` where it has not. Gives its bytes where the folder does not take it. The
    /// text of an error is for the operator.
    pub async fn fetch(
        &self,
        digest: Digest,
        coordinator: Option<Rc<node_home::Client>>,
    ) -> Result<Option<Vec<u8>>, String> {
        let alone = Arc::clone(self.fetches.borrow_mut().entry(digest).or_default());
        let alone = alone.lock_owned().await;
        if self.read(digest).await.is_some() {
            return Ok(None);
        }
        let path = self.folder.join(digest.to_string());
        let coordinator = coordinator.ok_or("no coordinator to fetch its artifact from; waiting for one")?;
        let mut bytes = Vec::new();
        loop {
            let mut call = coordinator.fetch_request();
            call.get().set_digest(&digest.0);
            call.get().set_offset(bytes.len() as u64);
            call.get().set_length(CHUNK);
            let answer = call
                .send()
                .promise
                .await
                .map_err(|error| format!("cannot fetch its artifact: {}", weir_host::dial::remote_text(&error)))?;
            let read = || -> Result<(Vec<u8>, u64), capnp::Error> {
                let r = answer.get()?;
                Ok((r.get_chunk()?.to_vec(), r.get_size()))
            };
            let (chunk, size) = read().map_err(|error| error.to_string())?;
            if chunk.is_empty() && (bytes.len() as u64) < size {
                return Err("the coordinator sent nothing of its artifact".into());
            }
            bytes.extend(chunk);
            if bytes.len() as u64 >= size {
                break;
            }
        }
        let (disk, checked) = (Arc::clone(&self.host.disk), Arc::clone(&self.checked));
        let keep = move || {
            // To the end of the write, whoever has gone meanwhile.
            let _alone = alone;
            if !matches(&bytes, &digest) {
                return Err("its artifact arrived with other bytes than its digest says".into());
            }
            // Without the copy on disk it is fetched again when it is loaded again: worth a warning, not a failure.
            let kept = disk.write_atomically(&path, &bytes);
            checked.keep(digest, kept.as_ref().ok().and_then(|()| disk.stamp(&path).ok()));
            Ok(kept.inspect_err(|error| tracing::warn!(%error, "cannot keep an artifact on disk")).err().map(|_| bytes))
        };
        self.host.spawn.blocking(keep).await
    }
}

fn matches(bytes: &[u8], digest: &Digest) -> bool {
    <[u8; 32]>::from(Sha256::digest(bytes)) == digest.0
}

#[cfg(test)]
mod tests;
