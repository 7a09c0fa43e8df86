//! The index of one snapshot, opened: rows in order, a path, a directory, where a content and its frames lie.
//!
//! Only the directory of blocks is held; blocks come one by one, each hashed before it is decoded, the last few kept.
//! Memory grows with neither files nor frames. No loop here goes on longer than the directory of blocks says.

mod block;
mod cache;
mod content;
mod numbered;
mod rows;

use std::{cmp::Ordering, sync::Arc};

use crate::{
    error::{Error, Kind, Result},
    format::{
        codec::Codec,
        index::{
            BlockInfo, ChunkRun, Directory, FOOTER_LEN, SECTION_SLOTS, Section, chunk_key, decode_footer, decode_tail,
            inode_key,
        },
        layout::run_dir,
        record::{PlaceRows, Snapshot},
    },
    model::{
        digest::Digest,
        entry::{Entry, EntryKind},
        ids::Name,
        path,
    },
    volume::{Store, Volume},
};

/// Decoded blocks of an index with a cache of its own are kept up to this many bytes of memory.
const CACHE_LEN_MAX: usize = 24 << 20;

use block::{Block, block_with, rows_of};
pub use cache::BlockCache;
pub use numbered::{List, Numbered};
pub use rows::{Frames, Rows};

/// An entry, and the number of its extent when it has content.
#[derive(Clone, Debug)]
pub struct Row {
    /// The entry.
    pub entry: Entry,
    /// Its row in the extents section.
    pub extent: Option<u64>,
    /// Which snapshot of the chain says so, 0 is level 0.
    pub run: usize,
}

/// An opened index.
pub struct IndexReader {
    store: Arc<dyn Store>,
    dir: String,
    key: String,
    shown: String,
    codec: Codec,
    streams: Vec<Name>,
    stream_places: Vec<Option<PlaceRows>>,
    seq: u64,
    /// Of a copy: the seqs by which it names the members of its chain before it.
    names: Option<Vec<u64>>,
    entries: Vec<BlockInfo>,
    /// The blocks of the other sections, by their slot.
    sections: [Vec<BlockInfo>; SECTION_SLOTS],
    cache: Arc<BlockCache>,
    /// Its number in the cache.
    id: u64,
}

fn damaged(what: &str) -> Error {
    Error::integrity(what)
}

fn to_usize(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| damaged("number out of range"))
}

/// Whether a path's row lies before the first row of directory `dir`.
fn before_dir(path: &[u8], dir: &[u8]) -> bool {
    path.is_empty() || path::cmp_dirs(path::split(path).0, dir).is_lt()
}

/// The directory of blocks, held against the record.
fn read_tail(store: &dyn Store, key: &str, snapshot: &Snapshot) -> Result<Directory> {
    let len = snapshot.index.len;
    let mut footer = [0; FOOTER_LEN];
    let at = len.checked_sub(FOOTER_LEN as u64).ok_or_else(|| damaged("no index footer"))?;
    store.read_at(key, at, &mut footer)?;
    let (tail_len, _) = decode_footer(&footer, len)?;
    let mut tail = vec![0; to_usize(tail_len)?];
    store.read_at(key, len - tail_len, &mut tail)?;
    decode_tail(&tail, len, &snapshot.index.tail_digest)
}

impl IndexReader {
    /// Reads the tail of the snapshot's index and checks it against the record.
    pub fn open(volume: &Volume, snapshot: &Snapshot) -> Result<Self> {
        Self::open_with(volume, snapshot, &BlockCache::new(CACHE_LEN_MAX))
    }

    /// The same with a cache that others use, too.
    pub fn open_with(volume: &Volume, snapshot: &Snapshot, cache: &Arc<BlockCache>) -> Result<Self> {
        let shown = format!("{}/{}", snapshot.job, snapshot.seq);
        Self::open_tail(volume, snapshot, &shown, cache).map_err(|e| {
            let error = e.context(format!("cannot open the index of snapshot {shown}"));
            if error.hint().is_some() { error } else { error.with_hint(format!("run `bk verify {shown}`")) }
        })
    }

    fn open_tail(volume: &Volume, snapshot: &Snapshot, shown: &str, cache: &Arc<BlockCache>) -> Result<Self> {
        let store = Arc::clone(&volume.store);
        let dir = run_dir(&snapshot.job, snapshot.run_id);
        let key = format!("{dir}{}", snapshot.index.name);
        let len = snapshot.index.len;
        match store.head(&key)? {
            None => return Err(damaged(&format!("{key} is missing"))),
            Some(read) if read != len => return Err(damaged(&format!("{key} has {read} bytes, not {len}"))),
            Some(_) => {}
        }
        let directory = match read_tail(&*store, &key, snapshot) {
            // What was damaged on its way here is whole the next time.
            Err(e) if e.kind() == Kind::Integrity => {
                store.forget(&key);
                read_tail(&*store, &key, snapshot)?
            }
            read => read?,
        };
        let id = cache.id_of(&key);
        let mut reader = Self {
            store,
            dir,
            key,
            shown: shown.to_owned(),
            codec: snapshot.codec,
            streams: snapshot.streams.iter().map(|stream| stream.name.clone()).collect(),
            stream_places: snapshot.streams.iter().map(|stream| stream.places).collect(),
            seq: snapshot.seq,
            names: snapshot.copied_from.as_ref().map(|from| from.chain.clone()),
            entries: Vec::new(),
            sections: Default::default(),
            cache: Arc::clone(cache),
            id,
        };
        for block in directory.blocks {
            match block.section {
                Section::Entries => &mut reader.entries,
                other => &mut reader.sections[other.slot()],
            }
            .push(block);
        }
        reader.check_directory()?;
        Ok(reader)
    }

    fn check_directory(&self) -> Result<()> {
        let frames = self.blocks_of(Section::Frames);
        let frames_sorted = frames.iter().all(|block| block.first_key.len() == 12)
            && frames.windows(2).all(|pair| pair[0].first_key < pair[1].first_key);
        if !frames_sorted {
            return Err(damaged("the index's frames are not in order"));
        }
        if rows_of(self.blocks_of(Section::Extents)) < self.streams.len() as u64 {
            return Err(damaged("the index has no extent for a stream"));
        }
        Ok(())
    }

    fn blocks_of(&self, section: Section) -> &[BlockInfo] {
        &self.sections[section.slot()]
    }

    /// The number of the snapshot's record.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Of a copy: the seqs by which it names the members of its chain before it, level 0 first.
    pub fn names(&self) -> Option<&[u64]> {
        self.names.as_deref()
    }

    /// `job/seq`
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Its number in the cache it shares: the same for the same index, however often it is opened.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How the snapshot's frames are compressed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Where the objects lie.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The index object's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The names of the streams, the first is stream 1.
    pub fn streams(&self) -> &[Name] {
        &self.streams
    }

    /// How many entries the tree has.
    pub fn entry_count(&self) -> u64 {
        rows_of(&self.entries)
    }

    /// How many extents belong to the tree; those of the streams follow.
    pub fn tree_extent_count(&self) -> u64 {
        rows_of(self.blocks_of(Section::Extents)) - self.streams.len() as u64
    }

    /// How many frames there are.
    pub fn frame_count(&self) -> u64 {
        rows_of(self.blocks_of(Section::Frames))
    }

    /// How many parts there are.
    pub fn part_count(&self) -> u64 {
        rows_of(self.blocks_of(Section::Parts))
    }

    /// All blocks in the order they lie in the object.
    pub fn blocks(&self) -> Vec<&BlockInfo> {
        let mut all: Vec<_> = self.entries.iter().chain(self.sections.iter().flatten()).collect();
        all.sort_by_key(|block| block.offset);
        all
    }

    /// Reads and decodes a block, and holds it against what the directory says; nothing is kept.
    pub fn check_block(&self, info: &BlockInfo) -> Result<()> {
        match info.section {
            Section::Other(_) => self.check_stored(info),
            _ => self.decode(info).map(|_| ()),
        }
    }

    fn check_stored(&self, info: &BlockInfo) -> Result<()> {
        if Digest::of(&self.stored(info)?) != info.digest {
            return Err(damaged(&format!("index block at byte {} ({:?}) is damaged", info.offset, info.section)));
        }
        Ok(())
    }

    /// Reads the blocks that an increment over this snapshot needs and checks their digests, without decoding them.
    pub fn check_entries_stored(&self) -> Result<()> {
        let traces = [Section::Extents, Section::Places, Section::Inodes, Section::Chunks];
        for info in self.entries.iter().chain(traces.iter().flat_map(|section| self.blocks_of(*section))) {
            self.check_stored(info)?;
        }
        Ok(())
    }

    /// The rows of one block of entries.
    fn entry_block(&self, block: usize) -> Result<Vec<Row>> {
        let info = self.entries.get(block).ok_or_else(|| damaged("no such block"))?;
        let Block::Entries(entries, _) = self.decode(info)? else { return Err(damaged("not a block of entries")) };
        let mut extent = info.first_extent;
        let rows = entries.into_iter().map(|entry| {
            let own = entry.owns_extent().then_some(extent);
            extent += u64::from(own.is_some());
            Row { entry, extent: own, run: 0 }
        });
        Ok(rows.collect())
    }

    /// All entries in order.
    pub fn rows(&self) -> Rows<'_> {
        Rows { index: self, block: 0, rows: Vec::new().into_iter(), failed: None }
    }

    /// Entries from the first one that is not `before`; `before` must hold for a beginning of the order only.
    pub fn rows_from(&self, before: impl Fn(&[u8]) -> bool) -> Rows<'_> {
        let block = self.block_of(&before);
        let mut rows = Rows { index: self, block, rows: Vec::new().into_iter(), failed: None };
        match rows.next_block() {
            Some(Ok(found)) => {
                let at = found.partition_point(|row| before(&row.entry.path));
                rows.rows = found.into_iter();
                if at > 0 {
                    rows.rows.nth(at - 1);
                }
            }
            Some(Err(e)) => rows.failed = Some(e),
            None => {}
        }
        rows
    }

    /// The block in which the first row that is not `before` lies, or after which it begins.
    fn block_of(&self, before: impl Fn(&[u8]) -> bool) -> usize {
        self.entries.partition_point(|info| before(&info.first_key)).saturating_sub(1)
    }

    /// The entry at `path`.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<Row>> {
        let at = self.entries.partition_point(|info| path::cmp_rows(&info.first_key, path) != Ordering::Greater);
        let Some(info) = at.checked_sub(1).map(|at| &self.entries[at]) else { return Ok(None) };
        let block = self.block(info)?;
        let Block::Entries(entries, before) = &*block else { return Ok(None) };
        let Ok(found) = entries.binary_search_by(|entry| path::cmp_rows(&entry.path, path)) else { return Ok(None) };
        let entry = entries[found].clone();
        let extent = entry.owns_extent().then_some(info.first_extent + u64::from(before[found]));
        Ok(Some(Row { entry, extent, run: 0 }))
    }

    /// The path of row `n` of the entries.
    fn path_of(&self, n: u64) -> Result<Option<Vec<u8>>> {
        let Some((info, at)) = block_with(&self.entries, n) else { return Ok(None) };
        match &*self.block(info)? {
            Block::Entries(entries, _) => Ok(entries.get(at).map(|entry| entry.path.clone())),
            _ => Ok(None),
        }
    }

    /// The path this index knows a file with content by, from its inode number.
    pub fn path_by_inode(&self, fsid: u64, ino: u64) -> Result<Option<Vec<u8>>> {
        let key = inode_key(fsid, ino);
        let blocks = self.blocks_of(Section::Inodes);
        let at = blocks.partition_point(|info| info.first_key.as_slice() <= &key[..]);
        let Some(info) = at.checked_sub(1).map(|at| &blocks[at]) else { return Ok(None) };
        let block = self.block(info)?;
        let Block::Inodes(rows) = &*block else { return Ok(None) };
        match rows.binary_search_by_key(&(fsid, ino), |row| (row.fsid, row.ino)) {
            Ok(found) => self.path_of(rows[found].row),
            Err(_) => Ok(None),
        }
    }

    /// The chunks of a content, in order: of the file at `path` when `stream` is 0, else of that stream. None when none were noted.
    pub fn chunks<'a>(&'a self, stream: u32, path: &'a [u8]) -> impl Iterator<Item = Result<ChunkRun>> + 'a {
        let key = chunk_key(stream, path);
        let blocks = self.blocks_of(Section::Chunks);
        // Keys are stream and path: compared as the rows are, not by their bytes.
        let before = |info: &BlockInfo| match info.first_key.split_at_checked(4) {
            Some((own, rest)) => own.cmp(&key[..4]).then_with(|| path::cmp_rows(rest, path)) == Ordering::Less,
            None => true,
        };
        let first = blocks.partition_point(before).saturating_sub(1);
        let runs = blocks[first..].iter().map_while(move |info| {
            let starts_after = info.first_key.split_at_checked(4).is_some_and(|(own, rest)| {
                own.cmp(&stream.to_be_bytes()[..]).then_with(|| path::cmp_rows(rest, path)) == Ordering::Greater
            });
            (!starts_after).then(|| self.block(info))
        });
        runs.flat_map(move |block| match block.as_deref() {
            Ok(Block::Chunks(runs)) => {
                let own = runs.iter().filter(|run| run.stream == stream && run.path == path);
                own.cloned().map(Ok).collect::<Vec<_>>()
            }
            Ok(_) => Vec::new(),
            Err(_) => block.err().map(Err).into_iter().collect(),
        })
    }

    /// What kind of entry is at `path`.
    pub fn kind_of(&self, path: &[u8]) -> Result<Option<EntryKind>> {
        let at = self.entries.partition_point(|info| path::cmp_rows(&info.first_key, path) != Ordering::Greater);
        let Some(info) = at.checked_sub(1).map(|at| &self.entries[at]) else { return Ok(None) };
        let block = self.block(info)?;
        let Block::Entries(entries, _) = &*block else { return Ok(None) };
        let found = entries.binary_search_by(|entry| path::cmp_rows(&entry.path, path));
        Ok(found.ok().map(|found| entries[found].kind))
    }

    /// What lies directly in the directory `dir`, by name.
    pub fn list<'a>(&'a self, dir: &'a [u8]) -> impl Iterator<Item = Result<Row>> + 'a {
        let rows = self.rows_from(move |path| before_dir(path, dir));
        rows.take_while(move |row| row.as_ref().map_or(true, |row| path::split(&row.entry.path).0 == dir))
    }

    /// Everything below the directory `dir`, in order; not `dir` itself.
    pub fn subtree<'a>(&'a self, dir: &'a [u8]) -> impl Iterator<Item = Result<Row>> + 'a {
        let rows = self.rows_from(move |path| before_dir(path, dir));
        rows.take_while(move |row| {
            row.as_ref().map_or(true, |row| path::is_within(path::split(&row.entry.path).0, dir))
        })
    }

    /// Rows of the subtree of `dir`, last first: children before their directories.
    pub fn subtree_reversed<'a>(&'a self, dir: &'a [u8]) -> impl Iterator<Item = Result<Row>> + 'a {
        let first = self.block_of(|path| before_dir(path, dir));
        let end = self.entries.partition_point(|info| {
            before_dir(&info.first_key, dir) || path::is_within(path::split(&info.first_key).0, dir)
        });
        let blocks = (first..end).rev().flat_map(move |block| match self.entry_block(block) {
            Ok(rows) => rows.into_iter().rev().map(Ok).collect::<Vec<_>>(),
            Err(e) => vec![Err(e)],
        });
        blocks.filter(move |row| match row {
            Ok(row) => !row.entry.path.is_empty() && path::is_within(path::split(&row.entry.path).0, dir),
            Err(_) => true,
        })
    }
}
