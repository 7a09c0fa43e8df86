//! One command, run once: in a process group of its own, without a shell, with an end.
//!
//! Invariant: [`run`] returns in bounded time. A command that takes too long, or whose run is stopped, is ended with its whole
//! group: TERM, ten seconds, KILL. What it prints is read to its end or for a second after the command's own end, so neither
//! a flood nor a child that keeps the pipe open holds bk.

use std::{
    collections::BTreeMap,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitId, WaitIdOptions, waitid},
};
use serde::Serialize;

use super::{
    output::{Lines, OUTPUT_LEN_MAX},
    trust,
};
use crate::{
    error::{Error, Result},
    model::{
        processes::{group_lives, signal_group},
        secret,
    },
};

/// From TERM to KILL.
const GRACE: Duration = Duration::from_secs(10);
/// From KILL to giving up on what cannot be killed: it waits for a device.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// How long output is read after the command has ended, when something else holds it open.
const DRAIN: Duration = Duration::from_secs(1);
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// What is to be run.
pub struct Call<'a> {
    /// Program and arguments.
    pub argv: &'a [String],
    /// Who runs it; bk's user when `None`.
    pub user: Option<&'a str>,
    /// Added to the environment, the later over the earlier.
    pub values: &'a [&'a BTreeMap<String, String>],
    /// It is ended after this time.
    pub timeout: Duration,
    /// Its standard input; else there is none.
    pub input: Option<&'a [u8]>,
    /// Standard output is kept for the caller instead of logged.
    pub is_kept: bool,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "end", content = "code")]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal from elsewhere.
    Signal(i32),
    /// It took too long.
    TimedOut,
    /// The run was stopped.
    Stopped,
    /// It could not be started.
    NotStarted,
}

/// What a command came to.
pub struct Ran {
    /// How it ended.
    pub end: End,
    /// Standard output, when it was to be kept.
    pub output: Vec<u8>,
    /// Why it failed, for people.
    pub why: String,
}

impl Ran {
    /// It could not be started.
    pub(super) fn not_started(e: &Error) -> Self {
        let why = e.hint().map_or_else(|| e.to_string(), |hint| format!("{e} ({hint})"));
        Self { end: End::NotStarted, output: Vec::new(), why }
    }

    /// Exit 0.
    pub fn is_ok(&self) -> bool {
        self.end == End::Exited(0)
    }
}

/// Runs a command. `stop` is asked again and again; each line of its output goes to `log`.
pub fn run(call: &Call<'_>, stop: &dyn Fn() -> bool, log: &mut dyn FnMut(&str)) -> Ran {
    let input = call.input.map_or_else(|| Ok(Stdio::null()), |bytes| unnamed(bytes).map(Into::into));
    let started = match input.and_then(|input| start(call, input)) {
        Ok(child) => child,
        Err(e) => return Ran::not_started(&e),
    };
    let mut running = Running::new(started, call);
    let ended = running.until_end(call.timeout, stop, log);
    running.finish(ended, call, log)
}

/// The program and its environment; its input is what the caller gives.
pub(super) fn start(call: &Call<'_>, input: Stdio) -> Result<Child> {
    let program = trust::program(call.argv, call.user)?;
    let mut command = match call.user {
        None => Command::new(&program),
        Some(user) => trust::as_user(user, &program)?,
    };
    for (name, _) in std::env::vars_os() {
        if secret::is_secret(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    for values in call.values {
        command.envs(*values);
    }
    command.args(&call.argv[1..]).current_dir("/").process_group(0);
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|e| Error::io(format!("cannot start `{}`", program.display()), e))
}

/// A file in memory that is read from its start.
fn unnamed(bytes: &[u8]) -> Result<std::fs::File> {
    use std::io::{Seek, Write};
    let failed = |e: std::io::Error| Error::io("cannot hold a command's input", e);
    let fd = rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes).and_then(|()| file.rewind()).map_err(failed)?;
    Ok(file)
}

/// One of the two outputs.
struct Pipe {
    file: Option<std::fs::File>,
    lines: Lines,
    kept: Option<Vec<u8>>,
}

impl Pipe {
    fn new(fd: Option<OwnedFd>, is_kept: bool) -> Self {
        if let Some(fd) = &fd {
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
        Self { file: fd.map(Into::into), lines: Lines::default(), kept: is_kept.then(Vec::new) }
    }

    /// Reads what is there, and not for ever.
    fn read(&mut self, log: &mut dyn FnMut(&str)) {
        let mut buf = [0; 64 << 10];
        for _ in 0..16 {
            let Some(file) = &mut self.file else { return };
            match file.read(&mut buf) {
                Ok(0) => self.file = None,
                Ok(len) => match &mut self.kept {
                    Some(kept) => {
                        let room = OUTPUT_LEN_MAX.saturating_sub(kept.len()).min(len);
                        kept.extend_from_slice(&buf[..room]);
                    }
                    None => self.lines.push(&buf[..len], log),
                },
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.file = None,
            }
        }
    }
}

/// A command at work.
pub(super) struct Running {
    child: Child,
    group: Option<Pid>,
    pipes: [Pipe; 2],
}

/// Why a command is being ended, and what comes next.
struct Ending {
    end: End,
    kill_at: Instant,
    is_killed: bool,
}

impl Running {
    pub(super) fn new(mut child: Child, call: &Call<'_>) -> Self {
        let out = Pipe::new(child.stdout.take().map(Into::into), call.is_kept);
        let err = Pipe::new(child.stderr.take().map(Into::into), false);
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Self { child, group, pipes: [out, err] }
    }

    /// Whether the command itself has ended. It is not reaped yet: its id, and so its group's, stays taken.
    pub(super) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        self.group.is_none_or(|pid| !matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
    }

    /// Waits for its end, by itself or by force; gives the reason when it was by force.
    pub(super) fn until_end(
        &mut self,
        timeout: Duration,
        stop: &dyn Fn() -> bool,
        log: &mut dyn FnMut(&str),
    ) -> Option<End> {
        let deadline = Instant::now() + timeout;
        let mut ending: Option<Ending> = None;
        loop {
            self.wait_for_output(None, log);
            let now = Instant::now();
            match &mut ending {
                None if self.has_ended() => return None,
                None => {
                    let end = if stop() { Some(End::Stopped) } else { (now >= deadline).then_some(End::TimedOut) };
                    if let Some(end) = end {
                        self.signal(Signal::TERM);
                        ending = Some(Ending { end, kill_at: now + GRACE, is_killed: false });
                    }
                }
                Some(ending) if self.has_ended() && !self.group.is_some_and(group_lives) => return Some(ending.end),
                Some(ending) if now < ending.kill_at => {}
                Some(ending) if !ending.is_killed => {
                    self.signal(Signal::KILL);
                    (ending.is_killed, ending.kill_at) = (true, now + KILL_WAIT);
                }
                Some(ending) => return Some(ending.end),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            signal_group(group, signal);
        }
    }

    /// Reads what it prints, or waits a little for it; not when `input` can take more.
    pub(super) fn wait_for_output(&mut self, input: Option<&OwnedFd>, log: &mut dyn FnMut(&str)) {
        let open = self.pipes.iter().filter_map(|pipe| pipe.file.as_ref());
        let open = open.map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> =
            open.chain(input.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::OUT))).collect();
        // With nothing to read this is a short sleep.
        let _ = poll(&mut fds, Some(&TICK));
        for pipe in &mut self.pipes {
            pipe.read(log);
        }
    }

    pub(super) fn finish(mut self, forced: Option<End>, call: &Call<'_>, log: &mut dyn FnMut(&str)) -> Ran {
        let drained = Instant::now() + DRAIN;
        while self.pipes.iter().any(|pipe| pipe.file.is_some()) && Instant::now() < drained {
            self.wait_for_output(None, log);
        }
        // What was killed and did not end is not waited for.
        let status = if self.has_ended() { self.child.wait().ok() } else { None };
        let [mut out, mut err] = self.pipes;
        out.lines.end(log);
        err.lines.end(log);
        let end = forced.unwrap_or_else(|| match status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => End::Exited(code),
            Some((None, Some(signal))) => End::Signal(signal),
            _ => End::NotStarted,
        });
        let why = match end {
            End::Exited(code) => format!("exited with {code}"),
            End::Signal(signal) => format!("was ended by signal {signal}"),
            End::TimedOut => format!("took longer than {}", crate::model::span::Span(call.timeout)),
            End::Stopped => "was stopped".to_owned(),
            End::NotStarted => "cannot be waited for".to_owned(),
        };
        let last = if err.lines.last.is_empty() { out.lines.last } else { err.lines.last };
        let said = if last.is_empty() { String::new() } else { format!(": {last}") };
        Ran { end, output: out.kept.unwrap_or_default(), why: format!("`{}` {why}{said}", call.argv[0]) }
    }
}
