//! What one node has measured of a model is where the next one begins that loads it on the same hardware, and it goes with the
//! model.

use std::time::Duration;

use weir_core::ids::EndpointName;
use weir_core::placement::ReplicaState;
use weir_core::replicated::Command;
use weir_tests::simulated::{Cluster, World, Wrong};

/// Of each replica that is ready on a node, whether it began with what the registry had.
async fn informed(world: &World, name: &str) -> Result<Vec<bool>, Wrong> {
    let status = world.admin().status().await?;
    let node = status.nodes.iter().find(|node| node.name == name);
    let replicas = node.and_then(|node| node.report.as_ref()).into_iter().flat_map(|report| report.replicas.values());
    Ok(replicas
        .filter_map(|replica| match &replica.state {
            ReplicaState::Ready(profile) => Some(profile.informed),
            _ => None,
        })
        .collect())
}

#[test]
fn a_node_that_starts_later_is_informed() -> Result<(), Wrong> {
    let mut cluster = Cluster::start(7, 1, 2)?;
    cluster.errand(Duration::from_secs(60), "profiles are kept", |world| async move {
        loop {
            let state = world.admin().status().await?.state;
            if !state.models.is_empty()
                && state.models.values().all(|model| state.profiles_of(model.digest).count() == 1)
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(informed(&world, "n1").await?.iter().all(|informed| !informed), "it measured for itself");
        Ok(())
    })?;
    cluster.crash("n2");
    cluster.restart("n2");
    cluster.errand(Duration::from_secs(60), "the node has loaded its replica again, informed", |world| async move {
        // What the leader has heard last may be of before it stopped, when it had measured for itself.
        while informed(&world, "n2").await? != [true] {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let admin = world.admin();
        for name in admin.status().await?.state.endpoints.into_keys() {
            admin.write(Command::DeleteEndpoint(EndpointName::parse(name.as_str()).expect("it is one"))).await?;
        }
        assert!(admin.status().await?.state.profiles.is_empty(), "they go with the models");
        Ok(())
    })
}
