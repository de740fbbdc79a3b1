//! Who asks, and as whom: callers on this machine by the gateway's own token, others by the one that they show. One thread's part.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use weir_client::{Client, ClientError, EndpointInfo, LocalClient, Options, Token};
use weir_core::ids::{EndpointName, NodeName};
use weir_host::Host;
use weir_host::login::{Authority, InProcess};

use crate::refusal::{Kind, Refusal};

/// Tokens of callers that a thread keeps connections for; whoever comes next takes the place of the one that was used least recently.
const TOKENS_MAX: usize = 64;
/// Tokens that are tried at once, and as many that wait: a try is a connection and a hash.
const DIALS_MAX: usize = 8;
/// How long one may take.
const DIAL_WITHIN: Duration = Duration::from_secs(5);
/// Connections to each node of another process, at most: a node reads 64 calls of each, so that a thread has 1,024 in flight. These are 20,000 a second, about
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

/// The node that has a part on this thread, and the door to that.
type Here = Option<(NodeName, Rc<dyn Authority>)>;

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
    /// When somebody asked anew.
    asked: Instant,
}

impl Callers {
    /// Connects with the gateway's own token; call it inside a `LocalSet`. A node in this process is asked without a connection.
    pub async fn connect(options: Options, node: Option<InProcess>) -> Result<Callers, ClientError> {
        let here: Here = node.map(|node| (node.name, (node.door)()));
        let own = Caller::new(LocalClient::connect(Host::system(), options.clone()).await?, &here);
        let (dials, asked) = mpsc::channel(DIALS_MAX);
        tokio::task::spawn_local(dial_all(options, here, asked));
        Ok(Callers { own, known: Arc::default(), dials })
    }

    /// The gateway's own.
    pub fn own(&self) -> &Arc<Caller> {
        &self.own
    }

    /// Whom a request from `peer` comes from, by its headers: `authorization`, and what they say of where it really comes from.
    pub async fn of(&self, peer: IpAddr, headers: &HeaderMap) -> Result<Arc<Caller>, Refusal> {
        let Some(token) = token(peer, header(headers, "authorization"), Origin::of(headers))? else {
            return Ok(Arc::clone(&self.own));
        };
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

/// A header's text; `?` where it is none.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// What a request's headers say of where it really comes from.
#[derive(Clone, Copy, Debug, Default)]
struct Origin<'a> {
    /// The page that made a browser ask: `origin`.
    page: Option<&'a str>,
    /// For whom a proxy asks: `forwarded` or `x-forwarded-for`.
    forwarded: Option<&'a str>,
}

impl<'a> Origin<'a> {
    fn of(headers: &'a HeaderMap) -> Origin<'a> {
        let forwarded = header(headers, "forwarded").or(header(headers, "x-forwarded-for"));
        Origin { page: header(headers, "origin"), forwarded }
    }

    /// Who asks that is not on this machine, or is not its user; `None` where the gateway's own token is used.
    fn stranger(self, peer: IpAddr) -> Option<&'static str> {
        let foreign = |page: &str| {
            let name = name_of(page.rsplit("://").next().unwrap_or(page));
            !is_localhost(name) && !name.parse::<IpAddr>().is_ok_and(|page| page.is_loopback())
        };
        if !peer.to_canonical().is_loopback() {
            Some("from another machine")
        } else if self.forwarded.is_some() {
            Some("through a proxy")
        } else if self.page.is_some_and(foreign) {
            Some("from a page of another site")
        } else {
            None
        }
    }
}

/// Whether a host, with or without a port, is an address, or a name that means this machine.
pub fn is_own(host: &str) -> bool {
    let name = name_of(host);
    is_localhost(name) || name.parse::<IpAddr>().is_ok()
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// The token that a request shows; `None` where it needs none.
fn token(peer: IpAddr, authorization: Option<&str>, origin: Origin<'_>) -> Result<Option<Token>, Refusal> {
    let Some(text) = authorization else {
        return match origin.stranger(peer) {
            None => Ok(None),
            Some(who) => {
                let why = format!("{who} a request needs a token: send the header `authorization: Bearer TOKEN`");
                Err(Refusal::new(Kind::NoToken, why))
            }
        };
    };
    let (scheme, token) = text.trim().split_once(' ').unwrap_or(("", ""));
    let token = Some(token).filter(|_| scheme.eq_ignore_ascii_case("bearer")).and_then(Token::parse);
    token.map(Some).ok_or_else(|| {
        let why = "the authorization is not understood: write `Bearer ` and the 64 hex digits of a token";
        Refusal::new(Kind::NoToken, why)
    })
}

/// Makes clients where they have to live.
async fn dial_all(options: Options, here: Here, mut asked: mpsc::Receiver<Dial>) {
    let mut dials = JoinSet::new();
    while let Some((token, reply)) = asked.recv().await {
        while dials.len() >= DIALS_MAX {
            dials.join_next().await;
        }
        let (options, here) = (Options { token, ..options.clone() }, here.clone());
        dials.spawn_local(async move {
            let connected = tokio::time::timeout(DIAL_WITHIN, LocalClient::connect(Host::system(), options)).await;
            let caller = match connected {
                Ok(client) => client.map(|client| Caller::new(client, &here)).map_err(Refusal::from),
                Err(_) => Err(Refusal::new(Kind::Unavailable, "no coordinator answers; ask again")),
            };
            // Whoever has gone needs no client.
            let _ = reply.send(caller);
        });
    }
}

impl Caller {
    fn new(client: LocalClient, here: &Here) -> Arc<Caller> {
        client.allow_connections(CONNECTIONS);
        if let Some((node, door)) = here {
            client.stand_beside(node.clone(), Rc::clone(door));
        }
        Arc::new(Caller { client: Client::of(client), known: Mutex::default() })
    }

    /// What an endpoint takes and gives. Asked anew each second, and behind the back of whoever asks meanwhile.
    pub async fn info(self: &Arc<Self>, endpoint: &EndpointName) -> Result<Arc<EndpointInfo>, Refusal> {
        let known = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get_mut(endpoint).filter(|known| known.since.elapsed() < USABLE).map(|known| {
                let stale = known.asked.elapsed() >= FRESH;
                if stale {
                    // Nobody else asks meanwhile; if nobody answers, it is asked again a second from now.
                    known.asked = Instant::now();
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
                let now = Instant::now();
                known.insert(endpoint.clone(), Known { info: Arc::clone(&info), since: now, asked: now });
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
        let nothing = Origin::default();
        assert!(token(here, None, nothing).unwrap().is_none());
        for own in ["::1", "::ffff:127.0.0.1"] {
            assert!(token(own.parse().unwrap(), None, nothing).unwrap().is_none(), "{own}");
        }
        assert_eq!(token(there, None, nothing).unwrap_err().kind, Kind::NoToken);
        let hex = "7".repeat(64);
        for peer in [here, there] {
            let shown = token(peer, Some(&format!("bearer {hex} ")), nothing);
            assert!(shown.unwrap().is_some(), "what is shown is used, here too");
            for odd in ["", "Bearer", &hex, &format!("Basic {hex}"), &format!("Bearer {hex}7")] {
                assert_eq!(token(peer, Some(odd), nothing).unwrap_err().kind, Kind::NoToken, "{odd}");
            }
        }
    }

    #[test]
    fn pages_of_other_sites_and_callers_behind_a_proxy_are_strangers() {
        let here = IpAddr::from([127, 0, 0, 1]);
        let page = |page| Origin { page: Some(page), ..Origin::default() };
        for own in ["http://localhost:3000", "http://127.0.0.1:7380", "https://[::1]"] {
            assert_eq!(page(own).stranger(here), None, "{own}");
        }
        for other in [
            "https://evil.example",
            "http://10.0.0.7",
            "http://evil.example:8000",
            "null",
            "http://127.0.0.1.evil.example",
        ] {
            assert!(page(other).stranger(here).is_some(), "{other}");
        }
        let forwarded = Origin { forwarded: Some("192.0.2.1"), ..Origin::default() };
        assert!(token(here, None, forwarded).is_err());
        let hex = format!("Bearer {}", "7".repeat(64));
        assert!(token(here, Some(&hex), page("https://evil.example")).unwrap().is_some(), "with a token of their own");
    }

    #[test]
    fn names_of_this_machine_are_known() {
        for host in ["127.0.0.1:7380", "localhost", "localhost:7380", "[::1]:7380", "10.0.0.7:80", "weir.localhost:1"] {
            assert!(is_own(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:7380", "127.0.0.1.evil.example", "localhost.evil.example:1"] {
            assert!(!is_own(host), "{host}");
        }
    }
}
