//! Every bit of a small volume flipped, in process: `verify` finds each, and says where.

use std::sync::Arc;

use bk::{
    clock::{Clock, System},
    engine::{read::check::Depth, write::pipeline},
    error::Kind,
    format::codec::Codec,
    monitor::Silent,
    ops::{snapshot, verify},
    plan::level,
    source::{
        command::CommandLine,
        select::{Globs, Selection},
    },
    volume::{Volume, create_on, memory::MemoryStore, open_on},
};

use crate::support::{stay_on, taken};

fn request(dir: &std::path::Path, codec: Codec, level: u8) -> snapshot::Request {
    snapshot::Request {
        job: "bits".parse().unwrap(),
        node: "node".to_owned(),
        base: Some(dir.to_owned()),
        sources: vec![".".into()],
        selection: Selection {
            exclude: Globs::new(&[]).unwrap(),
            exclude_caches: false,
            exclude_if_present: Vec::new(),
            one_file_system: false,
        },
        patterns: Vec::new(),
        streams: vec![(
            "numbers".parse().unwrap(),
            snapshot::Input::Command(CommandLine {
                argv: vec!["seq".into(), "1".into(), "900".into()],
                ..CommandLine::default()
            }),
        )],
        pipeline: pipeline::Settings { threads: 1, codec, frame_len: 4096, verify_all: true },
        level: Some(level::Request { level, ..level::Request::default() }),
        min_interval: None,
        keep: None,
        keep_promoted: None,
        ignore_inode: false,
        guards: snapshot::Guards::default(),
        values: std::collections::BTreeMap::new(),
        part_len: 2048,
    }
}

/// A volume with a level 0 of a few files and a stream, in several parts, and a level 1 with all that one can have.
fn small_volume(codec: Codec) -> (MemoryStore, Volume) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let noise: Vec<u8> = (0..1500u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(dir.path().join("noise"), &noise).unwrap();
    std::fs::write(dir.path().join("sub/text"), "some text\n".repeat(700)).unwrap();
    std::os::unix::fs::symlink("noise", dir.path().join("link")).unwrap();
    let store = MemoryStore::default();
    let volume = create_on(Arc::new(store.clone()), "memory".to_owned(), System.now().unwrap()).unwrap();
    snapshot::run(&volume, None, &request(dir.path(), codec, 0), &System, &Silent).unwrap();
    std::fs::write(dir.path().join("sub/text"), "some text\n".repeat(600) + "other").unwrap();
    std::fs::rename(dir.path().join("noise"), dir.path().join("moved")).unwrap();
    std::fs::remove_file(dir.path().join("link")).unwrap();
    let second = snapshot::run(&volume, None, &request(dir.path(), codec, 1), &System, &Silent).map(taken).unwrap();
    assert_eq!((second.level, second.totals.removed_entries), (1, 2));
    (store, volume)
}

/// What `bk verify` would find: the object named by the first fault.
fn found(store: &MemoryStore) -> Option<String> {
    let options = verify::Options { snapshot: None, depth: Depth::Stored, threads: 1 };
    let volume = match open_on(Arc::new(store.clone()), "memory".to_owned()) {
        Ok(volume) => volume,
        Err(e) => {
            assert_eq!(e.kind(), Kind::Integrity, "{e}");
            return Some(e.to_string());
        }
    };
    match verify::run(&volume, &options, &bk::clock::System, &Silent) {
        Ok(outcome) => {
            outcome.faults.first().map(|fault| format!("{} {}: {}", fault.object, fault.r#where, fault.what))
        }
        Err(e) => {
            assert_eq!(e.kind(), Kind::Integrity, "{e}");
            Some(e.to_string())
        }
    }
}

/// How many bytes of an object are flipped: all, but of a `RESTORE.txt` with a script in it, which is one digest, the first.
fn flipped_len(key: &str, len: u64) -> u64 {
    if key.ends_with("RESTORE.txt") { len.min(1024) } else { len }
}

fn every_bit(codec: Codec) {
    std::thread::scope(|scope| scope.spawn(|| every_bit_here(codec)).join().unwrap());
}

fn every_bit_here(codec: Codec) {
    stay_on(rustix::thread::sched_getcpu());
    let (store, volume) = small_volume(codec);
    assert_eq!(found(&store), None);
    let mut objects = volume.store.list("").unwrap();
    // A lease says nothing of what is stored, and one that is damaged is only waited for.
    objects.retain(|item| !item.key.starts_with("leases/"));
    let total: u64 = objects.iter().map(|item| flipped_len(&item.key, item.len)).sum();
    assert!(total <= 16 << 10, "{total} bytes");
    assert!(objects.len() >= 11, "{} objects", objects.len());
    let mut flipped = 0u64;
    for item in objects {
        let good = volume.store.read(&item.key, u64::MAX - 1).unwrap();
        for bit in 0..flipped_len(&item.key, item.len) as usize * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            store.set(&item.key, bad);
            let fault = found(&store).unwrap_or_else(|| panic!("{} bit {bit}: not found", item.key));
            assert!(fault.contains(&item.key), "{} bit {bit}: told as {fault}", item.key);
            let is_data = item.key.contains("tree-") || item.key.contains("stream-") || item.key.ends_with(".bki");
            assert!(
                !is_data
                    || ["frame", "block", "trailer", "directory", "footer", "seek"]
                        .iter()
                        .any(|word| fault.contains(word)),
                "{} bit {bit}: does not say where: {fault}",
                item.key
            );
            flipped += 1;
        }
        store.set(&item.key, good);
    }
    assert_eq!(found(&store), None);
    println!("{codec}: {flipped} bits of {total} bytes flipped, all found");
}

#[test]
fn every_flipped_bit_is_found_zstd() {
    every_bit(Codec::Zstd(3));
}

#[test]
fn every_flipped_bit_is_found_bzip2() {
    every_bit(Codec::Bzip2(9));
}
