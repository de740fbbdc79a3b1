//! The replica that is expected to be done first, of two looked at.

use std::time::Duration;

use crate::ids::{DeviceName, NodeName};
use crate::outcome::Rejection;
use crate::prng::Prng;
use crate::units::{Deadline, Instant};

/// Where a stage can run: a device of this node, or another node, which chooses among its own devices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Target {
    Local(DeviceName),
    Remote(NodeName),
}

/// A target with the instant at which work sent now would be done there, network not counted.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Candidate {
    pub target: Target,
    pub finish: Instant,
}

/// Which target to send to, or why none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Choice {
    To(Target),
    None(Rejection),
}

/// What a hop to another node and back costs before anything is computed: two wake-ups each way and the copies. Charged
/// so that work stays at home unless the other node is really ahead.
pub const REMOTE_HOP: Duration = Duration::from_micros(300);

/// One in so many queries that no candidate could finish in time is sent to the best one all the same: it refuses cheaply if
/// that is so, and notices if its profile says more than is true. Otherwise no batch would ever run to correct it.
const DOUBTED: u64 = 16;

/// What was told longer ago says nothing any more.
const TOLD_LATELY: Duration = Duration::from_millis(50);

/// When work that takes `service` would be done at another node, by the wait that its last answer told, and when it told it.
pub fn remote_finish(now: Instant, told: Option<(Duration, Instant)>, service: Duration) -> Instant {
    let lately = told.filter(|(_, at)| now.since(*at) < TOLD_LATELY);
    now + lately.map_or(Duration::ZERO, |(wait, _)| wait) + service
}

/// Chooses among `candidates` that can still be in time: all local ones and two remote ones drawn at random compete
/// ("power of two choices", Mitzenmacher 1996: two fresh looks, and no herd on the one that looked best to everybody).
pub fn choose(candidates: &[Candidate], deadline: Deadline, prng: &mut Prng) -> Choice {
    if candidates.is_empty() {
        return Choice::None(Rejection::NoReplica);
    }
    let (local, remote): (Vec<_>, Vec<_>) =
        candidates.iter().partition(|candidate| matches!(candidate.target, Target::Local(_)));
    let mut compared: Vec<(Instant, &Candidate)> =
        local.into_iter().map(|candidate| (candidate.finish, candidate)).collect();
    for candidate in two_of(&remote, prng).into_iter().flatten() {
        compared.push((candidate.finish + REMOTE_HOP, candidate));
    }
    let best = compared.iter().min_by_key(|(finish, candidate)| (*finish, &candidate.target));
    match best {
        Some((finish, candidate)) if !deadline.missed_by(*finish) || prng.below(DOUBTED) == 0 => {
            Choice::To(candidate.target.clone())
        }
        _ => Choice::None(Rejection::TooLate),
    }
}

fn two_of<'a>(all: &[&'a Candidate], prng: &mut Prng) -> [Option<&'a Candidate>; 2] {
    match all {
        [] => [None, None],
        [one] => [Some(one), None],
        _ => {
            let first = prng.below(all.len() as u64) as usize;
            let second = (first + 1 + prng.below(all.len() as u64 - 1) as usize) % all.len();
            [Some(all[first]), Some(all[second])]
        }
    }
}
