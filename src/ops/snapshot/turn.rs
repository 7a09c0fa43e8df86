//! Whose turn it is: the lease of the job, and `min_interval`. A run whose turn it is not ends well, with nothing stored.

use std::sync::Arc;

use serde::Serialize;

use super::{Request, choose};
use crate::{
    clock::Clock,
    engine::cluster::{
        keeper::Keeper,
        lease::{self, Acquired, Who},
        process,
    },
    error::{Error, Kind, Result},
    model::{
        ids::{Name, RunId},
        time::Instant,
    },
    monitor::Monitor,
    plan::{
        interval::{self, Due, began_at, is_ahead},
        log::JobLog,
    },
    volume::Volume,
};

/// Why nothing was done: that is no failure.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// The job.
    pub job: String,
    /// `skipped-running`: another run of the job is at work. `skipped-fresh`: the job has a snapshot younger than its `min_interval`.
    pub outcome: &'static str,
    /// For people.
    pub why: String,
}

/// Takes the lease of a job and keeps it, or says who is at work.
pub fn lease(
    volume: &Volume,
    (job, node, run_id): (&Name, &str, RunId),
    clock: &dyn Clock,
    monitor: &dyn Monitor,
) -> Result<Result<Arc<Keeper>, String>> {
    let who = Who {
        store: Arc::clone(&volume.store),
        job: job.clone(),
        node: node.to_owned(),
        run_id: Some(run_id),
        process: process::own(),
        times: lease::times(),
    };
    Ok(match lease::acquire(&who, clock, monitor)? {
        Acquired::Held(held) => Ok(Arc::new(Keeper::start(held)?)),
        Acquired::Skip(by) => Err(format!("another run of {job} is at work: {by}")),
    })
}

/// The same for a run, which ends well when it is not its turn.
pub(super) fn take(
    volume: &Volume,
    request: &Request,
    run_id: RunId,
    clock: &dyn Clock,
    monitor: &dyn Monitor,
) -> Result<Result<Arc<Keeper>, Skipped>> {
    let taken = lease(volume, (&request.job, &request.node, run_id), clock, monitor)?;
    Ok(taken.map_err(|why| Skipped { job: request.job.to_string(), outcome: "skipped-running", why }))
}

/// Whether the job has a snapshot that is young enough, by the log the run's commit will build on.
pub(super) fn fresh(
    volume: &Volume,
    log: &JobLog,
    request: &Request,
    now: Instant,
    monitor: &dyn Monitor,
) -> Result<Option<Skipped>> {
    let Some(interval) = request.min_interval else { return Ok(None) };
    let job = &request.job;
    for ahead in log.live().rev().take(1).filter(|newest| is_ahead(began_at(newest), now)) {
        let (seq, at) = (ahead.seq, began_at(ahead));
        monitor.warn(&format!("{job}/{seq} is dated {at}, but it is {now}: it does not count for --min-interval"));
    }
    Ok(match interval::due(log, interval, now, |member| choose::damage(volume, member))? {
        Due::Yes => None,
        Due::Fresh(seq, due_at) => {
            let why = format!("{job}/{seq} is young enough: {job} is due again at {due_at}");
            Some(Skipped { job: job.to_string(), outcome: "skipped-fresh", why })
        }
    })
}

/// What a run reports to: it is also told to stop when its lease is lost.
pub struct Guarded<'a> {
    inner: &'a dyn Monitor,
    lease: Arc<Keeper>,
}

/// What a run that lost its lease is told, as if from outside.
const STOP_SIGNAL: i32 = 15;

impl<'a> Guarded<'a> {
    /// Reports to `inner`, too.
    pub fn new(inner: &'a dyn Monitor, lease: Arc<Keeper>) -> Self {
        Self { inner, lease }
    }

    /// The run's lease.
    pub fn lease(&self) -> &Arc<Keeper> {
        &self.lease
    }

    /// The error of a run that was told to stop: the lost lease, when it was no signal.
    pub fn explain(&self, error: Error) -> Error {
        match (error.kind(), self.inner.interrupted(), self.lease.taken()) {
            (Kind::Signal(_), None, Some(by)) => self.lease.lost(&by),
            _ => error,
        }
    }
}

impl Monitor for Guarded<'_> {
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
        self.inner.interrupted().or_else(|| self.lease.taken().map(|_| STOP_SIGNAL))
    }
}
