use std::sync::{Arc, Mutex};
use std::task::Wake;
use std::thread::ThreadId;

use super::*;

fn run<F: Future<Output = ()>>(test: impl FnOnce(Returns<u32>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async { test(Returns::new()).await });
}

/// Sends from a thread of its own, to its end.
fn send(sender: Sender<u32>, replies: impl IntoIterator<Item = u32> + Send + 'static) {
    std::thread::spawn(move || replies.into_iter().for_each(|reply| sender.send(reply))).join().unwrap();
}

#[test]
fn each_call_gets_its_own_replies_in_the_order_in_which_they_came() {
    run(|returns| async move {
        let (mut one, mut other) = (returns.open(), returns.open());
        let (to_one, to_other) = (one.sender(), other.sender());
        send(to_one.clone(), [1, 2]);
        send(to_other, [10]);
        send(to_one.clone(), [3]);
        assert_eq!(other.take().await, [10]);
        assert_eq!(one.take().await, [1, 2, 3]);
        let waits = tokio::task::spawn_local(async move { one.take().await });
        tokio::task::yield_now().await;
        send(to_one, [4]);
        assert_eq!(waits.await.unwrap(), [4]);
    });
}

#[test]
fn what_comes_for_a_call_that_was_dropped_is_dropped() {
    run(|returns| async move {
        let (gone, mut stays) = (returns.open(), returns.open());
        let (to_gone, to_stays) = (gone.sender(), stays.sender());
        drop(gone);
        send(to_gone, [1]);
        send(to_stays, [2]);
        assert_eq!(stays.take().await, [2]);
        assert!(returns.inner.arrived.borrow_mut().try_recv().is_err(), "nothing lies there");
    });
}

#[test]
fn who_looks_when_its_time_has_passed_sees_what_came_before() {
    run(|returns| async move {
        let mut call = returns.open();
        let sender = call.sender();
        assert!(Pin::new(&mut call.take()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        send(sender, [1]);
        let seen = tokio::select! {
            biased;
            replies = call.take() => replies,
            () = std::future::ready(()) => Vec::new(),
        };
        assert_eq!(seen, [1], "nobody has handed it out yet");
    });
}

/// Remembers which threads woke it.
#[derive(Default)]
struct Woken(Mutex<Vec<ThreadId>>);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.lock().unwrap().push(std::thread::current().id());
    }
}

#[test]
fn a_call_is_woken_by_its_own_thread() {
    run(|returns| async move {
        let mut call = returns.open();
        let (sender, woken) = (call.sender(), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let mut take = call.take();
        assert!(Pin::new(&mut take).poll(&mut Context::from_waker(&waker)).is_pending());
        send(sender, [1, 2]);
        assert!(woken.0.lock().unwrap().is_empty(), "not by who sends");
        tokio::task::yield_now().await;
        assert_eq!(*woken.0.lock().unwrap(), [std::thread::current().id()], "once");
        assert!(matches!(
            Pin::new(&mut take).poll(&mut Context::from_waker(&waker)),
            Poll::Ready(replies) if replies == [1, 2]
        ));
    });
}
