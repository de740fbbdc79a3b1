//! `weir wait`: until something is as one wants it.

use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use weir_client::admin::{MemberStatus, Status};
use weir_client::weirfile::parse_duration;
use weir_client::{Admin, Options};
use weir_core::ids::{EndpointName, LogIndex, MemberName, NodeName};
use weir_core::placement::{EndpointState, REPORT_EVERY};
use weir_host::Host;

use super::status::{beliefs, endpoint_state};
use crate::connect::Common;
use crate::failure::Failure;

/// Waits until something is as one wants it; exit code 7 if it is not in time.
#[derive(Args)]
pub struct Wait {
    /// What to look at: endpoint/NAME, node/NAME or member/NAME
    #[arg(value_name = "KIND/NAME")]
    what: What,
    /// What to wait for: of an endpoint serving or gone, of a node up, draining, down, empty (of replicas) or gone, of a
    /// member (a coordinator) up (it votes, and has the log), down or gone
    #[arg(long = "for", env = "WEIR_FOR", value_name = "STATE")]
    state: String,
    /// How long to wait
    #[arg(long, env = "WEIR_TIMEOUT", default_value = "60s")]
    timeout: String,
}

#[derive(Clone, Debug)]
enum What {
    Endpoint(EndpointName),
    Node(NodeName),
    Member(MemberName),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Condition {
    Serving,
    Up,
    Draining,
    Down,
    Empty,
    Gone,
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<What, String> {
        match text.split_once('/') {
            Some(("endpoint", name)) => EndpointName::parse(name).map(What::Endpoint).map_err(|bad| bad.to_string()),
            Some(("node", name)) => NodeName::parse(name).map(What::Node).map_err(|bad| bad.to_string()),
            Some(("member", name)) => MemberName::parse(name).map(What::Member).map_err(|bad| bad.to_string()),
            _ => Err("write it as endpoint/NAME, node/NAME or member/NAME".into()),
        }
    }
}

/// What was found.
enum Found {
    AsWanted,
    /// In which state it is instead.
    Still(String),
}

impl Wait {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let timeout =
            parse_duration(&self.timeout).ok_or_else(|| Failure::Usage("--timeout: write it as 60s".into()))?;
        let wanted = self.wanted()?;
        let admin = common.admin()?;
        let started = Instant::now();
        let mut begun = None;
        loop {
            let status = admin.status().await?;
            let begun = *begun.get_or_insert(status.state.applied);
            let found = match self.look(wanted, &status, begun)? {
                // The leader may not have missed yet one that stopped a moment ago.
                Found::AsWanted if wanted == Condition::Up => self.ask_itself(&common, &status, begun).await?,
                found => found,
            };
            match found {
                Found::AsWanted if wanted == Condition::Serving => {
                    // The leader knows; every node hears of it with the answer to its next report.
                    tokio::time::sleep(2 * REPORT_EVERY).await;
                    return Ok(());
                }
                Found::AsWanted => return Ok(()),
                Found::Still(state) if started.elapsed() > timeout => {
                    let see = match &self.what {
                        What::Endpoint(name) => format!("describe endpoint {name}"),
                        What::Node(_) | What::Member(_) => "status".into(),
                    };
                    return Err(Failure::TimedOut(format!(
                        "{} is {state} after {timeout:?}; see `weir {see}`",
                        self.what
                    )));
                }
                Found::Still(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Has a coordinator say by itself that it has the log up to `begun`; nothing else is asked.
    async fn ask_itself(&self, common: &Common, status: &Status, begun: LogIndex) -> Result<Found, Failure> {
        let What::Member(name) = &self.what else { return Ok(Found::AsWanted) };
        let known = status.members.iter().find(|known| known.member.name == *name);
        let coordinators = known.map(|known| known.member.address.clone()).into_iter().collect();
        let itself = Admin::new(Host::system(), Options { coordinators, ..common.options()? });
        Ok(match itself.stale_status().await {
            Ok(own) if own.state.applied >= begun => Found::AsWanted,
            Ok(_) => Found::Still("behind".into()),
            Err(_) => Found::Still("down".into()),
        })
    }

    /// Refuses what can never be.
    fn wanted(&self) -> Result<Condition, Failure> {
        let possible: &[Condition] = match self.what {
            What::Endpoint(_) => &[Condition::Serving, Condition::Gone],
            What::Node(_) => &[Condition::Up, Condition::Draining, Condition::Down, Condition::Empty, Condition::Gone],
            What::Member(_) => &[Condition::Up, Condition::Down, Condition::Gone],
        };
        possible.iter().find(|condition| condition.word() == self.state).copied().ok_or_else(|| {
            let words: Vec<String> = possible.iter().map(|condition| condition.word()).collect();
            Failure::Usage(format!("{} is never {:?}; --for {}", self.what, self.state, words.join(", ")))
        })
    }

    /// `begun` is what the leader had applied when the waiting began.
    fn look(&self, wanted: Condition, status: &Status, begun: LogIndex) -> Result<Found, Failure> {
        let state = match &self.what {
            What::Endpoint(name) => status
                .state
                .endpoints
                .get(name)
                .map(|endpoint| endpoint_state(&beliefs(status), &status.state, endpoint).0.word().to_owned()),
            What::Node(name) => status.state.nodes.contains_key(name).then(|| {
                let seen = status.nodes.iter().find(|node| node.name == name.as_str());
                seen.map_or("unknown", |node| node.state).to_owned()
            }),
            What::Member(name) => {
                let known = status.members.iter().find(|known| known.member.name == *name);
                known.map(|known| standing(known, begun).to_owned())
            }
        };
        let Some(state) = state else {
            return if wanted == Condition::Gone {
                Ok(Found::AsWanted)
            } else {
                Err(Failure::NotFound(format!("{} not found; `weir status` shows what there is", self.what)))
            };
        };
        let empty = || match &self.what {
            What::Node(name) => !status.state.plan.assignments.values().any(|replica| replica.node == *name),
            What::Endpoint(_) | What::Member(_) => false,
        };
        let is_so = match wanted {
            Condition::Gone => false,
            Condition::Empty => empty(),
            Condition::Serving => state == EndpointState::Serving.word(),
            Condition::Up | Condition::Draining | Condition::Down => state == wanted.word(),
        };
        let still = if wanted == Condition::Empty { "not empty".to_owned() } else { state };
        Ok(if is_so { Found::AsWanted } else { Found::Still(still) })
    }
}

/// How a coordinator stands: `up` once it votes and has the log up to `begun`.
fn standing(known: &MemberStatus, begun: LogIndex) -> &'static str {
    match known {
        MemberStatus { up: false, .. } => "down",
        MemberStatus { role: "learner", .. } => "learning",
        _ if known.applied < begun => "behind",
        _ => "up",
    }
}

impl Condition {
    fn word(self) -> String {
        self.to_possible_value().expect("no variant is hidden").get_name().to_owned()
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            What::Endpoint(name) => write!(f, "endpoint/{name}"),
            What::Node(name) => write!(f, "node/{name}"),
            What::Member(name) => write!(f, "member/{name}"),
        }
    }
}
