//! The one way in which each query ends, named so that the caller's next step is in the variant.

/// Why a query did not run. Safe to retry elsewhere or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejection {
    /// The estimated finish is after the deadline.
    TooLate,
    /// A bounded queue or buffer is full.
    QueueFull,
    /// No replica of a stage is ready.
    NoReplica,
    /// The node drains or stops.
    Draining,
    /// No endpoint of this name is known here.
    UnknownEndpoint,
    /// Inputs do not match the signature; retrying as it is never helps.
    BadInput,
    /// The caller's capability does not cover this.
    Forbidden,
    /// What others ask is worth more for the time it takes.
    Outbid,
}

/// What became of a query; exactly one per query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A result, in time or not.
    Answered,
    /// It did not run: safe to retry.
    Rejected(Rejection),
    /// The deadline passed first.
    Expired,
    /// It ran and failed.
    Failed,
    /// The connection broke; it may have run.
    Unknown,
}

impl Rejection {
    /// The word in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Rejection::TooLate => "too_late",
            Rejection::QueueFull => "queue_full",
            Rejection::NoReplica => "no_replica",
            Rejection::Draining => "draining",
            Rejection::UnknownEndpoint => "unknown_endpoint",
            Rejection::BadInput => "bad_input",
            Rejection::Forbidden => "forbidden",
            Rejection::Outbid => "outbid",
        }
    }

    /// Why, and what to do about it, in a sentence.
    pub const fn explanation(self) -> &'static str {
        match self {
            Rejection::TooLate => {
                "it would not be done before its deadline; ask for less, allow more time, or add replicas"
            }
            Rejection::QueueFull => "too much waits already; ask again later",
            Rejection::NoReplica => "no replica of a stage is ready; see `weir status`",
            Rejection::Draining => "this node is draining; ask another",
            Rejection::UnknownEndpoint => "endpoint not found",
            Rejection::BadInput => "the inputs do not fit",
            Rejection::Outbid => "others are worth more for the time it would take; ask again later",
            Rejection::Forbidden => "this token does not cover the endpoint",
        }
    }
}

impl Outcome {
    /// Why there is no answer, where nobody knows better; empty where there is one, or may be.
    pub const fn explanation(self) -> &'static str {
        match self {
            Outcome::Rejected(why) => why.explanation(),
            Outcome::Expired => "its deadline passed before it could run",
            Outcome::Failed => "the nodes that ran it were lost",
            Outcome::Answered | Outcome::Unknown => "",
        }
    }

    /// The word in JSON, metrics and documents.
    pub const fn word(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Rejected(_) => "rejected",
            Outcome::Expired => "expired",
            Outcome::Failed => "failed",
            Outcome::Unknown => "unknown",
        }
    }
}

/// How important a query is when not all can be served: the last is shed first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Shed last.
    Critical,
    /// What a query is unless told otherwise.
    #[default]
    Default,
    /// Shed first; runs in the gaps.
    Sheddable,
}

impl Class {
    /// All classes, most important first.
    pub const ALL: [Class; 3] = [Class::Critical, Class::Default, Class::Sheddable];

    /// The word in files and flags.
    pub const fn word(self) -> &'static str {
        match self {
            Class::Critical => "critical",
            Class::Default => "default",
            Class::Sheddable => "sheddable",
        }
    }
    /// The class named by `word`.
    pub fn parse(word: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.word() == word)
    }
}
