//! Cap'n Proto RPC over one stream, with bounds that capnp-rpc itself does not have.
//!
//! capnp-rpc reads every call as it comes, keeps every answer until the peer has taken it, and writes each message by
//! itself: a client that never waits makes a server grow without end, and two small writes cost two system calls. This
//! is its network interface implemented anew, message by message:
//!
//! - **Read gate.** A call is in flight from being read until its return has been written to the socket. While the calls
//!   in flight, or their bytes, are at the limit, the next call is held and nothing behind it is read, so the peer's
//!   sends back up in the kernel and then in the peer. A cancellation behind a held call is not read either; weir's own
//!   clients stay below the limit, which login tells them.
//! - **Gathered writes.** Messages of one turn of the executor go out in one system call, from where they were built.
//! - **Limits.** A message's size and parts are checked before anything is allocated for it; an unfinished message, a peer
//!   that takes nothing, and one that never acknowledges answers end the connection with a reason.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::rc::{Rc, Weak};

use capnp::capability::Promise;
use capnp::message::{HeapAllocator, ReaderOptions};
use capnp::serialize::{OwnedSegments, SegmentLengthsBuilder};
use capnp_rpc::rpc_capnp::message;
use capnp_rpc::rpc_twoparty_capnp::Side;
use futures::FutureExt;
use futures::future::Shared;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::Notify;

use crate::limits::Limits;
use crate::net::Stream;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Ended {
    #[error("the peer closed the connection")]
    Closed,
    #[error("closed from this side")]
    ClosedHere,
    #[error("the connection broke: {0}")]
    Broke(String),
    #[error("a message of {bytes} bytes is over the limit of {limit}")]
    MessageTooLarge { bytes: u64, limit: usize },
    #[error("a message in {segments} parts is over the limit of {limit}")]
    TooManySegments { segments: u64, limit: usize },
    #[error("a message was begun and not finished in time")]
    MessageStalled,
    #[error("no login in time")]
    NoLogin,
    #[error("the peer took nothing of what waits for it")]
    SendStalled,
    #[error("the peer left {0} answers unacknowledged")]
    TooManyAnswers(usize),
    #[error("not a message: {0}")]
    Malformed(String),
}

/// A handle on one connection, for those who serve it.
#[derive(Clone)]
pub struct Connection(Rc<Inner>);

struct Inner {
    limits: Limits,
    side: Side,
    logged_in: Cell<bool>,
    ended: RefCell<Option<Ended>>,
    /// Wakes the reader: the gate opened, or the connection is to close.
    reader_wake: Notify,
    close: Cell<bool>,
    gate: RefCell<Gate>,
    outbox: RefCell<VecDeque<Outgoing>>,
    outbox_wake: Notify,
    shut: Cell<bool>,
    written_all: Notify,
}

#[derive(Default)]
struct Gate {
    /// Calls in flight by question, with their bytes.
    calls: BTreeMap<u32, usize>,
    bytes: usize,
    /// Questions whose finish has not come.
    unfinished: BTreeSet<u32>,
}

struct Outgoing {
    header: Vec<u8>,
    message: Rc<capnp::message::Builder<HeapAllocator>>,
    /// The question that this answers.
    returns: Option<u32>,
}

impl Connection {
    /// Lifts the limits that hold before login.
    pub fn logged_in(&self) {
        self.0.logged_in.set(true);
    }

    /// Whether it has logged in.
    pub fn is_logged_in(&self) -> bool {
        self.0.logged_in.get()
    }

    /// Ends the connection once what is to be sent now has been sent.
    pub fn close(&self) {
        self.0.end(Ended::ClosedHere);
        self.0.close.set(true);
        self.0.reader_wake.notify_waiters();
        self.0.reader_wake.notify_one();
    }

    /// Calls in flight and their bytes, as the gate counts them.
    pub fn in_flight(&self) -> (usize, usize) {
        let gate = self.0.gate.borrow();
        (gate.calls.len(), gate.bytes)
    }

    /// The limits that it works under.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Why it ended; `None` while it lives.
    pub fn ended(&self) -> Option<Ended> {
        self.0.ended.borrow().clone()
    }
}

impl Inner {
    /// Notes the first reason.
    fn end(&self, reason: Ended) -> capnp::Error {
        let error = capnp::Error::disconnected(reason.to_string());
        self.ended.borrow_mut().get_or_insert(reason);
        error
    }

    fn gate_is_full(&self) -> bool {
        let gate = self.gate.borrow();
        gate.calls.len() >= self.limits.calls_in_flight
            || (gate.bytes >= self.limits.bytes_in_flight && !gate.calls.is_empty())
    }

    /// A call is not in flight any more.
    fn ended_call(&self, question: u32) {
        let mut gate = self.gate.borrow_mut();
        if let Some(bytes) = gate.calls.remove(&question) {
            gate.bytes -= bytes;
            self.reader_wake.notify_one();
        }
    }
}

/// The two parts that drive a connection: its network for `RpcSystem`, and a handle.
pub fn connect(stream: Stream, side: Side, limits: Limits) -> (Box<dyn capnp_rpc::VatNetwork<Side>>, Connection) {
    let inner = Rc::new(Inner {
        limits,
        side,
        logged_in: Cell::new(side == Side::Client),
        ended: RefCell::new(None),
        reader_wake: Notify::new(),
        close: Cell::new(false),
        gate: RefCell::default(),
        outbox: RefCell::default(),
        outbox_wake: Notify::new(),
        shut: Cell::new(false),
        written_all: Notify::new(),
    });
    let reader = Rc::new(RefCell::new(Some(BufReader::with_capacity(64 << 10, stream.reader))));
    let writing = Promise::from_future(write_all(stream.writer, Rc::clone(&inner))).shared();
    let network = Network {
        wire: Some(Wire { inner: Rc::clone(&inner), reader: Rc::clone(&reader) }),
        reader: Rc::downgrade(&reader),
        inner: Rc::clone(&inner),
        writing,
    };
    (Box::new(network), Connection(inner))
}

/// The reading half; taken out while a message is read.
type Slot = RefCell<Option<BufReader<Box<dyn AsyncRead + Unpin>>>>;
type Reader = Rc<Slot>;

struct Network {
    wire: Option<Wire>,
    reader: Weak<Slot>,
    inner: Rc<Inner>,
    writing: Shared<Promise<(), capnp::Error>>,
}

impl capnp_rpc::VatNetwork<Side> for Network {
    fn connect(&mut self, host: Side) -> Option<Box<dyn capnp_rpc::Connection<Side>>> {
        if host == self.inner.side {
            return None;
        }
        let reader = self.reader.upgrade()?;
        Some(Box::new(Wire { inner: Rc::clone(&self.inner), reader }))
    }

    fn accept(&mut self) -> Promise<Box<dyn capnp_rpc::Connection<Side>>, capnp::Error> {
        match self.wire.take() {
            Some(wire) => Promise::ok(Box::new(wire) as Box<dyn capnp_rpc::Connection<Side>>),
            // Two parties: there is no second connection.
            None => Promise::from_future(futures::future::pending()),
        }
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), capnp::Error> {
        Promise::from_future(self.writing.clone())
    }
}

struct Wire {
    inner: Rc<Inner>,
    reader: Reader,
}

impl capnp_rpc::Connection<Side> for Wire {
    fn get_peer_vat_id(&self) -> Side {
        match self.inner.side {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    fn new_outgoing_message(&mut self, first_segment_words: u32) -> Box<dyn capnp_rpc::OutgoingMessage> {
        // Zero leaves the choice to us; 256 words hold any of weir's messages that carry no tensor.
        let words = if first_segment_words == 0 { 256 } else { first_segment_words };
        let message = capnp::message::Builder::new(HeapAllocator::new().first_segment_words(words));
        Box::new(OutgoingMessage { message, inner: Rc::clone(&self.inner) })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn capnp_rpc::IncomingMessage>>, capnp::Error> {
        let (inner, slot) = (Rc::clone(&self.inner), Rc::clone(&self.reader));
        Promise::from_future(async move {
            let Some(mut reader) = slot.borrow_mut().take() else {
                return Err(capnp::Error::failed("two readers of one connection".into()));
            };
            let received = receive(&mut reader, &inner).await;
            *slot.borrow_mut() = Some(reader);
            Ok(received?.map(|message| Box::new(IncomingMessage(message)) as Box<dyn capnp_rpc::IncomingMessage>))
        })
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), capnp::Error> {
        let inner = Rc::clone(&self.inner);
        inner.shut.set(true);
        if result.is_err() {
            // What waits will not be taken any more.
            inner.outbox.borrow_mut().clear();
        }
        inner.outbox_wake.notify_one();
        Promise::ok(())
    }
}

struct OutgoingMessage {
    message: capnp::message::Builder<HeapAllocator>,
    inner: Rc<Inner>,
}

impl capnp_rpc::OutgoingMessage for OutgoingMessage {
    fn get_body(&mut self) -> capnp::Result<capnp::any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), capnp::Error>, Rc<capnp::message::Builder<HeapAllocator>>) {
        let OutgoingMessage { message, inner } = *self;
        let returns =
            match message.get_root_as_reader::<message::Reader<'_>>().and_then(|m| m.which().map_err(Into::into)) {
                Ok(message::Return(Ok(r))) => Some(r.get_answer_id()),
                _ => None,
            };
        let message = Rc::new(message);
        let header = frame_header(&message.get_segments_for_output());
        inner.outbox.borrow_mut().push_back(Outgoing { header, message: Rc::clone(&message), returns });
        inner.outbox_wake.notify_one();
        (Promise::ok(()), message)
    }

    fn take(self: Box<Self>) -> capnp::message::Builder<HeapAllocator> {
        self.message
    }

    fn size_in_words(&self) -> usize {
        self.message.size_in_words()
    }
}

struct IncomingMessage(capnp::message::Reader<OwnedSegments>);

impl capnp_rpc::IncomingMessage for IncomingMessage {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.0.get_root()
    }
}

/// The next message that may be delivered; `None` at the end.
async fn receive(
    reader: &mut BufReader<Box<dyn AsyncRead + Unpin>>,
    inner: &Rc<Inner>,
) -> capnp::Result<Option<capnp::message::Reader<OwnedSegments>>> {
    let message = loop {
        if inner.close.get() {
            return Ok(None);
        }
        let closing = inner.reader_wake.notified();
        tokio::select! {
            biased;
            // Half a message may be lost where a wake-up interrupts it: only at its first byte is there one to take.
            first = reader.read_u8() => match first {
                Ok(first) => break read_message(reader, first, inner).await?,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    inner.end(Ended::Closed);
                    return Ok(None);
                }
                Err(error) => return Err(inner.end(Ended::Broke(error.to_string()))),
            },
            () = closing => {}
        }
    };
    let kind = message.get_root::<message::Reader<'_>>()?.which();
    match kind {
        Ok(message::Call(Ok(call))) => {
            let bytes = message.size_in_words() * 8;
            while inner.gate_is_full() && !inner.close.get() {
                inner.reader_wake.notified().await;
            }
            let mut gate = inner.gate.borrow_mut();
            gate.calls.insert(call.get_question_id(), bytes);
            gate.bytes += bytes;
            gate.unfinished.insert(call.get_question_id());
            if gate.unfinished.len() > inner.limits.unfinished_answers {
                return Err(inner.end(Ended::TooManyAnswers(gate.unfinished.len())));
            }
        }
        Ok(message::Finish(Ok(finish))) => {
            inner.gate.borrow_mut().unfinished.remove(&finish.get_question_id());
            // A call that is finished before it returned is cancelled: no return follows.
            inner.ended_call(finish.get_question_id());
        }
        _ => {}
    }
    Ok(Some(message))
}

async fn read_message(
    reader: &mut BufReader<Box<dyn AsyncRead + Unpin>>,
    first: u8,
    inner: &Rc<Inner>,
) -> capnp::Result<capnp::message::Reader<OwnedSegments>> {
    let limits = &inner.limits;
    let broke = |error: io::Error| inner.end(Ended::Broke(error.to_string()));
    let table = async {
        let mut rest = [0; 3];
        reader.read_exact(&mut rest).await.map_err(broke)?;
        let segments = u64::from(u32::from_le_bytes([first, rest[0], rest[1], rest[2]])) + 1;
        if segments > limits.segments as u64 {
            return Err(inner.end(Ended::TooManySegments { segments, limit: limits.segments }));
        }
        // Lengths, and padding to a whole word.
        let mut table = vec![0; (segments as usize / 2 * 2 + 1) * 4];
        reader.read_exact(&mut table).await.map_err(broke)?;
        let lengths = table.chunks_exact(4).take(segments as usize);
        Ok(lengths.map(|b| u32::from_le_bytes(b.try_into().expect("four bytes"))).collect::<Vec<_>>())
    };
    let stalled = |_| inner.end(Ended::MessageStalled);
    let lengths = tokio::time::timeout(limits.unfinished_message, table).await.map_err(stalled)??;
    let bytes = lengths.iter().map(|words| u64::from(*words) * 8).sum::<u64>();
    let limit = if inner.logged_in.get() { limits.message_bytes } else { limits.before_login_bytes };
    if bytes > limit as u64 {
        return Err(inner.end(Ended::MessageTooLarge { bytes, limit }));
    }
    let mut builder = SegmentLengthsBuilder::with_capacity(lengths.len());
    for words in lengths {
        builder.try_push_segment(words as usize)?;
    }
    let mut segments = builder.into_owned_segments();
    let within = limits.unfinished_message + std::time::Duration::from_secs(bytes / limits.min_rate as u64);
    tokio::time::timeout(within, reader.read_exact(&mut segments)).await.map_err(stalled)?.map_err(broke)?;
    let options = ReaderOptions {
        // Each word once, and a little for lists of nothing: what is read twice is read on purpose.
        traversal_limit_in_words: Some((bytes / 8) as usize * 4 + 1024),
        nesting_limit: limits.nesting,
    };
    Ok(capnp::message::Reader::new(segments, options))
}

fn frame_header(segments: &[&[u8]]) -> Vec<u8> {
    let mut header = Vec::with_capacity((segments.len() / 2 + 1) * 8);
    header.extend((segments.len() as u32 - 1).to_le_bytes());
    for segment in segments {
        header.extend(((segment.len() / 8) as u32).to_le_bytes());
    }
    if segments.len().is_multiple_of(2) {
        header.extend([0; 4]);
    }
    header
}

/// Parts of one system call: well below the kernel's 1,024.
const SLICES_MAX: usize = 256;

/// Writes what comes into the outbox until the connection shuts down.
async fn write_all(mut writer: Box<dyn AsyncWrite + Unpin>, inner: Rc<Inner>) -> capnp::Result<()> {
    loop {
        if inner.outbox.borrow().is_empty() {
            if inner.shut.get() {
                let _ = writer.shutdown().await;
                inner.written_all.notify_waiters();
                return Ok(());
            }
            inner.outbox_wake.notified().await;
            // Others that run in this turn may have more to send.
            tokio::task::yield_now().await;
            continue;
        }
        let batch = std::mem::take(&mut *inner.outbox.borrow_mut());
        let sent = write_batch(&mut writer, &batch, inner.limits.send_stall).await;
        for question in batch.iter().filter_map(|outgoing| outgoing.returns) {
            inner.ended_call(question);
        }
        if let Err(reason) = sent {
            let error = inner.end(reason);
            inner.outbox.borrow_mut().clear();
            inner.close.set(true);
            inner.reader_wake.notify_one();
            return Err(error);
        }
    }
}

async fn write_batch(
    writer: &mut Box<dyn AsyncWrite + Unpin>,
    batch: &VecDeque<Outgoing>,
    stall: std::time::Duration,
) -> Result<(), Ended> {
    let segments: Vec<_> = batch.iter().map(|outgoing| outgoing.message.get_segments_for_output()).collect();
    let mut slices: Vec<IoSlice<'_>> = Vec::new();
    for (outgoing, segments) in batch.iter().zip(&segments) {
        slices.push(IoSlice::new(&outgoing.header));
        slices.extend(segments.iter().map(|segment| IoSlice::new(segment)));
    }
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let some = rest.len().min(SLICES_MAX);
        let written = tokio::time::timeout(stall, writer.write_vectored(&rest[..some])).await;
        match written {
            Err(_) => return Err(Ended::SendStalled),
            Ok(Err(error)) => return Err(Ended::Broke(error.to_string())),
            Ok(Ok(0)) => return Err(Ended::Closed),
            Ok(Ok(n)) => IoSlice::advance_slices(&mut rest, n),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
