//! A volume in a local directory, reached through one held descriptor.
//!
//! A write through the descriptor cannot land on another file system when the volume is unmounted under it. Objects are
//! written without a name, made durable, then linked to their key: what a killed run leaves behind has no name at all.
//! Order: fsync of the file, link, fsync of the directory; a newly made directory is fsynced in its parent.
//! An fsync that fails is fatal for the object and is never tried again: the kernel has dropped the pages.

use std::{
    fs::File,
    io::{Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{Created, Item, Store, Upload};
use crate::{
    error::{Error, Kind, Result},
    format::layout::check_key,
};

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIR_MODE: Mode = Mode::from_raw_mode(0o700);
/// Temporary names on file systems without unnamed files; listings leave them out.
const TEMP_PREFIX: &str = ".tmp-";
/// Writes are collected to this many bytes.
const BUFFER_LEN: usize = 256 << 10;

/// A directory as a store.
#[derive(Clone)]
pub struct LocalStore {
    root: Arc<OwnedFd>,
    shown: PathBuf,
}

impl LocalStore {
    /// Opens the directory `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|e| Error::io(format!("cannot open the volume {}", path.display()), e).with_kind(Kind::Volume))?;
        Ok(Self { root: Arc::new(root), shown: path.to_owned() })
    }

    /// The held descriptor of the volume's directory.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.shown
    }

    fn io(&self, doing: &str, key: &str, error: Errno) -> Error {
        let error = Error::io(format!("cannot {doing} {key} in {}", self.shown.display()), error);
        match error.kind() {
            Kind::NoSpace => error.with_hint("free space on the volume; nothing that was listed before is lost"),
            Kind::Other => error.with_kind(Kind::Volume),
            _ => error,
        }
    }

    fn open_file(&self, key: &str) -> Result<Option<File>> {
        check_key(key)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match open_beneath(&self.root, key, flags) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(self.io("open", key, e)),
        }
    }

    fn existing(&self, key: &str) -> Result<File> {
        self.open_file(key)?.ok_or_else(|| Error::integrity(format!("{key} is missing in {}", self.shown.display())))
    }

    /// Opens the directory of `key`, making those that are missing, each durable in its parent.
    fn parent(&self, key: &str) -> Result<OwnedFd> {
        check_key(key)?;
        let mut dir = self.root.try_clone().map_err(|e| Error::io("cannot copy a descriptor", e))?;
        let Some((parents, _)) = key.rsplit_once('/') else { return Ok(dir) };
        for name in parents.split('/') {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            dir = match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&dir, name, DIR_MODE) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(self.io("make the directory of", key, e)),
                    }
                    rustix::fs::fsync(&dir).map_err(|e| self.io("make durable the directory of", key, e))?;
                    rustix::fs::openat(&dir, name, flags, Mode::empty())
                }
                other => other,
            }
            .map_err(|e| self.io("open the directory of", key, e))?;
        }
        Ok(dir)
    }

    fn upload(&self, key: &str) -> Result<LocalUpload> {
        let dir = self.parent(key)?;
        let (file, temp) = unnamed(&dir).map_err(|e| self.io("create", key, e))?;
        let name = key.rsplit('/').next().unwrap_or(key).to_owned();
        let buffer = Vec::with_capacity(BUFFER_LEN);
        Ok(LocalUpload { store: self.clone(), key: key.to_owned(), name, dir, file, temp, buffer })
    }
}

fn open_beneath(root: &OwnedFd, key: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, key, flags, Mode::empty(), resolve) {
        // Kernels and sandboxes without openat2; keys are checked and the volume is ours.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(root, key, flags, Mode::empty()),
        other => other,
    }
}

/// Whether a directory is that of a run's objects.
fn is_of_run(dir: &str) -> bool {
    dir.starts_with("data/") && dir.matches('/').count() == 2
}

/// Removes the temporary files of a directory that holds nothing else: whoever made them has ended, or is not wanted any more.
fn remove_temps(dir: &OwnedFd) {
    let Ok(found) = Dir::read_from(dir) else { return };
    let names = found.flatten().map(|found| found.file_name().to_owned());
    let names: Vec<_> = names.filter(|name| !matches!(name.to_bytes(), b"." | b"..")).collect();
    if names.iter().all(|name| name.to_bytes().starts_with(TEMP_PREFIX.as_bytes())) {
        for name in names {
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
    }
}

/// An unnamed file on the file system of the directory `path`, gone when closed.
pub(super) fn unnamed_in(path: &Path) -> Result<File> {
    let failed = |e| Error::io(format!("cannot create a temporary file in {}", path.display()), e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
    let (file, temp) = unnamed(&dir).map_err(failed)?;
    if let Some(temp) = temp {
        rustix::fs::unlinkat(&dir, temp, AtFlags::empty()).map_err(failed)?;
    }
    Ok(file)
}

/// A file without a name in `dir`, or with a temporary one where the file system cannot.
fn unnamed(dir: &OwnedFd) -> rustix::io::Result<(File, Option<String>)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, ".", flags | OFlags::TMPFILE, FILE_MODE) {
        Ok(fd) => return Ok((File::from(fd), None)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(e) => return Err(e),
    }
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(|_| Errno::IO)?;
    let name = format!("{TEMP_PREFIX}{:016x}", u64::from_ne_bytes(random));
    let fd = rustix::fs::openat(dir, &name, flags | OFlags::CREATE | OFlags::EXCL, FILE_MODE)?;
    Ok((File::from(fd), Some(name)))
}

struct LocalUpload {
    store: LocalStore,
    key: String,
    name: String,
    dir: OwnedFd,
    file: File,
    temp: Option<String>,
    buffer: Vec<u8>,
}

impl LocalUpload {
    fn flush(&mut self) -> Result<()> {
        let result = self.file.write_all(&self.buffer);
        self.buffer.clear();
        result.map_err(|e| self.failed("write", e))
    }

    fn failed(&self, doing: &str, error: std::io::Error) -> Error {
        self.store.io(doing, &self.key, Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    fn commit(mut self) -> Result<Created> {
        self.flush()?;
        self.file.sync_all().map_err(|e| self.failed("make durable", e))?;
        let linked = match &self.temp {
            Some(temp) => rustix::fs::linkat(&self.dir, temp, &self.dir, &self.name, AtFlags::empty()),
            None => link_unnamed(&self.file, &self.dir, &self.name),
        };
        let created = match linked {
            Ok(()) => Created::New,
            // It was made, and its answer was lost, as on a network.
            Err(Errno::EXIST) if self.is_named() => Created::New,
            Err(Errno::EXIST) => Created::Exists,
            Err(e) => return Err(self.store.io("link", &self.key, e)),
        };
        self.remove_temp();
        rustix::fs::fsync(&self.dir).map_err(|e| self.store.io("make durable the directory of", &self.key, e))?;
        Ok(created)
    }

    /// Whether what lies under the name is this very file.
    fn is_named(&self) -> bool {
        let named = rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        let own = rustix::fs::fstat(&self.file);
        matches!((own, named), (Ok(own), Ok(named)) if (own.st_dev, own.st_ino) == (named.st_dev, named.st_ino))
    }

    fn remove_temp(&mut self) {
        if let Some(temp) = self.temp.take() {
            let _ = rustix::fs::unlinkat(&self.dir, temp, AtFlags::empty());
        }
    }
}

/// Gives an unnamed file its name. By descriptor where the kernel lets us, else through /proc.
fn link_unnamed(file: &File, dir: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    match rustix::fs::linkat(file.as_fd(), "", dir, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::PERM) => {
            use std::os::fd::AsRawFd;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW)
        }
        other => other,
    }
}

impl Upload for LocalUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_LEN {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_LEN {
            return self.file.write_all(bytes).map_err(|e| self.failed("write", e));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let key = self.key.clone();
        match self.commit()? {
            Created::New => Ok(()),
            Created::Exists => Err(Error::new(Kind::Lost, format!("{key} exists already"))),
        }
    }
}

impl Drop for LocalUpload {
    /// Only tidies: an upload that was not finished leaves nothing anyone can see.
    fn drop(&mut self) {
        self.remove_temp();
    }
}

impl Store for LocalStore {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(self.upload(key)?))
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        let mut upload = self.upload(key)?;
        upload.write(bytes)?;
        upload.commit()
    }

    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.existing(key)?.read_exact_at(buf, offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Error::integrity(format!("{key} ends before byte {}", offset.saturating_add(buf.len() as u64)))
            }
            _ => Error::io(format!("cannot read {key} in {}", self.shown.display()), e),
        })
    }

    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        use std::io::Read;
        let file = self.existing(key)?;
        let mut bytes = Vec::new();
        file.take(len_max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(format!("cannot read {key} in {}", self.shown.display()), e))?;
        if bytes.len() as u64 > len_max {
            return Err(Error::integrity(format!("{key} is longer than {len_max} bytes")));
        }
        Ok(bytes)
    }

    fn head(&self, key: &str) -> Result<Option<u64>> {
        let Some(file) = self.open_file(key)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&file).map_err(|e| self.io("stat", key, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::integrity(format!("{key} is not a file")));
        }
        Ok(Some(u64::try_from(stat.st_size).unwrap_or(0)))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        let start = prefix.trim_end_matches('/');
        if !start.is_empty() {
            check_key(start)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // Names, not descriptors: a job has as many directories as runs. Volumes are at most four levels deep.
        let mut pending = vec![start.to_owned()];
        while let Some(dir) = pending.pop() {
            let failed = |e| self.io("list", if dir.is_empty() { "." } else { &dir }, e);
            let fd = match open_beneath(&self.root, if dir.is_empty() { "." } else { &dir }, flags) {
                Ok(fd) => fd,
                // It is not there, or went with its last object meanwhile.
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(failed(e)),
            };
            for found in Dir::read_from(&fd).map_err(failed)? {
                let found = found.map_err(failed)?;
                let Ok(name) = found.file_name().to_str() else { continue };
                if name.starts_with('.') {
                    continue;
                }
                let key = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
                let stat = match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(self.io("list", &key, e)),
                };
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile => {
                        let stored_unix_ms =
                            u64::try_from(stat.st_mtime).ok().map(|second| second.saturating_mul(1000));
                        items.push(Item { key, len: u64::try_from(stat.st_size).unwrap_or(0), stored_unix_ms });
                    }
                    FileType::Directory if key.matches('/').count() < 5 => pending.push(key),
                    _ => {}
                }
            }
        }
        items.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(items)
    }

    fn delete(&self, key: &str) -> Result<()> {
        check_key(key)?;
        let (parent, name) = key.rsplit_once('/').unwrap_or(("", key));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let dir = if parent.is_empty() {
            self.root.try_clone().map_err(|e| Error::io("cannot copy a descriptor", e))?
        } else {
            match open_beneath(&self.root, parent, flags) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(self.io("delete", key, e)),
            }
        };
        match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(self.io("delete", key, e)),
        }
        // Directories mean nothing on a volume; an empty one below the top goes with its last object.
        if parent.contains('/') || super::probe::is_of_probe(parent) {
            let remove = || rustix::fs::unlinkat(&self.root, parent, AtFlags::REMOVEDIR);
            if matches!(remove(), Err(Errno::NOTEMPTY | Errno::EXIST)) && is_of_run(parent) {
                remove_temps(&dir);
                let _ = remove();
            }
        }
        Ok(())
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        let stat = rustix::fs::fstatvfs(&*self.root).map_err(|e| self.io("ask the space of", ".", e))?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn scratch(&self) -> Result<File> {
        let (mut file, temp) = unnamed(&self.root).map_err(|e| self.io("create", "a temporary file", e))?;
        if let Some(temp) = temp {
            rustix::fs::unlinkat(&*self.root, temp, AtFlags::empty())
                .map_err(|e| self.io("create", "a temporary file", e))?;
        }
        file.rewind().map_err(|e| Error::io("cannot use a temporary file", e))?;
        Ok(file)
    }

    fn check_writable(&self) -> Result<()> {
        let (mut file, temp) =
            unnamed(&self.root).map_err(|e| self.io("write", "a test object", e).with_volume_kind())?;
        let written = file.write_all(&[0; 4096]).and_then(|()| file.sync_all());
        if let Some(temp) = temp {
            let _ = rustix::fs::unlinkat(&*self.root, temp, AtFlags::empty());
        }
        written.map_err(|e| Error::io(format!("cannot write to {}", self.shown.display()), e).with_volume_kind())
    }
}

impl Error {
    /// A volume that cannot be written is a volume error, but a full one stays what it is.
    fn with_volume_kind(self) -> Self {
        if self.kind() == Kind::NoSpace { self } else { self.with_kind(Kind::Volume) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_go_with_the_last_object_of_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        for run in ["data/j/gone", "data/j/more", "log/j"] {
            for name in ["a", "b"] {
                store.put_new(&format!("{run}/{name}"), b"x").unwrap();
            }
            std::fs::write(dir.path().join(run).join(".tmp-0123"), "left").unwrap();
        }
        std::fs::write(dir.path().join("data/j/more/.other"), "another's").unwrap();
        let is_there = |name: &str| dir.path().join(name).exists();
        for run in ["data/j/gone", "data/j/more", "log/j"] {
            store.delete(&format!("{run}/a")).unwrap();
            assert!(is_there(&format!("{run}/.tmp-0123")), "{run}: one is left");
            store.delete(&format!("{run}/b")).unwrap();
        }
        assert!(!is_there("data/j/gone"));
        assert!(is_there("data/j/more/.tmp-0123") && is_there("log/j/.tmp-0123"));
    }

    #[test]
    fn a_link_whose_answer_was_lost_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        let upload = |key: &str| {
            let mut upload = store.upload(key).unwrap();
            upload.write(b"own").unwrap();
            // As where there are no unnamed files.
            upload.flush().unwrap();
            link_unnamed(&upload.file, &upload.dir, ".tmp-0123").unwrap();
            upload.temp = Some(".tmp-0123".to_owned());
            upload
        };
        let first = upload("log/j/1");
        std::fs::hard_link(dir.path().join("log/j/.tmp-0123"), dir.path().join("log/j/1")).unwrap();
        assert_eq!(first.commit().unwrap(), Created::New);
        assert_eq!(upload("log/j/1").commit().unwrap(), Created::Exists);
        assert_eq!(upload("log/j/2").commit().unwrap(), Created::New);
        assert_eq!(store.list("").unwrap().len(), 2);
        assert!(!dir.path().join("log/j/.tmp-0123").exists());
    }
}
