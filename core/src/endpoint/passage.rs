//! What goes from stage to stage for one row: inputs from the request and from what others gave, items that run by themselves and are
//! joined again, combinations. And how much of that a call may hold, and all calls of a node: see [`Room`] and [`Held`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::combine::{Part, combine};
use super::gate::label;
use super::graph::{ITEMS_BYTES_MAX, ITEMS_MAX, Run, Stages};
use super::{Endpoint, Source, Wiring};
use crate::tensor::{DType, Row, Tensor, TensorSpec};

/// A row on its way through an endpoint.
pub struct Passage<'a> {
    /// Through what.
    pub endpoint: &'a Endpoint,
    /// Its stages, wired.
    pub wiring: &'a Wiring,
    /// What came with the query.
    pub request: &'a Row,
    /// What a stage gave, where it has answered.
    pub answer: &'a dyn Fn(usize) -> Option<&'a Row>,
}

/// What a stage asks for one row.
pub enum Asks {
    /// This.
    One(Row),
    /// Each of these by itself.
    Each(Vec<Row>),
}

/// What was taken from the room of a call for what a stage asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Taken {
    pub items: usize,
    pub bytes: usize,
}

/// Why something may not lie between stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// The call cannot have it, now or later: why.
    Ever(String),
    /// Other calls of the node hold too much now.
    Now,
}

impl From<String> for NoRoom {
    fn from(why: String) -> NoRoom {
        NoRoom::Ever(why)
    }
}

/// What the rows of one call may still hold between their stages: items, and bytes of what stages are asked and of what they gave. A request is bounded by its
/// message; what becomes of it is not, where inputs are the same for many items, or a model gives more than it takes. What stages are asked is given back when they have
/// ended, of items when each of them has, what they gave when the call has.
#[derive(Debug)]
pub struct Room {
    items: usize,
    bytes: usize,
    /// Of what is taken: what lies at devices still, and nobody waits for.
    abandoned: Taken,
    /// Where what is taken counts too, until this is dropped.
    held: Option<Arc<Held>>,
}

/// What all calls of a node hold between their stages, in bytes, and how much that may be: each call is bounded, and of calls there may be as many as
/// connections let in. A little
/// ([`Room::LITTLE`]) each of them may hold whatever the others do, so that one which takes all there is leaves them their answers: beyond the bound
/// there may be that much for each call in flight.
#[derive(Debug)]
pub struct Held {
    most: usize,
    bytes: AtomicUsize,
}

impl Held {
    /// Twice what one call may hold: the largest leaves the others as much.
    pub const MOST: usize = 2 * Room::BYTES;

    /// Nothing yet, and never more than this.
    pub fn new(most: usize) -> Arc<Held> {
        Arc::new(Held { most, bytes: AtomicUsize::new(0) })
    }

    /// In bytes, now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize, little: bool) -> Result<(), NoRoom> {
        let more = |held: usize| held.checked_add(bytes).filter(|held| little || *held <= self.most);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map(drop).map_err(|_| NoRoom::Now)
    }

    fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Room {
    /// As many items as a call may have rows: each costs some hundred bytes, whatever is in it.
    const ITEMS: usize = 65_536;
    /// The largest message holds 5,000 images of the demo; hidden tensors of its segments for all of them take some 380 MiB, given and asked.
    const BYTES: usize = 512 << 20;
    /// What a call may hold whatever other calls of its node hold: more than most take in all, and of the calls that a connection has in flight
    /// 16 MiB, as much as of their messages.
    const LITTLE: usize = 256 << 10;

    /// Of a call that begins, and that no other has to leave anything.
    pub fn new() -> Room {
        Room { items: Room::ITEMS, bytes: Room::BYTES, abandoned: Taken::default(), held: None }
    }

    /// Of a call that begins, among others of a node.
    pub fn among(held: &Arc<Held>) -> Room {
        Room { held: Some(Arc::clone(held)), ..Room::new() }
    }

    /// Something comes between two stages that takes so many bytes; or why it may not.
    pub fn take(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let what = "what the rows of a call take between stages";
        let why = || format!("{what} is more than {} MiB; send fewer rows in a call", Room::BYTES >> 20);
        let left = without(self.bytes, bytes, self.abandoned.bytes, why)?;
        let little = Room::BYTES - left <= Room::LITTLE;
        self.held.as_ref().map_or(Ok(()), |held| held.take(bytes, little))?;
        self.bytes = left;
        Ok(())
    }

    /// What was taken is gone before the call ends.
    pub fn give_back(&mut self, taken: Taken) {
        self.items += taken.items;
        self.bytes += taken.bytes;
        assert!(self.items <= Room::ITEMS && self.bytes <= Room::BYTES, "nobody gives back what was not taken");
        if let Some(held) = &self.held {
            held.give_back(taken.bytes);
        }
    }

    /// Nobody waits any more for what was taken, and it lies at a device still: who finds no room beside it may ask again.
    pub fn abandon(&mut self, taken: Taken) {
        self.abandoned.items += taken.items;
        self.abandoned.bytes += taken.bytes;
    }

    /// What nobody waited for any more has left its device.
    pub fn give_back_abandoned(&mut self, taken: Taken) {
        self.abandoned.items -= taken.items;
        self.abandoned.bytes -= taken.bytes;
        self.give_back(taken);
    }

    /// What has been taken since there was so much left.
    pub fn taken_since(&self, before: Taken) -> Taken {
        Taken { items: before.items - self.items, bytes: before.bytes - self.bytes }
    }

    /// How much is left.
    pub fn left(&self) -> Taken {
        Taken { items: self.items, bytes: self.bytes }
    }

    /// A row becomes items that take so many bytes together; or why it may not.
    pub fn take_items(&mut self, items: usize, bytes: usize) -> Result<(), NoRoom> {
        if items > ITEMS_MAX {
            return Err(format!("a row has {items} items; {ITEMS_MAX} are the most").into());
        }
        check_items("the items of a row, with what is the same for all of them,", bytes)?;
        let why = || format!("the rows of a call have more than {} items; send fewer rows in a call", Room::ITEMS);
        let left = without(self.items, items, self.abandoned.items, why)?;
        self.take(bytes)?;
        self.items = left;
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            held.give_back(Room::BYTES - self.bytes);
        }
    }
}

impl Default for Room {
    fn default() -> Room {
        Room::new()
    }
}

/// What is left without what is wanted; or why it may not be had, ever unless what was abandoned is in its place.
fn without(left: usize, wanted: usize, abandoned: usize, why: impl FnOnce() -> String) -> Result<usize, NoRoom> {
    let ever = || if wanted <= left + abandoned { NoRoom::Now } else { NoRoom::Ever(why()) };
    left.checked_sub(wanted).ok_or_else(ever)
}

/// Why `what` may not take so many bytes for one row.
pub fn check_items(what: &str, bytes: usize) -> Result<(), String> {
    let mib = |bytes: usize| bytes.div_ceil(1 << 20);
    if bytes <= ITEMS_BYTES_MAX {
        return Ok(());
    }
    Err(format!("{what} take {} MiB; {} MiB are the most", mib(bytes), mib(ITEMS_BYTES_MAX)))
}

impl Passage<'_> {
    /// The inputs of a model's stage for the only row of a call; or why there are none.
    pub fn asks(&self, stage: usize) -> Result<Asks, String> {
        self.asks_within(stage, &mut Room::new()).map_err(|why| match why {
            NoRoom::Ever(why) => why,
            NoRoom::Now => unreachable!("no other call takes from this room"),
        })
    }

    /// The inputs of a model's stage; or why there are none. Items take from the room of the call.
    pub fn asks_within(&self, stage: usize, room: &mut Room) -> Result<Asks, NoRoom> {
        let request = self.request;
        let sources = &self.wiring.sources[stage];
        let as_asked =
            sources.iter().enumerate().all(|(i, source)| *source == Source::Request { input: i, each: false })
                && sources.len() == request.tensors.len();
        if as_asked {
            return Ok(Asks::One(request.clone()));
        }
        if self.wiring.is_flattened(stage) {
            return self.items(stage, room).map(Asks::Each);
        }
        let alone = |source: &Source| {
            let (from, i) = self.given(*source)?;
            let mut shape = from.shape(i).to_vec();
            if from.row.is_some() {
                shape.insert(0, 1);
            }
            if request.row.is_some() && shape.first() != Some(&1) {
                return Err("what a stage before it gave is not one row".to_owned());
            }
            Ok(Tensor { dtype: from.tensors[i].dtype, shape, data: from.data(i).to_vec() })
        };
        let tensors: Vec<Tensor> = sources.iter().map(alone).collect::<Result<_, String>>()?;
        room.take(tensors.iter().map(|tensor| tensor.data.len()).sum())?;
        Ok(Asks::One(Row { tensors: Arc::new(tensors), row: request.row.map(|_| 0) }))
    }

    /// The items of the row: those of what is flattened, each with all of what is not. Nothing is copied before it is known how much that is.
    fn items(&self, stage: usize, room: &mut Room) -> Result<Vec<Row>, NoRoom> {
        let sources = &self.wiring.sources[stage];
        let given = sources.iter().map(|source| self.given(*source)).collect::<Result<Vec<_>, _>>()?;
        let lists = || sources.iter().zip(&given).filter(|(source, _)| source.is_flattened());
        let items = |(_, (from, i)): (&Source, &(&Row, usize))| from.shape(*i).first().copied().unwrap_or(0);
        let count = lists().map(items).next().unwrap_or(0);
        if lists().map(items).any(|other| other != count) {
            return Err("its inputs have different numbers of items".to_owned().into());
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let bytes = |(source, (from, i)): (&Source, &(&Row, usize))| {
            from.data(*i).len().saturating_mul(if source.is_flattened() { 1 } else { count })
        };
        room.take_items(count, sources.iter().zip(&given).map(bytes).fold(0, usize::saturating_add))?;
        let part = |(source, (from, i)): (&Source, &(&Row, usize))| Part::of(0, from, *i, source.is_flattened()).items;
        let inputs: Vec<Vec<Tensor>> = sources.iter().zip(&given).map(part).collect();
        let item = |position: usize| {
            let tensor = |items: &Vec<Tensor>| {
                // What is not flattened is the same for all.
                let mut tensor = items[position.min(items.len() - 1)].clone();
                tensor.shape.insert(0, 1);
                tensor
            };
            Row { tensors: Arc::new(inputs.iter().map(tensor).collect()), row: Some(0) }
        };
        Ok((0..count).map(item).collect())
    }

    /// What a combining stage makes of what has come.
    pub fn combined(&self, stage: usize) -> Result<Row, String> {
        let Run::Combine(how) = &self.endpoint.stages[stage].run else { return Err("it runs a model".into()) };
        let sources = self.wiring.sources[stage].iter().enumerate();
        let parts: Vec<Part> = sources
            .filter_map(|(number, source)| {
                let (from, i) = self.given(*source).ok()?;
                let list = matches!(source, Source::Stage { stage, .. } if self.wiring.is_flattened(*stage));
                Some(Part::of(number, from, i, list))
            })
            .collect();
        combine(&how.how, &parts)
    }

    /// What the row gives a source, and which of its tensors.
    fn given(&self, source: Source) -> Result<(&Row, usize), String> {
        match source {
            Source::Request { input, .. } => Ok((self.request, input)),
            Source::Stage { stage, output, .. } => match (self.answer)(stage) {
                Some(row) if output < row.tensors.len() => Ok((row, output)),
                _ => Err("a stage before it gave less than it declares".into()),
            },
        }
    }
}

/// What the gate after a stage looks at in what it gave, where the endpoint has that; the confidence where there is no gate. Not a number where a
/// class probability is none, whatever a learned confidence says.
pub fn signal(endpoint: &Endpoint, wiring: &Wiring, stage: usize, outputs: &Row) -> Option<f32> {
    let output = wiring.confidence[stage]?;
    let numbers = numbers(outputs, output)?;
    if wiring.labels[stage] != Some(output) {
        let hollow = wiring.labels[stage].is_some() && class(wiring, stage, outputs).is_none();
        return if hollow { Some(f32::NAN) } else { numbers.first().copied() };
    }
    match endpoint.stages.get(stage + 1).and_then(|next| next.gate.as_ref()) {
        Some(gate) => gate.signal(&numbers),
        None => label(&numbers).map(|(_, confidence)| confidence),
    }
}

/// The class that a stage says, where the endpoint has class probabilities, and all of them are numbers.
pub fn class(wiring: &Wiring, stage: usize, outputs: &Row) -> Option<u32> {
    let (class, confidence) = label(&numbers(outputs, wiring.labels[stage]?)?)?;
    (!confidence.is_nan()).then_some(class as u32)
}

/// A condition has looked at an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Looked {
    /// The stage that has it.
    pub stage: usize,
    /// What it saw; NaN where there was no number.
    pub saw: f32,
    /// Whether it holds.
    pub holds: bool,
}

/// The conditions that look at what a stage gave.
pub fn looked(endpoint: &Endpoint, wiring: &Wiring, stage: usize, outputs: &Row) -> Vec<Looked> {
    let looks = |(of, output): &(usize, usize)| {
        let when = endpoint.stages[*of].when.as_ref()?;
        let (saw, holds) = when.look(&numbers(outputs, *output).unwrap_or_default());
        Some(Looked { stage: *of, saw, holds })
    };
    wiring.conditions[stage].iter().filter_map(looks).collect()
}

/// The stages whose condition holds.
pub fn holding(looked: &[Looked]) -> Stages {
    looked.iter().filter(|looked| looked.holds).fold(0, |mask, looked| mask | 1 << looked.stage)
}

fn numbers(outputs: &Row, i: usize) -> Option<Vec<f32>> {
    let floats = outputs.tensors.get(i)?.dtype == DType::F32;
    floats.then(|| outputs.data(i).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Rows as one row of lists; `None` where they do not stack.
pub fn stacked(rows: &[Row]) -> Option<Row> {
    let first = rows.first()?;
    let tensor = |i: usize| {
        let mut shape = vec![1, rows.len() as u64];
        shape.extend(first.shape(i));
        let alike =
            rows.iter().all(|row| row.shape(i) == first.shape(i) && row.tensors[i].dtype == first.tensors[i].dtype);
        alike.then(|| Tensor { dtype: first.tensors[i].dtype, shape, data: Row::data_of(rows, i).concat() })
    };
    let tensors = (0..first.tensors.len()).map(tensor).collect::<Option<_>>()?;
    Some(Row { tensors: Arc::new(tensors), row: Some(0) })
}

/// No items: lists without any, as the stage gives them.
pub fn empty(gives: &[TensorSpec]) -> Row {
    let tensor = |spec: &TensorSpec| {
        let rest = spec.shape.iter().skip(2).map(|dimension| dimension.unwrap_or(0));
        Tensor { dtype: spec.dtype, shape: [1, 0].into_iter().chain(rest).collect(), data: Vec::new() }
    };
    Row { tensors: Arc::new(gives.iter().map(tensor).collect()), row: Some(0) }
}
