//! Outcomes, classes and ids of queries.

use weir_core::history::{Batch, Calls, Statistics};
use weir_core::ids::QueryId;
use weir_core::outcome::{Class, Outcome, Rejection};
use weir_core::scheduler::Closed;

use super::BadMessage;
use super::control::{read_u128, write_u128};
use crate::predict_capnp::{self as wire, OutcomeCode, calls, endpoint_statistics};

/// The wire's word for a class.
pub fn class_to_wire(class: Class) -> wire::Class {
    match class {
        Class::Critical => wire::Class::Critical,
        Class::Default => wire::Class::Default,
        Class::Sheddable => wire::Class::Sheddable,
    }
}

/// The class that the wire names.
pub fn class_from_wire(class: wire::Class) -> Class {
    match class {
        wire::Class::Critical => Class::Critical,
        wire::Class::Default => Class::Default,
        wire::Class::Sheddable => Class::Sheddable,
    }
}

/// An outcome's code, and why where it is a rejection (else the first reason, which is not looked at).
pub fn outcome_to_wire(outcome: Outcome) -> (OutcomeCode, wire::Rejection) {
    match outcome {
        Outcome::Answered => (OutcomeCode::Answered, wire::Rejection::TooLate),
        Outcome::Rejected(why) => (OutcomeCode::Rejected, rejection_to_wire(why)),
        Outcome::Expired => (OutcomeCode::Expired, wire::Rejection::TooLate),
        Outcome::Failed => (OutcomeCode::Failed, wire::Rejection::TooLate),
        Outcome::Unknown => (OutcomeCode::Unknown, wire::Rejection::TooLate),
    }
}

/// The outcome that a code and a reason tell. A code that this version does not know is unknown: it may have run.
pub fn outcome_from_wire(
    code: Result<OutcomeCode, capnp::NotInSchema>,
    why: Result<wire::Rejection, capnp::NotInSchema>,
) -> Outcome {
    match code {
        Ok(OutcomeCode::Answered) => Outcome::Answered,
        // A newer reason is still a rejection: it did not run.
        Ok(OutcomeCode::Rejected) => Outcome::Rejected(why.map_or(Rejection::QueueFull, rejection_from_wire)),
        Ok(OutcomeCode::Expired) => Outcome::Expired,
        Ok(OutcomeCode::Failed) => Outcome::Failed,
        Ok(OutcomeCode::Unknown) | Err(_) => Outcome::Unknown,
    }
}

/// The wire's word for why a query did not run.
pub fn rejection_to_wire(why: Rejection) -> wire::Rejection {
    match why {
        Rejection::TooLate => wire::Rejection::TooLate,
        Rejection::QueueFull => wire::Rejection::QueueFull,
        Rejection::NoReplica => wire::Rejection::NoReplica,
        Rejection::Draining => wire::Rejection::Draining,
        Rejection::UnknownEndpoint => wire::Rejection::UnknownEndpoint,
        Rejection::BadInput => wire::Rejection::BadInput,
        Rejection::Forbidden => wire::Rejection::Forbidden,
        Rejection::Outbid => wire::Rejection::Outbid,
    }
}

/// Why a query did not run.
pub fn rejection_from_wire(why: wire::Rejection) -> Rejection {
    match why {
        wire::Rejection::TooLate => Rejection::TooLate,
        wire::Rejection::QueueFull => Rejection::QueueFull,
        wire::Rejection::NoReplica => Rejection::NoReplica,
        wire::Rejection::Draining => Rejection::Draining,
        wire::Rejection::UnknownEndpoint => Rejection::UnknownEndpoint,
        wire::Rejection::BadInput => Rejection::BadInput,
        wire::Rejection::Forbidden => Rejection::Forbidden,
        wire::Rejection::Outbid => Rejection::Outbid,
    }
}

/// Rows of a batch and why it closed; nothing where that is not known.
pub fn batch_to_wire(batch: Option<Batch>) -> (u32, wire::Closed) {
    batch.map_or((0, wire::Closed::Untold), |batch| {
        let closed = match batch.closed {
            Closed::Full => wire::Closed::Full,
            Closed::Target => wire::Closed::Target,
            Closed::Deadline => wire::Closed::Deadline,
            Closed::Idle => wire::Closed::Idle,
            Closed::Timer => wire::Closed::Timer,
        };
        (batch.rows, closed)
    })
}

/// The batch that rows and a reason tell. A peer that tells none, or a reason that this version does not know, tells no batch: it
/// decides nothing.
pub fn batch_from_wire(rows: u32, closed: Result<wire::Closed, capnp::NotInSchema>) -> Option<Batch> {
    let closed = match closed {
        Ok(wire::Closed::Full) => Closed::Full,
        Ok(wire::Closed::Target) => Closed::Target,
        Ok(wire::Closed::Deadline) => Closed::Deadline,
        Ok(wire::Closed::Idle) => Closed::Idle,
        Ok(wire::Closed::Timer) => Closed::Timer,
        Ok(wire::Closed::Untold) | Err(_) => return None,
    };
    (rows > 0).then_some(Batch { rows, closed })
}

/// A query id from its halves.
pub fn query_id(high: u64, low: u64) -> QueryId {
    QueryId(u128::from(high) << 64 | u128::from(low))
}

/// The halves of a 128-bit number, high first.
pub fn halves(number: u128) -> (u64, u64) {
    ((number >> 64) as u64, number as u64)
}

/// Writes what a node counted of an endpoint since it started, as the run of it that drew `incarnation`.
pub fn write_statistics(mut b: endpoint_statistics::Builder<'_>, incarnation: u128, told: &Statistics) {
    fn calls(mut b: calls::Builder<'_>, calls: &Calls) {
        b.set_count(calls.count);
        b.set_us(u64::try_from(calls.time.as_micros()).unwrap_or(u64::MAX));
    }
    write_u128(b.reborrow().init_incarnation(), incarnation);
    calls(b.reborrow().init_success(), &told.success);
    calls(b.reborrow().init_fail(), &told.fail);
    calls(b.reborrow().init_queue(), &told.queue);
    calls(b.reborrow().init_compute(), &told.compute);
    b.set_rows(told.rows);
    b.set_batches(told.batches);
    b.set_last_ago_us(told.last.map_or(u64::MAX, span_to_us));
}

/// Reads them.
pub fn read_statistics(r: endpoint_statistics::Reader<'_>) -> Result<(u128, Statistics), BadMessage> {
    fn calls(r: calls::Reader<'_>) -> Calls {
        Calls { count: r.get_count(), time: std::time::Duration::from_micros(r.get_us()) }
    }
    let statistics = Statistics {
        success: calls(r.get_success()?),
        fail: calls(r.get_fail()?),
        queue: calls(r.get_queue()?),
        compute: calls(r.get_compute()?),
        rows: r.get_rows(),
        batches: Some(r.get_batches()).filter(|batches| batches.is_finite() && *batches >= 0.0).unwrap_or(0.0),
        last: match r.get_last_ago_us() {
            u64::MAX => None,
            us => Some(span_from_us(us)?),
        },
    };
    Ok((read_u128(r.get_incarnation()?), statistics))
}

/// Milliseconds beyond what any deadline can be: 100 years. What is longer is a mistake of the sender.
pub const LONGEST_US: u64 = 3_155_760_000_000_000;

/// A span from microseconds on the wire.
pub fn span_from_us(us: u64) -> Result<std::time::Duration, BadMessage> {
    if us > LONGEST_US {
        return Err(BadMessage::new(format!("{us} microseconds are more than a hundred years")));
    }
    Ok(std::time::Duration::from_micros(us))
}

/// A span as microseconds on the wire.
pub fn span_to_us(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX).min(LONGEST_US)
}
