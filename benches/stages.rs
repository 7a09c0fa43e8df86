//! What a snapshot and a read are made of, stage by stage: `cargo bench --bench stages [FILTER]` tells their speed.
//!
//! `stages --list` names those that can be counted, and `stages --count STAGE TIMES` runs one of them so often on a smaller input, which is always the
//! same, for `tests/instructions` to count.

#![expect(clippy::print_stdout, reason = "a program for benches")]
#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

mod support;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    hint::black_box,
    sync::{Arc, mpsc},
    time::Duration,
};

use support::Numbers;

use bk::{
    clock::System,
    engine::{
        catalog,
        read::index::IndexReader,
        write::{
            chunk::{Cutter, Key, Lengths},
            index::IndexWriter,
            pipeline,
        },
    },
    format::{
        codec::{Codec, Decoder, Encoder},
        index::{ROW_COUNT_MAX, encode_entries, seal_block},
        layout::run_dir,
        record::{IndexRef, ObjectRef, Record, Snapshot, Totals},
        tar::write::header,
        volume::FORMAT_VERSION,
    },
    model::{
        digest::Digest,
        entry::{Entry, EntryKind},
        ids::{Nonce, RunId},
        time::Instant,
    },
    monitor::Silent,
    mount::{
        Limits,
        core::{Core, Shown},
        node::Node,
    },
    ops::snapshot,
    plan::{expiry, log::JobLog},
    source::select::Selection,
    steps::Values,
    volume::{Store, Volume, create_on, memory::MemoryStore},
};

/// A stage, ready to run.
struct Ready {
    work: Box<dyn FnMut()>,
    /// Bytes or rows one run goes through.
    amount: divan::counter::ItemsCount,
}

/// Makes a stage ready: for timing, or smaller for counting.
type Make = fn(bool) -> Ready;

const STAGES: [(&str, Make); 9] = [
    // Items are bytes of a frame, at zstd:3.
    ("frame_encode", frame_encode),
    ("frame_decode", frame_decode),
    ("tar_headers", tar_headers),
    // Bytes.
    ("chunk", chunk),
    // Entries.
    ("index_encode", index_encode),
    ("index_scan", index_scan),
    // Paths.
    ("index_lookup", index_lookup),
    // Records.
    ("plan_of_expiry", plan_of_expiry),
    // Reads of 4 KiB from a mount.
    ("random_read", random_read),
];

/// It reads the clock through the vDSO, which valgrind hides, and ends there.
const NOT_COUNTED: &str = "random_read";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list"] => STAGES.iter().filter(|stage| stage.0 != NOT_COUNTED).for_each(|(name, _)| println!("{name}")),
        ["--count", name, times] => {
            let mut ready = STAGES.iter().find(|stage| stage.0 == name).unwrap().1(true);
            (0..times.parse().unwrap()).for_each(|_: u32| (ready.work)());
        }
        _ => divan::main(),
    }
}

#[divan::bench(args = STAGES.map(|stage| stage.0), min_time = 1)]
fn stage(bencher: divan::Bencher<'_, '_>, name: &str) {
    let Ready { mut work, amount } = STAGES.iter().find(|stage| stage.0 == name).unwrap().1(false);
    bencher.counter(amount).bench_local(&mut work);
}

fn ready(amount: usize, work: impl FnMut() + 'static) -> Ready {
    Ready { work: Box::new(work), amount: divan::counter::ItemsCount::new(amount) }
}

fn frame_encode(is_small: bool) -> Ready {
    let plain = text(if is_small { 256 << 10 } else { 4 << 20 });
    let (mut encoder, mut out) = (Encoder::new(Codec::Zstd(3)).unwrap(), Vec::new());
    ready(plain.len(), move || {
        out.clear();
        encoder.encode(&plain, &mut out).unwrap();
    })
}

fn frame_decode(is_small: bool) -> Ready {
    let plain = text(if is_small { 256 << 10 } else { 4 << 20 });
    let (mut stored, mut out) = (Vec::new(), Vec::new());
    Encoder::new(Codec::Zstd(3)).unwrap().encode(&plain, &mut stored).unwrap();
    let mut decoder = Decoder::new().unwrap();
    ready(plain.len(), move || decoder.decode(Codec::Zstd(3), &stored, plain.len(), &mut out).unwrap())
}

fn tar_headers(_: bool) -> Ready {
    let (entries, mut out) = (entries(1000), Vec::new());
    ready(entries.len(), move || {
        out.clear();
        entries.iter().for_each(|entry| _ = header(entry, &mut out));
    })
}

fn chunk(is_small: bool) -> Ready {
    let data = text(if is_small { 1 << 20 } else { 16 << 20 });
    ready(data.len(), move || {
        let (mut cutter, key) = (Cutter::new(Lengths::CONTENT), Key::new(&[7; 32]));
        let name = |chunk: &[u8]| _ = black_box(key.identify(chunk));
        data.chunks(4 << 20).for_each(|buffer| cutter.feed(buffer, name));
        cutter.finish(name);
    })
}

fn index_encode(_: bool) -> Ready {
    let entries = entries(ROW_COUNT_MAX);
    ready(entries.len(), move || _ = black_box(seal_block(&encode_entries(&entries)).unwrap()))
}

fn index_scan(is_small: bool) -> Ready {
    let count = if is_small { 4096 } else { 100_000 };
    let (volume, snapshot) = indexed(count);
    // Opened each time, so that no block is decoded yet.
    ready(count, move || {
        let index = IndexReader::open(&volume, &snapshot).unwrap();
        assert_eq!(index.rows().map(Result::unwrap).count(), count);
    })
}

fn index_lookup(is_small: bool) -> Ready {
    let count = if is_small { 4096 } else { 100_000 };
    let (volume, snapshot) = indexed(count);
    let index = IndexReader::open(&volume, &snapshot).unwrap();
    let paths: Vec<Vec<u8>> = entries(count).into_iter().map(|entry| entry.path).step_by(count / 256).collect();
    ready(paths.len(), move || {
        for path in &paths {
            assert!(index.lookup(path).unwrap().is_some());
        }
    })
}

fn plan_of_expiry(is_small: bool) -> Ready {
    let count = if is_small { 200 } else { 10_000 };
    let mut log = JobLog::new(&"db".parse().unwrap());
    for seq in 1..=count {
        let mut snapshot = record(seq);
        // A week of levels 0 to 6, each kept a month.
        snapshot.level = u8::try_from((seq - 1) % 7).unwrap();
        snapshot.base = (snapshot.level > 0).then(|| {
            let base = &log.state(seq - 1).unwrap();
            bk::format::record::Base { run_id: base.snapshot.run_id, seq: seq - 1, digest: base.digest }
        });
        snapshot.prev = log.head.digest;
        log.push(seq, Ok((Record::Snapshot(Box::new(snapshot)), Digest::of(&seq.to_le_bytes()))));
    }
    let options = expiry::Options { now: day(count), allow_last: false, yes: true };
    ready(usize::try_from(count).unwrap(), move || {
        let plan = expiry::plan(&log, &BTreeSet::new(), options).unwrap();
        assert!(!plan.go.is_empty());
    })
}

fn random_read(_: bool) -> Ready {
    let (len, reads) = (16 << 20, 1024);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), text(len)).unwrap();
    let volume = create_on(Arc::new(MemoryStore::default()), "memory".to_owned(), day(0)).unwrap();
    let settings = pipeline::Settings { threads: 1, codec: Codec::Zstd(3), frame_len: 256 << 10, verify_all: false };
    let request = snapshot::Request {
        job: "db".parse().unwrap(),
        node: "n1".to_owned(),
        base: Some(dir.path().to_owned()),
        sources: vec![dir.path().to_owned()],
        selection: Selection::default(),
        patterns: Vec::new(),
        level: None,
        min_interval: None,
        keep: None,
        keep_promoted: None,
        streams: Vec::new(),
        pipeline: settings,
        part_len: 64 << 20,
        ignore_inode: false,
        values: Values::default(),
        guards: snapshot::Guards::default(),
    };
    snapshot::run(&volume, None, &request, &System, &Silent).unwrap();
    let log = catalog::read(&volume, &request.job).unwrap();
    let taken = log.live().next().unwrap().clone();
    let shown = Shown::One(Box::new(taken.clone()), vec![taken]);
    let limits = Limits {
        cache_len: 64 << 20,
        deadline: Duration::from_secs(600),
        frame_threads: 1,
        index_threads: 1,
        ahead_len: 16 << 20,
        fresh: Duration::from_secs(600),
    };
    let core = Core::new(volume, shown, limits, Arc::new(Silent)).unwrap();
    core.open().unwrap();
    let node = core.lookup(Node::TOP, b"file").unwrap().unwrap().node;
    let mut numbers = Numbers(5);
    let places: Vec<u64> = (0..reads).map(|_| numbers.below(len as u64 / 4096) * 4096).collect();
    let (done, answers) = mpsc::channel();
    ready(reads, move || {
        for place in &places {
            let done = done.clone();
            core.read(node, *place, 4096, move |data| _ = done.send(data.is_ok()));
        }
        assert!(answers.iter().take(reads).all(|is_good| is_good));
    })
}

/// A volume with the index of so many entries, and the snapshot's record.
fn indexed(count: usize) -> (Volume, Snapshot) {
    let store = Arc::new(MemoryStore::default());
    let volume = create_on(store.clone(), "memory".to_owned(), day(0)).unwrap();
    let mut snapshot = record(1);
    let key = format!("{}{}", run_dir(&snapshot.job, snapshot.run_id), snapshot.index.name);
    let mut writer = IndexWriter::new(store.create(&key).unwrap());
    entries(count).into_iter().for_each(|entry| writer.entry(entry).unwrap());
    snapshot.index = writer.finish().unwrap();
    (volume, snapshot)
}

/// Empty files, 64 in a directory, named and dated as sources are.
fn entries(count: usize) -> Vec<Entry> {
    let mut numbers = Numbers(1);
    (0..count)
        .map(|n| {
            let path = format!("drivers/gpu-{:05}/{:05}-{}.c", n / 64, n % 64, WORDS[n % WORDS.len()]);
            let mut entry = Entry::new(path.into_bytes(), EntryKind::File);
            (entry.mode, entry.uid, entry.gid, entry.ino) = (0o644, 1000, 1000, 4711 + n as u64);
            entry.mtime.sec = 1_700_000_000 + i64::try_from(numbers.below(1 << 20)).unwrap();
            entry.mtime.nsec = u32::try_from(numbers.below(1_000_000_000)).unwrap();
            entry.ctime = entry.mtime;
            entry
        })
        .collect()
}

/// The record of a snapshot at level 0, one a day, kept a month.
fn record(seq: u64) -> Snapshot {
    let digest = Digest::of(b"");
    Snapshot {
        format_version: FORMAT_VERSION,
        job: "db".parse().unwrap(),
        cluster: None,
        node: "n1".to_owned(),
        run_id: RunId::new(seq).unwrap(),
        nonce: Nonce::new().unwrap(),
        epoch: 0,
        seq,
        prev: None,
        level: 0,
        base: None,
        promoted_from: None,
        taken_at: day(seq),
        store_at: None,
        expires_at: Some(day(seq + 30)),
        definition: digest,
        codec: Codec::Zstd(3),
        sources: Vec::new(),
        streams: Vec::new(),
        index: IndexRef { name: "index-00000.bki".to_owned(), len: 1, tail_digest: digest },
        restore_txt: ObjectRef { name: "RESTORE.txt".to_owned(), len: 1, digest },
        totals: Totals::default(),
        chunk_key: None,
        incomplete: Vec::new(),
        copied_from: None,
        crypto: None,
        sig: None,
    }
}

fn day(n: u64) -> Instant {
    Instant::from_second(1_800_000_000 + i64::try_from(n).unwrap() * 86_400).unwrap()
}

const WORDS: [&str; 24] = [
    "static",
    "struct",
    "return",
    "int",
    "unsigned",
    "device",
    "driver",
    "buffer",
    "const",
    "pci",
    "register",
    "lock",
    "if (!err)",
    "goto out;",
    "break;",
    "case",
    "NULL",
    "->",
    " = ",
    "size_t",
    "->priv",
    "0x1f",
    "u32",
    "kfree(buf);",
];

/// Text like a program's: lines of common and less common words, names and numbers.
fn text(len: usize) -> Vec<u8> {
    let (mut numbers, mut text) = (Numbers(9), String::with_capacity(len + 128));
    while text.len() < len {
        let depth = usize::try_from(numbers.below(4)).unwrap();
        text.push_str(&"\t".repeat(depth));
        for _ in 0..2 + numbers.below(8) {
            // The smaller of two: some words are more common than others.
            let word = numbers.below(40).min(numbers.below(40));
            match usize::try_from(word).ok().and_then(|word| WORDS.get(word)) {
                Some(word) => text.push_str(word),
                None => write!(text, "{}_{:x}", WORDS[depth], numbers.below(1 << 12)).unwrap(),
            }
            text.push(' ');
        }
        text.push('\n');
    }
    let mut text = text.into_bytes();
    text.truncate(len);
    text
}
