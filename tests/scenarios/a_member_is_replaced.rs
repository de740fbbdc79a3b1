//! A member whose disk is lost is removed and joins anew under its old name.

use std::time::Duration;

use weir_tests::simulated::{Cluster, Wrong};

#[test]
fn a_member_is_replaced() -> Result<(), Wrong> {
    for seed in 1..=3 {
        let mut cluster = Cluster::start(seed, 3, 0)?;
        // The founder too: nothing hangs on it.
        for name in ["c2", "c1", "c3"] {
            cluster.crash(name);
            cluster.wipe(name);
            cluster.remove_member(name)?;
            cluster.writes(Duration::from_secs(5))?;
            cluster.restart(name);
            cluster.voters_become(&["c1", "c2", "c3"])?;
        }
        cluster.add_coordinator("c4");
        cluster.voters_become(&["c1", "c2", "c3", "c4"])?;
    }
    Ok(())
}
