//! What is fetched and loaded next, and what is put out for it.

use std::time::Duration;

use super::page::{Artifact, Asked, Page, Stage};
use super::{Action, Paging};
use crate::ids::{ModelRef, ReplicaId};
use crate::units::Instant;

/// What was never loaded goes before what somebody waits for once it has waited so long itself.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Files that are fetched at once: one comes while others are asked for, checked and written. Each is held whole meanwhile.
pub(super) const FETCHES_MAX: usize = 4;
/// Where everything that could go is in use: when to look again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Paging {
    /// Whatever can be begun is begun.
    pub(super) fn advance(&mut self, now: Instant, in_use: &dyn Fn(ReplicaId) -> bool, out: &mut Vec<Action>) {
        self.fetch(now, out);
        self.relieve(now, in_use, out);
        // What waits for memory that is in use keeps nothing from being loaded that finds some.
        let mut blocked = Vec::new();
        while let Some(id) = self.next_load(now, &blocked, in_use) {
            let lacking = self.lacks(id);
            if lacking == 0 {
                self.was_due = self.pages[&id].due.is_some();
                self.wishes.remove(&id);
                self.page(id).stage = Stage::Loading(now);
                out.push(Action::Load(id));
                continue;
            }
            if self.pages.values().any(|page| page.stage == Stage::Leaving) {
                break;
            }
            if let Some(until) = self.endings.soon(now) {
                out.push(Action::WakeAt(until));
                break;
            }
            if let Some(victims) = self.victims(now, Some(id), lacking, in_use) {
                self.evict(now, &victims, Some(id), out);
                break;
            }
            blocked.push(id);
        }
        if !blocked.is_empty() {
            out.push(Action::WakeAt(now + LOOK_AGAIN));
        }
        let due = self.pages.values().filter(|page| page.stage == Stage::Out).filter_map(|page| page.due);
        let fetches = self.models.values().filter_map(|asked| match asked.artifact {
            Artifact::Missing(from) => Some(from),
            Artifact::Fetching(_) | Artifact::Here => None,
        });
        let due = due.chain(fetches).filter(|at| *at > now).min();
        out.extend(self.endings.loads_until(now).map(Action::WakeAt));
        let hopeless = Some(self.hopeless).filter(|_| self.held > 0);
        out.extend(due.into_iter().chain(hopeless).min().map(Action::WakeAt));
        if cfg!(debug_assertions) {
            self.assert_invariants();
        }
    }

    /// Begins to fetch what is to be loaded and is not here: what somebody waits for first.
    fn fetch(&mut self, now: Instant, out: &mut Vec<Action>) {
        let is_fetched = |asked: &&Asked| matches!(asked.artifact, Artifact::Fetching(_));
        let free = FETCHES_MAX.saturating_sub(self.models.values().filter(is_fetched).count());
        if free == 0 {
            return;
        }
        let from = |(model, asked): (&ModelRef, &Asked)| match asked.artifact {
            Artifact::Missing(from) if from <= now => Some((asked.waiting.is_empty(), from, model.clone())),
            _ => None,
        };
        let mut missing: Vec<(bool, Instant, ModelRef)> = self.models.iter().filter_map(from).collect();
        missing.sort_unstable();
        for (.., model) in missing.into_iter().take(free) {
            self.models.get_mut(&model).expect("just seen").artifact = Artifact::Fetching(now);
            out.push(Action::Fetch(model));
        }
    }

    /// What stands here may take more memory than was known.
    fn relieve(&mut self, now: Instant, in_use: &dyn Fn(ReplicaId) -> bool, out: &mut Vec<Action>) {
        let stays = self.pages.values().filter(|page| page.is_held() && page.stage != Stage::Leaving);
        let beyond = (stays.map(|page| page.size).sum::<u64>() + self.endings.stuck(now)).saturating_sub(self.memory);
        if beyond == 0 {
            return;
        }
        match self.victims(now, None, beyond, in_use) {
            Some(victims) => self.evict(now, &victims, None, out),
            None => out.push(Action::WakeAt(now + LOOK_AGAIN)),
        }
    }

    fn evict(&mut self, now: Instant, victims: &[ReplicaId], wanted: Option<ReplicaId>, out: &mut Vec<Action>) {
        let by = wanted.map(|id| self.pages[&id].model.clone());
        for id in victims {
            let page = self.page(*id);
            page.stage = Stage::Leaving;
            page.evictions += 1;
            page.evicted = Some((now, by.clone()));
            out.push(Action::Evict(*id));
        }
    }

    /// What is to be loaded next, if anything can be begun now; none of `blocked`.
    fn next_load(
        &mut self,
        now: Instant,
        blocked: &[ReplicaId],
        in_use: &dyn Fn(ReplicaId) -> bool,
    ) -> Option<ReplicaId> {
        let loads = self.pages.values().any(|page| matches!(page.stage, Stage::Loading(_)));
        if (loads || self.endings.loads_until(now).is_some()) && self.is_short() {
            return None;
        }
        let is_out =
            |id: &ReplicaId, page: &Page| page.stage == Stage::Out && self.is_here(page) && !blocked.contains(id);
        let due = self.pages.iter().filter(|(id, page)| is_out(id, page));
        let due = due.filter_map(|(id, page)| Some((page.due.filter(|at| *at <= now)?, *id))).min();
        let is_impatient = |(at, _): &(Instant, ReplicaId)| !self.was_due && now.since(*at) >= PATIENCE;
        if let Some((_, id)) = due.filter(is_impatient) {
            return Some(id);
        }
        let promised = self.promised.iter().copied().find(|id| is_out(id, &self.pages[id]));
        if let Some(id) = promised.or(due.map(|(_, id)| id)) {
            return Some(id);
        }
        if !self.is_short() {
            return self.pages.iter().find(|(id, page)| page.is_on_demand() && is_out(id, page)).map(|(id, _)| *id);
        }
        while let Some(id) = self.dearest_wish(now).filter(|id| !blocked.contains(id)) {
            if self.pages[&id].is_on_demand() && self.gains(now, id, 0, in_use) {
                return Some(id);
            }
            self.wishes.remove(&id);
        }
        None
    }
}
