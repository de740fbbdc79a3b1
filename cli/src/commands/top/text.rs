//! A look at the cluster as tables.

use std::time::Duration;

use weir_core::endpoint::audit::{GateAudit, Labelled};
use weir_core::ids::{EndpointName, ModelRef, StageName};
use weir_core::triage::Asked;
use weir_core::units::Bytes;
use weir_gateway::view::{Endpoint, Node, View};

use crate::show::table;

/// As tables.
pub fn text(view: &View) -> String {
    let header = [
        "endpoint",
        "offered/s",
        "answered/s",
        "in time/s",
        "attainment",
        "p50",
        "p99",
        "degraded",
        "expected right",
        "labelled right",
        "value lost/s",
        "price",
        "stages",
    ];
    let endpoints = view.endpoints.iter().map(|(name, endpoint)| row(name, endpoint)).collect();
    let models = view.models.iter().map(|(name, model)| {
        let all = model.batches.count().max(1) as f64;
        let mut row = vec![
            name.to_string(),
            model.queued.to_string(),
            model.batches.count().to_string(),
            format!("{:.1}", model.batches.rows() as f64 / all),
        ];
        row.extend(model.batches.by_reason().map(|(_, count)| percent(count as f64 / all)));
        row
    });
    let gates = view.endpoints.iter().flat_map(|(name, endpoint)| {
        let of_stage = move |(stage, gate): (&StageName, &GateAudit)| {
            let each = |sum: f64, rows: u64| if rows > 0 { format!("{:.4}", sum / rows as f64) } else { "-".into() };
            vec![
                format!("{name}/{stage}"),
                gate.rows.to_string(),
                each(gate.differ as f64, gate.rows),
                each(gate.expected, gate.rows),
                gate.labelled.to_string(),
                each(gate.expected_of_labelled, gate.labelled),
                each(gate.gained, gate.labelled),
            ]
        };
        endpoint.stages.iter().zip(&endpoint.gates).skip(1).filter(|(_, gate)| gate.rows > 0).map(of_stage)
    });
    let gates: Vec<Vec<String>> = gates.collect();
    let nodes = view.nodes.iter().map(|node| {
        let told = |text: String| if node.told { text } else { "no answer".to_owned() };
        vec![
            node.name.clone(),
            node.state.into(),
            percent(node.busy),
            told(format!("{} of {}", node.running, node.slots)),
            told(node.queued.to_string()),
            told(shown(Some(node.backlog))),
        ]
    });
    let on: Vec<String> = view.nodes.iter().map(|node| format!("on {}", node.name)).collect();
    let header_of_replicas: Vec<&str> = std::iter::once("replicas of").chain(on.iter().map(String::as_str)).collect();
    let replicas = view.placement.iter().map(|(model, on)| {
        let count = |count: &usize| if *count == 0 { "-".to_owned() } else { count.to_string() };
        std::iter::once(model.to_string()).chain(on.iter().map(count)).collect()
    });
    let members = view.members.iter().map(|member| {
        let state = if member.up { "up" } else { "down" };
        vec![member.name.clone(), member.role.into(), state.into(), member.applied.to_string()]
    });
    let demand: Vec<Vec<String>> = view.demand.iter().map(demand).collect();
    let header_of_demand: Vec<String> = std::iter::once("slots asked for".to_owned())
        .chain(["at all".to_owned()])
        .chain(WORTH.map(|worth| format!("worth {worth}/s")))
        .collect();
    let header_of_demand: Vec<&str> = header_of_demand.iter().map(String::as_str).collect();
    let demands = table(&header_of_demand, demand.clone());
    let audits = table(
        &["gate before", "audited", "differ", "gain by table", "labelled", "gain by table", "measured gain"],
        gates.clone(),
    );
    let short: Vec<&Node> = view.nodes.iter().filter(|node| node.memory.is_short()).collect();
    let memory = table(
        &["memory of", "size", "models take", "all would take", "reloading", "state"],
        short.iter().map(|node| memory(node)).collect(),
    );
    [
        table(&header, endpoints),
        table(
            &["model", "queued", "batches", "rows a batch", "full", "target", "deadline", "idle", "timer"],
            models.collect(),
        ),
        table(&["node", "state", "busy", "slots running", "rows queued", "backlog"], nodes.collect()),
        table(&header_of_replicas, replicas.collect()),
        table(&["coordinator", "role", "state", "log applied to"], members.collect()),
    ]
    .into_iter()
    .chain((!short.is_empty()).then_some(memory))
    .chain((!demand.is_empty()).then_some(demands))
    .chain((!gates.is_empty()).then_some(audits))
    .collect::<Vec<_>>()
    .join("\n\n")
}

/// Of a node whose models do not all fit.
fn memory(node: &Node) -> Vec<String> {
    let memory = &node.memory;
    let state = match (memory.thrashes, memory.thrashings) {
        (true, _) => "does little else than load models: it lacks memory".to_owned(),
        (false, 0) => "models are in memory on demand".to_owned(),
        (false, times) => format!("models are in memory on demand; did little else than load them {times} times"),
    };
    let mebibytes = |bytes: Bytes| format!("{:.1} MiB", bytes.0 as f64 / f64::from(1 << 20));
    let share = percent(memory.reloading);
    vec![node.name.clone(), mebibytes(memory.size), mebibytes(memory.taken), mebibytes(memory.placed), share, state]
}

fn row(name: &EndpointName, endpoint: &Endpoint) -> Vec<String> {
    let share = |count: u64| count as f64 / endpoint.tally.answered.max(1) as f64;
    let mix = endpoint.mix().map(|(stage, answers)| format!("{stage} {}", percent(share(answers))));
    vec![
        name.to_string(),
        format!("{:.1}", endpoint.offered),
        format!("{:.1}", endpoint.answered),
        format!("{:.1}", endpoint.in_time),
        endpoint.tally.attainment().map_or("-".into(), percent),
        shown(endpoint.tally.latencies.quantile(0.5)),
        shown(endpoint.tally.latencies.quantile(0.99)),
        percent(share(endpoint.tally.degraded)),
        endpoint.tally.accuracy().map_or("-".into(), |share| format!("{:.1} %", 100.0 * share)),
        labelled(endpoint.labelled),
        format!("{:.2}", endpoint.lost),
        format!("{:.3}", endpoint.price),
        mix.collect::<Vec<_>>().join(", "),
    ]
}

/// What labels say, how far that may be off, and of how many answers.
fn labelled(labelled: Labelled) -> String {
    labelled.accuracy().zip(labelled.error()).map_or("-".into(), |(share, error)| {
        format!("{:.1} % ± {:.1} of {}", 100.0 * share, 100.0 * error, labelled.answers)
    })
}

/// What its time has to be worth, in value a second, in the columns of a demand curve.
const WORTH: [f64; 6] = [0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0];

/// What is asked of a model behind a gate, in slots that it would keep busy: all of it, and what is worth so much for its time.
fn demand((model, asked): (&ModelRef, &Asked)) -> Vec<String> {
    let slots = |worth: f64| {
        asked.points().filter(|(value, _)| *value >= worth).map(|(_, work)| work).fold(0.0, |sum, work| sum + work)
    };
    let columns = std::iter::once(0.0).chain(WORTH).map(|worth| format!("{:.3}", slots(worth)));
    std::iter::once(model.to_string()).chain(columns).collect()
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn shown(span: Option<Duration>) -> String {
    span.map_or("-".into(), |span| format!("{:.1} ms", span.as_secs_f64() * 1e3))
}
