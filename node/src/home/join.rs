//! Items of a row that run by themselves, and are joined again.

use std::time::Duration;

use weir_core::endpoint::passage::stacked;
use weir_core::tensor::Row;

use super::StageReply;

/// One of the items that a row was flattened into, by the number of its join.
#[derive(Clone, Copy)]
pub struct Item {
    pub join: usize,
    pub position: usize,
}

/// What becomes of the items of one row at one stage.
pub struct Join {
    pub slot: usize,
    outputs: Vec<Option<Row>>,
    queue: Duration,
    execute: Duration,
    /// All are there, or one will never be.
    over: bool,
}

impl Join {
    /// Of so many items.
    pub fn new(slot: usize, items: usize) -> Join {
        let (queue, execute) = (Duration::ZERO, Duration::ZERO);
        Join { slot, outputs: vec![None; items], queue, execute, over: false }
    }

    /// An item came back: what the stage as a whole has to say, once it has.
    pub fn on_reply(&mut self, position: usize, reply: StageReply) -> Option<StageReply> {
        if self.over {
            return None;
        }
        let StageReply::Answered { outputs, queue, execute, batch } = reply else {
            self.over = true;
            return Some(reply);
        };
        self.outputs[position] = Some(outputs);
        self.queue = self.queue.max(queue);
        self.execute = self.execute.max(execute);
        if self.outputs.iter().any(Option::is_none) {
            return None;
        }
        self.over = true;
        let rows: Vec<Row> = self.outputs.drain(..).flatten().collect();
        Some(match stacked(&rows) {
            Some(outputs) => StageReply::Answered { outputs, queue: self.queue, execute: self.execute, batch },
            None => StageReply::Failed("it gives outputs of different shapes for items of one row".into()),
        })
    }
}
