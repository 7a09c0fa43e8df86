//! Measures: the sample through the real pipeline to nowhere, and bytes to the volume.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use super::sample::{Sample, go_on};
use crate::{
    clock::Clock,
    engine::write::{
        delta,
        index::IndexWriter,
        part::{PartWriter, Target},
        pipeline::{self, Settings},
        profile::{Profile, Stage},
        sorted::Sorted,
        stream::Stream,
        tree,
    },
    error::{Error, Kind, Result},
    format::layout::INDEX_NAME,
    model::ids::{Name, RunId},
    monitor::Monitor,
    source::{select::Selection, walk::Walk},
    volume::{Pending, Store, discard::Discard},
};

/// What one way to store a sample came to.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Threads, codec, frames.
    pub settings: Settings,
    /// Steps of the sample that were stored.
    pub count: usize,
    /// Bytes of the plain stream they stand for.
    pub plain_bytes: u64,
    /// Content in them.
    pub content_bytes: u64,
    /// Parts and index.
    pub stored_bytes: u64,
    /// Where the time went.
    pub profile: Profile,
}

impl Trial {
    /// What a plain byte costs.
    #[expect(clippy::cast_precision_loss, reason = "a speed")]
    pub fn cost(&self) -> Cost {
        let profile = &self.profile;
        let work = [Stage::Read, Stage::Tar, Stage::Hash, Stage::Compress, Stage::Seal, Stage::Index];
        let at_work = work.iter().map(|stage| profile.seconds_of(*stage)).sum::<f64>();
        // What was neither spent on a processor nor waiting for one was waiting for the source.
        let waited = (at_work - profile.cpu_seconds - profile.delayed_seconds).max(0.0);
        let waited = waited.min(profile.seconds_of(Stage::Read));
        // Other work that had the processors meanwhile took its share of each stage.
        let share = (profile.cpu_seconds / (at_work - waited).max(1e-9)).min(1.0);
        let a_byte = |seconds: f64| seconds / self.plain_bytes.max(1) as f64;
        Cost {
            work: a_byte(profile.cpu_seconds),
            read: a_byte((profile.seconds_of(Stage::Read) - waited) * share),
            tar: a_byte(profile.seconds_of(Stage::Tar) * share),
            hash: a_byte(profile.seconds_of(Stage::Hash) * share),
            compress: a_byte(profile.seconds_of(Stage::Compress) * share),
            waited: a_byte(waited),
        }
    }
}

/// Seconds a plain byte costs: those on a processor do not depend on what else the machine does.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// On processors, all threads together.
    pub work: f64,
    /// Of these, reading.
    pub read: f64,
    /// Making headers.
    pub tar: f64,
    /// Hashing.
    pub hash: f64,
    /// Compressing.
    pub compress: f64,
    /// Not on a processor: waiting for the source.
    pub waited: f64,
}

/// Seconds of this process on processors.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a run fit")]
fn own_seconds() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// What a volume takes.
#[derive(Clone, Copy, Debug)]
pub struct WriteRate {
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Seconds on processors for each byte.
    pub work_a_byte: f64,
}

/// Warnings of a trial say nothing new; what matters of the monitor is whether to stop.
struct Quiet<'a>(&'a dyn Monitor, Instant);

/// Not a signal's number: time is up.
const LATE: i32 = 0;

/// Whether a trial was given up because its time was up.
pub fn is_late(error: &Error) -> bool {
    error.kind() == Kind::Signal(LATE)
}

impl Monitor for Quiet<'_> {
    fn warn(&self, _: &str) {}
    fn advance(&self, _: u64, _: u64, _: &[u8]) {}
    fn expect(&self, _: u64, _: u64) {}
    fn interrupted(&self) -> Option<i32> {
        self.0.interrupted().or_else(|| (Instant::now() >= self.1).then_some(LATE))
    }
}

/// A part of a run to nowhere, bytes: none is ever full.
const PART_LEN: u64 = 64 << 20;

/// Stores the first `count` steps of `sample` as a snapshot at level 0 would, to `store`, below `dir`; gives up at `until`.
pub fn store(
    sample: &Sample,
    count: usize,
    settings: Settings,
    (store, dir): (&Arc<dyn Store>, &str),
    (monitor, until): (&dyn Monitor, Instant),
) -> Result<Trial> {
    let quiet = Quiet(monitor, until);
    let mut index = IndexWriter::new(store.create(&format!("{dir}{INDEX_NAME}"))?);
    index = index.with_traces(Sorted::new(Arc::clone(store)));
    let name: Name = "sample".parse()?;
    let target = Target {
        store: Arc::clone(store),
        dir: dir.to_owned(),
        streams: vec![name.clone()],
        codec: settings.codec,
        part_len: PART_LEN,
    };
    let deltas = delta::Settings::new(&[0; 32], settings.frame_len);
    let selection = Selection::default();
    let ((), stored, profile) = pipeline::run(settings, PartWriter::new(target, index), |framer| {
        if let Some(roots) = sample.roots(count) {
            let scratch = || store.scratch();
            let walk = Walk::new(&roots, &selection, None, settings.threads);
            let request = tree::Request { scratch: &scratch, deltas: Some(&deltas), base: None };
            tree::store(framer, walk, request, &quiet)?;
        }
        if let Some(mut input) = sample.stream(count) {
            let stream = Stream { number: 1, name: name.as_str(), settings: Some(&deltas), monitor: &quiet };
            stream.store(framer, &mut input)?;
        }
        Ok(())
    })?;
    let (plain_bytes, content_bytes) = sample.bytes(count);
    let stored_bytes = stored.stored_bytes + stored.index.len;
    Ok(Trial { settings, count, plain_bytes, content_bytes, stored_bytes, profile })
}

/// The same to nowhere: all but the volume.
pub fn trial(
    sample: &Sample,
    count: usize,
    settings: Settings,
    (monitor, until): (&dyn Monitor, Instant),
) -> Result<Trial> {
    let nowhere: Arc<dyn Store> = Arc::new(Discard);
    store(sample, count, settings, (&nowhere, ""), (monitor, until))
}

/// What a tune leaves on a volume for as long as it runs lies below this.
const PREFIX: &str = "bk-probe-tune/";
/// What is older was left by one that was killed.
const LEFT_AFTER: Duration = Duration::from_hours(24);
/// Objects grow to this length, as parts would.
const OBJECT_LEN_MAX: u64 = 16 << 20;
/// What is written at a time, and how much there is of it.
const BLOCK_LEN: usize = 256 << 10;
const BLOCK_COUNT: usize = 96;
/// The first one's length.
const OBJECT_LEN_MIN: u64 = 256 << 10;
/// So many are being finished at the same time, as parts are.
const PENDING_COUNT_MAX: usize = 4;
/// More says nothing new.
const WRITTEN_MAX: u64 = 256 << 20;
/// No more than this share of what is free is taken.
const FREE_SHARE: u64 = 8;

/// A place on a volume for as long as this lives; what is in it goes with it, whatever ends the run in order.
pub struct Corner<'a> {
    /// The volume's.
    pub store: &'a Arc<dyn Store>,
    run: RunId,
    free_bytes_min: u64,
}

impl<'a> Corner<'a> {
    /// On `store`, where `free_bytes_min` are to stay free; removes what a tune that was killed left there a day ago or earlier.
    pub fn new(store: &'a Arc<dyn Store>, free_bytes_min: u64, clock: &dyn Clock) -> Result<Self> {
        let day = u64::try_from(LEFT_AFTER.as_millis()).unwrap_or(u64::MAX);
        let before = clock.unix_ms().saturating_sub(day);
        let is_old = |key: &str| {
            let run = key.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).map(str::parse::<RunId>);
            run.is_some_and(|run| run.is_ok_and(|run| run.unix_ms() < before))
        };
        let left = store.list(PREFIX)?.into_iter().map(|item| item.key).filter(|key| is_old(key));
        store.delete_all(&left.collect::<Vec<_>>())?;
        Ok(Self { store, run: RunId::new(clock.unix_ms())?, free_bytes_min })
    }

    /// Bytes that may be written there: a share of what is free.
    pub fn room(&self) -> Result<u64> {
        let free = self.store.free_bytes()?;
        Ok(free.map_or(u64::MAX, |free| free.saturating_sub(self.free_bytes_min) / FREE_SHARE))
    }

    /// What keys in it begin with.
    pub fn dir(&self) -> String {
        format!("{PREFIX}{}-", self.run)
    }

    /// Writes objects of noise for about `time`, the last one durable; none where there is no room.
    #[expect(clippy::cast_precision_loss, reason = "a speed")]
    pub fn write_rate(&self, time: Duration, monitor: &dyn Monitor) -> Result<Option<WriteRate>> {
        let written_max = WRITTEN_MAX.min(self.room()?);
        if written_max < OBJECT_LEN_MIN {
            return Ok(None);
        }
        // As much as the frames of a run: it does not stay in a processor's cache.
        let mut noise = vec![0; BLOCK_LEN * BLOCK_COUNT];
        blake3::Hasher::new().update(self.run.to_string().as_bytes()).finalize_xof().fill(&mut noise);
        let mut blocks = (0..BLOCK_COUNT).cycle();
        let cpu_before = own_seconds();
        let started_at = Instant::now();
        let mut pending: VecDeque<Box<dyn Pending>> = VecDeque::new();
        let (mut len, mut written, mut number) = (OBJECT_LEN_MIN, 0, 0);
        let mut spent = Duration::ZERO;
        while spent < time && written < written_max {
            let mut object = self.store.create(&format!("{}{number}", self.dir()))?;
            let mut in_object = 0;
            while in_object < len
                && written < written_max
                && (in_object < OBJECT_LEN_MIN || started_at.elapsed() < time)
            {
                go_on(monitor)?;
                // No two blocks are the same: a file system may keep equal ones once.
                let at = blocks.next().unwrap_or(0) * BLOCK_LEN;
                let block = &mut noise[at..at + BLOCK_LEN];
                block[..8].copy_from_slice(&written.to_le_bytes());
                object.write(block)?;
                in_object += BLOCK_LEN as u64;
                written += BLOCK_LEN as u64;
            }
            pending.push_back(object.start()?);
            while pending.len() > PENDING_COUNT_MAX {
                pending.pop_front().map_or(Ok(()), Pending::wait)?;
            }
            spent = started_at.elapsed();
            (len, number) = ((len * 2).min(OBJECT_LEN_MAX), number + 1);
        }
        pending.into_iter().try_for_each(Pending::wait)?;
        let seconds = started_at.elapsed().as_secs_f64().max(1e-6);
        let cpu_seconds = own_seconds() - cpu_before;
        let written = written.max(1) as f64;
        Ok(Some(WriteRate { bytes_per_second: written / seconds, work_a_byte: cpu_seconds / written }))
    }

    /// Removes what is in it.
    pub fn clear(&self) -> Result<()> {
        let own = self.store.list(PREFIX)?.into_iter().map(|item| item.key).filter(|key| key.starts_with(&self.dir()));
        let kept = |e: Error| e.context("what was measured stays there");
        self.store.delete_all(&own.collect::<Vec<_>>()).map_err(kept)?;
        // One that wrote nothing has at most made the directory, which goes with this name.
        self.store.delete(&format!("{}0", self.dir()))
    }
}

impl Drop for Corner<'_> {
    fn drop(&mut self) {
        // Told by who calls `clear`; what stays is found by the next tune.
        let _ = self.clear();
    }
}
