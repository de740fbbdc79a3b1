//! Triage: what is worth least goes dark first.
//!
//! When more is asked of a device than it can do before the deadlines, some deeper stages of cascades will not run. Which ones
//! is decided by one measure, the value of a row for the time it takes of a slot (its density, value a second): a fractional
//! knapsack, where greed by density is optimal but for one row (Dantzig 1957). [`Buffer`] is the law of one device: what is
//! denser pushes out what is least dense. [`Demand`] tells gates upstream the price, [`Market`] what is asked elsewhere. Models and queries are not known here, only values, costs and deadlines.

mod bid;
mod buffer;
mod curve;
mod demand;
mod market;
mod method;
mod price;

pub use bid::{Bid, Tenant};
pub use buffer::{Buffer, Offer, Stake};
pub(crate) use curve::STEPS;
pub use curve::{Asked, Curve, Looks, STEP, step_of};
pub use demand::{Demand, Others, faded};
pub use market::{ByModel, Market};
pub use method::{BadMethod, Method, WholeStage, load};
pub use price::{Claim, Price};
