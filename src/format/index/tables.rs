//! Extents, frames and parts: small rows with one digest each. Places: the same without.

use crate::{
    error::{Error, Result},
    format::{
        codec::FRAME_LEN_MAX,
        layout::PART_COUNT_MAX,
        varint::{Reader, put, put_signed},
    },
    model::{digest::Digest, entry::Place},
};

/// Where the content of one file lies in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// 0 is the tree, 1… the named streams in the record's order.
    pub stream: u32,
    /// Offset in the plain stream.
    pub offset: u64,
    /// Length, bytes; never 0 in the tree.
    pub len: u64,
    /// BLAKE3 of the content (of a sparse file: of its data runs joined), what `b3sum` prints.
    pub digest: Digest,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// 0 is the tree, 1… the named streams.
    pub stream: u32,
    /// Offset of its content in the plain stream.
    pub offset: u64,
    /// Length of its content.
    pub len: u32,
    /// Which part holds it: a row of the parts section.
    pub part: u32,
    /// Where it begins in the part.
    pub stored_offset: u64,
    /// Length as stored.
    pub stored_len: u32,
    /// BLAKE3 of the stored bytes.
    pub digest: Digest,
    /// Whether its first byte begins a tar header (or a stream).
    pub starts_member: bool,
}

impl Frame {
    /// The first offset after its content.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// One part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// 0 is the tree, 1… the named streams.
    pub stream: u32,
    /// Its number within the stream, from 0.
    pub number: u32,
    /// Length of the object.
    pub stored_len: u64,
    /// Length of its content.
    pub plain_len: u64,
    /// How many frames it holds.
    pub frames: u32,
    /// Length of what follows the frames (the seek table), 0 for codecs other than zstd.
    pub trailer_len: u32,
    /// BLAKE3 of the digests of its frames, then of the trailer's bytes: all of the object.
    pub digest: Digest,
}

fn digest(reader: &mut Reader<'_>) -> Result<Digest> {
    Ok(Digest(reader.bytes(32)?.try_into().unwrap_or_default()))
}

fn put_digests<'a>(out: &mut Vec<u8>, digests: impl Iterator<Item = &'a Digest>) {
    for digest in digests {
        out.extend_from_slice(&digest.0);
    }
}

fn read_digests(reader: &mut Reader<'_>, rows: usize) -> Result<Vec<Digest>> {
    (0..rows).map(|_| digest(reader)).collect()
}

const OVERFLOW: &str = "offset out of range";

/// Rows of extents. An offset is kept as the distance from the end of the one before, in blocks of 512 past its padding.
pub fn encode_extents(rows: &[Extent]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * 36);
    let (mut stream, mut end) = (0, 0u64);
    for (n, row) in rows.iter().enumerate() {
        if n == 0 || row.stream != stream {
            (stream, end) = (row.stream, 0);
        }
        put(&mut out, u64::from(row.stream));
        let gap = row.offset - end;
        let padding = end.next_multiple_of(512) - end;
        // An even number is a gap of whole blocks after the padding, an odd one any other gap.
        match gap.checked_sub(padding) {
            Some(rest) if rest % 512 == 0 => put(&mut out, rest / 512 * 2),
            _ => put(&mut out, gap * 2 + 1),
        }
        put(&mut out, row.len);
        end = row.offset + row.len;
    }
    put_digests(&mut out, rows.iter().map(|row| &row.digest));
    out
}

/// Reads what [`encode_extents`] wrote.
pub fn decode_extents(plain: &[u8], rows: usize) -> Result<Vec<Extent>> {
    let mut reader = Reader::new(plain);
    if rows > plain.len() / 32 {
        return Err(Error::integrity("fewer rows than the directory says"));
    }
    let mut out: Vec<Extent> = Vec::with_capacity(rows);
    let (mut stream, mut end) = (0, 0u64);
    for n in 0..rows {
        let own = reader.u32()?;
        if n == 0 || own != stream {
            (stream, end) = (own, 0);
        }
        let code = reader.u64()?;
        let gap = if code % 2 == 0 {
            (code / 2).checked_mul(512).and_then(|g| g.checked_add(end.checked_next_multiple_of(512)? - end))
        } else {
            Some(code / 2)
        };
        let len = reader.u64()?;
        let offset = gap.and_then(|g| end.checked_add(g)).ok_or_else(|| Error::integrity(OVERFLOW))?;
        end =
            offset.checked_add(len).filter(|&e| i64::try_from(e).is_ok()).ok_or_else(|| Error::integrity(OVERFLOW))?;
        out.push(Extent { stream, offset, len, digest: Digest([0; 32]) });
    }
    for (row, digest) in out.iter_mut().zip(read_digests(&mut reader, rows)?) {
        row.digest = digest;
    }
    reader.finish()?;
    Ok(out)
}

/// Rows of frames; offsets follow from the lengths, the first of a block is written whole.
pub fn encode_frames(rows: &[Frame]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * 42);
    for row in rows {
        put(&mut out, u64::from(row.stream) * 2 + u64::from(row.starts_member));
        put(&mut out, row.offset);
        put(&mut out, u64::from(row.len));
        put(&mut out, u64::from(row.part));
        put(&mut out, row.stored_offset);
        put(&mut out, u64::from(row.stored_len));
    }
    put_digests(&mut out, rows.iter().map(|row| &row.digest));
    out
}

/// Reads what [`encode_frames`] wrote.
pub fn decode_frames(plain: &[u8], rows: usize) -> Result<Vec<Frame>> {
    let mut reader = Reader::new(plain);
    if rows > plain.len() / 38 {
        return Err(Error::integrity("fewer rows than the directory says"));
    }
    let mut out: Vec<Frame> = Vec::with_capacity(rows);
    for _ in 0..rows {
        let code = reader.u64()?;
        let row = Frame {
            stream: u32::try_from(code / 2).map_err(|_| Error::integrity(OVERFLOW))?,
            offset: reader.u64()?,
            len: reader.u32()?,
            part: reader.u32()?,
            stored_offset: reader.u64()?,
            stored_len: reader.u32()?,
            digest: Digest([0; 32]),
            starts_member: code % 2 == 1,
        };
        let sane = u64::from(row.len) <= FRAME_LEN_MAX
            && u64::from(row.stored_len) <= 2 * FRAME_LEN_MAX
            && row.offset <= i64::MAX as u64
            && row.stored_offset <= i64::MAX as u64;
        let follows = out
            .last()
            .is_none_or(|last| last.stream < row.stream || last.stream == row.stream && last.end() == row.offset);
        if !sane || !follows {
            return Err(Error::integrity("frames are not in order"));
        }
        out.push(row);
    }
    for (row, digest) in out.iter_mut().zip(read_digests(&mut reader, rows)?) {
        row.digest = digest;
    }
    reader.finish()?;
    Ok(out)
}

/// Rows of parts.
pub fn encode_parts(rows: &[Part]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * 50);
    for row in rows {
        put(&mut out, u64::from(row.stream));
        put(&mut out, u64::from(row.number));
        put(&mut out, row.stored_len);
        put(&mut out, row.plain_len);
        put(&mut out, u64::from(row.frames));
        put(&mut out, u64::from(row.trailer_len));
        out.extend_from_slice(&row.digest.0);
    }
    out
}

/// Reads what [`encode_parts`] wrote.
pub fn decode_parts(plain: &[u8], rows: usize) -> Result<Vec<Part>> {
    let mut reader = Reader::new(plain);
    if rows > plain.len() / 38 {
        return Err(Error::integrity("fewer rows than the directory says"));
    }
    let mut out: Vec<Part> = Vec::with_capacity(rows);
    for _ in 0..rows {
        let row = Part {
            stream: reader.u32()?,
            number: reader.u32()?,
            stored_len: reader.u64()?,
            plain_len: reader.u64()?,
            frames: reader.u32()?,
            trailer_len: reader.u32()?,
            digest: digest(&mut reader)?,
        };
        if row.number >= PART_COUNT_MAX || row.stored_len > i64::MAX as u64 || row.plain_len > i64::MAX as u64 {
            return Err(Error::integrity("a part out of range"));
        }
        out.push(row);
    }
    reader.finish()?;
    Ok(out)
}

/// Rows of places. An offset is kept as the distance from the end of the place before when that is of the same stream.
pub fn encode_places(rows: &[Place]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * 8);
    let mut last = Place { seq: 0, stream: 0, offset: 0, len: 0 };
    for row in rows {
        put(&mut out, row.seq);
        put(&mut out, u64::from(row.stream));
        let same = (row.seq, row.stream) == (last.seq, last.stream);
        let end = if same { last.offset + last.len } else { 0 };
        put_signed(&mut out, row.offset.wrapping_sub(end).cast_signed());
        put(&mut out, row.len);
        last = *row;
    }
    out
}

/// Reads what [`encode_places`] wrote.
pub fn decode_places(plain: &[u8], rows: usize) -> Result<Vec<Place>> {
    let mut reader = Reader::new(plain);
    if rows > plain.len() / 4 {
        return Err(Error::integrity("fewer rows than the directory says"));
    }
    let mut out: Vec<Place> = Vec::with_capacity(rows);
    let mut last = Place { seq: 0, stream: 0, offset: 0, len: 0 };
    for _ in 0..rows {
        let (seq, stream) = (reader.u64()?, reader.u32()?);
        let same = (seq, stream) == (last.seq, last.stream);
        let end = if same { last.offset + last.len } else { 0 };
        let offset = end.wrapping_add(reader.i64()?.cast_unsigned());
        let len = reader.u64()?;
        let end = offset.checked_add(len).filter(|&end| len > 0 && i64::try_from(end).is_ok());
        if end.is_none() {
            return Err(Error::integrity(OVERFLOW));
        }
        last = Place { seq, stream, offset, len };
        out.push(last);
    }
    reader.finish()?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_round_trip() {
        let digest = Digest::of(b"x");
        let extents: Vec<_> = [(0, 512, 3), (0, 1024, 600), (0, 5000, 1), (1, 0, 9)]
            .map(|(stream, offset, len)| Extent { stream, offset, len, digest })
            .to_vec();
        assert_eq!(decode_extents(&encode_extents(&extents), 4).unwrap(), extents);
        let frames: Vec<_> = [(0, 0, 10), (0, 10, 4), (1, 0, 9)]
            .map(|(stream, offset, len)| Frame {
                stream,
                offset,
                len,
                part: 2,
                stored_offset: 7,
                stored_len: 3,
                digest,
                starts_member: stream == 0,
            })
            .to_vec();
        assert_eq!(decode_frames(&encode_frames(&frames), 3).unwrap(), frames);
        let parts = vec![Part { stream: 1, number: 2, stored_len: 3, plain_len: 4, frames: 5, trailer_len: 6, digest }];
        assert_eq!(decode_parts(&encode_parts(&parts), 1).unwrap(), parts);
        assert!(decode_parts(&encode_parts(&parts), 2).is_err());
        let places: Vec<_> = [(0, 0, 7, 3), (0, 0, 10, 3), (4, 0, 2, 9), (4, 1, 2, 9), (4, 1, 0, 1)]
            .map(|(seq, stream, offset, len)| Place { seq, stream, offset, len })
            .to_vec();
        assert_eq!(decode_places(&encode_places(&places), 5).unwrap(), places);
        assert!(decode_places(&encode_places(&[Place { seq: 0, stream: 0, offset: 5, len: 0 }]), 1).is_err());
    }
}
