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
