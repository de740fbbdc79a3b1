//! Connections to the other members: consensus messages gathered into few calls, and artifacts.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use raft::eraftpb::Message;
use tokio::sync::{Notify, mpsc};
use weir_core::ids::{Digest, MemberId};
use weir_core::units::Instant;
use weir_host::Host;
use weir_host::dial::{Entered, Role, enter, remote_text};
use weir_host::limits::Limits;
use weir_host::login::Token;
use weir_schema::predict_capnp::Purpose;
use weir_schema::raft_capnp::peer;

use crate::actors::raft::{Ask, Handle, OUTBOX_MAX, is_snapshot};
use crate::artifacts::{Artifacts, CHUNK_MAX};
use crate::control::REMOVED;
use crate::messages::write_messages;

/// A member that took messages within this time is up.
const UP_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of messages in one call, roughly: a heartbeat does not wait behind more.
const CALL_BYTES: usize = 4 << 20;

/// The other members, as far as this one has to do with them.
pub struct Peers {
    host: Host,
    token: Token,
    handle: Handle,
    /// Addresses told when this member joined, until the state says better.
    introduced: RefCell<BTreeMap<MemberId, String>>,
    links: RefCell<BTreeMap<MemberId, Rc<Link>>>,
}

struct Link {
    id: MemberId,
    outbox: RefCell<VecDeque<Message>>,
    wake: Notify,
    connection: RefCell<Option<Entered>>,
    last_success: Cell<Option<Instant>>,
}

impl Peers {
    /// No connections yet; `introduced` are addresses known beforehand.
    pub fn new(host: Host, token: Token, handle: Handle, introduced: BTreeMap<MemberId, String>) -> Rc<Peers> {
        Rc::new(Peers { host, token, handle, introduced: RefCell::new(introduced), links: RefCell::default() })
    }

    /// Sends what the driver wants sent, until it ends.
    pub async fn run(self: Rc<Self>, mut messages: mpsc::UnboundedReceiver<Message>) {
        while let Some(message) = messages.recv().await {
            let link = self.link(MemberId(message.to));
            let dropped = {
                let mut outbox = link.outbox.borrow_mut();
                let dropped = if outbox.len() == OUTBOX_MAX { outbox.pop_front() } else { None };
                outbox.push_back(message);
                dropped
            };
            link.wake.notify_one();
            if dropped.is_some_and(|dropped| is_snapshot(&dropped)) {
                self.tell_of_snapshot(link.id, false).await;
            }
        }
    }

    /// Whether a member took something lately.
    pub fn is_up(&self, now: Instant, id: MemberId) -> bool {
        let links = self.links.borrow();
        links.get(&id).and_then(|link| link.last_success.get()).is_some_and(|at| now.since(at) < UP_WITHIN)
    }

    fn link(self: &Rc<Self>, id: MemberId) -> Rc<Link> {
        let mut links = self.links.borrow_mut();
        let new = || {
            let link = Rc::new(Link {
                id,
                outbox: RefCell::default(),
                wake: Notify::new(),
                connection: RefCell::default(),
                last_success: Cell::new(None),
            });
            tokio::task::spawn_local(Rc::clone(self).deliver(Rc::clone(&link)));
            link
        };
        Rc::clone(links.entry(id).or_insert_with(new))
    }

    async fn deliver(self: Rc<Self>, link: Rc<Link>) {
        loop {
            let mut messages = Vec::new();
            let mut bytes = 0;
            while bytes < CALL_BYTES
                && let Some(message) = link.outbox.borrow_mut().pop_front()
            {
                bytes += message.entries.iter().map(|entry| entry.data.len()).sum::<usize>()
                    + message.get_snapshot().data.len()
                    + 128;
                messages.push(message);
            }
            if messages.is_empty() {
                link.wake.notified().await;
                // Others of this turn may be for the same member.
                tokio::task::yield_now().await;
                continue;
            }
            let arrived = self.step(&link, &messages).await;
            let sent_snapshot = messages.iter().any(is_snapshot);
            if arrived.is_ok() && sent_snapshot {
                self.tell_of_snapshot(link.id, true).await;
            }
            if let Err(error) = arrived {
                tracing::debug!(member = link.id.0, error, "cannot reach a member");
                if error == REMOVED {
                    self.tell(Ask::Removed);
                }
                link.connection.take();
                self.tell(Ask::Unreachable(link.id));
                // What piled up is old; the protocol sends what is still of use, but a snapshot only where it hears of this.
                let dropped = std::mem::take(&mut *link.outbox.borrow_mut());
                if sent_snapshot || dropped.iter().any(is_snapshot) {
                    self.tell_of_snapshot(link.id, false).await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    fn tell(&self, ask: Ask) {
        // A driver with too much to do learns it the next time.
        let _ = self.handle.asks.try_send(ask);
    }

    /// The driver sends a member nothing more until it knows what became of the snapshot: this must not be lost.
    async fn tell_of_snapshot(&self, id: MemberId, arrived: bool) {
        // Closed only where the process ends.
        let _ = self.handle.asks.send(Ask::SnapshotSent(id, arrived)).await;
    }

    async fn step(&self, link: &Link, messages: &[Message]) -> Result<(), String> {
        let (_held, peer) = self.connect(link).await?;
        let mut request = peer.step_request();
        write_messages(request.get().init_messages(messages.len() as u32), messages);
        // A snapshot of megabytes may take a while on a slow line; else silence means that the line is gone.
        let patience = Duration::from_secs(if messages.iter().any(is_snapshot) { 10 } else { 1 });
        match tokio::time::timeout(patience, request.send().promise).await {
            Ok(Ok(_)) => {
                link.last_success.set(Some(self.host.clock.now()));
                Ok(())
            }
            Ok(Err(error)) => Err(remote_text(&error)),
            Err(_) => Err("no answer".into()),
        }
    }

    /// The connection of a link, for as long as the caller holds it.
    async fn connect(&self, link: &Link) -> Result<(Entered, peer::Client), String> {
        let open = link.connection.borrow().clone().filter(|entered| !entered.is_closed());
        let entered = match open {
            Some(entered) => entered,
            None => {
                let address = self.address(link.id).ok_or("its address is not known")?;
                let limits = Limits::members();
                let entered = enter(&self.host, &address, &self.token, Purpose::Coordinator, &limits)
                    .await
                    .map_err(|e| e.to_string())?;
                *link.connection.borrow_mut() = Some(entered.clone());
                entered
            }
        };
        let peer = peer_of(&entered)?;
        Ok((entered, peer))
    }

    fn address(&self, id: MemberId) -> Option<String> {
        let published = self.handle.published.borrow();
        let known = published.configuration.get(&id).cloned().flatten();
        known.or_else(|| self.introduced.borrow().get(&id).cloned())
    }

    /// Makes sure that a majority of the voters has the artifact, which is here.
    pub async fn spread(self: &Rc<Self>, artifacts: &Artifacts, digest: Digest) -> Result<(), String> {
        let (me, voters) = {
            let published = self.handle.published.borrow();
            (published.id, published.voters.clone())
        };
        let majority = voters.len() / 2 + 1;
        let others = voters.iter().filter(|id| **id != me).map(|id| self.push(artifacts.clone(), digest, *id));
        let mut pushes: futures::stream::FuturesUnordered<_> = others.collect();
        let mut stored = usize::from(voters.contains(&me));
        let mut last_error = String::from("too few members are up");
        while stored < majority {
            match futures::StreamExt::next(&mut pushes).await {
                Some(Ok(())) => stored += 1,
                Some(Err(error)) => last_error = error,
                None => {
                    return Err(format!(
                        "only {stored} of {} coordinators have the artifact, and {majority} must ({last_error})",
                        voters.len()
                    ));
                }
            }
        }
        Ok(())
    }

    async fn push(self: &Rc<Self>, artifacts: Artifacts, digest: Digest, id: MemberId) -> Result<(), String> {
        let link = self.link(id);
        let (_held, peer) = self.connect(&link).await?;
        let put = async |offset: u64, chunk: &[u8], size: u64| -> Result<bool, String> {
            let mut request = peer.put_artifact_request();
            request.get().set_digest(&digest.0);
            request.get().set_size(size);
            request.get().set_offset(offset);
            request.get().set_chunk(chunk);
            let answer = tokio::time::timeout(Duration::from_secs(10), request.send().promise).await;
            let answer = answer.map_err(|_| "no answer")?.map_err(|error| remote_text(&error))?;
            Ok(answer.get().map_err(|e| e.to_string())?.get_stored())
        };
        let (_, size) = artifacts.read(&digest, 0, 0).map_err(|e| e.to_string())?;
        // Nothing at offset 0 only asks whether it is there.
        let mut stored = put(0, &[], size).await?;
        let mut offset = 0;
        while !stored {
            let (chunk, _) = artifacts.read(&digest, offset, CHUNK_MAX).map_err(|e| e.to_string())?;
            if chunk.is_empty() {
                return Err("a member took the artifact and did not store it".into());
            }
            stored = put(offset, &chunk, size).await?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    /// Fetches an artifact that the registry names from whichever member has it.
    pub async fn pull(self: &Rc<Self>, artifacts: &Artifacts, digest: Digest, size: u64) -> Result<(), String> {
        let me = self.handle.published.borrow().id;
        let members: Vec<MemberId> = self.handle.published.borrow().state.members.keys().copied().collect();
        let mut last_error = String::from("no other member");
        for id in members.into_iter().filter(|id| *id != me) {
            match self.pull_from(artifacts, digest, size, id).await {
                Ok(()) => return Ok(()),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    async fn pull_from(
        self: &Rc<Self>,
        artifacts: &Artifacts,
        digest: Digest,
        size: u64,
        id: MemberId,
    ) -> Result<(), String> {
        let link = self.link(id);
        let (_held, peer) = self.connect(&link).await?;
        let mut receiving = artifacts.receive(digest, size, self.host.random.u64()).map_err(|e| e.to_string())?;
        while receiving.received() < size {
            let mut request = peer.get_artifact_request();
            request.get().set_digest(&digest.0);
            request.get().set_offset(receiving.received());
            request.get().set_length(CHUNK_MAX as u32);
            let answer = tokio::time::timeout(Duration::from_secs(10), request.send().promise).await;
            let answer = answer.map_err(|_| "no answer")?.map_err(|error| remote_text(&error))?;
            let chunk = answer.get().and_then(|r| r.get_chunk()).map_err(|e| e.to_string())?;
            if chunk.is_empty() {
                return Err("a member sent nothing".into());
            }
            receiving.write(receiving.received(), chunk).map_err(|e| e.to_string())?;
        }
        receiving.finish().map_err(|e| e.to_string())
    }
}

/// The peer object of a connection between coordinators.
pub fn peer_of(entered: &Entered) -> Result<peer::Client, String> {
    match entered.role() {
        Role::Peer(peer) => Ok(peer.clone()),
        _ => Err("the token does not make a coordinator".into()),
    }
}
