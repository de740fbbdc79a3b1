//! A model on a device: its queue, and what is known of it. What follows from profile, rate and replicas is kept in step with
//! them, because every decision reads it of every model.

use std::collections::BTreeMap;

use crate::ids::{ModelRef, ReplicaId, TicketId};
use crate::outcome::Class;
use crate::profile::Profile;
use crate::triage::Curve;
use crate::units::{Deadline, Instant, ServiceTime};

use super::ShapeKey;
use super::distance::Distance;
use super::lane::{Lane, LaneKey};
use super::rate::{Rate, Recent};

/// Rows up to which times are looked up in a table; larger batches are rare, and their times computed.
const TABLE: u32 = 1024;

/// Share of a batch in the running mean of what batches take.
const BATCH_SHARE: f64 = 1.0 / 32.0;

/// A model with its queue. Its replicas do the same work on the same hardware: one profile.
#[derive(Debug)]
pub(super) struct Model {
    pub name: ModelRef,
    pub profile: Profile,
    /// What a row takes as gates count it: as it was measured at load.
    pub counted: ServiceTime,
    /// What its batches take on average, as a part of what is planned by: that is what they take when they take long.
    pub on_average: f64,
    /// The least of its replicas'.
    pub max_batch: u32,
    /// That take new batches.
    pub replicas: Vec<ReplicaId>,
    /// Of them, those that run nothing.
    pub free: u32,
    pub lanes: BTreeMap<LaneKey, Lane>,
    /// All that waits.
    pub backlog: Backlog,
    pub rate: Rate,
    /// Slot time that its batches take, a second: how many slots it has, on average.
    pub has: Recent,
    /// Nanoseconds that a batch takes however small it is, and that a row adds.
    pub line: (f64, f64),
    /// The batch that a backlog leads to: the largest that fits the time queries have behind another one, 2·l(b) ≤ SLO, and is not dear. Of N slots
    /// one is free sooner, but batches that count on it, (1 + 1/N)·l(b) ≤ SLO, leave bursts no time: 8 slots bear 4 % less of them.
    pub steady: usize,
    /// When the first head can no longer be in time even if it ran at once and alone; far where there is none.
    pub hopeless: Instant,
    /// What homes of this node ask of it, apart from what must run.
    pub weighed: Curve,
    /// From the deadline to where its rows are expected to be done.
    pub distance: Distance,
    /// Slots of the device.
    slots: u32,
    /// Time by rows.
    times: Vec<ServiceTime>,
}

/// What waits of a model, and whom all of it is served before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Backlog {
    /// In batches of the size that a backlog leads to.
    pub work: ServiceTime,
    /// The last in order of service.
    latest: Instant,
    /// The least important.
    class: Class,
}

impl Backlog {
    /// Whether all of it is served before what comes now of a class, with this place in the order of service.
    pub fn is_ahead_of(&self, class: Class, key: Instant) -> bool {
        self.class <= class && self.latest <= key
    }
}

impl Model {
    pub fn new(name: ModelRef, profile: Profile, slots: u32) -> Model {
        let counted = ServiceTime::from_nanos((profile.row_seconds() * 1e9) as u64);
        let mut model = Model {
            name,
            profile,
            counted,
            on_average: 1.0,
            max_batch: 1,
            replicas: Vec::new(),
            free: 0,
            lanes: BTreeMap::new(),
            backlog: Backlog::default(),
            rate: Rate::new(),
            has: Recent::new(),
            line: (0.0, 0.0),
            steady: 1,
            hopeless: Instant::FAR,
            weighed: Curve::default(),
            distance: Distance::default(),
            slots,
            times: Vec::new(),
        };
        model.relearn();
        model
    }

    /// Rows that wait.
    pub fn rows(&self) -> usize {
        self.lanes.values().map(Lane::rows).sum()
    }

    /// Those that share batches, of this shape: whatever their class.
    pub fn rows_alike(&self, shape: ShapeKey) -> usize {
        let alike = self.lanes.iter().filter(|(key, _)| !key.alone && key.shape == shape);
        alike.map(|(_, lane)| lane.rows()).sum()
    }

    /// When so many rows may be said to be done that are expected at `finish`: see [`Distance`]. What is critical is let in all the same.
    pub fn promise(&self, now: Instant, finish: Instant, class: Class, rows: usize) -> Instant {
        if class == Class::Critical { finish } else { self.distance.promise(now, finish, self.takes(rows)) }
    }

    /// Time for a batch of `rows` rows.
    pub fn takes(&self, rows: usize) -> ServiceTime {
        match self.times.get(rows) {
            Some(time) => *time,
            None => self.profile.estimate(rows.min(u32::MAX as usize) as u32),
        }
    }

    /// The largest batch of at most `most` rows that ends within `span`; 0 where not even one row does.
    pub fn fits(&self, span: ServiceTime, most: usize) -> usize {
        let most = most.min(self.max_batch as usize);
        if self.takes(most) <= span {
            return most;
        }
        match self.times.get(1..=most) {
            Some(times) => times.partition_point(|time| *time <= span),
            None => self.profile.largest_within(span, most as u32) as usize,
        }
    }

    /// Work of `rows` rows in batches of `batch`.
    pub fn work(&self, rows: usize, batch: usize) -> ServiceTime {
        let batch = batch.max(1);
        // As a rule less waits than a batch, and this is asked of every model for each row that comes.
        if rows < batch {
            return if rows == 0 { ServiceTime::ZERO } else { self.takes(rows) };
        }
        let (whole, rest) = (self.takes(batch).scaled((rows / batch) as f64), rows % batch);
        if rest == 0 { whole } else { whole + self.takes(rest) }
    }

    /// A query came with `span` nanoseconds to its deadline.
    pub fn asked(&mut self, now: Instant, span: f64) {
        let before = self.rate.span();
        self.rate.on_arrival(now, span);
        if self.rate.span() != before {
            self.plan();
        }
    }

    /// A batch of `rows` rows took `took`.
    pub fn observe(&mut self, rows: u32, took: ServiceTime) {
        let planned = self.takes(rows as usize).as_nanos().max(1) as f64;
        self.on_average += BATCH_SHARE * (took.as_nanos() as f64 / planned - self.on_average);
        if self.profile.observe(rows, took) {
            self.relearn();
        }
    }

    /// Its profile alone refuses everything: see [`Profile::forgive`].
    pub fn forgive(&mut self) {
        self.profile.forgive();
        self.relearn();
    }

    /// Its replicas are others now: `free` of them run nothing, and all take `max_batch` rows.
    pub fn replicas_changed(&mut self, free: u32, max_batch: u32) {
        (self.free, self.max_batch) = (free, max_batch);
        self.relearn();
    }

    /// A row has come or gone; whether the `head` of its queue is another now.
    pub fn queue_changed(&mut self, head: bool) {
        self.backlog = self.all_that_waits();
        if head {
            self.heads_changed();
        }
    }

    /// What `backlog` should be.
    pub fn all_that_waits(&self) -> Backlog {
        let latest = self.lanes.values().filter_map(Lane::back).map(|last| last.key).max();
        let class = self.lanes.last_key_value().map(|(key, _)| key.class);
        Backlog {
            work: self.work(self.rows(), self.steady),
            latest: latest.unwrap_or_default(),
            class: class.unwrap_or_default(),
        }
    }

    /// The head of a queue is another, or takes another time.
    fn heads_changed(&mut self) {
        self.hopeless = self.first_hopeless();
    }

    /// What `hopeless` should be.
    pub fn first_hopeless(&self) -> Instant {
        let latest = |lane: &Lane| {
            let head = lane.front().filter(|head| head.deadline != Deadline::NEVER)?;
            let alone = self.takes(head.rows as usize).as_nanos();
            let start = head.deadline.0.as_nanos().checked_sub(alone);
            Some(Instant::from_nanos(start.map_or(0, |start| start + 1)))
        };
        self.lanes.values().filter_map(latest).min().unwrap_or(Instant::FAR)
    }

    /// Adds the rows at the heads of queues that a batch of `target` rows (fewer where fewer wait), run now, would make late.
    pub fn late_heads(&self, now: Instant, target: usize, late: &mut Vec<TicketId>) {
        for (key, lane) in &self.lanes {
            let mut left = lane.len();
            for head in lane.iter() {
                let rows = if key.alone { head.rows as usize } else { self.profile.trim(target.min(left)) };
                if !head.deadline.missed_by(now + self.takes(rows)) {
                    break;
                }
                late.push(head.ticket);
                left -= 1;
            }
        }
    }

    /// Batches of it that run at once, at most.
    pub fn parallel(&self) -> f64 {
        f64::from(self.slots.min(self.replicas.len() as u32).max(1))
    }

    fn relearn(&mut self) {
        // One more than any batch has: whoever asks whether a batch could grow.
        let most = self.max_batch.min(TABLE) + 1;
        self.times.clear();
        self.times.extend((0..=most).map(|rows| self.profile.estimate(rows.max(1))));
        let (alpha, beta) = self.profile.line(self.max_batch);
        self.line = (alpha.as_nanos() as f64, beta.as_nanos() as f64);
        self.plan();
        self.heads_changed();
    }

    fn plan(&mut self) {
        let span = self.rate.span();
        self.steady = if span.is_infinite() {
            self.max_batch as usize
        } else {
            let within = ServiceTime::from_nanos((span / 2.0) as u64);
            self.profile.trim(self.fits(within, self.max_batch as usize).max(1))
        };
        self.backlog = self.all_that_waits();
    }
}
