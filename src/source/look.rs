//! A look at one directory: opened, its attributes, its marker files, its names, and what each of them is.
//!
//! It says nothing to anybody: what the user should know is kept for when the directory's turn comes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};

use super::{
    listing::{FileKind, Listing},
    select::{CACHEDIR_SIGNATURE, Selection},
};
use crate::model::path::PATH_LEN_MAX;

/// How directories are opened: never through a symbolic link.
pub const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open directory and what was seen of it.
pub struct Look {
    /// The directory.
    pub fd: OwnedFd,
    /// Its own stat.
    pub stat: Stat,
    /// What is in it; none when a marker file says that it is not wanted.
    pub names: Option<Found>,
}

/// The names in a directory.
#[derive(Default)]
pub struct Found {
    /// Those that are to be stored, sorted.
    pub listing: Listing,
    /// What is missing among them, in order.
    pub lost: Vec<(Vec<u8>, String)>,
    /// Whether there may be more names: reading them failed.
    pub is_cut: bool,
    /// For each of them what it is; empty when that was not asked for.
    pub stats: Vec<rustix::io::Result<Stat>>,
}

/// Opens the directory `name` in `parent`, which is `path` in the snapshot, and looks at its names: none when there are more than `names_max`.
pub fn look(
    (parent, name, path): (BorrowedFd<'_>, &[u8], &[u8]),
    selection: &Selection,
    names_max: usize,
) -> rustix::io::Result<Option<Look>> {
    let fd = rustix::fs::openat(parent, name, DIR_FLAGS, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    let mut names = None;
    if !is_marked(fd.as_fd(), selection) {
        let Some(found) = Found::read(fd.as_fd(), path, selection, names_max) else { return Ok(None) };
        names = Some(found);
    }
    Ok(Some(Look { fd, stat, names }))
}

impl Found {
    /// Reads all names of a directory that are to be stored; none when there are more than `max`.
    pub fn read(dir: BorrowedFd<'_>, path: &[u8], selection: &Selection, max: usize) -> Option<Self> {
        let (listing, read) = Listing::read_at_most(dir, max)?;
        let mut found = Self::chosen(listing, path, |path, kind| {
            selection.exclude.is_empty() || !selection.exclude.matches(path, kind == FileKind::Dir)
        });
        if let Err(e) = read {
            found.lost.push((path.to_vec(), format!("cannot list it: {e}")));
            found.is_cut = true;
        }
        Some(found)
    }

    /// The names of `listing` that can be stored and that `wanted` wants, by their path.
    pub fn chosen(mut listing: Listing, dir: &[u8], wanted: impl Fn(&[u8], FileKind) -> bool) -> Self {
        let mut lost = Vec::new();
        let mut path = dir.to_vec();
        for name in &listing.too_long {
            set_name(&mut path, dir.len(), name);
            lost.push((path.clone(), "the name is too long".to_owned()));
        }
        listing.retain(|name, kind| {
            set_name(&mut path, dir.len(), name);
            if path.len() > PATH_LEN_MAX {
                lost.push((path.clone(), "the path is too long".to_owned()));
                return false;
            }
            if path == crate::format::tar::PRIVATE_DIR {
                lost.push((path.clone(), "at the top is a name bk uses itself and is left out".to_owned()));
                return false;
            }
            wanted(&path, kind)
        });
        Self { listing, lost, is_cut: false, stats: Vec::new() }
    }

    /// Looks at each of the names.
    pub fn stat_all(&mut self, dir: BorrowedFd<'_>) {
        let stat = |n| rustix::fs::statat(dir, self.listing.get(n).0, AtFlags::SYMLINK_NOFOLLOW);
        self.stats = (0..self.listing.len()).map(stat).collect();
    }
}

/// Makes `path`, whose directory is its first `dir_len` bytes, that of `name` in it.
pub fn set_name(path: &mut Vec<u8>, dir_len: usize, name: &[u8]) {
    path.truncate(dir_len);
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Whether a marker file says that the directory's contents are not wanted.
pub fn is_marked(dir: BorrowedFd<'_>, selection: &Selection) -> bool {
    let present = |name: &String| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    selection.exclude_if_present.iter().any(present) || selection.exclude_caches && is_cache(dir)
}

fn is_cache(dir: BorrowedFd<'_>) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let Ok(fd) = rustix::fs::openat(dir, "CACHEDIR.TAG", flags, Mode::empty()) else { return false };
    let mut head = [0u8; CACHEDIR_SIGNATURE.len()];
    let len = rustix::io::read(&fd, &mut head).unwrap_or(0);
    &head[..len] == CACHEDIR_SIGNATURE
}
