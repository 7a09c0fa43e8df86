//! A tree into frames: each entry its tar member and its row in the index.
//!
//! A file is read straight into the frame behind its header, at most to the size it had when it was opened, and looked
//! at again afterwards. A small file that changed meanwhile is read again, up to three times; whatever happens, the archive stays well formed
//! and what is not as it was is marked and named.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat},
    io::Errno,
};

use super::{
    delta::{self, Delta, Noted, Old},
    framer::{Framer, Role},
    increment::{Base, Increment, Plan, Previous, is_visibly_same},
    links::{First, Links},
};
use crate::{
    engine::read::index::Row,
    error::{Error, Kind, Result},
    format::{
        self,
        delta::Line,
        index::{ChunkRun, DAMAGED_COUNT_MAX},
        record::{Incomplete, Totals},
        tar::{self, BLOCK_LEN, END_LEN, write},
    },
    model::{
        entry::{Entry, EntryKind, Map, Run, Status},
        path, show,
    },
    monitor::Monitor,
    source::{
        listing::FileKind,
        meta,
        walk::{Leaf, Names, Visitor, Walk},
    },
};

/// How often a small file that changes while it is read is read again.
const TRY_COUNT_MAX: u32 = 3;
/// After an error a large file is read on at the next multiple of this.
const SECTOR_LEN: u64 = 4096;
/// A file that is compared is read in pieces of this length, bytes.
const COMPARE_LEN: usize = 1 << 20;
/// Files of at least this length, bytes, are not stored again when only their mode, owner, time or attributes changed.
const WHOLE_LEN_MAX: usize = 64 << 10;
/// Paths named in the record; the index and `.bk/incomplete` have all.
const NAMED_MAX: usize = 100;
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
    /// It is the same directory.
    same: bool,
    /// It is as it was, but has several names.
    linked: bool,
    /// It has its row, or needs none.
    settled: bool,
}

/// How reading a file's bytes ended.
enum ReadEnd {
    /// As many bytes as were expected.
    Full,
    /// The file ended after this many.
    Short(u64),
    /// An error after this many.
    Failed(u64, Errno),
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
            if joined.names_changed && joined.was_filled {
                let private = names.path.is_empty().then_some(tar::PRIVATE_DIR);
                dumpdir = Some(increment.dumpdir(&names, private));
            }
        }
        let Some(dir) = names.entry else { return Ok(()) };
        let left = self.member_with(dir, dumpdir.as_deref())?;
        if left.xattrs {
            self.warn(
                format!("the attributes of {} are only in the index: too large for tar", show::name(&dir.path)),
                true,
            );
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
            Plan::Changed(old) => self.now = Now { old: Some(old), was_there: true, ..Now::default() },
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
                    self.warn(format!("vanished: {}", show::name(leaf.path)), false);
                    return Ok(None);
                }
                // Not a file any more, or not readable: look at it by name.
                Err(e) => return self.by_name(leaf, Some(e)),
            }
        }
        self.by_name(leaf, None)
    }

    fn warn(&mut self, text: String, incomplete: bool) {
        self.outcome.warnings += 1;
        self.outcome.totals.incomplete += u64::from(incomplete);
        if incomplete {
            self.note.extend_from_slice(text.as_bytes());
            self.note.push(b'\n');
        }
        self.monitor.warn(&text);
    }

    fn go_on(&self) -> Result<()> {
        match self.monitor.interrupted() {
            Some(signal) => Err(Error::new(Kind::Signal(signal), "interrupted")),
            None => Ok(()),
        }
    }
}

/// Stores the tree of a run.
pub struct Request<'a> {
    /// Finds hard links.
    pub links: Links<'a>,
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
        links: request.links,
        monitor,
        deltas: request.deltas,
        increment: request.base.map(Increment::new),
        dir: Vec::new(),
        now: Now::default(),
        delta_count: 0,
        outcome: Outcome::default(),
        header: Vec::new(),
        note: Vec::new(),
        no_atime: true,
        told: (0, 0),
    };
    walk.run(&mut tree)?;
    tree.finish()
}

impl Tree<'_, '_> {
    fn finish(mut self) -> Result<Outcome> {
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
                self.warn(format!("vanished: {}", show::name(leaf.path)), false);
                return Ok(None);
            }
            Err(e) => {
                self.incomplete(leaf.path, &format!("cannot look at it: {e}"));
                return Ok(None);
            }
        };
        let fsid = leaf.systems.fsid(stat.st_dev, leaf.dir);
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

    /// A name of an inode with several, which is as the base says: whether it is the first one stored, or a further one, as before.
    fn is_linked_as_before(&mut self, leaf: &Leaf<'_>) -> Result<bool> {
        let (Some(increment), Some(old)) = (&self.increment, &self.now.old) else { return Ok(false) };
        let Ok(stat) = rustix::fs::statat(leaf.dir, leaf.name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(false) };
        let fsid = leaf.systems.known_fsid(stat.st_dev);
        if !fsid.is_some_and(|fsid| increment.base.is_same(old, &stat, fsid)) {
            return Ok(false);
        }
        let inode = (stat.st_dev, stat.st_ino);
        let same = match self.links.get(inode)? {
            None => old.entry.kind != EntryKind::HardLink,
            Some(first) => old.entry.kind == EntryKind::HardLink && first.path == old.entry.link,
        };
        if same {
            let entry = old.entry.clone();
            if entry.kind != EntryKind::HardLink {
                self.links.insert(inode, &First { path: entry.path.clone(), is_delta: false })?;
            }
            self.unchanged(&entry);
        }
        Ok(same)
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
        self.put_row(Entry::new(path, EntryKind::Removed))
    }

    /// An entry with several names: a hard link when one is stored already. True when that was all.
    fn is_link(&mut self, entry: &mut Entry, stat: &Stat) -> Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let inode = (stat.st_dev, stat.st_ino);
        let Some(first) = self.links.get(inode)? else {
            if entry.kind != EntryKind::File && entry.kind != EntryKind::Socket {
                self.links.insert(inode, &First { path: entry.path.clone(), is_delta: false })?;
            }
            return Ok(false);
        };
        let mut link = entry.clone();
        (link.kind, link.link, link.size, link.stored_len, link.rdev) = (EntryKind::HardLink, first.path, 0, 0, (0, 0));
        link.xattrs.clear();
        if first.is_delta {
            let text = format::delta::link(&link.path, &link.link);
            self.delta_member(&link, &text, &[])?;
        } else {
            self.member(&link)?;
        }
        self.row(link)?;
        Ok(true)
    }

    /// An open file, or whatever it turned out to be.
    fn opened(&mut self, leaf: Leaf<'_>, fd: OwnedFd) -> Result<Option<Stat>> {
        let failed = |e| Error::io(format!("cannot stat {}", show::name(leaf.path)), e);
        let mut stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let fsid = leaf.systems.fsid(stat.st_dev, &fd);
        let mut old = self.now.old.take();
        let mut previous = None;
        for attempt in 1.. {
            let Some(mut entry) = meta::entry(leaf.path, &stat, fsid).filter(|e| e.kind == EntryKind::File) else {
                drop(fd);
                return self.by_name(leaf, None);
            };
            if self.is_link(&mut entry, &stat)? {
                return Ok(None);
            }
            match leaf.systems.xattrs(stat.st_dev, &fd) {
                Ok(xattrs) => entry.xattrs = xattrs,
                Err(e) => {
                    entry.status = entry.status.with(Status::XATTRS);
                    self.incomplete(leaf.path, &format!("cannot read its attributes: {e}"));
                }
            }
            if stat.st_blocks.saturating_mul(512) < stat.st_size {
                match meta::sparse_runs(&fd, entry.size) {
                    Ok(runs) => entry.sparse = runs,
                    Err(e) => return self.unreadable(entry, e).map(|()| None),
                }
                if let Some(runs) = &entry.sparse {
                    entry.stored_len = runs.iter().map(|run| run.len).sum();
                }
            }
            if let Some(increment) = self.increment.as_ref().filter(|_| attempt == 1) {
                previous = increment.previous(&entry, old.take())?;
            }
            if let Some(known) = previous.take_if(|previous| self.is_known(&entry, previous)) {
                return self.keep(entry, &stat, &known).map(|()| None);
            }
            self.header.clear();
            let left = write::header(&entry, &mut self.header);
            let content_len = tar::padded(entry.stored_len);
            let whole = self.header.len() as u64 + content_len <= self.framer.frame_len() as u64;
            if whole {
                match self.small(&mut entry, &fd, &stat, attempt, previous.as_ref())? {
                    Small::Again(again) => stat = again,
                    Small::Done => {
                        self.file_done(entry, &stat, left)?;
                        return Ok(None);
                    }
                    Small::Same => {
                        let Some(previous) = previous else { return Ok(None) };
                        return self.keep(entry, &stat, &previous).map(|()| None);
                    }
                }
            } else {
                match previous.filter(|previous| self.has_chunks(previous)) {
                    Some(previous) => return self.compared(entry, &fd, &stat, &previous).map(|()| None),
                    None => self.large(&mut entry, &fd, &stat)?,
                }
                self.file_done(entry, &stat, left)?;
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn file_done(&mut self, mut entry: Entry, stat: &Stat, left: write::Left) -> Result<()> {
        if left.xattrs {
            entry.status = entry.status.with(Status::XATTRS);
            self.incomplete(&entry.path, "its attributes are only in the index: too large for tar");
        }
        self.remember(&entry, stat, false)?;
        self.row(entry)
    }

    /// Notes a file with several names as stored: as a member, or as a delta.
    fn remember(&mut self, entry: &Entry, stat: &Stat, is_delta: bool) -> Result<()> {
        if stat.st_nlink < 2 || entry.status.has(Status::UNREADABLE) {
            return Ok(());
        }
        self.links.insert((stat.st_dev, stat.st_ino), &First { path: entry.path.clone(), is_delta })
    }

    /// Whether a moved file is known to be the one it was without reading it.
    fn is_known(&self, entry: &Entry, previous: &Previous) -> bool {
        let old = &previous.row.entry;
        self.increment.as_ref().is_some_and(|increment| {
            previous.moved
                && !increment.base.ignore_inode
                && (old.fsid, old.ino, old.ctime) == (entry.fsid, entry.ino, entry.ctime)
                && (old.size, old.mtime, &old.sparse) == (entry.size, entry.mtime, &entry.sparse)
                && !old.status.is_incomplete()
                && !increment.base.is_racy(&previous.row)
        })
    }

    fn has_chunks(&self, previous: &Previous) -> bool {
        self.increment.as_ref().is_some_and(|increment| increment.base.chain.chunks(&previous.row).next().is_some())
    }

    /// A file whose content is its previous version's: no data is stored.
    fn keep(&mut self, mut entry: Entry, stat: &Stat, previous: &Previous) -> Result<()> {
        let Some(chain) = self.increment.as_ref().map(|increment| increment.base.chain) else { return Ok(()) };
        let old = &previous.row.entry;
        let base_same = self.increment.as_ref().is_some_and(|increment| increment.base.is_same_inode(old, &entry));
        let visibly_same = !previous.moved && is_seen_as(old, &entry);
        let is_delta = !visibly_same;
        if visibly_same && base_same {
            self.remember(&entry, stat, false)?;
            self.unchanged(&entry);
            return Ok(());
        }
        if entry.stored_len > self.framer.frame_len() as u64 {
            for run in chain.chunks(&previous.row) {
                self.framer.chunks(ChunkRun { path: entry.path.clone(), ..run? });
            }
        }
        if is_delta {
            let lines = [Line::Copy { offset: 0, len: entry.stored_len, from: 0 }];
            self.delta_text(&entry, old, &lines, &[])?;
        }
        let places = Old::new(chain, previous.content.clone(), std::iter::empty()).all();
        entry.map = Some(Box::new(Map { digest: previous.content.digest, first: 0, count: 0, places }));
        self.remember(&entry, stat, is_delta)?;
        self.row(entry)
    }

    /// Stores a delta of `entry` as a member; gives the offset at which `data` lies in the plain stream.
    fn delta_text(&mut self, entry: &Entry, old: &Entry, lines: &[Line], data: &[u8]) -> Result<u64> {
        let lines = format::delta::in_files(lines, entry.sparse.as_deref(), old.sparse.as_deref());
        let text = format::delta::text(&entry.path, entry.size, &old.path, &lines);
        self.delta_member(entry, &text, data)
    }

    /// A member below `.bk/delta`, with the metadata of `entry`.
    fn delta_member(&mut self, entry: &Entry, text: &[u8], data: &[u8]) -> Result<u64> {
        self.delta_count += 1;
        let mut member = Entry { path: tar::delta_path(self.delta_count), ..entry.clone() };
        (member.kind, member.sparse, member.link) = (EntryKind::File, None, Vec::new());
        member.size = (text.len() + data.len()) as u64;
        member.stored_len = member.size;
        self.member(&member)?;
        self.framer.put(text)?;
        let offset = self.framer.offset();
        self.framer.put(data)?;
        self.framer.pad(BLOCK_LEN);
        Ok(offset)
    }

    /// A file longer than a frame, chunk by chunk against its previous version.
    fn compared(&mut self, mut entry: Entry, fd: &OwnedFd, stat: &Stat, previous: &Previous) -> Result<()> {
        let (Some(chain), Some(settings)) =
            (self.increment.as_ref().map(|increment| increment.base.chain), self.deltas)
        else {
            return Ok(());
        };
        let old = Old::new(chain, previous.content.clone(), chain.chunks(&previous.row));
        let mut delta = Delta::new(settings, old, 0);
        let mut buf = vec![0; COMPARE_LEN];
        let (mut damaged, mut short) = (Vec::new(), false);
        for run in entry.data_runs() {
            let mut at = run.offset;
            while at < run.end() {
                let want = buf.len().min(usize::try_from(run.end() - at).unwrap_or(usize::MAX));
                short |= read_all(fd, at, &mut buf[..want], &mut damaged);
                delta
                    .push(&buf[..want], &mut |lines, data| self.delta_text(&entry, &previous.row.entry, lines, data))?;
                self.framer.chunks(ChunkRun { stream: 0, path: entry.path.clone(), chunks: delta.take_chunks() });
                at += want as u64;
                self.tell_bytes(want as u64, &entry.path);
                self.go_on()?;
            }
        }
        self.large_done(&mut entry, fd, stat, short, damaged)?;
        let must = previous.moved || !is_seen_as(&previous.row.entry, &entry);
        let (compared, chunks) =
            delta.finish(must, &mut |lines, data| self.delta_text(&entry, &previous.row.entry, lines, data))?;
        if compared.same {
            return self.keep(entry, stat, previous);
        }
        self.framer.chunks(ChunkRun { stream: 0, path: entry.path.clone(), chunks });
        entry.map = Some(Box::new(Map { digest: compared.digest, first: 0, count: 0, places: compared.places }));
        self.remember(&entry, stat, true)?;
        self.row(entry)
    }

    /// A file that fits a frame.
    fn small(
        &mut self,
        entry: &mut Entry,
        fd: &OwnedFd,
        stat: &Stat,
        attempt: u32,
        previous: Option<&Previous>,
    ) -> Result<Small> {
        let len = usize::try_from(entry.stored_len).unwrap_or(usize::MAX);
        let room = self.header.len() + len.next_multiple_of(BLOCK_LEN);
        self.framer.reserve(room)?;
        let mark = self.framer.mark();
        self.framer.put(&self.header)?;
        if entry.size == 0 {
            return Ok(Small::Done);
        }
        let mut end = ReadEnd::Full;
        for run in entry.data_runs() {
            let spare = self.framer.spare();
            let want = usize::try_from(run.len).unwrap_or(usize::MAX).min(spare.len());
            let sequential = entry.sparse.is_none() && attempt == 1;
            end = read_run(fd, run.offset, &mut spare[..want], sequential);
            let got = match end {
                ReadEnd::Full => want,
                ReadEnd::Short(got) | ReadEnd::Failed(got, _) => usize::try_from(got).unwrap_or(0),
            };
            self.framer.advance(got);
            if got < want {
                break;
            }
        }
        let after =
            rustix::fs::fstat(fd).map_err(|e| Error::io(format!("cannot stat {}", show::name(&entry.path)), e))?;
        if let ReadEnd::Failed(_, errno) = end {
            self.framer.rewind(mark);
            entry.status = entry.status.with(Status::IO_ERROR);
            self.mark_unreadable(entry, errno);
            return Ok(Small::Done);
        }
        let short = matches!(end, ReadEnd::Short(_));
        let changed = short || is_changed(stat, &after);
        if changed && attempt < TRY_COUNT_MAX && !is_grown(stat, &after, short) {
            self.framer.rewind(mark);
            return Ok(Small::Again(after));
        }
        if short {
            // It shrinks faster than it can be read: what is there now is stored, as long as it is.
            self.framer.rewind(mark);
            self.shrunk(entry, fd)?;
        }
        if changed {
            self.mark_changed(entry, is_grown(stat, &after, short));
        }
        let len = usize::try_from(entry.stored_len).unwrap_or(0);
        if let Some(previous) = previous.filter(|_| !changed && len > 0) {
            let digest = self.framer.digest(len);
            // What was moved, and what is long, is not stored again; a short one with another mode or owner is.
            let worthwhile = previous.moved || is_seen_as(&previous.row.entry, entry) || len >= self.whole_len_max();
            if digest == previous.content.digest && worthwhile {
                self.framer.rewind(mark);
                return Ok(Small::Same);
            }
            self.framer.slice(len, Role::Hashed(digest));
        } else if len > 0 {
            self.framer.slice(len, Role::Whole);
        }
        self.framer.pad(BLOCK_LEN);
        Ok(Small::Done)
    }

    /// Contents shorter than this are stored again when something else of them changes, bytes.
    fn whole_len_max(&self) -> usize {
        WHOLE_LEN_MAX.min(self.framer.frame_len() / 64)
    }

    /// Stores a file that got shorter while it was read as what can be read of it now, its header made for that.
    fn shrunk(&mut self, entry: &mut Entry, fd: &OwnedFd) -> Result<()> {
        let room = usize::try_from(entry.stored_len).unwrap_or(0);
        let mut bytes = vec![0; room];
        let len = match read_run(fd, 0, &mut bytes, false) {
            ReadEnd::Full => room,
            ReadEnd::Short(got) | ReadEnd::Failed(got, _) => usize::try_from(got).unwrap_or(0),
        };
        entry.sparse = None;
        entry.size = len as u64;
        entry.stored_len = entry.size;
        self.header.clear();
        write::header(entry, &mut self.header);
        self.framer.put(&self.header)?;
        self.framer.put(&bytes[..len])
    }

    /// A file longer than a frame: its content begins a frame and runs on over as many as it needs.
    fn large(&mut self, entry: &mut Entry, fd: &OwnedFd, stat: &Stat) -> Result<()> {
        self.framer.reserve(self.header.len().min(self.framer.frame_len()))?;
        let header = std::mem::take(&mut self.header);
        self.framer.put(&header)?;
        self.header = header;
        self.framer.cut(false, entry.stored_len)?;
        let whole = entry.stored_len <= self.framer.frame_len() as u64;
        let mut done = 0u64;
        let mut in_frame = 0;
        let mut damaged = Vec::new();
        let mut short = false;
        let mut chunker = self.deltas.map(Noted::new);
        for run in entry.data_runs() {
            let mut at = run.offset;
            while at < run.end() {
                let room = self.framer.spare();
                let want = room.len().min(usize::try_from(run.end() - at).unwrap_or(usize::MAX));
                short |= read_all(fd, at, &mut room[..want], &mut damaged);
                self.framer.advance(want);
                if let Some(chunker) = &mut chunker {
                    chunker.feed(self.framer.last(want));
                }
                in_frame += want;
                at += want as u64;
                done += want as u64;
                let last = done == entry.stored_len;
                if last || self.framer.spare().is_empty() {
                    let offset = done - in_frame as u64;
                    self.framer.slice(in_frame, if whole { Role::Whole } else { Role::Piece { offset, last } });
                    self.tell_bytes(in_frame as u64, &entry.path);
                    in_frame = 0;
                    if !last {
                        self.go_on()?;
                        self.framer.cut(false, entry.stored_len)?;
                    }
                }
            }
        }
        self.framer.pad(BLOCK_LEN);
        if let Some(chunker) = chunker {
            self.framer.chunks(ChunkRun { stream: 0, path: entry.path.clone(), chunks: chunker.finish() });
        }
        self.large_done(entry, fd, stat, short, damaged)
    }

    /// Looks at a long file again after it was read.
    fn large_done(
        &mut self,
        entry: &mut Entry,
        fd: &OwnedFd,
        stat: &Stat,
        short: bool,
        damaged: Vec<Run>,
    ) -> Result<()> {
        let after =
            rustix::fs::fstat(fd).map_err(|e| Error::io(format!("cannot stat {}", show::name(&entry.path)), e))?;
        if short || is_changed(stat, &after) {
            self.mark_changed(entry, is_grown(stat, &after, short));
        }
        if !damaged.is_empty() {
            entry.damaged = capped(damaged, entry.size);
            if !short {
                entry.status = entry.status.with(Status::IO_ERROR);
                let first = entry.damaged[0];
                self.incomplete(
                    &entry.path,
                    &format!(
                        "cannot read all of it: {} bytes at {} and perhaps more are missing",
                        first.len, first.offset
                    ),
                );
            }
        }
        Ok(())
    }

    fn mark_changed(&mut self, entry: &mut Entry, grew: bool) {
        if grew {
            entry.status = entry.status.with(Status::GREW);
            self.warn(format!("grew while it was read: {}", show::name(&entry.path)), false);
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

    fn incomplete(&mut self, path: &[u8], why: &str) {
        if self.outcome.incomplete.len() < NAMED_MAX {
            self.outcome.incomplete.push(Incomplete { path: show::name(path), why: why.to_owned() });
        }
        self.warn(format!("{}: {why}", show::name(path)), true);
    }

    fn member_checked(&mut self, entry: &mut Entry) -> Result<()> {
        if self.member(entry)?.xattrs {
            entry.status = entry.status.with(Status::XATTRS);
            self.incomplete(&entry.path, "its attributes are only in the index: too large for tar");
        }
        Ok(())
    }

    fn member(&mut self, entry: &Entry) -> Result<write::Left> {
        self.member_with(entry, None)
    }

    /// A member; a directory's may list all names in it.
    fn member_with(&mut self, entry: &Entry, dumpdir: Option<&[u8]>) -> Result<write::Left> {
        self.header.clear();
        let left = write::header_with(entry, dumpdir, &mut self.header);
        self.framer.reserve(self.header.len().min(self.framer.frame_len()))?;
        let header = std::mem::take(&mut self.header);
        self.framer.put(&header)?;
        self.header = header;
        Ok(left)
    }

    fn row(&mut self, entry: Entry) -> Result<()> {
        self.count(&entry);
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

/// How reading a short file ended.
enum Small {
    /// It is in the frame.
    Done,
    /// It changed meanwhile, and is to be read again.
    Again(Stat),
    /// It is its previous version; nothing is in the frame.
    Same,
}

/// Whether all that can be seen of two files but their content is the same.
fn is_seen_as(a: &Entry, b: &Entry) -> bool {
    is_visibly_same(a, b)
        && (a.size, &a.sparse, &a.xattrs, a.status, &a.damaged) == (b.size, &b.sparse, &b.xattrs, b.status, &b.damaged)
}

/// Whether a file is another than it was: size or times differ.
fn is_changed(before: &Stat, after: &Stat) -> bool {
    let key = |s: &Stat| (s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
    key(before) != key(after)
}

/// Whether all that happened is that it got longer: what was read is a prefix.
fn is_grown(before: &Stat, after: &Stat, short: bool) -> bool {
    !short && after.st_size > before.st_size
}

/// Reads a run that fits a buffer: from the descriptor's position when `sequential`.
fn read_run(fd: &OwnedFd, offset: u64, buf: &mut [u8], sequential: bool) -> ReadEnd {
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let got = if sequential {
            rustix::io::read(fd, &mut buf[done..])
        } else {
            rustix::io::pread(fd, &mut buf[done..], at)
        };
        match got {
            Ok(0) => return ReadEnd::Short(done as u64),
            Ok(len) => done += len,
            Err(Errno::INTR) => {}
            Err(e) => return ReadEnd::Failed(done as u64, e),
        }
    }
    ReadEnd::Full
}

/// Reads a run of a large file; what cannot be read becomes zeros and is noted in `damaged`. True when the file ended early.
fn read_all(fd: &OwnedFd, offset: u64, buf: &mut [u8], damaged: &mut Vec<Run>) -> bool {
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let (skip, short) = match read_run(fd, at, &mut buf[done..], false) {
            ReadEnd::Full => return false,
            ReadEnd::Short(got) => {
                done += usize::try_from(got).unwrap_or(0);
                (buf.len() - done, true)
            }
            ReadEnd::Failed(got, _) => {
                done += usize::try_from(got).unwrap_or(0);
                let at = offset + done as u64;
                let to_sector = (at + 1).next_multiple_of(SECTOR_LEN) - at;
                (usize::try_from(to_sector).unwrap_or(0).min(buf.len() - done), false)
            }
        };
        let run = Run { offset: offset + done as u64, len: skip as u64 };
        buf[done..done + skip].fill(0);
        done += skip;
        match damaged.last_mut() {
            Some(last) if last.end() == run.offset => last.len += run.len,
            _ => damaged.push(run),
        }
        if short {
            return true;
        }
    }
    false
}

fn capped(mut damaged: Vec<Run>, size: u64) -> Vec<Run> {
    if damaged.len() > DAMAGED_COUNT_MAX {
        let offset = damaged[DAMAGED_COUNT_MAX].offset;
        damaged.truncate(DAMAGED_COUNT_MAX);
        damaged.push(Run { offset, len: size - offset });
    }
    damaged
}
