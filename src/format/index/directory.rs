//! The end of an index object: the directory of its blocks, and the footer that tells where it begins.

use super::{block, entries::ROW_COUNT_MAX};
use crate::{
    error::{Error, Result},
    format::varint::{Reader, put},
    model::{digest::Digest, path},
};

/// `bk` index, version 1.
const MAGIC: &[u8; 8] = b"bkindex1";
/// The footer: stored length of the directory, its plain length (u64 little endian each), magic.
pub const FOOTER_LEN: usize = 24;
/// A directory is at most this long when plain: some 400 million entries, and a hostile one takes less than 256 MiB to open.
pub const DIRECTORY_LEN_MAX: u64 = 48 << 20;

/// What a block holds. A section with its critical bit set and a number a reader does not know makes it refuse the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Entries, sorted by [`path::cmp_rows`].
    Entries,
    /// Extents with content digests, in the order of the tree stream, then one for each named stream.
    Extents,
    /// Frames, in the order they were stored.
    Frames,
    /// Parts, in the order they were stored.
    Parts,
    /// Places: where contents lie that are no run of their own.
    Places,
    /// Inode numbers of files with content, sorted: how renamed files are found. A reader that only reads can do without.
    Inodes,
    /// Chunks of long contents: what an increment compares with. A reader that only reads can do without.
    Chunks,
    /// One this reader does not know, and can do without, under its number: checked and copied as stored, never decoded.
    Other(u8),
}

impl Section {
    /// Its number in the directory.
    fn number(self) -> u8 {
        match self {
            Self::Entries => 0x81,
            Self::Extents => 0x82,
            Self::Frames => 0x83,
            Self::Parts => 0x84,
            Self::Places => 0x85,
            Self::Inodes => 0x06,
            Self::Chunks => 0x07,
            Self::Other(number) => number,
        }
    }

    fn of(number: u8) -> Result<Self> {
        let known = [Self::Entries, Self::Extents, Self::Frames, Self::Parts, Self::Places, Self::Inodes, Self::Chunks];
        match known.into_iter().find(|section| section.number() == number) {
            Some(section) => Ok(section),
            None if number & CRITICAL != 0 => {
                Err(Error::integrity(format!("index section {number:#04x} needs a newer bk")))
            }
            None => Ok(Self::Other(number)),
        }
    }

    /// Its place in a table with one slot for each section; all that are not known have the first.
    pub fn slot(self) -> usize {
        match self {
            Self::Other(_) => 0,
            known => usize::from(known.number() & 7),
        }
    }
}

/// The length of a table with a slot for each section.
pub const SECTION_SLOTS: usize = 8;

/// The bit that makes a section critical.
const CRITICAL: u8 = 0x80;

/// One block in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// What it holds.
    pub section: Section,
    /// Where it begins in the object.
    pub offset: u64,
    /// Length as stored.
    pub stored_len: u32,
    /// Length before compression.
    pub plain_len: u32,
    /// Digest of the stored bytes.
    pub digest: Digest,
    /// How many rows it holds.
    pub rows: u32,
    /// Which row of its section its first one is.
    pub first_row: u64,
    /// Entries: the first path. Frames: stream and plain offset of the first. Inodes: file system and number of the first.
    /// Chunks: stream and path of the first's content. Empty otherwise.
    pub first_key: Vec<u8>,
    /// Entries: how many extents lie before this block. 0 otherwise.
    pub first_extent: u64,
}

impl BlockInfo {
    /// What the directory says of it.
    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.section.number());
        put(out, u64::from(self.stored_len));
        put(out, u64::from(self.plain_len));
        put(out, u64::from(self.rows));
        put(out, self.first_extent);
        put(out, self.first_key.len() as u64);
        out.extend_from_slice(&self.first_key);
        out.extend_from_slice(&self.digest.0);
    }

    /// How many bytes of the directory it takes.
    pub fn directory_len(&self) -> u64 {
        let mut out = Vec::with_capacity(64 + self.first_key.len());
        self.put(&mut out);
        out.len() as u64
    }
}

/// All blocks of an index, in the order they lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// The blocks.
    pub blocks: Vec<BlockInfo>,
}

impl Directory {
    /// The blocks of one section, in order.
    pub fn section(&self, section: Section) -> impl Iterator<Item = &BlockInfo> {
        self.blocks.iter().filter(move |block| block.section == section)
    }
}

/// The stored directory and footer.
pub struct Tail {
    /// The bytes that end the object.
    pub bytes: Vec<u8>,
    /// Their digest, which the snapshot's record holds.
    pub digest: Digest,
}

/// Encodes directory and footer.
pub fn encode_tail(directory: &Directory) -> Result<Tail> {
    let mut plain = Vec::new();
    put(&mut plain, directory.blocks.len() as u64);
    directory.blocks.iter().for_each(|info| info.put(&mut plain));
    let mut bytes = block::seal(&plain)?;
    let stored_len = bytes.len() as u64;
    bytes.extend_from_slice(&stored_len.to_le_bytes());
    bytes.extend_from_slice(&(plain.len() as u64).to_le_bytes());
    bytes.extend_from_slice(MAGIC);
    let digest = Digest::of(&bytes);
    Ok(Tail { bytes, digest })
}

/// From the footer: the length of directory and footer together, and the directory's plain length.
pub fn decode_footer(footer: &[u8], object_len: u64) -> Result<(u64, u64)> {
    let word = |at: usize| {
        let bytes = footer.get(at..at + 8).and_then(|b| b.try_into().ok()).unwrap_or([0; 8]);
        u64::from_le_bytes(bytes)
    };
    if footer.len() != FOOTER_LEN || &footer[16..] != MAGIC {
        return Err(Error::integrity("no index footer"));
    }
    let (stored_len, plain_len) = (word(0), word(8));
    let tail_len = stored_len.saturating_add(FOOTER_LEN as u64);
    // What is stored is at most a little longer than what it decodes to.
    let is_longer = stored_len > zstd_safe::compress_bound(usize::try_from(plain_len).unwrap_or(usize::MAX)) as u64;
    if tail_len > object_len || plain_len > DIRECTORY_LEN_MAX || is_longer {
        return Err(Error::integrity("the index footer's lengths are out of range"));
    }
    Ok((tail_len, plain_len))
}

/// Reads directory and footer; `digest` is the one in the snapshot's record. The blocks must tile the object exactly.
pub fn decode_tail(bytes: &[u8], object_len: u64, digest: &Digest) -> Result<Directory> {
    let read = Digest::of(bytes);
    if read != *digest {
        return Err(Error::integrity(format!(
            "digest of the directory differs (stored {}…, read {}…)",
            digest.short(),
            read.short()
        )));
    }
    let at = bytes.len().checked_sub(FOOTER_LEN).ok_or_else(|| Error::integrity("no index footer"))?;
    let (tail_len, plain_len) = decode_footer(&bytes[at..], object_len)?;
    if tail_len != bytes.len() as u64 {
        return Err(Error::integrity("the index footer's lengths are out of range"));
    }
    let mut plain = Vec::new();
    let plain_len = usize::try_from(plain_len).unwrap_or(usize::MAX);
    plain.try_reserve_exact(plain_len).map_err(|_| Error::integrity("the index directory is too large"))?;
    zstd_safe::decompress(&mut plain, &bytes[..at])
        .map_err(|code| Error::integrity(format!("zstd: {}", zstd_safe::get_error_name(code))))?;
    if plain.len() != plain_len {
        return Err(Error::integrity("the index directory has another length"));
    }
    decode_directory(&plain, object_len - tail_len)
}

fn decode_directory(plain: &[u8], blocks_len: u64) -> Result<Directory> {
    let mut reader = Reader::new(plain);
    // A block takes at least 37 bytes here.
    let count = reader.len_max(plain.len() / 37)?;
    let mut blocks: Vec<BlockInfo> = Vec::with_capacity(count);
    let mut offset = 0u64;
    let mut next_row = [0u64; SECTION_SLOTS];
    for _ in 0..count {
        let section = Section::of(reader.u8()?)?;
        let (stored_len, plain_len, rows) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let first_extent = reader.u64()?;
        let key_len = reader.len_max(path::PATH_LEN_MAX + 4)?;
        let first_key = reader.bytes(key_len)?.to_vec();
        let digest = Digest(reader.bytes(32)?.try_into().unwrap_or_default());
        if rows == 0 || rows as usize > ROW_COUNT_MAX || plain_len as usize > block::BLOCK_PLAIN_LEN_MAX {
            return Err(Error::integrity("an index block out of range"));
        }
        let next = &mut next_row[section.slot()];
        let first_row = *next;
        *next += u64::from(rows);
        blocks.push(BlockInfo {
            section,
            offset,
            stored_len,
            plain_len,
            digest,
            rows,
            first_row,
            first_key,
            first_extent,
        });
        offset += u64::from(stored_len);
    }
    reader.finish()?;
    if offset != blocks_len {
        return Err(Error::integrity(format!("the index's blocks end at {offset}, not at {blocks_len}")));
    }
    let directory = Directory { blocks };
    let entries: Vec<_> = directory.section(Section::Entries).collect();
    let sorted = entries.windows(2).all(|pair| {
        path::cmp_rows(&pair[0].first_key, &pair[1].first_key).is_lt() && pair[0].first_extent <= pair[1].first_extent
    });
    if !sorted {
        return Err(Error::integrity("the index's blocks are not in order"));
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(section: Section, offset: u64, stored_len: u32) -> BlockInfo {
        BlockInfo {
            section,
            offset,
            stored_len,
            plain_len: 10,
            digest: Digest::of(b"block"),
            rows: 1,
            first_row: 0,
            first_key: Vec::new(),
            first_extent: 0,
        }
    }

    #[test]
    fn an_unknown_section_is_passed_over_unless_it_is_critical() {
        let blocks = vec![
            info(Section::Extents, 0, 100),
            info(Section::Other(0x0d), 100, 7),
            info(Section::Parts, 107, 20),
            // All that are not known are counted together.
            BlockInfo { first_row: 1, ..info(Section::Other(0x01), 127, 3) },
        ];
        let directory = Directory { blocks };
        let tail = encode_tail(&directory).unwrap();
        let len = 130 + tail.bytes.len() as u64;
        assert_eq!(decode_tail(&tail.bytes, len, &tail.digest).unwrap(), directory);
        assert_eq!(directory.section(Section::Parts).count(), 1);
        for known in [Section::Entries, Section::Extents, Section::Frames, Section::Parts, Section::Places] {
            assert!(known.slot() > 0 && Section::of(known.number()).unwrap() == known);
        }
        assert!([0x01, 0x05, 0x08, 0x7f].iter().all(|number| Section::of(*number).unwrap().slot() == 0));
        let critical = Directory { blocks: vec![info(Section::Other(0x8d), 0, 100)] };
        let tail = encode_tail(&critical).unwrap();
        let error = decode_tail(&tail.bytes, 100 + tail.bytes.len() as u64, &tail.digest).unwrap_err();
        assert!(error.to_string().contains("0x8d needs a newer bk"), "{error}");
    }

    #[test]
    fn a_directory_that_claims_to_be_too_long_is_not_read() {
        let footer = |stored: u64, plain: u64| [&stored.to_le_bytes()[..], &plain.to_le_bytes(), MAGIC].concat();
        assert!(decode_footer(&footer(1 << 20, DIRECTORY_LEN_MAX), u64::MAX).is_ok());
        for (stored, plain) in
            [(1 << 20, DIRECTORY_LEN_MAX + 1), (2 * DIRECTORY_LEN_MAX, DIRECTORY_LEN_MAX), (1 << 20, 1000)]
        {
            assert!(decode_footer(&footer(stored, plain), u64::MAX).is_err(), "{stored} {plain}");
        }
    }

    #[test]
    fn what_a_block_takes_of_the_directory_adds_up() {
        let mut long = info(Section::Entries, 0, u32::MAX);
        (long.first_key, long.first_extent) = (vec![b'x'; 4000], u64::MAX);
        let blocks = vec![info(Section::Extents, 0, 1), long];
        let sum: u64 = blocks.iter().map(BlockInfo::directory_len).sum();
        let tail = encode_tail(&Directory { blocks }).unwrap();
        let (_, plain_len) = decode_footer(&tail.bytes[tail.bytes.len() - FOOTER_LEN..], u64::MAX).unwrap();
        assert_eq!(plain_len, sum + 1);
    }
}
