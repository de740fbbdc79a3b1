//! `weir delete`.

use clap::{Args, Subcommand};
use weir_core::ids::{EndpointName, ModelRef, NodeName};
use weir_core::replicated::Command;

use super::apply::show;
use crate::connect::Common;
use crate::failure::Failure;

/// Takes something away.
#[derive(Args)]
pub struct Delete {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// An endpoint, and the models that only it names
    Endpoint { name: String },
    /// A version that no endpoint names and no label points at, as name@version
    Model { name: String },
    /// A node that left for good
    Node { name: String },
}

impl Delete {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let usage = |bad: weir_core::ids::BadName| Failure::Usage(bad.to_string());
        let command = match self.what {
            What::Endpoint { name } => Command::DeleteEndpoint(EndpointName::parse(&name).map_err(usage)?),
            What::Model { name } => Command::DeleteModel(ModelRef::parse(&name).map_err(usage)?),
            What::Node { name } => Command::NodeRemove(NodeName::parse(&name).map_err(usage)?),
        };
        let done = common.admin()?.write(command).await?;
        show(&done.lines, &common);
        Ok(())
    }
}
