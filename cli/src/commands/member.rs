//! `weir member`: coordinators of the group.

use clap::{Args, Subcommand};

use super::apply::show;
use crate::connect::Common;
use crate::failure::Failure;

/// Coordinators of the group.
#[derive(Args)]
pub struct Member {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Add one as a learner (a coordinator started with --join does this itself)
    Add { name: String, address: String },
    /// Take one out
    Remove { name: String },
    /// Make a learner a voter
    Promote { name: String },
}

impl Member {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let admin = common.admin()?;
        let done = match self.verb {
            Verb::Add { name, address } => admin.member_add(&name, &address).await?,
            Verb::Remove { name } => admin.member_remove(&name).await?,
            Verb::Promote { name } => admin.member_promote(&name).await?,
        };
        show(&done.lines, &common);
        Ok(())
    }
}
