//! Where rows of a model meet, so that they share batches although every node could run them.
//!
//! A batch costs α + β·b. Where every home sends each row to whichever device is done first, rows of a model are spread over all devices
//! that have it, meet nobody, and pay α each: with eight models of 5 ms + 1 ms a row on eight devices, that halves and halves again
//! what can be served (`what_is_multiplexing_worth`). So rows of a model go to the devices that have it in an order which is the same
//! everywhere: to the first as long as it would be done with a part of the time to spare, then to the second, and so on. A burst
//! fills one device after the other, and each with whole batches. The orders of different models begin on different devices, as evenly as
//! can be, and go on from there in a circle, so that what overflows from one model meets the beginnings of others evenly too.
//!
//! What a home knows of another node's queue is late. So it sends a row there with the time until which it would have to be done
//! ([`Choice::Asking`](super::Choice::Asking)); who cannot do that says so at once ([`StageEnd::Full`](super::StageEnd::Full)), which costs a hop
//! only where it is needed, and the row goes on to the next. Where all are full, whoever is done first is asked for good.
//!
//! Where a home alone is asked for enough rows of a model to fill batches, they need not meet those of other homes: on its own device it
//! knows the queue as it is, and on others only as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::choose::{Candidate, REMOTE_HOP, Target};
use crate::profile::Profile;
use crate::units::{Deadline, Instant};

/// Part of the time left that the rows of a model may take on the device where they meet, in hundredths, before more rows go to the next.
/// Less would spread a steady load over devices that are busy with other models, where each batch costs α again; more leaves a burst no
/// time to find another place. With 60 in place of 70 two copies bear 3 % more of bursts, and all devices together 10 % less of a steady
/// load (`what_is_multiplexing_worth`).
const FILLED: u64 = 70;

/// How many rows of one model a home has had of late.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coming {
    rows: f64,
    until: Instant,
}

impl Coming {
    /// Over how long, in seconds.
    const MEMORY: f64 = 0.25;

    /// More rows have come.
    pub fn add(&mut self, now: Instant, rows: usize) {
        *self = Coming { rows: self.left(now) + rows as f64, until: now };
    }

    fn left(&self, now: Instant) -> f64 {
        self.rows * (-now.since(self.until).as_secs_f64() / Coming::MEMORY).exp()
    }

    /// Slot time that a row of the model saves by meeting those of other homes: what it costs alone less what it costs in a large batch, where
    /// a home has not enough of them by itself. Enough is a batch in half of the `left` time until the deadline in which what a batch
    /// costs beside its rows is no more than the rows do.
    pub fn saves(&self, now: Instant, profile: &Profile, left: Duration) -> Duration {
        let alone = profile.estimate(1).as_duration().as_secs_f64();
        let together = profile.row_seconds();
        let rows = self.left(now) / Coming::MEMORY * left.as_secs_f64() / 2.0;
        if rows >= alone / together - 1.0 { Duration::ZERO } else { Duration::from_secs_f64(alone - together) }
    }
}

/// By model, the nodes that have it in the order in which its rows fill them.
pub fn meeting_order<M: Ord, N: Ord + Clone>(
    models: impl IntoIterator<Item = (M, BTreeSet<N>)>,
    slots: impl Fn(&N) -> u32,
) -> BTreeMap<M, Vec<N>> {
    let mut begun: BTreeMap<N, u64> = BTreeMap::new();
    let order = |(model, nodes): (M, BTreeSet<N>)| {
        let mut nodes: Vec<N> = nodes.into_iter().collect();
        let load = |node: &N| begun.get(node).map_or(0, |models| models * 1000 / u64::from(slots(node).max(1)));
        if let Some(first) = (0..nodes.len()).min_by_key(|i| (load(&nodes[*i]), *i)) {
            nodes.rotate_left(first);
            *begun.entry(nodes[0].clone()).or_default() += 1;
        }
        (model, nodes)
    };
    models.into_iter().map(order).collect()
}

/// The first of the candidates, in the order in which rows of their model fill them, that has room before the deadline, with some to spare.
/// `saves` is the slot time that a row saves which meets others: where that is no more than a hop, nothing is looked at. On its own node a
/// row stays where the device has had little to do of late: there it is in nobody's way. Also says until when it has to be done there: of
/// another node it is known how much waited some time ago, and it says itself whether there is room now; those that said no are `full`.
pub fn meet<'a>(
    candidates: &'a [Candidate],
    full: &[Target],
    now: Instant,
    deadline: Deadline,
    saves: Duration,
) -> Option<(&'a Target, Instant)> {
    if saves <= REMOTE_HOP {
        return None;
    }
    let finish = |candidate: &Candidate| candidate.estimate.finish + candidate.target.hop();
    let left = deadline.0.as_nanos().saturating_sub(now.as_nanos());
    let by = Instant::from_nanos(now.as_nanos().saturating_add(left / 100 * FILLED));
    let has_room = |candidate: &&Candidate| finish(candidate) <= by && !full.contains(&candidate.target);
    let calm = candidates.iter().filter(|candidate| candidate.estimate.calm).filter(has_room);
    let alone = calm.min_by_key(|candidate| (finish(candidate), &candidate.target));
    let in_order = || candidates.iter().filter(has_room).min_by_key(|candidate| (candidate.order, finish(candidate)));
    alone.or_else(in_order).map(|candidate| (&candidate.target, by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DeviceName, NodeName};
    use crate::router::Estimate;
    use crate::units::ServiceTime;

    const SAVES: Duration = Duration::from_millis(5);
    const DEADLINE: Deadline = Deadline(Instant::from_millis(50));

    fn local() -> Target {
        Target::Local(DeviceName::parse("cpu0").unwrap())
    }

    fn remote(name: &str) -> Target {
        Target::Remote(NodeName::parse(name).unwrap())
    }

    fn candidate(target: Target, order: usize, finish_ms: u64) -> Candidate {
        let estimate = Estimate { finish: Instant::from_millis(finish_ms), yields: Duration::ZERO, calm: false };
        Candidate { target, estimate, order }
    }

    fn to(candidates: &[Candidate]) -> Option<&Target> {
        meet(candidates, &[], Instant::ZERO, DEADLINE, SAVES).map(|(target, _)| target)
    }

    #[test]
    fn orders_begin_on_different_nodes_and_go_on_in_a_circle() {
        let all = BTreeSet::from(["n1", "n2", "n3"]);
        let some = BTreeSet::from(["n2", "n3"]);
        let models = [("a", all.clone()), ("b", some.clone()), ("c", all.clone()), ("d", all.clone())];
        let order = meeting_order(models.clone(), |_| 1);
        assert_eq!(order["a"], ["n1", "n2", "n3"]);
        assert_eq!(order["b"], ["n2", "n3"]);
        assert_eq!(order["c"], ["n3", "n1", "n2"]);
        assert_eq!(order["d"], ["n1", "n2", "n3"]);
        let wide = meeting_order(models, |node| if *node == "n3" { 4 } else { 1 });
        assert_eq!((wide["c"][0], wide["d"][0]), ("n3", "n3"), "a node with more slots begins more");
        assert_eq!(meeting_order([("a", BTreeSet::<&str>::new())], |_| 1)["a"], [""; 0]);
    }

    #[test]
    fn rows_fill_one_device_after_the_other() {
        let at = |first, second| [candidate(local(), 1, second), candidate(remote("n2"), 0, first)];
        assert_eq!(to(&at(30, 10)), Some(&remote("n2")), "where others are, though it is done later");
        assert_eq!(to(&at(36, 10)), Some(&local()), "but not where time runs short");
        assert_eq!(to(&at(60, 45)), None, "and where it does everywhere, whoever is done first is asked");
        let asked =
            |full: &[Target]| meet(&at(30, 10), full, Instant::ZERO, DEADLINE, SAVES).map(|(to, by)| (to.clone(), by));
        let by = Instant::from_millis(35);
        assert_eq!(asked(&[]), Some((remote("n2"), by)), "seven tenths of the time, at its own word");
        assert_eq!(asked(&[remote("n2")]), Some((local(), by)), "and not where that was no");
        assert_eq!(asked(&[remote("n2"), local()]), None);
    }

    #[test]
    fn a_home_with_many_rows_meets_nobody() {
        let at = |rows: u64| ServiceTime::from_micros(5000 + 1000 * rows);
        let profile = Profile::new(&[(1, at(1)), (40, at(40))]);
        let mut coming = Coming::default();
        let saves = |coming: &Coming, ms| {
            coming.saves(Instant::from_millis(ms), &profile, Duration::from_millis(50)).as_micros()
        };
        assert_eq!(saves(&coming, 0), 4875, "6 ms alone, 1.125 among forty");
        (0..1000).for_each(|ms| coming.add(Instant::from_millis(ms), usize::from(ms % 10 == 0)));
        assert_eq!(saves(&coming, 1000), 4875, "100 a second are two or three in half of the time");
        (1000..2000).for_each(|ms| coming.add(Instant::from_millis(ms), usize::from(ms % 5 == 0)));
        assert_eq!(saves(&coming, 2000), 0, "and 200 are five");
        assert_eq!(saves(&coming, 2500), 4875, "those have gone by");
    }

    #[test]
    fn rows_that_save_nothing_and_devices_that_do_nothing_need_no_meeting() {
        let mut at = [candidate(local(), 1, 10), candidate(remote("n2"), 0, 5)];
        assert_eq!(meet(&at, &[], Instant::ZERO, DEADLINE, REMOTE_HOP), None);
        at[0].estimate.calm = true;
        assert_eq!(to(&at), Some(&local()));
        assert_eq!(meet(&at, &[], Instant::ZERO, Deadline::NEVER, SAVES).map(|(target, _)| target), Some(&local()));
    }
}
