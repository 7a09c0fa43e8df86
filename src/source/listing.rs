//! The names of one directory, sorted by their bytes, in about 8 bytes and the name for each.

use std::{mem::MaybeUninit, os::fd::AsFd};

use rustix::fs::{FileType, RawDir};

/// A directory's names. Memory: 8 bytes and the name's bytes for each entry.
#[derive(Default)]
pub struct Listing {
    /// Names that cannot be stored: longer than 255 bytes, as some file systems have them.
    pub too_long: Vec<Vec<u8>>,
    names: Vec<u8>,
    /// Offset into `names`; the high byte of the length slot holds the type.
    slots: Vec<Slot>,
}

#[derive(Clone, Copy)]
struct Slot {
    at: u32,
    len: u8,
    kind: FileKind,
}

/// The type a directory says its entry has: a hint, for the entry can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else, or not known.
    Other,
}

impl Listing {
    /// Reads the directory behind `fd` from where its position is.
    pub fn read(fd: impl AsFd) -> rustix::io::Result<Self> {
        match Self::read_at_most(fd, usize::MAX) {
            Some((_, Err(e))) => Err(e),
            read => Ok(read.map(|(listing, _)| listing).unwrap_or_default()),
        }
    }

    /// The same, with what ended it early; none when there are more than `max` names.
    pub fn read_at_most(fd: impl AsFd, max: usize) -> Option<(Self, rustix::io::Result<()>)> {
        let mut buf = vec![MaybeUninit::uninit(); 32 << 10];
        let mut raw = RawDir::new(fd, &mut buf);
        let (mut listing, mut read) = (Self::default(), Ok(()));
        while let Some(found) = raw.next() {
            let found = match found {
                Ok(found) => found,
                Err(e) => {
                    read = Err(e);
                    break;
                }
            };
            let kind = match found.file_type() {
                FileType::RegularFile => FileKind::File,
                FileType::Directory => FileKind::Dir,
                _ => FileKind::Other,
            };
            listing.push(found.file_name().to_bytes(), kind);
            if listing.len() > max {
                return None;
            }
        }
        listing.sort();
        Some((listing, read))
    }

    /// A listing of just these names.
    pub fn of<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut listing = Self::default();
        names.for_each(|name| listing.push(name, FileKind::Other));
        listing.sort();
        listing
    }

    fn push(&mut self, name: &[u8], kind: FileKind) {
        if matches!(name, b"." | b".." | b"") {
            return;
        }
        // The limit is each file system's own: 255 letters may be 765 bytes.
        match (u32::try_from(self.names.len()), u8::try_from(name.len())) {
            (Ok(at), Ok(len)) => {
                self.names.extend_from_slice(name);
                self.slots.push(Slot { at, len, kind });
            }
            _ => self.too_long.push(name.to_vec()),
        }
    }

    fn sort(&mut self) {
        let Self { names, slots, .. } = self;
        let name = |slot: &Slot| &names[slot.at as usize..][..usize::from(slot.len)];
        slots.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    }

    /// Leaves out what `keep` does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], FileKind) -> bool) {
        let Self { names, slots, .. } = self;
        slots.retain(|slot| keep(&names[slot.at as usize..][..usize::from(slot.len)], slot.kind));
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The `n`-th name and its type.
    pub fn get(&self, n: usize) -> (&[u8], FileKind) {
        let slot = self.slots[n];
        (&self.names[slot.at as usize..][..usize::from(slot.len)], slot.kind)
    }
}
