//! What is worth having in memory, and what goes for it.
//!
//! A replica out of memory costs the time of its reloads where queries can wait for them, and their own where they cannot: its rate times
//! what a reload takes, or times what they have where that is less. For its size, that is what it is worth to keep it: the density of a
//! fractional knapsack, and the frequency times cost by size of Greedy-Dual-Size-Frequency (Cherkasova, HP Labs 1998), with a rate that
//! decays in place of its clock.

use super::Paging;
use super::page::{Page, Stage};
use crate::ids::ReplicaId;
use crate::units::Instant;

/// What stays in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// What is worth most for its size: its rate times what a reload takes, the queries that would come meanwhile.
    #[default]
    Worth,
    /// What was asked last, to compare with: whatever is asked is loaded.
    Recent,
}

/// A load that nobody waits for is worth what goes for it so many times, or what both are would change places again and again.
const CLEARLY: f64 = 1.5;
/// Likewise where a node does little else than load; for one that somebody waits for it is [`CLEARLY`] then.
const VERY_CLEARLY: f64 = 4.0;
impl Paging {
    /// Queries that would come to a replica while it is reloaded.
    fn missed(&self, now: Instant, id: ReplicaId) -> f64 {
        self.rate(now, id) * self.pages[&id].reload().as_secs_f64()
    }

    /// What it costs a second not to have a replica in memory, in seconds: time in which it is reloaded for queries that can wait for that, and
    /// the whole time of those that cannot.
    fn worth(&self, now: Instant, id: ReplicaId) -> f64 {
        let page = &self.pages[&id];
        self.rate(now, id) * page.reload().as_secs_f64().min(self.models[&page.model].demand.time())
    }

    /// For its size.
    fn density(&self, now: Instant, id: ReplicaId) -> f64 {
        self.worth(now, id) / self.pages[&id].size.max(1) as f64
    }

    fn rate(&self, now: Instant, id: ReplicaId) -> f64 {
        let asked = &self.models[&self.pages[&id].model];
        asked.demand.rate(now) / asked.pages.len() as f64
    }

    /// Whether loading a replica for `rows` rows that wait gains more than it costs those for whom others would have to go.
    pub(super) fn gains(&self, now: Instant, id: ReplicaId, rows: usize, in_use: &dyn Fn(ReplicaId) -> bool) -> bool {
        let Some(victims) = self.victims(now, Some(id), self.lacks(id), in_use).filter(|_| self.keep == Keep::Worth)
        else {
            // What is in use now may not be in a moment.
            return rows > 0 || self.keep == Keep::Recent;
        };
        let sum = |of: fn(&Paging, Instant, ReplicaId) -> f64| victims.iter().map(|id| of(self, now, *id)).sum::<f64>();
        let calm = !self.thrashes(now);
        if rows > 0 {
            let factor = if calm { 1.0 } else { CLEARLY };
            return rows as f64 + self.missed(now, id) > factor * sum(Paging::missed);
        }
        self.worth(now, id) > if calm { CLEARLY } else { VERY_CLEARLY } * sum(Paging::worth)
    }

    pub(super) fn free(&self) -> u64 {
        let held = self.pages.values().filter(|page| page.is_held());
        self.memory.saturating_sub(held.map(|page| page.size).sum::<u64>() + self.endings.size())
    }

    /// Memory that a replica lacks.
    pub(super) fn lacks(&self, id: ReplicaId) -> u64 {
        self.pages[&id].size.saturating_sub(self.free())
    }

    /// What goes for `wanted` so that `lacking` bytes are free, just enough of it; `None` where that cannot be.
    pub(super) fn victims(
        &self,
        now: Instant,
        wanted: Option<ReplicaId>,
        lacking: u64,
        in_use: &dyn Fn(ReplicaId) -> bool,
    ) -> Option<Vec<ReplicaId>> {
        let resident = self.pages.iter().filter(|(id, page)| page.stage == Stage::In && Some(**id) != wanted);
        let last = |page: &Page| self.models[&page.model].demand.last();
        let rank = |id: ReplicaId| match self.keep {
            Keep::Worth => self.density(now, id),
            Keep::Recent => 0.0,
        };
        let mut ranked: Vec<(f64, Instant, ReplicaId)> =
            resident.map(|(id, page)| (rank(*id), last(page), *id)).collect();
        ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let (mut victims, mut freed) = (Vec::new(), 0);
        for (.., id) in ranked {
            if freed >= lacking {
                break;
            }
            if !in_use(id) {
                freed += self.pages[&id].size;
                victims.push(id);
            }
        }
        if freed < lacking {
            return None;
        }
        // A large one that came last may do alone what smaller ones were to do: the dearest of those stay.
        for at in (0..victims.len()).rev() {
            let size = self.pages[&victims[at]].size;
            if freed - size >= lacking {
                freed -= size;
                victims.remove(at);
            }
        }
        Some(victims)
    }

    /// Of what was asked for in vain, what is worth most for its size.
    pub(super) fn dearest_wish(&self, now: Instant) -> Option<ReplicaId> {
        let density = |id: &ReplicaId| self.density(now, *id);
        let here = self.wishes.iter().copied().filter(|id| self.is_here(&self.pages[id]));
        here.max_by(|a, b| density(a).total_cmp(&density(b)).then(b.cmp(a)))
    }
}
