//! Several streams of arrivals as one: endpoints that share a cluster.
//!
//! Each source draws from its own generator, so that adding, removing or changing one leaves the instants of the others
//! as they were: give the source numbered i [`Prng::part`]`(seed, i)`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::prng::Prng;
use crate::units::Instant;

use super::process::{Instants, Process};

/// The instants of all sources in order, each with the index of its source; of equal ones the lower index is first.
#[derive(Clone, Debug)]
pub struct Superposition {
    sources: Vec<Instants>,
    /// The next instant of each source that has one.
    next: BinaryHeap<Reverse<(Instant, usize)>>,
}

impl Superposition {
    /// Joins processes, each with what it draws from.
    pub fn new(sources: Vec<(Process, Prng)>) -> Self {
        let mut sources: Vec<Instants> = sources.into_iter().map(|(process, prng)| process.instants(prng)).collect();
        let first = |(source, instants): (usize, &mut Instants)| Some(Reverse((instants.next()?, source)));
        let next = sources.iter_mut().enumerate().filter_map(first).collect();
        Superposition { sources, next }
    }
}

impl Iterator for Superposition {
    type Item = (Instant, usize);

    fn next(&mut self) -> Option<(Instant, usize)> {
        // Replaced in place where the source goes on: one sift instead of two.
        let mut top = self.next.peek_mut()?;
        let Reverse((at, source)) = *top;
        match self.sources[source].next() {
            Some(later) => *top = Reverse((later, source)),
            None => {
                std::collections::binary_heap::PeekMut::pop(top);
            }
        }
        Some((at, source))
    }
}
