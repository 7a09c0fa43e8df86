//! Where the time of a snapshot went: each thread says what it is at, and the clock is read only when that changes.
//!
//! Every moment of a thread belongs to exactly one stage, so the stages of all threads add up to the threads' whole time. The
//! thread that reads takes turns at a worker's work; the time it is away is that worker's.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// What a thread is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Walking, opening and reading the source, and waiting for it.
    Read,
    /// Making tar headers.
    Tar,
    /// Hashing contents, cutting and naming chunks, comparing them.
    Hash,
    /// Compressing, and trying whether that can be undone.
    Compress,
    /// Hashing stored frames.
    Seal,
    /// Making the index.
    Index,
    /// Writing to the volume, and waiting for it.
    Write,
    /// Waiting for other threads.
    Wait,
    /// Doing another thread's work: that one counts it.
    Away,
}

/// All stages that count, in the order of a frame's way.
pub const STAGES: [Stage; 8] =
    [Stage::Read, Stage::Tar, Stage::Hash, Stage::Compress, Stage::Seal, Stage::Index, Stage::Write, Stage::Wait];

impl Stage {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Tar => "tar",
            Self::Hash => "hash",
            Self::Compress => "compress",
            Self::Seal => "seal",
            Self::Index => "index",
            Self::Write => "write",
            Self::Wait => "wait",
            Self::Away => "away",
        }
    }

    /// As what holds a run up.
    pub fn as_bottleneck(self) -> &'static str {
        match self {
            Self::Read => "reading the source",
            Self::Tar => "tar headers",
            Self::Hash => "hashing",
            Self::Compress => "compression",
            Self::Seal => "sealing",
            Self::Index => "the index",
            Self::Write => "the volume",
            Self::Wait | Self::Away => "nothing",
        }
    }
}

const SLOTS: usize = STAGES.len() + 1;

/// Nanoseconds of one or more threads in each stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent([u64; SLOTS]);

impl Spent {
    /// Adds another thread's.
    pub fn add(&mut self, other: Spent) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, one)| *sum += one);
    }

    /// Seconds in one stage.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a run fit")]
    fn seconds(&self, stage: Stage) -> f64 {
        self.0[stage as usize] as f64 / 1e9
    }
}

/// One thread's clock.
#[derive(Debug)]
pub struct Watch {
    stage: Stage,
    since: Instant,
    spent: Spent,
}

impl Watch {
    /// Begins with `stage`.
    pub fn new(stage: Stage) -> Self {
        Self { stage, since: Instant::now(), spent: Spent::default() }
    }

    /// From now on this thread is at `stage`; gives what it was at.
    pub fn turn(&mut self, stage: Stage) -> Stage {
        let now = Instant::now();
        let passed = u64::try_from(now.duration_since(self.since).as_nanos()).unwrap_or(u64::MAX);
        self.spent.0[self.stage as usize] += passed;
        self.since = now;
        std::mem::replace(&mut self.stage, stage)
    }

    /// What was spent till now; the thread stays where it is.
    pub fn spent(&mut self) -> Spent {
        self.turn(self.stage);
        self.spent
    }
}

/// Nanoseconds a thread had a processor, and how long it was ready to run and had none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// On a processor.
    pub cpu_ns: u64,
    /// Waiting for one, as the kernel counts it; 0 where it does not.
    pub delayed_ns: u64,
}

impl Ran {
    /// Of the calling thread so far.
    pub fn of_thread() -> Self {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        let cpu_ns = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
        // Time on a processor, time waiting for one, turns.
        let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let delayed_ns = told.split_ascii_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        Self { cpu_ns, delayed_ns }
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let cpu_ns = self.cpu_ns.saturating_sub(before.cpu_ns);
        Self { cpu_ns, delayed_ns: self.delayed_ns.saturating_sub(before.delayed_ns) }
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: Self) {
        self.cpu_ns += other.cpu_ns;
        self.delayed_ns += other.delayed_ns;
    }
}

/// One stage of a profile.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Part {
    /// Which.
    pub stage: Stage,
    /// Seconds, of all threads together.
    pub seconds: f64,
    /// Share of the time in which its threads could have been at it, 0 to 1.
    pub busy: f64,
}

/// Where the time of a run went.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// What held the run up.
    pub bottleneck: &'static str,
    /// From the first byte read to the last one durable.
    pub seconds: f64,
    /// Processor seconds of its threads.
    pub cpu_seconds: f64,
    /// Seconds they were ready to run and other work had the processors; 0 where the kernel does not tell.
    pub delayed_seconds: f64,
    /// Threads that read, hash and compress; one more writes.
    pub threads: usize,
    /// Each stage; together they are all threads' time.
    pub stages: Vec<Part>,
}

impl Profile {
    /// Of a run that took `seconds` on `threads` workers.
    #[expect(clippy::cast_precision_loss, reason = "thread counts and nanoseconds fit")]
    pub fn new(spent: &Spent, ran: Ran, seconds: f64, threads: usize) -> Self {
        let whole = seconds.max(1e-9);
        let stages = STAGES.map(|stage| {
            // Who can be at it: the reader, the workers (the reader is one of them), the writer, or all.
            let hands = match stage {
                Stage::Read | Stage::Tar | Stage::Index | Stage::Write => 1,
                Stage::Hash | Stage::Compress | Stage::Seal => threads,
                Stage::Wait | Stage::Away => threads + 1,
            };
            let seconds = spent.seconds(stage);
            Part { stage, seconds, busy: (seconds / (whole * hands as f64)).min(1.0) }
        });
        let stages = stages.to_vec();
        let bottleneck = bottleneck(&stages, threads);
        let (cpu_seconds, delayed_seconds) = (ran.cpu_ns as f64 / 1e9, ran.delayed_ns as f64 / 1e9);
        Self { bottleneck, seconds, cpu_seconds, delayed_seconds, threads, stages }
    }

    /// Thread seconds of a stage.
    pub fn seconds_of(&self, stage: Stage) -> f64 {
        self.stages.iter().find(|part| part.stage == stage).map_or(0.0, |part| part.seconds)
    }

    /// `read 20 %, tar 3 %, …; compression holds it up`
    pub fn line(&self) -> String {
        let parts: Vec<String> =
            self.stages.iter().map(|part| format!("{} {:.0} %", part.stage.name(), part.busy * 100.0)).collect();
        format!("{}; bottleneck: {}", parts.join(", "), self.bottleneck)
    }
}

/// Of source, processors and volume the one that was busy most of the time; of what processors do, the largest part.
fn bottleneck(stages: &[Part], threads: usize) -> &'static str {
    let part = |stage: Stage| stages.iter().find(|part| part.stage == stage);
    let busy = |stage: Stage| part(stage).map_or(0.0, |part| part.busy);
    #[expect(clippy::cast_precision_loss, reason = "a count of threads")]
    let of_one = |stage: Stage| busy(stage) / threads.max(1) as f64;
    let work = [Stage::Tar, Stage::Hash, Stage::Compress, Stage::Seal];
    // Headers are made by one thread, the rest by all of them.
    let processors = of_one(Stage::Tar) + work[1..].iter().map(|stage| busy(*stage)).sum::<f64>();
    let seconds = |stage: Stage| part(stage).map_or(0.0, |part| part.seconds);
    let largest = work.into_iter().max_by(|a, b| seconds(*a).total_cmp(&seconds(*b))).unwrap_or(Stage::Compress);
    let candidates = [
        (Stage::Read, busy(Stage::Read)),
        (largest, processors),
        (Stage::Index, busy(Stage::Index)),
        (Stage::Write, busy(Stage::Write)),
    ];
    candidates.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("nothing", |(stage, _)| stage.as_bottleneck())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(threads: usize, seconds: &[(Stage, u64)]) -> Profile {
        let mut spent = Spent::default();
        seconds.iter().for_each(|(stage, seconds)| spent.0[*stage as usize] = seconds * 1_000_000_000);
        Profile::new(&spent, Ran::default(), 10.0, threads)
    }

    #[test]
    fn what_is_busy_all_the_time_holds_it_up() {
        use Stage::{Compress, Hash, Index, Read, Tar, Wait, Write};
        let slow_source = of(2, &[(Read, 10), (Compress, 4), (Wait, 16)]);
        assert_eq!(slow_source.bottleneck, "reading the source");
        let slow_volume = of(2, &[(Read, 1), (Compress, 6), (Write, 10), (Wait, 13)]);
        assert_eq!(slow_volume.bottleneck, "the volume");
        // One of eight threads reads all the time, the others are not half busy.
        assert_eq!(of(8, &[(Read, 9), (Compress, 30)]).bottleneck, "reading the source");
        assert_eq!(of(2, &[(Read, 3), (Tar, 1), (Hash, 2), (Compress, 13), (Write, 2)]).bottleneck, "compression");
        assert_eq!(of(1, &[(Hash, 6), (Compress, 1), (Read, 3), (Write, 2)]).bottleneck, "hashing");
        assert_eq!(of(2, &[(Index, 9), (Compress, 3)]).bottleneck, "the index");
    }

    #[test]
    fn a_thread_is_at_one_thing_at_a_time() {
        let start = Instant::now();
        let mut watch = Watch::new(Stage::Read);
        assert_eq!(watch.turn(Stage::Hash), Stage::Read);
        std::thread::sleep(std::time::Duration::from_millis(3));
        assert_eq!(watch.turn(Stage::Away), Stage::Hash);
        let spent = watch.spent();
        assert!(spent.seconds(Stage::Hash) >= 0.003);
        let sum: u64 = spent.0.iter().sum();
        assert!(u128::from(sum) <= start.elapsed().as_nanos());
    }
}
