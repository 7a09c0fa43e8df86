//! The watcher: a second bk that waits on a pipe only the run holds, and leaves the run's steps when the run is gone without a word.
//!
//! A run that was killed while a thread of it waits for a device is not gone: it keeps the pipe and the job's lock till that device
//! answers. But it can do no more, so its steps are left all the same.

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use super::{Closed, State, recover, recover::Recovered};
use crate::{
    error::{Error, Kind, Result},
    model::{
        ids::{Name, RunId},
        processes, secret,
    },
    monitor::Monitor,
};

/// What the run says when it needs no watcher any more.
const DONE: &[u8] = b"done";

/// How often it is looked whether the run was killed.
const LOOK: Duration = Duration::from_secs(1);
/// A run that was killed so long ago and is still there waits for a device. By then none of its threads is on a processor any more.
const ENDING_MAX: Duration = Duration::from_secs(2);

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

/// Waits for the end of the run that started this process, and leaves its steps when it did not say that it had.
pub fn watch(
    state: &State,
    job: &Name,
    run_id: RunId,
    pipe: impl Read + Send + 'static,
    closed: &Closed,
    monitor: &dyn Monitor,
) -> Result<Vec<Recovered>> {
    let mut run = Run { pid: rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()), ending_since: None };
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        let read = pipe.take(DONE.len() as u64).read_to_end(&mut said);
        tell.send(read.map(|_| said == DONE))
    });
    loop {
        match told.recv_timeout(LOOK) {
            Ok(Ok(true)) => return Ok(Vec::new()),
            Ok(Ok(false)) => break,
            Ok(Err(e)) => return Err(Error::io("cannot watch the run", e)),
            Err(RecvTimeoutError::Timeout) if !run.is_over() => {}
            Err(_) => break,
        }
    }
    loop {
        if let Some(locked) = state.lock(job)? {
            return recover::recover(&locked, Some(run_id), closed, monitor);
        }
        if run.is_over() {
            return recover::recover(&state.of_killed(job), Some(run_id), closed, monitor);
        }
        std::thread::sleep(LOOK);
    }
}

/// The process that is watched.
struct Run {
    pid: Option<i32>,
    ending_since: Option<Instant>,
}

impl Run {
    /// Whether it was killed and does not come to its end.
    fn is_over(&mut self) -> bool {
        if !self.pid.is_some_and(processes::is_ending) {
            self.ending_since = None;
            return false;
        }
        self.ending_since.get_or_insert_with(Instant::now).elapsed() >= ENDING_MAX
    }
}
