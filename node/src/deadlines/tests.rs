use std::time::Duration;

use super::*;

/// Time as tokio has it, which the tests stop.
struct Stopped(tokio::time::Instant);

impl Clock for Stopped {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.elapsed().as_nanos() as u64)
    }
}

fn at(ms: u64) -> Deadline {
    Deadline(Instant::from_millis(ms))
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<Deadlines>, Arc<Stopped>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let clock = Arc::new(Stopped(tokio::time::Instant::now()));
        test(Rc::new(Deadlines::new(Arc::clone(&clock) as Arc<dyn Clock>)), clock).await;
    });
}

#[test]
fn each_deadline_passes_in_its_time_whatever_the_order_in_which_they_came() {
    run(|deadlines, clock| async move {
        let mut waiting = tokio::task::JoinSet::new();
        for ms in [50, 20, 80, 20, 10_000] {
            let (deadlines, clock) = (Rc::clone(&deadlines), Arc::clone(&clock));
            waiting.spawn_local(async move {
                deadlines.passed(at(ms)).await;
                (ms, clock.now())
            });
        }
        let mut passed = Vec::new();
        while let Some(one) = waiting.join_next().await {
            let (ms, now) = one.unwrap();
            assert!(now >= at(ms).0 && now <= at(ms + 2).0, "{ms} ms passed at {now:?}");
            passed.push(ms);
        }
        assert_eq!(passed, [20, 20, 50, 80, 10_000]);
    });
}

#[test]
fn one_that_has_passed_does_not_wait() {
    run(|deadlines, _| async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut passed = deadlines.passed(at(5));
        assert!(is_ready(&mut passed));
        // Asked again, it says the same.
        assert!(is_ready(&mut passed));
    });
}

#[test]
fn the_timer_is_not_touched_by_deadlines_later_than_what_it_is_set_to() {
    run(|deadlines, _| async move {
        let set_to = || deadlines.inner.set_to.get();
        {
            let mut first = deadlines.passed(at(50));
            assert!(!is_ready(&mut first));
        }
        assert!(deadlines.inner.waiting.borrow().is_empty(), "a call that ended waits for nothing");
        assert_eq!(set_to(), Some(at(50).0), "but the timer stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut later = deadlines.passed(at(60));
        assert!(!is_ready(&mut later));
        assert_eq!(set_to(), Some(at(50).0));
        let mut earlier = deadlines.passed(at(30));
        assert!(!is_ready(&mut earlier));
        assert_eq!(set_to(), Some(at(30).0));
        earlier.await;
        // Whoever looks at the clock may see that it has passed before the timer does.
        tokio::task::yield_now().await;
        assert_eq!(set_to(), Some(at(60).0));
        later.await;
        tokio::task::yield_now().await;
        assert_eq!(set_to(), None);
    });
}

#[test]
fn its_timer_ends_with_it() {
    run(|deadlines, _| async move {
        let timer = deadlines.timer.clone();
        drop(deadlines);
        tokio::task::yield_now().await;
        assert!(timer.is_finished());
    });
}

fn is_ready(passed: &mut Passed<'_>) -> bool {
    Pin::new(passed).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}
