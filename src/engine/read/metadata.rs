//! Owner, mode, attributes and time of a restored inode, always by descriptor.
//!
//! Order: attributes, owner, mode, access lists, capabilities, time. A change of owner clears setuid bits and
//! capabilities, a mode changes an access list's mask, and everything changes times.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::{
    fs::{AtFlags, CWD, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags},
    io::Errno,
};

use super::target::proc_path;
use crate::model::{
    entry::{Entry, EntryKind, Xattr},
    time::Time,
};

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
const SPECIAL_BITS: u32 = 0o7000;

/// How metadata is restored.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Leave out what could harm: owners, setuid bits, capabilities.
    pub safe: bool,
    /// The process is root: what cannot be set is a fault of the entry, not to be expected.
    pub root: bool,
    /// Bits the process's umask takes from new files.
    pub umask: u32,
}

/// What could not be set as it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// The owner is another one.
    pub owner: bool,
    /// Attributes are missing that only root may set.
    pub privileged: bool,
}

/// Why metadata could not be set: what was being done, and the answer.
#[derive(Debug)]
pub struct Failure(pub &'static str, pub Errno);

/// What is known of an inode that was just made.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Permission bits it was made with, before the umask.
    pub asked_mode: u32,
    /// Its directory hands it an access list.
    pub inherits_acl: bool,
}

impl Policy {
    /// For this process.
    pub fn new(safe: bool) -> Self {
        // Read, not set and set back: another thread could make a file between the two.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let umask = status.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("Umask:")?.trim(), 8).ok());
        Self { safe, root: rustix::process::geteuid().is_root(), umask: umask.unwrap_or(0o777) }
    }

    /// The mode an entry gets.
    pub fn mode(&self, entry: &Entry) -> u32 {
        if self.safe { entry.mode & 0o777 } else { entry.mode }
    }

    /// The mode to make the file with: its own, when nobody may be kept out meanwhile, else 0600.
    pub fn create_mode(&self, entry: &Entry, uid: u32, gid: u32) -> u32 {
        let same_owner = self.safe || (entry.uid, entry.gid) == (uid, gid);
        let mode = self.mode(entry);
        if same_owner && entry.xattrs.is_empty() && mode & SPECIAL_BITS == 0 { mode } else { 0o600 }
    }

    /// The attributes an entry gets.
    fn xattrs<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = &'a Xattr> {
        let harmless = |name: &[u8]| !name.starts_with(b"trusted.") && !name.starts_with(b"security.");
        entry.xattrs.iter().filter(move |(name, _)| !self.safe || harmless(name))
    }

    /// Sets all of a new inode's metadata; `fresh` spares calls.
    pub fn apply_new(&self, fd: BorrowedFd<'_>, entry: &Entry, fresh: Fresh) -> Result<Left, Failure> {
        let inode = Inode::File(fd);
        let mut left = Left::default();
        if fresh.inherits_acl {
            inode.remove_xattr(ACL_ACCESS)?;
        }
        if !entry.xattrs.is_empty() {
            self.set_xattrs(&inode, entry, Phase::Plain, &mut left)?;
        }
        self.set_owner(&inode, entry, (fresh.uid, fresh.gid), &mut left)?;
        let mode = self.mode_left(entry, left);
        if fresh.inherits_acl || mode != fresh.asked_mode & !self.umask || mode & SPECIAL_BITS != 0 {
            inode.set_mode(mode)?;
        }
        if !entry.xattrs.is_empty() {
            self.set_xattrs(&inode, entry, Phase::Late, &mut left)?;
        }
        inode.set_mtime(entry.mtime)?;
        Ok(left)
    }

    /// Makes the metadata of an inode that may have any; only what differs is set.
    pub fn apply_any(&self, inode: &Inode<'_>, entry: &Entry, stat: &Stat) -> Result<Left, Failure> {
        let mut left = Left::default();
        if entry.kind != EntryKind::Symlink || !entry.xattrs.is_empty() {
            self.match_xattrs(inode, entry, Phase::Plain, &mut left)?;
        }
        let changed_owner = self.set_owner(inode, entry, (stat.st_uid, stat.st_gid), &mut left)?;
        let mode = self.mode_left(entry, left);
        if entry.kind != EntryKind::Symlink && (changed_owner || mode != stat.st_mode & 0o7777) {
            inode.set_mode(mode)?;
        }
        if entry.kind != EntryKind::Symlink || !entry.xattrs.is_empty() {
            self.match_xattrs(inode, entry, Phase::Late, &mut left)?;
        }
        inode.set_mtime(entry.mtime)?;
        Ok(left)
    }

    /// Whether an inode's owner, mode and attributes are those of the entry already.
    pub fn agrees(&self, inode: &Inode<'_>, entry: &Entry, stat: &Stat) -> bool {
        let owner = self.safe || !self.root || (entry.uid, entry.gid) == (stat.st_uid, stat.st_gid);
        let mode = entry.kind == EntryKind::Symlink || self.mode(entry) == stat.st_mode & 0o7777;
        let mut wanted: Vec<&Xattr> = self.xattrs(entry).collect();
        wanted.sort();
        let found = inode.names().ok().map(|names| {
            let names = names.into_iter().filter(|name| is_ours(name));
            let mut found: Vec<Xattr> = names.filter_map(|name| Some((name.clone(), inode.xattr(&name)?))).collect();
            found.sort();
            found
        });
        owner && mode && found.is_none_or(|found| found.iter().eq(wanted))
    }

    fn mode_left(&self, entry: &Entry, left: Left) -> u32 {
        // setuid for another owner than the one meant would be a gift.
        self.mode(entry) & if left.owner { !0o6000 } else { !0 }
    }

    fn set_owner(
        &self,
        inode: &Inode<'_>,
        entry: &Entry,
        (uid, gid): (u32, u32),
        left: &mut Left,
    ) -> Result<bool, Failure> {
        if self.safe || (entry.uid, entry.gid) == (uid, gid) {
            return Ok(false);
        }
        match inode.set_owner(entry.uid, entry.gid) {
            Ok(()) => Ok(true),
            Err(Errno::PERM | Errno::INVAL) if !self.root => {
                left.owner = true;
                // A group of the caller's own can be set all the same.
                Ok(inode.set_owner(uid, entry.gid).is_ok())
            }
            Err(e) => Err(Failure("set the owner", e)),
        }
    }

    fn set_xattrs(&self, inode: &Inode<'_>, entry: &Entry, phase: Phase, left: &mut Left) -> Result<(), Failure> {
        for (name, value) in self.xattrs(entry).filter(|(name, _)| Phase::of(name) == phase) {
            match inode.set_xattr(name, value) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::OPNOTSUPP) if !self.root && !name.starts_with(b"user.") => {
                    left.privileged = true
                }
                Err(e) => return Err(Failure("set an attribute", e)),
            }
        }
        Ok(())
    }

    fn match_xattrs(&self, inode: &Inode<'_>, entry: &Entry, phase: Phase, left: &mut Left) -> Result<(), Failure> {
        for name in inode.names().unwrap_or_default() {
            let wanted = self.xattrs(entry).any(|(own, _)| *own == name);
            if !wanted && is_ours(&name) && Phase::of(&name) == phase {
                inode.remove_xattr(&name)?;
            }
        }
        self.set_xattrs(inode, entry, phase, left)
    }
}

/// Attributes a restore may remove; labels of a security module are the system's.
fn is_ours(name: &[u8]) -> bool {
    !name.starts_with(b"security.") && !name.starts_with(b"system.")
        || name == b"security.capability"
        || name == ACL_ACCESS
        || name == ACL_DEFAULT
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before owner and mode: what an unprivileged owner may set only while he can write.
    Plain,
    /// After them: access lists, labels and capabilities.
    Late,
}

impl Phase {
    fn of(name: &[u8]) -> Self {
        if name.starts_with(b"system.") || name.starts_with(b"security.") { Phase::Late } else { Phase::Plain }
    }
}

/// An inode by its descriptor.
pub enum Inode<'a> {
    /// Opened: a file or a directory.
    File(BorrowedFd<'a>),
    /// Only named (`O_PATH`): a link, a device. Reached through `/proc/self/fd`, which leads to exactly this inode.
    Named(BorrowedFd<'a>),
}

impl Inode<'_> {
    fn set_owner(&self, uid: u32, gid: u32) -> rustix::io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Inode::File(fd) => rustix::fs::fchown(fd, uid, gid),
            Inode::Named(fd) => rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    fn set_mode(&self, mode: u32) -> Result<(), Failure> {
        let mode = Mode::from_raw_mode(mode);
        match self {
            Inode::File(fd) => rustix::fs::fchmod(fd, mode),
            Inode::Named(fd) => rustix::fs::chmodat(CWD, proc_path(*fd), mode, AtFlags::empty()),
        }
        .map_err(|e| Failure("set the mode", e))
    }

    fn set_mtime(&self, time: Time) -> Result<(), Failure> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: time.sec, tv_nsec: i64::from(time.nsec) },
        };
        match self {
            Inode::File(fd) => rustix::fs::futimens(fd, &times),
            Inode::Named(fd) => rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH),
        }
        .map_err(|e| Failure("set the time", e))
    }

    fn set_xattr(&self, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        match self {
            Inode::File(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Inode::Named(fd) => rustix::fs::setxattr(proc_path(*fd), name, value, XattrFlags::empty()),
        }
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<(), Failure> {
        let removed = match self {
            Inode::File(fd) => rustix::fs::fremovexattr(fd, name),
            Inode::Named(fd) => rustix::fs::removexattr(proc_path(*fd), name),
        };
        match removed {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(Failure("remove an attribute", e)),
        }
    }

    fn xattr(&self, name: &[u8]) -> Option<Vec<u8>> {
        let mut value = vec![0u8; 64 << 10];
        let len = match self {
            Inode::File(fd) => rustix::fs::fgetxattr(fd, name, &mut value),
            Inode::Named(fd) => rustix::fs::getxattr(proc_path(*fd), name, &mut value),
        }
        .ok()?;
        value.truncate(len);
        Some(value)
    }

    fn names(&self) -> rustix::io::Result<Vec<Vec<u8>>> {
        let mut list = vec![0u8; 64 << 10];
        let len = match self {
            Inode::File(fd) => rustix::fs::flistxattr(fd, &mut list),
            Inode::Named(fd) => rustix::fs::listxattr(proc_path(*fd), &mut list),
        }?;
        Ok(list[..len].split(|&b| b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }
}

/// Whether new files in `dir` get an access list from it.
pub fn has_default_acl(dir: impl AsFd) -> bool {
    Inode::Named(dir.as_fd()).xattr(ACL_DEFAULT).is_some()
}
