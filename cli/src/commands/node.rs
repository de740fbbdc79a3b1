//! `weir node`: starts a node, or drains one.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tokio::sync::oneshot;
use weir_client::weirfile::parse_bytes;
use weir_core::endpoint::passage::Held;
use weir_core::ids::NodeName;
use weir_core::replicated::Command;
use weir_core::scheduler::Policy;
use weir_core::triage::Method;
use weir_core::units::Bytes;
use weir_host::Host;
use weir_loadgen::machine::Machine;
use weir_node::Config;

use super::apply::show;
use super::gateway::{Doors, threads};
use super::server::until_signal;
use crate::connect::Common;
use crate::failure::{Failure, chain};

/// Starts a node, or drains one.
#[derive(Args)]
pub struct Node {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Its name in the cluster
    #[arg(long, env = "WEIR_NAME")]
    name: Option<String>,
    /// Where artifacts are kept
    #[arg(long, env = "WEIR_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// host:port to listen on; port 0 takes a free one
    #[arg(long, env = "WEIR_LISTEN", default_value = "127.0.0.1:7400")]
    listen: String,
    /// host:port that others reach it at [default: where it listens]
    #[arg(long, env = "WEIR_ADVERTISE")]
    advertise: Option<String>,
    #[command(flatten)]
    devices: Devices,
    #[command(flatten)]
    doors: Doors,
    /// Listen beyond loopback without certificates
    #[arg(long, env = "WEIR_INSECURE_NETWORK")]
    insecure_network: bool,
}

/// What a node may use.
#[derive(Args, Clone, Debug)]
pub struct Devices {
    /// Batches that run at once [default: cores - 1, at least 1]
    #[arg(long, env = "WEIR_CPU_SLOTS")]
    pub cpu_slots: Option<u32>,
    /// Memory for models, as 8GiB [default: half of the machine's]
    #[arg(long, env = "WEIR_MEMORY")]
    pub memory: Option<String>,
    /// What calls may hold between the stages of their endpoints, all together, as 512MiB [default: 1GiB]
    #[arg(long, env = "WEIR_BETWEEN_STAGES")]
    pub between_stages: Option<String>,
    /// Which batch a device runs when: weir, or for comparison fifo, fixed:size=8,timeout_us=2000, aimd, quantile, greedy,
    /// clockwork, nexus or symphony
    #[arg(long, env = "WEIR_POLICY", default_value = "weir")]
    pub policy: String,
    /// Which deeper stages run when there is too much to do: weir, or for comparison push-out, price, load-indexed, fixed, whole or
    /// reject-only
    #[arg(long, env = "WEIR_TRIAGE", default_value = "weir")]
    pub triage: String,
    /// The core that each slot computes on, as 2,3 or 4-7 (Linux); --cpu-slots need not be given then
    #[arg(long, env = "WEIR_CORES")]
    pub cores: Option<String>,
    /// Make devices slower: 0.1 is ten times
    #[arg(long, env = "WEIR_PACE", default_value_t = 1.0)]
    pub pace: f64,
}

#[derive(Subcommand)]
enum Verb {
    /// Empty a node: its replicas move elsewhere first
    Drain { node: String },
    /// Take a node back
    Undrain { node: String },
}

impl Devices {
    /// The policy that was named.
    pub fn policy(&self) -> Result<Policy, Failure> {
        Policy::parse(&self.policy).map_err(|bad| Failure::Usage(format!("--policy: {bad}")))
    }

    /// The way of triage that was named.
    pub fn triage(&self) -> Result<Method, Failure> {
        Method::parse(&self.triage).map_err(|bad| Failure::Usage(format!("--triage: {bad}")))
    }

    /// The cores that were named; none where none were.
    pub fn cores(&self) -> Result<Vec<u32>, Failure> {
        let Some(text) = &self.cores else { return Ok(Vec::new()) };
        read_cores(text).ok_or_else(|| Failure::Usage(format!("--cores {text}: write them as 2,3 or 4-7, each once")))
    }

    /// Those of the node with this number, of so many: cores are parted among them.
    pub fn share(&self, i: u16, nodes: u16) -> Result<Devices, Failure> {
        let (cores, nodes) = (self.cores()?, usize::from(nodes));
        if cores.len() % nodes != 0 {
            let cores = cores.len();
            return Err(Failure::Usage(format!("--cores: {cores} cores cannot be parted among {nodes} nodes alike")));
        }
        let mut own = cores.chunks((cores.len() / nodes).max(1)).skip(usize::from(i));
        let text = |cores: &[u32]| cores.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        Ok(Devices { cores: own.next().map(text), ..self.clone() })
    }

    /// What was said of memory between stages, or its default.
    pub fn between_stages(&self) -> Result<Bytes, Failure> {
        let Some(text) = &self.between_stages else { return Ok(Bytes(Held::MOST as u64)) };
        let bytes = parse_bytes(text).map(Bytes);
        bytes.ok_or_else(|| Failure::Usage(format!("--between-stages {text}: write it as 1GiB or 512MiB")))
    }

    /// Slots and memory, with their defaults.
    pub fn resolve(&self) -> Result<(u32, Bytes), Failure> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let pinned = self.cores()?.len() as u32;
        let slots = self.cpu_slots.unwrap_or(if pinned > 0 { pinned } else { (cores - 1).max(1) });
        let memory = match &self.memory {
            Some(text) => parse_bytes(text)
                .ok_or_else(|| Failure::Usage(format!("--memory {text}: write it as 8GiB or 512MiB")))?,
            None => machine_memory() / 2,
        };
        Ok((slots, Bytes(memory)))
    }
}

/// Numbers and ranges, with commas between them.
fn read_cores(text: &str) -> Option<Vec<u32>> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u32, u32) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        if from > to || to >= CORES_MAX {
            return None;
        }
        cores.extend(from..=to);
    }
    let each_once = cores.iter().enumerate().all(|(i, core)| !cores[..i].contains(core));
    each_once.then_some(cores)
}

/// More than any machine has.
const CORES_MAX: u32 = 65_536;

/// Memory of this machine; 4 GiB where it does not tell.
fn machine_memory() -> u64 {
    let told = std::fs::read_to_string("/proc/meminfo").ok();
    let kib = told.and_then(|text| text.lines().next()?.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.map_or(4 << 30, |kib| kib * 1024)
}

impl Node {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let drain = |node: &str, draining: bool| {
            let node = NodeName::parse(node).map_err(|bad| Failure::Usage(bad.to_string()))?;
            Ok::<_, Failure>(Command::NodeDrain { node, draining })
        };
        let command = match &self.verb {
            Some(Verb::Drain { node }) => drain(node, true)?,
            Some(Verb::Undrain { node }) => drain(node, false)?,
            None => return self.start(common).await,
        };
        let done = common.admin()?.write(command).await?;
        show(&done.lines, &common);
        Ok(())
    }

    async fn start(self, common: Common) -> Result<(), Failure> {
        let missing = |flag: &str| Failure::Usage(format!("a node needs {flag}; see `weir node --help`"));
        let (cpu_slots, memory) = self.devices.resolve()?;
        let config = Config {
            name: NodeName::parse(&self.name.ok_or_else(|| missing("--name"))?)
                .map_err(|bad| Failure::Usage(bad.to_string()))?,
            data_dir: self.data_dir.ok_or_else(|| missing("--data-dir"))?,
            listen: self.listen,
            advertise: self.advertise,
            coordinators: common.coordinators.clone(),
            token_file: common.token_file.clone().ok_or_else(|| {
                missing("--token-file with the member token (member.token in the founding coordinator's data folder)")
            })?,
            cpu_slots,
            between_stages: self.devices.between_stages()?,
            memory,
            policy: self.devices.policy()?,
            triage: self.devices.triage()?,
            pace: self.devices.pace,
            cores: self.devices.cores()?,
            processor: processor(),
            rpc_threads: rpc_threads(),
            insecure_network: self.insecure_network,
        };
        let open = self.doors.open(config.insecure_network, None).await?;
        let name = config.name.clone();
        let shutdown = until_signal();
        let (started, listening) = oneshot::channel();
        let running = weir_node::run(config, Host::system(), started, shutdown.clone());
        let options = common.options()?;
        let told = async {
            let Ok(mut started) = listening.await else { return std::future::pending().await };
            for (door, address) in open.addresses() {
                println!("{door} {address}");
            }
            println!("node {name} listens on {}", started.address);
            let (ready, serving) = oneshot::channel();
            let doors = open.serve(options, threads(), Some(started.clone()), ready, shutdown);
            let joined = async {
                let joined = started.joined.wait_for(|joined| *joined).await.is_ok();
                if joined && serving.await.is_ok() {
                    println!("ready");
                }
            };
            // A node whose doors fail says so, and ends; else it ends when it has drained.
            let (doors, ()) = tokio::join!(doors, joined);
            match doors {
                Err(error) => Err(Failure::No(chain(&error))),
                Ok(()) => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = running => ended.map_err(|error| Failure::No(chain(&error))),
            failed = told => failed,
        }
    }
}

/// What this machine computes on, as profiles of models are kept by; empty where it does not tell.
pub fn processor() -> String {
    let Machine { cpu, arch, cores, .. } = Machine::here();
    if cpu.is_empty() { cpu } else { format!("{cpu} ({arch}), {cores} cores") }
}

/// Threads for connections: models take the other cores. At least two, on however few: a thread that one connection keeps
/// busy is put off by the kernel, and with it whoever shares it, where a second one that mostly sleeps is run at once.
pub fn rpc_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| (cores.get() / 2).max(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_numbers_and_ranges() {
        assert_eq!(read_cores("2,3"), Some(vec![2, 3]));
        assert_eq!(read_cores("4-7, 1"), Some(vec![4, 5, 6, 7, 1]));
        for text in ["", "a", "3-1", "1,1", "0-2,2", "-1", "0-4000000000"] {
            assert_eq!(read_cores(text), None, "{text}");
        }
    }
}
