//! One replica that may be in memory or not, and what is asked of its model.

use std::collections::VecDeque;
use std::time::Duration;

use super::Query;
use super::decayed::Decayed;
use crate::ids::{ModelRef, ReplicaId};
use crate::units::{Bytes, Instant};

/// Memory of what is asked of a model, in seconds: some queries of whatever is worth keeping come within it, and what was popular some
/// minutes ago is forgotten.
const TAU: u32 = 20;
/// Share of a new query in the running mean of the time that queries have.
const TIME_SHARE: f64 = 1.0 / 16.0;
/// Seconds that a query can wait at most, as far as it counts here.
const TIME_MOST: f64 = 60.0;
/// Share of a new load in the running mean of what loads take, and of how far they are from it.
const LOAD_SHARE: f64 = 0.25;

/// What takes longer than twice what it is known to, and than this, may take for ever.
const OVERDUE: Duration = Duration::from_millis(20);

/// Where a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Out,
    Loading(Instant),
    In,
    /// Out, and its memory is not free yet.
    Leaving,
}

#[derive(Clone, Debug)]
pub(super) struct Page {
    pub model: ModelRef,
    pub size: u64,
    pub stage: Stage,
    /// `None` until it was loaded once.
    pub reload: Option<Reload>,
    /// When it is to be loaded whether anybody asks or not: for the first time, or again where it failed.
    pub due: Option<Instant>,
    /// When it was put out last, and for what.
    pub evicted: Option<(Instant, Option<ModelRef>)>,
    pub loads: u64,
    pub evictions: u64,
}

impl Page {
    pub fn new(model: ModelRef, size: Bytes, due: Instant) -> Page {
        let (stage, due) = (Stage::Out, Some(due));
        Page { model, size: size.0, stage, reload: None, due, evicted: None, loads: 0, evictions: 0 }
    }

    /// Whether it takes memory.
    pub fn is_held(&self) -> bool {
        self.stage != Stage::Out
    }

    /// Whether it can be loaded as soon as somebody asks: it could be before, and did not fail since.
    pub fn is_on_demand(&self) -> bool {
        self.stage == Stage::Out && self.reload.is_some() && self.due.is_none()
    }

    /// What a load takes; nothing where that is not known yet.
    pub fn reload(&self) -> Duration {
        self.reload.map_or(Duration::ZERO, Reload::estimate)
    }
}

/// What loads of a replica take: a running mean and mean deviation, as for round trips (Jacobson, SIGCOMM '88).
#[derive(Clone, Copy, Debug)]
pub(super) struct Reload {
    mean: f64,
    deviation: f64,
}

impl Reload {
    pub fn first(took: Duration) -> Reload {
        Reload { mean: took.as_secs_f64(), deviation: 0.0 }
    }

    pub fn add(&mut self, took: Duration) {
        let off = took.as_secs_f64() - self.mean;
        self.mean += LOAD_SHARE * off;
        self.deviation += LOAD_SHARE * (off.abs() - self.deviation);
    }

    /// What promises are made by.
    pub fn estimate(self) -> Duration {
        Duration::from_secs_f64(self.mean + 2.0 * self.deviation)
    }
}

/// Whether the file of a model is on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Artifact {
    /// From when on it is to be fetched.
    Missing(Instant),
    Fetching(Instant),
    Here,
}

/// What is asked of a model, and who waits for it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Its replicas here.
    pub pages: Vec<ReplicaId>,
    pub artifact: Artifact,
    /// What its last fetch took; `None` where none was needed yet.
    pub fetch: Option<Duration>,
    pub demand: Demand,
    pub waiting: VecDeque<Query>,
    /// Queries that found it out of memory.
    pub cold: u64,
}

impl Asked {
    /// Of a model that nobody has asked for, whose file is `here` or to be fetched.
    pub fn new(now: Instant, here: bool) -> Asked {
        Asked {
            pages: Vec::new(),
            artifact: if here { Artifact::Here } else { Artifact::Missing(now) },
            fetch: None,
            demand: Demand::default(),
            waiting: VecDeque::new(),
            cold: 0,
        }
    }

    /// When its file is here, if that takes as long as the last time; `None` where nobody can say.
    pub fn fetched(&self, now: Instant) -> Option<Instant> {
        match (self.artifact, self.fetch) {
            (Artifact::Here, _) => Some(now),
            (Artifact::Missing(from), Some(takes)) if from <= now => Some(now + takes),
            (Artifact::Fetching(since), Some(takes)) if !is_overdue(now, since, takes) => {
                Some((since + takes).max(now))
            }
            _ => None,
        }
    }
}

/// Whether what `takes` so long takes so much longer that it may take for ever.
pub(super) fn is_overdue(now: Instant, since: Instant, takes: Duration) -> bool {
    now.since(since) > 2 * takes + OVERDUE
}

/// Queries of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Demand {
    queries: Decayed<TAU>,
    /// How long they could wait, in seconds; `None` where none has come.
    time: Option<f64>,
}

impl Demand {
    /// So many queries that can wait so long.
    pub fn add(&mut self, now: Instant, queries: usize, time: Duration) {
        // Of what can wait for ever a minute says enough.
        let time = time.as_secs_f64().min(TIME_MOST);
        self.queries.add(now, queries as f64);
        self.time = Some(self.time.map_or(time, |known| known + TIME_SHARE * (time - known)));
    }

    /// A second.
    pub fn rate(&self, now: Instant) -> f64 {
        self.queries.rate(now)
    }

    /// When the last ones came.
    pub fn last(&self) -> Instant {
        self.queries.last
    }

    /// How long a query can wait, in seconds.
    pub fn time(&self) -> f64 {
        self.time.unwrap_or(TIME_MOST)
    }
}
