//! The clock, behind a trait so that tests can stop and turn it.

use std::time::Duration;

use crate::{error::Result, model::time::Instant};

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn unix_ms(&self) -> u64;

    /// Milliseconds since this machine was booted, its sleep included: nobody sets this clock.
    fn boot_ms(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap_or(0)
    }

    /// Waits.
    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Now, to the second.
    fn now(&self) -> Result<Instant> {
        Instant::from_second(i64::try_from(self.unix_ms() / 1000).unwrap_or(i64::MAX))
    }
}

/// The system's clock.
pub struct System;

impl Clock for System {
    fn unix_ms(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(0)
    }
}
