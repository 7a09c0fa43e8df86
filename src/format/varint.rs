//! Unsigned LEB128 and zigzag: the integers of the index.

use crate::error::{Error, Result};

/// Appends `value`, seven bits a byte, low bits first.
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "the low seven bits")]
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
    out.push(value as u8);
}

/// Appends a signed value, zigzag: 0, -1, 1, -2 … become 0, 1, 2, 3 …
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Reads values off a slice; every error says the bytes are damaged.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(short)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?[0])
    }

    /// The next varint; more than 64 bits or a needless trailing zero byte is an error, so each value has one encoding.
    pub fn u64(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 || shift > 0 && byte == 0 {
                return Err(Error::integrity("number out of range"));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::integrity("number out of range"))
    }

    /// The next varint as `u32`.
    pub fn u32(&mut self) -> Result<u32> {
        u32::try_from(self.u64()?).map_err(|_| Error::integrity("number out of range"))
    }

    /// The next varint as a length or count in memory, at most `max`.
    pub fn len_max(&mut self, max: usize) -> Result<usize> {
        let value = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        if value > max {
            return Err(Error::integrity(format!("length {value} above the limit {max}")));
        }
        Ok(value)
    }

    /// The next zigzag varint.
    pub fn i64(&mut self) -> Result<i64> {
        let value = self.u64()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Fails when something is left.
    pub fn finish(&self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(Error::integrity("trailing bytes")) }
    }
}

fn short() -> Error {
    Error::integrity("ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn round_trip(a: u64, b: i64) {
            let mut out = Vec::new();
            put(&mut out, a);
            put_signed(&mut out, b);
            let mut reader = Reader::new(&out);
            assert_eq!((reader.u64().unwrap(), reader.i64().unwrap()), (a, b));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn refuses_long_forms() {
        assert!(Reader::new(&[0x80, 0x00]).u64().is_err());
        assert!(Reader::new(&[0xff; 10]).u64().is_err());
    }
}
