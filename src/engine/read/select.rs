//! Which entries of a snapshot a restore takes: paths with all below them, then globs.

use super::chain::Chain;
use crate::{
    error::{Error, Result},
    model::{path, show},
    source::select::Globs,
};

/// What is taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Paths, sorted, none below another; `[""]` is everything.
    pub tops: Vec<Vec<u8>>,
    /// When not empty: only what matches, with all below it.
    pub include: Globs,
    /// Never what matches, nor what lies below it.
    pub exclude: Globs,
}

impl Taken {
    /// Checks paths as they were typed (a `/` before or after them means nothing) against the snapshot.
    pub fn new(chain: &Chain, typed: &[Vec<u8>], include: &[String], exclude: &[String]) -> Result<Self> {
        let mut tops = Vec::new();
        for text in typed {
            tops.push(find(chain, text)?);
        }
        if tops.is_empty() {
            tops.push(Vec::new());
        }
        tops.sort_by(|a, b| path::cmp_dirs(a, b));
        tops.dedup_by(|later, earlier| path::is_within(later, earlier));
        Ok(Self { tops, include: Globs::new(include)?, exclude: Globs::new(exclude)? })
    }

    /// Whether an entry below one of the tops is taken.
    pub fn wants(&self, path: &[u8], is_dir: bool) -> bool {
        (self.include.is_empty() || self.include.matches_within(path, is_dir))
            && (self.exclude.is_empty() || !self.exclude.matches_within(path, is_dir))
    }

    /// Whether a path anywhere in the snapshot is taken.
    pub fn wants_anywhere(&self, path: &[u8], is_dir: bool) -> bool {
        self.tops.iter().any(|top| path::is_within(path, top)) && self.wants(path, is_dir)
    }

    /// Whether every entry is taken.
    pub fn is_all(&self) -> bool {
        self.tops.first().is_some_and(Vec::is_empty) && self.include.is_empty() && self.exclude.is_empty()
    }
}

/// A path as typed, without slashes around it and `.` components; it must be in the snapshot.
pub fn find(chain: &Chain, typed: &[u8]) -> Result<Vec<u8>> {
    let names: Vec<&[u8]> = typed.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    let path = names.join(&b'/');
    if !path::is_valid(&path) {
        return Err(Error::usage(format!("not a path in a snapshot: `{}`", show::name(typed))));
    }
    // A tree need not have an entry for its root.
    if !path.is_empty() && chain.lookup(&path)?.is_none() && chain.list(&path).next().is_none() {
        let what = format!("there is no `{}` in snapshot {}", show::name(&path), chain.shown());
        return Err(Error::usage(what).with_hint(format!("`bk ls {}` shows what is in it", chain.shown())));
    }
    Ok(path)
}
