//! One replica: an actor on a thread of its own that owns its session and runs one batch at a time.
//!
//! A batch that fails is run again row by row, so that one bad row fails alone. An engine that panics takes its actor with
//! it: the batch fails, the actor stops, and whoever supervises starts another. Whatever happens, a batch's callback is
//! called exactly once.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, WrapFuture};
use tokio::sync::oneshot;
use tokio::time::Instant;
use weir_core::shapes::{PadPlan, Shapes};
use weir_core::tensor::{Row, Tensor};

use crate::cores::keep_to;
use crate::engine::{RunError, Session};
use crate::probe::Batching;

/// The actor of one replica.
pub struct ModelActor {
    session: Box<dyn Session>,
    batching: Batching,
    shapes: Shapes,
    plan: Option<Arc<PadPlan>>,
    pauses: Pauses,
    /// Where its thread is kept.
    core: Option<u32>,
    /// Dropped after the session, which was first.
    gone: Option<oneshot::Sender<()>>,
}

/// How an actor lets time pass in which a model computes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pauses {
    /// Its thread sleeps: exact, where it has one of its own.
    OnThread,
    /// It waits for a timer, and others go on.
    OnTimer,
}

/// A batch to run: rows that merge, or a single row that need not.
pub struct RunBatch {
    rows: Vec<Row>,
    at_least: Duration,
    core: Option<u32>,
    done: Done,
}

/// What became of a batch.
pub struct BatchDone {
    /// One for each row, in order.
    pub results: Vec<Result<Row, RunError>>,
    /// Time from the start of the batch to its end.
    pub execute: Duration,
    /// The text of a panic: the actor is gone.
    pub died: Option<String>,
}

/// Calls the callback when dropped, if it was not called before.
struct Done {
    rows: usize,
    callback: Option<Box<dyn FnOnce(BatchDone) + Send>>,
}

impl Done {
    fn call(mut self, done: BatchDone) {
        if let Some(callback) = self.callback.take() {
            callback(done);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(callback) = self.callback.take() {
            let results = (0..self.rows).map(|_| Err(RunError::ActorGone)).collect();
            callback(BatchDone {
                results,
                execute: Duration::ZERO,
                died: Some("its actor takes no messages any more".into()),
            });
        }
    }
}

impl RunBatch {
    /// A batch of `rows` that takes `at_least` so long: the replica sleeps for what is left of it. `done` is called with what became of it, on the actor's thread, or
    /// where the message is dropped.
    pub fn new(rows: Vec<Row>, at_least: Duration, done: impl FnOnce(BatchDone) + Send + 'static) -> RunBatch {
        let done = Done { rows: rows.len(), callback: Some(Box::new(done)) };
        RunBatch { rows, at_least, core: None, done }
    }

    /// On this core, and no other.
    pub fn on_core(self, core: Option<u32>) -> RunBatch {
        RunBatch { core, ..self }
    }
}

impl Message for RunBatch {
    type Result = ();
}

impl ModelActor {
    /// An actor around a session; `batching` is what probing it has shown.
    pub fn new(session: Box<dyn Session>, batching: Batching, pauses: Pauses) -> ModelActor {
        ModelActor { session, batching, shapes: Shapes::default(), plan: None, pauses, core: None, gone: None }
    }

    /// With batches of these shapes. How rows are filled up, where they are.
    pub fn shaped(self, shapes: &Shapes) -> (ModelActor, Option<Arc<PadPlan>>) {
        let plan = shapes.pad.as_ref().map(|pad| Arc::new(pad.plan(self.session.signature())));
        (ModelActor { shapes: shapes.clone(), plan: plan.clone(), ..self }, plan)
    }

    /// What ends with this actor once the memory of its session is free.
    pub fn gone(&mut self) -> oneshot::Receiver<()> {
        let (gone, is_gone) = oneshot::channel();
        self.gone = Some(gone);
        is_gone
    }

    /// Moves this actor's thread to the core of the slot that it was given.
    fn move_to(&mut self, core: Option<u32>) {
        if let Some(core) = core
            && self.core != Some(core)
        {
            if let Err(error) = keep_to(core) {
                // Where it runs changes how fast it is, and not what it answers.
                tracing::warn!("cannot keep a model's thread to core {core}: {error}");
            }
            self.core = Some(core);
        }
    }

    fn run(&mut self, rows: &[Row]) -> Vec<Result<Row, RunError>> {
        if rows.len() == 1 {
            return vec![self.alone(&rows[0])];
        }
        if !matches!(self.batching, Batching::Unbatched { .. }) {
            match self.together(rows) {
                Ok(results) => return results.into_iter().map(Ok).collect(),
                // Whichever row hangs would hang again, alone.
                Err(error @ (RunError::Terminated | RunError::Broken(_))) => {
                    return rows.iter().map(|_| Err(error.clone())).collect();
                }
                Err(_) => {}
            }
        }
        rows.iter().map(|row| self.alone(row)).collect()
    }

    /// Runs rows as one batch; outputs that are not rows for rows are an error.
    fn together(&mut self, rows: &[Row]) -> Result<Vec<Row>, RunError> {
        let padded = match self.batching {
            Batching::Fixed { size } => size as usize,
            _ => self.shapes.filled_up(rows.len()),
        };
        let outputs = self.session.run(&stacked(rows, padded, self.plan.as_deref()))?;
        if outputs.iter().any(|output| output.shape.first() != Some(&(padded as u64))) {
            return Err(RunError::Model("its outputs are not one row for each row".into()));
        }
        let tensors = Arc::new(outputs);
        let own = |(number, row): (usize, &Row)| self.cut_back(&tensors, number, row);
        rows.iter().enumerate().map(own).collect()
    }

    /// A row's share of what its batch gave; a copy of its own where the row was filled up.
    fn cut_back(&self, outputs: &Arc<Vec<Tensor>>, number: usize, row: &Row) -> Result<Row, RunError> {
        let length = self.plan.as_ref().and_then(|plan| Some((plan, plan.length(row)?)));
        let Some((plan, length)) = length.filter(|(plan, length)| plan.cuts(*length)) else {
            return Ok(Row { tensors: Arc::clone(outputs), row: Some(number) });
        };
        match plan.cut(outputs, number, length) {
            Ok(own) => Ok(Row { tensors: Arc::new(own), row: Some(0) }),
            Err(output) => {
                let name = self.session.signature().outputs.get(output).map_or("", |spec| spec.name.as_str());
                Err(RunError::Model(format!(
                    "its output {name} is not as long as its inputs, so it cannot be cut back"
                )))
            }
        }
    }

    fn alone(&mut self, row: &Row) -> Result<Row, RunError> {
        if row.row.is_none() {
            let tensors = Arc::new(self.session.run(&row.tensors)?);
            return Ok(Row { tensors, row: None });
        }
        let filled_up = self.batching == Batching::Rows && !self.shapes.is_plain();
        if filled_up || matches!(self.batching, Batching::Fixed { .. }) {
            return self.together(std::slice::from_ref(row)).map(|mut rows| rows.remove(0));
        }
        let outputs = self.session.run(&stacked(std::slice::from_ref(row), 1, None))?;
        // A model that gives something else than one row for one row gives it to this query as it is.
        let rows = outputs.iter().all(|output| output.shape.first() == Some(&1));
        Ok(Row { tensors: Arc::new(outputs), row: rows.then_some(0) })
    }
}

/// Why a session cannot be used again, where a run said so.
fn broken(results: &[Result<Row, RunError>]) -> Option<String> {
    results.iter().find_map(|result| match result {
        Err(RunError::Broken(why)) => Some(why.clone()),
        _ => None,
    })
}

/// What a session runs on for these rows: copies, but where a query brought just them and they lie as they have to.
fn stacked<'a>(rows: &'a [Row], padded: usize, plan: Option<&PadPlan>) -> Cow<'a, [Tensor]> {
    match Row::uncut(rows).filter(|_| padded == rows.len() && plan.is_none()) {
        Some(tensors) => Cow::Borrowed(tensors),
        None => Cow::Owned(stack(rows, padded, plan)),
    }
}

/// Copies rows under each other, once each; the last one again until there are `padded`. By a plan, each is filled up to its length.
pub(crate) fn stack(rows: &[Row], padded: usize, plan: Option<&PadPlan>) -> Vec<Tensor> {
    let first = &rows[0];
    let length = plan.and_then(|plan| plan.length(first));
    (0..first.tensors.len())
        .map(|i| {
            let mut shape = vec![padded as u64];
            match plan {
                Some(plan) => shape.extend(plan.padded_shape(first, i, length)),
                None => shape.extend(first.shape(i)),
            }
            let parts = Row::data_of(rows, i);
            let bytes = parts.iter().map(|bytes| bytes.len()).sum::<usize>();
            let mut data = Vec::with_capacity(bytes / rows.len() * padded);
            for n in (0..padded).map(|n| n.min(rows.len() - 1)) {
                match plan {
                    Some(plan) => plan.append(&rows[n], i, parts[n], &mut data),
                    None => data.extend_from_slice(parts[n]),
                }
            }
            Tensor { dtype: first.tensors[i].dtype, shape, data }
        })
        .collect()
}

impl Actor for ModelActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        // A replica is given one batch at a time; a second may lie here while the first one's end is on its way.
        context.set_mailbox_capacity(2);
    }
}

impl Handler<RunBatch> for ModelActor {
    type Result = ();

    fn handle(&mut self, batch: RunBatch, context: &mut Self::Context) {
        let started = Instant::now();
        let RunBatch { rows, at_least, core, done } = batch;
        self.move_to(core);
        match catch_unwind(AssertUnwindSafe(|| self.run(&rows))) {
            Ok(results) if let Some(why) = broken(&results) => {
                context.stop();
                done.call(BatchDone { results, execute: started.elapsed(), died: Some(why) });
            }
            Ok(results) => {
                let pause = at_least.saturating_sub(started.elapsed()).max(self.session.pause(rows.len() as u64));
                let end = move || done.call(BatchDone { results, execute: started.elapsed(), died: None });
                match self.pauses {
                    _ if pause.is_zero() => end(),
                    Pauses::OnThread => {
                        std::thread::sleep(pause);
                        end();
                    }
                    Pauses::OnTimer => {
                        context.wait(tokio::time::sleep(pause).into_actor(self).map(move |(), _, _| end()));
                    }
                }
            }
            Err(panic) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "no reason given".into());
                context.stop();
                let results = rows.iter().map(|_| Err(RunError::Model("its engine panicked".into()))).collect();
                done.call(BatchDone { results, execute: started.elapsed(), died: Some(format!("panicked: {text}")) });
            }
        }
    }
}

#[cfg(test)]
mod tests;
