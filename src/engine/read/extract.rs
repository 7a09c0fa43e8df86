//! A restore: directories first, then contents in parallel, then hard links, then the directories' own metadata.
//!
//! Entries are read from the index in its order, which is that of the contents in the tree stream; each frame is
//! decoded once. Nothing that grows with the number of files is kept: the passes after the first read the index again.

mod feeder;
mod links;
mod plan;

use std::{
    collections::HashSet,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use crossbeam_channel::{Sender, bounded};
use rustix::{
    fs::{FileType, Mode, Stat},
    io::Errno,
};

use self::feeder::{Feeder, Slot};
pub use self::plan::{Action, plan};
use super::{
    ahead::Told,
    chain::Chain,
    content,
    index::Row,
    metadata::{Inode, Policy},
    outcome::Outcome,
    select::Taken,
    target::{self, DIR_MODE, Replace, Target},
    worker::{self, Batch, Shared, Task, Writer, failed},
};
use crate::{
    error::{Error, Kind, Result},
    model::{
        entry::{Entry, EntryKind, Status},
        path,
    },
    monitor::Monitor,
};

/// What happens to what is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// It stays.
    Never,
    /// What has the same type, size and time stays, its other metadata is set; all else is replaced.
    IfChanged,
    /// It is replaced.
    Always,
}

/// How to restore.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which entries.
    pub taken: Taken,
    /// What happens to what is there already.
    pub overwrite: Overwrite,
    /// Leave out what could harm.
    pub safe: bool,
    /// Worker threads.
    pub threads: usize,
}

/// Restores into the directory `to`.
pub fn extract(chain: &Chain, to: &Path, options: &Options, monitor: &dyn Monitor) -> Result<Outcome> {
    let policy = Policy::new(options.safe);
    let shared = Shared::new(chain, Target::open(to, true)?, policy, monitor);
    let mut pass = Pass::new(&shared, options);
    let threads = options.threads.max(1);
    let (batches, taken) = bounded(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (taken, shared) = (taken.clone(), &shared);
            scope.spawn(move || worker::run(shared, &taken));
        }
        drop(taken);
        if let Err(e) = pass.contents(batches) {
            shared.end(e);
        }
    });
    if !shared.stopped()
        && let Err(e) = pass.links().and_then(|()| pass.directories())
    {
        shared.end(e);
    }
    match shared.take_fatal() {
        Some(e) => Err(e),
        None => Ok(std::mem::take(&mut *shared.outcome())),
    }
}

/// The order in which the rows that are taken come.
fn rows<'a>(chain: &'a Chain, taken: &'a Taken) -> impl Iterator<Item = Result<Row>> + 'a {
    let all = taken.tops.iter().flat_map(move |top| -> Box<dyn Iterator<Item = Result<Row>> + 'a> {
        if top.is_empty() {
            return Box::new(chain.rows());
        }
        Box::new(chain.lookup(top).transpose().into_iter().chain(chain.subtree(top)))
    });
    all.filter(move |row| row.as_ref().map_or(true, |row| taken.wants(&row.entry.path, row.entry.is_dir())))
}

/// The main thread's side of a restore.
struct Pass<'a> {
    shared: &'a Shared<'a>,
    options: &'a Options,
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories that were there before.
    existed: HashSet<Vec<u8>>,
    /// Those among them that a restore made which did not end.
    half_made: HashSet<Vec<u8>>,
    /// Directories that could not be made.
    blocked: HashSet<Vec<u8>>,
    /// Directories made, by this restore or one that did not end, only because something taken lies below them.
    implied: HashSet<Vec<u8>>,
    has_links: bool,
}

/// What is to be done with an entry's name.
enum Decision {
    Write(Replace),
    Keep,
    Fix(Stat),
}

impl<'a> Pass<'a> {
    fn new(shared: &'a Shared<'a>, options: &'a Options) -> Self {
        let (existed, blocked, implied) = (HashSet::new(), HashSet::new(), HashSet::new());
        let half_made = HashSet::new();
        Self { shared, options, parent: None, existed, half_made, blocked, implied, has_links: false }
    }

    /// Makes directories and small things, and feeds files to the workers.
    fn contents(&mut self, batches: Sender<Batch>) -> Result<()> {
        let (chain, options) = (self.shared.chain, self.options);
        let slots = (0..chain.runs().len() * 2).map(|_| Slot::default()).collect();
        let told = Told::new(chain.runs(), 1);
        let mut feeder = Feeder { shared: self.shared, batches, slots, told };
        for row in rows(chain, &options.taken) {
            content::check_interrupted(self.shared.monitor)?;
            if self.shared.stopped() {
                return Ok(());
            }
            let row = match row {
                Ok(row) => row,
                Err(e) => {
                    // Nor are entries of older snapshots taken in their place.
                    self.shared.outcome().fault(b"", format!("entries of the index are lost: {e}"));
                    continue;
                }
            };
            if let Err(e) = self.entry(&row, &mut feeder) {
                if row.entry.is_dir() {
                    self.blocked.insert(row.entry.path.clone());
                }
                self.shared.fault(&row.entry, e);
            }
        }
        feeder.finish();
        Ok(())
    }

    fn entry(&mut self, row: &Row, feeder: &mut Feeder<'_>) -> Result<()> {
        let entry = &row.entry;
        if entry.status.is_incomplete() && !is_absent(entry) {
            self.shared.outcome().incomplete(&entry.path, entry.status.show());
        }
        if is_absent(entry) {
            return Err(Error::new(Kind::Incomplete, "it could not be read when the snapshot was taken"));
        }
        match entry.kind {
            EntryKind::Dir => return self.directory(entry),
            EntryKind::HardLink => {
                self.has_links = true;
                return Ok(());
            }
            EntryKind::CharDevice | EntryKind::BlockDevice if self.options.safe => {
                self.shared.outcome().left_out += 1;
                return Ok(());
            }
            _ => {}
        }
        let decision = self.decide(entry)?;
        match (decision, self.shared.chain.locate(row)?) {
            (Decision::Keep, _) => self.kept(entry),
            (Decision::Fix(stat), _) => self.fix(entry, &stat)?,
            (Decision::Write(replace), Some(content)) => {
                feeder.file(Task { entry: entry.clone(), content, replace })?
            }
            (Decision::Write(replace), None) => self.without_content(entry, replace)?,
        }
        Ok(())
    }

    fn kept(&self, entry: &Entry) {
        self.shared.outcome().kept += 1;
        self.shared.monitor.advance(1, entry.stored_len, &entry.path);
    }

    /// The directory of `path`, open; made when it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<&OwnedFd> {
        let dir = path::split(path).0;
        if self.parent.as_ref().is_none_or(|(own, _)| own != dir) {
            let implied = &mut self.implied;
            let fd = self.shared.target.make_dirs(dir, &mut |made| {
                implied.insert(made.to_vec());
            });
            let fd = fd.map_err(|e| failed("open its directory", e))?;
            self.look_above(dir)?;
            self.parent = Some((dir.to_vec(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok(fd),
            None => Err(Error::new(Kind::Other, "no directory")),
        }
    }

    /// What is known of directories that are not taken themselves, from `dir` up: those that this run did not make were there
    /// before, and a restore that did not end may have made them.
    fn look_above(&mut self, dir: &[u8]) -> Result<()> {
        let mut at = dir;
        while !at.is_empty() && !self.options.taken.wants_anywhere(at, true) {
            if self.existed.contains(at) {
                return Ok(());
            }
            if !self.implied.contains(at) {
                let fd = self.shared.target.dir(at).map_err(|e| failed("open its directory", e))?;
                let stat = rustix::fs::fstat(&fd).map_err(|e| failed("stat its directory", e))?;
                if target::is_half_made(stat.st_mode) {
                    self.implied.insert(at.to_vec());
                    self.shared.target.sweep(at);
                }
                self.existed.insert(at.to_vec());
            }
            at = path::split(at).0;
        }
        Ok(())
    }

    fn directory(&mut self, entry: &Entry) -> Result<()> {
        self.shared.outcome().directories += 1;
        self.shared.monitor.advance(1, 0, &entry.path);
        if entry.path.is_empty() {
            self.existed.insert(Vec::new());
            self.shared.target.sweep(b"");
            return Ok(());
        }
        let overwrite = self.options.overwrite;
        let name = path::split(&entry.path).1;
        let fd = self.parent(&entry.path)?;
        match rustix::fs::mkdirat(fd, name, DIR_MODE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(failed("make the directory", e)),
        }
        let found = target::stat(fd.as_fd(), name).map_err(|e| failed("stat what has its name", e))?;
        match found.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Some(FileType::Directory) => {
                if !self.implied.contains(&entry.path) {
                    if found.is_some_and(|stat| target::is_half_made(stat.st_mode)) {
                        self.half_made.insert(entry.path.clone());
                    }
                    self.existed.insert(entry.path.clone());
                    self.shared.target.sweep(&entry.path);
                }
                return Ok(());
            }
            // Where a link leads is the user's doing: only an explicit wish replaces it.
            Some(FileType::Symlink) if overwrite != Overwrite::Always => {
                return Err(Error::new(Kind::Other, "a symbolic link has its name; --overwrite always replaces it"));
            }
            Some(_) if overwrite == Overwrite::Never => {
                return Err(Error::new(Kind::Other, "something that is no directory has its name"));
            }
            Some(_) => rustix::fs::unlinkat(fd, name, rustix::fs::AtFlags::empty())
                .map_err(|e| failed("remove what has its name", e))?,
            None => {}
        }
        rustix::fs::mkdirat(fd, name, DIR_MODE).map_err(|e| failed("make the directory", e))
    }

    /// What to do with an entry that is no directory, from what has its name now.
    fn decide(&mut self, entry: &Entry) -> Result<Decision> {
        let overwrite = self.options.overwrite;
        let replace = if overwrite == Overwrite::Never { Replace::Never } else { Replace::Any };
        let (dir, name) = path::split(&entry.path);
        self.parent(&entry.path)?;
        // In a directory this run made there is nothing.
        let may_exist = dir.is_empty() || self.existed.contains(dir);
        let fd = self.parent(&entry.path)?;
        if !may_exist {
            return Ok(Decision::Write(replace));
        }
        let Some(stat) = target::stat(fd.as_fd(), name).map_err(|e| failed("stat what has its name", e))? else {
            return Ok(Decision::Write(replace));
        };
        match overwrite {
            Overwrite::Never => return Ok(Decision::Keep),
            Overwrite::Always => return Ok(Decision::Write(replace)),
            Overwrite::IfChanged => {}
        }
        if !is_same(fd, name, entry, &stat) {
            return Ok(Decision::Write(replace));
        }
        let inode = target::open_inode(fd.as_fd(), name).map_err(|e| failed("open what has its name", e))?;
        let stat = rustix::fs::fstat(&inode).map_err(|e| failed("stat what has its name", e))?;
        let same_time = mtime(&stat) == (entry.mtime.sec, u64::from(entry.mtime.nsec));
        if same_time && self.shared.policy.agrees(&Inode::Named(inode.as_fd()), entry, &stat) {
            return Ok(Decision::Keep);
        }
        // Another name of this inode may lie outside: it keeps its metadata, we make an inode of our own.
        Ok(if stat.st_nlink > 1 { Decision::Write(replace) } else { Decision::Fix(stat) })
    }

    fn fix(&mut self, entry: &Entry, before: &Stat) -> Result<()> {
        let name = path::split(&entry.path).1;
        let policy = self.shared.policy;
        let fd = self.parent(&entry.path)?;
        let inode = target::open_inode(fd.as_fd(), name).map_err(|e| failed("open what has its name", e))?;
        let stat = rustix::fs::fstat(&inode).map_err(|e| failed("stat what has its name", e))?;
        if (stat.st_dev, stat.st_ino, stat.st_nlink) != (before.st_dev, before.st_ino, before.st_nlink) {
            return Err(Error::new(Kind::Other, "what has its name changed meanwhile"));
        }
        let left = policy.apply_any(&Inode::Named(inode.as_fd()), entry, &stat)?;
        self.shared.outcome().left(left);
        self.kept(entry);
        Ok(())
    }

    /// Makes an empty file, a hole, a link, a device, a FIFO or a socket.
    fn without_content(&mut self, entry: &Entry, replace: Replace) -> Result<()> {
        self.shared.monitor.advance(1, 0, &entry.path);
        if entry.kind == EntryKind::File {
            let left = Writer::new(self.shared).place(entry, replace, &mut |_| Ok(()))?;
            self.shared.written(entry, left);
            return Ok(());
        }
        let shared = self.shared;
        let fd = self.parent(&entry.path)?;
        let make = |name: &[u8]| make_special(fd, name, entry);
        let mut finish = |inode: std::os::fd::BorrowedFd<'_>| {
            let stat = rustix::fs::fstat(inode).map_err(|e| failed("stat it", e))?;
            let left = shared.policy.apply_any(&Inode::Named(inode), entry, &stat)?;
            shared.outcome().left(left);
            Ok(())
        };
        let name = path::split(&entry.path).1;
        shared.target.special(fd.as_fd(), name, replace, &make, &mut finish)?.map_err(|e| failed("make it", e))?;
        shared.outcome().others += 1;
        Ok(())
    }

    /// Sets the metadata of directories, those below before those above.
    fn directories(&mut self) -> Result<()> {
        let (chain, taken) = (self.shared.chain, &self.options.taken);
        for top in taken.tops.iter().rev() {
            let own = chain.lookup(top).transpose();
            for row in chain.subtree_reversed(top).chain(own) {
                content::check_interrupted(self.shared.monitor)?;
                // What cannot be read was told by the first pass.
                let Ok(Row { entry, .. }) = row else { continue };
                let untouched = self.options.overwrite == Overwrite::Never
                    && self.existed.contains(&entry.path)
                    && !self.half_made.contains(&entry.path);
                if entry.is_dir() && taken.wants(&entry.path, true) && !untouched {
                    self.directory_metadata(&entry);
                }
            }
        }
        let mut implied: Vec<Vec<u8>> = self.implied.drain().collect();
        implied.sort_by(|a, b| path::cmp_rows(b, a));
        for dir in implied {
            let above_all = !self.options.taken.wants_anywhere(&dir, true);
            if above_all && let Some(row) = chain.lookup(&dir)?.filter(|row| row.entry.is_dir()) {
                self.directory_metadata(&row.entry);
            }
        }
        Ok(())
    }

    fn directory_metadata(&self, entry: &Entry) {
        if self.blocked.contains(&entry.path) {
            return;
        }
        let set = || -> Result<()> {
            let fd = self.shared.target.dir_readable(&entry.path).map_err(|e| failed("open the directory", e))?;
            let stat = rustix::fs::fstat(&fd).map_err(|e| failed("stat the directory", e))?;
            let left = self.shared.policy.apply_any(&Inode::File(fd.as_fd()), entry, &stat)?;
            self.shared.outcome().left(left);
            Ok(())
        };
        if let Err(e) = set() {
            self.shared.fault(entry, e);
        }
    }
}

/// A file that has no data in the snapshot, because none of it could be read.
fn is_absent(entry: &Entry) -> bool {
    entry.kind == EntryKind::File && entry.status.has(Status::UNREADABLE)
}

fn mtime(stat: &Stat) -> (i64, u64) {
    (stat.st_mtime, stat.st_mtime_nsec)
}

fn is_kind(entry: &Entry, stat: &Stat) -> bool {
    let wanted = match entry.kind {
        EntryKind::File | EntryKind::HardLink => FileType::RegularFile,
        EntryKind::Dir => FileType::Directory,
        EntryKind::Symlink => FileType::Symlink,
        EntryKind::CharDevice => FileType::CharacterDevice,
        EntryKind::BlockDevice => FileType::BlockDevice,
        EntryKind::Fifo => FileType::Fifo,
        EntryKind::Socket => FileType::Socket,
        EntryKind::Removed => return false,
    };
    FileType::from_raw_mode(stat.st_mode) == wanted
}

fn same_size_and_time(entry: &Entry, stat: &Stat) -> bool {
    u64::try_from(stat.st_size) == Ok(entry.size) && mtime(stat) == (entry.mtime.sec, u64::from(entry.mtime.nsec))
}

/// Whether what has the name is what would be written, as far as type, size, time and target tell.
fn is_same(fd: &OwnedFd, name: &[u8], entry: &Entry, stat: &Stat) -> bool {
    is_kind(entry, stat)
        && match entry.kind {
            EntryKind::File => same_size_and_time(entry, stat),
            EntryKind::Symlink => {
                rustix::fs::readlinkat(fd, name, Vec::new()).is_ok_and(|link| link.to_bytes() == entry.link)
            }
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == entry.rdev
            }
            _ => true,
        }
}

fn make_special(dir: &OwnedFd, name: &[u8], entry: &Entry) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(0o600);
    let (kind, device) = match entry.kind {
        EntryKind::Symlink => return rustix::fs::symlinkat(entry.link.as_slice(), dir, name),
        EntryKind::CharDevice => (FileType::CharacterDevice, rustix::fs::makedev(entry.rdev.0, entry.rdev.1)),
        EntryKind::BlockDevice => (FileType::BlockDevice, rustix::fs::makedev(entry.rdev.0, entry.rdev.1)),
        EntryKind::Fifo => (FileType::Fifo, 0),
        EntryKind::Socket => (FileType::Socket, 0),
        _ => return Err(Errno::INVAL),
    };
    rustix::fs::mknodat(dir, name, kind, mode, device)
}
