//! Bounds on what a stranger can make a process hold. Every default has its reason beside it.

use std::time::Duration;

use weir_schema::predict_capnp::Purpose;

/// Limits of one listener or of the connections that a process makes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest message, in bytes. 16 MiB hold 5,000 images of the demo.
    pub message_bytes: usize,
    /// Largest message before login: a token and two names.
    pub before_login_bytes: usize,
    /// Pointers within pointers; weir's own schema needs 8.
    pub nesting: i32,
    /// Parts of one message; a builder doubles them, so that 16 MiB need 12.
    pub segments: usize,
    /// Calls of one connection that are unanswered. More are not read: 64 keep two cores busy several times over.
    pub calls_in_flight: usize,
    /// Bytes of those calls. Nothing is read, either, while this much waits to be taken by the peer.
    pub bytes_in_flight: usize,
    /// Answers that the peer did not say to have received. A peer that behaves has one for each call in flight.
    pub unfinished_answers: usize,
    /// For the table of a message that was begun, and then for each piece of it: what [`Limits::min_rate`] brings in this time.
    pub unfinished_message: Duration,
    /// Bytes per second that a message must come in at.
    pub min_rate: usize,
    /// How long the peer may take nothing of what waits for it.
    pub send_stall: Duration,
    /// From connecting to login.
    pub login_within: Duration,
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address.
    pub per_address: usize,
    /// Connections that have not logged in.
    pub before_login: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message_bytes: 16 << 20,
            before_login_bytes: 4 << 10,
            nesting: 32,
            segments: 512,
            calls_in_flight: 64,
            bytes_in_flight: 16 << 20,
            unfinished_answers: 1000,
            unfinished_message: Duration::from_secs(5),
            min_rate: 16 << 10,
            send_stall: Duration::from_secs(10),
            login_within: Duration::from_secs(2),
            connections: 10_000,
            per_address: 256,
            before_login: 128,
        }
    }
}

impl Limits {
    /// Limits between members of a cluster, which carry snapshots and artifacts to each other.
    pub fn members() -> Limits {
        Limits { message_bytes: 64 << 20, bytes_in_flight: 128 << 20, ..Limits::default() }
    }

    /// What whoever logs in for this purpose connects with, on its own side.
    pub fn of_caller(purpose: Purpose) -> Limits {
        match purpose {
            Purpose::Predict => Limits::default(),
            Purpose::Operate | Purpose::Member | Purpose::Coordinator => Limits::members(),
        }
    }
}
