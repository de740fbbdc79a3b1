//! Connections as byte streams.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A network.
pub trait Net: Send + Sync {
    /// Listens on `address` (`host:port`; port 0 takes a free one).
    fn bind<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Box<dyn Listener>>>;
    /// Connects to `address` (`host:port`).
    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>>;
}

/// A listening socket.
pub trait Listener {
    /// Where it listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
    /// The next connection.
    fn accept(&mut self) -> LocalBoxFuture<'_, io::Result<Incoming>>;
}

/// A connection that no executor drives yet: it may go to another thread first.
pub struct Incoming {
    /// Who connected.
    pub peer: SocketAddr,
    open: Box<dyn FnOnce() -> io::Result<Stream> + Send>,
}

impl Incoming {
    /// A connection of `peer`; `open` is called on the executor that is to drive it.
    pub fn new(peer: SocketAddr, open: impl FnOnce() -> io::Result<Stream> + Send + 'static) -> Incoming {
        Incoming { peer, open: Box::new(open) }
    }

    /// The connection, driven by the executor that this is called on.
    pub fn into_stream(self) -> io::Result<Stream> {
        (self.open)()
    }
}

/// The two halves of a connection.
pub struct Stream {
    /// What the peer sends.
    pub reader: Box<dyn AsyncRead + Unpin>,
    /// What the peer gets.
    pub writer: Box<dyn AsyncWrite + Unpin>,
}

impl From<tokio::net::TcpStream> for Stream {
    fn from(socket: tokio::net::TcpStream) -> Stream {
        let (reader, writer) = socket.into_split();
        Stream { reader: Box::new(reader), writer: Box::new(writer) }
    }
}

/// TCP, without the delay that waits for more to send (88 ms a call where it meets delayed acknowledgements).
pub struct Tcp;

impl Net for Tcp {
    fn bind<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move { Ok(Box::new(listen(address).await?) as Box<dyn Listener>) })
    }

    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let socket = tokio::net::TcpStream::connect(address).await?;
            set_options(&socket)?;
            Ok(Stream::from(socket))
        })
    }
}

/// Listens on `address` (`host:port`; port 0 takes a free one), for who speaks a protocol that is not weir's own.
pub async fn listen(address: &str) -> io::Result<tokio::net::TcpListener> {
    let address = resolve(address).await?;
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    // A restarted process takes its port back at once.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    tokio::net::TcpListener::from_std(socket.into())
}

/// Idle for this long, a peer is asked whether it is there; after three questions without an answer, 60 s in all, the
/// connection ends. A machine that lost power would hold its place for ever.
const IDLE: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

/// What every connection has: no delay that waits for more to send, and a look now and then whether the peer is there.
pub fn set_options(socket: &tokio::net::TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(IDLE).with_interval(PROBE_EVERY).with_retries(PROBES);
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

impl Listener for tokio::net::TcpListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        tokio::net::TcpListener::local_addr(self)
    }

    fn accept(&mut self) -> LocalBoxFuture<'_, io::Result<Incoming>> {
        Box::pin(async {
            let (socket, peer) = tokio::net::TcpListener::accept(self).await?;
            set_options(&socket)?;
            let socket = socket.into_std()?;
            Ok(Incoming::new(peer, || tokio::net::TcpStream::from_std(socket).map(Stream::from)))
        })
    }
}

async fn resolve(address: &str) -> io::Result<SocketAddr> {
    let none = || io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{address} names no address"));
    tokio::net::lookup_host(address).await?.next().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_idle_peer_is_asked_whether_it_is_there() {
        let mut listener = Tcp.bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connecting = tokio::net::TcpStream::connect(address);
        let (here, there) = tokio::join!(connecting, listener.accept());
        let (here, _there) = (here.unwrap(), there.unwrap());
        set_options(&here).unwrap();
        let socket = socket2::SockRef::from(&here);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBE_EVERY);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
    }
}
