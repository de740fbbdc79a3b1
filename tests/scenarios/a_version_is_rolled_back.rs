//! An endpoint goes on to the next version and back: the version that nobody names goes, its artifact is still there.

use std::time::Duration;

use weir_core::endpoint::Run;
use weir_core::ids::ModelRef;
use weir_core::outcome::Outcome;
use weir_core::replicated::{Command, Model};
use weir_tests::simulated::{Cluster, ECHO, World, Wrong, ask, endpoint};

/// Moves the endpoint to `model`, without an upload, and waits until nothing is left of other versions.
async fn go_to(world: &World, model: Model) -> Result<(), Wrong> {
    let (admin, client) = (world.admin(), world.client().await?);
    let reference = model.reference.clone();
    let mut endpoint = endpoint(ECHO, 1_000_000);
    endpoint.stages[0].run = Run::Model(reference.clone());
    admin.write(Command::Apply { models: vec![model], endpoints: vec![endpoint], if_index: None }).await?;
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let answer = ask(&client, 1.0, Duration::from_millis(200)).await;
        let state = admin.status().await?.state;
        let serves = answer.outcome == Outcome::Answered && answer.model == reference.to_string();
        if serves && state.models.keys().all(|known| *known == reference) {
            return Ok(());
        }
    }
}

#[test]
fn a_version_is_rolled_back() -> Result<(), Wrong> {
    let mut cluster = Cluster::start(1, 3, 2)?;
    cluster.errand(Duration::from_secs(30), "there and back", |world| async move {
        let first = world.admin().status().await?.state.models[&ModelRef::parse("echo@1")?].clone();
        let second = Model { reference: ModelRef::parse("echo@2")?, ..first.clone() };
        go_to(&world, second).await?;
        go_to(&world, first).await
    })
}
