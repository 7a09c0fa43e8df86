//! The watcher: a second bk that waits on a pipe only the run holds, and leaves the run's steps when the run is gone without a word.

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use super::{State, recover, recover::Recovered};
use crate::{
    error::{Error, Kind, Result},
    model::{
        ids::{Name, RunId},
        secret,
    },
    monitor::Monitor,
};

/// What the run says when it needs no watcher any more.
const DONE: &[u8] = b"done";

/// A running watcher.
pub struct Watcher {
    child: Child,
}

impl Watcher {
    /// Starts the watcher of a run: this program itself, in a process group of its own, so that what is sent to bk's group misses it.
    pub fn start(state: &State, job: &Name, run_id: RunId) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        for (name, _) in std::env::vars_os() {
            if secret::is_secret(&name.to_string_lossy()) {
                command.env_remove(name);
            }
        }
        command.arg("recover").arg("--state-dir").arg(state.path()).arg("--watch").arg(run_id.to_string());
        command.arg(job.as_str()).current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let child = command.spawn().map_err(|e| Error::io("cannot start the watcher", e).with_kind(Kind::Step))?;
        Ok(Self { child })
    }

    /// The run has come to its end.
    pub fn dismiss(mut self) {
        if let Some(mut pipe) = self.child.stdin.take() {
            // One that was killed needs no word.
            let _ = pipe.write_all(DONE);
        }
        let _ = self.child.wait();
    }
}

/// Waits for the end of a run, and leaves its steps when it did not say that it had.
pub fn watch(
    state: &State,
    job: &Name,
    run_id: RunId,
    pipe: &mut dyn Read,
    monitor: &dyn Monitor,
) -> Result<Vec<Recovered>> {
    let mut said = Vec::new();
    pipe.take(DONE.len() as u64).read_to_end(&mut said).map_err(|e| Error::io("cannot watch the run", e))?;
    if said == DONE {
        return Ok(Vec::new());
    }
    match state.lock(job, true)? {
        Some(locked) => recover::recover(&locked, Some(run_id), monitor),
        None => Ok(Vec::new()),
    }
}
