//! What a row brings to triage: what it is worth, and who asks.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::ids::EndpointName;

/// What running a row is worth, and to whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bid {
    /// What it adds to an answer that its caller has in hand: it may be pushed out by what is worth more for its time. `None`: there is no
    /// such answer, or the row has to run; then it is firm.
    pub gain: Option<f64>,
    /// What an answer is worth at all, in the same units: what is firm gives way to nothing but what is firm and worth more.
    pub worth: f64,
    /// Who asks.
    pub tenant: Tenant,
    /// A first answer that more may follow: it is not to wait until its deadline, or nothing can follow.
    pub first: bool,
}

impl Bid {
    /// Of a row that nobody has said anything of.
    pub const PLAIN: Bid = Bid { gain: None, worth: 1.0, tenant: Tenant::NOBODY, first: false };

    /// What an answer is worth where nobody has one in hand.
    pub fn firm(self) -> Option<f64> {
        self.gain.is_none().then_some(self.worth)
    }
}

/// Whoever has a share of devices to itself, as far as it asks for it: an endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tenant {
    /// Tells tenants apart on all nodes alike.
    pub id: u64,
    /// Part of each device's time that others cannot take from it; 0: none.
    pub share: f64,
}

impl Tenant {
    /// Nobody in particular.
    pub const NOBODY: Tenant = Tenant { id: 0, share: 0.0 };

    /// What its work is booked by wherever shares are kept: all who have none are nobody in particular. An endpoint may get a share, or lose it,
    /// while rows of it wait.
    pub(super) fn account(self) -> u64 {
        if self.share > 0.0 { self.id } else { Tenant::NOBODY.id }
    }

    /// An endpoint.
    pub fn of(endpoint: &EndpointName, share: f64) -> Tenant {
        let mut hasher = DefaultHasher::new();
        endpoint.hash(&mut hasher);
        Tenant { id: hasher.finish(), share }
    }
}
