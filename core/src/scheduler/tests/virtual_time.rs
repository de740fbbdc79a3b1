//! A device in virtual time whose batches take what their profile says, and what became of each row.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Calls to a device with models.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub slots: u32,
    /// (α, β in microseconds, largest batch, replicas), each with the name of its number.
    pub models: Vec<(u64, u64, u32, u32)>,
    pub calls: Vec<Call>,
}

impl Script {
    /// Gives each row time to run by itself at least. What could not run at all makes a profile more hopeful than what is
    /// ([`Profile::forgive`]).
    pub fn make_possible(&mut self) {
        for call in &mut self.calls {
            let (alpha, beta, _, _) = self.models[call.model];
            call.rows.iter_mut().for_each(|left| *left += alpha + beta);
        }
    }
}

/// Rows that come together.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Microseconds after the one before.
    pub pause: u64,
    pub model: usize,
    pub class: Class,
    pub shape: u64,
    pub mergeable: bool,
    /// Microseconds that each row has.
    pub rows: Vec<u64>,
    /// Whether the caller of the first row goes before the next call comes.
    pub cancelled: bool,
    /// What running a row adds to an answer in hand.
    pub value: Option<f64>,
}

/// Scripts of up to three models and thirty calls.
pub(super) fn scripts(slots: std::ops::RangeInclusive<u32>) -> impl Strategy<Value = Script> {
    let model = (500..8000u64, 50..2000u64, 1..12u32, 1..3u32);
    let call = (
        (0..12_000u64, 0..3usize, prop::sample::select(Class::ALL.to_vec()), 0..2u64),
        (prop::bool::weighted(0.9), prop::collection::vec(2000..60_000u64, 1..6), prop::bool::weighted(0.1)),
        prop::option::of(0.0..1.0f64),
    );
    (slots, prop::collection::vec(model, 1..4), prop::collection::vec(call, 1..30)).prop_map(
        |(slots, models, calls)| {
            let of = models.len();
            let calls = calls.into_iter().map(|((pause, model, class, shape), (mergeable, rows, cancelled), value)| {
                Call { pause, model: model % of, class, shape, mergeable, rows, cancelled, value }
            });
            Script { slots, models, calls: calls.collect() }
        },
    )
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub model: usize,
    pub class: Class,
    pub shape: u64,
    pub mergeable: bool,
    pub deadline: Deadline,
    pub end: End,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Open,
    Ran { started: Instant, finished: Instant },
    Refused,
    Expired,
    Cancelled,
}

/// A batch that starts, with what else there was to do.
pub(super) struct Start<'a> {
    pub rows: &'a [Row],
    /// Rows that wait on, of models with a free replica but for the one that this batch takes.
    pub left: Vec<Row>,
    pub max_batch: u32,
}

/// Runs a script to its end; panics where a row ends twice or not at all, a replica or the device runs more than it can, or a
/// slot idles against `may_idle` while something could run on it. `at_start` sees each batch.
pub(super) fn run(script: &Script, policy: Policy, may_idle: bool, mut at_start: impl FnMut(Start)) -> Vec<Row> {
    let mut device = Device::new(script.slots, policy);
    let name = |i: usize| model(&format!("m{i}"));
    let mut profiles = Vec::new();
    let mut model_of = BTreeMap::new();
    for (i, &(alpha, beta, max_batch, replicas)) in script.models.iter().enumerate() {
        let at = |rows: u64| ServiceTime::from_micros(alpha + beta * rows);
        profiles.push(Profile::new(&[(1, at(1)), (16, at(16))]));
        for _ in 0..replicas {
            let id = ReplicaId(model_of.len() as u64);
            model_of.insert(id, i);
            device.add_replica(Instant::ZERO, id, name(i), profiles[i].clone(), max_batch, &mut Vec::new());
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    // What runs, by replica: when it ends and since when it runs.
    let mut running: BTreeMap<ReplicaId, (Instant, Instant)> = BTreeMap::new();
    let mut wakes: BTreeSet<Instant> = BTreeSet::new();
    let mut calls = script.calls.iter();
    let (mut next, mut at) = (calls.next(), Instant::ZERO);
    let mut cancelled: Option<u64> = None;
    loop {
        let call_at = next.map(|call| at + ServiceTime::from_micros(call.pause));
        let end_at = running.iter().map(|(id, (end, _))| (*end, *id)).min();
        let wake_at = wakes.first().copied();
        let Some(now) = [call_at, end_at.map(|(end, _)| end), wake_at].into_iter().flatten().min() else { break };
        let mut out = Vec::new();
        if let Some((_, id)) = end_at.filter(|(end, _)| *end == now) {
            let (_, started) = running.remove(&id).unwrap();
            device.on_batch_done(now, id, ServiceTime::from(now.since(started)), &mut out);
        } else if call_at == Some(now) {
            let call = next.unwrap();
            (next, at) = (calls.next(), now);
            if let Some(ticket) = cancelled.take().filter(|ticket| rows[*ticket as usize].end == End::Open) {
                device.on_cancel(now, TicketId(ticket), &mut out);
                rows[ticket as usize].end = End::Cancelled;
            }
            let first = rows.len() as u64;
            cancelled = call.cancelled.then_some(first);
            let mut queries = Vec::new();
            for left in &call.rows {
                let deadline = Deadline(now + ServiceTime::from_micros(*left));
                let ticket = TicketId(rows.len() as u64);
                let (class, shape, mergeable) = (call.class, call.shape, call.mergeable);
                queries.push(Query {
                    ticket,
                    deadline,
                    class,
                    shape: ShapeKey(shape),
                    mergeable,
                    rows: 1,
                    bid: Bid { gain: call.value, ..Bid::PLAIN },
                });
                rows.push(Row { model: call.model, class, shape, mergeable, deadline, end: End::Open });
            }
            device.on_arrival(now, &name(call.model), &queries, &mut out);
        } else {
            wakes.remove(&now);
            device.on_wake(now, &mut out);
        }
        for action in out {
            match action {
                Action::Run { replica, tickets, .. } => {
                    let index = model_of[&replica];
                    let finished = now + profiles[index].estimate(tickets.len() as u32);
                    assert!(running.insert(replica, (finished, now)).is_none(), "two batches on {replica}");
                    assert!(running.len() <= script.slots as usize, "more batches than slots");
                    let batch: Vec<Row> = tickets.iter().map(|ticket| rows[ticket.0 as usize]).collect();
                    assert!(batch.iter().all(|row| row.end == End::Open), "ran what had ended: {batch:?}");
                    assert!(batch.iter().all(|row| row.model == index), "ran on another model's replica");
                    for ticket in &tickets {
                        rows[ticket.0 as usize].end = End::Ran { started: now, finished };
                    }
                    let free = |row: &Row| {
                        let other = |id: &ReplicaId| !running.contains_key(id) || *id == replica;
                        model_of.iter().any(|(id, model)| *model == row.model && other(id))
                    };
                    let left = rows.iter().filter(|row| row.end == End::Open && free(row)).copied().collect();
                    at_start(Start { rows: &batch, left, max_batch: script.models[index].2 });
                }
                Action::Reject { ticket, .. } | Action::Expire { ticket } => {
                    let row = &mut rows[ticket.0 as usize];
                    assert_eq!(row.end, End::Open, "ended twice");
                    row.end = if matches!(action, Action::Reject { .. }) { End::Refused } else { End::Expired };
                }
                Action::WakeAt(at) => {
                    wakes.insert(at.max(now + ServiceTime::from_nanos(1)));
                }
            }
        }
        let idle = running.len() < script.slots as usize;
        let runs = |row: &Row| model_of.iter().any(|(id, model)| *model == row.model && !running.contains_key(id));
        let kept = rows.iter().find(|row| row.end == End::Open && runs(row));
        assert!(may_idle || !idle || kept.is_none(), "a slot idles at {now:?} while {kept:?} waits");
    }
    let open = rows.iter().filter(|row| row.end == End::Open).count();
    assert_eq!(open, 0, "rows without an end");
    rows
}
