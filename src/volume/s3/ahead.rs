//! Bytes fetched before they are read: what is expected is joined to requests of up to [`REQUEST_LEN`], several at once.
//!
//! A reader tells what it will read ([`crate::volume::Store::expect`]); neighbouring ranges become one request. Requests
//! begin in that order while all that was fetched and not yet read is at most [`WINDOW_LEN`], or at once when a reader
//! waits for one. Nothing depends on it: what was not expected or was refused is read by a request of its own, which also
//! tells what is wrong.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{
    S3Store,
    retry::{Failure, Fault},
    watch::LOOK,
};
use crate::error::Result;

/// One request fetches at most this much, but for a single range that is longer.
const REQUEST_LEN: u64 = 8 << 20;
/// All that is fetched and was not read is at most this much, but for what readers wait for.
pub(super) const WINDOW_LEN: u64 = 32 << 20;
/// Ranges this close to each other are fetched together.
const GAP_LEN: u64 = 64 << 10;

/// What is expected, in order.
#[derive(Debug, Default)]
pub(super) struct Ahead(Mutex<VecDeque<Group>>);

/// Ranges that one request fetches.
#[derive(Debug)]
struct Group {
    key: String,
    range: Range<u64>,
    /// Bytes of it that are expected and were not read.
    left: u64,
    /// Once it was begun.
    fetch: Option<Arc<Fetch>>,
}

impl Group {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn holds(&self, key: &str, range: &Range<u64>) -> bool {
        self.key == key && self.range.start <= range.start && range.end <= self.range.end
    }
}

/// A request under way or done.
#[derive(Debug, Default)]
struct Fetch {
    /// Once it has ended.
    done: Mutex<Option<Result<Vec<u8>, Failure>>>,
    came: Condvar,
}

impl Ahead {
    fn locked(&self) -> MutexGuard<'_, VecDeque<Group>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what is kept of an object.
    pub fn forget(&self, key: &str) {
        self.locked().retain(|group| group.key != key);
    }

    /// Drops what could not be fetched: who comes later asks anew.
    fn forget_one(&self, fetch: &Arc<Fetch>) {
        self.locked().retain(|group| group.fetch.as_ref().is_none_or(|own| !Arc::ptr_eq(own, fetch)));
    }

    fn add(&self, key: &str, range: Range<u64>) {
        let len = range.end - range.start;
        let mut groups = self.locked();
        if let Some(last) = groups.back_mut().filter(|last| last.key == key && last.fetch.is_none()) {
            let follows = last.range.end <= range.start && range.start - last.range.end <= GAP_LEN;
            if follows && range.end - last.range.start <= REQUEST_LEN {
                last.range.end = range.end;
                last.left += len;
                return;
            }
        }
        groups.push_back(Group { key: key.to_owned(), range, left: len, fetch: None });
    }

    /// The group that holds a range, begun; `None` when there is none.
    fn wanted(&self, key: &str, range: &Range<u64>) -> Option<(u64, Arc<Fetch>, Option<Range<u64>>)> {
        let mut groups = self.locked();
        let at = groups.iter().position(|group| group.holds(key, range))?;
        let (start, whole, begun) = (groups[at].range.start, groups[at].range.clone(), groups[at].fetch.is_some());
        let fetch = Arc::clone(groups[at].fetch.get_or_insert_default());
        if begun {
            return Some((start, fetch, None));
        }
        // What was to be read before it and takes the room will hardly be wanted any more: the oldest goes.
        while groups.iter().filter(|group| group.fetch.is_some()).map(Group::len).sum::<u64>() > WINDOW_LEN {
            let oldest = groups.iter().position(|group| group.holds(key, range) || group.fetch.is_some());
            match oldest.filter(|oldest| !groups[*oldest].holds(key, range)) {
                Some(oldest) => drop(groups.remove(oldest)),
                None => break,
            }
        }
        Some((start, fetch, Some(whole)))
    }

    /// Counts `len` bytes of a range as read.
    fn taken(&self, key: &str, range: &Range<u64>) {
        let mut groups = self.locked();
        if let Some(at) = groups.iter().position(|group| group.holds(key, range)) {
            groups[at].left = groups[at].left.saturating_sub(range.end - range.start);
            if groups[at].left == 0 {
                groups.remove(at);
            }
        }
    }

    /// Groups that are whole and have room, to be begun now.
    fn next(&self) -> Vec<(String, Range<u64>, Arc<Fetch>)> {
        let mut groups = self.locked();
        let mut held: u64 = groups.iter().filter(|group| group.fetch.is_some()).map(Group::len).sum();
        let mut begun = Vec::new();
        // The last one may still grow.
        let whole = groups.len().saturating_sub(1);
        for group in groups.iter_mut().take(whole).filter(|group| group.fetch.is_none()) {
            if held > 0 && held + group.len() > WINDOW_LEN {
                break;
            }
            held += group.len();
            begun.push((group.key.clone(), group.range.clone(), Arc::clone(group.fetch.get_or_insert_default())));
        }
        begun
    }
}

impl S3Store {
    /// Notes that a range will be read.
    pub(super) fn expect_soon(&self, key: &str, range: Range<u64>) {
        if range.start < range.end && self.inner.path(key).is_ok() {
            self.inner.ahead.add(key, range);
            self.begin_next();
        }
    }

    fn begin_next(&self) {
        for (key, range, fetch) in self.inner.ahead.next() {
            self.begin(&key, range, fetch);
        }
    }

    fn begin(&self, key: &str, range: Range<u64>, fetch: Arc<Fetch>) {
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        let shared = Arc::clone(&fetch);
        let doing = async move {
            let read = async {
                let path = inner.path(&key).map_err(|e| Failure::ours(e.to_string()))?;
                let len = usize::try_from(range.end - range.start).map_err(|e| Failure::ours(e.to_string()))?;
                let mut bytes = vec![0; len];
                inner.fill(&path, range.start, &mut bytes).await.map(|()| bytes)
            };
            let read = read.await;
            if read.is_err() {
                inner.ahead.forget_one(&shared);
            }
            *shared.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
            shared.came.notify_all();
        };
        if self.threads.spawn(doing).is_none() {
            let none = Err(Failure::ours("the store is closed".to_owned()));
            *fetch.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(none);
        }
    }

    /// Fills `buf` from what was fetched ahead; false when it was not.
    pub(super) fn take_ahead(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<bool> {
        let range = offset..offset.saturating_add(buf.len() as u64);
        let Some((start, fetch, to_begin)) = self.inner.ahead.wanted(key, &range) else { return Ok(false) };
        if let Some(whole) = to_begin {
            self.begin(key, whole, Arc::clone(&fetch));
        }
        let mut done = fetch.done.lock().unwrap_or_else(PoisonError::into_inner);
        while done.is_none() {
            if let Some(signal) = self.inner.watch.signal() {
                return Err(signal);
            }
            done = fetch.came.wait_timeout(done, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        let at = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let found = match done.as_ref() {
            Some(Ok(bytes)) => {
                let part = bytes.get(at..).and_then(|rest| rest.get(..buf.len()));
                Ok(part.map(|part| buf.copy_from_slice(part)).is_some())
            }
            // It was tried as long and as often as another request would be.
            Some(Err(failure)) if failure.fault == Fault::Again => Err(self.inner.missing_or(failure.clone(), key)),
            // Of what was asked for together another range may be at fault.
            _ => Ok(false),
        };
        drop(done);
        self.inner.ahead.taken(key, &range);
        self.begin_next();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_request_and_the_window_holds() {
        let ahead = Ahead::default();
        let mib = |n: u64| n << 20;
        for n in 0..64 {
            ahead.add("a", mib(n)..mib(n + 1));
        }
        ahead.add("b", 0..10);
        let begun = ahead.next();
        let ranges: Vec<Range<u64>> = begun.iter().map(|(_, range, _)| range.clone()).collect();
        assert_eq!(ranges, [0..mib(8), mib(8)..mib(16), mib(16)..mib(24), mib(24)..mib(32)]);
        assert!(ahead.next().is_empty());
        // One is begun as soon as another was read whole, and not before.
        for n in 0..7 {
            ahead.taken("a", &(mib(n)..mib(n + 1)));
            assert!(ahead.next().is_empty(), "{n}");
        }
        ahead.taken("a", &(mib(7)..mib(8)));
        assert_eq!(ahead.next()[0].1, mib(32)..mib(40));
        // What is wanted begins at once; what nobody wanted makes room.
        let (start, _, to_begin) = ahead.wanted("b", &(0..10)).unwrap();
        assert_eq!((start, to_begin), (0, Some(0..10)));
        assert!(ahead.wanted("b", &(0..11)).is_none());
        ahead.forget("a");
        assert_eq!(ahead.locked().len(), 1);
    }
}
