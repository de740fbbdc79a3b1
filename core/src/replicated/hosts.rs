//! Where queries begin: what clients are told of a plan, so that they go where they need no hop.

use std::collections::{BTreeMap, BTreeSet};

use super::State;
use crate::ids::ModelRef;

impl State {
    /// By endpoint, in the order of their names: the nodes with a replica of what its queries begin with, in whichever version, by their numbers in
    /// the order of the nodes' names. Empty where none stands, as for a model that is loaded on demand alone.
    pub fn hosts(&self) -> Vec<Vec<u16>> {
        // Who does not fit into the numbers is asked as any node is where nobody knows better.
        let numbers: BTreeMap<_, _> = self.nodes.keys().zip(0..=u16::MAX).collect();
        let mut nodes: BTreeMap<&ModelRef, BTreeSet<u16>> = BTreeMap::new();
        for at in self.plan.assignments.values() {
            nodes.entry(&at.model).or_default().extend(numbers.get(&at.node));
        }
        let hosts = self.endpoints.values().map(|endpoint| {
            let nodes: BTreeSet<u16> =
                endpoint.begins().filter_map(|model| nodes.get(model)).flatten().copied().collect();
            nodes.into_iter().collect()
        });
        hosts.collect()
    }
}
