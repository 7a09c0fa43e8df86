//! The index of a snapshot: sorted entries, extents, places, frames and parts, and the traces that increments follow, in small blocks
//! each with its own digest.
//!
//! An index object is blocks one after another, then the directory of all blocks, then a footer of fixed length. The
//! snapshot's record holds the digest of directory and footer, the directory that of each block: a reader fetches the
//! tail and then just the blocks it needs, and every byte is checked before it is decoded. Rows of all sections are
//! written as the snapshot goes, so nothing is kept in memory but the directory (about 100 bytes for 1024 entries).

mod block;
mod directory;
mod entries;
mod tables;
mod trace;

pub use block::{BLOCK_PLAIN_LEN_MAX, open as open_block, seal as seal_block};
pub use directory::{
    BlockInfo, DIRECTORY_LEN_MAX, Directory, FOOTER_LEN, SECTION_SLOTS, Section, Tail, decode_footer, decode_tail,
    encode_tail,
};
pub use entries::{DAMAGED_COUNT_MAX, ROW_COUNT_MAX, decode as decode_entries, encode as encode_entries};
pub use tables::{
    Extent, Frame, Part, decode_extents, decode_frames, decode_parts, decode_places, encode_extents, encode_frames,
    encode_parts, encode_places,
};
pub use trace::{
    Chunk, ChunkId, ChunkRun, Inode, chunk_key, decode_chunks, decode_inodes, encode_chunks, encode_inodes, inode_key,
};
