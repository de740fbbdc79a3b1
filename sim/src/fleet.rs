//! Machines as a cluster in virtual time. What stands where is what the leader decides once it has seen the load: as many replicas of each
//! model as its busiest windows ask for ([`weir_core::tuner`]), and what memory is left given out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weir_core::ids::{DeviceName, ModelRef, NodeName, ReplicaId};
use weir_core::placement::{Problem, Wish, solve};
use weir_core::profile::Profile;
use weir_core::replicated::{self, Plan, ReplicaRange};
use weir_core::tuner::{self, Row};
use weir_core::units::Bytes;
use weir_core::workload::Statistics;

use crate::cluster::{Cluster, Node, Served};
use crate::device::Service;

/// A machine that a cluster may have: a node with one device.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Batches that it runs at once.
    pub slots: u32,
    /// For models.
    pub memory: Bytes,
    /// Of models that take something else here than the cluster says.
    pub own: BTreeMap<ModelRef, (Profile, Service)>,
}

/// What is wished of a model.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Bounds that somebody declared.
    pub range: ReplicaRange,
    /// Of one replica.
    pub memory: Bytes,
    /// By width of window: the most rows that come within one, wherever it begins.
    pub rows: Vec<(f64, Duration)>,
    /// The shortest of those that ask it.
    pub deadline: Duration,
}

impl Wanted {
    /// What the leader makes of it where a row takes what the slowest of these says.
    fn wish<'a>(&self, profiles: impl Iterator<Item = &'a Profile>) -> Wish {
        let rows = profiles.map(|profile| Row::of(profile.points(), self.deadline));
        let Some(row) = rows.max_by_key(|row| row.cost) else { return Wish::declared(self.range, self.memory) };
        let (needed, _, asked) = tuner::needed(self.rows.iter().copied(), row);
        Wish { needed, asked, ..Wish::declared(self.range, self.memory) }
    }
}

/// By model, and width of window: the most rows that come within one where nothing is dear, by what comes to each endpoint.
pub fn busiest(
    endpoints: &[Served],
    arrivals: &[Statistics],
    rows_per_query: f64,
) -> BTreeMap<ModelRef, Vec<(f64, Duration)>> {
    let mut by_model: BTreeMap<&ModelRef, BTreeMap<Duration, f64>> = BTreeMap::new();
    for (served, arrivals) in endpoints.iter().zip(arrivals) {
        for (stage, runs) in served.ladders.endpoint().stages.iter().zip(served.runs()) {
            let Some(model) = stage.model() else { continue };
            let by_width = by_model.entry(model).or_default();
            for window in &arrivals.windows {
                *by_width.entry(window.width).or_default() += runs * rows_per_query * window.largest as f64;
            }
        }
    }
    let listed = |by_width: BTreeMap<Duration, f64>| by_width.into_iter().map(|(width, rows)| (rows, width)).collect();
    by_model.into_iter().map(|(model, by_width)| (model.clone(), listed(by_width))).collect()
}

impl Machine {
    /// As the models of the cluster say.
    pub fn of(slots: u32, memory: Bytes) -> Machine {
        Machine { slots, memory, own: BTreeMap::new() }
    }
}

/// The cluster on these machines, with replicas as the leader would place them; or which model has no place, and why. Where not all of them fit
/// into memory the leader places them on demand; here they have no place.
pub fn placed(
    cluster: &Cluster,
    wanted: &BTreeMap<ModelRef, Wanted>,
    machines: &[Machine],
) -> Result<Cluster, (ModelRef, String)> {
    let nodes: Vec<replicated::Node> = machines.iter().zip(1..).map(|(machine, i)| node(machine, i)).collect();
    let wish = |(model, wanted): (&'_ ModelRef, &Wanted)| {
        let profile = |machine: &'_ Machine| machine.own.get(model).map(|(believed, _)| believed.clone());
        let usual = || cluster.models[model].believed.clone();
        let profiles: Vec<Profile> = machines.iter().map(|machine| profile(machine).unwrap_or_else(usual)).collect();
        wanted.wish(profiles.iter())
    };
    let proposal = solve(&Problem {
        models: wanted.iter().map(|each| (each.0, wish(each))).collect(),
        nodes: nodes.iter().collect(),
        plan: &Plan::default(),
        ready: BTreeSet::new(),
        failed: BTreeSet::new(),
        next_replica: ReplicaId(1),
    });
    if let Some((model, why)) = proposal.unplaceable.into_iter().next() {
        return Err((model, why));
    }
    for (node, machine) in nodes.iter().zip(machines) {
        let here = proposal.assignments.values().filter(|assigned| assigned.node == node.name);
        let sizes = here.map(|assigned| (wanted[&assigned.model].memory, &assigned.model));
        let all: u64 = sizes.clone().map(|(size, _)| size.0).sum();
        if let Some((_, model)) = sizes.max().filter(|_| all > machine.memory.0) {
            let (name, memory) = (&node.name, machine.memory.0);
            let why = format!(
                "what stands on {name} takes {all} bytes, and it has {memory}: loads on demand are not simulated"
            );
            return Err((model.clone(), why));
        }
    }
    let mut cluster = cluster.clone();
    cluster.nodes = machines.iter().map(|machine| Node { slots: machine.slots, own: machine.own.clone() }).collect();
    for (reference, model) in &mut cluster.models {
        let here = proposal.assignments.values().filter(|assigned| assigned.model == *reference);
        let on = |node: &replicated::Node| here.clone().filter(|assigned| assigned.node == node.name).count() as u32;
        model.replicas = nodes.iter().map(on).collect();
    }
    Ok(cluster)
}

fn node(machine: &Machine, number: u32) -> replicated::Node {
    let name = DeviceName::parse("cpu0").expect("a valid name");
    replicated::Node {
        name: NodeName::parse(&format!("n{number}")).expect("a valid name"),
        address: String::new(),
        devices: vec![replicated::Device { name, kind: "cpu".into(), slots: machine.slots, hardware: String::new() }],
        memory: machine.memory,
        draining: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::demo;

    fn wanted(rows: f64, memory: u64) -> Wanted {
        Wanted {
            range: ReplicaRange { min: 1, max: u32::MAX },
            memory: Bytes(memory),
            rows: vec![(rows, Duration::from_secs(1))],
            deadline: Duration::from_millis(50),
        }
    }

    fn replicas(rows: [f64; 3], machines: &[Machine]) -> Vec<Vec<u32>> {
        let demo = demo();
        let wanted = demo.models.keys().cloned().zip(rows.map(|rows| wanted(rows, 10))).collect();
        let placed = placed(&demo, &wanted, machines).expect("there is room");
        placed.models.values().map(|model| model.replicas.clone()).collect()
    }

    #[test]
    fn every_slot_of_a_machine_runs_what_is_asked_for_much() {
        // Of big (first by name) 1000 rows of 4 ms a second are four slots and some.
        let on_one = replicas([1000.0, 10.0, 10.0], &[Machine::of(8, Bytes(1000))]);
        assert_eq!(on_one, [[5], [1], [1]]);
    }

    #[test]
    fn more_machines_than_a_model_is_spread_over_unasked_are_used_where_they_are_asked_for() {
        let machines = vec![Machine::of(1, Bytes(1000)); 40];
        let on = replicas([10_000.0, 10.0, 10.0], &machines);
        let count = |replicas: &[u32]| replicas.iter().sum::<u32>();
        assert_eq!(count(&on[0]), 40);
        assert!(count(&on[1]) < 40, "{on:?}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let demo = demo();
        let wanted = demo.models.keys().map(|model| (model.clone(), wanted(10.0, 10))).collect();
        let (model, _) = placed(&demo, &wanted, &[Machine::of(1, Bytes(25))]).expect_err("two of three fit");
        assert!(demo.models.contains_key(&model));
    }
}
