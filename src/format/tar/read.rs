//! Tar headers to entries, strictly: what bk would not have written is an error, never skipped.

use std::io::Read;

use super::{
    BLOCK_LEN, CHECKSUM, DEV_MAJOR, DEV_MINOR, GID, GNU_MAGIC, LINK, MAGIC, MODE, MTIME, NAME, PAX_LEN_MAX, PREFIX,
    SIZE, SPARSE_RUN_COUNT_MAX, TYPE, UID, USTAR_MAGIC, padded,
};
use crate::{
    error::{Error, Result},
    model::{
        entry::{Entry, EntryKind, Run},
        path, show,
        time::Time,
    },
};

/// A directory's list of names in an increment is at most this long, bytes.
const DUMPDIR_LEN_MAX: u64 = 4 << 30;

/// Reads members one after another from plain tar bytes.
pub struct TarReader<R> {
    input: R,
    offset: u64,
    /// Content and padding of the member returned last, not read yet.
    pending: u64,
    padding: u64,
}

/// A member: what its headers say. Inode, ctime and status are not in tar and stay at their defaults.
#[derive(Debug)]
pub struct Member {
    /// The entry; `stored_len` is the length of the content that follows.
    pub entry: Entry,
    /// Where its first header begins in the stream.
    pub offset: u64,
    /// Where its content begins in the stream.
    pub data_offset: u64,
}

fn bad(what: impl Into<String>) -> Error {
    Error::integrity(what)
}

impl<R: Read> TarReader<R> {
    /// Reads from `input`, whose first byte has this `offset` in its stream and begins a header.
    pub fn new(input: R, offset: u64) -> Self {
        Self { input, offset, pending: 0, padding: 0 }
    }

    /// Where the next byte read lies in the stream.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next member; `None` after the two zero blocks, or where the input ends between members.
    pub fn next_member(&mut self) -> Result<Option<Member>> {
        self.skip_rest()?;
        let offset = self.offset;
        let mut block = [0; BLOCK_LEN];
        if !self.block(&mut block)? {
            return Ok(None);
        }
        let mut pax = Pax::default();
        if block == [0; BLOCK_LEN] {
            let ended = self.block(&mut block)? && block == [0; BLOCK_LEN] && !self.block(&mut block)?;
            return if ended { Ok(None) } else { Err(bad(format!("broken end of archive at {offset}"))) };
        }
        check_block(&block).map_err(|e| e.context(format!("tar header at {offset}")))?;
        if block[TYPE] == b'x' {
            let len = usize::try_from(octal(&block[SIZE])?).unwrap_or(usize::MAX);
            if len > PAX_LEN_MAX + BLOCK_LEN {
                return Err(bad(format!("PAX header of {len} bytes at {offset} is above the limit")));
            }
            let mut body = vec![0; len.next_multiple_of(BLOCK_LEN)];
            self.exact(&mut body)?;
            if body[len..].iter().any(|&b| b != 0) {
                return Err(bad(format!("PAX padding at {offset} is not zero")));
            }
            pax = Pax::parse(&body[..len]).map_err(|e| e.context(format!("PAX header at {offset}")))?;
            if !self.block(&mut block)? {
                return Err(bad(format!("PAX header at {offset} without its member")));
            }
            check_block(&block).map_err(|e| e.context(format!("tar header after {offset}")))?;
        }
        let entry = self.entry(&block, pax).map_err(|e| e.context(format!("tar member at {offset}")))?;
        Ok(Some(Member { entry, offset, data_offset: self.offset }))
    }

    /// Reads the next bytes of the member's content; 0 at its end.
    pub fn read_data(&mut self, buf: &mut [u8]) -> Result<usize> {
        let want = usize::try_from(self.pending).unwrap_or(usize::MAX).min(buf.len());
        self.exact(&mut buf[..want])?;
        self.pending -= want as u64;
        Ok(want)
    }

    /// Passes over what is left of the member; its padding must be zeros.
    pub fn skip_rest(&mut self) -> Result<()> {
        if self.pending > 0 {
            let mut buf = vec![0; 64 << 10];
            while self.pending > 0 {
                self.read_data(&mut buf)?;
            }
        }
        let mut padding = [0; BLOCK_LEN];
        let padding = &mut padding[..usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0)];
        self.exact(padding)?;
        if padding.iter().any(|&b| b != 0) {
            return Err(bad(format!("padding before {} is not zero", self.offset)));
        }
        Ok(())
    }

    fn entry(&mut self, block: &[u8; BLOCK_LEN], pax: Pax) -> Result<Entry> {
        let kind = match block[TYPE] {
            b'0' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' | b'D' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            other => return Err(bad(format!("unknown member type {other:#04x}"))),
        };
        let mut name = pax.path.unwrap_or_else(|| ustar_name(block));
        if let Some(sparse_name) = pax.sparse_name {
            name = sparse_name;
        }
        if kind == EntryKind::Dir {
            name =
                name.strip_suffix(b"/").map(<[u8]>::to_vec).ok_or_else(|| bad("a directory's name without a slash"))?;
        }
        if name == b"." && kind == EntryKind::Dir {
            name.clear();
        } else if name.is_empty() || !path::is_valid(&name) {
            return Err(bad(format!("not a path bk writes: `{}`", show::name(&name))));
        }
        let mut entry = Entry::new(name, kind);
        entry.mode = narrow(octal(&block[MODE])?)?;
        entry.uid = narrow(pax.uid.map_or_else(|| octal(&block[UID]), Ok)?)?;
        entry.gid = narrow(pax.gid.map_or_else(|| octal(&block[GID]), Ok)?)?;
        let size = pax.size.map_or_else(|| octal(&block[SIZE]), Ok)?;
        let sec = i64::try_from(octal(&block[MTIME])?).map_err(|_| bad("time out of range"))?;
        entry.mtime = pax.mtime.unwrap_or(Time { sec, nsec: 0 });
        entry.rdev = (narrow(octal(&block[DEV_MAJOR])?)?, narrow(octal(&block[DEV_MINOR])?)?);
        entry.link = pax.linkpath.unwrap_or_else(|| until_nul(&block[LINK]).to_vec());
        entry.xattrs = pax.xattrs;
        let has_list = block[TYPE] == b'D';
        if kind != EntryKind::File && size != 0 && !has_list {
            return Err(bad(format!("a member without content has size {size}")));
        }
        if i64::try_from(size).is_err() {
            return Err(bad(format!("size {size} out of range")));
        }
        if has_list {
            if size > DUMPDIR_LEN_MAX {
                return Err(bad(format!("a directory's list of {size} bytes is above the limit")));
            }
            self.pending = size;
            self.padding = padded(size) - size;
            return Ok(entry);
        }
        entry.size = size;
        entry.stored_len = size;
        self.pending = size;
        self.padding = padded(size) - size;
        if let Some(real_size) = pax.sparse_size {
            let (runs, map_len) = self.sparse_map(size, real_size)?;
            entry.stored_len = size - map_len;
            self.pending = entry.stored_len;
            if runs.iter().map(|r| r.len).sum::<u64>() != entry.stored_len {
                return Err(bad("the sparse map does not add up"));
            }
            entry.sparse = Some(runs);
            entry.size = real_size;
        }
        Ok(entry)
    }

    fn sparse_map(&mut self, size: u64, real_size: u64) -> Result<(Vec<Run>, u64)> {
        let mut text = Vec::new();
        let mut at = 0;
        let mut number = |this: &mut Self| -> Result<u64> {
            loop {
                if let Some(len) = text[at..].iter().position(|&b| b == b'\n') {
                    let digits = std::str::from_utf8(&text[at..at + len]).unwrap_or("");
                    at += len + 1;
                    return decimal(digits.as_bytes());
                }
                if text.len() - at > 20 || (text.len() + BLOCK_LEN) as u64 > size {
                    return Err(bad("broken sparse map"));
                }
                let mut block = [0; BLOCK_LEN];
                this.exact(&mut block)?;
                text.extend_from_slice(&block);
            }
        };
        let count = number(self)?;
        if count > SPARSE_RUN_COUNT_MAX as u64 + 1 {
            return Err(bad(format!("{count} sparse runs are above the limit")));
        }
        let mut runs = Vec::new();
        let mut end = 0;
        for n in 0..count {
            let run = Run { offset: number(self)?, len: number(self)? };
            if run.offset < end || run.end() > real_size || (n > 0 && run.offset == end && run.len > 0) {
                return Err(bad("sparse runs overlap or pass the end"));
            }
            end = run.end();
            if run.len > 0 {
                runs.push(run);
            } else if n + 1 != count || run.offset != real_size {
                return Err(bad("an empty sparse run"));
            }
        }
        if text[at..].iter().any(|&b| b != 0) {
            return Err(bad("sparse map padding is not zero"));
        }
        Ok((runs, text.len() as u64))
    }

    /// Reads one block; false when the input ended before it.
    fn block(&mut self, block: &mut [u8; BLOCK_LEN]) -> Result<bool> {
        let mut done = 0;
        while done < BLOCK_LEN {
            match self.input.read(&mut block[done..]) {
                Ok(0) if done == 0 => return Ok(false),
                Ok(0) => return Err(bad("the archive ends inside a block")),
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("cannot read the archive", e)),
            }
        }
        self.offset += BLOCK_LEN as u64;
        Ok(true)
    }

    fn exact(&mut self, buf: &mut [u8]) -> Result<()> {
        self.input.read_exact(buf).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => bad("the archive ends inside a member"),
            _ => Error::io("cannot read the archive", e),
        })?;
        self.offset += buf.len() as u64;
        Ok(())
    }
}

fn check_block(block: &[u8; BLOCK_LEN]) -> Result<()> {
    let magic = if block[TYPE] == b'D' { GNU_MAGIC } else { USTAR_MAGIC };
    if &block[MAGIC] != magic {
        return Err(bad("not a ustar header"));
    }
    let field = &block[CHECKSUM];
    let stored = octal(&field[..7])?;
    if field[7] != b' ' || stored != u64::from(super::checksum(block)) {
        return Err(bad("header checksum differs"));
    }
    Ok(())
}

/// An octal field: digits up to a NUL at its end; all NUL is 0.
fn octal(field: &[u8]) -> Result<u64> {
    let (digits, end) = field.split_at(field.len() - 1);
    if end != [0] {
        return Err(bad("number field without its end"));
    }
    if digits.iter().all(|&b| b == 0) {
        return Ok(0);
    }
    digits.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'7' => Ok(value << 3 | u64::from(digit - b'0')),
        _ => Err(bad("not an octal number")),
    })
}

fn decimal(digits: &[u8]) -> Result<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits[0] != b'0');
    let text = std::str::from_utf8(digits).unwrap_or("");
    plain.then(|| text.parse().ok()).flatten().ok_or_else(|| bad(format!("not a number: `{}`", show::name(digits))))
}

fn narrow(value: u64) -> Result<u32> {
    u32::try_from(value).map_err(|_| bad("number out of range"))
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or(field)
}

fn ustar_name(block: &[u8; BLOCK_LEN]) -> Vec<u8> {
    let (prefix, name) = (until_nul(&block[PREFIX]), until_nul(&block[NAME]));
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// What a PAX header says.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    linkpath: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    fn parse(mut body: &[u8]) -> Result<Self> {
        let mut pax = Self::default();
        let mut seen: Vec<&[u8]> = Vec::new();
        let mut sparse_version = 0;
        while !body.is_empty() {
            let space = body.iter().take(8).position(|&b| b == b' ').ok_or_else(|| bad("record without length"))?;
            let len = usize::try_from(decimal(&body[..space])?).unwrap_or(usize::MAX);
            let (record, rest) = body.split_at_checked(len).ok_or_else(|| bad("record too long"))?;
            body = rest;
            let text =
                record.get(space + 1..).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(|| bad("broken record"))?;
            let at = text.iter().position(|&b| b == b'=').ok_or_else(|| bad("record without `=`"))?;
            let (key, value) = (&text[..at], &text[at + 1..]);
            if seen.contains(&key) {
                return Err(bad(format!("key `{}` twice", show::name(key))));
            }
            seen.push(key);
            match key {
                b"path" => pax.path = Some(no_nul(value)?),
                b"linkpath" => pax.linkpath = Some(no_nul(value)?),
                b"size" => pax.size = Some(decimal(value)?),
                b"uid" => pax.uid = Some(decimal(value)?),
                b"gid" => pax.gid = Some(decimal(value)?),
                b"mtime" => pax.mtime = Some(pax_time(value)?),
                b"hdrcharset" if value == b"BINARY" => {}
                b"GNU.sparse.major" if value == b"1" => sparse_version += 1,
                b"GNU.sparse.minor" if value == b"0" => sparse_version += 1,
                b"GNU.sparse.name" => pax.sparse_name = Some(no_nul(value)?),
                b"GNU.sparse.realsize" => {
                    pax.sparse_size = Some(decimal(value)?).filter(|&size| i64::try_from(size).is_ok());
                }
                b"SCHILY.acl.access" | b"SCHILY.acl.default" | b"GNU.dumpdir" => {}
                _ => match key.strip_prefix(b"SCHILY.xattr.") {
                    Some(name) => pax.xattrs.push((unescape(name)?, value.to_vec())),
                    None => return Err(bad(format!("unknown key `{}`", show::name(key)))),
                },
            }
        }
        let sparse = [pax.sparse_name.is_some(), pax.sparse_size.is_some(), sparse_version == 2];
        if sparse.iter().any(|&x| x) && (!sparse.iter().all(|&x| x) || pax.path.is_some()) {
            return Err(bad("sparse keys are not the four of version 1.0"));
        }
        Ok(pax)
    }
}

fn no_nul(value: &[u8]) -> Result<Vec<u8>> {
    if value.contains(&0) || value.is_empty() { Err(bad("empty name, or NUL in it")) } else { Ok(value.to_vec()) }
}

fn unescape(name: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let (code, tail) = rest.split_at_checked(2).ok_or_else(|| bad("broken escape"))?;
            out.push(match code {
                b"25" => b'%',
                b"3D" => b'=',
                _ => return Err(bad("unknown escape")),
            });
            rest = tail;
        } else {
            out.push(byte);
        }
    }
    Ok(out)
}

fn pax_time(value: &[u8]) -> Result<Time> {
    let (negative, rest) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let (whole, fraction) = match rest.iter().position(|&b| b == b'.') {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, &b""[..]),
    };
    let sec = i64::try_from(decimal(whole)?).map_err(|_| bad("time out of range"))?;
    if fraction.len() > 9 || !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad("broken time"));
    }
    let nsec = fraction.iter().chain(std::iter::repeat(&b'0')).take(9).fold(0, |n, &d| n * 10 + u32::from(d - b'0'));
    Ok(match (negative, nsec) {
        (false, _) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec: 0 },
        (true, _) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

#[cfg(test)]
mod tests {
    use super::{super::write, *};
    use proptest::prelude::*;

    fn round(entry: &Entry) -> Entry {
        let mut bytes = Vec::new();
        write::header(entry, &mut bytes);
        assert_eq!(bytes.len() % BLOCK_LEN, 0);
        bytes.resize(bytes.len() + usize::try_from(padded(entry.stored_len)).unwrap(), 0);
        bytes.resize(bytes.len() + super::super::END_LEN, 0);
        let mut reader = TarReader::new(&bytes[..], 0);
        let member = reader.next_member().unwrap().unwrap();
        assert!(reader.next_member().unwrap().is_none());
        member.entry
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>().prop_filter("", |b| !matches!(b, 0 | b'/')), 1..255)
            .prop_filter("dots", |name| name != b"." && name != b"..")
    }

    proptest! {
        #[test]
        fn entries_round_trip(
            names in proptest::collection::vec(name(), 1..8), sec in -10_000_000_000i64..100_000_000_000, nsec in 0u32..1_000_000_000,
            uid: u32, gid: u32, mode in 0u32..0o10000, kind in 0u8..7, link in proptest::collection::vec(1u8.., 1..300),
            lens in proptest::collection::vec((0u64..9000, 1u64..9000), 0..5), sparse: bool, tail in 0u64..9000,
            xattr in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut entry = Entry::new(names.join(&b'/'), EntryKind::from_u8(kind).unwrap());
            (entry.mode, entry.uid, entry.gid, entry.mtime) = (mode, uid, gid, Time { sec, nsec });
            if matches!(entry.kind, EntryKind::Symlink | EntryKind::HardLink) {
                entry.link = link;
            }
            if entry.kind != EntryKind::HardLink {
                entry.xattrs = vec![(b"user.a=%b".to_vec(), xattr)];
            }
            if entry.kind == EntryKind::File {
                let mut at = 0;
                let runs: Vec<Run> = lens.iter().map(|&(gap, len)| {
                    let run = Run { offset: at + gap + u64::from(at > 0), len };
                    at = run.end();
                    run
                }).collect();
                entry.stored_len = runs.iter().map(|r| r.len).sum();
                entry.size = entry.stored_len;
                if sparse {
                    entry.size = at + tail;
                    entry.sparse = Some(runs);
                }
            }
            prop_assert_eq!(round(&entry), entry);
        }

        #[test]
        fn damaged_headers_never_panic(at in 0usize..2048, bit in 0u8..8) {
            let mut entry = Entry::new(vec![b'x'; 200], EntryKind::File);
            entry.size = 1 << 40;
            entry.sparse = Some(vec![Run { offset: 4096, len: 5 }]);
            entry.stored_len = 5;
            let mut bytes = Vec::new();
            write::header(&entry, &mut bytes);
            bytes.resize(bytes.len() + 512 + 1024, 0);
            if at < bytes.len() {
                bytes[at] ^= 1 << bit;
            }
            let mut reader = TarReader::new(&bytes[..], 0);
            while let Ok(Some(_)) = reader.next_member() {}
        }
    }

    #[test]
    fn path_tricks_are_refused() {
        for bad in ["../x", "/etc/passwd", "a/../b", "a//b", "a/."] {
            let mut bytes = Vec::new();
            write::header(&Entry::new(bad.as_bytes().to_vec(), EntryKind::File), &mut bytes);
            assert!(TarReader::new(&bytes[..], 0).next_member().is_err(), "{bad}");
        }
    }
}
