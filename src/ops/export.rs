//! The run book of `bk export`: the tree of a snapshot as one tar.

use std::io::Write;

use serde::Serialize;

use crate::{
    engine::read::{chain::Chain, export},
    error::{Error, Result},
    model::ids::SnapshotName,
    monitor::Monitor,
    volume::Volume,
};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// Threads that decode.
    pub threads: usize,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Bytes of tar.
    pub bytes: u64,
    /// Entries that are not as they were, or missing; `.bk/incomplete` in the tar names them.
    pub incomplete: u64,
}

/// Writes the tar to `out`.
pub fn run(volume: &Volume, options: &Options, monitor: &dyn Monitor, out: &mut dyn Write) -> Result<Outcome> {
    let (snapshot, chain) = Chain::find(volume, &options.snapshot)?;
    if !chain.has_tree() {
        return Err(Error::usage(format!("snapshot {} has no tree", chain.shown()))
            .with_hint(format!("`bk cat {} --stream NAME` writes a stream", chain.shown())));
    }
    let written = export::write_tree(&chain, snapshot.totals.incomplete, options.threads, monitor, out)?;
    Ok(Outcome { bytes: written.bytes, incomplete: written.incomplete })
}
