//! `weir token` and `weir revoke`: rights handed out, and taken back.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use weir_client::Token as Secret;
use weir_client::weirfile::parse_duration;
use weir_core::ids::EndpointName;
use weir_core::replicated::{Grant, Role};
use weir_host::Host;
use weir_host::disk::SystemDisk;

use super::apply::show;
use crate::connect::Common;
use crate::failure::Failure;

/// Rights handed out.
#[derive(Args)]
pub struct Token {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a token; it is printed once, and kept nowhere
    #[command(
        after_help = "Examples:\n  weir token create --role predict --endpoint fashion --expires 24h\n  weir token create --role operator --id ops --out ops.token"
    )]
    Create(Create),
}

#[derive(Args)]
struct Create {
    /// What it opens: predict, operator or admin
    #[arg(long, env = "WEIR_ROLE")]
    role: String,
    /// Of predict: this endpoint alone; may be said several times [default: all]
    #[arg(long, env = "WEIR_ENDPOINT", value_delimiter = ',')]
    endpoint: Vec<String>,
    /// When it ends, from now, as 24h or 30d [default: when it is revoked]
    #[arg(long, env = "WEIR_EXPIRES")]
    expires: Option<String>,
    /// What `weir get grants` and `weir revoke` call it [default: drawn]
    #[arg(long, env = "WEIR_ID")]
    id: Option<String>,
    /// Write it into this file, readable by its owner only, instead of printing it
    #[arg(long, env = "WEIR_OUT")]
    out: Option<PathBuf>,
}

/// Takes a right back.
#[derive(Args)]
pub struct Revoke {
    /// Its id, as `weir get grants` tells it
    id: String,
}

const DAY: Duration = Duration::from_secs(86_400);

/// A span, in days too.
fn span(text: &str) -> Option<Duration> {
    match text.trim().strip_suffix('d') {
        Some(days) => days.parse::<u32>().ok().map(|days| DAY * days),
        None => parse_duration(text),
    }
}

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

impl Token {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let Verb::Create(create) = self.verb;
        create.run(common).await
    }
}

impl Create {
    async fn run(self, common: Common) -> Result<(), Failure> {
        let usage = |text: String| Failure::Usage(text);
        let endpoints: Vec<EndpointName> = self
            .endpoint
            .iter()
            .map(|name| EndpointName::parse(name).map_err(|bad| usage(bad.to_string())))
            .collect::<Result<_, _>>()?;
        // Members have the token that the founder wrote.
        let role = match self.role.as_str() {
            "predict" => Role::Predict(endpoints.clone()),
            "operator" | "admin" if !endpoints.is_empty() => {
                return Err(usage("--endpoint is for --role predict alone".into()));
            }
            "operator" => Role::Operator,
            "admin" => Role::Admin,
            other => return Err(usage(format!("--role {other:?}: there are predict, operator and admin"))),
        };
        let host = Host::system();
        let expires = match &self.expires {
            None => None,
            Some(text) => {
                let span = span(text).filter(|span| *span >= Duration::from_secs(1));
                let span = span.ok_or_else(|| usage(format!("--expires {text}: write it as 24h or 30d")))?;
                Some((host.clock.since_1970() + span).as_secs())
            }
        };
        let id = match self.id {
            Some(id) if is_id(&id) => id,
            Some(id) => {
                return Err(usage(format!("--id {id:?}: write it with letters, digits, . _ and -, at most 64")));
            }
            None => format!("g{:012x}", host.random.u64() >> 16),
        };
        let admin = common.admin()?;
        if !endpoints.is_empty() {
            let known = admin.status().await?.state.endpoints;
            if let Some(unknown) = endpoints.iter().find(|name| !known.contains_key(*name)) {
                let why = format!("endpoint {unknown} not found; `weir get endpoints` lists what there is");
                return Err(Failure::NotFound(why));
            }
        }
        let token = Secret::generate(&*host.random);
        admin.grant_add(&Grant { id: id.clone(), token_hash: token.hash(), role, expires }).await?;
        if let Some(path) = &self.out {
            token.write_file(&SystemDisk, path).map_err(|cause| {
                usage(format!("cannot write {}: {cause}; take it back with `weir revoke {id}`", path.display()))
            })?;
        }
        let shown = self.out.is_none().then(|| token.reveal());
        if common.json() {
            println!("{}", json!({"id": id, "token": shown, "expires_unix_s": expires}));
        } else {
            println!("{}", shown.unwrap_or_else(|| format!("grant {id} created")));
        }
        Ok(())
    }
}

impl Revoke {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let done = common.admin()?.grant_revoke(&self.id).await?;
        show(&done.lines, &common);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_spans_and_ids_are_plain() {
        assert_eq!(span("24h"), Some(DAY));
        assert_eq!(span("30d"), Some(DAY * 30));
        for text in ["", "d", "-1d", "1.5d", "soon"] {
            assert_eq!(span(text), None, "{text}");
        }
        assert!(is_id("team-a.1") && !is_id("") && !is_id("a b") && !is_id(&"x".repeat(65)));
    }
}
