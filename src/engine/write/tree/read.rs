//! Reading a file that may change, end early or give errors meanwhile.

use std::os::fd::OwnedFd;

use rustix::{fs::Stat, io::Errno};

use crate::{format::index::DAMAGED_COUNT_MAX, model::entry::Run};

/// After an error a large file is read on at the next multiple of this.
const SECTOR_LEN: u64 = 4096;

/// How reading a file's bytes ended.
pub(super) enum ReadEnd {
    /// As many bytes as were expected.
    Full,
    /// The file ended after this many.
    Short(u64),
    /// An error after this many.
    Failed(u64, Errno),
}

/// Whether a file is another than it was: size or times differ.
pub(super) fn is_changed(before: &Stat, after: &Stat) -> bool {
    let key = |s: &Stat| (s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
    key(before) != key(after)
}

/// Whether all that happened is that it got longer: what was read is a prefix.
pub(super) fn is_grown(before: &Stat, after: &Stat, short: bool) -> bool {
    !short && after.st_size > before.st_size
}

/// Reads a run that fits a buffer: from the descriptor's position when `sequential`.
pub(super) fn read_run(fd: &OwnedFd, offset: u64, buf: &mut [u8], sequential: bool) -> ReadEnd {
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let got = if sequential {
            rustix::io::read(fd, &mut buf[done..])
        } else {
            rustix::io::pread(fd, &mut buf[done..], at)
        };
        match got {
            Ok(0) => return ReadEnd::Short(done as u64),
            Ok(len) => done += len,
            Err(Errno::INTR) => {}
            Err(e) => return ReadEnd::Failed(done as u64, e),
        }
    }
    ReadEnd::Full
}

/// Reads a run of a large file; what cannot be read becomes zeros and is noted in `damaged`. True when the file ended early.
pub(super) fn read_all(fd: &OwnedFd, offset: u64, buf: &mut [u8], damaged: &mut Vec<Run>) -> bool {
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let (skip, short) = match read_run(fd, at, &mut buf[done..], false) {
            ReadEnd::Full => return false,
            ReadEnd::Short(got) => {
                done += usize::try_from(got).unwrap_or(0);
                (buf.len() - done, true)
            }
            ReadEnd::Failed(got, _) => {
                done += usize::try_from(got).unwrap_or(0);
                let at = offset + done as u64;
                let to_sector = (at + 1).next_multiple_of(SECTOR_LEN) - at;
                (usize::try_from(to_sector).unwrap_or(0).min(buf.len() - done), false)
            }
        };
        let run = Run { offset: offset + done as u64, len: skip as u64 };
        buf[done..done + skip].fill(0);
        done += skip;
        match damaged.last_mut() {
            Some(last) if last.end() == run.offset => last.len += run.len,
            _ => damaged.push(run),
        }
        if short {
            return true;
        }
    }
    false
}

pub(super) fn capped(mut damaged: Vec<Run>, size: u64) -> Vec<Run> {
    if damaged.len() > DAMAGED_COUNT_MAX {
        let offset = damaged[DAMAGED_COUNT_MAX].offset;
        damaged.truncate(DAMAGED_COUNT_MAX);
        damaged.push(Run { offset, len: size - offset });
    }
    damaged
}
