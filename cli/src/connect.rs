//! Finding the cluster: coordinators and token from flag, variable or the file that `weir up` wrote.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use weir_client::{Admin, LocalClient, Options, Token};
use weir_host::Host;
use weir_host::disk::SystemDisk;

use crate::failure::Failure;

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Coordinators, as host:port,host:port
    #[arg(long, global = true, env = "WEIR_COORDINATORS", default_value = "127.0.0.1:7300", value_delimiter = ',')]
    pub coordinators: Vec<String>,
    /// A token (prefer --token-file: arguments can be seen by others)
    #[arg(long, global = true, env = "WEIR_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file with a token [default: the one that `weir up` wrote, ./weir-data/c1/admin.token]
    #[arg(long, global = true, env = "WEIR_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// How results are printed
    #[arg(short, long, global = true, env = "WEIR_OUTPUT", value_enum, default_value = "table")]
    pub output: Output,
}

/// Formats of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// Where `weir up` puts the founder's admin token, in its data folder.
pub const UP_TOKEN: &str = "c1/admin.token";

impl Common {
    /// Whether results are JSON.
    pub fn json(&self) -> bool {
        self.output == Output::Json
    }

    fn token(&self) -> Result<Token, Failure> {
        if let (Some(text), None) = (&self.token, &self.token_file) {
            return Token::parse(text)
                .ok_or_else(|| Failure::Usage("WEIR_TOKEN is no token: a token is 64 hex digits".into()));
        }
        let path = self.token_file.clone().unwrap_or_else(|| PathBuf::from("weir-data").join(UP_TOKEN));
        Token::read_file(&SystemDisk, &path).map_err(|cause| {
            Failure::Forbidden(format!(
                "cannot read the token {} ({cause}); name another with --token-file or WEIR_TOKEN_FILE (the admin token lies in the data folder of the founding coordinator)",
                path.display()
            ))
        })
    }

    /// How to reach the cluster.
    pub fn options(&self) -> Result<Options, Failure> {
        Ok(Options { coordinators: self.coordinators.clone(), token: self.token()? })
    }

    /// For operators' calls.
    pub fn admin(&self) -> Result<Admin, Failure> {
        Ok(Admin::new(Host::system(), self.options()?))
    }

    /// For predictions.
    pub async fn client(&self) -> Result<LocalClient, Failure> {
        Ok(LocalClient::connect(Host::system(), self.options()?).await?)
    }
}
