//! `bk mount`, `bk umount`

use std::{
    io::{BufRead, BufReader},
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{Context, Ended, output::Output, signals::Signals};
use crate::{
    config::{
        meaning::{self, Named},
        typed::{MountArgs, UmountArgs},
    },
    error::{Error, Result},
    model::{ids::SnapshotName, place::Place},
    monitor::Monitor,
    mount::attach::Options,
    ops::mount::{self, Request},
};

/// Set for the process that serves in the background: its standard output is a pipe that waits for one line.
const IS_DAEMON: &str = "BK_MOUNT_DAEMON";
/// That line. What comes before it, warnings and an error as JSON, is for the user.
const MOUNTED: &str = "mounted";
/// The same line is not told again while it is one of the last so many.
const TOLD_MAX: usize = 64;

/// What a mount says: to standard error, or to the system's log once it is in the background.
struct Log {
    out: Output,
    signals: Signals,
    is_daemon: bool,
    told: Mutex<Vec<String>>,
}

impl Monitor for Log {
    fn warn(&self, text: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // Each page of a damaged frame would say it again.
        if told.iter().any(|line| line == text) {
            return;
        }
        told.insert(0, text.to_owned());
        told.truncate(TOLD_MAX);
        drop(told);
        if self.is_daemon {
            to_syslog(text);
        }
        self.out.fault(&format!("warning: {text}"));
        if self.out.is_json() {
            self.out.warn(text);
        }
    }

    fn advance(&self, _: u64, _: u64, _: &[u8]) {}

    fn expect(&self, _: u64, _: u64) {}

    fn interrupted(&self) -> Option<i32> {
        self.signals.seen()
    }
}

/// A warning of a daemon, as RFC 3164 has it.
fn to_syslog(text: &str) {
    const DAEMON_WARNING: u32 = 3 << 3 | 4;
    if let Ok(socket) = UnixDatagram::unbound() {
        let line = format!("<{DAEMON_WARNING}>bk[{}]: {text}", std::process::id());
        let _ = socket.send_to(line.as_bytes(), "/dev/log");
    }
}

pub fn mount(context: &Context<'_>, args: &MountArgs) -> Result<Ended> {
    let is_daemon = std::env::var_os(IS_DAEMON).is_some();
    if args.daemon && !is_daemon {
        return start_daemon(context);
    }
    let snapshot = args.snapshot.as_deref().map(str::parse::<SnapshotName>).transpose()?;
    let target = context.target(snapshot.as_ref().map(|snapshot| Named::Job(&snapshot.job)))?;
    let request = Request {
        snapshot,
        mount_point: args.mount_point.clone().ok_or_else(|| Error::usage("name a directory to mount on"))?,
        options: Options { allow_exec: args.allow_exec, allow_other: args.allow_other },
        is_remote: matches!(target.place, Place::S3(_)),
        cache_len: meaning::cache_len(args.cache_memory.as_ref())?,
        deadline: args.read_timeout.map(|seconds| Duration::from_secs(seconds.max(1))),
        threads: meaning::threads(context.global)?,
    };
    let volume = super::open(&target)?;
    let out = Output::new(context.out.is_json(), context.out.loudness());
    let log = Log { out, signals: context.signals.clone(), is_daemon, told: Mutex::default() };
    let monitor: Arc<dyn Monitor> = Arc::new(log);
    let outcome = mount::run(&volume, &request, &monitor, |path| {
        if is_daemon {
            return enter_background();
        }
        context.out.say(&format!("mounted on {}; Ctrl-C or `bk umount` ends it", path.display()));
        if context.out.is_json() {
            context.out.object("mounted", &serde_json::json!({ "mount_point": path }))?;
        }
        Ok(())
    })?;
    if context.out.is_json() {
        context.out.object("result", &outcome)?;
    }
    Ok(Ended::Done)
}

/// Runs bk again with the same arguments, and returns when that one has mounted, or has ended and said why.
fn start_daemon(context: &Context<'_>) -> Result<Ended> {
    let failed = |e| Error::io("cannot start in the background", e);
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(std::env::args_os().skip(1)).env(IS_DAEMON, "1");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    for line in child.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines()) {
        match line.map_err(failed)? {
            line if line == MOUNTED => return Ok(Ended::Done),
            line => context.out.line(&line)?,
        }
    }
    let status = child.wait().map_err(failed)?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) if code != 0 => Ok(Ended::Code(code)),
        _ => Err(Error::usage(format!("the process in the background ended with {status}"))),
    }
}

/// Tells the process that waits for us, and leaves its terminal.
fn enter_background() -> Result<()> {
    let failed = |e: std::io::Error| Error::io("cannot go into the background", e);
    rustix::process::setsid().map_err(|e| failed(e.into()))?;
    std::env::set_current_dir(Path::new("/")).map_err(failed)?;
    {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{MOUNTED}").and_then(|()| out.flush()).map_err(failed)?;
    }
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
    rustix::stdio::dup2_stdout(&null).map_err(|e| failed(e.into()))?;
    rustix::stdio::dup2_stderr(&null).map_err(|e| failed(e.into()))
}

pub fn umount(context: &Context<'_>, args: &UmountArgs) -> Result<Ended> {
    match &args.after {
        Some(own) => mount::unmount_after(std::io::stdin().lock(), &own.parse()?)?,
        None => {
            mount::unmount(&args.mount_point, args.lazy)?;
            context.out.say(&format!("unmounted {}", args.mount_point.display()));
        }
    }
    Ok(Ended::Done)
}
