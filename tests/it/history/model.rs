//! What must be: every snapshot as the tree was, and the log by its rules, told anew and not by the code under test.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::support::inventory::{Inventory, Record, inventory};

/// Names that are left out while that is asked for.
pub const SKIPPED: &str = "*.skip";

/// A tree as it was: the root is `src`, all else is below it.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub inventory: Inventory,
    /// Contents of files, by path below `src`.
    pub contents: BTreeMap<Vec<u8>, Arc<Vec<u8>>>,
    /// Files with fewer blocks than bytes.
    pub maybe_sparse: BTreeSet<Vec<u8>>,
}

/// Contents seen before, by digest: snapshots of an unchanged file share one.
pub type Seen = HashMap<String, Arc<Vec<u8>>>;

impl Picture {
    /// Looks at `home/src`.
    pub fn take(home: &Path, skip: bool, seen: &mut Seen) -> Self {
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::fs::MetadataExt;
        let mut picture = Self { inventory: inventory(home), ..Self::default() };
        if skip {
            let is_out = |path: &[u8]| path.split(|b| *b == b'/').any(|name| name.ends_with(b".skip"));
            picture.inventory.retain(|path, _| !is_out(path));
            regroup(&mut picture.inventory);
        }
        for (path, record) in &picture.inventory {
            let Some(digest) = &record.content else { continue };
            let file = home.join(std::ffi::OsStr::from_bytes(path));
            let bytes = seen.entry(format!("{digest}{}", record.size));
            let bytes = bytes.or_insert_with(|| Arc::new(fs::read(&file).unwrap()));
            picture.contents.insert(below(path).to_vec(), Arc::clone(bytes));
            let meta = file.symlink_metadata().unwrap();
            if meta.blocks() * 512 < meta.len() {
                picture.maybe_sparse.insert(below(path).to_vec());
            }
        }
        picture
    }

    /// Rows as an index has them: of a hard-link group the first name in tree order is the thing itself.
    fn rows(&self) -> BTreeMap<Vec<u8>, (&Record, Option<Vec<u8>>)> {
        let mut firsts: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
        for (path, record) in &self.inventory {
            let Some(group) = &record.group else { continue };
            let first = firsts.entry(group).or_insert(path);
            if order(path) < order(first) {
                *first = path;
            }
        }
        let rows = self.inventory.iter().map(|(path, record)| {
            let first = record.group.as_ref().map(|group| firsts[group.as_slice()]);
            let link = first.filter(|first| *first != path.as_slice()).map(|first| below(first).to_vec());
            (below(path).to_vec(), (record, link))
        });
        rows.collect()
    }
}

/// `src/a/b` is `a/b`, `src` is nothing.
fn below(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"src/").unwrap_or_default()
}

/// Directory by directory.
fn order(path: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut names: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    let own = names.pop().unwrap_or_default();
    (names, own)
}

/// Groups of what is left of them.
fn regroup(inventory: &mut Inventory) {
    let mut groups: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for (path, record) in inventory.iter() {
        if let Some(group) = &record.group {
            groups.entry(group.clone()).or_default().push(path.clone());
        }
    }
    for paths in groups.into_values() {
        for path in &paths {
            let group = (paths.len() > 1).then(|| paths[0].clone());
            inventory.get_mut(path).unwrap().group = group;
        }
    }
}

/// How `bk diff` must word a difference: all of the first, perhaps some of the second.
#[derive(Debug, Default)]
pub struct Wording {
    must: Vec<&'static str>,
    may: Vec<&'static str>,
}

impl Wording {
    pub fn allows(&self, said: &[&str]) -> bool {
        self.must.iter().all(|word| said.contains(word))
            && said.iter().all(|word| self.must.contains(word) || self.may.contains(word))
    }
}

/// What differs between two pictures.
pub fn difference(older: &Picture, newer: &Picture) -> BTreeMap<Vec<u8>, Wording> {
    let (a, b) = (older.rows(), newer.rows());
    let word = |word| Wording { must: vec![word], may: Vec::new() };
    let gone = a.keys().filter(|path| !b.contains_key(*path)).map(|path| (path.clone(), word("removed")));
    let mut found: BTreeMap<Vec<u8>, Wording> = gone.collect();
    for (path, (new, new_link)) in &b {
        let Some((old, old_link)) = a.get(path) else {
            found.insert(path.clone(), word("added"));
            continue;
        };
        let mut said = Wording::default();
        let is_link = old_link.is_some() || new_link.is_some();
        let content = |r: &Record| (r.size, r.content.clone(), r.target.clone(), r.rdev);
        if old_link.is_some() != new_link.is_some() || !is_link && old.kind != new.kind {
            said.must.push("type");
        } else if old_link != new_link || !is_link && content(old) != content(new) {
            said.must.push("content");
        } else if older.maybe_sparse.contains(path) || newer.maybe_sparse.contains(path) {
            // Other holes in the same content.
            said.may.push("content");
        }
        let metadata = |r: &Record| (r.mode, r.uid, r.gid, r.mtime_ns, r.xattrs.clone());
        if is_link {
            // A further name has no metadata of its own.
            said.may.push("metadata");
        } else if metadata(old) != metadata(new) {
            said.must.push("metadata");
        }
        if !said.must.is_empty() || !said.may.is_empty() {
            found.insert(path.clone(), said);
        }
    }
    found
}

/// What was done to objects of a snapshot behind its back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    None,
    /// A byte of the index is another: a run need not see it, but must not fail by it.
    Flipped,
    /// One is missing or too short.
    Gone,
}

/// A snapshot and what later records said of it.
#[derive(Clone, Debug)]
pub struct Snap {
    pub seq: u64,
    pub level: u8,
    pub base: Option<u64>,
    pub run_id: String,
    /// Seconds since 1970.
    pub expires_at: Option<i64>,
    pub hold: bool,
    pub live: bool,
    /// What is wrong with its own objects.
    pub damage: Damage,
    /// What was asked to be left out: part of what makes an increment possible.
    pub skip: bool,
    pub tree: Arc<Picture>,
    pub stream: Option<Arc<Vec<u8>>>,
}

/// What a run must decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    pub level: u8,
    pub base: Option<u64>,
    pub promoted_from: Option<u8>,
}

/// The snapshots of one job, by seq.
#[derive(Clone, Debug, Default)]
pub struct Job {
    pub snaps: Vec<Snap>,
}

impl Job {
    pub fn live(&self) -> impl DoubleEndedIterator<Item = &Snap> {
        self.snaps.iter().filter(|snap| snap.live)
    }

    pub fn get(&self, seq: u64) -> &Snap {
        self.snaps.iter().find(|snap| snap.seq == seq).unwrap()
    }

    /// It and all it builds on.
    pub fn chain(&self, snap: &Snap) -> Vec<u64> {
        let mut chain = vec![snap.seq];
        let mut at = snap.base;
        while let Some(base) = at {
            chain.push(base);
            at = self.get(base).base;
        }
        chain
    }

    /// The worst damage in its chain.
    pub fn damage(&self, snap: &Snap) -> Damage {
        self.chain(snap).iter().map(|seq| self.get(*seq).damage).max().unwrap_or(Damage::None)
    }

    pub fn is_whole(&self, snap: &Snap) -> bool {
        self.damage(snap) == Damage::None
    }

    /// What a run may decide: one thing, or, when damage may be seen or not, one of two.
    pub fn decide(&self, level: u8, strict: bool, skip: bool) -> Vec<Decided> {
        if level == 0 {
            return vec![Decided { level: 0, base: None, promoted_from: None }];
        }
        let fits = |snap: &&Snap| if strict { snap.level + 1 == level } else { snap.level < level };
        let base = self.live().rev().find(fits).filter(|base| base.skip == skip);
        let base = base.filter(|base| self.damage(base) != Damage::Gone);
        let increment = base.map(|base| Decided { level, base: Some(base.seq), promoted_from: None });
        let promoted = Decided { level: 0, base: None, promoted_from: Some(level) };
        let is_sure = base.is_some_and(|base| self.is_whole(base));
        increment.into_iter().chain((!is_sure).then_some(promoted)).collect()
    }

    /// What goes at `now`: what is past its time and needed by nothing that stays; some usable chain stays.
    pub fn due(&self, now: i64, allow_last: bool) -> BTreeSet<u64> {
        let is_due = |snap: &Snap| !snap.hold && snap.expires_at.is_some_and(|at| at <= now);
        let mut roots: Vec<&Snap> = self.live().filter(|snap| !is_due(snap)).collect();
        // Nothing is read for this, only listed.
        let is_there = |snap: &&Snap| self.damage(snap) != Damage::Gone;
        if !allow_last && !roots.iter().any(is_there) {
            roots.extend(self.live().rev().find(is_there).or_else(|| self.live().next_back()));
        }
        let stays: BTreeSet<u64> = roots.iter().flat_map(|snap| self.chain(snap)).collect();
        self.live().map(|snap| snap.seq).filter(|seq| !stays.contains(seq)).collect()
    }
}
