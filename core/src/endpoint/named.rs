//! Labels: movable names of a model's versions, and what an endpoint is that names some.
//!
//! A file says `fashion-mid@stable`; the state machine keeps that beside the version that it stands for, and finds the
//! endpoint anew with each step of the label. So whoever plans, routes or answers sees versions alone, and all of an
//! endpoint changes with one log entry.

use std::collections::{BTreeMap, BTreeSet};

use super::{Endpoint, Run, Split, Stage};
use crate::ids::{ModelRef, Version};

/// A movable name of a model's versions.
///
/// It moves in three steps, so that nobody misses it: `next` is loaded beside the version that answers; when it is
/// ready, it becomes `version` in one log entry; the one `before` stays loaded until queries that began with it have
/// ended (`leaving`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// As it is written, `model@label`: no version has that name.
    pub name: ModelRef,
    /// What it stands for.
    pub version: Version,
    /// Where it goes as soon as that is ready.
    pub next: Option<Version>,
    /// What it stood for before: it stays registered, to go back to.
    pub before: Option<Version>,
    /// Whether that is still loaded.
    pub leaving: bool,
    /// Why it was last taken back from a version that missed an objective; empty where it was not.
    pub undone: String,
}

/// By name.
pub type Labels = BTreeMap<ModelRef, Label>;

impl Label {
    /// One that stands for a version and has never moved.
    pub fn new(name: ModelRef, version: Version) -> Label {
        Label { name, version, next: None, before: None, leaving: false, undone: String::new() }
    }

    /// A version of its model.
    pub fn of(&self, version: &Version) -> ModelRef {
        ModelRef { name: self.name.name.clone(), version: version.clone() }
    }

    /// What it stands for.
    pub fn model(&self) -> ModelRef {
        self.of(&self.version)
    }

    /// The versions that must not go: what it stands for, where it goes, and what it goes back to.
    pub fn holds(&self) -> impl Iterator<Item = ModelRef> {
        [Some(&self.version), self.next.as_ref(), self.before.as_ref()].into_iter().flatten().map(|held| self.of(held))
    }

    /// The versions that are loaded beside the one that it stands for.
    pub fn beside(&self) -> impl Iterator<Item = ModelRef> {
        let leaving = self.before.as_ref().filter(|_| self.leaving);
        self.next.iter().chain(leaving).map(|version| self.of(version))
    }
}

/// What an endpoint's file names in place of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// By the stages that run a model, in order.
    pub stages: Vec<ModelRef>,
    /// With their shares; two may stand for one version.
    pub versions: Vec<Split>,
    /// In place of the shadow.
    pub shadow: Option<ModelRef>,
}

impl Named {
    /// Everything that it names.
    pub fn all(&self) -> impl Iterator<Item = &ModelRef> {
        self.stages.iter().chain(self.versions.iter().map(|split| &split.model)).chain(&self.shadow)
    }
}

impl Endpoint {
    /// What it names: versions and labels.
    pub fn names(&self) -> Named {
        self.named.clone().unwrap_or_else(|| Named {
            stages: self.stages.iter().filter_map(Stage::model).cloned().collect(),
            versions: self.versions.clone(),
            shadow: self.shadow.clone(),
        })
    }

    /// Whether it names a label.
    pub fn follows(&self, label: &ModelRef) -> bool {
        self.named.as_ref().is_some_and(|named| named.all().any(|name| name == label))
    }

    /// As it is served while labels stand where they do. Two names of one version have the sum of their shares; a shadow
    /// that would see what it answers itself sees nothing.
    pub fn resolved(&self, labels: &Labels) -> Endpoint {
        let names = self.names();
        let followed: Vec<&Label> = names.all().filter_map(|name| labels.get(name)).collect();
        let mut endpoint = Endpoint { named: None, beside: Vec::new(), ..self.clone() };
        let stands_for = |name: &ModelRef| labels.get(name).map_or_else(|| name.clone(), Label::model);
        let of_models = endpoint.stages.iter_mut().filter(|stage| stage.model().is_some());
        for (stage, name) in of_models.zip(&names.stages) {
            stage.run = Run::Model(stands_for(name));
        }
        endpoint.versions.clone_from(&names.versions);
        endpoint.shadow.clone_from(&names.shadow);
        if followed.is_empty() {
            return endpoint;
        }
        endpoint.versions.clear();
        for Split { model, share } in &names.versions {
            let model = stands_for(model);
            match endpoint.versions.iter_mut().find(|known| known.model == model) {
                Some(known) => known.share = known.share.saturating_add(*share),
                None => endpoint.versions.push(Split { model, share: *share }),
            }
        }
        let answering: BTreeSet<ModelRef> = endpoint.answering().cloned().collect();
        endpoint.shadow = names.shadow.as_ref().map(stands_for).filter(|shadow| !answering.contains(shadow));
        let loaded: BTreeSet<&ModelRef> = answering.iter().chain(&endpoint.shadow).collect();
        let beside: BTreeSet<ModelRef> = followed.into_iter().flat_map(Label::beside).collect();
        let beside = beside.into_iter().filter(|model| !loaded.contains(model)).collect();
        endpoint.beside = beside;
        endpoint.named = Some(names);
        endpoint
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ids::{EndpointName, StageName};

    fn model(text: &str) -> ModelRef {
        ModelRef::parse(text).unwrap()
    }

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    fn labels(of: &[(&str, &str)]) -> Labels {
        let label = |(name, at): &(&str, &str)| (model(name), Label::new(model(name), version(at)));
        of.iter().map(label).collect()
    }

    fn endpoint(stages: &[&str]) -> Endpoint {
        let stage = |name: &&str| Stage::new(StageName::parse(&name.replace('@', ".")).unwrap(), model(name), None);
        let stages = stages.iter().map(stage).collect();
        Endpoint::new(EndpointName::parse("e").unwrap(), Duration::from_millis(50), stages)
    }

    fn loaded(endpoint: &Endpoint) -> Vec<String> {
        endpoint.models().map(ToString::to_string).collect()
    }

    #[test]
    fn a_label_stands_for_its_version_in_any_stage() {
        let cascade = endpoint(&["tiny@1", "mid@stable"]);
        let mut at = labels(&[("mid@stable", "1"), ("mid@canary", "3")]);
        let served = cascade.resolved(&at);
        assert_eq!(loaded(&served), ["tiny@1", "mid@1"]);
        assert!(served.follows(&model("mid@stable")) && !served.follows(&model("mid@canary")));
        // What goes in comes out again: what is served can be found anew from itself.
        assert_eq!(served.resolved(&at), served);
        let label = at.get_mut(&model("mid@stable")).unwrap();
        label.next = Some(version("2"));
        assert_eq!(loaded(&served.resolved(&at)), ["tiny@1", "mid@1", "mid@2"], "the next is loaded beside it");
        let moved =
            Label { before: Some(version("1")), leaving: true, ..Label::new(model("mid@stable"), version("2")) };
        let left = Label { leaving: false, ..moved.clone() };
        at.insert(model("mid@stable"), moved);
        assert_eq!(loaded(&served.resolved(&at)), ["tiny@1", "mid@2", "mid@1"], "the last one stays a while");
        at.insert(model("mid@stable"), left);
        assert_eq!(loaded(&served.resolved(&at)), ["tiny@1", "mid@2"]);
    }

    #[test]
    fn two_names_of_one_version_share_it() {
        let split = |name: &str, share| Split { model: model(name), share };
        let mut canary = endpoint(&["m@stable"]);
        canary.versions = vec![split("m@stable", 90), split("m@canary", 10)];
        canary.shadow = Some(model("m@canary"));
        let apart = canary.resolved(&labels(&[("m@stable", "1"), ("m@canary", "2")]));
        assert_eq!((apart.versions.len(), &apart.shadow), (2, &None), "it answers already");
        let same = apart.resolved(&labels(&[("m@stable", "2"), ("m@canary", "2")]));
        assert_eq!(same.versions, [split("m@2", 100)]);
        assert_eq!(same.resolved(&labels(&[("m@stable", "2"), ("m@canary", "3")])).versions.len(), 2);
    }

    #[test]
    fn an_endpoint_without_labels_stays_as_it_is() {
        let plain = endpoint(&["tiny@1", "mid@2"]);
        assert_eq!(plain.resolved(&labels(&[("mid@stable", "1")])), plain);
    }
}
