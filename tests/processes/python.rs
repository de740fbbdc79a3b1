//! The Python client, against a cluster. `scripts/test` installs what it needs.

use std::process::Command;

use weir_tests::processes::{Cluster, root};

/// What a script printed, with the client and what it needs at hand.
pub fn python(script: &str, arguments: &[&str]) -> String {
    run(&["-c", script], arguments)
}

fn run(script: &[&str], arguments: &[&str]) -> String {
    let modules = root().join("lib/python");
    assert!(modules.is_dir(), "{} is missing; run `scripts/setup --python` first", modules.display());
    let path = std::env::join_paths([root().join("client/python"), modules]).unwrap();
    let told = Command::new("python3")
        .args(script)
        .args(arguments)
        .env("PYTHONPATH", path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3 runs");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8(told.stdout).expect("text")
}

#[test]
fn it_keeps_what_it_promises() {
    let cluster = Cluster::start(1, 2);
    cluster.write("slow.synthetic", "width = 2\nalpha_us = 200000\n");
    let slow = "[[model]]\nname = \"slow\"\nversion = \"1\"\npath = \"slow.synthetic\"\nreplicas = { min = 2 }\n\
        [[endpoint]]\nname = \"slow\"\nmodel = \"slow@1\"\ndeadline = \"30s\"\n";
    cluster.ok(&["apply", "-f", &cluster.write("slow.toml", slow)]);
    cluster.serve_synthetic("width = 2\nalpha_us = 2000\nbeta_us = 20\n", "replicas = { min = 2 }");
    let script = root().join("client/python/tests/check.py");
    run(&[&script.display().to_string()], &[&cluster.addresses(), &cluster.path("c1/admin.token")]);
}
