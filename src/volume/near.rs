//! A store that is far away, with what was read of it kept near: index pages in memory, records and index pages on disk.
//!
//! Indexes are read in many small pieces, which would be a request each. They are fetched in pages of [`PAGE_LEN`], more
//! of them at once when they are read one after another. What is kept is never newer or older than the store: objects
//! are created once and never changed, and whether one is still there is asked of the store. Only readers have copies on
//! disk: what is verified, and what a run or an expiry decides by, comes from the store.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Created, Item, Requests, Store, Upload, copies::Copies};
use crate::{error::Result, format::envelope};

/// Indexes are fetched in pages of so many bytes.
const PAGE_LEN: u64 = 256 << 10;
/// Pages held in memory.
const PAGE_COUNT_MAX: usize = 64;
/// Pages fetched at once when they are read in order.
const RUN_COUNT: u64 = 8;
/// Longest record that is kept.
const RECORD_LEN_MAX: u64 = 1 << 20;

/// A store, and what is kept of it.
pub struct Near {
    inner: Arc<dyn Store>,
    copies: Option<Copies>,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    /// The last used first.
    held: VecDeque<Page>,
    /// Lengths of indexes.
    lens: HashMap<String, u64>,
}

#[derive(Clone)]
struct Page {
    key: Arc<str>,
    number: u64,
    bytes: Arc<[u8]>,
}

impl Pages {
    fn get(&mut self, key: &str, number: u64) -> Option<Arc<[u8]>> {
        let at = self.held.iter().position(|page| page.number == number && *page.key == *key)?;
        let page = self.held.remove(at)?;
        self.held.push_front(page.clone());
        Some(page.bytes)
    }

    fn has(&self, key: &str, number: u64) -> bool {
        self.held.iter().any(|page| page.number == number && *page.key == *key)
    }

    fn put(&mut self, page: Page) {
        self.held.push_front(page);
        self.held.truncate(PAGE_COUNT_MAX);
    }
}

fn is_index(key: &str) -> bool {
    key.ends_with(".bki")
}

fn is_record(key: &str) -> bool {
    key.starts_with("log/")
}

/// The name of a page among the copies; no key has a `@`.
fn page_name(key: &str, number: u64) -> String {
    format!("{key}@{number}")
}

impl Near {
    /// `inner`, with copies on disk where there are to be any.
    pub fn new(inner: Arc<dyn Store>, copies: Option<Copies>) -> Self {
        Self { inner, copies, pages: Mutex::default() }
    }

    fn locked(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len_of(&self, key: &str) -> Result<Option<u64>> {
        let known = self.locked().lens.get(key).copied();
        if known.is_some() { Ok(known) } else { self.head(key) }
    }

    /// A page, from wherever it is nearest. `last` is the last one that is wanted now.
    fn page(&self, key: &str, len: u64, number: u64, last: u64) -> Result<Arc<[u8]>> {
        if let Some(bytes) = self.locked().get(key, number) {
            return Ok(bytes);
        }
        if let Some(bytes) = self.copy(key, len, number) {
            return Ok(bytes);
        }
        let page_count = len.div_ceil(PAGE_LEN);
        // A short index is fetched whole; of a long one more than is wanted only when it is read in order.
        let is_in_order = number.checked_sub(1).is_some_and(|before| self.locked().has(key, before));
        let wanted = if page_count <= RUN_COUNT {
            page_count
        } else if is_in_order {
            (number + RUN_COUNT).max(last + 1)
        } else {
            last + 1
        };
        let has = |next: &u64| self.locked().has(key, *next);
        let end = (number + 1..wanted.min(page_count)).find(has).unwrap_or_else(|| wanted.min(page_count));
        let (from, to) = (number * PAGE_LEN, (end * PAGE_LEN).min(len));
        let mut fetched = vec![0; usize::try_from(to - from).unwrap_or(0)];
        self.inner.read_at(key, from, &mut fetched)?;
        let (mut found, shared) = (Arc::from([]), Arc::<str>::from(key));
        let pages = fetched.chunks(usize::try_from(PAGE_LEN).unwrap_or(usize::MAX));
        // The last one first: the first, which is wanted now, is then the newest.
        for (n, bytes) in (number..end).zip(pages).collect::<Vec<_>>().into_iter().rev() {
            if let Some(copies) = &self.copies {
                copies.keep(&page_name(key, n), bytes);
            }
            found = Arc::<[u8]>::from(bytes);
            self.locked().put(Page { key: Arc::clone(&shared), number: n, bytes: Arc::clone(&found) });
        }
        Ok(found)
    }

    fn copy(&self, key: &str, len: u64, number: u64) -> Option<Arc<[u8]>> {
        let own_len = PAGE_LEN.min(len.checked_sub(number * PAGE_LEN)?);
        let bytes = self.copies.as_ref()?.get(&page_name(key, number), own_len)?;
        if bytes.len() as u64 != own_len {
            return None;
        }
        let bytes = Arc::<[u8]>::from(bytes);
        self.locked().put(Page { key: Arc::from(key), number, bytes: Arc::clone(&bytes) });
        Some(bytes)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Near {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        self.inner.create(key)
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        self.inner.put_new(key, bytes)
    }

    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        let len = if is_index(key) && !buf.is_empty() { self.len_of(key)? } else { None };
        let Some(len) = len.filter(|len| end <= *len) else { return self.inner.read_at(key, offset, buf) };
        let (first, last) = (offset / PAGE_LEN, (end - 1) / PAGE_LEN);
        for number in first..=last {
            let page = self.page(key, len, number, last)?;
            let start = number * PAGE_LEN;
            let (from, to) = (offset.max(start), end.min(start + page.len() as u64));
            let at = |byte: u64, base: u64| usize::try_from(byte - base).unwrap_or(usize::MAX);
            buf[at(from, offset)..at(to, offset)].copy_from_slice(&page[at(from, start)..at(to, start)]);
        }
        Ok(())
    }

    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        let Some(copies) = self.copies.as_ref().filter(|_| is_record(key)) else {
            return self.inner.read(key, len_max);
        };
        if let Some(bytes) = copies.get(key, len_max.min(RECORD_LEN_MAX)) {
            return Ok(bytes);
        }
        let bytes = self.inner.read(key, len_max)?;
        if bytes.len() as u64 <= RECORD_LEN_MAX && envelope::digest(&bytes).is_ok() {
            copies.keep(key, &bytes);
        }
        Ok(bytes)
    }

    fn find(&self, key: &str, len_max: u64) -> Result<Option<Vec<u8>>> {
        self.inner.find(key, len_max)
    }

    fn expect(&self, key: &str, range: Range<u64>) {
        self.inner.expect(key, range);
    }

    fn ahead_len(&self) -> u64 {
        self.inner.ahead_len()
    }

    fn forget(&self, key: &str) {
        let len = {
            let mut pages = self.locked();
            pages.held.retain(|page| *page.key != *key);
            pages.lens.get(key).copied().unwrap_or(0)
        };
        if let Some(copies) = &self.copies {
            copies.remove(key);
            (0..len.div_ceil(PAGE_LEN)).for_each(|number| copies.remove(&page_name(key, number)));
        }
        self.inner.forget(key);
    }

    fn head(&self, key: &str) -> Result<Option<u64>> {
        let len = self.inner.head(key)?;
        if is_index(key) {
            let mut pages = self.locked();
            match len {
                Some(len) => pages.lens.insert(key.to_owned(), len),
                None => pages.lens.remove(key),
            };
        }
        Ok(len)
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

    fn hurry(&self) {
        self.inner.hurry();
    }

    fn now(&self) -> Option<crate::model::time::Instant> {
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
    fn a_record_is_read_once_and_what_is_damaged_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let memory = MemoryStore::default();
        let near = || {
            Near::new(Arc::new(memory.clone()), Some(Copies::within(&dir.path().join("bk"), "id", 1 << 20).unwrap()))
        };
        let record = envelope::encode(&serde_json::json!({"a": 1})).unwrap();
        let key = "log/db/00000000000000000001.json";
        memory.set(key, record.clone());
        assert_eq!(near().read(key, 1000).unwrap(), record);
        memory.delete(key).unwrap();
        assert_eq!(near().read(key, 1000).unwrap(), record);
        assert!(near().read(key, 3).is_err());
        // What is damaged in the store is not kept.
        memory.set("log/db/00000000000000000003.json", b"{}\n".to_vec());
        near().read("log/db/00000000000000000003.json", 1000).unwrap();
        memory.delete("log/db/00000000000000000003.json").unwrap();
        assert!(near().read("log/db/00000000000000000003.json", 1000).is_err());
    }

    #[test]
    fn an_index_comes_from_its_copy_until_that_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let memory = MemoryStore::default();
        let near = || {
            Near::new(Arc::new(memory.clone()), Some(Copies::within(&dir.path().join("bk"), "id", 64 << 20).unwrap()))
        };
        let key = "data/db/run/index-00000.bki";
        let page = usize::try_from(PAGE_LEN).unwrap();
        for len in [1, page - 1, page, 3 * page + 7, 20 * page + 1] {
            let bytes: Vec<u8> = (0..len).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect();
            memory.set(key, bytes.clone());
            let store = near();
            store.forget(key);
            let ranges = [(0, 1), (len - 1, 1), (len / 2, len - len / 2), (0, len), (len / 3, len / 4)];
            let same = |store: &Near| {
                for (from, len) in ranges {
                    let mut buf = vec![0; len];
                    store.read_at(key, from as u64, &mut buf).unwrap();
                    assert!(buf == bytes[from..from + len], "{from}+{len} of {}", bytes.len());
                }
                assert!(store.read_at(key, len as u64, &mut [0]).is_err());
            };
            same(&store);
            // Bytes of the same length that are others: copies do not notice, since objects never change.
            memory.set(key, vec![255; len]);
            let other = near();
            same(&other);
            other.forget(key);
            let mut buf = [0];
            other.read_at(key, 0, &mut buf).unwrap();
            assert_eq!(buf, [255]);
            other.forget(key);
        }
    }
}
