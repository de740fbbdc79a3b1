//! The world of one simulated process: virtual time, chance from a seed, a network that turmoil carries, and actors that
//! share the one thread.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::LocalBoxFuture;
use turmoil::net::{TcpListener, TcpStream};
use weir_core::prng::Prng;
use weir_core::units::Instant;
use weir_host::Host;
use weir_host::clock::Clock;
use weir_host::net::{Incoming, Listener, Net, Stream};
use weir_host::random::Random;
use weir_host::spawn::Spawn;

use super::disk::SimulatedDisk;

/// A process on the machine of `disk`, whose chance follows from `seed`.
pub fn host(seed: u64, disk: &SimulatedDisk) -> Host {
    Host {
        clock: Arc::new(VirtualClock::default()),
        disk: Arc::new(disk.clone()),
        random: Arc::new(Seeded(Mutex::new(Prng::new(seed)))),
        net: Arc::new(Simulated),
        spawn: Spawn::Inline,
    }
}

/// Time since the simulation began, the same on all machines.
#[derive(Default)]
struct VirtualClock {
    last: AtomicU64,
}

impl Clock for VirtualClock {
    fn now(&self) -> Instant {
        // What is dropped in a crash may ask for the time outside of it.
        let now = turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_nanos() as u64);
        Instant::from_nanos(self.last.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

struct Seeded(Mutex<Prng>);

impl Random for Seeded {
    fn fill(&self, bytes: &mut [u8]) {
        let mut prng = self.0.lock().expect("drawing does not panic");
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&prng.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

struct Simulated;

impl Net for Simulated {
    fn bind<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            let port = port.ok_or_else(|| io::Error::other(format!("{address} names no port")))?;
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
            Ok(Box::new(SimulatedListener(listener)) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move { TcpStream::connect(address).await.map(stream) })
    }
}

struct SimulatedListener(TcpListener);

impl Listener for SimulatedListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn accept(&mut self) -> LocalBoxFuture<'_, io::Result<Incoming>> {
        Box::pin(async {
            let (socket, peer) = self.0.accept().await?;
            Ok(Incoming::new(peer, || Ok(stream(socket))))
        })
    }
}

fn stream(socket: TcpStream) -> Stream {
    let (reader, writer) = socket.into_split();
    Stream { reader: Box::new(reader), writer: Box::new(writer) }
}
