//! The replica that is expected to be done first, of two looked at.

use std::time::Duration;

use super::meeting::{first_of, meet, meets};
use crate::ids::{DeviceName, NodeName};
use crate::outcome::Rejection;
use crate::prng::Prng;
use crate::triage::{Price, faded};
use crate::units::{Deadline, Instant};

/// Where a stage can run: a device of this node, or another node, which chooses among its own devices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Target {
    Local(DeviceName),
    Remote(NodeName),
}

impl Told {
    /// That nothing waits there, and what slot time is worth.
    pub fn nothing(at: Instant, price: Price) -> Told {
        Told { wait: Duration::ZERO, yields: Duration::ZERO, price, full: Duration::ZERO, at, silent: None }
    }

    /// The same of a device that did not take rows, by what it expected of them.
    pub fn full(self, now: Instant, estimate: &Estimate) -> Told {
        let wait = self.wait.max(estimate.begins.since(now));
        Told { wait, full: wait, ..self }
    }

    /// What a second of slot time is worth there by now. Who is not asked tells nothing: a price that is not of late fades as demand is
    /// forgotten, so that a home with few queries neither sends all of them where there is no room, nor stays away where there is again. That
    /// there was no room at that moment is soon not true any more.
    fn price(&self, now: Instant) -> f64 {
        let floor = if now.since(self.at) < FLOOR_FOR { self.price.floor } else { 0.0 };
        faded(self.price.clears, self.at + TOLD_LATELY, now).max(floor)
    }
}

impl Target {
    /// What it costs to go there and back before anything is computed.
    pub(super) fn hop(&self) -> Duration {
        match self {
            Target::Local(_) => Duration::ZERO,
            Target::Remote(_) => REMOTE_HOP,
        }
    }
}

/// A target with when work sent now would be done there, network not counted.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Candidate {
    pub target: Target,
    pub estimate: Estimate,
    /// Where it stands in the order in which rows of the model fill devices: see [`super::meeting_order`].
    pub order: usize,
}

/// When work would be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// After everything that waits.
    pub finish: Instant,
    /// How much sooner if all that can be pushed out were (see [`crate::triage`]).
    pub yields: Duration,
    /// Whether the device, one of this node, has had little to do of late.
    pub calm: bool,
    /// When a batch begins that nothing is in yet; now where rows of the model wait for one, or nothing is known of that.
    pub begins: Instant,
    /// Share of the device's slots that it has had nothing for of late.
    pub spare: f64,
    /// What it would take if nothing waited there; for ever where it does not answer.
    pub alone: Duration,
    /// Whether its model would be loaded for it first.
    pub cold: bool,
}

impl Estimate {
    /// Of work that takes so long `alone`, where nothing more is known than when it would be done.
    pub fn of(now: Instant, finish: Instant, alone: Duration) -> Estimate {
        Estimate { finish, yields: Duration::ZERO, calm: false, begins: now, spare: 0.0, alone, cold: false }
    }

    /// If nothing that can be pushed out were in the way.
    pub fn soonest(self) -> Instant {
        Instant::from_nanos(self.finish.as_nanos().saturating_sub(self.yields.as_nanos() as u64))
    }
}

/// What another node said of its queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    /// Wait of a query that came then.
    pub wait: Duration,
    /// Of it, what can be pushed out.
    pub yields: Duration,
    /// What a second of slot time was worth there.
    pub price: Price,
    /// How long a row that is a guest would wait to begin a batch, where one was not taken; nothing where it said no such thing.
    pub full: Duration,
    /// When it was told.
    pub at: Instant,
    /// Since when something has been sent there and nothing been told.
    pub silent: Option<Instant>,
}

/// Which target to send to, or why none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Choice {
    To(Target),
    /// To another node, which is to say [`StageEnd::Full`](super::StageEnd::Full) where it has no room to do it by then: it is not known here how
    /// much waits there now.
    Asking(Target, Instant),
    None(Rejection),
}

/// What a hop to another node and back costs before anything is computed: two wake-ups each way and the copies. Charged
/// so that work stays at home unless the other node is really ahead.
pub const REMOTE_HOP: Duration = Duration::from_micros(300);

/// One in so many queries that no candidate could finish in time is sent to the best one all the same: it refuses cheaply if
/// that is so, and notices if its profile says more than is true. Otherwise no batch would ever run to correct it.
const DOUBTED: u64 = 16;

/// What was told of a queue longer ago says nothing any more.
const TOLD_LATELY: Duration = Duration::from_millis(50);
/// How long it counts that there was no room for what is worth less: some batches later there is.
const FLOOR_FOR: Duration = Duration::from_millis(3);

/// What is left to chance in one choice: the same however many rows it is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Which two remote candidates are compared, each evenly from 0 to 1.
    two: [f64; 2],
    /// Whether one is tried that looks too late.
    doubts: bool,
}

impl Draw {
    /// For one choice.
    pub fn new(prng: &mut Prng) -> Draw {
        Draw { two: [prng.uniform(), prng.uniform()], doubts: doubted(prng) }
    }

    /// The same, that believes what profiles say.
    fn sure(self) -> Draw {
        Draw { doubts: false, ..self }
    }

    /// Two of all.
    fn two_of<'a>(self, all: &[&'a Candidate]) -> [Option<&'a Candidate>; 2] {
        let place = |which: usize, of: usize| ((self.two[which] * of as f64) as usize).min(of - 1);
        match all {
            [] => [None, None],
            [one] => [Some(one), None],
            _ => {
                let first = place(0, all.len());
                let second = (first + 1 + place(1, all.len() - 1)) % all.len();
                [Some(all[first]), Some(all[second])]
            }
        }
    }
}

/// When work that takes `service` would be done at another node, by what its last answer told: it has worked on since then.
pub fn remote_finish(now: Instant, told: Option<Told>, service: Duration) -> Estimate {
    let lately = told.filter(|told| now.since(told.at) < TOLD_LATELY);
    let (wait, yields) = lately.map_or((Duration::ZERO, Duration::ZERO), |told| {
        let wait = told.wait.saturating_sub(now.since(told.at));
        (wait, told.yields.min(wait))
    });
    // Who does not answer takes at least as long as it has not: it may hang, or be gone.
    let silence = told.and_then(|told| told.silent).map_or(Duration::ZERO, |since| now.since(since));
    let wait = if silence >= TOLD_LATELY { wait.max(silence) } else { wait };
    let alone = if silence >= TOLD_LATELY { Duration::MAX } else { service };
    let full = lately.map_or(Duration::ZERO, |told| told.full.saturating_sub(now.since(told.at)));
    Estimate { yields, begins: now + full, ..Estimate::of(now, now + wait + service, alone) }
}

/// What is known of another node, by what it told last, once this one has sent it `work` more.
pub fn sent(now: Instant, told: Option<Told>, work: Duration) -> Told {
    // All of the time since then counts, or who sends something now and then would know it for ever.
    let clears = told.map_or(0.0, |told| faded(told.price.clears, told.at, now));
    let price = Price { clears, ..Price::NOTHING };
    let lately = told.filter(|told| now.since(told.at) < TOLD_LATELY).unwrap_or(Told::nothing(now, price));
    let silent = told.and_then(|told| told.silent).or(Some(now));
    Told { wait: lately.wait.max(now.since(lately.at)) + work, silent, ..lately }
}

/// What a second of slot time costs where it is cheapest: `local` are the prices of devices of this node, `told` what other nodes said
/// of themselves last, if they did. Who has said nothing is taken to have room, as everywhere.
pub fn cheapest(now: Instant, local: impl Iterator<Item = f64>, told: impl Iterator<Item = Option<Told>>) -> f64 {
    let remote = told.map(|told| told.map_or(0.0, |told| told.price(now)));
    local.chain(remote).reduce(f64::min).unwrap_or(0.0)
}

/// Chooses among `candidates` that can still be in time: all local ones and two remote ones drawn at random compete
/// ("power of two choices", Mitzenmacher 1996: two fresh looks, and no herd on the one that looked best to everybody). What can be
/// pushed out is in nobody's way for good: whether it gives way, its device knows. Where rows of the model save more than a hop by meeting
/// others (`saves`, in slot time), they meet instead: in the order of [`super::meeting_order`], and where all are full at the first, if at all.
pub fn choose(
    candidates: &[Candidate],
    full: &[Target],
    now: Instant,
    deadline: Deadline,
    saves: Duration,
    draw: Draw,
) -> Choice {
    if candidates.is_empty() {
        return Choice::None(Rejection::NoReplica);
    }
    let compared: Vec<&Candidate> = if meets(saves) {
        let firsts = first_of(candidates, deadline.left(now));
        let first = firsts.first().map_or(0, |candidate| candidate.order);
        if let Some((target, by)) = meet(candidates, first, full, now, deadline) {
            return match target {
                Target::Local(_) => Choice::To(target.clone()),
                Target::Remote(_) => Choice::Asking(target.clone(), by),
            };
        }
        // There is too much of everything: elsewhere a row would cost whoever meets there several of theirs.
        firsts
    } else {
        compete(candidates, draw)
    };
    let first = |of: fn(Estimate) -> Instant| {
        let done = |candidate: &Candidate| of(candidate.estimate) + candidate.target.hop();
        let best = compared.iter().min_by_key(|candidate| (done(candidate), &candidate.target));
        let best = best.expect("some were compared");
        (done(best), &best.target)
    };
    let (finish, best) = first(|estimate| estimate.finish);
    if !deadline.missed_by(finish) {
        return Choice::To(best.clone());
    }
    let (soonest, other) = first(Estimate::soonest);
    if !deadline.missed_by(soonest) {
        return Choice::To(other.clone());
    }
    if draw.doubts { Choice::To(best.clone()) } else { Choice::None(Rejection::TooLate) }
}

/// Where a group of rows goes, or as many of them as can be in time.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Part {
    /// How many go there; all of them where none goes anywhere.
    pub rows: usize,
    pub choice: Choice,
    /// What was chosen from.
    pub known: Vec<Candidate>,
    pub deadline: Deadline,
}

/// Chooses for a group of `rows`; where they would be too late together, and may go apart (`parts`), for the most of them that would not. `look`: the
/// candidates for so many of them, and by when they are to be done. `choose`, with what chance has drawn for the group, says of each number of rows where so
/// many would go: what is asked for a part is what decides for it.
pub fn choose_part(
    rows: usize,
    parts: impl FnOnce() -> bool,
    mut look: impl FnMut(usize) -> (Vec<Candidate>, Deadline),
    choose: impl Fn(&[Candidate], Deadline, Draw) -> Choice,
    draw: Draw,
) -> Part {
    let mut part = |rows: usize, draw: Draw| {
        let (known, deadline) = look(rows);
        Part { rows, choice: choose(&known, deadline, draw), known, deadline }
    };
    let whole = part(rows, draw);
    if whole.choice != Choice::None(Rejection::TooLate) || rows == 1 || !parts() {
        return whole;
    }
    let (mut fits, mut late): (Option<Part>, usize) = (None, rows);
    // Where there is no time for one nothing more is asked.
    let mut next = 1;
    loop {
        let some = part(next, draw.sure());
        match some.choice {
            Choice::None(_) if next == 1 => return whole,
            Choice::None(_) => late = next,
            _ => fits = Some(some),
        }
        let most = fits.as_ref().map_or(0, |part| part.rows);
        if most + 1 >= late {
            return fits.unwrap_or(whole);
        }
        next = most.midpoint(late);
    }
}

/// Where rows with `left` time would have gone that are sent nowhere, as they would be done too late everywhere: who has the model should hear
/// of them. Of rows that meet all homes name the same device, which hears of all of them, and where one load serves all; of a model that is
/// in nobody's memory each would else name its own.
pub fn missed(candidates: &[Candidate], left: Duration, saves: Duration) -> Option<&Target> {
    let known = if meets(saves) { first_of(candidates, left) } else { candidates.iter().collect() };
    let done = |candidate: &Candidate| candidate.estimate.finish + candidate.target.hop();
    known.into_iter().map(|candidate| (done(candidate), &candidate.target)).min().map(|(_, target)| target)
}

/// How many seconds from now work could be done where that is soonest, if nothing that can be pushed out were in the way; `None` where nobody
/// has the model.
pub fn soonest(now: Instant, candidates: &[Candidate]) -> Option<f64> {
    let done = |candidate: &Candidate| candidate.estimate.soonest() + candidate.target.hop();
    candidates.iter().map(done).min().map(|done| done.since(now).as_secs_f64())
}

/// Whether to try all the same what all profiles say will be late: see [`choose`].
pub fn doubted(prng: &mut Prng) -> bool {
    prng.below(DOUBTED) == 0
}

/// All of this node, and two others.
fn compete(candidates: &[Candidate], draw: Draw) -> Vec<&Candidate> {
    let (local, remote): (Vec<_>, Vec<_>) =
        candidates.iter().partition(|candidate| matches!(candidate.target, Target::Local(_)));
    local.into_iter().chain(draw.two_of(&remote).into_iter().flatten()).collect()
}
