use std::io;
use std::sync::Arc;

use futures::future::LocalBoxFuture;
use raft::eraftpb::MessageType;
use weir_core::replicated::State;
use weir_host::net::{Listener, Net, Stream};

use super::*;
use crate::actors::raft::Published;

/// Nobody answers: a connection fails after a second.
struct Silent;

impl Net for Silent {
    fn bind<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Err(io::ErrorKind::TimedOut.into())
        })
    }
}

fn message(kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.to = 2;
    message
}

/// Sends member 2, which is not reached, these messages while a heartbeat is under way; says what the driver was told
/// of snapshots, by when it had no time for the first second and a half.
async fn told_after(messages: Vec<Message>) -> Vec<bool> {
    let host = Host { net: Arc::new(Silent), ..Host::system() };
    let token = Token::generate(&*host.random);
    let (asks, mut for_driver) = mpsc::channel(1);
    let nothing = Published::of(MemberId(1), Arc::new(State::default()));
    let (_publish, published) = tokio::sync::watch::channel(nothing);
    asks.try_send(Ask::Removed).unwrap_or_else(|_| panic!("it is empty"));
    let introduced = BTreeMap::from([(MemberId(2), "c2:7000".into())]);
    let peers = Peers::new(host, token, Handle { asks, published }, introduced);
    let (send, receive) = mpsc::unbounded_channel();
    tokio::task::spawn_local(peers.run(receive));
    send.send(message(MessageType::MsgHeartbeat)).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    messages.into_iter().for_each(|message| send.send(message).unwrap());
    tokio::time::sleep(Duration::from_millis(1400)).await;
    let mut told = Vec::new();
    // The outbox is given up after the first second; later ones are as good.
    while let Ok(Some(ask)) = tokio::time::timeout(Duration::from_millis(1200), for_driver.recv()).await {
        if let Ask::SnapshotSent(MemberId(2), arrived) = ask {
            told.push(arrived);
        }
    }
    told
}

async fn locally<T>(work: impl Future<Output = T>) -> T {
    tokio::task::LocalSet::new().run_until(work).await
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_given_up_with_the_outbox_is_told_of() {
    let told = locally(told_after(vec![message(MessageType::MsgSnapshot)])).await;
    assert_eq!(told, [false]);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_an_overfull_outbox_drops_is_told_of() {
    let mut messages = vec![message(MessageType::MsgSnapshot)];
    messages.extend((0..OUTBOX_MAX).map(|_| message(MessageType::MsgHeartbeat)));
    assert_eq!(locally(told_after(messages)).await, [false]);
}
