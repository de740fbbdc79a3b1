//! How a command ends when it does not end well: a sentence for people, a code for scripts.

use std::fmt;

use weir_client::ClientError;

/// A command that did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// It ran, and the answer is no. Empty where the output has said so.
    No(String),
    /// Wrong usage or a bad file.
    Usage(String),
    /// No coordinator, or nothing behind it.
    Unreachable(String),
    /// The token does not open this.
    Forbidden(String),
    /// There is no such thing.
    NotFound(String),
    /// Somebody else changed it.
    Conflict(String),
    /// It was waited for in vain.
    TimedOut(String),
    /// A prediction was rejected or expired.
    Rejected(String),
    /// Ctrl-C.
    Interrupted,
    /// Everything was said, on stdout as a result and on stderr; only the exit code is left.
    Told(u8),
}

impl Failure {
    /// The exit code, as in cli documentation.
    pub fn code(&self) -> u8 {
        match self {
            Failure::No(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unreachable(_) => 3,
            Failure::Forbidden(_) => 4,
            Failure::NotFound(_) => 5,
            Failure::Conflict(_) => 6,
            Failure::TimedOut(_) => 7,
            Failure::Rejected(_) => 8,
            Failure::Interrupted => 130,
            Failure::Told(code) => *code,
        }
    }

    /// The code as a word.
    pub fn word(&self) -> &'static str {
        match self {
            Failure::No(_) => "no",
            Failure::Usage(_) => "usage",
            Failure::Unreachable(_) => "unreachable",
            Failure::Forbidden(_) => "forbidden",
            Failure::NotFound(_) => "not_found",
            Failure::Conflict(_) => "conflict",
            Failure::TimedOut(_) => "timed_out",
            Failure::Rejected(_) => "rejected",
            Failure::Interrupted => "interrupted",
            Failure::Told(_) => "told",
        }
    }

    /// Whether everything was said already.
    pub fn is_silent(&self) -> bool {
        matches!(self, Failure::No(text) | Failure::Rejected(text) if text.is_empty())
            || matches!(self, Failure::Told(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::No(text)
            | Failure::Usage(text)
            | Failure::Unreachable(text)
            | Failure::Forbidden(text)
            | Failure::NotFound(text)
            | Failure::Conflict(text)
            | Failure::TimedOut(text)
            | Failure::Rejected(text) => f.write_str(text),
            Failure::Interrupted => f.write_str("interrupted"),
            Failure::Told(code) => write!(f, "exit code {code}"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::Unreachable { .. } | ClientError::NoNode(_) | ClientError::Closed => {
                Failure::Unreachable(text)
            }
            ClientError::Refused(_) => Failure::Forbidden(text),
            ClientError::NotFound(_) => Failure::NotFound(text),
            ClientError::Conflict(_) => Failure::Conflict(text),
            ClientError::TimedOut(_) => Failure::TimedOut(text),
            ClientError::Invalid(_) | ClientError::BadName(_) => Failure::Usage(text),
            ClientError::BadAnswer(_) => Failure::No(text),
        }
    }
}

/// An error with its causes in one sentence.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
