//! A chain as a mount sees it: directories one at a time, rows by run and number.
//!
//! Nothing here holds more than a block of each run.

use super::{Chain, Seen};
use crate::{
    engine::read::index::{List, Numbered},
    error::Result,
    model::{entry::EntryKind, path},
};

impl Chain {
    /// The oldest run whose rows directly in the directory `dir` still count.
    pub fn oldest_in(&self, dir: &[u8]) -> Result<usize> {
        self.oldest_seen(dir, &mut Seen::default())
    }

    /// Row `number` of snapshot `run`.
    pub fn numbered(&self, run: usize, number: u64) -> Result<Option<Numbered>> {
        let Some(index) = self.runs.get(run) else { return Ok(None) };
        let row = index.numbered(number)?;
        Ok(row.map(|row| row.of_run(run)))
    }

    /// The entry at `path`, whose directory's oldest run is `oldest`.
    pub fn numbered_at(&self, path: &[u8], oldest: usize) -> Result<Option<Numbered>> {
        for (run, index) in self.runs.iter().enumerate().skip(oldest).rev() {
            if let Some(row) = index.numbered_at(path)? {
                return Ok(Some(row.of_run(run)).filter(|row| row.kind != EntryKind::Removed));
            }
        }
        Ok(None)
    }

    /// What lies directly in the directory `dir`, by name: all of it, or what comes after the path `after` in it.
    pub fn list_numbered<'a>(&'a self, dir: &'a [u8], oldest: usize, after: Option<&'a [u8]>) -> Listed<'a> {
        let runs = self.runs.iter().enumerate().skip(oldest);
        let runs: Vec<_> = runs.map(|(run, index)| (run, index.list_numbered(dir, after))).collect();
        Listed { next: runs.iter().map(|_| None).collect(), runs, begun: false, failed: false }
    }
}

/// One directory of a chain, the newest row of each name. Ends after an error.
pub struct Listed<'a> {
    /// Oldest first.
    runs: Vec<(usize, List<'a>)>,
    next: Vec<Option<Numbered>>,
    begun: bool,
    failed: bool,
}

impl Listed<'_> {
    fn advance(&mut self, at: usize) -> Result<()> {
        let (run, list) = &mut self.runs[at];
        self.next[at] = list.next().transpose()?.map(|row| row.of_run(*run));
        Ok(())
    }

    fn newest(&mut self) -> Result<Option<Numbered>> {
        if !self.begun {
            self.begun = true;
            (0..self.runs.len()).try_for_each(|at| self.advance(at))?;
        }
        loop {
            let mut first: Option<usize> = None;
            for (at, row) in self.next.iter().enumerate().rev() {
                let Some(row) = row else { continue };
                let least = first.and_then(|first| self.next[first].as_ref());
                if least.is_none_or(|least| path::cmp_rows(&row.path, &least.path).is_lt()) {
                    first = Some(at);
                }
            }
            let Some(first) = first else { return Ok(None) };
            let Some(row) = self.next[first].take() else { return Ok(None) };
            self.advance(first)?;
            for at in 0..first {
                if self.next[at].as_ref().is_some_and(|other| other.path == row.path) {
                    self.advance(at)?;
                }
            }
            if row.kind != EntryKind::Removed {
                return Ok(Some(row));
            }
        }
    }
}

impl Iterator for Listed<'_> {
    type Item = Result<Numbered>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.newest();
        self.failed = next.is_err();
        next.transpose()
    }
}
