//! Memory of what is not here any more: a session ends when its batch has, or the load that was to make it, and until then it takes what it
//! took.

use std::time::Duration;

use crate::ids::ReplicaId;
use crate::units::{Bytes, Instant};

/// So long nothing is put out for what is about to be free anyway. What has not ended by then runs a long batch, or hangs.
pub(super) const SOON: Duration = Duration::from_millis(100);

/// Sessions that end.
#[derive(Clone, Debug, Default)]
pub(super) struct Endings(Vec<Ending>);

#[derive(Clone, Copy, Debug)]
struct Ending {
    id: ReplicaId,
    size: Bytes,
    /// It was removed while it was loaded, and that cannot be broken off.
    loads: bool,
    /// When it should have ended.
    by: Instant,
}

impl Endings {
    pub fn begin(&mut self, now: Instant, id: ReplicaId, size: u64) {
        self.0.push(Ending { id, size: Bytes(size), loads: false, by: now + SOON });
    }

    /// One whose load should be done at `done`.
    pub fn begin_load(&mut self, done: Instant, id: ReplicaId, size: u64) {
        self.0.push(Ending { id, size: Bytes(size), loads: true, by: done + SOON });
    }

    /// The first of a replica has ended.
    pub fn end(&mut self, id: ReplicaId) {
        if let Some(at) = self.0.iter().position(|ending| ending.id == id) {
            self.0.remove(at);
        }
    }

    /// Memory that they take.
    pub fn size(&self) -> u64 {
        self.0.iter().map(|ending| ending.size.0).sum()
    }

    /// Memory of those that are not expected to end soon.
    pub fn stuck(&self, now: Instant) -> u64 {
        self.0.iter().filter(|ending| ending.by <= now).map(|ending| ending.size.0).sum()
    }

    /// When the next of the others is not expected to any more; `None` where there is none.
    pub fn soon(&self, now: Instant) -> Option<Instant> {
        self.0.iter().map(|ending| ending.by).filter(|by| *by > now).min()
    }

    /// By when no load of theirs should be under way any more; `None` where none is. One that hangs counts no longer.
    pub fn loads_until(&self, now: Instant) -> Option<Instant> {
        self.0.iter().filter(|ending| ending.loads && ending.by > now).map(|ending| ending.by).max()
    }
}
