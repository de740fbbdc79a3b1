//! Where rows of a model meet, so that they share batches although every node could run them.
//!
//! A batch costs α + β·b. Where every home sends each row to whichever device is done first, rows of a model are spread over all devices
//! that have it, meet nobody, and pay α each: with eight models of 5 ms + 1 ms a row on eight devices, that halves and halves again
//! what can be served (`what_is_multiplexing_worth`). So rows of a model go to the devices that have it in an order which is the same
//! everywhere: to the first as long as it would be done with a part of the time to spare, then to the second, and so on. A burst
//! fills one device after the other, and each with whole batches. The orders of different models begin on different devices, as evenly as
//! can be, and go on from there in a circle, so that what overflows from one model meets the beginnings of others evenly too.
//!
//! On all devices but the first of its order a row is a guest. Where others of its model wait already it costs its own time, β, as
//! anywhere; where none does it begins a batch, and costs α beside. Where there is time to spare that costs nobody anything. Where there is
//! none, whoever meets there loses several rows for it, whose batches then are smaller, so that more of them overflow to where they are
//! guests: with too much of everything, batches would fall apart everywhere. So a guest that begins a batch has to find a short wait
//! ([`has_room`]), and what nobody takes goes to the first of its order as long as that can be in time, and is refused otherwise.
//!
//! What a home knows of another node's queue is late. So it sends a row there with the time until which it would have to be done
//! ([`Choice::Asking`](super::Choice::Asking)); who cannot do that says so at once ([`StageEnd::Full`](super::StageEnd::Full)), which costs a hop
//! only where it is needed, and the row goes on to the next.
//!
//! Where a home alone is asked for enough rows of a model to fill batches, they need not meet those of other homes: on its own device it
//! knows the queue as it is, and on others only as it was. How many are enough follows from what its device has to spare.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::choose::{Candidate, Estimate, REMOTE_HOP, Target};
use crate::profile::Profile;
use crate::units::{Deadline, Instant};

/// Part of the time left that the rows of a model may take on a device, in hundredths, before more rows go to the next. More leaves a burst
/// less time to find another place, less serves a steady load in smaller batches: from 60 to 90 it matters little
/// (`what_is_multiplexing_worth`).
const FILLED: u32 = 70;

/// Part of the time left that a guest may wait which begins a batch, where the device has had nothing to spare of late; and how much more for
/// each part of its slots that it had. Without the second, two copies bear 4 % less of bursts; where guests wait as long as anybody, eight
/// models on all of eight devices serve two thirds of a load that each on a device of its own serves whole.
const GUEST_WAITS: (f64, f64) = (0.28, 4.0);

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
    /// a home has not enough of them by itself. Enough is what comes in half of the `left` time until the deadline in which what a batch
    /// costs beside its rows is no more, by what the rows do, than what the home's own device has to `spare` by what it uses: then that costs
    /// nobody anything. And so many that those of others would only make further batches are always enough.
    pub fn saves(&self, now: Instant, profile: &Profile, left: Duration, spare: f64) -> Duration {
        let alone = profile.estimate(1).as_duration().as_secs_f64();
        let together = profile.row_seconds();
        let rows = self.left(now) / Coming::MEMORY * left.as_secs_f64() / 2.0;
        let spare = spare.clamp(0.0, 1.0);
        let for_nothing = (alone / together - 1.0) * (1.0 - spare) / spare;
        let largest = ((left.as_secs_f64() - alone) / together / 2.0).max(1.0);
        if rows >= for_nothing.min(largest) { Duration::ZERO } else { Duration::from_secs_f64(alone - together) }
    }
}

/// Share of its slots that the device of a home has had nothing for of late, for [`Coming::saves`]: none where it has no device for the
/// model, whose rows go elsewhere anyway.
pub fn spare_here(candidates: &[Candidate]) -> f64 {
    let local = candidates.iter().filter(|candidate| matches!(candidate.target, Target::Local(_)));
    local.map(|candidate| candidate.estimate.spare).reduce(f64::max).unwrap_or(0.0)
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

/// Whether rows of a model meet where that saves so much slot time a row: it has to be more than a hop costs.
pub(super) fn meets(saves: Duration) -> bool {
    saves > REMOTE_HOP
}

/// Whether a device takes a row that has `left` time until its deadline and is to be done `by` then; `order` is where the device stands in
/// the order of the row's model. Where it is not the first the row is a guest: if none of its model waits there already, it costs a
/// batch, which is time that others need unless the device has some to spare. For a guest no model is loaded: that takes much longer, and whoever
/// goes for it is asked for there. Where guests are many, those that were refused are worth a load.
pub fn has_room(now: Instant, by: Instant, left: Duration, order: usize, estimate: &Estimate) -> bool {
    let (least, more) = GUEST_WAITS;
    let may_wait = || left.mul_f64((least + more * estimate.spare).min(1.0));
    estimate.finish <= by && (order == 0 || !estimate.cold && estimate.begins.since(now) <= may_wait())
}

/// The devices that rows of their model fill first, of those that could be in time if nothing waited there; where none could, of all.
pub(super) fn first_of(candidates: &[Candidate], left: Duration) -> Vec<&Candidate> {
    let could = |candidate: &&Candidate| candidate.estimate.alone.saturating_add(candidate.target.hop()) <= left;
    let any = candidates.iter().any(|candidate| could(&candidate));
    let among = || candidates.iter().filter(|candidate| !any || could(candidate));
    let first = among().map(|candidate| candidate.order).min();
    among().filter(|candidate| Some(candidate.order) == first).collect()
}

/// The first of the candidates, in the order in which rows of their model fill them, that has room before the deadline, with some to spare.
/// On its own node a row stays where the device has had little to do of late: there it is in nobody's way. Also says until when it has to
/// be done there: of another node it is known how much waited some time ago, and it says itself whether there is room now; those that
/// said no are `full`. Who stands behind the `first` in the order is a guest.
pub(super) fn meet<'a>(
    candidates: &'a [Candidate],
    first: usize,
    full: &[Target],
    now: Instant,
    deadline: Deadline,
) -> Option<(&'a Target, Instant)> {
    let left = deadline.left(now);
    let by = now + left / 100 * FILLED;
    let finish = |candidate: &Candidate| candidate.estimate.finish + candidate.target.hop();
    let has_room = |candidate: &&Candidate| {
        let estimate = Estimate { finish: finish(candidate), ..candidate.estimate };
        let order = candidate.order.saturating_sub(first);
        has_room(now, by, left, order, &estimate) && !full.contains(&candidate.target)
    };
    let calm = candidates.iter().filter(|candidate| candidate.estimate.calm).filter(has_room);
    let alone = calm.min_by_key(|candidate| (finish(candidate), &candidate.target));
    let in_order = || candidates.iter().filter(has_room).min_by_key(|candidate| (candidate.order, finish(candidate)));
    alone.or_else(in_order).map(|candidate| (&candidate.target, by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DeviceName, NodeName};
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
        let estimate = Estimate::of(Instant::ZERO, Instant::from_millis(finish_ms), Duration::ZERO);
        Candidate { target, estimate, order }
    }

    fn to(candidates: &[Candidate]) -> Option<&Target> {
        meet(candidates, 0, &[], Instant::ZERO, DEADLINE).map(|(target, _)| target)
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
        assert_eq!(to(&at(60, 45)), None, "and where it does everywhere, `choose` goes on");
        let asked =
            |full: &[Target]| meet(&at(30, 10), 0, full, Instant::ZERO, DEADLINE).map(|(to, by)| (to.clone(), by));
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
        let saves = |coming: &Coming, ms, spare| {
            coming.saves(Instant::from_millis(ms), &profile, Duration::from_millis(50), spare).as_micros()
        };
        assert_eq!(saves(&coming, 0, 0.5), 4875, "6 ms alone, 1.125 among forty");
        (0..1000).for_each(|ms| coming.add(Instant::from_millis(ms), usize::from(ms % 10 == 0)));
        assert_eq!(saves(&coming, 1000, 0.5), 4875, "100 a second are two or three in half of the time");
        (1000..2000).for_each(|ms| coming.add(Instant::from_millis(ms), usize::from(ms % 5 == 0)));
        assert_eq!(saves(&coming, 2000, 0.5), 0, "and 200 are five, where half of the device is left over");
        assert_eq!(saves(&coming, 2000, 0.4), 4875, "but not where it is less");
        assert_eq!(saves(&coming, 1000, 0.8), 0, "and two or three where it is more");
        assert_eq!(saves(&coming, 2500, 0.5), 4875, "those have gone by");
        (3000..4000).for_each(|ms| coming.add(Instant::from_millis(ms), 1));
        assert_eq!(saves(&coming, 4000, 0.0), 0, "25 are as many as fit, whatever is left over");
    }

    #[test]
    fn rows_that_save_nothing_and_devices_that_do_nothing_need_no_meeting() {
        let mut at = [candidate(local(), 1, 10), candidate(remote("n2"), 0, 5)];
        assert!(meets(SAVES) && !meets(REMOTE_HOP));
        at[0].estimate.calm = true;
        assert_eq!(to(&at), Some(&local()));
        assert_eq!(meet(&at, 0, &[], Instant::ZERO, Deadline::NEVER).map(|(target, _)| target), Some(&local()));
    }

    #[test]
    fn a_guest_that_meets_nobody_waits_for_no_more_than_is_left_over() {
        let ms = Instant::from_millis;
        let has_room = |order, estimate: &Estimate| has_room(ms(0), ms(40), Duration::from_millis(50), order, estimate);
        assert!(has_room(0, &at(30, 0.0)), "where its model meets it is no guest");
        assert!(has_room(1, &at(14, 0.0)) && !has_room(1, &at(15, 0.0)), "28 hundredths of the time");
        assert!(has_room(1, &at(23, 0.05)) && !has_room(1, &at(25, 0.05)), "and 4 for each that is left over");
        assert!(has_room(1, &at(0, 0.0)), "where others wait it costs a row");
        assert!(!has_room(0, &Estimate { finish: ms(41), ..at(0, 1.0) }) && has_room(1, &at(36, 1.0)));
        let cold = Estimate { cold: true, ..at(0, 1.0) };
        assert!(has_room(0, &cold) && !has_room(1, &cold), "no model is loaded for a guest");
    }

    /// Done after 36 ms.
    fn at(begins_ms: u64, spare: f64) -> Estimate {
        Estimate { begins: Instant::from_millis(begins_ms), spare, ..candidate(local(), 0, 36).estimate }
    }
}
