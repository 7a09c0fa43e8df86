//! Snapshots made by hand in memory, good and hostile, through the index reader, restore and check.

mod written;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    sync::{Arc, Mutex},
};

use super::{
    chain::Chain,
    check::{Depth, Fault, check},
    extract::{Options, Overwrite, extract},
    index::IndexReader,
    outcome::Outcome,
    select::Taken,
};
use crate::{
    error::{Error, Result},
    format::{
        codec::Codec,
        index::{
            BlockInfo, Directory, Extent, Frame, Part, Section, encode_entries, encode_extents, encode_frames,
            encode_parts, encode_tail, seal_block,
        },
        layout::{INDEX_NAME, RESTORE_NAME, run_dir},
        record::{IndexRef, ObjectRef, Snapshot, Totals},
        tar::{END_LEN, padded, write::header},
        volume::{FORMAT_VERSION, VolumeFile, VolumeTag},
    },
    model::{
        digest::Digest,
        entry::{Entry, EntryKind},
        ids::{Nonce, RunId},
        path,
        time::Instant,
    },
    monitor::Silent,
    volume::{Created, Item, Store, Upload, Volume},
};

#[derive(Default)]
struct MemoryStore(Mutex<BTreeMap<String, Vec<u8>>>);

impl Store for MemoryStore {
    fn create(&self, _: &str) -> Result<Box<dyn Upload>> {
        Err(Error::usage("read only"))
    }
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        self.0.lock().unwrap().insert(key.to_owned(), bytes.to_vec());
        Ok(Created::New)
    }
    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let objects = self.0.lock().unwrap();
        let object = objects.get(key).ok_or_else(|| Error::integrity("missing"))?;
        let rest = object.get(usize::try_from(offset).unwrap()..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(rest.ok_or_else(|| Error::integrity("short"))?);
        Ok(())
    }
    fn read(&self, key: &str, _: u64) -> Result<Vec<u8>> {
        self.0.lock().unwrap().get(key).cloned().ok_or_else(|| Error::integrity("missing"))
    }
    fn head(&self, key: &str) -> Result<Option<u64>> {
        Ok(self.0.lock().unwrap().get(key).map(|object| object.len() as u64))
    }
    fn list(&self, _: &str) -> Result<Vec<Item>> {
        Ok(Vec::new())
    }
    fn delete(&self, _: &str) -> Result<()> {
        Ok(())
    }
    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }
    fn scratch(&self) -> Result<fs::File> {
        Err(Error::usage("read only"))
    }
    fn check_writable(&self) -> Result<()> {
        Ok(())
    }
}

/// What the index will say; a test may make it lie before it is written.
struct Draft {
    entries: Vec<Entry>,
    extents: Vec<Extent>,
    frames: Vec<Frame>,
    parts: Vec<Part>,
}

struct Made {
    store: Arc<MemoryStore>,
    volume: Volume,
    snapshot: Snapshot,
}

/// Frames of at most this many bytes: files of more run over several.
const FRAME_LEN: usize = 4096;

fn file(path: &str, content: &[u8]) -> (Entry, Vec<u8>) {
    let mut entry = Entry::new(path.as_bytes(), EntryKind::File);
    (entry.mode, entry.size, entry.stored_len) = (0o640, content.len() as u64, content.len() as u64);
    entry.mtime.sec = 1_000_000_000;
    (entry.uid, entry.gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    (entry, content.to_vec())
}

fn other(path: &str, kind: EntryKind, link: &str) -> (Entry, Vec<u8>) {
    let mut entry = file(path, b"").0;
    (entry.kind, entry.mode) = (kind, if kind == EntryKind::Dir { 0o755 } else { 0o640 });
    entry.link = link.as_bytes().to_vec();
    (entry, Vec::new())
}

/// A snapshot of `members` (sorted here); `lie` changes what the index says.
fn make(mut members: Vec<(Entry, Vec<u8>)>, lie: impl FnOnce(&mut Draft)) -> Made {
    members.sort_by(|a, b| path::cmp_rows(&a.0.path, &b.0.path));
    let mut draft = Draft {
        entries: members.iter().map(|(entry, _)| entry.clone()).collect(),
        extents: Vec::new(),
        frames: Vec::new(),
        parts: Vec::new(),
    };
    // The order of tar: a directory, its files, then the directories in it.
    members.sort_by(|(a, _), (b, _)| {
        let key = |e: &Entry| {
            let (dir, name) = path::split(&e.path);
            if e.is_dir() { (e.path.clone(), vec![]) } else { (dir.to_vec(), [b"x", name].concat()) }
        };
        let (a, b) = (key(a), key(b));
        path::cmp_dirs(&a.0, &b.0).then(a.1.cmp(&b.1))
    });
    let (mut plain, mut cuts) = (Vec::new(), vec![(0, true)]);
    let count = members.len();
    for (n, (entry, content)) in members.into_iter().enumerate() {
        let start = plain.len();
        if start > cuts.last().unwrap().0 && start - cuts.last().unwrap().0 > FRAME_LEN / 2 {
            cuts.push((start, true));
        }
        header(&entry, &mut plain);
        if !content.is_empty() {
            let (stream, offset, len) = (0, plain.len() as u64, content.len() as u64);
            draft.extents.push(Extent { stream, offset, len, digest: Digest::of(&content) });
        }
        plain.extend_from_slice(&content);
        plain.resize(usize::try_from(padded(plain.len() as u64)).unwrap(), 0);
        if n + 1 == count {
            plain.resize(plain.len() + END_LEN, 0);
        }
        while plain.len() - cuts.last().unwrap().0 > FRAME_LEN {
            let next = cuts.last().unwrap().0 + FRAME_LEN;
            cuts.push((next, false));
        }
    }
    let mut hasher = blake3::Hasher::new();
    for (n, &(start, starts_member)) in cuts.iter().enumerate() {
        let bytes = &plain[start..cuts.get(n + 1).map_or(plain.len(), |cut| cut.0)];
        let (offset, len, digest) = (start as u64, u32::try_from(bytes.len()).unwrap(), Digest::of(bytes));
        hasher.update(&digest.0);
        draft.frames.push(Frame {
            stream: 0,
            offset,
            len,
            part: 0,
            stored_offset: offset,
            stored_len: len,
            digest,
            starts_member,
        });
    }
    draft.parts.push(Part {
        stream: 0,
        number: 0,
        stored_len: plain.len() as u64,
        plain_len: plain.len() as u64,
        frames: u32::try_from(draft.frames.len()).unwrap(),
        trailer_len: 0,
        digest: Digest(*hasher.finalize().as_bytes()),
    });
    lie(&mut draft);
    write(&draft, plain)
}

fn write(draft: &Draft, plain: Vec<u8>) -> Made {
    let (mut index, mut directory) = (Vec::new(), Directory::default());
    let mut block = |section, rows: usize, first_row: usize, key: &[u8], first_extent: u64, plain: &[u8]| {
        let stored = seal_block(plain).unwrap();
        directory.blocks.push(BlockInfo {
            section,
            offset: index.len() as u64,
            stored_len: u32::try_from(stored.len()).unwrap(),
            plain_len: u32::try_from(plain.len()).unwrap(),
            digest: Digest::of(&stored),
            rows: u32::try_from(rows).unwrap(),
            first_row: first_row as u64,
            first_key: key.to_vec(),
            first_extent,
        });
        index.extend_from_slice(&stored);
    };
    let mut extents = 0;
    for (n, rows) in draft.entries.chunks(3).enumerate() {
        block(Section::Entries, rows.len(), n * 3, &rows[0].path, extents, &encode_entries(rows));
        extents += rows.iter().filter(|row| row.stored_len > 0).count() as u64;
    }
    for (n, rows) in draft.extents.chunks(2).enumerate() {
        block(Section::Extents, rows.len(), n * 2, b"", 0, &encode_extents(rows));
    }
    for (n, rows) in draft.frames.chunks(2).enumerate() {
        let key = [&rows[0].stream.to_be_bytes()[..], &rows[0].offset.to_be_bytes()].concat();
        block(Section::Frames, rows.len(), n * 2, &key, 0, &encode_frames(rows));
    }
    block(Section::Parts, draft.parts.len(), 0, b"", 0, &encode_parts(&draft.parts));
    let tail = encode_tail(&directory).unwrap();
    index.extend_from_slice(&tail.bytes);
    let at = Instant::from_second(1_000_000_000).unwrap();
    let run_id = RunId::new(1).unwrap();
    let job = "t".parse().unwrap();
    let dir = run_dir(&job, run_id);
    let text = b"restore";
    let snapshot = Snapshot {
        format_version: FORMAT_VERSION,
        job,
        cluster: None,
        node: "n".to_owned(),
        run_id,
        nonce: Nonce::new().unwrap(),
        epoch: 0,
        seq: 1,
        prev: None,
        level: 0,
        base: None,
        promoted_from: None,
        taken_at: at,
        store_at: None,
        expires_at: None,
        definition: Digest::of(b""),
        codec: Codec::None,
        sources: Vec::new(),
        streams: Vec::new(),
        index: IndexRef { name: INDEX_NAME.to_owned(), len: index.len() as u64, tail_digest: tail.digest },
        restore_txt: ObjectRef { name: RESTORE_NAME.to_owned(), len: text.len() as u64, digest: Digest::of(text) },
        totals: Totals::default(),
        chunk_key: None,
        incomplete: Vec::new(),
        copied_from: None,
        crypto: None,
        sig: None,
    };
    let store = Arc::new(MemoryStore::default());
    for (name, bytes) in [(INDEX_NAME, index.as_slice()), (RESTORE_NAME, text), ("tree-00000.tar", &plain)] {
        store.put_new(&format!("{dir}{name}"), bytes).unwrap();
    }
    let id = Nonce::new().unwrap();
    let file = VolumeFile {
        r#type: VolumeTag::Volume,
        format_version: FORMAT_VERSION,
        id,
        created_at: at,
        exclusive_writer: false,
    };
    let volume = Volume { store: store.clone(), file, shown: "memory".to_owned() };
    Made { store, volume, snapshot }
}

impl Made {
    fn index(&self) -> IndexReader {
        IndexReader::open(&self.volume, &self.snapshot).unwrap()
    }

    fn restore_with(&self, to: &Path, overwrite: Overwrite, paths: &[&str]) -> Outcome {
        let chain = Chain::of(&self.volume, &self.snapshot).unwrap();
        let paths: Vec<Vec<u8>> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        let taken = Taken::new(&chain, &paths, &[], &[]).unwrap();
        extract(&chain, to, &Options { taken, overwrite, safe: false, threads: 2 }, &Silent).unwrap()
    }

    fn restore(&self, to: &Path) -> Outcome {
        self.restore_with(to, Overwrite::IfChanged, &[])
    }

    fn faults(&self, depth: Depth) -> Vec<Fault> {
        check(&self.volume, &self.snapshot, depth, 2, &Silent).unwrap().1
    }
}

fn faults(outcome: &Outcome) -> Vec<String> {
    outcome.faults.iter().map(|fault| fault.path.to_string()).collect()
}

fn tree() -> Vec<(Entry, Vec<u8>)> {
    let big: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
    let mut first = file("a/first", b"shared");
    first.0.nlink = 2;
    vec![
        other("", EntryKind::Dir, ""),
        other("a", EntryKind::Dir, ""),
        other("a.b", EntryKind::Dir, ""),
        file("a.b/y", b"why"),
        first,
        file("a/big", &big),
        file("a/small", b"small"),
        other("a/c", EntryKind::Dir, ""),
        file("a/c/deep", b"deep"),
        file("empty", b""),
        other("link", EntryKind::Symlink, "a/small"),
        other("second", EntryKind::HardLink, "a/first"),
        other("fifo", EntryKind::Fifo, ""),
    ]
}

#[test]
fn the_index_finds_what_it_holds() {
    let made = make(tree(), |_| {});
    let index = made.index();
    let all: Vec<_> = index.rows().map(Result::unwrap).collect();
    assert_eq!(all.len(), 13);
    let mut extents = 0;
    for row in &all {
        let found = index.lookup(&row.entry.path).unwrap().unwrap();
        assert_eq!((&found.entry, found.extent), (&row.entry, row.extent));
        if let Some(n) = row.extent {
            assert_eq!(n, extents);
            extents += 1;
            assert_eq!(index.owners(n, n + 1, 5).unwrap(), std::slice::from_ref(&row.entry.path));
        }
    }
    for missing in ["b", "a/", "a/zz", "a.b/x", "zz"] {
        assert!(index.lookup(missing.as_bytes()).unwrap().is_none(), "{missing}");
    }
    let names = |rows: &mut dyn Iterator<Item = Result<super::index::Row>>| -> Vec<String> {
        rows.map(|row| String::from_utf8(row.unwrap().entry.path).unwrap()).collect()
    };
    assert_eq!(names(&mut index.list(b"a")), ["a/big", "a/c", "a/first", "a/small"]);
    assert_eq!(names(&mut index.list(b"")), ["a", "a.b", "empty", "fifo", "link", "second"]);
    assert_eq!(names(&mut index.subtree(b"a")), ["a/big", "a/c", "a/first", "a/small", "a/c/deep"]);
    for dir in ["", "a", "a.b", "a/c", "nothing"] {
        let mut reversed = names(&mut index.subtree_reversed(dir.as_bytes()));
        reversed.reverse();
        let forward: Vec<_> = names(&mut index.subtree(dir.as_bytes())).into_iter().filter(|p| !p.is_empty()).collect();
        assert_eq!(reversed, forward, "{dir}");
    }
}

#[test]
fn what_went_in_comes_out() {
    let made = make(tree(), |_| {});
    assert_eq!(made.faults(Depth::Data), []);
    let dir = tempfile::tempdir().unwrap();
    let outcome = made.restore(dir.path());
    assert_eq!(faults(&outcome), [""; 0]);
    for (entry, content) in tree().iter().filter(|(entry, _)| entry.kind == EntryKind::File) {
        let path = dir.path().join(std::str::from_utf8(&entry.path).unwrap());
        assert_eq!(&fs::read(&path).unwrap(), content);
        let stat = fs::metadata(&path).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.mtime()), (0o640, 1_000_000_000));
    }
    let ino = |name: &str| fs::metadata(dir.path().join(name)).unwrap().ino();
    assert_eq!(ino("a/first"), ino("second"));
    let again = made.restore(dir.path());
    assert_eq!((again.files, again.hard_links, again.others, again.not_restored), (0, 0, 0, 0));
    // A further name alone is the file itself.
    let part = tempfile::tempdir().unwrap();
    let outcome = made.restore_with(part.path(), Overwrite::IfChanged, &["/second", "a/c/"]);
    assert_eq!((outcome.files, outcome.not_restored), (2, 0));
    assert_eq!(fs::read(part.path().join("second")).unwrap(), b"shared");
}

#[test]
fn nothing_outside_is_touched() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let canary = outside.path().join("small");
    fs::write(&canary, "safe").unwrap();
    let before = fs::metadata(&canary).unwrap();
    // A directory, a file and a directory below are links to outside; a hard link leads there too.
    symlink(outside.path(), dir.path().join("a")).unwrap();
    symlink(&canary, dir.path().join("empty")).unwrap();
    fs::hard_link(&canary, dir.path().join("fifo")).unwrap();
    let made = make(tree(), |_| {});
    let outcome = made.restore(dir.path());
    assert!(faults(&outcome).contains(&"a/small".to_owned()));
    assert!(fs::symlink_metadata(dir.path().join("a")).unwrap().is_symlink());
    let outcome = made.restore_with(dir.path(), Overwrite::Always, &[]);
    assert_eq!(faults(&outcome), [""; 0]);
    assert!(fs::symlink_metadata(dir.path().join("a")).unwrap().is_dir());
    let after = fs::metadata(&canary).unwrap();
    assert_eq!(fs::read(&canary).unwrap(), b"safe");
    assert_eq!((before.ino(), before.mode(), before.mtime_nsec()), (after.ino(), after.mode(), after.mtime_nsec()));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn a_link_in_the_index_is_not_gone_through() {
    let outside = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let made = make(vec![other("x", EntryKind::Symlink, target), file("x/evil", b"evil"), file("z", b"good")], |_| {});
    let outcome = made.restore(dir.path());
    assert_eq!(faults(&outcome), ["x/evil"]);
    assert_eq!(fs::read(dir.path().join("z")).unwrap(), b"good");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn an_index_that_lies_is_refused_entry_by_entry() {
    let two = || vec![file("one", b"11111"), file("two", b"22222"), file("x", b"333")];
    type Lie = fn(&mut Draft);
    let lies: [(&str, Lie); 6] = [
        ("another name than in tar", |draft| draft.entries[1].path = b"twp".to_vec()),
        ("another file's content", |draft| {
            draft.extents[1] = Extent { offset: draft.extents[0].offset, ..draft.extents[0] }
        }),
        ("content out of bounds", |draft| draft.extents[1].offset += 512),
        ("content far away", |draft| draft.extents[1].offset = 1 << 40),
        ("another digest", |draft| draft.extents[1].digest = Digest::of(b"x")),
        ("another size", |draft| {
            (draft.entries[1].size, draft.entries[1].stored_len, draft.extents[1].len) = (6, 6, 6);
        }),
    ];
    for (what, lie) in lies {
        let dir = tempfile::tempdir().unwrap();
        // Offsets in a block of extents only ascend, so the third goes along.
        let made = make(two(), |draft| {
            lie(draft);
            let end = draft.extents[1].offset + draft.extents[1].len;
            if draft.extents[2].offset < end || draft.extents[1].offset < draft.extents[0].offset + draft.extents[0].len
            {
                draft.extents[1].offset = draft.extents[1].offset.max(draft.extents[0].offset + 5);
                draft.extents[2].offset = draft.extents[2].offset.max(end);
            }
        });
        let outcome = made.restore(dir.path());
        assert!(outcome.not_restored > 0 && !dir.path().join("two").exists(), "{what}");
        assert_eq!(fs::read(dir.path().join("one")).unwrap(), b"11111", "{what}");
        assert_ne!(made.faults(Depth::Data), [], "{what}");
    }
    // Links to nothing, to a directory, to each other, to a file that says it has one name.
    let dir = tempfile::tempdir().unwrap();
    let links = [("l1", "none"), ("l2", "d"), ("l3", "l2"), ("l4", "one")];
    let mut members = vec![file("one", b"1"), other("d", EntryKind::Dir, "")];
    members.extend(links.map(|(name, link)| other(name, EntryKind::HardLink, link)));
    let outcome = make(members, |_| {}).restore(dir.path());
    assert_eq!(faults(&outcome), ["l1", "l2", "l3", "l4"]);
}

#[test]
fn every_flipped_bit_is_found_and_only_its_frame_is_lost() {
    let made = make(tree(), |_| {});
    let keys: Vec<String> = made.store.0.lock().unwrap().keys().cloned().collect();
    for key in &keys {
        let len = made.store.0.lock().unwrap()[key].len();
        let step = if key.ends_with(".tar") { 97 } else { 3 };
        for at in (0..len).step_by(step) {
            let flip = || made.store.0.lock().unwrap().get_mut(key).unwrap()[at] ^= 1 << (at % 8);
            flip();
            assert_ne!(made.faults(Depth::Stored), [], "{key} {at}");
            flip();
        }
    }
    let part = keys.iter().find(|key| key.ends_with(".tar")).unwrap();
    let at = usize::try_from(made.index().extent(0).unwrap().offset).unwrap();
    made.store.0.lock().unwrap().get_mut(part).unwrap()[at] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    let outcome = made.restore(dir.path());
    assert!(outcome.not_restored > 0 && outcome.files > 0);
    let fault = &made.faults(Depth::Data)[0];
    assert!(fault.affected > 0 && fault.object == *part && fault.r#where.starts_with("frame at byte"), "{fault:?}");
    let leftovers = fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().starts_with(super::target::TEMP_PREFIX));
    assert_eq!(leftovers.count(), 0);
    made.store.0.lock().unwrap().remove(part);
    assert_ne!(made.faults(Depth::Quick), []);
}

#[test]
fn a_cut_is_the_same_whichever_way_it_is_found() {
    use super::chain::{Located, Source};
    let source = |n: u64| Source { run: 0, stream: 0, offset: n * 1000, len: n * 37 % 11 };
    let content = Located { digest: Digest::of(b""), sources: (0..40).map(source).collect(), own: false };
    let starts = content.starts();
    let all: u64 = content.sources.iter().map(|source| source.len).sum();
    for offset in 0..all + 3 {
        for len in [0, 1, 2, 7, 30, all, u64::MAX] {
            let cut = content.cut(offset, len);
            assert_eq!(cut, content.cut_by(&starts, offset, len), "{len} bytes at {offset}");
            assert_eq!(cut.iter().map(|part| part.len).sum::<u64>(), len.min(all.saturating_sub(offset)));
        }
    }
}
