//! Nonsense gets a clear error with its own exit code, changes nothing, and disturbs nobody.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use weir_tests::processes::{Cluster, alone, count, npy, root};

fn serving() -> (Cluster, String) {
    let cluster = Cluster::start(1, 1);
    cluster.serve_synthetic("width = 2\nfail_above = 1e6\npanic_above = 1e9\n", "");
    let good = cluster.write("good.npy", npy(&[1, 2], &[1.0, 2.0]));
    (cluster, good)
}

#[test]
fn inputs_that_do_not_fit_are_refused_with_what_would() {
    let (cluster, good) = serving();
    let wide = cluster.write("wide.npy", npy(&[1, 3], &[0.0; 3]));
    assert!(cluster.fails(2, &["predict", "echo", "--input", &wide]).contains("expected x f32[-,2], got f32[1, 3]"));
    assert!(cluster.fails(2, &["predict", "echo", "--input", &format!("y={good}")]).contains("input \"x\" is missing"));
    let labels = root().join("demo/labels.npy").display().to_string();
    assert!(cluster.fails(2, &["predict", "echo", "--input", &labels]).contains("got u8"));
    let empty = cluster.write("empty.npy", npy(&[0, 2], &[]));
    assert!(cluster.fails(2, &["predict", "echo", "--input", &empty]).contains("from 1 to"));
    let torn = cluster.write("torn.npy", &npy(&[1, 2], &[0.0; 2])[..20]);
    assert!(cluster.fails(2, &["predict", "echo", "--input", &torn]).contains("cut short"));
    for deadline in ["NaN", "-5ms", "soon", "0ms"] {
        assert!(
            cluster
                .fails(2, &["predict", "echo", "--input", &good, &format!("--deadline={deadline}")])
                .contains("write it as")
        );
    }
    assert!(cluster.fails(5, &["predict", "ecco", "--input", &good]).contains("endpoint \"ecco\" not found"));
    cluster.ok(&["predict", "echo", "--input", &good]);
}

/// `weir get models | head -1`, or a server whose first lines were read and no more.
#[test]
fn whoever_reads_may_have_read_enough() {
    let (cluster, good) = serving();
    let nobody = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        writer
    };
    let unread = |arguments: &[&str]| {
        let output = cluster.command(arguments).stdout(nobody()).output().expect("weir runs");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    for command in [&["get", "models"][..], &["predict", "echo", "--input", &good], &["completions", "bash"]] {
        assert_eq!(unread(command), (Some(0), String::new()), "{command:?}");
    }
    let (code, error) = unread(&["predict", "ecco", "--input", &good, "-o", "json"]);
    assert!(code == Some(5) && error.contains("not found") && !error.contains("panic"), "{code:?} {error}");
    let mut watch = cluster.command(&["watch", "all", "--since", "1"]).stdout(nobody()).spawn().expect("weir runs");
    assert!(watch.wait().is_ok_and(|status| status.success()), "it has nobody to tell");
    let (data, token, coordinators) = (cluster.path("n2"), cluster.path("c1/member.token"), cluster.addresses());
    let node = ["node", "--name", "n2", "--data-dir", &data, "--listen", "127.0.0.1:0"];
    let node = [&node[..], &["--coordinators", &coordinators, "--token-file", &token]].concat();
    let mut node =
        alone(&node).env("RUST_LOG", "debug").stdout(nobody()).stderr(nobody()).spawn().expect("weir starts");
    cluster.wait("a node that nobody listens to has joined", Duration::from_secs(60), |status| {
        count(status, "nodes", |node| node["state"] == "up") == 2
    });
    assert!(node.try_wait().is_ok_and(|ended| ended.is_none()));
    node.kill().and_then(|()| node.wait()).expect("it is ours to end");
}

#[test]
fn a_query_that_cannot_be_in_time_is_rejected() {
    let (cluster, good) = serving();
    cluster.write("slow.synthetic", "width = 2\nalpha_us = 200000\n");
    let file = cluster.write(
        "slow.toml",
        "[[model]]\nname = \"slow\"\npath = \"slow.synthetic\"\n[[endpoint]]\nname = \"slow\"\nmodel = \"slow\"\ndeadline = \"2s\"\n",
    );
    cluster.ok(&["apply", "-f", &file]);
    assert!(
        cluster
            .fails(8, &["predict", "slow", "--input", &good, "--deadline", "20ms"])
            .contains("would not be done before its deadline")
    );
    cluster.ok(&["predict", "slow", "--input", &good]);
}

#[test]
fn files_with_mistakes_change_nothing() {
    let (cluster, _) = serving();
    let what_there_is =
        || cluster.ok(&["get", "models", "-o", "json"]) + &cluster.ok(&["get", "endpoints", "-o", "json"]);
    let before = what_there_is();
    let mistake = |name: &str, text: &str| {
        let path = cluster.write(name, text);
        cluster.fails(2, &["apply", "-f", &path])
    };
    assert!(mistake("a.toml", "[[modle]]\n").contains("did you mean `model`?"));
    assert!(mistake("b.toml", "[[model]]\nname = \"x\"\npath = \"nowhere.onnx\"\n").contains("cannot read"));
    let tiny = std::fs::read(root().join("demo/tiny.onnx")).unwrap();
    cluster.write("torn.onnx", &tiny[..tiny.len() / 2]);
    assert!(mistake("c.toml", "[[model]]\nname = \"x\"\npath = \"torn.onnx\"\n").contains("cut short"));
    assert!(
        mistake("d.toml", "[[endpoint]]\nname = \"e\"\nmodel = \"nobody@1\"\n")
            .contains("nobody@1, which is not registered")
    );
    let other = cluster.write("echo.synthetic", "width = 3\n");
    assert!(!other.is_empty());
    let path = cluster.path("echo.toml");
    assert!(cluster.fails(6, &["apply", "-f", &path]).contains("give this one a new version"));
    assert_eq!(what_there_is(), before);
}

#[test]
fn without_the_right_token_nothing_opens() {
    let (cluster, good) = serving();
    let member = cluster.path("c1/member.token");
    assert!(cluster.fails(4, &["status", "--token-file", &member]).contains("does not let its bearer operate"));
    let wrong = cluster.write("wrong.token", "ab".repeat(32));
    assert!(
        cluster.fails(4, &["predict", "echo", "--input", &good, "--token-file", &wrong]).contains("opens nothing here")
    );
    assert!(cluster.fails(4, &["status", "--token-file", &cluster.path("none")]).contains("cannot read the token"));
}

#[test]
fn a_cluster_that_is_not_there_is_told_apart() {
    let cluster = Cluster::start(1, 1);
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert!(cluster.fails(3, &["status", "--coordinators", &free]).contains("can be reached"));
}

#[test]
fn a_message_of_a_gibibyte_ends_its_own_connection_only() {
    let (cluster, good) = serving();
    let node = cluster.nodes[0].address.clone();
    let closed = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(&node).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut rest = Vec::new();
        // Closed by the node, with or without a word before it.
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.is_ok() || ended.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset);
    };
    closed(&[&0u32.to_le_bytes()[..], &(1u32 << 27).to_le_bytes()[..]].concat());
    closed(&[0xff; 64]);
    closed(b"GET / HTTP/1.1\r\n\r\n");
    // Nothing at all: no login in time.
    closed(b"");
    cluster.ok(&["predict", "echo", "--input", &good]);
}

#[test]
fn one_bad_row_fails_alone_and_a_panic_is_survived() {
    let (cluster, good) = serving();
    let mixed = cluster.write("mixed.npy", npy(&[3, 2], &[1.0, 0.0, 2e6, 0.0, 3.0, 0.0]));
    let output = cluster.run(&["predict", "echo", "--input", &mixed, "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let outcomes: Vec<_> = text.lines().take(3).map(|line| line.contains("\"outcome\":\"answered\"")).collect();
    assert_eq!(outcomes, [true, false, true], "{text}");
    let fatal = cluster.write("fatal.npy", npy(&[1, 2], &[2e9, 0.0]));
    assert!(cluster.fails(1, &["predict", "echo", "--input", &fatal]).contains("panicked"));
    let again = || cluster.run(&["predict", "echo", "--input", &good]).status.success();
    let started = std::time::Instant::now();
    while !again() {
        assert!(started.elapsed() < Duration::from_secs(20), "its actor was not restarted");
    }
}

#[test]
fn a_version_that_keeps_dying_is_quarantined() {
    let (cluster, _) = serving();
    let fatal = cluster.write("fatal.npy", npy(&[1, 2], &[2e9, 0.0]));
    let started = std::time::Instant::now();
    while !cluster.ok(&["get", "models"]).contains("quarantined") {
        cluster.run(&["predict", "echo", "--input", &fatal]);
        assert!(started.elapsed() < Duration::from_secs(30), "{}", cluster.ok(&["describe", "endpoint", "echo"]));
    }
    assert!(cluster.ok(&["get", "models"]).contains("told to panic"));
}
