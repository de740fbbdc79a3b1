//! Counts and latencies of the last seconds, in a ring of seconds.

use std::time::Duration;

use super::{ByStage, Record, Worth};
use crate::outcome::Outcome;
use crate::units::Instant;

/// How many whole seconds are told.
pub const WINDOW: usize = 10;
/// Buckets that a power of two is parted into: a quantile is off by 3 % at most.
const PARTS: u32 = 16;
/// The longest latency told apart is 2^27 µs, two minutes: no deadline is that long.
const POWERS: u32 = 23;
/// Length of [`Latencies`].
pub const LATENCY_BUCKETS: usize = (PARTS * (POWERS + 1)) as usize;

/// A histogram of latencies by microseconds, exact to a sixteenth of each power of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies(Vec<u32>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(vec![0; LATENCY_BUCKETS])
    }
}

impl Latencies {
    /// As it travels; counts that are missing are zero, and what is beyond the last bucket is left out.
    pub fn of(counts: impl IntoIterator<Item = u32>) -> Latencies {
        let mut latencies = Latencies::default();
        latencies.0.iter_mut().zip(counts).for_each(|(count, told)| *count = told);
        latencies
    }

    /// By bucket, without the empty ones at the end.
    pub fn counts(&self) -> &[u32] {
        let used = self.0.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        &self.0[..used]
    }

    /// One more.
    pub fn add(&mut self, latency: Duration) {
        let bucket = &mut self.0[bucket(latency)];
        *bucket = bucket.saturating_add(1);
    }

    /// How many lie between bounds that ascend, by the bound above: one more than there are bounds.
    pub fn between(&self, bounds: &[Duration]) -> Vec<u64> {
        let mut counts = vec![0; bounds.len() + 1];
        for (bucket, count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            counts[bounds.partition_point(|bound| *bound < middle(bucket))] += u64::from(*count);
        }
        counts
    }

    /// Those of another too.
    pub fn merge(&mut self, other: &Latencies) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, more)| *mine = mine.saturating_add(*more));
    }

    /// The latency that a share `q` of them does not exceed; `None` where there are none.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let all: u64 = self.0.iter().map(|count| u64::from(*count)).sum();
        let rank = ((all as f64 * q).ceil() as u64).clamp(1, all.max(1));
        let mut seen = 0;
        self.0.iter().enumerate().find_map(|(bucket, count)| {
            seen += u64::from(*count);
            (seen >= rank).then(|| middle(bucket))
        })
    }
}

/// Below 16 µs one bucket each; then sixteen to each power of two.
fn bucket(latency: Duration) -> usize {
    let us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
    let power = us.max(1).ilog2().saturating_sub(PARTS.ilog2());
    ((power * PARTS + (us >> power)) as usize).min(LATENCY_BUCKETS - 1)
}

fn middle(bucket: usize) -> Duration {
    let parts = PARTS as usize;
    if bucket < 2 * parts {
        return Duration::from_micros(bucket as u64);
    }
    let power = (bucket / parts - 1) as u32;
    let from = ((bucket % parts + parts) as u64) << power;
    Duration::from_micros(from + (1 << power) / 2)
}

/// What happened to queries in some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Tally {
    pub arrived: u64,
    pub answered: u64,
    /// Of those answered: before their deadline.
    pub in_time: u64,
    /// Of those answered: by a shallower stage than was wanted.
    pub degraded: u64,
    pub rejected: u64,
    pub expired: u64,
    pub failed: u64,
    /// Of those answered: of how many it is known how likely their answers are right, by calibration.
    pub estimated: u64,
    /// How many of those are expected to be right, in millionths.
    pub right: u64,
    /// What load is expected to have cost, in millionths of a unit of value: see [`Record::forgone`].
    pub forgone: u64,
    /// Answered, by stage.
    pub by_stage: ByStage,
    /// Of those answered, at the home.
    pub latencies: Latencies,
}

impl Tally {
    /// A query ended that was worth so much.
    pub fn ended(&mut self, record: &Record, worth: Worth) {
        self.forgone += (worth.forgone * 1e6) as u64;
        match record.outcome {
            Outcome::Answered => {
                self.answered += 1;
                self.in_time += u64::from(!record.is_late());
                self.degraded += u64::from(record.degraded);
                if let Some(right) = worth.right {
                    self.estimated += 1;
                    self.right += (right * 1e6) as u64;
                }
                if let Some(endpoint) = &record.endpoint {
                    self.by_stage.add(endpoint, record.stage);
                }
                self.latencies.add(record.ended.since(record.arrived));
            }
            Outcome::Rejected(_) => self.rejected += 1,
            Outcome::Expired => self.expired += 1,
            Outcome::Failed | Outcome::Unknown => self.failed += 1,
        }
    }

    /// Those of another too.
    pub fn merge(&mut self, other: &Tally) {
        self.arrived += other.arrived;
        self.answered += other.answered;
        self.in_time += other.in_time;
        self.degraded += other.degraded;
        self.rejected += other.rejected;
        self.expired += other.expired;
        self.failed += other.failed;
        self.estimated += other.estimated;
        self.right += other.right;
        self.forgone += other.forgone;
        self.by_stage.merge(&other.by_stage);
        self.latencies.merge(&other.latencies);
    }

    /// Share of the answers that are expected to be right, by calibration; `None` where nothing is known.
    pub fn accuracy(&self) -> Option<f64> {
        (self.estimated > 0).then(|| self.right as f64 / 1e6 / self.estimated as f64)
    }

    /// Queries that have ended, however.
    pub fn ends(&self) -> u64 {
        self.answered + self.rejected + self.expired + self.failed
    }

    /// Share of those that ended that were answered in time; `None` where none ended.
    pub fn attainment(&self) -> Option<f64> {
        (self.ends() > 0).then(|| self.in_time as f64 / self.ends() as f64)
    }
}

/// The last whole seconds, together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seconds {
    /// How many there are: fewer than [`WINDOW`] where counting has begun since.
    pub seconds: u32,
    /// What happened in them.
    pub tally: Tally,
}

/// A ring of seconds.
#[derive(Clone, Debug)]
pub struct Recent {
    /// The first second that is counted.
    began: u64,
    /// Number of a second and what happened in it; the second's place is its number modulo the length. One more than is told: it is
    /// not over.
    seconds: Vec<(u64, Tally)>,
}

impl Recent {
    /// Counting begins.
    pub fn new(now: Instant) -> Recent {
        let began = second(now);
        Recent { began, seconds: vec![(began, Tally::default()); WINDOW + 1] }
    }

    /// What happens at `now` is counted here.
    pub fn at(&mut self, now: Instant) -> &mut Tally {
        let number = second(now);
        let place = (number % self.seconds.len() as u64) as usize;
        let (of, tally) = &mut self.seconds[place];
        if *of < number {
            *of = number;
            *tally = Tally::default();
        }
        tally
    }

    /// The last whole seconds before `now`: so many, where they have been counted and are still known.
    pub fn read(&self, now: Instant, seconds: usize) -> Seconds {
        let this = second(now);
        let first = this.saturating_sub(seconds.min(WINDOW) as u64).max(self.began);
        let mut read = Seconds { seconds: this.saturating_sub(first) as u32, tally: Tally::default() };
        self.seconds
            .iter()
            .filter(|(number, _)| (first..this).contains(number))
            .for_each(|(_, tally)| read.tally.merge(tally));
        read
    }
}

fn second(now: Instant) -> u64 {
    now.as_nanos() / 1_000_000_000
}
