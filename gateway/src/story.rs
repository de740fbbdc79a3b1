//! What became of a query, told: for `weir why`, and for who asks for a trace.

use std::time::Duration;

use serde_json::{Value, json};
use weir_core::endpoint::Judged;
use weir_core::history::{Rule, Told, ToldCondition, ToldVisit, VisitEnd};
use weir_core::outcome::Outcome;

/// As JSON: when it was sent where, what came back, what gates said, how it ended.
pub fn as_json(told: &Told) -> Value {
    let late = told.deadline.is_some_and(|deadline| told.outcome == Outcome::Answered && told.total > deadline);
    json!({
        "endpoint": told.endpoint.as_ref().map(ToString::to_string),
        "class": told.class.word(),
        "ago_us": micros(told.ago),
        "deadline_us": told.deadline.map(micros),
        "total_us": micros(told.total),
        "outcome": told.outcome.word(),
        "late": late,
        "degraded": told.degraded,
        "stage": told.stage.as_ref().map(ToString::to_string),
        "message": told.message,
        "stages": told.visits.iter().map(visit).collect::<Vec<_>>(),
        "conditions": told.conditions.iter().map(condition).collect::<Vec<_>>(),
    })
}

fn condition(told: &ToldCondition) -> Value {
    // What is not a number is null.
    json!({
        "stage": told.stage.as_str(), "when": told.when, "after_us": micros(told.after), "saw": short(told.saw),
        "holds": told.holds,
    })
}

fn visit(visit: &ToldVisit) -> Value {
    let mut shown = json!({
        "stage": visit.stage.as_str(),
        "model": visit.model.to_string(),
        "node": visit.node.as_str(),
        "device": visit.device.as_ref().map(ToString::to_string),
        "after_us": micros(visit.after),
        "took_us": visit.end.map(|(took, _)| micros(took)),
        "outcome": visit.end.map(|(_, end)| word(end)),
    });
    if let Some((_, VisitEnd::Answered { queue, execute, batch })) = visit.end {
        shown["queue_us"] = json!(micros(queue));
        shown["execute_us"] = json!(micros(execute));
        shown["batch"] = json!(batch.map(|batch| json!({"rows": batch.rows, "closed": batch.closed.word()})));
    }
    if let Some((_, VisitEnd::Rejected(why))) = visit.end {
        shown["message"] = json!(why.explanation());
    }
    if let Some((rule, judged)) = &visit.gate {
        shown["gate"] = gate(*rule, judged);
    }
    shown
}

/// The word for what became of a stage call.
pub fn word(end: VisitEnd) -> &'static str {
    match end {
        VisitEnd::Answered { .. } => "answered",
        VisitEnd::Rejected(_) => "rejected",
        VisitEnd::Expired => "expired",
        VisitEnd::Failed => "failed",
        VisitEnd::Lost => "lost",
    }
}

fn gate(rule: Rule, judged: &Judged) -> Value {
    let (name, threshold) = match rule {
        Rule::ConfidenceBelow(threshold) => ("confidence_below", short(threshold)),
        Rule::EntropyAbove(threshold) => ("entropy_above", short(threshold)),
        Rule::MarginBelow(threshold) => ("margin_below", short(threshold)),
        Rule::Gain { least } => ("gain", least),
    };
    // What is not a number is null.
    json!({
        "rule": name, "signal": short(judged.signal), "threshold": threshold, "gain": judged.value, "free_gain": judged.free, "cost": judged.cost,
        "price": judged.price, "deeper": judged.deeper, "too_dear": judged.is_dear(),
    })
}

fn micros(span: Duration) -> u64 {
    span.as_micros() as u64
}

/// The shortest decimal that is this f32, not the f64 that it widens to.
pub fn short(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_by_gain_tells_what_it_weighed_and_at_which_price() {
        let judged = Judged {
            signal: 0.5,
            value: Some(0.25),
            free: Some(0.3),
            cost: 0.1,
            price: 12.5,
            deeper: false,
            wanted: true,
        };
        let told = gate(Rule::Gain { least: 0.002 }, &judged);
        let whole = json!({
            "rule": "gain", "signal": 0.5, "threshold": 0.002, "gain": 0.25, "free_gain": 0.3, "cost": 0.1, "price": 12.5, "deeper": false,
            "too_dear": true,
        });
        assert_eq!(told, whole);
        let unsure =
            Judged { signal: f32::NAN, value: None, free: None, cost: 0.0, price: 0.0, deeper: false, wanted: false };
        assert_eq!(gate(Rule::ConfidenceBelow(0.9), &unsure)["signal"], Value::Null);
    }

    #[test]
    fn a_number_is_told_as_it_was_written() {
        assert_eq!((short(0.95), short(0.2), short(1.0)), (0.95, 0.2, 1.0));
        assert!(short(f32::NAN).is_nan());
    }
}
