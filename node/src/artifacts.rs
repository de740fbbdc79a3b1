//! Artifacts on this node, by digest: fetched from a coordinator, checked before use and again when read from disk.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use weir_core::ids::Digest;
use weir_host::Host;
use weir_schema::control_capnp::node_home;

/// Bytes asked for in one call.
const CHUNK: u32 = 1 << 20;

/// The folder of artifacts.
#[derive(Clone)]
pub struct Artifacts {
    host: Host,
    folder: PathBuf,
}

impl Artifacts {
    /// Opens the folder.
    pub fn open(host: Host, folder: PathBuf) -> std::io::Result<Artifacts> {
        host.disk.create_dir_all(&folder)?;
        Ok(Artifacts { host, folder })
    }

    /// The bytes of an artifact: from the folder, or else through `coordinator`. The text of an error is for the operator.
    pub async fn get(&self, digest: Digest, coordinator: Option<Rc<node_home::Client>>) -> Result<Vec<u8>, String> {
        let path = self.folder.join(digest.to_string());
        let (disk, from) = (Arc::clone(&self.host.disk), path.clone());
        let read = move || {
            let bytes = if disk.exists(&from) { disk.read(&from).ok() } else { None };
            bytes.filter(|bytes| matches(bytes, &digest))
        };
        if let Some(bytes) = self.host.spawn.blocking(read).await {
            return Ok(bytes);
        }
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
        let disk = Arc::clone(&self.host.disk);
        let keep = move || {
            if !matches(&bytes, &digest) {
                return Err("its artifact arrived with other bytes than its digest says".into());
            }
            // Without the copy on disk it is fetched again after a restart: worth a warning, not a failure.
            if let Err(error) = disk.write_atomically(&path, &bytes) {
                tracing::warn!(%error, "cannot keep an artifact on disk");
            }
            Ok(bytes)
        };
        self.host.spawn.blocking(keep).await
    }
}

fn matches(bytes: &[u8], digest: &Digest) -> bool {
    <[u8; 32]>::from(Sha256::digest(bytes)) == digest.0
}
