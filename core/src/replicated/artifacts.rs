//! Which artifacts nothing needs any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::State;
use crate::ids::Digest;
use crate::units::Instant;

/// How long an artifact is kept that no model names: whoever goes back to the version of yesterday finds it.
pub const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// Artifacts of one member that no model names, and since when. Begun anew with each start of the member: what is kept
/// too long costs room alone.
#[derive(Clone, Debug, Default)]
pub struct Unreferenced {
    since: BTreeMap<Digest, Instant>,
}

impl Unreferenced {
    /// Somebody is told that the artifact is there and will count on it: its day begins anew.
    pub fn touch(&mut self, now: Instant, digest: Digest) {
        self.since.insert(digest, now);
    }

    /// Looks at what is `stored`. Returns, once, those that no model has named for [`KEPT_FOR`]: they may go.
    pub fn look(&mut self, now: Instant, state: &State, stored: &BTreeSet<Digest>) -> Vec<Digest> {
        let named: BTreeSet<Digest> = state.models.values().map(|model| model.digest).collect();
        self.since.retain(|digest, _| stored.contains(digest) && !named.contains(digest));
        for digest in stored.difference(&named) {
            self.since.entry(*digest).or_insert(now);
        }
        let over = |since: &Instant| now.since(*since) >= KEPT_FOR;
        self.since.extract_if(.., |_, since| over(since)).map(|(digest, _)| digest).collect()
    }
}
