//! Rows of entries by their number: what names them for good, shared with the block they lie in instead of copied.

use std::{cmp::Ordering, ops::Deref, sync::Arc};

use super::{Block, IndexReader, Row, before_dir, block_with};
use crate::{
    error::Result,
    model::{entry::Entry, path},
};

/// An entry in its decoded block.
#[derive(Clone)]
pub struct Numbered {
    block: Arc<Block>,
    at: usize,
    /// Its row in the entries of its index.
    pub number: u64,
    /// Which snapshot of the chain says so, 0 is level 0.
    pub run: usize,
}

impl Numbered {
    fn new(block: &Arc<Block>, at: usize, first: u64) -> Option<Self> {
        let Block::Entries(entries) = &**block else { return None };
        (at < entries.len()).then(|| Self { block: Arc::clone(block), at, number: first + at as u64, run: 0 })
    }
}

impl Numbered {
    /// The same row, said by snapshot `run` of its chain.
    #[must_use]
    pub fn of_run(mut self, run: usize) -> Self {
        self.run = run;
        self
    }
}

impl Deref for Numbered {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        match &*self.block {
            Block::Entries(entries) => &entries[self.at],
            // `new` looked.
            _ => unreachable!("a numbered row is in a block of entries"),
        }
    }
}

impl IndexReader {
    /// Entry row `n`.
    pub fn numbered(&self, n: u64) -> Result<Option<Numbered>> {
        let Some((info, at)) = block_with(&self.entries, n) else { return Ok(None) };
        Ok(Numbered::new(&self.block(info)?, at, info.first_row))
    }

    /// The entry at `path`.
    pub fn numbered_at(&self, path: &[u8]) -> Result<Option<Numbered>> {
        let at = self.entries.partition_point(|info| path::cmp_rows(&info.first_key, path) != Ordering::Greater);
        let Some(info) = at.checked_sub(1).map(|at| &self.entries[at]) else { return Ok(None) };
        let block = self.block(info)?;
        let Block::Entries(entries) = &*block else { return Ok(None) };
        let found = entries.binary_search_by(|entry| path::cmp_rows(&entry.path, path)).ok();
        Ok(found.and_then(|found| Numbered::new(&block, found, info.first_row)))
    }

    /// The row with its extent, as [`super::super::chain::Chain::locate`] wants it.
    pub fn row_of(&self, row: &Numbered) -> Result<Row> {
        let Block::Entries(entries) = &*row.block else { return Err(super::damaged("not a block of entries")) };
        let info = block_with(&self.entries, row.number).ok_or_else(|| super::damaged("no such row"))?.0;
        let before = entries[..row.at].iter().filter(|entry| entry.owns_extent()).count() as u64;
        let extent = row.owns_extent().then_some(info.first_extent + before);
        Ok(Row { entry: (**row).clone(), extent, run: row.run })
    }

    /// What lies directly in the directory `dir`, by name: all of it, or what comes after the path `after` in it.
    pub fn list_numbered<'a>(&'a self, dir: &'a [u8], after: Option<&'a [u8]>) -> List<'a> {
        let before = move |path: &[u8]| match after {
            Some(after) => path::cmp_rows(path, after) != Ordering::Greater,
            None => before_dir(path, dir),
        };
        let block = self.block_of(before);
        List { index: self, dir, block, rows: None, skip: Some(Box::new(before)) }
    }
}

type Before<'a> = Box<dyn Fn(&[u8]) -> bool + 'a>;

/// Rows of one directory. Ends after an error.
pub struct List<'a> {
    index: &'a IndexReader,
    dir: &'a [u8],
    block: usize,
    rows: Option<(Arc<Block>, usize, u64)>,
    skip: Option<Before<'a>>,
}

impl List<'_> {
    fn advance(&mut self) -> Result<Option<Numbered>> {
        loop {
            if let Some((block, at, first)) = &mut self.rows {
                if let Some(row) = Numbered::new(block, *at, *first) {
                    *at += 1;
                    return Ok(Some(row).filter(|row| path::split(&row.path).0 == self.dir && !row.path.is_empty()));
                }
                (self.block, self.rows) = (self.block + 1, None);
            }
            let Some(info) = self.index.entries.get(self.block) else { return Ok(None) };
            let block = self.index.block(info)?;
            let at = match (&*block, self.skip.take()) {
                (Block::Entries(entries), Some(before)) => entries.partition_point(|entry| before(&entry.path)),
                _ => 0,
            };
            self.rows = Some((block, at, info.first_row));
        }
    }
}

impl Iterator for List<'_> {
    type Item = Result<Numbered>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if !matches!(next, Ok(Some(_))) {
            self.block = self.index.entries.len();
            self.rows = None;
        }
        next.transpose()
    }
}
