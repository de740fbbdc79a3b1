//! `weir load run`: puts a load on an endpoint and measures.

use std::path::PathBuf;
use std::rc::Rc;

use clap::{Args, Subcommand};
use weir_client::weirfile::parse_duration;
use weir_core::ids::EndpointName;
use weir_core::workload::Arrivals;
use weir_loadgen::run::{Loop, RunConfig, run};
use weir_loadgen::target::weir::Weir;
use weir_loadgen::{npy, report};

use crate::connect::Common;
use crate::failure::Failure;

/// Load.
#[derive(Args)]
pub struct Load {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// One run: sends when the arrival process says so, whatever has come back
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// What to ask
    #[arg(long, env = "WEIR_ENDPOINT")]
    endpoint: String,
    /// Rows to ask for, as .npy
    #[arg(long, env = "WEIR_DATA")]
    data: PathBuf,
    /// The right answer for each row, as .npy of whole numbers
    #[arg(long, env = "WEIR_LABELS")]
    labels: Option<PathBuf>,
    /// Queries per second
    #[arg(long, env = "WEIR_RATE", required_unless_present = "closed")]
    rate: Option<f64>,
    /// constant, poisson or gamma:cv=4
    #[arg(long, env = "WEIR_ARRIVALS", default_value = "poisson")]
    arrivals: String,
    /// Closed loop instead: so many callers, each waiting for its answer (hides stalls)
    #[arg(long, env = "WEIR_CLOSED", conflicts_with_all = ["rate", "arrivals"])]
    closed: Option<usize>,
    /// How long
    #[arg(long, env = "WEIR_DURATION", default_value = "10s")]
    duration: String,
    /// Of each query [default: the endpoint's]
    #[arg(long, env = "WEIR_DEADLINE")]
    deadline: Option<String>,
    /// Decides instants and rows [default: drawn, and printed]
    #[arg(long, env = "WEIR_SEED")]
    seed: Option<u64>,
    /// Connections to each node
    #[arg(long, env = "WEIR_CONNECTIONS", default_value_t = 2)]
    connections: usize,
    /// Also write the result as a web page
    #[arg(long, env = "WEIR_REPORT")]
    report: Option<PathBuf>,
    /// Also write the result as JSON
    #[arg(long, env = "WEIR_SAVE")]
    save: Option<PathBuf>,
}

impl Load {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let Verb::Run(run) = self.verb;
        run.run(common).await
    }
}

impl Run {
    async fn run(self, common: Common) -> Result<(), Failure> {
        let usage = |text: String| Failure::Usage(text);
        let endpoint = EndpointName::parse(&self.endpoint).map_err(|bad| usage(bad.to_string()))?;
        let data = npy::read(&self.data).map_err(|error| usage(error.to_string()))?;
        let rows = data.shape.first().copied().unwrap_or(0) as usize;
        let labels = match &self.labels {
            None => None,
            Some(path) => {
                let array = npy::read(path).map_err(|error| usage(error.to_string()))?;
                Some(
                    npy::labels(&array)
                        .ok_or_else(|| usage(format!("{}: labels are whole numbers", path.display())))?,
                )
            }
        };
        let span = |flag: &str, text: &str| {
            parse_duration(text)
                .filter(|d| !d.is_zero())
                .ok_or_else(|| Failure::Usage(format!("--{flag} {text}: write it as 50ms or 10s")))
        };
        let sending = match (self.closed, self.rate) {
            (Some(0), _) => return Err(usage("--closed: at least one caller".into())),
            (Some(callers), _) => Loop::Closed(callers),
            (None, Some(rate)) if rate.is_finite() && rate > 0.0 => {
                Loop::Open { arrivals: Arrivals::parse(&self.arrivals).map_err(|bad| usage(bad.to_string()))?, rate }
            }
            _ => return Err(usage("--rate is a number above 0".into())),
        };
        let duration = span("duration", &self.duration)?;
        let mut clients = Vec::new();
        for _ in 0..self.connections.max(1) {
            clients.push(common.client().await?);
        }
        let info = clients[0].describe(&endpoint).await?;
        let [input] = info.inputs.as_slice() else {
            return Err(usage(format!("{endpoint} takes {} inputs, and --data gives one", info.inputs.len())));
        };
        if labels.is_some() && info.label_output.is_none() {
            return Err(usage(format!("{endpoint} has no label_output to compare labels with")));
        }
        let deadline = match &self.deadline {
            Some(text) => span("deadline", text)?,
            None => info.deadline,
        };
        let seed = self.seed.unwrap_or_else(|| weir_host::random::Random::u64(&weir_host::random::OsRandom) >> 32);
        let target = Rc::new(Weir::new(clients, endpoint, input.name.clone(), info.label_output.clone(), data));
        let config = RunConfig {
            target: format!("weir://{}", common.coordinators.join(",")),
            endpoint: self.endpoint.clone(),
            sending,
            duration,
            deadline,
            seed,
            rows,
            labels,
        };
        let result = tokio::select! {
            result = run(&config, target) => result.map_err(|error| usage(error.to_string()))?,
            _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
        };
        let json = serde_json::to_string(&result).expect("a result is plain data");
        let write = |path: &PathBuf, text: &str| {
            std::fs::write(path, text).map_err(|cause| Failure::No(format!("cannot write {}: {cause}", path.display())))
        };
        if let Some(path) = &self.report {
            write(path, &report::html(&result))?;
        }
        if let Some(path) = &self.save {
            write(path, &json)?;
        }
        if common.json() {
            println!("{json}");
        } else {
            print!("{}", result.table());
        }
        match &result.invalid_because {
            Some(because) => Err(Failure::No(because.clone())),
            None => Ok(()),
        }
    }
}
