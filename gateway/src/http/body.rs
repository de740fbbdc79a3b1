//! Bodies: read within bounds, inflated within bounds, and deflated.

use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::refusal::{Kind, Refusal};

/// Largest body, as it comes and inflated: what Triton inflates at most. Tensors that fill a message of the cluster (16 MiB) are about
/// as long in JSON.
pub const BODY_MAX: usize = 64 << 20;
/// Bytes of all bodies that are held at once: some hundred megabytes beside the models are what a machine that serves them has.
pub const HELD_MAX: usize = 256 << 20;
/// How long a body may take to come.
pub const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Bytes that are inflated at once.
const INFLATE_STEP: usize = 64 << 10;
/// A semaphore does not count to 256 MiB by ones.
const BYTES_A_PERMIT: usize = 1024;

/// Bytes of bodies that may still be held.
#[derive(Clone)]
pub struct Budget(Arc<Semaphore>);

/// What a body holds of the budget, until it is dropped.
#[derive(Default)]
pub struct Held {
    bytes: usize,
    permits: Option<OwnedSemaphorePermit>,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget(Arc::new(Semaphore::new(HELD_MAX / BYTES_A_PERMIT)))
    }
}

impl Budget {
    /// So many bytes more; nobody waits for them.
    pub fn take(&self, held: &mut Held, bytes: usize) -> Result<(), Refusal> {
        let all = held.bytes.saturating_add(bytes);
        // What comes in small pieces takes no more than what comes at once.
        let has = held.permits.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanting = all.div_ceil(BYTES_A_PERMIT).saturating_sub(has);
        if wanting > 0 {
            let busy = |_| Refusal::new(Kind::Shed, "too many bytes are in flight here; ask again later");
            let wanting = u32::try_from(wanting).unwrap_or(u32::MAX);
            let more = Arc::clone(&self.0).try_acquire_many_owned(wanting).map_err(busy)?;
            match &mut held.permits {
                Some(held) => held.merge(more),
                none => *none = Some(more),
            }
        }
        held.bytes = all;
        Ok(())
    }
}

/// The whole body.
pub async fn read(mut body: Body, budget: &Budget) -> Result<(Bytes, Held), Refusal> {
    let too_large = || {
        let why = format!("the body is larger than {} MiB; send fewer rows at once, or binary data", BODY_MAX >> 20);
        Refusal::new(Kind::TooLarge, why)
    };
    if body.size_hint().lower() > BODY_MAX as u64 {
        return Err(too_large());
    }
    let mut held = Held::default();
    let reading = async {
        // One piece is taken as it is, several are put together as they come.
        let (mut first, mut all) = (Bytes::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::bad(format!("the body does not come whole: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if first.len() + all.len() + data.len() > BODY_MAX {
                return Err(too_large());
            }
            budget.take(&mut held, data.len())?;
            if first.is_empty() && all.is_empty() {
                first = data;
            } else {
                if all.is_empty() {
                    all = std::mem::take(&mut first).into();
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(if all.is_empty() { first } else { all.into() })
    };
    let body = tokio::time::timeout(BODY_WITHIN, reading).await;
    let late = |_| Refusal::bad(format!("the body did not come within {} s", BODY_WITHIN.as_secs()));
    body.map_err(late)?.map(|body| (body, held))
}

/// A body as it was before it was encoded.
pub fn inflate(encoding: Option<&str>, body: Bytes, budget: &Budget, held: &mut Held) -> Result<Bytes, Refusal> {
    let mut reader: Box<dyn Read + '_> = match encoding.map(str::trim) {
        None | Some("" | "identity") => return Ok(body),
        Some("gzip" | "x-gzip") => Box::new(MultiGzDecoder::new(&body[..])),
        Some("deflate") => Box::new(ZlibDecoder::new(&body[..])),
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            return Err(Refusal::bad(format!("the encoding {other:?} is not understood; send gzip or deflate")));
        }
    };
    let mut inflated = Vec::new();
    loop {
        // Room first, so that many who inflate at once hold no more than there is.
        budget.take(held, INFLATE_STEP)?;
        let read = reader.by_ref().take(INFLATE_STEP as u64).read_to_end(&mut inflated);
        match read.map_err(|error| Refusal::bad(format!("the body cannot be inflated: {error}")))? {
            0 => return Ok(inflated.into()),
            _ if inflated.len() > BODY_MAX => {
                let why = format!("the body is larger than {} MiB when inflated", BODY_MAX >> 20);
                return Err(Refusal::new(Kind::TooLarge, why));
            }
            _ => {}
        }
    }
}

/// A body that is sent in pieces, and counts until the last of it is.
pub struct Sent {
    left: Bytes,
    _held: Held,
}

impl Sent {
    /// Bytes per piece: what a socket takes at once, as a rule.
    const PIECE: usize = 256 << 10;

    /// Of bytes that count as long as any is left.
    pub fn new(bytes: Vec<u8>, held: Held) -> Sent {
        Sent { left: bytes.into(), _held: held }
    }
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = self.left.len().min(Sent::PIECE);
        let piece = self.left.split_to(piece);
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

/// An encoding that a caller takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// RFC 1952.
    Gzip,
    /// RFC 1950, as HTTP means it.
    Deflate,
}

impl Encoding {
    /// The one that is wanted most of what `accept-encoding` lists; none where none is.
    pub fn wanted(accept: &str) -> Option<Encoding> {
        let wanted = accept.split(',').filter_map(|part| {
            let (name, quality) = part.split_once(';').unwrap_or((part, "q=1"));
            let quality: f32 = quality.trim().strip_prefix("q=")?.trim().parse().ok()?;
            let encoding = match name.trim() {
                "gzip" | "x-gzip" => Encoding::Gzip,
                "deflate" => Encoding::Deflate,
                _ => return None,
            };
            (quality > 0.0).then_some((encoding, quality))
        });
        // The first of those that are wanted alike.
        let best = wanted.reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.map(|(encoding, _)| encoding)
    }

    /// The word in headers.
    pub fn word(self) -> &'static str {
        match self {
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
        }
    }

    /// A body so encoded.
    pub fn encode(self, body: &[u8]) -> Vec<u8> {
        let whole = "a vector takes what is written";
        match self {
            Encoding::Gzip => {
                let mut to = GzEncoder::new(Vec::new(), Compression::fast());
                to.write_all(body).expect(whole);
                to.finish().expect(whole)
            }
            Encoding::Deflate => {
                let mut to = ZlibEncoder::new(Vec::new(), Compression::fast());
                to.write_all(body).expect(whole);
                to.finish().expect(whole)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deflated_comes_back_and_a_bomb_does_not() {
        let budget = Budget::default();
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let mut held = Held::default();
            let word = Some(encoding.word());
            let back = inflate(word, encoding.encode(b"abc").into(), &budget, &mut held).unwrap();
            assert_eq!(&back[..], b"abc");
            let bomb = encoding.encode(&vec![0; BODY_MAX + 1]);
            assert!(bomb.len() < BODY_MAX / 100);
            let refused = inflate(word, bomb.into(), &budget, &mut held).unwrap_err();
            assert_eq!(refused.kind, Kind::TooLarge);
            let refused = inflate(word, Bytes::from_static(b"no such thing"), &budget, &mut held).unwrap_err();
            assert_eq!(refused.kind, Kind::BadInput);
        }
        assert_eq!(inflate(Some("br"), Bytes::new(), &budget, &mut Held::default()).unwrap_err().kind, Kind::BadInput);
    }

    #[test]
    fn bytes_that_are_held_are_counted_and_given_back() {
        let budget = Budget::default();
        let mut all = Vec::new();
        for _ in 0..HELD_MAX / BODY_MAX {
            let mut held = Held::default();
            budget.take(&mut held, BODY_MAX).unwrap();
            all.push(held);
        }
        assert_eq!(budget.take(&mut Held::default(), 1).unwrap_err().kind, Kind::Shed);
        all.pop();
        budget.take(&mut Held::default(), BODY_MAX).unwrap();
    }

    #[test]
    fn many_bombs_at_once_hold_no_more_than_there_is_room_for() {
        let budget = Budget::default();
        let bomb: Bytes = Encoding::Gzip.encode(&vec![0; BODY_MAX]).into();
        let mut all = Vec::new();
        for _ in 0..HELD_MAX / BODY_MAX - 1 {
            let mut held = Held::default();
            inflate(Some("gzip"), bomb.clone(), &budget, &mut held).unwrap();
            all.push(held);
        }
        // There is room for half of the next: it is given up on the way, not when all of it is there.
        let mut half = Held::default();
        budget.take(&mut half, BODY_MAX / 2).unwrap();
        let mut held = Held::default();
        assert_eq!(inflate(Some("gzip"), bomb, &budget, &mut held).unwrap_err().kind, Kind::Shed);
        assert!(held.bytes <= BODY_MAX / 2, "{} bytes were held", held.bytes);
    }

    #[tokio::test]
    async fn a_body_in_small_pieces_holds_what_it_is() {
        let budget = Budget::default();
        let pieces = (0..10_000).map(|i| Ok::<_, std::io::Error>(Bytes::copy_from_slice(&[i as u8])));
        let body = Body::from_stream(futures::stream::iter(pieces));
        let (body, held) = read(body, &budget).await.unwrap();
        assert_eq!((body.len(), body[300], held.bytes), (10_000, 44, 10_000));
        assert_eq!(budget.0.available_permits(), HELD_MAX / BYTES_A_PERMIT - 10);
    }

    #[test]
    fn the_encoding_that_is_wanted_most_is_taken() {
        for (accept, wanted) in [
            ("gzip", Some(Encoding::Gzip)),
            ("deflate, gzip", Some(Encoding::Deflate)),
            ("deflate;q=0.5, gzip;q=0.8", Some(Encoding::Gzip)),
            ("gzip;q=0", None),
            ("identity", None),
            ("br, zstd", None),
            ("", None),
        ] {
            assert_eq!(Encoding::wanted(accept), wanted, "{accept}");
        }
    }
}
