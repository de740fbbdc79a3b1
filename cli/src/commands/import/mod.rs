//! `weir import`: what somebody serves elsewhere, as a weir file.

mod pbtxt;
mod triton;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::connect::Common;
use crate::failure::Failure;
use crate::show::table;

use self::triton::{Imported, Note};

/// Makes a weir file of what is served elsewhere.
#[derive(Args)]
pub struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Subcommand)]
enum From {
    /// A Triton model repository
    #[command(after_help = "Example: weir import triton /models --out weir.toml")]
    Triton(Triton),
}

#[derive(Args)]
struct Triton {
    /// Its folder
    repository: PathBuf,
    /// The weir file
    #[arg(long, env = "WEIR_OUT", default_value = "weir.toml")]
    out: PathBuf,
    /// Write it though there is one already
    #[arg(long, env = "WEIR_FORCE")]
    force: bool,
}

impl Import {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let From::Triton(Triton { repository, out, force }) = self.from;
        let unreadable = |cause| Failure::Usage(format!("cannot read {}: {cause}", repository.display()));
        let repository = std::path::absolute(&repository).map_err(unreadable)?;
        let (mut folders, unread) = triton::read(&repository).map_err(unreadable)?;
        let beside =
            std::path::absolute(&out).ok().and_then(|out| out.parent().map(Path::to_owned)).unwrap_or_default();
        for (_, path) in folders.iter_mut().flat_map(|folder| &mut folder.versions) {
            // A file beside its models can be moved with them.
            if let Ok(relative) = path.strip_prefix(&beside) {
                *path = relative.to_owned();
            }
        }
        let mut imported = triton::import(&folders);
        imported.notes.splice(0..0, unread);
        if imported.endpoints == 0 {
            tell(&imported, &common);
            return Err(Failure::No(format!("nothing in {} can be served by weir", repository.display())));
        }
        if out.exists() && !force {
            return Err(Failure::Usage(format!(
                "{} is there already; name another with --out, or say --force",
                out.display()
            )));
        }
        std::fs::write(&out, &imported.text)
            .map_err(|cause| Failure::Usage(format!("cannot write {}: {cause}", out.display())))?;
        tell(&imported, &common);
        if !common.json() {
            println!(
                "{} endpoints in {}; next: weir apply -f {} --dry-run",
                imported.endpoints,
                out.display(),
                out.display()
            );
        }
        Ok(())
    }
}

fn tell(imported: &Imported, common: &Common) {
    if common.json() {
        let note = |note: &Note| json!({"model": note.model, "field": note.field, "why": note.why});
        let notes: Vec<_> = imported.notes.iter().map(note).collect();
        println!("{}", json!({"endpoints": imported.endpoints, "not_honoured": notes}));
    } else if !imported.notes.is_empty() {
        let row = |note: &Note| vec![note.model.clone(), note.field.clone(), note.why.clone()];
        println!("{}\n", table(&["model", "not as it was", "why"], imported.notes.iter().map(row).collect()));
    }
}
