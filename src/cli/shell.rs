//! `bk completions`, `bk man`: from the same definitions as the help.

use std::path::Path;

use clap::CommandFactory;

use super::Ended;
use crate::{
    config::typed::Cli,
    error::{Error, Result},
};

pub fn completions(shell: clap_complete::Shell) -> Result<Ended> {
    use std::io::Write;
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "bk", &mut text);
    std::io::stdout().write_all(&text).map_err(|e| Error::io("cannot write to standard output", e))?;
    Ok(Ended::Done)
}

pub fn man(dir: &Path) -> Result<Ended> {
    let failed = |e| Error::io(format!("cannot write man pages into {}", dir.display()), e);
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
    Ok(Ended::Done)
}
