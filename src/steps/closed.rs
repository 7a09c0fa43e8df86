//! Since when the application is closed, and till when: set by the steps, looked at by who watches the time and the signals.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The time between the first step that closes and the last one that opens. All clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Closed(Arc<Times>);

#[derive(Debug, Default)]
struct Times {
    since: OnceLock<Instant>,
    until: OnceLock<Instant>,
    is_leaving: AtomicBool,
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
    fn is_now(&self) -> bool {
        self.0.since.get().is_some() && self.0.until.get().is_none()
    }

    /// Whether steps are being left, those of the media too.
    pub(super) fn set_leaving(&self, is_leaving: bool) {
        self.0.is_leaving.store(is_leaving, Ordering::Relaxed);
    }

    /// Whether the process should not end by its own will: the application is closed, or a step is left that another would leave once more.
    pub fn keeps_process(&self) -> bool {
        self.is_now() || self.0.is_leaving.load(Ordering::Relaxed)
    }

    /// How long it was, or is so far.
    pub fn time(&self) -> Duration {
        let until = self.0.until.get().copied().unwrap_or_else(Instant::now);
        self.since().map_or(Duration::ZERO, |since| until.saturating_duration_since(since))
    }
}
