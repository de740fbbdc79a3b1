//! Where a run was made.

use serde::{Deserialize, Serialize};

/// The machine of the generator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Machine {
    pub os: String,
    pub arch: String,
    /// Empty where it is not told.
    pub cpu: String,
    /// That this process may use.
    pub cores: u64,
    /// Of the tool.
    pub weir: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Machine {
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            cpu: model.map(|(_, model)| model.trim().to_owned()).unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, |cores| cores.get() as u64),
            weir: env!("CARGO_PKG_VERSION").into(),
        }
    }
}
