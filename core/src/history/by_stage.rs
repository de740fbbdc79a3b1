//! Answers by the stage that gave them. An endpoint's stages change while it is counted: a number means another stage then, its name does
//! not, so that names are what is counted by. What was counted of a stage stays with its name when the stage is gone.

use crate::endpoint::Endpoint;
use crate::endpoint::graph::STAGES_MAX;

/// Names that are counted by one by one: stages of an endpoint are exchanged all of them a few times, not every day under new names.
const NAMES_MAX: usize = 4 * STAGES_MAX;
/// Further ones together; no stage is called that.
const OTHERS: &str = "(others)";

/// Counts by name of the stage, or of the default output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByStage(Vec<(String, u64)>);

impl ByStage {
    /// A stage gave an answer, by its number in the endpoint as it was asked; the default output stands behind the last.
    pub fn add(&mut self, endpoint: &Endpoint, stage: usize) {
        let name = endpoint.stage_name(stage);
        // As a rule a stage stands where it does in the endpoint: one comparison.
        if let Some((_, count)) = self.0.get_mut(stage).filter(|(known, _)| known == name) {
            *count += 1;
            return;
        }
        if !self.0.iter().any(|(known, _)| known == name) {
            endpoint.stages.iter().for_each(|stage| self.count(stage.name.as_str(), 0));
        }
        self.count(name, 1);
    }

    /// So many more of a stage.
    pub fn count(&mut self, name: &str, more: u64) {
        let place = |name: &str| self.0.iter().position(|(known, _)| known == name);
        let known = place(name).or_else(|| (self.0.len() >= NAMES_MAX).then(|| place(OTHERS)).flatten());
        match known {
            Some(place) => self.0[place].1 += more,
            None => {
                let name = if self.0.len() >= NAMES_MAX { OTHERS } else { name };
                self.0.push((name.to_owned(), more));
            }
        }
    }

    /// Those of another too.
    pub fn merge(&mut self, other: &ByStage) {
        other.iter().for_each(|(name, count)| self.count(name, count));
    }

    /// How many a stage gave.
    pub fn of(&self, name: &str) -> u64 {
        self.0.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count)
    }

    /// All of them, stages that are gone too.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }
}

impl<'a> FromIterator<(&'a str, u64)> for ByStage {
    fn from_iter<T: IntoIterator<Item = (&'a str, u64)>>(counts: T) -> ByStage {
        let mut all = ByStage::default();
        counts.into_iter().for_each(|(name, count)| all.count(name, count));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::tests::endpoint;

    fn told(counts: &ByStage) -> Vec<(&str, u64)> {
        counts.iter().collect()
    }

    #[test]
    fn a_stage_keeps_its_count_when_others_come_and_go() {
        let mut counts = ByStage::default();
        let (two, three) =
            (endpoint(&[("tiny", None), ("big", None)]), endpoint(&[("tiny", None), ("mid", None), ("big", None)]));
        (0..5).for_each(|_| counts.add(&two, 1));
        counts.add(&two, 0);
        assert_eq!(told(&counts), [("tiny", 1), ("big", 5)]);
        counts.add(&three, 1);
        counts.add(&three, 2);
        // One that was under way while the endpoint changed.
        counts.add(&two, 1);
        assert_eq!(told(&counts), [("tiny", 1), ("big", 7), ("mid", 1)]);
        counts.add(&endpoint(&[("mid", None)]), 0);
        counts.add(&endpoint(&[("mid", None)]), 1);
        assert_eq!(told(&counts), [("tiny", 1), ("big", 7), ("mid", 2), ("default", 1)]);
        assert_eq!((counts.of("big"), counts.of("nobody")), (7, 0));
    }

    #[test]
    fn names_without_end_are_counted_together_and_none_is_lost() {
        let mut counts = ByStage::default();
        for i in 0..1000 {
            counts.add(&endpoint(&[(format!("s{i}").as_str(), None)]), 0);
            counts.add(&endpoint(&[("s0", None)]), 0);
        }
        assert_eq!((counts.iter().len(), counts.of("s0"), counts.of("s255")), (NAMES_MAX + 1, 1001, 1));
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 2000);
        let mut sum = counts.clone();
        sum.merge(&counts);
        assert_eq!((sum.iter().len(), sum.of(OTHERS)), (NAMES_MAX + 1, 2 * (1000 - NAMES_MAX as u64)));
    }
}
