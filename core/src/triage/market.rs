//! What all nodes together are asked, so that one price holds everywhere: the leader adds up what homes report, by model, and tells each
//! node what the others are asked of the models that stand there.
//!
//! A device then knows what its own homes ask as it is and what the others ask as it was a report ago, and clears its part of both against
//! its slots. Whoever hears nothing for [`TTL`] goes on with what it is asked itself: predictions never wait for the leader.

use std::collections::BTreeMap;
use std::time::Duration;

use super::curve::{Asked, STEPS, density_at};
use crate::ids::{ModelRef, NodeName};
use crate::units::Instant;

/// How long a report, and what was told of the others, counts.
pub const TTL: Duration = Duration::from_secs(3);
/// Sums are made anew at most so often: with a thousand nodes each report would otherwise cost a walk over all.
const SUMMED_EVERY: Duration = Duration::from_millis(50);

/// What is asked of models, each by its name.
pub type ByModel = BTreeMap<ModelRef, Asked>;

/// What the leader knows of what is asked.
#[derive(Clone, Debug, Default)]
pub struct Market {
    asked: BTreeMap<NodeName, (Instant, ByModel)>,
    sums: BTreeMap<ModelRef, [f32; STEPS]>,
    summed: Option<Instant>,
}

impl Market {
    /// A node reports what its homes ask of models, wherever these stand.
    pub fn on_report(&mut self, now: Instant, node: &NodeName, asked: ByModel) {
        self.asked.insert(node.clone(), (now, asked));
    }

    /// What the homes of all nodes but this one ask of some models.
    pub fn others<'m>(
        &mut self,
        now: Instant,
        node: &NodeName,
        models: impl IntoIterator<Item = &'m ModelRef>,
    ) -> ByModel {
        self.sum_lately(now);
        let own = self.asked.get(node).map(|(_, asked)| asked);
        let of = |model: &ModelRef| {
            let mut steps = *self.sums.get(model)?;
            let own = own.and_then(|own| own.get(model)).map_or([0.0; STEPS], Asked::steps);
            // The sum may be older than the report: nothing is asked less than nothing.
            steps.iter_mut().zip(own).for_each(|(sum, own)| *sum = (*sum - own).max(0.0));
            Some((model.clone(), Asked::of(&steps)))
        };
        models.into_iter().filter_map(of).collect()
    }

    /// What every home asked when it reported last, home by home.
    pub fn reported(&self) -> impl Iterator<Item = (&ModelRef, &Asked)> {
        self.asked.values().flat_map(|(_, asked)| asked)
    }

    /// What all homes ask of a model apart from what must run, in slot seconds a second.
    pub fn asked(&mut self, now: Instant, model: &ModelRef) -> f64 {
        self.sum_lately(now);
        self.sums.get(model).map_or(0.0, |steps| steps.iter().copied().map(f64::from).sum())
    }

    /// What one more slot would add in value a second to `slots` that have `firm` slot seconds a second of what must run: the worth of what
    /// comes next in order of its density.
    pub fn one_more(&mut self, now: Instant, model: &ModelRef, slots: u32, firm: f64) -> f64 {
        self.sum_lately(now);
        let Some(steps) = self.sums.get(model) else { return 0.0 };
        let (mut room, mut more, mut worth) = ((f64::from(slots) - firm).max(0.0), 1.0, 0.0);
        for (step, work) in steps.iter().enumerate().rev() {
            let work = f64::from(*work);
            let served = work.min(room);
            room -= served;
            let added = (work - served).min(more);
            more -= added;
            worth += added * density_at(step as f64);
        }
        worth
    }

    fn sum_lately(&mut self, now: Instant) {
        if self.summed.is_none_or(|at| now.since(at) >= SUMMED_EVERY || now < at) {
            self.sum(now);
        }
    }

    fn sum(&mut self, now: Instant) {
        self.asked.retain(|_, (at, _)| now.since(*at) < TTL);
        self.sums.clear();
        let reported = self.asked.values().flat_map(|(_, asked)| asked);
        for (model, asked) in reported {
            let sum = self.sums.entry(model.clone()).or_insert([0.0; STEPS]);
            sum.iter_mut().zip(asked.steps()).for_each(|(sum, work)| *sum += work);
        }
        self.summed = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn name(name: &str) -> NodeName {
        NodeName::parse(name).unwrap()
    }

    fn big() -> ModelRef {
        ModelRef::parse("big@1").unwrap()
    }

    fn asked(step: usize, work: f32) -> ByModel {
        let mut steps = [0.0; STEPS];
        steps[step] = work;
        BTreeMap::from([(big(), Asked::of(&steps))])
    }

    #[test]
    fn one_more_slot_earns_what_is_next_in_worth() {
        let mut market = Market::default();
        market.on_report(at(0), &name("n1"), asked(10, 2.0));
        market.on_report(at(0), &name("n2"), asked(90, 1.5));
        let mut earns = |slots, firm| market.one_more(at(1), &big(), slots, firm);
        assert_eq!(earns(1, 0.0), 0.5 * density_at(90.0) + 0.5 * density_at(10.0));
        assert_eq!(earns(1, 1.0), density_at(90.0), "it has no time for anything of it");
        assert_eq!(earns(2, 0.0), density_at(10.0));
        assert_eq!(earns(4, 0.0), 0.0, "there is room for all");
    }

    #[test]
    fn each_node_hears_what_the_others_ask() {
        let mut market = Market::default();
        market.on_report(at(0), &name("n1"), asked(10, 1.0));
        market.on_report(at(0), &name("n2"), asked(10, 0.5));
        market.on_report(at(0), &name("n3"), asked(90, 2.0));
        let mut others = |ms, node: &str| market.others(at(ms), &name(node), [&big()])[&big()].steps();
        assert_eq!((others(1, "n1")[10], others(1, "n1")[90]), (0.5, 2.0));
        assert_eq!(others(1, "n9")[10], 1.5, "a stranger is told of all");
        // n3 is silent.
        market.on_report(at(3100), &name("n1"), asked(10, 1.0));
        market.on_report(at(3100), &name("n2"), asked(10, 0.5));
        let told = market.others(at(3100), &name("n1"), [&big()]);
        assert_eq!((told[&big()].steps()[10], told[&big()].steps()[90]), (0.5, 0.0));
        assert!(market.others(at(3100), &name("n1"), [&ModelRef::parse("small@1").unwrap()]).is_empty());
    }
}
