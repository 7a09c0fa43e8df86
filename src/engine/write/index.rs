//! Writes the index while the snapshot goes: rows of each section collect to a block, blocks go out at once.
//!
//! Invariant: what is finished can be opened. When the directory of blocks grows long, what only increments follow is left
//! out, chunks first; what would pass a limit of the format is an error, long before the record.

use super::sorted::Sorted;
use crate::{
    error::{Error, Kind, Result},
    format::{
        index::{
            BLOCK_PLAIN_LEN_MAX, BlockInfo, Chunk, ChunkRun, DIRECTORY_LEN_MAX, Directory, Extent, Frame, Inode, Part,
            ROW_COUNT_MAX, SECTION_SLOTS, Section, chunk_key, encode_chunks, encode_entries, encode_extents,
            encode_frames, encode_inodes, encode_parts, encode_places, encode_tail, inode_key, seal_block,
        },
        layout::INDEX_NAME,
        record::{IndexRef, PlaceRows},
    },
    model::{
        digest::Digest,
        entry::{Entry, EntryKind, Place},
    },
    volume::Upload,
};

/// Attributes, sparse maps, paths that share nothing and the like close a block early, bytes.
const BLOCK_WEIGHT_MAX: usize = 1 << 20;
/// What the directory says of a block of inodes takes at most this many bytes.
const INODE_BLOCK_LEN: u64 = 72;
/// The count of blocks that begins a directory.
const COUNT_LEN_MAX: u64 = 10;

/// An index being written.
pub struct IndexWriter {
    out: Box<dyn Upload>,
    offset: u64,
    directory: Directory,
    /// The directory's plain length so far, and the longest it may come to.
    directory_len: u64,
    directory_len_max: u64,
    entries: Vec<Entry>,
    weight: usize,
    /// Extents the entries of finished blocks own.
    extents_before: u64,
    extents: Vec<Extent>,
    frames: Vec<Frame>,
    parts: Vec<Part>,
    part_count: u32,
    places: Vec<Place>,
    place_count: u64,
    entry_count: u64,
    /// What later increments follow, when there are to be any.
    inodes: Option<Sorted>,
    inode_count: u64,
    chunks: Vec<ChunkRun>,
    chunk_count: usize,
    chunk_weight: usize,
    rows: [u64; SECTION_SLOTS],
}

impl IndexWriter {
    /// Writes to `out`.
    pub fn new(out: Box<dyn Upload>) -> Self {
        Self {
            out,
            offset: 0,
            directory: Directory::default(),
            directory_len: COUNT_LEN_MAX,
            directory_len_max: DIRECTORY_LEN_MAX,
            entries: Vec::new(),
            weight: 0,
            extents_before: 0,
            extents: Vec::new(),
            frames: Vec::new(),
            parts: Vec::new(),
            part_count: 0,
            places: Vec::new(),
            place_count: 0,
            entry_count: 0,
            inodes: None,
            inode_count: 0,
            chunks: Vec::new(),
            chunk_count: 0,
            chunk_weight: 0,
            rows: [0; SECTION_SLOTS],
        }
    }

    /// Notes inode numbers and chunks too, for increments.
    #[must_use]
    pub fn with_traces(mut self, inodes: Sorted) -> Self {
        self.inodes = Some(inodes);
        self
    }

    /// Lets the directory of blocks be at most this long, bytes: for tests.
    #[must_use]
    pub fn with_directory_len_max(mut self, max: u64) -> Self {
        self.directory_len_max = max;
        self
    }

    /// Adds an entry; entries come in order.
    pub fn entry(&mut self, mut entry: Entry) -> Result<()> {
        self.weight += weight(&entry, self.entries.last());
        if let Some(map) = &mut entry.map {
            let rows = self.places(&std::mem::take(&mut map.places))?;
            (map.first, map.count) = (rows.first, rows.count);
        }
        if let Some(inodes) = &mut self.inodes
            && entry.kind == EntryKind::File
            && entry.stored_len > 0
        {
            inodes.push(Inode { fsid: entry.fsid, ino: entry.ino, row: self.entry_count })?;
            self.inode_count += 1;
        }
        self.entry_count += 1;
        self.entries.push(entry);
        if self.entries.len() == ROW_COUNT_MAX || self.weight > BLOCK_WEIGHT_MAX {
            self.flush_entries()
        } else {
            Ok(())
        }
    }

    /// Adds an extent; extents come in the order of the entries that own them.
    pub fn extent(&mut self, extent: Extent) -> Result<()> {
        self.extents.push(extent);
        if self.extents.len() == ROW_COUNT_MAX { self.flush_extents() } else { Ok(()) }
    }

    /// Adds the places of one content.
    pub fn places(&mut self, places: &[Place]) -> Result<PlaceRows> {
        let rows = PlaceRows { first: self.place_count, count: places.len() as u64 };
        self.place_count += rows.count;
        for place in places {
            self.places.push(*place);
            if self.places.len() == ROW_COUNT_MAX {
                self.flush_places()?;
            }
        }
        Ok(rows)
    }

    /// Adds chunks of one content; contents come in the order of their entries, then of the streams.
    pub fn chunks(&mut self, mut run: ChunkRun) -> Result<()> {
        // The room that is left is for what no reader can do without.
        if self.inodes.is_none() || self.directory_len > self.directory_len_max / 2 {
            return Ok(());
        }
        let all = std::mem::take(&mut run.chunks);
        let mut rest: &[Chunk] = &all;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(ROW_COUNT_MAX - self.chunk_count));
            self.chunk_count += now.len();
            self.chunk_weight += run.path.len();
            self.chunks.push(ChunkRun { chunks: now.to_vec(), ..run.clone() });
            if self.chunk_count == ROW_COUNT_MAX || self.chunk_weight > BLOCK_WEIGHT_MAX {
                self.flush_chunks()?;
            }
            rest = later;
        }
        Ok(())
    }

    /// Adds a frame.
    pub fn frame(&mut self, frame: Frame) -> Result<()> {
        self.frames.push(frame);
        if self.frames.len() == ROW_COUNT_MAX { self.flush_frames() } else { Ok(()) }
    }

    /// The number the next part will have in its section: what its frames refer to.
    pub fn next_part(&self) -> u32 {
        self.part_count
    }

    /// Adds a part.
    pub fn part(&mut self, part: Part) -> Result<()> {
        self.part_count += 1;
        self.parts.push(part);
        if self.parts.len() == ROW_COUNT_MAX { self.flush_parts() } else { Ok(()) }
    }

    /// Writes all rows that are left.
    pub fn flush(&mut self) -> Result<()> {
        self.flush_entries()?;
        self.flush_extents()?;
        self.flush_frames()?;
        self.flush_parts()?;
        self.flush_places()?;
        self.flush_chunks()?;
        self.flush_inodes()
    }

    /// Writes what is left, the directory and the footer, and makes the object durable.
    pub fn finish(mut self) -> Result<IndexRef> {
        self.flush()?;
        let tail = encode_tail(&self.directory)?;
        self.out.write(&tail.bytes)?;
        self.out.finish()?;
        Ok(IndexRef {
            name: INDEX_NAME.to_owned(),
            len: self.offset + tail.bytes.len() as u64,
            tail_digest: tail.digest,
        })
    }

    fn flush_entries(&mut self) -> Result<()> {
        let Some(first) = self.entries.first() else { return Ok(()) };
        let key = first.path.clone();
        let plain = encode_entries(&self.entries);
        let before = self.extents_before;
        self.extents_before += self.entries.iter().filter(|entry| entry.owns_extent()).count() as u64;
        let rows = self.entries.len();
        self.entries.clear();
        self.weight = 0;
        self.block(Section::Entries, &plain, rows, key, before)
    }

    fn flush_extents(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.extents);
        self.block(Section::Extents, &encode_extents(&rows), rows.len(), Vec::new(), 0)
    }

    fn flush_frames(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.frames);
        let Some(first) = rows.first() else { return Ok(()) };
        let key = [&first.stream.to_be_bytes()[..], &first.offset.to_be_bytes()].concat();
        self.block(Section::Frames, &encode_frames(&rows), rows.len(), key, 0)
    }

    fn flush_parts(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.parts);
        self.block(Section::Parts, &encode_parts(&rows), rows.len(), Vec::new(), 0)
    }

    fn flush_places(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.places);
        self.block(Section::Places, &encode_places(&rows), rows.len(), Vec::new(), 0)
    }

    fn flush_chunks(&mut self) -> Result<()> {
        let (runs, rows) = (std::mem::take(&mut self.chunks), std::mem::take(&mut self.chunk_count));
        self.chunk_weight = 0;
        let Some(first) = runs.first() else { return Ok(()) };
        let key = chunk_key(first.stream, &first.path);
        self.block(Section::Chunks, &encode_chunks(&runs), rows, key, 0)
    }

    fn flush_inodes(&mut self) -> Result<()> {
        let Some(inodes) = self.inodes.take() else { return Ok(()) };
        // All of them or none: they come last.
        let blocks = self.inode_count.div_ceil(ROW_COUNT_MAX as u64);
        if self.directory_len + blocks * INODE_BLOCK_LEN > self.directory_len_max / 4 * 3 {
            return Ok(());
        }
        let mut rows = Vec::with_capacity(ROW_COUNT_MAX);
        let flush = |rows: &mut Vec<Inode>, index: &mut Self| {
            let Some(first) = rows.first() else { return Ok(()) };
            let key = inode_key(first.fsid, first.ino).to_vec();
            index.block(Section::Inodes, &encode_inodes(rows), rows.len(), key, 0)?;
            rows.clear();
            Ok(())
        };
        inodes.finish(&mut |row| {
            rows.push(row);
            if rows.len() == ROW_COUNT_MAX { flush(&mut rows, self) } else { Ok(()) }
        })?;
        flush(&mut rows, self)
    }

    fn block(
        &mut self,
        section: Section,
        plain: &[u8],
        rows: usize,
        first_key: Vec<u8>,
        first_extent: u64,
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        if plain.len() > BLOCK_PLAIN_LEN_MAX {
            let what =
                format!("a block of the index ({section:?}) has {} bytes, above {BLOCK_PLAIN_LEN_MAX}", plain.len());
            return Err(Error::new(Kind::Other, what));
        }
        let narrow = |len: usize| u32::try_from(len).map_err(|_| Error::integrity("an index block is too large"));
        let stored = seal_block(plain)?;
        let first_row = &mut self.rows[section.slot()];
        let info = BlockInfo {
            section,
            offset: self.offset,
            stored_len: narrow(stored.len())?,
            plain_len: narrow(plain.len())?,
            digest: Digest::of(&stored),
            rows: narrow(rows)?,
            first_row: *first_row,
            first_key,
            first_extent,
        };
        *first_row += rows as u64;
        self.directory_len += info.directory_len();
        if self.directory_len > self.directory_len_max {
            let what = format!("the index's directory would be longer than {} bytes", self.directory_len_max);
            return Err(
                Error::new(Kind::Other, what).with_hint("this is too much for one snapshot: make several jobs of it")
            );
        }
        self.directory.blocks.push(info);
        self.offset += stored.len() as u64;
        self.out.write(&stored)
    }
}

/// About how many bytes a row takes beside what every row does; `before` is the row before it in its block.
fn weight(entry: &Entry, before: Option<&Entry>) -> usize {
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    let shared = before.map_or(0, |before| before.path.iter().zip(&entry.path).take_while(|(a, b)| a == b).count());
    xattrs + entry.sparse.as_ref().map_or(0, |runs| runs.len() * 8) + entry.link.len() + entry.path.len() - shared
}
