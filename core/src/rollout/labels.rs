//! Whether a version that a label has moved to keeps the objectives of the endpoints that name it, or the label goes back.
//!
//! Where the label is one of an endpoint's `versions` its version is compared with the others, as in a rollout. Where it stands in a stage
//! there is nobody beside it: what was before it moved is what it is compared with, and an endpoint that missed its objective already does
//! not miss it because of the label.

use std::collections::{BTreeMap, BTreeSet};

use super::{COUNTED, Score, WATCHED};
use crate::endpoint::{Endpoint, Label};
use crate::ids::{EndpointName, ModelRef, Version};
use crate::replicated::{Command, State};
use crate::units::Instant;

/// Endpoints with an objective that name labels, and what became of their rows: soft state.
#[derive(Clone, Debug, Default)]
pub(super) struct Following {
    watched: BTreeMap<EndpointName, Watched>,
}

#[derive(Clone, Debug)]
struct Watched {
    /// By label: what it stands for, and when it moved there. `None`: before this leader came, so that nobody knows.
    labels: BTreeMap<ModelRef, (Version, Option<Instant>)>,
    counted: Instant,
    scores: BTreeMap<ModelRef, Score>,
    /// Whether the objective was missed when labels stood where they did before, or in the last of their windows.
    missed_before: bool,
    missed_last: bool,
}

impl Following {
    /// Rows of an endpoint ended that a version answered, or its first stage.
    pub fn on_rows(&mut self, endpoint: &EndpointName, model: &ModelRef, more: Score) {
        if let Some(watched) = self.watched.get_mut(endpoint) {
            watched.scores.entry(model.clone()).or_default().join(more);
        }
    }

    /// A label that has to go back, where there is one.
    pub fn next(&mut self, now: Instant, state: &State) -> Option<Command> {
        let followers = || state.endpoints.values().filter(|endpoint| endpoint.objective > 0.0);
        let mut watched = std::mem::take(&mut self.watched);
        for endpoint in followers() {
            let labels = followed(endpoint, state);
            if labels.is_empty() {
                continue;
            }
            let watch = watched.remove(&endpoint.name).unwrap_or_else(|| Watched::new(now));
            self.watched.insert(endpoint.name.clone(), watch.after(now, endpoint, &labels));
        }
        followers().find_map(|endpoint| {
            let watched = self.watched.get_mut(&endpoint.name)?;
            let back = watched.verdict(now, endpoint, state);
            watched.forget(now, endpoint);
            back
        })
    }
}

/// The labels that an endpoint's answers depend on.
fn followed<'s>(endpoint: &Endpoint, state: &'s State) -> Vec<&'s Label> {
    let Some(named) = &endpoint.named else { return Vec::new() };
    let answering: BTreeSet<&ModelRef> = if named.versions.is_empty() {
        named.stages.iter().collect()
    } else {
        named.versions.iter().map(|split| &split.model).collect()
    };
    answering.into_iter().filter_map(|name| state.labels.get(name)).collect()
}

impl Watched {
    fn new(now: Instant) -> Watched {
        let (labels, scores) = (BTreeMap::new(), BTreeMap::new());
        Watched { labels, counted: now, scores, missed_before: false, missed_last: false }
    }

    /// Labels may have moved: what was counted until then is what they are compared with.
    fn after(mut self, now: Instant, endpoint: &Endpoint, labels: &[&Label]) -> Watched {
        let mut moved = false;
        let stand = labels.iter().map(|label| {
            let at = match self.labels.get(&label.name) {
                Some((version, at)) if *version == label.version => *at,
                Some(_) => {
                    moved = true;
                    Some(now)
                }
                // The one before is still loaded: it has moved just now, while somebody else led.
                None => label.leaving.then_some(now),
            };
            (label.name.clone(), (label.version.clone(), at))
        });
        self.labels = stand.collect();
        if moved {
            let missed_before = self.missed_last || self.all().misses(endpoint.objective);
            return Watched { labels: self.labels, missed_before, ..Watched::new(now) };
        }
        self
    }

    fn all(&self) -> Score {
        let mut all = Score::default();
        self.scores.values().for_each(|score| all.join(*score));
        all
    }

    /// What is counted is forgotten in time, so that a good beginning does not hide what comes later.
    fn forget(&mut self, now: Instant, endpoint: &Endpoint) {
        if now.since(self.counted) >= COUNTED {
            self.missed_last = self.all().misses(endpoint.objective);
            self.counted = now;
            self.scores.clear();
        }
    }

    /// The label that moved last of those that have to go back.
    fn verdict(&self, now: Instant, endpoint: &Endpoint, state: &State) -> Option<Command> {
        let moved = self.labels.iter().filter_map(|(name, (_, at))| Some((at.as_ref()?, name)));
        let recent = moved.filter(|(at, _)| now.since(**at) < WATCHED);
        let (_, because, label) = recent
            .filter_map(|(at, name)| {
                let label = state.labels.get(name)?;
                let stays = label.next.is_some() || !label.undone.is_empty();
                // The way back is looked up last: that reads every model, and as a rule nothing is missed.
                let because = self.missed(endpoint, label).filter(|_| !stays && state.way_back(label).is_ok())?;
                Some((at, because, label))
            })
            .max_by_key(|(at, ..)| **at)?;
        Some(Command::LabelBack { name: label.name.clone(), version: label.version.clone(), because })
    }

    /// What is to be said of a label whose version misses the objective.
    fn missed(&self, endpoint: &Endpoint, label: &Label) -> Option<String> {
        let score = |model: &ModelRef| self.scores.get(model).copied().unwrap_or_default();
        let model = label.model();
        let own = if endpoint.versions.is_empty() {
            if self.missed_before {
                return None;
            }
            score(endpoint.stages.first()?.model()?)
        } else {
            let others = endpoint.versions.iter().filter(|split| split.model != model);
            if others.clone().any(|split| score(&split.model).misses(endpoint.objective)) {
                return None;
            }
            // With nobody beside it what was before is what it is compared with.
            if self.missed_before && others.clone().all(|split| split.share == 0) {
                return None;
            }
            score(&model)
        };
        own.misses(endpoint.objective).then(|| {
            format!(
                "endpoint {} answered {:.1} % of {} queries in time with it, and {} % is the objective",
                endpoint.name,
                100.0 * own.attainment(),
                own.rows,
                100.0 * endpoint.objective
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::endpoint::{Labels, Split, Stage};
    use crate::ids::{Digest, StageName};
    use crate::placement::tests::known_model;
    use crate::replicated::Model;
    use crate::tensor::{DType, Signature, TensorSpec};

    fn model(text: &str) -> ModelRef {
        ModelRef::parse(text).unwrap()
    }

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    fn declared(name: &str) -> Model {
        let tensor =
            |name: &str, width| TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![None, Some(width)] };
        Model {
            reference: model(name),
            signature: Signature { inputs: vec![tensor("x", 4)], outputs: vec![tensor("probabilities", 10)] },
            ..known_model(Digest([0; 32]))
        }
    }

    /// A leader that is told each tenth of a second what became of ten rows of `e`.
    struct Leader {
        state: State,
        following: Following,
        ticks: u64,
    }

    impl Leader {
        /// Labels stand at the first versions; `e` names them in its stages, or as its versions with these shares.
        fn new(stages: &[&str], versions: &[(&str, u32)]) -> Leader {
            let stage = |name: &&str| Stage::new(StageName::parse(&name.replace('@', ".")).unwrap(), model(name), None);
            let mut endpoint = Endpoint::new(
                EndpointName::parse("e").unwrap(),
                Duration::from_millis(50),
                stages.iter().map(stage).collect(),
            );
            endpoint.objective = 0.99;
            endpoint.versions =
                versions.iter().map(|(name, share)| Split { model: model(name), share: *share }).collect();
            let named: BTreeSet<ModelRef> = endpoint.names().all().cloned().collect();
            let label = |name: ModelRef| (name.clone(), Label::new(name, version("1")));
            let labels: Labels =
                named.into_iter().filter(|name| !name.version.as_str().starts_with('1')).map(label).collect();
            let endpoint = endpoint.resolved(&labels);
            let versions = ["m@1", "m@2", "tiny@1", "mid@1", "mid@2", "big@1", "big@2"];
            let models = versions.map(|name| (model(name), declared(name))).into();
            let endpoints = [(endpoint.name.clone(), endpoint)].into();
            let state = State { endpoints, labels, models, ..State::default() };
            Leader { state, following: Following::default(), ticks: 0 }
        }

        fn moves(&mut self, name: &str, to: &str) {
            let label = self.state.labels.get_mut(&model(name)).unwrap();
            let before = std::mem::replace(&mut label.version, version(to));
            (label.before, label.leaving, label.undone) = (Some(before), true, String::new());
            let labels = self.state.labels.clone();
            self.state.endpoints.values_mut().for_each(|endpoint| *endpoint = endpoint.resolved(&labels));
        }

        /// So many seconds; by version, or the first stage, how many of ten rows are in time. Who is taken back, and after how many tenths.
        fn watch(&mut self, seconds: u64, in_time: &[(&str, u64)]) -> Option<(String, u64)> {
            for tick in 0..10 * seconds {
                self.ticks += 1;
                match self.following.next(Instant::from_millis(100 * self.ticks), &self.state) {
                    Some(Command::LabelBack { name, version, because }) => {
                        assert!(because.contains("endpoint e answered") && because.contains("99 % is the objective"));
                        return Some((format!("{name} from {version}"), tick));
                    }
                    other => assert_eq!(other, None),
                }
                for (name, in_time) in in_time {
                    let score = Score { rows: 10, in_time: *in_time };
                    self.following.on_rows(&EndpointName::parse("e").unwrap(), &model(name), score);
                }
            }
            None
        }
    }

    #[test]
    fn a_label_whose_next_version_misses_the_objective_goes_back() {
        let mut leader = Leader::new(&["m@stable"], &[]);
        assert_eq!(leader.watch(60, &[("m@1", 10)]), None);
        leader.moves("m@stable", "2");
        let (back, tenths) = leader.watch(60, &[("m@2", 4)]).expect("a verdict");
        assert_eq!(back, "m@stable from 2");
        assert!((5..=10).contains(&tenths), "{tenths}: not by a few, and soon");
        // Until the log has it, and after: it was taken back once, and is left alone then.
        let label = leader.state.labels.get_mut(&model("m@stable")).unwrap();
        (label.next, label.undone) = (Some(version("1")), "late".into());
        assert_eq!(leader.watch(20, &[("m@2", 4)]), None);
        leader.state.labels.get_mut(&model("m@stable")).unwrap().next = None;
        leader.moves("m@stable", "1");
        leader.state.labels.get_mut(&model("m@stable")).unwrap().undone = "late".into();
        assert_eq!(leader.watch(60, &[("m@1", 4)]), None);
    }

    #[test]
    fn a_label_that_cannot_go_back_is_left_where_it_is() {
        let mut leader = Leader::new(&["m@stable"], &[]);
        leader.watch(5, &[("m@1", 10)]);
        leader.moves("m@stable", "2");
        // What the log would refuse is not written again and again: everything else of the leader waits behind it.
        leader.state.models.get_mut(&model("m@1")).unwrap().quarantined = Some("it died".into());
        assert_eq!(leader.watch(20, &[("m@2", 4)]), None);
        leader.state.models.get_mut(&model("m@1")).unwrap().quarantined = None;
        assert_eq!(leader.watch(20, &[("m@2", 4)]).map(|(back, _)| back).as_deref(), Some("m@stable from 2"));
    }

    #[test]
    fn what_was_missed_before_is_not_the_labels_fault() {
        let mut leader = Leader::new(&["m@stable"], &[]);
        leader.watch(35, &[("m@1", 4)]);
        leader.moves("m@stable", "2");
        assert_eq!(leader.watch(60, &[("m@2", 4)]), None);
        // Nor is what comes long after.
        let mut leader = Leader::new(&["m@stable"], &[]);
        leader.watch(5, &[("m@1", 10)]);
        leader.moves("m@stable", "2");
        assert_eq!(leader.watch(WATCHED.as_secs() + 1, &[("m@2", 10)]), None);
        assert_eq!(leader.watch(60, &[("m@2", 4)]), None);
    }

    #[test]
    fn a_canary_is_compared_with_what_answers_beside_it() {
        let mut leader = Leader::new(&["m@stable"], &[("m@stable", 90), ("m@canary", 10)]);
        leader.watch(5, &[("m@1", 10)]);
        leader.moves("m@canary", "2");
        assert_eq!(
            leader.watch(20, &[("m@1", 10), ("m@2", 4)]).map(|(back, _)| back).as_deref(),
            Some("m@canary from 2")
        );
        let mut leader = Leader::new(&["m@stable"], &[("m@stable", 90), ("m@canary", 10)]);
        leader.watch(5, &[("m@1", 10)]);
        leader.moves("m@canary", "2");
        assert_eq!(leader.watch(20, &[("m@1", 4), ("m@2", 4)]), None, "both miss it");
    }

    #[test]
    fn of_two_labels_of_a_cascade_the_one_that_moved_last_goes_back() {
        let mut leader = Leader::new(&["tiny@1", "mid@stable", "big@stable"], &[]);
        leader.watch(5, &[("tiny@1", 10)]);
        leader.moves("big@stable", "2");
        assert_eq!(leader.watch(10, &[("tiny@1", 10)]), None);
        leader.moves("mid@stable", "2");
        assert_eq!(leader.watch(20, &[("tiny@1", 4)]).map(|(back, _)| back).as_deref(), Some("mid@stable from 2"));
    }

    #[test]
    fn a_leader_that_comes_later_watches_what_has_just_moved_and_nothing_else() {
        let mut leader = Leader::new(&["m@stable"], &[]);
        leader.moves("m@stable", "2");
        let mut later = Leader { following: Following::default(), state: leader.state.clone(), ticks: 0 };
        assert_eq!(later.watch(20, &[("m@2", 4)]).map(|(back, _)| back).as_deref(), Some("m@stable from 2"));
        leader.state.labels.get_mut(&model("m@stable")).unwrap().leaving = false;
        assert_eq!(leader.watch(20, &[("m@2", 4)]), None, "nobody knows how long ago that was");
    }
}
