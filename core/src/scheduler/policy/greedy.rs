//! Earliest deadline first with the largest batch that its head allows, dropping only what is lost already.

use crate::ids::TicketId;
use crate::units::{Instant, ServiceTime};

use super::super::pool::Pool;
use super::{Decide, Next, closed, first, most};

#[derive(Debug)]
pub(super) struct Greedy;

impl Decide for Greedy {
    fn next(&mut self, now: Instant, pool: &mut Pool, _dropped: &mut Vec<TicketId>) -> Next {
        let Some((index, model, lane, waiting)) = first(pool) else { return Next::Nothing };
        let head = waiting.front().expect("lanes are not empty");
        let rows = model.fits(ServiceTime::from(head.deadline.left(now)), most(model, lane, waiting.len())).max(1);
        Next::Run { model: index, lane, rows, closed: closed(model, lane, waiting.len(), rows) }
    }
}
