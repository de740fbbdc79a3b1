//! Endpoints: their stages, gates and graphs.

use std::sync::Arc;

use capnp::{struct_list, text_list};
use weir_core::endpoint::gain::Bin;
use weir_core::endpoint::graph::{Comparison, How, Signal};
use weir_core::endpoint::{Combine, Condition, Endpoint, Feed, GainTable, Gate, Label, Named, Run, Split, Stage};
use weir_core::ids::{EndpointName, ModelRef, StageName, Version};

use super::control::{model_ref, none_if_empty, text};
use super::predict::{class_from_wire, class_to_wire, span_from_us, span_to_us};
use super::tensor::{read_tensor, write_tensor};
use super::{BadMessage, count};
use crate::control_capnp as wire;

/// Writes an endpoint.
pub fn write_endpoint(mut b: wire::endpoint::Builder<'_>, endpoint: &Endpoint) {
    b.set_name(endpoint.name.as_str());
    b.set_deadline_us(span_to_us(endpoint.deadline));
    b.set_weight(endpoint.weight);
    b.set_share(endpoint.share);
    b.set_audit(endpoint.audit);
    b.set_objective(endpoint.objective);
    b.set_undone(&endpoint.undone);
    if !endpoint.versions.is_empty() {
        write_splits(b.reborrow().init_versions(count(endpoint.versions.len())), &endpoint.versions);
    }
    b.set_shadow(endpoint.shadow.as_ref().map_or(String::new(), ToString::to_string));
    if !endpoint.before.is_empty() {
        write_splits(b.reborrow().init_before(count(endpoint.before.len())), &endpoint.before);
    }
    b.set_class(class_to_wire(endpoint.class));
    b.set_label_output(endpoint.label_output.as_deref().unwrap_or(""));
    b.set_confidence_output(endpoint.confidence_output.as_deref().unwrap_or(""));
    if !endpoint.default_outputs.is_empty() {
        let mut outputs = b.reborrow().init_default_outputs(count(endpoint.default_outputs.len()));
        for (i, (name, tensor)) in endpoint.default_outputs.iter().enumerate() {
            write_tensor(outputs.reborrow().get(i as u32), name, tensor.dtype, &tensor.shape, &tensor.data);
        }
    }
    if let Some(named) = &endpoint.named {
        write_named(b.reborrow().init_named(), named);
    }
    if !endpoint.beside.is_empty() {
        write_models(b.reborrow().init_beside(count(endpoint.beside.len())), &endpoint.beside);
    }
    let mut stages = b.init_stages(count(endpoint.stages.len()));
    for (i, stage) in endpoint.stages.iter().enumerate() {
        write_stage(stages.reborrow().get(i as u32), stage);
    }
}

fn write_named(mut b: wire::named::Builder<'_>, named: &Named) {
    write_models(b.reborrow().init_stages(count(named.stages.len())), &named.stages);
    write_splits(b.reborrow().init_versions(count(named.versions.len())), &named.versions);
    b.set_shadow(named.shadow.as_ref().map_or(String::new(), ToString::to_string));
}

fn read_named(r: wire::named::Reader<'_>) -> Result<Named, BadMessage> {
    Ok(Named {
        stages: read_models(r.get_stages()?)?,
        versions: read_splits(r.get_versions()?)?,
        shadow: none_if_empty(r.get_shadow()?)?.map(|model| ModelRef::parse(&model)).transpose()?,
    })
}

fn write_models(mut list: text_list::Builder<'_>, models: &[ModelRef]) {
    models.iter().enumerate().for_each(|(i, model)| list.set(i as u32, model.to_string()));
}

fn read_models(list: text_list::Reader<'_>) -> Result<Vec<ModelRef>, BadMessage> {
    list.iter().map(|model| model_ref(model?)).collect()
}

/// Writes a label.
pub fn write_label(mut b: wire::label::Builder<'_>, label: &Label) {
    let or_empty = |version: &Option<Version>| version.as_ref().map_or(String::new(), ToString::to_string);
    b.set_name(label.name.to_string());
    b.set_version(label.version.as_str());
    b.set_next(or_empty(&label.next));
    b.set_before(or_empty(&label.before));
    b.set_leaving(label.leaving);
    b.set_undone(&label.undone);
}

/// Reads a label.
pub fn read_label(r: wire::label::Reader<'_>) -> Result<Label, BadMessage> {
    let version = |of: capnp::text::Reader<'_>| Ok::<_, BadMessage>(Version::parse(of.to_str()?)?);
    let or_none = |of: capnp::text::Reader<'_>| if of.is_empty() { Ok(None) } else { version(of).map(Some) };
    Ok(Label {
        name: model_ref(r.get_name()?)?,
        version: version(r.get_version()?)?,
        next: or_none(r.get_next()?)?,
        before: or_none(r.get_before()?)?,
        leaving: r.get_leaving(),
        undone: text(r.get_undone()?)?,
    })
}

fn write_splits(mut list: struct_list::Builder<'_, wire::split::Owned>, splits: &[Split]) {
    for (i, split) in splits.iter().enumerate() {
        let mut b = list.reborrow().get(i as u32);
        b.set_model(split.model.to_string());
        b.set_share(split.share);
    }
}

fn read_splits(list: struct_list::Reader<'_, wire::split::Owned>) -> Result<Vec<Split>, BadMessage> {
    let split = |r: wire::split::Reader<'_>| Ok(Split { model: model_ref(r.get_model()?)?, share: r.get_share() });
    list.iter().map(split).collect()
}

fn write_stage(mut b: wire::stage::Builder<'_>, stage: &Stage) {
    b.set_name(stage.name.as_str());
    match &stage.run {
        Run::Model(model) => b.set_model(model.to_string()),
        Run::Combine(combine) => write_combine(b.reborrow().init_combine(), combine),
    }
    write_gate(b.reborrow().init_gate(), stage.gate.as_ref());
    if !stage.inputs.is_empty() {
        let mut inputs = b.reborrow().init_inputs(count(stage.inputs.len()));
        for (i, feed) in stage.inputs.iter().enumerate() {
            let mut b = inputs.reborrow().get(i as u32);
            b.set_input(&feed.input);
            b.set_stage(feed.stage.map_or(-1, |stage| stage as i32));
            b.set_tensor(&feed.tensor);
            b.set_each(feed.each);
        }
    }
    if let Some(when) = &stage.when {
        let mut b = b.init_when();
        b.set_stage(when.stage);
        b.set_signal(when.signal.word());
        b.set_is(comparison_to_wire(when.is));
        b.set_than(when.than);
    }
}

fn comparison_to_wire(is: Comparison) -> wire::Comparison {
    match is {
        Comparison::Less => wire::Comparison::Less,
        Comparison::LessOrEqual => wire::Comparison::LessOrEqual,
        Comparison::Greater => wire::Comparison::Greater,
        Comparison::GreaterOrEqual => wire::Comparison::GreaterOrEqual,
        Comparison::Equal => wire::Comparison::Equal,
        Comparison::NotEqual => wire::Comparison::NotEqual,
    }
}

fn write_combine(mut b: wire::combine::Builder<'_>, combine: &Combine) {
    b.set_how(match combine.how {
        How::Mean => wire::combine::How::Mean,
        How::Weighted(_) => wire::combine::How::Weighted,
        How::Vote => wire::combine::How::Vote,
        How::Concat => wire::combine::How::Concat,
    });
    b.set_at_least(combine.at_least.unwrap_or(0));
    if let How::Weighted(weights) = &combine.how {
        let mut list = b.init_weights(count(weights.len()));
        weights.iter().enumerate().for_each(|(i, weight)| list.set(i as u32, *weight));
    }
}

fn read_combine(r: wire::combine::Reader<'_>) -> Result<Combine, BadMessage> {
    let how = match r.get_how()? {
        wire::combine::How::Mean => How::Mean,
        wire::combine::How::Weighted => How::Weighted(r.get_weights()?.iter().collect()),
        wire::combine::How::Vote => How::Vote,
        wire::combine::How::Concat => How::Concat,
    };
    Ok(Combine { how, at_least: Some(r.get_at_least()).filter(|least| *least > 0) })
}

fn read_feed(r: wire::feed::Reader<'_>) -> Result<Feed, BadMessage> {
    Ok(Feed {
        input: text(r.get_input()?)?,
        stage: u32::try_from(r.get_stage()).ok(),
        tensor: text(r.get_tensor()?)?,
        each: r.get_each(),
    })
}

fn read_condition(r: wire::condition::Reader<'_>) -> Result<Condition, BadMessage> {
    let is = r.get_is()?;
    let is = Comparison::ALL.into_iter().find(|known| comparison_to_wire(*known) == is);
    Ok(Condition {
        stage: r.get_stage(),
        signal: Signal::parse(r.get_signal()?.to_str()?),
        is: is.expect("every enumerant has its comparison"),
        than: r.get_than(),
    })
}

fn read_stage(r: wire::stage::Reader<'_>) -> Result<Stage, BadMessage> {
    Ok(Stage {
        name: StageName::parse(r.get_name()?.to_str()?)?,
        run: if r.has_combine() {
            Run::Combine(read_combine(r.get_combine()?)?)
        } else {
            Run::Model(model_ref(r.get_model()?)?)
        },
        gate: read_gate(r.get_gate())?,
        inputs: r.get_inputs()?.iter().map(read_feed).collect::<Result<_, _>>()?,
        when: if r.has_when() { Some(read_condition(r.get_when()?)?) } else { None },
    })
}

fn write_gate(mut b: wire::stage::gate::Builder<'_>, gate: Option<&Gate>) {
    match gate {
        None => b.set_none(()),
        Some(Gate::ConfidenceBelow(threshold)) => b.set_confidence_below(*threshold),
        Some(Gate::EntropyAbove(threshold)) => b.set_entropy_above(*threshold),
        Some(Gate::MarginBelow(threshold)) => b.set_margin_below(*threshold),
        Some(Gate::Gain { table, min_gain }) => {
            let mut b = b.init_gain();
            b.set_min_gain(*min_gain);
            let mut bins = b.init_bins(count(table.bins().len()));
            for (i, bin) in table.bins().iter().enumerate() {
                let mut b = bins.reborrow().get(i as u32);
                b.set_confidence(bin.confidence);
                b.set_rows(bin.rows);
                b.set_right(bin.right);
                b.set_gain(bin.gain);
                b.set_error(bin.error);
                let mut next = b.init_next(count(bin.next.len()));
                bin.next.iter().enumerate().for_each(|(i, share)| next.set(i as u32, *share));
            }
        }
    }
}

fn read_gate(r: wire::stage::gate::Reader<'_>) -> Result<Option<Gate>, BadMessage> {
    Ok(Some(match r.which()? {
        wire::stage::gate::None(()) => return Ok(None),
        wire::stage::gate::ConfidenceBelow(threshold) => Gate::ConfidenceBelow(threshold),
        wire::stage::gate::EntropyAbove(threshold) => Gate::EntropyAbove(threshold),
        wire::stage::gate::MarginBelow(threshold) => Gate::MarginBelow(threshold),
        wire::stage::gate::Gain(gain) => {
            let gain = gain?;
            let bin = |r: wire::gain_bin::Reader<'_>| -> Result<Bin, BadMessage> {
                Ok(Bin {
                    confidence: r.get_confidence(),
                    rows: r.get_rows(),
                    right: r.get_right(),
                    gain: r.get_gain(),
                    error: r.get_error(),
                    next: r.get_next()?.iter().collect(),
                })
            };
            let bins = gain.get_bins()?.iter().map(bin).collect::<Result<_, _>>()?;
            let table = GainTable::new(bins).map_err(|bad| BadMessage::new(bad.to_string()))?;
            Gate::Gain { table: Arc::new(table), min_gain: gain.get_min_gain() }
        }
    }))
}

/// Reads an endpoint.
pub fn read_endpoint(r: wire::endpoint::Reader<'_>) -> Result<Endpoint, BadMessage> {
    let default = r.get_default_outputs()?.iter().map(|r| {
        let view = read_tensor(r)?;
        Ok((view.name.to_owned(), view.to_tensor()))
    });
    Ok(Endpoint {
        name: EndpointName::parse(r.get_name()?.to_str()?)?,
        deadline: span_from_us(r.get_deadline_us())?,
        weight: r.get_weight(),
        share: r.get_share(),
        audit: r.get_audit(),
        objective: r.get_objective(),
        undone: text(r.get_undone()?)?,
        versions: read_splits(r.get_versions()?)?,
        before: read_splits(r.get_before()?)?,
        shadow: none_if_empty(r.get_shadow()?)?.map(|model| ModelRef::parse(&model)).transpose()?,
        named: if r.has_named() { Some(read_named(r.get_named()?)?) } else { None },
        beside: read_models(r.get_beside()?)?,
        class: class_from_wire(r.get_class()?),
        label_output: none_if_empty(r.get_label_output()?)?,
        confidence_output: none_if_empty(r.get_confidence_output()?)?,
        default_outputs: default.collect::<Result<_, BadMessage>>()?,
        stages: r.get_stages()?.iter().map(read_stage).collect::<Result<_, _>>()?,
    })
}
