use std::time::Duration;

use capnp_rpc::rpc_capnp::message;
use tokio::io::{AsyncWriteExt, duplex, split};
use weir_schema::predict_capnp::{login, predictor};

use super::*;

/// Lets everybody in, to an object whose calls never end.
struct Open;

struct Endless;

impl predictor::Server for Endless {
    async fn predict(
        self: Rc<Self>,
        _: predictor::PredictParams,
        _: predictor::PredictResults,
    ) -> Result<(), capnp::Error> {
        std::future::pending().await
    }
}

impl Authority for Open {
    fn admit(&self, _: &Caller, granted: granted::Builder<'_>) -> Result<(), String> {
        granted.init_role().set_predictor(capnp_rpc::new_client(Endless));
        Ok(())
    }
}

/// How a connection on which this is written ends, and whether anything keeps what served it.
fn ended_after(limits: Limits, written: Vec<u8>) -> (Ended, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        // A peer that takes nothing.
        let (mut here, there) = duplex(64);
        tokio::task::spawn_local(async move {
            here.write_all(&written).await.unwrap();
            std::future::pending::<()>().await;
        });
        let (reader, writer) = split(there);
        let authority: Rc<dyn Authority> = Rc::new(Open);
        let stream = Stream { reader: Box::new(reader), writer: Box::new(writer) };
        let ended = serve(stream, limits, Rc::clone(&authority)).await;
        (ended, Rc::strong_count(&authority) > 1)
    })
}

fn said(what: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    what(message.init_root());
    capnp::serialize::write_message_to_words(&message)
}

fn bootstrap() -> Vec<u8> {
    said(|said| said.init_bootstrap().set_question_id(0))
}

fn login() -> Vec<u8> {
    said(|said| {
        let mut call = said.init_call();
        call.set_question_id(1);
        call.set_interface_id(<login::Client as capnp::traits::HasTypeId>::TYPE_ID);
        call.reborrow().init_target().init_promised_answer().set_question_id(0);
        let params = call.init_params().init_content().init_as::<login::login_params::Builder<'_>>();
        params.init_request().set_protocol(crate::dial::PROTOCOL);
    })
}

/// On the second object that was handed out: the first is the one that login was asked of.
fn endless_call() -> Vec<u8> {
    said(|said| {
        let mut call = said.init_call();
        call.set_question_id(2);
        call.set_interface_id(<predictor::Client as capnp::traits::HasTypeId>::TYPE_ID);
        call.init_target().set_imported_cap(1);
    })
}

#[test]
fn nothing_is_kept_of_a_connection_that_never_logs_in() {
    assert_eq!(ended_after(Limits::default(), bootstrap()), (Ended::NoLogin, false));
}

#[test]
fn nothing_is_kept_of_a_connection_whose_peer_takes_nothing_while_a_call_runs() {
    let limits = Limits { send_stall: Duration::from_secs(1), ..Limits::default() };
    // The reader is in the middle of a message then.
    let begun = [0, 0, 0, 0, 100, 0, 0, 0].to_vec();
    let all = [bootstrap(), login(), endless_call(), begun].concat();
    assert_eq!(ended_after(limits, all), (Ended::SendStalled, false));
}

#[test]
fn nothing_is_kept_of_a_connection_that_is_dropped() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (mut here, there) = duplex(1 << 16);
        let (reader, writer) = split(there);
        let authority: Rc<dyn Authority> = Rc::new(Open);
        let stream = Stream { reader: Box::new(reader), writer: Box::new(writer) };
        let served = serve(stream, Limits::default(), Rc::clone(&authority));
        here.write_all(&[bootstrap(), login(), endless_call()].concat()).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(10), served).await.is_err());
        assert_eq!(Rc::strong_count(&authority), 1);
    });
}

/// Connections that a test makes.
struct Made(tokio::sync::mpsc::UnboundedReceiver<tokio::io::DuplexStream>);

impl Listener for Made {
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(([127, 0, 0, 1], 1).into())
    }

    fn accept(&mut self) -> futures::future::LocalBoxFuture<'_, std::io::Result<Incoming>> {
        Box::pin(async {
            let Some(made) = self.0.recv().await else { return std::future::pending().await };
            Ok(Incoming::new(([127, 0, 0, 1], 1).into(), || {
                let (reader, writer) = split(made);
                Ok(Stream { reader: Box::new(reader), writer: Box::new(writer) })
            }))
        })
    }
}

#[test]
fn a_new_connection_goes_where_the_fewest_are_now() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (make, made) = tokio::sync::mpsc::unbounded_channel();
        let (numbers, went) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let places = [(); 2].map(|()| crate::spawn::Spawn::Inline.place());
        let log = Arc::clone(&went);
        let authority = move || {
            let place = numbers.fetch_add(1, Ordering::Relaxed);
            move |_| -> Rc<dyn Authority> {
                log.lock().unwrap().push(place);
                Rc::new(Open)
            }
        };
        tokio::task::spawn_local(
            async move { accept(Box::new(Made(made)), Limits::default(), &places, authority).await },
        );
        let connect = async || {
            let (here, there) = duplex(64);
            make.send(there).unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            here
        };
        let _first = connect().await;
        let second = connect().await;
        let _third = connect().await;
        // The second place is left with none, and has the next two.
        drop(second);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let _next = [connect().await, connect().await];
        assert_eq!(*went.lock().unwrap(), [0, 1, 0, 1, 1]);
    });
}
