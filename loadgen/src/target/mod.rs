//! What is measured: something that answers query number `n` of a data set.

pub mod weir;

use std::time::Duration;

use futures::future::LocalBoxFuture;
use weir_core::outcome::Outcome;

/// What became of one query.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Reply {
    pub outcome: Outcome,
    /// Arg-max of the label output.
    pub label: Option<i64>,
    /// Stage that answered; empty where the target has none.
    pub stage: String,
    pub degraded: bool,
    /// Why it was not answered.
    pub message: String,
}

/// A server under load.
pub trait Target {
    /// Asks row `row` of the data with `deadline` left.
    fn ask(&self, row: usize, deadline: Duration) -> LocalBoxFuture<'static, Reply>;
}
