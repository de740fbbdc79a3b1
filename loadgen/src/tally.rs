//! Counting while a run goes on. What is kept grows with the run's seconds, not with its queries.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use weir_core::outcome::Outcome;

use crate::hdr::{encode, histogram, micros_at, record};
use crate::result::{Latency, PerEndpoint, PerSecond, SendLag};
use crate::target::{Reply, Stream};

/// Answers that should have come, by the share that came before, where a target is called silent: chance has hardly ever none.
const SILENT_MIN: f64 = 20.0;
/// A target is silent for this share of a run at least, or this long: a server that refuses most answers some in that time.
const SILENT_SHARE: u32 = 10;
const SILENT_LONG: Duration = Duration::from_secs(1);
/// What was not answered is counted by hundredths of a second.
const SILENT_STEP: Duration = Duration::from_millis(10);

/// Different messages, and different stages, that are told apart; a target that makes up more is not kept count of one by one.
const WORDS_MAX: usize = 256;

/// One query that ended, or was given up.
#[derive(Debug)]
pub struct Ended {
    /// Since the start.
    pub intended: Duration,
    /// From then until it was sent; absent in a closed loop.
    pub lag: Option<Duration>,
    /// From the intended instant to its end.
    pub latency: Duration,
    /// Index of its stream.
    pub stream: usize,
    /// What it asked for.
    pub rows: Vec<u32>,
    /// What came of it.
    pub reply: Reply,
}

/// Outcomes, and latencies of what was answered.
#[derive(Clone)]
pub struct Counts {
    /// Answered, rejected, expired, failed, unknown.
    pub outcomes: [u64; 5],
    /// Answered within the deadline.
    pub within: u64,
    /// Nanoseconds, of answered queries.
    pub latency: Histogram<u64>,
    /// The longest, exactly.
    pub longest: Duration,
}

impl Counts {
    fn new() -> Counts {
        Counts { outcomes: [0; 5], within: 0, latency: histogram(), longest: Duration::ZERO }
    }

    /// All queries.
    pub fn offered(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    fn add(&mut self, ended: &Ended, within: bool) {
        let outcome = match ended.reply.outcome {
            Outcome::Answered => 0,
            Outcome::Rejected(_) => 1,
            Outcome::Expired => 2,
            Outcome::Failed => 3,
            Outcome::Unknown => 4,
        };
        self.outcomes[outcome] += 1;
        if outcome == 0 {
            self.within += u64::from(within);
            record(&mut self.latency, ended.latency);
            self.longest = self.longest.max(ended.latency);
        }
    }

    /// Percentiles.
    pub fn percentiles(&self) -> Latency {
        let at = |q| micros_at(&self.latency, q, self.longest);
        Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

struct Second {
    counts: PerSecond,
    /// Until no query of this second can be open any more.
    open: Option<(Histogram<u64>, Duration)>,
}

impl Second {
    fn close(&mut self) {
        if let Some((latency, longest)) = self.open.take()
            && !latency.is_empty()
        {
            self.counts.p50_us = micros_at(&latency, 0.5, longest);
            self.counts.p99_us = micros_at(&latency, 0.99, longest);
            self.counts.histogram = encode(&latency);
        }
    }
}

/// All that a run adds up to.
pub struct Tally {
    streams: Vec<Counts>,
    /// All streams together.
    pub all: Counts,
    seconds: Vec<Second>,
    /// Seconds before this one are closed.
    closed: usize,
    /// Longest from a query's second until its end.
    longest_open: u64,
    lag: Histogram<u64>,
    lag_max: Duration,
    degraded: u64,
    rows_labelled: u64,
    right: u64,
    right_within: u64,
    /// Sum over answered rows of which it is known, and how many.
    expected_right: (f64, u64),
    expected_loss: f64,
    stages: BTreeMap<String, u64>,
    /// By outcome and message.
    errors: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Latencies since the last look.
    recent: Histogram<u64>,
    /// Nanoseconds until a query heard that it was rejected, and the longest.
    rejected: (Histogram<u64>, Duration),
    /// The latest instant of a query that was answered.
    last_answered: Option<Duration>,
    /// How many were not answered since then, by [`SILENT_STEP`] of their instants.
    unanswered: BTreeMap<u128, u64>,
}

fn step(at: Duration) -> u128 {
    at.as_nanos() / SILENT_STEP.as_nanos()
}

fn bump(words: &mut BTreeMap<String, u64>, word: &str) {
    if let Some(count) = words.get_mut(word) {
        *count += 1;
    } else {
        let word = if words.len() < WORDS_MAX { word } else { "others" };
        *words.entry(word.to_owned()).or_default() += 1;
    }
}

impl Tally {
    /// Nothing yet. Every query ends `longest_open` after its instant at the latest.
    pub fn new(streams: usize, longest_open: Duration) -> Tally {
        Tally {
            streams: vec![Counts::new(); streams],
            all: Counts::new(),
            seconds: Vec::new(),
            closed: 0,
            // One for the fraction, one for what waits between threads.
            longest_open: longest_open.as_secs() + 2,
            lag: histogram(),
            lag_max: Duration::ZERO,
            degraded: 0,
            rows_labelled: 0,
            right: 0,
            right_within: 0,
            expected_right: (0.0, 0),
            expected_loss: 0.0,
            stages: BTreeMap::new(),
            errors: BTreeMap::new(),
            recent: histogram(),
            rejected: (histogram(), Duration::ZERO),
            last_answered: None,
            unanswered: BTreeMap::new(),
        }
    }

    /// Counts one.
    pub fn add(&mut self, ended: &Ended, stream: &Stream) {
        let t = ended.intended.as_secs() as usize;
        while self.seconds.len() <= t {
            let counts = PerSecond { t: self.seconds.len() as u64, ..PerSecond::default() };
            self.seconds.push(Second { counts, open: None });
        }
        let now = (ended.intended + ended.latency).as_secs();
        while self.closed < self.seconds.len() && self.closed as u64 + self.longest_open < now {
            self.seconds[self.closed].close();
            self.closed += 1;
        }
        if let Some(lag) = ended.lag {
            record(&mut self.lag, lag);
            self.lag_max = self.lag_max.max(lag);
        }
        let answered = ended.reply.outcome == Outcome::Answered;
        let within = answered && ended.latency <= stream.deadline;
        self.all.add(ended, within);
        self.streams[ended.stream].add(ended, within);
        let second = &mut self.seconds[t];
        second.counts.offered += 1;
        second.counts.price = second.counts.price.max(ended.reply.price);
        if !answered {
            if self.last_answered.is_none_or(|last| ended.intended > last) {
                *self.unanswered.entry(step(ended.intended)).or_default() += 1;
            }
            if matches!(ended.reply.outcome, Outcome::Rejected(_)) {
                record(&mut self.rejected.0, ended.latency);
                self.rejected.1 = self.rejected.1.max(ended.latency);
            }
            bump(self.errors.entry(ended.reply.outcome.word()).or_default(), &ended.reply.message);
            return;
        }
        record(&mut self.recent, ended.latency);
        if self.last_answered.is_none_or(|last| ended.intended > last) {
            self.last_answered = Some(ended.intended);
            self.unanswered = self.unanswered.split_off(&step(ended.intended));
        }
        if t >= self.closed {
            let (latency, longest) = second.open.get_or_insert_with(|| (histogram(), Duration::ZERO));
            record(latency, ended.latency);
            *longest = (*longest).max(ended.latency);
        }
        second.counts.answered += 1;
        second.counts.within_deadline += u64::from(within);
        second.counts.degraded += u64::from(ended.reply.degraded);
        self.degraded += u64::from(ended.reply.degraded);
        second.counts.expected_loss += ended.reply.expected_loss;
        self.expected_loss += ended.reply.expected_loss;
        for (row, reply) in ended.rows.iter().zip(&ended.reply.rows) {
            if let Some(labels) = &stream.labels {
                let right = reply.label == Some(labels[*row as usize]);
                self.rows_labelled += 1;
                second.counts.rows_labelled += 1;
                second.counts.correct += u64::from(right);
                self.right += u64::from(right);
                self.right_within += u64::from(right && within);
            }
            if let Some(expected) = reply.expected_right {
                self.expected_right = (self.expected_right.0 + expected, self.expected_right.1 + 1);
            }
            if !reply.stage.is_empty() {
                bump(&mut self.stages, &reply.stage);
                bump(&mut second.counts.stages, &reply.stage);
            }
        }
    }

    /// p99 in microseconds of what was answered since the last look; none where nothing was.
    pub fn recent_p99(&mut self) -> Option<u64> {
        let p99 = micros_at(&self.recent, 0.99, Duration::from_secs(3600));
        let p99 = (!self.recent.is_empty()).then_some(p99);
        self.recent.reset();
        p99
    }

    /// The instant of the last query that was answered, where the target answered nothing after it until `end` though many were
    /// asked. Not so where it refuses most of a load: of so many it would have answered some.
    pub fn silent_from(&self, end: Duration) -> Option<Duration> {
        let last = self.last_answered?;
        // Those that share the last answer's hundredth of a second may lie before it.
        let after: u64 = self.unanswered.range(step(last) + 1..).map(|(_, count)| count).sum();
        let before = self.all.offered().saturating_sub(after);
        let missing = after as f64 * self.all.outcomes[0] as f64 / before.max(1) as f64;
        let long = end.saturating_sub(last) >= SILENT_LONG.min(end / SILENT_SHARE);
        (missing >= SILENT_MIN && long).then_some(last)
    }

    /// How long rejected queries waited for the word; nothing where none was rejected.
    pub fn rejected_after(&self) -> Option<Latency> {
        let (waits, longest) = &self.rejected;
        let at = |q| micros_at(waits, q, *longest);
        (!waits.is_empty()).then(|| Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        })
    }

    /// How late queries were sent.
    pub fn send_lag(&self) -> SendLag {
        let at = |q| micros_at(&self.lag, q, self.lag_max);
        SendLag { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }

    /// Degraded answers.
    pub fn degraded(&self) -> u64 {
        self.degraded
    }

    /// Right rows over answered ones that have a label; nothing where there are none.
    pub fn accuracy(&self) -> Option<f64> {
        (self.rows_labelled > 0).then(|| self.right as f64 / self.rows_labelled as f64)
    }

    /// Share of the answered rows that calibration expects to be right; nothing where it says nothing.
    pub fn expected_accuracy(&self) -> Option<f64> {
        let (right, rows) = self.expected_right;
        (rows > 0).then(|| right / rows as f64)
    }

    /// What load is expected to have cost those that were answered.
    pub fn expected_loss(&self) -> f64 {
        self.expected_loss
    }

    /// Right rows in time.
    pub fn correct_within(&self) -> u64 {
        self.right_within
    }

    /// Answered rows by stage.
    pub fn stages(&self) -> BTreeMap<String, u64> {
        self.stages.clone()
    }

    /// The most frequent messages.
    pub fn errors(&self) -> Vec<(String, u64)> {
        let mut errors = Vec::new();
        for (outcome, messages) in &self.errors {
            errors.extend(messages.iter().map(|(message, count)| (format!("{outcome}: {message}"), *count)));
        }
        errors.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        errors.truncate(10);
        errors
    }

    /// Each stream; those of one name together.
    pub fn endpoints(&self, streams: &[Stream]) -> BTreeMap<String, PerEndpoint> {
        let mut merged: BTreeMap<&str, (Duration, Counts)> = BTreeMap::new();
        for (stream, counts) in streams.iter().zip(&self.streams) {
            let (deadline, sum) =
                merged.entry(stream.name.as_str()).or_insert_with(|| (stream.deadline, Counts::new()));
            *deadline = (*deadline).min(stream.deadline);
            (0..5).for_each(|i| sum.outcomes[i] += counts.outcomes[i]);
            sum.within += counts.within;
            sum.latency.add(&counts.latency).expect("same bounds");
            sum.longest = sum.longest.max(counts.longest);
        }
        let of = |(name, (deadline, counts)): (&str, (Duration, Counts))| {
            let [answered, rejected, expired, failed, unknown] = counts.outcomes;
            let endpoint = PerEndpoint {
                deadline_us: deadline.as_micros() as u64,
                offered: counts.offered(),
                answered,
                rejected,
                expired,
                failed,
                unknown,
                within_deadline: counts.within,
                attainment: counts.within as f64 / counts.offered().max(1) as f64,
                latency_us: counts.percentiles(),
            };
            (name.to_owned(), endpoint)
        };
        merged.into_iter().map(of).collect()
    }

    /// Every second until `end`, and later ones that had queries.
    pub fn per_second(mut self, end: Duration) -> Vec<PerSecond> {
        let seconds = end.as_nanos().div_ceil(1_000_000_000) as u64;
        for t in self.seconds.len() as u64..seconds {
            self.seconds.push(Second { counts: PerSecond { t, ..PerSecond::default() }, open: None });
        }
        self.seconds
            .into_iter()
            .map(|mut second| {
                second.close();
                second.counts
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_core::tensor::Tensor;

    use super::*;
    use crate::data::Data;

    /// An hour of queries must not hold an hour of histograms, let alone a record of each.
    #[test]
    fn only_seconds_that_may_have_open_queries_hold_a_histogram() {
        let stream = Stream {
            name: "e".into(),
            endpoint: "e".into(),
            data: Arc::new(Data::of(Tensor::f32(&[1, 1], &[0.0]))),
            labels: None,
            label_output: None,
            deadline: Duration::from_millis(50),
        };
        let mut tally = Tally::new(1, Duration::from_millis(2050));
        let reply = Reply { rows: vec![Default::default()], ..Reply::none(Outcome::Answered, "") };
        for i in 0..30_000 {
            let (intended, latency) = (Duration::from_millis(100 * i), Duration::from_millis(i % 40));
            let ended = Ended { intended, lag: None, latency, stream: 0, rows: vec![0], reply: reply.clone() };
            tally.add(&ended, &stream);
            assert!(tally.seconds.iter().rev().skip(6).all(|second| second.open.is_none()));
            assert!(tally.seconds.iter().filter(|second| second.open.is_some()).count() <= 6);
        }
        // One that comes too late for its second's histogram is counted all the same.
        let late = Ended {
            intended: Duration::ZERO,
            lag: None,
            latency: Duration::from_secs(1),
            stream: 0,
            rows: vec![0],
            reply,
        };
        tally.add(&late, &stream);
        assert_eq!(tally.all.offered(), 30_001);
        assert!(tally.rejected_after().is_none());
        let refused = |latency| Ended {
            intended: Duration::from_secs(1),
            lag: None,
            latency,
            stream: 0,
            rows: vec![0],
            reply: Reply::none(Outcome::Rejected(weir_core::outcome::Rejection::TooLate), ""),
        };
        (1..=100).for_each(|ms| tally.add(&refused(Duration::from_millis(ms)), &stream));
        let after = tally.rejected_after().unwrap();
        assert!((after.p50.abs_diff(50_000) < 500, after.max == 100_000) == (true, true), "{after:?}");
        assert_eq!(tally.send_lag().p99, 0);
        let seconds = tally.per_second(Duration::from_secs(3000));
        assert_eq!((seconds.len(), seconds[0].offered, seconds[0].p99_us), (3000, 11, 9_000));
    }
}
