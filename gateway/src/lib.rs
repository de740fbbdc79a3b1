//! Other front doors of a cluster: the open inference protocol over HTTP and gRPC, and a process's metrics and health.
//!
//! A gateway is a client: it predicts with a token of its own for callers on this machine, and with the one that a caller shows for
//! others. Each of its threads has an executor, connections of callers, and connections to the nodes; a request stays on one thread. In a
//! node's process each has a part of that node instead, so that a request crosses no socket on its way there.
//! What is absent: any decision about queries. Deadlines, classes and refusals are the cluster's.
mod callers;
pub mod dashboard;
mod grpc;
mod http;
mod infer;
pub mod metrics;
mod models;
mod refusal;
mod serve;
mod statistics;
pub mod story;
pub mod view;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use weir_client::{ClientError, Options};
use weir_host::listen::is_exposed;
use weir_host::login::InProcess;
use weir_host::net::listen;

pub use crate::serve::Shared;

use crate::callers::Callers;

/// How a gateway is started.
pub struct Config {
    /// Where HTTP is served.
    pub http: Option<TcpListener>,
    /// Where gRPC is served.
    pub grpc: Option<TcpListener>,
    /// How it reaches its cluster, and as whom.
    pub options: Options,
    /// A node in this process, which is asked before others.
    pub node: Option<InProcess>,
    /// Threads that serve connections.
    pub threads: usize,
    /// What it counts, for metrics.
    pub shared: Arc<Shared>,
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum GatewayError {
    #[error("cannot listen on {address}; choose another with --{flag}")]
    Listen {
        address: String,
        flag: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error(
        "{0} is reachable from other machines and there are no certificates; listen on 127.0.0.1, or say --insecure-network"
    )]
    Exposed(SocketAddr),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// How long requests may take to end once it was told to stop.
const DRAIN: Duration = Duration::from_secs(30);
/// How long there is no request before connections that are open all the same are left: what was answered last is sent by then.
const IDLE: Duration = Duration::from_secs(1);
/// How long it is not ready before it takes no more connections: whoever watches has seen it then.
const UNREADY_FIRST: Duration = Duration::from_millis(300);

/// Listens where somebody wants; refuses to be reached from elsewhere without a word.
pub async fn bind(
    address: &str,
    flag: &'static str,
    insecure: bool,
) -> Result<(TcpListener, SocketAddr), GatewayError> {
    let unlistened = |cause| GatewayError::Listen { address: address.to_owned(), flag, cause };
    let listener = listen(address).await.map_err(unlistened)?;
    let bound = listener.local_addr().map_err(unlistened)?;
    match is_exposed(&bound) && !insecure {
        true => Err(GatewayError::Exposed(bound)),
        false => Ok((listener, bound)),
    }
}

/// Runs a gateway until `shutdown` says so; then it is not ready, and ends once its requests have. `ready` hears once it serves; until
/// then connections wait.
pub async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), GatewayError> {
    let (stop, stopped) = watch::channel(false);
    let mut doors: [Vec<mpsc::UnboundedSender<serve::Accepted>>; 2] = Default::default();
    let mut threads = Vec::new();
    for number in 0..config.threads.max(1) {
        let (to_http, http_accepted) = mpsc::unbounded_channel();
        let (to_grpc, grpc_accepted) = mpsc::unbounded_channel();
        doors[0].push(to_http);
        doors[1].push(to_grpc);
        let (shared, stopped) = (Arc::clone(&config.shared), stopped.clone());
        let cluster = (config.options.clone(), config.node.clone());
        let (told, connected) = oneshot::channel();
        let accepted = (http_accepted, grpc_accepted);
        let run = move || serve_on_thread(cluster, shared, accepted, told, stopped, number == 0);
        threads.push(serve::thread(&format!("weir-gateway-{number}"), run).map_err(GatewayError::Thread)?);
        connected.await.map_err(|_| ClientError::Closed)??;
    }
    let mut accepting = tokio::task::JoinSet::new();
    for (listener, threads) in [config.http, config.grpc].into_iter().zip(doors) {
        if let Some(listener) = listener {
            accepting.spawn(serve::accept(listener, threads, stopped.clone()));
        }
    }
    // Nobody waits for it only where the process ends already; nor does an error of the next mean anything else.
    let _ = ready.send(());
    let _ = shutdown.wait_for(|stop| *stop).await;
    config.shared.stop();
    tokio::time::sleep(UNREADY_FIRST).await;
    stop.send_replace(true);
    let drained = async {
        // Whoever watches health, or asks for descriptors, is no request, and may stay for ever.
        let mut idle = tokio::time::Instant::now();
        while !threads.iter().all(std::thread::JoinHandle::is_finished) && idle.elapsed() < IDLE {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if config.shared.requests() > 0 {
                idle = tokio::time::Instant::now();
            }
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("the gateway stopped with requests in flight");
    }
    Ok(())
}

/// Connections of one protocol for one thread.
type Connections = mpsc::UnboundedReceiver<serve::Accepted>;

/// One thread's part: its callers' connections over both protocols.
async fn serve_on_thread(
    (options, node): (Options, Option<InProcess>),
    shared: Arc<Shared>,
    (http_accepted, grpc_accepted): (Connections, Connections),
    ready: oneshot::Sender<Result<(), ClientError>>,
    stopped: watch::Receiver<bool>,
    looks: bool,
) {
    let callers = match Callers::connect(options, node).await {
        Ok(callers) => callers,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if looks {
        let (shared, callers) = (Arc::clone(&shared), callers.clone());
        tokio::task::spawn_local(async move { shared.keep_looking(&callers).await });
    }
    if ready.send(Ok(())).is_err() {
        return;
    }
    let router = http::routes(callers.clone(), Arc::clone(&shared));
    let over_http = serve::http(http_accepted, router, stopped.clone());
    let over_grpc = grpc::serve(serve::incoming(grpc_accepted), callers, shared, stopped);
    let ((), ended) = tokio::join!(over_http, over_grpc);
    if let Err(error) = ended {
        tracing::warn!(%error, "gRPC ended");
    }
}

/// Serves metrics and health on a thread of its own, which nothing that happens to queries holds up, until the process ends.
pub fn serve_metrics(listener: TcpListener, sources: metrics::Sources) -> Result<(), GatewayError> {
    let listener = listener.into_std().map_err(GatewayError::Thread)?;
    let run = move || async move {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        let (to, accepted) = mpsc::unbounded_channel();
        let (_stop, stopped) = watch::channel(false);
        tokio::join!(
            serve::accept(listener, vec![to], stopped.clone()),
            serve::http(accepted, metrics::routes(sources), stopped)
        );
    };
    serve::thread("weir-metrics", run).map(drop).map_err(GatewayError::Thread)
}
