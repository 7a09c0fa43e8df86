//! The directory a drill restores into: its own, for nobody else to look into, empty at the beginning and gone at the end.
//!
//! `SCRATCH/bk-drill-JOB` belongs to who runs bk and is locked as long as the drill lasts; what a killed drill left in it goes first.

use std::{
    fs::{DirBuilder, File, Permissions},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::{
    error::{Error, Kind, Result},
    model::ids::Name,
    steps,
};

/// A drill's directory, locked.
pub(super) struct Scratch {
    dir: PathBuf,
    owner: Option<(u32, u32)>,
    _lock: File,
}

fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(std::io::Error) -> Error + 'a {
    move |e| Error::io(format!("cannot {what} {}", path.display()), e)
}

impl Scratch {
    /// Makes the directory for a job below `above`; `user` is who is to look at what is restored.
    pub(super) fn make(above: &Path, job: &Name, user: Option<&str>) -> Result<Self> {
        let owner = user.map(steps::ids_of).transpose()?;
        if !above.is_dir() {
            let what = format!("there is no directory {} to restore into", above.display());
            return Err(Error::usage(what).with_hint("--scratch DIR, or `scratch` in [job.NAME.drill]"));
        }
        let above = above.canonicalize().map_err(failed("find", above))?;
        let dir = above.join(format!("bk-drill-{job}"));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed("make", &dir)(e)),
            _ => {}
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&dir, flags, Mode::empty()).map_err(|e| failed("open", &dir)(e.into()))?;
        let lock = File::from(fd);
        let meta = lock.metadata().map_err(failed("look at", &dir))?;
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            let what =
                format!("{} is not bk's alone: user {}, mode {:o}", dir.display(), meta.uid(), meta.mode() & 0o7777);
            return Err(Error::usage(what).with_hint("remove it, or choose another --scratch"));
        }
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::new(Kind::Lost, format!("another drill of {job} is at work in {}", dir.display())));
            }
            Err(e) => return Err(failed("lock", &dir)(e.into())),
        }
        let scratch = Self { dir, owner, _lock: lock };
        scratch.clear()?;
        let mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode));
        // Another user has to come through to the place, and sees nothing on the way.
        mode(&scratch.dir, if owner.is_some() { 0o711 } else { 0o700 }).map_err(failed("change", &scratch.dir))?;
        for path in [scratch.place(), scratch.streams()] {
            DirBuilder::new().mode(0o700).create(&path).map_err(failed("make", &path))?;
        }
        Ok(scratch)
    }

    /// What the command gets.
    pub(super) fn place(&self) -> PathBuf {
        self.dir.join("restored")
    }

    /// Where the tree lies.
    pub(super) fn tree(&self) -> PathBuf {
        self.place().join("tree")
    }

    /// Where the streams lie, one file each.
    pub(super) fn streams(&self) -> PathBuf {
        self.place().join("streams")
    }

    /// A stream.
    pub(super) fn stream(&self, name: &Name) -> PathBuf {
        self.streams().join(name.as_str())
    }

    /// Lets the command's user in.
    pub(super) fn give(&self) -> Result<()> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        let streams = std::fs::read_dir(self.streams()).map_err(failed("read", &self.dir))?;
        let streams: Vec<PathBuf> = streams.flatten().map(|entry| entry.path()).collect();
        for path in streams.iter().chain(&[self.streams(), self.place()]) {
            std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(failed("give away", path))?;
        }
        Ok(())
    }

    /// How much fits.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(|e| failed("ask the space of", &self.dir)(e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn clear(&self) -> Result<()> {
        let place = self.place();
        match std::fs::remove_dir_all(&place) {
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                // Who is not root restores directories that cannot be written to.
                open_up(&place);
                std::fs::remove_dir_all(&place).map_err(failed("remove", &place))
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &place)(e)),
            _ => Ok(()),
        }
    }

    /// Removes all of it.
    pub(super) fn remove(self) -> Result<()> {
        self.clear()?;
        std::fs::remove_dir(&self.dir).map_err(failed("remove", &self.dir))
    }
}

/// Makes directories writable for their owner, from the top down.
fn open_up(dir: &Path) {
    let _ = std::fs::set_permissions(dir, Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}
