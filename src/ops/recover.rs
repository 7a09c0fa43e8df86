//! The run book of `bk recover`: leave what runs that never ended had begun, at boot or by hand.

use std::{io::Read, path::Path};

use serde::Serialize;

use crate::{
    error::{Error, Kind, Result},
    model::ids::{Name, RunId},
    monitor::Monitor,
    steps::{
        State,
        recover::{self, Recovered},
        watch,
    },
};

/// What was done for a job.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The job.
    pub job: String,
    /// `left`, `forgotten`, `failed`, `running` when a run of it is at work, or `killed` when one was that cannot end.
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
    Ok(known.map(|job| one(&state, job, forgets, monitor).unwrap_or_else(|e| failed(job, vec![e]))).collect())
}

fn failed(job: &Name, errors: Vec<Error>) -> Outcome {
    Outcome { job: job.to_string(), outcome: "failed", runs: Vec::new(), errors }
}

fn one(state: &State, job: &Name, forgets: bool, monitor: &dyn Monitor) -> Result<Outcome> {
    let nothing = Outcome { job: job.to_string(), outcome: "left", runs: Vec::new(), errors: Vec::new() };
    let Some(locked) = state.lock(job)? else {
        let begun = state.begun_by_killed(job)?;
        return Ok(match begun.is_empty() {
            true => Outcome { outcome: "running", ..nothing },
            false => Outcome { outcome: "killed", errors: vec![not_left(&begun)], ..nothing },
        });
    };
    if forgets {
        let forgotten = recover::forget(&locked)?.into_iter();
        let runs =
            forgotten.map(|run_id| Recovered { run_id: run_id.to_string(), steps: Vec::new(), errors: Vec::new() });
        return Ok(Outcome { outcome: "forgotten", runs: runs.collect(), ..nothing });
    }
    let mut runs = recover::recover(&locked, None, monitor)?;
    let errors: Vec<Error> = runs.iter_mut().flat_map(|run| std::mem::take(&mut run.errors)).collect();
    let outcome = if errors.is_empty() { "left" } else { "failed" };
    Ok(Outcome { outcome, runs, errors, ..nothing })
}

/// Its watcher sees to that; one that was killed, too, cannot.
fn not_left(begun: &[Name]) -> Error {
    let names = begun.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    let what = format!("its run was killed and waits for a device that does not answer; not left yet: {names}");
    Error::new(Kind::Step, what)
        .with_hint("its watcher leaves them in a few seconds; if it does not, leave them by hand")
}

/// The watcher of a run: waits for its end on `pipe`, and leaves its steps if that was no end it had told.
pub fn watch(
    state_dir: &Path,
    job: &Name,
    run_id: RunId,
    pipe: impl Read + Send + 'static,
    monitor: &dyn Monitor,
) -> Result<()> {
    let runs = watch::watch(&State::new(state_dir), job, run_id, pipe, monitor)?;
    runs.into_iter().flat_map(|run| run.errors).next().map_or(Ok(()), Err)
}
