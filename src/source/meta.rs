//! From descriptors to entries: stat, extended attributes, sparse runs, the id of a file system.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, SeekFrom, Stat},
    io::Errno,
};

use crate::{
    format::tar::SPARSE_RUN_COUNT_MAX,
    model::{
        entry::{Entry, EntryKind, Run, Xattr},
        time::Time,
    },
};

/// The extended attributes of one entry are together at most this long, so that index blocks stay small, bytes.
const XATTRS_LEN_MAX: usize = 1 << 20;

/// What is known of each file system met, so that it is asked once.
#[derive(Default)]
pub struct FileSystems {
    known: HashMap<u64, FileSystem>,
}

#[derive(Clone, Copy)]
struct FileSystem {
    fsid: u64,
    has_xattrs: bool,
}

impl FileSystems {
    fn of(&mut self, dev: u64, fd: impl AsFd) -> &mut FileSystem {
        self.known.entry(dev).or_insert_with(|| FileSystem {
            // Without an id of its own a file system is known by its device number.
            fsid: rustix::fs::fstatvfs(fd).ok().map(|stat| stat.f_fsid).filter(|&id| id != 0).unwrap_or(dev),
            has_xattrs: true,
        })
    }

    /// The id of the file system that holds `fd`.
    pub fn fsid(&mut self, dev: u64, fd: impl AsFd) -> u64 {
        self.of(dev, fd).fsid
    }

    /// The id of the file system that holds what `name` in `dir` is, of device `dev`; that may be mounted there.
    pub fn fsid_at(&mut self, dev: u64, dir: BorrowedFd<'_>, name: &[u8]) -> u64 {
        if let Some(system) = self.known.get(&dev) {
            return system.fsid;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(fd) if rustix::fs::fstat(&fd).is_ok_and(|stat| stat.st_dev == dev) => self.fsid(dev, fd),
            // It is another thing by now: what comes next of this device is asked.
            _ => dev,
        }
    }

    /// The id of a file system that was met before.
    pub fn known_fsid(&self, dev: u64) -> Option<u64> {
        self.known.get(&dev).map(|system| system.fsid)
    }

    /// The extended attributes of `fd`, sorted by name.
    pub fn xattrs(&mut self, dev: u64, fd: impl AsFd) -> rustix::io::Result<Vec<Xattr>> {
        let system = self.of(dev, &fd);
        if !system.has_xattrs {
            return Ok(Vec::new());
        }
        match xattrs_of(fd) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                system.has_xattrs = false;
                Ok(Vec::new())
            }
            other => other,
        }
    }
}

fn xattrs_of(fd: impl AsFd) -> rustix::io::Result<Vec<Xattr>> {
    // Most files have none, and most others fit: one call.
    let mut small = [0u8; 512];
    let list = match rustix::fs::flistxattr(&fd, &mut small) {
        Ok(0) => return Ok(Vec::new()),
        Ok(len) => small[..len].to_vec(),
        Err(Errno::RANGE) => {
            let mut large = vec![0u8; 64 << 10];
            let len = rustix::fs::flistxattr(&fd, &mut large)?;
            large.truncate(len);
            large
        }
        Err(e) => return Err(e),
    };
    read_values(&list, |name, value| rustix::fs::fgetxattr(&fd, name, value))
}

/// The extended attributes of what `path` names (a symbolic link, a device): by path below `/proc/self/fd`.
pub fn xattrs_at(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<Vec<Xattr>> {
    use std::os::{fd::AsRawFd, unix::ffi::OsStrExt};
    let dir = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd());
    let path = [dir.as_bytes(), name].concat();
    let path = std::ffi::OsStr::from_bytes(&path);
    let mut list = vec![0u8; 64 << 10];
    match rustix::fs::llistxattr(path, &mut list) {
        Ok(len) => list.truncate(len),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => list.clear(),
        Err(e) => return Err(e),
    }
    read_values(&list, |name, value| rustix::fs::lgetxattr(path, name, value))
}

fn read_values(
    list: &[u8],
    get: impl Fn(&std::ffi::OsStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<Xattr>> {
    use std::os::unix::ffi::OsStrExt;
    let mut xattrs: Vec<Xattr> = Vec::new();
    let mut weight = 0;
    let mut value = vec![0u8; 64 << 10];
    for name in list.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        match get(std::ffi::OsStr::from_bytes(name), &mut value) {
            Ok(len) => {
                weight += name.len() + len;
                if weight > XATTRS_LEN_MAX {
                    return Err(Errno::TOOBIG);
                }
                xattrs.push((name.to_vec(), value[..len].to_vec()));
            }
            // Gone meanwhile, or one that only its owner may read (trusted.*).
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// The kind of entry a mode says.
pub fn kind(mode: u32) -> Option<EntryKind> {
    Some(match FileType::from_raw_mode(mode) {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Dir,
        FileType::Symlink => EntryKind::Symlink,
        FileType::CharacterDevice => EntryKind::CharDevice,
        FileType::BlockDevice => EntryKind::BlockDevice,
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::Unknown => return None,
    })
}

/// The entry at `path` as `stat` tells it; attributes, link, runs and data are the caller's.
pub fn entry(path: &[u8], stat: &Stat, fsid: u64) -> Option<Entry> {
    let mut entry = Entry::new(path, kind(stat.st_mode)?);
    entry.mode = stat.st_mode & 0o7777;
    entry.uid = stat.st_uid;
    entry.gid = stat.st_gid;
    entry.mtime = time(stat.st_mtime, stat.st_mtime_nsec);
    entry.ctime = time(stat.st_ctime, stat.st_ctime_nsec);
    entry.ino = stat.st_ino;
    entry.fsid = fsid;
    entry.nlink = u32::try_from(stat.st_nlink).unwrap_or(u32::MAX);
    if matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
        entry.rdev = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    }
    if entry.kind == EntryKind::File {
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        entry.stored_len = entry.size;
    }
    Some(entry)
}

fn time(sec: i64, nsec: u64) -> Time {
    Time { sec, nsec: u32::try_from(nsec).unwrap_or(0).min(999_999_999) }
}

/// The runs of a file that hold data, when holes make it sparse; `None` when it has no hole.
/// With too many runs, small holes become data, so that at most [`SPARSE_RUN_COUNT_MAX`] remain.
pub fn sparse_runs(fd: impl AsFd, size: u64) -> rustix::io::Result<Option<Vec<Run>>> {
    let mut hole_len_min = 1;
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&fd, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            // A file system that cannot say: no hole.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(e) => return Err(e),
        };
        let end = rustix::fs::seek(&fd, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            break;
        }
        match runs.last_mut() {
            Some(last) if start - last.end() < hole_len_min => last.len = end - last.offset,
            _ => runs.push(Run { offset: start, len: end - start }),
        }
        while runs.len() > SPARSE_RUN_COUNT_MAX {
            hole_len_min = hole_len_min.max(2048) * 2;
            runs = merged(&runs, hole_len_min);
        }
        at = end;
    }
    rustix::fs::seek(&fd, SeekFrom::Start(0))?;
    let whole = runs.len() == 1 && runs[0] == Run { offset: 0, len: size };
    Ok((!whole && size > 0).then_some(runs))
}

fn merged(runs: &[Run], hole_len_min: u64) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for run in runs {
        match out.last_mut() {
            Some(last) if run.offset - last.end() < hole_len_min => last.len = run.end() - last.offset,
            _ => out.push(*run),
        }
    }
    out
}
