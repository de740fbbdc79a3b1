//! Where an actor runs: on a thread of its own, or inline on the thread that asks.

use std::future::Future;

use actix_rt::{Arbiter, ArbiterHandle};

/// How places are made in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spawn {
    /// Each place is an actix arbiter: a thread with an executor. Needs an actix `System` around it.
    Threads,
    /// Every place is the executor of the thread that asked: one thread, one order of events.
    Inline,
}

impl Spawn {
    /// Runs what may take a while, as reading and hashing gigabytes does, where it holds nothing up.
    pub async fn blocking<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Spawn::Threads => match tokio::task::spawn_blocking(work).await {
                Ok(done) => done,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            Spawn::Inline => work(),
        }
    }
}

/// An executor that actors can be started on.
#[derive(Clone)]
pub struct Place {
    arbiter: Option<ArbiterHandle>,
}

impl Spawn {
    /// A new place.
    pub fn place(self) -> Place {
        // The arbiter's thread lives until it is stopped; its handle is all that is needed of it.
        self.place_with(|| Arbiter::new().handle())
    }

    /// A new place for what computes and has timers, and opens no sockets. Its thread waits on a condition variable instead of
    /// in an event loop: to wake it costs less, and so does its falling asleep.
    pub fn place_without_sockets(self) -> Place {
        self.place_with(|| {
            let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build();
            Arbiter::with_tokio_rt(move || runtime().expect("a runtime without sockets asks for nothing")).handle()
        })
    }

    fn place_with(self, arbiter: impl FnOnce() -> ArbiterHandle) -> Place {
        Place {
            arbiter: match self {
                Spawn::Threads => Some(arbiter()),
                Spawn::Inline => None,
            },
        }
    }
}

impl Place {
    /// Runs a task there; `make` is called there too, so what it makes need not be `Send`.
    pub fn run<F, T>(&self, make: F)
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        match &self.arbiter {
            Some(arbiter) => {
                // False where the place was stopped: then the process ends and nobody waits for the task.
                let _ = arbiter.spawn_fn(move || {
                    actix_rt::spawn(make());
                });
            }
            None => {
                tokio::task::spawn_local(make());
            }
        }
    }

    /// Ends the place's thread once what runs on it now yields. Inline places go on.
    pub fn stop(&self) {
        if let Some(arbiter) = &self.arbiter {
            arbiter.stop();
        }
    }
}
