//! A model in memory against bk: random trees change at random, are snapshotted, and every snapshot is read back at
//! random places, by `cat --range` and as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;

use crate::support::World;
use crate::support::inventory::inventory;
use crate::support::rng::Rng;

#[derive(Clone, Debug)]
enum Change {
    /// Writes a whole file: name, length, seed of its content.
    Write(u8, usize, u64),
    /// A file of this length that is holes but for these runs (offset, length).
    Sparse(u8, usize, Vec<(Index, usize)>),
    /// Overwrites in the middle.
    Patch(Index, Index, usize, u64),
    Resize(Index, usize),
    Remove(Index),
    Rename(Index, u8),
}

#[derive(Clone, Debug)]
struct Plan {
    codec: &'static str,
    frame: &'static str,
    part: &'static str,
    threads: u8,
    /// A snapshot is taken after each round.
    rounds: Vec<Vec<Change>>,
    reads: Vec<(Index, Index, Index, usize)>,
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        2 => 0usize..20,
        2 => prop::sample::select(vec![511usize, 512, 513, 4095, 4096, 4097, 16_384, 65_536, 131_072]),
        3 => 0usize..20_000,
        2 => 0usize..300_000,
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let runs = prop::collection::vec((any::<Index>(), 1usize..30_000), 0..5);
    prop_oneof![
        6 => (any::<u8>(), length(), any::<u64>()).prop_map(|(n, len, seed)| Change::Write(n, len, seed)),
        3 => (any::<u8>(), 0usize..300_000, runs).prop_map(|(n, len, runs)| Change::Sparse(n, len, runs)),
        2 => (any::<Index>(), any::<Index>(), 1usize..5000, any::<u64>()).prop_map(|(f, at, n, s)| Change::Patch(f, at, n, s)),
        1 => (any::<Index>(), length()).prop_map(|(f, len)| Change::Resize(f, len)),
        1 => any::<Index>().prop_map(Change::Remove),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(f, n)| Change::Rename(f, n)),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        prop::sample::select(vec!["zstd:1", "zstd:3", "bzip2:1", "none"]),
        prop::sample::select(vec!["4KiB", "16KiB", "64KiB", "256KiB", "4MiB"]),
        prop::sample::select(vec!["64KiB", "256KiB", "1MiB", "64MiB"]),
        1u8..4,
        prop::collection::vec(prop::collection::vec(change(), 1..20), 1..4),
        prop::collection::vec((any::<Index>(), any::<Index>(), any::<Index>(), 0usize..70_000), 8),
    )
        .prop_map(|(codec, frame, part, threads, rounds, reads)| Plan {
            codec,
            frame,
            part,
            threads,
            rounds,
            reads,
        })
}

type Model = BTreeMap<String, Vec<u8>>;

/// 256 names in a few directories, so that changes meet the same file.
fn name(n: u8) -> String {
    match n % 4 {
        0 => format!("top-{}", n / 4),
        1 => format!("d/{}", n / 4),
        2 => format!("d/e e/{}.txt", n / 4),
        _ => format!("z/{}", n / 4),
    }
}

fn pick(model: &Model, index: &Index) -> Option<String> {
    (!model.is_empty()).then(|| model.keys().nth(index.index(model.len())).unwrap().clone())
}

fn apply(change: &Change, root: &Path, model: &mut Model) {
    let open = |path: &str| File::options().read(true).write(true).open(root.join(path)).unwrap();
    match change {
        Change::Write(n, len, seed) => {
            let bytes = Rng::new(*seed).content(*len);
            fs::write(root.join(name(*n)), &bytes).unwrap();
            model.insert(name(*n), bytes);
        }
        Change::Sparse(n, len, runs) => {
            let file = File::create(root.join(name(*n))).unwrap();
            file.set_len(*len as u64).unwrap();
            let mut bytes = vec![0; *len];
            for (at, run) in runs.iter().filter(|_| *len > 0) {
                let at = at.index(*len);
                let end = (at + run).min(*len);
                let data = Rng::new(at as u64).prose(end - at);
                file.write_all_at(&data, at as u64).unwrap();
                bytes[at..end].copy_from_slice(&data);
            }
            model.insert(name(*n), bytes);
        }
        Change::Patch(index, at, len, seed) => {
            let Some(path) = pick(model, index) else { return };
            let bytes = model.get_mut(&path).unwrap();
            if bytes.is_empty() {
                return;
            }
            let at = at.index(bytes.len());
            let end = (at + len).min(bytes.len());
            let data = Rng::new(*seed).noise(end - at);
            open(&path).write_all_at(&data, at as u64).unwrap();
            bytes[at..end].copy_from_slice(&data);
        }
        Change::Resize(index, len) => {
            let Some(path) = pick(model, index) else { return };
            open(&path).set_len(*len as u64).unwrap();
            model.get_mut(&path).unwrap().resize(*len, 0);
        }
        Change::Remove(index) => {
            let Some(path) = pick(model, index) else { return };
            fs::remove_file(root.join(&path)).unwrap();
            model.remove(&path);
        }
        Change::Rename(index, n) => {
            let Some(path) = pick(model, index) else { return };
            fs::rename(root.join(&path), root.join(name(*n))).unwrap();
            let bytes = model.remove(&path).unwrap();
            model.insert(name(*n), bytes);
        }
    }
}

fn check(plan: &Plan) {
    let world = World::new("model");
    for dir in ["d/e e", "z"] {
        fs::create_dir_all(world.src.join(dir)).unwrap();
    }
    let mut model = Model::new();
    let mut kept = Vec::new();
    for round in &plan.rounds {
        for change in round {
            apply(change, &world.src, &mut model);
        }
        let Plan { codec, frame, part, threads, .. } = plan;
        let options = format!("--compression {codec} --frame-size {frame} --part-size {part} --threads {threads}");
        world.snapshot("m", &options).ok();
        kept.push(model.clone());
    }
    for (snapshot, file, at, len) in &plan.reads {
        let n = snapshot.index(kept.len());
        let Some(path) = pick(&kept[n], file) else { continue };
        let bytes = &kept[n][&path];
        let at = at.index(bytes.len() + 1);
        let end = (at + len).min(bytes.len());
        let range = format!("{at}:{len}");
        let ran = world.bk("cat").arg(format!("m/{}", n + 1)).arg(&path).arg("--range").arg(&range).run().ok();
        assert!(ran.stdout == bytes[at..end], "m/{} {path} {range}: {} bytes came", n + 1, ran.stdout.len());
    }
    for (n, model) in kept.iter().enumerate() {
        let (target, ran) = world.restore(&format!("m/{}", n + 1), &format!("out{n}"));
        ran.ok();
        let found = inventory(&target);
        let files = found.values().filter(|r| r.content.is_some()).count();
        assert_eq!(files, model.len(), "files in m/{}", n + 1);
        for (path, bytes) in model {
            assert!(fs::read(target.join(path)).unwrap() == *bytes, "m/{} {path}", n + 1);
        }
    }
    world.bk("verify --data").run().ok();
}

#[test]
fn random_trees_read_back_as_the_model_says() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(24);
    // A failing plan is printed whole and shrunk; no file of seeds is kept beside the test.
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&plan(), |plan| {
            std::panic::catch_unwind(|| check(&plan)).map_err(|cause| {
                let text = cause.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into());
                TestCaseError::fail(text)
            })
        })
        .unwrap_or_else(|e| panic!("{e}"));
}
