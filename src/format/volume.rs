//! `bk-volume.json`: what makes a directory a volume.

use serde::{Deserialize, Serialize};

use super::envelope;
use crate::{
    error::{Error, Kind, Result},
    model::{ids::Nonce, time::Instant},
};

/// The version of the volume format this bk writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// The document in `bk-volume.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFile {
    /// Always `volume`.
    pub r#type: VolumeTag,
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The volume's id, random.
    pub id: Nonce,
    /// When it was made.
    pub created_at: Instant,
    /// Only one process at a time may write: the store knows no conditional create.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive_writer: bool,
}

/// The word `volume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeTag {
    /// The word `volume`.
    Volume,
}

/// Only the version: read first, so that a newer format is refused by its number and not by an unknown field.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

impl VolumeFile {
    /// The object's bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        envelope::encode(self)
    }

    /// Reads the object; a newer format version is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        check_version(bytes)?;
        envelope::decode(bytes)
    }
}

/// Refuses an object of a newer format version.
pub fn check_version(bytes: &[u8]) -> Result<()> {
    let Version { format_version } = envelope::decode(bytes)?;
    if format_version == FORMAT_VERSION {
        return Ok(());
    }
    let what = format!("format version {format_version} is not one this bk knows ({FORMAT_VERSION})");
    Err(Error::new(Kind::Other, what).with_hint("use a newer bk; nothing was changed"))
}
