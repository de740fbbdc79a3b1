//! Connecting to another process and logging in there; or to what stands in this one, without a connection.

use std::rc::Rc;
use std::time::Duration;

use capnp::capability::Response;
use capnp::message::HeapAllocator;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{ImbuedMessageBuilder, RpcSystem};
use tokio::sync::watch;
use weir_schema::control_capnp::{admin, directory, node_home, node_operator, operator};
use weir_schema::predict_capnp::{Purpose, granted, login, predictor, stages};
use weir_schema::raft_capnp::peer;

use crate::Host;
use crate::limits::Limits;
use crate::login::{Authority, Caller, Token};
use crate::transport;

/// What one process says of itself in logs of another.
const SOFTWARE: &str = concat!("weir ", env!("CARGO_PKG_VERSION"));
/// Version of the protocol spoken.
pub const PROTOCOL: u16 = 1;
/// To connect and to be let in, each.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum DialError {
    #[error("cannot connect to {address}: {cause}")]
    Connect { address: String, cause: String },
    #[error("{address} does not answer within {PATIENCE:?}")]
    Silent { address: String },
    #[error("{address}: {message}")]
    Refused { address: String, message: String },
}

impl DialError {
    /// Whether another try, there or elsewhere, may go better with the same token.
    pub fn may_pass(&self) -> bool {
        match self {
            DialError::Connect { .. } | DialError::Silent { .. } => true,
            // Who has not joined its cluster yet says so.
            DialError::Refused { message, .. } => message.contains("ask again"),
        }
    }
}

/// The object that a login granted.
#[allow(missing_docs)]
pub enum Role {
    Predictor(predictor::Client),
    Directory(directory::Client),
    Stages(stages::Client),
    Operator(operator::Client),
    Admin(admin::Client),
    NodeHome(node_home::Client),
    Peer(peer::Client),
    NodeOperator(node_operator::Client),
}

/// Whoever was let in. A connection ends when the last clone is dropped.
#[derive(Clone)]
pub struct Entered(Rc<Held>);

struct Held {
    role: Role,
    server: String,
    told: Told,
    /// None to what stands in this process.
    wire: Option<Wire>,
}

/// A connection, and whether it has ended.
struct Wire {
    closed: watch::Receiver<bool>,
    connection: Closing,
}

/// What the other end says that it reads.
struct Told {
    calls_in_flight: usize,
    bytes_in_flight: usize,
    message_bytes: usize,
}

/// Closes the connection when it is dropped, let in or not: the task that drives it would go on by itself.
struct Closing(transport::Connection);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Entered {
    /// The object that was granted.
    pub fn role(&self) -> &Role {
        &self.0.role
    }

    /// Name of the node or coordinator at the other end.
    pub fn server(&self) -> &str {
        &self.0.server
    }

    /// Calls that the other end reads before it answers any.
    pub fn calls_in_flight(&self) -> usize {
        self.0.told.calls_in_flight
    }

    /// Bytes of calls that the other end reads before it answers any.
    pub fn bytes_in_flight(&self) -> usize {
        self.0.told.bytes_in_flight
    }

    /// Largest message that the other end reads: a larger one would end the connection, and every call on it.
    pub fn message_bytes(&self) -> usize {
        self.0.told.message_bytes
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        // The reason is there before all that belongs to the connection has been taken apart.
        self.0.wire.as_ref().is_some_and(|wire| *wire.closed.borrow() || wire.connection.0.ended().is_some())
    }

    /// Whether another connection should take its place: it has ended, or too many calls were given up on it.
    pub fn is_spent(&self) -> bool {
        self.is_closed() || self.0.wire.as_ref().is_some_and(|wire| wire.connection.0.is_worn_out())
    }

    /// Resolves when the connection has ended; never where there is none.
    pub async fn closed(&self) {
        match &self.0.wire {
            // An error means that the driver is gone, and the connection with it.
            Some(wire) => drop(wire.closed.clone().wait_for(|closed| *closed).await),
            None => std::future::pending().await,
        }
    }
}

/// Connects to `address` and logs in for `purpose`. The connection is driven by a task of this thread's `LocalSet`.
pub async fn enter(
    host: &Host,
    address: &str,
    token: &Token,
    purpose: Purpose,
    limits: &Limits,
) -> Result<Entered, DialError> {
    let address = || address.to_owned();
    let silent = |_| DialError::Silent { address: address() };
    let stream = tokio::time::timeout(PATIENCE, host.net.connect(&address()))
        .await
        .map_err(silent)?
        .map_err(|cause| DialError::Connect { address: address(), cause: cause.to_string() })?;
    let (network, connection) = transport::connect(stream, Side::Client, limits.clone());
    let connection = Closing(connection);
    let mut system = RpcSystem::new(network, None);
    let bootstrap: login::Client = system.bootstrap(Side::Server);
    let (close, closed) = watch::channel(false);
    tokio::task::spawn_local(async move {
        // How it ended is told to whoever waits for an answer; here it only matters that it has.
        let _ = transport::drive(system).await;
        let _ = close.send(true);
    });
    let mut call = bootstrap.login_request();
    let mut request = call.get().init_request();
    request.set_token(token.bytes());
    request.set_software(SOFTWARE);
    request.set_protocol(PROTOCOL);
    request.set_purpose(purpose);
    let response = match tokio::time::timeout(PATIENCE, call.send().promise).await {
        Ok(Ok(response)) => response,
        // Nobody has said no.
        Ok(Err(error)) if error.kind == capnp::ErrorKind::Disconnected => {
            let cause = connection.0.ended().map_or_else(|| remote_text(&error), |ended| ended.to_string());
            return Err(DialError::Connect { address: address(), cause });
        }
        Ok(Err(error)) => return Err(DialError::Refused { address: address(), message: remote_text(&error) }),
        Err(_) => return Err(DialError::Silent { address: address() }),
    };
    // Read once and kept: a message may only be walked so often.
    let read = |response: &Response<login::login_results::Owned>| read_granted(response.get()?.get_granted()?);
    let (role, server, told) =
        read(&response).map_err(|error| DialError::Refused { address: address(), message: error.to_string() })?;
    Ok(Entered(Rc::new(Held { role, server, told, wire: Some(Wire { closed, connection }) })))
}

/// Enters what stands on this thread by its `authority`, as over a connection: the same tokens open the same objects, and messages are as
/// large at most. Nothing is sent or read, so no calls are counted.
pub fn enter_here(authority: &dyn Authority, token: &Token, purpose: Purpose) -> Result<Entered, DialError> {
    let refused = |message: String| DialError::Refused { address: "this process".to_owned(), message };
    let mut message = ImbuedMessageBuilder::new(HeapAllocator::new());
    let mut enter = || {
        let granted = message.get_root::<granted::Builder<'_>>().map_err(|error| error.to_string())?;
        authority.admit(&Caller { token_hash: token.hash(), purpose }, granted)?;
        let granted = message.get_root::<granted::Builder<'_>>().map_err(|error| error.to_string())?;
        read_granted(granted.into_reader()).map_err(|error| error.to_string())
    };
    let (role, server, _) = enter().map_err(refused)?;
    let message_bytes = Limits::default().message_bytes;
    let told = Told { calls_in_flight: usize::MAX, bytes_in_flight: 0, message_bytes };
    Ok(Entered(Rc::new(Held { role, server, told, wire: None })))
}

fn read_granted(granted: granted::Reader<'_>) -> capnp::Result<(Role, String, Told)> {
    let role = match granted.get_role().which()? {
        granted::role::Predictor(client) => Role::Predictor(client?),
        granted::role::Directory(client) => Role::Directory(client?),
        granted::role::Stages(client) => Role::Stages(client?),
        granted::role::Operator(client) => Role::Operator(client?),
        granted::role::Admin(client) => Role::Admin(client?),
        granted::role::NodeHome(client) => Role::NodeHome(client?),
        granted::role::Peer(client) => Role::Peer(client?),
        granted::role::NodeOperator(client) => Role::NodeOperator(client?),
        granted::role::None(()) => return Err(capnp::Error::failed("nothing was granted".into())),
    };
    let told = Told {
        calls_in_flight: granted.get_calls_in_flight() as usize,
        bytes_in_flight: granted.get_bytes_in_flight() as usize,
        message_bytes: granted.get_message_bytes() as usize,
    };
    Ok((role, granted.get_server()?.to_str()?.to_owned(), told))
}

/// What the peer said, without the library's words around it.
pub fn remote_text(error: &capnp::Error) -> String {
    error.extra.strip_prefix("remote exception: ").unwrap_or(&error.extra).to_owned()
}

#[cfg(test)]
mod tests;
