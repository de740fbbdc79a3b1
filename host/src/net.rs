//! Connections as byte streams.

use std::io;
use std::net::SocketAddr;

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
        Box::pin(async move {
            let address = resolve(address).await?;
            let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
            // A restarted process takes its port back at once.
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(1024)?;
            Ok(Box::new(tokio::net::TcpListener::from_std(socket.into())?) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let socket = tokio::net::TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            Ok(Stream::from(socket))
        })
    }
}

impl Listener for tokio::net::TcpListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        tokio::net::TcpListener::local_addr(self)
    }

    fn accept(&mut self) -> LocalBoxFuture<'_, io::Result<Incoming>> {
        Box::pin(async {
            let (socket, peer) = tokio::net::TcpListener::accept(self).await?;
            socket.set_nodelay(true)?;
            let socket = socket.into_std()?;
            Ok(Incoming::new(peer, || tokio::net::TcpStream::from_std(socket).map(Stream::from)))
        })
    }
}

async fn resolve(address: &str) -> io::Result<SocketAddr> {
    let none = || io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{address} names no address"));
    tokio::net::lookup_host(address).await?.next().ok_or_else(none)
}
