//! Finding the ONNX Runtime library. It is not linked: `scripts/setup` puts it where this looks.

use std::path::{Path, PathBuf};

use crate::engine::LoadError;

/// The version that `scripts/setup` installs and that tests run against.
pub const VERSION: &str = "1.32.0";

/// File names of the library on the systems that weir runs on.
fn file_names() -> [String; 2] {
    [format!("libonnxruntime.so.{VERSION}"), format!("libonnxruntime.{VERSION}.dylib")]
}

/// Folders that are searched, in order: beside the binary and above it (a clone's `lib` seen from its target folder), the
/// user's cache, and the clone that this was built from.
fn folders() -> Vec<PathBuf> {
    let folder = format!("onnxruntime-{VERSION}");
    let mut folders = Vec::new();
    if let Ok(binary) = std::env::current_exe() {
        folders.extend(binary.ancestors().skip(1).take(5).map(|above| above.join("lib").join(&folder)));
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or(home);
    folders.extend(cache.map(|cache| cache.join("weir").join(&folder)));
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("lib").join(&folder));
    folders
}

/// The library: `ORT_DYLIB_PATH` where it is set, else the first that is found.
pub fn locate() -> Result<PathBuf, LoadError> {
    if let Some(explicit) = std::env::var_os("ORT_DYLIB_PATH") {
        return Ok(PathBuf::from(explicit));
    }
    let candidates = folders().into_iter().flat_map(|folder| file_names().map(|name| folder.join(name)));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        LoadError::Runtime(format!("ONNX Runtime {VERSION} is not installed; run scripts/setup in weir's folder"))
    })
}
