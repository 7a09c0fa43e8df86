//! BLAKE3 digests, and the merge of a large content's digest from pieces hashed in parallel.

use std::fmt;

use blake3::hazmat::{self, HasherExt, Mode};

/// A BLAKE3 digest, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`; equal to what `b3sum` prints for them.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest in 64 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// Reads 64 lower-case hexadecimal digits; anything else is `None`.
    pub fn from_hex(text: &str) -> Option<Self> {
        let strict = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let hash = strict.then(|| blake3::Hash::from_hex(text).ok()).flatten()?;
        Some(Self(*hash.as_bytes()))
    }

    /// The first 8 hexadecimal digits, for messages.
    pub fn short(&self) -> String {
        self.hex()[..8].to_owned()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// One piece of a content that is longer than a frame: a whole subtree of BLAKE3's tree.
#[derive(Clone, Copy)]
pub struct Piece([u8; 32]);

impl Piece {
    /// Hashes the piece of a content that begins at `offset`. Every piece but the last has the same
    /// power-of-two length, and `offset` is a multiple of it.
    pub fn of(bytes: &[u8], offset: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        Self(hasher.update(bytes).finalize_non_root())
    }
}

/// Joins pieces, in order, to the digest of the whole content (what `b3sum` prints for it).
///
/// Memory: 32 bytes for each bit of the number of pieces.
/// Source: the tree of BLAKE3, section 2.1 of its paper: a left subtree is always complete.
#[derive(Default)]
pub struct Joiner {
    stack: Vec<([u8; 32], u64)>,
}

impl Joiner {
    /// Adds the next piece.
    pub fn push(&mut self, piece: Piece) {
        // A complete pair merges only once something follows it: the last merge makes the root.
        while let [.., (left, m), (right, n)] = self.stack[..] {
            if m != n {
                break;
            }
            self.stack.truncate(self.stack.len() - 2);
            self.stack.push((hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash), m + n));
        }
        self.stack.push((piece.0, 1));
    }

    /// The digest of all pieces; `None` when there were fewer than two (such a content is hashed whole).
    pub fn finish(mut self) -> Option<Digest> {
        let (mut right, _) = self.stack.pop()?;
        while let Some((left, _)) = self.stack.pop() {
            if self.stack.is_empty() {
                let root = hazmat::merge_subtrees_root(&left, &right, Mode::Hash);
                return Some(Digest(*root.as_bytes()));
            }
            right = hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_pieces_equal_the_plain_digest() {
        let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        for len in [2049, 4096, 5000, 8192, 8193, 65536, 65537, 200_000] {
            let mut joiner = Joiner::default();
            for (n, piece) in bytes[..len].chunks(2048).enumerate() {
                joiner.push(Piece::of(piece, n as u64 * 2048));
            }
            assert_eq!(joiner.finish(), Some(Digest::of(&bytes[..len])), "{len}");
        }
    }

    #[test]
    fn hex_is_strict() {
        let digest = Digest::of(b"x");
        assert_eq!(Digest::from_hex(&digest.hex()), Some(digest));
        assert_eq!(Digest::from_hex(&digest.hex().to_uppercase()), None);
        assert_eq!(Digest::from_hex(&digest.hex()[1..]), None);
    }
}
