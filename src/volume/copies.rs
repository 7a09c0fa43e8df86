//! Copies on this machine of what was read: records, and pages of indexes.
//!
//! A copy carries the digest of its name and bytes, checked when it is read: one that is damaged is none. All of it may
//! be deleted at any time, and a directory that cannot be used, or that others can write, is not used, without a word.
//! Together the copies of all volumes are at most as large as asked; the ones not used for longest go.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use crate::model::digest::Digest;

const DIGEST_LEN: usize = 32;

/// Copies of the objects of one volume.
#[derive(Debug)]
pub struct Copies {
    /// Those of all volumes.
    base: PathBuf,
    dir: PathBuf,
    bytes_max: u64,
    /// Bytes that may be added before it is looked how much there is.
    until_prune: AtomicU64,
}

/// Where copies are: `$XDG_CACHE_HOME/bk`, else `/var/cache/bk` as root, else `~/.cache/bk`.
fn base() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()) {
        return Some(dir.join("bk"));
    }
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/cache/bk"));
    }
    Some(set("HOME").filter(|dir| dir.is_absolute())?.join(".cache/bk"))
}

/// Whether a directory is ours alone; it is made when it is missing.
fn is_private(dir: &Path) -> bool {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let owned = |meta: &fs::Metadata| meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw();
    made.is_ok() && fs::symlink_metadata(dir).is_ok_and(|meta| owned(&meta) && meta.mode() & 0o077 == 0)
}

impl Copies {
    /// Those of the volume of this id, at most `bytes_max` of all volumes; `None` where there is no place for them.
    pub fn of(id: &str, bytes_max: u64) -> Option<Self> {
        Self::within(&base()?, id, bytes_max)
    }

    /// The same in a directory.
    pub fn within(base: &Path, id: &str, bytes_max: u64) -> Option<Self> {
        let dir = base.join(id);
        let is_usable = bytes_max > 0 && is_private(base) && is_private(&dir);
        is_usable.then(|| Self { base: base.to_owned(), dir, bytes_max, until_prune: AtomicU64::new(0) })
    }

    fn path(&self, name: &str) -> PathBuf {
        // No key holds a `+`.
        self.dir.join(name.replace('/', "+"))
    }

    /// A copy of at most `len_max` bytes.
    pub fn get(&self, name: &str, len_max: u64) -> Option<Vec<u8>> {
        let file = OpenOptions::new().read(true).open(self.path(name)).ok()?;
        let mut bytes = Vec::new();
        (&file).take(len_max.saturating_add(DIGEST_LEN as u64 + 1)).read_to_end(&mut bytes).ok()?;
        let digest = bytes.split_off(bytes.len().checked_sub(DIGEST_LEN)?);
        let is_good = bytes.len() as u64 <= len_max && digest == digest_of(name, &bytes).0;
        if is_good {
            // It was used now. Where that cannot be noted it goes sooner.
            let _ = file.set_modified(SystemTime::now());
        }
        is_good.then_some(bytes)
    }

    /// Keeps a copy.
    pub fn keep(&self, name: &str, bytes: &[u8]) {
        let len = (bytes.len() + DIGEST_LEN) as u64;
        if len > self.bytes_max / 4 {
            return;
        }
        let left = self.until_prune.load(Ordering::Relaxed);
        if left < len {
            prune(&self.base, self.bytes_max - self.bytes_max / 4);
            self.until_prune.store(self.bytes_max / 4 - len, Ordering::Relaxed);
        } else {
            self.until_prune.store(left - len, Ordering::Relaxed);
        }
        let (path, mut temp) = (self.path(name), self.dir.join(".new"));
        temp.as_mut_os_string().push(format!("-{}-{:?}", std::process::id(), std::thread::current().id()));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&temp).and_then(|mut file: File| {
            file.write_all(bytes)?;
            file.write_all(&digest_of(name, bytes).0)
        });
        if written.and_then(|()| fs::rename(&temp, path)).is_err() {
            let _ = fs::remove_file(temp);
        }
    }

    /// Drops a copy.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.path(name));
    }
}

fn digest_of(name: &str, bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes()).update(b"\n").update(bytes);
    Digest(*hasher.finalize().as_bytes())
}

/// Removes the files used longest ago, in all directories of `base`, till what is left is at most `max` bytes.
fn prune(base: &Path, max: u64) {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let all = entries(base).flat_map(|dir| entries(&dir.path()));
    let files = all.filter_map(|entry| Some((entry.metadata().ok()?, entry.path())));
    let mut files: Vec<(fs::Metadata, PathBuf)> = files.filter(|(meta, _)| meta.is_file()).collect();
    let mut total: u64 = files.iter().map(|(meta, _)| meta.len()).sum();
    files.sort_by_key(|(meta, _)| (meta.mtime(), meta.mtime_nsec()));
    for (meta, path) in files {
        if total <= max {
            return;
        }
        if fs::remove_file(path).is_ok() {
            total -= meta.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_used_when_it_is_right_and_only_then() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::within(&dir.path().join("bk"), "id", 1 << 20).unwrap();
        copies.keep("log/a", b"bytes");
        assert_eq!(copies.get("log/a", 5).unwrap(), b"bytes");
        assert!(copies.get("log/a", 4).is_none());
        // Every damaged byte makes it none, and so does another's name.
        let path = copies.path("log/a");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            assert!(copies.get("log/a", 100).is_none(), "byte {at}");
        }
        fs::write(copies.path("log/b"), &good).unwrap();
        assert!(copies.get("log/b", 100).is_none());
    }

    #[test]
    fn what_was_not_used_for_longest_goes_and_the_bound_holds() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (
            Copies::within(&dir.path().join("bk"), "1", 40_000).unwrap(),
            Copies::within(&dir.path().join("bk"), "2", 40_000).unwrap(),
        );
        one.keep("used", &[1; 1000]);
        for n in 0..200 {
            let of = if n % 2 == 0 { &one } else { &two };
            of.keep(&format!("{n}"), &[7; 1000]);
            assert!(one.get("used", 1000).is_some(), "{n}");
            let files = |id: &str| fs::read_dir(dir.path().join("bk").join(id)).unwrap().flatten().collect::<Vec<_>>();
            let bytes: u64 = files("1").iter().chain(&files("2")).map(|file| file.metadata().unwrap().len()).sum();
            // Two writers, each of which looks after a quarter.
            assert!(bytes <= 50_000, "{n}: {bytes}");
        }
        assert!(two.get("199", 1000).is_some());
        assert!(one.get("2", 1000).is_none());
        assert!(Copies::within(&dir.path().join("bk"), "1", 0).is_none());
    }
}
