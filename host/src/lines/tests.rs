use std::cell::Cell;
use std::time::Duration;

use super::*;

/// A line that is spent when told so.
#[derive(Clone)]
struct Wire {
    number: usize,
    spent: Rc<Cell<bool>>,
}

impl Line for Wire {
    fn is_spent(&self) -> bool {
        self.spent.get()
    }
}

/// Lines of a test, and how often it dialled.
#[derive(Default)]
struct Tested {
    lines: Lines<Wire>,
    dialled: Rc<Cell<usize>>,
}

fn peer() -> NodeName {
    NodeName::parse("n1").unwrap()
}

fn refused() -> DialError {
    DialError::Refused { address: "n1:1".into(), message: "not today".into() }
}

impl Tested {
    /// A dial takes 100 ms and ends so.
    async fn get(&self, succeeds: bool) -> Result<Wire, DialError> {
        let dialled = Rc::clone(&self.dialled);
        let dial = || async move {
            dialled.set(dialled.get() + 1);
            tokio::time::sleep(Duration::from_millis(100)).await;
            if succeeds { Ok(Wire { number: dialled.get(), spent: Rc::default() }) } else { Err(refused()) }
        };
        self.lines.get(&peer(), "n1:1", dial).await
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<Tested>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test(Rc::default()));
}

#[test]
fn all_who_wait_share_one_dial_and_are_served_in_their_order() {
    run(|tested| async move {
        let served = Rc::new(RefCell::new(Vec::new()));
        let mut waiting = tokio::task::JoinSet::new();
        for i in 0..20 {
            let (tested, served) = (Rc::clone(&tested), Rc::clone(&served));
            waiting.spawn_local(async move {
                assert_eq!(tested.get(true).await.unwrap().number, 1);
                served.borrow_mut().push(i);
            });
        }
        while waiting.join_next().await.is_some_and(|one| one.is_ok()) {}
        assert_eq!(*served.borrow(), (0..20).collect::<Vec<_>>());
        assert_eq!(tested.dialled.get(), 1);
    });
}

#[test]
fn a_dial_goes_on_without_those_who_asked_for_it() {
    run(|tested| async move {
        assert!(tokio::time::timeout(Duration::from_millis(10), tested.get(true)).await.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let at_once = tokio::time::timeout(Duration::from_millis(1), tested.get(true)).await;
        assert_eq!(at_once.unwrap().unwrap().number, 1);
    });
}

#[test]
fn a_failure_is_for_those_who_wait_and_the_next_dials_anew() {
    run(|tested| async move {
        let (first, second) = tokio::join!(tested.get(false), tested.get(true));
        assert!(matches!((first, second), (Err(DialError::Refused { .. }), Err(DialError::Refused { .. }))));
        assert_eq!(tested.get(true).await.unwrap().number, 2);
    });
}

#[test]
fn what_is_spent_or_forgotten_is_dialled_anew() {
    run(|tested| async move {
        let line = tested.get(true).await.unwrap();
        line.spent.set(true);
        assert_eq!(tested.get(true).await.unwrap().number, 2);
        tested.lines.forget(&peer());
        // A dial that goes on is not forgotten: it was begun after whatever made somebody doubt.
        let (third, ()) = tokio::join!(tested.get(true), async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            tested.lines.forget(&peer());
            assert_eq!(tested.get(true).await.unwrap().number, 3);
        });
        assert_eq!(third.unwrap().number, 3);
    });
}

#[test]
fn who_waits_for_a_dial_that_is_dropped_hears_of_it() {
    run(|tested| async move {
        let dial = tested.lines.dial(&peer(), "n1:1", std::future::pending());
        let (heard, ()) = tokio::join!(tested.get(true), async {
            drop(Dialling { dial, address: "n1:1".into() });
        });
        assert!(matches!(heard, Err(DialError::Connect { .. })));
        assert_eq!(tested.get(true).await.unwrap().number, 1);
    });
}
