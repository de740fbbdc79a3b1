//! Why a request has no answer, as HTTP and gRPC say it.

use axum::http::StatusCode;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use weir_client::{Answer, ClientError};
use weir_core::outcome::{Outcome, Rejection};

use crate::story;

/// A request that is not answered: who must act, and a sentence for them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Who must act.
    pub kind: Kind,
    /// What went wrong and what to do.
    pub message: String,
    /// Of a query that got as far as a node.
    pub query: Option<Box<Asked>>,
}

/// A query that has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// As `weir why` takes it.
    pub id: String,
    /// How it came to that, as JSON, where the caller wanted to know.
    pub trace: Option<String>,
}

/// Who must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The caller: the request is wrong.
    BadInput,
    /// The caller: it has shown no token, or none that opens anything.
    NoToken,
    /// The caller: the token does not cover this.
    Forbidden,
    /// The caller: there is nothing of that name.
    NotFound,
    /// The caller: it is too large.
    TooLarge,
    /// The caller, a little later: there is too much to do.
    Shed,
    /// The operator: nobody can answer.
    Unavailable,
    /// Nobody: its time was up.
    Late,
    /// The operator: it ran and failed.
    Failed,
    /// Nobody knows whether it ran.
    Unknown,
    /// The caller: weir does not have that.
    Unsupported,
}

/// How long a caller that was shed should wait: a burst is over or known to last by then.
pub const RETRY_AFTER_MS: u64 = 100;

impl Refusal {
    /// A refusal.
    pub fn new(kind: Kind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into(), query: None }
    }

    /// The request is wrong.
    pub fn bad(message: impl Into<String>) -> Refusal {
        Refusal::new(Kind::BadInput, message)
    }

    /// What became of a row that has no answer; row `number` of `rows`.
    pub fn of(answer: &Answer, number: usize, rows: usize) -> Refusal {
        let kind = match answer.outcome {
            Outcome::Rejected(why) => match why {
                Rejection::TooLate | Rejection::QueueFull | Rejection::Outbid => Kind::Shed,
                Rejection::NoReplica | Rejection::Draining => Kind::Unavailable,
                Rejection::UnknownEndpoint => Kind::NotFound,
                Rejection::BadInput => Kind::BadInput,
                Rejection::Forbidden => Kind::Forbidden,
            },
            Outcome::Expired => Kind::Late,
            Outcome::Unknown => Kind::Unknown,
            Outcome::Failed | Outcome::Answered => Kind::Failed,
        };
        let message = match rows {
            0 | 1 => answer.message.clone(),
            _ => format!("row {number} of {rows}: {}", answer.message),
        };
        let trace = answer.trace.as_deref().map(|told| story::as_json(told).to_string());
        Refusal { kind, message, query: Some(Box::new(Asked { id: answer.id.to_string(), trace })) }
    }

    /// The status of HTTP.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            Kind::BadInput => StatusCode::BAD_REQUEST,
            Kind::NoToken => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Shed => StatusCode::TOO_MANY_REQUESTS,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Late => StatusCode::GATEWAY_TIMEOUT,
            Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Unknown => StatusCode::BAD_GATEWAY,
            Kind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// The status of gRPC; one that was shed is told when to come again.
    pub fn grpc(&self) -> Status {
        let code = match self.kind {
            Kind::BadInput => Code::InvalidArgument,
            Kind::NoToken => Code::Unauthenticated,
            Kind::Forbidden => Code::PermissionDenied,
            Kind::NotFound => Code::NotFound,
            Kind::TooLarge => Code::OutOfRange,
            Kind::Shed => Code::ResourceExhausted,
            Kind::Unavailable => Code::Unavailable,
            Kind::Late => Code::DeadlineExceeded,
            Kind::Failed => Code::Internal,
            Kind::Unknown => Code::Unknown,
            Kind::Unsupported => Code::Unimplemented,
        };
        let mut status = Status::new(code, self.message.clone());
        let metadata = status.metadata_mut();
        if self.kind == Kind::Shed {
            metadata.insert("retry-after-ms", RETRY_AFTER_MS.into());
        }
        let query = self.query.as_deref();
        let told =
            [("weir-query-id", query.map(|query| &query.id)), ("weir-trace", query.and_then(|q| q.trace.as_ref()))];
        for (name, text) in told {
            // Names are ASCII, and so are stories but for messages.
            if let Some(Ok(value)) = text.map(MetadataValue::try_from) {
                metadata.insert(name, value);
            }
        }
        status
    }
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Refusal {
        let kind = match error {
            ClientError::NotFound(_) => Kind::NotFound,
            ClientError::Refused(_) => Kind::NoToken,
            ClientError::BadName(_) | ClientError::Invalid(_) => Kind::BadInput,
            _ => Kind::Unavailable,
        };
        Refusal::new(kind, error.to_string())
    }
}
