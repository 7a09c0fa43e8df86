//! A tree into frames: each entry its tar member and its row in the index.
//!
//! A file is read straight into the frame behind its header, at most to the size it had when it was opened, and looked
//! at again afterwards. A small file that changed meanwhile is read again, up to three times; whatever happens, the archive stays well formed
//! and what is not as it was is marked and named.

mod deleted;
mod file;
mod names;
mod read;

use std::{fs::File, os::fd::OwnedFd};

use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat},
    io::Errno,
};

use self::deleted::Deleted;
use super::{
    delta::{self},
    framer::Framer,
    increment::{Base, Increment, Plan, is_visibly_same},
    links::Links,
    profile::Stage,
};
use crate::{
    engine::read::index::Row,
    error::{Error, Kind, Result},
    format::{
        record::{Incomplete, Totals},
        tar::{self, END_LEN, write},
    },
    model::{
        entry::{Entry, EntryKind, Status},
        path, show,
    },
    monitor::Monitor,
    source::{
        listing::FileKind,
        meta,
        walk::{Leaf, Names, VANISHED, Visitor, Walk},
    },
};

/// Paths named in the record; the index and `.bk/incomplete` have all.
const NAMED_MAX: usize = 100;
const XATTRS_TOO_LARGE: &str = "its attributes are only in the index: too large for tar";
/// Entries that wait for a frame to fill are sent on when they are this many.
const ROW_COUNT_MAX: usize = 8192;

/// What a tree came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Entries, files, content bytes and incomplete entries.
    pub totals: Totals,
    /// The first incomplete entries.
    pub incomplete: Vec<Incomplete>,
    /// Warnings given.
    pub warnings: u64,
}

struct Tree<'a, 'b> {
    framer: &'a mut Framer<'b>,
    links: Links<'a>,
    monitor: &'a dyn Monitor,
    /// Chunks of long contents are noted, or compared.
    deltas: Option<&'a delta::Settings>,
    increment: Option<Increment<'a>>,
    /// The directory whose names are told.
    dir: Vec<u8>,
    now: Now,
    delta_count: u64,
    outcome: Outcome,
    header: Vec<u8>,
    /// The text of `.bk/incomplete`.
    note: Vec<u8>,
    deleted: Deleted<'a>,
    no_atime: bool,
    told: (u64, u64),
}

/// What the base says of the name whose turn it is.
#[derive(Default)]
struct Now {
    /// Its row there, until it is taken.
    old: Option<Box<Row>>,
    /// The base has the name.
    was_there: bool,
    /// The kind of the name in the base, when it is not as the base says.
    was_kind: Option<EntryKind>,
    /// It is the same directory.
    same: bool,
    /// It is as it was, but has several names.
    linked: bool,
    /// It has its row, or needs none.
    settled: bool,
}

/// A path as it is shown; the root is a dot.
fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { show::name(path) }
}

impl Visitor for Tree<'_, '_> {
    fn enter(&mut self, mut names: Names<'_>) -> Result<()> {
        let mut dumpdir = None;
        if let Some(increment) = &mut self.increment {
            self.dir.clear();
            self.dir.extend_from_slice(names.path);
            let joined = increment.join(&mut names)?;
            let (entries, files, bytes) = joined.same;
            let totals = &mut self.outcome.totals;
            totals.entries += entries;
            totals.files += files;
            totals.content_bytes += bytes;
            if !names.told && !joined.names_changed && !joined.inside_changed {
                return Ok(());
            }
            // A list of names that lacks some would have these deleted.
            if joined.names_changed && joined.was_filled && !names.is_cut {
                let private = names.path.is_empty().then_some(tar::PRIVATE_DIR);
                dumpdir = Some(increment.dumpdir(&names, private));
            }
        }
        let Some(dir) = names.entry else { return Ok(()) };
        let left = self.member_with(dir, dumpdir.as_deref())?;
        if left.xattrs {
            self.incomplete(&dir.path, XATTRS_TOO_LARGE);
        }
        Ok(())
    }

    fn begins(&mut self, n: usize, name: &[u8]) -> Result<bool> {
        let Some(increment) = &mut self.increment else { return Ok(true) };
        let plan = increment.take_plan(n);
        self.removed_before(Some(name))?;
        self.now = Now::default();
        match plan {
            Plan::Gone => return Ok(false),
            Plan::Same(kind) if kind != EntryKind::Dir => return Ok(false),
            Plan::Same(_) => (self.now.same, self.now.was_there) = (true, true),
            Plan::New => {}
            Plan::Linked(old) => self.now = Now { old: Some(old), was_there: true, linked: true, ..Now::default() },
            Plan::Changed(old) => {
                let was_kind = Some(old.entry.kind);
                self.now = Now { old: Some(old), was_there: true, was_kind, ..Now::default() };
            }
        }
        Ok(true)
    }

    fn ends(&mut self, path: &[u8]) -> Result<()> {
        let now = std::mem::take(&mut self.now);
        if now.was_there && !now.settled { self.removed(path.to_vec()) } else { Ok(()) }
    }

    fn listed(&mut self) -> Result<()> {
        self.removed_before(None)?;
        if self.increment.is_some() {
            let dir = std::mem::take(&mut self.dir);
            self.tell(&dir);
            self.dir = dir;
        }
        Ok(())
    }

    fn directory(&mut self, dir: Entry) -> Result<bool> {
        if let Some(increment) = &self.increment {
            let same = |old: &Row| {
                let old = &old.entry;
                old.is_dir() && is_visibly_same(old, &dir) && old.xattrs == dir.xattrs && old.status == dir.status
            };
            let same = match &self.now.old {
                _ if dir.path.is_empty() => increment.base.chain.lookup(b"")?.is_some_and(|old| same(&old)),
                Some(old) => same(old),
                None => self.now.same,
            };
            if same {
                self.unchanged(&dir);
                return Ok(false);
            }
        }
        self.row(dir)?;
        Ok(true)
    }

    fn leaf(&mut self, leaf: Leaf<'_>) -> Result<Option<Stat>> {
        if self.now.linked && self.is_linked_as_before(&leaf)? {
            return Ok(None);
        }
        if leaf.kind == FileKind::File {
            match self.open(&leaf) {
                Ok(fd) => return self.opened(leaf, fd),
                Err(Errno::NOENT) => {
                    self.warn(leaf.path, VANISHED);
                    return Ok(None);
                }
                // Not a file any more, or not readable: look at it by name.
                Err(e) => return self.by_name(leaf, Some(e)),
            }
        }
        self.by_name(leaf, None)
    }

    fn unseen(&mut self) {
        self.now.settled = true;
    }

    fn warn(&mut self, path: &[u8], what: &str) {
        self.outcome.warnings += 1;
        self.monitor.warn(&format!("{}: {what}", shown(path)));
    }

    fn incomplete(&mut self, path: &[u8], why: &str) {
        if self.outcome.incomplete.len() < NAMED_MAX {
            self.outcome.incomplete.push(Incomplete { path: shown(path), why: why.to_owned() });
        }
        self.outcome.totals.incomplete += 1;
        self.note.extend_from_slice(format!("{}: {why}\n", shown(path)).as_bytes());
        self.warn(path, why);
    }

    fn go_on(&self) -> Result<()> {
        match self.monitor.interrupted() {
            Some(signal) => Err(Error::new(Kind::Signal(signal), "interrupted")),
            None => Ok(()),
        }
    }

    fn looks_first(&self) -> bool {
        self.increment.is_some()
    }
}

/// Stores the tree of a run.
pub struct Request<'a> {
    /// Makes temporary files, for what does not fit into memory.
    pub scratch: &'a dyn Fn() -> Result<File>,
    /// How long contents are compared; without it no chunks are noted.
    pub deltas: Option<&'a delta::Settings>,
    /// What it is an increment of.
    pub base: Option<Base<'a>>,
}

/// Stores all that `walk` finds as stream 0.
pub fn store<'a>(
    framer: &'a mut Framer<'_>,
    walk: Walk<'_>,
    request: Request<'a>,
    monitor: &'a dyn Monitor,
) -> Result<Outcome> {
    framer.begin(0);
    let mut tree = Tree {
        framer,
        links: Links::new(request.scratch),
        monitor,
        deltas: request.deltas,
        increment: request.base.map(Increment::new),
        dir: Vec::new(),
        now: Now::default(),
        delta_count: 0,
        outcome: Outcome::default(),
        header: Vec::new(),
        note: Vec::new(),
        deleted: Deleted::new(request.scratch),
        no_atime: true,
        told: (0, 0),
    };
    walk.run(&mut tree)?;
    tree.finish()
}

impl Tree<'_, '_> {
    fn finish(mut self) -> Result<Outcome> {
        self.deleted.store(self.framer)?;
        if !self.note.is_empty() {
            let mut bytes = Vec::new();
            write::note(b"incomplete", &self.note, &mut bytes);
            self.framer.reserve(bytes.len().min(self.framer.frame_len()))?;
            self.framer.put(&bytes)?;
        }
        self.framer.reserve(END_LEN)?;
        self.framer.put(&[0; END_LEN])?;
        self.tell(b"");
        self.framer.end_stream()?;
        self.outcome.totals.deltas = self.delta_count;
        Ok(self.outcome)
    }

    fn open(&mut self, leaf: &Leaf<'_>) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        if self.no_atime {
            match rustix::fs::openat(leaf.dir, leaf.name, flags | OFlags::NOATIME, Mode::empty()) {
                // Only an owner may: do not ask again.
                Err(Errno::PERM) => self.no_atime = false,
                other => return other,
            }
        }
        rustix::fs::openat(leaf.dir, leaf.name, flags, Mode::empty())
    }

    /// What is no plain file, or could not be opened as one.
    fn by_name(&mut self, leaf: Leaf<'_>, why: Option<Errno>) -> Result<Option<Stat>> {
        let stat = match rustix::fs::statat(leaf.dir, leaf.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                self.warn(leaf.path, VANISHED);
                return Ok(None);
            }
            Err(e) => {
                self.incomplete(leaf.path, &format!("cannot look at it: {e}"));
                self.unseen();
                return Ok(None);
            }
        };
        let fsid = leaf.systems.fsid_at(stat.st_dev, leaf.dir, leaf.name);
        let Some(mut entry) = meta::entry(leaf.path, &stat, fsid) else {
            self.incomplete(leaf.path, "is of no kind known here");
            return Ok(None);
        };
        match entry.kind {
            EntryKind::Dir => return Ok(Some(stat)),
            EntryKind::File => {
                // The directory did not say it is a file; when it did, opening failed.
                let opened = match why {
                    None => self.open(&leaf),
                    Some(why) => Err(why),
                };
                return match opened {
                    Ok(fd) => self.opened(leaf, fd),
                    Err(e) => self.unreadable(entry, e).map(|()| None),
                };
            }
            EntryKind::Symlink => match rustix::fs::readlinkat(leaf.dir, leaf.name, Vec::new()) {
                Ok(target) => entry.link = target.into_bytes(),
                Err(e) => {
                    self.incomplete(leaf.path, &format!("cannot read the link: {e}"));
                    self.unseen();
                    return Ok(None);
                }
            },
            _ => {}
        }
        match meta::xattrs_at(leaf.dir, leaf.name) {
            Ok(xattrs) => entry.xattrs = xattrs,
            Err(Errno::NOENT) => {}
            Err(e) => {
                entry.status = entry.status.with(Status::XATTRS);
                self.incomplete(leaf.path, &format!("cannot read its attributes: {e}"));
            }
        }
        if self.is_link(&mut entry, &stat)? {
            return Ok(None);
        }
        let is_old = |old: &Row| {
            let old = &old.entry;
            old.kind == entry.kind
                && is_visibly_same(old, &entry)
                // What has several names says so: readers go by it.
                && (old.rdev, &old.link, &old.xattrs, old.status, old.nlink)
                    == (entry.rdev, &entry.link, &entry.xattrs, entry.status, entry.nlink)
        };
        if self.now.old.as_deref().is_some_and(is_old) {
            self.unchanged(&entry);
            return Ok(None);
        }
        self.member_checked(&mut entry)?;
        self.row(entry)?;
        Ok(None)
    }

    /// Counts an entry that is as the base says: it needs no row.
    fn unchanged(&mut self, entry: &Entry) {
        self.count(entry);
        self.now.settled = true;
    }

    fn count(&mut self, entry: &Entry) {
        self.outcome.totals.entries += 1;
        self.outcome.totals.files += u64::from(entry.kind == EntryKind::File);
        self.outcome.totals.content_bytes += entry.stored_len;
    }

    /// Tells the names of the base that are gone and come before `name`.
    fn removed_before(&mut self, name: Option<&[u8]>) -> Result<()> {
        while let Some(gone) = self.increment.as_mut().and_then(|increment| increment.take_removed(name)) {
            let path = path::join(&self.dir, &gone);
            self.removed(path)?;
        }
        Ok(())
    }

    fn removed(&mut self, path: Vec<u8>) -> Result<()> {
        self.outcome.totals.removed_entries += 1;
        self.deleted.add(&path)?;
        self.put_row(Entry::new(path, EntryKind::Removed))
    }

    fn mark_changed(&mut self, entry: &mut Entry, grew: bool) {
        if grew {
            entry.status = entry.status.with(Status::GREW);
            self.warn(&entry.path, "grew while it was read");
        } else {
            entry.status = entry.status.with(Status::CHANGED);
            self.incomplete(&entry.path, "changed while it was read");
        }
    }

    fn unreadable(&mut self, mut entry: Entry, errno: Errno) -> Result<()> {
        self.mark_unreadable(&mut entry, errno);
        self.row(entry)
    }

    fn mark_unreadable(&mut self, entry: &mut Entry, errno: Errno) {
        entry.status = entry.status.with(Status::UNREADABLE);
        (entry.stored_len, entry.sparse) = (0, None);
        self.incomplete(&entry.path, &format!("cannot read it: {errno}"));
    }

    fn member_checked(&mut self, entry: &mut Entry) -> Result<()> {
        if self.member(entry)?.xattrs {
            entry.status = entry.status.with(Status::XATTRS);
            self.incomplete(&entry.path, XATTRS_TOO_LARGE);
        }
        Ok(())
    }

    fn member(&mut self, entry: &Entry) -> Result<write::Left> {
        self.member_with(entry, None)
    }

    /// A member; a directory's may list all names in it.
    fn member_with(&mut self, entry: &Entry, dumpdir: Option<&[u8]>) -> Result<write::Left> {
        let stage = self.framer.turn(Stage::Tar);
        self.header.clear();
        let left = write::header_with(entry, dumpdir, &mut self.header);
        self.framer.turn(stage);
        self.framer.reserve(self.header.len().min(self.framer.frame_len()))?;
        let header = std::mem::take(&mut self.header);
        self.framer.put(&header)?;
        self.header = header;
        Ok(left)
    }

    fn row(&mut self, entry: Entry) -> Result<()> {
        self.count(&entry);
        // Nothing extracted takes the place of a directory, or is put there for a socket.
        let is_in_the_way = |was: EntryKind| {
            (was == EntryKind::Dir) != entry.is_dir() || entry.kind == EntryKind::Socket && was != EntryKind::Socket
        };
        if self.now.was_kind.take().is_some_and(is_in_the_way) {
            self.deleted.add(&entry.path)?;
        }
        self.now.settled = true;
        self.outcome.totals.changed_entries += u64::from(self.increment.is_some());
        self.put_row(entry)
    }

    fn put_row(&mut self, entry: Entry) -> Result<()> {
        if self.framer.row_count() % 128 == 127 {
            self.tell(&entry.path);
        }
        self.framer.row(entry);
        if self.framer.row_count() >= ROW_COUNT_MAX { self.framer.cut(true, 0) } else { Ok(()) }
    }

    fn tell(&mut self, path: &[u8]) {
        let Totals { entries, content_bytes, .. } = self.outcome.totals;
        self.monitor.advance(entries - self.told.0, content_bytes.saturating_sub(self.told.1), path);
        self.told = (entries, self.told.1.max(content_bytes));
    }

    /// Bytes of a file that is not counted in the totals yet.
    fn tell_bytes(&mut self, bytes: u64, path: &[u8]) {
        self.monitor.advance(0, bytes, path);
        self.told.1 += bytes;
    }
}
