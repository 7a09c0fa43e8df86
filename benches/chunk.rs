//! What chunks cost beside BLAKE3, and how much of a changed stream is new: `cargo bench --bench chunk [FILE…]`.
//!
//! Times are CPU time of one thread over 1 GiB in buffers of 4 MiB, medians and minima of alternating runs, and both in
//! relation to BLAKE3 alone. Beside generated data each
//! `FILE` is measured too (its first 1 GiB).

#![expect(clippy::print_stdout, reason = "it prints a table")]
#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Read;

use bk::engine::write::chunk::{Cutter, Key, Lengths};
use rustix::time::{ClockId, clock_gettime};
use support::Numbers;

mod support;

const BYTES: usize = 1 << 30;
const BUFFER: usize = 4 << 20;
const RUNS: usize = 7;

fn main() {
    let files = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    println!("{:<18}{:<26}{:>10}{:>10}{:>8}{:>8}", "data", "work", "median ms", "least ms", "ratio", "least");
    speed("random", &random(BYTES, 1));
    for file in files {
        let mut data = Vec::new();
        std::fs::File::open(&file).unwrap().take(BYTES as u64).read_to_end(&mut data).unwrap();
        speed(file.rsplit('/').next().unwrap_or_default(), &data);
    }
    let dump = dump(BYTES);
    speed("dump", &dump);
    speed("zeros", &vec![0; BYTES]);
    speed("period 97", &random(97, 2).iter().copied().cycle().take(BYTES).collect::<Vec<u8>>());
    changes(dump);
}

/// Times every kind of work over `data`, in turn, and prints a line each.
fn speed(name: &str, data: &[u8]) {
    let key = Key::new(&[7; 32]);
    let of_blake3 = |chunk: &[u8]| *blake3::hash(chunk).as_bytes();
    let cut = |lengths, work: &dyn Fn(&[u8])| {
        let mut cutter = Cutter::new(lengths);
        data.chunks(BUFFER).for_each(|buffer| cutter.feed(buffer, work));
        cutter.finish(work);
    };
    let sum = |lengths| {
        let mut hasher = blake3::Hasher::new();
        let mut cutter = Cutter::new(lengths);
        let name = |chunk: &[u8]| _ = black_box(key.identify(chunk));
        for buffer in data.chunks(BUFFER) {
            hasher.update(buffer);
            cutter.feed(buffer, name);
        }
        cutter.finish(name);
        black_box(hasher.finalize());
    };
    let works: [(&str, &dyn Fn()); 8] = [
        ("BLAKE3", &|| {
            let mut hasher = blake3::Hasher::new();
            data.chunks(BUFFER).for_each(|buffer| {
                hasher.update(buffer);
            });
            black_box(hasher.finalize());
        }),
        ("cuts", &|| cut(Lengths::CONTENT, &|chunk| _ = black_box(chunk.len()))),
        ("cuts + XXH3", &|| cut(Lengths::CONTENT, &|chunk| _ = black_box(key.identify(chunk)))),
        ("cuts + BLAKE3 of chunks", &|| cut(Lengths::CONTENT, &|chunk| _ = black_box(of_blake3(chunk)))),
        ("fixed + XXH3", &|| cut(Lengths::FIXED, &|chunk| _ = black_box(key.identify(chunk)))),
        ("fixed + BLAKE3 of chunks", &|| cut(Lengths::FIXED, &|chunk| _ = black_box(of_blake3(chunk)))),
        ("BLAKE3, cuts + XXH3", &|| sum(Lengths::CONTENT)),
        ("BLAKE3, fixed + XXH3", &|| sum(Lengths::FIXED)),
    ];
    let mut times = vec![Vec::new(); works.len()];
    for _ in 0..RUNS {
        for ((_, work), times) in works.iter().zip(&mut times) {
            let start = cpu_ms();
            work();
            times.push(cpu_ms() - start);
        }
    }
    times.iter_mut().for_each(|of| of.sort_by(f64::total_cmp));
    let (base, least) = (times[0][RUNS / 2], times[0][0]);
    for ((work, _), of) in works.iter().zip(&times) {
        let (median, min) = (of[RUNS / 2], of[0]);
        println!("{name:<18}{work:<26}{median:>10.1}{min:>10.1}{:>8.2}{:>8.2}", median / base, min / least);
    }
}

/// Prints which share of a changed dump is in chunks that the dump before did not have.
fn changes(old: Vec<u8>) {
    println!("\n{:<36} {:>9} {:>9}", "change of the dump", "content %", "fixed %");
    let mut numbers = Numbers(3);
    let mut random_blocks = old.clone();
    let mut other_rows = old.clone();
    for _ in 0..500 {
        let at = below(&mut numbers, old.len() / 4096) * 4096;
        random_blocks[at..at + 4096].copy_from_slice(&random(4096, numbers.next()));
        let from = below(&mut numbers, old.len() - 4096);
        other_rows[at..at + 4096].copy_from_slice(&old[from..from + 4096]);
    }
    report("500 overwrites of 4 KiB, random", &old, &random_blocks);
    report("500 overwrites of 4 KiB, other rows", &old, &other_rows);
    drop((random_blocks, other_rows));

    let mut places: Vec<usize> = (0..200).map(|_| below(&mut numbers, old.len())).collect();
    places.sort_unstable();
    let mut new = Vec::with_capacity(old.len() + (1 << 20));
    let mut done = 0;
    for at in places {
        new.extend_from_slice(&old[done..at]);
        new.extend_from_slice(&random(400 + below(&mut numbers, 200), numbers.next()));
        done = at;
    }
    new.extend_from_slice(&old[done..]);
    report("200 inserts of about 500 bytes", &old, &new);
}

fn report(what: &str, old: &[u8], new: &[u8]) {
    let [content, fixed] = [Lengths::CONTENT, Lengths::FIXED].map(|lengths| {
        let known: HashSet<[u8; 16]> = chunks(lengths, old).into_iter().map(|(_, id)| id).collect();
        let bytes: usize = chunks(lengths, new).iter().filter(|(_, id)| !known.contains(id)).map(|(len, _)| len).sum();
        100.0 * bytes as f64 / new.len() as f64
    });
    println!("{what:<36} {content:>9.2} {fixed:>9.2}");
}

fn chunks(lengths: Lengths, data: &[u8]) -> Vec<(usize, [u8; 16])> {
    let (mut found, key, mut cutter) = (Vec::new(), Key::new(&[7; 32]), Cutter::new(lengths));
    let mut keep = |chunk: &[u8]| found.push((chunk.len(), key.identify(chunk)));
    data.chunks(BUFFER).for_each(|buffer| cutter.feed(buffer, &mut keep));
    cutter.finish(keep);
    found
}

/// Lines such as `pg_dump` writes of the accounts of `pgbench`.
fn dump(len: usize) -> Vec<u8> {
    let mut text = String::with_capacity(len + 128);
    for line in 1.. {
        writeln!(text, "{line}\t1\t0\t{:84}", "").unwrap();
        if text.len() >= len {
            break;
        }
    }
    let mut text = text.into_bytes();
    text.truncate(len);
    text
}

fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn below(numbers: &mut Numbers, limit: usize) -> usize {
    usize::try_from(numbers.below(limit as u64)).unwrap()
}

fn cpu_ms() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e3 + now.tv_nsec as f64 / 1e6
}
