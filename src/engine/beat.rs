//! The beat of a run: every few seconds it says on the volume how far it is, and looks whether it is to stop.
//!
//! A thread of its own, so that a run that waits for its source beats all the same. A beat that fails is no fault of the
//! run: the next one tries again. At the end nothing of it is left; what a killed run leaves is deleted by the next expiry.
//! It also takes back the run's word that it has begun, so that nobody else waits for that.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant as Since},
};

use super::begun::Begun;
use crate::{
    clock::{Clock, System},
    error::{Error, Kind, Result},
    format::{
        envelope,
        notes::{self, Abort, Note, Progress},
        volume::FORMAT_VERSION,
    },
    model::{
        ids::{Name, RunId},
        show,
        time::Instant,
    },
    monitor::Monitor,
    volume::Store,
};

/// Time between two beats when nothing else is asked for.
const EVERY: Duration = Duration::from_secs(10);
/// A run looks so often between two beats whether it is to stop: with what it then takes to stop, that is within 10 s.
const LOOKS: u32 = 3;
/// The first beat comes after so many tenths of the time between two: a run that is over before is not worth one.
const FIRST_TENTHS: u32 = 3;
/// A run that is to stop from afar stops as on this signal.
const STOP_SIGNAL: i32 = 15;

/// How a run beats.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time between two beats.
    pub every: Duration,
    /// What the user says of the run.
    pub comment: Option<String>,
}

impl Default for Settings {
    /// Every 10 s, without a comment.
    fn default() -> Self {
        Self { every: EVERY, comment: None }
    }
}

/// A run that beats.
#[derive(Clone)]
pub struct Who {
    /// The volume's objects.
    pub store: Arc<dyn Store>,
    /// The job.
    pub job: Name,
    /// The run.
    pub run_id: RunId,
    /// The node.
    pub node: String,
    /// The level it will have.
    pub level: u8,
    /// When it began.
    pub started_at: Instant,
}

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The application is brought to a safe state.
    Entering,
    /// Sources are read and stored.
    Storing,
    /// The record is being made.
    Committing,
    /// The application is opened again.
    Leaving,
}

impl Phase {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Entering, "entering"),
        (Self::Storing, "storing"),
        (Self::Committing, "committing"),
        (Self::Leaving, "leaving"),
    ];

    fn of(number: u8) -> Self {
        Self::ALL.iter().find(|(phase, _)| *phase as u8 == number).map_or(Self::Storing, |(phase, _)| *phase)
    }

    /// As notes say it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(phase, _)| *phase == self).map_or("storing", |(_, name)| name)
    }
}

#[derive(Default)]
struct State {
    entries: AtomicU64,
    bytes: AtomicU64,
    bytes_expected: AtomicU64,
    phase: AtomicU8,
    is_aborted: AtomicBool,
    abort: Mutex<Option<Abort>>,
}

/// A monitor that counts for the beat, and stops the run when that is asked for on the volume.
pub struct Watch<'a> {
    inner: &'a dyn Monitor,
    state: Arc<State>,
}

impl<'a> Watch<'a> {
    /// Reports to `inner`, too.
    pub fn new(inner: &'a dyn Monitor) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// Begins to beat; ends when what comes back is dropped.
    pub fn start(&self, who: Who, settings: &Settings, begun: Arc<Begun>) -> Beating {
        let (stop, stopped) = mpsc::channel();
        let (state, settings) = (Arc::clone(&self.state), settings.clone());
        let thread = std::thread::spawn(move || beat(&who, &settings, (&state, &begun), &stopped));
        Beating { stop: Mutex::new(Some(stop)), thread: Some(thread) }
    }

    /// What the run does from now on.
    pub fn turn_to(&self, phase: Phase) {
        self.state.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// An error of a run that was stopped from afar says so.
    pub fn explain(&self, error: Error) -> Error {
        let abort = self.state.abort.lock().unwrap_or_else(PoisonError::into_inner);
        match &*abort {
            Some(abort) if matches!(error.kind(), Kind::Signal(_)) => {
                let why = abort
                    .comment
                    .as_ref()
                    .map_or_else(String::new, |text| format!(": {}", show::name(text.as_bytes())));
                Error::new(Kind::Aborted, format!("aborted by node {} at {}{why}", abort.node, abort.written_at))
            }
            _ => error,
        }
    }
}

impl Monitor for Watch<'_> {
    fn warn(&self, text: &str) {
        self.inner.warn(text);
    }

    fn note(&self, text: &str) {
        self.inner.note(text);
    }

    fn advance(&self, entries: u64, bytes: u64, path: &[u8]) {
        self.state.entries.fetch_add(entries, Ordering::Relaxed);
        self.state.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.inner.advance(entries, bytes, path);
    }

    fn expect(&self, entries: u64, bytes: u64) {
        self.state.bytes_expected.store(bytes, Ordering::Relaxed);
        self.inner.expect(entries, bytes);
    }

    fn interrupted(&self) -> Option<i32> {
        let aborted = self.state.is_aborted.load(Ordering::Relaxed).then_some(STOP_SIGNAL);
        self.inner.interrupted().or(aborted)
    }

    fn is_urgent(&self) -> bool {
        self.inner.is_urgent()
    }
}

/// A run beats as long as this lives, or till it is told to end.
pub struct Beating {
    stop: Mutex<Option<mpsc::Sender<()>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Beating {
    /// Takes back that the run has begun, if its end is certain, without waiting for it.
    pub fn take_back(&self) {
        if let Some(stop) = &*self.stop.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = stop.send(());
        }
    }

    /// The beat under way is the last one, which is not waited for.
    pub fn end(&self) {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Beating {
    /// Waits for the last beat; what it left is deleted.
    fn drop(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn beat(who: &Who, settings: &Settings, (state, begun): (&State, &Begun), stopped: &mpsc::Receiver<()>) {
    let (mut n, mut last) = (0, (0, Since::now()));
    let look = settings.every / LOOKS;
    let mut due = settings.every / 10 * FIRST_TENTHS;
    loop {
        match stopped.recv_timeout(due.min(look)) {
            Ok(()) => {
                begun.take_back();
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => due = due.saturating_sub(look),
        }
        if let Ok(Some(abort)) = asked(who) {
            *state.abort.lock().unwrap_or_else(PoisonError::into_inner) = Some(abort);
            state.is_aborted.store(true, Ordering::Relaxed);
        }
        if !due.is_zero() {
            continue;
        }
        due = settings.every;
        let bytes = state.bytes.load(Ordering::Relaxed);
        let seconds = last.1.elapsed().as_millis().max(1);
        let rate = u128::from(bytes.saturating_sub(last.0)) * 1000 / seconds;
        last = (bytes, Since::now());
        // What fails here is tried again with the next beat.
        if tell(who, settings, state, n, u64::try_from(rate).unwrap_or(u64::MAX)).is_ok() {
            n += 1;
        }
    }
    if n > 0 {
        let left = who.store.list(&notes::dir(&who.job, who.run_id)).unwrap_or_default();
        let notes = left.into_iter().map(|item| item.key).filter(|key| !is_word(key));
        let _ = who.store.delete_all(&notes.collect::<Vec<_>>());
    }
}

/// Whether this is the run's word that it has begun, or was recorded.
fn is_word(key: &str) -> bool {
    [notes::BEGUN_NAME, notes::RECORDED_NAME].iter().any(|name| key.ends_with(name))
}

/// Writes the `n`-th note and deletes the one before the last: a reader that has listed one can still read it.
fn tell(who: &Who, settings: &Settings, state: &State, n: u64, rate: u64) -> Result<()> {
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let note = Note::Progress(Progress {
        format_version: FORMAT_VERSION,
        job: who.job.clone(),
        node: who.node.clone(),
        pid: std::process::id(),
        level: who.level,
        phase: Phase::of(state.phase.load(Ordering::Relaxed)).name().to_owned(),
        started_at: who.started_at,
        written_at: System.now()?,
        every_ms: u64::try_from(settings.every.as_millis()).unwrap_or(u64::MAX),
        entries: load(&state.entries),
        bytes: load(&state.bytes),
        bytes_expected: Some(load(&state.bytes_expected)).filter(|&bytes| bytes > 0),
        bytes_per_second: rate,
        comment: settings.comment.clone(),
    });
    who.store.put_new(&notes::key(&who.job, who.run_id, "progress", n), &note.encode()?)?;
    match n.checked_sub(2) {
        Some(old) => who.store.delete(&notes::key(&who.job, who.run_id, "progress", old)),
        None => Ok(()),
    }
}

/// Whether somebody wants the run to stop.
fn asked(who: &Who) -> Result<Option<Abort>> {
    let items = who.store.list(&notes::dir(&who.job, who.run_id))?;
    let Some(item) = items.iter().find(|item| notes::number(&item.key, "abort").is_some()) else { return Ok(None) };
    match Note::decode(&who.store.read(&item.key, envelope::JSON_LEN_MAX)?)? {
        Note::Abort(abort) => Ok(Some(abort)),
        _ => Ok(None),
    }
}
