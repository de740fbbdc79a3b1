//! One run: draws the schedule, sends, waits for what is open, counts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use weir_core::outcome::Outcome;
use weir_core::prng::Prng;
use weir_core::workload::Arrivals;

use crate::result::{Latency, PerSecond, RunResult, SendLag};
use crate::target::{Reply, Target};

/// How queries are sent.
#[derive(Clone, Copy, Debug)]
pub enum Loop {
    /// At the instants of a process, whatever has come back.
    Open {
        /// The process.
        arrivals: Arrivals,
        /// Queries per second.
        rate: f64,
    },
    /// So many callers, each waiting for its answer before it asks again. Hides a server's stalls: say so aloud.
    Closed(usize),
}

/// A run.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// What is measured, for the record.
    pub target: String,
    /// Likewise.
    pub endpoint: String,
    /// How queries are sent.
    pub sending: Loop,
    /// How long.
    pub duration: Duration,
    /// Of each query.
    pub deadline: Duration,
    /// Decides instants and rows.
    pub seed: u64,
    /// Rows of the data.
    pub rows: usize,
    /// The right answer for each row.
    pub labels: Option<Vec<i64>>,
}

/// Why a run cannot be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LoadError {
    #[error("the data has no rows")]
    NoRows,
    #[error("there are {labels} labels for {rows} rows")]
    Labels { labels: usize, rows: usize },
    #[error(
        "{rate} queries a second for {seconds} s are more than the {QUERIES_MAX} that one run keeps count of; make it shorter or slower"
    )]
    TooMany { rate: f64, seconds: f64 },
    #[error("cannot start the pacing thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Queries of one run: each is remembered until it ends, and its instant was drawn before the run.
pub const QUERIES_MAX: usize = 20_000_000;
/// Queries that are open when the run ends are waited for this much longer than their deadline.
const PATIENCE: Duration = Duration::from_secs(2);
/// The generator may be late by this share of the deadline at its 99th percentile.
const LAG_SHARE: f64 = 0.05;

/// One query that ended, or was given up.
struct Ended {
    intended: Duration,
    latency: Duration,
    row: usize,
    reply: Reply,
}

/// Makes a run. Needs a `LocalSet` around it.
pub async fn run(config: &RunConfig, target: Rc<dyn Target>) -> Result<RunResult, LoadError> {
    if config.rows == 0 {
        return Err(LoadError::NoRows);
    }
    if let Some(labels) = config.labels.as_ref().filter(|labels| labels.len() != config.rows) {
        return Err(LoadError::Labels { labels: labels.len(), rows: config.rows });
    }
    let mut prng = Prng::new(config.seed);
    let (ended, lags) = match config.sending {
        Loop::Open { arrivals, rate } => {
            let seconds = config.duration.as_secs_f64();
            if rate * seconds > QUERIES_MAX as f64 {
                return Err(LoadError::TooMany { rate, seconds });
            }
            let end = weir_core::units::Instant::ZERO + config.duration;
            let instants = arrivals.instants(rate, prng.fork()).take_while(|at| *at < end);
            let schedule: Vec<Duration> = instants.map(|at| at.since(weir_core::units::Instant::ZERO)).collect();
            open_loop(config, target, schedule, prng).await?
        }
        Loop::Closed(callers) => (closed_loop(config, target, callers, prng).await, Vec::new()),
    };
    Ok(count(config, ended, lags))
}

/// Hands out the indices of due queries, from a thread that does nothing else: a timer of the executor is a millisecond
/// coarse and waits its turn.
fn pace(start: Instant, schedule: &[Duration], due: &mpsc::UnboundedSender<usize>) {
    /// A sleep ends this much late at worst on a quiet machine; what is left is spun away.
    const SPIN: Duration = Duration::from_micros(60);
    for (i, at) in schedule.iter().enumerate() {
        loop {
            let left = at.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            if left > SPIN {
                std::thread::sleep(left - SPIN);
            } else {
                std::hint::spin_loop();
            }
        }
        if due.send(i).is_err() {
            return;
        }
    }
}

async fn open_loop(
    config: &RunConfig,
    target: Rc<dyn Target>,
    schedule: Vec<Duration>,
    mut prng: Prng,
) -> Result<(Vec<Ended>, Vec<Duration>), LoadError> {
    let rows = draw_rows(config.rows, schedule.len(), &mut prng);
    // Unbounded, but holds at most the schedule, which is in memory anyway.
    let (due, mut queries) = mpsc::unbounded_channel();
    // Time to start the thread before the first query is due.
    let start = Instant::now() + Duration::from_millis(20);
    let pacing = schedule.clone();
    std::thread::Builder::new().name("weir-pace".into()).spawn(move || pace_from(start, &pacing, &due))?;
    let ended: Rc<RefCell<Vec<Option<Ended>>>> = Rc::new(RefCell::new(schedule.iter().map(|_| None).collect()));
    let mut lags = Vec::with_capacity(schedule.len());
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(i) = queries.recv().await {
        let (intended, row, deadline) = (schedule[i], rows[i], config.deadline);
        let lag = (start + intended).elapsed();
        lags.push(lag);
        // What the generator lost is not the server's to make up for, but counts as latency all the same.
        let asked = target.ask(row, deadline.saturating_sub(lag).max(Duration::from_micros(1)));
        let ended = Rc::clone(&ended);
        tasks.spawn_local(async move {
            let reply = asked.await;
            ended.borrow_mut()[i] = Some(Ended { intended, latency: (start + intended).elapsed(), row, reply });
        });
        while tasks.try_join_next().is_some() {}
    }
    let rest = async { while tasks.join_next().await.is_some() {} };
    let gave_up = tokio::time::timeout(config.deadline + PATIENCE, rest).await.is_err();
    let lost = |i: usize| Ended {
        intended: schedule[i],
        latency: (start + schedule[i]).elapsed(),
        row: rows[i],
        reply: Reply {
            outcome: Outcome::Unknown,
            label: None,
            stage: String::new(),
            degraded: false,
            message: if gave_up {
                "no answer when the run ended".into()
            } else {
                "its task ended without an answer".into()
            },
        },
    };
    let ended = ended.take().into_iter().enumerate().map(|(i, ended)| ended.unwrap_or_else(|| lost(i))).collect();
    Ok((ended, lags))
}

/// Rows in an order drawn anew for each pass over the data, so that every row is asked for as often as any other.
fn draw_rows(rows: usize, queries: usize, prng: &mut Prng) -> Vec<usize> {
    let mut drawn = Vec::with_capacity(queries);
    while drawn.len() < queries {
        let mut pass: Vec<usize> = (0..rows).collect();
        for i in (1..rows).rev() {
            pass.swap(i, prng.below(i as u64 + 1) as usize);
        }
        drawn.extend(pass.into_iter().take(queries - drawn.len()));
    }
    drawn
}

fn pace_from(start: Instant, schedule: &[Duration], due: &mpsc::UnboundedSender<usize>) {
    std::thread::sleep(start.saturating_duration_since(Instant::now()));
    pace(start, schedule, due);
}

async fn closed_loop(config: &RunConfig, target: Rc<dyn Target>, callers: usize, mut prng: Prng) -> Vec<Ended> {
    let start = Instant::now();
    let ended: Rc<RefCell<Vec<Ended>>> = Rc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers.max(1) {
        let (target, ended, mut prng) = (Rc::clone(&target), Rc::clone(&ended), prng.fork());
        let (duration, deadline, rows) = (config.duration, config.deadline, config.rows);
        tasks.spawn_local(async move {
            while start.elapsed() < duration {
                let row = prng.below(rows as u64) as usize;
                let intended = start.elapsed();
                let reply = target.ask(row, deadline).await;
                ended.borrow_mut().push(Ended { intended, latency: start.elapsed() - intended, row, reply });
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    ended.take()
}

fn histogram() -> Histogram<u64> {
    // A microsecond to an hour, at three digits.
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("valid bounds")
}

fn micros(span: Duration) -> u64 {
    span.as_micros().min(3_600_000_000) as u64
}

fn count(config: &RunConfig, ended: Vec<Ended>, lags: Vec<Duration>) -> RunResult {
    let mut latency = histogram();
    let mut by_second: BTreeMap<u64, (PerSecond, Histogram<u64>)> = BTreeMap::new();
    let mut outcomes: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut stages: BTreeMap<String, u64> = BTreeMap::new();
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    let (mut within, mut degraded, mut right, mut right_within) = (0u64, 0u64, 0u64, 0u64);
    for query in &ended {
        *outcomes.entry(query.reply.outcome.word()).or_default() += 1;
        let t = query.intended.as_secs();
        let (second, second_latency) =
            by_second.entry(t).or_insert_with(|| (PerSecond { t, ..PerSecond::default() }, histogram()));
        second.offered += 1;
        if query.reply.outcome != Outcome::Answered {
            *errors.entry(format!("{}: {}", query.reply.outcome.word(), query.reply.message)).or_default() += 1;
            continue;
        }
        let us = micros(query.latency);
        latency.saturating_record(us);
        second_latency.saturating_record(us);
        second.answered += 1;
        let in_time = query.latency <= config.deadline;
        let is_right = config.labels.as_ref().is_some_and(|labels| query.reply.label == Some(labels[query.row]));
        within += u64::from(in_time);
        second.within_deadline += u64::from(in_time);
        degraded += u64::from(query.reply.degraded);
        second.degraded += u64::from(query.reply.degraded);
        right += u64::from(is_right);
        right_within += u64::from(is_right && in_time);
        if !query.reply.stage.is_empty() {
            *stages.entry(query.reply.stage.clone()).or_default() += 1;
        }
    }
    let of = |word: &str| outcomes.get(word).copied().unwrap_or(0);
    let offered = ended.len() as u64;
    let answered = of("answered");
    assert_eq!(
        offered,
        answered + of("rejected") + of("expired") + of("failed") + of("unknown"),
        "every query has one outcome"
    );
    let at = |q: f64| if answered == 0 { 0 } else { latency.value_at_quantile(q) };
    let mut lag = histogram();
    lags.iter().for_each(|span| lag.saturating_record(micros(*span)));
    let send_lag = SendLag { p99: if lags.is_empty() { 0 } else { lag.value_at_quantile(0.99) }, max: lag.max() };
    let lag_limit = config.deadline.as_micros() as f64 * LAG_SHARE;
    let invalid_because = (send_lag.p99 as f64 > lag_limit).then(|| {
        format!("queries were sent late (p99 {} us, over 5 % of the deadline): the generator measured itself; lower the rate or give it a core", send_lag.p99)
    });
    let mut errors: Vec<_> = errors.into_iter().collect();
    errors.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    errors.truncate(10);
    let (arrivals, rate) = match config.sending {
        Loop::Open { arrivals, rate } => (arrivals.to_text(), Some(rate)),
        Loop::Closed(callers) => (format!("closed:{callers}"), None),
    };
    RunResult {
        target: config.target.clone(),
        endpoint: config.endpoint.clone(),
        arrivals,
        seed: config.seed,
        rate,
        duration_s: config.duration.as_secs_f64(),
        deadline_us: config.deadline.as_micros() as u64,
        offered,
        answered,
        rejected: of("rejected"),
        expired: of("expired"),
        failed: of("failed"),
        unknown: of("unknown"),
        degraded,
        within_deadline: within,
        attainment: within as f64 / offered.max(1) as f64,
        goodput_per_s: within as f64 / config.duration.as_secs_f64(),
        accuracy: config.labels.as_ref().map(|_| right as f64 / answered.max(1) as f64),
        correct_within_deadline: config.labels.as_ref().map(|_| right_within),
        latency_us: Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: if answered == 0 { 0 } else { latency.max() },
        },
        stages,
        send_lag_us: send_lag,
        valid: invalid_because.is_none(),
        invalid_because,
        errors,
        per_second: by_second
            .into_values()
            .map(|(second, latency)| PerSecond {
                p99_us: if second.answered == 0 { 0 } else { latency.value_at_quantile(0.99) },
                ..second
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests;
