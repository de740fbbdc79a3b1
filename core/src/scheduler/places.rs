//! Where each waiting ticket stands: a table with open addresses, because a tree's search for each row that comes and goes was
//! a third of what a decision costs. Nothing goes through it in order, so that no order can reach a decision.

use crate::ids::TicketId;
use crate::outcome::Class;
use crate::units::Instant;

use super::ShapeKey;
use super::lane::LaneKey;
use super::pool::ModelIndex;

/// Where a waiting ticket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub model: ModelIndex,
    pub lane: LaneKey,
    pub key: Instant,
}

/// Places by ticket. At most half of the table is full, so that searches are short. Tickets stand apart from their places: a
/// search reads eight of them at once, and whoever leaves to run never reads a place.
#[derive(Debug)]
pub(super) struct Places {
    /// As many as a power of two; [`NOBODY`] where there is none.
    tickets: Vec<TicketId>,
    /// Where the ticket of the same number stands.
    places: Vec<Place>,
    len: usize,
}

/// No ticket has this number.
const NOBODY: TicketId = TicketId(u64::MAX);

/// What stands where no ticket does.
const NOWHERE: Place =
    Place { model: 0, lane: LaneKey { class: Class::Default, alone: false, shape: ShapeKey(0) }, key: Instant::ZERO };

/// 2⁶⁴ divided by the golden ratio: spreads numbers that follow each other.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

impl Places {
    pub fn new() -> Places {
        Places::of_size(16)
    }

    fn of_size(size: usize) -> Places {
        Places { tickets: vec![NOBODY; size], places: vec![NOWHERE; size], len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Panics where the ticket stands somewhere already: each names one row.
    pub fn insert(&mut self, ticket: TicketId, place: Place) {
        assert!(ticket != NOBODY, "{ticket:?} names no row");
        if 2 * (self.len + 1) > self.tickets.len() {
            let larger = Places::of_size(2 * self.tickets.len());
            let before = std::mem::replace(self, larger);
            for (ticket, place) in before.tickets.into_iter().zip(before.places).filter(|(ticket, _)| *ticket != NOBODY)
            {
                self.put(ticket, place);
            }
        }
        self.put(ticket, place);
    }

    fn put(&mut self, ticket: TicketId, place: Place) {
        let at = self.find(ticket);
        assert!(self.tickets[at] == NOBODY, "ticket {ticket:?} waits already");
        self.tickets[at] = ticket;
        self.places[at] = place;
        self.len += 1;
    }

    pub fn get(&self, ticket: TicketId) -> Option<Place> {
        let at = self.find(ticket);
        (self.tickets[at] != NOBODY).then(|| self.places[at])
    }

    pub fn remove(&mut self, ticket: TicketId) -> Option<Place> {
        let place = self.get(ticket)?;
        self.forget(ticket);
        Some(place)
    }

    /// Takes out a ticket that stands somewhere, whose place the caller knows.
    pub fn forget(&mut self, ticket: TicketId) {
        let at = self.find(ticket);
        assert!(self.tickets[at] == ticket, "ticket {ticket:?} waits");
        self.empty(at);
    }

    fn empty(&mut self, at: usize) {
        self.len -= 1;
        // Whoever stands behind, and would have stood in the hole or before it, moves up: else a search would end there.
        let last = self.tickets.len() - 1;
        let (mut hole, mut at) = (at, at);
        loop {
            at = (at + 1) & last;
            let other = self.tickets[at];
            if other == NOBODY {
                self.tickets[hole] = NOBODY;
                return;
            }
            let way = |from: usize| at.wrapping_sub(from) & last;
            if way(self.home(other)) >= way(hole) {
                self.tickets[hole] = other;
                self.places[hole] = self.places[at];
                hole = at;
            }
        }
    }

    fn home(&self, ticket: TicketId) -> usize {
        (ticket.0.wrapping_mul(SPREAD) >> (64 - self.tickets.len().trailing_zeros())) as usize
    }

    /// Where a ticket stands in the table, or would.
    fn find(&self, ticket: TicketId) -> usize {
        let mut at = self.home(ticket);
        while self.tickets[at] != ticket && self.tickets[at] != NOBODY {
            at = (at + 1) & (self.tickets.len() - 1);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn place(model: usize) -> Place {
        let lane = LaneKey { class: Class::Default, alone: false, shape: ShapeKey(0) };
        Place { model, lane, key: Instant::ZERO }
    }

    proptest! {
        #[test]
        fn it_answers_as_a_tree_does(steps in prop::collection::vec((any::<bool>(), 0..60u64, any::<bool>()), 0..400)) {
            let (mut places, mut tree) = (Places::new(), BTreeMap::new());
            for (i, (insert, ticket, far)) in steps.into_iter().enumerate() {
                // Far ones have the same home as near ones while the table is small.
                let ticket = TicketId(if far { ticket << 40 } else { ticket });
                if insert && !tree.contains_key(&ticket) {
                    places.insert(ticket, place(i));
                    tree.insert(ticket, place(i));
                } else {
                    prop_assert_eq!(places.remove(ticket), tree.remove(&ticket));
                }
                prop_assert_eq!(places.len(), tree.len());
            }
            for (i, (ticket, place)) in tree.into_iter().enumerate() {
                if i % 2 == 0 {
                    prop_assert_eq!(places.remove(ticket), Some(place));
                } else {
                    places.forget(ticket);
                    prop_assert_eq!(places.remove(ticket), None);
                }
            }
            prop_assert_eq!(places.len(), 0);
        }
    }
}
