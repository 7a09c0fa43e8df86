//! A lease that is kept: the thread that renews it while a run goes on, and gives it back at its end.
//!
//! The run asks [`Keeper::taken`] as it goes, and [`Keeper::check`] before it commits. A lease that was not confirmed for
//! two thirds of its time counts as lost, which alone ends nothing: it is looked at then. Only another that holds a later
//! epoch ends the run, because what it does is done twice; else the run goes on and the log decides, as it does always.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::lease::{Held, Who, look};
use crate::{
    clock::{Clock, System},
    error::{Error, Kind, Result},
    plan::lease::{Standing, standing},
};

/// The end of a run waits so long for its lease to be given back; without that, the next run waits.
const RELEASE_WAIT: Duration = Duration::from_secs(10);

/// What the thread tells the run.
#[derive(Default)]
struct Told {
    /// Who holds a later epoch.
    taken: Mutex<Option<String>>,
    confirmed_ms: AtomicU64,
}

impl Told {
    fn taken(&self, by: Option<String>) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = by;
    }
}

/// A lease that is kept till this is dropped.
pub struct Keeper {
    who: Who,
    epoch: u64,
    told: Arc<Told>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

impl Keeper {
    /// Starts the thread.
    pub fn start(held: Held) -> Result<Self> {
        let told = Arc::new(Told::default());
        told.confirmed_ms.store(held.confirmed_ms(), Ordering::Relaxed);
        let ((stop, stopped), (end, ended)) = (bounded::<()>(0), bounded::<()>(0));
        let (who, epoch) = (held.who().clone(), held.epoch());
        let theirs = Arc::clone(&told);
        std::thread::Builder::new()
            .name("bk-lease".to_owned())
            .spawn(move || {
                keep(held, &theirs, &stopped);
                drop(end);
            })
            .map_err(|e| Error::io("cannot start a thread", e))?;
        Ok(Self { who, epoch, told, stop: Some(stop), ended })
    }

    /// The lease's number.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Who has taken the lease and holds it now, as far as is known.
    pub fn taken(&self) -> Option<String> {
        self.told.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fails when another holds the job by now: asked before a commit.
    pub fn check(&self) -> Result<()> {
        let unsure_ms = System.boot_ms().saturating_sub(self.told.confirmed_ms.load(Ordering::Relaxed));
        if self.taken().is_none() && Duration::from_millis(unsure_ms) > self.who.times.sure_for() {
            // A look that fails says nothing; the log will.
            if let Ok(found) = look(&*self.who.store, &self.who.job, self.who.process.as_ref())
                && standing(self.epoch, found.as_ref().map(|found| found.head)) == Standing::Passed
            {
                self.told.taken(found.map(|found| found.holder()));
            }
        }
        self.taken().map_or(Ok(()), |by| Err(self.lost(&by)))
    }

    /// The error of a run whose lease `by` has taken.
    pub fn lost(&self, by: &str) -> Error {
        let what =
            format!("this run was still for so long that {by} took over the job {}; it is not kept", self.who.job);
        Error::new(Kind::Lost, what).with_hint(format!("`bk lease list {}` shows who works on it", self.who.job))
    }
}

impl Drop for Keeper {
    /// Gives the lease back: that only saves the next run's time.
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.ended.recv_timeout(RELEASE_WAIT);
    }
}

/// Renews till it is told to stop, then gives the lease back.
fn keep(mut held: Held, told: &Told, stopped: &Receiver<()>) {
    let every = held.who().times.renew_every();
    let mut state = Standing::Held;
    while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        let renewed = if state == Standing::Held { held.renew(&System) } else { held.stand() };
        // A renewal that fails is tried again at the next turn; till then the last one that was confirmed counts.
        let Ok((standing, found)) = renewed else { continue };
        state = standing;
        told.confirmed_ms.store(held.confirmed_ms(), Ordering::Relaxed);
        told.taken(found.filter(|_| state == Standing::Passed).map(|found| found.holder()));
    }
    if state == Standing::Held {
        let _ = held.release(&System);
    }
}
