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
    fn admit(&self, _: &Caller<'_>, granted: granted::Builder<'_>) -> Result<(), String> {
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
