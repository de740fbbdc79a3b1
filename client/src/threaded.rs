//! A client for any thread: requests go to a thread of its own, answers come back.

use tokio::sync::{mpsc, oneshot};
use weir_core::ids::EndpointName;
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

    /// Asks. There is one answer a row (one in all for a whole query), whatever happens. Dropping the future drops the call.
    pub async fn predict(&self, request: Request) -> Result<Vec<Answer>, ClientError> {
        let (reply, answers) = oneshot::channel();
        self.asks.send(Ask::Predict(request, reply)).await.map_err(|_| ClientError::Closed)?;
        answers.await.map_err(|_| ClientError::Closed)
    }

    /// What an endpoint takes and gives.
    pub async fn describe(&self, endpoint: EndpointName) -> Result<EndpointInfo, ClientError> {
        let (reply, info) = oneshot::channel();
        self.asks.send(Ask::Describe(endpoint, reply)).await.map_err(|_| ClientError::Closed)?;
        info.await.map_err(|_| ClientError::Closed)?
    }
}

fn serve(options: Options, mut waiting: mpsc::Receiver<Ask>, ready: oneshot::Sender<Result<(), ClientError>>) {
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
        if ready.send(Ok(())).is_err() {
            return;
        }
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
                }
            });
        }
    });
}
