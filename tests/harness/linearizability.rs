//! Whether a history of calls could have happened one after the other, each at some instant between its beginning and its
//! end: the search of Wing and Gong (1993) with the memory of Lowe (2017), which remembers sets of linearized calls with
//! the state they led to.
//!
//! A call whose end is not known may have taken effect at any time after its beginning, or never.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// A sequential object.
pub trait Model {
    /// What it is in between calls.
    type State: Clone + Eq + Hash + Debug;
    /// A call with its result, if it is known.
    type Call: Debug;
    /// The object before any call.
    fn initial() -> Self::State;
    /// The states that a call may lead to from `state` with the result that it had; none where it could not have had it.
    fn step(state: &Self::State, call: &Self::Call) -> Option<Self::State>;
}

/// One call.
#[derive(Clone, Debug)]
pub struct Interval<C> {
    /// What was asked and answered.
    pub call: C,
    /// When it was asked, in any unit.
    pub began: u64,
    /// When it was answered; `None` where nobody knows whether it took effect.
    pub ended: Option<u64>,
}

/// A history that no order explains: the calls that any explanation must order, up to the first that fits nowhere.
#[derive(Debug)]
pub struct NotLinearizable(pub String);

/// Checks a history of one object.
pub fn check<M: Model>(history: &[Interval<M::Call>]) -> Result<(), NotLinearizable> {
    let mut calls: Vec<&Interval<M::Call>> = history.iter().collect();
    calls.sort_by_key(|call| (call.began, call.ended));
    if explains::<M>(&calls) {
        return Ok(());
    }
    // The shortest beginning that is wrong already: what came later only distracts.
    let mut ends: Vec<u64> = calls.iter().filter_map(|call| call.ended).collect();
    ends.sort_unstable();
    for end in ends {
        let until: Vec<Interval<&M::Call>> = calls
            .iter()
            .filter(|call| call.began <= end)
            .map(|call| Interval { call: &call.call, began: call.began, ended: call.ended.filter(|e| *e <= end) })
            .collect();
        let known: Vec<&Interval<M::Call>> =
            calls.iter().copied().filter(|call| call.ended.is_some_and(|ended| ended <= end)).collect();
        let pending =
            calls.iter().copied().filter(|call| call.began <= end && call.ended.is_none_or(|ended| ended > end));
        let open: Vec<&Interval<M::Call>> = pending.collect();
        if !explains_with_open::<M>(&known, &open) {
            let lines = until.iter().map(|c| format!("  {:>9} .. {:>9?}  {:?}", c.began, c.ended, c.call));
            return Err(NotLinearizable(lines.collect::<Vec<_>>().join("\n")));
        }
    }
    Err(NotLinearizable("the whole history".into()))
}

fn explains<M: Model>(calls: &[&Interval<M::Call>]) -> bool {
    let (known, open): (Vec<_>, Vec<_>) = calls.iter().copied().partition(|call| call.ended.is_some());
    explains_with_open::<M>(&known, &open)
}

/// `known` must all be ordered, `open` may.
fn explains_with_open<M: Model>(known: &[&Interval<M::Call>], open: &[&Interval<M::Call>]) -> bool {
    let calls: Vec<&Interval<M::Call>> = known.iter().chain(open).copied().collect();
    let words = calls.len().div_ceil(64);
    let mut seen: HashSet<(Vec<u64>, M::State)> = HashSet::new();
    let mut stack = vec![(vec![0u64; words], M::initial(), 0usize)];
    while let Some((done, state, ordered)) = stack.pop() {
        if ordered == known.len() {
            return true;
        }
        let has = |i: usize| done[i / 64] >> (i % 64) & 1 == 1;
        // Whatever comes next began before the first end among those that are left.
        let bound = (0..known.len()).filter(|i| !has(*i)).filter_map(|i| known[i].ended).min().unwrap_or(u64::MAX);
        // The stack gives back the last first: known calls before open ones, earlier before later.
        for (i, call) in calls.iter().enumerate().rev() {
            if has(i) || call.began > bound {
                continue;
            }
            let Some(next) = M::step(&state, &call.call) else { continue };
            if i >= known.len() && next == state {
                // Something open that changes nothing need not be ordered.
                continue;
            }
            let mut with = done.clone();
            with[i / 64] |= 1 << (i % 64);
            if seen.insert((with.clone(), next.clone())) {
                stack.push((with, next, ordered + usize::from(i < known.len())));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Register;

    #[derive(Clone, Debug)]
    enum Call {
        Write(u8),
        Read(u8),
    }

    impl Model for Register {
        type State = u8;
        type Call = Call;
        fn initial() -> u8 {
            0
        }
        fn step(state: &u8, call: &Call) -> Option<u8> {
            match call {
                Call::Write(value) => Some(*value),
                Call::Read(value) => (value == state).then_some(*state),
            }
        }
    }

    fn call(call: Call, began: u64, ended: impl Into<Option<u64>>) -> Interval<Call> {
        Interval { call, began, ended: ended.into() }
    }

    #[test]
    fn overlapping_calls_may_take_either_order() {
        let history = [
            call(Call::Write(1), 0, 10),
            call(Call::Read(0), 1, 2),
            call(Call::Read(1), 3, 4),
            call(Call::Write(2), 5, 6),
        ];
        assert!(check::<Register>(&history).is_ok());
        assert!(
            check::<Register>(&[call(Call::Write(1), 0, 10), call(Call::Write(2), 0, 10), call(Call::Read(1), 11, 12)])
                .is_ok()
        );
    }

    #[test]
    fn a_stale_read_a_lost_write_and_a_value_out_of_nowhere_are_found() {
        let stale = [call(Call::Write(1), 0, 1), call(Call::Read(0), 2, 3), call(Call::Read(1), 4, 5)];
        let error = check::<Register>(&stale).unwrap_err().0;
        assert!(error.contains("Read(0)") && !error.contains("Read(1)"), "the shortest wrong beginning: {error}");
        let back = [call(Call::Write(1), 0, 9), call(Call::Read(1), 1, 2), call(Call::Read(0), 3, 4)];
        assert!(check::<Register>(&back).is_err());
        assert!(check::<Register>(&[call(Call::Read(7), 0, 1)]).is_err());
    }

    #[test]
    fn a_call_of_unknown_end_may_happen_late_or_never_but_not_twice() {
        let unknown = |more: &[Interval<Call>]| {
            let mut history = vec![call(Call::Write(1), 0, None)];
            history.extend_from_slice(more);
            check::<Register>(&history).is_ok()
        };
        assert!(unknown(&[call(Call::Read(0), 5, 6)]));
        assert!(unknown(&[call(Call::Read(0), 5, 6), call(Call::Read(1), 7, 8)]));
        assert!(!unknown(&[call(Call::Read(1), 5, 6), call(Call::Write(2), 7, 8), call(Call::Read(1), 9, 10)]));
    }

    #[test]
    fn a_long_history_of_eight_clients_is_checked_soon() {
        // Client c writes c at every eighth instant, all overlapping with their neighbours.
        let history: Vec<Interval<Call>> = (0..2000u64)
            .map(|i| {
                call(
                    if i % 2 == 0 { Call::Write((i / 2 % 8) as u8) } else { Call::Read((i / 2 % 8) as u8) },
                    i * 10,
                    i * 10 + 9,
                )
            })
            .collect();
        assert!(check::<Register>(&history).is_ok());
    }
}
