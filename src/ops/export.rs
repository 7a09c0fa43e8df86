//! The run book of `bk export`: the tree of a snapshot as one tar.

use std::io::Write;

use serde::Serialize;

use crate::{
    engine::{
        catalog,
        read::{export, index::IndexReader},
    },
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
}

/// Writes the tar to `out`.
pub fn run(volume: &Volume, options: &Options, monitor: &dyn Monitor, out: &mut dyn Write) -> Result<Outcome> {
    let snapshot = catalog::find(volume, &options.snapshot)?;
    let index = IndexReader::open(volume, &snapshot)?;
    if index.entry_count() == 0 {
        return Err(Error::usage(format!("snapshot {} has no tree", index.shown()))
            .with_hint(format!("`bk cat {} --stream NAME` writes a stream", index.shown())));
    }
    Ok(Outcome { bytes: export::write_tree(&index, options.threads, monitor, out)? })
}
