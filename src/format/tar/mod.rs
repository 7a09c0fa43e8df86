//! Tar members: headers from entries and back.
//!
//! Own code because the tar crate's builder writes no xattrs, no nanoseconds and no PAX sparse members, and makes broken
//! archives when a file changes while it is read. What is written: ustar headers, PAX extended headers (type `x`) before those that need
//! one, GNU sparse 1.0. What is read: the same, and nothing else; anything doubtful is an error, never skipped.

mod acl;
pub mod read;
pub mod write;

/// Everything in tar is a multiple of this.
pub const BLOCK_LEN: usize = 512;
/// PAX extended headers stay below this, bytes: bsdtar refuses those above 1 MiB.
pub const PAX_LEN_MAX: usize = 512 << 10;
/// A sparse file has at most this many data runs; smaller holes are stored as zeros to stay below.
pub const SPARSE_RUN_COUNT_MAX: usize = 16_384;
/// Members below this directory are bk's own (`.bk/incomplete`): notes for who restores without bk.
pub const PRIVATE_DIR: &[u8] = b".bk";

/// The path of an increment's `n`-th delta.
pub fn delta_path(n: u64) -> Vec<u8> {
    format!(".bk/delta/{n:08}").into_bytes()
}

/// `len` rounded up to whole blocks.
pub fn padded(len: u64) -> u64 {
    len.next_multiple_of(BLOCK_LEN as u64)
}

/// Two zero blocks end an archive.
pub const END_LEN: usize = 2 * BLOCK_LEN;

const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const MTIME: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..265;
const USTAR_MAGIC: &[u8; 8] = b"ustar\x0000";
/// Of GNU tar's own types: it takes the list of a directory's names only with this.
const GNU_MAGIC: &[u8; 8] = b"ustar  \0";
const DEV_MAJOR: std::ops::Range<usize> = 329..337;
const DEV_MINOR: std::ops::Range<usize> = 337..345;
const PREFIX: std::ops::Range<usize> = 345..500;

fn checksum(block: &[u8]) -> u32 {
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    let field: u32 = block[CHECKSUM].iter().map(|&b| u32::from(b)).sum();
    sum - field + 8 * u32::from(b' ')
}
