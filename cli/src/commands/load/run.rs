//! `weir load run`: one run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use weir_client::{Admin, ClientError};
use weir_core::endpoint::audit::Labelled;
use weir_core::endpoint::{Endpoint, Gate, Stage};
use weir_core::history::{EndpointRecent, NodeRecent};
use weir_core::ids::ModelRef;
use weir_core::triage::Looks;
use weir_gateway::view::told;
use weir_loadgen::goal::Goal;
use weir_loadgen::result::{ByLabels, RunResult, demanded};
use weir_loadgen::target::Stream;
use weir_loadgen::{hdr, report, run};

use super::asked::{Asked, Line, Offered, Prepared, load_failure, on_interrupt, usage};
use crate::connect::Common;
use crate::failure::Failure;

/// How often the leader is asked for its demand curves: it hears of them four times a second.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    offered: Offered,
    /// Closed loop instead: so many callers, each waiting for its answer (hides stalls)
    #[arg(long, env = "WEIR_CLOSED", conflicts_with_all = ["rate", "arrivals"])]
    closed: Option<usize>,
    #[command(flatten)]
    written: Written,
}

/// Where a result goes, besides the screen.
#[derive(Args)]
pub struct Written {
    /// Also write the result as a web page
    #[arg(long, env = "WEIR_REPORT", value_name = "FILE")]
    report: Option<PathBuf>,
    /// Also write the result as JSON
    #[arg(long, env = "WEIR_SAVE", value_name = "FILE")]
    save: Option<PathBuf>,
    /// Also write the latencies as an HdrHistogram log, an interval a second
    #[arg(long, env = "WEIR_HDR", value_name = "FILE")]
    hdr: Option<PathBuf>,
}

impl Written {
    /// Told before a run is made whose result would find no place.
    pub fn check(&self) -> Result<(), Failure> {
        for (flag, path) in [("report", &self.report), ("save", &self.save), ("hdr", &self.hdr)] {
            let Some(path) = path else { continue };
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if path.is_dir() || !folder.is_dir() {
                return Err(usage(format!("--{flag} {}: name a file in a folder that is there", path.display())));
            }
        }
        Ok(())
    }

    /// Prints the result and writes the files.
    pub fn write(&self, result: &RunResult, common: &Common) -> Result<(), Failure> {
        let json = serde_json::to_string(result).expect("a result is plain data");
        if common.json() {
            println!("{json}");
        } else {
            print!("{}", result.table());
        }
        let write = |path: &Option<PathBuf>, text: &dyn Fn() -> String| match path {
            None => Ok(()),
            Some(path) => std::fs::write(path, text())
                .map_err(|cause| tell(1, &format!("cannot write {} ({cause}); name another file", path.display()))),
        };
        write(&self.report, &|| report::html(result))?;
        write(&self.save, &|| json.clone())?;
        write(&self.hdr, &|| hdr::log(result))
    }
}

impl Run {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        self.written.check()?;
        let prepared = self.asked.prepare(&common, self.offered.added(self.closed)).await?;
        let line = Line::new(String::new());
        let stop = on_interrupt();
        let mut looks = Looks::default();
        let before = labelled(&prepared).await;
        let result = {
            let run = run::run(&prepared.config, Arc::clone(&prepared.connect), stop, |progress| line.show(progress));
            let demand = async {
                if let Some(admin) = &prepared.admin {
                    look(admin, &prepared.config.streams, &mut looks).await;
                }
                std::future::pending().await
            };
            tokio::select! {
                result = run => result,
                () = demand => unreachable!("it waits for the run"),
            }
        };
        line.clear();
        let mut result = result.map_err(load_failure)?;
        result.demand = demanded(&looks.mean());
        result.labelled = ByLabels::new(since(&before, &labelled(&prepared).await));
        self.written.write(&result, &common)?;
        verdict(&result, prepared.scenario.goals.iter().find(|goal| !goal.is_met(&result)))
    }
}

/// By node that answers: what labels say by now of the endpoints that are asked. Empty where the token allows no look.
async fn labelled(prepared: &Prepared) -> BTreeMap<String, Labelled> {
    let Some(admin) = &prepared.admin else { return BTreeMap::new() };
    let Ok(status) = admin.status().await else { return BTreeMap::new() };
    let streams = &prepared.config.streams;
    let asked = |told: &&EndpointRecent| streams.iter().any(|stream| stream.endpoint == told.endpoint.as_str());
    let of = |recent: NodeRecent| {
        let mut sum = Labelled::default();
        recent.endpoints.iter().filter(asked).for_each(|told| sum.merge(told.labelled));
        sum
    };
    told(admin, &status, 1).await.into_iter().filter_map(|(node, recent)| Some((node, of(recent?)))).collect()
}

/// What was told during a run, at nodes that answered before it too: of others nobody knows how much of it is older.
fn since(before: &BTreeMap<String, Labelled>, after: &BTreeMap<String, Labelled>) -> Labelled {
    let mut sum = Labelled::default();
    after.iter().for_each(|(node, now)| before.get(node).into_iter().for_each(|then| sum.merge(now.since(*then))));
    sum
}

/// Looks once a second at what is asked of the models behind gates that weigh; ends where there are none, and where the token allows no look.
async fn look(admin: &Admin, streams: &[Stream], looks: &mut Looks) {
    let mut second = tokio::time::interval(LOOK_EVERY);
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // What is asked before the run is no part of it.
    second.tick().await;
    loop {
        second.tick().await;
        // A leader that is away for a while may come back.
        let status = match admin.status().await {
            Ok(status) => status,
            Err(ClientError::Refused(_)) => return,
            Err(_) => continue,
        };
        let is_asked = |endpoint: &&Endpoint| streams.iter().any(|stream| stream.endpoint == endpoint.name.as_str());
        let asked = status.state.endpoints.values().filter(is_asked).flat_map(|endpoint| &endpoint.stages);
        let weighed = asked.filter(|stage| matches!(stage.gate, Some(Gate::Gain { .. })));
        let models: BTreeSet<&ModelRef> = weighed.filter_map(Stage::model).collect();
        if models.is_empty() {
            return;
        }
        looks.add(status.demand().filter(|(model, _)| models.contains(model)));
    }
}

/// What the run amounts to: its JSON stands on stdout already and stays the only thing there.
pub fn verdict(result: &RunResult, missed: Option<&Goal>) -> Result<(), Failure> {
    if result.interrupted {
        return Err(tell(130, "interrupted; the result is what happened until then"));
    }
    if let Some(because) = &result.invalid_because {
        return Err(tell(1, because));
    }
    if result.answered == 0 {
        let why = result.errors.first().map(|(why, _)| format!(" ({why})")).unwrap_or_default();
        return Err(tell(1, &format!("no query was answered{why}; look at the server")));
    }
    if let Some(silence) = result.silence() {
        return Err(tell(1, &format!("{silence}; look at the server")));
    }
    missed.map_or(Ok(()), |missed| Err(tell(1, &missed.missed(result))))
}

fn tell(code: u8, sentence: &str) -> Failure {
    eprintln!("error: {sentence}");
    Failure::Told(code)
}
