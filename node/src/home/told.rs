//! How a row ended: what is remembered of it, and what its caller is told.

use weir_core::endpoint::passage::class;
use weir_core::history::Record;
use weir_core::ids::QueryId;
use weir_core::outcome::Outcome;
use weir_core::router::{End, Ending};
use weir_core::units::Instant;
use weir_schema::convert::history::write_told;
use weir_schema::convert::predict::{outcome_to_wire, span_to_us};
use weir_schema::convert::tensor::{write_row_tensor, write_tensor};
use weir_schema::predict_capnp::answer;

use super::{Call, Gathered};

/// Of an answer that nobody could give, though nothing went wrong.
const NO_BRANCH: &str = "no stage that can answer was wanted: none of their conditions held";

/// How a row ended and what led to that. Takes from the row what nobody else needs.
pub fn record(call: &Call, id: QueryId, arrived: Instant, row: &mut Gathered, end: End) -> Record {
    let endpoint = call.ladders.endpoint();
    let unanswered = |outcome: Outcome| (outcome, 0, false, outcome.explanation().to_owned());
    let (mut outcome, mut stage, mut degraded, message) = match end.how {
        Ending::Answer { stage, degraded } => (Outcome::Answered, stage, degraded, String::new()),
        Ending::Refuse(why) => unanswered(Outcome::Rejected(why)),
        Ending::Expire => unanswered(Outcome::Expired),
        Ending::Fail if row.message.is_empty() && row.visits.iter().all(|visit| visit.is_answered()) => {
            (Outcome::Failed, 0, false, NO_BRANCH.to_owned())
        }
        Ending::Fail if row.message.is_empty() => unanswered(Outcome::Failed),
        Ending::Fail => (Outcome::Failed, 0, false, std::mem::take(&mut row.message)),
    };
    if outcome != Outcome::Answered && !endpoint.default_outputs.is_empty() && !call.demanding {
        (outcome, stage, degraded) = (Outcome::Answered, endpoint.stages.len(), true);
    }
    let answer = row.answers.iter().rev().find(|(answered, ..)| outcome == Outcome::Answered && *answered == stage);
    let label = answer.and_then(|(.., outputs)| class(&call.wiring, stage, outputs));
    Record {
        id,
        rows: 1,
        endpoint: Some(call.ladders.shared_endpoint()),
        arrived,
        deadline: Some(call.deadline),
        class: call.class,
        visits: std::mem::take(&mut row.visits),
        looked: std::mem::take(&mut row.looked),
        ended: end.at,
        outcome,
        stage,
        label,
        degraded,
        dear: false,
        not_numbers: 0,
        message,
    }
}

/// Writes how a row ended.
pub fn answer(call: &Call, row: &Gathered, record: &Record, mut b: answer::Builder<'_>) {
    let Record { outcome, stage, degraded, ref message, .. } = *record;
    b.set_queue_us(span_to_us(row.queue));
    b.set_execute_us(span_to_us(row.execute));
    b.set_total_us(span_to_us(record.ended.since(record.arrived)));
    b.set_price(row.price);
    b.set_expected_loss(if outcome == Outcome::Answered { record.forgone() } else { 0.0 });
    b.set_expected_right(record.expected_right().unwrap_or(0.0));
    if call.trace {
        write_told(b.reborrow().init_trace(), &record.tell(record.ended));
    }
    write_outcome(b.reborrow(), outcome, message);
    if outcome != Outcome::Answered {
        return;
    }
    let endpoint = call.ladders.endpoint();
    let signature = &call.wiring.signature;
    let is_wanted = |name: &String| call.outputs.is_empty() || call.outputs.contains(name);
    b.set_stage(endpoint.stage_name(stage));
    b.set_degraded(degraded);
    let Some(answered) = endpoint.stages.get(stage) else {
        // Nobody could answer, and the message says why.
        let wanted: Vec<_> = endpoint.default_outputs.iter().filter(|(name, _)| is_wanted(name)).collect();
        let mut list = b.init_outputs(wanted.len() as u32);
        for (i, (name, tensor)) in wanted.into_iter().enumerate() {
            let list = list.reborrow().get(i as u32);
            write_tensor(list, name, tensor.dtype, &tensor.shape[1..], &tensor.data);
        }
        return;
    };
    let (_, node, outputs) =
        row.answers.iter().rev().find(|(answered, ..)| *answered == stage).expect("the stage answered");
    b.set_model(answered.model().map_or(String::new(), ToString::to_string));
    b.set_node(node.as_str());
    let shared = signature.outputs.iter().map(|spec| &spec.name).zip(call.wiring.outputs[stage].iter().copied());
    // What only this stage gives, for those who demand it.
    let own = call.wiring.gives[stage].iter().map(|spec| &spec.name).zip(0..);
    let own =
        own.filter(|(name, _)| call.outputs.contains(name) && signature.outputs.iter().all(|spec| spec.name != **name));
    let wanted: Vec<_> = shared.filter(|(name, _)| is_wanted(name)).chain(own).collect();
    let mut list = b.init_outputs(wanted.len() as u32);
    for (i, (name, output)) in wanted.into_iter().enumerate() {
        write_row_tensor(list.reborrow().get(i as u32), name, outputs, output);
    }
}

/// Writes an outcome.
pub fn write_outcome(mut b: answer::Builder<'_>, outcome: Outcome, message: &str) {
    let (code, why) = outcome_to_wire(outcome);
    b.set_outcome(code);
    b.set_rejection(why);
    b.set_message(message);
}
