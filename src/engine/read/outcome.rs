//! What a restore came to: counts, and each entry that is not as it was.

use serde::Serialize;

use super::metadata::Left;
use crate::model::text::PathText;

/// So many faults are kept with their text; more are only counted.
const FAULT_COUNT_MAX: usize = 10_000;

/// An entry and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The entry.
    #[serde(flatten)]
    pub path: PathText,
    /// Why.
    pub why: String,
}

/// Sums of a restore.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Directories made or met.
    pub directories: u64,
    /// Regular files written.
    pub files: u64,
    /// Further names of files given.
    pub hard_links: u64,
    /// Symbolic links, devices, FIFOs and sockets made.
    pub others: u64,
    /// Entries left as they were: the same already, or not to be overwritten.
    pub kept: u64,
    /// Entries `--safe` left out: devices.
    pub left_out: u64,
    /// Bytes of content written.
    pub content_bytes: u64,
    /// Entries whose owner could not be set, because the caller is not root.
    pub owners_not_set: u64,
    /// Entries with attributes only root may set.
    pub attributes_not_set: u64,
    /// How many entries were not restored, or not whole.
    pub not_restored: u64,
    /// The first of them.
    pub faults: Vec<Fault>,
    /// How many entries were restored as stored, but were not stored whole.
    pub incomplete: u64,
    /// The first of them.
    pub incomplete_entries: Vec<Fault>,
}

impl Outcome {
    /// Whether something is missing: exit 3.
    pub fn is_incomplete(&self) -> bool {
        self.not_restored > 0 || self.incomplete > 0
    }

    /// Notes an entry that was not restored.
    pub fn fault(&mut self, path: &[u8], why: impl Into<String>) {
        self.not_restored += 1;
        if self.faults.len() < FAULT_COUNT_MAX {
            self.faults.push(Fault { path: PathText(path.to_vec()), why: why.into() });
        }
    }

    /// Notes an entry that was restored, but not stored whole.
    pub fn incomplete(&mut self, path: &[u8], why: String) {
        self.incomplete += 1;
        if self.incomplete_entries.len() < FAULT_COUNT_MAX {
            self.incomplete_entries.push(Fault { path: PathText(path.to_vec()), why });
        }
    }

    /// Notes what of an entry's metadata could not be set.
    pub fn left(&mut self, left: Left) {
        self.owners_not_set += u64::from(left.owner);
        self.attributes_not_set += u64::from(left.privileged);
    }
}
