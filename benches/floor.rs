//! What no level 0 can be quicker than: `cargo bench --bench floor -- TREE TAR [RUNS]`.
//!
//! In turn: the bytes of TAR, already in memory, through bk's zstd:3 frames on two threads to nowhere; and every file below TREE opened, looked
//! at, read to its end and closed, on one thread, with nothing done with it. Wall and processor seconds of each run, as Markdown.

#![expect(clippy::print_stdout, reason = "a program for benches")]
#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use bk::format::codec::{Codec, Encoder};
use rustix::time::{ClockId, clock_gettime};

const FRAME_LEN: usize = 4 << 20;
const THREAD_COUNT: usize = 2;

/// Wall and processor seconds of `work`, and what it gave.
fn timed(work: impl FnOnce() -> u64) -> (f64, f64, u64) {
    let cpu = || {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
    };
    let (cpu_before, before) = (cpu(), Instant::now());
    let given = work();
    (before.elapsed().as_secs_f64(), cpu() - cpu_before, given)
}

/// Stored bytes of all frames.
fn compressed(plain: &[u8]) -> u64 {
    let next = AtomicUsize::new(0);
    let frames: Vec<&[u8]> = plain.chunks(FRAME_LEN).collect();
    let worker = || {
        let (mut encoder, mut out, mut sum) = (Encoder::new(Codec::Zstd(3)).unwrap(), Vec::new(), 0);
        while let Some(frame) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
            encoder.encode(frame, &mut out).unwrap();
            sum += out.len() as u64;
        }
        sum
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREAD_COUNT).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    })
}

/// Bytes of all files.
fn read(tree: &Path) -> u64 {
    let (mut directories, mut buf, mut sum) = (vec![tree.to_owned()], vec![0; FRAME_LEN], 0);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                let mut file = File::open(entry.path()).unwrap();
                // The length says how much is to come: no further read finds the end.
                let mut left = file.metadata().unwrap().len();
                while left > 0 {
                    let want = buf.len().min(usize::try_from(left).unwrap());
                    let got = file.read(&mut buf[..want]).unwrap() as u64;
                    left = if got == 0 { 0 } else { left - got };
                    sum += got;
                }
            }
        }
    }
    sum
}

fn main() {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).filter(|word| word != "--bench").map(PathBuf::from).collect();
    let [tree, tar, more @ ..] = &words[..] else {
        println!("cargo bench --bench floor -- TREE TAR [RUNS]");
        return;
    };
    let runs = more.first().map_or(5, |runs| runs.to_str().unwrap().parse().unwrap());
    let plain = std::fs::read(tar).unwrap();
    println!(
        "| run | frames, wall | processor | bytes | reading, wall | processor | bytes |\n|---|---|---|---|---|---|---|"
    );
    for run in 0..runs {
        let (wall, cpu, stored) = timed(|| compressed(&plain));
        let (read_wall, read_cpu, content) = timed(|| read(tree));
        println!("| {run} | {wall:.2} s | {cpu:.2} s | {stored} | {read_wall:.2} s | {read_cpu:.2} s | {content} |");
    }
}
