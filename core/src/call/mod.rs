//! A client's attempts: which node gets a call, and whether one that went wrong may be made again.
//!
//! A call goes to a node that has a replica of what its endpoint begins with, as far as coordinators tell which have. Nodes are compared two at a time by their calls in flight and their observed delay. A node that fails five times in a
//! row is left out for a second, then probed; at most a third of the nodes are left out. Retries are paid from a budget of
//! a tenth of what was sent, so that they cannot become a storm (SRE book, chapter 21).

mod queue;
#[cfg(test)]
mod tests;
mod way;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::NodeName;
use crate::outcome::{Outcome, Rejection};
use crate::prng::Prng;
use crate::units::Instant;

pub use queue::Queue;
pub use way::Way;

/// Rows of one call: at 784 numbers a row some 5,000 fill a message; small rows are bounded here. A client refuses more
/// before it asks, and a node where somebody asks all the same.
pub const ROWS_MAX: u64 = 65_536;
/// Attempts at one call, the first included.
pub const ATTEMPTS_MAX: u32 = 3;
/// Retries per call sent.
const RETRY_RATIO: f64 = 0.1;
/// Retries that may be saved up: a burst of failures of one node of a small cluster.
const RETRY_BURST: f64 = 20.0;
/// Failures in a row that eject a node.
const FAILURES_TO_EJECT: u32 = 5;
const EJECTED_FOR: Duration = Duration::from_secs(1);
const EJECTED_FOR_AT_MOST: Duration = Duration::from_secs(30);
/// First back-off; doubles with each attempt, and the wait is drawn uniformly below it ("full jitter").
const BACK_OFF: Duration = Duration::from_millis(5);

#[derive(Clone, Debug, Default)]
struct Node {
    in_flight: u32,
    /// Moving average of the time to an answer, nanoseconds; zero before the first.
    delay: f64,
    failures: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
    /// One call goes to an ejected node to see whether it is back.
    probing: bool,
}

/// What a client knows of the nodes it calls.
#[derive(Clone, Debug)]
pub struct Balancer {
    nodes: BTreeMap<NodeName, Node>,
    /// The one that is nearest by far.
    preferred: Option<NodeName>,
    retries: f64,
}

impl Balancer {
    /// A balancer that knows no node yet.
    pub fn new() -> Balancer {
        Balancer { nodes: BTreeMap::new(), preferred: None, retries: RETRY_BURST }
    }

    /// Replaces the set of nodes; what is known of those that stay is kept.
    pub fn set_nodes(&mut self, names: impl IntoIterator<Item = NodeName>) {
        let mut old = std::mem::take(&mut self.nodes);
        self.nodes = names.into_iter().map(|name| (name.clone(), old.remove(&name).unwrap_or_default())).collect();
    }

    /// From now on the first attempt is at this node as long as it is known and not left out: it is so near that no other's delay could make
    /// up for the way.
    pub fn prefer(&mut self, node: NodeName) {
        self.preferred = Some(node);
    }

    /// A node for the next attempt, none of `tried` while there are others: one of `hosts`, where queries begin without a hop, while one of them is
    /// known and not left out. `None` where no node is known.
    pub fn pick(&mut self, now: Instant, prng: &mut Prng, hosts: &[NodeName], tried: &[NodeName]) -> Option<NodeName> {
        if let Some((name, node)) = self.nodes.iter_mut().find(|(name, node)| {
            !node.probing && node.ejected_until.is_some_and(|until| until <= now) && !tried.contains(name)
        }) {
            node.probing = true;
            return Some(name.clone());
        }
        let healthy = |node: &Node| node.ejected_until.is_none();
        if let Some(preferred) = self.preferred.as_ref().filter(|name| !tried.contains(name))
            && self.nodes.get(preferred).is_some_and(healthy)
        {
            return Some(preferred.clone());
        }
        let is_healthy = |name: &&NodeName| self.nodes.get(name).is_some_and(healthy);
        let is_untried = |name: &&NodeName| !tried.contains(name);
        let mut pool: Vec<&NodeName> = hosts.iter().filter(is_healthy).filter(is_untried).collect();
        if pool.is_empty() {
            pool = self.nodes.keys().filter(is_healthy).filter(is_untried).collect();
        }
        if pool.is_empty() {
            pool = self.nodes.keys().filter(is_healthy).collect();
        }
        if pool.is_empty() {
            pool = self.nodes.keys().collect();
        }
        if pool.is_empty() {
            return None;
        }
        let first = prng.below(pool.len() as u64) as usize;
        // Another one, where there is another.
        let second = match pool.len() as u64 {
            1 => first,
            many => (first + 1 + prng.below(many - 1) as usize) % pool.len(),
        };
        let (first, second) = (pool[first], pool[second]);
        // A node that has not answered yet is thought as fast as the fastest: tried soon, and not instead of all others.
        let delays = self.nodes.values().map(|node| node.delay).filter(|delay| *delay > 0.0);
        let fastest = delays.min_by(f64::total_cmp).unwrap_or(1.0);
        let load = |name: &NodeName| {
            let node = &self.nodes[name];
            f64::from(node.in_flight + 1) * if node.delay > 0.0 { node.delay } else { fastest }
        };
        Some(if load(second) < load(first) { second.clone() } else { first.clone() })
    }

    /// A call was sent to `node`.
    pub fn on_sent(&mut self, node: &NodeName, attempt: u32) {
        if attempt == 1 {
            self.retries = (self.retries + RETRY_RATIO).min(RETRY_BURST);
        }
        if let Some(node) = self.nodes.get_mut(node) {
            node.in_flight += 1;
        }
    }

    /// The call ended after `took`. Refusals for the caller's own fault count as a sign of life. True where the node is left
    /// out because of it: its connection, too, is not to be trusted any more.
    pub fn on_outcome(&mut self, now: Instant, name: &NodeName, outcome: Outcome, took: Duration) -> bool {
        let ejected = self.nodes.values().filter(|node| node.ejected_until.is_some()).count();
        // At most a third; of two or three nodes one, or a dead one would go on being asked.
        let may_eject = ejected < (self.nodes.len() / 3).max(1) && self.nodes.len() > 1;
        let Some(node) = self.nodes.get_mut(name) else {
            return false;
        };
        node.in_flight = node.in_flight.saturating_sub(1);
        let probed = std::mem::take(&mut node.probing);
        let failed = matches!(
            outcome,
            Outcome::Unknown | Outcome::Failed | Outcome::Rejected(Rejection::NoReplica | Rejection::Draining)
        );
        if !failed {
            // A refusal is quick, and says nothing of how quick an answer would be.
            if outcome == Outcome::Answered {
                let sample = (took.as_nanos() as f64).max(1.0);
                node.delay = if node.delay == 0.0 { sample } else { 0.9 * node.delay + 0.1 * sample };
            }
            node.failures = 0;
            node.ejections = 0;
            node.ejected_until = None;
            return false;
        }
        node.failures += 1;
        // Of a node that is left out, only the probe counts: other calls were sent before, and broke with the same cause.
        let eject = match node.ejected_until {
            Some(_) => probed,
            None => node.failures >= FAILURES_TO_EJECT && may_eject,
        };
        if eject {
            let span = EJECTED_FOR.saturating_mul(1 << node.ejections.min(5)).min(EJECTED_FOR_AT_MOST);
            node.ejections += 1;
            node.ejected_until = Some(now + span);
        }
        eject
    }

    /// The call ended on this side, which says nothing of the node: its caller gave it up, or it was never sent. A node
    /// that it was to probe may be probed by another.
    pub fn on_dropped(&mut self, name: &NodeName) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.in_flight = node.in_flight.saturating_sub(1);
            node.probing = false;
        }
    }

    /// Whether attempt number `attempt` (from 1), which ended so with `left` until the deadline, may be followed by
    /// another, and after which wait. Takes the retry from the budget.
    pub fn may_retry(&mut self, attempt: u32, outcome: Outcome, left: Duration, prng: &mut Prng) -> Option<Duration> {
        let worth_it = match outcome {
            Outcome::Unknown => true,
            Outcome::Rejected(why) => matches!(why, Rejection::QueueFull | Rejection::NoReplica | Rejection::Draining),
            Outcome::Answered | Outcome::Expired | Outcome::Failed => false,
        };
        let wait = BACK_OFF.mul_f64(f64::from(1 << attempt.min(8)) / 2.0 * prng.uniform());
        if !worth_it || attempt >= ATTEMPTS_MAX || self.retries < 1.0 || wait >= left {
            return None;
        }
        self.retries -= 1.0;
        Some(wait)
    }
}

impl Default for Balancer {
    fn default() -> Self {
        Balancer::new()
    }
}
