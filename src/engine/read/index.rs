//! The index of one snapshot, opened: rows in order, a path, a directory, where a content and its frames lie.
//!
//! Only the directory of blocks is held; blocks come one by one, each hashed before it is decoded, the last few kept.
//! Memory grows with neither files nor frames. No loop here goes on longer than the directory of blocks says.

use std::{
    cmp::Ordering,
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    error::{Error, Result},
    format::{
        codec::Codec,
        index::{
            BlockInfo, Extent, FOOTER_LEN, Frame, Part, Section, decode_entries, decode_extents, decode_footer,
            decode_frames, decode_parts, decode_tail, open_block,
        },
        layout::{part_name, run_dir},
        record::Snapshot,
    },
    model::{entry::Entry, ids::Name, path, show},
    volume::{Store, Volume},
};

/// Directory and footer are at most this long as stored, and the directory this long when plain: 400 million entries.
const TAIL_LEN_MAX: u64 = 48 << 20;
/// Decoded blocks are kept up to this many plain bytes; the newest one always.
const CACHE_LEN_MAX: usize = 4 << 20;

/// An entry, and the number of its extent when it has content.
#[derive(Clone, Debug)]
pub struct Row {
    /// The entry.
    pub entry: Entry,
    /// Its row in the extents section.
    pub extent: Option<u64>,
}

/// An opened index.
pub struct IndexReader {
    store: Arc<dyn Store>,
    dir: String,
    key: String,
    shown: String,
    codec: Codec,
    streams: Vec<Name>,
    entries: Vec<BlockInfo>,
    extents: Vec<BlockInfo>,
    frames: Vec<BlockInfo>,
    parts: Vec<BlockInfo>,
    cache: Mutex<Cache>,
}

/// A decoded block.
enum Block {
    Entries(Vec<Entry>),
    Extents(Vec<Extent>),
    Frames(Vec<Frame>),
    Parts(Vec<Part>),
}

#[derive(Default)]
struct Cache {
    /// Offset in the object, plain length, block; the last used first.
    blocks: VecDeque<(u64, usize, Arc<Block>)>,
}

impl Cache {
    fn get(&mut self, offset: u64) -> Option<Arc<Block>> {
        let at = self.blocks.iter().position(|(own, ..)| *own == offset)?;
        if at > 0 {
            let found = self.blocks.remove(at)?;
            self.blocks.push_front(found);
        }
        self.blocks.front().map(|(.., block)| Arc::clone(block))
    }

    fn put(&mut self, offset: u64, len: usize, block: Arc<Block>) {
        self.blocks.push_front((offset, len, block));
        while self.blocks.len() > 1 && self.blocks.iter().map(|(_, len, _)| len).sum::<usize>() > CACHE_LEN_MAX {
            self.blocks.pop_back();
        }
    }
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

impl IndexReader {
    /// Reads the tail of the snapshot's index and checks it against the record.
    pub fn open(volume: &Volume, snapshot: &Snapshot) -> Result<Self> {
        let shown = format!("{}/{}", snapshot.job, snapshot.seq);
        Self::open_tail(volume, snapshot, &shown).map_err(|e| {
            let error = e.context(format!("cannot open the index of snapshot {shown}"));
            if error.hint().is_some() { error } else { error.with_hint(format!("run `bk verify {shown}`")) }
        })
    }

    fn open_tail(volume: &Volume, snapshot: &Snapshot, shown: &str) -> Result<Self> {
        let store = Arc::clone(&volume.store);
        let dir = run_dir(&snapshot.job, snapshot.run_id);
        let key = format!("{dir}{}", snapshot.index.name);
        let len = snapshot.index.len;
        match store.head(&key)? {
            None => return Err(damaged(&format!("{key} is missing"))),
            Some(read) if read != len => return Err(damaged(&format!("{key} has {read} bytes, not {len}"))),
            Some(_) => {}
        }
        let mut footer = [0; FOOTER_LEN];
        let at = len.checked_sub(FOOTER_LEN as u64).ok_or_else(|| damaged("no index footer"))?;
        store.read_at(&key, at, &mut footer)?;
        let (tail_len, plain_len) = decode_footer(&footer, len)?;
        if tail_len > TAIL_LEN_MAX || plain_len > TAIL_LEN_MAX {
            return Err(damaged("the index directory is above the limit"));
        }
        let mut tail = vec![0; to_usize(tail_len)?];
        store.read_at(&key, len - tail_len, &mut tail)?;
        let directory = decode_tail(&tail, len, &snapshot.index.tail_digest)?;
        drop(tail);
        let mut reader = Self {
            store,
            dir,
            key,
            shown: shown.to_owned(),
            codec: snapshot.codec,
            streams: snapshot.streams.iter().map(|stream| stream.name.clone()).collect(),
            entries: Vec::new(),
            extents: Vec::new(),
            frames: Vec::new(),
            parts: Vec::new(),
            cache: Mutex::default(),
        };
        for block in directory.blocks {
            match block.section {
                Section::Entries => &mut reader.entries,
                Section::Extents => &mut reader.extents,
                Section::Frames => &mut reader.frames,
                Section::Parts => &mut reader.parts,
            }
            .push(block);
        }
        reader.check_directory()?;
        Ok(reader)
    }

    fn check_directory(&self) -> Result<()> {
        let frames_sorted = self.frames.iter().all(|block| block.first_key.len() == 12)
            && self.frames.windows(2).all(|pair| pair[0].first_key < pair[1].first_key);
        if !frames_sorted {
            return Err(damaged("the index's frames are not in order"));
        }
        if rows_of(&self.extents) < self.streams.len() as u64 {
            return Err(damaged("the index has no extent for a stream"));
        }
        Ok(())
    }

    /// `job/seq`
    pub fn shown(&self) -> &str {
        &self.shown
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
        rows_of(&self.extents) - self.streams.len() as u64
    }

    /// How many frames there are.
    pub fn frame_count(&self) -> u64 {
        rows_of(&self.frames)
    }

    /// How many parts there are.
    pub fn part_count(&self) -> u64 {
        rows_of(&self.parts)
    }

    /// All blocks in the order they lie in the object.
    pub fn blocks(&self) -> Vec<&BlockInfo> {
        let mut all: Vec<_> = [&self.entries, &self.extents, &self.frames, &self.parts].into_iter().flatten().collect();
        all.sort_by_key(|block| block.offset);
        all
    }

    /// Reads and decodes a block, and holds it against what the directory says; nothing is kept.
    pub fn check_block(&self, info: &BlockInfo) -> Result<()> {
        self.decode(info).map(|_| ())
    }

    /// The rows of one block of entries.
    fn entry_block(&self, block: usize) -> Result<Vec<Row>> {
        let info = self.entries.get(block).ok_or_else(|| damaged("no such block"))?;
        let Block::Entries(entries) = self.decode(info)? else { return Err(damaged("not a block of entries")) };
        let mut extent = info.first_extent;
        let rows = entries.into_iter().map(|entry| {
            let own = (entry.stored_len > 0).then_some(extent);
            extent += u64::from(own.is_some());
            Row { entry, extent: own }
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
        let Block::Entries(entries) = &*block else { return Ok(None) };
        let Ok(found) = entries.binary_search_by(|entry| path::cmp_rows(&entry.path, path)) else { return Ok(None) };
        let entry = entries[found].clone();
        let before = entries[..found].iter().filter(|entry| entry.stored_len > 0).count() as u64;
        let extent = (entry.stored_len > 0).then_some(info.first_extent + before);
        Ok(Some(Row { entry, extent }))
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

    /// Extent row `n`.
    pub fn extent(&self, n: u64) -> Result<Extent> {
        let none = || damaged(&format!("the index of snapshot {} has no extent {n}", self.shown));
        let (info, at) = block_with(&self.extents, n).ok_or_else(none)?;
        match &*self.block(info)? {
            Block::Extents(rows) => rows.get(at).copied().ok_or_else(none),
            _ => Err(none()),
        }
    }

    /// The extent of an entry's content; it must be as long as the entry says.
    pub fn extent_of(&self, row: &Row) -> Result<Option<Extent>> {
        let Some(n) = row.extent else { return Ok(None) };
        let extent = self.extent(n)?;
        if extent.stream != 0 || extent.len != row.entry.stored_len {
            let name = show::name(&row.entry.path);
            return Err(damaged(&format!("entry and extent of `{name}` in snapshot {} do not agree", self.shown)));
        }
        Ok(Some(extent))
    }

    /// The extent of stream `stream`, from 1 on.
    pub fn stream_extent(&self, stream: u32) -> Result<Extent> {
        let before = u64::from(stream).checked_sub(1).ok_or_else(|| damaged("no such stream"))?;
        let extent = self.extent(self.tree_extent_count() + before)?;
        if extent.stream != stream || extent.offset != 0 {
            return Err(damaged(&format!("the extent of stream {stream} in snapshot {} is not its own", self.shown)));
        }
        Ok(extent)
    }

    /// How many extents of the tree end at or before `offset`.
    pub fn extents_before(&self, offset: u64) -> Result<u64> {
        let (mut low, mut high) = (0, self.tree_extent_count());
        while low < high {
            let middle = low + (high - low) / 2;
            let extent = self.extent(middle)?;
            if extent.offset.saturating_add(extent.len) <= offset { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The paths that own extents `first..end`, at most `max` of them.
    pub fn owners(&self, first: u64, end: u64, max: usize) -> Result<Vec<Vec<u8>>> {
        let mut paths = Vec::new();
        let start = self.entries.partition_point(|info| info.first_extent <= first).saturating_sub(1);
        for block in start..self.entries.len() {
            if self.entries[block].first_extent >= end || paths.len() == max {
                break;
            }
            let rows =
                self.entry_block(block)?.into_iter().filter(|row| row.extent.is_some_and(|n| n >= first && n < end));
            let room = max - paths.len();
            paths.extend(rows.map(|row| row.entry.path).take(room));
        }
        Ok(paths)
    }

    /// The frame that holds the byte at `offset` of `stream`.
    pub fn frame_at(&self, stream: u32, offset: u64) -> Result<Frame> {
        match self.frames_from(stream, offset)?.next().transpose()? {
            Some(frame) if frame.offset <= offset => Ok(frame),
            _ => Err(damaged(&format!("no frame of snapshot {} holds byte {offset} of stream {stream}", self.shown))),
        }
    }

    /// The frames of `stream` from the one that holds `offset` on; none when the stream ends before it.
    pub fn frames_from(&self, stream: u32, offset: u64) -> Result<Frames<'_>> {
        let mut key = [0; 12];
        key[..4].copy_from_slice(&stream.to_be_bytes());
        key[4..].copy_from_slice(&offset.to_be_bytes());
        let block = self.frames.partition_point(|info| info.first_key.as_slice() <= &key[..]).saturating_sub(1);
        let mut frames = Frames { index: self, stream: Some(stream), block, at: 0, rows: None, failed: false };
        if let Some(block) = frames.load()?
            && let Block::Frames(rows) = &*block
        {
            frames.at = rows.partition_point(|row| (row.stream, row.end()) <= (stream, offset));
        }
        Ok(frames)
    }

    /// All frames in the order they are stored.
    pub fn frames(&self) -> Frames<'_> {
        Frames { index: self, stream: None, block: 0, at: 0, rows: None, failed: false }
    }

    /// Part row `n`.
    pub fn part(&self, n: u64) -> Result<Part> {
        let none = || damaged(&format!("the index of snapshot {} has no part {n}", self.shown));
        let (info, at) = block_with(&self.parts, n).ok_or_else(none)?;
        match &*self.block(info)? {
            Block::Parts(rows) => rows.get(at).copied().ok_or_else(none),
            _ => Err(none()),
        }
    }

    /// The key of a part.
    pub fn part_key(&self, part: &Part) -> Result<String> {
        let name = match part.stream.checked_sub(1) {
            None => None,
            Some(n) => {
                Some(self.streams.get(n as usize).ok_or_else(|| damaged("a part of a stream that is not there"))?)
            }
        };
        Ok(format!("{}{}", self.dir, part_name(name, part.number, self.codec)))
    }

    fn decode(&self, info: &BlockInfo) -> Result<Block> {
        self.decode_block(info).map_err(|e| {
            e.context(format!(
                "cannot read index block at byte {} ({:?}) of snapshot {}",
                info.offset, info.section, self.shown
            ))
        })
    }

    fn decode_block(&self, info: &BlockInfo) -> Result<Block> {
        // The blocks tile the object, whose length was checked: no more is allocated than is stored.
        let mut stored = vec![0; info.stored_len as usize];
        self.store.read_at(&self.key, info.offset, &mut stored)?;
        let plain = open_block(&stored, info.plain_len as usize, &info.digest)?;
        drop(stored);
        let rows = info.rows as usize;
        Ok(match info.section {
            Section::Entries => {
                let entries = decode_entries(&plain, rows)?;
                self.check_entries(info, &entries)?;
                Block::Entries(entries)
            }
            Section::Extents => Block::Extents(decode_extents(&plain, rows)?),
            Section::Frames => {
                let frames = decode_frames(&plain, rows)?;
                let first = frames.first().map(|frame| (frame.stream.to_be_bytes(), frame.offset.to_be_bytes()));
                if first.is_none_or(|(stream, offset)| info.first_key[..4] != stream || info.first_key[4..] != offset) {
                    return Err(damaged("the first frame is not the one the directory says"));
                }
                Block::Frames(frames)
            }
            Section::Parts => Block::Parts(decode_parts(&plain, rows)?),
        })
    }

    /// Holds a block of entries against its neighbours in the directory, so that all blocks together are in order.
    fn check_entries(&self, info: &BlockInfo, entries: &[Entry]) -> Result<()> {
        let next = self.entries.partition_point(|other| other.offset <= info.offset);
        let (key, extent) = match self.entries.get(next) {
            Some(next) => (Some(&next.first_key), next.first_extent),
            None => (None, self.tree_extent_count()),
        };
        let with_content = entries.iter().filter(|entry| entry.stored_len > 0).count() as u64;
        let starts = entries.first().is_some_and(|entry| entry.path == info.first_key);
        let ends = match (entries.last(), key) {
            (Some(last), Some(key)) => path::cmp_rows(&last.path, key).is_lt(),
            _ => true,
        };
        if !starts || !ends {
            return Err(damaged("entries are not those the directory says"));
        }
        if info.first_extent.checked_add(with_content) != Some(extent) {
            return Err(damaged("entries and extents do not agree in number"));
        }
        Ok(())
    }

    fn block(&self, info: &BlockInfo) -> Result<Arc<Block>> {
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = lock().get(info.offset) {
            return Ok(block);
        }
        let block = Arc::new(self.decode(info)?);
        lock().put(info.offset, info.plain_len as usize, Arc::clone(&block));
        Ok(block)
    }
}

fn rows_of(blocks: &[BlockInfo]) -> u64 {
    blocks.last().map_or(0, |info| info.first_row + u64::from(info.rows))
}

/// The block that holds row `n` of its section, and which of its rows it is.
fn block_with(blocks: &[BlockInfo], n: u64) -> Option<(&BlockInfo, usize)> {
    let at = blocks.partition_point(|info| info.first_row <= n).checked_sub(1)?;
    Some((&blocks[at], usize::try_from(n - blocks[at].first_row).ok()?))
}

/// Entries one after another. A block that cannot be read is one error; the next blocks follow.
pub struct Rows<'a> {
    index: &'a IndexReader,
    block: usize,
    rows: std::vec::IntoIter<Row>,
    failed: Option<Error>,
}

impl Rows<'_> {
    fn next_block(&mut self) -> Option<Result<Vec<Row>>> {
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
    index: &'a IndexReader,
    stream: Option<u32>,
    block: usize,
    at: usize,
    rows: Option<Arc<Block>>,
    failed: bool,
}

impl Frames<'_> {
    fn load(&mut self) -> Result<Option<Arc<Block>>> {
        if self.rows.is_none() {
            let Some(info) = self.index.frames.get(self.block) else { return Ok(None) };
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
