//! Since when the application is closed, and till when: set by the steps, looked at by who watches the time and the signals.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// The time between the first step that closes and the last one that opens. All clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Closed(Arc<Times>);

#[derive(Debug, Default)]
struct Times {
    since: OnceLock<Instant>,
    until: OnceLock<Instant>,
}

impl Closed {
    /// From now on, if not before.
    pub(super) fn begin(&self) {
        let _ = self.0.since.set(Instant::now());
    }

    /// Till now, if it was at all.
    pub(super) fn end(&self) {
        if self.0.since.get().is_some() {
            let _ = self.0.until.set(Instant::now());
        }
    }

    /// Since when, though it may be over.
    pub fn since(&self) -> Option<Instant> {
        self.0.since.get().copied()
    }

    /// Whether it is closed.
    pub fn is_now(&self) -> bool {
        self.0.since.get().is_some() && self.0.until.get().is_none()
    }

    /// How long it was, or is so far.
    pub fn time(&self) -> Duration {
        let until = self.0.until.get().copied().unwrap_or_else(Instant::now);
        self.since().map_or(Duration::ZERO, |since| until.saturating_duration_since(since))
    }
}
