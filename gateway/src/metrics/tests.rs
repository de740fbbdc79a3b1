use std::collections::BTreeMap;
use std::time::Duration;

use weir_core::history::{DeviceNow, EndpointRecent, Ever, ModelNow, NodeRecent, Seconds};
use weir_core::ids::{DeviceName, EndpointName, ModelRef, StageName};
use weir_core::outcome::{Class, Rejection};
use weir_core::scheduler::{Batches, Closed};
use weir_core::triage::Asked;
use weir_core::units::ServiceTime;

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
                labels: (4, 3),
                shadow: (0, 0),
                gates: Vec::new(),
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
        demand: BTreeMap::from([(model, Asked { first: 0, soft: vec![0.25] })]),
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
fn names(text: &str) -> std::collections::BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| ["weir_", "nv_", "process_"].iter().any(|prefix| word.starts_with(prefix))).collect()
}

#[test]
fn boards_and_alerts_ask_for_metrics_that_exist() {
    let node: Facts = Arc::new(facts);
    let mut registry = Registry::default();
    let gateway = Arc::<crate::serve::Shared>::default();
    gateway.counts.ended("http", "200");
    registry.register("weir_gateway_requests", "", gateway.counts.0.clone());
    let coordinator: Group = Arc::new(MemberFacts::default);
    let sources = Sources { node: Some(node), coordinator: Some(coordinator), ..Sources::default() };
    registry.register_collector(Box::new(Told(sources)));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    // Families that have no figure yet are there by their type alone.
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let known: std::collections::BTreeSet<String> = types
        .flat_map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let endings: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            endings.iter().map(move |ending| format!("{name}{ending}"))
        })
        .collect();
    for file in [include_str!("../../../deploy/grafana.json"), include_str!("../../../deploy/alerts.yml")] {
        let asked = names(file);
        assert!(asked.len() > 8);
        for name in asked {
            assert!(known.contains(name), "there is no {name}");
        }
    }
}

#[test]
fn every_metric_is_described() {
    let node: Facts = Arc::new(facts);
    let coordinator: Group = Arc::new(MemberFacts::default);
    let sources = Sources {
        node: Some(node),
        coordinator: Some(coordinator),
        gateway: Some(Arc::default()),
        without_aliases: true,
    };
    let text = text(sources);
    let documented = names(include_str!("../../../docs/metrics.md"));
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        assert!(documented.contains(name.as_str()), "docs/metrics.md does not tell of {name}");
    }
}
