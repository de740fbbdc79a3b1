//! What `weir snapshot save` keeps has every write that was acknowledged before, or it says that it cannot know.

use std::time::Duration;

use weir_core::ids::EndpointName;
use weir_core::replicated::Command;
use weir_tests::simulated::{Cluster, Wrong, endpoint};

#[test]
fn a_saved_snapshot_is_not_stale() -> Result<(), Wrong> {
    let mut cluster = Cluster::start(1, 3, 1)?;
    let old = cluster.leader()?;
    let position = cluster.coordinators.iter().position(|name| *name == old).expect("it is one of them");
    let others: Vec<String> = cluster.coordinators.iter().filter(|name| **name != old).cloned().collect();
    others.iter().for_each(|other| cluster.cut(&old, other));
    cluster.run(Duration::from_secs(3))?;
    cluster.errand(Duration::from_secs(20), "a write at the others", |world| async move {
        let write = || Command::Apply { models: vec![], endpoints: vec![endpoint("late", 1)], if_index: None };
        let mut admins = world.admin_of_each();
        admins.remove(position);
        // One of them leads and is led to by the other.
        while admins[0].write(write()).await.is_err() && admins[1].write(write()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    })?;
    cluster.errand(Duration::from_secs(40), "a snapshot at the one that is cut off", move |world| async move {
        let saved = world.admin_of_each()[position].snapshot().await;
        let late = EndpointName::parse("late")?;
        assert!(saved.is_err() || saved.is_ok_and(|state| state.endpoints.contains_key(&late)), "it is stale");
        Ok(())
    })
}
