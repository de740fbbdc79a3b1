//! `weir load`: puts a load on a server and measures.

mod arrivals;
pub mod asked;
mod capacity;
mod compare;
pub mod run;

use clap::{Args, Subcommand};

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
    #[command(
        after_help = "Examples:\n  weir load run --endpoint fashion --data demo/images.npy --labels demo/labels.npy --rate 400 --arrivals gamma:cv=4\n  weir load run --target oip-http://127.0.0.1:8000/resnet --data images/ --rate 50 --deadline 100ms\n  weir load run --scenario benches/how_late_in_bursts.toml --report report.html"
    )]
    Run(Box<run::Run>),
    /// The highest rate that meets a goal, by repeated short runs
    #[command(
        after_help = "Example: weir load capacity --endpoint fashion --data demo/images.npy --goal 'attainment>=0.99' --deadline 50ms"
    )]
    Capacity(Box<capacity::Capacity>),
    /// How bursty a trace is, and what fits it
    #[command(after_help = "Example: weir load arrivals trace.csv.gz")]
    Arrivals(arrivals::Arrivals),
    /// Two results side by side; exit code 1 if they differ by more than chance
    #[command(after_help = "Example: weir load compare before.json after.json")]
    Compare(compare::Compare),
}

impl Load {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        match self.verb {
            Verb::Run(run) => run.run(common).await,
            Verb::Capacity(capacity) => capacity.run(common).await,
            Verb::Arrivals(arrivals) => arrivals.run(&common),
            Verb::Compare(compare) => compare.run(&common),
        }
    }
}
