//! The kernel's requests, translated: the only file that names `fuser`.
//!
//! What is in memory is answered on the thread that took the request; all else goes to the core's workers with its reply.
//! A request that panics is an I/O error, not the end of its thread. `open` is answered once, with "not needed": the kernel
//! then opens and closes files by itself and keeps their pages.

use std::{
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};

use super::{
    Answer, Failure,
    attr::{Attr, Keep},
    core::Core,
    counts::add,
    node::Node,
};
use crate::{
    engine::read::patience::without_waiting,
    error::{Error, Result},
    model::{entry::EntryKind, time::Time},
};

/// What never changes is asked for again after a day.
const FIXED: Duration = Duration::from_secs(24 * 3600);
/// What may change: jobs and snapshots.
const SHORT: Duration = Duration::from_secs(1);
/// Requests of the kernel's own that it sends at a time, read ahead above all.
const BACKGROUND_MAX: u16 = 64;
/// Entries a worker lists at a time: as many as the kernel's buffer of a list usually holds.
const LISTED_MAX: usize = 128;
/// Reading this attribute of the root gives the counts of requests as JSON; it is in no list.
pub const COUNTS_XATTR: &[u8] = b"user.bk.requests";
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// A mount being served.
pub struct Served(BackgroundSession);

impl Served {
    /// Whether it ended: it was unmounted.
    pub fn is_over(&self) -> bool {
        self.0.guard.is_finished()
    }
}

/// Serves `core` on an opened and mounted `/dev/fuse` with so many event loops.
pub fn serve(core: Arc<Core>, device: OwnedFd, loops: usize) -> Result<Served> {
    let failed = |e| Error::io("cannot talk to the kernel's FUSE", e);
    let mut config = Config::default();
    // Each loop has a descriptor of its own, where this user may open more of them.
    config.clone_fd = std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    config.n_threads = Some(loops);
    // Who may come in is the kernel's to say, by the options of the mount.
    let session = Session::from_fd(Adapter { core: Arc::clone(&core) }, device, SessionACL::All, config);
    let session = session.map_err(failed)?;
    let notifier = session.notifier();
    core.give_with(move |node, bytes| notifier.store(INodeNo(node.0), 0, bytes).is_ok());
    session.spawn().map(Served).map_err(failed)
}

struct Adapter {
    core: Arc<Core>,
}

fn time(time: Time) -> SystemTime {
    let whole = match u64::try_from(time.sec) {
        Ok(sec) => UNIX_EPOCH.checked_add(Duration::from_secs(sec)),
        Err(_) => UNIX_EPOCH.checked_sub(Duration::from_secs(time.sec.unsigned_abs())),
    };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(UNIX_EPOCH)
}

fn kind(kind: EntryKind) -> FileType {
    match kind {
        EntryKind::Dir => FileType::Directory,
        EntryKind::Symlink => FileType::Symlink,
        EntryKind::CharDevice => FileType::CharDevice,
        EntryKind::BlockDevice => FileType::BlockDevice,
        EntryKind::Fifo => FileType::NamedPipe,
        EntryKind::Socket => FileType::Socket,
        EntryKind::File | EntryKind::HardLink | EntryKind::Removed => FileType::RegularFile,
    }
}

fn shown(attr: &Attr) -> FileAttr {
    let (major, minor) = attr.rdev;
    FileAttr {
        ino: INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.mtime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // As the kernel packs it for 32 bits: 12 of the major, 20 of the minor.
        rdev: minor & 0xff | (major & 0xfff) << 8 | (minor & 0xfff00) << 12,
        blksize: 4096,
        flags: 0,
    }
}

fn ttl(attr: &Attr) -> &'static Duration {
    match attr.keep {
        Keep::Always => &FIXED,
        Keep::Shortly => &SHORT,
        Keep::Never => &Duration::ZERO,
    }
}

/// No such name, to be kept by the kernel like an entry: number 0.
fn absent() -> FileAttr {
    let nothing = Attr::made(Node(0), EntryKind::File, 0, 0, Time::default());
    FileAttr { ino: INodeNo(0), ..shown(&nothing) }
}

impl Core {
    /// The error number of a failure, which is told when it is a fault.
    fn errno(&self, failure: Failure) -> Errno {
        match failure {
            Failure::Plain(errno) => Errno::from_i32(errno.raw_os_error()),
            Failure::Fault(error) => {
                add(&self.counts.faults);
                self.monitor.warn(&error.to_string());
                Errno::EIO
            }
        }
    }
}

impl Adapter {
    /// Answers now when all is in memory, else from a worker.
    fn answer<T: 'static>(
        &self,
        reply: impl FnOnce(&Core, Answer<T>) + Send + 'static,
        work: impl Fn(&Core) -> Answer<T> + Send + 'static,
    ) {
        let core = Arc::clone(&self.core);
        match self.guarded(|| without_waiting(|| work(&core))) {
            None => reply(&core, Err(rustix::io::Errno::IO.into())),
            Some(Some(answer)) => reply(&core, answer),
            Some(None) => {
                add(&core.counts.waited);
                let replying = Arc::clone(&core);
                self.core.pool.answer(move |answer| reply(&replying, answer), move || work(&core));
            }
        }
    }

    /// None when it panicked.
    fn guarded<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let done = catch_unwind(AssertUnwindSafe(work));
        if done.is_err() {
            self.core.monitor.warn("a request made bk panic: this is a fault of bk");
        }
        done.ok()
    }
}

fn xattr(core: &Core, reply: ReplyXattr, size: u32, value: Answer<Vec<u8>>) {
    match value {
        Err(failure) => reply.error(core.errno(failure)),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
    }
}

/// An entry of a list as a worker hands it over.
type Listed = (Vec<u8>, Attr, u64);

fn put(reply: &mut ReplyDirectoryPlus, name: &[u8], attr: &Attr, place: u64) -> bool {
    let shown = shown(attr);
    reply.add(shown.ino, place, OsStr::from_bytes(name), ttl(attr), &shown, Generation(0))
}

fn list_slowly(core: &Core, node: Node, from: u64) -> Answer<Vec<Listed>> {
    let mut listed = Vec::new();
    let done = core.list(node, from, &mut |name, attr, place| {
        listed.push((name.to_vec(), *attr, place));
        listed.len() >= LISTED_MAX
    });
    // What comes before something unreadable is shown; the next call meets the error.
    if listed.is_empty() { done.map(|()| listed) } else { Ok(listed) }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for wanted in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            // Lists of jobs and snapshots that the kernel keeps end when their directory's time changes.
            InitFlags::FUSE_AUTO_INVAL_DATA,
            // The kernel then checks access lists, too.
            InitFlags::FUSE_POSIX_ACL,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(BACKGROUND_MAX / 4 * 3);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        add(&self.core.counts.lookup);
        let name = name.as_bytes().to_vec();
        let is_fixed = !matches!(
            self.core.place(Node(parent.0)),
            Ok(super::node::Place::Top | super::node::Place::Job(_)) | Err(_)
        );
        let reply = move |core: &Core, answer: Answer<Option<Attr>>| match answer {
            Ok(Some(attr)) => reply.entry(ttl(&attr), &shown(&attr), Generation(0)),
            Ok(None) => reply.entry(if is_fixed { &FIXED } else { &SHORT }, &absent(), Generation(0)),
            Err(failure) => reply.error(core.errno(failure)),
        };
        self.answer(reply, move |core| core.lookup(Node(parent.0), &name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        add(&self.core.counts.getattr);
        let reply = |core: &Core, answer: Answer<Attr>| match answer {
            Ok(attr) => reply.attr(ttl(&attr), &shown(&attr)),
            Err(failure) => reply.error(core.errno(failure)),
        };
        self.answer(reply, move |core| core.attr(Node(ino.0)));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        add(&self.core.counts.readlink);
        let reply = |core: &Core, answer: Answer<Vec<u8>>| match answer {
            Ok(target) => reply.data(&target),
            Err(failure) => reply.error(core.errno(failure)),
        };
        self.answer(reply, move |core| core.readlink(Node(ino.0)));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        add(&self.core.counts.open);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        add(&self.core.counts.opendir);
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        add(&self.core.counts.read);
        let replying = Arc::clone(&self.core);
        self.guarded(|| {
            self.core.read(Node(ino.0), offset, u64::from(size), move |answer| match answer {
                Ok(data) => reply.data(data.bytes()),
                Err(failure) => reply.error(replying.errno(failure)),
            });
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, reply: ReplyDirectory) {
        // Every kernel that has the other kind of list uses it.
        reply.error(Errno::ENOTSUP);
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        add(&self.core.counts.readdir);
        let (node, core) = (Node(ino.0), Arc::clone(&self.core));
        let mut count = 0;
        let done = self.guarded(|| {
            without_waiting(|| {
                core.list(node, offset, &mut |name, attr, place| {
                    let is_full = put(&mut reply, name, attr, place);
                    count += usize::from(!is_full);
                    is_full
                })
            })
        });
        match done {
            Some(Some(Ok(()))) => reply.ok(),
            // The rest with the next call.
            _ if count > 0 => reply.ok(),
            Some(Some(Err(failure))) => reply.error(core.errno(failure)),
            None => reply.error(Errno::EIO),
            Some(None) => {
                add(&core.counts.waited);
                let replying = Arc::clone(&core);
                let reply = move |answer: Answer<Vec<Listed>>| match answer {
                    Ok(listed) => {
                        let _ = listed.iter().any(|(name, attr, place)| put(&mut reply, name, attr, *place));
                        reply.ok();
                    }
                    Err(failure) => reply.error(replying.errno(failure)),
                };
                self.core.pool.answer(reply, move || list_slowly(&core, node, offset));
            }
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        add(&self.core.counts.statfs);
        let space = self.core.space();
        reply.statfs(space.bytes.div_ceil(4096), 0, 0, space.entries, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        add(&self.core.counts.getxattr);
        let name = name.as_bytes().to_vec();
        if Node(ino.0) == Node::TOP && name == COUNTS_XATTR {
            let text = serde_json::to_vec(&self.core.counts()).unwrap_or_default();
            return xattr(&self.core, reply, size, Ok(text));
        }
        let reply = move |core: &Core, answer: Answer<Option<Vec<u8>>>| match answer {
            Ok(None) => reply.error(Errno::ENODATA),
            Ok(Some(value)) => xattr(core, reply, size, Ok(value)),
            Err(failure) => reply.error(core.errno(failure)),
        };
        self.answer(reply, move |core| {
            core.xattrs(Node(ino.0), |all| all.iter().find(|(own, _)| *own == name).map(|(_, value)| value.clone()))
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        add(&self.core.counts.listxattr);
        let reply = move |core: &Core, answer: Answer<Vec<u8>>| xattr(core, reply, size, answer);
        self.answer(reply, move |core| {
            core.xattrs(Node(ino.0), |all| all.iter().flat_map(|(name, _)| [name.as_slice(), b"\0"].concat()).collect())
        });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        add(&self.core.counts.lseek);
        let to_data = match whence {
            SEEK_DATA => true,
            SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let reply = |core: &Core, answer: Answer<u64>| match answer.map(i64::try_from) {
            Ok(Ok(at)) => reply.offset(at),
            Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
            Err(failure) => reply.error(core.errno(failure)),
        };
        self.answer(reply, move |core| match u64::try_from(offset) {
            Ok(offset) => core.seek(Node(ino.0), offset, to_data),
            Err(_) => Err(rustix::io::Errno::NXIO.into()),
        });
    }

    // Whatever would write. The kernel refuses it before it comes here, unless somebody mounted it again for writing.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &std::path::Path, reply: ReplyEntry) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        add(&self.core.counts.refused);
        reply.error(Errno::EROFS);
    }
}
