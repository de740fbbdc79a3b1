//! What happens to labels, and to the endpoints that name them.

use std::collections::{BTreeMap, BTreeSet};

use super::apply::{Effect, conflict, invalid, not_found};
use super::{Change, Refusal, State};
use crate::endpoint::{Endpoint, Label, Labels};
use crate::ids::{LogIndex, ModelName, ModelRef, Version};
use crate::tensor::Signature;

impl State {
    /// The version that a name stands for: of a label its version, of anything else itself.
    pub fn stands_for(&self, name: &ModelRef) -> ModelRef {
        self.labels.get(name).map_or_else(|| name.clone(), Label::model)
    }

    /// The labels that a version must not go for.
    pub fn labels_of(&self, model: &ModelRef) -> impl Iterator<Item = &Label> {
        self.labels.values().filter(move |label| label.holds().any(|held| held == *model))
    }

    /// What there is of a model, for somebody who named what there is not.
    pub fn versions_told(&self, model: &ModelName) -> String {
        let list = |of: Vec<String>| if of.is_empty() { "none".to_owned() } else { of.join(", ") };
        let versions = self.models.keys().filter(|known| known.name == *model);
        let labels = self.labels.values().filter(|label| label.name.name == *model);
        format!(
            "versions of {model}: {}; labels: {}",
            list(versions.map(|known| known.version.to_string()).collect()),
            list(labels.map(|label| format!("{} (version {})", label.name.version, label.version)).collect())
        )
    }

    /// Refuses an endpoint that names what there is not, and says what there is; and one that would be another when a
    /// label goes where it is to go.
    pub(super) fn check_names(
        &self,
        endpoint: &Endpoint,
        signatures: &BTreeMap<ModelRef, &Signature>,
    ) -> Result<(), Refusal> {
        let Some(unknown) = endpoint.answering().chain(&endpoint.shadow).find(|name| !signatures.contains_key(name))
        else {
            let followed = self.labels.values().filter(|label| endpoint.follows(&label.name));
            let mut going = followed.filter_map(|label| Some((label, label.next.as_ref()?)));
            return going.try_for_each(|(label, next)| self.check_fit(endpoint, label, next, signatures));
        };
        if signatures.keys().all(|known| known.name != unknown.name) {
            // The endpoint's own check says which stage it is of.
            return Ok(());
        }
        let declared = signatures.keys().filter(|known| known.name == unknown.name && !self.models.contains_key(known));
        let declared: String = declared.map(|known| format!("; its file declares {known}")).collect();
        Err(invalid(format!(
            "endpoint {} names {unknown}, which is neither a version nor a label ({}{declared}); declare the version, \
             or set the label with `weir label {} {} VERSION`",
            endpoint.name,
            self.versions_told(&unknown.name),
            unknown.name,
            unknown.version
        )))
    }

    pub(super) fn set_label(&self, name: &ModelRef, version: &Version) -> Result<Effect, Refusal> {
        if self.models.contains_key(name) {
            return Err(conflict(format!("{name} is a version; give the label another name")));
        }
        let target = self.stands_for(&ModelRef { name: name.name.clone(), version: version.clone() });
        let Some(model) = self.models.get(&target) else {
            return Err(not_found(format!("model {target} not found; {}", self.versions_told(&name.name))));
        };
        if let Some(why) = &model.quarantined {
            return Err(conflict(format!("model {target} is quarantined ({why}); label another version")));
        }
        let version = target.version.clone();
        let Some(known) = self.labels.get(name) else {
            let line = format!("label {name} created for version {version}");
            return Ok(self.labelled(Label::new(name.clone(), version), line));
        };
        if known.version == version {
            let line = match &known.next {
                None => format!("label {name} unchanged"),
                Some(next) => format!("label {name} stays at version {version}, and does not go to {next}"),
            };
            // One that was going back is not taken back again: somebody has decided.
            let undone = if known.next.is_some() { known.undone.clone() } else { String::new() };
            return Ok(self.labelled(Label { next: None, undone, ..known.clone() }, line));
        }
        // Who moves it by hand knows why it was taken back.
        let known = Label { undone: String::new(), ..known.clone() };
        if !self.endpoints.values().any(|endpoint| endpoint.follows(name)) {
            return self.moved(&known, &version);
        }
        self.check_move(&known, &version)?;
        let line = format!("label {name} goes from version {} to {version} as soon as that is ready", known.version);
        Ok(self.labelled(Label { next: Some(version), ..known }, line))
    }

    pub(super) fn take_label_back(&self, name: &ModelRef, version: &Version, because: &str) -> Result<Effect, Refusal> {
        let label = self.label(name)?;
        if label.version != *version || label.next.is_some() {
            return Err(conflict(format!("label {name} has gone on from version {version}")));
        }
        let before = self.way_back(label)?.clone();
        let line = format!("label {name} goes back from version {version} to {before}: {because}");
        Ok(self.labelled(Label { next: Some(before), undone: because.to_owned(), ..label.clone() }, line))
    }

    /// The version that a label stood for before, where it can go back to that; or why it cannot.
    pub fn way_back<'l>(&self, label: &'l Label) -> Result<&'l Version, Refusal> {
        let name = &label.name;
        let before =
            label.before.as_ref().ok_or_else(|| conflict(format!("label {name} has no version to go back to")))?;
        if self.models.get(&label.of(before)).is_none_or(|model| model.quarantined.is_some()) {
            return Err(conflict(format!("version {before}, which label {name} stood for, cannot be loaded any more")));
        }
        self.check_move(label, before).map(|()| before)
    }

    pub(super) fn delete_label(&self, name: &ModelRef) -> Result<Effect, Refusal> {
        let label = self.label(name)?;
        if let Some(endpoint) = self.endpoints.values().find(|endpoint| endpoint.follows(name)) {
            return Err(conflict(format!(
                "endpoint {} names {name}; apply a file in which it names a version, or delete it, first",
                endpoint.name
            )));
        }
        let line = format!("label {name} deleted; {} stays", label.model());
        Ok(Effect { lines: vec![line], changes: vec![Change::LabelGone(name.clone())] })
    }

    pub(super) fn move_label(&self, name: &ModelRef, version: &Version) -> Result<Effect, Refusal> {
        let label = self.label(name)?;
        if label.next.as_ref() != Some(version) {
            return Err(conflict(format!("label {name} does not go to version {version} any more")));
        }
        self.check_move(label, version)?;
        self.moved(label, version)
    }

    pub(super) fn leave_label(&self, name: &ModelRef, version: &Version) -> Result<Effect, Refusal> {
        let label = self.label(name)?;
        if !label.leaving || label.before.as_ref() != Some(version) {
            return Err(conflict(format!("label {name} is not leaving version {version}")));
        }
        let line = format!("label {name} has left version {version}");
        Ok(self.labelled(Label { leaving: false, ..label.clone() }, line))
    }

    pub(super) fn delete_model(&self, index: LogIndex, model: &ModelRef) -> Result<Effect, Refusal> {
        if let Some(label) = self.labels.get(model) {
            return Err(invalid(format!(
                "{model} is a label, of version {}; `weir label {} {} --delete` takes it away",
                label.version, model.name, model.version
            )));
        }
        if !self.models.contains_key(model) {
            return Err(not_found(format!("model {model} not found; `weir get models` lists what there is")));
        }
        if let Some(endpoint) = self.endpoints.values().find(|endpoint| endpoint.models().any(|named| named == model)) {
            return Err(conflict(format!(
                "endpoint {} has model {model} loaded; apply a file in which it names another, or delete it, first",
                endpoint.name
            )));
        }
        let points = |label: &&Label| label.version == model.version || label.next.as_ref() == Some(&model.version);
        if let Some(label) = self.labels_of(model).find(points) {
            let name = &label.name;
            return Err(conflict(format!(
                "label {name} points at model {model}; move it with `weir label {} {} VERSION`, \
                 or delete it with `--delete`, first",
                name.name, name.version
            )));
        }
        let mut effect =
            Effect { lines: vec![format!("model {model} deleted")], changes: vec![Change::ModelGone(model.clone())] };
        let forgets = |label: &Label| Change::Label(Label { before: None, leaving: false, ..label.clone() });
        effect.changes.extend(self.labels_of(model).map(forgets));
        self.take_replicas(index, &mut effect);
        Ok(effect)
    }

    /// Whether every endpoint that follows a label would take and give the same with another version in its place.
    pub(crate) fn check_move(&self, label: &Label, version: &Version) -> Result<(), Refusal> {
        let signatures = self.signatures();
        let mut following = self.endpoints.values().filter(|endpoint| endpoint.follows(&label.name));
        following.try_for_each(|endpoint| self.check_fit(endpoint, label, version, &signatures))
    }

    /// Whether an endpoint would take and give the same with a version in the place of a label.
    fn check_fit(
        &self,
        endpoint: &Endpoint,
        label: &Label,
        version: &Version,
        signatures: &BTreeMap<ModelRef, &Signature>,
    ) -> Result<(), Refusal> {
        let labels = self.with_label(Label { version: version.clone(), ..label.clone() });
        let wired = |endpoint: &Endpoint| endpoint.wire(signatures).map_err(|bad| bad.to_string());
        let fits =
            wired(endpoint).and_then(|now| match wired(&endpoint.resolved(&labels))?.signature == now.signature {
                true => Ok(()),
                false => Err(format!("endpoint {} would take or give something else", endpoint.name)),
            });
        fits.map_err(|why| invalid(format!("label {} cannot go to version {version}: {why}", label.name)))
    }

    fn moved(&self, label: &Label, version: &Version) -> Result<Effect, Refusal> {
        let line = format!("label {} moved from version {} to {version}", label.name, label.version);
        let leaving = self.endpoints.values().any(|endpoint| endpoint.follows(&label.name));
        let before = Some(label.version.clone());
        Ok(self.labelled(Label { version: version.clone(), next: None, before, leaving, ..label.clone() }, line))
    }

    fn label(&self, name: &ModelRef) -> Result<&Label, Refusal> {
        self.labels.get(name).ok_or_else(|| {
            not_found(format!(
                "label {} of model {} not found; `weir get labels` lists what there is",
                name.version, name.name
            ))
        })
    }

    fn with_label(&self, label: Label) -> Labels {
        let mut labels = self.labels.clone();
        labels.insert(label.name.clone(), label);
        labels
    }

    /// A label as it is from now on, with the endpoints that follow it, and without the versions that nothing keeps.
    fn labelled(&self, label: Label, line: String) -> Effect {
        let mut effect = Effect { lines: vec![line], changes: Vec::new() };
        let known = self.labels.get(&label.name);
        if known == Some(&label) {
            return effect;
        }
        let labels = self.with_label(label.clone());
        let following = self.endpoints.values().filter(|endpoint| endpoint.follows(&label.name));
        let following = following.map(|endpoint| (&endpoint.name, endpoint.resolved(&labels)));
        let following: BTreeMap<_, Endpoint> = following.collect();
        let left: BTreeSet<ModelRef> = known.into_iter().flat_map(Label::holds).collect();
        let after = self.endpoints.values().map(|endpoint| following.get(&endpoint.name).unwrap_or(endpoint));
        let mut kept: BTreeSet<ModelRef> = after.flat_map(Endpoint::models).cloned().collect();
        kept.extend(labels.values().flat_map(Label::holds));
        kept.extend(self.plan.assignments.values().map(|assignment| assignment.model.clone()));
        for model in left.difference(&kept) {
            // One that still has replicas goes with the plan that takes the last of them away.
            effect.lines.push(format!("model {model} deleted"));
            effect.changes.push(Change::ModelGone(model.clone()));
        }
        let changed = following.into_iter().filter(|(name, endpoint)| self.endpoints[*name] != *endpoint);
        effect.changes.extend(changed.map(|(_, endpoint)| Change::Endpoint(endpoint)));
        effect.changes.push(Change::Label(label));
        effect
    }
}
