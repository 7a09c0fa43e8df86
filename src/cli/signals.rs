//! Signals: the first one stops the run in order, a second one ends it at once.

use std::sync::{Arc, atomic::AtomicBool};

use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM},
    flag,
};

use crate::{
    error::{Error, Result},
    model::stop::Stop,
};

/// Which signal came, if any.
#[derive(Clone)]
pub struct Signals {
    stop: Stop,
}

/// Begins to watch for SIGINT, SIGTERM and SIGHUP.
pub fn watch() -> Result<Signals> {
    let failed = |e| Error::io("cannot watch for signals", e);
    let stop = Stop::default();
    let again = Arc::new(AtomicBool::new(false));
    children_can_be_waited_for()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // As `nohup` wants it. A shell has what it starts in the background ignore SIGINT, which whoever sends that one does not know.
        if signal == SIGHUP && is_ignored(signal) {
            continue;
        }
        let number = usize::try_from(signal).unwrap_or(0);
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again)).map_err(failed)?;
        flag::register(signal, Arc::clone(&again)).map_err(failed)?;
        flag::register_usize(signal, stop.cell(), number).map_err(failed)?;
    }
    Ok(Signals { stop })
}

/// Lets no such signal end this process, however often it comes.
pub fn outlive() -> Result<Signals> {
    children_can_be_waited_for()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::new(AtomicBool::new(false)))
            .map_err(|e| Error::io("cannot watch for signals", e))?;
    }
    Ok(Signals { stop: Stop::default() })
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
    /// The signal that came.
    pub fn seen(&self) -> Option<i32> {
        self.stop.signal()
    }

    /// What waits looks at this.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }
}
