//! A lease that is kept: the thread that renews it while a run goes on, and gives it back at its end.
//!
//! The run asks [`Keeper::taken`] as it goes, [`Keeper::check_soon`] between its steps, and [`Keeper::check`] before it commits. A
//! lease that was not confirmed for two thirds of its time counts as lost, which alone ends nothing: it is looked at then. Only another
//! that holds a later epoch ends the run, because what it does is done twice; else the run goes on and the log decides, as it does always.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
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
/// A run that holds an application waits so long for a look at its lease: a volume that answers at all has done so by then.
const LOOK_WAIT: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(20);

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

/// Asks the thread to look at once, and is told when it has.
type Ask = Sender<()>;

/// A lease that is kept till this is dropped, or it is told to end.
pub struct Keeper {
    who: Who,
    epoch: u64,
    told: Arc<Told>,
    /// Dropped to end the thread.
    ask: Mutex<Option<Sender<Ask>>>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

impl Keeper {
    /// Starts the thread.
    pub fn start(held: Held) -> Result<Self> {
        let told = Arc::new(Told::default());
        told.confirmed_ms.store(held.confirmed_ms(), Ordering::Relaxed);
        let ((ask, asked), (end, ended)) = (bounded(1), bounded::<()>(0));
        let (who, epoch) = (held.who().clone(), held.epoch());
        let theirs = Arc::clone(&told);
        std::thread::Builder::new()
            .name("bk-lease".to_owned())
            .spawn(move || {
                keep(held, &theirs, &asked);
                drop(end);
            })
            .map_err(|e| Error::io("cannot start a thread", e))?;
        Ok(Self { who, epoch, told, ask: Mutex::new(Some(ask)), ended })
    }

    /// The lease's number.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Who has taken the lease and holds it now, as far as is known.
    pub fn taken(&self) -> Option<String> {
        self.told.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_unsure(&self) -> bool {
        let unsure_ms = System.boot_ms().saturating_sub(self.told.confirmed_ms.load(Ordering::Relaxed));
        self.taken().is_none() && Duration::from_millis(unsure_ms) > self.who.times.sure_for()
    }

    /// Fails when another holds the job by now, as far as that can be found out in [`LOOK_WAIT`]: asked while an application is held,
    /// which no volume that hangs may prolong. A run that is stopped waits no longer.
    pub fn check_soon(&self, is_stopped: &dyn Fn() -> bool) -> Result<()> {
        if self.is_unsure() {
            let (done, looked) = bounded(1);
            let ask = self.ask.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let end = Instant::now() + LOOK_WAIT;
            let is_asked = ask.is_some_and(|ask| ask.send_deadline(done, end).is_ok());
            let waits = || Instant::now() < end && !is_stopped();
            while is_asked && waits() && looked.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {}
        }
        self.taken().map_or(Ok(()), |by| Err(self.lost(&by)))
    }

    /// Fails when another holds the job by now: asked before a commit.
    pub fn check(&self) -> Result<()> {
        if self.is_unsure() {
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

impl Keeper {
    /// Gives the lease back, without waiting for that. For a run that nothing can come of any more.
    pub fn end(&self) {
        *self.ask.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Keeper {
    /// Gives the lease back: that only saves the next run's time.
    fn drop(&mut self) {
        self.end();
        let _ = self.ended.recv_timeout(RELEASE_WAIT);
    }
}

/// Renews till it is told to stop, then gives the lease back.
fn keep(mut held: Held, told: &Told, asked: &Receiver<Ask>) {
    let every = held.who().times.renew_every();
    let mut state = Standing::Held;
    loop {
        match asked.recv_timeout(every) {
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
            Ok(done) => {
                // Quicker than a renewal, which follows.
                if let Ok((Standing::Passed, found)) = held.stand() {
                    state = Standing::Passed;
                    told.taken(found.map(|found| found.holder()));
                }
                let _ = done.send(());
            }
        }
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
