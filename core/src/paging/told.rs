//! What operators are told of memory.

use std::time::Duration;

use super::Paging;
use super::page::{Evicted, Stage};
use crate::ids::ReplicaId;
use crate::units::{Bytes, Instant};

/// What one replica does in memory, for operators.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Paged {
    pub resident: Residence,
    pub size: Bytes,
    pub reload: Duration,
    /// Queries of its model a second.
    pub rate: f64,
    /// Queries of its model that found it out of memory, since the node started.
    pub cold: u64,
    pub loads: u64,
    pub evictions: u64,
    pub evicted: Option<Evicted>,
}

/// Whether a replica is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Residence {
    Resident,
    Loading,
    OnDemand,
}

impl Residence {
    /// The word in tables and documents.
    pub const fn word(self) -> &'static str {
        match self {
            Residence::Resident => "resident",
            Residence::Loading => "loading",
            Residence::OnDemand => "on demand",
        }
    }
}

impl Paging {
    /// Every replica, for operators.
    pub fn pages(&self, now: Instant) -> impl Iterator<Item = (ReplicaId, Paged)> {
        self.pages.iter().map(move |(id, page)| {
            let resident = match page.stage {
                Stage::In => Residence::Resident,
                Stage::Loading(_) => Residence::Loading,
                Stage::Out if page.due.is_some() => Residence::Loading,
                Stage::Out | Stage::Leaving => Residence::OnDemand,
            };
            let asked = &self.models[&page.model];
            let paged = Paged {
                resident,
                size: Bytes(page.size),
                reload: page.reload(),
                rate: asked.demand.rate(now),
                cold: asked.cold,
                loads: page.loads,
                evictions: page.evictions,
                evicted: page.evicted.clone(),
            };
            (*id, paged)
        })
    }
}
