//! The index of one snapshot, opened: rows in order, a path, a directory, where a content and its frames lie.
//!
//! Only the directory of blocks is held; blocks come one by one, each hashed before it is decoded, the last few kept.
//! Memory grows with neither files nor frames. No loop here goes on longer than the directory of blocks says.

mod cache;
mod numbered;

use std::{cmp::Ordering, sync::Arc};

use super::patience::may_wait;
use crate::{
    error::{Error, Kind, Result},
    format::{
        codec::Codec,
        index::{
            BlockInfo, ChunkRun, Directory, Extent, FOOTER_LEN, Frame, Inode, Part, SECTION_SLOTS, Section, chunk_key,
            decode_chunks, decode_entries, decode_extents, decode_footer, decode_frames, decode_inodes, decode_parts,
            decode_places, decode_tail, inode_key, open_block,
        },
        layout::{part_name, run_dir},
        record::{PlaceRows, Snapshot},
    },
    model::{
        digest::Digest,
        entry::{Entry, EntryKind, Map, Place},
        ids::Name,
        path, show,
    },
    volume::{Store, Volume},
};

/// Directory and footer are at most this long as stored, and the directory this long when plain: 400 million entries.
const TAIL_LEN_MAX: u64 = 48 << 20;
/// Decoded blocks of an index with a cache of its own are kept up to this many bytes of memory.
const CACHE_LEN_MAX: usize = 24 << 20;

pub use cache::BlockCache;
pub use numbered::{List, Numbered};

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

/// A decoded block.
enum Block {
    /// Rows, and how many of those before each own an extent.
    Entries(Vec<Entry>, Vec<u16>),
    Extents(Vec<Extent>),
    Frames(Vec<Frame>),
    Parts(Vec<Part>),
    Places(Vec<Place>),
    Inodes(Vec<Inode>),
    Chunks(Vec<ChunkRun>),
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
    let (tail_len, plain_len) = decode_footer(&footer, len)?;
    if tail_len > TAIL_LEN_MAX || plain_len > TAIL_LEN_MAX {
        return Err(damaged("the index directory is above the limit"));
    }
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
        self.decode(info).map(|_| ())
    }

    /// Reads the blocks that an increment over this snapshot needs and checks their digests, without decoding them.
    pub fn check_entries_stored(&self) -> Result<()> {
        let traces = [Section::Extents, Section::Places, Section::Inodes, Section::Chunks];
        for info in self.entries.iter().chain(traces.iter().flat_map(|section| self.blocks_of(*section))) {
            if Digest::of(&self.stored(info)?) != info.digest {
                return Err(damaged(&format!("index block at byte {} ({:?}) is damaged", info.offset, info.section)));
            }
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

    /// The places a map names, in the order of the content.
    pub fn places(&self, map: &Map, len: u64) -> Result<Vec<Place>> {
        self.place_rows(map.first, map.count, len)
    }

    fn place_rows(&self, first: u64, count: u64, len: u64) -> Result<Vec<Place>> {
        let wrong = || damaged(&format!("the index of snapshot {} has not the places a map names", self.shown));
        let (mut next, end) = (first, first.saturating_add(count));
        let mut places = Vec::new();
        while next < end {
            let (info, at) = block_with(self.blocks_of(Section::Places), next).ok_or_else(wrong)?;
            let block = self.block(info)?;
            let Block::Places(rows) = &*block else { return Err(wrong()) };
            let want = usize::try_from(end - next).unwrap_or(usize::MAX).min(rows.len().saturating_sub(at));
            if want == 0 {
                return Err(wrong());
            }
            places.extend_from_slice(&rows[at..at + want]);
            next += want as u64;
        }
        let sum = places.iter().try_fold(0u64, |sum, place| sum.checked_add(place.len));
        if sum == Some(len) { Ok(places) } else { Err(wrong()) }
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

    /// Extent row `n`.
    pub fn extent(&self, n: u64) -> Result<Extent> {
        let none = || damaged(&format!("the index of snapshot {} has no extent {n}", self.shown));
        let (info, at) = block_with(self.blocks_of(Section::Extents), n).ok_or_else(none)?;
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

    /// Where the content of a stream of an increment lies; none when the stored stream is the content.
    pub fn stream_places(&self, stream: u32) -> Result<Option<Vec<Place>>> {
        let at = usize::try_from(stream).unwrap_or(usize::MAX).wrapping_sub(1);
        let Some(rows) = self.stream_places.get(at).copied().flatten() else { return Ok(None) };
        let len = self.stream_extent(stream)?.len;
        self.place_rows(rows.first, rows.count, len).map(Some)
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
        let block = self
            .blocks_of(Section::Frames)
            .partition_point(|info| info.first_key.as_slice() <= &key[..])
            .saturating_sub(1);
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
        let (info, at) = block_with(self.blocks_of(Section::Parts), n).ok_or_else(none)?;
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

    /// A block as stored. One that was damaged on its way here is whole the next time.
    fn stored(&self, info: &BlockInfo) -> Result<Vec<u8>> {
        let mut stored = vec![0; info.stored_len as usize];
        self.store.read_at(&self.key, info.offset, &mut stored)?;
        if Digest::of(&stored) != info.digest {
            self.store.forget(&self.key);
            self.store.read_at(&self.key, info.offset, &mut stored)?;
        }
        Ok(stored)
    }

    fn decode_block(&self, info: &BlockInfo) -> Result<Block> {
        // The blocks tile the object, whose length was checked: no more is allocated than is stored.
        let stored = self.stored(info)?;
        let plain = open_block(&stored, info.plain_len as usize, &info.digest)?;
        drop(stored);
        let rows = info.rows as usize;
        Ok(match info.section {
            Section::Entries => {
                let entries = decode_entries(&plain, rows)?;
                self.check_entries(info, &entries)?;
                let mut owners = 0;
                let before = entries.iter().map(|entry| {
                    owners += u16::from(entry.owns_extent());
                    owners - u16::from(entry.owns_extent())
                });
                let before = before.collect();
                Block::Entries(entries, before)
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
            Section::Places => Block::Places(decode_places(&plain, rows)?),
            Section::Inodes => Block::Inodes(decode_inodes(&plain, rows)?),
            Section::Chunks => Block::Chunks(decode_chunks(&plain, rows)?),
        })
    }

    /// Holds a block of entries against its neighbours in the directory, so that all blocks together are in order.
    fn check_entries(&self, info: &BlockInfo, entries: &[Entry]) -> Result<()> {
        let next = self.entries.partition_point(|other| other.offset <= info.offset);
        let (key, extent) = match self.entries.get(next) {
            Some(next) => (Some(&next.first_key), next.first_extent),
            None => (None, self.tree_extent_count()),
        };
        let with_content = entries.iter().filter(|entry| entry.owns_extent()).count() as u64;
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
        let key = (self.id, info.offset);
        if let Some(block) = self.cache.get(key) {
            return Ok(block);
        }
        may_wait()?;
        let block = Arc::new(self.decode(info)?);
        self.cache.put(key, Arc::clone(&block));
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
