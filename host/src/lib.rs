//! What a process gets from outside: time, chance, a disk, a network, and places where actors run.
//!
//! Everything below `coordinator`, `node` and `client` goes through a [`Host`], so that a test can put another in its
//! place; only here is it decided which clock, disk or socket is behind it. The life of a connection is here too: its
//! limits, its read gate, its gathered writes, and the login that it begins with. A connection may not know models.
pub mod clock;
pub mod dial;
pub mod disk;
pub mod limits;
pub mod lines;
pub mod listen;
pub mod login;
pub mod net;
pub mod random;
pub mod share;
pub mod spawn;
pub mod transport;

use std::sync::Arc;

/// The outside world of one process.
#[derive(Clone)]
pub struct Host {
    /// Monotonic time.
    pub clock: Arc<dyn clock::Clock>,
    /// Files.
    pub disk: Arc<dyn disk::Disk>,
    /// Chance that nobody can foresee.
    pub random: Arc<dyn random::Random>,
    /// Connections.
    pub net: Arc<dyn net::Net>,
    /// Where actors run.
    pub spawn: spawn::Spawn,
}

impl Host {
    /// The machine that this process runs on.
    pub fn system() -> Host {
        Host {
            clock: Arc::new(clock::SystemClock::start()),
            disk: Arc::new(disk::SystemDisk),
            random: Arc::new(random::OsRandom),
            net: Arc::new(net::Tcp),
            spawn: spawn::Spawn::Threads,
        }
    }
}
