//! Symphony ('23): a batch waits until one more row would not fit any more, `frontrun` = d − l(b + 1); of several whose window
//! is open the one that closes first, d − l(b), runs. Heads that keep a batch below the size of the staggered optimum,
//! (1 + 1/N)·l(b) = SLO, are dropped.

use crate::ids::TicketId;
use crate::units::{Instant, ServiceTime};

use super::super::Closed;
use super::super::pool::Pool;
use super::{Decide, Next, drop_heads, most, runnable};

#[derive(Debug)]
pub(super) struct Symphony;

impl Decide for Symphony {
    fn next(&mut self, now: Instant, pool: &mut Pool, dropped: &mut Vec<TicketId>) -> Next {
        drop_heads(now, pool, dropped, |_, model| model.steady);
        let mut open = None;
        let mut first: Option<Instant> = None;
        for (index, model, key, lane) in runnable(pool) {
            let head = lane.front().expect("lanes are not empty");
            let allowed = most(model, key, usize::MAX);
            let rows = model.fits(ServiceTime::from(head.deadline.left(now)), allowed.min(lane.len())).max(1);
            let before = |rows: usize| {
                Instant::from_nanos(head.deadline.0.as_nanos().saturating_sub(model.takes(rows).as_nanos()))
            };
            let (full, frontrun, latest) = (rows == allowed, before(rows + 1), before(rows));
            if !full && frontrun > now {
                first = Some(first.map_or(frontrun, |at| at.min(frontrun)));
            } else {
                let closed = if full { Closed::Full } else { Closed::Deadline };
                let candidate = ((latest, head.ticket), index, key, rows, closed);
                if open.is_none_or(|best: ((Instant, TicketId), _, _, _, _)| candidate.0 < best.0) {
                    open = Some(candidate);
                }
            }
        }
        match (open, first) {
            (Some((_, model, lane, rows, closed)), _) => Next::Run { model, lane, rows, closed },
            (None, Some(at)) => Next::Wait(at),
            (None, None) => Next::Nothing,
        }
    }
}
