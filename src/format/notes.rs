//! What runs tell each other below `runs/<job>/<run id>/`: that a run has begun, how far it is, and that it is to stop.
//!
//! No snapshot depends on it. What is left of a run that has no record tells why it has none.

use serde::{Deserialize, Serialize};

use super::{envelope, volume};
use crate::{
    error::{Error, Result},
    model::{
        ids::{Name, RunId},
        time::Instant,
    },
};

/// A comment is at most this long, bytes.
pub const COMMENT_LEN_MAX: usize = 1000;
/// [`Note::Begun`] in a run's directory of notes.
pub const BEGUN_NAME: &str = "begun.json";
/// [`Note::Recorded`], likewise.
pub const RECORDED_NAME: &str = "recorded.json";

/// A note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Note {
    /// How far a run is: `progress.<n>.json`.
    Progress(Progress),
    /// It is to stop: `abort.<n>.json`.
    Abort(Abort),
    /// It has begun, and whether it was recorded is not known: `begun.json`.
    Begun(Word),
    /// It was recorded, but its `begun.json` could not be deleted: `recorded.json`.
    Recorded(Word),
}

/// How far a run was when it said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Version of the volume format.
    pub format_version: u32,
    /// The job.
    pub job: Name,
    /// The node.
    pub node: String,
    /// Its process there.
    pub pid: u32,
    /// The level it will have.
    pub level: u8,
    /// What it does: `entering`, `storing`, `committing`, `leaving`.
    pub phase: String,
    /// When the run began.
    pub started_at: Instant,
    /// When this was written.
    pub written_at: Instant,
    /// So long after this one, milliseconds, the next one is due.
    pub every_ms: u64,
    /// Entries done.
    pub entries: u64,
    /// Content bytes done.
    pub bytes: u64,
    /// Content bytes there will be, going by the last snapshot; null when not known.
    pub bytes_expected: Option<u64>,
    /// Content bytes a second since the one before.
    pub bytes_per_second: u64,
    /// What the user said of it.
    pub comment: Option<String>,
}

/// That a run is to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// Version of the volume format.
    pub format_version: u32,
    /// The job.
    pub job: Name,
    /// Who says so.
    pub node: String,
    /// When.
    pub written_at: Instant,
    /// Why, when that was said.
    pub comment: Option<String>,
}

/// That a run has begun, or was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Word {
    /// Version of the volume format.
    pub format_version: u32,
    /// The job.
    pub job: Name,
    /// The node.
    pub node: String,
    /// When the run began.
    pub written_at: Instant,
}

impl Note {
    /// The object's bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        envelope::encode(self)
    }

    /// Reads a note; a newer format version, an unknown type or field and a broken digest are errors.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        volume::check_version(bytes)?;
        let note: Self = envelope::decode(bytes)?;
        let comment = match &note {
            Self::Progress(progress) => &progress.comment,
            Self::Abort(abort) => &abort.comment,
            Self::Begun(_) | Self::Recorded(_) => &None,
        };
        if comment.as_ref().is_some_and(|text| text.len() > COMMENT_LEN_MAX) {
            return Err(Error::integrity("a comment is too long"));
        }
        Ok(note)
    }
}

/// `runs/<job>/<run id>/`
pub fn dir(job: &Name, run: RunId) -> String {
    format!("{}{run}/", super::layout::runs_dir(job))
}

/// `progress.<n>.json` or `abort.<n>.json` in a run's directory of notes.
pub fn key(job: &Name, run: RunId, kind: &str, n: u64) -> String {
    format!("{}{kind}.{n}.json", dir(job, run))
}

/// The number in the last component of a note's key, when it is of this kind.
pub fn number(key: &str, kind: &str) -> Option<u64> {
    let name = key.rsplit('/').next()?;
    name.strip_prefix(kind)?.strip_prefix('.')?.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes() {
        let job: Name = "db".parse().unwrap();
        let abort = Note::Abort(Abort {
            format_version: 1,
            job: job.clone(),
            node: "n1".to_owned(),
            written_at: Instant::from_second(5).unwrap(),
            comment: Some("enough".to_owned()),
        });
        assert_eq!(Note::decode(&abort.encode().unwrap()).unwrap(), abort);
        let long = match abort.clone() {
            Note::Abort(abort) => Note::Abort(Abort { comment: Some("x".repeat(1001)), ..abort }),
            other => other,
        };
        assert!(Note::decode(&long.encode().unwrap()).is_err());
        let run = RunId::new(1).unwrap();
        let key = key(&job, run, "progress", 17);
        assert_eq!(key, format!("runs/db/{run}/progress.17.json"));
        assert_eq!((number(&key, "progress"), number(&key, "abort")), (Some(17), None));
    }
}
