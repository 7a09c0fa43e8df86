//! A stream of unknown length into frames.

use std::io::Read;

use super::framer::{Framer, Role};
use crate::{
    error::{Error, Kind, Result},
    monitor::Monitor,
};

/// Stores all of `input` as stream `number`; gives its length in bytes: 0 when there was none and nothing was stored.
pub fn store(
    framer: &mut Framer<'_>,
    number: u32,
    name: &str,
    input: &mut dyn Read,
    monitor: &dyn Monitor,
) -> Result<u64> {
    framer.begin(number);
    let mut total = 0u64;
    let mut filled = fill(framer, name, input, monitor)?;
    if filled == 0 {
        return Ok(0);
    }
    loop {
        total += filled as u64;
        monitor.advance(0, filled as u64, name.as_bytes());
        let offset = total - filled as u64;
        let full = filled == framer.frame_len();
        // Whether a full frame is the last one shows only when the next is read: it waits in the framer till then.
        let next = if full { peek(input, name, monitor)? } else { None };
        let last = next.is_none();
        framer.slice(filled, if last && offset == 0 { Role::Whole } else { Role::Piece { offset, last } });
        let Some(byte) = next else { break };
        framer.cut(false, 0)?;
        framer.put(&[byte])?;
        filled = 1 + fill(framer, name, input, monitor)?;
    }
    framer.end_stream()?;
    Ok(total)
}

fn peek(input: &mut dyn Read, name: &str, monitor: &dyn Monitor) -> Result<Option<u8>> {
    let mut byte = [0];
    loop {
        match input.read(&mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(byte[0])),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(name, e, monitor)),
        }
    }
}

fn failed(name: &str, error: std::io::Error, monitor: &dyn Monitor) -> Error {
    match monitor.interrupted() {
        Some(signal) => Error::new(Kind::Signal(signal), "interrupted"),
        None => Error::io(format!("cannot read the stream {name}"), error).with_kind(Kind::Other),
    }
}

/// Fills the rest of the frame; fewer bytes only at the end.
fn fill(framer: &mut Framer<'_>, name: &str, input: &mut dyn Read, monitor: &dyn Monitor) -> Result<usize> {
    let mut filled = 0;
    loop {
        if let Some(signal) = monitor.interrupted() {
            return Err(Error::new(Kind::Signal(signal), "interrupted"));
        }
        let spare = framer.spare();
        if spare.is_empty() {
            return Ok(filled);
        }
        match input.read(spare) {
            Ok(0) => return Ok(filled),
            Ok(len) => {
                framer.advance(len);
                filled += len;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(name, e, monitor)),
        }
    }
}
