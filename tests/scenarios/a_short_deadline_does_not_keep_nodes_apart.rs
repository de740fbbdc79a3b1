//! A node forwards queries whose deadline is shorter than it takes to connect to the other node.

use std::time::Duration;

use weir_client::Request;
use weir_core::endpoint::Run;
use weir_core::ids::{EndpointName, ModelRef};
use weir_core::outcome::Outcome;
use weir_core::replicated::{Command, ReplicaRange};
use weir_core::tensor::Tensor;
use weir_tests::simulated::{Cluster, Wrong, endpoint};

/// From node to node. To connect and log in takes four of these; to forward and answer, two and the model's 3.5 ms.
const LATENCY: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_millis(60);
const QUERIES: usize = 60;

#[test]
fn a_short_deadline_does_not_keep_nodes_apart() -> Result<(), Wrong> {
    let mut cluster = Cluster::start(7, 1, 2)?;
    cluster.slow_down("n1", "n2", LATENCY);
    let answered = cluster.errand(Duration::from_secs(60), "the queries end", |world| async move {
        let admin = world.admin();
        let mut model = admin.status().await?.state.models[&ModelRef::parse("echo@1")?].clone();
        model.reference = ModelRef::parse("single@1")?;
        model.replicas = ReplicaRange { min: 1, max: 1 };
        let mut single = endpoint("single", 1_000_000);
        single.stages[0].run = Run::Model(model.reference.clone());
        admin.write(Command::Apply { models: vec![model], endpoints: vec![single], if_index: None }).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let client = world.client().await?;
        let mut answered = 0;
        for _ in 0..QUERIES {
            let request = Request {
                endpoint: EndpointName::parse("single")?,
                inputs: vec![("x".into(), Tensor::f32(&[1, 1], &[1.0]))],
                whole: false,
                deadline: Some(DEADLINE),
                class: None,
                outputs: Vec::new(),
                min_stage: None,
                max_stage: None,
                trace: false,
            };
            let answers = client.predict(&request).await;
            answered += usize::from(answers[0].outcome == Outcome::Answered);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(answered)
    })?;
    // Half of them come to the node that has no replica. Only the first few find no connection.
    assert!(answered >= QUERIES * 4 / 5, "{answered} of {QUERIES}");
    Ok(())
}
