//! What the tests share: running `bk`, a temporary world with a volume, and small helpers.
//!
//! A `World` is one directory (on `/dev/shm` when there) with `volume/`, `src/` and room for outputs; it cleans itself.
//! With `BK_TEST_VOLUME=s3` its volume is reached through an S3 server in this process instead; its objects lie as files
//! below `volume` all the same. `moto` and `given` (what `BK_TEST_S3_URL` names) are for the tests that never look there.

pub mod between;
pub mod example;
pub mod history;
pub mod inventory;
pub mod job;
pub mod patroni;
pub mod proxy;
pub mod rng;
pub mod s3;
pub mod tools;
pub mod tree;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The binary under test.
pub const BK: &str = env!("CARGO_BIN_EXE_bk");

/// Exit codes of DESIGN.md.
pub mod exit {
    pub const ERROR: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const INCOMPLETE: i32 = 3;
    pub const VOLUME: i32 = 4;
    pub const GATE: i32 = 5;
    pub const LOST: i32 = 6;
    pub const INTEGRITY: i32 = 8;
    pub const NO_SPACE: i32 = 9;
}

/// A fresh directory on memory when there is one.
pub fn temp_dir(name: &str) -> TempDir {
    let shm = Path::new("/dev/shm");
    let base = match std::env::var_os("BK_TEST_DIR") {
        Some(dir) => PathBuf::from(dir),
        None if shm.is_dir() && fs::metadata(shm).is_ok_and(|m| !m.permissions().readonly()) => shm.into(),
        None => std::env::temp_dir(),
    };
    tempfile::Builder::new().prefix(&format!("bk-it-{name}-")).tempdir_in(base).unwrap()
}

/// A command line of bk being put together.
pub struct Bk {
    command: Command,
    line: Vec<OsString>,
    input: Option<Vec<u8>>,
}

impl Bk {
    /// `program` is run before bk (strace, setpriv, …) with its own arguments.
    pub fn under(program: &[&OsStr], words: &str) -> Self {
        let mut all: Vec<OsString> = program.iter().map(|w| w.to_os_string()).collect();
        all.push(BK.into());
        let mut command = Command::new(&all[0]);
        command.args(&all[1..]);
        for name in [
            "BK_VOLUME",
            "BK_TEST_SMALL",
            "BK_JOB",
            "BK_NODE",
            "BK_ROLE",
            "BK_AGENT",
            "BK_THREADS",
            "RUST_LOG",
            "RUST_BACKTRACE",
        ] {
            command.env_remove(name);
        }
        // What a machine has set up for S3 is not for tests, unless they ask for it.
        if std::env::var_os("BK_TEST_S3_URL").is_none() {
            for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
                command.env_remove(name);
            }
        }
        // Nor is its configuration.
        command.env("BK_CONFIG", "").stdin(Stdio::null());
        Self { command, line: all, input: None }.words(words)
    }

    pub fn new(words: &str) -> Self {
        Self::under(&[], words)
    }

    /// Arguments split at white space.
    pub fn words(mut self, words: &str) -> Self {
        for word in words.split_whitespace() {
            self = self.arg(word);
        }
        self
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg.as_ref());
        self.line.push(arg.as_ref().to_owned());
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Lets frames go down to 4 KiB and parts to 64 KiB.
    pub fn small(self) -> Self {
        self.env("BK_TEST_SMALL", "1")
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self.command.stdin(Stdio::piped());
        self
    }

    /// Runs to the end, whatever the end is.
    pub fn run(mut self) -> Ran {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("cannot run {:?}: {e}", self.line));
        let feeder = self.input.take().map(|bytes| {
            let mut pipe = child.stdin.take().unwrap();
            // A reader that goes away early is its own business: the exit code tells.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)))
        });
        let output = child.wait_with_output().unwrap();
        if let Some(feeder) = feeder {
            feeder.join().unwrap();
        }
        Ran { line: self.line, status: output.status, stdout: output.stdout, stderr: output.stderr }
    }

    /// Starts it with standard input as a pipe (closed by dropping `child.stdin`) and both outputs captured.
    pub fn spawn(mut self) -> Running {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.command.spawn().unwrap();
        Running { line: self.line, child }
    }
}

/// A bk that is still running.
pub struct Running {
    line: Vec<OsString>,
    pub child: Child,
}

impl Running {
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn finish(mut self) -> Ran {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output().unwrap();
        Ran { line: self.line, status: output.status, stdout: output.stdout, stderr: output.stderr }
    }
}

/// What a run came to.
pub struct Ran {
    pub line: Vec<OsString>,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Ran {
    /// The code a shell would show: 128+n for a signal.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap())
    }

    #[track_caller]
    pub fn code_is(self, expected: &[i32]) -> Self {
        assert!(expected.contains(&self.code()), "exit code {} is not in {expected:?}\n{}", self.code(), self.show());
        self
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        self.code_is(&[0])
    }

    /// Standard error and output together, as text.
    pub fn said(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stderr), String::from_utf8_lossy(&self.stdout))
    }

    #[track_caller]
    pub fn says(self, needle: &str) -> Self {
        assert!(self.said().contains(needle), "{needle:?} is not said\n{}", self.show());
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output read as one JSON object a line; the last one is a result or an error.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        let lines: Vec<Value> = self
            .text()
            .lines()
            .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l:?}\n{}", self.show())))
            .collect();
        let last = lines.last().and_then(|v| v["type"].as_str()).unwrap_or("");
        assert!(last == "result" || last == "error", "the last line is {last:?}\n{}", self.show());
        lines
    }

    pub fn show(&self) -> String {
        let head = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
        format!("ran: {:?}\nstdout: {}\nstderr: {}", self.line, head(&self.stdout), head(&self.stderr))
    }
}

/// A directory with a volume in it and a place for a source.
pub struct World {
    dir: TempDir,
    pub volume: PathBuf,
    pub src: PathBuf,
    /// The server of an S3 volume.
    pub server: Option<s3::Server>,
}

impl World {
    pub fn new(name: &str) -> Self {
        match std::env::var("BK_TEST_VOLUME").ok().as_deref() {
            Some("s3") => return Self::on_s3(name),
            Some("moto") => {
                let moto = s3::Server::moto(name);
                return moto.map_or_else(|| Self::on_s3(name), |server| Self::on(temp_dir(name), server));
            }
            Some("given") => return Self::on(temp_dir(name), s3::Server::given().expect("BK_TEST_S3_URL names none")),
            Some(other) => panic!("BK_TEST_VOLUME is s3, moto or given, not {other}"),
            None => {}
        }
        let dir = temp_dir(name);
        let (volume, src) = (dir.path().join("volume"), dir.path().join("src"));
        fs::create_dir(&src).unwrap();
        Bk::new("volume create").arg(&volume).run().ok();
        Self { dir, volume, src, server: None }
    }

    /// One whose volume is on an S3 server of its own.
    pub fn on_s3(name: &str) -> Self {
        let dir = temp_dir(name);
        let server = s3::Server::own(&dir.path().join("s3"));
        Self::on(dir, server)
    }

    /// One whose volume is on this server.
    pub fn on(dir: TempDir, server: s3::Server) -> Self {
        let world = Self::before(dir, server);
        world.bk("volume create").arg(world.named()).run().ok();
        world
    }

    /// One whose volume is not made yet.
    pub fn before(dir: TempDir, server: s3::Server) -> Self {
        let src = dir.path().join("src");
        fs::create_dir(&src).unwrap();
        // Other runs may use the same bucket.
        let prefix = name_of(dir.path());
        // Where its objects are no files, nobody finds any here, nor leaves some in the directory the tests run in.
        let volume = server.dir.as_deref().unwrap_or(&dir.path().join("no-files")).join(&prefix);
        Self { dir, volume, src, server: Some(server) }
    }

    /// The volume as `BK_VOLUME` names it.
    pub fn named(&self) -> OsString {
        match &self.server {
            Some(server) => server.url(&name_of(self.dir.path())).into(),
            None => self.volume.clone().into(),
        }
    }

    /// A path beside volume and source.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// bk with this world's volume in its environment.
    pub fn bk(&self, words: &str) -> Bk {
        self.bk_under(&[], words)
    }

    /// The same, run by another program.
    pub fn bk_under(&self, program: &[&OsStr], words: &str) -> Bk {
        let mut bk = Bk::under(program, words).env("BK_VOLUME", self.named());
        if let Some(server) = &self.server {
            bk = bk.env("XDG_CACHE_HOME", self.path("cache"));
            for (name, value) in server.env() {
                bk = bk.env(&name, value);
            }
        }
        bk
    }

    /// Snapshots all of `src` as job `name`; the caller judges the run.
    pub fn snapshot(&self, job: &str, options: &str) -> Ran {
        self.bk("snapshot --job").arg(job).words(options).small().arg("-C").arg(&self.src).arg(".").run()
    }

    /// Restores everything of `snapshot` into a fresh directory `name`.
    pub fn restore(&self, snapshot: &str, name: &str) -> (PathBuf, Ran) {
        let target = self.path(name);
        let ran = self.bk("restore").arg(snapshot).arg("--target").arg(&target).run();
        (target, ran)
    }

    /// Names of the snapshots that `bk list --json` shows.
    #[track_caller]
    pub fn list(&self) -> Vec<String> {
        listed(self.bk("list --json"))
    }

    /// The objects of the newest run of `job` whose name starts with `prefix`, in order.
    pub fn parts(&self, job: &str, prefix: &str) -> Vec<PathBuf> {
        let mut runs = sorted(&self.volume.join("data").join(job));
        // A server on a directory leaves that of an expired run behind.
        runs.retain(|run| !sorted(run).is_empty());
        let run = runs.last().unwrap_or_else(|| panic!("job {job} has no data"));
        sorted(run).into_iter().filter(|p| name_of(p).starts_with(prefix)).collect()
    }
}

/// The snapshot of a run whose turn it was.
#[track_caller]
pub fn taken(ended: bk::ops::snapshot::Ended) -> bk::ops::snapshot::Outcome {
    match ended {
        bk::ops::snapshot::Ended::Taken(outcome) => *outcome,
        bk::ops::snapshot::Ended::Skipped(skipped) => panic!("{skipped:?}"),
    }
}

/// Names of the snapshots that `bk list --json` shows.
#[track_caller]
pub fn list(volume: &Path) -> Vec<String> {
    listed(Bk::new("list --json --volume").arg(volume))
}

#[track_caller]
fn listed(list: Bk) -> Vec<String> {
    let ran = list.run().ok();
    let lines = ran.json();
    lines
        .iter()
        .filter(|v| v["type"] == "snapshot")
        .map(|v| v["snapshot"].as_str().unwrap_or_else(|| panic!("no name in {v}")).to_owned())
        .collect()
}

pub fn sorted(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

/// Every regular file below `dir`, sorted.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in sorted(dir) {
        if path.symlink_metadata().unwrap().is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The runs of a job in this directory that would be taken for snapshots whose records were lost, were they older.
pub fn lost(volume: &Path, job: &str) -> Vec<String> {
    let store = std::sync::Arc::new(bk::volume::local::LocalStore::open(volume).unwrap());
    let volume = bk::volume::open_on(store, "here".to_owned()).unwrap();
    let job = job.parse().unwrap();
    let log = bk::engine::catalog::read(&volume, &job).unwrap();
    let lying = bk::engine::catalog::runs(&volume.store.list(&format!("data/{job}/")).unwrap(), &job);
    let found = bk::ops::orphans::lost(&volume, &log, &lying, u64::MAX).unwrap();
    found.into_iter().map(|run| run.to_string()).collect()
}

pub fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Keeps this thread and those it starts on one processor: they hand over to each other all the time, and no two work at once.
pub fn stay_on(n: usize) {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let processors: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    let mut one = rustix::thread::CpuSet::new();
    one.set(processors[n % processors.len()]);
    rustix::thread::sched_setaffinity(None, &one).unwrap();
}
