//! What a second of slot time is worth.

/// What a second of slot time of a device is worth to a row that is due by a deadline, in units of value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// Where what is asked of the device is as much as it can do: see [`super::Demand::price`].
    pub clears: f64,
    /// What the row would have to be worth more than to be let in at this moment: see [`super::Buffer::floor`].
    pub floor: f64,
}

impl Price {
    /// Where there is room.
    pub const NOTHING: Price = Price { clears: 0.0, floor: 0.0 };

    /// What a row has to be worth at least.
    pub fn now(self) -> f64 {
        self.clears.max(self.floor)
    }
}
