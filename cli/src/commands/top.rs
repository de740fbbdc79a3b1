//! `weir top`: what happens now, endpoint by endpoint, from the nodes' last seconds.

mod screen;
mod text;

use std::time::Duration;

use clap::Args;
use weir_client::Admin;
use weir_core::history::WINDOW;
use weir_gateway::view::View;

use crate::connect::Common;
use crate::failure::Failure;
use weir_client::weirfile::parse_duration;

use self::screen::{Key, Screen};
use self::text::text;

/// What happens now: rates, queues, stages and latencies.
#[derive(Args)]
pub struct Top {
    /// How often to look, as 1s
    #[arg(long, env = "WEIR_INTERVAL", default_value = "1s")]
    interval: String,
    /// Look once; so it does where the output is no terminal, or JSON
    #[arg(long, env = "WEIR_ONCE")]
    once: bool,
}

/// Looking more often shows nothing new: nodes count by whole seconds.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

impl Top {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let interval = parse_duration(&self.interval)
            .filter(|interval| *interval >= INTERVAL_MIN)
            .ok_or_else(|| Failure::Usage(format!("--interval {}: write it as 1s; at least 100ms", self.interval)))?;
        let admin = common.admin()?;
        let first = look(&admin).await?;
        if common.json() {
            println!("{}", first.as_json());
            return Ok(());
        }
        if self.once || !screen::is_terminal() {
            println!("{}", text(&first));
            return Ok(());
        }
        watch(&admin, interval, first).await
    }
}

/// Shows one look after another until somebody has seen enough.
async fn watch(admin: &Admin, interval: Duration, first: View) -> Result<(), Failure> {
    let screen_error =
        |cause: std::io::Error| Failure::No(format!("cannot draw on this terminal: {cause}; try --once"));
    let mut screen = Screen::open().map_err(screen_error)?;
    let mut shown = text(&first);
    loop {
        screen.draw(&shown).map_err(screen_error)?;
        tokio::select! {
            key = screen.key() => match key {
                Key::End => return Ok(()),
                Key::Resized => continue,
            },
            () = tokio::time::sleep(interval) => {}
        }
        // A cluster that is away for a while is told as such, and may come back.
        shown = match look(admin).await {
            Ok(view) => text(&view),
            Err(failure) => format!("{failure}\n\n(trying again)"),
        };
    }
}

async fn look(admin: &Admin) -> Result<View, Failure> {
    Ok(weir_gateway::view::look(admin, WINDOW).await?.1)
}
