//! The workers of a restore: one frame at a time, fetched, checked and decoded once, its files written from the buffer.
//!
//! A file inside a frame is held against its own digest and its tar header before it is made. A file over several
//! frames is written by whoever has a frame of it; the last one gives it its name.

use std::{
    collections::HashSet,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crossbeam_channel::Receiver;
use rustix::{fs::Mode, io::Errno};

use super::{
    ahead::Reads,
    chain::{Chain, Located, Source},
    content::check_digest,
    filled::{content_digest, put_content},
    frame::FrameReader,
    metadata::{Failure, Fresh, Left, Policy, has_default_acl},
    outcome::Outcome,
    target::{NewFile, Replace, Target},
};
use crate::{
    error::{Error, Kind, Result},
    format::{
        index::Frame,
        tar::{padded, read::TarReader},
    },
    model::{
        entry::{Entry, EntryKind},
        path,
    },
    monitor::Monitor,
};

/// What all threads of a restore share.
pub struct Shared<'a> {
    /// The snapshot.
    pub chain: &'a Chain,
    /// Where it goes.
    pub target: Target,
    /// How metadata is set.
    pub policy: Policy,
    /// Progress and interruption.
    pub monitor: &'a dyn Monitor,
    outcome: Mutex<Outcome>,
    /// Files with several names that were not restored: nothing may be linked to what stands there.
    unlinkable: Mutex<HashSet<Vec<u8>>>,
    fatal: Mutex<Option<Error>>,
    stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A failed call of the system. No space ends the restore, anything else one entry.
pub fn failed(doing: &str, error: Errno) -> Error {
    if matches!(error, Errno::NOSPC | Errno::DQUOT) {
        return Error::io(format!("cannot {doing}"), error)
            .with_hint("no file is half written; free space and run the same command again to restore the rest");
    }
    Error::new(Kind::Other, format!("cannot {doing}: {}", std::io::Error::from(error)))
}

pub(super) fn failed_io(doing: &str, error: &std::io::Error) -> Error {
    failed(doing, Errno::from_io_error(error).unwrap_or(Errno::IO))
}

impl From<Failure> for Error {
    fn from(Failure(doing, errno): Failure) -> Self {
        failed(doing, errno)
    }
}

impl<'a> Shared<'a> {
    /// Nothing done yet.
    pub fn new(chain: &'a Chain, target: Target, policy: Policy, monitor: &'a dyn Monitor) -> Self {
        Self {
            chain,
            target,
            policy,
            monitor,
            outcome: Mutex::default(),
            unlinkable: Mutex::default(),
            fatal: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// The counts.
    pub fn outcome(&self) -> MutexGuard<'_, Outcome> {
        lock(&self.outcome)
    }

    /// Whether the restore is to end now.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Ends the restore with `error`; the first one counts.
    pub fn end(&self, error: Error) {
        self.stop.store(true, Ordering::Relaxed);
        lock(&self.fatal).get_or_insert(error);
    }

    /// What ended it.
    pub fn take_fatal(&self) -> Option<Error> {
        lock(&self.fatal).take()
    }

    /// Notes that an entry was not restored, or ends the restore where no other can be either.
    pub fn fault(&self, entry: &Entry, error: Error) {
        if entry.nlink > 1 {
            lock(&self.unlinkable).insert(entry.path.clone());
        }
        match error.kind() {
            Kind::NoSpace | Kind::Signal(_) | Kind::Volume => self.end(error),
            _ => self.outcome().fault(&entry.path, error.to_string()),
        }
    }

    /// Whether the file at `path` was not restored.
    pub fn is_unlinkable(&self, path: &[u8]) -> bool {
        lock(&self.unlinkable).contains(path)
    }

    /// Notes a written file.
    pub fn written(&self, entry: &Entry, left: Left) {
        let mut outcome = self.outcome();
        outcome.files += 1;
        outcome.content_bytes += entry.stored_len;
        outcome.left(left);
    }
}

/// A file to write.
pub struct Task {
    /// The entry.
    pub entry: Entry,
    /// Its content.
    pub content: Located,
    /// What becomes of what has its name.
    pub replace: Replace,
}

/// What of a frame goes where.
pub enum Work {
    /// A file inside the frame.
    Whole(Box<Task>),
    /// What the frame has of a longer file: where that is, and how much of the content lies before it.
    Piece(Arc<Large>, Source, u64),
}

impl Work {
    fn task(&self) -> &Task {
        match self {
            Work::Whole(task) => task,
            Work::Piece(large, ..) => &large.task,
        }
    }
}

/// A frame, and the files in it that are wanted, in order.
pub struct Batch {
    /// Which snapshot of the chain stores it.
    pub run: usize,
    /// Whether the files follow their own headers in it.
    pub own: bool,
    /// The frame.
    pub frame: Frame,
    /// The files.
    pub work: Vec<Work>,
}

impl Reads for Batch {
    fn frame(&self) -> Option<(usize, Frame)> {
        Some((self.run, self.frame))
    }

    fn weight(&self) -> usize {
        self.work.len()
    }
}

/// A file over several frames.
pub struct Large {
    task: Task,
    left: AtomicU64,
    failed: AtomicBool,
    file: Mutex<Option<Arc<Opened>>>,
}

struct Opened {
    new: NewFile,
    fresh: Fresh,
}

impl Large {
    /// A file none of which is written.
    pub fn new(task: Task) -> Self {
        Self {
            left: AtomicU64::new(task.entry.stored_len),
            task,
            failed: AtomicBool::new(false),
            file: Mutex::default(),
        }
    }
}

/// An open directory and what is known of files made in it.
struct DirState {
    path: Vec<u8>,
    fd: OwnedFd,
    owner: Option<(u32, u32)>,
    inherits_acl: bool,
}

/// Writes files. One for each thread.
pub struct Writer<'a> {
    shared: &'a Shared<'a>,
    dir: Option<DirState>,
}

/// Takes batches until there are no more.
pub fn run(shared: &Shared<'_>, batches: &Receiver<Batch>) {
    let mut frames = match FrameReader::new() {
        Ok(frames) => frames,
        Err(e) => return shared.end(e),
    };
    let mut writer = Writer::new(shared);
    let mut plain = Vec::new();
    for batch in batches {
        if shared.stopped() {
            continue;
        }
        let read = frames.read(shared.chain.run(batch.run), &batch.frame, &mut plain);
        writer.batch(&batch, read.map(|()| plain.as_slice()));
    }
}

impl<'a> Writer<'a> {
    /// A writer with no directory open.
    pub fn new(shared: &'a Shared<'a>) -> Self {
        Self { shared, dir: None }
    }

    fn batch(&mut self, batch: &Batch, plain: Result<&[u8]>) {
        let plain = match plain {
            Ok(plain) => plain,
            Err(e) => {
                for work in &batch.work {
                    self.fail(work, Error::new(e.kind(), e.to_string()));
                }
                return;
            }
        };
        let mut members = Members::new(batch, plain);
        let (mut done, mut bytes) = (0, 0);
        for work in &batch.work {
            if self.shared.stopped() {
                return;
            }
            let task = work.task();
            if let Err(e) = members.agree(task) {
                self.fail(work, e);
                continue;
            }
            match work {
                Work::Whole(task) => {
                    match self.whole(task, &batch.frame, plain) {
                        Ok(left) => self.shared.written(&task.entry, left),
                        Err(e) => self.shared.fault(&task.entry, e),
                    }
                    (done, bytes) = (done + 1, bytes + task.entry.stored_len);
                }
                Work::Piece(large, source, before) => {
                    bytes += self.piece(large, *source, *before, &batch.frame, plain);
                }
            }
        }
        if let Some(last) = batch.work.last() {
            self.shared.monitor.advance(done, bytes, &last.task().entry.path);
        }
    }

    fn fail(&self, work: &Work, error: Error) {
        match work {
            Work::Whole(task) => self.shared.fault(&task.entry, error),
            Work::Piece(large, ..) => self.fail_large(large, error),
        }
    }

    fn fail_large(&self, large: &Large, error: Error) {
        if !large.failed.swap(true, Ordering::AcqRel) {
            lock(&large.file).take();
            self.shared.fault(&large.task.entry, error);
        }
    }

    fn whole(&mut self, task: &Task, frame: &Frame, plain: &[u8]) -> Result<Left> {
        let offset = task.content.sources.first().map_or(0, |source| source.offset);
        let start = usize::try_from(offset - frame.offset).unwrap_or(usize::MAX);
        let len = usize::try_from(task.entry.stored_len).unwrap_or(usize::MAX);
        let content = plain
            .get(start..)
            .and_then(|rest| rest.get(..len))
            .ok_or_else(|| Error::integrity("its content is outside its frame"))?;
        check_digest(self.shared.chain.shown(), &task.content.digest, content, &task.entry.path)?;
        self.place(&task.entry, task.replace, &mut |file| put_content(file, &task.entry, 0, content))
    }

    /// Makes the file `entry`, its content put there by `fill`, and gives it its name.
    pub fn place(
        &mut self,
        entry: &Entry,
        replace: Replace,
        fill: &mut dyn FnMut(&File) -> Result<()>,
    ) -> Result<Left> {
        let opened = self.create(entry)?;
        fill(&opened.new.file)?;
        self.finish(opened, entry, replace)
    }

    fn create(&mut self, entry: &Entry) -> Result<Opened> {
        let shared = self.shared;
        let dir = self.dir(path::split(&entry.path).0)?;
        let (uid, gid) = dir.owner.unwrap_or((entry.uid, entry.gid));
        let asked_mode = shared.policy.create_mode(entry, uid, gid);
        let new = shared
            .target
            .new_file(dir.fd.as_fd(), Mode::from_raw_mode(asked_mode))
            .map_err(|e| failed("make the file", e))?;
        let (uid, gid) = match dir.owner {
            Some(owner) => owner,
            None => {
                let stat = rustix::fs::fstat(&new.file).map_err(|e| failed("stat the file", e))?;
                *dir.owner.insert((stat.st_uid, stat.st_gid))
            }
        };
        let fresh = Fresh { uid, gid, asked_mode, inherits_acl: dir.inherits_acl };
        if entry.sparse.is_some() {
            rustix::fs::ftruncate(&new.file, entry.size).map_err(|e| failed("set the size", e))?;
        }
        Ok(Opened { new, fresh })
    }

    fn finish(&mut self, opened: Opened, entry: &Entry, replace: Replace) -> Result<Left> {
        let shared = self.shared;
        let left = shared.policy.apply_new(opened.new.file.as_fd(), entry, opened.fresh)?;
        let (dir, name) = path::split(&entry.path);
        let dir = self.dir(dir)?;
        shared.target.name_file(opened.new, dir.fd.as_fd(), name, replace).map_err(|e| match e {
            Errno::NOTEMPTY => Error::new(Kind::Other, "a directory that is not empty is in the way"),
            e => failed("give the file its name", e),
        })?;
        Ok(left)
    }

    /// The directory of the file now being written; the last one stays open.
    fn dir(&mut self, path: &[u8]) -> Result<&mut DirState> {
        match self.dir.take_if(|dir| dir.path == path) {
            Some(dir) => Ok(self.dir.insert(dir)),
            None => {
                let fd = self.shared.target.dir(path).map_err(|e| failed("open its directory", e))?;
                let inherits_acl = has_default_acl(&fd);
                Ok(self.dir.insert(DirState { path: path.to_vec(), fd, owner: None, inherits_acl }))
            }
        }
    }

    /// Writes what `frame` has of a large file: of `source`, which follows `before` bytes of its content. Returns how much that is.
    fn piece(&mut self, large: &Large, source: Source, before: u64, frame: &Frame, plain: &[u8]) -> u64 {
        let from = source.offset.max(frame.offset);
        let to = source.end().min(frame.end());
        let len = to.saturating_sub(from);
        let at = before + (from - source.offset);
        if !large.failed.load(Ordering::Acquire)
            && let Err(e) = self.put_piece(large, frame, plain, (from, to), at)
        {
            self.fail_large(large, e);
        }
        if large.left.fetch_sub(len, Ordering::AcqRel) == len && !large.failed.load(Ordering::Acquire) {
            let opened = lock(&large.file).take().and_then(Arc::into_inner);
            let finished = match opened {
                Some(opened) => self
                    .check_put_together(&opened.new.file, &large.task)
                    .and_then(|()| self.finish(opened, &large.task.entry, large.task.replace)),
                None => Err(Error::new(Kind::Other, "the file was lost on the way")),
            };
            match finished {
                Ok(left) => {
                    self.shared.written(&large.task.entry, left);
                    self.shared.monitor.advance(1, 0, b"");
                }
                Err(e) => self.fail_large(large, e),
            }
        }
        len
    }

    /// Reads back a content that was put together from several places: that each of them was right says nothing of the whole.
    fn check_put_together(&self, file: &File, task: &Task) -> Result<()> {
        if task.entry.map.is_none() {
            return Ok(());
        }
        let digest = content_digest(file, &task.entry, self.shared.monitor)?;
        if digest == task.content.digest {
            return Ok(());
        }
        let (stored, read) = (task.content.digest.short(), digest.short());
        Err(Error::integrity(format!("its digest differs (stored {stored}…, put together {read}…)")))
    }

    fn put_piece(&mut self, large: &Large, frame: &Frame, plain: &[u8], (from, to): (u64, u64), at: u64) -> Result<()> {
        let range = usize::try_from(from - frame.offset).unwrap_or(0)..usize::try_from(to - frame.offset).unwrap_or(0);
        let bytes = plain.get(range).ok_or_else(|| Error::integrity("its content is outside its frame"))?;
        let opened = {
            let mut file = lock(&large.file);
            match &*file {
                Some(opened) => Arc::clone(opened),
                None => Arc::clone(file.insert(Arc::new(self.create(&large.task.entry)?))),
            }
        };
        put_content(&opened.new.file, &large.task.entry, at, bytes)
    }
}

/// The tar headers of a frame, read along with the files taken from it.
struct Members<'a> {
    frame: Frame,
    plain: &'a [u8],
    /// Where the next header begins in the frame, when that is known.
    next: Option<usize>,
}

impl<'a> Members<'a> {
    fn new(batch: &Batch, plain: &'a [u8]) -> Self {
        let frame = batch.frame;
        let next = match batch.work.first().and_then(|work| work.task().content.sources.first()) {
            _ if !batch.own => None,
            _ if frame.starts_member => Some(0),
            Some(first) if first.offset < frame.offset => {
                first.offset.checked_add(padded(first.len)).and_then(|end| usize::try_from(end - frame.offset).ok())
            }
            _ => None,
        };
        Self { frame, plain, next }
    }

    /// Holds the header of `task` against its entry, when that header is in this frame.
    fn agree(&mut self, task: &Task) -> Result<()> {
        let offset = task.content.sources.first().map_or(0, |source| source.offset);
        let Some(at) = offset.checked_sub(self.frame.offset) else { return Ok(()) };
        while let Some(next) = self.next.filter(|&next| next as u64 <= at && next < self.plain.len()) {
            let start = self.frame.offset + next as u64;
            let member = TarReader::new(&self.plain[next..], start)
                .next_member()
                .inspect_err(|_| self.next = None)?
                .ok_or_else(|| Error::integrity("the archive ends before its member"))?;
            let end = (member.data_offset - self.frame.offset).saturating_add(padded(member.entry.stored_len));
            self.next = Some(usize::try_from(end).unwrap_or(usize::MAX));
            if member.data_offset == offset && member.entry.stored_len > 0 {
                let (said, entry) = (&member.entry, &task.entry);
                let agree = said.kind == EntryKind::File
                    && said.path == entry.path
                    && said.size == entry.size
                    && said.stored_len == entry.stored_len;
                return if agree { Ok(()) } else { Err(Error::integrity("index and tar header do not agree")) };
            }
            if member.data_offset > offset {
                break;
            }
        }
        match self.next {
            None => Ok(()),
            Some(_) if at == 0 => Ok(()),
            Some(_) => Err(Error::integrity("no tar header for it where the index says")),
        }
    }
}
