//! Copies of records on this machine, so that reading a log again asks the store only for what is new.
//!
//! A record is created once and never changed, so a copy cannot be stale; whether it is still there is told by the
//! listing, which always comes from the store. A copy carries the digest of its key and bytes, checked when it is read:
//! one that is damaged is none. Nothing here is needed: all of it may be deleted at any time, and a cache that cannot be
//! used is not used, without a word. Only readers use it: what is verified, and what a run or an expiry decides by, never comes from here.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Created, Item, Requests, Store, Upload};
use crate::{
    error::Result,
    format::envelope,
    model::{digest::Digest, time::Instant},
};

/// All copies of a volume together, bytes; the oldest go when they are more.
const BYTES_MAX: u64 = 256 << 20;
/// Longest record that is kept.
const RECORD_LEN_MAX: u64 = 1 << 20;
const DIGEST_LEN: usize = 32;

/// A store with copies of its records in a directory.
pub struct Cached {
    inner: Arc<dyn Store>,
    dir: PathBuf,
    is_pruned: AtomicBool,
}

/// Where caches are: `$XDG_CACHE_HOME/bk`, else `/var/cache/bk` as root, else `~/.cache/bk`.
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

impl Cached {
    /// `inner` with copies kept for the volume of this id; `inner` itself where there is no place for them.
    pub fn over(inner: Arc<dyn Store>, id: &str) -> Arc<dyn Store> {
        match base() {
            Some(base) if is_private(&base) && is_private(&base.join(id)) => {
                Arc::new(Self { inner, dir: base.join(id), is_pruned: AtomicBool::new(false) })
            }
            _ => inner,
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        // No key holds a `+`.
        self.dir.join(key.replace('/', "+"))
    }

    fn copy(&self, key: &str, len_max: u64) -> Option<Vec<u8>> {
        let file = OpenOptions::new().read(true).open(self.path(key)).ok()?;
        let mut bytes = Vec::new();
        file.take(RECORD_LEN_MAX + DIGEST_LEN as u64 + 1).read_to_end(&mut bytes).ok()?;
        let digest = bytes.split_off(bytes.len().checked_sub(DIGEST_LEN)?);
        let is_good = bytes.len() as u64 <= len_max && digest == digest_of(key, &bytes).0;
        is_good.then_some(bytes)
    }

    fn keep(&self, key: &str, bytes: &[u8]) {
        if bytes.len() as u64 > RECORD_LEN_MAX || envelope::digest(bytes).is_err() {
            return;
        }
        if !self.is_pruned.swap(true, Ordering::Relaxed) {
            prune(&self.dir, BYTES_MAX);
        }
        let (path, mut temp) = (self.path(key), self.dir.join(".new"));
        temp.as_mut_os_string().push(format!("-{}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&temp).and_then(|mut file| {
            file.write_all(bytes)?;
            file.write_all(&digest_of(key, bytes).0)
        });
        if written.and_then(|()| fs::rename(&temp, path)).is_err() {
            let _ = fs::remove_file(temp);
        }
    }
}

fn digest_of(key: &str, bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.as_bytes()).update(b"\n").update(bytes);
    Digest(*hasher.finalize().as_bytes())
}

/// Removes the oldest files of a directory till what is left is at most three quarters of `max`, if it is more than that.
fn prune(dir: &Path, max: u64) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let files = entries.flatten().filter_map(|entry| Some((entry.metadata().ok()?, entry.path())));
    let mut files: Vec<(fs::Metadata, PathBuf)> = files.filter(|(meta, _)| meta.is_file()).collect();
    let mut total: u64 = files.iter().map(|(meta, _)| meta.len()).sum();
    if total <= max {
        return;
    }
    files.sort_by_key(|(meta, _)| meta.mtime());
    for (meta, path) in files {
        if total <= max / 4 * 3 {
            return;
        }
        if fs::remove_file(path).is_ok() {
            total -= meta.len();
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Cached {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        self.inner.create(key)
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        self.inner.put_new(key, bytes)
    }

    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(key, offset, buf)
    }

    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        if !key.starts_with("log/") {
            return self.inner.read(key, len_max);
        }
        if let Some(bytes) = self.copy(key, len_max) {
            return Ok(bytes);
        }
        let bytes = self.inner.read(key, len_max)?;
        self.keep(key, &bytes);
        Ok(bytes)
    }

    fn head(&self, key: &str) -> Result<Option<u64>> {
        self.inner.head(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Item>> {
        self.inner.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key)
    }

    fn delete_all(&self, keys: &[String]) -> Result<()> {
        self.inner.delete_all(keys)
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes()
    }

    fn scratch(&self) -> Result<std::fs::File> {
        self.inner.scratch()
    }

    fn check_writable(&self) -> Result<()> {
        self.inner.check_writable()
    }

    fn now(&self) -> Option<Instant> {
        self.inner.now()
    }

    fn requests(&self) -> Option<Requests> {
        self.inner.requests()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::memory::MemoryStore;

    #[test]
    fn a_copy_is_used_once_it_is_right_and_only_then() {
        let dir = tempfile::tempdir().unwrap();
        let memory = MemoryStore::default();
        let cached =
            Cached { inner: Arc::new(memory.clone()), dir: dir.path().to_owned(), is_pruned: AtomicBool::new(false) };
        let record = envelope::encode(&serde_json::json!({"a": 1})).unwrap();
        let key = "log/db/00000000000000000001.json";
        memory.set(key, record.clone());
        assert_eq!(cached.read(key, 1000).unwrap(), record);
        memory.delete(key).unwrap();
        assert_eq!(cached.read(key, 1000).unwrap(), record);
        assert!(cached.read(key, 3).is_err());
        // Every damaged byte makes it none, and so does another's key.
        let path = cached.path(key);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            assert!(cached.read(key, 1000).is_err(), "byte {at}");
        }
        fs::write(cached.path("log/db/00000000000000000002.json"), &good).unwrap();
        assert!(cached.read("log/db/00000000000000000002.json", 1000).is_err());
        // What is damaged in the store is not kept.
        memory.set("log/db/00000000000000000003.json", b"{}\n".to_vec());
        cached.read("log/db/00000000000000000003.json", 1000).unwrap();
        assert!(!cached.path("log/db/00000000000000000003.json").exists());
    }

    #[test]
    fn the_oldest_copies_go() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..10 {
            fs::write(dir.path().join(format!("{n}")), [0; 100]).unwrap();
        }
        prune(dir.path(), 1000);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 10);
        prune(dir.path(), 900);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6);
    }
}
