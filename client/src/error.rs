//! What keeps a call from having an outcome at all, named by who must act.

use weir_core::ids::BadName;

/// A call that could not be made. A prediction that was made and went wrong is an [`crate::Answer`] with its outcome, not this.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ClientError {
    #[error(
        "no coordinator of {tried} can be reached ({last}); start one, or name others in --coordinators or WEIR_COORDINATORS"
    )]
    Unreachable { tried: String, last: String },
    #[error("not let in: {0}")]
    Refused(String),
    #[error("{0}")]
    NotFound(String),
    #[error("no node answers: {0}")]
    NoNode(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Invalid(String),
    #[error("timed out waiting for {0}")]
    TimedOut(String),
    #[error("the server answered what this version does not understand: {0}; use a client of the cluster's version")]
    BadAnswer(String),
    #[error("{0}")]
    BadName(#[from] BadName),
    #[error("the client was closed")]
    Closed,
}
