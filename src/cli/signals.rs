//! Signals: the first one stops the run in order, a second one ends it at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

use crate::error::{Error, Result};

/// Which signal came, if any.
#[derive(Clone)]
pub struct Signals {
    seen: Arc<AtomicUsize>,
}

/// Begins to watch for SIGINT, SIGTERM and SIGHUP.
pub fn watch() -> Result<Signals> {
    let failed = |e| Error::io("cannot watch for signals", e);
    let seen = Arc::new(AtomicUsize::new(0));
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let number = usize::try_from(signal).unwrap_or(0);
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again)).map_err(failed)?;
        flag::register(signal, Arc::clone(&again)).map_err(failed)?;
        flag::register_usize(signal, Arc::clone(&seen), number).map_err(failed)?;
    }
    Ok(Signals { seen })
}

impl Signals {
    /// The signal that came.
    pub fn seen(&self) -> Option<i32> {
        i32::try_from(self.seen.load(Ordering::Relaxed)).ok().filter(|&n| n != 0)
    }
}
