//! A content in a file: written where it belongs there, and read back from it. Of a sparse file the content is its data runs joined.

use std::{fs::File, os::unix::fs::FileExt};

use super::{content::check_interrupted, worker::failed_io};
use crate::{
    error::Result,
    model::{
        digest::Digest,
        entry::{Entry, Run},
    },
    monitor::Monitor,
};

/// A content is read back in pieces of this length, bytes.
const READ_BACK_LEN: usize = 256 << 10;

/// Writes content, which begins at `at` within all of the file's content, where it belongs in the file.
pub fn put_content(file: &File, entry: &Entry, at: u64, bytes: &[u8]) -> Result<()> {
    let write = |bytes: &[u8], at| file.write_all_at(bytes, at).map_err(|e| failed_io("write the file", &e));
    let Some(runs) = &entry.sparse else { return write(bytes, at) };
    let mut before = 0;
    let end = at + bytes.len() as u64;
    for &Run { offset, len } in runs {
        let (from, to) = (at.max(before), end.min(before + len));
        if from < to {
            let range = usize::try_from(from - at).unwrap_or(0)..usize::try_from(to - at).unwrap_or(0);
            write(&bytes[range], offset + (from - before))?;
        }
        before += len;
        if before >= end {
            break;
        }
    }
    Ok(())
}

/// BLAKE3 of the content of a file that is as long as `entry` says.
pub fn content_digest(file: &File, entry: &Entry, monitor: &dyn Monitor) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; READ_BACK_LEN];
    for run in entry.data_runs() {
        let mut at = run.offset;
        while at < run.end() {
            check_interrupted(monitor)?;
            let now = usize::try_from(run.end() - at).unwrap_or(usize::MAX).min(READ_BACK_LEN);
            file.read_exact_at(&mut buf[..now], at).map_err(|e| failed_io("read the file back", &e))?;
            hasher.update(&buf[..now]);
            at += now as u64;
        }
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}
