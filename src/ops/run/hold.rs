//! How long the application may be held: when that time is over the snapshot is given up, or, when all its steps allow it, they are
//! left while the snapshot goes on. A run that is told to stop and does not, as what it reads or writes hangs, is left alone.

use std::{
    sync::{
        atomic::{AtomicBool, AtomicU8, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Kind},
    model::span::Span,
    monitor::Monitor,
    steps::{Closed, Steps},
};

/// What a run that held too long is told, as if from outside.
const STOP_SIGNAL: i32 = 14;
/// A run that is told to stop does so in this time, its commands' ends included, or what it reads or writes does not answer.
/// So long it is, too, till what could not be left is tried again.
/// Tests cannot wait so long and set `BK_TEST_STOP_MS`.
const STOP_TIME: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(100);
const STORING: u8 = 0;
const COMMITTING: u8 = 1;
const GIVEN_UP: u8 = 2;

/// What the run reports to, which also tells it to stop when its time is over.
pub(super) struct Hold<'a> {
    inner: &'a dyn Monitor,
    max: Option<Duration>,
    closed: Closed,
    is_left_early: AtomicBool,
    state: AtomicU8,
}

/// What becomes of a run that is left alone.
pub(super) struct Alone<'a> {
    /// What it comes to, told to stop by this signal.
    pub(super) outcome: &'a (dyn Fn(i32) -> &'static str + Sync),
    /// Lets other runs begin.
    pub(super) yields: &'a (dyn Fn() + Sync),
}

impl<'a> Hold<'a> {
    /// It counts from the first step that closes the application.
    pub(super) fn new(max: Option<Duration>, closed: Closed, inner: &'a dyn Monitor) -> Self {
        Self { inner, max, closed, is_left_early: AtomicBool::new(false), state: AtomicU8::new(STORING) }
    }

    fn is_longer_than_max(&self) -> bool {
        self.max.zip(self.closed.since()).is_some_and(|(max, since)| since.elapsed() > max)
    }

    fn is_over(&self) -> bool {
        self.is_longer_than_max() && !self.is_left_early.load(Ordering::Relaxed)
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

    /// Stores and commits, and meanwhile leaves the steps when their time comes: if they allow it the snapshot goes on, else it
    /// is given up. A volume or source that hangs so holds no application. Gives what could not be left, too.
    pub(super) fn storing<T>(
        &self,
        steps: &mut Steps<'_>,
        alone: &Alone<'_>,
        store: impl FnOnce() -> T,
    ) -> (T, Vec<Error>) {
        if !steps.holds() {
            return (store(), Vec::new());
        }
        self.is_left_early.store(self.max.is_some() && steps.may_leave_early(), Ordering::Relaxed);
        std::thread::scope(|scope| {
            let (done, stored) = channel::<()>();
            let leaver = scope.spawn(move || self.leave_in_time(steps, alone, &stored));
            let result = store();
            drop(done);
            let lost = |_| vec![Error::new(Kind::Step, "the thread that leaves steps early has ended")];
            (result, leaver.join().unwrap_or_else(lost))
        })
    }

    fn leave_in_time(&self, steps: &mut Steps<'_>, alone: &Alone<'_>, stored: &Receiver<()>) -> Vec<Error> {
        let set = std::env::var("BK_TEST_STOP_MS").ok().and_then(|text| text.parse::<u64>().ok());
        let stop_time = set.map_or(STOP_TIME, Duration::from_millis);
        let mut told: Option<Instant> = None;
        while stored.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            if self.is_left_early.load(Ordering::Relaxed) && self.is_longer_than_max() {
                steps.set("BK_RESULT", "storing");
                let errors = steps.leave(true);
                let errors = self.opened(steps, errors, stored, stop_time);
                if errors.is_empty() {
                    let held = self.max.unwrap_or_default().max(Duration::from_secs(steps.held().as_secs()));
                    let held = Span(held);
                    self.inner
                        .warn(&format!("the application was held for {held}: it is opened while the snapshot goes on"));
                }
                return errors;
            }
            let Some(signal) = self.interrupted() else { continue };
            let is_late = told.get_or_insert_with(Instant::now).elapsed() > stop_time;
            if is_late || self.inner.is_urgent() {
                return self.leave_alone(steps, alone, signal, stored, stop_time);
            }
        }
        Vec::new()
    }

    /// Leaves the steps of a run that does not stop. Nothing is said before they are left: who hears it may hang, too.
    fn leave_alone(
        &self,
        steps: &mut Steps<'_>,
        alone: &Alone<'_>,
        signal: i32,
        stored: &Receiver<()>,
        pause: Duration,
    ) -> Vec<Error> {
        // From here on nothing begins that must not see an open application.
        let is_given_up = self.turn(STORING, GIVEN_UP);
        steps.set("BK_RESULT", if is_given_up { (alone.outcome)(signal) } else { "committing" });
        let errors = steps.leave(true);
        let errors = self.opened(steps, errors, stored, pause);
        if errors.is_empty() {
            if is_given_up {
                (alone.yields)();
            }
            self.inner.warn("the run was told to stop and has not: the application is opened without it");
        }
        errors
    }

    /// Tries to leave what could not be left, again and again as long as the run goes on. Gives what is not left by then.
    fn opened(
        &self,
        steps: &mut Steps<'_>,
        mut errors: Vec<Error>,
        stored: &Receiver<()>,
        pause: Duration,
    ) -> Vec<Error> {
        while !errors.is_empty() {
            for error in &errors {
                self.inner
                    .warn(&format!("the application is not opened, it is tried again in {}: {error}", Span(pause)));
            }
            if stored.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            errors = steps.leave_again();
        }
        errors
    }

    fn turn(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the record may be made: the application was closed till all was read.
    pub(super) fn may_commit(&self) -> bool {
        self.turn(STORING, COMMITTING)
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
