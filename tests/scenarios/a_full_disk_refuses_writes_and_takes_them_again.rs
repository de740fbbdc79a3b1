//! With every coordinator's disk full, writes are refused with what to do, nothing is changed or lost, reads and predictions go
//! on, and once there is room so do writes.

use std::time::Duration;

use weir_core::outcome::Outcome;
use weir_core::replicated::{Grant, Role};
use weir_tests::simulated::{Cluster, World, Wrong, ask};

/// Of nearly a megabyte: a few fill what the log has ready.
fn grant(i: usize) -> Grant {
    Grant { id: format!("{i}{}", "x".repeat(900_000)), token_hash: [i as u8; 32], role: Role::Operator, expires: None }
}

async fn grants(world: &World) -> Result<usize, Wrong> {
    Ok(world.admin().status().await?.state.grants.len())
}

#[test]
fn a_full_disk_refuses_writes_and_takes_them_again() -> Result<(), Wrong> {
    let mut cluster = Cluster::start(11, 3, 1)?;
    let coordinators = cluster.coordinators.clone();
    for name in &coordinators {
        cluster.disk(name).leave_room(Some(10_000));
    }
    let written = cluster.errand(Duration::from_secs(60), "writes are refused", |world| async move {
        let admin = world.admin();
        let artifact = admin.upload(&[7; 100_000], |_| {}).await.unwrap_err().to_string();
        assert!(artifact.contains("full") || artifact.contains("no space"), "{artifact}");
        let before = grants(&world).await?;
        let mut written = 0;
        let refused = loop {
            match admin.grant_add(&grant(written)).await {
                Ok(_) => written += 1,
                Err(error) => break error.to_string(),
            }
        };
        assert!(refused.contains("disk is full; nothing was written: free space there"), "{refused}");
        assert_eq!(grants(&world).await?, before + written, "what was refused changed nothing");
        let client = world.client().await?;
        assert_eq!(ask(&client, 1.0, Duration::from_millis(500)).await.outcome, Outcome::Answered);
        Ok(written)
    })?;
    assert!((1..8).contains(&written), "{written} writes found room in a log of 8 MiB");
    for name in &coordinators {
        cluster.disk(name).leave_room(None);
    }
    cluster.errand(Duration::from_secs(10), "a write after there is room", move |world| async move {
        world.admin().grant_add(&grant(written)).await?;
        Ok(())
    })
}
