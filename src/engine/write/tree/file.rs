//! One file of a tree: read into the frame, kept as its previous version, or compared with it.

use std::os::fd::OwnedFd;

use rustix::fs::Stat;

use super::{
    Tree, XATTRS_TOO_LARGE,
    read::{ReadEnd, capped, is_changed, is_grown, read_all, read_run},
};
use crate::{
    engine::write::{
        delta::{Delta, Noted, Old},
        framer::Role,
        increment::{Previous, is_visibly_same},
        links::First,
        profile::Stage,
    },
    error::{Error, Result},
    format::{
        self,
        delta::Line,
        index::ChunkRun,
        tar::{self, BLOCK_LEN, write},
    },
    model::{
        entry::{Entry, EntryKind, Map, Run, Status},
        show,
    },
    source::{
        meta,
        walk::{Leaf, Visitor},
    },
};

/// How often a small file that changes while it is read is read again.
const TRY_COUNT_MAX: u32 = 3;
/// A file that is compared is read in pieces of this length, bytes.
const COMPARE_LEN: usize = 1 << 20;
/// Files of at least this length, bytes, are not stored again when only their mode, owner, time or attributes changed.
const WHOLE_LEN_MAX: usize = 64 << 10;

impl Tree<'_, '_> {
    /// An open file, or whatever it turned out to be.
    pub(super) fn opened(&mut self, leaf: Leaf<'_>, fd: OwnedFd) -> Result<Option<Stat>> {
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
            self.framer.turn(Stage::Tar);
            self.header.clear();
            let left = write::header(&entry, &mut self.header);
            self.framer.turn(Stage::Read);
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
            self.incomplete(&entry.path, XATTRS_TOO_LARGE);
        }
        self.remember(&entry, stat, false)?;
        self.row(entry)
    }

    /// Notes a file with several names as stored: as a member, or as a delta.
    fn remember(&mut self, entry: &Entry, stat: &Stat, is_delta: bool) -> Result<()> {
        if stat.st_nlink < 2 || entry.status.has(Status::UNREADABLE) {
            return Ok(());
        }
        self.links.insert((stat.st_dev, stat.st_ino), &First::new(&entry.path, stat, is_delta))
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
    pub(super) fn delta_member(&mut self, entry: &Entry, text: &[u8], data: &[u8]) -> Result<u64> {
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
                self.framer.turn(Stage::Hash);
                delta
                    .push(&buf[..want], &mut |lines, data| self.delta_text(&entry, &previous.row.entry, lines, data))?;
                self.framer.turn(Stage::Read);
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
        if changed && attempt < TRY_COUNT_MAX {
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
                    self.framer.turn(Stage::Hash);
                    chunker.feed(self.framer.last(want));
                    self.framer.turn(Stage::Read);
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
