//! `.bk/deleted`: the paths of the base to be removed before a level is extracted by a tool that knows no lists of names.
//!
//! A path each and NUL, in the order of the rows: what is gone, a directory without all below it, and what was a directory and is none any more, or
//! the other way round, or is a socket now. Memory: up to [`MEMORY_LEN_MAX`]; more lies in a temporary file.

use std::{
    fs::File,
    io::{BufWriter, Read, Seek, Write},
};

use crate::{
    engine::write::framer::Framer,
    error::{Error, Result},
    format::tar::{BLOCK_LEN, write},
};

/// More bytes of paths than this go to a file.
const MEMORY_LEN_MAX: usize = 1 << 20;

/// Paths to be removed.
pub struct Deleted<'a> {
    scratch: &'a dyn Fn() -> Result<File>,
    memory: Vec<u8>,
    spill: Option<BufWriter<File>>,
    len: u64,
}

fn failed(e: std::io::Error) -> Error {
    Error::io("cannot use the temporary file of deleted paths", e)
}

impl<'a> Deleted<'a> {
    /// None yet; `scratch` makes temporary files.
    pub fn new(scratch: &'a dyn Fn() -> Result<File>) -> Self {
        Self { scratch, memory: Vec::new(), spill: None, len: 0 }
    }

    /// One more.
    pub fn add(&mut self, path: &[u8]) -> Result<()> {
        self.len += path.len() as u64 + 1;
        self.memory.extend_from_slice(path);
        self.memory.push(0);
        if self.memory.len() > MEMORY_LEN_MAX {
            if self.spill.is_none() {
                self.spill = Some(BufWriter::new((self.scratch)()?));
            }
            if let Some(spill) = &mut self.spill {
                spill.write_all(&self.memory).map_err(failed)?;
            }
            self.memory.clear();
        }
        Ok(())
    }

    /// Stores the member, when there is something in it.
    pub fn store(&mut self, framer: &mut Framer<'_>) -> Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let mut header = Vec::new();
        write::note_header(b"deleted", self.len, &mut header);
        // As with any member: what fits a frame lies whole in one.
        let whole = usize::try_from(self.len).unwrap_or(usize::MAX).saturating_add(header.len() + BLOCK_LEN);
        framer.reserve(whole.min(framer.frame_len()))?;
        framer.put(&header)?;
        if let Some(spill) = self.spill.take() {
            let mut file = spill.into_inner().map_err(|e| failed(e.into_error()))?;
            file.rewind().map_err(failed)?;
            let mut buf = vec![0; 64 << 10];
            loop {
                match file.read(&mut buf).map_err(failed)? {
                    0 => break,
                    len => framer.put(&buf[..len])?,
                }
            }
        }
        framer.put(&self.memory)?;
        let padding = self.len.next_multiple_of(BLOCK_LEN as u64) - self.len;
        framer.put(&[0; BLOCK_LEN][..usize::try_from(padding).unwrap_or(0)])
    }
}
