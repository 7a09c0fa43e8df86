//! Entries in columns: a table of directories, front-coded names, a table of classes, then one column for each field.
//!
//! Rows are sorted by [`path::cmp_rows`], so the rows of one directory lie together and their directory is written once.
//! Fields that repeat (kind, mode, owner, file system) are one class number; times and inode numbers are differences from the row before.

use crate::{
    error::{Error, Result},
    format::{
        tar::SPARSE_RUN_COUNT_MAX,
        varint::{Reader, put, put_signed},
    },
    model::{
        digest::Digest,
        entry::{Entry, EntryKind, Map, Run, Status},
        path,
        time::Time,
    },
};

/// A block holds at most this many rows.
pub const ROW_COUNT_MAX: usize = 1024;
/// Longest target of a symbolic link, bytes.
const LINK_LEN_MAX: usize = path::PATH_LEN_MAX;
/// Linux: an attribute's name is at most 255 bytes and its value 64 KiB; a list of names 64 KiB.
const XATTR_COUNT_MAX: usize = 32 << 10;
const XATTR_VALUE_MAX: usize = 64 << 10;
/// More damaged runs than this in one file are written as one run from the last on.
pub const DAMAGED_COUNT_MAX: usize = 64;

const HAS_XATTRS: u8 = 1;
const HAS_SPARSE: u8 = 2;
const HAS_STATUS: u8 = 4;
const HAS_STORED_LEN: u8 = 8;
const HAS_MAP: u8 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Class {
    kind: EntryKind,
    extra: u8,
    mode: u32,
    uid: u32,
    gid: u32,
    fsid: u64,
}

impl Class {
    fn of(entry: &Entry) -> Self {
        let mut extra = 0;
        for (bit, set) in [
            (HAS_XATTRS, !entry.xattrs.is_empty()),
            (HAS_SPARSE, entry.sparse.is_some()),
            (HAS_STATUS, entry.status != Status::default() || !entry.damaged.is_empty()),
            (HAS_STORED_LEN, entry.stored_len != entry.size),
            (HAS_MAP, entry.map.is_some()),
        ] {
            extra |= if set { bit } else { 0 };
        }
        let Entry { kind, mode, uid, gid, fsid, .. } = *entry;
        Self { kind, extra, mode, uid, gid, fsid }
    }
}

fn shared(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

fn put_front(out: &mut Vec<u8>, before: &[u8], now: &[u8]) {
    let same = shared(before, now);
    put(out, same as u64);
    put(out, (now.len() - same) as u64);
    out.extend_from_slice(&now[same..]);
}

fn read_front(reader: &mut Reader<'_>, last: &mut Vec<u8>, max: usize) -> Result<()> {
    let same = reader.len_max(last.len())?;
    let len = reader.len_max(max - same.min(max))?;
    last.truncate(same);
    last.extend_from_slice(reader.bytes(len)?);
    Ok(())
}

#[derive(Default)]
struct Columns {
    dirs: Vec<u8>,
    names: Vec<u8>,
    classes: Vec<u8>,
    class_ids: Vec<u8>,
    mtimes: Vec<u8>,
    ctimes: Vec<u8>,
    inos: Vec<u8>,
    sizes: Vec<u8>,
    links: Vec<u8>,
    extras: Vec<u8>,
}

impl Columns {
    fn all(&self) -> [&Vec<u8>; 10] {
        [
            &self.dirs,
            &self.names,
            &self.classes,
            &self.class_ids,
            &self.mtimes,
            &self.ctimes,
            &self.inos,
            &self.sizes,
            &self.links,
            &self.extras,
        ]
    }
}

/// Encodes rows that are in order.
pub fn encode(rows: &[Entry]) -> Vec<u8> {
    let mut columns = Columns::default();
    put_names(&mut columns, rows);
    let mut classes: Vec<Class> = Vec::new();
    let mut last = Entry::new(Vec::new(), EntryKind::File);
    for row in rows {
        let class = Class::of(row);
        let id = classes.iter().position(|c| *c == class).unwrap_or_else(|| {
            classes.push(class);
            classes.len() - 1
        });
        put(&mut columns.class_ids, id as u64);
        put_time(&mut columns.mtimes, last.mtime, row.mtime);
        put_time(&mut columns.ctimes, last.ctime, row.ctime);
        put_signed(&mut columns.inos, row.ino.wrapping_sub(last.ino).cast_signed());
        put(&mut columns.inos, u64::from(row.nlink));
        (last.mtime, last.ctime, last.ino) = (row.mtime, row.ctime, row.ino);
        match row.kind {
            EntryKind::File => put(&mut columns.sizes, row.size),
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                put(&mut columns.sizes, u64::from(row.rdev.0));
                put(&mut columns.sizes, u64::from(row.rdev.1));
            }
            EntryKind::Symlink | EntryKind::HardLink => {
                put(&mut columns.links, row.link.len() as u64);
                columns.links.extend_from_slice(&row.link);
            }
            EntryKind::Dir | EntryKind::Fifo | EntryKind::Socket | EntryKind::Removed => {}
        }
        put_extras(&mut columns.extras, class.extra, row);
    }
    put(&mut columns.classes, classes.len() as u64);
    for class in classes {
        columns.classes.extend_from_slice(&[class.kind as u8, class.extra]);
        for value in [class.mode, class.uid, class.gid] {
            put(&mut columns.classes, u64::from(value));
        }
        put(&mut columns.classes, class.fsid);
    }
    let mut out = Vec::new();
    for column in columns.all() {
        put(&mut out, column.len() as u64);
    }
    for column in columns.all() {
        out.extend_from_slice(column);
    }
    out
}

fn put_names(columns: &mut Columns, rows: &[Entry]) {
    let mut last_dir: &[u8] = b"";
    let mut last_name: &[u8] = b"";
    let mut rows = rows.iter().map(|row| path::split(&row.path)).peekable();
    while let Some(&(dir, _)) = rows.peek() {
        put_front(&mut columns.dirs, last_dir, dir);
        let mut count = 0;
        while let Some((_, name)) = rows.next_if(|(own, _)| *own == dir) {
            put_front(&mut columns.names, last_name, name);
            last_name = name;
            count += 1;
        }
        put(&mut columns.dirs, count);
        last_dir = dir;
    }
}

fn put_time(column: &mut Vec<u8>, last: Time, now: Time) {
    put_signed(column, now.sec.wrapping_sub(last.sec));
    put_signed(column, i64::from(now.nsec) - i64::from(last.nsec));
}

fn read_time(reader: &mut Reader<'_>, last: Time) -> Result<Time> {
    let sec = last.sec.wrapping_add(reader.i64()?);
    let nsec = i64::from(last.nsec).checked_add(reader.i64()?).and_then(|nsec| u32::try_from(nsec).ok());
    match nsec {
        Some(nsec @ 0..1_000_000_000) => Ok(Time { sec, nsec }),
        _ => Err(Error::integrity("nanoseconds out of range")),
    }
}

fn put_runs(out: &mut Vec<u8>, runs: &[Run]) {
    put(out, runs.len() as u64);
    let mut end = 0;
    for run in runs {
        put(out, run.offset - end);
        put(out, run.len);
        end = run.end();
    }
}

fn read_runs(reader: &mut Reader<'_>, max: usize, size: u64) -> Result<Vec<Run>> {
    let count = reader.len_max(max.min(reader.len() / 2))?;
    let mut runs = Vec::with_capacity(count);
    let mut end = 0u64;
    for _ in 0..count {
        let (gap, len) = (reader.u64()?, reader.u64()?);
        let offset = end.checked_add(gap).ok_or_else(|| Error::integrity("a run out of range"))?;
        end = offset.checked_add(len).filter(|&e| e <= size).ok_or_else(|| Error::integrity("a run out of range"))?;
        if len == 0 || gap == 0 && offset != 0 {
            return Err(Error::integrity("runs touch or are empty"));
        }
        runs.push(Run { offset, len });
    }
    Ok(runs)
}

fn put_extras(out: &mut Vec<u8>, extra: u8, row: &Entry) {
    if extra & HAS_XATTRS != 0 {
        put(out, row.xattrs.len() as u64);
        for (name, value) in &row.xattrs {
            put(out, name.len() as u64);
            out.extend_from_slice(name);
            put(out, value.len() as u64);
            out.extend_from_slice(value);
        }
    }
    if extra & HAS_SPARSE != 0 {
        put_runs(out, row.sparse.as_deref().unwrap_or_default());
    }
    if extra & HAS_STATUS != 0 {
        out.push(row.status.0);
        put_runs(out, &row.damaged);
    }
    if extra & HAS_STORED_LEN != 0 {
        put(out, row.stored_len);
    }
    if let Some(map) = &row.map {
        put(out, map.first);
        put(out, map.count);
        out.extend_from_slice(&map.digest.0);
    }
}

fn read_extras(reader: &mut Reader<'_>, extra: u8, row: &mut Entry) -> Result<()> {
    if extra & HAS_XATTRS != 0 {
        let count = reader.len_max(XATTR_COUNT_MAX.min(reader.len() / 2))?;
        for _ in 0..count {
            let len = reader.len_max(path::NAME_LEN_MAX)?;
            let name = reader.bytes(len)?.to_vec();
            let len = reader.len_max(XATTR_VALUE_MAX)?;
            if name.is_empty() || name.contains(&0) {
                return Err(Error::integrity("not the name of an attribute"));
            }
            row.xattrs.push((name, reader.bytes(len)?.to_vec()));
        }
    }
    if extra & HAS_SPARSE != 0 {
        row.sparse = Some(read_runs(reader, SPARSE_RUN_COUNT_MAX, row.size)?);
    }
    if extra & HAS_STATUS != 0 {
        row.status = Status(reader.u8()?);
        row.damaged = read_runs(reader, DAMAGED_COUNT_MAX + 1, row.size)?;
    }
    row.stored_len = if extra & HAS_STORED_LEN != 0 { reader.u64()? } else { row.size };
    let expected = match &row.sparse {
        Some(runs) => runs.iter().map(|run| run.len).sum(),
        None => row.size,
    };
    if row.stored_len != expected && row.stored_len != 0 {
        return Err(Error::integrity("stored length and size do not agree"));
    }
    if extra & HAS_MAP != 0 {
        let (first, count) = (reader.u64()?, reader.u64()?);
        let digest = Digest(reader.bytes(32)?.try_into().unwrap_or_default());
        if row.stored_len == 0 || count == 0 || count > row.stored_len || first.checked_add(count).is_none() {
            return Err(Error::integrity("a map out of range"));
        }
        row.map = Some(Box::new(Map { digest, first, count, places: Vec::new() }));
    }
    Ok(())
}

/// Reads what [`encode`] wrote: exactly `rows` entries, sorted, every path valid.
pub fn decode(plain: &[u8], rows: usize) -> Result<Vec<Entry>> {
    // Each row takes at least a byte in each of six columns.
    if rows > ROW_COUNT_MAX || rows > plain.len() {
        return Err(Error::integrity(format!("a block of {rows} rows is above the limit")));
    }
    let mut head = Reader::new(plain);
    let mut lens = [0; 10];
    for len in &mut lens {
        *len = head.len_max(plain.len())?;
    }
    let mut columns = Vec::with_capacity(lens.len());
    for len in lens {
        columns.push(Reader::new(head.bytes(len)?));
    }
    head.finish()?;
    let Ok(
        [mut dirs, mut names, mut classes, mut ids, mut mtimes, mut ctimes, mut inos, mut sizes, mut links, mut extras],
    ) = <[Reader<'_>; 10]>::try_from(columns)
    else {
        return Err(Error::integrity("a block without its columns"));
    };
    let table = read_classes(&mut classes)?;
    let mut out: Vec<Entry> = Vec::with_capacity(rows);
    let (mut dir, mut name) = (Vec::new(), Vec::new());
    let mut left_in_dir = 0;
    let (mut mtime, mut ctime, mut ino) = (Time::default(), Time::default(), 0u64);
    for _ in 0..rows {
        if left_in_dir == 0 {
            read_front(&mut dirs, &mut dir, path::PATH_LEN_MAX)?;
            left_in_dir = dirs.len_max(rows - out.len())?;
            if left_in_dir == 0 {
                return Err(Error::integrity("a directory without rows"));
            }
        }
        left_in_dir -= 1;
        read_front(&mut names, &mut name, path::NAME_LEN_MAX)?;
        let class = table.get(ids.len_max(ROW_COUNT_MAX)?).ok_or_else(|| Error::integrity("no such class"))?;
        let mut row = Entry::new(path::join(&dir, &name), class.kind);
        let is_root = row.path.is_empty() && dir.is_empty() && out.is_empty() && row.is_dir();
        if !path::is_valid(&row.path) || row.path.is_empty() && !is_root {
            return Err(Error::integrity(format!("not a path: `{}`", crate::model::show::name(&row.path))));
        }
        if out.last().is_some_and(|last| path::cmp_rows(&last.path, &row.path).is_ge()) {
            return Err(Error::integrity("entries are not in order"));
        }
        (row.mode, row.uid, row.gid, row.fsid) = (class.mode, class.uid, class.gid, class.fsid);
        mtime = read_time(&mut mtimes, mtime)?;
        ctime = read_time(&mut ctimes, ctime)?;
        ino = ino.wrapping_add(inos.i64()?.cast_unsigned());
        (row.mtime, row.ctime, row.ino, row.nlink) = (mtime, ctime, ino, inos.u32()?);
        match row.kind {
            EntryKind::File => {
                row.size = sizes.u64()?;
                if i64::try_from(row.size).is_err() {
                    return Err(Error::integrity("size out of range"));
                }
            }
            EntryKind::CharDevice | EntryKind::BlockDevice => row.rdev = (sizes.u32()?, sizes.u32()?),
            EntryKind::Symlink | EntryKind::HardLink => {
                let len = links.len_max(LINK_LEN_MAX)?;
                row.link = links.bytes(len)?.to_vec();
                let valid =
                    if row.kind == EntryKind::HardLink { path::is_valid(&row.link) } else { !row.link.contains(&0) };
                if !valid || row.link.is_empty() {
                    return Err(Error::integrity("not the target of a link"));
                }
            }
            EntryKind::Dir | EntryKind::Fifo | EntryKind::Socket | EntryKind::Removed => {}
        }
        read_extras(&mut extras, class.extra, &mut row)?;
        out.push(row);
    }
    for column in [dirs, names, ids, mtimes, ctimes, inos, sizes, links, extras] {
        column.finish()?;
    }
    if left_in_dir != 0 {
        return Err(Error::integrity("a directory with too few rows"));
    }
    Ok(out)
}

fn read_classes(reader: &mut Reader<'_>) -> Result<Vec<Class>> {
    let count = reader.len_max(ROW_COUNT_MAX)?;
    let mut table = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = EntryKind::from_u8(reader.u8()?).ok_or_else(|| Error::integrity("unknown kind of entry"))?;
        let extra = reader.u8()?;
        let (mode, uid, gid, fsid) = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u64()?);
        let for_files = HAS_SPARSE | HAS_STORED_LEN | HAS_MAP;
        if mode > 0o7777 || extra > 31 || kind != EntryKind::File && extra & for_files != 0 {
            return Err(Error::integrity("a class out of range"));
        }
        table.push(Class { kind, extra, mode, uid, gid, fsid });
    }
    reader.finish()?;
    Ok(table)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any entry the index can hold, but for its path.
    pub(crate) fn any_entry() -> impl Strategy<Value = Entry> {
        let meta = (0u32..0o10000, any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>());
        let times = (any::<i64>(), 0u32..1_000_000_000, any::<i64>(), 0u32..1_000_000_000);
        let runs = proptest::collection::vec((1u64..5000, 1u64..5000), 0..4);
        (0u8..9, meta, times, runs, 0u8..32, proptest::collection::vec(any::<u8>(), 0..80), any::<bool>()).prop_map(
            |(kind, meta, times, lens, status, bytes, flag)| {
                let mut entry = Entry::new(Vec::new(), EntryKind::from_u8(kind).unwrap());
                (entry.mode, entry.uid, entry.gid, entry.fsid, entry.ino, entry.nlink) = meta;
                entry.mtime = Time { sec: times.0, nsec: times.1 };
                entry.ctime = Time { sec: times.2, nsec: times.3 };
                let mut at = 0;
                let runs: Vec<Run> = lens
                    .iter()
                    .map(|&(gap, len)| {
                        let run = Run { offset: at + gap, len };
                        at = run.end();
                        run
                    })
                    .collect();
                match entry.kind {
                    EntryKind::File if flag => {
                        entry.size = at + 7;
                        entry.stored_len = runs.iter().map(|r| r.len).sum();
                        entry.damaged = runs.clone();
                        entry.sparse = Some(runs);
                    }
                    EntryKind::File => {
                        (entry.size, entry.stored_len) = (at, at);
                        if at > 9 {
                            let map = Map { digest: Digest::of(b"x"), first: at, count: 9, places: Vec::new() };
                            entry.map = Some(Box::new(map));
                        }
                    }
                    EntryKind::Symlink | EntryKind::HardLink => entry.link = b"some/where".to_vec(),
                    EntryKind::CharDevice | EntryKind::BlockDevice => entry.rdev = (entry.uid, 7),
                    _ => {}
                }
                entry.status = Status(status);
                if flag {
                    entry.xattrs.push((b"user.x".to_vec(), bytes));
                }
                entry
            },
        )
    }

    proptest! {
        #[test]
        fn rows_round_trip(
            entries in proptest::collection::vec((any_entry(), proptest::collection::vec("[a-c.é]{1,4}", 1..4)), 0..60)
        ) {
            let mut rows: Vec<Entry> = entries.into_iter().map(|(mut entry, names)| {
                entry.path = names.join("/").into_bytes();
                entry
            }).filter(|e| path::is_valid(&e.path)).collect();
            rows.push(Entry::new(Vec::new(), EntryKind::Dir));
            rows.sort_by(|a, b| path::cmp_rows(&a.path, &b.path));
            rows.dedup_by(|a, b| a.path == b.path);
            let plain = encode(&rows);
            prop_assert_eq!(decode(&plain, rows.len()).unwrap(), rows);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), rows in 0usize..40) {
            let _ = decode(&bytes, rows);
        }
    }

    #[test]
    fn unsorted_or_escaping_rows_are_refused() {
        let file = |path: &str| Entry::new(path.as_bytes().to_vec(), EntryKind::File);
        assert!(decode(&encode(&[file("b"), file("a")]), 2).is_err());
        assert!(decode(&encode(&[file("a"), file("a")]), 2).is_err());
        for bad in ["..", "../x", "a/../b"] {
            assert!(decode(&encode(&[file(bad)]), 1).is_err(), "{bad}");
        }
        let mut link = file("x");
        link.kind = EntryKind::HardLink;
        link.link = b"../../etc/shadow".to_vec();
        assert!(decode(&encode(&[link]), 1).is_err());
    }
}
