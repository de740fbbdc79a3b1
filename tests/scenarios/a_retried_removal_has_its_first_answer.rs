//! Who asks again to remove or promote a member gets the first answer, whoever is asked.

use std::time::Duration;

use weir_host::dial::{Role, enter};
use weir_host::limits::Limits;
use weir_schema::control_capnp::{admin, write_result};
use weir_schema::convert::control::{read_applied, write_u128};
use weir_schema::predict_capnp::Purpose;
use weir_tests::simulated::{Cluster, World, Wrong};

/// Asks this coordinator alone, under request 7.
async fn remove(world: &World, address: &str, name: &str) -> Result<Vec<String>, Wrong> {
    let limits = Limits::members();
    let entered = enter(&world.host, address, &world.token, Purpose::Operate, &limits).await?;
    let Role::Admin(admin) = entered.role() else { return Err(Wrong("an admin's token".into())) };
    let admin: admin::Client = admin.clone();
    let mut call = admin.member_remove_request();
    write_u128(call.get().init_request(), 7);
    call.get().set_name(name);
    let answer = call.send().promise.await?;
    match answer.get()?.get_result()?.which()? {
        write_result::Applied(applied) => Ok(read_applied(applied?)??.lines),
        write_result::NotLeader(_) => Ok(vec!["not the leader".into()]),
        write_result::TryAgain(why) => Err(Wrong(why?.to_string()?)),
    }
}

#[test]
fn a_retried_removal_has_its_first_answer() -> Result<(), Wrong> {
    let mut cluster = Cluster::start(1, 3, 0)?;
    let leader = cluster.leader()?;
    let others: Vec<String> = cluster.coordinators.iter().filter(|name| **name != leader).cloned().collect();
    let [leaves, stays] = [others[0].clone(), others[1].clone()];
    cluster.errand(Duration::from_secs(20), "removed twice", move |world| async move {
        let [first, second] = [&leader, &stays].map(|name| format!("{name}:7000"));
        let removed = vec![format!("member {leaves} removed")];
        // The library takes the change once the majority has answered lately.
        let answer = loop {
            match remove(&world, &first, &leaves).await {
                Err(again) if again.0.contains("ask again") => tokio::time::sleep(Duration::from_millis(50)).await,
                answer => break answer?,
            }
        };
        assert_eq!(answer, removed);
        assert_eq!(remove(&world, &first, &leaves).await?, removed, "the same leader");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(remove(&world, &second, &leaves).await?, removed, "a follower that has applied it");
        Ok(())
    })
}
