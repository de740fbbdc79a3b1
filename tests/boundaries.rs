//! Who may know whom is what the manifests say, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use weir_tests::processes::root;

/// A crate and the crates of weir that it may depend on.
const MAY_KNOW: [(&str, &[&str]); 12] = [
    ("core", &[]),
    ("schema", &["core"]),
    ("host", &["core", "schema"]),
    ("ml-workers", &["core", "schema"]),
    ("coordinator", &["core", "schema", "host"]),
    ("client", &["core", "schema", "host"]),
    ("node", &["core", "schema", "host", "ml-workers"]),
    ("gateway", &["core", "schema", "host", "client"]),
    ("loadgen", &["core", "schema", "host", "client"]),
    ("sim", &["core"]),
    ("cli", &["core", "schema", "host", "ml-workers", "coordinator", "node", "client", "gateway", "loadgen", "sim"]),
    ("tests", &["core", "schema", "host", "ml-workers", "coordinator", "node", "client", "gateway", "loadgen", "sim"]),
];

fn manifest(folder: &str) -> toml::Table {
    let path = root().join(folder).join("Cargo.toml");
    std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .parse()
        .expect("a manifest is TOML")
}

fn dependencies(folder: &str, table: &str) -> BTreeSet<String> {
    manifest(folder).get(table).and_then(|t| t.as_table()).map(|t| t.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn crates_know_only_whom_they_may() {
    for (folder, allowed) in MAY_KNOW {
        let known = dependencies(folder, "dependencies");
        let known: BTreeSet<&str> = known.iter().filter_map(|name| name.strip_prefix("weir-")).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        assert!(known.is_subset(&allowed), "{folder} may not know {:?}", known.difference(&allowed));
    }
}

#[test]
fn every_crate_of_the_workspace_is_listed_here() {
    let members: BTreeSet<String> = manifest(".")["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m.as_str().unwrap().to_owned())
        .collect();
    let listed: BTreeSet<String> = MAY_KNOW.iter().map(|(folder, _)| (*folder).to_owned()).collect();
    assert_eq!(members, listed);
}

#[test]
fn core_knows_only_the_standard_library_and_thiserror() {
    assert_eq!(dependencies("core", "dependencies"), BTreeSet::from(["thiserror".to_owned()]));
}

/// Words that mean a clock, an unordered map, a log, a file or a thread. `clippy.toml` in core bans the calls; this also
/// sees imports and macros.
const NOT_IN_CORE: [&str; 9] =
    ["Instant::now", "SystemTime", "HashMap", "HashSet", "println!", "eprintln!", "std::fs", "std::net", "std::thread"];

#[test]
fn core_reads_no_clock_and_touches_nothing() {
    let mut offences = BTreeMap::new();
    let mut folders = vec![root().join("core/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&entry).unwrap();
                let found: Vec<_> = NOT_IN_CORE.into_iter().filter(|word| text.contains(word)).collect();
                if !found.is_empty() {
                    offences.insert(entry, found);
                }
            }
        }
    }
    assert!(offences.is_empty(), "{offences:?}");
}

#[test]
fn unsafe_code_stands_only_in_the_file_that_says_why() {
    let mut with_unsafe = Vec::new();
    for (folder, _) in MAY_KNOW {
        let mut folders = vec![root().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() {
                    folders.push(entry);
                } else if entry.extension().is_some_and(|e| e == "rs") {
                    let text = std::fs::read_to_string(&entry).unwrap();
                    if text.contains("allow(unsafe_code)") && !entry.ends_with("boundaries.rs") {
                        with_unsafe.push(entry.strip_prefix(root()).unwrap().display().to_string());
                    }
                }
            }
        }
    }
    assert_eq!(with_unsafe, ["ml-workers/src/engines/kernel.rs"]);
}
