//! One timer for the deadlines of all calls of a thread.
//!
//! A timer of its own for each call would be the earliest of its thread as often as not, and tokio then wakes the thread it is
//! set on: a system call, and a turn of the event loop for nothing. Calls end long before their deadlines as a rule. So
//! there is one timer, set to the earliest deadline when it was last looked at: it stays where the call that it was set for has
//! ended, and a later deadline does not move it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use weir_core::units::{Deadline, Instant};
use weir_host::clock::Clock;

/// Deadlines of the calls of one thread. Needs a `LocalSet` around it.
pub struct Deadlines {
    inner: Rc<Inner>,
    timer: tokio::task::AbortHandle,
}

struct Inner {
    clock: Arc<dyn Clock>,
    /// By deadline, then in the order in which they began to wait: the order in which they are woken.
    waiting: RefCell<BTreeMap<Key, Waker>>,
    next: Cell<u64>,
    /// What the timer is set to; never later than the earliest that waits.
    set_to: Cell<Option<Instant>>,
    /// Tells the timer that one is due before what it is set to.
    earlier: Notify,
}

type Key = (Instant, u64);

impl Deadlines {
    /// None yet; its timer runs as a task of this thread until this is dropped.
    pub fn new(clock: Arc<dyn Clock>) -> Deadlines {
        let inner = Rc::new(Inner {
            clock,
            waiting: RefCell::default(),
            next: Cell::new(0),
            set_to: Cell::new(None),
            earlier: Notify::new(),
        });
        let timer = tokio::task::spawn_local(keep_time(Rc::clone(&inner))).abort_handle();
        Deadlines { inner, timer }
    }

    /// Ends when `deadline` has passed.
    pub fn passed(&self, deadline: Deadline) -> Passed<'_> {
        Passed { inner: &self.inner, at: deadline.0, key: None }
    }
}

impl Drop for Deadlines {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

async fn keep_time(inner: Rc<Inner>) {
    loop {
        let Some(at) = inner.set_to.get() else {
            inner.earlier.notified().await;
            continue;
        };
        tokio::select! {
            biased;
            () = inner.earlier.notified() => {}
            () = tokio::time::sleep(at.since(inner.clock.now())) => inner.fire(),
        }
    }
}

impl Inner {
    /// Wakes those whose deadline has passed, and sets the timer to the next one.
    fn fire(&self) {
        let now = self.clock.now();
        let due = {
            let mut waiting = self.waiting.borrow_mut();
            // Keys of what is due now are at most this one.
            let later = waiting.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut *waiting, later);
            self.set_to.set(waiting.keys().next().map(|(at, _)| *at));
            due
        };
        due.into_values().for_each(Waker::wake);
    }
}

/// See [`Deadlines::passed`].
pub struct Passed<'a> {
    inner: &'a Inner,
    at: Instant,
    key: Option<Key>,
}

impl Future for Passed<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let (inner, at) = (self.inner, self.at);
        if inner.clock.now() >= at {
            return Poll::Ready(());
        }
        let key = *self.key.get_or_insert_with(|| (at, inner.next.replace(inner.next.get() + 1)));
        inner.waiting.borrow_mut().insert(key, context.waker().clone());
        if inner.set_to.get().is_none_or(|set_to| at < set_to) {
            inner.set_to.set(Some(at));
            inner.earlier.notify_one();
        }
        Poll::Pending
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.inner.waiting.borrow_mut().remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;
