//! The log file: what is said, with the time. Opened anew by each run, for nobody else to read, and bounded: when it is longer than
//! its limit it is set aside as `FILE.1`, and the oldest of those goes. So it needs no logrotate.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    clock::{Clock, System},
    config::keys::LogText,
    error::{Error, Result},
};

/// It is set aside from this length on, bytes.
const SIZE_MAX: u64 = 10 << 20;
/// How many that were set aside stay.
const KEEP: u8 = 3;

/// An open log file.
pub struct Log {
    file: File,
}

impl Log {
    /// Opens `path`, after setting aside what is too long.
    pub fn open(path: &Path, text: Option<&LogText>) -> Result<Self> {
        let failed = |e| Error::io(format!("cannot write the log {}", path.display()), e);
        let size_max = text.and_then(|text| text.max_size).map_or(SIZE_MAX, |size| size.0);
        let keep = text.and_then(|text| text.keep).unwrap_or(KEEP);
        if path.metadata().is_ok_and(|meta| meta.len() >= size_max) {
            set_aside(path, keep).map_err(failed)?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        Ok(Self { file })
    }

    /// Adds a line, in one write: runs may share the file. A full disk must not end a backup.
    pub fn write(&self, line: &str) {
        let _ = (&self.file).write_all(line.as_bytes());
    }
}

/// What is said now, as a line of the log.
pub fn line(text: &str) -> String {
    let now = System.now().map(|now| now.to_string()).unwrap_or_default();
    format!("{now} bk[{}]: {}\n", std::process::id(), text.replace('\n', "\n  "))
}

fn aside(path: &Path, n: u8) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

fn set_aside(path: &Path, keep: u8) -> std::io::Result<()> {
    for n in (1..keep).rev() {
        match std::fs::rename(aside(path, n), aside(path, n + 1)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    if keep == 0 { std::fs::remove_file(path) } else { std::fs::rename(path, aside(path, 1)) }
}
