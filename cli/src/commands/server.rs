//! `weir coordinator`, and what the servers share: stopping by signal.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use weir_coordinator::{Config, SNAPSHOT_EVERY, TICK};
use weir_core::ids::MemberName;
use weir_gateway::GatewayError;
use weir_gateway::metrics::Sources;
use weir_host::Host;

use crate::connect::Common;
use crate::failure::{Failure, chain};

/// Starts a coordinator.
#[derive(Args)]
pub struct Coordinator {
    /// Its name in the group
    #[arg(long, env = "WEIR_NAME")]
    name: String,
    /// Where its log and artifacts are kept
    #[arg(long, env = "WEIR_DATA_DIR")]
    data_dir: PathBuf,
    /// host:port to listen on; port 0 takes a free one
    #[arg(long, env = "WEIR_LISTEN", default_value = "127.0.0.1:7300")]
    listen: String,
    /// host:port that others reach it at [default: where it listens]
    #[arg(long, env = "WEIR_ADVERTISE")]
    advertise: Option<String>,
    /// Coordinators to join through
    #[arg(long, env = "WEIR_JOIN", value_delimiter = ',', conflicts_with = "bootstrap")]
    join: Vec<String>,
    /// Found a cluster (writes admin.token and member.token into the data folder); on a founded one, just start
    #[arg(long, env = "WEIR_BOOTSTRAP")]
    bootstrap: bool,
    /// host:port to serve metrics and health at; closed where it is not named
    #[arg(long, env = "WEIR_METRICS")]
    metrics: Option<String>,
    /// Listen beyond loopback without certificates
    #[arg(long, env = "WEIR_INSECURE_NETWORK")]
    insecure_network: bool,
}

impl Coordinator {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let joins = !self.join.is_empty();
        let config = Config {
            name: MemberName::parse(&self.name).map_err(|bad| Failure::Usage(bad.to_string()))?,
            data_dir: self.data_dir,
            listen: self.listen,
            advertise: self.advertise,
            bootstrap: self.bootstrap,
            join: self.join,
            token_file: common.token_file.filter(|_| joins),
            insecure_network: self.insecure_network,
            tick: TICK,
            snapshot_every: SNAPSHOT_EVERY,
        };
        let failed = |error: GatewayError| Failure::No(chain(&error));
        let metrics = match &self.metrics {
            Some(at) => Some(weir_gateway::bind(at, "metrics", config.insecure_network).await.map_err(failed)?),
            None => None,
        };
        let name = config.name.clone();
        let (started, address) = oneshot::channel();
        let running = weir_coordinator::run(config, Host::system(), started, until_signal());
        let told = async {
            if let Ok(started) = address.await {
                if let Some((listener, address)) = metrics {
                    let sources = Sources { coordinator: Some(started.facts), ..Sources::default() };
                    weir_gateway::serve_metrics(listener, sources).map_err(failed)?;
                    println!("metrics {address}");
                }
                println!("coordinator {name} listens on {}", started.address);
            }
            std::future::pending().await
        };
        tokio::select! {
            ended = running => ended.map_err(|error| Failure::No(chain(&error))),
            failed = told => failed,
        }
    }
}

/// Turns true at the first SIGTERM or SIGINT; at the second the process ends at once.
pub fn until_signal() -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    tokio::task::spawn_local(async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return;
        };
        for first in [true, false] {
            let code = tokio::select! {
                _ = terminate.recv() => 143,
                _ = interrupt.recv() => 130,
            };
            if first {
                stop.send_replace(true);
            } else {
                std::process::exit(code);
            }
        }
    });
    stopped
}
