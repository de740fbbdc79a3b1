//! The checked-in wire code is what the compiler makes of the schema files.
//!
//! `UPDATE=1 cargo test -p weir-schema --test generated` writes it anew.

use std::path::Path;
use std::process::Command;

#[test]
fn checked_in_code_equals_a_fresh_generation() {
    let found = Command::new("capnp").arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        // Continuous integration installs it; elsewhere the comparison is not worth a system package.
        assert!(std::env::var_os("CI").is_none(), "the capnp compiler is missing: install the package capnproto");
        println!("skipped: no capnp compiler here (package capnproto)");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().expect("a folder for the generated code");
    let mut command = capnpc::CompilerCommand::new();
    command.src_prefix(root.join("capnp")).output_path(fresh.path());
    for name in ["predict", "control", "raft"] {
        command.file(root.join("capnp").join(format!("{name}.capnp")));
    }
    command.run().expect("the schema files compile");
    for name in ["predict", "control", "raft"] {
        let file = format!("{name}_capnp.rs");
        let (new, checked_in) = (fresh.path().join(&file), root.join("src").join(&file));
        let made = std::fs::read_to_string(new).expect("the compiler wrote it");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&checked_in, made).expect("the checkout is writable");
        } else if std::fs::read_to_string(&checked_in).unwrap_or_default() != made {
            panic!("{file} is not what {name}.capnp says; run `UPDATE=1 cargo test -p weir-schema --test generated`");
        }
    }
}
