//! Where the nodes are, as coordinators tell, and this thread's connections to them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use weir_core::call::Queue;
use weir_core::ids::{EndpointName, NodeName};
use weir_core::units::Instant;
use weir_host::Host;
use weir_host::clock::Clock;
use weir_host::dial::{DialError, Entered, Role, enter, enter_here, remote_text};
use weir_host::limits::Limits;
use weir_host::lines::{Line, Lines};
use weir_host::login::{Authority, Token};
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
    /// Each with the nodes that have what its queries begin with.
    endpoints: RefCell<BTreeMap<EndpointName, Rc<[NodeName]>>>,
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
            endpoints: RefCell::default(),
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
        // By number, those that take no queries too.
        let mut names = Vec::new();
        for node in told.get_nodes()? {
            let name = NodeName::parse(node.get_name()?.to_str()?).ok();
            if let Some(name) = name.clone().filter(|_| !node.get_draining()) {
                nodes.insert(name, node.get_address()?.to_str()?.to_owned());
            }
            names.push(name);
        }
        let (all, mut endpoints) = (told.get_hosts()?, BTreeMap::new());
        for (i, name) in (0..).zip(told.get_endpoints()?) {
            let Ok(name) = EndpointName::parse(name?.to_str()?) else { continue };
            let mut hosts = Vec::new();
            // Of a coordinator of an older build there are none.
            if i < all.len() {
                let told = all.get(i)?.iter().filter_map(|number| names.get(usize::from(number))?.clone());
                hosts.extend(told.filter(|name| nodes.contains_key(name)));
            }
            endpoints.insert(name, hosts.into());
        }
        *self.nodes.borrow_mut() = nodes;
        *self.endpoints.borrow_mut() = endpoints;
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

    /// Whether there is none that takes queries, or one of which `test` is true.
    pub fn any(&self, test: impl FnMut(&NodeName) -> bool) -> bool {
        let nodes = self.nodes.borrow();
        nodes.is_empty() || nodes.keys().any(test)
    }

    /// Names of the endpoints.
    pub fn endpoints(&self) -> Vec<EndpointName> {
        self.endpoints.borrow().keys().cloned().collect()
    }

    /// Names of the nodes that have what an endpoint's queries begin with: none where coordinators do not tell.
    pub fn hosts(&self, endpoint: &EndpointName) -> Rc<[NodeName]> {
        self.endpoints.borrow().get(endpoint).cloned().unwrap_or_default()
    }

    /// Address of a node.
    pub fn address(&self, node: &NodeName) -> Option<String> {
        self.nodes.borrow().get(node).cloned()
    }
}

/// Bytes of one permit of [`Link`]'s: a semaphore does not count to 16 MiB by ones.
const BYTES_A_PERMIT: usize = 1024;

/// A connection to one node, with as many calls at once, and as many bytes of them, as the node reads. What is beyond waits
/// here, where its deadline is seen, not unread in a socket.
#[derive(Clone)]
pub struct Link {
    entered: Entered,
    /// The node's object for queries.
    pub predictor: predictor::Client,
    calls: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
    queue: Rc<RefCell<Queue>>,
}

/// What a call holds while it is in flight.
pub struct Permit<'a>(#[allow(dead_code)] [SemaphorePermit<'a>; 2]);

/// A call that waits; it does not any more once this is dropped.
struct Waits<'a>(&'a RefCell<Queue>);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().gives_up();
    }
}

impl Link {
    fn new(entered: Entered, predictor: predictor::Client) -> Link {
        let calls = entered.calls_in_flight().clamp(1, Semaphore::MAX_PERMITS);
        // An older peer tells no limit, and a node on this thread has none: then calls are all that is counted.
        let told = Some(entered.bytes_in_flight()).filter(|bytes| *bytes > 0);
        let bytes_max = told.map_or(u32::MAX as usize, |bytes| bytes / BYTES_A_PERMIT);
        let bytes_max = bytes_max.clamp(1, (u32::MAX as usize).min(Semaphore::MAX_PERMITS));
        Link {
            entered,
            predictor,
            calls: Arc::new(Semaphore::new(calls)),
            bytes: Arc::new(Semaphore::new(bytes_max)),
            bytes_max: bytes_max as u32,
            queue: Rc::default(),
        }
    }

    /// Largest message that the node reads.
    pub fn message_bytes(&self) -> usize {
        Some(self.entered.message_bytes()).filter(|bytes| *bytes > 0).unwrap_or(usize::MAX)
    }

    /// Waits until a call of so many bytes may be sent. A node reads one that is larger than all that it reads at once. `None` at once where
    /// there is no room, and by how fast those that wait go it would not be answered within `left`.
    pub async fn permit(&self, clock: &dyn Clock, bytes: usize, left: Duration) -> Option<Permit<'_>> {
        let permits = u32::try_from(bytes.div_ceil(BYTES_A_PERMIT)).unwrap_or(u32::MAX).min(self.bytes_max);
        let at_once = || Some(Permit([self.calls.try_acquire().ok()?, self.bytes.try_acquire_many(permits).ok()?]));
        if let Some(permit) = at_once() {
            return Some(permit);
        }
        let now = clock.now();
        if !self.queue.borrow().fits(now, left) {
            return None;
        }
        self.queue.borrow_mut().comes(now);
        let waits = Waits(&self.queue);
        let call = self.calls.acquire().await.expect("never closed");
        let bytes = self.bytes.acquire_many(permits).await.expect("never closed");
        std::mem::forget(waits);
        self.queue.borrow_mut().goes(clock.now());
        Some(Permit([call, bytes]))
    }

    /// A call that was sent was answered after so long.
    pub fn answered(&self, took: Duration) {
        self.queue.borrow_mut().answered(took);
    }

    /// Whether a call with so much time left would wait for its turn, and not be refused: see [`Link::permit`].
    fn has_time_for(&self, now: Instant, left: Duration) -> bool {
        self.has_room() || self.queue.borrow().fits(now, left)
    }

    /// Whether another call may be sent at once.
    fn has_room(&self) -> bool {
        self.calls.available_permits() > 0
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.entered.is_closed()
    }
}

impl Line for Link {
    fn is_spent(&self) -> bool {
        self.entered.is_spent()
    }
}

/// This thread's connections: one to each node, and more where it may and the first ones carry as many calls as their nodes read; none to
/// a node that has a part on this thread.
pub struct Links {
    lines: RefCell<Vec<Rc<Lines<Link>>>>,
    here: RefCell<Option<Here>>,
}

/// A node's part on this thread.
struct Here {
    node: NodeName,
    door: Rc<dyn Authority>,
    /// Once it was entered.
    link: Option<Link>,
}

impl Default for Links {
    fn default() -> Links {
        Links { lines: RefCell::new(vec![Rc::default()]), here: RefCell::default() }
    }
}

impl Links {
    /// From now on as many to each node, at most.
    pub fn allow(&self, lines: usize) {
        self.lines.borrow_mut().resize_with(lines.max(1), Rc::default);
    }

    /// From now on this node is asked through its door here.
    pub fn stand_beside(&self, node: NodeName, door: Rc<dyn Authority>) {
        *self.here.borrow_mut() = Some(Here { node, door, link: None });
    }

    /// A connection to a node that has room for another call, or the last one that there may be; dials where there is none.
    pub async fn get(&self, host: &Host, token: &Token, node: &NodeName, address: &str) -> Result<Link, DialError> {
        if let Some(here) = self.here.borrow_mut().as_mut().filter(|here| here.node == *node) {
            return match &here.link {
                Some(link) => Ok(link.clone()),
                None => {
                    let entered = enter_here(&*here.door, token, Purpose::Predict)?;
                    Ok(here.link.insert(link_of(entered, address)?).clone())
                }
            };
        }
        let mut number = 0;
        loop {
            let (lines, more) = {
                let all = self.lines.borrow();
                (Rc::clone(&all[number.min(all.len() - 1)]), number + 1 < all.len())
            };
            let dial = || {
                let (host, token, address) = (host.clone(), token.clone(), address.to_owned());
                async move { dial(&host, &token, &address).await }
            };
            let link = lines.get(node, address, dial).await?;
            if !more || link.has_room() {
                return Ok(link);
            }
            number += 1;
        }
    }

    /// Whether a call with so much time left may be sent to a node, by what is known of the connections to it.
    pub fn has_time_for(&self, now: Instant, node: &NodeName, left: Duration) -> bool {
        if self.here.borrow().as_ref().is_some_and(|here| here.node == *node) {
            return true;
        }
        let lines = self.lines.borrow();
        lines.iter().any(|lines| lines.look(node, |link| link.has_time_for(now, left)).unwrap_or(true))
    }

    /// Lets go of the connections to a node that does not answer.
    pub fn forget(&self, node: &NodeName) {
        self.lines.borrow().iter().for_each(|lines| lines.forget(node));
    }
}

async fn dial(host: &Host, token: &Token, address: &str) -> Result<Link, DialError> {
    link_of(enter(host, address, token, Purpose::Predict, &Limits::default()).await?, address)
}

fn link_of(entered: Entered, address: &str) -> Result<Link, DialError> {
    match entered.role() {
        Role::Predictor(predictor) => {
            let predictor = predictor.clone();
            Ok(Link::new(entered, predictor))
        }
        _ => Err(DialError::Refused { address: address.to_owned(), message: "this is no node".into() }),
    }
}
