//! What a second of slot time is worth, and to whom.

use super::Tenant;
use super::curve::{STEPS, density_at};
use crate::outcome::Class;
use crate::units::Deadline;

/// What a second of slot time of a device is worth to a row that may come, in units of value; of seconds as gates count them, which is what a row took when
/// its model was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// Where what is asked of the device is as much as it can do: see [`super::Demand::price`].
    pub clears: f64,
    /// What the row would have to be worth more than to be let in at this moment: see [`super::Buffer::floor`]. [`Price::dearest`] where
    /// nothing gives way to it.
    pub floor: f64,
}

/// What is known of a row that may come, but for what it is worth.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Claim {
    pub deadline: Deadline,
    pub class: Class,
    pub tenant: Tenant,
}

impl Price {
    /// Where there is room.
    pub const NOTHING: Price = Price { clears: 0.0, floor: 0.0 };

    /// Where there is time for nothing but what must run.
    pub fn dearest() -> f64 {
        density_at(STEPS as f64)
    }

    /// What a row has to be worth at least.
    pub fn now(self) -> f64 {
        self.clears.max(self.floor)
    }
}
