//! A client for any thread: requests go to a thread of its own, answers come back.

use tokio::sync::{mpsc, oneshot};
use weir_core::history::Statistics;
use weir_core::ids::{EndpointName, NodeName};
use weir_host::Host;

use crate::{Answer, ClientError, EndpointInfo, LocalClient, Options, Request};

/// Requests that may wait for the client's thread: it takes them as fast as they can be sent on.
const WAITING_MAX: usize = 4096;

/// A client that is `Send` and cheap to clone. Its thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    asks: mpsc::Sender<Ask>,
}

enum Ask {
    Predict(Request, oneshot::Sender<Vec<Answer>>),
    Describe(EndpointName, oneshot::Sender<Result<EndpointInfo, ClientError>>),
    Nodes(oneshot::Sender<Vec<NodeName>>),
    Endpoints(oneshot::Sender<Vec<EndpointName>>),
    Statistics(EndpointName, oneshot::Sender<Vec<(NodeName, u128, Statistics)>>),
}

impl Client {
    /// Connects from a thread of its own.
    pub async fn connect(options: Options) -> Result<Client, ClientError> {
        let (asks, waiting) = mpsc::channel(WAITING_MAX);
        let (ready, connected) = oneshot::channel();
        std::thread::Builder::new()
            .name("weir-client".into())
            .spawn(move || serve(options, waiting, ready))
            .map_err(|error| ClientError::Invalid(format!("cannot start a thread: {error}")))?;
        connected.await.map_err(|_| ClientError::Closed)??;
        Ok(Client { asks })
    }

    /// A handle to a client of the thread that this is called on, inside a `LocalSet`: for what runs there and has to be `Send` all the
    /// same, as handlers of servers have. It costs no other thread.
    pub fn of(client: LocalClient) -> Client {
        let (asks, waiting) = mpsc::channel(WAITING_MAX);
        tokio::task::spawn_local(answer_all(client, waiting));
        Client { asks }
    }

    /// The nodes that take queries.
    pub async fn nodes(&self) -> Result<Vec<NodeName>, ClientError> {
        self.ask(Ask::Nodes).await
    }

    /// The endpoints that there are, whether this client may query them or not.
    pub async fn endpoints(&self) -> Result<Vec<EndpointName>, ClientError> {
        self.ask(Ask::Endpoints).await
    }

    /// What each node has counted of an endpoint, and by which run of it; nodes that do not answer are left out.
    pub async fn statistics(&self, endpoint: EndpointName) -> Result<Vec<(NodeName, u128, Statistics)>, ClientError> {
        self.ask(|reply| Ask::Statistics(endpoint, reply)).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, ClientError> {
        let (reply, told) = oneshot::channel();
        self.asks.send(ask(reply)).await.map_err(|_| ClientError::Closed)?;
        told.await.map_err(|_| ClientError::Closed)
    }

    /// As [`LocalClient::predict`]. Dropping the future drops the call.
    pub async fn predict(&self, request: Request) -> Result<Vec<Answer>, ClientError> {
        self.ask(|reply| Ask::Predict(request, reply)).await
    }

    /// What an endpoint takes and gives.
    pub async fn describe(&self, endpoint: EndpointName) -> Result<EndpointInfo, ClientError> {
        self.ask(|reply| Ask::Describe(endpoint, reply)).await?
    }
}

fn serve(options: Options, waiting: mpsc::Receiver<Ask>, ready: oneshot::Sender<Result<(), ClientError>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(ClientError::Invalid(format!("cannot start an executor: {error}"))));
            return;
        }
    };
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let client = match LocalClient::connect(Host::system(), options).await {
            Ok(client) => client,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        if ready.send(Ok(())).is_ok() {
            answer_all(client, waiting).await;
        }
    });
}

/// Whoever asked and has gone misses nothing: what is sent to nobody is dropped.
async fn answer_all(client: LocalClient, mut waiting: mpsc::Receiver<Ask>) {
    while let Some(ask) = waiting.recv().await {
        let client = client.clone();
        tokio::task::spawn_local(async move {
            match ask {
                Ask::Predict(request, mut reply) => {
                    tokio::select! {
                        answers = client.predict(&request) => drop(reply.send(answers)),
                        () = reply.closed() => {}
                    }
                }
                Ask::Describe(endpoint, reply) => drop(reply.send(client.describe(&endpoint).await)),
                Ask::Nodes(reply) => drop(reply.send(client.nodes())),
                Ask::Endpoints(reply) => drop(reply.send(client.endpoints())),
                Ask::Statistics(endpoint, reply) => drop(reply.send(client.statistics(&endpoint).await)),
            }
        });
    }
}
