//! `weir label`: what answers should have been, so that accuracy and gain tables can be judged.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use weir_client::Admin;
use weir_core::ids::QueryId;

use crate::connect::Common;
use crate::failure::Failure;

/// What the answer to a query should have been.
#[derive(Args)]
pub struct Label {
    /// The id that `weir predict -o json` and the client's answers tell: 32 hex digits
    #[arg(required_unless_present = "from", requires = "label")]
    query: Option<String>,
    /// The right class, from 0 on
    label: Option<u32>,
    /// A file with a query id, a comma and a class on each line, for many at once
    #[arg(long, env = "WEIR_FROM", conflicts_with = "query")]
    from: Option<PathBuf>,
}

impl Label {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let labels = self.labels()?;
        let admin = common.admin()?;
        let nodes = admin.status().await?.state.nodes;
        let mut known = 0;
        for (id, label) in &labels {
            known += usize::from(tell(&admin, nodes.values().map(|node| node.address.as_str()), *id, *label).await?);
        }
        if known == 0 {
            return Err(Failure::NotFound(
                "no node remembers a query of these; label answers soon after they were given".into(),
            ));
        }
        if common.json() {
            println!("{}", json!({"labels": labels.len(), "known": known}));
        } else {
            println!("{known} of {} queries labelled", labels.len());
        }
        Ok(())
    }

    fn labels(&self) -> Result<Vec<(QueryId, u32)>, Failure> {
        let parse = |id: &str| {
            QueryId::parse(id).ok_or_else(|| {
                Failure::Usage(format!(
                    "{id:?} is no query id: that is 32 hex digits, as `weir predict -o json` prints them"
                ))
            })
        };
        let Some(from) = &self.from else {
            let (query, label) = self.query.as_deref().zip(self.label).expect("clap requires them");
            return Ok(vec![(parse(query)?, label)]);
        };
        let text = std::fs::read_to_string(from)
            .map_err(|cause| Failure::Usage(format!("cannot read {}: {cause}", from.display())))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let label = |(number, line): (usize, &str)| {
            let wrong = || {
                let place = format!("{}:{}", from.display(), number + 1);
                Failure::Usage(format!("{place}: write a query id, a comma and a class, not {line:?}"))
            };
            let (id, label) = line.split_once(',').ok_or_else(wrong)?;
            Ok((parse(id.trim())?, label.trim().parse().map_err(|_| wrong())?))
        };
        lines.map(label).collect()
    }
}

/// Tells every node until one knows the query.
async fn tell(admin: &Admin, nodes: impl Iterator<Item = &str>, id: QueryId, label: u32) -> Result<bool, Failure> {
    let mut unreachable = None;
    for address in nodes {
        match admin.label(address, id, label).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) => unreachable = Some(error),
        }
    }
    // Whoever does not answer may have been its home.
    unreachable.map_or(Ok(false), |error| Err(error.into()))
}
