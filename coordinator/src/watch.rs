//! The last changes in log order, for those who follow the state.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::Notify;
use weir_core::ids::LogIndex;
use weir_core::replicated::Change;

/// Entries kept. Who is further behind reads the state anew.
const KEPT: usize = 8192;
/// Entries in one answer, so that it stays far below the limit of a message.
const PER_ANSWER: usize = 256;

/// The last changes.
pub struct Changes {
    ring: RefCell<Ring>,
    last: Cell<LogIndex>,
    pushed: Notify,
}

struct Ring {
    /// Everything after this index is here.
    complete_after: LogIndex,
    entries: VecDeque<(LogIndex, Vec<Change>)>,
}

/// What a watcher gets.
#[derive(Debug, PartialEq)]
pub enum Seen {
    /// Entries with their changes, in order, and the index up to which this is everything.
    Changes(Vec<(LogIndex, Vec<Change>)>, LogIndex),
    /// They go back only to this index.
    TooOld(LogIndex),
}

impl Changes {
    /// Nothing yet after `applied`.
    pub fn new(applied: LogIndex) -> Changes {
        let ring = Ring { complete_after: applied, entries: VecDeque::new() };
        Changes { ring: RefCell::new(ring), last: Cell::new(applied), pushed: Notify::new() }
    }

    /// Takes the changes of the entry at `index`; none means that a snapshot has skipped everything before it.
    pub fn push(&self, index: LogIndex, changes: Vec<Change>) {
        let mut ring = self.ring.borrow_mut();
        if changes.is_empty() {
            ring.entries.clear();
            ring.complete_after = index;
        } else {
            ring.entries.push_back((index, changes));
            if ring.entries.len() > KEPT {
                let (oldest, _) = ring.entries.pop_front().expect("it is full");
                ring.complete_after = oldest;
            }
        }
        drop(ring);
        self.last.set(index);
        self.pushed.notify_waiters();
    }

    /// What changed after `since`; waits at most `wait` for something to.
    pub async fn after(&self, since: LogIndex, wait: Duration) -> Seen {
        let newer = async {
            while self.last.get() <= since {
                self.pushed.notified().await;
            }
        };
        // Whether it came or not, the answer is what there is.
        let _ = tokio::time::timeout(wait, newer).await;
        let ring = self.ring.borrow();
        if since < ring.complete_after {
            return Seen::TooOld(ring.complete_after);
        }
        let entries: Vec<_> =
            ring.entries.iter().filter(|(index, _)| *index > since).take(PER_ANSWER).cloned().collect();
        let index = entries.last().map_or(since, |(index, _)| *index);
        Seen::Changes(entries, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(n: u64) -> Vec<Change> {
        vec![Change::Cluster(n.to_string())]
    }

    async fn now(changes: &Changes, since: u64) -> Seen {
        changes.after(LogIndex(since), Duration::ZERO).await
    }

    #[tokio::test]
    async fn changes_come_in_order_and_complete_or_not_at_all() {
        let changes = Changes::new(LogIndex(5));
        assert_eq!(now(&changes, 5).await, Seen::Changes(vec![], LogIndex(5)));
        assert_eq!(now(&changes, 4).await, Seen::TooOld(LogIndex(5)));
        changes.push(LogIndex(7), change(7));
        changes.push(LogIndex(9), change(9));
        assert_eq!(now(&changes, 7).await, Seen::Changes(vec![(LogIndex(9), change(9))], LogIndex(9)));
        changes.push(LogIndex(20), Vec::new());
        assert_eq!(now(&changes, 9).await, Seen::TooOld(LogIndex(20)), "a snapshot skipped what was between");
        assert_eq!(now(&changes, 20).await, Seen::Changes(vec![], LogIndex(20)));
    }

    #[tokio::test]
    async fn what_falls_out_of_the_ring_is_too_old() {
        let changes = Changes::new(LogIndex(0));
        for i in 1..=KEPT as u64 + 1 {
            changes.push(LogIndex(i), change(i));
        }
        assert_eq!(now(&changes, 0).await, Seen::TooOld(LogIndex(1)));
        let Seen::Changes(entries, index) = now(&changes, 1).await else { panic!("it is there") };
        assert_eq!((entries.len(), index), (PER_ANSWER, LogIndex(1 + PER_ANSWER as u64)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_waits_for_the_next_change() {
        let changes = std::rc::Rc::new(Changes::new(LogIndex(0)));
        let later = std::rc::Rc::clone(&changes);
        let waiting = changes.after(LogIndex(0), Duration::from_secs(3600));
        let (seen, ()) = tokio::join!(waiting, async { later.push(LogIndex(1), change(1)) });
        assert_eq!(seen, Seen::Changes(vec![(LogIndex(1), change(1))], LogIndex(1)));
    }
}
