//! `weir dial`: the price of computing time, by hand.

use clap::Args;
use weir_core::replicated::Command;

use super::apply::show;
use crate::connect::Common;
use crate::failure::Failure;

/// Holds the price of computing time by hand, and lets go of it.
#[derive(Args)]
pub struct Dial {
    /// In correct answers a second of slot time, as 100; `auto` lets the load find it again; without it, what is held is told
    price: Option<String>,
    /// A kind of device
    #[arg(long, env = "WEIR_POOL", default_value = "cpu")]
    pool: String,
}

impl Dial {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let admin = common.admin()?;
        let Some(text) = &self.price else {
            let held = admin.status().await?.state.dials.get(&self.pool).copied();
            if common.json() {
                println!("{}", serde_json::json!({"pool": self.pool, "held": held}));
            } else {
                let pool = &self.pool;
                let told =
                    held.map_or("is found by load; `weir top` shows it".into(), |price| format!("is held at {price}"));
                println!("the price of pool {pool} {told}");
            }
            return Ok(());
        };
        let price = match text.as_str() {
            "auto" => None,
            number => {
                Some(number.parse::<f64>().ok().filter(|price| price.is_finite() && *price >= 0.0).ok_or_else(
                    || Failure::Usage(format!("{number} is no price: write a number, at least 0, or auto")),
                )?)
            }
        };
        let done = admin.write(Command::Dial { pool: self.pool, price }).await?;
        show(&done.lines, &common);
        Ok(())
    }
}
