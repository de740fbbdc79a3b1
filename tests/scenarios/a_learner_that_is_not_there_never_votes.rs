//! A learner that is not there never votes: a young cluster would have no majority from then on.

use std::time::Duration;

use weir_tests::simulated::{Cluster, Wrong};

#[test]
fn a_learner_that_is_not_there_never_votes() -> Result<(), Wrong> {
    let mut cluster = Cluster::start(1, 1, 1)?;
    cluster.crash("n1");
    cluster.add_member("c2", "n1:7000")?;
    cluster.run(Duration::from_secs(3))?;
    cluster.writes(Duration::from_secs(5))?;
    let refused = cluster.promote_member("c2").expect_err("it has nothing of the log");
    assert!(refused.0.contains("1 of the 2 coordinators that would vote then are up"), "{}", refused.0);
    cluster.writes(Duration::from_secs(5))?;
    cluster.remove_member("c2")?;
    cluster.voters_become(&["c1"])
}
