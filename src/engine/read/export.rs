//! A stream of a snapshot as it went in: the tree as one tar, a named stream as its bytes.

use std::io::Write;

use super::{content, index::IndexReader};
use crate::{
    error::{Error, Result},
    monitor::Monitor,
};

/// Writes bytes `start..end` of a stream to `out`; `end` must not pass the stream's own.
pub fn write_stream(
    index: &IndexReader,
    stream: u32,
    (start, end): (u64, u64),
    threads: usize,
    monitor: &dyn Monitor,
    out: &mut dyn Write,
) -> Result<u64> {
    let mut done = 0;
    let len = end.saturating_sub(start);
    content::each_slice(index, (stream, start, len), threads, monitor, |bytes| {
        out.write_all(bytes).map_err(|e| Error::io("cannot write the output", e))?;
        done += bytes.len() as u64;
        monitor.advance(0, bytes.len() as u64, b"");
        Ok(())
    })?;
    Ok(done)
}

/// Writes the whole tree as one tar to `out`; returns its length.
pub fn write_tree(index: &IndexReader, threads: usize, monitor: &dyn Monitor, out: &mut dyn Write) -> Result<u64> {
    let mut done = 0;
    content::ordered(index, index.frames_from(0, 0)?, threads, |ordered| {
        while let Some((frame, plain)) = ordered.next_frame()? {
            content::check_interrupted(monitor)?;
            if frame.offset != done {
                return Err(Error::integrity(format!("the tree of snapshot {} has a gap at {done}", index.shown())));
            }
            let plain = plain?;
            out.write_all(&plain).map_err(|e| Error::io("cannot write the output", e))?;
            done += plain.len() as u64;
            monitor.advance(0, plain.len() as u64, b"");
            ordered.recycle(plain);
        }
        Ok(done)
    })
}
