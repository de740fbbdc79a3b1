//! Applying entries, and keeping a copy of the state by the changes they make.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Applied, Change, Command, Declared, Done, Entry, Member, Model, Moves, REMEMBERED_ENTRIES, Refusal, State,
};
use crate::endpoint::Endpoint;
use crate::ids::{Epoch, LogIndex, MemberId, ModelRef, ReplicaId, RequestId};
use crate::tensor::Signature;

/// Lines and changes of an entry that is being applied.
#[derive(Default)]
pub(super) struct Effect {
    pub(super) lines: Vec<String>,
    pub(super) changes: Vec<Change>,
}

impl Effect {
    fn one(line: String, change: Change) -> Result<Effect, Refusal> {
        Ok(Effect { lines: vec![line], changes: vec![change] })
    }
}

pub(super) fn not_found(what: String) -> Refusal {
    Refusal::NotFound { what }
}

pub(super) fn conflict(what: impl Into<String>) -> Refusal {
    Refusal::Conflict { what: what.into() }
}

pub(super) fn invalid(what: impl Into<String>) -> Refusal {
    Refusal::Invalid { what: what.into() }
}

impl State {
    /// Applies the entry at `index`, which follows the last one applied. Returns its result (for a request that was
    /// applied before: the first result) and what changed, in an order in which a copy can absorb it.
    pub fn apply(&mut self, index: LogIndex, entry: &Entry) -> (Applied, Vec<Change>) {
        self.skip(index);
        if let Some(first) = self.remembered(entry.request) {
            return (first.clone(), Vec::new());
        }
        let (result, changes) = match self.decide(index, &entry.command) {
            Ok(Effect { lines, mut changes }) => {
                let orphaned = self.orphaned_profiles(&changes);
                changes.extend(orphaned.into_iter().map(Change::ProfilesGone));
                (Ok(Done { index, lines }), changes)
            }
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        for change in &changes {
            self.absorb(change);
        }
        self.requests.push_back((index, entry.request, result.clone()));
        (result, changes)
    }

    /// Takes note of an entry without a command (a new leader's first).
    pub fn skip(&mut self, index: LogIndex) {
        assert!(index > self.applied, "entry {index} after {}", self.applied);
        self.applied = index;
        while self.requests.front().is_some_and(|(at, ..)| at.0 + REMEMBERED_ENTRIES < index.0) {
            self.requests.pop_front();
        }
    }

    /// The result of a request that was applied not long ago.
    pub fn remembered(&self, request: RequestId) -> Option<&Applied> {
        self.requests.iter().rev().find(|(_, id, _)| *id == request).map(|(_, _, result)| result)
    }

    /// Puts one changed object in its place.
    pub fn absorb(&mut self, change: &Change) {
        if change.declares() {
            self.declared = Declared::by(self.applied);
        }
        match change.clone() {
            Change::Cluster(name) => self.cluster = name,
            Change::Model(model) => drop(self.models.insert(model.reference.clone(), model)),
            Change::ModelGone(reference) => drop(self.models.remove(&reference)),
            Change::Endpoint(endpoint) => drop(self.endpoints.insert(endpoint.name.clone(), endpoint)),
            Change::EndpointGone(name) => drop(self.endpoints.remove(&name)),
            Change::Node(node) => drop(self.nodes.insert(node.name.clone(), node)),
            Change::NodeGone(name) => drop(self.nodes.remove(&name)),
            Change::Plan(epoch, moves) => {
                let next = moves.placed.last_key_value().map_or(0, |(id, _)| id.0 + 1);
                self.next_replica = self.next_replica.max(ReplicaId(next));
                moves.make(&mut self.plan.assignments);
                self.plan.epoch = epoch;
            }
            Change::Grant(grant) => drop(self.grants.insert(grant.id.clone(), grant)),
            Change::GrantGone(id) => drop(self.grants.remove(&id)),
            Change::Member(member) => {
                self.next_member = self.next_member.max(MemberId(member.id.0 + 1));
                self.members.insert(member.id, member);
            }
            Change::MemberGone(id) => drop(self.members.remove(&id)),
            Change::Profile(profile) => {
                self.profiles.insert((profile.digest, profile.hardware.clone()), profile);
            }
            Change::ProfilesGone(digest) => self.profiles.retain(|(of, _), _| *of != digest),
            Change::Dial(pool, None) => drop(self.dials.remove(&pool)),
            Change::Dial(pool, Some(price)) => drop(self.dials.insert(pool, price)),
            Change::Label(label) => drop(self.labels.insert(label.name.clone(), label)),
            Change::LabelGone(name) => drop(self.labels.remove(&name)),
        }
    }

    /// The models that some endpoint names, apart from quarantined ones.
    pub fn wanted_models(&self) -> BTreeSet<&ModelRef> {
        let named = self.endpoints.values().flat_map(Endpoint::models);
        named.filter(|model| self.models.get(model).is_some_and(|model| model.quarantined.is_none())).collect()
    }

    /// The signatures of all models, as endpoints are wired by.
    pub fn signatures(&self) -> BTreeMap<ModelRef, &Signature> {
        self.models.iter().map(|(reference, model)| (reference.clone(), &model.signature)).collect()
    }

    fn decide(&self, index: LogIndex, command: &Command) -> Result<Effect, Refusal> {
        match command {
            Command::Found { cluster, grants } => {
                if !self.cluster.is_empty() {
                    return Err(conflict(format!("this is the cluster {} already", self.cluster)));
                }
                let mut changes = vec![Change::Cluster(cluster.clone())];
                changes.extend(grants.iter().cloned().map(Change::Grant));
                Ok(Effect { lines: vec![format!("cluster {cluster} founded")], changes })
            }
            Command::Apply { models, endpoints, if_index } => self.declare(models, endpoints, *if_index),
            Command::DeleteEndpoint(name) => {
                if !self.endpoints.contains_key(name) {
                    return Err(not_found(format!(
                        "endpoint {name} not found; `weir get endpoints` lists what there is"
                    )));
                }
                let mut effect = Effect::one(format!("endpoint {name} deleted"), Change::EndpointGone(name.clone()))?;
                let others = || self.endpoints.values().filter(|endpoint| endpoint.name != *name);
                let named: BTreeSet<_> = self.endpoints[name].models().collect();
                for model in named {
                    let is_named = others().any(|endpoint| endpoint.models().any(|other| other == model));
                    if !is_named && self.labels_of(model).next().is_none() {
                        effect.lines.push(format!("model {model} deleted"));
                        effect.changes.push(Change::ModelGone(model.clone()));
                    }
                }
                self.take_replicas(index, &mut effect);
                Ok(effect)
            }
            Command::DeleteModel(model) => self.delete_model(index, model),
            Command::Label { name, version: Some(version) } => self.set_label(name, version),
            Command::Label { name, version: None } => self.delete_label(name),
            Command::LabelMoves { name, version } => self.move_label(name, version),
            Command::LabelLeaves { name, version } => self.leave_label(name, version),
            Command::LabelBack { name, version, because } => self.take_label_back(name, version, because),
            Command::NodeJoin(node) => {
                let mut node = node.clone();
                if node.devices.iter().any(|device| device.slots == 0) || node.devices.is_empty() {
                    return Err(invalid(format!("node {} has no slot to run anything on", node.name)));
                }
                // Draining is an operator's word, not the node's: a restart does not take it back.
                node.draining = self.nodes.get(&node.name).is_some_and(|known| known.draining);
                if self.nodes.get(&node.name) == Some(&node) {
                    return Ok(Effect { lines: vec![format!("node {} unchanged", node.name)], changes: Vec::new() });
                }
                Effect::one(format!("node {} joined", node.name), Change::Node(node))
            }
            Command::NodeDrain { node, draining } => {
                let known = self
                    .nodes
                    .get(node)
                    .ok_or_else(|| not_found(format!("node {node} not found; `weir get nodes` lists what there is")))?;
                let word = if *draining { "draining" } else { "undrained" };
                Effect::one(
                    format!("node {node} {word}"),
                    Change::Node(super::Node { draining: *draining, ..known.clone() }),
                )
            }
            Command::NodeRemove(node) => {
                if !self.nodes.contains_key(node) {
                    return Err(not_found(format!("node {node} not found; `weir get nodes` lists what there is")));
                }
                Effect::one(format!("node {node} removed"), Change::NodeGone(node.clone()))
            }
            Command::MovePlan { replaces, moves } => self.move_plan(index, *replaces, moves),
            Command::Quarantine { model, because } => {
                let known = self.models.get(model).ok_or_else(|| {
                    not_found(format!("model {model} not found; `weir get models` lists what there is"))
                })?;
                let word = if because.is_some() { "quarantined" } else { "allowed again" };
                Effect::one(
                    format!("model {model} {word}"),
                    Change::Model(Model { quarantined: because.clone(), ..known.clone() }),
                )
            }
            Command::GrantAdd(grant) => {
                if self.grants.contains_key(&grant.id) {
                    return Err(conflict(format!("grant {} exists already", grant.id)));
                }
                Effect::one(format!("grant {} created", grant.id), Change::Grant(grant.clone()))
            }
            Command::GrantRevoke(id) => {
                if !self.grants.contains_key(id) {
                    return Err(not_found(format!("grant {id} not found; `weir get grants` lists what there is")));
                }
                Effect::one(format!("grant {id} revoked"), Change::GrantGone(id.clone()))
            }
            Command::MemberSet { id, member } => self.set_member(*id, member.as_ref()),
            Command::KeepProfile(profile) => {
                self.check_profile(profile)?;
                let line = format!("profile of {} on {} kept", profile.digest, profile.hardware);
                if self.profile(profile.digest, &profile.hardware) == Some(profile) {
                    return Ok(Effect { lines: vec![line], changes: Vec::new() });
                }
                Effect::one(line, Change::Profile(profile.clone()))
            }
            Command::Dial { pool, price } => self.dial(pool, *price),
        }
    }

    /// The replicas of models that an entry takes away go with them: the name may come back with another artifact.
    pub(super) fn take_replicas(&self, index: LogIndex, effect: &mut Effect) {
        let gone: BTreeSet<&ModelRef> = effect.changes.iter().filter_map(gone_model).collect();
        let of_gone = self.plan.assignments.iter().filter(|(_, assignment)| gone.contains(&assignment.model));
        let moves = Moves { gone: of_gone.map(|(id, _)| *id).collect(), ..Moves::default() };
        if !moves.is_nothing() {
            effect.changes.push(Change::Plan(Epoch(index.0), moves));
        }
    }

    fn dial(&self, pool: &str, price: Option<f64>) -> Result<Effect, Refusal> {
        let pools: BTreeSet<&str> =
            self.nodes.values().flat_map(|node| &node.devices).map(|device| device.kind.as_str()).collect();
        // A pool whose last device has gone can still be let go of.
        if !pools.contains(pool) && !self.dials.contains_key(pool) {
            let known = pools.into_iter().collect::<Vec<_>>().join(", ");
            return Err(not_found(format!("there is no pool {pool:?}; there are {known}")));
        }
        let line = match price {
            Some(price) if price.is_finite() && price >= 0.0 => format!("the price of pool {pool} is held at {price}"),
            Some(price) => return Err(invalid(format!("{price} is no price: a number, at least 0"))),
            None => format!("the price of pool {pool} is found by load"),
        };
        if self.dials.get(pool).copied() == price {
            return Ok(Effect { lines: vec![line], changes: Vec::new() });
        }
        Effect::one(line, Change::Dial(pool.to_owned(), price))
    }

    fn declare(&self, models: &[Model], endpoints: &[Endpoint], if_index: Option<LogIndex>) -> Result<Effect, Refusal> {
        if let Some(expected) = if_index
            && expected != self.applied_before_this()
        {
            return Err(conflict(format!(
                "the cluster is at index {}, not {expected}; look at it again",
                self.applied_before_this()
            )));
        }
        let mut effect = Effect::default();
        let mut signatures = self.signatures();
        for model in models {
            let reference = &model.reference;
            if model.replicas.min == 0 || model.replicas.max < model.replicas.min {
                return Err(invalid(format!(
                    "model {reference} needs at least one replica, and a maximum not below the minimum"
                )));
            }
            if model.signature.inputs.is_empty() || model.signature.outputs.is_empty() {
                return Err(invalid(format!("model {reference} must take and give at least one tensor")));
            }
            model.shapes.check(&model.signature).map_err(|bad| invalid(format!("model {reference}: {bad}")))?;
            if self.labels.contains_key(reference) {
                return Err(conflict(format!("{reference} is a label; give the version another name")));
            }
            let known = self.models.get(reference);
            if let Some(known) = known
                && known.digest != model.digest
            {
                return Err(conflict(format!(
                    "model {reference} is registered with another artifact; a version never changes: give this one a new version"
                )));
            }
            let next = Model { quarantined: known.and_then(|known| known.quarantined.clone()), ..model.clone() };
            signatures.insert(reference.clone(), &model.signature);
            let word = match known {
                None => "created",
                Some(known) if *known == next => "unchanged",
                Some(_) => "configured",
            };
            effect.lines.push(format!("model {reference} {word}"));
            if word != "unchanged" {
                effect.changes.push(Change::Model(next));
            }
        }
        // What is served is found here, whatever the command says of it.
        let as_named = |endpoint: &Endpoint| Endpoint { named: None, ..endpoint.clone() }.resolved(&self.labels);
        let endpoints: Vec<Endpoint> = endpoints.iter().map(as_named).collect();
        for endpoint in &endpoints {
            if !(0.0..=1.0).contains(&endpoint.objective) {
                return Err(invalid(format!("endpoint {}: an objective is an attainment, from 0 to 1", endpoint.name)));
            }
            self.check_names(endpoint, &signatures)?;
            endpoint.wire(&signatures).map_err(|bad| invalid(bad.to_string()))?;
            let word = match self.endpoints.get(&endpoint.name) {
                None => "created",
                Some(known) if known == endpoint => "unchanged",
                Some(_) => "configured",
            };
            effect.lines.push(format!("endpoint {} {word}", endpoint.name));
            if word != "unchanged" {
                effect.changes.push(Change::Endpoint(endpoint.clone()));
            }
        }
        let kept = |known: &&Endpoint| endpoints.iter().all(|endpoint| endpoint.name != known.name);
        let shares: f64 = self.endpoints.values().filter(kept).chain(&endpoints).map(|endpoint| endpoint.share).sum();
        if shares > 1.0 + 1e-9 {
            return Err(invalid(format!(
                "the shares of all endpoints come to {shares:.2}; together they can have 1 at most"
            )));
        }
        let named_before = endpoints.iter().filter_map(|endpoint| self.endpoints.get(&endpoint.name));
        let left: BTreeSet<&ModelRef> = named_before.flat_map(Endpoint::models).collect();
        let unchanged = |known: &&Endpoint| endpoints.iter().all(|endpoint| endpoint.name != known.name);
        let after = || self.endpoints.values().filter(unchanged).chain(&endpoints).flat_map(Endpoint::models);
        for model in left {
            let declared = models.iter().any(|declared| declared.reference == *model);
            // One that still has replicas goes with the plan that takes the last of them away.
            if !declared && self.is_loose(model) && after().all(|named| named != model) {
                effect.lines.push(format!("model {model} deleted"));
                effect.changes.push(Change::ModelGone(model.clone()));
            }
        }
        Ok(effect)
    }

    /// A number belongs to one member for ever: whoever asked for it too late gets none. No changes where it is so already.
    fn set_member(&self, id: MemberId, member: Option<&Member>) -> Result<Effect, Refusal> {
        let known = self.members.get(&id);
        let Some(member) = member else {
            let known = known.ok_or_else(|| not_found(format!("coordinator {id} not found")))?;
            if !known.learner && self.members.values().filter(|member| !member.learner).count() == 1 {
                return Err(conflict(format!("{} is the last coordinator; add another first", known.name)));
            }
            return Effect::one(format!("member {} removed", known.name), Change::MemberGone(id));
        };
        let line = format!("member {} is {}", member.name, role(member));
        match known {
            _ if member.id != id => Err(invalid(format!("member {id} cannot be member {}", member.id))),
            Some(known) if known == member => Ok(Effect { lines: vec![line], changes: Vec::new() }),
            Some(known) if *known == (Member { learner: true, ..member.clone() }) => {
                Effect::one(line, Change::Member(member.clone()))
            }
            Some(known) => Err(conflict(format!("coordinator {id} is {} at {}", known.name, known.address))),
            None if id != self.next_member => Err(conflict(format!("coordinator {id} is gone, or was never there"))),
            None if !member.learner => Err(invalid(format!("{} must learn the log before it votes", member.name))),
            None => match self.members.values().find(|known| known.name == member.name) {
                Some(known) => Err(conflict(format!(
                    "there is a coordinator {0} already; remove it with `weir member remove {0}`, or choose another name",
                    known.name
                ))),
                None => Effect::one(line, Change::Member(member.clone())),
            },
        }
    }

    /// Whether neither a replica nor a label keeps a model that no endpoint names.
    pub(super) fn is_loose(&self, model: &ModelRef) -> bool {
        let has_replica = self.plan.assignments.values().any(|assignment| assignment.model == *model);
        !has_replica && self.labels_of(model).next().is_none()
    }

    /// What a reader saw who read just before the entry that is being applied: entries that only keep the log going count too.
    fn applied_before_this(&self) -> LogIndex {
        LogIndex(self.applied.0 - 1)
    }

    fn move_plan(&self, index: LogIndex, replaces: Epoch, moves: &Moves) -> Result<Effect, Refusal> {
        if replaces != self.plan.epoch {
            return Err(conflict(format!("the plan is at epoch {}, not {replaces}", self.plan.epoch)));
        }
        if let Some(id) = moves.gone.iter().find(|id| !self.plan.assignments.contains_key(id)) {
            return Err(invalid(format!("replica {id} is not there to go")));
        }
        for (id, assignment) in &moves.placed {
            match self.plan.assignments.get(id) {
                Some(old) if old == assignment => continue,
                Some(_) => {
                    return Err(invalid(format!("replica {id} cannot move; give its successor a new id")));
                }
                None if *id < self.next_replica => {
                    return Err(invalid(format!("replica id {id} was used before")));
                }
                None => {}
            }
            if self.models.get(&assignment.model).is_none_or(|model| model.quarantined.is_some()) {
                return Err(invalid(format!("replica {id} is of model {}, which cannot be loaded", assignment.model)));
            }
            let node = self.nodes.get(&assignment.node);
            if !node.is_some_and(|node| node.devices.iter().any(|device| device.name == assignment.device)) {
                return Err(invalid(format!(
                    "replica {id} is on {}/{}, which is not there",
                    assignment.node, assignment.device
                )));
            }
        }
        let mut effect = Effect::one(format!("plan {index} set"), Change::Plan(Epoch(index.0), moves.clone()))?;
        let goes = |id: &ReplicaId| moves.gone.contains(id) || moves.anew && !moves.placed.contains_key(id);
        let (going, staying): (Vec<_>, Vec<_>) = self.plan.assignments.iter().partition(|(id, _)| goes(id));
        let mut gone: BTreeSet<&ModelRef> = going.into_iter().map(|(_, before)| &before.model).collect();
        if !gone.is_empty() {
            let staying = staying.into_iter().map(|(_, assignment)| &assignment.model);
            let placed = moves.placed.values().map(|assignment| &assignment.model);
            let named = self.endpoints.values().flat_map(Endpoint::models);
            for model in named.chain(staying).chain(placed) {
                gone.remove(model);
            }
            gone.retain(|model| self.labels_of(model).next().is_none());
        }
        // What was never placed stays: the endpoint that names it may be declared later.
        effect.changes.extend(gone.into_iter().cloned().map(Change::ModelGone));
        Ok(effect)
    }
}

pub(super) fn gone_model(change: &Change) -> Option<&ModelRef> {
    match change {
        Change::ModelGone(model) => Some(model),
        _ => None,
    }
}

fn role(member: &Member) -> &'static str {
    if member.learner { "a learner" } else { "a voter" }
}
