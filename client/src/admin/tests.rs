use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::LocalBoxFuture;
use tokio::io::duplex;
use weir_core::ids::{EndpointName, ModelRef};
use weir_core::replicated::{EngineKind, Model, ReplicaRange};
use weir_core::tensor::Signature;
use weir_core::units::Bytes;
use weir_host::login::{Authority, Caller, Token};
use weir_host::net::{Listener, Net, Stream};
use weir_schema::control_capnp::upload;
use weir_schema::convert::control::write_applied;
use weir_schema::predict_capnp::granted;

use super::*;
use crate::predict::tests::{Paused, stream};

/// What a coordinator does with the calls that it reads.
#[derive(Clone, Copy, Debug)]
enum Does {
    Lead,
    /// Takes so long for a write, and for a chunk.
    LeadSlowly(Duration),
    /// Lets in and answers nothing, like a stopped process.
    Hang,
    Follow(&'static str),
    KnowNobody,
    /// Leads, and takes nothing.
    LeadFull,
}

struct Coordinator {
    does: Mutex<Does>,
    asked: AtomicUsize,
}

#[derive(Clone)]
struct Group(Arc<BTreeMap<&'static str, Coordinator>>);

impl Group {
    fn new<const N: usize>(does: [(&'static str, Does); N]) -> Group {
        let coordinator = |does| Coordinator { does: Mutex::new(does), asked: AtomicUsize::new(0) };
        Group(Arc::new(does.into_iter().map(|(name, does)| (name, coordinator(does))).collect()))
    }

    fn asked(&self, name: &str) -> usize {
        self.0[name].asked.load(Ordering::Relaxed)
    }
}

impl Net for Group {
    fn bind<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let (here, there) = duplex(1 << 16);
            let name = *self.0.keys().find(|name| **name == address).ok_or(io::ErrorKind::ConnectionRefused)?;
            let at = Rc::new(At(self.clone(), name));
            tokio::task::spawn_local(async move {
                weir_host::listen::serve(stream(there), Limits::members(), at).await;
            });
            Ok(stream(here))
        })
    }
}

#[derive(Clone)]
struct At(Group, &'static str);

impl At {
    async fn does(&self) -> Does {
        let coordinator = &self.0.0[self.1];
        coordinator.asked.fetch_add(1, Ordering::Relaxed);
        let does = *coordinator.does.lock().unwrap();
        match does {
            Does::LeadSlowly(takes) => tokio::time::sleep(takes).await,
            Does::Hang => std::future::pending().await,
            _ => {}
        }
        does
    }
}

impl Authority for At {
    fn admit(&self, _: &Caller, mut granted: granted::Builder<'_>) -> Result<(), String> {
        granted.set_server(self.1);
        granted.init_role().set_operator(capnp_rpc::new_client(self.clone()));
        Ok(())
    }
}

impl operator::Server for At {
    async fn write(
        self: Rc<Self>,
        _: operator::WriteParams,
        mut results: operator::WriteResults,
    ) -> Result<(), capnp::Error> {
        let does = self.does().await;
        let mut b = results.get().init_result();
        match does {
            Does::Follow(leader) => b.init_not_leader().set_address(leader),
            Does::KnowNobody => drop(b.init_not_leader()),
            Does::LeadFull => b.set_try_again("the leader's disk is full"),
            _ => write_applied(b.reborrow().init_applied(), &Ok(Done { index: LogIndex(1), lines: Vec::new() })),
        }
        Ok(())
    }

    async fn watch(
        self: Rc<Self>,
        _: operator::WatchParams,
        mut results: operator::WatchResults,
    ) -> Result<(), capnp::Error> {
        let does = *self.0.0[self.1].does.lock().unwrap();
        if let Does::Hang = does {
            return std::future::pending().await;
        }
        results.get().init_changes().init_changes(0);
        Ok(())
    }

    async fn upload(
        self: Rc<Self>,
        _: operator::UploadParams,
        mut results: operator::UploadResults,
    ) -> Result<(), capnp::Error> {
        results.get().init_result().set_upload(capnp_rpc::new_client(At::clone(&self)));
        Ok(())
    }
}

impl upload::Server for At {
    async fn write(self: Rc<Self>, _: upload::WriteParams, _: upload::WriteResults) -> Result<(), capnp::Error> {
        self.does().await;
        Ok(())
    }

    async fn finish(self: Rc<Self>, _: upload::FinishParams, _: upload::FinishResults) -> Result<(), capnp::Error> {
        Ok(())
    }
}

/// Runs a test with an operator who knows coordinators `a` and `b` of a group; returns how long it took.
fn with<const N: usize>(does: [(&'static str, Does); N], test: impl AsyncFnOnce(Admin, Group)) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let started = tokio::time::Instant::now();
        let group = Group::new(does);
        let host = Host { net: Arc::new(group.clone()), clock: Arc::new(Paused(started)), ..Host::system() };
        let token = Token::parse(&"0".repeat(64)).unwrap();
        test(Admin::new(host, Options { coordinators: vec!["a".into(), "b".into()], token }), group).await;
        started.elapsed()
    })
}

fn delete() -> Command {
    Command::DeleteEndpoint(EndpointName::parse("e").unwrap())
}

#[test]
fn a_write_is_made_elsewhere_when_the_leader_has_stopped() {
    let took = with([("a", Does::Hang), ("b", Does::Lead)], async |admin, group| {
        admin.write(delete()).await.unwrap();
        assert_eq!((group.asked("a"), group.asked("b")), (1, 1));
    });
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// What makes the leader hand an artifact to a majority first.
fn apply() -> Command {
    let model = Model {
        reference: ModelRef::parse("m@1").unwrap(),
        digest: Digest([7; 32]),
        size: Bytes(1 << 30),
        engine: EngineKind::Onnx,
        signature: Signature { inputs: Vec::new(), outputs: Vec::new() },
        max_batch: None,
        shapes: Default::default(),
        replicas: ReplicaRange { min: 1, max: 1 },
        quarantined: None,
    };
    Command::Apply { models: vec![model], endpoints: Vec::new(), if_index: None }
}

#[test]
fn an_apply_may_take_as_long_as_its_leader_is_there() {
    let slow = Does::LeadSlowly(Duration::from_secs(100));
    with([("a", slow), ("b", Does::KnowNobody)], async |admin, group| {
        admin.write(apply()).await.unwrap();
        assert_eq!((group.asked("a"), group.asked("b")), (1, 0));
    });
    let took = with([("a", Does::Hang), ("b", Does::Lead)], async |admin, _| {
        admin.write(apply()).await.unwrap();
    });
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn another_is_asked_where_one_knows_no_leader() {
    with([("a", Does::KnowNobody), ("b", Does::Lead)], async |admin, group| {
        admin.write(delete()).await.unwrap();
        assert_eq!((group.asked("a"), group.asked("b")), (1, 1));
    });
}

#[test]
fn another_is_asked_where_one_names_a_leader_that_is_gone() {
    with([("a", Does::Follow("gone")), ("b", Does::Lead)], async |admin, group| {
        admin.write(delete()).await.unwrap();
        assert_eq!((group.asked("a"), group.asked("b")), (1, 1));
    });
}

#[test]
fn two_that_name_each_other_are_not_asked_without_a_pause() {
    with([("a", Does::Follow("b")), ("b", Does::Follow("a"))], async |admin, group| {
        let error = admin.write(delete()).await.unwrap_err();
        assert!(error.to_string().contains("do not agree who leads"), "{error}");
        assert!(group.asked("a") + group.asked("b") < 200, "{} {}", group.asked("a"), group.asked("b"));
    });
}

#[test]
fn a_leader_that_takes_nothing_says_why_whoever_was_asked_last() {
    with([("a", Does::Follow("b")), ("b", Does::LeadFull)], async |admin, group| {
        let error = admin.write(delete()).await.unwrap_err();
        assert!(error.to_string().contains("disk is full"), "{error}");
        let pauses = PATIENCE.as_millis() / 100;
        assert!(group.asked("b") as u128 > pauses * 9 / 10, "it is known who leads: {} asked", group.asked("b"));
    });
}

#[test]
fn an_upload_may_take_as_long_as_it_gets_on() {
    let slow = Does::LeadSlowly(Duration::from_secs(5));
    let took = with([("a", slow)], async |admin, group| {
        admin.upload(&vec![0; 20 * CHUNK], |_| {}).await.unwrap();
        assert_eq!(group.asked("a"), 20);
    });
    assert!(took >= Duration::from_secs(100));
    with([("a", Does::Hang), ("b", Does::Lead)], async |admin, _| {
        admin.upload(&[0; 100], |_| {}).await.unwrap();
    });
}
