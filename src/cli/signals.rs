//! Signals: the first one stops the run in order, a second one ends it at once; but a run that holds an application opens it first.

use std::{
    io::Read,
    os::unix::net::UnixStream,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM},
    flag, low_level,
};

use crate::{
    error::{Error, Result},
    model::stop::Stop,
};

/// How often it is looked whether the application is open.
const LOOK: Duration = Duration::from_millis(50);

/// Which signal came, if any.
#[derive(Clone, Default)]
pub struct Signals {
    stop: Stop,
    /// It came twice.
    is_urgent: Arc<AtomicBool>,
    /// Says whether an application is held that the run itself opens.
    is_closed: Arc<OnceLock<IsClosed>>,
}

type IsClosed = Box<dyn Fn() -> bool + Send + Sync>;

/// Begins to watch for SIGINT, SIGTERM and SIGHUP.
pub fn watch() -> Result<Signals> {
    let failed = |e| Error::io("cannot watch for signals", e);
    let signals = Signals::default();
    let (woken, wake) = UnixStream::pair().map_err(failed)?;
    let came = Arc::new(AtomicBool::new(false));
    children_can_be_waited_for()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // As `nohup` wants it. A shell has what it starts in the background ignore SIGINT, which whoever sends that one does not know.
        if signal == SIGHUP && is_ignored(signal) {
            continue;
        }
        let number = usize::try_from(signal).unwrap_or(0);
        flag::register_usize(signal, signals.stop.cell(), number).map_err(failed)?;
        flag::register(signal, Arc::clone(&came)).map_err(failed)?;
        low_level::pipe::register(signal, wake.try_clone().map_err(failed)?).map_err(failed)?;
    }
    let theirs = signals.clone();
    let thread = std::thread::Builder::new().name("bk-signals".to_owned());
    thread.spawn(move || theirs.end(&came, &woken)).map_err(failed)?;
    Ok(signals)
}

/// Lets no such signal end this process, however often it comes.
pub fn outlive() -> Result<Signals> {
    children_can_be_waited_for()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::new(AtomicBool::new(false)))
            .map_err(|e| Error::io("cannot watch for signals", e))?;
    }
    Ok(Signals::default())
}

/// A parent that ignored SIGCHLD leaves that to its children, whose own then cannot be waited for.
fn children_can_be_waited_for() -> Result<()> {
    let handled = flag::register(SIGCHLD, Arc::default());
    handled.map(drop).map_err(|e| Error::io("cannot watch for signals", e))
}

/// Whether this process was started to ignore a signal.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

impl Signals {
    /// Ends the process at the second signal: when no application is held any more and nothing is being left, or at the third one.
    /// What is not left then is left by the watcher. `woken` has a byte for each, and for one that a child got before it became
    /// another program; `came` tells them apart.
    fn end(&self, came: &AtomicBool, woken: &UnixStream) {
        let is_another = || {
            let mut woken = woken;
            woken.read_exact(&mut [0]).is_ok() && came.swap(false, Ordering::Relaxed)
        };
        for _ in 0..2 {
            while !is_another() {}
        }
        self.is_urgent.store(true, Ordering::Relaxed);
        let _ = woken.set_read_timeout(Some(LOOK));
        while self.is_closed.get().is_some_and(|is_closed| is_closed()) && !is_another() {}
        low_level::exit(128 + self.stop.signal().unwrap_or(SIGTERM));
    }

    /// A second signal lets a run go on while `is_closed` says so.
    pub fn opens_first(&self, is_closed: IsClosed) {
        let _ = self.is_closed.set(is_closed);
    }

    /// Whether a second one came.
    pub fn is_urgent(&self) -> bool {
        self.is_urgent.load(Ordering::Relaxed)
    }

    /// The signal that came.
    pub fn seen(&self) -> Option<i32> {
        self.stop.signal()
    }

    /// What waits looks at this.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }
}
