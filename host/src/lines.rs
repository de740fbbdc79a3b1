//! This thread's connections to others, one to each: who wants one that is not there waits for the one dial that all share.
//!
//! A dial goes on without those who wait for it: a caller with less time than a dial takes would never find one done. Those who
//! wait are woken in the order in which they came, so that a simulation repeats.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;
use weir_core::ids::NodeName;

use crate::dial::{DialError, Entered};

/// What is kept of a connection for its users.
pub trait Line: Clone + 'static {
    /// Whether another connection should take its place.
    fn is_spent(&self) -> bool;
}

impl Line for Entered {
    fn is_spent(&self) -> bool {
        Entered::is_spent(self)
    }
}

/// Lines by the name of who is at the other end.
pub struct Lines<L>(RefCell<BTreeMap<NodeName, Rc<Dial<L>>>>);

impl<L> Default for Lines<L> {
    fn default() -> Self {
        Lines(RefCell::default())
    }
}

/// One dial, and what came of it.
struct Dial<L> {
    /// `None` while it goes on.
    ended: RefCell<Option<Result<L, DialError>>>,
    over: Notify,
}

impl<L> Dial<L> {
    fn end(&self, with: Result<L, DialError>) {
        *self.ended.borrow_mut() = Some(with);
        self.over.notify_waiters();
    }
}

/// Ends a dial that is dropped on its way, or whoever waits for it would wait for ever.
struct Dialling<L> {
    dial: Rc<Dial<L>>,
    address: String,
}

impl<L> Drop for Dialling<L> {
    fn drop(&mut self) {
        if self.dial.ended.borrow().is_none() {
            let (address, cause) = (std::mem::take(&mut self.address), "nobody dials any more".to_owned());
            self.dial.end(Err(DialError::Connect { address, cause }));
        }
    }
}

impl<L: Line> Lines<L> {
    /// The line to `peer`; calls `dial` where there is none, and runs what it gives as a task of this thread's `LocalSet`. What
    /// came of that is for all who wait; who asks later than a failure dials anew.
    pub async fn get<F>(&self, peer: &NodeName, address: &str, dial: impl FnOnce() -> F) -> Result<L, DialError>
    where
        F: Future<Output = Result<L, DialError>> + 'static,
    {
        let line = self.known(peer).unwrap_or_else(|| self.dial(peer, address, dial()));
        loop {
            // Made before the look, so that no end falls between the two.
            let over = line.over.notified();
            if let Some(ended) = &*line.ended.borrow() {
                return ended.clone();
            }
            over.await;
        }
    }

    /// What `look` finds of the line to a peer; nothing where it does not stand.
    pub fn look<T>(&self, peer: &NodeName, look: impl FnOnce(&L) -> T) -> Option<T> {
        let line = self.known(peer)?;
        match &*line.ended.borrow() {
            Some(Ok(line)) => Some(look(line)),
            _ => None,
        }
    }

    /// Lets go of the line to a peer that does not answer: it may be dead without a word. A dial that goes on does.
    pub fn forget(&self, peer: &NodeName) {
        let mut lines = self.0.borrow_mut();
        if lines.get(peer).is_some_and(|dial| dial.ended.borrow().is_some()) {
            lines.remove(peer);
        }
    }

    fn known(&self, peer: &NodeName) -> Option<Rc<Dial<L>>> {
        let lines = self.0.borrow();
        let dial = lines.get(peer)?;
        let usable = match &*dial.ended.borrow() {
            Some(Ok(line)) => !line.is_spent(),
            Some(Err(_)) => false,
            None => true,
        };
        usable.then(|| Rc::clone(dial))
    }

    fn dial(
        &self,
        peer: &NodeName,
        address: &str,
        dialled: impl Future<Output = Result<L, DialError>> + 'static,
    ) -> Rc<Dial<L>> {
        let dial = Rc::new(Dial { ended: RefCell::new(None), over: Notify::new() });
        let dialling = Dialling { dial: Rc::clone(&dial), address: address.to_owned() };
        tokio::task::spawn_local(async move {
            let ended = dialled.await;
            dialling.dial.end(ended);
        });
        self.0.borrow_mut().insert(peer.clone(), Rc::clone(&dial));
        dial
    }
}

#[cfg(test)]
mod tests;
