//! Who asks, and as whom: callers on this machine by the gateway's own token, others by the one that they show. One thread's part.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use weir_client::{Client, ClientError, EndpointInfo, LocalClient, Options, Token};
use weir_core::ids::EndpointName;
use weir_host::Host;

use crate::refusal::{Kind, Refusal};

/// Tokens of callers that a thread keeps connections for; whoever comes next takes the place of the one that was used least recently.
const TOKENS_MAX: usize = 64;
/// Tokens that are tried at once, and as many that wait: a try is a connection and a hash.
const DIALS_MAX: usize = 8;
/// How long one may take.
const DIAL_WITHIN: Duration = Duration::from_secs(5);
/// Connections to each node, at most: a node reads 64 calls of each, so that a thread has 1,024 in flight. These are 20,000 a second, about
/// what a thread can carry, of 50 ms each.
const CONNECTIONS: usize = 16;
/// How long what an endpoint takes and gives is believed without asking again.
const FRESH: Duration = Duration::from_secs(1);
/// How long it is used at most while somebody asks again.
const USABLE: Duration = Duration::from_secs(30);

/// The clients of one thread. `Send`, as handlers must be, though its clients live where it was made.
#[derive(Clone)]
pub struct Callers {
    own: Arc<Caller>,
    /// By token, the most recently used last.
    known: Arc<Mutex<Vec<Holder>>>,
    dials: mpsc::Sender<Dial>,
}

/// A token, and the client that entered with it.
type Holder = (Token, Arc<Caller>);

/// A token to enter with, and where the client goes.
type Dial = (Token, oneshot::Sender<Result<Arc<Caller>, Refusal>>);

/// A client, and what it was told of endpoints.
pub struct Caller {
    /// Asks as whoever it is.
    pub client: Client,
    known: Mutex<BTreeMap<EndpointName, Known>>,
}

#[derive(Clone)]
struct Known {
    info: Arc<EndpointInfo>,
    since: Instant,
}

impl Callers {
    /// Connects with the gateway's own token; call it inside a `LocalSet`.
    pub async fn connect(options: Options) -> Result<Callers, ClientError> {
        let own = Caller::new(LocalClient::connect(Host::system(), options.clone()).await?);
        let (dials, asked) = mpsc::channel(DIALS_MAX);
        tokio::task::spawn_local(dial_all(options, asked));
        Ok(Callers { own, known: Arc::default(), dials })
    }

    /// The gateway's own.
    pub fn own(&self) -> &Arc<Caller> {
        &self.own
    }

    /// Whom a request from `peer` comes from, by its `authorization`.
    pub async fn of(&self, peer: IpAddr, authorization: Option<&str>) -> Result<Arc<Caller>, Refusal> {
        let Some(token) = token(peer, authorization)? else { return Ok(Arc::clone(&self.own)) };
        if let Some(caller) = self.known(&token) {
            return Ok(caller);
        }
        // Whoever tries tokens waits for others who do, not those whose tokens are known.
        let busy = |_| Refusal::new(Kind::Shed, "too many unknown tokens are being tried; ask again");
        let (reply, dialed) = oneshot::channel();
        self.dials.try_send((token.clone(), reply)).map_err(busy)?;
        let caller =
            dialed.await.map_err(|_| Refusal::new(Kind::Unavailable, "the gateway is stopping; ask again"))??;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have tried the same meanwhile.
        known.retain(|(other, _)| *other != token);
        if known.len() >= TOKENS_MAX {
            known.remove(0);
        }
        known.push((token, Arc::clone(&caller)));
        Ok(caller)
    }

    fn known(&self, token: &Token) -> Option<Arc<Caller>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let place = known.iter().position(|(other, _)| other == token)?;
        let used = known.remove(place);
        let caller = Arc::clone(&used.1);
        known.push(used);
        Some(caller)
    }
}

/// The token that a request shows; `None` where it needs none.
fn token(peer: IpAddr, authorization: Option<&str>) -> Result<Option<Token>, Refusal> {
    let Some(text) = authorization else {
        if peer.is_loopback() {
            return Ok(None);
        }
        let why = "from another machine a request needs a token: send the header `authorization: Bearer TOKEN`";
        return Err(Refusal::new(Kind::NoToken, why));
    };
    let (scheme, token) = text.trim().split_once(' ').unwrap_or(("", ""));
    let token = Some(token).filter(|_| scheme.eq_ignore_ascii_case("bearer")).and_then(Token::parse);
    token.map(Some).ok_or_else(|| {
        let why = "the authorization is not understood: write `Bearer ` and the 64 hex digits of a token";
        Refusal::new(Kind::NoToken, why)
    })
}

/// Makes clients where they have to live.
async fn dial_all(options: Options, mut asked: mpsc::Receiver<Dial>) {
    let mut dials = JoinSet::new();
    while let Some((token, reply)) = asked.recv().await {
        while dials.len() >= DIALS_MAX {
            dials.join_next().await;
        }
        let options = Options { token, ..options.clone() };
        dials.spawn_local(async move {
            let connected = tokio::time::timeout(DIAL_WITHIN, LocalClient::connect(Host::system(), options)).await;
            let caller = match connected {
                Ok(client) => client.map(Caller::new).map_err(Refusal::from),
                Err(_) => Err(Refusal::new(Kind::Unavailable, "no coordinator answers; ask again")),
            };
            // Whoever has gone needs no client.
            let _ = reply.send(caller);
        });
    }
}

impl Caller {
    fn new(client: LocalClient) -> Arc<Caller> {
        client.allow_connections(CONNECTIONS);
        Arc::new(Caller { client: Client::of(client), known: Mutex::default() })
    }

    /// What an endpoint takes and gives. Asked anew each second, and behind the back of whoever asks meanwhile.
    pub async fn info(self: &Arc<Self>, endpoint: &EndpointName) -> Result<Arc<EndpointInfo>, Refusal> {
        let known = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get_mut(endpoint).filter(|known| known.since.elapsed() < USABLE).map(|known| {
                let stale = known.since.elapsed() >= FRESH;
                if stale {
                    // Nobody else asks meanwhile; if nobody answers, it is asked again a second from now.
                    known.since += FRESH;
                }
                (Arc::clone(&known.info), stale)
            })
        };
        match known {
            Some((info, stale)) => {
                if stale {
                    let (caller, endpoint) = (Arc::clone(self), endpoint.clone());
                    tokio::spawn(async move { caller.ask(&endpoint).await });
                }
                Ok(info)
            }
            None => self.ask(endpoint).await,
        }
    }

    /// What it takes and gives, as a node says now.
    pub async fn ask(&self, endpoint: &EndpointName) -> Result<Arc<EndpointInfo>, Refusal> {
        let told = self.client.describe(endpoint.clone()).await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Ok(info) => {
                let info = Arc::new(info);
                known.insert(endpoint.clone(), Known { info: Arc::clone(&info), since: Instant::now() });
                Ok(info)
            }
            Err(error) => {
                if matches!(error, ClientError::NotFound(_)) {
                    known.remove(endpoint);
                }
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_on_this_machine_need_no_token_and_others_do() {
        let (here, there) = (IpAddr::from([127, 0, 0, 9]), IpAddr::from([192, 0, 2, 7]));
        assert!(token(here, None).unwrap().is_none());
        assert!(token("::1".parse().unwrap(), None).unwrap().is_none());
        assert_eq!(token(there, None).unwrap_err().kind, Kind::NoToken);
        let hex = "7".repeat(64);
        for peer in [here, there] {
            assert!(token(peer, Some(&format!("bearer {hex} "))).unwrap().is_some(), "what is shown is used, here too");
            for odd in ["", "Bearer", &hex, &format!("Basic {hex}"), &format!("Bearer {hex}7")] {
                assert_eq!(token(peer, Some(odd)).unwrap_err().kind, Kind::NoToken, "{odd}");
            }
        }
    }
}
