//! Entries and frames one after another, block by block.

use std::sync::Arc;

use super::{IndexReader, Row, block::Block};
use crate::{
    error::{Error, Result},
    format::index::{Frame, Section},
};

/// Entries one after another. A block that cannot be read is one error; the next blocks follow.
pub struct Rows<'a> {
    pub(super) index: &'a IndexReader,
    pub(super) block: usize,
    pub(super) rows: std::vec::IntoIter<Row>,
    pub(super) failed: Option<Error>,
}

impl Rows<'_> {
    pub(super) fn next_block(&mut self) -> Option<Result<Vec<Row>>> {
        if self.block >= self.index.entries.len() {
            return None;
        }
        self.block += 1;
        Some(self.index.entry_block(self.block - 1))
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(e) = self.failed.take() {
                return Some(Err(e));
            }
            if let Some(row) = self.rows.next() {
                return Some(Ok(row));
            }
            match self.next_block()? {
                Ok(rows) => self.rows = rows.into_iter(),
                Err(e) => self.failed = Some(e),
            }
        }
    }
}

/// Frames one after another, of one stream or of all. Ends after an error.
pub struct Frames<'a> {
    pub(super) index: &'a IndexReader,
    pub(super) stream: Option<u32>,
    pub(super) block: usize,
    pub(super) at: usize,
    pub(super) rows: Option<Arc<Block>>,
    pub(super) failed: bool,
}

impl Frames<'_> {
    pub(super) fn load(&mut self) -> Result<Option<Arc<Block>>> {
        if self.rows.is_none() {
            let Some(info) = self.index.blocks_of(Section::Frames).get(self.block) else { return Ok(None) };
            self.rows = Some(self.index.block(info)?);
        }
        Ok(self.rows.clone())
    }
}

impl Iterator for Frames<'_> {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            let block = match self.load() {
                Ok(block) => block?,
                Err(e) => {
                    self.failed = true;
                    return Some(Err(e));
                }
            };
            let Block::Frames(rows) = &*block else { return None };
            if let Some(&frame) = rows.get(self.at) {
                self.at += 1;
                return self.stream.is_none_or(|stream| stream == frame.stream).then_some(Ok(frame));
            }
            (self.block, self.at, self.rows) = (self.block + 1, 0, None);
        }
        None
    }
}
