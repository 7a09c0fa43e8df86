//! One frame: fetched, its digest checked, then decoded into a buffer that is used again.

use super::index::IndexReader;
use crate::{
    error::{Error, Result},
    format::{codec::Decoder, index::Frame},
    model::digest::Digest,
};

/// Reads frames; one for each thread.
pub struct FrameReader {
    decoder: Decoder,
    stored: Vec<u8>,
}

impl FrameReader {
    /// A reader with empty buffers.
    pub fn new() -> Result<Self> {
        Ok(Self { decoder: Decoder::new()?, stored: Vec::new() })
    }

    /// Reads and decodes `frame` into `plain` (cleared first).
    pub fn read(&mut self, index: &IndexReader, frame: &Frame, plain: &mut Vec<u8>) -> Result<()> {
        self.fetch(index, frame)?;
        self.decoder.decode(index.codec(), &self.stored, frame.len as usize, plain).map_err(|e| blame(index, frame, e))
    }

    /// Reads `frame` as stored and checks its digest.
    pub fn fetch(&mut self, index: &IndexReader, frame: &Frame) -> Result<&[u8]> {
        self.fetch_checked(index, frame).map_err(|e| blame(index, frame, e))?;
        Ok(&self.stored)
    }

    fn fetch_checked(&mut self, index: &IndexReader, frame: &Frame) -> Result<()> {
        let part = index.part(u64::from(frame.part))?;
        let end = frame.stored_offset.saturating_add(u64::from(frame.stored_len));
        if part.stream != frame.stream || end > part.stored_len.saturating_sub(u64::from(part.trailer_len)) {
            return Err(Error::integrity("it lies outside its part"));
        }
        // No codec grows its input by more than about one percent and a header.
        if u64::from(frame.stored_len) > u64::from(frame.len) / 32 * 33 + (64 << 10) {
            return Err(Error::integrity(format!(
                "{} stored bytes for {} are above the limit",
                frame.stored_len, frame.len
            )));
        }
        self.stored.clear();
        // In few sizes: growing bit by bit leaves gaps in the heap, for each thread anew.
        self.stored.reserve((frame.stored_len as usize).next_power_of_two());
        self.stored.resize(frame.stored_len as usize, 0);
        let key = index.part_key(&part)?;
        index.store().read_at(&key, frame.stored_offset, &mut self.stored)?;
        let mut read = Digest::of(&self.stored);
        if read != frame.digest {
            // What was damaged on its way here is whole the next time.
            index.store().forget(&key);
            index.store().read_at(&key, frame.stored_offset, &mut self.stored)?;
            read = Digest::of(&self.stored);
        }
        if read != frame.digest {
            return Err(Error::integrity(format!(
                "digest differs (stored {}…, read {}…)",
                frame.digest.short(),
                read.short()
            )));
        }
        Ok(())
    }
}

/// `cannot read part 3 of snapshot db/17, frame at byte 81920: …`
fn blame(index: &IndexReader, frame: &Frame, error: Error) -> Error {
    let number = index.part(u64::from(frame.part)).map_or(frame.part, |part| part.number);
    let of = match frame.stream.checked_sub(1).and_then(|n| index.streams().get(n as usize)) {
        Some(name) => format!("stream {name} of snapshot {}", index.shown()),
        None => format!("snapshot {}", index.shown()),
    };
    let error = error.context(format!("cannot read part {number} of {of}, frame at byte {}", frame.stored_offset));
    if error.hint().is_some() { error } else { error.with_hint(format!("run `bk verify {}`", index.shown())) }
}
