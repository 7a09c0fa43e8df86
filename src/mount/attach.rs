//! Into the tree of mounts and out of it again.
//!
//! Root mounts by itself, so that no other program is needed and what is unmounted is exactly what was mounted; others go by
//! `fusermount3`, which is the system's way to let them. Nothing here looks into a file system it does not know to be alive.

use std::{
    ffi::{CString, OsString},
    fmt,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatxFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
    net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType},
};

use crate::error::{Error, Result};

/// What mounts of bk are called in `/proc/self/mountinfo`.
pub const FS_TYPE: &str = "fuse.bk";

/// A bk that serves tells at once how much space there is; this long it is waited for.
const ANSWER: Duration = Duration::from_secs(10);

/// How it is mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Programs in it may be run.
    pub allow_exec: bool,
    /// Other users may come in, as far as modes and owners let them.
    pub allow_other: bool,
}

/// A line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Major and minor of its device.
    pub device: String,
    /// The file system's type.
    pub kind: String,
    path: Vec<u8>,
}

/// Undoes `\040` and the like.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let digits = text.get(at + 1..at + 4).filter(|_| text[at] == b'\\');
        let byte = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(byte.unwrap_or(text[at]));
        at += if byte.is_some() { 4 } else { 1 };
    }
    out
}

fn parse(line: &[u8]) -> Option<Entry> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    Some(Entry { device: text(fields.get(2)?), kind: text(fields.get(dash + 1)?), path: unescape(fields.get(4)?) })
}

fn entries() -> Result<Vec<Entry>> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(|e| Error::io("cannot read /proc/self/mountinfo", e))?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse).collect())
}

/// What is mounted on exactly this path, the last one on top.
pub fn mounted_at(path: &Path) -> Result<Option<Entry>> {
    Ok(entries()?.into_iter().rfind(|entry| entry.path == path.as_os_str().as_bytes()))
}

/// Which mount it is, among all there are and were: the kernel gives paths and device numbers again at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Major and minor of its device. Nobody else has it while somebody serves the mount.
    device: String,
    id: u64,
    /// Whether the kernel never gives `id` again: since 6.8.
    is_unique: bool,
}

impl Identity {
    /// Of what is on top at a path. The kernel answers, not whoever serves it.
    fn at(path: &Path) -> Option<Self> {
        Self::from(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn from(dir: BorrowedFd<'_>, path: &Path, flags: AtFlags) -> Option<Self> {
        // STATX_MNT_ID_UNIQUE of linux/stat.h; a kernel that does not know it gives the other one.
        const UNIQUE: u32 = 0x4000;
        let flags = flags | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let asked = StatxFlags::MNT_ID | StatxFlags::from_bits_retain(UNIQUE);
        let stat = rustix::fs::statx(dir, path, flags, asked).ok()?;
        Some(Self {
            device: format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor),
            id: if stat.stx_mask & asked.bits() == 0 { 0 } else { stat.stx_mnt_id },
            is_unique: stat.stx_mask & UNIQUE != 0,
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.device, self.id, self.is_unique)
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split('/').collect();
        let read = |[device, id, is_unique]: [&str; 3]| {
            Some(Self { device: device.to_owned(), id: id.parse().ok()?, is_unique: is_unique.parse().ok()? })
        };
        let found = <[&str; 3]>::try_from(words).ok().and_then(read);
        found.ok_or_else(|| Error::usage(format!("{text:?} names no mount")))
    }
}

/// The device of the mount that an opened `/dev/fuse` serves, where the kernel tells (since 6.16).
fn served_by(fuse: &OwnedFd) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fuse.as_raw_fd())).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
    Some(format!("0:{}", number.trim()))
}

/// Which mount was just made on `path`, to be served by `fuse`.
pub fn made(path: &Path, fuse: &OwnedFd) -> Result<Identity> {
    let entry = mounted_at(path)?.filter(|entry| entry.kind == FS_TYPE);
    let found = Identity::at(path).filter(|found| {
        entry.is_some_and(|entry| entry.device == found.device)
            && served_by(fuse).is_none_or(|device| device == found.device)
    });
    found.ok_or_else(|| Error::usage(format!("{} was unmounted or mounted over at once", path.display())))
}

/// A mount that was found. It is held, so that what others mount in its place meanwhile is never taken for it.
struct Place {
    path: PathBuf,
    root: OwnedFd,
}

/// Where a mount is, unless another lies over it. Its directory may have been renamed.
fn place_of(mount: &Identity) -> Result<Option<Place>> {
    let own = entries()?.into_iter().filter(|entry| entry.kind == FS_TYPE && entry.device == mount.device);
    let mut places = own.map(|entry| PathBuf::from(OsString::from_vec(entry.path)));
    Ok(places.find_map(|path| Place::open(path, mount)))
}

impl Place {
    fn open(path: PathBuf, mount: &Identity) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &path, flags, Mode::empty()).ok()?;
        let found = Identity::from(root.as_fd(), Path::new(""), AtFlags::EMPTY_PATH);
        (found.as_ref() == Some(mount)).then_some(Self { path, root })
    }

    fn detach(&self, more: UnmountFlags) -> rustix::io::Result<()> {
        let held = format!("/proc/self/fd/{}", self.root.as_raw_fd());
        match rustix::mount::unmount(held, UnmountFlags::DETACH | more) {
            // It is no place in the tree any more: somebody else was first.
            Err(Errno::INVAL) => Ok(()),
            done => done,
        }
    }

    /// Takes it out of the tree, though it is in use.
    fn unmount(&self) -> Result<()> {
        match self.detach(UnmountFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::PERM | Errno::ACCESS) => unmount_by_helper(&self.path, true),
            Err(e) => Err(Error::io(format!("cannot unmount {}", self.path.display()), e)),
        }
    }
}

/// The absolute path of a mount point, dead or alive: only the directory above it is looked at.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let failed = |e| Error::io(format!("cannot find {}", path.display()), e).with_kind(crate::error::Kind::Usage);
    let whole = std::path::absolute(path).map_err(failed)?;
    match (whole.parent(), whole.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = parent.canonicalize().map_err(failed)?;
            let path = parent.join(name);
            // A mount point is no link, and whoever serves it may not answer.
            let is_link = mounted_at(&path)?.is_none() && path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
            if is_link { whole.canonicalize().map_err(failed) } else { Ok(path) }
        }
        _ => whole.canonicalize().map_err(failed),
    }
}

/// Whether nobody serves what is mounted here. Of ours the space is asked for: the kernel has all else in memory for a day.
fn is_dead(path: &Path) -> Result<bool> {
    let answer = match mounted_at(path)? {
        Some(entry) if entry.kind == FS_TYPE => {
            let (tell, told) = std::sync::mpsc::channel();
            let asked = path.to_owned();
            std::thread::spawn(move || tell.send(rustix::fs::statfs(&asked).map(drop)));
            told.recv_timeout(ANSWER).map_err(|_| {
                Error::usage(format!("what is mounted on {} does not answer", path.display()))
                    .with_hint(format!("`bk umount --lazy {}` takes it away", path.display()))
            })?
        }
        _ => rustix::fs::stat(path).map(drop),
    };
    Ok(matches!(answer, Err(Errno::NOTCONN | Errno::CONNABORTED)))
}

/// The mount point, free to be mounted on: what a killed bk left there is taken away.
pub fn prepare(path: &Path) -> Result<(PathBuf, bool)> {
    let path = absolute(path)?;
    let mut was_stale = false;
    while is_dead(&path)? {
        match mounted_at(&path)? {
            Some(entry) if entry.kind == FS_TYPE => unmount(&path, true)?,
            _ => {
                return Err(Error::usage(format!("{} is a dead mount of another program", path.display()))
                    .with_hint(format!("`umount -l {}`", path.display())));
            }
        }
        was_stale = true;
    }
    if mounted_at(&path)?.is_some_and(|entry| entry.kind == FS_TYPE) {
        return Err(Error::usage(format!("a volume is mounted on {} already", path.display()))
            .with_hint(format!("`bk umount {}` unmounts it", path.display())));
    }
    let meta = std::fs::metadata(&path).map_err(|e| {
        Error::io(format!("cannot mount on {}", path.display()), e).with_kind(crate::error::Kind::Usage)
    })?;
    if !meta.is_dir() {
        return Err(Error::usage(format!("cannot mount on {}: it is not a directory", path.display())));
    }
    Ok((path, was_stale))
}

/// A name for lists of mounts: without what separates options.
fn source(shown: &str) -> String {
    let plain: String =
        shown.chars().map(|c| if c.is_control() || matches!(c, ',' | '\\' | ' ') { '_' } else { c }).collect();
    format!("bk:{plain}")
}

/// Mounts on a prepared path; the descriptor is then to be served at once.
pub fn mount(path: &Path, shown: &str, options: Options) -> Result<OwnedFd> {
    if rustix::process::geteuid().is_root() {
        match mount_as_root(path, shown, options) {
            // Root of a container: the system's helper may be let.
            Err(Errno::PERM) => {}
            done => return done.map_err(|e| failed(path, e)),
        }
    }
    mount_by_helper(path, shown, options)
}

fn failed(path: &Path, e: Errno) -> Error {
    let error = Error::io(format!("cannot mount on {}", path.display()), e);
    match e {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => error.with_hint("is FUSE there? `modprobe fuse`, and /dev/fuse"),
        _ => error,
    }
}

fn mount_as_root(path: &Path, shown: &str, options: Options) -> rustix::io::Result<OwnedFd> {
    let device = rustix::fs::openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let fd = device.as_fd().as_raw_fd();
    let other = if options.allow_other { ",allow_other" } else { "" };
    let data = format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions{other}");
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let mut flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    if !options.allow_exec {
        flags |= MountFlags::NOEXEC;
    }
    rustix::mount::mount(source(shown), path, FS_TYPE, flags, data.as_c_str())?;
    Ok(device)
}

/// `fusermount3` mounts and hands the descriptor back over a socket that is its standard input.
fn mount_by_helper(path: &Path, shown: &str, options: Options) -> Result<OwnedFd> {
    let failed = |e| Error::io("cannot make a socket", std::io::Error::from(e));
    let (own, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
    let mut words = vec!["ro", "nodev", "nosuid", "noatime", "default_permissions", "subtype=bk"];
    if !options.allow_exec {
        words.push("noexec");
    }
    if options.allow_other {
        words.push("allow_other");
    }
    let name = format!("fsname={}", source(shown));
    words.push(&name);
    let child = helper()
        .arg("-o")
        .arg(words.join(","))
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(no_helper)?;
    let device = receive(&own);
    let output = child.wait_with_output().map_err(no_helper)?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let error = Error::usage(format!("cannot mount on {}: {}", path.display(), said.trim()));
            let hint = "`user_allow_other` in /etc/fuse.conf lets users share their mounts";
            Err(if said.contains("user_allow_other") { error.with_hint(hint) } else { error })
        }
    }
}

fn helper() -> Command {
    Command::new(std::env::var_os("FUSERMOUNT_PATH").unwrap_or_else(|| "fusermount3".into()))
}

fn no_helper(e: std::io::Error) -> Error {
    Error::io("cannot run fusermount3", e).with_hint("install the package fuse3, or mount as root")
}

fn receive(socket: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    let mut byte = [0u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
            Ok(_) => break,
        }
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(fd)
}

/// Unmounts what is on `path`; `lazy` also when it is in use: it goes from the tree at once, and ends with its last user.
pub fn unmount(path: &Path, lazy: bool) -> Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(busy(path)),
        Err(Errno::PERM | Errno::ACCESS) => unmount_by_helper(path, lazy),
        Err(e) => Err(Error::io(format!("cannot unmount {}", path.display()), e)),
    }
}

fn busy(path: &Path) -> Error {
    Error::usage(format!("{} is in use", path.display()))
        .with_hint("`bk umount --lazy` takes it out of sight now, and it ends with its last user")
}

fn unmount_by_helper(path: &Path, lazy: bool) -> Result<()> {
    let mut command = helper();
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(path).stdin(Stdio::null()).output().map_err(no_helper)?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(busy(path)),
        false => Err(Error::usage(format!("cannot unmount {}: {}", path.display(), said.trim()))),
    }
}

/// Unmounts one that is being served, though it is in use. False when it is not there any more, or something else lies over it.
pub fn unmount_own(mount: &Identity) -> Result<bool> {
    let Some(place) = place_of(mount)? else { return Ok(false) };
    place.unmount().map(|()| true)
}

/// Unmounts one that nobody serves any more. Where its numbers may be another's by now, that other one is alive.
pub fn clear(mount: &Identity) -> Result<()> {
    match place_of(mount)? {
        Some(place) if mount.is_unique || matches!(is_dead(&place.path), Ok(true)) => place.unmount(),
        _ => Ok(()),
    }
}

/// Ends what a mount still waits for, and takes it away. For one whose process is dead, but cannot go.
pub fn abort(mount: &Identity) -> Result<()> {
    let Some(place) = place_of(mount)? else { return Ok(()) };
    if place.detach(UnmountFlags::FORCE).is_ok() {
        return Ok(());
    }
    // Who is not root may do so by its connection's file, where there is one.
    let minor = mount.device.rsplit(':').next().unwrap_or_default();
    let _ = std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
    place.unmount()
}

/// Has the kernel read ahead so much in files of a mount, as far as it lets us.
pub fn set_read_ahead(mount: &Identity, kib: u64) {
    // Only root may; without it reading is right, and slower.
    let _ = std::fs::write(format!("/sys/class/bdi/{}/read_ahead_kb", mount.device), kib.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line =
            br"36 35 98:0 / /mnt/with\040space\134x rw,noatime shared:1 master:2 - fuse.bk bk:/srv/bk rw,user_id=0";
        let entry = parse(line).unwrap();
        assert_eq!((entry.device.as_str(), entry.kind.as_str()), ("98:0", "fuse.bk"));
        assert_eq!(entry.path, b"/mnt/with space\\x");
        assert_eq!(parse(b"too short"), None);
        assert_eq!(unescape(br"a\04"), br"a\04");
    }

    #[test]
    fn a_mount_is_told_from_every_other() {
        let root = Identity::at(Path::new("/")).unwrap();
        assert_eq!(root.to_string().parse::<Identity>().unwrap(), root);
        assert_eq!(Identity::at(Path::new("/..")).unwrap(), root);
        assert_ne!(Identity::at(Path::new("/proc")).unwrap(), root);
        assert!(
            ["", "0:1", "0:1/x/true", "0:1/1/1", "0:1/1/true/"].iter().all(|text| text.parse::<Identity>().is_err())
        );
        assert!(place_of(&root).unwrap().is_none(), "it is not one of bk's");
    }

    #[test]
    fn what_lay_below_a_mount_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        if rustix::mount::mount("below", path, "tmpfs", MountFlags::empty(), None).is_err() {
            return;
        }
        let below = Identity::at(path).unwrap();
        if let Ok(device) = mount(path, "above", Options::default()) {
            let own = made(path, &device).unwrap();
            // Two that find it at the same time: the first one takes it away.
            let (first, second) = (place_of(&own).unwrap().unwrap(), place_of(&own).unwrap().unwrap());
            first.unmount().unwrap();
            assert_eq!(Identity::at(path).unwrap(), below);
            second.unmount().unwrap();
            assert_eq!(Identity::at(path).as_ref(), Some(&below));
        }
        rustix::mount::unmount(path, UnmountFlags::DETACH).unwrap();
    }

    #[test]
    fn names_cannot_become_options() {
        assert_eq!(source("/srv/a,allow_other\n b"), "bk:/srv/a_allow_other__b");
    }
}
