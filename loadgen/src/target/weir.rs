//! A weir cluster, over several clients with connections of their own.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use weir_client::{Answer, ClientError, HELD_BACK, LocalClient, Options, Request};
use weir_core::ids::EndpointName;
use weir_core::outcome::{Outcome, Rejection};
use weir_core::tensor::Tensor;
use weir_host::Host;

use super::{Ask, Connect, Described, Reply, RowReply, Stream, Target, TargetError, classes};
use crate::run::PATIENCE;

/// How to reach a cluster.
pub struct Weir {
    /// Its coordinators, and a token.
    pub options: Options,
    /// Whether clients refuse by themselves what would be late behind their own calls, as they do by default.
    pub holds_back: bool,
}

impl Connect for Weir {
    fn name(&self) -> String {
        format!("weir://{}", self.options.coordinators.join(","))
    }

    fn describe<'a>(&'a self, endpoint: &'a str) -> LocalBoxFuture<'a, Result<Described, TargetError>> {
        Box::pin(async move {
            let endpoint = EndpointName::parse(endpoint).map_err(|bad| TargetError::Usage(bad.to_string()))?;
            let client = LocalClient::connect(Host::system(), self.options.clone()).await?;
            let info = client.describe(&endpoint).await?;
            Ok(Described { inputs: info.inputs, label_output: info.label_output, deadline: Some(info.deadline) })
        })
    }

    fn connect(
        &self,
        streams: Arc<[Stream]>,
        connections: usize,
    ) -> LocalBoxFuture<'_, Result<Rc<dyn Target>, TargetError>> {
        Box::pin(async move {
            let endpoints = streams.iter().map(|stream| EndpointName::parse(&stream.endpoint));
            let endpoints = endpoints.collect::<Result<_, _>>().map_err(|bad| TargetError::Usage(bad.to_string()))?;
            let mut clients = Vec::new();
            for _ in 0..connections.max(1) {
                let client = LocalClient::connect(Host::system(), self.options.clone()).await?;
                if !self.holds_back {
                    client.never_hold_back();
                }
                // As long as any other target is waited for: what is cut off would be missing from the tail.
                client.wait_after_deadline(PATIENCE);
                clients.push(client);
            }
            Ok(Rc::new(Cluster { clients, turn: Cell::new(0), endpoints, streams }) as Rc<dyn Target>)
        })
    }
}

impl From<ClientError> for TargetError {
    fn from(error: ClientError) -> TargetError {
        let text = error.to_string();
        match error {
            ClientError::Refused(_) => TargetError::Forbidden(text),
            ClientError::NotFound(_) => TargetError::NotFound(text),
            ClientError::BadName(_) | ClientError::Invalid(_) => TargetError::Usage(text),
            _ => TargetError::Unreachable(text),
        }
    }
}

struct Cluster {
    clients: Vec<LocalClient>,
    turn: Cell<usize>,
    endpoints: Vec<EndpointName>,
    streams: Arc<[Stream]>,
}

impl Cluster {
    /// Whose turn it is.
    fn client(&self) -> &LocalClient {
        &self.clients[self.turn.get() % self.clients.len()]
    }

    fn next_turn(&self) {
        self.turn.set(self.turn.get().wrapping_add(1));
    }
}

impl Target for Cluster {
    fn refuses(&self, deadline: Duration) -> Option<Reply> {
        if self.client().has_time_for(deadline) {
            return None;
        }
        self.next_turn();
        Some(Reply::none(Outcome::Rejected(Rejection::TooLate), HELD_BACK))
    }

    fn ask(&self, ask: Ask) -> LocalBoxFuture<'static, Reply> {
        let client = self.client().clone();
        self.next_turn();
        let stream = &self.streams[ask.stream];
        let label_output = stream.label_output.clone();
        let request = Request {
            endpoint: self.endpoints[ask.stream].clone(),
            inputs: stream.data.take(&ask.rows),
            whole: stream.data.whole(),
            deadline: Some(ask.deadline),
            class: None,
            outputs: label_output.iter().cloned().collect(),
            min_stage: None,
            max_stage: None,
            trace: false,
        };
        Box::pin(async move { reply(client.predict(&request).await, label_output.as_deref()) })
    }
}

/// One reply from an answer for each row: the worst outcome, with its message.
fn reply(answers: Vec<Answer>, label_output: Option<&str>) -> Reply {
    let worst = |answer: &&Answer| match answer.outcome {
        Outcome::Answered => 0,
        Outcome::Rejected(_) => 1,
        Outcome::Expired => 2,
        Outcome::Failed => 3,
        Outcome::Unknown => 4,
    };
    let Some(bad) = answers.iter().max_by_key(worst) else {
        return Reply::none(Outcome::Failed, "no answer for the row");
    };
    if bad.outcome != Outcome::Answered {
        return Reply::none(bad.outcome, bad.message.clone());
    }
    let label = |outputs: &[(String, Tensor)]| {
        let (_, output) = outputs.iter().find(|(name, _)| Some(name.as_str()) == label_output)?;
        classes(output, 1)[0]
    };
    Reply {
        outcome: Outcome::Answered,
        message: String::new(),
        degraded: answers.iter().any(|answer| answer.degraded),
        price: answers.iter().map(|answer| answer.price).fold(0.0, f64::max),
        expected_loss: answers.iter().map(|answer| answer.expected_loss).sum(),
        rows: answers
            .into_iter()
            .map(|answer| RowReply {
                label: label(&answer.outputs),
                stage: answer.stage,
                expected_right: answer.expected_right,
            })
            .collect(),
    }
}
