//! `weir`: the one binary. Starts coordinators and nodes, and steers and measures a cluster.
#[macro_use]
mod stdout;
mod commands;
mod config;
mod connect;
mod failure;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::commands::Command;
use crate::config::Stop;
use crate::failure::Failure;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Prediction serving that keeps its deadlines under bursts.
#[derive(Parser)]
#[command(
    name = "weir",
    version,
    after_help = "Start one here:   weir up --demo\nAsk it:           weir predict fashion --input demo/images.npy --rows 0:4\n\nExit codes: 0 done, 1 the answer is no, 2 wrong usage or a bad file, 3 cluster not reachable, 4 no right to it, 5 not found, 6 conflict, 7 timed out, 8 rejected or expired, 130 interrupted."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// A TOML file with flags as keys, for all commands or in a table [COMMAND]; flag beats variable beats file
    #[arg(long, global = true, env = "WEIR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let parsed = config::parse(&Arguments::command(), std::env::args_os().collect());
    let parsed = parsed.and_then(|matches| Arguments::from_arg_matches(&matches).map_err(Stop::CommandLine));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(Stop::File(failure, json)) => {
            report(&failure, json);
            return ExitCode::from(failure.code());
        }
        Err(Stop::CommandLine(error)) => {
            // Help and version go to stdout and are no mistake.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    // A log that nobody reads any more must not end a server, as telling of it on stderr would.
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false).with_writer(std::io::stderr);
    match std::env::var("WEIR_LOG").as_deref() {
        Ok("json") => logs.json().init(),
        _ => logs.init(),
    }
    let json = arguments.command.json();
    // Actors need a system around them; commands that start none do not notice it.
    let result = actix::System::new().block_on(async move {
        let commands = tokio::task::LocalSet::new();
        commands.run_until(arguments.command.run()).await
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, json);
            ExitCode::from(failure.code())
        }
    }
}

fn report(failure: &Failure, json: bool) {
    if failure.is_silent() {
        return;
    }
    if json {
        let error = serde_json::json!({"error": {"code": failure.word(), "message": failure.to_string()}});
        println!("{error}");
    }
    eprintln!("error: {failure}");
}
