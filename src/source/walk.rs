//! The walk: every directory opened relative to the one above it, never through a symbolic link.
//!
//! Order: a directory's entries by name, then each of its subdirectories in the same way. Memory: the names of the
//! directories on the way down, and 80 bytes for each subdirectory still to visit. There is no recursion, and descriptors are bounded:
//! of a deep path only the lowest levels stay open, the others are opened again from below through `..` and compared.
//! Of an increment, with more than one thread, [`ahead`](super::ahead) looks at the directories that come next; what is told, and in
//! which order, stays the same.

use std::{
    cmp::Reverse,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, Stat},
    io::Errno,
};

use super::{
    ahead::{Ahead, Task, WINDOW},
    listing::{FileKind, Listing},
    look::{DIR_FLAGS, Found, Look, look, set_name},
    meta::{self, FileSystems},
    roots::{Node, Roots},
    select::Selection,
};
use crate::{
    error::{Error, Result},
    model::{
        entry::{Entry, EntryKind, Status, Xattr},
        time::Time,
    },
};

/// What is said of a name that was there a moment ago.
pub const VANISHED: &str = "vanished";
/// Directory descriptors kept open on the way down.
const OPEN_MAX: usize = 64;
/// More threads than this find nothing to do.
const AHEAD_THREADS_MAX: usize = 4;

/// What the walk finds, told in order.
pub trait Visitor {
    /// A directory is entered, all its names are known: its entries follow.
    fn enter(&mut self, names: Names<'_>) -> Result<()>;
    /// The turn of the `n`-th name has come; false leaves it out.
    fn begins(&mut self, n: usize, name: &[u8]) -> Result<bool>;
    /// All that was there under the `n`-th name has been told.
    fn ends(&mut self, path: &[u8]) -> Result<()>;
    /// All names of the directory have been told; its subdirectories follow.
    fn listed(&mut self) -> Result<()>;
    /// The entry of a directory, in its place among its siblings. Answers with whether it was told as new or changed.
    fn directory(&mut self, dir: Entry) -> Result<bool>;
    /// A name that is, or may be, no directory. Answers with its stat when it turned out to be one.
    fn leaf(&mut self, leaf: Leaf<'_>) -> Result<Option<Stat>>;
    /// What there is under the name whose turn it is could not be looked at: nothing is said of it.
    fn unseen(&mut self);
    /// Something the user should know of a path.
    fn warn(&mut self, path: &[u8], what: &str);
    /// The snapshot is not what was there: what is wrong with a path.
    fn incomplete(&mut self, path: &[u8], why: &str);
    /// Asked once for each directory: an error ends the walk.
    fn go_on(&self) -> Result<()>;
    /// Whether most names are only looked at. Then looking ahead pays; what opens and reads all it meets is not held up by the walk.
    fn looks_first(&self) -> bool;
}

/// A directory that is entered, and the names in it.
pub struct Names<'a> {
    /// Its path.
    pub path: &'a [u8],
    /// Its entry; none for a root that is only on the way to the sources.
    pub entry: Option<&'a Entry>,
    /// Whether it was told as new or changed.
    pub told: bool,
    /// The directory, when it can be read and is to be.
    pub dir: Option<BorrowedFd<'a>>,
    /// The names in it, sorted.
    pub listing: &'a Listing,
    /// Whether there may be more names, as not all could be read: what is not among them need not be gone.
    pub is_cut: bool,
    /// What each of them is, when they were looked at already; else empty.
    pub stats: &'a [rustix::io::Result<Stat>],
    /// File systems met so far.
    pub systems: &'a mut FileSystems,
}

/// A name in an open directory.
pub struct Leaf<'a> {
    /// The directory.
    pub dir: BorrowedFd<'a>,
    /// The name in it.
    pub name: &'a [u8],
    /// Its path in the snapshot.
    pub path: &'a [u8],
    /// What the directory says it is.
    pub kind: FileKind,
    /// File systems met so far.
    pub systems: &'a mut FileSystems,
}

/// A subdirectory still to visit.
struct Pending {
    name: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    /// As the entry has them: the member's header follows from it, whatever happens to the directory meanwhile.
    xattrs: Box<[Xattr]>,
    /// The device of the source it belongs to.
    source_dev: u64,
    skip: bool,
    /// It could not be opened.
    unread: bool,
    /// It is only on the way to a source, though all around it belongs to another.
    passing: bool,
    told: bool,
}

struct Level<'n> {
    fd: Option<Arc<OwnedFd>>,
    dev: u64,
    ino: u64,
    path_len: usize,
    /// Reversed: the next one is last.
    pending: Vec<Pending>,
    /// So many of them, the last ones left out, are not asked for ahead yet.
    unasked: usize,
    /// The device of the source it belongs to.
    source_dev: u64,
    /// When it is only on the way to sources: these.
    node: Option<&'n Node>,
    /// The same, also where it belongs to a source itself: those below it are sources of their own.
    within: Option<&'n Node>,
}

/// A walk over sources.
pub struct Walk<'a> {
    roots: &'a Roots,
    selection: &'a Selection,
    /// A directory that is never entered: the volume itself (device, inode).
    volume: Option<(u64, u64)>,
    systems: FileSystems,
    path: Vec<u8>,
    levels: Vec<Level<'a>>,
    threads: usize,
}

impl<'a> Walk<'a> {
    /// A walk over `roots`, leaving out what `selection` says and the directory `volume` (device and inode). More than one thread may be used.
    pub fn new(roots: &'a Roots, selection: &'a Selection, volume: Option<(u64, u64)>, threads: usize) -> Self {
        Self {
            roots,
            selection,
            volume,
            threads,
            systems: FileSystems::default(),
            path: Vec::new(),
            levels: Vec::new(),
        }
    }

    /// Walks to the end.
    pub fn run(self, visitor: &mut impl Visitor) -> Result<()> {
        if self.threads < 2 || !visitor.looks_first() {
            return self.walk(visitor, None);
        }
        let ahead = Ahead::new(self.selection);
        std::thread::scope(|scope| {
            let _closing = ahead.closing();
            for _ in 1..self.threads.min(AHEAD_THREADS_MAX) {
                scope.spawn(|| ahead.work());
            }
            self.walk(visitor, Some(&ahead))
        })
    }

    fn walk(mut self, visitor: &mut impl Visitor, ahead: Option<&Ahead<'_>>) -> Result<()> {
        let base = &self.roots.base;
        let failed = |e| Error::io(format!("cannot open {}", base.display()), e);
        let fd = rustix::fs::openat(CWD, base, DIR_FLAGS, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let mut entry = None;
        if self.roots.tree.whole {
            entry = self.dir_entry(fd.as_fd(), &stat, visitor);
        }
        let told = match &entry {
            Some(entry) => visitor.directory(entry.clone())?,
            None => false,
        };
        let tree = &self.roots.tree;
        let node = Some(tree).filter(|node| !node.whole);
        let found = self.found(fd.as_fd(), node);
        self.list((fd, &stat, found), (entry.as_ref(), told), (node, Some(tree), stat.st_dev), visitor)?;
        while let Some(level) = self.levels.last_mut() {
            match level.pending.pop() {
                Some(pending) => self.descend(pending, visitor, ahead)?,
                None => self.leave(visitor),
            }
        }
        Ok(())
    }

    /// The entry of an open directory, with its attributes.
    fn dir_entry(&mut self, fd: BorrowedFd<'_>, stat: &Stat, visitor: &mut impl Visitor) -> Option<Entry> {
        let fsid = self.systems.fsid(stat.st_dev, fd);
        let mut entry = meta::entry(&self.path, stat, fsid)?;
        match self.systems.xattrs(stat.st_dev, fd) {
            Ok(xattrs) => entry.xattrs = xattrs,
            Err(e) => {
                entry.status = entry.status.with(Status::XATTRS);
                visitor.incomplete(&self.path, &format!("cannot read its attributes: {e}"));
            }
        }
        Some(entry)
    }

    /// The names of an open directory; just those of `node` when it is only on the way to sources.
    fn found(&self, dir: BorrowedFd<'_>, node: Option<&Node>) -> Found {
        match node {
            Some(node) => Found::chosen(Listing::of(node.children.keys().map(Vec::as_slice)), &self.path, |_, _| true),
            None => Found::read(dir, &self.path, self.selection, usize::MAX).unwrap_or_default(),
        }
    }

    /// Tells all entries of a directory and keeps its subdirectories for later.
    fn list(
        &mut self,
        (fd, stat, found): (OwnedFd, &Stat, Found),
        (entry, told): (Option<&Entry>, bool),
        (node, within, source_dev): (Option<&'a Node>, Option<&'a Node>, u64),
        visitor: &mut impl Visitor,
    ) -> Result<()> {
        visitor.go_on()?;
        let Found { listing, lost, is_cut, stats } = found;
        lost.iter().for_each(|(path, why)| visitor.incomplete(path, why));
        let mut level = Level {
            fd: None,
            dev: stat.st_dev,
            ino: stat.st_ino,
            path_len: self.path.len(),
            pending: Vec::new(),
            unasked: 0,
            source_dev,
            node,
            within,
        };
        let systems = &mut self.systems;
        let (path, dir) = (&self.path[..], Some(fd.as_fd()));
        visitor.enter(Names { path, entry, told, dir, listing: &listing, is_cut, stats: &stats, systems })?;
        drop(stats);
        for n in 0..listing.len() {
            let (name, kind) = listing.get(n);
            if !visitor.begins(n, name)? {
                continue;
            }
            set_name(&mut self.path, level.path_len, name);
            let pending = self.child(fd.as_fd(), (name, kind), &level, visitor)?;
            level.pending.extend(pending);
            visitor.ends(&self.path)?;
        }
        visitor.listed()?;
        level.pending.reverse();
        level.pending.shrink_to_fit();
        level.unasked = level.pending.len();
        self.path.truncate(level.path_len);
        level.fd = Some(Arc::new(fd));
        self.levels.push(level);
        if let Some(above) = self.levels.len().checked_sub(OPEN_MAX + 1) {
            self.levels[above].fd = None;
        }
        Ok(())
    }

    fn child(
        &mut self,
        dir: BorrowedFd<'_>,
        (name, kind): (&[u8], FileKind),
        level: &Level<'_>,
        visitor: &mut impl Visitor,
    ) -> Result<Option<Pending>> {
        let within = level.within.and_then(|node| node.children.get(name));
        let is_source = within.is_some_and(|node| node.whole);
        // A source, or on the way to one.
        let named = level.node.is_some() || is_source;
        if kind != FileKind::Dir {
            let leaf = Leaf { dir, name, path: &self.path, kind, systems: &mut self.systems };
            if visitor.leaf(leaf)?.is_none() {
                return Ok(None);
            }
            if !named && self.selection.exclude.matches(&self.path, true) {
                return Ok(None);
            }
        }
        let fd = rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty());
        let stat = match &fd {
            Ok(fd) => rustix::fs::fstat(fd),
            Err(_) => rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW),
        };
        let entry = match (&fd, &stat) {
            (Ok(fd), Ok(stat)) => self.dir_entry(fd.as_fd(), stat, visitor),
            (Err(Errno::NOENT), _) | (_, Err(Errno::NOENT)) => {
                match named {
                    true => visitor.incomplete(&self.path, VANISHED),
                    false => visitor.warn(&self.path, VANISHED),
                }
                return Ok(None);
            }
            (_, Err(e)) => {
                visitor.incomplete(&self.path, &format!("cannot look at it: {e}"));
                visitor.unseen();
                return Ok(None);
            }
            (Err(Errno::NOTDIR | Errno::LOOP), Ok(_)) if kind == FileKind::Dir => {
                // It was a directory when its name was read.
                let leaf = Leaf { dir, name, path: &self.path, kind: FileKind::Other, systems: &mut self.systems };
                visitor.leaf(leaf)?;
                return Ok(None);
            }
            (Err(e), Ok(stat)) => {
                visitor.incomplete(&self.path, &format!("cannot open it: {e}"));
                meta::entry(&self.path, stat, 0).filter(Entry::is_dir).map(|mut entry| {
                    entry.status = Status::UNREADABLE;
                    entry
                })
            }
        };
        let (Some(entry), Ok(stat)) = (entry, stat) else { return Ok(None) };
        let source_dev = if named { stat.st_dev } else { level.source_dev };
        let is_volume = self.volume == Some((stat.st_dev, stat.st_ino));
        if is_volume {
            visitor.warn(&self.path, "is the volume itself and is stored empty");
        }
        let is_other = self.selection.one_file_system && stat.st_dev != source_dev;
        let (unread, passing) = (fd.is_err(), is_other && within.is_some());
        let skip = is_volume || unread || is_other && !passing;
        let Entry { mode, uid, gid, mtime, .. } = entry;
        let xattrs = entry.xattrs.clone().into_boxed_slice();
        let told = visitor.directory(entry)?;
        let name = name.to_vec();
        Ok(Some(Pending { name, mode, uid, gid, mtime, xattrs, source_dev, skip, unread, passing, told }))
    }

    fn descend(&mut self, pending: Pending, visitor: &mut impl Visitor, ahead: Option<&Ahead<'_>>) -> Result<()> {
        let Some(path_len) = self.levels.last().map(|level| level.path_len) else { return Ok(()) };
        set_name(&mut self.path, path_len, &pending.name);
        let Some(level) = self.levels.last() else { return Ok(()) };
        let within = level.within.and_then(|node| node.children.get(&pending.name));
        let on_the_way = within.filter(|node| !node.whole);
        let mut node = on_the_way.filter(|_| level.node.is_some() || pending.passing);
        let mut entry = Entry::new(self.path.clone(), EntryKind::Dir);
        (entry.mode, entry.uid, entry.gid, entry.mtime) = (pending.mode, pending.uid, pending.gid, pending.mtime);
        entry.xattrs = pending.xattrs.to_vec();
        // Where the directory above was moved away, nothing below it is known.
        let mut is_cut = pending.unread || level.fd.is_none();
        let look = (!pending.skip).then(|| self.looked(&pending, node, ahead));
        match look {
            None => {}
            Some(Ok(mut look)) => {
                let below = within.filter(|node| !node.children.is_empty());
                if look.names.is_none() && below.is_some() {
                    // What is not wanted here are all names but those of sources.
                    node = below;
                    look.names = Some(self.found(look.fd.as_fd(), node));
                }
                if let Some(found) = look.names {
                    let nodes = (node, within, pending.source_dev);
                    return self.list((look.fd, &look.stat, found), (Some(&entry), pending.told), nodes, visitor);
                }
            }
            Some(Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR)) => {
                visitor.warn(&self.path, VANISHED);
            }
            Some(Err(e)) => {
                is_cut = true;
                visitor.incomplete(&self.path, &format!("cannot open it: {e}"));
            }
        }
        let (listing, systems) = (Listing::default(), &mut self.systems);
        let (path, entry, told) = (&self.path[..], Some(&entry), pending.told);
        visitor.enter(Names { path, entry, told, dir: None, listing: &listing, is_cut, stats: &[], systems })?;
        visitor.listed()?;
        self.path.truncate(path_len);
        Ok(())
    }

    /// A look at the directory that is next, at the end of the path.
    fn looked(
        &mut self,
        pending: &Pending,
        node: Option<&Node>,
        ahead: Option<&Ahead<'_>>,
    ) -> rustix::io::Result<Look> {
        if let Some(ahead) = ahead {
            self.ask(ahead);
        }
        let depth = self.levels.len();
        let Some(level) = self.levels.last() else { return Err(Errno::NOENT) };
        let Some(parent) = &level.fd else { return Err(Errno::NOENT) };
        if node.is_some() {
            let fd = rustix::fs::openat(parent, &pending.name[..], DIR_FLAGS, Mode::empty())?;
            let stat = rustix::fs::fstat(&fd)?;
            // Whatever marks it, sources below it are wanted.
            let names = Some(self.found(fd.as_fd(), node));
            return Ok(Look { fd, stat, names });
        }
        let turn = (Reverse(depth), usize::MAX - level.pending.len());
        if let Some(look) = ahead.and_then(|ahead| ahead.take(turn)) {
            return look;
        }
        let of = (parent.as_fd(), &pending.name[..], &self.path[..]);
        // There is no limit, so there is always an answer.
        look(of, self.selection, usize::MAX)?.ok_or(Errno::NOENT)
    }

    /// Asks for looks at the directories that come after the next one.
    fn ask(&mut self, ahead: &Ahead<'_>) {
        let depth = self.levels.len();
        let (path, Some(level)) = (&self.path, self.levels.last_mut()) else { return };
        let Some(parent) = &level.fd else { return };
        let waiting = level.pending.len();
        let until = waiting.saturating_sub(WINDOW);
        let (from, node) = (level.unasked.min(waiting), level.node);
        // Many at a time, so that no thread is woken for each of them.
        if from - until.min(from) < WINDOW.min(waiting).div_ceil(2) || node.is_some() {
            return;
        }
        let tasks = (until..from)
            .rev()
            .map(|n| (n, &level.pending[n]))
            .filter(|(_, pending)| !pending.skip && !pending.passing);
        ahead.ask(tasks.map(|(n, pending)| {
            let mut path = path[..level.path_len].to_vec();
            set_name(&mut path, level.path_len, &pending.name);
            let task = Task { parent: Arc::clone(parent), name: pending.name.clone(), path };
            ((Reverse(depth), usize::MAX - n), task)
        }));
        level.unasked = until;
    }

    /// Back to the directory above; opens it again when it was closed on the way down.
    fn leave(&mut self, visitor: &mut impl Visitor) {
        let (left, above) = (self.levels.pop(), self.levels.last_mut());
        let (Some(left), Some(above)) = (left, above) else { return };
        self.path.truncate(above.path_len);
        if above.fd.is_some() {
            return;
        }
        let again = left.fd.and_then(|fd| rustix::fs::openat(&fd, "..", DIR_FLAGS, Mode::empty()).ok());
        let again = again
            .filter(|fd| rustix::fs::fstat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (above.dev, above.ino)));
        above.fd = again.map(Arc::new);
        if above.fd.is_none() && !above.pending.is_empty() {
            visitor.incomplete(&self.path, "was moved while it was read");
        }
    }
}
