//! Which of the profiles that nodes report the leader has kept, so that the next node that loads a model starts informed.
//!
//! A profile goes through the log, so little is said: the first one of an artifact on some hardware, and a correction where
//! what is kept is far from what every replica there sees, not sooner than [`CORRECT_EVERY`] after the last one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Liveness, ReplicaProfile, ReplicaState};
use crate::ids::{Digest, NodeName};
use crate::profile::estimate;
use crate::replicated::{HARDWARE_LONGEST, HARDWARE_PER_ARTIFACT, KeptProfile, POINTS_MOST, State};
use crate::units::{Instant, ServiceTime};

/// How often the leader looks, and so the least time between two profiles in the log.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Least time between two corrections of one profile: what is kept is where a node begins, not what it goes by.
const CORRECT_EVERY: Duration = Duration::from_secs(600);
/// A profile is corrected that is further off than this share, which is more than measurements differ by.
const FAR: f64 = 0.1;
/// Batches after which a replica knows better than what is kept.
const ENOUGH: u64 = 100;

/// When profiles were written: soft state of a leader.
#[derive(Clone, Debug)]
pub struct Informing {
    since: Instant,
    next_look: Instant,
    written: BTreeMap<(Digest, String), Instant>,
}

/// What one replica reports.
struct Seen<'a> {
    batches: u64,
    profile: &'a ReplicaProfile,
    by: &'a NodeName,
}

impl Informing {
    /// Of a leader that was elected at `now`. It does not know when its predecessor corrected what, so it waits.
    pub fn new(now: Instant) -> Informing {
        Informing { since: now, next_look: now, written: BTreeMap::new() }
    }

    /// The profile that is to be kept next, if any; call it as often as you like.
    pub fn next(&mut self, now: Instant, state: &State, liveness: &Liveness) -> Option<KeptProfile> {
        if now < self.next_look {
            return None;
        }
        self.next_look = now + LOOK_EVERY;
        self.written.retain(|key, _| state.profiles.contains_key(key));
        let seen = seen(state, liveness);
        let wanted = seen.iter().find_map(|(key, seen)| {
            let points = self.news(now, state, key, seen)?;
            Some((key.clone(), points))
        });
        let ((digest, hardware), (points, by)) = wanted?;
        self.written.insert((digest, hardware.clone()), now);
        Some(KeptProfile { digest, hardware, points, by })
    }

    /// What is worth keeping of what was seen of one artifact on one hardware.
    fn news(
        &self,
        now: Instant,
        state: &State,
        key: &(Digest, String),
        seen: &[Seen<'_>],
    ) -> Option<(Vec<(u32, ServiceTime)>, NodeName)> {
        let knows_best = seen.iter().max_by_key(|seen| seen.batches)?;
        let news = || (thinned(&knows_best.profile.points), knows_best.by.clone());
        let Some(kept) = state.profiles.get(key) else {
            let room = state.profiles_of(key.0).count() < HARDWARE_PER_ARTIFACT;
            return room.then(news);
        };
        let last = self.written.get(key).copied().unwrap_or(self.since);
        // Where replicas disagree, what is kept need not please them all, or they would take turns.
        let is_wrong = seen.iter().all(|seen| seen.batches >= ENOUGH && is_far(&kept.points, &seen.profile.points));
        (is_wrong && now.since(last) >= CORRECT_EVERY).then(news)
    }
}

/// Replicas that serve, by artifact and hardware.
fn seen<'a>(state: &'a State, liveness: &'a Liveness) -> BTreeMap<(Digest, String), Vec<Seen<'a>>> {
    let mut all: BTreeMap<_, Vec<Seen<'a>>> = BTreeMap::new();
    for (id, assignment) in &state.plan.assignments {
        let replica = liveness.report(&assignment.node).and_then(|(report, _)| report.replicas.get(id));
        let node = state.nodes.get(&assignment.node);
        let device = node.and_then(|node| node.devices.iter().find(|device| device.name == assignment.device));
        let (Some(replica), Some(device), Some(model)) = (replica, device, state.models.get(&assignment.model)) else {
            continue;
        };
        let ReplicaState::Ready(profile) = &replica.state else { continue };
        if !device.hardware.is_empty() && device.hardware.len() <= HARDWARE_LONGEST {
            let seen = Seen { batches: replica.batches.count(), profile, by: &assignment.node };
            all.entry((model.digest, device.hardware.clone())).or_default().push(seen);
        }
    }
    all
}

/// The points at powers of two, the first and the last.
fn thinned(points: &[(u32, ServiceTime)]) -> Vec<(u32, ServiceTime)> {
    let last = points.len() - 1;
    let stays = |i: usize, batch: u32| i == 0 || i == last || batch.is_power_of_two();
    let thinned = points.iter().enumerate().filter(|(i, (batch, _))| stays(*i, *batch)).map(|(_, point)| *point);
    thinned.take(POINTS_MOST).collect()
}

/// Whether `seen` differs notably from `kept` somewhere.
fn is_far(kept: &[(u32, ServiceTime)], seen: &[(u32, ServiceTime)]) -> bool {
    kept.iter().any(|(batch, kept)| {
        let (kept, seen) = (kept.as_nanos() as f64, estimate(seen, *batch).as_nanos() as f64);
        (seen - kept).abs() > FAR * kept
    })
}
