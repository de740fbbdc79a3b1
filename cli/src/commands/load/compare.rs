//! `weir load compare`: two results side by side.

use std::path::{Path, PathBuf};

use clap::Args;
use weir_loadgen::compare::compare;
use weir_loadgen::result::RunResult;

use super::asked::usage;
use crate::connect::Common;
use crate::failure::Failure;

#[derive(Args)]
pub struct Compare {
    /// A result of `weir load run`, as --save or -o json wrote it
    a: PathBuf,
    /// Another
    b: PathBuf,
}

impl Compare {
    pub fn run(self, common: &Common) -> Result<(), Failure> {
        let compared = compare(&read(&self.a)?, &read(&self.b)?);
        if common.json() {
            println!("{}", serde_json::to_string(&compared).expect("plain data"));
        } else {
            print!("{}", compared.table());
        }
        if compared.differs() { Err(Failure::Told(1)) } else { Ok(()) }
    }
}

fn read(path: &Path) -> Result<RunResult, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| usage(format!("cannot read {} ({e}); name a file that --save wrote", path.display())))?;
    serde_json::from_str(&text)
        .map_err(|e| usage(format!("{} is no result of `weir load run` ({e}); write one with --save", path.display())))
}
