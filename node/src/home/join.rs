//! Items of a row that run by themselves, and are joined again.

use std::time::Duration;

use weir_core::endpoint::passage::{NoRoom, Room, Taken, check_items, stacked};
use weir_core::tensor::Row;

use super::StageReply;
use super::travel::unfit;

/// The rows of a call that were flattened, and their items, numbered as they were asked. What an item is asked takes from the room of the call until the item itself has
/// ended: the first that ends badly ends its row, and the others lie at their devices still.
#[derive(Default)]
pub struct Joins {
    items: Vec<Item>,
    joins: Vec<Join>,
}

/// One of the items that a row was flattened into, by the number of its join.
struct Item {
    join: usize,
    position: usize,
    /// Until it has ended.
    taken: Taken,
}

/// What becomes of the items of one row at one stage.
struct Join {
    slot: usize,
    outputs: Vec<Option<Row>>,
    /// Of them.
    bytes: usize,
    /// What items are asked that have not ended.
    out: Taken,
    queue: Duration,
    execute: Duration,
    /// All are there, or one will never be.
    over: bool,
}

impl Joins {
    /// A row is to run as these items, which were taken from the room of its call: the number of the first.
    pub fn begin(&mut self, slot: usize, items: &[Row]) -> usize {
        let (first, join) = (self.items.len(), self.joins.len());
        let mut out = Taken::default();
        for (position, inputs) in items.iter().enumerate() {
            let taken = Taken { items: 1, bytes: inputs.bytes() };
            out = Taken { items: out.items + taken.items, bytes: out.bytes + taken.bytes };
            self.items.push(Item { join, position, taken });
        }
        self.joins.push(Join::new(slot, items.len(), out));
        first
    }

    /// An item came back: what its row's stage as a whole has to say, once it has.
    pub fn on_reply(&mut self, number: usize, reply: StageReply, room: &mut Room) -> Option<(usize, StageReply)> {
        let item = &mut self.items[number];
        let join = &mut self.joins[item.join];
        let taken = std::mem::take(&mut item.taken);
        join.out = Taken { items: join.out.items - taken.items, bytes: join.out.bytes - taken.bytes };
        if join.over {
            room.give_back_abandoned(taken);
            return None;
        }
        room.give_back(taken);
        join.on_reply(item.position, reply, room).map(|reply| (join.slot, reply))
    }
}

impl Join {
    /// Of so many items, which are asked so much.
    fn new(slot: usize, items: usize, out: Taken) -> Join {
        let (queue, execute) = (Duration::ZERO, Duration::ZERO);
        Join { slot, outputs: vec![None; items], bytes: 0, out, queue, execute, over: false }
    }

    /// An item came back, and none has ended this: what it gave takes from the room of the call until all are there.
    fn on_reply(&mut self, position: usize, reply: StageReply, room: &mut Room) -> Option<StageReply> {
        let StageReply::Answered { outputs, queue, execute, batch } = reply else {
            self.end(room);
            return Some(reply);
        };
        let bytes = outputs.bytes();
        let fits = check_items("its outputs for the items of a row", self.bytes + bytes).map_err(NoRoom::Ever);
        if let Err(why) = fits.and_then(|()| room.take(bytes)) {
            self.end(room);
            return Some(StageReply::Failed(unfit(why)));
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
        room.abandon(self.out);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::travel::NO_ROOM;
    use weir_core::endpoint::passage::Held;
    use weir_core::tensor::Tensor;

    use super::*;

    /// One tensor of so many MiB.
    fn row(mib: u64) -> Row {
        let numbers = mib << 18;
        Row { tensors: Arc::new(vec![Tensor::f32(&[1, numbers], &vec![0.0; numbers as usize])]), row: Some(0) }
    }

    fn answered(outputs: &Row) -> StageReply {
        let (outputs, queue, execute) = (outputs.clone(), Duration::ZERO, Duration::ZERO);
        StageReply::Answered { outputs, queue, execute, batch: None }
    }

    #[test]
    fn what_a_stage_gives_for_many_items_is_bounded() {
        let outputs = row(32);
        let held = Held::new(96 << 20);
        let mut room = Room::among(&held);
        let mut joins = Joins::default();
        joins.begin(0, &vec![Row { tensors: Arc::default(), row: Some(0) }; 4096]);
        room.take_items(4096, 0).expect("there is room");
        let mut reply = |number| (joins.on_reply(number, answered(&outputs), &mut room), held.bytes() >> 20);
        assert!(matches!(reply(0), (None, 32)) && matches!(reply(1), (None, 64)));
        let (refused, left) = reply(2);
        assert!(
            matches!(refused, Some((0, StageReply::Failed(why))) if why.contains("take 96 MiB; 64 MiB are the most"))
        );
        assert_eq!(left, 0, "nothing of it is kept");
        assert!(matches!(reply(3), (None, 0)), "it is over");
    }

    #[test]
    fn what_has_no_room_beside_other_calls_ends_and_is_not_asked_elsewhere() {
        let held = Held::new(16 << 20);
        let (mut room, mut other) = (Room::among(&held), Room::among(&held));
        other.take(15 << 20).expect("there is room");
        let mut joins = Joins::default();
        joins.begin(3, &vec![Row { tensors: Arc::default(), row: Some(0) }; 2]);
        room.take_items(2, 0).expect("there is room");
        assert!(
            matches!(joins.on_reply(0, answered(&row(8)), &mut room), Some((3, StageReply::Failed(why))) if why == NO_ROOM)
        );
        assert_eq!(held.bytes(), 15 << 20, "nothing of it is kept");
    }

    #[test]
    fn an_item_takes_its_room_until_it_has_ended_itself() {
        let items = vec![row(1); 4];
        let held = Held::new(96 << 20);
        let mut room = Room::among(&held);
        let mut joins = Joins::default();
        for slot in [7, 8] {
            room.take_items(4, 4 << 20).expect("there is room");
            assert_eq!(joins.begin(slot, &items), 4 * (slot - 7), "numbers go on");
        }
        let mut reply = |number, reply| (joins.on_reply(number, reply, &mut room), held.bytes() >> 20);
        let nothing = row(0);
        assert!(matches!(reply(0, answered(&nothing)), (None, 7)));
        assert!(
            matches!(reply(2, StageReply::Lost), (Some((7, StageReply::Lost)), 6)),
            "two lie at their device still"
        );
        assert!(matches!(reply(1, StageReply::Expired), (None, 5)));
        assert!(matches!(reply(3, answered(&nothing)), (None, 4)), "what it gives is nothing to anybody");
        for (number, left) in [(4, 3), (6, 2), (5, 1)] {
            assert!(matches!(reply(number, answered(&nothing)), (None, now) if now == left));
        }
        assert!(matches!(reply(7, answered(&nothing)), (Some((8, StageReply::Answered { .. })), 0)));
    }
}
