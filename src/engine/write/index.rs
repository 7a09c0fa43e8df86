//! Writes the index while the snapshot goes: rows of each section collect to a block, blocks go out at once.

use crate::{
    error::{Error, Result},
    format::{
        index::{
            BlockInfo, Directory, Extent, Frame, Part, ROW_COUNT_MAX, Section, encode_entries, encode_extents,
            encode_frames, encode_parts, encode_tail, seal_block,
        },
        layout::INDEX_NAME,
        record::IndexRef,
    },
    model::{digest::Digest, entry::Entry},
    volume::Upload,
};

/// Attributes, sparse maps and the like close a block early, bytes.
const BLOCK_WEIGHT_MAX: usize = 1 << 20;

/// An index being written.
pub struct IndexWriter {
    out: Box<dyn Upload>,
    offset: u64,
    directory: Directory,
    entries: Vec<Entry>,
    weight: usize,
    /// Extents the entries of finished blocks own.
    extents_before: u64,
    extents: Vec<Extent>,
    frames: Vec<Frame>,
    parts: Vec<Part>,
    part_count: u32,
    rows: [u64; 4],
}

impl IndexWriter {
    /// Writes to `out`.
    pub fn new(out: Box<dyn Upload>) -> Self {
        Self {
            out,
            offset: 0,
            directory: Directory::default(),
            entries: Vec::new(),
            weight: 0,
            extents_before: 0,
            extents: Vec::new(),
            frames: Vec::new(),
            parts: Vec::new(),
            part_count: 0,
            rows: [0; 4],
        }
    }

    /// Adds an entry; entries come in order.
    pub fn entry(&mut self, entry: Entry) -> Result<()> {
        self.weight += weight(&entry);
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

    /// Writes what is left, the directory and the footer, and makes the object durable.
    pub fn finish(mut self) -> Result<IndexRef> {
        self.flush_entries()?;
        self.flush_extents()?;
        self.flush_frames()?;
        self.flush_parts()?;
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
        self.extents_before += self.entries.iter().filter(|entry| entry.stored_len > 0).count() as u64;
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
        let narrow = |len: usize| u32::try_from(len).map_err(|_| Error::integrity("an index block is too large"));
        let stored = seal_block(plain)?;
        let first_row = &mut self.rows[usize::from(section as u8 & 3)];
        self.directory.blocks.push(BlockInfo {
            section,
            offset: self.offset,
            stored_len: narrow(stored.len())?,
            plain_len: narrow(plain.len())?,
            digest: Digest::of(&stored),
            rows: narrow(rows)?,
            first_row: *first_row,
            first_key,
            first_extent,
        });
        *first_row += rows as u64;
        self.offset += stored.len() as u64;
        self.out.write(&stored)
    }
}

fn weight(entry: &Entry) -> usize {
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    xattrs + entry.sparse.as_ref().map_or(0, |runs| runs.len() * 8) + entry.link.len() + entry.path.len() / 4
}
