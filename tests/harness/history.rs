//! What clients saw of the control plane, and whether it could have been so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use weir_core::ids::LogIndex;
use weir_core::replicated::{Change, State};

use crate::linearizability::{Interval, Model, check};

/// A call about one endpoint, whose deadline is the value that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Call {
    /// Declared with this many microseconds.
    Put(u64),
    /// Deleted; whether it was there, where that is known.
    Delete(Option<bool>),
    /// Looked up.
    Get(Option<u64>),
}

/// An endpoint as a sequential object.
pub struct Endpoint;

impl Model for Endpoint {
    type State = Option<u64>;
    type Call = Call;

    fn initial() -> Option<u64> {
        None
    }

    fn step(state: &Option<u64>, call: &Call) -> Option<Option<u64>> {
        match call {
            Call::Put(value) => Some(Some(*value)),
            Call::Delete(None) => Some(None),
            Call::Delete(Some(was_there)) => (*was_there == state.is_some()).then_some(None),
            Call::Get(seen) => (seen == state).then_some(*state),
        }
    }
}

/// A coordinator's own word at one moment.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Sight {
    pub at: Duration,
    pub member: String,
    pub applied: LogIndex,
    pub term: u64,
    /// Empty while none is known.
    pub leader: String,
    /// Everything replicated.
    pub state: Arc<State>,
}

/// What became of one prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Prediction {
    pub at: Duration,
    pub outcome: &'static str,
    /// Whether an answer was the one to this query, by the version asked for.
    pub right: bool,
}

/// Everything that was seen in one run.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Seen>>);

/// What was seen.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Seen {
    /// By endpoint; times in nanoseconds of virtual time.
    pub calls: BTreeMap<String, Vec<Interval<Call>>>,
    pub sights: Vec<Sight>,
    pub changes: Vec<(LogIndex, Change)>,
    pub predictions: Vec<Prediction>,
    /// In order: what was done to the cluster, and what else is worth a line.
    pub notes: Vec<String>,
}

impl History {
    /// Adds to it.
    pub fn with<T>(&self, add: impl FnOnce(&mut Seen) -> T) -> T {
        add(&mut self.0.lock().expect("nobody panics with the history in hand"))
    }

    /// All of it.
    pub fn seen(&self) -> Seen {
        self.with(|seen| seen.clone())
    }
}

impl Seen {
    /// Every call fits into one order; coordinators that applied as much know the same; a term has one leader.
    pub fn check(&self) -> Result<(), String> {
        for (endpoint, calls) in &self.calls {
            check::<Endpoint>(calls)
                .map_err(|wrong| format!("calls about {endpoint} fit into no order:\n{}", wrong.0))?;
        }
        let mut states: BTreeMap<LogIndex, &Sight> = BTreeMap::new();
        let mut leaders: BTreeMap<u64, &Sight> = BTreeMap::new();
        for sight in &self.sights {
            let first = states.entry(sight.applied).or_insert(sight);
            if first.state != sight.state {
                return Err(format!(
                    "at index {} {} and {} know different things:\n{first:?}\n{sight:?}",
                    sight.applied, first.member, sight.member
                ));
            }
            if sight.leader.is_empty() {
                continue;
            }
            let first = leaders.entry(sight.term).or_insert(sight);
            if first.leader != sight.leader {
                return Err(format!("term {} has two leaders, {} and {}", sight.term, first.leader, sight.leader));
            }
        }
        if let Some(wrong) = self.predictions.iter().find(|prediction| !prediction.right) {
            return Err(format!("a prediction got another's answer at {:?}", wrong.at));
        }
        Ok(())
    }

    /// What a watcher saw makes, at each index that a coordinator was seen at, what that coordinator knew.
    pub fn check_watch(&self) -> Result<(), String> {
        if let Some(pair) = self.changes.windows(2).find(|pair| pair[0].0 > pair[1].0) {
            return Err(format!("a watch went from index {} back to {}", pair[0].0, pair[1].0));
        }
        let (Some((first, _)), Some((last, _))) = (self.changes.first(), self.changes.last()) else {
            return Err("a watcher saw nothing".into());
        };
        let mut sights: Vec<&Sight> = self.sights.iter().collect();
        sights.sort_by_key(|sight| sight.applied);
        let mut changes = self.changes.iter().peekable();
        let mut copy = State::default();
        for sight in sights.into_iter().filter(|sight| (*first..=*last).contains(&sight.applied)) {
            while let Some((_, change)) = changes.next_if(|(index, _)| *index <= sight.applied) {
                copy.absorb(change);
            }
            let state = &sight.state;
            if (&copy.endpoints, &copy.models, &copy.plan, &copy.nodes)
                != (&state.endpoints, &state.models, &state.plan, &state.nodes)
            {
                return Err(format!(
                    "at index {} a watcher's copy is not what {} knew:\n{copy:?}\n{state:?}",
                    sight.applied, sight.member
                ));
            }
        }
        Ok(())
    }

    /// One number for the whole run: two runs of a seed have the same.
    pub fn fingerprint(&self) -> u64 {
        // FNV-1a over the text of it.
        let text = format!("{:?}{:?}{:?}{:?}{:?}", self.calls, self.sights, self.changes, self.predictions, self.notes);
        text.bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }

    /// How often each outcome came.
    pub fn outcomes(&self) -> BTreeMap<&'static str, usize> {
        let words: BTreeSet<&'static str> = self.predictions.iter().map(|prediction| prediction.outcome).collect();
        let count = |word| self.predictions.iter().filter(|prediction| prediction.outcome == word).count();
        words.into_iter().map(|word| (word, count(word))).collect()
    }
}
