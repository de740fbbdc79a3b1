//! Random cases so small that their optimum can be searched.

use std::time::Duration;

use weir_core::outcome::Class;
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::scheduler::Policy;
use weir_core::units::{Deadline, Instant, ServiceTime};
use weir_core::workload::Arrivals;

use crate::clairvoyant::optimum;
use crate::device::Service;
use crate::pool::{Asked, Case, Load, replay};

/// When the queries of a case come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coming {
    /// While a batch runs: all are there when the slot is free.
    Behind,
    /// Over time: a policy knows only those that came.
    Online,
}

/// A small case.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Small {
    pub case: Case,
    /// By arrival. The first comes to an empty device and runs alone, whatever the policy.
    pub queries: Vec<Asked>,
    /// When the batch of the first ends.
    pub free: Instant,
}

impl Small {
    /// A case of one to three models and up to eight queries behind the first, from a seed: batches of α + β·b with α
    /// from 1 to 8 ms and β from 0.1 to 2 ms, queries that have 10 to 60 ms, in half of the cases the same for all of
    /// a model.
    pub fn random(seed: u64, coming: Coming) -> Small {
        let mut prng = Prng::new(seed);
        let models: Vec<_> = (0..1 + prng.below(3)).map(|_| model(&mut prng)).collect();
        let each = prng.below(2) == 0;
        let first = models[0].service.profile.estimate(1);
        let span = match coming {
            Coming::Behind => first,
            Coming::Online => ServiceTime::from_micros(1000 + prng.below(60_000)),
        };
        let mut queries: Vec<_> = (0..1 + prng.below(8))
            .map(|_| {
                let at = Instant::from_nanos(1 + prng.below(span.as_nanos() - 1));
                let model = prng.below(models.len() as u64) as usize;
                let slo = if each { time_to_have(&mut prng) } else { models[model].slo };
                Asked { at, model, deadline: Deadline(at + slo), class: Class::Default, mergeable: true }
            })
            .collect();
        queries.sort_by_key(|query| query.at);
        // A row that runs alone has nobody to wait for, by any policy.
        let deadline = Deadline(Instant::ZERO + models[0].slo);
        let before = Asked { at: Instant::ZERO, model: 0, deadline, class: Class::Default, mergeable: false };
        queries.insert(0, before);
        Small { case: Case { slots: 1, models, arrivals: Arrivals::Poisson }, queries, free: Instant::ZERO + first }
    }

    /// Most queries that can be in time.
    pub fn optimum(&self) -> u64 {
        1 + optimum(&self.case, &self.queries[1..], self.free) as u64
    }

    /// Queries that are in time by a policy.
    pub fn in_time(&self, policy: Policy) -> u64 {
        replay(&self.case, policy, &self.queries, 0).total().in_time
    }
}

fn time_to_have(prng: &mut Prng) -> Duration {
    Duration::from_micros(10_000 + prng.below(50_000))
}

fn model(prng: &mut Prng) -> Load {
    let (alpha, beta) = (1000 + prng.below(7000), 100 + prng.below(1900));
    let at = |rows: u64| ServiceTime::from_micros(alpha + beta * rows);
    let profile = Profile::new(&[(1, at(1)), (8, at(8))]);
    let slo = time_to_have(prng);
    Load { believed: profile.clone(), service: Service::exact(profile), max_batch: 8, slo, share: 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weir_is_within_one_query_of_the_optimum_in_95_of_100_cases() {
        for coming in [Coming::Behind, Coming::Online] {
            let cases = 3000;
            let mut near = 0;
            for seed in 0..cases {
                let small = Small::random(seed, coming);
                let (best, ours) = (small.optimum(), small.in_time(Policy::Weir));
                assert!(ours <= best, "seed {seed}, {coming:?}: {ours} of {best}");
                near += u64::from(ours + 1 >= best);
            }
            assert!(near * 100 >= cases * 95, "{coming:?}: {near} of {cases}");
        }
    }
}
