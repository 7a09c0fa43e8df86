//! Which path an inode with several names was stored under first. Spills to a file when there are many.
//!
//! The table in the file is open addressing over fixed slots, doubled when three quarters full; paths lie in a second file.
//! Memory stays bounded at [`MEMORY_COUNT_MAX`] entries; the page cache does the rest.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt};

use rustix::fs::{FileType, Stat};

use crate::error::{Error, Result};

/// Entries kept in memory before the table moves to a file.
const MEMORY_COUNT_MAX: usize = 16_384;
/// device, inode, offset of the path, length of the path + 1; 0 there is an empty slot.
const SLOT_LEN: usize = 32;
const FIRST_SLOT_COUNT: u64 = 65_536;

/// Device and inode.
pub type Inode = (u64, u64);

/// The first name of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct First {
    /// The path.
    pub path: Vec<u8>,
    /// Whether it is stored as a delta, so that stock tools make it after all members.
    pub is_delta: bool,
    /// Type, size, and seconds and nanoseconds of its time, as it was stored: an inode that has others by now is another file.
    seen: [u64; 4],
}

fn seen(stat: &Stat) -> [u64; 4] {
    let kind = u64::from(FileType::from_raw_mode(stat.st_mode).as_raw_mode());
    [kind, stat.st_size.cast_unsigned(), stat.st_mtime.cast_unsigned(), stat.st_mtime_nsec]
}

impl First {
    /// What `stat` tells of is stored under `path`.
    pub fn new(path: &[u8], stat: &Stat, is_delta: bool) -> Self {
        Self { path: path.to_vec(), is_delta, seen: seen(stat) }
    }

    /// Whether the inode still is what was stored. Its number may have been given to another file meanwhile.
    pub fn is(&self, stat: &Stat) -> bool {
        self.seen == seen(stat)
    }

    fn encode(&self) -> Vec<u8> {
        let seen = self.seen.map(u64::to_le_bytes).concat();
        [&[u8::from(self.is_delta)], &seen[..], &self.path[..]].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (&flag, rest) = bytes.split_first()?;
        let (words, path) = rest.split_at_checked(32)?;
        let mut seen = [0; 4];
        for (word, bytes) in seen.iter_mut().zip(words.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Some(Self { path: path.to_vec(), is_delta: flag == 1, seen })
    }
}

/// First names by inode.
pub struct Links<'a> {
    scratch: &'a dyn Fn() -> Result<File>,
    memory: HashMap<Inode, First>,
    spill: Option<Spill>,
}

struct Spill {
    slots: File,
    slot_count: u64,
    used: u64,
    paths: File,
    paths_len: u64,
}

fn failed(e: std::io::Error) -> Error {
    Error::io("cannot use the temporary file of hard links", e)
}

impl<'a> Links<'a> {
    /// An empty table; `scratch` makes temporary files.
    pub fn new(scratch: &'a dyn Fn() -> Result<File>) -> Self {
        Self { scratch, memory: HashMap::new(), spill: None }
    }

    /// The path `inode` was stored under.
    pub fn get(&self, inode: Inode) -> Result<Option<First>> {
        match &self.spill {
            Some(spill) => Ok(spill.get(inode)?.and_then(|bytes| First::decode(&bytes))),
            None => Ok(self.memory.get(&inode).cloned()),
        }
    }

    /// Remembers that `inode` is stored as `first`.
    pub fn insert(&mut self, inode: Inode, first: &First) -> Result<()> {
        if self.spill.is_none() && self.memory.len() >= MEMORY_COUNT_MAX {
            let mut spill = Spill {
                slots: (self.scratch)()?,
                slot_count: FIRST_SLOT_COUNT,
                used: 0,
                paths: (self.scratch)()?,
                paths_len: 0,
            };
            spill.slots.set_len(FIRST_SLOT_COUNT * SLOT_LEN as u64).map_err(failed)?;
            for (inode, first) in std::mem::take(&mut self.memory) {
                spill.insert(inode, &first.encode(), self.scratch)?;
            }
            self.spill = Some(spill);
        }
        match &mut self.spill {
            Some(spill) => spill.insert(inode, &first.encode(), self.scratch),
            None => {
                self.memory.insert(inode, first.clone());
                Ok(())
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Slot([u64; 4]);

impl Spill {
    fn read(&self, at: u64) -> Result<Slot> {
        let mut bytes = [0; SLOT_LEN];
        self.slots.read_exact_at(&mut bytes, at * SLOT_LEN as u64).map_err(failed)?;
        let (words, _) = bytes.as_chunks::<8>();
        let mut slot = [0; 4];
        for (word, bytes) in slot.iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(Slot(slot))
    }

    /// The slot of `inode`, or the empty one where it would go.
    fn find(&self, inode: Inode) -> Result<(u64, Slot)> {
        let hash = (inode.0.rotate_left(32) ^ inode.1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut at = hash >> 20 & (self.slot_count - 1);
        loop {
            let slot = self.read(at)?;
            if slot.0[3] == 0 || (slot.0[0], slot.0[1]) == inode {
                return Ok((at, slot));
            }
            at = (at + 1) & (self.slot_count - 1);
        }
    }

    fn get(&self, inode: Inode) -> Result<Option<Vec<u8>>> {
        let (_, Slot([_, _, offset, len])) = self.find(inode)?;
        if len == 0 {
            return Ok(None);
        }
        let mut path = vec![0; usize::try_from(len - 1).unwrap_or(0)];
        self.paths.read_exact_at(&mut path, offset).map_err(failed)?;
        Ok(Some(path))
    }

    fn insert(&mut self, inode: Inode, path: &[u8], scratch: &dyn Fn() -> Result<File>) -> Result<()> {
        if self.used * 4 >= self.slot_count * 3 {
            self.grow(scratch)?;
        }
        self.paths.write_all_at(path, self.paths_len).map_err(failed)?;
        let slot = Slot([inode.0, inode.1, self.paths_len, path.len() as u64 + 1]);
        self.paths_len += path.len() as u64;
        self.put(inode, slot)
    }

    fn put(&mut self, inode: Inode, slot: Slot) -> Result<()> {
        let (at, before) = self.find(inode)?;
        self.used += u64::from(before.0[3] == 0);
        let bytes: Vec<u8> = slot.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.slots.write_all_at(&bytes, at * SLOT_LEN as u64).map_err(failed)
    }

    fn grow(&mut self, scratch: &dyn Fn() -> Result<File>) -> Result<()> {
        let larger = scratch()?;
        larger.set_len(self.slot_count * 2 * SLOT_LEN as u64).map_err(failed)?;
        let smaller = Spill {
            slots: std::mem::replace(&mut self.slots, larger),
            slot_count: self.slot_count,
            used: 0,
            paths: self.paths.try_clone().map_err(failed)?,
            paths_len: 0,
        };
        self.slot_count *= 2;
        self.used = 0;
        for at in 0..smaller.slot_count {
            let slot = smaller.read(at)?;
            if slot.0[3] != 0 {
                self.put((slot.0[0], slot.0[1]), slot)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spilled_tables_find_everything() {
        let scratch = || tempfile::tempfile().map_err(failed);
        let mut links = Links::new(&scratch);
        let path = |n: u64| First {
            path: format!("some/dir/{n}").into_bytes(),
            is_delta: n.is_multiple_of(2),
            seen: [0o100_000, n, u64::MAX - n, n % 7],
        };
        for n in 0..80_000 {
            links.insert((n % 3, n * 64), &path(n)).unwrap();
        }
        assert!(links.memory.is_empty());
        for n in (0..80_000).step_by(97) {
            assert_eq!(links.get((n % 3, n * 64)).unwrap(), Some(path(n)));
        }
        assert_eq!(links.get((9, 9)).unwrap(), None);
    }
}
