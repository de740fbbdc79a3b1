//! In order of arrival: at once, or when a preferred size is reached or the oldest has waited long enough (Triton).

use std::time::Duration;

use crate::ids::TicketId;
use crate::units::Instant;

use super::super::Closed;
use super::super::pool::{Order, Pool};
use super::{Decide, Next, Ripe, closed, most, runnable};

#[derive(Debug)]
pub(super) struct Fixed {
    pub size: u32,
    pub timeout: Duration,
}

impl Decide for Fixed {
    fn order(&self) -> Order {
        Order::Arrival
    }

    fn drops_late(&self) -> bool {
        false
    }

    fn next(&mut self, now: Instant, pool: &mut Pool, _dropped: &mut Vec<TicketId>) -> Next {
        let mut ripe = Ripe::default();
        for (index, model, key, lane) in runnable(pool) {
            let head = lane.front().expect("lanes are not empty");
            let rows = most(model, key, lane.len());
            let ripens = if rows >= (self.size as usize).min(most(model, key, usize::MAX)) {
                head.since
            } else {
                head.since + self.timeout
            };
            if ripens > now {
                ripe.later(ripens);
                continue;
            }
            let why = if rows < self.size as usize && !self.timeout.is_zero() && !key.alone {
                Closed::Timer
            } else if !self.timeout.is_zero() && !key.alone && rows < model.max_batch as usize {
                Closed::Target
            } else {
                closed(model, key, rows, rows)
            };
            ripe.offer((head.key, head.ticket), Next::Run { model: index, lane: key, rows, closed: why });
        }
        ripe.next()
    }
}
