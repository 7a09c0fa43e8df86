//! Other people's programs: are they here, run them, mounts that undo themselves.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::is_root;

/// True when all `tools` can be run; else says `SKIP` and the test returns.
pub fn need(test: &str, tools: &[&str]) -> bool {
    let missing: Vec<&str> = tools.iter().copied().filter(|t| which(t).is_none()).collect();
    missing.is_empty() || skip(test, &format!("no {}", missing.join(", ")))
}

/// True as root; else says `SKIP`.
pub fn need_root(test: &str) -> bool {
    is_root() || skip(test, "not root")
}

/// Says and counts a skipped test; always false, so that `need(…) || skip(…)` reads well.
pub fn skip(test: &str, why: &str) -> bool {
    let line = format!("SKIP {test}: {why}\n");
    // The harness captures what tests print; a skip must be seen.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("BK_TEST_SKIPS") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
    false
}

fn which(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let more = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(tool)).find(|p| p.is_file())
}

/// Runs a line of shell with `pipefail`; `$1`, `$2`, … are `args`.
pub fn shell(line: &str, args: &[&Path]) -> Output {
    let mut command = Command::new("bash");
    command.arg("-c").arg(format!("set -o pipefail; umask 022; {line}")).arg("bash").args(args);
    command.env("PATH", path_with_sbin()).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command.output().unwrap()
}

/// Runs a line of shell that must succeed.
#[track_caller]
pub fn shell_ok(line: &str, args: &[&Path]) -> Output {
    let output = shell(line, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{args:?}\n{}: {}", output.status, &stderr[..stderr.len().min(4000)]);
    output
}

fn path_with_sbin() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Writes a program. Not by this process: what another test starts in that moment would have it open for writing, too, and whoever
/// runs it then is told `Text file busy`.
pub fn write_program(path: &Path, text: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"]).arg(path).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "cannot write {}", path.display());
}

/// A copy of a program that anybody may run, made in the same way.
pub fn copy_program(from: &str, to: &Path) {
    shell_ok(r#"install -m 755 -- "$1" "$2""#, &[Path::new(from), to]);
}

/// A mounted file system, unmounted (and its loop device let go) in the end.
pub struct Mounted {
    pub at: PathBuf,
    device: Option<PathBuf>,
}

impl Mounted {
    /// A tmpfs with `size` in mount's words; None where mounting is not allowed.
    pub fn tmpfs(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=0755");
        run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), options.as_ref(), "bk-it".as_ref(), at.as_ref()])
            .then(|| Self { at: at.to_owned(), device: None })
    }

    /// ext4 made in `image` (`size` bytes) and mounted at `at`.
    pub fn ext4(image: &Path, size: u64, at: &Path) -> Option<Self> {
        Self::ext4_with(image, size, at, &[])
    }

    /// The same, made with `more` options.
    pub fn ext4_with(image: &Path, size: u64, at: &Path, more: &[&str]) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        fs::File::create(image).unwrap().set_len(size).unwrap();
        let mut words: Vec<&OsStr> = vec!["-q".as_ref(), "-F".as_ref()];
        words.extend(more.iter().map(OsStr::new));
        words.push(image.as_ref());
        if !run("mkfs.ext4", &words) {
            return None;
        }
        let found = Command::new("losetup").args(["-f", "--show"]).arg(image).env("PATH", path_with_sbin()).output();
        let found = found.ok().filter(|o| o.status.success())?;
        let device = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
        let mounted = Self { at: at.to_owned(), device: Some(device) };
        mounted.mount_again().then_some(mounted)
    }

    pub fn mount_again(&self) -> bool {
        self.device.as_ref().is_some_and(|device| run("mount", &[device.as_ref(), self.at.as_ref()]))
    }

    pub fn unmount(&self) -> bool {
        run("umount", &[self.at.as_ref()])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.unmount() {
            run("umount", &["-l".as_ref(), self.at.as_ref()]);
        }
        if let Some(device) = &self.device {
            run("losetup", &["-d".as_ref(), device.as_ref()]);
        }
    }
}

fn run(program: &str, args: &[&OsStr]) -> bool {
    let mut command = Command::new(program);
    command.args(args).env("PATH", path_with_sbin()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

/// A frozen file system, which thaws whatever happens.
pub struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    /// What writes to it waits in the kernel from now on.
    pub fn new(at: &'a Path) -> Self {
        shell_ok(r#"fsfreeze -f "$1""#, &[at]);
        Self(at)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        shell_ok(r#"fsfreeze -u "$1""#, &[self.0]);
    }
}
