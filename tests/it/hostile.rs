//! Volumes made by hand to do harm: each is listed, verified, read and restored by the real binary.
//!
//! All stand behind right digests, so that whatever checks them is what stands behind the digests. What must hold for every
//! one of them: a clear end (no panic, no signal), nothing made or changed outside the target, at most 256 MiB of memory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bk::{
    format::{
        codec::Codec,
        index::{
            BlockInfo, Directory, Extent, Frame, Part, Section, encode_entries, encode_extents, encode_frames,
            encode_parts, encode_places, encode_tail, seal_block,
        },
        layout::{INDEX_NAME, RESTORE_NAME, record_key, run_dir},
        record::{Base, IndexRef, ObjectRef, Record, Snapshot, Totals},
        tar::{END_LEN, padded, write::header},
        volume::FORMAT_VERSION,
    },
    model::{
        digest::Digest,
        entry::{Entry, EntryKind, Map, Place, Run},
        ids::{Nonce, RunId},
        time::{Instant, Time},
    },
    volume::{Store, create_on, memory::MemoryStore},
};

use crate::support::{BK, exit, tools::need};

type Lie<T> = Box<dyn Fn(&mut T)>;

/// What is written about a snapshot; a case makes it lie.
struct Draft {
    entries: Vec<Entry>,
    extents: Vec<Extent>,
    frames: Vec<Frame>,
    parts: Vec<Part>,
    places: Vec<Place>,
    /// The stored tree.
    stored: Vec<u8>,
    /// Changes to the sealed index, the record and the record's bytes.
    sealed: Lie<Vec<u8>>,
    record: Lie<Snapshot>,
    bytes: Lie<Vec<u8>>,
    codec: Codec,
}

fn file(path: &[u8], content: &[u8]) -> (Entry, Vec<u8>) {
    let mut entry = Entry::new(path, EntryKind::File);
    (entry.mode, entry.size, entry.stored_len) = (0o640, content.len() as u64, content.len() as u64);
    entry.mtime = Time { sec: 1_000_000_000, nsec: 0 };
    (entry, content.to_vec())
}

fn other(path: &[u8], kind: EntryKind, link: &[u8]) -> (Entry, Vec<u8>) {
    let mut entry = file(path, b"").0;
    (entry.kind, entry.link) = (kind, link.to_vec());
    entry.mode = if kind == EntryKind::Dir { 0o755 } else { 0o640 };
    (entry, Vec::new())
}

fn dir(path: &[u8]) -> (Entry, Vec<u8>) {
    other(path, EntryKind::Dir, b"")
}

/// A snapshot of these members in this order, in one frame and one part.
fn draft(members: &[(Entry, Vec<u8>)]) -> Draft {
    let (mut plain, mut extents) = (Vec::new(), Vec::new());
    for (entry, content) in members {
        header(entry, &mut plain);
        if !content.is_empty() {
            let digest = Digest::of(content);
            extents.push(Extent { stream: 0, offset: plain.len() as u64, len: content.len() as u64, digest });
        }
        plain.extend_from_slice(content);
        plain.resize(padded(plain.len() as u64) as usize, 0);
    }
    plain.resize(plain.len() + END_LEN, 0);
    let (len, digest) = (plain.len() as u64, Digest::of(&plain));
    let frame = Frame {
        stream: 0,
        offset: 0,
        len: len as u32,
        part: 0,
        stored_offset: 0,
        stored_len: len as u32,
        digest,
        starts_member: true,
    };
    let part = Part {
        stream: 0,
        number: 0,
        stored_len: len,
        plain_len: len,
        frames: 1,
        trailer_len: 0,
        digest: Digest::of(&digest.0),
    };
    Draft {
        entries: members.iter().map(|(entry, _)| entry.clone()).collect(),
        extents,
        frames: vec![frame],
        parts: vec![part],
        places: Vec::new(),
        stored: plain,
        sealed: Box::new(|_| {}),
        record: Box::new(|_| {}),
        bytes: Box::new(|_| {}),
        codec: Codec::None,
    }
}

impl Draft {
    /// Replaces the one frame by these stored bytes, which are said to hold `len` plain ones.
    fn frame(mut self, stored: Vec<u8>, len: u32, codec: Codec) -> Self {
        let (stored_len, digest) = (stored.len() as u32, Digest::of(&stored));
        let frame = &mut self.frames[0];
        (frame.len, frame.stored_len, frame.digest) = (len, stored_len, digest);
        let part = &mut self.parts[0];
        (part.plain_len, part.stored_len) = (u64::from(len), u64::from(stored_len));
        part.digest = Digest::of(&digest.0);
        (self.stored, self.codec) = (stored, codec);
        self
    }

    fn with(mut self, lie: impl FnOnce(&mut Self)) -> Self {
        lie(&mut self);
        self
    }

    fn index(&self) -> (Vec<u8>, Digest) {
        let (mut index, mut directory) = (Vec::new(), Directory::default());
        let mut block = |section, rows: usize, key: &[u8], plain: &[u8]| {
            if rows == 0 {
                return;
            }
            let stored = seal_block(plain).unwrap();
            directory.blocks.push(BlockInfo {
                section,
                offset: index.len() as u64,
                stored_len: stored.len() as u32,
                plain_len: plain.len() as u32,
                digest: Digest::of(&stored),
                rows: rows as u32,
                first_row: 0,
                first_key: key.to_vec(),
                first_extent: 0,
            });
            index.extend_from_slice(&stored);
        };
        let first = self.entries.first().map(|entry| entry.path.clone()).unwrap_or_default();
        block(Section::Entries, self.entries.len(), &first, &encode_entries(&self.entries));
        block(Section::Extents, self.extents.len(), b"", &encode_extents(&self.extents));
        block(Section::Frames, self.frames.len(), &[0; 12], &encode_frames(&self.frames));
        block(Section::Parts, self.parts.len(), b"", &encode_parts(&self.parts));
        block(Section::Places, self.places.len(), b"", &encode_places(&self.places));
        let tail = encode_tail(&directory).unwrap();
        index.extend_from_slice(&tail.bytes);
        (self.sealed)(&mut index);
        (index, tail.digest)
    }

    /// Writes snapshot `seq` of job `t` into a volume below `dir`.
    fn write(&self, dir: &Path, seq: u64, base: Option<Base>) -> Base {
        let store = MemoryStore::default();
        let at = Instant::from_second(1_000_000_000).unwrap();
        if seq == 1 {
            create_on(Arc::new(store.clone()), "memory".to_owned(), at).unwrap();
        }
        let (index, tail_digest) = self.index();
        let (job, run_id) = ("t".parse().unwrap(), RunId::new(seq).unwrap());
        let run = run_dir(&job, run_id);
        let text = b"restore";
        let mut snapshot = Snapshot {
            format_version: FORMAT_VERSION,
            job,
            cluster: None,
            node: "n".to_owned(),
            run_id,
            nonce: Nonce::new().unwrap(),
            epoch: 0,
            seq,
            prev: base.as_ref().map(|base| base.digest),
            level: if base.is_some() { 1 } else { 0 },
            base,
            promoted_from: None,
            taken_at: at,
            store_at: None,
            expires_at: None,
            definition: Digest::of(b""),
            codec: self.codec,
            sources: Vec::new(),
            streams: Vec::new(),
            index: IndexRef { name: INDEX_NAME.to_owned(), len: index.len() as u64, tail_digest },
            restore_txt: ObjectRef { name: RESTORE_NAME.to_owned(), len: 7, digest: Digest::of(text) },
            totals: Totals::default(),
            chunk_key: None,
            incomplete: Vec::new(),
            copied_from: None,
            crypto: None,
            sig: None,
        };
        (self.record)(&mut snapshot);
        let named = Base { run_id, seq, digest: Digest([0; 32]) };
        let mut record = Record::Snapshot(Box::new(snapshot)).encode().unwrap();
        let digest = Digest::of(record.split(|&b| b == b'\n').next().unwrap());
        (self.bytes)(&mut record);
        let part = format!(
            "tree-00000.tar{}",
            match self.codec {
                Codec::Zstd(_) => ".zst",
                Codec::Bzip2(_) => ".bz2",
                Codec::None => "",
            }
        );
        let key = record_key(&"t".parse().unwrap(), seq);
        for (key, bytes) in [
            (format!("{run}{INDEX_NAME}"), index.as_slice()),
            (format!("{run}{RESTORE_NAME}"), text),
            (format!("{run}{part}"), &self.stored),
            (key, &record),
        ] {
            let path = dir.join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        if seq == 1 {
            fs::write(dir.join("bk-volume.json"), store.read("bk-volume.json", 1 << 20).unwrap()).unwrap();
        }
        Base { digest, ..named }
    }
}

/// Names and drafts of all cases.
fn cases() -> Vec<(String, Draft)> {
    let mut all: Vec<(String, Draft)> = Vec::new();
    let mut add = |name: String, draft: Draft| all.push((name, draft));
    let long = vec![b'n'; 300];
    let deep = b"d/".repeat(3000);
    let paths: [&[u8]; 16] = [
        b"..",
        b"../x",
        b"a/../../x",
        b"/abs",
        b"/etc/passwd",
        b"a//b",
        b"a/",
        b".",
        b"./x",
        b"a/./b",
        b"a\0b",
        b"",
        b"a/..",
        b"../../../../../../tmp/bk-hostile",
        &long,
        &deep,
    ];
    let kinds = [
        EntryKind::File,
        EntryKind::Dir,
        EntryKind::Symlink,
        EntryKind::HardLink,
        EntryKind::Fifo,
        EntryKind::CharDevice,
        EntryKind::Socket,
        EntryKind::Removed,
    ];
    for (n, path) in paths.iter().enumerate() {
        for kind in kinds {
            let member = if kind == EntryKind::File { file(path, b"harm") } else { other(path, kind, b"x") };
            // The tar itself stays plain: its header is another check.
            let mut lying = draft(&[file(b"fine", b"harm")]);
            lying.entries = vec![member.0];
            if kind != EntryKind::File {
                lying.extents.clear();
            }
            add(format!("path {n} {kind:?}"), lying);
        }
    }
    // Ways out through links that are there, or that the snapshot makes itself.
    for target in [&b"../outside"[..], b"../../outside", b"/tmp", b"out", b"."] {
        let through = [other(b"out", EntryKind::Symlink, target), file(b"out/through", b"harm")];
        add(format!("file through a link to {}", target.escape_ascii()), draft(&through));
        let over = [other(b"out", EntryKind::Symlink, target), dir(b"out/deeper"), file(b"out/deeper/x", b"harm")];
        add(format!("directory through a link to {}", target.escape_ascii()), draft(&over));
        let linked = [other(b"a", EntryKind::Symlink, target), other(b"b", EntryKind::HardLink, b"a/canary")];
        add(format!("hard link through a link to {}", target.escape_ascii()), draft(&linked));
        let twice = [other(b"a", EntryKind::Symlink, target), other(b"b", EntryKind::HardLink, b"a")];
        add(format!("hard link to a link to {}", target.escape_ascii()), draft(&twice));
    }
    for link in [&b"../canary"[..], b"/etc/passwd", b"nowhere", b"self", b"d", b"", b"a/../../canary"] {
        add(
            format!("hard link to {}", link.escape_ascii()),
            draft(&[dir(b"d"), other(b"self", EntryKind::HardLink, link)]),
        );
    }
    // Entries twice, out of order, below what is no directory, or with two kinds.
    add("twice".into(), draft(&[file(b"a", b"one"), file(b"a", b"two")]));
    add("out of order".into(), draft(&[file(b"b", b"one"), file(b"a", b"two")]));
    add("below a file".into(), draft(&[file(b"a", b"one"), file(b"a/b", b"two")]));
    add("file and directory".into(), draft(&[file(b"a", b"one"), dir(b"a")]));
    add("child without its directory".into(), draft(&[file(b"x/y/z", b"one")]));
    for kind in [EntryKind::Fifo, EntryKind::Socket, EntryKind::CharDevice, EntryKind::BlockDevice] {
        add(format!("below a {kind:?}"), draft(&[other(b"a", kind, b""), file(b"a/b", b"two")]));
    }
    // Bombs.
    let good = || draft(&[dir(b"d"), file(b"f", b"some content")]);
    for level in [1, 19] {
        let mut bomb = vec![0; 1 << 20];
        let len = zstd_len(&vec![0; 64 << 20], &mut bomb, level);
        bomb.truncate(len);
        for said in [1u32 << 26, 1 << 25, 4096, u32::MAX] {
            let member = file(b"bomb", b"x");
            let lying = draft(&[member]).frame(bomb.clone(), said, Codec::Zstd(3));
            add(format!("frame of 64 MiB said to be {said}, level {level}"), lying);
        }
    }
    for (n, head) in [
        // A frame that wants a window of 2^41 bytes, one without a length, one with a length of 2^63, one that goes on for ever.
        &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x01, 0x00, 0x00][..],
        &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x01, 0x00, 0x00],
        &[0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x01, 0x00, 0x00],
        &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0xfa, 0xff, 0xff, 0x00],
        &[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff],
        b"",
    ]
    .iter()
    .enumerate()
    {
        add(format!("zstd head {n}"), good().frame(head.to_vec(), 4096, Codec::Zstd(3)));
    }
    for (n, head) in
        [&b"BZh9"[..], b"BZh91AY&SY", b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0", b"garbage"].iter().enumerate()
    {
        add(format!("bzip2 head {n}"), good().frame(head.to_vec(), 4096, Codec::Bzip2(9)));
    }
    for size in [u64::MAX, i64::MAX as u64, 1 << 62, 1 << 50] {
        add(format!("size {size}"), good().with(|d| d.entries[1].size = size));
        add(format!("stored length {size}"), good().with(|d| d.entries[1].stored_len = size));
        add(format!("extent of {size}"), good().with(|d| d.extents[0].len = size.min(1 << 62)));
        add(
            format!("hole of {size}"),
            good().with(|d| {
                (d.entries[1].size, d.entries[1].sparse) = (size, Some(vec![Run { offset: 0, len: 12 }]));
            }),
        );
        add(format!("part of {size}"), good().with(|d| d.parts[0].stored_len = size));
        add(format!("frame at {size}"), good().with(|d| d.frames[0].stored_offset = size));
        add(format!("frame offset {size}"), good().with(|d| d.frames[0].offset = size));
    }
    for rows in [0, 1, 1023, 1024, 1025, u32::MAX] {
        for section in 0..4usize {
            let draft = good();
            let (bytes, digest) = reseal(&draft, |directory| directory.blocks[section].rows = rows);
            add(format!("{rows} rows in block {section}"), with_index(draft, bytes, digest));
        }
    }
    for len in [0, 1, 1 << 20, 4 << 20, u32::MAX] {
        for section in 0..4usize {
            let draft = good();
            let (bytes, digest) = reseal(&draft, |directory| directory.blocks[section].plain_len = len);
            add(format!("plain length {len} of block {section}"), with_index(draft, bytes, digest));
            let draft = good();
            let (bytes, digest) = reseal(&draft, |directory| directory.blocks[section].stored_len = len);
            add(format!("stored length {len} of block {section}"), with_index(draft, bytes, digest));
        }
    }
    // An index that is cut, or goes on, at many places.
    let whole = good().index().0.len();
    for at in (0..whole).step_by(whole / 40) {
        let cut = good().with(|d| d.sealed = Box::new(move |index| index.truncate(at)));
        add(format!("index cut at {at}"), cut);
    }
    for more in [1, 24, 4096] {
        let longer = good().with(|d| d.sealed = Box::new(move |index| index.resize(index.len() + more, 0)));
        add(format!("index longer by {more}"), longer);
    }
    // Records.
    let texts: [(&str, Lie<Vec<u8>>); 8] = [
        ("empty", Box::new(|b| b.clear())),
        ("half", Box::new(|b| b.truncate(b.len() / 2))),
        ("17 MiB", Box::new(|b| b.resize(17 << 20, b' '))),
        ("deep", Box::new(|b| *b = signed(&[b"[".repeat(200_000), b"]".repeat(200_000)].concat()))),
        ("not an object", Box::new(|b| *b = signed(b"[1,2,3]"))),
        ("other type", Box::new(|b| *b = signed(br#"{"type":"sheep","format_version":1}"#))),
        ("version", Box::new(|b| *b = signed(br#"{"type":"snapshot","format_version":99}"#))),
        ("not UTF-8", Box::new(|b| *b = signed(b"{\"type\":\"\xff\"}"))),
    ];
    for (name, change) in texts {
        add(format!("record: {name}"), good().with(|d| d.bytes = change));
    }
    let lies: [(&str, Lie<Snapshot>); 7] = [
        ("another job", Box::new(|s| s.job = "other".parse().unwrap())),
        ("another number", Box::new(|s| s.seq = 7)),
        ("level 9 without a base", Box::new(|s| s.level = 9)),
        ("its own base", Box::new(|s| s.base = Some(Base { run_id: s.run_id, seq: s.seq, digest: Digest([1; 32]) }))),
        ("index in another place", Box::new(|s| s.index.name = "../../../bk-volume.json".to_owned())),
        ("text in another place", Box::new(|s| s.restore_txt.name = "/etc/passwd".to_owned())),
        ("index of 2^60", Box::new(|s| s.index.len = 1 << 60)),
    ];
    for (name, change) in lies {
        add(format!("record: {name}"), good().with(|d| d.record = change));
    }
    all
}

/// The index of `draft` with a directory that lies.
fn reseal(draft: &Draft, lie: impl FnOnce(&mut Directory)) -> (Vec<u8>, Digest) {
    use bk::format::index::{FOOTER_LEN, decode_footer, decode_tail};
    let (index, digest) = draft.index();
    let len = index.len() as u64;
    let (tail_len, _) = decode_footer(&index[index.len() - FOOTER_LEN..], len).unwrap();
    let blocks = index.len() - tail_len as usize;
    let mut directory = decode_tail(&index[blocks..], len, &digest).unwrap();
    lie(&mut directory);
    let tail = encode_tail(&directory).unwrap();
    ([&index[..blocks], &tail.bytes].concat(), tail.digest)
}

fn with_index(mut draft: Draft, bytes: Vec<u8>, digest: Digest) -> Draft {
    let len = bytes.len() as u64;
    draft.sealed = Box::new(move |index| *index = bytes.clone());
    draft.record = Box::new(move |snapshot| (snapshot.index.len, snapshot.index.tail_digest) = (len, digest));
    draft
}

/// A JSON object as the volume has it, with its digest.
fn signed(line: &[u8]) -> Vec<u8> {
    [line, b"\n\"", blake3::hash(line).to_hex().as_bytes(), b"\"\n"].concat()
}

fn zstd_len(plain: &[u8], out: &mut [u8], level: i32) -> usize {
    zstd_safe::compress(out, plain, level).unwrap()
}

/// Increments over a good level 0 whose places and chains lie.
fn increments() -> Vec<(String, Draft)> {
    let mapped = |places: Vec<Place>, count: u64, len: u64| {
        let mut lying = draft(&[file(b"new", b"x")]);
        let mut entry = file(b"f", b"").0;
        (entry.size, entry.stored_len) = (len, len);
        entry.map = Some(Box::new(Map { digest: Digest::of(b"x"), first: 0, count, places: Vec::new() }));
        lying.entries.insert(0, entry);
        lying.places = places;
        lying
    };
    let place = |seq, stream, offset, len| Place { seq, stream, offset, len };
    let mut all = Vec::new();
    for (name, places, count, len) in [
        ("past its stream", vec![place(1, 0, 1 << 40, 12)], 1, 12),
        ("of no snapshot of its chain", vec![place(7, 0, 512, 12)], 1, 12),
        ("of its own future", vec![place(2, 0, 512, 12)], 1, 12),
        ("of no stream", vec![place(1, 9, 0, 12)], 1, 12),
        ("that overflow", vec![place(1, 0, i64::MAX as u64 - 20, 12)], 1, 12),
        ("that are too few", vec![place(1, 0, 512, 5)], 1, 12),
        ("that are not there", vec![], 4, 12),
        ("over and over", vec![place(1, 0, 0, 2048); 1000], 1000, 2_048_000),
        ("of 2^60 bytes", vec![place(1, 0, 0, 1 << 60)], 1, 1 << 60),
        ("of the header", vec![place(1, 0, 0, 12)], 1, 12),
    ] {
        all.push((format!("places {name}"), mapped(places, count, len)));
    }
    let lies: [(&str, Lie<Snapshot>); 4] = [
        ("with another run", Box::new(|s| s.base.as_mut().unwrap().run_id = RunId::new(99).unwrap())),
        ("with another digest", Box::new(|s| s.base.as_mut().unwrap().digest = Digest([9; 32]))),
        ("after it", Box::new(|s| s.base.as_mut().unwrap().seq = 3)),
        ("at level 0", Box::new(|s| s.level = 0)),
    ];
    for (name, change) in lies {
        all.push((format!("base {name}"), mapped(vec![place(1, 0, 512, 12)], 1, 12).with(|d| d.record = change)));
    }
    let removed = |path: &[u8]| other(path, EntryKind::Removed, b"");
    all.push(("removed and below".into(), draft(&[removed(b"d"), file(b"d/x", b"harm")])));
    all.push(("removed root".into(), draft(&[removed(b"")])));
    all
}

/// Writes every hostile volume below `world`, each into `<n>/volume`; gives name and seq of its snapshot of job `t`.
pub fn write_volumes(world: &Path) -> Vec<(String, u64)> {
    let mut all_names = Vec::new();
    let all = cases().into_iter().map(|case| (case, false)).chain(increments().into_iter().map(|case| (case, true)));
    for (n, ((name, lying), is_increment)) in all.enumerate() {
        let volume = world.join(format!("{n}/volume"));
        fs::create_dir_all(&volume).unwrap();
        let seq = if is_increment {
            let good = draft(&[self::dir(b"d"), file(b"f", b"some content")]);
            let base = good.write(&volume, 1, None);
            lying.write(&volume, 2, Some(base));
            2
        } else {
            lying.write(&volume, 1, None);
            1
        };
        all_names.push((name, seq));
    }
    all_names
}

#[test]
fn hostile_volumes_do_no_harm() {
    if !need("hostile_volumes_do_no_harm", &["python3"]) {
        return;
    }
    let world = crate::support::temp_dir("hostile");
    let mut names = Vec::new();
    for (n, (name, seq)) in write_volumes(world.path()).into_iter().enumerate() {
        let dir: PathBuf = world.path().join(format!("{n}"));
        // What a way out would reach: beside the target, and through links already in it.
        fs::create_dir_all(dir.join("outside")).unwrap();
        fs::create_dir(dir.join("target")).unwrap();
        fs::write(dir.join("canary"), b"canary").unwrap();
        fs::write(dir.join("outside/canary"), b"canary").unwrap();
        symlink("../outside", dir.join("target/out")).unwrap();
        fs::write(dir.join("seq"), seq.to_string()).unwrap();
        names.push(name);
    }
    assert!(names.len() >= 300, "{} cases", names.len());
    let script = world.path().join("run.py");
    fs::write(&script, include_str!("hostile.py")).unwrap();
    let out = std::process::Command::new("python3").arg(&script).arg(BK).arg(world.path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    let mut ran = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, '\t').collect();
        let [n, verb, code, said] = words[..] else { panic!("{line}") };
        let (n, code): (usize, i32) = (n.parse().unwrap(), code.parse().unwrap());
        let name = &names[n];
        assert!(
            matches!(code, 0 | exit::ERROR | exit::USAGE | exit::INCOMPLETE | exit::INTEGRITY | exit::NO_SPACE),
            "{name}: bk {verb} ended with {code}: {said}"
        );
        assert!(!said.contains("panicked"), "{name}: bk {verb}: {said}");
        let dir = world.path().join(n.to_string());
        assert_eq!(fs::read(dir.join("canary")).unwrap(), b"canary", "{name}");
        assert_eq!(fs::read(dir.join("outside/canary")).unwrap(), b"canary", "{name}");
        let outside: Vec<_> = fs::read_dir(dir.join("outside")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(outside, ["canary"], "{name}");
        let beside = fs::read_dir(&dir).unwrap().count();
        assert_eq!(beside, 5, "{name}: something was made beside the target");
        ran += 1;
    }
    assert_eq!(ran, names.len() * 5);
    let peak: u64 = String::from_utf8_lossy(&out.stderr).trim().parse().unwrap();
    assert!(peak <= 256 << 10, "a hostile volume made bk use {peak} KiB");
    println!("{} hostile volumes, {ran} runs, at most {peak} KiB", names.len());
}
