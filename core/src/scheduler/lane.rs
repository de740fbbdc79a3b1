//! Rows of one model that may share a batch, in order of service.

use std::collections::VecDeque;

use crate::ids::TicketId;
use crate::outcome::Class;
use crate::triage::Stake;
use crate::units::{Deadline, Instant};

use super::ShapeKey;

/// Which rows stand together: equal shape and class, and whether they may share a batch at all. The most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LaneKey {
    pub class: Class,
    /// Each runs by itself, whatever its shape.
    pub alone: bool,
    pub shape: ShapeKey,
}

/// A row that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Order of service: the deadline, or the arrival where a policy serves in that order.
    pub key: Instant,
    pub ticket: TicketId,
    pub deadline: Deadline,
    /// By when it is to be done where there is a choice: the deadline, or sooner.
    pub due: Instant,
    pub since: Instant,
    pub rows: u32,
    /// As it stands in the books of triage; nothing where it does not.
    pub stake: Option<Stake>,
}

/// Sorted by (key, ticket). Arrivals as a rule go near the end, departures to the front: a deque moves little for either,
/// and rank and position are binary searches.
#[derive(Debug, Default)]
pub(super) struct Lane {
    entries: VecDeque<Entry>,
    rows: usize,
}

impl Lane {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What all of it costs, in rows of the profile.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn front(&self) -> Option<&Entry> {
        self.entries.front()
    }

    /// The one that has `at` before it.
    pub fn get(&self, at: usize) -> Option<&Entry> {
        self.entries.get(at)
    }

    pub fn back(&self) -> Option<&Entry> {
        self.entries.back()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub fn insert(&mut self, entry: Entry) {
        let at = self.position(entry.key, entry.ticket);
        self.rows += entry.rows as usize;
        self.entries.insert(at, entry);
    }

    pub fn remove(&mut self, key: Instant, ticket: TicketId) -> Option<Entry> {
        let at = self.position(key, ticket);
        if self.entries.get(at).is_none_or(|entry| entry.ticket != ticket) {
            return None;
        }
        let entry = self.entries.remove(at)?;
        self.rows -= entry.rows as usize;
        Some(entry)
    }

    pub fn pop_front(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.rows -= entry.rows as usize;
        Some(entry)
    }

    /// Rows that are served before what comes now with this key. Where rows of the profile differ from one query to the
    /// next, the average stands for each.
    pub fn rows_before(&self, key: Instant) -> usize {
        let before = self.position(key, TicketId(u64::MAX));
        if before == self.len() || self.rows == self.len() {
            return if before == self.len() { self.rows } else { before };
        }
        self.rows * before / self.len()
    }

    fn position(&self, key: Instant, ticket: TicketId) -> usize {
        if self.entries.back().is_none_or(|last| (last.key, last.ticket) < (key, ticket)) {
            return self.entries.len();
        }
        self.entries.partition_point(|entry| (entry.key, entry.ticket) < (key, ticket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: u64, ticket: u64, rows: u32) -> Entry {
        let at = Instant::from_millis(key);
        Entry {
            key: at,
            ticket: TicketId(ticket),
            deadline: Deadline(at),
            due: at,
            since: Instant::ZERO,
            rows,
            stake: None,
        }
    }

    #[test]
    fn rows_stand_by_key_and_then_by_ticket_however_they_came() {
        let mut lane = Lane::default();
        for (key, ticket) in [(5, 1), (3, 2), (5, 0), (9, 3), (3, 4)] {
            lane.insert(entry(key, ticket, 1));
        }
        let order: Vec<u64> = lane.iter().map(|entry| entry.ticket.0).collect();
        assert_eq!(order, [2, 4, 0, 1, 3]);
        assert_eq!(lane.rows_before(Instant::from_millis(5)), 4, "equal keys that came first are served first");
        assert_eq!(lane.rows_before(Instant::from_millis(2)), 0);
        assert!(lane.remove(Instant::from_millis(5), TicketId(7)).is_none());
        assert_eq!(lane.remove(Instant::from_millis(5), TicketId(0)).unwrap().ticket, TicketId(0));
        assert_eq!((lane.len(), lane.rows()), (4, 4));
    }

    #[test]
    fn queries_of_many_rows_count_as_many() {
        let mut lane = Lane::default();
        lane.insert(entry(1, 0, 10));
        lane.insert(entry(2, 1, 30));
        assert_eq!(lane.rows_before(Instant::from_millis(3)), 40);
        assert_eq!(lane.rows_before(Instant::from_millis(1)), 20);
        lane.pop_front();
        assert_eq!(lane.rows(), 30);
    }
}
