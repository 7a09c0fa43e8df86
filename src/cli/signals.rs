//! Signals: the first one stops the run in order, a second one ends it at once.

use std::sync::{Arc, atomic::AtomicBool};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
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
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let number = usize::try_from(signal).unwrap_or(0);
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again)).map_err(failed)?;
        flag::register(signal, Arc::clone(&again)).map_err(failed)?;
        flag::register_usize(signal, stop.cell(), number).map_err(failed)?;
    }
    Ok(Signals { stop })
}

/// Lets no such signal end this process, however often it comes.
pub fn outlive() -> Result<Signals> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::new(AtomicBool::new(false)))
            .map_err(|e| Error::io("cannot watch for signals", e))?;
    }
    Ok(Signals { stop: Stop::default() })
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
