//! A member that is interrupted between being let in and knowing it goes on as that member (found by seed 16, 2026-11-24).

use std::time::Duration;

use weir_tests::simulated::{Cluster, Wrong};

#[test]
fn a_member_that_is_interrupted_while_it_joins_goes_on() -> Result<(), Wrong> {
    let mut cluster = Cluster::start(1, 2, 0)?;
    cluster.add_coordinator("c3");
    // Room to ask, and none for the log.
    cluster.disk("c3").leave_room(Some(4096));
    cluster.run(Duration::from_secs(3))?;
    cluster.disk("c3").leave_room(None);
    cluster.voters_become(&["c1", "c2", "c3"])
}
