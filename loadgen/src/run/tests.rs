use std::cell::Cell;

use futures::future::LocalBoxFuture;

use super::*;

/// Answers one query after the other in `service`, and stands still for `stall` when it has answered `stall_after`.
struct Planted {
    service: Duration,
    stall_after: u64,
    stall: Duration,
    served: Rc<Cell<u64>>,
    turn: Rc<tokio::sync::Mutex<()>>,
}

impl Planted {
    fn new(service_us: u64, stall_after: u64, stall_ms: u64) -> Rc<Planted> {
        Rc::new(Planted {
            service: Duration::from_micros(service_us),
            stall_after,
            stall: Duration::from_millis(stall_ms),
            served: Rc::default(),
            turn: Rc::default(),
        })
    }
}

fn answered(row: usize) -> Reply {
    Reply {
        outcome: Outcome::Answered,
        label: Some(row as i64 % 3),
        stage: "only".into(),
        degraded: false,
        message: String::new(),
    }
}

impl Target for Planted {
    fn ask(&self, row: usize, _: Duration) -> LocalBoxFuture<'static, Reply> {
        let (service, stall, stall_after) = (self.service, self.stall, self.stall_after);
        let (served, turn) = (Rc::clone(&self.served), Rc::clone(&self.turn));
        Box::pin(async move {
            let _turn = turn.lock().await;
            served.set(served.get() + 1);
            let pause = if served.get() == stall_after { stall } else { service };
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            answered(row)
        })
    }
}

fn config(sending: Loop, duration_ms: u64) -> RunConfig {
    RunConfig {
        target: "planted".into(),
        endpoint: "e".into(),
        sending,
        duration: Duration::from_millis(duration_ms),
        deadline: Duration::from_millis(50),
        seed: 7,
        rows: 30,
        labels: Some((0..30).map(|row| if row == 0 { -1 } else { row % 3 }).collect()),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

const OPEN: Loop = Loop::Open { arrivals: Arrivals::Constant, rate: 400.0 };

#[test]
fn an_open_loop_charges_a_stall_to_everybody_who_waited_and_a_closed_one_hides_it() {
    let open = block_on(run(&config(OPEN, 1000), Planted::new(0, 100, 400))).unwrap();
    // 160 of 400 queries fall due while it stands still; those of the first 350 ms of it wait longer than 50 ms.
    let late = open.answered - open.within_deadline;
    assert!((100..=200).contains(&late), "{late}");
    assert!(open.latency_us.p90 > 100_000, "{:?}", open.latency_us);
    let closed = block_on(run(&config(Loop::Closed(1), 1000), Planted::new(500, 100, 400))).unwrap();
    assert_eq!(closed.answered - closed.within_deadline, 1, "one caller noticed");
    assert_eq!(closed.arrivals, "closed:1");
}

#[test]
fn every_query_is_counted_once_and_labels_are_compared() {
    let result = block_on(run(&config(OPEN, 500), Planted::new(0, 0, 0))).unwrap();
    assert_eq!(result.offered, 199, "2.5 ms apart, the first after one gap, before 500 ms");
    assert_eq!(result.offered, result.answered);
    assert_eq!(result.per_second.iter().map(|s| s.offered).sum::<u64>(), result.offered);
    let wrong = 1.0 - result.accuracy.unwrap();
    assert!(wrong > 0.0 && wrong < 0.12, "a thirtieth has the wrong label: {wrong}");
    assert_eq!(result.stages["only"], result.answered);
}

/// Says no to everything.
struct Refusing;

impl Target for Refusing {
    fn ask(&self, row: usize, _: Duration) -> LocalBoxFuture<'static, Reply> {
        let outcomes = [
            Outcome::Expired,
            Outcome::Failed,
            Outcome::Rejected(weir_core::outcome::Rejection::TooLate),
            Outcome::Unknown,
        ];
        let reply = Reply { outcome: outcomes[row % 4], message: "no".into(), ..answered(row) };
        Box::pin(async move { reply })
    }
}

#[test]
fn what_is_not_answered_counts_against_attainment() {
    let result = block_on(run(&config(OPEN, 300), Rc::new(Refusing))).unwrap();
    assert_eq!((result.answered, result.attainment), (0, 0.0));
    assert_eq!(result.rejected + result.expired + result.failed + result.unknown, result.offered);
    assert!(result.rejected > 0 && result.expired > 0 && result.failed > 0 && result.unknown > 0);
    assert!(result.table().contains("no"));
}

/// Keeps its thread so long that the next query cannot be sent in time.
struct Blocking;

impl Target for Blocking {
    fn ask(&self, row: usize, _: Duration) -> LocalBoxFuture<'static, Reply> {
        std::thread::sleep(Duration::from_millis(20));
        Box::pin(async move { answered(row) })
    }
}

#[test]
fn a_generator_that_falls_behind_says_so() {
    let result = block_on(run(&config(OPEN, 300), Rc::new(Blocking))).unwrap();
    assert!(!result.valid);
    assert!(result.invalid_because.unwrap().contains("measured itself"));
}

#[test]
fn nonsense_is_refused_before_anything_is_sent() {
    let refused = |config: RunConfig| block_on(run(&config, Rc::new(Refusing))).unwrap_err().to_string();
    assert!(refused(RunConfig { rows: 0, labels: None, ..config(OPEN, 10) }).contains("no rows"));
    assert!(refused(RunConfig { labels: Some(vec![1]), ..config(OPEN, 10) }).contains("1 labels for 30 rows"));
    let fast = Loop::Open { arrivals: Arrivals::Constant, rate: 1e9 };
    assert!(refused(config(fast, 1000)).contains("make it shorter"));
}

#[test]
fn every_row_is_asked_for_as_often_as_any_other() {
    let rows = draw_rows(30, 100, &mut Prng::new(7));
    let counts: Vec<usize> = (0..30).map(|row| rows.iter().filter(|drawn| **drawn == row).count()).collect();
    assert!(counts.iter().all(|count| (3..=4).contains(count)), "{counts:?}");
    assert_ne!(rows[..30], rows[30..60], "each pass in its own order");
}
