//! Records of a job's log: the snapshot, whose record is its commit, and the changes of [`super::change`].
//!
//! A record is created once under its seq and never changed. What a log says is the sum of its records in order.

use serde::{Deserialize, Serialize};

use super::{
    change::{Change, Expire, Hold, Release, SetExpiry, Sweep},
    codec::Codec,
    envelope, volume,
};
use crate::{
    error::{Error, Result},
    model::{
        digest::Digest,
        ids::{Name, Nonce, RunId},
        time::Instant,
    },
};

/// A record of the log: `log/<job>/<seq>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Record {
    /// A snapshot exists from this record on.
    Snapshot(Box<Snapshot>),
    /// Snapshots are gone from this record on; their objects are deleted after it.
    Expire(Change<Expire>),
    /// A snapshot may go at another time than its own record says.
    SetExpiry(Change<SetExpiry>),
    /// A snapshot stays, whatever its time says.
    Hold(Change<Hold>),
    /// A hold ends.
    Release(Change<Release>),
    /// Runs that were never recorded can not be any more; their objects are deleted after it.
    Sweep(Change<Sweep>),
}

/// A snapshot's record: its commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Version of the volume format.
    pub format_version: u32,
    /// The job.
    pub job: Name,
    /// The cluster, when the job belongs to one.
    pub cluster: Option<String>,
    /// The node that took it.
    pub node: String,
    /// The run: the directory of its objects.
    #[serde(with = "as_text")]
    pub run_id: RunId,
    /// Random: tells the writer whether a record is its own.
    pub nonce: Nonce,
    /// The lease's epoch; 0 without a lease.
    pub epoch: u64,
    /// Its number in the log.
    pub seq: u64,
    /// Digest of the record before it (of its first line); null in record 1.
    #[serde(with = "as_hex_option")]
    pub prev: Option<Digest>,
    /// 0 to 9.
    pub level: u8,
    /// What it is an increment of; null at level 0.
    pub base: Option<Base>,
    /// The level that was asked for, when level 0 was taken instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_from: Option<u8>,
    /// When the run began.
    pub taken_at: Instant,
    /// The same by the clock of the store, where that is another than its node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_at: Option<Instant>,
    /// When it may go; null is never.
    pub expires_at: Option<Instant>,
    /// Digest of what was asked for: sources, excludes, one file system, stream names.
    #[serde(with = "as_hex")]
    pub definition: Digest,
    /// How its frames are compressed.
    pub codec: Codec,
    /// The sources as they were given.
    pub sources: Vec<String>,
    /// Named streams, in the order of their numbers from 1 on.
    pub streams: Vec<Stream>,
    /// The index object.
    pub index: IndexRef,
    /// `RESTORE.txt`.
    pub restore_txt: ObjectRef,
    /// Sums.
    pub totals: Totals,
    /// What the identities of chunks in the index depend on; the same in all of a chain. Without it none were noted.
    #[serde(default, with = "as_hex_option", skip_serializing_if = "Option::is_none")]
    pub chunk_key: Option<Digest>,
    /// What was not fully saved, at most 100 paths; the index has them all.
    pub incomplete: Vec<Incomplete>,
    /// Of a copy: what it was first taken as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_from: Option<CopiedFrom>,
    /// Encryption; null is none.
    pub crypto: Option<serde_json::Value>,
    /// Signature; null is none.
    pub sig: Option<serde_json::Value>,
}

/// The base of an increment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Its run.
    #[serde(with = "as_text")]
    pub run_id: RunId,
    /// Its number in the log.
    pub seq: u64,
    /// Digest of its record.
    #[serde(with = "as_hex")]
    pub digest: Digest,
}

/// What a copied snapshot was first taken as, on the volume where that was: a copy of a copy says the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopiedFrom {
    /// The volume's id.
    pub volume: Nonce,
    /// Its job there.
    pub job: Name,
    /// Its number in the log there.
    pub seq: u64,
    /// Its run there.
    #[serde(with = "as_text")]
    pub run_id: RunId,
    /// Digest of its record there.
    #[serde(with = "as_hex")]
    pub digest: Digest,
    /// The numbers by which its index names the members of its chain, level 0 first, itself left out.
    pub chain: Vec<u64>,
}

impl CopiedFrom {
    /// Whether both are copies of one snapshot.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.volume, self.run_id, self.digest) == (&other.volume, other.run_id, other.digest)
    }
}

/// A named stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Its name.
    pub name: Name,
    /// Where it came from.
    pub origin: Origin,
    /// Length, bytes.
    pub content_bytes: u64,
    /// BLAKE3 of its content.
    #[serde(with = "as_hex")]
    pub digest: Digest,
    /// Of an increment: where its content lies, rows of the index's section of places. Without it the stored stream is the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<PlaceRows>,
}

/// Rows of the section of places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceRows {
    /// The first.
    pub first: u64,
    /// How many, at least one.
    pub count: u64,
}

/// Where a stream came from, and so what its end says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A command that exited with 0 after its output ended.
    Command,
    /// Standard input: that its producer succeeded is not known.
    Unverified,
    /// A block device, read to its size.
    Device,
}

/// An object by name, length and digest of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectRef {
    /// File name in the run's directory.
    pub name: String,
    /// Length, bytes.
    pub len: u64,
    /// BLAKE3 of the object.
    #[serde(with = "as_hex")]
    pub digest: Digest,
}

/// The index object: the digest is that of its tail (directory and footer), which holds those of its blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexRef {
    /// File name in the run's directory.
    pub name: String,
    /// Length, bytes.
    pub len: u64,
    /// BLAKE3 of directory and footer.
    #[serde(with = "as_hex")]
    pub tail_digest: Digest,
}

/// Sums over a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Entries of the tree.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// Bytes of file and stream content read.
    pub content_bytes: u64,
    /// Bytes stored in parts.
    pub stored_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Parts.
    pub parts: u64,
    /// Entries that are incomplete.
    pub incomplete: u64,
    /// Of an increment: entries that are new or changed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub changed_entries: u64,
    /// Of an increment: entries of the base that are gone; a directory with all below it counts once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub removed_entries: u64,
    /// Of an increment: deltas in the tree's tar. With none, GNU tar alone applies it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deltas: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// An entry that is not what was there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incomplete {
    /// The path, escaped for display.
    pub path: String,
    /// Why: `changed`, `io-error`, `unreadable`, `xattrs`.
    pub why: String,
}

impl Record {
    /// The object's bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        envelope::encode(self)
    }

    /// Reads a record. A newer format version, an unknown kind or field and a broken digest are errors.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        volume::check_version(bytes)?;
        let record: Self = envelope::decode(bytes)?;
        match &record {
            Self::Snapshot(snapshot) => snapshot.check()?,
            Self::Expire(change) => change.check()?,
            Self::SetExpiry(change) => change.check()?,
            Self::Hold(change) => change.check()?,
            Self::Release(change) => change.check()?,
            Self::Sweep(change) => change.check()?,
        }
        Ok(record)
    }

    /// What every record carries.
    pub fn common(&self) -> Common<'_> {
        match self {
            Self::Snapshot(s) => {
                Common { job: &s.job, node: &s.node, seq: s.seq, prev: s.prev, nonce: &s.nonce, at: s.taken_at }
            }
            Self::Expire(change) => change.common(),
            Self::SetExpiry(change) => change.common(),
            Self::Hold(change) => change.common(),
            Self::Release(change) => change.common(),
            Self::Sweep(change) => change.common(),
        }
    }

    /// The word its `type` holds.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Snapshot(_) => "snapshot",
            Self::Expire(_) => "expire",
            Self::SetExpiry(_) => "set-expiry",
            Self::Hold(_) => "hold",
            Self::Release(_) => "release",
            Self::Sweep(_) => "sweep",
        }
    }
}

/// What every record carries.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// The job.
    pub job: &'a Name,
    /// The node that wrote it.
    pub node: &'a str,
    /// Its number in the log.
    pub seq: u64,
    /// Digest of the record before it.
    pub prev: Option<Digest>,
    /// Random: whose record this is.
    pub nonce: &'a Nonce,
    /// When it was written; of a snapshot, when its run began.
    pub at: Instant,
}

impl Snapshot {
    fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::integrity(format!("record {}/{}: {what}", self.job, self.seq)));
        if self.level > 9 || (self.level == 0) != self.base.is_none() {
            return bad("level and base do not agree");
        }
        if self.base.as_ref().is_some_and(|base| base.seq >= self.seq) || self.seq == 0 {
            return bad("its base is not before it");
        }
        if self.promoted_from.is_some_and(|from| from > 9 || from == 0 || self.level != 0) {
            return bad("was promoted, but not to level 0");
        }
        if self.index.name != super::layout::INDEX_NAME || self.restore_txt.name != super::layout::RESTORE_NAME {
            return bad("an object has another name than its own");
        }
        if let Some(CopiedFrom { seq, chain, .. }) = &self.copied_from {
            let rises = chain.iter().chain([seq]).is_sorted_by(|a, b| a < b);
            let count = if self.level == 0 { 0..=0 } else { 1..=9 };
            if !rises || chain.first() == Some(&0) || *seq == 0 || !count.contains(&chain.len()) {
                return bad("its chain was none where it was first taken");
            }
        }
        if self.streams.len() > 1000 || self.incomplete.len() > 1000 {
            return bad("too many streams or incomplete entries");
        }
        if self.crypto.is_some() || self.sig.is_some() {
            return bad("is encrypted or signed: use a newer bk");
        }
        Ok(())
    }
}

mod as_hex {
    use super::Digest;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(digest: &Digest, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(digest)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(d)?;
        Digest::from_hex(&text).ok_or_else(|| D::Error::custom("not a digest"))
    }
}

pub(super) mod as_hex_option {
    use super::Digest;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "the signature serde calls")]
    pub fn serialize<S: Serializer>(digest: &Option<Digest>, s: S) -> Result<S::Ok, S::Error> {
        digest.map(|d| d.hex()).serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Digest>, D::Error> {
        Option::<String>::deserialize(d)?
            .map(|text| Digest::from_hex(&text).ok_or_else(|| D::Error::custom("not a digest")))
            .transpose()
    }
}

pub(super) mod as_text {
    use super::RunId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(id: &RunId, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<RunId, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}
