//! `weir watch`: changes as they happen.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use weir_client::admin::Watched;
use weir_core::ids::LogIndex;
use weir_core::replicated::Change;

use crate::connect::Common;
use crate::failure::Failure;
use crate::stdout;

/// Changes as they happen, one a line, in order and complete.
#[derive(Args)]
pub struct Watch {
    /// What to watch
    #[arg(value_enum)]
    what: What,
    /// Changes after this index [default: from now on]
    #[arg(long, env = "WEIR_SINCE")]
    since: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    All,
    Placements,
    Models,
    Endpoints,
    Nodes,
    Members,
}

impl Watch {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let admin = common.admin()?;
        let mut since = match self.since {
            Some(since) => LogIndex(since),
            None => admin.status().await?.state.applied,
        };
        while !stdout::is_closed() {
            let watched = tokio::select! {
                watched = admin.watch(since, Duration::from_secs(10)) => watched?,
                _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
            };
            match watched {
                Watched::TooOld(from) => {
                    return Err(Failure::No(format!(
                        "changes go back only to index {from}; read what there is with `weir get`, and watch --since {from}"
                    )));
                }
                Watched::Changes(changes, index) => {
                    for (index, change) in changes.iter().filter(|(_, change)| self.shows(change)) {
                        let line = describe(change);
                        if common.json() {
                            println!("{}", json!({"index": index.0, "change": line}));
                        } else {
                            println!("{index}  {line}");
                        }
                    }
                    since = since.max(index);
                }
            }
        }
        Ok(())
    }

    fn shows(&self, change: &Change) -> bool {
        let kind = match change {
            Change::Plan(..) => What::Placements,
            Change::Model(_)
            | Change::ModelGone(_)
            | Change::Profile(_)
            | Change::ProfilesGone(_)
            | Change::Label(_)
            | Change::LabelGone(_) => What::Models,
            Change::Endpoint(_) | Change::EndpointGone(_) => What::Endpoints,
            Change::Node(_) | Change::NodeGone(_) => What::Nodes,
            Change::Member(_) | Change::MemberGone(_) => What::Members,
            Change::Cluster(_) | Change::Dial(..) | Change::Grant(_) | Change::GrantGone(_) => What::All,
        };
        self.what == What::All || self.what == kind
    }
}

fn describe(change: &Change) -> String {
    match change {
        Change::Cluster(name) => format!("cluster {name}"),
        Change::Model(model) => format!(
            "model {}{}",
            model.reference,
            model.quarantined.as_ref().map_or(String::new(), |why| format!(" quarantined: {why}"))
        ),
        Change::ModelGone(reference) => format!("model {reference} deleted"),
        Change::Endpoint(endpoint) => format!("endpoint {}", endpoint.name),
        Change::EndpointGone(name) => format!("endpoint {name} deleted"),
        Change::Node(node) => {
            format!("node {} at {}{}", node.name, node.address, if node.draining { " draining" } else { "" })
        }
        Change::NodeGone(name) => format!("node {name} removed"),
        Change::Plan(epoch, moves) => {
            let gone = moves.gone.iter().map(|id| format!("{id} goes"));
            let placed = moves.placed.iter().map(|(id, a)| format!("{id}={} on {}/{}", a.model, a.node, a.device));
            format!("plan {epoch}: {}", gone.chain(placed).collect::<Vec<_>>().join(", "))
        }
        Change::Grant(grant) => format!("grant {}", grant.id),
        Change::GrantGone(id) => format!("grant {id} revoked"),
        Change::Member(member) => {
            format!("member {} at {}{}", member.name, member.address, if member.learner { " (learner)" } else { "" })
        }
        Change::MemberGone(id) => format!("member {id} removed"),
        Change::Profile(profile) => {
            format!("profile of {} on {} as {} measured it", profile.digest, profile.hardware, profile.by)
        }
        Change::ProfilesGone(digest) => format!("profiles of {digest} deleted"),
        Change::Dial(pool, Some(price)) => format!("price of pool {pool} held at {price}"),
        Change::Dial(pool, None) => format!("price of pool {pool} found by load"),
        Change::Label(label) => {
            let goes = label.next.as_ref().map_or(String::new(), |next| format!(", goes to {next}"));
            format!("label {} stands for version {}{goes}", label.name, label.version)
        }
        Change::LabelGone(name) => format!("label {name} deleted"),
    }
}
