//! What both protocols ask of the cluster: an answer to a request, what was counted of endpoints, and which there are.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::future::join_all;
use weir_client::EndpointInfo;
use weir_core::ids::EndpointName;
use weir_core::tensor::Tensor;

use crate::callers::Caller;
use crate::infer::{self, Response, Wishes};
use crate::refusal::{Kind, Refusal};
use crate::statistics::{Book, Counted};

/// The protocol's extensions that there are.
pub const EXTENSIONS: [&str; 4] = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"];

/// What is told of a request in the log: its own id, what it is part of (W3C's trace context), and since when it is here.
pub struct Marks<'a> {
    /// The caller's word for it.
    pub id: Option<&'a str>,
    /// The trace that it belongs to.
    pub traceparent: Option<&'a str>,
    /// When it came: its deadline counts from then, not from when it was read.
    pub arrived: Instant,
}

/// Asks, and puts the answers together.
pub async fn answer(
    caller: &Caller,
    (endpoint, info): (&EndpointName, &EndpointInfo),
    (inputs, outputs): (Vec<(String, Tensor)>, Vec<String>),
    mut wishes: Wishes,
    marks: Marks<'_>,
) -> Result<Response, Refusal> {
    let left = |deadline: Duration| deadline.saturating_sub(marks.arrived.elapsed()).max(Duration::from_micros(1));
    wishes.deadline = wishes.deadline.map(left);
    let request = infer::request(endpoint.clone(), info, inputs, outputs, wishes)?;
    let whole = request.whole;
    let answers = caller.client.predict(request).await?;
    if let Some(first) = answers.first() {
        // Who it is and how it ended; never what was asked.
        let (query, outcome, us) = (first.id, first.outcome.word(), marks.arrived.elapsed().as_micros() as u64);
        let (rows, request, traceparent) = (answers.len(), marks.id, marks.traceparent);
        tracing::debug!(%endpoint, %query, rows, request, traceparent, outcome, us, "answered");
    }
    infer::response(answers, whole)
}

/// What all nodes have counted of an endpoint that this caller may ask: else a stranger's names were kept.
pub async fn statistics(caller: &Arc<Caller>, book: &Book, endpoint: &EndpointName) -> Result<Counted, Refusal> {
    caller.info(endpoint).await?;
    Ok(book.read(SystemTime::now(), endpoint, caller.client.statistics(endpoint.clone()).await?))
}

/// The same of all of them; one that this caller may not ask is not told of.
pub async fn all_statistics(caller: &Arc<Caller>, book: &Book) -> Result<Vec<(EndpointName, Counted)>, Refusal> {
    let of = async |endpoint: EndpointName| {
        caller.info(&endpoint).await.ok()?;
        let told = statistics(caller, book, &endpoint).await;
        Some(told.map(|told| (endpoint, told)))
    };
    join_all(caller.client.endpoints().await?.into_iter().map(of)).await.into_iter().flatten().collect()
}

/// An endpoint, its state in the protocol's words, and why it is so.
pub type Listed = (EndpointName, &'static str, String);

/// Every endpoint that a caller may ask; those alone that are ready where only they are wanted.
pub async fn repository(caller: &Arc<Caller>, only_ready: bool) -> Result<Vec<Listed>, Refusal> {
    let of = async |endpoint: EndpointName| match caller.ask(&endpoint).await {
        Ok(info) => {
            let state = if info.unready.is_none() { "READY" } else { "UNAVAILABLE" };
            Some((endpoint, state, info.unready.clone().unwrap_or_default()))
        }
        Err(refusal) if refusal.kind == Kind::NotFound => None,
        Err(refusal) => Some((endpoint, "UNKNOWN", refusal.message)),
    };
    let all = join_all(caller.client.endpoints().await?.into_iter().map(of)).await;
    Ok(all.into_iter().flatten().filter(|(_, state, _)| *state == "READY" || !only_ready).collect())
}
