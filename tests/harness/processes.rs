//! What tests of whole processes share: a cluster of real `weir` processes in a folder of its own, on free ports.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The binary under test: the one that was built beside the tests.
pub fn weir() -> PathBuf {
    let tests = std::env::current_exe().expect("a test has a path");
    let path = tests.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps").join("weir");
    assert!(path.is_file(), "{} is missing; run `cargo build -p weir-cli` first", path.display());
    path
}

/// The root of the clone.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the clone is there")
}

/// A process that is killed when dropped.
pub struct Process {
    child: Child,
    /// `host:port` that it said to listen on.
    pub address: String,
    /// What else it said to serve, and where.
    pub doors: BTreeMap<String, String>,
    arguments: Vec<String>,
}

impl Process {
    /// Starts `weir` and waits until it says where it listens.
    pub fn start(arguments: &[&str]) -> Process {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        Process::start_owned(arguments)
    }

    fn start_owned(arguments: Vec<String>) -> Process {
        let mut child =
            clean(&mut Command::new(weir())).args(&arguments).stdout(Stdio::piped()).spawn().expect("weir starts");
        let stdout = child.stdout.take().expect("it was piped");
        let mut lines = BufReader::new(stdout).lines();
        let mut doors = BTreeMap::new();
        let address = loop {
            let line = lines
                .next()
                .and_then(Result::ok)
                .unwrap_or_else(|| panic!("weir {} ended at once", arguments.join(" ")));
            if let Some((_, address)) = line.split_once(" listens on ") {
                break address.to_owned();
            }
            doors.extend(line.split_once(' ').map(|(door, address)| (door.to_owned(), address.to_owned())));
        };
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Process { child, address, doors, arguments }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is ours to kill");
        self.child.wait().expect("it ended");
    }

    /// SIGTERM: it finishes what it has, and ends.
    pub fn stop(&mut self) {
        let told = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
        assert!(told.is_ok_and(|told| told.success()), "it is ours to stop");
        let started = Instant::now();
        while self.child.try_wait().expect("it is ours to wait for").is_none() {
            assert!(started.elapsed() < Duration::from_secs(40), "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again, at the address that it had.
    pub fn restart(&mut self) {
        let mut arguments = self.arguments.clone();
        let listen = arguments.iter().position(|a| a == "--listen").expect("every server listens");
        arguments[listen + 1] = self.address.clone();
        *self = Process::start_owned(arguments);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `weir` command of no cluster, with no variable set.
pub fn alone(arguments: &[&str]) -> Command {
    let mut command = Command::new(weir());
    clean(&mut command).args(arguments);
    command
}

fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WEIR_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG")
}

/// Coordinators and nodes, each a process.
pub struct Cluster {
    folder: TempDir,
    /// By number, the first one founded the cluster.
    pub coordinators: Vec<Process>,
    /// By number.
    pub nodes: Vec<Process>,
}

impl Cluster {
    /// Starts them and waits until every coordinator votes and every node has joined.
    pub fn start(coordinators: usize, nodes: usize) -> Cluster {
        Cluster::start_with(coordinators, nodes, &[])
    }

    /// Likewise, its nodes with these flags.
    pub fn start_with(coordinators: usize, nodes: usize, flags: &[&str]) -> Cluster {
        let mut cluster =
            Cluster { folder: tempfile::tempdir().expect("a folder"), coordinators: Vec::new(), nodes: Vec::new() };
        for i in 1..=coordinators {
            let data = cluster.path(&format!("c{i}"));
            let name = format!("c{i}");
            let token = cluster.path("c1/member.token");
            let mut arguments = vec!["coordinator", "--name", &name, "--data-dir", &data, "--listen", "127.0.0.1:0"];
            let first = cluster.coordinators.first().map(|first| first.address.clone());
            match &first {
                None => arguments.push("--bootstrap"),
                Some(first) => arguments.extend(["--join", first, "--token-file", &token]),
            }
            cluster.coordinators.push(Process::start(&arguments));
        }
        for i in 1..=nodes {
            let node = cluster.node(&format!("n{i}"), flags);
            cluster.nodes.push(node);
        }
        cluster.wait("every member is up", Duration::from_secs(60), |status| {
            count(status, "members", |m| m["role"] != "learner" && m["state"] == "up") == coordinators
                && count(status, "nodes", |n| n["state"] == "up") == nodes
        });
        cluster
    }

    /// Starts a node of this cluster.
    pub fn node(&self, name: &str, more: &[&str]) -> Process {
        let (data, token, coordinators) = (self.path(name), self.path("c1/member.token"), self.addresses());
        let mut arguments = vec!["node", "--name", name, "--data-dir", &data, "--listen", "127.0.0.1:0"];
        arguments.extend(["--coordinators", &coordinators, "--token-file", &token]);
        arguments.extend(more);
        Process::start(&arguments)
    }

    /// A path in the cluster's folder.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Addresses of the coordinators, for clients.
    pub fn addresses(&self) -> String {
        self.coordinators.iter().map(|c| c.address.as_str()).collect::<Vec<_>>().join(",")
    }

    /// A `weir` command against this cluster, as its admin.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(weir());
        clean(&mut command).args(arguments);
        command
            .env("WEIR_COORDINATORS", self.addresses())
            .env("WEIR_TOKEN_FILE", self.path("c1/admin.token"))
            .current_dir(root());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("weir runs")
    }

    /// Runs a command that must succeed; returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "weir {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a command that must fail with this exit code; returns its error.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "weir {}: {error}", arguments.join(" "));
        error
    }

    /// The status as JSON; `None` while there is none.
    pub fn status(&self) -> Option<Value> {
        let output = self.run(&["status", "-o", "json"]);
        serde_json::from_slice(&output.stdout).ok().filter(|status: &Value| status.get("leader").is_some())
    }

    /// Waits until the status is as wanted.
    pub fn wait(&self, what: &str, within: Duration, wanted: impl Fn(&Value) -> bool) {
        let started = Instant::now();
        loop {
            let status = self.status();
            if status.as_ref().is_some_and(&wanted) {
                return;
            }
            assert!(started.elapsed() < within, "{what}: not within {within:?}; the status is {status:?}");
        }
    }

    /// Number of the coordinator that leads.
    pub fn leader(&self) -> usize {
        let status = self.status().expect("a leader answers");
        let name = status["leader"].as_str().expect("a name").to_owned();
        name[1..].parse::<usize>().expect("c and a number") - 1
    }

    /// Writes a file into the cluster's folder; returns its path.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("the folder is ours");
        path
    }

    /// A weir file that is the demo's with these gates before its second and third stage; returns its path.
    pub fn demo_with(&self, gates: [&str; 2]) -> String {
        let demo = std::fs::read_to_string(root().join("demo/fashion.toml")).expect("the demo is there");
        let mut demo = demo.replace("path = \"", &format!("path = \"{}/demo/", root().display()));
        for (own, gate) in ["gain = \"tiny-mid.csv\"", "gain = \"mid-big.csv\""].into_iter().zip(gates) {
            assert!(demo.contains(own), "the demo's gates are {own}");
            demo = demo.replace(own, gate);
        }
        self.write("fashion.toml", demo)
    }

    /// Serves a synthetic model of this text behind the endpoint `echo`.
    pub fn serve_synthetic(&self, model: &str, more: &str) {
        self.write("echo.synthetic", model);
        let file = format!(
            "[[model]]\nname = \"echo\"\nversion = \"1\"\npath = \"echo.synthetic\"\n{more}\n[[endpoint]]\nname = \"echo\"\nmodel = \"echo@1\"\ndeadline = \"1s\"\n"
        );
        let path = self.write("echo.toml", file);
        self.ok(&["apply", "-f", &path]);
    }

    /// Serves 4 KB as they are behind the endpoint `identity`, and has it answer once.
    pub fn serve_identity(&self) {
        let model = root().join("tests/models/identity_4k.onnx");
        let file = format!(
            "[[model]]\nname = \"identity\"\npath = {:?}\n[[endpoint]]\nname = \"identity\"\nmodel = \"identity\"\n",
            model.display().to_string()
        );
        self.ok(&["apply", "-f", &self.write("identity.toml", file)]);
        self.ok(&["predict", "identity", "--input", &self.write("x.npy", npy(&[1, 1024], &[1.0; 1024]))]);
    }
}

/// How many items of a list in the status are as wanted.
pub fn count(status: &Value, list: &str, wanted: impl Fn(&Value) -> bool) -> usize {
    status[list].as_array().map_or(0, |items| items.iter().filter(|item| wanted(item)).count())
}

/// What the system tells of a process under this name in its status: KiB for memory.
pub fn told(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("it is told");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// KiB that are resident in a process.
pub fn resident(pid: u32) -> u64 {
    told(pid, "VmRSS")
}

/// A figure that a process with a door for metrics tells.
pub fn metric(process: &Process, name: &str) -> Option<f64> {
    let mut socket = TcpStream::connect(&process.doors["metrics"]).expect("the door is open");
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("it is read");
    let mut page = String::new();
    socket.read_to_string(&mut page).expect("text");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map(|value| value.parse().expect("a number"))
}

/// An f32 array as a `.npy` file.
pub fn npy(shape: &[u64], values: &[f32]) -> Vec<u8> {
    let dims: String = shape.iter().map(|dim| format!("{dim},")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes
}
