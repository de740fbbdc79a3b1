//! `weir snapshot`: what is replicated, as a file.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use weir_core::ids::MemberName;
use weir_host::Host;
use weir_host::disk::{Disk, SystemDisk};
use weir_schema::convert::control::{state_from_bytes, state_to_bytes};

use crate::connect::Common;
use crate::failure::{Failure, chain};

/// What is replicated, as a file. Artifacts are not in it.
#[derive(Args)]
pub struct Snapshot {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write registry, endpoints, placement, nodes and grants (hashes of tokens, not tokens) into a file
    Save { file: PathBuf },
    /// Found a cluster anew from a file, in an empty data folder; start it with `weir coordinator --bootstrap`
    Restore {
        file: PathBuf,
        /// Data folder of the new first coordinator
        #[arg(long, env = "WEIR_DATA_DIR")]
        data_dir: PathBuf,
        /// Its name
        #[arg(long, env = "WEIR_NAME", default_value = "c1")]
        name: String,
        /// host:port that it will be reached at
        #[arg(long, env = "WEIR_ADDRESS", default_value = "127.0.0.1:7300")]
        address: String,
        /// The member token of the old cluster
        #[arg(long, env = "WEIR_MEMBER_TOKEN_FILE")]
        member_token_file: PathBuf,
    },
}

impl Snapshot {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        match self.verb {
            Verb::Save { file } => {
                let state = common.admin()?.snapshot().await?;
                let wrong = |cause: std::io::Error| Failure::No(format!("cannot write {}: {cause}", file.display()));
                let text: String = state_to_bytes(&state).iter().map(|byte| format!("{byte:02x}")).collect();
                SystemDisk.write_secret(&file, text.as_bytes()).map_err(wrong)?;
                println!("{} at index {} saved to {}", state.cluster, state.applied, file.display());
                Ok(())
            }
            Verb::Restore { file, data_dir, name, address, member_token_file } => {
                let bad = |why: &str| {
                    Failure::Usage(format!("{} is no snapshot that this version can read ({why})", file.display()))
                };
                let text = std::fs::read_to_string(&file).map_err(|cause| bad(&cause.to_string()))?;
                let digits = text.trim().as_bytes();
                let byte =
                    |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
                let bytes =
                    digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>().ok_or_else(|| bad("not hex digits"))?;
                let state = state_from_bytes(&bytes).map_err(|error| bad(&error.to_string()))?;
                let name = MemberName::parse(&name).map_err(|bad| Failure::Usage(bad.to_string()))?;
                let cluster = state.cluster.clone();
                weir_coordinator::restore(&Host::system(), &data_dir, name, address, &member_token_file, state)
                    .map_err(|error| Failure::No(chain(&error)))?;
                println!(
                    "{cluster} restored into {}; apply its files again so that their artifacts are there",
                    data_dir.display()
                );
                Ok(())
            }
        }
    }
}
