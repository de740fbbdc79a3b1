//! What a connection that never waits for its answers gets while others ask.
//!
//! The read gate bounds what such a peer costs in memory, not what it costs in processor time: while the gate lets in one call
//! for each that leaves, the peer, its thread and the model's keep a core each, and whoever else asks waits for one. Login tells
//! how many calls may be in flight, and a peer that keeps to it never meets a full gate. One that goes on meeting it floods. While
//! anybody else asks it has one call in flight, and a rest after each: its sends back up, so that its own process rests too.
//! With nobody else there it is served as fast as ever.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Calls that a peer sends from meeting a full gate on, and without a pause, before it floods: four times what may be in flight,
/// so no burst of a peer that then waits. Half as many that find room, one after the other, mean that the gate was full by chance.
const AHEAD: u32 = 256;
/// A peer that sent nothing for so long has waited: longer than a busy machine keeps its sender from a core.
const PAUSE: Duration = Duration::from_millis(20);
/// Others ask until so long after their last call: who asks ten times a second is spared the flood at every call.
const QUIET: Duration = Duration::from_millis(100);
/// Rest after a call, in times of what it took. With one part of 32 for the flood the p99 of who asks beside it stays within a
/// fifth of what it is alone; with one of 16 it barely does (`benches/RESULTS.md`).
const RESTS: u32 = 31;
/// Longest rest: however slow the model, a call a second is served.
const REST_MAX: Duration = Duration::from_secs(1);

/// Who asked last, of the connections of one listener that do not flood. Clones are of the same listener.
#[derive(Clone)]
pub struct Crowd {
    began: Instant,
    last: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

/// Bits for the number of a connection beside the millisecond of its last call, which has the rest: 34 years.
const NUMBER_BITS: u32 = 24;

impl Default for Crowd {
    fn default() -> Self {
        Crowd { began: Instant::now(), last: Arc::default(), connections: Arc::default() }
    }
}

impl Crowd {
    /// A place in it for one more connection.
    pub(crate) fn join(&self) -> Place {
        let joined = self.connections.fetch_add(1, Ordering::Relaxed);
        // Zero is nobody; a number that comes again after so many is, as a rule, of a connection that is gone.
        Place { crowd: self.clone(), number: joined % ((1 << NUMBER_BITS) - 1) + 1 }
    }
}

/// One connection among the others.
pub(crate) struct Place {
    crowd: Crowd,
    number: u64,
}

impl Place {
    /// This one asked and does not flood.
    pub(crate) fn asks(&self, now: Instant) {
        let millisecond = (now - self.crowd.began).as_millis() as u64;
        // Of two threads at once either may be the last: another call follows.
        self.crowd.last.store(millisecond << NUMBER_BITS | self.number, Ordering::Relaxed);
    }

    /// From when on no other asks; `None` where this one was the last that did.
    pub(crate) fn others_quiet_at(&self) -> Option<Instant> {
        let last = self.crowd.last.load(Ordering::Relaxed);
        let (millisecond, number) = (last >> NUMBER_BITS, last % (1 << NUMBER_BITS));
        let another = number != 0 && number != self.number;
        another.then(|| self.crowd.began + Duration::from_millis(millisecond) + QUIET)
    }
}

/// Whether the peer of one connection floods, and since when its last call is served.
#[derive(Default)]
pub(crate) struct Pressure {
    /// Calls since one met a full gate, that one among them.
    ahead: Cell<u32>,
    /// Of them, those since one did so last.
    found_room: Cell<u32>,
    served_since: Cell<Option<Instant>>,
}

impl Pressure {
    /// The peer made a call and found the gate full, or found room.
    pub(crate) fn on_call(&self, gate_is_full: bool) {
        let (ahead, found_room) = match (gate_is_full, self.ahead.get()) {
            (false, 0) => return,
            // Room is what it is given, not what it leaves.
            (false, ahead) if ahead >= AHEAD => return,
            (false, ahead) => (ahead + 1, self.found_room.get() + 1),
            (true, ahead) => (ahead.saturating_add(1), 0),
        };
        self.ahead.set(if found_room < AHEAD / 2 { ahead } else { 0 });
        self.found_room.set(found_room);
    }

    /// The peer sent nothing for so long.
    pub(crate) fn on_nothing_sent(&self, span: Duration) {
        if span >= PAUSE {
            self.ahead.set(0);
            self.served_since.set(None);
        }
    }

    /// Whether a call met a full gate since the peer waited last.
    pub(crate) fn is_any(&self) -> bool {
        self.ahead.get() > 0
    }

    /// Whether the peer floods.
    pub(crate) fn floods(&self) -> bool {
        self.ahead.get() >= AHEAD
    }

    /// A call of a peer that floods was let in.
    pub(crate) fn on_let_in(&self, now: Instant) {
        self.served_since.set(Some(now));
    }

    /// Until when it rests after its last call, which ended now.
    pub(crate) fn rests_until(&self, now: Instant) -> Instant {
        let took = self.served_since.get().map_or(Duration::ZERO, |since| now - since);
        now + took.saturating_mul(RESTS).min(REST_MAX)
    }
}

#[cfg(test)]
mod tests;
