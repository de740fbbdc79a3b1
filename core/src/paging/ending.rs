//! Memory of what is not here any more: a session ends when its batch has, and until then it takes what it took.

use std::time::Duration;

use crate::ids::ReplicaId;
use crate::units::{Bytes, Instant};

/// So long nothing is put out for what is about to be free anyway. What has not ended by then runs a long batch, or hangs.
pub(super) const SOON: Duration = Duration::from_millis(100);

/// Sessions that end.
#[derive(Clone, Debug, Default)]
pub(super) struct Endings {
    /// In the order in which they began to.
    all: Vec<(ReplicaId, Bytes, Instant)>,
}

impl Endings {
    pub fn begin(&mut self, now: Instant, id: ReplicaId, size: u64) {
        self.all.push((id, Bytes(size), now));
    }

    /// The first of a replica has ended.
    pub fn end(&mut self, id: ReplicaId) {
        if let Some(at) = self.all.iter().position(|(ending, ..)| *ending == id) {
            self.all.remove(at);
        }
    }

    /// Memory that they take.
    pub fn size(&self) -> u64 {
        self.all.iter().map(|(_, size, _)| size.0).sum()
    }

    /// Memory of those that are not expected to end soon.
    pub fn stuck(&self, now: Instant) -> u64 {
        self.all.iter().filter(|(.., since)| now.since(*since) >= SOON).map(|(_, size, _)| size.0).sum()
    }

    /// When the next of the others is not expected to any more; `None` where there is none.
    pub fn soon(&self, now: Instant) -> Option<Instant> {
        self.all.iter().map(|(.., since)| *since + SOON).find(|until| *until > now)
    }
}
