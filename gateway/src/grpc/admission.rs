//! What is decided of a call before any of its messages is read: who asks, and how much may come.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;

use crate::callers::{Caller, Callers};
use crate::http::{BODY_WITHIN, Budget, Held};
use crate::refusal::{Kind, Refusal};
use crate::serve::{Peer, Shared};

/// Calls that anybody may make, and that bring nothing.
const OPEN: [&str; 3] = ["ServerLive", "ServerReady", "ServerMetadata"];
/// Bytes of one of those, at most.
const OPEN_MAX: usize = 4 << 10;
/// The call whose messages come as long as it likes.
const STREAM: &str = "ModelStreamInfer";

/// A call that was let in, in the extensions of its request.
#[derive(Clone)]
pub struct Admitted {
    /// As whom it asks.
    pub caller: Arc<Caller>,
    /// When its head was read.
    pub arrived: Instant,
    /// What its messages hold on their way.
    pub coming: Coming,
}

/// What messages of a call hold of the budget until they are read.
#[derive(Clone, Default)]
pub struct Coming(Arc<Mutex<Held>>);

impl Coming {
    /// What is held until now; what comes from now on is counted anew.
    pub fn take(&self) -> Held {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, budget: &Budget, bytes: usize) -> Result<(), Refusal> {
        budget.take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), bytes)
    }
}

/// Lets a call in, with the caller it comes from.
pub async fn admit(State((callers, shared)): State<(Callers, Arc<Shared>)>, request: Request, next: Next) -> Response {
    let arrived = Instant::now();
    let (mut head, body) = request.into_parts();
    let method = head.uri.path().rsplit('/').next().unwrap_or("").to_owned();
    let is_open = OPEN.contains(&method.as_str());
    let caller = match is_open {
        true => Ok(Arc::clone(callers.own())),
        false => {
            let Peer(peer) = head.extensions.get::<Peer>().copied().expect("every connection has a peer");
            callers.of(peer.ip(), &head.headers).await
        }
    };
    let caller = match caller {
        Ok(caller) => caller,
        Err(refusal) => {
            let status = refusal.grpc();
            shared.counts.begin("grpc").ended(&format!("{:?}", status.code()));
            return status.into_http();
        }
    };
    let coming = Coming::default();
    head.extensions.insert(Admitted { caller, arrived, coming: coming.clone() });
    let body = Body::new(Bounded {
        body,
        budget: shared.budget.clone(),
        coming,
        left: if is_open { OPEN_MAX } else { usize::MAX },
        late: (method != STREAM).then(|| Box::pin(sleep(BODY_WITHIN))),
    });
    next.run(Request::from_parts(head, body)).await
}

/// A body that counts while it comes.
struct Bounded {
    body: Body,
    budget: Budget,
    coming: Coming,
    /// Bytes that may still come.
    left: usize,
    /// When it has to be there.
    late: Option<Pin<Box<Sleep>>>,
}

impl hyper::body::Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_pending() && self.late.as_mut().is_some_and(|late| late.as_mut().poll(cx).is_ready()) {
            let why = format!("the request did not come within {} s", BODY_WITHIN.as_secs());
            return Poll::Ready(Some(Err(Refusal::bad(why).grpc())));
        }
        let frame = match ready!(polled) {
            None => return Poll::Ready(None),
            Some(frame) => {
                frame.map_err(|error| Refusal::bad(format!("the request does not come whole: {error}")).grpc())?
            }
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        self.left = match self.left.checked_sub(bytes) {
            Some(left) => left,
            None => {
                let why = format!("this call takes no more than {OPEN_MAX} bytes");
                return Poll::Ready(Some(Err(Refusal::new(Kind::TooLarge, why).grpc())));
            }
        };
        let counted = self.coming.add(&self.budget, bytes);
        Poll::Ready(Some(counted.map(|()| frame).map_err(|refusal| refusal.grpc())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
