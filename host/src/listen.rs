//! A listener: counts connections, hands them to the threads that serve them, and drives each to its end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use tokio::sync::mpsc;

use crate::limits::Limits;
use crate::login::{Authority, Caller, door};
use crate::net::{Incoming, Listener, Stream};
use crate::share::Crowd;
use crate::spawn::Place;
use crate::transport::{self, Ended};
use weir_schema::predict_capnp::granted;

/// Drives one accepted connection, which is alone, to its end and says why it ended. The bootstrap object is `authority`'s door.
pub async fn serve(stream: Stream, limits: Limits, authority: Rc<dyn Authority>) -> Ended {
    serve_among(stream, limits, authority, &Crowd::default()).await
}

async fn serve_among(stream: Stream, limits: Limits, authority: Rc<dyn Authority>, crowd: &Crowd) -> Ended {
    let within = limits.login_within;
    let (network, connection) = transport::connect_among(stream, Side::Server, limits, crowd);
    let bootstrap = door(authority, connection.clone());
    let system = RpcSystem::new(network, Some(bootstrap.client));
    let watched = connection.clone();
    let no_login = async move {
        tokio::time::sleep(within).await;
        if watched.is_logged_in() { std::future::pending().await } else { Ended::NoLogin }
    };
    tokio::select! {
        biased;
        ended = transport::drive(system) => {
            let otherwise = match ended {
                Ok(()) => Ended::Closed,
                Err(error) => Ended::Malformed(error.to_string()),
            };
            connection.ended().unwrap_or(otherwise)
        }
        ended = no_login => ended,
    }
}

#[derive(Default)]
struct Counts {
    all: usize,
    before_login: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// How many connections there are, against what a listener allows.
#[derive(Clone)]
pub struct Count {
    counts: Arc<Mutex<Counts>>,
    limits: Limits,
}

impl Count {
    /// None yet.
    pub fn new(limits: Limits) -> Count {
        Count { counts: Arc::default(), limits }
    }

    /// One more, not logged in; `None` where it is one too many.
    pub fn take(&self, address: IpAddr) -> Option<Counted> {
        Counted::take(&self.counts, address, &self.limits)
    }
}

/// One counted connection; leaves the count when dropped.
pub struct Counted {
    counts: Arc<Mutex<Counts>>,
    address: IpAddr,
    logged_in: Cell<bool>,
}

impl Counted {
    fn take(counts: &Arc<Mutex<Counts>>, address: IpAddr, limits: &Limits) -> Option<Counted> {
        let mut locked = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let here = locked.by_address.get(&address).copied().unwrap_or(0);
        if locked.all >= limits.connections || here >= limits.per_address || locked.before_login >= limits.before_login
        {
            return None;
        }
        locked.all += 1;
        locked.before_login += 1;
        locked.by_address.insert(address, here + 1);
        Some(Counted { counts: Arc::clone(counts), address, logged_in: Cell::new(false) })
    }

    /// It is known who it is, or nobody asks.
    pub fn logged_in(&self) {
        if !self.logged_in.replace(true) {
            self.counts.lock().unwrap_or_else(PoisonError::into_inner).before_login -= 1;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.logged_in();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(here) = counts.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

/// A connection at a place; leaves its count when dropped.
struct Here(Arc<AtomicUsize>);

impl Here {
    fn count(at: &Arc<AtomicUsize>) -> Here {
        at.fetch_add(1, Ordering::Relaxed);
        Here(Arc::clone(at))
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts connections for ever and hands each to the place that has the fewest: what one of them floods is the thread of few
/// others. `authority` is called once on each place, and what it makes once for each connection there. A connection over a limit
/// is closed without a word.
pub async fn accept<A>(
    listener: Box<dyn Listener>,
    limits: Limits,
    places: &[Place],
    authority: impl FnOnce() -> A + Clone + Send + 'static,
) where
    A: Fn(SocketAddr) -> Rc<dyn Authority> + Clone + 'static,
{
    let crowd = Crowd::default();
    let serve_at = |place: &Place| {
        // Bounded by the limit of connections, which are counted before they are handed over.
        let (hand, mut handed) = mpsc::unbounded_channel();
        let (limits, authority, crowd) = (limits.clone(), authority.clone(), crowd.clone());
        place.run(move || async move {
            let authority = authority();
            while let Some((incoming, counted, here)) = handed.recv().await {
                let serving = one(incoming, limits.clone(), authority.clone(), counted, crowd.clone());
                tokio::task::spawn_local(async move {
                    let _here: Here = here;
                    serving.await;
                });
            }
        });
        (hand, Arc::new(AtomicUsize::new(0)))
    };
    let serving: Vec<_> = places.iter().map(serve_at).collect();
    accept_each(listener, limits, |incoming, counted| {
        let fewest = serving.iter().min_by_key(|(_, connections)| connections.load(Ordering::Relaxed));
        let (hand, connections) = fewest.expect("a place to serve at");
        // It fails only where the place was stopped, and the process ends.
        let _ = hand.send((incoming, counted, Here::count(connections)));
    })
    .await;
}

/// Likewise, with every connection on this thread.
pub async fn accept_here<A>(listener: Box<dyn Listener>, limits: Limits, authority: A)
where
    A: Fn(SocketAddr) -> Rc<dyn Authority> + Clone + 'static,
{
    let (per_connection, crowd) = (limits.clone(), Crowd::default());
    accept_each(listener, limits, |incoming, counted| {
        tokio::task::spawn_local(one(incoming, per_connection.clone(), authority.clone(), counted, crowd.clone()));
    })
    .await;
}

async fn accept_each(mut listener: Box<dyn Listener>, limits: Limits, mut hand: impl FnMut(Incoming, Counted)) {
    let count = Count::new(limits);
    loop {
        match listener.accept().await {
            Ok(incoming) => match count.take(incoming.peer.ip()) {
                Some(counted) => hand(incoming, counted),
                None => tracing::debug!(peer = %incoming.peer, "refused: too many connections"),
            },
            Err(error) => {
                // Out of file descriptors, as a rule: those that are open go on, and some will end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn one<A>(incoming: Incoming, limits: Limits, authority: A, counted: Counted, crowd: Crowd)
where
    A: Fn(SocketAddr) -> Rc<dyn Authority>,
{
    let peer = incoming.peer;
    match incoming.into_stream() {
        Ok(stream) => {
            let authority = Rc::new(CountingLogin { authority: authority(peer), counted });
            let ended = serve_among(stream, limits, authority, &crowd).await;
            tracing::debug!(%peer, %ended, "connection ended");
        }
        Err(error) => tracing::debug!(%peer, %error, "connection lost before it began"),
    }
}

/// Takes a connection out of the count of those that have not logged in.
struct CountingLogin {
    authority: Rc<dyn Authority>,
    counted: Counted,
}

impl Authority for CountingLogin {
    fn admit(&self, caller: &Caller, granted: granted::Builder<'_>) -> Result<(), String> {
        self.authority.admit(caller, granted)?;
        self.counted.logged_in();
        Ok(())
    }
}

/// Whether `address` is reachable from other machines: those need certificates, or a word that none are wanted.
pub fn is_exposed(address: &SocketAddr) -> bool {
    !address.ip().is_loopback()
}

#[cfg(test)]
mod tests;
