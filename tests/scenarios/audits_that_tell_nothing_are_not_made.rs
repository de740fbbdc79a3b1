//! Copies for audits cost slot time: where nothing can come of them, none is made, whoever declared them.

use std::time::Duration;

use weir_core::ids::StageName;
use weir_core::replicated::Command;
use weir_tests::simulated::{Cluster, ECHO, World, Wrong, ask, endpoint};

/// Batches that the nodes say they have run.
async fn batches(world: &World) -> Result<u64, Wrong> {
    let status = world.admin().status().await?;
    let reports = status.nodes.iter().filter_map(|node| node.report.as_ref());
    Ok(reports.flat_map(|report| report.replicas.values()).map(|replica| replica.batches.count()).sum())
}

/// How many batches ran for so many queries of a cascade of two stages, one after the other, a fifth of them audited.
async fn audited(world: &World, label_output: Option<&str>, queries: u64) -> Result<u64, Wrong> {
    let mut cascade = endpoint(ECHO, 1_000_000);
    let deeper = weir_core::endpoint::Stage { name: StageName::parse("deeper")?, ..cascade.stages[0].clone() };
    cascade.stages.push(deeper);
    cascade.label_output = label_output.map(str::to_owned);
    cascade.audit = weir_core::endpoint::AUDIT_MAX;
    world.admin().write(Command::Apply { models: Vec::new(), endpoints: vec![cascade], if_index: None }).await?;
    let settled = Duration::from_secs(2);
    tokio::time::sleep(settled).await;
    let (before, client) = (batches(world).await?, world.client().await?);
    for _ in 0..queries {
        ask(&client, 1.0, Duration::from_secs(1)).await;
    }
    tokio::time::sleep(settled).await;
    Ok(batches(world).await? - before)
}

#[test]
fn audits_that_tell_nothing_are_not_made() -> Result<(), Wrong> {
    let mut cluster = Cluster::start(2, 1, 1)?;
    cluster.errand(Duration::from_secs(60), "a hundred queries, twice", |world| async move {
        let told = audited(&world, Some("y"), 100).await?;
        assert!(told > 220, "of a fifth both stages run again: {told} batches");
        let untold = audited(&world, None, 100).await?;
        assert_eq!(untold, 200, "nobody could compare what copies say");
        Ok(())
    })
}
