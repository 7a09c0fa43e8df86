//! Entries to tar headers.

use super::{
    BLOCK_LEN, CHECKSUM, DEV_MAJOR, DEV_MINOR, GID, GNU_MAGIC, LINK, MAGIC, MODE, MTIME, NAME, PAX_LEN_MAX, PREFIX,
    SIZE, TYPE, UID, USTAR_MAGIC, acl, padded,
};
use crate::model::{
    entry::{Entry, EntryKind, Run},
    path,
    time::Time,
};

/// Largest value in an octal field of 7 and of 11 digits.
const OCTAL_7_MAX: u64 = 0o777_7777;
const OCTAL_11_MAX: u64 = 0o777_7777_7777;

/// A longer list of a directory's names has no room beside the attributes in a PAX header, bytes.
const DUMPDIR_LEN_MAX: usize = 64 << 10;

/// The name of every PAX member itself; readers never show it.
const PAX_NAME: &[u8] = b"././@PaxHeader";

/// What [`header`] could not say in tar, though the index can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Extended attributes were left out: together they pass the bound on PAX headers.
    pub xattrs: bool,
}

/// The sparse map as it stands at the start of a sparse member's data, padded to whole blocks.
/// Source: GNU tar manual, "PAX Format, Version 1.0".
pub fn sparse_map(runs: &[Run], size: u64) -> Vec<u8> {
    // A trailing hole needs a last empty run at the end of the file.
    let tail = runs.last().is_none_or(|run| run.end() < size).then_some(Run { offset: size, len: 0 });
    let all = runs.iter().copied().chain(tail);
    let mut map = format!("{}\n", all.clone().count()).into_bytes();
    for run in all {
        map.extend_from_slice(format!("{}\n{}\n", run.offset, run.len).as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK_LEN), 0);
    map
}

/// Appends the header blocks of `entry`: a PAX member when one is needed, then the ustar block; for a sparse file also the map.
/// What follows must be `entry.stored_len` bytes and the padding. Sockets have no member: nothing is appended.
pub fn header(entry: &Entry, out: &mut Vec<u8>) -> Left {
    header_with(entry, None, out)
}

/// Like [`header`]; a directory of an increment has `dumpdir`, the list of all names in it by which GNU tar removes what is gone.
/// One too long for a PAX header makes it a member of GNU tar's own type, with the list as its data.
pub fn header_with(entry: &Entry, dumpdir: Option<&[u8]>, out: &mut Vec<u8>) -> Left {
    let mut left = Left::default();
    let (type_byte, mut data_len) = match entry.kind {
        EntryKind::File => (b'0', entry.stored_len),
        EntryKind::Dir => (b'5', 0),
        EntryKind::Symlink => (b'2', 0),
        EntryKind::HardLink => (b'1', 0),
        EntryKind::CharDevice => (b'3', 0),
        EntryKind::BlockDevice => (b'4', 0),
        EntryKind::Fifo => (b'6', 0),
        EntryKind::Socket | EntryKind::Removed => return left,
    };
    let member_path = member_path(entry);
    let map = entry.sparse.as_deref().map(|runs| sparse_map(runs, entry.size));
    data_len += map.as_ref().map_or(0, |m| m.len() as u64);

    let long = dumpdir.filter(|list| list.len() > DUMPDIR_LEN_MAX);
    let mut pax = Vec::new();
    let mut block = [0u8; BLOCK_LEN];
    let mut raw_names = true;
    if map.is_some() {
        record(&mut pax, b"GNU.sparse.major", b"1");
        record(&mut pax, b"GNU.sparse.minor", b"0");
        record(&mut pax, b"GNU.sparse.name", &member_path);
        record(&mut pax, b"GNU.sparse.realsize", entry.size.to_string().as_bytes());
        raw_names = std::str::from_utf8(&member_path).is_ok();
        // Shown only by readers that do not know sparse members.
        put_name(&mut block, &path::join(b"GNUSparseFile.0", path::split(&entry.path).1));
    } else if !put_name(&mut block, &member_path) || long.is_some() && member_path.len() > NAME.len() {
        // GNU tar's own type has no prefix field.
        if long.is_some() {
            block[PREFIX].fill(0);
        }
        record(&mut pax, b"path", &member_path);
        raw_names = std::str::from_utf8(&member_path).is_ok();
    }
    if entry.link.len() <= LINK.len() {
        block[LINK.start..LINK.start + entry.link.len()].copy_from_slice(&entry.link);
    } else {
        block[LINK].copy_from_slice(&entry.link[..LINK.len()]);
        record(&mut pax, b"linkpath", &entry.link);
        raw_names &= std::str::from_utf8(&entry.link).is_ok();
    }
    if !raw_names {
        // First in the header, so that a reader knows it before it meets a name.
        let mut first = Vec::new();
        record(&mut first, b"hdrcharset", b"BINARY");
        pax.splice(0..0, first);
    }
    octal(&mut block[MODE], u64::from(entry.mode));
    number(&mut block[UID], &mut pax, b"uid", u64::from(entry.uid), OCTAL_7_MAX);
    number(&mut block[GID], &mut pax, b"gid", u64::from(entry.gid), OCTAL_7_MAX);
    number(&mut block[SIZE], &mut pax, b"size", data_len, OCTAL_11_MAX);
    let mtime = u64::try_from(entry.mtime.sec).ok().filter(|&sec| sec <= OCTAL_11_MAX);
    octal(&mut block[MTIME], mtime.unwrap_or(0));
    if mtime.is_none() || entry.mtime.nsec != 0 {
        record(&mut pax, b"mtime", pax_time(entry.mtime).as_bytes());
    }
    octal(&mut block[DEV_MAJOR], u64::from(entry.rdev.0));
    octal(&mut block[DEV_MINOR], u64::from(entry.rdev.1));
    if entry.kind != EntryKind::HardLink {
        left.xattrs = !xattrs(&mut pax, entry);
    }
    match (dumpdir, long) {
        (Some(list), None) => record(&mut pax, b"GNU.dumpdir", list),
        (_, Some(list)) => octal(&mut block[SIZE], list.len() as u64),
        (None, None) => {}
    }
    block[TYPE] = if long.is_some() { b'D' } else { type_byte };
    if !pax.is_empty() {
        pax_member(&pax, out);
    }
    seal(&mut block, if long.is_some() { GNU_MAGIC } else { USTAR_MAGIC });
    out.extend_from_slice(&block);
    if let Some(map) = map {
        out.extend_from_slice(&map);
    }
    if let Some(list) = long {
        out.extend_from_slice(list);
        out.resize(out.len().next_multiple_of(BLOCK_LEN), 0);
    }
    left
}

/// A member of bk's own, a plain file below `.bk/`, whole with its padding.
pub fn note(name: &[u8], content: &[u8], out: &mut Vec<u8>) {
    note_header(name, content.len() as u64, out);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK_LEN), 0);
}

/// Appends the header of such a member, whose content is `len` bytes.
pub fn note_header(name: &[u8], len: u64, out: &mut Vec<u8>) {
    let mut entry = Entry::new(path::join(super::PRIVATE_DIR, name), EntryKind::File);
    entry.mode = 0o600;
    entry.stored_len = len;
    entry.size = len;
    header(&entry, out);
}

/// The path as tar has it: directories end in `/`, the root is `./`.
pub fn member_path(entry: &Entry) -> Vec<u8> {
    let mut name = if entry.path.is_empty() { b".".to_vec() } else { entry.path.clone() };
    if entry.kind == EntryKind::Dir {
        name.push(b'/');
    }
    name
}

/// Puts `name` into the name and prefix fields; false when it does not fit them.
fn put_name(block: &mut [u8; BLOCK_LEN], name: &[u8]) -> bool {
    if name.len() <= NAME.len() {
        block[..name.len()].copy_from_slice(name);
        return true;
    }
    // Split at a slash: prefix up to 155 bytes, the rest up to 100 and not empty.
    let earliest = name.len().saturating_sub(NAME.len() + 1);
    let found = (earliest..name.len().saturating_sub(1).min(PREFIX.len() + 1)).find(|&at| name[at] == b'/' && at > 0);
    match found {
        Some(at) if at <= PREFIX.len() => {
            block[PREFIX.start..PREFIX.start + at].copy_from_slice(&name[..at]);
            block[..name.len() - at - 1].copy_from_slice(&name[at + 1..]);
            true
        }
        _ => {
            block[NAME].copy_from_slice(&name[..NAME.len()]);
            false
        }
    }
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let mut rest = value;
    for byte in field[..digits].iter_mut().rev() {
        *byte = b'0' | u8::try_from(rest & 7).unwrap_or(0);
        rest >>= 3;
    }
}

/// An octal field; a value past it stands in the PAX header and the field holds 0.
fn number(field: &mut [u8], pax: &mut Vec<u8>, key: &[u8], value: u64, max: u64) {
    if value <= max {
        octal(field, value);
    } else {
        octal(field, 0);
        record(pax, key, value.to_string().as_bytes());
    }
}

/// Seconds as a decimal: `-1.5` is one and a half seconds before 1970.
fn pax_time(time: Time) -> String {
    if time.nsec == 0 {
        return time.sec.to_string();
    }
    let (sign, sec, nsec) = if time.sec < 0 {
        ("-", (time.sec + 1).unsigned_abs(), 1_000_000_000 - time.nsec)
    } else {
        ("", time.sec.unsigned_abs(), time.nsec)
    };
    let text = format!("{sign}{sec}.{nsec:09}");
    text.trim_end_matches('0').to_owned()
}

/// Appends `LEN KEY=VALUE\n`, where LEN counts itself.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + decimal_len(len) {
        len = rest + decimal_len(len);
    }
    pax.extend_from_slice(len.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

fn decimal_len(n: usize) -> usize {
    n.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Adds xattrs and ACLs; false when some were left out because the header would grow too large.
fn xattrs(pax: &mut Vec<u8>, entry: &Entry) -> bool {
    let mut all = true;
    for (name, value) in &entry.xattrs {
        if pax.len() + name.len() * 3 + value.len() * 2 + 64 > PAX_LEN_MAX {
            all = false;
            continue;
        }
        let acl = match name.as_slice() {
            b"system.posix_acl_access" => Some(&b"SCHILY.acl.access"[..]),
            b"system.posix_acl_default" => Some(&b"SCHILY.acl.default"[..]),
            _ => None,
        };
        match acl.and_then(|key| Some((key, acl::to_text(value)?))) {
            Some((key, text)) => record(pax, key, text.as_bytes()),
            None => {
                let mut key = b"SCHILY.xattr.".to_vec();
                for &byte in name {
                    match byte {
                        b'%' => key.extend_from_slice(b"%25"),
                        b'=' => key.extend_from_slice(b"%3D"),
                        _ => key.push(byte),
                    }
                }
                record(pax, &key, value);
            }
        }
    }
    all
}

fn pax_member(pax: &[u8], out: &mut Vec<u8>) {
    let mut block = [0u8; BLOCK_LEN];
    block[..PAX_NAME.len()].copy_from_slice(PAX_NAME);
    octal(&mut block[MODE], 0o644);
    octal(&mut block[UID], 0);
    octal(&mut block[GID], 0);
    octal(&mut block[SIZE], pax.len() as u64);
    octal(&mut block[MTIME], 0);
    block[TYPE] = b'x';
    seal(&mut block, USTAR_MAGIC);
    out.extend_from_slice(&block);
    out.extend_from_slice(pax);
    out.resize(out.len() + usize::try_from(padded(pax.len() as u64)).unwrap_or(0) - pax.len(), 0);
}

fn seal(block: &mut [u8; BLOCK_LEN], magic: &[u8; MAGIC.end - MAGIC.start]) {
    block[MAGIC].copy_from_slice(magic);
    let sum = super::checksum(block);
    octal(&mut block[CHECKSUM.start..CHECKSUM.end - 1], u64::from(sum));
    block[CHECKSUM.end - 2] = 0;
    block[CHECKSUM.end - 1] = b' ';
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970() {
        for (sec, nsec, text) in
            [(-2, 500_000_000, "-1.5"), (-1, 999_999_999, "-0.000000001"), (-5, 0, "-5"), (7, 10, "7.00000001")]
        {
            assert_eq!(pax_time(Time { sec, nsec }), text);
        }
    }

    #[test]
    fn records_count_themselves() {
        for len in [1, 86, 87, 88, 89, 985, 986, 987, 9983, 9984] {
            let mut pax = Vec::new();
            record(&mut pax, b"key", &vec![b'v'; len]);
            let text = String::from_utf8(pax.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), pax.len(), "{len}");
        }
    }

    #[test]
    fn names_split_where_ustar_allows() {
        for (name, fits) in [
            (vec![b'x'; 100], true),
            (vec![b'x'; 101], false),
            ([vec![b'p'; 155], vec![b'/'], vec![b'n'; 100]].concat(), true),
            ([vec![b'p'; 156], vec![b'/'], vec![b'n'; 99]].concat(), false),
            ([vec![b'p'; 100], vec![b'/']].concat(), false),
        ] {
            let mut block = [0; BLOCK_LEN];
            assert_eq!(put_name(&mut block, &name), fits, "{}", name.len());
        }
    }
}
