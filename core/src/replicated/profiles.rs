//! What batches of an artifact take on some hardware, kept so that the next node that loads it starts informed.
//!
//! Bounded: so many kinds of hardware for each artifact, so many points for each, and all go with the last model that names
//! the artifact.

use std::collections::BTreeSet;

use super::{Change, Refusal, State};
use crate::ids::{Digest, NodeName};
use crate::units::ServiceTime;

/// Kinds of hardware whose profiles of one artifact are kept: more than a fleet has, few enough that names which change with
/// each start do not fill the state.
pub const HARDWARE_PER_ARTIFACT: usize = 16;
/// Points of one profile at most: the powers of two up to the largest batch, and some to spare.
pub const POINTS_MOST: usize = 32;
/// Bytes of a hardware's name at most.
pub const HARDWARE_LONGEST: usize = 200;

/// Latency by batch size of one artifact on one kind of hardware.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptProfile {
    /// The artifact's.
    pub digest: Digest,
    /// As its [`Device`](super::Device) names it.
    pub hardware: String,
    /// Batch sizes, ascending, and what a batch takes.
    pub points: Vec<(u32, ServiceTime)>,
    /// The node that measured it.
    pub by: NodeName,
}

impl State {
    /// The profile of an artifact on some hardware.
    pub fn profile(&self, digest: Digest, hardware: &str) -> Option<&KeptProfile> {
        self.profiles.get(&(digest, hardware.to_owned()))
    }

    /// The kinds of hardware that an artifact has been measured on, with what was measured.
    pub fn profiles_of(&self, digest: Digest) -> impl Iterator<Item = &KeptProfile> {
        let first = (digest, String::new());
        self.profiles.range(first..).take_while(move |((of, _), _)| *of == digest).map(|(_, profile)| profile)
    }

    /// Why `profile` is not kept, where it is not.
    pub(super) fn check_profile(&self, profile: &KeptProfile) -> Result<(), Refusal> {
        let KeptProfile { digest, hardware, points, .. } = profile;
        let invalid = |what: String| Err(Refusal::Invalid { what });
        if hardware.is_empty() || hardware.len() > HARDWARE_LONGEST {
            return invalid(format!("hardware is named in 1 to {HARDWARE_LONGEST} bytes, not in {}", hardware.len()));
        }
        let ascending = points.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if points.first().is_none_or(|(batch, _)| *batch == 0) || !ascending || points.len() > POINTS_MOST {
            return invalid(format!("a profile has 1 to {POINTS_MOST} points at ascending batch sizes from 1"));
        }
        if !self.models.values().any(|model| model.digest == *digest) {
            let what = format!("no model has the artifact {digest}; its profile goes with the last one that has it");
            return Err(Refusal::NotFound { what });
        }
        if self.profile(*digest, hardware).is_none() && self.profiles_of(*digest).count() >= HARDWARE_PER_ARTIFACT {
            let what = format!("profiles of {digest} are kept for {HARDWARE_PER_ARTIFACT} kinds of hardware already");
            return Err(Refusal::Conflict { what });
        }
        Ok(())
    }

    /// Artifacts with profiles that no model names any more after `changes`.
    pub(super) fn orphaned_profiles(&self, changes: &[Change]) -> Vec<Digest> {
        let gone: BTreeSet<_> = changes.iter().filter_map(super::apply::gone_model).collect();
        let digests: BTreeSet<Digest> =
            gone.iter().filter_map(|model| self.models.get(model)).map(|model| model.digest).collect();
        let declared = changes.iter().filter_map(|change| match change {
            Change::Model(model) => Some(model),
            _ => None,
        });
        let staying = self.models.values().filter(|model| !gone.contains(&model.reference)).chain(declared);
        let named: BTreeSet<Digest> = staying.map(|model| model.digest).collect();
        let orphaned = digests.difference(&named);
        orphaned.filter(|digest| self.profiles_of(**digest).next().is_some()).copied().collect()
    }
}
