//! Decoded frames: kept up to a number of bytes, each fetched and decoded once however many wait for it.
//!
//! Workers take what somebody waits for before what is only fetched ahead. A frame's digest is checked before it is decoded
//! ([`FrameReader`]), so what is here was checked once and is never checked again.

use std::{
    collections::{HashMap, VecDeque},
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use super::{
    content::Stored,
    counts::{Counts, add},
};
use crate::{
    engine::read::frame::FrameReader,
    error::{Error, Result},
    monitor::Monitor,
};

/// The plain bytes of a frame.
pub type Plain = Arc<Held>;

/// Index, stream, offset.
type Key = (u64, u32, u64);

/// Called with the frame; none when it could not be had, which was told.
type Waiter = Box<dyn FnOnce(Option<Plain>) + Send>;

/// Decoded bytes in a buffer that is used again when nobody has them any more, neither the cache nor a reader.
pub struct Held {
    bytes: Vec<u8>,
    spare: Spare,
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.spare.give_back(std::mem::take(&mut self.bytes));
    }
}

#[derive(Clone)]
struct ByLen;

impl Weighter<Key, Plain> for ByLen {
    fn weight(&self, _: &Key, plain: &Plain) -> u64 {
        plain.bytes.capacity() as u64 + 64
    }
}

/// Buffers nobody uses at the moment. Given back to the heap, those of a few MiB would leave gaps in it that nothing fits into:
/// with them a cache of 256 MiB took 430 MiB. They come in few sizes, and what the cache holds is counted by them.
#[derive(Clone)]
struct Spare {
    held: Arc<Mutex<VecDeque<Vec<u8>>>>,
    /// So many bytes of them wait to be used again.
    len_max: usize,
}

/// For few workers: a frame for each and some more.
const SPARE_LEN_MIN: usize = 12 << 20;
/// For many: what they all may have at a time, or it would go back and forth between here and the heap.
const SPARE_LEN_MAX: usize = 32 << 20;
/// What one worker has of them, mostly.
const FRAME_LEN: usize = 4 << 20;
/// Longer frames, which are rare, have buffers of their own.
const SPARE_FRAME_MAX: usize = 8 << 20;
/// What a buffer has more than a power of two: the decoder wants a byte.
const MARGIN: usize = 4096;

impl Spare {
    fn new(threads: usize) -> Self {
        Self { held: Arc::default(), len_max: Self::len_max(threads) }
    }

    fn len_max(threads: usize) -> usize {
        (threads * FRAME_LEN).clamp(SPARE_LEN_MIN, SPARE_LEN_MAX)
    }

    fn held(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, len: usize) -> Vec<u8> {
        let len = len.next_power_of_two().max(MARGIN) + MARGIN;
        let mut held = self.held();
        // The last one given back first: it is the likeliest to be in the processor's cache.
        let found = held.iter().rposition(|buffer| buffer.capacity() == len).and_then(|at| held.remove(at));
        drop(held);
        found.unwrap_or_else(|| Vec::with_capacity(len))
    }

    fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() == 0 || buffer.capacity() > SPARE_FRAME_MAX + MARGIN {
            return;
        }
        let mut held = self.held();
        let mut len = held.iter().map(Vec::capacity).sum::<usize>() + buffer.capacity();
        // Sizes that are no longer asked for make room.
        while len > self.len_max
            && let Some(old) = held.pop_front()
        {
            len -= old.capacity();
        }
        held.push_back(buffer);
    }
}

/// Frames being fetched take so many bytes at most, stored and plain, but for one that is longer: a store that is far away has many
/// workers, and each might have a frame.
const FLYING_LEN: std::ops::RangeInclusive<u64> = 8 << 20..=32 << 20;

/// Of frames to be fetched ahead so many stored bytes at most are told to the store, which then joins their requests.
const TOLD_LEN: std::ops::RangeInclusive<u64> = 1 << 20..=8 << 20;

/// What of the memory for frames is left for those on their way and for spare buffers.
fn reserved(cache_len: u64, threads: usize) -> u64 {
    (cache_len / 4).min((Spare::len_max(threads) + threads * FRAME_LEN) as u64)
}

/// The frames of a mount.
pub struct Frames {
    shared: Arc<Shared>,
}

struct Shared {
    cache: Cache<Key, Plain, ByLen>,
    spare: Spare,
    flights: Mutex<Flights>,
    news: Condvar,
    /// Workers that may fetch ahead at one time.
    ahead_max: usize,
    /// Bytes that may be queued to be fetched ahead.
    ahead_len_max: u64,
    /// Stored bytes the store may be told of before they are read.
    told_len_max: u64,
    /// Bytes of frames that may be fetched at one time.
    flying_len_max: u64,
    counts: Arc<Counts>,
    monitor: Arc<dyn Monitor>,
}

#[derive(Default)]
struct Flights {
    flying: HashMap<Key, Flight>,
    wanted: VecDeque<Stored>,
    ahead: VecDeque<Stored>,
    ahead_len: u64,
    ahead_running: usize,
    told_len: u64,
    /// Bytes, stored and plain, of what workers are at.
    flying_len: u64,
    is_over: bool,
}

impl Flights {
    /// Whether a worker may begin with this one.
    fn has_room(&self, stored: &Stored, len_max: u64) -> bool {
        self.flying_len == 0 || self.flying_len + len_of(stored) <= len_max
    }

    /// False when another worker has begun with it or has ended it.
    fn begin(&mut self, stored: &Stored) -> bool {
        match self.flying.get_mut(&key_of(stored)) {
            Some(flight) if !flight.is_begun => {
                flight.is_begun = true;
                true
            }
            _ => false,
        }
    }
}

#[derive(Default)]
struct Flight {
    waiters: Vec<Waiter>,
    is_begun: bool,
    /// Stored bytes of it the store was told of.
    told_len: u64,
}

fn key_of(stored: &Stored) -> Key {
    (stored.opened.chain.run(stored.run).id(), stored.frame.stream, stored.frame.offset)
}

/// What fetching a frame takes, bytes.
fn len_of(stored: &Stored) -> u64 {
    u64::from(stored.frame.len) + u64::from(stored.frame.stored_len)
}

impl Frames {
    /// Begins `threads` workers over a cache of `cache_len` bytes.
    pub fn new(cache_len: u64, threads: usize, counts: Arc<Counts>, monitor: Arc<dyn Monitor>) -> Result<Self> {
        let threads = threads.max(1);
        let items = usize::try_from(cache_len >> 20).unwrap_or(64).max(16);
        // One shard: a frame may be a large part of the cache. Half of it for frames that were used once, so that what was
        // fetched ahead is not pushed out before it is read.
        let options = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity(items)
            .weight_capacity(cache_len - reserved(cache_len, threads))
            .hot_allocation(0.5)
            .build()
            .map_err(|e| Error::usage(format!("cannot make a cache of {cache_len} bytes: {e}")))?;
        let shared = Arc::new(Shared {
            cache: Cache::with_options(options, ByLen, DefaultHashBuilder::default(), DefaultLifecycle::default()),
            spare: Spare::new(threads),
            flights: Mutex::default(),
            news: Condvar::new(),
            ahead_max: (threads - threads / 4).max(1),
            ahead_len_max: cache_len / 4,
            told_len_max: (cache_len / 32).clamp(*TOLD_LEN.start(), *TOLD_LEN.end()),
            flying_len_max: (cache_len / 8).clamp(*FLYING_LEN.start(), *FLYING_LEN.end()),
            counts,
            monitor,
        });
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.work());
        }
        Ok(Self { shared })
    }

    /// A frame that is at hand.
    pub fn get(&self, stored: &Stored) -> Option<Plain> {
        self.shared.cache.get(&key_of(stored))
    }

    /// Calls `waiter` with the frame as soon as it is there.
    pub fn want(&self, stored: &Stored, waiter: Waiter) {
        let key = key_of(stored);
        let mut flights = self.shared.flights();
        // It may have come since the caller looked.
        if let Some(plain) = self.shared.cache.get(&key) {
            drop(flights);
            return waiter(Some(plain));
        }
        let flight = flights.flying.entry(key).or_default();
        let must_queue = !flight.is_begun && flight.waiters.is_empty();
        flight.waiters.push(waiter);
        if must_queue {
            flights.wanted.push_back(stored.clone());
            drop(flights);
            self.shared.news.notify_one();
        }
    }

    /// Fetches frames nobody waits for yet, in order, as far as there is room for them.
    pub fn fetch_ahead(&self, frames: &[Stored]) {
        let place = |stored: &Stored| {
            let index = stored.opened.chain.run(stored.run);
            if index.store().ahead_len() > 0 { index.place(&stored.frame).ok() } else { None }
        };
        let absent = frames.iter().filter(|stored| self.shared.cache.peek(&key_of(stored)).is_none());
        let absent: Vec<_> = absent.map(|stored| (stored, place(stored))).collect();
        let mut flights = self.shared.flights();
        for (stored, place) in absent {
            let (key, len) = (key_of(stored), u64::from(stored.frame.len));
            if flights.flying.contains_key(&key) || flights.ahead_len + len > self.shared.ahead_len_max {
                continue;
            }
            let (mut flight, stored_len) = (Flight::default(), u64::from(stored.frame.stored_len));
            // All of them before a worker may begin with one, or its bytes would be fetched twice, or alone.
            if let Some((part, range)) = place.filter(|_| flights.told_len + stored_len <= self.shared.told_len_max) {
                stored.opened.chain.run(stored.run).store().expect(&part, range);
                flight.told_len = stored_len;
            }
            flights.told_len += flight.told_len;
            flights.flying.insert(key, flight);
            flights.ahead_len += len;
            flights.ahead.push_back(stored.clone());
        }
        drop(flights);
        // Who begins with one has the next worker look for more.
        self.shared.news.notify_one();
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.shared.flights().is_over = true;
        self.shared.news.notify_all();
    }
}

impl Shared {
    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next frame to fetch, and whether it is only ahead; none at the end.
    fn next(&self) -> Option<(Stored, bool)> {
        let mut flights = self.flights();
        loop {
            if flights.is_over {
                return None;
            }
            if let Some((stored, is_ahead)) = self.begin_one(&mut flights) {
                flights.flying_len += len_of(&stored);
                let is_more = !flights.wanted.is_empty() || !flights.ahead.is_empty();
                drop(flights);
                if is_more {
                    // Room for one may be room for several.
                    self.news.notify_one();
                }
                return Some((stored, is_ahead));
            }
            flights = self.news.wait(flights).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn begin_one(&self, flights: &mut Flights) -> Option<(Stored, bool)> {
        while let Some(stored) = flights.wanted.front() {
            if !flights.has_room(stored, self.flying_len_max) {
                return None;
            }
            let stored = flights.wanted.pop_front()?;
            if flights.begin(&stored) {
                return Some((stored, false));
            }
        }
        while flights.ahead_running < self.ahead_max
            && let Some(stored) = flights.ahead.front()
        {
            if !flights.has_room(stored, self.flying_len_max) {
                return None;
            }
            let stored = flights.ahead.pop_front()?;
            if flights.begin(&stored) {
                flights.ahead_running += 1;
                return Some((stored, true));
            }
            // Somebody wanted it before its turn came.
            flights.ahead_len -= u64::from(stored.frame.len);
        }
        None
    }

    fn work(&self) {
        let mut reader = FrameReader::new();
        while let Some((stored, is_ahead)) = self.next() {
            let read = match &mut reader {
                Ok(reader) => catch_unwind(AssertUnwindSafe(|| self.read(reader, &stored))),
                Err(e) => Ok(Err(Error::new(e.kind(), e.to_string()))),
            };
            let read = read.unwrap_or_else(|_| {
                reader = FrameReader::new();
                Err(Error::integrity("a frame made its decoder panic"))
            });
            add(&self.counts.decoded);
            self.done(&stored, is_ahead, read);
        }
    }

    fn read(&self, reader: &mut FrameReader, stored: &Stored) -> Result<Plain> {
        // What a frame says of its length was not checked yet: no more than a usual one is made room for in advance.
        let mut plain = match stored.frame.len as usize {
            len @ ..=SPARE_FRAME_MAX => self.spare.take(len),
            _ => Vec::new(),
        };
        reader.read(stored.opened.chain.run(stored.run), &stored.frame, &mut plain)?;
        Ok(Arc::new(Held { bytes: plain, spare: self.spare.clone() }))
    }

    fn done(&self, stored: &Stored, is_ahead: bool, read: Result<Plain>) {
        let key = key_of(stored);
        let plain = match read {
            Ok(plain) => Some(plain),
            Err(e) => {
                add(&self.counts.faults);
                self.monitor.warn(&e.to_string());
                None
            }
        };
        let mut flights = self.flights();
        flights.flying_len -= len_of(stored);
        // Before the flight ends: whoever finds it gone finds the frame.
        if let Some(plain) = &plain {
            self.cache.insert(key, Arc::clone(plain));
        }
        let flight = flights.flying.remove(&key).unwrap_or_default();
        flights.told_len -= flight.told_len;
        if is_ahead {
            flights.ahead_running -= 1;
            flights.ahead_len -= u64::from(stored.frame.len);
            add(&self.counts.ahead);
        }
        drop(flights);
        self.news.notify_one();
        flight.waiters.into_iter().for_each(|waiter| waiter(plain.clone()));
    }
}
