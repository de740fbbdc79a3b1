//! `weir up`: a whole cluster on this machine, in one process or in several.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use weir_client::{Admin, Options, Token};
use weir_coordinator::{SNAPSHOT_EVERY, TICK};
use weir_core::ids::{MemberName, NodeName};
use weir_gateway::GatewayError;
use weir_gateway::dashboard::{Samples, serve_dashboard};
use weir_gateway::metrics::Group;
use weir_host::Host;
use weir_host::disk::SystemDisk;
use weir_loadgen::data::Data;

use super::apply;
use super::gateway::{Doors, threads};
use super::node::{Devices, processor, rpc_threads};
use super::server::until_signal;
use crate::connect::UP_TOKEN;
use crate::failure::{Failure, chain};

/// Starts a whole cluster on this machine. Ctrl-C stops it.
#[derive(Args)]
pub struct Up {
    /// Nodes
    #[arg(long, env = "WEIR_NODES", default_value_t = 1)]
    nodes: u16,
    /// Coordinators: 1, 3 or 5
    #[arg(long, env = "WEIR_UP_COORDINATORS", default_value_t = 1)]
    coordinators: u16,
    /// Where everything is kept
    #[arg(long, env = "WEIR_DATA_DIR", default_value = "weir-data")]
    data_dir: PathBuf,
    /// Also serve the demo
    #[arg(long, env = "WEIR_DEMO")]
    demo: bool,
    /// Take free ports instead of 7300, 7400 and 8000 on
    #[arg(long, env = "WEIR_FREE_PORTS")]
    free_ports: bool,
    /// Write what was taken into this file, once ready
    #[arg(long, env = "WEIR_PORTS_FILE")]
    ports_file: Option<PathBuf>,
    /// Each coordinator and node in a process of its own
    #[arg(long, env = "WEIR_PROCESSES")]
    processes: bool,
    #[command(flatten)]
    devices: Devices,
}

/// One that was started.
struct Member {
    name: String,
    address: String,
    /// What else it serves, and where.
    doors: Vec<(String, String)>,
    pid: Option<u32>,
    /// What a coordinator in this process tells of itself.
    facts: Option<Group>,
}

/// How long until there is a leader and every node has joined.
const READY_WITHIN: Duration = Duration::from_secs(60);

impl Up {
    pub async fn run(self) -> Result<(), Failure> {
        if self.nodes == 0 || self.coordinators == 0 {
            return Err(Failure::Usage("a cluster has at least one coordinator and one node".into()));
        }
        let shutdown = until_signal();
        let mut tasks: JoinSet<(String, Result<(), String>)> = JoinSet::new();
        let mut stopped = shutdown.clone();
        tokio::select! {
            started = self.start(&mut tasks, &shutdown) => started?,
            _ = stopped.wait_for(|stop| *stop) => return Err(Failure::Interrupted),
        }
        let mut failed = false;
        while let Some(ended) = tasks.join_next().await {
            let stopping = *shutdown.borrow();
            match ended {
                Ok((name, Err(why))) => {
                    failed |= !stopping;
                    eprintln!("{name} ended: {why}");
                }
                Ok((name, Ok(()))) if !stopping => {
                    failed = true;
                    eprintln!("{name} ended");
                }
                Ok(_) => {}
                Err(error) => {
                    failed = true;
                    eprintln!("a part of the cluster broke: {error}");
                }
            }
        }
        if failed { Err(Failure::No("some of the cluster had ended before it was stopped".into())) } else { Ok(()) }
    }

    async fn start(
        &self,
        tasks: &mut JoinSet<(String, Result<(), String>)>,
        shutdown: &watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let member_token = self.data_dir.join("c1/member.token");
        let admin_token = self.data_dir.join(UP_TOKEN);
        let mut coordinators: Vec<Member> = Vec::new();
        for i in 0..self.coordinators {
            let name = format!("c{}", i + 1);
            let join = coordinators.first().map(|first| first.address.clone());
            let member = if self.processes {
                self.coordinator_process(tasks, &name, i, join, &member_token).await?
            } else {
                self.coordinator_here(tasks, shutdown, &name, i, join, &member_token).await?
            };
            println!("coordinator {} {}{}", member.name, member.address, pid(&member));
            coordinators.push(member);
        }
        let mut nodes: Vec<Member> = Vec::new();
        for i in 0..self.nodes {
            let name = format!("n{}", i + 1);
            let member = if self.processes {
                self.node_process(tasks, &name, i, &coordinators, &member_token).await?
            } else {
                self.node_here(tasks, shutdown, &name, i, &coordinators, &member_token).await?
            };
            println!("node {} {}{}", member.name, member.address, pid(&member));
            for (door, address) in &member.doors {
                println!("{door} {} {address}", member.name);
            }
            nodes.push(member);
        }
        let token = Token::read_file(&SystemDisk, &admin_token)
            .map_err(|cause| Failure::No(format!("cannot read {} ({cause})", admin_token.display())))?;
        let options = Options { coordinators: addresses(&coordinators), token };
        let admin = Admin::new(Host::system(), options.clone());
        let waited =
            tokio::time::timeout(READY_WITHIN, wait_ready(&admin, self.coordinators as usize, self.nodes as usize));
        waited
            .await
            .map_err(|_| Failure::TimedOut("not every node has joined after 60 s; see `weir status`".into()))??;
        let mut samples = Samples::new();
        if self.demo {
            let file = demo_file()?;
            let declared = apply::read(&file)?;
            let images = Data::read(&file.with_file_name("images.npy"));
            let images = images.map_err(|error| Failure::No(format!("the demo's images: {error}")))?;
            let rows: Vec<u32> = (0..images.rows() as u32).collect();
            let endpoints = declared.endpoints.iter();
            samples.extend(endpoints.map(|endpoint| (endpoint.name.clone(), images.take(&rows))));
            for line in apply::apply(&admin, &declared, None).await? {
                println!("{line}");
            }
            apply::wait_serving(&admin, &declared, READY_WITHIN).await?;
        }
        let failed = |error: GatewayError| Failure::No(chain(&error));
        let at = format!("127.0.0.1:{}", self.port(7380, 0, 0));
        let (listener, dashboard) = weir_gateway::bind(&at, "free-ports", false).await.map_err(failed)?;
        serve_dashboard(listener, options, samples, shutdown.clone()).map_err(failed)?;
        println!("dashboard {dashboard}");
        if let Some(path) = &self.ports_file {
            let ports = json!({
                "coordinators": coordinators.iter().map(as_json).collect::<Vec<_>>(),
                "nodes": nodes.iter().map(as_json).collect::<Vec<_>>(),
                "dashboard": dashboard.to_string(),
                "token_file": std::path::absolute(&admin_token).unwrap_or(admin_token).display().to_string(),
            });
            // Whoever waits for the file reads it whole.
            let part = path.with_extension("part");
            std::fs::write(&part, ports.to_string())
                .and_then(|()| std::fs::rename(&part, path))
                .map_err(|cause| Failure::No(format!("cannot write {}: {cause}", path.display())))?;
        }
        println!("ready");
        Ok(())
    }

    fn port(&self, first: u16, step: u16, i: u16) -> u16 {
        if self.free_ports { 0 } else { first + step * i }
    }

    async fn coordinator_here(
        &self,
        tasks: &mut JoinSet<(String, Result<(), String>)>,
        shutdown: &watch::Receiver<bool>,
        name: &str,
        i: u16,
        join: Option<String>,
        member_token: &Path,
    ) -> Result<Member, Failure> {
        let config = weir_coordinator::Config {
            name: MemberName::parse(name).expect("a valid name"),
            data_dir: self.data_dir.join(name),
            listen: format!("127.0.0.1:{}", self.port(7300, 1, i)),
            advertise: None,
            bootstrap: join.is_none(),
            token_file: join.is_some().then(|| member_token.to_owned()),
            join: join.into_iter().collect(),
            insecure_network: false,
            tick: TICK,
            snapshot_every: SNAPSHOT_EVERY,
        };
        let (started, address) = oneshot::channel();
        let running = weir_coordinator::run(config, Host::system(), started, shutdown.clone());
        let label = format!("coordinator {name}");
        tasks.spawn_local(async move { (label, running.await.map_err(|error| chain(&error))) });
        match address.await {
            Ok(started) => {
                let address = started.address.to_string();
                Ok(Member { name: name.to_owned(), address, doors: Vec::new(), pid: None, facts: Some(started.facts) })
            }
            Err(_) => Err(first_failure(tasks).await),
        }
    }

    /// What a node serves beside its own port, where Triton's users look for it.
    fn doors(&self, i: u16) -> Doors {
        let at = |first| Some(format!("127.0.0.1:{}", self.port(first, 10, i)));
        Doors { http: at(8000), grpc: at(8001), metrics: at(8002), no_nv_metrics: false }
    }

    async fn node_here(
        &self,
        tasks: &mut JoinSet<(String, Result<(), String>)>,
        shutdown: &watch::Receiver<bool>,
        name: &str,
        i: u16,
        coordinators: &[Member],
        member_token: &Path,
    ) -> Result<Member, Failure> {
        let devices = self.devices.share(i, self.nodes)?;
        let (cpu_slots, memory) = devices.resolve()?;
        let config = weir_node::Config {
            name: NodeName::parse(name).expect("a valid name"),
            data_dir: self.data_dir.join(name),
            listen: format!("127.0.0.1:{}", self.port(7400, 10, i)),
            advertise: None,
            coordinators: addresses(coordinators),
            token_file: member_token.to_owned(),
            cpu_slots,
            between_stages: devices.between_stages()?,
            memory,
            policy: devices.policy()?,
            triage: devices.triage()?,
            pace: devices.pace,
            cores: devices.cores()?,
            processor: processor(),
            rpc_threads: rpc_threads(),
            insecure_network: false,
        };
        let beside = coordinators.get(usize::from(i)).and_then(|member| member.facts.clone());
        let open = self.doors(i).open(false, Some("free-ports")).await?.beside(beside);
        let doors = open.addresses().map(|(door, address)| (door.to_owned(), address.to_string())).collect();
        let token = Token::read_file(&SystemDisk, member_token)
            .map_err(|cause| Failure::No(format!("cannot read {} ({cause})", member_token.display())))?;
        let options = Options { coordinators: addresses(coordinators), token };
        let (started, address) = oneshot::channel();
        let running = weir_node::run(config, Host::system(), started, shutdown.clone());
        let label = format!("node {name}");
        tasks.spawn_local(async move { (label, running.await.map_err(|error| chain(&error))) });
        let Ok(started) = address.await else { return Err(first_failure(tasks).await) };
        let (ready, serving) = oneshot::channel();
        let gateway = open.serve(options, threads(), Some(started.clone()), ready, shutdown.clone());
        let label = format!("gateway of {name}");
        tasks.spawn_local(async move { (label, gateway.await.map_err(|error| chain(&error))) });
        if serving.await.is_err() {
            return Err(first_failure(tasks).await);
        }
        Ok(Member { name: name.to_owned(), address: started.address.to_string(), doors, pid: None, facts: None })
    }

    async fn coordinator_process(
        &self,
        tasks: &mut JoinSet<(String, Result<(), String>)>,
        name: &str,
        i: u16,
        join: Option<String>,
        member_token: &Path,
    ) -> Result<Member, Failure> {
        let mut command = this_binary()?;
        command.args([
            "coordinator",
            "--name",
            name,
            "--listen",
            &format!("127.0.0.1:{}", self.port(7300, 1, i)),
            "--data-dir",
        ]);
        command.arg(self.data_dir.join(name));
        match join {
            None => command.arg("--bootstrap"),
            Some(join) => command.arg("--join").arg(join).arg("--token-file").arg(member_token),
        };
        spawn(tasks, command, &format!("coordinator {name}"), name).await
    }

    async fn node_process(
        &self,
        tasks: &mut JoinSet<(String, Result<(), String>)>,
        name: &str,
        i: u16,
        coordinators: &[Member],
        member_token: &Path,
    ) -> Result<Member, Failure> {
        let devices = self.devices.share(i, self.nodes)?;
        let mut command = this_binary()?;
        command.args(["node", "--name", name, "--listen", &format!("127.0.0.1:{}", self.port(7400, 10, i))]);
        command.args([
            "--coordinators",
            &addresses(coordinators).join(","),
            "--pace",
            &devices.pace.to_string(),
            "--policy",
            &devices.policy,
            "--triage",
            &devices.triage,
            "--data-dir",
        ]);
        command.arg(self.data_dir.join(name)).arg("--token-file").arg(member_token);
        let doors = self.doors(i);
        for (flag, address) in [("--http", doors.http), ("--grpc", doors.grpc), ("--metrics", doors.metrics)] {
            command.arg(flag).args(address);
        }
        if let Some(slots) = devices.cpu_slots {
            command.args(["--cpu-slots", &slots.to_string()]);
        }
        for (flag, given) in
            [("--memory", &devices.memory), ("--between-stages", &devices.between_stages), ("--cores", &devices.cores)]
        {
            if let Some(given) = given {
                command.args([flag, given]);
            }
        }
        spawn(tasks, command, &format!("node {name}"), name).await
    }
}

fn addresses(members: &[Member]) -> Vec<String> {
    members.iter().map(|member| member.address.clone()).collect()
}

fn pid(member: &Member) -> String {
    member.pid.map_or(String::new(), |pid| format!(" pid {pid}"))
}

fn as_json(member: &Member) -> Value {
    let mut told = json!({"name": member.name, "rpc": member.address});
    for (door, address) in &member.doors {
        told[door] = json!(address);
    }
    if let Some(pid) = member.pid {
        told["pid"] = json!(pid);
    }
    told
}

fn this_binary() -> Result<tokio::process::Command, Failure> {
    let path = std::env::current_exe().map_err(|cause| Failure::No(format!("cannot find this program: {cause}")))?;
    let mut command = tokio::process::Command::new(path);
    // What variables say to this process is not meant for each member. Ctrl-C reaches the children from the terminal too.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WEIR_")) {
        command.env_remove(name);
    }
    command.stdout(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// Starts a process and waits until it says where it listens. It is ended by SIGTERM when this process is.
async fn spawn(
    tasks: &mut JoinSet<(String, Result<(), String>)>,
    mut command: tokio::process::Command,
    label: &str,
    name: &str,
) -> Result<Member, Failure> {
    let mut child = command.spawn().map_err(|cause| Failure::No(format!("cannot start {label}: {cause}")))?;
    let pid = child.id();
    let stdout = child.stdout.take().expect("it was piped");
    let (told, address) = oneshot::channel();
    let owned = label.to_owned();
    let mut stop = until_signal();
    tasks.spawn_local(async move {
        let mut lines = BufReader::new(stdout).lines();
        let (mut told, mut doors) = (Some(told), Vec::new());
        let forward = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, address)) = line.split_once(" listens on ") {
                    if let Some(told) = told.take() {
                        let _ = told.send((address.to_owned(), std::mem::take(&mut doors)));
                    }
                } else if let Some((door, address)) = line.split_once(' ') {
                    doors.push((door.to_owned(), address.to_owned()));
                }
            }
        };
        tokio::select! {
            () = forward => {}
            _ = stop.wait_for(|stop| *stop) => terminate(pid),
        }
        let ended = child.wait().await;
        (
            owned,
            match ended {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(status.to_string()),
                Err(error) => Err(error.to_string()),
            },
        )
    });
    match address.await {
        Ok((address, doors)) => Ok(Member { name: name.to_owned(), address, doors, pid, facts: None }),
        Err(_) => Err(first_failure(tasks).await),
    }
}

/// Asks a process that this one started to stop.
fn terminate(pid: Option<u32>) {
    if let Some(pid) = pid {
        // A process that has ended meanwhile needs no signal.
        let _ = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status();
    }
}

async fn first_failure(tasks: &mut JoinSet<(String, Result<(), String>)>) -> Failure {
    match tasks.join_next().await {
        Some(Ok((name, Err(why)))) => Failure::No(format!("{name} does not start: {why}")),
        Some(Ok((name, Ok(())))) => Failure::No(format!("{name} ended at once")),
        _ => Failure::No("a part of the cluster does not start".into()),
    }
}

async fn wait_ready(admin: &Admin, coordinators: usize, nodes: usize) -> Result<(), Failure> {
    loop {
        // A cluster that elects its first leader answers soon.
        if let Ok(status) = admin.status().await {
            let up = status.nodes.iter().filter(|node| node.state != "down" && node.report.is_some()).count();
            let voters = status.members.iter().filter(|member| !member.member.learner).count();
            if up >= nodes && voters >= coordinators {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The demo's file: in this folder, beside or above the binary, or in the clone that it was built from.
fn demo_file() -> Result<PathBuf, Failure> {
    let mut folders = vec![PathBuf::from(".")];
    if let Ok(binary) = std::env::current_exe() {
        folders.extend(binary.ancestors().skip(1).take(4).map(Path::to_owned));
    }
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let found = folders.into_iter().map(|folder| folder.join("demo/fashion.toml")).find(|file| file.is_file());
    found.ok_or_else(|| Failure::NotFound("demo/fashion.toml is not here; start weir in its own folder".into()))
}
