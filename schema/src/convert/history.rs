//! What nodes tell operators about themselves.

use std::time::Duration;

use weir_core::endpoint::Judged;
use weir_core::endpoint::audit::{GateAudit, Labelled};
use weir_core::history::{
    DeviceNow, EndpointRecent, Ever, Explained, Latencies, ModelNow, NodeRecent, Rule, Seconds, Tally, Told,
    ToldCondition, ToldVisit, VisitEnd,
};
use weir_core::ids::{DeviceName, EndpointName, ModelRef, NodeName, StageName};
use weir_core::scheduler::Batches;

use super::predict::{
    batch_from_wire, batch_to_wire, class_from_wire, class_to_wire, outcome_from_wire, outcome_to_wire,
    rejection_from_wire, rejection_to_wire, span_from_us, span_to_us,
};
use super::{BadMessage, count};
use crate::control_capnp::{
    device_now, endpoint_recent, explained, judged, looked, node_recent, query_record, stage_recent, visit,
};

/// Writes a node's last seconds.
pub fn write_recent(mut b: node_recent::Builder<'_>, recent: &NodeRecent) {
    let mut endpoints = b.reborrow().init_endpoints(count(recent.endpoints.len()));
    for (i, endpoint) in recent.endpoints.iter().enumerate() {
        write_endpoint(endpoints.reborrow().get(i as u32), endpoint);
    }
    let mut devices = b.init_devices(count(recent.devices.len()));
    for (i, device) in recent.devices.iter().enumerate() {
        write_device(devices.reborrow().get(i as u32), device);
    }
}

fn write_endpoint(mut b: endpoint_recent::Builder<'_>, endpoint: &EndpointRecent) {
    let tally = &endpoint.recent.tally;
    b.set_endpoint(endpoint.endpoint.as_str());
    b.set_seconds(endpoint.recent.seconds);
    b.set_arrived(tally.arrived);
    b.set_answered(tally.answered);
    b.set_in_time(tally.in_time);
    b.set_degraded(tally.degraded);
    b.set_rejected(tally.rejected);
    b.set_expired(tally.expired);
    b.set_failed(tally.failed);
    b.set_price(endpoint.price);
    b.set_labelled(endpoint.labelled.answers);
    b.set_labelled_right(endpoint.labelled.right);
    b.set_shadowed(endpoint.shadow.0);
    b.set_agreed(endpoint.shadow.1);
    b.set_ever_answered(endpoint.ever.answered);
    b.set_ever_in_time(endpoint.ever.in_time);
    b.set_ever_degraded(endpoint.ever.degraded);
    b.set_ever_refused(endpoint.ever.refused);
    let mut gates = b.reborrow().init_gates(count(endpoint.gates.len()));
    for (i, gate) in endpoint.gates.iter().enumerate() {
        let mut b = gates.reborrow().get(i as u32);
        b.set_rows(gate.rows);
        b.set_differ(gate.differ);
        b.set_expected(gate.expected);
        b.set_labelled(gate.labelled);
        b.set_expected_of_labelled(gate.expected_of_labelled);
        b.set_gained(gate.gained);
    }
    b.set_estimated(tally.estimated);
    b.set_right(tally.right);
    b.set_forgone(tally.forgone);
    let mut stages = b.reborrow().init_stages(count(endpoint.stages.len()));
    for (i, stage) in endpoint.stages.iter().enumerate() {
        let mut b = stages.reborrow().get(i as u32);
        b.set_stage(stage.as_str());
        b.set_answers(tally.by_stage.of(stage.as_str()));
    }
    let counts = tally.latencies.counts();
    let mut latencies = b.init_latencies(count(counts.len()));
    counts.iter().enumerate().for_each(|(i, count)| latencies.set(i as u32, *count));
}

fn write_device(mut b: device_now::Builder<'_>, device: &DeviceNow) {
    b.set_device(device.device.as_str());
    b.set_slots(device.slots);
    b.set_running(device.running);
    b.set_busy_us(device.busy.as_micros());
    b.set_backlog_us(device.backlog.as_micros());
    let mut models = b.init_models(count(device.models.len()));
    for (i, model) in device.models.iter().enumerate() {
        let mut b = models.reborrow().get(i as u32);
        b.set_model(model.model.to_string());
        b.set_queued(model.queued);
        b.set_batch_rows(model.batches.rows());
        let closed: Vec<u64> = model.batches.by_reason().map(|(_, batches)| batches).collect();
        let mut list = b.init_batches_closed(count(closed.len()));
        closed.iter().enumerate().for_each(|(i, batches)| list.set(i as u32, *batches));
    }
}

/// Reads a node's last seconds.
pub fn read_recent(r: node_recent::Reader<'_>) -> Result<NodeRecent, BadMessage> {
    Ok(NodeRecent {
        endpoints: r.get_endpoints()?.iter().map(read_endpoint).collect::<Result<_, _>>()?,
        devices: r.get_devices()?.iter().map(read_device).collect::<Result<_, _>>()?,
    })
}

fn read_endpoint(r: endpoint_recent::Reader<'_>) -> Result<EndpointRecent, BadMessage> {
    let mut tally = Tally {
        arrived: r.get_arrived(),
        answered: r.get_answered(),
        in_time: r.get_in_time(),
        degraded: r.get_degraded(),
        rejected: r.get_rejected(),
        expired: r.get_expired(),
        failed: r.get_failed(),
        estimated: r.get_estimated(),
        right: r.get_right(),
        forgone: r.get_forgone(),
        latencies: Latencies::of(r.get_latencies()?.iter()),
        ..Tally::default()
    };
    let stages = r.get_stages()?;
    let stage = |r: stage_recent::Reader<'_>| -> Result<_, BadMessage> {
        let stage = StageName::parse(r.get_stage()?.to_str()?)?;
        tally.by_stage.count(stage.as_str(), r.get_answers());
        Ok(stage)
    };
    let stages = stages.iter().map(stage).collect::<Result<_, _>>()?;
    Ok(EndpointRecent {
        endpoint: EndpointName::parse(r.get_endpoint()?.to_str()?)?,
        stages,
        price: r.get_price(),
        labelled: Labelled { answers: r.get_labelled(), right: r.get_labelled_right() },
        shadow: (r.get_shadowed(), r.get_agreed()),
        ever: Ever {
            answered: r.get_ever_answered(),
            in_time: r.get_ever_in_time(),
            degraded: r.get_ever_degraded(),
            refused: r.get_ever_refused(),
        },
        gates: r.get_gates()?.iter().map(read_audit).collect(),
        recent: Seconds { seconds: r.get_seconds(), tally },
    })
}

fn read_audit(r: crate::control_capnp::gate_audit::Reader<'_>) -> GateAudit {
    GateAudit {
        rows: r.get_rows(),
        differ: r.get_differ(),
        expected: r.get_expected(),
        labelled: r.get_labelled(),
        expected_of_labelled: r.get_expected_of_labelled(),
        gained: r.get_gained(),
    }
}

fn read_device(r: device_now::Reader<'_>) -> Result<DeviceNow, BadMessage> {
    let model = |r: crate::control_capnp::model_now::Reader<'_>| -> Result<_, BadMessage> {
        Ok(ModelNow {
            model: ModelRef::parse(r.get_model()?.to_str()?)?,
            queued: r.get_queued(),
            batches: Batches::of(r.get_batches_closed()?.iter(), r.get_batch_rows()),
        })
    };
    Ok(DeviceNow {
        device: DeviceName::parse(r.get_device()?.to_str()?)?,
        slots: r.get_slots(),
        running: r.get_running(),
        busy: span_from_us(r.get_busy_us())?.into(),
        backlog: span_from_us(r.get_backlog_us())?.into(),
        models: r.get_models()?.iter().map(model).collect::<Result<_, _>>()?,
    })
}

/// Writes what a node knows of a query.
pub fn write_explained(mut b: explained::Builder<'_>, explained: &Explained) {
    b.set_kept(explained.kept);
    // One that was forgotten this instant is told as forgotten.
    let reach = |reach: Option<Duration>| reach.map_or(0, |reach| span_to_us(reach).max(1));
    b.set_answered_reach_us(reach(explained.answered_reach));
    b.set_troubled_reach_us(reach(explained.troubled_reach));
    let mut records = b.init_records(count(explained.records.len()));
    for (i, told) in explained.records.iter().enumerate() {
        write_told(records.reborrow().get(i as u32), told);
    }
}

/// Writes what became of a query.
pub fn write_told(mut b: query_record::Builder<'_>, told: &Told) {
    b.set_endpoint(told.endpoint.as_ref().map_or("", EndpointName::as_str));
    b.set_class(class_to_wire(told.class));
    b.set_ago_us(span_to_us(told.ago));
    b.set_deadline_us(told.deadline.map_or(0, span_to_us));
    b.set_total_us(span_to_us(told.total));
    let (outcome, why) = outcome_to_wire(told.outcome);
    b.set_outcome(outcome);
    b.set_rejection(why);
    b.set_message(&told.message);
    b.set_stage(told.stage.as_ref().map_or("", StageName::as_str));
    b.set_degraded(told.degraded);
    let mut visits = b.reborrow().init_visits(count(told.visits.len()));
    for (i, visit) in told.visits.iter().enumerate() {
        write_visit(visits.reborrow().get(i as u32), visit);
    }
    let mut conditions = b.init_conditions(count(told.conditions.len()));
    for (i, looked) in told.conditions.iter().enumerate() {
        let mut b = conditions.reborrow().get(i as u32);
        b.set_stage(looked.stage.as_str());
        b.set_when(&looked.when);
        b.set_after_us(span_to_us(looked.after));
        b.set_saw(looked.saw);
        b.set_holds(looked.holds);
    }
}

fn write_visit(mut b: visit::Builder<'_>, told: &ToldVisit) {
    b.set_stage(told.stage.as_str());
    b.set_model(told.model.to_string());
    b.set_node(told.node.as_str());
    b.set_device(told.device.as_ref().map_or("", DeviceName::as_str));
    b.set_after_us(span_to_us(told.after));
    b.set_took_us(told.end.map_or(0, |(took, _)| span_to_us(took)));
    let mut end = b.reborrow().init_end();
    match told.end.map(|(_, end)| end) {
        None => end.set_none(()),
        Some(VisitEnd::Answered { queue, execute, batch }) => {
            let mut b = end.init_answered();
            b.set_queue_us(span_to_us(queue));
            b.set_execute_us(span_to_us(execute));
            let (rows, closed) = batch_to_wire(batch);
            b.set_batch_rows(rows);
            b.set_closed(closed);
        }
        Some(VisitEnd::Rejected(why)) => end.set_rejected(rejection_to_wire(why)),
        Some(VisitEnd::Expired) => end.set_expired(()),
        Some(VisitEnd::Failed) => end.set_failed(()),
        Some(VisitEnd::Lost) => end.set_lost(()),
    }
    let mut gate = b.init_gate();
    match &told.gate {
        None => gate.set_unasked(()),
        Some((rule, judged)) => write_judged(gate.init_asked(), *rule, judged),
    }
}

fn write_judged(mut b: judged::Builder<'_>, rule: Rule, judged: &Judged) {
    b.set_signal(judged.signal);
    b.set_cost(judged.cost);
    b.set_price(judged.price);
    b.set_deeper(judged.deeper);
    b.set_dear(judged.is_dear());
    let mut b = b.init_rule();
    match rule {
        Rule::ConfidenceBelow(threshold) => b.set_confidence_below(threshold),
        Rule::EntropyAbove(threshold) => b.set_entropy_above(threshold),
        Rule::MarginBelow(threshold) => b.set_margin_below(threshold),
        Rule::Gain { least } => {
            let mut b = b.init_gain();
            b.set_least(least);
            b.set_value(judged.value.unwrap_or_default());
            b.set_free(judged.free.unwrap_or_default());
        }
    }
}

/// Reads what a node knows of a query.
pub fn read_explained(r: explained::Reader<'_>) -> Result<Explained, BadMessage> {
    let reach = |us: u64| -> Result<_, BadMessage> { (us > 0).then(|| span_from_us(us)).transpose() };
    Ok(Explained {
        records: r.get_records()?.iter().map(read_told).collect::<Result<_, _>>()?,
        kept: r.get_kept(),
        answered_reach: reach(r.get_answered_reach_us())?,
        troubled_reach: reach(r.get_troubled_reach_us())?,
    })
}

/// Reads what became of a query.
pub fn read_told(r: query_record::Reader<'_>) -> Result<Told, BadMessage> {
    let endpoint = r.get_endpoint()?.to_str()?;
    let stage = r.get_stage()?.to_str()?;
    let deadline = span_from_us(r.get_deadline_us())?;
    Ok(Told {
        endpoint: if endpoint.is_empty() { None } else { Some(EndpointName::parse(endpoint)?) },
        class: class_from_wire(r.get_class()?),
        ago: span_from_us(r.get_ago_us())?,
        deadline: Some(deadline).filter(|deadline| !deadline.is_zero()),
        total: span_from_us(r.get_total_us())?,
        outcome: outcome_from_wire(r.get_outcome(), r.get_rejection()),
        message: r.get_message()?.to_str()?.to_owned(),
        stage: if stage.is_empty() { None } else { Some(StageName::parse(stage)?) },
        degraded: r.get_degraded(),
        visits: r.get_visits()?.iter().map(read_visit).collect::<Result<_, _>>()?,
        conditions: r.get_conditions()?.iter().map(read_looked).collect::<Result<_, _>>()?,
    })
}

fn read_looked(r: looked::Reader<'_>) -> Result<ToldCondition, BadMessage> {
    Ok(ToldCondition {
        stage: StageName::parse(r.get_stage()?.to_str()?)?,
        when: r.get_when()?.to_str()?.to_owned(),
        after: span_from_us(r.get_after_us())?,
        saw: r.get_saw(),
        holds: r.get_holds(),
    })
}

fn read_visit(r: visit::Reader<'_>) -> Result<ToldVisit, BadMessage> {
    use visit::end::Which as End;
    use visit::gate::Which as Gate;
    let device = r.get_device()?.to_str()?;
    let end = match r.get_end().which()? {
        End::None(()) => None,
        End::Answered(r) => Some(VisitEnd::Answered {
            queue: span_from_us(r.get_queue_us())?,
            execute: span_from_us(r.get_execute_us())?,
            batch: batch_from_wire(r.get_batch_rows(), r.get_closed()),
        }),
        End::Rejected(why) => Some(VisitEnd::Rejected(rejection_from_wire(why?))),
        End::Expired(()) => Some(VisitEnd::Expired),
        End::Failed(()) => Some(VisitEnd::Failed),
        End::Lost(()) => Some(VisitEnd::Lost),
    };
    let took = span_from_us(r.get_took_us())?;
    Ok(ToldVisit {
        stage: StageName::parse(r.get_stage()?.to_str()?)?,
        model: ModelRef::parse(r.get_model()?.to_str()?)?,
        node: NodeName::parse(r.get_node()?.to_str()?)?,
        device: if device.is_empty() { None } else { Some(DeviceName::parse(device)?) },
        after: span_from_us(r.get_after_us())?,
        end: end.map(|end| (took, end)),
        gate: match r.get_gate().which()? {
            Gate::Unasked(()) => None,
            Gate::Asked(judged) => Some(read_judged(judged?)?),
        },
    })
}

fn read_judged(r: judged::Reader<'_>) -> Result<(Rule, Judged), BadMessage> {
    use judged::rule::Which;
    let (rule, value, free) = match r.get_rule().which()? {
        Which::ConfidenceBelow(threshold) => (Rule::ConfidenceBelow(threshold), None, None),
        Which::EntropyAbove(threshold) => (Rule::EntropyAbove(threshold), None, None),
        Which::MarginBelow(threshold) => (Rule::MarginBelow(threshold), None, None),
        Which::Gain(gain) => (Rule::Gain { least: gain.get_least() }, Some(gain.get_value()), Some(gain.get_free())),
    };
    let (cost, price, deeper) = (r.get_cost(), r.get_price(), r.get_deeper());
    let wanted = deeper || r.get_dear();
    Ok((rule, Judged { signal: r.get_signal(), value, free, cost, price, deeper, wanted }))
}
