//! The run book of `bk diff`: two indexes side by side.

use serde::Serialize;

use crate::{
    engine::read::{
        chain::Chain,
        compare::{self, Change},
    },
    error::Result,
    model::{ids::SnapshotName, text::PathText},
    volume::Volume,
};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The older snapshot.
    pub older: SnapshotName,
    /// The newer one.
    pub newer: SnapshotName,
}

/// An entry or stream that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its path, or its name for a stream.
    #[serde(flatten)]
    pub path: PathText,
    /// Whether it is a stream.
    pub stream: bool,
    /// `added`, `removed` or `changed`.
    pub change: &'static str,
    /// Of what changed: `type`, `content`, `metadata`.
    pub what: Vec<&'static str>,
}

/// Sums of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Only in the newer one.
    pub added: u64,
    /// Only in the older one.
    pub removed: u64,
    /// In both, but different.
    pub changed: u64,
}

impl Outcome {
    fn difference(&mut self, path: &[u8], stream: bool, change: Change) -> Difference {
        let (word, count) = match change {
            Change { added: true, .. } => ("added", &mut self.added),
            Change { removed: true, .. } => ("removed", &mut self.removed),
            _ => ("changed", &mut self.changed),
        };
        *count += 1;
        let what = [(change.r#type, "type"), (change.content, "content"), (change.metadata, "metadata")];
        let what = what.into_iter().filter(|(set, _)| *set).map(|(_, word)| word).collect();
        Difference { path: PathText(path.to_vec()), stream, change: word, what }
    }
}

/// Tells `found` each difference, entries in order and then streams.
pub fn run(volume: &Volume, options: &Options, found: &mut dyn FnMut(&Difference) -> Result<()>) -> Result<Outcome> {
    let ((older, a), (newer, b)) = (Chain::find(volume, &options.older)?, Chain::find(volume, &options.newer)?);
    let mut outcome = Outcome::default();
    compare::compare(&a, &b, &mut |row, change| found(&outcome.difference(&row.entry.path, false, change)))?;
    for stream in &older.streams {
        let same = newer.streams.iter().find(|other| other.name == stream.name);
        let change = match same {
            None => Change { removed: true, ..Change::default() },
            Some(other) if other.digest != stream.digest => Change { content: true, ..Change::default() },
            Some(_) => continue,
        };
        found(&outcome.difference(stream.name.as_str().as_bytes(), true, change))?;
    }
    for stream in newer.streams.iter().filter(|s| !older.streams.iter().any(|other| other.name == s.name)) {
        let change = Change { added: true, ..Change::default() };
        found(&outcome.difference(stream.name.as_str().as_bytes(), true, change))?;
    }
    Ok(outcome)
}
