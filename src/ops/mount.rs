//! The run book of `bk mount`: make the mount point free, mount, serve till the end, unmount. And of `bk umount`.

use std::{
    io::{Read, Write},
    os::unix::{net::UnixDatagram, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::Pid;
use serde::Serialize;

use crate::{
    engine::catalog,
    error::{Error, Result},
    model::ids::SnapshotName,
    monitor::Monitor,
    mount::{
        Limits,
        attach::{self, FS_TYPE, Identity, Options},
        core::{Core, Shown},
        counts::Seen,
        fuse::{self, Served},
    },
    volume::Volume,
};

/// How often it is looked whether to end.
const TICK: Duration = Duration::from_millis(50);
/// How often it is looked whether bk was killed.
const LOOK: Duration = Duration::from_secs(1);
/// Programs in the mount have this long to leave once it was taken out of sight.
const LEAVE: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Only this snapshot.
    pub snapshot: Option<SnapshotName>,
    /// Where.
    pub mount_point: PathBuf,
    /// How.
    pub options: Options,
    /// Whether each request of the volume takes its time.
    pub is_remote: bool,
    /// Decoded content kept, bytes.
    pub cache_len: u64,
    /// After so long without an answer a program gets an I/O error.
    pub deadline: Option<Duration>,
    /// Threads that decode.
    pub threads: usize,
}

/// What it was.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Where it was mounted.
    pub mount_point: PathBuf,
    /// What the kernel asked for.
    pub requests: Seen,
}

fn limits(request: &Request) -> Limits {
    let remote = request.is_remote;
    let deadline = Duration::from_secs(if remote { 120 } else { 60 });
    Limits {
        cache_len: request.cache_len,
        deadline: request.deadline.unwrap_or(deadline),
        // A request of a bucket waits more than it works.
        frame_threads: if remote { 8 } else { request.threads.max(2) },
        index_threads: if remote { 16 } else { 4 },
        ahead_len: if remote { 64 << 20 } else { 32 << 20 },
        fresh: Duration::from_secs(if remote { 5 } else { 1 }),
    }
}

fn shown(volume: &Volume, name: Option<&SnapshotName>) -> Result<Shown> {
    let Some(name) = name else { return Ok(Shown::All) };
    let log = catalog::read(volume, &name.job)?;
    let snapshot = catalog::find_in(&log, name, &volume.shown)?.snapshot.clone();
    let chain = match snapshot.base {
        None => vec![snapshot.clone()],
        Some(_) => catalog::chain(&log, &snapshot)?,
    };
    Ok(Shown::One(Box::new(snapshot), chain))
}

/// Mounts and serves until it is unmounted or a signal comes; `ready` is told where once it is mounted.
pub fn run(
    volume: &Volume,
    request: &Request,
    monitor: &Arc<dyn Monitor>,
    ready: impl FnOnce(&Path) -> Result<()>,
) -> Result<Outcome> {
    let (path, was_stale) = attach::prepare(&request.mount_point)?;
    if was_stale {
        monitor.warn(&format!("a mount that was left dead on {} was taken away", path.display()));
    }
    let core =
        Core::new(volume.clone(), shown(volume, request.snapshot.as_ref())?, limits(request), Arc::clone(monitor))?;
    if request.snapshot.is_some() {
        core.open().map_err(|e| e.context("cannot mount"))?;
    }
    let device = attach::mount(&path, &volume.shown, request.options)?;
    let own = attach::made(&path, &device)?;
    let watcher = match Watcher::begin(&own, &path) {
        Ok(watcher) => watcher,
        Err(e) => {
            attach::unmount_own(&own)?;
            return Err(e);
        }
    };
    let loops = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    let served = fuse::serve(Arc::clone(&core), device, loops);
    let done = served.and_then(|served| {
        attach::set_read_ahead(&own, if request.is_remote { 16 << 10 } else { 1 << 10 });
        notify(&format!("READY=1\nSTATUS=mounted on {}\n", path.display()));
        ready(&path)?;
        serve(&served, &own, &**monitor)
    });
    if done.is_err() {
        let _ = attach::unmount_own(&own);
    }
    watcher.end(done.is_ok());
    done.map(|()| Outcome { mount_point: path, requests: core.counts() })
}

fn serve(served: &Served, own: &Identity, monitor: &dyn Monitor) -> Result<()> {
    while !served.is_over() {
        if monitor.interrupted().is_some() {
            notify("STOPPING=1\n");
            // What others have mounted in its place, or over it, is theirs.
            let is_gone = attach::unmount_own(own)?;
            let end = Instant::now() + LEAVE;
            while is_gone && !served.is_over() && Instant::now() < end {
                std::thread::sleep(TICK);
            }
            return Ok(());
        }
        std::thread::sleep(TICK);
    }
    // Aborted from outside it is over, and still there.
    attach::clear(own)
}

/// Tells systemd, when it started us and wants to know (`Type=notify`).
fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let name = name.as_encoded_bytes();
    let address = match name.strip_prefix(b"@") {
        Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name),
        None => std::os::unix::net::SocketAddr::from_pathname(Path::new(std::str::from_utf8(name).unwrap_or_default())),
    };
    if let (Ok(socket), Ok(address)) = (UnixDatagram::unbound(), address) {
        // Nobody there to hear it is no reason to stop.
        let _ = socket.send_to_addr(state.as_bytes(), &address);
    }
}

/// What its watcher is told by a bk that leaves nothing to unmount.
const DONE: &[u8] = b".";

/// Another process that unmounts when this one is no more, unless it was told that all is done.
struct Watcher(Child);

impl Watcher {
    fn begin(own: &Identity, path: &Path) -> Result<Self> {
        let failed = |e| Error::io("cannot start the process that unmounts in the end", e);
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.args(["umount", "--after", &own.to_string(), "--"]).arg(path).current_dir("/").process_group(0);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        child.map(Self).map_err(failed)
    }

    fn end(mut self, is_done: bool) {
        if let Some(mut input) = self.0.stdin.take()
            && is_done
        {
            // One that was killed need not be told.
            let _ = input.write_all(DONE);
        }
        let _ = self.0.wait();
    }
}

/// Unmounts the mount `own` when `input` ends with nothing in it.
pub fn unmount_after(mut input: impl Read, own: &Identity) -> Result<()> {
    let one_at_a_time = Arc::new(Mutex::new(()));
    if let Some(parent) = rustix::process::getppid() {
        let (own, turn) = (own.clone(), Arc::clone(&one_at_a_time));
        std::thread::spawn(move || {
            while !is_dead(parent) {
                std::thread::sleep(LOOK);
            }
            // One of its threads may be in the kernel, waiting for an answer that only it could have given.
            let _turn = turn.lock();
            let _ = attach::abort(&own);
        });
    }
    let mut told = Vec::new();
    let _ = input.read_to_end(&mut told);
    let _turn = one_at_a_time.lock();
    if told.is_empty() { attach::clear(own) } else { Ok(()) }
}

/// Whether a process has ended, though threads of it may be left.
fn is_dead(process: Pid) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())) else { return true };
    let state = stat.rsplit(')').next().unwrap_or_default();
    state.trim_start().starts_with(['Z', 'X'])
}

/// Unmounts what `bk mount` mounted on a path.
pub fn unmount(path: &Path, lazy: bool) -> Result<()> {
    let path = attach::absolute(path)?;
    match attach::mounted_at(&path)? {
        Some(entry) if entry.kind == FS_TYPE => attach::unmount(&path, lazy),
        _ => Err(Error::usage(format!("no volume is mounted on {}", path.display()))
            .with_hint("`grep fuse.bk /proc/mounts` shows what is mounted")),
    }
}
