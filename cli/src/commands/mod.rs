//! One file a verb.
mod apply;
mod calibrate;
mod dashboard;
mod delete;
mod describe;
mod dial;
mod gateway;
mod get;
mod import;
mod label;
mod load;
mod member;
mod node;
mod plan;
mod predict;
mod profile;
mod rollout;
mod scale;
mod server;
mod simulate;
mod snapshot;
mod status;
mod token;
mod top;
mod up;
mod wait;
mod watch;
mod why;

use clap::{Args, CommandFactory, Subcommand};

use crate::connect::Common;
use crate::failure::Failure;

/// The verbs.
#[derive(Subcommand)]
pub enum Command {
    /// Start a whole cluster on this machine
    #[command(after_help = "Example: weir up --nodes 2 --coordinators 3 --demo")]
    Up(up::Up),
    /// Start a coordinator
    #[command(
        after_help = "Example: weir coordinator --name c1 --data-dir data/c1 --listen 127.0.0.1:7300 --bootstrap"
    )]
    Coordinator(With<server::Coordinator>),
    /// Start a node, or drain one
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  weir node --name n1 --data-dir data/n1 --listen 127.0.0.1:7400 --token-file data/c1/member.token\n  weir node drain n2"
    )]
    Node(With<node::Node>),
    /// Serve the open inference protocol in front of a cluster
    #[command(
        after_help = "Example: weir gateway --coordinators 127.0.0.1:7300 --http 127.0.0.1:8000 --grpc 127.0.0.1:8001"
    )]
    Gateway(With<gateway::Gateway>),
    /// Serve a page that shows the cluster as it works
    #[command(after_help = "Example: weir dashboard --listen 127.0.0.1:7380")]
    Dashboard(With<dashboard::Dashboard>),
    /// Serve what a file describes
    #[command(after_help = "Example: weir apply -f demo/fashion.toml")]
    Apply(With<apply::Apply>),
    /// Make a weir file of what is served elsewhere
    #[command(after_help = "Example: weir import triton /models --out weir.toml")]
    Import(With<import::Import>),
    /// What applying a file would change; exit code 1 if anything
    #[command(after_help = "Example: weir diff -f demo/fashion.toml")]
    Diff(With<apply::Diff>),
    /// The price of computing time, by hand
    #[command(after_help = "Examples:\n  weir dial --pool cpu 100\n  weir dial --pool cpu auto")]
    Dial(With<dial::Dial>),
    /// How many replicas a model has
    #[command(after_help = "Example: weir scale fashion-big@1 --replicas 3")]
    Scale(With<scale::Scale>),
    /// Move an endpoint to another version of its model, or back
    #[command(
        after_help = "Examples:\n  weir rollout fashion-plain --to fashion-big@1\n  weir rollout fashion-plain --to fashion-big@1 --share 10\n  weir rollout status fashion-plain\n  weir rollout undo fashion-plain"
    )]
    Rollout(With<rollout::Rollout>),
    /// Wait until something is as one wants it
    #[command(
        after_help = "Examples:\n  weir wait endpoint/fashion --for serving --timeout 60s\n  weir node drain n2 && weir wait node/n2 --for empty\n  weir wait member/c2 --for up"
    )]
    Wait(With<wait::Wait>),
    /// Take something away
    #[command(after_help = "Examples:\n  weir delete endpoint fashion\n  weir delete model fashion-mid@1")]
    Delete(With<delete::Delete>),
    /// List what there is
    #[command(after_help = "Example: weir get models")]
    Get(With<get::Get>),
    /// Tell all about one thing
    #[command(after_help = "Example: weir describe endpoint fashion")]
    Describe(With<describe::Describe>),
    /// The cluster on one screen; exit code 1 if an endpoint is not serving
    #[command(after_help = "Example: weir status -o json")]
    Status(With<status::Status>),
    /// What happens now: rates, queues, stages and latencies, as a live view
    #[command(after_help = "Examples:\n  weir top\n  weir top -o json")]
    Top(With<top::Top>),
    /// What became of a query, and why
    #[command(after_help = "Example: weir why 0123456789abcdef0123456789abcdef")]
    Why(With<why::Why>),
    /// Move a label of a model's versions; or tell what answers should have been, to judge accuracy and gain tables
    #[command(
        after_help = "Examples:\n  weir label fashion-mid stable 2\n  weir label fashion-mid canary --delete\n  weir label 0123456789abcdef0123456789abcdef 3\n  weir label --from labels.csv"
    )]
    Label(With<label::Label>),
    /// Ask an endpoint
    #[command(
        after_help = "Examples:\n  weir predict fashion --input demo/images.npy --rows 0:4\n  weir predict vad --input input=a.npy --input state=s.npy --whole"
    )]
    Predict(With<predict::Predict>),
    /// What deeper stages of a cascade gain, as tables for its gates
    #[command(
        after_help = "Example: weir calibrate fashion --data images.npy --labels labels.npy --accuracy 0.92 --out demo"
    )]
    Calibrate(With<calibrate::Calibrate>),
    /// Coordinators of the group
    #[command(after_help = "Example: weir member remove c2")]
    Member(With<member::Member>),
    /// Rights: make tokens
    #[command(after_help = "Example: weir token create --role predict --endpoint fashion --expires 24h")]
    Token(With<token::Token>),
    /// Rights: take one back
    #[command(after_help = "Example: weir revoke team-a")]
    Revoke(With<token::Revoke>),
    /// Keep what is replicated
    #[command(after_help = "Example: weir snapshot save weir.snapshot")]
    Snapshot(With<snapshot::Snapshot>),
    /// Changes as they happen
    #[command(after_help = "Example: weir watch placements --since 120")]
    Watch(With<watch::Watch>),
    /// Latency by batch size of a model file, on this machine
    #[command(after_help = "Example: weir profile demo/big.onnx")]
    Profile(With<profile::Profile>),
    /// Put a load on an endpoint, or on another server, and measure
    #[command(
        after_help = "Example: weir load run --endpoint fashion --data demo/images.npy --labels demo/labels.npy --rate 200 --arrivals gamma:cv=4 --duration 10s --deadline 50ms"
    )]
    Load(With<load::Load>),
    /// Put a load on a cluster in virtual time
    #[command(
        after_help = "Example: weir simulate -f demo/fashion.toml --endpoint fashion --data demo/images.npy --labels demo/labels.npy --rate 400 --arrivals gamma:cv=4 --nodes 4 --duration 60s"
    )]
    Simulate(Box<With<simulate::Simulate>>),
    /// The cheapest machines that meet a goal
    #[command(
        after_help = "Example: weir plan -f demo/fashion.toml --endpoint fashion --data demo/images.npy --arrivals gamma:cv=4 --rate 4000 --goal 'attainment>=0.99' --lose n1 --burst 2x"
    )]
    Plan(Box<With<plan::Plan>>),
    /// Shell completions
    #[command(after_help = "Example: weir completions bash > /etc/bash_completion.d/weir")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// A command that talks to a cluster.
#[derive(Args)]
pub struct With<T: Args> {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    command: T,
}

impl Command {
    /// Whether errors are wanted as JSON too.
    pub fn json(&self) -> bool {
        match self {
            Command::Up(_) | Command::Completions { .. } => false,
            Command::Coordinator(with) => with.common.json(),
            Command::Node(with) => with.common.json(),
            Command::Gateway(with) => with.common.json(),
            Command::Import(with) => with.common.json(),
            Command::Dashboard(with) => with.common.json(),
            Command::Apply(with) => with.common.json(),
            Command::Diff(with) => with.common.json(),
            Command::Dial(with) => with.common.json(),
            Command::Scale(with) => with.common.json(),
            Command::Wait(with) => with.common.json(),
            Command::Delete(with) => with.common.json(),
            Command::Get(with) => with.common.json(),
            Command::Describe(with) => with.common.json(),
            Command::Status(with) => with.common.json(),
            Command::Top(with) => with.common.json(),
            Command::Why(with) => with.common.json(),
            Command::Rollout(with) => with.common.json(),
            Command::Label(with) => with.common.json(),
            Command::Predict(with) => with.common.json(),
            Command::Calibrate(with) => with.common.json(),
            Command::Member(with) => with.common.json(),
            Command::Token(with) => with.common.json(),
            Command::Revoke(with) => with.common.json(),
            Command::Snapshot(with) => with.common.json(),
            Command::Watch(with) => with.common.json(),
            Command::Profile(with) => with.common.json(),
            Command::Load(with) => with.common.json(),
            Command::Simulate(with) => with.common.json(),
            Command::Plan(with) => with.common.json(),
        }
    }

    /// Does it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Command::Up(command) => command.run().await,
            Command::Coordinator(with) => with.command.run(with.common).await,
            Command::Node(with) => with.command.run(with.common).await,
            Command::Gateway(with) => with.command.run(with.common).await,
            Command::Import(with) => with.command.run(with.common).await,
            Command::Dashboard(with) => with.command.run(with.common).await,
            Command::Apply(with) => with.command.run(with.common).await,
            Command::Diff(with) => with.command.run(with.common).await,
            Command::Dial(with) => with.command.run(with.common).await,
            Command::Scale(with) => with.command.run(with.common).await,
            Command::Wait(with) => with.command.run(with.common).await,
            Command::Delete(with) => with.command.run(with.common).await,
            Command::Get(with) => with.command.run(with.common).await,
            Command::Describe(with) => with.command.run(with.common).await,
            Command::Status(with) => with.command.run(with.common).await,
            Command::Top(with) => with.command.run(with.common).await,
            Command::Why(with) => with.command.run(with.common).await,
            Command::Rollout(with) => with.command.run(with.common).await,
            Command::Label(with) => with.command.run(with.common).await,
            Command::Predict(with) => with.command.run(with.common).await,
            Command::Calibrate(with) => with.command.run(with.common).await,
            Command::Member(with) => with.command.run(with.common).await,
            Command::Token(with) => with.command.run(with.common).await,
            Command::Revoke(with) => with.command.run(with.common).await,
            Command::Snapshot(with) => with.command.run(with.common).await,
            Command::Watch(with) => with.command.run(with.common).await,
            Command::Profile(with) => with.command.run(with.common).await,
            Command::Load(with) => with.command.run(with.common).await,
            Command::Simulate(with) => with.command.run(with.common).await,
            Command::Plan(with) => with.command.run(with.common).await,
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut crate::Arguments::command(), "weir", &mut script);
                print!("{}", String::from_utf8_lossy(&script));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        crate::Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_s_help_has_an_example() {
        for command in crate::Arguments::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{}", command.get_name());
        }
    }
}
