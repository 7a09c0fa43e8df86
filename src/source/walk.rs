//! The walk: every directory opened relative to the one above it, never through a symbolic link.
//!
//! Order: a directory's entries by name, then each of its subdirectories in the same way. Memory: the names of the
//! directories on the way down, and 56 bytes for each subdirectory still to visit. There is no recursion, and descriptors are bounded:
//! of a deep path only the lowest levels stay open, the others are opened again from below through `..` and compared.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, Stat},
    io::Errno,
};

use super::{
    listing::{FileKind, Listing},
    meta::{self, FileSystems},
    roots::{Node, Roots},
    select::{CACHEDIR_SIGNATURE, Selection},
};
use crate::{
    error::{Error, Result},
    model::{
        entry::{Entry, EntryKind, Status},
        path::PATH_LEN_MAX,
        show,
        time::Time,
    },
};

/// Directory descriptors kept open on the way down.
const OPEN_MAX: usize = 64;
const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

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
    /// Something the user should know; `incomplete` when the snapshot is not what was there.
    fn warn(&mut self, text: String, incomplete: bool);
    /// Asked once for each directory: an error ends the walk.
    fn go_on(&self) -> Result<()>;
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
    skip: bool,
    told: bool,
}

struct Level<'n> {
    fd: Option<OwnedFd>,
    dev: u64,
    ino: u64,
    path_len: usize,
    /// Reversed: the next one is last.
    pending: Vec<Pending>,
    node: Option<&'n Node>,
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
    source_dev: u64,
}

impl<'a> Walk<'a> {
    /// A walk over `roots`, leaving out what `selection` says and the directory `volume` (device and inode).
    pub fn new(roots: &'a Roots, selection: &'a Selection, volume: Option<(u64, u64)>) -> Self {
        Self {
            roots,
            selection,
            volume,
            systems: FileSystems::default(),
            path: Vec::new(),
            levels: Vec::new(),
            source_dev: 0,
        }
    }

    /// Walks to the end.
    pub fn run(mut self, visitor: &mut impl Visitor) -> Result<()> {
        let base = &self.roots.base;
        let failed = |e| Error::io(format!("cannot open {}", base.display()), e);
        let fd = rustix::fs::openat(CWD, base, DIR_FLAGS, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        self.source_dev = stat.st_dev;
        let mut entry = None;
        if self.roots.tree.whole {
            entry = self.dir_entry(fd.as_fd(), &stat, visitor);
        }
        let told = match &entry {
            Some(entry) => visitor.directory(entry.clone())?,
            None => false,
        };
        self.list((fd, &stat), (entry.as_ref(), told), Some(&self.roots.tree), visitor)?;
        while let Some(level) = self.levels.last_mut() {
            match level.pending.pop() {
                Some(pending) => self.descend(pending, visitor)?,
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
                visitor.warn(format!("cannot read the attributes of {}: {e}", show::name(&self.path)), true);
            }
        }
        Some(entry)
    }

    /// Tells all entries of a directory and keeps its subdirectories for later.
    fn list(
        &mut self,
        (fd, stat): (OwnedFd, &Stat),
        (entry, told): (Option<&Entry>, bool),
        node: Option<&'a Node>,
        visitor: &mut impl Visitor,
    ) -> Result<()> {
        visitor.go_on()?;
        let partial = node.filter(|node| !node.whole);
        let listing = match partial {
            Some(node) => Ok(Listing::of(node.children.keys().map(Vec::as_slice))),
            None => Listing::read(&fd),
        };
        let mut listing = listing.unwrap_or_else(|e| {
            visitor.warn(format!("cannot list {}: {e}", show::name(&self.path)), true);
            Listing::default()
        });
        let mut level = Level {
            fd: None,
            dev: stat.st_dev,
            ino: stat.st_ino,
            path_len: self.path.len(),
            pending: Vec::new(),
            node: partial,
        };
        listing.retain(|name, kind| self.takes(level.path_len, name, kind, partial.is_some(), visitor));
        self.path.truncate(level.path_len);
        let systems = &mut self.systems;
        visitor.enter(Names { path: &self.path, entry, told, dir: Some(fd.as_fd()), listing: &listing, systems })?;
        for n in 0..listing.len() {
            let (name, kind) = listing.get(n);
            if !visitor.begins(n, name)? {
                continue;
            }
            self.set_name(level.path_len, name);
            let pending = self.child(fd.as_fd(), name, kind, partial.is_some(), visitor)?;
            level.pending.extend(pending);
            visitor.ends(&self.path)?;
        }
        visitor.listed()?;
        level.pending.reverse();
        level.pending.shrink_to_fit();
        self.path.truncate(level.path_len);
        level.fd = Some(fd);
        self.levels.push(level);
        if let Some(above) = self.levels.len().checked_sub(OPEN_MAX + 1) {
            self.levels[above].fd = None;
        }
        Ok(())
    }

    fn set_name(&mut self, dir_len: usize, name: &[u8]) {
        self.path.truncate(dir_len);
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }

    /// Whether a name is to be stored.
    fn takes(&mut self, dir_len: usize, name: &[u8], kind: FileKind, named: bool, visitor: &mut impl Visitor) -> bool {
        self.set_name(dir_len, name);
        if self.path.len() > PATH_LEN_MAX {
            visitor.warn(format!("the path is too long: {}", show::name(&self.path)), true);
            return false;
        }
        if self.path == crate::format::tar::PRIVATE_DIR {
            visitor.warn("`.bk` at the top is a name bk uses itself and is left out".to_owned(), true);
            return false;
        }
        let exclude = &self.selection.exclude;
        named || exclude.is_empty() || !exclude.matches(&self.path, kind == FileKind::Dir)
    }

    fn child(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        kind: FileKind,
        named: bool,
        visitor: &mut impl Visitor,
    ) -> Result<Option<Pending>> {
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
            (Err(Errno::NOENT), _) | (_, Err(_)) => {
                visitor.warn(format!("vanished: {}", show::name(&self.path)), named);
                return Ok(None);
            }
            (Err(Errno::NOTDIR | Errno::LOOP), Ok(_)) if kind == FileKind::Dir => {
                // It was a directory when its name was read.
                let leaf = Leaf { dir, name, path: &self.path, kind: FileKind::Other, systems: &mut self.systems };
                visitor.leaf(leaf)?;
                return Ok(None);
            }
            (Err(e), Ok(stat)) => {
                visitor.warn(format!("cannot open {}: {e}", show::name(&self.path)), true);
                meta::entry(&self.path, stat, 0).filter(Entry::is_dir).map(|mut entry| {
                    entry.status = Status::UNREADABLE;
                    entry
                })
            }
        };
        let (Some(entry), Ok(stat)) = (entry, stat) else { return Ok(None) };
        if named {
            self.source_dev = stat.st_dev;
        }
        let is_volume = self.volume == Some((stat.st_dev, stat.st_ino));
        if is_volume {
            visitor.warn(format!("{} is the volume itself and is stored empty", show::name(&self.path)), false);
        }
        let skip =
            is_volume || fd.is_err() || !named && self.selection.one_file_system && stat.st_dev != self.source_dev;
        let Entry { mode, uid, gid, mtime, .. } = entry;
        let told = visitor.directory(entry)?;
        Ok(Some(Pending { name: name.to_vec(), mode, uid, gid, mtime, skip, told }))
    }

    fn descend(&mut self, pending: Pending, visitor: &mut impl Visitor) -> Result<()> {
        let Some(path_len) = self.levels.last().map(|level| level.path_len) else { return Ok(()) };
        self.set_name(path_len, &pending.name);
        let Some(level) = self.levels.last() else { return Ok(()) };
        let node = level.node.and_then(|node| node.children.get(&pending.name)).filter(|node| !node.whole);
        let mut entry = Entry::new(self.path.clone(), EntryKind::Dir);
        (entry.mode, entry.uid, entry.gid, entry.mtime) = (pending.mode, pending.uid, pending.gid, pending.mtime);
        let opened = match &level.fd {
            Some(dir) => rustix::fs::openat(dir, &pending.name[..], DIR_FLAGS, Mode::empty()),
            None => Err(Errno::NOENT),
        };
        let opened = opened.and_then(|fd| Ok((rustix::fs::fstat(&fd)?, fd)));
        if let Ok((stat, fd)) = &opened {
            entry.xattrs = self.systems.xattrs(stat.st_dev, fd).unwrap_or_default();
        }
        match opened {
            _ if pending.skip => {}
            Ok((stat, fd)) if !self.is_marked(fd.as_fd()) => {
                return self.list((fd, &stat), (Some(&entry), pending.told), node, visitor);
            }
            Ok(_) => {}
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                visitor.warn(format!("vanished: {}", show::name(&self.path)), false);
            }
            Err(e) => visitor.warn(format!("cannot open {}: {e}", show::name(&self.path)), true),
        }
        let (listing, systems) = (Listing::default(), &mut self.systems);
        let names =
            Names { path: &self.path, entry: Some(&entry), told: pending.told, dir: None, listing: &listing, systems };
        visitor.enter(names)?;
        visitor.listed()?;
        self.path.truncate(path_len);
        Ok(())
    }

    /// Whether a marker file says that the directory's contents are not wanted.
    fn is_marked(&self, dir: BorrowedFd<'_>) -> bool {
        let present = |name: &String| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        self.selection.exclude_if_present.iter().any(present) || self.selection.exclude_caches && is_cache(dir)
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
        above.fd = again
            .filter(|fd| rustix::fs::fstat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (above.dev, above.ino)));
        if above.fd.is_none() && !above.pending.is_empty() {
            visitor.warn(format!("{} was moved while it was read", show::name(&self.path)), true);
        }
    }
}

fn is_cache(dir: BorrowedFd<'_>) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let Ok(fd) = rustix::fs::openat(dir, "CACHEDIR.TAG", flags, Mode::empty()) else { return false };
    let mut head = [0u8; CACHEDIR_SIGNATURE.len()];
    let len = rustix::io::read(&fd, &mut head).unwrap_or(0);
    &head[..len] == CACHEDIR_SIGNATURE
}
