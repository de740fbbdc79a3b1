//! The tree is as ARCHITECTURE.md says, texts point at files that exist, and nothing names a machine.

use std::path::{Path, PathBuf};

use weir_tests::processes::root;

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        let skipped =
            ["target", "lib", ".git", "weir-data", "__pycache__", "build", "weir.egg-info"].contains(&name.as_str());
        match (entry.is_dir(), skipped) {
            (_, true) => {}
            (true, false) => files(&entry, found),
            (false, false) => found.push(entry),
        }
    }
}

fn all() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root(), &mut found);
    found
}

#[test]
fn links_in_texts_lead_somewhere() {
    for text in all().into_iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let body = std::fs::read_to_string(&text).unwrap();
        for target in body.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") || target.starts_with('#') {
                continue;
            }
            let path = text.parent().unwrap().join(target.split('#').next().unwrap());
            assert!(path.exists(), "{} points at {target}, which is not there", text.display());
        }
    }
}

#[test]
fn every_folder_stands_in_the_architecture() {
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for entry in std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let shown =
            entry.path().is_dir() && !name.starts_with('.') && !["target", "lib", "weir-data"].contains(&name.as_str());
        assert!(!shown || architecture.contains(&format!("{name}/")), "{name}/ is not in ARCHITECTURE.md");
    }
}

#[test]
fn nothing_names_a_machine_or_is_left_for_later() {
    // Put together, so that this file does not contain them.
    let words = [
        ["/wo", "rk/"].concat(),
        ["../sha", "red"].concat(),
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["to", "do!("].concat(),
        ["unimpl", "emented!("].concat(),
    ];
    for path in all() {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if path.ends_with("Cargo.lock") || path.to_string_lossy().ends_with("_capnp.rs") {
            continue;
        }
        for word in &words {
            assert!(!text.contains(word.as_str()), "{} contains {word:?}", path.display());
        }
    }
}

#[test]
fn the_clone_stays_small() {
    let bytes: u64 = all().iter().map(|path| std::fs::metadata(path).unwrap().len()).sum();
    assert!(bytes < 30 << 20, "{bytes} bytes");
}
