//! A stream of unknown length into frames.

use std::io::Read;

use super::{
    delta::{Delta, Noted, Old, Settings},
    framer::{Framer, Role, StreamEnd},
    profile::Stage,
};
use crate::{
    error::{Error, Kind, Result},
    format::{
        self,
        delta::Line,
        index::{Chunk, ChunkRun},
    },
    monitor::Monitor,
};

/// A named stream to be stored.
pub struct Stream<'a> {
    /// Its number, from 1 on.
    pub number: u32,
    /// Its name.
    pub name: &'a str,
    /// Its chunks are noted, or compared.
    pub settings: Option<&'a Settings>,
    /// Progress and interruption.
    pub monitor: &'a dyn Monitor,
}

impl<'a> Stream<'a> {
    /// Stores all of `input`; gives its length in bytes: 0 when there was none and nothing was stored.
    pub fn store(&self, framer: &mut Framer<'_>, input: &mut dyn Read) -> Result<u64> {
        let &Self { number, name, monitor, .. } = self;
        framer.begin(number);
        let mut chunks = self.settings.map(Noted::new);
        let mut total = 0u64;
        let mut filled = fill(framer, name, input, monitor)?;
        if filled == 0 {
            return Ok(0);
        }
        loop {
            total += filled as u64;
            monitor.advance(0, filled as u64, name.as_bytes());
            if let Some(chunks) = &mut chunks {
                framer.turn(Stage::Hash);
                chunks.feed(framer.last(filled));
                framer.turn(Stage::Read);
            }
            let offset = total - filled as u64;
            let full = filled == framer.frame_len();
            // Whether a full frame is the last one shows only when the next is read: it waits in the framer till then.
            let next = if full { peek(input, name, monitor)? } else { None };
            let last = next.is_none();
            framer.slice(filled, if last && offset == 0 { Role::Whole } else { Role::Piece { offset, last } });
            let Some(byte) = next else { break };
            if let Some(chunks) = &mut chunks {
                framer.chunks(self.run(chunks.take()));
            }
            framer.cut(false, 0)?;
            framer.put(&[byte])?;
            filled = 1 + fill(framer, name, input, monitor)?;
        }
        if let Some(chunks) = chunks {
            framer.chunks(self.run(chunks.finish()));
        }
        framer.end_stream()?;
        Ok(total)
    }

    fn run(&self, chunks: Vec<Chunk>) -> ChunkRun {
        ChunkRun { stream: self.number, path: Vec::new(), chunks }
    }

    /// Stores what of `input` is not in `old`; gives the length of `input`: 0 when there was none and nothing was stored.
    pub fn compare(&self, framer: &mut Framer<'_>, old: Old<'_>, input: &mut dyn Read) -> Result<u64> {
        let Some(settings) = self.settings else { return self.store(framer, input) };
        framer.begin(self.number);
        let mut delta = Delta::new(settings, old, self.number);
        let mut buf = vec![0; COMPARE_LEN];
        let mut total = 0;
        loop {
            if let Some(signal) = self.monitor.interrupted() {
                return Err(Error::new(Kind::Signal(signal), "interrupted"));
            }
            let len = match input.read(&mut buf) {
                Ok(0) => break,
                Ok(len) => len,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(self.name, e, self.monitor)),
            };
            total += len as u64;
            self.monitor.advance(0, len as u64, self.name.as_bytes());
            framer.turn(Stage::Hash);
            delta.push(&buf[..len], &mut |lines, data| self.segment(framer, total, lines, data))?;
            framer.turn(Stage::Read);
            framer.chunks(self.run(delta.take_chunks()));
        }
        if total == 0 {
            return Ok(0);
        }
        let (compared, chunks) = delta.finish(true, &mut |lines, data| self.segment(framer, total, lines, data))?;
        framer.chunks(self.run(chunks));
        framer.end_delta(StreamEnd { digest: compared.digest, len: compared.len, places: compared.places })?;
        Ok(total)
    }

    /// A segment: its text, then its new bytes. `size` is what is known of the stream's length by then.
    fn segment(&self, framer: &mut Framer<'_>, size: u64, lines: &[Line], data: &[u8]) -> Result<u64> {
        let name = self.name.as_bytes();
        framer.put(&format::delta::text(name, size, name, lines))?;
        let offset = framer.offset();
        framer.put(data)?;
        Ok(offset)
    }
}

/// A stream that is compared is read in pieces of at most this length, bytes.
const COMPARE_LEN: usize = 1 << 20;

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
