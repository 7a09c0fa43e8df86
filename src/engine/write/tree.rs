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
    framer::{Framer, Role},
    links::Links,
};
use crate::{
    error::{Error, Kind, Result},
    format::{
        index::DAMAGED_COUNT_MAX,
        record::{Incomplete, Totals},
        tar::{self, BLOCK_LEN, END_LEN, write},
    },
    model::{
        entry::{Entry, EntryKind, Run, Status},
        show,
    },
    monitor::Monitor,
    source::{
        listing::FileKind,
        meta,
        walk::{Leaf, Visitor, Walk},
    },
};

/// How often a small file that changes while it is read is read again.
const TRY_COUNT_MAX: u32 = 3;
/// After an error a large file is read on at the next multiple of this.
const SECTOR_LEN: u64 = 4096;
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

/// Stores all that `walk` finds as stream 0.
pub fn store(framer: &mut Framer<'_>, walk: Walk<'_>, links: Links<'_>, monitor: &dyn Monitor) -> Result<Outcome> {
    framer.begin(0);
    let outcome = Outcome::default();
    let mut tree =
        Tree { framer, links, monitor, outcome, header: Vec::new(), note: Vec::new(), no_atime: true, told: (0, 0) };
    walk.run(&mut tree)?;
    tree.finish()
}

struct Tree<'a, 'b> {
    framer: &'a mut Framer<'b>,
    links: Links<'a>,
    monitor: &'a dyn Monitor,
    outcome: Outcome,
    header: Vec<u8>,
    /// The text of `.bk/incomplete`.
    note: Vec<u8>,
    no_atime: bool,
    told: (u64, u64),
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
    fn enter(&mut self, dir: &Entry) -> Result<()> {
        let left = self.member(dir)?;
        if left.xattrs {
            self.warn(
                format!("the attributes of {} are only in the index: too large for tar", show::name(&dir.path)),
                true,
            );
        }
        Ok(())
    }

    fn directory(&mut self, dir: Entry) -> Result<()> {
        self.row(dir)
    }

    fn leaf(&mut self, leaf: Leaf<'_>) -> Result<Option<Stat>> {
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
        self.member_checked(&mut entry)?;
        self.row(entry)?;
        Ok(None)
    }

    /// An entry with several names: a hard link when one is stored already. True when that was all.
    fn is_link(&mut self, entry: &mut Entry, stat: &Stat) -> Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let inode = (stat.st_dev, stat.st_ino);
        let Some(first) = self.links.get(inode)? else {
            if entry.kind != EntryKind::File && entry.kind != EntryKind::Socket {
                self.links.insert(inode, &entry.path)?;
            }
            return Ok(false);
        };
        let mut link = entry.clone();
        (link.kind, link.link, link.size, link.stored_len, link.rdev) = (EntryKind::HardLink, first, 0, 0, (0, 0));
        link.xattrs.clear();
        self.member(&link)?;
        self.row(link)?;
        Ok(true)
    }

    /// An open file, or whatever it turned out to be.
    fn opened(&mut self, leaf: Leaf<'_>, fd: OwnedFd) -> Result<Option<Stat>> {
        let failed = |e| Error::io(format!("cannot stat {}", show::name(leaf.path)), e);
        let mut stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let fsid = leaf.systems.fsid(stat.st_dev, &fd);
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
            self.header.clear();
            let left = write::header(&entry, &mut self.header);
            let content_len = tar::padded(entry.stored_len);
            let whole = self.header.len() as u64 + content_len <= self.framer.frame_len() as u64;
            if whole {
                match self.small(&mut entry, &fd, &stat, attempt)? {
                    Some(again) => stat = again,
                    None => {
                        self.file_done(entry, &stat, left)?;
                        return Ok(None);
                    }
                }
            } else {
                self.large(&mut entry, &fd, &stat)?;
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
        if stat.st_nlink > 1 && !entry.status.has(Status::UNREADABLE) {
            self.links.insert((stat.st_dev, stat.st_ino), &entry.path)?;
        }
        self.row(entry)
    }

    /// A file that fits a frame. Answers with the new stat when it changed and should be read again.
    fn small(&mut self, entry: &mut Entry, fd: &OwnedFd, stat: &Stat, attempt: u32) -> Result<Option<Stat>> {
        let len = usize::try_from(entry.stored_len).unwrap_or(usize::MAX);
        let room = self.header.len() + len.next_multiple_of(BLOCK_LEN);
        self.framer.reserve(room)?;
        let mark = self.framer.mark();
        self.framer.put(&self.header)?;
        if entry.size == 0 {
            return Ok(None);
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
            return Ok(None);
        }
        let short = matches!(end, ReadEnd::Short(_));
        let changed = short || is_changed(stat, &after);
        if changed && attempt < TRY_COUNT_MAX && !is_grown(stat, &after, short) {
            self.framer.rewind(mark);
            return Ok(Some(after));
        }
        if short {
            // It shrinks faster than it can be read: what is there now is stored, as long as it is.
            self.framer.rewind(mark);
            self.shrunk(entry, fd)?;
        }
        if changed {
            self.mark_changed(entry, is_grown(stat, &after, short));
        }
        if entry.stored_len > 0 {
            self.framer.slice(usize::try_from(entry.stored_len).unwrap_or(0), Role::Whole);
        }
        self.framer.pad(BLOCK_LEN);
        Ok(None)
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
        for run in entry.data_runs() {
            let mut at = run.offset;
            while at < run.end() {
                let room = self.framer.spare();
                let want = room.len().min(usize::try_from(run.end() - at).unwrap_or(usize::MAX));
                short |= read_all(fd, at, &mut room[..want], &mut damaged);
                self.framer.advance(want);
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
        self.header.clear();
        let left = write::header(entry, &mut self.header);
        self.framer.reserve(self.header.len().min(self.framer.frame_len()))?;
        let header = std::mem::take(&mut self.header);
        self.framer.put(&header)?;
        self.header = header;
        Ok(left)
    }

    fn row(&mut self, entry: Entry) -> Result<()> {
        self.outcome.totals.entries += 1;
        self.outcome.totals.files += u64::from(entry.kind == EntryKind::File);
        self.outcome.totals.content_bytes += entry.stored_len;
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
