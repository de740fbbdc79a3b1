//! The cascade of `demo/fashion.toml` in virtual time: its stages on one slot at a tenth of their speed, and rows whose confidences are spread
//! as its gain tables say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir_core::endpoint::{Endpoint, GainTable, Gate, Ladders, Stage};
use weir_core::ids::{EndpointName, ModelRef, StageName};
use weir_core::prng::Prng;
use weir_core::profile::Profile;
use weir_core::scheduler::Policy;
use weir_core::triage::Method;
use weir_core::units::ServiceTime;

use crate::cluster::{Cluster, Model, Node, Path, Reports, Served};
use crate::device::Service;

/// The demo's stages at a tenth of their speed: microseconds of a batch, and of each of its rows.
const STAGES: [(&str, u64, u64); 3] = [("tiny", 75, 21), ("mid", 100, 310), ("big", 100, 3950)];
const TABLES: [&str; 2] = [include_str!("../../demo/tiny-mid.csv"), include_str!("../../demo/mid-big.csv")];

/// Rows of the data.
pub const ROWS: usize = 2000;

/// One node with one slot that serves it, as the endpoint of number 0.
pub fn demo() -> Cluster {
    let tables = TABLES.map(|table| GainTable::from_csv(table).expect("the demo's tables are tables"));
    let reference = |name: &str| ModelRef::parse(&format!("{name}@1")).expect("a name");
    let stages = STAGES.iter().enumerate().map(|(i, (name, ..))| {
        let table = i.checked_sub(1).map(|gate| Arc::new(tables[gate].clone()));
        let gate = table.map(|table| Gate::Gain { table, min_gain: Gate::MIN_GAIN });
        Stage::new(StageName::parse(name).expect("a name"), reference(name), gate)
    });
    let endpoint = Endpoint {
        label_output: Some("probs".into()),
        ..Endpoint::new(EndpointName::parse("fashion").expect("a name"), Duration::from_millis(50), stages.collect())
    };
    let models = STAGES.map(|(name, alpha, beta)| {
        let at = |batch: u64| ServiceTime::from_micros(alpha + beta * batch);
        let profile = Profile::new(&[(1, at(1)), (64, at(64))]);
        let service = Service::exact(profile.clone());
        (reference(name), Model { believed: profile, service, max_batch: 64, replicas: vec![1] })
    });
    let seconds = STAGES.map(|(_, _, beta)| beta as f64 / 1e6);
    Cluster {
        nodes: vec![Node::of(1)],
        policy: Policy::default(),
        triage: Method::default(),
        models: BTreeMap::from(models),
        endpoints: vec![Served::cascade(Ladders::new(&Arc::new(endpoint), &seconds), &signals(&tables))],
        path: Path::of(Duration::from_micros(100)),
        reports: Some(Reports::default()),
    }
}

/// Rows whose confidences are spread as the tables say.
fn signals(tables: &[GainTable; 2]) -> Vec<Vec<Option<f32>>> {
    let mut prng = Prng::new(1);
    let mut pick = |shares: Vec<f64>| {
        let mut left = prng.uniform() * shares.iter().sum::<f64>();
        let within = |share: &f64| {
            left -= share;
            left < 0.0
        };
        shares.iter().position(within).unwrap_or(0)
    };
    let mut signals = vec![Vec::new(); 3];
    for _ in 0..ROWS {
        let first = pick(tables[0].bins().iter().map(|bin| f64::from(bin.rows)).collect());
        let second = pick(tables[0].bins()[first].next.iter().map(|share| f64::from(*share)).collect());
        signals[0].push(Some(tables[0].bins()[first].confidence));
        signals[1].push(Some(tables[1].bins()[second].confidence));
        signals[2].push(None);
    }
    signals
}
