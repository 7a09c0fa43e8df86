//! A store that is used no faster than asked: so many bytes a second on average, each way.
//!
//! It counts what is put into uploads and what is read; a store that collects an object before it sends it, or fetches
//! ahead, sends and fetches that much in one go.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{Created, Item, Pending, Requests, Store, Upload};
use crate::{
    error::{Error, Kind, Result},
    model::stop::Stop,
};

/// What was not used may be made up for so long.
const SLACK: Duration = Duration::from_millis(100);
/// A signal is looked for this often.
const LOOK: Duration = Duration::from_millis(100);
/// What is paid for in one piece takes a second divided by this, so that who wants little need not wait for one who wants much.
const SLICES: u64 = 10;

/// When all that was taken is paid for, since some beginning.
#[derive(Debug)]
struct Meter {
    rate: u64,
    paid_until: Duration,
}

impl Meter {
    /// Takes `len` bytes at `now`; gives how long to wait then.
    fn take(&mut self, now: Duration, len: u64) -> Duration {
        let micros = len.saturating_mul(1_000_000) / self.rate.max(1);
        self.paid_until = self.paid_until.max(now.saturating_sub(SLACK)) + Duration::from_micros(micros);
        self.paid_until.saturating_sub(now)
    }
}

/// One way's limit, shared by all who go it.
#[derive(Debug)]
struct Way {
    began_at: Instant,
    meter: Option<Mutex<Meter>>,
    stop: Stop,
}

impl Way {
    fn new(rate: Option<u64>, stop: &Stop) -> Arc<Self> {
        let meter = rate.map(|rate| Mutex::new(Meter { rate, paid_until: Duration::ZERO }));
        Arc::new(Self { began_at: Instant::now(), meter, stop: stop.clone() })
    }

    /// Waits until `len` more bytes are due: slice by slice, each in turn with those of others.
    fn pay(&self, len: usize) -> Result<()> {
        let Some(meter) = &self.meter else { return Ok(()) };
        let mut unpaid = len as u64;
        while unpaid > 0 {
            let left = {
                let mut meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
                let slice = unpaid.min((meter.rate / SLICES).max(1));
                unpaid -= slice;
                meter.take(self.began_at.elapsed(), slice)
            };
            self.wait(left)?;
        }
        Ok(())
    }

    fn wait(&self, mut left: Duration) -> Result<()> {
        while !left.is_zero() {
            if let Some(signal) = self.stop.signal() {
                return Err(Error::new(Kind::Signal(signal), "interrupted"));
            }
            let nap = left.min(LOOK);
            std::thread::sleep(nap);
            left -= nap;
        }
        Ok(())
    }
}

/// A store with limits.
pub struct Limited {
    inner: Arc<dyn Store>,
    up: Arc<Way>,
    down: Arc<Way>,
}

impl Limited {
    /// `inner` with limits in bytes a second; `inner` itself without any.
    pub fn over(inner: Arc<dyn Store>, up: Option<u64>, down: Option<u64>, stop: &Stop) -> Arc<dyn Store> {
        if up.is_none() && down.is_none() {
            return inner;
        }
        Arc::new(Self { inner, up: Way::new(up, stop), down: Way::new(down, stop) })
    }
}

struct LimitedUpload {
    inner: Box<dyn Upload>,
    up: Arc<Way>,
}

#[deny(clippy::missing_trait_methods)]
impl Upload for LimitedUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.up.pay(bytes.len())?;
        self.inner.write(bytes)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.inner.finish()
    }

    fn start(self: Box<Self>) -> Result<Box<dyn Pending>> {
        self.inner.start()
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Limited {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(LimitedUpload { inner: self.inner.create(key)?, up: Arc::clone(&self.up) }))
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        self.up.pay(bytes.len())?;
        self.inner.put_new(key, bytes)
    }

    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.down.pay(buf.len())?;
        self.inner.read_at(key, offset, buf)
    }

    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        let bytes = self.inner.read(key, len_max)?;
        self.down.pay(bytes.len())?;
        Ok(bytes)
    }

    fn find(&self, key: &str, len_max: u64) -> Result<Option<Vec<u8>>> {
        let found = self.inner.find(key, len_max)?;
        self.down.pay(found.as_ref().map_or(0, Vec::len))?;
        Ok(found)
    }

    fn expect(&self, key: &str, range: Range<u64>) {
        self.inner.expect(key, range);
    }

    fn ahead_len(&self) -> u64 {
        self.inner.ahead_len()
    }

    fn forget(&self, key: &str) {
        self.inner.forget(key);
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

    #[test]
    fn who_wants_little_is_not_kept_by_who_wants_much() {
        let stop = Stop::default();
        let way = Way::new(Some(10_000), &stop);
        let is_paid = || way.meter.as_ref().unwrap().lock().unwrap().paid_until > Duration::ZERO;
        std::thread::scope(|scope| {
            // Twenty seconds, if nothing ends it.
            let much = scope.spawn(|| way.pay(200_000));
            while !is_paid() {
                std::thread::yield_now();
            }
            way.pay(400).unwrap();
            assert!(!much.is_finished());
            stop.cell().store(15, std::sync::atomic::Ordering::Relaxed);
            assert!(much.join().unwrap().is_err());
        });
    }

    #[test]
    fn what_is_taken_is_paid_by_time() {
        let ms = Duration::from_millis;
        let mut meter = Meter { rate: 1000, paid_until: Duration::ZERO };
        assert_eq!(meter.take(ms(0), 500), ms(500));
        assert_eq!(meter.take(ms(0), 250), ms(750));
        assert_eq!(meter.take(ms(700), 0), ms(50));
        assert_eq!(meter.take(ms(750), 100), ms(100));
        // Time in which nothing was taken counts for a tenth of a second and no more.
        assert_eq!(meter.take(ms(10_000), 1000), ms(900));
        assert_eq!(meter.take(ms(20_000), 50), ms(0));
        // Over any number of takes no more than the rate and the slack.
        let (mut now, mut sum) = (ms(30_000), 0);
        for n in 0..500 {
            now += meter.take(now, n * 7 % 90);
            sum += n * 7 % 90;
        }
        assert!(now + SLACK >= ms(30_000) + ms(sum), "{sum} bytes in {now:?}");
    }
}
