//! The way of replies back to the calls of a thread.
//!
//! capnp-rpc puts a lock around each call, which it takes to wake it and to run it. A slot's thread that woke a call would be put off
//! its core under that lock by the thread that it woke, which would run into it: two more changes of threads, at one lone call in
//! five. So slots wake a task of the thread, once for all that has come, and it hands replies to calls.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::sync::mpsc;

/// Where replies to the calls of one thread arrive. Needs a `LocalSet` around it.
pub struct Returns<T> {
    inner: Rc<Inner<T>>,
    sender: mpsc::UnboundedSender<Letter<T>>,
    sorting: tokio::task::AbortHandle,
}

struct Inner<T> {
    /// One for each row that is under way at most.
    arrived: RefCell<mpsc::UnboundedReceiver<Letter<T>>>,
    /// By call.
    boxes: RefCell<BTreeMap<u64, Letters<T>>>,
    next: Cell<u64>,
}

struct Letter<T> {
    call: u64,
    reply: T,
}

/// What has come for a call and was not taken.
struct Letters<T> {
    replies: Vec<T>,
    waker: Option<Waker>,
}

/// Sends replies to one call, from any thread.
pub struct Sender<T> {
    call: u64,
    sender: mpsc::UnboundedSender<Letter<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { call: self.call, sender: self.sender.clone() }
    }
}

impl<T> Sender<T> {
    /// Nobody takes it where the call was dropped.
    pub fn send(&self, reply: T) {
        let _ = self.sender.send(Letter { call: self.call, reply });
    }
}

/// Where one call takes its replies.
pub struct Mailbox<T> {
    call: u64,
    inner: Rc<Inner<T>>,
    sender: mpsc::UnboundedSender<Letter<T>>,
}

impl<T: 'static> Returns<T> {
    /// None yet; a task of this thread hands them out until this is dropped.
    pub fn new() -> Returns<T> {
        let (sender, arrived) = mpsc::unbounded_channel();
        let inner = Rc::new(Inner { arrived: RefCell::new(arrived), boxes: RefCell::default(), next: Cell::new(0) });
        let sorts = Rc::clone(&inner);
        let sort = std::future::poll_fn(move |context| sorts.poll_sort(context));
        let sorting = tokio::task::spawn_local(sort).abort_handle();
        Returns { inner, sender, sorting }
    }

    /// For the replies of one more call.
    pub fn open(&self) -> Mailbox<T> {
        let call = self.inner.next.get();
        self.inner.next.set(call + 1);
        self.inner.boxes.borrow_mut().insert(call, Letters { replies: Vec::new(), waker: None });
        Mailbox { call, inner: Rc::clone(&self.inner), sender: self.sender.clone() }
    }
}

impl<T> Drop for Returns<T> {
    fn drop(&mut self) {
        self.sorting.abort();
    }
}

impl<T> Inner<T> {
    /// Hands out what has come, and is woken by what comes.
    fn poll_sort(&self, context: &mut Context<'_>) -> Poll<()> {
        while let Some(letter) = ready!(self.arrived.borrow_mut().poll_recv(context)) {
            self.put(letter);
        }
        Poll::Ready(())
    }

    /// Hands out what has come.
    fn sort(&self) {
        let next = || self.arrived.borrow_mut().try_recv().ok();
        std::iter::from_fn(next).for_each(|letter| self.put(letter));
    }

    fn put(&self, letter: Letter<T>) {
        if let Some(letters) = self.boxes.borrow_mut().get_mut(&letter.call) {
            letters.replies.push(letter.reply);
            letters.waker.take().into_iter().for_each(Waker::wake);
        }
    }
}

impl<T> Mailbox<T> {
    /// Sends here.
    pub fn sender(&self) -> Sender<T> {
        Sender { call: self.call, sender: self.sender.clone() }
    }

    /// All that has come, once there is something.
    pub fn take(&mut self) -> Take<'_, T> {
        Take(self)
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        let dropped = self.inner.boxes.borrow_mut().remove(&self.call);
        drop(dropped);
    }
}

/// See [`Mailbox::take`].
pub struct Take<'a, T>(&'a mut Mailbox<T>);

impl<T> Take<'_, T> {
    fn letters<R>(&self, with: impl FnOnce(&mut Letters<T>) -> R) -> R {
        let mut boxes = self.0.inner.boxes.borrow_mut();
        with(boxes.get_mut(&self.0.call).expect("a mailbox is there until it is dropped"))
    }
}

impl<T> Future for Take<'_, T> {
    type Output = Vec<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<T>> {
        // It is awake.
        self.letters(|letters| letters.waker = None);
        // Whoever looks because its deadline has passed sees what came before that, handed out or not.
        self.0.inner.sort();
        self.letters(|letters| {
            if letters.replies.is_empty() {
                letters.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(std::mem::take(&mut letters.replies))
        })
    }
}

#[cfg(test)]
mod tests;
