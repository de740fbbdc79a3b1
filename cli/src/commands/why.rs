//! `weir why`: what became of one query, and why.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use weir_client::Admin;
use weir_core::endpoint::Judged;
use weir_core::history::{Explained, Rule, Told, ToldCondition, ToldVisit, VisitEnd};
use weir_core::ids::QueryId;
use weir_core::outcome::Outcome;
use weir_gateway::story::{self, word};

use crate::connect::Common;
use crate::failure::Failure;

/// What became of a query, and why.
#[derive(Args)]
pub struct Why {
    /// The id that `weir predict -o json` and the client's answers tell: 32 hex digits
    query: String,
}

/// What a node said, by its name.
type Said = (String, Result<Explained, String>);

impl Why {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let id = QueryId::parse(&self.query).ok_or_else(|| {
            Failure::Usage(format!(
                "{:?} is no query id: that is 32 hex digits, as `weir predict -o json` prints them",
                self.query
            ))
        })?;
        let said = ask(&common.admin()?, id).await?;
        if !said.iter().any(|(_, said)| said.as_ref().is_ok_and(|explained| !explained.records.is_empty())) {
            return Err(unknown(id, &said));
        }
        if common.json() {
            println!("{}", as_json(id, &said));
        } else {
            println!("{}", as_text(id, &said));
        }
        Ok(())
    }
}

/// Asks every node: any may have been its home, and several where the client tried several.
async fn ask(admin: &Admin, id: QueryId) -> Result<Vec<Said>, Failure> {
    let mut said = Vec::new();
    for node in admin.status().await?.state.nodes.values() {
        let explained = admin.explain(&node.address, id).await.map_err(|error| error.to_string());
        said.push((node.name.to_string(), explained));
    }
    Ok(said)
}

fn unknown(id: QueryId, said: &[Said]) -> Failure {
    let known: Vec<&Explained> = said.iter().filter_map(|(_, said)| said.as_ref().ok()).collect();
    let silent: Vec<&str> = said.iter().filter(|(_, said)| said.is_err()).map(|(node, _)| node.as_str()).collect();
    let kept = known.iter().map(|explained| explained.kept).max().unwrap_or_default();
    let reach = |of: fn(&Explained) -> Option<Duration>| match known.iter().filter_map(|explained| of(explained)).min()
    {
        Some(reach) => format!("now {:.0} s back", reach.as_secs_f64()),
        None => "now all since the node started".to_owned(),
    };
    let mut text = format!(
        "no node remembers query {id}: each connection thread of a node keeps the last {kept} that were answered well ({}) and as many that were refused, late, degraded or failed ({})",
        reach(|explained| explained.answered_reach),
        reach(|explained| explained.troubled_reach),
    );
    if !silent.is_empty() {
        text += &format!("; {} did not answer", silent.join(", "));
    }
    Failure::NotFound(text)
}

fn micros(span: Duration) -> u64 {
    span.as_micros() as u64
}

fn as_json(id: QueryId, said: &[Said]) -> Value {
    let told = said.iter().filter_map(|(node, said)| Some((node, said.as_ref().ok()?)));
    let records = told.flat_map(|(node, said)| said.records.iter().map(move |told| record(node, told)));
    let silent = said.iter().filter(|(_, said)| said.is_err()).map(|(node, _)| node.clone());
    json!({"id": id.to_string(), "records": records.collect::<Vec<_>>(), "silent": silent.collect::<Vec<_>>()})
}

fn record(home: &str, told: &Told) -> Value {
    let mut shown = story::as_json(told);
    shown["home"] = json!(home);
    shown
}

fn as_text(id: QueryId, said: &[Said]) -> String {
    let mut lines = vec![format!("query {id}")];
    for (node, said) in said {
        match said {
            Err(error) => lines.push(format!("{node} did not answer: {error}")),
            Ok(explained) => explained.records.iter().for_each(|told| {
                lines.push(format!("{:.1} s ago at {node}:", told.ago.as_secs_f64()));
                lines.extend(story(told));
            }),
        }
    }
    lines.join("\n")
}

/// A record in sentences, in the order in which things happened.
pub fn story(told: &Told) -> Vec<String> {
    let mut lines = Vec::new();
    lines.push(match (&told.endpoint, told.deadline) {
        (Some(endpoint), Some(deadline)) => {
            format!("  endpoint {endpoint}, {} to go, class {}", span(deadline), told.class.word())
        }
        _ => "  the call was refused as a whole".to_owned(),
    });
    let mut conditions = told.conditions.iter().peekable();
    for visit in &told.visits {
        // What a condition let through is sent in the instant in which it looked.
        while let Some(looked) = conditions.next_if(|looked| looked.after <= visit.after) {
            lines.push(format!("  {:>9}  {}", span(looked.after), seen(looked)));
        }
        lines.push(format!("  {:>9}  {}", span(visit.after), called(visit)));
        lines.extend(visit.gate.map(|(rule, judged)| format!("  {:>9}  {}", "", weighed(rule, &judged))));
    }
    lines.extend(conditions.map(|looked| format!("  {:>9}  {}", span(looked.after), seen(looked))));
    lines.push(format!("  {:>9}  {}", span(told.total), ended(told)));
    lines
}

fn called(visit: &ToldVisit) -> String {
    let place = visit.device.as_ref().map_or(visit.node.to_string(), |device| format!("{}/{device}", visit.node));
    let sent = format!("stage {} ({}) sent to {place}", visit.stage, visit.model);
    match visit.end {
        None => format!("{sent}; the query ended before it came back"),
        Some((_, VisitEnd::Answered { queue, execute, batch })) => {
            let ran = format!("{sent}: waited {}, ran {}", span(queue), span(execute));
            match batch {
                Some(batch) => format!("{ran} in a batch of {}, closed by {}", batch.rows, batch.closed.word()),
                None => ran,
            }
        }
        Some((took, VisitEnd::Rejected(why))) => format!("{sent}: refused after {}: {}", span(took), why.explanation()),
        Some((took, end)) => format!("{sent}: {} after {}", word(end), span(took)),
    }
}

fn seen(looked: &ToldCondition) -> String {
    let holds = if looked.holds { "holds" } else { "does not hold" };
    format!("condition of stage {}: {} saw {:.4}: {holds}", looked.stage, looked.when, looked.saw)
}

fn weighed(rule: Rule, judged: &Judged) -> String {
    let then = match judged {
        Judged { deeper: true, .. } => "deeper",
        judged if judged.is_dear() => "too dear",
        _ => "good enough",
    };
    let signal = judged.signal;
    match rule {
        Rule::ConfidenceBelow(threshold) => format!("gate: confidence {signal:.4}, deeper below {threshold}: {then}"),
        Rule::EntropyAbove(threshold) => format!("gate: entropy {signal:.4}, deeper above {threshold}: {then}"),
        Rule::MarginBelow(threshold) => format!("gate: margin {signal:.4}, deeper below {threshold}: {then}"),
        Rule::Gain { least } => format!(
            "gate: signal {signal:.4} gains {:.4}, for a cost of {:.4} at a price of {:.2} a second, and at least {least:.4}: {then}",
            judged.value.unwrap_or_default(),
            judged.cost,
            judged.price
        ),
    }
}

fn ended(told: &Told) -> String {
    let stage = told.stage.as_ref().map_or(String::new(), |stage| format!(" by stage {stage}"));
    match told.outcome {
        Outcome::Answered => {
            let dear = told.visits.iter().any(|visit| visit.gate.is_some_and(|(_, judged)| judged.is_dear()));
            let degraded = match (told.degraded, dear) {
                (false, _) => "",
                (true, false) => ", degraded: a deeper stage was wanted and could not be had",
                (true, true) => ", degraded: a deeper stage was wanted and too dear",
            };
            let late = if told.deadline.is_some_and(|deadline| told.total > deadline) { ", late" } else { "" };
            format!("answered{stage}{degraded}{late}")
        }
        other => format!("{}: {}", other.word(), told.message),
    }
}

fn span(span: Duration) -> String {
    match micros(span) {
        us if us < 10_000 => format!("{us} us"),
        us => format!("{:.1} ms", us as f64 / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_by_gain_tells_its_gain_its_cost_and_the_price() {
        let judged = Judged {
            signal: 0.61,
            value: Some(0.25),
            free: Some(0.25),
            cost: 0.1,
            price: 12.5,
            deeper: true,
            wanted: true,
        };
        assert_eq!(
            weighed(Rule::Gain { least: 0.002 }, &judged),
            "gate: signal 0.6100 gains 0.2500, for a cost of 0.1000 at a price of 12.50 a second, and at least 0.0020: deeper"
        );
        let dear = Judged { cost: 0.3, price: 37.5, deeper: false, ..judged };
        assert!(weighed(Rule::Gain { least: 0.002 }, &dear).ends_with("at least 0.0020: too dear"));
        let stops =
            Judged { signal: 0.95, value: None, free: None, cost: 0.0, price: 0.0, deeper: false, wanted: false };
        assert_eq!(
            weighed(Rule::ConfidenceBelow(0.9), &stops),
            "gate: confidence 0.9500, deeper below 0.9: good enough"
        );
    }
}
