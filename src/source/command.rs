//! A command whose standard output is a stream. It counts only when the output ended and the command exited with 0.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Read,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::Signal,
};

use crate::{
    error::{Error, Kind, Result},
    model::{
        processes::{group_lives, signal_group},
        secret,
        span::Span,
    },
    monitor::Monitor,
};

/// Pipes are asked to hold this many bytes: fewer switches between producer and bk.
const PIPE_LEN: usize = 1 << 20;
/// From TERM to KILL.
const GRACE: Duration = Duration::from_secs(10);
/// From KILL to giving up on what cannot be killed: it waits for a device.
const KILL_WAIT: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(50);

/// A pipe or file that is read as long as the run was not interrupted.
pub struct Watched<'a> {
    file: std::fs::File,
    monitor: &'a dyn Monitor,
    limit: Option<Limit>,
}

/// How long a command may take.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    ends_at: Instant,
    timeout: Duration,
}

impl Limit {
    fn new(timeout: Duration) -> Option<Self> {
        // A time that long never comes.
        Instant::now().checked_add(timeout).map(|ends_at| Self { ends_at, timeout })
    }

    fn check(&self) -> std::io::Result<()> {
        if Instant::now() < self.ends_at {
            return Ok(());
        }
        let what = format!("the command took longer than {}", Span(self.timeout));
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
    }
}

impl<'a> Watched<'a> {
    /// Reads `fd`, till `limit`.
    pub fn new(fd: std::os::fd::OwnedFd, limit: Option<Limit>, monitor: &'a dyn Monitor) -> Self {
        // Fails for what is no pipe, and then makes no difference.
        let _ = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_LEN);
        Self { file: fd.into(), monitor, limit }
    }

    /// Standard input.
    pub fn stdin(monitor: &'a dyn Monitor) -> Result<Self> {
        use std::os::fd::AsFd;
        let stdin = std::io::stdin();
        let fd = stdin.as_fd().try_clone_to_owned().map_err(|e| Error::io("cannot use standard input", e))?;
        Ok(Self::new(fd, None, monitor))
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let quarter = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
        loop {
            if self.monitor.interrupted().is_some() {
                return Err(std::io::Error::other("interrupted"));
            }
            self.limit.map_or(Ok(()), |limit| limit.check())?;
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&quarter)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.file.read(buf),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// What a running command writes: it ends when the command has ended well, so that nothing of one that failed is finished.
pub struct Output<'a> {
    watched: Option<Watched<'a>>,
    producer: Option<Producer>,
    monitor: &'a dyn Monitor,
    failure: Option<Error>,
}

impl<'a> Output<'a> {
    /// The output of `producer`, which nobody has taken yet.
    pub fn new(mut producer: Producer, monitor: &'a dyn Monitor) -> Result<Self> {
        let watched = Watched::new(producer.output()?, producer.limit(), monitor);
        Ok(Self { watched: Some(watched), producer: Some(producer), monitor, failure: None })
    }

    /// What became of it: `stored`, if the command did not fail itself.
    pub fn judge<T>(mut self, stored: Result<T>) -> Result<T> {
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => stored,
        }
    }
}

impl Read for Output<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if let Some(watched) = &mut self.watched {
            let len = watched.read(buf)?;
            if len > 0 || buf.is_empty() {
                return Ok(len);
            }
            self.watched = None;
        }
        if let Some(producer) = self.producer.take() {
            self.failure = producer.finish(self.monitor).err();
        }
        match &self.failure {
            Some(failure) => Err(std::io::Error::other(failure.to_string())),
            None => Ok(0),
        }
    }
}

/// A command, and what of the environment it gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Added to its environment.
    pub env: BTreeMap<String, String>,
    /// Variables it gets although they could be secrets of bk's own.
    pub pass_env: Vec<String>,
    /// Who runs it; bk's user when `None`.
    pub user: Option<String>,
    /// How long it may take; for ever when `None`.
    pub timeout: Option<Duration>,
}

impl CommandLine {
    fn command(&self) -> Result<Command> {
        let Some((program, args)) = self.argv.split_first() else {
            return Err(Error::usage("there is no command after `--`"));
        };
        let mut command = match &self.user {
            None => Command::new(program),
            Some(user) => {
                let mut command = Command::new("runuser");
                command.args(["-u", user, "--"]).arg(program);
                command
            }
        };
        command.args(args);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let is_own = secret::is_own(&name) || name == "CREDENTIALS_DIRECTORY";
            if is_own && !self.pass_env.contains(&name) {
                command.env_remove(name);
            }
        }
        command.envs(&self.env);
        Ok(command)
    }
}

/// A running command.
pub struct Producer {
    child: Child,
    name: String,
    limit: Option<Limit>,
    done: bool,
}

impl Producer {
    /// Starts a command in a process group of its own, so that it can be ended with all it started; `values` are added to its environment.
    pub fn start(line: &CommandLine, values: &BTreeMap<String, String>) -> Result<Self> {
        let mut command = line.command()?;
        let name = line.argv[0].display().to_string();
        let child = command
            .envs(values)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| Error::io(format!("cannot start `{name}`"), e).with_kind(Kind::Other))?;
        Ok(Self { child, name, limit: line.timeout.and_then(Limit::new), done: false })
    }

    /// How long it may take.
    fn limit(&self) -> Option<Limit> {
        self.limit
    }

    /// Its standard output.
    fn output(&mut self) -> Result<std::os::fd::OwnedFd> {
        let out = self.child.stdout.take().ok_or_else(|| Error::new(Kind::Other, "the output is read already"))?;
        Ok(out.into())
    }

    /// Waits for its end; anything but exit 0 is an error. Its output must have ended. One that does not end is ended with the run.
    fn finish(mut self, monitor: &dyn Monitor) -> Result<()> {
        let failed = |e| Error::io(format!("cannot wait for `{}`", self.name), e).with_kind(Kind::Other);
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = self.child.try_wait().map_err(failed)? {
                break status;
            }
            if let Some(signal) = monitor.interrupted() {
                return Err(Error::new(Kind::Signal(signal), "interrupted"));
            }
            self.limit.map_or(Ok(()), |limit| limit.check()).map_err(failed)?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        };
        self.done = true;
        if status.success() {
            return Ok(());
        }
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "failed".to_owned(),
        };
        Err(Error::new(Kind::Other, format!("`{}` {how}: nothing was stored", self.name)))
    }
}

impl Drop for Producer {
    /// A run that fails first ends its producer: TERM to the whole group.
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Ok(pid) = i32::try_from(self.child.id())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            // Not reaped till all of them have ended: its id stays the group's.
            for (signal, time) in [(Signal::TERM, GRACE), (Signal::KILL, KILL_WAIT)] {
                signal_group(pid, signal);
                let end = Instant::now() + time;
                while group_lives(pid) && Instant::now() < end {
                    std::thread::sleep(TICK);
                }
            }
        }
        // What was killed and waits for a device is not waited for.
        let _ = self.child.try_wait();
    }
}
