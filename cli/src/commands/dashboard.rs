//! `weir dashboard`: a page that shows the cluster as it works.

use clap::Args;
use weir_gateway::dashboard::{Samples, serve_dashboard};

use super::server::until_signal;
use crate::connect::Common;
use crate::failure::{Failure, chain};

/// Serves a page that shows the cluster as it works.
#[derive(Args)]
pub struct Dashboard {
    /// host:port to serve it at; port 0 takes a free one
    #[arg(long, env = "WEIR_LISTEN", default_value = "127.0.0.1:7380")]
    listen: String,
    /// Serve it beyond loopback: whoever reaches it sees the cluster and can send spikes
    #[arg(long, env = "WEIR_INSECURE_NETWORK")]
    insecure_network: bool,
}

impl Dashboard {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        // What is wrong with the token or the addresses is known before anybody opens the page.
        common.admin()?.status().await?;
        let failed = |error: weir_gateway::GatewayError| Failure::No(chain(&error));
        let (listener, address) =
            weir_gateway::bind(&self.listen, "listen", self.insecure_network).await.map_err(failed)?;
        let mut shutdown = until_signal();
        serve_dashboard(listener, common.options()?, Samples::new(), shutdown.clone()).map_err(failed)?;
        println!("dashboard listens on {address}");
        // An error means that whoever could say so is gone.
        let _ = shutdown.wait_for(|stop| *stop).await;
        Ok(())
    }
}
