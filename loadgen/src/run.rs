//! One run: a thread paces the schedule, others send, this one counts.
//!
//! Senders share no state: each has an executor, connections and open queries of its own. Counting happens on the caller's
//! thread, in batches, so that a sender does nothing but send and receive.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use weir_core::outcome::Outcome;
use weir_core::prng::Prng;

use crate::hdr::encode;
use crate::machine::Machine;
use crate::result::{Part, RunResult};
use crate::schedule::{Due, Flow, Rows, Schedule, row_draws};
use crate::tally::{Ended, Tally};
use crate::target::{Ask, Connect, Reply, Stream, Target, TargetError};

/// How queries are sent.
#[derive(Clone)]
pub enum Loop {
    /// At the instants of processes, whatever has come back.
    Open(Vec<Flow>),
    /// So many callers, each waiting for its answer before it asks again. Hides a server's stalls: say so aloud.
    Closed(usize),
}

/// A run.
#[derive(Clone)]
pub struct RunConfig {
    /// What is measured, for the record.
    pub target: String,
    /// Likewise, as on the command line.
    pub arrivals: String,
    /// Likewise, queries per second.
    pub rate: Option<f64>,
    /// Likewise.
    pub question: Option<String>,
    /// Likewise, as on the command line.
    pub goal: Option<String>,
    /// Likewise, one for each stream.
    pub parts: Vec<Part>,
    /// How queries are sent.
    pub sending: Loop,
    /// What is asked.
    pub streams: Arc<[Stream]>,
    /// How long.
    pub duration: Duration,
    /// Decides instants and rows.
    pub seed: u64,
    /// Rows of one query.
    pub rows_per_query: usize,
    /// Connections in all, to each node where the target has several.
    pub connections: usize,
    /// Threads that send.
    pub threads: usize,
}

/// Why a run cannot be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LoadError {
    #[error("there are {labels} labels for {rows} rows; give one for each")]
    Labels { labels: usize, rows: usize },
    #[error("{0} has no label_output to compare labels with; name one with --label-output, or leave the labels out")]
    NoLabelOutput(String),
    #[error("a query has at least one row")]
    NoRows,
    #[error("{0} takes one row a query; leave --rows out")]
    OneRow(String),
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("cannot start a thread ({0}); ask for fewer --threads")]
    Thread(#[from] std::io::Error),
}

/// Tells a run to end.
pub struct Stopper(watch::Sender<u8>);

/// Hears it.
#[derive(Clone)]
pub struct Stop(watch::Receiver<u8>);

/// A pair. A run whose [`Stopper`] is dropped goes on to its end.
pub fn stopper() -> (Stopper, Stop) {
    let (tell, hear) = watch::channel(0);
    (Stopper(tell), Stop(hear))
}

impl Stopper {
    /// The first time: send no more, wait for what is open. The second time: do not wait either.
    pub fn stop(&self) {
        self.0.send_modify(|level| *level = (*level + 1).min(2));
    }
}

impl Stop {
    fn level(&self) -> u8 {
        *self.0.borrow()
    }

    async fn reaches(&mut self, level: u8) {
        if self.0.wait_for(|now| *now >= level).await.is_err() {
            std::future::pending().await
        }
    }
}

/// How a run goes, a few times a second.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Since the start.
    pub elapsed: Duration,
    /// Queries sent until now.
    pub sent: u64,
    /// Sent in the last interval, per second.
    pub rate: f64,
    /// Queries that ended.
    pub ended: u64,
    /// Queries whose deadline has passed, and that did not end yet.
    pub overdue: u64,
    /// p99 in microseconds of those that were answered in the last interval; none where none was.
    pub p99_us: Option<u64>,
    /// Answered in time over what ended or is overdue.
    pub attainment: f64,
}

/// A query is given up this much after its deadline: the answer is late by then whatever it is, and no run may hang.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// The generator may be late by this share of the deadline at its 99th percentile.
const LAG_SHARE: f64 = 0.05;
/// A generator that is this late stops: it only measures itself, and would go on long after the run's end.
const BEHIND_MAX: Duration = Duration::from_secs(10);
/// Queries that are due and not yet sent: three seconds at 20,000 a second.
const DUE_MAX: usize = 1 << 16;
/// Batches of ended queries on their way to the count; a sender waits where it is full.
const BATCHES_MAX: usize = 1024;
/// Ended queries in a batch at most, and how long they wait for others.
const BATCH: usize = 256;
const BATCH_WAIT: Duration = Duration::from_millis(50);
/// Queries started before connections get their turn to write: more would let the first wait for the last one's encoding.
const BURST: usize = 8;
/// Queries looked at before anybody else gets a turn, where the target's client refuses them at once.
const LOOKS: usize = 128;
/// From the last connection to the first instant: time for threads to start.
const HEAD_START: Duration = Duration::from_millis(20);
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// Makes a run from threads of its own.
pub async fn run(
    config: &RunConfig,
    connect: Arc<dyn Connect>,
    stop: Stop,
    progress: impl FnMut(&Progress),
) -> Result<RunResult, LoadError> {
    run_within(config, connect, stop, progress, BEHIND_MAX).await
}

/// As [`run`]; gives up when the generator is `behind_max` late.
async fn run_within(
    config: &RunConfig,
    connect: Arc<dyn Connect>,
    stop: Stop,
    progress: impl FnMut(&Progress),
    behind_max: Duration,
) -> Result<RunResult, LoadError> {
    check(config)?;
    let threads = config.threads.max(1);
    let shared = Arc::new(Shared { behind_max, ..Shared::new(config, stop) });
    let (batches, counted) = mpsc::channel(BATCHES_MAX);
    let (mut senders, mut ready, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for thread in 0..threads {
        let (due, queries) = mpsc::channel(DUE_MAX);
        let (tell_ready, is_ready) = oneshot::channel();
        let (start, started) = oneshot::channel();
        senders.push(due);
        ready.push(is_ready);
        starts.push(start);
        let (shared, connect, batches) = (Arc::clone(&shared), Arc::clone(&connect), batches.clone());
        let connections = share(config.connections, threads, thread).max(1);
        std::thread::Builder::new().name(format!("weir-send-{thread}")).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(tell_ready.send(Err(LoadError::Thread(error)))),
            };
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let target = match connect.connect(Arc::clone(&shared.streams), connections).await {
                    Ok(target) => target,
                    Err(error) => return drop(tell_ready.send(Err(error.into()))),
                };
                let _ = tell_ready.send(Ok(()));
                if let Ok(start) = started.await {
                    Sender::new(shared, target, start, batches).run(thread, threads, queries).await;
                }
            });
        })?;
    }
    for ready in ready {
        ready.await.unwrap_or_else(|_| Err(TargetError::Unreachable("a sender ended at once".into()).into()))?;
    }
    let start = Instant::now() + HEAD_START;
    for tell in starts {
        let _ = tell.send(start);
    }
    if let Loop::Open(flows) = &config.sending {
        let schedule = schedule(config, flows);
        let shared = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("weir-pace".into())
            .spawn(move || pace(start.into_std(), schedule, &senders, &shared, &batches))?;
    } else {
        drop(batches);
    }
    Ok(count(config, &shared, start, counted, progress).await)
}

/// Makes a run on this thread, inside a `LocalSet`, paced by the executor's timers (a millisecond coarse): for virtual time.
pub async fn run_here(
    config: &RunConfig,
    target: Rc<dyn Target>,
    stop: Stop,
    progress: impl FnMut(&Progress),
) -> Result<RunResult, LoadError> {
    check(config)?;
    let shared = Arc::new(Shared::new(config, stop));
    let (batches, counted) = mpsc::channel(BATCHES_MAX);
    let (due, queries) = mpsc::channel(DUE_MAX);
    let start = Instant::now();
    if let Loop::Open(flows) = &config.sending {
        let schedule = schedule(config, flows);
        let mut stop = shared.stop.clone();
        tokio::task::spawn_local(async move {
            for query in schedule {
                tokio::select! {
                    biased;
                    () = stop.reaches(1) => return,
                    () = tokio::time::sleep_until(start + query.at) => {}
                }
                if due.send(query).await.is_err() {
                    return;
                }
            }
        });
    }
    let sender = Sender::new(Arc::clone(&shared), target, start, batches);
    tokio::task::spawn_local(async move { sender.run(0, 1, queries).await });
    Ok(count(config, &shared, start, counted, progress).await)
}

fn check(config: &RunConfig) -> Result<(), LoadError> {
    if config.rows_per_query == 0 {
        return Err(LoadError::NoRows);
    }
    for stream in config.streams.iter() {
        if let Some(labels) = stream.labels.as_ref().filter(|labels| labels.len() != stream.data.rows()) {
            return Err(LoadError::Labels { labels: labels.len(), rows: stream.data.rows() });
        }
        if stream.labels.is_some() && stream.label_output.is_none() {
            return Err(LoadError::NoLabelOutput(stream.endpoint.clone()));
        }
        if stream.data.whole() && config.rows_per_query > 1 {
            return Err(LoadError::OneRow(stream.endpoint.clone()));
        }
    }
    Ok(())
}

fn row_counts(streams: &[Stream]) -> Vec<usize> {
    streams.iter().map(|stream| stream.data.rows()).collect()
}

fn schedule(config: &RunConfig, flows: &[Flow]) -> Schedule {
    Schedule::new(flows, &row_counts(&config.streams), config.rows_per_query, config.seed, config.duration)
}

/// Part `i` of `total` in `parts` parts that differ by one at most.
fn share(total: usize, parts: usize, i: usize) -> usize {
    total / parts + usize::from(i < total % parts)
}

/// What all threads of a run know.
struct Shared {
    streams: Arc<[Stream]>,
    sending: Loop,
    rows_per_query: usize,
    seed: u64,
    duration: Duration,
    stop: Stop,
    sent: AtomicU64,
    /// Queries that fell due and are not sent any more.
    unsent: AtomicU64,
    /// Queries whose deadline has passed, and that did not end yet.
    overdue: AtomicU64,
    /// So late the generator gives up.
    behind_max: Duration,
    /// When it gave up: it was too late to measure anything else.
    behind: OnceLock<Duration>,
}

impl Shared {
    fn new(config: &RunConfig, stop: Stop) -> Shared {
        Shared {
            streams: Arc::clone(&config.streams),
            sending: config.sending.clone(),
            rows_per_query: config.rows_per_query,
            seed: config.seed,
            duration: config.duration,
            stop,
            sent: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            overdue: AtomicU64::new(0),
            behind_max: BEHIND_MAX,
            behind: OnceLock::new(),
        }
    }

    /// Whether a query that is so late is not sent any more.
    fn gives_up(&self, at: Duration, now: Duration) -> bool {
        if now > at + self.behind_max {
            let _ = self.behind.set(now);
        }
        self.behind.get().is_some()
    }

    /// A query that fell due and is not sent: counted all the same, since the process meant it.
    fn unsent(&self, query: Due, now: Duration) -> Ended {
        self.unsent.fetch_add(1, Ordering::Relaxed);
        let why = match self.behind.get() {
            Some(_) => "never sent, since the generator was too late",
            None => "never sent, since the run was interrupted",
        };
        Ended {
            intended: query.at,
            lag: None,
            latency: now.saturating_sub(query.at),
            stream: query.stream,
            rows: query.rows,
            reply: Reply::none(Outcome::Unknown, why),
        }
    }
}

/// Hands out due queries in turn, from a thread that does nothing else: a timer of the executor is a millisecond coarse and
/// waits its turn.
fn pace(
    start: std::time::Instant,
    mut schedule: Schedule,
    senders: &[mpsc::Sender<Due>],
    shared: &Shared,
    batches: &mpsc::Sender<Vec<Ended>>,
) {
    let (mut last, mut stopped_at) = (Duration::ZERO, None);
    let mut gap = NEAR;
    let mut turns = senders.iter().cycle();
    while let Some(query) = schedule.next() {
        gap = (gap * 31 + (query.at - last)) / 32;
        let nap = match query.at - last {
            _ if gap < CROWDED => Some(NAP),
            near if near < NEAR => Some(Duration::ZERO),
            _ => None,
        };
        if !wait_until_due(start, query.at, nap, shared, &mut stopped_at) {
            return;
        }
        last = query.at;
        let sender = turns.next().expect("there is a sender");
        let refused = match shared.gives_up(query.at, start.elapsed()) {
            true => Some(query),
            false => sender.blocking_send(query).err().map(|refused| refused.0),
        };
        if let Some(query) = refused {
            let ends = [stopped_at, shared.behind.get().copied(), Some(start.elapsed())];
            let end = ends.into_iter().flatten().min().expect("there is a clock");
            let due = std::iter::once(query).chain(schedule).take_while(|query| query.at <= end);
            return never_send(due, end, shared, batches);
        }
    }
}

/// Queries nearer to the last one than this share a wake-up instead of keeping the core awake.
const NEAR: Duration = Duration::from_micros(200);
/// Where so many come that they are nearer than this on average, those of a nap share one: a core has better to do then than to wake up for
/// each few. It makes them later by that much and the kernel's slack at most, which counts as latency like all else.
const CROWDED: Duration = Duration::from_micros(60);
const NAP: Duration = Duration::from_micros(150);

/// Waits for a query's instant, and at the end, where it is not due yet, for `nap` at least (by spinning without one); false where the run was
/// stopped before. What fell due until the stop is sent.
fn wait_until_due(
    start: std::time::Instant,
    at: Duration,
    nap: Option<Duration>,
    shared: &Shared,
    stopped_at: &mut Option<Duration>,
) -> bool {
    /// The kernel may end a sleep this much late, to wake for several timers at once.
    const SLACK: Duration = Duration::from_micros(50);
    /// How long a stop may go unheard.
    const DEAF: Duration = Duration::from_millis(100);
    loop {
        // Before the start, elapsed time is zero.
        let elapsed = start.elapsed();
        if stopped_at.is_none() && shared.stop.level() > 0 {
            *stopped_at = Some(elapsed);
        }
        if stopped_at.is_some_and(|stopped| at > stopped) {
            return false;
        }
        let until_start = start.saturating_duration_since(std::time::Instant::now());
        let left = at.saturating_sub(elapsed) + until_start;
        if left.is_zero() {
            return true;
        }
        match nap {
            _ if left > SLACK => std::thread::sleep((left - SLACK).min(DEAF)),
            Some(nap) => std::thread::sleep(left.max(nap)),
            None => std::hint::spin_loop(),
        }
    }
}

/// Counts queries that fell due and that nobody sends any more.
fn never_send(due: impl Iterator<Item = Due>, now: Duration, shared: &Shared, batches: &mpsc::Sender<Vec<Ended>>) {
    let mut ended = due.map(|query| shared.unsent(query, now));
    loop {
        let batch: Vec<Ended> = ended.by_ref().take(BATCH).collect();
        // Nobody counts any more only where the run was dropped.
        if batch.is_empty() || batches.blocking_send(batch).is_err() {
            return;
        }
    }
}

/// What is known of a query that is open.
struct Open {
    intended: Duration,
    lag: Option<Duration>,
    stream: usize,
    rows: Vec<u32>,
    overdue: bool,
}

/// One thread's part of a run.
struct Sender {
    shared: Arc<Shared>,
    target: Rc<dyn Target>,
    start: Instant,
    state: Rc<RefCell<State>>,
    batches: mpsc::Sender<Vec<Ended>>,
}

#[derive(Default)]
struct State {
    open: HashMap<u64, Open>,
    next: u64,
    /// Handed out, and not looked at yet.
    due: VecDeque<Due>,
    ended: Vec<Ended>,
    /// Of each stream what was asked, in order, with its deadline, until that has passed.
    deadlines: Vec<VecDeque<(Duration, u64)>>,
}

impl State {
    /// Starts one; returns its number.
    fn begin(&mut self, intended: Duration, stream: usize, rows: &[u32], deadline: Duration) -> u64 {
        self.next += 1;
        let open = Open { intended, lag: None, stream, rows: rows.to_vec(), overdue: false };
        self.open.insert(self.next, open);
        if self.deadlines.len() <= stream {
            self.deadlines.resize_with(stream + 1, VecDeque::new);
        }
        self.deadlines[stream].push_back((intended + deadline, self.next));
        self.next
    }

    fn end(&mut self, id: u64, latency: Duration, reply: Reply, shared: &Shared) {
        let Some(open) = self.open.remove(&id) else { return };
        let Open { intended, lag, stream, rows, overdue } = open;
        if overdue {
            shared.overdue.fetch_sub(1, Ordering::Relaxed);
        }
        self.ended.push(Ended { intended, lag, latency, stream, rows, reply });
    }

    /// Notes which open queries are overdue by now.
    fn look(&mut self, now: Duration, shared: &Shared) {
        for deadlines in &mut self.deadlines {
            while let Some((_, id)) = deadlines.pop_front_if(|(deadline, _)| *deadline < now) {
                if let Some(open) = self.open.get_mut(&id) {
                    open.overdue = true;
                    shared.overdue.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

impl Sender {
    fn new(shared: Arc<Shared>, target: Rc<dyn Target>, start: Instant, batches: mpsc::Sender<Vec<Ended>>) -> Sender {
        Sender { shared, target, start, state: Rc::default(), batches }
    }

    async fn run(self, thread: usize, threads: usize, mut queries: mpsc::Receiver<Due>) {
        let mut tasks = tokio::task::JoinSet::new();
        let mut stop = self.shared.stop.clone();
        let working = async {
            match self.shared.sending.clone() {
                Loop::Open(_) => self.open_loop(&mut queries, &mut tasks).await,
                Loop::Closed(callers) => self.closed_loop(share(callers, threads, thread), thread, &mut tasks),
            }
            while tasks.join_next().await.is_some() {}
        };
        let flushing = async {
            loop {
                tokio::time::sleep(BATCH_WAIT).await;
                self.state.borrow_mut().look(self.start.elapsed(), &self.shared);
                self.flush().await;
            }
        };
        tokio::select! {
            () = working => {}
            () = flushing => {}
            () = stop.reaches(2) => {}
        }
        tasks.shutdown().await;
        // What is handed out no more is counted by who paces.
        queries.close();
        while let Some(query) = self.next_due().or_else(|| queries.try_recv().ok()) {
            let unsent = self.shared.unsent(query, self.start.elapsed());
            self.state.borrow_mut().ended.push(unsent);
        }
        {
            let state = &mut *self.state.borrow_mut();
            let why = if stop.level() >= 2 {
                "given up when the run was interrupted"
            } else {
                "its task ended without an answer"
            };
            for id in state.open.keys().copied().collect::<Vec<_>>() {
                let latency = (self.start + state.open[&id].intended).elapsed();
                state.end(id, latency, Reply::none(Outcome::Unknown, why), &self.shared);
            }
        }
        self.flush().await;
    }

    async fn flush(&self) {
        let ended = std::mem::take(&mut self.state.borrow_mut().ended);
        if !ended.is_empty() {
            // Nobody counts any more only where the run was dropped.
            let _ = self.batches.send(ended).await;
        }
    }

    async fn open_loop(&self, queries: &mut mpsc::Receiver<Due>, tasks: &mut tokio::task::JoinSet<()>) {
        let (mut handed, mut ids) = (Vec::with_capacity(LOOKS), Vec::with_capacity(BURST));
        while queries.recv_many(&mut handed, LOOKS).await > 0 {
            self.state.borrow_mut().due.extend(handed.drain(..));
            while let Some(query) = self.next_due() {
                let now = self.start.elapsed();
                match self.shared.gives_up(query.at, now) {
                    true => self.state.borrow_mut().ended.push(self.shared.unsent(query, now)),
                    false => ids.extend(self.ask(query, now, tasks)),
                }
                if ids.len() == BURST {
                    self.send(&mut ids).await;
                }
            }
            self.send(&mut ids).await;
            if self.state.borrow().ended.len() >= BATCH {
                self.flush().await;
            }
            while tasks.try_join_next().is_some() {}
        }
    }

    fn next_due(&self) -> Option<Due> {
        self.state.borrow_mut().due.pop_front()
    }

    /// Everybody who has something to write has had a turn when this one comes again: only then what was started is sent.
    async fn send(&self, started: &mut Vec<u64>) {
        tokio::task::yield_now().await;
        let state = &mut *self.state.borrow_mut();
        for id in started.drain(..) {
            if let Some(open) = state.open.get_mut(&id) {
                open.lag = Some((self.start + open.intended).elapsed());
            }
        }
    }

    /// Starts one query, and returns its number; none where the target's client refuses it at once.
    fn ask(&self, query: Due, now: Duration, tasks: &mut tokio::task::JoinSet<()>) -> Option<u64> {
        let Due { at: intended, stream, rows } = query;
        let whole = self.shared.streams[stream].deadline;
        // What the generator lost is not the server's to make up for, but counts as latency all the same.
        let deadline = whole.saturating_sub(now.saturating_sub(intended)).max(Duration::from_micros(1));
        self.shared.sent.fetch_add(1, Ordering::Relaxed);
        if let Some(reply) = self.target.refuses(deadline) {
            let latency = (self.start + intended).elapsed();
            let ended = Ended { intended, lag: Some(latency), latency, stream, rows, reply };
            self.state.borrow_mut().ended.push(ended);
            return None;
        }
        let id = self.state.borrow_mut().begin(intended, stream, &rows, whole);
        let asked = self.target.ask(Ask { stream, rows, deadline });
        let (state, start, batches) = (Rc::clone(&self.state), self.start, self.batches.clone());
        let shared = Arc::clone(&self.shared);
        tasks.spawn_local(async move {
            let reply = in_patience(asked, deadline).await;
            let latency = (start + intended).elapsed();
            let full = {
                let state = &mut *state.borrow_mut();
                if let Some(open) = state.open.get_mut(&id) {
                    // Answered before its turn to be timed: it was sent by now.
                    open.lag.get_or_insert(latency);
                }
                state.end(id, latency, reply, &shared);
                if state.ended.len() >= BATCH { std::mem::take(&mut state.ended) } else { Vec::new() }
            };
            if !full.is_empty() {
                let _ = batches.send(full).await;
            }
        });
        Some(id)
    }

    fn closed_loop(&self, callers: usize, thread: usize, tasks: &mut tokio::task::JoinSet<()>) {
        let seed = Prng::part(self.shared.seed, thread as u64).next_u64();
        let draws: Rc<RefCell<Vec<Rows>>> = Rc::new(RefCell::new(row_draws(&row_counts(&self.shared.streams), seed)));
        for caller in 0..callers {
            let (shared, target, start) = (Arc::clone(&self.shared), Rc::clone(&self.target), self.start);
            let (state, batches, draws) = (Rc::clone(&self.state), self.batches.clone(), Rc::clone(&draws));
            let mut turn = caller;
            tasks.spawn_local(async move {
                tokio::time::sleep_until(start).await;
                while start.elapsed() < shared.duration && shared.stop.level() == 0 {
                    let stream = turn % shared.streams.len();
                    turn += 1;
                    let rows = draws.borrow_mut()[stream].take(shared.rows_per_query);
                    let intended = start.elapsed();
                    let deadline = shared.streams[stream].deadline;
                    let id = state.borrow_mut().begin(intended, stream, &rows, deadline);
                    shared.sent.fetch_add(1, Ordering::Relaxed);
                    let reply = in_patience(target.ask(Ask { stream, rows, deadline }), deadline).await;
                    let full = {
                        let state = &mut *state.borrow_mut();
                        state.end(id, start.elapsed() - intended, reply, &shared);
                        if state.ended.len() >= BATCH { std::mem::take(&mut state.ended) } else { Vec::new() }
                    };
                    if !full.is_empty() {
                        let _ = batches.send(full).await;
                    }
                    // A target that answers at once must not keep the others, and the clock, from their turns.
                    tokio::task::yield_now().await;
                }
            });
        }
    }
}

async fn in_patience(asked: impl Future<Output = Reply>, deadline: Duration) -> Reply {
    match tokio::time::timeout(deadline + PATIENCE, asked).await {
        Ok(reply) => reply,
        Err(_) => Reply::none(Outcome::Unknown, format!("no answer {} s after its deadline", PATIENCE.as_secs())),
    }
}

async fn count(
    config: &RunConfig,
    shared: &Shared,
    start: Instant,
    mut batches: mpsc::Receiver<Vec<Ended>>,
    mut progress: impl FnMut(&Progress),
) -> RunResult {
    let started = std::time::SystemTime::now() + start.saturating_duration_since(Instant::now());
    let longest = config.streams.iter().map(|stream| stream.deadline).max().unwrap_or_default() + PATIENCE;
    let mut tally = Tally::new(config.streams.len(), longest);
    let mut stop = shared.stop.clone();
    let mut stopped_at = None;
    let mut look = tokio::time::interval_at(start + REPORT_EVERY, REPORT_EVERY);
    let (mut sent_before, mut looked) = (0, start);
    loop {
        tokio::select! {
            batch = batches.recv() => match batch {
                Some(batch) => batch.iter().for_each(|ended| tally.add(ended, &config.streams[ended.stream])),
                None => break,
            },
            now = look.tick() => {
                let sent = shared.sent.load(Ordering::Relaxed);
                let (ended, overdue) = (tally.all.offered(), shared.overdue.load(Ordering::Relaxed));
                progress(&Progress {
                    elapsed: now - start,
                    sent,
                    rate: (sent - sent_before) as f64 / (now - looked).as_secs_f64().max(1e-3),
                    ended,
                    overdue,
                    p99_us: tally.recent_p99(),
                    attainment: tally.all.within as f64 / (ended + overdue).max(1) as f64,
                });
                (sent_before, looked) = (sent, now);
            }
            () = stop.reaches(1), if stopped_at.is_none() => stopped_at = Some(start.elapsed()),
        }
    }
    let interrupted = stop.level() > 0 && stopped_at.is_some_and(|at| at < config.duration);
    let behind = shared.behind.get().copied();
    let duration = behind.or(stopped_at.filter(|_| interrupted)).unwrap_or(config.duration).min(config.duration);
    let (sent, unsent) = (shared.sent.load(Ordering::Relaxed), shared.unsent.load(Ordering::Relaxed));
    assert_eq!(tally.all.offered(), sent + unsent, "every query that fell due was sent or is told to be unsent");
    result(config, Made { duration, interrupted, behind, unsent, started }, tally)
}

/// The result of a run that took place elsewhere: `queries` tells each query that ended to its argument, once.
pub fn counted(config: &RunConfig, queries: impl FnOnce(&mut dyn FnMut(Ended))) -> RunResult {
    let started = std::time::SystemTime::now();
    let longest = config.streams.iter().map(|stream| stream.deadline).max().unwrap_or_default() + PATIENCE;
    let mut tally = Tally::new(config.streams.len(), longest);
    queries(&mut |ended| tally.add(&ended, &config.streams[ended.stream]));
    result(config, Made { duration: config.duration, interrupted: false, behind: None, unsent: 0, started }, tally)
}

/// How a run went, apart from what became of its queries.
struct Made {
    duration: Duration,
    interrupted: bool,
    /// When the generator gave up.
    behind: Option<Duration>,
    unsent: u64,
    started: std::time::SystemTime,
}

fn result(config: &RunConfig, made: Made, tally: Tally) -> RunResult {
    let Made { duration, interrupted, behind, unsent, started } = made;
    let [answered, rejected, expired, failed, unknown] = tally.all.outcomes;
    let offered = tally.all.offered();
    assert_eq!(offered, answered + rejected + expired + failed + unknown, "every query has one outcome");
    let deadline = config.streams.iter().map(|stream| stream.deadline).min().unwrap_or_default();
    let send_lag = tally.send_lag();
    let invalid_because = if offered == 0 {
        Some("no query fell due, so nothing was measured; make the run longer or the rate higher".to_owned())
    } else if let Some(gave_up) = behind {
        Some(format!(
            "the generator fell too far behind and stopped after {:.1} s, with {unsent} queries due that it never sent: it measured itself; lower the rate, give it more cores or --threads",
            gave_up.as_secs_f64()
        ))
    } else if send_lag.p99 as f64 > deadline.as_micros() as f64 * LAG_SHARE {
        Some(format!(
            "queries were sent late (p99 {} us, over 5 % of the deadline): the generator measured itself; lower the rate or give it a core",
            send_lag.p99
        ))
    } else {
        None
    };
    let labelled = config.streams.iter().any(|stream| stream.labels.is_some());
    let mut names: Vec<&str> = config.streams.iter().map(|stream| stream.endpoint.as_str()).collect();
    names.dedup();
    let told_apart = config.streams.iter().any(|stream| stream.name != config.streams[0].name);
    let endpoints = if told_apart { tally.endpoints(&config.streams) } else { Default::default() };
    let seconds = duration.as_secs_f64();
    let silent_from = tally.silent_from(duration).filter(|_| invalid_because.is_none() && !interrupted);
    RunResult {
        target: config.target.clone(),
        endpoint: names.join(","),
        arrivals: config.arrivals.clone(),
        seed: config.seed,
        rate: config.rate,
        duration_s: seconds,
        deadline_us: deadline.as_micros() as u64,
        offered,
        answered,
        rejected,
        expired,
        failed,
        unknown,
        unsent,
        degraded: tally.degraded(),
        within_deadline: tally.all.within,
        attainment: tally.all.within as f64 / offered.max(1) as f64,
        goodput_per_s: tally.all.within as f64 / seconds.max(1e-9),
        accuracy: tally.accuracy().filter(|_| labelled),
        correct_within_deadline: labelled.then(|| tally.correct_within()),
        correct_at_best: None,
        expected_accuracy: tally.expected_accuracy(),
        labelled: None,
        expected_loss: tally.expected_loss(),
        demand: BTreeMap::new(),
        latency_us: tally.all.percentiles(),
        rejected_after_us: tally.rejected_after(),
        stages: tally.stages(),
        send_lag_us: send_lag,
        valid: invalid_because.is_none(),
        invalid_because,
        silent_from_s: silent_from.map(|from| from.as_secs_f64()),
        interrupted,
        rows_per_query: config.rows_per_query as u64,
        connections: config.connections as u64,
        threads: config.threads.max(1) as u64,
        duration_asked_s: Some(config.duration.as_secs_f64()),
        goal: config.goal.clone(),
        parts: config.parts.clone(),
        question: config.question.clone(),
        errors: tally.errors(),
        endpoints,
        histogram: encode(&tally.all.latency),
        per_second: tally.per_second(duration),
        machine: Machine::here(),
        started_unix_s: started.duration_since(std::time::SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests;
