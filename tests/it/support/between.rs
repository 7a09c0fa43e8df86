//! A store at which others get in between.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex};

use bk::error::Result;
use bk::model::time::Instant;
use bk::volume::{Created, Item, Store, Upload};

/// What is done once.
pub type Then = Box<dyn FnOnce() + Send>;

/// Does something just before an object whose key holds a text is made, or before the `list N of PREFIX`.
pub struct Between {
    inner: Arc<dyn Store>,
    then: Mutex<Option<(&'static str, Then)>>,
    lists: Mutex<BTreeMap<String, usize>>,
}

impl Between {
    pub fn new(inner: Arc<dyn Store>, text: &'static str, then: impl FnOnce() + Send + 'static) -> Self {
        Self { inner, then: Mutex::new(Some((text, Box::new(then)))), lists: Mutex::default() }
    }

    fn reached(&self, is_it: impl Fn(&str) -> bool) {
        let mut then = self.then.lock().unwrap();
        if then.as_ref().is_some_and(|(text, _)| is_it(text))
            && let Some((_, act)) = then.take()
        {
            drop(then);
            act();
        }
    }
}

impl Store for Between {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        self.reached(|text| key.contains(text));
        self.inner.create(key)
    }
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        self.reached(|text| key.contains(text));
        self.inner.put_new(key, bytes)
    }
    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(key, offset, buf)
    }
    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        self.inner.read(key, len_max)
    }
    fn head(&self, key: &str) -> Result<Option<u64>> {
        self.inner.head(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Item>> {
        let count = {
            let mut lists = self.lists.lock().unwrap();
            let count = lists.entry(prefix.to_owned()).or_default();
            *count += 1;
            *count
        };
        self.reached(|text| text == format!("list {count} of {prefix}"));
        self.inner.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key)
    }
    fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes()
    }
    fn scratch(&self) -> Result<File> {
        self.inner.scratch()
    }
    fn check_writable(&self) -> Result<()> {
        self.inner.check_writable()
    }
}

/// A store with a clock of its own.
pub struct Dated {
    pub inner: Arc<dyn Store>,
    pub now: Instant,
}

impl Store for Dated {
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
        self.inner.read(key, len_max)
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
    fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes()
    }
    fn scratch(&self) -> Result<File> {
        self.inner.scratch()
    }
    fn check_writable(&self) -> Result<()> {
        self.inner.check_writable()
    }
    fn now(&self) -> Option<Instant> {
        Some(self.now)
    }
}
