//! How often queries come, on average.

/// Queries a second: above 0 and at most one a nanosecond, which is what an instant can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rate(f64);

/// A number that is no rate.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{0} is no rate; give queries a second, above 0 and at most {max}", max = Rate::PER_SECOND_MAX)]
pub struct BadRate(pub f64);

impl Rate {
    /// The highest rate there is.
    pub const PER_SECOND_MAX: f64 = 1e9;

    /// So many queries a second.
    pub fn per_second(number: f64) -> Result<Rate, BadRate> {
        if number > 0.0 && number <= Rate::PER_SECOND_MAX { Ok(Rate(number)) } else { Err(BadRate(number)) }
    }

    /// In queries a second.
    pub const fn as_per_second(self) -> f64 {
        self.0
    }
}
