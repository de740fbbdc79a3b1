//! A reader with a buffer while there is something in it.
//!
//! Messages that came together are read by one system call, which takes a large buffer; most connections, most of the time, have nothing to read.
//! So whoever reads borrows one of its thread, and gives it back once it is empty: ten thousand idle connections hold none.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of a buffer: what a socket has at once, as a rule.
const CAPACITY: usize = 64 << 10;
/// Buffers that a thread keeps for the next: only what was read in part is held while others read.
const SPARE_MAX: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// See above.
pub struct Buffered<R> {
    inner: R,
    /// None while it would be empty.
    buffer: Option<Buffer>,
}

/// What was read and not taken: `from` up to `to`.
struct Buffer {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Buffer {
    fn borrow() -> Buffer {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Buffer { bytes: spare.unwrap_or_else(|| vec![0; CAPACITY].into()), from: 0, to: 0 }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // A thread that ends keeps nothing.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(bytes);
            }
        });
    }
}

impl<R> Buffered<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Buffered<R> {
        Buffered { inner, buffer: None }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Buffered<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.buffer.is_none() {
            if to.remaining() >= CAPACITY {
                return Pin::new(&mut self.inner).poll_read(cx, to);
            }
            let mut buffer = Buffer::borrow();
            let mut read = ReadBuf::new(&mut buffer.bytes);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut read))?;
            buffer.to = read.filled().len();
            self.buffer = Some(buffer);
        }
        let buffer = self.buffer.as_mut().expect("it was just filled");
        let taken = (buffer.to - buffer.from).min(to.remaining());
        to.put_slice(&buffer.bytes[buffer.from..buffer.from + taken]);
        buffer.from += taken;
        if buffer.from == buffer.to {
            self.buffer = None;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_however_it_is_cut() {
        let (mut here, there) = duplex(1 << 20);
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
        here.write_all(&sent).await.unwrap();
        drop(here);
        let mut reader = Buffered::new(there);
        let (mut got, mut size) = (Vec::new(), 1);
        while got.len() < sent.len() {
            // A byte, a few, and more than a buffer holds.
            let mut piece = vec![0; size.min(sent.len() - got.len())];
            reader.read_exact(&mut piece).await.unwrap();
            got.extend(piece);
            size = size * 5 % 200_001;
        }
        assert!(got == sent);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "the end");
        assert_eq!(reader.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn who_waits_holds_no_buffer_and_who_has_read_in_part_keeps_its_own() {
        let spare = || SPARE.with_borrow(Vec::len);
        let (mut here, there) = duplex(1 << 10);
        let mut reader = Buffered::new(there);
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(1), reader.read_u8()).await;
        assert!(waiting.is_err() && reader.buffer.is_none());
        assert_eq!(spare(), 1);
        here.write_all(b"abc").await.unwrap();
        assert_eq!(reader.read_u8().await.unwrap(), b'a');
        assert_eq!((reader.buffer.is_some(), spare()), (true, 0));
        let (mut other, there) = duplex(1 << 10);
        other.write_all(b"xyz").await.unwrap();
        assert_eq!(Buffered::new(there).read_u8().await.unwrap(), b'x', "in a buffer of its own");
        let mut rest = [0; 2];
        reader.read_exact(&mut rest).await.unwrap();
        assert_eq!((&rest, reader.buffer.is_none(), spare()), (b"bc", true, 2));
    }
}
