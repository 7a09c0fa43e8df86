//! `bk mount`, as programs see it: real mounts, and the file system behind them without a kernel.

mod access;
mod core;
mod faithful;
mod faults;
mod life;
mod reads;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::support::tools::{need_root, skip};
use crate::support::{Bk, Ran, Running, World};

/// True where this process may mount; else says `SKIP`.
fn can_mount(test: &str) -> bool {
    need_root(test) && (Path::new("/dev/fuse").exists() || skip(test, "no /dev/fuse"))
}

/// A mount by a bk of its own, ended with it.
struct Mount {
    at: PathBuf,
    bk: Option<Running>,
    /// The process that serves.
    pid: u32,
    /// What it said until it was mounted.
    said: String,
}

fn is_mounted(at: &Path) -> bool {
    let at = at.to_str().unwrap();
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().any(|line| line.split(' ').nth(4) == Some(at) && line.contains(" - fuse.bk "))
}

/// Waits for what must come, however slow the machine is.
#[track_caller]
fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    for _ in 0..6000 {
        if is_there() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("waited two minutes for {what}");
}

impl Mount {
    /// All of the world's volume, or what `words` say, on the directory `name`.
    fn new(world: &World, name: &str, words: &str) -> Self {
        let at = world.path(name);
        // One that is dead is there, and cannot be looked at.
        if !is_mounted(&at) {
            fs::create_dir_all(&at).unwrap();
        }
        Self::by(world.bk("mount --json").words(words).arg(&at), &at)
    }

    /// By a command line that ends in the mount point.
    fn by(bk: Bk, at: &Path) -> Self {
        let mut bk = bk.spawn();
        let mut said = String::new();
        let mut out = BufReader::new(bk.child.stdout.as_mut().unwrap());
        // Warnings come before.
        while !said.contains("\"mounted\"") {
            if out.read_line(&mut said).unwrap() == 0 {
                panic!("{said}{}", bk.finish().show());
            }
        }
        let pid = bk.child.id();
        Self { at: at.to_owned(), bk: Some(bk), pid, said }
    }

    /// `/<job>/latest` or what else is at a path of it.
    fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// How often the kernel asked for something.
    fn count(&self, what: &str) -> u64 {
        let mut text = vec![0; 4096];
        let len = rustix::fs::getxattr(&self.at, "user.bk.requests", &mut text[..]).unwrap();
        let counts: serde_json::Value = serde_json::from_slice(&text[..len]).unwrap();
        counts[what].as_u64().unwrap_or_else(|| panic!("no {what} in {counts}"))
    }

    /// Highest resident size of the process that serves, KiB.
    fn peak(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Ends it with SIGTERM.
    fn end(mut self) -> Ran {
        let bk = self.bk.take().unwrap();
        bk.signal(Signal::TERM);
        let ran = bk.finish();
        assert!(!is_mounted(&self.at), "still mounted\n{}", ran.show());
        ran
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(mut bk) = self.bk.take() {
            let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
            let _ = bk.child.kill();
            let _ = bk.child.wait();
        }
    }
}
