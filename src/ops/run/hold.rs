//! How long the application may be held: when that time is over the snapshot is given up, or, when all its steps allow it, they are
//! left while the snapshot goes on.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Kind, Result},
    model::span::Span,
    monitor::Monitor,
    steps::Steps,
};

/// What a run that held too long is told, as if from outside.
const STOP_SIGNAL: i32 = 14;

/// What the run reports to, which also tells it to stop when its time is over.
pub(super) struct Hold<'a> {
    inner: &'a dyn Monitor,
    max: Option<Duration>,
    since: OnceLock<Instant>,
    is_left_early: AtomicBool,
}

impl<'a> Hold<'a> {
    pub(super) fn new(max: Option<Duration>, inner: &'a dyn Monitor) -> Self {
        Self { inner, max, since: OnceLock::new(), is_left_early: AtomicBool::new(false) }
    }

    fn is_over(&self) -> bool {
        let over = |since: &Instant| self.max.is_some_and(|max| since.elapsed() > max);
        self.since.get().is_some_and(over) && !self.is_left_early.load(Ordering::Relaxed)
    }

    /// The error of a run that was told to stop: the time, when it was no signal.
    pub(super) fn explain(&self, error: Error) -> Error {
        match (error.kind(), self.inner.interrupted(), self.max) {
            (Kind::Signal(STOP_SIGNAL), None, Some(max)) if self.is_over() => {
                let what = format!("the application was held longer than {}: the snapshot is given up", Span(max));
                Error::new(Kind::Step, what)
                    .with_hint("`max_hold` says how long; `leave_early = true` in its steps goes on without them")
            }
            _ => error,
        }
    }

    /// Enters, and counts from the first step that does hold.
    pub(super) fn entering(
        &self,
        steps: &mut Steps<'_>,
        enter: impl FnOnce(&mut Steps<'_>) -> Result<()>,
    ) -> Result<()> {
        if steps.will_hold() {
            let _ = self.since.set(Instant::now());
        }
        enter(steps)
    }

    /// Stores, and meanwhile leaves the steps when their time comes, if they allow it. Gives what could not be left, too.
    pub(super) fn storing<T>(
        &self,
        steps: &mut Steps<'_>,
        store: impl FnOnce() -> Result<T>,
    ) -> (Result<T>, Vec<Error>) {
        let (Some(max), Some(since)) = (self.max, self.since.get()) else { return (store(), Vec::new()) };
        if !steps.may_leave_early() {
            return (store(), Vec::new());
        }
        self.is_left_early.store(true, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let (done, stored) = channel::<()>();
            let leaver = scope.spawn(move || match stored.recv_timeout(max.saturating_sub(since.elapsed())) {
                Err(RecvTimeoutError::Timeout) => {
                    self.inner.warn(&format!(
                        "the application was held for {}: it is opened while the snapshot goes on",
                        Span(max)
                    ));
                    steps.leave(true)
                }
                _ => Vec::new(),
            });
            let result = store();
            drop(done);
            let lost = |_| vec![Error::new(Kind::Step, "the thread that leaves steps early has ended")];
            (result, leaver.join().unwrap_or_else(lost))
        })
    }
}

impl Monitor for Hold<'_> {
    fn warn(&self, text: &str) {
        self.inner.warn(text);
    }

    fn note(&self, text: &str) {
        self.inner.note(text);
    }

    fn advance(&self, entries: u64, bytes: u64, path: &[u8]) {
        self.inner.advance(entries, bytes, path);
    }

    fn expect(&self, entries: u64, bytes: u64) {
        self.inner.expect(entries, bytes);
    }

    fn interrupted(&self) -> Option<i32> {
        self.inner.interrupted().or_else(|| self.is_over().then_some(STOP_SIGNAL))
    }
}
