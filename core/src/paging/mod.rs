//! Memory of one node as a cache of the replicas that it is to serve: what is loaded when, what goes for it, and who may wait. See
//! README.md for the problem.
//!
//! Events and the time go in, [`Action`]s come out. Files are fetched first, some at a time, whatever is loaded meanwhile. What fits is
//! loaded at once and stays. Where all of it together does not fit, one replica is loaded at a time: what somebody waits for in the order
//! in which it was promised, what was never loaded (so that its size and its reload time are known), and what is worth more than what
//! would go for it. [`Paging::ask`] says of each query of a model that is not in memory whether it may wait for that; many of them lead to
//! one load.
//!
//! `in_use` says of a replica whether rows wait for it or run on it: that one stays.

mod choice;
mod churn;
mod decayed;
mod ending;
mod loads;
mod page;
#[cfg(test)]
mod tests;
mod told;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::ids::{ModelRef, ReplicaId, TicketId};
use crate::outcome::Rejection;
use crate::router::Estimate;
use crate::units::{Bytes, Deadline, Instant, ServiceTime};

use churn::Churn;
use ending::Endings;
use page::{Artifact, Asked, Page, Reload, Stage, is_overdue};

use loads::PATIENCE;

pub use choice::Keep;
pub use told::{Evicted, MemoryNow, Paged, Residence};

/// Rows that may wait for models to be loaded: as many as may wait for a device.
pub const HELD_MAX: usize = crate::scheduler::WAITING_MAX;
/// One row that asks for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Query {
    pub ticket: TicketId,
    pub deadline: Deadline,
    /// When its device can take it up, with what waits and runs there.
    pub free: Instant,
    /// What is left to do then.
    pub service: ServiceTime,
}

impl Query {
    /// Whether it is late where its model is in memory at `ready`.
    fn misses(&self, ready: Instant) -> bool {
        self.deadline.missed_by(ready.max(self.free) + self.service)
    }

    /// The first instant at which it is too late for it.
    fn hopeless(&self) -> Instant {
        Instant::from_nanos(self.deadline.0.as_nanos().saturating_sub(self.service.as_nanos()).saturating_add(1))
    }
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    /// See that the file of this model is here; tell [`Paging::on_fetched`] or [`Paging::on_not_fetched`].
    Fetch(ModelRef),
    /// Load this replica; tell [`Paging::on_loaded`], [`Paging::on_failed`], or [`Paging::on_missing`] where the file of its model is not here.
    Load(ReplicaId),
    /// Put it out at once; tell [`Paging::on_gone`] when its memory is free.
    Evict(ReplicaId),
    /// The model of this row is in memory now.
    Run(TicketId),
    /// This row does not run here.
    Reject { ticket: TicketId, why: Rejection },
    /// The deadline of this row cannot be met any more.
    Expire(TicketId),
    /// Call [`Paging::on_wake`] then; the earliest counts.
    WakeAt(Instant),
}

/// The memory of a node.
#[derive(Clone, Debug)]
pub struct Paging {
    memory: u64,
    keep: Keep,
    pages: BTreeMap<ReplicaId, Page>,
    /// What all of them would take.
    all: u64,
    /// Sessions of what is not here any more that have not ended.
    endings: Endings,
    models: BTreeMap<ModelRef, Asked>,
    /// Rows that wait.
    held: usize,
    /// Loads that rows wait for, in the order in which they were promised.
    promised: VecDeque<ReplicaId>,
    /// What was asked for and could not be in time.
    wishes: BTreeSet<ReplicaId>,
    /// The load before was one that nobody asked for.
    was_due: bool,
    /// What the first load of a replica took last, with all that is measured then.
    first_load: Duration,
    /// No row that waits is late before.
    hopeless: Instant,
    churn: Churn,
}

impl Paging {
    /// Nothing in `memory`.
    pub fn new(memory: Bytes, keep: Keep) -> Paging {
        Paging {
            memory: memory.0,
            keep,
            pages: BTreeMap::new(),
            all: 0,
            endings: Endings::default(),
            models: BTreeMap::new(),
            held: 0,
            promised: VecDeque::new(),
            wishes: BTreeSet::new(),
            was_due: false,
            first_load: Duration::ZERO,
            hopeless: Instant::FAR,
            churn: Churn::default(),
        }
    }

    /// Whether not everything fits. Where it does, queries need not be told of.
    pub fn is_short(&self) -> bool {
        self.all + self.endings.size() > self.memory
    }

    /// A replica is to be served here, of which this much is known, and whose file is `here` or has to be fetched; [`Paging::on_wake`] loads
    /// it, and whatever else was placed.
    pub fn place(&mut self, now: Instant, id: ReplicaId, model: &ModelRef, size: Bytes, here: bool) {
        let size = Bytes(size.0.min(self.memory));
        let before = self.pages.insert(id, Page::new(model.clone(), size, now));
        assert!(before.is_none(), "replica {id} is placed already");
        self.all += size.0;
        self.models.entry(model.clone()).or_insert_with(|| Asked::new(now, here)).pages.push(id);
    }

    /// A replica is not to be served here any more. Who waits for its model alone is refused. Where it is in memory, or
    /// being loaded, it takes that until [`Paging::on_ended`].
    pub fn remove(&mut self, now: Instant, id: ReplicaId, in_use: &dyn Fn(ReplicaId) -> bool, out: &mut Vec<Action>) {
        let takes = self.pages.get(&id).map_or(Duration::ZERO, |_| self.takes(id));
        let Some(page) = self.pages.remove(&id) else { return };
        self.all -= page.size;
        self.wishes.remove(&id);
        match page.stage {
            Stage::In | Stage::Leaving => self.endings.begin(now, id, page.size),
            Stage::Loading(since) => self.endings.begin_load(now.max(since + takes), id, page.size),
            Stage::Out => {}
        }
        if matches!(page.stage, Stage::Loading(_)) || self.promised.contains(&id) {
            self.refuse_all(&page.model, out);
        }
        let asked = self.models.get_mut(&page.model).expect("a model has its replicas");
        asked.pages.retain(|other| *other != id);
        if asked.pages.is_empty() {
            self.models.remove(&page.model);
        }
        self.advance(now, in_use, out);
    }

    /// Rows ask for a model. True where it is in memory: they may run. Otherwise each is refused now, or runs, is refused or expires later.
    pub fn ask(
        &mut self,
        now: Instant,
        model: &ModelRef,
        queries: &[Query],
        in_use: &dyn Fn(ReplicaId) -> bool,
        out: &mut Vec<Action>,
    ) -> bool {
        let refuse = |why: Rejection| move |query: &Query| Action::Reject { ticket: query.ticket, why };
        if !self.models.contains_key(model) {
            out.extend(queries.iter().map(refuse(Rejection::NoReplica)));
            return false;
        }
        let time = |query: &Query| query.hopeless().since(now);
        if self.count(now, model, queries.len(), queries.iter().map(time).max().unwrap_or_default()) {
            return true;
        }
        let Some((id, ready)) = self.promise(now, model) else {
            out.extend(queries.iter().map(refuse(Rejection::NoReplica)));
            return false;
        };
        let late = queries.iter().filter(|query| query.misses(ready));
        out.extend(late.map(refuse(Rejection::TooLate)));
        let timely = queries.iter().filter(|query| !query.misses(ready));
        let is_new = !self.is_coming(id);
        let rows = timely.clone().count();
        if rows > 0 && is_new && !self.gains(now, id, rows, in_use) {
            out.extend(timely.map(refuse(Rejection::TooLate)));
        } else if rows > 0 {
            let room = HELD_MAX - self.held;
            out.extend(timely.clone().skip(room).map(refuse(Rejection::QueueFull)));
            self.held += rows.min(room);
            let timely = timely.take(room);
            self.hopeless = timely.clone().map(Query::hopeless).min().unwrap_or(Instant::FAR).min(self.hopeless);
            self.models.get_mut(model).expect("just seen").waiting.extend(timely);
            if is_new && room > 0 {
                self.promised.push_back(id);
            }
        } else if is_new {
            self.wishes.insert(id);
        }
        self.advance(now, in_use, out);
        false
    }

    /// So many rows that could wait for `time` would have asked for a model, had its load not been too long for them.
    pub fn on_missed(
        &mut self,
        now: Instant,
        model: &ModelRef,
        (rows, time): (usize, Duration),
        in_use: &dyn Fn(ReplicaId) -> bool,
        out: &mut Vec<Action>,
    ) {
        if !self.models.contains_key(model) || self.count(now, model, rows, time) {
            return;
        }
        if let Some((id, _)) = self.promise(now, model)
            && !self.is_coming(id)
        {
            self.wishes.insert(id);
            self.advance(now, in_use, out);
        }
    }

    /// When a model will be in memory if it is asked for now: at once where it is. `None` where nobody can say.
    pub fn ready_at(&self, now: Instant, model: &ModelRef) -> Option<Instant> {
        if self.is_resident(model) { Some(now) } else { self.promise(now, model).map(|(_, ready)| ready) }
    }

    /// The file of a model is here.
    pub fn on_fetched(
        &mut self,
        now: Instant,
        model: &ModelRef,
        in_use: &dyn Fn(ReplicaId) -> bool,
        out: &mut Vec<Action>,
    ) {
        let Some(asked) = self.models.get_mut(model) else { return };
        let Artifact::Fetching(since) = asked.artifact else { return };
        (asked.artifact, asked.fetch) = (Artifact::Here, Some(now.since(since)));
        for id in &asked.pages {
            let page = self.pages.get_mut(id).expect("a replica that is placed");
            // It waits for memory from now on.
            page.due = page.due.map(|at| at.max(now));
        }
        self.advance(now, in_use, out);
    }

    /// The file of a model cannot be had now: it is tried again after `pause`. Who waits for it is refused.
    pub fn on_not_fetched(
        &mut self,
        now: Instant,
        model: &ModelRef,
        pause: Duration,
        in_use: &dyn Fn(ReplicaId) -> bool,
        out: &mut Vec<Action>,
    ) {
        let Some(asked) = self.models.get_mut(model) else { return };
        asked.artifact = Artifact::Missing(now + pause);
        self.refuse_all(model, out);
        self.advance(now, in_use, out);
    }

    /// A load that was asked for found no file, or another: it is fetched first. Who waits for it goes on waiting.
    pub fn on_missing(
        &mut self,
        now: Instant,
        id: ReplicaId,
        in_use: &dyn Fn(ReplicaId) -> bool,
        out: &mut Vec<Action>,
    ) {
        let loads = |page: &&mut Page| matches!(page.stage, Stage::Loading(_));
        let Some(page) = self.pages.get_mut(&id).filter(loads) else { return };
        page.stage = Stage::Out;
        let asked = self.models.get_mut(&page.model).expect("a model has its replicas");
        if asked.artifact == Artifact::Here {
            asked.artifact = Artifact::Missing(now);
        }
        if !asked.waiting.is_empty() && !self.promised.contains(&id) {
            self.promised.push_front(id);
        }
        self.advance(now, in_use, out);
    }

    /// When a row that takes `service` would be done of a model that is not in memory, on a device that has a slot for it at `start`; `None`
    /// where it is in memory, or nobody can say.
    pub fn estimate(&self, now: Instant, model: &ModelRef, start: Estimate, service: ServiceTime) -> Option<Estimate> {
        let (id, ready) = self.promise(now, model).filter(|(_, ready)| !self.is_resident(model) && *ready > now)?;
        let (last, first) = (ready.max(start.finish), ready.max(start.soonest()));
        let alone = (ready + service).since(now);
        let cold = !self.is_coming(id);
        Some(Estimate { yields: last.since(first), cold, ..Estimate::of(now, last + service, alone) })
    }

    /// A load that was asked for is done. Of the first one: what the replica takes, and how much of the time the next load will take again.
    pub fn on_loaded(
        &mut self,
        now: Instant,
        id: ReplicaId,
        first: Option<(Bytes, Duration)>,
        in_use: &dyn Fn(ReplicaId) -> bool,
        out: &mut Vec<Action>,
    ) {
        let is_short = self.is_short();
        let Some(page) = self.pages.get_mut(&id) else { return };
        let Stage::Loading(since) = page.stage else { return };
        let took = now.since(since);
        (page.stage, page.due) = (Stage::In, None);
        page.loads += 1;
        if let Some((size, again)) = first {
            // What is larger than everything has everything.
            let size = size.0.min(self.memory);
            self.all = self.all - page.size + size;
            (page.size, page.reload) = (size, Some(Reload::first(again)));
            self.first_load = took;
        } else if let Some(reload) = &mut page.reload {
            reload.add(took);
            if is_short {
                self.churn.reloaded(now, took);
            }
        }
        let asked = self.models.get_mut(&page.model).expect("a model has its replicas");
        self.held -= asked.waiting.len();
        let waiting = asked.waiting.drain(..);
        out.extend(
            waiting
                .map(|query| if query.misses(now) { Action::Expire(query.ticket) } else { Action::Run(query.ticket) }),
        );
        let pages = &asked.pages;
        self.promised.retain(|id| !pages.contains(id));
        self.wishes.remove(&id);
        let just_loaded = |other: ReplicaId| other == id || in_use(other);
        self.advance(now, &just_loaded, out);
    }

    /// A load has failed, or what was loaded has died: it is tried again after `pause`. Who waits for it is refused. What has died takes its
    /// memory until [`Paging::on_ended`].
    pub fn on_failed(
        &mut self,
        now: Instant,
        id: ReplicaId,
        pause: Duration,
        in_use: &dyn Fn(ReplicaId) -> bool,
        out: &mut Vec<Action>,
    ) {
        let Some(page) = self.pages.get_mut(&id) else { return };
        let (before, size) = (page.stage, page.size);
        (page.stage, page.due) = (Stage::Out, Some(now + pause));
        let model = page.model.clone();
        if matches!(before, Stage::In | Stage::Leaving) {
            self.endings.begin(now, id, size);
        }
        self.wishes.remove(&id);
        self.refuse_all(&model, out);
        self.advance(now, in_use, out);
    }

    /// The memory of what was put out is free.
    pub fn on_gone(&mut self, now: Instant, id: ReplicaId, in_use: &dyn Fn(ReplicaId) -> bool, out: &mut Vec<Action>) {
        match self.pages.get_mut(&id).filter(|page| page.stage == Stage::Leaving) {
            Some(page) => page.stage = Stage::Out,
            // It was removed, or died, on its way out.
            None => self.endings.end(id),
        }
        self.advance(now, in_use, out);
    }

    /// The memory is free of what was removed or has died.
    pub fn on_ended(&mut self, now: Instant, id: ReplicaId, in_use: &dyn Fn(ReplicaId) -> bool, out: &mut Vec<Action>) {
        self.endings.end(id);
        self.advance(now, in_use, out);
    }

    /// The callers of rows that wait are gone; in the order of their tickets.
    pub fn on_cancel(&mut self, model: &ModelRef, tickets: &[TicketId]) {
        let Some(asked) = self.models.get_mut(model) else { return };
        let before = asked.waiting.len();
        asked.waiting.retain(|query| tickets.binary_search(&query.ticket).is_err());
        self.held -= before - asked.waiting.len();
        self.break_promises();
    }

    /// A timer that was asked for fires.
    pub fn on_wake(&mut self, now: Instant, in_use: &dyn Fn(ReplicaId) -> bool, out: &mut Vec<Action>) {
        self.hopeless = Instant::FAR;
        for asked in self.models.values_mut() {
            let before = asked.waiting.len();
            asked.waiting.retain(|query| {
                let late = query.misses(now);
                out.extend(late.then_some(Action::Expire(query.ticket)));
                if !late {
                    self.hopeless = self.hopeless.min(query.hopeless());
                }
                !late
            });
            self.held -= before - asked.waiting.len();
        }
        self.break_promises();
        self.advance(now, in_use, out);
    }

    /// Whether it does little else than load, so that only what is worth much more than what goes for it is loaded.
    pub fn thrashes(&self, now: Instant) -> bool {
        self.churn.thrashes(now)
    }

    /// Whether it is being loaded, or will be because somebody waits.
    fn is_coming(&self, id: ReplicaId) -> bool {
        matches!(self.pages[&id].stage, Stage::Loading(_)) || self.promised.contains(&id)
    }

    /// Whether the file of its model is on this node.
    fn is_here(&self, page: &Page) -> bool {
        self.models[&page.model].artifact == Artifact::Here
    }

    /// What a load takes, the first one with all that is measured.
    fn takes(&self, id: ReplicaId) -> Duration {
        self.pages[&id].reload.map_or(self.first_load, Reload::estimate)
    }

    fn is_resident(&self, model: &ModelRef) -> bool {
        let pages = self.models.get(model).map_or(&[][..], |asked| &asked.pages);
        pages.iter().any(|id| self.pages[id].stage == Stage::In)
    }

    /// Counts rows of a model; whether it is in memory.
    fn count(&mut self, now: Instant, model: &ModelRef, rows: usize, time: Duration) -> bool {
        let resident = self.is_resident(model);
        let asked = self.models.get_mut(model).expect("known to whoever counts");
        let last = asked.demand.last();
        asked.demand.add(now, rows, time);
        if !resident {
            asked.cold += rows as u64;
            let regretted = |id: &ReplicaId| {
                let page = &self.pages[id];
                page.evicted.as_ref().is_some_and(|(at, _)| last < *at && now.since(*at) < page.reload())
            };
            if asked.pages.iter().any(regretted) {
                self.churn.regretted(now);
            }
        }
        resident
    }

    /// The replica of a model that is loaded for whoever asks now, and when it will be in memory.
    fn promise(&self, now: Instant, model: &ModelRef) -> Option<(ReplicaId, Instant)> {
        let pages = self.models.get(model).map_or(&[][..], |asked| &asked.pages);
        let ends = |id: &ReplicaId| match self.pages[id].stage {
            Stage::Loading(since) => Some((since + self.takes(*id)).max(now)),
            _ => None,
        };
        if self.is_overdue(now) {
            return None;
        }
        if let Some(known) =
            pages.iter().find_map(|id| Some((*id, ends(id).filter(|_| self.pages[id].reload.is_some())?)))
        {
            return Some(known);
        }
        let fetched = self.models.get(model)?.fetched(now)?;
        let loads = self.pages.keys().filter_map(ends).chain(self.endings.loads_until(now));
        let mut ready = loads.max().unwrap_or(now);
        // One that was never loaded may go before each.
        let is_due = |page: &&Page| page.stage == Stage::Out && page.due.is_some();
        let (mut due, mut later): (Vec<&Page>, Vec<&Page>) =
            self.pages.values().filter(is_due).partition(|page| self.is_here(page));
        // Those that are fetched before are not in such a hurry.
        let mut first = |begins: Instant| {
            if begins.since(now) >= PATIENCE {
                due.append(&mut later);
            }
            due.pop().map_or(Duration::ZERO, |_| self.first_load)
        };
        for id in &self.promised {
            let own = pages.contains(id);
            let begins = if own { ready.max(fetched) } else { ready };
            ready = begins + first(begins) + self.pages[id].reload();
            if own {
                return Some((*id, ready));
            }
        }
        // What is about to leave can come back as soon as it has.
        let can = |id: &&ReplicaId| self.pages[*id].is_on_demand() || self.pages[*id].stage == Stage::Leaving;
        let id = *pages.iter().find(can)?;
        let begins = ready.max(fetched);
        Some((id, begins + first(begins) + self.pages[&id].reload()))
    }

    /// Whether what is being loaded takes so much longer than it is known to that nobody can say when the next load begins.
    fn is_overdue(&self, now: Instant) -> bool {
        let hangs = |(id, page): (&ReplicaId, &Page)| match page.stage {
            Stage::Loading(since) => is_overdue(now, since, self.takes(*id)),
            _ => false,
        };
        self.is_short() && self.pages.iter().any(hangs)
    }

    /// Nobody waits for these any more.
    fn break_promises(&mut self) {
        let (pages, models) = (&self.pages, &self.models);
        let is_awaited = |id: &ReplicaId| !models[&pages[id].model].waiting.is_empty();
        self.promised.retain(is_awaited);
    }

    fn refuse_all(&mut self, model: &ModelRef, out: &mut Vec<Action>) {
        let asked = self.models.get_mut(model).expect("a model has its replicas");
        self.held -= asked.waiting.len();
        let refuse = |query: Query| Action::Reject { ticket: query.ticket, why: Rejection::NoReplica };
        out.extend(asked.waiting.drain(..).map(refuse));
        let pages = &asked.pages;
        self.promised.retain(|id| !pages.contains(id));
    }

    fn page(&mut self, id: ReplicaId) -> &mut Page {
        self.pages.get_mut(&id).expect("a replica that is placed")
    }

    fn assert_invariants(&self) {
        assert_eq!(self.all, self.pages.values().map(|page| page.size).sum::<u64>());
        assert_eq!(self.held, self.models.values().map(|asked| asked.waiting.len()).sum::<usize>());
        for asked in self.models.values().filter(|asked| !asked.waiting.is_empty()) {
            assert!(asked.pages.iter().any(|id| self.is_coming(*id)), "rows wait for what nobody loads");
        }
    }
}
