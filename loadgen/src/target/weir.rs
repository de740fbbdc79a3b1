//! A weir cluster, over several clients with connections of their own.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use weir_client::{Answer, LocalClient, Request};
use weir_core::endpoint::gate::label;
use weir_core::ids::EndpointName;
use weir_core::outcome::Outcome;
use weir_core::tensor::Tensor;

use super::{Reply, Target};
use crate::npy;

/// An endpoint of a cluster.
pub struct Weir {
    clients: Vec<LocalClient>,
    turn: Cell<usize>,
    endpoint: EndpointName,
    input: String,
    label_output: Option<String>,
    data: Rc<Tensor>,
}

impl Weir {
    /// Asks `endpoint` for rows of `data`, which go into its only input, named `input`.
    pub fn new(
        clients: Vec<LocalClient>,
        endpoint: EndpointName,
        input: String,
        label_output: Option<String>,
        data: Tensor,
    ) -> Weir {
        assert!(!clients.is_empty(), "somebody must ask");
        Weir { clients, turn: Cell::new(0), endpoint, input, label_output, data: Rc::new(data) }
    }
}

impl Target for Weir {
    fn ask(&self, row: usize, deadline: Duration) -> LocalBoxFuture<'static, Reply> {
        let turn = self.turn.get();
        self.turn.set(turn + 1);
        let client = self.clients[turn % self.clients.len()].clone();
        let tensor = npy::row(&self.data, row).expect("rows are drawn from the data");
        let label_output = self.label_output.clone();
        let request = Request {
            endpoint: self.endpoint.clone(),
            inputs: vec![(self.input.clone(), tensor)],
            whole: false,
            deadline: Some(deadline),
            class: None,
            outputs: label_output.iter().cloned().collect(),
        };
        Box::pin(async move { reply(client.predict(&request).await, label_output.as_deref()) })
    }
}

fn reply(answers: Vec<Answer>, label_output: Option<&str>) -> Reply {
    let Some(answer) = answers.into_iter().next() else {
        return Reply {
            outcome: Outcome::Failed,
            label: None,
            stage: String::new(),
            degraded: false,
            message: "no answer for the row".into(),
        };
    };
    let probabilities = answer
        .outputs
        .iter()
        .find(|(name, _)| Some(name.as_str()) == label_output)
        .and_then(|(_, tensor)| tensor.as_f32());
    Reply {
        outcome: answer.outcome,
        label: probabilities.and_then(|row| label(&row)).map(|(label, _)| label as i64),
        stage: answer.stage,
        degraded: answer.degraded,
        message: answer.message,
    }
}
