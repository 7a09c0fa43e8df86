//! Inodes sorted by number, however many there are: sorted runs go to a file and are merged at the end.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    sync::Arc,
};

use crate::{
    error::{Error, Result},
    format::index::Inode,
    volume::Store,
};

/// Rows held in memory; more go to a file, 24 bytes each.
const MEMORY_COUNT_MAX: usize = 256 << 10;
const ROW_LEN: usize = 24;

/// Sorts inodes.
pub struct Sorted {
    store: Arc<dyn Store>,
    rows: Vec<Inode>,
    runs: Vec<File>,
}

fn failed(e: std::io::Error) -> Error {
    Error::io("cannot use the temporary file of inodes", e)
}

impl Sorted {
    /// Nothing yet; temporary files are `store`'s.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, rows: Vec::new(), runs: Vec::new() }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Inode) -> Result<()> {
        self.rows.push(row);
        if self.rows.len() >= MEMORY_COUNT_MAX { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<()> {
        self.rows.sort_unstable();
        let mut file = BufWriter::new(self.store.scratch()?);
        for row in self.rows.drain(..) {
            for word in [row.fsid, row.ino, row.row] {
                file.write_all(&word.to_le_bytes()).map_err(failed)?;
            }
        }
        self.runs.push(file.into_inner().map_err(|e| failed(e.into_error()))?);
        Ok(())
    }

    /// Hands all rows to `each`, in order; of several with one number the last pushed comes alone.
    pub fn finish(mut self, each: &mut dyn FnMut(Inode) -> Result<()>) -> Result<()> {
        self.rows.sort_unstable();
        let mut runs = Vec::new();
        for mut file in std::mem::take(&mut self.runs) {
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            runs.push(BufReader::new(file));
        }
        let mut rest = std::mem::take(&mut self.rows).into_iter();
        // Run number `runs.len()` is what is still in memory.
        let mut heap = BinaryHeap::new();
        for n in 0..=runs.len() {
            heap.extend(next(&mut runs, &mut rest, n)?.map(|row| Reverse((row, n))));
        }
        let mut last: Option<Inode> = None;
        while let Some(Reverse((row, n))) = heap.pop() {
            heap.extend(next(&mut runs, &mut rest, n)?.map(|row| Reverse((row, n))));
            if let Some(last) = last.replace(row)
                && (last.fsid, last.ino) != (row.fsid, row.ino)
            {
                each(last)?;
            }
        }
        last.map_or(Ok(()), each)
    }
}

fn next(runs: &mut [BufReader<File>], rest: &mut impl Iterator<Item = Inode>, n: usize) -> Result<Option<Inode>> {
    let Some(run) = runs.get_mut(n) else { return Ok(rest.next()) };
    let mut bytes = [0; ROW_LEN];
    match run.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(failed(e)),
    }
    let (words, _) = bytes.as_chunks::<8>();
    let [fsid, ino, row] = [0, 1, 2].map(|n| words.get(n).map_or(0, |word| u64::from_le_bytes(*word)));
    Ok(Some(Inode { fsid, ino, row }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::memory::MemoryStore;

    #[test]
    fn many_rows_come_back_in_order() {
        let mut sorted = Sorted::new(Arc::new(MemoryStore::default()));
        let count = 3 * MEMORY_COUNT_MAX as u64 + 17;
        for n in 0..count {
            let ino = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            sorted.push(Inode { fsid: n % 2, ino, row: n }).unwrap();
        }
        sorted.push(Inode { fsid: 0, ino: 0, row: count }).unwrap();
        let (mut seen, mut last) = (0, None);
        sorted
            .finish(&mut |row| {
                assert!(last.is_none_or(|last| last < (row.fsid, row.ino)));
                last = Some((row.fsid, row.ino));
                seen += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, count);
    }
}
