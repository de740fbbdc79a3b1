//! What operators are told of memory.

use std::time::Duration;

use super::Paging;
use super::page::Stage;
use crate::ids::{ModelRef, ReplicaId};
use crate::units::{Bytes, Instant};

/// What one replica does in memory, for operators.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Paged {
    pub residence: Residence,
    pub size: Bytes,
    pub reload: Duration,
    /// Queries of its model a second.
    pub rate: f64,
    /// Queries of its model that found it out of memory, since the node started.
    pub cold: u64,
    pub loads: u64,
    pub evictions: u64,
    /// The last time that it was put out.
    pub evicted: Option<Evicted>,
}

impl Paged {
    /// With another replica of the same model.
    pub fn merge(&mut self, other: &Paged) {
        if self.residence != Residence::Resident {
            self.residence = other.residence;
        }
        self.loads += other.loads;
        self.evictions += other.evictions;
    }
}

/// When a replica was put out of memory, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// How long ago.
    pub ago: Duration,
    /// What was loaded in its place; `None` where what stands here took more memory than was known.
    pub by: Option<ModelRef>,
}

/// The memory of a node as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct MemoryNow {
    pub size: Bytes,
    /// By what is in memory, comes or goes.
    pub taken: Bytes,
    /// By everything that is placed here, if it were in memory.
    pub placed: Bytes,
    /// Share of the time that reloads take.
    pub reloading: f64,
    /// It does little else than load.
    pub thrashes: bool,
    /// How often that has begun since the node started.
    pub thrashings: u64,
}

impl MemoryNow {
    /// Whether models are in memory on demand.
    pub fn is_short(&self) -> bool {
        self.placed > self.size
    }
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
    /// Memory as a whole.
    pub fn now(&self, now: Instant) -> MemoryNow {
        MemoryNow {
            size: Bytes(self.memory),
            taken: Bytes(self.memory - self.free()),
            placed: Bytes(self.all),
            reloading: self.churn.busy(now),
            thrashes: self.thrashes(now),
            thrashings: self.churn.episodes(),
        }
    }

    /// Every replica, for operators.
    pub fn pages(&self, now: Instant) -> impl Iterator<Item = (ReplicaId, Paged)> {
        self.pages.iter().map(move |(id, page)| {
            let residence = match page.stage {
                Stage::In => Residence::Resident,
                Stage::Loading(_) => Residence::Loading,
                Stage::Out if page.due.is_some() => Residence::Loading,
                Stage::Out | Stage::Leaving => Residence::OnDemand,
            };
            let asked = &self.models[&page.model];
            let paged = Paged {
                residence,
                size: Bytes(page.size),
                reload: page.reload(),
                rate: asked.demand.rate(now),
                cold: asked.cold,
                loads: page.loads,
                evictions: page.evictions,
                evicted: page.evicted.as_ref().map(|(at, by)| Evicted { ago: now.since(*at), by: by.clone() }),
            };
            (*id, paged)
        })
    }
}
