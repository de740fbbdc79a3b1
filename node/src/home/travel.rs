//! The rows of a call on their way: what has come, what is asked next.

use weir_core::endpoint::passage::{NoRoom, Room, Taken, empty, holding, looked, signal};
use weir_core::endpoint::{Asks, Ladder, Passage};
use weir_core::history::Visit;
use weir_core::ids::NodeName;
use weir_core::outcome::Rejection;
use weir_core::router::{Group, StageEnd, Target};
use weir_core::tensor::Row;
use weir_core::triage::Method;
use weir_core::units::Instant;

use super::{Call, Gathered, HomeReply, Travel};
use crate::actors::device::{StageReply, Submission};

/// Of what a stage gave.
pub(super) const NO_ROOM: &str =
    "what it gives has no room at this node beside what other calls have between their stages; ask again";

/// Why what a stage gave may not lie here.
pub(super) fn unfit(why: NoRoom) -> String {
    match why {
        NoRoom::Ever(why) => why,
        NoRoom::Now => NO_ROOM.into(),
    }
}

impl Call {
    /// Asks about a row on its way.
    pub(super) fn passage<T>(&self, row: &Gathered, slot: usize, ask: impl FnOnce(&Passage<'_>) -> T) -> T {
        let answer = |stage| row.answers.iter().rev().find(|(known, ..)| *known == stage).map(|(.., outputs)| outputs);
        ask(&Passage {
            endpoint: self.ladders.endpoint(),
            wiring: &self.wiring,
            request: &self.rows[slot],
            answer: &answer,
        })
    }
}

/// Whether what a group asks are its rows, and not their items, which have numbers of their own.
pub(super) fn are_rows(group: &Group, asked: &[Submission]) -> bool {
    asked.iter().map(|row| &row.slot).eq(&group.slots)
}

impl Gathered {
    /// What a stage was asked lies here no longer.
    fn give_back(&mut self, stage: usize, room: &mut Room) {
        self.asked.extract_if(.., |(asked, _)| *asked == stage).for_each(|(_, taken)| room.give_back(taken));
    }
}

impl Travel<'_> {
    /// There is nowhere to send a group: what its rows would have asked lies here no longer.
    pub(super) fn on_no_choice(&mut self, now: Instant, group: &Group, why: Rejection) {
        group.slots.iter().for_each(|slot| self.rows[*slot].give_back(group.stage, &mut self.room));
        self.trip.on_no_choice(now, group, why);
    }

    /// Nothing is asked: every row is refused.
    pub(super) fn refuse(&mut self, now: Instant, why: Rejection) {
        while let Some(group) = self.trip.next_group() {
            self.trip.on_no_choice(now, &group, why);
        }
    }

    /// A reply to a row: to one of its items it is one once all are there.
    pub(super) fn joined(&mut self, slot: usize, reply: HomeReply) -> Option<(usize, HomeReply)> {
        let Some(number) = slot.checked_sub(self.rows.len()) else { return Some((slot, reply)) };
        let HomeReply { stage, node, reply } = reply;
        let (slot, reply) = self.joins.on_reply(number, reply, &mut self.room)?;
        Some((slot, HomeReply { stage, node, reply }))
    }

    /// Takes in what became of a row's stage call; what a gate has found the next one to be worth.
    pub(super) fn on_reply(&mut self, now: Instant, slot: usize, reply: HomeReply, ladder: &Ladder) -> Option<f64> {
        let HomeReply { stage, node, reply } = reply;
        let row = &mut self.rows[slot];
        if let Some(visit) = row.visits.last_of(stage) {
            visit.end = Some((now, reply.told()));
        }
        // It may be asked once more: what it was asked is gone.
        row.give_back(stage, &mut self.room);
        let end = match reply {
            StageReply::Answered { outputs, queue, execute, .. } => {
                row.queue += queue;
                row.execute += execute;
                row.price = row.price.max(ladder.price());
                return self.on_answer(now, slot, (stage, node, outputs), ladder);
            }
            StageReply::Rejected(why) => StageEnd::Rejected(why),
            StageReply::Full => StageEnd::Full,
            StageReply::Expired => StageEnd::Expired,
            StageReply::Failed(message) => {
                row.message = message;
                StageEnd::Failed
            }
            StageReply::Lost => StageEnd::Lost,
        };
        row.price = row.price.max(ladder.price());
        self.trip.on_stage_end(now, ladder, slot, stage, end, 0)
    }

    /// A stage gave something for a row.
    fn on_answer(&mut self, now: Instant, slot: usize, answer: (usize, NodeName, Row), ladder: &Ladder) -> Option<f64> {
        let (stage, _, outputs) = &answer;
        let (stage, endpoint, wiring) = (*stage, self.call.ladders.endpoint(), &self.call.wiring);
        if let Err(why) = self.room.take(outputs.bytes()) {
            self.fail(now, stage, slot, &unfit(why));
            return None;
        }
        let (signal, seen) = (signal(endpoint, wiring, stage, outputs), looked(endpoint, wiring, stage, outputs));
        let holds = holding(&seen);
        self.rows[slot].looked.extend(seen.into_iter().map(|looked| (now, looked)));
        self.rows[slot].answers.push(answer);
        let weighed = self.trip.on_stage_end(now, ladder, slot, stage, StageEnd::Answered(signal), holds);
        if let Some(visit) = self.rows[slot].visits.last_of(stage) {
            visit.judged = self.trip.judged(slot);
        }
        weighed
    }

    /// Combines what has come for the rows of a group; what the gate behind found.
    pub(super) fn combine(&mut self, now: Instant, group: &Group, me: &NodeName, ladder: &Ladder) -> Vec<f64> {
        let mut values = Vec::new();
        for slot in group.slots.iter().copied() {
            match self.call.passage(&self.rows[slot], slot, |passage| passage.combined(group.stage)) {
                Ok(output) => values.extend(self.on_answer(now, slot, (group.stage, me.clone(), output), ladder)),
                Err(why) => self.fail(now, group.stage, slot, &why),
            }
        }
        values
    }

    /// What a stage would be asked for a row may not lie here.
    fn refuse_room(&mut self, now: Instant, stage: usize, slot: usize, why: NoRoom) {
        match why {
            NoRoom::Ever(why) => self.fail(now, stage, slot, &why),
            NoRoom::Now => {
                self.trip.on_stage_end(now, self.call.ladders.at(0.0, 0.0), slot, stage, StageEnd::NoRoom, 0);
            }
        }
    }

    /// A stage cannot even be asked for a row, or what it gave cannot lie here: it has run, and may not be said to have been refused.
    fn fail(&mut self, now: Instant, stage: usize, slot: usize, why: &str) {
        self.rows[slot].message = format!("stage {}: {why}", self.call.ladders.endpoint().stages[stage].name);
        self.trip.on_stage_end(now, self.call.ladders.at(0.0, 0.0), slot, stage, StageEnd::Failed, 0);
    }

    /// Remembers where the rows of a group went.
    pub(super) fn note_sent(&mut self, now: Instant, group: &Group, target: &Target, me: &NodeName) {
        let (node, device) = match target {
            Target::Local(device) => (me, Some(device)),
            Target::Remote(node) => (node, None),
        };
        for slot in &group.slots {
            self.rows[*slot].visits.push(Visit {
                stage: group.stage,
                node: node.clone(),
                device: device.cloned(),
                sent: now,
                end: None,
                judged: None,
            });
        }
    }

    /// What a group asks of its stage, by the deadline of all. A row that cannot ask, or has nothing to ask, leaves the group.
    pub(super) fn asks(&mut self, now: Instant, group: &mut Group, triage: Method, me: &NodeName) -> Vec<Submission> {
        let (deadline, class, stage) = (self.call.deadline, self.call.class, group.stage);
        let mut rows = Vec::with_capacity(group.slots.len());
        let mut room = std::mem::take(&mut self.room);
        group.slots.retain(|slot| {
            let slot = *slot;
            let bid = triage.bid(self.call.ladders.endpoint(), stage, self.trip.adds(slot, stage));
            let mut ask = |slot, inputs| rows.push(Submission { slot, inputs, deadline, class, bid });
            let before = room.left();
            let asks = self.call.passage(&self.rows[slot], slot, |passage| passage.asks_within(stage, &mut room));
            match asks {
                Ok(Asks::One(inputs)) => {
                    let taken = room.taken_since(before);
                    if taken != Taken::default() {
                        self.rows[slot].asked.push((stage, taken));
                    }
                    ask(slot, inputs);
                }
                Ok(Asks::Each(items)) if items.is_empty() => {
                    self.call.budget.on_items(stage, 0);
                    let nothing = empty(&self.call.wiring.gives[stage]);
                    self.on_answer(now, slot, (stage, me.clone(), nothing), self.call.ladders.at(0.0, 0.0));
                    return false;
                }
                Ok(Asks::Each(items)) => {
                    self.call.budget.on_items(stage, items.len());
                    let first = self.rows.len() + self.joins.begin(slot, &items);
                    for (number, inputs) in (first..).zip(items) {
                        ask(number, inputs);
                    }
                }
                Err(why) => {
                    self.refuse_room(now, stage, slot, why);
                    return false;
                }
            }
            true
        });
        self.room = room;
        rows
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_core::outcome::Class;
    use weir_core::triage::Bid;
    use weir_core::units::Deadline;

    use super::*;

    #[test]
    fn one_item_of_each_row_is_not_the_row() {
        let asked = |slots: [usize; 2]| {
            slots.map(|slot| Submission {
                slot,
                inputs: Row { tensors: Arc::default(), row: Some(0) },
                deadline: Deadline::NEVER,
                class: Class::Default,
                bid: Bid::PLAIN,
            })
        };
        let group = Group { stage: 1, tried: Vec::new(), full: Vec::new(), slots: vec![0, 2] };
        assert!(are_rows(&group, &asked([0, 2])));
        assert!(!are_rows(&group, &asked([3, 4])), "items of a call of three rows");
        assert!(!are_rows(&group, &asked([0, 2])[..1]));
    }
}
