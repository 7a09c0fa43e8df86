//! A block: its rows in columns, compressed with zstd, hashed as stored.

use crate::{
    error::{Error, Result},
    model::digest::Digest,
};

/// A block's plain length is at most this; writers close a block long before (a row holds at most one
/// sparse map, one list of damage and 64 KiB attributes).
pub const BLOCK_PLAIN_LEN_MAX: usize = 4 << 20;

/// zstd level of index blocks: small inputs, read often.
const LEVEL: i32 = 9;

/// The stored form of a block.
pub fn seal(plain: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
    zstd_safe::compress(&mut out, plain, LEVEL)
        .map_err(|code| Error::integrity(format!("zstd: {}", zstd_safe::get_error_name(code))))?;
    Ok(out)
}

/// The plain form of a stored block, whose digest is checked before the decoder sees it.
pub fn open(stored: &[u8], plain_len: usize, digest: &Digest) -> Result<Vec<u8>> {
    let read = Digest::of(stored);
    if read != *digest {
        return Err(Error::integrity(format!("digest differs (stored {}…, read {}…)", digest.short(), read.short())));
    }
    if plain_len > BLOCK_PLAIN_LEN_MAX {
        return Err(Error::integrity(format!("a block of {plain_len} bytes is above the limit")));
    }
    let mut out = Vec::with_capacity(plain_len);
    zstd_safe::decompress(&mut out, stored)
        .map_err(|code| Error::integrity(format!("zstd: {}", zstd_safe::get_error_name(code))))?;
    if out.len() != plain_len {
        return Err(Error::integrity(format!("decodes to {} bytes, not {plain_len}", out.len())));
    }
    Ok(out)
}
