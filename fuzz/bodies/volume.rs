//! A whole volume of hostile bytes behind good digests: verified, listed, read and restored. Nothing panics, nothing leaves the target.
//!
//! Input: runs of (position u16, xor u8) that are applied to the plain bytes of the small index of an increment, which is then sealed again
//! with right digests, so that every check behind the digests is reached; it is also taken as a base.
use std::sync::{Arc, OnceLock};

use bk::{
    clock::{Clock, System},
    engine::{read::check::Depth, write::pipeline},
    format::{
        codec::Codec,
        index::{Directory, FOOTER_LEN, decode_footer, decode_tail, encode_tail, open_block, seal_block},
        layout::{INDEX_NAME, record_key, run_dir},
        record::Record,
    },
    model::digest::Digest,
    monitor::Silent,
    ops::{cat, ls, restore, snapshot, verify},
    plan::level,
    source::select::{Globs, Selection},
    volume::{Store, create_on, memory::MemoryStore, open_on},
};

struct Seed {
    objects: Vec<(String, Vec<u8>)>,
    index_key: String,
    record_key: String,
    record: Record,
    directory: Directory,
    blocks: Vec<Vec<u8>>,
    /// A level 2 over it, of what lies in `dir`.
    request: snapshot::Request,
    dir: tempfile::TempDir,
}

fn seed() -> &'static Seed {
    static SEED: OnceLock<Seed> = OnceLock::new();
    SEED.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("d")).expect("made");
        std::fs::write(dir.path().join("d/file"), vec![b'x'; 9000]).expect("written");
        std::fs::hard_link(dir.path().join("d/file"), dir.path().join("hard")).expect("linked");
        std::os::unix::fs::symlink("d", dir.path().join("soft")).expect("linked");
        let store = MemoryStore::default();
        let now = System.now().expect("a time");
        let volume = create_on(Arc::new(store.clone()), "memory".into(), now).expect("a volume");
        let mut request = snapshot::Request {
            job: "f".parse().expect("a name"),
            node: "n".into(),
            base: Some(dir.path().into()),
            sources: vec![".".into()],
            selection: Selection {
                exclude: Globs::new(&[]).expect("none"),
                exclude_caches: false,
                exclude_if_present: vec![],
                one_file_system: false,
            },
            patterns: vec![],
            streams: vec![],
            level: Some(level::Request::default()),
            min_interval: None,
            keep: None,
            keep_promoted: None,
            pipeline: pipeline::Settings { threads: 1, codec: Codec::None, frame_len: 4096, verify_all: false },
            ignore_inode: false,
            guards: snapshot::Guards::default(),
            values: std::collections::BTreeMap::new(),
            part_len: 4096,
        };
        let long: Vec<u8> = (0..20_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 9).to_le_bytes()).collect();
        std::fs::write(dir.path().join("long"), &long).expect("written");
        snapshot::run(&volume, None, &request, &System, &Silent).expect("a snapshot");
        // A delta, a renamed file, a removed directory, a new file.
        std::fs::write(dir.path().join("long"), [&long[..40_000], b"between", &long[40_000..]].concat())
            .expect("written");
        std::fs::rename(dir.path().join("d/file"), dir.path().join("moved")).expect("moved");
        std::fs::remove_dir(dir.path().join("d")).expect("removed");
        std::fs::write(dir.path().join("new"), b"new").expect("written");
        request.level = Some(level::Request { level: 1, ..level::Request::default() });
        snapshot::run(&volume, None, &request, &System, &Silent).expect("an increment");
        request.level = Some(level::Request { level: 2, ..level::Request::default() });
        let all = store.list("").expect("a list");
        let objects: Vec<_> = all.iter().map(|i| (i.key.clone(), store.read(&i.key, 1 << 20).expect("read"))).collect();
        let record_key = record_key(&request.job, 2);
        let bytes = store.read(&record_key, 1 << 20).expect("read");
        let record = Record::decode(&bytes).expect("a record");
        let Record::Snapshot(s) = &record else { panic!("not a snapshot") };
        let index_key = format!("{}{INDEX_NAME}", run_dir(&s.job, s.run_id));
        let index = store.read(&index_key, 1 << 20).expect("read");
        let len = index.len() as u64;
        let (tail_len, _) = decode_footer(&index[index.len() - FOOTER_LEN..], len).expect("a footer");
        let directory =
            decode_tail(&index[index.len() - tail_len as usize..], len, &s.index.tail_digest).expect("a directory");
        let block = |b: &bk::format::index::BlockInfo| {
            let stored = &index[b.offset as usize..][..b.stored_len as usize];
            open_block(stored, b.plain_len as usize, &b.digest).expect("a block")
        };
        let blocks = directory.blocks.iter().map(block).collect();
        Seed { objects, index_key, record_key, record, directory, blocks, request, dir }
    })
}

/// One input.
pub fn run(data: &[u8]) {
    let seed = seed();
    let mut blocks = seed.blocks.clone();
    let mut directory = seed.directory.clone();
    for change in data.chunks_exact(4) {
        let n = usize::from(change[0]) % (blocks.len() + 1);
        let at = usize::from(u16::from_le_bytes([change[1], change[2]]));
        match blocks.get_mut(n) {
            Some(block) => {
                let len = block.len();
                block[at % len] ^= change[3];
            }
            None => {
                let count = directory.blocks.len();
                let info = &mut directory.blocks[at % count];
                match change[3] % 4 {
                    0 => info.rows = info.rows.wrapping_add(u32::from(change[3])),
                    1 => info.first_extent ^= u64::from(change[3]),
                    2 => info.first_key.push(change[3]),
                    _ => info.plain_len ^= u32::from(change[3]),
                }
            }
        }
    }
    let mut index = Vec::new();
    for (info, plain) in directory.blocks.iter_mut().zip(&blocks) {
        let stored = seal_block(plain).expect("sealed");
        info.stored_len = stored.len() as u32;
        info.digest = Digest::of(&stored);
        index.extend_from_slice(&stored);
    }
    let tail = encode_tail(&directory).expect("a tail");
    index.extend_from_slice(&tail.bytes);
    let mut record = seed.record.clone();
    let Record::Snapshot(s) = &mut record else { panic!("not a snapshot") };
    s.index.len = index.len() as u64;
    s.index.tail_digest = tail.digest;
    let store = MemoryStore::default();
    for (key, bytes) in &seed.objects {
        store.set(key, bytes.clone());
    }
    store.set(&seed.index_key, index);
    store.set(&seed.record_key, record.encode().expect("encodes"));

    let volume = open_on(Arc::new(store), "memory".into()).expect("a volume");
    let name: bk::model::ids::SnapshotName = "f/2".parse().expect("a name");
    let _ = verify::run(
        &volume,
        &verify::Options { snapshot: None, depth: Depth::Data, threads: 1 },
        &bk::clock::System,
        &Silent,
    );
    let _ = ls::run(&volume, &ls::Options { snapshot: name.clone(), path: vec![], recursive: true }, &mut |_| Ok(()));
    let what = cat::What::Path(b"long".to_vec());
    let options = cat::Options { snapshot: name.clone(), what, range: Some((0, Some(1 << 20))), threads: 1 };
    let _ = cat::run(&volume, &options, &Silent, &mut std::io::sink());
    let outside = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let options = restore::Options {
        snapshot: name,
        target: outside.path().join("target"),
        paths: vec![],
        include: vec![],
        exclude: vec![],
        overwrite: restore::Overwrite::Always,
        safe: false,
        threads: 1,
    };
    let _ = restore::run(&volume, &options, &Silent);
    let names: Vec<_> = std::fs::read_dir(outside.path()).expect("listed").flatten().map(|e| e.file_name()).collect();
    assert!(seed.dir.path().is_dir(), "what is stored is there");
    let _ = snapshot::run(&volume, None, &seed.request, &System, &Silent);
    assert!(names.iter().all(|name| name == "target"), "something was made outside: {names:?}");
}
