//! A command that reads a stream: its standard input is a pipe that is filled as the stream is read, so nothing lies on a disk between.
//!
//! Invariant: the command sees the end of its input only when all of it was written. When reading the stream fails, or the run is
//! stopped, the command is ended first (TERM, ten seconds, KILL), so it does not take a part for the whole. It counts only when it
//! exits with 0 and has read everything: what it left in the pipe is counted.

use std::{
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    fs::OFlags,
    io::Errno,
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
};

use super::{
    Phase, Report, Values,
    process::{self, Call, End, Ran, Running},
    trust,
};
use crate::{
    error::{Error, Kind, Result},
    model::{ids::Name, units::show_size},
    monitor::Monitor,
};

/// The pipe is asked to hold this many bytes.
const PIPE_LEN: usize = 1 << 20;
/// With no time of its own a command may take as long as it wants.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A command and what it is called.
pub struct Feed<'a> {
    /// The action it belongs to.
    pub name: &'a Name,
    /// Program and arguments.
    pub argv: &'a [String],
    /// Who runs it.
    pub user: Option<&'a str>,
    /// Added to its environment.
    pub env: &'a Values,
    /// It is ended after this time.
    pub timeout: Option<Duration>,
}

impl Feed<'_> {
    /// Refuses a program that others can change, before anything is run.
    pub fn check_ahead(&self) -> Result<()> {
        trust::check_ahead(self.argv, self.user).map_err(|e| e.context(format!("action {}", self.name)))
    }
}

/// What the content is written to.
struct Input<'a> {
    pipe: OwnedFd,
    running: Running,
    written: u64,
    deadline: Instant,
    is_late: bool,
    stop: &'a dyn Fn() -> bool,
    log: &'a mut dyn FnMut(&str),
}

impl Write for Input<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            if (self.stop)() {
                return Err(io::Error::other("stopped"));
            }
            match rustix::io::write(&self.pipe, bytes) {
                Ok(len) => {
                    self.written += len as u64;
                    return Ok(len);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            if self.running.has_ended() {
                return Err(io::Error::other("its reader has ended"));
            }
            self.is_late = Instant::now() >= self.deadline;
            if self.is_late {
                return Err(io::Error::other("its reader takes too long"));
            }
            // Its output is read meanwhile: else it would wait for us, and we for it.
            self.running.wait_for_output(Some(&self.pipe), self.log);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs the command with what `content` writes as its input; gives how much that was.
pub(super) fn feed(
    feed: &Feed<'_>,
    values: &Values,
    monitor: &dyn Monitor,
    content: &mut dyn FnMut(&mut dyn Write) -> Result<u64>,
    reports: &mut Vec<Report>,
) -> Result<u64> {
    let since = Instant::now();
    let mut values = values.clone();
    values.insert("BK_STEP".to_owned(), feed.name.to_string());
    values.insert("BK_PHASE".to_owned(), Phase::Stream.name().to_owned());
    let call = Call {
        argv: feed.argv,
        user: feed.user,
        values: &[feed.env, &values],
        timeout: feed.timeout.unwrap_or(FOR_EVER),
        input: None,
        is_kept: false,
    };
    let stop = || monitor.interrupted().is_some();
    let mut log = |line: &str| monitor.note(&format!("{} stream: {line}", feed.name));
    let (ran, result) = piped(&call, &stop, &mut log, content);
    let seconds = (since.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    let word = if result.is_ok() { "done" } else { "failed" };
    monitor.note(&format!("{} stream: {word} in {seconds} s", feed.name));
    reports.push(Report {
        step: feed.name.to_string(),
        phase: Phase::Stream,
        result: word,
        tries: 1,
        seconds,
        end: ran.end,
    });
    result.map_err(|e| match monitor.interrupted() {
        Some(signal) => Error::new(Kind::Signal(signal), format!("action {}: {}", feed.name, ran.why)),
        None => e.context(format!("action {}", feed.name)),
    })
}

fn step(what: String) -> Error {
    Error::new(Kind::Step, what)
}

fn piped(
    call: &Call<'_>,
    stop: &dyn Fn() -> bool,
    log: &mut dyn FnMut(&str),
    content: &mut dyn FnMut(&mut dyn Write) -> Result<u64>,
) -> (Ran, Result<u64>) {
    let started = pipe().and_then(|(reader, pipe)| {
        let theirs = reader.try_clone().map_err(|e| Error::io("cannot make a pipe", e))?;
        Ok((process::start(call, theirs.into())?, reader, pipe))
    });
    let (child, reader, pipe) = match started {
        Ok(started) => started,
        Err(e) => {
            let ran = Ran::not_started(&e);
            let error = step(ran.why.clone());
            return (ran, Err(error));
        }
    };
    let deadline = Instant::now().checked_add(call.timeout).unwrap_or_else(|| Instant::now() + FOR_EVER);
    let mut input = Input { pipe, running: Running::new(child, call), written: 0, deadline, is_late: false, stop, log };
    let filled = content(&mut input);
    let Input { pipe, mut running, written, is_late, log, .. } = input;
    let len = match filled {
        Ok(len) => len,
        Err(e) => {
            let was_gone = running.has_ended();
            // While the pipe is open the command does not take what it has for everything.
            let ended = running.until_end(call.timeout, &|| !was_gone, log);
            let ended = if is_late && ended.is_some() { Some(End::TimedOut) } else { ended };
            let ran = running.finish(ended, call, log);
            drop((pipe, reader));
            let read = format!("after it was given {}", show_size(written));
            let error = match (was_gone || is_late, ran.is_ok()) {
                (true, true) => step(format!("`{}` ended {read}, and did not read all of the stream", call.argv[0])),
                (true, false) => step(format!("{} ({read})", ran.why)),
                (false, _) => e.context(format!("`{}` was ended {read}", call.argv[0])),
            };
            return (ran, Err(error));
        }
    };
    drop(pipe);
    let left = deadline.saturating_duration_since(Instant::now());
    let ended = running.until_end(left, stop, log);
    let ran = running.finish(ended, call, log);
    let unread = rustix::io::ioctl_fionread(&reader).unwrap_or(0);
    let result = match (ran.is_ok(), unread) {
        (true, 0) => Ok(len),
        (true, unread) => Err(step(format!(
            "`{}` exited with 0, but did not read the last {} of {}",
            call.argv[0],
            show_size(unread),
            show_size(len)
        ))),
        (false, _) => Err(step(ran.why.clone())),
    };
    (ran, result)
}

/// The end a command reads, and ours, which does not wait.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let failed = |e: Errno| Error::io("cannot make a pipe", e);
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    // Where that many are not allowed, fewer do.
    let _ = fcntl_setpipe_size(&writer, PIPE_LEN);
    let flags = rustix::fs::fcntl_getfl(writer.as_fd()).map_err(failed)?;
    rustix::fs::fcntl_setfl(writer.as_fd(), flags | OFlags::NONBLOCK).map_err(failed)?;
    Ok((reader, writer))
}
