//! A member leaves a group that cannot complete its leaving without it, and the rest goes on.

use std::time::Duration;

use weir_tests::simulated::{Cluster, Wrong};

const SOON: Duration = Duration::from_secs(5);

fn other(cluster: &Cluster, name: &str) -> String {
    cluster.coordinators.iter().find(|known| *known != name).expect("there are two").clone()
}

#[test]
fn a_follower_of_two_leaves() -> Result<(), Wrong> {
    for seed in 1..=3 {
        let mut cluster = Cluster::start(seed, 2, 0)?;
        let stays = cluster.leader()?;
        let leaves = other(&cluster, &stays);
        cluster.remove_member(&leaves)?;
        cluster.run(SOON)?;
        assert!(!cluster.is_up(&leaves), "it has ended");
        cluster.writes(SOON)?;
        cluster.voters_become(&[&stays])?;
    }
    Ok(())
}

#[test]
fn the_leader_of_two_leaves() -> Result<(), Wrong> {
    for seed in 1..=3 {
        let mut cluster = Cluster::start(seed, 2, 0)?;
        let leaves = cluster.leader()?;
        let stays = other(&cluster, &leaves);
        cluster.remove_member(&leaves)?;
        cluster.run(SOON)?;
        assert!(!cluster.is_up(&leaves), "it has ended");
        cluster.writes(SOON)?;
        cluster.voters_become(&[&stays])?;
    }
    Ok(())
}

#[test]
fn one_of_four_leaves_while_another_is_down() -> Result<(), Wrong> {
    let mut cluster = Cluster::start(1, 4, 0)?;
    let leader = cluster.leader()?;
    let mut others = cluster.coordinators.clone();
    others.retain(|name| *name != leader);
    cluster.crash(&others[0]);
    cluster.remove_member(&others[1])?;
    cluster.run(SOON)?;
    cluster.writes(SOON)?;
    cluster.restart(&others[0]);
    cluster.voters_become(&[&leader, &others[0], &others[2]])
}

#[test]
fn the_leader_restarts_before_the_leaving_is_complete() -> Result<(), Wrong> {
    for seed in 1..=6 {
        let mut cluster = Cluster::start(seed, 2, 0)?;
        let stays = cluster.leader()?;
        let leaves = other(&cluster, &stays);
        cluster.beside("remover", {
            let leaves = leaves.clone();
            |world| async move { Ok(world.admin().member_remove(&leaves).await.map(drop)?) }
        });
        let moment = Duration::from_millis(cluster.prng.below(60));
        cluster.run(moment)?;
        cluster.crash(&stays);
        cluster.run(Duration::from_secs(3))?;
        cluster.restart(&stays);
        cluster.writes(Duration::from_secs(15))?;
        cluster.voters_become(&[&stays])?;
    }
    Ok(())
}
