//! The run book of `bk recover`: leave what runs that never ended had begun, at boot or by hand.

use std::{io::Read, path::Path};

use serde::Serialize;

use crate::{
    error::{Error, Result},
    model::ids::{Name, RunId},
    monitor::Monitor,
    steps::{
        Closed, State,
        recover::{self, Recovered},
        watch,
    },
};

/// What was done for a job.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The job.
    pub job: String,
    /// `left`, `forgotten`, `failed`, `running` when a run of it is at work (which may have an error: what it could not leave), or
    /// `killed` when one was that cannot end.
    pub outcome: &'static str,
    /// Its runs, the oldest first.
    pub runs: Vec<Recovered>,
    /// What went wrong.
    #[serde(skip)]
    pub errors: Vec<Error>,
}

/// Leaves what runs of these jobs had begun. With `forgets` it is only struck out: somebody did it by hand.
pub fn run(
    state_dir: &Path,
    is_wanted: &dyn Fn(&Name) -> bool,
    forgets: bool,
    monitor: &dyn Monitor,
) -> Result<Vec<Outcome>> {
    let state = State::new(state_dir);
    let mut jobs = state.jobs()?;
    jobs.retain(|job| is_wanted(job));
    let known = jobs.iter().filter(|job| state.knows(job));
    let closed = guarded(monitor);
    Ok(known.map(|job| one(&state, job, forgets, &closed, monitor).unwrap_or_else(|e| failed(job, vec![e]))).collect())
}

/// What keeps this process from being ended by a second signal while it leaves steps: nobody else would.
fn guarded(monitor: &dyn Monitor) -> Closed {
    let closed = Closed::default();
    let told = closed.clone();
    monitor.opens_first(Box::new(move || told.keeps_process()));
    closed
}

fn failed(job: &Name, errors: Vec<Error>) -> Outcome {
    Outcome { job: job.to_string(), outcome: "failed", runs: Vec::new(), errors }
}

fn one(state: &State, job: &Name, forgets: bool, closed: &Closed, monitor: &dyn Monitor) -> Result<Outcome> {
    let nothing = Outcome { job: job.to_string(), outcome: "left", runs: Vec::new(), errors: Vec::new() };
    let locked = match state.lock_or_holder(job)? {
        Ok(locked) => locked,
        Err(holder) => {
            return Ok(match (holder.killed(), holder.stuck()) {
                (Some(error), _) => Outcome { outcome: "killed", errors: vec![error], ..nothing },
                (None, stuck) => Outcome { outcome: "running", errors: stuck.into_iter().collect(), ..nothing },
            });
        }
    };
    if forgets {
        let forgotten = recover::forget(&locked)?.into_iter();
        let runs =
            forgotten.map(|run_id| Recovered { run_id: run_id.to_string(), steps: Vec::new(), errors: Vec::new() });
        return Ok(Outcome { outcome: "forgotten", runs: runs.collect(), ..nothing });
    }
    let mut runs = recover::recover(&locked, None, closed, monitor)?;
    let errors: Vec<Error> = runs.iter_mut().flat_map(|run| std::mem::take(&mut run.errors)).collect();
    let outcome = if errors.is_empty() { "left" } else { "failed" };
    Ok(Outcome { outcome, runs, errors, ..nothing })
}

/// The watcher of a run: waits for its end on `pipe`, and leaves its steps if that was no end it had told.
pub fn watch(
    state_dir: &Path,
    job: &Name,
    run_id: RunId,
    pipe: impl Read + Send + 'static,
    monitor: &dyn Monitor,
) -> Result<()> {
    let runs = watch::watch(&State::new(state_dir), job, run_id, pipe, &guarded(monitor), monitor)?;
    runs.into_iter().flat_map(|run| run.errors).next().map_or(Ok(()), Err)
}
