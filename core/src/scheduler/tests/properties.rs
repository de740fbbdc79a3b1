//! What holds whatever comes, for all policies or for those that promise it.

use proptest::prelude::*;

use super::virtual_time::{Call, End, Row, Script, run, scripts};
use super::*;

/// Policies that may keep a slot free on purpose.
fn waits(policy: Policy) -> bool {
    matches!(policy, Policy::Fixed { .. } | Policy::Symphony)
}

/// Policies that drop what is too late.
fn drops(policy: Policy) -> bool {
    matches!(policy, Policy::Weir | Policy::Greedy | Policy::Clockwork | Policy::Nexus | Policy::Symphony)
}

proptest! {
    /// Each row ends once, replicas and slots run one batch at a time, what was cancelled does not run, and nobody idles
    /// who does not wait on purpose: `run` panics. Batches keep to size, shape, and who may share one.
    #[test]
    fn whatever_the_policy_rows_end_once_and_batches_keep_to_their_bounds(script in scripts(1..=3)) {
        for policy in Policy::ALL {
            run(&script, policy, waits(policy), |start| {
                let first = start.rows[0];
                assert!(start.rows.len() <= start.max_batch as usize, "{policy}: too large");
                assert!(start.rows.iter().all(|row| row.shape == first.shape), "{policy}: shapes mixed");
                assert!(start.rows.len() == 1 || start.rows.iter().all(|row| row.mergeable), "{policy}: not alone");
            });
        }
    }

    /// Where service takes what its profile says, nothing that runs is late, on any number of slots: what a policy runs
    /// starts at once, so that it knows when it ends.
    #[test]
    fn what_runs_is_in_time_when_times_are_exact(mut script in scripts(1..=3)) {
        script.make_possible();
        for policy in Policy::ALL.into_iter().filter(|policy| drops(*policy)) {
            for row in run(&script, policy, true, |_| {}) {
                if let End::Ran { finished, .. } = row.end {
                    assert!(!row.deadline.missed_by(finished), "{policy}: {row:?}");
                }
            }
        }
    }

    /// A batch of sheddable rows alone starts when nobody else can: others wait for one such batch at most, if they come while
    /// it runs.
    #[test]
    fn sheddable_rows_start_when_nobody_else_can(script in scripts(1..=3)) {
        run(&script, Policy::Weir, false, |start| {
            let sheddable = |row: &Row| row.class == Class::Sheddable;
            assert!(!start.rows.iter().all(sheddable) || start.left.iter().all(sheddable), "{:?}", start.left);
        });
    }

    /// On one slot a critical row is in time whenever the batch in progress leaves time for it, whatever else waits.
    #[test]
    fn a_critical_row_goes_before_what_is_less_important(
        mut script in scripts(1..=1),
        at in 0..20usize,
        left in 1000..60_000u64,
    ) {
        script.make_possible();
        for (_, _, _, replicas) in &mut script.models {
            // A second replica would not help on one slot.
            *replicas = 1;
        }
        script.calls.iter_mut().filter(|call| call.class == Class::Critical).for_each(|call| call.class = Class::Default);
        let at = at % script.calls.len();
        script.calls.iter_mut().for_each(|call| call.cancelled = false);
        let critical = Call { pause: 1, class: Class::Critical, mergeable: true, rows: vec![left], value: None, ..script.calls[at].clone() };
        script.calls.insert(at + 1, critical);
        let rows = run(&script, Policy::Weir, false, |_| {});
        let row = rows.iter().find(|row| row.class == Class::Critical).expect("it came");
        let came = row.deadline.0.as_nanos() - left * 1000;
        let busy_until = rows.iter().filter_map(|other| match other.end {
            End::Ran { started, finished } if started.as_nanos() < came => Some(finished.as_nanos()),
            _ => None,
        });
        let free = busy_until.max().unwrap_or(0).max(came);
        let (alpha, beta, _, _) = script.models[row.model];
        if free + (alpha + beta) * 1000 <= row.deadline.0.as_nanos() {
            prop_assert!(matches!(row.end, End::Ran { .. }), "free at {free}, came at {came}: {row:?}");
        }
    }
}

/// Both cannot be met: a default query would be late by 1 ms behind the critical one.
#[test]
fn of_two_that_cannot_both_be_met_the_critical_one_is() {
    let call = |pause, model, class, left| Call {
        pause,
        model,
        class,
        shape: 0,
        mergeable: true,
        rows: vec![left],
        cancelled: false,
        value: None,
    };
    for (default_left, critical_left) in [(16_500, 17_500), (17_500, 16_500)] {
        let calls = vec![
            call(0, 0, Class::Default, 50_000),
            call(1, 0, Class::Default, default_left),
            call(1, 1, Class::Critical, critical_left),
        ];
        let script = Script { slots: 1, models: vec![(5000, 1000, 8, 1), (5000, 1000, 8, 1)], calls };
        let rows = run(&script, Policy::Weir, false, |_| {});
        assert!(matches!(rows[2].end, End::Ran { .. }), "{rows:?}");
        assert_eq!(rows[1].end, End::Expired, "{rows:?}");
    }
}
