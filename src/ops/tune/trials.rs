//! Which settings are tried on the sample, how much of it each gets, and how often.

use std::time::{Duration, Instant};

use super::{
    Outcome, Request,
    measure::{self, Corner, Trial, WriteRate},
    predict::{self, Choice, Facts, Likeness, Wish},
    sample::{self, Sample, Totals},
};
use crate::{
    engine::write::pipeline::Settings,
    error::{Error, Kind, Result},
    format::codec::Codec,
    model::units::show_size,
    monitor::Monitor,
};

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

/// Trials within a time.
pub struct Trials<'a> {
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
    /// Of `sample`, till `until`.
    pub fn new(sample: &'a Sample, request: &'a Request, until: Instant, monitor: &'a dyn Monitor) -> Self {
        let (references, done, skipped) = (Vec::new(), Vec::new(), Vec::new());
        Self { sample, request, began_at: Instant::now(), until, monitor, read_a_byte: 0.0, references, done, skipped }
    }

    fn usual(&self, codec: Codec) -> Settings {
        Settings { threads: self.request.threads_max, codec, ..self.request.present }
    }

    /// The reference on a few steps, then on as many as there is time for: the first time they are read.
    #[expect(clippy::cast_precision_loss, reason = "a speed")]
    pub fn first(&mut self) -> Result<()> {
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

    /// What writing costs beside all else: the sample is stored as it is on the volume, and what that takes longer than going nowhere
    /// is the volume's, as long as it is not the volume that holds it up.
    #[expect(clippy::cast_precision_loss, reason = "speeds")]
    pub fn writing(&mut self, rate: &mut WriteRate, corner: &Corner<'_>, time: Duration) -> Result<()> {
        let (until, settings) = (Instant::now() + time, self.usual(Codec::None));
        let room = corner.room()?;
        let fits = |count: &usize| self.sample.bytes(*count).0 <= room;
        let Some(count) = (1..=self.references[0].count).rev().find(fits) else { return Ok(()) };
        let mut found = Vec::new();
        for _ in 0..ROUNDS {
            let quiet = (self.monitor, until);
            let nowhere = measure::trial(self.sample, count, settings, quiet);
            let there = measure::store(self.sample, count, settings, (corner.store, &corner.dir()), quiet);
            corner.clear()?;
            let (nowhere, there) = match (nowhere, there) {
                (Ok(nowhere), Ok(there)) => (nowhere, there),
                (Err(e), _) | (_, Err(e)) if measure::is_late(&e) => break,
                (Err(e), _) | (_, Err(e)) => return Err(e),
            };
            let (stored, seconds) = (there.stored_bytes as f64, there.profile.seconds);
            if stored / rate.bytes_per_second > 0.8 * seconds {
                break;
            }
            let hands = processors().min(settings.threads as f64 + 1.0);
            found.push((seconds * hands - nowhere.cost().work * nowhere.plain_bytes as f64) / stored);
        }
        // Other work makes it longer, nothing makes it shorter.
        if let Some(least) = found.into_iter().min_by(f64::total_cmp) {
            rate.work_a_byte = rate.work_a_byte.max(least);
        }
        Ok(())
    }

    /// Measures again, in turn, what fits into the time that is left.
    pub fn again(&mut self) -> Result<()> {
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

    /// Each setting once.
    pub fn all(&mut self) -> Result<()> {
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
    /// What all of it says.
    pub fn outcome(self, totals: Totals, write_rate: Option<WriteRate>) -> Result<Outcome> {
        let facts = Facts { totals, read_a_byte: self.read_a_byte, write_rate, processors: processors() };
        // The one that was measured often, where it is there: what the machine did at one moment says less.
        let all = self.middles().into_iter().find(|trial| is_same(&trial.settings, &self.references[0].settings));
        let all = all.unwrap_or(&self.references[0]);
        let like = |trial: &Trial| {
            let same = |reference: &&Trial| reference.count == trial.count && reference.count != all.count;
            let these = self.references.iter().find(same).unwrap_or(all);
            let pace = all.cost().compress / these.cost().compress.max(1e-15);
            Likeness { of_all: size_of(all), of_these: size_of(these), pace }
        };
        let mut choices: Vec<Choice> =
            self.middles().iter().map(|trial| predict::predict(trial, like(trial), &facts)).collect();
        choices.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let frame_size = self.request.present.frame_len as u64;
        let best = |wish| predict::best(&choices, wish, frame_size).cloned().ok_or_else(no_time);
        let middles = self.middles();
        let present = middles.iter().find(|trial| is_same(&trial.settings, &self.request.present));
        let present = present.map(|trial| predict::predict(trial, like(trial), &facts));
        let reference = &self.references[0];
        let content = reference.content_bytes as f64;
        let share = content / reference.plain_bytes.max(1) as f64;
        Ok(Outcome {
            source: totals,
            sample_bytes: reference.content_bytes,
            read_bytes_per_second: share / self.read_a_byte.max(1e-12),
            hash_bytes_per_second: 1.0 / (reference.cost().hash / share).max(1e-12),
            write_bytes_per_second: write_rate.map(|rate| rate.bytes_per_second),
            frame_size,
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

/// Processors there are.
#[expect(clippy::cast_precision_loss, reason = "a small number")]
fn processors() -> f64 {
    std::thread::available_parallelism().map_or(1, usize::from) as f64
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
pub fn fitting(seconds: f64, a_step: f64) -> usize {
    (seconds / a_step.max(1e-6)).clamp(0.0, 1e6) as usize
}
