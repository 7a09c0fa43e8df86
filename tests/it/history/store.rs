//! A store that dies: after so many calls nothing is done any more, as if the process that asks had been killed there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bk::error::{Error, Kind, Result};
use bk::volume::{Created, Item, Store, Upload};

/// Calls that are left.
#[derive(Clone)]
pub struct Life {
    left: Arc<AtomicI64>,
    /// Whether the last call is still done, but not answered.
    last_is_done: Arc<AtomicBool>,
}

impl Life {
    pub fn endless() -> Self {
        Self { left: Arc::new(AtomicI64::new(i64::MAX)), last_is_done: Arc::new(AtomicBool::new(false)) }
    }

    /// It ends after `calls` calls.
    pub fn end_after(&self, calls: i64, last_is_done: bool) {
        self.last_is_done.store(last_is_done, Ordering::Relaxed);
        self.left.store(calls, Ordering::Relaxed);
    }

    /// How many calls were made since it was `from`; then it is endless again.
    pub fn revive(&self, from: i64) -> i64 {
        from - self.left.swap(i64::MAX, Ordering::Relaxed)
    }

    fn dead() -> Error {
        Error::new(Kind::Volume, "the process is dead")
    }

    fn call<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.left.fetch_sub(1, Ordering::Relaxed) {
            1.. => call(),
            0 if self.last_is_done.load(Ordering::Relaxed) => {
                drop(call());
                Err(Self::dead())
            }
            _ => Err(Self::dead()),
        }
    }
}

/// A store with a [`Life`].
pub struct Mortal {
    pub inner: Arc<dyn Store>,
    pub life: Life,
}

struct MortalUpload {
    inner: Box<dyn Upload>,
    life: Life,
}

impl Upload for MortalUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.life.call(|| self.inner.write(bytes))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Self { inner, life } = *self;
        life.call(|| inner.finish())
    }
}

impl Store for Mortal {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        self.life.call(|| {
            let inner = self.inner.create(key)?;
            Ok(Box::new(MortalUpload { inner, life: self.life.clone() }) as Box<dyn Upload>)
        })
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        self.life.call(|| self.inner.put_new(key, bytes))
    }

    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.life.call(|| self.inner.read_at(key, offset, buf))
    }

    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        self.life.call(|| self.inner.read(key, len_max))
    }

    fn head(&self, key: &str) -> Result<Option<u64>> {
        self.life.call(|| self.inner.head(key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Item>> {
        self.life.call(|| self.inner.list(prefix))
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.life.call(|| self.inner.delete(key))
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes()
    }

    fn scratch(&self) -> Result<std::fs::File> {
        self.inner.scratch()
    }

    fn check_writable(&self) -> Result<()> {
        self.life.call(|| self.inner.check_writable())
    }
}
