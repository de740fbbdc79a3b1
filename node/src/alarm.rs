//! When the core behind a lock wants to be woken, and who sees to that.

use tokio::sync::Notify;
use weir_core::units::Instant;
use weir_host::clock::Clock;

/// The earliest instant that was asked for; it lies with the core, behind its lock.
#[derive(Debug, Default)]
pub struct WakeAt(Option<Instant>);

impl WakeAt {
    /// Asks to be woken then; whether that is sooner than before, so that the timer has to be told.
    pub fn ask(&mut self, at: Instant) -> bool {
        let sooner = self.0.is_none_or(|known| at < known);
        if sooner {
            self.0 = Some(at);
        }
        sooner
    }

    /// What is asked for.
    pub fn get(&self) -> Option<Instant> {
        self.0
    }

    /// It is that time.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

/// Calls `fire` whenever it is time, for ever; `moved` tells that it is another one.
pub async fn keep_time(clock: &dyn Clock, moved: &Notify, wake_at: impl Fn() -> Option<Instant>, fire: impl Fn()) {
    loop {
        let at = wake_at();
        let moved = moved.notified();
        match at {
            None => moved.await,
            Some(at) => {
                if tokio::time::timeout(at.since(clock.now()), moved).await.is_err() {
                    fire();
                }
            }
        }
    }
}
