//! Progress on a terminal: one ticker thread over atomic counters. Elsewhere only warnings are shown.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{output::Output, signals::Signals};
use crate::{
    model::{show, units::show_size},
    monitor::Monitor,
};

/// How often the line is drawn.
const TICK: Duration = Duration::from_millis(250);

/// Counts and shows.
pub struct Progress<'a> {
    out: &'a Output,
    signals: &'a Signals,
    started: Instant,
    counts: Arc<Counts>,
    bar: Option<ProgressBar>,
    ticker: Option<(std::thread::JoinHandle<()>, std::sync::mpsc::Sender<()>)>,
}

struct Counts {
    /// What goes on, and since when.
    phase: Mutex<(&'static str, Instant)>,
    entries: AtomicU64,
    bytes: AtomicU64,
    entries_expected: AtomicU64,
    bytes_expected: AtomicU64,
    path: Mutex<Vec<u8>>,
}

impl<'a> Progress<'a> {
    /// Begins; draws only on a terminal.
    pub fn new(out: &'a Output, signals: &'a Signals, verb: &'static str) -> Self {
        let started = Instant::now();
        let counts = Arc::new(Counts::new(verb, started));
        let mut progress = Self { out, signals, started, counts: Arc::clone(&counts), bar: None, ticker: None };
        if out.draws() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            let (stop, stopped) = std::sync::mpsc::channel();
            let shown = bar.clone();
            let ticker = std::thread::spawn(move || {
                while stopped.recv_timeout(TICK) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    shown.set_message(counts.line());
                    shown.tick();
                }
            });
            out.draw(Some(bar.clone()));
            progress.bar = Some(bar);
            progress.ticker = Some((ticker, stop));
        }
        progress
    }

    /// Something else goes on from now on, and is counted from nothing.
    pub fn turn_to(&self, verb: &'static str) {
        if let Ok(mut phase) = self.counts.phase.lock() {
            *phase = (verb, Instant::now());
        }
        let Counts { entries, bytes, entries_expected, bytes_expected, .. } = &*self.counts;
        for count in [entries, bytes, entries_expected, bytes_expected] {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Counts {
    fn new(verb: &'static str, since: Instant) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            phase: Mutex::new((verb, since)),
            entries: zero(),
            bytes: zero(),
            entries_expected: zero(),
            bytes_expected: zero(),
            path: Mutex::default(),
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown with three digits"
    )]
    fn line(&self) -> String {
        let (verb, since) = self.phase.lock().map_or_else(|poisoned| *poisoned.into_inner(), |phase| *phase);
        let elapsed = since.elapsed();
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (entries, bytes) = (load(&self.entries), load(&self.bytes));
        let rate = bytes as f64 / elapsed.as_secs_f64().max(0.001);
        let path = self.path.lock().map(|path| show::name(&path)).unwrap_or_default();
        let expected = load(&self.bytes_expected);
        let mut line = format!("{verb} {entries} entries, {}", show_size(bytes));
        if expected > 0 {
            let left = expected.saturating_sub(bytes) as f64 / rate.max(1.0);
            let percent = bytes as f64 / expected as f64 * 100.0;
            line += &format!(" of {} ({percent:.0} %), {} left", show_size(expected), show_time(left as u64));
        }
        format!("{line}, {}/s  {path}", show_size(rate as u64))
    }
}

/// `1:02:03` or `2:03`.
pub fn show_time(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

impl Monitor for Progress<'_> {
    fn warn(&self, text: &str) {
        self.out.warn(text);
    }

    fn note(&self, text: &str) {
        self.out.note(text);
    }

    fn advance(&self, entries: u64, bytes: u64, path: &[u8]) {
        self.counts.entries.fetch_add(entries, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.bar.is_some()
            && !path.is_empty()
            && let Ok(mut shown) = self.counts.path.try_lock()
        {
            shown.clear();
            shown.extend_from_slice(path);
        }
    }

    fn expect(&self, entries: u64, bytes: u64) {
        self.counts.entries_expected.store(entries, Ordering::Relaxed);
        self.counts.bytes_expected.store(bytes, Ordering::Relaxed);
    }

    fn interrupted(&self) -> Option<i32> {
        self.signals.seen()
    }

    fn is_urgent(&self) -> bool {
        self.signals.is_urgent()
    }

    fn opens_first(&self, is_closed: Box<dyn Fn() -> bool + Send + Sync>) {
        self.signals.opens_first(is_closed);
    }
}

impl Drop for Progress<'_> {
    /// Clears the line.
    fn drop(&mut self) {
        if let Some((ticker, stop)) = self.ticker.take() {
            drop(stop);
            let _ = ticker.join();
        }
        if let Some(bar) = &self.bar {
            self.out.draw(None);
            self.out.finish();
            bar.finish_and_clear();
        }
    }
}
