//! Where each waiting ticket stands: a table with open addresses, because a tree's search for each row that comes and goes was
//! a third of what a decision costs. Nothing goes through it in order, so that no order can reach a decision.

use crate::ids::TicketId;
use crate::units::Instant;

use super::lane::LaneKey;
use super::pool::ModelIndex;

/// Where a waiting ticket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub model: ModelIndex,
    pub lane: LaneKey,
    pub key: Instant,
}

/// Places by ticket. At most half of the table is full, so that searches are short.
#[derive(Debug)]
pub(super) struct Places {
    /// As many as a power of two.
    table: Vec<Option<(TicketId, Place)>>,
    len: usize,
}

/// 2⁶⁴ divided by the golden ratio: spreads numbers that follow each other.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

impl Places {
    pub fn new() -> Places {
        Places { table: vec![None; 16], len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Panics where the ticket stands somewhere already: each names one row.
    pub fn insert(&mut self, ticket: TicketId, place: Place) {
        if 2 * (self.len + 1) > self.table.len() {
            let larger = vec![None; 2 * self.table.len()];
            for (ticket, place) in std::mem::replace(&mut self.table, larger).into_iter().flatten() {
                let at = self.find(ticket);
                self.table[at] = Some((ticket, place));
            }
        }
        let at = self.find(ticket);
        assert!(self.table[at].is_none(), "ticket {ticket:?} waits already");
        self.table[at] = Some((ticket, place));
        self.len += 1;
    }

    pub fn remove(&mut self, ticket: TicketId) -> Option<Place> {
        let mut hole = self.find(ticket);
        let (_, place) = self.table[hole].take()?;
        self.len -= 1;
        // Whoever stands behind, and would have stood in the hole or before it, moves up: else a search would end there.
        let last = self.table.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & last;
            let Some((other, _)) = self.table[at] else { return Some(place) };
            let way = |from: usize| at.wrapping_sub(from) & last;
            if way(self.home(other)) >= way(hole) {
                self.table[hole] = self.table[at].take();
                hole = at;
            }
        }
    }

    fn home(&self, ticket: TicketId) -> usize {
        (ticket.0.wrapping_mul(SPREAD) >> (64 - self.table.len().trailing_zeros())) as usize
    }

    /// Where a ticket stands in the table, or would.
    fn find(&self, ticket: TicketId) -> usize {
        let mut at = self.home(ticket);
        while self.table[at].is_some_and(|(other, _)| other != ticket) {
            at = (at + 1) & (self.table.len() - 1);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::outcome::Class;
    use crate::scheduler::ShapeKey;

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
            for (ticket, place) in tree {
                prop_assert_eq!(places.remove(ticket), Some(place));
            }
        }
    }
}
