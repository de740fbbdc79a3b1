//! Connections: accepted on one thread, served on several, each of which asks the cluster over connections of its own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use futures::stream;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Sleep;
use weir_host::limits::Limits;
use weir_host::listen::{Count, Counted};
use weir_host::net::set_options;

use crate::callers::Callers;
use crate::http::Budget;
use crate::metrics::Counts;
use crate::statistics::Book;

/// Who a request comes from, in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// What all threads share.
pub struct Shared {
    /// Readings of what nodes counted.
    pub book: Book,
    /// Requests by how they ended.
    pub counts: Counts,
    /// Bytes of requests.
    pub budget: Budget,
    /// Bytes of responses that have not been sent.
    pub responses: Budget,
    /// Why it takes no requests, as it was found last.
    unready: watch::Sender<Option<String>>,
    /// It was told to stop.
    stopping: AtomicBool,
    calls: Arc<AtomicUsize>,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            book: Book::default(),
            counts: Counts::default(),
            budget: Budget::default(),
            responses: Budget::default(),
            unready: watch::Sender::new(Some("it has not reached its cluster yet".into())),
            stopping: AtomicBool::new(false),
            calls: Arc::default(),
        }
    }
}

/// Counts a request while it lives.
pub struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    /// One more request.
    pub fn in_flight(&self) -> InFlight {
        self.calls.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(&self.calls))
    }

    /// How many requests there are now.
    pub fn requests(&self) -> usize {
        self.calls.load(Ordering::Acquire)
    }

    /// From now on it is not ready.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.unready.send_replace(Some(STOPPING.into()));
    }

    /// Why it takes no requests now; `None` where it does.
    pub async fn unready(&self, callers: &Callers) -> Option<String> {
        let found = match callers.own().client.nodes().await {
            Ok(nodes) if nodes.is_empty() => Some("the cluster has no node that takes queries".into()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        // It may have been told meanwhile.
        if self.stopping.load(Ordering::Acquire) { Some(STOPPING.into()) } else { found }
    }

    /// Why it takes no requests, as it was found a second ago at most; and whoever wants hears when that changes.
    pub fn found_unready(&self) -> watch::Receiver<Option<String>> {
        self.unready.subscribe()
    }

    /// Finds out again and again, until it is told to stop.
    pub async fn keep_looking(&self, callers: &Callers) {
        while !self.stopping.load(Ordering::Acquire) {
            let found = self.unready(callers).await;
            self.unready.send_if_modified(|known| {
                // Whoever stops it says so after this, or has said so before.
                let found = if self.stopping.load(Ordering::Acquire) { Some(STOPPING.into()) } else { found };
                let changed = *known != found;
                *known = found;
                changed
            });
            let ready = self.unready.borrow().is_none();
            tokio::time::sleep(if ready { LOOK_EVERY } else { LOOK_EVERY / 10 }).await;
        }
    }
}

/// Why it takes no requests once it was told to stop.
const STOPPING: &str = "it is stopping";
/// How often it finds out whether it is still ready, for those who ask where nothing may be waited for; and ten times as often where it is not.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Limits of a listener for strangers who speak HTTP: connections are cheap, and load generators open many from one address.
pub fn limits() -> Limits {
    Limits { per_address: 2048, ..Limits::default() }
}

/// How long the head of a request may take, and how long a connection may be idle between two of them.
const HEAD_WITHIN: Duration = Duration::from_secs(75);

/// A connection that no executor drives yet.
pub struct Accepted {
    socket: std::net::TcpStream,
    peer: SocketAddr,
    counted: Counted,
}

/// Accepts until `stop`, and hands each connection to the next of `threads`.
pub async fn accept(
    listener: TcpListener,
    threads: Vec<mpsc::UnboundedSender<Accepted>>,
    mut stop: watch::Receiver<bool>,
) {
    let count = Count::new(limits());
    let mut turn = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted.and_then(|(socket, peer)| set_options(&socket).map(|()| (socket, peer))) {
            Ok((socket, peer)) => {
                let Some(counted) = count.take(peer.ip()) else {
                    tracing::debug!(%peer, "refused: too many connections");
                    continue;
                };
                // Who it is, each request says.
                counted.logged_in();
                if let Ok(socket) = socket.into_std() {
                    turn += 1;
                    // Bounded by the limit of connections. It fails only where the thread is stopping.
                    let _ = threads[turn % threads.len()].send(Accepted { socket, peer, counted });
                }
            }
            Err(error) => {
                // Out of file descriptors, as a rule: those that are open go on, and some will end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves HTTP/1.1 on this thread's executor until `stop`; then connections end after the request that they carry.
pub async fn http(mut accepted: mpsc::UnboundedReceiver<Accepted>, router: Router, stop: watch::Receiver<bool>) {
    let mut connections = tokio::task::JoinSet::new();
    let mut stopped = stop.clone();
    loop {
        tokio::select! {
            Some(accepted) = accepted.recv() => {
                connections.spawn_local(one(accepted, router.clone(), stop.clone()));
            }
            Some(_) = connections.join_next() => {}
            _ = stopped.wait_for(|stop| *stop) => break,
            else => break,
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn one(accepted: Accepted, router: Router, mut stop: watch::Receiver<bool>) {
    let Ok(socket) = Socket::of(accepted) else { return };
    let peer = socket.peer;
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stop.wait_for(|stop| *stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Connections as tonic takes them.
pub fn incoming(accepted: mpsc::UnboundedReceiver<Accepted>) -> impl futures::Stream<Item = io::Result<Socket>> {
    stream::unfold(accepted, |mut accepted| async move {
        let next = accepted.recv().await?;
        Some((Socket::of(next), accepted))
    })
}

/// How long a peer may take nothing of what is sent to it.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

/// A counted connection, given up where its peer does not read what it asked for.
pub struct Socket {
    stream: TcpStream,
    peer: SocketAddr,
    _counted: Counted,
    /// Since nothing could be written.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    fn of(accepted: Accepted) -> io::Result<Socket> {
        let Accepted { socket, peer, counted } = accepted;
        Ok(Socket { stream: TcpStream::from_std(socket)?, peer, _counted: counted, stuck: None })
    }

    /// Gives up where nothing could be written for too long.
    fn patient<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_WITHIN)));
        match stuck.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl tonic::transport::server::Connected for Socket {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.peer)
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.patient(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.patient(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A thread with an executor of its own, on which `!Send` things may live, until what runs there ends.
pub fn thread<F, T>(name: &str, run: F) -> io::Result<std::thread::JoinHandle<()>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || tokio::task::LocalSet::new().block_on(&runtime, async move { run().await }))
}
