//! The leader's shell of placement: believes the nodes' reports, proposes plans, and tells which replicas serve.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use weir_core::ids::{Epoch, ModelRef, ReplicaId, RequestId};
use weir_core::labels::Moving;
use weir_core::placement::{Informing, Liveness, NodeReport, Placement, ReplicaProfile, ReplicaState};
use weir_core::replicated::{Command, Entry, Grant, Member, State};
use weir_core::rollout::Rollouts;
use weir_core::triage::{ByModel, Market};
use weir_core::tuner::{Tuner, Want};
use weir_core::units::Instant;
use weir_host::Host;

use crate::actors::raft::{Handle, Published};
use crate::messages::MemberStep;

/// How often the leader looks whether the plan still fits.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// With many models a look takes longer: it has at most one part in so many of the time.
const LOOK_SHARE: u32 = 10;
/// A learner this close to the leader's log is caught up.
const CAUGHT_UP: u64 = 16;

/// Which replicas may be sent work. Ordered by (term, counter).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// Of the leader that says so.
    pub term: u64,
    /// Goes up with each change.
    pub counter: u64,
    /// Replicas that serve.
    pub ready: BTreeSet<ReplicaId>,
    /// Profiles of those.
    pub profiles: BTreeMap<ReplicaId, ReplicaProfile>,
}

/// Soft state of the leader.
pub struct Planner {
    host: Host,
    handle: Handle,
    inner: RefCell<Inner>,
}

struct Inner {
    /// Of this term; begun anew with each leadership.
    term: u64,
    liveness: Liveness,
    informing: Informing,
    routing: Routing,
    unplaceable: Vec<(ModelRef, String)>,
    market: Market,
    tuner: Tuner,
    placement: Placement,
    rollouts: Rollouts,
    moving: Moving,
    /// Of which plan, and when, it was last looked who serves.
    routed: (Epoch, Instant),
}

impl Inner {
    /// Of a leader that was elected just now.
    fn new(now: Instant, term: u64) -> Inner {
        Inner {
            term,
            liveness: Liveness::new(now),
            informing: Informing::new(now),
            routing: Routing { term, ..Routing::default() },
            unplaceable: Vec::new(),
            market: Market::default(),
            tuner: Tuner::new(now),
            placement: Placement::default(),
            rollouts: Rollouts::default(),
            moving: Moving::default(),
            routed: (Epoch(0), Instant::ZERO),
        }
    }
}

impl Inner {
    /// Finds who serves, where that may have changed: with a thousand nodes there are thousands of reports a second.
    fn route(&mut self, now: Instant, state: &State) {
        let (epoch, looked) = self.routed;
        if !self.liveness.take_changed() && epoch == state.plan.epoch && now.since(looked) < LOOK_EVERY {
            return;
        }
        self.routed = (state.plan.epoch, now);
        let ready = self.liveness.ready(now, state);
        if ready != self.routing.ready {
            self.routing.counter += 1;
            self.routing.profiles = profiles(&self.liveness, state, &ready);
            self.routing.ready = ready;
        }
    }
}

impl Planner {
    /// A planner that knows nothing yet.
    pub fn new(host: Host, handle: Handle) -> Rc<Planner> {
        let inner = Inner::new(host.clock.now(), 0);
        Rc::new(Planner { host, handle, inner: RefCell::new(inner) })
    }

    /// Looks at the plan for ever, where this member leads.
    pub async fn run(self: Rc<Self>) {
        let mut took = Duration::ZERO;
        loop {
            tokio::time::sleep(LOOK_EVERY.max(took * (LOOK_SHARE - 1))).await;
            let published = self.handle.published.borrow().clone();
            if !published.leads || published.state.cluster.is_empty() {
                continue;
            }
            self.begin_term(&published);
            self.promote(&published).await;
            let begun = self.host.clock.now();
            let next = self
                .next_expired(&published)
                .or_else(|| self.next_undone(&published))
                .or_else(|| self.next_label_back(&published))
                .or_else(|| self.next_label(&published))
                .or_else(|| self.next_plan(&published))
                .or_else(|| self.next_profile(&published));
            took = self.host.clock.now().since(begun);
            if let Some(command) = next {
                // One at a time: the next look sees its effect, or tries again.
                self.propose(command).await;
            }
        }
    }

    fn begin_term(&self, published: &Published) {
        let mut inner = self.inner.borrow_mut();
        if inner.term != published.term {
            *inner = Inner::new(self.host.clock.now(), published.term);
        }
    }

    async fn propose(&self, command: Command) {
        let request = RequestId(self.host.random.u128());
        let entry = Entry { request, by: "leader".into(), command };
        match self.handle.propose(entry).await {
            Ok(Ok(_)) => {}
            // Somebody was faster; the next look starts from what there is then.
            Ok(Err(refusal)) => tracing::debug!(%refusal, "a proposal was overtaken"),
            Err(error) => tracing::debug!(?error, "a proposal was not written"),
        }
    }

    /// A learner that has caught up becomes a voter.
    async fn promote(&self, published: &Published) {
        let caught_up = published.state.members.values().find(|member| {
            let progress = published.progress.get(&member.id);
            // One that has nothing has not answered yet: it may never have been there.
            let caught_up = |index: u64| index > 0 && index + CAUGHT_UP >= published.state.applied.0;
            member.learner && progress.is_some_and(|(index, active)| *active && caught_up(index.0))
        });
        if let Some(member) = caught_up {
            let promoted = Member { learner: false, ..member.clone() };
            let command = Command::MemberSet { id: member.id, member: Some(promoted) };
            let entry = Entry { request: RequestId(self.host.random.u128()), by: "leader".into(), command };
            if let Err(error) = self.handle.change_member(member.id, MemberStep::Promote, entry).await {
                tracing::debug!(?error, "a learner was not promoted");
            }
        }
    }

    fn next_plan(&self, published: &Published) -> Option<Command> {
        let inner = &mut *self.inner.borrow_mut();
        let state = &*published.state;
        let look = inner.placement.look(self.host.clock.now(), state, &inner.liveness, &mut inner.tuner);
        inner.unplaceable = look.unplaceable;
        let moves = look.moves;
        (!moves.is_nothing()).then_some(Command::MovePlan { replaces: state.plan.epoch, moves })
    }

    /// A grant whose end has come. The leader's calendar decides for all: nodes and other coordinators follow the log.
    fn next_expired(&self, published: &Published) -> Option<Command> {
        let now = self.host.clock.since_1970().as_secs();
        let over = |grant: &&Grant| grant.expires.is_some_and(|at| at <= now);
        published.state.grants.values().find(over).map(|grant| Command::GrantRevoke(grant.id.clone()))
    }

    fn next_undone(&self, published: &Published) -> Option<Command> {
        let endpoint = self.inner.borrow_mut().rollouts.next(self.host.clock.now(), &published.state)?;
        tracing::warn!(endpoint = %endpoint.name, because = endpoint.undone, "a rollout is undone");
        // If somebody writes anything meanwhile, it is looked at again.
        let if_index = Some(published.state.applied);
        Some(Command::Apply { models: Vec::new(), endpoints: vec![endpoint], if_index })
    }

    fn next_label_back(&self, published: &Published) -> Option<Command> {
        let back = self.inner.borrow_mut().rollouts.next_label(self.host.clock.now(), &published.state)?;
        if let Command::LabelBack { name, version, because } = &back {
            tracing::warn!(label = %name, %version, because, "a label goes back");
        }
        Some(back)
    }

    fn next_label(&self, published: &Published) -> Option<Command> {
        let inner = &mut *self.inner.borrow_mut();
        let (now, state) = (self.host.clock.now(), &*published.state);
        inner.moving.next(now, state, |id, node| inner.liveness.is_settled(now, id, node))
    }

    fn next_profile(&self, published: &Published) -> Option<Command> {
        let inner = &mut *self.inner.borrow_mut();
        let next = inner.informing.next(self.host.clock.now(), &published.state, &inner.liveness);
        next.map(Command::KeepProfile)
    }

    /// Takes a node's report; returns the routing where the node has another, and what homes of other nodes ask of the models that
    /// stand there.
    pub fn on_report(
        self: &Rc<Self>,
        published: &Published,
        report: NodeReport,
        known: (u64, u64),
    ) -> (Option<Routing>, ByModel) {
        self.begin_term(published);
        let now = self.host.clock.now();
        let mut inner = self.inner.borrow_mut();
        inner.market.on_report(now, &report.node, report.asked.clone());
        inner.rollouts.on_report(&report.node, report.incarnation, &report.endpoints);
        inner.tuner.on_report(now, &report.node, report.incarnation, &report.wanted);
        let Inner { market, placement, .. } = &mut *inner;
        let others = market.others(now, &report.node, placement.models_on(&report.node));
        if let Some((model, because)) = inner.liveness.on_report(now, &published.state, report) {
            tracing::warn!(%model, because, "quarantined");
            let planner = Rc::clone(self);
            tokio::task::spawn_local(async move {
                planner.propose(Command::Quarantine { model, because: Some(because) }).await;
            });
        }
        inner.route(now, &published.state);
        let routing = ((inner.routing.term, inner.routing.counter) != known).then(|| inner.routing.clone());
        (routing, others)
    }

    /// What the leader believes, for status.
    pub fn with_beliefs<T>(&self, read: impl FnOnce(&Liveness, &[(ModelRef, String)]) -> T) -> T {
        let inner = self.inner.borrow();
        read(&inner.liveness, &inner.unplaceable)
    }

    /// Of every model that anybody has asked for of late, what it wants, and what one more slot would earn in value a second.
    pub fn wants(&self, state: &State) -> Vec<(ModelRef, Want, f64)> {
        let now = self.host.clock.now();
        let Inner { market, tuner, .. } = &mut *self.inner.borrow_mut();
        let replicas = state.plan.replicas();
        let want = |model: &ModelRef| {
            let want = tuner.want(model)?;
            let slots = replicas.get(model).copied().unwrap_or(0);
            let weighed = market.asked(now, model);
            Some((model.clone(), want, market.one_more(now, model, slots, (want.now - weighed).max(0.0))))
        };
        state.models.keys().filter_map(want).collect()
    }
}

fn profiles(liveness: &Liveness, state: &State, ready: &BTreeSet<ReplicaId>) -> BTreeMap<ReplicaId, ReplicaProfile> {
    let profile = |id: &ReplicaId| {
        let node = &state.plan.assignments.get(id)?.node;
        match &liveness.report(node)?.0.replicas.get(id)?.state {
            ReplicaState::Ready(profile) => Some((*id, profile.clone())),
            _ => None,
        }
    };
    ready.iter().filter_map(profile).collect()
}
