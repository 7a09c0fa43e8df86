//! `bk tune`: measures the user's own data on this machine, and says what a full backup would come to with which settings.
//!
//! Everything is measured through what a snapshot itself uses: the walk, the tree and stream writers, the pipeline with its
//! coders, the volume's uploads. A trial runs the sample to nowhere; the volume is measured alone. What a full run would take follows
//! from the time of each stage ([`predict`]), so that a sample of a few frames is enough.

pub mod measure;
pub mod predict;
pub mod sample;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    clock::Clock,
    engine::write::pipeline::Settings,
    error::{Error, Kind, Result},
    format::codec::Codec,
    model::units::show_size,
    monitor::Monitor,
    source::{command::Watched, roots, select::Selection, walk::Walk},
    volume::{Store, Volume},
};
use measure::{Corner, Trial, WriteRate};
use predict::{Choice, Facts, Likeness, Wish};
use sample::{Census, Sample, Totals, WINDOW_LEN};

/// The beginning of a stream that is kept in memory, at most, bytes.
const HEAD_LEN_MAX: usize = 128 << 20;
/// Shares of the time: for counting or reading the beginning of a stream, for the volume, and for a check.
const CENSUS_SHARE: f64 = 0.2;
const VOLUME_SHARE: f64 = 0.12;
const CHECK_SHARE: f64 = 0.25;
/// Of the time for trials, what is kept for measuring again: machines are faster at one time than at another.
const AGAIN_SHARE: f64 = 0.35;
/// So often each is measured, at most.
const ROUNDS: usize = 3;
/// Codecs that are tried, and what each costs about, in units of zstd:3: the cheap ones first.
const CODECS: [(Codec, f64); 10] = [
    (Codec::Zstd(1), 0.8),
    (Codec::None, 0.3),
    (Codec::Zstd(5), 2.0),
    (Codec::Zstd(7), 3.0),
    (Codec::Zstd(9), 5.0),
    (Codec::Zstd(12), 10.0),
    (Codec::Bzip2(9), 20.0),
    (Codec::Zstd(15), 22.0),
    (Codec::Zstd(17), 35.0),
    (Codec::Zstd(19), 50.0),
];
/// Other frames that are tried, bytes.
const FRAME_LENS: [usize; 2] = [1 << 20, 16 << 20];

/// What is sampled.
#[derive(Clone, Debug)]
pub enum Source {
    /// Trees.
    Tree {
        /// As of a snapshot.
        base: Option<PathBuf>,
        /// As of a snapshot.
        paths: Vec<PathBuf>,
        /// As of a snapshot.
        selection: Selection,
    },
    /// Standard input, of this length when it is known.
    Stdin(Option<u64>),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The data.
    pub source: Source,
    /// The settings as they are now.
    pub present: Settings,
    /// More workers are not tried.
    pub threads_max: usize,
    /// The volume's own directory (device, inode), which is never stored in itself.
    pub volume_dir: Option<(u64, u64)>,
    /// How long all of it may take.
    pub time: Duration,
    /// Run the settings for this wish, and compare.
    pub check: Option<Wish>,
}

/// A prediction held against what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Codec.
    pub compression: Codec,
    /// Content that was stored, bytes.
    pub content_bytes: u64,
    /// Seconds as predicted for that much.
    pub predicted_seconds: f64,
    /// Seconds it took.
    pub measured_seconds: f64,
    /// Stored bytes as predicted for that much.
    pub predicted_bytes: u64,
    /// Stored bytes.
    pub measured_bytes: u64,
}

/// What a tune found.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// All there is.
    pub source: Totals,
    /// Content bytes of it that were measured, at most.
    pub sample_bytes: u64,
    /// Content bytes a second that the source gives when it is read for the first time.
    pub read_bytes_per_second: f64,
    /// Content bytes a second that one thread hashes and chunks.
    pub hash_bytes_per_second: f64,
    /// Bytes a second that the volume takes.
    pub write_bytes_per_second: Option<f64>,
    /// How much longer things take because of what else the machine did meanwhile; 1 is not at all.
    pub slowed: f64,
    /// All that was measured.
    pub choices: Vec<Choice>,
    /// What there was no time for.
    pub skipped: Vec<String>,
    /// The settings as they are now.
    pub present: Choice,
    /// The least time.
    pub fastest: Choice,
    /// Small, for little more time.
    pub balanced: Choice,
    /// The fewest bytes.
    pub smallest: Choice,
    /// Predicted against measured; none when there was no time for it.
    pub check: Option<Check>,
    /// How long it took.
    pub seconds: f64,
}

impl Outcome {
    /// The settings for a wish.
    pub fn of(&self, wish: Wish) -> &Choice {
        match wish {
            Wish::Fastest => &self.fastest,
            Wish::Balanced => &self.balanced,
            Wish::Smallest => &self.smallest,
        }
    }
}

/// Measures; `volume` is where it would be stored to.
pub fn run(volume: Option<&Volume>, request: &Request, clock: &dyn Clock, monitor: &dyn Monitor) -> Result<Outcome> {
    let started_at = Instant::now();
    let (sample, totals) = look(request, started_at + request.time.mul_f64(CENSUS_SHARE), monitor)?;
    if totals.content_bytes == 0 {
        return Err(Error::new(Kind::Other, "there is nothing to measure: no content was found"));
    }
    let write_rate = volume.map(|volume| write_rate(volume, request.time.mul_f64(VOLUME_SHARE), clock, monitor));
    let write_rate = write_rate.transpose()?;
    let share = if request.check.is_some() { 1.0 - CHECK_SHARE } else { 1.0 };
    let mut trials = Trials::new(&sample, request, started_at + request.time.mul_f64(share * 0.95), monitor);
    trials.first()?;
    trials.all()?;
    trials.again()?;
    let mut found = trials.outcome(totals, write_rate)?;
    if let Some(wish) = request.check {
        // Its share is its own, even where a last trial took longer than its time.
        let time = request.time.mul_f64(CHECK_SHARE);
        found.check = check(&sample, (found.of(wish), &found), time, (volume, clock), monitor)?;
    }
    found.seconds = started_at.elapsed().as_secs_f64();
    Ok(found)
}

/// The sample, and how much there is in all.
fn look(request: &Request, until: Instant, monitor: &dyn Monitor) -> Result<(Sample, Totals)> {
    match &request.source {
        Source::Stdin(told) => {
            let mut input = Watched::stdin(monitor)?;
            let (head, is_all, seconds) = sample::head(&mut input, HEAD_LEN_MAX, until, monitor)?;
            let len = if is_all { head.len() as u64 } else { told.unwrap_or(head.len() as u64) };
            let is_all = is_all || told.is_some();
            let totals = Totals { entries: 0, files: 0, content_bytes: len, plain_bytes: len, is_all };
            Ok((Sample::Head { bytes: head, seconds }, totals))
        }
        Source::Tree { base, paths, selection } => {
            let roots = roots::resolve(base.as_deref(), paths)?;
            if let Some(device) = roots.devices.first() {
                let what = format!("{} is a block device", device.display());
                return Err(Error::usage(what).with_hint("bk tune --stdin --size SIZE < DEVICE"));
            }
            roots.warnings.iter().for_each(|text| monitor.warn(text));
            roots.missing.iter().for_each(|path| monitor.warn(&format!("no such source: {path}")));
            let mut census = Census::new(until, monitor);
            match Walk::new(&roots, selection, request.volume_dir, 1).run(&mut census) {
                Ok(()) => census.totals.is_all = true,
                Err(_) if census.is_late() => {}
                Err(e) => return Err(e),
            }
            let totals = census.totals;
            Ok((Sample::Tree { base: roots.base, windows: census.windows() }, totals))
        }
    }
}

fn write_rate(volume: &Volume, time: Duration, clock: &dyn Clock, monitor: &dyn Monitor) -> Result<WriteRate> {
    volume.store.check_writable()?;
    let corner = Corner::new(&volume.store, clock)?;
    let rate = corner.write_rate(time, monitor)?;
    corner.clear()?;
    Ok(rate)
}

/// Trials within a time.
struct Trials<'a> {
    sample: &'a Sample,
    request: &'a Request,
    began_at: Instant,
    until: Instant,
    monitor: &'a dyn Monitor,
    /// Seconds the reader needed for a byte the first time.
    read_a_byte: f64,
    /// The reference: zstd:3 on the usual frames with all threads, on so many steps.
    references: Vec<Trial>,
    done: Vec<Trial>,
    skipped: Vec<String>,
}

impl<'a> Trials<'a> {
    fn new(sample: &'a Sample, request: &'a Request, until: Instant, monitor: &'a dyn Monitor) -> Self {
        let (references, done, skipped) = (Vec::new(), Vec::new(), Vec::new());
        Self { sample, request, began_at: Instant::now(), until, monitor, read_a_byte: 0.0, references, done, skipped }
    }

    fn usual(&self, codec: Codec) -> Settings {
        Settings { threads: self.request.threads_max, codec, ..self.request.present }
    }

    /// The reference on a few steps, then on as many as there is time for: the first time they are read.
    #[expect(clippy::cast_precision_loss, reason = "a speed")]
    fn first(&mut self) -> Result<()> {
        let usual = self.usual(Codec::Zstd(3));
        let trial = |count| {
            let late = |e: Error| {
                let is_late = measure::is_late(&e);
                if is_late { no_time() } else { e }
            };
            measure::trial(self.sample, count, usual, (self.monitor, self.until)).map_err(late)
        };
        let few = trial(2)?;
        let left = self.until.saturating_duration_since(Instant::now()).as_secs_f64();
        let a_step = few.profile.seconds / few.count.min(self.sample.step_count()).max(1) as f64;
        let count = fitting(left * 0.3, a_step).clamp(2, self.sample.step_count().max(2));
        let mut all = few.clone();
        if count > 2 {
            all = trial(count)?;
        }
        // What the first trial has read comes from memory now: what it waited for is waited for once.
        let waited = few.cost().waited * few.plain_bytes as f64 + all.cost().waited * all.plain_bytes as f64;
        self.read_a_byte = all.cost().read + waited / all.plain_bytes.max(1) as f64;
        if let Some(a_byte) = self.sample.came_a_byte() {
            self.read_a_byte = a_byte;
        }
        // Once more: what was in no cache before has been read by now.
        let again = trial(count)?;
        self.references = vec![again.clone()];
        self.done.push(again);
        Ok(())
    }

    /// When the trials of each setting, once, are to be over.
    fn once_until(&self) -> Instant {
        let left = self.until.saturating_duration_since(self.began_at);
        self.until - left.mul_f64(AGAIN_SHARE)
    }

    /// Measures again, in turn, what fits into the time that is left.
    fn again(&mut self) -> Result<()> {
        let mut settings: Vec<(Settings, usize, f64)> =
            self.done.iter().map(|trial| (trial.settings, trial.count, trial.profile.seconds)).collect();
        settings.sort_by(|a, b| a.2.total_cmp(&b.2));
        for _ in 1..ROUNDS {
            for (settings, count, seconds) in &settings {
                let left = self.until.saturating_duration_since(Instant::now()).as_secs_f64();
                if *seconds > left / 4.0 {
                    break;
                }
                match measure::trial(self.sample, *count, *settings, (self.monitor, self.until)) {
                    Ok(trial) => self.done.push(trial),
                    Err(e) if measure::is_late(&e) => return Ok(()),
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// Of each setting the trial in the middle.
    fn middles(&self) -> Vec<&Trial> {
        let mut middles: Vec<&Trial> = Vec::new();
        for trial in &self.done {
            if middles.iter().any(|other| is_same(&other.settings, &trial.settings)) {
                continue;
            }
            let mut all: Vec<&Trial> =
                self.done.iter().filter(|other| is_same(&other.settings, &trial.settings)).collect();
            all.sort_by(|a, b| a.cost().work.total_cmp(&b.cost().work));
            middles.push(all[all.len() / 2]);
        }
        middles
    }

    fn all(&mut self) -> Result<()> {
        let most = self.request.threads_max;
        let mut plan: Vec<(Settings, f64)> = CODECS.iter().map(|(codec, cost)| (self.usual(*codec), *cost)).collect();
        plan.extend(FRAME_LENS.map(|frame_len| (Settings { frame_len, ..self.usual(Codec::Zstd(3)) }, 1.2)));
        let present = self.request.present;
        let cost = CODECS.iter().find(|(codec, _)| *codec == present.codec).map_or(10.0, |(_, cost)| *cost);
        plan.insert(0, (present, cost));
        let fewer = (0..usize::BITS).map(|bit| 1usize << bit).take_while(|threads| *threads < most);
        for threads in
            fewer.chain(Some(present.threads).filter(|threads| *threads < most && !threads.is_power_of_two()))
        {
            plan.push((Settings { threads, ..self.usual(Codec::Zstd(3)) }, 1.0));
            plan.extend(CODECS.iter().map(|(codec, cost)| (Settings { threads, ..self.usual(*codec) }, *cost)));
        }
        let count = plan.len();
        for (n, (settings, cost)) in plan.into_iter().enumerate() {
            self.one(settings, cost, count - n)?;
        }
        // The smallest codec in the longest frames: what size alone counts for.
        let smallest = self.done.iter().min_by(|a, b| size_of(a).total_cmp(&size_of(b)));
        if let Some((codec, a_byte)) = smallest.map(|trial| (trial.settings.codec, trial.cost().work)) {
            let cost = a_byte / self.references[0].cost().work.max(1e-15);
            self.one(Settings { frame_len: FRAME_LENS[1], ..self.usual(codec) }, cost, 1)?;
        }
        Ok(())
    }

    /// One trial, on as many steps as fit; `left` more are to come, itself counted. `cost` is in units of the reference.
    #[expect(clippy::cast_precision_loss, reason = "a time")]
    fn one(&mut self, settings: Settings, cost: f64, left: usize) -> Result<()> {
        sample::go_on(self.monitor)?;
        if self.done.iter().any(|trial| is_same(&trial.settings, &settings)) {
            return Ok(());
        }
        let time = self.once_until().saturating_duration_since(Instant::now()).as_secs_f64();
        let reference = &self.references[0];
        let known =
            self.done.iter().find(|trial| trial.settings.codec == settings.codec).map(|trial| trial.cost().work);
        let a_byte = known.unwrap_or(reference.cost().work * cost);
        let a_step = a_byte * (reference.plain_bytes as f64 / reference.count.max(1) as f64) / settings.threads as f64;
        // The last ones cost the most: what comes early leaves them some.
        let count = fitting(time / left as f64, a_step);
        if count == 0 && a_step * 1.5 > time / (left as f64).sqrt() {
            self.skip(&settings);
            return Ok(());
        }
        let count = count.clamp(1, reference.count);
        if !self.references.iter().any(|reference| reference.count == count) {
            let usual = self.usual(Codec::Zstd(3));
            match measure::trial(self.sample, count, usual, (self.monitor, self.until)) {
                Ok(trial) => self.references.push(trial),
                Err(e) if measure::is_late(&e) => {
                    self.skip(&settings);
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        match measure::trial(self.sample, count, settings, (self.monitor, self.until)) {
            Ok(trial) => self.done.push(trial),
            Err(e) if measure::is_late(&e) => self.skip(&settings),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn skip(&mut self, settings: &Settings) {
        let (codec, frames, threads) = (settings.codec, show_size(settings.frame_len as u64), settings.threads);
        self.skipped.push(format!("{codec} in frames of {frames} on {threads} threads"));
    }

    #[expect(clippy::cast_precision_loss, reason = "speeds")]
    fn outcome(self, totals: Totals, write_rate: Option<WriteRate>) -> Result<Outcome> {
        let sum = |of: &dyn Fn(&Trial) -> f64| self.done.iter().map(of).sum::<f64>();
        let (cpu, delayed) = (sum(&|trial| trial.profile.cpu_seconds), sum(&|trial| trial.profile.delayed_seconds));
        let slowed = 1.0 + delayed / cpu.max(1e-9);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let facts = Facts { totals, read_a_byte: self.read_a_byte, write_rate, processors, slowed };
        let of_all = size_of(&self.references[0]);
        let like = |trial: &Trial| {
            let these = self.references.iter().find(|reference| reference.count == trial.count);
            Likeness { of_all, of_these: these.map_or(of_all, size_of) }
        };
        let mut choices: Vec<Choice> =
            self.middles().iter().map(|trial| predict::predict(trial, like(trial), &facts)).collect();
        choices.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let frame_size = self.request.present.frame_len as u64;
        let best = |wish| predict::best(&choices, wish, frame_size).cloned().ok_or_else(no_time);
        let middles = self.middles();
        let present = middles.iter().find(|trial| is_same(&trial.settings, &self.request.present));
        let present = present.unwrap_or(&middles[0]);
        let present = predict::predict(present, like(present), &facts);
        let reference = &self.references[0];
        let content = reference.content_bytes as f64;
        let share = content / reference.plain_bytes.max(1) as f64;
        Ok(Outcome {
            source: totals,
            sample_bytes: reference.content_bytes,
            read_bytes_per_second: share / self.read_a_byte.max(1e-12),
            hash_bytes_per_second: 1.0 / (reference.cost().hash / share).max(1e-12),
            write_bytes_per_second: write_rate.map(|rate| rate.bytes_per_second),
            slowed,
            skipped: self.skipped.clone(),
            present,
            fastest: best(Wish::Fastest)?,
            balanced: best(Wish::Balanced)?,
            smallest: best(Wish::Smallest)?,
            choices,
            check: None,
            seconds: 0.0,
        })
    }
}

fn no_time() -> Error {
    Error::new(Kind::Other, "the time was too short to measure anything").with_hint("--time 60s")
}

fn is_same(a: &Settings, b: &Settings) -> bool {
    (a.codec, a.frame_len, a.threads) == (b.codec, b.frame_len, b.threads)
}

/// Stored bytes a plain byte.
#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn size_of(trial: &Trial) -> f64 {
    trial.stored_bytes as f64 / trial.plain_bytes.max(1) as f64
}

/// How many steps of `a_step` seconds fit into `seconds`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number of steps, never negative")]
fn fitting(seconds: f64, a_step: f64) -> usize {
    (seconds / a_step.max(1e-6)).clamp(0.0, 1e6) as usize
}

/// Stores as much of the sample as there is time for with the settings of `choice`, on the volume where there is one.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "predictions")]
fn check(
    sample: &Sample,
    (choice, found): (&Choice, &Outcome),
    time: Duration,
    (volume, clock): (Option<&Volume>, &dyn Clock),
    monitor: &dyn Monitor,
) -> Result<Option<Check>> {
    let frame_len = usize::try_from(choice.frame_size).unwrap_or(usize::MAX);
    let settings = Settings { threads: choice.threads, codec: choice.compression, frame_len, verify_all: false };
    let until = Instant::now() + time;
    let a_plain_byte = choice.seconds / found.source.plain_bytes.max(1) as f64;
    let count = fitting(time.as_secs_f64() * 0.8, a_plain_byte * WINDOW_LEN as f64).min(sample.step_count());
    if count == 0 {
        return Ok(None);
    }
    let trial = match volume {
        None => measure::trial(sample, count, settings, (monitor, until)),
        Some(volume) => {
            let corner = Corner::new(&volume.store, clock)?;
            let store: &Arc<dyn Store> = &volume.store;
            let trial = measure::store(sample, count, settings, (store, &corner.dir()), (monitor, until));
            corner.clear()?;
            trial
        }
    };
    let trial = match trial {
        Err(e) if measure::is_late(&e) => return Ok(None),
        trial => trial?,
    };
    let share = trial.plain_bytes as f64 / found.source.plain_bytes.max(1) as f64;
    Ok(Some(Check {
        compression: choice.compression,
        content_bytes: trial.content_bytes,
        predicted_seconds: choice.seconds * share,
        measured_seconds: trial.profile.seconds,
        predicted_bytes: (choice.stored_bytes as f64 * share) as u64,
        measured_bytes: trial.stored_bytes,
    }))
}
