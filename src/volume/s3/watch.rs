//! A signal ends what waits for the store, whatever it waits for.
//!
//! It is looked for ten times a second. What reads, and uploads of parts, are given up then; a request that stands alone
//! (a record, a listing, a delete) may go on for [`GRACE`] after the signal was first noticed, and so may those that tidy up.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

use crate::{
    error::{Error, Kind},
    model::stop::Stop,
};

/// How long requests may go on after a signal.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// A signal is looked for this often.
pub(super) const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Watch {
    stop: Stop,
    noticed: OnceLock<Instant>,
}

impl Watch {
    pub fn new(stop: Stop) -> Self {
        Self { stop, noticed: OnceLock::new() }
    }

    /// What the signal that came means for whoever waits.
    pub fn signal(&self) -> Option<Error> {
        let signal = self.stop.signal()?;
        self.noticed.get_or_init(Instant::now);
        Some(Error::new(Kind::Signal(signal), "interrupted while the store was waited for"))
    }

    /// Ends `grace` after a signal came.
    pub async fn ended(&self, grace: Duration) -> Error {
        loop {
            if let Some(error) = self.signal() {
                let noticed = *self.noticed.get_or_init(Instant::now);
                tokio::time::sleep_until(noticed + grace).await;
                return error;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
