//! `weir load run`: one run.

use std::path::{Path, PathBuf};

use clap::Args;
use weir_loadgen::goal::Goal;
use weir_loadgen::result::RunResult;
use weir_loadgen::{hdr, report, run};

use super::asked::{Asked, Line, Offered, load_failure, on_interrupt, usage};
use crate::connect::Common;
use crate::failure::Failure;

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
        let result = run::run(&prepared.config, prepared.connect, stop, |progress| line.show(progress)).await;
        line.clear();
        let result = result.map_err(load_failure)?;
        self.written.write(&result, &common)?;
        verdict(&result, prepared.scenario.goals.iter().find(|goal| !goal.is_met(&result)))
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
