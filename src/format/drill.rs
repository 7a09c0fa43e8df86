//! `drills/<job>/<run id>.json`: what came of restoring a snapshot for practice. Section 3.7 of `docs/format.md`.

use serde::{Deserialize, Serialize};

use super::{
    envelope,
    record::as_text,
    volume::{self, FORMAT_VERSION},
};
use crate::{
    error::{Error, Result},
    model::{
        ids::{Name, RunId},
        time::Instant,
    },
};

/// Why a drill failed is at most this long, bytes.
pub const WHY_LEN_MAX: usize = 1000;

/// A drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    /// Always `drill`.
    pub r#type: DrillTag,
    /// Version of the volume format.
    pub format_version: u32,
    /// The job.
    pub job: Name,
    /// The node it was done on.
    pub node: String,
    /// The snapshot's number in its log.
    pub seq: u64,
    /// The snapshot's run.
    #[serde(with = "as_text")]
    pub run_id: RunId,
    /// When it began.
    pub started_at: Instant,
    /// When it ended.
    pub ended_at: Instant,
    /// Whether everything was restored as it was stored, and the command, if there was one, ended well.
    pub passed: bool,
    /// Why not.
    pub why: Option<String>,
    /// Entries that were compared.
    pub entries: u64,
    /// Bytes that were compared.
    pub bytes: u64,
    /// Whether a command was run against it.
    pub command: bool,
}

/// The word `drill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrillTag {
    /// The word `drill`.
    Drill,
}

impl Drill {
    /// The object's bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        envelope::encode(self)
    }

    /// Reads it; a newer format version, an unknown field and a broken digest are errors.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        volume::check_version(bytes)?;
        let drill: Self = envelope::decode(bytes)?;
        if drill.format_version != FORMAT_VERSION || drill.why.as_ref().is_some_and(|why| why.len() > WHY_LEN_MAX) {
            return Err(Error::integrity("not a drill of this format"));
        }
        Ok(drill)
    }
}

/// `drills/<job>/`
pub fn dir(job: &Name) -> String {
    format!("drills/{job}/")
}

/// `drills/<job>/<run id>.json`; the run id is the drill's own.
pub fn key(job: &Name, drill: RunId) -> String {
    format!("{}{drill}.json", dir(job))
}

/// Which drill of the job a key names.
pub fn place(job: &Name, key: &str) -> Option<RunId> {
    key.strip_prefix(&dir(job))?.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_reads_as_it_was_written() {
        let (job, run_id): (Name, RunId) = ("db".parse().unwrap(), RunId::new(5).unwrap());
        let at = Instant::from_second(1_800_000_000).unwrap();
        let drill = Drill {
            r#type: DrillTag::Drill,
            format_version: FORMAT_VERSION,
            job: job.clone(),
            node: "n1".to_owned(),
            seq: 17,
            run_id,
            started_at: at,
            ended_at: at,
            passed: false,
            why: Some("digest differs".to_owned()),
            entries: 5,
            bytes: 6,
            command: true,
        };
        let bytes = drill.encode().unwrap();
        assert_eq!(Drill::decode(&bytes).unwrap(), drill);
        let mut damaged = bytes.clone();
        damaged[20] ^= 1;
        assert!(Drill::decode(&damaged).is_err());
        let long = Drill { why: Some("x".repeat(WHY_LEN_MAX + 1)), ..drill };
        assert!(Drill::decode(&long.encode().unwrap()).is_err());
        assert_eq!(place(&job, &key(&job, run_id)), Some(run_id));
        assert_eq!(place(&"d".parse().unwrap(), &key(&job, run_id)), None);
    }
}
