//! A block of an index: read, held against its digest and its neighbours, decoded, kept for a while.

use std::sync::Arc;

use super::{IndexReader, damaged};
use crate::{
    engine::read::patience::may_wait,
    error::Result,
    format::index::{
        BlockInfo, ChunkRun, Extent, Frame, Inode, Part, Section, decode_chunks, decode_entries, decode_extents,
        decode_frames, decode_inodes, decode_parts, decode_places, open_block,
    },
    model::{
        digest::Digest,
        entry::{Entry, Place},
        path,
    },
};

/// A decoded block.
pub(super) enum Block {
    /// Rows, and how many of those before each own an extent.
    Entries(Vec<Entry>, Vec<u16>),
    Extents(Vec<Extent>),
    Frames(Vec<Frame>),
    Parts(Vec<Part>),
    Places(Vec<Place>),
    Inodes(Vec<Inode>),
    Chunks(Vec<ChunkRun>),
}

impl IndexReader {
    pub(super) fn decode(&self, info: &BlockInfo) -> Result<Block> {
        self.decode_block(info).map_err(|e| {
            e.context(format!(
                "cannot read index block at byte {} ({:?}) of snapshot {}",
                info.offset, info.section, self.shown
            ))
        })
    }

    /// A block as stored. One that was damaged on its way here is whole the next time.
    pub(super) fn stored(&self, info: &BlockInfo) -> Result<Vec<u8>> {
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
            Section::Other(_) => return Err(damaged("a section that is not known")),
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

    pub(super) fn block(&self, info: &BlockInfo) -> Result<Arc<Block>> {
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

pub(super) fn rows_of(blocks: &[BlockInfo]) -> u64 {
    blocks.last().map_or(0, |info| info.first_row + u64::from(info.rows))
}

/// The block that holds row `n` of its section, and which of its rows it is.
pub(super) fn block_with(blocks: &[BlockInfo], n: u64) -> Option<(&BlockInfo, usize)> {
    let at = blocks.partition_point(|info| info.first_row <= n).checked_sub(1)?;
    Some((&blocks[at], usize::try_from(n - blocks[at].first_row).ok()?))
}
