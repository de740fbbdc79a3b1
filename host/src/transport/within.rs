//! A limit on time that costs nothing where nothing is waited for.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::error::Elapsed;

/// What `future` gives, unless that takes longer than `span`. Where it is there at once, as what was read with something else is,
/// there is no timer and no look at the clock.
pub async fn within<F: Future>(span: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let at_once = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
    match at_once {
        Poll::Ready(done) => Ok(done),
        Poll::Pending => tokio::time::timeout(span, future).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_at_once_needs_no_timer() {
        // A timer panics in a runtime without them.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let done = runtime.block_on(within(Duration::ZERO, std::future::ready(7)));
        assert_eq!(done.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_longer_is_given_up_in_time() {
        let span = Duration::from_millis(20);
        let after = |ms| tokio::time::sleep(Duration::from_millis(ms));
        assert!(within(span, after(19)).await.is_ok());
        let began = tokio::time::Instant::now();
        assert!(within(span, after(1_000)).await.is_err());
        assert!(began.elapsed() < 2 * span);
    }
}
