//! Cap'n Proto RPC over one stream, with bounds that capnp-rpc itself does not have.
//!
//! capnp-rpc reads every call as it comes, keeps every answer until the peer has taken it, and writes each message by
//! itself: a client that never waits makes a server grow without end, and two small writes cost two system calls. This
//! is its network interface implemented anew, message by message:
//!
//! - **Read gate.** A call (a bootstrap too) is in flight from being read until its return has been written to the socket,
//!   whatever the peer says of it meanwhile. While the calls in flight, or their bytes, are at the limit, the next call is
//!   held and nothing behind it is read, so the peer's sends back up in the kernel and then in the peer. A cancellation
//!   behind a held call is not read either; weir's own clients stay below the limit, which login tells them. A server
//!   reads nothing at all while more than that waits to be taken from it. A caller that goes on meeting a full gate gets a
//!   [share](crate::share) only while others ask.
//! - **Few messages.** What weir's own peers never send ends the connection: results sent elsewhere, calls on the answer of
//!   another call, and everything of three parties. Each of them outlives its finish, or is echoed, without being counted.
//! - **Gathered writes.** Messages of one turn of the executor go out in one system call, from where they were built.
//! - **Borrowed buffers.** What comes together is read by one system call, into a buffer that a connection has only while something is in it.
//! - **Limits.** A message's size and parts are checked before anything is allocated for it; an unfinished message, a peer
//!   that takes nothing, and one that never acknowledges answers end the connection with a reason.

mod buffered;
mod within;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::rc::{Rc, Weak};

use capnp::capability::Promise;
use capnp::message::{HeapAllocator, ReaderOptions};
use capnp::serialize::{OwnedSegments, SegmentLengthsBuilder};
use capnp_rpc::rpc_capnp::call::send_results_to;
use capnp_rpc::rpc_capnp::{cap_descriptor, message, message_target};
use capnp_rpc::rpc_twoparty_capnp::Side;
use futures::FutureExt;
use futures::future::Shared;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::buffered::Buffered;
use self::within::within;
use crate::limits::Limits;
use crate::net::Stream;
use crate::share::{Crowd, Place, Pressure};

/// Calls given up on one connection before it is worn out: at some 100 bytes each, a megabyte.
const GIVEN_UP_MAX: usize = 10_000;

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
    #[error("not spoken here: {0}")]
    NotSpoken(&'static str),
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
    /// Largest message that the peer reads.
    peer_reads: Cell<usize>,
    ended: RefCell<Option<Ended>>,
    /// Wakes the reader: the gate opened, or the connection is to close.
    reader_wake: Notify,
    close: Cell<bool>,
    gate: RefCell<Gate>,
    place: Place,
    pressure: Pressure,
    /// Whether a peer that floods gives way to others.
    gives_way: Cell<bool>,
    outbox: RefCell<VecDeque<Outgoing>>,
    /// Of the outbox and of what is being written.
    outbox_bytes: Cell<usize>,
    outbox_wake: Notify,
    /// Questions of this side that have no return yet and were not given up.
    asked: RefCell<BTreeSet<u32>>,
    /// Questions that this side gave up before they had a return.
    given_up: Cell<usize>,
    /// Calls of the peer taken up since others had their turn.
    taken: Cell<usize>,
    shut: Cell<bool>,
    written_all: Notify,
}

#[derive(Default)]
struct Gate {
    /// Calls that have not returned, by question, with their bytes.
    calls: BTreeMap<u32, usize>,
    /// Calls whose return waits to be written. The peer may have used their questions anew.
    returning: usize,
    /// Of both.
    bytes: usize,
    /// Questions whose finish has not come and is to come.
    unfinished: BTreeSet<u32>,
    /// Questions for the bootstrap object that are not finished: the only answers that calls may be made on.
    bootstraps: BTreeSet<u32>,
}

impl Gate {
    fn in_flight(&self) -> usize {
        self.calls.len() + self.returning
    }
}

struct Outgoing {
    header: Vec<u8>,
    message: Rc<capnp::message::Builder<HeapAllocator>>,
    bytes: usize,
    /// Bytes of the call that this answers, in flight until this is written.
    returns: Option<usize>,
    /// It makes a call.
    calls: bool,
}

impl Connection {
    /// Lifts the limits that hold before login.
    pub fn logged_in(&self) {
        self.0.logged_in.set(true);
    }

    /// While others of its crowd ask, it gets only a share as long as its peer floods it.
    pub fn gives_way(&self) {
        self.0.gives_way.set(true);
    }

    /// Says how large a message the peer reads; until then, as large as what is read here. An answer over it fails alone.
    pub fn peer_reads(&self, bytes: usize) {
        self.0.peer_reads.set(bytes);
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
        (gate.in_flight(), gate.bytes)
    }

    /// Whether so many calls were given up on it that another connection should take its place, and none is waited for.
    /// capnp-rpc answers no call that was cancelled, and the caller's side keeps a place for each until the connection ends.
    pub fn is_worn_out(&self) -> bool {
        self.0.given_up.get() >= GIVEN_UP_MAX && self.0.asked.borrow().is_empty()
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
        gate.in_flight() >= self.limits.calls_in_flight
            || (gate.bytes >= self.limits.bytes_in_flight && gate.in_flight() > 0)
    }

    /// Whether so much waits to be taken that nothing more is read. Only of servers: two that waited for each other would
    /// wait for ever.
    fn outbox_is_full(&self) -> bool {
        self.side == Side::Server && self.outbox_bytes.get() >= self.limits.bytes_in_flight.max(1)
    }

    /// Whether a call or a return waits to be written and nothing else goes on that could add to it soon: then it goes out
    /// at once.
    fn writes_alone(&self) -> bool {
        let outbox = self.outbox.borrow();
        let (calls, returns) = (outbox.iter().filter(|o| o.calls).count(), outbox.iter().any(|o| o.returns.is_some()));
        (calls > 0 || returns) && self.asked.borrow().len() + self.gate.borrow().calls.len() <= calls
    }

    /// Whether others should have their turn before the call that was just taken up is served. One that is alone on its
    /// connection has no successor that could stand in their way, and to let the others run costs a turn of the event loop.
    fn has_had_its_turn(&self) -> bool {
        if self.gate.borrow().in_flight() <= 1 {
            self.taken.set(0);
            return false;
        }
        self.taken.set((self.taken.get() + 1) % CALLS_A_TURN);
        self.taken.get() == 0
    }

    /// The peer sent something, after nothing since then.
    fn sent_again(&self, waits_since: Option<Instant>) {
        if let Some(since) = waits_since {
            self.pressure.on_nothing_sent(since.elapsed());
        }
    }

    /// Waits at the gate with a call of so many bytes, and takes it in.
    async fn enter_gate(&self, question: u32, bytes: usize) -> capnp::Result<()> {
        self.pressure.on_call(self.gate_is_full());
        while self.gate_is_full() && !self.close.get() {
            self.reader_wake.notified().await;
        }
        if self.gives_way.get() && self.pressure.floods() {
            self.give_way().await;
        } else {
            self.place.asks(Instant::now());
        }
        let mut gate = self.gate.borrow_mut();
        if gate.calls.contains_key(&question) || !gate.unfinished.insert(question) {
            return Err(self.end(Ended::NotSpoken("a question under a number that is in use")));
        }
        gate.calls.insert(question, bytes);
        gate.bytes += bytes;
        if gate.unfinished.len() > self.limits.unfinished_answers {
            return Err(self.end(Ended::TooManyAnswers(gate.unfinished.len())));
        }
        Ok(())
    }

    /// Waits, while others ask, until the last call of a peer that floods has ended and it has rested.
    async fn give_way(&self) {
        let mut rested = None;
        while let Some(quiet) = self.place.others_quiet_at() {
            let now = Instant::now();
            if rested.is_none() && self.gate.borrow().in_flight() == 0 {
                rested = Some(self.pressure.rests_until(now));
            }
            let until = rested.unwrap_or(quiet).min(quiet);
            if now >= until || self.close.get() {
                break;
            }
            // Ended by the time, or by what is looked at above.
            let _ = tokio::time::timeout_at(until, self.reader_wake.notified()).await;
        }
        self.pressure.on_let_in(Instant::now());
    }

    /// The peer wants to hear no more of a question.
    fn finished(&self, question: u32) {
        let mut gate = self.gate.borrow_mut();
        gate.unfinished.remove(&question);
        gate.bootstraps.remove(&question);
        // What has not returned is cancelled; what has stays until the peer has taken it.
        if let Some(bytes) = gate.calls.remove(&question) {
            gate.bytes -= bytes;
            self.reader_wake.notify_one();
        }
    }

    /// A return was made: moves its call from those that run to those that are written.
    fn returned(&self, question: u32, no_finish_needed: bool) -> Option<usize> {
        let mut gate = self.gate.borrow_mut();
        if no_finish_needed {
            gate.unfinished.remove(&question);
        }
        let bytes = gate.calls.remove(&question)?;
        gate.returning += 1;
        Some(bytes)
    }

    /// The socket has taken a message, or never will.
    fn written(&self, outgoing: &Outgoing) {
        self.outbox_bytes.set(self.outbox_bytes.get() - outgoing.bytes);
        if let Some(bytes) = outgoing.returns {
            let mut gate = self.gate.borrow_mut();
            gate.returning -= 1;
            gate.bytes -= bytes;
        }
        self.reader_wake.notify_one();
    }

    fn drop_outbox(&self) {
        let dropped = std::mem::take(&mut *self.outbox.borrow_mut());
        dropped.iter().for_each(|outgoing| self.written(outgoing));
    }
}

/// Drives a connection to its end. However that comes, the calls in both directions end with it: those that run here hold
/// what serves them, and those that wait here for an answer would wait for ever.
pub async fn drive(mut system: capnp_rpc::RpcSystem<Side>) -> capnp::Result<()> {
    let _disconnect = Disconnect(system.get_disconnector());
    (&mut system).await
}

struct Disconnect(capnp_rpc::Disconnector<Side>);

impl Drop for Disconnect {
    fn drop(&mut self) {
        // The first poll takes everything apart; the rest of it only waits for the socket.
        let _ = self.0.poll_unpin(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    }
}

/// The two parts that drive a connection that is alone: its network for `RpcSystem`, and a handle.
pub fn connect(stream: Stream, side: Side, limits: Limits) -> (Box<dyn capnp_rpc::VatNetwork<Side>>, Connection) {
    connect_among(stream, side, limits, &Crowd::default())
}

/// Likewise for one of many.
pub fn connect_among(
    stream: Stream,
    side: Side,
    limits: Limits,
    crowd: &Crowd,
) -> (Box<dyn capnp_rpc::VatNetwork<Side>>, Connection) {
    let inner = Rc::new(Inner {
        peer_reads: Cell::new(limits.message_bytes),
        limits,
        side,
        logged_in: Cell::new(side == Side::Client),
        ended: RefCell::new(None),
        reader_wake: Notify::new(),
        close: Cell::new(false),
        gate: RefCell::default(),
        place: crowd.join(),
        pressure: Pressure::default(),
        gives_way: Cell::new(false),
        outbox: RefCell::default(),
        outbox_bytes: Cell::new(0),
        outbox_wake: Notify::new(),
        asked: RefCell::default(),
        given_up: Cell::new(0),
        taken: Cell::new(0),
        shut: Cell::new(false),
        written_all: Notify::new(),
    });
    let reader = Rc::new(RefCell::new(Some(Buffered::new(stream.reader))));
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
type Slot = RefCell<Option<Buffered<Box<dyn AsyncRead + Unpin>>>>;
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
        if let Err(error) = result {
            inner.end(Ended::Broke(error.extra));
            // What waits will not be taken any more.
            inner.drop_outbox();
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
        let (mut returns, mut calls) = (None, false);
        match message.get_root_as_reader::<message::Reader<'_>>().and_then(|m| m.which().map_err(Into::into)) {
            Ok(message::Return(Ok(r))) => returns = inner.returned(r.get_answer_id(), r.get_no_finish_needed()),
            Ok(message::Call(Ok(call))) => {
                calls = true;
                inner.asked.borrow_mut().insert(call.get_question_id());
            }
            Ok(message::Bootstrap(Ok(bootstrap))) => {
                calls = true;
                inner.asked.borrow_mut().insert(bootstrap.get_question_id());
            }
            Ok(message::Finish(Ok(finish))) if inner.asked.borrow_mut().remove(&finish.get_question_id()) => {
                inner.given_up.set(inner.given_up.get() + 1);
            }
            _ => {}
        }
        let message = Rc::new(message);
        let mut sent = Rc::clone(&message);
        let limit = inner.peer_reads.get();
        if returns.is_some() && message.size_in_words() * 8 > limit {
            // It would end the connection at the other end, and every other call on it.
            if let Ok(refusal) = too_large(&message, limit) {
                sent = Rc::new(refusal);
            }
        }
        let header = frame_header(&sent.get_segments_for_output());
        let bytes = sent.size_in_words() * 8;
        inner.outbox_bytes.set(inner.outbox_bytes.get() + bytes);
        inner.outbox.borrow_mut().push_back(Outgoing { header, message: sent, bytes, returns, calls });
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

/// What is sent instead of an answer that the peer would not read.
fn too_large(
    answer: &capnp::message::Builder<HeapAllocator>,
    limit: usize,
) -> capnp::Result<capnp::message::Builder<HeapAllocator>> {
    let message::Return(answered) = answer.get_root_as_reader::<message::Reader<'_>>()?.which()? else {
        return Err(capnp::Error::failed("only answers can be refused".into()));
    };
    let answered = answered?;
    let mut refusal = capnp::message::Builder::new(HeapAllocator::new().first_segment_words(64));
    let mut ret = refusal.init_root::<message::Builder<'_>>().init_return();
    ret.set_answer_id(answered.get_answer_id());
    ret.set_release_param_caps(answered.get_release_param_caps());
    ret.set_no_finish_needed(answered.get_no_finish_needed());
    let bytes = answer.size_in_words() * 8;
    let reason = format!(
        "the answer has {bytes} bytes, more than the {limit} of a message; ask for fewer rows or outputs at once"
    );
    ret.init_exception().set_reason(&reason);
    Ok(refusal)
}

struct IncomingMessage(capnp::message::Reader<OwnedSegments>);

impl capnp_rpc::IncomingMessage for IncomingMessage {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.0.get_root()
    }
}

/// Calls of one connection that are taken up before others have their turn. More make a turn cheaper for each; at some 6 µs
/// a call, these keep a neighbour waiting for less than it costs to wake a thread.
const CALLS_A_TURN: usize = 4;

/// The next message that may be delivered; `None` at the end.
async fn receive(
    reader: &mut Buffered<Box<dyn AsyncRead + Unpin>>,
    inner: &Rc<Inner>,
) -> capnp::Result<Option<capnp::message::Reader<OwnedSegments>>> {
    let message = loop {
        if inner.close.get() {
            return Ok(None);
        }
        let closing = inner.reader_wake.notified();
        if inner.outbox_is_full() {
            closing.await;
            continue;
        }
        let waits_since = inner.pressure.is_any().then(Instant::now);
        tokio::select! {
            biased;
            // Half a message may be lost where a wake-up interrupts it: only at its first byte is there one to take.
            first = reader.read_u8() => match first.inspect(|_| inner.sent_again(waits_since)) {
                Ok(first) => match read_message(reader, first, inner).await? {
                    Some(message) => break message,
                    None => return Ok(None),
                },
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    inner.end(Ended::Closed);
                    return Ok(None);
                }
                Err(error) => return Err(inner.end(Ended::Broke(error.to_string()))),
            },
            () = closing => {}
        }
    };
    let not_spoken = |what| Err(inner.end(Ended::NotSpoken(what)));
    let bytes = message.size_in_words() * 8;
    match message.get_root::<message::Reader<'_>>()?.which() {
        Ok(message::Bootstrap(bootstrap)) => {
            let question = bootstrap?.get_question_id();
            inner.enter_gate(question, bytes).await?;
            inner.gate.borrow_mut().bootstraps.insert(question);
        }
        Ok(message::Call(call)) => {
            let call = call?;
            if !matches!(call.get_send_results_to().which(), Ok(send_results_to::Caller(()))) {
                return not_spoken("results that are sent elsewhere");
            }
            if let message_target::PromisedAnswer(answer) = call.get_target()?.which()?
                && !inner.gate.borrow().bootstraps.contains(&answer?.get_question_id())
            {
                return not_spoken("a call on the answer of another");
            }
            for capability in call.get_params()?.get_cap_table()? {
                if let Ok(cap_descriptor::ReceiverAnswer(_)) = capability.which() {
                    return not_spoken("an object of an answer that is to come");
                }
            }
            inner.enter_gate(call.get_question_id(), bytes).await?;
            // Other connections of this thread have their turn: what one peer has sent ahead does not stand between them and
            // their answers.
            if inner.has_had_its_turn() {
                tokio::task::yield_now().await;
            }
        }
        Ok(message::Finish(finish)) => inner.finished(finish?.get_question_id()),
        Ok(message::Return(returned)) => drop(inner.asked.borrow_mut().remove(&returned?.get_answer_id())),
        Ok(message::Release(_) | message::Abort(_) | message::Unimplemented(_)) => {}
        // No peer of weir hands over an object before it is there, so none has to be resolved.
        Ok(message::Resolve(_) | message::Disembargo(_)) => return not_spoken("an object that is to come"),
        Ok(_) | Err(_) => return not_spoken("a message of a kind that is not of two parties"),
    }
    Ok(Some(message))
}

/// The message that this byte begins; `None` where the connection is to close before it is whole.
async fn read_message(
    reader: &mut Buffered<Box<dyn AsyncRead + Unpin>>,
    first: u8,
    inner: &Rc<Inner>,
) -> capnp::Result<Option<capnp::message::Reader<OwnedSegments>>> {
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
    let lengths = within(limits.unfinished_message, table).await.map_err(stalled)??;
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
    // A piece is what the slowest that may be brings in that time.
    let piece = ((limits.min_rate as f64 * limits.unfinished_message.as_secs_f64()) as usize).max(1);
    for piece in segments.chunks_mut(piece) {
        let whole = read_piece(reader, piece, inner);
        if !within(limits.unfinished_message, whole).await.map_err(stalled)?.map_err(broke)? {
            return Ok(None);
        }
    }
    let options = ReaderOptions {
        // Each word once, and a little for lists of nothing: what is read twice is read on purpose.
        traversal_limit_in_words: Some((bytes / 8) as usize * 4 + 1024),
        nesting_limit: limits.nesting,
    };
    Ok(Some(capnp::message::Reader::new(segments, options)))
}

/// Fills `piece`; false where the connection is to close.
async fn read_piece(
    reader: &mut Buffered<Box<dyn AsyncRead + Unpin>>,
    mut piece: &mut [u8],
    inner: &Inner,
) -> io::Result<bool> {
    while !piece.is_empty() {
        if inner.close.get() {
            return Ok(false);
        }
        tokio::select! {
            biased;
            read = reader.read(piece) => match read? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => piece = &mut piece[n..],
            },
            () = inner.reader_wake.notified() => {}
        }
    }
    Ok(true)
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
            if !inner.writes_alone() {
                tokio::task::yield_now().await;
            }
            continue;
        }
        let batch = std::mem::take(&mut *inner.outbox.borrow_mut());
        let sent = write_batch(&mut writer, batch, &inner).await;
        if let Err(reason) = sent {
            let error = inner.end(reason);
            inner.drop_outbox();
            inner.close.set(true);
            inner.reader_wake.notify_one();
            return Err(error);
        }
    }
}

async fn write_batch(
    writer: &mut Box<dyn AsyncWrite + Unpin>,
    batch: VecDeque<Outgoing>,
    inner: &Inner,
) -> Result<(), Ended> {
    let segments: Vec<_> = batch.iter().map(|outgoing| outgoing.message.get_segments_for_output()).collect();
    let mut slices: Vec<IoSlice<'_>> = Vec::new();
    // Where each message ends among the slices.
    let mut ends: VecDeque<usize> = VecDeque::new();
    for (outgoing, segments) in batch.iter().zip(&segments) {
        slices.push(IoSlice::new(&outgoing.header));
        slices.extend(segments.iter().map(|segment| IoSlice::new(segment)));
        ends.push_back(slices.len());
    }
    let mut unwritten = Unwritten { batch: batch.iter(), inner };
    let all = slices.len();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let some = rest.len().min(SLICES_MAX);
        let written = within(inner.limits.send_stall, writer.write_vectored(&rest[..some])).await;
        match written {
            Err(_) => return Err(Ended::SendStalled),
            Ok(Err(error)) => return Err(Ended::Broke(error.to_string())),
            Ok(Ok(0)) => return Err(Ended::Closed),
            Ok(Ok(n)) => IoSlice::advance_slices(&mut rest, n),
        }
        // A peer that has taken an answer may ask again at once, while what follows is still being written.
        while ends.front().is_some_and(|end| *end <= all - rest.len()) {
            ends.pop_front();
            unwritten.one();
        }
    }
    Ok(())
}

/// What of a batch has not been written; counted out where the writing ends before.
struct Unwritten<'a> {
    batch: std::collections::vec_deque::Iter<'a, Outgoing>,
    inner: &'a Inner,
}

impl Unwritten<'_> {
    fn one(&mut self) -> bool {
        self.batch.next().inspect(|outgoing| self.inner.written(outgoing)).is_some()
    }
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        while self.one() {}
    }
}

#[cfg(test)]
mod tests;
