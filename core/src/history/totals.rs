//! Counts since a node started, of one endpoint: what metrics and the open inference protocol's statistics are made of. They only grow.

use std::collections::BTreeMap;
use std::time::Duration;

use super::record::VisitEnd;
use super::{ByStage, Ever, Record, Tally, Worth};
use crate::outcome::{Class, Outcome, Rejection};

/// Upper bounds of a [`Histogram`]'s buckets, in microseconds; what is above the last one is in a bucket of its own. A deadline of 10,
/// 20, 50, 100 ms or a second is one of them, so that the share that is in time can be read off.
pub const BOUNDS_US: [u64; 20] = [
    100, 250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 50_000, 75_000, 100_000, 200_000,
    500_000, 1_000_000, 2_000_000, 10_000_000,
];

/// How many durations lie between which bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BOUNDS_US.len() + 1],
    /// Of all of them.
    pub sum: Duration,
}

impl Histogram {
    /// One more. A duration that is a bound is below it.
    pub fn add(&mut self, duration: Duration) {
        let us = duration.as_nanos().div_ceil(1_000);
        let bucket = BOUNDS_US.partition_point(|bound| u128::from(*bound) < us);
        self.counts[bucket] += 1;
        self.sum += duration;
    }

    /// By bucket, the last one without a bound.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Calls, each of one or more rows, and the time that they took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Calls {
    pub count: u64,
    pub time: Duration,
}

impl Calls {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }

    /// Those of another too.
    pub fn merge(&mut self, other: &Calls) {
        self.count += other.count;
        self.time += other.time;
    }
}

/// What whoever asks over the open inference protocol is told of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Statistics {
    /// Calls all of whose rows were answered; and the others.
    pub success: Calls,
    pub fail: Calls,
    /// Of calls that were answered: what their rows waited in queues, and were computed on, on average.
    pub queue: Calls,
    pub compute: Calls,
    /// Rows that were answered.
    pub rows: u64,
    /// Batches that they ran in, of the stage that answered: each row is its part of one.
    pub batches: f64,
    /// Since an answer was given last; `None` where none was.
    pub last: Option<Duration>,
}

impl Statistics {
    /// Those of another node, or of an earlier run of this one, too.
    pub fn merge(&mut self, other: &Statistics) {
        self.success.merge(&other.success);
        self.fail.merge(&other.fail);
        self.queue.merge(&other.queue);
        self.compute.merge(&other.compute);
        self.rows += other.rows;
        self.batches += other.batches;
        self.last = match (self.last, other.last) {
            (Some(mine), Some(others)) => Some(mine.min(others)),
            (mine, others) => mine.or(others),
        };
    }
}

/// Counts of an endpoint at its home, by row unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Totals {
    /// From arrival to end, of rows that were answered.
    pub request: Histogram,
    /// What they waited in queues, all stages together.
    pub queue: Histogram,
    /// What batches that they were in were computed for, all stages together.
    pub compute: Histogram,
    /// Of those answered: before the deadline; by a shallower stage than was wanted; by stage.
    pub in_time: u64,
    pub degraded: u64,
    pub by_stage: ByStage,
    /// Calls of stages for a row, whatever came of it; and of those, the ones that a row in time has no answer of.
    pub stage_calls: ByStage,
    pub in_vain: ByStage,
    pub rejected: BTreeMap<(Rejection, Class), u64>,
    pub expired: BTreeMap<Class, u64>,
    pub failed: u64,
    /// Gates that were asked about something that is not a number.
    pub not_numbers: u64,
    /// As in [`super::Tally`].
    pub estimated: u64,
    pub right: f64,
    pub forgone: f64,
    /// By call; `last` stays empty.
    pub calls: Statistics,
    /// Calls whose caller went away first.
    pub cancelled: u64,
    /// Of `calls.fail`: those of which a row ran and failed.
    pub broken: u64,
}

impl Totals {
    /// The figures that are told beside those of the last seconds.
    pub fn ever(&self) -> Ever {
        Ever {
            answered: self.request.count(),
            in_time: self.in_time,
            degraded: self.degraded,
            refused: self.rejected() + self.expired(),
        }
    }

    /// Rejected, for whatever reason.
    pub fn rejected(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// Expired, of whatever class.
    pub fn expired(&self) -> u64 {
        self.expired.values().sum()
    }

    /// All rows of a call have ended; they are counted in a tally of the last seconds too.
    pub fn ended(&mut self, records: &[Record], tally: &mut Tally) {
        // Counted when they end: nobody can say of those under way whether they are in time.
        tally.arrived += records.len() as u64;
        let (mut queue, mut compute, mut took) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        for record in records {
            let worth = record.worth();
            tally.ended(record, worth);
            self.forgone += worth.forgone;
            self.not_numbers += u64::from(record.not_numbers);
            self.stages_called(record);
            let span = record.ended.since(record.arrived);
            took = took.max(span);
            match record.outcome {
                Outcome::Answered => {
                    let (waited, computed) = self.answered(record, worth, span);
                    queue += waited;
                    compute += computed;
                }
                Outcome::Rejected(why) => *self.rejected.entry((why, record.class)).or_default() += 1,
                Outcome::Expired => *self.expired.entry(record.class).or_default() += 1,
                Outcome::Failed | Outcome::Unknown => self.failed += 1,
            }
        }
        let Ok(rows @ 1..) = u32::try_from(records.len()) else { return };
        if records.iter().all(|record| record.outcome == Outcome::Answered) {
            self.calls.success.add(took);
            self.calls.queue.add(queue / rows);
            self.calls.compute.add(compute / rows);
        } else {
            self.calls.fail.add(took);
            let broken = |record: &Record| matches!(record.outcome, Outcome::Failed | Outcome::Unknown);
            self.broken += u64::from(records.iter().any(broken));
        }
    }

    fn stages_called(&mut self, record: &Record) {
        let Some(endpoint) = &record.endpoint else { return };
        let in_time = record.outcome == Outcome::Answered && !record.is_late();
        for visit in record.visits.iter() {
            self.stage_calls.add(endpoint, visit.stage);
            if !(in_time && visit.is_answered()) {
                self.in_vain.add(endpoint, visit.stage);
            }
        }
    }

    /// What a row waited and was computed on.
    fn answered(&mut self, record: &Record, worth: Worth, span: Duration) -> (Duration, Duration) {
        self.request.add(span);
        self.in_time += u64::from(!record.is_late());
        self.degraded += u64::from(record.degraded);
        if let Some(endpoint) = &record.endpoint {
            self.by_stage.add(endpoint, record.stage);
        }
        if let Some(right) = worth.right {
            self.estimated += 1;
            self.right += right;
        }
        self.calls.rows += 1;
        let (mut waited, mut computed) = (Duration::ZERO, Duration::ZERO);
        for visit in record.visits.iter() {
            let Some((_, VisitEnd::Answered { queue, execute, batch })) = visit.end else { continue };
            waited += queue;
            computed += execute;
            if visit.stage == record.stage {
                self.calls.batches += 1.0 / f64::from(batch.map_or(1, |batch| batch.rows.max(1)));
            }
        }
        self.queue.add(waited);
        self.compute.add(computed);
        (waited, computed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::record;
    use crate::history::{Batch, Visit, VisitEnd};
    use crate::ids::NodeName;
    use crate::scheduler::Closed;
    use crate::units::Instant;

    fn visit(stage: usize, queue: u64, execute: u64, rows: u32) -> Visit {
        let ms = Duration::from_millis;
        let batch = Some(Batch { rows, closed: Closed::Full });
        Visit {
            stage,
            node: NodeName::parse("n1").unwrap(),
            device: None,
            sent: Instant::ZERO,
            end: Some((Instant::from_millis(9), VisitEnd::Answered { queue: ms(queue), execute: ms(execute), batch })),
            judged: None,
        }
    }

    #[test]
    fn a_duration_that_is_a_bound_is_below_it() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::from_micros(10_000));
        histogram.add(Duration::from_nanos(10_000_001));
        histogram.add(Duration::from_secs(60));
        let of = |bound: u64| BOUNDS_US.iter().position(|b| *b == bound).unwrap();
        assert_eq!((histogram.counts()[of(10_000)], histogram.counts()[of(15_000)]), (1, 1));
        assert_eq!((histogram.counts().last(), histogram.count()), (Some(&1), 3));
        assert_eq!(histogram.sum, Duration::from_nanos(60_020_000_001));
    }

    #[test]
    fn a_call_is_one_and_its_rows_are_parts_of_batches() {
        let mut totals = Totals::default();
        let row = |queue| Record {
            visits: [visit(0, queue, 4, 4)].into_iter().collect(),
            ended: Instant::from_millis(11),
            ..record(1, Outcome::Answered)
        };
        totals.ended(&[row(2), row(4)], &mut Tally::default());
        assert_eq!((totals.calls.success.count, totals.calls.rows, totals.calls.batches), (1, 2, 0.5));
        assert_eq!(totals.calls.success.time, Duration::from_millis(10));
        assert_eq!(totals.calls.queue, Calls { count: 1, time: Duration::from_millis(3) });
        assert_eq!(totals.calls.compute.time, Duration::from_millis(4));
        assert_eq!((totals.request.count(), totals.queue.sum), (2, Duration::from_millis(6)));
    }

    #[test]
    fn gates_that_were_asked_about_no_number_are_counted_however_it_ended() {
        let mut totals = Totals::default();
        let unsure = |outcome| Record { not_numbers: 2, ..record(1, outcome) };
        totals.ended(&[unsure(Outcome::Answered), record(2, Outcome::Answered)], &mut Tally::default());
        totals.ended(&[unsure(Outcome::Expired)], &mut Tally::default());
        assert_eq!(totals.not_numbers, 4);
    }

    #[test]
    fn a_call_of_which_a_row_is_refused_is_a_failure_and_each_row_is_told_apart() {
        let mut totals = Totals::default();
        let refused = Record { class: Class::Sheddable, ..record(2, Outcome::Rejected(Rejection::TooLate)) };
        totals.ended(&[record(1, Outcome::Answered), refused.clone()], &mut Tally::default());
        totals.ended(&[Record { outcome: Outcome::Failed, ..refused }], &mut Tally::default());
        assert_eq!((totals.calls.fail.count, totals.calls.success.count, totals.broken), (2, 0, 1));
        assert_eq!(totals.rejected[&(Rejection::TooLate, Class::Sheddable)], 1);
        assert_eq!((totals.request.count(), totals.failed, totals.calls.rows), (1, 1, 1));
    }
}
