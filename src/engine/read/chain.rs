//! A snapshot as it was: the indexes of its chain, merged.
//!
//! Level 0 is a whole sorted run of entries, each increment a run of what changed over its base, at most ten in all. They are read side by side and
//! the newest word counts. A row that is no directory hides all that older runs have below its path, so a removed directory is one row.
//! Memory: one block of entries for each run.

mod nodes;

use std::{cmp::Ordering, sync::Arc};

use super::index::{BlockCache, IndexReader, Row};
use crate::{
    engine::{catalog, parallel},
    error::{Error, Result},
    format::{
        index::{ChunkRun, Extent},
        record::Snapshot,
    },
    model::{
        digest::Digest,
        entry::EntryKind,
        ids::{Name, SnapshotName},
        path, show,
    },
    volume::Volume,
};

/// A run of content in one snapshot of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Which snapshot of the chain, 0 is level 0.
    pub run: usize,
    /// 0 is its tree, 1… its named streams.
    pub stream: u32,
    /// Offset in the plain stream.
    pub offset: u64,
    /// Length, bytes.
    pub len: u64,
}

impl Source {
    /// The first offset after it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// A content: what it is and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// BLAKE3 of it (of a sparse file: of its data runs joined).
    pub digest: Digest,
    /// Where it lies, in order.
    pub sources: Vec<Source>,
    /// Whether it follows its own header in the tree of its snapshot.
    pub own: bool,
}

impl Located {
    /// The parts of it that make up `offset..offset + len`.
    pub fn cut(&self, offset: u64, len: u64) -> Vec<Source> {
        cut_from(&self.sources, 0, offset, len)
    }

    /// Where each of its sources begins in it.
    pub fn starts(&self) -> Vec<u64> {
        let begin = |at: &mut u64, source: &Source| Some(std::mem::replace(at, at.saturating_add(source.len)));
        self.sources.iter().scan(0, begin).collect()
    }

    /// As [`Self::cut`], for who asks often: `starts` are its own.
    pub fn cut_by(&self, starts: &[u64], offset: u64, len: u64) -> Vec<Source> {
        let first = starts.partition_point(|&start| start <= offset).saturating_sub(1);
        cut_from(&self.sources[first..], starts.get(first).copied().unwrap_or(0), offset, len)
    }
}

/// The parts of a content that make up `offset..offset + len`, when it goes on with `sources` at `before`.
fn cut_from(sources: &[Source], mut before: u64, offset: u64, len: u64) -> Vec<Source> {
    let end = offset.saturating_add(len);
    let mut parts = Vec::new();
    for source in sources {
        let (from, to) = (offset.max(before), end.min(before.saturating_add(source.len)));
        if from < to {
            parts.push(Source { offset: source.offset + (from - before), len: to - from, ..*source });
        }
        before = before.saturating_add(source.len);
        if before >= end {
            break;
        }
    }
    parts
}

pub use nodes::Listed;

/// The opened indexes of a chain.
pub struct Chain {
    runs: Vec<IndexReader>,
}

impl Chain {
    /// Finds the snapshot a user named and opens its chain.
    pub fn find(volume: &Volume, name: &SnapshotName) -> Result<(Snapshot, Self)> {
        let snapshot = catalog::find(volume, name)?;
        let chain = Self::of(volume, &snapshot)?;
        Ok((snapshot, chain))
    }

    /// Opens the chain of a snapshot.
    pub fn of(volume: &Volume, snapshot: &Snapshot) -> Result<Self> {
        if snapshot.base.is_none() {
            return Self::open(volume, std::slice::from_ref(snapshot));
        }
        let log = catalog::read(volume, &snapshot.job)?;
        Self::open(volume, &catalog::chain(&log, snapshot)?)
    }

    /// Opens `snapshots`, level 0 first and each the base of the next, in parallel.
    pub fn open(volume: &Volume, snapshots: &[Snapshot]) -> Result<Self> {
        Self::open_by(snapshots, |one| IndexReader::open(volume, one))
    }

    /// The same with a cache of blocks that other chains use, too.
    pub fn open_with(volume: &Volume, snapshots: &[Snapshot], cache: &Arc<BlockCache>) -> Result<Self> {
        Self::open_by(snapshots, |one| IndexReader::open_with(volume, one, cache))
    }

    fn open_by(snapshots: &[Snapshot], open: impl Fn(&Snapshot) -> Result<IndexReader> + Sync) -> Result<Self> {
        let runs = parallel::each(snapshots.len(), snapshots, open)?;
        if runs.is_empty() || runs.len() > 10 || runs.windows(2).any(|pair| pair[0].seq() >= pair[1].seq()) {
            return Err(Error::integrity("not a chain of snapshots"));
        }
        if runs.iter().enumerate().any(|(n, run)| run.names().is_some_and(|names| names.len() != n)) {
            return Err(Error::integrity("not the chain the snapshot was copied with"));
        }
        Ok(Self { runs })
    }

    /// The snapshots' indexes, level 0 first.
    pub fn runs(&self) -> &[IndexReader] {
        &self.runs
    }

    /// The index of the `n`-th snapshot; one past the last is the last.
    pub fn run(&self, n: usize) -> &IndexReader {
        &self.runs[n.min(self.runs.len() - 1)]
    }

    /// The index of the snapshot itself.
    pub fn last(&self) -> &IndexReader {
        self.run(usize::MAX)
    }

    /// `job/seq`
    pub fn shown(&self) -> &str {
        self.last().shown()
    }

    /// The names of the streams, the first is stream 1.
    pub fn streams(&self) -> &[Name] {
        self.last().streams()
    }

    /// Whether it has a tree.
    pub fn has_tree(&self) -> bool {
        self.runs.iter().any(|run| run.entry_count() > 0)
    }

    /// The oldest run whose rows directly in directory `dir` are still to be seen: newer ones have put something else in the
    /// place of it or of a directory above it, or removed it.
    fn oldest_seen(&self, dir: &[u8], seen: &mut Seen) -> Result<usize> {
        if self.runs.len() == 1 {
            return Ok(0);
        }
        if dir.is_empty() {
            return Ok(0);
        }
        while seen.dirs.last().is_some_and(|(own, _)| !path::is_within(dir, own)) {
            seen.dirs.pop();
        }
        let (mut done, mut oldest) = match seen.dirs.last() {
            Some((own, oldest)) => (own.len(), *oldest),
            None => (0, 0),
        };
        while done < dir.len() {
            let from = if done == 0 { 0 } else { done + 1 };
            done = dir[from..].iter().position(|&b| b == b'/').map_or(dir.len(), |at| from + at);
            let own = &dir[..done];
            for (n, run) in self.runs.iter().enumerate().skip(oldest + 1).rev() {
                if run.entry_count() > 0 && run.kind_of(own)?.is_some_and(|kind| kind != EntryKind::Dir) {
                    oldest = n;
                    break;
                }
            }
            seen.dirs.push((own.to_vec(), oldest));
        }
        Ok(oldest)
    }

    /// The entry at `path`.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<Row>> {
        let oldest = self.oldest_seen(path::split(path).0, &mut Seen::default())?;
        for (n, run) in self.runs.iter().enumerate().skip(oldest).rev() {
            if let Some(mut row) = run.lookup(path)? {
                row.run = n;
                return Ok(Some(row).filter(|row| row.entry.kind != EntryKind::Removed));
            }
        }
        Ok(None)
    }

    /// All entries in order.
    pub fn rows(&self) -> Merged<'_> {
        Merged::new(self, self.runs.iter().map(|run| -> Rows<'_> { Box::new(run.rows()) }), Ordering::Less)
    }

    /// What lies directly in the directory `dir`, by name.
    pub fn list<'a>(&'a self, dir: &'a [u8]) -> Merged<'a> {
        Merged::new(self, self.runs.iter().map(|run| -> Rows<'_> { Box::new(run.list(dir)) }), Ordering::Less)
    }

    /// Everything below the directory `dir`, in order; not `dir` itself.
    pub fn subtree<'a>(&'a self, dir: &'a [u8]) -> Merged<'a> {
        Merged::new(self, self.runs.iter().map(|run| -> Rows<'_> { Box::new(run.subtree(dir)) }), Ordering::Less)
    }

    /// Rows of the subtree of `dir`, last first: children before their directories.
    pub fn subtree_reversed<'a>(&'a self, dir: &'a [u8]) -> Merged<'a> {
        let runs = self.runs.iter().map(|run| -> Rows<'_> { Box::new(run.subtree_reversed(dir)) });
        Merged::new(self, runs, Ordering::Greater)
    }

    /// Where an entry's content lies; none when it has none.
    pub fn locate(&self, row: &Row) -> Result<Option<Located>> {
        let run = self.run(row.run);
        if let Some(map) = &row.entry.map {
            let places = run.places(map, row.entry.stored_len)?;
            let sources = self.sources(row.run, &places)?;
            return Ok(Some(Located { digest: map.digest, sources, own: false }));
        }
        let own = |extent: Extent| Located {
            digest: extent.digest,
            sources: vec![Source { run: row.run, stream: 0, offset: extent.offset, len: extent.len }],
            own: true,
        };
        Ok(run.extent_of(row)?.map(own))
    }

    /// Where the content of a stream lies.
    pub fn locate_stream(&self, stream: u32) -> Result<Located> {
        self.locate_stream_of(self.runs.len() - 1, stream)
    }

    fn locate_stream_of(&self, run: usize, stream: u32) -> Result<Located> {
        let index = self.run(run);
        let extent = index.stream_extent(stream)?;
        let sources = match index.stream_places(stream)? {
            Some(places) => self.sources(run, &places)?,
            None => vec![Source { run, stream, offset: 0, len: extent.len }],
        };
        Ok(Located { digest: extent.digest, sources, own: false })
    }

    /// The stream `name` and the chunks noted of it; none when there is no such stream, or none were.
    pub fn old_stream<'a>(
        &'a self,
        name: &Name,
    ) -> Result<Option<(Located, impl Iterator<Item = Result<ChunkRun>> + 'a)>> {
        let Some(at) = self.streams().iter().position(|own| own == name) else { return Ok(None) };
        let number = u32::try_from(at + 1).map_err(|_| Error::integrity("too many streams"))?;
        let mut chunks = self.last().chunks(number, b"").peekable();
        let known = chunks.peek().is_some();
        Ok(if known { Some((self.locate_stream(number)?, chunks)) } else { None })
    }

    /// Places of snapshot `run` as runs of the chain: they may name it or what it is based on. A copy names that as it was
    /// called where the snapshot was first taken.
    fn sources(&self, run: usize, places: &[crate::model::entry::Place]) -> Result<Vec<Source>> {
        let wrong = || Error::integrity(format!("a place of snapshot {} is not in its chain", self.run(run).shown()));
        places
            .iter()
            .map(|place| {
                let own = match place.seq {
                    0 => Some(run),
                    seq => match self.run(run).names() {
                        Some(names) => names.iter().position(|&name| name == seq),
                        None => self.runs[..run].iter().position(|run| run.seq() == seq),
                    },
                };
                let own = own.ok_or_else(wrong)?;
                Ok(Source { run: own, stream: place.stream, offset: place.offset, len: place.len })
            })
            .collect()
    }

    /// What an entry's content is, wherever it lies; none when it has none.
    pub fn digest(&self, row: &Row) -> Result<Option<Digest>> {
        match &row.entry.map {
            Some(map) => Ok(Some(map.digest)),
            None => Ok(self.run(row.run).extent_of(row)?.map(|extent| extent.digest)),
        }
    }

    /// The entry of a file with content that had this inode number when it was last stored.
    pub fn by_inode(&self, fsid: u64, ino: u64) -> Result<Option<Row>> {
        for (n, run) in self.runs.iter().enumerate().rev() {
            let Some(path) = run.path_by_inode(fsid, ino)? else { continue };
            let row = self.lookup(&path)?;
            // A newer run may have put another file there.
            let found = row.filter(|row| row.run == n && (row.entry.fsid, row.entry.ino) == (fsid, ino));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The chunks of a file's content in order, as they were noted when it was stored.
    pub fn chunks<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = Result<ChunkRun>> + 'a {
        self.run(row.run).chunks(0, &row.entry.path)
    }

    /// An error that says what is wrong with an entry.
    pub fn blame(&self, path: &[u8], what: &str) -> Error {
        Error::integrity(format!("`{}` of snapshot {}: {what}", show::name(path), self.shown()))
    }
}

/// Directories on the way down to the one last asked for, and the oldest run seen in each.
#[derive(Default)]
struct Seen {
    dirs: Vec<(Vec<u8>, usize)>,
}

type Rows<'a> = Box<dyn Iterator<Item = Result<Row>> + 'a>;

/// Rows of several runs side by side, the newest of each path.
pub struct Merged<'a> {
    chain: &'a Chain,
    runs: Vec<Rows<'a>>,
    next: Vec<Option<Row>>,
    /// Errors on the way, told before any row that follows.
    failed: Vec<Error>,
    /// Of each run, whether rows before its next one could not be read: what older runs have there may be out of date, or gone.
    lost: Vec<bool>,
    /// Less: ascending; Greater: descending.
    order: Ordering,
    seen: Seen,
    /// The directory of the last row, and the oldest run seen in it.
    dir: Option<(Vec<u8>, usize)>,
}

impl<'a> Merged<'a> {
    fn new(chain: &'a Chain, runs: impl Iterator<Item = Rows<'a>>, order: Ordering) -> Self {
        let runs: Vec<_> = runs.collect();
        let next = runs.iter().map(|_| None).collect();
        let (failed, lost) = (Vec::new(), vec![false; runs.len()]);
        let mut merged = Self { chain, runs, next, failed, lost, order, seen: Seen::default(), dir: None };
        if merged.runs.len() > 1 {
            (0..merged.runs.len()).for_each(|n| merged.advance(n));
        }
        merged
    }

    fn advance(&mut self, n: usize) {
        self.lost[n] = false;
        self.next[n] = loop {
            match self.runs[n].next() {
                None => break None,
                Some(Ok(mut row)) => {
                    row.run = n;
                    break Some(row);
                }
                Some(Err(e)) => {
                    self.lost[n] = true;
                    self.failed.push(e);
                }
            }
        };
    }

    /// The newest row of the next path, whatever it is, and whether a newer one may have been lost.
    fn newest(&mut self) -> Option<(Row, bool)> {
        let mut first: Option<usize> = None;
        for n in (0..self.next.len()).rev() {
            let Some(row) = &self.next[n] else { continue };
            let earlier = match first.and_then(|first| self.next[first].as_ref()) {
                Some(other) => path::cmp_rows(&row.entry.path, &other.entry.path) == self.order,
                None => true,
            };
            if earlier {
                first = Some(n);
            }
        }
        let first = first?;
        let row = self.next[first].take()?;
        // What newer runs have next comes after it.
        let is_doubtful = self.lost[first + 1..].contains(&true);
        self.advance(first);
        for n in 0..first {
            if self.next[n].as_ref().is_some_and(|other| other.entry.path == row.entry.path) {
                self.advance(n);
            }
        }
        Some((row, is_doubtful))
    }

    fn is_seen(&mut self, row: &Row) -> Result<bool> {
        let dir = path::split(&row.entry.path).0;
        if let Some((own, oldest)) = &self.dir
            && own == dir
        {
            return Ok(row.run >= *oldest);
        }
        let oldest = self.chain.oldest_seen(dir, &mut self.seen)?;
        self.dir = Some((dir.to_vec(), oldest));
        Ok(row.run >= oldest)
    }
}

impl Iterator for Merged<'_> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if let [only] = &mut self.runs[..] {
            return only.next();
        }
        loop {
            if let Some(e) = self.failed.pop() {
                return Some(Err(e));
            }
            let (row, is_doubtful) = self.newest()?;
            if is_doubtful {
                continue;
            }
            match self.is_seen(&row) {
                Ok(true) if row.entry.kind != EntryKind::Removed => return Some(Ok(row)),
                Ok(_) => {}
                Err(e) => return Some(Err(e)),
            }
        }
    }
}
