use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use capnp_rpc::RpcSystem;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::task::LocalSet;
use weir_schema::predict_capnp::login;

use super::*;

/// A server whose calls end when told to, or when they are dropped.
#[derive(Default)]
struct Calls {
    begun: Cell<usize>,
    dropped: Cell<usize>,
    release: Notify,
    instantly: Cell<bool>,
    /// After so long, where it is not instantly.
    lasting: Cell<Duration>,
    /// Instantly, and with an error.
    fail: Cell<bool>,
    /// Bytes of the next answers; 0 afterwards.
    answers: RefCell<VecDeque<usize>>,
}

struct Server(Rc<Calls>);

struct Dropping(Rc<Calls>);

impl Drop for Dropping {
    fn drop(&mut self) {
        self.0.dropped.set(self.0.dropped.get() + 1);
    }
}

impl login::Server for Server {
    async fn login(
        self: Rc<Self>,
        _: login::LoginParams,
        mut results: login::LoginResults,
    ) -> Result<(), capnp::Error> {
        let calls = Rc::clone(&self.0);
        calls.begun.set(calls.begun.get() + 1);
        let dropping = Dropping(Rc::clone(&calls));
        if !calls.lasting.get().is_zero() {
            tokio::time::sleep(calls.lasting.get()).await;
        } else if !calls.instantly.get() && !calls.fail.get() {
            calls.release.notified().await;
        }
        std::mem::forget(dropping);
        if calls.fail.get() {
            return Err(capnp::Error::failed("not today".into()));
        }
        let bytes = calls.answers.borrow_mut().pop_front().unwrap_or(0);
        results.get().init_granted().set_server("x".repeat(bytes));
        Ok(())
    }
}

fn stream(reader: ReadHalf<DuplexStream>, writer: WriteHalf<DuplexStream>) -> Stream {
    Stream { reader: Box::new(reader), writer: Box::new(writer) }
}

/// Serves `calls` on one end of a pipe; returns the connection and what ends with it.
fn serve(end: DuplexStream, calls: &Rc<Calls>, limits: Limits) -> Connection {
    serve_among(end, calls, limits, &Crowd::default())
}

fn serve_among(end: DuplexStream, calls: &Rc<Calls>, limits: Limits, crowd: &Crowd) -> Connection {
    let (reader, writer) = split(end);
    let (network, connection) = connect_among(stream(reader, writer), Side::Server, limits, crowd);
    connection.logged_in();
    let client: login::Client = capnp_rpc::new_client(Server(Rc::clone(calls)));
    tokio::task::spawn_local(drive(RpcSystem::new(network, Some(client.client))));
    connection
}

/// A peer that says what it likes, message by message.
struct ByHand(WriteHalf<DuplexStream>);

type Said<'a> = message::Builder<'a>;

impl ByHand {
    async fn say(&mut self, what: impl FnOnce(Said<'_>)) {
        // It fails where the server has ended the connection; the tests look at that.
        let _ = self.0.write_all(&said(what)).await;
        settle().await;
    }

    async fn bootstrap(&mut self, question: u32) {
        self.say(|said| said.init_bootstrap().set_question_id(question)).await;
    }

    /// A call on the answer to question `on`.
    async fn call(&mut self, question: u32, on: u32) {
        self.say(|said| call(said, question, on)).await;
    }

    async fn finish(&mut self, question: u32) {
        self.say(|said| said.init_finish().set_question_id(question)).await;
    }
}

fn said(what: impl FnOnce(Said<'_>)) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    what(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

/// A bootstrap and `calls` calls on it, sent without waiting.
fn calls_ahead(calls: u32) -> Vec<u8> {
    let bootstrap = said(|said| said.init_bootstrap().set_question_id(0));
    bootstrap.into_iter().chain((1..=calls).flat_map(|question| said(|said| call(said, question, 0)))).collect()
}

fn call(said: Said<'_>, question: u32, on: u32) {
    let mut call = said.init_call();
    call.set_question_id(question);
    call.set_interface_id(<login::Client as capnp::traits::HasTypeId>::TYPE_ID);
    call.init_target().init_promised_answer().set_question_id(on);
}

/// Takes all that comes.
fn take_all(mut reader: ReadHalf<DuplexStream>) {
    tokio::task::spawn_local(async move {
        let mut sink = [0; 4096];
        while reader.read(&mut sink).await.is_ok_and(|n| n > 0) {}
    });
}

fn dial(end: DuplexStream) -> login::Client {
    let (reader, writer) = split(end);
    let (network, _) = connect(stream(reader, writer), Side::Client, Limits::default());
    let mut system = RpcSystem::new(network, None);
    let client = system.bootstrap(Side::Server);
    tokio::task::spawn_local(drive(system));
    client
}

/// Lets every task run until none has anything to do.
async fn settle() {
    for _ in 0..500 {
        tokio::task::yield_now().await;
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_client_that_never_waits_has_no_more_calls_read_than_the_limit() {
    run(async {
        let calls = Rc::new(Calls::default());
        let (here, there) = duplex(1 << 26);
        let connection = serve(there, &calls, Limits { calls_in_flight: 64, ..Limits::default() });
        let client = dial(here);
        let sent: Vec<_> = (0..10_000).map(|_| client.login_request().send().promise).collect();
        settle().await;
        assert_eq!((calls.begun.get(), connection.in_flight().0), (64, 64));
        // As some end, as many more are read.
        for _ in 0..10 {
            calls.release.notify_one();
        }
        settle().await;
        assert_eq!((calls.begun.get(), connection.in_flight().0), (74, 64));
        drop(sent);
    });
}

#[test]
fn the_bytes_of_calls_in_flight_are_bounded_too() {
    run(async {
        let calls = Rc::new(Calls::default());
        let (here, there) = duplex(1 << 26);
        let connection = serve(there, &calls, Limits { bytes_in_flight: 100_000, ..Limits::default() });
        let client = dial(here);
        let send = || {
            let mut call = client.login_request();
            call.get().init_request().set_token(&[0; 30_000]);
            call.send().promise
        };
        let sent: Vec<_> = (0..100).map(|_| send()).collect();
        settle().await;
        assert_eq!(calls.begun.get(), 4, "the fourth goes over the limit");
        assert!(connection.in_flight().1 < 130_000 + 4096);
        drop(sent);
    });
}

#[test]
fn a_dropped_call_drops_its_handler_and_its_place() {
    run(async {
        let calls = Rc::new(Calls::default());
        let (here, there) = duplex(1 << 20);
        let connection = serve(there, &calls, Limits::default());
        let client = dial(here);
        let call = client.login_request().send().promise;
        settle().await;
        assert_eq!((calls.begun.get(), calls.dropped.get()), (1, 0));
        drop(call);
        settle().await;
        assert_eq!((calls.dropped.get(), connection.in_flight().0), (1, 0));
    });
}

/// Counts writes.
struct Counting {
    inner: WriteHalf<DuplexStream>,
    writes: Rc<Cell<usize>>,
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.set(self.writes.get() + 1);
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes.set(self.writes.get() + 1);
        let gathered: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        Pin::new(&mut self.inner).poll_write(cx, &gathered)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[test]
fn messages_of_one_turn_are_written_together() {
    run(async {
        let calls = Rc::new(Calls::default());
        calls.instantly.set(true);
        let (here, there) = duplex(1 << 20);
        serve(there, &calls, Limits::default());
        let (reader, writer) = split(here);
        let writes = Rc::new(Cell::new(0));
        let counting = Counting { inner: writer, writes: Rc::clone(&writes) };
        let (network, _) =
            connect(Stream { reader: Box::new(reader), writer: Box::new(counting) }, Side::Client, Limits::default());
        let mut system = RpcSystem::new(network, None);
        let client: login::Client = system.bootstrap(Side::Server);
        tokio::task::spawn_local(system);
        client.login_request().send().promise.await.unwrap();
        settle().await;
        let before = writes.get();
        let sent: Vec<_> = (0..50).map(|_| client.login_request().send().promise).collect();
        for call in sent {
            call.await.unwrap();
        }
        settle().await;
        // One for the calls; the acknowledgements follow the answers in a few turns.
        assert!(writes.get() - before <= 6, "{} writes for 50 calls", writes.get() - before);
    });
}

/// What the server says about a connection on which these bytes came.
#[test]
fn calls_that_ended_any_way_are_not_taken_for_going_on() {
    run(async {
        let calls = Rc::new(Calls::default());
        let (here, there) = duplex(1 << 20);
        let server = serve(there, &calls, Limits::default());
        let (reader, writer) = split(here);
        let (network, here) = connect(stream(reader, writer), Side::Client, Limits::default());
        let mut system = RpcSystem::new(network, None);
        let client: login::Client = system.bootstrap(Side::Server);
        tokio::task::spawn_local(system);
        let going_on = |asked: usize| {
            assert_eq!((here.0.asked.borrow().len(), server.0.asked.borrow().len()), (asked, 0));
        };
        // Answered, failed, and dropped by the caller before it was answered: a call after each has nothing to wait for.
        calls.instantly.set(true);
        client.login_request().send().promise.await.unwrap();
        settle().await;
        going_on(0);
        calls.fail.set(true);
        assert!(client.login_request().send().promise.await.is_err());
        settle().await;
        going_on(0);
        calls.fail.set(false);
        calls.instantly.set(false);
        let dropped = client.login_request().send().promise;
        let running = client.login_request().send().promise;
        settle().await;
        going_on(2);
        drop((dropped, running));
        settle().await;
        going_on(0);
        assert_eq!(here.0.given_up.get(), 2, "those that ended before were not given up");
    });
}

#[test]
fn a_connection_on_which_many_calls_were_given_up_is_worn_out_once_none_is_waited_for() {
    run(async {
        let calls = Rc::new(Calls::default());
        let (here, there) = duplex(1 << 20);
        serve(there, &calls, Limits::default());
        let (reader, writer) = split(here);
        let (network, here) = connect(stream(reader, writer), Side::Client, Limits::default());
        let mut system = RpcSystem::new(network, None);
        let client: login::Client = system.bootstrap(Side::Server);
        tokio::task::spawn_local(system);
        let running = client.login_request().send().promise;
        settle().await;
        here.0.given_up.set(GIVEN_UP_MAX - 1);
        let one_more = client.login_request().send().promise;
        settle().await;
        drop(one_more);
        settle().await;
        assert!(!here.is_worn_out(), "a call is waited for");
        calls.release.notify_waiters();
        running.await.unwrap();
        settle().await;
        assert!(here.is_worn_out());
    });
}

#[test]
fn an_answer_that_others_may_follow_waits_for_them_and_one_alone_does_not() {
    run(async {
        let calls = Rc::new(Calls::default());
        let (mut here, there) = duplex(1 << 20);
        let server = serve(there, &calls, Limits::default());
        here.write_all(&calls_ahead(2)).await.unwrap();
        settle().await;
        assert_eq!(calls.begun.get(), 2);
        let answer = |returns: usize| Outgoing {
            header: Vec::new(),
            message: Rc::new(capnp::message::Builder::new_default()),
            bytes: 0,
            returns: Some(returns),
            calls: false,
        };
        // Both run, so none is about to be written.
        assert!(!server.0.writes_alone());
        let first = server.0.returned(1, false).unwrap();
        server.0.outbox.borrow_mut().push_back(answer(first));
        assert!(!server.0.writes_alone(), "the second may end in this turn");
        let second = server.0.returned(2, false).unwrap();
        server.0.outbox.borrow_mut().push_back(answer(second));
        assert!(server.0.writes_alone(), "nothing else runs");
        server.0.drop_outbox();
        assert!(!server.0.writes_alone(), "what is neither call nor return can wait");
    });
}

fn ended_by(bytes: &[u8], limits: Limits) -> Option<Ended> {
    let ended = Rc::new(RefCell::new(None));
    let told = Rc::clone(&ended);
    let bytes = bytes.to_vec();
    run(async move {
        let (mut here, there) = duplex(1 << 20);
        let connection = serve(there, &Rc::new(Calls::default()), limits);
        here.write_all(&bytes).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        *told.borrow_mut() = connection.ended();
    });
    ended.take()
}

fn header(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn messages_beyond_the_limits_end_the_connection_with_the_reason() {
    let gibibyte = ended_by(&header(&[0, 1 << 27]), Limits::default());
    assert_eq!(gibibyte, Some(Ended::MessageTooLarge { bytes: 1 << 30, limit: 16 << 20 }));
    let overflow = ended_by(&header(&[2, u32::MAX, u32::MAX, u32::MAX]), Limits::default());
    assert!(matches!(overflow, Some(Ended::MessageTooLarge { .. })));
    let parts = ended_by(&header(&[600]), Limits::default());
    assert_eq!(parts, Some(Ended::TooManySegments { segments: 601, limit: 512 }));
    assert!(matches!(ended_by(&[0xff; 8], Limits::default()), Some(Ended::TooManySegments { .. })));
}

#[test]
fn a_message_that_is_begun_and_not_finished_ends_the_connection() {
    assert_eq!(ended_by(&[0], Limits::default()), Some(Ended::MessageStalled), "in its table");
    let mut half = header(&[0, 1000]);
    half.extend([0; 100]);
    assert_eq!(ended_by(&half, Limits::default()), Some(Ended::MessageStalled), "in its body");
}

#[test]
fn a_peer_that_never_acknowledges_answers_is_left() {
    run(async {
        let calls = Rc::new(Calls::default());
        // Only these are to be acknowledged: other answers of weir carry nothing that would have to be given back.
        calls.fail.set(true);
        let (here, there) = duplex(1 << 26);
        let connection = serve(there, &calls, Limits { unfinished_answers: 100, ..Limits::default() });
        let (reader, writer) = split(here);
        take_all(reader);
        let mut peer = ByHand(writer);
        peer.bootstrap(0).await;
        for question in 1..200 {
            peer.call(question, 0).await;
        }
        assert_eq!(connection.ended(), Some(Ended::TooManyAnswers(101)));
    });
}

#[test]
fn a_peer_that_takes_nothing_is_left_after_a_while() {
    run(async {
        let calls = Rc::new(Calls::default());
        calls.instantly.set(true);
        // A pipe that holds less than the answer to one call.
        let (here, there) = duplex(64);
        let connection = serve(there, &calls, Limits::default());
        let (_reader, mut writer) = split(here);
        writer.write_all(&calls_ahead(0)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(connection.ended(), Some(Ended::SendStalled));
    });
}

#[test]
fn answers_that_need_no_acknowledgement_are_not_counted_as_lacking_it() {
    run(async {
        let calls = Rc::new(Calls::default());
        calls.instantly.set(true);
        let (here, there) = duplex(1 << 26);
        let connection = serve(there, &calls, Limits { unfinished_answers: 100, ..Limits::default() });
        let (reader, writer) = split(here);
        take_all(reader);
        let mut peer = ByHand(writer);
        peer.bootstrap(0).await;
        for question in 1..500 {
            peer.call(question, 0).await;
        }
        assert_eq!((connection.ended(), calls.begun.get()), (None, 499));
    });
}

#[test]
fn an_answer_that_waits_to_be_taken_stays_in_flight_whatever_the_peer_says() {
    run(async {
        let calls = Rc::new(Calls::default());
        calls.instantly.set(true);
        let (here, there) = duplex(64);
        let connection = serve(there, &calls, Limits::default());
        let (mut reader, writer) = split(here);
        let mut peer = ByHand(writer);
        peer.bootstrap(0).await;
        // Its answer is taken, no more.
        let mut sink = [0; 64];
        while connection.in_flight().0 > 0 {
            assert!(reader.read(&mut sink).await.unwrap() > 0);
            settle().await;
        }
        peer.call(1, 0).await;
        peer.finish(1).await;
        assert_eq!((calls.begun.get(), connection.in_flight().0), (1, 1));
        take_all(reader);
        settle().await;
        assert_eq!(connection.in_flight(), (0, 0));
    });
}

#[test]
fn a_question_used_anew_while_an_older_answer_is_written_leaves_no_place_taken() {
    run(async {
        let calls = Rc::new(Calls::default());
        let (here, there) = duplex(512);
        let connection = serve(there, &calls, Limits::default());
        let (mut reader, writer) = split(here);
        let mut peer = ByHand(writer);
        peer.bootstrap(0).await;
        let mut taken = [0; 512];
        let _ = reader.read(&mut taken).await.unwrap();
        settle().await;
        // A small answer and a big one are written together; the peer has the small one and asks again under its number.
        peer.call(1, 0).await;
        peer.call(2, 0).await;
        let (2, both) = connection.in_flight() else { panic!("{:?}", connection.in_flight()) };
        calls.answers.replace(VecDeque::from([0, 100_000]));
        calls.release.notify_one();
        calls.release.notify_waiters();
        settle().await;
        assert_eq!(connection.in_flight(), (1, both / 2), "the small one is done");
        calls.instantly.set(true);
        peer.call(1, 0).await;
        assert_eq!(connection.in_flight().0, 2);
        take_all(reader);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((calls.begun.get(), connection.in_flight()), (3, (0, 0)));
    });
}

/// How a server ends a connection on which this is said after a bootstrap (question 0) and a call (question 1).
fn ended_by_saying(what: impl FnOnce(Said<'_>) + 'static) -> Option<Ended> {
    let ended = Rc::new(RefCell::new(None));
    let told = Rc::clone(&ended);
    run(async move {
        let calls = Rc::new(Calls::default());
        let (here, there) = duplex(1 << 20);
        let connection = serve(there, &calls, Limits::default());
        let (reader, writer) = split(here);
        take_all(reader);
        let mut peer = ByHand(writer);
        peer.bootstrap(0).await;
        peer.call(1, 0).await;
        assert_eq!(connection.ended(), None);
        peer.say(what).await;
        assert_eq!(calls.dropped.get(), usize::from(connection.ended().is_some()), "the calls end with it");
        *told.borrow_mut() = connection.ended();
    });
    ended.take()
}

#[test]
fn what_would_outlive_its_finish_or_be_echoed_ends_the_connection() {
    let refused = |what: fn(Said<'_>)| assert!(matches!(ended_by_saying(what), Some(Ended::NotSpoken(_))));
    refused(|said| call(said, 2, 1));
    refused(|mut said| {
        call(said.reborrow(), 2, 0);
        let Ok(message::Call(Ok(call))) = said.which() else { unreachable!() };
        call.get_send_results_to().set_yourself(());
    });
    refused(|mut said| {
        call(said.reborrow(), 2, 0);
        let Ok(message::Call(Ok(call))) = said.which() else { unreachable!() };
        call.init_params().init_cap_table(1).get(0).init_receiver_answer().set_question_id(1);
    });
    refused(|said| call(said, 1, 0));
    refused(|said| said.init_provide().set_question_id(2));
    refused(|said| said.init_accept().set_question_id(2));
    refused(|said| said.init_join().set_question_id(2));
    refused(|said| said.init_disembargo().init_context().set_sender_loopback(7));
    assert_eq!(ended_by_saying(|said| call(said, 2, 0)), None);
}

#[test]
fn bootstraps_are_counted_like_calls() {
    run(async {
        let (here, there) = duplex(1 << 26);
        let limits = Limits { unfinished_answers: 100, ..Limits::default() };
        let connection = serve(there, &Rc::new(Calls::default()), limits);
        let (reader, writer) = split(here);
        take_all(reader);
        let mut peer = ByHand(writer);
        for question in 0..101 {
            peer.bootstrap(question).await;
        }
        assert_eq!(connection.ended(), Some(Ended::TooManyAnswers(101)));
    });
}

#[test]
fn nothing_more_is_read_while_too_much_waits_to_be_taken() {
    run(async {
        let calls = Rc::new(Calls::default());
        calls.instantly.set(true);
        calls.answers.replace(VecDeque::from([100_000; 9]));
        let (here, there) = duplex(4096);
        let connection = serve(there, &calls, Limits { bytes_in_flight: 250_000, ..Limits::default() });
        let (reader, writer) = split(here);
        let mut peer = ByHand(writer);
        peer.bootstrap(0).await;
        for question in 1..10 {
            peer.call(question, 0).await;
        }
        assert_eq!(calls.begun.get(), 3);
        take_all(reader);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((calls.begun.get(), connection.in_flight()), (9, (0, 0)));
    });
}

#[test]
fn a_message_must_keep_coming_to_its_end() {
    run(async {
        let (here, there) = duplex(1 << 20);
        let connection = serve(there, &Rc::new(Calls::default()), Limits::default());
        let (_reader, mut writer) = split(here);
        // 16 MiB that might take 17 minutes: nothing for 5 s is enough.
        writer.write_all(&header(&[0, 2 << 20])).await.unwrap();
        for _ in 0..10 {
            writer.write_all(&[0; 100_000]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        assert_eq!(connection.ended(), None);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(connection.ended(), Some(Ended::MessageStalled));
    });
}

#[test]
fn a_close_is_noticed_in_the_middle_of_a_message() {
    run(async {
        let (here, there) = duplex(1 << 20);
        let connection = serve(there, &Rc::new(Calls::default()), Limits::default());
        let (mut reader, mut writer) = split(here);
        writer.write_all(&header(&[0, 1000])).await.unwrap();
        settle().await;
        connection.close();
        let mut rest = Vec::new();
        let closed = reader.read_to_end(&mut rest);
        assert!(tokio::time::timeout(Duration::from_secs(1), closed).await.is_ok());
    });
}

#[test]
fn an_answer_that_is_too_large_fails_alone() {
    run(async {
        let calls = Rc::new(Calls::default());
        calls.instantly.set(true);
        calls.answers.replace(VecDeque::from([17 << 20, 15 << 20]));
        let (here, there) = duplex(1 << 20);
        // What it reads itself does not matter.
        let connection = serve(there, &calls, Limits::members());
        connection.peer_reads(16 << 20);
        let client = dial(here);
        let error = client.login_request().send().promise.await.err().expect("17 MiB are too many");
        assert!(error.extra.contains("ask for fewer rows"), "{error}");
        assert!(client.login_request().send().promise.await.is_ok(), "the connection goes on");
        settle().await;
        assert_eq!((connection.ended(), connection.in_flight()), (None, (0, 0)));
    });
}

#[test]
fn calls_that_wait_end_with_their_connection_whichever_end_it_has() {
    run(async {
        // A peer that is there and takes nothing, and then is gone.
        let (here, there) = duplex(64);
        let client = dial(here);
        let waiting = client.login_request().send().promise;
        assert!(tokio::time::timeout(Duration::from_secs(11), waiting).await.expect("an end").is_err());
        drop(there);
    });
}

#[tokio::test]
async fn what_one_peer_has_sent_ahead_does_not_stand_before_another_s_call() {
    const AHEAD: u32 = 40;
    LocalSet::new()
        .run_until(async {
            let [mut many, mut one] = [(); 2].map(|()| {
                let (ours, theirs) = duplex(1 << 20);
                let calls = Rc::new(Calls::default());
                let connection = serve(theirs, &calls, Limits::default());
                (ours, calls, connection)
            });
            many.0.write_all(&calls_ahead(AHEAD)).await.unwrap();
            one.0.write_all(&calls_ahead(1)).await.unwrap();
            while one.1.begun.get() == 0 {
                tokio::task::yield_now().await;
            }
            let ahead = many.1.begun.get();
            assert!(ahead < AHEAD as usize / 2, "{ahead} calls were taken up first");
        })
        .await;
}

/// Callers of one server, whose calls last a millisecond unless said otherwise.
#[derive(Default)]
struct Neighbourhood(Crowd);

impl Neighbourhood {
    fn caller(&self, lasting: Duration) -> (login::Client, Rc<Calls>, Connection) {
        let calls = Rc::new(Calls::default());
        calls.lasting.set(lasting);
        // All of a flood fits into it: no sender stalls.
        let (here, there) = duplex(1 << 21);
        let connection = serve_among(there, &calls, Limits::default(), &self.0);
        connection.gives_way();
        (dial(here), calls, connection)
    }

    /// One that sends so many calls and never waits; what it was promised must be kept.
    fn flood(&self, lasting: Duration, calls: usize) -> (Vec<impl Future<Output = bool>>, Rc<Calls>, Connection) {
        let (client, begun, connection) = self.caller(lasting);
        let sent = (0..calls).map(|_| client.login_request().send().promise.map(|answered| answered.is_ok())).collect();
        (sent, begun, connection)
    }

    /// One that keeps so many calls in flight.
    fn loops(&self, in_flight: usize, lasting: Duration) -> Rc<Calls> {
        let (client, begun, _) = self.caller(lasting);
        for _ in 0..in_flight {
            let client = client.clone();
            tokio::task::spawn_local(async move { while client.login_request().send().promise.await.is_ok() {} });
        }
        begun
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

/// Calls that were begun meanwhile.
async fn begun_within(span: Duration, calls: &Calls) -> usize {
    let before = calls.begun.get();
    tokio::time::sleep(span).await;
    calls.begun.get() - before
}

#[test]
fn a_flood_gets_a_share_while_another_asks_and_all_again_afterwards() {
    run(async {
        let here = Neighbourhood::default();
        let (_sent, flood, _) = here.flood(MILLISECOND, 15_000);
        let (one, asks, _) = here.caller(MILLISECOND);
        let asking = tokio::task::spawn_local(async move { while one.login_request().send().promise.await.is_ok() {} });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (share, other) =
            tokio::join!(begun_within(Duration::from_secs(1), &flood), begun_within(Duration::from_secs(1), &asks),);
        // A call of 1 ms and a rest of 31, or of twice that: timers round up.
        assert!((15..=32).contains(&share), "{share} calls of the flood in a second");
        assert!(other > 300, "{other} calls of the other");
        asking.abort();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let alone = begun_within(Duration::from_millis(100), &flood).await;
        assert!(alone > 1_000, "{alone} calls in a tenth of a second once it is alone");
    });
}

#[test]
fn a_flood_that_is_alone_and_one_beside_another_flood_are_served_at_full_speed() {
    run(async {
        let here = Neighbourhood::default();
        let (_one, first, _) = here.flood(MILLISECOND, 5_000);
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(first.begun.get(), 5_000);
        let (_both, [first, second]) = {
            let (one, first, _) = here.flood(MILLISECOND, 10_000);
            let (other, second, _) = here.flood(MILLISECOND, 10_000);
            ((one, other), [first, second])
        };
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!((first.begun.get(), second.begun.get()), (10_000, 10_000));
    });
}

#[test]
fn callers_that_keep_to_the_limit_are_no_flood_however_many_ask() {
    run(async {
        let here = Neighbourhood::default();
        let (full, one) = (here.loops(64, MILLISECOND), here.loops(1, MILLISECOND));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (many, few) = tokio::join!(
            begun_within(Duration::from_millis(200), &full),
            begun_within(Duration::from_millis(200), &one)
        );
        // Timers round up, to half of the speed at worst.
        assert!(many >= 64 * 90 && few >= 90, "{many} and {few} calls");
    });
}

#[test]
fn a_flood_of_calls_that_last_is_not_starved() {
    run(async {
        let here = Neighbourhood::default();
        let (_sent, flood, _) = here.flood(MILLISECOND, 5_000);
        here.loops(1, Duration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(200)).await;
        flood.lasting.set(Duration::from_secs(1));
        // The last short one and its rest may come first.
        let begun = begun_within(Duration::from_millis(20_100), &flood).await;
        assert!((10..=11).contains(&begun), "{begun} calls of 1 s with 1 s of rest");
    });
}

#[test]
fn a_member_s_connection_is_never_taken_for_a_flood() {
    run(async {
        let here = Neighbourhood::default();
        let (_sent, member, connection) = here.flood(MILLISECOND, 5_000);
        connection.0.gives_way.set(false);
        here.loops(1, MILLISECOND);
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(member.begun.get(), 5_000);
    });
}

#[test]
fn a_close_is_noticed_while_a_flood_rests() {
    run(async {
        let here = Neighbourhood::default();
        let (mut sent, flood, connection) = here.flood(MILLISECOND, 1_000);
        here.loops(1, MILLISECOND);
        tokio::time::sleep(Duration::from_millis(200)).await;
        flood.lasting.set(Duration::from_millis(100));
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(connection.in_flight().0, 0, "it rests");
        connection.close();
        let last = sent.pop().expect("one that waits");
        assert_eq!(tokio::time::timeout(MILLISECOND * 10, last).await, Ok(false));
    });
}
