//! Where the nodes are, as coordinators tell, and this thread's connections to them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use weir_core::ids::NodeName;
use weir_host::Host;
use weir_host::dial::{DialError, Entered, Role, enter, remote_text};
use weir_host::limits::Limits;
use weir_host::login::Token;
use weir_schema::control_capnp::directory;
use weir_schema::predict_capnp::{Purpose, predictor};

use crate::ClientError;

/// How long a coordinator may hold the question for changes.
const WATCH: Duration = Duration::from_secs(10);

/// What is known of the nodes.
pub struct Directory {
    host: Host,
    token: Token,
    coordinators: RefCell<Vec<String>>,
    nodes: RefCell<BTreeMap<NodeName, String>>,
    index: Cell<u64>,
}

impl Directory {
    /// Asks the coordinators once; then [`Directory::follow`] keeps up.
    pub async fn open(host: Host, token: Token, coordinators: Vec<String>) -> Result<Rc<Directory>, ClientError> {
        let directory = Rc::new(Directory {
            host,
            token,
            coordinators: RefCell::new(coordinators),
            nodes: RefCell::default(),
            index: Cell::new(0),
        });
        let tried = directory.coordinators.borrow().clone();
        let mut last = None;
        for address in &tried {
            match directory.ask(address).await {
                Ok(()) => return Ok(directory),
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            Some(DialError::Refused { message, .. }) => ClientError::Refused(message),
            Some(error) => ClientError::Unreachable { tried: tried.join(", "), last: error.to_string() },
            None => ClientError::Invalid("name at least one coordinator".into()),
        })
    }

    async fn ask(&self, address: &str) -> Result<(), DialError> {
        let entered = enter(&self.host, address, &self.token, Purpose::Predict, &Limits::default()).await?;
        self.ask_again(&entered, Duration::ZERO)
            .await
            .map_err(|message| DialError::Refused { address: address.to_owned(), message })
    }

    async fn ask_again(&self, entered: &Entered, wait: Duration) -> Result<(), String> {
        let Role::Directory(directory) = entered.role() else { return Err("this is no coordinator".into()) };
        let mut call = directory.nodes_request();
        call.get().set_known(if wait.is_zero() { 0 } else { self.index.get() });
        call.get().set_wait_us(wait.as_micros() as u64);
        let answer = tokio::time::timeout(wait + Duration::from_secs(2), call.send().promise).await;
        let answer = answer.map_err(|_| "no answer")?.map_err(|error| remote_text(&error))?;
        self.take(answer.get().map_err(|e| e.to_string())?).map_err(|error| error.to_string())
    }

    fn take(&self, results: directory::nodes_results::Reader<'_>) -> Result<(), capnp::Error> {
        let told = results.get_directory()?;
        self.index.set(told.get_index());
        let mut nodes = BTreeMap::new();
        for node in told.get_nodes()? {
            if let Ok(name) = NodeName::parse(node.get_name()?.to_str()?)
                && !node.get_draining()
            {
                nodes.insert(name, node.get_address()?.to_str()?.to_owned());
            }
        }
        *self.nodes.borrow_mut() = nodes;
        let mut coordinators = Vec::new();
        for member in told.get_coordinators()? {
            coordinators.push(member.get_address()?.to_str()?.to_owned());
        }
        if !coordinators.is_empty() {
            // What was configured stays behind what is known: after all have moved, one of those may still be found.
            for address in self.coordinators.borrow().iter() {
                if !coordinators.contains(address) {
                    coordinators.push(address.clone());
                }
            }
            *self.coordinators.borrow_mut() = coordinators;
        }
        Ok(())
    }

    /// Keeps up for ever; `changed` is called after each answer. With no coordinator, what was known last stays.
    pub async fn follow(self: Rc<Self>, changed: impl Fn()) {
        let mut turn = 0;
        loop {
            let address = {
                let coordinators = self.coordinators.borrow();
                coordinators[turn % coordinators.len()].clone()
            };
            turn += 1;
            if let Ok(entered) = enter(&self.host, &address, &self.token, Purpose::Predict, &Limits::default()).await {
                while self.ask_again(&entered, WATCH).await.is_ok() {
                    changed();
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Names of the nodes that take queries.
    pub fn names(&self) -> Vec<NodeName> {
        self.nodes.borrow().keys().cloned().collect()
    }

    /// Address of a node.
    pub fn address(&self, node: &NodeName) -> Option<String> {
        self.nodes.borrow().get(node).cloned()
    }
}

/// A connection to one node, with as many calls at once as the node reads.
#[derive(Clone)]
pub struct Link {
    entered: Entered,
    /// The node's object for queries.
    pub predictor: predictor::Client,
    /// One permit a call: what is beyond waits here, where its deadline is seen, not unread in a socket.
    pub permits: Arc<Semaphore>,
}

/// This thread's connections.
#[derive(Default)]
pub struct Links(RefCell<BTreeMap<NodeName, Rc<Mutex<Option<Link>>>>>);

impl Links {
    /// The connection to a node; dials where there is none.
    pub async fn get(&self, host: &Host, token: &Token, node: &NodeName, address: &str) -> Result<Link, DialError> {
        let slot = Rc::clone(self.0.borrow_mut().entry(node.clone()).or_default());
        let mut slot = slot.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| !link.entered.is_closed()) {
            return Ok(link.clone());
        }
        let entered = enter(host, address, token, Purpose::Predict, &Limits::default()).await?;
        let calls = entered.calls_in_flight().clamp(1, Semaphore::MAX_PERMITS);
        let predictor = match entered.role() {
            Role::Predictor(predictor) => predictor.clone(),
            _ => return Err(DialError::Refused { address: address.to_owned(), message: "this is no node".into() }),
        };
        let link = Link { entered, predictor, permits: Arc::new(Semaphore::new(calls)) };
        Ok(slot.insert(link).clone())
    }
}
