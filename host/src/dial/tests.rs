use std::io;
use std::sync::{Arc, Mutex};

use futures::future::LocalBoxFuture;
use tokio::io::{AsyncReadExt, DuplexStream, duplex, split};

use super::*;
use crate::net::{Listener, Net, Stream};

/// A network with one connection: the other end of a pipe.
struct Pipe(Mutex<Option<DuplexStream>>);

impl Net for Pipe {
    fn bind<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        let (reader, writer) = split(self.0.lock().unwrap().take().expect("one connection"));
        Box::pin(async { Ok(Stream { reader: Box::new(reader), writer: Box::new(writer) }) })
    }
}

fn dial(test: impl AsyncFnOnce(Host, DuplexStream)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (here, there) = duplex(1 << 16);
    let host = Host { net: Arc::new(Pipe(Mutex::new(Some(here)))), ..Host::system() };
    tokio::task::LocalSet::new().block_on(&runtime, test(host, there));
}

async fn enter_there(host: &Host) -> Result<Entered, DialError> {
    let token = Token::parse(&"0".repeat(64)).unwrap();
    enter(host, "there:1", &token, Purpose::Predict, &Limits::default()).await
}

#[test]
fn a_dial_that_is_dropped_leaves_no_connection() {
    dial(async |host, mut there| {
        let too_soon = tokio::time::timeout(Duration::from_millis(10), enter_there(&host)).await;
        assert!(too_soon.is_err());
        let mut asked = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(1), there.read_to_end(&mut asked)).await;
        assert!(closed.is_ok() && !asked.is_empty());
    });
}

#[test]
fn a_connection_that_breaks_during_login_is_no_refusal() {
    dial(async |host, mut there| {
        tokio::task::spawn_local(async move {
            let _ = there.read(&mut [0; 16]).await;
        });
        let error = enter_there(&host).await.err().expect("nobody let it in");
        assert!(matches!(error, DialError::Connect { .. }) && error.may_pass(), "{error}");
    });
}
