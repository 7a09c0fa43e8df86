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
/// A directory is at most this long when plain: 4 million blocks, or 4 thousand million entries.
const DIRECTORY_LEN_MAX: u64 = 512 << 20;

/// What a block holds. A section with its critical bit set and a number a reader does not know makes it refuse the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Section {
    /// Entries, sorted by [`path::cmp_rows`].
    Entries = 0x81,
    /// Extents with content digests, in the order of the tree stream, then one for each named stream.
    Extents = 0x82,
    /// Frames, in the order they were stored.
    Frames = 0x83,
    /// Parts, in the order they were stored.
    Parts = 0x84,
    /// Places: where contents lie that are no run of their own.
    Places = 0x85,
    /// Inode numbers of files with content, sorted: how renamed files are found. A reader that only reads can do without.
    Inodes = 0x06,
    /// Chunks of long contents: what an increment compares with. A reader that only reads can do without.
    Chunks = 0x07,
}

impl Section {
    /// Its place in a table with one slot for each section.
    pub fn slot(self) -> usize {
        usize::from(self as u8 & 7)
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
    for info in &directory.blocks {
        plain.push(info.section as u8);
        put(&mut plain, u64::from(info.stored_len));
        put(&mut plain, u64::from(info.plain_len));
        put(&mut plain, u64::from(info.rows));
        put(&mut plain, info.first_extent);
        put(&mut plain, info.first_key.len() as u64);
        plain.extend_from_slice(&info.first_key);
        plain.extend_from_slice(&info.digest.0);
    }
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
    if tail_len > object_len || plain_len > DIRECTORY_LEN_MAX {
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
        let section = match reader.u8()? {
            0x81 => Section::Entries,
            0x82 => Section::Extents,
            0x83 => Section::Frames,
            0x84 => Section::Parts,
            0x85 => Section::Places,
            0x06 => Section::Inodes,
            0x07 => Section::Chunks,
            other if other & CRITICAL != 0 => {
                return Err(Error::integrity(format!("index section {other:#04x} needs a newer bk")));
            }
            other => return Err(Error::integrity(format!("unknown index section {other:#04x}"))),
        };
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
