//! What happens next: events in order of time, and of their making where times are equal.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use weir_core::units::Instant;

/// Events that are still to come.
#[derive(Debug)]
pub struct Agenda<E> {
    now: Instant,
    made: u64,
    events: BinaryHeap<Reverse<Entry<E>>>,
}

#[derive(Debug)]
struct Entry<E> {
    at: Instant,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<E> Agenda<E> {
    /// Nothing to do, at [`Instant::ZERO`].
    pub fn new() -> Agenda<E> {
        Agenda { now: Instant::ZERO, made: 0, events: BinaryHeap::new() }
    }

    /// The instant of the event that happened last.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Lets `event` happen at `at`, or now where that is past.
    pub fn at(&mut self, at: Instant, event: E) {
        self.made += 1;
        self.events.push(Reverse(Entry { at: at.max(self.now), number: self.made, event }));
    }

    /// The next event; time moves on to it.
    #[allow(clippy::should_implement_trait)] // who handles an event makes others: no iterator could be borrowed meanwhile
    pub fn next(&mut self) -> Option<E> {
        let Reverse(entry) = self.events.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Agenda::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_making() {
        let mut agenda = Agenda::new();
        let ms = Instant::from_millis;
        for (at, event) in [(3, 'c'), (1, 'a'), (3, 'd'), (2, 'b')] {
            agenda.at(ms(at), event);
        }
        assert_eq!(agenda.next(), Some('a'));
        agenda.at(ms(0), 'x');
        assert_eq!((agenda.next(), agenda.now()), (Some('x'), ms(1)), "the past is now");
        assert_eq!(
            [agenda.next(), agenda.next(), agenda.next(), agenda.next()],
            [Some('b'), Some('c'), Some('d'), None]
        );
    }
}
