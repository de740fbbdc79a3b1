//! Items of a row that run by themselves, and are joined again.

use std::time::Duration;

use weir_core::endpoint::passage::{NoRoom, Room, Taken, check_items, stacked};
use weir_core::outcome::Rejection;
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
    /// Of them.
    bytes: usize,
    queue: Duration,
    execute: Duration,
    /// All are there, or one will never be.
    over: bool,
}

impl Join {
    /// Of so many items.
    pub fn new(slot: usize, items: usize) -> Join {
        let (queue, execute) = (Duration::ZERO, Duration::ZERO);
        Join { slot, outputs: vec![None; items], bytes: 0, queue, execute, over: false }
    }

    /// An item came back: what the stage as a whole has to say, once it has. What items gave takes from the room of the call until then.
    pub fn on_reply(&mut self, position: usize, reply: StageReply, room: &mut Room) -> Option<StageReply> {
        if self.over {
            return None;
        }
        let StageReply::Answered { outputs, queue, execute, batch } = reply else {
            self.end(room);
            return Some(reply);
        };
        let bytes = outputs.bytes();
        let fits = check_items("its outputs for the items of a row", self.bytes + bytes).map_err(NoRoom::Ever);
        if let Err(why) = fits.and_then(|()| room.take(bytes)) {
            self.end(room);
            return Some(match why {
                NoRoom::Ever(why) => StageReply::Failed(why),
                NoRoom::Now => StageReply::Rejected(Rejection::QueueFull),
            });
        }
        self.bytes += bytes;
        self.outputs[position] = Some(outputs);
        self.queue = self.queue.max(queue);
        self.execute = self.execute.max(execute);
        if self.outputs.iter().any(Option::is_none) {
            return None;
        }
        let rows: Vec<Row> = self.outputs.drain(..).flatten().collect();
        self.end(room);
        Some(match stacked(&rows) {
            Some(outputs) => StageReply::Answered { outputs, queue: self.queue, execute: self.execute, batch },
            None => StageReply::Failed("it gives outputs of different shapes for items of one row".into()),
        })
    }

    /// Nothing more is waited for, and nothing of it kept.
    fn end(&mut self, room: &mut Room) {
        self.over = true;
        self.outputs.clear();
        room.give_back(Taken { items: 0, bytes: std::mem::take(&mut self.bytes) });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_core::endpoint::passage::Held;
    use weir_core::tensor::Tensor;

    use super::*;

    #[test]
    fn what_a_stage_gives_for_many_items_is_bounded() {
        // One tensor of 32 MiB, given for each item.
        let outputs = Row { tensors: Arc::new(vec![Tensor::f32(&[1, 8 << 20], &vec![0.0; 8 << 20])]), row: Some(0) };
        let held = Held::new(96 << 20);
        let mut room = Room::among(&held);
        let mut join = Join::new(0, 4096);
        let mut reply = |position| {
            let answered = StageReply::Answered {
                outputs: outputs.clone(),
                queue: Duration::ZERO,
                execute: Duration::ZERO,
                batch: None,
            };
            (join.on_reply(position, answered, &mut room), held.bytes() >> 20)
        };
        assert!(matches!(reply(0), (None, 32)) && matches!(reply(1), (None, 64)));
        let (refused, left) = reply(2);
        assert!(matches!(refused, Some(StageReply::Failed(why)) if why.contains("take 96 MiB; 64 MiB are the most")));
        assert_eq!(left, 0, "nothing of it is kept");
        assert!(matches!(reply(3), (None, 0)), "it is over");
    }
}
