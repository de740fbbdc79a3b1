//! What tests of devices and of memory need alike: a clock that is set by hand, actors on threads of their own, and replies that are waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as sync;
use std::time::Duration;

use actix::{Actor, Addr};
use weir_core::units::Instant;
use weir_host::clock::Clock;
use weir_host::spawn::{Place, Spawn};
use weir_ml_workers::engine::Session;
use weir_ml_workers::model_actor::{ModelActor, Pauses};
use weir_ml_workers::probe::Batching;

use crate::actors::device::{Replies, StageReply};

/// How long another thread is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// In milliseconds.
#[derive(Default)]
pub struct HandClock(pub AtomicU64);

impl Clock for HandClock {
    fn now(&self) -> Instant {
        Instant::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// Where replies go, and where they come.
pub fn replies() -> (Replies, sync::Receiver<(usize, StageReply)>) {
    let (reply, came) = sync::channel();
    (Arc::new(move |slot, what| reply.send((slot, what)).unwrap()), came)
}

/// A model's actor on a thread of its own.
pub fn actor(session: impl Session + 'static) -> (Place, Addr<ModelActor>) {
    let place = Spawn::Threads.place();
    let (send, started) = sync::channel();
    place.run(move || async move {
        send.send(ModelActor::new(Box::new(session), Batching::Rows, Pauses::OnThread).start()).unwrap();
    });
    (place, started.recv_timeout(PATIENCE).unwrap())
}
