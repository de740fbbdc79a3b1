//! Clockwork (OSDI'20): refuse on arrival what will be late; run the batch whose latest start comes first, of a fixed list
//! of sizes, the largest that is in time.

use crate::ids::TicketId;
use crate::units::{Instant, ServiceTime};

use super::super::pool::Pool;
use super::{Decide, Next, closed, most, runnable};

#[derive(Debug)]
pub(super) struct Clockwork;

impl Decide for Clockwork {
    fn admits_by_estimate(&self) -> bool {
        true
    }

    fn next(&mut self, now: Instant, pool: &mut Pool, _dropped: &mut Vec<TicketId>) -> Next {
        let pressing = runnable(pool)
            .map(|(index, model, key, lane)| {
                let head = lane.front().expect("lanes are not empty");
                let fits = model.fits(ServiceTime::from(head.deadline.left(now)), most(model, key, lane.len())).max(1);
                // Compiled sizes: powers of two, and the largest.
                let rows = if fits == model.max_batch as usize { fits } else { 1 << fits.ilog2() };
                let latest = head.deadline.0.as_nanos().saturating_sub(model.takes(rows).as_nanos());
                ((latest, head.ticket), index, model, key, lane.len(), rows)
            })
            .min_by_key(|(priority, ..)| *priority);
        let Some((_, index, model, lane, len, rows)) = pressing else { return Next::Nothing };
        Next::Run { model: index, lane, rows, closed: closed(model, lane, len, rows) }
    }
}
