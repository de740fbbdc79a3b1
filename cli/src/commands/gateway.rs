//! `weir gateway`: the open inference protocol in front of a cluster; and the doors that a node opens beside its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use weir_client::{ClientError, Options};
use weir_gateway::metrics::{Group, Sources};
use weir_gateway::{Config, GatewayError, Shared};
use weir_node::Started;

use super::server::until_signal;
use crate::connect::Common;
use crate::failure::{Failure, chain};

/// Serves the open inference protocol in front of a cluster.
#[derive(Args)]
pub struct Gateway {
    /// host:port of HTTP; port 0 takes a free one
    #[arg(long, env = "WEIR_HTTP", default_value = "127.0.0.1:8000")]
    http: String,
    /// host:port of gRPC
    #[arg(long, env = "WEIR_GRPC", default_value = "127.0.0.1:8001")]
    grpc: String,
    /// host:port of metrics and health
    #[arg(long, env = "WEIR_METRICS", default_value = "127.0.0.1:8002")]
    metrics: String,
    /// Threads that serve connections [default: half of the cores]
    #[arg(long, env = "WEIR_THREADS")]
    threads: Option<usize>,
    /// Listen beyond loopback without certificates
    #[arg(long, env = "WEIR_INSECURE_NETWORK")]
    insecure_network: bool,
}

/// Doors of a node beside its own; each is closed where it is not named.
#[derive(Args, Clone, Debug, Default)]
pub struct Doors {
    /// host:port to serve the open inference protocol over HTTP at
    #[arg(long, env = "WEIR_HTTP")]
    pub http: Option<String>,
    /// host:port to serve the open inference protocol over gRPC at
    #[arg(long, env = "WEIR_GRPC")]
    pub grpc: Option<String>,
    /// host:port to serve metrics and health at
    #[arg(long, env = "WEIR_METRICS")]
    pub metrics: Option<String>,
    /// Leave the nv_* names out of the metrics
    #[arg(long, env = "WEIR_NO_NV_METRICS")]
    pub no_nv_metrics: bool,
}

/// Doors that are open, and not served yet.
pub struct Open {
    http: Option<(TcpListener, SocketAddr)>,
    grpc: Option<(TcpListener, SocketAddr)>,
    metrics: Option<(TcpListener, SocketAddr)>,
    shared: Arc<Shared>,
    no_nv_metrics: bool,
    /// A coordinator in the same process.
    coordinator: Option<Group>,
}

impl Doors {
    /// Opens them: who connects waits until they are served. Where one is taken, the flag `instead` is proposed, or else its own.
    pub async fn open(&self, insecure: bool, instead: Option<&'static str>) -> Result<Open, Failure> {
        let bind = |address: Option<String>, flag: &'static str| async move {
            match address {
                Some(address) => weir_gateway::bind(&address, instead.unwrap_or(flag), insecure).await.map(Some),
                None => Ok(None),
            }
        };
        let bound = async {
            let (http, grpc) = (bind(self.http.clone(), "http").await?, bind(self.grpc.clone(), "grpc").await?);
            Ok::<_, GatewayError>((http, grpc, bind(self.metrics.clone(), "metrics").await?))
        };
        let (http, grpc, metrics) = bound.await.map_err(|error| Failure::No(chain(&error)))?;
        Ok(Open { http, grpc, metrics, shared: Arc::default(), no_nv_metrics: self.no_nv_metrics, coordinator: None })
    }
}

impl Open {
    /// Each open door and where it is.
    pub fn addresses(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let doors = [("http", &self.http), ("grpc", &self.grpc), ("metrics", &self.metrics)];
        let doors = doors.map(|(name, door)| Some((name, door.as_ref()?.1)));
        doors.into_iter().flatten()
    }

    /// Metrics tell of this coordinator too.
    pub fn beside(self, coordinator: Option<Group>) -> Open {
        Open { coordinator, ..self }
    }

    /// Serves metrics at once, of this node where there is one, and the protocol until `shutdown`. A coordinator that is not there yet is
    /// waited for.
    pub async fn serve(
        self,
        options: Options,
        threads: usize,
        node: Option<Started>,
        ready: oneshot::Sender<()>,
        shutdown: watch::Receiver<bool>,
    ) -> Result<(), GatewayError> {
        let serves = self.http.is_some() || self.grpc.is_some();
        if let Some((listener, _)) = self.metrics {
            let gateway = serves.then(|| Arc::clone(&self.shared));
            let node = node.as_ref().map(|node| Arc::clone(&node.facts));
            let sources = Sources { node, coordinator: self.coordinator, gateway, without_aliases: self.no_nv_metrics };
            weir_gateway::serve_metrics(listener, sources)?;
        }
        if !serves {
            let _ = ready.send(());
            let mut shutdown = shutdown;
            let _ = shutdown.wait_for(|stop| *stop).await;
            return Ok(());
        }
        let mut stopped = shutdown.clone();
        tokio::select! {
            found = cluster_answers(&options) => found?,
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        }
        let config = Config {
            http: self.http.map(|(listener, _)| listener),
            grpc: self.grpc.map(|(listener, _)| listener),
            options,
            node: node.map(|node| node.in_process),
            threads,
            shared: self.shared,
        };
        weir_gateway::run(config, ready, shutdown).await
    }
}

/// Waits until a coordinator answers; that the token opens nothing is known at once.
async fn cluster_answers(options: &Options) -> Result<(), ClientError> {
    loop {
        match weir_client::LocalClient::connect(weir_host::Host::system(), options.clone()).await {
            Ok(_) => return Ok(()),
            Err(error @ ClientError::Unreachable { .. }) => {
                tracing::info!(%error, "the gateway waits for its cluster");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Threads of a gateway: half of the cores, the others are for models and for the nodes' own connections.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

impl Gateway {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let doors =
            Doors { http: Some(self.http), grpc: Some(self.grpc), metrics: Some(self.metrics), no_nv_metrics: false };
        let open = doors.open(self.insecure_network, None).await?;
        for (door, address) in open.addresses() {
            println!("{door} {address}");
        }
        let (ready, serving) = oneshot::channel();
        let threads = self.threads.unwrap_or_else(threads);
        let running = open.serve(common.options()?, threads, None, ready, until_signal());
        let told = async {
            if serving.await.is_ok() {
                println!("ready");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = running => ended.map_err(|error| Failure::No(chain(&error))),
            () = told => unreachable!("it only tells"),
        }
    }
}
