//! Whether a version that was given queries keeps its endpoint's objective, or is taken back.
//!
//! The leader adds up what nodes count of each version: rows, and those answered in time. A version that has a larger share than before the
//! rollout is taken back as soon as it is certain that it misses the objective (the upper bound of Wilson's interval for its attainment
//! is below it), unless the other versions certainly miss it too: then load or machines are at fault, and going back helps nobody. So is a
//! label that has moved (`labels.rs`).

mod labels;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::endpoint::{Endpoint, Split};
use crate::ids::{EndpointName, ModelRef, NodeName};
use crate::placement::EndpointLoad;
use crate::replicated::{Command, State};
use crate::units::Instant;

use labels::Following;

/// How long a version is watched after its share has changed.
pub const WATCHED: Duration = Duration::from_secs(600);
/// What is counted is forgotten so often, so that a good beginning does not hide what comes later.
const COUNTED: Duration = Duration::from_secs(30);
/// Fewer rows say nothing.
const FEW: u64 = 50;
/// Standard deviations: it is looked many times, and chance alone must not take a version back.
const CERTAIN: f64 = 3.3;

/// What became of the rows that one version was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Score {
    pub rows: u64,
    pub in_time: u64,
}

impl Score {
    /// A row ended.
    pub fn add(&mut self, in_time: bool) {
        self.rows += 1;
        self.in_time += u64::from(in_time);
    }

    /// With others.
    fn join(&mut self, more: Score) {
        self.rows += more.rows;
        self.in_time += more.in_time;
    }

    /// The share that was answered in time.
    pub fn attainment(&self) -> f64 {
        self.in_time as f64 / self.rows.max(1) as f64
    }

    /// Whether it is certain that less than `objective` are answered in time.
    fn misses(&self, objective: f64) -> bool {
        let (n, p, z2) = (self.rows as f64, self.attainment(), CERTAIN * CERTAIN);
        if self.rows < FEW {
            return false;
        }
        let spread = CERTAIN * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        (p + z2 / (2.0 * n) + spread) / (1.0 + z2 / n) < objective
    }

    /// What has come since `before`; all of it where that was another process.
    fn since(self, before: Score) -> Score {
        if self.rows < before.rows {
            return self;
        }
        Score { rows: self.rows - before.rows, in_time: self.in_time.saturating_sub(before.in_time) }
    }
}

/// Rollouts under way, as one leader sees them: soft state.
#[derive(Clone, Debug, Default)]
pub struct Rollouts {
    told: BTreeMap<(NodeName, EndpointName, ModelRef), (u128, Score)>,
    watched: BTreeMap<EndpointName, Watched>,
    following: Following,
}

#[derive(Clone, Debug)]
struct Watched {
    versions: Vec<Split>,
    began: Instant,
    counted: Instant,
    scores: BTreeMap<ModelRef, Score>,
}

impl Rollouts {
    /// A node tells what became of rows since its process started.
    pub fn on_report(&mut self, node: &NodeName, incarnation: u128, loads: &[EndpointLoad]) {
        for load in loads {
            for (model, score) in &load.versions {
                let key = (node.clone(), load.endpoint.clone(), model.clone());
                let before = self.told.insert(key, (incarnation, *score));
                // Whoever hears it for the first time does not know when those came.
                let Some((known, before)) = before else { continue };
                let more = if known == incarnation { score.since(before) } else { *score };
                if let Some(watched) = self.watched.get_mut(&load.endpoint) {
                    watched.scores.entry(model.clone()).or_default().join(more);
                }
                self.following.on_rows(&load.endpoint, model, more);
            }
        }
    }

    /// A label that has to go back, where the version that it moved to misses an objective.
    pub fn next_label(&mut self, now: Instant, state: &State) -> Option<Command> {
        self.following.next(now, state)
    }

    /// An endpoint as it is to be, where a version of it has to be taken back.
    pub fn next(&mut self, now: Instant, state: &State) -> Option<Endpoint> {
        self.told.retain(|(_, endpoint, _), _| state.endpoints.contains_key(endpoint));
        self.watched.retain(|name, watched| {
            state.endpoints.get(name).is_some_and(|endpoint| endpoint.versions == watched.versions && is_on(endpoint))
        });
        for endpoint in state.endpoints.values().filter(|endpoint| is_on(endpoint)) {
            let watched = self.watched.entry(endpoint.name.clone()).or_insert_with(|| Watched {
                versions: endpoint.versions.clone(),
                began: now,
                counted: now,
                scores: BTreeMap::new(),
            });
            if now.since(watched.began) >= WATCHED {
                continue;
            }
            if let Some(because) = watched.verdict(endpoint) {
                return Some(undone(endpoint, because));
            }
            if now.since(watched.counted) >= COUNTED {
                watched.counted = now;
                watched.scores.clear();
            }
        }
        None
    }
}

/// Whether an endpoint has gone on to another version that has an objective to keep.
fn is_on(endpoint: &Endpoint) -> bool {
    endpoint.objective > 0.0 && !endpoint.before.is_empty() && endpoint.undone.is_empty()
}

fn share(of: &[Split], model: &ModelRef) -> f64 {
    let all: u64 = of.iter().map(|split| u64::from(split.share)).sum();
    let own = of.iter().find(|split| split.model == *model).map_or(0, |split| split.share);
    f64::from(own) / all.max(1) as f64
}

impl Watched {
    fn verdict(&self, endpoint: &Endpoint) -> Option<String> {
        let is_new = |model: &ModelRef| share(&endpoint.versions, model) > share(&endpoint.before, model);
        let score = |model: &ModelRef| self.scores.get(model).copied().unwrap_or_default();
        let misses = |split: &&Split| score(&split.model).misses(endpoint.objective);
        let bad = endpoint.versions.iter().filter(|split| is_new(&split.model)).find(misses)?;
        if endpoint.versions.iter().filter(|split| !is_new(&split.model)).any(|split| misses(&split)) {
            return None;
        }
        let found = score(&bad.model);
        Some(format!(
            "{} answered {:.1} % of {} queries in time, and {} % is the objective",
            bad.model,
            100.0 * found.attainment(),
            found.rows,
            100.0 * endpoint.objective
        ))
    }
}

/// The endpoint with the versions of before its rollout. What is not named any more stays loaded: somebody may go forth again.
pub fn undone(endpoint: &Endpoint, because: String) -> Endpoint {
    let current: &[Split] = &endpoint.versions;
    let mut versions = endpoint.before.clone();
    let known = |split: &&Split| endpoint.before.iter().all(|known| known.model != split.model);
    versions.extend(current.iter().filter(known).map(|split| Split { share: 0, ..split.clone() }));
    Endpoint { versions, before: current.to_vec(), undone: because, ..endpoint.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Stage;
    use crate::ids::StageName;

    fn model(version: u32) -> ModelRef {
        ModelRef::parse(&format!("m@{version}")).unwrap()
    }

    fn splits(shares: &[(u32, u32)]) -> Vec<Split> {
        shares.iter().map(|(version, share)| Split { model: model(*version), share: *share }).collect()
    }

    fn endpoint(versions: &[(u32, u32)], before: &[(u32, u32)]) -> Endpoint {
        let stage = Stage::new(StageName::parse("m").unwrap(), model(1), None);
        let name = EndpointName::parse("e").unwrap();
        Endpoint {
            versions: splits(versions),
            before: splits(before),
            objective: 0.99,
            ..Endpoint::new(name, Duration::from_millis(50), vec![stage])
        }
    }

    /// A leader that is told of rows of each version a tenth of a second, for `seconds`: (version, rows, of them in time).
    fn watch(endpoint: &Endpoint, seconds: u64, each: &[(u32, u64, u64)]) -> Option<(u64, Endpoint)> {
        let state = State { endpoints: [(endpoint.name.clone(), endpoint.clone())].into(), ..State::default() };
        let mut rollouts = Rollouts::default();
        let node = NodeName::parse("n1").unwrap();
        for tick in 0..seconds * 10 {
            if let Some(found) = rollouts.next(Instant::from_millis(100 * tick), &state) {
                return Some((tick, found));
            }
            let score = |(version, rows, in_time): &(u32, u64, u64)| {
                (model(*version), Score { rows: rows * (tick + 1), in_time: in_time * (tick + 1) })
            };
            let load = EndpointLoad {
                endpoint: endpoint.name.clone(),
                arrived: 0,
                answered: 0,
                rejected: 0,
                expired: 0,
                failed: 0,
                degraded: 0,
                last_error: String::new(),
                by_stage: crate::history::ByStage::default(),
                versions: each.iter().map(score).collect(),
            };
            rollouts.on_report(&node, 1, &[load]);
        }
        None
    }

    #[test]
    fn a_version_that_misses_the_objective_is_taken_back_at_once() {
        let canary = endpoint(&[(1, 90), (2, 10)], &[(1, 100)]);
        let (tick, found) = watch(&canary, 60, &[(1, 90, 90), (2, 10, 4)]).expect("a verdict");
        assert!(tick <= 10, "{tick}");
        assert_eq!((&found.versions, &found.before), (&splits(&[(1, 100), (2, 0)]), &canary.versions));
        assert!(
            found.undone.contains("m@2 answered 40.0 % of 50 queries in time, and 99 % is the objective"),
            "{}",
            found.undone
        );
        assert!(watch(&found, 60, &[(1, 90, 20), (2, 10, 4)]).is_none(), "it does not go forth again by itself");
    }

    #[test]
    fn what_all_miss_is_not_the_new_ones_fault() {
        let canary = endpoint(&[(1, 90), (2, 10)], &[(1, 100)]);
        assert!(watch(&canary, 60, &[(1, 90, 40), (2, 10, 4)]).is_none());
        // With everything on the new one there is nobody to compare with.
        let all = endpoint(&[(1, 0), (2, 100)], &[(1, 100)]);
        assert!(watch(&all, 60, &[(1, 0, 0), (2, 10, 4)]).is_some());
    }

    #[test]
    fn what_keeps_it_stays_and_nobody_is_judged_by_few() {
        let canary = endpoint(&[(1, 90), (2, 10)], &[(1, 100)]);
        // 99.3 % are in time.
        assert!(watch(&canary, 600, &[(1, 900, 899), (2, 150, 149)]).is_none());
        // One a second: within half a minute too few.
        assert!(watch(&canary, 4, &[(1, 90, 90), (2, 1, 0)]).is_none());
        let nobody_asked = Endpoint { objective: 0.0, ..canary };
        assert!(watch(&nobody_asked, 60, &[(1, 90, 90), (2, 10, 0)]).is_none());
    }
}
