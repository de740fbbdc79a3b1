//! What is told of a plan.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weir_core::planning::{self, Fleet};
use weir_loadgen::goal::Goal;
use weir_loadgen::result::RunResult;

use super::{Planner, WhatIf};
use crate::show::table;

/// A plan, for people and programs.
pub struct Told<'a> {
    pub planner: &'a Planner<'a>,
    pub found: planning::Found,
    /// Of the plan, by draw of the load.
    pub results: Vec<RunResult>,
    pub lost: Vec<WhatIf>,
    pub bursts: Vec<WhatIf>,
}

impl Told<'_> {
    fn fleet(&self) -> &Fleet {
        &self.found.fleet
    }

    fn cost(&self) -> f64 {
        planning::cost(&self.planner.prices, self.fleet())
    }

    /// Under the load as it comes.
    fn result(&self) -> &RunResult {
        &self.results[0]
    }

    fn promised(&self, goal: &Goal) -> Value {
        let margin = goal.margin(&self.results).expect("a goal that is met was measured");
        json!({"goal": goal.to_text(), "mean": margin.mean, "margin": margin.reach, "bound": goal.bound(margin)})
    }

    /// By model: the machines that it stands on.
    fn replicas(&self) -> BTreeMap<String, Vec<String>> {
        let cluster =
            self.planner.modelled.cluster(&self.planner.machines(self.fleet())).expect("it was placed before");
        let on = |replicas: &[u32]| {
            let nodes = replicas.iter().zip(1..).flat_map(|(count, i)| vec![format!("n{i}"); *count as usize]);
            nodes.collect::<Vec<String>>()
        };
        cluster.models.iter().map(|(model, placed)| (model.to_string(), on(&placed.replicas))).collect()
    }

    fn what_ifs(&self) -> impl Iterator<Item = &WhatIf> {
        self.lost.iter().chain(&self.bursts)
    }

    pub fn json(&self) -> Value {
        let planner = self.planner;
        let machines = planner.kinds.iter().zip(self.fleet()).map(|(kind, count)| {
            json!({"kind": kind.name, "count": count, "price": kind.price, "slots": kind.machine.slots})
        });
        let window = planner.binding(self.fleet(), true);
        let coarse = |peak| planner.coarse(peak);
        json!({
            "cost_per_hour": self.cost(),
            "machines": machines.collect::<Vec<_>>(),
            "replicas": self.replicas(),
            "goals": planner.goals.iter().map(Goal::to_text).collect::<Vec<_>>(),
            "busiest_window": window.map(|(width, load)| json!({"width_s": width.as_secs_f64(), "load": load})),
            "coarse_grained": {"peak": coarse(true), "mean": coarse(false)},
            "tried": self.found.tried,
            "what_if": self.what_ifs().map(|what| json!({"what": what.what, "attainment": what.attainment, "meets": what.meets})).collect::<Vec<_>>(),
            "runs": self.results.len(),
            "promised": planner.goals.iter().map(|goal| self.promised(goal)).collect::<Vec<_>>(),
            "simulated": self.result(),
        })
    }

    pub fn text(&self) -> String {
        let planner = self.planner;
        let rows = planner.kinds.iter().zip(self.fleet()).map(|(kind, count)| {
            let cost = kind.price * f64::from(*count);
            vec![kind.name.clone(), count.to_string(), kind.machine.slots.to_string(), format!("{cost:.2}")]
        });
        let mut text = table(&["machines", "count", "slots of each", "cost an hour"], rows.collect());
        text += "\n\n";
        let replicas = self.replicas().into_iter().map(|(model, on)| vec![model, on.len().to_string(), on.join(" ")]);
        text += &table(&["model", "replicas", "on"], replicas.collect());
        let goals: Vec<&str> = planner.goals.iter().map(Goal::to_text).collect();
        text += &format!("\n\ncosts {:.2} an hour and meets {}, by simulation:", self.cost(), goals.join(", "));
        for goal in &planner.goals {
            text += &format!("\n{}", goal.promise(&self.results));
        }
        text += &format!("\n\nunder the load as it comes:\n{}", self.result().table());
        if let Some((width, load)) = planner.binding(self.fleet(), true) {
            text += &format!(
                "\nits busiest {width:?} ask for {load:.2} times what all stages can do by then{}",
                if load > 1.0 { ": deeper stages go dark for a moment" } else { "" }
            );
        }
        let coarse = |peak: bool| {
            let cost = planner.coarse(peak);
            cost.map_or("is not possible".to_owned(), |cost| {
                format!("costs {cost:.2} an hour, {:.1} times as much", cost / self.cost())
            })
        };
        text += &format!(
            "\na plan by endpoint, each with machines of its own and all stages for every query, {} sized to the peak; it {} sized to the mean",
            coarse(true),
            coarse(false)
        );
        for what in self.what_ifs() {
            let verdict = if what.meets { "the goal is met" } else { "the goal is missed" };
            text += &format!("\n{}: attainment {:.4}, {verdict}", what.what, what.attainment);
        }
        text
    }
}
