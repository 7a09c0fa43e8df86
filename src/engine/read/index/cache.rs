//! Decoded blocks of indexes, the last used ones up to a number of bytes. Several indexes may share one.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Block;
use crate::{format::index::Extent, model::entry::Entry};

/// An index and the offset of a block in it.
type Key = (u64, u64);

/// Decoded blocks; one that is longer than the limit is kept as long as it is the newest.
pub struct BlockCache {
    len_max: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Index objects by their keys: one that is opened again finds its blocks.
    ids: HashMap<String, u64>,
    /// The last used first.
    blocks: VecDeque<(Key, usize, Arc<Block>)>,
    len: usize,
}

impl BlockCache {
    /// One that holds about `len_max` bytes of memory.
    pub fn new(len_max: usize) -> Arc<Self> {
        Arc::new(Self { len_max, held: Mutex::default() })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the index object `key` in this cache, the same each time.
    pub(super) fn id_of(&self, key: &str) -> u64 {
        let mut held = self.held();
        let next = held.ids.len() as u64;
        *held.ids.entry(key.to_owned()).or_insert(next)
    }

    pub(super) fn get(&self, key: Key) -> Option<Arc<Block>> {
        let mut held = self.held();
        let at = held.blocks.iter().position(|(own, ..)| *own == key)?;
        if at > 0 {
            let found = held.blocks.remove(at)?;
            held.blocks.push_front(found);
        }
        held.blocks.front().map(|(.., block)| Arc::clone(block))
    }

    pub(super) fn put(&self, key: Key, block: Arc<Block>) {
        let len = block.memory();
        let mut held = self.held();
        if held.blocks.iter().any(|(own, ..)| *own == key) {
            return;
        }
        held.blocks.push_front((key, len, block));
        held.len += len;
        while held.blocks.len() > 1 && held.len > self.len_max {
            let Some((_, len, _)) = held.blocks.pop_back() else { break };
            held.len -= len;
        }
    }
}

impl Block {
    /// About how many bytes of memory it takes.
    fn memory(&self) -> usize {
        match self {
            Block::Entries(rows) => rows.iter().map(memory_of).sum(),
            Block::Extents(rows) => rows.len() * size_of::<Extent>(),
            Block::Frames(rows) => size_of_val(&rows[..]),
            Block::Parts(rows) => size_of_val(&rows[..]),
            Block::Places(rows) => size_of_val(&rows[..]),
            Block::Inodes(rows) => size_of_val(&rows[..]),
            Block::Chunks(rows) => rows.iter().map(|run| size_of_val(run) + run.chunks.len() * 24).sum(),
        }
    }
}

fn memory_of(entry: &Entry) -> usize {
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
    let runs = entry.sparse.as_ref().map_or(0, Vec::len) + entry.damaged.len();
    size_of::<Entry>() + entry.path.len() + 16 + entry.link.len() + xattrs + runs * 16
}
