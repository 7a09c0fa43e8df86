//! What an increment needs of its base besides the entries: inode numbers, to find renamed files, and the chunks of long contents.

use crate::{
    error::{Error, Result},
    format::varint::{Reader, put, put_signed},
    model::path,
};

/// A file with content, by its inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inode {
    /// The file system's id.
    pub fsid: u64,
    /// The inode number.
    pub ino: u64,
    /// The row of its entry in the section of entries.
    pub row: u64,
}

/// The key of a block of inodes: file system and number of its first row, big endian.
pub fn inode_key(fsid: u64, ino: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&fsid.to_be_bytes());
    key[8..].copy_from_slice(&ino.to_be_bytes());
    key
}

/// Rows of inodes, sorted: each as differences from the one before.
pub fn encode_inodes(rows: &[Inode]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * 4);
    let mut last = Inode { fsid: 0, ino: 0, row: 0 };
    for row in rows {
        put(&mut out, row.fsid - last.fsid);
        put(&mut out, if row.fsid == last.fsid { row.ino - last.ino } else { row.ino });
        put_signed(&mut out, row.row.wrapping_sub(last.row).cast_signed());
        last = *row;
    }
    out
}

/// Reads what [`encode_inodes`] wrote.
pub fn decode_inodes(plain: &[u8], rows: usize) -> Result<Vec<Inode>> {
    let mut reader = Reader::new(plain);
    if rows > plain.len() / 3 {
        return Err(Error::integrity("fewer rows than the directory says"));
    }
    let mut out: Vec<Inode> = Vec::with_capacity(rows);
    let mut last = Inode { fsid: 0, ino: 0, row: 0 };
    for _ in 0..rows {
        let gap = reader.u64()?;
        let ino = reader.u64()?;
        let next = last.fsid.checked_add(gap).and_then(|fsid| {
            let ino = if gap == 0 { last.ino.checked_add(ino)? } else { ino };
            Some(Inode { fsid, ino, row: 0 })
        });
        let mut next = next.ok_or_else(|| Error::integrity("inodes are not in order"))?;
        next.row = last.row.wrapping_add(reader.i64()?.cast_unsigned());
        out.push(next);
        last = next;
    }
    reader.finish()?;
    Ok(out)
}

/// What a chunk is known by.
pub type ChunkId = [u8; 16];

/// A run of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its length, bytes.
    pub len: u32,
    /// Its identity.
    pub id: ChunkId,
}

/// Chunks of one content that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkRun {
    /// 0 is the tree, 1… the named streams.
    pub stream: u32,
    /// The file; empty for a stream.
    pub path: Vec<u8>,
    /// The chunks.
    pub chunks: Vec<Chunk>,
}

/// The key of a block of chunks: stream, big endian, then path.
pub fn chunk_key(stream: u32, path: &[u8]) -> Vec<u8> {
    [&stream.to_be_bytes()[..], path].concat()
}

/// Runs of chunks: for each stream, path, count and lengths, then its identities.
pub fn encode_chunks(runs: &[ChunkRun]) -> Vec<u8> {
    let mut out = Vec::new();
    for run in runs {
        put(&mut out, u64::from(run.stream));
        put(&mut out, run.path.len() as u64);
        out.extend_from_slice(&run.path);
        put(&mut out, run.chunks.len() as u64);
        run.chunks.iter().for_each(|chunk| put(&mut out, u64::from(chunk.len)));
        run.chunks.iter().for_each(|chunk| out.extend_from_slice(&chunk.id));
    }
    out
}

/// Reads what [`encode_chunks`] wrote: `rows` chunks in all.
pub fn decode_chunks(plain: &[u8], rows: usize) -> Result<Vec<ChunkRun>> {
    let mut reader = Reader::new(plain);
    let mut out = Vec::new();
    let mut left = rows;
    while !reader.is_empty() {
        let stream = reader.u32()?;
        let len = reader.len_max(path::PATH_LEN_MAX)?;
        let path = reader.bytes(len)?.to_vec();
        let count = reader.len_max(left.min(reader.len() / 17))?;
        if count == 0 || !path::is_valid(&path) {
            return Err(Error::integrity("a run of chunks out of range"));
        }
        left -= count;
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            chunks.push(Chunk { len: reader.u32()?, id: [0; 16] });
        }
        for chunk in &mut chunks {
            chunk.id = reader.bytes(16)?.try_into().unwrap_or_default();
        }
        out.push(ChunkRun { stream, path, chunks });
    }
    if left != 0 {
        return Err(Error::integrity("fewer rows than the directory says"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn inodes_round_trip(rows in proptest::collection::vec((0u64..3, any::<u64>(), any::<u64>()), 0..50)) {
            let mut rows: Vec<Inode> = rows.into_iter().map(|(fsid, ino, row)| Inode { fsid, ino, row }).collect();
            rows.sort();
            prop_assert_eq!(decode_inodes(&encode_inodes(&rows), rows.len()).unwrap(), rows);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), rows in 0usize..40) {
            let _ = decode_inodes(&bytes, rows);
            let _ = decode_chunks(&bytes, rows);
        }
    }

    #[test]
    fn chunks_round_trip() {
        let chunk = |n: u8| Chunk { len: u32::from(n) * 1000, id: [n; 16] };
        let run = |stream, path: &str, n: u8| ChunkRun {
            stream,
            path: path.as_bytes().to_vec(),
            chunks: (1..=n).map(chunk).collect(),
        };
        let runs = vec![run(0, "a/b", 3), run(0, "c", 1), run(1, "", 2)];
        assert_eq!(decode_chunks(&encode_chunks(&runs), 6).unwrap(), runs);
        assert!(decode_chunks(&encode_chunks(&runs), 5).is_err());
        assert!(decode_chunks(&encode_chunks(&runs), 7).is_err());
    }
}
