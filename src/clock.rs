//! The clock, behind a trait so that tests can stop and turn it.

use crate::{error::Result, model::time::Instant};

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn unix_ms(&self) -> u64;

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
