//! The skippable frame that ends each zstd part: a seek table other tools know.
//!
//! Source: "Zstandard Seekable Format", version 0.1.0, in zstd's `contrib/seekable_format`.

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;

/// The seek table for frames of these (stored, plain) lengths, in order.
pub fn encode(frames: &[(u32, u32)]) -> Vec<u8> {
    let body_len = u32::try_from(frames.len() * 8 + 9).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(frames.len() * 8 + 17);
    out.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    out.extend_from_slice(&body_len.to_le_bytes());
    for (stored, plain) in frames {
        out.extend_from_slice(&stored.to_le_bytes());
        out.extend_from_slice(&plain.to_le_bytes());
    }
    let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_le_bytes());
    out.push(0);
    out.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
    out
}
