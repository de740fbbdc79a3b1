//! Symphony ('23): a batch waits until one more row would not fit any more, `frontrun` = d − l(b + 1); of several whose window
//! is open the one that closes first, d − l(b), runs. Heads that keep a batch below the size of the staggered optimum,
//! (1 + 1/N)·l(b) = SLO, are dropped.

use crate::ids::TicketId;
use crate::units::{Instant, ServiceTime};

use super::super::Closed;
use super::super::pool::Pool;
use super::{Decide, Next, Ripe, drop_heads, most, runnable};

#[derive(Debug)]
pub(super) struct Symphony;

impl Decide for Symphony {
    fn next(&mut self, now: Instant, pool: &mut Pool, dropped: &mut Vec<TicketId>) -> Next {
        drop_heads(now, pool, dropped, |_, model| model.steady);
        let mut ripe = Ripe::default();
        for (index, model, key, lane) in runnable(pool) {
            let head = lane.front().expect("lanes are not empty");
            let allowed = most(model, key, usize::MAX);
            let rows = model.fits(ServiceTime::from(head.deadline.left(now)), allowed.min(lane.len())).max(1);
            let before = |rows: usize| {
                Instant::from_nanos(head.deadline.0.as_nanos().saturating_sub(model.takes(rows).as_nanos()))
            };
            let (full, frontrun, latest) = (rows == allowed, before(rows + 1), before(rows));
            if !full && frontrun > now {
                ripe.later(frontrun);
            } else {
                let closed = if full { Closed::Full } else { Closed::Deadline };
                ripe.offer((latest, head.ticket), Next::Run { model: index, lane: key, rows, closed });
            }
        }
        ripe.next()
    }
}
