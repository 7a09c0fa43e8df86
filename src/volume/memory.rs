//! A volume in memory: for tests and fuzzing, where every byte of a volume is to be set.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Created, Item, Store, Upload};
use crate::error::{Error, Kind, Result};

type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Objects by key.
#[derive(Clone, Default)]
pub struct MemoryStore {
    objects: Objects,
}

fn locked(objects: &Objects) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
    objects.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryStore {
    /// Sets an object's bytes, whatever they were.
    pub fn set(&self, key: &str, bytes: Vec<u8>) {
        locked(&self.objects).insert(key.to_owned(), bytes);
    }

    fn existing<T>(&self, key: &str, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        match locked(&self.objects).get(key) {
            Some(bytes) => read(bytes),
            None => Err(Error::integrity(format!("{key} is missing"))),
        }
    }
}

struct MemoryUpload {
    objects: Objects,
    key: String,
    bytes: Vec<u8>,
}

impl Upload for MemoryUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        match locked(&self.objects).entry(self.key) {
            std::collections::btree_map::Entry::Occupied(taken) => {
                Err(Error::new(Kind::Lost, format!("{} exists already", taken.key())))
            }
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(self.bytes);
                Ok(())
            }
        }
    }
}

impl Store for MemoryStore {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(MemoryUpload { objects: Arc::clone(&self.objects), key: key.to_owned(), bytes: Vec::new() }))
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        let mut objects = locked(&self.objects);
        if objects.contains_key(key) {
            return Ok(Created::Exists);
        }
        objects.insert(key.to_owned(), bytes.to_vec());
        Ok(Created::New)
    }

    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.existing(key, |bytes| {
            let at = usize::try_from(offset).ok();
            match at.and_then(|at| bytes.get(at..at.checked_add(buf.len())?)) {
                Some(found) => {
                    buf.copy_from_slice(found);
                    Ok(())
                }
                None => {
                    Err(Error::integrity(format!("{key} ends before byte {}", offset.saturating_add(buf.len() as u64))))
                }
            }
        })
    }

    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        self.existing(key, |bytes| {
            if bytes.len() as u64 > len_max {
                return Err(Error::integrity(format!("{key} is longer than {len_max} bytes")));
            }
            Ok(bytes.to_vec())
        })
    }

    fn head(&self, key: &str) -> Result<Option<u64>> {
        Ok(locked(&self.objects).get(key).map(|bytes| bytes.len() as u64))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Item>> {
        let objects = locked(&self.objects);
        let within = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(within
            .map(|(key, bytes)| Item { key: key.clone(), len: bytes.len() as u64, stored_unix_ms: None })
            .collect())
    }

    fn delete(&self, key: &str) -> Result<()> {
        locked(&self.objects).remove(key);
        Ok(())
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn scratch(&self) -> Result<std::fs::File> {
        file()
    }

    fn check_writable(&self) -> Result<()> {
        Ok(())
    }
}

/// A file in memory, without a name.
pub(super) fn file() -> Result<std::fs::File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let fd = rustix::fs::memfd_create("bk", flags).map_err(|e| Error::io("cannot make a file in memory", e))?;
    Ok(fd.into())
}
