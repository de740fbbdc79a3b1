use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weir_core::endpoint::audit::{GateAudit, Labelled};
use weir_core::history::{DeviceNow, EndpointRecent, Ever, ModelNow, NodeRecent, Seconds};
use weir_core::ids::{DeviceName, EndpointName, ModelRef, StageName};
use weir_core::outcome::{Class, Rejection};
use weir_core::paging::{MemoryNow, Paged, Residence};
use weir_core::scheduler::{Batches, Closed};
use weir_core::triage::Asked;
use weir_core::units::{Bytes, ServiceTime};

use super::*;

fn facts() -> NodeFacts {
    let mut totals = Totals::default();
    totals.request.add(Duration::from_millis(12));
    totals.by_stage = [("gone", 4), ("b", 1)].into_iter().collect();
    totals.rejected.insert((Rejection::Outbid, Class::Sheddable), 3);
    totals.calls.batches = 0.5;
    let mut batches = Batches::default();
    batches.add(Closed::Idle, 3);
    let model = ModelRef::parse("m@1").unwrap();
    NodeFacts {
        node: "n1".into(),
        recent: NodeRecent {
            endpoints: vec![EndpointRecent {
                endpoint: EndpointName::parse("e").unwrap(),
                stages: vec![StageName::parse("a").unwrap(), StageName::parse("b").unwrap()],
                price: 2.5,
                labelled: Labelled { answers: 4, right: 3 },
                shadow: (0, 0),
                gates: vec![GateAudit::default(); 2],
                ever: Ever::default(),
                recent: Seconds::default(),
            }],
            devices: vec![DeviceNow {
                device: DeviceName::parse("cpu0").unwrap(),
                slots: 2,
                running: 1,
                busy: ServiceTime::from_micros(1_500_000),
                backlog: ServiceTime::from_micros(20_000),
                models: vec![ModelNow { model: model.clone(), queued: 7, batches }],
            }],
        },
        totals: vec![totals],
        refused: BTreeMap::from([(Rejection::NoReplica, 1)]),
        demand: BTreeMap::from([(model.clone(), Asked { first: 0, soft: vec![0.25] })]),
        memory: MemoryNow {
            size: Bytes(100),
            taken: Bytes(60),
            placed: Bytes(300),
            thrashings: 2,
            ..MemoryNow::default()
        },
        paged: BTreeMap::from([(
            model,
            Paged {
                residence: Residence::Resident,
                size: Bytes(60),
                reload: Duration::from_millis(250),
                rate: 1.0,
                cold: 5,
                loads: 3,
                evictions: 2,
                evicted: None,
            },
        )]),
        ..NodeFacts::default()
    }
}

fn text(sources: Sources) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Told(sources)));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

#[test]
fn figures_stand_under_their_names() {
    let node: Facts = Arc::new(facts);
    let text = text(Sources { node: Some(node), ..Sources::default() });
    for line in [
        "weir_ready 1.0",
        "weir_request_duration_seconds_bucket{le=\"0.01\",endpoint=\"e\"} 0",
        "weir_request_duration_seconds_bucket{le=\"0.015\",endpoint=\"e\"} 1",
        "weir_request_duration_seconds_count{endpoint=\"e\"} 1",
        "weir_request_duration_seconds_sum{endpoint=\"e\"} 0.012",
        "weir_cascade_stage_total{endpoint=\"e\",stage=\"a\"} 0.0",
        "weir_cascade_stage_total{endpoint=\"e\",stage=\"b\"} 1.0",
        "weir_cascade_stage_total{endpoint=\"e\",stage=\"gone\"} 4.0",
        "weir_shed_total{endpoint=\"e\",reason=\"outbid\",class=\"sheddable\"} 3.0",
        "weir_price{endpoint=\"e\"} 2.5",
        "weir_labelled_right_total{endpoint=\"e\"} 3.0",
        "weir_demand_slots{model=\"m@1\",worth_at_least=\"0\"} 0.25",
        "weir_device_busy_seconds_total{device=\"cpu0\"} 1.5",
        "weir_memory_placed_bytes 300.0",
        "weir_memory_thrashing 0.0",
        "weir_memory_thrashings_total 2.0",
        "weir_model_resident{model=\"m@1\"} 1.0",
        "weir_model_reload_seconds{model=\"m@1\"} 0.25",
        "weir_model_cold_queries_total{model=\"m@1\"} 5.0",
        "weir_model_evictions_total{model=\"m@1\"} 2.0",
        "weir_queue_rows{device=\"cpu0\",model=\"m@1\"} 7.0",
        "weir_batches_total{device=\"cpu0\",model=\"m@1\",closed=\"idle\"} 1.0",
        "weir_batch_size_bucket{le=\"2.0\",device=\"cpu0\",model=\"m@1\"} 0",
        "weir_batch_size_bucket{le=\"4.0\",device=\"cpu0\",model=\"m@1\"} 1",
        "weir_batch_size_sum{device=\"cpu0\",model=\"m@1\"} 3.0",
        "nv_inference_request_failure{model=\"e\",version=\"1\",reason=\"REJECTED\"} 0.0",
        "nv_inference_request_failure{model=\"e\",version=\"1\",reason=\"CANCELED\"} 0.0",
        "nv_inference_request_failure{model=\"e\",version=\"1\",reason=\"BACKEND\"} 0.0",
        "nv_inference_request_failure{model=\"e\",version=\"1\",reason=\"OTHER\"} 0.0",
        "nv_inference_request_success{model=\"e\",version=\"1\"} 0.0",
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("stage=\"default\""));
}

#[test]
fn every_name_is_told_once_and_aliases_can_be_left_out() {
    let node: Facts = Arc::new(facts);
    let gateway = Some(Arc::default());
    let sources = Sources { node: Some(node), gateway, without_aliases: true, ..Sources::default() };
    let text = text(sources);
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let told = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), told);
    assert!(told > 30 && !text.contains("nv_"));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn the_older_format_describes_counters_by_their_whole_name() {
    let node: Facts = Arc::new(facts);
    let text = text(Sources { node: Some(node), ..Sources::default() });
    let classic = classic(&text);
    for line in ["# TYPE weir_answered_total counter", "# TYPE weir_price gauge", "# TYPE nv_inference_count counter"] {
        assert!(classic.lines().any(|told| told == line), "{line}");
    }
    assert!(classic.contains("# HELP weir_answered_total ") && !classic.contains("# EOF"));
    assert!(!classic.contains("# TYPE weir_answered counter"));
}

/// Words of an expression that look like names of metrics.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| ["weir_", "nv_", "process_"].iter().any(|prefix| word.starts_with(prefix))).collect()
}

/// What a process with a node, a coordinator and a gateway tells: the names and kinds of its metrics, and the labels that each figure has.
struct Exported {
    kinds: BTreeMap<String, String>,
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// What Prometheus adds to every figure.
const ADDED: [&str; 2] = ["instance", "job"];

impl Exported {
    fn new() -> Exported {
        let node: Facts = Arc::new(facts);
        let others = vec![("c2".to_owned(), 0, true)];
        let coordinator: Group = Arc::new(move || MemberFacts { others: others.clone(), ..MemberFacts::default() });
        let gateway = Arc::<Shared>::default();
        gateway.counts.ended("http", "200");
        let sources = Sources {
            node: Some(node),
            coordinator: Some(coordinator),
            gateway: Some(Arc::clone(&gateway)),
            without_aliases: false,
        };
        let text = exported(sources);
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let kinds = types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
        let mut labels = BTreeMap::<String, BTreeSet<String>>::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (figure, _) = line.rsplit_once(' ').unwrap();
            let (name, inside) = figure.strip_suffix('}').map_or((figure, ""), |f| f.split_once('{').unwrap());
            labels.entry(name.to_owned()).or_default().extend(labels_in(inside).map(str::to_owned));
        }
        labels.insert("up".to_owned(), BTreeSet::new());
        Exported { kinds, labels }
    }

    fn has(&self, name: &str, label: &str) -> bool {
        let labels = self.labels.get(name).unwrap_or_else(|| panic!("there is no {name}"));
        labels.contains(label) || ADDED.contains(&label)
    }

    /// Labels that what an expression gives has, once every label that it asks metrics for is theirs.
    fn result<'a>(&'a self, expression: &'a str) -> BTreeSet<&'a str> {
        let has = |name: &str, label: &str| {
            assert!(self.has(name, label), "{name} has no {label} in {expression}");
        };
        let mut metrics = Vec::new();
        for name in names(expression).into_iter().chain(expression.contains("up{").then_some("up")) {
            metrics.push(name);
            for (at, _) in expression.match_indices(&format!("{name}{{")) {
                let inside = expression[at + name.len() + 1..].split('}').next().unwrap();
                labels_in(inside).for_each(|label| has(name, label));
            }
            assert!(self.labels.contains_key(name), "there is no {name}");
        }
        let mut grouped: Vec<BTreeSet<&str>> = Vec::new();
        for (at, mark) in expression.match_indices(" by (") {
            let (list, rest) = expression[at + mark.len()..].split_once(')').unwrap();
            let list: BTreeSet<&str> = list.split(',').map(str::trim).collect();
            let argument = in_brackets(rest.trim_start());
            for name in names(argument) {
                list.iter().for_each(|label| has(name, label));
            }
            grouped.push(list);
        }
        let over_all = ["sum(", "max(", "min(", "avg(", "count("].iter().any(|word| expression.contains(word));
        if over_all && grouped.is_empty() {
            return BTreeSet::new();
        }
        if grouped.is_empty() {
            let of = |name: &&str| self.labels[*name].iter().map(String::as_str).chain(ADDED).collect();
            grouped = metrics.iter().map(of).collect();
        }
        grouped.into_iter().reduce(|all, more| &all & &more).unwrap_or_default()
    }
}

/// Names of labels within the brackets of a figure or of a selector.
fn labels_in(inside: &str) -> impl Iterator<Item = &str> {
    let edge = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    // What stands in quotes is a value.
    let outside = inside.split('"').step_by(2);
    outside.map(move |text| text.trim_matches(edge)).filter(|label| !label.is_empty())
}

/// What stands between a bracket and the one that closes it.
fn in_brackets(text: &str) -> &str {
    assert!(text.starts_with('('), "write `sum by (label) (…)`: {text}");
    let mut depth = 0;
    let end = text.find(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0
    });
    &text[1..end.expect("brackets that close")]
}

/// All that a process tells, of requests too.
fn exported(sources: Sources) -> String {
    let mut registry = Registry::default();
    if let Some(gateway) = &sources.gateway {
        registry.register("weir_gateway_requests", "", gateway.counts.0.clone());
    }
    registry.register_collector(Box::new(Told(sources)));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

/// Expressions of a board, each with what its curves are called.
fn expressions(board: &serde_json::Value, to: &mut Vec<(String, String)>) {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    match board {
        serde_json::Value::Object(fields) => {
            fields.get("expr").into_iter().for_each(|expr| to.push((text(expr), text(&board["legendFormat"]))));
            fields.values().for_each(|value| expressions(value, to));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| expressions(item, to)),
        _ => {}
    }
}

#[test]
fn boards_ask_for_metrics_and_labels_that_exist() {
    let exported = Exported::new();
    let board = include_str!("../../../deploy/grafana.json");
    names(board).into_iter().for_each(|name| assert!(exported.labels.contains_key(name), "there is no {name}"));
    let board: serde_json::Value = serde_json::from_str(board).unwrap();
    let mut asked = Vec::new();
    expressions(&board, &mut asked);
    assert!(asked.len() > 8);
    for (expression, curve) in &asked {
        let labels = exported.result(expression);
        for label in curve.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap().trim()) {
            assert!(labels.contains(label), "{curve} asks for {label}, which {expression} has not");
        }
    }
    for variable in board["templating"]["list"].as_array().unwrap() {
        let Some(asked) = variable["query"].as_str().and_then(|query| query.strip_prefix("label_values(")) else {
            continue;
        };
        let (name, label) = asked.strip_suffix(')').unwrap().split_once(", ").unwrap();
        assert!(exported.has(name, label), "{name} has no {label}");
    }
}

#[test]
fn alerts_ask_for_metrics_and_labels_that_exist() {
    let exported = Exported::new();
    let alerts: Vec<&str> = include_str!("../../../deploy/alerts.yml").split("- alert:").skip(1).collect();
    assert!(alerts.len() > 8);
    for alert in alerts {
        let (expression, rest) = alert.split_once("expr:").unwrap().1.split_once("for:").unwrap();
        let labels = exported.result(expression);
        for told in rest.split("$labels.").skip(1) {
            let label = told.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
            assert!(labels.contains(label), "{label} is told, which {expression} has not");
        }
    }
}

#[test]
fn every_metric_is_described_with_its_labels() {
    let exported = Exported::new();
    let (mut documented, mut rows) = (BTreeMap::new(), 0);
    for row in include_str!("../../../docs/metrics.md").lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels: BTreeSet<&str> = cells[2].split(", ").filter(|label| !label.is_empty()).collect();
        names(cells[1]).into_iter().for_each(|name| drop(documented.insert(name, labels.clone())));
        rows += 1;
    }
    assert!(rows > 20);
    let told = |name: &str, kind: &str| if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
    for (name, kind) in exported.kinds.iter().filter(|(name, _)| !name.starts_with("nv_inference")) {
        // Triton's counters have no ending.
        let name = if name.starts_with("nv_") { name.clone() } else { told(name, kind) };
        let labels = documented.remove(name.as_str());
        let labels = labels.unwrap_or_else(|| panic!("docs/metrics.md does not tell of {name}"));
        let figure = if kind == "histogram" { format!("{name}_count") } else { name.clone() };
        let has: BTreeSet<&str> = exported.labels[&figure].iter().map(String::as_str).collect();
        assert_eq!(labels, has, "the labels of {name} in docs/metrics.md");
    }
    documented.retain(|name, _| !name.starts_with("nv_inference"));
    assert!(documented.is_empty(), "docs/metrics.md tells of {documented:?}, which there are not");
}
