//! Nexus (SOSP'19): heads are dropped early until a batch of the planned size, l(B)·2 ≤ SLO, is in time.

use crate::ids::TicketId;
use crate::units::{Instant, ServiceTime};

use super::super::pool::{Model, Pool};
use super::{Decide, Next, closed, drop_heads, first, most};

#[derive(Debug)]
pub(super) struct Nexus;

impl Nexus {
    /// The largest batch that can wait for another of its size and still be in time.
    fn planned(model: &Model) -> usize {
        let span = model.rate.span();
        let half = if span.is_finite() { ServiceTime::from_nanos((span / 2.0) as u64) } else { ServiceTime::ZERO };
        model.fits(half, model.max_batch as usize).max(1)
    }
}

impl Decide for Nexus {
    fn next(&mut self, now: Instant, pool: &mut Pool, dropped: &mut Vec<TicketId>) -> Next {
        drop_heads(now, pool, dropped, |_, model| Nexus::planned(model));
        let Some((index, model, lane, waiting)) = first(pool) else { return Next::Nothing };
        let rows = most(model, lane, waiting.len()).min(Nexus::planned(model));
        Next::Run { model: index, lane, rows, closed: closed(model, lane, waiting.len(), rows) }
    }
}
