//! `weir describe`: all about one thing.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use weir_client::admin::Status;
use weir_core::endpoint::gain::Bin;
use weir_core::endpoint::graph::How;
use weir_core::endpoint::{Combine, Endpoint, Feed, Gate, Label, Run};
use weir_core::history::WINDOW;
use weir_core::ids::ModelRef;
use weir_core::paging::Paged;
use weir_core::placement::ReplicaState;
use weir_core::shapes::Padding;
use weir_core::triage::Looks;
use weir_core::tuner::Want;
use weir_loadgen::result::demanded;

use super::status::{beliefs, endpoint_state};
use crate::connect::Common;
use crate::failure::Failure;
use weir_gateway::story::short;
use weir_gateway::view::{self, View};

use crate::show::{object, objective, tensor, undone};

/// Tells all about one thing.
#[derive(Args)]
pub struct Describe {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// An endpoint: its stages, their replicas and profiles, and what became of its queries
    Endpoint { name: String },
    /// A model, as name@version or name@label
    Model { name: String },
}

impl Describe {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let admin = common.admin()?;
        let told = match &self.what {
            What::Endpoint { name } => {
                let (status, view) = view::look(&admin, WINDOW).await?;
                endpoint(&status, &view, name)?
            }
            What::Model { name } => {
                let status = admin.status().await?;
                let reference = ModelRef::parse(name)
                    .map_err(|_| Failure::Usage(format!("{name}: name a model with its version, as {name}@1")))?;
                let reference = status.state.stands_for(&reference);
                if !status.state.models.contains_key(&reference) {
                    return Err(Failure::NotFound(format!(
                        "model {name} not found; `weir get models` lists what there is"
                    )));
                }
                model(&status, &reference)
            }
        };
        if common.json() {
            println!("{told}");
        } else {
            print(&told, 0);
        }
        Ok(())
    }
}

fn endpoint(status: &Status, view: &View, name: &str) -> Result<Value, Failure> {
    let Some(endpoint) = status.state.endpoints.values().find(|endpoint| endpoint.name.as_str() == name) else {
        return Err(Failure::NotFound(format!("endpoint {name} not found; `weir get endpoints` lists what there is")));
    };
    let (state, ready, wanted) = endpoint_state(&beliefs(status), &status.state, endpoint);
    let loads = status.nodes.iter().filter_map(|node| node.report.as_ref());
    let loads: Vec<_> =
        loads.flat_map(|report| &report.endpoints).filter(|load| load.endpoint == endpoint.name).collect();
    let sum = |of: fn(&weir_core::placement::EndpointLoad) -> u64| loads.iter().map(|load| of(load)).sum::<u64>();
    let now = view.endpoints.get(&endpoint.name);
    let rate = |of: fn(&view::Endpoint) -> f64| now.map_or(0.0, of);
    let names = endpoint.names();
    let mut named = names.stages.iter();
    let stages = endpoint.stages.iter().enumerate().map(|(i, stage)| {
        let name = stage.model().and_then(|_| named.next()).filter(|name| status.state.labels.contains_key(name));
        let mut told = match &stage.run {
            Run::Model(reference) => model(status, reference),
            Run::Combine(combine) => json!({"combine": combined(combine)}),
        };
        if !stage.inputs.is_empty() {
            let feed = |feed: &Feed| (feed.input.clone(), Value::String(source(endpoint, feed)));
            told["inputs"] = Value::Object(stage.inputs.iter().map(feed).collect());
        }
        if let Some(when) = endpoint.condition(i) {
            told["when"] = json!(when);
        }
        if let Some((want, earns)) = stage.model().and_then(|model| status.wants.get(&model.to_string())) {
            told["needs"] = needs(want, *earns);
        }
        if let Some(model) = stage.model().filter(|_| stage.gate.is_some()) {
            told["demand"] = demand(status, model);
        }
        if let Some(name) = name {
            told["label"] = json!(name.to_string());
            let undone = &status.state.labels[name].undone;
            if !undone.is_empty() {
                told["label_taken_back"] = json!(undone);
            }
        }
        told["stage"] = json!(stage.name.as_str());
        told["gate"] = stage.gate.as_ref().map_or(Value::Null, gate);
        told["answered"] = json!(loads.iter().map(|load| load.by_stage.of(stage.name.as_str())).sum::<u64>());
        told
    });
    Ok(json!({
        "endpoint": name,
        "state": state.word(),
        "replicas": {"ready": ready, "wanted": wanted},
        "deadline_us": endpoint.deadline.as_micros() as u64,
        "class": endpoint.class.word(),
        "weight": endpoint.weight,
        "share": endpoint.share,
        "audit": endpoint.audit,
        "default_output": default_output(endpoint),
        "price": rate(|now| now.price),
        "rate": {
            "offered_per_s": rate(|now| now.offered), "answered_per_s": rate(|now| now.answered),
            "in_time_per_s": rate(|now| now.in_time),
        },
        "shadow": endpoint.shadow.as_ref().map(ToString::to_string),
        "objective": objective(endpoint),
        "rollout_undone": undone(endpoint),
        "versions": endpoint.versions.iter().map(|split| json!({"model": split.model.to_string(), "share": split.share})).collect::<Vec<_>>(),
        "named_versions": names.versions.iter().filter(|_| endpoint.named.is_some()).map(|split| json!({"model": split.model.to_string(), "share": split.share})).collect::<Vec<_>>(),
        "beside": endpoint.beside.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "queries": {
            "arrived": sum(|l| l.arrived), "answered": sum(|l| l.answered), "rejected": sum(|l| l.rejected),
            "expired": sum(|l| l.expired), "failed": sum(|l| l.failed), "degraded": sum(|l| l.degraded),
        },
        "last_error": loads.iter().map(|load| load.last_error.as_str()).find(|error| !error.is_empty()),
        "stages": stages.collect::<Vec<_>>(),
    }))
}

/// What goes out where nothing else can, by output; nothing where an endpoint has none.
fn default_output(endpoint: &Endpoint) -> Option<Value> {
    let outputs = || endpoint.default_outputs.iter().map(|(name, given)| (name.clone(), tensor(given)));
    (!endpoint.default_outputs.is_empty()).then(|| object(outputs()))
}

/// What homes ask of a model, as they reported it last: value a second of slot time, and how many slot seconds a second of that and up to a
/// seventh more.
fn demand(status: &Status, model: &ModelRef) -> Value {
    let mut looks = Looks::default();
    looks.add(status.demand().filter(|(asked, _)| *asked == model));
    demanded(&looks.mean()).remove(&model.to_string()).map_or(json!([]), |points| json!(points))
}

/// How many replicas what is asked needs, and why.
fn needs(want: &Want, earns: f64) -> Value {
    let window = want.window.as_secs_f64();
    json!({
        "replicas": want.replicas,
        "because": format!("{} slot seconds a second were asked for within {window} s", short(want.asked as f32)),
        "asked_slot_s_per_s": want.now,
        "one_more_slot_earns_per_s": earns,
    })
}

/// Where an input comes from, as weir files have it.
fn source(endpoint: &Endpoint, feed: &Feed) -> String {
    let from = feed.stage.map_or("request", |stage| endpoint.stages[stage as usize].name.as_str());
    format!("{from}.{}{}", feed.tensor, if feed.each { "[]" } else { "" })
}

/// A combination as weir files have it.
fn combined(combine: &Combine) -> Value {
    match &combine.how {
        How::Mean => json!("mean"),
        How::Vote => json!("vote"),
        How::Concat => json!("concat"),
        How::Weighted(weights) => json!({"weighted": weights}),
    }
}

/// A gate as weir files have it, and of a table what people ask first.
fn gate(gate: &Gate) -> Value {
    match gate {
        Gate::ConfidenceBelow(threshold) => json!({"confidence_below": short(*threshold)}),
        Gate::EntropyAbove(threshold) => json!({"entropy_above": short(*threshold)}),
        Gate::MarginBelow(threshold) => json!({"margin_below": short(*threshold)}),
        Gate::Gain { table, min_gain } => {
            let bin = |bin: &Bin| json!({"confidence": short(bin.confidence), "rows": bin.rows, "gain": bin.gain, "error": bin.error});
            json!({"min_gain": min_gain, "gain": table.bins().iter().map(bin).collect::<Vec<_>>()})
        }
    }
}

fn model(status: &Status, reference: &ModelRef) -> Value {
    let Some(model) = status.state.models.get(reference) else {
        return json!({"model": reference.to_string(), "state": "not registered"});
    };
    let standing = status.state.plan.assignments.iter().filter(|(_, assignment)| assignment.model == *reference);
    let replicas = standing.map(|(id, assignment)| {
        let report = status
            .nodes
            .iter()
            .find(|node| node.name == assignment.node.as_str())
            .and_then(|node| node.report.as_ref());
        let replica = report.and_then(|report| report.replicas.get(id));
        let mut told = json!({"replica": id.0, "node": assignment.node.as_str(), "device": assignment.device.as_str()});
        match replica.map(|replica| &replica.state) {
            None => told["state"] = json!("unknown"),
            Some(ReplicaState::Loading) => told["state"] = json!("loading"),
            Some(ReplicaState::Failed(why)) => told["state"] = json!(format!("failed: {why}")),
            Some(ReplicaState::Ready(profile)) => {
                let paged = replica.and_then(|replica| replica.paged.as_ref());
                told["state"] = json!(paged.map_or("ready", |paged| paged.residence.word()));
                told["paging"] = json!(paged.map(paging));
                told["batching"] = if profile.unbatched.is_empty() {
                    json!(format!("up to {} rows", profile.max_batch))
                } else {
                    json!(format!("one query at a time: {}", profile.unbatched))
                };
                let points = profile.points.iter().map(|(batch, time)| json!({"batch": batch, "us": time.as_micros()}));
                told["profile"] = json!(points.collect::<Vec<_>>());
                told["profile_from"] = json!(if profile.informed { "the registry" } else { "measured here" });
            }
        }
        if let Some(batches) = replica.map(|replica| replica.batches).filter(|batches| batches.count() > 0) {
            let closed = batches.by_reason().filter(|(_, count)| *count > 0);
            let closed: serde_json::Map<_, _> =
                closed.map(|(why, count)| (why.word().to_owned(), json!(count))).collect();
            told["batches"] = json!({"count": batches.count(), "rows": batches.rows(), "closed": closed});
        }
        if let Some(replica) = replica.filter(|replica| replica.deaths > 0) {
            told["deaths"] = json!(replica.deaths);
            told["last_death"] = json!(replica.last_death);
        }
        told
    });
    let kept = status.state.profiles_of(model.digest).map(|kept| {
        let points = kept.points.iter().map(|(batch, time)| json!({"batch": batch, "us": time.as_micros()}));
        json!({"hardware": kept.hardware, "measured_by": kept.by.as_str(), "profile": points.collect::<Vec<_>>()})
    });
    let specs = |specs: &[weir_core::tensor::TensorSpec]| specs.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "model": reference.to_string(),
        "engine": model.engine.word(),
        "digest": model.digest.to_string(),
        "inputs": specs(&model.signature.inputs),
        "outputs": specs(&model.signature.outputs),
        "allowed_batch_sizes": (!model.shapes.batch_sizes.is_empty()).then_some(&model.shapes.batch_sizes),
        "pad": model.shapes.pad.as_ref().map(padding),
        "quarantined": model.quarantined,
        "labels": status.state.labels_of(reference).map(|label| pointing(label, reference)).collect::<Vec<_>>(),
        "kept_profiles": kept.collect::<Vec<_>>(),
        "replicas": replicas.collect::<Vec<_>>(),
    })
}

/// A label, and how a version stands to it.
fn pointing(label: &Label, model: &ModelRef) -> String {
    let name = &label.name.version;
    match () {
        () if label.version == model.version => name.to_string(),
        () if label.next.as_ref() == Some(&model.version) => format!("{name} (goes here when it is ready)"),
        () => format!("{name} (was here before)"),
    }
}

/// Of a replica on a node whose models do not all fit into memory.
fn paging(paged: &Paged) -> Value {
    let evicted = paged.evicted.as_ref().map(|evicted| {
        let ago = evicted.ago.as_secs();
        match &evicted.by {
            Some(by) => format!("{ago} s ago, for {by}"),
            None => format!("{ago} s ago, as others take more memory than was known"),
        }
    });
    json!({
        "memory_bytes": paged.size.0,
        "reload_ms": paged.reload.as_secs_f64() * 1e3,
        "asked_per_s": paged.rate,
        "cold_queries": paged.cold,
        "loads": paged.loads,
        "evictions": paged.evictions,
        "evicted": evicted,
    })
}

fn padding(pad: &Padding) -> Value {
    json!({"mask": pad.mask, "inputs": pad.inputs, "dimension": pad.dimension, "buckets": pad.buckets, "outputs": pad.outputs})
}

/// An object as indented lines.
fn print(value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    let Value::Object(fields) = value else { return println!("{pad}{value}") };
    for (key, value) in fields {
        match value {
            Value::Null => {}
            Value::Object(_) => {
                println!("{pad}{key}:");
                print(value, indent + 2);
            }
            Value::Array(items)
                if items.iter().any(Value::is_object) && items.iter().all(|i| i.get("batch").is_none()) =>
            {
                println!("{pad}{key}:");
                for item in items {
                    print(item, indent + 2);
                    println!();
                }
            }
            Value::Array(items) => {
                let words = items.iter().map(|item| match item.get("batch") {
                    Some(batch) => format!("{batch}: {} us", item["us"]),
                    None => item.as_str().map_or_else(|| item.to_string(), str::to_owned),
                });
                println!("{pad}{key}: {}", words.collect::<Vec<_>>().join(", "));
            }
            Value::String(text) => println!("{pad}{key}: {text}"),
            other => println!("{pad}{key}: {other}"),
        }
    }
}
