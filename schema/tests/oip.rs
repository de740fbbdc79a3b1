//! The checked-in messages of the open inference protocol are what its file says.

use std::path::Path;

use prost::Message;

/// `UPDATE=1` rewrites the files.
#[test]
fn the_messages_are_what_the_proto_file_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = tempfile::tempdir().unwrap();
    let descriptors = protox::compile(["inference.proto"], [root.join("oip")]).unwrap();
    std::fs::write(made.path().join("inference.fds"), descriptors.encode_to_vec()).unwrap();
    tonic_prost_build::configure()
        .build_transport(false)
        .generate_default_stubs(true)
        .out_dir(made.path())
        .compile_fds(descriptors)
        .unwrap();
    for file in ["inference.rs", "inference.fds"] {
        let (made, kept) = (std::fs::read(made.path().join(file)).unwrap(), root.join("src/oip").join(file));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&kept, &made).unwrap();
        }
        assert!(std::fs::read(kept).unwrap() == made, "{file} differs; run with UPDATE=1");
    }
}
