//! `weir scale`: how many replicas a model has.

use clap::Args;
use weir_client::ClientError;
use weir_core::ids::ModelRef;
use weir_core::replicated::{Command, Model, ReplicaRange};

use super::apply::show;
use crate::connect::Common;
use crate::failure::Failure;

/// Says how many replicas a model has, until its file is applied again.
#[derive(Args)]
pub struct Scale {
    /// A model with its version or label, as fashion-big@1
    model: String,
    /// Exactly so many
    #[arg(long, env = "WEIR_REPLICAS")]
    replicas: u32,
}

impl Scale {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let reference = ModelRef::parse(&self.model).map_err(|bad| Failure::Usage(bad.to_string()))?;
        if self.replicas == 0 {
            return Err(Failure::Usage(
                "--replicas 0: a model that is served has one at least; `weir delete endpoint` takes it away".into(),
            ));
        }
        let admin = common.admin()?;
        // Whatever is written meanwhile was meant for the model as it was: look again rather than undo it.
        for last in [false, false, false, true] {
            let state = admin.status().await?.state;
            let reference = state.stands_for(&reference);
            let model = state.models.get(&reference).ok_or_else(|| {
                Failure::NotFound(format!("model {reference} not found; `weir get models` lists what there is"))
            })?;
            let scaled = Model { replicas: ReplicaRange { min: self.replicas, max: self.replicas }, ..model.clone() };
            let command = Command::Apply { models: vec![scaled], endpoints: Vec::new(), if_index: Some(state.applied) };
            match admin.write(command).await {
                Err(ClientError::Conflict(_)) if !last => {}
                done => {
                    show(&done?.lines, &common);
                    break;
                }
            }
        }
        Ok(())
    }
}
