//! Against planted servers, in virtual time wherever the generator's own speed is not what is tested.

use futures::future::LocalBoxFuture;
use weir_core::outcome::Rejection;
use weir_core::tensor::Tensor;
use weir_core::workload::{Arrivals, Rate};

use super::*;
use crate::data::Data;
use crate::target::{Described, RowReply};

fn stream(endpoint: &str, labels: bool) -> Stream {
    let data = Data::of(Tensor::f32(&[30, 1], &[0.0; 30])).fit(&[]).unwrap();
    let right = (0..30).map(|row| if row == 0 { -1 } else { row % 3 });
    Stream {
        name: endpoint.into(),
        endpoint: endpoint.into(),
        data: Arc::new(data),
        labels: labels.then(|| right.collect()),
        label_output: Some("probs".into()),
        deadline: Duration::from_millis(50),
    }
}

fn flow(arrivals: &str, rate: f64) -> Flow {
    let process = Arrivals::parse(arrivals).unwrap().process(Some(Rate::per_second(rate).unwrap()), None).unwrap();
    Flow { process, choices: vec![(0, 1.0)] }
}

fn config(sending: Loop, duration: Duration) -> RunConfig {
    RunConfig {
        target: "planted".into(),
        arrivals: "constant".into(),
        rate: Some(400.0),
        question: None,
        goal: None,
        parts: Vec::new(),
        sending,
        streams: Arc::new([stream("e", true)]),
        duration,
        seed: 7,
        rows_per_query: 1,
        connections: 1,
        threads: 1,
    }
}

fn open(rate: f64) -> Loop {
    Loop::Open(vec![flow("constant", rate)])
}

/// Runs in virtual time.
fn virtually(config: &RunConfig, target: Rc<dyn Target>) -> RunResult {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (_stopper, stop) = stopper();
    tokio::task::LocalSet::new().block_on(&runtime, run_here(config, target, stop, |_| ())).unwrap()
}

/// A target made of a function from the question and the time since the first.
struct Planted<F>(F, Instant);

impl<F: Fn(Ask, Duration) -> LocalBoxFuture<'static, Reply>> Target for Planted<F> {
    fn ask(&self, ask: Ask) -> LocalBoxFuture<'static, Reply> {
        self.0(ask, self.1.elapsed())
    }
}

fn answered(ask: &Ask) -> Reply {
    let rows = ask.rows.iter().map(|row| RowReply {
        label: Some(i64::from(*row) % 3),
        stage: "only".into(),
        ..RowReply::default()
    });
    Reply { rows: rows.collect(), ..Reply::none(Outcome::Answered, "") }
}

/// A target whose client refuses every other query, and that answers what it is asked.
struct EveryOther(std::cell::Cell<u64>);

impl Target for EveryOther {
    fn refuses(&self, _deadline: Duration) -> Option<Reply> {
        self.0.set(self.0.get() + 1);
        self.0.get().is_multiple_of(2).then(|| Reply::none(Outcome::Rejected(Rejection::TooLate), "not now"))
    }

    fn ask(&self, ask: Ask) -> LocalBoxFuture<'static, Reply> {
        Box::pin(async move { answered(&ask) })
    }
}

#[test]
fn what_the_targets_client_refuses_is_counted_and_not_asked() {
    let result = virtually(&config(open(400.0), Duration::from_secs(2)), Rc::new(EveryOther(Default::default())));
    assert_eq!((result.offered, result.answered, result.rejected), (799, 400, 399));
    assert_eq!(result.errors, [("rejected: not now".to_owned(), 399)]);
    assert_eq!(result.rejected_after_us.map(|after| after.p99 < 2000), Some(true));
    // A burst of refusals keeps nobody else from a turn, and nothing of it is lost.
    let result =
        virtually(&config(open(200_000.0), Duration::from_millis(100)), Rc::new(EveryOther(Default::default())));
    assert_eq!((result.answered, result.rejected), (10_000, 9_999));
}

/// Plants a function; built inside the runtime, whose clock it reads.
struct Plant<F>(F, std::cell::OnceCell<Planted<F>>);

impl<F: Fn(Ask, Duration) -> LocalBoxFuture<'static, Reply> + Copy> Target for Plant<F> {
    fn ask(&self, ask: Ask) -> LocalBoxFuture<'static, Reply> {
        self.1.get_or_init(|| Planted(self.0, Instant::now())).ask(ask)
    }
}

fn plant<F: Fn(Ask, Duration) -> LocalBoxFuture<'static, Reply> + Copy + 'static>(f: F) -> Rc<dyn Target> {
    Rc::new(Plant(f, std::cell::OnceCell::new()))
}

fn at_once(ask: Ask, _: Duration) -> LocalBoxFuture<'static, Reply> {
    Box::pin(async move { answered(&ask) })
}

/// Works for two milliseconds; stands still in the last second of every ten.
fn stalling(ask: Ask, now: Duration) -> LocalBoxFuture<'static, Reply> {
    Box::pin(async move {
        let phase = now.as_secs_f64() % 10.0;
        let stall = if phase >= 9.0 { Duration::from_secs_f64(10.0 - phase) } else { Duration::ZERO };
        tokio::time::sleep(stall + Duration::from_millis(2)).await;
        answered(&ask)
    })
}

/// Why the loop is open. A tenth of all queries falls due while the server stands still, and waits up to a second for it:
/// P(L > x) = (1 s − x) / 10 s, hence a p99 of 900 ms. A closed loop sends one query into the stall and waits with the rest.
#[test]
fn an_open_loop_charges_a_stall_to_everybody_who_waited_and_a_closed_one_hides_it() {
    let open = virtually(&config(open(500.0), Duration::from_secs(100)), plant(stalling));
    let near = |got: u64, want: f64| assert!((got as f64 / want - 1.0).abs() < 0.02, "{got} us should be {want}");
    near(open.latency_us.p99, 902e3);
    near(open.latency_us.max, 1002e3);
    assert!((open.attainment - 0.905).abs() < 0.002, "all but those who fell due in the stall, save its last 50 ms");

    let closed = virtually(&config(Loop::Closed(1), Duration::from_secs(100)), plant(stalling));
    near(closed.latency_us.max, 1002e3);
    assert!(closed.latency_us.p99 < 10_000, "it sees nothing: {:?}", closed.latency_us);
    assert!(closed.attainment > 0.999, "{}", closed.attainment);
}

/// Notes when it was asked.
#[derive(Default)]
struct Noting(std::cell::OnceCell<Instant>, RefCell<Vec<Duration>>);

impl Target for Noting {
    fn ask(&self, ask: Ask) -> LocalBoxFuture<'static, Reply> {
        self.1.borrow_mut().push(self.0.get_or_init(Instant::now).elapsed());
        at_once(ask, Duration::ZERO)
    }
}

/// Through pacing and sending: each request of a real trace in its order, at its instant, or at the next millisecond that virtual time
/// knows.
#[test]
fn a_real_trace_is_sent_as_it_came() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/traces");
    let trace = crate::trace::read(&folder.join("azure_conversation_15min.csv.gz")).unwrap();
    let process = Arrivals::parse("trace:t.csv").unwrap().process(None, Some(&trace)).unwrap();
    let sending = Loop::Open(vec![Flow { process, choices: vec![(0, 1.0)] }]);
    let target = Rc::new(Noting::default());
    let result =
        virtually(&config(sending, trace.length() + Duration::from_millis(1)), Rc::clone(&target) as Rc<dyn Target>);
    let meant: Vec<Duration> = trace.instants().iter().map(|at| at.since(weir_core::units::Instant::ZERO)).collect();
    let sent = target.1.borrow();
    assert_eq!((sent.len(), result.offered), (meant.len(), meant.len() as u64));
    for (sent, meant) in sent.iter().zip(&meant) {
        assert!(sent >= meant && *sent <= *meant + Duration::from_millis(1), "{sent:?} should be {meant:?}");
    }
    let in_second = |t: u64| meant.iter().filter(|at| at.as_secs() == t).count() as u64;
    assert!(
        result.per_second.len() == 900 && result.per_second.iter().all(|second| second.offered == in_second(second.t))
    );
}

#[test]
fn every_query_is_counted_once_and_labels_are_compared() {
    let result = virtually(&config(open(400.0), Duration::from_millis(2500)), plant(at_once));
    assert_eq!(result.offered, 999, "2.5 ms apart, the first after one gap, before 2.5 s");
    assert_eq!((result.offered, result.valid), (result.answered, true));
    assert_eq!(result.per_second.iter().map(|s| s.offered).collect::<Vec<_>>(), [399, 400, 200]);
    let wrong = 1.0 - result.accuracy.unwrap();
    assert!(wrong > 0.0 && wrong < 0.12, "a thirtieth has the wrong label: {wrong}");
    assert_eq!(result.stages["only"], result.answered);
    assert_eq!(result.per_second[1].stages["only"], 400);
    assert!(result.per_second.iter().all(|s| !s.histogram.is_empty()));
}

#[test]
fn a_query_of_several_rows_counts_once_and_its_rows_are_compared() {
    let config = RunConfig { rows_per_query: 3, ..config(open(400.0), Duration::from_secs(1)) };
    let result = virtually(&config, plant(at_once));
    assert_eq!((result.offered, result.stages["only"]), (399, 3 * 399));
    assert_eq!(result.correct_within_deadline, Some((result.accuracy.unwrap() * 3.0 * 399.0).round() as u64));
}

#[test]
fn rows_without_labels_do_not_count_against_accuracy() {
    let sending = Loop::Open(vec![Flow { choices: vec![(0, 1.0), (1, 1.0)], ..flow("constant", 1000.0) }]);
    let streams = [stream("labelled", true), stream("not", false)];
    let config = RunConfig { streams: Arc::new(streams), ..config(sending, Duration::from_secs(4)) };
    let result = virtually(&config, plant(at_once));
    let wrong = 1.0 - result.accuracy.unwrap();
    assert!(wrong > 0.0 && wrong < 0.12, "a thirtieth of those with labels is wrong: {wrong}");
    let second = &result.per_second[1];
    assert!(second.rows_labelled < second.answered * 2 / 3, "half of them have labels");
}

#[test]
fn a_mix_is_told_apart() {
    let streams = [stream("a", false), Stream { deadline: Duration::from_millis(1), ..stream("b", false) }];
    let sending = Loop::Open(vec![Flow { choices: vec![(0, 3.0), (1, 1.0)], ..flow("constant", 1000.0) }]);
    let config = RunConfig { streams: Arc::new(streams), ..config(sending, Duration::from_secs(4)) };
    let result = virtually(
        &config,
        plant(|ask, _| {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                answered(&ask)
            })
        }),
    );
    let (a, b) = (&result.endpoints["a"], &result.endpoints["b"]);
    assert_eq!((a.attainment, b.attainment, result.endpoint.as_str()), (1.0, 0.0, "a,b"));
    assert_eq!(a.offered + b.offered, result.offered);
    assert!((a.offered as f64 / b.offered as f64 - 3.0).abs() < 0.5, "{} {}", a.offered, b.offered);
}

fn refusing(ask: Ask, _: Duration) -> LocalBoxFuture<'static, Reply> {
    let outcomes = [Outcome::Expired, Outcome::Failed, Outcome::Rejected(Rejection::TooLate), Outcome::Unknown];
    let reply = Reply::none(outcomes[ask.rows[0] as usize % 4], "no");
    Box::pin(async move { reply })
}

#[test]
fn what_is_not_answered_counts_against_attainment_and_has_no_accuracy() {
    let result = virtually(&config(open(400.0), Duration::from_millis(300)), plant(refusing));
    assert_eq!((result.answered, result.attainment, result.accuracy), (0, 0.0, None));
    assert_eq!(result.rejected + result.expired + result.failed + result.unknown, result.offered);
    assert!(result.rejected > 0 && result.expired > 0 && result.failed > 0 && result.unknown > 0);
    assert!(result.table().contains("x rejected: no"));
}

#[test]
fn seconds_without_queries_are_there() {
    let sending = Loop::Open(vec![flow("spike:base=0.0001,peak=100,at=3s,for=1s", 0.0001)]);
    let result = virtually(&config(sending, Duration::from_secs(6)), plant(at_once));
    assert_eq!(result.per_second.iter().map(|s| s.t).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert!(result.per_second[0].offered == 0 && result.per_second[5].offered == 0);
}

#[test]
fn a_run_that_offered_nothing_is_no_measurement() {
    let result = virtually(&config(open(1.0), Duration::from_millis(500)), plant(at_once));
    assert_eq!((result.offered, result.valid), (0, false));
    assert!(result.invalid_because.unwrap().contains("no query fell due"));
}

#[test]
fn the_maximum_is_the_true_one() {
    let result = virtually(
        &config(open(100.0), Duration::from_secs(1)),
        plant(|ask, _| {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1777)).await;
                answered(&ask)
            })
        }),
    );
    // A histogram of three digits says 1,777,336.
    assert_eq!(result.latency_us.max, 1_777_000);
    assert!(result.latency_us.p999 <= result.latency_us.max);
}

#[test]
fn a_closed_loop_ends_though_no_answer_ever_comes() {
    let result =
        virtually(&config(Loop::Closed(3), Duration::from_secs(1)), plant(|_, _| Box::pin(std::future::pending())));
    assert_eq!((result.offered, result.unknown), (3, 3));
    assert_eq!(result.errors, [("unknown: no answer 2 s after its deadline".to_owned(), 3)]);
}

/// In real time: the clock has to go on while the target refuses at once.
#[test]
fn a_closed_loop_on_a_target_that_refuses_at_once_lets_others_run() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let looks = std::cell::Cell::new(0);
    let (_stopper, stop) = stopper();
    let config = config(Loop::Closed(2), Duration::from_millis(600));
    let run = run_here(&config, plant(refusing), stop, |_| looks.set(looks.get() + 1));
    let result = tokio::task::LocalSet::new().block_on(&runtime, run).unwrap();
    assert!(looks.get() >= 1 && result.offered > 2);
    assert_eq!(result.answered, 0);
}

#[test]
fn an_open_loop_gives_up_queries_that_are_never_answered() {
    let result = virtually(&config(open(10.0), Duration::from_secs(1)), plant(|_, _| Box::pin(std::future::pending())));
    assert_eq!((result.offered, result.unknown), (9, 9));
}

#[test]
fn a_task_that_breaks_leaves_no_query_uncounted() {
    let result = virtually(
        &config(open(100.0), Duration::from_secs(1)),
        plant(|ask, now| {
            Box::pin(async move {
                assert!(now < Duration::from_millis(500), "planted");
                answered(&ask)
            })
        }),
    );
    assert_eq!(result.offered, 99);
    assert!(result.unknown > 40 && result.answered > 40, "{result:?}");
}

fn stopped(stops: u8) -> RunResult {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (stopper, stop) = stopper();
    let config = config(open(100.0), Duration::from_secs(60));
    // What is asked in the third second never ends.
    let target = plant(|ask, now| {
        Box::pin(async move {
            if now > Duration::from_secs(2) {
                std::future::pending::<()>().await;
            }
            answered(&ask)
        })
    });
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            (0..stops).for_each(|_| stopper.stop());
            std::future::pending::<()>().await;
        });
        run_here(&config, target, stop, |_| ()).await.unwrap()
    })
}

#[test]
fn an_interrupted_run_gives_what_it_has() {
    for stops in [1, 2] {
        let result = stopped(stops);
        assert!(result.interrupted && result.table().contains("interrupted"));
        assert!((2.9..3.1).contains(&result.duration_s), "{}", result.duration_s);
        assert!((295..=300).contains(&result.offered), "{}", result.offered);
        assert_eq!(result.offered, result.answered + result.unknown);
        assert!(result.unknown >= 95);
        assert_eq!(result.per_second.len(), 3);
    }
    assert!(stopped(2).errors[0].0.contains("given up when the run was interrupted"));
    assert!(stopped(1).errors[0].0.contains("no answer 2 s after"));
}

#[test]
fn a_word_that_the_target_makes_up_for_each_query_is_not_kept() {
    let result = virtually(
        &config(open(1000.0), Duration::from_secs(2)),
        plant(|ask, now| {
            Box::pin(async move {
                let stage = format!("{now:?}");
                Reply { rows: vec![RowReply { stage, ..RowReply::default() }], ..answered(&ask) }
            })
        }),
    );
    assert!(result.stages.len() <= 257, "{}", result.stages.len());
    assert_eq!(result.stages.values().sum::<u64>(), result.offered);
}

#[test]
fn nonsense_is_refused_before_anything_is_sent() {
    let refused = |config: RunConfig| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let target = plant(|_, _| panic!("nothing is sent"));
        let run = run_here(&config, target, stopper().1, |_| ());
        tokio::task::LocalSet::new().block_on(&runtime, run).unwrap_err().to_string()
    };
    let base = || config(open(400.0), Duration::from_secs(1));
    let with = |stream| RunConfig { streams: Arc::new([stream]), ..base() };
    assert!(refused(with(Stream { labels: Some([1].into()), ..stream("e", true) })).contains("1 labels for 30 rows"));
    assert!(refused(with(Stream { label_output: None, ..stream("e", true) })).contains("--label-output"));
    assert!(refused(RunConfig { rows_per_query: 0, ..base() }).contains("at least one row"));
}

/// What real threads do.
struct Local<F>(F);

impl<F: Fn(Ask, Duration) -> LocalBoxFuture<'static, Reply> + Copy + Send + Sync + 'static> Connect for Local<F> {
    fn name(&self) -> String {
        "planted".into()
    }

    fn describe<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, Result<Described, TargetError>> {
        Box::pin(async { Err(TargetError::NotFound("nobody asks".into())) })
    }

    fn connect(&self, _: Arc<[Stream]>, _: usize) -> LocalBoxFuture<'_, Result<Rc<dyn Target>, TargetError>> {
        let target = plant(self.0);
        Box::pin(async move { Ok(target) })
    }
}

fn on_threads<F>(config: &RunConfig, f: F) -> Result<RunResult, LoadError>
where
    F: Fn(Ask, Duration) -> LocalBoxFuture<'static, Reply> + Copy + Send + Sync + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_stopper, stop) = stopper();
    runtime.block_on(run(config, Arc::new(Local(f)), stop, |_| ()))
}

#[test]
fn several_threads_send_one_schedule() {
    let config = RunConfig { threads: 3, ..config(open(1000.0), Duration::from_millis(500)) };
    let result = on_threads(&config, at_once).unwrap();
    assert_eq!((result.offered, result.answered, result.threads), (499, 499, 3));
    let right = virtually(&config, plant(at_once)).correct_within_deadline;
    assert_eq!(on_threads(&config, at_once).unwrap().accuracy, result.accuracy, "the same rows whoever sends them");
    assert!(right.is_some());
}

/// Keeps its thread so long that the next query cannot be sent in time.
#[test]
fn a_generator_that_falls_behind_says_so() {
    let result = on_threads(&config(open(400.0), Duration::from_millis(300)), |ask, now| {
        std::thread::sleep(Duration::from_millis(20));
        at_once(ask, now)
    });
    let result = result.unwrap();
    assert!(!result.valid);
    assert!(result.invalid_because.unwrap().contains("measured itself"));
}

/// What fell due while the generator was too late is offered all the same, in whatever hands it was then; nothing is sent long after the run's
/// end.
#[test]
fn what_a_generator_that_gave_up_never_sent_is_counted() {
    fn slow(ask: Ask, now: Duration) -> LocalBoxFuture<'static, Reply> {
        std::thread::sleep(Duration::from_millis(20));
        at_once(ask, now)
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_stopper, stop) = stopper();
    let config = config(open(1000.0), Duration::from_secs(60));
    let run = run_within(&config, Arc::new(Local(slow)), stop, |_| (), Duration::from_millis(200));
    let result = runtime.block_on(run).unwrap();
    let because = result.invalid_because.clone().unwrap();
    assert!(
        because.contains("too far behind") && because.contains(&format!("{} queries due", result.unsent)),
        "{because}"
    );
    assert_eq!(result.offered, result.answered + result.unknown);
    assert_eq!((result.unsent, result.errors[0].1), (result.unknown, result.unknown), "{:?}", result.errors);
    assert!(result.answered > 0 && result.unsent > 100, "{result:?}");
    // A millisecond apart, from the first one on: all that fell due, and not what was to come.
    let due = result.duration_s * 1000.0;
    assert!(result.offered as f64 >= due - 2.0 && result.offered < 50_000, "{} of {due}", result.offered);
    assert_eq!(result.per_second.iter().map(|second| second.offered).sum::<u64>(), result.offered);
    assert_eq!(result.silent_from_s, None, "of the target nothing is known");
}

/// Given up, a run leaves what its senders held and what nobody handed out yet.
#[test]
fn a_run_that_is_given_up_counts_what_it_did_not_send() {
    fn slow(ask: Ask, now: Duration) -> LocalBoxFuture<'static, Reply> {
        std::thread::sleep(Duration::from_millis(50));
        at_once(ask, now)
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (stopper, stop) = stopper();
    let config = config(open(1000.0), Duration::from_secs(60));
    let result = runtime.block_on(async {
        let looks = std::cell::Cell::new(0);
        run(&config, Arc::new(Local(slow)), stop, |_| {
            looks.set(looks.get() + 1);
            if looks.get() == 2 {
                (0..2).for_each(|_| stopper.stop());
            }
        })
        .await
        .unwrap()
    });
    assert!(result.interrupted && result.unsent > 100, "{result:?}");
    // Who paces hears of a stop a little later, and what fell due until then is offered.
    let due = result.duration_s * 1000.0;
    assert!(result.offered as f64 >= due - 2.0 && result.offered < 50_000, "{} of {due}", result.offered);
}

/// Nothing is answered any more after two seconds: what is overdue is missed although it did not end.
#[test]
fn the_line_of_a_run_counts_what_is_overdue_as_missed() {
    fn hanging(ask: Ask, now: Duration) -> LocalBoxFuture<'static, Reply> {
        Box::pin(async move {
            if now > Duration::from_secs(2) {
                std::future::pending::<()>().await;
            }
            answered(&ask)
        })
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (_stopper, stop) = stopper();
    let config = config(open(100.0), Duration::from_secs(4));
    let mut seen = Vec::new();
    let run = run_here(&config, plant(hanging), stop, |progress| seen.push(*progress));
    let result = tokio::task::LocalSet::new().block_on(&runtime, run).unwrap();
    let at = |seconds: f64| seen.iter().find(|progress| progress.elapsed.as_secs_f64() >= seconds).unwrap();
    assert!((at(1.9).attainment, at(1.9).overdue) == (1.0, 0) && at(1.9).p99_us.is_some());
    // Before anything is given up.
    let stalled = at(3.5);
    assert!((stalled.attainment - 2.0 / 3.4).abs() < 0.03 && stalled.overdue > 130, "{stalled:?}");
    assert_eq!(stalled.p99_us, None);
    let last = seen.last().unwrap();
    assert!((last.attainment - result.attainment).abs() < 0.1, "{last:?}");
    assert!(last.overdue <= stalled.overdue + 50 && last.ended > 200, "what ended is no longer overdue: {last:?}");
}

/// From the third second on it hangs, or is gone.
#[test]
fn a_target_that_stops_answering_is_told_and_one_that_refuses_is_not() {
    let over = |rate: f64, target: Rc<dyn Target>| virtually(&config(open(rate), Duration::from_secs(5)), target);
    fn gone(ask: Ask, now: Duration) -> LocalBoxFuture<'static, Reply> {
        let gone = Reply::none(Outcome::Rejected(Rejection::NoReplica), "no connection");
        Box::pin(async move { if now > Duration::from_secs(2) { gone } else { answered(&ask) } })
    }
    let dead = over(100.0, plant(gone));
    // The target's own clock begins with the first query.
    let at_two = |result: &RunResult| result.silent_from_s.is_some_and(|from| (2.0..2.02).contains(&from));
    assert!(at_two(&dead), "{:?}", dead.silent_from_s);
    let told = dead.silence().unwrap();
    assert!(told.contains("stopped answering at t=2.0 s") && told.contains("rejected: no connection"), "{told}");
    assert!(dead.table().contains(&told) && crate::report::html(&dead).contains(&told));
    fn hangs(ask: Ask, now: Duration) -> LocalBoxFuture<'static, Reply> {
        let hangs = now > Duration::from_secs(2);
        Box::pin(async move { if hangs { std::future::pending().await } else { answered(&ask) } })
    }
    assert!(at_two(&over(100.0, plant(hangs))));
    // Overload: one in fifty is answered, and in the end for a tenth of a second none.
    fn overloaded(ask: Ask, now: Duration) -> LocalBoxFuture<'static, Reply> {
        let refused = Reply::none(Outcome::Rejected(Rejection::TooLate), "too late");
        let answers = now.as_millis() % 100 < 2 && now < Duration::from_millis(4_900);
        Box::pin(async move { if answers { answered(&ask) } else { refused } })
    }
    let refused = over(1000.0, plant(overloaded));
    assert!(refused.rejected > 4 * refused.offered / 5 && refused.answered > 50, "{refused:?}");
    assert_eq!(refused.silent_from_s, None);
    // A stall that ends in time, and so few queries that chance may refuse them all.
    fn stalls(ask: Ask, now: Duration) -> LocalBoxFuture<'static, Reply> {
        let stall =
            if now > Duration::from_secs(4) { Duration::from_secs(5).saturating_sub(now) } else { Duration::ZERO };
        Box::pin(async move {
            tokio::time::sleep(stall).await;
            answered(&ask)
        })
    }
    assert_eq!(over(100.0, plant(stalls)).silent_from_s, None);
    assert_eq!(over(5.0, plant(gone)).silent_from_s, None);
}

/// The last of a burst is late by what the others take: a lag taken when a query is fetched would not see it.
#[test]
fn lag_is_taken_when_a_query_is_sent_not_when_it_is_fetched() {
    fn slow_to_encode(ask: Ask, _: Duration) -> LocalBoxFuture<'static, Reply> {
        std::thread::sleep(Duration::from_millis(2));
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            answered(&ask)
        })
    }
    // One query: fetched in time, written two milliseconds later at the earliest.
    let result = on_threads(&config(open(10.0), Duration::from_millis(150)), slow_to_encode).unwrap();
    assert_eq!(result.offered, 1);
    assert!(result.send_lag_us.p50 >= 2000, "{:?}", result.send_lag_us);
}

#[test]
fn a_target_that_is_not_there_is_an_error_of_its_own() {
    struct Nowhere;
    impl Connect for Nowhere {
        fn name(&self) -> String {
            "nowhere".into()
        }
        fn describe<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, Result<Described, TargetError>> {
            Box::pin(async { Err(TargetError::Unreachable("nowhere".into())) })
        }
        fn connect(&self, _: Arc<[Stream]>, _: usize) -> LocalBoxFuture<'_, Result<Rc<dyn Target>, TargetError>> {
            Box::pin(async { Err(TargetError::Unreachable("nothing listens there".into())) })
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = config(open(400.0), Duration::from_secs(1));
    let error = runtime.block_on(run(&config, Arc::new(Nowhere), stopper().1, |_| ())).unwrap_err();
    assert!(matches!(error, LoadError::Target(TargetError::Unreachable(_))));
}
